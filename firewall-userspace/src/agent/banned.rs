//! `[bans]` of agent.toml: how many networks may be banned at once, and how automatic bans grow when they repeat.

use crate::cli::duration;
use crate::datapath::Options;
use firewall_common::ban::Escalation;
use serde::Deserialize;

/// Valid by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct BansSection {
    /// Entries of the table: bans in force, and those that are over and remembered.
    pub max: u32,
    pub escalation: Escalation,
}

impl Default for BansSection {
    fn default() -> Self {
        BansSection {
            max: Options::DEFAULT_BANS,
            escalation: Escalation::DEFAULT,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table: [bans], and max = 65536 below it")]
struct Written {
    max: Option<Max>,
    escalation: Option<Factor>,
    longest: Option<Span>,
    forget: Option<Span>,
}

impl TryFrom<Written> for BansSection {
    type Error = String;
    fn try_from(written: Written) -> Result<BansSection, String> {
        let BansSection { max, escalation } = BansSection::default();
        Ok(BansSection {
            max: written.max.map_or(max, |Max(max)| max),
            escalation: Escalation {
                percent: written
                    .escalation
                    .map_or(escalation.percent, |Factor(percent)| percent),
                longest_s: written
                    .longest
                    .map_or(escalation.longest_s, |Span(seconds)| seconds),
                forget_s: written
                    .forget
                    .map_or(escalation.forget_s, |Span(seconds)| seconds),
            },
        })
    }
}

/// Within [`Options::BANS`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "i64")]
struct Max(u32);

impl TryFrom<i64> for Max {
    type Error = String;
    fn try_from(number: i64) -> Result<Max, String> {
        let fits = u32::try_from(number)
            .ok()
            .filter(|number| Options::BANS.contains(number));
        fits.map(Max).ok_or_else(|| {
            let (least, most) = (Options::BANS.start(), Options::BANS.end());
            format!(
                "a table of {number} bans: {least} to {most}; each takes about 100 bytes of kernel memory"
            )
        })
    }
}

/// In hundredths.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "f64")]
struct Factor(u32);

impl TryFrom<f64> for Factor {
    type Error = String;
    fn try_from(factor: f64) -> Result<Factor, String> {
        match (1.0..=100.0).contains(&factor) {
            true => Ok(Factor((factor * 100.0).round() as u32)),
            false => Err(format!(
                "an escalation of {factor}: 1 to 100, how many times as long each ban is as the one before; 1: they do not grow"
            )),
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Span(u32);

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Span, String> {
        let seconds = duration::parse(&text)?.as_secs();
        match u32::try_from(seconds) {
            Ok(seconds) if seconds <= 365 * 86_400 => Ok(Span(seconds)),
            _ => Err(format!("a time of {text}: 1s to 365d")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BansSection, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_written_stays() {
        assert_eq!(read(""), Ok(BansSection::default()));
        let found = read("max = 16\nescalation = 1.5\nlongest = \"7d\"\nforget = \"1h\"").unwrap();
        let escalation = Escalation {
            percent: 150,
            longest_s: 604_800,
            forget_s: 3600,
        };
        assert_eq!(found, BansSection { max: 16, escalation });
        // A whole number is a factor, too.
        assert_eq!(read("escalation = 3").unwrap().escalation.percent, 300);
    }

    #[test]
    fn mistakes_say_what_would_be_accepted() {
        for (text, words) in [
            ("max = 3", "16 to 1048576"),
            ("escalation = 0.5", "1 to 100"),
            ("escalation = nan", "1 to 100"),
            ("longest = \"30\"", "has no unit"),
            ("forget = \"400d\"", "1s to 365d"),
            ("size = 3", "unknown field `size`"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(words), "{error}");
        }
    }
}
