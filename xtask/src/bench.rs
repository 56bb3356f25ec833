//! `cargo xtask bench`: runs the benches, prints their measurements as tables and writes them as JSON.
//!
//! What is measured is the benches' business (`tests/benches`). Each appends one JSON record a line to the file that
//! `RAVELIN_BENCH_RECORDS` names; a record is one cell of a table.

use crate::build;
use crate::output::{self, Style, paint};
use crate::setup::{self, Purpose};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Measure against an empty XDP program and against nftables; print tables.
///
/// Needs root and a quiet machine: compare figures of one run only. All records go to `target/bench/<time>.json` and to
/// target/bench/latest.json.
#[derive(clap::Args)]
pub struct Args {
    /// Smaller sizes and fewer rounds: minutes become seconds, figures become rough
    #[arg(long)]
    quick: bool,
    /// Only tables whose name contains this
    #[arg(value_name = "TABLE")]
    only: Option<String>,
    /// Write the records here as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One cell of a table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// `ns per packet over an empty XDP program, IPv4`
    table: String,
    /// `drop`
    row: String,
    /// `100k`
    column: String,
    value: f64,
    /// `ns`, `s`, `x`, `MB`
    unit: String,
    /// What it is to reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    goal: Option<Goal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    fn reached(self, value: f64) -> bool {
        match self {
            Goal::AtMost(limit) => value <= limit,
            Goal::AtLeast(limit) => value >= limit,
        }
    }
}

#[derive(Serialize)]
struct Report {
    /// Unix seconds.
    time: u64,
    commit: String,
    kernel: String,
    cpu: String,
    cpus: usize,
    quick: bool,
    records: Vec<Record>,
}

pub fn run(args: &Args) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("benches load kernel programs and make network namespaces: run this as root");
    }
    setup::ensure(&[Purpose::Build, Purpose::Bench])?;
    let binary = build::binary(true)?;
    let dir = crate::target_dir().join("bench");
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let records_file = dir.join("records.jsonl");
    std::fs::write(&records_file, "").with_context(|| format!("emptying {}", records_file.display()))?;

    output::heading("measuring");
    let mut command = crate::cargo();
    command
        .env("RAVELIN_BIN", &binary)
        .env("RAVELIN_NGINX", setup::NGINX.path()?)
        .env("RAVELIN_ETCD", setup::ETCD.path()?)
        .env("RAVELIN_ETCDCTL", setup::ETCDCTL.path()?)
        .env("RAVELIN_BENCH_RECORDS", &records_file)
        .env("RAVELIN_BENCH_QUICK", if args.quick { "1" } else { "" })
        .env("RAVELIN_BENCH_ONLY", args.only.as_deref().unwrap_or_default())
        .args(["bench", "--package", "ravelin-tests", "--benches"]);
    let outcome = output::run(&mut command);

    let text = std::fs::read_to_string(&records_file)
        .with_context(|| format!("reading {}", records_file.display()))?;
    let records = text
        .lines()
        .map(|line| {
            serde_json::from_str::<Record>(line).with_context(|| format!("a bench wrote the record {line}"))
        })
        .collect::<Result<Vec<_>>>()?;
    print_tables(&records);
    let report = Report {
        time: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        commit: commit(),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        cpu: cpu(),
        cpus: std::thread::available_parallelism().map_or(0, usize::from),
        quick: args.quick,
        records,
    };
    let json = serde_json::to_string_pretty(&report).context("writing the report")?;
    let named = dir.join(format!("{}.json", report.time));
    for path in [Some(&named), Some(&dir.join("latest.json")), args.json.as_ref()]
        .into_iter()
        .flatten()
    {
        std::fs::write(path, &json).with_context(|| format!("writing {}", path.display()))?;
    }
    println!("written to {}", named.display());
    outcome
}

/// Prints records as tables, rows and columns in the order of their first record.
fn print_tables(records: &[Record]) {
    let mut missed = Vec::new();
    for table in distinct(records.iter().map(|record| record.table.as_str())) {
        let cells: Vec<&Record> = records.iter().filter(|record| record.table == table).collect();
        let rows = distinct(cells.iter().map(|record| record.row.as_str()));
        let columns = distinct(cells.iter().map(|record| record.column.as_str()));
        let by_place: HashMap<(&str, &str), &Record> = cells
            .iter()
            .map(|record| ((record.row.as_str(), record.column.as_str()), *record))
            .collect();
        let label = rows.iter().map(|row| row.chars().count()).max().unwrap_or(0);
        let text = |cell: Option<&&Record>| match cell {
            Some(record) => format!("{} {}", number(record.value), record.unit),
            None => "-".to_owned(),
        };
        let widths: Vec<usize> = columns
            .iter()
            .map(|column| {
                let cells = rows
                    .iter()
                    .map(|row| text(by_place.get(&(row, column))).chars().count());
                cells.chain([column.chars().count()]).max().unwrap_or(0)
            })
            .collect();

        println!();
        output::heading(table);
        let head: Vec<String> = columns
            .iter()
            .zip(&widths)
            .map(|(column, width)| format!("{column:>width$}"))
            .collect();
        output::note(paint(Style::Faint, format!("{:label$}  {}", "", head.join("  "))));
        for row in &rows {
            let mut line = format!("{row:label$}");
            for (column, width) in columns.iter().zip(&widths) {
                let cell = by_place.get(&(row, column));
                let padded = format!("{:>width$}", text(cell));
                line.push_str("  ");
                match cell.and_then(|record| Some((record, record.goal?))) {
                    Some((record, goal)) if !goal.reached(record.value) => {
                        missed.push((*record, goal));
                        line.push_str(&paint(Style::Bad, padded));
                    }
                    Some(_) => line.push_str(&paint(Style::Good, padded)),
                    None => line.push_str(&padded),
                }
            }
            output::note(line);
        }
        for record in &cells {
            if let Some(note) = &record.note {
                output::note(paint(
                    Style::Faint,
                    format!("{} {}: {note}", record.row, record.column),
                ));
            }
        }
    }
    println!();
    for (record, goal) in missed {
        let goal = match goal {
            Goal::AtMost(limit) => format!("at most {} {}", number(limit), record.unit),
            Goal::AtLeast(limit) => format!("at least {} {}", number(limit), record.unit),
        };
        let place = format!("{}, {}, {}", record.table, record.row, record.column);
        println!(
            "{} {place}: {} {}, to reach {goal}",
            paint(Style::Bad, "missed"),
            number(record.value),
            record.unit
        );
    }
}

/// Three significant digits, no exponent.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn distinct<'a>(words: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for word in words {
        if !seen.contains(&word) {
            seen.push(word);
        }
    }
    seen
}

fn commit() -> String {
    output::read(
        Command::new("git")
            .args(["describe", "--always", "--dirty"])
            .current_dir(crate::workspace()),
    )
    .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}
