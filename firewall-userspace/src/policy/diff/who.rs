//! Names for the addresses whose access changes: entries where they account for it, else prefixes.

use super::super::model::{Action, Rule};
use super::super::set::AddressSet;
use super::side::Side;

/// Prefixes that are named one by one; more are counted.
const SHOWN: usize = 20;

/// Addresses whose access changes, and the names found for them so far.
pub struct Who {
    pub rest: AddressSet,
    names: Vec<String>,
}

impl Who {
    pub fn new(rest: AddressSet) -> Who {
        Who {
            rest,
            names: Vec::new(),
        }
    }

    /// Takes out what the entries of one list of `side` account for: those that `other` does not have, then
    /// those that changed. `whole` is all that an entry stands for.
    #[expect(
        clippy::too_many_arguments,
        reason = "two lists, each by side and service, and how to speak of them"
    )]
    pub fn take(
        &mut self,
        side: &Side<'_>,
        other: &Side<'_>,
        action: Action,
        service: Option<usize>,
        other_service: Option<usize>,
        word: &str,
        whole: &dyn Fn(&Rule, &Side<'_>) -> AddressSet,
    ) {
        let theirs: Vec<&Rule> = match (service, other_service) {
            (Some(_), None) => Vec::new(),
            _ => other.rules_of(other_service, action).collect(),
        };
        let mut known = Vec::new();
        for rule in side.rules_of(service, action) {
            if self.rest.is_empty() {
                return;
            }
            match theirs.iter().find(|their| their.source == rule.source) {
                Some(their) => known.push((rule, *their)),
                None => self.name(rule, side, word, Some(&whole(rule, side))),
            }
        }
        for (rule, their) in known {
            if !self.rest.is_empty() && side.lists(rule) != other.lists(their) {
                self.name(rule, side, word, None);
            }
        }
    }

    /// Names what `rule` accounts for: by the rule if that is all of `whole`, else by prefixes.
    fn name(&mut self, rule: &Rule, side: &Side<'_>, word: &str, whole: Option<&AddressSet>) {
        let part = self.rest.intersection(&side.set(rule));
        if part.is_empty() {
            return;
        }
        self.rest = self.rest.difference(&part);
        match whole {
            Some(_) if rule.any => self.names.push("anyone".into()),
            Some(whole) if *whole == part => self.names.push(rule.source.clone()),
            _ => self.prefixes(
                &part,
                &format!("{}: ", if rule.any { "anyone" } else { &rule.source }),
                word,
            ),
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
    pub fn names(mut self, word: &str) -> Vec<String> {
        let rest = std::mem::replace(&mut self.rest, AddressSet::empty());
        self.prefixes(&rest, "", word);
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
