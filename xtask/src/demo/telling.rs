//! How a demo tells: chapters, commands, and what came of them beside what was announced.

use super::probe::Outcome;
use crate::output::{self, Style, paint};
use anyhow::{Context, Result, bail};
use std::process::Command;

#[derive(Default)]
pub struct Telling {
    step: u32,
    surprises: Vec<String>,
}

impl Telling {
    pub fn chapter(&mut self, title: &str) {
        self.step += 1;
        println!();
        output::heading(&format!("{}. {title}", self.step));
    }

    pub fn say(&self, text: &str) {
        println!();
        if !text.is_empty() {
            output::note(text);
        }
    }

    /// Something is not as announced.
    pub fn surprise(&mut self, what: &str) {
        self.surprises.push(what.to_owned());
    }

    /// # Errors
    /// Something was not.
    pub fn as_announced(&self) -> Result<()> {
        if !self.surprises.is_empty() {
            bail!("not what was announced: {}", self.surprises.join("; "));
        }
        Ok(())
    }

    /// Runs a command on this terminal, shown with this name; it is a surprise if it does not exit with this code.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&mut self, name: &str, arguments: &[&str], mut command: Command, code: i32) -> Result<()> {
        let line = format!("{name} {}", arguments.join(" "));
        println!("{}", paint(Style::Command, format!("# {line}")));
        let status = command.status().with_context(|| format!("starting {name}"))?;
        if status.code() != Some(code) {
            self.surprises.push(format!("`{line}` ended with {status}"));
        }
        Ok(())
    }

    /// Shows the outcome of a probe beside the one that the policy means.
    pub fn expect(&mut self, who: &str, why: &str, answered: bool, outcome: Outcome) {
        let (right, word) = match outcome {
            Outcome::Answered(took) => (
                answered,
                format!("answered in {:.1} ms", took.as_secs_f64() * 1000.0),
            ),
            Outcome::Silence => (!answered, "no answer".to_owned()),
        };
        let word = match (right, answered) {
            (true, true) => paint(Style::Good, format!("{word:<22}")),
            (true, false) => paint(Style::Bad, format!("{word:<22}")),
            (false, _) => paint(Style::Strong, format!("{:<22}", format!("{word} (!)"))),
        };
        output::note(format!("{who:<50} {word} {}", paint(Style::Faint, why)));
        if !right {
            self.surprises.push(format!(
                "{} ({why})",
                who.split_whitespace().collect::<Vec<_>>().join(" ")
            ));
        }
    }
}
