//! What changes between two policies, in terms of who gains and loses which port.
//!
//! Effective access is compared, not text: an entry that moves into a group with the same prefixes is no change.
//! For each port the service that has it before and after is found, and for each such pair the sets of addresses
//! that get in. What differs is named by the entry that makes the difference, or by its prefixes. Limits are compared as
//! they hold, the defaults merged in.

mod leaving;
mod limits;
mod side;
mod who;

use super::model::{Action, Owner, Policy};
use super::ports;
use crate::api::types::DiffLine;
use firewall_common::image::PortKey;
use firewall_common::verdict::Direction;
use side::Side;
use std::collections::BTreeMap;
use who::{List, Name, Who};

/// A line per (change, who, service), first those of the whole policy, then in the order of the services, then their limits, then what leaves.
pub fn diff(old: &Policy, new: &Policy) -> Vec<DiffLine> {
    let (old, new) = side::pair(old, new);
    let mut lines = Vec::new();
    if old.policy.default_allow != new.policy.default_allow {
        let word = |side: &Side<'_>| {
            if side.policy.default_allow {
                "allow"
            } else {
                "deny"
            }
        };
        lines.push(DiffLine {
            direction: Direction::Ingress.word().into(),
            change: "default".into(),
            who: format!("{} -> {}", word(&old), word(&new)),
            service: String::new(),
            ports: vec!["ports that no service names".into()],
            prefixes: Vec::new(),
        });
    }
    policy_denies(&old, &new, &mut lines);
    for ((_, after, before), ranges) in port_owners(old.policy, new.policy) {
        service(&old, &new, before, after, &ranges, &mut lines);
    }
    limits::diff(old.policy, new.policy, &mut lines);
    leaving::diff(&old, &new, &mut lines);
    lines
}

/// Before and after, for the ports that both hold: sorted by the new service, those that are gone last.
type Owners = BTreeMap<(bool, Option<usize>, Option<usize>), Vec<(PortKey, PortKey)>>;

fn port_owners(old: &Policy, new: &Policy) -> Owners {
    // Each range opens at its first port and closes behind its last.
    let mut events: Vec<(u32, bool, Option<usize>)> = Vec::new();
    for (is_new, policy) in [(false, old), (true, new)] {
        for (index, service) in policy.services.iter().enumerate() {
            for &(first, last) in &service.ports {
                events.push((first.0, is_new, Some(index)));
                events.push((last.0 + 1, is_new, None));
            }
        }
    }
    // Of one side, closing comes before opening at the same port.
    events.sort_unstable();
    let mut owners = Owners::new();
    let (mut before, mut after, mut from) = (None, None, 0);
    for (at, is_new, owner) in events {
        if at > from && (before.is_some() || after.is_some()) {
            let ranges = owners.entry((after.is_none(), after, before)).or_default();
            join(ranges, (PortKey(from), PortKey(at - 1)));
        }
        from = at;
        *(if is_new { &mut after } else { &mut before }) = owner;
    }
    owners
}

/// Adds a range behind the others; ranges of one protocol that touch become one.
fn join(ranges: &mut Vec<(PortKey, PortKey)>, range: (PortKey, PortKey)) {
    match ranges.last_mut() {
        Some(last) if last.1.0 + 1 == range.0.0 && range.0.0 & 0xffff != 0 => last.1 = range.1,
        _ => ranges.push(range),
    }
}

/// Entries of the policy's own deny list that came, went or changed what they hold.
fn policy_denies<'a>(old: &'a Side<'a>, new: &'a Side<'a>, lines: &mut Vec<DiffLine>) {
    if old.lists_of(&[Owner::Policy], Action::Deny) == new.lists_of(&[Owner::Policy], Action::Deny) {
        return;
    }
    let (before, after) = (old.denied(), new.denied());
    let mut say = |change: &str, names: Vec<Name>, ports: &str| {
        for Name { who, prefixes } in names {
            lines.push(DiffLine {
                direction: Direction::Ingress.word().into(),
                change: change.into(),
                who,
                service: String::new(),
                ports: vec![ports.into()],
                prefixes,
            });
        }
    };
    let list = |side| List {
        side,
        owners: &[Owner::Policy],
        action: Action::Deny,
    };
    let mut lost = Who::new(after.difference(&before), None);
    lost.take(list(new), Some(list(old)));
    say("loses", lost.names(), "every port");
    let mut gained = Who::new(before.difference(&after), None);
    gained.take(list(old), Some(list(new)));
    say("gains", gained.names(), "every port that allows it");
}

/// Who gains and loses the ports that service `before` had and `after` has.
fn service<'a>(
    old: &'a Side<'a>,
    new: &'a Side<'a>,
    before: Option<usize>,
    after: Option<usize>,
    ranges: &[(PortKey, PortKey)],
    lines: &mut Vec<DiffLine>,
) {
    if let (Some(before), Some(after)) = (before, after)
        && [Action::Allow, Action::Deny].iter().all(|&action| {
            old.lists_of(&[side::service(before)], action) == new.lists_of(&[side::service(after)], action)
        })
    {
        return;
    }
    let (was, is) = (old.access(before), new.access(after));
    let nobody_left = is.is_empty();
    let mut gained = Who::new(is.difference(&was), Some(new));
    let mut lost = Who::new(was.difference(&is), Some(old));
    let (mine, theirs) = (after.map(side::service), before.map(side::service));
    let of_old = |action| list(old, theirs.as_slice(), action);
    let of_new = |action| list(new, mine.as_slice(), action);
    let (old_allow, old_deny) = (of_old(Action::Allow), of_old(Action::Deny));
    let (new_allow, new_deny) = (of_new(Action::Allow), of_new(Action::Deny));
    if let (Some(allow), Some(deny)) = (new_allow, new_deny) {
        gained.take(allow, old_allow);
        lost.take(deny, old_deny);
    }
    if let (Some(allow), Some(deny)) = (old_allow, old_deny) {
        gained.take(deny, new_deny);
        lost.take(allow, new_allow);
    }
    // What the default let in, or lets in now.
    if before.is_none() && old.policy.default_allow {
        lost.default(nobody_left);
    }
    if after.is_none() && new.policy.default_allow {
        gained.default(was.is_empty());
    }
    let opens = before.is_none() && !old.policy.default_allow;
    let closes = after.is_none() && !new.policy.default_allow;
    let (gains, loses) = (
        if opens { "opens" } else { "gains" },
        if closes { "closes" } else { "loses" },
    );
    let (mut come, mut gone) = (gained.names(), lost.names());
    if opens && come.is_empty() && gone.is_empty() {
        come.push(nobody());
    }
    if closes && gone.is_empty() && come.is_empty() {
        gone.push(nobody());
    }
    for name in &mut gone {
        if name.who == "anyone" && !nobody_left {
            name.who = "anyone else".into();
        }
    }
    let named = after
        .map(|at| &new.policy.services[at])
        .or(before.map(|at| &old.policy.services[at]));
    let Some(named) = named else { return };
    let mut all = Vec::new();
    named.ports.iter().for_each(|&range| join(&mut all, range));
    let ports = if all == ranges {
        named.ports_text.clone()
    } else {
        ports::show(ranges)
    };
    let changes = gone
        .into_iter()
        .map(|name| (loses, name))
        .chain(come.into_iter().map(|name| (gains, name)));
    for (change, Name { who, prefixes }) in changes {
        let (change, service) = (change.to_string(), named.name.clone());
        lines.push(DiffLine {
            direction: Direction::Ingress.word().into(),
            change,
            who,
            service,
            ports: ports.clone(),
            prefixes,
        });
    }
}

/// A list of a service, if there is the service.
fn list<'a>(side: &'a Side<'a>, owners: &'a [Owner], action: Action) -> Option<List<'a>> {
    (!owners.is_empty()).then_some(List { side, owners, action })
}

fn nobody() -> Name {
    Name {
        who: "nobody".into(),
        prefixes: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
