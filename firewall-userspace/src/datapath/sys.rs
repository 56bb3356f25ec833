//! The system calls that aya has no face for: `bpf()` on inner maps, links and pins, and the mapping of a map's
//! memory. All `unsafe` of the user space is here, behind safe functions.
//!
//! Links are made here and not by aya because aya answers `EINVAL` of `BPF_LINK_CREATE` by a netlink attachment,
//! which cannot be pinned, and because a program handle of aya detaches its links when it is dropped.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};
use tokio::io::{Interest, unix::AsyncFd};

/// `BPF_F_MMAPABLE | BPF_F_INNER_MAP`: mapped into memory, and of any length inside of an array of maps.
pub const INNER_FLAGS: u32 = 0x400 | 0x1000;
/// `BPF_CGROUP_SOCK_OPS`, `BPF_XDP`, `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` of `enum bpf_attach_type`.
pub const ATTACH_SOCK_OPS: u32 = 3;
pub const ATTACH_XDP: u32 = 37;
pub const ATTACH_TCX_INGRESS: u32 = 46;
pub const ATTACH_TCX_EGRESS: u32 = 47;
/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE`.
pub const XDP_GENERIC: u32 = 1 << 1;
pub const XDP_NATIVE: u32 = 1 << 2;
/// `BPF_F_BEFORE` without a relative: at the head of the chain.
pub const TCX_FIRST: u32 = 1 << 3;

const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;

#[derive(Clone, Copy)]
#[repr(u32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    ObjPin = 6,
    ObjGet = 7,
    ProgGetFdById = 13,
    ObjGetInfo = 15,
    ProgQuery = 16,
    BtfLoad = 18,
    MapFreeze = 22,
    MapLookupBatch = 24,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// A member of `union bpf_attr`: plain integers without padding.
///
/// # Safety
/// The type is `repr(C)`, has no padding, and its layout is a prefix of the command's member of the union, which
/// holds no address but of memory that outlives the call.
unsafe trait Attr {}

fn bpf<A: Attr>(command: Command, attr: &A) -> io::Result<i64> {
    // SAFETY: the pointer and the length describe `attr`, which is initialised in full as it has no padding
    // (`Attr`). The kernel reads it only; what it writes goes to the addresses inside, valid by `Attr`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as u32,
            std::ptr::from_ref(attr),
            size_of::<A>() as u32,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// For the commands that return a descriptor.
fn bpf_fd<A: Attr>(command: Command, attr: &A) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
    ifindex: u32,
    btf_fd: u32,
    btf_key: u32,
    btf_value: u32,
}
// SAFETY: fifteen words, as the anonymous struct of `BPF_MAP_CREATE` begins; no addresses.
unsafe impl Attr for MapCreate {}

fn map_create(
    name: &str,
    map_type: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner: Option<BorrowedFd<'_>>,
    btf: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let mut bytes = [0; 16];
    // The kernel keeps fifteen bytes and the terminator.
    let kept = name.len().min(15);
    bytes[..kept].copy_from_slice(&name.as_bytes()[..kept]);
    let attr = MapCreate {
        map_type,
        key_size: 4,
        value_size,
        max_entries,
        map_flags,
        inner_map_fd: inner.map_or(0, raw),
        numa_node: 0,
        name: bytes,
        ifindex: 0,
        btf_fd: btf.map_or(0, raw),
        btf_key: if btf.is_some() { BTF_KEY } else { 0 },
        btf_value: if btf.is_some() { BTF_VALUE } else { 0 },
    };
    bpf_fd(Command::MapCreate, &attr)
}

/// An array that fits into an array of maps whose inner template has the same value size.
pub fn inner_array(name: &str, value_size: u32, max_entries: u32) -> io::Result<OwnedFd> {
    // Kernels before 6.2 compare where a value has its timer, and "nowhere" differs from "not described". The
    // template has a description, so this has one.
    let btf = describe(value_size)?;
    map_create(
        name,
        MAP_TYPE_ARRAY,
        value_size,
        max_entries,
        INNER_FLAGS,
        None,
        Some(btf.as_fd()),
    )
}

#[repr(C)]
struct BtfLoad {
    btf: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    pad: u32,
}
// SAFETY: the layout of `BPF_BTF_LOAD`, whose last word is zero; `describe` puts the address of its own buffer.
unsafe impl Attr for BtfLoad {}

/// Type numbers in what `describe` loads.
const BTF_KEY: u32 = 1;
const BTF_VALUE: u32 = 4;

/// The description (BTF) of a map from `u32` to a struct of `value_size / 8` words.
fn describe(value_size: u32) -> io::Result<OwnedFd> {
    let blob = description(value_size);
    let attr = BtfLoad {
        btf: blob.as_ptr() as u64,
        log: 0,
        size: blob.len() as u32,
        log_size: 0,
        log_level: 0,
        pad: 0,
    };
    bpf_fd(Command::BtfLoad, &attr)
}

/// See <https://docs.kernel.org/bpf/btf.html>.
fn description(value_size: u32) -> Vec<u8> {
    const INT: u32 = 1 << 24;
    const ARRAY: u32 = 3 << 24;
    const STRUCT: u32 = 4 << 24;
    const NAMES: &[u8] = b"\0u32\0u64\0";
    let types = [
        // Name, kind (and members), size, then bits; or element, index and length; or name, type and place.
        &[1, INT, 4, 32][..],
        &[5, INT, 8, 64],
        &[0, ARRAY, 0, 2, 1, value_size / 8],
        &[0, STRUCT | 1, value_size, 0, 3, 0],
    ]
    .concat();
    let types_len = size_of_val(&types[..]) as u32;
    let mut blob = Vec::new();
    // Magic, version and flags, then the length of this header.
    blob.extend(0xeb9f_u16.to_ne_bytes());
    blob.extend([1, 0]);
    for word in [24, 0, types_len, types_len, NAMES.len() as u32]
        .into_iter()
        .chain(types)
    {
        blob.extend(word.to_ne_bytes());
    }
    blob.extend(NAMES);
    blob
}

#[repr(C)]
struct MapElement {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}
// SAFETY: the layout of `BPF_MAP_*_ELEM`; the callers put addresses of their own locals into `key` and `value`, of
// the sizes that the maps have: four bytes each, for arrays of maps only.
unsafe impl Attr for MapElement {}

#[repr(C)]
struct MapBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

/// Key and value of a hash map with three words for each.
pub type Words = ([u64; 3], [u64; 3]);

/// All elements of a hash map whose keys and values are three words each.
///
/// # Errors
/// If it is another map; before kernel 5.6.
pub fn hash_elements(map: BorrowedFd<'_>) -> io::Result<Vec<Words>> {
    const CHUNK: usize = 4096;
    let info = map_info(map)?;
    if (info.map_type, info.key_size, info.value_size) != (MAP_TYPE_HASH, 24, 24) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a hash map of three words",
        ));
    }
    let mut found = Vec::new();
    let (mut keys, mut values) = (vec![[0_u64; 3]; CHUNK], vec![[0_u64; 3]; CHUNK]);
    // Of a hash map a batch is the number of a bucket.
    let (mut from, mut next) = (0_u32, 0_u32);
    let mut first = true;
    loop {
        let mut attr = MapBatch {
            in_batch: if first {
                0
            } else {
                std::ptr::from_ref(&from) as u64
            },
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: keys.len() as u32,
            map_fd: raw(map),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the pointer and the length describe `attr`, initialised in full and borrowed mutably, for the kernel
        // writes the count into it. `keys` and `values` hold `count` elements of the sizes that were checked above, and
        // outlive the call as the two batches do.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                Command::MapLookupBatch as u32,
                std::ptr::from_mut(&mut attr),
                size_of::<MapBatch>() as u32,
            )
        };
        let error = (result < 0).then(io::Error::last_os_error);
        let full = match error.as_ref().and_then(io::Error::raw_os_error) {
            // The last batch.
            None | Some(libc::ENOENT) => false,
            // One bucket holds more than fits.
            Some(libc::ENOSPC) => true,
            Some(_) => return Err(error.unwrap_or_else(io::Error::last_os_error)),
        };
        if full {
            let longer = keys.len() * 2;
            keys.resize(longer, [0; 3]);
            values.resize(longer, [0; 3]);
            continue;
        }
        let count = (attr.count as usize).min(keys.len());
        found.extend(keys[..count].iter().copied().zip(values[..count].iter().copied()));
        if error.is_some() {
            return Ok(found);
        }
        (from, first) = (next, false);
    }
}

/// An array of maps, by its own descriptor.
#[derive(Clone, Copy)]
pub struct OuterArray<'fd>(BorrowedFd<'fd>);

impl<'fd> OuterArray<'fd> {
    /// # Errors
    /// If the descriptor is not an array of maps.
    pub fn new(fd: BorrowedFd<'fd>) -> io::Result<Self> {
        let info = map_info(fd)?;
        // The key and the value of this type are four bytes each, on which the calls below rely.
        if info.map_type != MAP_TYPE_ARRAY_OF_MAPS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not an array of maps",
            ));
        }
        Ok(OuterArray(fd))
    }

    /// Id of the inner map in a slot.
    pub fn inner_id(self, slot: u32) -> io::Result<Option<u32>> {
        let mut id = 0_u32;
        let attr = MapElement {
            map_fd: raw(self.0),
            pad: 0,
            key: std::ptr::from_ref(&slot) as u64,
            value: std::ptr::from_mut(&mut id) as u64,
            flags: 0,
        };
        match bpf(Command::MapLookup, &attr) {
            Ok(_) => Ok(Some(id)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a map into a slot. Returns after a grace period: no program still runs that began before.
    pub fn set(self, slot: u32, inner: BorrowedFd<'_>) -> io::Result<()> {
        let fd = raw(inner);
        let attr = MapElement {
            map_fd: raw(self.0),
            pad: 0,
            key: std::ptr::from_ref(&slot) as u64,
            value: std::ptr::from_ref(&fd) as u64,
            flags: 0,
        };
        bpf(Command::MapUpdate, &attr).map(drop)
    }

    /// Empties a slot; an empty one stays so.
    pub fn clear(self, slot: u32) -> io::Result<()> {
        let attr = MapElement {
            map_fd: raw(self.0),
            pad: 0,
            key: std::ptr::from_ref(&slot) as u64,
            value: 0,
            flags: 0,
        };
        match bpf(Command::MapDelete, &attr) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }
}

/// Waits for grace periods: the kernel ends every update of an array of maps by one
/// (`maybe_wait_bpf_programs`), so this owns a small one to update.
pub struct Grace {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Grace {
    pub fn new() -> io::Result<Grace> {
        let inner = inner_array("ravelin_grace", 8, 1)?;
        let outer = map_create(
            "ravelin_grace",
            MAP_TYPE_ARRAY_OF_MAPS,
            4,
            1,
            0,
            Some(inner.as_fd()),
            None,
        )?;
        Ok(Grace { outer, inner })
    }

    /// Returns when every program that ran at the time of the call has ended.
    pub fn wait(&self) -> io::Result<()> {
        OuterArray(self.outer.as_fd()).set(0, self.inner.as_fd())
    }
}

#[repr(C)]
struct OneFd {
    fd: u32,
}
// SAFETY: `BPF_MAP_FREEZE` and `BPF_LINK_DETACH` begin with the descriptor and need no more.
unsafe impl Attr for OneFd {}

/// Refuses writes from user space from now on.
///
/// # Errors
/// `EBUSY` while a writable mapping exists.
pub fn map_freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    bpf(Command::MapFreeze, &OneFd { fd: raw(map) }).map(drop)
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}
// SAFETY: the layout of `BPF_OBJ_*`; the callers put the address of a C string that they hold over the call.
unsafe impl Attr for Object {}

/// Pins a map or link. The directory exists and is on a BPF file system.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(
        Command::ObjPin,
        &Object {
            path: path.as_ptr() as u64,
            fd: raw(fd),
            flags: 0,
        },
    )
    .map(drop)
}

/// Opens what is pinned at a path.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf_fd(
        Command::ObjGet,
        &Object {
            path: path.as_ptr() as u64,
            fd: 0,
            flags: 0,
        },
    )
}

#[repr(C)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}
// SAFETY: the layout of `BPF_OBJ_GET_INFO_BY_FD`; `info` below puts the address and the size of its own buffer.
unsafe impl Attr for Info {}

/// The first 128 bytes of the `bpf_*_info` of a descriptor, as far as the kernel fills them.
fn info(fd: BorrowedFd<'_>) -> io::Result<[u32; 32]> {
    let mut words = [0_u32; 32];
    let attr = Info {
        fd: raw(fd),
        len: size_of_val(&words) as u32,
        info: std::ptr::from_mut(&mut words) as u64,
    };
    bpf(Command::ObjGetInfo, &attr)?;
    Ok(words)
}

/// Of `struct bpf_map_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapInfo {
    pub map_type: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let [map_type, id, key_size, value_size, max_entries, flags, ..] = info(map)?;
    Ok(MapInfo {
        map_type,
        id,
        key_size,
        value_size,
        max_entries,
        flags,
    })
}

/// Of `struct bpf_link_info`, for XDP and TCX links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    pub program_id: u32,
    /// 0 when the interface is gone. Of a link to a cgroup: half of the cgroup's number, 0 when that is gone.
    pub ifindex: u32,
}

pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // type, id, prog_id, padding, then the union, whose XDP and TCX members begin with the ifindex.
    let [_, _, program_id, _, ifindex, ..] = info(link)?;
    Ok(LinkInfo { program_id, ifindex })
}

/// Of `struct bpf_prog_info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    pub id: u32,
    pub name: String,
}

pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let words = info(program)?;
    // Sixteen bytes from offset 64 on.
    let name: Vec<u8> = words[16..20]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .take_while(|byte| *byte != 0)
        .collect();
    Ok(ProgramInfo {
        id: words[1],
        name: String::from_utf8_lossy(&name).into_owned(),
    })
}

#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}
// SAFETY: the layout of `BPF_*_GET_FD_BY_ID`; no addresses.
unsafe impl Attr for ById {}

/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub fn program_by_id(id: u32) -> io::Result<ProgramInfo> {
    let program = bpf_fd(
        Command::ProgGetFdById,
        &ById {
            id,
            next_id: 0,
            open_flags: 0,
        },
    )?;
    program_info(program.as_fd())
}

/// Of `BPF_PROG_QUERY`, as long as the kernel writes into it.
#[repr(C)]
struct ProgQuery {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
    id_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

/// The programs attached by TCX to an interface, in the order they run.
///
/// # Errors
/// `EINVAL` before kernel 6.6, `EPERM` without CAP_NET_ADMIN, `ENOSPC` if there are more than sixty-four.
pub fn programs_at(ifindex: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 64];
    let mut attr = ProgQuery {
        ifindex,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        pad: 0,
        id_flags: 0,
        link_ids: 0,
        link_flags: 0,
        revision: 0,
    };
    // SAFETY: the pointer and the length describe `attr`, initialised in full and borrowed mutably, for the kernel
    // writes the count and the revision into it. `ids` and `count` describe the array above, which outlives the call;
    // the other addresses are zero, which asks for nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            Command::ProgQuery as u32,
            std::ptr::from_mut(&mut attr),
            size_of::<ProgQuery>() as u32,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let count = (attr.count as usize).min(ids.len());
    Ok(ids[..count].to_vec())
}

#[repr(C)]
struct LinkCreate {
    program_fd: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}
// SAFETY: the layout of `BPF_LINK_CREATE` with its TCX member, whose bytes are zero for XDP; no addresses.
unsafe impl Attr for LinkCreate {}

/// Attaches a program to an interface; the link detaches it when nothing holds it any more.
pub fn link_create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let attr = LinkCreate {
        program_fd: raw(program),
        ifindex,
        attach_type,
        flags,
        relative: 0,
        pad: 0,
        revision: 0,
    };
    bpf_fd(Command::LinkCreate, &attr)
}

/// The same to a cgroup, beside the programs of others there (`BPF_F_ALLOW_MULTI`, which links have always).
pub fn link_create_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    // `target_fd` stands where `target_ifindex` does.
    link_create(program, raw(cgroup), attach_type, 0)
}

/// `SO_NETNS_COOKIE`: the number of this thread's network namespace, by which programs tell it.
///
/// # Errors
/// `ENOPROTOOPT` before kernel 5.14.
pub fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the address and the length describe `cookie`, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    program_fd: u32,
    flags: u32,
    old_program_fd: u32,
}
// SAFETY: the layout of `BPF_LINK_UPDATE`; no addresses.
unsafe impl Attr for LinkUpdate {}

/// Replaces the program of a link: each packet meets the old one or the new one.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdate {
        link_fd: raw(link),
        program_fd: raw(program),
        flags: 0,
        old_program_fd: 0,
    };
    bpf(Command::LinkUpdate, &attr).map(drop)
}

/// Detaches at once, whoever else holds the link.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(Command::LinkDetach, &OneFd { fd: raw(link) }).map(drop)
}

/// Lifts the limit on locked memory, by which kernels before 5.11 account BPF maps.
pub fn lift_memlock() -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: `limit` is a valid rlimit for the length of the call.
    match unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Watches a descriptor for readability.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `AsyncFd` owns the descriptor and an `OwnedFd` names the same open one until it is dropped.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}

/// The memory of an mmap-able array, shared with the programs that use it. It lives as long as this, even if the
/// map's descriptors and pins are gone.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    writable: bool,
}

// SAFETY: the pages are shared memory that belongs to no thread; they are read and written by atomic operations
// and copies only, never by references to plain memory.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of the values of an mmap-able array.
    pub fn new(map: BorrowedFd<'_>, len: usize, writable: bool) -> io::Result<Mapping> {
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of this process.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Mapping { start, len, writable })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Where a value of `size` bytes begins.
    ///
    /// # Panics
    /// If it does not lie in the mapping, aligned to its size.
    fn at(&self, offset: usize, size: usize) -> NonNull<u8> {
        assert!(
            offset.is_multiple_of(size) && offset.checked_add(size).is_some_and(|end| end <= self.len),
            "offset {offset} of a mapping of {} bytes",
            self.len
        );
        // SAFETY: `offset + size <= len` by the line above, so it stays within the mapping.
        unsafe { self.start.add(offset) }
    }

    /// A word, as it is now.
    pub fn load_u64(&self, offset: usize) -> u64 {
        // SAFETY: `at` gives eight mapped bytes, aligned as the mapping begins at a page; they live as long as
        // `self`. A relaxed load of a read-only page is a plain load.
        unsafe { self.at(offset, 8).cast::<AtomicU64>().as_ref() }.load(Ordering::Relaxed)
    }

    /// A half word, as it is now.
    pub fn load_u32(&self, offset: usize) -> u32 {
        // SAFETY: as in `load_u64`, for four bytes.
        unsafe { self.at(offset, 4).cast::<AtomicU32>().as_ref() }.load(Ordering::Relaxed)
    }

    /// A word to write to.
    ///
    /// # Panics
    /// If the mapping is read-only.
    pub fn u64(&self, offset: usize) -> &AtomicU64 {
        assert!(self.writable);
        // SAFETY: `at` gives eight mapped and aligned bytes, writable by the line above, that live as long as `self`.
        unsafe { self.at(offset, 8).cast().as_ref() }
    }

    /// A half word to write to.
    ///
    /// # Panics
    /// If the mapping is read-only.
    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        assert!(self.writable);
        // SAFETY: as in `u64`, for four bytes.
        unsafe { self.at(offset, 4).cast().as_ref() }
    }

    /// Copies bytes out, from `offset` on.
    ///
    /// # Panics
    /// If they do not lie in the mapping.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        assert!(offset.checked_add(out.len()).is_some_and(|end| end <= self.len));
        // SAFETY: the source lies in the mapping by the line above, and cannot overlap memory of this process.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.add(offset).as_ptr(), out.as_mut_ptr(), out.len());
        }
    }

    /// Copies bytes in, to the start.
    ///
    /// # Panics
    /// If they do not fit or the mapping is read-only.
    pub fn write(&mut self, bytes: &[u8]) {
        assert!(self.writable && bytes.len() <= self.len);
        // SAFETY: the target lies in the mapping and is writable by the line above, and cannot overlap `bytes`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr(), bytes.len()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly these bytes, and every borrow of them ends with `self`.
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.len);
        }
    }
}
