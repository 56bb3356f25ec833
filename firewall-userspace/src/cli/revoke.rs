//! `ravelin revoke`

use super::{Answer, Context, source};
use crate::api::types::Edit;

/// Take back an allow: the source is removed from the service's allow list
///
/// Connections that it has are cut at once. The source is named as the policy has it (`ravelin services`).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin revoke payments-api 198.51.100.7
  ravelin revoke ssh @office")]
pub struct Args {
    /// Service as the policy names it
    #[arg(value_parser = source::service)]
    service: String,
    /// Address, prefix, @group, or any
    #[arg(value_name = "PREFIX", value_parser = source::parse)]
    source: String,
}

pub(super) fn run(args: Args, context: &Context) -> anyhow::Result<Answer> {
    context.edit(&Edit::Revoke {
        service: args.service,
        source: args.source,
    })
}
