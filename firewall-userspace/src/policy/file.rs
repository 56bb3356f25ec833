//! The policy file: from its text to the model, or to all that is wrong with it.
//!
//! A policy is taken whole or refused. Errors are what has no meaning or two of them; warnings are what is
//! legal but surely a mistake. TOML is read by the `toml` crate into a tree with spans ([`super::written`]);
//! groups ([`super::groups`]), lists ([`super::rules`]), ports ([`super::ports`]) and limits ([`super::limits`]) give it its
//! meaning.

use super::claims::{self, Claim};
pub use super::diagnostic::{Diagnostic, PolicyError};
use super::diagnostic::{Findings, Text, did_you_mean};
use super::ephemeral::UdpRange;
use super::groups::{self, Groups, NodeGroup, Resolve};
use super::limits::Limits;
use super::model::{Action, EgressId, Owner, Place, Policy, Service, ServiceId};
pub use super::rules::TemporaryEntry;
use super::rules::{List, Rules};
use super::written::{self, Word};
use super::{cover, egress, limits, ports};
use crate::fleet::selector::Selector;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toml::de::DeTable;

/// A policy that was read, and what there is to say about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What makes it a document of a fleet.
    pub header: Option<Header>,
    pub policy: Policy,
    /// What the file says of packets that no service names, if it says anything.
    pub default_ingress: Option<Action>,
    pub warnings: Vec<Diagnostic>,
    pub text: String,
    /// List files that were read, to be watched.
    pub files: Vec<PathBuf>,
    /// Entries that end by themselves, in force until then.
    pub temporary: Vec<TemporaryEntry>,
    /// Groups of nodes, whose addresses come from elsewhere and change by themselves.
    pub node_groups: Vec<NodeGroup>,
    /// Of UDP, as services name them.
    pub udp_ranges: Vec<UdpRange>,
    /// Temporary entries that have ended: not in the policy, to be taken out of the file.
    pub expired: Vec<TemporaryEntry>,
}

/// The name of a document, and the nodes that it is meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub name: String,
    pub nodes: Selector,
    pub place: Place,
}

/// Errors that one report shows.
const MAX_ERRORS: usize = 50;

/// Reads and parses a policy file. `now` is in unix seconds; entries whose `until` is not after it are left out.
///
/// # Errors
/// All findings of one pass; a file that cannot be read is one.
pub fn load(path: &Path, now: u64) -> Result<Loaded, PolicyError> {
    let refuse = |message: String| PolicyError {
        errors: vec![Diagnostic::whole_file(path, message)],
    };
    let bytes = groups::read(path).map_err(|error| refuse(format!("cannot read the policy: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|&&b| b == b'\n')
            .count()
            + 1;
        refuse(format!("line {line} is not UTF-8"))
    })?;
    parse(&text, path, now)
}

/// Parses the text of a policy. `path` is for messages; list files are relative to its folder.
///
/// # Errors
/// All findings of one pass.
pub fn parse(text: &str, path: &Path, now: u64) -> Result<Loaded, PolicyError> {
    parse_with(text, path, now, &mut groups::read)
}

/// [`parse`] with list files and nodes from elsewhere: for a policy that is kept together with its lists, and for the
/// documents of a fleet.
///
/// # Errors
/// All findings of one pass.
pub fn parse_with(
    text: &str,
    path: &Path,
    now: u64,
    resolve: &mut dyn Resolve,
) -> Result<Loaded, PolicyError> {
    let mut findings = Findings::new(Text::new(path, text));
    let (root, syntax) = DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        for error in syntax {
            let span = error.span().unwrap_or(text.len()..text.len());
            findings.error(&span, error.message(), None);
        }
        return Err(refused(findings));
    }
    let written = written::read(&root, &mut findings);
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut groups = Groups::resolve(&written.groups, folder, resolve, &mut findings);
    let mut rules = Rules::default();
    let own = List {
        owner: Owner::Policy,
        name: "",
        action: Action::Deny,
    };
    rules.list(own, &written.deny, now, &mut groups, &mut findings);
    for (index, service) in written.services.iter().enumerate() {
        // More than 65,535 services are refused below.
        let list = |action| List {
            owner: Owner::Service(ServiceId(index as u16)),
            name: &service.name.text,
            action,
        };
        rules.list(list(Action::Deny), &service.deny, now, &mut groups, &mut findings);
        rules.list(
            list(Action::Allow),
            &service.allow,
            now,
            &mut groups,
            &mut findings,
        );
    }
    for (index, rule) in written.egress.iter().enumerate() {
        let list = |action| List {
            owner: Owner::Egress(EgressId(index as u16)),
            name: &rule.name.text,
            action,
        };
        rules.list(list(Action::Deny), &rule.deny, now, &mut groups, &mut findings);
        rules.list(list(Action::Allow), &rule.to, now, &mut groups, &mut findings);
    }
    let mut names = Names::default();
    let (mut services, udp_ranges) = services(&written.services, &mut names, &mut findings);
    limits::read::read(&written, &mut services, &mut groups, &mut findings);
    let egress = egress::read(&written.egress, &mut names, &mut findings);
    if !findings.errors.is_empty() {
        return Err(refused(findings));
    }
    let files = std::mem::take(&mut groups.files);
    let node_groups = std::mem::take(&mut groups.node_groups);
    let mut policy = Policy {
        default_allow: written.default_ingress == Some(Action::Allow),
        egress_deny: written.egress_deny.is_some(),
        services,
        egress,
        rules: rules.drafts.iter().map(|draft| draft.rule.clone()).collect(),
        lists: groups.lists.clone(),
    };
    limits::read::check(&policy, &written, &rules.drafts, &mut findings);
    if !findings.errors.is_empty() {
        return Err(refused(findings));
    }
    groups.warn(&mut findings);
    keep_used_lists(&mut policy);
    cover::warn(&policy, &rules.drafts, &mut findings);
    egress::warn(&policy, &written, &mut findings);
    groups::sort(&mut findings.warnings, &findings.text.path);
    if findings.more_warnings > 0 {
        let message = format!("{} more warnings are not shown", findings.more_warnings);
        findings.warnings.push(Diagnostic::whole_file(path, message));
    }
    let header = written.header.as_ref().map(|header| Header {
        name: header.name.text.clone(),
        nodes: header.nodes.clone(),
        place: findings.text.place(header.name.span.start),
    });
    Ok(Loaded {
        header,
        policy,
        default_ingress: written.default_ingress,
        warnings: findings.warnings,
        text: text.to_string(),
        files,
        node_groups,
        udp_ranges,
        temporary: rules.temporary,
        expired: rules.expired,
    })
}

fn refused(findings: Findings<'_>) -> PolicyError {
    let Findings {
        text,
        mut errors,
        more_errors,
        ..
    } = findings;
    groups::sort(&mut errors, &text.path);
    if errors.len() > MAX_ERRORS {
        let more = errors.len() - MAX_ERRORS + more_errors;
        errors.truncate(MAX_ERRORS);
        errors.push(Diagnostic::whole_file(
            Path::new(&text.path),
            format!("{more} more errors are not shown"),
        ));
    }
    PolicyError { errors }
}

/// Names of services and egress rules so far, and where each is given. They share one space: a name stands in commands
/// and labels for one thing.
#[derive(Default)]
pub(super) struct Names<'a>(HashMap<&'a str, (&'static str, u32)>);

impl<'a> Names<'a> {
    /// Takes a name for a `what`; one that is taken is an error.
    pub(super) fn take(&mut self, what: &'static str, name: &'a Word, findings: &mut Findings<'_>) -> Place {
        let place = findings.text.place(name.span.start);
        if name.text.is_empty() {
            return place;
        }
        if let Some((other, line)) = self.0.get(name.text.as_str()) {
            let (message, hint) = if *other == what {
                (
                    format!("{what} \"{}\" is defined already (line {line})", name.text),
                    "give it another name, or join the two",
                )
            } else {
                (
                    format!("{what} \"{}\" has the name of a {other} (line {line})", name.text),
                    "services and egress rules are told apart by their names: give it another",
                )
            };
            findings.error(&name.span, message, Some(hint.into()));
        } else {
            self.0.insert(&name.text, (what, place.line));
        }
        place
    }
}

fn services<'a>(
    written: &'a [written::Service],
    names: &mut Names<'a>,
    findings: &mut Findings<'_>,
) -> (Vec<Service>, Vec<UdpRange>) {
    let labels: Vec<String> = written
        .iter()
        .map(|service| format!("service \"{}\"", service.name.text))
        .collect();
    let mut services = Vec::new();
    let mut all = Vec::new();
    for (index, service) in written.iter().enumerate() {
        let place = names.take("service", &service.name, findings);
        claim(&service.ports, index, &labels[index], &mut all, findings);
        services.push(Service {
            name: service.name.text.clone(),
            ports_text: service.ports.iter().map(|word| word.text.clone()).collect(),
            ports: Vec::new(),
            place,
            limits: Limits::default(),
            groups: Vec::new(),
        });
    }
    if let Some(service) = written.get(usize::from(u16::MAX)) {
        findings.error(
            &service.name.span,
            "more than 65,535 services",
            Some("an image numbers them in 16 bits".into()),
        );
    }
    claims::check(&mut all, &labels, findings);
    for (index, ranges) in claims::merge(&all, written.len()).into_iter().enumerate() {
        services[index].ports = ranges;
    }
    (services, all.iter().filter_map(udp_range).collect())
}

fn udp_range(claim: &Claim<'_>) -> Option<UdpRange> {
    let (first, last) = claim.range;
    Some(UdpRange {
        service: ServiceId(claim.service as u16),
        ports: ports::udp(first)?..=ports::udp(last)?,
        span: claim.word.span.clone(),
    })
}

/// What the ports of `owner`, called `label`, claim.
pub(super) fn claim<'a>(
    ports: &'a [Word],
    owner: usize,
    label: &str,
    claims: &mut Vec<Claim<'a>>,
    findings: &mut Findings<'_>,
) {
    for word in ports {
        match ports::parse(&word.text) {
            Ok(ports) => {
                if let Some(note) = ports.note {
                    findings.warn(&word.span, note, None);
                }
                claims.extend(ports.ranges.into_iter().map(|range| Claim {
                    range,
                    service: owner,
                    word,
                }));
            }
            Err(error) => {
                let span = inside(word, &error.at, findings);
                findings.error(&span, format!("{label}: {}", error.message), error.hint);
            }
        }
    }
}

/// The span of part of a word; of the whole word if it is written with escapes.
pub(super) fn inside(
    word: &Word,
    at: &std::ops::Range<usize>,
    findings: &Findings<'_>,
) -> std::ops::Range<usize> {
    let raw = &findings.text.text[word.span.clone()];
    let start = word.span.start + (raw.len() - word.text.len().min(raw.len())) / 2;
    match findings.text.text.get(start..start + word.text.len()) {
        Some(text) if text == word.text && !at.is_empty() => start + at.start..start + at.end,
        _ => word.span.clone(),
    }
}

/// Leaves out lists that no rule and no limit refers to.
fn keep_used_lists(policy: &mut Policy) {
    let mut new_index: HashMap<u32, u32> = HashMap::new();
    let mut kept = Vec::new();
    let of_rules = policy.rules.iter_mut().flat_map(|rule| &mut rule.lists);
    let of_limits = policy.services.iter_mut().flat_map(|service| &mut service.groups);
    for list in of_rules.chain(of_limits.flat_map(|group| &mut group.lists)) {
        *list = *new_index.entry(*list).or_insert_with(|| {
            kept.push(Arc::clone(&policy.lists[*list as usize]));
            kept.len() as u32 - 1
        });
    }
    policy.lists = kept;
}

/// `did you mean "payments-api"?` for a `what` that the policy does not have, or the names that it has.
pub fn suggest_name<'a>(
    what: &str,
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Option<String> {
    did_you_mean(name, "", known.clone()).or_else(|| {
        let names: Vec<&str> = known.take(13).collect();
        match names.len() {
            0 => Some(format!("the policy has no {what}s")),
            1..=12 => Some(format!("the policy has {}", names.join(", "))),
            _ => Some(format!("the policy has {}, and more", names[..12].join(", "))),
        }
    })
}

#[cfg(test)]
mod tests;
