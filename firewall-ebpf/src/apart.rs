//! Parts of the decision as functions of their own.
//!
//! The BPF verifier walks a global function once, for any arguments, and not at each place and on each way that leads to
//! it (kernel commit 51c39bb1d5d1; pointers to memory since e5069b9c23b3, 5.12). So what is not on the way of most
//! packets, and what loops, stands here. A call costs 1-2 ns. Arguments are words and structs of words, results are words.

use crate::frame::{BareFrame, SkbFrame, XdpFrame};
use crate::maps::PageBytes;
use crate::state::{PolicyPage, config, control, now_s, policy_pages, zero};
use crate::tables::{FlowTable, FragmentTable};
use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::programs::{TcContext, XdpContext};
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
        seed: control().map_or(0, |control| control.seed),
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
