//! The owner's eye on the kernel's memory: what somebody else changed there is told, counted and put back.
//! What is looked at: see [`crate::datapath::Drift`]. What costs a few calls is looked at every second; the image, which may
//! be large, is read back from time to time, and in pieces, so that nothing waits for it.

use super::jobs::{Job, Work};
use super::owner::Owner;
use super::reload::chain;
use crate::api::types::DriftStatus;
use crate::cli::duration;
use crate::datapath::Drift;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Between looks at what costs little.
const LOOK: Duration = Duration::from_secs(1);
/// While an image is being read back.
const READ_ON: Duration = Duration::from_millis(50);
/// Of an image at a time: some milliseconds.
const PIECE: usize = 8 << 20;

/// `[drift]` of agent.toml.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct DriftSection {
    /// Between two times that the whole image is read back.
    pub every: Duration,
}

impl Default for DriftSection {
    fn default() -> Self {
        DriftSection {
            every: Duration::from_secs(30),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table: [drift], and every = \"30s\" below it"
)]
struct Written {
    every: Option<String>,
}

impl TryFrom<Written> for DriftSection {
    type Error = String;

    fn try_from(written: Written) -> Result<DriftSection, String> {
        let Some(text) = written.every else {
            return Ok(DriftSection::default());
        };
        let every = duration::parse(&text)?;
        match (Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&every) {
            true => Ok(DriftSection { every }),
            false => Err(format!("a time of {text}: 1s to 1d")),
        }
    }
}

/// What was found so far, and when to look again.
#[derive(Debug)]
pub(super) struct Drifting {
    next_look: Instant,
    next_reading: Instant,
    last_look: Instant,
    counts: BTreeMap<Drift, u64>,
    /// In words, and when in unix seconds.
    last: Option<(String, u64)>,
    /// The bytes of the image are not what was put there: the same policy is to be switched to again.
    pub(super) switch_again: bool,
}

impl Drifting {
    pub fn new(now: Instant) -> Drifting {
        Drifting {
            next_look: now,
            next_reading: now,
            last_look: now,
            counts: BTreeMap::new(),
            last: None,
            switch_again: false,
        }
    }

    pub fn next(&self) -> Instant {
        self.next_look
    }

    /// Of every kind, how often it was found.
    pub fn counts(&self) -> Vec<(Drift, u64)> {
        let count = |drift| self.counts.get(&drift).copied().unwrap_or_default();
        Drift::ALL
            .into_iter()
            .map(|drift| (drift, count(drift)))
            .collect()
    }

    pub fn status(&self) -> DriftStatus {
        DriftStatus {
            found: self.counts.values().sum(),
            last: self.last.as_ref().map(|(text, _)| text.clone()),
            last_at: self.last.as_ref().map(|(_, at)| *at),
        }
    }
}

impl Owner {
    pub(super) fn look_for_drift(&mut self, now: Instant) {
        if now < self.drift.next_look {
            return;
        }
        self.drift.next_look = now + LOOK;
        let Some(datapath) = self.datapath.as_mut() else {
            return;
        };
        let begins = now >= self.drift.next_reading && !datapath.is_reading_back();
        if begins {
            self.drift.next_reading = now + self.config.drift.every;
        }
        let mut found = match datapath.drift(begins) {
            Ok(found) => found,
            Err(error) => {
                let text = format!(
                    "cannot tell whether the kernel holds what it should: {}",
                    chain(&error)
                );
                return self.note("drift", Some(text));
            }
        };
        let damaged = (begins || datapath.is_reading_back()) && datapath.read_back(PIECE) == Some(false);
        if datapath.is_reading_back() {
            self.drift.next_look = now + READ_ON;
        }
        // Until it is switched again, every reading finds the same.
        if damaged && !self.drift.switch_again {
            found.insert(Drift::Image);
            self.drift.switch_again = true;
            let work = Work::Reload {
                why: "the image in the kernel was changed",
                force: true,
                ending: false,
            };
            self.jobs.push_back(Job { work, reply: None });
        }
        let since = now.duration_since(self.drift.last_look);
        self.drift.last_look = now;
        match found.is_empty() {
            true => self.note("drift", None),
            false => self.undo(&found, since),
        }
    }

    fn undo(&mut self, found: &BTreeSet<Drift>, since: Duration) {
        for drift in found {
            *self.drift.counts.entry(*drift).or_default() += 1;
        }
        let what: Vec<&str> = found.iter().map(|drift| drift.meaning()).collect();
        let what = what.join(", ");
        let repaired = self
            .datapath
            .as_mut()
            .map_or(Ok(()), |datapath| datapath.repair());
        let text = format!("somebody changed {what} in the maps of the kernel");
        match repaired {
            Ok(()) => {
                // An image that was changed in place is as old as its last reading.
                let within = match self.drift.switch_again {
                    true => self.config.drift.every,
                    false => since.max(LOOK),
                };
                log::error!(
                    "{text}; put back, it was judged by for up to {} ms",
                    within.as_millis()
                );
                self.note("drift", None);
            }
            Err(error) => {
                let text = format!("{text}, and it cannot be put back: {}", chain(&error));
                self.note("drift", Some(text));
            }
        }
        self.drift.last = Some((text, self.clock.wall().as_secs()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_between_readings_is_bounded() {
        let read = |text: &str| toml::from_str::<DriftSection>(text).map_err(|error| error.to_string());
        assert_eq!(read("").map(|section| section.every), Ok(Duration::from_secs(30)));
        assert_eq!(
            read("every = \"5m\"").map(|section| section.every),
            Ok(Duration::from_secs(300))
        );
        for (text, words) in [
            ("every = \"0s\"", "no time at all"),
            ("every = \"2d\"", "1s to 1d"),
            ("every = \"30\"", "has no unit"),
            ("each = \"30s\"", "unknown field `each`"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(words), "{error}");
        }
    }
}
