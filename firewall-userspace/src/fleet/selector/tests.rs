use super::*;
use proptest::prelude::*;

fn labels(node: &str, pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()));
    Labels::new(node, pairs).unwrap()
}

fn selector(text: &str) -> Selector {
    Selector::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn every_form_is_read_and_means_what_it_says() {
    let payments = labels("pay-1.example", &[("role", "payments"), ("zone", "eu-1")]);
    let bare = labels("db-1", &[]);
    for (text, on_payments, on_bare) in [
        ("*", true, true),
        (" * ", true, true),
        ("role=payments", true, false),
        ("role = payments", true, false),
        ("role==payments", true, false),
        ("role=payment", false, false),
        ("role!=payments", false, true),
        ("role != web", true, true),
        ("role, role!=web", true, false),
        ("zone in (eu-1, eu-2)", true, false),
        ("zone in (eu-2)", false, false),
        ("zone notin (eu-2,eu-3)", true, true),
        ("zone not in (eu-1)", false, true),
        ("zone", true, false),
        ("!zone", false, true),
        ("! zone", false, true),
        ("role=payments,zone in (eu-1,eu-2),!canary", true, false),
        ("role=payments, canary", false, false),
        ("name=db-1", false, true),
        ("name in (db-1, pay-1.example)", true, true),
        ("name", true, true),
    ] {
        let read = selector(text);
        assert_eq!(read.matches(&payments), on_payments, "{text} on payments");
        assert_eq!(read.matches(&bare), on_bare, "{text} on a node without labels");
    }
}

#[test]
fn one_meaning_is_shown_in_one_form() {
    for (text, shown) in [
        ("role==payments ,zone!=  eu-1", "role=payments, zone!=eu-1"),
        ("zone in (b,a, b)", "zone in (a, b)"),
        ("zone in (a)", "zone=a"),
        ("zone not in (a)", "zone!=a"),
        ("! gpu", "!gpu"),
        ("  *", "*"),
    ] {
        assert_eq!(selector(text).to_string(), shown);
    }
}

#[test]
fn what_is_no_selector_is_refused_with_the_forms() {
    for (text, message, pointed) in [
        ("", "a selector without a condition", ""),
        ("  ", "a selector without a condition", "  "),
        (",", "a condition is missing beside this comma", ""),
        ("role=a,", "a condition is missing beside this comma", ""),
        ("role=a, *", "\"*\" stands for every node, and stands alone", "*"),
        ("role=", "a value of \"role\" is missing", "role="),
        ("=a", "\"\" cannot be the key of a label", "=a"),
        ("zone in ()", "\"zone in ()\" has no values", "zone in ()"),
        ("zone in (a,)", "a value of \"zone\" is missing", "zone in (a,)"),
        ("zone in (a", "a \"(\" that is not closed", "("),
        ("zone in a)", "a \")\" too many", ")"),
        ("zone in ((a))", "a \"(\" too many", "("),
        (
            "zone in (a) b",
            "\"zone in (a) b\" goes on behind its values",
            "zone in (a) b",
        ),
        (
            "zone of (a)",
            "\"zone of (a)\" says neither \"in\" nor \"notin\" of a label",
            "zone of (a)",
        ),
        (
            "role web",
            "\"role web\" cannot be the key of a label",
            "role web",
        ),
        (
            "role=we b",
            "\"we b\" cannot be the value of a label",
            "role=we b",
        ),
        (
            "role=a || role=b",
            "\"a || role=b\" cannot be the value of a label",
            "role=a || role=b",
        ),
        ("name=a/b", "\"a/b\" cannot name a node", "name=a/b"),
        (
            "role=web*",
            "\"web*\" cannot be the value of a label",
            "role=web*",
        ),
        ("rôle=web", "\"rôle\" cannot be the key of a label", "rôle=web"),
        (
            "role=\nweb\nx",
            "\"web\nx\" cannot be the value of a label",
            "role=\nweb\nx",
        ),
        ("!", "\"\" cannot be the key of a label", "!"),
        ("null", "", ""),
    ] {
        let read = Selector::parse(text);
        if message.is_empty() {
            // A word by itself is a label that must be there.
            assert!(read.is_ok(), "{text}");
            continue;
        }
        let error = read.expect_err(text);
        assert_eq!(error.message, message, "{text}");
        assert_eq!(text.get(error.at.clone()), Some(pointed), "{text}");
        assert!(!error.hint.is_empty());
    }
    assert_eq!(
        Selector::parse("").unwrap_err().hint,
        "every node is written \"*\""
    );
    assert!(
        Selector::parse("role=a || role=b")
            .unwrap_err()
            .hint
            .contains("role in (a, b)")
    );
    assert!(Selector::parse(&"a".repeat(MAX_TEXT + 1)).is_err());
}

#[test]
fn contradictions_are_found_and_nothing_else() {
    for (one, other, overlap) in [
        ("*", "*", true),
        ("role=a", "*", true),
        ("role=a", "role=b", false),
        ("role=a", "role!=a", false),
        ("role=a", "role!=b", true),
        ("role=a", "zone=b", true),
        ("role in (a, b)", "role in (b, c)", true),
        ("role in (a, b)", "role in (c, d)", false),
        ("role in (a, b)", "role notin (a, b)", false),
        ("role in (a, b)", "role notin (a), role notin (b)", false),
        ("role", "!role", false),
        ("role", "role notin (a, b)", true),
        ("!role", "role notin (a)", true),
        ("!role", "role=a", false),
        ("name=a", "name=b", false),
        ("!name", "*", false),
        ("name notin (a)", "name notin (b)", true),
        ("role=a, role=b", "*", false),
    ] {
        let (one, other) = (selector(one), selector(other));
        assert_eq!(one.may_overlap(&other), overlap, "{one} and {other}");
        assert_eq!(other.may_overlap(&one), overlap, "{other} and {one}");
    }
    assert_eq!(selector("role=a, zone, role=b").contradiction(), Some("role"));
    assert_eq!(selector("role=a, zone").contradiction(), None);
}

#[test]
fn labels_are_checked() {
    let one = |key: &str, value: &str| Labels::new("n1", [(key.to_owned(), value.to_owned())]);
    assert!(one("role", "web").is_ok());
    assert!(one("example.com/role", "a@b:c+d/e").is_ok());
    assert_eq!(one("name", "n1").unwrap().node(), "n1");
    assert!(matches!(one("name", "n2"), Err(LabelError::Name { .. })));
    assert!(matches!(one("", "a"), Err(LabelError::Key(_))));
    assert!(matches!(one("ro le", "a"), Err(LabelError::Key(_))));
    assert!(matches!(one("role", ""), Err(LabelError::Value { .. })));
    assert!(matches!(one("role", "a\nb"), Err(LabelError::Value { .. })));
    assert!(matches!(
        one("role", &"a".repeat(254)),
        Err(LabelError::Value { .. })
    ));
    for name in ["", "-a", "a/b", "../a", "a b", "ä", &"a".repeat(254)] {
        assert!(
            matches!(Labels::new(name, []), Err(LabelError::Node(_))),
            "{name}"
        );
    }
    let many = (0..64).map(|n| (format!("k{n}"), "v".to_owned()));
    assert!(matches!(Labels::new("n1", many), Err(LabelError::TooMany(65))));
    assert!(serde_json::from_str::<Labels>(r#"{"role":"web"}"#).is_err());
    let read: Labels = serde_json::from_str(r#"{"role":"web","name":"n1"}"#).unwrap();
    assert_eq!(
        (read.node(), read.get("role"), read.to_string().as_str()),
        ("n1", Some("web"), "role=web")
    );
    assert!(serde_json::from_str::<Labels>(r#"{"role":null,"name":"n1"}"#).is_err());
}

const KEYS: [&str; 3] = ["role", "zone", NAME];
const VALUES: [&str; 3] = ["a", "b", "c"];

fn a_condition() -> impl Strategy<Value = Condition> {
    let values = || proptest::collection::btree_set(proptest::sample::select(&VALUES[..]), 1..3);
    let owned = |values: BTreeSet<&str>| values.into_iter().map(str::to_owned).collect();
    let wants = prop_oneof![
        Just(Wants::Any),
        Just(Wants::None),
        values().prop_map(move |values| Wants::In(owned(values))),
        values().prop_map(move |values| Wants::NotIn(owned(values))),
    ];
    (proptest::sample::select(&KEYS[..]), wants).prop_map(|(key, wants)| Condition {
        key: key.to_owned(),
        wants,
    })
}

fn a_selector() -> impl Strategy<Value = Selector> {
    proptest::collection::vec(a_condition(), 0..5).prop_map(Selector)
}

/// All nodes that the conditions above can tell apart: each label missing, one of the values, or another.
fn all_nodes() -> Vec<Labels> {
    let of = |extra: &'static [Option<&'static str>]| {
        let values = VALUES.iter().map(|value| Some(*value)).chain([Some("other")]);
        values.chain(extra.iter().copied()).collect::<Vec<_>>()
    };
    let mut nodes = Vec::new();
    for name in of(&[]) {
        for role in of(&[None]) {
            for zone in of(&[None]) {
                let label =
                    |key: &str, value: Option<&str>| value.map(|value| (key.to_owned(), value.to_owned()));
                let pairs = [label("role", role), label("zone", zone)];
                nodes.push(Labels::new(name.unwrap(), pairs.into_iter().flatten()).unwrap());
            }
        }
    }
    nodes
}

proptest! {
    #[test]
    fn what_is_shown_reads_back_the_same(selector in a_selector()) {
        prop_assert_eq!(Selector::parse(&selector.to_string()), Ok(selector));
    }

    #[test]
    fn overlap_is_what_a_walk_over_all_nodes_finds(one in a_selector(), other in a_selector()) {
        let both = all_nodes().iter().any(|node| one.matches(node) && other.matches(node));
        prop_assert_eq!(one.may_overlap(&other), both, "{} and {}", one, other);
        prop_assert_eq!(one.contradiction().is_none(), all_nodes().iter().any(|node| one.matches(node)));
    }

    #[test]
    fn no_text_panics_and_errors_point_into_it(text in "[a-c=!,() *\u{e4}n]{0,24}") {
        match Selector::parse(&text) {
            Ok(read) => prop_assert_eq!(Selector::parse(&read.to_string()), Ok(read)),
            Err(error) => prop_assert!(text.get(error.at).is_some()),
        }
    }
}
