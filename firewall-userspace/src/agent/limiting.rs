//! What the owner does about limits: connections are counted while a policy limits them, and what is challenged is told.

use super::owner::Owner;
use super::recount::{Recounts, Report};
use super::reload::chain;
use crate::api::types::{ChallengeRecord, LimitState, LimitStatus, LimitUsed};
use crate::datapath::{Counting, Datapath, LimitUse};
use crate::host::netstat;
use crate::monitor::time::rfc3339;
use crate::policy::compile::Scope;
use crate::policy::limits::{Kind, Limits, OnExcess};
use firewall_common::control::{CHALLENGE_ALWAYS, CHALLENGE_GIVE};
use firewall_common::limit;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Between looks at what is challenged.
pub(super) const LOOK: Duration = Duration::from_secs(1);

pub(super) struct Limiting {
    pub next_look: Instant,
    counting: Counting,
    recounts: Option<Recounts>,
    /// By name: since which second of the monotonic clock. `None` before the first look.
    challenged: Option<BTreeMap<String, u32>>,
    /// [`netstat::queue_overflows`] at the last look.
    overflows: Option<u64>,
    /// By name: challenges that began while this agent ran.
    started: BTreeMap<String, u64>,
}

impl Default for Limiting {
    fn default() -> Self {
        Limiting {
            next_look: Instant::now(),
            counting: Counting::Off,
            recounts: None,
            challenged: None,
            overflows: None,
            started: BTreeMap::new(),
        }
    }
}

/// A challenge that began or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Began(String),
    /// After so many seconds.
    Ended(String, u32),
}

impl Limiting {
    /// Takes in which scopes are challenged now, since when. The first look tells of none: what was challenged before this
    /// agent came is known already.
    fn look(&mut self, now: &BTreeMap<String, u32>, now_s: u32) -> Vec<Change> {
        let mut changes = Vec::new();
        let Some(before) = self.challenged.replace(now.clone()) else {
            return changes;
        };
        for (name, since) in &before {
            if now.get(name) != Some(since) {
                changes.push(Change::Ended(name.clone(), now_s.saturating_sub(*since)));
            }
        }
        for (name, since) in now {
            if before.get(name) != Some(since) {
                *self.started.entry(name.clone()).or_default() += 1;
                changes.push(Change::Began(name.clone()));
            }
        }
        changes
    }
}

/// Names of the scopes that are challenged, and since when.
fn challenged(datapath: &Datapath, scopes: &[Scope]) -> BTreeMap<String, u32> {
    let found = datapath
        .challenges()
        .inspect_err(|error| log::warn!("cannot read the limits: {}", chain(error)))
        .unwrap_or_default();
    let named = scopes.iter().zip(found);
    named
        .filter_map(|(scope, challenge)| Some((scope.name.clone(), challenge?.0)))
        .collect()
}

impl Owner {
    /// The scopes of the policy in force; none if it is not known.
    pub(super) fn scopes(&self) -> Arc<[Scope]> {
        self.desired
            .as_ref()
            .map_or_else(|| Arc::from([]), |desired| desired.scopes.clone())
    }

    /// Has connections counted if the policy in force asks for it, and counts them anew: under another policy they may
    /// count elsewhere.
    pub(super) fn count_connections(&mut self) {
        let Some(datapath) = self.datapath.as_mut() else {
            return;
        };
        let counting = datapath.count_connections().unwrap_or_else(|error| {
            log::warn!("cannot stop counting connections: {}", chain(&error));
            Counting::Off
        });
        let why = match &counting {
            Counting::Off => {
                self.limiting.recounts = None;
                None
            }
            Counting::Program => None,
            Counting::Recount(why) => Some(format!(
                "connections are counted each second only, not as they come and go: {why}"
            )),
        };
        let alone = matches!(counting, Counting::Recount(_));
        if counting != Counting::Off {
            match &self.limiting.recounts {
                Some(recounts) if recounts.is_alone() == alone => recounts.now(),
                _ => {
                    let started = datapath
                        .recounter()
                        .map_err(|error| chain(&error))
                        .and_then(|recounter| {
                            Recounts::start(recounter, self.config.limits.recount, alone)
                                .map_err(|error| error.to_string())
                        });
                    match started {
                        Ok(recounts) => self.limiting.recounts = Some(recounts),
                        Err(error) => log::error!("connections are not counted anew: {error}"),
                    }
                }
            }
        }
        self.limiting.counting = counting;
        self.note("connections", why);
    }

    /// Tells what began and ended.
    pub(super) fn look_at_limits(&mut self, now: Instant) {
        if now < self.limiting.next_look {
            return;
        }
        self.limiting.next_look = now + LOOK;
        self.look_at_overflows();
        let Some(datapath) = &self.datapath else { return };
        let scopes = self.scopes();
        let found = challenged(datapath, &scopes);
        let now_s = super::clock::monotonic().as_secs() as u32;
        for change in self.limiting.look(&found, now_s) {
            self.tell_challenge(change, &scopes);
        }
        let error = self.recounts().error;
        let text = error.map(|error| format!("connections cannot be counted anew: {error}"));
        self.note("recount", text);
    }

    fn tell_challenge(&self, change: Change, scopes: &[Scope]) {
        let (word, limit, seconds) = match change {
            Change::Began(name) => {
                log::warn!("challenge of {name} started: new connections have to prove their address");
                ("starts", name, None)
            }
            Change::Ended(name, seconds) => {
                log::info!("challenge of {name} ended after {seconds} s");
                ("ends", name, Some(seconds.into()))
            }
        };
        let scope = scopes.iter().find(|scope| scope.name == limit);
        let service = scope.and_then(|scope| {
            let policy = &self.desired.as_ref()?.policy;
            Some(policy.services.get(usize::from(scope.service.0))?.name.clone())
        });
        self.out.hub.publish_challenge(ChallengeRecord {
            time: rfc3339(SystemTime::now()),
            challenge: word.to_owned(),
            service: service.unwrap_or_default(),
            limit,
            seconds,
        });
    }

    /// Where the queue of a listener overflows below every limit, who asks for challenges gets them all the same. Which
    /// listener it was the kernel does not tell. Where it always gives cookies, it counts each as an overflow.
    fn look_at_overflows(&mut self) {
        let settings = self.challenge.settings;
        let now = netstat::queue_overflows();
        let before = std::mem::replace(&mut self.limiting.overflows, now);
        let grew = matches!((before, now), (Some(before), Some(now)) if now > before);
        if !grew || settings & CHALLENGE_GIVE == 0 || settings & CHALLENGE_ALWAYS != 0 {
            return;
        }
        let (Some(desired), Some(datapath)) = (&self.desired, &self.datapath) else {
            return;
        };
        let asks = |number: usize| {
            let scope = desired.scopes.get(number);
            let limits = scope.and_then(|scope| {
                let service = desired.policy.services.get(usize::from(scope.service.0))?;
                service.limits_of(&scope.name)
            });
            limits.is_some_and(|limits| limits.on_excess != OnExcess::Drop)
        };
        if let Err(error) = datapath.challenge(asks) {
            log::warn!("cannot start a challenge: {}", chain(&error));
        }
    }

    pub(super) fn recounts(&self) -> Report {
        let recounts = self.limiting.recounts.as_ref();
        recounts.map(Recounts::report).unwrap_or_default()
    }

    /// Every limit of the policy in force: what it bears and what it holds now.
    pub(super) fn limit_states(&self) -> Vec<LimitState> {
        let (Some(desired), Some(datapath)) = (&self.desired, &self.datapath) else {
            return Vec::new();
        };
        let uses = datapath
            .limit_uses()
            .inspect_err(|error| log::warn!("cannot read the limits: {}", chain(error)))
            .unwrap_or_default();
        let now_s = super::clock::monotonic().as_secs() as u32;
        let states = desired.scopes.iter().enumerate().map(|(index, scope)| {
            let used = uses.get(index).copied().unwrap_or_default();
            let service = desired.policy.services.get(usize::from(scope.service.0));
            let challenged = used
                .challenged
                .map(|(since, _)| now_s.saturating_sub(since).into());
            LimitState {
                scope: scope.name.clone(),
                service: service.map_or_else(String::new, |service| service.name.clone()),
                challenged_seconds: challenged,
                challenges_started: self.limiting.started.get(&scope.name).copied().unwrap_or(0),
                values: values(&used, service.and_then(|service| service.limits_of(&scope.name))),
            }
        });
        states.collect()
    }

    /// The same in short.
    pub(super) fn limit_status(&self) -> LimitStatus {
        let challenged = self.limiting.challenged.iter().flatten();
        let need = self.config.limits.sizes.need(&self.scopes());
        LimitStatus {
            challenged: challenged.map(|(name, _)| name.clone()).collect(),
            counting: match self.limiting.counting {
                Counting::Off => "off",
                Counting::Program => "program",
                Counting::Recount(_) => "recount",
            }
            .to_owned(),
            connections: self.recounts().connections,
            memory: need.bytes,
            memory_max: self.config.limits.sizes.memory,
        }
    }
}

/// What of limits is in use.
fn values(used: &LimitUse, limits: Option<&Limits>) -> Vec<LimitUsed> {
    let one = |kind: Kind| {
        let table = kind as usize;
        let fill = used.sources.get(table).copied().flatten();
        let [per_source_value, total_value] = limits.map_or([None; 2], |limits| limits.numbers(kind));
        Some(LimitUsed {
            limit: limits?.value(kind)?,
            per_source_value,
            total_value,
            total_spent: used.totals.get(table).copied().flatten(),
            sources: fill.map(|fill| fill.sources),
            room: fill.map(|fill| fill.room),
            connections: used.connections.filter(|_| kind == Kind::Connections),
        })
    };
    Kind::ALL.into_iter().filter_map(one).collect()
}

// The tables of the kernel are in the order of what is limited.
const _: () = assert!(
    Kind::NewConnections as u32 == limit::Kind::New as u32
        && Kind::Packets as u32 == limit::Kind::Packets as u32
        && Kind::Bytes as u32 == limit::Kind::Bytes as u32
        && Kind::Connections as u32 == limit::COUNTS
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_told_when_it_begins_and_when_it_ends() {
        let mut limiting = Limiting::default();
        let at = |since: &[(&str, u32)]| -> BTreeMap<String, u32> {
            since
                .iter()
                .map(|(name, since)| ((*name).to_owned(), *since))
                .collect()
        };
        let (api, web) = ("api".to_owned(), "web".to_owned());
        assert_eq!(limiting.look(&at(&[("api", 7)]), 99), [], "from before");
        assert_eq!(limiting.look(&at(&[]), 100), [Change::Ended(api.clone(), 93)]);
        assert_eq!(
            limiting.look(&at(&[("api", 101)]), 101),
            [Change::Began(api.clone())]
        );
        assert_eq!(limiting.look(&at(&[("api", 101)]), 102), []);
        // It ended and began again between two looks.
        assert_eq!(
            limiting.look(&at(&[("api", 113), ("web", 112)]), 113),
            [
                Change::Ended(api.clone(), 12),
                Change::Began(api.clone()),
                Change::Began(web.clone())
            ]
        );
        assert_eq!(
            limiting.look(&at(&[]), 130),
            [Change::Ended(api.clone(), 17), Change::Ended(web.clone(), 18)]
        );
        assert_eq!((limiting.started[&api], limiting.started[&web]), (2, 1));
    }
}
