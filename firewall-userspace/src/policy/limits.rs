//! What a service bears: rates and connections, of one source and in all, and what becomes of the excess.
//!
//! [`text`] reads single values, [`read`] the tables of a policy. A service's limits come here with the defaults merged in,
//! those of its groups with the service's; so whoever reads a model looks in one place. What is limited how exactly is
//! the business of `firewall_common::limit`.

pub(super) mod read;
pub mod text;

use super::model::{Place, Service};
use super::ports::tcp;
use crate::api::types::{LimitRow, LimitValue};
use crate::output::{duration, number};
use std::fmt;
use std::time::Duration;

/// What is limited, in the order of [`Limits::rates`], connections last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// New TCP connections.
    NewConnections,
    Packets,
    Bytes,
    /// TCP connections that are established at the same time.
    Connections,
}

impl Kind {
    pub const ALL: [Kind; 4] = [
        Kind::NewConnections,
        Kind::Packets,
        Kind::Bytes,
        Kind::Connections,
    ];

    /// The key in the file.
    pub const fn key(self) -> &'static str {
        match self {
            Kind::NewConnections => "new_connections",
            Kind::Packets => "packets",
            Kind::Bytes => "bytes",
            Kind::Connections => "connections",
        }
    }

    pub const fn words(self) -> &'static str {
        match self {
            Kind::NewConnections => "new connections",
            Kind::Packets => "packets",
            Kind::Bytes => "bytes",
            Kind::Connections => "connections",
        }
    }

    /// Whether it counts connections, which only TCP has.
    pub const fn needs_tcp(self) -> bool {
        matches!(self, Kind::NewConnections | Kind::Connections)
    }
}

/// What a service, or one group of its sources, bears. The default bears everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// New connections, packets, bytes.
    pub rates: [Rates; 3],
    pub connections: Connections,
    pub source: SourceLengths,
    pub on_excess: OnExcess,
    /// Where they are written; none without any.
    pub place: Option<Place>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub per_source: Option<Rate>,
    pub total: Option<Rate>,
}

/// `amount` in every `per`, and `burst` at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub amount: u64,
    pub per: Per,
    pub burst: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    Second,
    Minute,
    Hour,
}

impl Per {
    pub const fn seconds(self) -> u64 {
        match self {
            Per::Second => 1,
            Per::Minute => 60,
            Per::Hour => 3600,
        }
    }

    pub const fn word(self) -> &'static str {
        match self {
            Per::Second => "s",
            Per::Minute => "min",
            Per::Hour => "h",
        }
    }
}

/// Connections at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    pub per_source: Option<u32>,
    pub total: Option<u32>,
}

/// Bits of an address that make a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLengths {
    pub v4: u8,
    pub v6: u8,
}

impl Default for SourceLengths {
    fn default() -> Self {
        SourceLengths { v4: 32, v6: 64 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExcess {
    #[default]
    Drop,
    /// New connections have to prove their address by a SYN cookie.
    Challenge,
    /// The same; who has proven an address and exceeds what one source may open is shut out for these seconds.
    Ban(u32),
}

impl fmt::Display for OnExcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OnExcess::Drop => f.write_str("drop"),
            OnExcess::Challenge => f.write_str("challenge"),
            OnExcess::Ban(seconds) => {
                let time = duration(Duration::from_secs((*seconds).into()));
                write!(f, "ban {}", time.replace(' ', ""))
            }
        }
    }
}

/// Sources of a service with limits of their own: a `[[service.limit]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitGroup {
    /// As written: `@partners`, `192.0.2.0/24`. At least one.
    pub sources: Vec<String>,
    /// Indexes into [`super::model::Policy::lists`].
    pub lists: Vec<u32>,
    /// With those of the service where it says nothing else; totals are its own only.
    pub limits: Limits,
    pub place: Place,
}

impl Limits {
    /// Whether they limit nothing.
    pub fn is_empty(&self) -> bool {
        self.rates.iter().all(|rates| *rates == Rates::default())
            && self.connections == Connections::default()
    }

    /// Whether they limit anything in all.
    pub fn has_totals(&self) -> bool {
        self.rates.iter().any(|rates| rates.total.is_some()) || self.connections.total.is_some()
    }

    /// Without what a single source may do.
    pub fn only_totals(&self) -> Limits {
        Limits {
            rates: self.rates.map(|rates| Rates {
                per_source: None,
                ..rates
            }),
            connections: Connections {
                per_source: None,
                ..self.connections
            },
            ..self.clone()
        }
    }

    /// Each kind in words with what is limited of it, `unlimited` if nothing is.
    pub fn by_kind(&self) -> [(&'static str, String); 4] {
        Kind::ALL.map(|kind| {
            let text = self.value(kind).map(|value| parts(&value).join(", "));
            (kind.words(), text.unwrap_or_else(|| "unlimited".to_owned()))
        })
    }

    /// A phrase for what is limited of one kind, if anything is.
    pub fn phrase(&self, kind: Kind) -> Option<String> {
        let value = self.value(kind)?;
        Some(format!("{} {}", kind.words(), parts(&value).join(", ")))
    }

    fn values(&self) -> Vec<LimitValue> {
        let kinds = Kind::ALL.into_iter();
        kinds.filter_map(|kind| self.value(kind)).collect()
    }

    /// What one source may, and all together, as numbers; rates a second.
    pub fn numbers(&self, kind: Kind) -> [Option<f64>; 2] {
        let second = |rate: &Rate| rate.amount as f64 / rate.per.seconds() as f64;
        match self.rates.get(kind as usize) {
            Some(rates) => [rates.per_source, rates.total].map(|rate| rate.as_ref().map(second)),
            None => [self.connections.per_source, self.connections.total].map(|count| count.map(f64::from)),
        }
    }

    /// One thing that is limited, as people read it.
    pub fn value(&self, kind: Kind) -> Option<LimitValue> {
        let mut value = LimitValue {
            what: kind.key().to_owned(),
            ..LimitValue::default()
        };
        if let Some(rates) = self.rates.get(kind as usize) {
            let text = |rate: &Rate| format!("{}/{}", amount(kind, rate.amount), rate.per.word());
            let burst = |rate: &Rate| amount(kind, rate.burst);
            value.per_source = rates.per_source.as_ref().map(text);
            value.burst = rates.per_source.as_ref().map(burst);
            value.total = rates.total.as_ref().map(text);
            value.total_burst = rates.total.as_ref().map(burst);
        } else {
            let text = |count: u32| number(count.into());
            value.per_source = self.connections.per_source.map(text);
            value.total = self.connections.total.map(text);
        }
        (value.per_source.is_some() || value.total.is_some()).then_some(value)
    }
}

/// `50/s a source (burst 100)`, `5,000/s in all (burst 5,000)`
fn parts(value: &LimitValue) -> Vec<String> {
    let part = |limit: &Option<String>, burst: &Option<String>, of: &str| {
        let burst = burst.as_ref().map(|burst| format!(" (burst {burst})"));
        let limit = limit.as_ref()?;
        Some(format!("{limit} {of}{}", burst.unwrap_or_default()))
    };
    let parts = [
        part(&value.per_source, &value.burst, "a source"),
        part(&value.total, &value.total_burst, "in all"),
    ];
    parts.into_iter().flatten().collect()
}

/// `20,000`; of bytes `100 MB`, `64 KiB`, `12.5 MB`, exact.
pub fn amount(kind: Kind, value: u64) -> String {
    const DECIMAL: [(u64, &str); 4] = [
        (1_000_000_000_000, "TB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1000, "kB"),
    ];
    const BINARY: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    if kind != Kind::Bytes {
        return number(value);
    }
    let decimal = DECIMAL.iter().find(|(unit, _)| value >= *unit);
    let binary = BINARY
        .iter()
        .find(|(unit, _)| value >= *unit && value.is_multiple_of(*unit));
    match (decimal, binary) {
        (Some((unit, name)), _) if value.is_multiple_of(*unit) => format!("{} {name}", number(value / unit)),
        (_, Some((unit, name))) => format!("{} {name}", number(value / unit)),
        (Some((unit, name)), None) if value.is_multiple_of(unit / 1000) => {
            let fraction = format!("{:03}", value % unit / (unit / 1000));
            format!(
                "{}.{} {name}",
                number(value / unit),
                fraction.trim_end_matches('0')
            )
        }
        _ => format!("{} B", number(value)),
    }
}

impl Service {
    /// Whether it has a TCP port.
    pub fn has_tcp(&self) -> bool {
        self.ports.iter().any(|(first, _)| tcp(*first).is_some())
    }

    /// The name of what a limit of the service keeps its state under: `api`, or `api/@partners` for a group. A group is
    /// called by its first source, which no other of the service has.
    pub fn scope_name(&self, group: Option<&LimitGroup>) -> String {
        match group.and_then(|group| group.sources.first()) {
            Some(source) => format!("{}/{source}", self.name),
            None => self.name.clone(),
        }
    }

    /// The limits of a scope, by [`Service::scope_name`].
    pub fn limits_of(&self, scope: &str) -> Option<&Limits> {
        let group = self
            .groups
            .iter()
            .find(|group| self.scope_name(Some(group)) == scope);
        let own = (self.name == scope).then_some(&self.limits);
        group.map(|group| &group.limits).or(own)
    }

    /// All that is limited: groups first, as the file has them, then everybody else.
    pub fn limit_rows(&self) -> Vec<LimitRow> {
        let row = |group: Option<&LimitGroup>, limits: &Limits| LimitRow {
            scope: self.scope_name(group),
            sources: group.map_or(Vec::new(), |group| group.sources.clone()),
            limits: limits.values(),
            source_v4: limits.source.v4,
            source_v6: limits.source.v6,
            on_excess: limits.on_excess.to_string(),
            place: group
                .map(|group| &group.place)
                .or(limits.place.as_ref())
                .cloned()
                .unwrap_or_default(),
            challenged: false,
            connections: None,
        };
        let groups = self.groups.iter().map(|group| row(Some(group), &group.limits));
        let rest = (!self.limits.is_empty()).then(|| row(None, &self.limits));
        groups.chain(rest).collect()
    }
}

#[cfg(test)]
mod tests;
