//! `ravelin allow`

use super::{Answer, Context, duration, fleet, source};
use crate::api::types::Edit;

/// Let a source reach a service, or this host a destination by an egress rule
///
/// Adds it to the allow list of the service, or to what the egress rule opens, in the policy file and puts that in force.
/// With --for the entry ends by itself, also if the agent restarts meanwhile. A deny beats every allow: `ravelin explain`
/// tells.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin allow payments-api 198.51.100.7
  ravelin allow payments-api 2001:db8:10::/48 --for 2h
  ravelin allow ssh @office
  ravelin allow backups 198.51.100.9      where backups is an egress rule")]
pub struct Args {
    /// Service or egress rule as the policy names it
    #[arg(value_name = "NAME", value_parser = source::service)]
    service: String,
    /// Address, prefix, @group, or any
    #[arg(value_name = "PREFIX", value_parser = source::parse)]
    source: String,
    #[command(flatten)]
    lasting: duration::Lasting,
    #[command(flatten)]
    on: fleet::OnDocument,
}

pub(super) fn run(args: Args, context: &Context) -> anyhow::Result<Answer> {
    let edit = Edit::Allow {
        service: args.service,
        source: args.source,
        for_seconds: args.lasting.seconds(),
    };
    context.edit_on(&edit, &args.on)
}
