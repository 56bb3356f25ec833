//! A thousand agents on one etcd: how long the fleet's word takes to the last of them, what a join storm costs, and how many
//! bytes each agent reads.
//!
//! The agents are real but for the kernel: each has a TLS connection of its own, a follower, a lease and a registration; it verifies signatures,
//! reads the documents, merges and compiles them. They share this machine's few CPUs with etcd, so all that a
//! thousand machines would do at the same time is done one after the other here; what is done with a list of a million prefixes is
//! done once and shared, for the same reason. Bytes are those of the loopback in etcd's namespace, TLS and TCP included.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use ravelin::agent::fleet::judge::Guard;
use ravelin::fleet::documents::{Document, Documents};
use ravelin::fleet::guards::Guards;
use ravelin::fleet::lists;
use ravelin::fleet::memory::Memory;
use ravelin::fleet::node::{Judge, Kept, KeptDocument, Listing, Node, Now, Rejection};
use ravelin::fleet::registered::Member;
use ravelin::fleet::report::{Registration, Stored, node_key};
use ravelin::fleet::selector::Labels;
use ravelin::fleet::signers::Signers;
use ravelin::fleet::statement::Digest;
use ravelin::fleet::{Trust, Verified};
use ravelin::policy::compile::compile;
use ravelin::policy::groups::NodeGroup;
use ravelin::policy::merge::{Part, PartName, merge};
use ravelin::store::follow::{Follower, Update};
use ravelin::store::settings::{self, Settings};
use ravelin::store::shared::{Change, Session, Store};
use ravelin_tests::agent::PREFIX;
use ravelin_tests::bench::{Record, quick, wanted};
use ravelin_tests::etcd::{Cluster, Place};
use ravelin_tests::fleet::{Fleet, OPERATOR, Signed, service};
use ravelin_tests::lab;
use ravelin_tests::netns::Namespace;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// Before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);

const TABLE: &str = "a fleet on one etcd";

fn main() -> Result<()> {
    if !wanted(TABLE) {
        return Ok(());
    }
    lab::prepare()?;
    many_files()?;
    let (agents, prefixes) = if quick() { (100, 50_000) } else { (1000, 1_000_000) };
    let place = Namespace::unique(PREFIX, "etcd")?;
    place.ip("link set lo up")?;
    let cluster = Cluster::start(Place::inside(
        "ravelin-test-etcd",
        &place.path(),
        &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
    ))?;
    let fleet = Fleet::in_etcd(&cluster, &place)?;
    // Inside the namespace, and so are all threads of the runtime.
    place.run(|| -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(bench(&fleet, &cluster, agents, prefixes))
    })
}

/// A connection is a file, and most systems give a process 1,024 of them unless it asks.
fn many_files() -> Result<()> {
    let process = std::process::id().to_string();
    let status = Command::new("prlimit")
        .args(["--pid", &process, "--nofile=8192:"])
        .status()
        .context("running prlimit")?;
    ensure!(status.success(), "prlimit: {status}: this takes 8,192 open files");
    Ok(())
}

/// What all agents of the bench have in common.
struct Shared {
    settings: Settings,
    trust: Trust,
    /// What a document came to: the same for every agent.
    read: Mutex<HashMap<Digest, Vec<NodeGroup>>>,
    compiled: AtomicU64,
    /// (agent, version of `web`, version of `lists`) in force.
    applied: mpsc::UnboundedSender<(usize, u64, u64)>,
    labels: &'static str,
    kept: Option<KeptDocument>,
}

/// The agent's own judge, but that what is the same for all is read once.
struct Judged {
    guard: Guard,
    shared: Arc<Shared>,
}

impl Judge for Judged {
    fn verify(&self, envelope: &[u8], now: u64) -> Result<Verified, Rejection> {
        self.guard.verify(envelope, now)
    }

    fn verify_kept(&self, envelope: &[u8]) -> Result<Verified, Rejection> {
        self.guard.verify_kept(envelope)
    }

    fn is_here(&self, nodes: &str) -> bool {
        self.guard.is_here(nodes)
    }

    fn remember(&mut self, verified: &Verified) -> Result<bool, Rejection> {
        self.guard.remember(verified)
    }

    fn read(&self, document: &Document) -> Result<Vec<NodeGroup>, Rejection> {
        if document.verified.statement.lists.is_empty() {
            return self.guard.read(document);
        }
        let mut read = self.shared.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = read.get(&document.digest()) {
            return Ok(known.clone());
        }
        let groups = self.guard.read(document)?;
        read.insert(document.digest(), groups.clone());
        Ok(groups)
    }

    fn member(&self, name: &str, value: &[u8]) -> Result<Member, Rejection> {
        self.guard.member(name, value)
    }
}

fn now() -> Now {
    Now {
        wall: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
        boot: ravelin::agent::clock::monotonic(),
    }
}

/// One agent without a kernel, until it is aborted.
async fn agent(number: usize, shared: Arc<Shared>) -> Result<()> {
    let name = format!("node-{number}");
    let labels = Labels::new(&name, [("role".to_owned(), shared.labels.to_owned())])?;
    let guard = Guard {
        trust: Some(shared.trust.clone()),
        labels: labels.clone(),
        memory: Memory::default(),
        unsaved: false,
        node_addresses: Vec::new(),
        guards: Guards::default(),
        now: now().wall,
    };
    let mut judge = Judged {
        guard,
        shared: shared.clone(),
    };
    let mut node = Node::new(Duration::from_secs(60));
    let kept = Kept {
        good: shared.kept.iter().cloned().collect(),
        ..Kept::default()
    };
    node.restore(kept, &judge);
    node.begin(node.kept().into_iter().next_back());
    let store = settings::open(&shared.settings)?;
    let address = 0x0a00_0000 + number as u32 + 1;
    let registration = Registration {
        labels,
        addresses: vec![IpAddr::V4(Ipv4Addr::from(address))],
        version: String::new(),
        at: now().wall,
    };
    let stored = Stored {
        registration: serde_json::to_string(&registration)?,
        signature: None,
    };
    // It is held as long as the agent is.
    let _session = register(&store, &node_key(&name), serde_json::to_vec(&stored)?.into()).await;
    let mut with_nodes = node.asks_for_nodes();
    let under = |with_nodes: bool| match with_nodes {
        true => vec!["policies/", "bans/", "nodes/"],
        false => vec!["policies/", "bans/"],
    };
    let mut follower = Follower::new(store.clone(), &under(with_nodes));
    loop {
        match follower.next().await {
            Update::All(snapshot) => {
                let entries = snapshot.entries.into_iter().map(|entry| (entry.key, entry.value));
                let all = Listing {
                    entries: entries.collect(),
                    with_nodes,
                };
                node.snapshot(all, &judge, now());
            }
            Update::Changes { changes, .. } => {
                for change in changes {
                    match change {
                        Change::Put(entry) => node.change(&entry.key, Some(entry.value), &judge, now()),
                        Change::Delete { key, .. } => node.change(&key, None, &judge, now()),
                    }
                }
            }
            Update::Lost(error) => eprintln!("{name}: {}", error.full()),
            Update::Back | Update::Replaced(_) => {}
        }
        node.look(&mut judge, now());
        loop {
            let wanted = node.wanted();
            if wanted.is_empty() {
                break;
            }
            for (digest, object) in fetch(&store, &wanted).await {
                node.object(digest, &object);
            }
            node.look(&mut judge, now());
        }
        while let Some(set) = node.plan(now()) {
            put_in_force(&set, &shared)?;
            node.taken();
            let version = |name: &str| set.part(name).map_or(0, |part| part.version());
            // The bench is over when nobody listens.
            let _ = shared.applied.send((number, version("web"), version("lists")));
        }
        if node.asks_for_nodes() != with_nodes {
            with_nodes = !with_nodes;
            follower = Follower::new(store.clone(), &under(with_nodes));
        }
    }
}

/// Until it is done, as agents do: a thousand at once are more than etcd answers in its time.
async fn register(store: &Arc<dyn Store>, key: &str, value: Bytes) -> Session {
    loop {
        if let Ok(session) = store.session(Duration::from_secs(60)).await
            && session.put(key, value.clone()).await.is_ok()
        {
            return session;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The same for objects.
async fn fetch(store: &Arc<dyn Store>, wanted: &[Digest]) -> Vec<(Digest, Bytes)> {
    let mut objects = Vec::new();
    for some in wanted.chunks(32) {
        let keys: Vec<String> = some.iter().map(|digest| format!("lists/{digest}")).collect();
        let entries = loop {
            match store.get(&keys).await {
                Ok(entries) => break entries,
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        };
        let found = some.iter().zip(entries);
        objects.extend(found.filter_map(|(digest, entry)| Some((*digest, entry?.value))));
    }
    objects
}

/// What the owner does before the kernel; the million prefixes once for all agents.
fn put_in_force(set: &Documents, shared: &Shared) -> Result<()> {
    if let Some(list) = set.part("lists")
        && shared.compiled.swap(list.version(), Ordering::Relaxed) == list.version()
    {
        return Ok(());
    }
    let mut loaded = Vec::new();
    for part in &set.parts {
        let text = &part.verified.statement.text;
        loaded.push((part.name().to_owned(), part.load(text, &set.nodes)?));
    }
    let parts = loaded.iter().map(|(name, loaded)| Part {
        name: PartName::Document(name.clone()),
        loaded,
    });
    let image = compile(&merge(parts.collect())?)?;
    ensure!(!image.image.is_empty(), "an empty image");
    Ok(())
}

/// Bytes that the loopback of this namespace has carried.
fn carried() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").context("reading the counters")?;
    let lo = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("lo:"))
        .context("lo")?;
    let received = lo.split_whitespace().next().context("a count")?;
    Ok(received.parse()?)
}

/// Seconds of CPU that etcd has taken, and resident megabytes.
fn etcd(cluster: &Cluster) -> Result<(f64, f64)> {
    let pid = cluster.pid(0).context("etcd runs")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let resident: u64 = fields[21].parse()?;
    Ok((ticks as f64 / 100.0, resident as f64 * 4096.0 / 1e6))
}

struct Phase<'a> {
    cluster: &'a Cluster,
    agents: usize,
    begun: Instant,
    bytes: u64,
    cpu: f64,
}

impl<'a> Phase<'a> {
    fn begin(cluster: &'a Cluster, agents: usize) -> Result<Phase<'a>> {
        Ok(Phase {
            cluster,
            agents,
            bytes: carried()?,
            cpu: etcd(cluster)?.0,
            begun: Instant::now(),
        })
    }

    /// Waits until every agent has this version, and writes what it took.
    async fn finish(
        self,
        row: &str,
        applied: &mut mpsc::UnboundedReceiver<(usize, u64, u64)>,
        has: impl Fn(u64, u64) -> bool,
        goals: (Option<f64>, Option<f64>),
    ) -> Result<()> {
        let mut times: BTreeMap<usize, Duration> = BTreeMap::new();
        while times.len() < self.agents {
            let next = tokio::time::timeout(Duration::from_secs(300), applied.recv()).await;
            let (agent, web, lists) = next
                .with_context(|| format!("{row}: {} of {} agents have it", times.len(), self.agents))?
                .context("an agent ended")?;
            if has(web, lists) {
                times.entry(agent).or_insert_with(|| self.begun.elapsed());
            }
        }
        let mut times: Vec<f64> = times.values().map(Duration::as_secs_f64).collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        let write = |column: &str, value: f64, unit: &str, goal: Option<f64>| {
            let record = Record::new(TABLE, row, column, value, unit).note(format!("{} agents", self.agents));
            match goal {
                Some(goal) => record.at_most(goal).write(),
                None => record.write(),
            }
        };
        write("p50", at(0.5), "s", None)?;
        write("p99", at(0.99), "s", goals.0)?;
        let bytes = (carried()? - self.bytes) as f64 / self.agents as f64;
        write("per agent", bytes / 1024.0, "KiB", goals.1)?;
        let (cpu, resident) = etcd(self.cluster)?;
        write("etcd's CPU", cpu - self.cpu, "s", None)?;
        write("etcd's memory", resident, "MB", None)
    }
}

async fn put(store: &dyn Store, key: &str, value: Vec<u8>) -> Result<()> {
    store
        .put(key, value.into(), ravelin::store::shared::Expect::Any)
        .await?;
    Ok(())
}

/// Prefixes that no two have in common, with one of them other than before.
fn list(prefixes: u32, changed: bool) -> String {
    let mut text = String::new();
    for number in 0..prefixes {
        let spread = number.wrapping_mul(2_654_435_761);
        let length = if changed && number == prefixes / 2 { 31 } else { 32 };
        text.push_str(&format!(
            "{}/{length}\n",
            Ipv4Addr::from(spread | u32::from(length == 32))
        ));
    }
    text
}

const LISTS: &str = "deny = [\"@blocked\"]\n\n[groups]\nblocked = { file = \"list.txt\" }\n";

fn with_list(version: u64, root: Digest) -> Signed {
    let mut document = Signed::policy("lists", "*", version, "");
    document.0.text = format!(
        "version = 1\n{}[policy]\nname = \"lists\"\nnodes = \"*\"\n",
        LISTS.replace("\n\n[groups]", "\n[groups]")
    );
    document.0.lists = BTreeMap::from([("list.txt".to_owned(), root)]);
    document
}

async fn bench(fleet: &Fleet, cluster: &Cluster, agents: usize, prefixes: u32) -> Result<()> {
    let key = fleet.key(OPERATOR);
    let store = settings::open(fleet.settings())?;
    let (applied, mut news) = mpsc::unbounded_channel();
    let trust = Trust {
        signers: Signers::read(&fleet.allowed_signers())?,
        roles: None,
    };
    let shared = |kept: Option<KeptDocument>, labels: &'static str| {
        Arc::new(Shared {
            settings: fleet.settings().clone(),
            trust: trust.clone(),
            read: Mutex::default(),
            compiled: AtomicU64::new(0),
            applied: applied.clone(),
            labels,
            kept,
        })
    };
    let small = |version: u64| {
        let port = 8000 + version as u16;
        Signed::policy("web", "*", version, &service("web", port, &["10.0.0.0/8"])).seal(&key)
    };

    // All agents at once: they connect, register and apply their first document.
    put(&*store, "policies/web", small(1)?).await?;
    let phase = Phase::begin(cluster, agents)?;
    let mut tasks = tokio::task::JoinSet::new();
    let all = shared(None, "web");
    for number in 0..agents {
        tasks.spawn(agent(number, all.clone()));
    }
    phase
        .finish("join storm", &mut news, |web, _| web >= 1, (None, None))
        .await?;

    for version in 2..=4 {
        let envelope = small(version)?;
        let phase = Phase::begin(cluster, agents)?;
        put(&*store, "policies/web", envelope).await?;
        let row = format!("small change, {}", version - 1);
        phase
            .finish(&row, &mut news, |web, _| web >= version, (Some(2.0), None))
            .await?;
    }
    let idle = Phase::begin(cluster, agents)?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let bytes = (carried()? - idle.bytes) as f64 / agents as f64 / 10.0;
    Record::new(TABLE, "nothing changes", "per agent", bytes, "B/s").write()?;
    let cpu = (etcd(cluster)?.0 - idle.cpu) / 10.0;
    Record::new(TABLE, "nothing changes", "etcd's CPU", cpu, "of a CPU").write()?;
    end(&mut tasks).await?;

    // They have the list from before, as agents do that were running when it was last changed.
    let encode = |text: String| {
        lists::encode(text.as_bytes(), Path::new("list.txt")).map_err(|found| anyhow::anyhow!("{found:?}"))
    };
    let before = encode(list(prefixes, false))?;
    let after = encode(list(prefixes, true))?;
    for (digest, object) in before.objects.iter().chain(&after.objects) {
        put(&*store, &format!("lists/{digest}"), object.clone()).await?;
    }
    let first = with_list(1, before.root).seal(&key)?;
    put(&*store, "policies/lists", first.clone()).await?;
    let objects = before
        .objects
        .into_iter()
        .map(|(digest, object)| (digest, Bytes::from(object)));
    let kept = KeptDocument {
        envelope: first.into(),
        objects: objects.collect(),
    };
    let all = shared(Some(kept), "web");
    while news.try_recv().is_ok() {}
    let phase = Phase::begin(cluster, agents)?;
    for number in 0..agents {
        tasks.spawn(agent(number, all.clone()));
    }
    phase
        .finish(
            "join storm with the list on disk",
            &mut news,
            |web, _| web >= 4,
            (None, None),
        )
        .await?;
    let second = with_list(2, after.root).seal(&key)?;
    let phase = Phase::begin(cluster, agents)?;
    put(&*store, "policies/lists", second).await?;
    phase
        .finish(
            "one prefix of a million",
            &mut news,
            |_, lists| lists >= 2,
            (None, Some(64.0)),
        )
        .await?;
    end(&mut tasks).await
}

/// Ends all agents; an error of one of them is one of the bench.
async fn end(tasks: &mut tokio::task::JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = tasks.try_join_next() {
        ended??;
    }
    tasks.shutdown().await;
    Ok(())
}
