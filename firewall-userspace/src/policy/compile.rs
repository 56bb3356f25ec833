//! The model compiled to an image: the layout that `firewall_common::image` reads.
//!
//! Prefixes become *classes*: sets of addresses that every rule treats alike. All prefixes are sorted once; a walk in
//! that order keeps the stack of prefixes around the present one, so the set of lists that cover an address is known
//! without a search. Sets are interned, each becomes a column of verdicts, equal columns become one class. The same
//! policy gives the same bytes: nothing here depends on hashing order, addresses or time.
//!
//! Precedence lives here and nowhere else: the policy's deny list beats a service's deny list, that beats its allow
//! list; within a list the entry written first counts the packet. The order of services never matters.

use super::model::{Action, Policy, PrefixList, RuleId, ServiceId};
use super::trie::{self, Prefix};
use firewall_common::counter;
use firewall_common::image::{Cell, DIRECTORY_LEN, FLAG_DEFAULT_ALLOW, MAGIC, PAGE_SIZE, field};
use firewall_common::verdict::Reason;
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
    pub stats: Stats,
}

/// One way a packet can end under this policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// `None`: a number that is never used.
    pub reason: Option<Reason>,
    pub service: Option<ServiceId>,
    pub rule: Option<RuleId>,
}

/// What `check` and the metrics say of a compiled policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stats {
    pub services: usize,
    pub rules: usize,
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

/// Bytes of the largest image: offsets in class tables reach twice as far.
const MAX_IMAGE: u64 = 1 << 32;

/// Compiles a policy to an image.
///
/// # Errors
/// [`CompileError::TooLarge`] when services, endings or bytes exceed what the layout can number.
pub fn compile(policy: &Policy) -> Result<Compiled, CompileError> {
    limit("services", policy.services.len() as u64, u16::MAX as u64 - 1)?;
    let lists = used_lists(policy);
    let mut sets = Sets::default();
    let v4 = covers(&policy.lists, &lists, |list| &list.v4, &mut sets);
    let v6 = covers(&policy.lists, &lists, |list| &list.v6, &mut sets);

    let mut verdicts = Verdicts::new(policy, &sets)?;
    let class_of: Vec<u32> = (0..sets.members.len()).map(|set| verdicts.class(set)).collect();
    limit("classes", verdicts.columns.len() as u64, 1 << 30)?;

    let mut image = vec![0; field::DIRECTORY as usize + DIRECTORY_LEN as usize * 2];
    let blocks = ports(policy, &mut image);
    let table = align(&mut image, 8);
    verdicts.write(&mut image);
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
    put32(
        &mut image,
        field::FLAGS,
        if policy.default_allow {
            FLAG_DEFAULT_ALLOW
        } else {
            0
        },
    );
    put64(&mut image, field::LENGTH, length);
    put32(&mut image, field::SERVICES, policy.services.len() as u32 + 1);
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
            rules: policy.rules.len(),
            prefixes_v4,
            prefixes_v6,
            classes: verdicts.columns.len(),
            image_bytes: image.len(),
        },
        image,
        endings,
    })
}

fn limit(what: &'static str, needed: u64, limit: u64) -> Result<(), CompileError> {
    if needed > limit {
        Err(CompileError::TooLarge { what, needed, limit })
    } else {
        Ok(())
    }
}

/// Whether each list is referred to by a rule; a group that nobody uses costs nothing.
fn used_lists(policy: &Policy) -> Vec<bool> {
    let mut used = vec![false; policy.lists.len()];
    for rule in &policy.rules {
        for list in &rule.lists {
            used[*list as usize] = true;
        }
    }
    used
}

/// Sets of lists, interned: number 0 is the empty one.
struct Sets {
    members: Vec<Vec<u32>>,
    numbers: HashMap<Vec<u32>, u32>,
    /// (set, list) -> the set with the list.
    with: HashMap<(u32, u32), u32>,
}

impl Default for Sets {
    fn default() -> Self {
        Sets {
            members: vec![Vec::new()],
            numbers: HashMap::from([(Vec::new(), 0)]),
            with: HashMap::new(),
        }
    }
}

impl Sets {
    fn with(&mut self, set: u32, list: u32) -> u32 {
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
    /// Rules that each list stands in; rules for `any` come under every address.
    rules_of: Vec<Vec<u32>>,
    any: Vec<u32>,
    columns: Vec<Vec<Cell>>,
    numbers: HashMap<Vec<u32>, u32>,
    endings: Vec<Ending>,
    ending_of: HashMap<(u8, u32, u32), u32>,
}

const NO_RULE: u32 = u32::MAX;

impl<'a> Verdicts<'a> {
    fn new(policy: &'a Policy, sets: &'a Sets) -> Result<Self, CompileError> {
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
        let bare = (0..Reason::COUNT as u8)
            .map(|number| Ending {
                reason: Reason::from_number(number),
                service: None,
                rule: None,
            })
            .collect();
        Ok(Verdicts {
            policy,
            sets,
            rules_of,
            any,
            columns: Vec::new(),
            numbers: HashMap::new(),
            endings: bare,
            ending_of: HashMap::new(),
        })
    }

    /// The class of a set of lists.
    fn class(&mut self, set: usize) -> u32 {
        let mut rules = self.any.clone();
        for list in &self.sets.members[set] {
            rules.extend_from_slice(&self.rules_of[*list as usize]);
        }
        rules.sort_unstable();
        let column = self.column(&rules);
        let key: Vec<u32> = column.iter().map(|cell| cell.0).collect();
        let next = self.columns.len() as u32;
        let number = *self.numbers.entry(key).or_insert(next);
        if number == next {
            self.columns.push(column);
        }
        number
    }

    /// What rules (ascending, so the first written comes first) say at each service, no service first.
    fn column(&mut self, rules: &[u32]) -> Vec<Cell> {
        let policy = self.policy;
        let services = policy.services.len();
        let mut denied_everywhere = None;
        let mut denied = vec![None; services];
        let mut allowed = vec![None; services];
        for number in rules {
            let rule = &policy.rules[*number as usize];
            let winner = match (rule.service, rule.action) {
                (None, _) => &mut denied_everywhere,
                (Some(service), Action::Deny) => &mut denied[service.0 as usize],
                (Some(service), Action::Allow) => &mut allowed[service.0 as usize],
            };
            winner.get_or_insert(*number);
        }
        let mut column = Vec::with_capacity(services + 1);
        column.push(match denied_everywhere {
            Some(rule) => self.cell(Reason::Denied, None, Some(rule)),
            None => Cell::NO_MATCH,
        });
        for service in 0..services {
            let (reason, rule) = match (denied_everywhere, denied[service], allowed[service]) {
                (Some(rule), _, _) => (Reason::Denied, Some(rule)),
                (None, Some(rule), _) => (Reason::ServiceDenied, Some(rule)),
                (None, None, Some(rule)) => (Reason::Allowed, Some(rule)),
                (None, None, None) => (Reason::NotAllowed, None),
            };
            column.push(self.cell(reason, Some(service as u32), rule));
        }
        column
    }

    fn cell(&mut self, reason: Reason, service: Option<u32>, rule: Option<u32>) -> Cell {
        let key = (
            reason.number(),
            service.unwrap_or(NO_RULE),
            rule.unwrap_or(NO_RULE),
        );
        let next = self.endings.len() as u32;
        let ending = *self.ending_of.entry(key).or_insert(next);
        if ending == next {
            self.endings.push(Ending {
                reason: Some(reason),
                service: service.map(|service| ServiceId(service as u16)),
                rule: rule.map(RuleId),
            });
        }
        Cell::new(reason.number(), ending)
    }

    /// Appends the table: a row per service, a column per class.
    fn write(&self, image: &mut Vec<u8>) {
        for row in 0..=self.policy.services.len() {
            for column in &self.columns {
                image.extend_from_slice(&column[row].0.to_le_bytes());
            }
        }
    }
}

/// Fills the port directory and appends the blocks; returns the offset of block 0, which is not stored.
fn ports(policy: &Policy, image: &mut Vec<u8>) -> u64 {
    let mut blocks: Vec<[u16; 256]> = Vec::new();
    let mut directory = vec![0_u16; DIRECTORY_LEN as usize];
    for (service, entry) in policy.services.iter().enumerate() {
        for (first, last) in &entry.ports {
            for key in first.0..=last.0 {
                let slot = &mut directory[key as usize >> 8];
                if *slot == 0 {
                    blocks.push([0; 256]);
                    *slot = blocks.len() as u16;
                }
                blocks[*slot as usize - 1][key as usize & 0xff] = service as u16 + 1;
            }
        }
    }
    // A range that fills many blocks repeats one.
    let mut kept: Vec<[u16; 256]> = Vec::new();
    let mut numbers: HashMap<[u16; 256], u16> = HashMap::new();
    for slot in directory.iter_mut().filter(|slot| **slot != 0) {
        let block = blocks[*slot as usize - 1];
        *slot = *numbers.entry(block).or_insert_with(|| {
            kept.push(block);
            kept.len() as u16
        });
    }
    for (index, slot) in directory.iter().enumerate() {
        let at = field::DIRECTORY as usize + index * 2;
        image[at..at + 2].copy_from_slice(&slot.to_le_bytes());
    }
    let first = align(image, 512);
    for block in kept {
        image.extend(block.iter().flat_map(|service| service.to_le_bytes()));
    }
    // Blocks count from 1.
    first - 512
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
