//! `ravelin policies`

use super::super::{Answer, Context};
use super::{Fleet, Stored, View};
use crate::fleet::statement::{Kind, Subject};
use crate::output::{self, PolicyRow};

/// The policies of the fleet: for which nodes, signed by whom, and how many nodes have them in force
///
/// A policy that nodes would not believe is shown with the reason. APPLIED counts the registered nodes that report its version
/// in force, of those that it is meant for.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin policies
  ravelin policies -o json | jq -r '.[] | select(.applied < .meant) | .name'")]
pub struct Args {
    /// Also those that were deleted
    #[arg(long)]
    deleted: bool,
}

pub(in super::super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    let fleet = context.fleet()?;
    let view = context.wait(fleet.view())?;
    let mut rows = rows(&fleet, &view);
    rows.retain(|row| args.deleted || !row.deleted);
    context.show(&rows, |rows| output::policies(rows, fleet.now, &context.style))?;
    Ok(Answer::Yes)
}

fn rows(fleet: &Fleet, view: &View) -> Vec<PolicyRow> {
    let row = |stored: &Stored| {
        let mut row = PolicyRow {
            signed: fleet.signed(Subject::Policy, stored),
            ..PolicyRow::default()
        };
        let Some(statement) = stored.statement() else {
            return row;
        };
        row.deleted = statement.kind == Kind::Delete;
        if row.deleted {
            row.signed.state = "deleted".to_owned();
            return row;
        }
        // A selector that verified reads.
        let Ok(nodes) = statement.nodes.parse() else {
            return row;
        };
        let meant = view.meant(&nodes);
        let signed = stored.digest();
        let has = |name: &&String| {
            let report = view.reports.get(*name);
            let version = report.and_then(|report| report.documents.get(&statement.name));
            version.is_some_and(|version| version.version == statement.version && version.digest == signed)
        };
        row.meant = meant.len();
        row.applied = meant.iter().filter(has).count();
        row
    };
    view.policies.values().map(row).collect()
}
