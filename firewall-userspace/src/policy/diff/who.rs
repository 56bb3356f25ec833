//! Names for the addresses whose access changes: entries where they account for it, else prefixes.

use super::super::model::{Action, Rule};
use super::super::set::AddressSet;
use super::side::Side;
use std::collections::HashMap;

/// Prefixes that are named one by one; more are counted.
const SHOWN: usize = 20;

/// An allow or deny list of one of the two policies.
#[derive(Clone, Copy)]
pub struct List<'a> {
    pub side: &'a Side<'a>,
    /// `None`: the policy's own.
    pub service: Option<usize>,
    pub action: Action,
}

/// Addresses whose access changes, and the names found for them so far.
pub struct Who<'a> {
    all: AddressSet,
    /// Those without a name yet.
    rest: AddressSet,
    names: Vec<String>,
    /// Whose policy-wide denies are to be left out.
    denied: Option<&'a Side<'a>>,
    /// Said of a number of prefixes.
    word: &'static str,
}

impl<'a> Who<'a> {
    pub fn new(all: AddressSet, denied: Option<&'a Side<'a>>, word: &'static str) -> Who<'a> {
        Who {
            rest: all.clone(),
            all,
            names: Vec::new(),
            denied,
            word,
        }
    }

    /// Takes out what the entries of one list account for: those that `theirs` does not have, then those that
    /// changed.
    pub fn take(&mut self, mine: List<'a>, theirs: Option<List<'a>>, word: &'static str) {
        let list = theirs.map(|list| (list.side, list.side.rules_of(list.service, list.action)));
        let theirs: HashMap<&str, (&Side<'_>, &Rule)> = list
            .into_iter()
            .flat_map(|(side, rules)| rules.map(move |rule| (rule.source.as_str(), (side, rule))))
            .collect();
        let mut known = Vec::new();
        for rule in mine.side.rules_of(mine.service, mine.action) {
            if self.rest.is_empty() {
                return;
            }
            match theirs.get(rule.source.as_str()) {
                Some(their) => known.push((rule, *their)),
                None => self.name(mine, rule, word, true),
            }
        }
        for (rule, (side, their)) in known {
            if !self.rest.is_empty() && mine.side.lists(rule) != side.lists(their) {
                self.name(mine, rule, word, false);
            }
        }
    }

    /// Names what `rule` accounts for: by the rule if it came or went and accounts for all it can, else by prefixes.
    fn name(&mut self, list: List<'a>, rule: &Rule, word: &str, moved: bool) {
        let set = list.side.set(rule);
        let part = self.rest.intersection(&set);
        if part.is_empty() {
            return;
        }
        self.rest = self.rest.difference(&part);
        if moved && rule.any {
            return self.names.push("anyone".into());
        }
        // Of overlapping entries each counts as a whole.
        let whole = || match list.action {
            Action::Deny => self.all.intersection(&set) == set,
            Action::Allow => {
                let denied = list.side.set_of(list.service, Action::Deny);
                self.all.intersection(&set) == set.difference(&denied)
            }
        };
        if moved && whole() {
            // By its name, though the policy may deny a part of it.
            if self.denied.is_none_or(|side| !part.is_within(&side.denied())) {
                self.names.push(rule.source.clone());
            }
        } else {
            let of = if rule.any { "anyone" } else { &rule.source };
            let part = self.admitted(part);
            self.prefixes(&part, &format!("{of}: "), word);
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
        if !self.rest.is_empty() {
            self.rest = AddressSet::empty();
            self.names
                .push(if everybody { "anyone" } else { "anyone else" }.into());
        }
    }

    fn prefixes(&mut self, part: &AddressSet, of: &str, word: &str) {
        let first: Vec<String> = part.show().take(SHOWN + 1).collect();
        if first.len() <= SHOWN {
            self.names.extend(first);
        } else {
            self.names
                .push(format!("{of}{} prefixes {word}", thousands(part.count())));
        }
    }

    /// All names, those of the rest by prefixes.
    pub fn names(mut self) -> Vec<String> {
        let rest = std::mem::replace(&mut self.rest, AddressSet::empty());
        let rest = self.admitted(rest);
        self.prefixes(&rest, "", self.word);
        self.names
    }
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
