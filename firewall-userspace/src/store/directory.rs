//! A fleet's store as files: for one machine, and for fleets whose files come by what they have already (configuration
//! management, git, a network file system).
//!
//! A key is a path below the directory. Names that begin with a dot are not keys: `.lock` is taken by whoever changes something,
//! and `.leases/KEY` says that a key lives only as long as that file is touched. There is no history: a revision stands for
//! content. Each value is read whole; that several are of one moment is not promised.
//!
//! Changes are found by inotify, and by looking every few seconds, because network file systems tell nothing.

use super::shared::{
    Entry, ErrorKind, Event, Expect, Holds, Lease, Lost, MAX_VALUE, Point, PutError, Revision, Session,
    Snapshot, Store, StoreError, Watch, Watching, is_key, refuse,
};
use super::{Durable, replace};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::fcntl::{Flock, FlockArg};
use notify::{EventKind, RecursiveMode, Watcher};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

const LOCK: &str = ".lock";
const LEASES: &str = ".leases";
/// How often a watch looks though nothing was told.
const LOOK: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// # Errors
    /// There is no such directory.
    pub fn open(root: &Path) -> Result<Directory, StoreError> {
        let store = Directory {
            root: root.to_owned(),
        };
        match std::fs::metadata(root) {
            Ok(metadata) if metadata.is_dir() => Ok(store),
            Ok(_) => Err(StoreError::new(
                ErrorKind::Lasting,
                store.name(),
                "opening it",
                "not a directory",
            )),
            Err(error) => Err(store.error("opening it", error)),
        }
    }

    fn error(&self, doing: impl Into<String>, error: io::Error) -> StoreError {
        // Nobody repairs permissions, but mounts come back.
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory => ErrorKind::Lasting,
            _ => ErrorKind::Transient,
        };
        StoreError::new(kind, self.name(), doing, error)
    }

    /// Runs what may wait for a disk.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Directory) -> T + Send + 'static) -> T {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(value) => value,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime is going down.
            Err(_) => std::future::pending().await,
        }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn lease(&self, key: &str) -> PathBuf {
        self.root.join(LEASES).join(key)
    }

    fn read(&self, key: &str) -> io::Result<Option<Entry>> {
        if !is_key(key) || self.has_expired(key)? {
            return Ok(None);
        }
        let mut value = Vec::new();
        let file = match File::open(self.path(key)) {
            Ok(file) if file.metadata()?.is_file() => file,
            Ok(_) => return Ok(None),
            Err(error) if is_none(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        // One byte too many, so that whoever bounds it sees that it is too large.
        file.take(MAX_VALUE as u64 + 1).read_to_end(&mut value)?;
        Ok(Some(Entry {
            key: key.to_owned(),
            revision: revision_of(&value),
            value: Bytes::from(value),
        }))
    }

    fn has_expired(&self, key: &str) -> io::Result<bool> {
        let lease = self.lease(key);
        let (text, touched) = match std::fs::read_to_string(&lease) {
            Ok(text) => (text, std::fs::metadata(&lease).and_then(|of| of.modified())),
            Err(error) if is_none(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        let Ok(seconds) = text.trim().parse() else {
            return Ok(false);
        };
        // A clock that was set back makes it live longer, no more.
        let age = SystemTime::now().duration_since(touched?).unwrap_or_default();
        Ok(age > Duration::from_secs(seconds))
    }

    fn scan(&self, under: &[String]) -> Result<Snapshot, StoreError> {
        let doing = || format!("reading {}", under.join(" and "));
        let mut keys = BTreeSet::new();
        for prefix in under {
            // `nodes/` and `nodes/a` both begin in the directory `nodes`.
            let (directory, _) = prefix.rsplit_once('/').unwrap_or(("", prefix));
            self.walk(directory, prefix, &mut keys)
                .map_err(|error| self.error(doing(), error))?;
        }
        let mut entries = Vec::new();
        for key in keys {
            entries.extend(
                self.read(&key)
                    .map_err(|error| self.error(format!("reading {key}"), error))?,
            );
        }
        let mut hasher = blake3::Hasher::new();
        for entry in &entries {
            hasher.update(entry.key.as_bytes());
            hasher.update(&entry.revision.0.to_le_bytes());
        }
        Ok(Snapshot {
            revision: number(&hasher.finalize()),
            cluster: 0,
            entries,
        })
    }

    fn walk(&self, directory: &str, prefix: &str, keys: &mut BTreeSet<String>) -> io::Result<()> {
        let listing = match std::fs::read_dir(self.path(directory)) {
            Ok(listing) => listing,
            // That the whole store is gone is an error; that it has no such keys is not.
            Err(error) if is_none(&error) && !directory.is_empty() && self.root.is_dir() => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in listing {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let key = match directory {
                "" => name.to_owned(),
                _ => format!("{directory}/{name}"),
            };
            if !is_key(&key) {
                continue;
            }
            match std::fs::metadata(self.path(&key)) {
                Ok(metadata) if metadata.is_dir() => {
                    if key.starts_with(prefix) || prefix.starts_with(&format!("{key}/")) {
                        self.walk(&key, prefix, keys)?;
                    }
                }
                Ok(_) if key.starts_with(prefix) => {
                    keys.insert(key);
                }
                Ok(_) => {}
                Err(error) if is_none(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(
        &self,
        key: &str,
        value: Option<&[u8]>,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Revision, PutError> {
        refuse(&self.name(), key, value.unwrap_or_default())?;
        let doing = match value {
            Some(_) => format!("writing {key}"),
            None => format!("deleting {key}"),
        };
        let error = |error| self.error(doing.clone(), error);
        let _locked = self.lock().map_err(error)?;
        let now = self.read(key).map_err(error)?;
        if !expect.holds(now.as_ref()) {
            return Err(PutError::Changed(now));
        }
        let (path, lease) = (self.path(key), self.lease(key));
        match value {
            Some(value) => {
                std::fs::create_dir_all(path.parent().unwrap_or(&self.root)).map_err(error)?;
                // The lease first: a key without one would stay.
                match ttl {
                    Some(ttl) => {
                        std::fs::create_dir_all(lease.parent().unwrap_or(&self.root)).map_err(error)?;
                        replace(
                            &lease,
                            format!("{}\n", ttl.as_secs().max(1)).as_bytes(),
                            Durable::No,
                        )
                        .map_err(error)?;
                    }
                    None => remove(&lease).map_err(error)?,
                }
                let durable = if ttl.is_some() { Durable::No } else { Durable::Yes };
                replace(&path, value, durable).map_err(error)?;
                Ok(revision_of(value))
            }
            None => {
                remove(&path).map_err(error)?;
                remove(&lease).map_err(error)?;
                Ok(Revision(0))
            }
        }
    }

    fn lock(&self) -> io::Result<Flock<File>> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.root.join(LOCK))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
    }
}

fn is_none(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory
    )
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if !is_none(&error) => Err(error),
        _ => Ok(()),
    }
}

fn revision_of(value: &[u8]) -> Revision {
    number(&blake3::hash(value))
}

/// Positive, and never that of nothing.
fn number(hash: &blake3::Hash) -> Revision {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.as_bytes()[..8]);
    Revision((i64::from_le_bytes(bytes) & i64::MAX).max(1))
}

fn owned(under: &[&str]) -> Vec<String> {
    under.iter().map(|&prefix| prefix.to_owned()).collect()
}

impl Store for Directory {
    fn name(&self) -> String {
        self.root.display().to_string()
    }

    fn snapshot<'a>(&'a self, under: &'a [&'a str]) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        let under = owned(under);
        self.blocking(move |store| store.scan(&under)).boxed()
    }

    fn get<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Vec<Option<Entry>>, StoreError>> {
        let keys = keys.to_vec();
        self.blocking(move |store| {
            let one = |key: &String| {
                store
                    .read(key)
                    .map_err(|error| store.error(format!("reading {key}"), error))
            };
            keys.iter().map(one).collect()
        })
        .boxed()
    }

    fn holds<'a>(&'a self, _point: &'a Point) -> BoxFuture<'a, Result<Holds, StoreError>> {
        std::future::ready(Ok(Holds::Yes)).boxed()
    }

    fn watch<'a>(&'a self, from: &'a [(&'a str, Revision)]) -> BoxFuture<'a, Result<Watch, StoreError>> {
        let under: Vec<String> = from.iter().map(|(prefix, _)| (*prefix).to_owned()).collect();
        // Only snapshots have been told, which are of all of them.
        let known = from.first().map_or(Revision(0), |&(_, revision)| revision);
        async move {
            let (sender, changed) = watch::channel(());
            let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // Reading is an event, too.
                if event.is_ok_and(|event| !matches!(event.kind, EventKind::Access(_))) {
                    sender.send_modify(|()| ());
                }
            })
            .map_err(|error| self.notify_error(error))?;
            watcher
                .watch(&self.root, RecursiveMode::Recursive)
                .map_err(|error| self.notify_error(error))?;
            Ok(Watch::new(DirectoryWatch {
                store: self.clone(),
                under,
                known,
                changed,
                look: true,
                _watcher: watcher,
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
        let key = key.to_owned();
        self.blocking(move |store| store.write(&key, Some(&value), expect, None))
            .boxed()
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Revision, PutError>> {
        let key = key.to_owned();
        self.blocking(move |store| store.write(&key, None, expect, None))
            .boxed()
    }

    fn session(&self, ttl: Duration) -> BoxFuture<'_, Result<Session, StoreError>> {
        let held = Arc::new(Held {
            store: self.clone(),
            ttl,
            keys: Mutex::default(),
        });
        let lost = Lost::default();
        let touching = tokio::spawn(touch(held.clone(), lost.clone()));
        async move { Ok(Session::new(DirectoryLease { held, lost, touching })) }.boxed()
    }
}

impl Directory {
    fn notify_error(&self, error: notify::Error) -> StoreError {
        StoreError::new(ErrorKind::Transient, self.name(), "watching it", error)
    }
}

struct DirectoryWatch {
    store: Directory,
    under: Vec<String>,
    known: Revision,
    changed: watch::Receiver<()>,
    /// Something may have changed that was not looked at yet.
    look: bool,
    _watcher: notify::RecommendedWatcher,
}

impl Watching for DirectoryWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Event, StoreError>> {
        async move {
            if !self.look {
                tokio::select! {
                    changed = self.changed.changed() => if changed.is_err() {
                        let gone = io::Error::other("inotify ended");
                        return Err(self.store.error("watching it", gone));
                    },
                    () = tokio::time::sleep(LOOK) => {}
                }
                self.look = true;
            }
            let under = self.under.clone();
            let now = self
                .store
                .blocking(move |store| store.scan(&under))
                .await?
                .revision;
            self.look = false;
            Ok(match now == self.known {
                true => Event::Alive,
                false => Event::Relist("files changed".to_owned()),
            })
        }
        .boxed()
    }
}

/// What a session holds.
struct Held {
    store: Directory,
    ttl: Duration,
    keys: Mutex<BTreeSet<String>>,
}

impl Held {
    fn keys(&self) -> BTreeSet<String> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn touch(&self) -> io::Result<()> {
        for key in self.keys() {
            File::options()
                .write(true)
                .open(self.store.lease(&key))?
                .set_modified(SystemTime::now())?;
        }
        Ok(())
    }

    fn end(&self) {
        for key in self.keys() {
            // What cannot be removed expires.
            let _ = self.store.write(&key, None, Expect::Any, None);
        }
    }
}

/// Keeps the leases young, until that has failed for as long as they live.
async fn touch(held: Arc<Held>, lost: Lost) {
    let mut touched = std::time::Instant::now();
    loop {
        tokio::time::sleep(held.ttl / 3).await;
        let now = std::time::Instant::now();
        let work = held.clone();
        match held.store.blocking(move |_| work.touch()).await {
            Ok(()) => touched = now,
            Err(error) if touched.elapsed() > held.ttl => {
                lost.tell(held.store.error("keeping a lease", error));
                return;
            }
            Err(_) => {}
        }
    }
}

struct DirectoryLease {
    held: Arc<Held>,
    lost: Lost,
    touching: tokio::task::JoinHandle<()>,
}

impl Lease for DirectoryLease {
    fn put<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Revision, StoreError>> {
        async move {
            self.lost.check()?;
            let (owned, ttl) = (key.to_owned(), self.held.ttl);
            let put = self
                .held
                .store
                .blocking(move |store| store.write(&owned, Some(&value), Expect::Any, Some(ttl)));
            match put.await {
                Ok(revision) => {
                    let mut keys = self.held.keys.lock().unwrap_or_else(PoisonError::into_inner);
                    keys.insert(key.to_owned());
                    Ok(revision)
                }
                Err(PutError::Store(error)) => Err(error),
                Err(PutError::Changed(_)) => unreachable!("anything was expected"),
            }
        }
        .boxed()
    }

    fn lost(&self) -> BoxFuture<'_, StoreError> {
        self.lost.wait().boxed()
    }

    fn end(self: Box<Self>) -> BoxFuture<'static, ()> {
        async move {
            let store = self.held.store.clone();
            // Dropping it does it.
            store.blocking(move |_| drop(self)).await;
        }
        .boxed()
    }
}

impl Drop for DirectoryLease {
    fn drop(&mut self) {
        self.touching.abort();
        self.held.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::follow::{Follower, Update};

    fn store() -> (tempfile::TempDir, Directory) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Directory::open(dir.path()).expect("opened");
        (dir, store)
    }

    async fn put(
        store: &Directory,
        key: &str,
        value: &'static str,
        expect: Expect,
    ) -> Result<Revision, PutError> {
        store.put(key, Bytes::from_static(value.as_bytes()), expect).await
    }

    #[tokio::test]
    async fn keys_are_files_and_other_files_are_not_keys() {
        let (dir, store) = store();
        put(&store, "policies/a", "1", Expect::Absent).await.expect("put");
        put(&store, "policies-old/a", "0", Expect::Absent)
            .await
            .expect("put");
        std::fs::write(dir.path().join("policies/b"), "2").expect("written");
        std::fs::write(dir.path().join("policies/.b.swp"), "x").expect("written");
        std::fs::write(dir.path().join("policies/b c"), "x").expect("written");
        std::fs::create_dir(dir.path().join("policies/team")).expect("made");
        std::fs::write(dir.path().join("policies/team/c"), "3").expect("written");
        let snapshot = store.snapshot(&["policies/", "bans/"]).await.expect("read");
        let found: Vec<(&str, &[u8])> = snapshot
            .entries
            .iter()
            .map(|entry| (&*entry.key, &entry.value[..]))
            .collect();
        assert_eq!(
            found,
            [
                ("policies/a", &b"1"[..]),
                ("policies/b", b"2"),
                ("policies/team/c", b"3")
            ]
        );
        let keys = [
            "policies/team".to_owned(),
            "../x".to_owned(),
            "policies/a".to_owned(),
        ];
        let got = store.get(&keys).await.expect("read");
        assert_eq!(
            got.iter().map(Option::is_some).collect::<Vec<_>>(),
            [false, false, true]
        );
        assert!(put(&store, "../out", "x", Expect::Any).await.is_err());
    }

    #[tokio::test]
    async fn the_second_of_two_editors_is_told() {
        let (dir, store) = store();
        let first = put(&store, "policies/a", "1", Expect::Absent).await.expect("put");
        assert!(matches!(
            put(&store, "policies/a", "2", Expect::Absent).await,
            Err(PutError::Changed(Some(_)))
        ));
        // By hand, beside ravelin.
        std::fs::write(dir.path().join("policies/a"), "hand").expect("written");
        let refused = put(&store, "policies/a", "2", Expect::At(first)).await;
        let Err(PutError::Changed(Some(now))) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(now.value, "hand");
        put(&store, "policies/a", "2", Expect::At(now.revision))
            .await
            .expect("put");
        store.delete("policies/a", Expect::Any).await.expect("deleted");
        store
            .delete("policies/a", Expect::Any)
            .await
            .expect("nothing to delete");
    }

    #[tokio::test]
    async fn of_many_who_put_what_was_absent_one_wins() {
        let (_dir, store) = store();
        let all = (0..16).map(|_| put(&store, "policies/a", "x", Expect::Absent));
        let results = futures_util::future::join_all(all).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    }

    #[tokio::test]
    async fn a_follower_sees_files_come_and_go() {
        let (dir, store) = store();
        std::fs::create_dir(dir.path().join("policies")).expect("made");
        std::fs::write(dir.path().join("policies/a"), "1").expect("written");
        let mut follower = Follower::new(Arc::new(store.clone()), &["policies/"]);
        let Update::All(snapshot) = follower.next().await else {
            panic!("no snapshot");
        };
        assert_eq!(snapshot.entries.len(), 1);
        std::fs::write(dir.path().join("policies/b"), "2").expect("written");
        std::fs::remove_file(dir.path().join("policies/a")).expect("removed");
        loop {
            let Update::All(snapshot) = follower.next().await else {
                panic!("something else than a snapshot");
            };
            if let [entry] = &snapshot.entries[..]
                && entry.key == "policies/b"
                && entry.value == "2"
            {
                break;
            }
        }
    }

    #[tokio::test]
    async fn a_directory_that_is_gone_is_lost_and_empty_is_not_gone() {
        let (dir, store) = store();
        assert!(
            store
                .snapshot(&["policies/"])
                .await
                .expect("read")
                .entries
                .is_empty()
        );
        let path = dir.path().to_owned();
        drop(dir);
        assert!(
            store
                .snapshot(&["policies/"])
                .await
                .expect_err("gone")
                .transient()
        );
        assert!(Directory::open(&path).is_err());
    }

    #[tokio::test]
    async fn keys_of_a_session_go_with_it_and_with_its_heartbeat() {
        let (dir, store) = store();
        let session = store.session(Duration::from_secs(30)).await.expect("opened");
        session
            .put("nodes/a", Bytes::from_static(b"{}"))
            .await
            .expect("put");
        assert_eq!(store.snapshot(&["nodes/"]).await.expect("read").entries.len(), 1);
        // As if nobody had touched it for a minute.
        let lease = dir.path().join(".leases/nodes/a");
        let old = SystemTime::now() - Duration::from_secs(60);
        let file = File::options().write(true).open(&lease).expect("there");
        file.set_modified(old).expect("set");
        assert!(
            store
                .snapshot(&["nodes/"])
                .await
                .expect("read")
                .entries
                .is_empty()
        );
        file.set_modified(SystemTime::now()).expect("set");
        assert_eq!(store.snapshot(&["nodes/"]).await.expect("read").entries.len(), 1);
        session.end().await;
        assert!(!dir.path().join("nodes/a").exists());
        assert!(!lease.exists());
    }
}
