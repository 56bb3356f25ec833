//! The gate before the flow table and the socket table: from which local ports this host opened anything.
//!
//! A lookup of a flow or socket costs what ten drops cost, so a flood must not buy one with each packet. Egress
//! writes a cell when a flow is opened or refreshed, the agent seeds it from the socket table and closes what neither a
//! socket nor a flow uses any more; ingress only reads. Two banks of 65,536 cells, TCP and UDP, by local port. An open cell
//! admits nothing, it only leads on. A cell of UDP may also be shut by the agent.

/// Banks of [`CELLS_PER_BANK`] cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Bank {
    Tcp = 0,
    Udp = 1,
}

pub const CELLS_PER_BANK: u32 = 65_536;
/// Elements (`u64`) of the mmap-able map `GATE`.
pub const CELLS: u32 = 2 * CELLS_PER_BANK;

impl Bank {
    /// Index of the cell of a local port.
    #[inline(always)]
    pub const fn cell(self, port: u16) -> u32 {
        self as u32 * CELLS_PER_BANK + port as u32
    }
}

/// A cell: seconds of the monotonic clock plus one when the port last opened something, or was shut. Zero is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell(pub u64);

impl Cell {
    #[inline(always)]
    pub const fn new(now_s: u32) -> Cell {
        Cell(now_s.wrapping_add(1) as u64)
    }

    /// Of a UDP port whose service went: nothing that leaves from it opens anything until its socket is gone, for its
    /// clients are no peers that the host asked.
    #[inline(always)]
    pub const fn shut(now_s: u32) -> Cell {
        Cell(Cell::new(now_s).0 | Cell::SHUT)
    }

    const SHUT: u64 = 1 << 63;

    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.0 != 0 && !self.is_shut()
    }

    #[inline(always)]
    pub const fn is_shut(self) -> bool {
        self.0 & Cell::SHUT != 0
    }
}
