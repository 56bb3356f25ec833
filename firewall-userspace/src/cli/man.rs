//! `ravelin man`

use super::{Answer, Cli, Context, print, usage};
use anyhow::Context as _;
use clap::{Command, CommandFactory};
use std::path::{Path, PathBuf};

/// Print a manual page, or write all of them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin man | man -l -
  ravelin man explain | man -l -
  ravelin man service add | man -l -
  ravelin man --dir /usr/local/share/man/man1")]
pub struct Args {
    /// Page of this command instead of that of ravelin
    #[arg(conflicts_with = "dir")]
    command: Vec<String>,
    /// Write a page per command into this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args, _: &Context) -> anyhow::Result<Answer> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    if let Some(dir) = &args.dir {
        std::fs::create_dir_all(dir).with_context(|| format!("making the directory {}", dir.display()))?;
        write_all(&root, dir)?;
        return Ok(Answer::Yes);
    }
    let mut command = &root;
    for (at, name) in args.command.iter().enumerate() {
        command = command.find_subcommand(name).ok_or_else(|| {
            let (name, above) = (args.command[..=at].join(" "), args.command[..at].join(" "));
            let above = if above.is_empty() {
                above
            } else {
                format!(" {above}")
            };
            usage(
                "man",
                format!("there is no command \"{name}\"; `ravelin{above} --help` lists them"),
            )
        })?;
    }
    print(&page(command)?)?;
    Ok(Answer::Yes)
}

/// The page of a command and of each one below it: `ravelin.1`, `ravelin-service.1`, `ravelin-service-add.1`.
fn write_all(command: &Command, dir: &Path) -> anyhow::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, page(command)?).with_context(|| format!("writing {}", path.display()))?;
    command
        .get_subcommands()
        .try_for_each(|below| write_all(below, dir))
}

fn page(command: &Command) -> anyhow::Result<String> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .source(concat!("ravelin ", env!("CARGO_PKG_VERSION")))
        .manual("ravelin")
        .render(&mut page)?;
    // What stands after the options are examples, line by line.
    Ok(String::from_utf8(page)?.replace(".SH EXTRA\nExamples:\n", ".SH EXAMPLES\n.nf\n"))
}
