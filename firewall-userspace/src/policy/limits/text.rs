//! Rates, sizes and counts as people write them: `50/s`, `20k/min`, `100MB/s`, `1Gbit/s`; `64KiB`; `20k`.

use super::{Kind, OnExcess, Per, Rate, amount};
use crate::cli::duration;
use crate::policy::diagnostic::did_you_mean;
use std::ops::{Range, RangeInclusive};

/// What is wrong with a value, and with which bytes of its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextError {
    pub message: String,
    pub at: Range<usize>,
    pub hint: Option<String>,
}

/// Of one source, or of all together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Source,
    Total,
}

/// Factors of a number, with what is surely meant by them.
const FACTORS: [(&str, u64); 3] = [("k", 1000), ("M", 1_000_000), ("G", 1_000_000_000)];

/// Units of bytes: how many bytes a thousand of them are.
const SIZES: [(&str, u64); 10] = [
    ("B", 1000),
    ("kB", 1_000_000),
    ("MB", 1_000_000_000),
    ("GB", 1_000_000_000_000),
    ("KiB", 1000 << 10),
    ("MiB", 1000 << 20),
    ("GiB", 1000 << 30),
    ("kbit", 125_000),
    ("Mbit", 125_000_000),
    ("Gbit", 125_000_000_000),
];

const TIMES: [(&str, Per); 3] = [("s", Per::Second), ("min", Per::Minute), ("h", Per::Hour)];

/// Connections at the same time.
pub const CONNECTIONS: RangeInclusive<u64> = 1..=1_000_000_000;

/// Bytes of the longest frame: a burst holds it.
pub const LONGEST_FRAME: u64 = 64 << 10;

/// The longest time that the rate takes for its burst, in seconds.
const LONGEST_BURST: u64 = 86_400;

/// How much a second may be.
fn most(kind: Kind, scope: Scope) -> u64 {
    match (kind, scope) {
        (Kind::Bytes, _) => 100_000_000_000,
        (_, Scope::Source) => 10_000_000,
        (_, Scope::Total) => 1_000_000_000,
    }
}

fn bursts(kind: Kind, scope: Scope) -> RangeInclusive<u64> {
    match kind {
        Kind::Bytes => LONGEST_FRAME..=1_000_000_000_000,
        _ => 1..=most(kind, scope),
    }
}

/// The forms of a rate, for hints and the schema's examples.
pub const fn forms(kind: Kind) -> &'static str {
    match kind {
        Kind::Bytes => "\"100MB/s\", \"64KiB/s\" or \"1Gbit/s\"",
        _ => "\"50/s\", \"20k/s\" or \"600/min\"",
    }
}

/// Parses a rate: how much, and in which time.
pub fn rate(text: &str, kind: Kind, scope: Scope) -> Result<(u64, Per), TextError> {
    let whole = 0..text.len();
    no_blanks(text, &|bare| rate(bare, kind, scope).is_ok())?;
    let Some((count, time)) = text.split_once('/') else {
        let hint = match quantity(text, kind, 0) {
            Ok(_) => format!("write \"{text}/s\""),
            Err(_) if kind == Kind::Bytes && is_number(text) => example(text, kind, scope),
            Err(_) if means_unlimited(text) => format!("write \"unlimited\", or {}", forms(kind)),
            Err(_) => per_second(text, kind)
                .or_else(|| did_you_mean(text, "", ["unlimited"]))
                .unwrap_or_else(|| format!("write {}", forms(kind))),
        };
        return Err(error(
            whole,
            format!("\"{text}\" is not a rate: it has no time (/s, /min or /h)"),
            Some(hint),
        ));
    };
    let value = match quantity(count, kind, 0) {
        Err(error) if kind == Kind::Bytes && is_number(count) => {
            let hint = Some(example(count, kind, scope));
            return Err(TextError { hint, ..error });
        }
        Err(error) => {
            let hint = per_second(count, kind).or(error.hint.clone());
            return Err(TextError { hint, ..error });
        }
        Ok(value) => value,
    };
    let at = count.len() + 1;
    let Some(&(_, per)) = TIMES.iter().find(|(name, _)| *name == time) else {
        let meant = match time.to_lowercase().as_str() {
            "sec" | "second" | "seconds" => Some("s"),
            "m" | "minute" | "minutes" | "mins" => Some("min"),
            "hr" | "hour" | "hours" => Some("h"),
            _ => None,
        };
        let hint = match (meant, time) {
            (Some(meant), _) => Some(format!("write \"{count}/{meant}\"")),
            (None, "") => Some(format!("write \"{count}/s\"")),
            (None, _) => Some("the shortest time is /s, the longest /h".to_owned()),
        };
        let at = if time.is_empty() {
            whole
        } else {
            at..at + time.len()
        };
        return Err(error(at, format!("unknown time \"{time}\" (s, min or h)"), hint));
    };
    let most = most(kind, scope);
    let (least, range) = match kind {
        Kind::Bytes => (1000, format!("1 kB/s to {}/s", amount(kind, most))),
        _ => (0, format!("1/h to {}/s", amount(kind, most))),
    };
    if value == 0 {
        let hint = "to let nobody in, take sources out of \"allow\"";
        return Err(error(
            whole,
            format!("a rate of 0 ({range})"),
            Some(hint.to_owned()),
        ));
    }
    if value > most.saturating_mul(per.seconds()) || value < least * per.seconds() {
        return Err(error(
            whole,
            format!("\"{text}\" is out of range ({range})"),
            None,
        ));
    }
    Ok((value, per))
}

/// Parses a burst of a rate of this kind: a number, or a size.
pub fn burst(text: &str, kind: Kind, scope: Scope) -> Result<u64, TextError> {
    if let Some((count, _)) = text.split_once('/') {
        let hint = quantity(count, kind, 0)
            .is_ok()
            .then(|| format!("write \"{count}\""));
        let message = format!("\"{text}\" is a rate: a burst comes at once, without a time");
        return Err(error(0..text.len(), message, hint));
    }
    no_blanks(text, &|bare| burst(bare, kind, scope).is_ok())?;
    let value = match quantity(text, kind, 0) {
        Err(error) if kind == Kind::Bytes && is_number(text) => {
            let hint = Some(burst_example(text, kind, scope));
            return Err(TextError { hint, ..error });
        }
        value => value?,
    };
    in_range(text, kind, value, bursts(kind, scope))
}

/// A hint with a rate that has this number and is in range.
pub fn example(number: &str, kind: Kind, scope: Scope) -> String {
    let good = with_unit(number, kind, "/s", &|text| rate(text, kind, scope).is_ok());
    match good {
        Some(text) => format!("write for example \"{text}\""),
        None => format!("write {}", forms(kind)),
    }
}

fn burst_example(number: &str, kind: Kind, scope: Scope) -> String {
    let good = with_unit(number, kind, "", &|text| burst(text, kind, scope).is_ok());
    format!("write for example \"{}\"", good.as_deref().unwrap_or("100kB"))
}

/// The number with the smallest unit that makes it good.
pub fn with_unit(number: &str, kind: Kind, time: &str, is_good: &dyn Fn(&str) -> bool) -> Option<String> {
    let units: &[&str] = match kind {
        Kind::Bytes => &["B", "kB", "MB"],
        _ => &[""],
    };
    let mut texts = units.iter().map(|unit| format!("{number}{unit}{time}"));
    texts.find(|text| is_good(text))
}

fn is_number(text: &str) -> bool {
    thousandths(text).is_some()
}

/// Whether it is a word for what is written "unlimited".
pub fn means_unlimited(text: &str) -> bool {
    let words = [
        "none", "no", "off", "inf", "infinite", "infinity", "any", "all", "never",
    ];
    words.contains(&text.to_lowercase().as_str())
}

/// A hint for `100Mbps` and `50pps`.
fn per_second(text: &str, kind: Kind) -> Option<String> {
    let letters = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let digits = &text[..text.len() - letters.len()];
    if !is_number(digits) {
        return None;
    }
    let unit = letters.to_lowercase();
    let unit = unit.strip_suffix("ps")?;
    if kind == Kind::Bytes {
        let factor = unit
            .strip_suffix("bit")
            .or(unit.strip_suffix('b'))
            .or(unit.strip_suffix("byte"))?;
        let factor = match factor {
            "k" => "k",
            "m" => "M",
            "g" => "G",
            _ => return None,
        };
        let bits = format!("\"{digits}{factor}bit/s\"");
        let bytes = format!("\"{digits}{factor}B/s\"");
        return Some(match letters.contains('B') {
            true => format!("write {bytes} for bytes, {bits} for bits"),
            false => format!("write {bits} for bits, {bytes} for bytes"),
        });
    }
    let factor = match unit.trim_end_matches(['p', 'c', 'r']) {
        "" => "",
        "k" => "k",
        "m" => "M",
        _ => return None,
    };
    Some(format!("write \"{digits}{factor}/s\""))
}

/// A burst that is given as a number.
pub fn burst_of(value: u64, kind: Kind, scope: Scope) -> Result<u64, TextError> {
    let text = value.to_string();
    match kind {
        Kind::Bytes => {
            let hint = Some(burst_example(&text, kind, scope));
            Err(TextError {
                hint,
                ..no_unit(&text, 0)
            })
        }
        _ => in_range(&text, kind, value, bursts(kind, scope)),
    }
}

/// Parses a number of connections.
pub fn connections(text: &str) -> Result<u64, TextError> {
    no_blanks(text, &|bare| connections(bare).is_ok())?;
    if let Some((count, _)) = text.split_once('/') {
        let hint = quantity(count, Kind::Connections, 0)
            .is_ok()
            .then(|| format!("write {count}; rates are for \"new_connections\""));
        let message =
            format!("\"{text}\" is a rate: \"connections\" counts those that are open at the same time");
        return Err(error(0..text.len(), message, hint));
    }
    let value = quantity(text, Kind::Connections, 0)?;
    in_range(text, Kind::Connections, value, CONNECTIONS)
}

/// A number of connections that is given as a number.
pub fn connections_of(value: u64) -> Result<u64, TextError> {
    in_range(&value.to_string(), Kind::Connections, value, CONNECTIONS)
}

fn in_range(text: &str, kind: Kind, value: u64, range: RangeInclusive<u64>) -> Result<u64, TextError> {
    if range.contains(&value) {
        return Ok(value);
    }
    let why = match (kind, value < *range.start()) {
        (Kind::Bytes, true) => ": a single frame may be as long as 64 KiB",
        _ => "",
    };
    let range = format!(
        "{} to {}",
        amount(kind, *range.start()),
        amount(kind, *range.end())
    );
    Err(error(
        0..text.len(),
        format!("{text} is out of range ({range}){why}"),
        None,
    ))
}

/// The burst that a rate has if none is given: what comes in one second.
pub fn default_burst(kind: Kind, scope: Scope, amount: u64, per: Per) -> u64 {
    let (least, most) = bursts(kind, scope).into_inner();
    amount.div_ceil(per.seconds()).clamp(least, most)
}

/// Whether a burst takes its rate so long that nobody means it.
pub fn too_long(rate: &Rate) -> bool {
    u128::from(rate.burst) * u128::from(rate.per.seconds())
        > u128::from(LONGEST_BURST) * u128::from(rate.amount)
}

/// Parses `drop`, `challenge` or `ban 10m`.
pub fn on_excess(text: &str) -> Result<OnExcess, TextError> {
    const LONGEST_BAN: u64 = 365 * 86_400;
    let forms = "(\"drop\", \"challenge\" or \"ban 10m\")";
    let whole = 0..text.len();
    match text {
        "drop" => return Ok(OnExcess::Drop),
        "challenge" => return Ok(OnExcess::Challenge),
        "ban" => {
            return Err(error(
                whole,
                "\"ban\" does not say for how long",
                Some("write \"ban 10m\"".to_owned()),
            ));
        }
        _ => {}
    }
    let Some(time) = text.strip_prefix("ban ") else {
        let word = text.split(' ').next().unwrap_or_default();
        let hint = match word.to_lowercase().as_str() {
            "deny" | "reject" | "block" => Some("did you mean \"drop\"?".to_owned()),
            "syncookie" | "syncookies" | "cookie" => Some("did you mean \"challenge\"?".to_owned()),
            _ => did_you_mean(word, "", ["drop", "challenge", "ban"]),
        };
        return Err(error(
            whole,
            format!("unknown on_excess \"{text}\" {forms}"),
            hint,
        ));
    };
    let bare = time.trim();
    let at = 4 + time.len() - time.trim_start().len();
    let at = if bare.is_empty() {
        whole
    } else {
        at..at + bare.len()
    };
    let time = duration::parse(bare).map_err(|message| {
        let weeks = ["w", "week", "weeks"]
            .iter()
            .find_map(|unit| bare.strip_suffix(unit))
            .and_then(|weeks| weeks.trim_end().parse::<u64>().ok())
            .filter(|weeks| (1..=52).contains(weeks));
        let hint = weeks.map(|weeks| format!("write \"ban {}d\"", weeks * 7));
        error(at.clone(), message, hint)
    })?;
    match u32::try_from(time.as_secs()) {
        Ok(seconds) if u64::from(seconds) <= LONGEST_BAN => Ok(OnExcess::Ban(seconds)),
        _ => Err(error(
            at,
            format!("a ban of {bare} is out of range (1s to 365d)"),
            Some("who is to stay out for good stands in \"deny\"".to_owned()),
        )),
    }
}

/// `20k`, `1.5M`; of bytes `100MB`. `at` is where it starts.
fn quantity(text: &str, kind: Kind, at: usize) -> Result<u64, TextError> {
    let digits = text.len()
        - text
            .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
            .len();
    let (digits, unit) = text.split_at(digits);
    let place = at..at + digits.len();
    let number = thousandths(digits);
    let Some(number) = number else {
        let forms = match kind {
            Kind::Bytes => "a size such as 64KiB or 100MB",
            _ => "a number such as 50, 20k or 1.5M",
        };
        let at = if digits.is_empty() {
            at..at + text.len()
        } else {
            place
        };
        let message = if text.starts_with('-') {
            format!("\"{text}\" is negative ({forms})")
        } else if digits.is_empty() {
            format!("\"{text}\" does not begin with a number ({forms})")
        } else {
            format!("\"{digits}\" has not one to three digits behind one point ({forms})")
        };
        let hint = means_unlimited(text).then(|| "write \"unlimited\", or a number".to_owned());
        return Err(error(at, message, hint));
    };
    let place_of_unit = at + digits.len()..at + text.len();
    let factor = match kind {
        Kind::Bytes => match SIZES.iter().find(|(name, _)| *name == unit) {
            Some((_, factor)) => u128::from(*factor),
            None if unit.is_empty() => return Err(no_unit(digits, at)),
            None => return Err(unknown_size(digits, unit, place_of_unit)),
        },
        _ if unit.is_empty() => 1000,
        _ => match FACTORS.iter().find(|(name, _)| *name == unit) {
            Some((_, factor)) => u128::from(*factor) * 1000,
            None => {
                let hint = match unit.to_lowercase().as_str() {
                    "k" => Some(format!("write \"{digits}k\"")),
                    "m" => Some(format!("write \"{digits}M\" for millions")),
                    "g" => Some(format!("write \"{digits}G\"")),
                    _ if SIZES.iter().any(|(name, _)| *name == unit) => {
                        Some("bytes are limited under \"bytes\"".to_owned())
                    }
                    _ => None,
                };
                return Err(error(
                    place_of_unit,
                    format!("unknown unit \"{unit}\" (k, M or G)"),
                    hint,
                ));
            }
        },
    };
    // Thousandths of a unit, of which a thousand are `factor`.
    let scaled = number * factor;
    let whole = at..at + text.len();
    if !scaled.is_multiple_of(1_000_000) {
        let message = format!("\"{text}\" is not a whole number");
        let hint = "for less than one a second write /min or /h".to_owned();
        return Err(error(whole, message, Some(hint)));
    }
    Ok(u64::try_from(scaled / 1_000_000).unwrap_or(u64::MAX))
}

/// A number with up to three places behind the point, in thousandths. What no range holds is the largest there is.
fn thousandths(text: &str) -> Option<u128> {
    let (whole, fraction) = match text.split_once('.') {
        Some((_, "")) => return None,
        Some((whole, fraction)) => (whole, fraction),
        None => (text, ""),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || fraction.len() > 3 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let whole: u128 = whole.parse::<u64>().unwrap_or(u64::MAX).into();
    let fraction: u128 = format!("{fraction:0<3}").parse().ok()?;
    Some(whole * 1000 + fraction)
}

const SIZE_NAMES: &str = "B, kB, MB, GB, KiB, MiB, GiB, kbit, Mbit or Gbit";

fn no_unit(digits: &str, at: usize) -> TextError {
    error(
        at..at + digits.len(),
        format!("\"{digits}\" has no unit ({SIZE_NAMES})"),
        Some(format!(
            "write \"{digits}B\", or with a unit such as in \"100MB\""
        )),
    )
}

fn unknown_size(digits: &str, unit: &str, at: Range<usize>) -> TextError {
    let hint = match unit.to_lowercase().as_str() {
        "k" | "m" | "g" => {
            let unit = if unit == "K" { "k" } else { unit };
            Some(format!(
                "write \"{digits}{unit}B\" for bytes, \"{digits}{unit}bit\" for bits"
            ))
        }
        // Of "mb" nobody knows which of the two it means.
        "kb" | "mb" | "gb" => {
            let first = match unit.chars().next() {
                Some('k' | 'K') => 'k',
                Some(first) => first.to_ascii_uppercase(),
                None => ' ',
            };
            Some(format!(
                "write \"{digits}{first}B\" for bytes, \"{digits}{first}bit\" for bits"
            ))
        }
        "b" | "byte" | "bytes" => Some(format!("write \"{digits}B\"")),
        _ => did_you_mean(unit, "", SIZES.iter().map(|(name, _)| *name)),
    };
    error(at, format!("unknown unit \"{unit}\" ({SIZE_NAMES})"), hint)
}

/// Refuses spaces and the separators of thousands that output has, with the text that is meant.
fn no_blanks(text: &str, is_good: &dyn Fn(&str) -> bool) -> Result<(), TextError> {
    let separators = [',', '_', '\''];
    let what = if text.contains(char::is_whitespace) {
        "a space"
    } else if text.contains(',') {
        "a comma"
    } else if text.contains(separators) {
        "a separator"
    } else {
        return Ok(());
    };
    let mut bare: String = text.split_whitespace().collect();
    // A comma that no three digits follow stands for a point.
    let mut groups = bare.split(',').skip(1);
    let thousands = groups.all(|group| {
        let digits = group.bytes().take_while(u8::is_ascii_digit).count();
        digits == 3
    });
    if !thousands && bare.matches(',').count() == 1 {
        bare = bare.replace(',', ".");
    }
    bare.retain(|c| !separators.contains(&c));
    let hint = is_good(&bare).then(|| format!("write \"{bare}\""));
    Err(error(0..text.len(), format!("\"{text}\" has {what} in it"), hint))
}

fn error(at: Range<usize>, message: impl Into<String>, hint: Option<String>) -> TextError {
    TextError {
        message: message.into(),
        at,
        hint,
    }
}
