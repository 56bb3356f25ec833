//! Events as they happen: from the kernel's ring to whoever listens.
//!
//! Each listener has the same bounded window on the stream; one that reads too slowly loses events and is told how
//! many. While nobody listens, the kernel writes none.

pub mod pump;
pub mod record;
pub mod time;

use crate::agent::counters::PASS;
use crate::api::types::{AnomalyRecord, ChallengeRecord, EventRecord, MonitorRecord, SuppressedRecord};
use firewall_common::control::{EVENTS_DROP, EVENTS_PASS};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio::sync::broadcast;

/// Records that a listener may lag behind.
const WINDOW: usize = 4096;

/// Events that the kernel writes per reason, CPU and second while somebody listens.
pub const PER_SECOND: u32 = 100;

#[derive(Clone, Debug)]
struct Published {
    news: News,
    /// All that the kernel has suppressed, up to this record.
    suppressed: u64,
}

#[derive(Clone, Debug)]
enum News {
    Event(Arc<EventRecord>),
    Anomaly(Arc<AnomalyRecord>),
    Challenge(ChallengeRecord),
    /// Only to tell how many were suppressed.
    Suppressed,
}

/// The middle of the fan.
pub struct Hub {
    /// `None` once closed.
    sender: Mutex<Option<broadcast::Sender<Published>>>,
    listeners: Mutex<Listeners>,
    /// Told which `EVENTS_*` the kernel should write, whenever that changes.
    wanted: Box<dyn Fn(u32) + Send + Sync>,
}

#[derive(Debug, Default)]
struct Listeners {
    drops: usize,
    passes: usize,
    /// The last total heard of.
    suppressed: u64,
}

impl Listeners {
    fn wanted(&self) -> u32 {
        let drops = if self.drops > 0 { EVENTS_DROP } else { 0 };
        let passes = if self.passes > 0 { EVENTS_PASS } else { 0 };
        drops | passes
    }
}

impl Hub {
    pub fn new(wanted: impl Fn(u32) + Send + Sync + 'static) -> Arc<Hub> {
        let (sender, _) = broadcast::channel(WINDOW);
        Arc::new(Hub {
            sender: Mutex::new(Some(sender)),
            listeners: Mutex::default(),
            wanted: Box::new(wanted),
        })
    }

    /// Listens to drops, and to what passes too if `passes`.
    pub fn listen(self: &Arc<Hub>, passes: bool) -> Listener {
        let receiver = match &*self.sender.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(sender) => sender.subscribe(),
            // Its sender is dropped at once: it ends at once.
            None => broadcast::channel(1).1,
        };
        let suppressed = self.change(|listeners| {
            listeners.drops += 1;
            listeners.passes += usize::from(passes);
            listeners.suppressed
        });
        Listener {
            hub: self.clone(),
            receiver,
            passes,
            suppressed,
            missed: 0,
        }
    }

    /// Hands a record to all listeners. `suppressed`: the total that the kernel has suppressed so far.
    pub fn publish(&self, record: EventRecord, suppressed: u64) {
        self.send(News::Event(Arc::new(record)), suppressed);
    }

    /// Hands an anomaly to all listeners.
    pub fn publish_anomaly(&self, record: AnomalyRecord) {
        let suppressed = self.change(|listeners| listeners.suppressed);
        self.send(News::Anomaly(Arc::new(record)), suppressed);
    }

    /// Hands the start or the end of a challenge to all listeners.
    pub fn publish_challenge(&self, record: ChallengeRecord) {
        let suppressed = self.change(|listeners| listeners.suppressed);
        self.send(News::Challenge(record), suppressed);
    }

    /// Tells all listeners the total that the kernel has suppressed so far, when no record does.
    pub fn publish_suppressed(&self, suppressed: u64) {
        self.send(News::Suppressed, suppressed);
    }

    fn send(&self, news: News, suppressed: u64) {
        self.suppressed(suppressed);
        if let Some(sender) = &*self.sender.lock().unwrap_or_else(PoisonError::into_inner) {
            // Without listeners it goes nowhere, which is right.
            let _ = sender.send(Published { news, suppressed });
        }
    }

    /// Whether anybody listens.
    pub fn is_heard(&self) -> bool {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drops
            > 0
    }

    /// Ends all listeners when they have read what is there.
    pub fn close(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The total that the kernel has suppressed so far: who comes later is not told of it.
    pub fn suppressed(&self, total: u64) {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .suppressed = total;
    }

    fn change<T>(&self, change: impl FnOnce(&mut Listeners) -> T) -> T {
        // The lock is held while the change is told, so that changes are told in order.
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let before = listeners.wanted();
        let result = change(&mut listeners);
        if listeners.wanted() != before {
            (self.wanted)(listeners.wanted());
        }
        result
    }
}

pub struct Listener {
    hub: Arc<Hub>,
    receiver: broadcast::Receiver<Published>,
    passes: bool,
    suppressed: u64,
    missed: u64,
}

impl Listener {
    /// The next record; its `suppressed` counts what the kernel suppressed and what this listener lost since the
    /// one before. `None` when the agent stops.
    pub async fn next(&mut self) -> Option<MonitorRecord> {
        loop {
            match self.receiver.recv().await {
                Ok(published) => {
                    if let Some(record) = self.take(published) {
                        return Some(record);
                    }
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => self.missed += missed,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl Listener {
    fn take(&mut self, published: Published) -> Option<MonitorRecord> {
        match &published.news {
            News::Event(record) if !self.passes && record.verdict == PASS => return None,
            // These say nothing about events: what was suppressed is told by the next record.
            News::Anomaly(record) => return Some(MonitorRecord::Anomaly(Box::new((**record).clone()))),
            News::Challenge(record) => return Some(MonitorRecord::Challenge(record.clone())),
            _ => {}
        }
        let suppressed = published.suppressed.saturating_sub(self.suppressed) + self.missed;
        self.suppressed = self.suppressed.max(published.suppressed);
        self.missed = 0;
        match published.news {
            News::Event(record) => Some(MonitorRecord::Event(Box::new(EventRecord {
                suppressed,
                ..(*record).clone()
            }))),
            _ => (suppressed > 0).then(|| {
                MonitorRecord::Suppressed(SuppressedRecord {
                    time: time::rfc3339(SystemTime::now()),
                    suppressed,
                })
            }),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.hub.change(|listeners| {
            listeners.drops -= 1;
            listeners.passes -= usize::from(self.passes);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(verdict: &str, src_port: u16) -> EventRecord {
        EventRecord {
            verdict: verdict.into(),
            src_port: Some(src_port),
            ..EventRecord::default()
        }
    }

    async fn event(listener: &mut Listener) -> EventRecord {
        match listener.next().await.expect("one") {
            MonitorRecord::Event(record) => *record,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_kernel_writes_only_what_somebody_listens_to() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = told.clone();
        let hub = Hub::new(move |wanted| log.lock().expect("one thread").push(wanted));
        let first = hub.listen(false);
        let second = hub.listen(true);
        let third = hub.listen(false);
        drop(second);
        drop(first);
        drop(third);
        assert_eq!(
            *told.lock().expect("one thread"),
            [EVENTS_DROP, EVENTS_DROP | EVENTS_PASS, EVENTS_DROP, 0]
        );
    }

    #[tokio::test]
    async fn a_slow_listener_is_told_how_many_it_lost() {
        let hub = Hub::new(|_| ());
        hub.suppressed(1000);
        let (mut slow, mut quick) = (hub.listen(false), hub.listen(false));
        hub.publish(record("drop", 1), 1005);
        let first = event(&mut quick).await;
        assert_eq!((first.src_port, first.suppressed), (Some(1), 5));
        for _ in 0..WINDOW {
            hub.publish(record("drop", 2), 1007);
        }
        // The first was pushed out: lost to this one, with the 7 that the kernel suppressed.
        assert_eq!(event(&mut slow).await.suppressed, 8);
        assert_eq!(event(&mut slow).await.suppressed, 0);
    }

    #[tokio::test]
    async fn what_was_suppressed_is_told_though_no_event_follows() {
        let hub = Hub::new(|_| ());
        assert!(!hub.is_heard());
        let mut early = hub.listen(false);
        hub.publish(record("drop", 1), 5);
        hub.publish_suppressed(9);
        let mut late = hub.listen(false);
        hub.publish_suppressed(9);
        hub.publish_suppressed(10);
        hub.close();
        assert_eq!(event(&mut early).await.suppressed, 5);
        for (listener, counts) in [(&mut early, &[4, 1][..]), (&mut late, &[1])] {
            for expected in counts {
                match listener.next().await {
                    Some(MonitorRecord::Suppressed(told)) => assert_eq!(told.suppressed, *expected),
                    other => panic!("{other:?}"),
                }
            }
            assert!(listener.next().await.is_none());
        }
        assert!(hub.is_heard());
    }

    #[tokio::test]
    async fn anomalies_go_to_all_and_leave_what_was_suppressed_to_the_next_event() {
        let hub = Hub::new(|_| ());
        let mut listener = hub.listen(false);
        hub.publish(record("drop", 1), 5);
        let anomaly = AnomalyRecord {
            anomaly: "begins".into(),
            ..AnomalyRecord::default()
        };
        hub.publish_anomaly(anomaly.clone());
        hub.publish(record("drop", 2), 9);
        hub.close();
        assert_eq!(event(&mut listener).await.suppressed, 5);
        match listener.next().await {
            Some(MonitorRecord::Anomaly(told)) => assert_eq!(*told, anomaly),
            other => panic!("{other:?}"),
        }
        assert_eq!(event(&mut listener).await.suppressed, 4);
    }

    #[test]
    fn records_are_told_apart_as_they_are_read() {
        let text = r#"{"time":"t","anomaly":"ends","end":"usual","service":"web","kind":"drops","since":"s","seconds":1,
            "rate":1.0,"peak":2.0,"baseline":0.5,"limit":1.5,"sources":[{"source":"192.0.2.1","share":0.9}]}"#;
        let read: MonitorRecord = serde_json::from_str(text).expect("read");
        assert!(matches!(read, MonitorRecord::Anomaly(record) if record.row.sources.len() == 1));
        let read: MonitorRecord = serde_json::from_str(r#"{"time":"t","suppressed":3}"#).expect("read");
        assert!(matches!(read, MonitorRecord::Suppressed(_)));
    }

    #[tokio::test]
    async fn passes_go_to_those_who_asked() {
        let hub = Hub::new(|_| ());
        let (mut drops, mut all) = (hub.listen(false), hub.listen(true));
        hub.publish(record("pass", 1), 0);
        hub.publish(record("drop", 2), 0);
        hub.close();
        assert_eq!(event(&mut drops).await.src_port, Some(2));
        assert_eq!(event(&mut all).await.src_port, Some(1));
        assert!(drops.next().await.is_none() && hub.listen(false).next().await.is_none());
    }
}
