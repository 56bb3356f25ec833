//! Prefixes written the plain way, read byte by byte: the fast path of list files.
//!
//! What these readers accept they read as [`super::super::prefix`] does; whatever is out of the ordinary (host
//! bits, blanks, comments, mistakes, the last bytes of a file) they leave to it.

/// Longest line that is read here, with room for a look ahead.
const WINDOW: usize = 64;

/// Reads a line `a.b.c.d[/n]` at `start`: address, length, start of the next line.
#[inline]
pub fn v4(bytes: &[u8], start: usize) -> Option<(u32, u8, usize)> {
    let window: &[u8; WINDOW] = bytes.get(start..)?.first_chunk()?;
    let (a, at) = decimal(window, 0)?;
    let (b, at) = decimal(window, expect(window, at, b'.')?)?;
    let (c, at) = decimal(window, expect(window, at, b'.')?)?;
    let (d, at) = decimal(window, expect(window, at, b'.')?)?;
    if a | b | c | d > 255 {
        return None;
    }
    let address = a << 24 | b << 16 | c << 8 | d;
    let (length, at) = length(window, at, 32)?;
    let host = u32::MAX.checked_shr(length).unwrap_or(0);
    (address & host == 0).then_some((address, length as u8, start + line_end(window, at)?))
}

/// Reads a line of IPv6 without an IPv4 tail at `start`: address, length, start of the next line.
#[inline]
pub fn v6(bytes: &[u8], start: usize) -> Option<(u128, u8, usize)> {
    let window: &[u8; WINDOW] = bytes.get(start..)?.first_chunk()?;
    // Groups of 16 bits before and behind `::`.
    let (mut head, mut groups, mut at) = (0u128, 0, 0);
    let mut gap = None;
    if window[0] == b':' {
        at = expect(window, 1, b':')?;
        gap = Some(0);
    }
    while let Some((group, next)) = hexadecimal(window, at) {
        if groups == 8 {
            return None;
        }
        (head, groups, at) = (head << 16 | u128::from(group), groups + 1, next);
        if window[at] != b':' {
            break;
        }
        at += 1;
        if window[at] == b':' {
            if gap.is_some() {
                return None;
            }
            (gap, at) = (Some(groups), at + 1);
        } else if groups == 8 || !window[at].is_ascii_hexdigit() {
            return None;
        }
    }
    let address = match gap {
        None if groups == 8 => head,
        None => return None,
        // `::` stands for at least one group.
        Some(_) if groups == 8 => return None,
        Some(before) => {
            let behind = 16 * (groups - before);
            let tail = head & ((1u128 << behind) - 1);
            let head = if before == 0 {
                0
            } else {
                head >> behind << (128 - 16 * before)
            };
            head | tail
        }
    };
    let (length, at) = length(window, at, 128)?;
    let host = u128::MAX.checked_shr(length).unwrap_or(0);
    // IPv4 inside IPv6 is refused with a hint.
    let mapped = address >> 32 == 0xffff && length >= 96;
    (address & host == 0 && !mapped).then_some((address, length as u8, start + line_end(window, at)?))
}

#[inline(always)]
fn expect(window: &[u8; WINDOW], at: usize, byte: u8) -> Option<usize> {
    (window[at % WINDOW] == byte).then_some(at + 1)
}

/// One to three digits without a leading zero, without a branch for how many. May exceed 255.
#[inline(always)]
fn decimal(window: &[u8; WINDOW], at: usize) -> Option<(u32, usize)> {
    let digit = |ahead: usize| u32::from(window[(at + ahead) % WINDOW].wrapping_sub(b'0'));
    let (first, second, third) = (digit(0), digit(1), digit(2));
    let (two, three) = (second < 10, (second < 10) & (third < 10));
    let value = if two { first * 10 + second } else { first };
    let value = if three { value * 10 + third } else { value };
    let plain = (first < 10) & !((first == 0) & two);
    plain.then_some((value, at + 1 + usize::from(two) + usize::from(three)))
}

/// One to four hexadecimal digits.
#[inline(always)]
fn hexadecimal(window: &[u8; WINDOW], start: usize) -> Option<(u16, usize)> {
    let mut value = 0u32;
    let mut at = start;
    while at < start + 4 {
        let byte = window[at % WINDOW];
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => break,
        };
        value = value << 4 | u32::from(digit);
        at += 1;
    }
    (at > start && at < WINDOW - 8).then_some((value as u16, at))
}

/// `/n`, or nothing for a host.
#[inline(always)]
fn length(window: &[u8; WINDOW], at: usize, bits: u32) -> Option<(u32, usize)> {
    if window[at % WINDOW] != b'/' {
        return Some((bits, at));
    }
    let (length, at) = decimal(window, at + 1)?;
    (1..=bits).contains(&length).then_some((length, at))
}

/// The start of the next line.
#[inline(always)]
fn line_end(window: &[u8; WINDOW], at: usize) -> Option<usize> {
    match window[at % WINDOW] {
        b'\n' => Some(at + 1),
        b'\r' if window[(at + 1) % WINDOW] == b'\n' => Some(at + 2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::prefix::{self, Parsed};
    use super::*;
    use ipnetwork::IpNetwork;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    /// What is read of a line, with a tail behind it for the window.
    fn read(line: &str) -> Option<(IpNetwork, usize)> {
        let text = format!("{line}\n{}", " ".repeat(WINDOW));
        let plain_v4 = v4(text.as_bytes(), 0)
            .map(|(address, length, end)| (IpAddr::from(Ipv4Addr::from(address)), length, end));
        let plain_v6 = v6(text.as_bytes(), 0)
            .map(|(address, length, end)| (IpAddr::from(Ipv6Addr::from(address)), length, end));
        assert!(plain_v4.is_none() || plain_v6.is_none());
        plain_v4
            .or(plain_v6)
            .map(|(address, length, end)| (IpNetwork::new(address, length).unwrap(), end))
    }

    /// What the slow way takes without a remark, the fast way takes alike, and nothing else.
    fn agrees(line: &str) {
        let slow = prefix::parse(line).ok().filter(|parsed| !parsed.host_bits);
        let fast = read(line).map(|(network, end)| {
            assert_eq!(end, line.len() + 1);
            Parsed {
                network,
                host_bits: false,
            }
        });
        // An IPv4 tail is left to the slow way.
        if line.contains(':') && line.contains('.') {
            assert!(fast.is_none() || fast == slow, "{line}");
        } else {
            assert_eq!(fast, slow, "{line}");
        }
    }

    #[test]
    fn reads_the_corners_as_the_slow_way_does() {
        for line in [
            "0.0.0.0",
            "255.255.255.255/32",
            "1.2.3.0/24",
            "1.2.3.4/24",
            "256.1.1.1",
            "1.2.3",
            "1.2.3.4.5",
            "01.2.3.4",
            "1.2.3.4/0",
            "1.2.3.4/33",
            "1.2.3.4/032",
            "1.2.3.4/",
            "::",
            "::/1",
            "::1",
            "1::",
            "1::/16",
            "1:2:3:4:5:6:7:8",
            "1:2:3:4:5:6:7::",
            "::2:3:4:5:6:7:8",
            "1:2:3:4:5:6:7:8:9",
            "1:2:3:4::5:6:7:8",
            "1::2::3",
            ":::",
            ":1",
            "1:",
            "1:2:3:4:5:6:7:",
            "12345::",
            "g::",
            "::ffff:1.2.3.4",
            "::ffff:102:304",
            "::ffff:0:0/96",
            "::ffff:0:0/95",
            "2001:DB8::/32",
            "2001:db8::1/32",
            "2001:db8::/129",
            "",
            "2001:db8::%1",
            "1:2:3:4:5:6:1.2.3.4",
        ] {
            agrees(line);
        }
        assert_eq!(
            v4(
                b"1.2.3.4\r\n                                                                ",
                0
            ),
            Some((0x0102_0304, 32, 9))
        );
        assert_eq!(v4(b"1.2.3.4\n", 0), None);
    }

    proptest! {
        #[test]
        fn agrees_on_what_looks_like_ipv4(line in "[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}(/[0-9]{0,3})?") {
            agrees(&line);
        }

        #[test]
        fn agrees_on_what_looks_like_ipv6(line in "([0-9a-fA-F]{0,5}(:|::)){1,9}[0-9a-f]{0,4}(/[0-9]{0,3})?") {
            agrees(&line);
        }

        #[test]
        fn agrees_on_addresses(bits: u128, zeros in 0u32..128, length in 1u8..=128, v6: bool) {
            let bits = bits & !u128::MAX.checked_shr(zeros).unwrap_or(0) | bits & 0xff;
            let address: IpAddr = if v6 { Ipv6Addr::from(bits).into() } else { Ipv4Addr::from((bits >> 96) as u32).into() };
            agrees(&address.to_string());
            agrees(&format!("{address}/{length}"));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec("[0-9a-f:./\n\r# ]", 0..100), start in 0usize..120) {
            let text: String = bytes.concat();
            let _ = (v4(text.as_bytes(), start), v6(text.as_bytes(), start));
        }
    }
}
