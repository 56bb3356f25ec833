//! The flow table: what this host, or a container behind it, opened.
//!
//! A set-associative table that is written here, on the host and in the kernel alike: the hash of a [`Key`] names a set of
//! [`WAYS`] ways. Whatever changes in a flow stands in one word, its [`Tag`], so that a step is one store or one
//! compare-and-swap and no packet ever waits.
//!
//! * Only egress creates and refreshes ([`opened`], [`Flows::went_out`]); ingress ([`Flows::came_in`]) can but shorten what is left
//!   of a flow, by FIN or RST. Nothing an outsider sends lengthens anything.
//! * A flow is refreshed once a second at most, however many packets it has.
//! * A full set gives up what has expired, else a question without a conversation, else the flow that was idle for longest:
//!   however many flows are opened, established ones are displaced only where all of a set are, and then in the order of idleness.
//! * A segment that resets is only taken for it if the host falls silent: what the host sends revives the flow, so a
//!   forged RST cuts nothing.

use crate::packet::{Address, Packet, protocol, tcp};

/// Flows of a set.
pub const WAYS: u32 = 8;
/// Words (`u64`) of a set, the value of the map `FLOWS`: a tag for each way, then [`ENTRY_WORDS`] for each.
pub const SET_WORDS: u32 = 64;
/// Words of an entry: the key's, then second of opening (low half) and interface (high half), then one to spare.
pub const ENTRY_WORDS: u32 = 7;
/// Index of the word after the key: second of opening (low half), interface (high half).
pub const OPENED: u32 = 5;
/// Sets of the map `FLOWS` unless the agent is told otherwise: 262,144 flows in 16 MiB.
pub const SETS: u32 = 32_768;

const _: () = assert!(WAYS + WAYS * ENTRY_WORDS == SET_WORDS);

/// A table of sets, of flows or of fragments.
pub trait Table {
    type Set: Set;
    /// Set `hash` modulo their number. `None` if the table cannot be read.
    fn set(&self, hash: u32) -> Option<Self::Set>;
}

/// One set: words that several CPUs read and write at once, each whole.
pub trait Set: Copy {
    /// Word `index`, modulo [`SET_WORDS`].
    fn word(self, index: u32) -> u64;
    fn put(self, index: u32, word: u64);
    /// Stores `new` if the word is `old`, in one step and in order with all other memory; whether it was.
    fn swap(self, index: u32, old: u64, new: u64) -> bool;
}

/// Both ends of a flow, in one shape for what leaves and what comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Key {
    pub remote: Address,
    pub local: Address,
    /// Local port (bits 0..16; identifier of an ICMP echo), remote port (16..32), protocol (32..40), IP version (40..48).
    pub ports: u64,
}

impl Key {
    pub const WORDS: u32 = 5;

    #[inline(always)]
    pub const fn new(
        version: u8,
        protocol: u8,
        local: Address,
        local_port: u16,
        remote: Address,
        remote_port: u16,
    ) -> Key {
        Key {
            remote,
            local,
            ports: local_port as u64
                | (remote_port as u64) << 16
                | (protocol as u64) << 32
                | (version as u64) << 40,
        }
    }

    /// Of a packet that came in.
    #[inline(always)]
    pub const fn ingress(packet: &Packet) -> Key {
        let (local, remote) = ports(packet, packet.dst_port, packet.src_port);
        Key::new(
            packet.version,
            packet.protocol,
            packet.dst,
            local,
            packet.src,
            remote,
        )
    }

    /// Of a packet that goes out.
    #[inline(always)]
    pub const fn egress(packet: &Packet) -> Key {
        let (local, remote) = ports(packet, packet.src_port, packet.dst_port);
        Key::new(
            packet.version,
            packet.protocol,
            packet.src,
            local,
            packet.dst,
            remote,
        )
    }

    pub const fn local_port(&self) -> u16 {
        self.ports as u16
    }
    pub const fn remote_port(&self) -> u16 {
        (self.ports >> 16) as u16
    }
    pub const fn protocol(&self) -> u8 {
        (self.ports >> 32) as u8
    }
    /// 4 or 6.
    pub const fn version(&self) -> u8 {
        (self.ports >> 40) as u8
    }

    /// The words of an entry, in order.
    #[inline(always)]
    pub const fn words(&self) -> [u64; Key::WORDS as usize] {
        [
            self.remote.high,
            self.remote.low,
            self.local.high,
            self.local.low,
            self.ports,
        ]
    }

    /// The key that stands in these words.
    pub const fn from_words(words: [u64; Key::WORDS as usize]) -> Key {
        Key {
            remote: Address {
                high: words[0],
                low: words[1],
            },
            local: Address {
                high: words[2],
                low: words[3],
            },
            ports: words[4],
        }
    }

    /// Keyed hash: low half for the set, top bits for the tag.
    #[inline(always)]
    pub const fn hash(&self, seed: u64) -> u64 {
        let mut mixed = mix(seed ^ self.remote.high ^ self.local.high.rotate_left(29));
        mixed = mix(mixed ^ self.remote.low);
        mixed = mix(mixed ^ self.local.low.rotate_left(7));
        mix(mixed ^ self.ports ^ seed.rotate_left(32))
    }
}

/// Ports for protocols that have them, the identifier for echoes.
#[inline(always)]
const fn ports(packet: &Packet, local: u16, remote: u16) -> (u16, u16) {
    if packet.is_icmp() {
        (packet.echo_id, 0)
    } else {
        (local, remote)
    }
}

#[inline(always)]
pub(crate) const fn mix(word: u64) -> u64 {
    let word = word.wrapping_mul(0xd6e8_feb8_6659_fd93);
    word ^ word >> 32
}

/// What is known of a flow's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// Datagrams went out within one second.
    Asked = 1,
    /// Datagrams went out for longer.
    Conversation = 2,
    /// ICMP echo requests.
    Echo = 3,
    /// A protocol without ports, or SCTP.
    Other = 4,
    SynSent = 5,
    Established = 6,
    /// The host sent a FIN.
    FinOut = 7,
    /// The peer sent a FIN.
    FinIn = 8,
    /// Both did.
    Closing = 9,
    /// The peer sent a RST.
    Reset = 10,
}

impl State {
    /// Size of a table indexed by state.
    pub const COUNT: usize = 16;
    pub const ALL: [State; 10] = [
        State::Asked,
        State::Conversation,
        State::Echo,
        State::Other,
        State::SynSent,
        State::Established,
        State::FinOut,
        State::FinIn,
        State::Closing,
        State::Reset,
    ];

    pub const fn word(self) -> &'static str {
        match self {
            State::Asked => "asked",
            State::Conversation => "conversation",
            State::Echo => "echo",
            State::Other => "other",
            State::SynSent => "syn-sent",
            State::Established => "established",
            State::FinOut => "fin-out",
            State::FinIn => "fin-in",
            State::Closing => "closing",
            State::Reset => "reset",
        }
    }

    /// `None` for a way that holds no flow.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<State> {
        Some(match number {
            1 => State::Asked,
            2 => State::Conversation,
            3 => State::Echo,
            4 => State::Other,
            5 => State::SynSent,
            6 => State::Established,
            7 => State::FinOut,
            8 => State::FinIn,
            9 => State::Closing,
            10 => State::Reset,
            _ => return None,
        })
    }
}

/// Seconds that a flow lives on after the last packet that went out, by [`State`]: those of Linux conntrack
/// (`nf_conntrack_*_timeout`), where that has the state.
pub const TIMEOUTS: [u32; State::COUNT] = {
    let mut seconds = [0; State::COUNT];
    seconds[State::Asked as usize] = 30;
    seconds[State::Conversation as usize] = 180;
    seconds[State::Echo as usize] = 30;
    seconds[State::Other as usize] = 600;
    seconds[State::SynSent as usize] = 120;
    seconds[State::Established as usize] = 5 * 24 * 3600;
    seconds[State::FinOut as usize] = 120;
    seconds[State::FinIn as usize] = 120;
    seconds[State::Closing as usize] = 60;
    seconds[State::Reset as usize] = 10;
    // A way that is being written is nobody's.
    seconds[BUSY as usize] = u32::MAX;
    seconds
};

/// State number of a way whose entry is being written.
const BUSY: u8 = 15;

/// All that changes in a flow: hash (28 bits), state (4 bits), second of the last packet that went out (32 bits,
/// monotonic clock). 0 is a free way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub u64);

impl Tag {
    pub const FREE: Tag = Tag(0);

    #[inline(always)]
    pub const fn new(hash: u64, state: u8, now_s: u32) -> Tag {
        Tag(hash & !0xf_ffff_ffff | (state as u64 & 15) << 32 | now_s as u64)
    }
    /// Number of the [`State`].
    #[inline(always)]
    pub const fn state(self) -> u8 {
        (self.0 >> 32) as u8 & 15
    }
    #[inline(always)]
    pub const fn last_s(self) -> u32 {
        self.0 as u32
    }
    #[inline(always)]
    const fn is_of(self, hash: u64) -> bool {
        (self.0 ^ hash) >> 36 == 0
    }
    /// Whether it may still admit. A clock that is behind (another CPU's) counts as now.
    #[inline(always)]
    pub fn is_live(self, timeouts: &[u32; State::COUNT], now_s: u32) -> bool {
        let timeout = match timeouts.get(self.state() as usize) {
            Some(timeout) => *timeout,
            None => 0,
        };
        now_s.saturating_sub(self.last_s()) < timeout
    }
}

/// What a packet that goes out does to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Sends {
    Datagram = 1,
    Echo = 2,
    Other = 3,
    Syn = 4,
    Segment = 5,
    Fin = 6,
    Rst = 7,
    /// ICMP that opens nothing.
    Nothing = 8,
}

impl Sends {
    #[inline(always)]
    pub const fn from_number(number: u8) -> Sends {
        match number {
            1 => Sends::Datagram,
            2 => Sends::Echo,
            3 => Sends::Other,
            4 => Sends::Syn,
            5 => Sends::Segment,
            6 => Sends::Fin,
            7 => Sends::Rst,
            _ => Sends::Nothing,
        }
    }
}

#[inline(always)]
pub const fn sends(packet: &Packet) -> Sends {
    match packet.protocol {
        protocol::TCP if packet.opens_tcp() => Sends::Syn,
        protocol::TCP if packet.tcp_flags & tcp::RST != 0 => Sends::Rst,
        protocol::TCP if packet.tcp_flags & tcp::FIN != 0 => Sends::Fin,
        protocol::TCP => Sends::Segment,
        protocol::UDP => Sends::Datagram,
        protocol::ICMP if packet.version == 4 && packet.icmp_type == 8 => Sends::Echo,
        protocol::ICMPV6 if packet.version == 6 && packet.icmp_type == 128 => Sends::Echo,
        _ if packet.is_icmp() => Sends::Nothing,
        _ => Sends::Other,
    }
}

/// The state of a flow that this packet opens; `None` if it opens none.
#[inline(always)]
const fn opened(sends: Sends) -> Option<State> {
    match sends {
        Sends::Datagram => Some(State::Asked),
        Sends::Echo => Some(State::Echo),
        Sends::Other => Some(State::Other),
        Sends::Syn => Some(State::SynSent),
        Sends::Segment | Sends::Fin | Sends::Rst | Sends::Nothing => None,
    }
}

/// The state after a packet that went out, by number; 0 ends the flow. `grown`: a second or more after the opening.
#[inline(always)]
const fn after_egress(state: u8, sends: Sends, grown: bool) -> u8 {
    match sends {
        Sends::Syn => State::SynSent as u8,
        Sends::Rst => 0,
        Sends::Fin => match state {
            FIN_IN | CLOSING => CLOSING,
            _ => State::FinOut as u8,
        },
        Sends::Segment => match state {
            SYN_SENT | RESET => State::Established as u8,
            _ => state,
        },
        Sends::Datagram if grown => State::Conversation as u8,
        Sends::Datagram | Sends::Echo | Sends::Other | Sends::Nothing => state,
    }
}

/// The state after a segment that came in, by number: never one that lives longer.
#[inline(always)]
const fn after_ingress(state: u8, tcp_flags: u8) -> u8 {
    if tcp_flags & tcp::RST != 0 {
        return RESET;
    }
    if tcp_flags & tcp::FIN == 0 {
        return state;
    }
    match state {
        SYN_SENT | ESTABLISHED => FIN_IN,
        FIN_OUT => CLOSING,
        _ => state,
    }
}

/// Whether a flow is more than a question: the host went on after the first second, or the connection was accepted.
#[inline(always)]
const fn is_settled(state: u8) -> bool {
    state == State::Conversation as u8 || (state >= ESTABLISHED && state <= FIN_IN)
}

const SYN_SENT: u8 = State::SynSent as u8;
const ESTABLISHED: u8 = State::Established as u8;
const FIN_OUT: u8 = State::FinOut as u8;
const FIN_IN: u8 = State::FinIn as u8;
const CLOSING: u8 = State::Closing as u8;
const RESET: u8 = State::Reset as u8;

/// What a packet that went out did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Left {
    /// Nothing worth a store: the flow is known and fresh, or the packet opens none.
    Untouched = 0,
    Refreshed = 1,
    Created = 2,
    /// Created in the place of a flow that was still alive.
    Displaced = 3,
    /// Another CPU took the place at the same moment, or the table cannot be read.
    Lost = 4,
}

impl Left {
    #[inline(always)]
    pub const fn from_number(number: u8) -> Left {
        match number {
            0 => Left::Untouched,
            1 => Left::Refreshed,
            2 => Left::Created,
            3 => Left::Displaced,
            _ => Left::Lost,
        }
    }
}

/// The flow table as one packet sees it.
pub struct Flows<'a, T: Table> {
    pub table: T,
    /// [`crate::control::Control::seed`].
    pub seed: u64,
    pub timeouts: &'a [u32; State::COUNT],
    /// Monotonic clock, seconds.
    pub now_s: u32,
}

/// Where a flow stands.
#[derive(Clone, Copy)]
struct Found<S> {
    set: S,
    way: u32,
    tag: Tag,
}

impl<T: Table> Flows<'_, T> {
    /// Whether the flow is alive: what a packet that came in asks. A FIN or RST is noted. `tcp_flags` is 0 for others.
    #[inline(always)]
    pub fn came_in(&self, key: &Key, tcp_flags: u8) -> Option<State> {
        let found = self.find(key, key.hash(self.seed))?;
        if !found.tag.is_live(self.timeouts, self.now_s) {
            return None;
        }
        let before = found.tag.state();
        if tcp_flags & (tcp::FIN | tcp::RST) != 0 && key.protocol() == protocol::TCP {
            let after = after_ingress(before, tcp_flags);
            if after != before {
                // If egress was faster, what it wrote counts.
                found.set.swap(
                    found.way,
                    found.tag.0,
                    Tag::new(found.tag.0, after, found.tag.last_s()).0,
                );
            }
        }
        State::from_number(before)
    }

    /// Notes a packet that goes out.
    #[inline(always)]
    pub fn went_out(&self, key: &Key, sends: Sends, ifindex: u32) -> Left {
        if sends == Sends::Nothing {
            return Left::Untouched;
        }
        let hash = key.hash(self.seed);
        if let Some(found) = self.find(key, hash) {
            return self.refresh(found, sends);
        }
        match opened(sends) {
            Some(state) => self.create(key, hash, state, ifindex),
            None => Left::Untouched,
        }
    }

    #[inline(always)]
    fn refresh(&self, found: Found<T::Set>, sends: Sends) -> Left {
        let opened_s = found.set.word(entry(found.way) + OPENED) as u32;
        let grown = self.now_s.saturating_sub(opened_s) >= 1;
        let state = after_egress(found.tag.state(), sends, grown);
        let tag = if state == 0 {
            Tag::FREE
        } else {
            Tag::new(found.tag.0, state, self.now_s)
        };
        if tag == found.tag {
            return Left::Untouched;
        }
        // If ingress was faster, the next packet that goes out comes again.
        found.set.swap(found.way, found.tag.0, tag.0);
        Left::Refreshed
    }

    #[inline(always)]
    fn create(&self, key: &Key, hash: u64, state: State, ifindex: u32) -> Left {
        let Some(set) = self.table.set(hash as u32) else {
            return Left::Lost;
        };
        // The least rank goes: free, then expired, then what was only asked, then longest idle.
        let (mut victim, mut old, mut least) = (0, 0, u64::MAX);
        for way in 0..WAYS {
            let tag = Tag(set.word(way));
            let rank = if tag == Tag::FREE {
                0
            } else if tag.is_live(self.timeouts, self.now_s) {
                1 + tag.last_s() as u64 + ((is_settled(tag.state()) as u64) << 32)
            } else {
                1
            };
            let rank = if tag.state() == BUSY { u64::MAX } else { rank };
            if rank < least {
                (victim, old, least) = (way, tag.0, rank);
            }
        }
        if least == u64::MAX || !set.swap(victim, old, Tag::new(0, BUSY, self.now_s).0) {
            return Left::Lost;
        }
        let at = entry(victim);
        let words = key.words();
        set.put(at, words[0]);
        set.put(at + 1, words[1]);
        set.put(at + 2, words[2]);
        set.put(at + 3, words[3]);
        set.put(at + 4, words[4]);
        set.put(at + OPENED, self.now_s as u64 | (ifindex as u64) << 32);
        set.swap(
            victim,
            Tag::new(0, BUSY, self.now_s).0,
            Tag::new(hash, state as u8, self.now_s).0,
        );
        if least > 1 { Left::Displaced } else { Left::Created }
    }

    /// The flow of a key, alive or not.
    #[inline(always)]
    fn find(&self, key: &Key, hash: u64) -> Option<Found<T::Set>> {
        let set = self.table.set(hash as u32)?;
        let words = key.words();
        for way in 0..WAYS {
            let tag = Tag(set.word(way));
            if !tag.is_of(hash) || tag.state() == 0 || tag.state() == BUSY {
                continue;
            }
            let at = entry(way);
            let differs = (set.word(at) ^ words[0])
                | (set.word(at + 1) ^ words[1])
                | (set.word(at + 2) ^ words[2])
                | (set.word(at + 3) ^ words[3])
                | (set.word(at + 4) ^ words[4]);
            // Read again: another CPU may have given the way to another flow meanwhile.
            if differs == 0 && (set.word(way) ^ tag.0) >> 36 == 0 {
                return Some(Found { set, way, tag });
            }
        }
        None
    }
}

/// First word of a way's entry.
#[inline(always)]
pub const fn entry(way: u32) -> u32 {
    WAYS + way * ENTRY_WORDS
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::packet::Packet;
    use core::cell::Cell;

    /// A table of a few sets.
    pub(crate) struct Memory(pub Vec<Cell<u64>>);

    #[derive(Clone, Copy)]
    pub(crate) struct MemorySet<'a>(&'a [Cell<u64>]);

    impl Memory {
        pub(crate) fn new(sets: usize) -> Memory {
            Memory(vec![Cell::new(0); sets * SET_WORDS as usize])
        }
        pub(crate) fn words(&self) -> Vec<u64> {
            self.0.iter().map(Cell::get).collect()
        }
    }

    impl<'a> Table for &'a Memory {
        type Set = MemorySet<'a>;
        fn set(&self, hash: u32) -> Option<MemorySet<'a>> {
            let at = hash as usize % (self.0.len() / SET_WORDS as usize) * SET_WORDS as usize;
            Some(MemorySet(&self.0[at..at + SET_WORDS as usize]))
        }
    }

    impl Set for MemorySet<'_> {
        fn word(self, index: u32) -> u64 {
            self.0[index as usize].get()
        }
        fn put(self, index: u32, word: u64) {
            self.0[index as usize].set(word);
        }
        fn swap(self, index: u32, old: u64, new: u64) -> bool {
            let cell = &self.0[index as usize];
            let same = cell.get() == old;
            if same {
                cell.set(new);
            }
            same
        }
    }

    fn flows(memory: &Memory, now_s: u32) -> Flows<'_, &Memory> {
        Flows {
            table: memory,
            seed: 7,
            timeouts: &TIMEOUTS,
            now_s,
        }
    }

    fn segment(tcp_flags: u8) -> Packet {
        Packet {
            version: 4,
            protocol: protocol::TCP,
            tcp_flags,
            src: Address {
                high: 0,
                low: 0xc000_0201,
            },
            dst: Address {
                high: 0,
                low: 0xc633_6401,
            },
            src_port: 40_000,
            dst_port: 443,
            ..Packet::EMPTY
        }
    }

    fn datagram(src_port: u16) -> Packet {
        Packet {
            protocol: protocol::UDP,
            src_port,
            ..segment(0)
        }
    }

    fn out(memory: &Memory, now_s: u32, packet: &Packet) -> Left {
        flows(memory, now_s).went_out(&Key::egress(packet), sends(packet), 2)
    }

    fn back(memory: &Memory, now_s: u32, sent: &Packet, tcp_flags: u8) -> Option<State> {
        flows(memory, now_s).came_in(&Key::egress(sent), tcp_flags)
    }

    #[test]
    fn the_key_of_a_reply_is_that_of_what_it_answers() {
        let sent = segment(tcp::SYN);
        let reply = Packet {
            src: sent.dst,
            dst: sent.src,
            src_port: sent.dst_port,
            dst_port: sent.src_port,
            ..sent
        };
        assert_eq!(Key::egress(&sent), Key::ingress(&reply));
        assert_eq!(Key::from_words(Key::egress(&sent).words()), Key::egress(&sent));
        assert_ne!(Key::egress(&sent), Key::ingress(&sent));
    }

    #[test]
    fn only_a_syn_opens_a_tcp_flow_and_only_its_peer_is_admitted() {
        let memory = Memory::new(4);
        assert_eq!(out(&memory, 100, &segment(tcp::ACK)), Left::Untouched);
        assert_eq!(out(&memory, 100, &segment(tcp::SYN | tcp::ACK)), Left::Untouched);
        assert_eq!(back(&memory, 100, &segment(0), tcp::ACK), None);
        assert_eq!(out(&memory, 100, &segment(tcp::SYN)), Left::Created);
        assert_eq!(back(&memory, 100, &segment(0), tcp::ACK), Some(State::SynSent));
        for other in [
            Packet {
                dst_port: 444,
                ..segment(0)
            },
            Packet {
                src_port: 40_001,
                ..segment(0)
            },
            Packet {
                protocol: protocol::UDP,
                ..segment(0)
            },
            Packet {
                dst: Address {
                    high: 0,
                    low: 0xc633_6402,
                },
                ..segment(0)
            },
            Packet {
                src: Address {
                    high: 0,
                    low: 0xc000_0202,
                },
                ..segment(0)
            },
        ] {
            assert_eq!(back(&memory, 100, &other, 0), None, "{other:?}");
        }
    }

    #[test]
    fn a_flow_expires_at_the_second_of_its_timeout() {
        let memory = Memory::new(1);
        out(&memory, 100, &segment(tcp::SYN));
        assert!(back(&memory, 219, &segment(0), tcp::ACK).is_some());
        assert_eq!(back(&memory, 220, &segment(0), tcp::ACK), None);
        out(&memory, 300, &datagram(9));
        assert!(back(&memory, 329, &datagram(9), 0).is_some());
        assert_eq!(back(&memory, 330, &datagram(9), 0), None);
        // A clock that is behind is no reason to forget.
        assert!(back(&memory, 299, &datagram(9), 0).is_some());
    }

    #[test]
    fn what_comes_in_changes_nothing_but_for_fin_and_rst() {
        let memory = Memory::new(2);
        out(&memory, 100, &segment(tcp::SYN));
        out(&memory, 101, &segment(tcp::ACK));
        out(&memory, 101, &datagram(5));
        let before = memory.words();
        for flags in [0, tcp::ACK, tcp::SYN, tcp::SYN | tcp::ACK, tcp::ACK | tcp::PSH] {
            assert_eq!(back(&memory, 150, &segment(0), flags), Some(State::Established));
            assert_eq!(back(&memory, 110, &datagram(5), flags), Some(State::Asked));
            // UDP has no flags, whatever is said of them.
            assert!(back(&memory, 110, &datagram(5), tcp::RST).is_some());
            assert_eq!(back(&memory, 110, &datagram(6), flags), None);
        }
        assert_eq!(memory.words(), before);
        back(&memory, 150, &segment(0), tcp::FIN | tcp::ACK);
        assert_ne!(memory.words(), before);
    }

    #[test]
    fn an_echo_reply_refreshes_no_flow_of_echo_requests() {
        let memory = Memory::new(1);
        let echo = |icmp_type| Packet {
            protocol: protocol::ICMP,
            icmp_type,
            echo_id: 7,
            ..segment(0)
        };
        assert_eq!(out(&memory, 100, &echo(8)), Left::Created);
        assert_eq!(out(&memory, 110, &echo(0)), Left::Untouched);
        assert_eq!(back(&memory, 129, &echo(0), 0), Some(State::Echo));
        assert_eq!(back(&memory, 130, &echo(0), 0), None);
    }

    #[test]
    fn nothing_that_comes_in_makes_a_flow_live_longer() {
        for state in State::ALL {
            for flags in 0..64 {
                let after = after_ingress(state as u8, flags);
                assert!(
                    TIMEOUTS[after as usize] <= TIMEOUTS[state as usize],
                    "{state:?} with {flags:#x} becomes {after}"
                );
            }
        }
    }

    #[test]
    fn a_connection_goes_through_its_states() {
        let memory = Memory::new(1);
        let state = |now_s| back(&memory, now_s, &segment(0), tcp::ACK);
        out(&memory, 1, &segment(tcp::SYN));
        out(&memory, 1, &segment(tcp::ACK));
        assert_eq!(state(1), Some(State::Established));
        assert_eq!(state(1 + 5 * 24 * 3600 - 1), Some(State::Established));
        // Many packets within a second: one store.
        assert_eq!(out(&memory, 1, &segment(tcp::ACK)), Left::Untouched);
        assert_eq!(out(&memory, 2, &segment(tcp::ACK)), Left::Refreshed);
        out(&memory, 3, &segment(tcp::FIN | tcp::ACK));
        assert_eq!(state(3), Some(State::FinOut));
        back(&memory, 3, &segment(0), tcp::FIN | tcp::ACK);
        assert_eq!(state(3), Some(State::Closing));
        out(&memory, 4, &segment(tcp::ACK));
        assert_eq!(state(63), Some(State::Closing));
        assert_eq!(state(64), None);
        // The port is used again.
        out(&memory, 70, &segment(tcp::SYN));
        assert_eq!(state(70), Some(State::SynSent));
        assert_eq!(out(&memory, 71, &segment(tcp::RST | tcp::ACK)), Left::Refreshed);
        assert_eq!(state(71), None);
        assert!(memory.words()[..WAYS as usize].iter().all(|tag| *tag == 0));
    }

    #[test]
    fn a_forged_reset_cuts_nobody_who_goes_on_sending() {
        let memory = Memory::new(1);
        out(&memory, 1, &segment(tcp::SYN));
        out(&memory, 1, &segment(tcp::ACK));
        back(&memory, 5, &segment(0), tcp::RST);
        assert_eq!(back(&memory, 10, &segment(0), tcp::ACK), Some(State::Reset));
        assert_eq!(back(&memory, 11, &segment(0), tcp::ACK), None);
        out(&memory, 20, &segment(tcp::ACK | tcp::PSH));
        assert_eq!(
            back(&memory, 500, &segment(0), tcp::ACK),
            Some(State::Established)
        );
    }

    #[test]
    fn a_full_set_gives_up_the_expired_then_the_longest_idle() {
        let memory = Memory::new(1);
        for port in 0..WAYS as u16 {
            assert_eq!(
                out(&memory, 100 + u32::from(port), &datagram(port)),
                Left::Created
            );
        }
        // Port 0 speaks again, so port 1 is the idlest.
        out(&memory, 110, &datagram(0));
        assert_eq!(out(&memory, 111, &datagram(100)), Left::Displaced);
        assert!(back(&memory, 111, &datagram(0), 0).is_some());
        assert_eq!(back(&memory, 111, &datagram(1), 0), None);
        assert!(back(&memory, 111, &datagram(2), 0).is_some());
        // At 132 port 2 has expired: nobody alive is displaced.
        assert_eq!(out(&memory, 132, &datagram(101)), Left::Created);
        assert!(back(&memory, 132, &datagram(3), 0).is_some());
    }

    #[test]
    fn no_number_of_questions_displaces_an_established_flow() {
        let memory = Memory::new(1);
        out(&memory, 100, &segment(tcp::SYN));
        out(&memory, 100, &segment(tcp::ACK));
        for port in 0..1000 {
            out(&memory, 200 + u32::from(port) / 100, &datagram(port));
        }
        assert!(back(&memory, 210, &segment(0), tcp::ACK).is_some());
        // The last of them are there, the others are not.
        assert!(back(&memory, 210, &datagram(999), 0).is_some());
        assert_eq!(back(&memory, 210, &datagram(900), 0), None);
    }

    #[test]
    fn groups_of_flows_spread_over_sets() {
        let memory = Memory::new(1024);
        let mut displaced = 0;
        for n in 0..4096_u16 {
            displaced += u32::from(out(&memory, 1, &datagram(n)) == Left::Displaced);
        }
        // Half full: sets that got more than eight of four on average, 2 % of them.
        assert!(displaced < 60, "{displaced}");
    }
}
