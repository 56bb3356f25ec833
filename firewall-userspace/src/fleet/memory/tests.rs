use super::super::keys::{ISSUED, document};
use super::super::statement::{BanTerms, Kind};
use super::*;
use proptest::prelude::*;

fn verified(statement: Statement) -> Verified {
    Verified {
        digest: Digest::of(&statement.to_bytes()),
        statement,
        signer: "alice@example.org".into(),
        fingerprint: "SHA256:x".into(),
    }
}

fn ban(kind: Kind, version: u64, expires: Option<u64>) -> Verified {
    verified(Statement {
        kind,
        name: "198.51.100.7".into(),
        version,
        expires,
        text: BanTerms {
            until: expires,
            why: String::new(),
        }
        .to_text(),
        ..document("x", 1)
    })
}

#[test]
fn older_versions_and_other_texts_are_refused() {
    let mut memory = Memory::default();
    let second = verified(document("payments", 2));
    assert_eq!(memory.judge(&second), Ok(News::New));
    assert!(memory.accept(&second));
    assert_eq!(memory.judge(&second), Ok(News::Same));
    assert!(!memory.accept(&second));
    assert_eq!(
        memory.judge(&verified(document("payments", 1))),
        Err(TrustError::Older { version: 1, seen: 2 })
    );
    let forked = verified(Statement {
        nodes: "*".into(),
        ..document("payments", 2)
    });
    assert_eq!(memory.judge(&forked), Err(TrustError::Replayed { version: 2 }));
    assert_eq!(memory.judge(&verified(document("payments", 3))), Ok(News::New));
    assert_eq!(
        memory.judge(&verified(document("ledger", 1))),
        Ok(News::New),
        "each name has its own"
    );
    // A deletion counts on, and what was before it does not come back.
    let deletion = Statement {
        kind: Kind::Delete,
        expires: None,
        text: String::new(),
        ..document("payments", 3)
    };
    assert!(memory.accept(&verified(deletion)));
    assert!(memory.judge(&second).is_err());
    assert!(memory.judge(&verified(document("payments", 3))).is_err());
    assert_eq!(memory.judge(&verified(document("payments", 4))), Ok(News::New));
}

#[test]
fn it_outlives_the_process_and_says_when_it_is_damaged() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("memory.json");
    assert_eq!(Memory::load(&path).expect("none yet"), Memory::default());
    let mut memory = Memory::default();
    memory.accept(&verified(document("payments", 2)));
    memory.accept(&ban(Kind::Ban, 1, None));
    memory.save(&path).expect("saved");
    assert_eq!(Memory::load(&path).expect("loaded"), memory);
    let bytes = std::fs::read(&path).expect("read");
    for damaged in [&bytes[..bytes.len() / 2], b"", b"null", b"{}"] {
        std::fs::write(&path, damaged).expect("written");
        let error = Memory::load(&path).expect_err("damaged").to_string();
        assert!(
            error.ends_with("memory.json is not what was written there"),
            "{error}"
        );
    }
}

#[test]
fn no_clock_is_before_what_was_signed() {
    let mut memory = Memory::default();
    assert_eq!(memory.clock(5), 5);
    memory.accept(&verified(document("payments", 2)));
    assert_eq!(memory.clock(5), ISSUED);
    assert_eq!(memory.clock(ISSUED + 1), ISSUED + 1);
    // An older statement of another name does not turn it back.
    memory.accept(&verified(Statement {
        issued: ISSUED - 9,
        ..document("ledger", 1)
    }));
    assert_eq!(memory.clock(5), ISSUED);
}

#[test]
fn a_ban_is_forgotten_once_none_of_its_statements_would_be_taken() {
    let mut memory = Memory::default();
    memory.accept(&ban(Kind::Ban, 1, Some(ISSUED + 100)));
    memory.accept(&ban(Kind::Unban, 2, Some(ISSUED + 10)));
    assert!(!memory.prune(ISSUED + 99), "the ban itself could come again");
    assert!(memory.judge(&ban(Kind::Ban, 1, Some(ISSUED + 100))).is_err());
    assert!(memory.prune(ISSUED + 100));
    assert_eq!(memory.last(Subject::Ban, "198.51.100.7"), None);
    memory.accept(&ban(Kind::Ban, 1, None));
    memory.accept(&ban(Kind::Unban, 2, Some(ISSUED + 10)));
    assert!(!memory.prune(u64::MAX), "one for good never expires");
    memory.accept(&verified(document("payments", 2)));
    assert!(!memory.prune(u64::MAX), "documents are never forgotten");
}

proptest! {
    /// Whatever comes in whatever order, the version of a name never goes back and never changes its text.
    #[test]
    fn versions_only_rise(sent in proptest::collection::vec((1u64..6, 0u8..3), 1..40)) {
        let mut memory = Memory::default();
        let mut last: Option<(u64, u8)> = None;
        for (version, text) in sent {
            let text = format!("{}# {text}\n", document("payments", 1).text);
            let fork = text.as_bytes()[text.len() - 2];
            let statement = verified(Statement { text, ..document("payments", version) });
            match memory.judge(&statement) {
                Ok(news) => {
                    prop_assert_eq!(news == News::Same, last == Some((version, fork)));
                    prop_assert!(last.is_none_or(|last| last == (version, fork) || last.0 < version));
                    memory.accept(&statement);
                    last = Some((version, fork));
                }
                Err(_) => prop_assert!(last.is_some_and(|last| last.0 >= version && last != (version, fork))),
            }
        }
    }
}
