//! `ravelin rules`

use super::{Answer, Context};
use crate::api::types::RuleRow;
use crate::output;

/// Every rule of the policy, its place in the file, and what it has matched
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin rules
  ravelin rules -o json | jq '.[] | select(.count.packets == 0)'    # rules that nothing has used")]
pub struct Args {}

pub(super) fn run(_: &Args, context: &Context) -> anyhow::Result<Answer> {
    context.show_from("/v1/rules", |rows: &Vec<RuleRow>| {
        output::rules(rows, &context.style)
    })
}
