//! Prefixes of a large list that hold one of a few others.

use super::super::model::PrefixList;

/// A prefix of either family: IPv4 stands in the top 32 bits.
pub type Prefix = (u128, u8);

/// The last address of a prefix.
pub fn end((start, length): Prefix) -> u128 {
    start | u128::MAX.checked_shr(length.into()).unwrap_or(0)
}

/// Answers whether a prefix holds one of many others, mostly from one bit.
pub struct Filter {
    targets: Vec<Prefix>,
    /// A bit for each value of the top bits of a target, hashed.
    bits: Vec<u64>,
    /// Top bits of an address that choose its bit.
    top: u8,
}

impl Filter {
    pub fn new(mut targets: Vec<Prefix>, v4: bool) -> Filter {
        targets.sort_unstable();
        targets.dedup();
        let top = if v4 { 16 } else { 32 };
        let mut filter = Filter {
            targets: Vec::new(),
            bits: vec![0; 1024],
            top,
        };
        for &(start, _) in &targets {
            let bit = filter.bit(start);
            filter.bits[bit >> 6] |= 1 << (bit & 63);
        }
        filter.targets = targets;
        filter
    }

    /// Of 65,536 bits; distinct for all top bits of an IPv4 address.
    fn bit(&self, start: u128) -> usize {
        let top = (start >> (128 - u32::from(self.top))) as u32;
        (top ^ (top >> 16).wrapping_mul(0x9e37)) as usize & 0xffff
    }

    pub fn holds(&self, prefix: Prefix) -> bool {
        let bit = self.bit(prefix.0);
        if prefix.1 >= self.top && self.bits[bit >> 6] & 1 << (bit & 63) == 0 {
            return false;
        }
        // A target that starts in the prefix and not before it lies in it: prefixes nest or are apart.
        let next = self.targets.partition_point(|&target| target < prefix);
        self.targets
            .get(next)
            .is_some_and(|&(start, _)| start <= end(prefix))
    }

    /// The prefixes of a large list that hold a target.
    pub fn holders(&self, list: &PrefixList, v4: bool) -> Vec<Prefix> {
        match v4 {
            true => {
                let wide = list
                    .v4
                    .iter()
                    .map(|&(address, length)| (u128::from(address) << 96, length));
                wide.filter(|&prefix| self.holds(prefix)).collect()
            }
            false => list
                .v6
                .iter()
                .copied()
                .filter(|&prefix| self.holds(prefix))
                .collect(),
        }
    }
}
