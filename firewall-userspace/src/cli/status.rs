//! `ravelin status`

use super::{Answer, Context, duration, message};
use crate::api::client::{Client, ClientError};
use crate::api::types::Status;
use crate::output;
use std::time::{Duration, Instant, SystemTime};

/// Is the policy in force, since when, on which interfaces, and what is wrong
///
/// Exits 1 when no policy is in force on every interface asked for.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin status
  ravelin status --wait 10s && systemctl start my-service
  ravelin status -o json | jq -r .policy.digest")]
pub struct Args {
    /// Wait until the policy is in force, also for an agent that is only starting; exits 1 if it is not by then
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    wait: Option<Duration>,
}

/// Between two tries to reach an agent that does not listen yet.
const RETRY: Duration = Duration::from_millis(50);

pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    let status = context.wait(async {
        match args.wait {
            None => Ok(context
                .client()
                .get::<Status>("/v1/status?published=true")
                .await?),
            Some(patience) => {
                Ok(wait_for(&context.client().patient(patience), Instant::now() + patience).await?)
            }
        }
    })?;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    context.show(&status, |record| output::status(record, now, &context.style))?;
    if status.ready {
        return Ok(Answer::Yes);
    }
    if let Some(patience) = args.wait {
        message(
            "error",
            &format!("not in force within {}", output::duration(patience)),
        );
    }
    Ok(Answer::No)
}

/// Asks until the agent is there; then the agent itself waits until it is ready.
async fn wait_for(client: &Client, deadline: Instant) -> Result<Status, ClientError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match client
            .get::<Status>(&format!("/v1/status?published=true&wait_ms={}", left.as_millis()))
            .await
        {
            Ok(status) => return Ok(status),
            Err(ClientError::NoAgent { .. } | ClientError::Lost { .. }) if left > RETRY => {
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error),
        }
    }
}
