//! Programs in instructions and maps by bare `bpf()` calls: what generators of packets and empty programs are made of.
//! They must cost the same in front of every filter that is compared, so no compiler has a hand in them.

use anyhow::{Context, Result, bail};
use std::ffi::CString;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Insn {
    pub code: u8,
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

pub const fn insn(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Insn {
    Insn {
        code,
        registers: src << 4 | dst,
        offset,
        immediate,
    }
}

pub const EXIT: Insn = insn(0x95, 0, 0, 0, 0);

pub const fn mov_imm(dst: u8, value: i32) -> Insn {
    insn(0xb7, dst, 0, 0, value)
}

pub const fn mov(dst: u8, src: u8) -> Insn {
    insn(0xbf, dst, src, 0, 0)
}

pub const fn call(helper: i32) -> Insn {
    insn(0x85, 0, 0, 0, helper)
}

pub fn load_map(dst: u8, map: &OwnedFd) -> [Insn; 2] {
    // BPF_LD | BPF_IMM | BPF_DW with BPF_PSEUDO_MAP_FD.
    [insn(0x18, dst, 1, 0, map.as_raw_fd()), insn(0, 0, 0, 0, 0)]
}

/// Stands in an offset for the distance to the end of the code, until [`leave_at_end`].
pub const LEAVE: i16 = i16::MAX;

/// Ends the code in XDP_ABORTED, to which all jumps to [`LEAVE`] go: the frame is short or a map is missing.
pub fn leave_at_end(code: &mut Vec<Insn>) {
    let leave = code.len() as i16;
    code.extend([mov_imm(0, 0), EXIT]);
    for (index, insn) in code.iter_mut().enumerate() {
        if insn.offset == LEAVE {
            insn.offset = leave - index as i16 - 1;
        }
    }
}

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

/// An array map and the like.
///
/// # Errors
/// The kernel refuses it.
pub fn map(kind: u32, key_size: u32, value_size: u32, max_entries: u32) -> Result<OwnedFd> {
    let attr = [kind, key_size, value_size, max_entries, 0, 0, 0, 0, 0, 0, 0, 0];
    bpf(0, &attr, "creating a map").map(owned)
}

/// Sets a value of an array map.
///
/// # Errors
/// The kernel refuses it.
pub fn update(map: &OwnedFd, key: u32, value: &[u8]) -> Result<()> {
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

/// Reads a value of an array map.
///
/// # Errors
/// The kernel refuses it.
pub fn look_up(map: &OwnedFd, key: u32) -> Result<u64> {
    let mut value = 0_u64;
    let attr = [
        map.as_raw_fd() as u64,
        std::ptr::from_ref(&key) as u64,
        std::ptr::from_mut(&mut value) as u64,
        0,
    ];
    bpf(1, &attr, "reading a map")?;
    Ok(value)
}

/// A map that is pinned.
///
/// # Errors
/// There is none.
pub fn pinned(path: &Path) -> Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let attr = [name.as_ptr() as u64, 0];
    bpf(7, &attr, &format!("opening {}", path.display())).map(owned)
}

/// Reads a value of `size` bytes, which is the size that the map has.
///
/// # Errors
/// There is none.
pub fn read(map: &OwnedFd, key: &[u8], size: usize) -> Result<Vec<u8>> {
    // Values are padded to eight bytes.
    let mut value = vec![0_u8; size.next_multiple_of(8)];
    let attr = [
        map.as_raw_fd() as u64,
        key.as_ptr() as u64,
        value.as_mut_ptr() as u64,
        0,
    ];
    bpf(1, &attr, "reading a map")?;
    value.truncate(size);
    Ok(value)
}

/// Sets a value by a key of any shape.
///
/// # Errors
/// The kernel refuses it.
pub fn write(map: &OwnedFd, key: &[u8], value: &[u8]) -> Result<()> {
    let attr = [
        map.as_raw_fd() as u64,
        key.as_ptr() as u64,
        value.as_ptr() as u64,
        0,
    ];
    bpf(2, &attr, "updating a map").map(drop)
}

/// Takes an element out.
///
/// # Errors
/// It is not there.
pub fn delete(map: &OwnedFd, key: &[u8]) -> Result<()> {
    let attr = [map.as_raw_fd() as u64, key.as_ptr() as u64, 0, 0];
    bpf(3, &attr, "deleting from a map").map(drop)
}

/// An array that fits into the arrays of maps of a policy: mmap-able, of any number of entries.
///
/// # Errors
/// The kernel refuses it.
pub fn inner_array(value_size: u32, max_entries: u32) -> Result<OwnedFd> {
    const MMAPABLE: u32 = 1 << 10;
    const INNER_MAP: u32 = 1 << 12;
    let attr = [
        2,
        4,
        value_size,
        max_entries,
        MMAPABLE | INNER_MAP,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    bpf(0, &attr, "creating a map").map(owned)
}

/// A program that writes a word into the first element of an array, as no system call can once the array is frozen.
///
/// # Errors
/// What the verifier says.
pub fn writer(map: &OwnedFd, offset: i16, word: i32) -> Result<OwnedFd> {
    let mut code = load_map(1, map).to_vec();
    code.extend([
        insn(0x62, 10, 0, -4, 0),
        mov(2, 10),
        insn(0x07, 2, 0, 0, -4),
        call(1),
        insn(0x15, 0, 0, LEAVE, 0),
        insn(0x62, 0, 0, offset, word),
        mov_imm(0, 2),
        EXIT,
    ]);
    leave_at_end(&mut code);
    load(&code)
}

/// Loads an XDP program.
///
/// # Errors
/// What the verifier says.
pub fn load(code: &[Insn]) -> Result<OwnedFd> {
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
