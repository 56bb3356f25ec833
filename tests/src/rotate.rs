//! A small XDP program that puts the next of 65,536 sources into the frame and then runs another program, so that a
//! bench over BPF_PROG_TEST_RUN does not measure one hot address. Assembled by hand: it must cost the same in front
//! of every program that is compared.

use anyhow::{Context, Result, bail};
use std::mem::{size_of, zeroed};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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

/// XDP_DROP and nothing else.
///
/// # Errors
/// The kernel refuses it.
pub fn empty_drop() -> Result<OwnedFd> {
    load(&[mov_imm(0, 1), EXIT])
}

/// XDP_PASS and nothing else.
///
/// # Errors
/// The kernel refuses it.
pub fn empty_pass() -> Result<OwnedFd> {
    load(&[mov_imm(0, 2), EXIT])
}

/// One instruction (`struct bpf_insn`): opcode, registers (source in the high half), offset, immediate.
#[derive(Clone, Copy)]
#[repr(C)]
struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn insn(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Insn {
    Insn {
        code,
        registers: src << 4 | dst,
        offset,
        immediate,
    }
}

const EXIT: Insn = insn(0x95, 0, 0, 0, 0);

const fn mov_imm(dst: u8, value: i32) -> Insn {
    insn(0xb7, dst, 0, 0, value)
}

const fn mov(dst: u8, src: u8) -> Insn {
    insn(0xbf, dst, src, 0, 0)
}

const fn call(helper: i32) -> Insn {
    insn(0x85, 0, 0, 0, helper)
}

fn load_map(dst: u8, map: &OwnedFd) -> [Insn; 2] {
    // BPF_LD | BPF_IMM | BPF_DW with BPF_PSEUDO_MAP_FD.
    [insn(0x18, dst, 1, 0, map.as_raw_fd()), insn(0, 0, 0, 0, 0)]
}

fn rotator(sources: &OwnedFd, counter: &OwnedFd, programs: &OwnedFd, ipv6: bool, end: &End) -> Vec<Insn> {
    const LDX_W: u8 = 0x61;
    const LDX_DW: u8 = 0x79;
    const STX_W: u8 = 0x63;
    const STX_DW: u8 = 0x7b;
    let at = if ipv6 { 22 } else { 26 };
    let mut code = vec![mov(6, 1), insn(LDX_W, 7, 6, 0, 0), insn(LDX_W, 8, 6, 4, 0)];
    // The program leaves at the end of this list if the frame is short or a map is missing.
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
    let leave = code.len() as i16;
    code.extend([mov_imm(0, 0), EXIT]);
    for (index, insn) in code.iter_mut().enumerate() {
        if insn.offset == LEAVE {
            insn.offset = leave - index as i16 - 1;
        }
    }
    code
}

/// Stands for the distance to the end until that is known.
const LEAVE: i16 = i16::MAX;

fn bpf<T>(command: libc::c_int, attr: &T, what: &str) -> Result<i64> {
    // SAFETY: the attribute is of the size given; what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context(what.to_owned());
    }
    Ok(result)
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: bpf() just returned it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn map(kind: u32, key_size: u32, value_size: u32, max_entries: u32) -> Result<OwnedFd> {
    let attr = [kind, key_size, value_size, max_entries, 0, 0, 0, 0, 0, 0, 0, 0];
    bpf(0, &attr, "creating a map").map(owned)
}

fn update(map: &OwnedFd, key: u32, value: &[u8]) -> Result<()> {
    #[repr(C)]
    struct Attr {
        map_fd: u64,
        key: u64,
        value: u64,
        flags: u64,
    }
    let attr = Attr {
        map_fd: map.as_raw_fd() as u64,
        key: std::ptr::from_ref(&key) as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    bpf(2, &attr, "updating a map").map(|_| ())
}

fn load(code: &[Insn]) -> Result<OwnedFd> {
    /// `union bpf_attr`, the part for `BPF_PROG_LOAD`.
    #[repr(C)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
        rest: [u64; 9],
    }
    const XDP: u32 = 6;
    /// The programs in front of and behind a tail call must agree in it.
    const HAS_FRAGS: u32 = 1 << 5;
    const BPF_XDP: u32 = 37;
    let mut log = vec![0_u8; 1 << 16];
    // SAFETY: plain integers, for which zero is a value.
    let mut attr: Attr = unsafe { zeroed() };
    attr.prog_type = XDP;
    attr.insn_cnt = code.len() as u32;
    attr.insns = code.as_ptr() as u64;
    attr.license = c"GPL".as_ptr() as u64;
    attr.log_level = 1;
    attr.log_size = log.len() as u32;
    attr.log_buf = log.as_mut_ptr() as u64;
    attr.prog_flags = HAS_FRAGS;
    attr.expected_attach_type = BPF_XDP;
    match bpf(5, &attr, "loading a program") {
        Ok(fd) => Ok(owned(fd)),
        Err(error) => bail!(
            "{error:#}: {}",
            String::from_utf8_lossy(&log).trim_end_matches('\0')
        ),
    }
}
