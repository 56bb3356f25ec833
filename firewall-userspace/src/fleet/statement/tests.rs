use super::super::keys::{ISSUED, Keys, document, sign};
use super::*;
use proptest::prelude::*;

fn text(statement: &Statement) -> String {
    String::from_utf8(statement.to_bytes()).expect("text")
}

fn refused(bytes: &[u8]) -> String {
    Statement::parse(bytes).expect_err("refused").to_string()
}

fn ban(name: &str, until: Option<u64>, why: &str) -> Statement {
    Statement {
        kind: Kind::Ban,
        name: name.to_owned(),
        nodes: "*".to_owned(),
        text: BanTerms {
            until,
            why: why.to_owned(),
        }
        .to_text(),
        expires: until,
        ..document("x", 1)
    }
}

#[test]
fn the_bytes_that_are_signed_are_these() {
    let mut statement = document("payments", 7);
    statement.text = "version = 1\n".into();
    let digest = Digest::of(b"");
    statement.lists = BTreeMap::from([("lists/a.txt".into(), digest), ("b".into(), digest)]);
    assert_eq!(
        text(&statement),
        "ravelin-policy 1\nname: payments\nnodes: role=payments\nversion: 7\nissued: 2026-11-22T00:00:00Z\n\
         expires: 2027-02-20T00:00:00Z\n\
         list b: b3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262\n\
         list lists/a.txt: b3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262\n\
         text: 12\n\nversion = 1\n"
    );
    assert_eq!(Statement::parse(&statement.to_bytes()), Ok(statement));
    let forever = ban("2001:db8::/32", None, "");
    assert_eq!(forever.text, "until: never\n");
    assert_eq!(Statement::parse(&forever.to_bytes()), Ok(forever.clone()));
    assert_eq!(forever.key(), "bans/2001:db8::_32");
    let timed = ban("198.51.100.7", Some(ISSUED + 60), "scans");
    assert_eq!(timed.text, "until: 2026-11-22T00:01:00Z\nwhy: scans\n");
    assert_eq!(Statement::parse(&timed.to_bytes()), Ok(timed));
    let deletion = Statement {
        kind: Kind::Delete,
        expires: None,
        text: String::new(),
        ..document("payments", 8)
    };
    assert_eq!(Statement::parse(&deletion.to_bytes()), Ok(deletion.clone()));
    assert_eq!(deletion.key(), "policies/payments");
}

#[test]
fn hostile_headers_are_refused_with_their_line() {
    let good = text(&document("payments", 7));
    for (from, to, words) in [
        (
            "ravelin-policy 1",
            "ravelin-policy 2",
            "line 1 of the statement: \"ravelin-policy 2\" begins no statement",
        ),
        ("ravelin-policy 1", "ravelin-policy 1 ", "line 1"),
        ("ravelin-policy 1\n", "", "line 1"),
        (
            "name: payments\n",
            "name: payments\nname: payments\n",
            "line 3 of the statement: \"name: payments\" stands where \"nodes: \" is expected",
        ),
        (
            "name: payments\n",
            "",
            "line 2 of the statement: \"nodes: role=payments\" stands where \"name: \"",
        ),
        (
            "name: payments",
            "name: payments\r",
            "line 2 of the statement: byte 0x0d in column 15: headers are printable ASCII",
        ),
        ("name: payments", "name: pay\0ments", "byte 0x00 in column 10"),
        // A Cyrillic a.
        ("name: payments", "name: p\u{430}yments", "byte 0xd0 in column 8"),
        (
            "name: payments",
            "name: Payments",
            "\"Payments\" cannot name a document; names have 1 to 63",
        ),
        ("name: payments", "name: ../payments", "cannot name a document"),
        ("name: payments", "name: ..", "cannot name a document"),
        ("name: payments", "name: ", "\"\" cannot name a document"),
        (
            "name: payments",
            "name:payments",
            "stands where \"name: \" is expected",
        ),
        (
            "name: payments",
            "Name: payments",
            "stands where \"name: \" is expected",
        ),
        (
            "nodes: role=payments",
            "nodes: ",
            "a selector of nodes has 1 to 4096 bytes",
        ),
        (
            "nodes: role=payments",
            "nodes:  role=payments",
            "without blanks around it",
        ),
        (
            "nodes: role=payments",
            "nodes: role=payments ",
            "without blanks around it",
        ),
        ("version: 7", "version: 0", "version \"0\" is not a number from 1"),
        ("version: 7", "version: 07", "version \"07\""),
        ("version: 7", "version: +7", "version \"+7\""),
        ("version: 7", "version: -7", "version \"-7\""),
        (
            "version: 7",
            "version: 18446744073709551616",
            "is not a number from 1",
        ),
        (
            "issued: 2026-11-22T00:00:00Z",
            "issued: never",
            "\"issued\" is a time",
        ),
        (
            "issued: 2026-11-22T00:00:00Z",
            "issued: 2026-11-22T00:00:00+00:00",
            "is not a time such as",
        ),
        (
            "issued: 2026-11-22T00:00:00Z",
            "issued: 2026-11-22 00:00:00Z",
            "is not a time such as",
        ),
        (
            "issued: 2026-11-22T00:00:00Z",
            "issued: 2026-11-22T00:00:00.0Z",
            "is not a time such as",
        ),
        (
            "issued: 2026-11-22T00:00:00Z",
            "issued: 2026-13-22T00:00:00Z",
            "is not a time such as",
        ),
        (
            "issued: 2026-11-22T00:00:00Z",
            "issued: 1969-11-22T00:00:00Z",
            "is not a time such as",
        ),
        (
            "issued: 2026-11-22T00:00:00Z",
            "issued: 2027-02-20T00:00:00Z",
            "it expires before it is issued",
        ),
        (
            "expires: 2027-02-20T00:00:00Z",
            "expires: Never",
            "is not a time such as",
        ),
        (
            "expires: 2027-02-20T00:00:00Z",
            "expires: too late",
            "is not a time such as",
        ),
        ("text: ", "text: 0", "is not \"text: \" and its length"),
        ("text: ", "text: -", "is not \"text: \" and its length"),
        ("text: ", "text: 9999", "bytes, not the 9999"),
        (
            "\n\nversion",
            "\nversion",
            "a blank line stands between header and text",
        ),
        (
            "\n\nversion",
            "\n \nversion",
            "a blank line stands between header and text",
        ),
        (
            "text: ",
            "list a: b3:00\ntext: ",
            "a list is written \"list FILE: b3:\"",
        ),
        ("text: ", "list a\ntext: ", "a list is written"),
    ] {
        assert!(good.contains(from), "{from}");
        let error = refused(good.replacen(from, to, 1).as_bytes());
        assert!(error.contains(words), "{to:?}: {error}");
    }
    let huge = good.replace("text: ", &format!("text: {}\nx: ", u64::MAX));
    assert!(refused(huge.as_bytes()).contains("blank line"));
    for length in [u64::MAX, usize::MAX as u64, 1 << 40] {
        let claim = format!("text: {length}\n\n");
        let at = good.find("text: ").expect("a length");
        assert!(refused((good[..at].to_owned() + &claim).as_bytes()).contains("the text has 0 bytes"));
    }
    assert!(refused(&[b'a'; 1 << 20]).contains("a line of the header has at most"));
    assert!(refused(b"").contains("it ends before its text"));
    assert!(refused(b"ravelin").contains("amid a line"));
    assert!(refused(&[good.as_bytes(), b"\n"].concat()).contains("1 bytes follow the text"));
    assert!(refused(&good.as_bytes()[..good.len() - 1]).contains("the text has"));
    let mut latin = good.clone().into_bytes();
    let last = latin.len() - 2;
    latin[last] = 0xff;
    assert!(refused(&latin).contains("the text is not UTF-8 from its byte"));
}

#[test]
fn list_files_stay_below_their_document() {
    let digest = Digest::of(b"");
    for bad in [
        "",
        ".",
        "..",
        "../x",
        "a/../x",
        "/etc/passwd",
        "a//b",
        "a/",
        "./a",
        "a b",
        "a\u{301}",
        "a:b",
        "a\\b",
        "~x\n",
        "%2e%2e",
        &"x".repeat(256),
    ] {
        let lists = BTreeMap::from([(bad.to_owned(), digest)]);
        assert!(
            Statement {
                lists,
                ..document("payments", 1)
            }
            .check()
            .is_err(),
            "{bad:?}"
        );
    }
    for good in ["blocked.txt", "lists/partners/eu-1.txt", "...", "-x"] {
        let lists = BTreeMap::from([(good.to_owned(), digest)]);
        assert_eq!(
            Statement {
                lists,
                ..document("payments", 1)
            }
            .check(),
            Ok(()),
            "{good}"
        );
    }
    let line = |name: &str| format!("list {name}: b3:{digest}\n");
    let with = |lines: &str| text(&document("payments", 1)).replace("text: ", &(lines.to_owned() + "text: "));
    assert!(Statement::parse(with(&(line("a") + &line("b"))).as_bytes()).is_ok());
    for lines in [line("b") + &line("a"), line("a") + &line("a")] {
        assert!(refused(with(&lines).as_bytes()).contains("in the order of their names, each once"));
    }
    let upper = with(&line("a").replace(&digest.to_string(), &digest.to_string().to_uppercase()));
    assert!(refused(upper.as_bytes()).contains("64 hexadecimal digits"));
    let many: String = (0..1025).map(|index| line(&format!("{index:05}"))).collect();
    assert!(refused(with(&many).as_bytes()).contains("more than 1024 lists"));
    let deletion = Statement {
        kind: Kind::Delete,
        expires: None,
        text: String::new(),
        ..document("payments", 8)
    };
    let lists = BTreeMap::from([("a".to_owned(), digest)]);
    assert!(Statement { lists, ..deletion }.check().is_err());
}

#[test]
fn each_kind_has_its_own_text() {
    let policy = |text: &str| {
        Statement {
            text: text.into(),
            ..document("payments", 1)
        }
        .check()
    };
    assert!(policy("").is_err());
    assert!(
        policy("version = 1")
            .expect_err("no line feed")
            .message
            .contains("ends in a line feed")
    );
    assert!(policy("a\0b\n").expect_err("NUL").message.contains("NUL"));
    let signed = format!("version = 1\n{}\nx\n", signature::BEGIN);
    assert!(
        policy(&signed)
            .expect_err("armor")
            .message
            .contains("the start of a signature")
    );
    let deletion = Statement {
        kind: Kind::Delete,
        expires: None,
        text: "x".into(),
        ..document("payments", 8)
    };
    assert!(deletion.check().is_err());
    assert!(
        Statement {
            expires: Some(ISSUED + 1),
            text: String::new(),
            ..deletion
        }
        .check()
        .is_err()
    );
    for (name, words) in [
        ("198.51.100.7/32", "is named 198.51.100.7"),
        ("198.51.100.7/24", "is named 198.51.100.0/24"),
        ("2001:DB8::/32", "is named 2001:db8::/32"),
        ("0.0.0.0/0", "everybody"),
        ("payments", "not an address"),
        ("../x", "not an address"),
    ] {
        let error = ban(name, None, "").check().expect_err(name);
        assert!(error.to_string().contains(words), "{name}: {error}");
    }
    let soon = Some(ISSUED + 60);
    let expires = |statement: Statement, expires| Statement { expires, ..statement }.check();
    assert!(expires(ban("198.51.100.7", soon, ""), None).is_err());
    assert!(expires(ban("198.51.100.7", None, ""), soon).is_err());
    for text in [
        "",
        "until: never",
        "until: never\n\n",
        "until: never\nwhy: \n",
        "until: never\nwhy: a\nb\n",
        "why: a\nuntil: never\n",
        "until: never\nwhy: a\u{7f}\n",
        "until: never \n",
        "until: never\nwhy:  a\n",
    ] {
        let text = text.to_owned();
        assert!(
            Statement {
                text: text.clone(),
                ..ban("198.51.100.7", None, "")
            }
            .check()
            .is_err(),
            "{text:?}"
        );
    }
    assert!(ban("198.51.100.7", None, &"é".repeat(200)).check().is_ok());
    assert!(ban("198.51.100.7", None, &"é".repeat(201)).check().is_err());
}

#[test]
fn an_envelope_is_one_statement_and_one_signature() {
    let keys = Keys::new();
    let key = keys.ed25519("alice");
    let envelope = sign(&document("payments", 1), &key);
    let (bytes, armored) = (envelope.bytes(), envelope.signature().armored().to_owned());
    let word = |bytes: &[u8]| {
        Envelope::parse(bytes)
            .map(|_| "fine")
            .unwrap_or_else(|error| error.word())
    };
    assert_eq!(word(bytes), "fine");
    assert_eq!(word(envelope.statement_bytes()), "unsigned");
    for (tail, expected) in [
        ("\n".to_owned(), "malformed"),
        (" ".to_owned(), "malformed"),
        ("\0".to_owned(), "malformed"),
        (armored.clone(), "malformed"),
        (format!("\n{armored}"), "malformed"),
        ("# comment\n".to_owned(), "malformed"),
    ] {
        assert_eq!(word(&[bytes, tail.as_bytes()].concat()), expected, "{tail:?}");
    }
    let twice = [envelope.statement_bytes(), bytes].concat();
    assert_eq!(word(&twice), "malformed");
    let between = [envelope.statement_bytes(), b"\n", armored.as_bytes()].concat();
    assert_eq!(word(&between), "malformed");
    let crlf = [
        envelope.statement_bytes(),
        armored.replace('\n', "\r\n").as_bytes(),
    ]
    .concat();
    assert_eq!(word(&crlf), "malformed");
    // The header may not say that part of the signature is text.
    let longer = String::from_utf8(bytes.to_vec()).expect("text");
    let length = document("payments", 1).text.len();
    let longer = longer.replace(&format!("text: {length}"), &format!("text: {}", length + 30));
    assert_eq!(word(longer.as_bytes()), "malformed");
    let large = Statement {
        text: "#".repeat(MAX_ENVELOPE) + "\n",
        ..document("payments", 1)
    };
    assert_eq!(
        word(&[&large.to_bytes()[..], armored.as_bytes()].concat()),
        "too-large"
    );
    for garbage in [&b""[..], b"null", b"{", b"\xff\xfe", b"[]", b"\n\n\n"] {
        assert_eq!(word(garbage), "malformed", "{garbage:?}");
    }
}

fn statements() -> impl Strategy<Value = Statement> {
    let list = ("[a-z0-9_-]{1,8}(/[a-z0-9_-]{1,8}){0,2}", any::<[u8; 32]>());
    (
        "[a-z0-9][a-z0-9._-]{0,62}",
        "[!-~]([ -~]{0,40}[!-~])?",
        1u64..,
        0u64..200_000_000_000,
        proptest::option::of(1u64..1_000_000_000),
        proptest::collection::btree_map(list.0, list.1.prop_map(Digest), 0..4),
        "[^\0]{0,80}\n",
    )
        .prop_map(|(name, nodes, version, issued, lasts, lists, text)| Statement {
            kind: Kind::Policy,
            name,
            nodes,
            version,
            issued,
            expires: lasts.map(|lasts| issued + lasts),
            lists,
            text,
        })
}

proptest! {
    #[test]
    fn what_is_written_reads_back(statement in statements()) {
        prop_assert_eq!(Statement::parse(&statement.to_bytes()), Ok(statement));
    }

    #[test]
    fn changed_bytes_are_refused_or_mean_what_they_say(
        statement in statements(), at: prop::sample::Index, byte: u8, cut in any::<bool>(),
    ) {
        let mut bytes = statement.to_bytes();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        if let Ok(read) = Statement::parse(&bytes) {
            prop_assert_eq!(read.to_bytes(), bytes);
        }
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, head in 0usize..200) {
        let good = document("payments", 1).to_bytes();
        for bytes in [&bytes[..], &[&good[..head], &bytes[..]].concat()] {
            let _ = Envelope::parse(bytes);
        }
    }
}
