//! `ravelin agent`

use super::Answer;
use crate::agent::{self, config};

/// Run the agent: keep the policy in force on this host, until told to stop
///
/// Reads /etc/ravelin/agent.toml; each key is also a flag, and a flag beats the file. Applies the policy, attaches to the
/// interfaces, and follows changes of both. Stopping or killing it leaves the filter in force: `ravelin detach`
/// is the way out.
///
/// To not lock yourself out, name what no policy can close: --failsafe 'tcp/22 from 203.0.113.9', or begin with
/// --mode observe, which drops nothing and counts what would be dropped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin agent --policy policy.toml --interface eth0 --failsafe 'tcp/22 from 203.0.113.9'
  ravelin agent --interface 'eth*' --mode observe
  ravelin agent --config /etc/ravelin/edge.toml --instance edge")]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    config: config::Args,
}

pub(super) fn run(args: Args) -> anyhow::Result<Answer> {
    let config = config::Config::resolve(args.config)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(agent::run(config))?;
    Ok(Answer::Yes)
}
