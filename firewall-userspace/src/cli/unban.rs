//! `ravelin unban`

use super::{Answer, Context, ban, fleet, usage};
use crate::api::types::{UnbanRequest, Unbanned};
use crate::output;
use crate::policy::prefix;
use ipnetwork::IpNetwork;

/// End a ban before its time
///
/// The prefix is named as `ravelin bans` has it. Its strikes are forgotten, too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin unban 203.0.113.9
  ravelin unban --all
  ravelin unban 203.0.113.9 --fleet    what was banned with --fleet")]
pub struct Args {
    /// Address or prefix
    #[arg(value_name = "PREFIX", value_parser = ban::network, conflicts_with = "all")]
    network: Option<IpNetwork>,
    /// All of them, and what is remembered of bans that are over
    #[arg(long)]
    all: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    if args.network.is_none() && !args.all {
        return Err(usage(
            "unban",
            "say whose ban is over: a PREFIX as `ravelin bans` has it, or --all",
        ));
    }
    if context.fleet {
        return fleet::bans::unban(args.network, context);
    }
    let request = UnbanRequest {
        prefix: args.network.map(prefix::show),
    };
    let unbanned: Unbanned =
        context.wait(async { Ok(context.client().post("/v1/unban", &request).await?) })?;
    context.show(&unbanned, output::unbanned)?;
    Ok(Answer::Yes)
}
