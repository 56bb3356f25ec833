//! Bounds-checked reads of a frame: the only arithmetic on packet pointers.

use crate::kernel::settle;
use core::arch::asm;

use aya_ebpf::programs::{TcContext, XdpContext};
use firewall_common::packet::{Frame, MAX_OFFSET, Window};

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

/// The linear part of a frame at TC.
pub struct SkbFrame {
    data: usize,
    data_end: usize,
    len: u32,
}

impl SkbFrame {
    /// Headers that the egress program reads: Ethernet, two tags, IP and transport with common options.
    const HEADERS: u32 = 128;

    #[inline(always)]
    pub fn new(ctx: &TcContext) -> SkbFrame {
        let len = ctx.len();
        let (data, data_end) = Self::linear(ctx);
        if data + (Self::HEADERS as usize) > data_end && len > (data_end - data) as u32 {
            // Forwarded frames may keep headers outside of the linear part; a failure leaves them unread.
            let _ = ctx.pull_data(if len < Self::HEADERS { len } else { Self::HEADERS });
        }
        let (data, data_end) = Self::linear(ctx);
        SkbFrame { data, data_end, len }
    }

    /// Read anew each time: pulling data invalidates what was read before.
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
}

macro_rules! frame {
    ($frame:ty) => {
        impl Frame for $frame {
            type Window<const N: usize> = PacketWindow<N>;

            #[inline(always)]
            fn len(&self) -> u32 {
                self.len
            }

            #[inline(always)]
            fn settle<T>(&self, value: &mut T) {
                settle(value);
            }

            #[inline(always)]
            fn window<const N: usize>(&self, at: u32) -> Option<PacketWindow<N>> {
                // The verifier wants the offset bounded in the very register that is added to the packet pointer;
                // left alone, the compiler bounds a copy.
                let mut at = at as usize;
                // SAFETY: a move of a register to itself.
                unsafe { asm!("{0} = {0}", inout(reg) at, options(pure, nomem, nostack, preserves_flags)) };
                if at > MAX_OFFSET as usize {
                    return None;
                }
                let start = self.data + at;
                if start + N > self.data_end {
                    return None;
                }
                Some(PacketWindow(start as *const u8))
            }
        }
    };
}

frame!(XdpFrame);
frame!(SkbFrame);

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
