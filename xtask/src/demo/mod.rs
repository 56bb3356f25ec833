//! `cargo xtask demo`: a node, an allowed peer and a stranger, and the real agent between them.
//!
//! Each step says what it does, does it with the real commands and real sockets, and shows what came of it. A result
//! other than the one announced makes the demo fail: it is a test that people watch.

mod fleet;
mod probe;
mod stage;
mod telling;

use crate::build;
use crate::output::{self, Style, paint};
use crate::setup::{self, Purpose};
use anyhow::{Context, Result, bail};
use probe::Outcome;
use stage::Stage;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use telling::Telling;

/// Show ravelin at work: real agent, real traffic, in network namespaces.
///
/// A node, an allowed peer and a stranger are namespaces of this machine.
/// Installs what is missing and builds, then takes less than a minute. The real agent runs a real policy on the node;
/// nothing outside of the namespaces is touched, and all of it is removed at the end, also on Ctrl-C.
///
/// Needs root and a kernel of 5.15 or later.
#[derive(clap::Args)]
pub struct Args {
    /// Leave the playground up at the end, and print commands to try
    #[arg(long)]
    keep: bool,
    /// Remove a playground that was left up
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
    /// A fleet instead: five nodes, three members of an etcd, signed policies
    #[arg(long, conflicts_with = "keep")]
    fleet: bool,
    /// The services of the node: what the demo starts there
    #[arg(long, hide = true)]
    serve: bool,
}

const POLICY: &str = r#"version = 1
deny = ["@blocked"]                       # beats every allow, on every port

[defaults]
ingress = "deny"

[groups]
web     = ["10.20.0.0/16", "2001:db8:10::/48"]
blocked = ["10.20.66.0/24"]

[[service]]
name  = "payments-api"
ports = ["tcp/8443", "udp/8443"]
allow = ["@web"]                          # nobody else

[[service]]
name  = "ping"
ports = ["icmp/echo"]
allow = ["@web"]
"#;

const API: u16 = 8443;
const SSH: u16 = 22;
const DNS: u16 = 53;
const FLOOD: u32 = 20_000;

pub fn run(args: &Args) -> Result<()> {
    if args.serve {
        return probe::serve(&[API, SSH]);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the demo makes network namespaces and loads kernel programs: run this as root");
    }
    if args.clean {
        let removed = stage::clean();
        println!(
            "{}",
            if removed {
                "the playground is removed"
            } else {
                "there was no playground"
            }
        );
        return Ok(());
    }
    let lock = stage::lock()?;
    check_kernel()?;
    setup::ensure(&[Purpose::Build, Purpose::Demo])?;
    let binary = build::binary(false)?;
    if stage::clean() {
        output::note("removed the playground of an earlier demo");
    }
    stage::clean_on_signals()?;
    if args.fleet {
        fleet::run(binary)?;
        drop(lock);
        return Ok(());
    }
    let start = Instant::now();
    let mut stage = Stage::set(binary)?;
    let mut script = Script {
        stage: &stage,
        telling: Telling::default(),
    };
    let outcome = script.play();
    let told = script.telling;
    outcome?;
    told.as_announced()?;
    let seconds = start.elapsed().as_secs_f32();
    if args.keep {
        stage.keep();
        println!("\n{}", playground(&stage));
    } else {
        drop(stage);
        println!(
            "\nThat was {seconds:.0} seconds; namespaces, programs and files are removed. \
             `cargo xtask demo --keep` leaves them for you to play with."
        );
    }
    drop(lock);
    Ok(())
}

fn check_kernel() -> Result<()> {
    let release =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel's release")?;
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < (5, 15) => {
            bail!("this kernel is {}; ravelin needs 5.15 or later", release.trim())
        }
        _ => Ok(()),
    }
}

struct Script<'a> {
    stage: &'a Stage,
    telling: Telling,
}

impl Script<'_> {
    fn play(&mut self) -> Result<()> {
        self.the_stage();
        self.the_agent()?;
        self.traffic()?;
        self.what_was_counted()?;
        self.why()?;
        self.change()?;
        self.kill()
    }

    fn the_stage(&mut self) {
        self.chapter("The stage: three network namespaces");
        for line in stage::PICTURE {
            output::note(line);
        }
        self.say("The policy of the node. What it does not name is closed:");
        for line in POLICY.lines() {
            output::note(highlight_toml(line));
        }
    }

    fn the_agent(&mut self) -> Result<()> {
        self.chapter("The agent compiles it into the kernel");
        self.stage.write_policy(POLICY)?;
        self.ravelin(&["check", stage::POLICY_FILE], 0)?;
        self.say("");
        output::note(paint(
            Style::Command,
            format!("# ravelin {}", stage::AGENT_FLAGS.join(" ")),
        ));
        self.stage.start_agent()?;
        self.stage.start_services()?;
        self.ravelin(&["status", "--wait", "20s"], 0)
    }

    fn traffic(&mut self) -> Result<()> {
        self.chapter("Real traffic from both sides");
        let [node, node6] = [stage::NODE.into(), stage::NODE6.into()];
        let outside: IpAddr = stage::NODE_OUTSIDE.into();
        let (peer, stranger) = (&self.stage.peer, &self.stage.stranger);
        let api = |address| SocketAddr::new(address, API);

        let outcome = peer.run(|| probe::tcp(api(node), None));
        self.expect(
            "peer      10.20.0.2      tcp/8443",
            "@web is allowed",
            true,
            outcome,
        );
        let outcome = peer.run(|| probe::udp(api(node)));
        self.expect(
            "peer      10.20.0.2      udp/8443",
            "the same service",
            true,
            outcome,
        );
        let outcome = peer.run(|| probe::tcp(api(node6), None));
        self.expect(
            "peer      2001:db8:10::2 tcp/8443",
            "IPv6, the same rule",
            true,
            outcome,
        );
        let outcome = peer.run(|| probe::tcp(api(node), Some(stage::BLOCKED.into())));
        self.expect(
            "peer      10.20.66.7     tcp/8443",
            "in @web, but denied",
            false,
            outcome,
        );
        let outcome = peer.run(|| probe::tcp(SocketAddr::new(node, SSH), None));
        self.expect(
            "peer      10.20.0.2      tcp/22",
            "listening, but no service names it",
            false,
            outcome,
        );
        let outcome = stranger.run(|| probe::tcp(api(outside), None));
        self.expect("stranger  198.51.100.7   tcp/8443", "not in @web", false, outcome);
        let outcome = stranger.run(|| probe::udp(api(outside)));
        self.expect("stranger  198.51.100.7   udp/8443", "not in @web", false, outcome);
        let to = SocketAddr::new(stage::STRANGER.into(), stage::OUTSIDE_PORT);
        let outcome = self.stage.node.run(|| probe::tcp(to, None));
        self.expect(
            "node      198.51.100.1   to the stranger's tcp/80",
            "what the host opens works",
            true,
            outcome,
        );

        let (sent, took) = stranger.run(|| probe::flood(SocketAddr::new(outside, DNS), FLOOD))?;
        let rate = f64::from(sent) / took.as_secs_f64() / 1000.0;
        output::note(format!(
            "stranger  198.51.100.7   udp/53     floods: {sent} datagrams in {:.2} s, {rate:.0} thousand a second",
            took.as_secs_f32()
        ));
        Ok(())
    }

    fn what_was_counted(&mut self) -> Result<()> {
        self.chapter("What was allowed and what was dropped, by service and reason");
        self.ravelin(&["counters"], 0)?;
        self.say("");
        self.ravelin(&["services"], 0)?;
        self.say("The same for Prometheus, read from the kernel's counters while it asks:");
        output::note(paint(
            Style::Command,
            "# curl -s http://127.0.0.1:9477/metrics | grep ...",
        ));
        let page = self
            .stage
            .node
            .run(|| probe::http("127.0.0.1:9477", "/metrics"))?;
        let wanted = |line: &&str| {
            let interesting =
                line.starts_with("ravelin_packets_total{") || line.starts_with("ravelin_policy_");
            interesting && !line.ends_with(" 0")
        };
        let lines: Vec<&str> = page.lines().filter(wanted).collect();
        if lines.is_empty() {
            self.telling.surprise("/metrics holds no ravelin_packets_total");
        }
        for line in lines {
            let (name, value) = line.rsplit_once(' ').unwrap_or((line, ""));
            output::note(format!("{name} {}", paint(Style::Strong, value)));
        }
        Ok(())
    }

    fn why(&mut self) -> Result<()> {
        self.chapter("Why was it dropped? The kernel's own decision, step by step");
        self.ravelin(&["explain", "tcp", "198.51.100.7", "to", "198.51.100.1:8443"], 1)
    }

    fn change(&mut self) -> Result<()> {
        self.chapter("Change the policy: let the stranger in for an hour");
        let to = SocketAddr::new(stage::NODE_OUTSIDE.into(), API);
        let start = Instant::now();
        self.ravelin(&["allow", "payments-api", "198.51.100.7", "--for", "1h"], 0)?;
        let mut connection = self.stage.stranger.run(|| probe::Connection::open(to));
        let took = start.elapsed();
        let outcome = match &mut connection {
            Ok(connection) => connection.ask(),
            Err(_) => Outcome::Silence,
        };
        self.expect(
            "stranger  198.51.100.7   tcp/8443",
            "allowed now, connection stays open",
            true,
            outcome,
        );
        output::note(format!(
            "{} ms from the command to an open connection",
            took.as_millis()
        ));
        self.say("The file itself was edited, comments and order kept:");
        for line in self
            .stage
            .policy()?
            .lines()
            .filter(|line| line.contains("198.51.100.7"))
        {
            output::note(highlight_toml(line));
        }
        self.say("And back. Rules are judged on every packet, so the open connection dies too:");
        self.ravelin(&["revoke", "payments-api", "198.51.100.7"], 0)?;
        let outcome = connection
            .as_mut()
            .map_or(Outcome::Silence, probe::Connection::ask);
        self.expect(
            "stranger  198.51.100.7   tcp/8443",
            "the connection that was open",
            false,
            outcome,
        );

        self.say("A mistake changes nothing, and says where it is:");
        self.stage
            .write_policy(&self.stage.policy()?.replace("tcp/8443", "tpc/8443"))?;
        self.ravelin(&["reload"], 1)?;
        let outcome = self
            .stage
            .peer
            .run(|| probe::tcp(SocketAddr::new(stage::NODE.into(), API), None));
        self.expect(
            "peer      10.20.0.2      tcp/8443",
            "the policy before is in force",
            true,
            outcome,
        );
        self.stage.write_policy(POLICY)?;
        self.ravelin_quietly(&["reload"])
    }

    fn kill(&mut self) -> Result<()> {
        self.chapter("kill -9: the filter lives in the kernel, not in the agent");
        println!("{}", paint(Style::Command, "# kill -9 $(pidof ravelin)"));
        self.stage.kill_agent()?;
        let outcome = self
            .stage
            .stranger
            .run(|| probe::tcp(SocketAddr::new(stage::NODE_OUTSIDE.into(), API), None));
        self.expect(
            "stranger  198.51.100.7   tcp/8443",
            "no agent runs",
            false,
            outcome,
        );
        let outcome = self
            .stage
            .peer
            .run(|| probe::tcp(SocketAddr::new(stage::NODE.into(), API), None));
        self.expect(
            "peer      10.20.0.2      tcp/8443",
            "no agent runs",
            true,
            outcome,
        );
        self.stage.start_agent()?;
        self.ravelin_quietly(&["status", "--wait", "20s"])?;
        output::note("a new agent took over the programs and counters where they are");
        Ok(())
    }

    fn chapter(&mut self, title: &str) {
        self.telling.chapter(title);
    }

    fn say(&self, text: &str) {
        self.telling.say(text);
    }

    fn expect(&mut self, who: &str, why: &str, answered: bool, outcome: Outcome) {
        self.telling.expect(who, why, answered, outcome);
    }

    /// Runs a command of ravelin on this terminal; fails unless it exits with this code.
    fn ravelin(&mut self, arguments: &[&str], code: i32) -> Result<()> {
        self.telling
            .run("ravelin", arguments, self.stage.ravelin(arguments), code)
    }

    /// Runs a command of ravelin that has to succeed and prints nothing.
    fn ravelin_quietly(&self, arguments: &[&str]) -> Result<()> {
        output::read(&mut self.stage.ravelin(arguments)).map(drop)
    }
}

/// Comments faint, as an editor shows them.
fn highlight_toml(line: &str) -> String {
    match line.split_once('#') {
        Some((code, comment)) => format!("{code}{}", paint(Style::Faint, format!("#{comment}"))),
        None => line.to_owned(),
    }
}

fn playground(stage: &Stage) -> String {
    const TRY: &str = "timeout 1 bash -c '</dev/tcp/";
    let mut text = format!(
        "{}\n",
        paint(Style::Heading, "== The playground is up. Paste this first:")
    );
    for line in [
        format!("export RAVELIN_SOCKET={} RAVELIN_INSTANCE=demo", stage::SOCKET),
        format!("ravelin() {{ {} \"$@\"; }}", stage.binary().display()),
        "at() { local where=$1; shift; nsenter --net=/run/netns/ravelin-demo-$where \"$@\"; }".to_owned(),
    ] {
        text.push_str(&format!("{}\n", paint(Style::Command, line)));
    }
    text.push_str(&format!("{}\n", paint(Style::Heading, "== Then try:")));
    let mut line = |command: &str, what: &str| {
        let padded = paint(Style::Command, format!("{command:<68}"));
        text.push_str(&format!(
            "{padded} {}\n",
            paint(Style::Faint, format!("# {what}"))
        ));
    };
    line("ravelin status", "what is in force, on which interfaces");
    line("ravelin monitor &", "drops as they happen; `kill %1` ends it");
    line(
        &format!("at stranger {TRY}198.51.100.1/8443' && echo in"),
        "dropped",
    );
    line(
        "ravelin allow payments-api 198.51.100.7 --for 5m",
        "now it is not",
    );
    line(
        &format!("at peer {TRY}10.20.0.1/8443' && echo in"),
        "allowed: @web",
    );
    line(
        "ravelin explain tcp 10.20.66.7 to 10.20.0.1:8443",
        "which rule, and where it stands",
    );
    line(
        &format!("${{EDITOR:-vi}} {}", stage::POLICY_FILE),
        "applies when you save it",
    );
    line("ravelin counters --watch", "with rates");
    if crate::toolchain::on_path("curl").is_some() {
        line(
            "at node curl -s 127.0.0.1:9477/metrics | grep ^ravelin",
            "what Prometheus scrapes",
        );
    }
    line("cargo xtask demo --clean", "removes all of it");
    text.trim_end().to_owned()
}

/// How long a probe waits before it says that there is no answer.
const PATIENCE: Duration = Duration::from_millis(300);
