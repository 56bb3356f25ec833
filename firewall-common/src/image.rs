//! The policy image: the compiled policy as pages, and the lookups that read it.
//!
//! An image is one immutable run of little-endian words, cut into [`PAGE_SIZE`] pages. Offsets are in bytes from
//! the start of the image; no record straddles a page, tables of words may. Page 0 begins with the header ([`field`]).
//!
//! * **ports**: a directory of [`DIRECTORY_LEN`] block numbers (`u16`, in page 0), then blocks of 256 service ids
//!   (`u16`). Block 0 is all [`NO_SERVICE`]. A [`PortKey`] names the slot. A second directory, for what leaves, names
//!   blocks of the same table that hold rows of the verdict table; there block 0 is all [`field::EGRESS_ROW`].
//! * **classes**: per family a root table of `2^root_bits` entries indexed by the top bits of the peer's address (the
//!   source of what comes in, the destination of what leaves), then 8-bit strides. An [`Entry`] is a leaf (the class), a
//!   *single*, a *skip*, a *node* or a *table*.
//! * **verdicts**: row per service (row 0: no service), then a row per set of egress rules that meet at a port; column
//!   per class, word [`Cell`].
//!
//! A *single* is one prefix that ends within the next 8 bits, in the entry itself. In nodes and tables leaves are
//! written as singles too, wherever their class is small enough: they are read without a branch, and among many prefixes no
//! processor foresees which of the two comes next; so the reads of several packets overlap. A *skip* stands for a path without
//! branches: if the next `bits` of the address equal `expected`, go on with `next`, else the class is `miss`. A *node* is
//! a run-length encoded table of 256 entries: a bitmap of 256 bits (four `u64`; bit set where a run starts), four `u8`
//! counts of runs before each word, then one entry (`u32`) per run. A *table* has the 256 entries as they are: a touch
//! of memory less, for stretches with many runs.
//!
//! What the words mean is the compiler's business; that reading them never leaves the image is this module's and
//! that of the [`Pages`] behind it. An entry that points nowhere reads as an unreadable image, which drops.

use crate::limit::{Profile, profile};

/// Bytes of a page: value size of the inner maps of `IMAGES`.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
pub const PAGE_SHIFT: u32 = 20;

/// First word of an image.
pub const MAGIC: u64 = u64::from_le_bytes(*b"RAVELIN1");

/// Read access to the pages of one image.
pub trait Pages {
    type Page: Page;
    /// Page `index`, or `None` past the end of the image.
    fn page(&self, index: u32) -> Option<Self::Page>;

    /// The same word. In the kernel its value is hidden from the BPF verifier, so that ways which differ only in
    /// what it knows of a number are walked once.
    #[inline(always)]
    fn opaque(&self, word: u64) -> u64 {
        word
    }
}

/// One page. Offsets are taken modulo the page and rounded down to the width, so a read never fails.
pub trait Page: Copy {
    fn u8(self, at: u32) -> u8;
    fn u16(self, at: u32) -> u16;
    fn u32(self, at: u32) -> u32;
    fn u64(self, at: u32) -> u64;
}

/// Byte offsets of the header's fields.
pub mod field {
    /// `u64`, [`super::MAGIC`].
    pub const MAGIC: u32 = 0;
    /// `u32`, [`crate::LAYOUT_VERSION`].
    pub const LAYOUT: u32 = 8;
    /// `u32`, set of [`super::FLAG_DEFAULT_ALLOW`], [`super::FLAG_EGRESS_DENY`] and [`super::FLAG_EGRESS_RULES`].
    pub const FLAGS: u32 = 12;
    /// `u64`, bytes of the whole image before padding to pages.
    pub const LENGTH: u32 = 16;
    /// `u32`, rows of the verdict table: no service, the services, what leaves.
    pub const ROWS: u32 = 24;
    /// `u32`, columns of the verdict table.
    pub const CLASSES: u32 = 28;
    /// `u32`, endings of this image (see [`crate::counter`]).
    pub const ENDINGS: u32 = 32;
    /// `u32`, [`crate::counter::stride`] of the endings.
    pub const STRIDE: u32 = 36;
    /// `u64`, offset of the verdict table.
    pub const VERDICTS: u32 = 40;
    /// `u64`, offset of the port blocks.
    pub const BLOCKS: u32 = 48;
    /// `u32` and `u64`, bits and offset of the root table of IPv4.
    pub const V4_ROOT_BITS: u32 = 56;
    pub const V4_ROOT: u32 = 64;
    /// `u32` and `u64`, the same of IPv6.
    pub const V6_ROOT_BITS: u32 = 60;
    pub const V6_ROOT: u32 = 72;
    /// `u32`, the row of what leaves to a port that no egress rule names.
    pub const EGRESS_ROW: u32 = 80;
    /// `u32`, records of limits.
    pub const PROFILES: u32 = 84;
    /// `u64`, offset of what limits each ending: a [`super::LimitedBy`] (`u32`). None is read where there are no records.
    pub const LIMITED_BY: u32 = 88;
    /// `u64`, offset of the records, see [`crate::limit::profile`].
    pub const PROFILE_TABLE: u32 = 96;
    /// [`super::DIRECTORY_LEN`] `u16`: the port directory.
    pub const DIRECTORY: u32 = 128;
    /// The same of what leaves.
    pub const EGRESS_DIRECTORY: u32 = 2048;
}

/// The default verdict of what comes in is to allow.
pub const FLAG_DEFAULT_ALLOW: u32 = 1;
/// The default verdict of what leaves is to deny.
pub const FLAG_EGRESS_DENY: u32 = 2;
/// The policy judges what leaves: it has egress rules, or denies by default.
pub const FLAG_EGRESS_RULES: u32 = 4;

/// Directory entries: 256 each for TCP, UDP and SCTP, one each for ICMP types, ICMPv6 types and protocols.
pub const DIRECTORY_LEN: u32 = 3 * 256 + 3;
const _: () = assert!(
    field::DIRECTORY + DIRECTORY_LEN * 2 <= field::EGRESS_DIRECTORY
        && field::EGRESS_DIRECTORY as usize + DIRECTORY_LEN as usize * 2 <= PAGE_SIZE
);
/// Service id of what no service names.
pub const NO_SERVICE: u16 = 0;

/// What a service can own: a port of a transport, an ICMP type, an IP protocol. 0..`DIRECTORY_LEN * 256`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey(pub u32);

impl PortKey {
    pub const fn tcp(port: u16) -> PortKey {
        PortKey(port as u32)
    }
    pub const fn udp(port: u16) -> PortKey {
        PortKey(0x1_0000 + port as u32)
    }
    pub const fn sctp(port: u16) -> PortKey {
        PortKey(0x2_0000 + port as u32)
    }
    pub const fn icmp(icmp_type: u8) -> PortKey {
        PortKey(0x3_0000 + icmp_type as u32)
    }
    pub const fn icmpv6(icmp_type: u8) -> PortKey {
        PortKey(0x3_0100 + icmp_type as u32)
    }
    pub const fn protocol(number: u8) -> PortKey {
        PortKey(0x3_0200 + number as u32)
    }
}

/// A word of the class tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(pub u32);

/// What an [`Entry`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// The class of every address below.
    Leaf(u32),
    /// Class `hit` if the next byte of the address is `byte` but for its last `free` bits, else `miss`.
    Single { byte: u8, free: u8, hit: u32, miss: u32 },
    /// Offset of a skip.
    Skip(u64),
    /// Offset of a node.
    Node(u64),
    /// Offset of a table.
    Table(u64),
}

impl Entry {
    /// Set in what leads on.
    const POINTER: u32 = 1 << 31;
    /// Among pointers: a node or a table.
    const WIDE: u32 = 1 << 30;
    /// Among these: a table. Both lie at multiples of 16.
    const FLAT: u32 = 1;
    /// Among the others: not a leaf.
    const SINGLE: u32 = 1 << 30;
    const PAYLOAD: u32 = (1 << 30) - 1;
    /// Classes that a single can name.
    const HITS: u32 = 1 << 10;
    const MISSES: u32 = 1 << 9;

    /// `class` is below [`CLASSES`].
    pub const fn leaf(class: u32) -> Entry {
        Entry(class & Self::PAYLOAD)
    }
    /// `free` is below 8; a leaf is a single whose classes are the same. `None` if a class is beyond what a single can name.
    pub const fn single(byte: u8, free: u8, hit: u32, miss: u32) -> Option<Entry> {
        if hit >= Self::HITS || miss >= Self::MISSES {
            return None;
        }
        Some(Entry(
            Self::SINGLE | miss << 21 | hit << 11 | (free as u32 & 7) << 8 | byte as u32,
        ))
    }
    /// `offset` is a multiple of 16 below 2^33.
    pub const fn skip(offset: u64) -> Entry {
        Entry(Self::POINTER | (offset / 8) as u32 & Self::PAYLOAD)
    }
    /// `offset` is a multiple of 16 below 2^33.
    pub const fn node(offset: u64) -> Entry {
        Entry(Self::POINTER | Self::WIDE | (offset / 8) as u32 & Self::PAYLOAD)
    }
    /// `offset` is a multiple of 16 below 2^33.
    pub const fn table(offset: u64) -> Entry {
        Entry(Self::node(offset).0 | Self::FLAT)
    }

    #[inline(always)]
    pub const fn kind(self) -> EntryKind {
        if self.leads_on() {
            let offset = (self.0 & Self::PAYLOAD & !Self::FLAT) as u64 * 8;
            if self.0 & Self::WIDE == 0 {
                EntryKind::Skip(offset)
            } else if self.0 & Self::FLAT == 0 {
                EntryKind::Node(offset)
            } else {
                EntryKind::Table(offset)
            }
        } else if self.0 & Self::SINGLE == 0 {
            EntryKind::Leaf(self.0)
        } else {
            EntryKind::Single {
                byte: self.0 as u8,
                free: (self.0 >> 8) as u8 & 7,
                hit: self.0 >> 11 & (Self::HITS - 1),
                miss: self.0 >> 21 & (Self::MISSES - 1),
            }
        }
    }

    #[inline(always)]
    const fn leads_on(self) -> bool {
        self.0 & Self::POINTER != 0
    }
}

/// Classes that can be numbered: the `miss` of a skip shares its word with `bits`.
pub const CLASSES: u32 = 1 << 24;

/// Steps of the longest walk below a root: 120 bits in bytes.
const MAX_STEPS: u32 = 15;

/// Bytes of a node before its entries: bitmap and counts.
pub const NODE_HEADER: usize = 36;
/// Bytes of a skip: `expected` (`u64`, the next bits, top aligned), `next` (`u32`), `miss` (24 bits, a class) and `bits` (8
/// bits, 1..=64; below 8 only before a leaf).
pub const SKIP_SIZE: usize = 16;
/// Bytes of a table.
pub const TABLE_SIZE: usize = 1024;

/// A word of the verdict table: 0 is no match, else the reason and the ending of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell(pub u32);

impl Cell {
    pub const NO_MATCH: Cell = Cell(0);

    /// Among the bits of the reason, which are 6.
    const LIMITED: u32 = 1 << 31;

    /// `ending` is below 2^24.
    pub const fn new(reason: u8, ending: u32) -> Cell {
        Cell((reason as u32) << 24 | ending & 0x00ff_ffff)
    }
    /// The same, with limits: [`Image::profile`] of the ending.
    pub const fn with_limits(self) -> Cell {
        Cell(self.0 | Self::LIMITED)
    }
    #[inline(always)]
    pub const fn reason(self) -> u8 {
        (self.0 >> 24) as u8 & 0x3f
    }
    #[inline(always)]
    pub const fn is_limited(self) -> bool {
        self.0 & Self::LIMITED != 0
    }
    #[inline(always)]
    pub const fn ending(self) -> u32 {
        self.0 & 0x00ff_ffff
    }
}

/// What limits an ending: the number of a record (from 1, low half; 0 for none), and its [`crate::limit::flag`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitedBy(pub u32);

impl LimitedBy {
    pub const NOTHING: LimitedBy = LimitedBy(0);

    /// `flags` are below 2^16.
    pub const fn new(number: u16, flags: u32) -> LimitedBy {
        LimitedBy(number as u32 | flags << 16)
    }
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0 & 0xffff
    }
    #[inline(always)]
    pub const fn flags(self) -> u32 {
        self.0 >> 16
    }
}

/// The header fields that a decision needs, and the pages behind them.
pub struct Image<'a, P: Pages> {
    pages: &'a P,
    first: P::Page,
}

impl<'a, P: Pages> Image<'a, P> {
    /// `None` if there is no first page or it is not that of an image.
    #[inline(always)]
    pub fn open(pages: &'a P) -> Option<Self> {
        let first = pages.page(0)?;
        // The pins of a layout are apart, so the magic alone tells an image from an empty page.
        if first.u64(field::MAGIC) != MAGIC {
            return None;
        }
        Some(Image { pages, first })
    }

    /// An image that was opened before: its pages and [`Self::first`].
    #[inline(always)]
    pub fn opened(pages: &'a P, first: P::Page) -> Self {
        Image { pages, first }
    }

    /// Its first page.
    #[inline(always)]
    pub fn first(&self) -> P::Page {
        self.first
    }

    #[inline(always)]
    pub fn default_allows(&self) -> bool {
        self.first.u32(field::FLAGS) & FLAG_DEFAULT_ALLOW != 0
    }

    /// Whether what leaves is dropped unless a rule allows it.
    #[inline(always)]
    pub fn egress_denies(&self) -> bool {
        self.first.u32(field::FLAGS) & FLAG_EGRESS_DENY != 0
    }

    /// Whether the policy says anything of what leaves, by rules or by its default.
    #[inline(always)]
    pub fn judges_egress(&self) -> bool {
        self.first.u32(field::FLAGS) & FLAG_EGRESS_RULES != 0
    }

    /// [`crate::counter::stride`] of this image.
    #[inline(always)]
    pub fn stride(&self) -> u32 {
        self.first.u32(field::STRIDE)
    }

    /// The page that holds `offset`; page 0 is at hand already.
    #[inline(always)]
    fn page_of(&self, offset: u64) -> Option<P::Page> {
        match (offset >> PAGE_SHIFT) as u32 {
            0 => Some(self.first),
            index => self.pages.page(index),
        }
    }

    /// The service that owns a port, [`NO_SERVICE`] if none does.
    #[inline(always)]
    pub fn service(&self, key: PortKey) -> Option<u16> {
        match self.first.u16(field::DIRECTORY + (key.0 >> 8) * 2) {
            0 => Some(NO_SERVICE),
            block => self.slot(block, key),
        }
    }

    /// The row of the verdict table that judges what leaves to a port.
    #[inline(always)]
    pub fn egress_row(&self, key: PortKey) -> Option<u16> {
        match self.first.u16(field::EGRESS_DIRECTORY + (key.0 >> 8) * 2) {
            0 => Some(self.first.u32(field::EGRESS_ROW) as u16),
            block => self.slot(block, key),
        }
    }

    /// What a port block (from 1) holds of a key.
    #[inline(always)]
    fn slot(&self, block: u16, key: PortKey) -> Option<u16> {
        let offset = self.first.u64(field::BLOCKS) + block as u64 * 512 + (key.0 & 0xff) as u64 * 2;
        Some(self.page_of(offset)?.u16(offset as u32))
    }

    /// The class of an address: halves as in [`crate::packet::Packet::src`].
    #[inline(always)]
    pub fn class(&self, version: u8, high: u64, low: u64) -> Option<u32> {
        // From here on both families are bits from the top.
        let (bits, root, high, low) = match version {
            4 => (field::V4_ROOT_BITS, field::V4_ROOT, low << 32, 0),
            _ => (field::V6_ROOT_BITS, field::V6_ROOT, high, low),
        };
        let bits = self.first.u32(bits) & 31;
        let offset = self.first.u64(root) + (high >> 32 >> (32 - bits)) * 4;
        let mut entry = Entry(self.page_of(offset)?.u32(offset as u32));
        let (mut high, mut low) = shift(high, low, bits);
        // The root takes at least 8 bits, each step 8 or more.
        for _ in 0..MAX_STEPS {
            let next = (high >> 56) as u32;
            let taken = match entry.kind() {
                EntryKind::Leaf(_) | EntryKind::Single { .. } => break,
                EntryKind::Skip(skip) => {
                    let (page, at) = (self.page_of(skip)?, skip as u32);
                    let word = page.u64(at + 8);
                    let bits = (word >> 56) as u32;
                    // `bits` is 1..=64: shift by less than 64 only.
                    if (high ^ page.u64(at)) >> ((64 - bits) & 63) != 0 {
                        return Some((word >> 32) as u32 & (CLASSES - 1));
                    }
                    entry = Entry(word as u32);
                    bits
                }
                EntryKind::Node(node) => {
                    entry = self.node(node, next)?;
                    8
                }
                EntryKind::Table(table) => {
                    let offset = table + next as u64 * 4;
                    entry = Entry(self.page_of(offset)?.u32(offset as u32));
                    8
                }
            };
            (high, low) = shift(high, low, self.pages.opaque(taken as u64) as u32 & 127);
            (high, low) = (self.pages.opaque(high), self.pages.opaque(low));
            entry = Entry(self.pages.opaque(entry.0 as u64) as u32);
        }
        match entry.kind() {
            EntryKind::Leaf(class) => Some(class),
            EntryKind::Single {
                byte,
                free,
                hit,
                miss,
            } => {
                let differs = ((high >> 56) as u8 ^ byte) >> free;
                // All bits or none, without a branch: which it is nobody foresees.
                let mask = (self.pages.opaque(differs as u64).wrapping_neg() as i64 >> 63) as u32;
                Some(hit ^ (hit ^ miss) & mask)
            }
            EntryKind::Skip(_) | EntryKind::Node(_) | EntryKind::Table(_) => None,
        }
    }

    /// Entry `index` (0..=255) of the node at `offset`.
    #[inline(always)]
    fn node(&self, offset: u64, index: u32) -> Option<Entry> {
        let (page, at) = (self.page_of(offset)?, offset as u32);
        let word = index >> 6;
        let upto = page.u64(at + word * 8) & (u64::MAX >> (63 - (index & 63)));
        // By a shift and not by `at + 32 + word`, which LLVM makes an OR: kernels before 6.10 take an OR of two
        // unknowns for unbounded.
        let before = page.u32(at + 32) >> (word * 8) & 0xff;
        let rank = (before + ones(upto)).wrapping_sub(1);
        Some(Entry(page.u32(at + NODE_HEADER as u32 + rank * 4)))
    }

    /// What the policy says of a class in a row: that of a [service](Self::service) for what comes in, an
    /// [egress row](Self::egress_row) for what leaves.
    #[inline(always)]
    pub fn verdict(&self, row: u16, class: u32) -> Option<Cell> {
        let classes = self.first.u32(field::CLASSES);
        if class >= classes || row as u32 >= self.first.u32(field::ROWS) {
            return None;
        }
        let offset = self.first.u64(field::VERDICTS) + (row as u64 * classes as u64 + class as u64) * 4;
        Some(Cell(self.page_of(offset)?.u32(offset as u32)))
    }
}

impl<P: Pages> Image<'_, P> {
    /// What limits an ending.
    #[inline(always)]
    pub fn limited_by(&self, ending: u32) -> Option<LimitedBy> {
        if self.first.u32(field::PROFILES) == 0 {
            return Some(LimitedBy::NOTHING);
        }
        if ending >= self.first.u32(field::ENDINGS) {
            return None;
        }
        let offset = self.first.u64(field::LIMITED_BY) + ending as u64 * 4;
        Some(LimitedBy(self.page_of(offset)?.u32(offset as u32)))
    }

    /// Limits by their number, from 1.
    #[inline(always)]
    pub fn profile(&self, number: u32) -> Option<Profile<P::Page>> {
        let index = number.wrapping_sub(1);
        if index >= self.first.u32(field::PROFILES) {
            return None;
        }
        let offset = self.first.u64(field::PROFILE_TABLE) + (index * profile::SIZE) as u64;
        // A record is whole in its page, for it lies at a multiple of its size. That is not said here, or LLVM makes an OR of
        // each addition to it: kernels before 6.10 take an OR of two unknowns for unbounded.
        Some(Profile::new(self.page_of(offset)?, offset as u32))
    }
}

/// The address without its top `bits` (0..=64).
#[inline(always)]
const fn shift(high: u64, low: u64, bits: u32) -> (u64, u64) {
    if bits >= 64 {
        return (low, 0);
    }
    // In two steps, for `bits` may be 0.
    (high << bits | low >> 1 >> (63 - bits), low << bits)
}

/// Population count in arithmetic: BPF has no instruction for it.
#[inline(always)]
const fn ones(mut word: u64) -> u32 {
    word -= word >> 1 & 0x5555_5555_5555_5555;
    word = (word & 0x3333_3333_3333_3333) + (word >> 2 & 0x3333_3333_3333_3333);
    word = (word + (word >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    (word.wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
}

/// Pages in a byte slice; the host's side of [`Pages`].
#[derive(Clone, Copy)]
pub struct SlicePages<'a>(pub &'a [u8]);

/// One page of [`SlicePages`].
#[derive(Clone, Copy)]
pub struct SlicePage<'a>(&'a [u8; PAGE_SIZE]);

impl<'a> Pages for SlicePages<'a> {
    type Page = SlicePage<'a>;

    fn page(&self, index: u32) -> Option<SlicePage<'a>> {
        let start = (index as usize).checked_mul(PAGE_SIZE)?;
        let page = self.0.get(start..start.checked_add(PAGE_SIZE)?)?;
        page.try_into().ok().map(SlicePage)
    }
}

impl SlicePage<'_> {
    fn bytes<const N: usize>(self, at: u32) -> [u8; N] {
        let at = at as usize & (PAGE_SIZE - N);
        let mut out = [0; N];
        out.copy_from_slice(&self.0[at..at + N]);
        out
    }
}

impl Page for SlicePage<'_> {
    fn u8(self, at: u32) -> u8 {
        self.bytes::<1>(at)[0]
    }
    fn u16(self, at: u32) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }
    fn u32(self, at: u32) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }
    fn u64(self, at: u32) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_counts_bits() {
        for word in [0, 1, u64::MAX, 0x8000_0000_0000_0001, 0x5555_aaaa_1234_fedc] {
            assert_eq!(ones(word), word.count_ones());
        }
    }

    #[test]
    fn shift_takes_bits_off_the_top_of_both_halves() {
        let address = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210_u128;
        for bits in 0..=64 {
            let (high, low) = shift((address >> 64) as u64, address as u64, bits);
            assert_eq!((high as u128) << 64 | low as u128, address << bits, "{bits}");
        }
    }

    #[test]
    fn entries_and_cells_give_back_what_was_put_in() {
        assert_eq!(Entry::leaf(77).kind(), EntryKind::Leaf(77));
        assert_eq!(
            Entry::skip((1 << 33) - 16).kind(),
            EntryKind::Skip((1 << 33) - 16)
        );
        assert_eq!(
            Entry::node((1 << 33) - 16).kind(),
            EntryKind::Node((1 << 33) - 16)
        );
        assert_eq!(Entry::table(4096).kind(), EntryKind::Table(4096));
        let single = Entry::single(0xa5, 7, 1023, 511).unwrap();
        assert_eq!(
            single.kind(),
            EntryKind::Single {
                byte: 0xa5,
                free: 7,
                hit: 1023,
                miss: 511
            }
        );
        assert_eq!(
            (Entry::single(0, 0, 1024, 0), Entry::single(0, 0, 0, 512)),
            (None, None)
        );
        let cell = Cell::new(16, 0x00ab_cdef);
        assert_eq!((cell.reason(), cell.ending()), (16, 0x00ab_cdef));
    }
}
