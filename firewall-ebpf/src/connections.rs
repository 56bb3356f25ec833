//! Counts connections as they come and go: a program at the sockets of a cgroup, not at packets.
//!
//! A socket that a listener of this network namespace made counts from the end of its handshake until it closes,
//! for whichever reason. Which limits it counts in, the policy in force says at that moment, on the way out as on the
//! way in: what a reload moves, the agent's recount moves along. A count never goes below zero.

use crate::apart::{self, NO_CLASS};
use crate::maps::{BINDINGS, LOCAL};
use crate::state::{control, policy_pages};
use crate::tables::{line, scope};
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use firewall_common::control::{AddressKey, Control, Selector};
use firewall_common::flow::Set;
use firewall_common::image::{Image, NO_SERVICE, PortKey};
use firewall_common::limit::{self, COUNTS, MAX_LOCAL, count, flag, profile, source_hash};
use firewall_common::meter::Sketch;
use firewall_common::verdict::Reason;

/// `include/net/tcp_states.h`.
const TCP_CLOSE: u32 = 7;
const AF_INET6: u32 = 10;
/// The third word of an IPv4 address as an IPv6 socket has it.
const MAPPED: u32 = 0xffff;

/// Called on events of every TCP socket on the machine.
#[sock_ops]
pub fn connections(ctx: SockOpsContext) -> u32 {
    // The answer that keeps all else as it is.
    const GO_ON: u32 = 1;
    let op = ctx.op();
    let opens = op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB;
    if !opens && (op != BPF_SOCK_OPS_STATE_CB || ctx.arg(1) != TCP_CLOSE) {
        return GO_ON;
    }
    let Some(control) = control() else { return GO_ON };
    // SAFETY: the helper takes the context that the program was called with.
    if unsafe { bpf_get_netns_cookie(ctx.ops.cast()) } != control.netns_cookie {
        return GO_ON;
    }
    if opens {
        // Also of what is not limited: the next policy may do so. Flags of others stay.
        let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
        // It fails for sockets that are none yet, and these do not get here.
        let _ = ctx.set_cb_flags(flags as i32);
    }
    let (version, high, low) = peer(&ctx);
    let own = AddressKey { high, low };
    let loopback = if version == 4 {
        low >> 24 == 127
    } else {
        high == 0 && low == 1
    };
    if !loopback && LOCAL.get_ptr(own).is_none() {
        account(control, ctx.local_port() as u16, version, high, low, opens);
    }
    GO_ON
}

/// Version and address of the remote end, halves as in the maps.
#[inline(always)]
fn peer(ctx: &SockOpsContext) -> (u32, u64, u64) {
    if ctx.family() != AF_INET6 {
        return (4, 0, u32::from_be(ctx.remote_ip4()) as u64);
    }
    let ops: *mut bpf_sock_ops = ctx.ops;
    // One by one: the context is read by words only.
    // SAFETY: fields of the context that the program was called with.
    let words = unsafe {
        [
            (&raw const (*ops).remote_ip6[0]).read_volatile(),
            (&raw const (*ops).remote_ip6[1]).read_volatile(),
            (&raw const (*ops).remote_ip6[2]).read_volatile(),
            (&raw const (*ops).remote_ip6[3]).read_volatile(),
        ]
    };
    let word = |at: usize| u32::from_be(words[at]) as u64;
    if words[0] == 0 && words[1] == 0 && u32::from_be(words[2]) == MAPPED {
        return (4, 0, word(3));
    }
    (6, word(0) << 32 | word(1), word(2) << 32 | word(3))
}

/// Counts a connection in or out, where its limits say.
#[inline(always)]
fn account(
    control: &'static Control,
    port: u16,
    version: u32,
    high: u64,
    low: u64,
    opens: bool,
) -> Option<()> {
    // SAFETY: an aligned word of a map that the agent stores atomically.
    let selector = Selector(unsafe { (&raw const control.selector).read_volatile() });
    let slot = selector.image();
    let pages = policy_pages(slot, Some(control))?;
    let image = Image::open(&pages)?;
    let service = image.service(PortKey::tcp(port))?;
    if service == NO_SERVICE {
        return None;
    }
    let class = apart::class_of(image.first().0.cast(), slot, version, high, low);
    if class == NO_CLASS {
        return None;
    }
    let cell = image.verdict(service, class as u32)?;
    if !cell.is_limited() || cell.reason() != Reason::Allowed.number() {
        return None;
    }
    let limits = image.profile(image.limited_by(cell.ending())?.number())?;
    if limits.flags() & flag::CONNECTIONS == 0 {
        return None;
    }
    let number = bound(slot, limits.u16(profile::SCOPE))?;
    let words = scope(number)?;
    step(words, opens);
    if limits.u32(profile::CONNECTIONS_SOURCE) != u32::MAX {
        let (high, low) = limits.mask(version as u8, high, low);
        let hash = source_hash(high, low, control.seed);
        let sketch = Sketch {
            scope: number,
            table: COUNTS,
        };
        let line = line(sketch, hash as u32 & words.word(limit::scope::COUNT_MASK) as u32)?;
        if opens {
            count::add(line, hash);
        } else {
            count::remove(line, hash);
        }
    }
    match limits.u16(profile::PARENT) {
        profile::NO_PARENT => {}
        parent => step(scope(bound(slot, parent)?)?, opens),
    }
    Some(())
}

#[inline(always)]
fn bound(slot: u32, scope: u16) -> Option<u32> {
    if scope as u32 >= MAX_LOCAL {
        return None;
    }
    BINDINGS.get(slot * MAX_LOCAL + scope as u32)?.checked_sub(1)
}

/// One more, or one less, of the connections of a scope. Too many at once leave it to the recount.
#[inline(always)]
fn step<S: Set>(words: S, up: bool) {
    for _ in 0..limit::TRIES {
        let count = words.word(limit::scope::CONNECTIONS);
        let next = if up { count + 1 } else { count.saturating_sub(1) };
        if next == count || words.swap(limit::scope::CONNECTIONS, count, next) {
            return;
        }
    }
}
