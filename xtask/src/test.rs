//! `cargo xtask test`: what CI runs.

use crate::output::{self, Style, paint};
use crate::setup::{self, Purpose};
use crate::{build, check};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Run all checks and all tests, as CI does.
///
/// Pure code first, then the loaded kernel programs, then whole nodes in network namespaces.
///
/// Needs root and a kernel of 5.15 or later for the last two. Installs what is missing first (see `cargo xtask setup`),
/// and ends in one line: `N passed, N failed`.
#[derive(clap::Args)]
pub struct Args {
    /// Without the checks of `cargo xtask check`
    #[arg(long)]
    no_check: bool,
    /// Only what needs no root: checks and plain `cargo test`
    #[arg(long)]
    no_root: bool,
    /// Only tests whose name contains this
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
}

/// What came of the tests so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    ignored: usize,
    /// Names of failed tests, and what failed without being a test.
    failures: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    if !args.no_root && !nix::unistd::geteuid().is_root() {
        bail!("tests load kernel programs and make network namespaces: run this as root, or with --no-root");
    }
    let mut purposes = vec![Purpose::Build, Purpose::Test];
    if !args.no_check {
        purposes.push(Purpose::Check);
    }
    let tools = setup::ensure(&purposes)?;
    let mut tally = Tally::default();

    let mut checks = None;
    if !args.no_check && args.filter.is_none() {
        let (passed, failed) = check::all(&tools);
        if failed > 0 {
            tally
                .failures
                .push(format!("{failed} checks (`cargo xtask check`)"));
        }
        checks = Some((passed, failed));
    }

    output::heading("tests of pure code");
    let mut plain = crate::cargo();
    plain.args(["test", "--no-fail-fast"]);
    if let Some(filter) = &args.filter {
        plain.args(["--", filter]);
    }
    tally.run(&mut plain, "cargo test")?;

    if !args.no_root {
        output::heading("tests on this kernel");
        let binary = build::binary(false)?;
        let mut kernel = crate::cargo();
        kernel
            .env("RAVELIN_BIN", &binary)
            .env("RAVELIN_PROMTOOL", setup::PROMTOOL.path()?)
            .env("RAVELIN_NGINX", setup::NGINX.path()?)
            .env("RAVELIN_CHRONYD", setup::CHRONYD.path()?)
            .env("RAVELIN_ETCD", setup::ETCD.path()?)
            .env("RAVELIN_ETCDCTL", setup::ETCDCTL.path()?)
            .args(["test", "--package", "ravelin-tests", "--no-fail-fast", "--"])
            .args(&args.filter)
            .arg("--test-threads=1");
        tally.run(&mut kernel, "cargo test --package ravelin-tests")?;
    }

    tally.report(checks, start)
}

impl Tally {
    /// Runs `cargo test`, passing its output on and counting.
    fn run(&mut self, command: &mut Command, name: &str) -> Result<()> {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let stdout = child
            .stdout
            .take()
            .context("the pipe of a child that was given one")?;
        let before = self.failed;
        for line in BufReader::new(stdout).lines() {
            let line = line.with_context(|| format!("reading the output of {name}"))?;
            println!("{line}");
            self.count(&line);
        }
        let status = child.wait().with_context(|| format!("waiting for {name}"))?;
        if !status.success() && self.failed == before {
            self.failures
                .push(format!("{name}: {status} without a failed test: did it compile?"));
        }
        Ok(())
    }

    /// Reads `test NAME ... FAILED` and `test result: ok. 3 passed; 0 failed; 0 ignored; ...`.
    fn count(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            let number = |what: &str| {
                result
                    .split(['.', ';'])
                    .find_map(|part| part.trim().strip_suffix(what)?.trim().parse::<usize>().ok())
                    .unwrap_or(0)
            };
            self.passed += number("passed");
            self.failed += number("failed");
            self.ignored += number("ignored");
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
    }

    fn report(&self, checks: Option<(usize, usize)>, start: Instant) -> Result<()> {
        output::heading("summary");
        for failure in &self.failures {
            output::note(format!("{} {failure}", paint(Style::Bad, "FAILED")));
        }
        if self.ignored > 0 {
            output::note(format!(
                "{} tests are marked #[ignore]: they count as failed",
                self.ignored
            ));
        }
        if let Some((passed, failed)) = checks {
            output::note(format!("checks: {passed} passed, {failed} failed"));
        }
        let others = self.failures.len().saturating_sub(self.failed);
        let failed = self.failed + self.ignored + others;
        let line = format!("{} passed, {failed} failed", self.passed);
        let style = if failed == 0 { Style::Good } else { Style::Bad };
        println!(
            "{} {}",
            paint(style, line),
            paint(Style::Faint, format!("in {:.0} s", start.elapsed().as_secs_f32()))
        );
        if failed > 0 {
            bail!("not everything passed");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_lines_of_libtest() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test decide::drops_it ... FAILED",
            "test decide::passes_it ... ok",
            "test result: FAILED. 7 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 1.20s",
        ] {
            tally.count(line);
        }
        let failures = vec!["decide::drops_it".to_owned()];
        assert_eq!(
            tally,
            Tally {
                passed: 12,
                failed: 1,
                ignored: 2,
                failures
            }
        );
    }
}
