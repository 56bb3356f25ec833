//! `ravelin limits`

use super::{Answer, Context};
use crate::api::types::LimitState;
use crate::output;

/// The limits of the policy, how much of them is in use, and what is challenged
#[derive(Debug, clap::Args)]
#[command(
    after_help = "IN USE is how much of the burst of a total is spent, or how many connections there are.
SOURCES are those that are remembered now, and for how many there is room ([limits] in agent.toml).

Examples:
  ravelin limits
  ravelin limits -o json | jq -r '.[] | select(.challenged_seconds) | .scope'"
)]
pub struct Args {}

pub(super) fn run(_: &Args, context: &Context) -> anyhow::Result<Answer> {
    context.show_from("/v1/limits", |rows: &Vec<LimitState>| {
        output::limit_states(rows, &context.style)
    })
}
