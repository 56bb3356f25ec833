//! Finds the compiler, cargo and linker that build the kernel programs, and makes the command that runs them.
//!
//! Two toolchains will do. Debian's (`rustc-web`, `cargo-web`, `libstd-rust-web-dev-bpf`) ships `core` compiled for
//! BPF; rustup's nightly with `rust-src` compiles it (`build-std`). Debian's comes first. Both link by `bpf-linker`:
//! the one in the cache directory, which `cargo xtask setup` builds against the compiler's LLVM, or one on `PATH`.
//!
//! Standard library only: the build script of `firewall-userspace` includes this file. Installing is absent on
//! purpose; every error ends in the command that does it.
#![allow(dead_code, reason = "xtask and the build script each use a part")]

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The kernel crate is built for this target: little-endian BPF.
pub const TARGET: &str = "bpfel-unknown-none";

/// Environment variables that [`find`] reads; a build script names them to cargo.
pub const ENVIRONMENT: &[&str] = &[
    "RAVELIN_BPF_TOOLCHAIN",
    "RAVELIN_BPF_LINKER",
    "XDG_CACHE_HOME",
    "HOME",
    "PATH",
];

const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

/// What builds the kernel crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    pub kind: Kind,
    pub cargo: PathBuf,
    pub rustc: PathBuf,
    pub linker: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Debian's rustc with its precompiled `core`; nightly features by `RUSTC_BOOTSTRAP`.
    Debian,
    /// rustup's nightly, which compiles `core` from `rust-src`.
    Nightly,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kind {
            Kind::Debian => "Debian's rustc with its core for BPF",
            Kind::Nightly => "rustup nightly with build-std",
        };
        write!(
            f,
            "{name} ({}), linker {}",
            self.rustc.display(),
            self.linker.display()
        )
    }
}

/// The toolchain of this machine. `RAVELIN_BPF_TOOLCHAIN` (`debian` or `nightly`) and `RAVELIN_BPF_LINKER` (a path)
/// override the choice.
///
/// # Errors
/// A sentence that says what is missing and ends in the command that installs it.
pub fn find() -> Result<Toolchain, String> {
    let (kind, cargo, rustc) = find_compiler()?;
    let linker = find_linker(kind)?;
    Ok(Toolchain {
        kind,
        cargo,
        rustc,
        linker,
    })
}

/// The compiler alone: kind, cargo, rustc.
///
/// # Errors
/// See [`find`].
pub fn find_compiler() -> Result<(Kind, PathBuf, PathBuf), String> {
    let found = match env::var("RAVELIN_BPF_TOOLCHAIN").as_deref() {
        Ok("debian") => debian(),
        Ok("nightly") => nightly(),
        Ok("") | Err(_) => debian().or_else(nightly),
        Ok(other) => {
            return Err(format!(
                "RAVELIN_BPF_TOOLCHAIN is \"{other}\" (debian or nightly): correct it, or unset it and run `cargo xtask setup`"
            ));
        }
    };
    found.ok_or_else(|| {
        "no Rust compiler for BPF (Debian's rustc-web with libstd-rust-web-dev-bpf, or rustup's nightly with \
         rust-src): run `cargo xtask setup`"
            .to_string()
    })
}

/// The linker alone. It must read what the compiler's LLVM writes: the one in the cache is built against Debian's.
///
/// # Errors
/// See [`find`].
pub fn find_linker(kind: Kind) -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("RAVELIN_BPF_LINKER")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
    {
        if path.is_file() {
            return Ok(path);
        }
        return Err(format!(
            "RAVELIN_BPF_LINKER names {}, which is not a file: correct it, or unset it and run `cargo xtask setup`",
            path.display()
        ));
    }
    let cached = || cached_linker().filter(|path| path.is_file());
    let found = match kind {
        Kind::Debian => cached().or_else(|| on_path("bpf-linker")),
        Kind::Nightly => on_path("bpf-linker").or_else(cached),
    };
    found
        .ok_or_else(|| "no bpf-linker in the cache directory or on PATH: run `cargo xtask setup`".to_string())
}

/// Where `cargo xtask setup` puts the linker.
pub fn cached_linker() -> Option<PathBuf> {
    Some(cache_dir()?.join("bpf-linker/bin/bpf-linker"))
}

/// `$XDG_CACHE_HOME/ravelin`, or `~/.cache/ravelin`; `None` without a home directory.
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = set("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| Some(set("HOME").or_else(env::home_dir)?.join(".cache")))?;
    Some(base.join("ravelin"))
}

/// The command that builds the kernel crate of `workspace` into `target_dir`, which must not be one that a running
/// cargo holds (a build script uses a directory below its own `OUT_DIR`).
pub fn build_command(
    toolchain: &Toolchain,
    workspace: &Path,
    target_dir: &Path,
    features: &[&str],
) -> Command {
    let mut command = Command::new(&toolchain.cargo);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_the_host_build) {
            command.env_remove(name);
        }
    }
    let mut linker = OsString::from("linker=");
    linker.push(&toolchain.linker);
    let flags = [
        "-C",
        "debuginfo=2",
        "-C",
        "link-arg=--btf",
        "-C",
        "target-cpu=v3",
        "-C",
    ]
    .map(OsString::from)
    .into_iter()
    .chain([linker])
    .collect::<Vec<_>>()
    .join(&OsString::from("\x1f"));
    command
        .current_dir(workspace)
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .args([
            "build",
            "--package",
            "firewall-ebpf",
            "--profile",
            "bpf",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(target_dir);
    match toolchain.kind {
        Kind::Debian => command.env("RUSTC_BOOTSTRAP", "1"),
        Kind::Nightly => command.args(["-Z", "build-std=core"]),
    };
    if !features.is_empty() {
        command.arg("--features").arg(features.join(","));
    }
    command
}

/// Where [`build_command`] leaves the object.
pub fn object(target_dir: &Path) -> PathBuf {
    target_dir.join(TARGET).join("bpf/ravelin-ebpf")
}

fn debian() -> Option<(Kind, PathBuf, PathBuf)> {
    let (cargo, rustc) = (PathBuf::from(DEBIAN_CARGO), PathBuf::from(DEBIAN_RUSTC));
    let has_core = std::fs::read_dir(DEBIAN_CORE).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    });
    (cargo.is_file() && rustc.is_file() && has_core).then_some((Kind::Debian, cargo, rustc))
}

fn nightly() -> Option<(Kind, PathBuf, PathBuf)> {
    let rustup = on_path("rustup")?;
    let output = Command::new(rustup)
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .output()
        .ok()?;
    if !output.status.success() {
        return None;
    }
    let sysroot = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    let (cargo, rustc) = (sysroot.join("bin/cargo"), sysroot.join("bin/rustc"));
    let has_source = sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .is_file();
    (cargo.is_file() && rustc.is_file() && has_source).then_some((Kind::Nightly, cargo, rustc))
}

/// Variables that cargo, rustup or a user set for the host's build and that would change the nested one. What says
/// how to reach the registry and how to print stays.
fn is_of_the_host_build(name: &str) -> bool {
    const STAYS: &[&str] = &[
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_TERM_",
    ];
    const GOES: &[&str] = &[
        "RUSTFLAGS",
        "RUSTDOC",
        "RUSTDOCFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUST_RECURSION_COUNT",
    ];
    const OF_A_BUILD_SCRIPT: &[&str] = &[
        "TARGET",
        "HOST",
        "OUT_DIR",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
        "NUM_JOBS",
        "MAKEFLAGS",
        "LD_LIBRARY_PATH",
    ];
    (name.starts_with("CARGO") && !STAYS.iter().any(|prefix| name.starts_with(prefix)))
        || name.starts_with("RUSTC")
        || GOES.contains(&name)
        || OF_A_BUILD_SCRIPT.contains(&name)
}

/// The file of this name in a directory of `PATH`.
pub fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}
