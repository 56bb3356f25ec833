//! What an ICMP error quotes: the packet of this host that it is about (RFC 792, RFC 4443 section 3).
//!
//! Reads just enough to name the flow. Whether that flow exists is [`crate::decide`]'s business.

use crate::flow::Key;
use crate::packet::{Address, Frame, Packet, Window as _, protocol};

/// Remote port of the key of an echo reply, which answers and so is of no flow: flows of echoes have 0.
pub const ECHO_REPLY: u16 = 1;

/// The flow that the error in `packet` is about, as this host sent it. `None`: no error that concerns flows, a quote too short
/// to tell, one of a fragment after the first, or one of a packet that the error's receiver did not send.
#[inline(always)]
pub fn quoted<F: Frame>(frame: &F, packet: &Packet) -> Option<Key> {
    if !packet.may_quote() || packet.fragment.is_any() {
        return None;
    }
    let at = packet.transport_at as u32 + 8;
    let (src, dst, next, at) = if packet.version == 4 {
        let header = frame.window::<20>(at)?;
        let first = header.u8::<0>();
        if first >> 4 != 4 || first & 15 < 5 || header.u16::<6>() & 0x1fff != 0 {
            return None;
        }
        let (src, dst) = (header.u32::<12>() as u64, header.u32::<16>() as u64);
        (
            Address { high: 0, low: src },
            Address { high: 0, low: dst },
            header.u8::<9>(),
            at + (first & 15) as u32 * 4,
        )
    } else {
        let header = frame.window::<40>(at)?;
        if header.u8::<0>() >> 4 != 6 {
            return None;
        }
        let src = Address {
            high: header.u64::<8>(),
            low: header.u64::<16>(),
        };
        let dst = Address {
            high: header.u64::<24>(),
            low: header.u64::<32>(),
        };
        let (mut next, mut at) = (header.u8::<6>(), at + 40);
        // Of the headers between, only this one is common: errors about datagrams that the host itself cut up.
        if next == protocol::FRAGMENT {
            let fragment = frame.window::<8>(at)?;
            if fragment.u16::<2>() & 0xfff8 != 0 {
                return None;
            }
            next = fragment.u8::<0>();
            at += 8;
        }
        (src, dst, next, at)
    };
    if src != packet.dst {
        return None;
    }
    let (local, remote) = match next {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            let ports = frame.window::<4>(at)?;
            (ports.u16::<0>(), ports.u16::<2>())
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let echo = frame.window::<8>(at)?;
            let (request, reply) = if packet.version == 4 { (8, 0) } else { (128, 129) };
            match echo.u8::<0>() {
                kind if kind == request => (echo.u16::<4>(), 0),
                kind if kind == reply => (echo.u16::<4>(), ECHO_REPLY),
                _ => return None,
            }
        }
        _ => (0, 0),
    };
    Some(Key::new(packet.version, next, src, local, dst, remote))
}
