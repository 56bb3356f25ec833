//! `ravelin lists`

use super::super::{Answer, Context, message};
use super::Stored;
use crate::fleet::lists::{self, ListError};
use crate::fleet::statement::Digest;
use crate::output::{self, ListRow, Lists};
use crate::store::shared::{Entry, Expect, PutError};
use std::collections::{HashMap, HashSet};

/// The list files of the fleet's policies: how large they are, and whether the store has all of them
///
/// A list is stored in small pieces by what they hold, so that a change of one address moves one piece. Pieces that no policy
/// names are left from versions before; --prune deletes them. Not while somebody applies a policy.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin lists
  ravelin lists --prune")]
pub struct Args {
    /// Delete what no policy names
    #[arg(long)]
    prune: bool,
}

pub(in super::super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    let fleet = context.fleet()?;
    let record = context.wait(async {
        // At one revision, so that nothing looks unused that somebody has just begun to use.
        let snapshot = fleet.snapshot(&["lists/", "policies/"]).await?;
        let (objects, policies): (Vec<Entry>, Vec<Entry>) =
            snapshot.entries.into_iter().partition(|entry| entry.key.starts_with("lists/"));
        let view = fleet.view_of(policies);
        let by_digest: HashMap<Digest, &Entry> = objects
            .iter()
            .filter_map(|entry| Some((Digest::from_hex(entry.key.strip_prefix("lists/")?)?, entry)))
            .collect();
        let mut record = Lists::default();
        let mut used = HashSet::new();
        for stored in view.policies.values() {
            // What is not believed now may be once more signers are known.
            let claims = stored.envelope.as_ref().map(|envelope| envelope.claims());
            for (file, root) in claims.into_iter().flat_map(|claims| &claims.lists) {
                let mut row = ListRow {
                    policy: policy_name(stored),
                    file: file.clone(),
                    root: root.to_string(),
                    ..ListRow::default()
                };
                let have = |digest: &Digest| by_digest.get(digest).map(|entry| &entry.value);
                match walk(root, have) {
                    Ok((prefixes, all)) => {
                        row.prefixes = prefixes;
                        row.objects = all.len() as u64;
                        let there = all.iter().filter_map(have);
                        row.missing = row.objects - there.clone().count() as u64;
                        row.bytes = there.map(|value| value.len() as u64).sum();
                        used.extend(all);
                    }
                    Err(error) => {
                        row.missing = 1;
                        message("warning", &format!("{} of {}: {error}", row.file, row.policy));
                    }
                }
                record.lists.push(row);
            }
        }
        let whole = record.lists.iter().all(|row| row.missing == 0);
        let unused = by_digest.iter().filter(|(digest, _)| !used.contains(digest));
        let unused: Vec<&Entry> = unused.map(|(_, entry)| *entry).collect();
        record.unused = unused.len() as u64;
        record.unused_bytes = unused.iter().map(|entry| entry.value.len() as u64).sum();
        if args.prune && !whole {
            message("warning", "nothing was deleted, because parts of lists are missing and what belongs to them is not known");
        } else if args.prune {
            for entry in unused {
                match fleet.store.delete(&entry.key, Expect::unchanged(Some(entry))).await {
                    Ok(_) | Err(PutError::Changed(_)) => {}
                    Err(PutError::Store(error)) => return Err(error.into()),
                }
            }
            record.pruned = true;
        }
        Ok(record)
    })?;
    context.show(&record, |record| output::fleet_lists(record, &context.style))?;
    let whole = record.lists.iter().all(|row| row.missing == 0);
    Ok(if whole { Answer::Yes } else { Answer::No })
}

fn policy_name(stored: &Stored) -> String {
    stored
        .entry
        .key
        .strip_prefix("policies/")
        .unwrap_or_default()
        .to_owned()
}

/// The prefixes and the objects of a list.
fn walk<'a>(
    root: &Digest,
    have: impl Fn(&Digest) -> Option<&'a bytes::Bytes>,
) -> Result<(u64, Vec<Digest>), ListError> {
    let bytes = have(root).ok_or(ListError::Missing(*root))?;
    Ok((lists::prefixes(root, bytes)?, lists::objects(root, have)?))
}
