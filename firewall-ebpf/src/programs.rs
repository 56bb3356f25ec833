//! Entry points, and the one match from verdict to action.

use crate::account::account;
use crate::frame::{SkbFrame, XdpFrame};
use crate::kernel::Node;
use crate::maps::GATE;
use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use firewall_common::decide::{self, Kernel as _};
use firewall_common::gate::Cell;
use firewall_common::packet::Packet;
use firewall_common::verdict::Verdict;

/// Judges every frame that comes in. Multi-buffer frames need kernel 5.18.
#[xdp(frags)]
pub fn ingress(ctx: XdpContext) -> u32 {
    let frame = XdpFrame::multi_buffer(&ctx);
    judge(&ctx, &frame)
}

/// The same for kernels below 5.18, where every frame is linear.
#[xdp]
pub fn ingress_nofrags(ctx: XdpContext) -> u32 {
    let frame = XdpFrame::linear(&ctx);
    judge(&ctx, &frame)
}

#[inline(always)]
fn judge(ctx: &XdpContext, frame: &XdpFrame) -> u32 {
    let node = Node::new(ctx);
    let mut packet = Packet::EMPTY;
    let mut outcome = decide::ingress(frame, &node, &mut packet);
    node.settle(&mut outcome);
    match account(ctx, frame, &node, &packet, outcome) {
        Verdict::Pass => XDP_PASS,
        Verdict::Drop => XDP_DROP,
    }
}

/// Remembers in the gate what the host opens; never stops a frame.
#[classifier]
pub fn egress(ctx: TcContext) -> i32 {
    remember(&ctx);
    // "Next program" of TCX and "continue" of clsact.
    TC_ACT_UNSPEC
}

#[inline(always)]
fn remember(ctx: &TcContext) -> Option<()> {
    let frame = SkbFrame::new(ctx);
    let seed = crate::kernel::control()?.seed;
    let mut packet = Packet::EMPTY;
    let (bank, port, peer) = decide::egress(&frame, seed, &mut packet)?;
    let cell = GATE.get_ptr_mut(bank.cell(port))?;
    let now = Cell::new(peer, crate::kernel::now_s());
    // SAFETY: `cell` is an aligned element of a map; kernel and agent access it by whole words only.
    unsafe {
        if cell.read_volatile() != now.0 {
            cell.write_volatile(now.0);
        }
    }
    Some(())
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
