//! Bans: prefixes from which nothing comes in for a time, but to what the failsafe names.
//!
//! A ban is an entry of the map `BANS`: the network it is for, and the second until which it is in force. The kernel asks for
//! the network of a source in each length that is in use, at most [`LENGTHS`] of a family. Expiry is a comparison with the
//! clock, so it needs nobody to carry it out; entries stay until the agent takes them out, because an automatic ban
//! that repeats within a time is longer than the one before ([`next`]).
//!
//! The clock is `CLOCK_MONOTONIC`, which stands still while the machine sleeps; the agent takes that time off afterwards.

use crate::control::{Config, Failsafe};

/// Key of the hash map `BANS`: a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct BanKey {
    /// Halves as in [`Failsafe`]; bits beyond `len` are zero.
    pub high: u64,
    pub low: u64,
    /// Bits of the network: to 32 of IPv4, to 128 of IPv6.
    pub len: u8,
    /// 4 or 6.
    pub version: u8,
    pub pad: [u8; 6],
}

/// Value of the hash map `BANS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ban {
    /// Second of the monotonic clock that ends it; [`FOREVER`].
    pub until_s: u32,
    /// Second of the monotonic clock in which it began.
    pub since_s: u32,
    /// Automatic bans of this network in a row, this one included. A ban by command is none, and keeps those before it.
    pub strikes: u32,
    /// Service that asked for it, by its number in the image of the time, or [`OPERATOR`].
    pub origin: u16,
    pub pad: u16,
    /// How long it is; if by command and after strikes, how long the last of these was.
    pub seconds: u32,
    pub pad2: u32,
}

const _: () = assert!(size_of::<BanKey>() == 24 && size_of::<Ban>() == 24);

/// [`Ban::until_s`] of a ban that does not end by itself.
pub const FOREVER: u32 = u32::MAX;
/// [`Ban::origin`] of a ban by command.
pub const OPERATOR: u16 = u16::MAX;
/// Lengths of prefixes that may be in use at once, of each family.
pub const LENGTHS: usize = 8;
/// No length, in [`Config::ban_lens`]; all that follow are the same.
pub const NO_LENGTH: u8 = u8::MAX;

/// How automatic bans grow when they repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Escalation {
    /// Each ban is this much as long as the one before; 100: bans do not grow.
    pub percent: u32,
    /// No ban grows beyond this.
    pub longest_s: u32,
    /// Bans that ended this long ago are no reason any more.
    pub forget_s: u32,
}

impl Escalation {
    pub const DEFAULT: Escalation = Escalation {
        percent: 200,
        longest_s: 86_400,
        forget_s: 86_400,
    };

    #[inline(always)]
    pub const fn of(config: &Config) -> Escalation {
        Escalation {
            percent: config.ban_percent,
            longest_s: config.ban_longest_s,
            forget_s: config.ban_forget_s,
        }
    }
}

impl BanKey {
    pub const fn to_words(self) -> [u64; 3] {
        [self.high, self.low, self.len as u64 | (self.version as u64) << 8]
    }

    pub const fn from_words([high, low, rest]: [u64; 3]) -> BanKey {
        BanKey {
            high,
            low,
            len: rest as u8,
            version: (rest >> 8) as u8,
            pad: [0; 6],
        }
    }

    /// The network of an address.
    #[inline(always)]
    pub const fn new(version: u8, high: u64, low: u64, len: u8) -> BanKey {
        let (high_mask, low_mask) = masks(version, len);
        BanKey {
            high: high & high_mask,
            low: low & low_mask,
            len,
            version,
            pad: [0; 6],
        }
    }

    /// Whether the network holds an address.
    pub const fn contains(&self, version: u8, high: u64, low: u64) -> bool {
        let network = BanKey::new(version, high, low, self.len);
        self.version == version && self.high == network.high && self.low == network.low
    }

    /// Whether two networks have an address in common.
    pub const fn overlaps(&self, other: &BanKey) -> bool {
        match self.len <= other.len {
            true => self.contains(other.version, other.high, other.low),
            false => other.contains(self.version, self.high, self.low),
        }
    }

    /// Whether a failsafe entry names a source of this network: such a network is never banned. An entry for every
    /// source names nobody, and keeps its port open to those that are banned all the same.
    #[inline(always)]
    pub const fn overlaps_failsafe(&self, entry: &Failsafe) -> bool {
        let (high_mask, low_mask) = masks(self.version, self.len);
        entry.version == self.version
            && (entry.mask_high | entry.mask_low) != 0
            && (self.high ^ entry.prefix_high) & high_mask & entry.mask_high == 0
            && (self.low ^ entry.prefix_low) & low_mask & entry.mask_low == 0
    }
}

/// The masks of a prefix length, of halves as in [`Failsafe`].
#[inline(always)]
const fn masks(version: u8, len: u8) -> (u64, u64) {
    if version == 4 {
        return (0, ones(len as u32 + 32) & 0xffff_ffff);
    }
    match len {
        0..=64 => (ones(len as u32), 0),
        _ => (u64::MAX, ones(len as u32 - 64)),
    }
}

/// The first `count` bits, at most 64.
#[inline(always)]
const fn ones(count: u32) -> u64 {
    if count == 0 {
        return 0;
    }
    let zeros = 64_u32.saturating_sub(count);
    u64::MAX << (zeros & 63)
}

impl Ban {
    pub const fn to_words(self) -> [u64; 3] {
        [
            self.until_s as u64 | (self.since_s as u64) << 32,
            self.strikes as u64 | (self.origin as u64) << 32,
            self.seconds as u64,
        ]
    }

    pub const fn from_words([times, strikes, seconds]: [u64; 3]) -> Ban {
        Ban {
            until_s: times as u32,
            since_s: (times >> 32) as u32,
            strikes: strikes as u32,
            origin: (strikes >> 32) as u16,
            pad: 0,
            seconds: seconds as u32,
            pad2: 0,
        }
    }

    /// In force.
    #[inline(always)]
    pub const fn is_live(&self, now_s: u32) -> bool {
        lives(self.until_s, now_s)
    }

    /// Neither in force nor a reason for a longer one.
    pub const fn is_forgotten(&self, now_s: u32, forget_s: u32) -> bool {
        match self.strikes {
            0 => !self.is_live(now_s),
            _ => !self.is_live(now_s) && now_s - self.until_s >= forget_s,
        }
    }
}

#[inline(always)]
const fn lives(until_s: u32, now_s: u32) -> bool {
    until_s > now_s || until_s == FOREVER
}

/// The automatic ban that follows `before` (the entry of the network, if it has one that is not in force) at the word of a
/// service: as long as the service says, or longer if it repeats one that is not forgotten.
#[inline(always)]
pub const fn next(
    before: Option<&Ban>,
    now_s: u32,
    seconds: u32,
    service: u16,
    escalation: Escalation,
) -> Ban {
    let (strikes, seconds) = match before {
        Some(before) if before.strikes != 0 && !before.is_forgotten(now_s, escalation.forget_s) => {
            let grown = before.seconds as u64 * escalation.percent as u64 / 100;
            let longest = escalation.longest_s as u64;
            let grown = if grown < longest { grown } else { longest };
            let longer = if grown > seconds as u64 {
                grown as u32
            } else {
                seconds
            };
            (before.strikes.saturating_add(1), longer)
        }
        _ => (1, seconds),
    };
    let until_s = now_s.saturating_add(seconds);
    Ban {
        until_s: if until_s == FOREVER { FOREVER - 1 } else { until_s },
        since_s: now_s,
        strikes,
        origin: service,
        pad: 0,
        seconds,
        pad2: 0,
    }
}

/// The lengths in use of a family.
#[inline(always)]
pub const fn lengths(config: &Config, version: u8) -> &[u8; LENGTHS] {
    match version {
        4 => &config.ban_lens[0],
        _ => &config.ban_lens[1],
    }
}

/// Whether a source is banned; `until_s` gives the [`Ban::until_s`] of the entry of a network, or 0.
#[inline(always)]
pub fn is_banned(
    lengths: &[u8; LENGTHS],
    (version, high, low): (u8, u64, u64),
    now_s: u32,
    until_s: impl Fn(&BanKey) -> u32,
) -> bool {
    let mut index = 0;
    while let Some(len) = lengths.get(index) {
        if *len == NO_LENGTH {
            break;
        }
        if lives(until_s(&BanKey::new(version, high, low, *len)), now_s) {
            return true;
        }
        index += 1;
    }
    false
}

/// Whether the kernel may ban a network: its length is one that is looked up, and no failsafe entry names a part of it.
#[inline(always)]
pub fn may_ban(config: &Config, key: &BanKey) -> bool {
    let lengths = *lengths(config, key.version);
    if key.len == NO_LENGTH || !has_byte(u64::from_ne_bytes(lengths), key.len) {
        return false;
    }
    let mut index = 0;
    while let Some(entry) = config.failsafe.get(index) {
        if index as u32 >= config.failsafe_count {
            break;
        }
        if key.overlaps_failsafe(entry) {
            return false;
        }
        index += 1;
    }
    true
}

/// Whether one of the bytes of a word is this one: without a branch, for each would double what the BPF verifier walks.
#[inline(always)]
const fn has_byte(word: u64, byte: u8) -> bool {
    const LOW: u64 = 0x0101_0101_0101_0101;
    let zero_where = word ^ (LOW * byte as u64);
    zero_where.wrapping_sub(LOW) & !zero_where & (LOW << 7) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROWS: Escalation = Escalation {
        percent: 200,
        longest_s: 3600,
        forget_s: 1000,
    };

    fn v4(text: &str) -> BanKey {
        let (address, len) = text.split_once('/').unwrap();
        let bits = u32::from(address.parse::<std::net::Ipv4Addr>().unwrap());
        BanKey::new(4, 0, bits.into(), len.parse().unwrap())
    }

    fn v6(text: &str) -> BanKey {
        let (address, len) = text.split_once('/').unwrap();
        let bits = u128::from(address.parse::<std::net::Ipv6Addr>().unwrap());
        BanKey::new(6, (bits >> 64) as u64, bits as u64, len.parse().unwrap())
    }

    fn failsafe(text: &str) -> Failsafe {
        let key = if text.contains(':') { v6(text) } else { v4(text) };
        let (mask_high, mask_low) = masks(key.version, key.len);
        Failsafe {
            prefix_high: key.high,
            prefix_low: key.low,
            mask_high,
            mask_low,
            dst_port: 22,
            protocol: 6,
            version: key.version,
            pad: 0,
        }
    }

    #[test]
    fn masks_are_those_of_prefixes_of_every_length() {
        let address = 0xc633_64ff_u64;
        for len in 0..=32_u8 {
            let expected = if len == 0 {
                0
            } else {
                (address as u32 >> (32 - len) << (32 - len)) as u64
            };
            let key = BanKey::new(4, 0, address, len);
            assert_eq!((key.high, key.low), (0, expected), "/{len}");
        }
        let address = u128::MAX / 3;
        for len in 0..=128_u8 {
            let expected = address.checked_shr(128 - u32::from(len)).unwrap_or(0);
            let expected = expected.checked_shl(128 - u32::from(len)).unwrap_or(0);
            let key = BanKey::new(6, (address >> 64) as u64, address as u64, len);
            assert_eq!(
                (key.high, key.low),
                ((expected >> 64) as u64, expected as u64),
                "/{len}"
            );
        }
    }

    #[test]
    fn networks_overlap_if_one_holds_the_other() {
        for (one, other, expected) in [
            ("192.0.2.0/24", "192.0.2.9/32", true),
            ("192.0.2.0/24", "192.0.3.9/32", false),
            ("0.0.0.0/0", "192.0.2.9/32", true),
            ("192.0.2.0/25", "192.0.2.128/25", false),
        ] {
            assert_eq!(v4(one).overlaps(&v4(other)), expected, "{one} {other}");
            assert_eq!(v4(other).overlaps(&v4(one)), expected, "{other} {one}");
        }
        assert!(v6("2001:db8::/32").overlaps(&v6("2001:db8:1::7/128")));
        // The same halves, of another family.
        assert!(!v6("::/0").overlaps(&v4("192.0.2.9/32")));
    }

    #[test]
    fn a_failsafe_entry_keeps_its_sources_from_bans_and_one_for_everybody_keeps_none() {
        for (ban, entry, expected) in [
            ("203.0.113.9/32", "203.0.113.9/32", true),
            ("203.0.113.0/24", "203.0.113.9/32", true),
            ("203.0.113.9/32", "203.0.113.0/24", true),
            ("203.0.113.10/32", "203.0.113.9/32", false),
            ("0.0.0.0/0", "203.0.113.9/32", true),
            ("203.0.113.9/32", "0.0.0.0/0", false),
            ("203.0.113.9/32", "2001:db8::/32", false),
        ] {
            assert_eq!(
                v4(ban).overlaps_failsafe(&failsafe(entry)),
                expected,
                "{ban} {entry}"
            );
        }
        assert!(v6("2001:db8:7::/48").overlaps_failsafe(&failsafe("2001:db8:7::1/128")));
        assert!(!v6("2001:db8:8::/48").overlaps_failsafe(&failsafe("2001:db8:7::1/128")));

        let mut config = Config::DEFAULT;
        config.ban_lens[0] = [24, 32, 255, 255, 255, 255, 255, 255];
        config.add_failsafe(failsafe("203.0.113.9/32")).unwrap();
        assert!(may_ban(&config, &v4("203.0.113.10/32")));
        assert!(!may_ban(&config, &v4("203.0.113.9/32")));
        assert!(!may_ban(&config, &v4("203.0.113.0/24")));
        // Nobody would look for it.
        assert!(!may_ban(&config, &v4("198.51.0.0/16")));
        assert!(!may_ban(&config, &v4("198.51.0.0/255")));
    }

    #[test]
    fn bytes_of_a_word_are_found() {
        for byte in [0, 1, 24, 32, 64, 127, 128, 254] {
            for at in 0..8 {
                let mut bytes = [NO_LENGTH; 8];
                assert!(!has_byte(u64::from_ne_bytes(bytes), byte));
                bytes[at] = byte;
                assert!(has_byte(u64::from_ne_bytes(bytes), byte), "{byte} at {at}");
            }
        }
    }

    #[test]
    fn a_ban_lives_until_its_second_or_for_ever() {
        let ban = next(None, 100, 60, 3, GROWS);
        assert_eq!(
            (ban.since_s, ban.until_s, ban.strikes, ban.origin),
            (100, 160, 1, 3)
        );
        assert!(ban.is_live(100) && ban.is_live(159) && !ban.is_live(160));
        let forever = Ban {
            until_s: FOREVER,
            ..ban
        };
        assert!(forever.is_live(u32::MAX) && !forever.is_forgotten(u32::MAX, 0));
        // At the end of the clock a ban still ends.
        assert_eq!(next(None, u32::MAX - 5, 60, 3, GROWS).until_s, FOREVER - 1);
    }

    #[test]
    fn repetition_makes_bans_longer_up_to_the_longest_and_quiet_forgives() {
        let mut ban = next(None, 0, 600, 1, GROWS);
        for (strikes, seconds) in [(2, 1200), (3, 2400), (4, 3600), (5, 3600)] {
            ban = next(Some(&ban), ban.until_s + 999, 600, 1, GROWS);
            assert_eq!((ban.strikes, ban.seconds), (strikes, seconds));
        }
        assert!(ban.is_forgotten(ban.until_s + 1000, GROWS.forget_s));
        let later = next(Some(&ban), ban.until_s + 1000, 600, 1, GROWS);
        assert_eq!((later.strikes, later.seconds), (1, 600));
        // What the service asks for is never cut.
        let long = next(Some(&ban), ban.until_s, 90_000, 1, GROWS);
        assert_eq!((long.strikes, long.seconds), (6, 90_000));
        // An operator's ban is no strike, and forgives none.
        let by_hand = Ban {
            origin: OPERATOR,
            strikes: 0,
            ..ban
        };
        assert_eq!(next(Some(&by_hand), by_hand.until_s, 600, 1, GROWS).strikes, 1);
        assert!(by_hand.is_forgotten(by_hand.until_s, GROWS.forget_s));
        let by_hand = Ban {
            origin: OPERATOR,
            strikes: 2,
            seconds: 1200,
            ..ban
        };
        let after = next(Some(&by_hand), by_hand.until_s, 600, 1, GROWS);
        assert_eq!((after.strikes, after.seconds), (3, 2400));
        let steady = Escalation {
            percent: 100,
            ..GROWS
        };
        assert_eq!(next(Some(&ban), ban.until_s, 600, 1, steady).seconds, 3600);
    }

    proptest::proptest! {
        #[test]
        fn no_ban_is_shorter_than_asked_nor_longer_than_asked_and_longest(
            now_s: u32, seconds in 1_u32.., until_s: u32, before_s: u32, strikes: u32, percent in 100_u32..100_000, longest_s: u32, forget_s: u32,
        ) {
            let before = Ban { until_s, since_s: 0, strikes, origin: 1, pad: 0, seconds: before_s, pad2: 0 };
            let ban = next(Some(&before), now_s, seconds, 2, Escalation { percent, longest_s, forget_s });
            proptest::prop_assert!(ban.seconds >= seconds && ban.seconds <= seconds.max(longest_s));
            proptest::prop_assert!(ban.strikes >= 1 && ban.until_s != FOREVER);
            proptest::prop_assert!(ban.until_s == now_s.saturating_add(ban.seconds).min(FOREVER - 1));
        }

        #[test]
        fn a_source_is_banned_as_a_scan_of_all_bans_says(
            bans in proptest::collection::vec((0_u64..4096, 20_u8..=32, 0_u32..20), 0..12),
            source in 0_u64..4096,
            now_s in 0_u32..20,
        ) {
            let bans: std::collections::HashMap<BanKey, u32> =
                bans.into_iter().map(|(low, len, until_s)| (BanKey::new(4, 0, low, len), until_s)).collect();
            let mut used: Vec<u8> = bans.keys().map(|key| key.len).collect();
            used.sort_unstable();
            used.dedup();
            used.truncate(LENGTHS);
            let mut lengths = [NO_LENGTH; LENGTHS];
            lengths[..used.len()].copy_from_slice(&used);
            let expected = bans.iter().any(|(key, until_s)| {
                used.contains(&key.len) && key.contains(4, 0, source) && *until_s > now_s
            });
            let found = is_banned(&lengths, (4, 0, source), now_s, |key| bans.get(key).copied().unwrap_or(0));
            proptest::prop_assert_eq!(found, expected);
        }
    }
}
