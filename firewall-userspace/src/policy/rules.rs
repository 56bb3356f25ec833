//! Allow and deny lists as rules.

use super::diagnostic::Findings;
use super::groups::{Groups, literal, push};
use super::model::{Action, MAX_LITERAL_RULES, Owner, PrefixList, Rule};
use super::source::Source;
use super::written::Entry;
use crate::api::types::Edit;
use firewall_common::verdict::Direction;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;

/// A rule with what only the checks need to know of it.
#[derive(Clone, Debug)]
pub struct Draft {
    pub rule: Rule,
    /// The entry.
    pub span: Range<usize>,
    /// It ends by itself, so what it covers for now is not a mistake.
    pub temporary: bool,
}

/// An entry of the form `{ source = "...", until = ... }`.
#[derive(Clone, Debug, PartialEq)]
pub struct TemporaryEntry {
    /// For people: `allow payments-api 198.51.100.7`, `deny 203.0.113.0/24`, `deny payments-api @lab`.
    pub entry: String,
    /// The edit that takes it out of the file.
    pub edit: Edit,
    /// Unix seconds.
    pub until: u64,
}

/// What the lists of a policy come to.
#[derive(Default)]
pub struct Rules {
    pub drafts: Vec<Draft>,
    pub temporary: Vec<TemporaryEntry>,
    /// Temporary entries that have ended: no rule stands for them.
    pub expired: Vec<TemporaryEntry>,
}

/// Whose list, and which.
#[derive(Clone, Copy)]
pub struct List<'a> {
    pub owner: Owner,
    /// Of the owner; empty: the policy itself.
    pub name: &'a str,
    pub action: Action,
}

impl Rules {
    /// Adds the rules of one list.
    pub fn list(
        &mut self,
        which: List<'_>,
        entries: &[Entry],
        now: u64,
        groups: &mut Groups<'_>,
        findings: &mut Findings<'_>,
    ) {
        let sources = self.live(which, entries, now, findings);
        let literals = sources
            .iter()
            .filter(|(_, source)| matches!(source, Source::Prefix(_)))
            .count();
        let collapse = literals > MAX_LITERAL_RULES;
        let mut together: Option<(usize, PrefixList)> = None;
        for (entry, source) in sources {
            if let (Action::Allow, Some(message)) = (which.action, never(which.owner.direction(), &source)) {
                findings.warn(&entry.source.span, message, None);
            }
            let (any, lists) = match &source {
                Source::Any if which.owner == Owner::Policy => {
                    let message = "a deny of \"any\" for the whole policy closes every port to everybody";
                    let hint = "leave a service without allow to close it, or deny \"any\" in the service";
                    findings.error(&entry.span, message, Some(hint.into()));
                    continue;
                }
                Source::Any => (true, Vec::new()),
                Source::Group(name) => match groups.find(name, &entry.source.span, findings) {
                    Some(lists) => (false, lists),
                    None => continue,
                },
                Source::Prefix(prefix) if collapse => {
                    let (_, list) = together.get_or_insert_with(|| {
                        self.drafts
                            .push(draft(which, entry, format!("{literals} prefixes"), findings));
                        (self.drafts.len() - 1, PrefixList::default())
                    });
                    push(list, *prefix);
                    continue;
                }
                Source::Prefix(prefix) => (false, vec![groups.literal(*prefix)]),
            };
            let mut draft = draft(which, entry, source.to_string(), findings);
            (draft.rule.any, draft.rule.lists) = (any, lists);
            draft.temporary = entry.until.is_some();
            self.drafts.push(draft);
        }
        if let Some((at, list)) = together {
            self.drafts[at].rule.lists = vec![groups.add(list)];
        }
    }

    /// The entries in force, each once.
    fn live<'e>(
        &mut self,
        which: List<'_>,
        entries: &'e [Entry],
        now: u64,
        findings: &mut Findings<'_>,
    ) -> Vec<(&'e Entry, Source)> {
        let mut seen: HashMap<Source, &Entry> = HashMap::new();
        let mut live = Vec::new();
        for entry in entries {
            let Some(source) = literal(&entry.source, findings) else {
                continue;
            };
            if let Some(first) = seen.get(&source) {
                let line = findings.text.place(first.span.start).line;
                let text = &entry.source.text;
                if first.until == entry.until {
                    let message = format!("\"{text}\" stands in this list already (line {line})");
                    findings.warn(&entry.span, message, None);
                } else {
                    // Ending one of them would have to guess which.
                    let message =
                        format!("\"{text}\" stands in this list twice with different ends (line {line})");
                    findings.error(&entry.span, message, Some("take one of the two out".into()));
                }
                continue;
            }
            seen.insert(source.clone(), entry);
            let Some(until) = entry.until else {
                live.push((entry, source));
                continue;
            };
            let temporary = temporary(which, &source, until);
            if until > now {
                self.temporary.push(temporary);
                live.push((entry, source));
            } else {
                findings.warn(
                    &entry.span,
                    format!("the temporary entry for {source} has ended"),
                    None,
                );
                self.expired.push(temporary);
            }
        }
        live
    }
}

/// Why no packet can come from there, or go there.
fn never(direction: Direction, source: &Source) -> Option<String> {
    let kind = match direction {
        Direction::Ingress => never_a_source(source)?,
        Direction::Egress => never_a_destination(source)?,
    };
    Some(match direction {
        Direction::Ingress => format!("{source} can never match: packets from {kind} drop as martian"),
        Direction::Egress => format!("{source} can never match: packets to {kind} never leave this host"),
    })
}

fn never_a_destination(source: &Source) -> Option<&'static str> {
    let Source::Prefix(prefix) = source else {
        return None;
    };
    match prefix.ip() {
        IpAddr::V4(address) if prefix.prefix() >= 8 => match address.octets()[0] {
            0 => Some("0.0.0.0/8"),
            127 => Some("the loopback network"),
            _ => None,
        },
        IpAddr::V6(Ipv6Addr::LOCALHOST | Ipv6Addr::UNSPECIFIED) if prefix.prefix() == 128 => {
            Some("this host itself")
        }
        _ => None,
    }
}

/// Sources that [`firewall_common::decide`] drops before it asks the policy.
fn never_a_source(source: &Source) -> Option<&'static str> {
    let Source::Prefix(prefix) = source else {
        return None;
    };
    match prefix.ip() {
        IpAddr::V4(address) => match address.octets() {
            // The DHCP client that has no address yet.
            [0, 0, 0, 0] if prefix.prefix() == 32 => None,
            [0, ..] if prefix.prefix() >= 8 => Some("0.0.0.0/8"),
            [127, ..] if prefix.prefix() >= 8 => Some("the loopback network"),
            [224..=239, ..] if prefix.prefix() >= 4 => Some("multicast addresses"),
            [255, 255, 255, 255] => Some("the broadcast address"),
            _ => None,
        },
        IpAddr::V6(address) => match address {
            Ipv6Addr::LOCALHOST | Ipv6Addr::UNSPECIFIED if prefix.prefix() == 128 => Some("this host itself"),
            address if address.is_multicast() && prefix.prefix() >= 8 => Some("multicast addresses"),
            _ => None,
        },
    }
}

fn draft(which: List<'_>, entry: &Entry, source: String, findings: &Findings<'_>) -> Draft {
    let rule = Rule {
        owner: which.owner,
        action: which.action,
        source,
        any: false,
        lists: Vec::new(),
        place: findings.text.place(entry.source.span.start),
    };
    Draft {
        rule,
        span: entry.source.span.clone(),
        temporary: false,
    }
}

fn temporary(which: List<'_>, source: &Source, until: u64) -> TemporaryEntry {
    let source = source.to_string();
    let service = which.name.to_owned();
    let (entry, edit) = match (which.owner, which.action) {
        (Owner::Service(_) | Owner::Egress(_), Action::Allow) => (
            format!("allow {service} {source}"),
            Edit::Revoke { service, source },
        ),
        (Owner::Service(_) | Owner::Egress(_), Action::Deny) => (
            format!("deny {service} {source}"),
            Edit::ServiceUndeny { service, source },
        ),
        (Owner::Policy, _) => (format!("deny {source}"), Edit::Undeny { source }),
    };
    TemporaryEntry { entry, edit, until }
}
