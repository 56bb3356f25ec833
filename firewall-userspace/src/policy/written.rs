//! A policy as written: the TOML tree read into words with their spans. Unknown keys and wrong types end here;
//! what the words mean is for the next steps.

mod entries;

use super::diagnostic::{Findings, did_you_mean};
use super::source::{NAME_HINT, is_name};
use entries::{entries, kind, word};
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
    pub default_allow: bool,
    pub deny: Vec<Entry>,
    /// In the order of the file.
    pub groups: Vec<Group>,
    pub services: Vec<Service>,
}

/// An entry of an allow or deny list.
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
}

#[derive(Debug)]
pub struct Service {
    pub name: Word,
    pub ports: Vec<Word>,
    pub allow: Vec<Entry>,
    pub deny: Vec<Entry>,
}

/// Reads the whole tree; what is wrong goes to `findings` and is left out.
pub fn read(root: &Spanned<DeTable<'_>>, findings: &mut Findings<'_>) -> Written {
    let table = root.get_ref();
    known_keys(
        table,
        "the policy",
        &["version", "deny", "defaults", "groups", "service"],
        findings,
    );
    version(table, findings);
    let mut written = Written::default();
    if let Some(deny) = table.get("deny") {
        written.deny = entries(deny, "deny", findings);
    }
    if let Some(defaults) = table.get("defaults") {
        written.default_allow = default_allow(defaults, findings);
    }
    if let Some(groups) = table.get("groups") {
        written.groups = read_groups(groups, findings);
    }
    match table
        .get("service")
        .map(|services| (services.get_ref(), services.span()))
    {
        None => {}
        Some((DeValue::Array(services), _)) => {
            written.services = services
                .iter()
                .filter_map(|service| read_service(service, findings))
                .collect();
        }
        Some((value, span)) => {
            let hint = Some("each service begins with [[service]]".into());
            findings.error(
                &span,
                format!("\"service\" is {}, not a list of tables", kind(value)),
                hint,
            );
        }
    }
    written
}

fn known_keys(table: &DeTable<'_>, of: &str, known: &[&'static str], findings: &mut Findings<'_>) {
    for key in table.keys() {
        let name = key.get_ref().as_ref();
        if !known.contains(&name) {
            let message = format!("unknown key \"{name}\" in {of} ({})", known.join(", "));
            findings.error(
                &key.span(),
                message,
                did_you_mean(name, "", known.iter().copied()),
            );
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

fn default_allow(defaults: &Spanned<DeValue<'_>>, findings: &mut Findings<'_>) -> bool {
    let DeValue::Table(table) = defaults.get_ref() else {
        let message = format!("\"defaults\" is {}, not a table", kind(defaults.get_ref()));
        findings.error(
            &defaults.span(),
            message,
            Some("write [defaults], and ingress = \"deny\" below it".into()),
        );
        return false;
    };
    known_keys(table, "[defaults]", &["ingress"], findings);
    let Some(ingress) = table
        .get("ingress")
        .and_then(|value| word(value, "ingress", findings))
    else {
        return false;
    };
    match ingress.text.as_str() {
        "deny" => false,
        "allow" => true,
        other => {
            let hint = did_you_mean(other, "", ["deny", "allow"]);
            findings.error(
                &ingress.span,
                format!("unknown default \"{other}\" (\"deny\" or \"allow\")"),
                hint,
            );
            false
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
            DeValue::Table(file) => {
                known_keys(file, "a group", &["file"], findings);
                match file.get("file") {
                    Some(path) => match word(path, "file", findings) {
                        Some(path) => Content::File(path),
                        None => Content::Words(Vec::new()),
                    },
                    None => {
                        let hint = Some("write { file = \"lists/name.txt\" }".into());
                        findings.error(
                            &value.span(),
                            format!("group \"{}\" has no \"file\"", name.text),
                            hint,
                        );
                        Content::Words(Vec::new())
                    }
                }
            }
            other => {
                let message = format!("group \"{}\" is {}, not a list", name.text, kind(other));
                let hint = "write [\"PREFIX\", \"@group\"] or { file = \"lists/name.txt\" }";
                findings.error(&value.span(), message, Some(hint.into()));
                Content::Words(Vec::new())
            }
        };
        read.push(Group { name, content });
    }
    read.sort_by_key(|group| group.name.span.start);
    read
}

fn group_word(item: &Spanned<DeValue<'_>>, findings: &mut Findings<'_>) -> Option<Word> {
    if let DeValue::Table(table) = item.get_ref() {
        let (message, hint) = match table.contains_key("file") {
            true => (
                "a list file is a group of its own",
                "give it a name under [groups], and name it here with @",
            ),
            false => (
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
    known_keys(table, "a service", &["name", "ports", "allow", "deny"], findings);
    let name = match table.get("name") {
        Some(name) => word(name, "name", findings),
        None => {
            findings.error(
                &service.span(),
                "this service has no name",
                Some("write name = \"payments-api\"".into()),
            );
            None
        }
    };
    if let Some(name) = name.as_ref().filter(|name| !is_name(&name.text)) {
        findings.error(
            &name.span,
            format!("\"{}\" cannot name a service", name.text),
            Some(NAME_HINT.into()),
        );
    }
    let shown = name.as_ref().map_or("?", |name| &name.text);
    let hint = "write ports = [\"tcp/8443\"]";
    let ports = match table.get("ports").map(|ports| (ports.get_ref(), ports.span())) {
        Some((DeValue::Array(ports), span)) => {
            if ports.is_empty() {
                findings.error(
                    &span,
                    format!("service \"{shown}\" has no ports"),
                    Some(hint.into()),
                );
            }
            ports
                .iter()
                .filter_map(|port| word(port, "a port", findings))
                .collect()
        }
        Some((other, span)) => {
            let hint = match other {
                DeValue::String(text) => format!("write ports = [\"{text}\"]"),
                _ => hint.into(),
            };
            findings.error(
                &span,
                format!("\"ports\" is {}, not a list", kind(other)),
                Some(hint),
            );
            Vec::new()
        }
        None => {
            let span = name.as_ref().map_or(service.span(), |name| name.span.clone());
            findings.error(
                &span,
                format!("service \"{shown}\" has no ports"),
                Some(hint.into()),
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
    let name = name.unwrap_or(Word {
        text: String::new(),
        span: service.span(),
    });
    Some(Service {
        name,
        ports,
        allow,
        deny,
    })
}
