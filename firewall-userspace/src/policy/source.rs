//! One entry of an allow, deny or group list: `any`, `@group`, a prefix. Entries are equal when they mean the
//! same: `10.0.0.1` and `10.0.0.1/32` are.

use super::prefix;
use ipnetwork::IpNetwork;
use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Any,
    Group(String),
    Prefix(IpNetwork),
}

/// What a text means, and whether it is a prefix with host bits set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub source: Source,
    pub host_bits: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    pub message: String,
    pub hint: Option<String>,
}

pub fn parse(text: &str) -> Result<Parsed, SourceError> {
    let bare = text.trim();
    if bare != text && !bare.is_empty() {
        let at = if text.starts_with(bare) { "end" } else { "start" };
        return Err(SourceError {
            message: format!("\"{text}\" has a space at its {at}"),
            hint: parse(bare).is_ok().then(|| format!("write \"{bare}\"")),
        });
    }
    if text == "any" {
        return Ok(Parsed {
            source: Source::Any,
            host_bits: false,
        });
    }
    if let Some(name) = text.strip_prefix('@') {
        return match is_name(name) {
            true => Ok(Parsed {
                source: Source::Group(name.into()),
                host_bits: false,
            }),
            false => Err(SourceError {
                message: format!("\"{text}\" does not name a group"),
                hint: Some(NAME_HINT.into()),
            }),
        };
    }
    match prefix::parse(text) {
        Ok(parsed) => Ok(Parsed {
            source: Source::Prefix(parsed.network),
            host_bits: parsed.host_bits,
        }),
        Err(error @ (prefix::PrefixError::Address(_) | prefix::PrefixError::HostName(_)))
            if is_name(text) && text.bytes().any(|byte| byte.is_ascii_alphabetic()) =>
        {
            Err(SourceError {
                message: error.to_string(),
                hint: Some(format!("a group is written \"@{text}\", everybody \"any\"")),
            })
        }
        Err(error) => Err(SourceError {
            message: error.to_string(),
            hint: error.hint(),
        }),
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Any => f.write_str("any"),
            Source::Group(name) => write!(f, "@{name}"),
            Source::Prefix(network) => f.write_str(&prefix::show(*network)),
        }
    }
}

/// What names of services and groups look like: they become metric labels.
pub const NAME_PATTERN: &str = "[a-z0-9][a-z0-9._-]{0,62}";
pub const NAME_HINT: &str =
    "names have 1 to 63 of a-z, 0-9, \".\", \"_\" and \"-\", and begin with a letter or a digit";

/// True when the whole text matches [`NAME_PATTERN`].
pub fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && plain(bytes[0])
        && bytes
            .iter()
            .all(|&byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_mean_the_same_are_equal() {
        let source = |text| parse(text).unwrap().source;
        assert_eq!(source("10.0.0.1"), source("10.0.0.1/32"));
        assert_eq!(source("10.0.0.1/8"), source("10.0.0.0/8"));
        assert_ne!(source("10.0.0.0/8"), source("10.0.0.0/9"));
        for text in ["any", "@web", "198.51.100.7", "2001:db8::/32"] {
            assert_eq!(source(text).to_string(), text);
        }
    }

    #[test]
    fn a_bare_word_is_told_how_groups_are_written() {
        let error = parse("web").unwrap_err();
        assert_eq!(error.message, "\"web\" is not an address or a prefix");
        assert_eq!(
            error.hint.unwrap(),
            "a group is written \"@web\", everybody \"any\""
        );
        for (text, at) in [(" 10.0.0.1", "start"), ("@web ", "end"), ("any\t", "end")] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.message, format!("\"{text}\" has a space at its {at}"));
            assert_eq!(error.hint.unwrap(), format!("write \"{}\"", text.trim()));
        }
        assert_eq!(
            parse("@We b").unwrap_err().message,
            "\"@We b\" does not name a group"
        );
    }
}
