//! What the kernel reports about single packets: records of the ring buffer `EVENTS`, and the sampler that
//! bounds them.

/// One packet. Written only while somebody listens ([`crate::control::Control::events`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// Generation of the policy that judged the packet.
    pub generation: u64,
    /// Halves of the addresses, host byte order; IPv4 stands in the low 32 bits of the low half.
    pub src_high: u64,
    pub src_low: u64,
    pub dst_high: u64,
    pub dst_low: u64,
    pub ifindex: u32,
    /// Frame length, bytes.
    pub length: u32,
    /// See [`crate::counter`].
    pub ending: u32,
    /// Service id of that generation, 0 for none.
    pub service: u16,
    pub ethertype: u16,
    pub src_port: u16,
    /// For ICMP and ICMPv6: type in the high byte, code in the low one.
    pub dst_port: u16,
    /// Tag control information of the outer and inner VLAN tag, 0xffff for none.
    pub vlan_outer: u16,
    pub vlan_inner: u16,
    /// 4, 6, or 0 when the frame was not read as far as an IP header.
    pub version: u8,
    /// IP protocol after extension headers.
    pub protocol: u8,
    /// A [`crate::verdict::Reason`] number.
    pub reason: u8,
    /// Flags of TCP, 0 for others.
    pub tcp_flags: u8,
    /// Not zero if observe mode passed a packet that would have dropped.
    pub observed: u8,
    /// 0: ingress, 1: egress.
    pub direction: u8,
    pub pad: [u8; 6],
}

const _: () = assert!(size_of::<Event>() == 88);

/// Per CPU and reason: element of the per-CPU map `SAMPLER`, indexed by reason number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sampler {
    /// The second (monotonic) that `emitted` counts in.
    pub second: u64,
    /// Events written in that second.
    pub emitted: u64,
    /// Events not written since the map was made: over the rate, or the ring was full.
    pub suppressed: u64,
}

impl Sampler {
    /// Whether an event at `now_ns` may be written; counts it either way.
    #[inline(always)]
    pub fn admit(&mut self, now_ns: u64, per_second: u32) -> bool {
        let second = now_ns >> 30;
        if self.second != second {
            self.second = second;
            self.emitted = 0;
        }
        if self.emitted >= per_second as u64 {
            self.suppressed += 1;
            return false;
        }
        self.emitted += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampler_admits_its_rate_and_counts_the_rest() {
        let mut sampler = Sampler::default();
        let admitted = (0..100).filter(|_| sampler.admit(5, 10)).count();
        assert_eq!((admitted, sampler.suppressed), (10, 90));
        assert!(sampler.admit(1 << 30, 10));
    }
}
