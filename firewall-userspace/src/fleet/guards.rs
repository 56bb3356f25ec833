//! `[guard]` of agent.toml: what no document of a fleet may open on this node, whoever signed it. The local policy file is
//! the operator's own and not bound.
//!
//! Without the table the defaults hold: no service of a document is open to everybody or to a great part of the
//! internet, and none opens by default. What is measured is all that a service allows together, so a prefix cut in two,
//! or every second one, is as wide as it is. Denies are not counted: they may go. What leaves is not guarded, and what the
//! failsafe names no document can close anyway.

use super::pattern::fits;
use crate::policy::file::Loaded;
use crate::policy::groups;
use crate::policy::model::{Action, Owner, Place, PrefixList, Service, ServiceId};
use crate::policy::ports;
use crate::policy::set::AddressSet;
use crate::policy::source::is_name;
use firewall_common::image::PortKey;
use serde::Deserialize;

/// Valid by construction.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Guards {
    /// All that one service allows holds at most as many addresses as a prefix of this length.
    pub max_breadth: Breadth,
    /// Services that may be open to everybody.
    pub allow_any: AllowAny,
    /// Whether a document may let in what no service names.
    pub allow_default_open: bool,
    /// Of the text of a document.
    pub max_document_bytes: usize,
    /// Services, and egress rules, of a document.
    pub max_services: usize,
    /// Patterns of names.
    forbid_services: Vec<String>,
    forbid_ports: Vec<(PortKey, PortKey)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(
    deny_unknown_fields,
    default,
    expecting = "a table: max_breadth = { v4 = 8, v6 = 16 }"
)]
pub struct Breadth {
    pub v4: u8,
    pub v6: u8,
}

impl Default for Breadth {
    /// The private networks of IPv4 together take a /7.
    fn default() -> Self {
        Breadth { v4: 7, v6: 16 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowAny {
    No,
    /// All of whose ports are among these.
    At(Vec<(PortKey, PortKey)>),
    Yes,
}

impl Default for Guards {
    fn default() -> Self {
        Guards {
            max_breadth: Breadth::default(),
            allow_any: AllowAny::No,
            allow_default_open: false,
            max_document_bytes: 1 << 20,
            max_services: 1000,
            forbid_services: Vec::new(),
            forbid_ports: Vec::new(),
        }
    }
}

/// Why a document is not taken: what it does, where, and which key of `[guard]` is against it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message} ([guard] {key})", place.as_ref().map(|place| format!("{place}: ")).unwrap_or_default())]
pub struct Guarded {
    pub message: String,
    pub place: Option<Place>,
    pub key: &'static str,
}

impl Guards {
    /// Looks at the size of a document, before it is read.
    ///
    /// # Errors
    /// It is too large.
    pub fn check_size(&self, bytes: usize) -> Result<(), Guarded> {
        match bytes > self.max_document_bytes {
            true => {
                let most = self.max_document_bytes;
                Err(guarded(
                    "max_document_bytes",
                    None,
                    format!("{bytes} bytes, more than {most}"),
                ))
            }
            false => Ok(()),
        }
    }

    /// Looks at a document.
    ///
    /// # Errors
    /// The first thing that this node does not take from afar.
    pub fn check(&self, loaded: &Loaded) -> Result<(), Guarded> {
        self.check_size(loaded.text.len())?;
        let policy = &loaded.policy;
        if policy.default_allow && !self.allow_default_open {
            let message = "it lets in what no service names (ingress = \"allow\")".to_owned();
            return Err(guarded("allow_default_open", None, message));
        }
        for (what, count) in [
            ("services", policy.services.len()),
            ("egress rules", policy.egress.len()),
        ] {
            if count > self.max_services {
                let message = format!("{count} {what}, more than {}", self.max_services);
                return Err(guarded("max_services", None, message));
            }
        }
        for (id, service) in (0..).map(ServiceId).zip(&policy.services) {
            self.check_service(loaded, id, service)?;
        }
        for group in &loaded.node_groups {
            let Some(within) = &group.within else { continue };
            let mut list = PrefixList::default();
            for prefix in within {
                groups::push(&mut list, *prefix);
            }
            if let Some(wide) = self.too_wide(&[&list]) {
                let message = format!("the \"within\" of group \"{}\" holds {wide}", group.name);
                return Err(guarded("max_breadth", Some(&group.place), message));
            }
        }
        Ok(())
    }

    fn check_service(&self, loaded: &Loaded, id: ServiceId, service: &Service) -> Result<(), Guarded> {
        let name = &service.name;
        if let Some(pattern) = self.forbid_services.iter().find(|pattern| fits(pattern, name)) {
            let message =
                format!("service \"{name}\" has a name that this node keeps for itself (\"{pattern}\")");
            return Err(guarded("forbid_services", Some(&service.place), message));
        }
        for (first, last) in &service.ports {
            let shared = |(from, to): &(PortKey, PortKey)| {
                let (from, to) = (*from.max(first), *to.min(last));
                (from <= to).then_some((from, to))
            };
            if let Some(shared) = self.forbid_ports.iter().find_map(shared) {
                let shown = ports::show(&[shared]).join(", ");
                let message = format!("service \"{name}\" names {shown}, which this node keeps for itself");
                return Err(guarded("forbid_ports", Some(&service.place), message));
            }
        }
        let policy = &loaded.policy;
        let allows: Vec<_> = policy
            .rules
            .iter()
            .filter(|rule| rule.owner == Owner::Service(id) && rule.action == Action::Allow)
            .collect();
        let may_any = match &self.allow_any {
            AllowAny::No => false,
            AllowAny::Yes => true,
            AllowAny::At(open) => service.ports.iter().all(|range| lies_in(*range, open)),
        };
        if may_any {
            return Ok(());
        }
        if let Some(rule) = allows.iter().find(|rule| rule.any) {
            let message = format!("service \"{name}\" allows everybody");
            return Err(guarded("allow_any", Some(&rule.place), message));
        }
        let lists = allows.iter().flat_map(|rule| &rule.lists);
        let lists: Vec<&PrefixList> = lists.map(|list| &*policy.lists[*list as usize]).collect();
        match self.too_wide(&lists) {
            Some(wide) => {
                let message = format!("service \"{name}\" allows {wide}");
                Err(guarded("max_breadth", Some(&service.place), message))
            }
            None => Ok(()),
        }
    }

    /// How wide the lists are together, if it is too wide.
    fn too_wide(&self, lists: &[&PrefixList]) -> Option<String> {
        let (v4, v6) = AddressSet::of_all(lists).sizes();
        let Breadth {
            v4: max_v4,
            v6: max_v6,
        } = self.max_breadth;
        let most_v4 = 1_u64 << (32 - u32::from(max_v4));
        // A length of 0 sets no bound, and no size is above the last number.
        let most_v6 = 1_u128.checked_shl(128 - u32::from(max_v6)).unwrap_or(u128::MAX);
        if v4 > most_v4 {
            return Some(format!("more IPv4 addresses than a /{max_v4} has"));
        }
        (v6 > most_v6).then(|| format!("more IPv6 addresses than a /{max_v6} has"))
    }
}

fn guarded(key: &'static str, place: Option<&Place>, message: String) -> Guarded {
    Guarded {
        message,
        place: place.cloned(),
        key,
    }
}

/// Whether ranges, sorted and disjoint, hold every port of one.
fn lies_in((first, last): (PortKey, PortKey), ranges: &[(PortKey, PortKey)]) -> bool {
    let mut next = first.0;
    for (from, to) in ranges {
        if from.0 <= next && next <= to.0 {
            next = to.0 + 1;
        }
    }
    next > last.0
}

#[derive(Debug, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table: [guard], and forbid_ports = [\"tcp/22\"] below it"
)]
struct Written {
    max_breadth: Option<Breadth>,
    allow_any: Option<Any>,
    allow_default_open: Option<bool>,
    max_document_bytes: Option<i64>,
    max_services: Option<i64>,
    #[serde(default)]
    forbid_services: Vec<String>,
    #[serde(default)]
    forbid_ports: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "true, false or a list of ports: allow_any = [\"tcp/443\"]"
)]
enum Any {
    All(bool),
    At(Vec<String>),
}

impl TryFrom<Written> for Guards {
    type Error = String;

    fn try_from(written: Written) -> Result<Guards, String> {
        let defaults = Guards::default();
        let max_breadth = written.max_breadth.unwrap_or(defaults.max_breadth);
        if max_breadth.v4 > 32 || max_breadth.v6 > 128 {
            return Err("max_breadth holds lengths of prefixes: v4 of 0 to 32, v6 of 0 to 128".into());
        }
        let within =
            |key: &str, written: Option<i64>, range: std::ops::RangeInclusive<i64>, default: usize| {
                let Some(number) = written else { return Ok(default) };
                match range.contains(&number) {
                    true => Ok(number as usize),
                    false => Err(format!("{key} = {number}: {} to {}", range.start(), range.end())),
                }
            };
        // What is left when the stars are names must look like one.
        let good = |text: &&String| !text.is_empty() && is_name(&text.replace(['*', '?'], "a"));
        if let Some(text) = written.forbid_services.iter().find(|text| !good(text)) {
            return Err(format!(
                "forbid_services: \"{text}\" is neither the name of a service nor a pattern such as \"ssh*\""
            ));
        }
        Ok(Guards {
            max_breadth,
            allow_any: match written.allow_any {
                None | Some(Any::All(false)) => AllowAny::No,
                Some(Any::All(true)) => AllowAny::Yes,
                Some(Any::At(texts)) => AllowAny::At(ranges("allow_any", &texts)?),
            },
            allow_default_open: written.allow_default_open.unwrap_or(defaults.allow_default_open),
            max_document_bytes: within(
                "max_document_bytes",
                written.max_document_bytes,
                1024..=1 << 20,
                defaults.max_document_bytes,
            )?,
            max_services: within(
                "max_services",
                written.max_services,
                1..=65_533,
                defaults.max_services,
            )?,
            forbid_services: written.forbid_services,
            forbid_ports: ranges("forbid_ports", &written.forbid_ports)?,
        })
    }
}

/// Ports as in a policy; sorted.
fn ranges(key: &str, texts: &[String]) -> Result<Vec<(PortKey, PortKey)>, String> {
    let mut all = Vec::new();
    for text in texts {
        let read = ports::parse(text).map_err(|error| format!("{key}: {}", error.message))?;
        all.extend(read.ranges);
    }
    all.sort_unstable();
    Ok(all)
}

#[cfg(test)]
mod tests;
