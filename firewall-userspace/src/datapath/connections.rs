//! Concurrent connections of this host's sockets, as limits count them.
//!
//! Two hands count. The program `connections` (`sock_ops`, at the root of cgroup v2) adds one when a listener's handshake is
//! complete and takes it away when the socket closes, for whichever way: FIN, RST, timeout, a process that was killed. And
//! every some seconds the sockets that there are ([sock_diag]) are held against what was counted, and drift is mended.
//!
//! * What is counted: TCP sockets that a listener accepted, from ESTABLISHED until the last FIN is acknowledged; not TIME-WAIT,
//!   which holds no socket. By the policy in force: port to service, peer to limits, so a reload that gives sources other
//!   limits moves their connections.
//! * Drift: sockets older than the program are counted by the recount and not taken away by it; a full line of the table
//!   holds no ninth source. Connections that open and close while the sockets are listed look like drift and are none:
//!   so only what two recounts in a row find, in the same direction, is mended, and of that the smaller part.
//! * A peer on this host itself passes no interface that is filtered, so it counts for nothing.
//!
//! [sock_diag]: https://man7.org/linux/man-pages/man7/sock_diag.7.html

use super::{
    DatapathError, limits, load,
    pages::MappedPages,
    sys::{self, Mapping},
    wire::{self, Connection, Message, NetlinkError, Request},
};
use aya::maps::{Map, MapData};
use firewall_common::{
    control::{Control, SLOTS, Selector},
    flow::Set,
    image::{Image, NO_SERVICE, PAGE_SIZE, Page as _, Pages, PortKey, field},
    limit::{
        COUNTS, MAX_LOCAL, MAX_SCOPES, SOURCE_TIME, TIME_BITS, WAYS, count, flag, profile, scope, source_hash,
    },
    verdict::Reason,
};
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;
use std::{
    collections::{HashMap, HashSet},
    fs,
    mem::offset_of,
    net::IpAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

/// Name of the pinned link.
pub(super) const LINK: &str = "connections";

/// How connections are counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counting {
    /// No limit asks for it.
    Off,
    /// By the program and the recount.
    Program,
    /// By the recount alone, and why.
    Recount(String),
}

/// Attaches the program, or replaces the one that is attached already.
pub(super) fn attach(pins: &Path, program: &load::Loaded) -> Result<(), DatapathError> {
    let pin = pins.join(LINK);
    if let Ok(link) = sys::open_pin(&pin) {
        if sys::link_info(link.as_fd()).is_ok_and(|info| info.ifindex != 0)
            && sys::link_update(link.as_fd(), program.fd.as_fd()).is_ok()
        {
            return Ok(());
        }
        load::remove_pin(&pin).map_err(DatapathError::path("removing", &pin))?;
    }
    let root = cgroup_root()?;
    let cgroup =
        OwnedFd::from(fs::File::open(&root).map_err(DatapathError::path("opening the cgroup", &root))?);
    let link = sys::link_create_cgroup(program.fd.as_fd(), cgroup.as_fd(), sys::ATTACH_SOCK_OPS).map_err(
        DatapathError::path(
            "attaching the program that counts connections to the cgroup",
            &root,
        ),
    )?;
    sys::pin(link.as_fd(), &pin).map_err(DatapathError::path("pinning", &pin))
}

/// Takes the program off. True if there was one.
pub(super) fn detach(pins: &Path) -> Result<bool, DatapathError> {
    let pin = pins.join(LINK);
    let Ok(link) = sys::open_pin(&pin) else {
        return Ok(false);
    };
    // A link whose cgroup is gone is detached already.
    let _ = sys::link_detach(link.as_fd());
    load::remove_pin(&pin).map_err(DatapathError::path("removing", &pin))?;
    Ok(true)
}

/// Where cgroup v2 is mounted, whole.
pub(super) fn cgroup_root() -> Result<PathBuf, DatapathError> {
    let path = Path::new("/proc/thread-self/mountinfo");
    let text = fs::read_to_string(path).map_err(DatapathError::path("reading", path))?;
    // In a cgroup namespace "/" is a part of the machine only, and so would be what is counted there.
    cgroup_mount(&text)
        .filter(|root| fs::metadata(root).is_ok_and(|root| root.ino() == ROOT))
        .ok_or(DatapathError::NoCgroup)
}

/// Inode of the machine's root cgroup.
const ROOT: u64 = 1;

/// `36 35 98:0 / /mnt ... - cgroup2 none rw`: the mount that shows the root.
fn cgroup_mount(text: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (kind.starts_with("cgroup2 ") && root == "/").then(|| point.replace("\\040", " ").into())
    })
}

/// Holds what was counted against the sockets that there are. Of its own, so that it may run beside the owner of the data
/// path: all that it shares are words that are changed by compare-and-swap.
pub struct Recounter {
    directory: PathBuf,
    scopes: Mapping,
    bindings: Mapping,
    control: Mapping,
    own: aya::maps::HashMap<MapData, [u64; 2], u32>,
    /// What the last recount found and did not mend.
    drift: HashMap<Key, i64>,
}

/// Something that is counted: connections of a scope of the kernel, all or those of a cell of its table.
type Key = (u32, Option<Cell>);
/// Line and tag.
type Cell = (u32, u64);

/// What a recount found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Connections that limits count.
    pub connections: u64,
    /// By how much counts were corrected.
    pub mended: u64,
}

impl Recounter {
    pub(super) fn open(directory: &Path) -> Result<Recounter, DatapathError> {
        let map = |name: &'static str, len: usize, writable: bool| {
            let path = directory.join(name);
            sys::open_pin(&path)
                .and_then(|map| Mapping::new(map.as_fd(), len, writable))
                .map_err(DatapathError::path("opening the pin", &path))
        };
        let local = MapData::from_pin(directory.join("LOCAL")).map_err(DatapathError::map("LOCAL"))?;
        Ok(Recounter {
            directory: directory.to_owned(),
            scopes: map("SCOPES", (MAX_SCOPES * scope::WORDS) as usize * 8, true)?,
            bindings: map("BINDINGS", (SLOTS * MAX_LOCAL) as usize * limits::BINDING, false)?,
            control: map("CONTROL", size_of::<Control>(), false)?,
            own: Map::HashMap(local)
                .try_into()
                .map_err(DatapathError::map("LOCAL"))?,
            drift: HashMap::new(),
        })
    }

    /// Counts the connections that there are. What was counted otherwise twice in a row is mended; at the first time if
    /// `at_once`: after a change of the policy, or when nobody else counts.
    ///
    /// # Errors
    /// The sockets cannot be listed. Then everything stays as it is counted.
    pub fn run(&mut self, at_once: bool) -> Result<Found, DatapathError> {
        let selector = self.selector();
        let Some(image) = self.image(selector.image()) else {
            return Ok(Found::default());
        };
        let image = MappedPages(&image);
        let limits = Limits::read(&image, |local| self.bound(selector.image(), local));
        if limits.profiles.is_empty() {
            self.drift.clear();
            return Ok(Found::default());
        }
        let tables: HashMap<u32, Mapping> = limits
            .tables()
            .filter_map(|place| Some((place, self.table(place)?)))
            .collect();
        let mut counts: HashMap<Key, Seen> = HashMap::new();
        self.read(&limits, &tables, |key, count| {
            // A source may stand in two cells, where two CPUs made room for it at once.
            counts.entry(key).or_default().before += count;
        });
        let own: HashSet<[u64; 2]> = self.own.keys().filter_map(Result::ok).collect();
        let sockets = sockets()?;
        let seed = self.control.load_u64(offset_of!(Control, seed));
        let mut found = Found::default();
        for socket in accepted(&sockets) {
            if own.contains(&socket.peer) || socket.is_loopback() {
                continue;
            }
            let Some(limit) = limits.of(&image, socket) else {
                continue;
            };
            found.connections += 1;
            for key in limit.keys(socket, seed, |place| self.load(place, scope::COUNT_MASK) as u32) {
                counts.entry(key).or_default().there += 1;
            }
        }
        self.read(&limits, &tables, |key, count| {
            counts.entry(key).or_default().after += count;
        });
        if self.selector() != selector {
            // Half by one policy and half by another; whoever switched asks again.
            return Ok(Found::default());
        }
        let mut drift = HashMap::new();
        for (key, seen) in counts {
            let now = seen.drift();
            let earlier = self.drift.get(&key).copied().unwrap_or(0);
            let mended = match at_once {
                true => now,
                false => both(earlier, now),
            };
            if mended != 0 {
                self.mend(key, mended, &tables);
                found.mended += mended.unsigned_abs();
            }
            if now != mended {
                drift.insert(key, now - mended);
            }
        }
        self.drift = drift;
        Ok(found)
    }

    fn selector(&self) -> Selector {
        Selector(self.control.load_u64(offset_of!(Control, selector)))
    }

    fn bound(&self, slot: u32, local: u16) -> Option<u32> {
        let index = slot % SLOTS * MAX_LOCAL + u32::from(local) % MAX_LOCAL;
        let place = self.bindings.load_u32(index as usize * limits::BINDING);
        place.checked_sub(1).filter(|place| *place < MAX_SCOPES)
    }

    fn image(&self, slot: u32) -> Option<Mapping> {
        let map = sys::open_pin(&self.directory.join(format!("image-{slot}"))).ok()?;
        let len = sys::map_info(map.as_fd()).ok()?.max_entries as usize * PAGE_SIZE;
        Mapping::new(map.as_fd(), len, false).ok()
    }

    /// The table of counts of a scope, if it has one.
    fn table(&self, place: u32) -> Option<Mapping> {
        let map = sys::open_pin(&limits::table_pin(&self.directory, place, COUNTS)).ok()?;
        let lines = sys::map_info(map.as_fd()).ok()?.max_entries as usize;
        Mapping::new(map.as_fd(), lines * WAYS as usize * 8, true).ok()
    }

    /// Everything that is counted and not zero.
    fn read(&self, limits: &Limits, tables: &HashMap<u32, Mapping>, mut each: impl FnMut(Key, u64)) {
        for place in limits.places() {
            each((place, None), self.load(place, scope::CONNECTIONS));
            let Some(table) = tables.get(&place) else { continue };
            for index in 0..table.len() / 8 {
                let word = table.load_u64(index * 8);
                if word != 0 {
                    let cell = (index as u32 / WAYS, word >> TIME_BITS);
                    each((place, Some(cell)), word & SOURCE_TIME);
                }
            }
        }
    }

    fn load(&self, place: u32, word: u32) -> u64 {
        self.scopes.load_u64((place * scope::WORDS + word) as usize * 8)
    }

    fn mend(&self, (place, cell): Key, by: i64, tables: &HashMap<u32, Mapping>) {
        let Some((line, tag)) = cell else {
            let word = self
                .scopes
                .u64((place * scope::WORDS + scope::CONNECTIONS) as usize * 8);
            // It never fails, for the closure always gives a value.
            let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                Some(count.saturating_add_signed(by))
            });
            return;
        };
        let Some(table) = tables.get(&place) else { return };
        let line = MappedLine { table, line };
        let hash = tag << TIME_BITS;
        for _ in 0..by.unsigned_abs() {
            // What a full line has no room for stays uncounted; the programs take the source for one at its limit.
            let done = match by > 0 {
                true => count::add(line, hash),
                false => count::remove(line, hash),
            };
            if !done {
                return;
            }
        }
    }
}

/// A count: before and after the sockets were listed, and how many sockets were there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    before: u64,
    after: u64,
    there: u64,
}

impl Seen {
    /// By how much the count is too low, as far as it did not change meanwhile.
    fn drift(self) -> i64 {
        let (least, most) = (self.before.min(self.after), self.before.max(self.after));
        let gap = |a: u64, b: u64| i64::try_from(a - b).unwrap_or(i64::MAX);
        if self.there > most {
            gap(self.there, most)
        } else if self.there < least {
            -gap(least, self.there)
        } else {
            0
        }
    }
}

/// What two recounts agree on: nothing if they differ in direction, else the smaller part.
fn both(earlier: i64, now: i64) -> i64 {
    if earlier.signum() == now.signum() {
        now.signum() * earlier.saturating_abs().min(now.saturating_abs())
    } else {
        0
    }
}

/// A line of a table in its mapping.
#[derive(Clone, Copy)]
struct MappedLine<'a> {
    table: &'a Mapping,
    line: u32,
}

impl MappedLine<'_> {
    fn at(self, index: u32) -> usize {
        (self.line * WAYS + index % WAYS) as usize * 8
    }
}

impl Set for MappedLine<'_> {
    fn word(self, index: u32) -> u64 {
        self.table.load_u64(self.at(index))
    }
    fn put(self, index: u32, word: u64) {
        self.table.u64(self.at(index)).store(word, Ordering::Relaxed);
    }
    fn swap(self, index: u32, old: u64, new: u64) -> bool {
        let word = self.table.u64(self.at(index));
        word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

/// The limits of connections in an image.
struct Limits {
    /// By their number.
    profiles: HashMap<u32, Limit>,
}

/// One of them, bound to scopes of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    place: u32,
    parent: Option<u32>,
    /// Connections of each source are limited, too.
    by_source: bool,
    mask_v4: u32,
    mask_v6: [u64; 2],
}

impl Limits {
    fn read<P: Pages>(pages: &P, bound: impl Fn(u16) -> Option<u32>) -> Limits {
        let mut profiles = HashMap::new();
        if let Some(image) = Image::open(pages) {
            for number in 1..=image.first().u32(field::PROFILES) {
                let Some(found) = image.profile(number) else { break };
                if found.flags() & flag::CONNECTIONS == 0 {
                    continue;
                }
                let Some(place) = bound(found.u16(profile::SCOPE)) else {
                    continue;
                };
                let parent = Some(found.u16(profile::PARENT)).filter(|parent| *parent != profile::NO_PARENT);
                let limit = Limit {
                    place,
                    parent: parent.and_then(&bound),
                    by_source: found.u32(profile::CONNECTIONS_SOURCE) != u32::MAX,
                    mask_v4: found.u32(profile::MASK_V4),
                    mask_v6: [found.u64(profile::MASK_V6_HIGH), found.u64(profile::MASK_V6_LOW)],
                };
                profiles.insert(number, limit);
            }
        }
        Limits { profiles }
    }

    /// That of a connection, if it has one.
    fn of<P: Pages>(&self, pages: &P, socket: &Socket) -> Option<Limit> {
        let image = Image::open(pages)?;
        let service = image
            .service(PortKey::tcp(socket.local_port))
            .filter(|service| *service != NO_SERVICE)?;
        let class = image.class(socket.version, socket.peer[0], socket.peer[1])?;
        let cell = image.verdict(service, class)?;
        if !cell.is_limited() || Reason::from_number(cell.reason()) != Some(Reason::Allowed) {
            return None;
        }
        let number = image.limited_by(cell.ending())?.number();
        self.profiles.get(&number).copied()
    }

    /// Scopes of the kernel that count connections.
    fn places(&self) -> impl Iterator<Item = u32> + use<> {
        let places: HashSet<u32> = self
            .profiles
            .values()
            .flat_map(|limit| [Some(limit.place), limit.parent])
            .flatten()
            .collect();
        places.into_iter()
    }

    /// Those that count them by source.
    fn tables(&self) -> impl Iterator<Item = u32> {
        self.profiles
            .values()
            .filter(|limit| limit.by_source)
            .map(|limit| limit.place)
    }
}

impl Limit {
    /// Everything that a connection counts in.
    fn keys(&self, socket: &Socket, seed: u64, mask: impl Fn(u32) -> u32) -> Vec<Key> {
        let mut keys = vec![(self.place, None)];
        keys.extend(self.parent.map(|parent| (parent, None)));
        if self.by_source {
            let [high, low] = socket.peer;
            let (high, low) = match socket.version {
                4 => (0, low & u64::from(self.mask_v4)),
                _ => (high & self.mask_v6[0], low & self.mask_v6[1]),
            };
            let hash = source_hash(high, low, seed);
            let line = hash as u32 & mask(self.place);
            keys.push((self.place, Some((line, hash >> TIME_BITS))));
        }
        keys
    }
}

/// Whether an image limits connections.
pub(super) fn wanted(image: &Mapping) -> bool {
    let pages = MappedPages(image);
    let Some(image) = Image::open(&pages) else {
        return false;
    };
    (1..=image.first().u32(field::PROFILES)).any(|number| {
        image
            .profile(number)
            .is_some_and(|found| found.flags() & flag::CONNECTIONS != 0)
    })
}

/// A TCP socket of this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Socket {
    listening: bool,
    local_port: u16,
    /// 4 or 6; IPv4 through a socket of both families counts as IPv4.
    version: u8,
    /// Halves as in the maps.
    peer: [u64; 2],
}

impl Socket {
    fn is_loopback(&self) -> bool {
        match self.version {
            4 => self.peer[1] >> 24 == 127,
            _ => self.peer == [0, 1],
        }
    }
}

/// Those that a listener accepted: the port of a connection that this host opened has none.
fn accepted(sockets: &[Socket]) -> impl Iterator<Item = &Socket> {
    let listening: HashSet<u16> = sockets
        .iter()
        .filter(|socket| socket.listening)
        .map(|socket| socket.local_port)
        .collect();
    sockets
        .iter()
        .filter(move |socket| !socket.listening && listening.contains(&socket.local_port))
}

/// States of `include/net/tcp_states.h`.
const TCP_LISTEN: u8 = 10;
/// ESTABLISHED, FIN-WAIT-1, FIN-WAIT-2, CLOSE-WAIT, LAST-ACK, LISTEN and CLOSING.
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Bytes of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// `idiag_timer` of what only waits for its time to be over, and holds no socket: FIN-WAIT-2 may be that, too.
const TIME_WAIT: u8 = 3;

/// Listeners and connections, as the kernel lists them.
fn sockets() -> Result<Vec<Socket>, NetlinkError> {
    let connection = Connection::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let request = || {
            let mut fixed = [0; REQUEST];
            fixed[0] = family as u8;
            fixed[1] = libc::IPPROTO_TCP as u8;
            fixed[4..8].copy_from_slice(&STATES.to_ne_bytes());
            Request::new(SOCK_DIAG_BY_FAMILY, wire::NLM_F_DUMP, &fixed)
        };
        found.extend(connection.dump("listing the TCP sockets", request, socket)?);
    }
    Ok(found)
}

/// `struct inet_diag_msg`: family, state, timer, retransmissions; ports and addresses in the wire's order.
fn socket(message: Message<'_>) -> Option<Socket> {
    let body = message.body;
    let &[family, state, timer, _, port_high, port_low, ..] = body else {
        return None;
    };
    if timer == TIME_WAIT {
        return None;
    }
    let peer = body.get(24..40)?;
    let address = if i32::from(family) == libc::AF_INET {
        let bytes: [u8; 4] = peer[..4].try_into().ok()?;
        IpAddr::from(bytes)
    } else {
        let bytes: [u8; 16] = peer.try_into().ok()?;
        IpAddr::from(bytes).to_canonical()
    };
    Some(Socket {
        listening: state == TCP_LISTEN,
        local_port: u16::from_be_bytes([port_high, port_low]),
        version: if address.is_ipv4() { 4 } else { 6 },
        peer: super::halves(address),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn seen(before: u64, after: u64, there: u64) -> i64 {
        Seen { before, after, there }.drift()
    }

    #[test]
    fn what_changed_meanwhile_is_no_drift() {
        assert_eq!(seen(5, 5, 5), 0);
        assert_eq!((seen(5, 9, 7), seen(9, 5, 7)), (0, 0));
        assert_eq!((seen(5, 9, 12), seen(5, 9, 2)), (3, -3));
        assert_eq!(seen(0, 0, u64::MAX), i64::MAX);
    }

    #[test]
    fn only_what_two_recounts_agree_on_is_mended() {
        assert_eq!((both(0, 5), both(5, 0)), (0, 0));
        assert_eq!((both(3, 5), both(5, 3), both(-4, -2)), (3, 3, -2));
        assert_eq!((both(3, -5), both(-3, 5)), (0, 0));
        assert_eq!(both(i64::MIN, -1), -1);
    }

    #[test]
    fn the_root_of_cgroup_v2_is_found_among_the_mounts() {
        let text = "24 30 0:22 / /sys/fs/cgroup rw - tmpfs cgroup rw\n\
                    31 24 0:27 /slice /mnt/part rw - cgroup2 none rw\n\
                    32 24 0:27 / /sys/fs/cgroup/uni\\040fied rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(cgroup_mount(text), Some(PathBuf::from("/sys/fs/cgroup/uni fied")));
        assert_eq!(
            cgroup_mount("24 30 0:22 / /sys/fs/cgroup rw - tmpfs cgroup rw\n"),
            None
        );
    }

    #[test]
    fn an_accepted_connection_is_listed_and_its_other_end_is_not() {
        // Of both families: IPv4 peers have mapped addresses.
        for (bind, to) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::]:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
        ] {
            let listener = TcpListener::bind(bind).expect("bound");
            let port = listener.local_addr().expect("bound").port();
            let opened = TcpStream::connect((to, port)).expect("connected");
            let client = opened.local_addr().expect("connected").port();
            let sockets = sockets().expect("listed");
            let found: Vec<&Socket> = accepted(&sockets)
                .filter(|socket| [port, client].contains(&socket.local_port))
                .collect();
            let [socket] = found[..] else {
                panic!("{bind}: {found:?}")
            };
            assert_eq!(socket.local_port, port);
            assert_eq!(socket.version, if to.contains(':') { 6 } else { 4 });
            assert!(socket.is_loopback());
        }
    }

    #[test]
    fn a_line_in_a_mapping_is_a_set() {
        let map = sys::inner_array("test", 64, 2);
        let Ok(map) = map else {
            eprintln!("skipped: this needs CAP_BPF");
            return;
        };
        let table = Mapping::new(map.as_fd(), 128, true).expect("mapped");
        let line = MappedLine {
            table: &table,
            line: 1,
        };
        let hash = |tag: u64| tag << TIME_BITS;
        for tag in 1..=8 {
            assert!(count::add(line, hash(tag)));
        }
        assert!(!count::add(line, hash(9)), "a ninth source");
        assert!(count::add(line, hash(3)));
        assert_eq!(
            (count::of(line, hash(3)), count::of(line, hash(9))),
            (2, count::FULL)
        );
        assert!(count::remove(line, hash(8)) && !count::remove(line, hash(8)));
        assert_eq!(count::of(line, hash(9)), 0);
        assert_eq!(table.load_u64(0), 0, "the line before it");
    }
}
