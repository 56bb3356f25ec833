//! What stands in maps for all packets: control cell, configurations, images, and the clock.

use crate::maps::{CONFIG, CONTROL, IMAGES, ImageMap, ROOM, Room};
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use firewall_common::control::{Config, Control};
use firewall_common::image::{PAGE_SIZE, Page, Pages};

#[inline(always)]
pub fn control() -> Option<&'static Control> {
    CONTROL.get(0)
}

#[inline(always)]
pub fn config(slot: u32) -> Option<&'static Config> {
    CONFIG.get(slot)
}

/// The image of a slot. Before the first policy the slots are empty.
#[inline(always)]
pub fn policy_pages(slot: u32, control: Option<&'static Control>) -> Option<PolicyPages> {
    let zero = control.map_or(0, zero);
    IMAGES.get(slot).map(|pages| PolicyPages { pages, zero })
}

/// This CPU's own room; programs run with bottom halves off and do not interrupt each other.
#[inline(always)]
pub fn room() -> Option<&'static mut Room> {
    // SAFETY: see above.
    ROOM.get_ptr_mut(0).map(|room| unsafe { &mut *room })
}

/// Zero, but nobody tells the verifier: a word of a map is any number to the verifier.
#[inline(always)]
pub fn zero(control: &Control) -> u64 {
    // SAFETY: an aligned word of a map that nobody writes; volatile, or it would be read again at every use.
    unsafe { (&raw const control.zero).read_volatile() }
}

/// Monotonic clock of the last tick, seconds.
#[inline(always)]
pub fn now_s() -> u32 {
    // SAFETY: the helper takes no arguments. It costs 3-7 ns, the exact clock ten times as much.
    (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
}

/// [`Control::seed`].
#[inline(always)]
pub fn seed() -> u64 {
    control().map_or(0, |control| control.seed)
}

/// Monotonic clock, nanoseconds: of the last tick, or the exact one.
#[inline(always)]
pub fn now_ns(exact: bool) -> u64 {
    // SAFETY: the helpers take no arguments.
    unsafe {
        if exact {
            bpf_ktime_get_ns()
        } else {
            bpf_ktime_get_coarse_ns()
        }
    }
}

/// The pages of the image that a packet is judged by.
pub struct PolicyPages {
    pages: &'static ImageMap,
    zero: u64,
}

impl Pages for PolicyPages {
    type Page = PolicyPage;

    #[inline(always)]
    fn page(&self, index: u32) -> Option<PolicyPage> {
        self.pages.get_ptr(index).map(|page| PolicyPage(page.cast()))
    }

    #[inline(always)]
    fn opaque(&self, word: u64) -> u64 {
        word ^ self.zero
    }
}

/// One page in the map.
#[derive(Clone, Copy)]
pub struct PolicyPage(pub *const u8);

impl PolicyPage {
    #[inline(always)]
    fn at<T: Copy>(self, at: u32) -> T {
        let at = at as usize & (PAGE_SIZE - size_of::<T>());
        // SAFETY: the mask keeps an aligned T inside of the page, which is aligned for u64.
        unsafe { self.0.add(at).cast::<T>().read() }
    }
}

impl Page for PolicyPage {
    #[inline(always)]
    fn u8(self, at: u32) -> u8 {
        self.at(at)
    }
    #[inline(always)]
    fn u16(self, at: u32) -> u16 {
        self.at(at)
    }
    #[inline(always)]
    fn u32(self, at: u32) -> u32 {
        self.at(at)
    }
    #[inline(always)]
    fn u64(self, at: u32) -> u64 {
        self.at(at)
    }
}
