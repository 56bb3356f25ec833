//! `ravelin revoke`

use super::{Answer, Context, fleet, source};
use crate::api::types::Edit;

/// Take back an allow: the source is removed from the service's allow list, or the destination from the egress rule
///
/// Connections that it has are cut at once. It is named as the policy has it (`ravelin services`).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin revoke payments-api 198.51.100.7
  ravelin revoke ssh @office
  ravelin revoke backups 198.51.100.9     where backups is an egress rule")]
pub struct Args {
    /// Service or egress rule as the policy names it
    #[arg(value_name = "NAME", value_parser = source::service)]
    service: String,
    /// Address, prefix, @group, or any
    #[arg(value_name = "PREFIX", value_parser = source::parse)]
    source: String,
    #[command(flatten)]
    on: fleet::OnDocument,
}

pub(super) fn run(args: Args, context: &Context) -> anyhow::Result<Answer> {
    let edit = Edit::Revoke {
        service: args.service,
        source: args.source,
    };
    context.edit_on(&edit, &args.on)
}
