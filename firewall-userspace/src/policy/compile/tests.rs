use super::limits::{source_rate, total_rate};
use super::*;
use crate::policy::limits::{Connections, LimitGroup, Limits, OnExcess, Per, Rate, Rates, SourceLengths};
use crate::policy::model::{Egress, EgressId, Place, Rule, Service};
use crate::policy::set::AddressSet;
use firewall_common::image::{Image, NO_SERVICE, SlicePages};
use firewall_common::limit::{COUNTS, Kind, Rate as KernelRate, flag, profile};
use proptest::prelude::*;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A service or an egress rule before it is one: ports, allow list, deny list. An entry is `any` or a list.
#[derive(Clone, Debug)]
struct Sketch {
    ports: Vec<(PortKey, PortKey)>,
    allow: Vec<Option<u32>>,
    deny: Vec<Option<u32>>,
}

fn policy(
    defaults: (bool, bool),
    own_deny: &[Option<u32>],
    services: &[Sketch],
    egress: &[Sketch],
    lists: &[PrefixList],
) -> Policy {
    let mut rules = Vec::new();
    let mut add = |owner, action, entries: &[Option<u32>]| {
        rules.extend(entries.iter().map(|entry| Rule {
            owner,
            action,
            source: String::new(),
            any: entry.is_none(),
            lists: entry.iter().copied().collect(),
            place: Place::default(),
        }));
    };
    add(Owner::Policy, Action::Deny, own_deny);
    for (number, service) in (0..).zip(services) {
        let owner = Owner::Service(ServiceId(number));
        add(owner, Action::Deny, &service.deny);
        add(owner, Action::Allow, &service.allow);
    }
    for (number, rule) in (0..).zip(egress) {
        let owner = Owner::Egress(EgressId(number));
        add(owner, Action::Deny, &rule.deny);
        add(owner, Action::Allow, &rule.allow);
    }
    let service = |sketch: &Sketch| Service {
        name: String::new(),
        ports_text: Vec::new(),
        ports: sketch.ports.clone(),
        ..Service::default()
    };
    let leaving = |sketch: &Sketch| Egress {
        name: String::new(),
        ports_text: Vec::new(),
        ports: sketch.ports.clone(),
        place: Place::default(),
    };
    Policy {
        default_allow: defaults.0,
        egress_deny: defaults.1,
        services: services.iter().map(service).collect(),
        egress: egress.iter().map(leaving).collect(),
        rules,
        lists: lists.iter().cloned().map(Arc::new).collect(),
    }
}

/// What the image says of what leaves for `peer` at `key`.
fn egress_cell(compiled: &Compiled, peer: IpAddr, key: PortKey) -> Cell {
    let pages = SlicePages(&compiled.image);
    let image = Image::open(&pages).unwrap();
    let row = image.egress_row(key).unwrap();
    image.verdict(row, class(&image, peer)).unwrap()
}

/// What it says of what comes in from `peer` to `key`.
fn ingress_cell(compiled: &Compiled, peer: IpAddr, key: PortKey) -> Cell {
    let pages = SlicePages(&compiled.image);
    let image = Image::open(&pages).unwrap();
    let service = image.service(key).unwrap();
    image.verdict(service, class(&image, peer)).unwrap()
}

fn class(image: &Image<'_, SlicePages<'_>>, peer: IpAddr) -> u32 {
    let class = match peer {
        IpAddr::V4(peer) => image.class(4, 0, u64::from(u32::from(peer))),
        IpAddr::V6(peer) => {
            let bits = u128::from(peer);
            image.class(6, (bits >> 64) as u64, bits as u64)
        }
    };
    class.unwrap()
}

/// The first entry, in the order of the file, of the owners and the action that covers `peer`.
fn first(policy: &Policy, peer: IpAddr, action: Action, of: impl Fn(Owner) -> bool) -> Option<RuleId> {
    let found = policy.rules.iter().position(|rule| {
        of(rule.owner) && rule.action == action && (rule.any || holds_peer(policy, &rule.lists, peer))
    });
    found.map(|number| RuleId(number as u32))
}

/// Whether any of the lists names `peer`.
fn holds_peer(policy: &Policy, lists: &[u32], peer: IpAddr) -> bool {
    lists.iter().any(|list| {
        let list = &policy.lists[*list as usize];
        match peer {
            IpAddr::V4(peer) => list
                .v4
                .iter()
                .any(|(address, len)| *len == 0 || (u32::from(peer) ^ address) >> (32 - len) == 0),
            IpAddr::V6(peer) => list
                .v6
                .iter()
                .any(|(address, len)| *len == 0 || (u128::from(peer) ^ address) >> (128 - len) == 0),
        }
    })
}

fn holds(ports: &[(PortKey, PortKey)], key: PortKey) -> bool {
    ports.iter().any(|(first, last)| (*first..=*last).contains(&key))
}

/// What the policy says of what leaves, read rule by rule.
fn egress_oracle(policy: &Policy, peer: IpAddr, key: PortKey) -> Option<(Reason, RuleId)> {
    let meets = |owner: Owner| {
        owner.egress().is_some_and(|id| {
            let ports = &policy.egress[id.0 as usize].ports;
            ports.is_empty() || holds(ports, key)
        })
    };
    let find = |action| first(policy, peer, action, meets);
    match (find(Action::Deny), find(Action::Allow)) {
        (Some(rule), _) => Some((Reason::EgressDenied, rule)),
        (None, rule) => rule.map(|rule| (Reason::EgressAllowed, rule)),
    }
}

fn ranges(keys: RangeInclusive<u32>) -> impl Strategy<Value = (PortKey, PortKey)> {
    (keys, 0..600_u32).prop_map(|(first, more)| (PortKey(first), PortKey(first + more)))
}

/// Sorted, and joined where they overlap.
fn disjoint(mut ranges: Vec<(PortKey, PortKey)>) -> Vec<(PortKey, PortKey)> {
    ranges.sort();
    let mut out: Vec<(PortKey, PortKey)> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.0 <= last.1 => last.1 = last.1.max(range.1),
            _ => out.push(range),
        }
    }
    out
}

/// The ports where things happen: around the edges of blocks and protocols.
const LAST: u32 = 0x3_02ff;

fn keys() -> impl Strategy<Value = u32> {
    prop_oneof![0..1200_u32, 0xff00..0x1_0300_u32, 0x3_0000..LAST + 1, 0..LAST + 1]
}

fn entries() -> impl Strategy<Value = Vec<Option<u32>>> {
    prop::collection::vec(prop::option::weighted(0.9, 0..6_u32), 0..4)
}

fn sketches() -> impl Strategy<Value = Vec<Sketch>> {
    let ports = prop_oneof![
        1 => Just(Vec::new()),
        4 => prop::collection::vec(prop_oneof![ranges(0..=1000), ranges(0xff00..=0x1_0100), ranges(0x3_0000..=LAST - 600)], 1..5)
            .prop_map(disjoint),
    ];
    let sketch = (ports, entries(), entries()).prop_map(|(ports, allow, deny)| Sketch { ports, allow, deny });
    prop::collection::vec(sketch, 0..7)
}

/// A service may not share its ports, nor be without.
fn services() -> impl Strategy<Value = Vec<Sketch>> {
    let service = |number: u32| {
        let sketch = (0..100_u32, entries(), entries());
        sketch.prop_map(move |(more, allow, deny)| Sketch {
            ports: vec![(PortKey(number * 200), PortKey(number * 200 + more))],
            allow,
            deny,
        })
    };
    (0..5_u32).prop_flat_map(move |count| (0..count).map(service).collect::<Vec<_>>())
}

fn prefixes() -> impl Strategy<Value = Vec<PrefixList>> {
    let v4 = (0..4_u32, 0..4_u32, 6..33_u8).prop_map(|(a, b, len)| {
        let address = 0x0a00_0000 | a << 16 | b << 6;
        (address & (u32::MAX << (32 - len)), len)
    });
    let v6 = (0..4_u128, 0..4_u128, 30..129_u8).prop_map(|(a, b, len)| {
        let address = 0x2001_0db8 << 96 | a << 80 | b << 2;
        (address & (u128::MAX << (128 - len)), len)
    });
    let list = (prop::collection::vec(v4, 0..4), prop::collection::vec(v6, 0..4));
    prop::collection::vec(list.prop_map(|(v4, v6)| PrefixList { v4, v6 }), 6)
}

fn peers() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..4_u8, 0..4_u8, 0..4_u8).prop_map(|(a, b, c)| IpAddr::from([10, a, 0, b << 6 | c])),
        (0..4_u16, 0..16_u16).prop_map(|(a, b)| IpAddr::from([0x2001, 0xdb8, a, 0, 0, 0, 0, b])),
        Just(IpAddr::from([192, 0, 2, 1])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn what_leaves_is_judged_as_a_scan_of_all_rules_judges_it(
        (own_deny, services, egress, lists) in (entries(), services(), sketches(), prefixes()),
        packets in prop::collection::vec((peers(), keys()), 120),
    ) {
        let policy = policy((false, true), &own_deny, &services, &egress, &lists);
        let compiled = compile(&policy).unwrap();
        for (peer, key) in packets {
            let key = PortKey(key);
            let cell = egress_cell(&compiled, peer, key);
            let Some((reason, rule)) = egress_oracle(&policy, peer, key) else {
                prop_assert_eq!(cell, Cell::NO_MATCH, "{} {:?}", peer, key);
                continue;
            };
            let said = compiled.endings[cell.ending() as usize];
            prop_assert_eq!(Reason::from_number(cell.reason()), Some(reason), "{} {:?}", peer, key);
            let expected = Ending { direction: Direction::Egress, reason: Some(reason), service: None, rule: Some(rule), opens: false, profile: 0 };
            prop_assert_eq!(said, expected, "{} {:?}", peer, key);
        }
    }

    #[test]
    fn egress_rules_change_nothing_for_what_comes_in(
        (own_deny, services, egress, lists) in (entries(), services(), sketches(), prefixes()),
        packets in prop::collection::vec((peers(), 0..1200_u32), 120),
    ) {
        let with = policy((false, false), &own_deny, &services, &egress, &lists);
        let compiled = compile(&with).unwrap();
        for (peer, key) in packets {
            let key = PortKey(key);
            let cell = ingress_cell(&compiled, peer, key);
            let service = services.iter().position(|service| holds(&service.ports, key));
            let service = service.map(|index| ServiceId(index as u16));
            let find = |action, of: Owner| first(&with, peer, action, |owner| owner == of);
            let expected = match (find(Action::Deny, Owner::Policy), service) {
                (Some(rule), _) => Some((Reason::Denied, Some(rule))),
                (None, None) => None,
                (None, Some(id)) => Some(match (find(Action::Deny, Owner::Service(id)), find(Action::Allow, Owner::Service(id))) {
                    (Some(rule), _) => (Reason::ServiceDenied, Some(rule)),
                    (None, Some(rule)) => (Reason::Allowed, Some(rule)),
                    (None, None) => (Reason::NotAllowed, None),
                }),
            };
            let Some((reason, rule)) = expected else {
                prop_assert_eq!(cell, Cell::NO_MATCH, "{} {:?}", peer, key);
                continue;
            };
            let ending = compiled.endings[cell.ending() as usize];
            // A policy-wide deny at a port of no service names no service.
            let expected = Ending { direction: Direction::Ingress, reason: Some(reason), service, rule, opens: false, profile: 0 };
            prop_assert_eq!(ending, expected, "{} {:?}", peer, key);
            if reason == Reason::Allowed {
                let answer = Ending { direction: Direction::Egress, reason: Some(Reason::Answer), ..expected };
                prop_assert_eq!(compiled.endings[(cell.ending() + counter::ANSWER) as usize], answer);
                let opens = Ending { opens: true, ..expected };
                prop_assert_eq!(compiled.endings[(cell.ending() + counter::OPENS) as usize], opens);
            }
        }
    }
}

fn rate() -> impl Strategy<Value = Option<Rate>> {
    let per = prop_oneof![Just(Per::Second), Just(Per::Minute), Just(Per::Hour)];
    let rate = (1_u64..100_000, per, 65_536_u64..10_000_000);
    prop::option::weighted(
        0.3,
        rate.prop_map(|(amount, per, burst)| Rate {
            amount: amount * 1000,
            per,
            burst,
        }),
    )
}

fn limits() -> impl Strategy<Value = Limits> {
    let rates = || (rate(), rate()).prop_map(|(per_source, total)| Rates { per_source, total });
    let count = || prop::option::weighted(0.3, 1_u32..1_000_000);
    let excess = prop_oneof![
        Just(OnExcess::Drop),
        Just(OnExcess::Challenge),
        (1_u32..1_000_000).prop_map(OnExcess::Ban)
    ];
    let counts = (count(), count()).prop_map(|(per_source, total)| Connections { per_source, total });
    let source = (8_u8..=32, 16_u8..=128).prop_map(|(v4, v6)| SourceLengths { v4, v6 });
    ([rates(), rates(), rates()], counts, source, excess).prop_map(
        |(rates, connections, source, on_excess)| Limits {
            rates,
            connections,
            source,
            on_excess,
            place: None,
        },
    )
}

/// By service: its limits, and those of groups with the lists that they try to name.
type Limited = Vec<(Limits, Vec<(Vec<u32>, Limits)>)>;

fn limited() -> impl Strategy<Value = Limited> {
    let limits = || prop_oneof![1 => Just(Limits::default()), 2 => limits()];
    let group = (prop::collection::vec(0..6_u32, 1..3), limits());
    prop::collection::vec((limits(), prop::collection::vec(group, 0..4)), 5)
}

/// Puts limits into a policy; groups that share an address with an earlier one are left out, as the file would be refused.
fn put_limits(policy: &mut Policy, limited: &Limited) {
    for (number, (limits, groups)) in (0..policy.services.len()).zip(limited) {
        let mut kept: Vec<(AddressSet, LimitGroup)> = Vec::new();
        for (lists, limits) in groups {
            let prefixes: Vec<&PrefixList> =
                lists.iter().map(|list| &*policy.lists[*list as usize]).collect();
            let set = AddressSet::of_all(&prefixes);
            if kept.iter().all(|(other, _)| other.intersection(&set).is_empty()) {
                let group = LimitGroup {
                    sources: vec![format!("@{}", kept.len())],
                    lists: lists.clone(),
                    limits: limits.clone(),
                    place: Place::default(),
                };
                kept.push((set, group));
            }
        }
        let service = &mut policy.services[number];
        service.name = format!("s{number}");
        service.limits = limits.clone();
        service.groups = kept.into_iter().map(|(_, group)| group).collect();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn limits_are_those_that_a_scan_of_the_policy_finds(
        (own_deny, services, lists, limited) in (entries(), services(), prefixes(), limited()),
        packets in prop::collection::vec((peers(), 0..1200_u32), 100),
    ) {
        let mut with = policy((false, false), &own_deny, &services, &[], &lists);
        put_limits(&mut with, &limited);
        let compiled = compile(&with).unwrap();
        prop_assert_eq!(&compile(&with).unwrap().image, &compiled.image);
        let pages = SlicePages(&compiled.image);
        let image = Image::open(&pages).unwrap();
        for (number, scope) in (0..).zip(&compiled.scopes) {
            let record = image.profile(number + 1).unwrap();
            prop_assert_eq!(u32::from(record.u16(profile::SCOPE)), number);
            prop_assert_eq!(record.u16(profile::SERVICE), scope.service.0 + 1);
        }
        for (peer, key) in packets {
            let key = PortKey(key);
            let cell = ingress_cell(&compiled, peer, key);
            if Reason::from_number(cell.reason()) != Some(Reason::Allowed) {
                prop_assert!(!cell.is_limited());
                continue;
            }
            let number = services.iter().position(|service| holds(&service.ports, key)).unwrap();
            let service = &with.services[number];
            let group = service.groups.iter().find(|group| holds_peer(&with, &group.lists, peer));
            let limits = group.map_or(&service.limits, |group| &group.limits);
            let nothing = Limits::default();
            let parent = group.map_or(&nothing, |_| &service.limits);
            let by = image.limited_by(cell.ending()).unwrap();
            let at = by.number();
            prop_assert_eq!(cell.is_limited(), at != 0);
            for other in [counter::ANSWER, counter::OPENS] {
                prop_assert_eq!(compiled.endings[(cell.ending() + other) as usize].profile, at as u16);
            }
            prop_assert_eq!(image.limited_by(cell.ending() + counter::OPENS), Some(by));
            prop_assert_eq!(by.flags(), image.profile(at).map_or(0, |profile| profile.flags()));
            if at == 0 {
                prop_assert!(limits.is_empty() && !parent.has_totals(), "{} {:?}", peer, key);
                continue;
            }
            let record = image.profile(at).unwrap();
            let scope = &compiled.scopes[record.u16(profile::SCOPE) as usize];
            prop_assert_eq!(&scope.name, &service.scope_name(group));
            for kind in Kind::ALL {
                prop_assert_eq!(record.source(kind), source_rate(limits, kind));
                prop_assert_eq!(record.total(profile::RATES, kind), total_rate(limits, kind));
                prop_assert_eq!(record.total(profile::PARENT_RATES, kind), total_rate(parent, kind));
                let needed = scope.needs & 1 << kind as u32 != 0;
                prop_assert_eq!(needed, limits.rates[kind as usize].per_source.is_some());
            }
            let count = |count: Option<u32>| count.unwrap_or(u32::MAX);
            prop_assert_eq!(record.u32(profile::CONNECTIONS_SOURCE), count(limits.connections.per_source));
            prop_assert_eq!(record.u32(profile::CONNECTIONS), count(limits.connections.total));
            prop_assert_eq!(record.u32(profile::CONNECTIONS_PARENT), count(parent.connections.total));
            let needed = scope.needs & 1 << COUNTS != 0;
            prop_assert_eq!(needed, limits.connections.per_source.is_some());
            let (challenges, bans, seconds) = match limits.on_excess {
                OnExcess::Drop => (false, false, 0),
                OnExcess::Challenge => (true, false, 0),
                OnExcess::Ban(seconds) => (true, true, seconds),
            };
            prop_assert_eq!(record.flags() & flag::CHALLENGE != 0, challenges);
            prop_assert_eq!(record.flags() & flag::BAN != 0, bans);
            prop_assert_eq!(record.u32(profile::BAN_S), seconds);
            let all = !0;
            let masked = |len: u32| if len == 0 { 0 } else { u128::MAX << (128 - len) };
            let v6 = masked(limits.source.v6.into());
            prop_assert_eq!(record.mask(6, all, all), ((v6 >> 64) as u64, v6 as u64));
            let v4 = u64::from(u32::MAX << (32 - limits.source.v4));
            prop_assert_eq!(record.mask(4, 0, all), (0, v4));
            // The endings of excess are those of the scope, then those of the service.
            let reasons = Reason::FIRST_EXCESS..Reason::FIRST_EXCESS + Reason::EXCESS as u8;
            let parent_scope = record.u16(profile::PARENT);
            prop_assert_eq!(parent_scope == profile::NO_PARENT, !parent.has_totals());
            for (offset, reason) in (0..).zip(reasons) {
                let mut runs = vec![(record.u32(profile::EXCESS), at as u16)];
                if parent_scope != profile::NO_PARENT {
                    prop_assert_eq!(&compiled.scopes[parent_scope as usize].name, &service.name);
                    runs.push((record.u32(profile::PARENT_EXCESS), parent_scope + 1));
                }
                for (first, profile) in runs {
                    let ending = compiled.endings[(first + offset) as usize];
                    let expected = Ending {
                        direction: Direction::Ingress,
                        reason: Reason::from_number(reason),
                        service: Some(ServiceId(number as u16)),
                        rule: None,
                        opens: false,
                        profile,
                    };
                    prop_assert_eq!(ending, expected);
                }
            }
        }
    }
}

#[test]
fn a_policy_without_limits_has_no_records() {
    let service = Sketch {
        ports: vec![(PortKey::tcp(1), PortKey::tcp(1))],
        allow: vec![None],
        deny: Vec::new(),
    };
    let compiled = compile(&policy((false, false), &[], &[service], &[], &[])).unwrap();
    assert_eq!(header(&compiled, field::PROFILES), 0);
    assert_eq!(compiled.scopes, []);
    let cell = ingress_cell(&compiled, IpAddr::from([192, 0, 2, 1]), PortKey::tcp(1));
    assert!(!cell.is_limited());
    // Packets, answers, packets that open connections.
    assert_eq!(compiled.endings.len(), 2 * Reason::COUNT + 3);
}

#[test]
fn more_limits_than_an_image_numbers_are_refused() {
    let rate = Rate {
        amount: 1,
        per: Per::Second,
        burst: 1,
    };
    let service = |number: u32| {
        let mut service = Service {
            name: format!("s{number}"),
            ..Service::default()
        };
        service.limits.rates[Kind::Packets as usize].total = Some(rate);
        service
    };
    let mut with = Policy {
        services: (0..MAX_LOCAL).map(service).collect(),
        ..Policy::default()
    };
    let compiled = compile(&with).unwrap();
    assert_eq!(compiled.scopes.len(), MAX_LOCAL as usize);
    assert_eq!(compiled.stats.limits, MAX_LOCAL as usize);
    let expected = KernelRate::total(Kind::Packets, 1, 1_000_000_000, 1);
    let pages = SlicePages(&compiled.image);
    let record = Image::open(&pages).unwrap().profile(MAX_LOCAL).unwrap();
    assert_eq!(record.total(profile::RATES, Kind::Packets), expected);
    with.services.push(with.services[0].clone());
    assert_eq!(
        compile(&with).unwrap_err().to_string(),
        "the policy needs 1025 limits, more than the 1024 that an image holds"
    );
}

fn everywhere(prefix: (u32, u8)) -> PrefixList {
    PrefixList {
        v4: vec![prefix],
        v6: Vec::new(),
    }
}

fn header(compiled: &Compiled, at: u32) -> u32 {
    let at = at as usize;
    u32::from_le_bytes(compiled.image[at..at + 4].try_into().unwrap())
}

#[test]
fn the_flags_say_which_way_is_judged() {
    let rule = Sketch {
        ports: Vec::new(),
        allow: vec![None],
        deny: Vec::new(),
    };
    let flags = |defaults, egress: &[Sketch]| {
        header(
            &compile(&policy(defaults, &[], &[], egress, &[])).unwrap(),
            field::FLAGS,
        )
    };
    assert_eq!(flags((false, false), &[]), 0);
    assert_eq!(flags((true, false), &[]), FLAG_DEFAULT_ALLOW);
    assert_eq!(flags((false, true), &[]), FLAG_EGRESS_DENY | FLAG_EGRESS_RULES);
    assert_eq!(
        flags((true, false), &[rule]),
        FLAG_DEFAULT_ALLOW | FLAG_EGRESS_RULES
    );
}

#[test]
fn a_deny_of_one_rule_beats_the_allow_of_another_at_the_ports_they_share() {
    let web = (PortKey::tcp(443), PortKey::tcp(443));
    let rules = [
        // Everything to 10/8, first written.
        Sketch {
            ports: Vec::new(),
            allow: vec![Some(0)],
            deny: Vec::new(),
        },
        // tcp/443, but not to 10.1/16.
        Sketch {
            ports: vec![web],
            allow: vec![None],
            deny: vec![Some(1)],
        },
    ];
    let lists = [everywhere((0x0a00_0000, 8)), everywhere((0x0a01_0000, 16))];
    let policy = policy((false, true), &[], &[], &rules, &lists);
    let compiled = compile(&policy).unwrap();
    let said = |peer: [u8; 4], key| {
        let cell = egress_cell(&compiled, IpAddr::from(peer), key);
        let rule = compiled.endings[cell.ending() as usize].rule;
        Reason::from_number(cell.reason()).map(|reason| (reason, rule.unwrap().0))
    };
    // Rule 0: allow 10/8; rule 1: deny 10.1/16; rule 2: allow any.
    let allowed = |rule| Some((Reason::EgressAllowed, rule));
    assert_eq!(
        said([10, 1, 0, 1], PortKey::tcp(443)),
        Some((Reason::EgressDenied, 1))
    );
    assert_eq!(said([10, 1, 0, 1], PortKey::tcp(444)), allowed(0));
    assert_eq!(said([10, 1, 0, 1], PortKey::udp(443)), allowed(0));
    assert_eq!(said([10, 2, 0, 1], PortKey::tcp(443)), allowed(0));
    assert_eq!(said([192, 0, 2, 1], PortKey::tcp(443)), allowed(2));
    assert_eq!(said([192, 0, 2, 1], PortKey::tcp(442)), None);
    // Two sets of rules meet anywhere: one row each, after that of no service.
    assert_eq!(header(&compiled, field::ROWS), 3);
    assert_eq!(header(&compiled, field::EGRESS_ROW), 1);
}

#[test]
fn the_bare_endings_are_the_reasons_of_either_direction() {
    let compiled = compile(&Policy::default()).unwrap();
    let both = Direction::ALL.into_iter().zip([0, counter::EGRESS]);
    for (direction, start) in both {
        for reason in Reason::ALL {
            let ending = compiled.endings[start as usize + reason.number() as usize];
            assert_eq!((ending.direction, ending.reason), (direction, Some(*reason)));
        }
    }
    // An empty policy says nothing of what leaves, and its row is there.
    assert_eq!(compiled.endings.len(), 2 * Reason::COUNT);
    assert_eq!(
        egress_cell(&compiled, IpAddr::from([192, 0, 2, 1]), PortKey::tcp(1)),
        Cell::NO_MATCH
    );
    assert_eq!(
        ingress_cell(&compiled, IpAddr::from([192, 0, 2, 1]), PortKey::tcp(1)),
        Cell::NO_MATCH
    );
    assert_ne!(header(&compiled, field::EGRESS_ROW) as u16, NO_SERVICE);
}
