//! `[limits]` of agent.toml: what limits may remember, and how often connections are counted anew.

use crate::cli::duration;
use crate::datapath::limits::Sizes;
use firewall_common::control::CHALLENGE_QUIET_S;
use serde::Deserialize;
use std::time::Duration;

/// As the agent uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub sizes: Sizes,
    /// Between counts of the connections that there are.
    pub recount: Duration,
    /// Seconds without excess after which a challenge ends.
    pub quiet_s: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            sizes: Sizes::default(),
            recount: Duration::from_secs(10),
            quiet_s: CHALLENGE_QUIET_S,
        }
    }
}

/// As written.
#[derive(Debug, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table: [limits], and sources = 65536 below it"
)]
pub struct Section {
    sources: Option<Sources>,
    connections: Option<Sources>,
    memory: Option<Memory>,
    recount: Option<Interval>,
    quiet: Option<Quiet>,
}

impl Section {
    pub fn settings(self) -> Settings {
        let usual = Settings::default();
        Settings {
            sizes: Sizes {
                sources: self.sources.map_or(usual.sizes.sources, |given| given.0),
                connections: self.connections.map_or(usual.sizes.connections, |given| given.0),
                memory: self.memory.map_or(usual.sizes.memory, |given| given.0),
            },
            recount: self.recount.map_or(usual.recount, |given| given.0),
            quiet_s: self.quiet.map_or(usual.quiet_s, |given| given.0),
        }
    }
}

/// How many sources a table tells apart, within [`Sizes::SOURCES`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "i64")]
struct Sources(u32);

impl TryFrom<i64> for Sources {
    type Error = String;
    fn try_from(number: i64) -> Result<Sources, String> {
        let fits = u32::try_from(number)
            .ok()
            .filter(|number| Sizes::SOURCES.contains(number));
        fits.map(Sources).ok_or_else(|| {
            let (least, most) = (Sizes::SOURCES.start(), Sizes::SOURCES.end());
            format!("room for {number} sources: {least} to {most}; each takes 8 bytes of kernel memory")
        })
    }
}

/// `256MB`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Memory(u64);

const UNITS: [(&str, u64); 6] = [
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];
/// The tables of one scope of the smallest size.
const LEAST: u64 = 32_768;

impl TryFrom<String> for Memory {
    type Error = String;
    fn try_from(text: String) -> Result<Memory, String> {
        let at = text
            .find(|letter: char| !letter.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(at);
        let unit = unit.trim_start();
        let bytes = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .and_then(|(_, size)| {
                let number: u64 = number.parse().ok()?;
                number.checked_mul(*size)
            });
        bytes
            .filter(|bytes| *bytes >= LEAST)
            .map(Memory)
            .ok_or_else(|| {
                format!(
                    "memory {text:?}: a number with kB, MB, GB, KiB, MiB or GiB, at least 32KiB, such as \"256MB\""
                )
            })
    }
}

/// Whole seconds, up to an hour.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Interval(Duration);

impl TryFrom<String> for Interval {
    type Error = String;
    fn try_from(text: String) -> Result<Interval, String> {
        let interval = duration::parse(&text)?;
        match interval.as_secs() {
            1..=3600 => Ok(Interval(interval)),
            _ => Err(format!("a recount every {text}: 1s to 1h")),
        }
    }
}

/// Whole seconds, more than pass between looks at what is challenged.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Quiet(u32);

impl TryFrom<String> for Quiet {
    type Error = String;
    fn try_from(text: String) -> Result<Quiet, String> {
        match u32::try_from(duration::parse(&text)?.as_secs()) {
            Ok(seconds) if (2..=3600).contains(&seconds) => Ok(Quiet(seconds)),
            _ => Err(format!("a challenge that ends after {text} of quiet: 2s to 1h")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        toml::from_str::<Section>(text)
            .map(Section::settings)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_written_stays() {
        assert_eq!(read(""), Ok(Settings::default()));
        let settings = read(
            "sources = 1048576\nconnections = 4096\nmemory = \"1GiB\"\nrecount = \"30s\"\nquiet = \"1m\"",
        );
        assert_eq!(
            settings,
            Ok(Settings {
                sizes: Sizes {
                    sources: 1_048_576,
                    connections: 4096,
                    memory: 1 << 30
                },
                recount: Duration::from_secs(30),
                quiet_s: 60,
            })
        );
        assert_eq!(
            read("memory = \"64 MB\"").map(|settings| settings.sizes.memory),
            Ok(64_000_000)
        );
    }

    #[test]
    fn mistakes_name_what_is_accepted() {
        for (text, words) in [
            ("sources = 1023", "1024 to 16777216"),
            ("sources = 16777217", "1024 to 16777216"),
            ("connections = -1", "room for -1 sources"),
            ("memory = \"256\"", "such as \"256MB\""),
            ("memory = \"256mb\"", "kB, MB, GB, KiB, MiB or GiB"),
            ("memory = \"31KiB\"", "at least 32KiB"),
            ("memory = \"99999999999999999999GB\"", "such as"),
            ("recount = \"2h\"", "1s to 1h"),
            ("recount = \"10\"", "has no unit"),
            ("quiet = \"1s\"", "2s to 1h"),
            ("size = 1", "unknown field `size`"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
