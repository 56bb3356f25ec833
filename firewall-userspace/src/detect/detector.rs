//! All series of a policy, and who sends to those that are suspect.
//!
//! Sources are counted only while a series is suspect, in a bounded summary, and forgotten when it is not any more, at the
//! latest a minute after they sent something ([`super::top`]). An IPv6 source is a /64.

use super::baseline::Baseline;
use super::series::{Change, End, Series};
use super::settings::Settings;
use super::top::Top;
use super::{Kind, Moment};
use crate::api::types::{AnomalyList, AnomalyRecord, AnomalyRow, AnomalySource};
use crate::monitor::time::rfc3339;
use ipnetwork::{IpNetwork, Ipv6Network};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::time::UNIX_EPOCH;

/// Series that are watched at most: about 1 KiB each.
pub const MAX_SERIES: usize = 12_288;
/// Sources that are told of an anomaly.
const SOURCES: usize = 5;
/// Of what is written to disk; another one is not read.
const VERSION: u32 = 1;

/// A counter at the moment it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Empty: what belongs to no service.
    pub service: String,
    pub kind: Kind,
    pub total: u64,
}

/// A packet that somebody sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting<'a> {
    pub service: &'a str,
    pub kind: Kind,
    pub source: IpAddr,
    /// Of bytes its length, else 1.
    pub weight: u64,
}

#[derive(Debug)]
pub struct Detector {
    settings: Settings,
    series: BTreeMap<String, BTreeMap<Kind, Watched>>,
    /// From disk, until their first sample.
    remembered: BTreeMap<(String, String), Baseline>,
}

#[derive(Debug, Default)]
struct Watched {
    series: Series,
    top: Option<Top<IpNetwork>>,
}

/// The baselines as they are written to disk: no addresses.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    version: u32,
    baselines: Vec<(String, String, Baseline)>,
}

impl Detector {
    pub fn new(settings: Settings, memory: Option<Memory>) -> Detector {
        let memory = memory
            .filter(|memory| memory.version == VERSION)
            .unwrap_or_default();
        let remembered = memory.baselines.into_iter();
        Detector {
            settings,
            series: BTreeMap::new(),
            remembered: remembered
                .map(|(service, kind, baseline)| ((service, kind), baseline))
                .collect(),
        }
    }

    pub fn memory(&self) -> Memory {
        let baselines = self.each().map(|(service, kind, watched)| {
            (
                service.to_owned(),
                kind.word().to_owned(),
                watched.series.baseline().clone(),
            )
        });
        Memory {
            version: VERSION,
            baselines: baselines.collect(),
        }
    }

    fn each(&self) -> impl Iterator<Item = (&str, Kind, &Watched)> {
        self.series.iter().flat_map(|(service, kinds)| {
            kinds
                .iter()
                .map(move |(kind, watched)| (service.as_str(), *kind, watched))
        })
    }

    /// Takes a sample of all series there are; others are forgotten. Gives what begins and what ends.
    pub fn feed(&mut self, now: Moment, samples: &[Sample]) -> Vec<AnomalyRecord> {
        let present: HashSet<&str> = samples.iter().map(|sample| sample.service.as_str()).collect();
        self.series
            .retain(|service, _| present.contains(service.as_str()));
        let mut count: usize = self.series.values().map(BTreeMap::len).sum();
        let mut told = Vec::new();
        for Sample { service, kind, total } in samples {
            let known = self
                .series
                .get(service)
                .is_some_and(|kinds| kinds.contains_key(kind));
            if !known {
                if count >= MAX_SERIES {
                    continue;
                }
                count += 1;
                let remembered = self.remembered.remove(&(service.clone(), kind.word().to_owned()));
                let watched = Watched {
                    series: remembered.map(Series::new).unwrap_or_default(),
                    top: None,
                };
                self.series
                    .entry(service.clone())
                    .or_default()
                    .insert(*kind, watched);
            }
            let Some(watched) = self.series.get_mut(service).and_then(|kinds| kinds.get_mut(kind)) else {
                continue;
            };
            told.extend(watched.feed(now, *total, *kind, service, &self.settings));
        }
        told
    }

    /// Whether anybody is suspect, and if packets that pass are to be looked at, too.
    pub fn suspects(&self) -> Option<bool> {
        self.each()
            .filter(|(_, _, watched)| watched.top.is_some())
            .map(|(_, kind, _)| kind != Kind::Drops)
            .reduce(|passes, more| passes | more)
    }

    /// Counts who sent a packet, if that is of interest now.
    pub fn observe(&mut self, now: Moment, seen: Sighting) {
        let watched = self
            .series
            .get_mut(seen.service)
            .and_then(|kinds| kinds.get_mut(&seen.kind));
        if let Some(top) = watched.and_then(|watched| watched.top.as_mut()) {
            top.add(group(seen.source), seen.weight, now.uptime);
        }
    }

    /// What goes on now.
    pub fn list(&self, now: Moment) -> AnomalyList {
        let cold = |watched: &Watched| !watched.series.baseline().is_warm(self.settings.warm_up);
        AnomalyList {
            enabled: true,
            watched: self.each().count() as u64,
            learning: self.each().filter(|(_, _, watched)| cold(watched)).count() as u64,
            anomalies: self
                .each()
                .filter_map(|(service, kind, watched)| {
                    let anomaly = watched.series.anomaly()?;
                    Some(watched.row(service, kind, anomaly, now))
                })
                .collect(),
        }
    }

    /// Each series, and whether it is anomalous.
    pub fn flags(&self) -> Vec<(String, Kind, bool)> {
        self.each()
            .map(|(service, kind, watched)| (service.to_owned(), kind, watched.series.anomaly().is_some()))
            .collect()
    }
}

impl Watched {
    fn feed(
        &mut self,
        now: Moment,
        total: u64,
        kind: Kind,
        service: &str,
        settings: &Settings,
    ) -> Option<AnomalyRecord> {
        let change = self.series.feed(now, total, settings, settings.floors.of(kind));
        if self.series.is_suspect() || change.is_some() {
            self.top
                .get_or_insert_with(|| Top::new(now.uptime))
                .turn(now.uptime);
        }
        let record = change.map(|change| {
            let (word, anomaly, end) = match change {
                Change::Begins(anomaly) => ("begins", anomaly, None),
                Change::Ends(anomaly, end) => ("ends", anomaly, Some(end)),
            };
            AnomalyRecord {
                time: rfc3339(UNIX_EPOCH + now.unix),
                anomaly: word.into(),
                end: end.map(|end| match end {
                    End::Usual => "usual".into(),
                    End::NewNormal => "new-normal".into(),
                }),
                row: self.row(service, kind, anomaly, now),
            }
        });
        if !self.series.is_suspect() {
            self.top = None;
        }
        record
    }

    fn row(&self, service: &str, kind: Kind, anomaly: super::series::Anomaly, now: Moment) -> AnomalyRow {
        let bounds = self.series.bounds();
        let round = |rate: f64| (rate * 100.0).round() / 100.0;
        let sources = self.top.iter().flat_map(|top| top.first(SOURCES));
        AnomalyRow {
            service: service.to_owned(),
            kind: kind.word().to_owned(),
            since: rfc3339(UNIX_EPOCH + anomaly.began.unix),
            seconds: now.uptime.saturating_sub(anomaly.began.uptime).as_secs(),
            rate: round(self.series.rate()),
            baseline: round(bounds.expected),
            limit: round(bounds.limit),
            peak: round(anomaly.peak),
            sources: sources
                .filter(|share| share.count > 0)
                .map(|share| AnomalySource {
                    source: text(share.key),
                    share: round(share.share),
                })
                .collect(),
        }
    }
}

/// What counts as one source.
fn group(source: IpAddr) -> IpNetwork {
    match source {
        IpAddr::V4(address) => IpNetwork::V4(address.into()),
        IpAddr::V6(address) => {
            let whole = u128::from(address) & (u128::MAX << 64);
            let prefix = Ipv6Network::new(whole.into(), 64);
            prefix.map_or_else(|_| IpNetwork::V6(address.into()), IpNetwork::V6)
        }
    }
}

fn text(source: IpNetwork) -> String {
    match source {
        IpNetwork::V4(network) => network.ip().to_string(),
        IpNetwork::V6(network) => network.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Moment {
        let time = Duration::from_secs(seconds);
        Moment {
            uptime: time,
            unix: time,
        }
    }

    fn sample(service: &str, kind: Kind, total: u64) -> Sample {
        Sample {
            service: service.into(),
            kind,
            total,
        }
    }

    /// Two services at 10 drops a second for an hour.
    fn warm() -> Detector {
        let mut detector = Detector::new(Settings::default(), None);
        for second in (0..3600).step_by(10) {
            let samples = ["web", "api"].map(|service| sample(service, Kind::Drops, second * 10));
            assert_eq!(detector.feed(at(second), &samples), []);
        }
        detector
    }

    /// Goes on with `web` at this rate, a sample each 10 s, until something is told.
    fn until_told(detector: &mut Detector, from: &mut u64, total: &mut u64, rate: u64) -> AnomalyRecord {
        for _ in 0..100 {
            *total += rate * 10;
            let samples = [
                sample("web", Kind::Drops, *total),
                sample("api", Kind::Drops, 36_000),
            ];
            let told = detector.feed(at(*from), &samples);
            let sources = [("198.51.100.7", 3), ("2001:db8::1:2", 1), ("2001:db8::3", 1)];
            for (source, weight) in sources {
                let source = source.parse().expect("an address");
                for service in ["web", "api"] {
                    let kind = Kind::Drops;
                    detector.observe(
                        at(*from),
                        Sighting {
                            service,
                            kind,
                            source,
                            weight,
                        },
                    );
                }
            }
            *from += 10;
            if let [record] = &told[..] {
                return record.clone();
            }
            assert_eq!(told, []);
        }
        panic!("nothing is told");
    }

    #[test]
    fn sources_are_named_while_it_lasts_and_forgotten_then() {
        let mut detector = warm();
        let (mut second, mut total) = (3600, 36_000);
        assert_eq!(detector.suspects(), None);
        let begins = until_told(&mut detector, &mut second, &mut total, 5000);
        assert_eq!(
            (
                begins.anomaly.as_str(),
                begins.row.service.as_str(),
                begins.row.kind.as_str()
            ),
            ("begins", "web", "drops")
        );
        assert_eq!((begins.row.rate, begins.row.limit), (5000.0, 100.0));
        let sources: Vec<_> = begins
            .row
            .sources
            .iter()
            .map(|one| (one.source.as_str(), one.share))
            .collect();
        assert_eq!(sources, [("198.51.100.7", 0.6), ("2001:db8::/64", 0.4)]);
        assert_eq!(detector.suspects(), Some(false));
        let list = detector.list(at(second));
        assert_eq!((list.watched, list.learning, list.anomalies.len()), (2, 0, 1));
        assert_eq!(
            detector.flags(),
            [
                ("api".into(), Kind::Drops, false),
                ("web".into(), Kind::Drops, true)
            ]
        );

        let ends = until_told(&mut detector, &mut second, &mut total, 10);
        assert_eq!(
            (ends.anomaly.as_str(), ends.end.as_deref()),
            ("ends", Some("usual"))
        );
        assert_eq!(ends.row.peak, 5000.0);
        assert_eq!(
            (detector.suspects(), detector.list(at(second)).anomalies.len()),
            (None, 0)
        );
        assert!(!format!("{detector:?}").contains("198.51"), "{detector:?}");
    }

    #[test]
    fn a_service_that_goes_is_forgotten_and_a_restart_forgets_no_baseline() {
        let mut detector = warm();
        let memory = serde_json::to_string(&detector.memory()).expect("written");
        detector.feed(at(3600), &[sample("web", Kind::Drops, 36_000)]);
        assert_eq!(detector.list(at(3600)).watched, 1);

        // The counters start anew with the machine, the baselines do not.
        let read = serde_json::from_str(&memory).expect("read");
        let mut detector = Detector::new(Settings::default(), Some(read));
        let (mut second, mut total) = (0, 0);
        let begins = until_told(&mut detector, &mut second, &mut total, 5000);
        assert_eq!((begins.anomaly.as_str(), second), ("begins", 30));
        // Of another version, nothing is taken over.
        let other = memory.replace("\"version\":1", "\"version\":2");
        let read = serde_json::from_str(&other).expect("read");
        let mut detector = Detector::new(Settings::default(), Some(read));
        detector.feed(at(0), &[sample("web", Kind::Drops, 0)]);
        assert_eq!(detector.list(at(0)).learning, 1);
    }

    #[test]
    fn memory_is_bounded() {
        let mut detector = Detector::new(Settings::default(), None);
        let samples: Vec<Sample> = (0..MAX_SERIES + 10)
            .map(|number| sample(&format!("s{number}"), Kind::Drops, 0))
            .collect();
        detector.feed(at(0), &samples);
        assert_eq!(detector.list(at(0)).watched, MAX_SERIES as u64);
        assert!(size_of::<Series>() <= 1024, "{}", size_of::<Series>());
    }
}
