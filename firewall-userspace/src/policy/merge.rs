//! Several policies as one: the documents that a fleet has for a node, and the node's own policy file.
//!
//! The order of the parts never matters. Services and egress rules stand side by side; a name or a port that two parts
//! claim is a [`Conflict`], never resolved by guessing. What any part denies is denied, else what one allows is
//! allowed; deny lists of policies are united. So a part can open but what is its own, and deny what is anybody's.
//!
//! Defaults: packets that no service names pass only if a part says `ingress = "allow"`, and none says "deny" or has
//! services and says nothing. What no egress rule names stays inside if any part says so. Groups and limits are each
//! part's own.
//!
//! Which of two parts in conflict holds on a node is not decided here: [`crate::fleet::node`] tries them one by one.

use super::file::Loaded;
use super::model::{Action, EgressId, Owner, Place, Policy, Rule, ServiceId};
use super::ports;
use super::source::{self, Source};
use firewall_common::image::PortKey;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// Which policy. The order is that in which parts stand in what they are merged to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PartName {
    /// The policy file of the node.
    Local,
    /// A document of the fleet, by its name.
    Document(String),
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PartName::Local => f.write_str("the local policy"),
            PartName::Document(name) => write!(f, "policy \"{name}\""),
        }
    }
}

/// One policy of several.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    pub name: PartName,
    pub loaded: &'a Loaded,
}

/// Something with a name that has ports, and where it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    pub part: PartName,
    /// `service`, `egress rule`
    pub what: &'static str,
    pub name: String,
    pub place: Place,
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\" of {}", self.what, self.name, self.part)
    }
}

/// Why parts cannot hold together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    #[error("{second} ({}) claims {ports}, which {first} has ({})", second.place, first.place)]
    Port {
        ports: String,
        first: Box<Claimant>,
        second: Box<Claimant>,
    },
    #[error("{second} ({}) has the name of {} {} of {} ({})", second.place, article(first.what), first.what, first.part, first.place)]
    Name {
        first: Box<Claimant>,
        second: Box<Claimant>,
    },
    #[error("{0} is there twice")]
    Twice(PartName),
    #[error("with {part} there are {count} {what}, more than the {limit} that an image holds")]
    TooMany {
        part: PartName,
        what: &'static str,
        count: usize,
        limit: usize,
    },
}

fn article(what: &str) -> &'static str {
    if what.starts_with('e') { "an" } else { "a" }
}

impl Conflict {
    /// The part that came second, and the one that it cannot stand beside.
    pub fn parts(&self) -> (&PartName, Option<&PartName>) {
        match self {
            Conflict::Port { first, second, .. } | Conflict::Name { first, second } => {
                (&second.part, Some(&first.part))
            }
            Conflict::Twice(part) => (part, Some(part)),
            Conflict::TooMany { part, .. } => (part, None),
        }
    }
}

/// One policy of all parts; the same one in whatever order they come.
///
/// # Errors
/// The first conflict in the order of the names.
pub fn merge(mut parts: Vec<Part<'_>>) -> Result<Policy, Conflict> {
    parts.sort_by(|one, other| one.name.cmp(&other.name));
    let mut claimed = Claimed::default();
    for part in &parts {
        claimed.add(part)?;
    }
    let mut merged = Policy {
        default_allow: default_allow(&parts),
        egress_deny: parts.iter().any(|part| part.loaded.policy.egress_deny),
        ..Policy::default()
    };
    // Where the numbers of each part begin.
    let mut starts = Vec::new();
    for part in &parts {
        let policy = &part.loaded.policy;
        let start = Start {
            services: merged.services.len() as u16,
            egress: merged.egress.len() as u16,
            lists: merged.lists.len() as u32,
        };
        merged.services.extend(policy.services.iter().cloned());
        for service in &mut merged.services[usize::from(start.services)..] {
            let lists = service.groups.iter_mut().flat_map(|group| &mut group.lists);
            lists.for_each(|list| *list += start.lists);
        }
        merged.egress.extend(policy.egress.iter().cloned());
        merged.lists.extend(policy.lists.iter().cloned());
        starts.push(start);
    }
    let mut denied = HashSet::new();
    for kind in [
        Owner::Policy,
        Owner::Service(ServiceId(0)),
        Owner::Egress(EgressId(0)),
    ] {
        let same = |rule: &&Rule| std::mem::discriminant(&rule.owner) == std::mem::discriminant(&kind);
        for (part, start) in parts.iter().zip(&starts) {
            for rule in part.loaded.policy.rules.iter().filter(same) {
                let rule = start.rule(rule, &part.name);
                if kind != Owner::Policy || denied.insert(rule.source.clone()) {
                    merged.rules.push(rule);
                }
            }
        }
    }
    Ok(merged)
}

fn default_allow(parts: &[Part<'_>]) -> bool {
    let says = |part: &Part<'_>| match part.loaded.default_ingress {
        None if !part.loaded.policy.services.is_empty() => Some(Action::Deny),
        said => said,
    };
    let said: Vec<Action> = parts.iter().filter_map(says).collect();
    !said.is_empty() && said.iter().all(|action| *action == Action::Allow)
}

/// What is added to the numbers of a part.
struct Start {
    services: u16,
    egress: u16,
    lists: u32,
}

impl Start {
    fn rule(&self, rule: &Rule, part: &PartName) -> Rule {
        let mut rule = rule.clone();
        rule.lists.iter_mut().for_each(|list| *list += self.lists);
        rule.owner = match rule.owner {
            Owner::Service(ServiceId(id)) => Owner::Service(ServiceId(id + self.services)),
            Owner::Egress(EgressId(id)) => Owner::Egress(EgressId(id + self.egress)),
            Owner::Policy => {
                // One list of all parts, in which an address is an address, but a group is somebody's.
                let literal = matches!(source::parse(&rule.source), Ok(parsed) if matches!(parsed.source, Source::Prefix(_)));
                if let (PartName::Document(name), false) = (part, literal) {
                    rule.source = match rule.source.strip_prefix('@') {
                        Some(group) => format!("@{name}/{group}"),
                        None => format!("{name}/{}", rule.source),
                    };
                }
                Owner::Policy
            }
        };
        rule
    }
}

/// With which of `others` a document cannot hold on a node that both are meant for. Parts without a header are meant for
/// every node.
pub fn conflicts(document: &Part<'_>, others: &[Part<'_>]) -> Vec<Conflict> {
    let mut found = Vec::new();
    for other in others.iter().filter(|other| other.name != document.name) {
        let meet = match (&document.loaded.header, &other.loaded.header) {
            (Some(one), Some(other)) => one.nodes.may_overlap(&other.nodes),
            _ => true,
        };
        if !meet {
            continue;
        }
        let mut claimed = Claimed::default();
        // Each of them was good by itself, so only the second can fail.
        let _ = claimed.add(other);
        found.extend(claimed.add(document).err());
    }
    found
}

/// Names and ports that parts have.
#[derive(Default)]
struct Claimed {
    parts: HashSet<PartName>,
    names: HashMap<String, Claimant>,
    /// Disjoint ranges of services by their first port: the last one, and whose.
    ports: BTreeMap<PortKey, (PortKey, Claimant)>,
    services: usize,
    egress: usize,
}

impl Claimed {
    /// Takes all that a part claims, or nothing.
    fn add(&mut self, part: &Part<'_>) -> Result<(), Conflict> {
        let policy = &part.loaded.policy;
        if self.parts.contains(&part.name) {
            return Err(Conflict::Twice(part.name.clone()));
        }
        let (services, egress) = (
            self.services + policy.services.len(),
            self.egress + policy.egress.len(),
        );
        for (what, count) in [("services", services), ("egress rules", egress)] {
            // The image numbers both together in 16 bits, and keeps two numbers.
            let limit = usize::from(u16::MAX) - 2;
            if count > limit {
                return Err(Conflict::TooMany {
                    part: part.name.clone(),
                    what,
                    count,
                    limit,
                });
            }
        }
        let claimant = |what, name: &str, place: &Place| Claimant {
            part: part.name.clone(),
            what,
            name: name.to_owned(),
            place: place.clone(),
        };
        let named = policy
            .services
            .iter()
            .map(|service| claimant("service", &service.name, &service.place));
        let named = named.chain(
            policy
                .egress
                .iter()
                .map(|rule| claimant("egress rule", &rule.name, &rule.place)),
        );
        let named: Vec<Claimant> = named.collect();
        for second in &named {
            if let Some(first) = self.names.get(&second.name) {
                return Err(Conflict::Name {
                    first: Box::new(first.clone()),
                    second: Box::new(second.clone()),
                });
            }
        }
        for (service, second) in policy.services.iter().zip(&named) {
            for (first_port, last_port) in &service.ports {
                let before = self.ports.range(..=*last_port).next_back();
                if let Some((from, (to, first))) = before.filter(|(_, (to, _))| to >= first_port) {
                    let shared = (*from.max(first_port), *to.min(last_port));
                    return Err(Conflict::Port {
                        ports: ports::show(&[shared]).join(", "),
                        first: Box::new(first.clone()),
                        second: Box::new(second.clone()),
                    });
                }
            }
        }
        for (service, own) in policy.services.iter().zip(&named) {
            for (first, last) in &service.ports {
                self.ports.insert(*first, (*last, own.clone()));
            }
        }
        self.names.extend(
            named
                .into_iter()
                .map(|claimant| (claimant.name.clone(), claimant)),
        );
        self.parts.insert(part.name.clone());
        (self.services, self.egress) = (services, egress);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
