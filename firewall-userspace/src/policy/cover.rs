//! Rules that can never match, and entries that change nothing.
//!
//! An entry is covered when each of its prefixes lies in one prefix of another entry; two halves that together
//! make the whole are not looked for. Entries of up to [`SMALL`] prefixes are looked at; larger ones only for
//! standing on the same lists as another. Of larger lists, just the prefixes that hold one of a small entry are
//! taken along, found in a pass without sorting: a million prefixes cost some milliseconds, and all of it is
//! n log n in the prefixes of small entries. Temporary entries cover nothing: they end.

mod filter;

use super::diagnostic::Findings;
use super::egress;
use super::model::{Action, EgressId, Owner, Policy, PrefixList, Rule};
use super::rules::Draft;
use filter::{Filter, Prefix, end};
use std::collections::HashMap;
use std::ops::Range;

const SMALL: usize = 4096;

/// Warns of what is covered. `drafts` are the rules of the policy with their entries.
pub fn warn(policy: &Policy, drafts: &[Draft], findings: &mut Findings<'_>) {
    let checks = Checks::new(policy, drafts);
    let own = drafts.partition_point(|draft| draft.rule.owner == Owner::Policy);
    checks.list(0..own, &[], findings);
    let mut at = own;
    while at < drafts.len() {
        let owner = drafts[at].rule.owner;
        let end = at + drafts[at..].partition_point(|draft| draft.rule.owner == owner);
        let above = match owner {
            Owner::Egress(id) => egress_above(policy, id),
            Owner::Policy | Owner::Service(_) => (0..own).collect(),
        };
        checks.list(at..end, &above, findings);
        at = end;
    }
}

/// Entries of other egress rules that are judged before those of `id` at every port of it: their denies, and what stands
/// before it in the file.
fn egress_above(policy: &Policy, id: EgressId) -> Vec<usize> {
    let inner = &policy.egress[id.0 as usize];
    let covering: Vec<bool> = policy
        .egress
        .iter()
        .map(|outer| egress::covers(outer, inner))
        .collect();
    let above = |rule: &Rule| {
        rule.owner.egress().is_some_and(|other| {
            other != id && covering[other.0 as usize] && (rule.action == Action::Deny || other < id)
        })
    };
    (0..policy.rules.len())
        .filter(|&at| above(&policy.rules[at]))
        .collect()
}

struct Checks<'a> {
    policy: &'a Policy,
    drafts: &'a [Draft],
    /// Per family and list: all prefixes of a small one, those that matter of another.
    lists: [Vec<Vec<Prefix>>; 2],
}

/// What was found of one rule: how many of its prefixes are covered, and by whom first.
#[derive(Clone, Copy, Default)]
struct Cover {
    total: usize,
    denied: usize,
    denied_by: Option<usize>,
    repeated: usize,
    repeated_by: Option<usize>,
}

impl<'a> Checks<'a> {
    fn new(policy: &'a Policy, drafts: &'a [Draft]) -> Checks<'a> {
        let family = |v4: bool| {
            let all: Vec<Vec<Prefix>> = policy.lists.iter().map(|list| small(list, v4)).collect();
            let filter = Filter::new(all.iter().flatten().copied().collect(), v4);
            let reduce = |(list, small): (&std::sync::Arc<PrefixList>, Vec<Prefix>)| match list.len() > SMALL
            {
                true => filter.holders(list, v4),
                false => small,
            };
            policy.lists.iter().zip(all).map(reduce).collect()
        };
        Checks {
            policy,
            drafts,
            lists: [family(true), family(false)],
        }
    }

    fn rule(&self, at: usize) -> &'a Rule {
        &self.policy.rules[at]
    }

    fn is_small(&self, at: usize) -> bool {
        let lists = &self.rule(at).lists;
        lists
            .iter()
            .map(|&list| self.policy.lists[list as usize].len())
            .sum::<usize>()
            <= SMALL
    }

    /// The rules of one owner, under those that are judged before them.
    fn list(&self, rules: Range<usize>, above: &[usize], findings: &mut Findings<'_>) {
        if self.any_above(&rules, above, findings) || self.any(&rules, findings) {
            return;
        }
        let mut covers: HashMap<usize, Cover> = HashMap::new();
        for family in 0..2 {
            self.sweep(family, &rules, above, &mut covers);
        }
        for at in rules.clone() {
            let cover = match self.is_small(at) {
                true => covers.get(&at).copied().unwrap_or_default(),
                false => self.same_lists(at, &rules, above),
            };
            self.report(at, cover, findings);
        }
    }

    /// `any` among the entries judged before. True when it leaves nothing else to say.
    fn any_above(&self, rules: &Range<usize>, above: &[usize], findings: &mut Findings<'_>) -> bool {
        for action in [Action::Deny, Action::Allow] {
            let is = |at: &usize| {
                let rule = self.rule(*at);
                rule.any && rule.action == action && !self.drafts[*at].temporary
            };
            let Some(by) = above.iter().copied().find(is) else {
                continue;
            };
            for at in rules.clone().filter(|&at| self.rule(at).action == Action::Allow) {
                let (denied_by, repeated_by) = match action {
                    Action::Deny => (Some(by), None),
                    Action::Allow => (None, Some(by)),
                };
                let cover = Cover {
                    total: 1,
                    denied: usize::from(denied_by.is_some()),
                    denied_by,
                    repeated: usize::from(repeated_by.is_some()),
                    repeated_by,
                };
                self.report(at, cover, findings);
            }
            return true;
        }
        false
    }

    /// `any` among other entries. True when it leaves nothing else to say.
    fn any(&self, rules: &Range<usize>, findings: &mut Findings<'_>) -> bool {
        let find = |action| {
            let is = |&at: &usize| {
                self.rule(at).any && self.rule(at).action == action && !self.drafts[at].temporary
            };
            rules.clone().find(is)
        };
        let count = |action| rules.clone().filter(|&at| self.rule(at).action == action).count();
        if let Some(at) = find(Action::Deny) {
            match (count(Action::Deny) - 1, count(Action::Allow)) {
                (0, 0) => {}
                (0, _) => {
                    let message = match self.rule(at).owner {
                        Owner::Egress(_) => "\"any\" is denied here: nothing that this rule opens can match",
                        _ => "\"any\" is denied here: no allow of this service can match",
                    };
                    findings.warn(&self.drafts[at].span, message, Some("deny beats allow".into()));
                }
                (_, _) => {
                    let owner = match self.rule(at).owner {
                        Owner::Egress(_) => "rule",
                        _ => "service",
                    };
                    let message =
                        format!("\"any\" is denied here: the other entries of this {owner} change nothing");
                    findings.warn(&self.drafts[at].span, message, None);
                }
            }
            return true;
        }
        if let Some(at) = find(Action::Allow)
            && count(Action::Allow) > 1
        {
            let message = match self.rule(at).owner {
                Owner::Egress(_) => "\"any\" is everywhere: the other entries of this list change nothing",
                _ => "\"any\" admits everybody: the other entries of this list change nothing",
            };
            findings.warn(
                &self.drafts[at].span,
                message,
                Some("take \"any\" out, or the others".into()),
            );
            return true;
        }
        false
    }

    /// Walks all prefixes in order of address, the wider first: what is open is what holds the next one.
    fn sweep(
        &self,
        family: usize,
        rules: &Range<usize>,
        above: &[usize],
        covers: &mut HashMap<usize, Cover>,
    ) {
        let prefixes = |at: usize| {
            let lists = self.rule(at).lists.iter();
            lists
                .flat_map(|&list| self.lists[family][list as usize].iter())
                .map(move |&prefix| (prefix, at))
        };
        let mut all: Vec<(Prefix, usize)> = rules.clone().flat_map(prefixes).collect();
        let targets = all.iter().map(|&(prefix, _)| prefix).collect();
        let filter = Filter::new(targets, family == 0);
        all.extend(
            above
                .iter()
                .copied()
                .flat_map(prefixes)
                .filter(|&(prefix, _)| filter.holds(prefix)),
        );
        // Of equal prefixes the denies come first, for they are judged first, wherever they stand.
        all.sort_unstable_by_key(|&(prefix, at)| (prefix, self.rule(at).action == Action::Allow, at));
        all.dedup();
        let mut open: Vec<(Prefix, usize)> = Vec::new();
        for (prefix, at) in all {
            while open.last().is_some_and(|&(outer, _)| end(outer) < prefix.0) {
                open.pop();
            }
            if rules.contains(&at) {
                let cover = covers.entry(at).or_default();
                let rule = self.rule(at);
                let by = |covers: &dyn Fn(&Rule, usize) -> bool| {
                    let holder = open.iter().map(|&(_, holder)| holder);
                    holder
                        .into_iter()
                        .find(|&holder| !self.drafts[holder].temporary && covers(self.rule(holder), holder))
                };
                let denied = by(&|holder, _| denies(holder, rule));
                let repeated = by(&|holder, index| index != at && same_list(holder, rule));
                cover.total += 1;
                cover.denied += usize::from(denied.is_some());
                cover.repeated += usize::from(repeated.is_some());
                cover.denied_by = cover.denied_by.or(denied);
                cover.repeated_by = cover.repeated_by.or(repeated);
            }
            open.push((prefix, at));
        }
    }

    /// The cover of a large rule: another that stands on all of its lists.
    fn same_lists(&self, at: usize, rules: &Range<usize>, above: &[usize]) -> Cover {
        let rule = self.rule(at);
        let holds = |holder: &usize| {
            let lists = &self.rule(*holder).lists;
            !self.drafts[*holder].temporary && rule.lists.iter().all(|list| lists.contains(list))
        };
        let mut holders = above.iter().copied().chain(rules.clone()).filter(holds);
        let denied_by = holders.clone().find(|&holder| denies(self.rule(holder), rule));
        let repeated_by = holders.find(|&holder| {
            let wider = self.rule(holder).lists.len() > rule.lists.len();
            same_list(self.rule(holder), rule) && (wider && holder != at || holder < at)
        });
        let count = |by: Option<usize>| usize::from(by.is_some());
        Cover {
            total: 1,
            denied: count(denied_by),
            denied_by,
            repeated: count(repeated_by),
            repeated_by,
        }
    }

    fn report(&self, at: usize, cover: Cover, findings: &mut Findings<'_>) {
        if cover.total == 0 {
            return;
        }
        let (source, span) = (&self.rule(at).source, &self.drafts[at].span);
        let named = |by: usize| format!("{} (line {})", self.rule(by).source, self.rule(by).place.line);
        match (cover.denied_by, cover.repeated_by) {
            (Some(by), _) if cover.denied == cover.total && self.rule(at).action == Action::Allow => {
                let message = format!("{source} can never match: it is denied by {}", named(by));
                findings.warn(span, message, Some("deny beats allow".into()));
            }
            (Some(by), _) if cover.denied == cover.total => {
                let message = format!(
                    "{source} changes nothing: the policy denies {} on every port",
                    named(by)
                );
                findings.warn(span, message, None);
            }
            (_, Some(by)) if cover.repeated == cover.total => {
                let message = match self.rule(by).owner {
                    owner if owner == self.rule(at).owner => {
                        format!(
                            "{source} changes nothing: {} in the same list holds it",
                            named(by)
                        )
                    }
                    owner => {
                        let holder = self.policy.owner_name(owner).unwrap_or_default();
                        let by = named(by);
                        format!(
                            "{source} changes nothing: {by} of egress rule \"{holder}\" holds it at the same ports"
                        )
                    }
                };
                findings.warn(span, message, None);
            }
            _ => {}
        }
    }
}

/// A deny that is judged before the rule.
fn denies(holder: &Rule, rule: &Rule) -> bool {
    holder.action == Action::Deny
        && (rule.action == Action::Allow || holder.owner == Owner::Policy && rule.owner.service().is_some())
}

fn same_list(holder: &Rule, rule: &Rule) -> bool {
    holder.action == rule.action
        && (holder.owner == rule.owner || holder.owner.egress().is_some() && holder.owner < rule.owner)
}

fn prefixes(list: &PrefixList, v4: bool) -> Box<dyn Iterator<Item = Prefix> + '_> {
    match v4 {
        true => Box::new(
            list.v4
                .iter()
                .map(|&(address, length)| (u128::from(address) << 96, length)),
        ),
        false => Box::new(list.v6.iter().copied()),
    }
}

/// The prefixes of a list, none if it is not small.
fn small(list: &PrefixList, v4: bool) -> Vec<Prefix> {
    if list.len() > SMALL {
        Vec::new()
    } else {
        prefixes(list, v4).collect()
    }
}

#[cfg(test)]
mod tests;
