//! Scopes: what keeps state of its own under limits, and the record of the image that says what holds there.
//!
//! A service with limits is one, each of its groups another. Groups of a service share no address, so a class of
//! addresses meets one of them, or the service itself. The record of a scope has the number of the scope, plus one.

use super::super::limits::{Limits, OnExcess};
use super::super::model::{Policy, ServiceId};
use super::{Ending, Scope, align, put32, put64};
use firewall_common::image::{LimitedBy, field};
use firewall_common::limit::{COUNTS, Kind, Rate, Record, flag, profile};
use firewall_common::verdict::{Direction, Reason};

/// The scopes of a policy, in the order of the services, of each its groups behind it.
pub struct Scopes<'a> {
    pub list: Vec<Scope>,
    /// The limits of each, and the scope whose totals hold as well.
    limits: Vec<(&'a Limits, Option<u16>)>,
    /// By service: the record of those whom no group names, 0 for none.
    pub of_services: Vec<u16>,
    /// By list: services in whose groups it stands, with the record there.
    pub of_lists: Vec<Vec<(u32, u16)>>,
}

impl<'a> Scopes<'a> {
    /// `policy` has at most 65,534 of them.
    pub fn new(policy: &'a Policy) -> Scopes<'a> {
        let mut scopes = Scopes {
            list: Vec::new(),
            limits: Vec::new(),
            of_services: Vec::new(),
            of_lists: vec![Vec::new(); policy.lists.len()],
        };
        for (number, service) in (0..).zip(&policy.services) {
            let id = ServiceId(number as u16);
            let own = (!service.limits.is_empty())
                .then(|| scopes.add(service.scope_name(None), id, &service.limits, None));
            scopes.of_services.push(own.map_or(0, |own| own + 1));
            let parent = own.filter(|_| service.limits.has_totals());
            for group in &service.groups {
                // What the service says in all holds for those as well whom nothing else limits.
                let record = match group.limits.is_empty() && parent.is_none() {
                    true => 0,
                    false => scopes.add(service.scope_name(Some(group)), id, &group.limits, parent) + 1,
                };
                for list in &group.lists {
                    scopes.of_lists[*list as usize].push((number, record));
                }
            }
        }
        scopes
    }

    /// How many scopes a policy has, for checking before it is compiled.
    pub fn count(policy: &Policy) -> u64 {
        let count = |limits: &Limits| u64::from(!limits.is_empty());
        let of = |service: &super::super::model::Service| {
            let groups = service.groups.iter();
            let groups = groups.filter(|group| !group.limits.is_empty() || service.limits.has_totals());
            count(&service.limits) + groups.count() as u64
        };
        policy.services.iter().map(of).sum()
    }

    fn add(&mut self, name: String, service: ServiceId, limits: &'a Limits, parent: Option<u16>) -> u16 {
        let by_kind = Kind::ALL.map(|kind| (kind as u32, limits.rates[kind as usize].per_source.is_some()));
        let counts = [(COUNTS, limits.connections.per_source.is_some())];
        let needs = by_kind.into_iter().chain(counts);
        let needs = needs.fold(0, |needs, (table, needed)| needs | u8::from(needed) << table);
        self.list.push(Scope { name, service, needs });
        self.limits.push((limits, parent));
        self.list.len() as u16 - 1
    }

    /// The endings of excess, [`Reason::EXCESS`] for each scope.
    pub fn endings(&self) -> impl Iterator<Item = Ending> {
        (1..).zip(&self.list).flat_map(|(number, scope)| {
            let reasons = Reason::FIRST_EXCESS..Reason::FIRST_EXCESS + Reason::EXCESS as u8;
            reasons.map(move |reason| Ending {
                direction: Direction::Ingress,
                reason: Reason::from_number(reason),
                service: Some(scope.service),
                rule: None,
                opens: false,
                profile: number,
            })
        })
    }

    /// Appends the records and what leads to them; the endings of excess begin at `first_excess`.
    pub fn write(&self, endings: &[Ending], first_excess: u32, image: &mut Vec<u8>) {
        if self.list.is_empty() {
            return;
        }
        let excess = |scope: u16| first_excess + u32::from(scope) * Reason::EXCESS;
        let mut records = Vec::new();
        for (number, (limits, parent)) in (0_u16..).zip(&self.limits) {
            let of_parent = parent.map(|parent| self.limits[parent as usize].0);
            let record = Record {
                flags: match limits.on_excess {
                    OnExcess::Drop => 0,
                    OnExcess::Challenge => flag::CHALLENGE,
                    OnExcess::Ban(_) => flag::CHALLENGE | flag::BAN,
                },
                scope: number,
                parent: parent.unwrap_or(profile::NO_PARENT),
                excess: excess(number),
                parent_excess: parent.map_or(0, excess),
                // The image numbers services from 1.
                service: self.list[number as usize].service.0 + 1,
                len_v4: limits.source.v4,
                len_v6: limits.source.v6,
                ban_s: match limits.on_excess {
                    OnExcess::Ban(seconds) => seconds,
                    OnExcess::Drop | OnExcess::Challenge => 0,
                },
                connections_source: limits.connections.per_source.unwrap_or(u32::MAX),
                connections: limits.connections.total.unwrap_or(u32::MAX),
                connections_parent: of_parent
                    .and_then(|parent| parent.connections.total)
                    .unwrap_or(u32::MAX),
                source: Kind::ALL.map(|kind| source_rate(limits, kind)),
                total: Kind::ALL.map(|kind| total_rate(limits, kind)),
                parent_total: Kind::ALL
                    .map(|kind| of_parent.map_or(Rate::default(), |parent| total_rate(parent, kind))),
            };
            records.push((record.write(), record.flags()));
        }
        let limited_by = align(image, 8);
        for ending in endings {
            let record = usize::from(ending.profile).checked_sub(1).map(|at| &records[at]);
            let by = record.map_or(LimitedBy::NOTHING, |(_, flags)| {
                LimitedBy::new(ending.profile, *flags)
            });
            image.extend_from_slice(&by.0.to_le_bytes());
        }
        let table = align(image, profile::SIZE as usize);
        for (record, _) in records {
            image.extend_from_slice(&record);
        }
        put32(image, field::PROFILES, self.list.len() as u32);
        put64(image, field::LIMITED_BY, limited_by);
        put64(image, field::PROFILE_TABLE, table);
    }
}

const NS: u64 = 1_000_000_000;

/// What one source may send.
pub(super) fn source_rate(limits: &Limits, kind: Kind) -> Rate {
    let rate = limits.rates[kind as usize].per_source;
    rate.map_or(Rate::default(), |rate| {
        Rate::source(kind, rate.amount, rate.per.seconds() * NS, rate.burst)
    })
}

/// What all may send together.
pub(super) fn total_rate(limits: &Limits, kind: Kind) -> Rate {
    let rate = limits.rates[kind as usize].total;
    rate.map_or(Rate::default(), |rate| {
        Rate::total(kind, rate.amount, rate.per.seconds() * NS, rate.burst)
    })
}
