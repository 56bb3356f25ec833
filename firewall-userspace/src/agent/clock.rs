//! The two clocks of the agent: the wall, which people write in files and which jumps, and the time since boot,
//! which runs on through suspend and never jumps.

use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub trait Clock: Send + Sync {
    /// Since the Unix epoch.
    fn wall(&self) -> Duration;
    /// `CLOCK_BOOTTIME`.
    fn boot(&self) -> Duration;
}

/// The machine's.
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
    fn boot(&self) -> Duration {
        read(ClockId::CLOCK_BOOTTIME)
    }
}

/// `CLOCK_MONOTONIC`, the clock of events.
pub fn monotonic() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

fn read(clock: ClockId) -> Duration {
    // The clocks are always there; a failure reads as the start of time, at which nothing is due yet.
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// Names this run of the machine.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}
