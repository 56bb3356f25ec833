//! `[detect]` of agent.toml: whether, how soon and from where on a rate is told as an anomaly.

use super::Kind;
use crate::cli::duration;
use serde::Deserialize;
use std::time::Duration;

/// All defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Settings {
    pub enabled: bool,
    pub sensitivity: Sensitivity,
    /// Between two samples.
    pub interval: Duration,
    /// A series is learned for so long before it is judged.
    pub warm_up: Duration,
    /// An anomaly ends when its rate was usual for so long.
    pub ends_after: Duration,
    /// What lasts for so long is the new normal.
    pub normal_after: Duration,
    pub floors: Floors,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            enabled: true,
            sensitivity: Sensitivity::Normal,
            interval: Duration::from_secs(10),
            warm_up: Duration::from_secs(30 * 60),
            ends_after: Duration::from_secs(60),
            normal_after: Duration::from_secs(6 * 3600),
            floors: Floors::default(),
        }
    }
}

/// How far from what is usual is too far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sensitivity {
    Low,
    #[default]
    Normal,
    High,
}

impl Sensitivity {
    /// How many times the expected rate is too much.
    pub const fn factor(self) -> f64 {
        match self {
            Sensitivity::Low => 6.0,
            Sensitivity::Normal => 3.0,
            Sensitivity::High => 2.0,
        }
    }

    /// How many mean deviations above the expected rate are too much; where the rate is unsteady this is more than the
    /// factor.
    pub const fn deviations(self) -> f64 {
        match self {
            Sensitivity::Low => 12.0,
            Sensitivity::Normal => 6.0,
            Sensitivity::High => 4.0,
        }
    }
}

/// Rates a second up to which nothing is told, however unusual they are.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(
    deny_unknown_fields,
    default,
    expecting = "a table: [detect.floors], and drops = 100 below it"
)]
pub struct Floors {
    new_connections: Floor,
    drops: Floor,
    bytes: Floor,
}

impl Default for Floors {
    fn default() -> Self {
        Floors {
            new_connections: Floor(20),
            drops: Floor(100),
            bytes: Floor(1_000_000),
        }
    }
}

impl Floors {
    pub fn of(&self, kind: Kind) -> f64 {
        let Floor(floor) = match kind {
            Kind::NewConnections => self.new_connections,
            Kind::Drops => self.drops,
            Kind::Bytes => self.bytes,
        };
        floor as f64
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
struct Floor(u64);

impl TryFrom<i64> for Floor {
    type Error = String;
    fn try_from(number: i64) -> Result<Floor, String> {
        match u64::try_from(number) {
            Ok(floor) if (1..=1_000_000_000_000).contains(&floor) => Ok(Floor(floor)),
            _ => Err(format!("a floor of {number} a second: 1 to 1000000000000")),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table: [detect], and enabled = true below it"
)]
struct Written {
    enabled: Option<bool>,
    sensitivity: Option<Sensitivity>,
    interval: Option<Span>,
    warm_up: Option<Span>,
    ends_after: Option<Span>,
    normal_after: Option<Span>,
    floors: Option<Floors>,
}

impl TryFrom<Written> for Settings {
    type Error = String;
    fn try_from(written: Written) -> Result<Settings, String> {
        let defaults = Settings::default();
        let span = |written: Option<Span>, default| written.map_or(default, |Span(span)| span);
        let settings = Settings {
            enabled: written.enabled.unwrap_or(defaults.enabled),
            sensitivity: written.sensitivity.unwrap_or_default(),
            interval: span(written.interval, defaults.interval),
            warm_up: span(written.warm_up, defaults.warm_up),
            ends_after: span(written.ends_after, defaults.ends_after),
            normal_after: span(written.normal_after, defaults.normal_after),
            floors: written.floors.unwrap_or_default(),
        };
        let interval = settings.interval;
        if interval > Duration::from_secs(300) {
            return Err(format!("an interval of {}s: 100ms to 5m", interval.as_secs()));
        }
        for (name, span, least) in [
            ("warm_up", settings.warm_up, 10),
            ("ends_after", settings.ends_after, 2),
            ("normal_after", settings.normal_after, 60),
        ] {
            if span < interval * least {
                return Err(format!(
                    "{name} is {span:?} and interval is {interval:?}: it takes {least} samples at least"
                ));
            }
        }
        Ok(settings)
    }
}

/// `10s`, `30m`, also `100ms`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Span(Duration);

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Span, String> {
        let millis = text.strip_suffix("ms").and_then(|number| number.parse().ok());
        let span = match millis {
            Some(millis) => Duration::from_millis(millis),
            None => duration::parse(&text)?,
        };
        let bounds = Duration::from_millis(100)..=Duration::from_secs(30 * 86_400);
        match bounds.contains(&span) {
            true => Ok(Span(span)),
            false => Err(format!("a time of {text}: 100ms to 30d")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_written_is_the_default() {
        assert_eq!(read(""), Ok(Settings::default()));
        let settings = read(
            "enabled = false\nsensitivity = \"high\"\ninterval = \"100ms\"\nwarm_up = \"3s\"\n[floors]\ndrops = 5",
        )
        .expect("valid");
        assert_eq!(
            settings,
            Settings {
                enabled: false,
                sensitivity: Sensitivity::High,
                interval: Duration::from_millis(100),
                warm_up: Duration::from_secs(3),
                floors: Floors {
                    drops: Floor(5),
                    ..Floors::default()
                },
                ..Settings::default()
            }
        );
    }

    #[test]
    fn mistakes_say_what_would_be_accepted() {
        for (text, words) in [
            ("enabled = \"yes\"", "expected a boolean"),
            (
                "sensitivity = \"medium\"",
                "expected one of `low`, `normal`, `high`",
            ),
            ("interval = \"10ms\"", "100ms to 30d"),
            ("interval = \"10\"", "has no unit"),
            ("interval = \"10m\"", "an interval of 600s: 100ms to 5m"),
            (
                "warm_up = \"30s\"",
                "warm_up is 30s and interval is 10s: it takes 10 samples",
            ),
            ("ends_after = \"15s\"", "2 samples at least"),
            ("normal_after = \"5m\"", "60 samples at least"),
            ("[floors]\ndrop = 5", "unknown field `drop`"),
            ("[floors]\ndrops = 0", "1 to 1000000000000"),
            ("floors = 3", "a table: [detect.floors]"),
            ("every = \"10s\"", "unknown field `every`"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
