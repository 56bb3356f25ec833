//! The words of a packet, read from left to right: protocol, source, destination, then what modifies them.

use super::{FLAGS, PacketError, PacketSpec};
use crate::policy::diagnostic::{did_you_mean, nearest};
use crate::policy::icmp;
use crate::simulate::Transport;
use firewall_common::packet::tcp;
use firewall_common::verdict::Direction;
use std::net::IpAddr;

/// Source port when none is given: the first of the ephemeral range (RFC 6335).
const EPHEMERAL: u16 = 49_152;

const PROTOCOLS: [&str; 7] = ["tcp", "udp", "sctp", "icmp", "icmpv4", "icmpv6", "proto"];
const EXAMPLES: &str = "for example: tcp 10.20.3.4 -> 8443, udp 10.20.3.4:5353 -> 192.0.2.1:53, icmp echo from 2001:db8::7, proto 47 from 10.20.3.4";

fn error<T>(message: impl Into<String>) -> Result<T, PacketError> {
    Err(PacketError {
        message: message.into(),
    })
}

/// Reads a packet: `[in|out] [PROTOCOL] [from] SOURCE [->|to DESTINATION] [flags LIST] [vlan ID[,ID]] [code N] [ttl N]`.
/// Of what leaves, the source may be missing.
///
/// # Errors
/// What is wrong or missing, and how it is written.
pub fn parse(text: &str) -> Result<PacketSpec, PacketError> {
    let spaced = text.replace("->", " to ").replace('→', " to ").to_lowercase();
    let mut words = spaced.split_whitespace().peekable();
    let direction = match words.next_if(|word| ["in", "out", "ingress", "egress"].contains(word)) {
        Some("out" | "egress") => Direction::Egress,
        _ => Direction::Ingress,
    };
    let Some(&first) = words.peek() else {
        return error(format!("describe a packet, {EXAMPLES}"));
    };
    let protocol = match Protocol::parse(first)? {
        Some(protocol) => {
            words.next();
            protocol
        }
        // Two ends without a protocol.
        None => Protocol::Tcp(None),
    };
    let protocol = protocol.completed(&mut words)?;

    let (mut source, mut from) = (None, false);
    let mut destination = None;
    let mut modifiers = Modifiers::default();
    while let Some(word) = words.next() {
        let mut argument = |what: &str| match words.next() {
            Some(argument) => Ok(argument),
            None => error(format!("{what} must follow \"{word}\"")),
        };
        match word {
            "from" => {
                from = true;
                set(&mut source, End::parse(argument("an address")?)?, "source")?;
            }
            "to" => set(
                &mut destination,
                End::parse(argument("a port or an address")?)?,
                "destination",
            )?,
            "flags" => modifiers.flags = Some(parse_flags(argument("flags such as syn,ack")?)?),
            "vlan" => modifiers.vlan = parse_vlan(argument("a tag such as 10 or 10,20")?)?,
            "code" => {
                let code = argument("a number")?;
                let code = code
                    .parse()
                    .or_else(|_| error(format!("\"{code}\" is no ICMP code (0 to 255)")))?;
                modifiers.code = Some(code);
            }
            "ttl" | "hoplimit" => {
                let ttl = argument("a number such as 255")?;
                let ttl = ttl
                    .parse()
                    .or_else(|_| error(format!("\"{ttl}\" is no TTL or hop limit (0 to 255)")))?;
                modifiers.ttl = Some(ttl);
            }
            _ if source.is_none() => source = Some(End::parse(word)?),
            _ if destination.is_none() => destination = Some(End::parse(word)?),
            _ => {
                let hint = did_you_mean(word, "", ["from", "to", "flags", "vlan", "code", "ttl"]);
                let hint =
                    hint.unwrap_or_else(|| "from, to, flags, vlan, code and ttl are understood".to_owned());
                return error(format!("\"{word}\" is left over; {hint}"));
            }
        }
    }
    // One end by itself is where a packet goes that leaves.
    if direction == Direction::Egress && destination.is_none() && !from {
        destination = source.take();
    }
    assemble(direction, &protocol, source, destination, modifiers)
}

fn set(slot: &mut Option<End>, end: End, what: &str) -> Result<(), PacketError> {
    match slot.replace(end) {
        None => Ok(()),
        Some(_) => error(format!("the {what} is given twice")),
    }
}

#[derive(Default)]
struct Modifiers {
    flags: Option<u8>,
    code: Option<u8>,
    vlan: Vec<u16>,
    ttl: Option<u8>,
}

/// The protocol, with what may be written at once with it: `tcp/8443`, `icmp/echo`.
enum Protocol {
    Tcp(Option<u16>),
    Udp(Option<u16>),
    Sctp(Option<u16>),
    /// The word that was typed, and the type if there was one.
    Icmp(String, Option<(IcmpType, Option<u8>)>),
    Other(Option<u8>),
}

#[derive(Clone, Copy)]
enum IcmpType {
    /// By name: the types in ICMP and in ICMPv6.
    Named(Option<u8>, Option<u8>),
    Number(u8),
}

impl Protocol {
    /// `None` if the word is an end, not a protocol.
    fn parse(word: &str) -> Result<Option<Protocol>, PacketError> {
        let (name, detail) = match word.split_once('/') {
            Some((name, detail)) => (name, Some(detail)),
            None => (word, None),
        };
        let port = || detail.map(parse_port).transpose();
        Ok(Some(match name {
            "tcp" => Protocol::Tcp(port()?),
            "udp" => Protocol::Udp(port()?),
            "sctp" => Protocol::Sctp(port()?),
            "icmp" | "icmpv4" | "icmpv6" | "icmp6" | "ping" | "ping6" => {
                let family = if name.ends_with('6') { "icmpv6" } else { name };
                Protocol::Icmp(
                    family.to_owned(),
                    detail.map(parse_icmp_type).transpose()?.map(|kind| (kind, None)),
                )
            }
            "proto" | "protocol" => Protocol::Other(detail.map(parse_number).transpose()?),
            _ if word == "from" || word.starts_with(|c: char| c.is_ascii_digit() || c == '[' || c == ':') => {
                return Ok(None);
            }
            // An IPv6 address may begin with a letter.
            _ if word.contains(':') => return Ok(None),
            _ => {
                let hint = nearest(name, PROTOCOLS).map(|near| format!("; did you mean \"{near}\"?"));
                let hint = hint.unwrap_or_else(|| {
                    format!(" (tcp, udp, sctp, icmp, icmpv6 or proto NUMBER; {EXAMPLES})")
                });
                return error(format!("\"{name}\" is no protocol{hint}"));
            }
        }))
    }

    /// Takes the words that belong to the protocol: the type of ICMP, the number of `proto`.
    fn completed<'a>(
        self,
        words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
    ) -> Result<Protocol, PacketError> {
        match self {
            Protocol::Icmp(name, None) => {
                let is_end = |word: &str| {
                    word == "from" || word == "to" || End::parse(word).is_ok_and(|end| end.address.is_some())
                };
                let Some(word) = words.next_if(|word| !is_end(word)) else {
                    return Ok(Protocol::Icmp(name, None));
                };
                let (kind, code) = match word.split_once('/') {
                    None => (word, None),
                    Some((kind, code)) => {
                        let number = code
                            .parse()
                            .or_else(|_| error(format!("\"{code}\" is no ICMP code (0 to 255)")))?;
                        (kind, Some(number))
                    }
                };
                Ok(Protocol::Icmp(name, Some((parse_icmp_type(kind)?, code))))
            }
            Protocol::Other(None) => match words.next() {
                Some(word) => Ok(Protocol::Other(Some(parse_number(word)?))),
                None => error("which protocol? write its number, for example proto 47 from 10.20.3.4"),
            },
            complete => Ok(complete),
        }
    }
}

fn parse_port(text: &str) -> Result<u16, PacketError> {
    if text.contains('-') {
        return error(format!("\"{text}\" is a range; a packet goes to one port"));
    }
    text.parse()
        .or_else(|_| error(format!("\"{text}\" is no port (0 to 65535)")))
}

fn parse_number(text: &str) -> Result<u8, PacketError> {
    text.parse().or_else(|_| {
        error(format!(
            "\"{text}\" is no protocol number (0 to 255), such as 47 for GRE"
        ))
    })
}

fn parse_icmp_type(text: &str) -> Result<IcmpType, PacketError> {
    if let Ok(number) = text.parse() {
        return Ok(IcmpType::Number(number));
    }
    let name = match text {
        "ping" | "echo-request" | "request" => "echo",
        "reply" | "pong" => "echo-reply",
        "unreachable" => "dest-unreachable",
        other => other,
    };
    match icmp::by_name(name) {
        Some((v4, v6)) => Ok(IcmpType::Named(v4, v6)),
        None => {
            let hint = did_you_mean(text, "", icmp::TYPES.iter().map(|row| row.0)).unwrap_or_else(|| {
                "a number, echo, echo-reply, dest-unreachable, packet-too-big and so on".to_owned()
            });
            error(format!("\"{text}\" is no ICMP type; {hint}"))
        }
    }
}

fn parse_flags(text: &str) -> Result<u8, PacketError> {
    if text == "none" {
        return Ok(0);
    }
    let mut flags = 0;
    for word in text.split(['|', ',', '+', '/']).filter(|word| !word.is_empty()) {
        match FLAGS.iter().find(|(name, _)| *name == word) {
            Some((_, bit)) => flags |= bit,
            None => {
                let hint = did_you_mean(word, "", FLAGS.map(|(name, _)| name));
                let hint =
                    hint.unwrap_or_else(|| "syn, ack, fin, rst, psh, urg, ece, cwr or none".to_owned());
                return error(format!("\"{word}\" is no TCP flag; {hint}"));
            }
        }
    }
    Ok(flags)
}

fn parse_vlan(text: &str) -> Result<Vec<u16>, PacketError> {
    let tags = text.split(',').map(|tag| match tag.parse::<u16>() {
        Ok(id) if id < 4095 => Ok(id),
        _ => error(format!("\"{tag}\" is no VLAN (0 to 4094)")),
    });
    let tags: Vec<u16> = tags.collect::<Result<_, _>>()?;
    if tags.len() > 2 {
        return error("more than two VLAN tags always drop; write two at most");
    }
    Ok(tags)
}

/// One end of a packet as written: address, port, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    address: Option<IpAddr>,
    port: Option<u16>,
}

impl End {
    fn parse(text: &str) -> Result<End, PacketError> {
        if let Ok(address) = text.parse() {
            return Ok(End {
                address: Some(address),
                port: None,
            });
        }
        let bare = text.strip_prefix(':').unwrap_or(text);
        if !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(End {
                address: None,
                port: Some(parse_port(bare)?),
            });
        }
        let (address, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, "")) => (address, None),
            Some((address, rest)) => match rest.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => {
                    return error(format!(
                        "\"{text}\" is no address and port; write [2001:db8::1]:8443"
                    ));
                }
            },
            None => match text.rsplit_once(':') {
                Some((address, port)) if !address.contains(':') => (address, Some(port)),
                _ => (text, None),
            },
        };
        if address.contains('/') {
            return error(format!(
                "\"{address}\" is a prefix; a packet has one address, so name one of it"
            ));
        }
        let Ok(parsed) = address.parse::<IpAddr>() else {
            let name = address.bytes().any(|byte| byte.is_ascii_alphabetic()) && !address.contains(':');
            let hint = if name {
                "names are not looked up"
            } else {
                "for example 10.20.3.4, 10.20.3.4:5555 or [2001:db8::1]:5555"
            };
            return error(format!("\"{address}\" is no address; {hint}"));
        };
        Ok(End {
            address: Some(parsed),
            port: port.map(parse_port).transpose()?,
        })
    }
}

fn assemble(
    direction: Direction,
    protocol: &Protocol,
    source: Option<End>,
    destination: Option<End>,
    modifiers: Modifiers,
) -> Result<PacketSpec, PacketError> {
    let address = |end: Option<End>| end.and_then(|end| end.address);
    let (peer, own) = match direction {
        Direction::Ingress => (address(source), address(destination)),
        Direction::Egress => (address(destination), address(source)),
    };
    let Some(peer) = peer else {
        return error(match direction {
            Direction::Ingress => format!("who sends it? a source address is missing, {EXAMPLES}"),
            Direction::Egress => {
                "where does it go? a destination is missing, for example: out tcp -> 198.51.100.7:443"
                    .to_owned()
            }
        });
    };
    if own.is_some_and(|own| own.is_ipv4() != peer.is_ipv4()) {
        return error("source and destination are of two families; a packet has one, IPv4 or IPv6");
    }
    let src_port = source.and_then(|end| end.port);
    let ports = |name: &str, at_once: Option<u16>| {
        let dst_port = match (at_once, destination.and_then(|end| end.port)) {
            (Some(_), Some(_)) => return error("the destination port is given twice"),
            (None, None) => {
                return error(match (direction, peer) {
                    (Direction::Ingress, _) => format!("to which port? write {name} {peer} -> 8443"),
                    (Direction::Egress, IpAddr::V4(_)) => {
                        format!("to which port? write out {name} -> {peer}:443")
                    }
                    (Direction::Egress, IpAddr::V6(_)) => {
                        format!("to which port? write out {name} -> [{peer}]:443")
                    }
                });
            }
            (Some(port), None) | (None, Some(port)) => port,
        };
        Ok((src_port.unwrap_or(EPHEMERAL), dst_port))
    };
    let transport = match protocol {
        Protocol::Tcp(port) => {
            let (src_port, dst_port) = ports("tcp", *port)?;
            Transport::Tcp {
                src_port,
                dst_port,
                flags: modifiers.flags.unwrap_or(tcp::SYN),
            }
        }
        Protocol::Udp(port) => {
            let (src_port, dst_port) = ports("udp", *port)?;
            Transport::Udp { src_port, dst_port }
        }
        Protocol::Sctp(port) => {
            let (src_port, dst_port) = ports("sctp", *port)?;
            Transport::Sctp { src_port, dst_port }
        }
        Protocol::Icmp(name, kind) => {
            let (kind, code) = kind.unwrap_or((IcmpType::Named(Some(8), Some(128)), None));
            Transport::Icmp {
                icmp_type: icmp_type(name, kind, peer)?,
                code: code.or(modifiers.code).unwrap_or(0),
                id: 1,
            }
        }
        Protocol::Other(number) => match number.unwrap_or_default() {
            6 => return error("protocol 6 is tcp: write tcp"),
            17 => return error("protocol 17 is udp: write udp"),
            132 => return error("protocol 132 is sctp: write sctp"),
            1 if peer.is_ipv4() => return error("protocol 1 is icmp: write icmp"),
            58 if peer.is_ipv6() => return error("protocol 58 is icmpv6: write icmpv6"),
            number => Transport::Raw(number),
        },
    };
    let has_ports = !matches!(transport, Transport::Icmp { .. } | Transport::Raw(_));
    if !has_ports && (src_port.is_some() || destination.is_some_and(|end| end.port.is_some())) {
        return error("this protocol has no ports");
    }
    if modifiers.flags.is_some() && !matches!(transport, Transport::Tcp { .. }) {
        return error("only tcp has flags");
    }
    if modifiers.code.is_some() && !matches!(transport, Transport::Icmp { .. }) {
        return error("only icmp has a code");
    }
    Ok(PacketSpec {
        direction,
        peer,
        own,
        transport,
        vlan: modifiers.vlan,
        ttl: modifiers.ttl,
    })
}

fn icmp_type(name: &str, kind: IcmpType, peer: IpAddr) -> Result<u8, PacketError> {
    match (name, peer.is_ipv4()) {
        ("icmpv6", true) => return error(format!("{peer} does not speak icmpv6; write icmp")),
        ("icmpv4", false) => return error(format!("{peer} does not speak icmpv4; write icmp or icmpv6")),
        _ => {}
    }
    let (number, family) = match (kind, peer.is_ipv4()) {
        (IcmpType::Number(number), _) => (Some(number), ""),
        (IcmpType::Named(v4, _), true) => (v4, "ICMP"),
        (IcmpType::Named(_, v6), false) => (v6, "ICMPv6"),
    };
    number.map_or_else(
        || {
            error(format!(
                "{family} has no such message; the family is that of {peer}"
            ))
        },
        Ok,
    )
}
