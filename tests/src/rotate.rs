//! A small XDP program that puts the next of 65,536 sources into the frame and then runs another program, so that a
//! bench over BPF_PROG_TEST_RUN does not measure one hot address. Assembled by hand: it must cost the same in front
//! of every program that is compared.

use crate::bpf::{EXIT, Insn, LEAVE, call, insn, leave_at_end, load, load_map, map, mov, mov_imm, update};
use anyhow::Result;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Sources in rotation; a power of two.
pub const SOURCES: usize = 1 << 16;

/// A program behind the rotation.
pub struct Rotation {
    program: OwnedFd,
    programs: OwnedFd,
    sources: OwnedFd,
    _counter: OwnedFd,
}

/// What the rotation ends in.
pub enum End<'a> {
    /// Another XDP program, by tail call.
    Program(BorrowedFd<'a>),
    /// Out of an interface (`bpf_redirect`).
    Redirect(u32),
}

impl Rotation {
    /// For IPv4 (`false`) or IPv6 frames without VLAN tags.
    ///
    /// # Errors
    /// The kernel refuses a map or the program.
    pub fn new(ipv6: bool, end: &End) -> Result<Rotation> {
        let sources = map(2, 4, 16, SOURCES as u32)?;
        let counter = map(2, 4, 8, 1)?;
        let programs = map(3, 4, 4, 1)?;
        let program = load(&rotator(&sources, &counter, &programs, ipv6, end))?;
        if let End::Program(next) = end {
            update(&programs, 0, &next.as_raw_fd().to_ne_bytes())?;
        }
        Ok(Rotation {
            program,
            programs,
            sources,
            _counter: counter,
        })
    }

    /// Puts another program behind the rotation.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn aim(&self, next: BorrowedFd) -> Result<()> {
        update(&self.programs, 0, &next.as_raw_fd().to_ne_bytes())
    }

    /// Fills the rotation; fewer sources than [`SOURCES`] repeat.
    ///
    /// # Errors
    /// The kernel refuses an update.
    pub fn fill(&self, sources: &[IpAddr]) -> Result<()> {
        for index in 0..SOURCES {
            let mut value = [0; 16];
            match sources[index % sources.len()] {
                IpAddr::V4(v4) => value[..4].copy_from_slice(&v4.octets()),
                IpAddr::V6(v6) => value.copy_from_slice(&v6.octets()),
            }
            update(&self.sources, index as u32, &value)?;
        }
        Ok(())
    }

    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

fn rotator(sources: &OwnedFd, counter: &OwnedFd, programs: &OwnedFd, ipv6: bool, end: &End) -> Vec<Insn> {
    const LDX_W: u8 = 0x61;
    const LDX_DW: u8 = 0x79;
    const STX_W: u8 = 0x63;
    const STX_DW: u8 = 0x7b;
    let at = if ipv6 { 22 } else { 26 };
    let mut code = vec![mov(6, 1), insn(LDX_W, 7, 6, 0, 0), insn(LDX_W, 8, 6, 4, 0)];
    code.extend([mov(2, 7), insn(0x07, 2, 0, 0, 54), insn(0x2d, 2, 8, LEAVE, 0)]);
    code.extend([insn(0x62, 10, 0, -4, 0), mov(2, 10), insn(0x07, 2, 0, 0, -4)]);
    code.extend(load_map(1, counter));
    code.extend([call(1), insn(0x15, 0, 0, LEAVE, 0)]);
    code.extend([
        insn(LDX_DW, 1, 0, 0, 0),
        insn(0x07, 1, 0, 0, 1),
        insn(STX_DW, 0, 1, 0, 0),
    ]);
    code.extend([insn(0x57, 1, 0, 0, SOURCES as i32 - 1), insn(STX_W, 10, 1, -4, 0)]);
    code.extend([mov(2, 10), insn(0x07, 2, 0, 0, -4)]);
    code.extend(load_map(1, sources));
    code.extend([call(1), insn(0x15, 0, 0, LEAVE, 0)]);
    for word in 0..if ipv6 { 4 } else { 1 } {
        code.extend([
            insn(LDX_W, 1, 0, word * 4, 0),
            insn(STX_W, 7, 1, at + word * 4, 0),
        ]);
    }
    match end {
        End::Program(_) => {
            code.push(mov(1, 6));
            code.extend(load_map(2, programs));
            code.extend([mov_imm(3, 0), call(12)]);
        }
        End::Redirect(ifindex) => code.extend([mov_imm(1, *ifindex as i32), mov_imm(2, 0), call(23), EXIT]),
    }
    leave_at_end(&mut code);
    code
}
