//! A store in this process: the plainest implementation, for tests and benches. It can do what goes wrong with others, too:
//! be out of reach, be compacted, wiped, restored from a backup, end its sessions.

use super::shared::{
    Change, Entry, ErrorKind, Event, Expect, Holds, Lease, Point, PutError, Revision, Session, Snapshot,
    Store, StoreError, Watch, Watching, refuse,
};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Handles to one store; a clone is another handle.
#[derive(Clone)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    /// Ticks with each change of the state.
    changed: watch::Sender<u64>,
}

#[derive(Clone)]
struct State {
    cluster: u64,
    revision: i64,
    entries: BTreeMap<String, Held>,
    history: Vec<Change>,
    /// Changes up to here are forgotten.
    compacted: i64,
    reachable: bool,
    /// Watches of an older one are over.
    epoch: u64,
    /// Sessions up to this number are over.
    ended: u64,
    sessions: u64,
    /// How often somebody wanted something of it.
    asked: u64,
}

#[derive(Clone)]
struct Held {
    entry: Entry,
    session: Option<u64>,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory {
            state: Arc::new(Mutex::new(State::new(1))),
            changed: watch::Sender::new(0),
        }
    }
}

impl State {
    fn new(cluster: u64) -> State {
        State {
            cluster,
            // As etcd's: an empty store is at revision 1.
            revision: 1,
            entries: BTreeMap::new(),
            history: Vec::new(),
            compacted: 0,
            reachable: true,
            epoch: 0,
            ended: 0,
            sessions: 0,
            asked: 0,
        }
    }

    fn under<'a>(&'a self, under: &'a [&'a str]) -> impl Iterator<Item = &'a Entry> {
        self.entries
            .values()
            .map(|held| &held.entry)
            .filter(move |entry| begins(&entry.key, under))
    }

    fn put(&mut self, key: &str, value: Bytes, session: Option<u64>) -> Revision {
        self.revision += 1;
        let entry = Entry {
            key: key.to_owned(),
            value,
            revision: Revision(self.revision),
        };
        self.history.push(Change::Put(entry.clone()));
        self.entries.insert(key.to_owned(), Held { entry, session });
        Revision(self.revision)
    }

    fn delete(&mut self, keys: &[String]) {
        if keys.is_empty() {
            return;
        }
        self.revision += 1;
        for key in keys {
            self.entries.remove(key);
            self.history.push(Change::Delete {
                key: key.clone(),
                revision: Revision(self.revision),
            });
        }
    }

    fn delete_of_sessions(&mut self, over: impl Fn(u64) -> bool) {
        let keys: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, held)| held.session.is_some_and(&over))
            .map(|(key, _)| key.clone())
            .collect();
        self.delete(&keys);
    }

    fn holds(&self, point: &Point) -> Holds {
        if point.cluster != self.cluster {
            return Holds::No(format!(
                "it is cluster {} and was {}",
                self.cluster, point.cluster
            ));
        }
        if point.revision.0 > self.revision {
            return Holds::No(format!(
                "it is at revision {} and was at {}",
                self.revision, point.revision
            ));
        }
        match &point.witness {
            Some(witness) if witness.revision.0 > self.compacted => {
                let there = |change: &Change| matches!(change, Change::Put(entry) if witness.is(entry));
                match self.history.iter().any(there) {
                    true => Holds::Yes,
                    false => Holds::No(format!(
                        "it does not hold {} of revision {}",
                        witness.key, witness.revision
                    )),
                }
            }
            _ => Holds::Yes,
        }
    }
}

fn begins(key: &str, under: &[&str]) -> bool {
    under.iter().any(|prefix| key.starts_with(prefix))
}

impl Memory {
    pub fn new() -> Memory {
        Memory::default()
    }

    /// Out of reach, or back: every watch ends.
    pub fn reachable(&self, reachable: bool) {
        self.change(|state| {
            state.reachable = reachable;
            state.epoch += 1;
        });
    }

    /// Forgets the history up to now. Watches of the present notice nothing.
    pub fn compact(&self) {
        self.change(|state| {
            state.compacted = state.revision;
            state.history.clear();
        });
    }

    /// Another store at the same place, with nothing in it.
    pub fn wipe(&self) {
        self.change(|state| {
            *state = State {
                epoch: state.epoch + 1,
                ended: state.sessions,
                sessions: state.sessions,
                ..State::new(state.cluster + 1)
            };
        });
    }

    /// What [`Memory::restore`] brings back.
    pub fn backup(&self) -> Backup {
        Backup(self.lock().clone())
    }

    /// As etcd does it: the same cluster, the older revision and content.
    pub fn restore(&self, backup: &Backup) {
        self.change(|state| {
            *state = State {
                epoch: state.epoch + 1,
                ended: state.sessions,
                sessions: state.sessions,
                reachable: state.reachable,
                ..backup.0.clone()
            };
        });
    }

    /// Every session is lost, with its keys.
    pub fn end_sessions(&self) {
        self.change(|state| {
            state.ended = state.sessions;
            state.delete_of_sessions(|_| true);
        });
    }

    #[cfg(test)]
    pub(super) fn asked(&self) -> u64 {
        self.lock().asked
    }

    #[cfg(test)]
    pub(super) fn change_while_out_of_reach(&self, key: &str, value: &'static str) {
        self.change(|state| state.put(key, Bytes::from_static(value.as_bytes()), None));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|tick| *tick += 1);
        result
    }

    fn reach(&self, doing: &str) -> Result<MutexGuard<'_, State>, StoreError> {
        let mut state = self.lock();
        state.asked += 1;
        match state.reachable {
            true => Ok(state),
            false => Err(error(doing, "out of reach")),
        }
    }

    fn write(
        &self,
        key: &str,
        value: Option<Bytes>,
        expect: Expect,
        session: Option<u64>,
    ) -> Result<Revision, PutError> {
        refuse(&self.name(), key, value.as_deref().unwrap_or_default())?;
        drop(self.reach("changing a key")?);
        self.change(|state| {
            let now = state.entries.get(key).map(|held| &held.entry);
            if !expect.holds(now) {
                return Err(PutError::Changed(now.cloned()));
            }
            match value {
                Some(value) => Ok(state.put(key, value, session)),
                None => {
                    if now.is_some() {
                        state.delete(&[key.to_owned()]);
                    }
                    Ok(Revision(state.revision))
                }
            }
        })
    }
}

/// A store as it was.
pub struct Backup(State);

fn error(doing: &str, cause: &str) -> StoreError {
    StoreError::new(ErrorKind::Transient, "memory", doing, cause)
}

impl Store for Memory {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn snapshot<'a>(&'a self, under: &'a [&'a str]) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        async move {
            let state = self.reach("reading all keys")?;
            Ok(Snapshot {
                revision: Revision(state.revision),
                cluster: state.cluster,
                entries: state.under(under).cloned().collect(),
            })
        }
        .boxed()
    }

    fn get<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Vec<Option<Entry>>, StoreError>> {
        async move {
            let state = self.reach("reading keys")?;
            let one = |key| state.entries.get(key).map(|held| held.entry.clone());
            Ok(keys.iter().map(one).collect())
        }
        .boxed()
    }

    fn holds<'a>(&'a self, point: &'a Point) -> BoxFuture<'a, Result<Holds, StoreError>> {
        async move { Ok(self.reach("asking for its history")?.holds(point)) }.boxed()
    }

    fn watch<'a>(&'a self, from: &'a [(&'a str, Revision)]) -> BoxFuture<'a, Result<Watch, StoreError>> {
        async move {
            let state = self.reach("watching")?;
            Ok(Watch::new(MemoryWatch {
                changed: self.changed.subscribe(),
                store: self.clone(),
                from: from
                    .iter()
                    .map(|&(prefix, after)| (prefix.to_owned(), after))
                    .collect(),
                epoch: state.epoch,
            }))
        }
        .boxed()
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expect: Expect,
    ) -> BoxFuture<'a, Result<Revision, PutError>> {
        async move { self.write(key, Some(value), expect, None) }.boxed()
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Revision, PutError>> {
        async move { self.write(key, None, expect, None) }.boxed()
    }

    fn session(&self, _ttl: Duration) -> BoxFuture<'_, Result<Session, StoreError>> {
        async move {
            drop(self.reach("opening a session")?);
            let number = self.change(|state| {
                state.sessions += 1;
                state.sessions
            });
            Ok(Session::new(MemoryLease {
                store: self.clone(),
                number,
            }))
        }
        .boxed()
    }
}

struct MemoryWatch {
    store: Memory,
    changed: watch::Receiver<u64>,
    from: Vec<(String, Revision)>,
    epoch: u64,
}

impl MemoryWatch {
    fn step(&mut self) -> Option<Result<Event, StoreError>> {
        let state = self.store.lock();
        if state.epoch != self.epoch {
            return Some(Err(error("watching", "the stream ended")));
        }
        let revision = Revision(state.revision);
        for (under, (prefix, after)) in self.from.iter_mut().enumerate() {
            if after.0 < state.compacted {
                return Some(Ok(Event::Relist(format!(
                    "compacted up to revision {}",
                    state.compacted
                ))));
            }
            let changes: Vec<Change> = state
                .history
                .iter()
                .filter(|change| change.revision() > *after && change.key().starts_with(&*prefix))
                .cloned()
                .collect();
            *after = revision.max(*after);
            if !changes.is_empty() {
                return Some(Ok(Event::Changes {
                    under,
                    revision,
                    changes,
                }));
            }
        }
        None
    }
}

impl Watching for MemoryWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Event, StoreError>> {
        async move {
            loop {
                self.changed.borrow_and_update();
                if let Some(event) = self.step() {
                    return event;
                }
                if self.changed.changed().await.is_err() {
                    return Err(error("watching", "the store is gone"));
                }
            }
        }
        .boxed()
    }
}

struct MemoryLease {
    store: Memory,
    number: u64,
}

impl Lease for MemoryLease {
    fn put<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Revision, StoreError>> {
        async move {
            if self.store.lock().ended >= self.number {
                return Err(error("putting under a lease", "the lease is gone"));
            }
            self.store
                .write(key, Some(value), Expect::Any, Some(self.number))
                .map_err(|refused| match refused {
                    PutError::Store(error) => error,
                    PutError::Changed(_) => {
                        error("putting under a lease", "changed, though anything was expected")
                    }
                })
        }
        .boxed()
    }

    fn lost(&self) -> BoxFuture<'_, StoreError> {
        let mut changed = self.store.changed.subscribe();
        async move {
            loop {
                changed.borrow_and_update();
                if self.store.lock().ended >= self.number || changed.changed().await.is_err() {
                    return error("keeping a lease", "the lease is gone");
                }
            }
        }
        .boxed()
    }

    fn end(self: Box<Self>) -> BoxFuture<'static, ()> {
        // Dropping it does it.
        async move { drop(self) }.boxed()
    }
}

impl Drop for MemoryLease {
    fn drop(&mut self) {
        let number = self.number;
        self.store
            .change(|state| state.delete_of_sessions(|session| session == number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn put(store: &Memory, key: &str, value: &'static str) -> Revision {
        store
            .put(key, Bytes::from_static(value.as_bytes()), Expect::Any)
            .await
            .expect("put")
    }

    #[tokio::test]
    async fn a_watch_begins_after_its_snapshot_and_hears_of_its_own_prefixes_only() {
        let store = Memory::new();
        put(&store, "policies/a", "1").await;
        let snapshot = store.snapshot(&["policies/"]).await.expect("read");
        assert_eq!(snapshot.entries.len(), 1);
        put(&store, "status/n", "x").await;
        put(&store, "policies/b", "2").await;
        let mut watch = store
            .watch(&[("policies/", snapshot.revision)])
            .await
            .expect("watched");
        let Event::Changes {
            changes, revision, ..
        } = watch.next().await.expect("an event")
        else {
            panic!("a relist");
        };
        assert_eq!(revision, Revision(snapshot.revision.0 + 2));
        assert_eq!(
            changes.iter().map(Change::key).collect::<Vec<_>>(),
            ["policies/b"]
        );
    }

    #[tokio::test]
    async fn a_put_that_expects_something_else_changes_nothing_and_says_what_is_there() {
        let store = Memory::new();
        let first = put(&store, "policies/a", "1").await;
        put(&store, "policies/a", "2").await;
        let refused = store
            .put("policies/a", Bytes::from_static(b"3"), Expect::At(first))
            .await;
        let Err(PutError::Changed(Some(now))) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(now.value, "2");
        assert!(matches!(
            store.delete("policies/b", Expect::At(first)).await,
            Err(PutError::Changed(None))
        ));
        assert!(matches!(
            store
                .put("policies/a", Bytes::from_static(b"3"), Expect::Absent)
                .await,
            Err(PutError::Changed(Some(_)))
        ));
    }

    #[tokio::test]
    async fn keys_of_a_session_go_with_it() {
        let store = Memory::new();
        let session = store.session(Duration::from_secs(10)).await.expect("opened");
        session
            .put("nodes/a", Bytes::from_static(b"{}"))
            .await
            .expect("put");
        store.end_sessions();
        session.lost().await;
        assert!(session.put("nodes/a", Bytes::new()).await.is_err());
        assert!(
            store
                .snapshot(&["nodes/"])
                .await
                .expect("read")
                .entries
                .is_empty()
        );

        let session = store.session(Duration::from_secs(10)).await.expect("opened");
        session.put("nodes/a", Bytes::new()).await.expect("put");
        assert_eq!(store.snapshot(&[""]).await.expect("read").entries.len(), 1);
        session.end().await;
        assert!(store.snapshot(&[""]).await.expect("read").entries.is_empty());
    }

    #[tokio::test]
    async fn a_restored_store_that_went_on_is_known_by_what_it_does_not_hold() {
        let store = Memory::new();
        put(&store, "policies/a", "1").await;
        let backup = store.backup();
        put(&store, "policies/a", "2").await;
        let point = Point::of(&store.snapshot(&[""]).await.expect("read"));
        store.restore(&backup);
        for _ in 0..3 {
            put(&store, "status/n", "x").await;
        }
        assert!(store.lock().revision > point.revision.0);
        assert!(matches!(store.holds(&point).await, Ok(Holds::No(_))));
        let now = Point::of(&store.snapshot(&[""]).await.expect("read"));
        assert_eq!(store.holds(&now).await.expect("told"), Holds::Yes);
    }

    #[tokio::test]
    async fn compaction_lets_present_watches_go_on_and_sends_older_ones_back() {
        let store = Memory::new();
        let old = store.snapshot(&[""]).await.expect("read").revision;
        put(&store, "policies/a", "1").await;
        let now = store.snapshot(&[""]).await.expect("read").revision;
        store.compact();
        let mut behind = store.watch(&[("", old)]).await.expect("watched");
        assert!(matches!(behind.next().await, Ok(Event::Relist(_))));
        let mut present = store.watch(&[("", now)]).await.expect("watched");
        put(&store, "policies/b", "1").await;
        assert!(matches!(present.next().await, Ok(Event::Changes { .. })));
        store.reachable(false);
        assert!(present.next().await.is_err());
    }
}
