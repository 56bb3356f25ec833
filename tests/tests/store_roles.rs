//! etcd's own authorisation as docs/etcd.md sets it up, and what everybody's errors say.

use ravelin::store::shared::{Expect, PutError, Store};
use ravelin::store::{Settings, open};
use ravelin_tests::agent::{self, PREFIX};
use ravelin_tests::etcd::{Cluster, Place, ROOT};
use std::sync::Arc;
use std::time::Duration;

const GUIDE: &str = include_str!("../../docs/etcd.md");

#[derive(serde::Deserialize)]
struct File {
    store: Settings,
}

fn store(section: &str) -> Arc<dyn Store> {
    open(&toml::from_str::<File>(section).expect("settings").store).expect("a store")
}

fn cluster(members: usize) -> Cluster {
    agent::sweep();
    Cluster::start(Place::loopback(PREFIX, members).expect("ports")).expect("an etcd")
}

/// Fails unless etcd itself says no.
#[track_caller]
fn denied<T: std::fmt::Debug>(what: &str, result: Result<T, PutError>) {
    match result {
        Err(PutError::Store(error)) => {
            let text = error.full();
            assert!(text.ends_with("permission denied"), "{what}: {text}");
            assert!(!error.transient(), "{what}: {text}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[tokio::test]
async fn a_node_reads_what_is_for_it_and_writes_its_own_keys_only() {
    let cluster = cluster(3);
    let mut enabled = false;
    for line in GUIDE.lines().filter_map(|line| line.strip_prefix("    etcdctl ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        cluster.ctl(ROOT, &words).expect(line);
        enabled |= words == ["auth", "enable"];
    }
    assert!(enabled, "the guide does not enable authentication");

    let user = |name| store(&cluster.settings(name).expect("a certificate"));
    let (operator, node) = (user("alice"), user("db-1"));
    for key in [
        "policies/web",
        "bans/192.0.2.0_24",
        "lists/00",
        "nodes/db-2",
        "status/db-2",
    ] {
        operator.put(key, "x".into(), Expect::Any).await.expect(key);
    }

    // What it needs.
    let snapshot = node
        .snapshot(&["policies/", "bans/", "nodes/"])
        .await
        .expect("read");
    assert_eq!(snapshot.entries.len(), 3);
    assert!(node.get(&["lists/00".to_owned()]).await.expect("read")[0].is_some());
    node.watch(&[("policies/", snapshot.revision), ("nodes/", snapshot.revision)])
        .await
        .expect("watched");
    let session = node.session(Duration::from_secs(10)).await.expect("a session");
    session.put("nodes/db-1", "{}".into()).await.expect("put");
    node.put("status/db-1", "{}".into(), Expect::Any)
        .await
        .expect("put");

    // What it must not.
    for key in [
        "policies/web",
        "policies/new",
        "bans/192.0.2.0_24",
        "lists/00",
        "nodes/db-2",
        "status/db-2",
    ] {
        denied(key, node.put(key, "y".into(), Expect::Any).await);
        denied(key, node.put(key, "y".into(), Expect::Absent).await);
        denied(key, node.delete(key, Expect::Any).await);
        denied(key, session.put(key, "y".into()).await.map_err(PutError::Store));
    }
    denied(
        "status/",
        node.snapshot(&["status/"]).await.map_err(PutError::Store),
    );
    denied(
        "status/",
        node.watch(&[("status/", snapshot.revision)])
            .await
            .map(drop)
            .map_err(PutError::Store),
    );
    for key in ["policies/web", "nodes/db-2"] {
        let now = operator.get(&[key.to_owned()]).await.expect("read");
        assert_eq!(
            now[0].as_ref().map(|entry| &entry.value[..]),
            Some(&b"x"[..]),
            "{key}"
        );
    }
    // The lease of another's registration is no way to it, either.
    let leases = cluster.ctl("db-1", &["lease", "list"]).expect("listed");
    let lease = leases.lines().last().expect("a lease").to_owned();
    cluster
        .ctl("alice", &["role", "list"])
        .expect_err("an operator of the fleet is none of etcd");
    let other = cluster.ctl(ROOT, &["user", "add", "db-2", "--no-password"]);
    other.expect("added");
    cluster
        .ctl("db-2", &["lease", "revoke", &lease])
        .expect_err("revoked");

    // Somebody with a certificate and no user.
    let nobody = user("mallory").snapshot(&["policies/"]).await.expect_err("read");
    assert!(!nobody.transient(), "{}", nobody.full());
    assert!(nobody.full().contains("permission denied"), "{}", nobody.full());
}

#[tokio::test]
async fn errors_name_the_endpoint_and_the_cause() {
    let mut cluster = cluster(1);
    let endpoint = cluster.endpoint(0);
    let read = async |section: String| {
        let error = store(&section)
            .snapshot(&["policies/"])
            .await
            .expect_err(&section);
        (error.full(), error.transient())
    };
    let section = cluster.settings(ROOT).expect("a certificate");

    // Nobody's certificate: another authority's.
    let other = Cluster::start(Place::loopback(PREFIX, 1).expect("ports")).expect("an etcd");
    let wrong = section.replace(
        &cluster.ca().display().to_string(),
        &other.ca().display().to_string(),
    );
    let (text, transient) = read(wrong).await;
    assert!(
        text.starts_with(&format!("etcd {endpoint}: reading policies/: ")),
        "{text}"
    );
    assert!(text.contains("invalid peer certificate"), "{text}");
    assert!(!transient, "{text}");

    // None of its own.
    let bare: String = section
        .lines()
        .filter(|line| !line.starts_with("cert") && !line.starts_with("key"))
        .map(|line| format!("{line}\n"))
        .collect();
    let (text, _) = read(bare).await;
    assert!(text.starts_with(&format!("etcd {endpoint}: ")), "{text}");
    assert!(
        text.ends_with("etcd may want a client certificate, and no `cert` is configured"),
        "{text}"
    );

    // One of another authority.
    let (cert, key) = other.client(ROOT).expect("a certificate");
    let (ours, our_key) = cluster.client(ROOT).expect("a certificate");
    let foreign = section
        .replace(&format!("{ours:?}"), &format!("{cert:?}"))
        .replace(&format!("{our_key:?}"), &format!("{key:?}"));
    let (text, _) = read(foreign).await;
    assert!(
        text.ends_with(&format!("etcd may not take the certificate {}", cert.display())),
        "{text}"
    );

    // A file that is not there.
    let missing = section.replace("root.pem", "nobody.pem");
    let error = open(&toml::from_str::<File>(&missing).expect("settings").store)
        .err()
        .expect("opened");
    assert!(
        error.full().contains("nobody.pem: No such file"),
        "{}",
        error.full()
    );

    // Nobody there.
    cluster.kill(0).expect("killed");
    let (text, transient) = read(section.clone()).await;
    assert_eq!(
        text,
        format!("etcd {endpoint}: reading policies/: Connection refused (os error 111)")
    );
    assert!(transient);
    let two = section.replace(
        &format!("{endpoint:?}"),
        &format!("{endpoint:?}, \"https://127.0.0.1:1\""),
    );
    let (text, _) = read(two).await;
    assert_eq!(
        text,
        format!(
            "etcd: reading policies/: {endpoint}: Connection refused (os error 111); https://127.0.0.1:1: Connection \
             refused (os error 111)"
        )
    );
}
