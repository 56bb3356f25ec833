use super::super::packet;
use super::*;
use crate::policy::compile::Stats;
use crate::policy::file;
use crate::policy::model::RuleId;
use firewall_common::control::LINK_LACP;
use firewall_common::verdict::Direction;
use std::path::Path;

const POLICY: &str = r#"version = 1
deny = ["203.0.113.0/24", "@blocked"]

[groups]
web = ["10.20.0.0/16", "10.0.0.0/8"]
blocked = ["192.0.2.128/25"]

[[service]]
name  = "payments-api"
ports = ["tcp/8443"]
allow = ["@web", "198.51.100.7"]
deny  = ["10.20.66.0/24"]
"#;

/// Tells of a decision that the test itself has made up.
fn told(text: &str, reason: Reason, rule: Option<&str>, steps: &[Step], observe: bool) -> Explanation {
    let loaded = file::parse(POLICY, Path::new("policy.toml"), 0).unwrap();
    let policy = loaded.policy;
    let rule = rule.map(|source| {
        let index = policy
            .rules
            .iter()
            .position(|rule| rule.source == source)
            .unwrap();
        RuleId(index as u32)
    });
    let service = (!matches!(reason, Reason::Denied | Reason::Closed)).then_some(ServiceId(0));
    let mut endings = vec![
        Ending {
            direction: Direction::Ingress,
            reason: None,
            service: None,
            rule: None,
            opens: false,
            profile: 0,
        };
        2 * Reason::COUNT
    ];
    endings.push(Ending {
        direction: Direction::Ingress,
        reason: Some(reason),
        service,
        rule,
        opens: false,
        profile: 0,
    });
    let stats = Stats {
        classes: 5,
        ..Stats::default()
    };
    let compiled = Compiled {
        image: Vec::new(),
        digest: [0; 32],
        endings,
        scopes: Vec::new(),
        stats,
    };
    let config = Config {
        observe: observe.into(),
        link_control: LINK_LACP,
        ..Config::DEFAULT
    };
    let spec = packet::parse(text).unwrap();
    let outcome = Outcome {
        reason,
        ending: 2 * Reason::COUNT as u32,
        service: u16::from(service.is_some()),
    };
    let account = Account {
        policy: &policy,
        text: POLICY,
        compiled: &compiled,
        config: &config,
        spec: &spec,
        own_source: false,
        outcome,
        steps,
    };
    account.explanation()
}

fn findings(explanation: &Explanation) -> Vec<String> {
    explanation
        .steps
        .iter()
        .map(|step| format!("{}: {}", step.step, step.finding))
        .collect()
}

fn steps(port: u16, service: u16, reason: Reason) -> [Step; 3] {
    let ending = 2 * Reason::COUNT as u32;
    [
        Step::Port {
            key: PortKey::tcp(port),
            service,
        },
        Step::Class(3),
        Step::Verdict {
            reason: reason.number(),
            ending,
        },
    ]
}

#[test]
fn an_allow_names_rule_place_line_and_the_narrowest_prefix() {
    let told = told(
        "tcp 10.20.3.4 -> 8443",
        Reason::Allowed,
        Some("@web"),
        &steps(8443, 1, Reason::Allowed),
        false,
    );
    assert_eq!((told.verdict.as_str(), told.reason.as_str()), ("pass", "allowed"));
    assert_eq!(told.rule.as_deref(), Some("allow @web"));
    assert_eq!(
        told.place.as_ref().map(ToString::to_string).as_deref(),
        Some("policy.toml:11:10")
    );
    assert_eq!(told.line.as_deref(), Some("allow = [\"@web\", \"198.51.100.7\"]"));
    assert_eq!(
        findings(&told),
        [
            "packet: IPv4, TCP, SYN",
            "port: tcp/8443 belongs to service payments-api (policy.toml:9:9)",
            "source: 10.20.3.4 is in class 3 of 5 (sources that all rules treat alike)",
            "rule: allow @web: 10.20.3.4 is in 10.20.0.0/16",
        ]
    );
    assert_eq!(told.hint, None);
}

#[test]
fn a_deny_says_which_allow_it_beats() {
    let steps = steps(8443, 1, Reason::ServiceDenied);
    let told = told(
        "tcp 10.20.66.4 -> 8443",
        Reason::ServiceDenied,
        Some("10.20.66.0/24"),
        &steps,
        false,
    );
    assert_eq!(
        findings(&told).last().unwrap(),
        "rule: deny 10.20.66.0/24; allow @web names it too, but deny beats allow"
    );
    assert_eq!(
        told.hint.unwrap(),
        "deny beats allow: to let it in, take 10.20.66.0/24 out of the deny list of payments-api (policy.toml:12:10)"
    );
}

#[test]
fn a_deny_of_the_whole_policy_offers_undeny() {
    let steps = steps(8443, 1, Reason::Denied);
    let told = told(
        "tcp 203.0.113.9 -> 8443",
        Reason::Denied,
        Some("203.0.113.0/24"),
        &steps,
        false,
    );
    assert_eq!(
        findings(&told).last().unwrap(),
        "rule: deny 203.0.113.0/24 (on every port)"
    );
    assert_eq!(told.hint.unwrap(), "to let it in: ravelin undeny 203.0.113.0/24");
    assert_eq!(told.service, None);
}

#[test]
fn a_deny_by_a_group_points_at_the_group() {
    let steps = steps(8443, 1, Reason::Denied);
    let told = told(
        "tcp 192.0.2.200 -> 8443",
        Reason::Denied,
        Some("@blocked"),
        &steps,
        false,
    );
    assert_eq!(
        told.hint.unwrap(),
        "to let it in, take 192.0.2.128/25 out of @blocked (policy.toml:6:11)"
    );
}

#[test]
fn who_is_not_allowed_is_told_who_is_and_how_to_join() {
    let steps = steps(8443, 1, Reason::NotAllowed);
    let told = told("tcp 192.0.2.9 -> 8443", Reason::NotAllowed, None, &steps, true);
    assert_eq!(told.place.as_ref().map(|place| place.line), Some(9));
    assert_eq!(
        findings(&told)[3..],
        [
            "rule: payments-api allows @web, 198.51.100.7, not 192.0.2.9",
            "mode: the agent only observes: this is counted as would-drop, and passes",
        ]
    );
    assert_eq!(
        told.hint.unwrap(),
        "to let it in: ravelin allow payments-api 192.0.2.9"
    );
}

#[test]
fn a_closed_port_offers_a_service_or_names_the_likely_mistake() {
    let closed = |text, key| {
        let steps = [
            Step::Port { key, service: 0 },
            Step::Gate { open: false },
            Step::Default { allow: false },
        ];
        told(text, Reason::Closed, None, &steps, false)
    };
    let plain = closed("tcp 10.20.3.4 -> 9999", PortKey::tcp(9999));
    assert_eq!(
        findings(&plain)[1..],
        [
            "port: no service names tcp/9999",
            "reply: it answers nothing that this host opened",
            "default: what no service names: deny (ingress in [defaults])",
        ]
    );
    assert_eq!(
        plain.hint.unwrap(),
        "to open it: ravelin service add NAME tcp/9999 --allow 10.20.3.4"
    );
    let mistaken = closed("udp 10.20.3.4 -> 8443", PortKey::udp(8443));
    assert_eq!(
        mistaken.hint.unwrap(),
        "payments-api has tcp/8443, not udp/8443: to open it, add it to the ports of payments-api (policy.toml:9:9)"
    );
}

#[test]
fn what_nobody_could_open_is_not_advised() {
    let closed = |text, key| {
        let steps = [Step::Port { key, service: 0 }, Step::Default { allow: false }];
        told(text, Reason::Closed, None, &steps, false).hint
    };
    assert_eq!(closed("tcp 10.20.3.4 -> 0", PortKey::tcp(0)), None);
    assert_eq!(
        closed("tcp 203.0.113.9 -> 9999", PortKey::tcp(9999)).unwrap(),
        "no service would let it in: deny 203.0.113.0/24 of the policy names 203.0.113.9 (policy.toml:2:9)"
    );
}
