//! `cargo xtask setup`: what this repository needs beyond cargo, found or installed.
//!
//! Packages come from Debian; what Debian does not have is built into `~/.cache/ravelin`. Nothing is installed that is
//! there already, and nothing without saying what it is for. A purpose asks only for what it needs: the demo does not
//! wait for the linters.

use crate::output::{self, Style, paint};
use crate::toolchain::{self, Kind, Toolchain};
use anyhow::{Context, Result, anyhow, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Install what is missing: BPF compiler and linker, tools of checks and tests.
///
/// On Debian 12 as root this needs nothing else; it takes three to five minutes the first time (two Rust tools are
/// compiled) and no time when all is there. Packages are installed by apt-get, none of which starts a service;
/// bpf-linker, cargo-deny, promtool, nginx, chronyd and etcd go to ~/.cache/ravelin (or $XDG_CACHE_HOME/ravelin).
///
/// Elsewhere: `rustup toolchain install nightly --component rust-src` and bpf-linker on PATH are used instead.
/// RAVELIN_BPF_TOOLCHAIN=debian|nightly and RAVELIN_BPF_LINKER=/path override the choice.
#[derive(clap::Args)]
pub struct Args {
    /// Only what `cargo xtask build` and `cargo xtask demo` need
    #[arg(long)]
    minimal: bool,
}

/// What something is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Build,
    Demo,
    Check,
    Test,
    Bench,
}

const BPF_LINKER_VERSION: &str = "0.13.0";
const CARGO_DENY_VERSION: &str = "0.20.2";

pub fn run(args: &Args) -> Result<()> {
    let purposes: &[Purpose] = if args.minimal {
        &[Purpose::Build, Purpose::Demo]
    } else {
        &[
            Purpose::Build,
            Purpose::Demo,
            Purpose::Check,
            Purpose::Test,
            Purpose::Bench,
        ]
    };
    let tools = ensure(purposes)?;
    println!("ready: kernel programs by {tools}");
    Ok(())
}

/// Installs what these purposes need and this machine lacks.
///
/// # Errors
/// What cannot be installed, with what to do by hand.
pub fn ensure(purposes: &[Purpose]) -> Result<Toolchain> {
    install_packages(&missing_packages(purposes))?;
    let (kind, cargo, rustc) = toolchain::find_compiler().map_err(|error| anyhow!("{error}{}", by_hand()))?;
    ensure_linker(kind, &rustc)?;
    let wanted = |purpose| purposes.contains(&purpose);
    if wanted(Purpose::Check) {
        ensure_host_components()?;
        ensure_cargo_deny()?;
    }
    if wanted(Purpose::Test) {
        for daemon in [&PROMTOOL, &NGINX, &CHRONYD] {
            daemon.ensure()?;
        }
    }
    if wanted(Purpose::Bench) {
        NGINX.ensure()?;
    }
    if wanted(Purpose::Demo) || wanted(Purpose::Test) || wanted(Purpose::Bench) {
        ETCD.ensure()?;
        ETCDCTL.ensure()?;
    }
    let linker = toolchain::find_linker(kind).map_err(|error| anyhow!(error))?;
    Ok(Toolchain {
        kind,
        cargo,
        rustc,
        linker,
    })
}

/// cargo-deny, as [`ensure`] leaves it.
pub fn cargo_deny() -> Result<PathBuf> {
    Ok(cache()?.join("cargo-deny/bin/cargo-deny"))
}

/// A Debian package and why it is wanted.
struct Package {
    name: &'static str,
    why: &'static str,
}

fn missing_packages(purposes: &[Purpose]) -> Vec<Package> {
    let wanted = |purpose| purposes.contains(&purpose);
    let is_there = |program: &str| {
        toolchain::on_path(program).is_some()
            || ["/usr/sbin", "/sbin"]
                .iter()
                .any(|dir| Path::new(dir).join(program).is_file())
    };
    let mut missing = Vec::new();
    let mut need = |name, why, there: bool| {
        if !there {
            missing.push(Package { name, why });
        }
    };

    let compiler = toolchain::find_compiler();
    let linker = compiler
        .as_ref()
        .ok()
        .and_then(|(kind, _, _)| toolchain::find_linker(*kind).ok());
    // A nightly without a linker: Debian's compiler, whose LLVM a linker can be built against without a download of LLVM.
    let debian = compiler.is_err() || (linker.is_none() && matches!(compiler, Ok((Kind::Nightly, ..))));
    need(
        "rustc-web",
        "the compiler of the kernel programs",
        !debian || is_installed("rustc-web"),
    );
    need(
        "cargo-web",
        "the same compiler's cargo",
        !debian || is_installed("cargo-web"),
    );
    need(
        "libstd-rust-web-dev-bpf",
        "core for the BPF target",
        !debian || is_installed("libstd-rust-web-dev-bpf"),
    );
    need("gcc", "links the host programs", is_there("cc"));
    need(
        "libc6-dev",
        "links the host programs",
        Path::new("/usr/include/stdio.h").is_file(),
    );
    need(
        "g++",
        "bpf-linker links LLVM, which is C++",
        linker.is_some() || is_there("c++"),
    );
    need(
        "protobuf-compiler",
        "`protoc` makes etcd's client of its protocol",
        is_there("protoc"),
    );
    need(
        "libprotobuf-dev",
        "what that protocol refers to",
        ["/usr/include", "/usr/local/include"]
            .iter()
            .any(|dir| Path::new(dir).join("google/protobuf/descriptor.proto").is_file()),
    );
    if wanted(Purpose::Demo) || wanted(Purpose::Test) || wanted(Purpose::Bench) {
        need(
            "openssl",
            "makes the certificates of etcd and its clients",
            is_there("openssl"),
        );
        need(
            "openssh-client",
            "`ssh-keygen` makes keys and signs",
            is_there("ssh-keygen"),
        );
        need("iproute2", "`ip` makes the network namespaces", is_there("ip"));
    }
    if wanted(Purpose::Check) {
        let nightly = matches!(compiler, Ok((Kind::Nightly, ..)));
        need(
            "rust-web-clippy",
            "lints the kernel programs",
            nightly || Path::new("/usr/bin/cargo-clippy").is_file(),
        );
        need("rustfmt-web", "checks the formatting", is_there("cargo-fmt"));
    }
    if wanted(Purpose::Test) || wanted(Purpose::Bench) {
        need(
            "nftables",
            "NAT in the tests; what the benches compare with",
            is_there("nft"),
        );
        need("iperf3", "throughput, with GSO and GRO", is_there("iperf3"));
        need(
            "ethtool",
            "turns on what redirected frames need of a veth, and GRO",
            is_there("ethtool"),
        );
    }
    if wanted(Purpose::Test) {
        need("curl", "a client in the tests", is_there("curl"));
        need("iputils-ping", "a client in the tests", is_there("ping"));
        need("traceroute", "a client in the tests", is_there("traceroute"));
        need("dnsmasq-base", "a name server in the tests", is_there("dnsmasq"));
        need("ldnsutils", "`drill` asks that name server", is_there("drill"));
    }
    // Libraries of nginx and chronyd, which are not installed as packages.
    for (name, file, of) in [
        ("libpcre2-8-0", "libpcre2-8.so.0", &NGINX),
        ("libssl3", "libssl.so.3", &NGINX),
        ("libgnutls30", "libgnutls.so.30", &CHRONYD),
        ("libseccomp2", "libseccomp.so.2", &CHRONYD),
    ] {
        if wanted(Purpose::Test) || (wanted(Purpose::Bench) && of.package == NGINX.package) {
            need(
                name,
                "a library of nginx or chronyd in the tests",
                is_library(file),
            );
        }
    }
    missing
}

/// Whether this shared library is among the system's.
fn is_library(file: &str) -> bool {
    let debian = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    [debian.as_str(), "/usr/lib64", "/usr/lib"]
        .iter()
        .any(|dir| Path::new(dir).join(file).exists())
}

/// Whether Debian's package manager has this package installed.
fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

fn install_packages(packages: &[Package]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    output::heading("installing Debian packages");
    for package in packages {
        output::note(format!(
            "{:<24} {}",
            package.name,
            paint(Style::Faint, package.why)
        ));
    }
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    let install = format!("apt-get install --no-install-recommends {}", names.join(" "));
    if toolchain::on_path("apt-get").is_none() {
        bail!(
            "this is not Debian: install what provides {} by hand{}",
            names.join(", "),
            by_hand()
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("installing packages needs root: run `sudo {install}`, then this again");
    }
    let mut update = apt_get();
    update.args(["update", "-q"]);
    output::run(&mut update).context("refreshing the package lists")?;
    let mut command = apt_get();
    command
        .args(["install", "-q", "-y", "--no-install-recommends"])
        .args(&names);
    output::run(&mut command)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    command
}

/// Builds bpf-linker against Debian's LLVM, unless there is one that matches the compiler.
fn ensure_linker(kind: Kind, rustc: &Path) -> Result<()> {
    let found = toolchain::find_linker(kind);
    if kind == Kind::Nightly {
        return found.map(drop).map_err(|error| anyhow!("{error}{}", by_hand()));
    }
    let root = cache()?.join("bpf-linker");
    let llvm = root.join("lib/libLLVM.so");
    let version = llvm_version(rustc)?;
    let library = llvm_library(&version)?;
    if let Ok(linker) = found {
        // One that the user chose is the user's business.
        let ours = toolchain::cached_linker().is_some_and(|cached| cached == linker);
        if !ours || (std::fs::read_link(&llvm).is_ok_and(|target| target == library) && runs(&linker)) {
            return Ok(());
        }
    }
    let major = version.split('.').next().unwrap_or_default();
    output::heading(&format!(
        "building bpf-linker {BPF_LINKER_VERSION} against LLVM {version}, one to three minutes"
    ));
    output::note(format!("links the kernel programs; goes to {}", root.display()));
    std::fs::create_dir_all(root.join("lib")).with_context(|| format!("making {}", root.display()))?;
    let _ = std::fs::remove_file(&llvm);
    std::os::unix::fs::symlink(&library, &llvm).with_context(|| format!("linking {}", llvm.display()))?;
    let mut command = cargo_install("bpf-linker", BPF_LINKER_VERSION, &root);
    command.env("LLVM_PREFIX", &root).args([
        "--force",
        "--no-default-features",
        "--features",
        &format!("llvm-{major}"),
    ]);
    output::run(&mut command)
}

fn runs(program: &Path) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// `22.1.8` from `rustc -vV`.
fn llvm_version(rustc: &Path) -> Result<String> {
    let text = output::read(Command::new(rustc).arg("-vV"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .map(str::to_owned)
        .with_context(|| format!("{} does not say its LLVM version", rustc.display()))
}

/// The shared library of that version that the compiler itself loads.
fn llvm_library(version: &str) -> Result<PathBuf> {
    let soname: String = version.split('.').take(2).collect::<Vec<_>>().join(".");
    let name = format!("libLLVM.so.{soname}");
    let dir = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let path = Path::new(&dir).join(&name);
    if !path.exists() {
        bail!(
            "{} is missing, though the compiler needs it: reinstall rustc-web",
            path.display()
        );
    }
    Ok(path)
}

/// rustfmt and clippy of the host's cargo.
fn ensure_host_components() -> Result<()> {
    for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        let subcommand = program.trim_start_matches("cargo-");
        let works = crate::cargo()
            .args([subcommand, "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if works {
            continue;
        }
        let Some(rustup) = toolchain::on_path("rustup") else {
            bail!("`cargo {subcommand}` does not run: install {component} for this cargo");
        };
        output::heading(&format!("adding {component} to rustup's toolchain"));
        output::run(Command::new(rustup).args(["component", "add", component]))?;
    }
    Ok(())
}

/// Builds cargo-deny without optimisation: that takes a third of the time, and a check runs for a second either way.
fn ensure_cargo_deny() -> Result<()> {
    let program = cargo_deny()?;
    if program.is_file()
        && output::read(Command::new(&program).arg("--version"))?.contains(CARGO_DENY_VERSION)
    {
        return Ok(());
    }
    let root = cache()?.join("cargo-deny");
    output::heading(&format!(
        "building cargo-deny {CARGO_DENY_VERSION}, one to three minutes"
    ));
    output::note(format!(
        "checks licences and sources of the dependencies; goes to {}",
        root.display()
    ));
    let mut command = cargo_install("cargo-deny", CARGO_DENY_VERSION, &root);
    command
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .args(["--force", "--debug", "--no-default-features"]);
    output::run(&mut command)
}

/// One program out of a Debian package that must not be installed: that would start its daemon on this machine, or put
/// another one out of service.
pub struct Extracted {
    package: &'static str,
    /// Where it is in the package.
    file: &'static str,
    why: &'static str,
}

pub const PROMTOOL: Extracted = Extracted {
    package: "prometheus",
    file: "usr/bin/promtool",
    why: "tests check /metrics by it",
};
pub const NGINX: Extracted = Extracted {
    package: "nginx",
    file: "usr/sbin/nginx",
    why: "tests and benches run it as a service behind the filter",
};
pub const CHRONYD: Extracted = Extracted {
    package: "chrony",
    file: "usr/sbin/chronyd",
    why: "tests run it as NTP client and server",
};
pub const ETCD: Extracted = Extracted {
    package: "etcd-server",
    file: "usr/bin/etcd",
    why: "a fleet's store, in tests, benches and the demo",
};
pub const ETCDCTL: Extracted = Extracted {
    package: "etcd-client",
    file: "usr/bin/etcdctl",
    why: "what operators of etcd work with",
};

impl Extracted {
    /// The program, as [`ensure`] leaves it.
    pub fn path(&self) -> Result<PathBuf> {
        let name = Path::new(self.file).file_name().unwrap_or_default();
        let installed = Path::new("/").join(self.file);
        match toolchain::on_path(&name.to_string_lossy()) {
            Some(path) => Ok(path),
            None if installed.is_file() => Ok(installed),
            None => Ok(cache()?.join(self.package).join(self.file)),
        }
    }

    fn ensure(&self) -> Result<()> {
        let program = self.path()?;
        if program.is_file() {
            return Ok(());
        }
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let root = cache()?.join(self.package);
        output::heading(&format!(
            "fetching {name} out of Debian's package {}",
            self.package
        ));
        output::note(format!("{}; goes to {}", self.why, root.display()));
        if toolchain::on_path("apt-get").is_none() {
            bail!("this is not Debian: put {name} on PATH");
        }
        std::fs::create_dir_all(&root).with_context(|| format!("making {}", root.display()))?;
        let download = || {
            output::run(
                apt_get()
                    .args(["download", "-q", self.package])
                    .current_dir(&root),
            )
        };
        if download().is_err() {
            output::run(apt_get().args(["update", "-q"])).context("refreshing the package lists")?;
            download()?;
        }
        let package = std::fs::read_dir(&root)
            .with_context(|| format!("reading {}", root.display()))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get download left no package")?;
        output::run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&root))?;
        std::fs::remove_file(&package).with_context(|| format!("removing {}", package.display()))?;
        if !program.is_file() {
            bail!(
                "{} is not in Debian's package: put {name} on PATH",
                program.display()
            );
        }
        Ok(())
    }
}

/// `cargo install` of one program into its own directory, with the cargo that runs this.
fn cargo_install(name: &str, version: &str, root: &Path) -> Command {
    let mut command = crate::cargo();
    // Not the repository: its .cargo/config.toml and target directory are none of the program's business.
    command
        .current_dir("/")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .args(["install", "--locked", "--version", version, "--root"])
        .arg(root)
        .arg(name);
    command
}

fn cache() -> Result<PathBuf> {
    toolchain::cache_dir().context("neither XDG_CACHE_HOME nor HOME is set: there is no cache directory")
}

fn by_hand() -> &'static str {
    "\nwithout Debian 12: `rustup toolchain install nightly --component rust-src`, and bpf-linker on PATH \
     (https://github.com/aya-rs/bpf-linker), built for the LLVM of that nightly"
}
