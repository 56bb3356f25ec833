//! The decision on the host: the very `decide` of the kernel over slices, with its steps, and a builder of
//! frames to feed it. `explain` and the tests use both.

use firewall_common::ban::{self, Ban, BanKey};
use firewall_common::control::{AddressKey, Config};
use firewall_common::counter::Tally;
use firewall_common::decide::{self, Kernel, Outcome, Socket, Step};
use firewall_common::flow::{self, Key, Left, SET_WORDS, Sends, Set, State, Table};
use firewall_common::fragment::{Fragments, Remembered};
use firewall_common::gate::{self, Bank};
use firewall_common::image::{Image, SlicePage, SlicePages};
use firewall_common::limit::{self, scope};
use firewall_common::meter::{self, BanAsked, Limiter, Metered, Sketch, Spend, Steps, Told, Weighed};
use firewall_common::packet::{Address, Fragment, Packet, SliceFrame, ethertype, protocol, tcp};
use firewall_common::verdict::Reason;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a node knows when a packet comes in.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    /// Empty: no policy in force.
    pub image: &'a [u8],
    pub config: &'a Config,
    pub own: &'a HashSet<AddressKey>,
    pub flows: &'a Flows,
}

/// What the host opened, as far as it is known. Judging a frame writes here what it would write in the kernel.
#[derive(Clone, Debug, Default)]
pub struct Flows {
    /// Open cells of the gate, by `Bank::cell`.
    pub gate: RefCell<HashMap<u32, gate::Cell>>,
    pub seed: u64,
    pub now_s: u32,
    pub generation: u64,
    /// The interface that packets go out by.
    pub ifindex: u32,
    /// Connected sockets: protocol, peer address and port, local port.
    pub sockets: HashMap<(u8, AddressKey, u16, u16), Socket>,
    pub flows: Memory,
    pub fragments: Memory,
    pub bans: HashMap<BanKey, Ban>,
    pub limits: Limits,
    /// Counts by [`Tally`].
    pub tallies: RefCell<[u64; Tally::COUNT as usize]>,
}

/// A table of sets in memory: the host's side of `flow::Table`.
#[derive(Debug)]
pub struct Memory(Vec<AtomicU64>);

/// Words of [`Memory`] that belong together, a power of two of them.
#[derive(Clone, Copy)]
pub struct MemorySet<'a>(&'a [AtomicU64]);

/// The state of limits, each scope of the image bound to the scope of the same number.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// [`scope::WORDS`] for each scope.
    pub scopes: Memory,
    /// Lines of [`limit::WAYS`], by scope and table.
    pub sketches: HashMap<(u32, u32), Memory>,
    pub now_ns: u64,
    /// What the socket table says of segments to services.
    pub handshakes: HashMap<Key, Told>,
    /// What becomes of challenges; [`Told::FAILED`] unless it is told.
    pub challenge: Option<Told>,
    /// Bans that limits asked for.
    pub bans: RefCell<Vec<BanAsked>>,
    /// Nothing is in excess, whatever the rest says.
    pub ample: bool,
}

impl Limits {
    /// For one who does not know what came before: nothing is in excess.
    pub fn ample() -> Limits {
        Limits {
            ample: true,
            ..Limits::default()
        }
    }

    /// Room for these scopes, each with sketches of this many lines.
    ///
    /// # Panics
    /// If `lines` is no power of two.
    pub fn new(scopes: u32, lines: u32) -> Limits {
        assert!(lines.is_power_of_two(), "a mask picks the line");
        let mut words = vec![0; (scopes * scope::WORDS) as usize];
        let mut sketches = HashMap::new();
        for number in 0..scopes {
            for mask in [scope::SKETCH_MASK, scope::COUNT_MASK] {
                words[(number * scope::WORDS + mask) as usize] = lines as u64 - 1;
            }
            for table in 0..limit::TABLES {
                let line = vec![0; (lines * limit::WAYS) as usize];
                sketches.insert((number, table), Memory::from_words(line));
            }
        }
        Limits {
            scopes: Memory::from_words(words),
            sketches,
            ..Limits::default()
        }
    }
}

impl Flows {
    /// Of a host that has opened nothing, and of which nobody knows what came before.
    pub fn unknown() -> Flows {
        Flows {
            limits: Limits::ample(),
            ..Flows::default()
        }
    }
}

impl Memory {
    /// # Panics
    /// If `sets` is no power of two.
    pub fn new(sets: u32) -> Memory {
        assert!(sets.is_power_of_two(), "a mask picks the set");
        Memory::from_words(vec![0; (sets * SET_WORDS) as usize])
    }

    /// A copy of the kernel's table.
    pub fn from_words(words: Vec<u64>) -> Memory {
        Memory(words.into_iter().map(AtomicU64::new).collect())
    }

    pub fn words(&self) -> Vec<u64> {
        self.0.iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory::new(64)
    }
}

impl Clone for Memory {
    fn clone(&self) -> Self {
        Memory::from_words(self.words())
    }
}

impl Memory {
    /// The words of element `index`, of `len` words each.
    fn element(&self, index: u32, len: u32) -> Option<MemorySet<'_>> {
        let (index, len) = (index as usize, len as usize);
        self.0.get(index * len..(index + 1) * len).map(MemorySet)
    }
}

impl<'a> Table for &'a Memory {
    type Set = MemorySet<'a>;

    fn set(&self, hash: u32) -> Option<MemorySet<'a>> {
        let sets = self.0.len() / SET_WORDS as usize;
        self.element(hash & sets.checked_sub(1)? as u32, SET_WORDS)
    }
}

impl Set for MemorySet<'_> {
    fn word(self, index: u32) -> u64 {
        self.0[index as usize % self.0.len()].load(Ordering::Relaxed)
    }
    fn put(self, index: u32, word: u64) {
        self.0[index as usize % self.0.len()].store(word, Ordering::Relaxed);
    }
    fn swap(self, index: u32, old: u64, new: u64) -> bool {
        self.0[index as usize % self.0.len()]
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }
}

/// How a frame that comes in ends at this node, and every step on the way.
pub fn decide(node: &Node, frame: &[u8]) -> (Outcome, Vec<Step>) {
    run(node, frame, decide::ingress)
}

/// The same for a frame that goes out.
pub fn decide_egress(node: &Node, frame: &[u8]) -> (Outcome, Vec<Step>) {
    run(node, frame, decide::egress)
}

fn run<'a>(
    node: &Node<'a>,
    frame: &'a [u8],
    way: impl Fn(&SliceFrame<'a>, &Run<'a>, &mut Packet) -> Outcome,
) -> (Outcome, Vec<Step>) {
    let run = Run {
        node: *node,
        pages: SlicePages(node.image),
        flows: &node.flows.flows,
        fragments: &node.flows.fragments,
        steps: RefCell::default(),
    };
    let mut packet = Packet::EMPTY;
    let outcome = way(&SliceFrame(frame), &run, &mut packet);
    (outcome, run.steps.into_inner())
}

struct Run<'a> {
    node: Node<'a>,
    pages: SlicePages<'a>,
    flows: &'a Memory,
    fragments: &'a Memory,
    steps: RefCell<Vec<Step>>,
}

impl<'a> Run<'a> {
    fn in_image(&self, step: impl Fn(&Image<SlicePages<'a>>) -> Metered) -> Metered {
        Image::open(&self.pages).map_or(Metered::UNREADABLE, |image| step(&image))
    }

    fn table(&self) -> flow::Flows<'_, &'a Memory> {
        flow::Flows {
            table: self.flows,
            seed: self.node.flows.seed,
            timeouts: &self.node.config.flow_timeouts,
            now_s: self.node.flows.now_s,
        }
    }

    fn fragments(&self) -> Fragments<&'a Memory> {
        Fragments {
            table: self.fragments,
            seed: self.node.flows.seed,
            now_s: self.node.flows.now_s,
        }
    }
}

impl<'a> Kernel for Run<'a> {
    type Pages = SlicePages<'a>;

    fn config(&self) -> Option<&Config> {
        Some(self.node.config)
    }
    fn pages(&self) -> Option<&SlicePages<'a>> {
        Some(&self.pages)
    }
    fn generation(&self) -> u64 {
        self.node.flows.generation
    }
    fn came_in(&self, key: &Key, tcp_flags: u8) -> Option<State> {
        self.table().came_in(key, tcp_flags)
    }
    fn went_out(&self, key: &Key, sends: Sends) -> Left {
        self.table().went_out(key, sends, self.node.flows.ifindex)
    }
    fn first_fragment(&self, key: &Key, fragment: Fragment, first: Remembered) -> Result<(), Reason> {
        self.fragments().first(key, fragment, first)
    }
    fn later_fragment(&self, key: &Key, fragment: Fragment) -> Result<Remembered, Reason> {
        self.fragments().later(key, fragment)
    }
    fn banned(&self, version: u8, source: Address) -> bool {
        let lengths = ban::lengths(self.node.config, version);
        let Flows { bans, now_s, .. } = self.node.flows;
        let until_s = |key: &BanKey| bans.get(key).map_or(0, |ban| ban.until_s);
        ban::is_banned(lengths, (version, source.high, source.low), *now_s, until_s)
    }
    fn is_own(&self, address: AddressKey) -> bool {
        self.node.own.contains(&address)
    }
    fn gate(&self, bank: Bank, port: u16) -> gate::Cell {
        let cells = self.node.flows.gate.borrow();
        cells.get(&bank.cell(port)).copied().unwrap_or(gate::Cell(0))
    }
    fn open_gate(&self, bank: Bank, port: u16, cell: gate::Cell) {
        self.node.flows.gate.borrow_mut().insert(bank.cell(port), cell);
    }
    fn now_s(&self) -> u32 {
        self.node.flows.now_s
    }
    fn socket(&self, key: &Key) -> Socket {
        let peer = AddressKey {
            high: key.remote.high,
            low: key.remote.low,
        };
        let key = (key.protocol(), peer, key.remote_port(), key.local_port());
        let sockets = &self.node.flows.sockets;
        sockets.get(&key).copied().unwrap_or(Socket::Unknown)
    }
    fn tally(&self, tally: Tally) {
        self.node.flows.tallies.borrow_mut()[tally as usize] += 1;
    }
    fn step(&self, step: Step) {
        self.steps.borrow_mut().push(step);
    }
}

impl<'a> Limiter for Run<'a> {
    type Scope = MemorySet<'a>;
    type Line = MemorySet<'a>;

    fn config(&self) -> Option<&Config> {
        Some(self.node.config)
    }
    fn seed(&self) -> u64 {
        self.node.flows.seed
    }
    fn now_ns(&self, _exact: bool) -> u64 {
        self.node.flows.limits.now_ns
    }
    fn bound(&self, scope: u16) -> Option<u32> {
        Some(scope.into())
    }
    fn scope(&self, scope: u32) -> Option<MemorySet<'a>> {
        let limits = &self.node.flows.limits;
        limits.scopes.element(scope, scope::WORDS)
    }
    fn line(&self, sketch: Sketch, line: u32) -> Option<MemorySet<'a>> {
        let sketches = &self.node.flows.limits.sketches;
        sketches
            .get(&(sketch.scope, sketch.table))?
            .element(line, limit::WAYS)
    }
}

impl<'a> Steps for Run<'a> {
    type Page = SlicePage<'a>;

    fn before(&self, what: Weighed<SlicePage<'a>>, told: Told) -> Metered {
        if self.node.flows.limits.ample {
            return if what.packet.opens_tcp() {
                Metered::OPENS
            } else {
                Metered::PASS
            };
        }
        self.in_image(|image| meter::before(self, image, what.packet, what.by.number(), told))
    }
    fn spend(&self, what: Weighed<SlicePage<'a>>, said: Metered) -> Metered {
        if self.node.flows.limits.ample {
            return Metered::PASS;
        }
        let Weighed {
            packet, by, length, ..
        } = what;
        let number = by.number();
        let spend = Spend {
            packet,
            number,
            length,
            said,
        };
        self.in_image(|image| meter::spend(self, image, spend))
    }
    fn after(&self, what: Weighed<SlicePage<'a>>, told: Told, excess: Metered) -> Metered {
        self.in_image(|image| meter::after(self, image, what.packet, what.by.number(), told, excess))
    }
    fn handshake(&self, packet: &Packet) -> Told {
        let handshakes = &self.node.flows.limits.handshakes;
        let told = handshakes.get(&Key::ingress(packet));
        told.copied().unwrap_or(Told::UNKNOWN)
    }
    fn challenge(&self, _packet: &Packet) -> Told {
        self.node.flows.limits.challenge.unwrap_or(Told::FAILED)
    }
    fn ban(&self, packet: &Packet, number: u32) {
        let asked = Image::open(&self.pages).and_then(|image| BanAsked::of(&image, packet, number));
        self.node.flows.limits.bans.borrow_mut().extend(asked);
    }
}

/// An address as the layouts hold it: halves, IPv4 in the low 32 bits.
pub fn address_key(address: IpAddr) -> AddressKey {
    match address {
        IpAddr::V4(v4) => AddressKey {
            high: 0,
            low: u32::from(v4) as u64,
        },
        IpAddr::V6(v6) => {
            let bits = u128::from(v6);
            AddressKey {
                high: (bits >> 64) as u64,
                low: bits as u64,
            }
        }
    }
}

/// Builds Ethernet frames, well-formed unless told otherwise. Checksums of the IPv4 header, TCP, UDP and ICMP are filled in.
#[derive(Clone, Debug)]
pub struct FrameBuilder {
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    /// (ethertype of the tag, tag control information), outer first.
    pub vlans: Vec<(u16, u16)>,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub hop_limit: u8,
    /// Raw options of the IPv4 header, padded to words of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: (protocol number, body without its first byte, which is the next header).
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Flags and offset of the IPv4 header.
    pub fragment: u16,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

/// What a built frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        src_port: u16,
        dst_port: u16,
        flags: u8,
    },
    Udp {
        src_port: u16,
        dst_port: u16,
    },
    Sctp {
        src_port: u16,
        dst_port: u16,
    },
    /// ICMP or ICMPv6, by the family of the addresses.
    Icmp {
        icmp_type: u8,
        code: u8,
        id: u16,
    },
    /// The payload alone, under this protocol number.
    Raw(u8),
}

impl FrameBuilder {
    /// # Panics
    /// If the families of the addresses differ.
    pub fn new(src: IpAddr, dst: IpAddr, transport: Transport) -> FrameBuilder {
        assert_eq!(src.is_ipv4(), dst.is_ipv4(), "addresses of one family");
        FrameBuilder {
            dst_mac: [2, 0, 0, 0, 0, 1],
            src_mac: [2, 0, 0, 0, 0, 2],
            vlans: Vec::new(),
            src,
            dst,
            hop_limit: 64,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: 0,
            transport,
            payload: Vec::new(),
        }
    }

    pub fn tcp_syn(src: IpAddr, src_port: u16, dst: IpAddr, dst_port: u16) -> FrameBuilder {
        Self::new(
            src,
            dst,
            Transport::Tcp {
                src_port,
                dst_port,
                flags: tcp::SYN,
            },
        )
    }

    pub fn udp(src: IpAddr, src_port: u16, dst: IpAddr, dst_port: u16) -> FrameBuilder {
        Self::new(src, dst, Transport::Udp { src_port, dst_port })
    }

    pub fn payload(mut self, bytes: &[u8]) -> FrameBuilder {
        self.payload = bytes.to_vec();
        self
    }

    pub fn vlan(mut self, tag: u16, tci: u16) -> FrameBuilder {
        self.vlans.push((tag, tci));
        self
    }

    pub fn extension(mut self, number: u8, body: &[u8]) -> FrameBuilder {
        self.extensions.push((number, body.to_vec()));
        self
    }

    /// The frame's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = [self.dst_mac, self.src_mac].concat();
        for (tag, tci) in &self.vlans {
            frame.extend_from_slice(&tag.to_be_bytes());
            frame.extend_from_slice(&tci.to_be_bytes());
        }
        let segment = self.segment();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend_from_slice(&ethertype::IPV4.to_be_bytes());
                let mut options = self.options.clone();
                options.resize(options.len().next_multiple_of(4), 0);
                let header_len = 20 + options.len();
                let mut header = vec![0x40 | (header_len / 4) as u8, 0];
                header.extend_from_slice(&((header_len + segment.len()) as u16).to_be_bytes());
                header.extend_from_slice(&[0, 1]);
                header.extend_from_slice(&self.fragment.to_be_bytes());
                header.extend_from_slice(&[self.hop_limit, self.protocol(), 0, 0]);
                header.extend_from_slice(&src.octets());
                header.extend_from_slice(&dst.octets());
                header.extend_from_slice(&options);
                let sum = checksum(&header, 0);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend(header);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend_from_slice(&ethertype::IPV6.to_be_bytes());
                let mut chain = Vec::new();
                for (index, (_, body)) in self.extensions.iter().enumerate() {
                    chain.push(
                        self.extensions
                            .get(index + 1)
                            .map_or(self.protocol(), |(number, _)| *number),
                    );
                    chain.extend_from_slice(body);
                }
                frame.extend_from_slice(&[0x60, 0, 0, 0]);
                frame.extend_from_slice(&((chain.len() + segment.len()) as u16).to_be_bytes());
                frame.push(
                    self.extensions
                        .first()
                        .map_or(self.protocol(), |(number, _)| *number),
                );
                frame.push(self.hop_limit);
                frame.extend_from_slice(&src.octets());
                frame.extend_from_slice(&dst.octets());
                frame.extend(chain);
            }
            _ => unreachable!("`new` takes addresses of one family"),
        }
        frame.extend(segment);
        frame
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => protocol::TCP,
            Transport::Udp { .. } => protocol::UDP,
            Transport::Sctp { .. } => protocol::SCTP,
            Transport::Icmp { .. } if self.src.is_ipv4() => protocol::ICMP,
            Transport::Icmp { .. } => protocol::ICMPV6,
            Transport::Raw(number) => number,
        }
    }

    fn segment(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let sum_at = match self.transport {
            Transport::Tcp {
                src_port,
                dst_port,
                flags,
            } => {
                out.extend_from_slice(&src_port.to_be_bytes());
                out.extend_from_slice(&dst_port.to_be_bytes());
                out.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                Some(16)
            }
            Transport::Udp { src_port, dst_port } => {
                out.extend_from_slice(&src_port.to_be_bytes());
                out.extend_from_slice(&dst_port.to_be_bytes());
                out.extend_from_slice(&((8 + self.payload.len()) as u16).to_be_bytes());
                out.extend_from_slice(&[0, 0]);
                Some(6)
            }
            Transport::Sctp { src_port, dst_port } => {
                out.extend_from_slice(&src_port.to_be_bytes());
                out.extend_from_slice(&dst_port.to_be_bytes());
                out.extend_from_slice(&[0; 8]);
                None
            }
            Transport::Icmp { icmp_type, code, id } => {
                out.extend_from_slice(&[icmp_type, code, 0, 0]);
                out.extend_from_slice(&id.to_be_bytes());
                out.extend_from_slice(&[0, 1]);
                Some(2)
            }
            Transport::Raw(_) => None,
        };
        out.extend_from_slice(&self.payload);
        if let Some(at) = sum_at {
            let sum = checksum(&out, self.pseudo_header(out.len()));
            // RFC 768: a sum of zero is sent as ones.
            let sum = if sum == 0 && matches!(self.transport, Transport::Udp { .. }) {
                0xffff
            } else {
                sum
            };
            out[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        out
    }

    /// Sum of the pseudo header, 0 where there is none.
    fn pseudo_header(&self, len: usize) -> u32 {
        let addresses = match (self.src, self.dst) {
            (IpAddr::V4(_), IpAddr::V4(_)) if matches!(self.transport, Transport::Icmp { .. }) => return 0,
            (IpAddr::V4(src), IpAddr::V4(dst)) => [src.octets(), dst.octets()].concat(),
            (IpAddr::V6(src), IpAddr::V6(dst)) => [src.octets(), dst.octets()].concat(),
            _ => unreachable!("`new` takes addresses of one family"),
        };
        sum_words(&addresses) + self.protocol() as u32 + len as u32
    }
}

/// Internet checksum (RFC 1071).
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start + sum_words(bytes);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn sum_words(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum()
}
