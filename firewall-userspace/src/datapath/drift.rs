//! What somebody else changed in the maps of this instance: found by reading them back, and undone.
//!
//! The maps are pinned, so whoever is root may write to them; the image of a policy is frozen once it is there, but
//! another one can be put in its place, and a program of somebody's may write to it. What is held against what this
//! process left: the selector, the maps in the slot in force, the words of the control cell that are never changed, the
//! configuration, the own addresses, the bindings of limits, and the image itself, byte by byte. Not looked at: what
//! packets write themselves (flows, gate, fragments, counters, the state of limits) and the table of bans, which
//! the agent compares with its own list.

use super::{CONFIG_BYTES, Datapath, DatapathError, NodeConfig, sys::Mapping};
use firewall_common::control::Control;
use std::collections::{BTreeSet, HashSet};
use std::mem::offset_of;
use std::sync::atomic::Ordering;

/// What is not as it was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Drift {
    /// The word that names the slots in force.
    Selector,
    /// The policy image: another map in its slot, or other bytes.
    Image,
    /// The counters of the policy.
    Counters,
    /// Other words of the control cell.
    Words,
    /// The configuration of the node.
    Config,
    /// The addresses of this host.
    Addresses,
    /// Which limits the policy is bound to.
    Limits,
}

impl Drift {
    pub const ALL: [Drift; 7] = [
        Drift::Selector,
        Drift::Image,
        Drift::Counters,
        Drift::Words,
        Drift::Config,
        Drift::Addresses,
        Drift::Limits,
    ];

    /// In metrics and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Drift::Selector => "selector",
            Drift::Image => "image",
            Drift::Counters => "counters",
            Drift::Words => "words",
            Drift::Config => "config",
            Drift::Addresses => "addresses",
            Drift::Limits => "limits",
        }
    }

    /// What it is, for people.
    pub const fn meaning(self) -> &'static str {
        match self {
            Drift::Selector => "the word that says which policy is in force",
            Drift::Image => "the policy in force",
            Drift::Counters => "the counters of the policy in force",
            Drift::Words => "the control cell",
            Drift::Config => "the configuration of the node (mode, failsafe, own addresses)",
            Drift::Addresses => "the table of own addresses",
            Drift::Limits => "the bindings of limits",
        }
    }
}

/// What the maps are to hold.
#[derive(Default)]
pub(super) struct Expected {
    /// The configuration, its bytes and the own addresses in it; none before the first one.
    pub config: Option<(NodeConfig, [u8; CONFIG_BYTES], HashSet<[u64; 2]>)>,
    pub words: Words,
}

/// Words of the control cell that stay the same as long as this process lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    seed: u64,
    /// Always 0.
    zero: u64,
    flow_mask: u32,
    netns_cookie: u64,
}

/// Those words, as they are.
pub(super) fn words(control: &Mapping) -> Words {
    Words {
        seed: control.load_u64(offset_of!(Control, seed)),
        zero: control.load_u64(offset_of!(Control, zero)),
        flow_mask: control.load_u32(offset_of!(Control, flow_mask)),
        netns_cookie: control.load_u64(offset_of!(Control, netns_cookie)),
    }
}

impl Datapath {
    /// What is not as this process left it. `closely`: also what takes more than some calls to look at.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn drift(&self, closely: bool) -> Result<BTreeSet<Drift>, DatapathError> {
        let mut found: BTreeSet<Drift> = self.slots.drift(closely)?.into_iter().collect();
        if words(self.slots.control()) != self.expected.words {
            found.insert(Drift::Words);
        }
        if let Some((_, bytes, own)) = &self.expected.config {
            let slot = self.slots.selector().config();
            let there = self.config.get(&slot, 0).map_err(DatapathError::map("CONFIG"))?;
            if there != *bytes {
                found.insert(Drift::Config);
            }
            if closely {
                let keys: Result<HashSet<[u64; 2]>, _> = self.local.keys().collect();
                if keys.map_err(DatapathError::map("LOCAL"))? != *own {
                    found.insert(Drift::Addresses);
                }
            }
        }
        Ok(found)
    }

    /// Reads `bytes` more of the image in force back from the kernel. At its end: whether it is what was put there.
    pub fn read_back(&mut self, bytes: usize) -> Option<bool> {
        self.slots.read_back(bytes)
    }

    /// Whether there is more of it to read.
    pub fn is_reading_back(&self) -> bool {
        self.slots.is_reading_back()
    }

    /// Puts back what this process left; the bytes of the image alone take another [`Datapath::switch`].
    ///
    /// # Errors
    /// The kernel does not take it.
    pub fn repair(&mut self) -> Result<(), DatapathError> {
        let Words {
            seed,
            zero,
            flow_mask,
            netns_cookie,
        } = self.expected.words;
        let control = self.slots.control();
        for (at, value) in [
            (offset_of!(Control, seed), seed),
            (offset_of!(Control, zero), zero),
            (offset_of!(Control, netns_cookie), netns_cookie),
        ] {
            control.u64(at).store(value, Ordering::Relaxed);
        }
        control
            .u32(offset_of!(Control, flow_mask))
            .store(flow_mask, Ordering::Relaxed);
        self.slots.repair()?;
        match self.expected.config.clone() {
            // Compares with what is there, and switches if it is something else.
            Some((config, ..)) => self.configure(&config),
            None => Ok(()),
        }
    }
}
