//! What changes for packets that leave: for each port, the egress rules that hold it before and after.

use super::super::model::{Action, EgressId, Owner};
use super::super::ports;
use super::join;
use super::side::Side;
use super::who::{List, Name, Who};
use crate::api::types::DiffLine;
use firewall_common::image::PortKey;
use firewall_common::verdict::Direction;
use std::collections::BTreeMap;

/// The egress rules that meet at some ports, before and after, and those ports. Without ports: all the others.
type Meetings = BTreeMap<(Vec<Owner>, Vec<Owner>), Vec<(PortKey, PortKey)>>;

pub fn diff<'a>(old: &'a Side<'a>, new: &'a Side<'a>, lines: &mut Vec<DiffLine>) {
    let word = |side: &Side<'_>| if side.policy.egress_deny { "deny" } else { "allow" };
    if word(old) != word(new) {
        let who = format!("{} -> {}", word(old), word(new));
        let name = Name {
            who,
            prefixes: Vec::new(),
        };
        lines.push(line("default", name, vec!["what no egress rule opens".into()]));
    }
    let (elsewhere, meetings) = meetings(old, new);
    let there = meetings
        .iter()
        .map(|(meeting, ranges)| (meeting, Some(ports::show(ranges))));
    let places: Vec<_> = there.chain([(&elsewhere, None)]).collect();
    // Who comes and goes, and at which of the places.
    let mut changes: Vec<(&str, Name, Vec<usize>)> = Vec::new();
    for (place, ((before, after), _)) in places.iter().enumerate() {
        for (change, name) in at_ports(old, new, before, after) {
            let known = changes
                .iter_mut()
                .find(|(known, other, _)| *known == change && *other == name);
            match known {
                Some((_, _, at)) => at.push(place),
                None => changes.push((change, name, vec![place])),
            }
        }
    }
    for (change, name, at) in changes {
        let ports = if at.len() == places.len() {
            vec!["every port".to_owned()]
        } else {
            let other = || vec!["every other port".to_owned()];
            let shown = |place: usize| places[place].1.clone().unwrap_or_else(other);
            at.into_iter().flat_map(shown).collect()
        };
        lines.push(line(change, name, ports));
    }
}

/// Who meets at the ports that no rule names, and at those that one does.
fn meetings(old: &Side<'_>, new: &Side<'_>) -> ((Vec<Owner>, Vec<Owner>), Meetings) {
    let mut events: Vec<(u32, bool, usize, Owner)> = Vec::new();
    let mut present = [Vec::new(), Vec::new()];
    for (at, side) in [old, new].into_iter().enumerate() {
        for (index, rule) in side.policy.egress.iter().enumerate() {
            let owner = Owner::Egress(EgressId(index as u16));
            if rule.ports.is_empty() {
                present[at].push(owner);
            }
            for (first, last) in &rule.ports {
                events.push((first.0, true, at, owner));
                events.push((last.0 + 1, false, at, owner));
            }
        }
    }
    // Of one rule, closing comes before opening at the same port.
    events.sort_unstable();
    let elsewhere = (present[0].clone(), present[1].clone());
    let (mut open, mut from) = (0, 0);
    let mut meetings = Meetings::new();
    for (at, opens, side, owner) in events {
        if at > from && open > 0 {
            let key = (present[0].clone(), present[1].clone());
            join(meetings.entry(key).or_default(), (PortKey(from), PortKey(at - 1)));
        }
        from = at;
        let rules = &mut present[side];
        match (opens, rules.binary_search(&owner)) {
            (true, Err(place)) => {
                rules.insert(place, owner);
                open += 1;
            }
            (false, Ok(place)) => {
                rules.remove(place);
                open -= 1;
            }
            _ => {}
        }
    }
    (elsewhere, meetings)
}

/// What changes where these rules meet.
fn at_ports<'a>(
    old: &'a Side<'a>,
    new: &'a Side<'a>,
    before: &'a [Owner],
    after: &'a [Owner],
) -> Vec<(&'static str, Name)> {
    let defaults = (old.policy.egress_deny, new.policy.egress_deny);
    let same = |action| old.lists_of(before, action) == new.lists_of(after, action);
    if defaults.0 == defaults.1 && same(Action::Allow) && same(Action::Deny) {
        return Vec::new();
    }
    let (was, is) = (old.egress(before), new.egress(after));
    let mut gained = Who::new(is.difference(&was), None);
    let mut lost = Who::new(was.difference(&is), None);
    let list = |side, owners, action| List { side, owners, action };
    let (old_allow, old_deny) = (list(old, before, Action::Allow), list(old, before, Action::Deny));
    let (new_allow, new_deny) = (list(new, after, Action::Allow), list(new, after, Action::Deny));
    // What a rule opens matters under a default of deny alone; what the default itself changes is told once, for all ports.
    match defaults {
        (true, true) => {
            gained.take(new_allow, Some(old_allow));
            gained.take(old_deny, Some(new_deny));
            lost.take(new_deny, Some(old_deny));
            lost.take(old_allow, Some(new_allow));
        }
        (false, false) => {
            gained.take(old_deny, Some(new_deny));
            lost.take(new_deny, Some(old_deny));
        }
        (true, false) => {
            lost.take(new_deny, Some(old_deny));
            gained.forget_rest();
        }
        (false, true) => {
            gained.take(old_deny, Some(new_deny));
            lost.take(new_deny, Some(old_deny));
            lost.forget_rest();
        }
    }
    let everywhere = is.is_empty();
    let mut changes = Vec::new();
    for (change, who) in [("loses", lost), ("gains", gained)] {
        for mut name in who.names() {
            if name.who == "anyone" {
                let rest = change == "loses" && !everywhere;
                name.who = if rest { "anywhere else" } else { "anywhere" }.to_owned();
            }
            changes.push((change, name));
        }
    }
    changes
}

fn line(change: &str, name: Name, ports: Vec<String>) -> DiffLine {
    DiffLine {
        direction: Direction::Egress.word().into(),
        change: change.into(),
        who: name.who,
        service: String::new(),
        ports,
        prefixes: name.prefixes,
    }
}
