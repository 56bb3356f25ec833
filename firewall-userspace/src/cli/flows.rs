//! `ravelin flows`

use super::{Answer, Context, duration, source};
use crate::api::types::{FlowList, FlowQuery};
use crate::output;
use crate::policy::prefix;
use firewall_common::flow::State;
use ipnetwork::IpNetwork;
use std::time::Duration;

/// What this host opened and its services accepted, live
///
/// A flow that this host, or a container behind it, opened stands in the flow table of the kernel, and its answers come
/// in until it expires. Connections that a service accepted need no flow: they are listed from the socket table, without
/// an age. Those that spoke last come first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin flows
  ravelin flows --service payments-api
  ravelin flows --peer 203.0.113.0/24 --state established --older-than 1h
  ravelin flows --limit 0 -o json | jq -r '.flows[].remote' | sort | uniq -c | sort -rn")]
pub struct Args {
    /// Only those of a service or an egress rule
    #[arg(long, value_name = "NAME", value_parser = source::service)]
    service: Option<String>,
    /// Only those with this peer: address or prefix
    #[arg(long, value_name = "PREFIX", value_parser = peer)]
    peer: Option<IpNetwork>,
    /// Only those in this state
    #[arg(long, value_name = "STATE", value_parser = State::ALL.map(State::word))]
    state: Option<String>,
    /// Only those that came in, or that went out
    #[arg(long, value_name = "DIRECTION", value_parser = ["ingress", "egress"])]
    direction: Option<String>,
    /// Only those opened at least so long ago
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    older_than: Option<Duration>,
    /// Only those opened at most so long ago
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    younger_than: Option<Duration>,
    /// Show so many at most, 0 for all
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
    limit: u64,
}

/// An address or a prefix; unlike in a policy, that of everybody is one.
fn peer(text: &str) -> Result<IpNetwork, String> {
    match text.parse() {
        Ok(network) => Ok(network),
        Err(_) => match prefix::parse(text) {
            Ok(parsed) => Ok(parsed.network),
            Err(error) => Err(error.to_string()),
        },
    }
}

pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    let query = FlowQuery {
        direction: args.direction.clone(),
        service: args.service.clone(),
        peer: args.peer.map(|peer| peer.to_string()),
        state: args.state.clone(),
        older_than: args.older_than.map(|age| age.as_secs()),
        younger_than: args.younger_than.map(|age| age.as_secs()),
        limit: (args.limit > 0).then_some(args.limit),
    };
    context.show_from(&path(&query), |list: &FlowList| {
        output::flows(list, &context.style)
    })
}

/// No value needs escaping: names, words, numbers and prefixes were checked, and have nothing but `:`, `/` and `.`.
fn path(query: &FlowQuery) -> String {
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    let parameters = [
        ("direction", query.direction.clone()),
        ("service", query.service.clone()),
        ("peer", query.peer.clone()),
        ("state", query.state.clone()),
        ("older_than", number(query.older_than)),
        ("younger_than", number(query.younger_than)),
        ("limit", number(query.limit)),
    ];
    let given: Vec<String> = parameters
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", value?)))
        .collect();
    format!("/v1/flows?{}", given.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_becomes_a_path() {
        assert_eq!(path(&FlowQuery::default()), "/v1/flows?");
        let query = FlowQuery {
            peer: Some("2001:db8::/32".into()),
            older_than: Some(60),
            ..FlowQuery::default()
        };
        assert_eq!(path(&query), "/v1/flows?peer=2001:db8::/32&older_than=60");
    }

    #[test]
    fn a_peer_is_an_address_or_a_prefix() {
        for (text, network) in [
            ("192.0.2.7", "192.0.2.7/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
        ] {
            assert_eq!(peer(text).map(|peer| peer.to_string()), Ok(network.to_owned()));
        }
        assert!(peer("example.net").is_err_and(|error| error.contains("host name")));
    }
}
