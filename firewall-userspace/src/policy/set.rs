//! Sets of addresses as sorted ranges: what a policy diff computes with.

use super::model::PrefixList;
use super::prefix;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use std::fmt::Debug;

/// An address as a number in host byte order.
trait Address: Copy + Ord + Debug {
    const BITS: u8;
    const MIN: Self;
    const MAX: Self;
    /// The address after; none after the last.
    fn next(self) -> Option<Self>;
    /// The address before; none before the first.
    fn previous(self) -> Option<Self>;
    /// The last address of the prefix that starts here.
    fn prefix_end(self, length: u8) -> Self;
    fn trailing_zeros(self) -> u8;
}

macro_rules! address {
    ($type:ty) => {
        impl Address for $type {
            const BITS: u8 = <$type>::BITS as u8;
            const MIN: Self = 0;
            const MAX: Self = <$type>::MAX;
            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }
            fn previous(self) -> Option<Self> {
                self.checked_sub(1)
            }
            fn prefix_end(self, length: u8) -> Self {
                self | <$type>::MAX.checked_shr(length.into()).unwrap_or(0)
            }
            fn trailing_zeros(self) -> u8 {
                <$type>::trailing_zeros(self) as u8
            }
        }
    };
}
address!(u32);
address!(u128);

/// Inclusive ranges, sorted, neither overlapping nor touching.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ranges<A>(Vec<(A, A)>);

impl<A: Address> Ranges<A> {
    fn all() -> Ranges<A> {
        Ranges(vec![(A::MIN, A::MAX)])
    }

    fn collect(mut ranges: Vec<(A, A)>) -> Ranges<A> {
        // The stable sort takes what is sorted already, such as the two halves of a union, in one pass.
        ranges.sort();
        let mut merged: Vec<(A, A)> = Vec::with_capacity(ranges.len());
        for (start, end) in ranges {
            match merged.last_mut() {
                Some(last) if last.1.next().is_none_or(|next| start <= next) => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        Ranges(merged)
    }

    fn union(&self, other: &Ranges<A>) -> Ranges<A> {
        match (self.0.is_empty(), other.0.is_empty()) {
            (true, _) => other.clone(),
            (_, true) => self.clone(),
            _ => Ranges::collect(self.0.iter().chain(&other.0).copied().collect()),
        }
    }

    /// Calls `each` with every range of `self` and those of `other` that overlap it. Steps through `other` in
    /// leaps that double, so that a few ranges against many cost the logarithm, and many against many one pass.
    fn overlaps(&self, other: &Ranges<A>, mut each: impl FnMut((A, A), &mut dyn Iterator<Item = (A, A)>)) {
        let mut at = 0;
        for &(start, end) in &self.0 {
            let mut leap = 1;
            while other.0.get(at + leap).is_some_and(|range| range.1 < start) {
                at += leap;
                leap *= 2;
            }
            let near = &other.0[at..other.0.len().min(at + leap + 1)];
            at += near.partition_point(|range| range.1 < start);
            each(
                (start, end),
                &mut other.0[at..].iter().copied().take_while(|range| range.0 <= end),
            );
        }
    }

    fn intersection(&self, other: &Ranges<A>) -> Ranges<A> {
        let (few, many) = if self.0.len() <= other.0.len() {
            (self, other)
        } else {
            (other, self)
        };
        let mut shared = Vec::new();
        few.overlaps(many, |(start, end), ranges| {
            shared.extend(ranges.map(|range| (range.0.max(start), range.1.min(end))));
        });
        Ranges(shared)
    }

    fn difference(&self, other: &Ranges<A>) -> Ranges<A> {
        let mut left = Vec::new();
        self.overlaps(other, |(start, end), ranges| {
            let mut from = Some(start);
            for (first, last) in ranges {
                if let (Some(from), Some(to)) = (from, first.previous())
                    && from <= to
                {
                    left.push((from, to));
                }
                from = last.next();
            }
            left.extend(from.filter(|&from| from <= end).map(|from| (from, end)));
        });
        Ranges(left)
    }

    fn is_within(&self, other: &Ranges<A>) -> bool {
        self.0.iter().all(|&(start, end)| {
            let holder = other.0.partition_point(|range| range.1 < start);
            other
                .0
                .get(holder)
                .is_some_and(|range| range.0 <= start && end <= range.1)
        })
    }

    fn holds(&self, start: A, length: u8) -> Option<bool> {
        let end = start.prefix_end(length);
        let &(first, last) = self.0.get(self.0.partition_point(|range| range.1 < start))?;
        (first <= end).then_some(first <= start && end <= last)
    }

    /// The fewest prefixes that make the set: (start, length).
    fn prefixes(&self) -> impl Iterator<Item = (A, u8)> {
        self.0.iter().flat_map(|&(start, end)| {
            let mut from = Some(start);
            std::iter::from_fn(move || {
                let start = from.filter(|&start| start <= end)?;
                let mut length = A::BITS - start.trailing_zeros().min(A::BITS);
                while start.prefix_end(length) > end {
                    length += 1;
                }
                from = start.prefix_end(length).next();
                Some((start, length))
            })
        })
    }
}

/// A set of addresses of both families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressSet {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl AddressSet {
    pub fn empty() -> AddressSet {
        AddressSet {
            v4: Ranges(Vec::new()),
            v6: Ranges(Vec::new()),
        }
    }

    pub fn all() -> AddressSet {
        AddressSet {
            v4: Ranges::all(),
            v6: Ranges::all(),
        }
    }

    pub fn of(list: &PrefixList) -> AddressSet {
        AddressSet::of_all(&[list])
    }

    /// All that the lists hold together.
    pub fn of_all(lists: &[&PrefixList]) -> AddressSet {
        let v4 = lists.iter().flat_map(|list| &list.v4);
        let v4 = v4.map(|&(start, length)| (start, start.prefix_end(length)));
        let v6 = lists.iter().flat_map(|list| &list.v6);
        let v6 = v6.map(|&(start, length)| (start, start.prefix_end(length)));
        AddressSet {
            v4: Ranges::collect(v4.collect()),
            v6: Ranges::collect(v6.collect()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.v4.0.is_empty() && self.v6.0.is_empty()
    }

    pub fn union(&self, other: &AddressSet) -> AddressSet {
        AddressSet {
            v4: self.v4.union(&other.v4),
            v6: self.v6.union(&other.v6),
        }
    }

    pub fn intersection(&self, other: &AddressSet) -> AddressSet {
        AddressSet {
            v4: self.v4.intersection(&other.v4),
            v6: self.v6.intersection(&other.v6),
        }
    }

    pub fn difference(&self, other: &AddressSet) -> AddressSet {
        AddressSet {
            v4: self.v4.difference(&other.v4),
            v6: self.v6.difference(&other.v6),
        }
    }

    /// Whether `other` holds all of it.
    pub fn is_within(&self, other: &AddressSet) -> bool {
        self.v4.is_within(&other.v4) && self.v6.is_within(&other.v6)
    }

    /// Whether it holds all of a prefix, or a part; `None`: nothing of it.
    pub fn holds_v4(&self, start: u32, length: u8) -> Option<bool> {
        self.v4.holds(start, length)
    }

    /// As [`AddressSet::holds_v4`].
    pub fn holds_v6(&self, start: u128, length: u8) -> Option<bool> {
        self.v6.holds(start, length)
    }

    /// How many addresses the set holds, of IPv4 and of IPv6; all of IPv6 count as one less.
    pub fn sizes(&self) -> (u64, u128) {
        let v4 = self.v4.0.iter().map(|(start, end)| u64::from(end - start) + 1);
        let v6 = self
            .v6
            .0
            .iter()
            .map(|(start, end)| (end - start).saturating_add(1));
        (v4.sum(), v6.fold(0, u128::saturating_add))
    }

    /// How many prefixes the set takes.
    pub fn count(&self) -> usize {
        self.v4.prefixes().count() + self.v6.prefixes().count()
    }

    /// The fewest prefixes that make the set, as people write them.
    pub fn show(&self) -> impl Iterator<Item = String> {
        let v4 = self.v4.prefixes().filter_map(|(start, length)| {
            Ipv4Network::new(start.into(), length)
                .ok()
                .map(|network| prefix::show(IpNetwork::V4(network)))
        });
        let v6 = self.v6.prefixes().filter_map(|(start, length)| {
            Ipv6Network::new(start.into(), length)
                .ok()
                .map(|network| prefix::show(IpNetwork::V6(network)))
        });
        v4.chain(v6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(prefixes: &[&str]) -> AddressSet {
        let mut list = PrefixList::default();
        for text in prefixes {
            super::super::groups::push(&mut list, prefix::parse(text).unwrap().network);
        }
        AddressSet::of(&list)
    }

    fn shown(set: &AddressSet) -> Vec<String> {
        set.show().collect()
    }

    #[test]
    fn shows_the_fewest_prefixes() {
        assert_eq!(
            shown(&set(&["10.0.0.0/25", "10.0.0.128/25", "10.0.1.0/24", "10.0.0.7"])),
            ["10.0.0.0/23"]
        );
        assert_eq!(
            shown(&set(&["255.255.255.255", "2001:db8::", "2001:db8::1"])),
            ["255.255.255.255", "2001:db8::/127"]
        );
        assert_eq!(shown(&AddressSet::all()), ["0.0.0.0/0", "::/0"]);
        let without = set(&["10.0.0.0/30"]).difference(&set(&["10.0.0.1"]));
        assert_eq!(
            (shown(&without), without.count()),
            (vec!["10.0.0.0".into(), "10.0.0.2/31".into()], 2)
        );
        assert!(set(&["10.0.0.1"]).difference(&AddressSet::all()).is_empty());
        assert_eq!(
            AddressSet::all().difference(&AddressSet::empty()),
            AddressSet::all()
        );
    }

    #[test]
    fn counts_addresses_once() {
        assert_eq!(AddressSet::all().sizes(), (1 << 32, u128::MAX));
        assert_eq!(AddressSet::empty().sizes(), (0, 0));
        let some = set(&[
            "10.0.0.0/8",
            "10.1.0.0/16",
            "11.0.0.0",
            "2001:db8::/32",
            "2001:db8::1",
            "::5",
        ]);
        assert_eq!(some.sizes(), ((1 << 24) + 1, (1 << 96) + 1));
    }

    /// Bits 0..=255 as a set of the lowest addresses, to compare with.
    fn ranges(bits: &[bool]) -> Ranges<u32> {
        let chosen = bits.iter().enumerate().filter(|&(_, &bit)| bit);
        Ranges::collect(chosen.map(|(at, _)| (at as u32, at as u32)).collect())
    }

    proptest! {
        #[test]
        fn agrees_with_bits(a in proptest::collection::vec(any::<bool>(), 64), b in proptest::collection::vec(any::<bool>(), 64)) {
            let (x, y) = (ranges(&a), ranges(&b));
            let zip = |f: fn(bool, bool) -> bool| ranges(&a.iter().zip(&b).map(|(&a, &b)| f(a, b)).collect::<Vec<_>>());
            prop_assert_eq!(x.union(&y), zip(|a, b| a || b));
            prop_assert_eq!(x.intersection(&y), zip(|a, b| a && b));
            prop_assert_eq!(x.difference(&y), zip(|a, b| a && !b));
            prop_assert_eq!(x.is_within(&y), x.difference(&y).0.is_empty());
            prop_assert_eq!(Ranges::all().difference(&Ranges::all().difference(&x)), x.clone());
            let again = x.prefixes().map(|(start, length)| (start, start.prefix_end(length))).collect();
            prop_assert_eq!(Ranges::collect(again), x);
        }
    }
}
