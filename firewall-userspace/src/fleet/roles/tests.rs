use super::super::keys::{ISSUED, document};
use super::*;
use std::collections::BTreeMap;

fn roles(text: &str) -> Roles {
    Roles::parse(text, Path::new("roles.toml")).expect("roles")
}

fn refused(text: &str) -> String {
    Roles::parse(text, Path::new("/etc/ravelin/roles.toml"))
        .expect_err("refused")
        .to_string()
}

fn labels(role: &str) -> Labels {
    Labels::new("web-1", BTreeMap::from([("role".to_owned(), role.to_owned())])).expect("labels")
}

/// Whether alice may say this on a node of that role.
fn asks(roles: &Roles, statement: &Statement, role: &str) -> Result<(), String> {
    let touched = (statement.kind == Kind::Policy).then(|| Touched::by(statement).expect("a document"));
    roles.permit(
        &["alice@example.org".to_owned()],
        statement,
        touched.as_ref(),
        Some(&labels(role)),
    )
}

fn with(text: &str) -> Statement {
    let mut statement = document("payments", 1);
    statement.text += text;
    statement
}

#[test]
fn a_role_bounds_names_nodes_and_days() {
    let roles = roles(
        "[[role]]\nsigners = [\"alice@*\"]\npolicies = [\"payments*\"]\nservices = [\"payments-*\"]\ngroups = [\"front*\"]\n\
         nodes = \"role=payments\"\nmax_days = 90\n\n[[role]]\nsigners = [\"bob@*\"]\nban = true\n",
    );
    assert_eq!(asks(&roles, &document("payments", 1), "payments"), Ok(()));
    assert_eq!(asks(&roles, &document("payments-eu", 1), "payments"), Ok(()));
    for (statement, role, words) in [
        (
            document("ledger", 1),
            "payments",
            "no role of this signer names the document \"ledger\"",
        ),
        (
            document("payments", 1),
            "web",
            "its role is for nodes with role=payments only",
        ),
        (
            Statement {
                expires: None,
                ..document("payments", 1)
            },
            "payments",
            "at most 90 days",
        ),
        (
            Statement {
                expires: Some(ISSUED + 90 * DAY + 1),
                ..document("payments", 1)
            },
            "payments",
            "at most 90 days",
        ),
        (
            with("[[service]]\nname = \"ssh\"\nports = [\"tcp/22\"]\n"),
            "payments",
            "names the service \"ssh\"",
        ),
        (
            with("[[service]]\nports = [\"tcp/22\"]\n"),
            "payments",
            "names the service \"\"",
        ),
        (
            with("[[egress]]\nname = \"any\"\nto = [\"any\"]\n"),
            "payments",
            "names the egress rule \"any\"",
        ),
        (
            with("[groups]\nfrontends = []\nbackends = []\n"),
            "payments",
            "names the group \"backends\"",
        ),
        (
            with("[defaults]\ningress = \"allow\"\n"),
            "payments",
            "\"defaults\" reaches the services of others",
        ),
        (
            with("[whatever]\nx = 1\n"),
            "payments",
            "\"whatever\" reaches the services of others",
        ),
    ] {
        let error = asks(&roles, &statement, role).expect_err(words);
        assert!(error.contains(words), "{error}");
    }
    let mut denies = document("payments", 1);
    denies.text = denies
        .text
        .replace("version = 1\n", "version = 1\ndeny = [\"192.0.2.1\"]\n");
    assert!(
        asks(&roles, &denies, "payments")
            .expect_err("deny")
            .contains("\"deny\" reaches the services")
    );
    assert_eq!(
        asks(&roles, &with("[groups]\nfrontends = []\n"), "payments"),
        Ok(())
    );
    let deletion = Statement {
        kind: Kind::Delete,
        expires: None,
        text: String::new(),
        ..document("payments", 2)
    };
    assert_eq!(asks(&roles, &deletion, "payments"), Ok(()), "a deletion lasts");
    let ban = Statement {
        kind: Kind::Ban,
        name: "192.0.2.1".into(),
        text: String::new(),
        ..document("x", 1)
    };
    assert!(
        asks(&roles, &ban, "payments")
            .expect_err("a ban")
            .contains("ban = true")
    );
    let bob = ["bob@example.org".to_owned()];
    assert_eq!(roles.permit(&bob, &ban, None, None), Ok(()));
    assert!(roles.permit(&bob, &document("payments", 1), None, None).is_err());
    let none = roles.permit(&["mallory".to_owned()], &ban, None, None);
    assert_eq!(none, Err("no role is for this signer".into()));
}

#[test]
fn roles_do_not_add_up_and_the_nearest_refusal_is_told() {
    let roles = roles(
        "[[role]]\nsigners = [\"alice@*\"]\npolicies = [\"*\"]\nservices = [\"payments-*\"]\n\
         [[role]]\nsigners = [\"*\", \"!bob@*\"]\npolicies = [\"web*\"]\n",
    );
    let both = with("[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\n");
    assert!(
        asks(&roles, &both, "x")
            .expect_err("half")
            .contains("the service \"web\"")
    );
    let mut named = both.clone();
    named.name = "web".into();
    named.text = named.text.replace("name = \"payments\"", "name = \"web\"");
    assert_eq!(asks(&roles, &named, "x"), Ok(()));
    let bob = ["bob@example.org".to_owned()];
    assert!(roles.permit(&bob, &named, None, None).is_err());
    // Where there is no node, nodes bound nothing.
    let bounded = self::roles("[[role]]\nsigners = [\"*\"]\npolicies = [\"*\"]\nnodes = \"role=db\"\n");
    assert_eq!(bounded.permit(&bob, &named, None, None), Ok(()));
}

#[test]
fn the_text_says_what_is_signed() {
    let statement = document("payments", 1);
    let touched = Touched::by(&statement).expect("a document");
    assert_eq!(
        (touched.services.as_slice(), touched.wide.is_empty()),
        (&["payments-api".to_owned()][..], true)
    );
    for (from, to, words) in [
        (
            "name = \"payments\"",
            "name = \"ledger\"",
            "its text has another name",
        ),
        (
            "nodes = \"role=payments\"",
            "nodes = \"*\"",
            "it is signed for the nodes role=payments",
        ),
        (
            "nodes = \"role=payments\"",
            "nodes = 7",
            "it is signed for the nodes",
        ),
        ("[policy]", "[polity]", "no [policy]"),
        ("version = 1", "version = ", "its text is not TOML"),
        ("version = 1", "\0", "its text is not TOML"),
    ] {
        let text = statement.text.replacen(from, to, 1);
        let error = Touched::by(&Statement {
            text,
            ..statement.clone()
        })
        .expect_err(to);
        assert!(error.contains(words), "{error}");
    }
    // Deep nesting is refused, not followed.
    for deep in [
        "x = ".to_owned() + &"[".repeat(100_000),
        "[".repeat(100_000),
        "x.".repeat(100_000) + "y = 1\n",
    ] {
        let text = deep + &statement.text;
        assert!(
            Touched::by(&Statement {
                text,
                ..statement.clone()
            })
            .is_err()
        );
    }
    let spaced = Statement {
        nodes: "role = payments".into(),
        ..statement
    };
    assert!(Touched::by(&spaced).is_ok(), "the same selector in other words");
}

#[test]
fn mistakes_carry_their_place() {
    for (text, words) in [
        ("", "no [[role]], so nobody could sign anything"),
        (
            "[[role]]\npolicies = [\"*\"]\n",
            "roles.toml:1:1: missing field `signers`",
        ),
        (
            "[[role]]\nsigners = [\"a\"]\n",
            "roles.toml:1:1: a role that permits nothing",
        ),
        (
            "[[role]]\nsigners = []\npolicies = [\"*\"]\n",
            "a role without signers",
        ),
        (
            "[[role]]\nsigners = [\"a\"]\npolicy = [\"*\"]\n",
            "roles.toml:3:1: unknown key \"policy\"",
        ),
        (
            "[[role]]\nsigners = [\"a\"]\nban = true\nmax_days = 0\n",
            "max_days = 0 permits nothing",
        ),
        (
            "[[role]]\nsigners = [\"a\"]\npolicies = [\"*\"]\nnodes = \"role=\"\n",
            "roles.toml:4:9",
        ),
        ("[[roles]]\n", "unknown key \"roles\""),
        ("x", "roles.toml:1:2"),
    ] {
        let error = refused(text);
        assert!(error.contains(words), "{text:?}: {error}");
    }
}
