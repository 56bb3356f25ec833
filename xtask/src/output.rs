//! What people see of a task: headings, the commands it runs, and errors. Colour only on a terminal.

use anyhow::{Context, Result, bail};
use std::io::IsTerminal;
use std::process::Command;
use std::sync::OnceLock;

/// Whether standard output takes colour: a terminal, and `NO_COLOR` is not set.
pub fn colour() -> bool {
    static COLOUR: OnceLock<bool> = OnceLock::new();
    *COLOUR.get_or_init(|| {
        std::io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
    })
}

/// How a piece of text is to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Heading,
    Good,
    Bad,
    Faint,
    Strong,
    Command,
}

/// The text in this style, or as it is without a terminal.
pub fn paint(style: Style, text: impl AsRef<str>) -> String {
    let text = text.as_ref();
    if !colour() {
        return text.to_owned();
    }
    let code = match style {
        Style::Heading => "1;36",
        Style::Good => "32",
        Style::Bad => "31",
        Style::Faint => "2",
        Style::Strong => "1",
        Style::Command => "33",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

pub fn heading(text: &str) {
    println!("{}", paint(Style::Heading, format!("== {text}")));
}

pub fn note(text: impl AsRef<str>) {
    println!("   {}", text.as_ref());
}

pub fn error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

/// Runs a command with this terminal's output.
///
/// # Errors
/// It did not start, or it failed: the error names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("starting {}", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a command and gives what it printed.
///
/// # Errors
/// As [`run`]; what it said on standard error is in the text.
pub fn read(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {}", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", shown(command), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it.
pub fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program
        .file_name()
        .unwrap_or(program.as_os_str())
        .to_string_lossy()
        .into_owned();
    std::iter::once(name)
        .chain(
            command
                .get_args()
                .map(|argument| argument.to_string_lossy().into_owned()),
        )
        .collect::<Vec<_>>()
        .join(" ")
}
