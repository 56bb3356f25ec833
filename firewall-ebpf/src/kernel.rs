//! The decision's surroundings over maps and helpers: configuration, image, gate, sockets, clock.

use core::arch::asm;

use crate::maps::{CONFIG, CONTROL, GATE, IMAGES, ImageMap, LOCAL};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as TupleV6};
use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as TupleV4};
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_coarse_ns, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
};
use aya_ebpf::programs::{TcContext, XdpContext};
use firewall_common::control::{AddressKey, Config, Control, Selector};
use firewall_common::decide::{Kernel, Socket};
use firewall_common::gate::{Bank, Cell};
use firewall_common::image::{PAGE_SIZE, Page, Pages};
use firewall_common::packet::{Packet, protocol};

/// What a program was called with.
pub trait Context: EbpfContext {
    /// The device that the packet came in on, or leaves by.
    fn ifindex(&self) -> u32;
}

impl Context for XdpContext {
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ingress_ifindex() as u32
    }
}

impl Context for TcContext {
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: a field of the context that the program was called with.
        unsafe { (*self.skb.skb).ifindex }
    }
}

/// What one packet sees: the selector is read once, so image, counters and configuration are of one moment.
pub struct Node<'a, C> {
    pub ctx: &'a C,
    pub control: Option<&'static Control>,
    /// Image slot in force, for tables that are kept per slot.
    pub slot: u32,
    config: Option<&'static Config>,
    image: Option<PolicyPages>,
}

impl<'a, C: Context> Node<'a, C> {
    #[inline(always)]
    pub fn new(ctx: &'a C) -> Node<'a, C> {
        let control = control();
        // SAFETY: an aligned word of a map that the agent stores atomically.
        let selector = Selector(control.map_or(0, |control| unsafe {
            (&raw const control.selector).read_volatile()
        }));
        let slot = selector.image();
        let zero = control.map_or(0, zero);
        let config = CONFIG.get(selector.config());
        // Before the first policy the slots are empty.
        let image = IMAGES.get(slot).map(|pages| PolicyPages { pages, zero });
        Node {
            ctx,
            control,
            slot,
            config,
            image,
        }
    }
}

#[inline(always)]
pub fn control() -> Option<&'static Control> {
    CONTROL.get(0)
}

/// Zero, but nobody tells the verifier: a word of a map is any number to the verifier.
#[inline(always)]
pub fn zero(control: &Control) -> u64 {
    // SAFETY: an aligned word of a map that nobody writes; volatile, or it would be read again at every use.
    unsafe { (&raw const control.zero).read_volatile() }
}

/// Monotonic clock of the last tick, seconds.
#[inline(always)]
pub fn now_s() -> u32 {
    // SAFETY: the helper takes no arguments. It costs 3-7 ns, the exact clock ten times as much.
    (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
}

/// Takes a value through memory, where the verifier forgets what it knew of bytes and half words.
#[inline(always)]
pub fn settle<T>(value: &mut T) {
    let mut pointer: *mut T = value;
    // SAFETY: a move of a register to itself; what the pointer leads to is not touched, but the compiler has to
    // take it for written.
    unsafe { asm!("{0} = {0}", inout(reg) pointer, options(nostack, preserves_flags)) };
    let _ = pointer;
}

impl<C: Context> Kernel for Node<'_, C> {
    type Pages = PolicyPages;

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        self.config
    }

    #[inline(always)]
    fn pages(&self) -> Option<&PolicyPages> {
        self.image.as_ref()
    }

    #[inline(always)]
    fn is_own(&self, address: AddressKey) -> bool {
        LOCAL.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn gate(&self, bank: Bank, port: u16) -> Cell {
        // SAFETY: an aligned word of a map, written by whole words only.
        Cell(
            GATE.get_ptr(bank.cell(port))
                .map_or(0, |cell| unsafe { cell.read_volatile() }),
        )
    }

    #[inline(always)]
    fn seed(&self) -> u64 {
        self.control.map_or(0, |control| control.seed)
    }

    #[inline(always)]
    fn now_s(&self) -> u32 {
        now_s()
    }

    #[inline(always)]
    fn settle<T>(&self, value: &mut T) {
        settle(value);
    }

    #[inline(always)]
    fn socket(&self, packet: &Packet) -> Socket {
        match packet.protocol {
            protocol::TCP => self.tcp(packet),
            _ => self.udp(packet),
        }
    }
}

/// States of `include/net/tcp_states.h`.
const TCP_LISTEN: u32 = 10;
const TCP_NEW_SYN_RECV: u32 = 12;

impl<C: Context> Node<'_, C> {
    #[inline(always)]
    fn tcp(&self, packet: &Packet) -> Socket {
        match self.tcp_state(packet, packet.src_port) {
            None | Some(TCP_LISTEN) => Socket::Unknown,
            Some(TCP_NEW_SYN_RECV) => Socket::Accepted,
            // No connection has peer port 0, so this finds the listener of the port, if there is one.
            Some(_) => match self.tcp_state(packet, 0) {
                Some(TCP_LISTEN) => Socket::Accepted,
                _ => Socket::Opened,
            },
        }
    }

    #[inline(always)]
    fn tcp_state(&self, packet: &Packet, src_port: u16) -> Option<u32> {
        let (mut tuple, size) = tuple(packet, src_port);
        // SAFETY: the tuple is `size` bytes at least; a socket that is found is released below.
        unsafe {
            let socket = bpf_skc_lookup_tcp(
                self.ctx.as_ptr(),
                &raw mut tuple,
                size,
                BPF_F_CURRENT_NETNS as i64 as u64,
                0,
            );
            if socket.is_null() {
                return None;
            }
            let state = (*socket).state;
            bpf_sk_release(socket.cast());
            Some(state)
        }
    }

    #[inline(always)]
    fn udp(&self, packet: &Packet) -> Socket {
        let (mut tuple, size) = tuple(packet, packet.src_port);
        // SAFETY: as in `tcp_state`.
        unsafe {
            let socket: *mut bpf_sock = bpf_sk_lookup_udp(
                self.ctx.as_ptr(),
                &raw mut tuple,
                size,
                BPF_F_CURRENT_NETNS as i64 as u64,
                0,
            );
            if socket.is_null() {
                return Socket::Unknown;
            }
            // The lookup gives a connected socket only to its peer; an unconnected one has no remote port.
            let connected = (*socket).dst_port != 0;
            bpf_sk_release(socket.cast());
            if connected {
                Socket::Opened
            } else {
                Socket::Unknown
            }
        }
    }
}

/// The packet's tuple as the socket table knows it (network byte order), and its size.
#[inline(always)]
fn tuple(packet: &Packet, src_port: u16) -> (bpf_sock_tuple, u32) {
    // SAFETY: plain integers, for which zero is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    if packet.version == 4 {
        tuple.__bindgen_anon_1.ipv4 = TupleV4 {
            saddr: (packet.src.low as u32).to_be(),
            daddr: (packet.dst.low as u32).to_be(),
            sport: src_port.to_be(),
            dport: packet.dst_port.to_be(),
        };
        return (tuple, size_of::<TupleV4>() as u32);
    }
    tuple.__bindgen_anon_1.ipv6 = TupleV6 {
        saddr: words(packet.src.high, packet.src.low),
        daddr: words(packet.dst.high, packet.dst.low),
        sport: src_port.to_be(),
        dport: packet.dst_port.to_be(),
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

/// The image in force, for egress.
#[inline(always)]
pub fn pages(control: &Control) -> Option<PolicyPages> {
    // SAFETY: an aligned word of a map that the agent stores atomically.
    let selector = Selector(unsafe { (&raw const control.selector).read_volatile() });
    IMAGES.get(selector.image()).map(|pages| PolicyPages {
        pages,
        zero: zero(control),
    })
}

/// The pages of the image that a packet is judged by.
pub struct PolicyPages {
    pages: &'static ImageMap,
    zero: u64,
}

impl Pages for PolicyPages {
    type Page = PolicyPage;

    #[inline(always)]
    fn page(&self, index: u32) -> Option<PolicyPage> {
        self.pages.get_ptr(index).map(|page| PolicyPage(page.cast()))
    }

    #[inline(always)]
    fn opaque(&self, word: u64) -> u64 {
        word ^ self.zero
    }
}

/// One page in the map.
#[derive(Clone, Copy)]
pub struct PolicyPage(*const u8);

impl PolicyPage {
    #[inline(always)]
    fn at<T: Copy>(self, at: u32) -> T {
        let at = at as usize & (PAGE_SIZE - size_of::<T>());
        // SAFETY: the mask keeps an aligned T inside of the page, which is aligned for u64.
        unsafe { self.0.add(at).cast::<T>().read() }
    }
}

impl Page for PolicyPage {
    #[inline(always)]
    fn u8(self, at: u32) -> u8 {
        self.at(at)
    }
    #[inline(always)]
    fn u16(self, at: u32) -> u16 {
        self.at(at)
    }
    #[inline(always)]
    fn u32(self, at: u32) -> u32 {
        self.at(at)
    }
    #[inline(always)]
    fn u64(self, at: u32) -> u64 {
        self.at(at)
    }
}
