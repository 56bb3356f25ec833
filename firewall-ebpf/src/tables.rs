//! The tables of flows and of fragments over maps: sets of words that all CPUs share.

use core::arch::asm;

use crate::maps::{FLOWS, FRAGMENTS};
use firewall_common::flow::{SET_WORDS, Set, Table};
use firewall_common::fragment;

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
        FLOWS.get_ptr_mut(hash & self.mask).map(|set| MapSet(set.cast()))
    }
}

impl Table for FragmentTable {
    type Set = MapSet;

    #[inline(always)]
    fn set(&self, hash: u32) -> Option<MapSet> {
        let index = hash & (fragment::SETS - 1);
        FRAGMENTS.get_ptr_mut(index).map(|set| MapSet(set.cast()))
    }
}

/// [`SET_WORDS`] words of a map.
#[derive(Clone, Copy)]
pub struct MapSet(*mut u64);

impl MapSet {
    #[inline(always)]
    fn at(self, index: u32) -> *mut u64 {
        // SAFETY: the mask keeps it within the value, which is SET_WORDS words.
        unsafe { self.0.add((index & (SET_WORDS - 1)) as usize) }
    }
}

impl Set for MapSet {
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
