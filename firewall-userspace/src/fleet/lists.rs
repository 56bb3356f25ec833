//! List files as the store keeps them: small objects under the digest of their bytes, so that a change of one prefix in a
//! million moves one of them and the few that lead to it.
//!
//! The prefixes of a list are sorted, each once, and cut into *chunks*; *pages* name chunks by their digests, and one
//! *root* names the pages. Where to cut is decided by the content alone (a hash of the last prefix, of the last digest), so
//! a change shifts nothing behind it. The root's digest stands for the content: equal lists have equal roots, whatever
//! their order and comments. A document's statement signs that digest, and every object is checked against its own, so
//! where they come from does not matter; what they claim is bounded all the same.

use super::statement::Digest;
use crate::policy::diagnostic::Diagnostic;
use crate::policy::lists;
use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// Prefixes of a list at most.
pub const MAX_PREFIXES: u64 = 16 << 20;
/// Bytes of an object at most.
pub const MAX_OBJECT: usize = 128 << 10;
/// Chunks of a page: one in so many ends it.
const PAGE: u64 = 32;
const MAX_PAGE: usize = 256;
const DIGEST: usize = 32;

const ROOT_MAGIC: &[u8] = b"ravelin-list 1 root\n";
const PAGE_MAGIC: &[u8] = b"ravelin-list 1 page\n";
const CHUNK_MAGIC: &[u8] = b"ravelin-list 1 chunk\n";
/// How hard to compress: what deflate gains beyond is a few bytes.
const LEVEL: u8 = 6;

/// A prefix of either family.
type Prefix = (u128, u8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// Prefixes of a chunk: one in so many ends it. Hosts at random take 2 and 13 bytes each.
    fn chunk(self) -> u64 {
        match self {
            Family::V4 => 2048,
            Family::V6 => 256,
        }
    }

    fn max_chunk(self) -> usize {
        self.chunk() as usize * 4
    }
}

/// A list as objects for the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub root: Digest,
    /// All of them, the root among them.
    pub objects: BTreeMap<Digest, Vec<u8>>,
    pub prefixes: u64,
}

/// Why objects make no list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error("object {0} of the list is missing")]
    Missing(Digest),
    #[error("object {digest} of the list is damaged: {why}")]
    Damaged { digest: Digest, why: String },
    #[error("a list of {0} prefixes; {MAX_PREFIXES} are accepted")]
    TooMany(u64),
}

/// Cuts the content of a list file.
///
/// # Errors
/// What is wrong with the file.
pub fn encode(bytes: &[u8], path: &Path) -> Result<Encoded, Vec<Diagnostic>> {
    let list = lists::parse(bytes, path)?.prefixes;
    let v4: Vec<Prefix> = list
        .v4
        .iter()
        .map(|&(address, length)| (u128::from(address), length))
        .collect();
    let count = v4.len() as u64 + list.v6.len() as u64;
    if count > MAX_PREFIXES {
        let error = ListError::TooMany(count).to_string();
        return Err(vec![Diagnostic::whole_file(path, error)]);
    }
    let mut chunks = Vec::new();
    let mut prefixes = 0;
    for (family, mut all) in [(Family::V4, v4), (Family::V6, list.v6)] {
        all.sort_unstable();
        all.dedup();
        prefixes += all.len() as u64;
        let ends = |prefix: &Prefix| mixed(*prefix).is_multiple_of(family.chunk());
        chunks.extend(cut(&all, family.max_chunk(), ends).map(|chunk| write_chunk(family, chunk)));
    }
    let mut objects = BTreeMap::new();
    let mut add = |object: Vec<u8>| {
        let digest = Digest::of(&object);
        objects.insert(digest, object);
        digest
    };
    let chunks: Vec<Digest> = chunks.into_iter().map(&mut add).collect();
    let ends = |digest: &Digest| u64::from(digest.0[0]).is_multiple_of(PAGE);
    let pages: Vec<Digest> = cut(&chunks, MAX_PAGE, ends)
        .map(|page| add(write_digests(PAGE_MAGIC, page)))
        .collect();
    let head = [ROOT_MAGIC, &prefixes.to_be_bytes()].concat();
    let root = add(write_digests(&head, &pages));
    Ok(Encoded {
        root,
        objects,
        prefixes,
    })
}

/// Runs of `items`: each ends after an item that `ends`, or with `most` items.
fn cut<T>(items: &[T], most: usize, ends: impl Fn(&T) -> bool) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let end = rest
            .iter()
            .take(most)
            .position(&ends)
            .map_or(rest.len().min(most), |at| at + 1);
        let (run, left) = rest.split_at(end);
        rest = left;
        (!run.is_empty()).then_some(run)
    })
}

/// Evenly spread bits of a prefix (splitmix64).
fn mixed((address, length): Prefix) -> u64 {
    let step = |value: u64| {
        let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    };
    step(step(address as u64) ^ step((address >> 64) as u64 ^ u64::from(length) << 56))
}

/// Columns compress better than rows: family, count, how many low bits are zero in all, lengths, differences.
fn write_chunk(family: Family, chunk: &[Prefix]) -> Vec<u8> {
    let longest = chunk.iter().map(|&(_, length)| length).max().unwrap_or(1);
    let shift = family.bits() - longest;
    let mut raw = vec![family.bits()];
    write_number(&mut raw, chunk.len() as u128);
    raw.push(shift);
    raw.extend(chunk.iter().map(|&(_, length)| length));
    let mut last = 0;
    for &(address, _) in chunk {
        let address = address.checked_shr(shift.into()).unwrap_or(0);
        write_number(&mut raw, address - last);
        last = address;
    }
    [CHUNK_MAGIC, &compress_to_vec(&raw, LEVEL)].concat()
}

/// Seven bits a byte, the low ones first.
fn write_number(out: &mut Vec<u8>, mut number: u128) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn write_digests(head: &[u8], digests: &[Digest]) -> Vec<u8> {
    let digests = digests.iter().flat_map(|digest| digest.0);
    head.iter().copied().chain(digests).collect()
}

/// The objects of a list that `have` does not give, as far as those that it gives can tell: to be asked again with them,
/// until there are none.
///
/// # Errors
/// An object that is not what its name says, or names too much.
pub fn missing<B: AsRef<[u8]>>(
    root: &Digest,
    mut have: impl FnMut(&Digest) -> Option<B>,
) -> Result<Vec<Digest>, ListError> {
    let mut missing = Vec::new();
    let mut asked = HashSet::new();
    let mut look = |digest: &Digest, missing: &mut Vec<Digest>| {
        let found = have(digest);
        if found.is_none() && asked.insert(*digest) {
            missing.push(*digest);
        }
        found
    };
    let Some(bytes) = look(root, &mut missing) else {
        return Ok(missing);
    };
    let (_, pages) = read_root(root, bytes.as_ref())?;
    for page in pages {
        let Some(bytes) = look(&page, &mut missing) else {
            continue;
        };
        for chunk in read_page(&page, bytes.as_ref())? {
            look(&chunk, &mut missing);
        }
    }
    Ok(missing)
}

/// Every object of a list: what must be kept while it is used.
///
/// # Errors
/// A missing or damaged object above the chunks.
pub fn objects<B: AsRef<[u8]>>(
    root: &Digest,
    mut have: impl FnMut(&Digest) -> Option<B>,
) -> Result<Vec<Digest>, ListError> {
    let mut get = |digest: &Digest| have(digest).ok_or(ListError::Missing(*digest));
    let (_, pages) = read_root(root, get(root)?.as_ref())?;
    let mut all = vec![*root];
    for page in pages {
        all.push(page);
        all.extend(read_page(&page, get(&page)?.as_ref())?);
    }
    Ok(all)
}

/// How many prefixes a list has, by its root.
///
/// # Errors
/// A root that is damaged.
pub fn prefixes(root: &Digest, bytes: &[u8]) -> Result<u64, ListError> {
    Ok(read_root(root, bytes)?.0)
}

/// Puts a list together: a prefix a line, as [`lists::parse`] takes them.
///
/// # Errors
/// An object that is missing or damaged.
pub fn decode<B: AsRef<[u8]>>(
    root: &Digest,
    mut have: impl FnMut(&Digest) -> Option<B>,
) -> Result<Vec<u8>, ListError> {
    let mut get = |digest: &Digest| have(digest).ok_or(ListError::Missing(*digest));
    let (promised, pages) = read_root(root, get(root)?.as_ref())?;
    let mut text = String::new();
    let mut last: Option<(Family, Prefix)> = None;
    let mut count = 0;
    for page in pages {
        for chunk in read_page(&page, get(&page)?.as_ref())? {
            let (family, prefixes) = read_chunk(&chunk, get(&chunk)?.as_ref())?;
            let damaged = |why: &str| {
                Err(ListError::Damaged {
                    digest: chunk,
                    why: why.to_owned(),
                })
            };
            count += prefixes.len() as u64;
            if count > promised {
                return damaged("more prefixes than the root says");
            }
            // One family after the other, each prefix above the one before.
            match last {
                Some((Family::V6, _)) if family == Family::V4 => return damaged("IPv4 behind IPv6"),
                Some((before, prefix)) if before == family && prefix >= prefixes[0] => {
                    return damaged("prefixes out of order");
                }
                _ => {}
            }
            last = prefixes.last().map(|&prefix| (family, prefix));
            for (address, length) in prefixes {
                // Writing to a string does not fail. A host stands without its length, as people write it.
                let _ = match family {
                    Family::V4 => write!(text, "{}", Ipv4Addr::from(address as u32)),
                    Family::V6 => write!(text, "{}", Ipv6Addr::from(address)),
                };
                let _ = match length == family.bits() {
                    true => writeln!(text),
                    false => writeln!(text, "/{length}"),
                };
            }
        }
    }
    match count == promised {
        true => Ok(text.into_bytes()),
        false => Err(ListError::Damaged {
            digest: *root,
            why: format!("{count} prefixes where it says {promised}"),
        }),
    }
}

/// The bytes behind `magic` of an object that is what `digest` says.
fn content<'a>(digest: &Digest, bytes: &'a [u8], magic: &[u8]) -> Result<&'a [u8], ListError> {
    let damaged = |why: String| ListError::Damaged { digest: *digest, why };
    if bytes.len() > MAX_OBJECT {
        return Err(damaged(format!("{} bytes, more than {MAX_OBJECT}", bytes.len())));
    }
    if Digest::of(bytes) != *digest {
        return Err(damaged("its bytes have another digest".into()));
    }
    let what = String::from_utf8_lossy(magic);
    bytes
        .strip_prefix(magic)
        .ok_or_else(|| damaged(format!("it does not begin with {:?}", what.trim_end())))
}

fn read_root(digest: &Digest, bytes: &[u8]) -> Result<(u64, Vec<Digest>), ListError> {
    let rest = content(digest, bytes, ROOT_MAGIC)?;
    let Some((count, rest)) = rest.split_first_chunk() else {
        return Err(ListError::Damaged {
            digest: *digest,
            why: "it is cut short".into(),
        });
    };
    let count = u64::from_be_bytes(*count);
    if count > MAX_PREFIXES {
        return Err(ListError::TooMany(count));
    }
    Ok((count, read_digests(digest, rest)?))
}

fn read_page(digest: &Digest, bytes: &[u8]) -> Result<Vec<Digest>, ListError> {
    let chunks = read_digests(digest, content(digest, bytes, PAGE_MAGIC)?)?;
    match chunks.len() {
        1..=MAX_PAGE => Ok(chunks),
        count => Err(ListError::Damaged {
            digest: *digest,
            why: format!("a page of {count} chunks"),
        }),
    }
}

fn read_digests(digest: &Digest, bytes: &[u8]) -> Result<Vec<Digest>, ListError> {
    let (digests, rest) = bytes.as_chunks::<DIGEST>();
    match rest.is_empty() {
        true => Ok(digests.iter().map(|&bytes| Digest(bytes)).collect()),
        false => Err(ListError::Damaged {
            digest: *digest,
            why: "it is cut short".into(),
        }),
    }
}

/// At least one prefix, in order.
fn read_chunk(digest: &Digest, bytes: &[u8]) -> Result<(Family, Vec<Prefix>), ListError> {
    // A count of at most three bytes, and for each prefix its length and at most 19 bytes of 7 bits.
    const MOST: usize = 5 + 2048 * 4 * 20;
    let packed = content(digest, bytes, CHUNK_MAGIC)?;
    let raw = decompress_to_vec_with_limit(packed, MOST);
    let chunk = raw.ok().and_then(|raw| unpack(&raw));
    chunk.ok_or_else(|| ListError::Damaged {
        digest: *digest,
        why: "it is not a chunk of a list".into(),
    })
}

fn unpack(raw: &[u8]) -> Option<(Family, Vec<Prefix>)> {
    let (&bits, mut rest) = raw.split_first()?;
    let family = match bits {
        32 => Family::V4,
        128 => Family::V6,
        _ => return None,
    };
    let count = usize::try_from(read_number(&mut rest)?).ok()?;
    if !(1..=family.max_chunk()).contains(&count) {
        return None;
    }
    let (&shift, rest) = rest.split_first()?;
    let (lengths, mut rest) = rest.split_at_checked(count)?;
    if shift >= bits {
        return None;
    }
    let mut prefixes: Vec<Prefix> = Vec::with_capacity(count);
    let mut last = 0u128;
    for &length in lengths {
        last = last.checked_add(read_number(&mut rest)?)?;
        // What is shifted out, or does not fit the family, or lies below the prefix's end, was not there before.
        let address = last << shift;
        let all = u128::MAX >> (128 - bits);
        let host = all.checked_shr(length.into()).unwrap_or(0);
        if address >> shift != last || address > all || !(1..=bits).contains(&length) || address & host != 0 {
            return None;
        }
        if prefixes.last().is_some_and(|&before| before >= (address, length)) {
            return None;
        }
        prefixes.push((address, length));
    }
    rest.is_empty().then_some((family, prefixes))
}

fn read_number(rest: &mut &[u8]) -> Option<u128> {
    let mut number = 0u128;
    for shift in (0..128).step_by(7) {
        let (&byte, left) = rest.split_first()?;
        *rest = left;
        let bits = u128::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests;
