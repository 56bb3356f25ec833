//! `[flows.timeouts]` of agent.toml: how long a flow lives on after the last packet that went out.

use crate::cli::duration;
use firewall_common::flow::{State, TIMEOUTS};
use serde::Deserialize;

/// Seconds by [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Timeouts(pub [u32; State::COUNT]);

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts(TIMEOUTS)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table: [flows.timeouts], and established = \"5d\" below it"
)]
struct Written {
    udp: Option<Span>,
    udp_conversation: Option<Span>,
    echo: Option<Span>,
    other: Option<Span>,
    syn_sent: Option<Span>,
    established: Option<Span>,
    fin: Option<Span>,
    closing: Option<Span>,
    reset: Option<Span>,
}

impl TryFrom<Written> for Timeouts {
    type Error = String;
    fn try_from(written: Written) -> Result<Timeouts, String> {
        let mut seconds = TIMEOUTS;
        for (state, span) in [
            (State::Asked, written.udp),
            (State::Conversation, written.udp_conversation),
            (State::Echo, written.echo),
            (State::Other, written.other),
            (State::SynSent, written.syn_sent),
            (State::Established, written.established),
            (State::FinOut, written.fin),
            (State::FinIn, written.fin),
            (State::Closing, written.closing),
            (State::Reset, written.reset),
        ] {
            if let Some(Span(span)) = span {
                seconds[state as usize] = span;
            }
        }
        // By FIN and RST a packet that comes in moves a flow from the right to the left.
        let order = [
            ("reset", State::Reset, "closing", State::Closing),
            ("closing", State::Closing, "fin", State::FinOut),
            ("fin", State::FinOut, "syn_sent", State::SynSent),
            ("fin", State::FinOut, "established", State::Established),
        ];
        for (shorter, short, longer, long) in order {
            let (short, long) = (seconds[short as usize], seconds[long as usize]);
            if short > long {
                return Err(format!(
                    "{shorter} is {short}s and {longer} is {long}s: by a FIN or RST an outsider would lengthen a flow; \
                     keep reset <= closing <= fin <= syn_sent, established"
                ));
            }
        }
        Ok(Timeouts(seconds))
    }
}

/// Whole seconds, two at least: a flow is refreshed once a second.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Span(u32);

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Span, String> {
        let seconds = duration::parse(&text)?.as_secs();
        match u32::try_from(seconds) {
            Ok(seconds) if (2..=365 * 86_400).contains(&seconds) => Ok(Span(seconds)),
            _ => Err(format!("a timeout of {text}: 2s to 365d")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Timeouts, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_written_stays_and_fin_means_both_directions() {
        assert_eq!(read(""), Ok(Timeouts::default()));
        let Timeouts(seconds) = read("udp = \"5s\"\nfin = \"1m30s\"").expect("valid");
        let mut expected = TIMEOUTS;
        expected[State::Asked as usize] = 5;
        expected[State::FinOut as usize] = 90;
        expected[State::FinIn as usize] = 90;
        assert_eq!(seconds, expected);
    }

    #[test]
    fn no_outsider_lengthens_a_flow_and_no_flow_outlives_its_refresh() {
        for (text, words) in [
            ("reset = \"2m\"", "reset <= closing"),
            ("closing = \"121s\"", "closing <= fin"),
            ("fin = \"3m\"", "fin is 180s and syn_sent is 120s"),
            ("established = \"1m\"", "fin is 120s and established is 60s"),
            ("udp = \"1s\"", "2s to 365d"),
            ("udp = \"30\"", "has no unit"),
            ("tcp = \"30s\"", "unknown field `tcp`"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
