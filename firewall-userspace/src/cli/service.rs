//! `ravelin service`

use super::{Answer, Context, fleet, source, usage};
use crate::api::types::Edit;
use clap::Subcommand;

/// Add, change or remove a service of the policy
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    on: fleet::OnDocument,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add a service: its ports, and who may reach them
    #[command(after_help = "Examples:
  ravelin service add payments-api tcp/8443 udp/8443 --allow @web --allow 198.51.100.7
  ravelin service add ping icmp/echo --allow any")]
    Add {
        /// Name, not yet taken
        #[arg(value_parser = source::service)]
        name: String,
        /// tcp|udp|sctp/PORT[-PORT], icmp/TYPE or proto/NUMBER
        #[arg(required = true, value_name = "PORT", value_parser = source::port)]
        ports: Vec<String>,
        #[command(flatten)]
        sources: Sources,
    },
    /// Change a service: each list that is given replaces the one it has
    #[command(after_help = "Examples:
  ravelin service set payments-api --port tcp/8443 --port tcp/9443
  ravelin service set payments-api --allow @web --no-deny")]
    Set {
        /// Service as the policy names it
        #[arg(value_parser = source::service)]
        name: String,
        /// tcp|udp|sctp/PORT[-PORT], icmp/TYPE or proto/NUMBER; repeatable
        #[arg(long = "port", value_name = "PORT", value_delimiter = ',', value_parser = source::port)]
        ports: Vec<String>,
        #[command(flatten)]
        sources: Sources,
        /// Allow nobody
        #[arg(long, conflicts_with = "allow")]
        no_allow: bool,
        /// Deny nobody
        #[arg(long, conflicts_with = "deny")]
        no_deny: bool,
    },
    /// Remove a service: its ports close
    Remove {
        /// Service as the policy names it
        #[arg(value_parser = source::service)]
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Sources {
    /// Who may reach it: address, prefix, @group or any; repeatable
    #[arg(long, value_name = "SOURCE", value_delimiter = ',', value_parser = source::parse)]
    allow: Vec<String>,
    /// Who may not, though an allow names them; repeatable
    #[arg(long, value_name = "SOURCE", value_delimiter = ',', value_parser = source::parse)]
    deny: Vec<String>,
}

pub(super) fn run(args: Args, context: &Context) -> anyhow::Result<Answer> {
    // Given, or emptied on purpose, or left as it is.
    let list = |given: Vec<String>, emptied: bool| (emptied || !given.is_empty()).then_some(given);
    let edit = match args.command {
        Command::Add { name, ports, sources } => Edit::ServiceAdd {
            name,
            ports,
            allow: sources.allow,
            deny: sources.deny,
        },
        Command::Set {
            name,
            ports,
            sources,
            no_allow,
            no_deny,
        } => {
            let (allow, deny) = (list(sources.allow, no_allow), list(sources.deny, no_deny));
            let ports = list(ports, false);
            if ports.is_none() && allow.is_none() && deny.is_none() {
                return Err(usage(
                    "service set",
                    "nothing to set: give --port, --allow, --deny, --no-allow or --no-deny",
                ));
            }
            Edit::ServiceSet {
                name,
                ports,
                allow,
                deny,
            }
        }
        Command::Remove { name } => Edit::ServiceRemove { name },
    };
    context.edit_on(&edit, &args.on)
}
