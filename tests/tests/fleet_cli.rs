//! The commands on a fleet with a real etcd: three members, TLS, client certificates.

use ravelin_tests::agent::{PREFIX, binary};
use ravelin_tests::etcd::{Cluster, Place, ROOT};
use std::path::Path;
use std::process::{Command, Output};

const POLICY: &str = "version = 1\n[policy]\nname = \"payments\"\nnodes = \"role=payments\"\n\n[[service]]\nname = \"payments-api\"\n\
                      ports = [\"tcp/8443\"]\nallow = [\"198.51.100.0/24\"]\n";

struct Operator {
    cluster: Cluster,
    dir: tempfile::TempDir,
}

impl Operator {
    fn new() -> Operator {
        ravelin_tests::agent::sweep();
        let cluster = Cluster::start(Place::loopback(PREFIX, 3).expect("ports")).expect("an etcd");
        let dir = tempfile::tempdir().expect("a directory");
        let key = dir.path().join("alice");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .status();
        assert!(made.expect("ssh-keygen runs").success());
        let public = std::fs::read_to_string(key.with_extension("pub")).expect("read");
        std::fs::write(
            dir.path().join("allowed_signers"),
            format!("alice@example.net {public}"),
        )
        .expect("written");
        let operator = Operator { cluster, dir };
        let settings = operator.cluster.settings(ROOT).expect("certificates");
        operator.write(
            "context.toml",
            &(settings + "[sign]\nkey = \"alice\"\n[trust]\nallowed_signers = \"allowed_signers\"\n"),
        );
        operator.write("policy.toml", POLICY);
        operator
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).expect("written");
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(binary().expect("a binary"));
        command
            .args(line.split_whitespace())
            .current_dir(self.path())
            .env("RAVELIN_CONTEXT", self.path().join("context.toml"));
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().expect("ravelin runs")
    }

    #[track_caller]
    fn good(&self, line: &str) -> String {
        let output = self.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {stderr}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    #[track_caller]
    fn refused(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }
}

#[test]
fn a_fleet_is_changed_through_etcd() {
    let operator = Operator::new();
    assert!(
        operator
            .good("apply -f policy.toml --fleet")
            .contains("version 1 of payments is stored, signed by alice@example.net")
    );
    assert!(
        operator
            .good("allow payments-api 203.0.113.7 --fleet")
            .contains("version 2 of payments is stored")
    );
    assert!(
        operator
            .good("policies")
            .contains("payments        2      0/0  ok")
    );
    assert!(operator.good("show payments").contains("203.0.113.7"));
    operator.good("ban 203.0.113.9 --for 1h --fleet");
    assert!(operator.good("bans --fleet").contains("203.0.113.9"));
    // What operators of etcd see is what was signed.
    let raw = operator
        .cluster
        .ctl(ROOT, &["get", "/ravelin/policies/payments", "--print-value-only"])
        .expect("etcdctl");
    assert!(
        raw.starts_with("ravelin-policy 1\nname: payments\nnodes: role=payments\nversion: 2\n"),
        "{raw}"
    );
    // One of three members may go.
    let mut operator = operator;
    operator.cluster.kill(0).expect("killed");
    assert!(operator.good("delete payments").contains("payments is deleted"));
    operator.cluster.kill_all().expect("killed");
    let error = operator.refused("policies");
    assert!(
        error.contains("etcd: reading policies/: https://127.0.0.1:"),
        "{error}"
    );
}

#[test]
fn of_editors_at_once_each_knows_what_became_of_its_change() {
    let operator = Operator::new();
    operator.good("apply -f policy.toml --fleet");
    let lines: Vec<String> = (1..=6)
        .map(|number| format!("allow payments-api 203.0.113.{number} --fleet"))
        .collect();
    let children: Vec<_> = lines
        .iter()
        .map(|line| {
            operator
                .command(line)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::piped())
                .spawn()
        })
        .collect();
    let mut stored = Vec::new();
    for (number, child) in (1..).zip(children) {
        let output = child.expect("ravelin runs").wait_with_output().expect("it ends");
        let told = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => stored.push(format!("203.0.113.{number}")),
            _ => assert!(told.contains("was changed by somebody else meanwhile"), "{told}"),
        }
    }
    assert!(!stored.is_empty());
    let text = operator.good("show payments");
    for number in 1..=6 {
        let address = format!("203.0.113.{number}");
        assert_eq!(
            text.contains(&format!("\"{address}\"")),
            stored.contains(&address),
            "{address}: {text}"
        );
    }
    let version = format!("payments  {:>7}", stored.len() + 1);
    assert!(
        operator.good("policies").contains(&version),
        "{}",
        operator.good("policies")
    );
}
