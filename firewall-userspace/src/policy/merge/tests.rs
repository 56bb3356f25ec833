use super::super::compile::{Compiled, compile};
use super::super::file::parse;
use super::super::model::PrefixList;
use super::*;
use crate::simulate::{Flows, FrameBuilder, Node, address_key, decide, decide_egress};
use firewall_common::control::Config;
use firewall_common::verdict::{Reason, Verdict};
use ipnetwork::IpNetwork;
use proptest::prelude::*;
use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

fn document(name: &str, text: &str) -> Loaded {
    let text = format!("version = 1\n{text}");
    parse(&text, Path::new(name), 0).unwrap_or_else(|error| panic!("{error}"))
}

fn part<'a>(name: &str, loaded: &'a Loaded) -> Part<'a> {
    Part {
        name: named(name),
        loaded,
    }
}

fn named(name: &str) -> PartName {
    match name {
        "local" => PartName::Local,
        name => PartName::Document(name.to_owned()),
    }
}

fn merged(parts: &[(&str, &Loaded)]) -> Result<Policy, Conflict> {
    merge(parts.iter().map(|(name, loaded)| part(name, loaded)).collect())
}

fn service(name: &str, ports: &str) -> String {
    format!("[[service]]\nname = \"{name}\"\nports = [\"{ports}\"]\nallow = [\"192.0.2.0/24\"]\n")
}

#[test]
fn a_port_of_two_parts_is_a_conflict_with_both_places() {
    let a = document("a", &service("web", "tcp/8000-9000"));
    let b = document(
        "b",
        &format!("{}{}", service("dns", "udp/53"), service("api", "tcp/8443")),
    );
    for parts in [[("a", &a), ("b", &b)], [("b", &b), ("a", &a)]] {
        assert_eq!(
            merged(&parts).unwrap_err().to_string(),
            "service \"api\" of policy \"b\" (b:7:8) claims tcp/8443, which service \"web\" of policy \"a\" has (a:3:8)"
        );
    }
    // The neighbours are nobody's.
    for ports in ["tcp/7999", "tcp/9001", "udp/8443", "sctp/8443"] {
        let c = document("c", &service("api", ports));
        assert!(merged(&[("a", &a), ("c", &c)]).is_ok(), "{ports}");
    }
    for ports in [
        "tcp/8000",
        "tcp/9000",
        "tcp/1-65535",
        "tcp/1-8000",
        "tcp/9000-9001",
    ] {
        let c = document("c", &service("api", ports));
        assert!(
            matches!(merged(&[("a", &a), ("c", &c)]), Err(Conflict::Port { .. })),
            "{ports}"
        );
    }
}

#[test]
fn a_name_is_one_thing_in_all_parts() {
    let a = document("a", &service("web", "tcp/80"));
    let local = document("policy.toml", "[[egress]]\nname = \"web\"\nto = [\"any\"]\n");
    assert_eq!(
        merged(&[("a", &a), ("local", &local)]).unwrap_err().to_string(),
        "service \"web\" of policy \"a\" (a:3:8) has the name of an egress rule of the local policy (policy.toml:3:8)"
    );
    assert_eq!(
        merged(&[("a", &a), ("a", &local)]).unwrap_err(),
        Conflict::Twice(named("a"))
    );
}

#[test]
fn groups_limits_and_lists_stay_those_of_their_part() {
    let a = document(
        "a",
        "deny = [\"@bad\"]\n[groups]\nbad = [\"192.0.2.66\"]\nweb = [\"192.0.2.0/24\"]\n[defaults.limits]\npackets = { per_source = \"7/s\" }\n\
         [[service]]\nname = \"a\"\nports = [\"tcp/1\"]\nallow = [\"@web\"]\n[[service.limit]]\nfor = \"@web\"\npackets = { per_source = \"9/s\" }\n",
    );
    let b = document(
        "b",
        "deny = [\"@bad\", \"203.0.113.9\"]\n[groups]\nbad = [\"198.51.100.66\"]\nweb = [\"198.51.100.0/24\"]\n\
         [[service]]\nname = \"b\"\nports = [\"tcp/2\"]\nallow = [\"@web\"]\n[[service.limit]]\nfor = \"@web\"\npackets = { per_source = \"5/s\" }\n",
    );
    let local = document(
        "policy.toml",
        "deny = [\"@bad\", \"203.0.113.9\"]\n[groups]\nbad = [\"198.51.100.67\"]\n",
    );
    let policy = merged(&[("b", &b), ("local", &local), ("a", &a)]).unwrap();
    let told: Vec<(&str, &str)> = policy
        .rules
        .iter()
        .map(|rule| (policy.owner_name(rule.owner).unwrap_or("-"), rule.source.as_str()))
        .collect();
    // One address is one rule, whoever denies it; a group is somebody's.
    let expected = [
        ("-", "@bad"),
        ("-", "203.0.113.9"),
        ("-", "@a/bad"),
        ("-", "@b/bad"),
        ("a", "@web"),
        ("b", "@web"),
    ];
    assert_eq!(told, expected);
    let rates = |service: &super::super::model::Service| {
        let of = |limits: &super::super::model::Limits| limits.rates[1].per_source.map(|rate| rate.amount);
        (of(&service.limits), of(&service.groups[0].limits))
    };
    assert_eq!(
        policy.services.iter().map(rates).collect::<Vec<_>>(),
        [(Some(7), Some(9)), (None, Some(5))]
    );
    let lists = |at: usize| -> Vec<&PrefixList> {
        let lists = &policy.services[at].groups[0].lists;
        lists.iter().map(|list| &*policy.lists[*list as usize]).collect()
    };
    assert_eq!(lists(0)[0].v4, [(0xc000_0200, 24)]);
    assert_eq!(lists(1)[0].v4, [(0xc633_6400, 24)]);
    let compiled = compile(&policy).unwrap();
    for (src, port, passes) in [
        ("192.0.2.1", 1, true),
        ("192.0.2.66", 1, false),
        ("198.51.100.1", 1, false),
        ("198.51.100.1", 2, true),
        ("198.51.100.66", 2, false),
        ("198.51.100.67", 2, false),
        ("192.0.2.1", 2, false),
    ] {
        assert_eq!(
            comes_in(&compiled, src.parse().unwrap(), port),
            passes,
            "{src} to {port}"
        );
    }
}

#[test]
fn a_default_of_allow_needs_all_who_have_a_say() {
    let says = |text: &str| document("x", text);
    let (allow, deny) = (
        says("[defaults]\ningress = \"allow\"\n"),
        says("[defaults]\ningress = \"deny\"\n"),
    );
    let (services, lists) = (says(&service("s", "tcp/1")), says("deny = [\"192.0.2.66\"]\n"));
    let open = says(&format!(
        "[defaults]\ningress = \"allow\"\n{}",
        service("t", "tcp/2")
    ));
    let (inside, nothing) = (says("[defaults]\negress = \"deny\"\n"), says(""));
    for (parts, ingress, egress) in [
        (vec![], false, false),
        (vec![&nothing], false, false),
        (vec![&allow], true, false),
        (vec![&allow, &lists], true, false),
        (vec![&allow, &open, &nothing], true, false),
        (vec![&allow, &services], false, false),
        (vec![&allow, &deny], false, false),
        (vec![&open, &inside], true, true),
        (vec![&lists, &inside, &nothing], false, true),
    ] {
        let names = ["a", "b", "c"];
        let parts: Vec<_> = names.into_iter().zip(parts).collect();
        let policy = merged(&parts).unwrap();
        assert_eq!((policy.default_allow, policy.egress_deny), (ingress, egress));
    }
}

#[test]
fn one_part_alone_is_itself() {
    let text = format!(
        "deny = [\"192.0.2.66\"]\n{}[[egress]]\nname = \"dns\"\nports = [\"udp/53\"]\nto = [\"any\"]\n",
        service("web", "tcp/80")
    );
    let loaded = document("policy.toml", &text);
    assert_eq!(merged(&[("local", &loaded)]).unwrap(), loaded.policy);
}

#[test]
fn more_than_an_image_numbers_is_a_conflict() {
    let many = |first: u32| {
        let services = (first..first + 40_000).map(|port| {
            let (protocol, port) = if port > 65_535 {
                ("udp", port - 65_535)
            } else {
                ("tcp", port)
            };
            format!("[[service]]\nname = \"s{protocol}{port}\"\nports = [\"{protocol}/{port}\"]\n")
        });
        services.collect::<String>()
    };
    let (a, b) = (document("a", &many(1)), document("b", &many(40_001)));
    let error = merged(&[("b", &b), ("a", &a)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "with policy \"b\" there are 80000 services, more than the 65533 that an image holds"
    );
}

#[test]
fn documents_for_different_nodes_may_claim_the_same() {
    let document = |name: &str, nodes: &str, ports: &str| {
        let header = format!("[policy]\nname = \"{name}\"\nnodes = \"{nodes}\"\n");
        document(name, &format!("{header}{}", service(name, ports)))
    };
    let new = document("new", "role=web", "tcp/80");
    let others = [
        ("db", document("db", "role=db", "tcp/80")),
        ("all", document("all", "*", "tcp/80-81")),
        ("new", document("new", "role=web", "tcp/80")),
        ("zone", document("zone", "zone=eu", "udp/80")),
    ];
    let others: Vec<Part<'_>> = others.iter().map(|(name, loaded)| part(name, loaded)).collect();
    let found: Vec<String> = conflicts(&part("new", &new), &others)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        found,
        [
            "service \"new\" of policy \"new\" (new:6:8) claims tcp/80, which service \"all\" of policy \"all\" has (all:6:8)"
        ]
    );
}

/// A text that makes a part: everything of it falls on few addresses and ports, so that parts meet.
#[derive(Clone, Debug)]
struct Sketch {
    default: Option<bool>,
    egress_deny: bool,
    deny: Vec<usize>,
    /// Ports, allow, deny.
    services: Vec<(Vec<u16>, Vec<usize>, Vec<usize>)>,
    egress: Vec<(Vec<u16>, Vec<usize>, Vec<usize>)>,
}

/// What entries name: everybody, groups of the part, which mean something else in each, and prefixes.
const ENTRIES: [&str; 8] = [
    "any",
    "@one",
    "@two",
    "10.0.0.0/14",
    "10.1.0.0/16",
    "10.1.128.0/17",
    "10.2.0.7",
    "2001:db8:1::/48",
];
const GROUPS: [[&str; 2]; 3] = [
    ["\"10.1.0.0/17\", \"2001:db8::/32\"", "\"10.3.0.0/16\""],
    ["\"10.0.0.0/16\"", "\"10.1.0.0/16\", \"10.2.0.0/24\""],
    ["\"10.2.0.0/15\"", "\"2001:db8:1:2::/64\", \"10.0.0.0/20\""],
];
const PEERS: [&str; 10] = [
    "10.0.0.1",
    "10.0.128.1",
    "10.1.0.9",
    "10.1.200.9",
    "10.2.0.7",
    "10.2.0.8",
    "10.3.4.5",
    "11.0.0.1",
    "2001:db8:1:2::9",
    "2001:db8:2::9",
];
/// Ports of each part's own, then those that nobody may have.
const PORTS: u16 = 5;

impl Sketch {
    fn text(&self, at: usize) -> String {
        let entries = |entries: &[usize], any: bool| {
            let chosen: std::collections::BTreeSet<usize> = entries.iter().copied().collect();
            let texts = chosen.iter().filter(|entry| any || **entry > 0);
            let texts: Vec<String> = texts.map(|entry| format!("\"{}\"", ENTRIES[*entry])).collect();
            texts.join(", ")
        };
        let mut text = format!(
            "version = 1\ndeny = [{}]\n[defaults]\n",
            entries(&self.deny, false)
        );
        if let Some(allow) = self.default {
            text += &format!("ingress = \"{}\"\n", if allow { "allow" } else { "deny" });
        }
        if self.egress_deny {
            text += "egress = \"deny\"\n";
        }
        let [one, two] = GROUPS[at % GROUPS.len()];
        text += &format!("[groups]\none = [{one}]\ntwo = [{two}]\n");
        let list = |ports: &[u16]| {
            let texts: Vec<String> = ports.iter().map(|port| format!("\"tcp/{port}\"")).collect();
            texts.join(", ")
        };
        let mut taken = HashSet::new();
        for (number, (ports, allow, deny)) in self.services.iter().enumerate() {
            let own: Vec<u16> = ports
                .iter()
                .map(|port| 100 * (at as u16 + 1) + port)
                .filter(|port| taken.insert(*port))
                .collect();
            if !own.is_empty() {
                text += &format!(
                    "[[service]]\nname = \"s{at}-{number}\"\nports = [{}]\nallow = [{}]\ndeny = [{}]\n",
                    list(&own),
                    entries(allow, true),
                    entries(deny, true)
                );
            }
        }
        for (number, (ports, to, deny)) in self.egress.iter().enumerate() {
            text += &format!("[[egress]]\nname = \"e{at}-{number}\"\n");
            if !ports.is_empty() {
                // Rules of all parts share these.
                text += &format!("ports = [{}]\n", list(ports));
            }
            text += &format!("to = [{}]\ndeny = [{}]\n", entries(to, true), entries(deny, true));
        }
        text
    }
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let entries = || prop::collection::vec(prop_oneof![1 => Just(0), 9 => 1..ENTRIES.len()], 0..4);
    let block = move || (prop::collection::vec(1..=PORTS, 0..3), entries(), entries());
    (
        prop::option::weighted(0.5, prop::bool::weighted(0.8)),
        prop::bool::weighted(0.3),
        entries(),
        prop::collection::vec(block(), 0..4),
        prop::collection::vec(block(), 0..4),
    )
        .prop_map(|(default, egress_deny, deny, services, egress)| Sketch {
            default,
            egress_deny,
            deny,
            services,
            egress,
        })
}

const OWN: &str = "203.0.113.200";
const OWN_V6: &str = "2001:db8:ffff::1";

fn judged<T>(compiled: &Compiled, judge: impl Fn(&Node<'_>) -> T) -> T {
    let own: HashSet<_> = [OWN, OWN_V6]
        .map(|text| address_key(text.parse().unwrap()))
        .into();
    let mut config = Config::DEFAULT;
    for key in &own {
        config.add_own_address(key.high, key.low);
    }
    let flows = Flows::unknown();
    judge(&Node {
        image: &compiled.image,
        config: &config,
        own: &own,
        flows: &flows,
    })
}

fn own(peer: IpAddr) -> IpAddr {
    if peer.is_ipv4() { OWN } else { OWN_V6 }.parse().unwrap()
}

fn comes_in(compiled: &Compiled, peer: IpAddr, port: u16) -> bool {
    let frame = FrameBuilder::tcp_syn(peer, 50_000, own(peer), port).build();
    let (outcome, _) = judged(compiled, |node| decide(node, &frame));
    assert!(
        !matches!(outcome.reason, Reason::NoPolicy | Reason::Martian),
        "{:?}",
        outcome.reason
    );
    outcome.reason.verdict() == Verdict::Pass
}

fn leaves(compiled: &Compiled, peer: IpAddr, port: u16) -> bool {
    let frame = FrameBuilder::tcp_syn(own(peer), 50_000, peer, port).build();
    let (outcome, _) = judged(compiled, |node| decide_egress(node, &frame));
    outcome.reason.verdict() == Verdict::Pass
}

/// Whether a rule of a part names the peer, read from its prefixes one by one.
fn names(policy: &Policy, rule: &Rule, peer: IpAddr) -> bool {
    let within = |list: &u32| {
        let list = &policy.lists[*list as usize];
        let v4 = list
            .v4
            .iter()
            .map(|(address, length)| IpNetwork::new(std::net::Ipv4Addr::from(*address).into(), *length));
        let v6 = list
            .v6
            .iter()
            .map(|(address, length)| IpNetwork::new(std::net::Ipv6Addr::from(*address).into(), *length));
        v4.chain(v6).any(|network| network.unwrap().contains(peer))
    };
    rule.any || rule.lists.iter().any(within)
}

/// What each part says by itself of a packet that comes in: `None` if it does not know the port and does not deny the peer.
fn says(policy: &Policy, peer: IpAddr, port: u16) -> Option<Action> {
    let key = PortKey::tcp(port);
    let holds =
        |ports: &[(PortKey, PortKey)]| ports.iter().any(|(first, last)| (*first..=*last).contains(&key));
    let mine = |rule: &&Rule| match rule.owner {
        Owner::Policy => true,
        Owner::Service(id) => holds(&policy.services[id.0 as usize].ports),
        Owner::Egress(_) => false,
    };
    strongest(policy, peer, mine)
}

fn says_of_leaving(policy: &Policy, peer: IpAddr, port: u16) -> Option<Action> {
    let key = PortKey::tcp(port);
    let holds = |ports: &[(PortKey, PortKey)]| {
        ports.is_empty() || ports.iter().any(|(first, last)| (*first..=*last).contains(&key))
    };
    let mine = |rule: &&Rule| {
        rule.owner
            .egress()
            .is_some_and(|id| holds(&policy.egress[id.0 as usize].ports))
    };
    strongest(policy, peer, mine)
}

fn strongest(policy: &Policy, peer: IpAddr, mine: impl Fn(&&Rule) -> bool) -> Option<Action> {
    let said: Vec<Action> = policy
        .rules
        .iter()
        .filter(mine)
        .filter(|rule| names(policy, rule, peer))
        .map(|rule| rule.action)
        .collect();
    [Action::Deny, Action::Allow]
        .into_iter()
        .find(|action| said.contains(action))
}

/// Denied if any part denies, else allowed if some part allows.
fn of_all(said: &[Option<Action>]) -> Option<bool> {
    let some = |action| said.contains(&Some(action));
    match (some(Action::Deny), some(Action::Allow)) {
        (true, _) => Some(false),
        (false, true) => Some(true),
        (false, false) => None,
    }
}

fn parts_of(sketches: &[Sketch]) -> Vec<(PartName, Loaded)> {
    let name = |at: usize| match at {
        0 => PartName::Local,
        at => PartName::Document(format!("d{at}")),
    };
    let parts = sketches.iter().enumerate().map(|(at, sketch)| {
        let text = sketch.text(at);
        let loaded = parse(&text, Path::new(&format!("d{at}")), 0);
        (name(at), loaded.unwrap_or_else(|error| panic!("{error}\n{text}")))
    });
    parts.collect()
}

fn borrowed(parts: &[(PartName, Loaded)]) -> Vec<Part<'_>> {
    parts
        .iter()
        .map(|(name, loaded)| Part {
            name: name.clone(),
            loaded,
        })
        .collect()
}

fn sketches() -> impl Strategy<Value = Vec<Sketch>> {
    prop::collection::vec(sketch(), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_the_parts_gives_the_same_image(
        (sketches, order) in sketches().prop_flat_map(|sketches| {
            let order: Vec<usize> = (0..sketches.len()).collect();
            (Just(sketches), Just(order).prop_shuffle())
        }),
    ) {
        let parts = parts_of(&sketches);
        let one = merge(borrowed(&parts)).unwrap();
        let shuffled: Vec<Part<'_>> = order.iter().map(|at| borrowed(&parts)[*at].clone()).collect();
        let other = merge(shuffled).unwrap();
        prop_assert_eq!(&one, &other);
        prop_assert_eq!(compile(&one).unwrap().digest, compile(&other).unwrap().digest);
        // And of the same texts read once more.
        let again = parts_of(&sketches);
        prop_assert_eq!(compile(&merge(borrowed(&again)).unwrap()).unwrap().digest, compile(&one).unwrap().digest);
    }

    #[test]
    fn what_any_part_denies_is_denied_else_what_one_allows_is_allowed(sketches in sketches()) {
        let parts = parts_of(&sketches);
        let compiled = compile(&merge(borrowed(&parts)).unwrap()).unwrap();
        let policies: Vec<&Policy> = parts.iter().map(|(_, loaded)| &loaded.policy).collect();
        // Only who says nothing and has no services has no say.
        let says_of_default = |(sketch, policy): (&Sketch, &&Policy)| match (sketch.default, policy.services.is_empty()) {
            (Some(allow), _) => Some(allow),
            (None, false) => Some(false),
            (None, true) => None,
        };
        let defaults: Vec<bool> = sketches.iter().zip(&policies).filter_map(says_of_default).collect();
        let open = !defaults.is_empty() && !defaults.contains(&false);
        for peer in PEERS.map(|text| text.parse::<IpAddr>().unwrap()) {
            for port in (1..=sketches.len() as u16 + 1).flat_map(|at| (0..=PORTS).map(move |port| 100 * at + port)) {
                let said: Vec<_> = policies.iter().map(|policy| says(policy, peer, port)).collect();
                let known = policies.iter().any(|policy| {
                    policy.services.iter().any(|service| service.ports.contains(&(PortKey::tcp(port), PortKey::tcp(port))))
                });
                let expected = of_all(&said).unwrap_or(!known && open);
                prop_assert_eq!(comes_in(&compiled, peer, port), expected, "{} to {}: {:?}", peer, port, said);
            }
            for port in 1..=PORTS + 1 {
                let said: Vec<_> = policies.iter().map(|policy| says_of_leaving(policy, peer, port)).collect();
                let expected = of_all(&said).unwrap_or(!sketches.iter().any(|sketch| sketch.egress_deny));
                prop_assert_eq!(leaves(&compiled, peer, port), expected, "out to {}:{}: {:?}", peer, port, said);
            }
        }
    }
}
