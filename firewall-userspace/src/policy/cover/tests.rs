use super::super::file::parse;
use super::*;
use proptest::prelude::*;
use std::path::Path;

/// Messages of the warnings, with the line of each.
fn warnings(text: &str) -> Vec<String> {
    let loaded = parse(&format!("version = 1\n{text}"), Path::new("p"), 1_795_316_400).unwrap();
    loaded
        .warnings
        .iter()
        .map(|warning| format!("{}: {}", warning.place.line, warning.message))
        .collect()
}

fn service(lists: &str) -> String {
    format!("[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\n{lists}\n")
}

#[test]
fn an_allow_under_a_deny_can_never_match() {
    let text = service(
        "allow = [\"10.1.0.0/16\", \"10.0.0.0/8\", \"2001:db8::1\"]\ndeny = [\"10.1.0.0/16\", \"2001:db8::/32\"]",
    );
    assert_eq!(
        warnings(&text),
        [
            "5: 10.1.0.0/16 can never match: it is denied by 10.1.0.0/16 (line 6)",
            "5: 2001:db8::1 can never match: it is denied by 2001:db8::/32 (line 6)",
        ]
    );
    let text = format!(
        "deny = [\"10.0.0.0/8\"]\n{}",
        service("allow = [\"10.1.0.0/16\", \"11.0.0.0/8\"]")
    );
    assert_eq!(
        warnings(&text),
        ["6: 10.1.0.0/16 can never match: it is denied by 10.0.0.0/8 (line 2)"]
    );
}

#[test]
fn a_deny_under_a_deny_of_the_policy_changes_nothing() {
    let text = format!(
        "deny = [\"10.0.0.0/8\"]\n{}",
        service("allow = [\"any\"]\ndeny = [\"10.1.0.0/16\"]")
    );
    assert_eq!(
        warnings(&text),
        ["7: 10.1.0.0/16 changes nothing: the policy denies 10.0.0.0/8 (line 2) on every port"]
    );
}

#[test]
fn an_entry_within_another_changes_nothing() {
    let groups =
        "[groups]\nweb = [\"10.1.0.0/16\", \"10.2.0.0/16\"]\nsame = [\"10.1.0.0/16\", \"10.2.0.0/16\"]\n";
    let text = format!(
        "{groups}{}",
        service("allow = [\"@web\", \"@same\", \"10.1.2.3\", \"10.3.0.0/16\"]")
    );
    assert_eq!(
        warnings(&text),
        [
            "8: @same changes nothing: @web (line 8) in the same list holds it",
            "8: 10.1.2.3 changes nothing: @web (line 8) in the same list holds it",
        ]
    );
    // Parts of a group that are held do not make the group superfluous.
    let text = format!(
        "{groups}{}",
        service("allow = [\"@web\", \"10.0.0.0/15\"]\ndeny = [\"@same\"]")
    );
    assert_eq!(warnings(&text).len(), 1);
    assert!(warnings(&text)[0].contains("@web can never match: it is denied by @same (line 9)"));
}

#[test]
fn any_among_others_is_a_warning() {
    let text = service("allow = [\"10.0.0.0/8\", \"any\"]");
    assert_eq!(
        warnings(&text),
        ["5: \"any\" admits everybody: the other entries of this list change nothing"]
    );
    let text = service("allow = [\"10.0.0.0/8\"]\ndeny = [\"any\"]");
    assert_eq!(
        warnings(&text),
        ["6: \"any\" is denied here: no allow of this service can match"]
    );
    let text = service("allow = [\"any\"]\ndeny = [\"10.0.0.0/8\"]");
    assert_eq!(warnings(&text), [""; 0]);
}

#[test]
fn temporary_entries_cover_nothing() {
    let until = "until = 2030-01-01T00:00:00Z";
    let text = service(&format!(
        "allow = [\"10.1.0.0/16\", {{ source = \"any\", {until} }}]\ndeny = [{{ source = \"10.0.0.0/8\", {until} }}]"
    ));
    assert_eq!(warnings(&text), [""; 0]);
    let text = service(&format!(
        "allow = [\"10.0.0.0/8\", {{ source = \"10.1.0.0/16\", {until} }}]"
    ));
    assert_eq!(warnings(&text).len(), 1);
}

#[test]
fn large_lists_are_seen_to_hold_small_entries_and_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let lines: String = (0..5000u32)
        .map(|n| format!("10.{}.{}.0/24\n", n / 250, n % 250))
        .collect();
    std::fs::write(
        folder.path().join("big.txt"),
        lines + "2001:db8::/32\n128.0.0.0/2\n",
    )
    .unwrap();
    let text = "version = 1\ndeny = [\"@big\"]\n[groups]\nbig = { file = \"big.txt\" }\nbigger = [\"@big\", \"192.0.2.1\"]\n\
                [[service]]\nname = \"a\"\nports = [\"tcp/1\"]\n\
                allow = [\"10.3.7.9\", \"10.3.0.0/16\", \"2001:db8:1::/48\", \"130.1.2.3\", \"@bigger\"]\n";
    let loaded = parse(text, &folder.path().join("policy.toml"), 0).unwrap();
    let found: Vec<_> = loaded
        .warnings
        .iter()
        .map(|warning| warning.message.as_str())
        .collect();
    assert_eq!(
        found,
        [
            "10.3.7.9 can never match: it is denied by @big (line 2)",
            "2001:db8:1::/48 can never match: it is denied by @big (line 2)",
            "130.1.2.3 can never match: it is denied by @big (line 2)",
        ]
    );
    let text = text
        .replace("deny = [\"@big\"]", "deny = [\"@bigger\"]")
        .replace(", \"@bigger\"]", ", \"@big\"]");
    let loaded = parse(&text, &folder.path().join("policy.toml"), 0).unwrap();
    assert!(
        loaded
            .warnings
            .iter()
            .any(|warning| warning.message.starts_with("@big can never match"))
    );
}

proptest! {
    #[test]
    fn the_filter_finds_just_the_holders(
        targets in proptest::collection::vec((any::<u8>(), 1u8..=32), 0..20),
        (address, length) in (any::<u8>(), 1u8..=32),
        v4: bool,
    ) {
        // Few distinct addresses, so that they meet.
        let prefix = |address: u8, length: u8| {
            let start = (u128::from(address) << 120 | u128::from(address & 3) << 100) & !u128::MAX.checked_shr(length.into()).unwrap_or(0);
            (start, length)
        };
        let targets: Vec<Prefix> = targets.into_iter().map(|(address, length)| prefix(address, length)).collect();
        let holder = prefix(address, length);
        let expected = targets.iter().any(|&target| holder.1 <= target.1 && holder.0 <= target.0 && end(target) <= end(holder));
        prop_assert_eq!(Filter::new(targets, v4).holds(holder), expected);
    }
}

fn egress(rules: &[(&str, &str)]) -> String {
    let mut text = String::from("[defaults]\negress = \"deny\"\n");
    for (name, keys) in rules {
        text.push_str(&format!("[[egress]]\nname = \"{name}\"\n{keys}\n"));
    }
    // DNS, which every policy here would be reminded of.
    text + "[[egress]]\nname = \"dns\"\nports = [\"udp/53\"]\nto = [\"192.0.2.53\"]\n"
}

#[test]
fn egress_rules_stand_above_each_other_where_they_hold_all_ports() {
    let text = egress(&[
        ("a", "ports = [\"tcp/1-9\"]\nto = [\"10.1.0.0/16\", \"any\"]"),
        (
            "b",
            "ports = [\"tcp/2\", \"tcp/3-4\"]\nto = [\"10.2.0.0/16\"]\ndeny = [\"10.2.3.0/24\"]",
        ),
        ("c", "ports = [\"tcp/9-10\"]\nto = [\"10.2.0.0/16\"]"),
        ("d", "deny = [\"10.1.0.0/16\", \"2001:db8::/32\"]"),
    ]);
    assert_eq!(
        warnings(&text),
        [
            "7: \"any\" is everywhere: the other entries of this list change nothing",
            "11: 10.2.0.0/16 changes nothing: any (line 7) of egress rule \"a\" holds it at the same ports",
        ]
    );
    let text = egress(&[
        (
            "a",
            "ports = [\"tcp/1-9\"]\nto = [\"10.1.0.0/16\", \"10.2.0.0/16\"]",
        ),
        (
            "b",
            "ports = [\"tcp/2-3\"]\nto = [\"10.2.7.0/24\", \"10.3.0.0/16\", \"2001:db8:1::/48\"]",
        ),
        ("c", "ports = [\"tcp/9-10\"]\nto = [\"10.2.7.0/24\"]"),
        ("d", "deny = [\"10.1.0.0/16\", \"2001:db8::/32\"]"),
    ]);
    assert_eq!(
        warnings(&text),
        [
            // The deny stands further down, and is judged first all the same.
            "7: 10.1.0.0/16 can never match: it is denied by 10.1.0.0/16 (line 18)",
            "11: 10.2.7.0/24 changes nothing: 10.2.0.0/16 (line 7) of egress rule \"a\" holds it at the same ports",
            "11: 2001:db8:1::/48 can never match: it is denied by 2001:db8::/32 (line 18)",
        ]
    );
    let text = egress(&[
        ("a", "ports = [\"tcp/1\"]\nto = [\"10.1.0.0/16\"]"),
        ("b", "ports = [\"tcp/1\", \"tcp/2\"]\ndeny = [\"any\"]"),
    ]);
    assert_eq!(
        warnings(&text),
        ["7: 10.1.0.0/16 can never match: it is denied by any (line 11)"]
    );
}

#[test]
fn services_and_egress_rules_do_not_cover_each_other() {
    let text = format!(
        "deny = [\"10.0.0.0/8\"]\n{}{}",
        egress(&[("a", "to = [\"10.1.0.0/16\"]\nports = [\"tcp/1\"]")]),
        "[[service]]\nname = \"s\"\nports = [\"tcp/1\"]\nallow = [\"11.0.0.0/8\"]\n"
    );
    assert_eq!(warnings(&text), [""; 0]);
}
