//! A node of a fleet: the loop between the store, what the node makes of it ([`crate::fleet::node`]), the cache on disk and
//! the owner of the data path, who takes sets of documents as he takes the policy file.
//!
//! What always holds: nothing waits for the store. What was in force before is read from disk and verified before the
//! store is asked for anything; the owner is given whole sets and never asked to wait; and whatever fails here is told
//! ([`Board`], audit log) and tried again.

pub mod audit;
pub mod cache;
pub mod config;
pub mod judge;
mod session;

use super::clock::Clock;
use super::handle::{Command, Handle, Outcome, Readiness};
use super::reload::Refusal;
pub use super::reload::chain;
use crate::api::fleet::{DocumentRow, FleetStatus};
use crate::api::types::{BanRequest, UnbanRequest};
use crate::fleet::documents::Documents;
use crate::fleet::memory::Memory;
use crate::fleet::node::{Fault, Listing, Node, Now, Refusal as Refused, Rejection, State};
use crate::fleet::orders::Order;
use crate::fleet::report::{Rejected, Report, Version, node_key};
use crate::fleet::statement::Digest;
use crate::store::follow::{Follower, Timing, Update};
use crate::store::policy_file::{Stamp, stamp};
use crate::store::settings;
use crate::store::shared::{Change, Point, Store, StoreError};
use audit::Audit;
use bytes::Bytes;
use cache::Cache;
use config::Fleet;
use judge::{Guard, read_trust};
use session::Own;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{JoinHandle, block_in_place};

/// Between looks at what nobody tells: the files of `[trust]`, how the node does.
const LOOK: Duration = Duration::from_secs(2);
/// Before a list that could not be fetched is asked for again.
const FETCH_AGAIN: Duration = Duration::from_secs(2);
/// Objects that are asked for at once.
const AT_ONCE: usize = 32;

/// What there is to be seen; empty for a node without a fleet.
pub type Board = Arc<RwLock<Option<FleetStatus>>>;

/// A node as it comes from disk, before the store is asked for anything.
pub struct Start {
    fleet: Fleet,
    node: Node,
    guard: Guard,
    cache: Cache,
    audit: Audit,
    point: Option<Point>,
    clock: Arc<dyn Clock>,
    trust_stamps: Vec<Stamp>,
    degraded: BTreeMap<&'static str, String>,
}

impl Start {
    pub fn new(fleet: &Fleet, state_dir: &Path, clock: Arc<dyn Clock>) -> Start {
        let mut degraded = BTreeMap::new();
        let trust_stamps = stamps(fleet);
        let trust = read_trust(fleet)
            .inspect_err(|error| {
                log::error!("nothing new of the fleet is taken: {error}");
                degraded.insert("trust", format!("nothing new of the fleet is taken: {error}"));
            })
            .ok();
        let mut cache = Cache::new(state_dir);
        let memory = Memory::load(&cache.memory()).unwrap_or_else(|error| {
            let text = format!(
                "which versions of policies were seen before is not known any more, so old ones may come back: {}",
                chain(&error)
            );
            log::error!("{text}");
            degraded.insert("memory", text);
            Memory::default()
        });
        let guard = Guard {
            trust,
            labels: fleet.labels.clone(),
            memory,
            unsaved: false,
            node_addresses: fleet.node_addresses.clone(),
            guards: fleet.guards.clone(),
            now: clock.wall().as_secs(),
        };
        let (kept, point) = cache.read();
        let mut node = Node::new(fleet.grace);
        node.restore(kept, &guard);
        let audit = Audit::new(state_dir);
        audit.refused(&node.refusals(), clock.wall().as_secs());
        Start {
            fleet: fleet.clone(),
            node,
            guard,
            cache,
            audit,
            point,
            clock,
            trust_stamps,
            degraded,
        }
    }

    /// What the owner may put in force before the store is asked, what is preferred first.
    pub fn sets(&self) -> Vec<Arc<Documents>> {
        self.node.kept()
    }
}

fn stamps(fleet: &Fleet) -> Vec<Stamp> {
    let files = [Some(&fleet.allowed_signers), fleet.roles.as_ref()];
    files.into_iter().flatten().map(|path| stamp(path)).collect()
}

/// Runs until the agent stops. `begun`: what of the fleet's is in force.
pub async fn run(start: Start, begun: Option<Arc<Documents>>, agent: Handle, board: Board) {
    let Start {
        fleet,
        mut node,
        guard,
        cache,
        audit,
        point,
        clock,
        trust_stamps,
        degraded,
    } = start;
    // Of an agent before this one something may be in force that it is not known by name: then all is offered again.
    node.begin(
        begun.filter(|set| !set.parts.is_empty() || node.kept().iter().all(|kept| kept.parts.is_empty())),
    );
    let (report, reports) = watch::channel(Report::default());
    let again = Arc::new(Notify::new());
    let registered = Arc::new(RwLock::new(false));
    let store = open(&fleet, &board, &clock).await;
    let own = Own {
        fleet: fleet.clone(),
        store: store.clone(),
        again: again.clone(),
        registered: registered.clone(),
        clock: clock.clone(),
    };
    // They end with this task.
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(own.clone().register());
    tasks.spawn(own.report(reports));
    let readiness = agent.readiness();
    let now = clock.wall().as_secs();
    let looping = Looping {
        own_key: node_key(fleet.labels.node()),
        under: Vec::new(),
        fleet,
        node,
        guard,
        cache,
        audit,
        point,
        clock,
        trust_stamps,
        degraded,
        store,
        agent,
        board,
        report,
        again,
        registered,
        connection: Connection {
            connected: false,
            since: now,
            last_contact: 0,
            error: None,
        },
        answer: None,
        fetch: None,
        refused: BTreeMap::new(),
        told: Arc::default(),
    };
    looping.run(readiness).await;
}

/// Opens the store; what it is made of may come later than the agent.
async fn open(fleet: &Fleet, board: &Board, clock: &Arc<dyn Clock>) -> Arc<dyn Store> {
    let mut told = String::new();
    loop {
        match settings::open(&fleet.store) {
            Ok(store) => return store,
            Err(error) => {
                let text = error.full();
                if text != told {
                    log::error!("the fleet is out of reach, trying again: {text}");
                    let now = clock.wall().as_secs();
                    *board.write().unwrap_or_else(PoisonError::into_inner) = Some(FleetStatus {
                        name: fleet.labels.node().to_owned(),
                        labels: fleet.labels.clone().into(),
                        store: error.store.clone(),
                        since: now,
                        error: Some(text.clone()),
                        ..FleetStatus::default()
                    });
                    told = text;
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

struct Connection {
    connected: bool,
    since: u64,
    last_contact: u64,
    error: Option<String>,
}

type Fetched = Result<Vec<(Digest, Option<Bytes>)>, StoreError>;

struct Looping {
    fleet: Fleet,
    own_key: String,
    /// What is watched.
    under: Vec<String>,
    node: Node,
    guard: Guard,
    cache: Cache,
    audit: Audit,
    point: Option<Point>,
    clock: Arc<dyn Clock>,
    trust_stamps: Vec<Stamp>,
    degraded: BTreeMap<&'static str, String>,
    store: Arc<dyn Store>,
    agent: Handle,
    board: Board,
    report: watch::Sender<Report>,
    /// Tells that the registration is not there any more.
    again: Arc<Notify>,
    registered: Arc<RwLock<bool>>,
    connection: Connection,
    /// Of the owner, to the set that was planned last.
    answer: Option<oneshot::Receiver<Outcome>>,
    fetch: Option<JoinHandle<Fetched>>,
    refused: BTreeMap<String, u64>,
    /// What of the fleet's was in force at the last look.
    told: Arc<Documents>,
}

impl Looping {
    async fn run(mut self, mut readiness: watch::Receiver<Readiness>) {
        let mut generation = readiness.borrow_and_update().generation;
        let mut follower = self.follow();
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_fetch: Option<tokio::time::Instant> = None;
        self.told = self.node.applied().clone();
        loop {
            // What comes while the owner is at work is looked at together.
            if self.answer.is_none() {
                block_in_place(|| self.look());
            }
            for order in self.node.orders() {
                if !self.carry_out(order).await {
                    return;
                }
            }
            if self.prefixes() != self.under {
                follower = self.follow();
            }
            if self.fetch.is_none() && last_fetch.is_none_or(|last| last.elapsed() >= FETCH_AGAIN) {
                self.fetch = self.start_fetch();
            }
            if self.answer.is_none()
                && let Some(set) = self.node.plan(self.now())
            {
                block_in_place(|| self.keep());
                let (reply, answer) = oneshot::channel();
                if !self.agent.tell(Command::Fleet(set, reply)) {
                    return;
                }
                self.answer = Some(answer);
            }
            self.show();
            let due = self.node.due().map(|due| due.saturating_sub(self.clock.boot()));
            tokio::select! {
                update = follower.next() => block_in_place(|| self.update(update)),
                outcome = answer(&mut self.answer) => {
                    self.answer = None;
                    let Some(outcome) = outcome else { return };
                    self.answered(outcome);
                }
                fetched = fetched(&mut self.fetch) => {
                    self.fetch = None;
                    last_fetch = match fetched {
                        Some(Ok(objects)) if self.take(&objects) => None,
                        Some(Err(error)) => {
                            log::debug!("fetching lists: {}", error.full());
                            Some(tokio::time::Instant::now())
                        }
                        _ => Some(tokio::time::Instant::now()),
                    };
                }
                changed = readiness.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = readiness.borrow_and_update().generation;
                    if now != generation && self.answer.is_none() {
                        // The policy file is another one: what did not fit beside it may fit now.
                        self.node.others_changed();
                    }
                    generation = now;
                    self.tell_report().await;
                }
                () = sleep(due) => {}
                _ = tick.tick() => {
                    block_in_place(|| self.save_memory());
                    if block_in_place(|| self.look_at_trust()) {
                        follower.relist();
                    }
                    self.tell_report().await;
                }
            }
        }
    }

    fn now(&self) -> Now {
        Now {
            wall: self.clock.wall().as_secs(),
            boot: self.clock.boot(),
        }
    }

    /// Registrations are many, and change whenever a node comes or goes: they are watched only by those who need them.
    fn prefixes(&self) -> Vec<String> {
        let nodes = match self.node.asks_for_nodes() {
            true => "nodes/".to_owned(),
            false => self.own_key.clone(),
        };
        vec!["policies/".to_owned(), "bans/".to_owned(), nodes]
    }

    fn follow(&mut self) -> Follower {
        self.under = self.prefixes();
        let under: Vec<&str> = self.under.iter().map(String::as_str).collect();
        Follower::start(self.store.clone(), &under, self.point.clone(), Timing::default())
    }

    fn update(&mut self, update: Update) {
        let now = self.now();
        self.guard.now = now.wall;
        let contact = !matches!(update, Update::Lost(_));
        if contact {
            self.connection.last_contact = now.wall;
        }
        if contact != self.connection.connected {
            self.connection.connected = contact;
            self.connection.since = now.wall;
        }
        match update {
            Update::All(snapshot) => {
                self.connection.error = None;
                self.point = Some(Point::of(&snapshot));
                if !snapshot.entries.iter().any(|entry| entry.key == self.own_key) {
                    self.again.notify_one();
                }
                let all = Listing {
                    with_nodes: self.under.iter().any(|prefix| prefix == "nodes/"),
                    entries: snapshot
                        .entries
                        .into_iter()
                        .map(|entry| (entry.key, entry.value))
                        .collect(),
                };
                self.node.snapshot(all, &self.guard, now);
            }
            Update::Changes { revision, changes } => {
                self.connection.error = None;
                if let Some(point) = &mut self.point {
                    point.advance(revision, &changes);
                }
                for change in changes {
                    match change {
                        Change::Put(entry) => {
                            self.node.change(&entry.key, Some(entry.value), &self.guard, now);
                        }
                        Change::Delete { key, .. } => {
                            if key == self.own_key {
                                self.again.notify_one();
                            }
                            self.node.change(&key, None, &self.guard, now);
                        }
                    }
                }
            }
            Update::Lost(error) => {
                let text = error.full();
                log::warn!("the fleet's store is out of reach, what is in force stays: {text}");
                self.connection.error = Some(text);
                self.node.lost();
            }
            Update::Back => {
                log::info!("the fleet's store is in reach again");
                self.connection.error = None;
            }
            Update::Replaced(how) => {
                log::warn!("the fleet's store is not the one that was known, what is in force stays: {how}");
                self.node.replaced();
            }
        }
    }

    fn look(&mut self) {
        let now = self.now();
        self.guard.now = now.wall;
        self.node.look(&mut self.guard, now);
        let refusals = self.node.refusals();
        for refusal in &refusals {
            *self.refused.entry(refusal.rejection.word.to_owned()).or_default() += 1;
        }
        self.audit.refused(&refusals, now.wall);
    }

    fn note(&mut self, topic: &'static str, text: String) {
        if self.degraded.get(topic) != Some(&text) {
            log::warn!("{text}");
            self.degraded.insert(topic, text);
        }
    }

    /// Keeps which versions were seen: before something comes in force, and now and then.
    fn save_memory(&mut self) {
        if !self.guard.unsaved {
            return;
        }
        match save_memory(&self.guard.memory, &self.cache) {
            Ok(()) => {
                self.guard.unsaved = false;
                self.degraded.remove("memory");
            }
            Err(error) => self.note("memory", format!("cannot keep which versions were seen: {error}")),
        }
    }

    /// Keeps what is in force and what is about to be. That the disk does not take it hinders nothing else.
    fn keep(&mut self) {
        self.save_memory();
        let keep = self.node.keep();
        let mut result = self.cache.write(&keep, self.point.as_ref());
        if self.node.asks_for_nodes() {
            result = result.and(self.cache.write_members(&keep.members));
        }
        match result {
            Ok(()) => drop(self.degraded.remove("cache")),
            Err(error) => self.note(
                "cache",
                format!("what the fleet says is in force and not kept over a restart: {error}"),
            ),
        }
    }

    fn answered(&mut self, outcome: Outcome) {
        match outcome {
            Ok(_) => {
                self.node.taken();
                block_in_place(|| self.keep());
                self.tell_changes();
            }
            Err(refusal) => {
                let fault = match &refusal {
                    Refusal::Conflict(_) => Fault::Conflict,
                    Refusal::Invalid(_) => Fault::Invalid,
                    Refusal::Missing(_) | Refusal::Failed(_) => Fault::Machine,
                };
                log::warn!("what the fleet says is not in force: {refusal}");
                self.node.refused(fault, &refusal.to_string(), self.now());
            }
        }
    }

    /// False if the owner is gone.
    async fn carry_out(&mut self, order: Order) -> bool {
        let now = self.clock.wall().as_secs();
        let result = match &order.terms {
            Some(terms) => {
                let request = BanRequest {
                    prefix: order.prefix.clone(),
                    for_seconds: terms.until.map(|until| until.saturating_sub(now)),
                    why: terms.why.clone(),
                    force: false,
                };
                let banned = self.agent.ask(|reply| Command::Ban(request, reply)).await;
                banned.map(|banned| banned.map(drop))
            }
            // It was taken back before, and may have been ordered here since.
            None if order.again => return true,
            None => {
                let request = UnbanRequest {
                    prefix: Some(order.prefix.clone()),
                };
                let unbanned = self.agent.ask(|reply| Command::Unban(request, reply)).await;
                unbanned.map(|unbanned| unbanned.map(drop))
            }
        };
        match result {
            Err(_) => return false,
            Ok(Ok(())) => self.audit.ordered(&order, now),
            // What was banned before is, or ended by the word of somebody here.
            Ok(Err(refusal)) if order.again => log::debug!("{}: {refusal}", order.key),
            Ok(Err(refusal)) => {
                let rejection = Rejection::new("not-bannable", refusal.to_string());
                *self.refused.entry(rejection.word.to_owned()).or_default() += 1;
                let refused = Refused {
                    key: order.key,
                    digest: order.digest,
                    version: Some(order.version),
                    signer: Some(order.signer),
                    rejection,
                };
                self.audit.refused(&[refused], now);
            }
        }
        true
    }

    fn tell_changes(&mut self) {
        let now = self.clock.wall().as_secs();
        let applied = self.node.applied().clone();
        for name in applied.differing(&self.told) {
            match (applied.part(&name), self.told.part(&name)) {
                (Some(document), _) => self.audit.changed(document, "in-force", now),
                (None, Some(document)) => self.audit.changed(document, "ended", now),
                (None, None) => {}
            }
        }
        self.told = applied;
    }

    fn start_fetch(&self) -> Option<JoinHandle<Fetched>> {
        let mut wanted = self.node.wanted();
        if wanted.is_empty() {
            return None;
        }
        wanted.truncate(AT_ONCE);
        let store = self.store.clone();
        Some(tokio::spawn(async move {
            let keys: Vec<String> = wanted.iter().map(|digest| format!("lists/{digest}")).collect();
            let entries = store.get(&keys).await?;
            let values = entries.into_iter().map(|entry| entry.map(|entry| entry.value));
            Ok(wanted.into_iter().zip(values).collect())
        }))
    }

    /// True if all of them were there.
    fn take(&mut self, objects: &[(Digest, Option<Bytes>)]) -> bool {
        for (digest, bytes) in objects {
            if let Some(bytes) = bytes {
                self.node.object(*digest, bytes);
            }
        }
        objects.iter().all(|(_, bytes)| bytes.is_some())
    }

    /// True if somebody else is trusted now.
    fn look_at_trust(&mut self) -> bool {
        let now = stamps(&self.fleet);
        if now == self.trust_stamps {
            return false;
        }
        self.trust_stamps = now;
        match read_trust(&self.fleet) {
            Ok(trust) => {
                log::info!("who is trusted was read again");
                self.degraded.remove("trust");
                self.guard.trust = Some(trust);
                self.node.trust_changed(&self.guard);
                true
            }
            Err(error) => {
                self.note("trust", format!("who was trusted before still is: {error}"));
                false
            }
        }
    }

    /// For status and metrics.
    fn show(&self) {
        let rows = self.node.rows();
        let documents = rows.iter().map(|row| {
            let good = row.good.as_ref();
            let (reason, text) = match &row.state {
                State::Rejected(rejection) => (Some(rejection.word.to_owned()), Some(rejection.text.clone())),
                State::Incomplete(lacks) => (None, Some(format!("{lacks} parts of its lists are missing"))),
                _ => (None, None),
            };
            DocumentRow {
                name: row.name.clone(),
                state: row.state.word().to_owned(),
                version: good.map(|good| good.version()),
                signer: good.map(|good| good.verified.signer.clone()),
                digest: good.map(|good| good.digest().to_string()),
                expires: good.and_then(|good| good.verified.statement.expires),
                offered: row
                    .offered
                    .filter(|offered| good.map(|good| good.version()) != Some(*offered)),
                reason,
                text,
            }
        });
        let status = FleetStatus {
            name: self.fleet.labels.node().to_owned(),
            labels: self.fleet.labels.clone().into(),
            store: self.store.name(),
            connected: self.connection.connected,
            since: self.connection.since,
            last_contact: self.connection.last_contact,
            error: self.connection.error.clone(),
            revision: self.point.as_ref().map_or(0, |point| point.revision.0),
            registered: *self.registered.read().unwrap_or_else(PoisonError::into_inner),
            nodes: self.node.registered().nodes().0.len(),
            documents: documents.collect(),
            refused: self.refused.clone(),
            degraded: self.degraded.values().cloned().collect(),
        };
        *self.board.write().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    /// For the fleet.
    async fn tell_report(&self) {
        let Ok(status) = self.agent.ask(Command::Status).await else {
            return;
        };
        let rows = self.node.rows();
        let now = self.clock.wall().as_secs();
        let applied = self.node.applied().parts.iter();
        let report = Report {
            name: self.fleet.labels.node().to_owned(),
            agent: status.version,
            mode: status.mode,
            ready: status.ready,
            generation: status.policy.generation,
            digest: status.policy.digest,
            documents: applied
                .map(|part| {
                    let version = Version {
                        version: part.version(),
                        digest: part.digest().to_string(),
                    };
                    (part.name().to_owned(), version)
                })
                .collect(),
            rejected: rows
                .iter()
                .filter_map(|row| match &row.state {
                    State::Rejected(rejection) => {
                        let rejected = Rejected {
                            word: rejection.word.to_owned(),
                            text: rejection.text.chars().take(500).collect(),
                            version: row.offered,
                        };
                        Some((row.name.clone(), rejected))
                    }
                    _ => None,
                })
                .collect(),
            withheld: rows
                .iter()
                .filter(|row| row.state == State::Withheld)
                .map(|row| row.name.clone())
                .collect(),
            last_error: status.policy.last_error,
            degraded: status.degraded,
            since: now,
        };
        self.report.send_if_modified(|known| {
            let news = report.is_news(known);
            if news {
                *known = report;
            }
            news
        });
    }
}

fn save_memory(memory: &Memory, cache: &Cache) -> std::io::Result<()> {
    let path = cache.memory();
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    memory.save(&path)
}

/// `None` inside: the owner is gone.
async fn answer(waiting: &mut Option<oneshot::Receiver<Outcome>>) -> Option<Outcome> {
    match waiting {
        Some(answer) => answer.await.ok(),
        None => std::future::pending().await,
    }
}

/// `None` inside: it failed in an unexpected way.
async fn fetched(waiting: &mut Option<JoinHandle<Fetched>>) -> Option<Fetched> {
    match waiting {
        Some(task) => task.await.ok(),
        None => std::future::pending().await,
    }
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
