//! The one owner of the data path and of the policy in force. Everything that happens comes to it as a message, one
//! at a time; what takes long (reading and compiling a policy) runs elsewhere and comes back as one.
//!
//! It has a thread of its own, because calls into the kernel wait: a switch for a grace period, an attachment for
//! the driver. Changes of the policy are done one after the other, in the order they were asked for; interfaces are
//! attached in between.
//!
//! What always holds: a policy that was in force stays in force until another one is switched to, whatever fails.

use super::clock::Clock;
use super::config::{Config, Mode};
use super::counters::{Ledger, Totals};
use super::handle::{Command, Outcome, Readiness, Reply};
use super::keeper::Keeper;
use super::links::{Links, Todo};
use super::reload::{Basis, Candidate, Origin, Refusal, Written, chain};
use super::temporary::Deadlines;
use super::views::{egress_word, hex, xdp_word};
use crate::api::types::{Applied, ApplyRequest, Edit};
use crate::datapath::netlink::{self, Watch};
use crate::datapath::{self, Datapath, InForce, NodeConfig};
use crate::monitor::{self, Hub, record::Directory};
use crate::policy::compile::{Compiled, Stats};
use crate::policy::model::Policy;
use crate::store::last_good::LastGood;
use crate::store::policy_file::Seen;
use crate::store::state::State;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// Between sweeps of the gate.
const SWEEP: Duration = Duration::from_secs(60);
/// Longest sleep: timers do not run while the machine is suspended, deadlines do.
const NAP: Duration = Duration::from_secs(5);
/// Images up to this size are kept for `explain`; others are compiled again when it is asked for.
const KEEP_IMAGE: usize = 16 << 20;

pub struct Owner {
    pub(super) config: Config,
    /// `None` once everything is detached.
    pub(super) datapath: Option<Datapath>,
    pub(super) links: Links,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) mode: Mode,
    pub(super) state: State,
    pub(super) in_force: Option<InForce>,
    /// Of the generation in force; `None` if its names are not known.
    pub(super) ledger: Option<Ledger>,
    pub(super) desired: Option<Desired>,
    pub(super) deadlines: Deadlines,
    /// Boot clock: when the next temporary entry ends.
    pub(super) next_end: Option<Duration>,
    pub(super) seen: Option<Seen>,
    pub(super) reload: LastReload,
    jobs: VecDeque<Job>,
    running: Option<(Job, oneshot::Receiver<Done>)>,
    pub(super) next_sweep: Instant,
    pub(super) configure: bool,
    pub(super) notes: BTreeMap<&'static str, String>,
    pub(super) started: Instant,
    pub(super) keeper: Keeper,
    pub(super) out: Outlets,
}

/// Where the owner tells what it did.
pub struct Outlets {
    pub readiness: watch::Sender<Readiness>,
    /// What to watch.
    pub files: watch::Sender<Vec<PathBuf>>,
    pub directory: Arc<RwLock<Directory>>,
    pub hub: Arc<Hub>,
}

/// The policy in force, as far as it is known.
pub(super) struct Desired {
    pub(super) policy: Arc<Policy>,
    pub(super) text: Arc<str>,
    pub(super) compiled: Option<Arc<Compiled>>,
    pub(super) stats: Stats,
    pub(super) warnings: Vec<String>,
    pub(super) applied_at: u64,
}

#[derive(Default)]
pub(super) struct LastReload {
    pub(super) error: Option<String>,
    pub(super) at: Duration,
    pub(super) success_at: Duration,
    pub(super) from_file: bool,
}

struct Job {
    work: Work,
    reply: Option<Reply<Outcome>>,
}

#[derive(Clone)]
enum Work {
    /// `ending`: a temporary entry ends, which it must even if the file has become bad.
    Reload {
        why: &'static str,
        force: bool,
        ending: bool,
    },
    Edit(Edit),
    Apply(ApplyRequest),
}

/// What came of a job, before the kernel is asked.
struct Done {
    result: Result<Ready, Refusal>,
    /// What was looked at; `None` if the job does not tell.
    seen: Option<Seen>,
}

enum Ready {
    Same,
    Policy(Box<Candidate>, Option<Written>),
    /// Of the last good copy, with what is wrong with the file.
    Instead(Box<Candidate>, Refusal),
    WouldBe(Box<Candidate>),
}

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    NoPolicy(String),
    #[error("cannot put the policy in force")]
    Switch(#[source] Refusal),
    #[error("cannot list the network interfaces")]
    Interfaces(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot use the data path")]
    Datapath(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn boxed(error: impl std::error::Error + Send + Sync + 'static) -> Box<dyn std::error::Error + Send + Sync> {
    Box::new(error)
}

impl Owner {
    pub fn new(
        config: Config,
        datapath: Datapath,
        clock: Arc<dyn Clock>,
        boot_id: &str,
        out: Outlets,
    ) -> std::io::Result<Owner> {
        let state = State::read(&config.state_dir, boot_id);
        Ok(Owner {
            links: Links::new(config.interfaces.clone()),
            mode: state.mode(config.mode),
            deadlines: Deadlines::read(&config.state_dir, boot_id),
            keeper: Keeper::start(config.state_dir.clone())?,
            config,
            datapath: Some(datapath),
            clock,
            state,
            in_force: None,
            ledger: None,
            desired: None,
            next_end: None,
            seen: None,
            reload: LastReload::default(),
            jobs: VecDeque::new(),
            running: None,
            next_sweep: Instant::now() + SWEEP,
            configure: false,
            notes: BTreeMap::new(),
            started: Instant::now(),
            out,
        })
    }

    /// From nothing to filtering. In this order, so that no packet is judged by nothing or by a half: policy,
    /// configuration, the gate of replies, and only then the interfaces.
    pub async fn start(&mut self) -> Result<Watch, StartError> {
        let datapath = self
            .datapath
            .as_mut()
            .ok_or_else(|| StartError::NoPolicy("already detached".into()))?;
        self.in_force = datapath
            .in_force()
            .map_err(|error| StartError::Datapath(boxed(error)))?;
        if let Some(in_force) = &self.in_force {
            self.ledger = self.state.ledger(in_force.generation);
            log::info!("generation {} is in force from before", in_force.generation);
        }
        // Watched from before the list is made, so that nothing falls between.
        let watch = Watch::new().map_err(|error| StartError::Interfaces(boxed(error)))?;
        let list = netlink::interfaces().map_err(|error| StartError::Interfaces(boxed(error)))?;
        let todo = self.links.replace(list);

        let basis = self.basis();
        let mut seen = Seen::default();
        let loaded = match basis.reload(true, &mut seen) {
            Ok(Some(candidate)) => Ok(Ready::Policy(Box::new(candidate), None)),
            Ok(None) => Ok(Ready::Same),
            Err(error) => instead(&basis, error),
        };
        match self.finish(
            Work::Reload {
                why: "start",
                force: true,
                ending: false,
            },
            loaded,
            Some(seen),
        ) {
            Ok(_) => {}
            Err(refusal) if self.in_force.is_some() => {
                log::warn!("what was in force before stays in force: {refusal}");
            }
            Err(refusal) => {
                self.leave_nothing();
                return Err(match refusal {
                    Refusal::Failed(_) => StartError::Switch(refusal),
                    refusal => StartError::NoPolicy(self.first_policy(&refusal)),
                });
            }
        }

        self.configure_now()
            .map_err(|error| StartError::Datapath(boxed(error)))?;
        self.sweep();
        let since = Instant::now();
        self.carry_out(todo, since);
        self.detach_strays();
        self.publish();
        Ok(watch)
    }

    /// Takes back the maps that were made for a policy that did not come.
    fn leave_nothing(&mut self) {
        self.datapath = None;
        if let Err(error) = datapath::detach_all(&self.config.pins) {
            log::debug!("{} stays: {}", self.config.pins.display(), chain(&error));
        }
    }

    fn first_policy(&self, refusal: &Refusal) -> String {
        let path = self.config.policy.display();
        format!(
            "there is no policy to put in force, and none was before: {refusal}\n\
             write one to {path}, for example\n\n    \
             version = 1\n\n    \
             [[service]]\n    \
             name  = \"ssh\"\n    \
             ports = [\"tcp/22\"]\n    \
             allow = [\"203.0.113.0/24\"]   # who may come in\n\n\
             check it with `ravelin check {path}`, and start the agent again; with --mode observe nothing is dropped yet"
        )
    }

    /// Until told to stop. True if the data path is to be left in force.
    pub async fn run(
        &mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut watch: Watch,
    ) -> &'static str {
        loop {
            self.start_job();
            if self.configure && commands.is_empty() {
                self.configure = false;
                if let Err(error) = self.configure_now() {
                    self.note(
                        "configure",
                        Some(format!("the own addresses are out of date: {}", chain(&error))),
                    );
                } else {
                    self.notes.remove("configure");
                }
            }
            self.publish();
            let wake = self.wake();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Stop(why)) => return why,
                    Some(command) => if let Some(why) = self.command(command) { return why },
                    None => return "nobody is left to talk to",
                },
                change = watch.next() => {
                    let since = Instant::now();
                    match change {
                        Ok(change) => {
                            log::debug!("interfaces: {change:?}");
                            let todo = self.links.change(change);
                            self.carry_out(todo, since);
                        }
                        Err(error) => {
                            log::error!("lost the watch on interfaces, making a new one: {error}");
                            watch = self.watch_again(watch).await;
                        }
                    }
                }
                done = job(&mut self.running) => {
                    if let Some((job, _)) = self.running.take() {
                        let outcome = match done {
                            Ok(done) => self.finish(job.work, done.result, done.seen),
                            Err(_) => Err(Refusal::Failed("reading the policy failed in an unexpected way".into())),
                        };
                        if let Some(reply) = job.reply {
                            // Who asked may have gone away.
                            let _ = reply.send(outcome);
                        }
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => self.tick(),
            }
        }
    }

    async fn watch_again(&mut self, broken: Watch) -> Watch {
        drop(broken);
        loop {
            match Watch::new() {
                Ok(watch) => {
                    self.relist(Instant::now());
                    return watch;
                }
                Err(error) => {
                    log::error!("cannot watch interfaces: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn wake(&self) -> Instant {
        let now = Instant::now();
        let mut wake = self.next_sweep.min(now + NAP);
        if let Some(retry) = self.links.next_retry() {
            wake = wake.min(retry);
        }
        if let Some(end) = self.next_end {
            wake = wake.min(now + end.saturating_sub(self.clock.boot()));
        }
        wake
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            self.sweep();
        }
        for index in self.links.due(now) {
            self.attach(index, now);
        }
        if self.next_end.is_some_and(|end| end <= self.clock.boot()) {
            self.next_end = None;
            let work = Work::Reload {
                why: "a temporary entry ends",
                force: true,
                ending: true,
            };
            self.jobs.push_back(Job { work, reply: None });
        }
    }

    fn sweep(&mut self) {
        let Some(datapath) = &self.datapath else { return };
        match datapath.seed_gate() {
            Ok(()) => self.note("gate", None),
            Err(error) => {
                let text = format!(
                    "replies to what this host opened before the agent started may be dropped: {}",
                    chain(&error)
                );
                self.note("gate", Some(text));
            }
        }
    }

    fn note(&mut self, topic: &'static str, text: Option<String>) {
        match text {
            Some(text) if self.notes.get(topic) != Some(&text) => {
                log::warn!("{text}");
                self.notes.insert(topic, text);
            }
            Some(_) => {}
            None => {
                self.notes.remove(topic);
            }
        }
    }

    /// Gives the reason if it was the last one.
    fn command(&mut self, command: Command) -> Option<&'static str> {
        // A reply that nobody waits for any more is no loss.
        match command {
            Command::Status(reply) => drop(reply.send(self.status())),
            Command::Services(reply) => drop(reply.send(self.services())),
            Command::Rules(reply) => drop(reply.send(self.rules())),
            Command::Counters(reply) => drop(reply.send(self.counter_rows())),
            Command::Scrape(reply) => drop(reply.send(self.scrape())),
            Command::PolicyText(reply) => {
                drop(reply.send(self.desired.as_ref().map(|desired| desired.text.to_string())));
            }
            Command::Explain(reply) => drop(reply.send(self.explain_basis())),
            Command::Suppressed(reply) => {
                let total = self.suppressed().iter().map(|(_, count)| count).sum();
                self.out.hub.suppressed(total);
                let _ = reply.send(total);
            }
            Command::Reload { why, force, reply } => {
                let waiting =
                    |job: &Job| matches!(job.work, Work::Reload { force: waiting, .. } if waiting || !force);
                if reply.is_some() || !self.jobs.iter().any(waiting) {
                    self.jobs.push_back(Job {
                        work: Work::Reload {
                            why,
                            force,
                            ending: false,
                        },
                        reply,
                    });
                }
            }
            Command::Edit(edit, reply) => self.jobs.push_back(Job {
                work: Work::Edit(edit),
                reply: Some(reply),
            }),
            Command::Apply(apply, reply) => self.jobs.push_back(Job {
                work: Work::Apply(apply),
                reply: Some(reply),
            }),
            Command::Mode(mode, reply) => drop(reply.send(self.set_mode(mode))),
            Command::Detach(reply) => {
                let result = self.detach();
                let done = result.is_ok();
                drop(reply.send(result));
                if done {
                    return Some("detached");
                }
            }
            Command::Listen(events) => {
                let result = self
                    .datapath
                    .as_mut()
                    .map(|datapath| datapath.listen(events, monitor::PER_SECOND));
                if let Some(Err(error)) = result {
                    log::error!("cannot turn events on or off: {}", chain(&error));
                }
                let total = self.suppressed().iter().map(|(_, count)| count).sum();
                self.out.hub.suppressed(total);
            }
            Command::Note(topic, text) => self.note(topic, text),
            Command::Stop(why) => return Some(why),
        }
        None
    }

    // --- policy

    fn basis(&self) -> Basis {
        Basis {
            path: self.config.policy.clone(),
            state_dir: self.config.state_dir.clone(),
            clock: self.clock.clone(),
            deadlines: self.deadlines.clone(),
            policy: self.desired.as_ref().map(|desired| desired.policy.clone()),
            seen: self.seen.clone(),
        }
    }

    fn start_job(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some(job) = self.jobs.pop_front() else { return };
        let (basis, work) = (self.basis(), job.work.clone());
        let (done, result) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            // The owner takes what comes of it, unless it has stopped.
            let _ = done.send(perform(&basis, work));
        });
        self.running = Some((job, result));
    }

    /// Takes what came of a job to the kernel.
    fn finish(&mut self, work: Work, result: Result<Ready, Refusal>, seen: Option<Seen>) -> Outcome {
        if let Some(seen) = seen {
            self.out.files.send_if_modified(|files| {
                let mut now: Vec<PathBuf> = vec![self.config.policy.clone()];
                now.extend(seen.lists.keys().cloned());
                let changed = *files != now;
                *files = now;
                changed
            });
            self.seen = Some(seen);
        }
        let reload = matches!(work, Work::Reload { .. });
        let outcome = match result {
            Ok(Ready::Same) => return Ok(self.unchanged()),
            Ok(Ready::WouldBe(candidate)) => {
                return Ok(Applied {
                    warnings: candidate.warnings,
                    diff: candidate.diff,
                    digest: hex(&candidate.compiled.digest),
                    generation: self.in_force.as_ref().map_or(0, |in_force| in_force.generation),
                    changed: false,
                });
            }
            Ok(Ready::Policy(candidate, written)) => {
                let outcome = self.put_in_force(*candidate, work.why());
                if let (Err(_), Some(written)) = (&outcome, written) {
                    written.undo();
                    // Whatever stands there now is not what was looked at.
                    self.seen = None;
                }
                outcome
            }
            Ok(Ready::Instead(candidate, refusal)) => match self.put_in_force(*candidate, work.why()) {
                Ok(applied) => {
                    log::warn!(
                        "the last good policy is in force instead (generation {})",
                        applied.generation
                    );
                    self.failed(&refusal);
                    return Ok(applied);
                }
                Err(_) => Err(refusal),
            },
            Err(refusal) => Err(refusal),
        };
        match &outcome {
            Ok(_) => {
                let now = self.clock.wall();
                self.reload = LastReload {
                    error: None,
                    at: now,
                    success_at: now,
                    from_file: true,
                };
            }
            Err(refusal) if reload => self.failed(refusal),
            // What was refused before the file was touched concerns only who asked.
            Err(refusal) => log::warn!("refused: {refusal}"),
        }
        outcome
    }

    fn failed(&mut self, refusal: &Refusal) {
        let text = refusal.to_string();
        log::error!("the policy is not taken: {text}");
        self.reload.at = self.clock.wall();
        self.reload.error = Some(text);
        self.reload.from_file = false;
    }

    fn unchanged(&self) -> Applied {
        Applied {
            generation: self.in_force.as_ref().map_or(0, |in_force| in_force.generation),
            digest: self
                .in_force
                .as_ref()
                .map(|in_force| hex(&in_force.digest))
                .unwrap_or_default(),
            changed: false,
            warnings: self
                .desired
                .as_ref()
                .map(|desired| desired.warnings.clone())
                .unwrap_or_default(),
            diff: Vec::new(),
        }
    }

    fn put_in_force(&mut self, candidate: Candidate, why: &str) -> Outcome {
        let begun = Instant::now();
        let Some(datapath) = self.datapath.as_mut() else {
            return Err(Refusal::Failed("everything is detached".into()));
        };
        let same_image = self
            .in_force
            .as_ref()
            .is_some_and(|in_force| in_force.digest == candidate.compiled.digest);
        // Without names, those of the same image are as good as any.
        let same_names = self
            .ledger
            .as_ref()
            .is_none_or(|ledger| ledger.names() == candidate.names);
        let changed = !(same_image && same_names);
        let generation = match (&self.in_force, changed) {
            (Some(in_force), false) => in_force.generation,
            (in_force, _) => {
                in_force
                    .as_ref()
                    .map_or(0, |one| one.generation)
                    .max(self.state.newest())
                    + 1
            }
        };
        let mut directory = self.out.directory.write().unwrap_or_else(PoisonError::into_inner);
        directory.add_generation(generation, &candidate.names);
        drop(directory);
        if changed {
            self.state.prepare(generation, &candidate.names);
            save_state(&self.state, &self.config);
            let retired = datapath
                .switch(&candidate.compiled, generation)
                .map_err(|error| {
                    Refusal::Failed(format!("the kernel did not take the policy: {}", chain(&error)))
                })?;
            let base = self.ledger.take().unwrap_or_default();
            self.ledger = Some(base.turn(retired.as_ref(), generation, candidate.names));
            self.in_force = Some(InForce {
                generation,
                digest: candidate.compiled.digest,
            });
        } else if self.ledger.is_none() {
            self.ledger = Some(Ledger::new(generation, candidate.names, Totals::default()));
        }
        if let Some(ledger) = &self.ledger {
            self.state.commit(ledger);
            save_state(&self.state, &self.config);
        }

        for entry in &candidate.ended {
            log::info!("ended: {}", entry.entry);
        }
        if self.deadlines != candidate.deadlines {
            self.deadlines = candidate.deadlines;
            if let Err(error) = self.deadlines.write(&self.config.state_dir) {
                log::warn!("cannot keep the deadlines of temporary entries: {error}");
            }
        }
        self.next_end = self
            .deadlines
            .next(&*self.clock)
            .map(|left| self.clock.boot() + left);
        if candidate.origin == Origin::File {
            self.keeper.keep(LastGood {
                generation,
                ..candidate.source.clone()
            });
        }
        let digest = hex(&candidate.compiled.digest);
        let known = self
            .desired
            .as_ref()
            .map(|desired| desired.warnings.as_slice())
            .unwrap_or_default();
        for warning in candidate
            .warnings
            .iter()
            .filter(|warning| !known.contains(warning))
        {
            log::warn!("{warning}");
        }
        let stats = candidate.compiled.stats;
        self.desired = Some(Desired {
            policy: Arc::new(candidate.policy),
            text: candidate.source.text.into(),
            stats,
            compiled: (candidate.compiled.image.len() <= KEEP_IMAGE).then(|| Arc::new(candidate.compiled)),
            warnings: candidate.warnings.clone(),
            applied_at: self.clock.wall().as_secs(),
        });
        if changed {
            log::info!(
                "generation {generation} is in force ({why}): {} services, {} rules, {} prefixes, {} classes, image {} \
                 KiB, digest {}, switched in {:.1} ms",
                stats.services,
                stats.rules,
                stats.prefixes_v4 + stats.prefixes_v6,
                stats.classes,
                stats.image_bytes / 1024,
                &digest[..16],
                begun.elapsed().as_secs_f64() * 1e3,
            );
        } else {
            log::info!("generation {generation} stays in force ({why}): the policy means the same");
        }
        Ok(Applied {
            generation,
            digest,
            changed,
            warnings: candidate.warnings,
            diff: candidate.diff,
        })
    }

    // --- interfaces

    fn relist(&mut self, since: Instant) {
        match netlink::interfaces() {
            Ok(list) => {
                let todo = self.links.replace(list);
                self.carry_out(todo, since);
            }
            Err(error) => log::error!("cannot list the interfaces: {}", chain(&error)),
        }
    }

    fn carry_out(&mut self, todo: Todo, since: Instant) {
        for index in todo.attach {
            self.attach(index, since);
        }
        for (index, name) in todo.gone {
            log::info!("interface {name} ({index}) is gone");
            self.detach_one(index, &name);
        }
        for (index, name) in todo.detach {
            log::warn!(
                "interface {name} ({index}) is not among those asked for any more: not filtered from now on"
            );
            self.detach_one(index, &name);
        }
        self.configure |= todo.own_addresses;
        let names = self
            .links
            .known()
            .map(|interface| (interface.index, interface.name.clone()))
            .collect();
        self.out
            .directory
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .interfaces = names;
        if todo.relist {
            log::debug!("changes of interfaces were lost, listing anew");
            self.relist(since);
        }
    }

    fn attach(&mut self, index: u32, since: Instant) {
        let (Some(interface), Some(datapath)) = (self.links.get(index).cloned(), self.datapath.as_mut())
        else {
            return;
        };
        match datapath.attach(&interface) {
            Ok(attachment) => {
                log::info!(
                    "interface {} ({index}): {} XDP{}, egress by {}{}",
                    interface.name,
                    xdp_word(attachment.xdp),
                    if attachment.frags {
                        ""
                    } else {
                        " without jumbo frames"
                    },
                    egress_word(attachment.egress),
                    attachment
                        .detail
                        .as_deref()
                        .map(|detail| format!(" ({detail})"))
                        .unwrap_or_default(),
                );
                log::debug!(
                    "{} was attached {:.1} ms after its event",
                    interface.name,
                    since.elapsed().as_secs_f64() * 1e3
                );
                self.links.attached(index, attachment);
            }
            Err(error) => {
                let text = chain(&error);
                let wait = self.links.refused(index, text.clone(), Instant::now());
                log::warn!(
                    "interface {} ({index}) is not filtered, trying again in {wait:?}: {text}",
                    interface.name
                );
            }
        }
    }

    /// What an earlier agent attached to and this one is not asked to.
    fn detach_strays(&mut self) {
        let attached = match self.datapath.as_ref().map(Datapath::attached) {
            Some(Ok(attached)) => attached,
            Some(Err(error)) => {
                return log::warn!("cannot tell what an earlier agent attached to: {}", chain(&error));
            }
            None => return,
        };
        for index in attached {
            match self.links.get(index).cloned() {
                Some(interface) if self.links.wanted(&interface) => {}
                Some(interface) => {
                    log::warn!(
                        "interface {} ({index}) is not among those asked for: not filtered from now on",
                        interface.name
                    );
                    self.detach_one(index, &interface.name);
                }
                None => self.detach_one(index, "that is gone"),
            }
        }
    }

    fn detach_one(&mut self, index: u32, name: &str) {
        if let Some(Err(error)) = self.datapath.as_mut().map(|datapath| datapath.detach(index)) {
            log::debug!("detaching {name} ({index}): {}", chain(&error));
        }
    }

    // --- node configuration

    pub(super) fn node_config(&self) -> NodeConfig {
        NodeConfig {
            observe: self.mode == Mode::Observe,
            link_control: self.config.link_control,
            failsafe: self.config.failsafe_entries(),
            own: self.links.own_addresses(),
        }
    }

    fn configure_now(&mut self) -> Result<(), datapath::DatapathError> {
        let config = self.node_config();
        self.configure = false;
        self.datapath
            .as_mut()
            .map_or(Ok(()), |datapath| datapath.configure(&config))
    }

    fn set_mode(&mut self, mode: Mode) -> Result<(), Refusal> {
        let before = self.mode;
        self.mode = mode;
        if let Err(error) = self.configure_now() {
            self.mode = before;
            return Err(Refusal::Failed(format!(
                "the kernel did not take the mode: {}",
                chain(&error)
            )));
        }
        self.state.set_mode(mode, self.config.mode);
        save_state(&self.state, &self.config);
        log::info!("mode: {mode}");
        Ok(())
    }

    fn detach(&mut self) -> Result<Vec<String>, Refusal> {
        self.datapath = None;
        let removed = datapath::detach_all(&self.config.pins).map_err(|error| {
            Refusal::Failed(format!("not everything could be detached: {}", chain(&error)))
        })?;
        log::warn!("detached: this host is not filtered any more");
        Ok(removed)
    }

    /// The last thing. Says what stays.
    pub fn stop(mut self, why: &str) {
        let mut names: Vec<String> = self
            .links
            .states()
            .map(|(interface, _)| interface.name.clone())
            .collect();
        names.sort();
        if self.datapath.is_some() && self.config.detach_on_exit {
            if let Err(error) = self.detach() {
                log::error!("{error}");
            }
        } else if self.datapath.is_some() {
            if let Some(Err(error)) = self.datapath.as_mut().map(|datapath| datapath.listen(0, 0)) {
                log::debug!("turning events off: {}", chain(&error));
            }
            let generation = self.in_force.as_ref().map_or(0, |in_force| in_force.generation);
            log::info!(
                "stopping ({why}); generation {generation} stays in force on {}; `ravelin detach` would take it off",
                if names.is_empty() {
                    "no interface".to_owned()
                } else {
                    names.join(", ")
                }
            );
        }
        self.keeper.finish();
    }
}

/// Waits for the running job; forever if there is none.
async fn job(
    running: &mut Option<(Job, oneshot::Receiver<Done>)>,
) -> Result<Done, oneshot::error::RecvError> {
    match running {
        Some((_, done)) => done.await,
        None => std::future::pending().await,
    }
}

fn perform(basis: &Basis, work: Work) -> Done {
    let mut seen = Seen::default();
    let boxed = |(candidate, written)| Ready::Policy(Box::new(candidate), written);
    match work {
        Work::Reload { force, ending, .. } => {
            let result = match basis.reload(force, &mut seen) {
                Ok(Some(candidate)) => Ok(boxed((candidate, None))),
                Ok(None) => Ok(Ready::Same),
                Err(refusal) if ending => instead(basis, refusal),
                Err(refusal) => Err(refusal),
            };
            Done {
                result,
                seen: Some(seen),
            }
        }
        // What was refused did not change the file, so it tells nothing about it.
        Work::Edit(change) => {
            let result = basis.edit(&change, &mut seen).map(boxed);
            Done {
                seen: result.is_ok().then_some(seen),
                result,
            }
        }
        Work::Apply(request) if request.dry_run => {
            let result = basis
                .try_apply(&request.text)
                .map(|candidate| Ready::WouldBe(Box::new(candidate)));
            Done { result, seen: None }
        }
        Work::Apply(request) => {
            let result = basis.apply(&request.text, &mut seen).map(boxed);
            Done {
                seen: result.is_ok().then_some(seen),
                result,
            }
        }
    }
}

/// The last good policy, because the file is not.
fn instead(basis: &Basis, refusal: Refusal) -> Result<Ready, Refusal> {
    match basis.last_good() {
        Ok(Some(candidate)) => Ok(Ready::Instead(Box::new(candidate), refusal)),
        Ok(None) => Err(refusal),
        Err(error) => {
            log::warn!("the last good policy cannot be used: {error}");
            Err(refusal)
        }
    }
}

impl Work {
    fn why(&self) -> &'static str {
        match self {
            Work::Reload { why, .. } => why,
            Work::Edit(_) => "edit",
            Work::Apply(_) => "apply",
        }
    }
}

fn save_state(state: &State, config: &Config) {
    if let Err(error) = state.write(&config.state_dir) {
        log::warn!("cannot keep the totals of counters: {error}");
    }
}
