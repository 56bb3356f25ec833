//! The real agent, as a process in a namespace, and the command line that talks to it.
//!
//! Each has an instance name, socket, state directory, policy file and pins of its own. Dropping it kills the process
//! and removes the pins, which takes the programs off the interfaces.

use crate::netns::Namespace;
use crate::wait;
use anyhow::{Context, Result, bail, ensure};
use firewall_common::verdict::Direction;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ravelin::api::types::{CounterRow, Status};
use serde::de::DeserializeOwned;
use std::cmp::Ordering as CountOrder;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Begins the names of everything that tests make.
pub const PREFIX: &str = "ravelin-test";
/// Where the agent of a namespace serves metrics; the loopback there is its own.
pub const METRICS: &str = "127.0.0.1:9477";

const PINS: &str = "/sys/fs/bpf/ravelin";

/// The `ravelin` under test: `RAVELIN_BIN`, or the newest one in the target directory that this test was built into.
///
/// # Errors
/// There is none: says how to build it.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("RAVELIN_BIN") {
        return Ok(PathBuf::from(path));
    }
    let test = std::env::current_exe().context("looking for the test's own executable")?;
    // <target>/<profile>/deps/<test>
    let target = test
        .ancestors()
        .nth(3)
        .context("the test does not run from a target directory")?;
    ["debug", "release"]
        .iter()
        .map(|profile| target.join(profile).join("ravelin"))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .with_context(|| {
            format!(
                "no ravelin in {}: run `cargo xtask build --debug`",
                target.display()
            )
        })
}

/// A unique instance name: `ravelin-test-<pid>-<count>`.
fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{PREFIX}-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Ends what killed tests have left running or pinned.
pub fn sweep() {
    let names = |dir: &str| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    for name in names("/proc") {
        let Ok(pid) = name.parse::<i32>() else { continue };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let agent = line.contains("\0agent\0") && line.split('\0').any(is_of_the_dead);
        // A daemon (see `program.rs`) works in a directory of that name.
        let place = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        let daemon = place
            .file_name()
            .is_some_and(|name| is_of_the_dead(&name.to_string_lossy().replace(" (deleted)", "")));
        if agent || daemon {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    for name in names(PINS).iter().filter(|name| is_of_the_dead(name)) {
        let _ = std::fs::remove_dir_all(Path::new(PINS).join(name));
    }
}

/// Whether an instance name is one of [`unique`] in a process that is gone.
fn is_of_the_dead(instance: &str) -> bool {
    let rest = instance
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_prefix('-'));
    let pid = rest
        .and_then(|rest| rest.split('-').next())
        .and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// A running agent, or one that was stopped and can be started again.
#[derive(Debug)]
pub struct Agent {
    namespace: PathBuf,
    instance: String,
    dir: TempDir,
    /// Flags beyond those that name the instance and its files.
    flags: Vec<String>,
    child: Option<Child>,
}

impl Agent {
    /// Starts an agent on these interfaces and waits until its policy is in force.
    ///
    /// # Errors
    /// It exits or does not get ready; the error holds its log.
    pub fn start(namespace: &Namespace, interfaces: &[&str], policy: &str) -> Result<Agent> {
        Agent::start_with(namespace, interfaces, policy, &[])
    }

    /// [`Agent::start`] with more flags.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(
        namespace: &Namespace,
        interfaces: &[&str],
        policy: &str,
        flags: &[&str],
    ) -> Result<Agent> {
        let mut agent = Agent::prepare(namespace, interfaces, policy, flags)?;
        agent.launch(namespace)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Writes the files of an agent without starting it.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn prepare(
        namespace: &Namespace,
        interfaces: &[&str],
        policy: &str,
        flags: &[&str],
    ) -> Result<Agent> {
        let instance = unique();
        let dir = TempDir::with_prefix(format!("{instance}-")).context("making a state directory")?;
        let interfaces = interfaces.iter().flat_map(|name| ["--interface", *name]);
        let flags = interfaces
            .chain(flags.iter().copied())
            .map(str::to_owned)
            .collect();
        let agent = Agent {
            namespace: namespace.path(),
            instance,
            dir,
            flags,
            child: None,
        };
        agent.write_policy(policy)?;
        Ok(agent)
    }

    /// Gives the next start another value of a flag.
    pub fn set_flag(&mut self, flag: &str, value: &str) {
        match self.flags.iter().position(|one| one == flag) {
            Some(at) if at + 1 < self.flags.len() => value.clone_into(&mut self.flags[at + 1]),
            _ => self.flags.extend([flag.to_owned(), value.to_owned()]),
        }
    }

    pub fn instance(&self) -> &str {
        &self.instance
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("run/ravelin.sock")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn policy_file(&self) -> PathBuf {
        self.dir.path().join("policy.toml")
    }

    /// The directory of this instance in the BPF file system.
    pub fn pins(&self) -> PathBuf {
        Path::new(PINS).join(&self.instance)
    }

    /// All that the agent has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The command that runs this agent, with all its flags.
    ///
    /// # Errors
    /// See [`binary`].
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command
            .arg("agent")
            .args(["--instance", &self.instance])
            .arg("--policy")
            .arg(self.policy_file())
            .arg("--socket")
            .arg(self.socket())
            .arg("--state-dir")
            .arg(self.state_dir())
            .args(&self.flags)
            .env_remove("RAVELIN_CONFIG")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null());
        if !self.flags.iter().any(|flag| flag == "--metrics") {
            command.args(["--metrics", METRICS]);
        }
        Ok(command)
    }

    /// Starts the process; it need not be ready.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn launch(&mut self, namespace: &Namespace) -> Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("agent.log"))
            .context("opening the log")?;
        let mut command = self.command()?;
        command
            .stdout(log.try_clone().context("sharing the log")?)
            .stderr(log);
        self.child = Some(
            namespace
                .run(move || command.spawn())
                .context("starting the agent")?,
        );
        Ok(())
    }

    /// Waits until the policy is in force, by `ravelin status --wait`.
    ///
    /// # Errors
    /// The agent exits, or says that it will not get ready; the error holds its log.
    pub fn wait_ready(&mut self) -> Result<Status> {
        let output = self.cli(&["status", "--wait", "20s", "-o", "json"])?;
        if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
            bail!("the agent exited ({status}); its log:\n{}", self.log());
        }
        ensure!(
            output.status.success(),
            "`ravelin status --wait` failed ({}): {}{}\nthe agent's log:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        serde_json::from_slice(&output.stdout).context("reading the status")
    }

    /// Runs `ravelin` with these arguments against this agent's socket.
    ///
    /// # Errors
    /// It cannot be started; a failure is in the output.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(binary()?)
            .args(arguments)
            .arg("--socket")
            .arg(self.socket())
            .env_remove("RAVELIN_CONFIG")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .context("starting ravelin")
    }

    /// [`Agent::cli`] that has to succeed; gives its standard output.
    ///
    /// # Errors
    /// It fails: the error holds what it said.
    pub fn ok(&self, arguments: &[&str]) -> Result<String> {
        let output = self.cli(arguments)?;
        ensure!(
            output.status.success(),
            "`ravelin {}` failed ({}): {}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// [`Agent::ok`] with `-o json`, read.
    ///
    /// # Errors
    /// As there, or the output is not what it should be.
    pub fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let text = self.ok(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("reading the output of {arguments:?}: {text}"))
    }

    /// The status, ready or not.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn status(&self) -> Result<Status> {
        let output = self.cli(&["status", "-o", "json"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("reading the status: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Packets that came in, by (service, verdict, reason); no service is empty.
    ///
    /// # Errors
    /// As [`Agent::json`].
    pub fn counts(&self) -> Result<Counts> {
        self.counts_of(Direction::Ingress)
    }

    /// Packets of one direction. Of what leaves, an egress rule stands in the place of the service.
    ///
    /// # Errors
    /// As [`Agent::json`].
    pub fn counts_of(&self, direction: Direction) -> Result<Counts> {
        let rows: Vec<CounterRow> = self.json(&["counters"])?;
        Ok(Counts(
            rows.into_iter()
                .filter(|row| row.direction == direction.word())
                .map(|row| ((row.service, row.verdict, row.reason), row.count.packets))
                .collect(),
        ))
    }

    /// Does something, and waits until exactly this many packets more have ended so: (service, verdict, reason).
    ///
    /// # Errors
    /// The work fails, or the agent does not answer.
    ///
    /// # Panics
    /// They do not come, or too many come.
    #[track_caller]
    pub fn expect(
        &self,
        (service, verdict, reason): (&str, &str, &str),
        packets: u64,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let before = self.counts()?;
        work()?;
        let what = format!("{packets} packets of \"{service}\" to {verdict} as {reason}");
        self.wait_counts(&what, &before, |counts| {
            counts.of(service, verdict, reason).cmp(&packets)
        });
        Ok(())
    }

    /// Does something, and waits until exactly this many packets more were dropped, whatever for; gives all that was
    /// counted meanwhile.
    ///
    /// # Errors
    /// As [`Agent::expect`].
    ///
    /// # Panics
    /// As there.
    #[track_caller]
    pub fn expect_drops(&self, packets: u64, work: impl FnOnce() -> Result<()>) -> Result<Counts> {
        let before = self.counts()?;
        work()?;
        let what = format!("{packets} dropped packets");
        Ok(self.wait_counts(&what, &before, |counts| counts.verdict("drop").cmp(&packets)))
    }

    #[track_caller]
    fn wait_counts(&self, what: &str, before: &Counts, compare: impl Fn(&Counts) -> CountOrder) -> Counts {
        let (counts, _) = wait::until(what, || {
            let counts = match self.counts() {
                Ok(counts) => counts.since(before),
                Err(error) => return Err(format!("{error:#}")),
            };
            match compare(&counts) {
                CountOrder::Less => Err(format!("{counts:?}")),
                CountOrder::Equal => Ok(counts),
                CountOrder::Greater => panic!("more than {what}: {counts:?}"),
            }
        });
        counts
    }

    /// Puts a policy in the place of the file, in one step.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_policy(&self, text: &str) -> Result<()> {
        let path = self.policy_file();
        let new = path.with_extension("new");
        std::fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
        std::fs::rename(&new, &path).with_context(|| format!("replacing {}", path.display()))
    }

    /// Puts a policy in place and waits until it is in force.
    ///
    /// # Errors
    /// The agent refuses it.
    pub fn apply(&self, text: &str) -> Result<()> {
        self.write_policy(text)?;
        self.ok(&["reload"]).map(drop)
    }

    /// kill -9, and waits until the process is gone.
    ///
    /// # Errors
    /// It was not running.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the agent is not running")?;
        child.kill().context("killing the agent")?;
        child.wait().context("waiting for the agent")?;
        Ok(())
    }

    /// SIGTERM, and waits until the process is gone.
    ///
    /// # Errors
    /// It was not running, or does not end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let mut child = self.child.take().context("the agent is not running")?;
        let (status, _) = wait::until("the agent to end on SIGTERM", || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs".to_owned()),
            Err(error) => Err(error.to_string()),
        });
        Ok(status)
    }

    /// # Errors
    /// It was not running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().context("the agent is not running")?;
        kill(Pid::from_raw(pid.cast_signed()), signal).context("signalling the agent")
    }

    /// The page at `/metrics`, `/healthz` or `/readyz`: status code and body.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn http(&self, namespace: &Namespace, path: &str) -> Result<(u16, String)> {
        namespace.run(|| {
            let address: SocketAddr = METRICS.parse()?;
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nHost: {METRICS}\r\nConnection: close\r\n\r\n"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let (head, body) = answer
                .split_once("\r\n\r\n")
                .context("an answer without a body")?;
            let code = head.split(' ').nth(1).context("an answer without a status")?;
            Ok((code.parse()?, body.to_owned()))
        })
    }

    /// The sum of the samples of a metric that carry all these labels.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn metric(&self, namespace: &Namespace, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let (code, body) = self.http(namespace, "/metrics")?;
        ensure!(code == 200, "/metrics answers {code}: {body}");
        Ok(sum_samples(&body, name, labels))
    }

    /// The namespace it runs in, as a file.
    pub fn namespace(&self) -> &Path {
        &self.namespace
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of agent {}:\n{}", self.instance, self.log());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(self.pins());
    }
}

/// Packets by (service, verdict, reason).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub BTreeMap<(String, String, String), u64>);

impl Counts {
    /// Packets that ended like this.
    pub fn of(&self, service: &str, verdict: &str, reason: &str) -> u64 {
        let key = (service.to_owned(), verdict.to_owned(), reason.to_owned());
        self.0.get(&key).copied().unwrap_or(0)
    }

    /// Packets of a verdict, whatever the service and reason.
    pub fn verdict(&self, verdict: &str) -> u64 {
        self.0
            .iter()
            .filter(|((_, of, _), _)| of == verdict)
            .map(|(_, packets)| packets)
            .sum()
    }

    /// What was added since `before`, without what was not.
    #[must_use]
    pub fn since(&self, before: &Counts) -> Counts {
        let added = self
            .0
            .iter()
            .map(|(key, packets)| (key, packets - before.0.get(key).copied().unwrap_or(0)));
        Counts(
            added
                .filter(|(_, packets)| *packets > 0)
                .map(|(key, packets)| (key.clone(), packets))
                .collect(),
        )
    }
}

/// Sums the samples of one metric in a page of the Prometheus text format.
pub fn sum_samples(page: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    page.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (label_text, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once('}')?,
                None => ("", rest.strip_prefix(' ').map(|_| rest)?),
            };
            let all = labels.iter().all(|(key, value)| {
                let wanted = format!("{key}=\"{value}\"");
                label_text
                    .split("\",")
                    .any(|part| part.trim_end_matches('"') == wanted.trim_end_matches('"'))
            });
            if all {
                value.split_whitespace().next()?.parse::<f64>().ok()
            } else {
                None
            }
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_samples_that_carry_the_labels() {
        let page = "# HELP x_total y\n# TYPE x_total counter\n\
                    x_total{service=\"a\",verdict=\"pass\"} 3\nx_total{service=\"b\",verdict=\"pass\"} 4\n\
                    x_total{service=\"\",verdict=\"drop\"} 8\nx_totals{service=\"a\"} 100\nplain 2\n";
        assert_eq!(sum_samples(page, "x_total", &[("verdict", "pass")]), 7.0);
        assert_eq!(
            sum_samples(page, "x_total", &[("service", "a"), ("verdict", "pass")]),
            3.0
        );
        assert_eq!(sum_samples(page, "x_total", &[("service", "")]), 8.0);
        assert_eq!(sum_samples(page, "plain", &[]), 2.0);
    }
}
