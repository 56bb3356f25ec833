//! `ravelin observe` and `ravelin enforce`

use super::{Answer, Context};
use crate::api::types::{ModeRequest, Status};

/// Let everything pass, and only count what the policy would drop
///
/// The same decision runs; only its last step differs. What would have been dropped is in `ravelin counters` as
/// would-drop and in `ravelin monitor`.
#[derive(Debug, clap::Args)]
pub struct ObserveArgs {}

/// Drop what the policy drops (the normal mode)
#[derive(Debug, clap::Args)]
pub struct EnforceArgs {}

pub(super) fn observe(_: &ObserveArgs, context: &Context) -> anyhow::Result<Answer> {
    set(
        "observe",
        "observing: drops are counted, nothing is dropped; back with `ravelin enforce`\n",
        context,
    )
}

pub(super) fn enforce(_: &EnforceArgs, context: &Context) -> anyhow::Result<Answer> {
    set("enforce", "enforcing\n", context)
}

fn set(mode: &str, text: &str, context: &Context) -> anyhow::Result<Answer> {
    let request = ModeRequest {
        mode: mode.to_owned(),
    };
    let record: Status = context.wait(async { Ok(context.client().post("/v1/mode", &request).await?) })?;
    context.show(&record, |_| text.to_owned())?;
    Ok(Answer::Yes)
}
