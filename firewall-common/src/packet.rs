//! From a frame to a [`Packet`]: Ethernet, VLAN, IPv4, IPv6 with extension headers, transport.
//!
//! Reads as far as the host would and no further; the first thing wrong ends it with its [`Reason`]. Every length is
//! checked against the IP header's claim, not the frame's end, so Ethernet padding never counts as a header.
//! What the packet may do is [`crate::decide`]'s business.

use crate::verdict::Reason;

/// What stands before the first byte that [`Frame::window`] sees at offset 0, and what begins there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header, with all its tags.
    Ethernet,
    /// An Ethernet header whose outer tag was taken out of it: its tag control information. TC finds it so.
    Untagged(u16),
    /// What this ethertype says: the device has no Ethernet headers.
    Bare(u16),
}

/// A frame's bytes. Reads past the end are `None`.
#[expect(
    clippy::len_without_is_empty,
    reason = "an empty frame is as short as any other"
)]
pub trait Frame {
    type Window<const N: usize>: Window;
    /// Frames of this kind have no Ethernet header.
    const BARE: bool = false;

    /// How the frame begins.
    #[inline(always)]
    fn link(&self) -> Link {
        Link::Ethernet
    }

    /// Bytes of the whole frame from offset 0 on.
    fn len(&self) -> u32;

    /// Bytes of the frame as it was on the wire, with what was taken out of it.
    #[inline(always)]
    fn wire_len(&self) -> u32 {
        self.len()
    }

    /// `N` bytes at `at`, or `None` if the frame ends before (or they lie past [`MAX_OFFSET`]).
    fn window<const N: usize>(&self, at: u32) -> Option<Self::Window<N>>;

    /// Leaves the value as it is. In the kernel it takes it through memory, where the BPF verifier forgets what it
    /// knew of bytes and half words, so that ways which differ only in that are walked once.
    #[inline(always)]
    fn settle<T>(&self, _value: &mut T) {}
}

/// A checked stretch of a frame. Offsets are constants below the window's size; multi-byte reads are big-endian.
pub trait Window {
    fn u8<const AT: usize>(&self) -> u8;
    fn u16<const AT: usize>(&self) -> u16;
    fn u32<const AT: usize>(&self) -> u32;
    fn u64<const AT: usize>(&self) -> u64;
}

/// Headers are looked for below this offset: more than eight extension headers of common size need.
pub const MAX_OFFSET: u32 = 4095;
/// No VLAN tag.
pub const NO_VLAN: u16 = 0xffff;

/// EtherTypes (IEEE 802 numbers) that are told apart.
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const VLAN: u16 = 0x8100;
    pub const IPV6: u16 = 0x86dd;
    pub const LACP: u16 = 0x8809;
    pub const EAPOL: u16 = 0x888e;
    pub const QINQ: u16 = 0x88a8;
    pub const LLDP: u16 = 0x88cc;
    /// Below this the field is an 802.3 length.
    pub const FIRST: u16 = 0x0600;
}

/// IP protocol numbers that are told apart.
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION: u8 = 60;
    pub const SCTP: u8 = 132;
}

/// TCP flag bits (RFC 9293).
pub mod tcp {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
    pub const URG: u8 = 32;
}

/// Link protocols that are told apart; [`crate::control::Config::link_control`] is a set of them.
pub const LINK_LACP: u32 = 1;
pub const LINK_LLDP: u32 = 2;
pub const LINK_EAPOL: u32 = 4;
pub const LINK_STP: u32 = 8;

/// What a frame was read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Arp,
    /// To a link-local group address (01:80:c2:00:00:0x): a `LINK_*` bit.
    LinkControl(u32),
    /// IPv4 or IPv6: addresses and protocol are set, and ports unless it is a fragment after the first.
    Ip,
    /// 802.3 with LLC or SNAP.
    Llc,
    /// Any other ethertype.
    Other,
}

/// The result of [`parse`] in one byte: the number of a reason, or that of a kind above all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed(u8);

impl Parsed {
    const KINDS: u8 = Reason::COUNT as u8;
    const LINK: u8 = 0x80;

    #[inline(always)]
    pub const fn new(result: Result<Kind, Reason>) -> Parsed {
        Parsed(match result {
            Err(reason) => reason.number(),
            Ok(Kind::Ip) => Self::KINDS,
            Ok(Kind::Arp) => Self::KINDS + 1,
            Ok(Kind::Llc) => Self::KINDS + 2,
            Ok(Kind::Other) => Self::KINDS + 3,
            Ok(Kind::LinkControl(link)) => Self::LINK | link as u8,
        })
    }

    #[inline(always)]
    pub const fn result(self) -> Result<Kind, Reason> {
        Ok(match self.0 {
            Self::KINDS => Kind::Ip,
            0x41 => Kind::Arp,
            0x42 => Kind::Llc,
            Self::LINK.. => Kind::LinkControl((self.0 & !Self::LINK) as u32),
            number => match Reason::from_number(number) {
                Some(reason) => return Err(reason),
                None => Kind::Other,
            },
        })
    }
}

/// What was read of a frame so far; fields not reached keep their start values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Packet {
    /// Halves in host byte order; IPv4 stands in the low 32 bits of the low half.
    pub src: Address,
    pub dst: Address,
    pub fragment: Fragment,
    pub src_port: u16,
    pub dst_port: u16,
    /// Identifier of an ICMP echo.
    pub echo_id: u16,
    /// Where the transport header begins, bytes from the start of the frame.
    pub transport_at: u16,
    pub ethertype: u16,
    /// Tag control information, outer first, [`NO_VLAN`] for none.
    pub vlan: [u16; 2],
    /// 4, 6, or 0 before an IP header.
    pub version: u8,
    /// After extension headers.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    pub tcp_flags: u8,
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// Where the IP header begins, bytes from the start of the frame; 0 where there is no Ethernet header.
    pub network_at: u8,
    pub pad: [u8; 3],
}

const _: () = assert!(size_of::<Packet>() == 64);

/// Which part of its datagram a fragment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fragment {
    /// 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// Bytes of this part.
    pub len: u16,
    /// As in the IPv6 header: offset in bytes (a multiple of 8), bit 0: more follow. 0: a whole datagram.
    pub place: u16,
}

impl Fragment {
    pub const NONE: Fragment = Fragment {
        id: 0,
        len: 0,
        place: 0,
    };

    /// Part of a datagram that others are part of too.
    #[inline(always)]
    pub const fn is_any(self) -> bool {
        self.place != 0
    }
    /// Not the first, so without a transport header.
    #[inline(always)]
    pub const fn is_later(self) -> bool {
        self.place & !7 != 0
    }
    #[inline(always)]
    pub const fn more(self) -> bool {
        self.place & 1 != 0
    }
    /// Offset in units of eight bytes.
    #[inline(always)]
    pub const fn offset(self) -> u16 {
        self.place >> 3
    }
}

/// An address as two halves, see [`Packet::src`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Address {
    pub high: u64,
    pub low: u64,
}

impl Packet {
    pub const EMPTY: Packet = Packet {
        src: Address { high: 0, low: 0 },
        dst: Address { high: 0, low: 0 },
        fragment: Fragment::NONE,
        src_port: 0,
        dst_port: 0,
        echo_id: 0,
        transport_at: 0,
        ethertype: 0,
        vlan: [NO_VLAN; 2],
        version: 0,
        protocol: 0,
        hop_limit: 0,
        tcp_flags: 0,
        icmp_type: 0,
        icmp_code: 0,
        network_at: 0,
        pad: [0; 3],
    };

    /// TCP that opens a connection: SYN without ACK.
    #[inline(always)]
    pub const fn opens_tcp(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }

    /// ICMP in IPv4 or ICMPv6 in IPv6; the other two ways round are protocols like any other.
    #[inline(always)]
    pub const fn is_icmp(&self) -> bool {
        (self.version == 4 && self.protocol == protocol::ICMP)
            || (self.version == 6 && self.protocol == protocol::ICMPV6)
    }

    /// An ICMP message about another packet (RFC 792, RFC 4443), redirects included.
    #[inline(always)]
    pub const fn is_icmp_error(&self) -> bool {
        match self.version {
            4 => self.is_icmp() && matches!(self.icmp_type, 3 | 4 | 5 | 11 | 12),
            _ => self.is_icmp() && self.icmp_type < 128,
        }
    }

    /// An error that may concern a connection: unreachable, too big, time exceeded, parameter problem. Not a source quench
    /// (RFC 6633) and not a redirect, which changes the route of its receiver.
    #[inline(always)]
    pub const fn may_quote(&self) -> bool {
        match self.version {
            4 => self.is_icmp() && matches!(self.icmp_type, 3 | 11 | 12),
            _ => self.is_icmp() && matches!(self.icmp_type, 1..=4),
        }
    }
}

/// Reads `frame` into `packet`.
///
/// # Errors
/// The reason why the frame must drop: malformed, or a fragment that cannot be judged.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F, packet: &mut Packet) -> Result<Kind, Reason> {
    let (kind, at) = match frame.link() {
        Link::Bare(kind) => (kind, 0),
        Link::Ethernet | Link::Untagged(_) => ethernet(frame, packet)?,
    };
    packet.ethertype = kind;
    packet.network_at = at as u8;
    let mut rest = Rest {
        at: at as u16,
        payload: 0,
        next: 0,
        fragmented: 0,
    };
    match kind {
        ethertype::IPV4 => ipv4(frame, packet, &mut rest)?,
        ethertype::IPV6 => ipv6(frame, packet, &mut rest)?,
        _ => return other(frame, at, kind),
    }
    transport(frame, &mut rest, packet)?;
    Ok(Kind::Ip)
}

/// The ethertype behind the tags, and where its header begins.
#[inline(always)]
fn ethernet<F: Frame>(frame: &F, packet: &mut Packet) -> Result<(u16, u32), Reason> {
    let header = frame.window::<14>(0).ok_or(Reason::EthernetShort)?;
    let mut kind = header.u16::<12>();
    let mut at = 14;
    let untagged = match frame.link() {
        Link::Untagged(tci) => {
            packet.vlan[0] = tci;
            true
        }
        _ => false,
    };
    if is_vlan(kind) {
        let tag = frame.window::<4>(at).ok_or(Reason::EthernetShort)?;
        if untagged {
            packet.vlan[1] = tag.u16::<0>();
        } else {
            packet.vlan[0] = tag.u16::<0>();
        }
        kind = tag.u16::<2>();
        at += 4;
        if is_vlan(kind) {
            if untagged {
                return Err(Reason::VlanDepth);
            }
            let tag = frame.window::<4>(at).ok_or(Reason::EthernetShort)?;
            packet.vlan[1] = tag.u16::<0>();
            kind = tag.u16::<2>();
            at += 4;
            if is_vlan(kind) {
                return Err(Reason::VlanDepth);
            }
        }
    }
    Ok((kind, at))
}

/// What is left of a packet: where, how many bytes by the IP header, and the header that comes next. Small fields:
/// see [`Frame::settle`].
#[derive(Clone, Copy)]
struct Rest {
    at: u16,
    /// At most 65,535: enough to hold any header.
    payload: u16,
    next: u8,
    /// Not zero: a fragment, and [`LATER`] if it is not the first.
    fragmented: u8,
}

/// See [`Rest::fragmented`].
const FIRST: u8 = 1;
const LATER: u8 = 2;

/// Everything but IP.
#[inline(always)]
fn other<F: Frame>(frame: &F, at: u32, kind: u16) -> Result<Kind, Reason> {
    if let Link::Bare(_) = frame.link() {
        return Ok(Kind::Other);
    }
    let ethernet = frame.window::<14>(0).ok_or(Reason::EthernetShort)?;
    // IEEE 802.1Q table 8-1: groups that bridges never forward.
    let to_link = ethernet.u32::<0>() == 0x0180_c200 && ethernet.u16::<4>() < 0x10;
    Ok(match kind {
        ethertype::ARP if frame.window::<28>(at).is_some() => Kind::Arp,
        ethertype::ARP => return Err(Reason::ArpShort),
        ethertype::LACP if to_link => Kind::LinkControl(LINK_LACP),
        ethertype::LLDP if to_link => Kind::LinkControl(LINK_LLDP),
        ethertype::EAPOL if to_link => Kind::LinkControl(LINK_EAPOL),
        length if length < ethertype::FIRST => Kind::Llc,
        _ => Kind::Other,
    })
}

#[inline(always)]
const fn is_vlan(kind: u16) -> bool {
    kind == ethertype::VLAN || kind == ethertype::QINQ
}

/// Reads the header at `rest.at` and steps over it.
#[inline(always)]
fn ipv4<F: Frame>(frame: &F, packet: &mut Packet, rest: &mut Rest) -> Result<(), Reason> {
    let at = rest.at as u32;
    let header = frame.window::<20>(at).ok_or(Reason::IpShort)?;
    let first = header.u8::<0>();
    let header_len = (first & 15) as u32 * 4;
    if first >> 4 != 4 || header_len < 20 {
        return Err(Reason::Ipv4Header);
    }
    packet.version = 4;
    packet.src.low = header.u32::<12>() as u64;
    packet.dst.low = header.u32::<16>() as u64;
    packet.hop_limit = header.u8::<8>();
    let carried = frame.len().saturating_sub(at);
    let mut total = header.u16::<2>() as u32;
    if total == 0 && carried > u16::MAX as u32 {
        // BIG TCP (kernel commit b1a78b9b9886): a super-packet too long for the field.
        total = carried;
    }
    if total < header_len {
        return Err(Reason::Ipv4Header);
    }
    if total > carried {
        return Err(Reason::IpShort);
    }
    let fragment = header.u16::<6>();
    if fragment & 0x8000 != 0 {
        return Err(Reason::Ipv4Header);
    }
    let payload = clamp(total - header_len);
    // "Don't fragment" aside.
    let place = (fragment & 0x1fff) << 3 | fragment >> 13 & 1;
    if place != 0 {
        packet.fragment = Fragment {
            id: header.u16::<4>() as u32,
            len: payload,
            place,
        };
    }
    *rest = Rest {
        at: (at + header_len) as u16,
        payload,
        next: header.u8::<9>(),
        fragmented: stage(place),
    };
    Ok(())
}

#[inline(always)]
const fn stage(place: u16) -> u8 {
    if place & !7 != 0 {
        LATER
    } else {
        place as u8 & FIRST
    }
}

/// Reads the header at `rest.at` and steps over it and its extensions.
#[inline(always)]
fn ipv6<F: Frame>(frame: &F, packet: &mut Packet, rest: &mut Rest) -> Result<(), Reason> {
    let at = rest.at as u32;
    let header = frame.window::<40>(at).ok_or(Reason::IpShort)?;
    if header.u8::<0>() >> 4 != 6 {
        return Err(Reason::Ipv6Header);
    }
    packet.version = 6;
    packet.src = Address {
        high: header.u64::<8>(),
        low: header.u64::<16>(),
    };
    packet.dst = Address {
        high: header.u64::<24>(),
        low: header.u64::<32>(),
    };
    packet.hop_limit = header.u8::<7>();
    let carried = frame.len().saturating_sub(at + 40);
    let mut payload = header.u16::<4>() as u32;
    if payload == 0 && carried > u16::MAX as u32 {
        // BIG TCP and RFC 2675: the length is in a hop-by-hop option.
        payload = carried;
    }
    if payload > carried {
        return Err(Reason::IpShort);
    }

    *rest = Rest {
        at: (at + 40) as u16,
        payload: clamp(payload),
        next: header.u8::<6>(),
        fragmented: 0,
    };
    // Written out, for a loop here ends in a jump that kernels below 6.7 take for an endless one.
    macro_rules! step {
        () => {
            if !is_walked(rest.next) || rest.fragmented == LATER {
                return Ok(());
            }
            frame.settle(rest);
            extension(frame, packet, rest)?;
            // Hop-by-hop is legal in the first place only (RFC 8200 section 4.1), and Linux reads it there only.
            if rest.next == protocol::HOP_BY_HOP {
                return Err(Reason::ExtensionHeader);
            }
        };
    }
    step!();
    step!();
    step!();
    step!();
    step!();
    step!();
    step!();
    step!();
    if is_walked(rest.next) && rest.fragmented != LATER {
        Err(Reason::ExtensionDepth)
    } else {
        Ok(())
    }
}

/// Extension headers that Linux walks over. Mobility (135) is not among them: it ends the chain there, as a protocol.
#[inline(always)]
const fn is_walked(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT | protocol::AH | protocol::DESTINATION
    )
}

/// Steps over one extension header.
#[inline(always)]
fn extension<F: Frame>(frame: &F, packet: &mut Packet, rest: &mut Rest) -> Result<(), Reason> {
    let short = if rest.fragmented != 0 {
        Reason::FragmentShort
    } else {
        Reason::ExtensionHeader
    };
    let header = checked::<F, 8>(frame, *rest).ok_or(short)?;
    let mut fragmented = rest.fragmented;
    let units = header.u8::<1>() as u32;
    let len = match rest.next {
        protocol::ROUTING if header.u8::<3>() != 0 => return Err(Reason::RoutingHeader),
        // RFC 4302 section 2.2: in words of four bytes, minus two.
        protocol::AH => (units + 2) * 4,
        protocol::FRAGMENT => {
            if fragmented != 0 {
                return Err(Reason::ExtensionHeader);
            }
            // At offset 0 without "more fragments" it is whole: an atomic fragment (RFC 6946).
            let place = header.u16::<2>() & !6;
            packet.fragment = Fragment {
                id: header.u32::<4>(),
                len: rest.payload - 8,
                place,
            };
            fragmented = stage(place);
            8
        }
        _ => (units + 1) * 8,
    };
    if len > rest.payload as u32 {
        return Err(short);
    }
    *rest = Rest {
        at: rest.at.saturating_add(len as u16),
        payload: rest.payload - len as u16,
        next: header.u8::<0>(),
        fragmented,
    };
    Ok(())
}

#[inline(always)]
const fn clamp(payload: u32) -> u16 {
    if payload > 0xffff { 0xffff } else { payload as u16 }
}

/// Reads ports, flags and ICMP types.
#[inline(always)]
fn transport<F: Frame>(frame: &F, rest: &mut Rest, packet: &mut Packet) -> Result<(), Reason> {
    frame.settle(rest);
    let (payload, fragmented) = (rest.payload as u32, rest.fragmented != 0);
    packet.protocol = rest.next;
    packet.transport_at = rest.at;
    if rest.fragmented == LATER {
        return Ok(());
    }
    let short = if fragmented {
        Reason::FragmentShort
    } else {
        Reason::TransportShort
    };
    match rest.next {
        protocol::TCP => {
            let header = checked::<F, 20>(frame, *rest).ok_or(short)?;
            packet.src_port = header.u16::<0>();
            packet.dst_port = header.u16::<2>();
            packet.tcp_flags = header.u8::<13>();
            let header_len = (header.u8::<12>() >> 4) as u32 * 4;
            if header_len < 20 {
                return Err(Reason::TcpHeader);
            }
            if header_len > payload {
                return Err(if fragmented {
                    Reason::FragmentShort
                } else {
                    Reason::TcpHeader
                });
            }
            if VALID_TCP_FLAGS >> (packet.tcp_flags & 63) & 1 == 0 {
                return Err(Reason::TcpFlags);
            }
        }
        protocol::UDP => {
            let header = checked::<F, 8>(frame, *rest).ok_or(short)?;
            packet.src_port = header.u16::<0>();
            packet.dst_port = header.u16::<2>();
            let length = header.u16::<4>() as u32;
            if length < 8 || (length > payload && !fragmented) {
                return Err(Reason::UdpHeader);
            }
        }
        protocol::SCTP => {
            let header = checked::<F, 12>(frame, *rest).ok_or(short)?;
            packet.src_port = header.u16::<0>();
            packet.dst_port = header.u16::<2>();
        }
        protocol::ICMP | protocol::ICMPV6 if packet.is_icmp() => {
            let header = checked::<F, 8>(frame, *rest).ok_or(short)?;
            packet.icmp_type = header.u8::<0>();
            packet.icmp_code = header.u8::<1>();
            packet.echo_id = header.u16::<4>();
        }
        _ => {}
    }
    Ok(())
}

/// `N` bytes at the front of the rest, if the IP header and the frame both have them.
#[inline(always)]
fn checked<F: Frame, const N: usize>(frame: &F, rest: Rest) -> Option<F::Window<N>> {
    if (rest.payload as usize) < N {
        None
    } else {
        frame.window::<N>(rest.at as u32)
    }
}

/// Bit `n` is set if flags `n` (six low bits) may stand together: the table of Linux conntrack
/// (`tcp_valid_flags`, net/netfilter/nf_conntrack_proto_tcp.c), push ignored.
const VALID_TCP_FLAGS: u64 = {
    use tcp::*;
    let valid = [
        SYN,
        SYN | URG,
        SYN | ACK,
        RST,
        RST | ACK,
        FIN | ACK,
        FIN | ACK | URG,
        ACK,
        ACK | URG,
    ];
    let mut bits = 0;
    let mut i = 0;
    while i < valid.len() {
        bits |= 1 << valid[i] | 1 << (valid[i] | PSH);
        i += 1;
    }
    bits
};

/// A frame in a byte slice: the host's side of [`Frame`].
#[derive(Clone, Copy)]
pub struct SliceFrame<'a>(pub &'a [u8]);

/// A window of [`SliceFrame`].
pub struct SliceWindow<const N: usize>([u8; N]);

impl Frame for SliceFrame<'_> {
    type Window<const N: usize> = SliceWindow<N>;

    fn len(&self) -> u32 {
        self.0.len() as u32
    }

    fn window<const N: usize>(&self, at: u32) -> Option<SliceWindow<N>> {
        if at > MAX_OFFSET {
            return None;
        }
        let bytes = self.0.get(at as usize..at as usize + N)?;
        bytes.try_into().ok().map(SliceWindow)
    }
}

impl<const N: usize> SliceWindow<N> {
    fn bytes<const M: usize>(&self, at: usize) -> [u8; M] {
        let mut out = [0; M];
        out.copy_from_slice(&self.0[at..at + M]);
        out
    }
}

impl<const N: usize> Window for SliceWindow<N> {
    fn u8<const AT: usize>(&self) -> u8 {
        self.0[AT]
    }
    fn u16<const AT: usize>(&self) -> u16 {
        u16::from_be_bytes(self.bytes(AT))
    }
    fn u32<const AT: usize>(&self) -> u32 {
        u32::from_be_bytes(self.bytes(AT))
    }
    fn u64<const AT: usize>(&self) -> u64 {
        u64::from_be_bytes(self.bytes(AT))
    }
}
