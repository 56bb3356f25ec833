//! `ravelin man`

use super::{Answer, Cli, Context, print, usage};
use anyhow::Context as _;
use clap::CommandFactory;
use std::path::PathBuf;

/// Print a manual page, or write all of them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin man | man -l -
  ravelin man explain | man -l -
  ravelin man --dir /usr/local/share/man/man1")]
pub struct Args {
    /// Page of this command instead of that of ravelin
    #[arg(conflicts_with = "dir")]
    command: Option<String>,
    /// Write a page per command into this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args, _: &Context) -> anyhow::Result<Answer> {
    let mut root = Cli::command().disable_help_subcommand(true);
    if let Some(dir) = &args.dir {
        let writing = || format!("writing manual pages to {}", dir.display());
        std::fs::create_dir_all(dir).with_context(writing)?;
        clap_mangen::generate_to(root, dir).with_context(writing)?;
        return Ok(Answer::Yes);
    }
    root.build();
    let command = match &args.command {
        None => root,
        Some(name) => {
            let found = root.find_subcommand(name).cloned();
            found.ok_or_else(|| usage(format!("there is no command \"{name}\"")))?
        }
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    print(&String::from_utf8(page)?)?;
    Ok(Answer::Yes)
}
