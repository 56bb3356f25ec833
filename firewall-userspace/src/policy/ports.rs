//! Ports as people write them, and back: `tcp/8443`, `udp/30000-30010`, `icmp/echo`, `proto/47`.

use super::diagnostic::did_you_mean;
use super::icmp;
use firewall_common::image::PortKey;
use std::ops::Range;

/// What is wrong with a port, and with which bytes of its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortError {
    pub message: String,
    pub at: Range<usize>,
    pub hint: Option<String>,
}

/// What one text stands for: inclusive ranges, and what is worth knowing about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    pub ranges: Vec<(PortKey, PortKey)>,
    pub note: Option<&'static str>,
}

const FORMS: &str =
    "\"tcp/8443\", \"udp/30000-30010\", \"sctp/3868\", \"icmp/echo\", \"icmpv6/128\" or \"proto/47\"";
const PROTOCOLS: [&str; 7] = ["tcp", "udp", "sctp", "icmp", "icmpv4", "icmpv6", "proto"];

pub fn parse(text: &str) -> Result<Ports, PortError> {
    if text.contains(char::is_whitespace) {
        let bare: String = text.split_whitespace().collect();
        let hint = parse(&bare).is_ok().then(|| format!("write \"{bare}\""));
        return Err(error(
            0..text.len(),
            format!("\"{text}\" has a space in it"),
            hint,
        ));
    }
    let Some((protocol, rest)) = text.split_once('/') else {
        let missing = match text {
            "tcp" | "udp" | "sctp" => Some(("port", format!("write \"{text}/8443\" or \"{text}/1-65535\""))),
            "icmp" | "icmpv4" | "icmpv6" => Some(("type", format!("write \"{text}/echo\""))),
            "proto" => Some(("number", "write \"proto/47\"".into())),
            _ => None,
        };
        if let Some((what, hint)) = missing {
            return Err(error(
                0..text.len(),
                format!("\"{text}\" has no {what}"),
                Some(hint),
            ));
        }
        let hint = match text.parse::<u16>() {
            Ok(_) => format!("write \"tcp/{text}\" or \"udp/{text}\""),
            Err(_) => format!("write {FORMS}"),
        };
        return Err(error(
            0..text.len(),
            format!("\"{text}\" has no protocol"),
            Some(hint),
        ));
    };
    let at = protocol.len() + 1;
    let ranges = match protocol {
        "tcp" => range(rest, at, PortKey::tcp)?,
        "udp" => range(rest, at, PortKey::udp)?,
        "sctp" => range(rest, at, PortKey::sctp)?,
        "icmp" | "icmpv4" | "icmpv6" => icmp_types(protocol, rest, at)?,
        "proto" => return protocol_number(rest, at),
        _ => {
            let hint = did_you_mean(protocol, "", PROTOCOLS).unwrap_or_else(|| format!("write {FORMS}"));
            let message =
                format!("unknown protocol \"{protocol}\" (tcp, udp, sctp, icmp, icmpv4, icmpv6 or proto)");
            return Err(error(0..protocol.len(), message, Some(hint)));
        }
    };
    Ok(Ports { ranges, note: None })
}

/// The number of a TCP port.
pub fn tcp(key: PortKey) -> Option<u16> {
    u16::try_from(key.0).ok()
}

/// The number of a UDP port.
pub fn udp(key: PortKey) -> Option<u16> {
    let number = key.0.checked_sub(PortKey::udp(0).0)?;
    u16::try_from(number).ok()
}

/// `PORT` or `PORT-PORT`; `at` is where it starts.
fn range(text: &str, at: usize, key: fn(u16) -> PortKey) -> Result<Vec<(PortKey, PortKey)>, PortError> {
    let (first, last) = match text.split_once('-') {
        None => {
            let port = port(text, at)?;
            (port, port)
        }
        Some((first, last)) => (port(first, at)?, port(last, at + first.len() + 1)?),
    };
    if first > last {
        let hint = Some(format!("write \"{last}-{first}\""));
        return Err(error(
            at..at + text.len(),
            format!("the range {text} is reversed"),
            hint,
        ));
    }
    Ok(vec![(key(first), key(last))])
}

fn port(text: &str, at: usize) -> Result<u16, PortError> {
    let at = at..at + text.len();
    if text.is_empty() {
        return Err(error(at, "a port is missing here (1 to 65535)", None));
    }
    match number(text) {
        Some(0) => Err(error(at, "port 0 cannot be opened (1 to 65535)", None)),
        Some(port @ 1..=65535) => Ok(port as u16),
        Some(_) => Err(error(
            at,
            format!("port {text} is out of range (1 to 65535)"),
            None,
        )),
        None => {
            let hint = matches!(text, "any" | "all" | "*").then(|| "every port is written 1-65535".into());
            Err(error(at, format!("\"{text}\" is not a port (1 to 65535)"), hint))
        }
    }
}

/// Plain decimal: no sign, no leading zero. A number too large for `u32` reads as its maximum.
fn number(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (plain && (text == "0" || !text.starts_with('0'))).then(|| text.parse().unwrap_or(u32::MAX))
}

fn icmp_types(protocol: &str, text: &str, at: usize) -> Result<Vec<(PortKey, PortKey)>, PortError> {
    let at = at..at + text.len();
    let family = if protocol == "icmpv6" { "ICMPv6" } else { "ICMPv4" };
    if let Some(number) = number(text) {
        let Ok(number) = u8::try_from(number) else {
            return Err(error(
                at,
                format!("{family} type {text} is out of range (0 to 255)"),
                None,
            ));
        };
        let key = if protocol == "icmpv6" {
            PortKey::icmpv6(number)
        } else {
            PortKey::icmp(number)
        };
        return Ok(vec![(key, key)]);
    }
    let Some((v4, v6)) = icmp::by_name(text) else {
        let hint = match text {
            "ping" | "echo-request" => Some("did you mean \"echo\"?".into()),
            _ => did_you_mean(text, "", icmp::TYPES.iter().map(|row| row.0)),
        };
        let names: Vec<&str> = icmp::TYPES.iter().map(|row| row.0).collect();
        let hint = hint.unwrap_or_else(|| format!("a type number is accepted, or {}", names.join(", ")));
        return Err(error(at, format!("unknown ICMP type \"{text}\""), Some(hint)));
    };
    let v4 = v4.filter(|_| protocol != "icmpv6").map(PortKey::icmp);
    let v6 = v6.filter(|_| protocol != "icmpv4").map(PortKey::icmpv6);
    let keys: Vec<_> = [v4, v6].into_iter().flatten().map(|key| (key, key)).collect();
    if keys.is_empty() {
        let hint = Some(format!("write \"icmp/{text}\""));
        return Err(error(at, format!("{family} has no message \"{text}\""), hint));
    }
    Ok(keys)
}

fn protocol_number(text: &str, start: usize) -> Result<Ports, PortError> {
    let at = start..start + text.len();
    let number = match number(text) {
        Some(number @ 0..=255) => number as u8,
        Some(_) => {
            return Err(error(
                at,
                format!("protocol {text} is out of range (1 to 255)"),
                None,
            ));
        }
        None => {
            let hint = Some("write the number of the IP protocol, for example \"proto/47\" for GRE".into());
            return Err(error(
                at,
                format!("\"{text}\" is not the number of a protocol (1 to 255)"),
                hint,
            ));
        }
    };
    let instead = match number {
        1 => Some("\"icmp/echo\""),
        6 => Some("\"tcp/PORT\""),
        17 => Some("\"udp/PORT\""),
        58 => Some("\"icmpv6/echo\""),
        132 => Some("\"sctp/PORT\""),
        _ => None,
    };
    if let Some(instead) = instead {
        let message = format!("protocol {number} is judged by its ports or types");
        return Err(error(0..at.end, message, Some(format!("write {instead}"))));
    }
    if matches!(number, 0 | 43 | 44 | 60) {
        let message = format!("{number} is an IPv6 extension header, which is walked, not judged");
        let hint = "name the protocol that follows it".to_string();
        return Err(error(0..at.end, message, Some(hint)));
    }
    let note = (number == 51)
        .then_some("proto/51 is IPv4 AH only: in IPv6, AH is walked and what follows it is judged");
    Ok(Ports {
        ranges: vec![(PortKey::protocol(number), PortKey::protocol(number))],
        note,
    })
}

fn error(at: Range<usize>, message: impl Into<String>, hint: Option<String>) -> PortError {
    PortError {
        message: message.into(),
        at,
        hint,
    }
}

/// The texts of sorted, disjoint ranges, as [`parse`] reads them.
pub fn show(ranges: &[(PortKey, PortKey)]) -> Vec<String> {
    let mut texts = Vec::new();
    for &(first, last) in ranges {
        match first.0 >> 16 {
            kind @ 0..=2 => {
                let protocol = ["tcp", "udp", "sctp"][kind as usize];
                let (from, to) = (first.0 & 0xffff, last.0 & 0xffff);
                texts.push(if from == to {
                    format!("{protocol}/{from}")
                } else {
                    format!("{protocol}/{from}-{to}")
                });
            }
            _ => texts.extend(
                (first.0..=last.0)
                    .map(|key| show_single(key, ranges))
                    .filter(|text| !text.is_empty()),
            ),
        }
    }
    texts
}

/// An ICMP type or a protocol. Empty for the ICMPv6 half of a name that stands for both families already.
fn show_single(key: u32, ranges: &[(PortKey, PortKey)]) -> String {
    let number = key as u8;
    let holds = |key: PortKey| ranges.iter().any(|&(first, last)| first <= key && key <= last);
    match key >> 8 & 0xff {
        0 => match icmp::v4_name(number).map(|name| (name, icmp::by_name(name))) {
            Some((name, Some((_, None)))) => format!("icmp/{name}"),
            Some((name, Some((_, Some(v6))))) if holds(PortKey::icmpv6(v6)) => format!("icmp/{name}"),
            Some((name, _)) => format!("icmpv4/{name}"),
            None => format!("icmpv4/{number}"),
        },
        1 => match icmp::v6_name(number).map(|name| (name, icmp::by_name(name))) {
            Some((name, Some((None, _)))) => format!("icmp/{name}"),
            Some((_, Some((Some(v4), _)))) if holds(PortKey::icmp(v4)) => String::new(),
            Some((name, _)) => format!("icmpv6/{name}"),
            None => format!("icmpv6/{number}"),
        },
        _ => format!("proto/{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str) -> (PortKey, PortKey) {
        let ports = parse(text).unwrap();
        assert_eq!(ports.ranges.len(), 1, "{text}");
        ports.ranges[0]
    }

    fn refused(text: &str) -> String {
        let error = parse(text).unwrap_err();
        let pointed = text.get(error.at.clone()).unwrap();
        format!("{} <{pointed}> {}", error.message, error.hint.unwrap_or_default())
            .trim_end()
            .into()
    }

    #[test]
    fn reads_every_form() {
        assert_eq!(one("tcp/8443"), (PortKey::tcp(8443), PortKey::tcp(8443)));
        assert_eq!(one("udp/30000-30010"), (PortKey::udp(30000), PortKey::udp(30010)));
        assert_eq!(one("sctp/1-65535"), (PortKey::sctp(1), PortKey::sctp(65535)));
        assert_eq!(one("icmp/13").0, PortKey::icmp(13));
        assert_eq!(one("icmp/packet-too-big").0, PortKey::icmpv6(2));
        assert_eq!(one("icmpv4/echo").0, PortKey::icmp(8));
        assert_eq!(one("icmpv6/echo").0, PortKey::icmpv6(128));
        assert_eq!(one("icmpv6/128").0, PortKey::icmpv6(128));
        assert_eq!(one("proto/47").0, PortKey::protocol(47));
        assert_eq!(one("proto/59").0, PortKey::protocol(59));
        assert!(parse("proto/51").unwrap().note.is_some());
        let echo = parse("icmp/echo").unwrap().ranges;
        assert_eq!(
            echo.iter().map(|range| range.0).collect::<Vec<_>>(),
            [PortKey::icmp(8), PortKey::icmpv6(128)]
        );
    }

    #[test]
    fn refuses_with_a_pointer_and_a_hint() {
        assert_eq!(
            refused("8443"),
            "\"8443\" has no protocol <8443> write \"tcp/8443\" or \"udp/8443\""
        );
        assert_eq!(
            refused("tpc/1"),
            "unknown protocol \"tpc\" (tcp, udp, sctp, icmp, icmpv4, icmpv6 or proto) <tpc> did you mean \"tcp\"?"
        );
        assert_eq!(refused("tcp/0"), "port 0 cannot be opened (1 to 65535) <0>");
        assert_eq!(
            refused("tcp/65536"),
            "port 65536 is out of range (1 to 65535) <65536>"
        );
        assert_eq!(
            refused("tcp/99999999999"),
            "port 99999999999 is out of range (1 to 65535) <99999999999>"
        );
        assert_eq!(
            refused("tcp/20-10"),
            "the range 20-10 is reversed <20-10> write \"10-20\""
        );
        assert_eq!(refused("tcp/"), "a port is missing here (1 to 65535) <>");
        assert_eq!(refused("tcp/http"), "\"http\" is not a port (1 to 65535) <http>");
        assert_eq!(
            refused("tcp/*"),
            "\"*\" is not a port (1 to 65535) <*> every port is written 1-65535"
        );
        assert_eq!(refused("tcp/1-2-3"), "\"2-3\" is not a port (1 to 65535) <2-3>");
        assert_eq!(
            refused("icmp/ping"),
            "unknown ICMP type \"ping\" <ping> did you mean \"echo\"?"
        );
        assert_eq!(
            refused("icmp/256"),
            "ICMPv4 type 256 is out of range (0 to 255) <256>"
        );
        assert_eq!(
            refused("icmpv4/packet-too-big"),
            "ICMPv4 has no message \"packet-too-big\" <packet-too-big> write \"icmp/packet-too-big\""
        );
        assert_eq!(
            refused("proto/6"),
            "protocol 6 is judged by its ports or types <proto/6> write \"tcp/PORT\""
        );
        for header in [0, 43, 44, 60] {
            assert!(refused(&format!("proto/{header}")).contains("is an IPv6 extension header"));
        }
        assert_eq!(
            refused("proto/256"),
            "protocol 256 is out of range (1 to 255) <256>"
        );
        assert!(refused("proto/gre").starts_with("\"gre\" is not the number of a protocol"));
    }

    #[test]
    fn every_icmp_name_is_shown_as_it_is_written() {
        for (name, _, _) in icmp::TYPES {
            let text = format!("icmp/{name}");
            let mut ranges = parse(&text).unwrap().ranges;
            ranges.sort();
            assert_eq!(show(&ranges), [text]);
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(first in 1u16.., more in 0u16..100, kind in 0usize..3, icmp_type: u8) {
            let last = first.saturating_add(more);
            let key = [PortKey::tcp, PortKey::udp, PortKey::sctp][kind];
            let ranges = [(key(first), key(last)), (PortKey::icmpv6(icmp_type), PortKey::icmpv6(icmp_type))];
            let read: Vec<_> = show(&ranges).iter().flat_map(|text| parse(text).unwrap().ranges).collect();
            prop_assert_eq!(read, ranges);
        }

        #[test]
        fn no_text_panics(text in "(tcp|icmp|proto|x)?/?[0-9a-z/-]{0,12}") {
            if let Err(error) = parse(&text) {
                prop_assert!(text.get(error.at).is_some());
            }
        }
    }
}
