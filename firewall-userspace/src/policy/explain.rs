//! Why a packet passes or drops: the verdict of the very `decide()` that the kernel runs, told in sentences.
//!
//! The text becomes a frame, the frame is judged by [`simulate::decide`] or, if it leaves, by
//! [`simulate::decide_egress`], and its trace becomes words. The model
//! is only searched for words about the rule that was decided on (its place, the prefix that matched), never for
//! the verdict. Connections count as far as `node` knows them: an agent gives those that are open right now, a policy
//! file by itself has none.

pub mod packet;
mod words;

use super::compile::Compiled;
use super::model::Policy;
use crate::api::types::Explanation;
use crate::simulate::{self, FrameBuilder, Node};
use firewall_common::control::AddressKey;
use firewall_common::packet::ethertype;
use firewall_common::verdict::Direction;
use packet::{PacketError, PacketSpec};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use words::Account;

#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The text describes no packet: a usage error.
    #[error(transparent)]
    Packet(#[from] PacketError),
}

/// Explains what `node` does to a packet described in words ([`packet::parse`]) under `policy`, whose file's text
/// is `text` and whose image is `compiled`. The generation is left for the caller to fill in.
///
/// # Errors
/// The words describe no packet.
pub fn explain(
    policy: &Policy,
    text: &str,
    compiled: &Compiled,
    node: &Node<'_>,
    packet: &str,
) -> Result<Explanation, ExplainError> {
    let mut spec = packet::parse(packet)?;
    spec.own = Some(spec.own(node.own.iter().map(|key| address(*key)).filter(reachable)));
    let (src, dst) = spec.ends();
    let stays = dst.is_loopback() || node.own.contains(&simulate::address_key(dst));
    if spec.direction == Direction::Egress && stays {
        return Ok(words::unjudged(&spec));
    }
    let frame = frame(&spec);
    let (outcome, steps) = match spec.direction {
        Direction::Ingress => simulate::decide(node, &frame),
        Direction::Egress => simulate::decide_egress(node, &frame),
    };
    let own_source = node.own.contains(&simulate::address_key(src));
    let account = Account {
        policy,
        text,
        compiled,
        config: node.config,
        spec: &spec,
        own_source,
        outcome,
        steps: &steps,
    };
    Ok(account.explanation())
}

fn frame(spec: &PacketSpec) -> Vec<u8> {
    let (src, dst) = spec.ends();
    let mut frame = FrameBuilder::new(src, dst, spec.transport);
    for tag in &spec.vlan {
        frame = frame.vlan(ethertype::VLAN, *tag);
    }
    frame.hop_limit = spec.hop_limit();
    frame.build()
}

fn address(key: AddressKey) -> IpAddr {
    match (key.high, u32::try_from(key.low)) {
        // Network 0 holds no address of a host, but `::1` has the same halves as `0.0.0.1`.
        (0, Ok(v4)) if v4 >> 24 != 0 => IpAddr::V4(Ipv4Addr::from(v4)),
        _ => IpAddr::V6(Ipv6Addr::from(u128::from(key.high) << 64 | u128::from(key.low))),
    }
}

/// Whether strangers or, for link-local IPv6, neighbours send to it.
fn reachable(address: &IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(_) => false,
    };
    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast() && !link_local
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::compile::compile;
    use crate::policy::file;
    use crate::simulate::{Flows, address_key};
    use firewall_common::control::Config;
    use std::collections::HashSet;
    use std::path::Path;

    const POLICY: &str =
        "version = 1\n[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\nallow = [\"192.0.2.0/24\"]\n";

    fn explained(packet: &str, own: &[&str]) -> Explanation {
        let loaded = file::parse(POLICY, Path::new("policy.toml"), 0).unwrap();
        let compiled = compile(&loaded.policy).unwrap();
        let own: HashSet<AddressKey> = own
            .iter()
            .map(|text| address_key(text.parse().unwrap()))
            .collect();
        let mut config = Config::DEFAULT;
        for key in &own {
            config.add_own_address(key.high, key.low);
        }
        let flows = Flows::unknown();
        let node = Node {
            image: &compiled.image,
            config: &config,
            own: &own,
            flows: &flows,
        };
        explain(&loaded.policy, POLICY, &compiled, &node, packet).unwrap()
    }

    #[test]
    fn the_host_itself_is_the_destination_but_never_its_loopback() {
        let own = [
            "::1",
            "127.0.0.1",
            "169.254.1.1",
            "198.51.100.1",
            "fe80::1",
            "2001:db8::5",
        ];
        let told = explained("tcp 192.0.2.7 -> 80", &own);
        assert_eq!(
            (told.packet.as_str(), told.verdict.as_str()),
            ("tcp 192.0.2.7:49152 -> 198.51.100.1:80 flags syn", "pass")
        );
        assert_eq!(
            explained("tcp 2001:db8::7 -> 80", &own).packet,
            "tcp [2001:db8::7]:49152 -> [2001:db8::5]:80 flags syn"
        );
        assert_eq!(
            explained("tcp 192.0.2.7 -> 80", &[]).packet,
            "tcp 192.0.2.7:49152 -> 192.0.2.1:80 flags syn"
        );
    }

    #[test]
    fn what_the_link_cannot_live_without_is_built_as_its_standard_demands() {
        let verdict = |packet: &str| {
            let told = explained(packet, &["198.51.100.1", "fe80::5", "2001:db8::5"]);
            (told.verdict, told.reason)
        };
        for packet in [
            "icmpv6 neighbour-solicitation from fe80::1 to ff02::1:ff00:1",
            "icmpv6 neighbour-advertisement from fe80::1",
            "icmpv6 router-solicitation from fe80::1 to ff02::2",
            "icmpv6 router-advertisement from fe80::1 to ff02::1",
        ] {
            assert_eq!(
                verdict(packet),
                ("pass".into(), "neighbour-discovery".into()),
                "{packet}"
            );
            assert_eq!(verdict(&format!("{packet} ttl 254")).0, "drop", "{packet}");
        }
        for kind in ["130", "131", "132", "143"] {
            let packet = format!("icmpv6 {kind} from fe80::1 to ff02::16");
            assert_eq!(verdict(&packet), ("pass".into(), "mld".into()), "{packet}");
        }
        // The DHCP client has not asked.
        assert_eq!(
            verdict("udp [fe80::1]:547 to 546"),
            ("drop".into(), "closed".into())
        );
        assert_eq!(
            explained("udp [fe80::1]:547 to 546", &["fe80::5", "2001:db8::5"]).packet,
            "udp [fe80::1]:547 -> [fe80::5]:546"
        );
    }

    #[test]
    fn a_hit_in_a_list_file_names_its_line() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("bad.txt"), "# bad\n\n203.0.113.0/24 # them\n").unwrap();
        let text = "version = 1\ndeny = [\"@all\"]\n[groups]\nall = [\"@bad\"]\nbad = { file = \"bad.txt\" }\n\
                    [[service]]\nname = \"web\"\nports = [\"tcp/80\"]\nallow = [\"any\"]\n";
        let path = folder.path().join("policy.toml");
        let loaded = file::parse(text, &path, 0).unwrap();
        let compiled = compile(&loaded.policy).unwrap();
        let node = Node {
            image: &compiled.image,
            config: &Config::DEFAULT,
            own: &HashSet::new(),
            flows: &Flows::unknown(),
        };
        let told = explain(&loaded.policy, text, &compiled, &node, "tcp 203.0.113.9 -> 80").unwrap();
        let line = format!(
            "203.0.113.0/24 out of @all ({}:3:1)",
            folder.path().join("bad.txt").display()
        );
        assert_eq!(told.reason, "denied");
        assert!(told.hint.as_ref().unwrap().ends_with(&line), "{:?}", told.hint);
    }

    #[test]
    fn a_martian_is_told_by_what_it_is() {
        let finding = |packet, own: &[&str]| explained(packet, own).steps[1].finding.clone();
        assert_eq!(
            finding("tcp 198.51.100.1 -> 80", &["198.51.100.1"]),
            "198.51.100.1 is an address of this host: nobody else sends from it"
        );
        assert_eq!(
            finding("tcp 127.0.0.1 -> 80", &[]),
            "127.0.0.1 is a loopback address: it never comes from a wire"
        );
        assert_eq!(
            finding("tcp 192.0.2.7 -> 127.0.0.1:80", &[]),
            "127.0.0.1 is a loopback address: nothing on a wire goes to it"
        );
    }

    #[test]
    fn what_the_host_sends_to_itself_meets_no_filter() {
        for packet in [
            "out tcp -> 127.0.0.1:7000",
            "out udp -> 198.51.100.1:53",
            "out tcp -> [::1]:7000",
        ] {
            let told = explained(packet, &["198.51.100.1"]);
            assert_eq!(
                (told.verdict.as_str(), told.reason.as_str(), told.hint),
                ("pass", "not-filtered", None),
                "{packet}"
            );
            assert!(
                told.steps[1].finding.ends_with("nothing judges it"),
                "{:?}",
                told.steps
            );
        }
        assert_eq!(
            explained("out tcp -> 198.51.100.2:53", &["198.51.100.1"]).reason,
            "default-allow"
        );
        for packet in ["tcp 127.0.0.1 -> 80", "tcp 198.51.100.1 -> 80"] {
            let told = explained(packet, &["198.51.100.1"]);
            assert_eq!(told.reason, "martian", "{packet}");
            assert!(
                told.hint
                    .is_some_and(|hint| hint.ends_with("nothing judges that")),
                "{packet}"
            );
        }
        assert_eq!(explained("tcp 192.0.2.7 -> 127.0.0.1:80", &[]).hint, None);
    }

    const LEAVES: &str = "version = 1\n[defaults]\negress = \"deny\"\n[groups]\nsites = [\"198.51.100.0/24\", \"2001:db8:5::/48\"]\n\
                          [[service]]\nname = \"web\"\nports = [\"tcp/443\"]\nallow = [\"192.0.2.0/24\"]\n\
                          [[egress]]\nname = \"https\"\nports = [\"tcp/443\", \"tcp/8443\"]\nto = [\"@sites\", \"203.0.113.5\"]\n\
                          [[egress]]\nname = \"lan\"\nto = [\"any\"]\ndeny = [\"203.0.113.0/24\"]\n\
                          [[egress]]\nname = \"dns\"\nports = [\"udp/53\"]\nto = [\"192.0.2.53\"]\n";

    /// What is told of a packet that leaves, without the step of the packet itself.
    fn leaves(text: &str, packet: &str) -> (Explanation, Vec<String>) {
        let loaded = file::parse(text, Path::new("policy.toml"), 0).unwrap();
        let compiled = compile(&loaded.policy).unwrap();
        let own: HashSet<AddressKey> = ["192.0.2.1", "2001:db8::1"]
            .iter()
            .map(|text| address_key(text.parse().unwrap()))
            .collect();
        let node = Node {
            image: &compiled.image,
            config: &Config::DEFAULT,
            own: &own,
            flows: &Flows::unknown(),
        };
        let told = explain(&loaded.policy, text, &compiled, &node, packet).unwrap();
        assert_eq!(told.direction, "egress");
        let steps = told.steps[1..].iter();
        let steps = steps
            .map(|step| format!("{}: {}", step.step, step.finding))
            .collect();
        (told, steps)
    }

    #[test]
    fn what_leaves_is_told_by_rule_and_place() {
        let (told, steps) = leaves(LEAVES, "out tcp -> 198.51.100.7:443");
        assert_eq!(
            told.packet,
            "out tcp 192.0.2.1:49152 -> 198.51.100.7:443 flags syn"
        );
        assert_eq!(
            (told.verdict.as_str(), told.reason.as_str()),
            ("pass", "egress-allowed")
        );
        assert_eq!(
            (told.service.as_deref(), told.rule.as_deref()),
            (Some("https"), Some("allow @sites"))
        );
        assert_eq!(told.place.unwrap().line, 13);
        assert_eq!(told.line.as_deref(), Some("to = [\"@sites\", \"203.0.113.5\"]"));
        let [port, peer, rule] = steps.as_slice() else {
            panic!("{steps:?}")
        };
        assert_eq!(port, "port: egress rules https and lan hold tcp/443");
        assert!(peer.starts_with("peer: 198.51.100.7 is in class "), "{peer}");
        assert_eq!(
            rule,
            "rule: allow @sites of egress rule https: 198.51.100.7 is in 198.51.100.0/24"
        );

        let (told, steps) = leaves(LEAVES, "out tcp -> 203.0.113.5:443");
        assert_eq!(
            (told.verdict.as_str(), told.reason.as_str()),
            ("drop", "egress-denied")
        );
        assert_eq!(told.service.as_deref(), Some("lan"));
        assert_eq!(
            steps.last().unwrap(),
            "rule: deny 203.0.113.0/24 of egress rule lan; allow 203.0.113.5 of egress rule https names it too, but deny beats allow"
        );
        assert_eq!(
            told.hint.as_deref(),
            Some(
                "deny beats allow: to let it out, take 203.0.113.0/24 out of the deny list of egress rule lan (policy.toml:17:9)"
            )
        );
        let (told, _) = leaves(LEAVES, "out udp -> [2001:db8:9::53]:53");
        assert_eq!(
            (told.reason.as_str(), told.rule.as_deref()),
            ("egress-allowed", Some("allow any"))
        );
    }

    #[test]
    fn what_no_rule_opens_is_told_with_the_way_out() {
        let closed = LEAVES.replace("to = [\"any\"]", "to = [\"10.0.0.0/8\"]");
        let told = |packet: &str| {
            let (told, steps) = leaves(&closed, packet);
            assert_eq!(
                (told.verdict.as_str(), told.reason.as_str()),
                ("drop", "egress-closed"),
                "{packet}"
            );
            assert_eq!((told.service, told.place), (None, None));
            (steps, told.hint.unwrap_or_default())
        };
        let (steps, hint) = told("out udp -> 198.51.100.53:53");
        assert_eq!(steps[0], "port: egress rules lan and dns hold udp/53");
        assert_eq!(steps[2], "rule: lan and dns do not name 198.51.100.53");
        assert_eq!(
            steps[3],
            "default: what no egress rule names: deny (egress in [defaults])"
        );
        // The rule for this port, not the one for every port.
        assert_eq!(hint, "to let it out: ravelin allow dns 198.51.100.53");
        let (_, hint) = told("out icmp echo to 198.51.100.7");
        assert_eq!(
            hint,
            "to let it out: ravelin egress add NAME icmpv4/echo --to 198.51.100.7"
        );
        let (_, hint) = told("out tcp -> 198.51.100.7:0");
        assert_eq!(hint, "");
        let (told, steps) = leaves("version = 1\n", "out tcp -> 198.51.100.7:443");
        assert_eq!(told.reason, "default-allow");
        assert_eq!(
            steps,
            ["default: what no egress rule names: allow (egress in [defaults])"]
        );
    }

    #[test]
    fn an_answer_is_told_by_the_rule_that_let_the_question_in() {
        let (told, steps) = leaves(LEAVES, "out tcp 443 -> 192.0.2.77:5555 flags syn,ack");
        assert_eq!((told.verdict.as_str(), told.reason.as_str()), ("pass", "answer"));
        assert_eq!(
            (told.service.as_deref(), told.rule.as_deref()),
            (Some("web"), Some("allow 192.0.2.0/24"))
        );
        assert_eq!(
            steps,
            ["answer: tcp/443 belongs to service web (policy.toml:7:8): allow 192.0.2.0/24"]
        );
        let closed = LEAVES.replace("to = [\"any\"]", "to = []");
        let (told, steps) = leaves(&closed, "out tcp 443 -> 198.18.0.77:5555 flags ack");
        assert_eq!(told.reason, "egress-closed");
        assert_eq!(
            steps[0],
            "answer: tcp/443 belongs to service web (policy.toml:7:8), which does not let 198.18.0.77 in: it is no answer"
        );
        let (told, steps) = leaves(&closed, "out udp 68 -> 255.255.255.255:67");
        assert_eq!(told.reason, "dhcp-client");
        assert_eq!(
            steps,
            ["essential: a request of the DHCP client of this host: no policy closes it"]
        );
    }
}
