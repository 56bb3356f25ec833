//! Writes the class tables of one address family: the trie that `Image::class` walks.
//!
//! Input is sorted and nested prefixes with a class each; output is a root table, nodes and skips (see
//! `firewall_common::image`). The root is chosen by content: 8 bits for a few prefixes, 16 for many.

use firewall_common::image::{Entry, NODE_HEADER, PAGE_SIZE, SKIP_SIZE};

/// A prefix of either family, its address aligned to the top of 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    pub address: u128,
    pub len: u8,
}

impl Prefix {
    pub fn contains(&self, other: &Prefix) -> bool {
        self.len <= other.len && (self.address ^ other.address) & mask(self.len) == 0
    }
}

/// An address of either family.
pub trait Address: Copy + Ord {
    fn top_aligned(self) -> u128;
}

impl Address for u32 {
    fn top_aligned(self) -> u128 {
        (self as u128) << 96
    }
}

impl Address for u128 {
    fn top_aligned(self) -> u128 {
        self
    }
}

/// Where a family's tables are.
pub struct Tables {
    pub root_bits: u32,
    pub root: u64,
}

/// Prefixes from which on the root takes 16 bits (256 KiB) instead of 8 (1 KiB).
const WIDE_ROOT: usize = 256;

/// Appends the tables of a family; addresses under no prefix are of class `outside`.
pub fn write(prefixes: &[(Prefix, u32)], outside: u32, image: &mut Vec<u8>) -> Tables {
    let root_bits = if prefixes.len() < WIDE_ROOT { 8 } else { 16 };
    image.resize(image.len().next_multiple_of(8), 0);
    if root_bits == 16 {
        // Whole pages, so that a root entry and its neighbours share them.
        image.resize(image.len().next_multiple_of(PAGE_SIZE), 0);
    }
    let root = image.len() as u64;
    image.resize(image.len() + (4 << root_bits), 0);
    let mut builder = Builder { image };
    let mut table = vec![Entry::leaf(outside).0; 1 << root_bits];
    builder.fill(prefixes, 0, root_bits, &mut table);
    for (index, entry) in table.iter().enumerate() {
        let at = root as usize + index * 4;
        builder.image[at..at + 4].copy_from_slice(&entry.to_le_bytes());
    }
    Tables { root_bits, root }
}

struct Builder<'a> {
    image: &'a mut Vec<u8>,
}

impl Builder<'_> {
    /// Fills a table of `2^bits` entries for addresses that agree in their first `depth` bits. `table` comes filled
    /// with the leaf of what surrounds the prefixes, each of which is longer than `depth`.
    fn fill(&mut self, prefixes: &[(Prefix, u32)], depth: u32, bits: u32, table: &mut [u32]) {
        let end = depth + bits;
        let index_of = |address: u128| (address << depth >> (128 - bits)) as usize;
        let mut rest = prefixes;
        while let Some(((prefix, class), tail)) = rest.split_first() {
            let index = index_of(prefix.address);
            if prefix.len as u32 <= end {
                // Sorted by address, then length: what lies inside comes later and overwrites.
                let count = 1_usize << (end - prefix.len as u32);
                table[index..index + count].fill(Entry::leaf(*class).0);
                rest = tail;
                continue;
            }
            let count = rest.partition_point(|(next, _)| index_of(next.address) == index);
            let (below, after) = rest.split_at(count);
            table[index] = self.subtree(below, end, table[index]).0;
            rest = after;
        }
    }

    /// A pointer to what decides among prefixes that share their first `depth` bits and are longer; `outside` is the
    /// leaf around them.
    fn subtree(&mut self, prefixes: &[(Prefix, u32)], depth: u32, outside: u32) -> Entry {
        let bits = shared_bytes(prefixes, depth);
        if bits > 0 {
            return self.skip(prefixes, depth, bits, outside);
        }
        let mut table = [outside; 256];
        self.fill(prefixes, depth, 8, &mut table);
        self.node(&table)
    }

    /// A node with these 256 entries, run-length encoded.
    fn node(&mut self, table: &[u32; 256]) -> Entry {
        let mut bitmap = [0_u64; 4];
        let mut before = [0_u8; 4];
        let mut runs = Vec::with_capacity(256);
        for (index, entry) in table.iter().enumerate() {
            if index % 64 == 0 {
                // At most 192 runs lie before the last word.
                before[index / 64] = runs.len() as u8;
            }
            if index == 0 || table[index - 1] != *entry {
                bitmap[index / 64] |= 1 << (index % 64);
                runs.push(*entry);
            }
        }
        let offset = self.place(NODE_HEADER + runs.len() * 4);
        self.image
            .extend(bitmap.iter().flat_map(|word| word.to_le_bytes()));
        self.image.extend_from_slice(&before);
        self.image.extend_from_slice(&[0; 4]);
        self.image
            .extend(runs.iter().flat_map(|entry| entry.to_le_bytes()));
        Entry::node(offset)
    }

    /// A skip over `bits` that all prefixes share.
    fn skip(&mut self, prefixes: &[(Prefix, u32)], depth: u32, bits: u32, outside: u32) -> Entry {
        let address = prefixes[0].0.address;
        let expected = (address << depth >> 64) as u64 & (!0_u64 << (64 - bits));
        let end = depth + bits;
        // The prefix that ends here, if there is one, covers what the longer ones leave.
        let (next, rest) = match prefixes.split_first() {
            Some(((first, class), rest)) if first.len as u32 == end => (Entry::leaf(*class), rest),
            _ => (Entry(outside), prefixes),
        };
        let next = if rest.is_empty() {
            next
        } else {
            self.subtree(rest, end, next.0)
        };
        let offset = self.place(SKIP_SIZE);
        self.image.extend_from_slice(&expected.to_le_bytes());
        for word in [bits, outside, next.0, 0] {
            self.image.extend_from_slice(&word.to_le_bytes());
        }
        Entry::skip(offset)
    }

    /// Makes room for a record that must not straddle pages: its offset, a multiple of 8.
    fn place(&mut self, size: usize) -> u64 {
        let mut at = self.image.len().next_multiple_of(8);
        if at / PAGE_SIZE != (at + size - 1) / PAGE_SIZE {
            at = at.next_multiple_of(PAGE_SIZE);
        }
        self.image.resize(at, 0);
        at as u64
    }
}

/// Bits after `depth`, in whole bytes up to 64, in which all prefixes agree and that none is shorter than.
fn shared_bytes(prefixes: &[(Prefix, u32)], depth: u32) -> u32 {
    let (Some((first, _)), Some((last, _))) = (prefixes.first(), prefixes.last()) else {
        return 0;
    };
    // Sorted: what first and last share, all share; and within a run of equal bits the shortest comes first.
    let agree = ((first.address ^ last.address) << depth).leading_zeros();
    let shortest = first.len as u32 - depth;
    agree.min(shortest).min(64) / 8 * 8
}

fn mask(len: u8) -> u128 {
    if len == 0 { 0 } else { !0 << (128 - len as u32) }
}
