//! `ravelin doctor`

use super::{Answer, Context};
use crate::agent::challenge::{self, Back};
use crate::agent::config::{self, Config, FailsafeRule, Pattern};
use crate::agent::links::Links;
use crate::agent::published;
use crate::api::client::{Client, ClientError};
use crate::api::types::Status;
use crate::datapath::{self, Interface, device, netlink, others};
use crate::doctor::agent::Asked;
use crate::doctor::judge::Judge;
use crate::doctor::{self, Area, Finding, Report, Severity, interfaces, kernel, sockets};
use crate::host::cookies::Cookies;
use crate::host::sysctl;
use crate::output;
use crate::policy::ephemeral;
use crate::policy::file::{self, Loaded};
use crate::policy::model::Policy;
use anyhow::Context as _;
use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What would stop this host from working under the policy, and how to mend it
///
/// Looks at the kernel, its settings, the interfaces and their drivers, other programs on them, and at every listening
/// socket and open connection: which of them the policy would cut off. Changes nothing. With an agent it judges by the
/// policy in force, without one by the policy file, without that by an empty policy, which admits nobody. Run it as root:
/// others do not see whose sockets they are. Exits 1 if something would break.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin doctor                              before the first start, and whenever something does not work
  ravelin doctor --policy new.toml            what a new policy would cut off
  ravelin doctor -o json | jq '.findings[] | select(.severity == \"fail\")'")]
pub struct Args {
    /// Judge by this policy, not by the one in force
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Configuration of the agent that would start [default: /etc/ravelin/agent.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Interface that would be filtered, or a pattern; repeatable [default: as the agent has it]
    #[arg(long = "interface", value_name = "NAME")]
    interfaces: Vec<Pattern>,
    /// Failsafe that the agent would have, such as 'tcp/22 from 203.0.113.9'; repeatable [default: as the agent has it]
    #[arg(long, value_name = "RULE")]
    failsafe: Vec<FailsafeRule>,
}

pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    let report = examine(args, context)?;
    context.show(&report, |report| output::doctor(report, &context.style))?;
    Ok(if report.healthy { Answer::Yes } else { Answer::No })
}

/// What the agent that runs, or would start, is told.
struct Setup {
    status: Option<Status>,
    /// Why there is no status.
    why: String,
    /// There is none because nobody is there to ask.
    nobody: bool,
    /// Interfaces that the pins of an agent that is gone still filter.
    held: HashSet<u32>,
    instance: String,
    pins: PathBuf,
    interfaces: Links,
    failsafe: Vec<FailsafeRule>,
    link_control: u32,
    policy: PathBuf,
}

fn examine(args: &Args, context: &Context) -> anyhow::Result<Report> {
    let mut found = Vec::new();
    let mut setup = setup(args, context, &mut found)?;
    let all = netlink::interfaces().context("listing the interfaces")?;
    let _ = setup.interfaces.replace(all.clone());
    let privileged = datapath::check_privileges().is_ok();
    let held: HashSet<u32> = all
        .iter()
        .filter(|interface| setup.holds(&setup.occupants(interface)))
        .map(|interface| interface.index)
        .collect();
    let attached = (privileged || !held.is_empty()).then_some(held.len());
    if setup.status.is_none() && args.interfaces.is_empty() {
        setup.held = held;
    }
    let facts: Vec<interfaces::Facts> = all
        .iter()
        .filter(|interface| setup.filters(interface))
        .map(|interface| setup.facts(interface))
        .collect();
    let judged = interfaces::judged(&all, |interface| setup.filters(interface));
    let others: Vec<&Interface> = all
        .iter()
        .filter(|interface| !judged.contains(&interface.index) && !interface.loopback)
        .filter(|interface| interface.up && interface.addresses.iter().any(is_routed))
        .collect();
    let reasons: Vec<(String, String)> = others
        .iter()
        .map(|one| (one.name.clone(), setup.why_not(one)))
        .collect();
    found.extend(doctor::agent::findings(setup.asked(), attached, &setup.failsafe));
    found.extend(interfaces::findings(&facts, &reasons));
    let sizes = facts
        .iter()
        .map(|one| (one.interface.name.as_str(), one.interface.mtu));
    found.extend(kernel::findings(&kernel::Facts::gather(
        sizes,
        setup.status.is_some(),
    )));
    let (policy, loaded) = policy(args, context, &setup, &mut found)?;
    if let Some(loaded) = loaded {
        let ports = context.wait(async { Ok(crate::host::published::gather().await) })?;
        found.extend(doctor::challenge::findings(&challenge(&loaded.policy, &facts)));
        let rows = published::rows(&ports.ports, &loaded.policy);
        found.extend(doctor::published::findings(&rows, &ports.problems));
        let unfiltered: Vec<IpAddr> = match facts.is_empty() {
            true => Vec::new(),
            false => others.iter().flat_map(|one| one.addresses.clone()).collect(),
        };
        found.extend(socket_findings(&setup, loaded, &all, &unfiltered)?);
    }
    if !privileged {
        let text = "without root it cannot be seen whose sockets and programs there are";
        found.push(Finding::new(Severity::Info, Area::Agent, "privileges", text).fix("run it as root"));
    }
    for finding in &mut found {
        let fix = finding.fix.take();
        finding.fix = fix.map(|fix| for_agent(&fix, &context.agent_flags()));
    }
    Ok(Report::new(policy, found))
}

impl Setup {
    fn filters(&self, interface: &Interface) -> bool {
        match &self.status {
            Some(status) => status.interfaces.iter().any(|one| one.ifindex == interface.index),
            None => self.held.contains(&interface.index) || self.interfaces.wanted(interface),
        }
    }

    fn why_not(&self, interface: &Interface) -> String {
        let told = self.status.iter().flat_map(|status| &status.uncovered);
        let by_agent = told
            .filter(|one| one.ifindex == interface.index)
            .map(|one| one.reason.clone());
        let by_rule = self
            .interfaces
            .uncovered()
            .filter(|(one, _)| one.index == interface.index)
            .map(|(_, reason)| reason);
        by_agent
            .chain(by_rule)
            .next()
            .unwrap_or_else(|| "it is not among those asked for".into())
    }

    fn facts(&self, interface: &Interface) -> interfaces::Facts {
        let mut known = self.status.iter().flat_map(|status| &status.interfaces);
        interfaces::Facts {
            interface: interface.clone(),
            driver: interfaces::driver(interface),
            device: device::device(interface.index),
            occupants: self.occupants(interface),
            status: known.find(|one| one.ifindex == interface.index).cloned(),
            instance: self.instance.clone(),
        }
    }

    /// What may not be seen is left out; that is said once.
    fn occupants(&self, interface: &Interface) -> Vec<others::Occupant> {
        others::occupants(&self.pins, interface.index).unwrap_or_default()
    }

    fn holds(&self, occupants: &[others::Occupant]) -> bool {
        occupants
            .iter()
            .any(|one| one.instance.as_ref() == Some(&self.instance))
    }

    fn asked(&self) -> Asked<'_> {
        match &self.status {
            Some(status) => Asked::Answered(status),
            None if self.nobody => Asked::Nobody(&self.why),
            None => Asked::Unheard(&self.why),
        }
    }
}

/// The agent's, if it answers; otherwise what its configuration file and the flags say.
fn setup(args: &Args, context: &Context, found: &mut Vec<Finding>) -> anyhow::Result<Setup> {
    let status = context.wait(async { Ok(context.client().get::<Status>("/v1/status").await) })?;
    let (status, why, nobody) = match status {
        Ok(status) => (Some(status), String::new(), false),
        Err(ClientError::NoAgent { socket, .. }) => {
            (None, format!("nobody listens at {}", socket.display()), true)
        }
        Err(error) => (None, format!("{:#}", anyhow::Error::from(error)), false),
    };
    let flags = config::Args {
        config: args.config.clone(),
        interfaces: args.interfaces.clone(),
        failsafe: args.failsafe.clone(),
        instance: Some(config::Instance(context.instance.clone())),
        ..config::Args::default()
    };
    let config = match Config::resolve(flags.clone()) {
        Ok(config) => config,
        Err(error) if args.config.is_some() => return Err(error.into()),
        Err(error) => {
            let text = format!("the agent would not start: {:#}", anyhow::Error::from(error));
            found.push(Finding::new(Severity::Fail, Area::Agent, "agent.toml", text).fix("mend it there"));
            Config::without_file(flags)?
        }
    };
    let own = |status: &Status| {
        let rules = status.failsafe.iter().filter_map(|rule| rule.parse().ok());
        rules.collect::<Vec<FailsafeRule>>()
    };
    let failsafe = match &status {
        Some(status) if args.failsafe.is_empty() => own(status),
        _ => config.failsafe,
    };
    Ok(Setup {
        instance: status
            .as_ref()
            .map_or(config.instance, |status| status.instance.clone()),
        policy: status
            .as_ref()
            .map_or(config.policy, |status| PathBuf::from(&status.policy.path)),
        pins: config
            .pins
            .parent()
            .map_or_else(|| config.pins.clone(), Path::to_owned),
        status,
        why,
        nobody,
        held: HashSet::new(),
        interfaces: Links::new(config.interfaces),
        failsafe,
        link_control: config.link_control,
    })
}

/// What to judge by, and what it is called.
fn policy(
    args: &Args,
    context: &Context,
    setup: &Setup,
    found: &mut Vec<Finding>,
) -> anyhow::Result<(String, Option<Loaded>)> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let in_force = match (&args.policy, &setup.status) {
        (None, Some(_)) => context
            .wait(async { Ok(in_force(&context.client()).await) })?
            .ok(),
        _ => None,
    };
    let path = args.policy.as_ref().unwrap_or(&setup.policy);
    let (called, loaded) = match in_force {
        Some(text) => ("the policy in force".to_owned(), file::parse(&text, path, now)),
        None if args.policy.is_none() && !path.exists() => {
            let text = format!(
                "there is no policy at {}: an empty one admits nobody",
                path.display()
            );
            found.push(
                Finding::new(Severity::Warn, Area::Policy, path.display().to_string(), text)
                    .fix("write one; docs/policy.md and `ravelin schema` say how"),
            );
            (
                "an empty policy".to_owned(),
                file::parse("version = 1\n", path, now),
            )
        }
        None => (path.display().to_string(), file::load(path, now)),
    };
    let finding =
        |severity, text: String| Finding::new(severity, Area::Policy, path.display().to_string(), text);
    match loaded {
        Ok(loaded) => {
            let local = ephemeral::warnings(&loaded, path, &sysctl::local_ports());
            for warning in loaded.warnings.iter().chain(&local) {
                let text = format!("{}: {}", warning.place, warning.message);
                let told = finding(Severity::Warn, text);
                found.push(match &warning.hint {
                    Some(hint) => told.fix(hint),
                    None => told,
                });
            }
            Ok((called, Some(loaded)))
        }
        Err(error) => {
            let first = error
                .errors
                .first()
                .map(|error| format!("{}: {}", error.place, error.message));
            found.push(
                finding(
                    Severity::Fail,
                    format!("the policy would be refused: {}", first.unwrap_or_default()),
                )
                .fix(format!("ravelin check {}", path.display())),
            );
            Ok((called, None))
        }
    }
}

/// Commands that ask an agent ask the one that was named.
fn for_agent(fix: &str, flags: &str) -> String {
    const COMMANDS: [&str; 6] = ["allow", "service", "egress", "undeny", "status", "explain"];
    match flags {
        "" => fix.to_owned(),
        flags => COMMANDS.into_iter().fold(fix.to_owned(), |fix, command| {
            fix.replace(
                &format!("ravelin {command} "),
                &format!("ravelin {flags} {command} "),
            )
        }),
    }
}

async fn in_force(client: &Client) -> Result<String, ClientError> {
    client.text("/v1/policy").await
}

fn socket_findings(
    setup: &Setup,
    loaded: Loaded,
    all: &[Interface],
    unfiltered: &[IpAddr],
) -> anyhow::Result<Vec<Finding>> {
    let table = crate::host::sockets::table();
    let inodes: HashSet<u64> = table.iter().map(|socket| socket.inode).collect();
    let holders = crate::host::sockets::holders(&inodes);
    let own = all.iter().flat_map(|interface| interface.addresses.clone());
    let judge = Judge::new(loaded, &setup.failsafe, setup.link_control, own, &table)
        .context("compiling the policy")?;
    let facts = sockets::Facts {
        table: &table,
        holders: &holders,
        local_ports: sysctl::local_ports(),
        unfiltered,
        session: super::session::peer(),
    };
    Ok(sockets::findings(&judge, &facts))
}

/// What challenges depend on.
fn challenge(policy: &Policy, interfaces: &[interfaces::Facts]) -> doctor::challenge::Facts {
    let back = |one: &interfaces::Facts| {
        let ingress = interfaces::ingress(one)?;
        let sends = one.device.xdp.map(|xdp| xdp.sends);
        let back = Back::of(ingress, one.interface.kind.as_deref(), sends);
        Some((one.interface.name.clone(), back))
    };
    let asking = challenge::asking(policy).into_iter();
    doctor::challenge::Facts {
        asking: asking.map(str::to_owned).collect(),
        writes: nix::sys::utsname::uname()
            .is_ok_and(|name| kernel::has_multi_buffer(&name.release().to_string_lossy())),
        cookies: Cookies::read(),
        interfaces: interfaces.iter().filter_map(back).collect(),
    }
}

/// Reached from elsewhere than its own link.
fn is_routed(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::for_agent;

    #[test]
    fn fixes_are_for_the_agent_that_was_named() {
        let fix = "to let it in: ravelin allow ssh 192.0.2.1 && ravelin allow ssh 192.0.2.2";
        assert_eq!(for_agent(fix, ""), fix);
        assert_eq!(
            for_agent(fix, "--instance edge"),
            "to let it in: ravelin --instance edge allow ssh 192.0.2.1 && ravelin --instance edge allow ssh 192.0.2.2"
        );
        let other = "ravelin check /etc/ravelin/policy.toml";
        assert_eq!(for_agent(other, "--instance edge"), other);
    }
}
