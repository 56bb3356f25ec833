//! Detection: what a service usually sees is learned, and what is far more than that is told.
//!
//! A *series* is one (service, [`Kind`]): a counter that grows. [`series`] judges its rate against a [`baseline`],
//! [`detector`] holds all series and, while one is suspect, the [`top`] sources of its packets; all of it is pure, fed
//! with times and counts. [`watch`] is the task of the agent around it: it takes the samples, listens to events
//! while a series is suspect and not otherwise, and tells. [`settings`] is `[detect]` of agent.toml.
//!
//! Absent on purpose: what is *less* than usual, relations between services, and any action. Nothing is dropped because of
//! it; `docs/detection.md` says how it decides, and how often it is wrong.

pub mod baseline;
pub mod detector;
pub mod series;
pub mod settings;
pub mod top;
pub mod watch;

use std::time::Duration;

/// What is counted of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Connections that were let in.
    NewConnections,
    /// Packets to the service that were dropped, or would have been.
    Drops,
    /// Bytes that passed, in both directions.
    Bytes,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::NewConnections, Kind::Drops, Kind::Bytes];

    /// The word people read, and the label value.
    pub const fn word(self) -> &'static str {
        match self {
            Kind::NewConnections => "new_connections",
            Kind::Drops => "drops",
            Kind::Bytes => "bytes",
        }
    }

    pub fn from_word(word: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

/// When a sample was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Of a clock that never jumps: all spans are measured by it.
    pub uptime: Duration,
    /// Since 1970, UTC: for the hour of the day and for what is told to people.
    pub unix: Duration,
}

impl Moment {
    /// Hours since 1970.
    fn hour(self) -> u64 {
        self.unix.as_secs() / 3600
    }
}

#[cfg(test)]
mod simulated;
