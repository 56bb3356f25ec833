//! The one owner of the data path and of the policy in force. Everything that happens comes to it as a message, one
//! at a time; what takes long (reading and compiling a policy) runs elsewhere and comes back as one.
//!
//! It has a thread of its own, because calls into the kernel wait: a switch for a grace period, an attachment for
//! the driver. Changes of the policy are done one after the other, in the order they were asked for; interfaces are
//! attached in between.
//!
//! What always holds: a policy that was in force stays in force until another one is switched to, whatever fails.

use super::banning::Bans;
use super::challenge::Challenge;
use super::clock::Clock;
use super::config::{Config, Mode};
use super::counters::Ledger;
use super::drift::Drifting;
use super::fleet;
use super::handle::{Command, Readiness};
use super::jobs::{Done, Job, Ready, Work, instead, job};
use super::keeper::Keeper;
use super::limiting::Limiting;
use super::links::{Links, State as LinkState};
use super::reload::{Refusal, chain};
use super::temporary::Deadlines;
use crate::datapath::netlink::{self, Watch};
use crate::datapath::{self, Datapath, InForce, NodeConfig};
use crate::detect::watch::Board;
use crate::fleet::documents::Documents;
use crate::monitor::{self, Hub, record::Directory};
use crate::policy::compile::{Compiled, Scope, Stats};
use crate::policy::model::Policy;
use crate::store::Durable;
use crate::store::policy_file::Seen;
use crate::store::state::State;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// Between sweeps of the gate.
const SWEEP: Duration = Duration::from_secs(60);
/// Between looks at whether what was attached still is: the kernel does not tell. An interface costs two or three short
/// calls.
const CHECK: Duration = Duration::from_millis(250);
/// After a change of an interface, which may have been about that.
const CHECK_SOON: Duration = Duration::from_millis(20);
/// Longest sleep: timers do not run while the machine is suspended, deadlines do.
const NAP: Duration = Duration::from_secs(5);

pub struct Owner {
    pub(super) config: Config,
    /// `None` before the start, and once everything is detached.
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
    /// What [`Owner::read_policy`] found, until it is put in force.
    first: Option<(Result<Ready, Refusal>, Seen)>,
    pub(super) reload: LastReload,
    pub(super) jobs: VecDeque<Job>,
    pub(super) running: Option<(Job, oneshot::Receiver<Done>)>,
    pub(super) next_sweep: Instant,
    pub(super) next_check: Instant,
    pub(super) last_check: Instant,
    /// Why the agent ends, if it is not by request.
    pub(super) failure: Option<String>,
    pub(super) configure: bool,
    pub(super) notes: BTreeMap<&'static str, String>,
    pub(super) started: Instant,
    /// That the flow table fills up was logged.
    flows_told: bool,
    pub(super) limiting: Limiting,
    pub(super) bans: Bans,
    pub(super) challenge: Challenge,
    pub(super) keeper: Keeper,
    /// What the fleet says, as it is in force; `None` without a fleet.
    pub(super) documents: Option<Arc<Documents>>,
    /// There was no policy at the start, so nothing is attached.
    pub(super) started_without: bool,
    pub(super) drift: Drifting,
    pub(super) out: Outlets,
}

/// Where the owner tells what it did.
pub struct Outlets {
    pub readiness: watch::Sender<Readiness>,
    /// What to watch.
    pub files: watch::Sender<Vec<PathBuf>>,
    pub directory: Arc<RwLock<Directory>>,
    pub hub: Arc<Hub>,
    /// What detection has found.
    pub board: Board,
    /// How it stands with the fleet.
    pub fleet: fleet::Board,
}

/// The policy in force, as far as it is known.
pub(super) struct Desired {
    pub(super) policy: Arc<Policy>,
    pub(super) text: Arc<str>,
    /// There is a policy file.
    pub(super) local: bool,
    pub(super) compiled: Option<Arc<Compiled>>,
    /// By their number in the image.
    pub(super) scopes: Arc<[Scope]>,
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
    pub fn new(config: Config, clock: Arc<dyn Clock>, boot_id: &str, out: Outlets) -> std::io::Result<Owner> {
        let mut state = State::read(&config.state_dir, boot_id);
        if config.mode_by_flag {
            state.set_mode(config.mode, config.mode);
        }
        Ok(Owner {
            links: Links::new(config.interfaces.clone()),
            mode: state.mode(config.mode),
            deadlines: Deadlines::read(&config.state_dir, boot_id),
            keeper: Keeper::start(config.state_dir.clone())?,
            config,
            datapath: None,
            clock,
            state,
            in_force: None,
            ledger: None,
            desired: None,
            next_end: None,
            seen: None,
            first: None,
            reload: LastReload::default(),
            jobs: VecDeque::new(),
            running: None,
            next_sweep: Instant::now() + SWEEP,
            next_check: Instant::now() + CHECK,
            last_check: Instant::now(),
            failure: None,
            configure: false,
            notes: BTreeMap::new(),
            started: Instant::now(),
            flows_told: false,
            limiting: Limiting::default(),
            bans: Bans::new(boot_id),
            challenge: Challenge::default(),
            documents: None,
            started_without: false,
            drift: Drifting::new(Instant::now()),
            out,
        })
    }

    /// Makes the first policy ready, without touching the kernel. `needed`: nothing can be in force from before. `of_fleet`: what
    /// the fleet said before, the newest first; a node of a fleet waits for more if that is nothing.
    ///
    /// # Errors
    /// There is none, and it is needed.
    pub fn read_policy(&mut self, needed: bool, of_fleet: Vec<Arc<Documents>>) -> Result<(), StartError> {
        let mut sets: Vec<Option<Arc<Documents>>> = of_fleet.into_iter().map(Some).collect();
        let of_fleet = !sets.is_empty();
        if sets.is_empty() {
            sets.push(None);
        }
        let mut refused = None;
        for set in &sets {
            self.documents.clone_from(set);
            let (basis, mut seen) = (self.basis(false), Seen::default());
            match basis.reload(true, &mut seen) {
                Ok(Some(candidate)) => {
                    self.first = Some((Ok(Ready::Policy(Box::new(candidate), None)), seen));
                    return Ok(());
                }
                Ok(None) => {
                    self.first = Some((Ok(Ready::Same), seen));
                    return Ok(());
                }
                Err(refusal) => drop(refused.get_or_insert((refusal, seen))),
            }
        }
        let (refusal, seen) = refused.unwrap_or_else(|| {
            (
                Refusal::Missing("the policy was not read".into()),
                Seen::default(),
            )
        });
        for set in sets {
            self.documents = set;
            let basis = self.basis(false);
            if let Ok(loaded) = instead(&basis, refusal.clone()) {
                self.first = Some((Ok(loaded), seen));
                return Ok(());
            }
            // A policy file that was never good does not hinder what the fleet says.
            if let (true, Ok((candidate, Some(of_file)))) = (of_fleet, basis.fleet(&mut Seen::default())) {
                self.first = Some((Ok(Ready::Instead(Box::new(candidate), of_file)), seen));
                return Ok(());
            }
        }
        if needed && !of_fleet {
            return Err(StartError::NoPolicy(self.first_policy(&refusal)));
        }
        self.first = Some((Err(refusal), seen));
        Ok(())
    }

    /// What of the fleet's is in force.
    pub fn documents(&self) -> Option<Arc<Documents>> {
        self.documents.clone()
    }

    /// From nothing to filtering. In this order, so that no packet is judged by nothing or by a half: policy,
    /// configuration, the gate of replies, and only then the interfaces.
    ///
    /// # Errors
    /// The kernel does not take it, or [`Owner::read_policy`] has found nothing.
    pub async fn start(&mut self, datapath: Datapath) -> Result<Watch, StartError> {
        self.in_force = datapath
            .in_force()
            .map_err(|error| StartError::Datapath(boxed(error)))?;
        self.datapath = Some(datapath);
        if let Some(in_force) = &self.in_force {
            self.ledger = self.state.ledger(in_force.generation);
            log::info!("generation {} is in force from before", in_force.generation);
        }
        // Watched from before the list is made, so that nothing falls between.
        let watch = Watch::new().map_err(|error| StartError::Interfaces(boxed(error)))?;
        let list = netlink::interfaces().map_err(|error| StartError::Interfaces(boxed(error)))?;
        let todo = self.links.replace(list);

        self.restore_bans()
            .map_err(|error| StartError::Datapath(boxed(error)))?;
        self.note_mode();
        self.note_flows_max();
        // Whoever listened to an agent that was killed is gone.
        self.listen(0);
        if self.mode == Mode::Observe {
            // Before the policy, which may drop what the one before did not.
            self.configure_now()
                .map_err(|error| StartError::Datapath(boxed(error)))?;
        }
        let missing = || Refusal::Missing("the policy was not read".into());
        let (loaded, seen) = self
            .first
            .take()
            .unwrap_or_else(|| (Err(missing()), Seen::default()));
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
                // Which documents that holds is not known.
                self.documents = self.documents.as_ref().map(|_| Arc::default());
                self.count_connections();
            }
            Err(refusal) if self.documents.is_some() && !matches!(refusal, Refusal::Failed(_)) => {
                self.documents = Some(Arc::default());
                self.started_without = true;
                log::warn!("nothing is filtered yet: {refusal}");
            }
            Err(refusal) => {
                self.leave_nothing();
                return Err(match refusal {
                    Refusal::Failed(_) => StartError::Switch(refusal),
                    refusal => StartError::NoPolicy(self.first_policy(&refusal)),
                });
            }
        }

        self.follow_bans_from_now_on();
        self.configure_now()
            .map_err(|error| StartError::Datapath(boxed(error)))?;
        let fresh = self.datapath.as_ref().is_some_and(Datapath::is_fresh);
        self.sweep();
        if fresh {
            self.seed_flows();
        }
        let since = Instant::now();
        self.carry_out(todo, since);
        if fresh {
            // What was opened since, before egress was there to see it.
            self.seed_flows();
        }
        self.detach_strays();
        for missing in self.links.unmatched() {
            log::warn!("nothing here is called {missing}: filtered as soon as it comes");
        }
        self.publish();
        Ok(watch)
    }

    /// Takes back the maps that were made for a policy that did not come. Not if something is attached: that is the
    /// work of an agent of another version, and in force.
    fn leave_nothing(&mut self) {
        let attached = self.datapath.take().map(|datapath| datapath.attached());
        if !matches!(attached, Some(Ok(indexes)) if indexes.is_empty()) {
            return;
        }
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
                            self.next_check = self.next_check.min(since + CHECK_SOON);
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
                () = tokio::time::sleep_until(wake.into()) => if let Some(why) = self.tick() { return why },
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
        let mut wake = self.next_sweep.min(self.next_check).min(now + NAP);
        wake = wake.min(self.next_tending()).min(self.drift.next());
        if let Some(retry) = self.links.next_retry() {
            wake = wake.min(retry);
        }
        if let Some(end) = self.next_end {
            wake = wake.min(now + end.saturating_sub(self.clock.boot()));
        }
        wake
    }

    /// Gives the reason if it was the last one.
    fn tick(&mut self) -> Option<&'static str> {
        let now = Instant::now();
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            self.sweep();
            self.tell_flows();
        }
        self.look_at_limits(now);
        self.tend_bans(now);
        for index in self.links.due(now) {
            self.attach(index, now);
        }
        if now >= self.next_check {
            self.next_check = now + CHECK;
            if let Some(why) = self.check_links() {
                return Some(why);
            }
        }
        self.look_for_drift(now);
        if self.challenge.is_due(now) {
            self.look_at_challenge(now);
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
        None
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

    /// Logs once that the flow table fills up, and that it does no more.
    fn tell_flows(&mut self) {
        let warning = self.flow_scrape().warning();
        match &warning {
            Some(text) if !self.flows_told => log::warn!("{text}"),
            None if self.flows_told => log::info!("the flow table has room again"),
            _ => {}
        }
        self.flows_told = warning.is_some();
    }

    fn seed_flows(&self) {
        let Some(datapath) = &self.datapath else { return };
        match datapath.seed_flows(|index| self.links.is_judged(index)) {
            Ok(0) => {}
            Ok(flows) => log::info!("{flows} flows that conntrack knows go on"),
            Err(error) => log::warn!(
                "replies to what containers opened before the agent started may be dropped: {}",
                chain(&error)
            ),
        }
    }

    pub(super) fn note(&mut self, topic: &'static str, text: Option<String>) {
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
            Command::Policy(reply) => {
                drop(reply.send(self.desired.as_ref().map(|desired| desired.policy.clone())));
            }
            Command::Explain(reply) => drop(reply.send(self.explain_basis())),
            Command::Limits(reply) => drop(reply.send(self.limit_states())),
            Command::Flows(reply) => drop(reply.send(self.flow_basis())),
            Command::Samples(reply) => drop(reply.send(self.samples())),
            Command::Anomalies(reply) => drop(reply.send(self.anomalies())),
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
            Command::Fleet(documents, reply) => self.jobs.push_back(Job {
                work: Work::Fleet(documents),
                reply: Some(reply),
            }),
            Command::Bans(reply) => drop(reply.send(self.ban_list())),
            Command::Ban(request, reply) => drop(reply.send(self.ban(&request))),
            Command::Unban(request, reply) => drop(reply.send(self.unban(&request))),
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
                self.listen(events);
                let total = self.suppressed().iter().map(|(_, count)| count).sum();
                self.out.hub.suppressed(total);
            }
            Command::Note(topic, text) => self.note(topic, text),
            Command::Stop(why) => return Some(why),
        }
        None
    }

    fn listen(&mut self, events: u32) {
        let result = self
            .datapath
            .as_mut()
            .map(|datapath| datapath.listen(events, monitor::PER_SECOND));
        if let Some(Err(error)) = result {
            log::error!("cannot turn events on or off: {}", chain(&error));
        }
    }

    pub(super) fn node_config(&self) -> NodeConfig {
        NodeConfig {
            observe: self.mode == Mode::Observe,
            link_control: self.config.link_control,
            failsafe: self.config.failsafe_entries(),
            own: self.links.own_addresses(),
            flow_timeouts: self.config.flow_timeouts.0,
            ban_lens: self.bans.lens(),
            escalation: self.config.bans.escalation,
            challenge: self.challenge.settings,
            challenge_quiet_s: self.config.limits.quiet_s,
        }
    }

    pub(super) fn configure_now(&mut self) -> Result<(), datapath::DatapathError> {
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
        self.save_state();
        log::info!("mode: {mode}");
        self.note_mode();
        Ok(())
    }

    /// A mode that was set by command outlives the agent, so it is to be seen that it is not the configured one.
    fn note_mode(&mut self) {
        let text = match (self.mode, self.config.mode) {
            (Mode::Observe, Mode::Enforce) => Some(
                "observing since `ravelin observe`, though the configuration says enforce: nothing is dropped until \
                 `ravelin enforce`",
            ),
            (Mode::Enforce, Mode::Observe) => Some(
                "enforcing since `ravelin enforce`, though the configuration says observe: drops are carried out until \
                 `ravelin observe`",
            ),
            _ => None,
        };
        self.note("mode", text.map(str::to_owned));
    }

    fn detach(&mut self) -> Result<Vec<String>, Refusal> {
        self.datapath = None;
        self.limiting = Limiting::default();
        let removed = datapath::detach_all(&self.config.pins).map_err(|error| {
            Refusal::Failed(format!("not everything could be detached: {}", chain(&error)))
        })?;
        log::warn!("detached: this host is not filtered any more");
        Ok(removed)
    }

    /// The last thing. Says what stays.
    ///
    /// # Errors
    /// Why it ended, if nobody asked for it.
    pub fn stop(mut self, why: &str) -> anyhow::Result<()> {
        let failure = self.failure.take();
        let mut names: Vec<String> = self
            .links
            .states()
            .filter(|(_, state)| matches!(state, LinkState::Attached(_)))
            .map(|(interface, _)| interface.name.clone())
            .collect();
        names.sort();
        if self.datapath.is_some() && self.config.detach_on_exit && failure.is_none() {
            if let Err(error) = self.detach() {
                log::error!("{error}");
            }
        } else if self.datapath.is_some() {
            self.listen(0);
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
        self.save_bans(Durable::Yes);
        self.keeper.finish();
        match failure {
            Some(text) => Err(anyhow::anyhow!(text)),
            None => Ok(()),
        }
    }

    pub(super) fn save_state(&self) {
        if let Err(error) = self.state.write(&self.config.state_dir) {
            log::warn!("cannot keep the totals of counters: {error}");
        }
    }
}
