//! What becomes of a follower when etcd is killed, stopped, out of reach, compacted, wiped, or restored from a backup: real members,
//! real connections. Whatever happens, in the end it knows what is there, and that it is another store if it is one.

use ravelin::store::follow::{Follower, Timing, Update};
use ravelin::store::shared::{Change, Expect, Store};
use ravelin::store::{Settings, open};
use ravelin_tests::agent::{self, PREFIX};
use ravelin_tests::etcd::{Cluster, Place, ROOT};
use ravelin_tests::netns::{Namespace, link};
use ravelin_tests::program::nft;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// No outage is waited for longer than this; many last until etcd's own timeouts.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(serde::Deserialize)]
struct File {
    store: Settings,
}

fn store(cluster: &Cluster, user: &str) -> Arc<dyn Store> {
    let text = cluster.settings(user).expect("certificates");
    open(&toml::from_str::<File>(&text).expect("settings").store).expect("a store")
}

/// Waits are short, so that tests are. Nothing is listed again but for a reason.
fn follow(cluster: &Cluster) -> Following {
    let timing = Timing {
        relist: Duration::from_secs(3600),
        longest_wait: Duration::from_secs(1),
        ..Timing::default()
    };
    Following {
        follower: Follower::start(store(cluster, "node"), &["policies/", "bans/"], None, timing),
        keys: BTreeMap::new(),
        told: Vec::new(),
    }
}

/// A follower, and what it makes its user believe.
struct Following {
    follower: Follower,
    keys: BTreeMap<String, String>,
    told: Vec<&'static str>,
}

impl Following {
    async fn next(&mut self) {
        let update = tokio::time::timeout(PATIENCE, self.follower.next())
            .await
            .unwrap_or_else(|_| panic!("nothing more after {:?}; {:?}", self.told, self.keys));
        self.told.push(match update {
            Update::All(snapshot) => {
                self.keys = snapshot
                    .entries
                    .into_iter()
                    .map(|entry| (entry.key, String::from_utf8_lossy(&entry.value).into_owned()))
                    .collect();
                "all"
            }
            Update::Changes { changes, .. } => {
                for change in changes {
                    match change {
                        Change::Put(entry) => self
                            .keys
                            .insert(entry.key, String::from_utf8_lossy(&entry.value).into_owned()),
                        Change::Delete { key, .. } => self.keys.remove(&key),
                    };
                }
                "changes"
            }
            Update::Lost(error) => {
                assert!(error.full().contains("etcd"), "{}", error.full());
                "lost"
            }
            Update::Back => "back",
            Update::Replaced(_) => "replaced",
        });
    }

    async fn until(&mut self, key: &str, value: Option<&str>) {
        while self.keys.get(key).map(String::as_str) != value {
            self.next().await;
        }
    }

    async fn until_told(&mut self, what: &str) {
        while self.told.last() != Some(&what) {
            self.next().await;
        }
    }

    /// What was told since this was asked for, each run of the same word once: an outage may have several causes, and changes may
    /// come in several parts.
    fn told(&mut self) -> Vec<&'static str> {
        let mut told = std::mem::take(&mut self.told);
        told.dedup();
        told
    }
}

async fn put(store: &Arc<dyn Store>, key: &str, value: &str) {
    store
        .put(key, value.to_owned().into(), Expect::Any)
        .await
        .expect("put");
}

async fn following(cluster: &Cluster) -> (Arc<dyn Store>, Following) {
    let store = store(cluster, ROOT);
    put(&store, "policies/a", "1").await;
    let mut following = follow(cluster);
    following.next().await;
    assert_eq!(following.told(), ["all"]);
    (store, following)
}

fn loopback() -> Cluster {
    agent::sweep();
    Cluster::start(Place::loopback(PREFIX, 3).expect("ports")).expect("an etcd")
}

#[tokio::test]
async fn any_one_member_may_be_killed() {
    let mut cluster = loopback();
    let (operator, mut node) = following(&cluster).await;
    for member in cluster.members() {
        cluster.kill(member).expect("killed");
        let value = format!("without {member}");
        put(&operator, "policies/a", &value).await;
        node.until("policies/a", Some(&value)).await;
        cluster.start_all().expect("started");
    }
    let told = node.told();
    assert!(!told.contains(&"all") && !told.contains(&"replaced"), "{told:?}");
}

#[tokio::test]
async fn any_one_member_may_be_stopped_in_its_tracks() {
    let cluster = loopback();
    let (operator, mut node) = following(&cluster).await;
    for member in cluster.members() {
        cluster.stop(member).expect("stopped");
        let value = format!("without {member}");
        put(&operator, "policies/a", &value).await;
        node.until("policies/a", Some(&value)).await;
        cluster.go_on(member).expect("gone on");
    }
    let told = node.told();
    assert!(!told.contains(&"all") && !told.contains(&"replaced"), "{told:?}");
}

#[tokio::test]
async fn without_a_majority_nothing_changes_until_it_is_back() {
    let mut cluster = loopback();
    let (operator, mut node) = following(&cluster).await;
    cluster.kill(0).expect("killed");
    cluster.kill(1).expect("killed");
    node.until_told("lost").await;
    let refused = operator.put("policies/a", "2".into(), Expect::Any).await;
    assert!(refused.is_err(), "put without a majority");
    cluster.start_all().expect("started");
    put(&operator, "policies/a", "3").await;
    node.until("policies/a", Some("3")).await;
    let told = node.told();
    assert_eq!(told.first(), Some(&"lost"), "{told:?}");
    assert!(!told.contains(&"all") && !told.contains(&"replaced"), "{told:?}");
}

#[tokio::test]
async fn all_may_be_killed_and_come_back() {
    let mut cluster = loopback();
    let (operator, mut node) = following(&cluster).await;
    cluster.kill_all().expect("killed");
    node.until_told("lost").await;
    assert_eq!(node.keys.len(), 1);
    cluster.start_all().expect("started");
    put(&operator, "bans/192.0.2.1_32", "b").await;
    node.until("bans/192.0.2.1_32", Some("b")).await;
    assert_eq!(node.told(), ["lost", "back", "changes"]);
}

#[tokio::test]
async fn a_wiped_etcd_is_told_as_another_one() {
    let mut cluster = loopback();
    let (operator, mut node) = following(&cluster).await;
    cluster.wipe().expect("wiped");
    node.until_told("replaced").await;
    node.until_told("all").await;
    assert!(node.keys.is_empty());
    put(&operator, "policies/b", "new").await;
    node.until("policies/b", Some("new")).await;
}

#[tokio::test]
async fn a_restored_etcd_is_told_as_another_one() {
    let mut cluster = loopback();
    let (operator, mut node) = following(&cluster).await;
    let backup = cluster.backup("backup.db").expect("a backup");
    put(&operator, "policies/a", "2").await;
    put(&operator, "policies/b", "2").await;
    node.until("policies/b", Some("2")).await;
    node.told();
    cluster.restore(&backup).expect("restored");
    node.until("policies/a", Some("1")).await;
    assert!(!node.keys.contains_key("policies/b"));
    assert_eq!(node.told(), ["lost", "back", "replaced", "all"]);
}

/// Members in a namespace, and nodes in another, with a cable between them that can be cut without a sound.
struct Cable {
    etcd: Namespace,
    node: Namespace,
}

impl Cable {
    fn new() -> Cable {
        ravelin_tests::lab::prepare().expect("root");
        let cable = Cable {
            etcd: Namespace::unique(PREFIX, "etcd").expect("a namespace"),
            node: Namespace::unique(PREFIX, "node").expect("a namespace"),
        };
        link((&cable.etcd, "eth0"), (&cable.node, "eth0"), 1500).expect("a link");
        for member in 1..=3 {
            cable
                .etcd
                .address("eth0", &format!("192.0.2.{member}/24"))
                .expect("an address");
        }
        cable.node.address("eth0", "192.0.2.10/24").expect("an address");
        cable
    }

    fn cluster(&self) -> Cluster {
        let addresses = [1, 2, 3].map(|last| std::net::Ipv4Addr::new(192, 0, 2, last).into());
        Cluster::start(Place::inside(PREFIX, &self.etcd.path(), &addresses)).expect("an etcd")
    }

    /// Frames vanish, in both directions.
    fn cut(&self) {
        let rules = "table inet cable {\n\
                     chain in { type filter hook input priority 0; iifname \"eth0\" drop; }\n\
                     chain out { type filter hook output priority 0; oifname \"eth0\" drop; }\n}\n";
        nft(&self.etcd, rules).expect("cut");
    }

    fn mend(&self) {
        nft(&self.etcd, "delete table inet cable\n").expect("mended");
    }

    /// Runs the node's side.
    fn run(&self, work: impl AsyncFnOnce() + Send) {
        self.node.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(work());
        });
    }
}

#[test]
fn a_black_hole_is_noticed_and_what_happened_behind_it_is_caught_up() {
    let cable = Cable::new();
    let cluster = cable.cluster();
    cable.run(async || {
        let (_, mut node) = following(&cluster).await;
        cable.cut();
        node.until_told("lost").await;
        cluster
            .ctl(ROOT, &["put", "/ravelin/policies/b", "2"])
            .expect("put");
        cluster
            .ctl(ROOT, &["del", "/ravelin/policies/a"])
            .expect("deleted");
        cable.mend();
        node.until("policies/a", None).await;
        node.until("policies/b", Some("2")).await;
        assert_eq!(node.told(), ["lost", "back", "changes"]);
    });
}

#[test]
fn a_connection_of_which_only_one_end_is_left_is_noticed() {
    let cable = Cable::new();
    let mut cluster = cable.cluster();
    let cluster = &mut cluster;
    let cable = &cable;
    cable.run(async move || {
        let (operator, mut node) = following(cluster).await;
        // What etcd's hosts say at its end is not heard; the new processes know nothing of the old connections.
        cable.cut();
        cluster.kill_all().expect("killed");
        cluster.start_all().expect("started");
        cable.mend();
        put(&operator, "policies/a", "2").await;
        node.until("policies/a", Some("2")).await;
        let told = node.told();
        assert!(!told.contains(&"all") && !told.contains(&"replaced"), "{told:?}");
    });
}

#[test]
fn what_was_compacted_during_an_outage_is_listed() {
    let cable = Cable::new();
    let cluster = cable.cluster();
    cable.run(async || {
        let (operator, mut node) = following(&cluster).await;
        cable.cut();
        node.until_told("lost").await;
        for value in ["2", "3"] {
            cluster
                .ctl(ROOT, &["put", "/ravelin/policies/b", value])
                .expect("put");
        }
        cluster
            .ctl(ROOT, &["del", "/ravelin/policies/a"])
            .expect("deleted");
        cluster.compact().expect("compacted");
        cable.mend();
        node.until("policies/b", Some("3")).await;
        assert!(!node.keys.contains_key("policies/a"), "a delete was lost");
        assert_eq!(node.told(), ["lost", "back", "all"]);
        put(&operator, "policies/c", "4").await;
        node.until("policies/c", Some("4")).await;
    });
}

#[test]
fn a_restored_etcd_is_told_as_such_though_its_revisions_went_on() {
    let cable = Cable::new();
    let mut cluster = cable.cluster();
    let cluster = &mut cluster;
    let cable = &cable;
    cable.run(async move || {
        let (operator, mut node) = following(cluster).await;
        let backup = cluster.backup("backup.db").expect("a backup");
        put(&operator, "policies/a", "2").await;
        node.until("policies/a", Some("2")).await;
        node.told();
        cable.cut();
        node.until_told("lost").await;
        cluster.restore(&backup).expect("restored");
        for number in 0..10 {
            cluster
                .ctl(ROOT, &["put", "/ravelin/status/n", &number.to_string()])
                .expect("put");
        }
        cable.mend();
        node.until("policies/a", Some("1")).await;
        assert_eq!(node.told(), ["lost", "back", "replaced", "all"]);
    });
}

#[test]
fn a_slow_connection_is_enough() {
    let cable = Cable::new();
    let cluster = cable.cluster();
    cable.run(async || {
        let (operator, mut node) = following(&cluster).await;
        // Some tens of packets a second; the others are lost.
        let rules = "table inet cable {\n\
                     chain in { type filter hook input priority 0; iifname \"eth0\" limit rate over 40/second burst 20 packets drop; }\n\
                     }\n";
        nft(&cable.etcd, rules).expect("slowed down");
        let large = "x".repeat(100_000);
        for number in 0..3 {
            // One that gives up is an answer, too.
            while operator
                .put(&format!("policies/{number}"), large.clone().into(), Expect::Any)
                .await
                .is_err()
            {}
        }
        for number in 0..3 {
            node.until(&format!("policies/{number}"), Some(&large)).await;
        }
        let told = node.told();
        assert!(!told.contains(&"replaced"), "{told:?}");
    });
}
