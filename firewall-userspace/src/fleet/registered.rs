//! The nodes of the fleet as this one knows them: what they say of themselves, who of them counts, and since when one
//! that vanished is missed.
//!
//! A node whose lease is lost counts for a grace time. While the store is out of reach nobody is missed, and after the
//! store was wiped or restored only those are missed that came back to it and vanished again: an empty store says
//! nothing about the nodes.

use super::report::Registration;
use super::selector::Selector;
use bytes::Bytes;
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A registration as this node takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub registration: Registration,
    /// Signed by a key that the trusted signers have for this node.
    pub proven: bool,
    /// Addresses that count wherever the labels match. The others count where a group's signed `within` holds them, so
    /// whoever owns the store opens nothing that nobody signed.
    pub sure: Vec<IpAddr>,
    /// As it stood in the store.
    pub stored: Bytes,
}

/// The nodes that count, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes(pub BTreeMap<String, Arc<Member>>);

impl Nodes {
    /// The addresses of the nodes of a selector that count, in the order of the nodes' names.
    pub fn addresses(&self, nodes: &Selector, within: Option<&[IpNetwork]>) -> Vec<IpAddr> {
        let meant = self
            .0
            .values()
            .filter(|member| nodes.matches(&member.registration.labels));
        let counts = |member: &Member, address: &IpAddr| match within {
            Some(within) => within.iter().any(|prefix| prefix.contains(*address)),
            None => member.sure.contains(address),
        };
        meant
            .flat_map(|member| {
                let addresses = member.registration.addresses.iter();
                addresses.filter(|address| counts(member, address)).copied()
            })
            .collect()
    }
}

/// Nodes known at most: what the store holds beyond is not taken.
const MOST: usize = 100_000;

#[derive(Debug)]
struct Known {
    member: Arc<Member>,
    /// Seen in the store since it is this one.
    seen: bool,
    /// Boot clock: since when it is missed.
    missed: Option<Duration>,
}

/// See the top of this file.
#[derive(Debug, Default)]
pub struct Registered {
    known: BTreeMap<String, Known>,
    nodes: Arc<Nodes>,
}

impl Registered {
    /// Those of an earlier run.
    pub fn restore(&mut self, members: impl IntoIterator<Item = Member>) {
        for member in members {
            let known = Known {
                member: Arc::new(member),
                seen: true,
                missed: None,
            };
            self.known
                .insert(known.member.registration.name().to_owned(), known);
        }
        self.turn();
    }

    /// The store is another one than before, or goes back behind what it said.
    pub fn other_store(&mut self) {
        for known in self.known.values_mut() {
            known.seen = false;
            known.missed = None;
        }
    }

    /// The store is out of reach.
    pub fn pause(&mut self) {
        for known in self.known.values_mut() {
            known.missed = None;
        }
    }

    /// All that are registered now.
    pub fn replace(&mut self, members: impl IntoIterator<Item = Member>, boot: Duration) {
        let mut present = BTreeSet::new();
        for member in members {
            present.insert(member.registration.name().to_owned());
            self.note(member);
        }
        for (name, known) in &mut self.known {
            if !present.contains(name) && known.seen {
                known.missed.get_or_insert(boot);
            }
        }
        self.turn();
    }

    /// One that registers, or says something new.
    pub fn put(&mut self, member: Member) {
        self.note(member);
        self.turn();
    }

    fn note(&mut self, member: Member) {
        let name = member.registration.name().to_owned();
        if self.known.len() >= MOST && !self.known.contains_key(&name) {
            return;
        }
        let known = self.known.entry(name).or_insert_with(|| Known {
            member: Arc::new(member.clone()),
            seen: true,
            missed: None,
        });
        known.seen = true;
        known.missed = None;
        // What a key has proven is not undone by one without, nor by an older word.
        let behind =
            known.member.proven && (!member.proven || member.registration.at < known.member.registration.at);
        if !behind && *known.member != member {
            known.member = Arc::new(member);
        }
    }

    /// One whose key is gone.
    pub fn gone(&mut self, name: &str, boot: Duration) {
        if let Some(known) = self.known.get_mut(name) {
            known.missed.get_or_insert(boot);
        }
    }

    /// Lets go of those who are missed for longer than `grace`.
    pub fn age(&mut self, boot: Duration, grace: Duration) {
        let before = self.known.len();
        self.known.retain(|_, known| {
            known
                .missed
                .is_none_or(|since| boot.saturating_sub(since) < grace)
        });
        if self.known.len() != before {
            self.turn();
        }
    }

    /// Boot clock: when [`Registered::age`] has something to do.
    pub fn next(&self, grace: Duration) -> Option<Duration> {
        self.known
            .values()
            .filter_map(|known| known.missed)
            .min()
            .map(|since| since + grace)
    }

    pub fn nodes(&self) -> Arc<Nodes> {
        self.nodes.clone()
    }

    fn turn(&mut self) {
        let now = self
            .known
            .iter()
            .map(|(name, known)| (name.clone(), known.member.clone()));
        let now = Nodes(now.collect());
        if *self.nodes != now {
            self.nodes = Arc::new(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::selector::Labels;

    const GRACE: Duration = Duration::from_secs(60);

    fn member(name: &str, address: &str, at: u64) -> Member {
        Member {
            registration: Registration {
                labels: Labels::new(name, []).expect("a name"),
                addresses: vec![address.parse().expect("an address")],
                version: String::new(),
                at,
            },
            proven: false,
            sure: Vec::new(),
            stored: Bytes::new(),
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn names(registered: &Registered) -> Vec<String> {
        registered.nodes().0.keys().cloned().collect()
    }

    #[test]
    fn one_that_vanishes_counts_for_the_grace_time_and_no_longer() {
        let mut registered = Registered::default();
        registered.replace(
            [member("a", "192.0.2.1", 1), member("b", "192.0.2.2", 1)],
            seconds(0),
        );
        registered.gone("b", seconds(10));
        assert_eq!(registered.next(GRACE), Some(seconds(70)));
        registered.age(seconds(69), GRACE);
        assert_eq!(names(&registered), ["a", "b"]);
        registered.age(seconds(70), GRACE);
        assert_eq!(names(&registered), ["a"]);
        assert_eq!(registered.next(GRACE), None);
    }

    #[test]
    fn one_that_comes_back_in_time_was_never_away() {
        let mut registered = Registered::default();
        registered.put(member("a", "192.0.2.1", 1));
        registered.replace([], seconds(10));
        registered.put(member("a", "192.0.2.9", 2));
        registered.age(seconds(1000), GRACE);
        assert_eq!(names(&registered), ["a"]);
        assert_eq!(
            registered.nodes().0["a"].registration.addresses[0].to_string(),
            "192.0.2.9"
        );
    }

    #[test]
    fn nobody_ages_while_the_store_is_out_of_reach() {
        let mut registered = Registered::default();
        registered.put(member("a", "192.0.2.1", 1));
        registered.gone("a", seconds(10));
        registered.pause();
        registered.age(seconds(1000), GRACE);
        assert_eq!(names(&registered), ["a"]);
        // Back, and still away: the time begins anew.
        registered.replace([], seconds(1000));
        registered.age(seconds(1059), GRACE);
        assert_eq!(names(&registered), ["a"]);
        registered.age(seconds(1060), GRACE);
        assert!(names(&registered).is_empty());
    }

    #[test]
    fn a_wiped_store_ages_only_those_that_came_back_to_it() {
        let mut registered = Registered::default();
        registered.replace(
            [member("a", "192.0.2.1", 1), member("b", "192.0.2.2", 1)],
            seconds(0),
        );
        registered.other_store();
        registered.replace([], seconds(10));
        registered.age(seconds(1000), GRACE);
        assert_eq!(names(&registered), ["a", "b"]);
        registered.put(member("b", "192.0.2.2", 2));
        registered.replace([], seconds(1000));
        registered.age(seconds(2000), GRACE);
        assert_eq!(names(&registered), ["a"]);
    }

    #[test]
    fn an_address_counts_where_it_is_sure_or_within_what_was_signed() {
        let mut registered = Registered::default();
        let sure = Member {
            sure: vec!["192.0.2.1".parse().expect("an address")],
            ..member("a", "192.0.2.1", 1)
        };
        registered.replace(
            [sure, member("b", "192.0.2.2", 1), member("c", "198.51.100.3", 1)],
            seconds(0),
        );
        let addresses = |nodes: &str, within: Option<&str>| -> Vec<String> {
            let within = within.map(|prefix| vec![prefix.parse().expect("a prefix")]);
            let nodes: Selector = nodes.parse().expect("a selector");
            let found = registered.nodes().addresses(&nodes, within.as_deref());
            found.iter().map(ToString::to_string).collect()
        };
        assert_eq!(addresses("*", None), ["192.0.2.1"]);
        assert_eq!(addresses("*", Some("192.0.2.0/24")), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(addresses("name=b", Some("192.0.2.0/24")), ["192.0.2.2"]);
        assert!(addresses("name=b", None).is_empty());
        assert!(addresses("*", Some("203.0.113.0/24")).is_empty());
    }

    #[test]
    fn what_a_key_has_proven_stands_against_those_without_and_those_before() {
        let mut registered = Registered::default();
        let proven = |address, at| Member {
            proven: true,
            ..member("a", address, at)
        };
        registered.put(proven("192.0.2.1", 5));
        for forged in [member("a", "198.51.100.1", 9), proven("198.51.100.1", 4)] {
            registered.put(forged);
            assert_eq!(
                registered.nodes().0["a"].registration.addresses[0].to_string(),
                "192.0.2.1"
            );
        }
        registered.put(proven("192.0.2.3", 6));
        assert_eq!(
            registered.nodes().0["a"].registration.addresses[0].to_string(),
            "192.0.2.3"
        );
    }
}
