//! Limits: rates as time, the cells that hold them, and the sketch that tells sources apart.
//!
//! A rate is kept by the *generic cell rate algorithm* (ITU-T I.371): a cell holds the time at which everything that passed
//! will have been paid for. Each packet adds its cost (the time that the rate takes for it); what would run ahead of the
//! clock by more than the capacity (the time that the burst takes) is in excess and changes nothing. So at most
//! rate x time + burst passes, with one word and one compare-and-swap, whatever the number of CPUs.
//!
//! Totals have a word of 64 bits each. Sources share a *sketch*: lines of [`WAYS`] cells, a cell is a tag of 20 bits and 44
//! bits of time. A keyed hash gives a source its line and tag.
//!
//! * A cell whose time has come is worth nothing and is free: sources below their limit soon need no room.
//! * A source that finds its line full takes the cell that is least ahead **with what is on it** (Metwally's space saving, 2005).
//!   What a line forgets is never more than what its newcomers inherit, so nobody gets a fresh burst by pushing others out:
//!   the sketch may overcharge, never undercharge.
//! * An honest source is overcharged if all ways of its line are ahead by others, or if one of the line has its tag. With
//!   `n` sources ahead and `l` lines, n/l = r: P(Poisson(r) >= 8) + r / 2^19; for 100,000 in 65,536 lines 0.03 %.
//! * A cell that nobody touched for 2^44 units (16,384 times its burst or longer) reads as ahead for up to twice the burst:
//!   a chance of 1 in 8,192 for one who comes back after so long.
//!
//! Fail closed: what is contended for longer than [`TRIES`], or cannot be read, is in excess.

use crate::flow::Set;
use crate::image::Page;

/// Cells of a line.
pub const WAYS: u32 = 8;
/// Compare-and-swaps before a cell counts as contended.
pub const TRIES: u32 = 8;
/// Bits of time in a cell of a source.
pub const TIME_BITS: u32 = 44;
/// Of a cell of a source.
pub const SOURCE_TIME: u64 = (1 << TIME_BITS) - 1;
/// Of a total.
pub const TOTAL_TIME: u64 = u64::MAX;
/// A total counts time in 1/256 ns, a source's cell in that times two to the power of [`Rate::shift`].
pub const NS_SHIFT: u32 = 8;
/// The capacity of a source's rate is below this many units.
pub const SOURCE_CAPACITY: u64 = 1 << 30;
/// Fraction bits of the cost of a byte.
pub const BYTE_SHIFT: u32 = 16;
/// Bursts shorter than this are measured by the exact clock, the others by that of the last tick.
pub const EXACT_BELOW_NS: u64 = 200_000_000;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Kind {
    /// New connections.
    New = 0,
    Packets = 1,
    Bytes = 2,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::New, Kind::Packets, Kind::Bytes];

    #[inline(always)]
    pub const fn from_number(number: u32) -> Kind {
        match number {
            0 => Kind::New,
            1 => Kind::Packets,
            _ => Kind::Bytes,
        }
    }
}

/// Tables of a scope in the map `SKETCHES`: one for each [`Kind`], then that of [`COUNTS`].
pub const TABLES: u32 = 4;
/// Established connections by source.
pub const COUNTS: u32 = 3;
/// Scopes of an image.
pub const MAX_LOCAL: u32 = 1024;
/// Scopes of the kernel: those of the image in force, of the one before, and room.
pub const MAX_SCOPES: u32 = 2048;

/// Words of a scope, the value of the map `SCOPES`.
pub mod scope {
    pub const WORDS: u32 = 16;
    /// Totals, at this plus the [`super::Kind`].
    pub const TOTALS: u32 = 0;
    /// Established connections.
    pub const CONNECTIONS: u32 = 3;
    /// Every new connection is challenged until this second (low half); since which (high half).
    pub const CHALLENGED: u32 = 4;
    /// Lines of a sketch, minus 1.
    pub const SKETCH_MASK: u32 = 5;
    /// Lines of the table of counts, minus 1.
    pub const COUNT_MASK: u32 = 6;
    /// Hash of the scope's name; 0: nobody's.
    pub const NAME: u32 = 7;
    /// Cookies were given lately: segments are looked up until this second.
    pub const LOOK: u32 = 8;
    /// A total that all connections knock at while they are challenged: as long as they are in excess, the challenge goes on.
    pub const KNOCKS: u32 = 9;
}

/// A rate for one thing: a packet, a connection, or a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Units of time for one; for a byte with [`BYTE_SHIFT`] bits of fraction. 0: no limit.
    pub cost: u64,
    /// Units of time that may run ahead.
    pub capacity: u64,
    /// See [`NS_SHIFT`]. 0 for totals.
    pub shift: u32,
}

impl Rate {
    /// `amount` in `per_ns`, with a burst. The caller keeps the burst's time below 2^48 ns and `amount` from 1.
    pub const fn total(kind: Kind, amount: u64, per_ns: u64, burst: u64) -> Rate {
        Rate::with_shift(kind, amount, per_ns, burst, 0)
    }

    /// The same for each source.
    pub const fn source(kind: Kind, amount: u64, per_ns: u64, burst: u64) -> Rate {
        let mut shift = 0;
        while Rate::with_shift(kind, amount, per_ns, burst, shift).capacity >= SOURCE_CAPACITY {
            shift += 1;
        }
        Rate::with_shift(kind, amount, per_ns, burst, shift)
    }

    const fn with_shift(kind: Kind, amount: u64, per_ns: u64, burst: u64, shift: u32) -> Rate {
        let amount = if amount == 0 { 1 } else { amount as u128 };
        let units = (per_ns as u128) << NS_SHIFT;
        let fraction = match kind {
            Kind::Bytes => BYTE_SHIFT,
            Kind::New | Kind::Packets => 0,
        };
        // Rounded to the nearest; never free.
        let cost = ((units << fraction >> shift) + amount / 2) / amount;
        let cost = if cost == 0 { 1 } else { cost as u64 };
        Rate {
            cost,
            capacity: ((cost as u128 * burst as u128) >> fraction) as u64,
            shift,
        }
    }

    #[inline(always)]
    pub const fn is_unlimited(&self) -> bool {
        self.cost == 0
    }

    /// The clock in this rate's units.
    #[inline(always)]
    pub const fn time(&self, now_ns: u64) -> u64 {
        now_ns << NS_SHIFT >> (self.shift & 63)
    }

    /// What a packet of `length` bytes costs.
    #[inline(always)]
    pub const fn price(&self, kind: Kind, length: u32) -> u64 {
        match kind {
            Kind::Bytes => self.cost.wrapping_mul(length as u64) >> BYTE_SHIFT,
            Kind::New | Kind::Packets => self.cost,
        }
    }

    /// How far ahead of the clock those may run who have not proven their address, where proof is asked for.
    #[inline(always)]
    pub const fn unproven(&self, price: u64) -> u64 {
        let half = self.capacity / 2;
        if half > price { half } else { price }
    }
}

/// How far a cell is ahead of the clock. What is further ahead than twice the capacity is a time long past: the cell is worth
/// nothing. (Between one and two capacities the clock went back.)
#[inline(always)]
pub const fn ahead(cell: u64, now: u64, capacity: u64, mask: u64) -> u64 {
    let ahead = cell.wrapping_sub(now) & mask;
    if ahead <= capacity.wrapping_mul(2) {
        ahead
    } else {
        0
    }
}

/// One charge of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Charge {
    /// Of the source; see [`source_hash`].
    pub hash: u64,
    /// In the rate's units.
    pub now: u64,
    pub price: u64,
    pub capacity: u64,
    /// How far ahead this one may run: at most the capacity.
    pub allowed: u64,
}

impl Charge {
    /// Of one packet, at a time.
    #[inline(always)]
    pub fn new(rate: &Rate, kind: Kind, length: u32, now_ns: u64, hash: u64, reserves: bool) -> Charge {
        let price = rate.price(kind, length);
        Charge {
            hash,
            now: rate.time(now_ns),
            price,
            capacity: rate.capacity,
            allowed: if reserves {
                rate.unproven(price)
            } else {
                rate.capacity
            },
        }
    }

    /// The cell after the charge, `None` for excess.
    #[inline(always)]
    const fn pay(&self, cell: u64, mask: u64) -> Option<u64> {
        let next = ahead(cell, self.now, self.capacity, mask) + self.price;
        if next > self.allowed {
            return None;
        }
        Some(self.now.wrapping_add(next) & mask)
    }

    /// Charges a total: word `index` of a scope. Whether it is paid.
    #[inline(always)]
    pub fn total<S: Set>(&self, scope: S, index: u32) -> bool {
        for _ in 0..TRIES {
            let cell = scope.word(index);
            let Some(next) = self.pay(cell, TOTAL_TIME) else {
                return false;
            };
            if scope.swap(index, cell, next) {
                return true;
            }
        }
        false
    }

    /// Charges a source in its line. Whether it is paid.
    #[inline(always)]
    pub fn source<S: Set>(&self, line: S) -> bool {
        let tag = self.hash >> TIME_BITS;
        for _ in 0..TRIES {
            let way = match find(line, tag) {
                WAYS => self.least(line, tag),
                way => way,
            };
            let cell = line.word(way);
            let Some(next) = self.pay(cell & SOURCE_TIME, SOURCE_TIME) else {
                return false;
            };
            if line.swap(way, cell, tag << TIME_BITS | next) {
                return true;
            }
        }
        false
    }

    /// The way that is least ahead; the first free one ends the search. So does the source's own, which another CPU may have
    /// begun meanwhile: a source has one cell.
    #[inline(always)]
    fn least<S: Set>(&self, line: S, tag: u64) -> u32 {
        let (mut least, mut at) = (u64::MAX, 0);
        for way in 0..WAYS {
            let cell = line.word(way);
            let ahead = ahead(cell & SOURCE_TIME, self.now, self.capacity, SOURCE_TIME);
            if ahead == 0 || cell >> TIME_BITS == tag {
                return way;
            }
            if ahead < least {
                (least, at) = (ahead, way);
            }
        }
        at
    }
}

/// The way of a line that has this tag, [`WAYS`] for none.
#[inline(always)]
fn find<S: Set>(line: S, tag: u64) -> u32 {
    for way in 0..WAYS {
        if line.word(way) >> TIME_BITS == tag {
            return way;
        }
    }
    WAYS
}

/// Keyed hash of a source (masked, halves as in [`crate::packet::Packet::src`]): low half for the line, top 20 bits for the tag.
#[inline(always)]
pub const fn source_hash(high: u64, low: u64, seed: u64) -> u64 {
    let mixed = crate::flow::mix(seed ^ high.rotate_left(29));
    let hash = crate::flow::mix(mixed ^ low ^ seed.rotate_left(32));
    // A tag is never 0, which is that of a free cell.
    hash | 1 << TIME_BITS
}

/// Established connections of a source. Cells hold a tag as above and a count; 0 is free.
pub mod count {
    use super::{SOURCE_TIME, TIME_BITS, TRIES, WAYS, find};
    use crate::flow::Set;

    /// The line has no room for the source.
    pub const FULL: u64 = u64::MAX;

    /// Connections of a source; [`FULL`] if it is not in a line that is full.
    #[inline(always)]
    pub fn of<S: Set>(line: S, hash: u64) -> u64 {
        match find(line, hash >> TIME_BITS) {
            WAYS => match free(line) {
                WAYS => FULL,
                _ => 0,
            },
            way => line.word(way) & SOURCE_TIME,
        }
    }

    /// Counts one more. Whether there was room.
    #[inline(always)]
    pub fn add<S: Set>(line: S, hash: u64) -> bool {
        let tag = hash >> TIME_BITS;
        for _ in 0..TRIES {
            let (way, cell) = match find(line, tag) {
                WAYS => match free(line) {
                    WAYS => return false,
                    way => (way, 0),
                },
                way => (way, line.word(way)),
            };
            let next = tag << TIME_BITS | ((cell & SOURCE_TIME) + 1) & SOURCE_TIME;
            if line.swap(way, cell, next) {
                return true;
            }
        }
        false
    }

    /// Counts one less. Whether the source was there; a source without connections leaves the line.
    #[inline(always)]
    pub fn remove<S: Set>(line: S, hash: u64) -> bool {
        for _ in 0..TRIES {
            let way = find(line, hash >> TIME_BITS);
            if way == WAYS {
                return false;
            }
            let cell = line.word(way);
            let next = if cell & SOURCE_TIME <= 1 { 0 } else { cell - 1 };
            if line.swap(way, cell, next) {
                return true;
            }
        }
        false
    }

    #[inline(always)]
    fn free<S: Set>(line: S) -> u32 {
        for way in 0..WAYS {
            if line.word(way) == 0 {
                return way;
            }
        }
        WAYS
    }
}

/// A limit as the image holds it: a record of [`profile::SIZE`] bytes, which one page holds whole.
pub mod profile {
    /// Bytes of a record, and what its offset is a multiple of.
    pub const SIZE: u32 = 256;
    /// `u32`, set of `super::flag`.
    pub const FLAGS: u32 = 0;
    /// `u16`, number in the image of the scope that has the sketches.
    pub const SCOPE: u32 = 4;
    /// `u16`, the scope whose totals hold as well, [`NO_PARENT`] for none.
    pub const PARENT: u32 = 6;
    /// `u32`, the first of the endings of excess, of the scope and of the parent.
    pub const EXCESS: u32 = 8;
    pub const PARENT_EXCESS: u32 = 12;
    /// `u32`, mask of an IPv4 source.
    pub const MASK_V4: u32 = 16;
    /// `u32`, seconds of a ban.
    pub const BAN_S: u32 = 20;
    /// `u64` each, mask of an IPv6 source.
    pub const MASK_V6_HIGH: u32 = 24;
    pub const MASK_V6_LOW: u32 = 32;
    /// `u32` each: connections of a source, of the scope, of the parent; `u32::MAX` for no limit.
    pub const CONNECTIONS_SOURCE: u32 = 40;
    pub const CONNECTIONS: u32 = 44;
    pub const CONNECTIONS_PARENT: u32 = 48;
    /// `u8` each: bits of both masks.
    pub const LEN_V4: u32 = 52;
    pub const LEN_V6: u32 = 53;
    /// `u16`, number of the service.
    pub const SERVICE: u32 = 54;
    /// Rates by [`super::Kind`], [`RATE_SIZE`] bytes each: of a source (cost `u64`, capacity `u32`, shift `u32`), then totals of the scope, then
    /// of the parent (cost `u64`, capacity `u64`).
    pub const SOURCE_RATES: u32 = 64;
    pub const RATES: u32 = 112;
    pub const PARENT_RATES: u32 = 160;
    pub const RATE_SIZE: u32 = 16;

    pub const NO_PARENT: u16 = u16::MAX;
}

/// Bits of [`profile::FLAGS`].
pub mod flag {
    /// A rate of this [`super::Kind`] limits: bit 0 for a source, bit 1 for a total, shifted by twice the kind.
    pub const SOURCE: u32 = 1;
    pub const TOTAL: u32 = 2;
    /// Any of a [`super::Kind`].
    #[inline(always)]
    pub const fn of(kind: super::Kind) -> u32 {
        (SOURCE | TOTAL) << (2 * kind as u32)
    }
    /// Any of packets or bytes.
    pub const TRAFFIC: u32 = 0b11_1100;
    /// Any of new connections.
    pub const NEW: u32 = 0b11;
    /// Connections of a source, or in all, are limited.
    pub const CONNECTIONS: u32 = 1 << 6;
    /// Excess is answered by a challenge.
    pub const CHALLENGE: u32 = 1 << 7;
    /// Who proves an address and is in excess is banned. Only with [`CHALLENGE`].
    pub const BAN: u32 = 1 << 8;
    /// Time is the exact clock's.
    pub const EXACT: u32 = 1 << 9;
}

/// A profile record in an image.
#[derive(Clone, Copy)]
pub struct Profile<P: Page> {
    page: P,
    at: u32,
}

impl<P: Page> Profile<P> {
    #[inline(always)]
    pub const fn new(page: P, at: u32) -> Profile<P> {
        Profile { page, at }
    }

    #[inline(always)]
    pub fn u16(&self, field: u32) -> u16 {
        self.page.u16(self.at.wrapping_add(field))
    }
    #[inline(always)]
    pub fn u32(&self, field: u32) -> u32 {
        self.page.u32(self.at.wrapping_add(field))
    }
    #[inline(always)]
    pub fn u64(&self, field: u32) -> u64 {
        self.page.u64(self.at.wrapping_add(field))
    }
    #[inline(always)]
    pub fn flags(&self) -> u32 {
        self.u32(profile::FLAGS)
    }

    /// The rate of a source.
    #[inline(always)]
    pub fn source(&self, kind: Kind) -> Rate {
        let at = profile::SOURCE_RATES + kind as u32 * profile::RATE_SIZE;
        Rate {
            cost: self.u64(at),
            capacity: self.u32(at + 8) as u64,
            shift: self.u32(at + 12),
        }
    }

    /// A total: of the scope (at [`profile::RATES`]) or of its parent.
    #[inline(always)]
    pub fn total(&self, rates: u32, kind: Kind) -> Rate {
        let at = rates + kind as u32 * profile::RATE_SIZE;
        Rate {
            cost: self.u64(at),
            capacity: self.u64(at + 8),
            shift: 0,
        }
    }

    /// What counts as one source.
    #[inline(always)]
    pub fn mask(&self, version: u8, high: u64, low: u64) -> (u64, u64) {
        if version == 4 {
            (0, low & self.u32(profile::MASK_V4) as u64)
        } else {
            (
                high & self.u64(profile::MASK_V6_HIGH),
                low & self.u64(profile::MASK_V6_LOW),
            )
        }
    }
}

/// A record as the compiler writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of `flag`; [`flag::EXACT`] and those of rates and connections are [`Record::write`]'s to set.
    pub flags: u32,
    pub scope: u16,
    pub parent: u16,
    pub excess: u32,
    pub parent_excess: u32,
    pub service: u16,
    pub len_v4: u8,
    pub len_v6: u8,
    pub ban_s: u32,
    /// `u32::MAX`: no limit.
    pub connections_source: u32,
    pub connections: u32,
    pub connections_parent: u32,
    /// By [`Kind`].
    pub source: [Rate; 3],
    pub total: [Rate; 3],
    pub parent_total: [Rate; 3],
}

impl Record {
    /// [`profile::FLAGS`].
    pub fn flags(&self) -> u32 {
        let mut flags = self.flags;
        let mut exact = false;
        for kind in Kind::ALL {
            let at = kind as usize;
            let source = self.source[at];
            if !source.is_unlimited() {
                flags |= flag::SOURCE << (2 * kind as u32);
                exact |= (source.capacity << source.shift >> NS_SHIFT) < EXACT_BELOW_NS;
            }
            for rate in [self.total[at], self.parent_total[at]] {
                if !rate.is_unlimited() {
                    flags |= flag::TOTAL << (2 * kind as u32);
                    exact |= rate.capacity >> NS_SHIFT < EXACT_BELOW_NS;
                }
            }
        }
        if [self.connections_source, self.connections, self.connections_parent] != [u32::MAX; 3] {
            flags |= flag::CONNECTIONS;
        }
        if exact {
            flags |= flag::EXACT;
        }
        flags
    }

    /// The bytes of the record.
    pub fn write(&self) -> [u8; profile::SIZE as usize] {
        let mut out = [0; profile::SIZE as usize];
        let mut put = |at: u32, bytes: &[u8]| {
            let at = at as usize;
            if let Some(place) = out.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        for kind in Kind::ALL {
            let at = kind as usize;
            let offset = kind as u32 * profile::RATE_SIZE;
            let source = self.source[at];
            put(profile::SOURCE_RATES + offset, &source.cost.to_le_bytes());
            put(
                profile::SOURCE_RATES + offset + 8,
                &(source.capacity as u32).to_le_bytes(),
            );
            put(profile::SOURCE_RATES + offset + 12, &source.shift.to_le_bytes());
            for (rates, rate) in [
                (profile::RATES, self.total[at]),
                (profile::PARENT_RATES, self.parent_total[at]),
            ] {
                put(rates + offset, &rate.cost.to_le_bytes());
                put(rates + offset + 8, &rate.capacity.to_le_bytes());
            }
        }
        put(profile::FLAGS, &self.flags().to_le_bytes());
        put(profile::SCOPE, &self.scope.to_le_bytes());
        put(profile::PARENT, &self.parent.to_le_bytes());
        put(profile::EXCESS, &self.excess.to_le_bytes());
        put(profile::PARENT_EXCESS, &self.parent_excess.to_le_bytes());
        put(profile::SERVICE, &self.service.to_le_bytes());
        put(profile::LEN_V4, &[self.len_v4, self.len_v6]);
        let v4 = u32::MAX
            .checked_shl(32 - u32::from(self.len_v4.min(32)))
            .unwrap_or(0);
        let v6 = u128::MAX
            .checked_shl(128 - u32::from(self.len_v6.min(128)))
            .unwrap_or(0);
        put(profile::MASK_V4, &v4.to_le_bytes());
        put(profile::MASK_V6_HIGH, &((v6 >> 64) as u64).to_le_bytes());
        put(profile::MASK_V6_LOW, &(v6 as u64).to_le_bytes());
        put(profile::BAN_S, &self.ban_s.to_le_bytes());
        put(
            profile::CONNECTIONS_SOURCE,
            &self.connections_source.to_le_bytes(),
        );
        put(profile::CONNECTIONS, &self.connections.to_le_bytes());
        put(
            profile::CONNECTIONS_PARENT,
            &self.connections_parent.to_le_bytes(),
        );
        out
    }
}

#[cfg(test)]
mod tests;
