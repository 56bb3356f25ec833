//! One of the two policies of a diff, with its sets of addresses computed when they are asked for.

use super::super::model::{Action, Owner, Policy, PrefixList, Rule, ServiceId};
use super::super::set::AddressSet;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

pub struct Side<'a> {
    pub policy: &'a Policy,
    /// Number of each list of the policy; lists with the same content have one number on both sides.
    numbers: Vec<usize>,
    /// By the number of a list, for both sides.
    sets: Rc<RefCell<HashMap<usize, Rc<AddressSet>>>>,
    /// By owner, and whether its deny list is meant.
    unions: RefCell<HashMap<(Owner, bool), Rc<AddressSet>>>,
}

/// The owner of a service's lists.
pub fn service(index: usize) -> Owner {
    Owner::Service(ServiceId(index as u16))
}

/// The same list has the same outline, and most others have another.
type Outline = (usize, usize, [Option<(u128, u8)>; 6]);

pub fn pair<'a>(old: &'a Policy, new: &'a Policy) -> (Side<'a>, Side<'a>) {
    let mut known: HashMap<Outline, Vec<(&'a Arc<PrefixList>, usize)>> = HashMap::new();
    let mut count = 0;
    let sets = Rc::default();
    let mut side = |policy: &'a Policy| {
        let mut number = |list: &'a Arc<PrefixList>| {
            let same = known.entry(outline(list)).or_default();
            let there = same
                .iter()
                .find(|(other, _)| Arc::ptr_eq(other, list) || *other == list);
            if let Some((_, number)) = there {
                return *number;
            }
            count += 1;
            same.push((list, count));
            count
        };
        let numbers = policy.lists.iter().map(&mut number).collect();
        Side {
            policy,
            numbers,
            sets: Rc::clone(&sets),
            unions: RefCell::default(),
        }
    };
    let old = side(old);
    (old, side(new))
}

fn outline(list: &PrefixList) -> Outline {
    let v4 = |at: usize| {
        list.v4
            .get(at)
            .map(|&(address, length)| (u128::from(address), length))
    };
    let v6 = |at: usize| list.v6.get(at).copied();
    let (n4, n6) = (list.v4.len(), list.v6.len());
    let samples = [
        v4(0),
        v4(n4 / 2),
        v4(n4.wrapping_sub(1)),
        v6(0),
        v6(n6 / 2),
        v6(n6.wrapping_sub(1)),
    ];
    (n4, n6, samples)
}

impl<'a> Side<'a> {
    /// The rules of one list.
    pub fn rules_of(&self, owner: Owner, action: Action) -> impl Iterator<Item = &'a Rule> + use<'a> {
        // Rules stand in the order of their owners.
        let first = self.policy.rules.partition_point(|rule| rule.owner < owner);
        let rules = self.policy.rules[first..]
            .iter()
            .take_while(move |rule| rule.owner == owner);
        rules.filter(move |rule| rule.action == action)
    }

    /// The content of a rule, for comparing: whether it is everybody, and its lists by number.
    pub fn lists(&self, rule: &Rule) -> (bool, BTreeSet<usize>) {
        (
            rule.any,
            rule.lists
                .iter()
                .map(|&list| self.numbers[list as usize])
                .collect(),
        )
    }

    /// The content of all rules of these lists together.
    pub fn lists_of(&self, owners: &[Owner], action: Action) -> (bool, BTreeSet<usize>) {
        let mut all = (false, BTreeSet::new());
        for rule in owners.iter().flat_map(|owner| self.rules_of(*owner, action)) {
            let (any, lists) = self.lists(rule);
            all.0 |= any;
            all.1.extend(lists);
        }
        all
    }

    pub fn set(&self, rule: &Rule) -> AddressSet {
        if rule.any {
            return AddressSet::all();
        }
        let sets: Vec<Rc<AddressSet>> = rule.lists.iter().map(|&list| self.list(list)).collect();
        union(sets.iter().map(Rc::as_ref))
    }

    fn list(&self, index: u32) -> Rc<AddressSet> {
        let number = self.numbers[index as usize];
        let mut sets = self.sets.borrow_mut();
        let set = sets
            .entry(number)
            .or_insert_with(|| Rc::new(AddressSet::of(&self.policy.lists[index as usize])));
        Rc::clone(set)
    }

    /// All addresses that the policy denies on every port.
    pub fn denied(&self) -> Rc<AddressSet> {
        self.set_of(Owner::Policy, Action::Deny)
    }

    /// All addresses that one list names.
    pub fn set_of(&self, owner: Owner, action: Action) -> Rc<AddressSet> {
        let key = (owner, action == Action::Deny);
        if let Some(set) = self.unions.borrow().get(&key) {
            return Rc::clone(set);
        }
        let sets: Vec<AddressSet> = self.rules_of(owner, action).map(|rule| self.set(rule)).collect();
        let set = Rc::new(union(sets.iter()));
        self.unions.borrow_mut().insert(key, Rc::clone(&set));
        set
    }

    /// Who gets in at a service, the policy's own denies aside; no service: by default.
    pub fn access(&self, of: Option<usize>) -> AddressSet {
        match of {
            None if self.policy.default_allow => AddressSet::all(),
            None => AddressSet::empty(),
            Some(index) => self
                .set_of(service(index), Action::Allow)
                .difference(&self.set_of(service(index), Action::Deny)),
        }
    }

    /// All addresses that several lists name.
    pub fn union_of(&self, owners: &[Owner], action: Action) -> Rc<AddressSet> {
        if let [owner] = owners {
            return self.set_of(*owner, action);
        }
        let sets: Vec<Rc<AddressSet>> = owners.iter().map(|owner| self.set_of(*owner, action)).collect();
        Rc::new(union(sets.iter().map(Rc::as_ref)))
    }

    /// Where packets may leave to at ports that these egress rules hold.
    pub fn egress(&self, rules: &[Owner]) -> AddressSet {
        let denied = self.union_of(rules, Action::Deny);
        match self.policy.egress_deny {
            true => self.union_of(rules, Action::Allow).difference(&denied),
            false => AddressSet::all().difference(&denied),
        }
    }
}

/// By halves, so that many sets cost n log n.
fn union<'s>(sets: impl Iterator<Item = &'s AddressSet>) -> AddressSet {
    let mut sets: Vec<AddressSet> = sets.cloned().collect();
    while sets.len() > 1 {
        let halves = sets.chunks(2).map(|pair| match pair {
            [one, other] => one.union(other),
            _ => pair[0].clone(),
        });
        sets = halves.collect();
    }
    sets.pop().unwrap_or_else(AddressSet::empty)
}
