//! One prefix as people write it: an address, or an address and a length.
//!
//! Leaves to its callers what a host bit means to them; refuses what would hide a mistake: everybody written as
//! a prefix, IPv4 inside IPv6, netmasks, host names.

use ipnetwork::{IpNetwork, Ipv4Network};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A prefix whose host bits are zero, and whether they were written so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub network: IpNetwork,
    pub host_bits: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    #[error("a prefix is missing here")]
    Empty,
    #[error("\"{0}\" means everybody, which is written \"any\"")]
    Everybody(String),
    #[error("\"{0}\" is not an address or a prefix")]
    Address(String),
    #[error("\"{text}\" has a prefix length of {length}, but an {family} address has {bits} bits")]
    Length {
        text: String,
        length: String,
        family: &'static str,
        bits: u8,
    },
    #[error("\"{0}\" has no number after the slash")]
    NoLength(String),
    #[error("\"{text}\" has a netmask")]
    Netmask { text: String, meant: Option<String> },
    #[error("\"{text}\" is an IPv4 prefix inside IPv6; packets never come from such an address")]
    Mapped { text: String, meant: String },
    #[error("\"{0}\" has a zone; a prefix holds on every interface")]
    Zone(String),
    #[error("\"{0}\" looks like a host name, and names are not resolved")]
    HostName(String),
}

impl PrefixError {
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            PrefixError::Empty | PrefixError::Address(_) => {
                "write an address such as \"198.51.100.7\" or a prefix such as \"2001:db8:10::/48\"".into()
            }
            PrefixError::Everybody(_) => "write \"any\"".into(),
            PrefixError::Length { bits, .. } => format!("a length of 1 to {bits} is accepted"),
            PrefixError::NoLength(text) => {
                format!(
                    "write \"{}\" for the host, or a length after the slash",
                    text.trim_end_matches('/')
                )
            }
            PrefixError::Netmask {
                meant: Some(meant), ..
            } => format!("write \"{meant}\""),
            PrefixError::Netmask { meant: None, .. } => "write a length after the slash, such as /24".into(),
            PrefixError::Mapped { meant, .. } => format!("write \"{meant}\""),
            PrefixError::Zone(text) => {
                format!("write \"{}\"", text.split('%').next().unwrap_or_default())
            }
            PrefixError::HostName(_) => "write its addresses, or a group of them".into(),
        })
    }
}

/// Parses `198.51.100.7`, `10.20.0.0/16`, `2001:db8::/32`.
pub fn parse(text: &str) -> Result<Parsed, PrefixError> {
    if text.is_empty() {
        return Err(PrefixError::Empty);
    }
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| bad_address(text, address))?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => bits,
        Some(length) => parse_length(text, &address, length, bits)?,
    };
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
        && length >= 96
    {
        let meant = match length - 96 {
            0 => "any".into(),
            length => show(Ipv4Network::new(v4, length).map_or(IpAddr::V4(v4).into(), IpNetwork::V4)),
        };
        return Err(PrefixError::Mapped {
            text: text.into(),
            meant,
        });
    }
    let Ok(written) = IpNetwork::new(address, length) else {
        return Err(PrefixError::Address(text.into()));
    };
    if length == 0 {
        return Err(PrefixError::Everybody(text.into()));
    }
    let Ok(network) = IpNetwork::new(written.network(), length) else {
        return Err(PrefixError::Address(text.into()));
    };
    Ok(Parsed {
        network,
        host_bits: written.ip() != network.ip(),
    })
}

fn parse_length(text: &str, address: &IpAddr, length: &str, bits: u8) -> Result<u8, PrefixError> {
    if length.is_empty() {
        return Err(PrefixError::NoLength(text.into()));
    }
    if length.bytes().all(|byte| byte.is_ascii_digit()) && (length == "0" || !length.starts_with('0')) {
        return match length.parse::<u8>() {
            Ok(length) if length <= bits => Ok(length),
            _ => Err(PrefixError::Length {
                text: text.into(),
                length: length.into(),
                family: if bits == 32 { "IPv4" } else { "IPv6" },
                bits,
            }),
        };
    }
    let (IpAddr::V4(_), Ok(_)) = (address, length.parse::<Ipv4Addr>()) else {
        return Err(PrefixError::Address(text.into()));
    };
    let meant = text
        .parse::<Ipv4Network>()
        .ok()
        .filter(|network| network.prefix() > 0);
    let meant = meant.map(|network| format!("{}/{}", network.network(), network.prefix()));
    Err(PrefixError::Netmask {
        text: text.into(),
        meant,
    })
}

fn bad_address(text: &str, address: &str) -> PrefixError {
    if matches!(
        text,
        "*" | "all" | "everyone" | "everybody" | "anyone" | "ANY" | "Any" | "world"
    ) {
        return PrefixError::Everybody(text.into());
    }
    if let Some((before, _)) = address.split_once('%')
        && before.parse::<Ipv6Addr>().is_ok()
    {
        return PrefixError::Zone(text.into());
    }
    let last = address.rsplit('.').next().unwrap_or_default();
    if address.contains('.') && !address.contains(':') && last.bytes().any(|byte| byte.is_ascii_alphabetic())
    {
        return PrefixError::HostName(text.into());
    }
    PrefixError::Address(text.into())
}

/// As people write it: a host without its length.
pub fn show(network: IpNetwork) -> String {
    let host = if network.is_ipv4() { 32 } else { 128 };
    if network.prefix() == host {
        network.ip().to_string()
    } else {
        network.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        let error = parse(text).unwrap_err();
        format!("{error} [{}]", error.hint().unwrap())
    }

    #[test]
    fn reads_hosts_and_prefixes_of_both_families() {
        for text in [
            "198.51.100.7",
            "10.20.0.0/16",
            "2001:db8::/32",
            "2001:db8::7",
            "128.0.0.0/1",
            "8000::/1",
        ] {
            let parsed = parse(text).unwrap();
            assert_eq!((show(parsed.network).as_str(), parsed.host_bits), (text, false));
        }
        assert_eq!(show(parse("198.51.100.7/32").unwrap().network), "198.51.100.7");
        assert_eq!(show(parse("2001:db8:0:0::7/128").unwrap().network), "2001:db8::7");
    }

    #[test]
    fn clears_host_bits_and_says_so() {
        let parsed = parse("10.1.2.3/8").unwrap();
        assert_eq!(
            (show(parsed.network).as_str(), parsed.host_bits),
            ("10.0.0.0/8", true)
        );
        let parsed = parse("2001:db8::1/64").unwrap();
        assert_eq!(
            (show(parsed.network).as_str(), parsed.host_bits),
            ("2001:db8::/64", true)
        );
    }

    #[test]
    fn refuses_with_a_sentence_that_teaches() {
        for everybody in ["0.0.0.0/0", "::/0", "*", "1.2.3.4/0"] {
            assert_eq!(
                error(everybody),
                format!("\"{everybody}\" means everybody, which is written \"any\" [write \"any\"]")
            );
        }
        assert!(error("::ffff:192.0.2.1").ends_with("[write \"192.0.2.1\"]"));
        assert!(error("::ffff:192.0.2.0/120").ends_with("[write \"192.0.2.0/24\"]"));
        assert!(error("10.0.0.0/255.255.0.0").ends_with("[write \"10.0.0.0/16\"]"));
        assert!(error("10.0.0.0/33").contains("length of 33, but an IPv4 address has 32 bits"));
        assert!(error("2001:db8::/129").contains("length of 129, but an IPv6 address has 128 bits"));
        assert!(error("10.0.0.0/").contains("no number after the slash"));
        assert!(error("fe80::1%eth0").ends_with("[write \"fe80::1\"]"));
        assert!(error("db.example.net").contains("host name"));
        for bad in [
            "10.0.0",
            "10.0.0.256",
            "010.0.0.1",
            "10.0.0.1/08",
            "10.0.0.1/+8",
            "1.2.3.4.5",
            ":::",
            "x",
        ] {
            assert!(error(bad).contains("is not an address or a prefix"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(bits: u128, v6: bool, length in 1u8..=128) {
            let address: IpAddr = if v6 { Ipv6Addr::from(bits).into() } else { Ipv4Addr::from(bits as u32).into() };
            let length = if v6 { length } else { (length - 1) % 32 + 1 };
            let Ok(parsed) = parse(&format!("{address}/{length}")) else {
                // Only a mapped address is refused.
                prop_assert!(v6 && bits >> 32 == 0xffff);
                return Ok(());
            };
            let again = parse(&show(parsed.network)).unwrap();
            prop_assert_eq!(again, Parsed { network: parsed.network, host_bits: false });
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = parse(&text);
        }
    }
}
