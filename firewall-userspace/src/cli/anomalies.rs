//! `ravelin anomalies`

use super::{Answer, Context};
use crate::api::types::AnomalyList;
use crate::output;

/// What is far more than usual now: new connections, drops and bytes by service, and who sends most
///
/// The agent learns what is usual for each service at each hour of the day. FROM are the top sources of the last minute, by
/// sampled events, with their shares; they are forgotten when the anomaly ends. Nothing is dropped because of an anomaly.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin anomalies
  ravelin anomalies -o json | jq -r '.anomalies[] | .service, .sources[].source'
  ravelin monitor -o json | jq -c 'select(.anomaly)'")]
pub struct Args {}

pub(super) fn run(_: &Args, context: &Context) -> anyhow::Result<Answer> {
    context.show_from("/v1/anomalies", |list: &AnomalyList| {
        output::anomalies(list, &context.style)
    })
}
