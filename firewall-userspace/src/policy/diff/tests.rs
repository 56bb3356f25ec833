use super::super::file::parse;
use super::super::model::{Owner, Rule};
use super::who::thousands;
use super::*;
use std::path::Path;

const BASE: &str = r#"
deny = ["@blocked"]
[groups]
blocked = ["192.0.2.0/24"]
web = ["10.20.0.0/16", "2001:db8:10::/48"]
[[service]]
name = "api"
ports = ["tcp/8443", "udp/8443"]
allow = ["@web", "198.51.100.7"]
deny = ["10.20.66.0/24"]
"#;

fn policy(text: &str) -> Policy {
    parse(&format!("version = 1\n{text}"), Path::new("p"), 0)
        .unwrap_or_else(|error| panic!("{error}"))
        .policy
}

fn changes(old: &str, new: &str) -> Vec<String> {
    let lines = diff(&policy(old), &policy(new));
    lines
        .iter()
        .map(|line| {
            format!(
                "{} {} {} {}",
                line.who,
                line.change,
                line.service,
                line.ports.join(",")
            )
        })
        .collect()
}

/// The base with one text replaced.
fn replaced(from: &str, to: &str) -> Vec<String> {
    assert!(BASE.contains(from));
    changes(BASE, &BASE.replace(from, to))
}

const NOTHING: [&str; 0] = [];

#[test]
fn the_same_access_is_no_change() {
    assert_eq!(changes(BASE, BASE), NOTHING);
    assert_eq!(
        replaced("\"198.51.100.7\"", "\"198.51.100.6\", \"198.51.100.7\""),
        ["198.51.100.6 gains api tcp/8443,udp/8443"]
    );
    // Into a group, the order of entries, another way to write the same.
    assert_eq!(
        replaced(
            "\"@web\", \"198.51.100.7\"",
            "\"198.51.100.7\", \"10.20.0.0/16\", \"2001:db8:10::/48\""
        ),
        NOTHING
    );
    assert_eq!(
        replaced("\"10.20.0.0/16\"", "\"10.20.0.0/17\", \"10.20.128.0/17\""),
        NOTHING
    );
    assert_eq!(
        replaced("\"tcp/8443\", \"udp/8443\"", "\"udp/8443\", \"tcp/8443\""),
        NOTHING
    );
    assert_eq!(
        replaced("deny = [\"@blocked\"]", "deny = [\"192.0.2.0/24\"]"),
        NOTHING
    );
    // What is denied was not there to lose.
    assert_eq!(
        replaced(
            "\"198.51.100.7\"",
            "\"198.51.100.7\", \"10.20.66.1\", \"192.0.2.9\""
        ),
        NOTHING
    );
}

#[test]
fn entries_that_come_and_go_are_named() {
    let ports = "api tcp/8443,udp/8443";
    assert_eq!(replaced("\"@web\", ", ""), [format!("@web loses {ports}")]);
    assert_eq!(
        replaced("\"@web\", ", "\"any\", "),
        [format!("anyone gains {ports}")]
    );
    assert_eq!(
        changes(&BASE.replace("\"@web\", ", "\"any\", "), BASE),
        [format!("anyone else loses {ports}")]
    );
    let open = BASE
        .replace("\"@web\", ", "\"any\", ")
        .replace(", \"198.51.100.7\"", "");
    assert_eq!(
        changes(&open, &open.replace("\"any\"", "")),
        [format!("anyone loses {ports}")]
    );
    assert_eq!(
        replaced("\"10.20.66.0/24\"", ""),
        [format!("10.20.66.0/24 gains {ports}")]
    );
    assert_eq!(
        replaced("\"10.20.66.0/24\"", "\"10.20.66.0/24\", \"10.20.67.0/24\""),
        [format!("10.20.67.0/24 loses {ports}")]
    );
    assert_eq!(
        replaced("\"10.20.66.0/24\"", "\"10.20.64.0/22\""),
        [
            format!("10.20.64.0/23 loses {ports}"),
            format!("10.20.67.0/24 loses {ports}"),
        ]
    );
}

#[test]
fn entries_that_overlap_are_named_whole() {
    let ports = "api tcp/8443,udp/8443";
    assert_eq!(
        replaced(
            "\"198.51.100.7\"",
            "\"198.51.100.7\", \"192.0.2.9\", \"203.0.113.9\", \"203.0.113.0/24\""
        ),
        [
            format!("203.0.113.9 gains {ports}"),
            format!("203.0.113.0/24 gains {ports}")
        ]
    );
}

#[test]
fn a_group_that_changes_is_shown_by_prefixes() {
    let ports = "api tcp/8443,udp/8443";
    assert_eq!(
        replaced(
            "web = [\"10.20.0.0/16\"",
            "web = [\"10.20.0.0/17\", \"10.21.0.0/24\""
        ),
        [
            format!("10.20.128.0/17 loses {ports}"),
            format!("10.21.0.0/24 gains {ports}"),
        ]
    );
    let many: Vec<String> = (0..1204)
        .map(|n| format!("\"203.{}.{}.1\"", n / 256, n % 256))
        .collect();
    let more = format!("blocked = [{}, \"192.0.2.0/24\"]", many.join(", "));
    let new = BASE.replace("blocked = [\"192.0.2.0/24\"]", &more);
    assert_eq!(
        changes(BASE, &new),
        ["1,204 prefixes of @blocked loses  every port"]
    );
    assert_eq!(
        changes(&new, BASE),
        ["1,204 prefixes of @blocked gains  every port that allows it"]
    );
}

#[test]
fn many_prefixes_of_a_group_are_counted_as_it_has_them() {
    // Neighbours, which take fewer prefixes than the group has, and one that the group keeps a part of.
    let many: Vec<String> = (0..44)
        .map(|n| format!("\"10.{}.{}.0/24\"", 30 + n / 2, n % 2))
        .collect();
    let more = |entries: &str| BASE.replace("web = [", &format!("web = [{entries}, "));
    let line = |old: &str, new: &str| {
        let lines = diff(&policy(old), &policy(new));
        let [line] = &lines[..] else { panic!("{lines:?}") };
        (line.change.clone(), line.who.clone(), line.prefixes.clone())
    };
    let all = more(&many.join(", "));
    let (change, who, prefixes) = line(&all, BASE);
    assert_eq!((change.as_str(), who.as_str()), ("loses", "44 prefixes of @web"));
    let first = [
        "10.30.0.0/24",
        "10.30.1.0/24",
        "10.31.0.0/24",
        "10.31.1.0/24",
        "10.32.0.0/24",
    ];
    assert_eq!(prefixes, first);
    let rest: Vec<String> = (0..44).map(|n| format!("\"10.40.{}.128/25\"", n * 2)).collect();
    let (_, who, prefixes) = line(&more("\"10.40.0.0/16\""), &more(&rest.join(", ")));
    assert_eq!(who, "parts of 1 prefix of @web");
    assert_eq!(prefixes[..2], ["10.40.0.0/25", "10.40.1.0/24"]);
}

#[test]
fn denies_of_the_policy_hold_on_every_port() {
    assert_eq!(
        replaced(
            "deny = [\"@blocked\"]",
            "deny = [\"@blocked\", \"203.0.113.0/24\"]"
        ),
        ["203.0.113.0/24 loses  every port"]
    );
    assert_eq!(
        replaced("deny = [\"@blocked\"]", "deny = []"),
        ["@blocked gains  every port that allows it"]
    );
}

#[test]
fn services_open_and_close() {
    let added = format!(
        "{BASE}[[service]]\nname = \"dns\"\nports = [\"udp/53\", \"icmp/echo\"]\nallow = [\"any\"]\n"
    );
    assert_eq!(changes(BASE, &added), ["anyone opens dns udp/53,icmp/echo"]);
    assert_eq!(changes(&added, BASE), ["anyone closes dns udp/53,icmp/echo"]);
    let idle = format!("{BASE}[[service]]\nname = \"idle\"\nports = [\"tcp/1\"]\n");
    assert_eq!(changes(BASE, &idle), ["nobody opens idle tcp/1"]);
    assert_eq!(changes(&idle, BASE), ["nobody closes idle tcp/1"]);
    assert_eq!(
        changes("", BASE),
        [
            "@blocked loses  every port",
            "@web opens api tcp/8443,udp/8443",
            "198.51.100.7 opens api tcp/8443,udp/8443",
        ]
    );
    assert_eq!(
        replaced("\"tcp/8443\"", "\"tcp/8443-8445\""),
        [
            "@web opens api tcp/8444-8445",
            "198.51.100.7 opens api tcp/8444-8445"
        ]
    );
    // Another name for the same access changes nothing for anyone.
    assert_eq!(replaced("name = \"api\"", "name = \"web-api\""), NOTHING);
}

#[test]
fn ports_that_move_between_services_are_compared() {
    let two = |first: &str, second: &str| {
        format!(
            "[[service]]\nname = \"a\"\nports = [{first}]\nallow = [\"10.0.0.1\"]\n\
             [[service]]\nname = \"b\"\nports = [{second}]\nallow = [\"10.0.0.1\", \"10.0.0.9\"]\n"
        )
    };
    assert_eq!(
        changes(
            &two("\"tcp/1-9\"", "\"tcp/11\""),
            &two("\"tcp/1-4\", \"tcp/6-9\"", "\"tcp/5\", \"tcp/11\"")
        ),
        ["10.0.0.9 gains b tcp/5"]
    );
}

#[test]
fn the_default_changes_who_gets_in_elsewhere() {
    let open = format!(
        "[defaults]\ningress = \"allow\"\n{}",
        "[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\nallow = [\"10.0.0.1\"]\n"
    );
    let closed = open.replace("\"allow\"", "\"deny\"");
    assert_eq!(
        changes(&open, &closed),
        ["allow -> deny default  ports that no service names"]
    );
    let bare = "[defaults]\ningress = \"allow\"\n";
    assert_eq!(changes(bare, &open), ["anyone else loses a tcp/1"]);
    assert_eq!(changes(&open, bare), ["anyone else gains a tcp/1"]);
    assert_eq!(
        changes(bare, &open.replace("\"10.0.0.1\"", "")),
        ["anyone loses a tcp/1"]
    );
    assert_eq!(changes(bare, &open.replace("\"10.0.0.1\"", "\"any\"")), NOTHING);
    assert_eq!(
        changes(
            bare,
            &open.replace("\"10.0.0.1\"]", "\"any\"]\ndeny = [\"10.0.0.1\"]")
        ),
        ["10.0.0.1 loses a tcp/1"]
    );
}

#[test]
fn limits_are_compared_as_they_hold() {
    let limits = |old: &str, new: &str| {
        let text = |more: &str| format!("{BASE}{more}");
        let lines = diff(&policy(&text(old)), &policy(&text(new)));
        let mut told = Vec::new();
        for line in lines {
            assert_eq!((line.change.as_str(), line.service.as_str()), ("limits", "api"));
            told.push(match line.prefixes.as_slice() {
                [] => line.who,
                whom => format!("{}: {}", whom.join(","), line.who),
            });
        }
        told
    };
    let rate = "[service.limits]\npackets = { per_source = \"10/s\" }\n";
    assert_eq!(limits(rate, rate), NOTHING);
    assert_eq!(
        limits("", rate),
        ["packets unlimited -> 10/s a source (burst 10)"]
    );
    // The same by the defaults.
    assert_eq!(
        limits(rate, "[defaults.limits]\npackets.per_source = \"10/s\"\n"),
        NOTHING
    );
    assert_eq!(
        limits(
            rate,
            "[service.limits]\npackets = { per_source = \"10/s\", burst = 20, total = \"1k/s\" }\nsource.v4 = 24\non_excess = \"challenge\"\n"
        ),
        [
            "packets 10/s a source (burst 10) -> 10/s a source (burst 20), 1,000/s in all (burst 1,000)",
            "on excess drop -> challenge",
            "sources /32 and /64 -> /24 and /64",
        ]
    );
    let group = |whom: &str| format!("{rate}[[service.limit]]\nfor = {whom}\nconnections.total = 5\n");
    assert_eq!(
        limits(rate, &group("\"@web\"")),
        [
            "@web: connections unlimited -> 5 in all",
            "@web: is counted apart"
        ]
    );
    assert_eq!(
        limits(&group("\"@web\""), &group("[\"@web\", \"198.51.100.7\"]")),
        ["@web,198.51.100.7: holds other addresses"]
    );
    assert_eq!(
        limits(&group("\"@web\""), rate),
        ["@web: is no longer counted apart"]
    );
}

#[test]
fn neighbours_in_number_stay_apart() {
    let service = |port: &str| format!("[[service]]\nname = \"a\"\nports = [{port}]\nallow = [\"any\"]\n");
    assert_eq!(
        changes("", &service("\"tcp/65535\", \"sctp/1\", \"icmp/3\", \"icmp/4\"")),
        ["anyone opens a tcp/65535,sctp/1,icmp/3,icmp/4"]
    );
    let lines = changes(
        &service("\"tcp/1\""),
        &service("\"tcp/1\", \"tcp/65535\", \"udp/1-5\", \"icmp/3\", \"icmp/4\""),
    );
    assert_eq!(
        lines,
        ["anyone opens a tcp/65535,udp/1-5,icmpv4/dest-unreachable,icmpv4/4"]
    );
}

#[test]
fn numbers_have_commas() {
    assert_eq!(
        [0, 999, 1204, 1_000_000].map(thousands),
        ["0", "999", "1,204", "1,000,000"]
    );
}

const LEAVES: &str = r#"
defaults.egress = "deny"
groups.web = ["10.20.0.0/16", "2001:db8:10::/48"]
[[egress]]
name = "dns"
ports = ["udp/53", "tcp/53"]
to = ["192.0.2.53"]
[[egress]]
name = "web"
ports = ["tcp/80", "tcp/443"]
to = ["@web", "198.51.100.7"]
deny = ["10.20.66.0/24"]
[[egress]]
name = "lan"
to = ["10.0.0.0/8"]
deny = ["10.99.0.0/16"]
"#;

/// The changes of what leaves when one text is replaced, there and back.
fn leaves(from: &str, to: &str) -> [Vec<String>; 2] {
    assert!(LEAVES.contains(from), "{from}");
    let (old, new) = (policy(LEAVES), policy(&LEAVES.replace(from, to)));
    [(&old, &new), (&new, &old)].map(|(old, new)| {
        let lines = diff(old, new);
        let of_egress = |line: &DiffLine| line.direction == "egress" && line.service.is_empty();
        assert!(lines.iter().all(of_egress), "{lines:?}");
        let told = |line: &DiffLine| format!("{} {} {}", line.who, line.change, line.ports.join(","));
        lines.iter().map(told).collect()
    })
}

#[test]
fn destinations_that_open_and_close_are_named() {
    let nothing: [Vec<String>; 2] = [Vec::new(), Vec::new()];
    let opens = |who: &str, ports: &str| {
        [
            vec![format!("{who} gains {ports}")],
            vec![format!("{who} loses {ports}")],
        ]
    };
    // The same places written otherwise, and what another rule opens at every port.
    let spelt = "\"10.20.0.0/16\", \"2001:db8:10::/48\", ";
    assert_eq!(leaves("\"@web\", ", spelt), nothing);
    assert_eq!(
        leaves("\"198.51.100.7\"", "\"198.51.100.7\", \"10.1.0.0/16\""),
        nothing
    );
    assert_eq!(leaves("name = \"web\"", "name = \"www\""), nothing);
    // One that is denied at these ports by another rule.
    assert_eq!(
        leaves("\"198.51.100.7\"", "\"198.51.100.7\", \"10.99.1.0/24\""),
        nothing
    );

    let one = "\"198.51.100.7\", \"203.0.113.0/24\"";
    assert_eq!(
        leaves("\"198.51.100.7\"", one),
        opens("203.0.113.0/24", "tcp/80,tcp/443")
    );
    assert_eq!(
        leaves("to = [\"192.0.2.53\"]", "to = [\"192.0.2.53\", \"any\"]"),
        [
            vec!["anywhere gains tcp/53,udp/53".to_owned()],
            vec!["anywhere else loses tcp/53,udp/53".to_owned()],
        ]
    );
    // A group of which a part was open: just the part that opens.
    assert_eq!(
        leaves("\"@web\", ", ""),
        [
            vec!["2001:db8:10::/48 loses tcp/80,tcp/443".to_owned()],
            vec!["2001:db8:10::/48 gains tcp/80,tcp/443".to_owned()],
        ]
    );
    // A deny that goes, and one of all ports.
    assert_eq!(
        leaves("deny = [\"10.20.66.0/24\"]", ""),
        opens("10.20.66.0/24", "tcp/80,tcp/443")
    );
    assert_eq!(
        leaves("deny = [\"10.99.0.0/16\"]", ""),
        opens("10.99.0.0/16", "every port")
    );
    // All but what another rule closes.
    let but = "deny = [\"10.99.0.0/16\"]\n[[egress]]\nname = \"not\"\nports = [\"tcp/80\", \"tcp/443\"]\ndeny = [\"10.99.0.0/16\"]\n";
    let both = LEAVES.replace("deny = [\"10.99.0.0/16\"]", but);
    assert_eq!(
        changes(&both, &both.replacen("deny = [\"10.99.0.0/16\"]", "", 1)),
        ["10.99.0.0/16 gains  tcp/53,udp/53,every other port"]
    );
    // A port that joins.
    assert_eq!(
        leaves(
            "ports = [\"udp/53\", \"tcp/53\"]",
            "ports = [\"udp/53\", \"tcp/53\", \"tcp/853\"]"
        ),
        opens("192.0.2.53", "tcp/853")
    );
}

#[test]
fn a_default_of_egress_that_turns_is_told_once() {
    let [opens, closes] = leaves("egress = \"deny\"", "egress = \"allow\"");
    assert_eq!(opens, ["deny -> allow default what no egress rule opens"]);
    assert_eq!(closes, ["allow -> deny default what no egress rule opens"]);
    // What a deny adds to it.
    let (old, new) = (
        policy("[[egress]]\nname = \"a\"\nto = [\"any\"]\n"),
        policy(
            "defaults.egress = \"deny\"\n[[egress]]\nname = \"a\"\nto = [\"any\"]\ndeny = [\"192.0.2.0/24\"]\n",
        ),
    );
    let told: Vec<String> = diff(&old, &new).into_iter().map(|line| line.who).collect();
    assert_eq!(told, ["allow -> deny", "192.0.2.0/24"]);
    // Under a default of allow an entry of "to" changes nothing.
    let same = policy("[[egress]]\nname = \"b\"\nto = [\"192.0.2.0/24\"]\n");
    assert_eq!(diff(&old, &same), []);
}

mod properties {
    use super::*;
    use ipnetwork::IpNetwork;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    /// A service: first port and last, allow and deny lists as sets of three bits and lengths.
    #[derive(Clone, Debug)]
    struct Sketch {
        ports: [bool; 4],
        allow: Vec<(u8, u8)>,
        deny: Vec<(u8, u8)>,
        any: bool,
    }

    fn sketch() -> impl Strategy<Value = Sketch> {
        let list = || proptest::collection::vec((0u8..8, 29u8..=32), 0..3);
        let open = proptest::bool::weighted(0.2);
        (any::<[bool; 4]>(), list(), list(), open).prop_map(|(ports, allow, deny, any)| Sketch {
            ports,
            allow,
            deny,
            any,
        })
    }

    fn write(sketches: &[Sketch], default_allow: bool) -> String {
        let entry = |&(address, length): &(u8, u8)| {
            let address = u32::from(Ipv4Addr::new(10, 0, 0, address)) & (u32::MAX << (32 - length));
            format!("\"{}/{length}\"", Ipv4Addr::from(address))
        };
        let list = |entries: &[(u8, u8)], any: bool| {
            let any = any.then(|| "\"any\"".to_string());
            entries
                .iter()
                .map(entry)
                .chain(any)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let mut text = format!(
            "deny = [\"10.0.0.6\"]\n[defaults]\ningress = \"{}\"\n",
            if default_allow { "allow" } else { "deny" }
        );
        let mut taken = [false; 4];
        for (name, sketch) in ["a", "b"].iter().zip(sketches) {
            let own: Vec<usize> = (0..4)
                .filter(|&port| sketch.ports[port] && !taken[port])
                .collect();
            own.iter().for_each(|&port| taken[port] = true);
            let ports: Vec<String> = own.iter().map(|port| format!("\"tcp/{}\"", port + 1)).collect();
            if !ports.is_empty() {
                let (allow, deny) = (list(&sketch.allow, sketch.any), list(&sketch.deny, false));
                text += &format!(
                    "[[service]]\nname = \"{name}\"\nports = [{}]\nallow = [{allow}]\ndeny = [{deny}]\n",
                    ports.join(", ")
                );
            }
        }
        text
    }

    /// Scans all rules.
    fn admits(policy: &Policy, address: Ipv4Addr, port: u16) -> bool {
        let matches = |rule: &Rule| {
            let inside =
                |&(start, length): &(u32, u8)| u32::from(address) & (u32::MAX << (32 - length)) == start;
            rule.any
                || rule
                    .lists
                    .iter()
                    .any(|&list| policy.lists[list as usize].v4.iter().any(inside))
        };
        let key = PortKey::tcp(port);
        let service = policy
            .services
            .iter()
            .position(|service| service.ports.iter().any(|range| range.0 <= key && key <= range.1));
        let rules = |action| {
            let of = move |rule: &&Rule| match rule.owner {
                Owner::Policy => true,
                Owner::Service(id) => Some(usize::from(id.0)) == service,
                Owner::Egress(_) => false,
            };
            policy
                .rules
                .iter()
                .filter(of)
                .filter(move |rule| rule.action == action)
        };
        if rules(Action::Deny).any(matches) {
            return false;
        }
        if service.is_none() {
            policy.default_allow
        } else {
            rules(Action::Allow).any(matches)
        }
    }

    proptest! {
        #[test]
        fn says_what_a_scan_of_all_rules_finds(
            old in proptest::collection::vec(sketch(), 2),
            new in proptest::collection::vec(sketch(), 2),
            default_old: bool,
            default_new: bool,
        ) {
            let (old, new) = (policy(&write(&old, default_old)), policy(&write(&new, default_new)));
            let lines = diff(&old, &new);
            let named = |policy: &Policy, port| {
                policy.services.iter().any(|service| service.ports.iter().any(|range| range.0 <= port && port <= range.1))
            };
            let addresses = (0..8).map(|last| Ipv4Addr::new(10, 0, 0, last)).chain([Ipv4Addr::new(192, 0, 2, 1)]);
            let probes = addresses.flat_map(|address| (1..=4).map(move |port| (address, port)));
            let mut changed = false;
            for (address, port) in probes {
                let key = PortKey::tcp(port);
                let (was, is) = (admits(&old, address, port), admits(&new, address, port));
                if !named(&old, key) && !named(&new, key) {
                    continue;
                }
                changed |= was != is;
                let port = |line: &DiffLine| {
                    line.ports.iter().any(|text| ports::parse(text).is_ok_and(|ports| ports.ranges.iter().any(|range| range.0 <= key && key <= range.1)))
                };
                let who = |line: &DiffLine| line.who.parse::<IpNetwork>().ok().map(|prefix| prefix.contains(address.into()));
                let comes = |line: &DiffLine| matches!(line.change.as_str(), "gains" | "opens");
                let goes = |line: &DiffLine| matches!(line.change.as_str(), "loses" | "closes");
                let at_port: Vec<&DiffLine> = lines.iter().filter(|line| port(line)).collect();
                if was != is {
                    let said = at_port.iter().filter(|line| if is { comes(line) } else { goes(line) });
                    let named = |line: &&&DiffLine| who(line) != Some(false) && line.who != "nobody";
                    prop_assert!(said.filter(named).count() > 0, "{address} {lines:?}");
                } else if is {
                    // An entry may be named whole though denies take part of it; but not for who had it and has it.
                    prop_assert!(at_port.iter().all(|line| who(line) != Some(true)), "{address} {lines:?}");
                }
            }
            if !changed {
                prop_assert!(lines.iter().all(|line| line.change == "default" || line.who == "nobody"), "{lines:?}");
            }
        }
    }

    /// Egress rules: ports, of which there may be none, and lists.
    fn write_egress(sketches: &[Sketch], deny: bool) -> String {
        let entries = |entries: &[(u8, u8)], any: bool| -> String {
            let prefixes = entries.iter().map(|&(address, length)| {
                let address = u32::from(address) & (u32::MAX << (32 - length));
                format!("\"10.0.0.{address}/{length}\"")
            });
            let any = any.then(|| "\"any\"".to_owned());
            prefixes.chain(any).collect::<Vec<_>>().join(", ")
        };
        let default = if deny { "deny" } else { "allow" };
        let mut text = format!("[defaults]\negress = \"{default}\"\n");
        for (number, sketch) in sketches.iter().enumerate() {
            let ports: Vec<String> = (1..=4)
                .filter(|port| sketch.ports[port - 1])
                .map(|port| format!("\"tcp/{port}\""))
                .collect();
            let (to, deny) = (entries(&sketch.allow, sketch.any), entries(&sketch.deny, false));
            text += &format!("[[egress]]\nname = \"r{number}\"\nto = [{to}]\ndeny = [{deny}]\n");
            if !ports.is_empty() {
                text += &format!("ports = [{}]\n", ports.join(", "));
            }
        }
        text
    }

    /// Scans all rules.
    fn leaves(policy: &Policy, address: Ipv4Addr, key: PortKey) -> bool {
        let matches = |action| {
            policy.rules.iter().any(|rule| {
                let holds = rule.owner.egress().is_some_and(|id| {
                    let ports = &policy.egress[id.0 as usize].ports;
                    ports.is_empty() || ports.iter().any(|range| range.0 <= key && key <= range.1)
                });
                let inside =
                    |&(start, length): &(u32, u8)| u32::from(address) & (u32::MAX << (32 - length)) == start;
                let covers = rule.any
                    || rule
                        .lists
                        .iter()
                        .any(|&list| policy.lists[list as usize].v4.iter().any(inside));
                holds && covers && rule.action == action
            })
        };
        !matches(Action::Deny) && (!policy.egress_deny || matches(Action::Allow))
    }

    proptest! {
        #[test]
        fn what_leaves_is_told_as_a_scan_of_all_rules_finds(
            old in proptest::collection::vec(sketch(), 0..4),
            new in proptest::collection::vec(sketch(), 0..4),
            deny: bool,
        ) {
            let (old, new) = (policy(&write_egress(&old, deny)), policy(&write_egress(&new, deny)));
            let lines = diff(&old, &new);
            let addresses = (0..8).map(|last| Ipv4Addr::new(10, 0, 0, last)).chain([Ipv4Addr::new(192, 0, 2, 1)]);
            let named = |key: PortKey| {
                let mut ports = old.egress.iter().chain(&new.egress).flat_map(|rule| &rule.ports);
                ports.any(|range| range.0 <= key && key <= range.1)
            };
            let mut changed = false;
            for (address, port) in addresses.flat_map(|address| (1..=5).map(move |port| (address, port))) {
                let key = PortKey::tcp(port);
                let (was, is) = (leaves(&old, address, key), leaves(&new, address, key));
                changed |= was != is;
                let at_port = |line: &&DiffLine| line.ports.iter().any(|text| match text.as_str() {
                    "every port" => true,
                    "every other port" => !named(key),
                    text => ports::parse(text).unwrap().ranges.iter().any(|range| range.0 <= key && key <= range.1),
                });
                let who = |line: &DiffLine| line.who.parse::<IpNetwork>().ok().map(|prefix| prefix.contains(address.into()));
                let mut there = lines.iter().filter(at_port);
                if was != is {
                    let change = if is { "gains" } else { "loses" };
                    let said = there.any(|line| line.change == change && who(line) != Some(false));
                    prop_assert!(said, "{address} {port} {lines:?}");
                } else if is {
                    prop_assert!(there.all(|line| who(line) != Some(true)), "{address} {port} {lines:?}");
                }
            }
            if !changed {
                prop_assert_eq!(lines, []);
            }
        }
    }
}
