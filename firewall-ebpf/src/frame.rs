//! Bounds-checked reads of a frame: the only arithmetic on packet pointers.

use core::arch::asm;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_hdr_start_off;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes_relative;
use aya_ebpf::programs::{TcContext, XdpContext};
use firewall_common::packet::{Frame, Link, MAX_OFFSET, Window, ethertype, protocol};

/// The linear part of a frame at XDP. Headers past it (no driver splits them so deep) read as absent, hence drop.
pub struct XdpFrame {
    data: usize,
    data_end: usize,
    len: u32,
}

impl XdpFrame {
    /// `len` counts all buffers of the frame.
    #[inline(always)]
    pub fn new(ctx: &XdpContext, len: u32) -> XdpFrame {
        XdpFrame {
            data: ctx.data(),
            data_end: ctx.data_end(),
            len,
        }
    }
}

/// The linear part of a frame at TC that begins with an Ethernet header. The outer VLAN tag, if there is one, stands
/// beside it: the kernel takes it out before programs see the frame.
pub struct SkbFrame {
    data: usize,
    data_end: usize,
    len: u32,
    /// Tag control information that was taken out of the frame, and [`TAGGED`] if any was. A plain word: kernels before
    /// 6.3 take the other half of an enum for undefined.
    tag: u32,
}

/// See [`SkbFrame::tag`]. Twice, or the verifier would tell tagged frames from others to the end for the sake of their length.
const TAGGED: u32 = 1 << 16;
const TAGGED_TOO: u32 = 1 << 17;

impl SkbFrame {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> SkbFrame {
        pull_headers(ctx);
        let (data, data_end) = linear(ctx);
        let skb = ctx.skb.skb;
        // SAFETY: fields of the context that the program was called with.
        let (tagged, more, tci) = unsafe {
            (
                (&raw const (*skb).vlan_present).read_volatile(),
                (&raw const (*skb).vlan_present).read_volatile(),
                (&raw const (*skb).vlan_tci).read_volatile(),
            )
        };
        SkbFrame {
            data,
            data_end,
            len: ctx.len(),
            tag: (more & 1) << 17 | (tagged & 1) << 16 | tci & 0xffff,
        }
    }

    #[inline(always)]
    fn tag(&self) -> Link {
        if self.tag & TAGGED == 0 {
            Link::Ethernet
        } else {
            Link::Untagged(self.tag as u16)
        }
    }
}

/// The linear part of a packet at TC on a device without Ethernet headers, from its network header on.
pub struct BareFrame {
    data: usize,
    data_end: usize,
    len: u32,
    wire_len: u32,
    ethertype: u16,
}

impl BareFrame {
    /// `zero` is one that the verifier does not know of.
    #[inline(always)]
    pub fn new(ctx: &TcContext, zero: u64) -> BareFrame {
        pull_headers(ctx);
        // Mixed, so that the ways of `before_network` are walked as one from here on.
        let before = (before_network(ctx) as u64 ^ zero) & FAR as u64;
        let (data, data_end) = linear(ctx);
        // SAFETY: a field of the context that the program was called with.
        let protocol = unsafe { (&raw const (*ctx.skb.skb).protocol).read_volatile() };
        let (whole, far) = (ctx.len(), before as u32 == FAR);
        let len = whole.saturating_sub(before as u32);
        BareFrame {
            data: data + bounded(before) as usize,
            data_end,
            len: if far { 0 } else { len },
            wire_len: if far { whole } else { len },
            ethertype: u16::from_be(protocol as u16),
        }
    }
}

/// At most [`FAR`], in the very register that is given back: see [`Frame::window`] below.
#[inline(always)]
fn bounded(mut before: u64) -> u64 {
    // SAFETY: a move of a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) before, options(pure, nomem, nostack, preserves_flags)) };
    before & FAR as u64
}

/// Bytes of the headers that nearly all packets have: two tags, IP with options and transport, or what an ICMP error
/// quotes.
const HEADERS: u32 = 192;

/// Data and its end. Read anew each time: pulling data invalidates what was read before.
#[inline(always)]
fn linear(ctx: &TcContext) -> (usize, usize) {
    let skb = ctx.skb.skb;
    // SAFETY: fields of the context that the program was called with.
    unsafe {
        (
            (&raw const (*skb).data).read_volatile() as usize,
            (&raw const (*skb).data_end).read_volatile() as usize,
        )
    }
}

/// Headers may stand outside of the linear part, where XDP would have seen them; a failure leaves them unread.
#[inline(always)]
fn pull_headers(ctx: &TcContext) {
    let len = ctx.len();
    let (data, data_end) = linear(ctx);
    if data + (HEADERS as usize) <= data_end || len <= (data_end - data) as u32 {
        return;
    }
    // A chain of IPv6 extension headers may be as long as the parser reads; a second tag hides what follows.
    let wanted = if is_chained(ctx) { MAX_OFFSET } else { HEADERS };
    let _ = ctx.pull_data(if len < wanted { len } else { wanted });
}

/// The first eight bytes of the network header; zeros if there are not so many.
#[inline(always)]
fn network(ctx: &TcContext) -> [u8; 8] {
    let mut bytes = [0; 8];
    // SAFETY: writes the eight bytes it is given, zeros on failure.
    unsafe {
        bpf_skb_load_bytes_relative(
            ctx.as_ptr(),
            0,
            bytes.as_mut_ptr().cast(),
            8,
            bpf_hdr_start_off::BPF_HDR_START_NET,
        );
    }
    bytes
}

#[inline(always)]
fn is_chained(ctx: &TcContext) -> bool {
    // SAFETY: a field of the context that the program was called with.
    let ethertype = u16::from_be(unsafe { (&raw const (*ctx.skb.skb).protocol).read_volatile() } as u16);
    let plain = matches!(
        network(ctx)[6],
        protocol::TCP | protocol::UDP | protocol::ICMPV6 | protocol::SCTP
    );
    ethertype != ethertype::IPV4 && !(ethertype == ethertype::IPV6 && plain)
}

/// See [`before_network`].
const FAR: u32 = 63;

/// Bytes before the network header. There are none, except on a GRE device without a fixed peer, where the outer
/// headers still stand there (`ipgre_header_ops` of net/ipv4/ip_gre.c), and in test runs, which give everything
/// an Ethernet header. [`FAR`]: it is none of them, and the packet counts as too short to be read.
#[inline(always)]
fn before_network(ctx: &TcContext) -> u32 {
    let network = u64::from_ne_bytes(network(ctx));
    // GRE has four bytes, and four each for checksum, key and sequence number, behind 20 of IPv4.
    for start in [0, 14, 24, 28, 32, 36] {
        if ctx.load::<u64>(start as usize) == Ok(network) {
            return start;
        }
    }
    FAR
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

macro_rules! frame {
    ($frame:ty, $self:ident, bare $bare:expr, link $link:expr, wire $wire_len:expr, readable $readable:expr) => {
        impl Frame for $frame {
            type Window<const N: usize> = PacketWindow<N>;
            const BARE: bool = $bare;

            #[inline(always)]
            fn link(&$self) -> Link {
                $link
            }

            #[inline(always)]
            fn len(&self) -> u32 {
                self.len
            }

            #[inline(always)]
            fn wire_len(&$self) -> u32 {
                $wire_len
            }

            #[inline(always)]
            fn settle<T>(&self, value: &mut T) {
                settle(value);
            }

            #[inline(always)]
            fn window<const N: usize>(&$self, at: u32) -> Option<PacketWindow<N>> {
                if !$readable {
                    return None;
                }
                // The verifier wants the offset bounded in the very register that is added to the packet pointer;
                // left alone, the compiler bounds a copy.
                let mut at = at as usize;
                // SAFETY: a move of a register to itself.
                unsafe { asm!("{0} = {0}", inout(reg) at, options(pure, nomem, nostack, preserves_flags)) };
                if at > MAX_OFFSET as usize {
                    return None;
                }
                let start = $self.data + at;
                if start + N > $self.data_end {
                    return None;
                }
                Some(PacketWindow(start as *const u8))
            }
        }
    };
}

frame!(XdpFrame, self, bare false, link Link::Ethernet, wire self.len, readable true);
frame!(SkbFrame, self, bare false, link self.tag(), wire self.len + (self.tag & TAGGED_TOO) / TAGGED_TOO * 4, readable true);
frame!(BareFrame, self, bare true, link Link::Bare(self.ethertype), wire self.wire_len, readable self.len != 0);

/// A load of a whole word from a packet, wherever it stands. The kernel allows it on machines that do, the verifier
/// sees to the rest; from `read_unaligned` the compiler makes single bytes.
macro_rules! load {
    ($width:literal, $base:expr, $at:expr) => {{
        let word: u64;
        // SAFETY: `window` checked the bytes up to N, and callers read below N (the verifier proves it again).
        unsafe {
            asm!(
                concat!("{0} = *(", $width, " *)({1} + {2})"),
                out(reg) word,
                in(reg) $base,
                const $at,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        word
    }};
}

/// `N` bytes of a frame that were checked against its end.
pub struct PacketWindow<const N: usize>(*const u8);

impl<const N: usize> Window for PacketWindow<N> {
    #[inline(always)]
    fn u8<const AT: usize>(&self) -> u8 {
        // SAFETY: `window` checked N bytes, and callers read below N (the verifier proves it again).
        unsafe { self.0.add(AT).read() }
    }
    #[inline(always)]
    fn u16<const AT: usize>(&self) -> u16 {
        u16::from_be(load!("u16", self.0, AT) as u16)
    }
    #[inline(always)]
    fn u32<const AT: usize>(&self) -> u32 {
        u32::from_be(load!("u32", self.0, AT) as u32)
    }
    #[inline(always)]
    fn u64<const AT: usize>(&self) -> u64 {
        u64::from_be(load!("u64", self.0, AT))
    }
}
