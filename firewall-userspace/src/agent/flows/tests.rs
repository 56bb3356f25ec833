use super::*;
use crate::policy::file;
use firewall_common::control::Config;
use firewall_common::flow::Key;
use std::collections::HashMap;
use std::path::Path;

const POLICY: &str = r#"version = 1
[[service]]
name = "api"
ports = ["tcp/443"]
allow = ["192.0.2.0/24"]
[[egress]]
name = "dns"
ports = ["udp/53"]
to = ["203.0.113.53"]
"#;

const HOST: [u8; 4] = [198, 51, 100, 1];

fn address(bytes: [u8; 4]) -> Address {
    Address {
        high: 0,
        low: u32::from_be_bytes(bytes).into(),
    }
}

fn flow(
    protocol: u8,
    local_port: u16,
    remote: [u8; 4],
    remote_port: u16,
    state: State,
    age: u32,
    idle: u32,
) -> Flow {
    Flow {
        key: Key::new(
            4,
            protocol,
            address(HOST),
            local_port,
            address(remote),
            remote_port,
        ),
        state,
        age_s: age,
        idle_s: idle,
        left_s: 100_u32.saturating_sub(idle),
        ifindex: 2,
    }
}

fn basis() -> FlowBasis {
    let loaded = file::parse(POLICY, Path::new("policy.toml"), 0).expect("a policy");
    FlowBasis {
        policy: Some((Arc::new(loaded.policy), None)),
        control: Box::new(Config::DEFAULT),
        own: HashSet::from([address_key(HOST.into())]),
        flows: vec![
            flow(17, 40_001, [203, 0, 113, 53], 53, State::Asked, 9, 8),
            flow(6, 40_002, [203, 0, 113, 80], 443, State::Established, 4000, 1),
            flow(6, 40_003, [203, 0, 113, 81], 443, State::SynSent, 500, 500),
            flow(1, 77, [203, 0, 113, 9], 0, State::Echo, 3, 2),
        ],
        max: 512,
        displaced: 5,
        interfaces: HashMap::from([(2, "eth0".to_owned())]),
    }
}

/// A listener at 443, a connection that it accepted, one that the table knows, one to this host itself.
fn sockets() -> Vec<HostSocket> {
    let line = |local: &str, peer: &str, state: &str| {
        let line = format!("0: {local} {peer} {state} 0:0 0:0 0 0 0 1 1");
        HostSocket::parse(TCP, &line).expect("a row")
    };
    let hex = |bytes: [u8; 4], port: u16| format!("{:08X}:{port:04X}", u32::from_ne_bytes(bytes));
    vec![
        line(&hex([0; 4], 443), &hex([0; 4], 0), "0A"),
        line(&hex(HOST, 443), &hex([192, 0, 2, 7], 50_000), "01"),
        line(&hex(HOST, 40_002), &hex([203, 0, 113, 80], 443), "01"),
        line(&hex(HOST, 40_004), &hex([203, 0, 113, 82], 80), "08"),
        line(&hex(HOST, 443), &hex(HOST, 50_001), "01"),
    ]
}

fn asked(query: &FlowQuery) -> FlowList {
    let peer = query.peer.as_deref().map(|peer| peer.parse().expect("a prefix"));
    list(&basis(), &sockets(), query, peer).expect("it compiles")
}

fn remotes(query: &FlowQuery) -> Vec<String> {
    asked(query).flows.into_iter().map(|row| row.remote).collect()
}

#[test]
fn live_flows_and_accepted_connections_are_listed_the_busiest_first() {
    let list = asked(&FlowQuery::default());
    assert_eq!(
        (list.live, list.max, list.displaced, list.matched),
        (3, 512, 5, 5)
    );
    let short: Vec<_> = list
        .flows
        .iter()
        .map(|row| {
            (
                row.direction.as_str(),
                row.remote.as_str(),
                row.state.as_str(),
                row.service.as_str(),
                row.rule.as_str(),
            )
        })
        .collect();
    assert_eq!(
        short,
        [
            ("egress", "203.0.113.80", "established", "", ""),
            ("egress", "203.0.113.9", "echo", "", ""),
            ("egress", "203.0.113.53", "asked", "dns", "allow 203.0.113.53"),
            ("ingress", "192.0.2.7", "established", "api", "allow 192.0.2.0/24"),
            ("egress", "203.0.113.82", "fin-in", "", ""),
        ]
    );
    let ping = &list.flows[1];
    assert_eq!(
        (ping.protocol.as_str(), ping.echo_id, ping.local_port),
        ("icmp", Some(77), None)
    );
    assert_eq!(
        (ping.interface.as_str(), ping.age_seconds, ping.expires_seconds),
        ("eth0", Some(3), Some(98))
    );
}

#[test]
fn each_filter_leaves_what_has_it() {
    let query = FlowQuery::default;
    let text = |text: &str| Some(text.to_owned());
    for (query, expected) in [
        (
            FlowQuery {
                service: text("api"),
                ..query()
            },
            &["192.0.2.7"][..],
        ),
        (
            FlowQuery {
                service: text("dns"),
                ..query()
            },
            &["203.0.113.53"],
        ),
        (
            FlowQuery {
                peer: text("203.0.113.80/31"),
                ..query()
            },
            &["203.0.113.80"],
        ),
        (
            FlowQuery {
                state: text("echo"),
                ..query()
            },
            &["203.0.113.9"],
        ),
        (
            FlowQuery {
                direction: text("ingress"),
                ..query()
            },
            &["192.0.2.7"],
        ),
        (
            FlowQuery {
                older_than: Some(9),
                ..query()
            },
            &["203.0.113.80", "203.0.113.53"],
        ),
        (
            FlowQuery {
                younger_than: Some(9),
                ..query()
            },
            &["203.0.113.9", "203.0.113.53"],
        ),
    ] {
        assert_eq!(remotes(&query), expected, "{query:?}");
    }
}

#[test]
fn a_limit_hides_and_counts() {
    let list = asked(&FlowQuery {
        limit: Some(1),
        ..FlowQuery::default()
    });
    assert_eq!((list.matched, list.flows.len()), (5, 1));
    let list = asked(&FlowQuery {
        limit: Some(1),
        service: Some("api".into()),
        ..FlowQuery::default()
    });
    assert_eq!((list.matched, list.flows.len()), (1, 1));
}
