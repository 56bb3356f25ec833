//! The built binary: exit codes, what goes to which stream, and its talk with an agent, played by a thread that
//! answers with fixed records. Needs no root and no kernel programs.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

const POLICY: &str = r#"version = 1
deny = ["203.0.113.0/24"]

[groups]
web = ["10.20.0.0/16", "2001:db8:10::/48"]

[[service]]
name  = "payments-api"
ports = ["tcp/8443"]
allow = ["@web", "198.51.100.7"]
deny  = ["10.20.66.0/24"]

[[service]]
name  = "ping"
ports = ["icmp/echo"]
allow = ["any"]
"#;

/// Runs `ravelin` with a clean environment.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ravelin"));
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null());
    command
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn ravelin(arguments: &[&str]) -> Ran {
    ran(command(arguments).output().expect("the binary starts"))
}

fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().expect("ended by itself"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// A folder with `policy.toml` in it.
fn folder(policy: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("policy.toml");
    std::fs::write(&path, policy).expect("the folder is ours");
    let path = path.to_str().expect("UTF-8").to_owned();
    (folder, path)
}

mod offline {
    use super::*;

    #[test]
    fn check_tells_what_a_valid_policy_means() {
        let (_folder, path) = folder(POLICY);
        let ran = ravelin(&["check", &path]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        let start = format!("{path}: valid\n  services  2\n  rules     5\n");
        assert!(ran.stdout.starts_with(&start), "{}", ran.stdout);
        let end = "\
SERVICE       PORTS      ALLOW               DENY
payments-api  tcp/8443   @web, 198.51.100.7  10.20.66.0/24
ping          icmp/echo  any                 -
";
        assert!(ran.stdout.ends_with(end), "{}", ran.stdout);
    }

    #[test]
    fn check_points_into_the_line_of_a_mistake_and_exits_1() {
        let (_folder, path) = folder(&POLICY.replace("tcp/8443", "tpc/8443"));
        let ran = ravelin(&["check", &path]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
        assert!(
            ran.stderr.contains(&format!("error: {path}:9:11: ")),
            "{}",
            ran.stderr
        );
        assert!(ran.stderr.contains("did you mean \"tcp\"?"), "{}", ran.stderr);
        let ran = ravelin(&["check", &path, "-o", "json"]);
        let report: Value = serde_json::from_str(&ran.stdout).expect("JSON also for a mistake");
        assert_eq!((ran.code, &report["valid"]), (1, &json!(false)));
        assert_eq!(report["errors"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn check_takes_warnings_for_errors_on_request() {
        let (_folder, path) = folder(&POLICY.replace("10.20.66.0/24", "10.20.66.1/24"));
        let ran = ravelin(&["check", &path]);
        assert_eq!(ran.code, 0);
        assert!(ran.stderr.starts_with("warning: "), "{}", ran.stderr);
        assert_eq!(ravelin(&["check", &path, "--warnings-are-errors"]).code, 1);
    }

    #[test]
    fn check_of_no_file_is_an_answer_not_a_usage_error() {
        let piped = |policy: &str| {
            let mut child = command(&["check", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the binary starts");
            let mut stdin = child.stdin.take().expect("piped");
            stdin.write_all(policy.as_bytes()).expect("it reads");
            drop(stdin);
            ran(child.wait_with_output().expect("it ends"))
        };
        assert!(piped(POLICY).stdout.starts_with("standard input: valid\n"));
        let refused = piped("version = 2\n");
        assert_eq!(refused.code, 1);
        assert!(
            refused.stderr.starts_with("error: standard input:1:"),
            "{}",
            refused.stderr
        );

        let ran = ravelin(&["check", "/nowhere/policy.toml"]);
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("/nowhere/policy.toml"), "{}", ran.stderr);
    }

    const LIMITS: &str = include_str!("../../docs/examples/limits.toml");

    #[test]
    fn check_lists_limits_with_the_defaults_merged_in() {
        let (_folder, path) = folder(LIMITS);
        let ran = ravelin(&["check", &path]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        assert!(ran.stdout.contains("\n  limits    4\n"), "{}", ran.stdout);
        let end = "\
LIMITED  FOR                             WHAT             PER SOURCE              IN ALL                    ON EXCESS
api      @partners, by /32 and /56       new connections  1,000/s, burst 1,000    -                         challenge
                                         bytes            50 MB/s, burst 50 MB    -
                                         connections      -                       5,000
         everybody else, by /32 and /56  new connections  50/s, burst 100         5,000/s, burst 5,000      challenge
                                         packets          20,000/s, burst 20,000  -
                                         bytes            50 MB/s, burst 50 MB    -
                                         connections      200                     20,000
ssh      everybody                       new connections  6/min, burst 10         -                         ban 10m
                                         packets          20,000/s, burst 20,000  -
                                         bytes            50 MB/s, burst 50 MB    -
dns      everybody                       packets          200/s, burst 500        100,000/s, burst 100,000  drop
";
        assert!(ran.stdout.ends_with(end), "{}", ran.stdout);
        let ran = ravelin(&["check", &path, "-o", "json"]);
        let report: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        let limits = &report["services"][1]["limits"];
        assert_eq!(
            limits[0]["limits"][0],
            json!({
                "what": "new_connections", "per_source": "6/min", "burst": "10", "total": null, "total_burst": null,
            })
        );
        assert_eq!(
            (&limits[0]["scope"], &limits[0]["for"], &limits[0]["on_excess"]),
            (&json!("ssh"), &json!([]), &json!("ban 10m"))
        );
        assert_eq!(
            report["services"][0]["limits"][0]["scope"],
            json!("api/@partners")
        );
    }

    #[test]
    fn check_points_at_a_bad_rate() {
        let (_folder, path) = folder(&LIMITS.replace("\"6/min\"", "\"6/minute\""));
        let ran = ravelin(&["check", &path]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
        assert_eq!(
            ran.stderr.replace(&path, "policy.toml"),
            "error: policy.toml:35:37: unknown time \"minute\" (s, min or h)\n   \
             35 | new_connections = { per_source = \"6/minute\", burst = 10 }\n      \
             |                                     ^^^^^^\n  hint: write \"6/min\"\n"
        );
    }

    #[test]
    fn explain_says_what_limits_hold_for_the_source() {
        let (_folder, path) = folder(LIMITS);
        let limits = |packet: &str| -> Vec<String> {
            let ran = ravelin(&["explain", "--file", &path, packet]);
            assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.stdout);
            let text = ran.stdout.replace(&path, "policy.toml");
            let lines = text.lines().filter_map(|line| line.strip_prefix("  limit   "));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(
            limits("tcp 198.51.100.1 to 22"),
            [
                "new connections 6/min a source (burst 10); packets 20,000/s a source (burst 20,000); \
                 bytes 50 MB/s a source (burst 50 MB) (policy.toml:34:1)",
                "on excess ban 10m; a source is a /32",
            ]
        );
        assert_eq!(
            limits("tcp 2001:db8:10::7 to 8443 flags ack"),
            [
                "for @partners: new connections 1,000/s a source (burst 1,000); bytes 50 MB/s a source (burst 50 MB); \
                 connections 5,000 in all (policy.toml:23:1)",
                "with all others of api: new connections 5,000/s in all (burst 5,000); connections 20,000 in all",
                "on excess challenge; a source is a /56",
            ]
        );
        assert_eq!(
            limits("udp 192.0.2.77 to 53"),
            [
                "packets 200/s a source (burst 500), 100,000/s in all (burst 100,000) (policy.toml:43:1)",
                "on excess drop; a source is a /32",
            ]
        );
    }

    #[test]
    fn explain_passes_and_drops_with_the_exit_code() {
        let (_folder, path) = folder(POLICY);
        let ran = ravelin(&["explain", "--file", &path, "tcp", "10.20.3.4", "->", "8443"]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        // The number of a class is the compiler's own business.
        let lines = ran
            .stdout
            .lines()
            .filter(|line| !line.starts_with("  source  10.20.3.4 is in class "));
        assert_eq!(
            lines.collect::<Vec<_>>().join("\n").replace(&path, "policy.toml"),
            "\
PASS tcp 10.20.3.4:49152 -> 192.0.2.1:8443 flags syn (allowed)
  service payments-api
  rule    allow @web
  place   policy.toml:10:10
          10 | allow = [\"@web\", \"198.51.100.7\"]

  packet  IPv4, TCP, SYN
  port    tcp/8443 belongs to service payments-api (policy.toml:8:9)
  rule    allow @web: 10.20.3.4 is in 10.20.0.0/16"
        );
        let ran = ravelin(&["explain", "--file", &path, "tcp", "10.20.66.4", "to", "8443"]);
        assert_eq!(ran.code, 1);
        assert!(
            ran.stdout.starts_with("DROP tcp 10.20.66.4:49152"),
            "{}",
            ran.stdout
        );
        assert!(
            ran.stdout
                .contains("rule    deny 10.20.66.0/24; allow @web names it too"),
            "{}",
            ran.stdout
        );
    }

    #[test]
    fn explain_knows_every_kind_of_packet() {
        let (_folder, path) = folder(POLICY);
        let cases = [
            ("tcp 198.51.100.7 to 8443", "pass", "allowed"),
            ("tcp 192.0.2.77 to 8443", "drop", "not-allowed"),
            ("tcp 203.0.113.9 to 8443", "drop", "denied"),
            ("udp 10.20.3.4 to 8443", "drop", "closed"),
            ("sctp 10.20.3.4 to 8443", "drop", "closed"),
            (
                "tcp [2001:db8:10::7]:5555 to [2001:db8::1]:8443",
                "pass",
                "allowed",
            ),
            ("tcp 2001:db8:11::7 to 8443", "drop", "not-allowed"),
            ("icmp echo from 192.0.2.77", "pass", "allowed"),
            ("icmp echo from 2001:db8:99::7", "pass", "allowed"),
            ("icmp echo from 203.0.113.9", "drop", "denied"),
            ("icmp dest-unreachable from 192.0.2.77", "drop", "icmp-error"),
            ("icmp 13 from 192.0.2.77", "drop", "closed"),
            ("proto 47 from 10.20.3.4", "drop", "closed"),
            ("tcp 10.20.3.4 to 8443 flags syn,fin", "drop", "tcp-flags"),
            ("tcp 10.20.3.4 to 8443 flags ack", "pass", "allowed"),
            ("tcp 127.0.0.1 to 8443", "drop", "martian"),
            ("tcp 10.20.3.4 to 8443 vlan 10", "pass", "allowed"),
            ("tcp 10.20.3.4 to 8443 vlan 10,20", "pass", "allowed"),
            // Nobody asked.
            ("udp 192.0.2.77:67 to 68", "drop", "closed"),
        ];
        for (packet, verdict, reason) in cases {
            let ran = ravelin(&["explain", "-o", "json", "--file", &path, packet]);
            let explanation: Value =
                serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{packet}: {}", ran.stderr));
            assert_eq!(
                (&explanation["verdict"], &explanation["reason"]),
                (&json!(verdict), &json!(reason)),
                "{packet}"
            );
            assert_eq!(ran.code, i32::from(verdict == "drop"), "{packet}");
        }
    }

    #[test]
    fn explain_says_what_the_shell_did() {
        let (_folder, path) = folder(POLICY);
        let ran = ravelin(&["explain", "--file", &path, "tcp", "10.20.3.4", "-"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
        assert!(
            ran.stderr.contains("the shell took '>' as a redirection"),
            "{}",
            ran.stderr
        );
    }

    #[test]
    fn mistakes_of_the_command_line_exit_2_and_teach() {
        let cases: [(&[&str], &str); 12] = [
            (&[], "Usage: ravelin"),
            (&["staatus"], "similar subcommand exists: 'status'"),
            (
                &["explain", "tpc", "10.0.0.1", "to", "80"],
                "did you mean \"tcp\"?",
            ),
            (&["explain", "tcp", "10.0.0.1"], "to which port?"),
            (&["allow", "web", "10.0.0.1", "--for", "2"], "\"2\" has no unit"),
            (
                &["allow", "web", "10.1.2.3/16"],
                "write 10.1.0.0/16 for the network",
            ),
            (&["deny", "0.0.0.0/0"], "any"),
            (&["service", "set", "web"], "Usage: ravelin service set"),
            (&["egress", "set", "lan"], "Usage: ravelin egress set"),
            (&["egress", "add", "lan", "tcp/1"], "give --to or --deny"),
            (
                &["egress", "add", "Lan", "--to", "any"],
                "cannot name an egress rule",
            ),
            (&["status", "-o", "yaml"], "[possible values: table, json]"),
        ];
        for (arguments, text) in cases {
            let ran = ravelin(arguments);
            assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{arguments:?}");
            assert!(ran.stderr.contains(text), "{arguments:?}: {}", ran.stderr);
        }
    }

    #[test]
    fn no_agent_is_a_sentence_and_exit_1() {
        let ran = ravelin(&["status", "--socket", "/nowhere/default.sock"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
        assert_eq!(
            ran.stderr,
            "error: no agent listens at /nowhere/default.sock: start it with `ravelin agent` or `systemctl start ravelin`\n"
        );
        let ran = ravelin(&["status", "--socket", "/nowhere/default.sock", "--wait", "1s"]);
        assert_eq!(ran.code, 1);
    }

    #[test]
    fn completions_and_manual_pages_cover_every_command() {
        for shell in ["bash", "zsh", "fish"] {
            let ran = ravelin(&["completions", shell]);
            assert_eq!(ran.code, 0);
            assert!(
                ran.stdout.contains("explain") && ran.stdout.contains("undeny"),
                "{shell}"
            );
        }
        let page = ravelin(&["man"]);
        assert!(
            page.code == 0 && page.stdout.contains(".TH ravelin 1"),
            "{}",
            page.stdout
        );
        let page = ravelin(&["man", "explain"]).stdout;
        assert!(
            page.contains("ravelin\\-explain") && page.contains(".SH EXAMPLES"),
            "{page}"
        );
        assert_eq!(ravelin(&["man", "exlpain"]).code, 2);
        let page = ravelin(&["man", "service", "add"]).stdout;
        assert!(page.contains("ravelin\\-service\\-add"), "{page}");
        assert_eq!(ravelin(&["man", "service", "ad"]).code, 2);

        let folder = tempfile::tempdir().expect("a temporary folder");
        let dir = folder.path().join("man1");
        let ran = ravelin(&["man", "--dir", dir.to_str().expect("UTF-8")]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        for page in [
            "ravelin.1",
            "ravelin-status.1",
            "ravelin-explain.1",
            "ravelin-service-add.1",
        ] {
            assert!(dir.join(page).is_file(), "{page}");
        }
    }

    #[test]
    fn every_help_has_a_first_line() {
        let root = ravelin(&["--help"]);
        assert_eq!(root.code, 0);
        let commands = root
            .stdout
            .split("Commands:\n")
            .nth(1)
            .and_then(|rest| rest.split("\n\n").next());
        // Deeper lines go on with the description of the line above.
        let lines = commands
            .expect("a list of commands")
            .lines()
            .filter(|line| !line.starts_with("   ") && !line.contains(" help "));
        for line in lines {
            let name = line.split_whitespace().next().expect("a name");
            assert!(line.split_whitespace().count() > 2, "{name} has no description");
            assert_eq!(ravelin(&[name, "--help"]).code, 0, "{name}");
        }
    }

    #[test]
    fn a_reader_that_goes_away_ends_a_command_quietly() {
        let mut child = command(&["completions", "bash"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        drop(child.stdout.take());
        let ran = ran(child.wait_with_output().expect("ends"));
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    }
}

/// An agent that gives one fixed answer to every request and passes on what it was asked.
struct FakeAgent {
    socket: PathBuf,
    asked: Receiver<(String, Value)>,
    _folder: tempfile::TempDir,
}

impl FakeAgent {
    fn new(status: u16, answer: String) -> FakeAgent {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("default.sock");
        let asked = FakeAgent::listen(&socket, status, answer);
        FakeAgent {
            socket,
            asked,
            _folder: folder,
        }
    }

    fn listen(socket: &Path, status: u16, answer: String) -> Receiver<(String, Value)> {
        let listener = UnixListener::bind(socket).expect("the folder is ours");
        let (sender, asked) = channel();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let mut reader = BufReader::new(stream);
                let mut first = String::new();
                let mut length = 0;
                reader.read_line(&mut first).expect("a request");
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).expect("a header");
                    if line.trim().is_empty() {
                        break;
                    }
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().expect("a number");
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).expect("a body");
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let _ = sender.send((first.trim().trim_end_matches(" HTTP/1.1").to_owned(), body));
                let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", answer.len());
                let _ = reader.get_mut().write_all((head + &answer).as_bytes());
            }
        });
        asked
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let socket = self.socket.to_str().expect("UTF-8");
        ravelin(&[&["--socket", socket], arguments].concat())
    }

    fn asked(&self) -> (String, Value) {
        self.asked.recv().expect("it was asked")
    }
}

mod online {
    use super::*;
    use ravelin::api::types::{Applied, Count, CounterRow, DiffLine, EventRecord, Status};

    fn text<T: serde::Serialize>(record: &T) -> String {
        serde_json::to_string(record).expect("records are plain")
    }

    #[test]
    fn edits_send_what_was_typed_and_tell_what_came_of_it() {
        let diff = DiffLine {
            direction: "ingress".into(),
            change: "gains".into(),
            who: "198.51.100.7".into(),
            service: "payments-api".into(),
            ports: vec!["tcp/8443".into()],
            prefixes: Vec::new(),
        };
        let applied = Applied {
            generation: 8,
            digest: "ab".repeat(32),
            changed: true,
            warnings: vec!["a rule that never matches".into()],
            diff: vec![diff],
        };
        let agent = FakeAgent::new(200, text(&applied));
        let ran = agent.run(&["allow", "payments-api", "198.51.100.7", "--for", "1h30m"]);
        assert_eq!(ran.code, 0);
        let (change, end) = ran
            .stdout
            .split_at(ran.stdout.len() - ran.stdout.lines().last().map_or(0, str::len) - 1);
        assert_eq!(
            change,
            "+ 198.51.100.7 gains payments-api (tcp/8443)\ngeneration 8 is in force (digest abababababab)\n"
        );
        assert!(end.starts_with("ends ") && end.ends_with(" UTC\n"), "{end}");
        assert_eq!(ran.stderr, "warning: a rule that never matches\n");
        let edit =
            json!({"op": "allow", "service": "payments-api", "source": "198.51.100.7", "for_seconds": 5400});
        assert_eq!(agent.asked(), ("POST /v1/edit".to_owned(), edit));

        let unchanged = FakeAgent::new(200, text(&Applied::default()));
        let ran = unchanged.run(&["allow", "payments-api", "198.51.100.7"]);
        assert_eq!(
            ran.stdout,
            "nothing changes for any packet: generation 0 stays in force\nit stands in the policy for good\n"
        );

        let cases: [(&[&str], Value); 11] = [
            (
                &["revoke", "web", "@office"],
                json!({"op": "revoke", "service": "web", "source": "@office"}),
            ),
            (
                &["deny", "203.0.113.0/24"],
                json!({"op": "deny", "source": "203.0.113.0/24", "for_seconds": null}),
            ),
            (
                &["undeny", "2001:db8::/32"],
                json!({"op": "undeny", "source": "2001:db8::/32"}),
            ),
            (
                &["service", "add", "web", "tcp/80", "tcp/443", "--allow", "any"],
                json!({"op": "service_add", "name": "web", "ports": ["tcp/80", "tcp/443"], "allow": ["any"], "deny": []}),
            ),
            (
                &["service", "set", "web", "--port", "tcp/80", "--no-deny"],
                json!({"op": "service_set", "name": "web", "ports": ["tcp/80"], "allow": null, "deny": []}),
            ),
            (
                &["service", "set", "web", "--allow", "@web,192.0.2.1"],
                json!({"op": "service_set", "name": "web", "ports": null, "allow": ["@web", "192.0.2.1"], "deny": null}),
            ),
            (
                &["service", "remove", "web"],
                json!({"op": "service_remove", "name": "web"}),
            ),
            (
                &["egress", "add", "dns", "udp/53", "tcp/53", "--to", "@resolvers"],
                json!({"op": "egress_add", "name": "dns", "ports": ["udp/53", "tcp/53"], "to": ["@resolvers"], "deny": []}),
            ),
            (
                &[
                    "egress",
                    "set",
                    "lan",
                    "--every-port",
                    "--to",
                    "10.0.0.0/8,192.0.2.1",
                ],
                json!({"op": "egress_set", "name": "lan", "ports": [], "to": ["10.0.0.0/8", "192.0.2.1"], "deny": null}),
            ),
            (
                &["egress", "set", "lan", "--port", "tcp/80", "--no-to", "--no-deny"],
                json!({"op": "egress_set", "name": "lan", "ports": ["tcp/80"], "to": [], "deny": []}),
            ),
            (
                &["egress", "remove", "lan"],
                json!({"op": "egress_remove", "name": "lan"}),
            ),
        ];
        for (arguments, edit) in cases {
            assert_eq!(agent.run(arguments).code, 0, "{arguments:?}");
            assert_eq!(agent.asked().1, edit);
        }
    }

    #[test]
    fn apply_sends_the_text_and_a_dry_run_says_so() {
        let agent = FakeAgent::new(200, text(&Applied::default()));
        let (_folder, path) = folder(POLICY);
        let ran = agent.run(&["apply", "-f", &path, "--dry-run"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "would change nothing\n"));
        let (request, body) = agent.asked();
        assert_eq!(request, "POST /v1/apply");
        assert_eq!(body, json!({"text": POLICY, "path": path, "dry_run": true}));
    }

    #[test]
    fn a_refusal_is_passed_on_and_exits_1() {
        let agent = FakeAgent::new(
            403,
            json!({"error": "only root may change the policy"}).to_string(),
        );
        let ran = agent.run(&["reload"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
        assert_eq!(ran.stderr, "error: only root may change the policy\n");
    }

    #[test]
    fn status_exits_by_readiness_and_passes_the_wait_on() {
        let agent = FakeAgent::new(
            200,
            text(&Status {
                ready: true,
                ..Status::default()
            }),
        );
        let ran = agent.run(&["status", "-o", "json"]);
        assert_eq!(
            (
                ran.code,
                serde_json::from_str::<Value>(&ran.stdout).expect("JSON")["ready"].clone()
            ),
            (0, json!(true))
        );
        assert_eq!(agent.asked().0, "GET /v1/status?published=true");
        assert_eq!(agent.run(&["status", "--wait", "10s"]).code, 0);
        let asked = agent.asked().0;
        let wait: u64 = asked
            .strip_prefix("GET /v1/status?published=true&wait_ms=")
            .expect(&asked)
            .parse()
            .expect("milliseconds");
        assert!((9_000..=10_000).contains(&wait), "{wait}");

        let agent = FakeAgent::new(200, text(&Status::default()));
        let ran = agent.run(&["status", "--wait", "1s"]);
        assert_eq!(
            (ran.code, ran.stderr.as_str()),
            (1, "error: not in force within 1s\n")
        );
    }

    #[test]
    fn status_waits_for_an_agent_that_only_starts() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("default.sock");
        let child = command(&[
            "--socket",
            socket.to_str().expect("UTF-8"),
            "status",
            "--wait",
            "30s",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
        let _asked = FakeAgent::listen(
            &socket,
            200,
            text(&Status {
                ready: true,
                ..Status::default()
            }),
        );
        assert_eq!(ran(child.wait_with_output().expect("ends")).code, 0);
    }

    #[test]
    fn counters_come_as_a_table_or_as_the_records() {
        let count = Count {
            packets: 1_500,
            bytes: 96_000,
        };
        let row = CounterRow {
            service: String::new(),
            direction: "ingress".into(),
            verdict: "drop".into(),
            reason: "closed".into(),
            count,
        };
        let agent = FakeAgent::new(200, text(&vec![row]));
        assert_eq!(
            agent.run(&["counters"]).stdout,
            "DIRECTION  NAME  VERDICT  REASON  PACKETS   BYTES\ningress    -     drop     closed    1,500  94 KiB\n"
        );
        let rows: Value = serde_json::from_str(&agent.run(&["counters", "-o", "json"]).stdout).expect("JSON");
        assert_eq!(rows[0]["count"], json!({"packets": 1500, "bytes": 96000}));
    }

    #[test]
    fn monitor_ends_after_its_count_and_prints_an_object_a_line() {
        let events: String = (1..=3)
            .map(|port| {
                text(&EventRecord {
                    src_port: Some(port),
                    time: "2026-11-22T01:03:16.250Z".into(),
                    ..EventRecord::default()
                }) + "\n"
            })
            .collect();
        let agent = FakeAgent::new(200, events);
        let ran = agent.run(&["monitor", "--passes", "--count", "2", "-o", "json"]);
        assert_eq!(ran.code, 0);
        let ports: Vec<Value> = ran
            .stdout
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("an object a line")["src_port"].clone())
            .collect();
        assert_eq!(ports, [json!(1), json!(2)]);
        assert_eq!(agent.asked().0, "GET /v1/monitor?passes=true");
        let ran = agent.run(&["monitor"]);
        assert_eq!(
            (ran.code, ran.stderr.as_str()),
            (1, "error: the agent has stopped, and with it the events\n")
        );
    }

    #[test]
    fn the_instance_names_the_socket() {
        let ran = ravelin(&["status", "--instance", "no-such-instance"]);
        assert!(
            ran.stderr.contains("/run/ravelin/no-such-instance.sock"),
            "{}",
            ran.stderr
        );
    }
}
