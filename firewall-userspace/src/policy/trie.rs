//! Writes the class tables of one address family: the trie that `Image::class` walks.
//!
//! Input is sorted and nested prefixes with a class each; output is a root table and what it leads to (see
//! `firewall_common::image`). The root is chosen by content: 8 bits for a few prefixes, 16 for many.

use firewall_common::image::{Entry, EntryKind, NODE_HEADER, PAGE_SIZE, SKIP_SIZE, TABLE_SIZE};

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

/// Runs from which on 256 entries are written as they are: a kilobyte, but one touch of memory instead of two.
const FLAT: usize = 32;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Appends the tables of a family; addresses under no prefix are of class `outside`.
pub fn write(prefixes: &[(Prefix, u32)], outside: u32, image: &mut Vec<u8>) -> Tables {
    let root_bits = if prefixes.len() < WIDE_ROOT { 8 } else { 16 };
    image.resize(image.len().next_multiple_of(LINE), 0);
    let root = image.len() as u64;
    image.resize(image.len() + (4 << root_bits), 0);
    let mut builder = Builder { image, root_bits };
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
    root_bits: u32,
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
    /// class around them, which is its own leaf.
    fn subtree(&mut self, prefixes: &[(Prefix, u32)], depth: u32, outside: u32) -> Entry {
        if let [(prefix, class)] = prefixes {
            let bits = prefix.len as u32 - depth;
            // Not in the root, where skips of all lengths are cached and one kind of entry is foreseen better.
            if bits <= 8 && depth > self.root_bits {
                let byte = (prefix.address << depth >> 120) as u8;
                if let Some(single) = Entry::single(byte, (8 - bits) as u8, *class, outside) {
                    return single;
                }
            }
            return self.skip(prefixes, depth, bits.min(64), outside);
        }
        let bits = shared_bytes(prefixes, depth);
        if bits > 0 {
            return self.skip(prefixes, depth, bits, outside);
        }
        let mut table = [outside; 256];
        self.fill(prefixes, depth, 8, &mut table);
        let runs = 1 + table.windows(2).filter(|pair| pair[0] != pair[1]).count();
        if runs < FLAT {
            self.node(&table)
        } else {
            self.table(&table)
        }
    }

    /// A table of these 256 entries.
    fn table(&mut self, table: &[u32; 256]) -> Entry {
        let offset = self.place(TABLE_SIZE, TABLE_SIZE);
        self.image
            .extend(table.iter().flat_map(|entry| even(*entry).to_le_bytes()));
        Entry::table(offset)
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
        let offset = self.place(NODE_HEADER + runs.len() * 4, NODE_HEADER);
        self.image
            .extend(bitmap.iter().flat_map(|word| word.to_le_bytes()));
        self.image.extend_from_slice(&before);
        self.image
            .extend(runs.iter().flat_map(|entry| even(*entry).to_le_bytes()));
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
        let offset = self.place(SKIP_SIZE, SKIP_SIZE);
        self.image.extend_from_slice(&expected.to_le_bytes());
        self.image.extend_from_slice(&next.0.to_le_bytes());
        self.image
            .extend_from_slice(&(outside | bits << 24).to_le_bytes());
        Entry::skip(offset)
    }

    /// Makes room for a record of `size` bytes that must not straddle pages and whose first `together` bytes should
    /// not straddle cache lines: its offset, a multiple of 16.
    fn place(&mut self, size: usize, together: usize) -> u64 {
        let mut at = self.image.len().next_multiple_of(16);
        if at % LINE + together > LINE {
            at = at.next_multiple_of(LINE);
        }
        if at / PAGE_SIZE != (at + size - 1) / PAGE_SIZE {
            at = at.next_multiple_of(PAGE_SIZE);
        }
        self.image.resize(at, 0);
        at as u64
    }
}

/// An entry as nodes and tables hold it: a leaf as a single, if it can be one.
fn even(entry: u32) -> u32 {
    match Entry(entry).kind() {
        EntryKind::Leaf(class) => Entry::single(0, 0, class, class).map_or(entry, |single| single.0),
        _ => entry,
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

#[cfg(test)]
mod tests {
    use super::*;
    use firewall_common::image::{Image, MAGIC, SlicePages, field};

    /// SplitMix64: the same prefixes in every run.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ mixed >> 31
        }

        fn below(&mut self, limit: u64) -> u64 {
            self.next() % limit
        }
    }

    /// Entries by kind, in the order of [`EntryKind`].
    fn kinds(image: &[u8], tables: &Tables) -> [usize; 5] {
        let mut seen = [0; 5];
        let word = |at: u64| {
            let at = at as usize;
            u32::from_le_bytes(image[at..at + 4].try_into().unwrap())
        };
        let mut open: Vec<u32> = (0..1_u64 << tables.root_bits)
            .map(|index| word(tables.root + index * 4))
            .collect();
        while let Some(entry) = open.pop() {
            match Entry(entry).kind() {
                EntryKind::Leaf(_) => seen[0] += 1,
                EntryKind::Single { .. } => seen[1] += 1,
                EntryKind::Skip(at) => {
                    seen[2] += 1;
                    open.push(word(at + 8));
                }
                EntryKind::Node(at) => {
                    seen[3] += 1;
                    let runs: u32 = (0..8).map(|part| word(at + part * 4).count_ones()).sum();
                    open.extend((0..u64::from(runs)).map(|run| word(at + NODE_HEADER as u64 + run * 4)));
                }
                EntryKind::Table(at) => {
                    seen[4] += 1;
                    open.extend((0..256).map(|index| word(at + index * 4)));
                }
            }
        }
        seen
    }

    /// Random prefixes in few places, so that they nest and crowd; each address is compared with the longest prefix
    /// that holds it.
    fn agrees_with_a_scan(version: u8, count: usize, spread: u64, classes: u64) -> [usize; 5] {
        let bits = if version == 4 { 32 } else { 128 };
        let mut random = Random(count as u64 + spread);
        let places: Vec<u128> = (0..spread)
            .map(|_| (u128::from(random.next()) << 64 | u128::from(random.next())) & mask(bits))
            .collect();
        let near = |random: &mut Random| {
            let noise = u128::from(random.next()) << 64 | u128::from(random.next());
            let place = places[random.below(spread) as usize];
            (place ^ noise >> random.below(u64::from(bits))) & mask(bits)
        };
        let mut prefixes: Vec<(Prefix, u32)> = (0..count)
            .map(|_| {
                let len = 1 + random.below(u64::from(bits)) as u8;
                let address = near(&mut random) & mask(len);
                (Prefix { address, len }, random.below(classes) as u32)
            })
            .collect();
        prefixes.sort_by_key(|(prefix, _)| *prefix);
        prefixes.dedup_by_key(|(prefix, _)| *prefix);

        let mut image = vec![0; 4096];
        let tables = write(&prefixes, 3, &mut image);
        let seen = kinds(&image, &tables);
        image.resize(image.len().next_multiple_of(PAGE_SIZE), 0);
        image[..8].copy_from_slice(&MAGIC.to_le_bytes());
        let (root_bits, root) = match version {
            4 => (field::V4_ROOT_BITS as usize, field::V4_ROOT as usize),
            _ => (field::V6_ROOT_BITS as usize, field::V6_ROOT as usize),
        };
        image[root_bits..root_bits + 4].copy_from_slice(&tables.root_bits.to_le_bytes());
        image[root..root + 8].copy_from_slice(&tables.root.to_le_bytes());
        let pages = SlicePages(&image);
        let image = Image::open(&pages).unwrap();

        let first_and_last = prefixes.iter().flat_map(|(prefix, _)| {
            let last = prefix.address | !mask(prefix.len) & mask(bits);
            let step = 1_u128 << (128 - u32::from(bits));
            [
                prefix.address,
                last,
                prefix.address.wrapping_sub(step),
                last.wrapping_add(step),
            ]
        });
        let random = (0..count).map(|_| near(&mut random));
        for address in first_and_last.chain(random) {
            let one = Prefix { address, len: bits };
            let expected = prefixes
                .iter()
                .filter(|(prefix, _)| prefix.contains(&one))
                .max_by_key(|(prefix, _)| prefix.len)
                .map_or(3, |(_, class)| *class);
            let (high, low) = match version {
                4 => (0, (address >> 96) as u64),
                _ => ((address >> 64) as u64, address as u64),
            };
            assert_eq!(image.class(version, high, low), Some(expected), "{address:032x}");
        }
        seen
    }

    #[test]
    fn every_kind_of_entry_gives_the_class_of_the_longest_prefix() {
        for (version, count, spread, classes) in [
            (4, 1, 1, 2),
            (4, 40, 3, 4),
            (4, 2_000, 3, 5),
            (4, 3_000, 40, 100_000),
            (6, 1, 1, 2),
            (6, 40, 3, 4),
            (6, 2_000, 3, 5),
            (6, 3_000, 40, 100_000),
        ] {
            let seen = agrees_with_a_scan(version, count, spread, classes);
            if count >= 2_000 && classes < 10 {
                assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
            }
        }
    }

    #[test]
    fn a_flat_table_takes_the_place_of_many_runs() {
        // Every other /24 of a /16, and one /16 more with few.
        let mut prefixes: Vec<(Prefix, u32)> = (0..128_u128)
            .map(|index| ((10 << 120) | ((index * 2) << 104), 24, 1))
            .chain([(11 << 120 | 7 << 104, 24, 1), (11 << 120 | 9 << 104, 24, 1)])
            .map(|(address, len, class)| (Prefix { address, len }, class))
            .collect();
        prefixes.sort_by_key(|(prefix, _)| *prefix);
        let mut image = Vec::new();
        let tables = write(&prefixes, 0, &mut image);
        let [_, _, _, nodes, flat] = kinds(&image, &tables);
        assert_eq!((nodes, flat), (1, 1));
    }
}
