//! Counters read from the kernel's memory: no copies of them are kept, a sum is made when it is asked for.

use super::{DatapathError, sys::Mapping};
use firewall_common::counter::{self, Counter, InterfaceCounter};

/// Every way that a packet can end in one generation of policy; the index is that of `Compiled::endings`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndingCounters {
    pub generation: u64,
    pub endings: Vec<EndingCounter>,
}

/// One ending, summed over CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndingCounter {
    pub happened: Counter,
    /// What observe mode passed and enforcing would have dropped.
    pub would_drop: Counter,
}

/// Sums the counters of `endings` endings.
pub(super) fn read_counters(map: &Mapping, generation: u64, stride: u32, endings: u32) -> EndingCounters {
    let mut sums = vec![EndingCounter::default(); endings.min(stride) as usize];
    let cell = size_of::<Counter>();
    // By what is mapped rather than by what is there, so that a map of other shape can never be read past its end.
    let bank = stride as usize * cell;
    let cpus = (map.len() / cell / counter::BANKS as usize)
        .checked_div(stride as usize)
        .unwrap_or(0);
    for cpu in 0..cpus as u32 {
        for would_drop in [false, true] {
            let start = counter::index(stride, cpu, would_drop, 0) as usize * cell;
            debug_assert!(start + bank <= map.len());
            for (ending, sum) in sums.iter_mut().enumerate() {
                let at = start + ending * cell;
                let side = if would_drop {
                    &mut sum.would_drop
                } else {
                    &mut sum.happened
                };
                side.packets = side.packets.wrapping_add(map.load_u64(at));
                side.bytes = side.bytes.wrapping_add(map.load_u64(at + 8));
            }
        }
    }
    EndingCounters {
        generation,
        endings: sums,
    }
}

/// The words of an `InterfaceCounter` of each CPU, summed.
pub(super) fn interface(cells: &[[u64; 8]]) -> InterfaceCounter {
    let sum = |at: usize| cells.iter().fold(0_u64, |sum, cell| sum.wrapping_add(cell[at]));
    let side = |at| Counter {
        packets: sum(at),
        bytes: sum(at + 1),
    };
    InterfaceCounter {
        passed: side(0),
        dropped: side(2),
        egress_passed: side(4),
        egress_dropped: side(6),
    }
}

/// One more than the highest number that a CPU can ever have on this machine.
pub(super) fn cpus() -> Result<u32, DatapathError> {
    let path = std::path::Path::new("/sys/devices/system/cpu/possible");
    let text = std::fs::read_to_string(path).map_err(DatapathError::path("reading", path))?;
    // `0-3` or `0,2-5`: the last number is the highest.
    text.trim()
        .rsplit([',', '-'])
        .next()
        .and_then(|last| last.parse::<u32>().ok()?.checked_add(1))
        .ok_or(std::io::ErrorKind::InvalidData.into())
        .map_err(DatapathError::path("reading", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_counters_sum_over_cpus() {
        let sum = interface(&[[1, 2, 3, 4, 5, 6, 7, 8], [10, 20, 30, 40, 50, 60, 70, 80]]);
        assert_eq!(
            sum.passed,
            Counter {
                packets: 11,
                bytes: 22
            }
        );
        assert_eq!(
            sum.dropped,
            Counter {
                packets: 33,
                bytes: 44
            }
        );
        assert_eq!(
            sum.egress_dropped,
            Counter {
                packets: 77,
                bytes: 88
            }
        );
    }

    #[test]
    fn this_machine_has_a_cpu() {
        assert!(cpus().unwrap() >= 1);
    }
}
