//! Requests and answers of the local socket: JSON over HTTP, version 1. The command line prints these same
//! records with `-o json`, so field names are an interface: add, never rename.

use super::fleet::FleetStatus;
use crate::policy::model::Place;
use serde::{Deserialize, Serialize};

/// `GET /v1/status?wait_ms=N&generation=G&published=true` (waits until a policy is in force and attached).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub instance: String,
    pub pid: u32,
    pub kernel: String,
    /// `enforce` or `observe`.
    pub mode: String,
    pub uptime_seconds: u64,
    pub policy: PolicyStatus,
    pub interfaces: Vec<InterfaceStatus>,
    /// Interfaces that are not filtered.
    #[serde(default)]
    pub uncovered: Vec<Uncovered>,
    /// Ports that nftables and iptables hand on to others, if `published=true` asks for them.
    #[serde(default)]
    pub published: Vec<PublishedPort>,
    /// Patterns asked for that no interface matches.
    pub unmatched: Vec<String>,
    pub failsafe: Vec<String>,
    #[serde(default)]
    pub flows: FlowStatus,
    #[serde(default)]
    pub limits: LimitStatus,
    #[serde(default)]
    pub bans: BanStatus,
    #[serde(default)]
    pub drift: DriftStatus,
    /// What is far more than usual now.
    #[serde(default)]
    pub anomalies: Vec<AnomalyRow>,
    /// `None`: the node belongs to no fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetStatus>,
    /// What is surely a mistake in the agent's configuration, a sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What this kernel lacks and what that means, a sentence each.
    pub degraded: Vec<String>,
    /// True when a policy is in force on every interface asked for.
    pub ready: bool,
}

/// What somebody else changed in the maps of the kernel since the agent started; all of it was put back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DriftStatus {
    /// How often.
    pub found: u64,
    /// What, the last time.
    pub last: Option<String>,
    /// Unix seconds.
    pub last_at: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyStatus {
    pub path: String,
    /// 0: none in force.
    pub generation: u64,
    /// Hex BLAKE3 of the image.
    pub digest: String,
    /// Unix seconds of the last successful application.
    pub applied_at: u64,
    /// `file`; `fleet` when a node has no file and its fleet says all; `last-good` when the file is gone or bad; `kernel` when there is no copy of it either, and what an
    /// earlier agent put in force stays.
    pub origin: String,
    /// Of the last reload, if it failed: the whole text with the pointer into the line.
    pub last_error: Option<String>,
    pub warnings: Vec<String>,
    pub stats: crate::policy::compile::Stats,
    /// Temporary entries and when they end.
    pub temporary: Vec<Temporary>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Temporary {
    /// `allow payments-api 198.51.100.7` or `deny 203.0.113.0/24`.
    pub entry: String,
    pub seconds_left: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    pub name: String,
    pub ifindex: u32,
    /// `physical`, or what the kernel calls its kind: `vxlan`, `wireguard`, `tun`; and `in br0` for a member.
    #[serde(default)]
    pub kind: String,
    /// Where ingress is judged: `xdp`, `tc`, or `none` when nothing is attached.
    #[serde(default)]
    pub hook: String,
    /// `native` or `generic` at XDP, `tcx` or `clsact` at TC, `none`.
    #[serde(default)]
    pub mode: String,
    /// `native`, `generic` or `none`: the mode if the hook is `xdp`.
    pub xdp: String,
    /// `tcx`, `clsact` or `none`.
    pub egress: String,
    /// Multi-buffer frames are handled.
    pub frags: bool,
    /// Why not native, or why nothing is attached: a sentence.
    pub detail: Option<String>,
    /// How often something was put back after somebody took it off behind the agent's back.
    #[serde(default)]
    pub repairs: u64,
    /// What had happened at the last one.
    #[serde(default)]
    pub last_repair: Option<String>,
    /// Of what came in.
    pub passed: Count,
    pub dropped: Count,
    /// Of what went out.
    #[serde(default)]
    pub egress_passed: Count,
    #[serde(default)]
    pub egress_dropped: Count,
}

/// An interface that is not filtered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Uncovered {
    pub name: String,
    pub ifindex: u32,
    /// As [`InterfaceStatus::kind`].
    pub kind: String,
    /// A phrase: `its frames are judged on eth0`.
    pub reason: String,
}

/// A port whose packets are translated to another destination. The policy judges it before that, by this port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// `tcp/8080`, `udp/5000-5010`.
    pub port: String,
    /// The address that packets come to; none: any of this host, as far as the rule says.
    pub address: Option<String>,
    /// `10.88.0.2:80`; empty if the rule does not tell.
    pub to: String,
    /// `nftables` or `iptables`.
    pub by: String,
    /// That names the port. Empty: none.
    pub service: String,
    /// A phrase: `closed: no service names it`.
    pub ruling: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// `POST /v1/reload` and every request that changes the policy: what came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    pub generation: u64,
    pub digest: String,
    /// False when the policy in force was this one already (or for a dry run).
    pub changed: bool,
    pub warnings: Vec<String>,
    /// Who gained and lost which port.
    pub diff: Vec<DiffLine>,
}

/// `GET /v1/services`: the services, then the egress rules.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceRow {
    pub name: String,
    /// `ingress`: a service, judged by who comes in; `egress`: an egress rule, judged by where packets go.
    #[serde(default)]
    pub direction: String,
    /// Of an egress rule, none: every port.
    pub ports: Vec<String>,
    /// Sources; of an egress rule the destinations that it opens.
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    pub place: Place,
    pub passed: Count,
    pub dropped: Count,
    /// What left from a service to those whom it allows.
    #[serde(default)]
    pub answered: Count,
    /// TCP connections that it let in: SYNs that passed, or cookies that came back.
    #[serde(default)]
    pub opened: u64,
    /// What it bears: groups of sources first, then everybody else.
    #[serde(default)]
    pub limits: Vec<LimitRow>,
}

/// What a service bears of some of its sources, or of all the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitRow {
    /// What it keeps its state under: `payments-api`, or `payments-api/@partners` for a `[[service.limit]]`.
    pub scope: String,
    /// Whom a `[[service.limit]]` is for. Empty: everybody else.
    #[serde(rename = "for")]
    pub sources: Vec<String>,
    pub limits: Vec<LimitValue>,
    /// Bits of an address that make a source.
    pub source_v4: u8,
    pub source_v6: u8,
    /// `drop`, `challenge` or `ban 10m`.
    pub on_excess: String,
    pub place: Place,
    /// New connections have to prove their address now.
    #[serde(default)]
    pub challenged: bool,
    /// Established now, if connections are limited.
    #[serde(default)]
    pub connections: Option<u64>,
}

/// One limit as people read it; what is missing is not limited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitValue {
    /// `new_connections`, `packets`, `bytes` or `connections`.
    pub what: String,
    /// `50/s`, `100 MB/s`; of connections `200`.
    pub per_source: Option<String>,
    /// What may come at once: `100`, `64 KiB`.
    pub burst: Option<String>,
    pub total: Option<String>,
    pub total_burst: Option<String>,
}

/// `GET /v1/limits`: the limits of the policy in force, and what they hold now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitState {
    /// `api`, or `api/@partners` for a `[[service.limit]]`.
    pub scope: String,
    pub service: String,
    /// For how long new connections have had to prove their address; none if they need not.
    pub challenged_seconds: Option<u64>,
    /// Challenges that began since the agent started.
    pub challenges_started: u64,
    pub values: Vec<LimitUsed>,
}

/// One thing that is limited, and what of it is in use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitUsed {
    #[serde(flatten)]
    pub limit: LimitValue,
    /// The same as numbers; of rates a second.
    pub per_source_value: Option<f64>,
    pub total_value: Option<f64>,
    /// How much of the burst of the total is spent, 0 to 1; never of `connections`.
    pub total_spent: Option<f64>,
    /// Sources that are remembered now, estimated, and for how many there is room. None: no limit by source.
    pub sources: Option<u64>,
    pub room: Option<u64>,
    /// Established now; of `connections` only.
    pub connections: Option<u64>,
}

/// `GET /v1/rules`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RuleRow {
    /// A service or an egress rule. Empty: the policy's own deny list.
    pub service: String,
    /// `ingress` or `egress`.
    #[serde(default)]
    pub direction: String,
    /// `allow` or `deny`.
    pub action: String,
    /// Of an egress rule the destination.
    pub source: String,
    pub prefixes: usize,
    pub place: Place,
    pub count: Count,
    /// What left from a service to those whom this rule allows.
    #[serde(default)]
    pub answered: Count,
    /// As [`ServiceRow::opened`], of an allow of a service.
    #[serde(default)]
    pub opened: u64,
}

/// `GET /v1/counters`: a row per (service, direction, verdict, reason) that has counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CounterRow {
    /// A service or an egress rule. Empty: neither.
    pub service: String,
    /// `ingress` or `egress`.
    #[serde(default)]
    pub direction: String,
    /// `pass`, `drop` or `would-drop`.
    pub verdict: String,
    pub reason: String,
    pub count: Count,
}

/// One line of a policy diff.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiffLine {
    /// `ingress`: who gets in; `egress`: where packets of this host may go.
    #[serde(default)]
    pub direction: String,
    /// `gains`, `loses`, `opens`, `closes`, `default` or `limits`.
    pub change: String,
    /// `198.51.100.0/24`, `@web`, `1,204 prefixes of @web`, `anyone`, `anyone else`, `nobody`; of `default`:
    /// `allow -> deny`. Of egress the destinations: `anywhere`, `anywhere else`. Of `limits` what is limited how:
    /// `packets unlimited -> 20,000/s a source (burst 20,000)`.
    pub who: String,
    /// Empty: the whole policy, and always so of egress, where rules share ports.
    pub service: String,
    /// Texts of ports; of the whole policy, words for which: `every port`.
    pub ports: Vec<String>,
    /// The first of the prefixes that `who` counts; of `limits` whom a `[[service.limit]]` is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
}

/// `POST /v1/apply`: replaces the policy file by this text, after checking it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ApplyRequest {
    pub text: String,
    /// Where the text came from, for messages.
    pub path: String,
    pub dry_run: bool,
}

/// `POST /v1/edit`: one change to the policy file that keeps comments and order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Edit {
    /// Lets a source in to a service, or lets packets of an egress rule, whose name then is `service`, out to it.
    Allow {
        service: String,
        source: String,
        for_seconds: Option<u64>,
    },
    Revoke {
        service: String,
        source: String,
    },
    Deny {
        source: String,
        for_seconds: Option<u64>,
    },
    Undeny {
        source: String,
    },
    /// Takes an entry off the deny list of a service or an egress rule: how a temporary entry there ends.
    ServiceUndeny {
        service: String,
        source: String,
    },
    ServiceAdd {
        name: String,
        ports: Vec<String>,
        allow: Vec<String>,
        deny: Vec<String>,
    },
    /// `None` leaves a list as it is.
    ServiceSet {
        name: String,
        ports: Option<Vec<String>>,
        allow: Option<Vec<String>>,
        deny: Option<Vec<String>>,
    },
    ServiceRemove {
        name: String,
    },
    /// Without ports: every port.
    EgressAdd {
        name: String,
        ports: Vec<String>,
        to: Vec<String>,
        deny: Vec<String>,
    },
    /// `None` leaves a list as it is; `ports` without any stands for every port.
    EgressSet {
        name: String,
        ports: Option<Vec<String>>,
        to: Option<Vec<String>>,
        deny: Option<Vec<String>>,
    },
    EgressRemove {
        name: String,
    },
}

/// `GET /v1/flows`, with the fields as parameters: only the flows that have all of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowQuery {
    /// `egress`: opened by this host or by what is behind it; `ingress`: accepted by it.
    pub direction: Option<String>,
    /// A service or an egress rule.
    pub service: Option<String>,
    /// An address or prefix that the remote end is in.
    pub peer: Option<String>,
    /// As [`FlowRow::state`].
    pub state: Option<String>,
    /// Age in seconds, both inclusive. What has no known age has none of any.
    pub older_than: Option<u64>,
    pub younger_than: Option<u64>,
    /// Rows to give at most; all of them if it is missing.
    pub limit: Option<u64>,
}

/// The flow table, and the flows that were asked for, those that spoke last first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowList {
    /// Live flows of the table, whatever was asked for.
    pub live: u64,
    /// Flows that fit into the table.
    pub max: u64,
    /// Live flows that gave their place to newer ones since the table was made.
    pub displaced: u64,
    /// Flows and accepted connections that were asked for; `flows` holds no more than the limit of them.
    pub matched: u64,
    pub flows: Vec<FlowRow>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowRow {
    /// As [`FlowQuery::direction`].
    pub direction: String,
    /// As [`EventRecord::protocol`].
    pub protocol: String,
    pub local: String,
    /// Of TCP, UDP and SCTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u16>,
    pub remote: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_port: Option<u16>,
    /// Of ICMP echo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo_id: Option<u16>,
    /// `asked`, `conversation`, `echo`, `other`, `syn-sent`, `established`, `fin-out`, `fin-in`, `closing` or `reset`.
    pub state: String,
    /// The service, or the egress rule, that lets its packets pass. Empty: neither.
    pub service: String,
    pub rule: String,
    /// That it went out by. Empty: not known.
    pub interface: String,
    /// Since its first packet, since the last one that went out, and until it is forgotten; connections that only the
    /// socket table knows have none of them.
    pub age_seconds: Option<u64>,
    pub idle_seconds: Option<u64>,
    pub expires_seconds: Option<u64>,
}

/// How full the flow table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowStatus {
    pub live: u64,
    pub max: u64,
    /// As [`FlowList::displaced`].
    pub displaced: u64,
}

/// The limits of the policy in force, in short.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitStatus {
    /// As [`LimitState::scope`]: new connections there have to prove their address now.
    pub challenged: Vec<String>,
    /// `program` when connections are counted as they come and go, `recount` when only each second, `off` when nothing limits
    /// them.
    pub counting: String,
    /// Connections that limits count, by the last recount.
    pub connections: u64,
    /// Bytes of kernel memory that the tables take, and that agent.toml grants.
    pub memory: u64,
    pub memory_max: u64,
}

/// `GET /v1/bans`: those in force, the ones that end first before the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BanList {
    /// Entries that the table holds at most.
    pub max: u64,
    /// Bans that are over, of sources that would be banned for longer if they gave reason again.
    pub remembered: u64,
    pub bans: Vec<BanRow>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BanRow {
    /// An address or a prefix.
    pub prefix: String,
    /// Unix seconds.
    pub since: u64,
    /// Unix seconds; none: for ever.
    pub until: Option<u64>,
    pub seconds_left: Option<u64>,
    /// `operator` or `automatic`.
    pub origin: String,
    /// Whose limit the source exceeded. Empty: by command.
    pub service: String,
    /// Automatic bans in a row, with this one; by command: those before it.
    pub strikes: u32,
    /// As given with the command.
    pub why: String,
}

/// How many bans are in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BanStatus {
    pub by_operator: u64,
    pub automatic: u64,
    pub max: u64,
}

/// `POST /v1/ban`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BanRequest {
    pub prefix: String,
    /// None: for ever.
    pub for_seconds: Option<u64>,
    #[serde(default)]
    pub why: String,
    /// Also if that is likely a slip.
    #[serde(default)]
    pub force: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Banned {
    pub ban: BanRow,
    /// The ban that it takes the place of.
    pub before: Option<BanRow>,
    /// It survives a restart of the machine.
    pub kept: bool,
}

/// `POST /v1/unban`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UnbanRequest {
    /// None: all of them, and what is remembered.
    pub prefix: Option<String>,
}

/// The bans that were in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Unbanned {
    pub unbanned: Vec<BanRow>,
}

/// `POST /v1/mode`: `enforce` or `observe`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModeRequest {
    pub mode: String,
}

/// `POST /v1/detach`: what was taken off, a line each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Detached {
    pub removed: Vec<String>,
}

/// `POST /v1/explain`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// As typed: `tcp 10.20.3.4 -> 8443`, `out tcp -> 198.51.100.7:443`.
    pub packet: String,
}

/// What would happen to a packet, and every step on the way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    pub packet: String,
    /// `ingress` or `egress`.
    #[serde(default)]
    pub direction: String,
    /// `pass` or `drop`.
    pub verdict: String,
    /// `not-filtered`: it stays on this host.
    pub reason: String,
    /// Or the egress rule that decided.
    pub service: Option<String>,
    /// `allow @web`.
    pub rule: Option<String>,
    /// The place of the rule, or of the service when no rule matched.
    pub place: Option<Place>,
    /// The source line at `place`.
    pub line: Option<String>,
    pub generation: u64,
    pub steps: Vec<ExplainStep>,
    /// What to do about it, when it was dropped.
    pub hint: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExplainStep {
    /// `packet`, `essential`, `failsafe`, `port`, `source`, `rule`, `reply`, `default`; of what leaves `answer`, `port`,
    /// `peer`, `rule`, `default` and the like.
    pub step: String,
    pub finding: String,
}

/// `GET /v1/monitor?passes=bool`: a stream of these, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MonitorRecord {
    Event(Box<EventRecord>),
    /// An anomaly begins or ends.
    Anomaly(Box<AnomalyRecord>),
    /// New connections have to prove their address from now on, or no more.
    Challenge(ChallengeRecord),
    /// No event followed those that were suppressed: told after a second.
    Suppressed(SuppressedRecord),
}

/// Events that were not written since the record before, all reasons.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SuppressedRecord {
    /// As [`EventRecord::time`].
    pub time: String,
    pub suppressed: u64,
}

/// One packet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventRecord {
    /// RFC 3339 with milliseconds, UTC.
    pub time: String,
    pub interface: String,
    /// `ingress` or `egress`.
    #[serde(default)]
    pub direction: String,
    pub verdict: String,
    pub reason: String,
    /// Or the egress rule.
    pub service: String,
    pub rule: String,
    /// `tcp`, `udp`, `icmp`, ... or the protocol's number.
    pub protocol: String,
    pub src: String,
    /// Of TCP, UDP and SCTP, unless it was not there to be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src_port: Option<u16>,
    pub dst: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst_port: Option<u16>,
    /// Of ICMP and ICMPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    pub length: u32,
    pub tcp_flags: String,
    pub vlan: Vec<u16>,
    pub ethertype: u16,
    pub generation: u64,
    /// Events suppressed since the record before, all reasons.
    pub suppressed: u64,
}

/// A challenge of a limit starts or ends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChallengeRecord {
    /// As [`EventRecord::time`].
    pub time: String,
    /// `starts` or `ends`.
    pub challenge: String,
    pub service: String,
    /// As [`LimitState::scope`].
    pub limit: String,
    /// How long it lasted, once it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// `GET /v1/anomalies`: what is far more than usual now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnomalyList {
    /// False if agent.toml turns detection off: then the rest is empty.
    pub enabled: bool,
    /// Series, that is a service and a kind each, and how many of them were not watched for long enough to be judged.
    pub watched: u64,
    pub learning: u64,
    pub anomalies: Vec<AnomalyRow>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnomalyRow {
    /// Empty: what belongs to no service.
    pub service: String,
    /// `new_connections`, `drops` (packets) or `bytes`.
    pub kind: String,
    /// As [`EventRecord::time`].
    pub since: String,
    /// How long it has lasted.
    pub seconds: u64,
    /// The last rate and the highest one, a second.
    pub rate: f64,
    pub peak: f64,
    /// What is usual now, and from which rate on it is too much.
    pub baseline: f64,
    pub limit: f64,
    /// Who sends most, by sampled events of the last minute.
    pub sources: Vec<AnomalySource>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnomalySource {
    /// An IPv4 address or an IPv6 prefix of 64 bits.
    pub source: String,
    /// Of the sampled events (of bytes: of their bytes), 0 to 1; never too high, too low by 0.02 at most.
    pub share: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnomalyRecord {
    /// As [`EventRecord::time`].
    pub time: String,
    /// `begins` or `ends`.
    pub anomaly: String,
    /// How it ended: `usual` again, or `new-normal` after so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    #[serde(flatten)]
    pub row: AnomalyRow,
}

/// Body of every answer that is not 2xx.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ApiError {
    pub error: String,
}
