//! The state of limits in the kernel: which scope of an image has which place in `SCOPES`, and its tables.
//!
//! An image numbers its scopes from 0. When it is put into a slot, each gets a scope of the kernel: the one that has its
//! name already, or a free one; `BINDINGS` holds which. So state outlives every policy in which the name stays, and every
//! agent: the next one finds the names in the pinned maps. A scope that no slot binds is freed, tables and all.
//!
//! * A number without a binding reads 0, which the programs take for unreadable state: excess, never a pass.
//! * Tables are inner arrays of `SKETCHES`, pinned as `sketch-<scope>-<table>`. One whose size was configured anew starts
//!   empty; everything else keeps what it holds.
//! * All tables of a policy are made before anything else is touched, so a policy that does not fit changes nothing.

use super::{
    DatapathError, load,
    pages::MappedPages,
    sys::{self, Mapping, OuterArray},
};
use crate::policy::compile::Scope;
use firewall_common::{
    control::SLOTS,
    image::{Image, Page as _, field},
    limit::{
        COUNTS, Kind, MAX_LOCAL, MAX_SCOPES, SOURCE_TIME, TABLES, TOTAL_TIME, WAYS, ahead, flag, profile,
        scope,
    },
};
use std::{
    fmt, io,
    ops::RangeInclusive,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

/// Bytes of a line.
const LINE: usize = WAYS as usize * 8;
/// Bytes of an element of an array of `u32`: the kernel rounds up.
pub(super) const BINDING: usize = 8;
/// Threads that wait for grace periods side by side.
const WAITERS: usize = 32;

/// How much limits may remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Sources that a sketch tells apart; rounded up to a power of two.
    pub sources: u32,
    /// Sources with connections that a table of counts holds; rounded up to a power of two.
    pub connections: u32,
    /// Bytes of kernel memory that the tables of one policy may take.
    pub memory: u64,
}

impl Sizes {
    /// Sources of one table: 8 bytes each, of kernel memory.
    pub const SOURCES: RangeInclusive<u32> = 1024..=16_777_216;

    /// Lines of a table.
    fn lines(self, table: u32) -> u32 {
        let sources = if table == COUNTS {
            self.connections
        } else {
            self.sources
        };
        let sources = sources.clamp(*Self::SOURCES.start(), *Self::SOURCES.end());
        sources.next_power_of_two() / WAYS
    }

    /// What a policy takes.
    pub fn need(self, scopes: &[Scope]) -> Need {
        let mut need = Need {
            scopes: scopes.len(),
            tables: 0,
            bytes: 0,
        };
        for table in scopes.iter().flat_map(tables) {
            need.tables += 1;
            need.bytes += u64::from(self.lines(table)) * LINE as u64;
        }
        need
    }
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes {
            sources: 65_536,
            connections: 65_536,
            memory: 256_000_000,
        }
    }
}

/// Kernel memory that the limits of a policy take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    pub scopes: usize,
    pub tables: usize,
    pub bytes: u64,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Need {
            scopes,
            tables,
            bytes,
        } = self;
        let (table, limit) = (plural(*tables, "table"), plural(*scopes, "limit"));
        write!(
            f,
            "{:.1} MB of kernel memory ({table} of {limit})",
            *bytes as f64 / 1e6
        )
    }
}

fn plural(count: usize, of: &str) -> String {
    format!("{count} {of}{}", if count == 1 { "" } else { "s" })
}

/// Numbers of the tables that a scope needs.
fn tables(scope: &Scope) -> impl Iterator<Item = u32> + use<> {
    let needs = scope.needs;
    (0..TABLES).filter(move |table| needs & 1 << table != 0)
}

/// The hash by which a scope is found again; never 0, which is nobody's.
pub(super) fn name_hash(name: &str) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(word).max(1)
}

/// The maps that scopes live in.
#[derive(Clone, Copy)]
pub(super) struct ScopeMaps<'fd> {
    pub scopes: BorrowedFd<'fd>,
    pub sketches: BorrowedFd<'fd>,
    pub bindings: BorrowedFd<'fd>,
}

/// All scopes of the kernel.
pub(super) struct Scopes {
    directory: PathBuf,
    sizes: Sizes,
    scopes: Mapping,
    sketches: OwnedFd,
    bindings: Mapping,
}

/// What one scope of the policy in force holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LimitUse {
    /// How much of the burst of each total is spent, 0 to 1; by [`Kind`].
    pub totals: [Option<f64>; 3],
    /// Established connections, if they are limited.
    pub connections: Option<u64>,
    /// By table: sources that it holds.
    pub sources: [Option<Fill>; TABLES as usize],
    /// Since and until which second new connections are challenged.
    pub challenged: Option<(u32, u32)>,
}

/// Sources that a table holds now, of a large one estimated from some of its lines, and for how many it has room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    pub sources: u64,
    pub room: u64,
}

/// A table that is made and not in its place yet.
struct Made {
    scope: u32,
    table: u32,
    map: OwnedFd,
    /// There was one of another size.
    instead: bool,
}

impl Scopes {
    pub fn open(directory: &Path, maps: ScopeMaps<'_>, sizes: Sizes) -> Result<Scopes, DatapathError> {
        let mapped =
            |fd, len, what: &'static str| Mapping::new(fd, len, true).map_err(DatapathError::system(what));
        Ok(Scopes {
            directory: directory.to_owned(),
            sizes,
            scopes: mapped(
                maps.scopes,
                (MAX_SCOPES * scope::WORDS) as usize * 8,
                "mapping the scopes of limits",
            )?,
            sketches: maps
                .sketches
                .try_clone_to_owned()
                .map_err(DatapathError::system("a descriptor"))?,
            bindings: mapped(
                maps.bindings,
                (SLOTS * MAX_LOCAL) as usize * BINDING,
                "mapping the bindings of limits",
            )?,
        })
    }

    /// Whether the limits of a policy fit.
    ///
    /// # Errors
    /// They would take more memory than is granted, or are too many.
    pub fn check(&self, scopes: &[Scope]) -> Result<Need, DatapathError> {
        let need = self.sizes.need(scopes);
        if scopes.len() > MAX_LOCAL as usize {
            return Err(DatapathError::TooManyScopes { count: scopes.len() });
        }
        if need.bytes > self.sizes.memory {
            return Err(DatapathError::LimitMemory {
                need,
                granted: self.sizes.memory,
            });
        }
        Ok(need)
    }

    /// Binds the scopes of an image that no packet is judged by yet to the slot that it is put into.
    ///
    /// # Errors
    /// They do not fit; then no scope has changed.
    pub fn bind(&self, slot: u32, scopes: &[Scope]) -> Result<(), DatapathError> {
        self.check(scopes)?;
        let places = self.places(scopes)?;
        let mut made = Vec::new();
        for (wanted, &(place, _)) in scopes.iter().zip(&places) {
            for table in tables(wanted) {
                let lines = self.sizes.lines(table);
                let (known, fits) = self.table(place, table, lines);
                if !fits {
                    let map = sys::inner_array(&format!("sketch_{place}"), LINE as u32, lines)
                        .map_err(DatapathError::system("creating the sketch of a limit"))?;
                    made.push(Made {
                        scope: place,
                        table,
                        map,
                        instead: known,
                    });
                }
            }
        }
        // Nothing was changed so far, and what follows only fails if somebody takes the pins away meanwhile.
        for (wanted, &(place, fresh)) in scopes.iter().zip(&places) {
            if fresh {
                for word in 0..scope::WORDS {
                    self.word(place, word).store(0, Ordering::Relaxed);
                }
                self.word(place, scope::NAME)
                    .store(name_hash(&wanted.name), Ordering::Relaxed);
            }
            if made.iter().any(|one| one.scope == place && one.instead) {
                log::info!(
                    "the limits of {} have tables of another size and start anew",
                    wanted.name
                );
            }
            // A mask that is too small for its array for a moment leaves lines unused. One too large would find no line,
            // and that is excess.
            for (word, table) in [(scope::SKETCH_MASK, 0), (scope::COUNT_MASK, COUNTS)] {
                let mask = u64::from(self.sizes.lines(table)) - 1;
                let cell = self.word(place, word);
                if fresh || mask < cell.load(Ordering::Relaxed) {
                    cell.store(mask, Ordering::Relaxed);
                }
            }
        }
        for one in &made {
            let path = self.pin_path(one.scope, one.table);
            load::remove_pin(&path).map_err(DatapathError::path("removing", &path))?;
            sys::pin(one.map.as_fd(), &path).map_err(DatapathError::path("pinning", &path))?;
        }
        let put = made
            .iter()
            .map(|one| (one.scope * TABLES + one.table, Some(one.map.as_fd())));
        self.put(&put.collect::<Vec<_>>())
            .map_err(DatapathError::system("putting the sketches of limits into place"))?;
        for (local, &(place, _)) in (0..).zip(&places) {
            for (word, table) in [(scope::SKETCH_MASK, 0), (scope::COUNT_MASK, COUNTS)] {
                let mask = u64::from(self.sizes.lines(table)) - 1;
                self.word(place, word).store(mask, Ordering::Relaxed);
            }
            self.binding(slot, local).store(place + 1, Ordering::Release);
        }
        Ok(())
    }

    /// Takes the bindings of a slot that no packet reads away, and frees what no other slot binds.
    pub fn unbind(&self, slot: u32) -> Result<(), DatapathError> {
        for local in 0..MAX_LOCAL {
            self.binding(slot, local).store(0, Ordering::Relaxed);
        }
        let mut used = vec![false; MAX_SCOPES as usize];
        for place in (0..SLOTS).flat_map(|slot| self.bound(slot)).flatten() {
            used[place as usize] = true;
        }
        let unused: Vec<u32> = (0..MAX_SCOPES)
            .filter(|place| !used[*place as usize] && self.name(*place) != 0)
            .collect();
        let outer = OuterArray::new(self.sketches.as_fd())
            .map_err(DatapathError::system("the sketches of limits"))?;
        let mut clear = Vec::new();
        for place in &unused {
            for table in 0..TABLES {
                let index = place * TABLES + table;
                let there = outer
                    .inner_id(index)
                    .map_err(DatapathError::system("the sketches of limits"))?;
                clear.extend(there.map(|_| (index, None)));
            }
        }
        self.put(&clear)
            .map_err(DatapathError::system("freeing the sketches of limits"))?;
        for place in unused {
            for table in 0..TABLES {
                let path = self.pin_path(place, table);
                load::remove_pin(&path).map_err(DatapathError::path("removing", &path))?;
            }
            // Last, so that an agent that dies in between leaves it to the next one.
            self.word(place, scope::NAME).store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The scopes of the kernel that a slot binds, by their number in the image.
    pub fn bound(&self, slot: u32) -> Vec<Option<u32>> {
        (0..MAX_LOCAL)
            .map(|local| {
                let bound = self.binding(slot, local).load(Ordering::Relaxed);
                bound.checked_sub(1).filter(|place| *place < MAX_SCOPES)
            })
            .collect()
    }

    /// Binds a slot to these scopes of the kernel again, as [`Self::bound`] gave them.
    pub fn rebind(&self, slot: u32, bound: &[Option<u32>]) {
        for (local, place) in (0..).zip(bound) {
            let word = place.map_or(0, |place| place + 1);
            self.binding(slot, local).store(word, Ordering::Release);
        }
    }

    /// Since and until which second new connections of a scope are challenged, if they are.
    pub fn challenged(&self, place: u32, now_s: u32) -> Option<(u32, u32)> {
        let word = self.word(place, scope::CHALLENGED).load(Ordering::Relaxed);
        let (since, until) = ((word >> 32) as u32, word as u32);
        (until > now_s).then_some((since, until))
    }

    /// Challenges the new connections of a scope from now on, until a second of the monotonic clock.
    pub fn challenge(&self, place: u32, now_s: u32, until_s: u32) {
        let since = self.challenged(place, now_s).map_or(now_s, |(since, _)| since);
        self.word(place, scope::CHALLENGED)
            .store(u64::from(since) << 32 | u64::from(until_s), Ordering::Relaxed);
    }

    /// What each scope of an image holds, by its number there; up to the last one that has limits.
    pub fn uses(&self, slot: u32, image: &Mapping, now_ns: u64) -> Vec<LimitUse> {
        let pages = MappedPages(image);
        let Some(image) = Image::open(&pages) else {
            return Vec::new();
        };
        let bound = self.bound(slot);
        let mut uses: Vec<LimitUse> = Vec::new();
        for number in 1..=image.first().u32(field::PROFILES) {
            let Some(limits) = image.profile(number) else {
                break;
            };
            let local = usize::from(limits.u16(profile::SCOPE));
            let Some(place) = bound.get(local).copied().flatten() else {
                continue;
            };
            let mut now = LimitUse {
                challenged: self.challenged(place, (now_ns / 1_000_000_000) as u32),
                ..LimitUse::default()
            };
            for kind in Kind::ALL {
                let rate = limits.total(profile::RATES, kind);
                if !rate.is_unlimited() {
                    let cell = self
                        .word(place, scope::TOTALS + kind as u32)
                        .load(Ordering::Relaxed);
                    let spent = ahead(cell, rate.time(now_ns), rate.capacity, TOTAL_TIME);
                    now.totals[kind as usize] = Some((spent as f64 / rate.capacity.max(1) as f64).min(1.0));
                }
                let rate = limits.source(kind);
                if !rate.is_unlimited() {
                    let time = rate.time(now_ns);
                    now.sources[kind as usize] = self.fill(place, kind as u32, |cell| {
                        ahead(cell & SOURCE_TIME, time, rate.capacity, SOURCE_TIME) > 0
                    });
                }
            }
            if limits.flags() & flag::CONNECTIONS != 0 {
                now.connections = Some(self.word(place, scope::CONNECTIONS).load(Ordering::Relaxed));
                if limits.u32(profile::CONNECTIONS_SOURCE) != u32::MAX {
                    now.sources[COUNTS as usize] = self.fill(place, COUNTS, |cell| cell != 0);
                }
            }
            if uses.len() <= local {
                uses.resize(local + 1, LimitUse::default());
            }
            uses[local] = now;
        }
        uses
    }

    /// Cells of a table that hold a source.
    fn fill(&self, place: u32, table: u32, holds: impl Fn(u64) -> bool) -> Option<Fill> {
        /// Lines that are looked at.
        const SAMPLE: usize = 16_384;
        let map = sys::open_pin(&self.pin_path(place, table)).ok()?;
        let lines = sys::map_info(map.as_fd()).ok()?.max_entries as usize;
        let cells = Mapping::new(map.as_fd(), lines * LINE, false).ok()?;
        let step = lines.div_ceil(SAMPLE);
        let looked_at = (0..lines).step_by(step);
        let held = looked_at.flat_map(|line| {
            let cells = &cells;
            (0..WAYS as usize).map(move |way| cells.load_u64(line * LINE + way * 8))
        });
        let held = held.filter(|cell| holds(*cell)).count() * step;
        Some(Fill {
            sources: held as u64,
            room: lines as u64 * u64::from(WAYS),
        })
    }

    /// A word of a scope of the kernel.
    pub fn word(&self, place: u32, word: u32) -> &std::sync::atomic::AtomicU64 {
        self.scopes.u64((place * scope::WORDS + word) as usize * 8)
    }

    fn name(&self, place: u32) -> u64 {
        self.word(place, scope::NAME).load(Ordering::Relaxed)
    }

    fn binding(&self, slot: u32, local: u32) -> &std::sync::atomic::AtomicU32 {
        self.bindings
            .u32((slot % SLOTS * MAX_LOCAL + local % MAX_LOCAL) as usize * BINDING)
    }

    /// A place for each scope, and whether it is new to it.
    fn places(&self, scopes: &[Scope]) -> Result<Vec<(u32, bool)>, DatapathError> {
        let mut known: std::collections::HashMap<u64, u32> = (0..MAX_SCOPES)
            .map(|place| (self.name(place), place))
            .filter(|(name, _)| *name != 0)
            .collect();
        let mut free = (0..MAX_SCOPES).filter(|place| self.name(*place) == 0);
        let mut places = Vec::new();
        for wanted in scopes {
            let hash = name_hash(&wanted.name);
            places.push(match known.get(&hash) {
                Some(place) => (*place, false),
                None => {
                    let place = free
                        .next()
                        .ok_or(DatapathError::TooManyScopes { count: scopes.len() })?;
                    known.insert(hash, place);
                    (place, true)
                }
            });
        }
        Ok(places)
    }

    /// Whether a scope has a table, and whether it is pinned and of this size.
    fn table(&self, place: u32, table: u32, lines: u32) -> (bool, bool) {
        let found = OuterArray::new(self.sketches.as_fd())
            .and_then(|outer| outer.inner_id(place * TABLES + table))
            .ok()
            .flatten();
        let pinned = sys::open_pin(&self.pin_path(place, table)).and_then(|map| sys::map_info(map.as_fd()));
        let fits = pinned.is_ok_and(|info| {
            Some(info.id) == found && info.value_size == LINE as u32 && info.max_entries == lines
        });
        (found.is_some(), fits)
    }

    /// Puts tables into their places, or takes them away. Each waits for a grace period, so they wait together.
    fn put(&self, tables: &[(u32, Option<BorrowedFd<'_>>)]) -> io::Result<()> {
        let outer = OuterArray::new(self.sketches.as_fd())?;
        let some = tables.len().div_ceil(WAITERS).max(1);
        std::thread::scope(|threads| {
            let waiting: Vec<_> = tables
                .chunks(some)
                .map(|chunk| {
                    threads.spawn(move || {
                        chunk.iter().try_for_each(|(index, map)| match map {
                            Some(map) => outer.set(*index, *map),
                            None => outer.clear(*index),
                        })
                    })
                })
                .collect();
            waiting.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a thread failed")))
            })
        })
    }

    fn pin_path(&self, place: u32, table: u32) -> PathBuf {
        table_pin(&self.directory, place, table)
    }
}

/// Where a table is pinned.
pub(super) fn table_pin(directory: &Path, place: u32, table: u32) -> PathBuf {
    directory.join(format!("sketch-{place}-{table}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::ServiceId;

    fn scope(needs: u8) -> Scope {
        Scope {
            name: "api".into(),
            service: ServiceId(0),
            needs,
        }
    }

    #[test]
    fn memory_is_counted_by_table() {
        let sizes = Sizes {
            sources: 1025,
            connections: 4096,
            memory: 0,
        };
        // Eight bytes a source, rounded up to a power of two.
        assert_eq!(sizes.need(&[scope(0)]).bytes, 0);
        assert_eq!(sizes.need(&[scope(0b0001)]).bytes, 2048 * 8);
        assert_eq!(
            sizes.need(&[scope(0b1111), scope(0b1000)]),
            Need {
                scopes: 2,
                tables: 5,
                bytes: 3 * 2048 * 8 + 2 * 4096 * 8
            }
        );
        assert_eq!(Sizes::default().need(&[scope(1)]).bytes, 524_288);
    }

    #[test]
    fn sizes_stay_in_their_range() {
        for (sources, lines) in [(0, 128), (1024, 128), (1 << 24, 1 << 21), (u32::MAX, 1 << 21)] {
            let sizes = Sizes {
                sources,
                connections: sources,
                memory: 0,
            };
            assert_eq!((sizes.lines(0), sizes.lines(COUNTS)), (lines, lines));
        }
    }

    #[test]
    fn names_differ_and_none_is_nobodys() {
        assert_ne!(name_hash("api"), name_hash("api/@partners"));
        assert_ne!(name_hash(""), 0);
    }
}
