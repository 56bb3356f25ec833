//! The policy as meant: services, egress rules, their entries and the prefixes behind them, with the place in the file of each.
//!
//! A model is valid by construction: [`crate::policy::file`] makes it or refuses the file. It is what the
//! compiler, `explain`, `diff` and the tables of the command line read.

pub use super::limits::{LimitGroup, Limits};
use firewall_common::image::PortKey;
use firewall_common::verdict::Direction;
use std::sync::Arc;

/// Index into [`Policy::services`]; the image numbers services from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u16);

/// Index into [`Policy::egress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EgressId(pub u16);

/// Index into [`Policy::rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub u32);

/// One whole policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// `defaults.ingress = "allow"`: what no service names passes.
    pub default_allow: bool,
    /// `defaults.egress = "deny"`: what no egress rule allows does not leave.
    pub egress_deny: bool,
    /// In the order of the file.
    pub services: Vec<Service>,
    /// In the order of the file. Names are unique among services and egress rules together.
    pub egress: Vec<Egress>,
    /// In the order of the owners: the policy's deny list first, then each service's deny list, then its allow list,
    /// then each egress rule's deny list, then what it opens.
    pub rules: Vec<Rule>,
    /// Prefix lists that rules and limits refer to, each once however many use it.
    pub lists: Vec<Arc<PrefixList>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    /// As written, for people: `tcp/8443`, `icmp/echo`.
    pub ports_text: Vec<String>,
    /// Inclusive ranges, disjoint, sorted.
    pub ports: Vec<(PortKey, PortKey)>,
    pub place: Place,
    /// With the defaults where it says nothing else.
    pub limits: Limits,
    /// Sources with limits of their own, in the order of the file. None shares an address with another.
    pub groups: Vec<LimitGroup>,
}

/// What may leave: destinations and the ports opened to them. Several may hold the same port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    pub name: String,
    /// As written, for people. Empty: every port and protocol.
    pub ports_text: Vec<String>,
    /// Inclusive ranges, disjoint, sorted. Empty: every port and protocol.
    pub ports: Vec<(PortKey, PortKey)>,
    pub place: Place,
}

/// Whose list a rule stands in. The order is that of [`Policy::rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// The policy's own deny list, which holds on every port for what comes in.
    Policy,
    Service(ServiceId),
    Egress(EgressId),
}

impl Owner {
    pub fn service(self) -> Option<ServiceId> {
        match self {
            Owner::Service(id) => Some(id),
            Owner::Policy | Owner::Egress(_) => None,
        }
    }

    pub fn egress(self) -> Option<EgressId> {
        match self {
            Owner::Egress(id) => Some(id),
            Owner::Policy | Owner::Service(_) => None,
        }
    }

    /// Which way the packets go that the list judges.
    pub fn direction(self) -> Direction {
        match self {
            Owner::Policy | Owner::Service(_) => Direction::Ingress,
            Owner::Egress(_) => Direction::Egress,
        }
    }
}

impl Policy {
    /// The name of a service or an egress rule; none for the policy itself.
    pub fn owner_name(&self, owner: Owner) -> Option<&str> {
        match owner {
            Owner::Policy => None,
            Owner::Service(id) => self.services.get(id.0 as usize).map(|service| &*service.name),
            Owner::Egress(id) => self.egress.get(id.0 as usize).map(|rule| &*rule.name),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Deny,
}

/// One entry of an allow, deny or `to` list: `any`, a group, or a prefix. The literals of a list longer than
/// [`MAX_LITERAL_RULES`] count as one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub owner: Owner,
    pub action: Action,
    /// The peers, for people and for metric labels, unique among the rules of one (owner, action): `any`, `@web`, `198.51.100.7`, `10.20.0.0/16`, `1042 prefixes`.
    pub source: String,
    /// Every address.
    pub any: bool,
    /// Indexes into [`Policy::lists`].
    pub lists: Vec<u32>,
    pub place: Place,
}

/// Literals of a list up to this many are a rule each.
pub const MAX_LITERAL_RULES: usize = 256;

/// Prefixes from one place (a group's literals, a file, a list's literal). Host bits are zero. Not necessarily sorted or free of duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixList {
    /// Address in host byte order, length 0..=32.
    pub v4: Vec<(u32, u8)>,
    /// Address in host byte order, length 0..=128.
    pub v6: Vec<(u128, u8)>,
}

impl PrefixList {
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A place in a policy file, from 1. Line 0: the file as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Place {
    pub path: String,
    pub line: u32,
    pub column: u32,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => f.write_str(&self.path),
            line => write!(f, "{}:{line}:{}", self.path, self.column),
        }
    }
}
