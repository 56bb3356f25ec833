//! `ravelin ban`

use super::{Answer, Context, duration, fleet, message, session, unix_seconds, usage};
use crate::api::types::{BanRequest, Banned};
use crate::fleet::selector::Selector;
use crate::output;
use crate::policy::prefix::{self, PrefixError};
use ipnetwork::IpNetwork;

/// Shut an address or a prefix out of this host for a time
///
/// Nothing comes in from it any more, and connections that it has are cut: what the policy allows it, replies, errors.
/// Only failsafe rules of the agent stay open, and what the network cannot do without (ARP, neighbour discovery). Unlike
/// `ravelin deny` it changes no policy: it is in force at once, kept over restarts, and ends by itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin ban 203.0.113.9 --for 1h --why 'login attempts'
  ravelin ban 2001:db8:bad::/48 --for 7d
  ravelin ban 198.51.100.7                  for ever, until `ravelin unban`
  ravelin ban 203.0.113.9 --for 1h --fleet  on every node")]
pub struct Args {
    /// Address or prefix
    #[arg(value_name = "PREFIX", value_parser = network)]
    network: IpNetwork,
    #[command(flatten)]
    lasting: duration::Lasting,
    /// Why, for whoever reads `ravelin bans`
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// With --fleet: only on these nodes, such as 'role=web' [default: all]
    #[arg(long, value_name = "SELECTOR", value_parser = fleet::selector)]
    nodes: Option<Selector>,
    /// Also if it cuts off your own session, neighbours of this host or a large part of the internet, or ends a ban sooner
    #[arg(long)]
    force: bool,
}

/// A network as it is banned: host bits are refused, as what is typed in haste must say what it means.
///
/// # Errors
/// What is wrong, and what would be accepted.
pub(super) fn network(text: &str) -> Result<IpNetwork, String> {
    match prefix::parse(text) {
        Ok(parsed) if parsed.host_bits => {
            let host = text.split('/').next().unwrap_or_default();
            let network = prefix::show(parsed.network);
            Err(format!(
                "has host bits set: write {network} for the network, {host} for the host"
            ))
        }
        Ok(parsed) => Ok(parsed.network),
        Err(PrefixError::Everybody(_)) => Err(
            "is everybody, whom only a policy shuts out: leave the allow lists empty, and `ravelin apply` it"
                .to_owned(),
        ),
        Err(_) if text == "any" => Err(
            "everybody is shut out by a policy only: leave the allow lists empty, and `ravelin apply` it"
                .to_owned(),
        ),
        Err(_) if text.starts_with('@') => {
            Err("a group is denied, not banned: `ravelin deny` takes groups, also with --for".to_owned())
        }
        Err(error) => Err(match error.hint() {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        }),
    }
}

/// One line, of which a table is still readable.
fn why(text: &str) -> Result<String, String> {
    const LONGEST: usize = 200;
    const SHOWN: usize = 24;
    if text.chars().any(char::is_control) {
        return Err("--why: a reason is one line of text".to_owned());
    }
    let text = text.trim();
    match text.chars().count() {
        0 => Err("--why: the reason is empty; leave it out if there is none".to_owned()),
        1..=LONGEST => Ok(text.to_owned()),
        count => {
            let start: String = text.chars().take(SHOWN).collect();
            Err(format!(
                "--why: \"{start}…\" has {count} characters; {LONGEST} fit"
            ))
        }
    }
}

pub(super) fn run(args: Args, context: &Context) -> anyhow::Result<Answer> {
    let why = args.why.as_deref().map(why).transpose();
    let why = why.map_err(|text| usage("ban", text))?.unwrap_or_default();
    let shown = prefix::show(args.network);
    if let (Some(peer), false) = (session::peer_in(args.network), args.force) {
        anyhow::bail!(
            "{shown} holds {}, from which you are logged in: your session would be cut off; a failsafe rule of the agent would \
             keep it open, --force bans it all the same",
            peer.ip().to_canonical()
        );
    }
    if context.fleet {
        let shortest = if args.network.is_ipv4() { 8 } else { 16 };
        if args.network.prefix() < shortest && !args.force {
            anyhow::bail!(
                "{shown} is a large part of the internet, and this is for the whole fleet; --force bans it all the same"
            );
        }
        let ban = fleet::bans::Ban {
            network: args.network,
            nodes: args.nodes,
            for_seconds: args.lasting.seconds(),
            why,
        };
        return fleet::bans::ban(&ban, context);
    }
    if args.nodes.is_some() {
        return Err(usage("ban", "--nodes names nodes of a fleet: say --fleet, too"));
    }
    let request = BanRequest {
        prefix: shown,
        for_seconds: args.lasting.seconds(),
        why,
        force: args.force,
    };
    let banned: Banned = context.wait(async { Ok(context.client().post("/v1/ban", &request).await?) })?;
    if !banned.kept {
        message(
            "warning",
            "it is in force, but could not be written down: a restart of the machine ends it",
        );
    }
    context.show(&banned, |banned| {
        output::banned(banned, unix_seconds(), &context.style)
    })?;
    Ok(Answer::Yes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_banned_says_what_can() {
        for (text, words) in [
            (
                "10.1.2.3/16",
                "write 10.1.0.0/16 for the network, 10.1.2.3 for the host",
            ),
            ("0.0.0.0/0", "everybody"),
            ("::/0", "everybody"),
            ("any", "everybody"),
            ("@web", "ravelin deny"),
            ("example.net", "host name"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            let error = network(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
        assert_eq!(network("192.0.2.7").map(prefix::show).as_deref(), Ok("192.0.2.7"));
        assert_eq!(
            network("2001:db8::/32").map(prefix::show).as_deref(),
            Ok("2001:db8::/32")
        );
    }

    #[test]
    fn a_reason_is_a_short_line() {
        assert_eq!(why(" scans ").as_deref(), Ok("scans"));
        assert!(why("a\nb").is_err_and(|error| error.contains("one line")));
        for nothing in ["", "  "] {
            assert!(why(nothing).is_err_and(|error| error.contains("is empty; leave it out")));
        }
        let long = why(&"é".repeat(201)).expect_err("too long");
        assert!(long.contains("201 characters; 200 fit"), "{long}");
        assert!(long.chars().count() < 80, "{long}");
        assert!(why(&"é".repeat(200)).is_ok());
    }
}
