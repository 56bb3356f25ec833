//! The tables of flows, of fragments and of limits over maps: sets of words that all CPUs share.

use core::arch::asm;

use crate::maps::{FLOWS, FRAGMENTS, SCOPES, SKETCHES};
use firewall_common::flow::{SET_WORDS, Set, Table};
use firewall_common::meter::Sketch;
use firewall_common::{fragment, limit};

/// The flow table; its size is the agent's choice.
pub struct FlowTable {
    /// [`firewall_common::control::Control::flow_mask`].
    pub mask: u32,
}

pub struct FragmentTable;

impl Table for FlowTable {
    type Set = MapSet;

    #[inline(always)]
    fn set(&self, hash: u32) -> Option<MapSet> {
        FLOWS
            .get_ptr_mut(hash & self.mask)
            .map(|set| MapWords(set.cast()))
    }
}

impl Table for FragmentTable {
    type Set = MapSet;

    #[inline(always)]
    fn set(&self, hash: u32) -> Option<MapSet> {
        let index = hash & (fragment::SETS - 1);
        FRAGMENTS.get_ptr_mut(index).map(|set| MapWords(set.cast()))
    }
}

/// `N` words of a map, a power of two.
#[derive(Clone, Copy)]
pub struct MapWords<const N: u32>(*mut u64);

/// A set of the flow table or the fragment table.
pub type MapSet = MapWords<SET_WORDS>;

impl<const N: u32> MapWords<N> {
    #[inline(always)]
    fn at(self, index: u32) -> *mut u64 {
        // SAFETY: the mask keeps it within the value, which is N words.
        unsafe { self.0.add((index & (N - 1)) as usize) }
    }
}

/// The words of a scope of the kernel.
#[inline(always)]
pub fn scope(number: u32) -> Option<MapWords<{ limit::scope::WORDS }>> {
    SCOPES.get_ptr_mut(number).map(|words| MapWords(words.cast()))
}

/// A line of a sketch.
#[inline(always)]
pub fn line(sketch: Sketch, line: u32) -> Option<MapWords<{ limit::WAYS }>> {
    let map = SKETCHES.get(sketch.scope * limit::TABLES + sketch.table)?;
    map.get_ptr_mut(line).map(|words| MapWords(words.cast()))
}

impl<const N: u32> Set for MapWords<N> {
    #[inline(always)]
    fn word(self, index: u32) -> u64 {
        // SAFETY: an aligned word of a map's value, see `at`; all write it by whole words.
        unsafe { self.at(index).read_volatile() }
    }

    #[inline(always)]
    fn put(self, index: u32, word: u64) {
        // SAFETY: as in `word`.
        unsafe { self.at(index).write_volatile(word) }
    }

    #[inline(always)]
    fn swap(self, index: u32, old: u64, new: u64) -> bool {
        let found: u64;
        // SAFETY: an aligned word of a map's value, see `at`. Kernel commit 5ffa25502b5a (5.12) has the instruction; the
        // compiler offers no compare-and-swap for this target.
        unsafe {
            asm!(
                "r0 = cmpxchg_64({at} + 0, r0, {new})",
                at = in(reg) self.at(index),
                new = in(reg) new,
                inout("r0") old => found,
                options(nostack),
            );
        }
        found == old
    }
}
