//! Takes events out of the kernel's ring and hands them to the [`Hub`].

use super::Hub;
use super::record::Directory;
use crate::agent::handle::{Command, Handle};
use crate::datapath::EventReader;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Between looks at how many events the kernel suppressed.
const LOOK: Duration = Duration::from_millis(250);

pub async fn run(mut reader: EventReader, directory: Arc<RwLock<Directory>>, hub: Arc<Hub>, agent: Handle) {
    let mut suppressed = 0;
    let mut looked: Option<Instant> = None;
    loop {
        let event = match reader.next().await {
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
    while let Some(event) = listener.next().await {
        let service = if event.service.is_empty() {
            "-"
        } else {
            &event.service
        };
        let more = match event.suppressed {
            0 => String::new(),
            count => format!(" ({count} more were not reported)"),
        };
        log::info!(
            target: "ravelin::drops",
            "{} {} service {service} on {}: {} {}:{} -> {}:{} {} bytes{more}",
            event.verdict, event.reason, event.interface, event.protocol,
            event.src, event.src_port, event.dst, event.dst_port, event.length,
        );
    }
}
