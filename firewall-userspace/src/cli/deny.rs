//! `ravelin deny`

use super::{Answer, Context, duration, source};
use crate::api::types::Edit;
use std::time::Duration;

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
    /// End by itself after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    for_: Option<Duration>,
}

pub(super) fn run(args: Args, context: &Context) -> anyhow::Result<Answer> {
    let for_seconds = args.for_.map(|time| time.as_secs());
    context.edit(&Edit::Deny {
        source: args.source,
        for_seconds,
    })
}
