//! Sessions as a person would type them, with what they printed: golden files.
//!
//! A session file holds lines `$ ravelin ...`, each followed by what the command is to print, standard output first,
//! then standard error, then `[exit N]` unless it is 0. `$ cat policy.toml` shows the policy file. Lines before the first
//! command are comments. With `RAVELIN_BLESS=1` the files are written anew: read the difference before you commit it.

use crate::agent::Agent;
use anyhow::{Context, Result, bail};
use std::fmt::Write;
use std::path::Path;

/// Runs the commands of a session file and compares.
///
/// # Errors
/// The first difference, with both texts; or a command that cannot be run.
pub fn replay(agent: &Agent, file: &Path) -> Result<()> {
    let golden = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let mut actual = String::new();
    let mut blocks = golden.split("\n$ ");
    let head = blocks.next().unwrap_or_default();
    writeln!(actual, "{}", head.trim_end())?;
    for block in blocks {
        let command = block.lines().next().unwrap_or_default().trim();
        write!(actual, "\n$ {command}\n{}", run(agent, command)?)?;
    }
    if std::env::var_os("RAVELIN_BLESS").is_some_and(|value| !value.is_empty()) {
        return std::fs::write(file, &actual).with_context(|| format!("writing {}", file.display()));
    }
    if actual == golden {
        return Ok(());
    }
    let differs = actual.lines().zip(golden.lines()).position(|(is, was)| is != was);
    let line = differs.unwrap_or_else(|| actual.lines().count().min(golden.lines().count()));
    let show = |text: &str| {
        text.lines()
            .skip(line.saturating_sub(4))
            .take(16)
            .collect::<Vec<_>>()
            .join("\n    ")
    };
    bail!(
        "{} differs from line {}:\n  expected\n    {}\n  printed\n    {}\n(run with RAVELIN_BLESS=1 to take what was printed)",
        file.display(),
        line + 1,
        show(&golden),
        show(&actual)
    )
}

/// What a command prints, with what differs from run to run replaced by words.
fn run(agent: &Agent, command: &str) -> Result<String> {
    let words = split(command);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let text = match words.as_slice() {
        ["cat", "policy.toml"] => {
            std::fs::read_to_string(agent.policy_file()).context("reading the policy")?
        }
        ["ravelin", arguments @ ..] => {
            let policy = agent.policy_file();
            let policy = policy
                .to_str()
                .context("a temporary directory with a strange name")?;
            let arguments: Vec<&str> = arguments
                .iter()
                .map(|word| if *word == "policy.toml" { policy } else { word })
                .collect();
            let output = agent.cli(&arguments)?;
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&output.stderr));
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            match output.status.code() {
                Some(0) => {}
                Some(code) => writeln!(text, "[exit {code}]")?,
                None => writeln!(text, "[{}]", output.status)?,
            }
            text
        }
        _ => bail!("a session runs `ravelin ...` or `cat policy.toml`, not `{command}`"),
    };
    let dir = agent.policy_file();
    let dir = dir
        .parent()
        .map(|dir| format!("{}/", dir.display()))
        .unwrap_or_default();
    let text = text.replace(&dir, "").replace(agent.instance(), "INSTANCE");
    Ok(text
        .lines()
        .map(|line| steady(line).trim_end().to_owned() + "\n")
        .collect())
}

/// Splits at blanks, except between single quotes.
fn split(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for character in command.chars() {
        match character {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            other => words.last_mut().into_iter().for_each(|word| word.push(other)),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The line with points in time and digests replaced.
fn steady(line: &str) -> String {
    // With or without its date, by whether that is today.
    if line.starts_with("ends ") && line.ends_with(" UTC") {
        return "ends TIME".to_owned();
    }
    let mut out = String::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let word_length = rest
            .find(|character: char| !character.is_ascii_alphanumeric() && !"-:.".contains(character))
            .unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_length);
        if word_length == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let hex = word.len() >= 12 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let time = word.len() >= 20 && word.ends_with('Z') && word.as_bytes().get(10) == Some(&b'T');
        out.push_str(match (hex, time) {
            (true, _) => "DIGEST",
            (_, true) => "TIME",
            _ => word,
        });
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_from_run_to_run_becomes_a_word() {
        let line = "digest 0123456789abcdef0123, until = 2026-11-22T05:00:00Z }, 2001:db8::7 stays";
        assert_eq!(steady(line), "digest DIGEST, until = TIME }, 2001:db8::7 stays");
        assert_eq!(steady("ends 02:32:13 UTC"), "ends TIME");
    }

    #[test]
    fn quotes_keep_a_packet_together() {
        assert_eq!(
            split("ravelin explain 'tcp 10.0.0.1 -> 22'"),
            ["ravelin", "explain", "tcp 10.0.0.1 -> 22"]
        );
    }
}
