//! Spans of time as people type them: `90s`, `10m`, `1h30m`, `7d`.

use std::time::Duration;

/// `--for` of the commands that add an entry.
#[derive(Debug, clap::Args)]
pub struct Lasting {
    /// End by itself after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = parse)]
    for_: Option<Duration>,
}

impl Lasting {
    /// `None`: for good.
    pub fn seconds(&self) -> Option<u64> {
        self.for_.map(|time| time.as_secs())
    }
}

const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];
/// A hundred years: what is longer is meant to be permanent.
const LONGEST: u64 = 36_500 * 86_400;

/// Parses `7d`, `2h`, `1h30m`, `90s`: units from large to small, each at most once.
///
/// # Errors
/// What is wrong with which part, and what would be accepted.
pub fn parse(text: &str) -> Result<Duration, String> {
    const EXAMPLES: &str = "write for example 90s, 10m, 1h30m or 7d";
    if text.is_empty() {
        return Err(format!("a duration is missing: {EXAMPLES}"));
    }
    let mut total = 0_u64;
    let mut last_unit = u64::MAX;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        if number.is_empty() {
            return Err(format!("\"{rest}\" does not begin with a number: {EXAMPLES}"));
        }
        let letters = after.len() - after.trim_start_matches(|c: char| !c.is_ascii_digit()).len();
        let (unit, after) = after.split_at(letters);
        if unit.is_empty() {
            return Err(format!(
                "\"{number}\" has no unit: write {number}s, {number}m, {number}h or {number}d"
            ));
        }
        let Some(&(_, seconds)) = UNITS
            .iter()
            .find(|(letter, _)| unit.len() == 1 && unit.starts_with(*letter))
        else {
            let meant = UNITS
                .iter()
                .find(|(letter, _)| unit.starts_with(*letter) && unit != "ms");
            let hint = meant
                .map(|(letter, _)| format!("; did you mean {number}{letter}?"))
                .unwrap_or_default();
            return Err(format!("unknown unit \"{unit}\" (d, h, m or s){hint}"));
        };
        if seconds >= last_unit {
            return Err("units go from large to small, each once, as in 1d2h30m".to_owned());
        }
        last_unit = seconds;
        total = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(seconds))
            .and_then(|part| part.checked_add(total))
            .filter(|&total| total <= LONGEST)
            .ok_or_else(|| {
                format!("\"{text}\" is longer than a hundred years; without a duration it is for good")
            })?;
        rest = after;
    }
    if total == 0 {
        return Err(format!("\"{text}\" is no time at all: {EXAMPLES}"));
    }
    Ok(Duration::from_secs(total))
}

/// An interval: seconds, also as `0.5`, or what [`parse`] takes.
///
/// # Errors
/// As [`parse`]; less than 0.1 s or more than a day.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| "0.1 to 86400 seconds".to_owned())?,
        Err(_) => parse(text)?,
    };
    if interval < Duration::from_millis(100) || interval > Duration::from_secs(86_400) {
        return Err("an interval is 0.1 to 86400 seconds".to_owned());
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations() {
        let cases = [
            ("90s", 90),
            ("2h", 7200),
            ("1h30m", 5400),
            ("7d", 604_800),
            ("1d1h1m1s", 90_061),
            ("0h5m", 300),
        ];
        for (text, seconds) in cases {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn errors_say_what_would_be_accepted() {
        let cases = [
            (
                "",
                "a duration is missing: write for example 90s, 10m, 1h30m or 7d",
            ),
            ("10", "\"10\" has no unit: write 10s, 10m, 10h or 10d"),
            ("1h30", "\"30\" has no unit: write 30s, 30m, 30h or 30d"),
            ("5min", "unknown unit \"min\" (d, h, m or s); did you mean 5m?"),
            ("5ms", "unknown unit \"ms\" (d, h, m or s)"),
            ("2w", "unknown unit \"w\" (d, h, m or s)"),
            (
                "h",
                "\"h\" does not begin with a number: write for example 90s, 10m, 1h30m or 7d",
            ),
            (
                "-2h",
                "\"-2h\" does not begin with a number: write for example 90s, 10m, 1h30m or 7d",
            ),
            ("30m1h", "units go from large to small, each once, as in 1d2h30m"),
            ("1h1h", "units go from large to small, each once, as in 1d2h30m"),
            (
                "0s",
                "\"0s\" is no time at all: write for example 90s, 10m, 1h30m or 7d",
            ),
            (
                "99999999999999999999d",
                "\"99999999999999999999d\" is longer than a hundred years; without a duration it is for good",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(parse(text), Err(message.to_owned()));
        }
    }

    #[test]
    fn reads_intervals() {
        assert_eq!(parse_interval("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_interval("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_interval("1m"), Ok(Duration::from_secs(60)));
        for bad in ["0", "-1", "NaN", "inf", "1e9", "x"] {
            assert!(parse_interval(bad).is_err(), "{bad}");
        }
    }
}
