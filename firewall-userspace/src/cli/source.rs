//! A source on the command line: `any`, `@group`, an address or a prefix.

use ipnetwork::IpNetwork;

/// Checks the form; whether the group exists is for the agent to say.
///
/// # Errors
/// What would be accepted.
pub fn parse(text: &str) -> Result<String, String> {
    let known = text == "any" || text.strip_prefix('@').is_some_and(|name| !name.is_empty());
    if known || text.parse::<IpNetwork>().is_ok() {
        return Ok(text.to_owned());
    }
    Err("write an address (198.51.100.7), a prefix (2001:db8:10::/48), a group (@web) or any".to_owned())
}
