//! `cargo xtask check`: everything that is not a test.

use crate::output::{self, Style, paint};
use crate::setup::{self, Purpose};
use crate::toolchain::{Kind, TARGET, Toolchain};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Check formatting, lints, documentation, licences, and where `unsafe` stands.
///
/// rustfmt; clippy for the host's crates, then apart for the kernel crate built for BPF (together their features mix);
/// rustdoc without warnings; cargo-deny for bans, licences and sources (.deny.toml); and the list of files that hold
/// `unsafe` against the list in xtask/src/check.rs. All of them run; the command fails if one did.
///
/// With rustup's nightly instead of Debian's compiler, the kernel crate is linted by nightly's clippy.
#[derive(clap::Args)]
pub struct Args {
    /// Only these: fmt, clippy, clippy-bpf, doc, deny, unsafe
    #[arg(value_name = "CHECK")]
    only: Vec<Check>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Check {
    Fmt,
    Clippy,
    ClippyBpf,
    Doc,
    Deny,
    Unsafe,
}

impl Check {
    const ALL: [Check; 6] = [
        Check::Fmt,
        Check::Unsafe,
        Check::Deny,
        Check::Clippy,
        Check::ClippyBpf,
        Check::Doc,
    ];

    fn name(self) -> &'static str {
        match self {
            Check::Fmt => "rustfmt",
            Check::Clippy => "clippy, host crates",
            Check::ClippyBpf => "clippy, kernel crate for BPF",
            Check::Doc => "rustdoc without warnings",
            Check::Deny => "cargo deny: bans, licences, sources",
            Check::Unsafe => "files with unsafe",
        }
    }

    fn run(self, tools: &Toolchain) -> Result<()> {
        match self {
            Check::Fmt => output::run(crate::cargo().args(["fmt", "--all", "--check"])),
            Check::Clippy => output::run(crate::cargo().args([
                "clippy",
                "--workspace",
                "--exclude",
                "firewall-ebpf",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ])),
            Check::ClippyBpf => output::run(&mut clippy_bpf(tools)?),
            Check::Doc => output::run(crate::cargo().env("RUSTDOCFLAGS", RUSTDOC_FLAGS).args([
                "doc",
                "--workspace",
                "--exclude",
                "firewall-ebpf",
                "--no-deps",
                "--document-private-items",
            ])),
            Check::Deny => output::run(
                Command::new(setup::cargo_deny()?)
                    .current_dir(crate::workspace())
                    .args(["--all-features", "--log-level", "error", "--config", ".deny.toml"])
                    .args(["check", "bans", "licenses", "sources"]),
            ),
            Check::Unsafe => unsafe_files(),
        }
    }
}

/// Private items are documented, so links to them hold. Doc comments of command line arguments are their help text, where
/// `<instance>` is no HTML.
const RUSTDOC_FLAGS: &str = "-D warnings -A rustdoc::private-intra-doc-links -A rustdoc::invalid-html-tags";

/// Files that may hold `unsafe`, and what they need it for. Everything else is safe code over them.
const UNSAFE_FILES: &[(&str, &str)] = &[
    (
        "firewall-ebpf/src/",
        "maps, packet reads and helpers of the kernel side",
    ),
    (
        "firewall-userspace/src/datapath/",
        "raw bpf() calls, mmap of images and counters",
    ),
    (
        "tests/src/bpf.rs",
        "programs assembled by hand, loaded by raw bpf() calls",
    ),
    ("tests/src/frame.rs", "packet sockets have no safe constructor"),
    (
        "tests/src/generator.rs",
        "signals that end runs of its own threads",
    ),
    (
        "tests/src/honest.rs",
        "socket options that the standard library does not offer",
    ),
    (
        "tests/src/kernel.rs",
        "BPF_PROG_TEST_RUN with a context, which aya does not offer",
    ),
    (
        "tests/src/siege.rs",
        "real-time scheduling, which nix does not offer",
    ),
    ("tests/src/tun.rs", "the ioctl that makes a TUN device"),
    (
        "tests/tests/e2e_challenge.rs",
        "listen() with a backlog, and TCP_INFO, which the standard library does not offer",
    ),
];

pub fn run(args: &Args) -> Result<()> {
    let tools = setup::ensure(&[Purpose::Build, Purpose::Check])?;
    let checks = if args.only.is_empty() {
        &Check::ALL[..]
    } else {
        &args.only[..]
    };
    let failed = run_all(&tools, checks);
    if failed > 0 {
        bail!("{failed} of {} checks failed", checks.len());
    }
    Ok(())
}

/// Runs all checks; gives how many passed and how many failed.
pub fn all(tools: &Toolchain) -> (usize, usize) {
    let failed = run_all(tools, &Check::ALL);
    (Check::ALL.len() - failed, failed)
}

fn run_all(tools: &Toolchain, checks: &[Check]) -> usize {
    let mut lines = Vec::new();
    let mut failed = 0;
    for check in checks {
        output::heading(check.name());
        let start = Instant::now();
        let outcome = check.run(tools);
        let word = match &outcome {
            Ok(()) => paint(Style::Good, "ok"),
            Err(error) => {
                output::error(error);
                failed += 1;
                paint(Style::Bad, "FAILED")
            }
        };
        lines.push(format!(
            "{:<36} {word} ({:.1} s)",
            check.name(),
            start.elapsed().as_secs_f32()
        ));
    }
    output::heading("checks");
    for line in lines {
        output::note(line);
    }
    failed
}

/// clippy over the kernel crate as it is built for BPF. Debian's cargo-clippy is called by its path: cargo would find
/// rustup's first.
fn clippy_bpf(tools: &Toolchain) -> Result<Command> {
    let mut command = match tools.kind {
        Kind::Debian => {
            let mut command = Command::new("/usr/bin/cargo-clippy");
            command.env("RUSTC_BOOTSTRAP", "1").arg("clippy");
            command
        }
        Kind::Nightly => {
            let clippy = tools.cargo.with_file_name("cargo-clippy");
            if !clippy.is_file() {
                bail!("nightly has no clippy: run `rustup component add clippy --toolchain nightly`");
            }
            let mut command = Command::new(clippy);
            command.args(["clippy", "-Z", "build-std=core"]);
            command
        }
    };
    command
        .current_dir(crate::workspace())
        .env("CARGO", &tools.cargo)
        .env("RUSTC", &tools.rustc)
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("LD_LIBRARY_PATH")
        .env("CARGO_ENCODED_RUSTFLAGS", "")
        .args(["--package", "firewall-ebpf", "--target", TARGET, "--target-dir"])
        .arg(crate::target_dir().join("bpf-clippy"))
        .args(["--", "-D", "warnings"]);
    Ok(command)
}

/// Prints the files that hold `unsafe`; fails for one that is not on the list, and for an entry that no file needs.
fn unsafe_files() -> Result<()> {
    let mut found = BTreeSet::new();
    for package in [
        "firewall-common",
        "firewall-ebpf",
        "firewall-userspace",
        "xtask",
        "tests",
    ] {
        collect_unsafe(&crate::workspace().join(package), &mut found)?;
    }
    let allows = |path: &str| UNSAFE_FILES.iter().find(|(allowed, _)| path.starts_with(allowed));
    let mut strangers = Vec::new();
    for path in &found {
        match allows(path) {
            Some((_, why)) => output::note(format!("{path:<52} {}", paint(Style::Faint, why))),
            None => strangers.push(path.as_str()),
        }
    }
    if !strangers.is_empty() {
        bail!(
            "`unsafe` outside of the files that may hold it: {}; write it behind one of those, or add the file to \
             UNSAFE_FILES in xtask/src/check.rs with its reason",
            strangers.join(", ")
        );
    }
    let idle: Vec<&str> = UNSAFE_FILES
        .iter()
        .map(|(allowed, _)| *allowed)
        .filter(|allowed| !found.iter().any(|path| path.starts_with(allowed)))
        .collect();
    if !idle.is_empty() {
        bail!(
            "no `unsafe` is left in {}: take it off UNSAFE_FILES in xtask/src/check.rs",
            idle.join(", ")
        );
    }
    Ok(())
}

fn collect_unsafe(dir: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect_unsafe(&path, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            if holds_unsafe(&text) {
                found.insert(relative(&path).display().to_string());
            }
        }
    }
    Ok(())
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix(crate::workspace()).unwrap_or(path).to_owned()
}

/// Whether the code holds the keyword: outside of `//` comments and string literals, as a word of its own.
fn holds_unsafe(text: &str) -> bool {
    text.lines().any(|line| {
        let mut code = String::new();
        let mut quoted = false;
        let mut previous = ' ';
        for character in line.chars() {
            if character == '"' && previous != '\\' && previous != '\'' {
                quoted = !quoted;
            } else if !quoted {
                if character == '/' && previous == '/' {
                    break;
                }
                code.push(character);
            }
            previous = character;
        }
        code.split(|character: char| !character.is_alphanumeric() && character != '_')
            .any(|word| word == "unsafe")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_keyword_and_nothing_that_looks_like_it() {
        assert!(holds_unsafe("let x = unsafe { read(p) };"));
        assert!(holds_unsafe("#[unsafe(no_mangle)]"));
        assert!(holds_unsafe("let quote = '\"'; unsafe { f() }"));
        assert!(!holds_unsafe("// SAFETY: unsafe because"));
        assert!(!holds_unsafe("unsafe_op_in_unsafe_fn"));
        assert!(!holds_unsafe("let text = \"unsafe\"; // unsafe"));
    }
}
