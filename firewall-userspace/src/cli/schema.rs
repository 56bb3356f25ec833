//! `ravelin schema`

use super::{Answer, Context, print};
use crate::policy::schema::json_schema;

/// Print the JSON schema of the policy file, for editors
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example, for editors that use taplo (VS Code: Even Better TOML):
  ravelin schema > /etc/ravelin/policy.schema.json
and as first line of the policy:
  #:schema /etc/ravelin/policy.schema.json"
)]
pub struct Args {}

pub(super) fn run(_: &Args, _: &Context) -> anyhow::Result<Answer> {
    print(&(serde_json::to_string_pretty(&json_schema())? + "\n"))?;
    Ok(Answer::Yes)
}
