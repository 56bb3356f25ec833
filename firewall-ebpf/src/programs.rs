//! Entry points, and the one match from verdict to action.

use crate::account::{Direction, account};
use crate::cookie;
use crate::frame::{BareFrame, SkbFrame, XdpFrame};
use crate::kernel::{Context, Node, Silent};
use crate::state::{control, zero};
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::bpf_xdp_get_buff_len;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use core::arch::asm;
use firewall_common::decide;
use firewall_common::meter::Steps as _;
use firewall_common::packet::{Frame, Packet};
use firewall_common::verdict::{Reason, Verdict};

/// Judges every frame that comes in. Multi-buffer frames need kernel 5.18.
#[xdp(frags)]
pub fn ingress(ctx: XdpContext) -> u32 {
    // SAFETY: the helper takes the context that the program was called with.
    let len = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as u32;
    match verdict(&ctx, &XdpFrame::new(&ctx, len)) {
        (Verdict::Pass, _) => XDP_PASS,
        // The frame is the answer.
        (Verdict::Drop, Reason::Challenged) => cookie::send(ctx.ctx),
        (Verdict::Drop, _) => XDP_DROP,
    }
}

/// The same for kernels below 5.18, where every frame is linear and no helper writes into it.
#[xdp]
pub fn ingress_nofrags(ctx: XdpContext) -> u32 {
    let mut len = ctx.data_end();
    // SAFETY: a subtraction of registers. Left to the compiler it is narrowed first, and arithmetic on halves of
    // pointers is what the verifier refuses.
    unsafe { asm!("{0} -= {1}", inout(reg) len, in(reg) ctx.data(), options(pure, nomem, nostack)) };
    match verdict(&Silent(&ctx), &XdpFrame::new(&ctx, len as u32)).0 {
        Verdict::Pass => XDP_PASS,
        Verdict::Drop => XDP_DROP,
    }
}

/// The same at TC, where XDP is another's.
#[classifier]
pub fn ingress_tc(ctx: TcContext) -> i32 {
    act(verdict(&ctx, &SkbFrame::new(&ctx)).0)
}

/// The same for devices without Ethernet headers.
#[classifier]
pub fn ingress_raw(ctx: TcContext) -> i32 {
    act(verdict(&ctx, &BareFrame::new(&ctx, control().map_or(0, zero))).0)
}

#[inline(always)]
fn act(verdict: Verdict) -> i32 {
    match verdict {
        // "Next program" of TCX and "continue" of clsact.
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn verdict<F: Frame, C: Context>(ctx: &C, frame: &F) -> (Verdict, Reason) {
    let node = Node::new(ctx);
    let mut packet = Packet::EMPTY;
    let mut outcome = decide::ingress(frame, &node, &mut packet);
    node.settle(&mut outcome);
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        ctx,
        "reason {}, ending {}, {} bytes",
        outcome.reason.number(),
        outcome.ending,
        frame.len()
    );
    let verdict = account(frame, &node, &packet, outcome, Direction::Ingress);
    (verdict, outcome.reason)
}

/// Judges every frame that goes out, and notes what it opens.
#[classifier]
pub fn egress(ctx: TcContext) -> i32 {
    act(leave(&ctx, &SkbFrame::new(&ctx)))
}

/// The same for devices without Ethernet headers.
#[classifier]
pub fn egress_raw(ctx: TcContext) -> i32 {
    act(leave(&ctx, &BareFrame::new(&ctx, control().map_or(0, zero))))
}

#[inline(always)]
fn leave<F: Frame>(ctx: &TcContext, frame: &F) -> Verdict {
    let node = Node::new(ctx);
    let mut packet = Packet::EMPTY;
    let mut outcome = decide::egress(frame, &node, &mut packet);
    node.settle(&mut outcome);
    account(frame, &node, &packet, outcome, Direction::Egress)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
