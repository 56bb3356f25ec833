//! What the kernel counts, and where.
//!
//! A generation of policy has a counter array of its own. Each way a packet can end in it is an *ending*: the
//! first [`Reason::COUNT`](crate::verdict::Reason::COUNT) endings are the bare reasons, in order of their
//! numbers; the compiler appends one for each (service, reason, rule) that can happen. A packet adds to one
//! ending, so the sums by service, rule and reason are all exact and agree.

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
}

const _: () = assert!(size_of::<Counter>() == 16 && size_of::<InterfaceCounter>() == 32);

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
