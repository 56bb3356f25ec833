use super::super::keys::{ISSUED, Keys, allowed, public, signers};
use super::*;
use proptest::prelude::*;
use std::process::{Command, Stdio};

fn refused(text: &str) -> String {
    Signers::parse(text, Path::new("/etc/ravelin/allowed_signers"))
        .expect_err("refused")
        .to_string()
}

fn signed(key: &Path, namespace: &str) -> Signature {
    signature::sign(b"x", key, namespace).expect("signed")
}

#[test]
fn lines_are_read_as_openssh_reads_them() {
    let keys = Keys::new();
    let (alice, bob) = (keys.ed25519("alice"), keys.ed25519("bob"));
    let text = format!(
        "# who may sign\r\n\n  alice@example.org,alice\tnamespaces=\"git,ravelin-policy\",Valid-After=\"20200101Z\" {} a comment # x\n\
         \"*@example.org,!bob@example.org\" VALID-BEFORE=\"203001020304Z\" {}\n",
        public(&alice),
        public(&bob)
    );
    let signers = signers(&text);
    let (of_alice, of_bob) = (signed(&alice, signature::POLICY), signed(&bob, signature::POLICY));
    assert_eq!(
        signers.operator(&of_alice, Some(ISSUED)),
        Ok(vec!["alice@example.org".into(), "alice".into()])
    );
    assert_eq!(
        signers.operator(&of_bob, Some(ISSUED)),
        Ok(vec!["*@example.org".into()])
    );
    let late = signers
        .operator(&of_bob, Some(1_893_553_440))
        .expect_err("too late")
        .to_string();
    assert!(late.ends_with("might sign until 2030-01-02T03:04:00Z"), "{late}");
    assert!(signers.operator(&of_bob, Some(1_893_553_439)).is_ok());
    let early = signers
        .operator(&of_alice, Some(1_577_836_799))
        .expect_err("too early")
        .to_string();
    assert!(
        early.ends_with("may sign from 2020-01-01T00:00:00Z on"),
        "{early}"
    );
    assert!(signers.operator(&of_alice, Some(1_577_836_800)).is_ok());
    assert!(signers.operator(&of_alice, None).is_ok());
    let carol = signers
        .operator(&signed(&keys.ed25519("carol"), signature::POLICY), None)
        .expect_err("a stranger");
    assert_eq!(carol.word(), "unknown-signer");
    assert!(carol.to_string().starts_with("the key SHA256:"), "{carol}");
}

#[test]
fn what_is_not_understood_refuses_the_file_with_its_line() {
    let keys = Keys::new();
    let key = public(&keys.ed25519("alice"));
    let blob = key.split(' ').nth(1).expect("base64");
    let small = public(&keys.make("small", &["rsa", "-b", "1024"]));
    for (line, words) in [
        (key.clone(), "no principals stand before the key"),
        (
            format!("alice {blob}"),
            "is no key: a line is written \"PRINCIPALS [OPTIONS] TYPE KEY\"",
        ),
        ("alice".into(), "is no key"),
        (
            "alice ssh-ed25519".into(),
            "the key of type ssh-ed25519 cannot be read",
        ),
        (
            format!("alice ssh-rsa {blob}"),
            "the key of type ssh-rsa cannot be read",
        ),
        (format!("alice ssh-ed25519 {}", &blob[..40]), "cannot be read"),
        (format!("alice ssh-ed25519 {blob}AAAA"), "cannot be read"),
        (
            format!("alice cert-authority {key}"),
            "option cert-authority: certificates are not supported",
        ),
        (
            format!("alice ssh-ed25519-cert-v01@openssh.com {blob}"),
            "certificates are not supported",
        ),
        (
            format!("alice namespace=\"git\" {key}"),
            "option \"namespace\" is not known",
        ),
        (
            format!("alice namespaces {key}"),
            "option namespaces needs a list",
        ),
        (
            format!("alice namespaces=\"\" {key}"),
            "an empty word among the namespaces",
        ),
        (
            format!("alice namespaces=\"a\",namespaces=\"b\" {key}"),
            "option namespaces stands twice",
        ),
        (
            format!("alice valid-before=\"20270101\" {key}"),
            "write 20270101Z, in UTC",
        ),
        (
            format!("alice valid-before=\"2027-01-01\" {key}"),
            "is not a time such as 20270101Z",
        ),
        (
            format!("alice valid-before=\"20271301Z\" {key}"),
            "is not a time such as",
        ),
        (
            format!("alice valid-before=\"2027010124Z\" {key}"),
            "is not a time such as",
        ),
        (
            format!("alice valid-after=\"20270102Z\",valid-before=\"20270101Z\" {key}"),
            "not later than valid-after",
        ),
        (
            format!("alice namespaces=\"git {key}"),
            "a quotation mark is never closed",
        ),
        (
            format!("alice namespaces=git {key}"),
            "namespaces: its value stands in quotation marks",
        ),
        (
            format!("alice namespaces=\"a\"b {key}"),
            "namespaces: its value stands in quotation marks",
        ),
        (format!("alice,, {key}"), "an empty word among the principals"),
        (format!("! {key}"), "an empty word among the principals"),
        (format!("\u{430}lice {key}"), "is not plain ASCII"),
        (
            format!("alice {small}"),
            "an RSA key of 1024 bits; 2048 to 4096 are accepted",
        ),
        (
            "alice ssh-dss AAAAB3NzaC1kc3MAAAABAQAAAAEBAAAAAQEAAAABAQ==".into(),
            "keys of type ssh-dss are not accepted",
        ),
    ] {
        let error = refused(&format!("# comment\n{line}\n"));
        assert!(error.starts_with("/etc/ravelin/allowed_signers:2: "), "{error}");
        assert!(error.contains(words), "{line}: {error}");
    }
    assert!(refused("# nobody\n").contains("no line of it names a key"));
}

#[test]
fn nodes_sign_for_themselves_and_nothing_else() {
    let keys = Keys::new();
    let (web, all, alice) = (keys.ed25519("web"), keys.ed25519("all"), keys.ed25519("alice"));
    let signers = signers(
        &(allowed("node:web-1,node:web-2", "", &web)
            + &allowed("node:*,!node:db-*", "namespaces=\"ravelin-node\"", &all)
            + &allowed("*", "", &alice)),
    );
    let of = |key: &Path| signed(key, signature::NODE);
    assert_eq!(signers.node(&of(&web), "web-1", None), Ok(()));
    assert_eq!(signers.node(&of(&web), "web-2", None), Ok(()));
    let other = signers
        .node(&of(&web), "web-3", None)
        .expect_err("another node")
        .to_string();
    assert!(other.ends_with("is not that of node:web-3"), "{other}");
    assert_eq!(signers.node(&of(&all), "web-3", None), Ok(()));
    assert!(signers.node(&of(&all), "db-1", None).is_err());
    // Not by accident: who signs policies as anybody is no node.
    assert!(signers.node(&of(&alice), "web-1", None).is_err());
    assert_eq!(
        signers.operator(&signed(&alice, signature::POLICY), None),
        Ok(vec!["*".into()])
    );
    for key in [&web, &all] {
        let error = signers
            .operator(&signed(key, signature::POLICY), None)
            .expect_err("a node");
        assert_eq!(error.word(), "unknown-signer", "{error}");
    }
}

/// Whether ssh-keygen takes a signature of alice at a time.
fn keygen_takes(keys: &Keys, list: &str, signature: &Signature, at: &str) -> bool {
    let (allowed, file) = (keys.path().join("list"), keys.path().join("sig"));
    std::fs::write(&allowed, list).expect("written");
    std::fs::write(&file, signature.armored()).expect("written");
    let mut child = Command::new("ssh-keygen")
        .args([
            "-Y",
            "verify",
            "-I",
            "alice@example.org",
            "-n",
            signature::POLICY,
            "-O",
            &format!("verify-time={at}"),
            "-f",
        ])
        .arg(&allowed)
        .arg("-s")
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("ssh-keygen runs");
    std::io::Write::write_all(&mut child.stdin.take().expect("its input"), b"x").expect("written");
    child.wait().expect("it ends").success()
}

#[test]
fn options_mean_what_they_mean_to_ssh_keygen() {
    let keys = Keys::new();
    let alice = keys.ed25519("alice");
    let signature = signed(&alice, signature::POLICY);
    for options in [
        "",
        "namespaces=\"ravelin-policy\"",
        "namespaces=\"git,ravelin-*\"",
        "namespaces=\"ravelin-*,!ravelin-policy\"",
        "namespaces=\"git\"",
        "namespaces=\"ravelin-policy\",valid-after=\"20260601Z\"",
        "valid-before=\"20260601Z\"",
        "valid-after=\"20250601Z\",valid-before=\"202606011530Z\"",
        "valid-after=\"20260601153000Z\"",
    ] {
        let list = allowed("alice@example.org", options, &alice);
        for (at, seconds) in [
            ("20260531235959Z", 1_780_271_999),
            ("20260601000001Z", 1_780_272_001),
            ("20260601152959Z", 1_780_327_799),
            ("20260601153001Z", 1_780_327_801),
        ] {
            let ours = signers(&list).operator(&signature, Some(seconds)).is_ok();
            assert_eq!(
                ours,
                keygen_takes(&keys, &list, &signature, at),
                "{options} at {at}"
            );
        }
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "([a-z@*!,=\" #\t]|namespaces=|valid-before=|20270101Z|ssh-ed25519 |AAAAC3NzaC1lZDI1NTE5AAAAI|\n|\\PC){0,24}") {
        let _ = Signers::parse(&text, Path::new("x"));
    }
}
