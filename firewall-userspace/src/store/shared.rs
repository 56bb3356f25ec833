//! What a fleet shares: keys and values with revisions, read as a whole, watched, and put if unchanged.
//!
//! The trait [`Store`] is all that agents and operators know of it. `memory`, `directory` and `etcd` implement it;
//! `follow` keeps somebody up to date through every fault of a store, and is what agents use to watch. Nothing here knows
//! what the values mean, and nothing here is trusted: values are signed.
//!
//! A key is `policies/NAME` and so on, without the prefix of the settings. Its revision is that of its last change.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A value holds no more: an etcd with its own limits takes 1.5 MiB in one request.
pub const MAX_VALUE: usize = 1 << 20;

/// A point in the history of a store. Zero: before anything. A directory has no history: there the revision of an entry
/// and of a snapshot stands for its content, and none is before another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub i64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    /// That of its last change.
    pub revision: Revision,
}

/// All keys that were asked for, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub revision: Revision,
    /// Which store this is; zero if it does not tell. A wiped one that was set up anew has another number.
    pub cluster: u64,
    /// In the order of their keys.
    pub entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(Entry),
    Delete { key: String, revision: Revision },
}

impl Change {
    pub fn key(&self) -> &str {
        match self {
            Change::Put(entry) => &entry.key,
            Change::Delete { key, .. } => key,
        }
    }

    pub fn revision(&self) -> Revision {
        match self {
            Change::Put(entry) => entry.revision,
            Change::Delete { revision, .. } => *revision,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What happened below one of the prefixes (the place that it had among those asked for), in the order in which it was done. All
    /// up to this revision is known there now; of other prefixes this says nothing.
    Changes {
        under: usize,
        revision: Revision,
        changes: Vec<Change>,
    },
    /// A sign of life.
    Alive,
    /// Changes are lost or not told one by one, and why. The watch is over; whoever needs to know reads a snapshot.
    Relist(String),
}

/// How far somebody knows a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    pub cluster: u64,
    /// Everything up to here is known.
    pub revision: Revision,
    /// Something that was read in this history, at or before the revision. A store restored from a backup has the same cluster
    /// number, and its revisions soon pass those that were known; but its history does not hold this.
    pub witness: Option<Witness>,
}

/// An entry that was there at its revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    pub key: String,
    pub revision: Revision,
    /// BLAKE3 of the value, in hex.
    pub digest: String,
}

impl Witness {
    pub fn of(entry: &Entry) -> Witness {
        Witness {
            key: entry.key.clone(),
            revision: entry.revision,
            digest: blake3::hash(&entry.value).to_hex().to_string(),
        }
    }

    pub fn is(&self, entry: &Entry) -> bool {
        self.revision == entry.revision && *self == Witness::of(entry)
    }
}

impl Point {
    pub fn of(snapshot: &Snapshot) -> Point {
        Point {
            cluster: snapshot.cluster,
            revision: snapshot.revision,
            witness: snapshot
                .entries
                .iter()
                .max_by_key(|entry| entry.revision)
                .map(Witness::of),
        }
    }

    /// Takes note of changes that a watch told.
    pub fn advance(&mut self, revision: Revision, changes: &[Change]) {
        self.revision = self.revision.max(revision);
        let newest = changes.iter().rev().find_map(|change| match change {
            Change::Put(entry) => Some(entry),
            Change::Delete { .. } => None,
        });
        if let Some(entry) = newest {
            self.witness = Some(Witness::of(entry));
        }
    }
}

/// Whether the history of a store holds a [`Point`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holds {
    /// As far as can be told: what was compacted cannot.
    Yes,
    /// It is another store, or an older state of it, and how that shows.
    No(String),
}

/// What a key must be for a change to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Any,
    Absent,
    /// Unchanged since this revision.
    At(Revision),
}

impl Expect {
    /// As it was read.
    pub fn unchanged(entry: Option<&Entry>) -> Expect {
        entry.map_or(Expect::Absent, |entry| Expect::At(entry.revision))
    }

    pub fn holds(self, entry: Option<&Entry>) -> bool {
        self == Expect::Any || self == Expect::unchanged(entry)
    }
}

pub trait Store: Send + Sync + 'static {
    /// What it is, for people: `etcd https://10.0.0.1:2379`, or a path.
    fn name(&self) -> String;

    /// All keys that begin with one of these, at one revision.
    fn snapshot<'a>(&'a self, under: &'a [&'a str]) -> BoxFuture<'a, Result<Snapshot, StoreError>>;

    /// In the order of the keys asked for; `None` where there is no such key.
    fn get<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Vec<Option<Entry>>, StoreError>>;

    /// Whether this is still the store in which somebody got to this point.
    fn holds<'a>(&'a self, point: &'a Point) -> BoxFuture<'a, Result<Holds, StoreError>>;

    /// The changes of all keys that begin with one of these, after the revision that is known of each; it stands when this returns.
    /// What most want is `follow::Follower`.
    fn watch<'a>(&'a self, from: &'a [(&'a str, Revision)]) -> BoxFuture<'a, Result<Watch, StoreError>>;

    /// Puts a value of at most [`MAX_VALUE`] bytes, if the key is as expected. Returns the key's new revision.
    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expect: Expect,
    ) -> BoxFuture<'a, Result<Revision, PutError>>;

    /// Deletes a key, if it is as expected. A key that is not there is not an error for [`Expect::Any`].
    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Revision, PutError>>;

    /// A lease that keeps itself alive while it is held. Keys put under it go when it is dropped, or when its holder was not
    /// heard of for so long.
    fn session(&self, ttl: Duration) -> BoxFuture<'_, Result<Session, StoreError>>;
}

/// Changes as they come. Dropping it ends the watch.
pub struct Watch(Box<dyn Watching>);

/// What an implementation of [`Store`] makes a [`Watch`] of. A `next` that was dropped has lost nothing.
pub trait Watching: Send {
    fn next(&mut self) -> BoxFuture<'_, Result<Event, StoreError>>;
}

impl Watch {
    pub fn new(watching: impl Watching + 'static) -> Watch {
        Watch(Box::new(watching))
    }

    /// # Errors
    /// The stream ended, by whatever fault. The watch is over.
    pub async fn next(&mut self) -> Result<Event, StoreError> {
        self.0.next().await
    }
}

/// A lease that is held.
pub struct Session(Box<dyn Lease>);

/// What an implementation of [`Store`] makes a [`Session`] of. Dropping it ends the lease, if need be in the background.
pub trait Lease: Send + Sync {
    fn put<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Revision, StoreError>>;
    fn lost(&self) -> BoxFuture<'_, StoreError>;
    fn end(self: Box<Self>) -> BoxFuture<'static, ()>;
}

impl Session {
    pub fn new(lease: impl Lease + 'static) -> Session {
        Session(Box::new(lease))
    }

    /// Puts a value that goes with the session, whatever was there before.
    ///
    /// # Errors
    /// The store could not be reached, or the session is lost.
    pub async fn put(&self, key: &str, value: Bytes) -> Result<Revision, StoreError> {
        self.0.put(key, value).await
    }

    /// Returns when the lease is gone, or nothing is known of it for longer than it lives. It does not come back: open another one.
    pub async fn lost(&self) -> StoreError {
        self.0.lost().await
    }

    /// Ends it and waits until its keys are gone, as far as the store can be reached.
    pub async fn end(self) {
        self.0.end().await;
    }
}

/// Whether a lease is lost, for implementations: told once, known from then on.
#[derive(Clone, Default)]
pub(super) struct Lost(Arc<watch::Sender<Option<StoreError>>>);

impl Lost {
    pub(super) fn tell(&self, error: StoreError) {
        self.0.send_modify(|lost| *lost = Some(error));
    }

    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.0.borrow().clone().map_or(Ok(()), Err)
    }

    pub(super) async fn wait(&self) -> StoreError {
        let lost = self
            .0
            .subscribe()
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|lost| lost.clone());
        match lost {
            Some(error) => error,
            // Nobody is left to tell.
            None => std::future::pending().await,
        }
    }
}

/// A store could not do something: which store, what, and why.
#[derive(Clone, Debug)]
pub struct StoreError {
    pub store: String,
    pub doing: String,
    kind: ErrorKind,
    cause: Option<Arc<dyn Error + Send + Sync>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Out of reach, without quorum, too slow: may be over soon.
    Transient,
    /// Trying again as it is will not help: no permission, a certificate that does not hold, a bad request.
    Lasting,
}

impl StoreError {
    pub fn new(
        kind: ErrorKind,
        store: impl Into<String>,
        doing: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> StoreError {
        StoreError {
            store: store.into(),
            doing: doing.into(),
            kind,
            cause: Some(Arc::from(cause.into())),
        }
    }

    /// Whether it may be over soon without anybody doing anything about it.
    pub fn transient(&self) -> bool {
        self.kind == ErrorKind::Transient
    }

    /// The whole of it in a line, with the causes.
    pub fn full(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            let words = cause.to_string();
            // What wraps often says what it wraps.
            if !text.ends_with(&words) {
                text.push_str(": ");
                text.push_str(&words);
            }
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.store, self.doing)
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The key is not as expected: this is what it is. Nothing was changed.
    #[error("{}", changed(.0.as_ref()))]
    Changed(Option<Entry>),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn changed(now: Option<&Entry>) -> String {
    match now {
        Some(entry) => format!("{} was changed by somebody else meanwhile", entry.key),
        None => "it was deleted by somebody else meanwhile".to_owned(),
    }
}

/// Whether this can be a key of every store: parts of visible ASCII between slashes, none of which is empty or begins
/// with a dot.
pub fn is_key(key: &str) -> bool {
    !key.is_empty()
        && key.len() <= 512
        && key.split('/').all(|part| {
            !part.is_empty() && !part.starts_with('.') && part.bytes().all(|byte| byte.is_ascii_graphic())
        })
}

/// Why a key or a value cannot be put.
pub(super) fn refuse(store: &str, key: &str, value: &[u8]) -> Result<(), StoreError> {
    let lasting =
        |cause: String| StoreError::new(ErrorKind::Lasting, store, format!("putting {key:?}"), cause);
    if !is_key(key) {
        return Err(lasting(
            "not a key: parts of visible ASCII between slashes, none of which begins with a dot".to_owned(),
        ));
    }
    if value.len() > MAX_VALUE {
        return Err(lasting(format!(
            "a value of {} bytes, of which at most {MAX_VALUE} are stored",
            value.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_leads_nowhere_else() {
        for key in [
            "policies/payments",
            "bans/2001:db8::_32",
            "nodes/db-1.example.net",
            "x",
        ] {
            assert!(is_key(key), "{key}");
        }
        for key in [
            "", "/", "a/", "/a", "a//b", "../a", "a/..", "a/.b", ".", "a b", "a\0", "ä",
        ] {
            assert!(!is_key(key), "{key}");
        }
    }

    #[test]
    fn an_error_says_each_cause_once() {
        let inner = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let error = StoreError::new(
            ErrorKind::Transient,
            "etcd https://192.0.2.1:2379",
            "reading policies/",
            inner,
        );
        assert_eq!(
            error.full(),
            "etcd https://192.0.2.1:2379: reading policies/: connection refused"
        );
        assert_eq!(
            error.to_string(),
            "etcd https://192.0.2.1:2379: reading policies/"
        );
    }
}
