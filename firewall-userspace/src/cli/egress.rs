//! `ravelin egress`

use super::{Answer, Context, fleet, source, usage};
use crate::api::types::Edit;
use clap::Subcommand;

/// Add, change or remove an egress rule of the policy: what may leave this host
///
/// Under `egress = "deny"` nothing leaves but what a rule opens, answers to those whom a service allows, and what a host cannot
/// live without. A deny beats every allow of any rule at its ports. Show them with `ravelin services`; single
/// destinations come and go with `ravelin allow NAME PREFIX` and `revoke`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    on: fleet::OnDocument,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add an egress rule: where packets may go, and to which ports
    #[command(after_help = "Examples:
  ravelin egress add dns udp/53 tcp/53 --to @resolvers
  ravelin egress add internal --to 10.0.0.0/8 --deny 10.66.0.0/16     every port and protocol
  ravelin egress add no-mail tcp/25 --deny any                        whatever another rule opens")]
    Add {
        /// Name, not yet taken by an egress rule or a service
        #[arg(value_parser = source::egress)]
        name: String,
        /// tcp|udp|sctp/PORT[-PORT], icmp/TYPE or proto/NUMBER; without any: every port and protocol
        #[arg(value_name = "PORT", value_parser = source::port)]
        ports: Vec<String>,
        #[command(flatten)]
        destinations: Destinations,
    },
    /// Change an egress rule: each list that is given replaces the one it has
    #[command(after_help = "Examples:
  ravelin egress set dns --to 192.0.2.53,2001:db8::53
  ravelin egress set internal --port tcp/443 --no-deny
  ravelin egress set internal --every-port")]
    Set {
        /// Egress rule as the policy names it
        #[arg(value_parser = source::egress)]
        name: String,
        /// tcp|udp|sctp/PORT[-PORT], icmp/TYPE or proto/NUMBER; repeatable
        #[arg(long = "port", value_name = "PORT", value_delimiter = ',', value_parser = source::port)]
        ports: Vec<String>,
        /// Every port and protocol
        #[arg(long, conflicts_with = "ports")]
        every_port: bool,
        #[command(flatten)]
        destinations: Destinations,
        /// Open nothing
        #[arg(long, conflicts_with = "to")]
        no_to: bool,
        /// Deny nothing
        #[arg(long, conflicts_with = "deny")]
        no_deny: bool,
    },
    /// Remove an egress rule
    Remove {
        /// Egress rule as the policy names it
        #[arg(value_parser = source::egress)]
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Destinations {
    /// Where packets may go: address, prefix, @group or any; repeatable
    #[arg(long, value_name = "DESTINATION", value_delimiter = ',', value_parser = source::parse)]
    to: Vec<String>,
    /// Where they may not, though a rule opens it; repeatable
    #[arg(long, value_name = "DESTINATION", value_delimiter = ',', value_parser = source::parse)]
    deny: Vec<String>,
}

pub(super) fn run(args: Args, context: &Context) -> anyhow::Result<Answer> {
    // Given, or emptied on purpose, or left as it is.
    let list = |given: Vec<String>, emptied: bool| (emptied || !given.is_empty()).then_some(given);
    let edit = match args.command {
        Command::Add {
            name,
            ports,
            destinations,
        } => {
            if destinations.to.is_empty() && destinations.deny.is_empty() {
                return Err(usage(
                    "egress add",
                    "nothing to open or to close: give --to or --deny",
                ));
            }
            Edit::EgressAdd {
                name,
                ports,
                to: destinations.to,
                deny: destinations.deny,
            }
        }
        Command::Set {
            name,
            ports,
            every_port,
            destinations,
            no_to,
            no_deny,
        } => {
            let (to, deny) = (list(destinations.to, no_to), list(destinations.deny, no_deny));
            let ports = list(ports, every_port);
            if ports.is_none() && to.is_none() && deny.is_none() {
                return Err(usage(
                    "egress set",
                    "nothing to set: give --port, --every-port, --to, --deny, --no-to or --no-deny",
                ));
            }
            Edit::EgressSet {
                name,
                ports,
                to,
                deny,
            }
        }
        Command::Remove { name } => Edit::EgressRemove { name },
    };
    context.edit_on(&edit, &args.on)
}
