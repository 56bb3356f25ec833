use super::super::model::{PrefixList, Rule};
use super::*;
use crate::api::types::Edit;
use firewall_common::image::PortKey;

const NOW: u64 = 1_795_300_000;

/// The policy of the documentation, with its list beside it.
const EXAMPLE: &str = r#"version = 1
deny = ["@blocked"]                                  # beats every allow, on every port

[defaults]
ingress = "deny"                                     # or "allow"

[groups]
office  = ["203.0.113.0/24", "2001:db8:10::/48"]
web     = ["10.20.0.0/16", "@office"]                # groups nest; a cycle is an error that names it
blocked = { file = "lists/blocked.txt" }             # one prefix a line, # comments; a million lines must do

[[service]]
name  = "payments-api"
ports = ["tcp/8443", "udp/8443", "tcp/30000-30010"]
allow = ["@web", "198.51.100.7"]                     # or ["any"]
deny  = ["10.20.66.0/24"]
"#;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("lists")).unwrap();
    std::fs::write(
        folder.path().join("lists/blocked.txt"),
        "# bad\n192.0.2.0/24\n2001:db8:bad::/48\n",
    )
    .unwrap();
    std::fs::write(folder.path().join("policy.toml"), EXAMPLE).unwrap();
    folder
}

fn read(text: &str) -> Loaded {
    parse(text, Path::new("policy.toml"), NOW).unwrap_or_else(|error| panic!("{error}"))
}

fn errors(text: &str) -> String {
    parse(text, Path::new("policy.toml"), NOW)
        .unwrap_err()
        .to_string()
}

fn warnings(text: &str) -> String {
    let warnings = read(text).warnings;
    warnings
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n\n")
}

/// `allow @web = lists 0, 1` for each rule.
fn shown(policy: &Policy) -> Vec<String> {
    let row = |rule: &Rule| {
        let owner = policy.owner_name(rule.owner).unwrap_or("*");
        format!(
            "{owner} {:?} {} {} {:?} line {}",
            rule.action, rule.source, rule.any, rule.lists, rule.place.line
        )
    };
    policy.rules.iter().map(row).collect()
}

fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> (u32, u8) {
    (u32::from_be_bytes([a, b, c, d]), length)
}

#[test]
fn reads_the_example() {
    let folder = folder();
    let loaded = load(&folder.path().join("policy.toml"), NOW).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.files, [folder.path().join("lists/blocked.txt")]);
    let policy = &loaded.policy;
    assert!(!policy.default_allow);
    assert_eq!(
        shown(policy),
        [
            "* Deny @blocked false [0] line 2",
            "payments-api Deny 10.20.66.0/24 false [1] line 16",
            "payments-api Allow @web false [2, 3] line 15",
            "payments-api Allow 198.51.100.7 false [4] line 15",
        ]
    );
    assert_eq!(policy.lists[0].v4, [v4(192, 0, 2, 0, 24)]);
    assert_eq!(policy.lists[0].v6, [(0x2001_0db8_0bad << 80, 48)]);
    assert_eq!(policy.lists[2].v4, [v4(10, 20, 0, 0, 16)]);
    assert_eq!(policy.lists[3].v4, [v4(203, 0, 113, 0, 24)]);
    assert_eq!(policy.lists[4].v4, [v4(198, 51, 100, 7, 32)]);
    let service = &policy.services[0];
    assert_eq!(
        (service.name.as_str(), service.place.line, service.place.column),
        ("payments-api", 13, 9)
    );
    assert_eq!(service.ports_text, ["tcp/8443", "udp/8443", "tcp/30000-30010"]);
    let key = PortKey::tcp;
    assert_eq!(
        service.ports,
        [
            (key(8443), key(8443)),
            (key(30000), key(30010)),
            (PortKey::udp(8443), PortKey::udp(8443))
        ]
    );
}

#[test]
fn an_empty_policy_denies_and_missing_allow_admits_nobody() {
    let loaded = read("version = 1\n[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\n");
    assert_eq!(
        (loaded.policy.rules.len(), loaded.policy.default_allow),
        (0, false)
    );
    assert!(
        read("version = 1\ndefaults.ingress = \"allow\"\n")
            .policy
            .default_allow
    );
}

#[test]
fn rules_share_the_lists_of_groups_and_of_equal_literals() {
    let loaded = read(
        "version = 1\n[groups]\na = [\"10.0.0.0/8\", \"@b\"]\nb = [\"192.0.2.0/24\"]\n\
         [[service]]\nname = \"x\"\nports = [\"tcp/1\"]\nallow = [\"@a\", \"198.51.100.1\"]\n\
         [[service]]\nname = \"y\"\nports = [\"tcp/2\"]\nallow = [\"@b\", \"@a\", \"198.51.100.1/32\"]\n",
    );
    let lists: Vec<_> = loaded
        .policy
        .rules
        .iter()
        .map(|rule| rule.lists.as_slice())
        .collect();
    assert_eq!(lists, [&[0, 1][..], &[2], &[1], &[0, 1], &[2]]);
    assert_eq!(loaded.policy.lists.len(), 3);
}

#[test]
fn a_long_list_of_literals_is_one_rule() {
    let prefixes: Vec<String> = (0..300)
        .map(|n| format!("\"10.0.{}.{}\"", n / 256, n % 256))
        .collect();
    let text = format!(
        "version = 1\n[groups]\ng = [\"192.0.2.1\"]\n[[service]]\nname = \"x\"\nports = [\"tcp/1\"]\nallow = [\"@g\", {}]\n",
        prefixes.join(", ")
    );
    let policy = read(&text).policy;
    assert_eq!(
        shown(&policy),
        [
            "x Allow @g false [0] line 7",
            "x Allow 300 prefixes false [1] line 7"
        ]
    );
    assert_eq!(policy.lists[1].len(), 300);
    assert_eq!(policy.rules[1].place.column, 16);
}

#[test]
fn temporary_entries_hold_until_their_end() {
    let text = "version = 1\ndeny = [{ source = \"192.0.2.0/24\", until = 2026-11-22T05:00:00Z }]\n\
                [[service]]\nname = \"x\"\nports = [\"tcp/1\"]\n\
                allow = [\"198.51.100.1\", { until = 2026-11-22T05:00:00+00:00, source = \"any\" }]\n\
                deny = [{ source = \"203.0.113.1\", until = 2020-01-01T00:00:00Z }]\n";
    let loaded = read(text);
    let until = 1_795_323_600;
    assert_eq!(
        shown(&loaded.policy),
        [
            "* Deny 192.0.2.0/24 false [0] line 2",
            "x Allow 198.51.100.1 false [1] line 6",
            "x Allow any true [] line 6",
        ]
    );
    let (service, source) = ("x".to_string(), "any".to_string());
    assert_eq!(
        loaded.temporary,
        [
            TemporaryEntry {
                entry: "deny 192.0.2.0/24".into(),
                edit: Edit::Undeny {
                    source: "192.0.2.0/24".into()
                },
                until
            },
            TemporaryEntry {
                entry: "allow x any".into(),
                edit: Edit::Revoke { service, source },
                until
            },
        ]
    );
    let (service, source) = ("x".to_string(), "203.0.113.1".to_string());
    let ended = TemporaryEntry {
        entry: "deny x 203.0.113.1".into(),
        edit: Edit::ServiceUndeny { service, source },
        until: 1_577_836_800,
    };
    assert_eq!(loaded.expired, [ended]);
    assert_eq!(loaded.warnings.len(), 1);
    // An entry ends at its second, not after it.
    assert_eq!(parse(text, Path::new("p"), until).unwrap().temporary, []);
    assert_eq!(parse(text, Path::new("p"), until - 1).unwrap().temporary.len(), 2);
}

#[test]
fn every_mistake_of_one_file_is_found_in_one_pass() {
    let text = r#"version = 2
dney = ["@blocked"]
deny = ["any", "0.0.0.0/0"]
[defaults]
ingress = "drop"
[groups]
web = ["10.20.0.0/16", "@ofice", 7]
office = ["203.0.113.0/33"]
[[service]]
name = "Payments API"
ports = ["tpc/8443", "tcp/20-10", 443]
allow = ["@wbe", "::ffff:1.2.3.4", { source = "any" }]
[[service]]
name = "b"
ports = ["tcp/1", "tcp/0"]
alow = []
[[service]]
name = "b"
ports = "tcp/1"
"#;
    let expected = r#"policy.toml:1:11: version 2 is not known (1)
    1 | version = 2
      |           ^
  hint: this ravelin reads version 1 of the policy language

policy.toml:2:1: unknown key "dney" in the policy (version, policy, deny, defaults, groups, service, egress)
    2 | dney = ["@blocked"]
      | ^^^^
  hint: did you mean "deny"?

policy.toml:3:9: a deny of "any" for the whole policy closes every port to everybody
    3 | deny = ["any", "0.0.0.0/0"]
      |         ^^^^^
  hint: leave a service without allow to close it, or deny "any" in the service

policy.toml:3:16: "0.0.0.0/0" means everybody, which is written "any"
    3 | deny = ["any", "0.0.0.0/0"]
      |                ^^^^^^^^^^^
  hint: write "any"

policy.toml:5:11: unknown default "drop" ("deny" or "allow")
    5 | ingress = "drop"
      |           ^^^^^^
  hint: did you mean "deny"?

policy.toml:7:24: unknown group "@ofice"
    7 | web = ["10.20.0.0/16", "@ofice", 7]
      |                        ^^^^^^^^
  hint: did you mean "@office"?

policy.toml:7:34: an entry of a group is a number, not a string
    7 | web = ["10.20.0.0/16", "@ofice", 7]
      |                                  ^
  hint: write "7"

policy.toml:8:11: "203.0.113.0/33" has a prefix length of 33, but an IPv4 address has 32 bits
    8 | office = ["203.0.113.0/33"]
      |           ^^^^^^^^^^^^^^^^
  hint: a length of 1 to 32 is accepted

policy.toml:10:8: "Payments API" cannot name a service
   10 | name = "Payments API"
      |        ^^^^^^^^^^^^^^
  hint: names have 1 to 63 of a-z, 0-9, ".", "_" and "-", and begin with a letter or a digit

policy.toml:11:11: service "Payments API": unknown protocol "tpc" (tcp, udp, sctp, icmp, icmpv4, icmpv6 or proto)
   11 | ports = ["tpc/8443", "tcp/20-10", 443]
      |           ^^^
  hint: did you mean "tcp"?

policy.toml:11:27: service "Payments API": the range 20-10 is reversed
   11 | ports = ["tpc/8443", "tcp/20-10", 443]
      |                           ^^^^^
  hint: write "10-20"

policy.toml:11:35: a port is a number, not a string
   11 | ports = ["tpc/8443", "tcp/20-10", 443]
      |                                   ^^^
  hint: write "tcp/443" or "udp/443"

policy.toml:12:10: unknown group "@wbe"
   12 | allow = ["@wbe", "::ffff:1.2.3.4", { source = "any" }]
      |          ^^^^^^
  hint: did you mean "@web"?

policy.toml:12:18: "::ffff:1.2.3.4" is an IPv4 prefix inside IPv6; packets never come from such an address
   12 | allow = ["@wbe", "::ffff:1.2.3.4", { source = "any" }]
      |                  ^^^^^^^^^^^^^^^^
  hint: write "1.2.3.4"

policy.toml:12:36: a temporary entry without "until"
   12 | allow = ["@wbe", "::ffff:1.2.3.4", { source = "any" }]
      |                                    ^^^^^^^^^^^^^^^^^^
  hint: a temporary entry is { source = "203.0.113.9", until = 2026-11-22T05:00:00Z }

policy.toml:15:24: service "b": port 0 cannot be opened (1 to 65535)
   15 | ports = ["tcp/1", "tcp/0"]
      |                        ^

policy.toml:16:1: unknown key "alow" in a service (name, ports, allow, deny, limits, limit)
   16 | alow = []
      | ^^^^
  hint: did you mean "allow"?

policy.toml:18:8: service "b" is defined already (line 14)
   18 | name = "b"
      |        ^^^
  hint: give it another name, or join the two

policy.toml:19:9: "ports" is a string, not a list
   19 | ports = "tcp/1"
      |         ^^^^^^^
  hint: write ports = ["tcp/1"]"#;
    assert_eq!(errors(text), expected);
}

#[test]
fn a_cycle_is_named() {
    let text = "version = 1\n[groups]\noffice = [\"@web\"]\nweb = [\"192.0.2.1\", \"@lab\"]\nlab = [\"@office\"]\nme = [\"@me\"]\n";
    assert_eq!(
        errors(text),
        "policy.toml:5:8: group \"office\" contains itself: office -> web -> lab -> office\n    \
         5 | lab = [\"@office\"]\n      |        ^^^^^^^^^\n  hint: take one of these names out\n\n\
         policy.toml:6:7: group \"me\" contains itself: me -> me\n    \
         6 | me = [\"@me\"]\n      |       ^^^^^\n  hint: take one of these names out"
    );
}

#[test]
fn a_port_of_two_services_names_both_places() {
    let text = "version = 1\n[[service]]\nname = \"a\"\nports = [\"tcp/8000-9000\", \"icmp/echo\"]\n\
                [[service]]\nname = \"b\"\nports = [\"tcp/8443\", \"icmpv6/128\"]\n\
                [[service]]\nname = \"c\"\nports = [\"tcp/8999-9001\", \"tcp/9001\"]\n";
    let hint = "  hint: a port belongs to one service: take it out of one of the two";
    assert_eq!(
        errors(text),
        format!(
            "policy.toml:7:10: service \"b\" claims tcp/8443, which service \"a\" has (policy.toml:4:10)\n    \
             7 | ports = [\"tcp/8443\", \"icmpv6/128\"]\n      |          ^^^^^^^^^^\n{hint}\n\n\
             policy.toml:7:22: service \"b\" claims icmpv6/echo, which service \"a\" has (policy.toml:4:27)\n    \
             7 | ports = [\"tcp/8443\", \"icmpv6/128\"]\n      |                      ^^^^^^^^^^^^\n{hint}\n\n\
             policy.toml:10:10: service \"c\" claims tcp/8999-9000, which service \"a\" has (policy.toml:4:10)\n   \
             10 | ports = [\"tcp/8999-9001\", \"tcp/9001\"]\n      |          ^^^^^^^^^^^^^^^\n{hint}"
        )
    );
}

#[test]
fn overlaps_within_a_service_are_merged_with_a_warning() {
    let text = "version = 1\n[[service]]\nname = \"a\"\nports = [\"tcp/10-20\", \"tcp/15-30\", \"tcp/31\"]\nallow = [\"any\"]\n";
    let loaded = read(text);
    let key = PortKey::tcp;
    assert_eq!(
        loaded.policy.services[0].ports,
        [(key(10), key(30)), (key(31), key(31))]
    );
    assert_eq!(
        warnings(text),
        "policy.toml:4:23: service \"a\" names tcp/15-20 twice: \"tcp/10-20\" at policy.toml:4:10 holds it\n    \
         4 | ports = [\"tcp/10-20\", \"tcp/15-30\", \"tcp/31\"]\n      |                       ^^^^^^^^^^^"
    );
}

#[test]
fn what_is_surely_a_mistake_is_a_warning() {
    let text = "version = 1\ndeny = [\"192.0.2.9/24\"]\n[groups]\nempty = []\nunused = [\"192.0.2.1\", \"192.0.2.1/32\"]\n\
                [[service]]\nname = \"a\"\nports = [\"proto/51\"]\nallow = [\"@empty\", \"203.0.113.1\", \"203.0.113.1/32\"]\n";
    assert_eq!(
        warnings(text),
        "policy.toml:2:9: host bits are set in \"192.0.2.9/24\"; read as 192.0.2.0/24
    2 | deny = [\"192.0.2.9/24\"]
      |         ^^^^^^^^^^^^^^
  hint: write \"192.0.2.0/24\"

policy.toml:4:1: group \"empty\" is empty: it matches nobody
    4 | empty = []
      | ^^^^^

policy.toml:5:1: group \"unused\" is never used
    5 | unused = [\"192.0.2.1\", \"192.0.2.1/32\"]
      | ^^^^^^

policy.toml:5:24: \"192.0.2.1/32\" stands in this group already (line 5)
    5 | unused = [\"192.0.2.1\", \"192.0.2.1/32\"]
      |                        ^^^^^^^^^^^^^^

policy.toml:8:10: proto/51 is IPv4 AH only: in IPv6, AH is walked and what follows it is judged
    8 | ports = [\"proto/51\"]
      |          ^^^^^^^^^^

policy.toml:9:35: \"203.0.113.1/32\" stands in this list already (line 9)
    9 | allow = [\"@empty\", \"203.0.113.1\", \"203.0.113.1/32\"]
      |                                   ^^^^^^^^^^^^^^^^"
    );
}

#[test]
fn syntax_errors_point_into_the_line() {
    let text = "version = 1\ndeny = [\"192.0.2.1\"\n[defaults\ningress = deny\n";
    let errors = errors(text);
    assert!(errors.starts_with("policy.toml:"), "{errors}");
    assert!(errors.lines().any(|line| line.contains('^')), "{errors}");
    assert!(
        parse("version = 1\nversion = 1\n", Path::new("p"), 0)
            .unwrap_err()
            .to_string()
            .contains("duplicate")
    );
}

#[test]
fn lists_that_cannot_be_read_are_errors_at_their_name() {
    let text = "version = 1\ndeny = [\"@a\"]\n[groups]\na = { file = \"no/such/list.txt\" }\nb = { file = \".\" }\nc = { fiel = \"x\" }\n";
    assert_eq!(
        errors(text),
        "policy.toml:4:14: cannot read the list no/such/list.txt: No such file or directory (os error 2)
    4 | a = { file = \"no/such/list.txt\" }
      |              ^^^^^^^^^^^^^^^^^^
  hint: the path is relative to the policy file

policy.toml:5:14: cannot read the list .: not a regular file
    5 | b = { file = \".\" }
      |              ^^^
  hint: the path is relative to the policy file

policy.toml:6:5: group \"c\" has neither \"file\" nor \"nodes\"
    6 | c = { fiel = \"x\" }
      |     ^^^^^^^^^^^^^^
  hint: write { file = \"lists/name.txt\" } or { nodes = \"role=web\" }

policy.toml:6:7: unknown key \"fiel\" in a group (file, nodes, within)
    6 | c = { fiel = \"x\" }
      |       ^^^^
  hint: did you mean \"file\"?"
    );
    let error = load(Path::new("no/such/policy.toml"), NOW)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "no/such/policy.toml: cannot read the policy: No such file or directory (os error 2)"
    );
}

#[test]
fn one_source_with_two_ends_is_refused() {
    let text =
        "version = 1\ndeny = [\"192.0.2.1\", { source = \"192.0.2.1/32\", until = 2026-11-22T05:00:00Z }]\n";
    assert!(errors(text).starts_with(
        "policy.toml:2:22: \"192.0.2.1/32\" stands in this list twice with different ends (line 2)"
    ));
}

#[test]
fn an_empty_group_matches_nobody() {
    let policy = read(
        "version = 1\n[groups]\ne = []\n[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\nallow = [\"@e\"]\n",
    )
    .policy;
    assert_eq!(
        (policy.rules[0].any, policy.rules[0].lists.as_slice()),
        (false, &[][..])
    );
    assert_eq!(policy.lists, Vec::<Arc<PrefixList>>::new());
}

/// Long texts, made to cost much: each comes to an end, most of them to an error.
#[test]
fn hostile_texts_cost_no_more_than_long_ones() {
    const LONG: usize = 1 << 17;
    let filled = |start: &str, part: &str, end: &str| {
        let times = (LONG - start.len() - end.len()) / part.len();
        format!("{start}{}{end}", part.repeat(times))
    };
    let numbered = |part: fn(usize) -> String| {
        let mut text = String::from("version = 1\n");
        let mut number = 0;
        while text.len() < LONG {
            text += &part(number);
            number += 1;
        }
        text
    };
    let head = "version = 1\n[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\nallow = [";
    for text in [
        filled("", "[", ""),
        filled("", "a.", "a = 1"),
        filled("a = ", "[", ""),
        filled("a = ", "{a=", ""),
        filled("", "[[service]]\n", ""),
        filled("version = 1\n", "\u{feff}", ""),
        filled(head, "null,", "]"),
        filled(head, "\"10.0.0.1/33\",", "]"),
        numbered(|number| format!("k{number} = 1\n")),
        numbered(|number| format!("[[service]]\nname = \"s{number}\"\nports = [\"tcp/1\"]\n")),
        numbered(|_| "[[service]]\nname = \"s\"\nports = [\"tcp/1\"]\n".to_owned()),
        numbered(|number| match number {
            0 => "[groups]\n".to_owned(),
            _ => format!("g{number} = [\"@g{}\"]\n", number + 1),
        }),
        numbered(|number| match number {
            0 => "[groups]\ng0 = []\n".to_owned(),
            _ => format!("g{number} = [\"10.0.0.0/8\", \"@g{}\"]\n", number - 1),
        }),
    ] {
        let start = &text[..60];
        let error = parse(&text, Path::new("p"), 0).expect_err(start);
        assert!(error.errors.len() <= 51, "{} errors: {start}", error.errors.len());
        assert!(error.to_string().len() < 100_000, "{start}");
    }
    // Legal, but with a finding for each entry of one long line.
    let loaded = parse(&filled(head, "\"10.0.0.1\",", "]"), Path::new("p"), 0).unwrap();
    assert_eq!(loaded.policy.rules.len(), 1);
    let last = loaded.warnings.last().unwrap().to_string();
    assert!(last.ends_with(" more warnings are not shown"), "{last}");
    assert_eq!(loaded.warnings.len(), 1001);
}

/// Groups of one prefix, all of them named: each is a list of its own, and they all cover the same addresses.
#[test]
fn sets_of_lists_are_bounded() {
    let groups = 6_000;
    let mut text = String::from("version = 1\n[groups]\n");
    for number in 0..groups {
        text += &format!("g{number} = [\"10.0.0.0/8\"]\n");
    }
    text += "[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\nallow = [";
    for number in 0..groups {
        text += &format!("\"@g{number}\",");
    }
    text += "]\n";
    assert!(text.len() < 1 << 20);
    let loaded = parse(&text, Path::new("p"), 0).unwrap();
    let error = crate::policy::compile::compile(&loaded.policy).unwrap_err();
    assert!(error.to_string().contains("places in sets of lists"), "{error}");
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "(version = 1|deny = |allow|\\[service\\.limits\\]|\\[\\[service\\.limit\\]\\]|\\[defaults\\.limits\\]|for = |packets = |bytes\\.|connections = |per_source = |burst = |\"1/s\"|on_excess = |\\[\\[service\\]\\]|\\[groups\\]|name = \"a\"|ports = |\\{|\\}|\\[|\\]|\"@a\"|\"any\"|a = |,|\n| |.){0,30}") {
        if let Err(error) = parse(&text, Path::new("p"), NOW) {
            proptest::prop_assert!(!error.errors.is_empty());
        }
    }
}

#[test]
fn a_dhcp_client_without_an_address_can_be_allowed() {
    let warned = |source: &str| {
        let text = format!(
            "version = 1\n[[service]]\nname = \"dhcp\"\nports = [\"udp/67\"]\nallow = [\"{source}\"]\n"
        );
        let loaded = parse(&text, Path::new("policy.toml"), 0).unwrap();
        loaded.warnings.len()
    };
    assert_eq!(warned("0.0.0.0"), 0);
    assert_eq!(warned("0.0.0.1"), 1);
    assert_eq!(warned("0.0.0.0/8"), 1);
}

const EGRESS: &str = r#"version = 1
[defaults]
egress = "deny"
[groups]
resolvers = ["192.0.2.53", "2001:db8::53"]
[[service]]
name = "web"
ports = ["tcp/443"]
allow = ["any"]
[[egress]]
name = "dns"
ports = ["udp/53", "tcp/53"]
to = ["@resolvers"]
[[egress]]
name = "lan"
to = ["10.0.0.0/8", { source = "198.51.100.0/24", until = 2026-11-22T05:00:00Z }]
deny = ["10.66.0.0/16"]
[[egress]]
name = "https"
ports = ["tcp/443", "icmp/echo"]
to = ["any"]
"#;

#[test]
fn egress_rules_name_destinations() {
    let loaded = read(EGRESS);
    assert_eq!(loaded.warnings, []);
    let policy = &loaded.policy;
    assert!(policy.egress_deny && !policy.default_allow);
    assert_eq!(
        shown(policy),
        [
            "web Allow any true [] line 9",
            "dns Allow @resolvers false [0] line 13",
            "lan Deny 10.66.0.0/16 false [1] line 17",
            "lan Allow 10.0.0.0/8 false [2] line 16",
            "lan Allow 198.51.100.0/24 false [3] line 16",
            "https Allow any true [] line 21",
        ]
    );
    assert_eq!(policy.rules[2].owner, Owner::Egress(EgressId(1)));
    let ports = |index: usize| policy.egress[index].ports.clone();
    let one = |key| (key, key);
    assert_eq!(ports(0), [one(PortKey::tcp(53)), one(PortKey::udp(53))]);
    assert_eq!(ports(1), []);
    assert_eq!(
        ports(2),
        [
            one(PortKey::tcp(443)),
            one(PortKey::icmp(8)),
            one(PortKey::icmpv6(128))
        ]
    );
    assert_eq!(
        (policy.egress[1].place.line, policy.egress[1].place.column),
        (15, 8)
    );
    let (service, source) = ("lan".to_string(), "198.51.100.0/24".to_string());
    let temporary = TemporaryEntry {
        entry: "allow lan 198.51.100.0/24".into(),
        edit: Edit::Revoke { service, source },
        until: 1_795_323_600,
    };
    assert_eq!(loaded.temporary, [temporary]);
    // Without a word of it, what leaves is free.
    assert!(!read("version = 1\n").policy.egress_deny);
    assert!(
        !read("version = 1\ndefaults.egress = \"allow\"\n")
            .policy
            .egress_deny
    );
}

#[test]
fn mistakes_in_egress_rules_are_found_in_one_pass() {
    let text = r#"version = 1
[defaults]
egress = "reject"
[groups]
a = ["@b"]
b = ["@a"]
[[service]]
name = "web"
ports = ["tcp/443"]
allow = []
[[egress]]
name = "web"
allow = ["any"]
to = ["0.0.0.0/0", "@nobody", "10.0.0.0/33"]
[[egress]]
ports = []
to = "any"
[[egress]]
name = "No"
ports = ["tcp", "udp/53-1"]
to = [{ source = "10.0.0.1", until = 7 }]
[[egress]]
name = "x"
to = ["10.0.0.1"]
deny = ["::/0"]
[[egress]]
name = "x"
ports = 53
"#;
    let expected = r#"policy.toml:3:10: unknown default "reject" ("deny" or "allow")
    3 | egress = "reject"
      |          ^^^^^^^^
  hint: did you mean "deny"?

policy.toml:6:6: group "a" contains itself: a -> b -> a
    6 | b = ["@a"]
      |      ^^^^
  hint: take one of these names out

policy.toml:12:8: egress rule "web" has the name of a service (line 8)
   12 | name = "web"
      |        ^^^^^
  hint: services and egress rules are told apart by their names: give it another

policy.toml:13:1: unknown key "allow" in an egress rule (name, to, ports, deny)
   13 | allow = ["any"]
      | ^^^^^
  hint: destinations stand in "to"

policy.toml:14:7: "0.0.0.0/0" means everybody, which is written "any"
   14 | to = ["0.0.0.0/0", "@nobody", "10.0.0.0/33"]
      |       ^^^^^^^^^^^
  hint: write "any"

policy.toml:14:20: unknown group "@nobody"
   14 | to = ["0.0.0.0/0", "@nobody", "10.0.0.0/33"]
      |                    ^^^^^^^^^
  hint: the policy has @a, @b

policy.toml:14:31: "10.0.0.0/33" has a prefix length of 33, but an IPv4 address has 32 bits
   14 | to = ["0.0.0.0/0", "@nobody", "10.0.0.0/33"]
      |                               ^^^^^^^^^^^^^
  hint: a length of 1 to 32 is accepted

policy.toml:15:1: this egress rule has no name
   15 | [[egress]]
      | ^^^^^^^^^^
  hint: write name = "backup"

policy.toml:16:9: egress rule "?" has no ports
   16 | ports = []
      |         ^^
  hint: leave "ports" out for every port and protocol

policy.toml:17:6: "to" is a string, not a list
   17 | to = "any"
      |      ^^^^^
  hint: write to = ["any"]

policy.toml:19:8: "No" cannot name an egress rule
   19 | name = "No"
      |        ^^^^
  hint: names have 1 to 63 of a-z, 0-9, ".", "_" and "-", and begin with a letter or a digit

policy.toml:20:11: egress rule "No": "tcp" has no port
   20 | ports = ["tcp", "udp/53-1"]
      |           ^^^
  hint: write "tcp/8443" or "tcp/1-65535"

policy.toml:20:22: egress rule "No": the range 53-1 is reversed
   20 | ports = ["tcp", "udp/53-1"]
      |                      ^^^^
  hint: write "1-53"

policy.toml:21:38: "until" is not a date with time and offset
   21 | to = [{ source = "10.0.0.1", until = 7 }]
      |                                      ^
  hint: write a time such as 2026-11-22T05:00:00Z

policy.toml:25:9: "::/0" means everybody, which is written "any"
   25 | deny = ["::/0"]
      |         ^^^^^^
  hint: write "any"

policy.toml:27:8: egress rule "x" is defined already (line 23)
   27 | name = "x"
      |        ^^^
  hint: give it another name, or join the two

policy.toml:28:9: "ports" is a number, not a list
   28 | ports = 53
      |         ^^
  hint: write ports = ["tcp/8443"]"#;
    assert_eq!(errors(text), expected);
    assert_eq!(
        errors("version = 1\negress = \"deny\"\n"),
        "policy.toml:2:10: \"egress\" is a string, not a list of tables\n    2 | egress = \"deny\"\n      |          ^^^^^^\n  \
         hint: each egress rule begins with [[egress]]"
    );
}

#[test]
fn egress_rules_that_do_nothing_are_warned_of() {
    let messages = |text: &str| -> Vec<String> {
        let warnings = read(&format!("version = 1\n{text}")).warnings;
        warnings
            .iter()
            .map(|warning| format!("{}: {}", warning.place.line, warning.message))
            .collect()
    };
    let rule = |name: &str, keys: &str| format!("[[egress]]\nname = \"{name}\"\n{keys}\n");
    let deny = "defaults.egress = \"deny\"\n";
    assert_eq!(
        messages(&format!(
            "{}{}",
            rule("a", "to = [\"10.0.0.0/8\"]"),
            rule("b", "to = [\"any\"]\nports = [\"tcp/1\"]")
        )),
        ["4: the default for egress is to allow: what \"to\" lists is counted, not opened"]
    );
    // A deny works under either default.
    assert_eq!(
        messages(&rule("a", "ports = [\"tcp/25\"]\ndeny = [\"any\"]")),
        [""; 0]
    );
    let nothing = "2: the default for egress is to deny, and no rule opens anything: this host only answers";
    assert_eq!(messages(deny), [nothing]);
    assert_eq!(
        messages(&format!("{deny}{}", rule("a", "to = []"))),
        [nothing, "4: egress rule \"a\" opens nothing and denies nothing"]
    );
    let dns = "2: no egress rule opens DNS (udp/53, tcp/53): this host will not find names";
    assert_eq!(
        messages(&format!(
            "{deny}{}",
            rule("a", "ports = [\"tcp/443\"]\nto = [\"any\"]")
        )),
        [dns]
    );
    for open in [
        "",
        "ports = [\"udp/1-60\"]\n",
        "ports = [\"tcp/53\"]\n",
        "ports = [\"tcp/853\"]\n",
    ] {
        let rule = rule("a", &format!("{open}to = [\"192.0.2.53\"]"));
        assert_eq!(messages(&format!("{deny}{rule}")), [""; 0], "{open}");
    }
    assert_eq!(
        messages(&format!(
            "{deny}{}",
            rule(
                "a",
                "to = [\"127.0.0.0/8\", \"10.0.0.1/8\", \"224.0.0.251\", \"::1\"]"
            )
        )),
        [
            "5: 127.0.0.0/8 can never match: packets to the loopback network never leave this host",
            "5: host bits are set in \"10.0.0.1/8\"; read as 10.0.0.0/8",
            "5: ::1 can never match: packets to this host itself never leave this host",
        ]
    );
    assert_eq!(
        messages(&format!(
            "{deny}{}",
            rule("a", "to = [\"any\"]\nports = [\"tcp/50-60\", \"tcp/53\"]")
        )),
        ["6: egress rule \"a\" names tcp/53 twice: \"tcp/50-60\" at policy.toml:6:10 holds it"]
    );
}

#[test]
fn a_word_of_the_other_kind_or_type_is_told_what_to_write() {
    let text = "version = 1\n[defaults]\ningress = true\negress = \"Accept\"\n[[service]]\nname = \"web\"\n\
                ports = [\"tcp/80\"]\nto = [\"any\"]\n";
    let error = parse(text, Path::new("policy.toml"), 0).expect_err("three mistakes");
    let hints: Vec<_> = error
        .errors
        .iter()
        .filter_map(|each| each.hint.as_deref())
        .collect();
    assert_eq!(
        hints,
        [
            "write ingress = \"deny\" or ingress = \"allow\"",
            "did you mean \"allow\"?",
            "sources stand in \"allow\"; destinations are for [[egress]]",
        ]
    );
    assert_eq!(error.errors.len(), 3, "{error}");
}
