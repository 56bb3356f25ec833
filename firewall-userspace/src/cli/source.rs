//! A source on the command line: `any`, `@group`, an address or a prefix, as the policy file has them.

use crate::policy::source;

/// Checks the form; whether the group exists is for the agent to say.
///
/// # Errors
/// What is wrong, and what would be accepted. A prefix with host bits set is refused: a file may hold one with a
/// warning, but what is typed in haste must say what it means.
pub fn parse(text: &str) -> Result<String, String> {
    match source::parse(text) {
        Ok(parsed) if parsed.host_bits => {
            let host = text.split('/').next().unwrap_or_default();
            Err(format!(
                "has host bits set: write {} for the network, {host} for the host",
                parsed.source
            ))
        }
        Ok(parsed) => Ok(parsed.source.to_string()),
        Err(error) => Err(match error.hint {
            Some(hint) => format!("{}; {hint}", error.message),
            None => error.message,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_refused_with_both_readings() {
        assert_eq!(parse("10.1.0.0/16").as_deref(), Ok("10.1.0.0/16"));
        assert_eq!(parse("10.1.2.3/32").as_deref(), Ok("10.1.2.3"));
        assert_eq!(parse("@web").as_deref(), Ok("@web"));
        assert_eq!(
            parse("10.1.2.3/16").unwrap_err(),
            "has host bits set: write 10.1.0.0/16 for the network, 10.1.2.3 for the host"
        );
        assert!(parse("0.0.0.0/0").unwrap_err().contains("any"));
    }
}
