//! The command line: a file per command, its arguments beside what it does.
//!
//! Standard output is data, standard error is messages. Exit codes: 0 yes or done; 1 the answer is no, refused,
//! or failed; 2 the command line itself is wrong. A reader that goes away (`| head`) ends a command quietly.

mod agent;
mod allow;
mod anomalies;
mod apply;
mod ban;
mod bans;
mod check;
mod completions;
mod context;
mod counters;
mod deny;
mod detach;
mod doctor;
pub mod duration;
mod egress;
mod explain;
mod fleet;
mod flows;
mod limits;
mod man;
mod mode;
mod monitor;
mod reload;
mod revoke;
mod rules;
mod schema;
mod service;
mod services;
mod session;
mod source;
mod status;
mod unban;
mod undeny;

use crate::agent::config::{self, Instance};
use crate::api::client::Client;
use crate::api::types::{Applied, Edit};
use crate::output::{self, Style};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

/// A host firewall: a policy file says who may reach which service, and what may leave.
///
/// One agent per host (`ravelin agent`) keeps the policy in force; every other command talks to it over a local
/// socket, except check, doctor, schema and `explain --file`, which need no agent, and what is about a fleet of hosts
/// (policies, show, delete, nodes, lists, and others with --fleet), which reads and changes the store of the fleet.
///
/// The policy is one TOML file, /etc/ravelin/policy.toml. Edit it by hand, or with allow, revoke, deny, undeny,
/// service and egress, which keep its comments. A mistake in it changes nothing: what was in force stays in force.
#[derive(Debug, Parser)]
#[command(
    name = "ravelin",
    version,
    max_term_width = 100,
    after_help = "Examples:
  ravelin status                                    is it in force, since when, on which interfaces
  ravelin explain tcp 10.20.3.4 to 8443             would this packet pass, which rule says so
  ravelin allow payments-api 198.51.100.7 --for 2h  let one in, until it ends by itself
  ravelin ban 203.0.113.9 --for 1h                  shut one out for a time, whatever the policy says
  ravelin apply -f policy.toml --dry-run            who would gain and lose which port
  ravelin monitor                                   drops as they happen
  ravelin doctor                                    what would stop this host from working
  ravelin nodes                                     of a fleet: who is behind, who failed, since when

Environment: RAVELIN_SOCKET, RAVELIN_INSTANCE and RAVELIN_CONTEXT stand for the options, NO_COLOR turns
colours off.
Exit status: 0 yes or done, 1 no or failed, 2 the command line is wrong."
)]
pub struct Cli {
    /// Socket of the agent [default: /run/ravelin/INSTANCE.sock]
    #[arg(long, global = true, value_name = "PATH", env = "RAVELIN_SOCKET", hide_env = true, help_heading = GLOBAL)]
    socket: Option<PathBuf>,
    /// Instance of the agent, when a host runs several [default: default]
    #[arg(long, global = true, value_name = "NAME", env = "RAVELIN_INSTANCE", hide_env = true, help_heading = GLOBAL)]
    instance: Option<Instance>,
    /// Act on the fleet that the context file names, instead of the agent of this host
    #[arg(long, global = true, help_heading = GLOBAL)]
    fleet: bool,
    /// Which fleet, and the key to sign with; implies --fleet [default: ~/.config/ravelin/context.toml or
    /// /etc/ravelin/context.toml]
    #[arg(long, global = true, value_name = "FILE", env = "RAVELIN_CONTEXT", hide_env = true, help_heading = GLOBAL)]
    context: Option<PathBuf>,
    /// Form of the output: for people, or the records as they are, whose fields are never renamed
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table", help_heading = GLOBAL)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

/// Where `--help` lists the options that every command has.
const GLOBAL: &str = "Global options";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(status::Args),
    Services(services::Args),
    Rules(rules::Args),
    Counters(counters::Args),
    Flows(flows::Args),
    Limits(limits::Args),
    Anomalies(anomalies::Args),
    Monitor(monitor::Args),
    Explain(explain::Args),
    Check(check::Args),
    Doctor(doctor::Args),
    Apply(apply::Args),
    Reload(reload::Args),
    Allow(allow::Args),
    Revoke(revoke::Args),
    Deny(deny::Args),
    Undeny(undeny::Args),
    Ban(ban::Args),
    Unban(unban::Args),
    Bans(bans::Args),
    Service(service::Args),
    Egress(egress::Args),
    Policies(fleet::policies::Args),
    Show(fleet::show::Args),
    Delete(fleet::delete::Args),
    Nodes(fleet::nodes::Args),
    Lists(fleet::lists::Args),
    Observe(mode::ObserveArgs),
    Enforce(mode::EnforceArgs),
    Detach(detach::Args),
    Agent(Box<agent::Args>),
    Schema(schema::Args),
    Completions(completions::Args),
    Man(man::Args),
}

impl Command {
    /// Whether `--fleet` means anything to it.
    fn is_of_fleets(&self) -> bool {
        matches!(
            self,
            Command::Apply(_)
                | Command::Allow(_)
                | Command::Revoke(_)
                | Command::Deny(_)
                | Command::Undeny(_)
                | Command::Service(_)
                | Command::Egress(_)
                | Command::Ban(_)
                | Command::Unban(_)
                | Command::Bans(_)
                | Command::Policies(_)
                | Command::Show(_)
                | Command::Delete(_)
                | Command::Nodes(_)
                | Command::Lists(_)
        )
    }
}

/// The answer of a command that has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Yes,
    No,
}

/// Parses the process's arguments; help, version and usage errors end the process here.
pub fn parse() -> Cli {
    let matches = Cli::command().get_matches_from(arguments(std::env::args_os()));
    match read(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    }
}

/// A context file that was typed says that the fleet is meant; one of the environment may be meant for other commands.
fn read(matches: &ArgMatches) -> Result<Cli, clap::Error> {
    let mut cli = Cli::from_arg_matches(matches).map_err(|error| error.format(&mut Cli::command()))?;
    cli.fleet |= matches.value_source("context") == Some(ValueSource::CommandLine);
    Ok(cli)
}

/// An arrow begins like a flag: `-> 8443` becomes `to 8443` before clap sees it.
fn arguments(raw: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    raw.flat_map(
        |argument| match argument.to_str().and_then(|text| text.strip_prefix("->")) {
            Some("") => vec!["to".into()],
            Some(rest) => vec!["to".into(), rest.into()],
            None => vec![argument],
        },
    )
}

/// Runs a command.
///
/// # Errors
/// Whatever kept it from an answer; [`exit_code`] says what the process makes of it.
pub fn run(cli: Cli) -> anyhow::Result<Answer> {
    if cli.fleet && !cli.command.is_of_fleets() {
        return Err(usage(
            "",
            "this command asks the agent of one host; --fleet is for apply, allow, revoke, deny, undeny, service, egress, ban, \
             unban and bans; policies, show, delete, nodes and lists are of the fleet anyway",
        ));
    }
    let only_socket = cli.socket.is_some() && cli.instance.is_none();
    let instance = cli
        .instance
        .map_or_else(|| config::DEFAULT_INSTANCE.to_owned(), |instance| instance.0);
    let context = Context {
        socket: cli.socket.unwrap_or_else(|| config::default_socket(&instance)),
        fleet: cli.fleet,
        context_file: cli.context,
        json: cli.output == Format::Json,
        style: Style::of(&std::io::stdout()),
        instance,
        only_socket,
    };
    match cli.command {
        Command::Status(args) => status::run(&args, &context),
        Command::Services(args) => services::run(&args, &context),
        Command::Rules(args) => rules::run(&args, &context),
        Command::Counters(args) => counters::run(&args, &context),
        Command::Flows(args) => flows::run(&args, &context),
        Command::Limits(args) => limits::run(&args, &context),
        Command::Anomalies(args) => anomalies::run(&args, &context),
        Command::Monitor(args) => monitor::run(&args, &context),
        Command::Explain(args) => explain::run(&args, &context),
        Command::Doctor(args) => doctor::run(&args, &context),
        Command::Check(args) => check::run(&args, &context),
        Command::Apply(args) => apply::run(&args, &context),
        Command::Reload(args) => reload::run(&args, &context),
        Command::Allow(args) => allow::run(args, &context),
        Command::Revoke(args) => revoke::run(args, &context),
        Command::Deny(args) => deny::run(args, &context),
        Command::Undeny(args) => undeny::run(args, &context),
        Command::Ban(args) => ban::run(args, &context),
        Command::Unban(args) => unban::run(&args, &context),
        Command::Bans(args) => bans::run(&args, &context),
        Command::Service(args) => service::run(args, &context),
        Command::Egress(args) => egress::run(args, &context),
        Command::Policies(args) => fleet::policies::run(&args, &context),
        Command::Show(args) => fleet::show::run(&args, &context),
        Command::Delete(args) => fleet::delete::run(&args, &context),
        Command::Nodes(args) => fleet::nodes::run(&args, &context),
        Command::Lists(args) => fleet::lists::run(&args, &context),
        Command::Observe(args) => mode::observe(&args, &context),
        Command::Enforce(args) => mode::enforce(&args, &context),
        Command::Detach(args) => detach::run(&args, &context),
        Command::Agent(args) => agent::run(*args),
        Command::Schema(args) => schema::run(&args, &context),
        Command::Completions(args) => completions::run(&args, &context),
        Command::Man(args) => man::run(&args, &context),
    }
}

/// The process's exit code, after saying on standard error what is left to say.
pub fn exit_code(outcome: anyhow::Result<Answer>) -> ExitCode {
    let error = match outcome {
        Ok(Answer::Yes) => return ExitCode::SUCCESS,
        Ok(Answer::No) => return ExitCode::from(1),
        Err(error) => error,
    };
    if let Some(io) = error.downcast_ref::<std::io::Error>()
        && io.kind() == ErrorKind::BrokenPipe
    {
        return ExitCode::SUCCESS;
    }
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        // Nothing is left to do if standard error is closed too.
        let _ = usage.print();
        return ExitCode::from(2);
    }
    message("error", &format!("{error:#}"));
    ExitCode::from(1)
}

/// A message on standard error.
fn message(kind: &str, text: &str) {
    let style = Style::of(&std::io::stderr());
    let kind = if kind == "error" {
        style.bad(kind)
    } else {
        style.warn(kind)
    };
    // Nobody is left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr(), "{kind}: {text}");
}

/// What is wrong with the command line of `command` (`service set`) where clap cannot know it.
fn usage(command: &str, text: impl std::fmt::Display) -> anyhow::Error {
    let mut found = Cli::command();
    found.build();
    for name in command.split(' ') {
        if let Some(next) = found.find_subcommand(name) {
            found = next.clone();
        }
    }
    found.error(clap::error::ErrorKind::ValueValidation, text).into()
}

/// Now.
fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// What every command is given.
struct Context {
    socket: PathBuf,
    /// Of the agent that is asked for, unless [`Context::only_socket`].
    instance: String,
    /// The agent was named by its socket alone, so which instance it is, is not known.
    only_socket: bool,
    /// What is to be changed is the fleet, not the agent.
    fleet: bool,
    /// Which one, if it was said.
    context_file: Option<PathBuf>,
    json: bool,
    style: Style,
}

impl Context {
    fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    /// What a command that asks the same agent is given; empty for that of this host.
    fn agent_flags(&self) -> String {
        let usual = config::default_socket(&self.instance);
        let instance =
            (self.instance != config::DEFAULT_INSTANCE).then(|| format!("--instance {}", self.instance));
        let socket = (self.socket != usual).then(|| format!("--socket {}", self.socket.display()));
        let given: Vec<String> = instance.into_iter().chain(socket).collect();
        given.join(" ")
    }

    /// Runs a future of a command that only waits for the agent.
    fn wait<T>(&self, future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(future)
    }

    /// Prints a record as JSON or as text.
    fn show<T: Serialize>(&self, record: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        match self.json {
            true => print(&(serde_json::to_string_pretty(record)? + "\n")),
            false => print(&text(record)),
        }
    }

    /// Asks the agent for one record and prints it.
    fn show_from<T>(&self, path: &str, text: impl FnOnce(&T) -> String) -> anyhow::Result<Answer>
    where
        T: Serialize + serde::de::DeserializeOwned,
    {
        let record: T = self.wait(async { Ok(self.client().get(path).await?) })?;
        self.show(&record, text)?;
        Ok(Answer::Yes)
    }

    /// Changes a document of the fleet, or has the agent change the policy file.
    fn edit_on(&self, edit: &Edit, on: &fleet::OnDocument) -> anyhow::Result<Answer> {
        match (self.fleet, &on.policy) {
            (true, _) => fleet::change::edit_document(edit, on, self),
            (false, Some(_)) => Err(usage("", "--policy names a policy of a fleet: say --fleet, too")),
            (false, None) => self.edit(edit),
        }
    }

    /// Has the agent change the policy file, and tells what came of it.
    fn edit(&self, edit: &Edit) -> anyhow::Result<Answer> {
        let now = unix_seconds();
        let lasts = match edit {
            Edit::Allow { for_seconds, .. } | Edit::Deny { for_seconds, .. } => Some(*for_seconds),
            _ => None,
        };
        self.change_with("/v1/edit", edit, |record| {
            let text = output::applied(record, false, &self.style);
            match lasts {
                Some(Some(seconds)) => text + &output::ends(now.saturating_add(seconds), now),
                // It was there for a time, or others hold it or deny it.
                Some(None) if record.diff.is_empty() => text + "it stands in the policy for good\n",
                _ => text,
            }
        })
    }

    /// Posts a request whose answer is [`Applied`].
    fn change<B: Serialize>(&self, path: &str, body: &B, dry_run: bool) -> anyhow::Result<Answer> {
        self.change_with(path, body, |record| output::applied(record, dry_run, &self.style))
    }

    fn change_with<B: Serialize>(
        &self,
        path: &str,
        body: &B,
        text: impl FnOnce(&Applied) -> String,
    ) -> anyhow::Result<Answer> {
        let applied: Applied = self.wait(async { Ok(self.client().post(path, body).await?) })?;
        for warning in &applied.warnings {
            message("warning", warning);
        }
        self.show(&applied, text)?;
        Ok(Answer::Yes)
    }
}

/// Writes to standard output; `println!` would panic when the reader is gone.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(arguments(line.split_whitespace().map(OsString::from)))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_arrow_is_no_flag() {
        let joined = |line: &str| {
            let words: Vec<OsString> = arguments(line.split_whitespace().map(OsString::from)).collect();
            words.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
        };
        assert_eq!(joined("explain tcp 10.0.0.1 -> 80"), "explain tcp 10.0.0.1 to 80");
        assert_eq!(joined("explain tcp 10.0.0.1 ->80"), "explain tcp 10.0.0.1 to 80");
        assert_eq!(
            joined("allow web 10.0.0.1 --for 2h"),
            "allow web 10.0.0.1 --for 2h"
        );
    }

    #[test]
    fn global_flags_stand_anywhere() {
        let cli = parsed("ravelin status --instance edge -o json").unwrap();
        assert_eq!(
            (
                cli.instance.as_ref().map(|instance| instance.0.as_str()),
                cli.output
            ),
            (Some("edge"), Format::Json)
        );
        assert!(parsed("ravelin -o json status").is_ok());
        assert!(parsed("ravelin status -o yaml").is_err());
        // The agent has flags of the same names for itself.
        for line in [
            "ravelin --instance edge agent --mode observe",
            "ravelin agent --instance edge --socket /tmp/s",
        ] {
            let Command::Agent(args) = parsed(line).unwrap().command else {
                panic!("not the agent: {line}")
            };
            assert!(
                format!("{args:?}").contains("instance: Some(Instance(\"edge\"))"),
                "{args:?}"
            );
        }
    }

    #[test]
    fn durations_and_sources_are_checked_before_the_agent_is_asked() {
        assert!(parsed("ravelin allow web 10.0.0.1 --for 2h").is_ok());
        let error = parsed("ravelin allow web 10.0.0.1 --for 2")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"2\" has no unit: write 2s, 2m, 2h or 2d"),
            "{error}"
        );
        assert!(parsed("ravelin deny 10.0.0.0/33").is_err());
        for line in [
            "ravelin service add web tcp/0",
            "ravelin service add Web tcp/80",
            "ravelin service set web --port tcp",
            "ravelin service remove we_b!",
            "ravelin allow WEB 10.0.0.1",
        ] {
            assert_eq!(parsed(line).unwrap_err().exit_code(), 2, "{line}");
        }
        assert!(parsed("ravelin deny 2001:db8::/32 --for 10m").is_ok());
    }
}
