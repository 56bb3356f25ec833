//! Programs of other people, run in a namespace: as daemons that end with the test, and as commands.

use crate::netns::Namespace;
use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// A program that runs until this goes out of scope, with a directory of its own.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    dir: TempDir,
}

impl Daemon {
    /// Starts a program that stays in the foreground. The files are written into its directory first; `{dir}` in files and
    /// arguments stands for that directory.
    ///
    /// # Errors
    /// It is not installed, or a file cannot be written.
    pub fn start(
        namespace: &Namespace,
        program: impl AsRef<OsStr>,
        arguments: &[&str],
        files: &[(&str, &str)],
    ) -> Result<Daemon> {
        let program = program.as_ref();
        // Its working directory: by its name [`crate::agent::sweep`] knows whose it was.
        let dir = TempDir::with_prefix(format!("{}-{}-", crate::agent::PREFIX, std::process::id()))
            .context("making a directory for a daemon")?;
        let place = dir.path().display().to_string();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::write(&path, text.replace("{dir}", &place))
                .with_context(|| format!("writing {}", path.display()))?;
        }
        let log = File::create(dir.path().join("daemon.log")).context("making a daemon's log")?;
        let mut command = Command::new(program);
        command
            .args(arguments.iter().map(|argument| argument.replace("{dir}", &place)))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing a daemon's log")?)
            .stderr(log);
        let child = namespace
            .run(move || command.spawn())
            .with_context(|| format!("starting {} (`cargo xtask setup` installs it)", program.display()))?;
        Ok(Daemon { child, dir })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it wrote to its standard output and error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of a daemon:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command in the namespace to its end, whatever that is.
///
/// # Errors
/// It is not installed.
pub fn output(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
    namespace
        .run(move || command.output())
        .with_context(|| format!("starting {program} (`cargo xtask setup` installs it)"))
}

/// Runs a command that has to succeed; gives its standard output.
///
/// # Errors
/// It fails: the error holds all that it said.
pub fn run(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<String> {
    let output = output(namespace, program, arguments)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "`{program} {}` in {} failed ({}): {said}{}",
        arguments.join(" "),
        namespace.name(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

/// Whether a command succeeds.
///
/// # Errors
/// It is not installed.
pub fn succeeds(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<bool> {
    Ok(output(namespace, program, arguments)?.status.success())
}

/// Loads rules of nftables in the namespace.
///
/// # Errors
/// What `nft` says.
pub fn nft(namespace: &Namespace, rules: &str) -> Result<()> {
    let dir = tempfile::tempdir().context("making a directory for rules")?;
    let file = dir.path().join("rules.nft");
    std::fs::write(&file, rules).context("writing rules")?;
    run(namespace, "nft", &["-f", &file.to_string_lossy()]).map(drop)
}

/// A program that `cargo xtask setup` fetched without installing it: where `variable` says, or on PATH.
pub fn fetched(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| PathBuf::from(name), PathBuf::from)
}
