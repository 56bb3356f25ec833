//! What the kernel programs and the agent share: the decision itself and every layout that crosses the
//! boundary between them.
//!
//! Built twice, for the BPF target and for the host. Values and arithmetic only: no maps, no I/O, no
//! allocation, no raw pointers; time is an argument. Modules in reading order:
//! [`verdict`] -> [`packet`] -> [`image`] -> [`flow`] -> [`fragment`] -> [`quote`] -> [`ban`] -> [`limit`] -> [`meter`] ->
//! [`decide`], then [`cookie`], [`control`], [`gate`],
//! [`counter`] and [`event`].
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod ban;
pub mod control;
pub mod cookie;
pub mod counter;
pub mod decide;
pub mod event;
pub mod flow;
pub mod fragment;
pub mod gate;
pub mod image;
pub mod limit;
pub mod meter;
pub mod packet;
pub mod quote;
pub mod verdict;

/// Version of everything that a pinned map holds. Maps live under a directory named by it, so an agent never
/// reads maps of another layout: it makes its own and then replaces the programs.
pub const LAYOUT_VERSION: u32 = 3;
