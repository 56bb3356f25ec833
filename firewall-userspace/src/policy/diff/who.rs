//! Names for the addresses whose access changes: entries where they account for it, else prefixes.

use super::super::model::{Action, Owner, PrefixList, Rule};
use super::super::prefix;
use super::super::set::AddressSet;
use super::side::Side;
use ipnetwork::IpNetwork;
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Prefixes that are named one by one; more are counted.
const SHOWN: usize = 20;

/// Of prefixes that are counted, so many are shown.
const EXAMPLES: usize = 5;

/// One or many who gain or lose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub who: String,
    /// The first of those that `who` counts; empty if it counts none.
    pub prefixes: Vec<String>,
}

/// An allow or deny list of one of the two policies, or those of several egress rules together.
#[derive(Clone, Copy)]
pub struct List<'a> {
    pub side: &'a Side<'a>,
    pub owners: &'a [Owner],
    pub action: Action,
}

impl<'a> List<'a> {
    fn rules(self) -> impl Iterator<Item = &'a Rule> {
        self.owners
            .iter()
            .flat_map(move |owner| self.side.rules_of(*owner, self.action))
    }
}

/// Addresses whose access changes, and the names found for them so far.
pub struct Who<'a> {
    all: AddressSet,
    /// Those without a name yet.
    rest: AddressSet,
    names: Vec<Name>,
    /// Whose policy-wide denies are to be left out.
    denied: Option<&'a Side<'a>>,
}

impl<'a> Who<'a> {
    pub fn new(all: AddressSet, denied: Option<&'a Side<'a>>) -> Who<'a> {
        Who {
            rest: all.clone(),
            all,
            names: Vec::new(),
            denied,
        }
    }

    /// Takes out what the entries of one list account for: those that `theirs` does not have, then those that
    /// changed.
    pub fn take(&mut self, mine: List<'a>, theirs: Option<List<'a>>) {
        let list = theirs.map(|list| (list.side, list.rules()));
        let theirs: HashMap<&str, (&Side<'_>, &Rule)> = list
            .into_iter()
            .flat_map(|(side, rules)| rules.map(move |rule| (rule.source.as_str(), (side, rule))))
            .collect();
        let mut known = Vec::new();
        for rule in mine.rules() {
            if self.rest.is_empty() {
                return;
            }
            match theirs.get(rule.source.as_str()) {
                Some(their) => known.push((rule, *their)),
                None => self.name(mine, rule, true),
            }
        }
        for (rule, (side, their)) in known {
            if !self.rest.is_empty() && mine.side.lists(rule) != side.lists(their) {
                self.name(mine, rule, false);
            }
        }
    }

    /// Names what `rule` accounts for: by the rule if it came or went and accounts for all it can, else by prefixes.
    fn name(&mut self, list: List<'a>, rule: &Rule, moved: bool) {
        let set = list.side.set(rule);
        let part = self.rest.intersection(&set);
        if part.is_empty() {
            return;
        }
        self.rest = self.rest.difference(&part);
        if moved && rule.any {
            return self.push("anyone");
        }
        // Of overlapping entries each counts as a whole.
        let whole = || match list.action {
            Action::Deny => self.all.intersection(&set) == set,
            Action::Allow => {
                let denied = list.side.union_of(list.owners, Action::Deny);
                self.all.intersection(&set) == set.difference(&denied)
            }
        };
        if moved && whole() {
            // By its name, though the policy may deny a part of it.
            if self.denied.is_none_or(|side| !part.is_within(&side.denied())) {
                self.push(&rule.source);
            }
        } else {
            let part = self.admitted(part);
            self.prefixes(&part, (!rule.any).then_some((list.side, rule)));
        }
    }

    /// Without those that the policy denies on every port.
    fn admitted(&self, part: AddressSet) -> AddressSet {
        match self.denied {
            Some(side) if !part.is_empty() => part.difference(&side.denied()),
            _ => part,
        }
    }

    pub fn default(&mut self, everybody: bool) {
        if self.forget_rest() {
            self.push(if everybody { "anyone" } else { "anyone else" });
        }
    }

    /// Leaves those without a name nameless; whether there are any.
    pub fn forget_rest(&mut self) -> bool {
        !std::mem::replace(&mut self.rest, AddressSet::empty()).is_empty()
    }

    fn push(&mut self, who: &str) {
        let prefixes = Vec::new();
        self.add(Name {
            who: who.to_owned(),
            prefixes,
        });
    }

    /// Nobody is named twice.
    fn add(&mut self, name: Name) {
        if !self.names.contains(&name) {
            self.names.push(name);
        }
    }

    /// Names a few prefixes one by one. Of many, those of the rule that they come from are counted as it has them.
    fn prefixes(&mut self, part: &AddressSet, of: Option<(&Side<'_>, &Rule)>) {
        let first: Vec<String> = part.show().take(SHOWN + 1).collect();
        if first.len() <= SHOWN {
            return first.iter().for_each(|prefix| self.push(prefix));
        }
        let Some((side, rule)) = of else {
            return self.add(Name {
                who: format!("{} prefixes", thousands(part.count())),
                prefixes: first.into_iter().take(EXAMPLES).collect(),
            });
        };
        let (mut whole, mut cut) = (PrefixList::default(), PrefixList::default());
        for &list in &rule.lists {
            let list = &side.policy.lists[list as usize];
            for &(start, length) in &list.v4 {
                match part.holds_v4(start, length) {
                    Some(true) => whole.v4.push((start, length)),
                    Some(false) => cut.v4.push((start, length)),
                    None => {}
                }
            }
            for &(start, length) in &list.v6 {
                match part.holds_v6(start, length) {
                    Some(true) => whole.v6.push((start, length)),
                    Some(false) => cut.v6.push((start, length)),
                    None => {}
                }
            }
        }
        let (parts, mut own) = if cut.is_empty() {
            ("", whole)
        } else {
            cut.v4.append(&mut whole.v4);
            cut.v6.append(&mut whole.v6);
            ("parts of ", cut)
        };
        // Groups within the group may share prefixes.
        own.v4.sort_unstable();
        own.v4.dedup();
        own.v6.sort_unstable();
        own.v6.dedup();
        let count = own.v4.len() + own.v6.len();
        let number = thousands(count);
        let who = match (rule.source.starts_with('@'), count) {
            (true, 1) => format!("{parts}1 prefix of {}", rule.source),
            (true, _) => format!("{parts}{number} prefixes of {}", rule.source),
            // A long list of prefixes is one rule that is named by their number.
            (false, _) if rule.source.ends_with(" prefixes") => {
                format!("{parts}{number} of {}", rule.source)
            }
            (false, _) => format!("parts of {}", rule.source),
        };
        let prefixes = match parts.is_empty() {
            true => show(&own).take(EXAMPLES).collect(),
            false => first.into_iter().take(EXAMPLES).collect(),
        };
        self.add(Name { who, prefixes });
    }

    /// All names, those of the rest by prefixes.
    pub fn names(mut self) -> Vec<Name> {
        let rest = std::mem::replace(&mut self.rest, AddressSet::empty());
        let rest = self.admitted(rest);
        self.prefixes(&rest, None);
        self.names
    }
}

/// The prefixes of a list as people write them.
fn show(list: &PrefixList) -> impl Iterator<Item = String> {
    let v4 = list
        .v4
        .iter()
        .filter_map(|&(start, length)| IpNetwork::new(Ipv4Addr::from(start).into(), length).ok());
    let v6 = list
        .v6
        .iter()
        .filter_map(|&(start, length)| IpNetwork::new(Ipv6Addr::from(start).into(), length).ok());
    v4.chain(v6).map(prefix::show)
}

/// `1,204`
pub fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
