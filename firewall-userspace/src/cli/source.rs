//! What the command line shares with the policy file: a source (`any`, `@group`, an address or a prefix), a port, the
//! name of a service or an egress rule.

use crate::policy::{ports, source};

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

/// Checks a port as the policy file has it.
///
/// # Errors
/// What is wrong, and what would be accepted.
pub fn port(text: &str) -> Result<String, String> {
    match ports::parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(match error.hint {
            Some(hint) => format!("{}; {hint}", error.message),
            None => error.message,
        }),
    }
}

/// Checks the form of a service's name; whether there is one is for the agent to say.
///
/// # Errors
/// What names look like.
pub fn service(text: &str) -> Result<String, String> {
    name(text, "a service")
}

/// Checks the form of an egress rule's name.
///
/// # Errors
/// What names look like.
pub fn egress(text: &str) -> Result<String, String> {
    name(text, "an egress rule")
}

fn name(text: &str, what: &str) -> Result<String, String> {
    match source::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("\"{text}\" cannot name {what}; {}", source::NAME_HINT)),
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

    #[test]
    fn ports_and_names_are_checked_before_the_agent_is_asked() {
        assert_eq!(port("tcp/8443").as_deref(), Ok("tcp/8443"));
        assert_eq!(
            port("tcp").unwrap_err(),
            "\"tcp\" has no port; write \"tcp/8443\" or \"tcp/1-65535\""
        );
        assert_eq!(
            port(" tcp/80").unwrap_err(),
            "\" tcp/80\" has a space in it; write \"tcp/80\""
        );
        assert_eq!(service("web").as_deref(), Ok("web"));
        assert!(service("Web!").unwrap_err().contains("cannot name a service"));
    }
}
