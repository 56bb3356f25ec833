//! Staying up to date with a store through all its faults: the loop that connects, lists, watches, notices that it is cut off,
//! waits and resumes.
//!
//! What always holds: after an [`Update::All`], and with every [`Update::Changes`] after it, the follower's user knows the keys
//! as they were at one revision, whatever happened in between. What came from another history (a wiped store, one restored
//! from a backup) is told as such before it is told: [`Update::Replaced`].
//!
//! A watch is resumed after the last change, without a list. Lists are made at the start, when the store says that changes are
//! lost, and every ten minutes or so, because watches have lost deletes.

use super::shared::{Change, ErrorKind, Event, Holds, Point, Revision, Snapshot, Store, StoreError, Watch};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

#[derive(Clone, Debug)]
pub enum Update {
    /// What is there, all of it: at the start, and whenever it was listed again.
    All(Snapshot),
    Changes {
        revision: Revision,
        changes: Vec<Change>,
    },
    /// Out of reach from now on: once for each outage, and again when its cause changes. What is known stays known.
    Lost(StoreError),
    /// In reach again after [`Update::Lost`], with no change missed: they follow, or everything does.
    Back,
    /// The store is not the one that was followed: another cluster, or an older state of the same, and how that shows. An
    /// [`Update::All`] follows.
    Replaced(String),
}

/// How patient a follower is.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Everything is listed again after about so long.
    pub relist: Duration,
    /// A stream that says nothing for so long is dead. Stores give a sign of life more often than that.
    pub silence: Duration,
    /// The first wait after a failure is at most this; each further one up to twice the one before.
    pub shortest_wait: Duration,
    pub longest_wait: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            relist: Duration::from_secs(600),
            silence: Duration::from_secs(30),
            shortest_wait: Duration::from_millis(250),
            longest_wait: Duration::from_secs(15),
        }
    }
}

/// Follows the keys below some prefixes. Dropping it ends that.
pub struct Follower {
    updates: mpsc::Receiver<Update>,
    relist: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

/// Changes that wait for the user; the store keeps those beyond.
const AHEAD: usize = 16;

impl Follower {
    /// Begins with everything below these prefixes.
    pub fn new(store: Arc<dyn Store>, under: &[&str]) -> Follower {
        Follower::start(store, under, None, Timing::default())
    }

    /// The same, for somebody who knew the store before: if it is not the one that was known, that is the first thing told.
    pub fn start(store: Arc<dyn Store>, under: &[&str], known: Option<Point>, timing: Timing) -> Follower {
        let (sender, updates) = mpsc::channel(AHEAD);
        let relist = Arc::new(Notify::new());
        let following = Following {
            store,
            under: under.iter().map(|&prefix| prefix.to_owned()).collect(),
            timing,
            known,
            positions: Vec::new(),
            listed: None,
            lost: None,
            relist: relist.clone(),
            updates: sender,
            waits: Waits::new(timing),
        };
        Follower {
            updates,
            relist,
            task: tokio::spawn(following.run()),
        }
    }

    /// Waits for what is new. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Update {
        match self.updates.recv().await {
            Some(update) => update,
            // The task ends when this is dropped; else it has panicked, and nothing comes any more.
            None => std::future::pending().await,
        }
    }

    /// Lists everything now, rather than when it is time.
    pub fn relist(&self) {
        self.relist.notify_one();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Following {
    store: Arc<dyn Store>,
    under: Vec<String>,
    timing: Timing,
    known: Option<Point>,
    /// What is known of each prefix: a watch may be behind with one and not with another.
    positions: Vec<Revision>,
    /// When the next list is due; none before the first.
    listed: Option<Instant>,
    /// What was told of the outage that lasts.
    lost: Option<String>,
    relist: Arc<Notify>,
    updates: mpsc::Sender<Update>,
    waits: Waits,
}

/// Nobody listens any more.
struct Gone;

enum Interrupted {
    Fault(StoreError),
    Gone,
}

impl From<StoreError> for Interrupted {
    fn from(error: StoreError) -> Interrupted {
        Interrupted::Fault(error)
    }
}

impl From<Gone> for Interrupted {
    fn from(_: Gone) -> Interrupted {
        Interrupted::Gone
    }
}

impl Following {
    async fn run(mut self) {
        loop {
            let Interrupted::Fault(error) = self.follow().await else {
                return;
            };
            let text = error.full();
            if self.lost.as_ref() != Some(&text) {
                self.lost = Some(text);
                if self.tell(Update::Lost(error)).await.is_err() {
                    return;
                }
            }
            let wait = self.waits.longer();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.updates.closed() => return,
            }
        }
    }

    /// Follows until something goes wrong.
    async fn follow(&mut self) -> Interrupted {
        loop {
            if let Err(interrupted) = self.list_and_watch().await {
                return interrupted;
            }
        }
    }

    /// Lists if that is due, watches, and returns when a list is due again.
    async fn list_and_watch(&mut self) -> Result<(), Interrupted> {
        let under = self.under.clone();
        if self.listed.is_none_or(|due| due <= Instant::now()) {
            self.check().await?;
            let under: Vec<&str> = under.iter().map(String::as_str).collect();
            let snapshot = self.store.snapshot(&under).await?;
            self.known = Some(Point::of(&snapshot));
            self.positions = vec![snapshot.revision; under.len()];
            self.back().await?;
            self.tell(Update::All(snapshot)).await?;
            self.listed = Some(Instant::now() + self.waits.about(self.timing.relist));
        }
        let from: Vec<(&str, Revision)> = under
            .iter()
            .map(String::as_str)
            .zip(self.positions.iter().copied())
            .collect();
        let watch = self.store.watch(&from).await?;
        // Once more now that the watch stands, which ends with the process that tells it: a revision that another history has not
        // reached yet can be watched in silence.
        if !self.check().await? {
            return Ok(());
        }
        self.back().await?;
        self.watch(watch).await
    }

    /// Whether the store is still the one that is known. If not, that is told, and a list is due.
    async fn check(&mut self) -> Result<bool, Interrupted> {
        let Some(point) = &self.known else {
            return Ok(true);
        };
        let Holds::No(how) = self.store.holds(point).await? else {
            return Ok(true);
        };
        self.known = None;
        self.listed = None;
        self.back().await?;
        self.tell(Update::Replaced(how)).await?;
        Ok(false)
    }

    async fn watch(&mut self, mut watch: Watch) -> Result<(), Interrupted> {
        let due = self.listed.unwrap_or_else(Instant::now);
        loop {
            let silent = Instant::now() + self.timing.silence;
            let event = tokio::select! {
                event = watch.next() => event?,
                () = self.relist.notified() => {
                    self.listed = None;
                    return Ok(());
                }
                () = tokio::time::sleep_until(due) => return Ok(()),
                () = tokio::time::sleep_until(silent) => return Err(Interrupted::Fault(StoreError::new(
                    ErrorKind::Transient,
                    self.store.name(),
                    "watching",
                    format!("it said nothing for {} seconds", self.timing.silence.as_secs()),
                ))),
            };
            match event {
                Event::Changes {
                    under,
                    revision,
                    changes,
                } => {
                    if let Some(position) = self.positions.get_mut(under) {
                        *position = revision.max(*position);
                    }
                    if let Some(point) = &mut self.known {
                        point.advance(revision, &changes);
                    }
                    if !changes.is_empty() {
                        self.tell(Update::Changes { revision, changes }).await?;
                    }
                }
                Event::Alive => {}
                Event::Relist(why) => {
                    log::debug!("{}: listing everything again: {why}", self.store.name());
                    self.listed = None;
                    return Ok(());
                }
            }
            // It lives: the next failure is the first of its kind.
            self.waits.reset();
        }
    }

    async fn back(&mut self) -> Result<(), Gone> {
        match self.lost.take() {
            Some(_) => self.tell(Update::Back).await,
            None => Ok(()),
        }
    }

    async fn tell(&self, update: Update) -> Result<(), Gone> {
        self.updates.send(update).await.map_err(|_| Gone)
    }
}

/// Waits between attempts: longer and longer, and different for each follower, so that a thousand of them do not come
/// back at once.
pub struct Waits {
    timing: Timing,
    random: RandomState,
    drawn: u64,
    failures: u32,
}

impl Waits {
    pub fn new(timing: Timing) -> Waits {
        Waits {
            timing,
            random: RandomState::new(),
            drawn: 0,
            failures: 0,
        }
    }

    pub fn longer(&mut self) -> Duration {
        let longest = self
            .timing
            .shortest_wait
            .saturating_mul(1 << self.failures.min(20))
            .min(self.timing.longest_wait);
        self.failures = self.failures.saturating_add(1);
        // Never nothing at all: what fails at once would be tried in a circle.
        longest.mul_f64(0.2 + 0.8 * self.draw())
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }

    fn about(&mut self, time: Duration) -> Duration {
        time.mul_f64(0.75 + 0.5 * self.draw())
    }

    /// From 0 to 1.
    fn draw(&mut self) -> f64 {
        self.drawn += 1;
        f64::from(self.random.hash_one(self.drawn) as u32) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests;
