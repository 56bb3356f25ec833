//! What there is to see of the owner's state: the status, the tables, the material of metrics and of `explain`.
//!
//! Counters are read from the kernel's maps at the moment they are asked for.

use super::config::Mode;
use super::counters::{self, Totals};
use super::handle::{BanScrape, ExplainBasis, FlowBasis, FlowScrape, InterfaceScrape, Readiness, Scrape};
use super::links::State as LinkState;
use super::owner::Owner;
use super::reload::{Origin, chain};
use crate::api::types::{
    AnomalyList, BanStatus, Count, CounterRow, FlowStatus, InterfaceStatus, LimitRow, LimitState,
    PolicyStatus, RuleRow, ServiceRow, Status, Uncovered,
};
use crate::datapath::{Datapath, DatapathError, Ingress, Interface, Options, Part, TcMode};
use crate::detect::Kind;
use crate::detect::detector::Sample;
use crate::policy::model::{self, Action, EgressId, Place, Rule, ServiceId};
use crate::simulate::{Flows, Memory};
use firewall_common::control::{AddressKey, Config as Control};
use firewall_common::counter::{Counter, InterfaceCounter, Tally};
use firewall_common::verdict::{Direction, Reason};
use std::cell::RefCell;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::PoisonError;

fn count(counter: Counter) -> Count {
    Count {
        packets: counter.packets,
        bytes: counter.bytes,
    }
}

impl Owner {
    pub(super) fn publish(&self) {
        let now = Readiness {
            generation: self.in_force.as_ref().map_or(0, |in_force| in_force.generation),
            ready: self.in_force.is_some() && self.links.ready(),
        };
        self.out
            .readiness
            .send_if_modified(|known| std::mem::replace(known, now) != now);
    }

    pub(super) fn status(&self) -> Status {
        let interfaces = self
            .links
            .states()
            .map(|(interface, state)| {
                let counts = self.interface_counts(interface.index);
                let repairs = self.links.repairs(interface.index);
                let status = InterfaceStatus {
                    name: interface.name.clone(),
                    ifindex: interface.index,
                    kind: self.kind_words(interface),
                    passed: count(counts.passed),
                    dropped: count(counts.dropped),
                    egress_passed: count(counts.egress_passed),
                    egress_dropped: count(counts.egress_dropped),
                    repairs: repairs.map_or(0, |repairs| repairs.count.values().sum()),
                    last_repair: repairs.map(|repairs| repairs.last.clone()),
                    ..InterfaceStatus::default()
                };
                match state {
                    LinkState::Attached(attachment) => InterfaceStatus {
                        hook: attachment.ingress.hook().into(),
                        mode: attachment.ingress.to_string(),
                        xdp: match attachment.ingress {
                            Ingress::Tc(_) => "none".into(),
                            mode => mode.to_string(),
                        },
                        egress: egress_word(attachment.egress),
                        frags: attachment.frags,
                        detail: attachment.detail.clone(),
                        ..status
                    },
                    LinkState::Refused { error, .. } => InterfaceStatus {
                        hook: "none".into(),
                        mode: "none".into(),
                        xdp: "none".into(),
                        egress: "none".into(),
                        detail: Some(error.clone()),
                        ..status
                    },
                }
            })
            .collect();
        let mut degraded = self.datapath.as_ref().map(Datapath::degraded).unwrap_or_default();
        degraded.extend(self.notes.values().cloned());
        let flows = self.flow_scrape();
        degraded.extend(flows.warning());
        let fleet = self
            .out
            .fleet
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        degraded.extend(fleet.iter().flat_map(|fleet| fleet.degraded.iter().cloned()));
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            instance: self.config.instance.clone(),
            pid: std::process::id(),
            kernel: nix::sys::utsname::uname()
                .map(|name| name.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            mode: self.mode.to_string(),
            uptime_seconds: self.started.elapsed().as_secs(),
            policy: self.policy_status(),
            interfaces,
            uncovered: self
                .links
                .uncovered()
                .map(|(interface, reason)| Uncovered {
                    name: interface.name.clone(),
                    ifindex: interface.index,
                    kind: self.kind_words(interface),
                    reason,
                })
                .collect(),
            // Found on request, by whoever asks: see `crate::api::server`.
            published: Vec::new(),
            unmatched: self.links.unmatched(),
            failsafe: self.config.failsafe.iter().map(ToString::to_string).collect(),
            bans: self.ban_status(),
            flows: FlowStatus {
                live: flows.live,
                max: flows.max,
                displaced: flows.displaced,
            },
            limits: self.limit_status(),
            drift: self.drift.status(),
            anomalies: self.anomalies().anomalies,
            fleet,
            warnings: self.config.warnings(),
            degraded,
            ready: self.in_force.is_some() && self.links.ready(),
        }
    }

    /// `physical`, or what the kernel calls its kind; and what it is a member of.
    fn kind_words(&self, interface: &Interface) -> String {
        let kind = match interface.kind.as_deref() {
            Some(kind) => kind,
            None if interface.loopback => "loopback",
            None => "physical",
        };
        match interface.master.and_then(|master| self.links.get(master)) {
            Some(master) => format!("{kind} in {}", master.name),
            None => kind.to_owned(),
        }
    }

    fn policy_status(&self) -> PolicyStatus {
        let desired = self.desired.as_ref();
        PolicyStatus {
            path: self.config.policy.display().to_string(),
            generation: self.in_force.as_ref().map_or(0, |in_force| in_force.generation),
            digest: self
                .in_force
                .as_ref()
                .map(|in_force| hex(&in_force.digest))
                .unwrap_or_default(),
            applied_at: desired.map_or(0, |desired| desired.applied_at),
            origin: match desired {
                None => "kernel",
                Some(desired) if !desired.local => "fleet",
                Some(_) if self.reload.from_file => Origin::File.word(),
                Some(_) => Origin::LastGood.word(),
            }
            .into(),
            last_error: self.reload.error.clone(),
            warnings: desired
                .map(|desired| desired.warnings.clone())
                .unwrap_or_default(),
            stats: desired.map(|desired| desired.stats).unwrap_or_default(),
            temporary: self.deadlines.status(&*self.clock),
        }
    }

    fn interface_counts(&self, index: u32) -> InterfaceCounter {
        let counted = self.datapath.as_ref().and_then(|datapath| {
            datapath
                .interface_counters(index)
                .inspect_err(|error| {
                    log::warn!("cannot read the counters of interface {index}: {}", chain(error))
                })
                .ok()
        });
        counted.unwrap_or_default()
    }

    pub(super) fn totals(&self) -> Totals {
        let live = self.datapath.as_ref().and_then(|datapath| {
            datapath
                .counters()
                .inspect_err(|error| log::warn!("cannot read the counters: {}", chain(error)))
                .ok()
        });
        self.ledger
            .as_ref()
            .map(|ledger| ledger.totals(live.as_ref(), self.mode == Mode::Observe))
            .unwrap_or_default()
    }

    pub(super) fn suppressed(&self) -> Vec<(Reason, u64)> {
        let Some(datapath) = &self.datapath else {
            return Vec::new();
        };
        datapath
            .suppressed()
            .inspect_err(|error| log::warn!("cannot read what was suppressed: {}", chain(error)))
            .unwrap_or_default()
    }

    pub(super) fn services(&self) -> Vec<ServiceRow> {
        let Some(desired) = &self.desired else {
            return Vec::new();
        };
        let totals = self.totals();
        let policy = &desired.policy;
        let sources = |owner: model::Owner, action| {
            let mine = policy
                .rules
                .iter()
                .filter(|rule| rule.owner == owner && rule.action == action);
            mine.map(|rule| rule.source.clone()).collect()
        };
        let counted = |direction: Direction, name: &str, verdict: &str| {
            let matching = totals.services.iter().filter(|(key, _)| {
                (&*key.direction, &*key.service, &*key.verdict) == (direction.word(), name, verdict)
            });
            matching.fold(Count::default(), |sum, (_, count)| Count {
                packets: sum.packets + count.packets,
                bytes: sum.bytes + count.bytes,
            })
        };
        let row = |owner: model::Owner, name: &str, ports: &[String], place: &Place| {
            let direction = owner.direction();
            ServiceRow {
                name: name.to_owned(),
                direction: direction.word().to_owned(),
                ports: ports.to_vec(),
                allow: sources(owner, Action::Allow),
                deny: sources(owner, Action::Deny),
                place: place.clone(),
                passed: counted(direction, name, counters::PASS),
                dropped: counted(direction, name, counters::DROP),
                answered: match direction {
                    Direction::Ingress => counted(Direction::Egress, name, counters::PASS),
                    Direction::Egress => Count::default(),
                },
                opened: 0,
                limits: Vec::new(),
            }
        };
        let states = self.limit_states();
        let services = (0..).zip(&policy.services).map(|(number, service)| {
            let owner = model::Owner::Service(ServiceId(number));
            ServiceRow {
                opened: totals
                    .opened
                    .iter()
                    // Those that count under a label count for themselves as well.
                    .filter(|(key, _)| key.service == service.name && key.source != counters::PREFIXES)
                    .map(|(_, opened)| opened)
                    .sum(),
                limits: limits_now(service.limit_rows(), &states),
                ..row(owner, &service.name, &service.ports_text, &service.place)
            }
        });
        let egress = (0..).zip(&policy.egress).map(|(number, rule)| {
            let owner = model::Owner::Egress(EgressId(number));
            row(owner, &rule.name, &rule.ports_text, &rule.place)
        });
        services.chain(egress).collect()
    }

    pub(super) fn rules(&self) -> Vec<RuleRow> {
        let Some(desired) = &self.desired else {
            return Vec::new();
        };
        let totals = self.totals();
        let policy = &desired.policy;
        let row = |rule: &Rule| {
            let direction = rule.owner.direction();
            let key = |direction: Direction| counters::RuleKey {
                service: policy.owner_name(rule.owner).unwrap_or_default().to_owned(),
                direction: direction.word().to_owned(),
                action: counters::word(rule.action).into(),
                source: rule.source.clone(),
            };
            let counted = |direction| totals.rules.get(&key(direction)).copied().unwrap_or_default();
            let named = key(direction);
            let lists = rule
                .lists
                .iter()
                .filter_map(|list| policy.lists.get(*list as usize));
            RuleRow {
                prefixes: lists.map(|list| list.len()).sum(),
                place: rule.place.clone(),
                count: counted(direction),
                answered: match direction {
                    Direction::Ingress => counted(Direction::Egress),
                    Direction::Egress => Count::default(),
                },
                opened: totals.opened.get(&named).copied().unwrap_or_default(),
                service: named.service,
                direction: named.direction,
                action: named.action,
                source: named.source,
            }
        };
        policy.rules.iter().map(row).collect()
    }

    pub(super) fn counter_rows(&self) -> Vec<CounterRow> {
        let totals = self.totals();
        let counted = totals.services.into_iter().filter(|(_, count)| count.packets > 0);
        counted
            .map(|(key, count)| CounterRow {
                service: key.service,
                direction: key.direction,
                verdict: key.verdict,
                reason: key.reason,
                count,
            })
            .collect()
    }

    pub(super) fn scrape(&self) -> Scrape {
        let interfaces = self.status().interfaces;
        let repairs = self
            .links
            .states()
            .flat_map(|(interface, _)| {
                let counted = self.links.repairs(interface.index);
                [Part::Xdp, Part::Tc, Part::Egress].map(|part| {
                    let count = counted.and_then(|counted| counted.count.get(&part));
                    (interface.name.clone(), part, count.copied().unwrap_or(0))
                })
            })
            .collect();
        let policy = self.policy_status();
        Scrape {
            totals: self.totals(),
            interfaces: interfaces
                .into_iter()
                .map(|one| InterfaceScrape {
                    name: one.name,
                    hook: one.hook,
                    mode: one.mode,
                    egress: one.egress,
                    passed: one.passed,
                    dropped: one.dropped,
                    egress_passed: one.egress_passed,
                    egress_dropped: one.egress_dropped,
                })
                .collect(),
            repairs,
            generation: policy.generation,
            digest: policy.digest,
            stats: policy.stats,
            reload_ok: self.reload.error.is_none(),
            reload_at: self.reload.at.as_secs_f64(),
            reload_success_at: self.reload.success_at.as_secs_f64(),
            suppressed: self.suppressed(),
            flows: self.flow_scrape(),
            limits: self.limit_states(),
            connections_mended: self.recounts().mended,
            drift: self.drift.counts(),
            bans: self.ban_scrape(),
            anomalies: self.anomaly_flags(),
            enforcing: self.mode == Mode::Enforce,
            fleet: self
                .out
                .fleet
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    /// The configuration as the kernel has it, and the addresses of this host.
    fn control(&self) -> (Box<Control>, HashSet<AddressKey>) {
        let node = self.node_config();
        let mut control = Box::new(Control::DEFAULT);
        control.observe = node.observe.into();
        control.link_control = node.link_control;
        control.ban_lens = node.ban_lens;
        for entry in node.failsafe {
            // The configuration holds no more than fit.
            let _ = control.add_failsafe(entry);
        }
        let own: HashSet<AddressKey> = node.own.into_iter().map(address_key).collect();
        for address in &own {
            control.add_own_address(address.high, address.low);
        }
        (control, own)
    }

    pub(super) fn flow_scrape(&self) -> FlowScrape {
        let Some(datapath) = &self.datapath else {
            return FlowScrape::default();
        };
        let read = || {
            let (live, max) = datapath.flow_pressure()?;
            Ok(FlowScrape {
                live: live as u64,
                max: max as u64,
                created: datapath.tally(Tally::FlowCreated)?,
                displaced: datapath.tally(Tally::FlowDisplaced)?,
                lost: datapath.tally(Tally::FlowLost)?,
            })
        };
        read()
            .inspect_err(|error: &DatapathError| log::warn!("cannot read the flow table: {}", chain(error)))
            .unwrap_or_default()
    }

    fn ban_status(&self) -> BanStatus {
        let scrape = self.ban_scrape();
        BanStatus {
            by_operator: scrape.by_operator,
            automatic: scrape.automatic,
            max: scrape.max,
        }
    }

    fn ban_scrape(&self) -> BanScrape {
        let (by_operator, automatic, begun) = self.bans.book.counts(self.ban_clock());
        let datapath = self.datapath.as_ref();
        BanScrape {
            by_operator,
            automatic,
            begun,
            max: datapath.map_or(0, Datapath::bans_max) as u64,
            lost: datapath
                .and_then(|datapath| datapath.tally(Tally::BanLost).ok())
                .unwrap_or(0),
        }
    }

    /// A table keeps its size as long as its pins live, so that no flow is lost.
    pub(super) fn note_flows_max(&mut self) {
        let Some(Ok((_, max))) = self.datapath.as_ref().map(Datapath::flow_pressure) else {
            return;
        };
        let asked = self.config.flows_max;
        let text = format!(
            "the flow table keeps its size of {max} flows, though {asked} are configured; `ravelin detach` and a new start \
             make it anew: the host stands open in between"
        );
        self.note("flows", (max != Options::capacity(asked)).then_some(text));
    }

    pub(super) fn samples(&self) -> Option<Vec<Sample>> {
        let counted = self.datapath.as_ref()?.counters();
        let live = counted
            .inspect_err(|error| log::warn!("cannot read the counters: {}", chain(error)))
            .ok()?;
        Some(self.ledger.as_ref()?.samples(&live))
    }

    pub(super) fn anomalies(&self) -> AnomalyList {
        let board = self.out.board.read().unwrap_or_else(PoisonError::into_inner);
        board.list.clone()
    }

    fn anomaly_flags(&self) -> Vec<(String, Kind, bool)> {
        let board = self.out.board.read().unwrap_or_else(PoisonError::into_inner);
        board.flags.clone()
    }

    pub(super) fn flow_basis(&self) -> FlowBasis {
        let (control, own) = self.control();
        let read = |datapath: &Datapath| {
            datapath
                .flows()
                .inspect_err(|error| log::warn!("cannot read the flow table: {}", chain(error)))
                .ok()
        };
        let scrape = self.flow_scrape();
        FlowBasis {
            policy: self
                .desired
                .as_ref()
                .map(|desired| (desired.policy.clone(), desired.compiled.clone())),
            control,
            own,
            flows: self.datapath.as_ref().and_then(read).unwrap_or_default(),
            max: scrape.max,
            displaced: scrape.displaced,
            interfaces: self
                .links
                .known()
                .map(|interface| (interface.index, interface.name.clone()))
                .collect(),
        }
    }

    pub(super) fn explain_basis(&self) -> Option<ExplainBasis> {
        let desired = self.desired.as_ref()?;
        let now = self.ban_clock();
        let (control, own) = self.control();
        let (gate, seed) = self
            .datapath
            .as_ref()
            .map(Datapath::gate_cells)
            .unwrap_or_default();
        let (flows, fragments) = self.datapath.as_ref().map(Datapath::tables).unwrap_or_default();
        let flows = Flows {
            gate: RefCell::new(gate),
            seed,
            now_s: now.kernel,
            generation: self.in_force.as_ref().map_or(0, |in_force| in_force.generation),
            flows: Memory::from_words(flows),
            fragments: Memory::from_words(fragments),
            bans: self.bans.book.live(now).map(|(key, ban)| (*key, *ban)).collect(),
            ..Flows::unknown()
        };
        Some(ExplainBasis {
            bans: self.bans.book.rows(now),
            flows,
            policy: desired.policy.clone(),
            text: desired.text.clone(),
            documents: self.documents.clone(),
            compiled: desired.compiled.clone(),
            control,
            own,
            generation: self.in_force.as_ref().map_or(0, |in_force| in_force.generation),
        })
    }
}

/// The limits of a service with what they hold now.
fn limits_now(mut rows: Vec<LimitRow>, states: &[LimitState]) -> Vec<LimitRow> {
    for row in &mut rows {
        let Some(state) = states.iter().find(|state| state.scope == row.scope) else {
            continue;
        };
        row.challenged = state.challenged_seconds.is_some();
        row.connections = state.values.iter().find_map(|value| value.connections);
    }
    rows
}

pub fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

pub(super) fn egress_word(mode: Option<TcMode>) -> String {
    mode.map_or_else(|| "none".to_owned(), |mode| mode.to_string())
}

fn address_key(address: IpAddr) -> AddressKey {
    match address {
        IpAddr::V4(address) => AddressKey {
            high: 0,
            low: u32::from(address).into(),
        },
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            AddressKey {
                high: (bits >> 64) as u64,
                low: bits as u64,
            }
        }
    }
}
