//! `ravelin nodes`

use super::super::{Answer, Context, message, print};
use super::{ALL, Fleet, Stored, View};
use crate::fleet::report::{node_key, status_key};
use crate::fleet::selector::is_node_name;
use crate::output::{self, NodeRow};
use crate::store::follow::{Follower, Update};
use crate::store::shared::{Change, Entry, Expect};
use anyhow::bail;
use clap::Subcommand;
use std::collections::BTreeMap;
use std::io::IsTerminal;

/// The nodes of the fleet: what each has in force, who is behind, who failed, and since when
///
/// A node is ok, behind (another version than the store has is in force), failed (it refused something, or is not in force on
/// every interface), degraded, silent (registered, but never reported) or gone (not registered any more).
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  ravelin nodes
  ravelin nodes --watch
  ravelin nodes -o json | jq -r '.[] | select(.state != \"ok\") | .name'
  ravelin nodes forget web-7"
)]
pub struct Args {
    /// Show them again at every change, until interrupted; as JSON one line each
    #[arg(short, long)]
    watch: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Delete the last report of a node that is gone for good
    Forget {
        /// Node as `ravelin nodes` names it
        #[arg(value_parser = node)]
        name: String,
    },
}

fn node(text: &str) -> Result<String, String> {
    match is_node_name(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("\"{text}\" cannot name a node")),
    }
}

pub(in super::super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    let fleet = context.fleet()?;
    match &args.command {
        Some(Command::Forget { name }) => context.wait(forget(&fleet, name)),
        None if args.watch => context.wait(watch(fleet, context)),
        None => {
            let view = context.wait(fleet.view())?;
            let rows = rows(&view);
            context.show(&rows, |rows| output::nodes(rows, fleet.now, &context.style))?;
            Ok(Answer::Yes)
        }
    }
}

async fn forget(fleet: &Fleet, name: &str) -> anyhow::Result<Answer> {
    let keys = [node_key(name), status_key(name)];
    let entries = fleet.get(&keys).await?;
    match &entries[..] {
        [Some(_), _] => bail!("\"{name}\" is registered: it would report again; stop its agent first"),
        [None, Some(report)] => {
            fleet
                .store
                .delete(&keys[1], Expect::unchanged(Some(report)))
                .await?;
            print(&format!("{name} is forgotten\n"))?;
            Ok(Answer::Yes)
        }
        _ => bail!("there is no node \"{name}\" (`ravelin nodes`)"),
    }
}

async fn watch(mut fleet: Fleet, context: &Context) -> anyhow::Result<Answer> {
    // On a terminal each reading takes the place of the one before.
    let clear = if std::io::stdout().is_terminal() {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    let mut follower = Follower::new(fleet.store.clone(), &ALL);
    let mut known: BTreeMap<String, Entry> = BTreeMap::new();
    let mut shown = false;
    loop {
        match follower.next().await {
            Update::All(snapshot) => {
                known = snapshot
                    .entries
                    .into_iter()
                    .map(|entry| (entry.key.clone(), entry))
                    .collect();
            }
            Update::Changes { changes, .. } => {
                if changes.is_empty() {
                    continue;
                }
                for change in changes {
                    match change {
                        Change::Put(entry) => known.insert(entry.key.clone(), entry),
                        Change::Delete { key, .. } => known.remove(&key),
                    };
                }
            }
            Update::Lost(error) => {
                message("warning", &error.full());
                continue;
            }
            Update::Back => {
                message("warning", "the store is in reach again");
                continue;
            }
            Update::Replaced(how) => {
                message("warning", &format!("the store is not the one it was: {how}"));
                continue;
            }
        }
        fleet.now = super::unix_seconds();
        let rows = rows(&fleet.view_of(known.values().cloned()));
        if context.json {
            print(&(serde_json::to_string(&rows)? + "\n"))?;
        } else {
            let gap = if clear.is_empty() && shown { "\n" } else { "" };
            print(&format!(
                "{clear}{gap}{}",
                output::nodes(&rows, fleet.now, &context.style)
            ))?;
        }
        shown = true;
    }
}

fn rows(view: &View) -> Vec<NodeRow> {
    let names: std::collections::BTreeSet<&String> = view.nodes.keys().chain(view.reports.keys()).collect();
    names.into_iter().map(|name| row(view, name)).collect()
}

fn row(view: &View, name: &str) -> NodeRow {
    let (registration, report) = (view.nodes.get(name), view.reports.get(name));
    let mut row = NodeRow {
        name: name.to_owned(),
        ..NodeRow::default()
    };
    if let Some(registration) = registration {
        row.labels = registration
            .labels
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        row.addresses = registration.addresses.iter().map(ToString::to_string).collect();
        row.agent.clone_from(&registration.version);
    }
    if let Some(report) = report {
        row.agent.clone_from(&report.agent);
        row.mode.clone_from(&report.mode);
        row.ready = report.ready;
        row.generation = report.generation;
        row.digest.clone_from(&report.digest);
        row.documents = report
            .documents
            .iter()
            .map(|(name, version)| (name.clone(), version.version))
            .collect();
        row.rejected = report
            .rejected
            .iter()
            .map(|(name, rejected)| (name.clone(), rejected.word.clone()))
            .collect();
        row.last_error.clone_from(&report.last_error);
        row.degraded.clone_from(&report.degraded);
        row.since = report.since;
        if let Some(registration) = registration {
            row.wanted = wanted(view, registration, report);
        }
    }
    row.state = match (registration, report) {
        (None, _) => "gone",
        (Some(_), None) => "silent",
        (Some(_), Some(report))
            if !report.rejected.is_empty() || report.last_error.is_some() || !report.ready =>
        {
            "failed"
        }
        (Some(_), Some(_)) if !row.wanted.is_empty() => "behind",
        (Some(_), Some(report)) if !report.degraded.is_empty() => "degraded",
        (Some(_), Some(_)) => "ok",
    }
    .to_owned();
    row
}

/// Documents of which another version should be in force than the node reports.
fn wanted(
    view: &View,
    registration: &crate::fleet::report::Registration,
    report: &crate::fleet::report::Report,
) -> BTreeMap<String, u64> {
    let meant = view.policies.values().filter(|stored| {
        let nodes = stored.policy().map(|verified| verified.statement.nodes.parse());
        matches!(nodes, Some(Ok::<crate::fleet::selector::Selector, _>(nodes)) if nodes.matches(&registration.labels))
    });
    let lacks = |stored: &&Stored| {
        let signed = stored.digest();
        stored.statement().is_some_and(|statement| {
            let has = report.documents.get(&statement.name);
            has.is_none_or(|has| has.version != statement.version || has.digest != signed)
        })
    };
    let wanted = meant.filter(lacks).filter_map(Stored::statement);
    wanted
        .map(|statement| (statement.name.clone(), statement.version))
        .collect()
}
