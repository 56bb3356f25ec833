//! The model compiled to an image: the layout that `firewall_common::image` reads.
//!
//! Prefixes become *classes*: sets of addresses that every rule treats alike. All prefixes are sorted once; a walk in
//! that order keeps the stack of prefixes around the present one, so the set of lists that cover an address is known
//! without a search. Sets are interned, each becomes a column of verdicts, equal columns become one class. The same
//! policy gives the same bytes: nothing here depends on hashing order, addresses or time.
//!
//! Precedence lives here and nowhere else. What comes in: the policy's deny list beats a service's deny list, that beats
//! its allow list; within a list the entry written first counts the packet. The order of services never matters.
//! Limits follow an allow: those of the group of the service that names the source, else those of the service.
//! What leaves: of all egress rules that hold the port, a deny beats every allow; among denies, and among allows, the
//! entry written first counts. So their order decides what is counted, never what passes.

mod limits;
mod rows;

use super::model::{Action, Owner, Policy, PrefixList, RuleId, ServiceId};
use super::trie::{self, Prefix};
use firewall_common::counter;
use firewall_common::image::{
    CLASSES, Cell, DIRECTORY_LEN, FLAG_DEFAULT_ALLOW, FLAG_EGRESS_DENY, FLAG_EGRESS_RULES, MAGIC, PAGE_SIZE,
    PortKey, field,
};
use firewall_common::limit::MAX_LOCAL;
use firewall_common::verdict::{Direction, Reason};
use limits::Scopes;
use rows::EgressRows;
use std::collections::HashMap;

/// A compiled policy. The same policy gives the same bytes.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Whole pages, see [`firewall_common::image`].
    pub image: Vec<u8>,
    /// BLAKE3 of `image`.
    pub digest: [u8; 32],
    /// What each ending means; the index is the number in counters and events.
    pub endings: Vec<Ending>,
    /// What has state of its own, by its number in the image.
    pub scopes: Vec<Scope>,
    pub stats: Stats,
}

/// One thing that limits keep state for: the limits of a service, or those of a group within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// `api`, `api/@partners`: by this the state of a scope is found again under the next policy.
    pub name: String,
    pub service: ServiceId,
    /// Tables that it needs, a bit each: by [`firewall_common::limit::Kind`], and
    /// [`firewall_common::limit::COUNTS`].
    pub needs: u8,
}

/// One way a packet can end under this policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    pub direction: Direction,
    /// `None`: a number that is never used.
    pub reason: Option<Reason>,
    pub service: Option<ServiceId>,
    pub rule: Option<RuleId>,
    /// Opens a connection.
    pub opens: bool,
    /// The record of the image that limits it, 0 for none; of an excess, the one that it exceeds.
    pub profile: u16,
}

/// What `check` and the metrics say of a compiled policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stats {
    pub services: usize,
    /// Egress rules.
    #[serde(default)]
    pub egress: usize,
    /// Entries of all lists.
    pub rules: usize,
    /// Limits: of services, and of groups of their sources.
    #[serde(default)]
    pub limits: usize,
    /// Distinct prefixes.
    pub prefixes_v4: usize,
    pub prefixes_v6: usize,
    pub classes: usize,
    pub image_bytes: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("the policy needs {needed} {what}, more than the {limit} that an image holds")]
    TooLarge {
        what: &'static str,
        needed: u64,
        limit: u64,
    },
}

/// Lists in all sets of lists together, while an image is made.
const MAX_MEMBERS: u64 = 1 << 24;

/// Bytes of the largest image: offsets in class tables reach twice as far.
const MAX_IMAGE: u64 = 1 << 32;

/// Compiles a policy to an image.
///
/// # Errors
/// [`CompileError::TooLarge`] when services, rows, endings or bytes exceed what the layout can number.
pub fn compile(policy: &Policy) -> Result<Compiled, CompileError> {
    limit("services", policy.services.len() as u64, u16::MAX as u64 - 1)?;
    let egress = EgressRows::new(policy);
    let first_egress = policy.services.len() + 1;
    let rows = first_egress + egress.sets.len();
    limit("rows of verdicts", rows as u64, u16::MAX as u64)?;
    limit("limits", Scopes::count(policy), u64::from(MAX_LOCAL))?;
    let scopes = Scopes::new(policy);
    let lists = used_lists(policy);
    let mut sets = Sets::default();
    let v4 = covers(&policy.lists, &lists, |list| &list.v4, &mut sets);
    let v6 = covers(&policy.lists, &lists, |list| &list.v6, &mut sets);
    limit("places in sets of lists", sets.size, MAX_MEMBERS)?;

    let mut verdicts = Verdicts::new(policy, &sets, &egress.sets, &scopes);
    let mut class_of: Vec<u32> = Vec::with_capacity(sets.members.len());
    for set in 0..sets.members.len() {
        class_of.push(verdicts.class(set));
        // At once, for each takes as much memory as there are rows.
        limit("classes", verdicts.columns.len() as u64, CLASSES as u64)?;
        limit("bytes", (verdicts.columns.len() * rows * 4) as u64, MAX_IMAGE)?;
    }

    let mut image = vec![0; field::EGRESS_DIRECTORY as usize + DIRECTORY_LEN as usize * 2];
    let services = (1..).zip(&policy.services);
    let services =
        services.flat_map(|(number, service)| service.ports.iter().map(move |range| (*range, number)));
    let leaving = egress
        .ports
        .iter()
        .map(|(range, row)| (*range, (first_egress + row) as u16));
    let mut blocks = Blocks::default();
    blocks.directory(&mut image, field::DIRECTORY, 0, services);
    blocks.directory(&mut image, field::EGRESS_DIRECTORY, first_egress as u16, leaving);
    let blocks = blocks.write(&mut image);
    let table = align(&mut image, 8);
    verdicts.write(&mut image);
    scopes.write(&verdicts.endings, verdicts.first_excess, &mut image);
    limit("bytes", image.len() as u64, MAX_IMAGE)?;
    let classes_of = |prefixes: Vec<(Prefix, u32)>| -> Vec<(Prefix, u32)> {
        prefixes
            .into_iter()
            .map(|(prefix, set)| (prefix, class_of[set as usize]))
            .collect()
    };
    let (prefixes_v4, prefixes_v6) = (v4.len(), v6.len());
    let v4 = trie::write(&classes_of(v4), class_of[0], &mut image);
    let v6 = trie::write(&classes_of(v6), class_of[0], &mut image);

    limit("bytes", image.len() as u64, MAX_IMAGE)?;
    let length = image.len() as u64;
    image.resize(image.len().next_multiple_of(PAGE_SIZE), 0);

    let endings = verdicts.endings;
    limit("endings", endings.len() as u64, 1 << 24)?;
    put64(&mut image, field::MAGIC, MAGIC);
    put32(&mut image, field::LAYOUT, firewall_common::LAYOUT_VERSION);
    put32(&mut image, field::FLAGS, flags(policy));
    put64(&mut image, field::LENGTH, length);
    put32(&mut image, field::ROWS, rows as u32);
    put32(&mut image, field::EGRESS_ROW, first_egress as u32);
    put32(&mut image, field::CLASSES, verdicts.columns.len() as u32);
    put32(&mut image, field::ENDINGS, endings.len() as u32);
    put32(&mut image, field::STRIDE, counter::stride(endings.len() as u32));
    put64(&mut image, field::VERDICTS, table);
    put64(&mut image, field::BLOCKS, blocks);
    put32(&mut image, field::V4_ROOT_BITS, v4.root_bits);
    put64(&mut image, field::V4_ROOT, v4.root);
    put32(&mut image, field::V6_ROOT_BITS, v6.root_bits);
    put64(&mut image, field::V6_ROOT, v6.root);

    Ok(Compiled {
        digest: *blake3::hash(&image).as_bytes(),
        stats: Stats {
            services: policy.services.len(),
            egress: policy.egress.len(),
            rules: policy.rules.len(),
            limits: scopes.list.len(),
            prefixes_v4,
            prefixes_v6,
            classes: verdicts.columns.len(),
            image_bytes: image.len(),
        },
        image,
        endings,
        scopes: scopes.list,
    })
}

fn limit(what: &'static str, needed: u64, limit: u64) -> Result<(), CompileError> {
    if needed > limit {
        Err(CompileError::TooLarge { what, needed, limit })
    } else {
        Ok(())
    }
}

fn flags(policy: &Policy) -> u32 {
    let judges_egress = policy.egress_deny || !policy.egress.is_empty();
    [
        (policy.default_allow, FLAG_DEFAULT_ALLOW),
        (policy.egress_deny, FLAG_EGRESS_DENY),
        (judges_egress, FLAG_EGRESS_RULES),
    ]
    .iter()
    .fold(0, |flags, (set, flag)| if *set { flags | flag } else { flags })
}

/// Whether each list is referred to by a rule or a limit; a group that nobody uses costs nothing.
fn used_lists(policy: &Policy) -> Vec<bool> {
    let mut used = vec![false; policy.lists.len()];
    let of_limits = policy.services.iter().flat_map(|service| &service.groups);
    let of_limits = of_limits.flat_map(|group| &group.lists);
    for list in policy.rules.iter().flat_map(|rule| &rule.lists).chain(of_limits) {
        used[*list as usize] = true;
    }
    used
}

/// Sets of lists, interned: number 0 is the empty one.
struct Sets {
    members: Vec<Vec<u32>>,
    numbers: HashMap<Vec<u32>, u32>,
    /// (set, list) -> the set with the list.
    with: HashMap<(u32, u32), u32>,
    /// Lists in all of them.
    size: u64,
}

impl Default for Sets {
    fn default() -> Self {
        Sets {
            members: vec![Vec::new()],
            numbers: HashMap::from([(Vec::new(), 0)]),
            with: HashMap::new(),
            size: 0,
        }
    }
}

impl Sets {
    /// Beyond [`MAX_MEMBERS`] nothing is right any more, nor is it used.
    fn with(&mut self, set: u32, list: u32) -> u32 {
        if self.size > MAX_MEMBERS {
            return set;
        }
        if let Some(number) = self.with.get(&(set, list)) {
            return *number;
        }
        let mut members = self.members[set as usize].clone();
        if let Err(position) = members.binary_search(&list) {
            members.insert(position, list);
        }
        let next = self.members.len() as u32;
        let number = *self.numbers.entry(members.clone()).or_insert(next);
        if number == next {
            self.size += members.len() as u64;
            self.members.push(members);
        }
        self.with.insert((set, list), number);
        number
    }
}

/// Distinct prefixes of one family in order, each with the set of lists that cover its addresses (those of the
/// longer prefixes inside of it aside).
fn covers<A: trie::Address>(
    lists: &[std::sync::Arc<PrefixList>],
    used: &[bool],
    family: impl Fn(&PrefixList) -> &Vec<(A, u8)>,
    sets: &mut Sets,
) -> Vec<(Prefix, u32)> {
    let count = lists
        .iter()
        .zip(used)
        .filter(|(_, used)| **used)
        .map(|(list, _)| family(list).len())
        .sum();
    let mut all: Vec<(A, u8, u32)> = Vec::with_capacity(count);
    for (number, list) in lists.iter().enumerate().filter(|(number, _)| used[*number]) {
        all.extend(
            family(list)
                .iter()
                .map(|(address, len)| (*address, *len, number as u32)),
        );
    }
    all.sort_unstable();

    let mut out: Vec<(Prefix, u32)> = Vec::with_capacity(all.len());
    // Prefixes around the present one, innermost last, with their sets.
    let mut around: Vec<(Prefix, u32)> = Vec::new();
    for (address, len, list) in all {
        let prefix = Prefix {
            address: address.top_aligned(),
            len,
        };
        while around.last().is_some_and(|(outer, _)| !outer.contains(&prefix)) {
            around.pop();
        }
        let outer = around.last().map_or(0, |(_, set)| *set);
        let set = sets.with(outer, list);
        match out.last_mut() {
            Some(last) if last.0 == prefix => {
                last.1 = set;
                if let Some(top) = around.last_mut() {
                    top.1 = set;
                }
            }
            _ => {
                out.push((prefix, set));
                around.push((prefix, set));
            }
        }
    }
    out
}

/// The verdict table under construction, a column per class.
struct Verdicts<'a> {
    policy: &'a Policy,
    sets: &'a Sets,
    /// Egress rules of each row of what leaves, ascending.
    egress: &'a [Vec<u32>],
    /// Rules that each list stands in; rules for `any` come under every address.
    rules_of: Vec<Vec<u32>>,
    any: Vec<u32>,
    scopes: &'a Scopes<'a>,
    columns: Vec<Vec<Cell>>,
    numbers: HashMap<Vec<u32>, u32>,
    endings: Vec<Ending>,
    /// The first ending of excess.
    first_excess: u32,
    ending_of: HashMap<(u8, u32, u32, u16), u32>,
}

const NO_RULE: u32 = u32::MAX;

impl<'a> Verdicts<'a> {
    fn new(policy: &'a Policy, sets: &'a Sets, egress: &'a [Vec<u32>], scopes: &'a Scopes<'a>) -> Self {
        let mut rules_of = vec![Vec::new(); policy.lists.len()];
        let mut any = Vec::new();
        for (number, rule) in policy.rules.iter().enumerate() {
            for list in &rule.lists {
                rules_of[*list as usize].push(number as u32);
            }
            if rule.any {
                any.push(number as u32);
            }
        }
        let mut endings = bare_endings();
        let first_excess = endings.len() as u32;
        endings.extend(scopes.endings());
        Verdicts {
            policy,
            sets,
            egress,
            rules_of,
            any,
            scopes,
            columns: Vec::new(),
            numbers: HashMap::new(),
            endings,
            first_excess,
            ending_of: HashMap::new(),
        }
    }

    /// The class of a set of lists.
    fn class(&mut self, set: usize) -> u32 {
        let mut rules = self.any.clone();
        let mut profiles = self.scopes.of_services.clone();
        for list in &self.sets.members[set] {
            rules.extend_from_slice(&self.rules_of[*list as usize]);
            for (service, profile) in &self.scopes.of_lists[*list as usize] {
                profiles[*service as usize] = *profile;
            }
        }
        rules.sort_unstable();
        let column = self.column(&rules, &profiles);
        let key: Vec<u32> = column.iter().map(|cell| cell.0).collect();
        let next = self.columns.len() as u32;
        let number = *self.numbers.entry(key).or_insert(next);
        if number == next {
            self.columns.push(column);
        }
        number
    }

    /// What rules (ascending, so the first written comes first) say in each row: no service, the services, what leaves.
    /// `profiles` are the limits of the services.
    fn column(&mut self, rules: &[u32], profiles: &[u16]) -> Vec<Cell> {
        let policy = self.policy;
        let services = policy.services.len();
        let mut denied_everywhere = None;
        let mut denied = vec![None; services];
        let mut allowed = vec![None; services];
        let mut egress_denied = vec![None; policy.egress.len()];
        let mut egress_allowed = vec![None; policy.egress.len()];
        for number in rules {
            let rule = &policy.rules[*number as usize];
            let winner = match (rule.owner, rule.action) {
                (Owner::Policy, _) => &mut denied_everywhere,
                (Owner::Service(service), Action::Deny) => &mut denied[service.0 as usize],
                (Owner::Service(service), Action::Allow) => &mut allowed[service.0 as usize],
                (Owner::Egress(egress), Action::Deny) => &mut egress_denied[egress.0 as usize],
                (Owner::Egress(egress), Action::Allow) => &mut egress_allowed[egress.0 as usize],
            };
            winner.get_or_insert(*number);
        }
        let mut column = Vec::with_capacity(services + 1 + self.egress.len());
        column.push(match denied_everywhere {
            Some(rule) => self.cell(Reason::Denied, None, Some(rule), 0),
            None => Cell::NO_MATCH,
        });
        for service in 0..services {
            let (reason, rule) = match (denied_everywhere, denied[service], allowed[service]) {
                (Some(rule), _, _) => (Reason::Denied, Some(rule)),
                (None, Some(rule), _) => (Reason::ServiceDenied, Some(rule)),
                (None, None, Some(rule)) => (Reason::Allowed, Some(rule)),
                (None, None, None) => (Reason::NotAllowed, None),
            };
            let profile = if reason == Reason::Allowed {
                profiles[service]
            } else {
                0
            };
            column.push(self.cell(reason, Some(service as u32), rule, profile));
        }
        for members in self.egress {
            let first = |winners: &[Option<u32>]| members.iter().find_map(|member| winners[*member as usize]);
            column.push(match (first(&egress_denied), first(&egress_allowed)) {
                (Some(rule), _) => self.cell(Reason::EgressDenied, None, Some(rule), 0),
                (None, Some(rule)) => self.cell(Reason::EgressAllowed, None, Some(rule), 0),
                (None, None) => Cell::NO_MATCH,
            });
        }
        column
    }

    fn cell(&mut self, reason: Reason, service: Option<u32>, rule: Option<u32>, profile: u16) -> Cell {
        let key = (
            reason.number(),
            service.unwrap_or(NO_RULE),
            rule.unwrap_or(NO_RULE),
            profile,
        );
        let next = self.endings.len() as u32;
        let ending = *self.ending_of.entry(key).or_insert(next);
        if ending == next {
            let direction = match reason {
                Reason::EgressAllowed | Reason::EgressDenied => Direction::Egress,
                _ => Direction::Ingress,
            };
            let ending = Ending {
                direction,
                reason: Some(reason),
                service: service.map(|service| ServiceId(service as u16)),
                rule: rule.map(RuleId),
                opens: false,
                profile,
            };
            self.endings.push(ending);
            if reason == Reason::Allowed {
                // What leaves from the service to those whom the rule allowed (`counter::ANSWER`), and what opens a
                // connection of theirs (`counter::OPENS`).
                self.endings.push(Ending {
                    direction: Direction::Egress,
                    reason: Some(Reason::Answer),
                    ..ending
                });
                self.endings.push(Ending {
                    opens: true,
                    ..ending
                });
            }
        }
        let cell = Cell::new(reason.number(), ending);
        if profile == 0 { cell } else { cell.with_limits() }
    }

    /// Appends the table, a column per class.
    fn write(&self, image: &mut Vec<u8>) {
        for row in 0..=self.policy.services.len() + self.egress.len() {
            for column in &self.columns {
                image.extend_from_slice(&column[row].0.to_le_bytes());
            }
        }
    }
}

/// The first endings: every reason in either direction, without service or rule.
fn bare_endings() -> Vec<Ending> {
    let bare = |direction| {
        (0..Reason::COUNT as u8).map(move |number| Ending {
            direction,
            reason: Reason::from_number(number),
            service: None,
            rule: None,
            opens: false,
            profile: 0,
        })
    };
    Direction::ALL.into_iter().flat_map(bare).collect()
}

/// The port blocks of both directories. Blocks count from 1, equal ones are one: a range that fills many repeats one.
#[derive(Default)]
struct Blocks {
    kept: Vec<[u16; 256]>,
    numbers: HashMap<[u16; 256], u16>,
}

impl Blocks {
    /// Fills the directory at `field`: every port of a range reads as its value, the others as `outside`.
    fn directory(
        &mut self,
        image: &mut [u8],
        field: u32,
        outside: u16,
        ranges: impl Iterator<Item = ((PortKey, PortKey), u16)>,
    ) {
        let mut blocks: Vec<Option<[u16; 256]>> = vec![None; DIRECTORY_LEN as usize];
        for ((first, last), value) in ranges {
            for key in first.0..=last.0 {
                let block = blocks[key as usize >> 8].get_or_insert([outside; 256]);
                block[key as usize & 0xff] = value;
            }
        }
        for (index, block) in blocks.into_iter().enumerate() {
            let Some(block) = block else { continue };
            let number = *self.numbers.entry(block).or_insert_with(|| {
                self.kept.push(block);
                self.kept.len() as u16
            });
            let at = field as usize + index * 2;
            image[at..at + 2].copy_from_slice(&number.to_le_bytes());
        }
    }

    /// Appends the blocks; returns the offset of block 0, which is not stored.
    fn write(self, image: &mut Vec<u8>) -> u64 {
        let first = align(image, 512);
        for block in self.kept {
            image.extend(block.iter().flat_map(|value| value.to_le_bytes()));
        }
        first - 512
    }
}

/// Pads the image to a multiple of `to` and returns its length.
fn align(image: &mut Vec<u8>, to: usize) -> u64 {
    image.resize(image.len().next_multiple_of(to), 0);
    image.len() as u64
}

fn put32(image: &mut [u8], at: u32, value: u32) {
    image[at as usize..at as usize + 4].copy_from_slice(&value.to_le_bytes());
}

fn put64(image: &mut [u8], at: u32, value: u64) {
    image[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests;
