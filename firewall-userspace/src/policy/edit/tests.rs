use super::*;
use proptest::prelude::*;

const NOW: u64 = 1_795_316_400; // 2026-11-22T03:00:00Z

const POLICY: &str = r#"# node policy
version = 1
deny = ["@blocked"]     # beats every allow

[groups]
web = ["10.20.0.0/16", "@office"]
office = [
    "203.0.113.0/24", # main building
]
blocked = { file = "lists/blocked.txt" }

# the money
[[service]]
name  = "payments-api"
ports = ["tcp/8443"]    # public
allow = [
    "@web",          # our own
    "198.51.100.7",  # the bastion
    # partners below
]

[[service]]
name = "dns"
ports = ["udp/53"]
"#;

fn allow(service: &str, source: &str, for_seconds: Option<u64>) -> Edit {
    Edit::Allow {
        service: service.into(),
        source: source.into(),
        for_seconds,
    }
}

fn revoke(service: &str, source: &str) -> Edit {
    Edit::Revoke {
        service: service.into(),
        source: source.into(),
    }
}

fn deny(source: &str, for_seconds: Option<u64>) -> Edit {
    Edit::Deny {
        source: source.into(),
        for_seconds,
    }
}

fn undeny(source: &str) -> Edit {
    Edit::Undeny {
        source: source.into(),
    }
}

fn set(name: &str, ports: Option<&[&str]>, allow: Option<&[&str]>) -> Edit {
    let owned = |items: &[&str]| items.iter().map(|item| item.to_string()).collect();
    Edit::ServiceSet {
        name: name.into(),
        ports: ports.map(owned),
        allow: allow.map(owned),
        deny: None,
    }
}

fn done(text: &str, change: &Edit) -> String {
    edit(text, change, NOW).unwrap_or_else(|error| panic!("{change:?}: {error}"))
}

fn fails(text: &str, change: &Edit) -> String {
    edit(text, change, NOW).unwrap_err().to_string()
}

/// The lines that differ, old ones with `-`, new ones with `+`. For changes in one place.
fn changed(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.split('\n').collect(), new.split('\n').collect());
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[same..], &new[same..]);
    let tail = old
        .iter()
        .rev()
        .zip(new.iter().rev())
        .take_while(|(a, b)| a == b)
        .count();
    let gone = old[..old.len() - tail].iter().map(|line| format!("-{line}"));
    let come = new[..new.len() - tail].iter().map(|line| format!("+{line}"));
    gone.chain(come).collect::<Vec<_>>().join("\n")
}

#[test]
fn allow_adds_a_line_to_a_list_of_lines() {
    let new = done(POLICY, &allow("payments-api", "192.0.2.1/32", None));
    assert_eq!(changed(POLICY, &new), "+    \"192.0.2.1\",");
    let at = new.find("192.0.2.1").unwrap();
    assert!(
        new[..at]
            .trim_end_matches([' ', '"'])
            .ends_with("# the bastion\n")
    );
    assert_eq!(done(&new, &revoke("payments-api", "192.0.2.1")), POLICY);
}

#[test]
fn allow_makes_the_list_when_it_is_missing() {
    let new = done(POLICY, &allow("dns", "any", None));
    assert_eq!(changed(POLICY, &new), "+allow = [\"any\"]");
    let aligned = "version = 1\n[[service]]\n  name  = \"a\"\n  ports = [\"tcp/1\"] # x\n  deny  = []\n";
    let new = done(aligned, &allow("a", "any", None));
    assert_eq!(changed(aligned, &new), "+  allow = [\"any\"]");
    assert!(new.contains("# x\n  allow"));
}

#[test]
fn deny_goes_before_the_first_table() {
    let new = done(POLICY, &deny("192.0.2.0/24", Some(7200)));
    assert_eq!(
        changed(POLICY, &new),
        "-deny = [\"@blocked\"]     # beats every allow\n\
         +deny = [\"@blocked\", { source = \"192.0.2.0/24\", until = 2026-11-22T05:00:00Z }]     # beats every allow"
    );
    assert_eq!(done(&new, &undeny("192.0.2.0/24")), POLICY);
    let bare = "# head\nversion = 1 # one\n\n[groups]\n";
    assert_eq!(
        done(bare, &deny("192.0.2.1", None)),
        "# head\nversion = 1 # one\ndeny = [\"192.0.2.1\"]\n\n[groups]\n"
    );
    assert_eq!(
        done("version = 1", &deny("192.0.2.1", None)),
        "version = 1\ndeny = [\"192.0.2.1\"]\n"
    );
}

#[test]
fn another_end_replaces_the_entry() {
    let first = done(POLICY, &allow("payments-api", "192.0.2.1", Some(60)));
    let later = done(&first, &allow("payments-api", "192.0.2.1/32", Some(120)));
    assert_eq!(
        changed(&first, &later),
        "-    { source = \"192.0.2.1\", until = 2026-11-22T03:01:00Z },\n\
         +    { source = \"192.0.2.1\", until = 2026-11-22T03:02:00Z },"
    );
    let for_good = done(&later, &allow("payments-api", "192.0.2.1", None));
    assert_eq!(changed(POLICY, &for_good), "+    \"192.0.2.1\",");
    assert_eq!(
        fails(&for_good, &allow("payments-api", "192.0.2.1", Some(5))),
        "192.0.2.1 is in the allow list of service \"payments-api\" for good (line 19); take it out first to give it an end"
    );
    assert_eq!(done(&later, &revoke("payments-api", "192.0.2.1")), POLICY);
}

#[test]
fn what_is_so_already_is_told_apart() {
    let unchanged = |change| match edit(POLICY, &change, NOW) {
        Err(EditError::Unchanged(text)) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        unchanged(allow("payments-api", "198.51.100.7/32", None)),
        "198.51.100.7 is in the allow list of service \"payments-api\" already (line 18)"
    );
    assert_eq!(
        unchanged(deny("@blocked", None)),
        "@blocked is in the deny list of the policy already (line 3)"
    );
    assert_eq!(
        unchanged(undeny("192.0.2.1")),
        "192.0.2.1 is not in the deny list of the policy (list files are not looked into here: @blocked is lists/blocked.txt)"
    );
    assert_eq!(
        unchanged(revoke("payments-api", "192.0.2.1")),
        "192.0.2.1 is not in the allow list of service \"payments-api\""
    );
    assert_eq!(
        unchanged(set("dns", Some(&["udp/53"]), Some(&[]))),
        "service \"dns\" is so already"
    );
}

#[test]
fn revoking_a_part_says_where_it_comes_from() {
    assert_eq!(
        fails(POLICY, &revoke("payments-api", "203.0.113.9")),
        "203.0.113.9 is not in the allow list of service \"payments-api\" itself: it is held by @web -> @office -> 203.0.113.0/24 (line 17)\n  \
         hint: revoke @web as a whole, change what it holds, or add 203.0.113.9 to the deny list of \"payments-api\""
    );
    assert!(
        fails(POLICY, &revoke("payments-api", "@office")).contains("it is held by @web -> @office (line 17)")
    );
    let any = done(POLICY, &allow("dns", "any", None));
    assert!(fails(&any, &revoke("dns", "192.0.2.1")).contains("it is held by any (line 25)"));
    assert!(
        fails(&done(POLICY, &deny("10.0.0.0/8", None)), &undeny("10.0.0.0/9"))
            .contains("it is held by 10.0.0.0/8 (line 3)")
    );
}

#[test]
fn refuses_what_has_no_meaning() {
    assert_eq!(
        fails(POLICY, &allow("payment-api", "any", None)),
        "no service \"payment-api\"\n  hint: did you mean \"payments-api\"?"
    );
    assert_eq!(
        fails(POLICY, &allow("ssh", "any", None)),
        "no service \"ssh\"\n  hint: the policy has payments-api, dns"
    );
    assert_eq!(
        fails(POLICY, &allow("dns", "@wbe", None)),
        "no group \"@wbe\"\n  hint: did you mean \"@web\"?"
    );
    assert_eq!(
        fails(POLICY, &allow("dns", "10.0.0.1/8", None)),
        "host bits are set in \"10.0.0.1/8\"\n  hint: write \"10.0.0.0/8\" for the prefix, \"10.0.0.1\" for the host"
    );
    assert!(fails(POLICY, &allow("dns", "0.0.0.0/0", None)).ends_with("hint: write \"any\""));
    assert!(fails(POLICY, &deny("any", None)).starts_with("a deny of \"any\""));
    assert!(fails(POLICY, &allow("dns", "any", Some(0))).starts_with("an entry for no time at all"));
    assert!(fails(POLICY, &allow("dns", "any", Some(u64::MAX))).contains("past the year 9999"));
    assert!(fails("version = [", &deny("192.0.2.1", None)).starts_with("the policy:1:"));
    assert!(fails("version = 1\ndeny = 3", &deny("192.0.2.1", None)).contains("is not a list"));
}

#[test]
fn services_come_and_go() {
    let add = Edit::ServiceAdd {
        name: "web".into(),
        ports: vec!["tcp/80".into(), "tcp/443".into(), "tcp/80".into()],
        allow: vec!["any".into()],
        deny: vec!["192.0.2.1/32".into()],
    };
    let new = done(POLICY, &add);
    let block = "\n[[service]]\nname  = \"web\"\nports = [\"tcp/80\", \"tcp/443\"]\nallow = [\"any\"]\ndeny  = [\"192.0.2.1\"]\n";
    assert_eq!(new, format!("{POLICY}{block}"));
    let remove = |name: &str| Edit::ServiceRemove { name: name.into() };
    assert_eq!(done(&new, &remove("web")), POLICY);
    assert!(fails(&new, &add).starts_with("service \"web\" is there already (line 26)"));
    let without = done(POLICY, &remove("payments-api"));
    assert_eq!(
        without,
        POLICY.replace(
            &POLICY[POLICY.find("# the money").unwrap()..POLICY.rfind("[[service]]").unwrap()],
            ""
        )
    );
    let without = done(&without, &remove("dns"));
    assert!(without.ends_with("blocked = { file = \"lists/blocked.txt\" }\n"));
    let bad = Edit::ServiceAdd {
        name: "A".into(),
        ports: vec!["tcp/1".into()],
        allow: vec![],
        deny: vec![],
    };
    assert!(fails(POLICY, &bad).starts_with("\"A\" cannot name a service"));
}

#[test]
fn setting_a_list_keeps_what_stays() {
    let new = done(
        POLICY,
        &set(
            "payments-api",
            Some(&["udp/8443", "tcp/8443"]),
            Some(&["198.51.100.7", "192.0.2.1"]),
        ),
    );
    assert!(new.contains("ports = [\"tcp/8443\", \"udp/8443\"]    # public\n"));
    assert!(
        new.contains(
            "allow = [\n    \"198.51.100.7\",  # the bastion\n    \"192.0.2.1\",\n    # partners below\n]\n"
        ),
        "{new}"
    );
    let new = done(&new, &set("payments-api", None, Some(&[])));
    assert!(new.contains("allow = [\n    # partners below\n]\n"), "{new}");
    let new = done(&new, &set("payments-api", None, Some(&["any"])));
    assert!(
        new.contains("allow = [\n    # partners below\n    \"any\",\n]\n"),
        "{new}"
    );
    assert!(fails(POLICY, &set("dns", Some(&[]), None)).starts_with("service \"dns\" needs ports"));
    assert!(fails(POLICY, &set("dns", Some(&["tpc/1"]), None)).contains("did you mean \"tcp\""));
}

const LIMITED: &str = r#"version = 1

[[service]]
name  = "api"
ports = ["tcp/8443"]
allow = ["any"]

[service.limits]        # what it bears
packets = { per_source = "20k/s" }

[[service.limit]]
for = "@partners"
packets = "unlimited"   # they are known

[groups]
partners = ["192.0.2.0/24"]

[[service]]
name = "ssh"
ports = ["tcp/22"]
limits.new_connections = { per_source = "6/min" }
"#;

#[test]
fn limits_stay_and_go_with_their_service() {
    let deny = Edit::ServiceSet {
        name: "api".into(),
        ports: Some(vec!["tcp/8443".into(), "tcp/9443".into()]),
        allow: None,
        deny: Some(vec!["198.51.100.1".into()]),
    };
    assert_eq!(
        changed(LIMITED, &done(LIMITED, &deny)),
        "-ports = [\"tcp/8443\"]\n-allow = [\"any\"]\n+ports = [\"tcp/8443\", \"tcp/9443\"]\n+allow = [\"any\"]\n\
         +deny  = [\"198.51.100.1\"]"
    );
    assert_eq!(
        changed(LIMITED, &done(LIMITED, &allow("ssh", "192.0.2.1", None))),
        "+allow = [\"192.0.2.1\"]"
    );
    let remove = |name: &str| Edit::ServiceRemove { name: name.into() };
    let without = done(LIMITED, &remove("api"));
    assert_eq!(
        without,
        "version = 1\n\n[groups]\npartners = [\"192.0.2.0/24\"]\n\n[[service]]\nname = \"ssh\"\nports = [\"tcp/22\"]\n\
         limits.new_connections = { per_source = \"6/min\" }\n"
    );
    assert!(!done(LIMITED, &remove("ssh")).contains("6/min"));
    // A table of something else stands in between.
    let apart = LIMITED
        .replace("[groups]\npartners = [\"192.0.2.0/24\"]\n", "")
        .replace(
            "[service.limits]",
            "[groups]\npartners = [\"192.0.2.0/24\"]\n\n[service.limits]",
        );
    assert!(
        fails(&apart, &remove("api"))
            .starts_with("other tables stand between service \"api\" and its limits"),
        "{}",
        fails(&apart, &remove("api"))
    );
}

#[test]
fn line_ends_of_the_file_are_kept() {
    let dos = POLICY.replace('\n', "\r\n");
    let new = done(&dos, &allow("payments-api", "192.0.2.1", None));
    assert_eq!(new.matches('\n').count(), new.matches("\r\n").count());
    assert_eq!(done(&new, &revoke("payments-api", "192.0.2.1")), dos);
    let new = done(&dos, &allow("dns", "any", None));
    assert!(new.contains("\r\nallow = [\"any\"]\r\n"));
}

#[test]
fn every_layout_survives_an_allow_and_a_revoke() {
    let layouts = [
        "[]",
        "[\"any\"]",
        "[\"any\",]",
        "[ \"any\", \"10.0.0.1\" ]",
        "[\"any\", \"10.0.0.1\", ]",
        "[\n]",
        "[\n  # none yet\n]",
        "[\n\t\"any\"\n]",
        "[\n  \"any\",\n  \"10.0.0.1\" # last, with a comma\n]",
        "[\n  \"any\",\n  \"10.0.0.1\"]",
        "[\"any\",\n  \"10.0.0.1\"\n]",
        "[\n  \"any\", \"10.0.0.1\",\n  \"10.0.0.2\", \"10.0.0.3\",\n]",
        "[\n  \"any\"\n  , \"10.0.0.1\"\n]",
        "[\n  \"any\" # c\n  ,\n]",
        "[\n  { source = \"10.0.0.1\", until = 2030-01-01T00:00:00Z }, # for long\n\n  # end\n]",
    ];
    for layout in layouts {
        let text =
            format!("version = 1\n[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\nallow = {layout} # tail\n");
        let new = done(&text, &allow("a", "192.0.2.1", None));
        assert_eq!(new.matches("192.0.2.1").count(), 1, "{new}");
        let array = new
            .parse::<toml_edit::DocumentMut>()
            .unwrap_or_else(|error| panic!("{new}{error}"));
        assert!(array["service"][0]["allow"].as_array().is_some());
        assert_eq!(done(&new, &revoke("a", "192.0.2.1")), text);
    }
}

/// The policy with egress rules behind it.
fn with_egress() -> String {
    let rules = "\n# resolvers of the site\n[[egress]]\nname  = \"resolve\"\nports = [\"udp/53\"]   # and tcp?\n\
                 to    = [\"192.0.2.53\"]\n\n[[egress]]\nname = \"lan\"\nto = [\"10.0.0.0/8\"]\n";
    format!("{POLICY}{rules}")
}

fn egress_set(name: &str, ports: Option<&[&str]>, to: Option<&[&str]>, deny: Option<&[&str]>) -> Edit {
    let owned = |items: &[&str]| items.iter().map(|item| item.to_string()).collect();
    Edit::EgressSet {
        name: name.into(),
        ports: ports.map(owned),
        to: to.map(owned),
        deny: deny.map(owned),
    }
}

#[test]
fn allow_and_revoke_find_egress_rules_by_their_names() {
    let text = with_egress();
    let new = done(&text, &allow("resolve", "198.51.100.53", Some(3600)));
    assert_eq!(
        changed(&text, &new),
        "-to    = [\"192.0.2.53\"]\n\
         +to    = [\"192.0.2.53\", { source = \"198.51.100.53\", until = 2026-11-22T04:00:00Z }]"
    );
    assert_eq!(done(&new, &revoke("resolve", "198.51.100.53")), text);
    assert_eq!(
        fails(&text, &allow("resolve", "192.0.2.53", None)),
        "192.0.2.53 is in the \"to\" list of egress rule \"resolve\" already (line 30)"
    );
    assert_eq!(
        fails(&text, &revoke("lan", "10.1.0.0/16")),
        "10.1.0.0/16 is not in the \"to\" list of egress rule \"lan\" itself: it is held by 10.0.0.0/8 (line 34)\n  \
         hint: revoke 10.0.0.0/8 as a whole, change what it holds, or add 10.1.0.0/16 to the deny list of \"lan\""
    );
    assert_eq!(
        fails(&text, &allow("resolvr", "any", None)),
        "no service and no egress rule \"resolvr\"\n  hint: did you mean \"resolve\"?"
    );
    // A deny of its own goes below what it opens, and a temporary one ends like that of a service.
    let until = "deny = [{ source = \"10.9.0.0/16\", until = 2026-11-22T04:00:00Z }]\n";
    let undeny = Edit::ServiceUndeny {
        service: "lan".into(),
        source: "10.9.0.0/16".into(),
    };
    assert_eq!(
        done(&format!("{text}{until}"), &undeny),
        format!("{text}deny = []\n")
    );
}

#[test]
fn egress_rules_come_and_go() {
    let add = |name: &str, ports: &[&str], to: &[&str], deny: &[&str]| {
        let owned = |items: &[&str]| items.iter().map(|item| item.to_string()).collect();
        Edit::EgressAdd {
            name: name.into(),
            ports: owned(ports),
            to: owned(to),
            deny: owned(deny),
        }
    };
    let remove = |name: &str| Edit::EgressRemove { name: name.into() };
    let new = done(
        POLICY,
        &add("updates", &["tcp/443"], &["@web", "192.0.2.1/32"], &[]),
    );
    let block =
        "\n[[egress]]\nname  = \"updates\"\nports = [\"tcp/443\"]\nto    = [\"@web\", \"192.0.2.1\"]\n";
    assert_eq!(new, format!("{POLICY}{block}"));
    assert_eq!(done(&new, &remove("updates")), POLICY);
    let new = done(POLICY, &add("no-mail", &[], &[], &["any"]));
    assert_eq!(
        new,
        format!("{POLICY}\n[[egress]]\nname  = \"no-mail\"\ndeny  = [\"any\"]\n")
    );

    let text = with_egress();
    assert!(
        fails(&text, &add("lan", &[], &["any"], &[]))
            .starts_with("egress rule \"lan\" is there already (line 32)")
    );
    assert_eq!(
        fails(&text, &add("dns", &[], &["any"], &[])),
        "service \"dns\" is there already (line 22)\n  \
         hint: services and egress rules are told apart by their names: take another"
    );
    let service = Edit::ServiceAdd {
        name: "lan".into(),
        ports: vec!["tcp/1".into()],
        allow: vec![],
        deny: vec![],
    };
    assert!(fails(&text, &service).starts_with("egress rule \"lan\" is there already (line 32)"));
    assert!(fails(&text, &add("x", &[], &[], &[])).starts_with("an egress rule needs destinations"));
    assert!(fails(&text, &add("X", &[], &["any"], &[])).starts_with("\"X\" cannot name an egress rule"));
    assert!(fails(&text, &remove("dns")).starts_with("no egress rule \"dns\""));
    // The comment that touches it goes with it.
    let without = done(&text, &remove("resolve"));
    assert!(
        !without.contains("resolvers of the site") && without.contains("name = \"lan\""),
        "{without}"
    );
}

#[test]
fn setting_the_lists_of_an_egress_rule() {
    let text = with_egress();
    let new = done(
        &text,
        &egress_set("resolve", Some(&["udp/53", "tcp/53"]), None, Some(&["any"])),
    );
    assert_eq!(
        changed(&text, &new),
        "-ports = [\"udp/53\"]   # and tcp?\n-to    = [\"192.0.2.53\"]\n\
         +ports = [\"udp/53\", \"tcp/53\"]   # and tcp?\n+to    = [\"192.0.2.53\"]\n+deny  = [\"any\"]"
    );
    // Every port, and back.
    let every = done(&text, &egress_set("resolve", Some(&[]), None, None));
    assert_eq!(changed(&text, &every), "-ports = [\"udp/53\"]   # and tcp?");
    let again = done(&every, &egress_set("resolve", Some(&["udp/53"]), None, None));
    assert_eq!(changed(&every, &again), "+ports = [\"udp/53\"]");
    assert!(
        again.contains("name  = \"resolve\"\nports = [\"udp/53\"]\nto    ="),
        "{again}"
    );
    assert_eq!(
        fails(&text, &egress_set("lan", Some(&[]), None, None)),
        "egress rule \"lan\" is so already"
    );
    let new = done(
        &text,
        &egress_set("lan", None, Some(&[]), Some(&["10.66.0.0/16"])),
    );
    assert!(
        new.ends_with("name = \"lan\"\nto = []\ndeny = [\"10.66.0.0/16\"]\n"),
        "{new}"
    );
    assert_eq!(
        fails(&text, &egress_set("lna", None, Some(&[]), None)),
        "no egress rule \"lna\"\n  hint: did you mean \"lan\"?"
    );
    let inline = "version = 1\negress = [{ name = \"a\", ports = [\"tcp/1\"], to = [\"any\"] }]\n";
    assert!(
        fails(inline, &egress_set("a", Some(&[]), None, None))
            .starts_with("egress rule \"a\" is an inline table")
    );
    assert!(fails(inline, &egress_set("a", None, None, Some(&["10.0.0.1"]))).contains("is an inline table"));
}

/// A list of up to six distinct hosts in some layout.
fn layouts() -> impl Strategy<Value = (usize, String)> {
    let piece = ("(\n|\n  |\n\t| |)", "( |)", "( # c, d\n  |\n| |)");
    (
        proptest::collection::vec(piece, 0..6),
        any::<bool>(),
        "(\n|  # end\n| |)",
    )
        .prop_map(|(pieces, comma, tail)| {
            let count = pieces.len();
            let mut text = String::from("[");
            for (index, (before, between, after)) in pieces.into_iter().enumerate() {
                let comma = if index + 1 < count || comma { "," } else { "" };
                text += &format!("{before}\"10.0.0.{index}\"{between}{comma}{after}");
            }
            (count, text + &tail + "]")
        })
}

proptest! {
    #[test]
    fn allow_then_revoke_gives_back_the_text((count, layout) in layouts(), seconds in proptest::option::of(1u64..99999)) {
        // An empty list on one line is the one layout that is tidied up.
        prop_assume!(count > 0 || layout == "[]");
        let text = format!("version = 1\n[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\nallow = {layout}\n");
        let new = done(&text, &allow("a", "192.0.2.1", seconds));
        prop_assert!(new.parse::<toml_edit::DocumentMut>().is_ok(), "{}", new);
        prop_assert_eq!(done(&new, &revoke("a", "192.0.2.1")), text);
    }

    #[test]
    fn revoking_one_leaves_the_others((count, layout) in layouts(), index: prop::sample::Index) {
        prop_assume!(count > 0);
        let gone = index.index(count);
        let text = format!("version = 1\n[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\nallow = {layout}\n");
        let new = done(&text, &revoke("a", &format!("10.0.0.{gone}")));
        let document: toml_edit::DocumentMut = new.parse().map_err(|error| TestCaseError::fail(format!("{new}\n{error}")))?;
        let left: Vec<_> = document["service"][0]["allow"].as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_string()).collect();
        let expected: Vec<_> = (0..count).filter(|&n| n != gone).map(|n| format!("10.0.0.{n}")).collect();
        prop_assert_eq!(left, expected);
    }

    #[test]
    fn setting_any_lists_ends_with_just_those((_, layout) in layouts(), wanted in proptest::collection::vec(0u8..9, 0..6)) {
        let text = format!("version = 1\n[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\nallow = {layout}\n");
        let wanted: Vec<String> = wanted.iter().map(|n| format!("10.0.0.{n}")).collect();
        let change = Edit::ServiceSet { name: "a".into(), ports: None, allow: Some(wanted.clone()), deny: None };
        let new = match edit(&text, &change, NOW) {
            Ok(new) => new,
            Err(EditError::Unchanged(_)) => text,
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        let document: toml_edit::DocumentMut = new.parse().map_err(|error| TestCaseError::fail(format!("{new}\n{error}")))?;
        let mut left: Vec<_> = document["service"][0]["allow"].as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_string()).collect();
        let mut wanted = wanted;
        wanted.sort();
        wanted.dedup();
        left.sort();
        prop_assert_eq!(left, wanted);
    }
}

#[test]
fn a_name_of_the_other_kind_is_told_for_what_it_is() {
    let text = "version = 1\n[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\n[[egress]]\nname = \"dns\"\nto = [\"any\"]\n";
    for (change, told) in [
        (
            Edit::EgressRemove { name: "web".into() },
            "no egress rule \"web\"\n  hint: \"web\" is a service: see ravelin service --help",
        ),
        (
            Edit::ServiceRemove { name: "dns".into() },
            "no service \"dns\"\n  hint: \"dns\" is an egress rule: see ravelin egress --help",
        ),
    ] {
        assert_eq!(edit(text, &change, 0).expect_err("refused").to_string(), told);
    }
}
