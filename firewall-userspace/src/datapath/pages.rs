//! An image read where it is mapped.

use super::sys::Mapping;
use firewall_common::image::{PAGE_SIZE, Page, Pages};

/// The pages of an image in its mapping.
pub(super) struct MappedPages<'a>(pub &'a Mapping);

/// One of them.
#[derive(Clone, Copy)]
pub(super) struct MappedPage<'a> {
    image: &'a Mapping,
    start: usize,
}

impl<'a> Pages for MappedPages<'a> {
    type Page = MappedPage<'a>;

    fn page(&self, index: u32) -> Option<MappedPage<'a>> {
        let start = (index as usize).checked_mul(PAGE_SIZE)?;
        let end = start.checked_add(PAGE_SIZE)?;
        (end <= self.0.len()).then_some(MappedPage { image: self.0, start })
    }
}

impl MappedPage<'_> {
    fn bytes<const N: usize>(self, at: u32) -> [u8; N] {
        let mut out = [0; N];
        self.image
            .read(self.start + (at as usize & (PAGE_SIZE - N)), &mut out);
        out
    }
}

impl Page for MappedPage<'_> {
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
