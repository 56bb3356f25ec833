//! The gate before the socket table: what this host opened, by local port.
//!
//! Egress writes it, ingress only reads it, so nothing an outsider sends changes a cell. Three banks of 65,536
//! cells: TCP (written by a SYN without ACK, so a port that only accepts never has one), UDP (by every datagram)
//! and ICMP echo (by every request, indexed by identifier). A cell holds a keyed hash of the last peer and the
//! time; TCP cells do not age, the socket table decides; for UDP without a connected socket, and for echo, the
//! peer must match and the cell be young.

/// Banks of [`CELLS_PER_BANK`] cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Bank {
    Tcp = 0,
    Udp = 1,
    Echo = 2,
}

pub const CELLS_PER_BANK: u32 = 65_536;
/// Elements (`u64`) of the mmap-able map `GATE`.
pub const CELLS: u32 = 3 * CELLS_PER_BANK;

/// How long a datagram or an echo request may be answered, seconds: as long as Linux conntrack waits for the first
/// reply of UDP (`nf_conntrack_udp_timeout`).
pub const REPLY_SECONDS: u32 = 30;

impl Bank {
    /// Index of the cell of a local port (or echo identifier).
    #[inline(always)]
    pub const fn cell(self, port: u16) -> u32 {
        self as u32 * CELLS_PER_BANK + port as u32
    }
}

/// A cell: peer hash in the high half, seconds of the monotonic clock plus one in the low half. Zero is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell(pub u64);

impl Cell {
    #[inline(always)]
    pub const fn new(peer: u32, now_s: u32) -> Cell {
        Cell((peer as u64) << 32 | now_s.wrapping_add(1) as u64)
    }

    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.0 != 0
    }

    /// Whether the host spoke to this very peer within [`REPLY_SECONDS`].
    #[inline(always)]
    pub const fn answers(self, peer: u32, now_s: u32) -> bool {
        self.is_open()
            && (self.0 >> 32) as u32 == peer
            && now_s.wrapping_add(1).wrapping_sub(self.0 as u32) <= REPLY_SECONDS
    }
}

/// Keyed hash of a peer's address and port (0 for echo).
#[inline(always)]
pub const fn peer(seed: u64, high: u64, low: u64, port: u16) -> u32 {
    let mut mixed = (high ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 32) ^ low).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed = (mixed ^ (mixed >> 32) ^ port as u64 ^ seed.rotate_left(32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_answers_its_peer_only_and_only_while_young() {
        let cell = Cell::new(7, 100);
        assert!(cell.answers(7, 100) && cell.answers(7, 130));
        assert!(!cell.answers(8, 100) && !cell.answers(7, 131) && !cell.answers(7, 99));
        assert!(!Cell(0).answers(0, u32::MAX) && !Cell(0).is_open());
    }
}
