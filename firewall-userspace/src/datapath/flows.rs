//! The flow table seen from user space: read in place, and forgotten in parts when what was open closes.
//!
//! Layout and meaning: `firewall_common::flow`. The kernel writes words without locks; a flow that changes while it is read is
//! skipped, and what is forgotten is compared and swapped.

use super::{DatapathError, sys::Mapping};
use firewall_common::control::Config;
use firewall_common::flow::{Key, OPENED, SET_WORDS, State, Tag, WAYS, entry};
use nix::time::{ClockId, clock_gettime};
use std::sync::atomic::Ordering;

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

/// The timeouts in force, out of the configuration's bytes.
pub(super) fn timeouts(config: &[u8; size_of::<Config>()]) -> [u32; State::COUNT] {
    let at = std::mem::offset_of!(Config, flow_timeouts);
    std::array::from_fn(|state| {
        let at = at + state * 4;
        u32::from_ne_bytes([config[at], config[at + 1], config[at + 2], config[at + 3]])
    })
}

/// The clock that the programs write by.
pub(super) fn now_s() -> Result<u32, DatapathError> {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .map(|now| now.tv_sec() as u32)
        .map_err(|error| DatapathError::System {
            what: "reading the clock",
            source: error.into(),
        })
}
