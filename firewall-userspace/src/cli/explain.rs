//! `ravelin explain`

use super::{Answer, Context, message, usage};
use crate::api::types::{ExplainRequest, Explanation};
use crate::output;
use crate::policy::compile::compile;
use crate::policy::explain::{self, packet};
use crate::policy::file;
use crate::simulate::Node;
use anyhow::Context as _;
use firewall_common::control::Config;
use std::collections::HashSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Would this packet pass, which rule says so, and where it is written
///
/// Prints the verdict, the rule, its place in the policy file, every step on the way, and what to do about a drop.
/// The packet is judged by the very code that the kernel runs, on the policy in force, or on a file with --file, which
/// needs no agent. Exits 0 if the policy lets it pass, 1 if it drops it, also while the agent only observes. The agent knows what this host has opened, so a packet
/// that answers it passes; with --file no connection is open.
///
/// A packet is PROTOCOL SOURCE to DESTINATION. PROTOCOL is tcp (when left out), udp, sctp, icmp TYPE or proto NUMBER.
/// SOURCE and DESTINATION are ADDRESS, ADDRESS:PORT or PORT; an IPv6 address with a port stands in brackets. A missing
/// source port is an ephemeral one, a missing destination address is the host's own. '->' is the same as 'to', but
/// quote it: the shell takes > for itself.
///
/// A packet that leaves this host begins with 'out': its destination is needed, its source may be missing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin explain tcp 10.20.3.4 to 8443
  ravelin explain 'tcp 10.20.3.4:5555 -> 192.0.2.1:8443' --flags ack
  ravelin explain udp [2001:db8::7]:5353 to 53
  ravelin explain icmp echo from 198.51.100.7
  ravelin explain proto 47 from 198.51.100.7
  ravelin explain out tcp to 198.51.100.7:443
  ravelin explain out tcp :8443 to 10.20.3.4:5555 --flags syn,ack     an answer
  ravelin explain --file policy.toml tcp/22 from 203.0.113.9 -o json")]
pub struct Args {
    /// The packet, see above
    #[arg(required = true, value_name = "PACKET")]
    packet: Vec<String>,
    /// TCP flags [default: syn]
    #[arg(long, value_name = "FLAGS")]
    flags: Option<String>,
    /// VLAN tag, or two: outer,inner
    #[arg(long, value_name = "ID")]
    vlan: Option<String>,
    /// TTL or hop limit [default: what the protocol demands, else 64]
    #[arg(long, value_name = "N")]
    ttl: Option<String>,
    /// Explain what this policy would do, instead of the policy in force
    #[arg(long, short, value_name = "POLICY")]
    file: Option<PathBuf>,
}

pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    let packet = described(args)?;
    let explanation = match &args.file {
        Some(file) => offline(file, &packet)?,
        None => {
            let request = ExplainRequest { packet };
            context.wait(async { Ok(context.client().post("/v1/explain", &request).await?) })?
        }
    };
    context.show(&explanation, |record| output::explanation(record, &context.style))?;
    Ok(if explanation.verdict == "pass" {
        Answer::Yes
    } else {
        Answer::No
    })
}

/// The packet as one text; whether it can be read is a question of usage, so it is asked here.
fn described(args: &Args) -> anyhow::Result<String> {
    let mut packet = args.packet.join(" ");
    if let Some(end) = packet.strip_suffix(" -") {
        let taken = if std::io::stdout().is_terminal() {
            ""
        } else {
            " (and the output went into a file)"
        };
        return Err(usage(
            "explain",
            format!(
                "the shell took '>' as a redirection{taken}: write 'to', or quote the packet: '{end} -> ...'"
            ),
        ));
    }
    if let Some(flags) = &args.flags {
        packet += &format!(" flags {flags}");
    }
    if let Some(vlan) = &args.vlan {
        packet += &format!(" vlan {vlan}");
    }
    if let Some(ttl) = &args.ttl {
        packet += &format!(" ttl {ttl}");
    }
    packet::parse(&packet).map_err(|error| usage("explain", error))?;
    Ok(packet)
}

/// A node that enforces this policy, with no failsafe and no addresses of its own.
fn offline(path: &Path, packet: &str) -> anyhow::Result<Explanation> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let loaded = file::load(path, now)?;
    for warning in &loaded.warnings {
        message("warning", &warning.to_string());
    }
    let compiled = compile(&loaded.policy).with_context(|| path.display().to_string())?;
    let own = HashSet::new();
    let node = Node {
        image: &compiled.image,
        config: &Config::DEFAULT,
        own: &own,
        flows: &crate::simulate::Flows::unknown(),
    };
    Ok(explain::explain(
        &loaded.policy,
        &loaded.text,
        &compiled,
        &node,
        packet,
    )?)
}
