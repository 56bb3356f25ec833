//! What the kernel counts, and where.
//!
//! A generation of policy has a counter array of its own. Each way a packet can end in it is an *ending*: the
//! first [`Reason::COUNT`] endings are the bare reasons of what came in, in order of their numbers, the next as many
//! ([`EGRESS`]) those of what leaves; the compiler appends one for each (direction, service, reason, rule) that can
//! happen. Next to the ending of a rule that allows stands that of the answers which leave to whom it allowed. A
//! packet adds to one ending, and those that open a connection have one of their own ([`OPENS`]); so the sums by direction, service, rule and reason are all exact and agree.

use crate::verdict::Reason;

/// The first bare ending of what leaves.
pub const EGRESS: u32 = Reason::COUNT as u32;

/// What an ending of a rule that allows is followed by: that of answers, then that of packets which open a connection.
pub const ANSWER: u32 = 1;
pub const OPENS: u32 = 2;

/// One ending on one CPU: value of the map `COUNTERS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    pub packets: u64,
    /// Frame lengths from the Ethernet header on, without the frame check sequence.
    pub bytes: u64,
}

/// One interface on one CPU: value of the per-CPU map `IFACES`, at [`interface_cell`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct InterfaceCounter {
    pub passed: Counter,
    pub dropped: Counter,
    pub egress_passed: Counter,
    pub egress_dropped: Counter,
}

const _: () = assert!(size_of::<Counter>() == 16 && size_of::<InterfaceCounter>() == 64);

/// Cells of the map `IFACES`.
pub const INTERFACE_CELLS: u32 = 4096;

/// The cell that an interface counts in. Two interfaces share one only if their indexes differ by a multiple
/// of [`INTERFACE_CELLS`].
pub const fn interface_cell(ifindex: u32) -> u32 {
    ifindex % INTERFACE_CELLS
}

/// Banks of a generation's counters, per CPU: what happened, and what observe mode would have dropped.
pub const BANKS: u32 = 2;

/// Index into `COUNTERS`: `cpu` major, then bank, then ending. `stride` is the image's count of endings, rounded up
/// to a cache line ([`stride`]), so that CPUs never share a line.
pub const fn index(stride: u32, cpu: u32, would_drop: bool, ending: u32) -> u32 {
    (cpu * BANKS + would_drop as u32) * stride + ending
}

/// Endings rounded up to whole 64-byte lines.
pub const fn stride(endings: u32) -> u32 {
    endings.next_multiple_of(4)
}

/// What happened to the tables, counted per CPU: index into the per-CPU map `TALLIES` of `u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Tally {
    FlowCreated = 0,
    /// A live flow gave its place to a new one.
    FlowDisplaced = 1,
    /// A flow could not be noted: another CPU wrote the same place, or the table cannot be read.
    FlowLost = 2,
    /// A source was to be banned and was not: the table of bans is full, or holds no prefixes of this length.
    BanLost = 3,
}

impl Tally {
    pub const COUNT: u32 = 4;
}
