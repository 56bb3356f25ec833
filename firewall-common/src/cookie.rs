//! SYN cookies: what a SYN offers, and the SYN-ACK that answers it.
//!
//! The cookie itself is the kernel's (`bpf_tcp_gen_syncookie`), and so is what becomes of the ACK that brings it back
//! (`cookie_v4_check` of net/ipv4/syncookies.c): this builds what the kernel would have sent. A cookie carries the
//! sender's MSS, rounded. Window scale and SACK travel in the timestamp, and only where the kernel reads it as it was
//! sent: `net.ipv4.tcp_timestamps` = 2, for with 1 it expects an offset of its own in it. The answer is never longer
//! than the SYN, so no frame has to grow and no reflection gains.
//!
//! Who is answered is [`crate::decide`]'s business.

use crate::flow::mix;
use crate::packet::{Frame, Packet, Window as _, tcp};

/// TCP options by their kinds (RFC 9293, RFC 7323, RFC 2018).
mod option {
    pub const END: u8 = 0;
    pub const NOP: u8 = 1;
    pub const MSS: u8 = 2;
    pub const SCALE: u8 = 3;
    pub const SACK_PERMITTED: u8 = 4;
    pub const TIMESTAMPS: u8 = 8;
}

const MASK: usize = 63;
const MAX_OPTIONS: u32 = 40;

/// Words of the map `PUBLISHED`, where each TCP port has a bit.
pub const PUBLISHED_WORDS: u32 = 65536 / 64;

/// The word and the bit of a port in it.
#[inline(always)]
pub const fn published_bit(port: u16) -> (u32, u64) {
    (port as u32 / 64, 1 << (port % 64))
}

/// How an answer leaves by the interface that the SYN came in by: values of the map `ANSWERS`, by
/// [`crate::counter::interface_cell`].
pub mod back {
    /// It cannot, or nobody has said so yet.
    pub const NONE: u32 = 0;
    pub const TX: u32 = 1;
    /// Redirected to the same interface: a veth without a program on its other end takes no other way.
    pub const REDIRECT: u32 = 2;
}

/// What a SYN offers. Zeros: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Offer {
    pub tsval: u32,
    /// 0: none was named.
    pub mss: u16,
    /// [`HAS_SCALE`] and the shift.
    pub scale: u8,
    /// [`HAS_SACK`] and [`HAS_TIMESTAMPS`].
    pub has: u8,
}

pub const HAS_SCALE: u8 = 0x80;
pub const HAS_SACK: u8 = 1;
pub const HAS_TIMESTAMPS: u8 = 2;
/// RFC 7323 section 2.3: a larger shift counts as this.
const MAX_SCALE: u8 = 14;

/// What a cookie needs of a TCP header, besides what [`Packet`] has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub seq: u32,
    pub ack: u32,
    /// Bytes of options.
    pub options: u32,
}

/// Slots of the map `ASKED` (`u64` each): the [`asked`] of challenges that were given lately.
pub const ASKED: u32 = 1 << 19;

/// Keyed mark of a challenge: who was asked, and the sequence number of the SYN. The answer has the next one.
///
/// A cookie says nothing of the SYN: for two minutes it fits any segment of the same ports whose numbers are as far apart.
/// The socket of a peer that waits out the end of an earlier connection sends just such a segment when a SYN that was forged in
/// its name is answered. So a cookie proves an address only together with the mark of its own challenge. Marks that were
/// written over are forgotten; their answers count as handshakes that somebody else remembers.
#[inline(always)]
pub const fn asked(packet: &Packet, seq: u32, seed: u64) -> u64 {
    let mut mixed = mix(seed ^ packet.src.high ^ packet.dst.high.rotate_left(29));
    mixed = mix(mixed ^ packet.src.low);
    mixed = mix(mixed ^ packet.dst.low.rotate_left(7));
    let ports = (packet.src_port as u64) << 48 | (packet.dst_port as u64) << 32;
    // Never that of an empty slot.
    mix(mixed ^ ports ^ seq as u64 ^ seed.rotate_left(32)) | 1 << 63
}

/// The TCP header of a packet that was read before.
#[inline(always)]
pub fn segment<F: Frame>(frame: &F, packet: &Packet) -> Option<Segment> {
    let header = frame.window::<20>(packet.transport_at as u32)?;
    Some(Segment {
        seq: header.u32::<4>(),
        ack: header.u32::<8>(),
        options: ((header.u8::<12>() >> 4) as u32 * 4).saturating_sub(20),
    })
}

/// The options of a SYN as they are read. In the kernel this stands in a map, of whose contents the verifier knows nothing,
/// so that it walks a step of the loop once for all that came before.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Options {
    /// At most 40, and room for reads behind them.
    bytes: [u8; MASK + 1],
    offer: Offer,
    at: u32,
    end: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            bytes: [0; MASK + 1],
            offer: Offer::default(),
            at: 0,
            end: 0,
        }
    }
}

impl Options {
    /// What the SYN offers. One whose options are not as they should be offers nothing at all.
    #[inline(always)]
    pub fn read<F: Frame>(&mut self, frame: &F, packet: &Packet, segment: Segment) -> Offer {
        self.offer = Offer::default();
        self.at = 0;
        self.end = segment.options;
        let start = packet.transport_at as u32 + 20;
        macro_rules! copy {
            ($($word:literal)*) => {
                $(
                    if $word * 4 < segment.options {
                        let Some(window) = frame.window::<4>(start + $word * 4) else {
                            return Offer::default();
                        };
                        self.bytes[$word * 4..$word * 4 + 4].copy_from_slice(&window.u32::<0>().to_be_bytes());
                    }
                )*
            };
        }
        copy!(0 1 2 3 4 5 6 7 8 9);
        // An option takes a byte at least.
        for _ in 0..MAX_OPTIONS {
            frame.settle(self);
            if self.at >= self.end {
                break;
            }
            if !self.step() {
                return Offer::default();
            }
        }
        self.offer
    }

    /// Reads one option. False: it is malformed.
    #[inline(always)]
    fn step(&mut self) -> bool {
        let kind = self.byte(0);
        if kind == option::NOP {
            self.at += 1;
            return true;
        }
        if kind == option::END {
            self.at = self.end;
            return true;
        }
        let len = if self.at + 1 < self.end { self.byte(1) } else { 0 };
        if len < 2 || self.at + len as u32 > self.end {
            return false;
        }
        match (kind, len) {
            (option::MSS, 4) => self.offer.mss = u16::from_be_bytes([self.byte(2), self.byte(3)]),
            (option::SCALE, 3) => {
                let shift = self.byte(2);
                self.offer.scale = HAS_SCALE | if shift > MAX_SCALE { MAX_SCALE } else { shift };
            }
            (option::SACK_PERMITTED, 2) => self.offer.has |= HAS_SACK,
            (option::TIMESTAMPS, 10) => {
                self.offer.has |= HAS_TIMESTAMPS;
                let tsval = [self.byte(2), self.byte(3), self.byte(4), self.byte(5)];
                self.offer.tsval = u32::from_be_bytes(tsval);
            }
            _ => {}
        }
        self.at += len as u32;
        true
    }

    #[inline(always)]
    fn byte(&self, ahead: u32) -> u8 {
        self.bytes[(self.at + ahead) as usize & MASK]
    }
}

/// An IP header in network byte order with what a cookie is made of; IPv4 has five words.
#[inline(always)]
pub fn ip_header(packet: &Packet, words: &mut [u32; 10]) -> u32 {
    if packet.version == 4 {
        words[0] = 0x4500_0000u32.to_be();
        words[3] = (packet.src.low as u32).to_be();
        words[4] = (packet.dst.low as u32).to_be();
        return 20;
    }
    words[0] = 0x6000_0000u32.to_be();
    for (at, half) in [packet.src.high, packet.src.low, packet.dst.high, packet.dst.low]
        .into_iter()
        .enumerate()
    {
        words[2 + at * 2] = ((half >> 32) as u32).to_be();
        words[3 + at * 2] = (half as u32).to_be();
    }
    40
}

/// A TCP header of 24 bytes with what a cookie is made of: an MSS option, or four bytes of nothing.
#[inline(always)]
pub fn tcp_header(packet: &Packet, segment: Segment, mss: u16, words: &mut [u32; 6]) {
    words[0] = ports(packet.src_port, packet.dst_port).to_be();
    words[1] = segment.seq.to_be();
    words[2] = segment.ack.to_be();
    words[3] = (0x6000_0000 | ((packet.tcp_flags & FLAGS) as u32) << 16).to_be();
    words[4] = 0;
    words[5] = mss_option(mss).to_be();
}

const FLAGS: u8 = tcp::FIN | tcp::SYN | tcp::RST | tcp::ACK;

#[inline(always)]
const fn ports(first: u16, second: u16) -> u32 {
    (first as u32) << 16 | second as u32
}

#[inline(always)]
const fn mss_option(mss: u16) -> u32 {
    match mss {
        0 => 0x0101_0101,
        mss => (option::MSS as u32) << 24 | 4 << 16 | mss as u32,
    }
}

/// What an answer is made of, besides the packet.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub offer: Offer,
    /// Sequence number of the SYN.
    pub seq: u32,
    pub cookie: u32,
    /// Of the device: what this host may be sent.
    pub mtu: u32,
    /// The clock of the kernel's timestamps, milliseconds (`tcp_clock_ms`).
    pub now_ms: u64,
    /// Whether the kernel reads options out of timestamps.
    pub carries: bool,
    /// The window scale that the kernel will choose for the connection.
    pub scale: u8,
}

/// The answer from the IP header on, in network byte order: at most 80 bytes are used.
pub type AnswerWords = [u32; 32];
const WORDS: usize = size_of::<AnswerWords>() / 4 - 1;

/// Until the kernel's own word on it, which comes with its first segment: more than anybody sends before that.
const WINDOW: u32 = 32_768;
const HOPS: u32 = 64;

/// Writes a SYN-ACK, IP header first; answers its length in bytes, 40..=80.
#[inline(always)]
pub fn write(packet: &Packet, answer: &Answer, words: &mut AnswerWords) -> u32 {
    let Answer { offer, .. } = *answer;
    let carries = answer.carries && offer.has & HAS_TIMESTAMPS != 0;
    let scaled = carries && offer.scale & HAS_SCALE != 0;
    let ip_words = if packet.version == 4 { 5 } else { 10 };
    let tcp_words = 5 + (offer.mss != 0) as u32 + carries as u32 * 3 + scaled as u32;
    let tcp_len = tcp_words * 4;
    let (src, dst) = (packet.dst, packet.src);
    let mut out = Out { words, at: 0, sum: 0 };

    if packet.version == 4 {
        out.put(0x4500_0000 | (20 + tcp_len));
        out.put(0x4000);
        let (src, dst) = (src.low as u32, dst.low as u32);
        let sum = halves(0x4500_0000 | (20 + tcp_len))
            + 0x4000
            + (HOPS << 8 | 6) as u64
            + halves(src)
            + halves(dst);
        out.put(HOPS << 24 | 6 << 16 | fold(sum));
        out.sum = 0;
        out.put(src);
        out.put(dst);
    } else {
        out.put(0x6000_0000);
        out.put(tcp_len << 16 | 6 << 8 | HOPS);
        out.sum = 0;
        out.put((src.high >> 32) as u32);
        out.put(src.high as u32);
        out.put((src.low >> 32) as u32);
        out.put(src.low as u32);
        out.put((dst.high >> 32) as u32);
        out.put(dst.high as u32);
        out.put((dst.low >> 32) as u32);
        out.put(dst.low as u32);
    }
    // The rest of the pseudo header; the addresses are in the sum.
    out.sum += (6 + tcp_len) as u64;

    out.put(ports(packet.dst_port, packet.src_port));
    out.put(answer.cookie);
    out.put(answer.seq.wrapping_add(1));
    out.put(tcp_words << 28 | ((tcp::SYN | tcp::ACK) as u32) << 16 | WINDOW);
    let checksum_at = out.at;
    out.put(0);
    if offer.mss != 0 {
        out.put(mss_option(mss(packet.version, offer.mss, answer.mtu)));
    }
    if carries {
        let before = if offer.has & HAS_SACK != 0 { 0x0402 } else { 0x0101 };
        out.put(before << 16 | (option::TIMESTAMPS as u32) << 8 | 10);
        out.put(timestamp(offer, answer.now_ms));
        out.put(offer.tsval);
    }
    if scaled {
        out.put((option::NOP as u32) << 24 | (option::SCALE as u32) << 16 | 3 << 8 | answer.scale as u32);
    }
    let checksum = fold(out.sum);
    out.words[checksum_at & WORDS] = (checksum << 16).to_be();
    (ip_words + tcp_words) * 4
}

/// Words one after the other, and the sum of their halves.
struct Out<'a> {
    words: &'a mut AnswerWords,
    at: usize,
    sum: u64,
}

impl Out<'_> {
    #[inline(always)]
    fn put(&mut self, word: u32) {
        self.words[self.at & WORDS] = word.to_be();
        self.sum += halves(word);
        self.at += 1;
    }
}

#[inline(always)]
const fn halves(word: u32) -> u64 {
    (word >> 16) as u64 + (word & 0xffff) as u64
}

/// The Internet checksum of what was summed (RFC 1071).
#[inline(always)]
const fn fold(sum: u64) -> u32 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u32) & 0xffff
}

/// What this host says it takes: what its device does, but not more than the peer, whose way here may be as narrow as
/// it knows its own to be.
#[inline(always)]
fn mss(version: u8, offered: u16, mtu: u32) -> u16 {
    // RFC 9293 section 3.7.1, RFC 8200 section 5.
    let (headers, least) = if version == 4 { (40, 536) } else { (60, 1220) };
    let own = mtu.saturating_sub(headers);
    let both = if (offered as u32) < own {
        offered as u32
    } else {
        own
    };
    if both < least { least as u16 } else { both as u16 }
}

/// `cookie_init_timestamp` of net/ipv4/syncookies.c: the clock with its low six bits put to use, and not ahead of it.
#[inline(always)]
fn timestamp(offer: Offer, now_ms: u64) -> u32 {
    const BITS: u64 = 6;
    const NO_SCALE: u64 = 0xf;
    const SACK: u64 = 1 << 4;
    let scale = if offer.scale & HAS_SCALE != 0 {
        (offer.scale & 0xf) as u64
    } else {
        NO_SCALE
    };
    let sack = if offer.has & HAS_SACK != 0 { SACK } else { 0 };
    let stamp = (now_ms >> BITS) << BITS | scale | sack;
    let stamp = if stamp > now_ms {
        stamp.wrapping_sub(1 << BITS)
    } else {
        stamp
    };
    stamp as u32
}

#[cfg(test)]
#[path = "cookie/tests.rs"]
mod tests;
