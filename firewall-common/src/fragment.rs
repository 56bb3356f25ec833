//! Fragments: the first decides, later ones follow, before the host spends memory on putting them together.
//!
//! A table like that of [`crate::flow`], four ways to a set. An admitted first fragment opens an entry with its outcome and
//! with the bytes it covers; a later one passes only if its datagram has an entry and nothing of it came before. A duplicate
//! drops; an overlap ends the datagram (RFC 5722 section 4; CVE-2018-5391 shows why for IPv4): nothing more of it passes until the entry expires.
//! A datagram that is complete frees its entry. A fragment that overtakes its first one drops: it cannot be judged.
//!
//! Only firsts that a policy, failsafe or flow admits get an entry, so an outsider fills nothing. Under pressure the oldest of
//! a set goes.

use crate::flow::{Key, Set, Table};
use crate::packet::{Fragment, Packet};
use crate::verdict::Reason;

/// Ways of a set; its other words as in [`entry`].
pub const WAYS: u32 = 4;
/// Words (`u64`) of a set, the value of the map `FRAGMENTS`.
pub const SET_WORDS: u32 = crate::flow::SET_WORDS;
/// Sets of the map: 4,096 datagrams at once, in 512 KiB.
pub const SETS: u32 = 1024;
/// Words of an entry: key, outcome, generation, then the stretches that came: first unit (low half) and the unit after
/// the last (high half), in units of eight bytes, 0 for none.
pub const ENTRY_WORDS: u32 = 15;
/// How long the rest of a datagram is waited for, seconds: as long as Linux does (`net.ipv4.ipfrag_time`).
pub const TIMEOUT_S: u32 = 30;

const OUTCOME: u32 = 5;
const GENERATION: u32 = 6;
const STRETCHES: u32 = 7;
/// Gaps that one datagram may have, plus one.
pub const MAX_STRETCHES: u32 = ENTRY_WORDS - STRETCHES;
/// How often a later fragment tries to take its entry in hand.
const LOCK_TRIES: u32 = 16;
/// No datagram has more units (65,535 bytes).
const MAX_UNITS: u32 = 8192;

const _: () = assert!(WAYS + WAYS * ENTRY_WORDS == SET_WORDS);

/// States of an entry, in its tag: hash (28 bits), state (4), second of the first fragment (32).
const OPEN: u64 = 1;
/// Something overlapped.
const DEAD: u64 = 2;
/// A CPU writes it.
const BUSY: u64 = 15;

#[inline(always)]
const fn tag(hash: u64, state: u64, now_s: u32) -> u64 {
    hash & !0xf_ffff_ffff | state << 32 | now_s as u64
}

#[inline(always)]
const fn state(tag: u64) -> u64 {
    tag >> 32 & 15
}

#[inline(always)]
const fn is_young(tag: u64, now_s: u32) -> bool {
    now_s.saturating_sub(tag as u32) < TIMEOUT_S
}

/// How long a datagram may go on under another policy than that which admitted its first fragment, seconds: what is on its way.
pub const GRACE_S: u32 = 1;

/// How a first fragment ended, for the later ones to end alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Remembered {
    /// Of the policy whose numbers these are.
    pub generation: u64,
    pub ending: u32,
    pub service: u16,
    /// Number of a [`Reason`].
    pub reason: u8,
    /// Of a later one: seconds since the first, 255 at most.
    pub age_s: u8,
}

/// The fragment table as one packet sees it.
pub struct Fragments<T: Table> {
    pub table: T,
    pub seed: u64,
    /// Monotonic clock, seconds.
    pub now_s: u32,
}

impl<T: Table> Fragments<T> {
    /// Remembers a first fragment that was admitted.
    ///
    /// # Errors
    /// Why it must drop after all.
    #[inline(always)]
    pub fn first(&self, key: &Key, fragment: Fragment, remembered: Remembered) -> Result<(), Reason> {
        let hash = key.hash(self.seed);
        let end = stretch(fragment).ok_or(Reason::FragmentOverlap)?.1;
        let set = self.table.set(hash as u32).ok_or(Reason::FragmentTable)?;
        if let Some((way, old)) = self.find(set, key, hash) {
            // The same stretch twice: an overlap like any other.
            set.swap(way, old, tag(hash, DEAD, old as u32));
            return Err(Reason::FragmentOverlap);
        }
        let (mut victim, mut old, mut least) = (0, 0, u64::MAX);
        for way in 0..WAYS {
            let word = set.word(way);
            let rank = if state(word) == BUSY && is_young(word, self.now_s) {
                u64::MAX
            } else if word == 0 {
                0
            } else {
                1 + word as u32 as u64
            };
            if rank < least {
                (victim, old, least) = (way, word, rank);
            }
        }
        let busy = tag(hash, BUSY, self.now_s);
        if least == u64::MAX || !set.swap(victim, old, busy) {
            return Err(Reason::FragmentTable);
        }
        let at = entry(victim);
        let words = key.words();
        set.put(at, words[0]);
        set.put(at + 1, words[1]);
        set.put(at + 2, words[2]);
        set.put(at + 3, words[3]);
        set.put(at + 4, words[4]);
        set.put(
            at + OUTCOME,
            remembered.ending as u64 | (remembered.service as u64) << 32 | (remembered.reason as u64) << 48,
        );
        set.put(at + GENERATION, remembered.generation);
        set.put(at + STRETCHES, (end as u64) << 32);
        for gap in 1..MAX_STRETCHES {
            set.put(at + STRETCHES + gap, 0);
        }
        set.swap(victim, busy, tag(hash, OPEN, self.now_s));
        Ok(())
    }

    /// Judges a fragment that is not the first.
    ///
    /// # Errors
    /// Why it must drop.
    #[inline(always)]
    pub fn later(&self, key: &Key, fragment: Fragment) -> Result<Remembered, Reason> {
        let hash = key.hash(self.seed);
        let set = self.table.set(hash as u32).ok_or(Reason::FragmentTable)?;
        let (way, found) = self.find(set, key, hash).ok_or(Reason::Fragment)?;
        let (old, busy) = Self::lock(set, way, found, hash)?;
        let at = entry(way);
        let outcome = set.word(at + OUTCOME);
        let remembered = Remembered {
            ending: outcome as u32,
            service: (outcome >> 32) as u16,
            reason: (outcome >> 48) as u8,
            age_s: self.now_s.saturating_sub(old as u32) as u8,
            generation: set.word(at + GENERATION),
        };
        let after = match stretch(fragment) {
            Some((start, end)) => join(set, at + STRETCHES, start as u64, end as u64, fragment.more()),
            None => Joined::Overlaps,
        };
        let (next, result) = match after {
            Joined::Fits => (tag(hash, OPEN, old as u32), Ok(remembered)),
            Joined::Complete => (0, Ok(remembered)),
            Joined::Known => (tag(hash, OPEN, old as u32), Err(Reason::FragmentOverlap)),
            Joined::Overlaps => (tag(hash, DEAD, old as u32), Err(Reason::FragmentOverlap)),
            Joined::TooManyGaps => (tag(hash, DEAD, old as u32), Err(Reason::FragmentTable)),
        };
        set.swap(way, busy, next);
        result
    }

    /// Takes an entry in hand: the tag it had, and the one it has meanwhile.
    #[inline(always)]
    fn lock(set: T::Set, way: u32, found: u64, hash: u64) -> Result<(u64, u64), Reason> {
        let mut old = found;
        // Another CPU may have this very datagram in hand, for some tens of nanoseconds.
        for _ in 0..LOCK_TRIES {
            let busy = tag(hash, BUSY, old as u32);
            match state(old) {
                OPEN if set.swap(way, old, busy) => return Ok((old, busy)),
                DEAD => return Err(Reason::FragmentOverlap),
                _ => {}
            }
            old = set.word(way);
            if (old ^ hash) >> 36 != 0 {
                // It was completed.
                return Err(Reason::Fragment);
            }
        }
        Err(Reason::FragmentTable)
    }

    /// The way of a datagram that was not waited for in vain, and its tag.
    #[inline(always)]
    fn find(&self, set: T::Set, key: &Key, hash: u64) -> Option<(u32, u64)> {
        let words = key.words();
        for way in 0..WAYS {
            let word = set.word(way);
            if (word ^ hash) >> 36 != 0 || state(word) == 0 || !is_young(word, self.now_s) {
                continue;
            }
            let at = entry(way);
            let differs = (set.word(at) ^ words[0])
                | (set.word(at + 1) ^ words[1])
                | (set.word(at + 2) ^ words[2])
                | (set.word(at + 3) ^ words[3])
                | (set.word(at + 4) ^ words[4]);
            if differs == 0 {
                return Some((way, word));
            }
        }
        None
    }
}

/// What tells datagrams apart: IPv4 by protocol too (RFC 791 section 2.3), IPv6 not (RFC 8200 section 4.5). Egress remembers
/// apart from ingress.
#[inline(always)]
pub const fn key(packet: &Packet, egress: bool) -> Key {
    let protocol = if packet.version == 4 { packet.protocol } else { 0 };
    Key {
        remote: packet.src,
        local: packet.dst,
        ports: packet.fragment.id as u64
            | (protocol as u64) << 32
            | (packet.version as u64) << 40
            | (egress as u64) << 48,
    }
}

/// First unit and the one after the last. `None`: it does not fit into a datagram, or is not the last and no multiple of a
/// unit.
#[inline(always)]
const fn stretch(fragment: Fragment) -> Option<(u32, u32)> {
    let start = fragment.offset() as u32;
    let len = fragment.len as u32;
    let end = start + len.div_ceil(8);
    if len == 0 || start * 8 + len > 65_535 || (fragment.more() && !len.is_multiple_of(8)) {
        return None;
    }
    Some((start, end))
}

enum Joined {
    Fits,
    Complete,
    /// All of it came before: a duplicate, which is nobody's fault (RFC 8200 section 4.5).
    Known,
    Overlaps,
    TooManyGaps,
}

/// Adds a stretch to those that came. The end of the datagram, once known, stands as a stretch that reaches to
/// [`MAX_UNITS`]: nothing fits behind it.
#[inline(always)]
fn join<S: Set>(set: S, stretches: u32, start: u64, end: u64, more: bool) -> Joined {
    let (mut start, mut end) = (start, if more { end } else { MAX_UNITS as u64 });
    for index in 0..MAX_STRETCHES {
        let word = set.word(stretches + index);
        let (from, to) = (word & 0xffff_ffff, word >> 32);
        if from <= start && end <= to {
            return Joined::Known;
        }
        if start < to && from < end {
            return Joined::Overlaps;
        }
    }
    // Neighbours join; the places they leave are free.
    for index in 0..MAX_STRETCHES {
        let word = set.word(stretches + index);
        if word == 0 {
            continue;
        }
        if word >> 32 == start {
            start = word & 0xffff_ffff;
        } else if word & 0xffff_ffff == end {
            end = word >> 32;
        } else {
            continue;
        }
        set.put(stretches + index, 0);
    }
    if start == 0 && end == MAX_UNITS as u64 {
        return Joined::Complete;
    }
    for index in 0..MAX_STRETCHES {
        if set.word(stretches + index) == 0 {
            set.put(stretches + index, start | end << 32);
            return Joined::Fits;
        }
    }
    Joined::TooManyGaps
}

/// First word of a way's entry.
#[inline(always)]
pub const fn entry(way: u32) -> u32 {
    WAYS + way * ENTRY_WORDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::Memory;
    use crate::packet::{Address, protocol};

    const FIRST: Remembered = Remembered {
        generation: 5,
        ending: 99,
        service: 3,
        reason: 1,
        age_s: 0,
    };

    /// A part of `len` bytes at `offset` (bytes) of datagram `id`.
    fn part(id: u32, offset: u16, len: u16, more: bool) -> Packet {
        Packet {
            version: 4,
            protocol: protocol::UDP,
            src: Address { high: 0, low: 1 },
            dst: Address { high: 0, low: 2 },
            fragment: Fragment {
                id,
                len,
                place: offset | u16::from(more),
            },
            ..Packet::EMPTY
        }
    }

    fn table(memory: &Memory, now_s: u32) -> Fragments<&Memory> {
        Fragments {
            table: memory,
            seed: 3,
            now_s,
        }
    }

    fn first<T: Table>(table: &Fragments<T>, part: &Packet) -> Result<(), Reason> {
        table.first(&key(part, false), part.fragment, FIRST)
    }

    fn later<T: Table>(table: &Fragments<T>, part: &Packet) -> Result<Remembered, Reason> {
        let later = table.later(&key(part, false), part.fragment);
        later.map(|later| Remembered { age_s: 0, ..later })
    }

    #[test]
    fn later_parts_follow_the_first_in_any_order_and_the_last_frees_the_place() {
        let orders = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];
        for order in orders {
            let memory = &Memory::new(1);
            let table = table(memory, 10);
            first(&table, &part(7, 0, 1480, true)).unwrap();
            for n in order {
                let part = part(7, n * 1480, if n == 3 { 77 } else { 1480 }, n != 3);
                assert_eq!(later(&table, &part), Ok(FIRST), "{order:?} {n}");
            }
            assert!(
                memory.words()[..WAYS as usize].iter().all(|tag| *tag == 0),
                "{order:?}"
            );
            assert_eq!(later(&table, &part(7, 1480, 1480, true)), Err(Reason::Fragment));
        }
    }

    #[test]
    fn a_later_part_without_its_first_or_after_the_timeout_drops() {
        let memory = &Memory::new(4);
        assert_eq!(
            later(&table(memory, 10), &part(7, 1480, 8, false)),
            Err(Reason::Fragment)
        );
        first(&table(memory, 10), &part(7, 0, 1480, true)).unwrap();
        let mut others = [part(7, 1480, 8, false); 4];
        others[0].fragment.id = 8;
        others[1].protocol = protocol::TCP;
        others[2].src.low = 9;
        others[3].dst.low = 9;
        for other in others {
            assert_eq!(later(&table(memory, 10), &other), Err(Reason::Fragment));
        }
        assert_eq!(
            later(&table(memory, 40), &part(7, 1480, 8, false)),
            Err(Reason::Fragment)
        );
        assert_eq!(later(&table(memory, 39), &part(7, 1480, 8, false)), Ok(FIRST));
    }

    #[test]
    fn an_overlap_ends_the_datagram() {
        let overlaps = [
            part(7, 1472, 16, true),
            part(7, 2952, 16, true),
            part(7, 1480, 1488, true),
            // Another end than was told.
            part(7, 1480, 8, false),
        ];
        for bad in overlaps {
            let memory = &Memory::new(1);
            let table = table(memory, 10);
            first(&table, &part(7, 0, 1480, true)).unwrap();
            // 2,960 to 4,488, the end.
            assert_eq!(later(&table, &part(7, 2960, 1528, false)), Ok(FIRST));
            assert_eq!(later(&table, &bad), Err(Reason::FragmentOverlap), "{bad:?}");
            // The gap that was left stays a gap.
            assert_eq!(
                later(&table, &part(7, 1480, 1480, true)),
                Err(Reason::FragmentOverlap)
            );
        }
    }

    #[test]
    fn a_duplicate_drops_and_harms_nothing() {
        let memory = &Memory::new(1);
        let table = table(memory, 10);
        first(&table, &part(7, 0, 1480, true)).unwrap();
        assert_eq!(later(&table, &part(7, 2960, 1528, false)), Ok(FIRST));
        // Twice, inside of what came, past the end.
        for known in [
            part(7, 2960, 1528, false),
            part(7, 8, 8, true),
            part(7, 4496, 8, true),
        ] {
            assert_eq!(later(&table, &known), Err(Reason::FragmentOverlap), "{known:?}");
        }
        assert_eq!(later(&table, &part(7, 1480, 1480, true)), Ok(FIRST));
    }

    #[test]
    fn a_first_part_twice_is_an_overlap() {
        let memory = &Memory::new(1);
        let table = table(memory, 10);
        first(&table, &part(7, 0, 1480, true)).unwrap();
        assert_eq!(first(&table, &part(7, 0, 24, true)), Err(Reason::FragmentOverlap));
        assert_eq!(
            later(&table, &part(7, 1480, 8, false)),
            Err(Reason::FragmentOverlap)
        );
    }

    #[test]
    fn parts_that_fit_no_datagram_drop() {
        for bad in [
            part(7, 65_528, 64, false),
            part(7, 1480, 9, true),
            part(7, 1480, 0, false),
        ] {
            let memory = &Memory::new(1);
            first(&table(memory, 10), &part(7, 0, 1480, true)).unwrap();
            assert_eq!(
                later(&table(memory, 10), &bad),
                Err(Reason::FragmentOverlap),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn more_gaps_than_fit_end_the_datagram() {
        let memory = &Memory::new(1);
        let table = table(memory, 10);
        first(&table, &part(7, 0, 8, true)).unwrap();
        for n in 1..MAX_STRETCHES as u16 {
            assert_eq!(later(&table, &part(7, n * 16, 8, true)), Ok(FIRST));
        }
        assert_eq!(later(&table, &part(7, 1600, 8, true)), Err(Reason::FragmentTable));
    }

    #[test]
    fn under_pressure_the_oldest_goes() {
        let memory = &Memory::new(1);
        for id in 0..=WAYS {
            first(&table(memory, 10 + id), &part(id, 0, 8, true)).unwrap();
        }
        let late = |id| later(&table(memory, 20), &part(id, 8, 8, true));
        assert_eq!(late(0), Err(Reason::Fragment));
        assert!((1..=WAYS).all(|id| late(id) == Ok(FIRST)));
    }

    #[test]
    fn ipv6_tells_datagrams_apart_without_the_protocol() {
        let memory = &Memory::new(1);
        let mut start = part(7, 0, 1480, true);
        start.version = 6;
        start.protocol = protocol::UDP;
        let mut last = part(7, 1480, 8, false);
        last.version = 6;
        last.protocol = protocol::DESTINATION;
        first(&table(memory, 1), &start).unwrap();
        assert_eq!(later(&table(memory, 1), &last), Ok(FIRST));
    }
}
