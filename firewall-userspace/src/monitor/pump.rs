//! Takes events out of the kernel's ring and hands them to the [`Hub`].

use super::Hub;
use super::record::Directory;
use crate::agent::handle::{Command, Handle};
use crate::api::types::{EventRecord, MonitorRecord};
use crate::datapath::EventReader;
use crate::output;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::time::MissedTickBehavior;

/// Between looks at how many events the kernel suppressed.
const LOOK: Duration = Duration::from_millis(250);
/// Of the log.
const TARGET: &str = "ravelin::drops";
/// How late those suppressed are told when no event follows them.
const TELL: Duration = Duration::from_secs(1);

pub async fn run(mut reader: EventReader, directory: Arc<RwLock<Directory>>, hub: Arc<Hub>, agent: Handle) {
    // What was suppressed before this agent is nobody's news.
    let Ok(mut suppressed) = agent.ask(Command::Suppressed).await else {
        return;
    };
    let mut looked: Option<Instant> = None;
    let mut tell = tokio::time::interval(TELL);
    tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = reader.next() => event,
            _ = tell.tick() => {
                if hub.is_heard() {
                    let before = suppressed;
                    match agent.ask(Command::Suppressed).await {
                        Ok(total) => suppressed = total,
                        Err(_) => return,
                    }
                    if suppressed != before {
                        hub.publish_suppressed(suppressed);
                    }
                }
                continue;
            }
        };
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                log::error!("events are not reported any more: {error}");
                return;
            }
        };
        if looked.is_none_or(|looked| looked.elapsed() > LOOK) {
            looked = Some(Instant::now());
            match agent.ask(Command::Suppressed).await {
                Ok(total) => suppressed = total,
                Err(_) => return,
            }
        }
        let record = directory
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .record(&event);
        hub.publish(record, suppressed);
    }
}

/// Logs drops for as long as it runs.
pub async fn log_drops(hub: Arc<Hub>) {
    let mut listener = hub.listen(false);
    while let Some(record) = listener.next().await {
        match record {
            MonitorRecord::Event(event) => log::info!(target: TARGET, "{}", sentence(&event)),
            MonitorRecord::Suppressed(record) => {
                log::info!(target: TARGET, "{} more were not reported", record.suppressed);
            }
            // Logged by who found it.
            // The log has them from who found them.
            MonitorRecord::Anomaly(_) | MonitorRecord::Challenge(_) => {}
        }
    }
}

fn sentence(event: &EventRecord) -> String {
    let service = if event.service.is_empty() {
        "-"
    } else {
        &event.service
    };
    let more = match event.suppressed {
        0 => String::new(),
        count => format!(" ({count} more were not reported)"),
    };
    format!(
        "{} {} service {service} on {}: {} {} {} bytes{more}",
        event.verdict,
        event.reason,
        event.interface,
        event.protocol,
        output::route(event),
        event.length,
    )
}
