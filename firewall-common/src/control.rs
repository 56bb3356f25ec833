//! What user space tells the kernel, outside of the policy image.
//!
//! [`Control`] is one cell, written field by field with atomic stores through its mapping. A packet reads
//! [`Control::selector`] once and stays with that image, counters and configuration to its end. [`Config`] is
//! kept twice: the agent writes the idle copy, then switches the selector.

use crate::ban::{self, Escalation};
use crate::flow::State;
pub use crate::packet::{LINK_EAPOL, LINK_LACP, LINK_LLDP, LINK_STP};

/// Slots for images (with their counters) and for configurations: one in force, one to prepare.
pub const SLOTS: u32 = 2;

/// The only element of the map `CONTROL` (mmap-able array).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Control {
    /// A [`Selector`].
    pub selector: u64,
    /// Generation of the policy in each image slot.
    pub generation: [u64; SLOTS as usize],
    /// [`crate::counter::stride`] of the image in each slot, so that counting never waits for the image.
    pub stride: [u32; SLOTS as usize],
    /// Keys the hashes of [`crate::flow`] and [`crate::fragment`]; random, never changed while flows are remembered.
    pub seed: u64,
    /// Events are written while this is not zero. Drop reasons only, unless [`EVENTS_PASS`] is set.
    pub events: u32,
    /// Events per reason, CPU and second before sampling suppresses the rest.
    pub events_per_second: u32,
    /// Always zero; the BPF verifier does not know, see [`crate::image::Pages::opaque`].
    pub zero: u64,
    /// Number of sets of the map `FLOWS`, minus one: a power of two, minus one.
    pub flow_mask: u32,
    /// Not zero while the map `BANS` may hold a ban that is in force: it is not asked otherwise.
    pub bans: u32,
    /// `SO_NETNS_COOKIE` of the agent's network namespace: the one whose connections are counted.
    pub netns_cookie: u64,
    pub spare: [u64; 7],
}

pub const EVENTS_DROP: u32 = 1;
pub const EVENTS_PASS: u32 = 2;

const _: () = assert!(size_of::<Control>() == 128);

/// Which image slot and which configuration slot are in force. A plain word, for the BPF verifier refuses the
/// undefined half of an `Option`; slots that were never filled are empty, and an empty slot drops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selector(pub u64);

impl Selector {
    /// Slots are taken modulo [`SLOTS`].
    pub const fn new(image: u32, config: u32) -> Selector {
        Selector((image % SLOTS) as u64 | ((config % SLOTS) as u64) << 8)
    }

    #[inline(always)]
    pub const fn image(self) -> u32 {
        self.0 as u32 % SLOTS
    }

    #[inline(always)]
    pub const fn config(self) -> u32 {
        (self.0 >> 8) as u32 % SLOTS
    }
}

/// Node configuration: element of the map `CONFIG` (array of [`SLOTS`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// Not zero: observe, that is, count what would drop and pass it.
    pub observe: u32,
    /// Set of `LINK_*`.
    pub link_control: u32,
    /// Bit [`bloom_bit`] is set for each own address; a hit asks the map `LOCAL`.
    pub own_bloom: [u64; BLOOM_WORDS],
    /// Bit `dst_port % 64` is set for each failsafe port; a hit reads the list.
    pub failsafe_bloom: u64,
    /// Entries of `failsafe` in use.
    pub failsafe_count: u32,
    /// Set of `CHALLENGE_*`: what the kernel can do about SYN cookies.
    pub challenge: u32,
    /// Seconds without excess after which a challenge ends.
    pub challenge_quiet_s: u32,
    pub pad: u32,
    /// Seconds by [`crate::flow::State`].
    pub flow_timeouts: [u32; State::COUNT],
    /// Lengths of the prefixes in the map `BANS`, of IPv4 and IPv6, then [`ban::NO_LENGTH`].
    pub ban_lens: [[u8; ban::LENGTHS]; 2],
    /// The fields of [`Escalation`].
    pub ban_percent: u32,
    pub ban_longest_s: u32,
    pub ban_forget_s: u32,
    pub pad2: u32,
    pub failsafe: [Failsafe; MAX_FAILSAFE],
}

/// SYN cookies can be given at XDP.
pub const CHALLENGE_GIVE: u32 = 1;
/// The kernel takes the options of a connection from the timestamp that its peer echoes (`tcp_timestamps` = 2).
pub const CHALLENGE_OPTIONS: u32 = 2;
/// The kernel gives them whatever room a listener has (`tcp_syncookies` = 2).
pub const CHALLENGE_ALWAYS: u32 = 4;
/// From this bit on, 4 bits: the window scale that the kernel will choose for a connection.
pub const CHALLENGE_SCALE_SHIFT: u32 = 8;
/// [`Config::challenge_quiet_s`] unless the agent is told otherwise.
pub const CHALLENGE_QUIET_S: u32 = 10;

pub const BLOOM_WORDS: usize = 64;
pub const MAX_FAILSAFE: usize = 32;

/// A (protocol, port, prefix) that no policy can close. TCP, UDP or SCTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Failsafe {
    /// Source prefix, big-endian halves of an IPv6 address; IPv4 stands in the low 32 bits of `prefix_low`.
    pub prefix_high: u64,
    pub prefix_low: u64,
    /// Masks of the same shape; bits of the prefix outside of them are zero.
    pub mask_high: u64,
    pub mask_low: u64,
    pub dst_port: u16,
    pub protocol: u8,
    /// 4 or 6.
    pub version: u8,
    pub pad: u32,
}

const _: () = assert!(size_of::<Failsafe>() == 40);
const _: () =
    assert!(size_of::<Config>() == 8 + BLOOM_WORDS * 8 + 24 + State::COUNT * 4 + 32 + MAX_FAILSAFE * 40);

impl Config {
    /// Enforcing, no own addresses, no failsafe, LACP, LLDP and EAPOL admitted.
    pub const DEFAULT: Config = Config {
        observe: 0,
        link_control: LINK_LACP | LINK_LLDP | LINK_EAPOL,
        own_bloom: [0; BLOOM_WORDS],
        failsafe_bloom: 0,
        failsafe_count: 0,
        challenge: 0,
        challenge_quiet_s: CHALLENGE_QUIET_S,
        pad: 0,
        flow_timeouts: crate::flow::TIMEOUTS,
        ban_lens: [[ban::NO_LENGTH; ban::LENGTHS]; 2],
        ban_percent: Escalation::DEFAULT.percent,
        ban_longest_s: Escalation::DEFAULT.longest_s,
        ban_forget_s: Escalation::DEFAULT.forget_s,
        pad2: 0,
        failsafe: [Failsafe {
            prefix_high: 0,
            prefix_low: 0,
            mask_high: 0,
            mask_low: 0,
            dst_port: 0,
            protocol: 0,
            version: 0,
            pad: 0,
        }; MAX_FAILSAFE],
    };

    /// Notes an own address (halves as in [`Failsafe`]); the caller also puts it into `LOCAL`.
    pub fn add_own_address(&mut self, high: u64, low: u64) {
        let bit = bloom_bit(high, low);
        self.own_bloom[bit as usize / 64] |= 1 << (bit % 64);
    }

    /// Adds a failsafe entry.
    ///
    /// # Errors
    /// Gives the entry back when [`MAX_FAILSAFE`] are in use.
    pub fn add_failsafe(&mut self, entry: Failsafe) -> Result<(), Failsafe> {
        let Some(cell) = self.failsafe.get_mut(self.failsafe_count as usize) else {
            return Err(entry);
        };
        *cell = entry;
        self.failsafe_count += 1;
        self.failsafe_bloom |= 1 << (entry.dst_port % 64);
        Ok(())
    }
}

/// Key of the hash map `LOCAL` (value `u32`, unused): one own address, halves as in [`Failsafe`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct AddressKey {
    pub high: u64,
    pub low: u64,
}

/// Bit of an address in [`Config::own_bloom`]: 0..4096.
#[inline(always)]
pub const fn bloom_bit(high: u64, low: u64) -> u32 {
    ((low ^ high.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as u32
}
