//! A packet's whole way, a call per step. The one matcher: the kernel programs, `explain` and the tests run it.
//!
//! First match ends it: malformed (by [`crate::packet`]) and martian, essential, failsafe, then the policy: the port gives
//! the service, the source its class, both the verdict; then replies, then the default. A port that no service
//! names ends before its source is looked at, so a flood at closed ports costs the same whatever the policy holds.
//! Fail closed: what cannot be read drops.

use crate::control::{AddressKey, Config, LINK_STP, bloom_bit};
use crate::gate::{self, Bank};
use crate::image::{Image, NO_SERVICE, Pages, PortKey};
use crate::packet::{Address, Frame, Kind, Link, Packet, Parsed, parse, protocol};
use crate::verdict::Reason;

/// What a decision asks of its surroundings. One value serves one packet.
pub trait Kernel {
    type Pages: Pages;

    /// The node configuration in force.
    fn config(&self) -> Option<&Config>;
    /// The policy image in force.
    fn pages(&self) -> Option<&Self::Pages>;
    /// Whether the host has this address (asked after a hit of [`Config::own_bloom`]).
    fn is_own(&self, address: AddressKey) -> bool;
    /// A cell of the gate.
    fn gate(&self, bank: Bank, port: u16) -> gate::Cell;
    /// Keys [`gate::peer`].
    fn seed(&self) -> u64;
    /// Monotonic clock, seconds.
    fn now_s(&self) -> u32;
    /// What the socket table knows of a TCP segment or UDP datagram that came in.
    fn socket(&self, packet: &Packet) -> Socket;
    /// Leaves the value as it is. In the kernel it takes it through memory, where the BPF verifier forgets small
    /// constants, so that ways which differ only in them are walked once.
    #[inline(always)]
    fn settle<T>(&self, _value: &mut T) {}
    /// Notes a step; only `explain` listens.
    #[inline(always)]
    fn step(&self, _step: Step) {}
}

/// What the socket table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// No socket is connected to this peer.
    Unknown,
    /// A connection that a listener of this host accepted.
    Accepted,
    /// Connected to this peer by the host.
    Opened,
}

/// How a packet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub reason: Reason,
    /// See [`crate::counter`].
    pub ending: u32,
    /// Service id in the image, 0 for none.
    pub service: u16,
}

impl Outcome {
    #[inline(always)]
    const fn bare(reason: Reason) -> Outcome {
        Outcome {
            reason,
            ending: reason.number() as u32,
            service: NO_SERVICE,
        }
    }
}

/// A step on the way, for `explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The frame could not be read further.
    Malformed(Reason),
    Martian,
    Essential(Reason),
    /// An entry of the failsafe list matched.
    Failsafe(u32),
    NotFailsafe,
    /// The port table was asked.
    Port {
        key: PortKey,
        service: u16,
    },
    /// The class table was asked.
    Class(u32),
    /// The verdict table was asked; reason 0: no match.
    Verdict {
        reason: u8,
        ending: u32,
    },
    /// The gate was asked whether the host opened anything from this port.
    Gate {
        open: bool,
    },
    /// The socket table was asked.
    Socket(Socket),
    Default {
        allow: bool,
    },
}

/// Judges a frame that came in. `packet` receives what was read of it.
#[inline(always)]
pub fn ingress<F: Frame, K: Kernel>(frame: &F, kernel: &K, packet: &mut Packet) -> Outcome {
    let mut parsed = Parsed::new(parse(frame, packet));
    kernel.settle(&mut parsed);
    kernel.settle(packet);
    let kind = match parsed.result() {
        Ok(kind) => kind,
        Err(reason) => {
            kernel.step(Step::Malformed(reason));
            return Outcome::bare(reason);
        }
    };
    match kind {
        Kind::Ip => ip(kernel, packet),
        Kind::Arp => essential(kernel, Reason::Arp),
        Kind::LinkControl(link) if links(kernel) & link != 0 => essential(kernel, Reason::LinkControl),
        Kind::Llc => {
            // Spanning tree: an 802.3 frame to a link-local group. Any other LLC frame is opaque, so it drops.
            let untagged = !matches!(frame.link(), Link::Untagged(_));
            let bpdu = untagged && frame.window::<16>(0).is_some_and(|header| is_bpdu(&header));
            if bpdu && links(kernel) & LINK_STP != 0 {
                return essential(kernel, Reason::LinkControl);
            }
            Outcome::bare(Reason::Llc)
        }
        Kind::LinkControl(_) | Kind::Other => match kernel.pages().and_then(Image::open) {
            None => Outcome::bare(Reason::NoPolicy),
            Some(image) => {
                let allow = image.default_allows();
                kernel.step(Step::Default { allow });
                Outcome::bare(if allow {
                    Reason::DefaultAllow
                } else {
                    Reason::EtherType
                })
            }
        },
    }
}

#[inline(always)]
fn is_bpdu<W: crate::packet::Window>(header: &W) -> bool {
    // DSAP and SSAP 0x42, to 01:80:c2:00:00:00, untagged.
    header.u32::<0>() == 0x0180_c200
        && header.u16::<4>() == 0
        && header.u16::<12>() < 0x600
        && header.u16::<14>() == 0x4242
}

#[inline(always)]
fn links<K: Kernel>(kernel: &K) -> u32 {
    kernel.config().map_or(0, |config| config.link_control)
}

#[inline(always)]
fn essential<K: Kernel>(kernel: &K, reason: Reason) -> Outcome {
    kernel.step(Step::Essential(reason));
    Outcome::bare(reason)
}

#[inline(always)]
fn ip<K: Kernel>(kernel: &K, packet: &Packet) -> Outcome {
    if is_martian(packet) || is_own_source(kernel, packet.src) {
        kernel.step(Step::Martian);
        return Outcome::bare(Reason::Martian);
    }
    if let Some(reason) = is_essential(packet) {
        return essential(kernel, reason);
    }
    if let Some(entry) = failsafe(kernel, packet) {
        kernel.step(Step::Failsafe(entry));
        return Outcome::bare(Reason::Failsafe);
    }
    policy(kernel, packet).unwrap_or(Outcome::bare(Reason::NoPolicy))
}

/// The policy, replies and the default. `None`: the image cannot be read.
#[inline(always)]
fn policy<K: Kernel>(kernel: &K, packet: &Packet) -> Option<Outcome> {
    let key = port_key(packet);
    let image = Image::open(kernel.pages()?)?;
    let service = image.service(key)?;
    let default_allows = image.default_allows();
    kernel.step(Step::Port { key, service });
    if service == NO_SERVICE && !default_allows && !may_reply(kernel, packet) {
        kernel.step(Step::Default { allow: false });
        return Some(closed(packet));
    }

    let class = image.class(packet.version, packet.src.high, packet.src.low)?;
    let cell = image.verdict(service, class)?;
    kernel.step(Step::Class(class));
    kernel.step(Step::Verdict {
        reason: cell.reason(),
        ending: cell.ending(),
    });
    if let Some(reason) = Reason::from_number(cell.reason()) {
        return Some(Outcome {
            reason,
            ending: cell.ending(),
            service,
        });
    }
    // Only the row of no service has cells without a verdict.
    if service != NO_SERVICE {
        return None;
    }
    if default_allows {
        kernel.step(Step::Default { allow: true });
        return Some(Outcome::bare(Reason::DefaultAllow));
    }
    if is_reply(kernel, packet) {
        return Some(Outcome::bare(Reason::Reply));
    }
    kernel.step(Step::Default { allow: false });
    Some(closed(packet))
}

#[inline(always)]
fn closed(packet: &Packet) -> Outcome {
    Outcome::bare(if packet.is_icmp_error() {
        Reason::IcmpError
    } else {
        Reason::Closed
    })
}

/// The slot of the port table that a packet knocks at.
#[inline(always)]
pub fn port_key(packet: &Packet) -> PortKey {
    match packet.protocol {
        protocol::TCP => PortKey::tcp(packet.dst_port),
        protocol::UDP => PortKey::udp(packet.dst_port),
        protocol::SCTP => PortKey::sctp(packet.dst_port),
        protocol::ICMP if packet.version == 4 => PortKey::icmp(packet.icmp_type),
        protocol::ICMPV6 if packet.version == 6 => PortKey::icmpv6(packet.icmp_type),
        number => PortKey::protocol(number),
    }
}

/// Addresses that never come from the wire (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5; Linux `ip_route_input_slow` and
/// `ip6_rcv_core`).
#[inline(always)]
fn is_martian(packet: &Packet) -> bool {
    let (src, dst) = (packet.src, packet.dst);
    if packet.version == 4 {
        let (src, dst) = (src.low as u32, dst.low as u32);
        let unspecified = src >> 24 == 0;
        // A host without an address speaks to everybody only: DHCP, IGMP.
        let to_all = dst == u32::MAX || dst >> 28 == 0xe;
        return (unspecified && !(src == 0 && to_all))
            || src >> 24 == 127
            || src >> 28 == 0xe
            || src == u32::MAX
            || dst >> 24 == 127
            || dst >> 24 == 0;
    }
    let unspecified = src.high == 0 && src.low == 0;
    // Without an address a host speaks ICMPv6 to a group only: duplicate address detection, listener reports.
    (unspecified && !(packet.protocol == protocol::ICMPV6 && dst.high >> 56 == 0xff))
        || (src.high == 0 && src.low == 1)
        || src.high >> 56 == 0xff
        || (src.high == 0 && src.low >> 32 == 0xffff)
        || (dst.high == 0 && (dst.low <= 1 || dst.low >> 32 == 0xffff))
}

#[inline(always)]
fn is_own_source<K: Kernel>(kernel: &K, src: Address) -> bool {
    let Some(config) = kernel.config() else {
        return false;
    };
    let bit = bloom_bit(src.high, src.low);
    let Some(word) = config.own_bloom.get(bit as usize >> 6) else {
        return false;
    };
    word >> (bit & 63) & 1 != 0
        && kernel.is_own(AddressKey {
            high: src.high,
            low: src.low,
        })
}

/// What a host cannot live without.
#[inline(always)]
fn is_essential(packet: &Packet) -> Option<Reason> {
    const LINK_LOCAL: u64 = 0xfe80_0000_0000_0000 >> 54;
    if packet.fragmented {
        // RFC 6980: never neighbour discovery; and no DHCP client needs it.
        return None;
    }
    let from_link = packet.src.high >> 54 == LINK_LOCAL;
    match packet.protocol {
        protocol::UDP if packet.version == 4 => {
            (packet.src_port == 67 && packet.dst_port == 68).then_some(Reason::DhcpClient)
        }
        protocol::UDP => {
            let answers = packet.src_port == 547 && packet.dst_port == 546;
            (answers && from_link && packet.dst.high >> 54 == LINK_LOCAL).then_some(Reason::DhcpClient)
        }
        protocol::ICMPV6 if packet.version == 6 => {
            let unspecified = packet.src.high == 0 && packet.src.low == 0;
            match packet.icmp_type {
                // Router advertisements come from a link-local address (RFC 4861 section 6.1.2).
                134 => (from_link && packet.hop_limit == 255 && packet.icmp_code == 0)
                    .then_some(Reason::NeighbourDiscovery),
                133 | 135 | 136 => {
                    (packet.hop_limit == 255 && packet.icmp_code == 0).then_some(Reason::NeighbourDiscovery)
                }
                // RFC 3810 section 5: hop limit 1, from the link.
                130..=132 | 143 => {
                    (packet.hop_limit == 1 && (from_link || unspecified)).then_some(Reason::Mld)
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// The failsafe entry that admits the packet, if one does.
#[inline(always)]
fn failsafe<K: Kernel>(kernel: &K, packet: &Packet) -> Option<u32> {
    let config = kernel.config()?;
    if config.failsafe_bloom >> (packet.dst_port & 63) & 1 == 0 {
        return None;
    }
    let mut index = 0;
    while let Some(entry) = config.failsafe.get(index) {
        if index as u32 >= config.failsafe_count {
            break;
        }
        if entry.dst_port == packet.dst_port
            && entry.protocol == packet.protocol
            && entry.version == packet.version
            && packet.src.high & entry.mask_high == entry.prefix_high
            && packet.src.low & entry.mask_low == entry.prefix_low
        {
            return Some(index as u32);
        }
        index += 1;
    }
    None
}

/// Cheap and necessary for [`is_reply`]: the host opened something from this port.
#[inline(always)]
fn may_reply<K: Kernel>(kernel: &K, packet: &Packet) -> bool {
    let open = match reply_cell(packet) {
        Some((bank, port)) => kernel.gate(bank, port).is_open(),
        None => false,
    };
    kernel.step(Step::Gate { open });
    open
}

/// The gate's cell for what the packet might answer. A SYN answers nothing.
#[inline(always)]
fn reply_cell(packet: &Packet) -> Option<(Bank, u16)> {
    match packet.protocol {
        protocol::TCP if !packet.opens_tcp() => Some((Bank::Tcp, packet.dst_port)),
        protocol::UDP => Some((Bank::Udp, packet.dst_port)),
        protocol::ICMP if packet.version == 4 && packet.icmp_type == 0 => Some((Bank::Echo, packet.echo_id)),
        protocol::ICMPV6 if packet.version == 6 && packet.icmp_type == 129 => {
            Some((Bank::Echo, packet.echo_id))
        }
        _ => None,
    }
}

/// Whether the packet answers what the host opened, to this very peer.
#[inline(always)]
fn is_reply<K: Kernel>(kernel: &K, packet: &Packet) -> bool {
    let Some((bank, port)) = reply_cell(packet) else {
        return false;
    };
    if bank != Bank::Tcp {
        let peer = gate::peer(kernel.seed(), packet.src.high, packet.src.low, packet.src_port);
        if kernel.gate(bank, port).answers(peer, kernel.now_s()) {
            return true;
        }
        if bank == Bank::Echo {
            return false;
        }
    }
    let socket = kernel.socket(packet);
    kernel.step(Step::Socket(socket));
    socket == Socket::Opened
}

/// What a frame that goes out leaves in the gate: bank, port, and the peer to write. Nothing from a port that a
/// service names: what leaves there answers, and what comes in there is the policy's business alone.
#[inline(always)]
pub fn egress<F: Frame, P: Pages>(
    frame: &F,
    pages: Option<&P>,
    seed: u64,
    packet: &mut Packet,
) -> Option<(Bank, u16, u32)> {
    let Ok(Kind::Ip) = parse(frame, packet) else {
        return None;
    };
    let (bank, port) = match packet.protocol {
        protocol::TCP if packet.opens_tcp() => (Bank::Tcp, packet.src_port),
        protocol::UDP => (Bank::Udp, packet.src_port),
        protocol::ICMP if packet.version == 4 && packet.icmp_type == 8 => (Bank::Echo, packet.echo_id),
        protocol::ICMPV6 if packet.version == 6 && packet.icmp_type == 128 => (Bank::Echo, packet.echo_id),
        _ => return None,
    };
    let key = match bank {
        Bank::Tcp => Some(PortKey::tcp(port)),
        Bank::Udp => Some(PortKey::udp(port)),
        Bank::Echo => None,
    };
    if let (Some(key), Some(image)) = (key, pages.and_then(Image::open))
        && image.service(key)? != NO_SERVICE
    {
        return None;
    }
    let peer = gate::peer(seed, packet.dst.high, packet.dst.low, packet.dst_port);
    Some((bank, port, peer))
}
