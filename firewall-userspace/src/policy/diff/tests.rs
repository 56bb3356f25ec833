use super::super::file::parse;
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
        ["@blocked: 1,204 prefixes more loses  every port"]
    );
    assert_eq!(
        changes(&new, BASE),
        ["@blocked: 1,204 prefixes fewer gains  every port that allows it"]
    );
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
