//! A policy as written: the TOML tree read into words with their spans. Unknown keys and wrong types end here;
//! what the words mean is for the next steps.

mod entries;
pub mod header;
pub mod limits;

use super::diagnostic::{Findings, did_you_mean};
use super::model::Action;
use super::source::{NAME_HINT, is_name};
use crate::fleet::selector::Selector;
use entries::{entries, kind, word};
use header::{Header, read_header, selector};
use limits::{Limit, Limits, read_limit, read_limits};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

type Span = Range<usize>;

/// A string and where it stands, its quotes included.
#[derive(Clone, Debug)]
pub struct Word {
    pub text: String,
    pub span: Span,
}

#[derive(Debug, Default)]
pub struct Written {
    pub header: Option<Header>,
    /// What `ingress` says, if it says anything.
    pub default_ingress: Option<Action>,
    /// `egress = "deny"`, and where it says so.
    pub egress_deny: Option<Span>,
    /// For every service.
    pub limits: Option<Limits>,
    pub deny: Vec<Entry>,
    /// In the order of the file.
    pub groups: Vec<Group>,
    pub services: Vec<Service>,
    pub egress: Vec<Egress>,
}

/// An entry of an allow, deny or `to` list.
#[derive(Debug)]
pub struct Entry {
    pub source: Word,
    /// Unix seconds at which a temporary entry ends.
    pub until: Option<u64>,
    /// The whole entry.
    pub span: Span,
}

#[derive(Debug)]
pub struct Group {
    pub name: Word,
    pub content: Content,
}

#[derive(Debug)]
pub enum Content {
    Words(Vec<Word>),
    File(Word),
    /// The nodes of a fleet, and the prefixes that their addresses have to lie in.
    Nodes {
        nodes: Selector,
        within: Option<Vec<Word>>,
        span: Span,
    },
}

#[derive(Debug)]
pub struct Service {
    pub name: Word,
    pub ports: Vec<Word>,
    pub allow: Vec<Entry>,
    pub deny: Vec<Entry>,
    pub limits: Option<Limits>,
    /// In the order of the file.
    pub groups: Vec<Limit>,
}

#[derive(Debug)]
pub struct Egress {
    pub name: Word,
    /// `None`: every port and protocol.
    pub ports: Option<Vec<Word>>,
    pub to: Vec<Entry>,
    pub deny: Vec<Entry>,
}

/// Reads the whole tree; what is wrong goes to `findings` and is left out.
pub fn read(root: &Spanned<DeTable<'_>>, findings: &mut Findings<'_>) -> Written {
    let table = root.get_ref();
    known_keys(
        table,
        "the policy",
        &[
            "version", "policy", "deny", "defaults", "groups", "service", "egress",
        ],
        findings,
    );
    version(table, findings);
    let mut written = Written::default();
    if let Some(header) = table.get("policy") {
        written.header = read_header(header, findings);
    }
    if let Some(deny) = table.get("deny") {
        written.deny = entries(deny, "deny", findings);
    }
    if let Some(defaults) = table.get("defaults") {
        read_defaults(defaults, &mut written, findings);
    }
    if let Some(groups) = table.get("groups") {
        written.groups = read_groups(groups, findings);
    }
    for item in tables(table, "service", "each service begins with [[service]]", findings) {
        written.services.extend(read_service(item, findings));
    }
    for item in tables(table, "egress", EGRESS_HEADER, findings) {
        written.egress.extend(read_egress(item, findings));
    }
    written
}

const EGRESS_HEADER: &str = "each egress rule begins with [[egress]]";

/// The tables of `[[key]]`.
fn tables<'t, 'd>(
    table: &'t DeTable<'d>,
    key: &str,
    header: &str,
    findings: &mut Findings<'_>,
) -> &'t [Spanned<DeValue<'d>>] {
    let Some(value) = table.get(key) else {
        return &[];
    };
    if let DeValue::Array(items) = value.get_ref() {
        return items;
    }
    let message = format!("\"{key}\" is {}, not a list of tables", kind(value.get_ref()));
    findings.error(&value.span(), message, Some(header.into()));
    &[]
}

fn known_keys(table: &DeTable<'_>, of: &str, known: &[&'static str], findings: &mut Findings<'_>) {
    for key in table.keys() {
        let name = key.get_ref().as_ref();
        if !known.contains(&name) {
            if findings.is_full() {
                findings.more_errors += 1;
                continue;
            }
            let message = format!("unknown key \"{name}\" in {of} ({})", known.join(", "));
            let hint = match name {
                "allow" if known.contains(&"to") => Some("destinations stand in \"to\"".into()),
                "to" if known.contains(&"allow") => {
                    Some("sources stand in \"allow\"; destinations are for [[egress]]".into())
                }
                "limits" | "limit" if known.contains(&"to") => Some("limits are for [[service]]".into()),
                _ => limits::misplaced(name, known)
                    .map(str::to_owned)
                    .or_else(|| did_you_mean(name, "", known.iter().copied())),
            };
            findings.error(&key.span(), message, hint);
        }
    }
}

fn version(table: &DeTable<'_>, findings: &mut Findings<'_>) {
    let hint = || Some("this ravelin reads version 1 of the policy language".into());
    match table.get("version") {
        None => findings.error(
            &(0..0),
            "\"version\" is missing: a policy begins with version = 1",
            hint(),
        ),
        Some(value) => match value.get_ref() {
            DeValue::Integer(number) if number.as_str() == "1" => {}
            DeValue::Integer(number) => {
                findings.error(
                    &value.span(),
                    format!("version {number} is not known (1)"),
                    hint(),
                );
            }
            other => findings.error(
                &value.span(),
                format!("\"version\" is {}, not the number 1", kind(other)),
                hint(),
            ),
        },
    }
}

fn read_defaults(defaults: &Spanned<DeValue<'_>>, written: &mut Written, findings: &mut Findings<'_>) {
    let DeValue::Table(table) = defaults.get_ref() else {
        let message = format!("\"defaults\" is {}, not a table", kind(defaults.get_ref()));
        findings.error(
            &defaults.span(),
            message,
            Some("write [defaults], and ingress = \"deny\" below it".into()),
        );
        return;
    };
    known_keys(table, "[defaults]", &["ingress", "egress", "limits"], findings);
    written.default_ingress = default(table, "ingress", findings).map(|(action, _)| action);
    if let Some((action, span)) = default(table, "egress", findings) {
        written.egress_deny = (action == Action::Deny).then_some(span);
    }
    if let Some(limits) = table.get("limits") {
        written.limits = read_limits(limits, "defaults.limits", findings);
    }
}

fn default(table: &DeTable<'_>, key: &str, findings: &mut Findings<'_>) -> Option<(Action, Span)> {
    let value = table.get(key)?;
    let DeValue::String(_) = value.get_ref() else {
        let message = format!("\"{key}\" is {}, not a string", kind(value.get_ref()));
        let hint = format!("write {key} = \"deny\" or {key} = \"allow\"");
        findings.error(&value.span(), message, Some(hint));
        return None;
    };
    let value = word(value, key, findings)?;
    match value.text.as_str() {
        "deny" => Some((Action::Deny, value.span)),
        "allow" => Some((Action::Allow, value.span)),
        other => {
            let hint = match other.to_lowercase().as_str() {
                "drop" | "block" | "reject" | "close" | "closed" => Some("did you mean \"deny\"?".into()),
                "accept" | "pass" | "permit" | "open" => Some("did you mean \"allow\"?".into()),
                _ => did_you_mean(other, "", ["deny", "allow"]),
            };
            findings.error(
                &value.span,
                format!("unknown default \"{other}\" (\"deny\" or \"allow\")"),
                hint,
            );
            None
        }
    }
}

fn read_groups(groups: &Spanned<DeValue<'_>>, findings: &mut Findings<'_>) -> Vec<Group> {
    let DeValue::Table(table) = groups.get_ref() else {
        let message = format!("\"groups\" is {}, not a table", kind(groups.get_ref()));
        findings.error(
            &groups.span(),
            message,
            Some("write [groups], and name = [\"PREFIX\"] below it".into()),
        );
        return Vec::new();
    };
    let mut read = Vec::new();
    for (key, value) in table {
        let name = Word {
            text: key.get_ref().to_string(),
            span: key.span(),
        };
        if !is_name(&name.text) {
            findings.error(
                &name.span,
                format!("\"{}\" cannot name a group", name.text),
                Some(NAME_HINT.into()),
            );
        }
        let content = match value.get_ref() {
            DeValue::Array(items) => Content::Words(
                items
                    .iter()
                    .filter_map(|item| group_word(item, findings))
                    .collect(),
            ),
            DeValue::Table(table) => group_table(&name, table, value.span(), findings),
            other => {
                let message = format!("group \"{}\" is {}, not a list", name.text, kind(other));
                let hint = "write [\"PREFIX\", \"@group\"], { file = \"lists/name.txt\" } or { nodes = \"role=web\" }";
                findings.error(&value.span(), message, Some(hint.into()));
                Content::Words(Vec::new())
            }
        };
        read.push(Group { name, content });
    }
    read.sort_by_key(|group| group.name.span.start);
    read
}

/// A list file, or the nodes of a fleet.
fn group_table(name: &Word, table: &DeTable<'_>, span: Span, findings: &mut Findings<'_>) -> Content {
    let nothing = Content::Words(Vec::new());
    known_keys(table, "a group", &["file", "nodes", "within"], findings);
    match (table.get("file"), table.get("nodes")) {
        (Some(path), None) => {
            if let Some(within) = table.get("within") {
                let hint = "write { nodes = \"role=web\", within = [\"PREFIX\"] }";
                findings.error(
                    &within.span(),
                    "\"within\" is for groups of nodes",
                    Some(hint.into()),
                );
            }
            word(path, "file", findings).map_or(nothing, Content::File)
        }
        (None, Some(nodes)) => {
            let within = table
                .get("within")
                .map(|within| group_within(name, within, findings));
            match selector(nodes, findings) {
                Some(nodes) => Content::Nodes { nodes, within, span },
                None => nothing,
            }
        }
        (Some(_), Some(nodes)) => {
            let message = format!("group \"{}\" has both \"file\" and \"nodes\"", name.text);
            let hint = "make two groups of it, and one that names both";
            findings.error(&nodes.span(), message, Some(hint.into()));
            nothing
        }
        (None, None) => {
            let hint = "write { file = \"lists/name.txt\" } or { nodes = \"role=web\" }";
            let message = format!("group \"{}\" has neither \"file\" nor \"nodes\"", name.text);
            findings.error(&span, message, Some(hint.into()));
            nothing
        }
    }
}

/// The prefixes that the addresses of a group's nodes lie in. An empty list would let nobody in, or everybody: who
/// could tell.
fn group_within(name: &Word, within: &Spanned<DeValue<'_>>, findings: &mut Findings<'_>) -> Vec<Word> {
    let DeValue::Array(items) = within.get_ref() else {
        let message = format!("\"within\" is {}, not a list", kind(within.get_ref()));
        findings.error(
            &within.span(),
            message,
            Some("write within = [\"PREFIX\"]".into()),
        );
        return Vec::new();
    };
    if items.is_empty() {
        let message = format!("group \"{}\" has an empty \"within\"", name.text);
        let hint = "name prefixes, or leave \"within\" out";
        findings.error(&within.span(), message, Some(hint.into()));
    }
    let words = items
        .iter()
        .filter_map(|item| word(item, "a prefix of \"within\"", findings));
    words.collect()
}

fn group_word(item: &Spanned<DeValue<'_>>, findings: &mut Findings<'_>) -> Option<Word> {
    if let DeValue::Table(table) = item.get_ref() {
        let (message, hint) = match ["file", "nodes"].map(|key| table.contains_key(key)) {
            [true, _] => (
                "a list file is a group of its own",
                "give it a name under [groups], and name it here with @",
            ),
            [_, true] => (
                "the nodes of a selector are a group of their own",
                "give it a name under [groups], and name it here with @",
            ),
            _ => (
                "a temporary entry cannot stand in a group",
                "put it into an allow or deny list",
            ),
        };
        findings.error(&item.span(), message, Some(hint.into()));
        return None;
    }
    word(item, "an entry of a group", findings)
}

fn read_service(service: &Spanned<DeValue<'_>>, findings: &mut Findings<'_>) -> Option<Service> {
    let DeValue::Table(table) = service.get_ref() else {
        let message = format!("a service is {}, not a table", kind(service.get_ref()));
        findings.error(
            &service.span(),
            message,
            Some("each service begins with [[service]]".into()),
        );
        return None;
    };
    known_keys(
        table,
        "a service",
        &["name", "ports", "allow", "deny", "limits", "limit"],
        findings,
    );
    let name = read_name(table, service.span(), "service", "payments-api", findings);
    let shown = shown(name.as_ref());
    let ports = match table.get("ports") {
        Some(ports) => read_ports(ports, &format!("service \"{shown}\""), None, findings),
        None => {
            let span = name.as_ref().map_or(service.span(), |name| name.span.clone());
            findings.error(
                &span,
                format!("service \"{shown}\" has no ports"),
                Some(PORTS_HINT.into()),
            );
            Vec::new()
        }
    };
    let mut list = |key| {
        table
            .get(key)
            .map_or(Vec::new(), |list| entries(list, key, findings))
    };
    let (allow, deny) = (list("allow"), list("deny"));
    let limits = table.get("limits");
    let limits = limits.and_then(|limits| read_limits(limits, "service.limits", findings));
    let header = "limits for some sources begin with [[service.limit]], for everybody with [service.limits]";
    let groups = tables(table, "limit", header, findings).iter();
    let groups = groups.filter_map(|limit| read_limit(limit, findings)).collect();
    let name = name.unwrap_or(Word {
        text: String::new(),
        span: service.span(),
    });
    Some(Service {
        name,
        ports,
        allow,
        deny,
        limits,
        groups,
    })
}

fn read_egress(rule: &Spanned<DeValue<'_>>, findings: &mut Findings<'_>) -> Option<Egress> {
    let DeValue::Table(table) = rule.get_ref() else {
        let message = format!("an egress rule is {}, not a table", kind(rule.get_ref()));
        findings.error(&rule.span(), message, Some(EGRESS_HEADER.into()));
        return None;
    };
    known_keys(
        table,
        "an egress rule",
        &["name", "to", "ports", "deny"],
        findings,
    );
    let name = read_name(table, rule.span(), "egress rule", "backup", findings);
    let label = format!("egress rule \"{}\"", shown(name.as_ref()));
    let every = "leave \"ports\" out for every port and protocol";
    let ports = table
        .get("ports")
        .map(|ports| read_ports(ports, &label, Some(every), findings));
    let mut list = |key| {
        table
            .get(key)
            .map_or(Vec::new(), |list| entries(list, key, findings))
    };
    let (to, deny) = (list("to"), list("deny"));
    let name = name.unwrap_or(Word {
        text: String::new(),
        span: rule.span(),
    });
    Some(Egress {
        name,
        ports,
        to,
        deny,
    })
}

fn shown(name: Option<&Word>) -> &str {
    name.map_or("?", |name| &name.text)
}

/// The name of a service or an egress rule, as far as it has one.
fn read_name(
    table: &DeTable<'_>,
    span: Span,
    what: &str,
    example: &str,
    findings: &mut Findings<'_>,
) -> Option<Word> {
    let Some(name) = table.get("name") else {
        let hint = format!("write name = \"{example}\"");
        findings.error(&span, format!("this {what} has no name"), Some(hint));
        return None;
    };
    let name = word(name, "name", findings)?;
    if !is_name(&name.text) {
        let article = if what.starts_with('e') { "an" } else { "a" };
        let message = format!("\"{}\" cannot name {article} {what}", name.text);
        findings.error(&name.span, message, Some(NAME_HINT.into()));
    }
    Some(name)
}

const PORTS_HINT: &str = "write ports = [\"tcp/8443\"]";

/// A list of ports, which is not empty. `label` says whose.
fn read_ports(
    ports: &Spanned<DeValue<'_>>,
    label: &str,
    if_empty: Option<&str>,
    findings: &mut Findings<'_>,
) -> Vec<Word> {
    let DeValue::Array(items) = ports.get_ref() else {
        let hint = match ports.get_ref() {
            DeValue::String(text) => format!("write ports = [\"{text}\"]"),
            _ => PORTS_HINT.into(),
        };
        let message = format!("\"ports\" is {}, not a list", kind(ports.get_ref()));
        findings.error(&ports.span(), message, Some(hint));
        return Vec::new();
    };
    if items.is_empty() {
        let hint = if_empty.unwrap_or(PORTS_HINT);
        findings.error(&ports.span(), format!("{label} has no ports"), Some(hint.into()));
    }
    items
        .iter()
        .filter_map(|port| word(port, "a port", findings))
        .collect()
}
