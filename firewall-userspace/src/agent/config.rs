//! How the agent is told what to do: `/etc/ravelin/agent.toml`, and the same keys as flags, which beat the file.
//!
//! A [`Config`] is valid by construction: words are parsed into types while the file is read, so a mistake carries
//! its line and column. Whether the things it names exist is found out later, by those who use them.

use super::banned::BansSection;
use super::drift::DriftSection;
use super::fleet::config::{Fleet, FleetError, FleetSection, TrustSection};
use super::limits;
use super::timeouts::Timeouts;
use crate::datapath::{Features, Hook, Options};
use crate::detect::settings::Settings as Detect;
use crate::fleet::guards::Guards;
use crate::policy::diagnostic::{Diagnostic, Text, did_you_mean};
use crate::store::settings::Settings;
use firewall_common::ban::BanKey;
use firewall_common::control::{Failsafe, LINK_EAPOL, LINK_LACP, LINK_LLDP, LINK_STP, MAX_FAILSAFE};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub const DEFAULT_CONFIG: &str = "/etc/ravelin/agent.toml";
pub const DEFAULT_POLICY: &str = "/etc/ravelin/policy.toml";
pub const DEFAULT_INSTANCE: &str = "default";
pub const DEFAULT_METRICS: &str = "127.0.0.1:9477";

/// The socket of an instance, when nothing else is said.
pub fn default_socket(instance: &str) -> PathBuf {
    PathBuf::from(format!("/run/ravelin/{instance}.sock"))
}

/// The state directory of an instance, when nothing else is said.
pub fn default_state_dir(instance: &str) -> PathBuf {
    PathBuf::from(format!("/var/lib/ravelin/{instance}"))
}

/// The pins of an instance, when nothing else is said.
pub fn default_pins(instance: &str) -> PathBuf {
    PathBuf::from(format!("/sys/fs/bpf/ravelin/{instance}"))
}

/// The flags of `ravelin agent`. Each one is also a key of the configuration file (`state-dir` there is `state_dir`,
/// and so on; `flows-max` is `max` under `[flows]`); a flag beats the file. `[flows.timeouts]` and `[detect]` stand in the
/// file only.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Args {
    /// Configuration file [default: /etc/ravelin/agent.toml, if it is there]
    #[arg(long, value_name = "FILE", env = "RAVELIN_CONFIG")]
    pub config: Option<PathBuf>,
    /// Policy file [default: /etc/ravelin/policy.toml]
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Interface to filter, or a pattern such as 'eth*'; repeatable [default: all that lead outside]
    #[arg(long = "interface", value_name = "NAME")]
    pub interfaces: Vec<Pattern>,
    /// Where to filter: auto, xdp or tc; of some interfaces, such as 'eth1=tc'; repeatable [default: auto, that is xdp, and tc
    /// where frames have no Ethernet headers]
    #[arg(long = "hook", value_name = "HOOK")]
    pub hooks: Vec<HookRule>,
    /// Kernel features not to use, though they are there: a list of native, frags, tcx and sockops [default: none]
    #[arg(long, value_name = "LIST")]
    pub without: Option<Without>,
    /// Name of this instance: of its socket, state and pins [default: default]
    #[arg(long, value_name = "NAME")]
    pub instance: Option<Instance>,
    /// Address to serve /metrics, /healthz and /readyz on, or 'off' [default: 127.0.0.1:9477]
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<Metrics>,
    /// Socket that the command line talks to [default: /run/ravelin/<instance>.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Group that may open the socket, to read; only root and the agent's own user may change things
    #[arg(long, value_name = "NAME")]
    pub socket_group: Option<String>,
    /// Where the last good policy and the totals of counters are kept [default: /var/lib/ravelin/<instance>]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory of the BPF file system for programs, links and maps [default: /sys/fs/bpf/ravelin/<instance>]
    #[arg(long, value_name = "DIR")]
    pub pins: Option<PathBuf>,
    /// Drop what the policy says, or only count what would be dropped [default: enforce]
    #[arg(long, value_name = "MODE")]
    pub mode: Option<Mode>,
    /// What no policy can close, such as 'tcp/22 from 203.0.113.9'; repeatable
    #[arg(long, value_name = "RULE")]
    pub failsafe: Vec<FailsafeRule>,
    /// Flows to remember at most, 512 to 16777216: 64 bytes of kernel memory each [default: 262144]
    #[arg(long, value_name = "N")]
    pub flows_max: Option<FlowsMax>,
    /// Link protocols to admit: a list of lacp, lldp, eapol, stp, or 'none' [default: lacp,lldp,eapol]
    #[arg(long, value_name = "LIST")]
    pub link_control: Option<LinkControl>,
    /// Take the filter off the interfaces when the agent is asked to stop, instead of leaving it in force
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub detach_on_exit: Option<bool>,
    /// Log dropped packets, sampled
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub log_drops: Option<bool>,
    /// Also log what the kernel programs say, if they were built to say anything
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub kernel_log: Option<bool>,
    /// Form of the log [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What to log: a level, or module=level pairs [default: info]
    #[arg(long, value_name = "FILTER", env = "RAVELIN_LOG")]
    pub log_level: Option<LogFilter>,
}

/// The file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    policy: Option<PathBuf>,
    #[serde(alias = "interface")]
    interfaces: Option<OneOrMany<Pattern>>,
    hook: Option<OneOrMany<HookRule>>,
    without: Option<Without>,
    instance: Option<Instance>,
    metrics: Option<Metrics>,
    socket: Option<PathBuf>,
    socket_group: Option<String>,
    state_dir: Option<PathBuf>,
    pins: Option<PathBuf>,
    mode: Option<Mode>,
    failsafe: Option<OneOrMany<FailsafeRule>>,
    flows: Option<FlowsSection>,
    limits: Option<limits::Section>,
    bans: Option<BansSection>,
    detect: Option<Detect>,
    store: Option<Settings>,
    trust: Option<TrustSection>,
    fleet: Option<FleetSection>,
    guard: Option<Guards>,
    drift: Option<DriftSection>,
    link_control: Option<OneOrMany<LinkControl>>,
    detach_on_exit: Option<bool>,
    log_drops: Option<bool>,
    kernel_log: Option<bool>,
    log_format: Option<LogFormat>,
    log_level: Option<LogFilter>,
}

/// What the agent does, all defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub policy: PathBuf,
    /// Empty: all that lead outside.
    pub interfaces: Vec<Pattern>,
    /// See [`Config::hook`].
    pub hooks: Vec<HookRule>,
    /// What may be used of the kernel.
    pub features: Features,
    pub instance: String,
    /// `None`: no metrics server.
    pub metrics: Option<SocketAddr>,
    pub socket: PathBuf,
    pub socket_group: Option<String>,
    pub state_dir: PathBuf,
    pub pins: PathBuf,
    pub mode: Mode,
    /// The mode was given by a flag, which beats one that was set by command before.
    pub mode_by_flag: bool,
    pub failsafe: Vec<FailsafeRule>,
    /// Flows that the table remembers at most.
    pub flows_max: u32,
    pub flow_timeouts: Timeouts,
    /// What limits may remember.
    pub limits: limits::Settings,
    pub bans: BansSection,
    pub detect: Detect,
    /// `None`: the node belongs to no fleet.
    pub fleet: Option<Fleet>,
    pub drift: DriftSection,
    /// Set of `firewall_common::control::LINK_*`.
    pub link_control: u32,
    pub detach_on_exit: bool,
    pub log_drops: bool,
    pub kernel_log: bool,
    pub log_format: LogFormat,
    pub log_level: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Parse(Box<Diagnostic>),
    #[error(
        "{count} failsafe rules, more than the {limit} that the kernel side holds ('from any' takes two)"
    )]
    TooManyFailsafe { count: usize, limit: usize },
    #[error("the path {} of {key} is relative; the agent needs an absolute one", path.display())]
    Relative { key: &'static str, path: PathBuf },
    #[error("{}: {error}", path.display())]
    Fleet { path: PathBuf, error: FleetError },
}

impl Config {
    /// The flags over the file over the defaults.
    ///
    /// # Errors
    /// A file that cannot be read or holds a mistake; a missing file only if it was named.
    pub fn resolve(args: Args) -> Result<Config, ConfigError> {
        let path = args
            .config
            .clone()
            .unwrap_or_else(|| PathBuf::from(DEFAULT_CONFIG));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && args.config.is_none() => {
                String::new()
            }
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        Config::merge(&text, &path, args)
    }

    /// [`Config::resolve`] as if the file were empty.
    ///
    /// # Errors
    /// What is wrong with the flags.
    pub fn without_file(args: Args) -> Result<Config, ConfigError> {
        Config::merge("", Path::new(DEFAULT_CONFIG), args)
    }

    /// [`Config::resolve`] with the file's text at hand.
    fn merge(text: &str, path: &Path, args: Args) -> Result<Config, ConfigError> {
        let file: File = toml::from_str(text)
            .map_err(|error| ConfigError::Parse(Box::new(mistake(text, path, &error))))?;
        let failsafe = many(args.failsafe, file.failsafe);
        let count = failsafe.iter().map(|rule| rule.entries().len()).sum();
        if count > MAX_FAILSAFE {
            return Err(ConfigError::TooManyFailsafe {
                count,
                limit: MAX_FAILSAFE,
            });
        }
        let instance = args
            .instance
            .or(file.instance)
            .map_or_else(|| DEFAULT_INSTANCE.to_owned(), |name| name.0);
        let flows = file.flows.unwrap_or_default();
        let fleet = Fleet::of(file.store, file.trust, file.fleet, file.guard).map_err(|error| {
            ConfigError::Fleet {
                path: path.to_owned(),
                error,
            }
        })?;
        let relative = fleet
            .iter()
            .flat_map(Fleet::paths)
            .find(|(_, path)| path.is_relative());
        if let Some((key, path)) = relative {
            return Err(ConfigError::Relative { key, path });
        }
        let config = Config {
            policy: absolute(args.policy, file.policy, "policy")?.unwrap_or_else(|| DEFAULT_POLICY.into()),
            interfaces: many(args.interfaces, file.interfaces),
            hooks: many(args.hooks, file.hook),
            features: args.without.or(file.without).unwrap_or_default().0,
            metrics: args.metrics.or(file.metrics).unwrap_or_default().0,
            socket: absolute(args.socket, file.socket, "socket")?
                .unwrap_or_else(|| default_socket(&instance)),
            socket_group: args.socket_group.or(file.socket_group),
            state_dir: absolute(args.state_dir, file.state_dir, "state_dir")?
                .unwrap_or_else(|| default_state_dir(&instance)),
            pins: absolute(args.pins, file.pins, "pins")?.unwrap_or_else(|| default_pins(&instance)),
            instance,
            mode_by_flag: args.mode.is_some(),
            mode: args.mode.or(file.mode).unwrap_or_default(),
            failsafe,
            flows_max: args.flows_max.or(flows.max).unwrap_or_default().0,
            flow_timeouts: flows.timeouts,
            limits: file.limits.unwrap_or_default().settings(),
            bans: file.bans.unwrap_or_default(),
            detect: file.detect.unwrap_or_default(),
            fleet,
            drift: file.drift.unwrap_or_default(),
            link_control: args
                .link_control
                .or(file.link_control.map(LinkControl::all_of))
                .unwrap_or_default()
                .0,
            detach_on_exit: args.detach_on_exit.or(file.detach_on_exit).unwrap_or_default(),
            log_drops: args.log_drops.or(file.log_drops).unwrap_or_default(),
            kernel_log: args.kernel_log.or(file.kernel_log).unwrap_or_default(),
            log_format: args.log_format.or(file.log_format).unwrap_or_default(),
            log_level: args
                .log_level
                .or(file.log_level)
                .map_or_else(|| "info".to_owned(), |filter| filter.0),
        };
        Ok(config)
    }

    /// What is legal but surely a mistake: a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        self.failsafe.iter().flat_map(FailsafeRule::warnings).collect()
    }

    /// Where an interface is to be filtered: by the first rule whose pattern matches, else by the one without a
    /// pattern.
    pub fn hook(&self, interface: &str) -> Hook {
        let named = |rule: &&HookRule| rule.of.as_ref().is_some_and(|of| of.matches(interface));
        let first = self.hooks.iter().find(named);
        first
            .or_else(|| self.hooks.iter().find(|rule| rule.of.is_none()))
            .map_or(Hook::Auto, |rule| rule.hook)
    }

    /// The failsafe rule that names a source of a network, which is never banned therefore.
    pub fn failsafe_of(&self, network: &BanKey) -> Option<&FailsafeRule> {
        self.failsafe.iter().find(|rule| {
            let entries = rule.entries();
            entries.iter().any(|entry| network.overlaps_failsafe(entry))
        })
    }

    /// The failsafe rules as the kernel takes them.
    pub fn failsafe_entries(&self) -> Vec<Failsafe> {
        self.failsafe.iter().flat_map(FailsafeRule::entries).collect()
    }
}

/// A mistake in the file, with its place and what is likely meant.
pub(crate) fn mistake(text: &str, path: &Path, error: &toml::de::Error) -> Diagnostic {
    let told = error.message();
    let (message, hint) = match told
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split_once('`'))
    {
        Some((key, expected)) => {
            let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
            let hint = match key.strip_prefix("flows_").or(key.strip_prefix("flows-")) {
                Some(of_flows) => Some(format!("write {of_flows} below [flows]")),
                None => did_you_mean(key, "", known.iter().copied()),
            };
            (format!("unknown key \"{key}\" ({})", known.join(", ")), hint)
        }
        None => {
            let key = error.span().and_then(|span| key_before(text, span.start));
            reworded(told, key.unwrap_or("the value"))
                .unwrap_or_else(|| (told.replace(", expected i64", ", expected a number"), None))
        }
    };
    let found = match error.span() {
        Some(span) => Text::new(path, text).diagnostic(span, message),
        None => Diagnostic::whole_file(path, message),
    };
    Diagnostic { hint, ..found }
}

/// The key whose value starts here, if it stands in the same line.
fn key_before(text: &str, start: usize) -> Option<&str> {
    let line = text.get(..start)?.rsplit('\n').next()?;
    let before = line.trim_end().strip_suffix('=')?.trim_end();
    let key = before.rsplit(['{', ',', ' ', '\t', '.']).next()?;
    (!key.is_empty()).then_some(key)
}

/// A value of another type than its key takes, and a word that is none of those it takes, with what to write.
fn reworded(told: &str, key: &str) -> Option<(String, Option<String>)> {
    if let Some(rest) = told.strip_prefix("unknown variant `") {
        let (word, expected) = rest.split_once('`')?;
        let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        let (last, first) = known.split_last()?;
        let accepted = match first {
            [] => (*last).to_owned(),
            _ => format!("{} or {last}", first.join(", ")),
        };
        let hint = did_you_mean(word, "", known.iter().copied());
        return Some((format!("unknown {key} \"{word}\" ({accepted})"), hint));
    }
    let (found, expected) = told.strip_prefix("invalid type: ")?.split_once(", expected ")?;
    let kind = match found.split([' ', '`']).next()? {
        "string" => "a string",
        "integer" => "a number",
        "floating" => "a fraction",
        "boolean" => "true or false",
        "sequence" => "a list",
        "map" => "a table",
        _ => return None,
    };
    let given = found.split(['`', '"']).nth(1).unwrap_or_default();
    let (wanted, hint) = match (expected, kind) {
        ("i64", _) => {
            let number = whole_number(given).map_or("a number such as 65536".to_owned(), |number| {
                format!("{key} = {number}")
            });
            ("a number", Some(format!("write {number}")))
        }
        ("f64", _) => ("a number", Some("write a number such as 2 or 1.5".to_owned())),
        ("a string", "a number") if key == "memory" => {
            ("a string", Some("write a size such as \"256MB\"".to_owned()))
        }
        ("a string", "a number") if TIMES.contains(&key) => {
            ("a string", Some(format!("write {key} = \"{given}s\"")))
        }
        ("a string", "a number") => ("a string", Some(format!("write {key} = \"{given}\""))),
        ("a string", _) => ("a string", None),
        ("a boolean", _) => ("true or false", None),
        _ => return None,
    };
    Some((format!("\"{key}\" is {kind}, not {wanted}"), hint))
}

/// Keys of the file that take a time.
const TIMES: [&str; 18] = [
    "every",
    "recount",
    "quiet",
    "longest",
    "forget",
    "interval",
    "warm_up",
    "ends_after",
    "normal_after",
    "udp",
    "udp_conversation",
    "echo",
    "other",
    "syn_sent",
    "established",
    "fin",
    "closing",
    "reset",
];

/// `64k` and `65,536` as the number that is meant.
fn whole_number(text: &str) -> Option<u64> {
    let plain: String = text.chars().filter(|c| !matches!(c, ',' | '_' | ' ')).collect();
    let (digits, factor) = match plain.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1000),
        None => match plain.strip_suffix('M') {
            Some(digits) => (digits, 1_000_000),
            None => (&plain[..], 1),
        },
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// Flags, or what the file has if there are none.
fn many<T>(flags: Vec<T>, file: Option<OneOrMany<T>>) -> Vec<T> {
    if flags.is_empty() {
        file.map(OneOrMany::into_vec).unwrap_or_default()
    } else {
        flags
    }
}

/// A flag's path is relative to where the command was typed; a daemon's file has nothing it could be relative to.
fn absolute(
    flag: Option<PathBuf>,
    file: Option<PathBuf>,
    key: &'static str,
) -> Result<Option<PathBuf>, ConfigError> {
    match (flag, file) {
        (Some(path), _) => std::path::absolute(&path)
            .map(Some)
            .map_err(|_| ConfigError::Relative { key, path }),
        (None, Some(path)) if path.is_relative() => Err(ConfigError::Relative { key, path }),
        (None, file) => Ok(file),
    }
}

/// A list, or a single string for a list of one.
#[derive(Debug)]
struct OneOrMany<T>(Vec<T>);

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        self.0
    }
}

// By hand: an untagged enum would lose the place and the text of an element's error.
impl<'de, T: Deserialize<'de> + FromStr<Err = String>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de> + FromStr<Err = String>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = OneOrMany<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.parse().map(|one| OneOrMany(vec![one])).map_err(E::custom)
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut sequence: A,
            ) -> Result<Self::Value, A::Error> {
                let mut many = Vec::new();
                while let Some(one) = sequence.next_element()? {
                    many.push(one);
                }
                Ok(OneOrMany(many))
            }
        }
        deserializer.deserialize_any(Visitor(std::marker::PhantomData))
    }
}

/// Implements `serde` by `FromStr`, so that the file and the flags are read by the same code.
macro_rules! by_from_str {
    ($($name:ty),*) => {$(
        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
    )*};
}
by_from_str!(
    Pattern,
    Instance,
    Metrics,
    FailsafeRule,
    LinkControl,
    LogFilter,
    HookRule,
    Without
);

/// Whether drops are carried out.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    Enforce,
    Observe,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Enforce => "enforce",
            Mode::Observe => "observe",
        })
    }
}

impl FromStr for Mode {
    type Err = String;
    fn from_str(text: &str) -> Result<Mode, String> {
        match text {
            "enforce" => Ok(Mode::Enforce),
            "observe" => Ok(Mode::Observe),
            _ => Err(format!("unknown mode {text:?} (enforce or observe)")),
        }
    }
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// A name that is safe as a file name everywhere it is used.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Instance(pub String);

impl FromStr for Instance {
    type Err = String;
    fn from_str(text: &str) -> Result<Instance, String> {
        let first = text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        match first && rest && text.len() <= 48 {
            true => Ok(Instance(text.to_owned())),
            false => Err(format!(
                "instance name {text:?}: up to 48 letters, digits, '-' and '_', and a letter or digit first"
            )),
        }
    }
}

/// Where metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Metrics(pub Option<SocketAddr>);

impl Default for Metrics {
    fn default() -> Self {
        Metrics(DEFAULT_METRICS.parse().ok())
    }
}

impl FromStr for Metrics {
    type Err = String;
    fn from_str(text: &str) -> Result<Metrics, String> {
        if text == "off" {
            return Ok(Metrics(None));
        }
        let address = text.parse().map_err(|_| {
            format!("metrics address {text:?}: an address with a port such as {DEFAULT_METRICS} or [::1]:9477, or off")
        })?;
        Ok(Metrics(Some(address)))
    }
}

/// What to log, checked: the logger would take a word that it does not know for the name of a module.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LogFilter(String);

impl FromStr for LogFilter {
    type Err = String;
    fn from_str(text: &str) -> Result<LogFilter, String> {
        for part in text.split(',').map(str::trim) {
            let level = part.split_once('=').map_or(part, |(_, level)| level.trim());
            if level.parse::<log::LevelFilter>().is_err() {
                return Err(format!(
                    "log level {level:?}: one of off, error, warn, info, debug and trace, or a list with commas of \
                     MODULE=LEVEL, such as \"info,ravelin::agent=debug\""
                ));
            }
        }
        Ok(LogFilter(text.to_owned()))
    }
}

/// An interface name; `*` stands for any characters, `?` for one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern(String);

impl Pattern {
    /// Names one interface only.
    pub fn is_exact(&self) -> bool {
        !self.0.contains(['*', '?'])
    }

    pub fn matches(&self, name: &str) -> bool {
        // Greedy, and back to the last star on a mismatch.
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n, mut star) = (0, 0, None);
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, n));
                    p += 1;
                }
                Some(&byte) if byte == b'?' || byte == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => match star {
                    Some((at, from)) => {
                        p = at + 1;
                        n = from + 1;
                        star = Some((at, from + 1));
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Pattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Pattern, String> {
        let bad = |byte: u8| byte == b'/' || byte.is_ascii_whitespace() || byte.is_ascii_control();
        // IFNAMSIZ counts the final zero.
        let long = !text.contains('*') && text.len() > 15;
        match text.is_empty() || long || text.bytes().any(bad) {
            true => Err(format!(
                "interface {text:?}: a name of up to 15 characters, or a pattern such as eth*"
            )),
            false => Ok(Pattern(text.to_owned())),
        }
    }
}

/// `tc`, or `eth1=tc`: where all interfaces, or those of a pattern, are filtered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HookRule {
    /// `None`: those that no other rule names.
    of: Option<Pattern>,
    hook: Hook,
}

impl FromStr for HookRule {
    type Err = String;
    fn from_str(text: &str) -> Result<HookRule, String> {
        let (of, word) = match text.rsplit_once('=') {
            Some((of, word)) => (Some(of.trim().parse()?), word.trim()),
            None => (None, text),
        };
        let hook = match word {
            "auto" => Hook::Auto,
            "xdp" => Hook::Xdp,
            "tc" => Hook::Tc,
            _ => {
                return Err(format!(
                    "hook {text:?}: auto, xdp or tc, or an interface with one of them, such as eth1=tc"
                ));
            }
        };
        Ok(HookRule { of, hook })
    }
}

/// What is not to be used of the kernel.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Without(pub Features);

impl Default for Without {
    fn default() -> Self {
        Without(Features::ALL)
    }
}

impl FromStr for Without {
    type Err = String;
    fn from_str(text: &str) -> Result<Without, String> {
        let mut features = Features::ALL;
        for word in text.split(',').map(str::trim) {
            match word {
                "native" => features.native = false,
                "frags" => features.frags = false,
                "tcx" => features.tcx = false,
                "sockops" => features.sock_ops = false,
                "none" => {}
                _ => {
                    return Err(format!(
                        "feature {word:?}: a list of native, frags, tcx and sockops with commas, or none"
                    ));
                }
            }
        }
        Ok(Without(features))
    }
}

/// `tcp/22 from 203.0.113.9`: what no policy can close.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct FailsafeRule {
    protocol: u8,
    port: u16,
    /// `None`: anyone.
    from: Option<IpNetwork>,
}

impl FailsafeRule {
    pub fn admits_anyone(&self) -> bool {
        self.from.is_none_or(|network| network.prefix() == 0)
    }

    /// What is legal but surely a mistake: a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(network) = self.from.filter(|network| network.ip() != network.network()) {
            warnings.push(format!(
                "the prefix {network} of a failsafe has bits set behind its length: taken as \"{self}\"; write {} if one \
                 host is meant",
                network.ip()
            ));
        }
        if self.admits_anyone() {
            let everybody = match self.from {
                None => "everybody",
                Some(network) if network.is_ipv4() => "everybody with an IPv4 address",
                Some(_) => "everybody with an IPv6 address",
            };
            warnings.push(format!(
                "the failsafe \"{self}\" lets {everybody} in, whatever the policy says; name the addresses that this host \
                 is managed from instead"
            ));
        }
        warnings
    }

    /// A source of each family that it admits.
    pub fn sources(&self) -> Vec<IpAddr> {
        match self.from {
            None => vec![
                Ipv4Addr::new(203, 0, 113, 250).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 250).into(),
            ],
            Some(network) => vec![network.ip()],
        }
    }

    /// As the kernel takes it: one entry a family.
    pub fn entries(&self) -> Vec<Failsafe> {
        let base = Failsafe {
            dst_port: self.port,
            protocol: self.protocol,
            ..Failsafe::default()
        };
        match self.from {
            None => vec![Failsafe { version: 4, ..base }, Failsafe { version: 6, ..base }],
            Some(IpNetwork::V4(network)) => vec![Failsafe {
                version: 4,
                prefix_low: u32::from(network.network()).into(),
                mask_low: u32::from(network.mask()).into(),
                ..base
            }],
            Some(IpNetwork::V6(network)) => {
                let (prefix, mask) = (u128::from(network.network()), u128::from(network.mask()));
                vec![Failsafe {
                    version: 6,
                    prefix_high: (prefix >> 64) as u64,
                    prefix_low: prefix as u64,
                    mask_high: (mask >> 64) as u64,
                    mask_low: mask as u64,
                    ..base
                }]
            }
        }
    }
}

impl fmt::Display for FailsafeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            6 => "tcp",
            17 => "udp",
            _ => "sctp",
        };
        write!(f, "{protocol}/{} from ", self.port)?;
        match self.from {
            None => f.write_str("any"),
            Some(network) if network.prefix() == if network.is_ipv4() { 32 } else { 128 } => {
                write!(f, "{}", network.ip())
            }
            Some(network) => write!(f, "{}/{}", network.network(), network.prefix()),
        }
    }
}

impl FromStr for FailsafeRule {
    type Err = String;
    fn from_str(text: &str) -> Result<FailsafeRule, String> {
        let usage = "tcp, udp or sctp, a port, and who: such as \"tcp/22 from 203.0.113.9\"";
        let bad = |what: &str| format!("failsafe {text:?}: {what} ({usage})");
        let words: Vec<&str> = text.split_whitespace().collect();
        let [what, "from", who] = words[..] else {
            return Err(bad("not of the form PROTOCOL/PORT from PREFIX"));
        };
        let (protocol, port) = what.split_once('/').ok_or_else(|| bad("no port"))?;
        let protocol = match protocol {
            "tcp" => 6,
            "udp" => 17,
            "sctp" => 132,
            _ => return Err(bad(&format!("unknown protocol {protocol:?}"))),
        };
        let port = match port.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err(bad(&format!("{port:?} is not a port"))),
        };
        let from = match who {
            "any" => None,
            who => Some(
                who.parse::<IpNetwork>()
                    .map_err(|_| bad(&format!("{who:?} is not an address or prefix")))?,
            ),
        };
        Ok(FailsafeRule { protocol, port, from })
    }
}

/// `[flows]` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table: [flows], and max = 262144 below it"
)]
struct FlowsSection {
    max: Option<FlowsMax>,
    #[serde(default)]
    timeouts: Timeouts,
}

/// How many flows to remember, within [`Options::FLOWS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct FlowsMax(u32);

impl Default for FlowsMax {
    fn default() -> Self {
        FlowsMax(Options::default().flows)
    }
}

impl TryFrom<i64> for FlowsMax {
    type Error = String;
    fn try_from(number: i64) -> Result<FlowsMax, String> {
        let fits = u32::try_from(number)
            .ok()
            .filter(|number| Options::FLOWS.contains(number));
        fits.map(FlowsMax).ok_or_else(|| {
            let (least, most) = (Options::FLOWS.start(), Options::FLOWS.end());
            format!("a table of {number} flows: {least} to {most}; each takes 64 bytes of kernel memory")
        })
    }
}

impl FromStr for FlowsMax {
    type Err = String;
    fn from_str(text: &str) -> Result<FlowsMax, String> {
        let number: i64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
        number.try_into()
    }
}

/// Set of `LINK_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LinkControl(pub u32);

impl Default for LinkControl {
    fn default() -> Self {
        LinkControl(LINK_LACP | LINK_LLDP | LINK_EAPOL)
    }
}

impl LinkControl {
    fn all_of(lists: OneOrMany<LinkControl>) -> LinkControl {
        LinkControl(lists.0.iter().fold(0, |set, list| set | list.0))
    }
}

impl FromStr for LinkControl {
    type Err = String;
    fn from_str(text: &str) -> Result<LinkControl, String> {
        if text == "none" {
            return Ok(LinkControl(0));
        }
        let mut set = 0;
        for word in text.split(',').map(str::trim) {
            set |= match word {
                "lacp" => LINK_LACP,
                "lldp" => LINK_LLDP,
                "eapol" => LINK_EAPOL,
                "stp" => LINK_STP,
                _ => {
                    return Err(format!(
                        "link control {word:?}: a list of lacp, lldp, eapol and stp with commas, or none"
                    ));
                }
            };
        }
        Ok(LinkControl(set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(text: &str) -> Result<Config, ConfigError> {
        Config::merge(text, Path::new("agent.toml"), Args::default())
    }

    #[test]
    fn an_empty_file_gives_the_defaults_of_the_instance() {
        let config = merge("instance = \"edge-1\"").expect("valid");
        assert_eq!(config.socket, Path::new("/run/ravelin/edge-1.sock"));
        assert_eq!(config.state_dir, Path::new("/var/lib/ravelin/edge-1"));
        assert_eq!(config.pins, Path::new("/sys/fs/bpf/ravelin/edge-1"));
        assert_eq!(config.policy, Path::new(DEFAULT_POLICY));
        assert_eq!(config.metrics, DEFAULT_METRICS.parse().ok());
        assert_eq!((config.mode, config.interfaces.len()), (Mode::Enforce, 0));
        assert_eq!(config.flows_max, 262_144);
        let big = "[flows]\nmax = 1_000_000";
        assert_eq!(merge(big).expect("valid").flows_max, 1_000_000);
        assert_eq!(config.link_control, LINK_LACP | LINK_LLDP | LINK_EAPOL);
    }

    #[test]
    fn mistakes_carry_their_place_and_what_would_be_accepted() {
        for (text, place, words) in [
            ("polcy = \"x\"", "1:1", "unknown key \"polcy\""),
            ("\nmode = \"watch\"", "2:8", "enforce"),
            ("metrics = \"9477\"", "1:11", "127.0.0.1:9477"),
            ("failsafe = [\"tcp/22\"]", "1:12", "PROTOCOL/PORT from PREFIX"),
            ("instance = \"../etc\"", "1:12", "letters, digits"),
            ("link_control = \"lacp,foo\"", "1:16", "\"foo\""),
            ("log_level = \"loud\"", "1:13", "debug and trace"),
            ("hook = [\"tc\", \"eth1=xpd\"]", "1:8", "eth1=tc"),
            ("without = \"dcx\"", "1:11", "native, frags, tcx and sockops"),
            ("[flows]\nmax = 100", "2:7", "512 to 16777216"),
            ("[flows.timeouts]\nudp = \"1s\"", "2:7", "2s to 365d"),
            ("[bans]\nmax = 3", "2:7", "16 to 1048576"),
            ("[bans]\nescalation = 0.5", "2:14", "1 to 100"),
            ("[bans]\nlongst = \"1h\"", "2:1", "did you mean \"longest\"?"),
            ("bans = 3", "1:8", "expected a table: [bans]"),
            (
                "[flows]\nmaximum = 1000",
                "2:1",
                "unknown key \"maximum\" (max, timeouts)",
            ),
            ("state-dir = \"/x\"", "1:1", "did you mean \"state_dir\"?"),
            ("flows_max = 1000", "1:1", "hint: write max below [flows]"),
            ("[flow]\nmax = 1000", "1:2", "did you mean \"flows\"?"),
            ("flows = 3", "1:9", "expected a table: [flows]"),
            (
                "[flows]\nmax = \"1000\"",
                "2:7",
                "\"max\" is a string, not a number",
            ),
            ("[limits]\nsources = \"64k\"", "2:11", "write sources = 64000"),
            (
                "[limits]\nsources = \"many\"",
                "2:11",
                "write a number such as 65536",
            ),
            (
                "limits = { connections = 1.5 }",
                "1:26",
                "\"connections\" is a fraction, not a number",
            ),
            ("[limits]\nmemory = 256", "2:10", "write a size such as \"256MB\""),
            (
                "[limits]\nrecount = 10",
                "2:11",
                "\"recount\" is a number, not a string",
            ),
            ("[limits]\nrecount = 10", "2:11", "hint: write recount = \"10s\""),
            ("limits.quiet = 30", "1:16", "hint: write quiet = \"30s\""),
            (
                "[detect]\nsensitivity = \"medium\"",
                "2:15",
                "unknown sensitivity \"medium\" (low, normal or high)",
            ),
            (
                "[detect]\nenabled = \"yes\"",
                "2:11",
                "\"enabled\" is a string, not true or false",
            ),
            ("log_format = \"jsn\"", "1:14", "did you mean \"json\"?"),
            (
                "[flows]\ntimeouts = 3",
                "2:12",
                "expected a table: [flows.timeouts]",
            ),
            (
                "[detect]\nsensitivty = \"high\"",
                "2:1",
                "did you mean \"sensitivity\"?",
            ),
            ("[detect]\ninterval = \"10ms\"", "2:12", "100ms to 30d"),
            ("[detect.floors]\ndrops = 0", "2:9", "1 to 1000000000000"),
            ("detect = true", "1:10", "expected a table: [detect]"),
            ("mode = ", "1:8", "agent.toml"),
            ("log_level = \"info,aya=loud\"", "1:13", "\"loud\""),
        ] {
            let error = merge(text).expect_err(text).to_string();
            assert!(error.starts_with(&format!("agent.toml:{place}: ")), "{error}");
            assert!(error.contains(words), "{error}");
        }
        assert!(matches!(
            merge("socket = \"x.sock\""),
            Err(ConfigError::Relative { key: "socket", .. })
        ));
    }

    #[test]
    fn link_control_is_a_list_in_either_form() {
        for (text, set) in [
            ("link_control = \"lacp,stp\"", LINK_LACP | LINK_STP),
            ("link_control = [\"lacp\", \"stp\"]", LINK_LACP | LINK_STP),
            ("link_control = [\"eapol\"]", LINK_EAPOL),
            ("link_control = []", 0),
            ("link_control = \"none\"", 0),
        ] {
            assert_eq!(merge(text).expect(text).link_control, set, "{text}");
        }
        let error = merge("link_control = [\"lacp\", \"foo\"]")
            .expect_err("no such protocol")
            .to_string();
        assert!(
            error.starts_with("agent.toml:1:16: ") && error.contains("\"foo\""),
            "{error}"
        );
    }

    #[test]
    fn a_failsafe_that_says_more_or_less_than_meant_is_told() {
        let config =
            merge("failsafe = [\"tcp/22 from 203.0.113.9\", \"tcp/22 from 2001:db8::/64\"]").expect("valid");
        assert_eq!(config.warnings(), Vec::<String>::new());
        for (rule, told) in [
            (
                "tcp/22 from 10.1.2.3/8",
                "taken as \"tcp/22 from 10.0.0.0/8\"; write 10.1.2.3 if one host is meant",
            ),
            (
                "tcp/22 from 2001:db8::7/64",
                "taken as \"tcp/22 from 2001:db8::/64\"; write 2001:db8::7",
            ),
            ("tcp/22 from any", "\"tcp/22 from any\" lets everybody in"),
            ("tcp/22 from 0.0.0.0/0", "lets everybody with an IPv4 address in"),
            ("tcp/22 from ::/0", "lets everybody with an IPv6 address in"),
        ] {
            let rule: FailsafeRule = rule.parse().expect(rule);
            let warnings = rule.warnings();
            assert!(warnings.len() == 1 && warnings[0].contains(told), "{warnings:?}");
        }
    }

    #[test]
    fn flags_beat_the_file() {
        let args = Args {
            mode: Some(Mode::Observe),
            metrics: Some(Metrics(None)),
            interfaces: vec!["wan0".parse().expect("a name")],
            ..Args::default()
        };
        let text = "mode = \"enforce\"\nmetrics = \"127.0.0.1:1\"\ninterfaces = [\"eth*\"]\nlog_drops = true";
        let config = Config::merge(text, Path::new("agent.toml"), args).expect("valid");
        assert_eq!(
            (config.mode, config.metrics, config.log_drops),
            (Mode::Observe, None, true)
        );
        assert!(config.mode_by_flag);
        assert!(config.interfaces[0].matches("wan0") && !config.interfaces[0].matches("eth0"));
    }

    #[test]
    fn a_hook_of_some_interfaces_beats_that_of_all() {
        let config = merge("hook = [\"tc\", \"eth1=xdp\", \"eth*=auto\"]\nwithout = \"tcx\"").expect("valid");
        for (interface, hook) in [("eth1", Hook::Xdp), ("eth2", Hook::Auto), ("wg0", Hook::Tc)] {
            assert_eq!(config.hook(interface), hook, "{interface}");
        }
        assert!(!config.features.tcx && config.features.native && config.features.frags);
        assert_eq!(merge("").expect("valid").hook("eth0"), Hook::Auto);
        assert_eq!(merge("hook = \"tc\"").expect("valid").hook("eth0"), Hook::Tc);
    }

    #[test]
    fn patterns_match_as_a_shell_would() {
        for (pattern, yes, no) in [
            ("eth*", &["eth0", "eth", "eth1.100"][..], &["xeth0", "et"][..]),
            ("*", &["a", ""], &[]),
            ("enp?s*", &["enp3s0", "enp0s"], &["enps0", "enp3"]),
            ("*a*b", &["ab", "xaxb", "aab", "abab"], &["ba", "abc"]),
            ("lan0", &["lan0"], &["lan01", "lan"]),
        ] {
            let parsed: Pattern = pattern.parse().expect(pattern);
            for name in yes {
                assert!(parsed.matches(name), "{pattern} {name}");
            }
            for name in no {
                assert!(!parsed.matches(name), "{pattern} {name}");
            }
        }
        assert!("sixteen-letters-".parse::<Pattern>().is_err() && "".parse::<Pattern>().is_err());
    }

    #[test]
    fn failsafe_rules_become_kernel_entries() {
        let rule: FailsafeRule = "tcp/22 from 203.0.113.9".parse().expect("a rule");
        let [entry] = rule.entries()[..] else {
            panic!("one entry")
        };
        assert_eq!((entry.version, entry.protocol, entry.dst_port), (4, 6, 22));
        assert_eq!((entry.prefix_low, entry.mask_low), (0xcb00_7109, 0xffff_ffff));
        assert_eq!(rule.to_string(), "tcp/22 from 203.0.113.9");

        let rule: FailsafeRule = "udp/51820 from 2001:db8:10::/48".parse().expect("a rule");
        let [entry] = rule.entries()[..] else {
            panic!("one entry")
        };
        assert_eq!(
            (entry.prefix_high, entry.mask_high),
            (0x2001_0db8_0010_0000, 0xffff_ffff_ffff_0000)
        );
        assert_eq!((entry.prefix_low, entry.mask_low), (0, 0));

        let rule: FailsafeRule = "tcp/22 from any".parse().expect("a rule");
        assert_eq!(
            rule.entries()
                .iter()
                .map(|entry| entry.version)
                .collect::<Vec<_>>(),
            [4, 6]
        );
        assert!(rule.admits_anyone());

        for bad in [
            "tcp/22",
            "tcp/0 from any",
            "icmp/8 from any",
            "tcp/22 from here",
            "tcp from any",
        ] {
            let error = bad.parse::<FailsafeRule>().expect_err(bad);
            assert!(error.contains("tcp/22 from 203.0.113.9"), "{error}");
        }
    }

    #[test]
    fn more_failsafe_rules_than_the_kernel_holds_are_refused() {
        let rules: Vec<String> = (1..=17).map(|port| format!("\"tcp/{port} from any\"")).collect();
        let error = merge(&format!("failsafe = [{}]", rules.join(","))).expect_err("34 entries");
        assert!(matches!(
            error,
            ConfigError::TooManyFailsafe { count: 34, limit: 32 }
        ));
    }
}
