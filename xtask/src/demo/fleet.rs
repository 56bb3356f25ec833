//! `cargo xtask demo --fleet`: a fleet of nodes in namespaces with one etcd. A signed policy comes in force everywhere, a tampered one
//! nowhere; a node that joins is admitted elsewhere; etcd is killed, and nobody notices but operators.

#[path = "../../../tests/src/etcd.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod etcd;

use super::probe::{self, Outcome};
use super::stage::{self, DIR, FABRIC, FLEET, Namespace, netns};
use super::telling::Telling;
use super::{API, SSH, highlight_toml};
use crate::output::{self, Style, paint};
use crate::setup;
use anyhow::{Context, Result, bail, ensure};
use etcd::{Cluster, Place, ROOT};
use nix::sys::signal::Signal;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const POLICY: &str = r#"version = 1

[policy]
name  = "payments"
nodes = "role=payments"                   # where it holds

[groups]                                  # who is a front end is told by the nodes, within these bounds
frontends = { nodes = "role=frontend", within = ["10.30.0.0/24"] }

[[service]]
name  = "payments-api"
ports = ["tcp/8443"]
allow = ["@frontends"]
"#;

const PICTURE: &[&str] = &[
    "  db-1, db-2  10.30.0.21, .22  role=payments ──┐",
    "  web-1, -2   10.30.0.31, .32  role=frontend ──┼── 10.30.0.0/24 ── etcd at .11, .12, .13; operators",
    "  batch-1     10.30.0.41       role=batch    ──┘",
];

/// The node that joins later.
const NEWCOMER: &str = "web-3";
const KEY: &str = "/ravelin/policies/payments";
/// How long anything may take on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn run(binary: PathBuf) -> Result<()> {
    let start = Instant::now();
    let mut fleet = Fleet::set(binary)?;
    let mut telling = Telling::default();
    fleet.play(&mut telling)?;
    telling.as_announced()?;
    drop(fleet);
    println!(
        "\nThat was {:.0} seconds; namespaces, programs, etcd and files are removed.",
        start.elapsed().as_secs_f32()
    );
    Ok(())
}

struct Node {
    name: &'static str,
    address: Ipv4Addr,
    role: &'static str,
    namespace: Namespace,
}

/// Namespaces and what runs in them, removed on drop.
struct Fleet {
    binary: PathBuf,
    nodes: Vec<Node>,
    cluster: Cluster,
    fabric: Namespace,
    _cleaner: Cleaner,
}

/// Removes what the others have left, at the end.
struct Cleaner;

impl Drop for Cleaner {
    fn drop(&mut self) {
        stage::clean();
    }
}

impl Fleet {
    fn set(binary: PathBuf) -> Result<Fleet> {
        std::fs::create_dir_all(DIR).with_context(|| format!("making {DIR}"))?;
        let cleaner = Cleaner;
        let fabric = Namespace::create(FABRIC)?;
        fabric.ip("link add br0 type bridge")?;
        fabric.ip("link set br0 up")?;
        fabric.address("br0", "10.30.0.1/24")?;
        let members = [11, 12, 13].map(|last| Ipv4Addr::new(10, 30, 0, last));
        for member in members {
            fabric.address("br0", &format!("{member}/32"))?;
        }
        let nodes = FLEET
            .into_iter()
            .map(|(name, last, role)| {
                let node = Node {
                    name,
                    address: Ipv4Addr::new(10, 30, 0, last),
                    role,
                    namespace: Namespace::create(&format!("ravelin-demo-{name}"))?,
                };
                netns::link((&node.namespace, "eth0"), (&fabric, name), 1500)?;
                fabric.ip(&format!("link set {name} master br0"))?;
                node.namespace.address("eth0", &format!("{}/24", node.address))?;
                Ok(node)
            })
            .collect::<Result<Vec<Node>>>()?;
        output::note("three members of etcd get together");
        let mut place = Place::inside("ravelin-demo", &fabric.path(), &members.map(Into::into));
        (place.etcd, place.etcdctl) = (setup::ETCD.path()?, setup::ETCDCTL.path()?);
        let fleet = Fleet {
            binary,
            nodes,
            cluster: Cluster::start(place)?,
            fabric,
            _cleaner: cleaner,
        };
        fleet.note_etcd()?;
        fleet.write_files()?;
        Ok(fleet)
    }

    fn note_etcd(&self) -> Result<()> {
        for member in self.cluster.members() {
            if let Some(pid) = self.cluster.pid(member) {
                stage::note(&format!("etcd-{member}"), pid)?;
            }
        }
        let ca = self.cluster.ca();
        stage::note_etcd(ca.parent().context("a certificate's directory")?)
    }

    /// Keys, whom nodes trust, the context of the operator, and the configuration of each node.
    fn write_files(&self) -> Result<()> {
        let write = |file: &str, text: &str| {
            std::fs::write(format!("{DIR}/{file}"), text).with_context(|| format!("writing {DIR}/{file}"))
        };
        output::read(
            Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", ""])
                .args(["-C", "alice@example.net", "-f", &format!("{DIR}/alice")]),
        )?;
        let public = std::fs::read_to_string(format!("{DIR}/alice.pub")).context("reading alice's key")?;
        write("allowed_signers", &format!("alice@example.net {public}"))?;
        write("payments.toml", POLICY)?;
        write(
            "context.toml",
            &format!(
                "{}\n[sign]\nkey = \"{DIR}/alice\"\n\n[trust]\nallowed_signers = \"{DIR}/allowed_signers\"\n",
                self.cluster.settings("alice")?
            ),
        )?;
        for node in &self.nodes {
            let Node { name, role, .. } = node;
            std::fs::create_dir_all(format!("{DIR}/{name}")).context("making a node's directory")?;
            write(&format!("{name}/policy.toml"), "version = 1\n")?;
            write(
                &format!("{name}/agent.toml"),
                &format!(
                    "policy = \"{DIR}/{name}/policy.toml\"\n\n{}\n[trust]\nallowed_signers = \
                     \"{DIR}/allowed_signers\"\n\n[fleet]\nname = \"{name}\"\nlabels = {{ role = \"{role}\" }}\n",
                    self.cluster.settings(name)?
                ),
            )?;
        }
        Ok(())
    }

    fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| format!("there is no node {name}"))
    }

    fn start_agent(&self, name: &str) -> Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(format!("{DIR}/{name}/agent.log"))
            .context("opening the log")?;
        let mut command = Command::new(&self.binary);
        command
            .arg("agent")
            .args(["--config", &format!("{DIR}/{name}/agent.toml")])
            .args(["--instance", &format!("demo-{name}")])
            .args(["--interface", "eth0", "--flows-max", "4096"])
            .args(["--socket", &format!("{DIR}/{name}/run/ravelin.sock")])
            .args(["--state-dir", &format!("{DIR}/{name}/state")])
            .env_remove("RAVELIN_CONFIG")
            .stdout(log.try_clone()?)
            .stderr(log);
        stage::start(&self.node(name)?.namespace, &format!("agent-{name}"), command)
    }

    fn wait_agent(&self, name: &str) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command
            .args(["status", "--wait", "30s"])
            .env("RAVELIN_SOCKET", format!("{DIR}/{name}/run/ravelin.sock"));
        output::read(&mut command)
            .with_context(|| std::fs::read_to_string(format!("{DIR}/{name}/agent.log")).unwrap_or_default())
            .map(drop)
    }

    /// `ravelin` as the operator runs it.
    fn operator(&self, arguments: &[&str]) -> Command {
        // The namespace is the operator's; the mounts are this program's.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.fabric.path().display()))
            .arg(&self.binary)
            .args(arguments)
            .current_dir(DIR)
            .env("RAVELIN_CONTEXT", format!("{DIR}/context.toml"));
        command
    }

    fn ravelin(&self, telling: &mut Telling, arguments: &[&str], code: i32) -> Result<()> {
        telling.run("ravelin", arguments, self.operator(arguments), code)
    }

    /// Waits until a row that `ravelin` prints as JSON for this command is as it should be.
    fn wait_row(
        &self,
        arguments: &[&str],
        name: &str,
        condition: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<()> {
        let begin = Instant::now();
        loop {
            let output = self
                .operator(&[arguments, &["-o", "json"]].concat())
                .output()
                .context("starting ravelin")?;
            let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if rows.iter().any(|row| row["name"] == name && condition(row)) {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                bail!(
                    "`ravelin {}` does not get where it should: {}{}",
                    arguments.join(" "),
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_applied(&self) -> Result<()> {
        self.wait_row(&["policies"], "payments", |row| {
            row["meant"].as_u64() > Some(0) && row["meant"] == row["applied"]
        })
    }

    fn wait_state(&self, name: &str, state: &str) -> Result<()> {
        self.wait_row(&["nodes"], name, |row| row["state"] == state)
    }

    fn probe(&self, from: &str, to: &str, port: u16) -> Result<Outcome> {
        let to = SocketAddr::new(self.node(to)?.address.into(), port);
        Ok(self.node(from)?.namespace.run(|| probe::tcp(to, None)))
    }

    fn expect(
        &self,
        telling: &mut Telling,
        (from, to, port): (&str, &str, u16),
        answered: bool,
        why: &str,
    ) -> Result<()> {
        let outcome = self.probe(from, to, port)?;
        let address = self.node(from)?.address;
        telling.expect(
            &format!("{from:<8} {address:<12} to {to} tcp/{port}"),
            why,
            answered,
            outcome,
        );
        Ok(())
    }

    fn play(&mut self, telling: &mut Telling) -> Result<()> {
        self.the_fleet(telling)?;
        self.a_signed_policy(telling)?;
        self.a_tampered_one(telling)?;
        self.a_newcomer(telling)?;
        self.without_etcd(telling)?;
        self.and_back(telling)
    }

    fn the_fleet(&self, telling: &mut Telling) -> Result<()> {
        telling.chapter("The fleet: five nodes, and an etcd of three members with TLS");
        for line in PICTURE {
            output::note(line);
        }
        telling
            .say("Each runs the same agent, which knows its labels, its etcd, and whose signatures count:");
        let config = std::fs::read_to_string(format!("{DIR}/web-1/agent.toml")).context("reading it back")?;
        for line in config.lines() {
            output::note(highlight_toml(line));
        }
        for node in self.nodes.iter().filter(|node| node.name != NEWCOMER) {
            self.start_agent(node.name)?;
        }
        for node in self.nodes.iter().filter(|node| node.name != NEWCOMER) {
            self.wait_agent(node.name)?;
            self.wait_state(node.name, "ok")?;
        }
        for name in ["db-1", "db-2"] {
            let mut services = Command::new(std::env::current_exe().context("looking for this program")?);
            services.args(["demo", "--serve"]);
            stage::start(&self.node(name)?.namespace, &format!("services-{name}"), services)?;
        }
        telling.say("");
        self.ravelin(telling, &["nodes"], 0)
    }

    fn a_signed_policy(&self, telling: &mut Telling) -> Result<()> {
        telling.chapter("A policy for some of them, signed by an operator's SSH key");
        for line in POLICY.lines() {
            output::note(highlight_toml(line));
        }
        self.expect(telling, ("web-1", "db-1", API), false, "no policy yet")?;
        let start = Instant::now();
        self.ravelin(telling, &["apply", "-f", "payments.toml", "--fleet"], 0)?;
        self.wait_applied()?;
        output::note(format!(
            "{} ms from the command until both nodes report it",
            start.elapsed().as_millis()
        ));
        self.ravelin(telling, &["policies"], 0)?;
        telling.say("");
        self.expect(telling, ("web-1", "db-1", API), true, "a front end")?;
        self.expect(telling, ("web-2", "db-2", API), true, "a front end")?;
        self.expect(telling, ("batch-1", "db-1", API), false, "none")?;
        self.expect(
            telling,
            ("web-1", "db-1", SSH),
            false,
            "listening, but no service names it",
        )
    }

    fn a_tampered_one(&self, telling: &mut Telling) -> Result<()> {
        telling.chapter("Whoever owns etcd changes the policy there");
        let value = self.cluster.ctl(ROOT, &["get", KEY, "--print-value-only"])?;
        let value = value.strip_suffix('\n').unwrap_or(&value);
        let tampered = value.replace("[\"@frontends\"]", "[\"10.0.0.0/8\"]");
        ensure!(tampered != value, "the policy is not stored as it was written");
        println!(
            "{}",
            paint(
                Style::Command,
                format!("# etcdctl get {KEY} | sed 's,@frontends,10.0.0.0/8,' | etcdctl put {KEY}")
            )
        );
        self.cluster.ctl(ROOT, &["put", KEY, &tampered])?;
        for name in ["db-1", "db-2"] {
            self.wait_state(name, "failed")?;
        }
        self.ravelin(telling, &["nodes"], 0)?;
        telling.say("");
        self.expect(telling, ("batch-1", "db-1", API), false, "nobody signed that")?;
        self.expect(telling, ("web-1", "db-1", API), true, "what was good stays")?;
        telling.say("Put back as it was, it is the policy again:");
        self.cluster.ctl(ROOT, &["put", KEY, value])?;
        for name in ["db-1", "db-2"] {
            self.wait_state(name, "ok")?;
        }
        self.ravelin(telling, &["policies"], 0)
    }

    fn a_newcomer(&self, telling: &mut Telling) -> Result<()> {
        telling.chapter("A node joins, and is let in elsewhere");
        self.expect(telling, (NEWCOMER, "db-1", API), false, "nobody knows it")?;
        self.start_agent(NEWCOMER)?;
        let registered = format!("/ravelin/nodes/{NEWCOMER}");
        let begin = Instant::now();
        while self
            .cluster
            .ctl(ROOT, &["get", &registered, "--keys-only"])?
            .trim()
            .is_empty()
        {
            ensure!(begin.elapsed() < PATIENCE, "{NEWCOMER} does not register");
        }
        let begin = Instant::now();
        while self.probe(NEWCOMER, "db-1", API)? == Outcome::Silence {
            ensure!(begin.elapsed() < PATIENCE, "{NEWCOMER} is not let in");
        }
        let took = begin.elapsed();
        self.expect(
            telling,
            (NEWCOMER, "db-1", API),
            true,
            "a front end of its own accord",
        )?;
        output::note(format!(
            "at most {} ms from its registration to an open connection",
            took.as_millis()
        ));
        Ok(())
    }

    fn without_etcd(&mut self, telling: &mut Telling) -> Result<()> {
        telling.chapter("etcd is killed, all of it");
        println!("{}", paint(Style::Command, "# kill -9 $(pidof etcd)"));
        self.cluster.kill_all()?;
        self.ravelin(telling, &["nodes"], 1)?;
        telling.say(
            "Nodes go on, and also if their agent dies, too: the last good policies are on their disks.",
        );
        self.expect(telling, ("web-1", "db-1", API), true, "a front end")?;
        self.expect(telling, ("batch-1", "db-1", API), false, "none")?;
        println!(
            "{}",
            paint(Style::Command, "# kill -9 $(pidof ravelin)   # on db-1")
        );
        ensure!(
            stage::end("agent-db-1", Signal::SIGKILL),
            "the agent of db-1 does not run"
        );
        self.expect(telling, ("web-1", "db-1", API), true, "no agent runs")?;
        self.start_agent("db-1")?;
        self.wait_agent("db-1")?;
        self.expect(telling, ("web-1", "db-1", API), true, "started without etcd")?;
        self.expect(
            telling,
            (NEWCOMER, "db-1", API),
            true,
            "who was there counts until somebody says otherwise",
        )?;
        self.expect(telling, ("batch-1", "db-1", API), false, "started without etcd")
    }

    fn and_back(&mut self, telling: &mut Telling) -> Result<()> {
        telling.chapter("And back");
        self.cluster.start_all()?;
        self.note_etcd()?;
        for name in ["db-1", "db-2"] {
            self.wait_state(name, "ok")?;
        }
        let allow = [
            "allow",
            "payments-api",
            "10.30.0.41",
            "--fleet",
            "--policy",
            "payments",
        ];
        self.ravelin(telling, &allow, 0)?;
        self.wait_applied()?;
        self.expect(telling, ("batch-1", "db-1", API), true, "allowed now")?;
        telling.say("");
        self.ravelin(telling, &["nodes"], 0)
    }
}
