//! A packet's whole way, a call per step. The one matcher: the kernel programs, `explain` and the tests run it.
//!
//! Ingress, first match ends it: malformed (by [`crate::packet`]) and martian, later fragments after their first, essential,
//! failsafe, bans, then the policy: the port gives the service, the source its class, both the verdict; then replies
//! and errors about what this host sent, then the default. A port that no service names ends before its source is looked at,
//! so a flood at closed ports costs the same whatever the policy holds.
//!
//! Egress: essential, answers of services to those that they serve, answers to failsafe, the egress rules, the default. What
//! passes is noted in the flow table, which lets its replies in.
//!
//! Fail closed: what cannot be read drops.

use crate::control::{AddressKey, Config, LINK_STP, bloom_bit};
use crate::counter::{self, Tally};
use crate::flow::{self, Key, Left, Sends, State};
use crate::fragment::{self, Remembered};
use crate::gate::{self, Bank};
use crate::image::{Image, LimitedBy, NO_SERVICE, Pages, PortKey};
use crate::meter::{self, Steps, Weighed};
use crate::packet::{Address, Fragment, Frame, Kind, Link, Packet, Parsed, parse, protocol};
use crate::quote::{ECHO_REPLY, quoted};
use crate::verdict::{Reason, Verdict};

/// What a decision asks of its surroundings. One value serves one packet. Methods with a body are parts of the decision
/// that the kernel may run as functions of their own, which the BPF verifier then walks once.
pub trait Kernel: Steps<Page = <Self::Pages as Pages>::Page> {
    type Pages: Pages;

    /// The node configuration in force.
    fn config(&self) -> Option<&Config>;
    /// The policy image in force.
    fn pages(&self) -> Option<&Self::Pages>;
    /// Its generation.
    fn generation(&self) -> u64;
    /// [`flow::Flows::came_in`] on the flow table.
    fn came_in(&self, key: &Key, tcp_flags: u8) -> Option<State>;
    /// [`flow::Flows::went_out`] on the flow table.
    fn went_out(&self, key: &Key, sends: Sends) -> Left;
    /// [`fragment::Fragments::first`] on the fragment table.
    fn first_fragment(&self, key: &Key, fragment: Fragment, first: Remembered) -> Result<(), Reason>;
    /// [`fragment::Fragments::later`] on the fragment table.
    fn later_fragment(&self, key: &Key, fragment: Fragment) -> Result<Remembered, Reason>;
    /// Whether the host has this address (asked after a hit of [`Config::own_bloom`]).
    fn is_own(&self, address: AddressKey) -> bool;
    /// A cell of the gate.
    fn gate(&self, bank: Bank, port: u16) -> gate::Cell;
    /// Writes a cell of the gate.
    fn open_gate(&self, bank: Bank, port: u16, cell: gate::Cell);
    /// Monotonic clock, seconds.
    fn now_s(&self) -> u32;
    /// What the socket table knows of a TCP or UDP flow.
    fn socket(&self, key: &Key) -> Socket;
    /// Counts what happened to the tables.
    fn tally(&self, tally: Tally);
    /// The class of an address.
    #[inline(always)]
    fn class(&self, image: &Image<Self::Pages>, version: u8, address: Address) -> Option<u32> {
        image.class(version, address.high, address.low)
    }
    /// [`quoted`].
    #[inline(always)]
    fn quoted<F: Frame>(&self, frame: &F, packet: &Packet) -> Option<Key> {
        quoted(frame, packet)
    }
    /// The failsafe entry that names a flow, if one does.
    #[inline(always)]
    fn failsafe(&self, key: &Key) -> Option<u32> {
        failsafe(self.config()?, key)
    }
    /// [`crate::ban::is_banned`] in the table of bans.
    fn banned(&self, version: u8, source: Address) -> bool;
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
    /// In ingress, without a rule.
    #[inline(always)]
    const fn bare(reason: Reason) -> Outcome {
        Outcome {
            reason,
            ending: reason.number() as u32,
            service: NO_SERVICE,
        }
    }

    /// In egress, without a rule.
    #[inline(always)]
    const fn out(reason: Reason) -> Outcome {
        Outcome {
            reason,
            ending: counter::EGRESS + reason.number() as u32,
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
    /// The table of bans has the source.
    Banned,
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
    /// The limits of this number were asked: what they said.
    Limit {
        profile: u32,
        excess: Option<Reason>,
    },
    /// The gate was asked whether the host opened anything from this port.
    Gate {
        open: bool,
    },
    /// The flow table was asked.
    Flow(Option<State>),
    /// The socket table was asked.
    Socket(Socket),
    /// A fragment after the first: how its first one ended.
    Later(Option<Reason>),
    /// An ICMP error, and whether it is about something that this host sends.
    Quote {
        known: bool,
    },
    /// A service answers: its port was asked for what leaves.
    Answer {
        key: PortKey,
        service: u16,
    },
    /// The egress rules were asked.
    Egress {
        key: PortKey,
        row: u16,
    },
    Default {
        allow: bool,
    },
}

/// Judges a frame that came in. `packet` receives what was read of it.
#[inline(always)]
pub fn ingress<F: Frame, K: Kernel>(frame: &F, kernel: &K, packet: &mut Packet) -> Outcome {
    let mut parsed = Parsed::new(parse(frame, packet));
    kernel.settle(&mut parsed);
    let kind = match parsed.result() {
        Ok(kind) => kind,
        Err(reason) => {
            kernel.step(Step::Malformed(reason));
            return Outcome::bare(reason);
        }
    };
    match kind {
        Kind::Ip => ip(frame, kernel, packet),
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
fn ip<F: Frame, K: Kernel>(frame: &F, kernel: &K, packet: &Packet) -> Outcome {
    if is_martian(packet) || is_own_source(kernel, packet.src) {
        kernel.step(Step::Martian);
        return Outcome::bare(Reason::Martian);
    }
    if packet.fragment.is_later() {
        return match follow(frame, kernel, packet, false) {
            // The first one may have come before the ban.
            outcome if outcome.reason != Reason::Failsafe && kernel.banned(packet.version, packet.src) => {
                kernel.step(Step::Banned);
                Outcome::bare(Reason::Banned)
            }
            outcome => outcome,
        };
    }
    if let Some(reason) = is_essential(packet) {
        // Of the servers of a client that asks, any may answer; of a client that does not, none.
        if reason != Reason::DhcpClient || kernel.came_in(&dhcp(packet.version), 0).is_some() {
            return essential(kernel, reason);
        }
    }
    let outcome = match named_failsafe(kernel, packet) {
        Some(entry) => {
            kernel.step(Step::Failsafe(entry));
            Outcome::bare(Reason::Failsafe)
        }
        None if kernel.banned(packet.version, packet.src) => {
            kernel.step(Step::Banned);
            Outcome::bare(Reason::Banned)
        }
        None => policy(frame, kernel, packet).unwrap_or(Outcome::bare(Reason::NoPolicy)),
    };
    lead(kernel, packet, outcome, false)
}

/// The policy, replies and the default. `None`: the image cannot be read.
#[inline(always)]
fn policy<F: Frame, K: Kernel>(frame: &F, kernel: &K, packet: &Packet) -> Option<Outcome> {
    let key = port_key(packet);
    let image = Image::open(kernel.pages()?)?;
    let service = image.service(key)?;
    let default_allows = image.default_allows();
    kernel.step(Step::Port { key, service });
    if service == NO_SERVICE && !default_allows && !may_reply(kernel, packet) {
        kernel.step(Step::Default { allow: false });
        return Some(Outcome::bare(Reason::Closed));
    }

    let class = kernel.class(&image, packet.version, packet.src)?;
    let cell = image.verdict(service, class)?;
    kernel.step(Step::Class(class));
    kernel.step(Step::Verdict {
        reason: cell.reason(),
        ending: cell.ending(),
    });
    let verdict = Reason::from_number(cell.reason());
    match verdict {
        // Only the row of no service has cells without a verdict.
        None if service != NO_SERVICE => return None,
        None if default_allows => {
            kernel.step(Step::Default { allow: true });
            return Some(Outcome::bare(Reason::DefaultAllow));
        }
        None | Some(Reason::NotAllowed) => {}
        Some(reason) => {
            let outcome = Outcome {
                reason,
                ending: cell.ending(),
                service,
            };
            if cell.is_limited() {
                return limited(kernel, &image, packet, frame.wire_len(), outcome, false);
            }
            return Some(if reason == Reason::Allowed && packet.opens_tcp() {
                Outcome {
                    ending: outcome.ending + counter::OPENS,
                    ..outcome
                }
            } else {
                outcome
            });
        }
    }
    if is_reply(kernel, packet, service) {
        return Some(Outcome::bare(Reason::Reply));
    }
    if packet.may_quote() && related(frame, kernel, packet)? {
        return Some(Outcome::bare(Reason::Related));
    }
    Some(match verdict {
        Some(reason) => Outcome {
            reason,
            ending: cell.ending(),
            service,
        },
        None => {
            kernel.step(Step::Default { allow: false });
            Outcome::bare(if packet.is_icmp_error() {
                Reason::IcmpError
            } else {
                Reason::Closed
            })
        }
    })
}

/// A first fragment that passes leads the later ones.
#[inline(always)]
fn lead<K: Kernel>(kernel: &K, packet: &Packet, outcome: Outcome, egress: bool) -> Outcome {
    if !packet.fragment.is_any() || outcome.reason.verdict() == Verdict::Drop {
        return outcome;
    }
    let first = Remembered {
        generation: kernel.generation(),
        ending: outcome.ending,
        service: outcome.service,
        reason: outcome.reason.number(),
        age_s: 0,
    };
    match kernel.first_fragment(&fragment::key(packet, egress), packet.fragment, first) {
        Ok(()) => outcome,
        Err(reason) => bare(reason, egress),
    }
}

/// A later fragment ends as the first of its datagram did.
#[inline(always)]
fn follow<F: Frame, K: Kernel>(frame: &F, kernel: &K, packet: &Packet, egress: bool) -> Outcome {
    let first = match kernel.later_fragment(&fragment::key(packet, egress), packet.fragment) {
        Ok(first) => first,
        Err(reason) => {
            kernel.step(Step::Later(None));
            return bare(reason, egress);
        }
    };
    // Only reasons that pass are remembered.
    let Some(reason) = Reason::from_number(first.reason) else {
        return bare(Reason::Fragment, egress);
    };
    if first.generation != kernel.generation() {
        if first.age_s as u32 > fragment::GRACE_S {
            kernel.step(Step::Later(None));
            return bare(Reason::Fragment, egress);
        }
        // What is on its way was judged with its first; but the numbers of that ending were another policy's.
        kernel.step(Step::Later(Some(reason)));
        return bare(reason, egress);
    }
    kernel.step(Step::Later(Some(reason)));
    let outcome = Outcome {
        reason,
        ending: first.ending,
        service: first.service,
    };
    if egress || reason != Reason::Allowed {
        return outcome;
    }
    // What it weighs is its own.
    let Some(image) = kernel.pages().and_then(Image::open) else {
        return Outcome::bare(Reason::NoPolicy);
    };
    let weighed = limited(kernel, &image, packet, frame.wire_len(), outcome, true);
    weighed.unwrap_or(Outcome::bare(Reason::NoPolicy))
}

/// What limits make of a packet that a rule allows, or of a later fragment of it. `None`: the image cannot be read.
#[inline(always)]
fn limited<K: Kernel>(
    kernel: &K,
    image: &Image<K::Pages>,
    packet: &Packet,
    length: u32,
    outcome: Outcome,
    later: bool,
) -> Option<Outcome> {
    let by = image.limited_by(outcome.ending)?;
    if by == LimitedBy::NOTHING {
        return Some(outcome);
    }
    let weighed = Weighed {
        first: image.first(),
        packet,
        by,
        length,
    };
    let metered = if later {
        meter::weigh(kernel, weighed)
    } else {
        meter::run(kernel, weighed)
    };
    let excess = metered.reason();
    kernel.step(Step::Limit {
        profile: by.number(),
        excess,
    });
    Some(match excess {
        None if metered.opens() => Outcome {
            ending: outcome.ending + counter::OPENS,
            ..outcome
        },
        None => outcome,
        Some(Reason::NoPolicy) => return None,
        Some(reason) => Outcome {
            reason,
            ending: metered.ending(),
            service: outcome.service,
        },
    })
}

#[inline(always)]
const fn bare(reason: Reason, egress: bool) -> Outcome {
    if egress {
        Outcome::out(reason)
    } else {
        Outcome::bare(reason)
    }
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
    if packet.fragment.is_any() {
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

/// Most packets are told by their port alone.
#[inline(always)]
fn named_failsafe<K: Kernel>(kernel: &K, packet: &Packet) -> Option<u32> {
    if kernel.config()?.failsafe_bloom >> (packet.dst_port & 63) & 1 == 0 {
        return None;
    }
    kernel.failsafe(&Key::ingress(packet))
}

/// The failsafe entry that names a flow, if one does.
#[inline(always)]
pub fn failsafe(config: &Config, key: &Key) -> Option<u32> {
    let mut index = 0;
    while let Some(entry) = config.failsafe.get(index) {
        if index as u32 >= config.failsafe_count {
            break;
        }
        if entry.dst_port == key.local_port()
            && entry.protocol == key.protocol()
            && entry.version == key.version()
            && key.remote.high & entry.mask_high == entry.prefix_high
            && key.remote.low & entry.mask_low == entry.prefix_low
        {
            return Some(index as u32);
        }
        index += 1;
    }
    None
}

/// Cheap and necessary for [`is_reply`] and [`related`].
#[inline(always)]
fn may_reply<K: Kernel>(kernel: &K, packet: &Packet) -> bool {
    match packet.protocol {
        protocol::TCP => !packet.opens_tcp() && is_open(kernel, Bank::Tcp, packet.dst_port),
        protocol::UDP => is_open(kernel, Bank::Udp, packet.dst_port),
        _ if packet.is_icmp() => is_echo_reply(packet) || packet.is_icmp_error(),
        _ => true,
    }
}

#[inline(always)]
fn is_open<K: Kernel>(kernel: &K, bank: Bank, port: u16) -> bool {
    let open = kernel.gate(bank, port).is_open();
    kernel.step(Step::Gate { open });
    open
}

#[inline(always)]
const fn is_echo_reply(packet: &Packet) -> bool {
    match packet.version {
        4 => packet.icmp_type == 0,
        _ => packet.icmp_type == 129,
    }
}

/// Whether the packet answers what the host opened, to this very peer.
#[inline(always)]
fn is_reply<K: Kernel>(kernel: &K, packet: &Packet, service: u16) -> bool {
    // A SYN answers nothing. What comes to a service is the policy's business alone, unless the host opened
    // the connection, which only TCP tells from an answer.
    let possible = match packet.protocol {
        protocol::TCP => {
            !packet.opens_tcp() && (service == NO_SERVICE || is_open(kernel, Bank::Tcp, packet.dst_port))
        }
        _ if packet.is_icmp() => is_echo_reply(packet),
        _ => service == NO_SERVICE,
    };
    if !possible {
        return false;
    }
    let key = Key::ingress(packet);
    let flow = kernel.came_in(&key, packet.tcp_flags);
    kernel.step(Step::Flow(flow));
    flow.is_some() || (service == NO_SERVICE && has_socket(kernel, &key))
}

/// Whether the socket table has a connection of the host's own. A port that a service names has accepted ones, too.
#[inline(always)]
fn has_socket<K: Kernel>(kernel: &K, key: &Key) -> bool {
    if key.protocol() != protocol::TCP && key.protocol() != protocol::UDP {
        return false;
    }
    let socket = kernel.socket(key);
    kernel.step(Step::Socket(socket));
    socket == Socket::Opened
}

/// Whether an ICMP error is about something that this host sends. `None`: the image cannot be read.
#[inline(always)]
fn related<F: Frame, K: Kernel>(frame: &F, kernel: &K, packet: &Packet) -> Option<bool> {
    let Some(key) = kernel.quoted(frame, packet) else {
        kernel.step(Step::Quote { known: false });
        return Some(false);
    };
    let bank = match key.protocol() {
        protocol::TCP => Some(Bank::Tcp),
        protocol::UDP => Some(Bank::Udp),
        _ => None,
    };
    let known = sends(kernel, &key)?
        || match bank {
            Some(bank) => kernel.gate(bank, key.local_port()).is_open() && has_socket(kernel, &key),
            None => false,
        };
    kernel.step(Step::Quote { known });
    Some(known)
}

/// Whether this host sends by such a flow, as far as policy, failsafe and flow table know: a service to a peer that
/// it allows, or what the host opened itself.
#[inline(always)]
fn sends<K: Kernel>(kernel: &K, key: &Key) -> Option<bool> {
    let image = Image::open(kernel.pages()?)?;
    let port = match key.protocol() {
        protocol::TCP => Some(PortKey::tcp(key.local_port())),
        protocol::UDP => Some(PortKey::udp(key.local_port())),
        protocol::SCTP => Some(PortKey::sctp(key.local_port())),
        protocol::ICMP if key.remote_port() == ECHO_REPLY => Some(PortKey::icmp(8)),
        protocol::ICMPV6 if key.remote_port() == ECHO_REPLY => Some(PortKey::icmpv6(128)),
        _ => None,
    };
    if let Some(port) = port {
        let service = image.service(port)?;
        if service != NO_SERVICE {
            let class = kernel.class(&image, key.version(), key.remote)?;
            if image.verdict(service, class)?.reason() == Reason::Allowed.number() {
                return Some(true);
            }
        }
    }
    Some(kernel.failsafe(key).is_some() || kernel.came_in(key, 0).is_some())
}

/// Judges a frame that goes out, and notes in the flow table what it opens. `packet` receives what was read of it.
#[inline(always)]
pub fn egress<F: Frame, K: Kernel>(frame: &F, kernel: &K, packet: &mut Packet) -> Outcome {
    let mut parsed = Parsed::new(parse(frame, packet));
    kernel.settle(&mut parsed);
    kernel.settle(packet);
    let Some(image) = kernel.pages().and_then(Image::open) else {
        return Outcome::out(Reason::NoPolicy);
    };
    let reason = match parsed.result() {
        Ok(Kind::Ip) => {
            return leave(frame, kernel, packet, &image).unwrap_or(Outcome::out(Reason::NoPolicy));
        }
        Ok(Kind::Arp) => Reason::Arp,
        Ok(Kind::LinkControl(_)) => Reason::LinkControl,
        Ok(Kind::Llc) => {
            if frame.window::<16>(0).is_some_and(|header| is_bpdu(&header)) {
                Reason::LinkControl
            } else {
                Reason::Llc
            }
        }
        Ok(Kind::Other) => Reason::EtherType,
        Err(reason) => reason,
    };
    if reason.verdict() == Verdict::Pass {
        kernel.step(Step::Essential(reason));
        return Outcome::out(reason);
    }
    let allow = !image.egress_denies();
    kernel.step(Step::Default { allow });
    Outcome::out(if allow { Reason::DefaultAllow } else { reason })
}

#[inline(always)]
fn leave<F: Frame, K: Kernel>(
    frame: &F,
    kernel: &K,
    packet: &Packet,
    image: &Image<K::Pages>,
) -> Option<Outcome> {
    if packet.fragment.is_later() {
        return Some(if image.judges_egress() {
            follow(frame, kernel, packet, true)
        } else {
            Outcome::out(Reason::DefaultAllow)
        });
    }
    if let Some(reason) = is_essential_egress(frame, kernel, packet) {
        kernel.step(Step::Essential(reason));
        if reason == Reason::DhcpClient {
            kernel.went_out(&dhcp(packet.version), Sends::Datagram);
        }
        return Some(Outcome::out(reason));
    }
    let answers = answer_key(packet);
    let service = match answers {
        Some(key) => image.service(key)?,
        None => NO_SERVICE,
    };
    let rules = image.judges_egress();
    let class = if service != NO_SERVICE || rules {
        kernel.class(image, packet.version, packet.dst)?
    } else {
        0
    };
    if let Some(key) = answers
        && service != NO_SERVICE
    {
        kernel.step(Step::Answer { key, service });
        let cell = image.verdict(service, class)?;
        if cell.reason() == Reason::Allowed.number() {
            let answer = Outcome {
                reason: Reason::Answer,
                // The compiler numbers both directions of an allow in a row.
                ending: cell.ending() + counter::ANSWER,
                service,
            };
            return Some(if rules {
                lead(kernel, packet, answer, true)
            } else {
                answer
            });
        }
    }
    let outcome = if !rules {
        kernel.step(Step::Default { allow: true });
        Outcome::out(Reason::DefaultAllow)
    } else if service == NO_SERVICE && image.default_allows() && may_answer(kernel, packet, answers) {
        Outcome::out(Reason::Answer)
    } else {
        rule(kernel, packet, image, class)?
    };
    if outcome.reason.verdict() == Verdict::Pass {
        remember(kernel, packet, service);
    }
    Some(if rules {
        lead(kernel, packet, outcome, true)
    } else {
        outcome
    })
}

/// Whether a packet answers what the default let in. TCP tells; of UDP, SCTP and protocols without ports nothing does.
#[inline(always)]
fn may_answer<K: Kernel>(kernel: &K, packet: &Packet, answers: Option<PortKey>) -> bool {
    if answers.is_none() {
        return false;
    }
    match packet.protocol {
        // What the host opened itself has a flow.
        protocol::TCP => kernel.came_in(&Key::egress(packet), 0).is_none(),
        _ => packet.is_icmp(),
    }
}

/// What a host cannot live without sending, and errors about what it received.
#[inline(always)]
fn is_essential_egress<F: Frame, K: Kernel>(frame: &F, kernel: &K, packet: &Packet) -> Option<Reason> {
    const IGMP: u8 = 2;
    if packet.fragment.is_any() {
        return None;
    }
    match packet.protocol {
        protocol::UDP => {
            // To the server that nobody knows yet. A renewal to one that is known is the policy's business; where that
            // forbids it, the client asks everybody in time (RFC 2131 section 4.4.5).
            let asks = if packet.version == 4 {
                packet.src_port == 68 && packet.dst_port == 67 && packet.dst.low == u32::MAX as u64
            } else {
                packet.src_port == 546 && packet.dst_port == 547 && packet.dst == ALL_DHCP_AGENTS
            };
            asks.then_some(Reason::DhcpClient)
        }
        IGMP if packet.version == 4 => (packet.dst.low >> 28 == 0xe).then_some(Reason::Mld),
        protocol::ICMPV6 if packet.version == 6 && matches!(packet.icmp_type, 133..=137) => {
            (packet.hop_limit == 255).then_some(Reason::NeighbourDiscovery)
        }
        protocol::ICMPV6 if packet.version == 6 && matches!(packet.icmp_type, 130..=132 | 143) => {
            (packet.hop_limit == 1 && packet.dst.high >> 56 == 0xff).then_some(Reason::Mld)
        }
        _ if packet.may_quote() && kernel.quoted(frame, packet).is_some() => Some(Reason::Related),
        _ => None,
    }
}

/// ff02::1:2 (RFC 8415 section 7.1).
const ALL_DHCP_AGENTS: Address = Address {
    high: 0xff02 << 48,
    low: 0x1_0002,
};

/// The flow of a DHCP client: whoever answers, to whatever address it offers.
#[inline(always)]
const fn dhcp(version: u8) -> Key {
    let nobody = Address { high: 0, low: 0 };
    let (client, server) = if version == 4 { (68, 67) } else { (546, 547) };
    Key::new(version, protocol::UDP, nobody, client, nobody, server)
}

/// The slot of the port table that an answer leaves from; `None` for what cannot answer.
#[inline(always)]
pub fn answer_key(packet: &Packet) -> Option<PortKey> {
    Some(match packet.protocol {
        protocol::TCP if packet.opens_tcp() => return None,
        protocol::TCP => PortKey::tcp(packet.src_port),
        protocol::UDP => PortKey::udp(packet.src_port),
        protocol::SCTP => PortKey::sctp(packet.src_port),
        // A reply belongs to the request that was admitted: echo, timestamp, address mask; the others ask.
        protocol::ICMP if packet.version == 4 => match packet.icmp_type {
            0 => PortKey::icmp(8),
            14 => PortKey::icmp(13),
            18 => PortKey::icmp(17),
            _ => return None,
        },
        protocol::ICMPV6 if packet.version == 6 => match packet.icmp_type {
            129 => PortKey::icmpv6(128),
            140 => PortKey::icmpv6(139),
            _ => return None,
        },
        number => PortKey::protocol(number),
    })
}

/// The egress rules and the default.
#[inline(always)]
fn rule<K: Kernel, P: Pages>(kernel: &K, packet: &Packet, image: &Image<P>, class: u32) -> Option<Outcome> {
    if !packet.opens_tcp()
        && let Some(entry) = kernel.failsafe(&Key::egress(packet))
    {
        kernel.step(Step::Failsafe(entry));
        return Some(Outcome::out(Reason::Failsafe));
    }
    let key = port_key(packet);
    let row = image.egress_row(key)?;
    let cell = image.verdict(row, class)?;
    kernel.step(Step::Egress { key, row });
    kernel.step(Step::Class(class));
    kernel.step(Step::Verdict {
        reason: cell.reason(),
        ending: cell.ending(),
    });
    if let Some(reason) = Reason::from_number(cell.reason()) {
        return Some(Outcome {
            reason,
            ending: cell.ending(),
            service: NO_SERVICE,
        });
    }
    let allow = !image.egress_denies();
    kernel.step(Step::Default { allow });
    Some(Outcome::out(if allow {
        Reason::DefaultAllow
    } else {
        Reason::EgressClosed
    }))
}

/// Notes what goes out in the flow table.
#[inline(always)]
fn remember<K: Kernel>(kernel: &K, packet: &Packet, service: u16) {
    // Nobody replies from a group's address.
    let to_many = if packet.version == 4 {
        packet.dst.low >> 28 >= 0xe
    } else {
        packet.dst.high >> 56 == 0xff
    };
    // What leaves from a service's port answers; only TCP tells when it does not.
    let answers = service != NO_SERVICE && packet.protocol != protocol::TCP && !packet.is_icmp();
    if to_many || answers {
        return;
    }
    if packet.protocol == protocol::UDP && kernel.gate(Bank::Udp, packet.src_port).is_shut() {
        return;
    }
    match kernel.went_out(&Key::egress(packet), flow::sends(packet)) {
        Left::Untouched => return,
        Left::Refreshed => {}
        Left::Created => kernel.tally(Tally::FlowCreated),
        Left::Displaced => {
            kernel.tally(Tally::FlowCreated);
            kernel.tally(Tally::FlowDisplaced);
        }
        Left::Lost => {
            kernel.tally(Tally::FlowLost);
            return;
        }
    }
    let bank = match packet.protocol {
        protocol::TCP => Bank::Tcp,
        protocol::UDP => Bank::Udp,
        _ => return,
    };
    let cell = gate::Cell::new(kernel.now_s());
    if kernel.gate(bank, packet.src_port) != cell {
        kernel.open_gate(bank, packet.src_port, cell);
    }
}
