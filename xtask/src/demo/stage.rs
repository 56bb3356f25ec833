//! The stage of the demo: its namespaces, processes and files, and how they go away.
//!
//! Everything has a fixed name, so that it can be removed by whoever comes next: the demo at its end, on Ctrl-C or
//! SIGTERM, the next demo, or `cargo xtask demo --clean`.

#[path = "../../../tests/src/netns.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
pub mod netns;

use super::probe;
use anyhow::{Context, Result, bail};
pub use netns::Namespace;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);
pub const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, 1);
pub const NODE_OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const BLOCKED: Ipv4Addr = Ipv4Addr::new(10, 20, 66, 7);
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// A server of the stranger's, for what the node opens.
pub const OUTSIDE_PORT: u16 = 80;

pub const PICTURE: &[&str] = &[
    "  peer                                  node                                stranger",
    "  10.20.0.2, 2001:db8:10::2 ── eth0 10.20.0.1   198.51.100.1 eth1 ── 198.51.100.7",
    "  10.20.66.7 (blocked)          2001:db8:10::1",
    "                                ravelin agent: XDP on eth0 and eth1",
];

pub const DIR: &str = "/run/ravelin-demo";
const LOCK: &str = "/run/ravelin-demo.lock";
pub const POLICY_FILE: &str = "/run/ravelin-demo/policy.toml";
pub const SOCKET: &str = "/run/ravelin-demo/agent/ravelin.sock";
const STATE: &str = "/run/ravelin-demo/state";
const LOG: &str = "/run/ravelin-demo/agent.log";
const PINS: &str = "/sys/fs/bpf/ravelin/demo";
/// Nodes of the fleet's demo: name, last part of the address, role.
pub const FLEET: [(&str, u8, &str); 6] = [
    ("db-1", 21, "payments"),
    ("db-2", 22, "payments"),
    ("web-1", 31, "frontend"),
    ("web-2", 32, "frontend"),
    ("batch-1", 41, "batch"),
    ("web-3", 33, "frontend"),
];
/// What joins them.
pub const FABRIC: &str = "ravelin-demo-fabric";
/// Holds the directory of the fleet's etcd.
const ETCD_DIR: &str = "/run/ravelin-demo/etcd.dir";
const NAMESPACES: [&str; 3] = ["ravelin-demo-node", "ravelin-demo-peer", "ravelin-demo-stranger"];

/// The agent's command line.
pub const AGENT_FLAGS: &[&str] = &[
    "agent",
    "--instance",
    "demo",
    "--interface",
    "eth*",
    "--policy",
    POLICY_FILE,
    "--socket",
    SOCKET,
    "--state-dir",
    STATE,
];

/// Three namespaces and what runs in them, removed on drop.
pub struct Stage {
    pub node: Namespace,
    pub peer: Namespace,
    pub stranger: Namespace,
    binary: PathBuf,
    kept: bool,
}

impl Stage {
    /// # Errors
    /// A namespace or link cannot be made; what was made is removed.
    pub fn set(binary: PathBuf) -> Result<Stage> {
        std::fs::create_dir_all(DIR).with_context(|| format!("making {DIR}"))?;
        let [node, peer, stranger] = NAMESPACES.map(Namespace::create);
        let stage = Stage {
            node: node?,
            peer: peer?,
            stranger: stranger?,
            binary,
            kept: false,
        };
        netns::link((&stage.node, "eth0"), (&stage.peer, "eth0"), 1500)?;
        netns::link((&stage.node, "eth1"), (&stage.stranger, "eth0"), 1500)?;
        for (namespace, interface, address) in [
            (&stage.node, "eth0", "10.20.0.1/16"),
            (&stage.node, "eth0", "2001:db8:10::1/64"),
            (&stage.node, "eth1", "198.51.100.1/24"),
            (&stage.peer, "eth0", "10.20.0.2/16"),
            (&stage.peer, "eth0", "10.20.66.7/16"),
            (&stage.peer, "eth0", "2001:db8:10::2/64"),
            (&stage.stranger, "eth0", "198.51.100.7/24"),
        ] {
            namespace.address(interface, address)?;
        }
        let listener = stage
            .stranger
            .run(|| TcpListener::bind(SocketAddr::new(STRANGER.into(), OUTSIDE_PORT)))
            .context("starting the stranger's server")?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                probe::echo(stream);
            }
        });
        Ok(stage)
    }

    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Leaves everything there.
    pub fn keep(&mut self) {
        self.kept = true;
        for namespace in [&mut self.node, &mut self.peer, &mut self.stranger] {
            namespace.keep();
        }
    }

    pub fn policy(&self) -> Result<String> {
        std::fs::read_to_string(POLICY_FILE).with_context(|| format!("reading {POLICY_FILE}"))
    }

    /// Puts the policy into the place of the file, in one step.
    pub fn write_policy(&self, text: &str) -> Result<()> {
        let new = format!("{POLICY_FILE}.new");
        std::fs::write(&new, text).with_context(|| format!("writing {new}"))?;
        std::fs::rename(&new, POLICY_FILE).with_context(|| format!("replacing {POLICY_FILE}"))
    }

    /// Starts the agent on the node; `ravelin status --wait` tells when it is ready.
    pub fn start_agent(&self) -> Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(LOG)
            .context("opening the log")?;
        let mut command = Command::new(&self.binary);
        command
            .args(AGENT_FLAGS)
            .env_remove("RAVELIN_CONFIG")
            .stdout(log.try_clone()?)
            .stderr(log);
        self.start("agent", command)
    }

    /// kill -9.
    pub fn kill_agent(&self) -> Result<()> {
        if !end("agent", Signal::SIGKILL) {
            bail!(
                "the agent does not run; its log:\n{}",
                std::fs::read_to_string(LOG).unwrap_or_default()
            );
        }
        Ok(())
    }

    /// Starts what listens on the node.
    pub fn start_services(&self) -> Result<()> {
        let program = std::env::current_exe().context("looking for this program")?;
        let mut command = Command::new(program);
        command
            .args(["demo", "--serve"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.start("services", command)
    }

    fn start(&self, name: &str, command: Command) -> Result<()> {
        start(&self.node, name, command)
    }

    /// `ravelin` with these arguments, against the demo's agent.
    pub fn ravelin(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .env("RAVELIN_SOCKET", SOCKET)
            .env("RAVELIN_INSTANCE", "demo")
            .stdin(Stdio::null());
        command
    }
}

/// Starts a process that Ctrl-C does not reach, and notes its id.
pub fn start(namespace: &Namespace, name: &str, mut command: Command) -> Result<()> {
    command.stdin(Stdio::null()).process_group(0);
    let child = namespace
        .run(move || command.spawn())
        .with_context(|| format!("starting the {name}"))?;
    note(name, child.id())?;
    // Reaps it: a dead child would keep its process id.
    std::thread::spawn(move || {
        let mut child = child;
        let _ = child.wait();
    });
    Ok(())
}

/// Notes the id of a process for whoever cleans up.
pub fn note(name: &str, pid: u32) -> Result<()> {
    let file = format!("{DIR}/{name}.pid");
    std::fs::write(&file, pid.to_string()).with_context(|| format!("writing {file}"))
}

/// Notes where etcd has its data, for whoever cleans up.
pub fn note_etcd(dir: &Path) -> Result<()> {
    std::fs::write(ETCD_DIR, dir.display().to_string()).with_context(|| format!("writing {ETCD_DIR}"))
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.kept {
            clean();
        }
    }
}

/// Keeps two demos from meeting.
///
/// # Errors
/// One is running.
pub fn lock() -> Result<Flock<File>> {
    let file = File::create(LOCK).with_context(|| format!("opening {LOCK}"))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!("a demo is running already: wait for its end"),
        Err((_, error)) => Err(error).with_context(|| format!("locking {LOCK}")),
    }
}

/// Removes all that a demo makes, whoever made it; gives whether there was anything.
pub fn clean() -> bool {
    let mut found = false;
    for entry in std::fs::read_dir(DIR).into_iter().flatten().flatten() {
        let file = entry.file_name();
        if let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".pid")) {
            found |= end(name, Signal::SIGKILL);
        }
    }
    found |= std::fs::remove_dir_all(PINS).is_ok();
    for name in NAMESPACES.into_iter().chain([FABRIC]) {
        found |= netns::ip(&format!("netns delete {name}")).is_ok();
    }
    for (name, _, _) in FLEET {
        found |= std::fs::remove_dir_all(format!("{PINS}-{name}")).is_ok();
        found |= netns::ip(&format!("netns delete ravelin-demo-{name}")).is_ok();
    }
    if let Ok(dir) = std::fs::read_to_string(ETCD_DIR)
        && dir.contains("/ravelin-demo-")
    {
        found |= std::fs::remove_dir_all(dir).is_ok();
    }
    found |= std::fs::remove_dir_all(DIR).is_ok();
    found
}

/// Ends the process of this name and waits until it is gone. Its id may have become another one's since: only a process
/// whose command line is the demo's is meant.
pub fn end(name: &str, signal: Signal) -> bool {
    let file = format!("{DIR}/{name}.pid");
    let Some(pid) = std::fs::read_to_string(&file)
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok())
    else {
        return false;
    };
    let is_ours = || {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
            let line = String::from_utf8_lossy(&line);
            line.contains("ravelin-demo") || line.contains("demo\0--serve")
        })
    };
    let ours = is_ours();
    if ours && kill(Pid::from_raw(pid), signal).is_ok() {
        let start = Instant::now();
        while is_ours() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let _ = std::fs::remove_file(&file);
    ours
}

/// On Ctrl-C, SIGTERM or a closed terminal: removes everything and exits.
///
/// # Errors
/// The signals cannot be blocked.
pub fn clean_on_signals() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Threads started from here on inherit the mask, so the signals wait for the one below; processes do not (std
    // empties the mask of a child).
    signals.thread_block().context("blocking signals")?;
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            println!("\n{signal}: removing the playground");
            clean();
            std::process::exit(128 + signal as i32);
        }
    });
    Ok(())
}
