use super::*;
use crate::store::memory::Memory;
use crate::store::shared::{Expect, Watching};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

async fn put(store: &Memory, key: &str, value: &str) {
    store
        .put(key, Bytes::copy_from_slice(value.as_bytes()), Expect::Any)
        .await
        .expect("put");
}

/// No wait is longer than a test wants to take; nothing is listed again by itself, and no silence is too long.
const QUICK: Timing = Timing {
    relist: Duration::from_secs(3600),
    silence: Duration::from_secs(3600),
    shortest_wait: Duration::from_millis(1),
    longest_wait: Duration::from_millis(5),
};

fn follow(store: &Memory, known: Option<Point>) -> Follower {
    Follower::start(Arc::new(store.clone()), &["policies/", "lists/"], known, QUICK)
}

/// A follower's user that believes every word of it.
#[derive(Default)]
struct Mirror {
    keys: BTreeMap<String, Bytes>,
    told: Vec<&'static str>,
}

impl Mirror {
    fn take(&mut self, update: Update) {
        self.told.push(match update {
            Update::All(snapshot) => {
                self.keys = snapshot
                    .entries
                    .into_iter()
                    .map(|entry| (entry.key, entry.value))
                    .collect();
                "all"
            }
            Update::Changes { changes, .. } => {
                for change in changes {
                    match change {
                        Change::Put(entry) => self.keys.insert(entry.key, entry.value),
                        Change::Delete { key, .. } => self.keys.remove(&key),
                    };
                }
                "changes"
            }
            Update::Lost(_) => "lost",
            Update::Back => "back",
            Update::Replaced(_) => "replaced",
        });
    }

    async fn until(&mut self, follower: &mut Follower, key: &str, value: Option<&str>) {
        while self.keys.get(key).map(|value| &value[..]) != value.map(str::as_bytes) {
            self.take(follower.next().await);
        }
    }

    async fn until_told(&mut self, follower: &mut Follower, what: &str) {
        while self.told.last() != Some(&what) {
            self.take(follower.next().await);
        }
    }

    async fn next(&mut self, follower: &mut Follower) {
        self.take(follower.next().await);
    }

    fn told(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.told)
    }
}

async fn following(store: &Memory) -> (Follower, Mirror) {
    put(store, "policies/a", "1").await;
    let mut follower = follow(store, None);
    let mut mirror = Mirror::default();
    mirror.next(&mut follower).await;
    assert_eq!(mirror.told(), ["all"]);
    (follower, mirror)
}

#[tokio::test]
async fn changes_follow_what_was_there() {
    let store = Memory::new();
    let (mut follower, mut mirror) = following(&store).await;
    put(&store, "status/x", "not asked for").await;
    put(&store, "policies/a", "2").await;
    mirror.until(&mut follower, "policies/a", Some("2")).await;
    store.delete("policies/a", Expect::Any).await.expect("deleted");
    mirror.until(&mut follower, "policies/a", None).await;
    assert!(!mirror.keys.contains_key("status/x"));
    assert_eq!(mirror.told(), ["changes", "changes"]);
}

#[tokio::test]
async fn an_outage_is_told_once_and_resumed_without_a_list() {
    let store = Memory::new();
    let (mut follower, mut mirror) = following(&store).await;
    store.reachable(false);
    mirror.next(&mut follower).await;
    mirror.next(&mut follower).await;
    // The end of the stream, then why it cannot be opened again; and nothing more, for however long.
    assert_eq!(mirror.told(), ["lost", "lost"]);
    let asked = store.asked();
    while store.asked() < asked + 10 {
        tokio::task::yield_now().await;
    }
    store.reachable(true);
    put(&store, "policies/a", "2").await;
    mirror.until(&mut follower, "policies/a", Some("2")).await;
    assert_eq!(mirror.told(), ["back", "changes"]);
}

#[tokio::test]
async fn compaction_during_an_outage_ends_in_a_list() {
    let store = Memory::new();
    let (mut follower, mut mirror) = following(&store).await;
    store.reachable(false);
    mirror.next(&mut follower).await;
    store.change_while_out_of_reach("policies/b", "2");
    store.compact();
    store.reachable(true);
    mirror.until(&mut follower, "policies/b", Some("2")).await;
    assert_eq!(mirror.keys.len(), 2);
    let told = mirror.told();
    assert_eq!(told.last(), Some(&"all"), "{told:?}");
    assert!(!told.contains(&"replaced"), "{told:?}");
}

#[tokio::test]
async fn a_wiped_store_is_told_as_another_one() {
    let store = Memory::new();
    let (mut follower, mut mirror) = following(&store).await;
    store.wipe();
    while mirror.told.last() != Some(&"all") {
        mirror.next(&mut follower).await;
    }
    assert_eq!(mirror.told(), ["lost", "back", "replaced", "all"]);
    // And from then on it is the one that is followed.
    put(&store, "policies/c", "3").await;
    mirror.until(&mut follower, "policies/c", Some("3")).await;
    assert_eq!(mirror.told(), ["changes"]);
}

#[tokio::test]
async fn a_store_that_is_wiped_between_list_and_watch_is_told() {
    let inner = Memory::new();
    put(&inner, "policies/a", "1").await;
    let store = Fickle {
        inner: inner.clone(),
        watches: AtomicUsize::new(0),
        first: First::Wiped,
    };
    let mut follower = Follower::start(Arc::new(store), &["policies/"], None, QUICK);
    let mut mirror = Mirror::default();
    mirror.until_told(&mut follower, "replaced").await;
    mirror.until_told(&mut follower, "all").await;
    assert_eq!(mirror.told(), ["all", "replaced", "all"]);
    assert!(mirror.keys.is_empty());
}

#[tokio::test]
async fn an_older_store_is_told_as_such_even_when_its_revisions_went_on() {
    let store = Memory::new();
    let (mut follower, mut mirror) = following(&store).await;
    let backup = store.backup();
    put(&store, "policies/a", "2").await;
    mirror.until(&mut follower, "policies/a", Some("2")).await;
    mirror.told();
    store.restore(&backup);
    for _ in 0..5 {
        put(&store, "status/n", "x").await;
    }
    mirror.until(&mut follower, "policies/a", Some("1")).await;
    assert_eq!(mirror.told(), ["lost", "back", "replaced", "all"]);
}

#[tokio::test]
async fn who_knew_another_store_before_is_told_first() {
    let store = Memory::new();
    put(&store, "policies/a", "1").await;
    let known = Point::of(&store.snapshot(&["policies/"]).await.expect("read"));
    let mut mirror = Mirror::default();
    mirror.next(&mut follow(&store, Some(known.clone()))).await;
    assert_eq!(mirror.told(), ["all"]);
    store.wipe();
    let mut follower = follow(&store, Some(known));
    mirror.next(&mut follower).await;
    mirror.next(&mut follower).await;
    assert_eq!(mirror.told(), ["replaced", "all"]);
}

#[tokio::test]
async fn everything_is_listed_on_request() {
    let store = Memory::new();
    let (mut follower, mut mirror) = following(&store).await;
    follower.relist();
    mirror.next(&mut follower).await;
    assert_eq!(mirror.told(), ["all"]);
}

#[tokio::test]
async fn everything_is_listed_now_and_then() {
    let store = Memory::new();
    put(&store, "policies/a", "1").await;
    let timing = Timing {
        relist: Duration::from_millis(20),
        ..QUICK
    };
    let mut follower = Follower::start(Arc::new(store.clone()), &["policies/"], None, timing);
    let mut mirror = Mirror::default();
    for _ in 0..3 {
        mirror.next(&mut follower).await;
    }
    assert_eq!(mirror.told(), ["all", "all", "all"]);
}

/// A store whose first watch goes wrong.
struct Fickle {
    inner: Memory,
    watches: AtomicUsize,
    first: First,
}

enum First {
    /// It never says anything.
    Deaf,
    /// The store is another one when it is opened.
    Wiped,
}

struct Nothing;

impl Watching for Nothing {
    fn next(&mut self) -> BoxFuture<'_, Result<Event, StoreError>> {
        std::future::pending().boxed()
    }
}

impl Store for Fickle {
    fn name(&self) -> String {
        "fickle".to_owned()
    }

    fn snapshot<'a>(&'a self, under: &'a [&'a str]) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.inner.snapshot(under)
    }

    fn get<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<crate::store::shared::Entry>>, StoreError>> {
        self.inner.get(keys)
    }

    fn holds<'a>(&'a self, point: &'a Point) -> BoxFuture<'a, Result<Holds, StoreError>> {
        self.inner.holds(point)
    }

    fn watch<'a>(&'a self, from: &'a [(&'a str, Revision)]) -> BoxFuture<'a, Result<Watch, StoreError>> {
        let first = self.watches.fetch_add(1, Ordering::Relaxed) == 0;
        match self.first {
            First::Deaf if first => return async { Ok(Watch::new(Nothing)) }.boxed(),
            First::Wiped if first => self.inner.wipe(),
            _ => {}
        }
        self.inner.watch(from)
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expect: Expect,
    ) -> BoxFuture<'a, Result<Revision, crate::store::shared::PutError>> {
        self.inner.put(key, value, expect)
    }

    fn delete<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
    ) -> BoxFuture<'a, Result<Revision, crate::store::shared::PutError>> {
        self.inner.delete(key, expect)
    }

    fn session(&self, ttl: Duration) -> BoxFuture<'_, Result<crate::store::shared::Session, StoreError>> {
        self.inner.session(ttl)
    }
}

#[tokio::test]
async fn a_stream_that_says_nothing_is_given_up() {
    let inner = Memory::new();
    put(&inner, "policies/a", "1").await;
    let store = Fickle {
        inner: inner.clone(),
        watches: AtomicUsize::new(0),
        first: First::Deaf,
    };
    let timing = Timing {
        silence: Duration::from_millis(50),
        ..QUICK
    };
    let mut follower = Follower::start(Arc::new(store), &["policies/"], None, timing);
    let mut mirror = Mirror::default();
    mirror.next(&mut follower).await;
    put(&inner, "policies/a", "2").await;
    mirror.until(&mut follower, "policies/a", Some("2")).await;
    // The second watch works, and falls silent later.
    assert_eq!(mirror.told(), ["all", "lost", "back", "changes"]);
}

#[test]
fn waits_grow_to_their_bound_and_differ() {
    let timing = Timing::default();
    let mut waits = Waits::new(timing);
    let first = waits.longer();
    assert!(
        first <= timing.shortest_wait && first >= timing.shortest_wait / 5,
        "{first:?}"
    );
    for _ in 0..20 {
        assert!(waits.longer() <= timing.longest_wait);
    }
    let late: Vec<Duration> = (0..20).map(|_| waits.longer()).collect();
    assert!(
        late.iter().all(|wait| *wait >= timing.longest_wait / 5),
        "{late:?}"
    );
    assert!(late.iter().any(|wait| *wait != late[0]));
    waits.reset();
    assert!(waits.longer() <= timing.shortest_wait);
}
