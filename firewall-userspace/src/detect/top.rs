//! The sources that sent most, in bounded memory: the space-saving summary (Metwally, Agrawal, El Abbadi 2005).
//!
//! [`CELLS`] sources are counted. Who is not among them takes the place of the least, and inherits its count for the order
//! of displacement, but is told without it: nobody is told to have sent more than he did. What is told is too low by at
//! most a [`CELLS`]th of all that was added, and a source with a larger share than that is always among them,
//! however many others there are and in whatever order they come.
//!
//! Two such summaries stand for [`WINDOW`] each, the present one and the one before: a source that sends nothing any more
//! is forgotten after twice that.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

pub const CELLS: usize = 64;
pub const WINDOW: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
struct Cell<K> {
    key: K,
    count: u64,
    /// Of the count: from whom it took the place.
    inherited: u64,
}

/// The summary of one window.
#[derive(Clone, Debug)]
struct Summary<K> {
    cells: Vec<Cell<K>>,
    /// All that was added.
    sum: u64,
}

impl<K> Default for Summary<K> {
    fn default() -> Self {
        Summary {
            cells: Vec::new(),
            sum: 0,
        }
    }
}

impl<K: Eq + Copy> Summary<K> {
    fn add(&mut self, key: K, weight: u64) {
        self.sum = self.sum.saturating_add(weight);
        if let Some(cell) = self.cells.iter_mut().find(|cell| cell.key == key) {
            cell.count = cell.count.saturating_add(weight);
            return;
        }
        let cell = |inherited: u64| Cell {
            key,
            count: inherited.saturating_add(weight),
            inherited,
        };
        if self.cells.len() < CELLS {
            self.cells.push(cell(0));
        } else if let Some(least) = self.cells.iter_mut().min_by_key(|cell| cell.count) {
            *least = cell(least.count);
        }
    }
}

/// A source, what was counted of it, and its share of all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share<K> {
    pub key: K,
    /// Never too high.
    pub count: u64,
    /// Never too high, too low by a [`CELLS`]th at most.
    pub share: f64,
}

/// The top sources of the last [`WINDOW`] or two.
#[derive(Clone, Debug)]
pub struct Top<K> {
    now: Summary<K>,
    before: Summary<K>,
    began: Duration,
}

impl<K: Eq + Hash + Copy + Ord> Top<K> {
    pub fn new(uptime: Duration) -> Top<K> {
        Top {
            now: Summary::default(),
            before: Summary::default(),
            began: uptime,
        }
    }

    /// Forgets what is too old.
    pub fn turn(&mut self, uptime: Duration) {
        let age = uptime.saturating_sub(self.began);
        if age < WINDOW {
            return;
        }
        let ended = std::mem::take(&mut self.now);
        self.before = if age < WINDOW * 2 {
            ended
        } else {
            Summary::default()
        };
        self.began = uptime;
    }

    pub fn add(&mut self, key: K, weight: u64, uptime: Duration) {
        self.turn(uptime);
        self.now.add(key, weight);
    }

    /// The first of them, the largest first.
    pub fn first(&self, most: usize) -> Vec<Share<K>> {
        let mut counts: HashMap<K, u64> = HashMap::new();
        for cell in self.now.cells.iter().chain(&self.before.cells) {
            let sum = counts.entry(cell.key).or_default();
            *sum = sum.saturating_add(cell.count - cell.inherited);
        }
        let all = self.now.sum.saturating_add(self.before.sum).max(1);
        let mut shares: Vec<Share<K>> = counts
            .into_iter()
            .map(|(key, count)| Share {
                key,
                count,
                share: count as f64 / all as f64,
            })
            .collect();
        shares.sort_by_key(|share| (std::cmp::Reverse(share.count), share.key));
        shares.truncate(most);
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: Duration = Duration::ZERO;

    #[test]
    fn the_largest_come_first_with_their_shares() {
        let mut top = Top::new(START);
        for (key, weight) in [(1, 10), (2, 60), (1, 10), (3, 20)] {
            top.add(key, weight, START);
        }
        let first = top.first(2);
        assert_eq!(
            first.iter().map(|one| (one.key, one.count)).collect::<Vec<_>>(),
            [(2, 60), (1, 20)]
        );
        assert!((first[0].share - 0.6).abs() < 1e-9);
    }

    #[test]
    fn who_is_silent_is_forgotten_after_two_windows() {
        let mut top = Top::new(START);
        top.add(1, 100, START);
        top.add(2, 1, WINDOW);
        assert_eq!(top.first(5).len(), 2);
        top.add(2, 1, WINDOW * 2);
        assert_eq!(top.first(5).iter().map(|one| one.key).collect::<Vec<_>>(), [2]);
        // Also if nothing at all comes for long.
        top.turn(WINDOW * 5);
        assert_eq!(top.first(5), []);
    }

    proptest! {
        /// The error that is stated, whatever comes in whatever order.
        #[test]
        fn counts_are_never_high_and_low_by_a_cells_share_at_most(
            keys in prop::collection::vec((0_u32..400, 1_u64..5), 1..4000)
        ) {
            let mut top = Top::new(START);
            let mut exact: HashMap<u32, u64> = HashMap::new();
            for (key, weight) in &keys {
                top.add(*key, *weight, START);
                *exact.entry(*key).or_default() += weight;
            }
            let all: u64 = exact.values().sum();
            let error = all / CELLS as u64 + 1;
            let told: HashMap<u32, u64> =
                top.first(usize::MAX).iter().map(|one| (one.key, one.count)).collect();
            prop_assert!(told.len() <= CELLS);
            for (key, count) in &told {
                let truth = exact[key];
                prop_assert!(*count <= truth && *count + error >= truth, "{count} of {truth}");
            }
            for (key, count) in &exact {
                prop_assert!(*count <= error || told.contains_key(key), "{key} with {count} of {all} is missing");
            }
        }
    }
}
