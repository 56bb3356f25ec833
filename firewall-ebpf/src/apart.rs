//! Parts of the decision as functions of their own.
//!
//! The BPF verifier walks a global function once, for any arguments, and not at each place and on each way that leads to
//! it (kernel commit 51c39bb1d5d1; pointers to memory since e5069b9c23b3, 5.12). So what is not on the way of most
//! packets, and what loops, stands here. A call costs 1-2 ns. Arguments are words and structs of words, results are words.

use crate::frame::{BareFrame, SkbFrame, XdpFrame};
use crate::maps::{BANS, CONTROL, PageBytes, TALLIES};
use crate::state::{PolicyPage, config, control, now_s, policy_pages, seed, zero};
use crate::tables::{FlowTable, FragmentTable};
use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::programs::{TcContext, XdpContext};
use firewall_common::ban::{self, Ban, BanKey, Escalation};
use firewall_common::counter::Tally;
use firewall_common::decide;
use firewall_common::flow::{Flows, Key, Left, Sends};
use firewall_common::fragment::{Fragments, Remembered};
use firewall_common::image::Image;
use firewall_common::packet::{Fragment, Packet};
use firewall_common::quote::quoted;
use firewall_common::verdict::Reason;

/// [`Flows::came_in`] with the configuration of a slot: the number of a state, 0 for no flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_in(key: *const Key, config: u32, tcp_flags: u32) -> u64 {
    // SAFETY: the verifier lets callers pass a whole key or null only.
    let (Some(key), Some(flows)) = (unsafe { key.as_ref() }, flows(config)) else {
        return 0;
    };
    flows
        .came_in(key, tcp_flags as u8)
        .map_or(0, |state| state as u64)
}

/// [`Flows::went_out`] with the configuration of a slot: the number of a [`Left`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_out(key: *const Key, config: u32, sends: u32, ifindex: u32) -> u64 {
    // SAFETY: as in `flow_in`.
    let (Some(key), Some(flows)) = (unsafe { key.as_ref() }, flows(config)) else {
        return Left::Lost as u64;
    };
    flows.went_out(key, Sends::from_number(sends as u8), ifindex) as u64
}

#[inline(always)]
fn flows(config_slot: u32) -> Option<Flows<'static, FlowTable>> {
    let control = control()?;
    Some(Flows {
        table: FlowTable {
            mask: control.flow_mask,
        },
        seed: control.seed,
        timeouts: &config(config_slot)?.flow_timeouts,
        now_s: now_s(),
    })
}

/// A fragment, and how its first one ended: asked for a first one, answered for a later one.
#[repr(C)]
pub struct Part {
    pub key: Key,
    pub fragment: Fragment,
    pub first: Remembered,
}

/// [`Fragments::first`]: 0, or the number of a reason.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fragment_first(part: *const Part) -> u64 {
    // SAFETY: as in `flow_in`.
    let Some(part) = (unsafe { part.as_ref() }) else {
        return Reason::FragmentTable.number() as u64;
    };
    match fragments().first(&part.key, part.fragment, part.first) {
        Ok(()) => 0,
        Err(reason) => reason.number() as u64,
    }
}

/// [`Fragments::later`]: 0 with the answer in `part`, or the number of a reason.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fragment_later(part: *mut Part) -> u64 {
    // SAFETY: as in `flow_in`.
    let Some(part) = (unsafe { part.as_mut() }) else {
        return Reason::FragmentTable.number() as u64;
    };
    match fragments().later(&part.key, part.fragment) {
        Ok(first) => {
            part.first = first;
            0
        }
        Err(reason) => reason.number() as u64,
    }
}

#[inline(always)]
fn fragments() -> Fragments<FragmentTable> {
    Fragments {
        table: FragmentTable,
        seed: seed(),
        now_s: now_s(),
    }
}

/// No class, of [`class_of`].
pub const NO_CLASS: u64 = u64::MAX;

/// [`Image::class`] in the image of a slot, whose first page is at hand.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn class_of(first: *const PageBytes, slot: u32, version: u32, high: u64, low: u64) -> u64 {
    let Some(pages) = policy_pages(slot, control()) else {
        return NO_CLASS;
    };
    if first.is_null() {
        return NO_CLASS;
    }
    let class = Image::opened(&pages, PolicyPage(first.cast())).class(version as u8, high, low);
    class.map_or(NO_CLASS, |class| class as u64)
}

/// [`quoted`]: 1 with the answer in `key`, or 0.
macro_rules! quote {
    ($name:ident, $raw:ty, $context:expr, $frame:expr) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $name(ctx: *mut $raw, packet: *const Packet, key: *mut Key) -> u64 {
            // SAFETY: as in `flow_in`.
            let (Some(packet), Some(key)) = (unsafe { (packet.as_ref(), key.as_mut()) }) else {
                return 0;
            };
            match quoted(&$frame(&$context(ctx)), packet) {
                Some(found) => {
                    *key = found;
                    1
                }
                None => 0,
            }
        }
    };
}

// Lengths were checked when the packet was read.
quote!(quote_xdp, xdp_md, XdpContext::new, |ctx| XdpFrame::new(ctx, 0));
quote!(quote_skb, __sk_buff, TcContext::new, SkbFrame::new);
quote!(quote_raw, __sk_buff, TcContext::new, |ctx| BareFrame::new(
    ctx,
    control().map_or(0, zero)
));

/// No entry, of [`failsafe_of`].
pub const NO_ENTRY: u64 = u64::MAX;

/// [`decide::failsafe`] in the configuration of a slot.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn failsafe_of(key: *const Key, config_slot: u32) -> u64 {
    // SAFETY: as in `flow_in`.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return NO_ENTRY;
    };
    let entry = config(config_slot).and_then(|config| decide::failsafe(config, key));
    entry.map_or(NO_ENTRY, |entry| entry as u64)
}

/// [`ban::is_banned`] with the configuration of a slot: 1 or 0. Without one nothing comes in.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn banned_of(high: u64, low: u64, version: u32, config_slot: u32) -> u64 {
    let Some(config) = config(config_slot) else {
        return 1;
    };
    let version = version as u8;
    let lengths = ban::lengths(config, version);
    ban::is_banned(lengths, (version, high, low), now_s(), ban_until) as u64
}

/// [`Ban::until_s`] of a network, 0 without an entry.
#[inline(always)]
fn ban_until(key: &BanKey) -> u32 {
    BANS.get_ptr(key).map_or(0, |ban| {
        // SAFETY: a word of a map's value. Entries are replaced as wholes; one that is taken out just now may become
        // another's, and then a packet is judged by that.
        unsafe { (&raw const (*ban).until_s).read_volatile() }
    })
}

/// [`ban::may_ban`] with the configuration of a slot: 1 or 0. Arguments as of [`ban_source`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn may_ban(high: u64, low: u64, version_len: u32, config_slot: u32) -> u64 {
    let key = BanKey::new((version_len >> 8) as u8, high, low, version_len as u8);
    config(config_slot).is_some_and(|config| ban::may_ban(config, &key)) as u64
}

/// Answers of [`ban_source`].
pub const NOT_BANNED: u64 = 0;
pub const BANNED: u64 = 1;

/// Bans the network of a source for a service, longer than before if it repeats. `version_len` is the version << 8 and the
/// length of the network, `seconds_service` the seconds << 16 and the service. Who calls it knows that the source's
/// address is its own. Where the ban cannot be, [`NOT_BANNED`], and what the source sends is to drop for its own reason.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ban_source(
    high: u64,
    low: u64,
    version_len: u32,
    seconds_service: u64,
    config_slot: u32,
) -> u64 {
    let Some(config) = config(config_slot) else {
        return NOT_BANNED;
    };
    if may_ban(high, low, version_len, config_slot) == 0 {
        return NOT_BANNED;
    }
    let key = BanKey::new((version_len >> 8) as u8, high, low, version_len as u8);
    let now_s = now_s();
    // SAFETY: a value of the map, see `ban_until`; it is copied at once.
    let before: Option<&Ban> = unsafe { BANS.get(key) };
    if before.is_some_and(|before| before.is_live(now_s)) {
        return BANNED;
    }
    let (seconds, service) = ((seconds_service >> 16) as u32, seconds_service as u16);
    let ban = ban::next(before, now_s, seconds, service, Escalation::of(config));
    if BANS.insert(key, ban, 0).is_err() {
        if let Some(lost) = TALLIES.get_ptr_mut(Tally::BanLost as u32) {
            // SAFETY: this CPU's own cell.
            unsafe { *lost += 1 };
        }
        return NOT_BANNED;
    }
    // After the entry, for the agent clears it first and looks for entries then.
    if let Some(control) = CONTROL.get_ptr_mut(0) {
        // SAFETY: an aligned word of a map, written by whole words only.
        unsafe { (&raw mut (*control).bans).write_volatile(1) };
    }
    BANNED
}
