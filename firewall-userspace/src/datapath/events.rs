//! Events of single packets, from the ring buffer to whoever listens.
//!
//! The ring bounds what waits: what does not fit is counted as suppressed by the kernel. A ring that was full
//! before the reader came never wakes it, so the reader drains first and then on a timer too.

use super::{DatapathError, sys};
use aya::maps::{Map, MapData, RingBuf};
use firewall_common::event::Event;
use std::{
    io,
    mem::offset_of,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::unix::AsyncFd,
    time::{Interval, MissedTickBehavior, interval},
};

/// How late an event can be whose wake-up was lost.
const TICK: Duration = Duration::from_millis(250);

/// The only reader of the ring.
pub struct EventReader {
    ring: RingBuf<MapData>,
    ready: AsyncFd<OwnedFd>,
    tick: Interval,
    /// Gives the ring back for the next reader.
    _lease: Lease,
}

/// Held by the reader: two of them would take each other's records.
struct Lease(Arc<AtomicBool>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl EventReader {
    /// Needs a tokio runtime. `taken` is true while a reader lives.
    pub(super) fn new(map: BorrowedFd<'_>, taken: &Arc<AtomicBool>) -> Result<EventReader, DatapathError> {
        if taken.swap(true, Ordering::AcqRel) {
            return Err(DatapathError::EventsTaken);
        }
        let lease = Lease(Arc::clone(taken));
        let clone = || {
            map.try_clone_to_owned()
                .map_err(DatapathError::system("opening the event ring"))
        };
        let ring = MapData::from_fd(clone()?)
            .and_then(Map::from_map_data)
            .and_then(RingBuf::try_from)
            .map_err(DatapathError::map("EVENTS"))?;
        let ready = sys::readable(clone()?).map_err(DatapathError::system("watching the event ring"))?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(EventReader {
            ring,
            ready,
            tick,
            _lease: lease,
        })
    }

    /// The next event. Safe to drop while waiting.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = self.take() {
                return Ok(event);
            }
            tokio::select! {
                guard = self.ready.readable() => {
                    // Cleared before the ring is read again: a record that comes in between wakes anew.
                    guard?.clear_ready();
                }
                _ = self.tick.tick() => {}
            }
        }
    }

    /// The next event, if one is there. Records of another shape are passed over.
    pub fn take(&mut self) -> Option<Event> {
        loop {
            let record = self.ring.next()?;
            if let Some(event) = parse(&record) {
                return Some(event);
            }
        }
    }
}

impl AsFd for EventReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.get_ref().as_fd()
    }
}

/// Reads a record field by field. `None` if it is of another length.
fn parse(record: &[u8]) -> Option<Event> {
    if record.len() != size_of::<Event>() {
        return None;
    }
    macro_rules! field {
        ($name:ident: $kind:ty) => {{
            let at = offset_of!(Event, $name);
            <$kind>::from_ne_bytes(record.get(at..at + size_of::<$kind>())?.try_into().ok()?)
        }};
    }
    Some(Event {
        time_ns: field!(time_ns: u64),
        generation: field!(generation: u64),
        src_high: field!(src_high: u64),
        src_low: field!(src_low: u64),
        dst_high: field!(dst_high: u64),
        dst_low: field!(dst_low: u64),
        ifindex: field!(ifindex: u32),
        length: field!(length: u32),
        ending: field!(ending: u32),
        service: field!(service: u16),
        ethertype: field!(ethertype: u16),
        src_port: field!(src_port: u16),
        dst_port: field!(dst_port: u16),
        vlan_outer: field!(vlan_outer: u16),
        vlan_inner: field!(vlan_inner: u16),
        version: field!(version: u8),
        protocol: field!(protocol: u8),
        reason: field!(reason: u8),
        tcp_flags: field!(tcp_flags: u8),
        observed: field!(observed: u8),
        direction: field!(direction: u8),
        pad: [0; 6],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_field_by_field() {
        let record: Vec<u8> = (0..88).collect();
        let event = parse(&record).unwrap();
        assert_eq!(event.time_ns, u64::from_ne_bytes([0, 1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(event.ifindex, u32::from_ne_bytes([48, 49, 50, 51]));
        assert_eq!(event.service, u16::from_ne_bytes([60, 61]));
        assert_eq!((event.version, event.observed, event.direction), (72, 76, 77));
        assert_eq!(event.pad, [0; 6]);
    }

    #[test]
    fn a_record_of_another_length_is_none() {
        for len in (0..200).filter(|len| *len != 88) {
            assert_eq!(parse(&vec![0; len]), None);
        }
    }
}
