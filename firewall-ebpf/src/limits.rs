//! The limits of a packet: functions of their own, see [`crate::apart`]. None of them calls another deeply, for the stack
//! of a chain of calls is 512 bytes: what they ask of sockets is asked by the program.

use crate::apart;
use crate::maps::{BINDINGS, PageBytes};
use crate::state::{self, PolicyPage, config, control, policy_pages};
use crate::tables::{self, MapWords};
use firewall_common::control::{Config, SLOTS};
use firewall_common::image::Image;
use firewall_common::limit::{Charge, MAX_LOCAL, WAYS, count, scope};
use firewall_common::meter::{self, BanAsked, Limiter, Metered, Sketch, Spend, Told};
use firewall_common::packet::Packet;

/// What a packet has been given in one word: its slots, and what it was told.
#[derive(Clone, Copy)]
pub struct Given(pub u32);

impl Given {
    #[inline(always)]
    pub const fn new(image: u32, config: u32, told: Told) -> Given {
        Given((image % SLOTS) | ((config % SLOTS) << 8) | (told.0 << 16))
    }
    #[inline(always)]
    const fn image(self) -> u32 {
        self.0 % SLOTS
    }
    #[inline(always)]
    const fn config(self) -> u32 {
        (self.0 >> 8) % SLOTS
    }
    #[inline(always)]
    const fn told(self) -> Told {
        Told(self.0 >> 16)
    }
}

/// Names the packet behind a pointer, and the image that judges it; returns `$otherwise` if either cannot be read.
macro_rules! opened {
    ($packet:ident, $image:ident, $given:expr, $otherwise:expr) => {
        let Some(pages) = policy_pages($given.image(), control()) else {
            return $otherwise;
        };
        // SAFETY: the verifier lets callers pass a whole packet or null only.
        let (Some($packet), Some($image)) = (unsafe { $packet.as_ref() }, Image::open(&pages)) else {
            return $otherwise;
        };
    };
}

/// [`meter::before`] for the limits `number` in the image of a slot: a [`Metered`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn limits_before(packet: *const Packet, given: u32, number: u32) -> u64 {
    let given = Given(given);
    opened!(packet, image, given, Metered::UNREADABLE.0);
    meter::before(&Limits(given), &image, packet, number, given.told()).0
}

/// A slot of images, and the number of limits in its image.
#[inline(always)]
pub const fn of_image(slot: u32, number: u32) -> u32 {
    slot << 16 | number & 0xffff
}

/// [`meter::spend`] in an image whose first page is at hand, for limits that [`of_image`] names; after this was `said`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn limits_spend(
    first: *const PageBytes,
    packet: *const Packet,
    limits: u32,
    said: u64,
    length: u32,
) -> u64 {
    let given = Given::new(limits >> 16, 0, Told::NOTHING);
    let Some(pages) = policy_pages(given.image(), control()) else {
        return Metered::UNREADABLE.0;
    };
    // SAFETY: the verifier lets callers pass a whole packet or null only.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return Metered::UNREADABLE.0;
    };
    if first.is_null() {
        return Metered::UNREADABLE.0;
    }
    let image = Image::opened(&pages, PolicyPage(first.cast()));
    let what = Spend {
        packet,
        number: limits & 0xffff,
        length,
        said: Metered(said),
    };
    meter::spend(&Limits(given), &image, what).0
}

/// [`meter::after`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn limits_after(packet: *const Packet, given: u32, number: u32, excess: u64) -> u64 {
    let given = Given(given);
    opened!(packet, image, given, Metered::UNREADABLE.0);
    let excess = Metered(excess);
    meter::after(&Limits(given), &image, packet, number, given.told(), excess).0
}

/// Bans a source as [`BanAsked`] says: an answer of [`apart::ban_source`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn limits_ban(packet: *const Packet, given: u32, number: u32) -> u64 {
    let given = Given(given);
    opened!(packet, image, given, apart::NOT_BANNED);
    let Some(asked) = BanAsked::of(&image, packet, number) else {
        return apart::NOT_BANNED;
    };
    let (high, low) = asked.source;
    let version_len = (packet.version as u32) << 8 | asked.len as u32;
    let seconds_service = (asked.seconds as u64) << 16 | asked.service as u64;
    apart::ban_source(high, low, version_len, seconds_service, given.config())
}

/// [`Limiter::charge`]: 1 if it is paid, or 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn charge_of(charge: *const Charge, scope: u32, table: u32, line: u32) -> u64 {
    // SAFETY: the verifier lets callers pass a whole charge or null only.
    let Some(charge) = (unsafe { charge.as_ref() }) else {
        return 0;
    };
    let line = tables::line(Sketch { scope, table }, line);
    line.is_some_and(|line| charge.source(line)) as u64
}

/// [`Limiter::count`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn count_of(sketch: u64, line: u32, hash: u64) -> u64 {
    let sketch = Sketch {
        scope: sketch as u32,
        table: (sketch >> 32) as u32,
    };
    match tables::line(sketch, line) {
        Some(line) => count::of(line, hash),
        None => count::FULL,
    }
}

/// What one packet's limits see.
struct Limits(Given);

impl Limiter for Limits {
    type Scope = MapWords<{ scope::WORDS }>;
    type Line = MapWords<WAYS>;

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        config(self.0.config())
    }

    #[inline(always)]
    fn seed(&self) -> u64 {
        state::seed()
    }

    #[inline(always)]
    fn now_ns(&self, exact: bool) -> u64 {
        state::now_ns(exact)
    }

    #[inline(always)]
    fn bound(&self, scope: u16) -> Option<u32> {
        let scope = scope as u32;
        if scope >= MAX_LOCAL {
            return None;
        }
        BINDINGS.get(self.0.image() * MAX_LOCAL + scope)?.checked_sub(1)
    }

    #[inline(always)]
    fn scope(&self, scope: u32) -> Option<Self::Scope> {
        tables::scope(scope)
    }

    #[inline(always)]
    fn line(&self, sketch: Sketch, line: u32) -> Option<Self::Line> {
        tables::line(sketch, line)
    }

    #[inline(always)]
    fn charge(&self, sketch: Sketch, line: u32, charge: &Charge) -> bool {
        charge_of(charge, sketch.scope, sketch.table, line) != 0
    }

    #[inline(always)]
    fn count(&self, sketch: Sketch, line: u32, hash: u64) -> u64 {
        count_of(sketch.scope as u64 | (sketch.table as u64) << 32, line, hash)
    }
}
