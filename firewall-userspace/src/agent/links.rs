//! Which interfaces are to be filtered, and which are: follows the changes that the kernel reports.
//!
//! Pure: says what to do, does not do it. An interface is known by its index; a re-created one is a new one, a
//! renamed one stays the same and is judged by its new name.

use super::config::Pattern;
use super::coverage::{judged, left_out, words};
use crate::datapath::netlink::{Change, Interface};
use crate::datapath::{Attachment, Part};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// First and longest wait before an interface that refused is tried again.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Named when no interface is: the patterns are empty.
pub const OUTSIDE: &str = "interfaces to the outside";

/// What is known of a filtered interface.
#[derive(Debug)]
pub enum State {
    Attached(Attachment),
    Refused {
        error: String,
        again: Instant,
        wait: Duration,
    },
}

#[derive(Debug)]
pub struct Links {
    patterns: Vec<Pattern>,
    known: BTreeMap<u32, Interface>,
    states: BTreeMap<u32, State>,
    repairs: BTreeMap<u32, Repairs>,
}

/// What was put back on an interface after somebody took it off behind the agent's back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    pub count: BTreeMap<Part, u64>,
    /// Of the last one: what had happened, and how long it may have been so.
    pub last: String,
}

/// What a change asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Todo {
    pub attach: Vec<u32>,
    /// Filtered, and judged elsewhere from now on.
    pub detach: Vec<u32>,
    /// Went by themselves.
    pub gone: Vec<(u32, String)>,
    pub own_addresses: bool,
    /// Ask for a list and give it to [`Links::replace`].
    pub relist: bool,
}

impl Links {
    pub fn new(patterns: Vec<Pattern>) -> Links {
        Links {
            patterns,
            known: BTreeMap::new(),
            states: BTreeMap::new(),
            repairs: BTreeMap::new(),
        }
    }

    pub fn wanted(&self, interface: &Interface) -> bool {
        if self.patterns.is_empty() {
            return left_out(interface, &self.known).is_none();
        }
        let named = |pattern: &Pattern| {
            // Nobody who writes `*` means the loopback.
            pattern.matches(&interface.name) && (!interface.loopback || pattern.is_exact())
        };
        self.patterns.iter().any(named)
    }

    /// Whether packets by an interface are, or are about to be, judged: on it or on a lower device.
    pub fn is_judged(&self, index: u32) -> bool {
        let wanted = |index| self.known.get(&index).is_some_and(|one| self.wanted(one));
        judged(index, &self.known, &wanted)
    }

    /// Takes a whole list, at the start and when changes were lost.
    pub fn replace(&mut self, list: Vec<Interface>) -> Todo {
        let mut todo = Todo {
            own_addresses: true,
            ..Todo::default()
        };
        let listed: BTreeSet<u32> = list.iter().map(|interface| interface.index).collect();
        let gone: Vec<u32> = self
            .known
            .keys()
            .copied()
            .filter(|index| !listed.contains(index))
            .collect();
        for index in gone {
            self.remove(index, &mut todo);
        }
        // All of them first, for whether one is wanted may depend on another.
        self.known
            .extend(list.into_iter().map(|interface| (interface.index, interface)));
        for index in listed {
            self.judge(index, &mut todo);
        }
        todo
    }

    pub fn change(&mut self, change: Change) -> Todo {
        let mut todo = Todo::default();
        match change {
            Change::Link(interface) => {
                let index = interface.index;
                let before = self.known.remove(&index);
                let addresses = before
                    .as_ref()
                    .map(|before| before.addresses.clone())
                    .unwrap_or_default();
                let now = Interface {
                    addresses,
                    ..interface
                };
                // A change of size or state may be what a refused interface was waiting for.
                if before.is_some_and(|before| before != now)
                    && matches!(self.states.get(&index), Some(State::Refused { .. }))
                {
                    self.states.remove(&index);
                }
                self.known.insert(index, now);
                self.judge(index, &mut todo);
            }
            Change::Gone { index, .. } => self.remove(index, &mut todo),
            Change::AddressAdded { index, address } => {
                if let Some(interface) = self.known.get_mut(&index)
                    && !interface.addresses.contains(&address)
                {
                    interface.addresses.push(address);
                    todo.own_addresses = true;
                }
            }
            Change::AddressRemoved { index, address } => {
                if let Some(interface) = self.known.get_mut(&index) {
                    interface.addresses.retain(|known| *known != address);
                    todo.own_addresses = true;
                }
            }
            Change::Missed => todo.relist = true,
        }
        todo
    }

    fn judge(&mut self, index: u32, todo: &mut Todo) {
        let Some(interface) = self.known.get(&index) else {
            return;
        };
        // What is filtered stays so under any name: a rename must not open a host.
        match (self.wanted(interface), self.states.contains_key(&index)) {
            (true, false) => todo.attach.push(index),
            // A tap that a bridge took in.
            (false, true) if self.patterns.is_empty() => {
                self.states.remove(&index);
                todo.detach.push(index);
            }
            _ => {}
        }
    }

    fn remove(&mut self, index: u32, todo: &mut Todo) {
        let Some(interface) = self.known.remove(&index) else {
            return;
        };
        todo.own_addresses |= !interface.addresses.is_empty();
        self.repairs.remove(&index);
        if self.states.remove(&index).is_some() {
            todo.gone.push((index, interface.name));
        }
    }

    pub fn attached(&mut self, index: u32, attachment: Attachment) {
        self.states.insert(index, State::Attached(attachment));
    }

    pub fn is_attached(&self, index: u32) -> bool {
        matches!(self.states.get(&index), Some(State::Attached(_)))
    }

    /// Notes that something was put back.
    pub fn repaired(&mut self, index: u32, part: Part, what: String) {
        let repairs = self.repairs.entry(index).or_default();
        *repairs.count.entry(part).or_default() += 1;
        repairs.last = what;
    }

    pub fn repairs(&self, index: u32) -> Option<&Repairs> {
        self.repairs.get(&index)
    }

    /// The interfaces that are not filtered, and why not.
    pub fn uncovered(&self) -> impl Iterator<Item = (&Interface, String)> {
        self.known
            .values()
            .filter(|interface| !self.states.contains_key(&interface.index))
            .map(|interface| {
                let filtered = |index| self.states.contains_key(&index);
                let named = !self.patterns.is_empty();
                (interface, words(interface, &self.known, filtered, named))
            })
    }

    /// Notes a refusal; gives how long to wait.
    pub fn refused(&mut self, index: u32, error: String, now: Instant) -> Duration {
        let wait = match self.states.get(&index) {
            Some(State::Refused { wait, .. }) => (*wait * 2).min(LAST_RETRY),
            _ => FIRST_RETRY,
        };
        self.states.insert(
            index,
            State::Refused {
                error,
                again: now + wait,
                wait,
            },
        );
        wait
    }

    /// Refused interfaces whose time has come.
    pub fn due(&self, now: Instant) -> Vec<u32> {
        let due = |state: &State| matches!(state, State::Refused { again, .. } if *again <= now);
        self.states
            .iter()
            .filter(|(_, state)| due(state))
            .map(|(index, _)| *index)
            .collect()
    }

    pub fn next_retry(&self) -> Option<Instant> {
        let again = |state: &State| match state {
            State::Refused { again, .. } => Some(*again),
            State::Attached(_) => None,
        };
        self.states.values().filter_map(again).min()
    }

    pub fn get(&self, index: u32) -> Option<&Interface> {
        self.known.get(&index)
    }

    pub fn known(&self) -> impl Iterator<Item = &Interface> {
        self.known.values()
    }

    /// The interfaces asked for, with what came of it.
    pub fn states(&self) -> impl Iterator<Item = (&Interface, &State)> {
        self.states
            .iter()
            .filter_map(|(index, state)| Some((self.known.get(index)?, state)))
    }

    /// Patterns that match nothing.
    pub fn unmatched(&self) -> Vec<String> {
        if self.patterns.is_empty() {
            let any = self.known.values().any(|interface| self.wanted(interface));
            return if any { Vec::new() } else { vec![OUTSIDE.to_owned()] };
        }
        let matched = |pattern: &Pattern| {
            self.known
                .values()
                .any(|interface| pattern.matches(&interface.name))
        };
        self.patterns
            .iter()
            .filter(|pattern| !matched(pattern))
            .map(ToString::to_string)
            .collect()
    }

    /// Something is filtered, and nothing that was named is missing or refuses.
    pub fn ready(&self) -> bool {
        let named = |pattern: &&Pattern| pattern.is_exact();
        let there = |pattern: &Pattern| {
            self.known
                .values()
                .any(|interface| pattern.matches(&interface.name))
        };
        !self.states.is_empty()
            && self
                .states
                .values()
                .all(|state| matches!(state, State::Attached(_)))
            && self.patterns.iter().filter(named).all(there)
    }

    /// The addresses of this host; without the loopback's, which cannot come from the wire whoever has them.
    pub fn own_addresses(&self) -> Vec<IpAddr> {
        let all = self.known.values().flat_map(|one| one.addresses.iter().copied());
        let own: BTreeSet<IpAddr> = all.filter(|address| !address.is_loopback()).collect();
        own.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::{Ingress, TcMode};

    fn interface(index: u32, name: &str) -> Interface {
        Interface {
            index,
            name: name.into(),
            hardware: 1,
            ethernet: true,
            ..Interface::default()
        }
    }

    fn links(patterns: &[&str]) -> Links {
        Links::new(patterns.iter().map(|text| text.parse().expect(text)).collect())
    }

    fn attach(links: &mut Links, index: u32) {
        let attachment = Attachment {
            ingress: Ingress::Native,
            frags: true,
            egress: Some(TcMode::Tcx),
            detail: None,
            programs: [1, 2],
        };
        links.attached(index, attachment);
    }

    #[test]
    fn follows_interfaces_that_come_go_and_are_renamed() {
        let mut links = links(&["eth*", "lan0"]);
        let todo = links.replace(vec![interface(2, "eth0"), interface(3, "wan0")]);
        assert_eq!(todo.attach, [2]);
        attach(&mut links, 2);
        assert_eq!(
            (links.unmatched(), links.ready()),
            (vec!["lan0".to_owned()], false)
        );

        // Renamed into the pattern, and out of it.
        assert_eq!(links.change(Change::Link(interface(3, "lan0"))).attach, [3]);
        attach(&mut links, 3);
        assert!(links.ready());
        assert_eq!(links.change(Change::Link(interface(2, "old0"))), Todo::default());
        assert!(links.ready(), "what was attached stays so under its new name");

        // Re-created: another index.
        assert_eq!(
            links
                .change(Change::Gone {
                    index: 3,
                    name: "lan0".into()
                })
                .gone,
            [(3, "lan0".to_owned())]
        );
        assert_eq!(links.change(Change::Link(interface(9, "lan0"))).attach, [9]);
        // Already attached: nothing to do.
        attach(&mut links, 9);
        assert_eq!(links.change(Change::Link(interface(9, "lan0"))), Todo::default());
    }

    #[test]
    fn by_default_all_that_lead_outside_and_a_star_spares_the_loopback() {
        let list = || {
            let loopback = Interface {
                loopback: true,
                ..interface(1, "lo")
            };
            let pair = Interface {
                kind: Some("veth".into()),
                ..interface(3, "veth0")
            };
            vec![loopback, interface(2, "eth0"), pair]
        };
        let mut by_default = links(&[]);
        assert_eq!(by_default.replace(list()).attach, [2]);
        attach(&mut by_default, 2);
        let left: Vec<&str> = by_default.uncovered().map(|(one, _)| one.name.as_str()).collect();
        assert_eq!(left, ["lo", "veth0"]);
        assert_eq!(links(&["*"]).replace(list()).attach, [2, 3]);
        assert_eq!(links(&["lo"]).replace(list()).attach, [1]);
        assert_eq!(links(&[]).unmatched(), [OUTSIDE]);
    }

    #[test]
    fn a_tap_that_a_bridge_takes_in_is_let_go() {
        let tap = |master| Interface {
            kind: Some("tun".into()),
            master,
            ..interface(4, "vnet0")
        };
        let mut by_default = links(&[]);
        assert_eq!(by_default.replace(vec![tap(None)]).attach, [4]);
        attach(&mut by_default, 4);
        let todo = by_default.change(Change::Link(tap(Some(7))));
        assert_eq!((todo.attach, todo.detach), (vec![], vec![4]));
        assert_eq!(by_default.change(Change::Link(tap(None))).attach, [4]);

        // Named, it stays.
        let mut named = links(&["vnet*"]);
        named.replace(vec![tap(None)]);
        attach(&mut named, 4);
        assert_eq!(named.change(Change::Link(tap(Some(7)))), Todo::default());
    }

    #[test]
    fn repairs_are_counted_until_the_interface_goes() {
        let mut links = links(&["eth0"]);
        links.replace(vec![interface(2, "eth0")]);
        links.repaired(2, Part::Xdp, "first".into());
        links.repaired(2, Part::Xdp, "second".into());
        let repairs = links.repairs(2).cloned().unwrap_or_default();
        assert_eq!(
            (repairs.count.get(&Part::Xdp), repairs.last.as_str()),
            (Some(&2), "second")
        );
        links.replace(Vec::new());
        assert_eq!(links.repairs(2), None);
    }

    #[test]
    fn refusals_are_retried_ever_more_rarely_or_when_the_interface_changes() {
        let mut links = links(&["eth0"]);
        links.replace(vec![interface(2, "eth0")]);
        let start = Instant::now();
        assert_eq!(links.refused(2, "busy".into(), start), FIRST_RETRY);
        assert_eq!(
            (links.due(start), links.due(start + FIRST_RETRY)),
            (vec![], vec![2])
        );
        assert_eq!(links.refused(2, "busy".into(), start), FIRST_RETRY * 2);
        for _ in 0..20 {
            links.refused(2, "busy".into(), start);
        }
        assert_eq!(links.next_retry(), Some(start + LAST_RETRY));
        assert_eq!(links.change(Change::Link(interface(2, "eth0"))), Todo::default());
        assert_eq!(
            links
                .change(Change::Link(Interface {
                    up: true,
                    ..interface(2, "eth0")
                }))
                .attach,
            [2]
        );
    }

    #[test]
    fn own_addresses_are_those_of_all_interfaces() {
        let mut links = links(&["eth0"]);
        links.replace(vec![interface(2, "eth0"), interface(3, "wan0")]);
        let address: IpAddr = "192.0.2.1".parse().expect("an address");
        assert!(
            links
                .change(Change::AddressAdded { index: 3, address })
                .own_addresses
        );
        assert!(
            !links
                .change(Change::AddressAdded { index: 3, address })
                .own_addresses
        );
        assert_eq!(links.own_addresses(), [address]);
        // A change of the link does not carry them.
        links.change(Change::Link(Interface {
            up: true,
            ..interface(3, "wan0")
        }));
        assert_eq!(links.own_addresses(), [address]);
        assert!(
            links
                .change(Change::Gone {
                    index: 3,
                    name: "wan0".into()
                })
                .own_addresses
        );
        assert!(links.own_addresses().is_empty());
    }
}
