//! What a bench tells `cargo xtask bench`: one record per cell of a table.

use anyhow::{Context, Result};
use serde::Serialize;
use std::io::Write;

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    pub table: String,
    pub row: String,
    pub column: String,
    pub value: f64,
    /// `ns`, `s`, `x`, `MB`
    pub unit: String,
    /// What it is to reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Record {
    pub fn new(table: &str, row: &str, column: &str, value: f64, unit: &str) -> Record {
        Record {
            table: table.to_owned(),
            row: row.to_owned(),
            column: column.to_owned(),
            value,
            unit: unit.to_owned(),
            goal: None,
            note: None,
        }
    }

    pub fn at_most(mut self, limit: f64) -> Record {
        self.goal = Some(Goal::AtMost(limit));
        self
    }

    pub fn at_least(mut self, limit: f64) -> Record {
        self.goal = Some(Goal::AtLeast(limit));
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Record {
        self.note = Some(note.into());
        self
    }

    /// Appends the record to the file that `RAVELIN_BENCH_RECORDS` names, or prints it when there is none.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self) -> Result<()> {
        let line = serde_json::to_string(self).context("writing a record")?;
        match std::env::var_os("RAVELIN_BENCH_RECORDS") {
            None => println!("{line}"),
            Some(path) => {
                let mut file = std::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(&path)
                    .with_context(|| format!("opening {}", path.display()))?;
                writeln!(file, "{line}").with_context(|| format!("writing {}", path.display()))?;
                eprintln!(
                    "{}: {}, {}: {:.2} {}",
                    self.table, self.row, self.column, self.value, self.unit
                );
            }
        }
        Ok(())
    }
}

/// Whether `--quick` was given: fewer rounds, smaller sizes.
pub fn quick() -> bool {
    std::env::var_os("RAVELIN_BENCH_QUICK").is_some_and(|value| !value.is_empty())
}

/// Whether the table is asked for.
pub fn wanted(table: &str) -> bool {
    std::env::var("RAVELIN_BENCH_ONLY").map_or(true, |only| table.contains(&only))
}
