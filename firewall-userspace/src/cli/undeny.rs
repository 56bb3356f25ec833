//! `ravelin undeny`

use super::{Answer, Context, fleet, source};
use crate::api::types::Edit;

/// Take back a deny: the source is removed from the policy's own deny list
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin undeny 203.0.113.0/24")]
pub struct Args {
    /// Address, prefix or @group, as the policy has it
    #[arg(value_name = "PREFIX", value_parser = source::parse)]
    source: String,
    #[command(flatten)]
    on: fleet::OnDocument,
}

pub(super) fn run(args: Args, context: &Context) -> anyhow::Result<Answer> {
    context.edit_on(&Edit::Undeny { source: args.source }, &args.on)
}
