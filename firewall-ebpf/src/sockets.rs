//! What the socket table knows of a flow: functions of their own, see [`crate::apart`].

use aya_ebpf::bindings::{__sk_buff, bpf_sock, xdp_md};
use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as TupleV6};
use aya_ebpf::bindings::{bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as TupleV4};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use core::ffi::c_void;
use firewall_common::flow::Key;
use firewall_common::packet::protocol;

/// Answers: no connected socket, one that a listener of this host accepted, one that the host opened.
const UNKNOWN: u64 = 0;
const ACCEPTED: u64 = 1;
const OPENED: u64 = 2;

/// The socket of a TCP or UDP flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn socket_xdp(ctx: *mut xdp_md, key: *const Key) -> u64 {
    lookup(ctx.cast(), key)
}

/// The same at TC.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn socket_skb(ctx: *mut __sk_buff, key: *const Key) -> u64 {
    lookup(ctx.cast(), key)
}

#[inline(always)]
fn lookup(ctx: *mut c_void, key: *const Key) -> u64 {
    // SAFETY: the verifier lets callers pass a whole key or null only.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return UNKNOWN;
    };
    match key.protocol() {
        protocol::TCP => tcp(ctx, key),
        _ => udp(ctx, key),
    }
}

/// States of `include/net/tcp_states.h`; none is 0. Plain words, for the verifier refuses the undefined half of an `Option`.
const NO_SOCKET: u32 = 0;
const TCP_LISTEN: u32 = 10;
const TCP_NEW_SYN_RECV: u32 = 12;

#[inline(always)]
fn tcp(ctx: *mut c_void, key: &Key) -> u64 {
    match tcp_state(ctx, key, key.remote_port()) {
        NO_SOCKET | TCP_LISTEN => UNKNOWN,
        TCP_NEW_SYN_RECV => ACCEPTED,
        // No connection has peer port 0, so this finds the listener of the port, if there is one.
        _ => match tcp_state(ctx, key, 0) {
            TCP_LISTEN => ACCEPTED,
            _ => OPENED,
        },
    }
}

#[inline(always)]
fn tcp_state(ctx: *mut c_void, key: &Key, remote_port: u16) -> u32 {
    let (mut tuple, size) = tuple(key, remote_port);
    // SAFETY: the tuple is `size` bytes at least; a socket that is found is released below.
    unsafe {
        let socket = bpf_skc_lookup_tcp(ctx, &raw mut tuple, size, BPF_F_CURRENT_NETNS as i64 as u64, 0);
        if socket.is_null() {
            return NO_SOCKET;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        state
    }
}

#[inline(always)]
fn udp(ctx: *mut c_void, key: &Key) -> u64 {
    let (mut tuple, size) = tuple(key, key.remote_port());
    // SAFETY: as in `tcp_state`.
    unsafe {
        let socket: *mut bpf_sock =
            bpf_sk_lookup_udp(ctx, &raw mut tuple, size, BPF_F_CURRENT_NETNS as i64 as u64, 0);
        if socket.is_null() {
            return UNKNOWN;
        }
        // The lookup gives a connected socket only to its peer; an unconnected one has no remote port.
        let connected = (*socket).dst_port != 0;
        bpf_sk_release(socket.cast());
        if connected { OPENED } else { UNKNOWN }
    }
}

/// The flow as the socket table knows it, seen from what comes in (network byte order), and its size.
#[inline(always)]
pub fn tuple(key: &Key, remote_port: u16) -> (bpf_sock_tuple, u32) {
    // SAFETY: plain integers, for which zero is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    if key.version() == 4 {
        tuple.__bindgen_anon_1.ipv4 = TupleV4 {
            saddr: (key.remote.low as u32).to_be(),
            daddr: (key.local.low as u32).to_be(),
            sport: remote_port.to_be(),
            dport: key.local_port().to_be(),
        };
        return (tuple, size_of::<TupleV4>() as u32);
    }
    tuple.__bindgen_anon_1.ipv6 = TupleV6 {
        saddr: words(key.remote.high, key.remote.low),
        daddr: words(key.local.high, key.local.low),
        sport: remote_port.to_be(),
        dport: key.local_port().to_be(),
    };
    (tuple, size_of::<TupleV6>() as u32)
}

#[inline(always)]
fn words(high: u64, low: u64) -> [u32; 4] {
    [
        ((high >> 32) as u32).to_be(),
        (high as u32).to_be(),
        ((low >> 32) as u32).to_be(),
        (low as u32).to_be(),
    ]
}
