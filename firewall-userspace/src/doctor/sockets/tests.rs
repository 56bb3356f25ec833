use super::*;
use crate::policy::file;
use std::path::Path;

const POLICY: &str = r#"version = 1
deny = ["198.51.100.66"]
[[service]]
name = "ssh"
ports = ["tcp/22", "udp/22"]
allow = ["192.0.2.0/24"]
"#;

/// A row as `/proc/net` has it; addresses of IPv4.
fn socket(protocol: u8, local: &str, peer: &str, state: u8) -> Socket {
    let side = |text: &str| {
        let address: SocketAddr = text.parse().expect("an address");
        let IpAddr::V4(v4) = address.ip() else {
            panic!("IPv4")
        };
        format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.octets()), address.port())
    };
    let line = format!(
        "0: {} {} {state:02X} 00000000:00000000 00:00000000 00000000 0 0 1 1",
        side(local),
        side(peer)
    );
    Socket::parse(protocol, &line).expect("a row")
}

fn listens(protocol: u8, local: &str) -> Socket {
    socket(protocol, local, "0.0.0.0:0", if protocol == TCP { 10 } else { 7 })
}

fn open(local: &str, peer: &str) -> Socket {
    socket(TCP, local, peer, 1)
}

fn judged(policy: &str, failsafe: &[&str], table: &[Socket], session: Option<&str>) -> Vec<Finding> {
    let loaded = file::parse(policy, Path::new("policy.toml"), 0).expect("a policy");
    let failsafe: Vec<_> = failsafe
        .iter()
        .map(|rule| rule.parse().expect("a rule"))
        .collect();
    let own = ["198.51.100.1".parse().expect("an address")];
    let judge = Judge::new(loaded, &failsafe, 0, own.into_iter(), table).expect("it fits");
    let facts = Facts {
        table,
        holders: &HashMap::from([(
            1,
            Process {
                name: "sshd".into(),
                pid: 7,
            },
        )]),
        local_ports: LocalPorts::default(),
        unfiltered: &["172.17.0.1".parse().expect("an address")],
        session: session.map(|text| text.parse().expect("an address")),
    };
    findings(&judge, &facts)
}

fn short(found: &[Finding]) -> Vec<(Severity, &str)> {
    found
        .iter()
        .map(|finding| (finding.severity, finding.subject.as_str()))
        .collect()
}

const UDP: u8 = 17;

#[test]
fn a_listener_that_no_service_names_is_told_unless_only_this_host_reaches_it() {
    let table = [
        listens(TCP, "0.0.0.0:22"),
        listens(TCP, "0.0.0.0:8080"),
        listens(TCP, "127.0.0.1:631"),
        listens(TCP, "172.17.0.1:53"),
        listens(UDP, "0.0.0.0:161"),
    ];
    let found = judged(POLICY, &[], &table, None);
    assert_eq!(
        short(&found),
        [
            (Severity::Ok, "tcp/22"),
            (Severity::Fail, "tcp/8080"),
            (Severity::Warn, "udp/161")
        ],
        "{found:?}"
    );
    assert!(found[0].text.contains("the service ssh"), "{}", found[0].text);
    assert_eq!(
        found[1].text,
        "sshd (pid 7) listens on 0.0.0.0:8080, and no service names tcp/8080: nobody would reach it"
    );
    assert!(
        found[1]
            .fix
            .as_deref()
            .is_some_and(|fix| fix.starts_with("ravelin service add sshd tcp/8080 udp/161 --allow PREFIX"))
    );
    assert_eq!(found[2].fix.as_deref(), Some("the service sshd, as for tcp/8080"));
}

#[test]
fn clients_that_wait_for_answers_are_no_listeners() {
    let table = [listens(UDP, "0.0.0.0:40000"), listens(UDP, "0.0.0.0:68")];
    let found = judged(POLICY, &[], &table, None);
    assert_eq!(short(&found), [(Severity::Ok, "udp/68")], "{found:?}");
    assert!(found[0].text.contains("dhcp-client"));
}

#[test]
fn a_failsafe_covers_a_listener_and_a_default_of_allow_opens_it() {
    let table = [listens(TCP, "0.0.0.0:2222")];
    let found = judged(POLICY, &["tcp/2222 from 203.0.113.9"], &table, None);
    assert_eq!(short(&found), [(Severity::Ok, "tcp/2222")]);
    assert!(
        found[0].text.ends_with("tcp/2222 from 203.0.113.9"),
        "{}",
        found[0].text
    );
    let found = judged(POLICY, &["tcp/2223 from 203.0.113.9"], &table, None);
    assert_eq!(short(&found), [(Severity::Fail, "tcp/2222")]);
    let open = POLICY.replace("deny =", "defaults = { ingress = \"allow\" }\ndeny =");
    assert_eq!(
        short(&judged(&open, &[], &table, None)),
        [(Severity::Info, "tcp/2222")]
    );
}

#[test]
fn connections_that_the_policy_would_cut_are_told_apart_from_those_that_go_on() {
    let table = [
        listens(TCP, "0.0.0.0:22"),
        open("198.51.100.1:22", "192.0.2.7:50001"),
        open("198.51.100.1:22", "203.0.113.9:50002"),
        open("198.51.100.1:22", "203.0.113.10:50003"),
        open("198.51.100.1:43210", "203.0.113.80:443"),
        open("198.51.100.1:43211", "198.51.100.66:443"),
        open("198.51.100.1:22", "198.51.100.1:50004"),
        open("127.0.0.1:22", "127.0.0.1:50005"),
    ];
    let found = judged(POLICY, &[], &table, Some("203.0.113.9:50002"));
    let connections: Vec<&Finding> = found
        .iter()
        .filter(|finding| finding.area == Area::Connection)
        .collect();
    let texts: Vec<&str> = connections.iter().map(|finding| finding.text.as_str()).collect();
    assert_eq!(
        texts,
        [
            "a connection of sshd (pid 7) to 198.51.100.66:443, opened by this host, would be cut (denied)",
            "2 connections to sshd (pid 7) on tcp/22, from 203.0.113.9:50002, 203.0.113.10:50003, this session among \
             them, would be cut (not-allowed)",
            "1 accepted connection from peers that the policy admits would go on",
            "1 connection that this host opened would go on",
        ]
    );
    assert_eq!(
        connections[1].fix.as_deref(),
        Some("to let it in: ravelin allow ssh 203.0.113.9 && ravelin allow ssh 203.0.113.10")
    );
    assert!(
        connections[..2]
            .iter()
            .all(|finding| finding.severity == Severity::Fail)
    );
}

#[test]
fn what_egress_rules_would_cut_is_told_with_the_rule_to_add() {
    let policy = r#"version = 1
[defaults]
egress = "deny"
[[egress]]
name = "web"
ports = ["tcp/443"]
to = ["203.0.113.0/24"]
deny = ["203.0.113.66"]
"#;
    let table = [
        open("198.51.100.1:43210", "203.0.113.80:443"),
        open("198.51.100.1:43211", "203.0.113.66:443"),
        open("198.51.100.1:43212", "192.0.2.5:5432"),
    ];
    let found = judged(policy, &[], &table, None);
    assert_eq!(
        short(&found),
        [
            (Severity::Fail, "tcp/443"),
            (Severity::Fail, "tcp/5432"),
            (Severity::Ok, "established")
        ],
        "{found:?}"
    );
    assert!(
        found[0].text.ends_with("would be cut (egress-denied)"),
        "{}",
        found[0].text
    );
    for (index, fix) in [
        (0, "take 203.0.113.66 out of the deny list of egress rule web"),
        (
            1,
            "to let it out: ravelin egress add sshd tcp/5432 --to 192.0.2.5",
        ),
    ] {
        let told = found[index].fix.as_deref().unwrap_or_default();
        assert!(told.contains(fix), "{told}");
    }
}

#[test]
fn fixes_give_names_that_are_free_and_name_every_peer() {
    let policy = POLICY.replace("\"ssh\"", "\"sshd\"");
    let table = [
        listens(TCP, "0.0.0.0:22"),
        listens(TCP, "0.0.0.0:2222"),
        open("198.51.100.1:2222", "203.0.113.9:50002"),
        open("198.51.100.1:2222", "203.0.113.9:50003"),
        open("198.51.100.1:2222", "203.0.113.10:50003"),
    ];
    let found = judged(&policy, &[], &table, None);
    let fixes: Vec<&str> = found
        .iter()
        .filter_map(|finding| finding.fix.as_deref())
        .collect();
    assert_eq!(
        fixes,
        [
            "ravelin service add sshd-2 tcp/2222 --allow PREFIX; without --allow if nobody is meant to",
            "the service sshd-2, as for the listener on tcp/2222, with --allow 203.0.113.9,203.0.113.10",
        ]
    );
    let many: Vec<Socket> = (1..=10)
        .map(|host| open("198.51.100.1:22", &format!("203.0.113.{host}:50000")))
        .chain([listens(TCP, "0.0.0.0:22")])
        .collect();
    let found = judged(POLICY, &[], &many, None);
    let fix = found[1].fix.as_deref().unwrap_or_default();
    assert!(
        fix.ends_with("203.0.113.8 (and so for 2 more addresses)"),
        "{fix}"
    );
}
