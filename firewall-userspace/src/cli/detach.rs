//! `ravelin detach`

use super::{Answer, Context, usage};
use crate::agent::config::default_pins;
use crate::agent::lock::{self, LockError};
use crate::api::client::ClientError;
use crate::api::types::{Detached, Status};
use crate::datapath;
use anyhow::Context as _;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Take the filter off every interface: everything that listens becomes reachable
///
/// The only way out: killing or stopping the agent leaves the filter in force. Asks first. Works without an agent too,
/// and then needs root. A running agent
/// stops after it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin detach
  ravelin detach --yes
  ravelin detach --instance edge --yes")]
pub struct Args {
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Where the instance has its pins, if no agent runs [default: /sys/fs/bpf/ravelin/INSTANCE]
    #[arg(long, value_name = "DIR")]
    pins: Option<PathBuf>,
}

pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    let asked = context.wait(async { Ok(context.client().get::<Status>("/v1/status").await) })?;
    let (instance, pins) = match asked {
        Ok(status) => (status.instance, None),
        Err(error @ ClientError::NoAgent { .. }) => {
            // The pins of another instance than was meant would be the wrong ones to remove.
            if context.only_socket && args.pins.is_none() {
                return Err(usage(
                    "detach",
                    format!("{error}; to detach without an agent, name its --instance or --pins"),
                ));
            }
            let pins = args
                .pins
                .clone()
                .unwrap_or_else(|| default_pins(&context.instance));
            (context.instance.clone(), Some(pins))
        }
        Err(error) => return Err(error.into()),
    };
    if !args.yes && !confirmed(&instance)? {
        return Ok(Answer::No);
    }
    let done = match pins {
        Some(pins) => Detached {
            removed: offline(&pins)
                .with_context(|| format!("detaching without an agent, by {}", pins.display()))?,
        },
        None => context.wait(async {
            Ok(context
                .client()
                .post("/v1/detach", &serde_json::json!({}))
                .await?)
        })?,
    };
    context.show(&done, |done| match done.removed.is_empty() {
        true => format!("nothing to detach: instance {instance} filters nothing here\n"),
        false => done.removed.iter().map(|line| line.clone() + "\n").collect(),
    })?;
    Ok(Answer::Yes)
}

/// Not under the feet of an agent that only cannot be reached: it would go on as if it filtered.
fn offline(pins: &Path) -> anyhow::Result<Vec<String>> {
    let _lock = match pins.exists().then(|| lock::pins(pins)) {
        None => None,
        Some(Ok(lock)) => Some(lock),
        Some(Err(LockError::Held { pid, .. })) => {
            let (who, find) = match pid {
                Some(pid) => (format!(" (pid {pid})"), format!("pid={pid}")),
                None => (String::new(), "ravelin".to_owned()),
            };
            anyhow::bail!(
                "an agent{who} runs on these pins, but listens on another socket: name it, `ravelin detach --socket \
                 PATH` (`ss -xlp | grep {find}` shows it), or stop the agent first"
            );
        }
        Some(Err(error)) => {
            // The likely cause, and better said.
            datapath::check_privileges()?;
            return Err(error.into());
        }
    };
    Ok(datapath::detach_all(pins)?)
}

fn confirmed(instance: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(usage(
            "detach",
            "there is no terminal to ask on: detach with --yes if you mean it",
        ));
    }
    let mut stderr = std::io::stderr();
    write!(
        stderr,
        "This takes the filter of instance {instance} off every interface: whatever listens on this host becomes\n\
         reachable, and stays so until an agent is started again. Type yes to go on: "
    )?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() == "yes" {
        return Ok(true);
    }
    writeln!(stderr, "nothing was done")?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_detached_under_an_agent_that_holds_the_pins() {
        let pins = tempfile::tempdir().expect("a directory");
        let _agent = lock::pins(pins.path()).expect("free");
        let error = offline(pins.path()).expect_err("refused").to_string();
        let pid = format!("(pid {})", std::process::id());
        assert!(error.contains(&pid) && error.contains("--socket"), "{error}");
    }
}
