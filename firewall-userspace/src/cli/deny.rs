//! `ravelin deny`

use super::{Answer, Context, duration, fleet, source};
use crate::api::types::Edit;

/// Shut a source out of everything, on every port
///
/// Adds it to the policy's own deny list, which beats every allow. With --for the entry ends by itself. Failsafe rules
/// of the agent stay open.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin deny 203.0.113.9
  ravelin deny 203.0.113.0/24 --for 10m")]
pub struct Args {
    /// Address, prefix or @group
    #[arg(value_name = "PREFIX", value_parser = source::parse)]
    source: String,
    #[command(flatten)]
    lasting: duration::Lasting,
    #[command(flatten)]
    on: fleet::OnDocument,
}

pub(super) fn run(args: Args, context: &Context) -> anyhow::Result<Answer> {
    let edit = Edit::Deny {
        source: args.source,
        for_seconds: args.lasting.seconds(),
    };
    context.edit_on(&edit, &args.on)
}
