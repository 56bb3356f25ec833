//! `ravelin completions`

use super::{Answer, Cli, Context, print};
use clap::CommandFactory;
use clap_complete::Shell;

/// Print the completions of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin completions bash > /usr/share/bash-completion/completions/ravelin
  ravelin completions zsh > /usr/local/share/zsh/site-functions/_ravelin
  ravelin completions fish > ~/.config/fish/completions/ravelin.fish")]
pub struct Args {
    shell: Shell,
}

pub(super) fn run(args: &Args, _: &Context) -> anyhow::Result<Answer> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ravelin", &mut script);
    print(&String::from_utf8(script)?)?;
    Ok(Answer::Yes)
}
