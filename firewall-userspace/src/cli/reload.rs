//! `ravelin reload`

use super::{Answer, Context};

/// Read the policy file again and put it in force
///
/// Returns when it is in force, or with what is wrong with it; then what was in force stays in force. The agent also
/// does so by itself when the file changes.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(_: &Args, context: &Context) -> anyhow::Result<Answer> {
    context.change("/v1/reload", &serde_json::json!({}), false)
}
