//! The policy image in the kernel: two slots, of which the control cell names one.
//!
//! A slot is an image and its counters: an inner map each, pinned as `image-N` and `counters-N`, and put into the
//! outer arrays `IMAGES` and `COUNTERS`; and the bindings of its limits (see [`super::limits`]). What always holds: the slot in force is whole, for it is pinned, frozen
//! and put into both outer arrays before the selector names it; the other slot is left alone until a grace period
//! has passed since the selector left it, and is empty then. So a crash at any line leaves either policy in force,
//! whole, and at most leftovers in the idle slot, which the next `Slots::open` removes.

use super::{
    DatapathError,
    counters::{EndingCounters, read_counters},
    drift::Drift,
    limits::Scopes,
    sys::{self, Grace, Mapping, OuterArray},
};
use crate::policy::compile::Compiled;
use firewall_common::{
    LAYOUT_VERSION,
    control::{Control, SLOTS, Selector},
    counter::{self, BANKS, Counter},
    image::{FLAG_DEFAULT_ALLOW, MAGIC, PAGE_SIZE, field},
};
use std::{
    mem::offset_of,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

/// What the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce {
    pub generation: u64,
    /// BLAKE3 of the image, read back from the kernel's pages.
    pub digest: [u8; 32],
}

/// The image and the counters of one slot, and what the kernel is to hold of it.
struct Slot {
    image: Mapping,
    counters: Mapping,
    /// The maps behind both.
    maps: [Held; 2],
    generation: u64,
    stride: u32,
    /// Of the image.
    digest: [u8; 32],
    bound: Vec<Option<u32>>,
    /// How far the image was read back.
    reading: Option<(blake3::Hasher, usize)>,
}

/// A map that stands in an outer array.
struct Held {
    map: OwnedFd,
    id: u32,
}

/// Both slots, and the cell that selects one.
pub(super) struct Slots {
    directory: PathBuf,
    images: OwnedFd,
    counters: OwnedFd,
    control: Mapping,
    scopes: Scopes,
    grace: Grace,
    /// What this process had packets read first; the word in the cell may be changed by others.
    selected: AtomicU64,
    /// That of the selector; `None` if it is empty.
    in_force: Option<Slot>,
}

impl Slots {
    /// Takes over what the maps hold; empties the idle slot.
    pub fn open(directory: &Path, maps: OuterMaps<'_>, scopes: Scopes) -> Result<Slots, DatapathError> {
        let clone = |fd: BorrowedFd<'_>| {
            fd.try_clone_to_owned()
                .map_err(DatapathError::system("a descriptor"))
        };
        let control = Mapping::new(maps.control, size_of::<Control>(), true)
            .map_err(DatapathError::system("mapping the control cell"))?;
        let grace = Grace::new().map_err(DatapathError::system("creating a map"))?;
        let mut slots = Slots {
            directory: directory.to_owned(),
            images: clone(maps.images)?,
            counters: clone(maps.counters)?,
            selected: AtomicU64::new(control.load_u64(offset_of!(Control, selector))),
            control,
            scopes,
            grace,
            in_force: None,
        };
        slots.in_force = slots.take_over(slots.selector().image());
        // An agent that died just after its switch did not wait.
        slots.grace()?;
        slots.empty(slots.idle())?;
        Ok(slots)
    }

    pub fn selector(&self) -> Selector {
        Selector(self.selected.load(Ordering::Relaxed))
    }

    /// Switches what packets read first. Follow it by [`Self::grace`] before touching what it left.
    pub fn select(&self, selector: Selector) {
        self.selected.store(selector.0, Ordering::Relaxed);
        // Release: whoever sees the selector sees what was written for it before.
        self.control
            .u64(offset_of!(Control, selector))
            .store(selector.0, Ordering::Release);
    }

    /// Returns when no packet is under way that began before.
    pub fn grace(&self) -> Result<(), DatapathError> {
        self.grace
            .wait()
            .map_err(DatapathError::system("waiting for packets under way"))
    }

    pub fn control(&self) -> &Mapping {
        &self.control
    }

    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// The image slot that no packet reads.
    fn idle(&self) -> u32 {
        (self.selector().image() + 1) % SLOTS
    }

    /// Whether the image in force allows by default.
    pub fn default_allows(&self) -> Option<bool> {
        let slot = self.in_force.as_ref()?;
        Some(slot.image.load_u32(field::FLAGS as usize) & FLAG_DEFAULT_ALLOW != 0)
    }

    /// Whether the image in force limits concurrent connections.
    pub fn limits_connections(&self) -> bool {
        let slot = self.in_force.as_ref();
        slot.is_some_and(|slot| super::connections::wanted(&slot.image))
    }

    /// What the limits of the image in force hold.
    pub fn limit_uses(&self, now_ns: u64) -> Vec<super::limits::LimitUse> {
        let Some(slot) = &self.in_force else {
            return Vec::new();
        };
        self.scopes.uses(self.selector().image(), &slot.image, now_ns)
    }

    /// A copy of the image in force.
    pub fn image(&self) -> Option<Vec<u8>> {
        let image = &self.in_force.as_ref()?.image;
        let mut bytes = vec![0; image.len()];
        image.read(0, &mut bytes);
        Some(bytes)
    }

    pub fn in_force(&self) -> Option<InForce> {
        let slot = self.in_force.as_ref()?;
        Some(InForce {
            generation: slot.generation,
            digest: digest(&slot.image),
        })
    }

    pub fn counters(&self) -> Option<EndingCounters> {
        let slot = self.in_force.as_ref()?;
        Some(read(slot))
    }

    /// Uploads a policy into the idle slot and switches to it.
    pub fn switch(
        &mut self,
        compiled: &Compiled,
        generation: u64,
    ) -> Result<Option<EndingCounters>, DatapathError> {
        check(compiled)?;
        let old = self.selector();
        let new = self.idle();
        self.empty(new)?;
        let slot = self.fill(new, compiled, generation).inspect_err(|_| {
            // Nothing selects it yet. What cannot be removed now is removed before the next upload.
            let _ = self.empty(new);
        })?;
        self.select(Selector::new(new, old.config()));
        self.grace()?;
        let retired = self.in_force.replace(slot).map(|slot| read(&slot));
        self.empty(self.idle())?;
        Ok(retired)
    }

    /// Makes, fills, pins and puts in place the maps of a slot that nothing selects.
    fn fill(&self, slot: u32, compiled: &Compiled, generation: u64) -> Result<Slot, DatapathError> {
        self.scopes.bind(slot, &compiled.scopes)?;
        let upload = DatapathError::system("uploading the policy image");
        let (image, mapped) = upload_image(slot, &compiled.image).map_err(upload)?;
        let stride = counter::stride(compiled.endings.len() as u32);
        let cells = u64::from(super::counters::cpus()?) * u64::from(BANKS) * u64::from(stride);
        let cells = u32::try_from(cells).map_err(|_| DatapathError::TooManyCounters { cells })?;
        let counters = sys::inner_array(&format!("counters_{slot}"), size_of::<Counter>() as u32, cells)
            .map_err(DatapathError::system("creating the counters of a policy"))?;
        let counters_mapped = Mapping::new(counters.as_fd(), cells as usize * size_of::<Counter>(), false)
            .map_err(DatapathError::system("mapping the counters of a policy"))?;
        for (name, map) in [("image", &image), ("counters", &counters)] {
            let path = self.pin_path(name, slot);
            sys::pin(map.as_fd(), &path).map_err(DatapathError::path("pinning", &path))?;
        }

        self.generation(slot).store(generation, Ordering::Relaxed);
        self.stride(slot).store(stride, Ordering::Relaxed);
        let filled = Slot {
            image: mapped,
            counters: counters_mapped,
            maps: [Held::new(image)?, Held::new(counters)?],
            generation,
            stride,
            digest: compiled.digest,
            bound: self.scopes.bound(slot),
            reading: None,
        };
        for (outer, held) in self.outer(&filled) {
            OuterArray::new(outer)
                .and_then(|outer| outer.set(slot, held.map.as_fd()))
                .map_err(DatapathError::system("putting the policy into its slot"))?;
        }
        Ok(filled)
    }

    /// The outer arrays, each with what stands in it for a slot.
    fn outer<'a>(&'a self, slot: &'a Slot) -> [(BorrowedFd<'a>, &'a Held); 2] {
        let [image, counters] = &slot.maps;
        [(self.images.as_fd(), image), (self.counters.as_fd(), counters)]
    }

    /// Removes everything from a slot that no packet reads.
    fn empty(&self, slot: u32) -> Result<(), DatapathError> {
        for outer in [&self.images, &self.counters] {
            OuterArray::new(outer.as_fd())
                .and_then(|outer| match outer.inner_id(slot)? {
                    Some(_) => outer.clear(slot),
                    None => Ok(()),
                })
                .map_err(DatapathError::system("emptying a policy slot"))?;
        }
        for name in ["image", "counters"] {
            let path = self.pin_path(name, slot);
            super::load::remove_pin(&path).map_err(DatapathError::path("removing", &path))?;
        }
        self.scopes.unbind(slot)
    }

    /// Maps what is in a slot already. `None` if it is not all there, or the pins are of other maps: then no policy
    /// counts as in force and the next one is uploaded.
    fn take_over(&self, slot: u32) -> Option<Slot> {
        let (image, held_image) = self.pinned("image", &self.images, slot)?;
        let (counters, held_counters) = self.pinned("counters", &self.counters, slot)?;
        let stride = self.stride(slot).load(Ordering::Relaxed);
        let complete = image.load_u64(field::MAGIC as usize) == MAGIC
            && image.load_u32(field::LAYOUT as usize) == LAYOUT_VERSION
            && image.load_u32(field::STRIDE as usize) == stride;
        complete.then(|| Slot {
            maps: [held_image, held_counters],
            generation: self.generation(slot).load(Ordering::Relaxed),
            stride,
            digest: digest(&image),
            bound: self.scopes.bound(slot),
            reading: None,
            image,
            counters,
        })
    }

    fn pinned(&self, name: &str, outer: &OwnedFd, slot: u32) -> Option<(Mapping, Held)> {
        let map = sys::open_pin(&self.pin_path(name, slot)).ok()?;
        let info = sys::map_info(map.as_fd()).ok()?;
        let inner = OuterArray::new(outer.as_fd()).ok()?.inner_id(slot).ok()?;
        if inner != Some(info.id) {
            return None;
        }
        let len = info.value_size as usize * info.max_entries as usize;
        let mapping = Mapping::new(map.as_fd(), len, false).ok()?;
        let held = Held { map, id: info.id };
        (name != "image" || len.is_multiple_of(PAGE_SIZE)).then_some((mapping, held))
    }

    fn pin_path(&self, name: &str, slot: u32) -> PathBuf {
        self.directory.join(format!("{name}-{slot}"))
    }

    fn generation(&self, slot: u32) -> &AtomicU64 {
        self.control
            .u64(offset_of!(Control, generation) + slot as usize * 8)
    }

    fn stride(&self, slot: u32) -> &AtomicU32 {
        self.control.u32(offset_of!(Control, stride) + slot as usize * 4)
    }
}

/// What others may do to the slots, and how it is undone. The selector comes back last: until then packets may read
/// what somebody else has chosen, afterwards they read what is whole.
impl Slots {
    /// What of the policy in force is not as this process left it. `closely`: also the bindings of its limits.
    pub fn drift(&self, closely: bool) -> Result<Vec<Drift>, DatapathError> {
        let mut found = Vec::new();
        if self.control.load_u64(offset_of!(Control, selector)) != self.selector().0 {
            found.push(Drift::Selector);
        }
        let Some(slot) = &self.in_force else {
            return Ok(found);
        };
        let at = self.selector().image();
        for ((outer, held), drift) in self.outer(slot).into_iter().zip([Drift::Image, Drift::Counters]) {
            let there = OuterArray::new(outer)
                .and_then(|outer| outer.inner_id(at))
                .map_err(DatapathError::system("reading a policy slot"))?;
            if there != Some(held.id) {
                found.push(drift);
            }
        }
        let same = self.generation(at).load(Ordering::Relaxed) == slot.generation
            && self.stride(at).load(Ordering::Relaxed) == slot.stride;
        if !same {
            found.push(Drift::Words);
        }
        if closely && self.scopes.bound(at) != slot.bound {
            found.push(Drift::Limits);
        }
        Ok(found)
    }

    /// Reads `bytes` more of the image in force back from the kernel. At its end: whether it is what was put there.
    pub fn read_back(&mut self, bytes: usize) -> Option<bool> {
        let slot = self.in_force.as_mut()?;
        let (mut hasher, mut at) = slot.reading.take().unwrap_or_default();
        let end = slot.image.len().min(at + bytes);
        hash(&slot.image, at..end, &mut hasher);
        at = end;
        if at < slot.image.len() {
            slot.reading = Some((hasher, at));
            return None;
        }
        Some(*hasher.finalize().as_bytes() == slot.digest)
    }

    /// Whether an image is being read back.
    pub fn is_reading_back(&self) -> bool {
        self.in_force.as_ref().is_some_and(|slot| slot.reading.is_some())
    }

    /// Makes the policy in force again what this process left, but for the bytes of the image itself.
    pub fn repair(&self) -> Result<(), DatapathError> {
        if let Some(slot) = &self.in_force {
            let at = self.selector().image();
            for (outer, held) in self.outer(slot) {
                let put = |outer: OuterArray<'_>| match outer.inner_id(at)? == Some(held.id) {
                    true => Ok(()),
                    false => outer.set(at, held.map.as_fd()),
                };
                OuterArray::new(outer)
                    .and_then(put)
                    .map_err(DatapathError::system("putting the policy back into its slot"))?;
            }
            self.generation(at).store(slot.generation, Ordering::Relaxed);
            self.stride(at).store(slot.stride, Ordering::Relaxed);
            self.scopes.rebind(at, &slot.bound);
        }
        self.select(self.selector());
        self.grace()?;
        self.empty(self.idle())
    }
}

impl Held {
    fn new(map: OwnedFd) -> Result<Held, DatapathError> {
        let info =
            sys::map_info(map.as_fd()).map_err(DatapathError::system("asking for the number of a map"))?;
        Ok(Held { map, id: info.id })
    }
}

fn read(slot: &Slot) -> EndingCounters {
    let endings = slot.image.load_u32(field::ENDINGS as usize);
    read_counters(&slot.counters, slot.generation, slot.stride, endings)
}

/// The maps that the slots live in.
#[derive(Clone, Copy)]
pub(super) struct OuterMaps<'fd> {
    pub images: BorrowedFd<'fd>,
    pub counters: BorrowedFd<'fd>,
    pub control: BorrowedFd<'fd>,
}

/// What every image of this layout has, so that a broken one never reaches the kernel.
fn check(compiled: &Compiled) -> Result<(), DatapathError> {
    let image = &compiled.image;
    let word = |at: u32| super::wire::u32_at(image, at as usize);
    let endings = compiled.endings.len() as u32;
    let sound = !image.is_empty()
        && image.len().is_multiple_of(PAGE_SIZE)
        && image.starts_with(&MAGIC.to_le_bytes())
        && word(field::LAYOUT) == Some(LAYOUT_VERSION)
        && word(field::ENDINGS) == Some(endings)
        && word(field::STRIDE) == Some(counter::stride(endings));
    if sound {
        Ok(())
    } else {
        Err(DatapathError::BadImage)
    }
}

/// An inner map that holds the image and that user space cannot write to any more.
fn upload_image(slot: u32, image: &[u8]) -> std::io::Result<(OwnedFd, Mapping)> {
    let pages = u32::try_from(image.len() / PAGE_SIZE).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
    let map = sys::inner_array(&format!("image_{slot}"), PAGE_SIZE as u32, pages)?;
    // A mapping of its own: while a writable one exists the map cannot be frozen.
    Mapping::new(map.as_fd(), image.len(), true)?.write(image);
    sys::map_freeze(map.as_fd())?;
    let mapped = Mapping::new(map.as_fd(), image.len(), false)?;
    Ok((map, mapped))
}

/// BLAKE3 of a mapped image.
fn digest(image: &Mapping) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hash(image, 0..image.len(), &mut hasher);
    hasher.finalize().into()
}

fn hash(image: &Mapping, range: Range<usize>, hasher: &mut blake3::Hasher) {
    // Copied out in chunks that stay in the cache: memory shared with the kernel is never a plain slice.
    let mut chunk = vec![0; 256 << 10];
    let mut at = range.start;
    while at < range.end {
        let len = chunk.len().min(range.end - at);
        image.read(at, &mut chunk[..len]);
        hasher.update(&chunk[..len]);
        at += len;
    }
}
