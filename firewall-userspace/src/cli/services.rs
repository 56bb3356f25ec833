//! `ravelin services`

use super::{Answer, Context};
use crate::api::types::ServiceRow;
use crate::output;

/// The services of the policy: their ports, who may reach them, what they have received
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin services
  ravelin services -o json | jq -r '.[] | select(.dropped.packets > 0) | .name'")]
pub struct Args {}

pub(super) fn run(_: &Args, context: &Context) -> anyhow::Result<Answer> {
    context.show_from("/v1/services", |rows: &Vec<ServiceRow>| {
        output::services(rows, &context.style)
    })
}
