//! The meaning of limits: values, what holds where, and what is surely a mistake.
//!
//! Precedence is stated here and nowhere else. A key that a service has beats that of the defaults; a key that a group has
//! beats that of its service. A rate and its burst are one: whoever gives the rate gives the burst, too, or the usual one;
//! a burst by itself changes that of the rate that comes from elsewhere. Totals of a group are its own, so it takes over
//! none; those of the service hold for it as well. What comes from the defaults and cannot be, such as connections of a
//! service without TCP, is left out.

use super::text::{self, Scope, TextError};
use super::{Connections, Kind, LimitGroup, Limits, OnExcess, Rate, Rates};
use crate::policy::diagnostic::Findings;
use crate::policy::file::inside;
use crate::policy::groups::{Groups, literal};
use crate::policy::model::{Action, Owner, Policy, PrefixList, Service};
use crate::policy::rules::Draft;
use crate::policy::set::AddressSet;
use crate::policy::source::Source;
use crate::policy::written::limits::{Content, Limit, Limits as Written, Pair, UNLIMITED, Value};
use crate::policy::written::{self, Word};
use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};

/// What the limits of the services mean, in the order of the services. `services` know their ports.
pub fn read(
    written: &written::Written,
    services: &mut [Service],
    groups: &mut Groups<'_>,
    findings: &mut Findings<'_>,
) {
    let nothing = Limits::default();
    let defaults = match &written.limits {
        Some(limits) => Table {
            label: "[defaults.limits]",
            base: &nothing,
            tcp: true,
            own_totals: false,
        }
        .read(limits, findings),
        None => nothing,
    };
    for (service, model) in written.services.iter().zip(&mut *services) {
        let base = for_service(&defaults, model);
        model.limits = match &service.limits {
            Some(limits) => Table {
                label: "[service.limits]",
                base: &base,
                tcp: model.has_tcp(),
                own_totals: false,
            }
            .read(limits, findings),
            None => base,
        };
        model.groups = read_groups(&service.groups, model, groups, findings);
    }
    if let Some(limits) = &written.limits {
        warn_of_defaults(limits, &defaults, services, findings);
    }
}

/// Warns of an `on_excess` of the defaults that neither they nor a service give anything to.
fn warn_of_defaults(written: &Written, defaults: &Limits, services: &[Service], findings: &mut Findings<'_>) {
    let Some(word) = &written.on_excess else { return };
    let groups = services.iter().flat_map(|service| &service.groups);
    let all: Vec<&Limits> = groups
        .map(|group| &group.limits)
        .chain(services.iter().map(|service| &service.limits))
        .chain([defaults])
        .collect();
    if all.iter().all(|limits| limits.is_empty()) {
        findings.warn(&word.span, NOTHING_TO_EXCEED, None);
    } else if let OnExcess::Ban(_) = defaults.on_excess
        && !all
            .iter()
            .any(|limits| matches!(limits.on_excess, OnExcess::Ban(_)) && limits_connections(limits))
    {
        warn_of_idle_ban(word, findings);
    }
}

const NOTHING_TO_EXCEED: &str = "\"on_excess\" without a limit: nothing can exceed it";

/// Whether it limits the connections of one source: who exceeds that can be banned.
fn limits_connections(limits: &Limits) -> bool {
    limits.rates[Kind::NewConnections as usize].per_source.is_some()
        || limits.connections.per_source.is_some()
}

fn warn_of_idle_ban(word: &Word, findings: &mut Findings<'_>) {
    let message = format!(
        "\"{}\" bans nobody: no connections of a source are limited",
        word.text
    );
    let hint = "add per_source to \"new_connections\" or \"connections\"";
    findings.warn(&word.span, message, Some(hint.into()));
}

/// The defaults as far as they can hold for a service.
fn for_service(defaults: &Limits, service: &Service) -> Limits {
    let mut limits = defaults.clone();
    if !service.has_tcp() {
        without_tcp(&mut limits);
    }
    limits
}

fn without_tcp(limits: &mut Limits) {
    limits.rates[Kind::NewConnections as usize] = Rates::default();
    limits.connections = Connections::default();
    limits.on_excess = OnExcess::Drop;
}

fn read_groups(
    written: &[Limit],
    service: &Service,
    groups: &mut Groups<'_>,
    findings: &mut Findings<'_>,
) -> Vec<LimitGroup> {
    let mut read = Vec::new();
    let mut seen: HashMap<Source, (&Word, usize)> = HashMap::new();
    for (number, limit) in written.iter().enumerate() {
        let base = Limits {
            rates: service.limits.rates.map(|rates| Rates { total: None, ..rates }),
            connections: Connections {
                total: None,
                ..service.limits.connections
            },
            ..service.limits.clone()
        };
        let mut group = LimitGroup {
            place: findings.text.place(limit.limits.span.start),
            ..LimitGroup::default()
        };
        for word in &limit.sources {
            let Some(source) = literal(word, findings) else {
                continue;
            };
            let line = |word: &Word, findings: &Findings<'_>| findings.text.place(word.span.start).line;
            match seen.get(&source) {
                Some((first, other)) if *other == number => {
                    let message = format!(
                        "\"{}\" stands in this list already (line {})",
                        word.text,
                        line(first, findings)
                    );
                    findings.warn(&word.span, message, None);
                    continue;
                }
                Some((first, _)) => {
                    let message = format!(
                        "service \"{}\" has a limit for \"{}\" already (line {})",
                        service.name,
                        word.text,
                        line(first, findings)
                    );
                    findings.error(&word.span, message, Some(JOIN.into()));
                    continue;
                }
                None => seen.insert(source.clone(), (word, number)),
            };
            group.sources.push(source.to_string());
            match source {
                Source::Any => {
                    let hint = "limits for everybody stand in [service.limits]";
                    let message = "a [[service.limit]] cannot be for \"any\"";
                    findings.error(&word.span, message, Some(hint.into()));
                }
                Source::Group(name) => {
                    let lists = groups.find(&name, &word.span, findings).unwrap_or_default();
                    if groups.have_nodes(&lists) {
                        let message = format!(
                            "\"{}\" holds nodes, which come and go: no limit can be for them",
                            word.text
                        );
                        let hint = "name the prefixes that they lie in";
                        findings.error(&word.span, message, Some(hint.into()));
                    }
                    group.lists.extend(lists);
                }
                Source::Prefix(prefix) => group.lists.push(groups.literal(prefix)),
            }
        }
        group.lists.sort_unstable();
        group.lists.dedup();
        group.limits = Table {
            label: "this limit",
            base: &base,
            tcp: service.has_tcp(),
            own_totals: true,
        }
        .read(&limit.limits, findings);
        read.push(group);
    }
    read
}

const JOIN: &str = "an address has one limit of a service: take it out of one of the two";

/// How a table is to be read.
struct Table<'a> {
    label: &'static str,
    base: &'a Limits,
    /// Whether connections can be counted.
    tcp: bool,
    /// Totals are those of a group.
    own_totals: bool,
}

impl Table<'_> {
    fn read(&self, written: &Written, findings: &mut Findings<'_>) -> Limits {
        let mut limits = self.base.clone();
        limits.place = Some(findings.text.place(written.span.start));
        let word = written.on_excess.as_ref();
        let on_excess = word.and_then(|word| {
            let read = text::on_excess(&word.text);
            read.map_err(|error| refuse_in(word, error, findings)).ok()
        });
        limits.on_excess = on_excess.unwrap_or(limits.on_excess);
        for (value, length, key, range) in [
            (&written.v4, &mut limits.source.v4, "v4", 8..=32),
            (&written.v6, &mut limits.source.v6, "v6", 16..=128),
        ] {
            if let Some(value) = value {
                *length = bits(value, key, range, findings).unwrap_or(*length);
            }
        }
        for kind in Kind::ALL {
            let Some(pair) = &written.kinds[kind as usize] else {
                continue;
            };
            if kind == Kind::Connections {
                self.connections(pair, &mut limits.connections, findings);
            } else {
                self.rates(kind, pair, &mut limits.rates[kind as usize], findings);
            }
            let first = [&pair.per_source, &pair.total].into_iter().flatten().next();
            if let Some(value) = first
                && kind.needs_tcp()
                && !self.tcp
                && !is_unlimited(value)
            {
                let message = format!(
                    "\"{}\" counts TCP connections, and the service has no TCP port: nothing is limited",
                    kind.key()
                );
                findings.warn(
                    &value.span,
                    message,
                    Some("limit \"packets\" or \"bytes\"".into()),
                );
            }
        }
        self.warn(written, &limits, findings);
        if !self.tcp {
            without_tcp(&mut limits);
        }
        limits
    }

    fn rates(&self, kind: Kind, pair: &Pair, rates: &mut Rates, findings: &mut Findings<'_>) {
        let halves = [
            (
                &mut rates.per_source,
                &pair.per_source,
                &pair.burst,
                Scope::Source,
            ),
            (&mut rates.total, &pair.total, &pair.total_burst, Scope::Total),
        ];
        for (rate, limit, burst, scope) in halves {
            if let Some(limit) = limit {
                let Some(read) = rate_of(limit, kind, scope, findings) else {
                    continue;
                };
                *rate = read;
            }
            let Some(burst) = burst else { continue };
            let (key, of) = match scope {
                Scope::Source => ("burst", "per_source"),
                Scope::Total => ("total_burst", "total"),
            };
            let Some(rate) = rate else {
                let message = format!("\"{key}\" without \"{of}\": there is no rate that it belongs to");
                let hint = format!("write {of} = {} beside it", first_form(kind));
                findings.error(&burst.span, message, Some(hint));
                continue;
            };
            let read = match &burst.content {
                Content::Text(text) => text::burst(text, kind, scope),
                Content::Number(number) => text::burst_of(*number, kind, scope),
            };
            match read {
                Ok(read) => rate.burst = read,
                Err(error) => refuse(burst, error, findings),
            }
            if text::too_long(rate) {
                let message = format!(
                    "a burst of {} takes this rate longer than a day",
                    super::amount(kind, rate.burst)
                );
                findings.error(&burst.span, message, Some("write a smaller burst".into()));
            }
        }
        if let (Some(source), Some(total)) = (rates.per_source, rates.total)
            && exceeds(&source, &total)
            && let Some(value) = pair.per_source.as_ref().or(pair.total.as_ref())
        {
            let message = format!(
                "\"per_source\" of \"{}\" is above \"total\": one source can use up all of it",
                kind.key()
            );
            findings.warn(&value.span, message, None);
        }
    }

    fn connections(&self, pair: &Pair, connections: &mut Connections, findings: &mut Findings<'_>) {
        let halves = [
            (&mut connections.per_source, &pair.per_source),
            (&mut connections.total, &pair.total),
        ];
        for (count, limit) in halves {
            let Some(limit) = limit else { continue };
            let read = match &limit.content {
                Content::Text(text) if text == UNLIMITED => Ok(None),
                Content::Text(text) => text::connections(text).map(Some),
                Content::Number(number) => text::connections_of(*number).map(Some),
            };
            match read {
                Ok(read) => *count = read.map(|count| count as u32),
                Err(error) => refuse(limit, error, findings),
            }
        }
        if let (Some(source), Some(total)) = (connections.per_source, connections.total)
            && source > total
            && let Some(value) = pair.per_source.as_ref().or(pair.total.as_ref())
        {
            let message =
                "\"per_source\" of \"connections\" is above \"total\": one source can use up all of it";
            findings.warn(&value.span, message, None);
        }
    }

    /// Warns of what says nothing.
    fn warn(&self, written: &Written, limits: &Limits, findings: &mut Findings<'_>) {
        let says_nothing = written.kinds.iter().all(Option::is_none);
        if self.own_totals && says_nothing && written.on_excess.is_none() {
            let hint = "write for example packets = { per_source = \"100k/s\" } below \"for\"";
            let message =
                "this limit changes nothing for whom it names, but tells them apart from the others";
            findings.warn(&written.span, message, Some(hint.into()));
        }
        let Some(word) = &written.on_excess else { return };
        // What the defaults leave open the services fill in, and a group may stand for itself.
        if self.label != "[defaults.limits]" && limits.is_empty() && !self.own_totals {
            findings.warn(&word.span, NOTHING_TO_EXCEED, None);
            return;
        }
        if !self.tcp && limits.on_excess != OnExcess::Drop {
            let message = format!(
                "\"{}\" is for TCP, and the service has no TCP port: what exceeds the limit drops",
                word.text
            );
            findings.warn(&word.span, message, None);
        } else if let OnExcess::Ban(_) = limits.on_excess
            && self.label != "[defaults.limits]"
            && !limits_connections(limits)
        {
            warn_of_idle_ban(word, findings);
        }
    }
}

fn is_unlimited(value: &Value) -> bool {
    matches!(&value.content, Content::Text(text) if text == UNLIMITED)
}

fn first_form(kind: Kind) -> &'static str {
    match kind {
        Kind::Bytes => "\"10MB/s\"",
        _ => "\"50/s\"",
    }
}

/// A rate with the burst it has by itself; `Some(None)`: unlimited.
fn rate_of(limit: &Value, kind: Kind, scope: Scope, findings: &mut Findings<'_>) -> Option<Option<Rate>> {
    let read = match &limit.content {
        Content::Text(text) if text == UNLIMITED => return Some(None),
        Content::Text(text) => text::rate(text, kind, scope),
        Content::Number(number) => {
            let hint = match kind {
                Kind::Bytes => text::example(&number.to_string(), kind, scope),
                _ => format!("write \"{number}/s\""),
            };
            findings.error(
                &limit.span,
                format!("{number} is not a rate: it has no time (/s, /min or /h)"),
                Some(hint),
            );
            return None;
        }
    };
    match read {
        Ok((amount, per)) => Some(Some(Rate {
            amount,
            per,
            burst: text::default_burst(kind, scope, amount, per),
        })),
        Err(error) => {
            refuse(limit, error, findings);
            None
        }
    }
}

fn exceeds(source: &Rate, total: &Rate) -> bool {
    let per_hour = |rate: &Rate| u128::from(rate.amount) * u128::from(3600 / rate.per.seconds());
    per_hour(source) > per_hour(total)
}

fn bits(value: &Value, key: &str, range: RangeInclusive<u8>, findings: &mut Findings<'_>) -> Option<u8> {
    let accepted = format!("{} to {}", range.start(), range.end());
    let number = match &value.content {
        Content::Number(number) => u8::try_from(*number).ok().filter(|bits| range.contains(bits)),
        Content::Text(text) => {
            let bare = text.trim_start_matches('/');
            let hint = bare
                .parse::<u8>()
                .ok()
                .map(|bits| format!("write {key} = {bits}"));
            let message = format!("\"{key}\" is a string, not a number of bits ({accepted})");
            findings.error(&value.span, message, hint);
            return None;
        }
    };
    if number.is_none() {
        let message = format!(
            "a source of {} bits is out of range ({accepted})",
            &findings.text.text[value.span.clone()]
        );
        findings.error(&value.span, message, None);
    }
    number
}

fn refuse(value: &Value, error: TextError, findings: &mut Findings<'_>) {
    match &value.content {
        Content::Text(text) => {
            let word = Word {
                text: text.clone(),
                span: value.span.clone(),
            };
            refuse_in(&word, error, findings);
        }
        Content::Number(_) => findings.error(&value.span, error.message, error.hint),
    }
}

fn refuse_in(word: &Word, error: TextError, findings: &mut Findings<'_>) {
    let whole = error.at == (0..word.text.len());
    let span: Range<usize> = if whole {
        word.span.clone()
    } else {
        inside(word, &error.at, findings)
    };
    findings.error(&span, error.message, error.hint);
}

/// Refuses two limits of one service that share an address, and warns of those that meet nobody. `policy` has its lists.
pub fn check(policy: &Policy, written: &written::Written, drafts: &[Draft], findings: &mut Findings<'_>) {
    for (number, (service, from)) in (0..).zip(policy.services.iter().zip(&written.services)) {
        if service.groups.is_empty() {
            continue;
        }
        let owner = Owner::Service(super::super::model::ServiceId(number));
        let all_lists = |lists: &[u32]| -> Vec<&PrefixList> {
            lists.iter().map(|&list| &*policy.lists[list as usize]).collect()
        };
        let sets: Vec<AddressSet> = service
            .groups
            .iter()
            .map(|group| AddressSet::of_all(&all_lists(&group.lists)))
            .collect();
        let mut allowed = AddressSet::empty();
        for draft in drafts {
            let rule = &draft.rule;
            if rule.owner != owner || rule.action != Action::Allow {
                continue;
            }
            if rule.any {
                allowed = AddressSet::all();
                break;
            }
            allowed = allowed.union(&AddressSet::of_all(&all_lists(&rule.lists)));
        }
        for (at, (group, limit)) in service.groups.iter().zip(&from.groups).enumerate() {
            let Some(word) = limit.sources.first() else {
                continue;
            };
            let earlier = sets[..at].iter().zip(&service.groups);
            for (set, other) in earlier {
                let shared = set.intersection(&sets[at]);
                let Some(prefix) = shared.show().next() else {
                    continue;
                };
                let message = format!(
                    "service \"{}\": the limits for {} (line {}) and for {} both hold {prefix}",
                    service.name,
                    listed(&other.sources),
                    other.place.line,
                    listed(&group.sources),
                );
                findings.error(&word.span, message, Some(JOIN.into()));
            }
            if !sets[at].is_empty() && sets[at].intersection(&allowed).is_empty() {
                let message = format!(
                    "the limit for {} meets nobody: service \"{}\" does not allow them",
                    listed(&group.sources),
                    service.name
                );
                findings.warn(&word.span, message, None);
            }
            above_service(group, service, limit, findings);
        }
    }
}

/// Warns of totals of a group that those of its service end before.
fn above_service(group: &LimitGroup, service: &Service, limit: &Limit, findings: &mut Findings<'_>) {
    for kind in Kind::ALL {
        let above = match kind {
            Kind::Connections => {
                let of = |limits: &Limits| limits.connections.total;
                matches!((of(&group.limits), of(&service.limits)), (Some(mine), Some(all)) if mine > all)
            }
            _ => {
                let of = |limits: &Limits| limits.rates[kind as usize].total;
                matches!((of(&group.limits), of(&service.limits)), (Some(mine), Some(all)) if exceeds(&mine, &all))
            }
        };
        let value = limit.limits.kinds[kind as usize]
            .as_ref()
            .and_then(|pair| pair.total.as_ref());
        if let Some(value) = value.filter(|_| above) {
            let message = format!(
                "\"total\" of \"{}\" is above that of the service, which holds as well",
                kind.key()
            );
            findings.warn(&value.span, message, None);
        }
    }
}

/// `@a`, `@a and 192.0.2.1`, `@a and 3 more`
pub fn listed(sources: &[String]) -> String {
    match sources {
        [] => "nobody".to_owned(),
        [one] => one.clone(),
        [one, other] => format!("{one} and {other}"),
        [one, more @ ..] => format!("{one} and {} more", more.len()),
    }
}
