//! Network namespaces, the links between them, and code that runs inside.
//!
//! A namespace is a named one (`ip netns`), so that a person can look into it. Code runs inside by a thread that
//! enters it: sockets belong to the namespace of the thread that opens them, and a process started there inherits it,
//! while the mounts stay those of the caller (`ip netns exec` would hide the BPF file system).

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

/// Where `ip netns` keeps the handles of named namespaces.
const HANDLES: &str = "/run/netns";

/// A named network namespace with its loopback up, deleted on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    kept: bool,
}

impl Namespace {
    /// Makes the namespace of this very name.
    ///
    /// # Errors
    /// It exists already, or this process may not make one.
    pub fn create(name: &str) -> Result<Namespace> {
        ip(&format!("netns add {name}"))?;
        let namespace = Namespace {
            name: name.to_owned(),
            kept: false,
        };
        // Before there is a link: its addresses are usable at once, without waiting for duplicate address detection.
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        namespace.sysctl("net/ipv6/conf/default/router_solicitations", "0")?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Makes a namespace whose name no other test has: `<prefix>-<pid>-<count>-<label>`.
    ///
    /// # Errors
    /// As [`Namespace::create`].
    pub fn unique(prefix: &str, label: &str) -> Result<Namespace> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Namespace::create(&format!("{prefix}-{}-{count}-{label}", std::process::id()))
    }

    /// Deletes the namespaces that [`Namespace::unique`] made for processes that are gone.
    pub fn sweep(prefix: &str) {
        let Ok(entries) = std::fs::read_dir(HANDLES) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name
                .strip_prefix(prefix)
                .and_then(|rest| rest.strip_prefix('-'))
                .and_then(|rest| rest.split('-').next());
            if pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
                let _ = ip(&format!("netns delete {name}"));
            }
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace, for `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        Path::new(HANDLES).join(&self.name)
    }

    /// Leaves the namespace there when this goes out of scope.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Runs `ip` in the namespace; the arguments are split at blanks. Not by `ip -n`, which changes mounts and fails where
    /// the root is not a mount point.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        self.run(|| ip(arguments))
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// Sets a sysctl of the namespace: `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(name);
        self.run(|| std::fs::write(&path, value))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Runs a closure inside, on a thread of its own, and waits for it.
    ///
    /// # Panics
    /// If the namespace cannot be entered, or the closure panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        run_in(&self.path(), work)
    }

    /// Starts a thread inside.
    ///
    /// # Panics
    /// On joining, if the namespace could not be entered, or the closure panicked.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let path = self.path();
        std::thread::spawn(move || {
            enter(&path).unwrap_or_else(|error| panic!("{error:#}"));
            work()
        })
    }

    /// Adds an address, given with its prefix length. An IPv6 address is usable at once.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn address(&self, interface: &str, address: &str) -> Result<()> {
        let dad = if address.contains(':') { " nodad" } else { "" };
        self.ip(&format!("address add {address} dev {interface}{dad}"))
            .map(drop)
    }

    /// Adds an interface for a VLAN on top of another and sets it up.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn vlan(&self, parent: &str, name: &str, id: u16) -> Result<()> {
        self.ip(&format!("link add link {parent} name {name} type vlan id {id}"))?;
        self.ip(&format!("link set {name} up")).map(drop)
    }

    /// Number of an interface.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn ifindex(&self, interface: &str) -> Result<u32> {
        let name = interface.to_owned();
        self.run(move || nix::net::if_::if_nametoindex(name.as_str()))
            .with_context(|| format!("looking for {interface} in {}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.kept {
            let _ = ip(&format!("netns delete {}", self.name));
        }
    }
}

/// One end of a link: a namespace and the interface's name there.
pub type End<'a> = (&'a Namespace, &'a str);

/// Makes a veth pair between two namespaces and sets both ends up.
///
/// # Errors
/// What `ip` says.
pub fn link(a: End<'_>, b: End<'_>, mtu: u32) -> Result<()> {
    ip(&format!(
        "link add name {} netns {} mtu {mtu} type veth peer name {} netns {} mtu {mtu}",
        a.1,
        a.0.name(),
        b.1,
        b.0.name()
    ))?;
    for (namespace, interface) in [a, b] {
        namespace.ip(&format!("link set {interface} up"))?;
    }
    Ok(())
}

/// Makes a veth pair whose ends have these hardware addresses, and sets both up at the same moment.
///
/// # Errors
/// What `ip` says.
pub fn link_at_once(a: End<'_>, a_address: &str, b: End<'_>, b_address: &str) -> Result<()> {
    ip(&format!(
        "link add name {} netns {} address {a_address} type veth peer name {} netns {} address {b_address}",
        a.1,
        a.0.name(),
        b.1,
        b.0.name()
    ))?;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| a.0.ip(&format!("link set {} up", a.1)));
        b.0.ip(&format!("link set {} up", b.1))?;
        other
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .map(drop)
    })
}

/// Runs `ip`; the arguments are split at blanks.
///
/// # Errors
/// What it says.
pub fn ip(arguments: &str) -> Result<String> {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .context("starting ip (package iproute2)")?;
    if !output.status.success() {
        bail!(
            "`ip {arguments}`: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a closure inside the namespace of this handle, on a thread of its own, and waits for it.
///
/// # Panics
/// If the namespace cannot be entered, or the closure panics.
pub fn run_in<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(namespace).unwrap_or_else(|error| panic!("{error:#}"));
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves the calling thread into the namespace.
fn enter(path: &Path) -> Result<()> {
    let handle = File::open(path).with_context(|| format!("opening the namespace {}", path.display()))?;
    setns(handle, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("entering the namespace {}", path.display()))
}
