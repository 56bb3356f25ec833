//! What changes of the limits of services, by what people read of them.

use super::super::limits::{LimitGroup, Limits};
use super::super::model::{Policy, PrefixList, Service};
use super::super::set::AddressSet;
use crate::api::types::DiffLine;
use firewall_common::verdict::Direction;
use std::collections::HashMap;

/// A line per thing of a service that is limited otherwise than before, in the order of the new services; a service that
/// goes takes its limits with it.
pub fn diff(old: &Policy, new: &Policy, lines: &mut Vec<DiffLine>) {
    let before: HashMap<&str, &Service> = old
        .services
        .iter()
        .map(|service| (service.name.as_str(), service))
        .collect();
    let nothing = Service::default();
    for service in &new.services {
        let old_service = before.get(service.name.as_str()).copied().unwrap_or(&nothing);
        let mut say = |whom: &[String], what: String| {
            lines.push(DiffLine {
                direction: Direction::Ingress.word().into(),
                change: "limits".into(),
                who: what,
                service: service.name.clone(),
                ports: Vec::new(),
                prefixes: whom.to_vec(),
            });
        };
        changes(&old_service.limits, &service.limits, &mut |what| say(&[], what));
        for group in &service.groups {
            let was = old_service
                .groups
                .iter()
                .find(|was| was.sources.first() == group.sources.first());
            match was {
                Some(was) => {
                    changes(&was.limits, &group.limits, &mut |what| say(&group.sources, what));
                    if addresses(old, was) != addresses(new, group) {
                        say(&group.sources, "holds other addresses".into());
                    }
                }
                // What a group has of its own, against what held for it so far.
                None => {
                    changes(&old_service.limits, &group.limits, &mut |what| {
                        say(&group.sources, what);
                    });
                    say(&group.sources, "is counted apart".into());
                }
            }
        }
        for gone in &old_service.groups {
            if !service
                .groups
                .iter()
                .any(|group| group.sources.first() == gone.sources.first())
            {
                say(&gone.sources, "is no longer counted apart".into());
            }
        }
    }
}

fn changes(old: &Limits, new: &Limits, say: &mut dyn FnMut(String)) {
    let (was, is) = (old.by_kind(), new.by_kind());
    for ((what, before), (_, after)) in was.into_iter().zip(is) {
        if before != after {
            say(format!("{what} {before} -> {after}"));
        }
    }
    let limits_both = !old.is_empty() && !new.is_empty();
    if old.on_excess != new.on_excess {
        say(format!("on excess {} -> {}", old.on_excess, new.on_excess));
    }
    if old.source != new.source && limits_both {
        let text = |limits: &Limits| format!("/{} and /{}", limits.source.v4, limits.source.v6);
        say(format!("sources {} -> {}", text(old), text(new)));
    }
}

fn addresses(policy: &Policy, group: &LimitGroup) -> AddressSet {
    let lists: Vec<&PrefixList> = group
        .lists
        .iter()
        .map(|&list| &*policy.lists[list as usize])
        .collect();
    AddressSet::of_all(&lists)
}
