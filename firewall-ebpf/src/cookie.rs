//! SYN cookies at XDP, and what a segment proves of its connection: functions of their own, see [`crate::apart`].
//!
//! The kernel makes and checks the cookies. What is answered must be this host's to answer: an own address, a port that is
//! not translated, and a listener in the socket table.

use crate::frame::XdpFrame;
use crate::maps::{ANSWERS, ASKED, LOCAL, PUBLISHED, Room};
use crate::sockets;
use crate::state::{config, room, seed};
use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::bindings::xdp_action::XDP_TX;
use aya_ebpf::bindings::{__sk_buff, BPF_F_CURRENT_NETNS, bpf_sock, xdp_md};
use aya_ebpf::helpers::generated::{
    bpf_check_mtu, bpf_ktime_get_coarse_ns, bpf_redirect, bpf_sk_release, bpf_skb_load_bytes,
    bpf_skb_load_bytes_relative, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie, bpf_tcp_gen_syncookie,
    bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_store_bytes,
};
use aya_ebpf::programs::XdpContext;
use core::ffi::c_void;
use firewall_common::control::{
    AddressKey, CHALLENGE_ALWAYS, CHALLENGE_GIVE, CHALLENGE_OPTIONS, CHALLENGE_SCALE_SHIFT,
};
use firewall_common::cookie::{self, Answer, Segment, back};
use firewall_common::counter::interface_cell;
use firewall_common::flow::Key;
use firewall_common::packet::{Frame as _, Packet, Window as _};

/// Answers of [`challenge`]: nothing could be done, the frame is the answer now and goes back, it is the
/// listener's yet.
const FAILED: u64 = 0;
const ANSWERED: u64 = 1;
const DECLINED: u64 = 2;

/// Answers of [`handshake_xdp`]: nothing to tell by; a connection; a handshake that the listener remembers; one that a
/// cookie ends; none of those, though there is a listener.
const UNKNOWN: u64 = 0;
const CONNECTION: u64 = 1;
const REMEMBERED: u64 = 2;
const PROVEN: u64 = 3;
const STRANGER: u64 = 4;

/// States of `include/net/tcp_states.h`.
const TCP_LISTEN: u32 = 10;
const TCP_NEW_SYN_RECV: u32 = 12;

const ENOENT: i64 = -2;
/// The shortest Ethernet frame, without its checksum. Drivers need not pad what comes from XDP.
const MIN_FRAME: u32 = 60;

/// Answers a SYN in place. The frame is as it was unless this gives [`ANSWERED`], or memory is short.
#[inline(always)]
pub fn challenge(ctx: *mut xdp_md, packet: &Packet, config_slot: u32) -> u64 {
    match challenge_make(ctx, packet, config_slot) {
        ANSWERED => challenge_send(ctx, packet, config_slot),
        other => other,
    }
}

/// Makes a cookie for a SYN: [`ANSWERED`] with it in [`Room`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn challenge_make(ctx: *mut xdp_md, packet: *const Packet, config_slot: u32) -> u64 {
    // SAFETY: the verifier lets callers pass a whole packet or null only.
    let (Some(packet), Some(config)) = (unsafe { packet.as_ref() }, config(config_slot)) else {
        return FAILED;
    };
    let Some(room) = room() else { return FAILED };
    let settings = config.challenge;
    if settings & CHALLENGE_GIVE == 0 || way(ctx) == back::NONE || !packet.opens_tcp() || !is_ours(packet) {
        return FAILED;
    }
    let frame = XdpFrame::new(&XdpContext::new(ctx), 0);
    let Some(segment) = cookie::segment(&frame, packet) else {
        return FAILED;
    };
    let offer = room.options.read(&frame, packet, segment);
    cookie::tcp_header(packet, segment, offer.mss, &mut room.tcp);
    let made = make(ctx.cast(), packet, room);
    if made < 0 {
        // Without room in the queue of accepted connections the kernel gives none either, and drops.
        let declines = made == ENOENT && settings & CHALLENGE_ALWAYS == 0;
        return if declines || made == OTHER {
            DECLINED
        } else {
            FAILED
        };
    }

    (room.offer, room.seq, room.cookie) = (offer, segment.seq, made as u32);
    ANSWERED
}

/// Turns the SYN into the answer that [`challenge_make`] prepared.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn challenge_send(ctx: *mut xdp_md, packet: *const Packet, config_slot: u32) -> u64 {
    // SAFETY: as in `challenge_make`.
    let (Some(packet), Some(config)) = (unsafe { packet.as_ref() }, config(config_slot)) else {
        return FAILED;
    };
    let Some(room) = room() else { return FAILED };
    let settings = config.challenge;
    let frame = XdpFrame::new(&XdpContext::new(ctx), 0);
    let Some(macs) = frame.window::<12>(0) else {
        return FAILED;
    };
    room.macs = [
        macs.u16::<6>().to_be(),
        macs.u16::<8>().to_be(),
        macs.u16::<10>().to_be(),
        macs.u16::<0>().to_be(),
        macs.u16::<2>().to_be(),
        macs.u16::<4>().to_be(),
    ];
    room.mtu = 0;
    // SAFETY: writes the one word that it is given.
    if unsafe { bpf_check_mtu(ctx.cast(), 0, &raw mut room.mtu, 0, 0) } < 0 {
        return FAILED;
    }
    let answer = Answer {
        offer: room.offer,
        seq: room.seq,
        cookie: room.cookie,
        mtu: room.mtu,
        // SAFETY: the helper takes no arguments.
        now_ms: unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000,
        carries: settings & CHALLENGE_OPTIONS != 0,
        scale: (settings >> CHALLENGE_SCALE_SHIFT) as u8 & 15,
    };
    let len = cookie::write(packet, &answer, &mut room.answer);
    let network_at = packet.network_at as u32;
    if replace(ctx, network_at, len, room) {
        let mark = cookie::asked(packet, room.seq, seed());
        if let Some(slot) = ASKED.get_ptr_mut(mark as u32 & (cookie::ASKED - 1)) {
            // SAFETY: an aligned word of a map, written by whole words only.
            unsafe { slot.write_volatile(mark) };
        }
        ANSWERED
    } else {
        FAILED
    }
}

/// Sends a frame that [`challenge`] made back to where it came from: the action of XDP.
#[inline(always)]
pub fn send(ctx: *mut xdp_md) -> u32 {
    match way(ctx) {
        // SAFETY: notes the interface, which is there, for a frame came by it.
        back::REDIRECT => unsafe { bpf_redirect((*ctx).ingress_ifindex, 0) as u32 },
        _ => XDP_TX,
    }
}

#[inline(always)]
fn way(ctx: *mut xdp_md) -> u32 {
    // SAFETY: a field of the context that the program was called with.
    let ifindex = unsafe { (*ctx).ingress_ifindex };
    ANSWERS
        .get(interface_cell(ifindex))
        .copied()
        .unwrap_or(back::NONE)
}

/// Whether a listener of this host may speak for the destination. A wildcard listener is found for any address, and
/// the proxies of container engines listen where packets are translated past them.
#[inline(always)]
fn is_ours(packet: &Packet) -> bool {
    let key = AddressKey {
        high: packet.dst.high,
        low: packet.dst.low,
    };
    let (word, bit) = cookie::published_bit(packet.dst_port);
    let published = PUBLISHED.get(word).is_none_or(|word| word & bit != 0);
    !published && LOCAL.get_ptr(key).is_some()
}

/// There is a socket, and it does not listen.
const OTHER: i64 = -4096;
const NO_SOCKET: i64 = -4097;

/// A cookie of the listener, in the low half; negative: an error of the helper, [`OTHER`] or [`NO_SOCKET`].
#[inline(always)]
fn make(ctx: *mut c_void, packet: &Packet, room: &mut Room) -> i64 {
    let ip_len = cookie::ip_header(packet, &mut room.ip);
    let socket = lookup(ctx, packet);
    // SAFETY: the socket is released on each way; headers and lengths belong together.
    unsafe {
        if socket.is_null() {
            return NO_SOCKET;
        }
        if (*socket).state != TCP_LISTEN {
            bpf_sk_release(socket.cast());
            return OTHER;
        }
        let (ip, tcp) = (room.ip.as_mut_ptr().cast(), room.tcp.as_mut_ptr().cast());
        let made = bpf_tcp_gen_syncookie(socket.cast(), ip, ip_len, tcp, 24);
        bpf_sk_release(socket.cast());
        made
    }
}

/// Puts the answer behind the Ethernet header and its tags, and turns the addresses round.
#[inline(always)]
fn replace(ctx: *mut xdp_md, network_at: u32, len: u32, room: &mut Room) -> bool {
    // SAFETY: helpers on the context that the program was called with; `len` is no more than the words that were written.
    unsafe {
        let old = bpf_xdp_get_buff_len(ctx) as u32;
        let new = network_at + len;
        let new = if new < MIN_FRAME && old >= MIN_FRAME {
            MIN_FRAME
        } else {
            new
        };
        if !(40..=80).contains(&len) || new > old {
            return false;
        }
        if new != old && bpf_xdp_adjust_tail(ctx, new as i32 - old as i32) != 0 {
            return false;
        }
        bpf_xdp_store_bytes(ctx, network_at, room.answer.as_mut_ptr().cast(), len) == 0
            && bpf_xdp_store_bytes(ctx, 0, room.macs.as_mut_ptr().cast(), 12) == 0
    }
}

/// What a segment that opens nothing is part of.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn handshake_xdp(ctx: *mut xdp_md, packet: *const Packet) -> u64 {
    // SAFETY: as in `challenge_make`.
    let (Some(packet), Some(room)) = (unsafe { packet.as_ref() }, room()) else {
        return UNKNOWN;
    };
    match cookie::segment(&XdpFrame::new(&XdpContext::new(ctx), 0), packet) {
        Some(segment) => handshake(ctx.cast(), packet, segment, room),
        None => UNKNOWN,
    }
}

/// The same at TC, with or without Ethernet headers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn handshake_skb(ctx: *mut __sk_buff, packet: *const Packet) -> u64 {
    // SAFETY: as in `challenge_make`.
    let (Some(packet), Some(room)) = (unsafe { packet.as_ref() }, room()) else {
        return UNKNOWN;
    };
    let (at, header) = (packet.transport_at as u32, room.tcp.as_mut_ptr().cast());
    // SAFETY: writes the twelve bytes that it is given.
    let error = unsafe {
        if packet.network_at == 0 {
            bpf_skb_load_bytes_relative(ctx.cast(), at, header, 12, BPF_HDR_START_NET)
        } else {
            bpf_skb_load_bytes(ctx.cast(), at, header, 12)
        }
    };
    if error != 0 {
        return UNKNOWN;
    }
    let segment = Segment {
        seq: u32::from_be(room.tcp[1]),
        ack: u32::from_be(room.tcp[2]),
        options: 0,
    };
    handshake(ctx.cast(), packet, segment, room)
}

#[inline(always)]
fn handshake(ctx: *mut c_void, packet: &Packet, segment: Segment, room: &mut Room) -> u64 {
    if !is_ours(packet) {
        return UNKNOWN;
    }
    cookie::tcp_header(packet, segment, 0, &mut room.tcp);
    let ip_len = cookie::ip_header(packet, &mut room.ip);
    let socket = lookup(ctx, packet);
    // SAFETY: as in `make`.
    unsafe {
        if socket.is_null() {
            return UNKNOWN;
        }
        let answer = match (*socket).state {
            TCP_LISTEN => {
                let (ip, tcp) = (room.ip.as_mut_ptr().cast(), room.tcp.as_mut_ptr().cast());
                match bpf_tcp_check_syncookie(socket.cast(), ip, ip_len, tcp, 24) {
                    0 if was_asked(packet, segment.seq.wrapping_sub(1)) => PROVEN,
                    0 => REMEMBERED,
                    _ => STRANGER,
                }
            }
            TCP_NEW_SYN_RECV => REMEMBERED,
            _ => CONNECTION,
        };
        bpf_sk_release(socket.cast());
        answer
    }
}

/// Whether a SYN of this number was challenged.
#[inline(always)]
fn was_asked(packet: &Packet, seq: u32) -> bool {
    let mark = cookie::asked(packet, seq, seed());
    // SAFETY: as in `challenge_send`.
    let found = ASKED
        .get_ptr(mark as u32 & (cookie::ASKED - 1))
        .map_or(0, |slot| unsafe { slot.read_volatile() });
    found == mark
}

/// The socket of a packet, or its listener. It has to be released.
#[inline(always)]
fn lookup(ctx: *mut c_void, packet: &Packet) -> *mut bpf_sock {
    let (mut tuple, size) = sockets::tuple(&Key::ingress(packet), packet.src_port);
    // SAFETY: the tuple is `size` bytes at least.
    unsafe { bpf_skc_lookup_tcp(ctx, &raw mut tuple, size, BPF_F_CURRENT_NETNS as i64 as u64, 0) }
}
