//! `ravelin counters`

use super::{Answer, Context, duration, message, print};
use crate::api::client::ClientError;
use crate::api::types::CounterRow;
use crate::output::{self, Rates};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How packets have ended, by service, verdict and reason
///
/// Counts are exact. Neither a change of policy nor a restart of the agent resets them; a service or rule that was
/// taken out and comes back begins anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin counters
  ravelin counters --watch        every two seconds, with packets and bytes per second
  ravelin counters --watch 0.5 -o json | jq -c .")]
pub struct Args {
    /// Show them again and again, with rates; seconds between [default: 2]
    #[arg(long, short, value_name = "SECS", num_args = 0..=1, default_missing_value = "2", value_parser = duration::parse_interval)]
    watch: Option<Duration>,
}

pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    let Some(interval) = args.watch else {
        return context.show_from("/v1/counters", |rows: &Vec<CounterRow>| {
            output::counters(rows, None, &context.style)
        });
    };
    context.wait(watch(interval, context))
}

async fn watch(interval: Duration, context: &Context) -> anyhow::Result<Answer> {
    // On a terminal each reading takes the place of the one before.
    let clear = if std::io::stdout().is_terminal() {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    let mut ticks = tokio::time::interval(interval);
    let mut before: Option<(Vec<CounterRow>, Instant)> = None;
    loop {
        ticks.tick().await;
        let rows: Vec<CounterRow> = match context.client().get("/v1/counters").await {
            Ok(rows) => rows,
            // An agent that restarts does not end a watch that has begun.
            Err(error @ (ClientError::NoAgent { .. } | ClientError::Lost { .. })) if before.is_some() => {
                message("warning", &error.to_string());
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let now = Instant::now();
        if context.json {
            print(&(serde_json::to_string(&rows)? + "\n"))?;
        } else {
            let rates = before.as_ref().map(|(rows, at)| Rates {
                before: rows,
                elapsed: now - *at,
            });
            let table = output::counters(&rows, rates, &context.style);
            let gap = if clear.is_empty() && before.is_some() {
                "\n"
            } else {
                ""
            };
            print(&format!("{clear}{gap}{table}"))?;
        }
        before = Some((rows, now));
    }
}
