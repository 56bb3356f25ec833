//! The task around the [`Detector`]: takes samples, listens to events while a series is suspect, and tells: the log, who
//! reads events, and the [`Board`] that status and metrics are made from.
//!
//! What was learned is written to the state directory now and then, so that a restart does not begin with a warm-up.

use super::detector::{Detector, Sample, Sighting};
use super::settings::Settings;
use super::{Kind, Moment};
use crate::agent::clock::{Clock, SystemClock};
use crate::agent::counters::{DROP, PASS, WOULD_DROP};
use crate::agent::handle::{Command, Handle};
use crate::api::types::{AnomalyList, AnomalyRecord, EventRecord, MonitorRecord};
use crate::monitor::{Hub, Listener};
use crate::output;
use crate::store::{Durable, read_json, write_json};
use firewall_common::verdict::{Direction, Reason};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// Between two times that what was learned is written.
const SAVE: Duration = Duration::from_secs(600);
const FILE: &str = "baselines.json";
/// Of the log.
const TARGET: &str = "ravelin::detect";

/// What is there to be seen, as of the last sample.
#[derive(Debug)]
pub struct Seen {
    pub list: AnomalyList,
    /// Each series, and whether it is anomalous.
    pub flags: Vec<(String, Kind, bool)>,
}

pub type Board = Arc<RwLock<Seen>>;

/// An empty one.
pub fn board(settings: &Settings) -> Board {
    let list = AnomalyList {
        enabled: settings.enabled,
        ..AnomalyList::default()
    };
    Arc::new(RwLock::new(Seen {
        list,
        flags: Vec::new(),
    }))
}

/// Runs until the agent stops.
pub async fn run(settings: Settings, state_dir: PathBuf, agent: Handle, hub: Arc<Hub>, board: Board) {
    let file = state_dir.join(FILE);
    let mut detector = Detector::new(settings, read_json(&file));
    let mut tick = tokio::time::interval(settings.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut listening: Option<(bool, Listener)> = None;
    let mut saved = now().uptime;
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let samples: Option<Vec<Sample>> = match agent.ask(Command::Samples).await {
                    Ok(samples) => samples,
                    Err(_) => return,
                };
                let now = now();
                for record in samples.iter().flat_map(|samples| detector.feed(now, samples)) {
                    tell(&record);
                    hub.publish_anomaly(record);
                }
                let wanted = detector.suspects();
                if listening.as_ref().map(|(passes, _)| *passes) != wanted {
                    listening = wanted.map(|passes| (passes, hub.listen(passes)));
                }
                let seen = Seen {
                    list: detector.list(now),
                    flags: detector.flags(),
                };
                *board.write().unwrap_or_else(PoisonError::into_inner) = seen;
                if now.uptime.saturating_sub(saved) >= SAVE {
                    saved = now.uptime;
                    save(&detector, &file).await;
                }
            }
            record = next(&mut listening) => match record {
                Some(MonitorRecord::Event(event)) => {
                    let now = now();
                    for sighting in sightings(&event) {
                        detector.observe(now, sighting);
                    }
                }
                Some(_) => {}
                None => return,
            },
        }
    }
}

fn now() -> Moment {
    Moment {
        uptime: SystemClock.boot(),
        unix: SystemClock.wall(),
    }
}

/// The next event, if somebody is suspect.
async fn next(listening: &mut Option<(bool, Listener)>) -> Option<MonitorRecord> {
    match listening {
        Some((_, listener)) => listener.next().await,
        None => std::future::pending().await,
    }
}

async fn save(detector: &Detector, file: &Path) {
    let (memory, file) = (detector.memory(), file.to_owned());
    let written = tokio::task::spawn_blocking(move || write_json(&file, &memory, Durable::No)).await;
    if let Ok(Err(error)) = written {
        log::warn!("cannot keep what is usual for the services: {error}");
    }
}

/// What a packet counts for.
fn sightings(event: &EventRecord) -> impl Iterator<Item = Sighting<'_>> {
    let came_in = event.direction == Direction::Ingress.word();
    let verdict = event.verdict.as_str();
    let dropped = came_in && (verdict == DROP || verdict == WOULD_DROP);
    let allowed = came_in && verdict == PASS && event.reason == Reason::Allowed.word();
    let answer = !came_in && event.reason == Reason::Answer.word();
    let flag = |name| event.tcp_flags.split(',').any(|flag| flag == name);
    let opens = allowed && flag("SYN") && !flag("ACK");
    let source = if came_in { &event.src } else { &event.dst };
    let source = source.parse().ok();
    [
        (dropped, Kind::Drops, 1),
        (opens, Kind::NewConnections, 1),
        (allowed || answer, Kind::Bytes, u64::from(event.length)),
    ]
    .into_iter()
    .filter(|(counts, _, _)| *counts)
    .filter_map(move |(_, kind, weight)| {
        Some(Sighting {
            service: &event.service,
            kind,
            source: source?,
            weight,
        })
    })
}

fn tell(record: &AnomalyRecord) {
    let text = output::anomaly_sentence(record);
    match record.end {
        None => log::warn!(target: TARGET, "{text}"),
        Some(_) => log::info!(target: TARGET, "{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_counts_for_what_it_is_and_an_answer_for_whom_it_goes_to() {
        let event = |direction: &str, verdict: &str, reason: &str, tcp_flags: &str| EventRecord {
            direction: direction.into(),
            verdict: verdict.into(),
            reason: reason.into(),
            service: "web".into(),
            src: "198.51.100.7".into(),
            dst: "192.0.2.1".into(),
            length: 74,
            tcp_flags: tcp_flags.into(),
            ..EventRecord::default()
        };
        let counts = |event: EventRecord| -> Vec<(Kind, String, u64)> {
            let seen = sightings(&event);
            seen.map(|one| (one.kind, one.source.to_string(), one.weight))
                .collect()
        };
        let of = |kind, source: &str, weight| (kind, source.to_owned(), weight);
        let (them, us) = ("198.51.100.7", "192.0.2.1");
        assert_eq!(
            counts(event("ingress", "drop", "not-allowed", "SYN")),
            [of(Kind::Drops, them, 1)]
        );
        assert_eq!(
            counts(event("ingress", "would-drop", "closed", "")),
            [of(Kind::Drops, them, 1)]
        );
        assert_eq!(
            counts(event("ingress", "pass", "allowed", "SYN,ECE,CWR")),
            [of(Kind::NewConnections, them, 1), of(Kind::Bytes, them, 74)]
        );
        assert_eq!(
            counts(event("ingress", "pass", "allowed", "ACK,PSH")),
            [of(Kind::Bytes, them, 74)]
        );
        assert_eq!(
            counts(event("egress", "pass", "answer", "SYN,ACK")),
            [of(Kind::Bytes, us, 74)]
        );
        assert_eq!(counts(event("ingress", "pass", "reply", "SYN,ACK")), []);
        assert_eq!(counts(event("egress", "drop", "egress-denied", "SYN")), []);
        let mut arp = event("ingress", "drop", "ethertype", "");
        arp.src = String::new();
        assert_eq!(counts(arp), []);
    }
}
