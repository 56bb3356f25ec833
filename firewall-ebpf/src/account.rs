//! The last step of every packet: counters, the event, and what observe mode makes of the verdict.

use crate::kernel::{Context, Node};
use crate::maps::{COUNTERS, EVENTS, IFACES, SAMPLER};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use firewall_common::control::{EVENTS_DROP, EVENTS_PASS};
use firewall_common::counter::{self, interface_cell};
use firewall_common::decide::{Kernel as _, Outcome};
use firewall_common::event::Event;
use firewall_common::packet::{Frame, Packet};
use firewall_common::verdict::Verdict;

/// Which way a frame goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Ingress = 0,
    Egress = 1,
}

/// Counts the packet, reports it to whoever listens, and returns what happens to it.
#[inline(always)]
pub fn account<F: Frame, C: Context>(
    frame: &F,
    node: &Node<C>,
    packet: &Packet,
    outcome: Outcome,
    direction: Direction,
) -> Verdict {
    let length = frame.wire_len();
    let judged = outcome.reason.verdict();
    let observed = judged == Verdict::Drop && node.config().is_some_and(|config| config.observe != 0);
    let verdict = if observed { Verdict::Pass } else { judged };

    count(length, node, outcome, observed);
    let ifindex = node.ctx.ifindex();
    if let Some(cell) = IFACES.get_ptr_mut(interface_cell(ifindex)) {
        // SAFETY: this CPU's own cell; XDP and TC programs run with bottom halves off and do not interrupt each other.
        let cell = unsafe { &mut *cell };
        let side = match (direction, verdict) {
            (Direction::Ingress, Verdict::Pass) => &mut cell.passed,
            (Direction::Ingress, Verdict::Drop) => &mut cell.dropped,
            (Direction::Egress, Verdict::Pass) => &mut cell.egress_passed,
            (Direction::Egress, Verdict::Drop) => &mut cell.egress_dropped,
        };
        side.packets += 1;
        side.bytes += length as u64;
    }

    let Some(control) = node.control else {
        return verdict;
    };
    let wanted = if judged == Verdict::Drop {
        EVENTS_DROP
    } else {
        EVENTS_PASS
    };
    if control.events & wanted != 0 {
        report(length, node, packet, outcome, ifindex, observed, direction);
    }
    verdict
}

#[inline(always)]
fn count<C>(length: u32, node: &Node<C>, outcome: Outcome, observed: bool) {
    let Some(control) = node.control else { return };
    let Some(counters) = COUNTERS.get(node.slot) else {
        return;
    };
    let Some(stride) = control.stride.get(node.slot as usize) else {
        return;
    };
    // SAFETY: the helper takes no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() } as u32;
    let index = counter::index(*stride, cpu, observed, outcome.ending);
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: elements of this CPU's stretch are written by this CPU only.
        let counter = unsafe { &mut *counter };
        counter.packets += 1;
        counter.bytes += length as u64;
    }
}

#[inline(always)]
fn report<C>(
    length: u32,
    node: &Node<C>,
    packet: &Packet,
    outcome: Outcome,
    ifindex: u32,
    observed: bool,
    direction: Direction,
) {
    let Some(control) = node.control else { return };
    let Some(sampler) = SAMPLER.get_ptr_mut(outcome.reason.number() as u32) else {
        return;
    };
    // SAFETY: this CPU's own cell.
    let sampler = unsafe { &mut *sampler };
    // SAFETY: the helper takes no arguments.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    if !sampler.admit(time_ns, control.events_per_second) {
        return;
    }
    let Some(mut place) = EVENTS.reserve(0) else {
        sampler.suppressed += 1;
        return;
    };
    let icmp = packet.is_icmp();
    place.write(Event {
        time_ns,
        generation: control.generation.get(node.slot as usize).copied().unwrap_or(0),
        src_high: packet.src.high,
        src_low: packet.src.low,
        dst_high: packet.dst.high,
        dst_low: packet.dst.low,
        ifindex,
        length,
        ending: outcome.ending,
        service: outcome.service,
        ethertype: packet.ethertype,
        src_port: packet.src_port,
        dst_port: if icmp {
            (packet.icmp_type as u16) << 8 | packet.icmp_code as u16
        } else {
            packet.dst_port
        },
        vlan_outer: packet.vlan[0],
        vlan_inner: packet.vlan[1],
        version: packet.version,
        protocol: packet.protocol,
        reason: outcome.reason.number(),
        tcp_flags: packet.tcp_flags,
        observed: observed as u8,
        direction: direction as u8,
        pad: [0; 6],
    });
    place.submit(0);
}
