//! Names of ICMP and ICMPv6 message types. One name covers both families where both have the message.

/// (name, ICMPv4 type, ICMPv6 type)
pub const TYPES: &[(&str, Option<u8>, Option<u8>)] = &[
    ("echo", Some(8), Some(128)),
    ("echo-reply", Some(0), Some(129)),
    ("dest-unreachable", Some(3), Some(1)),
    ("packet-too-big", None, Some(2)),
    ("time-exceeded", Some(11), Some(3)),
    ("param-problem", Some(12), Some(4)),
    ("redirect", Some(5), Some(137)),
    ("router-solicitation", Some(10), Some(133)),
    ("router-advertisement", Some(9), Some(134)),
    ("neighbour-solicitation", None, Some(135)),
    ("neighbour-advertisement", None, Some(136)),
    ("mld-query", None, Some(130)),
    ("mld-report", None, Some(131)),
    ("mld-done", None, Some(132)),
    ("mldv2-report", None, Some(143)),
    ("timestamp", Some(13), None),
    ("timestamp-reply", Some(14), None),
    ("extended-echo", Some(42), Some(160)),
    ("extended-echo-reply", Some(43), Some(161)),
];

/// Types of the name in ICMPv4 and ICMPv6.
pub fn by_name(name: &str) -> Option<(Option<u8>, Option<u8>)> {
    TYPES.iter().find(|row| row.0 == name).map(|row| (row.1, row.2))
}

pub fn v4_name(number: u8) -> Option<&'static str> {
    TYPES.iter().find(|row| row.1 == Some(number)).map(|row| row.0)
}

pub fn v6_name(number: u8) -> Option<&'static str> {
    TYPES.iter().find(|row| row.2 == Some(number)).map(|row| row.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_unique() {
        for (index, row) in TYPES.iter().enumerate() {
            assert!(row.1.is_some() || row.2.is_some());
            for other in &TYPES[index + 1..] {
                assert_ne!(row.0, other.0);
                assert!(row.1.is_none() || row.1 != other.1, "{}", row.0);
                assert!(row.2.is_none() || row.2 != other.2, "{}", row.0);
            }
        }
    }
}
