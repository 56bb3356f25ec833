//! `ravelin delete`

use super::super::{Answer, Context};
use super::{Draft, document};
use crate::fleet::statement::Kind;
use crate::output::{self, Published};
use crate::policy::diff::diff;
use crate::policy::model::Policy;
use std::collections::BTreeMap;

/// Take a policy of the fleet out of force on every node
///
/// A signed word takes its place, so that nodes know it from a store that lost something: what merely vanishes stays in force.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin delete payments --dry-run
  ravelin delete payments")]
pub struct Args {
    /// Policy as `ravelin policies` names it
    #[arg(value_name = "NAME", value_parser = document)]
    name: String,
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
}

pub(in super::super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    let fleet = context.fleet()?;
    let record = context.wait(async {
        let view = fleet.view().await?;
        let (stored, verified) = view.document(&args.name)?;
        let statement = &verified.statement;
        let old = fleet.load(&view, verified).await?;
        let lines = diff(&old, &Policy::default());
        let meant = statement
            .nodes
            .parse()
            .map(|nodes| view.meant(&nodes))
            .unwrap_or_default();
        let version = view.next_version(&args.name);
        let draft = Draft {
            kind: Kind::Delete,
            name: args.name.clone(),
            nodes: statement.nodes.clone(),
            expires: None,
            lists: BTreeMap::new(),
            text: String::new(),
        };
        let mut record = match args.dry_run {
            true => Published {
                name: draft.name,
                nodes: draft.nodes,
                version,
                ..Published::default()
            },
            false => fleet.publish(draft, Some(stored), version).await?,
        };
        record.diff = lines;
        record.meant = meant;
        Ok(record)
    })?;
    context.show(&record, |record| {
        output::published(
            record,
            &format!("{} is deleted", record.name),
            args.dry_run,
            &context.style,
        )
    })?;
    Ok(Answer::Yes)
}
