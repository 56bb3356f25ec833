//! The store in a real etcd: three members, TLS, client certificates.

use ravelin::store::shared::{Entry, Expect, Holds, Point, PutError, Revision, Store};
use ravelin::store::{Settings, open};
use ravelin_tests::agent::PREFIX;
use ravelin_tests::etcd::{Cluster, Place, ROOT};
use std::sync::Arc;
use std::time::Duration;

fn cluster() -> Cluster {
    ravelin_tests::agent::sweep();
    Cluster::start(Place::loopback(PREFIX, 3).expect("ports")).expect("an etcd")
}

#[derive(serde::Deserialize)]
struct File {
    store: Settings,
}

fn store(cluster: &Cluster, user: &str) -> Arc<dyn Store> {
    let text = cluster.settings(user).expect("certificates");
    open(&toml::from_str::<File>(&text).expect("settings").store).expect("a store")
}

async fn put(store: &Arc<dyn Store>, key: &str, value: &str) -> Revision {
    store
        .put(key, value.to_owned().into(), Expect::Any)
        .await
        .expect("put")
}

#[tokio::test]
async fn what_is_put_is_there_for_others() {
    let cluster = cluster();
    let (one, two) = (store(&cluster, ROOT), store(&cluster, "somebody"));
    let first = put(&one, "policies/a", "1").await;
    put(&one, "policies-old/a", "0").await;
    put(&one, "bans/192.0.2.0_24", "b").await;
    let second = put(&one, "policies/b", "2").await;
    assert!(second > first);
    let snapshot = two.snapshot(&["policies/", "bans/"]).await.expect("read");
    assert_eq!(snapshot.revision, second);
    assert_ne!(snapshot.cluster, 0);
    let keys: Vec<&str> = snapshot.entries.iter().map(|entry| &*entry.key).collect();
    assert_eq!(keys, ["bans/192.0.2.0_24", "policies/a", "policies/b"]);
    let got = two
        .get(&["policies/b".to_owned(), "policies/c".to_owned()])
        .await
        .expect("read");
    let b = Entry {
        key: "policies/b".to_owned(),
        value: "2".into(),
        revision: second,
    };
    assert_eq!(got, [Some(b), None]);
    assert_eq!(two.holds(&Point::of(&snapshot)).await.expect("told"), Holds::Yes);
}

#[tokio::test]
async fn the_second_of_two_editors_is_told() {
    let cluster = cluster();
    let store = store(&cluster, ROOT);
    let put = |value: &'static str, expect| store.put("policies/a", value.into(), expect);
    let first = put("1", Expect::Absent).await.expect("put");
    let refused = put("2", Expect::Absent).await;
    let Err(PutError::Changed(Some(now))) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((&now.value[..], now.revision), (&b"1"[..], first));
    let second = put("2", Expect::At(first)).await.expect("put");
    assert!(matches!(
        put("3", Expect::At(first)).await,
        Err(PutError::Changed(Some(_)))
    ));
    assert!(matches!(
        store.delete("policies/a", Expect::At(first)).await,
        Err(PutError::Changed(Some(_)))
    ));
    store
        .delete("policies/a", Expect::At(second))
        .await
        .expect("deleted");
    assert!(matches!(
        store.delete("policies/a", Expect::At(second)).await,
        Err(PutError::Changed(None))
    ));
    store
        .delete("policies/a", Expect::Any)
        .await
        .expect("nothing to delete");
}

#[tokio::test]
async fn keys_of_a_session_go_with_it() {
    let cluster = cluster();
    let store = store(&cluster, ROOT);
    let session = store.session(Duration::from_secs(10)).await.expect("opened");
    session.put("nodes/a", "{}".into()).await.expect("put");
    assert_eq!(store.snapshot(&["nodes/"]).await.expect("read").entries.len(), 1);
    session.end().await;
    assert!(
        store
            .snapshot(&["nodes/"])
            .await
            .expect("read")
            .entries
            .is_empty()
    );

    // An operator's word ends it, too.
    let session = store.session(Duration::from_secs(6)).await.expect("opened");
    session.put("nodes/a", "{}".into()).await.expect("put");
    let leases = cluster.ctl(ROOT, &["lease", "list"]).expect("listed");
    let lease = leases.lines().last().expect("a lease");
    cluster.ctl(ROOT, &["lease", "revoke", lease]).expect("revoked");
    let error = session.lost().await;
    assert!(error.full().contains("lease not found"), "{}", error.full());
    assert!(session.put("nodes/a", "{}".into()).await.is_err());
}
