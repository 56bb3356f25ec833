//! The commands on a fleet: the built binary, the real ssh-keygen, and a directory for a store. Nodes are played by what they
//! would write there.

use ravelin::fleet::report::{Rejected, Report, Version, node_key, status_key};
use ravelin::fleet::statement::Envelope;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const POLICY: &str = r#"version = 1
# What the bank's own people wrote.
[policy]
name = "payments"
nodes = "role=payments"

[[service]]
name = "payments-api"
ports = ["tcp/8443"]
allow = ["198.51.100.0/24"]
"#;

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn of(output: Output) -> Ran {
        Ran {
            code: output.status.code().expect("ended by itself"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// Its standard output, if it went well.
    #[track_caller]
    fn good(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// Its standard error, if it was refused.
    #[track_caller]
    fn refused(self) -> String {
        assert_eq!(self.code, 1, "{}{}", self.stdout, self.stderr);
        self.stderr
    }

    #[track_caller]
    fn json(self) -> Value {
        serde_json::from_str(&self.good()).expect("JSON")
    }
}

/// Two operators, alice and bob, with a context file each.
struct Fleet(tempfile::TempDir);

impl Fleet {
    fn new() -> Fleet {
        let fleet = Fleet(tempfile::tempdir().expect("a directory"));
        std::fs::create_dir(fleet.path().join("store")).expect("made");
        let mut signers = String::new();
        for name in ["alice", "bob", "mallory"] {
            let key = fleet.path().join(name);
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
                .arg(&key)
                .status();
            assert!(made.expect("ssh-keygen runs").success());
            let public = std::fs::read_to_string(key.with_extension("pub")).expect("read");
            if name != "mallory" {
                signers += &format!("{name}@example.org namespaces=\"ravelin-policy\" {public}");
            }
            let context = format!(
                "[store]\ndirectory = \"store\"\n[sign]\nkey = \"{name}\"\n[trust]\nallowed_signers = \"allowed_signers\"\n"
            );
            fleet.write(&format!("{name}.toml"), &context);
        }
        fleet.write("allowed_signers", &signers);
        fleet
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, text).expect("written");
        path
    }

    fn stored(&self, key: &str) -> PathBuf {
        self.path().join("store").join(key)
    }

    fn command(&self, operator: &str, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ravelin"));
        command
            .args(line.split_whitespace())
            .current_dir(self.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("RAVELIN_CONTEXT", self.path().join(format!("{operator}.toml")))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, operator: &str, line: &str) -> Ran {
        Ran::of(self.command(operator, line).output().expect("the binary starts"))
    }

    fn alice(&self, line: &str) -> Ran {
        self.run("alice", line)
    }

    /// Applies a policy of this text.
    #[track_caller]
    fn apply(&self, text: &str) -> String {
        self.write("policy.toml", text);
        self.alice("apply -f policy.toml --fleet").good()
    }

    /// Puts a value as an agent would.
    fn put(&self, key: &str, value: &str) {
        let path = self.stored(key);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, value).expect("written");
    }

    /// A node registers.
    fn register(&self, name: &str, role: &str) {
        let registration = json!({ "labels": { "name": name, "role": role }, "addresses": ["192.0.2.1"], "version": "0.1.0", "at": 1 });
        let stored = json!({ "registration": registration.to_string() });
        self.put(&node_key(name), &stored.to_string());
    }

    /// A node has what the store has, and says so; `change` what is otherwise.
    fn report(&self, name: &str, policies: &[(&str, u64)], change: impl FnOnce(&mut Report)) {
        let document = |(policy, version): &(&str, u64)| {
            let stored = std::fs::read(self.stored(&format!("policies/{policy}"))).unwrap_or_default();
            let digest = Envelope::parse(&stored).map(|envelope| envelope.digest().to_string());
            let version = Version {
                version: *version,
                digest: digest.unwrap_or_default(),
            };
            ((*policy).to_owned(), version)
        };
        let mut report = Report {
            name: name.to_owned(),
            mode: "enforce".to_owned(),
            ready: true,
            generation: 3,
            digest: "ab".repeat(32),
            documents: policies.iter().map(document).collect(),
            since: 1_795_305_600,
            ..Report::default()
        };
        change(&mut report);
        self.put(&status_key(name), &serde_json::to_string(&report).expect("JSON"));
    }
}

#[test]
fn a_policy_is_applied_edited_shown_and_deleted() {
    let fleet = Fleet::new();
    assert_eq!(fleet.alice("policies").good(), "no policies\n");
    fleet.register("pay-1", "payments");
    fleet.register("web-1", "web");
    fleet.write("policy.toml", POLICY);
    let dry = fleet.alice("apply -f policy.toml --fleet --dry-run").good();
    assert_eq!(
        dry,
        "+ 198.51.100.0/24 gains payments-api (tcp/8443)\ndry run: nothing was changed\nmeant for 1 node: pay-1\n"
    );
    assert!(!fleet.stored("policies/payments").exists());
    assert_eq!(
        fleet.apply(POLICY),
        "+ 198.51.100.0/24 gains payments-api (tcp/8443)\nversion 1 of payments is stored, signed by alice@example.org\nmeant \
         for 1 node: pay-1\n"
    );
    assert!(
        fleet
            .apply(POLICY)
            .starts_with("nothing to change: \"payments\" is version 1 already\n")
    );
    let shown = fleet.alice("show payments");
    assert!(
        shown.stderr.contains("version 1 for role=payments, signed "),
        "{}",
        shown.stderr
    );
    assert_eq!(shown.good(), POLICY);
    // The policy is found by its service, and its comment stays.
    let allowed = fleet.run("bob", "allow payments-api 203.0.113.7 --fleet").good();
    assert!(
        allowed.contains(
            "+ 203.0.113.7 gains payments-api (tcp/8443)\nversion 2 of payments is stored, signed by bob@"
        ),
        "{allowed}"
    );
    let text = POLICY.replace("\"198.51.100.0/24\"", "\"198.51.100.0/24\", \"203.0.113.7\"");
    assert_eq!(fleet.alice("show payments").good(), text);
    let again = fleet.alice("allow payments-api 203.0.113.7 --fleet").refused();
    assert!(again.contains("203.0.113.7"), "{again}");
    for (line, change) in [
        ("deny 192.0.2.9 --fleet --policy payments", "- "),
        ("undeny 192.0.2.9 --fleet --policy payments", "+ "),
        (
            "service add payments-admin tcp/9443 --allow 198.51.100.9 --fleet --policy payments",
            "+ 198.51.100.9 gains payments-admin",
        ),
        (
            "service set payments-admin --port tcp/9444 --fleet",
            "gains payments-admin (tcp/9444)",
        ),
        (
            "service remove payments-admin --fleet",
            "- 198.51.100.9 loses payments-admin",
        ),
        (
            "egress add dns udp/53 --to 192.0.2.53 --policy payments --fleet",
            "version 8 of payments is stored",
        ),
        (
            "revoke payments-api 203.0.113.7 --fleet",
            "- 203.0.113.7 loses payments-api",
        ),
    ] {
        let out = fleet.alice(line).good();
        assert!(out.contains(change), "{line}: {out}");
    }
    let rows = fleet.alice("policies -o json").json();
    let row = &rows[0];
    assert_eq!(
        (
            &row["name"],
            &row["version"],
            &row["state"],
            &row["signer"],
            &row["meant"],
            &row["applied"]
        ),
        (
            &json!("payments"),
            &json!(9),
            &json!("ok"),
            &json!("alice@example.org"),
            &json!(1),
            &json!(0)
        )
    );
    let deleted = fleet.alice("delete payments").good();
    assert!(
        deleted.contains("- 198.51.100.0/24 loses payments-api (tcp/8443)\n"),
        "{deleted}"
    );
    assert!(
        deleted.contains("payments is deleted, signed by alice@example.org\n"),
        "{deleted}"
    );
    assert_eq!(fleet.alice("policies").good(), "no policies\n");
    assert!(
        fleet
            .alice("policies --deleted")
            .good()
            .contains("payments       10      0/0  deleted")
    );
    assert!(
        fleet
            .alice("show payments")
            .refused()
            .contains("\"payments\" was deleted ")
    );
    // Its versions go on.
    assert!(fleet.apply(POLICY).contains("version 11 of payments is stored"));
}

#[test]
fn what_is_stored_is_verified_by_ssh_keygen_alone() {
    let fleet = Fleet::new();
    fleet.apply(POLICY);
    let signed = fleet.alice("show payments --signed").good();
    assert_eq!(
        signed.as_bytes(),
        std::fs::read(fleet.stored("policies/payments")).expect("read")
    );
    fleet.write("payments.signed", &signed);
    // As the help of `show` says.
    let help = fleet.alice("show --help").good();
    let lines: Vec<&str> = help
        .lines()
        .map(str::trim)
        .skip_while(|line| !line.starts_with("sed "))
        .collect();
    let script = lines[..4].join("\n");
    let verified = Command::new("sh")
        .arg("-ec")
        .arg(&script)
        .current_dir(fleet.path())
        .output()
        .expect("sh runs");
    let said = String::from_utf8_lossy(&verified.stdout);
    assert!(
        verified.status.success()
            && said.starts_with("Good \"ravelin-policy\" signature for alice@example.org"),
        "{script}: {said}"
    );
}

#[test]
fn the_second_of_two_editors_is_told_what_the_first_did() {
    let fleet = Fleet::new();
    fleet.apply(POLICY);
    // While alice signs, bob is faster.
    let bin = fleet.path().join("bin");
    let script = format!(
        "#!/bin/sh\ncd {dir} && PATH=/usr/bin:/bin RAVELIN_CONTEXT=bob.toml {ravelin} allow payments-api 203.0.113.7 --fleet \
         >/dev/null || exit 1\nexec /usr/bin/ssh-keygen \"$@\"\n",
        dir = fleet.path().display(),
        ravelin = env!("CARGO_BIN_EXE_ravelin"),
    );
    let keygen = fleet.write("bin/ssh-keygen", &script);
    std::fs::set_permissions(&keygen, PermissionsExt::from_mode(0o755)).expect("made executable");
    let mut late = fleet.command("alice", "deny 192.0.2.9 --fleet --policy payments");
    late.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    let told = Ran::of(late.output().expect("the binary starts")).refused();
    for words in [
        "policies/payments was changed by somebody else meanwhile, and nothing of yours was stored",
        "it is version 2 (policy) by bob@example.org, issued ",
        "- allow = [\"198.51.100.0/24\"]\n+ allow = [\"198.51.100.0/24\", \"203.0.113.7\"]",
    ] {
        assert!(told.contains(words), "{told}");
    }
    let text = fleet.alice("show payments").good();
    assert!(
        text.contains("203.0.113.7") && !text.contains("192.0.2.9"),
        "{text}"
    );
    // Somebody else deletes it meanwhile.
    fleet.write(
        "bin/ssh-keygen",
        &script.replace("allow payments-api 203.0.113.7 --fleet", "delete payments"),
    );
    let mut late = fleet.command("alice", "allow payments-api 203.0.113.8 --fleet");
    late.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    let told = Ran::of(late.output().expect("the binary starts")).refused();
    assert!(
        told.contains("it is version 3 (delete) by bob@example.org"),
        "{told}"
    );
}

#[test]
fn documents_that_cannot_stand_together_are_refused_with_both_places() {
    let fleet = Fleet::new();
    fleet.apply(POLICY);
    let other = POLICY
        .replace("\"payments\"", "\"web\"")
        .replace("payments-api", "web-api")
        .replace("role=payments", "tier=2");
    fleet.write("web.toml", &other.replace("tcp/8443", "tcp/8000-9000"));
    let error = fleet.alice("apply -f web.toml --fleet").refused();
    assert!(error.contains("web.toml:8:8"), "{error}");
    assert!(
        error.contains(
            "claims tcp/8443, which service \"payments-api\" of policy \"payments\" has (policy payments:8:8)"
        ),
        "{error}"
    );
    fleet.write(
        "web.toml",
        &other
            .replace("tcp/8443", "tcp/8000-9000")
            .replace("tier=2", "role!=payments"),
    );
    assert!(
        fleet
            .alice("apply -f web.toml --fleet")
            .good()
            .contains("version 1 of web is stored")
    );
}

#[test]
fn what_nodes_would_refuse_is_not_stored() {
    let fleet = Fleet::new();
    fleet.write("policy.toml", POLICY);
    let error = fleet.run("mallory", "apply -f policy.toml --fleet").refused();
    assert!(
        error.contains("no node would take this, so it was not stored: the key SHA256:"),
        "{error}"
    );
    assert!(error.contains("is not among the allowed signers"), "{error}");
    fleet.write(
        "roles.toml",
        "[[role]]\nsigners = [\"alice@*\"]\npolicies = [\"payments*\"]\nservices = [\"payments-*\"]\nmax_days = 30\n\
         [[role]]\nsigners = [\"bob@*\"]\nban = true\n",
    );
    for name in ["alice", "bob"] {
        let context = std::fs::read_to_string(fleet.path().join(format!("{name}.toml"))).expect("read");
        fleet.write(&format!("{name}.toml"), &(context + "roles = \"roles.toml\"\n"));
    }
    let error = fleet.alice("apply -f policy.toml --fleet").refused();
    assert!(
        error.contains("alice@example.org may not do this: its role lets it sign for at most 30 days"),
        "{error}"
    );
    let error = fleet.run("bob", "apply -f policy.toml --fleet").refused();
    assert!(
        error.contains("no role of this signer names the document \"payments\""),
        "{error}"
    );
    assert!(!fleet.stored("policies/payments").exists());
    let stored = fleet.alice("apply -f policy.toml --fleet --expires 30d").good();
    assert!(stored.contains("signed by alice@example.org, until "), "{stored}");
    // An edit keeps how long it lasts.
    fleet.alice("allow payments-api 203.0.113.7 --fleet").good();
    let row = &fleet.alice("policies -o json").json()[0];
    let lasts = row["expires"].as_u64().expect("a time") - row["issued"].as_u64().expect("a time");
    assert_eq!(lasts, 30 * 86_400);
    let error = fleet.alice("ban 203.0.113.9 --fleet").refused();
    assert!(error.contains("no role of this signer has ban = true"), "{error}");
    fleet.run("bob", "ban 203.0.113.9 --fleet").good();
}

#[test]
fn tampered_and_misplaced_documents_are_shown_and_are_no_base() {
    let fleet = Fleet::new();
    fleet.apply(POLICY);
    let good = std::fs::read_to_string(fleet.stored("policies/payments")).expect("read");
    let unsigned = good.split("-----BEGIN").next().expect("a statement");
    for (value, word) in [
        (
            good.replace("198.51.100.0/24", "198.51.100.0/16"),
            "bad-signature",
        ),
        (unsigned.to_owned(), "unsigned"),
        ("null".to_owned(), "malformed"),
        (String::new(), "malformed"),
        ("x".repeat(2 << 20), "too-large"),
    ] {
        std::fs::write(fleet.stored("policies/payments"), &value).expect("written");
        let row = &fleet.alice("policies -o json").json()[0];
        assert_eq!((&row["name"], &row["state"]), (&json!("payments"), &json!(word)));
        let error = fleet
            .alice("allow payments-api 203.0.113.7 --fleet --policy payments")
            .refused();
        assert!(error.contains(&format!("is not believed ({word}: ")), "{error}");
        assert!(
            error.contains("`ravelin apply -f FILE --fleet` replaces it"),
            "{error}"
        );
        let shown = fleet.alice("show payments");
        assert!(shown.code == 1 && shown.stderr.contains(word), "{}", shown.stderr);
    }
    // A document under the name of another one.
    std::fs::write(fleet.stored("policies/payments"), &good).expect("written");
    std::fs::copy(fleet.stored("policies/payments"), fleet.stored("policies/web")).expect("copied");
    let rows = fleet.alice("policies -o json").json();
    assert_eq!(
        (&rows[0]["state"], &rows[1]["state"]),
        (&json!("ok"), &json!("malformed"))
    );
    assert!(
        rows[1]["problem"]
            .as_str()
            .is_some_and(|text| text.contains("stored as policies/web, and was signed as policies/payments"))
    );
    std::fs::write(fleet.stored("policies/payments"), "null").expect("written");
    fleet.write("policy.toml", POLICY);
    let replaced = fleet.alice("apply -f policy.toml --fleet");
    assert!(
        replaced
            .stderr
            .contains("warning: what the store has as \"payments\" is not believed (malformed: "),
        "{}",
        replaced.stderr
    );
    replaced.good();
    assert_eq!(fleet.alice("policies -o json").json()[0]["state"], "ok");
}

#[test]
fn a_store_that_lost_its_memory_does_not_lose_its_nodes() {
    let fleet = Fleet::new();
    fleet.apply(POLICY);
    fleet.register("pay-1", "payments");
    fleet.report("pay-1", &[("payments", 41)], |_| {});
    fleet.report("pay-2", &[("payments", u64::MAX)], |_| {});
    // The same text as the store has it: nodes have another by now.
    fleet.write("policy.toml", POLICY);
    let ran = fleet.alice("apply -f policy.toml --fleet");
    assert!(
        ran.stderr
            .contains("nodes have version 41 of \"payments\" in force, and the store holds version 1 only"),
        "{}",
        ran.stderr
    );
    assert!(ran.good().contains("version 42 of payments is stored"));
    // Nothing is left of it; the next version is still one that nodes take.
    std::fs::remove_file(fleet.stored("policies/payments")).expect("removed");
    fleet.report("pay-1", &[("payments", 42)], |_| {});
    assert!(
        fleet
            .alice("apply -f policy.toml --fleet")
            .good()
            .contains("version 43 of payments is stored")
    );
}

#[test]
fn nodes_show_drift_and_can_be_forgotten() {
    let fleet = Fleet::new();
    fleet.apply(POLICY);
    for (name, role) in [
        ("pay-1", "payments"),
        ("pay-2", "payments"),
        ("pay-3", "payments"),
        ("pay-4", "payments"),
        ("web-1", "web"),
    ] {
        fleet.register(name, role);
    }
    fleet.report("pay-1", &[("payments", 1)], |_| {});
    fleet.report("pay-2", &[], |_| {});
    fleet.report("pay-3", &[], |report| {
        let rejected = Rejected {
            word: "conflict".into(),
            ..Rejected::default()
        };
        report.rejected = BTreeMap::from([("payments".to_owned(), rejected)]);
    });
    fleet.report("web-1", &[], |report| {
        report.degraded = vec!["eth0 has no native XDP".into()]
    });
    fleet.report("old-1", &[], |_| {});
    fleet.put("nodes/odd", "not JSON");
    let rows = fleet.alice("nodes -o json").json();
    let states: Vec<(&str, &str)> = rows
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| {
            (
                row["name"].as_str().expect("a name"),
                row["state"].as_str().expect("a state"),
            )
        })
        .collect();
    assert_eq!(
        states,
        [
            ("old-1", "gone"),
            ("pay-1", "ok"),
            ("pay-2", "behind"),
            ("pay-3", "failed"),
            ("pay-4", "silent"),
            ("web-1", "degraded")
        ]
    );
    assert_eq!(rows[2]["wanted"], json!({ "payments": 1 }));
    let table = fleet.alice("nodes").good();
    assert!(
        table.starts_with("6 nodes: 1 ok, 1 behind, 1 failed, 1 degraded, 1 silent, 1 gone\n"),
        "{table}"
    );
    assert!(
        table.contains("payments - of 1") && table.contains("payments: conflict"),
        "{table}"
    );
    let row = &fleet.alice("policies -o json").json()[0];
    assert_eq!((&row["meant"], &row["applied"]), (&json!(4), &json!(1)));
    assert!(
        fleet
            .alice("nodes forget pay-1")
            .refused()
            .contains("\"pay-1\" is registered")
    );
    assert_eq!(fleet.alice("nodes forget old-1").good(), "old-1 is forgotten\n");
    assert!(
        fleet
            .alice("nodes forget old-1")
            .refused()
            .contains("there is no node \"old-1\"")
    );
}

#[test]
fn nodes_are_watched_as_they_change() {
    use std::io::BufRead;
    let fleet = Fleet::new();
    fleet.register("pay-1", "payments");
    let mut child = fleet
        .command("alice", "nodes --watch -o json")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut lines = std::io::BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut until = |state: &str| loop {
        let line = lines.next().expect("it goes on").expect("UTF-8");
        let rows: Value = serde_json::from_str(&line).expect("JSON");
        if rows[0]["state"] == state {
            break;
        }
    };
    until("silent");
    fleet.report("pay-1", &[], |_| {});
    until("ok");
    std::fs::remove_file(fleet.stored("nodes/pay-1")).expect("removed");
    until("gone");
    child.kill().expect("killed");
    child.wait().expect("ended");
}

#[test]
fn lists_travel_in_pieces() {
    let fleet = Fleet::new();
    let text = POLICY.replace(
        "[[service]]",
        "[groups]\npartners = { file = \"lists/partners.txt\" }\n\n[[service]]",
    );
    let text = text.replace("\"198.51.100.0/24\"", "\"@partners\"");
    let list = |range: std::ops::Range<u32>| -> String {
        range
            .map(|number| format!("{}\n", std::net::Ipv4Addr::from(0x0a00_0000 + number * 7)))
            .collect()
    };
    fleet.write("lists/partners.txt", &list(0..20_000));
    fleet.write("policy.toml", &text);
    let first = fleet.alice("apply -f policy.toml --fleet -o json").json();
    // An address more, and one that goes: few pieces move.
    fleet.write("lists/partners.txt", &list(1..20_001));
    let second = fleet.alice("apply -f policy.toml --fleet -o json").json();
    let (all, moved) = (
        first["list_bytes"].as_u64().expect("bytes"),
        second["list_bytes"].as_u64().expect("bytes"),
    );
    assert!(moved > 0 && moved < all, "{moved} of {all}");
    assert_eq!(second["diff"].as_array().map(Vec::len), Some(2), "{second}");
    // The list is taken from the store where only the text changes.
    let edited = fleet
        .alice("allow payments-api 203.0.113.7 --fleet -o json")
        .json();
    assert_eq!(
        (&edited["list_bytes"], edited["diff"].as_array().map(Vec::len)),
        (&json!(0), Some(1)),
        "{edited}"
    );
    let lists = fleet.alice("lists -o json").json();
    assert_eq!(
        (&lists["lists"][0]["prefixes"], &lists["lists"][0]["missing"]),
        (&json!(20_000), &json!(0))
    );
    let unused = lists["unused"].as_u64().expect("a number");
    assert!(unused > 0);
    assert!(
        fleet
            .alice("lists --prune")
            .good()
            .contains(&format!("{unused} objects that no policy names were deleted"))
    );
    assert_eq!(fleet.alice("lists -o json").json()["unused"], 0);
    // A piece is lost.
    let piece = std::fs::read_dir(fleet.stored("lists"))
        .expect("read")
        .flatten()
        .next()
        .expect("a piece")
        .path();
    std::fs::remove_file(piece).expect("removed");
    let ran = fleet.alice("lists --prune");
    assert!(
        ran.code == 1
            && ran
                .stderr
                .contains("nothing was deleted, because parts of lists are missing"),
        "{}",
        ran.stderr
    );
    // Applied again, it is whole again.
    fleet.write("policy.toml", &(text + "\n"));
    fleet.alice("apply -f policy.toml --fleet").good();
    assert_eq!(fleet.alice("lists -o json").json()["lists"][0]["missing"], 0);
    // Who leads out of the folder is refused.
    fleet.write(
        "policy.toml",
        &POLICY.replace(
            "[[service]]",
            "[groups]\nx = { file = \"../x.txt\" }\n\n[[service]]",
        ),
    );
    let error = fleet.alice("apply -f policy.toml --fleet").refused();
    assert!(
        error.contains("the list file \"../x.txt\" is not a plain path below the document's directory"),
        "{error}"
    );
}

#[test]
fn bans_of_the_fleet_come_and_go() {
    let fleet = Fleet::new();
    fleet.register("web-1", "web");
    let banned = fleet.alice("ban 203.0.113.9 --for 1h --why scans --fleet").good();
    assert!(
        banned.starts_with("203.0.113.9 is banned, signed by alice@example.org, until "),
        "{banned}"
    );
    assert!(banned.ends_with("meant for 1 node: web-1\n"), "{banned}");
    fleet
        .alice("ban 2001:db8:bad::/48 --fleet --nodes role=web")
        .good();
    assert!(fleet.stored("bans/2001:db8:bad::_48").exists());
    let rows = fleet.alice("bans --fleet -o json").json();
    let row = |at: usize| {
        (
            rows[at]["name"].clone(),
            rows[at]["nodes"].clone(),
            rows[at]["why"].clone(),
        )
    };
    assert_eq!(row(0), (json!("2001:db8:bad::/48"), json!("role=web"), json!("")));
    assert_eq!(row(1), (json!("203.0.113.9"), json!("*"), json!("scans")));
    // Again, with another end: the next version takes its place.
    fleet.alice("ban 203.0.113.9 --for 2h --fleet").good();
    assert!(
        fleet
            .alice("unban 203.0.113.9 --fleet")
            .good()
            .starts_with("203.0.113.9 is not banned any more")
    );
    assert!(
        fleet
            .alice("unban 203.0.113.9 --fleet")
            .refused()
            .contains("203.0.113.9 is not banned on the fleet")
    );
    let wide = fleet.alice("ban 128.0.0.0/1 --fleet").refused();
    assert!(
        wide.contains("128.0.0.0/1 is a large part of the internet"),
        "{wide}"
    );
    fleet.alice("ban 203.0.113.10 --fleet").good();
    fleet.alice("unban --all --fleet").good();
    assert_eq!(fleet.alice("bans --fleet").good(), "no bans of the fleet\n");
    assert_eq!(fleet.alice("unban --all --fleet").good(), "nothing was banned\n");
}

#[test]
fn what_is_missing_or_mixed_up_is_told() {
    let fleet = Fleet::new();
    let mut nowhere = fleet.command("alice", "policies");
    nowhere.env_remove("RAVELIN_CONTEXT").env("HOME", fleet.path());
    let error = Ran::of(nowhere.output().expect("the binary starts")).refused();
    assert!(
        error.contains("no context file, which says where the fleet is (--context FILE, RAVELIN_CONTEXT, "),
        "{error}"
    );
    assert!(
        error.contains("/.config/ravelin/context.toml") && error.contains("[store]"),
        "{error}"
    );
    fleet.write(
        ".config/ravelin/context.toml",
        "[store]\ndirectory = \"../../store\"\n",
    );
    let mut usual = fleet.command("alice", "policies");
    usual.env_remove("RAVELIN_CONTEXT").env("HOME", fleet.path());
    let ran = Ran::of(usual.output().expect("the binary starts"));
    assert!(
        ran.stderr
            .contains("has no [trust], so whose signatures these are was not checked"),
        "{}",
        ran.stderr
    );
    assert_eq!(ran.good(), "no policies\n");
    fleet.write("policy.toml", "version = 1\n");
    let error = fleet.alice("apply -f policy.toml --fleet").refused();
    assert!(
        error.contains("this policy has no [policy], which makes it a document of a fleet"),
        "{error}"
    );
    fleet.write("policy.toml", &POLICY.replace("tcp/8443", "tpc/8443"));
    let error = fleet.alice("apply -f policy.toml --fleet").refused();
    assert!(
        error.contains("policy.toml:9:11") && error.contains("did you mean \"tcp\"?"),
        "{error}"
    );
    fleet.write("keyless.toml", "[store]\ndirectory = \"store\"\n");
    fleet.write("policy.toml", POLICY);
    let error = fleet.run("keyless", "apply -f policy.toml --fleet").refused();
    assert!(
        error.contains("names no key to sign with, and nodes take nothing unsigned"),
        "{error}"
    );
    // A context file that is typed says that the fleet is meant.
    let typed = fleet
        .alice("apply -f policy.toml --dry-run --context alice.toml")
        .good();
    assert!(typed.contains("dry run: nothing was changed"), "{typed}");
    for (line, words) in [
        ("status --fleet", "this command asks the agent of one host"),
        ("apply -f policy.toml --expires 3d", "say --fleet, too"),
        (
            "allow payments-api 192.0.2.1 --policy payments",
            "say --fleet, too",
        ),
        ("ban 192.0.2.1 --nodes role=web", "say --fleet, too"),
        ("ban 192.0.2.1 --nodes role= --fleet", "role="),
        ("show Payments", "cannot name a policy"),
        ("nodes forget ../x", "cannot name a node"),
    ] {
        let ran = fleet.alice(line);
        assert!(
            ran.code == 2 && ran.stderr.contains(words),
            "{line}: {}{}",
            ran.code,
            ran.stderr
        );
    }
    for (line, words) in [
        (
            "deny 192.0.2.1 --fleet",
            "say which policy of the fleet: --policy NAME",
        ),
        (
            "allow nothing 192.0.2.1 --fleet",
            "no policy of the fleet has a service or an egress rule \"nothing\"",
        ),
        (
            "delete payments",
            "there is no policy \"payments\", nor any other",
        ),
        (
            "policies --context no-such-file",
            "reading the context file no-such-file",
        ),
    ] {
        let error = fleet.alice(line).refused();
        assert!(error.contains(words), "{line}: {error}");
    }
}
