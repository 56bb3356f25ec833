//! What was counted, by names that outlive a policy: the kernel counts per ending of one generation; when a
//! generation is retired, its final counters are folded into totals, so that what people see never goes backwards.
//!
//! Totals hold only names of the policy in force: a service or rule that goes takes its counts with it, which bounds
//! the metrics by the policy.

use crate::api::types::Count;
use crate::datapath::{EndingCounter, EndingCounters};
use crate::detect::Kind;
use crate::detect::detector::Sample;
use crate::policy::compile::{Compiled, Ending};
use crate::policy::model::{Action, Owner, Policy, RuleId};
use firewall_common::counter::Counter;
use firewall_common::verdict::{Direction, Reason, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};

/// What happened to a packet, and to what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    /// Of a service or an egress rule, whose names differ. Empty: neither.
    pub service: String,
    /// `ingress` or `egress`. What leaves from a service answers.
    #[serde(default = "ingress")]
    pub direction: String,
    /// `pass`, `drop` or `would-drop`.
    pub verdict: String,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleKey {
    /// The owner of the list, a service or an egress rule. Empty: the policy's own deny list.
    pub service: String,
    /// `ingress` or `egress`. A rule that lets somebody in to a service counts the answers to him as egress.
    #[serde(default = "ingress")]
    pub direction: String,
    /// `allow` or `deny`.
    pub action: String,
    pub source: String,
}

/// An ending by names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndingName {
    pub service: String,
    #[serde(default = "ingress")]
    pub direction: String,
    /// A reason's word, or `None` for a number that no reason has.
    pub reason: Option<String>,
    pub rule: Option<RuleKey>,
    /// Each packet opens a connection.
    #[serde(default)]
    pub opens: bool,
}

impl EndingName {
    fn key(&self, direction: &str, verdict: &str, reason: Reason) -> ServiceKey {
        ServiceKey {
            service: self.service.clone(),
            direction: direction.to_owned(),
            verdict: verdict.to_owned(),
            reason: reason.word().to_owned(),
        }
    }
}

/// What agents counted before they judged what leaves.
pub fn ingress() -> String {
    Direction::Ingress.word().to_owned()
}

/// What can always happen to a service.
const OF_A_SERVICE: [(Direction, Reason); 4] = [
    (Direction::Ingress, Reason::Allowed),
    (Direction::Ingress, Reason::NotAllowed),
    (Direction::Ingress, Reason::ServiceDenied),
    (Direction::Egress, Reason::Answer),
];

/// What can always happen under an egress rule.
const OF_AN_EGRESS_RULE: [(Direction, Reason); 2] = [
    (Direction::Egress, Reason::EgressAllowed),
    (Direction::Egress, Reason::EgressDenied),
];

/// Whether a reason ends packets of a direction. Others are counted all the same, but not shown at zero.
fn happens(direction: &str, reason: Reason) -> bool {
    let egress = direction == Direction::Egress.word();
    match reason {
        Reason::EgressAllowed | Reason::Answer | Reason::EgressDenied | Reason::EgressClosed => egress,
        Reason::Allowed
        | Reason::Reply
        | Reason::Denied
        | Reason::ServiceDenied
        | Reason::NotAllowed
        | Reason::Closed
        | Reason::Martian
        | Reason::IcmpError => !egress,
        _ => true,
    }
}

pub const PASS: &str = "pass";
pub const DROP: &str = "drop";
pub const WOULD_DROP: &str = "would-drop";

pub fn word(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    }
}

/// The verdict that a reason stands for.
pub fn verdict_word(reason: Reason) -> &'static str {
    match reason.verdict() {
        Verdict::Pass => PASS,
        Verdict::Drop => DROP,
    }
}

/// The source of the prefixes that a list names itself, together. It is counted apart from them, so that it does not fall
/// when one of them leaves the policy.
pub const PREFIXES: &str = "prefixes";

impl RuleKey {
    /// Whether the source may be a label of a metric: a group, `any`, or [`PREFIXES`], but never an address.
    pub fn is_label(&self) -> bool {
        self.source.starts_with('@') || self.source == "any" || self.source == PREFIXES
    }

    /// The key, and the one that it counts under in metrics, if that is another.
    fn and_its_label(&self) -> impl Iterator<Item = RuleKey> {
        let label = (!self.is_label()).then(|| RuleKey {
            source: PREFIXES.to_owned(),
            ..self.clone()
        });
        [self.clone()].into_iter().chain(label)
    }
}

/// The names of a policy's endings, in the order of the endings; then those of the rules that decide nothing for now,
/// since others decide before them: what they counted is kept until they leave the policy.
pub fn names(policy: &Policy, compiled: &Compiled) -> Vec<EndingName> {
    let of = |owner: Owner| policy.owner_name(owner).unwrap_or_default().to_owned();
    let name = |ending: &Ending| EndingName {
        // A deny of the policy may meet a packet at a service.
        service: match ending.service {
            Some(id) => of(Owner::Service(id)),
            None => ending
                .rule
                .and_then(|id| policy.rules.get(id.0 as usize))
                .map(|rule| of(rule.owner))
                .unwrap_or_default(),
        },
        direction: ending.direction.word().to_owned(),
        reason: ending.reason.map(|reason| reason.word().to_owned()),
        opens: ending.opens,
        rule: ending
            .rule
            .and_then(|id| policy.rules.get(id.0 as usize))
            .map(|rule| RuleKey {
                service: of(rule.owner),
                direction: ending.direction.word().to_owned(),
                action: word(rule.action).to_owned(),
                source: rule.source.clone(),
            }),
    };
    let decides: HashSet<(Option<RuleId>, Direction)> = compiled
        .endings
        .iter()
        .map(|ending| (ending.rule, ending.direction))
        .collect();
    let shadowed = (0..).map(RuleId).zip(&policy.rules).flat_map(|(id, rule)| {
        let outcomes: &[(Direction, Reason)] = match (rule.owner, rule.action) {
            (Owner::Policy, _) => &[(Direction::Ingress, Reason::Denied)],
            (Owner::Service(_), Action::Allow) => &[
                (Direction::Ingress, Reason::Allowed),
                (Direction::Egress, Reason::Answer),
            ],
            (Owner::Service(_), Action::Deny) => &[(Direction::Ingress, Reason::ServiceDenied)],
            (Owner::Egress(_), Action::Allow) => &[(Direction::Egress, Reason::EgressAllowed)],
            (Owner::Egress(_), Action::Deny) => &[(Direction::Egress, Reason::EgressDenied)],
        };
        outcomes.iter().map(move |&(direction, reason)| Ending {
            direction,
            reason: Some(reason),
            service: rule.owner.service(),
            rule: Some(id),
            opens: false,
            profile: 0,
        })
    });
    let shadowed = shadowed.filter(|ending| !decides.contains(&(ending.rule, ending.direction)));
    // Of an allow also what opens connections.
    let shadowed = shadowed.flat_map(|ending| {
        let opens = (ending.reason == Some(Reason::Allowed)).then_some(Ending {
            opens: true,
            ..ending
        });
        [ending].into_iter().chain(opens)
    });
    let endings = compiled.endings.iter().copied().chain(shadowed);
    endings.map(|ending| name(&ending)).collect()
}

/// Counts by name. Every name of the policy is there from the start, at zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    pub services: BTreeMap<ServiceKey, Count>,
    pub rules: BTreeMap<RuleKey, Count>,
    /// Connections that a rule let in, of services.
    pub opened: BTreeMap<RuleKey, u64>,
}

impl Totals {
    /// Zero for all that can happen under these names. What observing would drop is there from the start only while
    /// observing.
    pub fn zero(names: &[EndingName], observing: bool) -> Totals {
        Totals::of(names, observing, happens)
    }

    fn of(names: &[EndingName], observing: bool, shown: impl Fn(&str, Reason) -> bool) -> Totals {
        let mut totals = Totals::default();
        for name in names {
            let Some(reason) = meaning(name) else {
                continue;
            };
            if shown(&name.direction, reason) {
                let verdict = verdict_word(reason);
                let would = (observing && verdict == DROP).then_some(WOULD_DROP);
                for verdict in [Some(verdict), would].into_iter().flatten() {
                    let key = name.key(&name.direction, verdict, reason);
                    totals.services.entry(key).or_default();
                }
            }
            for rule in name.rule.iter().flat_map(RuleKey::and_its_label) {
                if name.opens {
                    totals.opened.entry(rule.clone()).or_default();
                }
                totals.rules.entry(rule).or_default();
            }
            // What this policy happens not to do to a service, the next one may: its series do not come and go.
            let always = match reason {
                _ if name.service.is_empty() => &[][..],
                Reason::EgressAllowed | Reason::EgressDenied => &OF_AN_EGRESS_RULE,
                _ => &OF_A_SERVICE,
            };
            for (direction, reason) in always {
                let key = name.key(direction.word(), verdict_word(*reason), *reason);
                totals.services.entry(key).or_default();
            }
        }
        totals
    }

    /// Adds what a generation of these names counted.
    pub fn add(&mut self, names: &[EndingName], counters: &[EndingCounter]) {
        for (name, counter) in names.iter().zip(counters) {
            let Some(reason) = meaning(name) else {
                continue;
            };
            let verdict = verdict_word(reason);
            for (verdict, counted) in [(verdict, &counter.happened), (WOULD_DROP, &counter.would_drop)] {
                if counted.packets == 0 {
                    continue;
                }
                let key = name.key(&name.direction, verdict, reason);
                add(self.services.entry(key).or_default(), counted);
                for rule in name.rule.iter().flat_map(RuleKey::and_its_label) {
                    if name.opens {
                        *self.opened.entry(rule.clone()).or_default() += counted.packets;
                    }
                    add(self.rules.entry(rule).or_default(), counted);
                }
            }
        }
    }

    /// Adds other totals.
    pub fn merge(&mut self, other: &Totals) {
        for (key, count) in &other.services {
            plus(self.services.entry(key.clone()).or_default(), *count);
        }
        for (key, count) in &other.rules {
            plus(self.rules.entry(key.clone()).or_default(), *count);
        }
        for (key, count) in &other.opened {
            *self.opened.entry(key.clone()).or_default() += count;
        }
    }

    /// Forgets what these names do not know.
    pub fn keep_only(&mut self, names: &[EndingName]) {
        let known = Totals::of(names, true, |_, _| true);
        self.services.retain(|key, _| known.services.contains_key(key));
        self.rules.retain(|key, _| known.rules.contains_key(key));
        self.opened.retain(|key, _| known.rules.contains_key(key));
    }
}

fn meaning(name: &EndingName) -> Option<Reason> {
    let word = name.reason.as_deref()?;
    Reason::ALL.iter().copied().find(|reason| reason.word() == word)
}

fn add(count: &mut Count, counter: &Counter) {
    plus(
        count,
        Count {
            packets: counter.packets,
            bytes: counter.bytes,
        },
    );
}

fn plus(count: &mut Count, more: Count) {
    count.packets += more.packets;
    count.bytes += more.bytes;
}

/// The totals of the generations before the one in force. `base_of` names that one: totals whose `base_of` is not the
/// generation in force have lost one in between (the agent died at the wrong moment, or the machine restarted), and
/// counting starts at zero again, which whoever scrapes understands; counting twice he would not.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    base_of: u64,
    names: Vec<EndingName>,
    base: Totals,
}

impl Ledger {
    pub fn new(generation: u64, names: Vec<EndingName>, mut base: Totals) -> Ledger {
        base.keep_only(&names);
        Ledger {
            base_of: generation,
            names,
            base,
        }
    }

    pub fn generation(&self) -> u64 {
        self.base_of
    }

    pub fn names(&self) -> &[EndingName] {
        &self.names
    }

    pub fn base(&self) -> &Totals {
        &self.base
    }

    /// The ledger after a switch to `generation`, with the final counters of the retired one, if there are any.
    pub fn turn(&self, retired: Option<&EndingCounters>, generation: u64, names: Vec<EndingName>) -> Ledger {
        let base = match retired {
            Some(counters) if counters.generation == self.base_of => {
                let mut base = self.base.clone();
                base.add(&self.names, &counters.endings);
                base
            }
            _ => Totals::default(),
        };
        Ledger::new(generation, names, base)
    }

    /// What detection judges, of every service and of what belongs to none, with what the generation in force has counted so far.
    pub fn samples(&self, live: &EndingCounters) -> Vec<Sample> {
        let mut sums: BTreeMap<(&str, Kind), u64> = BTreeMap::new();
        for name in &self.names {
            let kinds = match (name.service.as_str(), name.direction.as_str()) {
                ("", _) => &[Kind::Drops][..],
                (_, "ingress") => &Kind::ALL,
                _ => &[],
            };
            for kind in kinds {
                sums.entry((&name.service, *kind)).or_default();
            }
        }
        let mut add = |service, kind: Option<Kind>, count: u64| {
            // Nothing is there for an egress rule.
            if let Some(sum) = kind.and_then(|kind| sums.get_mut(&(service, kind))) {
                *sum += count;
            }
        };
        // Of a rule and of the label that it counts under, the label.
        for (key, count) in self.base.opened.iter().filter(|(key, _)| key.is_label()) {
            add(&key.service, Some(Kind::NewConnections), *count);
        }
        for (key, count) in &self.base.services {
            let kind = watched(&key.direction, &key.verdict);
            add(&key.service, kind, amount(kind, *count));
        }
        if live.generation == self.base_of {
            for (name, counter) in self.names.iter().zip(&live.endings) {
                let Some(reason) = meaning(name) else {
                    continue;
                };
                if name.opens {
                    add(
                        &name.service,
                        Some(Kind::NewConnections),
                        counter.happened.packets,
                    );
                }
                let verdict = verdict_word(reason);
                for (verdict, counted) in [(verdict, &counter.happened), (WOULD_DROP, &counter.would_drop)] {
                    let kind = watched(&name.direction, verdict);
                    let Counter { packets, bytes } = *counted;
                    add(&name.service, kind, amount(kind, Count { packets, bytes }));
                }
            }
        }
        let sample = |((service, kind), total): ((&str, Kind), u64)| Sample {
            service: service.to_owned(),
            kind,
            total,
        };
        sums.into_iter().map(sample).collect()
    }

    /// All that was counted, with what the generation in force has counted so far.
    pub fn totals(&self, live: Option<&EndingCounters>, observing: bool) -> Totals {
        let mut totals = Totals::zero(&self.names, observing);
        totals.merge(&self.base);
        if let Some(live) = live.filter(|live| live.generation == self.base_of) {
            totals.add(&self.names, &live.endings);
        }
        totals
    }
}

/// What detection makes of packets of a service.
fn watched(direction: &str, verdict: &str) -> Option<Kind> {
    match (direction == Direction::Ingress.word(), verdict) {
        (_, PASS) => Some(Kind::Bytes),
        (true, _) => Some(Kind::Drops),
        (false, _) => None,
    }
}

fn amount(kind: Option<Kind>, count: Count) -> u64 {
    match kind {
        Some(Kind::Bytes) => count.bytes,
        _ => count.packets,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(service: &str, reason: Reason, rule: Option<(&str, &str)>) -> EndingName {
        EndingName {
            service: service.into(),
            direction: ingress(),
            reason: Some(reason.word().into()),
            opens: false,
            rule: rule.map(|(action, source)| RuleKey {
                service: service.into(),
                direction: ingress(),
                action: action.into(),
                source: source.into(),
            }),
        }
    }

    fn counters(generation: u64, packets: &[u64]) -> EndingCounters {
        let counter = |packets: &u64| EndingCounter {
            happened: Counter {
                packets: *packets,
                bytes: packets * 100,
            },
            would_drop: Counter::default(),
        };
        EndingCounters {
            generation,
            endings: packets.iter().map(counter).collect(),
        }
    }

    fn packets(totals: &Totals, service: &str, verdict: &str, reason: Reason) -> Option<u64> {
        let key = ServiceKey {
            service: service.into(),
            direction: ingress(),
            verdict: verdict.into(),
            reason: reason.word().into(),
        };
        totals.services.get(&key).map(|count| count.packets)
    }

    #[test]
    fn counts_do_not_go_backwards_over_a_switch_and_gone_names_go() {
        let first = vec![
            name("", Reason::Closed, None),
            name("api", Reason::Allowed, Some(("allow", "@a"))),
            name("api", Reason::Allowed, Some(("allow", "@b"))),
            name("old", Reason::NotAllowed, None),
        ];
        let ledger = Ledger::new(7, first, Totals::default());
        let before = ledger.totals(Some(&counters(7, &[5, 1, 2, 4])), false);
        assert_eq!(packets(&before, "api", PASS, Reason::Allowed), Some(3));

        let second = vec![
            name("", Reason::Closed, None),
            name("api", Reason::Allowed, Some(("allow", "@b"))),
        ];
        let ledger = ledger.turn(Some(&counters(7, &[6, 1, 2, 4])), 8, second);
        let after = ledger.totals(Some(&counters(8, &[1, 1])), false);
        assert_eq!(packets(&after, "", DROP, Reason::Closed), Some(7));
        // The service keeps what it counted under the rule that is gone; the rule does not stay.
        assert_eq!(packets(&after, "api", PASS, Reason::Allowed), Some(4));
        assert_eq!(packets(&after, "old", DROP, Reason::NotAllowed), None);
        assert_eq!(
            after
                .rules
                .values()
                .map(|count| count.packets)
                .collect::<Vec<_>>(),
            [3]
        );
    }

    #[test]
    fn connections_that_a_rule_let_in_are_counted_apart_and_with_its_packets() {
        let allowed = name("api", Reason::Allowed, Some(("allow", "198.51.100.7")));
        let opens = EndingName {
            opens: true,
            ..allowed.clone()
        };
        // Two limits of one rule: the endings of each stand in a row.
        let names = vec![allowed.clone(), opens.clone(), allowed, opens];
        let ledger = Ledger::new(7, names.clone(), Totals::default());
        let opened = |totals: &Totals| -> Vec<(String, u64)> {
            let opened = totals.opened.iter();
            opened.map(|(key, count)| (key.source.clone(), *count)).collect()
        };
        let of = |count: u64| vec![("198.51.100.7".to_owned(), count), (PREFIXES.to_owned(), count)];
        assert_eq!(opened(&ledger.totals(None, false)), of(0));
        let totals = ledger.totals(Some(&counters(7, &[10, 1, 20, 2])), false);
        assert_eq!(opened(&totals), of(3));
        assert_eq!(packets(&totals, "api", PASS, Reason::Allowed), Some(33));
        assert_eq!(
            totals
                .rules
                .values()
                .map(|count| count.packets)
                .collect::<Vec<_>>(),
            [33, 33]
        );
        let ledger = ledger.turn(Some(&counters(7, &[10, 1, 20, 2])), 8, names);
        assert_eq!(
            opened(&ledger.totals(Some(&counters(8, &[0, 4, 0, 0])), false)),
            of(7)
        );
    }

    #[test]
    fn every_excess_of_a_limited_service_is_there_from_the_start() {
        let text = "version = 1\n[groups]\npartners = [\"192.0.2.0/24\"]\n[[service]]\nname = \"api\"\nports = [\"tcp/443\"]\n\
                    allow = [\"any\"]\n[service.limits]\npackets.total = \"1/s\"\n[[service.limit]]\nfor = \"@partners\"\n\
                    packets.total = \"1/s\"\n[[service]]\nname = \"free\"\nports = [\"tcp/80\"]\nallow = [\"any\"]\n";
        let policy = crate::policy::file::parse(text, std::path::Path::new("p"), 0)
            .unwrap()
            .policy;
        let compiled = crate::policy::compile::compile(&policy).unwrap();
        let names = names(&policy, &compiled);
        let totals = Totals::zero(&names, false);
        for reason in [
            Reason::LimitTotalPackets,
            Reason::Challenged,
            Reason::NoConnection,
        ] {
            assert_eq!(packets(&totals, "api", DROP, reason), Some(0), "{reason:?}");
            assert_eq!(packets(&totals, "free", DROP, reason), None, "{reason:?}");
        }
        // One packet at each ending: the scopes of a service are one to people.
        let all = counters(1, &vec![1; compiled.endings.len()]);
        let totals = Ledger::new(1, names, Totals::default()).totals(Some(&all), false);
        assert_eq!(packets(&totals, "api", DROP, Reason::LimitTotalPackets), Some(2));
        // Two limits, for each what passes and what opens a connection.
        assert_eq!(packets(&totals, "api", PASS, Reason::Allowed), Some(4));
        let opened = totals
            .opened
            .iter()
            .map(|(key, count)| (key.service.as_str(), *count));
        assert_eq!(opened.collect::<Vec<_>>(), [("api", 2), ("free", 1)]);
    }

    #[test]
    fn detection_sees_services_and_what_belongs_to_none_over_a_switch() {
        let answer = EndingName {
            direction: "egress".into(),
            ..name("api", Reason::Answer, Some(("allow", "@a")))
        };
        let leaves = EndingName {
            direction: "egress".into(),
            ..name("dns", Reason::EgressDenied, None)
        };
        let names = vec![
            name("", Reason::Closed, None),
            name("", Reason::Reply, None),
            name("api", Reason::Allowed, Some(("allow", "@a"))),
            name("api", Reason::NotAllowed, None),
            answer,
            leaves,
            EndingName {
                opens: true,
                ..name("api", Reason::Allowed, Some(("allow", "192.0.2.7")))
            },
        ];
        let seen = |ledger: &Ledger, live: &EndingCounters| -> Vec<(String, Kind, u64)> {
            let samples = ledger.samples(live).into_iter();
            samples
                .map(|sample| (sample.service, sample.kind, sample.total))
                .collect()
        };
        let expected = |drops: u64, new: u64, api: u64, bytes: u64| {
            vec![
                (String::new(), Kind::Drops, drops),
                ("api".to_owned(), Kind::NewConnections, new),
                ("api".to_owned(), Kind::Drops, api),
                ("api".to_owned(), Kind::Bytes, bytes),
            ]
        };
        let ledger = Ledger::new(7, names.clone(), Totals::default());
        let mut live = counters(7, &[5, 1, 2, 4, 3, 9, 8]);
        live.endings[3].would_drop.packets = 100;
        assert_eq!(seen(&ledger, &live), expected(5, 8, 104, 1300));
        let ledger = ledger.turn(Some(&live), 8, names);
        assert_eq!(seen(&ledger, &counters(8, &[1; 7])), expected(6, 9, 105, 1600));
        // Of another generation: what was known before.
        assert_eq!(seen(&ledger, &counters(9, &[1; 7])), expected(5, 8, 104, 1300));
    }

    #[test]
    fn a_generation_that_was_lost_or_folded_already_is_not_counted() {
        let names = vec![name("", Reason::Closed, None)];
        let mut base = Totals::default();
        base.add(&names, &counters(6, &[10]).endings);
        let ledger = Ledger::new(7, names.clone(), base);
        // Counters of a generation that this ledger is not the base of.
        assert_eq!(
            packets(
                &ledger.totals(Some(&counters(6, &[10])), false),
                "",
                DROP,
                Reason::Closed
            ),
            Some(10)
        );
        let ledger = ledger.turn(Some(&counters(6, &[10])), 9, names);
        assert_eq!(
            packets(&ledger.totals(None, false), "", DROP, Reason::Closed),
            Some(0)
        );
    }

    #[test]
    fn observing_shows_what_would_drop_from_the_start() {
        let names = vec![name("api", Reason::NotAllowed, None)];
        let ledger = Ledger::new(1, names, Totals::default());
        assert_eq!(
            packets(&ledger.totals(None, false), "api", PASS, Reason::Allowed),
            Some(0)
        );
        assert_eq!(
            packets(&ledger.totals(None, false), "api", WOULD_DROP, Reason::NotAllowed),
            None
        );
        assert_eq!(
            packets(&ledger.totals(None, true), "api", WOULD_DROP, Reason::NotAllowed),
            Some(0)
        );
        let counter = EndingCounter {
            would_drop: Counter {
                packets: 2,
                bytes: 120,
            },
            ..EndingCounter::default()
        };
        let live = EndingCounters {
            generation: 1,
            endings: vec![counter],
        };
        let totals = ledger.totals(Some(&live), false);
        assert_eq!(packets(&totals, "api", WOULD_DROP, Reason::NotAllowed), Some(2));
        assert_eq!(packets(&totals, "api", DROP, Reason::NotAllowed), Some(0));
    }

    #[test]
    fn a_rule_that_a_deny_shadows_keeps_what_it_counted() {
        const POLICY: &str = "version = 1\n[[service]]\nname = \"api\"\nports = [\"tcp/443\"]\nallow = [\"192.0.2.7\"]\n\
                              [[egress]]\nname = \"dns\"\nto = [\"192.0.2.53\"]\n";
        let named = |text: &str| {
            let loaded = crate::policy::file::parse(text, std::path::Path::new("p"), 0).unwrap();
            let compiled = crate::policy::compile::compile(&loaded.policy).unwrap();
            (names(&loaded.policy, &compiled), compiled.endings.len())
        };
        let counted = |ledger: &Ledger, live: &EndingCounters| -> Vec<(String, u64)> {
            let totals = ledger.totals(Some(live), false);
            let mine = totals.rules.iter().filter(|(key, _)| key.action == "allow");
            mine.map(|(key, count)| (format!("{} {}", key.direction, key.source), count.packets))
                .collect()
        };
        let (open, endings) = named(POLICY);
        assert_eq!(open.len(), endings);
        let once = counters(7, &vec![1; endings]);
        let ledger = Ledger::new(7, open.clone(), Totals::default());
        let before = counted(&ledger, &once);
        assert_eq!(before.len(), 6);
        assert!(before.iter().all(|(_, packets)| *packets > 0), "{before:?}");

        let shadow = POLICY.replace("version = 1\n", "version = 1\ndeny = [\"192.0.2.7\"]\n");
        let shadow = shadow + "deny = [\"192.0.2.53\"]\n";
        let (shadowed, endings) = named(&shadow);
        assert_eq!(shadowed.len(), endings + 4);
        let ledger = ledger.turn(Some(&once), 8, shadowed);
        let none = counters(8, &vec![0; endings]);
        assert_eq!(counted(&ledger, &none), before);
        let ledger = ledger.turn(Some(&none), 9, open);
        assert_eq!(counted(&ledger, &counters(9, &[])), before);
        // One that leaves the policy takes its counts with it.
        let (gone, _) = named(&POLICY.replace("192.0.2.7", "192.0.2.8"));
        let ledger = ledger.turn(Some(&counters(9, &[])), 10, gone);
        let left = counted(&ledger, &counters(10, &[]));
        assert!(left.contains(&("ingress 192.0.2.8".to_owned(), 0)), "{left:?}");
        assert!(
            !left.iter().any(|(name, _)| name.ends_with("192.0.2.7")),
            "{left:?}"
        );
    }

    #[test]
    fn both_directions_are_counted_apart_and_survive_a_switch() {
        const POLICY: &str = "version = 1\n[defaults]\negress = \"deny\"\n[groups]\nus = [\"192.0.2.0/24\"]\n\
                              [[service]]\nname = \"web\"\nports = [\"tcp/443\"]\nallow = [\"@us\"]\n\
                              [[egress]]\nname = \"dns\"\nports = [\"udp/53\"]\nto = [\"192.0.2.53\"]\ndeny = [\"@us\"]\n\
                              [[egress]]\nname = \"lan\"\nto = [\"198.51.100.0/24\"]\n";
        let policy = crate::policy::file::parse(POLICY, std::path::Path::new("p"), 0)
            .unwrap()
            .policy;
        let compiled = crate::policy::compile::compile(&policy).unwrap();
        let names = names(&policy, &compiled);
        let ledger = Ledger::new(7, names.clone(), Totals::default());
        // Each ending counts one packet more than the one before.
        let each: Vec<u64> = (1..=compiled.endings.len() as u64).collect();
        let live = counters(7, &each);
        let totals = ledger.totals(Some(&live), false);
        let sum: u64 = totals.services.values().map(|count| count.packets).sum();
        let meant = names.iter().zip(&each).filter(|(name, _)| name.reason.is_some());
        assert_eq!(sum, meant.map(|(_, packets)| packets).sum::<u64>());

        let rows = |totals: &Totals| -> Vec<String> {
            let named = totals.services.iter().filter(|(key, _)| !key.service.is_empty());
            named
                .map(|(key, count)| {
                    let counted = if count.packets > 0 { "" } else { " 0" };
                    format!(
                        "{} {} {} {}{counted}",
                        key.service, key.direction, key.verdict, key.reason
                    )
                })
                .collect()
        };
        let expected = [
            "dns egress drop egress-denied",
            "dns egress pass egress-allowed 0",
            "lan egress drop egress-denied 0",
            "lan egress pass egress-allowed",
            "web egress pass answer",
            "web ingress drop not-allowed",
            "web ingress drop service-denied 0",
            "web ingress pass allowed",
        ];
        assert_eq!(rows(&totals), expected);
        let rules: Vec<String> = totals
            .rules
            .keys()
            .map(|key| format!("{} {} {} {}", key.service, key.direction, key.action, key.source))
            .collect();
        assert_eq!(
            rules,
            [
                "dns egress allow 192.0.2.53",
                "dns egress allow prefixes",
                "dns egress deny @us",
                "lan egress allow 198.51.100.0/24",
                "lan egress allow prefixes",
                "web egress allow @us",
                "web ingress allow @us",
            ]
        );
        // The bare endings: what cannot happen to a direction is not shown at zero, and is kept where it was counted.
        let bare = |totals: &Totals, direction: &str, reason: Reason| {
            let key = ServiceKey {
                service: String::new(),
                direction: direction.into(),
                verdict: verdict_word(reason).into(),
                reason: reason.word().into(),
            };
            totals.services.get(&key).map(|count| count.packets)
        };
        let none = ledger.totals(None, false);
        assert_eq!(bare(&none, "egress", Reason::EgressClosed), Some(0));
        assert_eq!(bare(&none, "egress", Reason::Closed), None);
        assert_eq!(bare(&none, "ingress", Reason::Closed), Some(0));
        assert_eq!(bare(&none, "ingress", Reason::EgressClosed), None);
        let turned = ledger.turn(Some(&live), 8, names).totals(None, false);
        assert_eq!(rows(&turned), expected);
        assert_eq!(
            bare(&turned, "egress", Reason::Closed),
            Some(1 + 64 + u64::from(Reason::Closed.number()))
        );
    }
}
