//! `ravelin check`

use super::{Answer, Context, message};
use crate::host::sysctl;
use crate::output::{self, CheckEgress, CheckFinding, CheckReport, CheckService};
use crate::policy::compile::compile;
use crate::policy::ephemeral;
use crate::policy::file::{self, Diagnostic, Loaded};
use crate::policy::model::{Action, EgressId, Owner, Policy, ServiceId};
use anyhow::Context as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Is a policy file valid, and what does it mean; needs no agent
///
/// Mistakes and warnings go to standard error, each with its line and a pointer into it. Exits 1 if there is a mistake.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ravelin check policy.toml
  generate-policy | ravelin check -
  ravelin check policy.toml -o json | jq .stats
  ravelin check --warnings-are-errors policy.toml    # in CI")]
pub struct Args {
    /// Policy to check, '-' for standard input
    file: PathBuf,
    /// Also exit 1 if there are warnings
    #[arg(long)]
    warnings_are_errors: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<Answer> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let (path, loaded) = if args.file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("reading the policy from standard input")?;
        // Its list files are looked for in the current folder.
        let path = "standard input";
        (path.to_owned(), file::parse(&text, Path::new(path), now))
    } else {
        (args.file.display().to_string(), file::load(&args.file, now))
    };
    let errors = match loaded {
        Ok(mut loaded) => match compile(&loaded.policy) {
            Ok(compiled) => {
                let local = sysctl::local_ports();
                let more = ephemeral::warnings(&loaded, Path::new(&path), &local);
                loaded.warnings.extend(more);
                for warning in &loaded.warnings {
                    message("warning", &warning.to_string());
                }
                let report = CheckReport {
                    stats: compiled.stats,
                    digest: hex(&compiled.digest),
                    ..report(path, &loaded)
                };
                context.show(&report, |report| output::check(report, &context.style))?;
                let refused = args.warnings_are_errors && !loaded.warnings.is_empty();
                return Ok(if refused { Answer::No } else { Answer::Yes });
            }
            Err(error) => vec![Diagnostic::whole_file(Path::new(&path), error.to_string())],
        },
        Err(error) => error.errors,
    };
    for error in &errors {
        message("error", &error.to_string());
    }
    if context.json {
        context.show(
            &CheckReport {
                path,
                errors: errors.iter().map(CheckFinding::from).collect(),
                ..CheckReport::default()
            },
            |_| String::new(),
        )?;
    }
    Ok(Answer::No)
}

fn report(path: String, loaded: &Loaded) -> CheckReport {
    let policy = &loaded.policy;
    let services = policy
        .services
        .iter()
        .enumerate()
        .map(|(index, service)| (Owner::Service(ServiceId(index as u16)), service))
        .map(|(owner, service)| CheckService {
            name: service.name.clone(),
            ports: service.ports_text.clone(),
            allow: sources(policy, owner, Action::Allow),
            deny: sources(policy, owner, Action::Deny),
            limits: service.limit_rows(),
        });
    let egress = (0..).zip(&policy.egress).map(|(number, rule)| {
        let owner = Owner::Egress(EgressId(number));
        CheckEgress {
            name: rule.name.clone(),
            ports: rule.ports_text.clone(),
            to: sources(policy, owner, Action::Allow),
            deny: sources(policy, owner, Action::Deny),
        }
    });
    CheckReport {
        path,
        valid: true,
        default: if policy.default_allow { "allow" } else { "deny" }.to_owned(),
        default_egress: if policy.egress_deny { "deny" } else { "allow" }.to_owned(),
        warnings: loaded.warnings.iter().map(CheckFinding::from).collect(),
        files: loaded
            .files
            .iter()
            .map(|file| file.display().to_string())
            .collect(),
        services: services.collect(),
        egress: egress.collect(),
        ..CheckReport::default()
    }
}

fn sources(policy: &Policy, owner: Owner, action: Action) -> Vec<String> {
    let mine = policy
        .rules
        .iter()
        .filter(|rule| rule.owner == owner && rule.action == action);
    mine.map(|rule| rule.source.clone()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
