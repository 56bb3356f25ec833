//! What a node has seen: the newest version of each document and ban, so that nothing older, and no other text under the
//! same number, is ever accepted again; and the latest time at which anything was signed, before which no clock can be
//! right.
//!
//! It is written before what it allows is put in force. Without its file a node starts anew: it takes what the store has.
//! Bans that have ended on their own are forgotten, for their statements have expired.

use super::statement::{Digest, Statement, Subject};
use super::{TrustError, Verified};
use crate::store::{Durable, write_json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    seen: BTreeMap<(Subject, String), Seen>,
    newest_issued: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    version: u64,
    digest: Digest,
    /// When the last statement of this name, of any version, expires.
    expires: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    newest_issued: u64,
    policies: BTreeMap<String, Seen>,
    bans: BTreeMap<String, Seen>,
}

/// What a believed statement is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    New,
    /// Seen before, byte for byte.
    Same,
}

/// The memory is there and cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not what was written there", path.display())]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
}

impl Memory {
    /// Empty if there is no file.
    ///
    /// # Errors
    /// A file that cannot be read, or is damaged: whether to go on without it is not decided here.
    pub fn load(path: &Path) -> Result<Memory, MemoryError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Memory::default()),
            Err(source) => {
                return Err(MemoryError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let file: File = serde_json::from_slice(&bytes).map_err(|source| MemoryError::Damaged {
            path: path.to_owned(),
            source,
        })?;
        let policies = file
            .policies
            .into_iter()
            .map(|(name, seen)| ((Subject::Policy, name), seen));
        let bans = file
            .bans
            .into_iter()
            .map(|(name, seen)| ((Subject::Ban, name), seen));
        Ok(Memory {
            seen: policies.chain(bans).collect(),
            newest_issued: file.newest_issued,
        })
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// As the file system says; the old file is left then.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let of = |subject: Subject| {
            let seen = self.seen.iter().filter(move |((of, _), _)| *of == subject);
            seen.map(|((_, name), seen)| (name.clone(), seen.clone()))
                .collect()
        };
        let file = File {
            newest_issued: self.newest_issued,
            policies: of(Subject::Policy),
            bans: of(Subject::Ban),
        };
        write_json(path, &file, Durable::Yes)
    }

    /// The time by which to judge: the clock's, but never before the latest time at which something was signed that was
    /// accepted. A clock that lost its battery expires nothing, and takes nothing for new.
    pub fn clock(&self, now: u64) -> u64 {
        now.max(self.newest_issued)
    }

    /// The version and digest that were accepted last.
    pub fn last(&self, subject: Subject, name: &str) -> Option<(u64, Digest)> {
        let seen = self.seen.get(&(subject, name.to_owned()))?;
        Some((seen.version, seen.digest))
    }

    /// Whether a statement that was believed is new here.
    ///
    /// # Errors
    /// `older`, `replayed`.
    pub fn judge(&self, verified: &Verified) -> Result<News, TrustError> {
        let statement = &verified.statement;
        let Some((seen, digest)) = self.last(statement.kind.subject(), &statement.name) else {
            return Ok(News::New);
        };
        let version = statement.version;
        match version.cmp(&seen) {
            std::cmp::Ordering::Greater => Ok(News::New),
            std::cmp::Ordering::Equal if digest == verified.digest => Ok(News::Same),
            std::cmp::Ordering::Equal => Err(TrustError::Replayed { version }),
            std::cmp::Ordering::Less => Err(TrustError::Older { version, seen }),
        }
    }

    /// Notes a statement; [`Memory::judge`] must have let it through. True if that changed anything.
    pub fn accept(&mut self, verified: &Verified) -> bool {
        let before = self.newest_issued;
        let Statement {
            kind,
            name,
            version,
            issued,
            expires,
            ..
        } = &verified.statement;
        self.newest_issued = before.max(*issued);
        let key = (kind.subject(), name.clone());
        let last = self.seen.get(&key);
        let expires = match last {
            // `None` is never, and the later of the two counts.
            Some(last) => last.expires.zip(*expires).map(|(one, other)| one.max(other)),
            None => *expires,
        };
        let seen = Seen {
            version: *version,
            digest: verified.digest,
            expires,
        };
        if last == Some(&seen) {
            return before != self.newest_issued;
        }
        self.seen.insert(key, seen);
        true
    }

    /// Forgets bans all of whose statements have expired. True if there were any.
    pub fn prune(&mut self, now: u64) -> bool {
        let (count, now) = (self.seen.len(), self.clock(now));
        self.seen
            .retain(|(subject, _), seen| *subject != Subject::Ban || seen.expires.is_none_or(|at| at > now));
        self.seen.len() != count
    }
}

#[cfg(test)]
mod tests;
