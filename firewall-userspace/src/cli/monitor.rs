//! `ravelin monitor`

use super::{Answer, Context, print};
use crate::api::types::MonitorRecord;
use crate::output;
use anyhow::{Context as _, bail};

/// Dropped packets as they happen
///
/// Events are sampled: per reason, CPU and second only so many are shown, and the rest are counted ("more were not
/// shown"), at the latest after a second. Exact numbers are in `ravelin counters`. With -o json one object a line: an
/// event, or {"time", "suppressed"} when none follows those that were not shown, or {"time", "anomaly", ...} when an anomaly
/// begins or ends (`ravelin anomalies`).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin monitor
  ravelin monitor --count 10
  ravelin monitor --passes -o json | jq -c 'select(.service == \"payments-api\")'")]
pub struct Args {
    /// Also show packets that pass
    #[arg(long)]
    passes: bool,
    /// End after so many events
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    context.wait(async {
        let mut lines = context
            .client()
            .stream(&format!("/v1/monitor?passes={}", args.passes))
            .await?;
        if !context.json {
            print(&output::event_header(&context.style))?;
        }
        let mut left = args.count.unwrap_or(u64::MAX);
        while left > 0 {
            let Some(line) = lines.next().await? else {
                bail!("the agent has stopped, and with it the events");
            };
            let record: MonitorRecord = serde_json::from_slice(&line)
                .context("an event of the agent is not understood; is it another version?")?;
            let text = match context.json {
                true => serde_json::to_string(&record)? + "\n",
                false => output::event(&record, &context.style),
            };
            print(&text)?;
            left -= u64::from(matches!(record, MonitorRecord::Event(_)));
        }
        Ok(Answer::Yes)
    })
}
