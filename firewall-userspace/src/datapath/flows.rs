//! The flow table seen from user space: read in place, and forgotten in parts when what was open closes.
//!
//! Layout and meaning: `firewall_common::flow`. The kernel writes words without locks; a flow that changes while it is read is
//! skipped, and what is forgotten is compared and swapped. Flows older than the programs are written by the same code as the
//! kernel's.

use super::{DatapathError, conntrack::Known, sys::Mapping};
use firewall_common::control::Config;
use firewall_common::flow::{self, Key, Left, OPENED, SET_WORDS, Sends, Set, State, Table, Tag, WAYS, entry};
use nix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU64, Ordering};

/// One flow of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub key: Key,
    pub state: State,
    /// Since its first packet and since the last one that went out, seconds.
    pub age_s: u32,
    pub idle_s: u32,
    /// Seconds until it admits nothing any more; 0 if it does not.
    pub left_s: u32,
    /// The interface that it went out by.
    pub ifindex: u32,
}

impl Flow {
    pub fn is_live(&self) -> bool {
        self.left_s > 0
    }
}

pub(super) struct FlowTable {
    words: Mapping,
}

impl FlowTable {
    pub fn new(words: Mapping) -> FlowTable {
        FlowTable { words }
    }

    /// Flows that fit.
    pub fn capacity(&self) -> usize {
        self.sets() * WAYS as usize
    }

    fn sets(&self) -> usize {
        self.words.len() / (SET_WORDS as usize * 8)
    }

    fn word(&self, set: usize, index: u32) -> u64 {
        self.words
            .load_u64((set * SET_WORDS as usize + index as usize) * 8)
    }

    /// All flows, with those that have expired and wait to be displaced.
    pub fn read(&self, timeouts: &[u32; State::COUNT]) -> Result<Vec<Flow>, DatapathError> {
        let now_s = now_s()?;
        let mut flows = Vec::new();
        for set in 0..self.sets() {
            for way in 0..WAYS {
                let tag = Tag(self.word(set, way));
                let Some(state) = State::from_number(tag.state()) else {
                    continue;
                };
                let at = entry(way);
                let key = Key::from_words(std::array::from_fn(|word| self.word(set, at + word as u32)));
                let opened = self.word(set, at + OPENED);
                if self.word(set, way) >> 36 != tag.0 >> 36 {
                    continue;
                }
                let idle_s = now_s.saturating_sub(tag.last_s());
                flows.push(Flow {
                    key,
                    state,
                    age_s: now_s.saturating_sub(opened as u32),
                    idle_s,
                    left_s: timeouts[state as usize].saturating_sub(idle_s),
                    ifindex: (opened >> 32) as u32,
                });
            }
        }
        Ok(flows)
    }

    /// Flows that are alive now.
    pub fn live(&self, timeouts: &[u32; State::COUNT]) -> Result<usize, DatapathError> {
        let now_s = now_s()?;
        let mut live = 0;
        for set in 0..self.sets() {
            for way in 0..WAYS {
                let tag = Tag(self.word(set, way));
                live +=
                    usize::from(State::from_number(tag.state()).is_some() && tag.is_live(timeouts, now_s));
            }
        }
        Ok(live)
    }

    /// Notes a flow that was there before the programs, as if egress had seen it. False if the table has it already, which then
    /// knows better, or has no place.
    pub fn note(&self, known: &Known, seed: u64, timeouts: &[u32; State::COUNT], now_s: u32) -> bool {
        let table = self;
        let at = |now_s| flow::Flows {
            table,
            seed,
            timeouts,
            now_s,
        };
        if at(now_s).came_in(&known.key, 0).is_some() {
            return false;
        }
        let sent: &[Sends] = match known.state {
            State::Asked => &[Sends::Datagram],
            State::Conversation => &[Sends::Datagram, Sends::Datagram],
            State::Echo => &[Sends::Echo],
            State::Other => &[Sends::Other],
            State::SynSent => &[Sends::Syn],
            State::Established => &[Sends::Syn, Sends::Segment],
            State::FinOut | State::FinIn | State::Closing => &[Sends::Syn, Sends::Segment, Sends::Fin],
            State::Reset => &[],
        };
        let timeout = timeouts.get(known.state as usize).copied().unwrap_or(0);
        // So long ago that no more is left than conntrack leaves; what came before the last packet a second earlier, or there
        // would be no conversation.
        let last_s = now_s.saturating_sub(timeout.saturating_sub(known.left_s));
        let mut left = sent.len();
        for sends in sent {
            left -= 1;
            let sent_s = if left == 0 {
                last_s
            } else {
                last_s.saturating_sub(1)
            };
            if at(sent_s).went_out(&known.key, *sends, known.ifindex) == Left::Lost {
                return false;
            }
        }
        !sent.is_empty()
    }

    /// Forgets all that are not connections: when what was open closes, the peers that servers answered until now look like
    /// peers that the host asked. Of TCP, only what the host opened is here.
    pub fn forget_datagrams(&self) {
        for set in 0..self.sets() {
            for way in 0..WAYS {
                let at = (set * SET_WORDS as usize + way as usize) * 8;
                let tag = Tag(self.words.load_u64(at));
                let is_datagram = matches!(
                    State::from_number(tag.state()),
                    Some(State::Asked | State::Conversation | State::Other)
                );
                if is_datagram {
                    self.words.u64(at).store(0, Ordering::Relaxed);
                }
            }
        }
    }

    /// The table as it is.
    pub fn words(&self) -> Vec<u64> {
        let words = self.words.len() / 8;
        (0..words).map(|index| self.words.load_u64(index * 8)).collect()
    }
}

impl<'a> Table for &'a FlowTable {
    type Set = MappedSet<'a>;

    fn set(&self, hash: u32) -> Option<MappedSet<'a>> {
        let set = hash as usize & self.sets().checked_sub(1)?;
        Some(MappedSet {
            words: &self.words,
            at: set * SET_WORDS as usize * 8,
        })
    }
}

/// A set of the table, in the kernel's memory.
#[derive(Clone, Copy)]
pub(super) struct MappedSet<'a> {
    words: &'a Mapping,
    at: usize,
}

impl<'a> MappedSet<'a> {
    fn cell(self, index: u32) -> &'a AtomicU64 {
        self.words.u64(self.at + (index % SET_WORDS) as usize * 8)
    }
}

impl Set for MappedSet<'_> {
    fn word(self, index: u32) -> u64 {
        self.cell(index).load(Ordering::Relaxed)
    }
    fn put(self, index: u32, word: u64) {
        self.cell(index).store(word, Ordering::Relaxed);
    }
    fn swap(self, index: u32, old: u64, new: u64) -> bool {
        self.cell(index)
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }
}

/// The timeouts in force, out of the configuration's bytes.
pub(super) fn timeouts(config: &[u8; size_of::<Config>()]) -> [u32; State::COUNT] {
    let at = std::mem::offset_of!(Config, flow_timeouts);
    std::array::from_fn(|state| {
        let at = at + state * 4;
        u32::from_ne_bytes([config[at], config[at + 1], config[at + 2], config[at + 3]])
    })
}

/// Seconds of the clock that the programs write by.
pub(super) fn now_s() -> Result<u32, DatapathError> {
    now().map(|now| now.as_secs() as u32)
}

/// The clock that the programs write by.
pub(super) fn now() -> Result<std::time::Duration, DatapathError> {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .map(std::time::Duration::from)
        .map_err(|error| DatapathError::System {
            what: "reading the clock",
            source: error.into(),
        })
}
