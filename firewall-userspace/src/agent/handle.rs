//! What the rest of the agent may ask of its owner.

use super::config::Mode;
use super::counters::{ServiceKey, Totals};
use super::reload::Refusal;
use crate::api::fleet::FleetStatus;
use crate::api::types::{
    AnomalyList, Applied, ApplyRequest, BanList, BanRequest, BanRow, Banned, Count, CounterRow, Edit,
    LimitState, RuleRow, ServiceRow, Status, UnbanRequest, Unbanned,
};
use crate::datapath::{Drift, Flow, Part};
use crate::detect::Kind;
use crate::detect::detector::Sample;
use crate::fleet::documents::Documents;
use crate::policy::compile::{Compiled, Stats};
use crate::policy::model::Policy;
use crate::simulate::Flows;
use firewall_common::ban::BanKey;
use firewall_common::control::{AddressKey, Config as Control};
use firewall_common::verdict::Reason;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

pub type Reply<T> = oneshot::Sender<T>;
pub type Outcome = Result<Applied, Refusal>;

/// One thing to do or to tell.
pub enum Command {
    Status(Reply<Status>),
    Services(Reply<Vec<ServiceRow>>),
    Rules(Reply<Vec<RuleRow>>),
    Counters(Reply<Vec<CounterRow>>),
    Scrape(Reply<Scrape>),
    PolicyText(Reply<Option<String>>),
    /// What is in force, unless an earlier agent put it there.
    Policy(Reply<Option<Arc<Policy>>>),
    Explain(Reply<Option<ExplainBasis>>),
    Flows(Reply<FlowBasis>),
    Limits(Reply<Vec<LimitState>>),
    /// What detection judges; `None` if it cannot be read.
    Samples(Reply<Option<Vec<Sample>>>),
    Anomalies(Reply<AnomalyList>),
    Suppressed(Reply<u64>),
    Reload {
        why: &'static str,
        force: bool,
        reply: Option<Reply<Outcome>>,
    },
    Edit(Edit, Reply<Outcome>),
    Apply(ApplyRequest, Reply<Outcome>),
    /// What the fleet says from now on, verified; it stands beside the policy file.
    Fleet(Arc<Documents>, Reply<Outcome>),
    Bans(Reply<BanList>),
    Ban(BanRequest, Reply<Result<Banned, Refusal>>),
    Unban(UnbanRequest, Reply<Result<Unbanned, Refusal>>),
    Mode(Mode, Reply<Result<(), Refusal>>),
    /// Takes the filter off everything; the agent stops then.
    Detach(Reply<Result<Vec<String>, Refusal>>),
    /// Which `EVENTS_*` the kernel should write.
    Listen(u32),
    /// A sentence for the status about something that does not work; `None` takes it back.
    Note(&'static str, Option<String>),
    Stop(&'static str),
}

/// Everything that metrics are made of.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    pub totals: Totals,
    pub interfaces: Vec<InterfaceScrape>,
    /// By interface: what was put back, and how often.
    pub repairs: Vec<(String, Part, u64)>,
    /// What somebody else changed in the maps, and how often.
    pub drift: Vec<(Drift, u64)>,
    pub generation: u64,
    pub digest: String,
    pub stats: Stats,
    pub reload_ok: bool,
    /// Unix seconds; zero for never.
    pub reload_at: f64,
    pub reload_success_at: f64,
    pub suppressed: Vec<(Reason, u64)>,
    pub flows: FlowScrape,
    pub limits: Vec<LimitState>,
    /// By how much counts of connections were corrected.
    pub connections_mended: u64,
    pub bans: BanScrape,
    /// By service and kind; empty if detection is off.
    pub anomalies: Vec<(String, Kind, bool)>,
    pub enforcing: bool,
    /// `None`: the node belongs to no fleet.
    pub fleet: Option<FleetStatus>,
}

/// Bans: how many are in force, and how many there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BanScrape {
    pub by_operator: u64,
    pub automatic: u64,
    pub max: u64,
    /// Ever begun, by service; those by command under no name.
    pub begun: BTreeMap<String, u64>,
    /// That could not be, for the table was full.
    pub lost: u64,
}

/// The flow table: what it holds, and what happened to it since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowScrape {
    pub live: u64,
    pub max: u64,
    pub created: u64,
    /// Live ones that gave their place to newer ones.
    pub displaced: u64,
    /// Not noted, for two CPUs met.
    pub lost: u64,
}

impl FlowScrape {
    /// A sentence once the table fills up: from half on, some of its sets are full.
    pub fn warning(&self) -> Option<String> {
        let FlowScrape { live, max, .. } = *self;
        (live > 0 && live >= max / 2).then(|| {
            format!(
                "the flow table holds {live} of {max} flows: new ones begin to take the place of those that were idle for \
                 longest; raise `max` of [flows] in agent.toml, then `ravelin detach` and start the agent anew: the host \
                 stands open in between"
            )
        })
    }
}

#[derive(Clone, Debug, Default)]
pub struct InterfaceScrape {
    pub name: String,
    pub hook: String,
    pub mode: String,
    pub egress: String,
    /// Of what came in.
    pub passed: Count,
    pub dropped: Count,
    /// Of what went out.
    pub egress_passed: Count,
    pub egress_dropped: Count,
}

impl Scrape {
    pub fn service(&self, key: &ServiceKey) -> Option<Count> {
        self.totals.services.get(key).copied()
    }
}

/// What explaining a packet needs.
pub struct ExplainBasis {
    pub policy: Arc<Policy>,
    pub text: Arc<str>,
    /// Whose texts the other places are in.
    pub documents: Option<Arc<Documents>>,
    /// `None`: too big to be kept, compile again.
    pub compiled: Option<Arc<Compiled>>,
    pub control: Box<Control>,
    pub own: HashSet<AddressKey>,
    /// The bans in force.
    pub bans: Vec<(BanKey, BanRow)>,
    /// Without the sockets, which whoever explains looks up.
    pub flows: Flows,
    pub generation: u64,
}

/// What listing flows needs.
pub struct FlowBasis {
    /// The policy in force, if it is known; without its image if that is too big to be kept.
    pub policy: Option<(Arc<Policy>, Option<Arc<Compiled>>)>,
    pub control: Box<Control>,
    pub own: HashSet<AddressKey>,
    /// All that the table holds, also what has expired.
    pub flows: Vec<Flow>,
    pub max: u64,
    pub displaced: u64,
    /// Names by index.
    pub interfaces: HashMap<u32, String>,
}

/// Published whenever it changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    pub generation: u64,
    pub ready: bool,
}

#[derive(Clone)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    readiness: watch::Receiver<Readiness>,
}

/// The agent is stopping.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the agent is stopping")]
pub struct Stopping;

impl Handle {
    pub fn new(commands: mpsc::UnboundedSender<Command>, readiness: watch::Receiver<Readiness>) -> Handle {
        Handle { commands, readiness }
    }

    /// False if there is nobody to tell any more.
    pub fn tell(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    pub async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| Stopping)?;
        answer.await.map_err(|_| Stopping)
    }

    /// [`Handle::ask`] from a thread that may wait.
    pub fn ask_blocking<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| Stopping)?;
        answer.blocking_recv().map_err(|_| Stopping)
    }

    /// Waits until a policy is in force on every interface asked for, of this generation or a later one; not longer
    /// than `limit`.
    pub async fn ready(&self, generation: u64, limit: Duration) {
        let mut readiness = self.readiness.clone();
        let reached = readiness.wait_for(|now| now.ready && now.generation >= generation);
        // Who asks looks at the status afterwards, whatever came first.
        let _ = tokio::time::timeout(limit, reached).await;
    }

    /// Tells whenever another policy is in force, or the readiness changes.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.clone()
    }

    pub fn is_ready(&self) -> bool {
        self.readiness.borrow().ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_table_warns_before_it_is_full() {
        let warning = |live| {
            let scrape = FlowScrape {
                live,
                max: 1024,
                ..FlowScrape::default()
            };
            scrape.warning()
        };
        assert_eq!((warning(0), warning(511)), (None, None));
        assert!(warning(512).is_some_and(|text| text.contains("512 of 1024")));
        assert_eq!(FlowScrape::default().warning(), None);
    }
}
