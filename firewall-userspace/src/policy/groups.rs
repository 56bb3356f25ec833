//! Groups: what each holds when those it names are followed. Prefixes are never copied: a group is the set of
//! lists that it and its members stand on.

use super::diagnostic::{Diagnostic, Findings, did_you_mean};
use super::lists;
use super::model::{Place, PrefixList};
use super::source::{self, Source};
use super::written::{self, Content, Word};
use crate::fleet::selector::Selector;
use ipnetwork::IpNetwork;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Deepest nesting: the walk is recursive.
const MAX_DEPTH: usize = 64;

/// Lists that all groups together may stand on: each group counts those of the groups in it, so a short text could
/// make them many.
const MAX_LISTS: usize = 1 << 20;

/// All groups of a policy, resolved, and the lists they stand on.
pub struct Groups<'a> {
    written: &'a [written::Group],
    by_name: HashMap<&'a str, usize>,
    resolved: Vec<State>,
    used: Vec<bool>,
    /// Every list of the policy, also of what turns out to be unused.
    pub lists: Vec<Arc<PrefixList>>,
    literals: HashMap<IpNetwork, u32>,
    /// List files in the order they were read.
    pub files: Vec<PathBuf>,
    by_file: HashMap<PathBuf, Option<u32>>,
    /// What all groups so far stand on, counted with repetition.
    stands_on: usize,
    /// In the order in which they were resolved.
    pub node_groups: Vec<NodeGroup>,
    /// Lists of nodes, and whether anybody here knows who they are.
    of_nodes: HashSet<u32>,
    nodes_known: bool,
    resolve: &'a mut dyn Resolve,
}

/// A group of nodes, as its policy says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeGroup {
    pub name: String,
    pub nodes: Selector,
    /// Prefixes that their addresses have to lie in.
    pub within: Option<Vec<IpNetwork>>,
    pub place: Place,
}

/// What groups are made of beyond the text of their policy. A function that reads files knows no nodes.
pub trait Resolve {
    /// The content of a list file. The path is that of the policy's folder, joined with what the policy says.
    fn file(&mut self, path: &Path) -> std::io::Result<Vec<u8>>;

    /// The addresses of the nodes that a selector names, those only that count: with `within`, which the policy says,
    /// addresses outside of it are left out in any case. `None`: whoever asks knows nothing of nodes.
    fn nodes(&mut self, nodes: &Selector, within: Option<&[IpNetwork]>) -> Option<Vec<IpAddr>>;
}

impl<F: FnMut(&Path) -> std::io::Result<Vec<u8>>> Resolve for F {
    fn file(&mut self, path: &Path) -> std::io::Result<Vec<u8>> {
        self(path)
    }

    fn nodes(&mut self, _: &Selector, _: Option<&[IpNetwork]>) -> Option<Vec<IpAddr>> {
        None
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    New,
    Open,
    Done(Vec<u32>),
}

impl<'a> Groups<'a> {
    /// List files are relative to `folder`.
    pub fn resolve(
        written: &'a [written::Group],
        folder: &Path,
        resolve: &'a mut dyn Resolve,
        findings: &mut Findings<'_>,
    ) -> Groups<'a> {
        let mut groups = Groups {
            written,
            by_name: written
                .iter()
                .enumerate()
                .map(|(at, group)| (group.name.text.as_str(), at))
                .collect(),
            resolved: vec![State::New; written.len()],
            used: vec![false; written.len()],
            lists: Vec::new(),
            literals: HashMap::new(),
            files: Vec::new(),
            by_file: HashMap::new(),
            stands_on: 0,
            node_groups: Vec::new(),
            of_nodes: HashSet::new(),
            nodes_known: true,
            resolve,
        };
        let mut path = Vec::new();
        for at in 0..written.len() {
            groups.visit(at, &mut path, folder, findings);
        }
        groups
    }

    /// The lists behind a group that a rule names; counts it as used. An unknown name is an error at `span`.
    pub fn find(&mut self, name: &str, span: &Range<usize>, findings: &mut Findings<'_>) -> Option<Vec<u32>> {
        let Some(&at) = self.by_name.get(name) else {
            self.unknown(name, span, findings);
            return None;
        };
        self.used[at] = true;
        match &self.resolved[at] {
            State::Done(lists) => Some(lists.clone()),
            State::New | State::Open => None,
        }
    }

    /// Whether any of these lists holds nodes of a fleet, so that it changes by itself.
    pub fn have_nodes(&self, lists: &[u32]) -> bool {
        lists.iter().any(|list| self.of_nodes.contains(list))
    }

    /// The list of a single prefix, the same for the same prefix.
    pub fn literal(&mut self, prefix: IpNetwork) -> u32 {
        if let Some(&index) = self.literals.get(&prefix) {
            return index;
        }
        let mut list = PrefixList::default();
        push(&mut list, prefix);
        let index = self.add(list);
        self.literals.insert(prefix, index);
        index
    }

    pub fn add(&mut self, list: PrefixList) -> u32 {
        self.lists.push(Arc::new(list));
        self.lists.len() as u32 - 1
    }

    /// Groups that no rule reaches, and groups without a prefix.
    pub fn warn(&mut self, findings: &mut Findings<'_>) {
        // A group is used if a used group names it.
        let mut open: Vec<usize> = (0..self.used.len()).filter(|&at| self.used[at]).collect();
        while let Some(at) = open.pop() {
            let Content::Words(words) = &self.written[at].content else {
                continue;
            };
            for word in words {
                if let Some(&member) = word
                    .text
                    .strip_prefix('@')
                    .and_then(|name| self.by_name.get(name))
                    && !std::mem::replace(&mut self.used[member], true)
                {
                    open.push(member);
                }
            }
        }
        for (at, group) in self.written.iter().enumerate() {
            let name = &group.name;
            if let State::Done(lists) = &self.resolved[at]
                && lists.iter().all(|&list| self.lists[list as usize].is_empty())
                && (self.nodes_known || !self.have_nodes(lists))
            {
                findings.warn(
                    &name.span,
                    format!("group \"{}\" is empty: it matches nobody", name.text),
                    None,
                );
            }
            if !self.used[at] {
                findings.warn(&name.span, format!("group \"{}\" is never used", name.text), None);
            }
        }
    }

    fn unknown(&self, name: &str, span: &Range<usize>, findings: &mut Findings<'_>) {
        let hint = did_you_mean(name, "@", self.by_name.keys().copied()).unwrap_or_else(|| {
            let mut names: Vec<String> = self.by_name.keys().map(|name| format!("@{name}")).collect();
            names.sort();
            match names.len() {
                0 => "groups are named under [groups]".into(),
                1..=12 => format!("the policy has {}", names.join(", ")),
                _ => format!(
                    "the policy has {}, and {} more",
                    names[..12].join(", "),
                    names.len() - 12
                ),
            }
        });
        findings.error(span, format!("unknown group \"@{name}\""), Some(hint));
    }

    fn visit(&mut self, at: usize, path: &mut Vec<usize>, folder: &Path, findings: &mut Findings<'_>) {
        if self.resolved[at] != State::New {
            return;
        }
        self.resolved[at] = State::Open;
        path.push(at);
        let lists = match &self.written[at].content {
            Content::File(file) => self.file(file, folder, findings).into_iter().collect(),
            Content::Words(words) => self.words(words, path, folder, findings),
            Content::Nodes { nodes, within, span } => {
                vec![self.nodes(at, nodes, within.as_deref(), span, findings)]
            }
        };
        path.pop();
        self.resolved[at] = State::Done(lists);
    }

    fn words(
        &mut self,
        words: &[Word],
        path: &mut Vec<usize>,
        folder: &Path,
        findings: &mut Findings<'_>,
    ) -> Vec<u32> {
        let mut seen: HashMap<Source, u32> = HashMap::new();
        let mut own = PrefixList::default();
        let mut nested: Vec<u32> = Vec::new();
        for word in words {
            if self.stands_on + nested.len() > MAX_LISTS {
                let message = format!("the groups hold each other more than {MAX_LISTS} times");
                findings.error(&word.span, message, None);
                break;
            }
            let Some(entry) = literal(word, findings) else {
                continue;
            };
            let line = findings.text.place(word.span.start).line;
            if let Some(first) = seen.insert(entry.clone(), line) {
                let message = format!("\"{}\" stands in this group already (line {first})", word.text);
                findings.warn(&word.span, message, None);
                continue;
            }
            match entry {
                Source::Any => {
                    let hint = "write \"any\" in the allow list of the service itself";
                    findings.error(&word.span, "\"any\" cannot stand in a group", Some(hint.into()));
                }
                Source::Prefix(prefix) => push(&mut own, prefix),
                Source::Group(name) => match self.by_name.get(name.as_str()) {
                    None => self.unknown(&name, &word.span, findings),
                    Some(&member) => {
                        if let State::Open = self.resolved[member] {
                            self.cycle(member, path, word, findings);
                        } else if path.len() >= MAX_DEPTH {
                            let message = format!("groups nest deeper than {MAX_DEPTH}");
                            findings.error(&word.span, message, None);
                        } else {
                            self.visit(member, path, folder, findings);
                            if let State::Done(lists) = &self.resolved[member] {
                                nested.extend(lists);
                            }
                        }
                    }
                },
            }
        }
        let mut lists = Vec::new();
        if !own.is_empty() {
            lists.push(self.add(own));
        }
        let mut known = HashSet::new();
        lists.extend(nested.into_iter().filter(|&list| known.insert(list)));
        self.stands_on += lists.len();
        lists
    }

    fn cycle(&self, member: usize, path: &[usize], word: &Word, findings: &mut Findings<'_>) {
        let start = path.iter().position(|&at| at == member).unwrap_or(0);
        let name = |at: usize| self.written[at].name.text.as_str();
        let way: Vec<&str> = path[start..]
            .iter()
            .chain([&member])
            .map(|&at| name(at))
            .collect();
        let message = format!("group \"{}\" contains itself: {}", name(member), way.join(" -> "));
        findings.error(&word.span, message, Some("take one of these names out".into()));
    }

    /// The list of the addresses that the nodes of a selector have.
    fn nodes(
        &mut self,
        at: usize,
        nodes: &Selector,
        within: Option<&[Word]>,
        span: &Range<usize>,
        findings: &mut Findings<'_>,
    ) -> u32 {
        let within: Option<Vec<IpNetwork>> = within.map(|words| {
            let prefixes = words.iter().filter_map(|word| match literal(word, findings)? {
                Source::Prefix(prefix) => Some(prefix),
                Source::Any | Source::Group(_) => {
                    let message = format!("\"{}\" is not a prefix", word.text);
                    let hint = "\"within\" lists prefixes such as \"10.0.0.0/8\"";
                    findings.error(&word.span, message, Some(hint.into()));
                    None
                }
            });
            prefixes.collect()
        });
        let name = &self.written[at].name;
        self.node_groups.push(NodeGroup {
            name: name.text.clone(),
            nodes: nodes.clone(),
            within: within.clone(),
            place: findings.text.place(name.span.start),
        });
        let Some(addresses) = self.resolve.nodes(nodes, within.as_deref()) else {
            self.nodes_known = false;
            let message =
                "who these nodes are is known to the agents of a fleet only: the group is empty here";
            findings.warn(span, message, None);
            return self.add_nodes(PrefixList::default());
        };
        let counts = |address: &IpAddr| {
            let inside = |within: &Vec<IpNetwork>| within.iter().any(|prefix| prefix.contains(*address));
            !address.is_unspecified()
                && !address.is_loopback()
                && !address.is_multicast()
                && within.as_ref().is_none_or(inside)
        };
        // In order, so that the same nodes give the same policy.
        let addresses: BTreeSet<IpAddr> = addresses.into_iter().filter(counts).collect();
        let mut list = PrefixList::default();
        for address in addresses {
            push(&mut list, IpNetwork::from(address));
        }
        self.add_nodes(list)
    }

    fn add_nodes(&mut self, list: PrefixList) -> u32 {
        let list = self.add(list);
        self.of_nodes.insert(list);
        list
    }

    fn file(&mut self, file: &Word, folder: &Path, findings: &mut Findings<'_>) -> Option<u32> {
        let path = folder.join(&file.text);
        if let Some(&known) = self.by_file.get(&path) {
            return known;
        }
        self.files.push(path.clone());
        let list = match self.resolve.file(&path) {
            Ok(bytes) => match lists::parse(&bytes, &path) {
                Ok(list) => {
                    findings.warnings.extend(list.warning);
                    Some(self.add(list.prefixes))
                }
                Err(errors) => {
                    findings.errors.extend(errors);
                    None
                }
            },
            Err(error) => {
                let message = format!("cannot read the list {}: {error}", path.display());
                let hint = file.text.is_empty().then_some("write the path of a file".into());
                let hint = hint.or_else(|| {
                    Path::new(&file.text)
                        .is_relative()
                        .then(|| "the path is relative to the policy file".into())
                });
                findings.error(&file.span, message, hint);
                None
            }
        };
        self.by_file.insert(path, list);
        list
    }
}

/// Bytes of the largest file that is read: some fifty million prefixes.
const MAX_FILE: u64 = 1 << 30;

/// A regular file of at most 1 GiB only: reading a pipe or a device would never end.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    if metadata.len() > MAX_FILE {
        return Err(std::io::Error::other("larger than 1 GiB"));
    }
    std::fs::read(path)
}

/// What an entry means, with the finding if it means nothing or too little.
pub fn literal(word: &Word, findings: &mut Findings<'_>) -> Option<Source> {
    match source::parse(&word.text) {
        Ok(parsed) => {
            if parsed.host_bits {
                let message = format!(
                    "host bits are set in \"{}\"; read as {}",
                    word.text, parsed.source
                );
                findings.warn(&word.span, message, Some(format!("write \"{}\"", parsed.source)));
            }
            Some(parsed.source)
        }
        Err(error) => {
            findings.error(&word.span, error.message, error.hint);
            None
        }
    }
}

pub fn push(list: &mut PrefixList, prefix: IpNetwork) {
    match prefix {
        IpNetwork::V4(network) => list.v4.push((network.ip().into(), network.prefix())),
        IpNetwork::V6(network) => list.v6.push((network.ip().into(), network.prefix())),
    }
}

/// Findings in the order of the file, those of list files behind.
pub fn sort(findings: &mut [Diagnostic], path: &str) {
    findings.sort_by_key(|found| (found.place.path != path, found.place.line, found.place.column));
}
