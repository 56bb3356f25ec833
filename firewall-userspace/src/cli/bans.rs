//! `ravelin bans`

use super::{Answer, Context, fleet, unix_seconds};
use crate::api::types::BanList;
use crate::output;

/// Who is shut out for a time: by command, or because a limit of a service was exceeded
///
/// Strikes are the automatic bans of the source in a row, each longer than the one before.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin bans
  ravelin bans --fleet    what was banned on the whole fleet
  ravelin bans -o json | jq -r '.bans[] | select(.service == \"api\") | .prefix'")]
pub struct Args {}

pub(super) fn run(_: &Args, context: &Context) -> anyhow::Result<Answer> {
    if context.fleet {
        return fleet::bans::list(context);
    }
    context.show_from("/v1/bans", |list: &BanList| {
        output::bans(list, unix_seconds(), &context.style)
    })
}
