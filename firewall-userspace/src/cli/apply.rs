//! `ravelin apply`

use super::{Answer, Context, duration, fleet, usage};
use crate::api::types::ApplyRequest;
use anyhow::Context as _;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

/// Replace the policy by that of a file, if it is valid
///
/// The agent checks the text, writes it in place of its own policy file and puts it in force at once. A policy with
/// a mistake changes nothing. Prints who gained and who lost which port. Files of prefixes that the policy names
/// are looked for beside the agent's policy file.
///
/// With --fleet the file is a document of the fleet (`[policy]` says its name and its nodes), and no agent is asked: it is checked
/// here, compared with the other documents, signed with your key and stored, with the files of prefixes that it names. Who
/// changed it meanwhile is told, and nothing is overwritten.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin apply -f policy.toml --dry-run
  ravelin apply -f policy.toml
  generate-policy | ravelin apply -f -
  ravelin apply -f payments.toml --fleet --expires 90d")]
pub struct Args {
    /// Policy to apply, '-' for standard input
    #[arg(short, long = "file", value_name = "FILE")]
    file: PathBuf,
    /// Only check it, and show what would change
    #[arg(long)]
    dry_run: bool,
    /// With --fleet: nodes take it for so long; what is in force stays so [default: as its last version, or for good]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    expires: Option<Duration>,
}

pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    if context.fleet {
        let wishes = fleet::change::Wishes {
            lasts: args.expires.map(|lasts| lasts.as_secs()),
            dry_run: args.dry_run,
        };
        return fleet::change::apply(&args.file, &wishes, context);
    }
    if args.expires.is_some() {
        return Err(usage(
            "apply",
            "--expires is for what is signed: say --fleet, too",
        ));
    }
    let (text, path) = if args.file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("reading the policy from standard input")?;
        (text, "standard input".to_owned())
    } else {
        let text = std::fs::read_to_string(&args.file)
            .with_context(|| format!("reading the policy {}", args.file.display()))?;
        (text, args.file.display().to_string())
    };
    let request = ApplyRequest {
        text,
        path,
        dry_run: args.dry_run,
    };
    context.change("/v1/apply", &request, args.dry_run)
}
