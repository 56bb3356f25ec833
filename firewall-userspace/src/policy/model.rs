//! The policy as meant: services, rules and the prefixes behind them, with the place in the file of each.
//!
//! A model is valid by construction: [`crate::policy::file`] makes it or refuses the file. It is what the
//! compiler, `explain`, `diff` and the tables of the command line read.

use firewall_common::image::PortKey;
use std::sync::Arc;

/// Index into [`Policy::services`]; the image numbers services from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u16);

/// Index into [`Policy::rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub u32);

/// One whole policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// `defaults.ingress = "allow"`: what no service names passes.
    pub default_allow: bool,
    /// In the order of the file.
    pub services: Vec<Service>,
    /// In the order of the file: the policy's deny list first, then each service's deny list, then its allow list.
    pub rules: Vec<Rule>,
    /// Prefix lists that rules refer to, each once however many rules use it.
    pub lists: Vec<Arc<PrefixList>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    /// As written, for people: `tcp/8443`, `icmp/echo`.
    pub ports_text: Vec<String>,
    /// Inclusive ranges, disjoint, sorted.
    pub ports: Vec<(PortKey, PortKey)>,
    pub place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Deny,
}

/// One entry of an allow or deny list: `any`, a group, or a prefix. The literals of a list longer than
/// [`MAX_LITERAL_RULES`] count as one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `None`: the policy's own deny list, which holds on every port.
    pub service: Option<ServiceId>,
    pub action: Action,
    /// For people and for metric labels, unique among the rules of one (service, action): `any`, `@web`, `198.51.100.7`, `10.20.0.0/16`, `1042 prefixes`.
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
