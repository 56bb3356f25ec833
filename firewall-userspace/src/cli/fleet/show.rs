//! `ravelin show`

use super::super::{Answer, Context, message};
use super::change::raw;
use super::document;
use crate::fleet::statement::{Kind, Subject};
use crate::output::{self, Signed};
use anyhow::bail;
use serde::Serialize;

/// Show a policy of the fleet as its author wrote it
///
/// The text goes to standard output, and who signed it to standard error: `ravelin show web > web.toml`, an editor, and
/// `ravelin apply -f web.toml --fleet` are one way to change it. With --signed, what is stored is printed: the statement that was
/// signed, then the signature, which `ssh-keygen -Y verify` checks without ravelin.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin show payments
  ravelin show payments --signed > payments.signed
  sed '/^-----BEGIN SSH/,$d' payments.signed > payments.statement
  sed -n '/^-----BEGIN SSH/,$p' payments.signed > payments.sig
  ssh-keygen -Y verify -f allowed_signers -I alice@example.org -n ravelin-policy \\
      -s payments.sig < payments.statement")]
pub struct Args {
    /// Policy as `ravelin policies` names it
    #[arg(value_name = "NAME", value_parser = document)]
    name: String,
    /// What was signed, and the signature, byte for byte
    #[arg(long)]
    signed: bool,
}

#[derive(Serialize)]
struct Record {
    #[serde(flatten)]
    signed: Signed,
    /// Roots by the path of the list file.
    lists: std::collections::BTreeMap<String, String>,
    text: String,
}

pub(in super::super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    let fleet = context.fleet()?;
    let view = context.wait(fleet.view())?;
    let Some(stored) = view.policies.get(&args.name) else {
        bail!("{}", view.no_document(&args.name));
    };
    let signed = fleet.signed(Subject::Policy, stored);
    let believed = stored.believed.is_ok();
    if args.signed {
        raw(&stored.entry.value)?;
    } else {
        let Some(envelope) = &stored.envelope else {
            bail!(
                "what the store has as \"{}\" is no policy ({}: {})",
                args.name,
                signed.state,
                signed.problem
            );
        };
        let claims = envelope.claims();
        if claims.kind == Kind::Delete {
            bail!(
                "\"{}\" was deleted {} by {}",
                args.name,
                output::utc(claims.issued),
                signed.signer
            );
        }
        let record = Record {
            lists: claims
                .lists
                .iter()
                .map(|(name, root)| (name.clone(), root.to_string()))
                .collect(),
            text: claims.text.clone(),
            signed: signed.clone(),
        };
        context.show(&record, |record| record.text.clone())?;
    }
    if !believed {
        message(
            "warning",
            &format!("nodes do not take this ({}): {}", signed.state, signed.problem),
        );
        return Ok(Answer::No);
    }
    if !context.json {
        let by = match signed.signer.as_str() {
            "" => format!("by {}, unchecked", signed.fingerprint),
            signer => format!("by {signer} ({})", signed.fingerprint),
        };
        let expires = signed.expires.map_or("never expires".to_owned(), |at| {
            format!("expires {}", output::utc(at))
        });
        let text = format!(
            "version {} for {}, signed {} {by}, {expires}",
            signed.version,
            signed.nodes,
            output::utc(signed.issued)
        );
        message("signed", &text);
    }
    Ok(Answer::Yes)
}
