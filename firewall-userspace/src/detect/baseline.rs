//! What is usual for one series: the rate that it is expected to have now, and from which on it is too much.
//!
//! Two memories:
//! - *recent*: an exponentially weighted mean over half an hour, and the mean deviation of single samples from the mean of
//!   the last minute: noise, without trend.
//! - *by hour of the day* (UTC): the peak that each of the 24 hours usually has. It goes half of the way to a higher
//!   peak in a day, and a tenth to a lower one, so that a weekend does not make Monday unusual.
//!
//! Expected is the larger of the two, but once the hour is known, from three days, the recent mean counts for twice that hour
//! at most: else a rate that grows slowly enough would never be too much. Too much is the largest of the floor, some times
//! what is expected, and some deviations above it ([`Sensitivity`]); twice that as long as the hour is not known.
//!
//! Learning is robust: a rate counts as the limit that it exceeds, at most. What is usual is not learned from an anomaly
//! but by its hour, and so clipped: what comes every night is expected from the third or fourth night on.

use super::Moment;
use super::settings::Sensitivity;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Of the recent mean.
const RECENT: f64 = 1800.0;
/// Of the deviation.
const NOISE: f64 = 1800.0;
/// Samples that the mean of the last minute goes over.
const LAST: f64 = 4.0;
/// Days after which an hour is known.
const KNOWN: u32 = 3;
/// How many times the usual peak of a known hour the recent mean counts for at most.
const TRUST: f64 = 2.0;
/// How many times the limit is doubted where the hour is not known.
const DOUBT: f64 = 2.0;
/// So long before and after it an hour stands for its neighbours too: jobs are not punctual.
const EDGE: Duration = Duration::from_secs(1800);
const HOUR: Duration = Duration::from_secs(3600);
/// Hours of one anomaly.
const MOST_WAITING: usize = 24;
/// Of the way to a higher peak, and to a lower one.
const UP: f64 = 0.5;
const DOWN: f64 = 0.1;

/// The memory of one series. Rates are a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// The recent mean.
    level: f64,
    /// The mean deviation of samples.
    noise: f64,
    /// What was learned from, seconds.
    learned: f64,
    hours: [Hour; 24],
    /// Mean of the last samples.
    #[serde(skip)]
    last: Option<f64>,
    #[serde(skip)]
    gathered: Gathered,
    /// Hours that an anomaly is in: learned from when it is over, else a long one would lift its own limit.
    #[serde(skip)]
    waiting: Vec<Gathered>,
    /// The recent mean counts in full until then: hours since 1970.
    #[serde(skip)]
    trusted: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Hour {
    peak: f64,
    /// That it was learned from.
    days: u32,
}

/// The hour that is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Gathered {
    /// Since 1970.
    hour: u64,
    /// Of the last samples.
    mean: f64,
    samples: u32,
    /// Of the mean, once it is one.
    peak: f64,
    /// The same of rates that are not clipped.
    wild_mean: f64,
    wild_peak: f64,
    /// Seconds that samples stand for.
    covered: f64,
}

/// What a rate is held against.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bounds {
    pub expected: f64,
    /// Above it is too much.
    pub limit: f64,
}

impl Baseline {
    /// Whether enough was learned to judge.
    pub fn is_warm(&self, warm_up: Duration) -> bool {
        self.learned >= warm_up.as_secs_f64()
    }

    /// What is expected at a moment.
    pub fn bounds(&self, now: Moment, sensitivity: Sensitivity, floor: f64) -> Bounds {
        let usual = self.usual(now);
        let recent = match usual {
            Some((peak, true)) if now.hour() >= self.trusted => self.level.min(TRUST * peak.max(floor)),
            _ => self.level,
        };
        let expected = usual.map_or(recent, |(peak, _)| peak.max(recent));
        // In parts of the mean: what is not trusted to be the usual does not bring its own noise along.
        let noise = if self.level > 0.0 {
            self.noise / self.level
        } else {
            0.0
        };
        let limit = expected * sensitivity.factor().max(1.0 + noise * sensitivity.deviations());
        let doubt = match usual {
            Some((_, true)) => 1.0,
            _ => DOUBT,
        };
        Bounds {
            expected,
            limit: floor.max(limit * doubt),
        }
    }

    /// The peak of the hour, or of the next or the last one where they are near, and whether it is known.
    fn usual(&self, now: Moment) -> Option<(f64, bool)> {
        let nearby = [Some(now.unix), now.unix.checked_sub(EDGE), Some(now.unix + EDGE)];
        let hours = nearby.into_iter().flatten();
        let mut found: Option<(f64, bool)> = None;
        for unix in hours {
            let hour = self.hours[(unix.as_secs() / 3600 % 24) as usize];
            if hour.days > 0 {
                let (peak, known) = found.unwrap_or_default();
                found = Some((peak.max(hour.peak), known || hour.days >= KNOWN));
            }
        }
        found
    }

    /// Learns from a sample that stands for `span`. What is learned of an anomaly, and of what may be the beginning of one,
    /// is only what comes at this hour.
    pub fn learn(&mut self, now: Moment, rate: f64, span: Duration, bounds: Option<Bounds>, suspect: bool) {
        let wild = rate;
        let rate = bounds.map_or(rate, |bounds| rate.min(bounds.limit));
        let span = span.as_secs_f64();
        let before = *self.last.get_or_insert(rate);
        let last = before + (rate - before) / LAST;
        self.last = Some(last);
        self.gather(now, rate, wild, span);
        if suspect {
            return;
        }
        for hour in std::mem::take(&mut self.waiting) {
            self.learn_hour(hour);
        }
        self.learned += span;
        // The plain mean of all there is, until it is longer than the weights reach.
        let weight = |reach: f64| (span / reach.min(self.learned)).min(1.0);
        let (recent, noise) = (weight(RECENT), weight(NOISE));
        self.level += (rate - self.level) * recent;
        self.noise += ((rate - before).abs() - self.noise) * noise;
    }

    /// Takes an anomaly with this mean for the new normal: for a day all hours learn it.
    pub fn adopt(&mut self, now: Moment, mean: f64) {
        self.level = mean;
        self.trusted = now.hour() + 25;
        for hour in self.waiting.iter_mut().chain([&mut self.gathered]) {
            hour.peak = hour.wild_peak;
        }
    }

    fn gather(&mut self, now: Moment, rate: f64, wild: f64, span: f64) {
        let hour = now.hour();
        if self.gathered.hour != hour {
            let over = std::mem::replace(
                &mut self.gathered,
                Gathered {
                    hour,
                    mean: rate,
                    wild_mean: wild,
                    ..Gathered::default()
                },
            );
            if self.waiting.len() < MOST_WAITING {
                self.waiting.push(over);
            }
        }
        let gathered = &mut self.gathered;
        gathered.mean += (rate - gathered.mean) / LAST;
        gathered.wild_mean += (wild - gathered.wild_mean) / LAST;
        gathered.samples += 1;
        gathered.covered += span;
        if f64::from(gathered.samples) >= LAST {
            gathered.peak = gathered.peak.max(gathered.mean);
            gathered.wild_peak = gathered.wild_peak.max(gathered.wild_mean);
        }
    }

    /// An hour of which less than half was seen may have had a higher peak, but not a lower one.
    fn learn_hour(&mut self, gathered: Gathered) {
        let Gathered {
            hour, peak, covered, ..
        } = gathered;
        let whole = covered >= HOUR.as_secs_f64() / 2.0;
        let known = &mut self.hours[(hour % 24) as usize];
        if known.days == 0 {
            if whole {
                *known = Hour { peak, days: 1 };
            }
            return;
        }
        if peak > known.peak {
            known.peak += (peak - known.peak) * UP;
        } else if whole {
            known.peak += (peak - known.peak) * DOWN;
        }
        known.days = known.days.saturating_add(u32::from(whole));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: f64 = 10.0;

    fn at(seconds: u64) -> Moment {
        let time = Duration::from_secs(seconds);
        Moment {
            uptime: time,
            unix: time,
        }
    }

    /// Feeds a constant rate from one second to another, a sample each 10 s.
    fn steady(baseline: &mut Baseline, from: u64, to: u64, rate: f64) {
        for second in (from..to).step_by(10) {
            let bounds = baseline.bounds(at(second), Sensitivity::Normal, FLOOR);
            let bounds = baseline.is_warm(Duration::from_secs(600)).then_some(bounds);
            baseline.learn(at(second), rate, Duration::from_secs(10), bounds, false);
        }
    }

    fn expected(baseline: &Baseline, second: u64) -> f64 {
        baseline.bounds(at(second), Sensitivity::Normal, FLOOR).expected
    }

    #[test]
    fn the_first_mean_is_plain_and_the_limit_is_the_largest_of_three() {
        let mut baseline = Baseline::default();
        steady(&mut baseline, 0, 600, 100.0);
        assert!(baseline.is_warm(Duration::from_secs(600)));
        let bounds = baseline.bounds(at(600), Sensitivity::Normal, FLOOR);
        assert_eq!((bounds.expected, bounds.limit), (100.0, 600.0));
        assert_eq!(
            baseline.bounds(at(600), Sensitivity::Normal, 1000.0).limit,
            1000.0
        );
        baseline.noise = 50.0;
        assert_eq!(baseline.bounds(at(600), Sensitivity::Normal, FLOOR).limit, 800.0);
        assert_eq!(baseline.bounds(at(600), Sensitivity::High, FLOOR).limit, 600.0);
        // Known hours leave no doubt.
        for day in 0..4 {
            steady(&mut baseline, day * 86_400, (day + 1) * 86_400, 100.0);
        }
        assert_eq!(
            baseline.bounds(at(4 * 86_400), Sensitivity::Normal, FLOOR).limit,
            300.0
        );
    }

    #[test]
    fn one_wild_sample_counts_as_the_limit() {
        let mut baseline = Baseline::default();
        steady(&mut baseline, 0, 1800, 100.0);
        steady(&mut baseline, 1800, 1810, 1e9);
        assert!(expected(&baseline, 1810) < 106.0, "{baseline:?}");
    }

    #[test]
    fn an_hour_is_remembered_the_next_day_and_stands_for_half_an_hour_around_it() {
        let mut baseline = Baseline::default();
        for hour in 0..24 {
            let rate = if hour == 2 { 250.0 } else { 100.0 };
            steady(&mut baseline, hour * 3600, (hour + 1) * 3600, rate);
        }
        steady(&mut baseline, 86_400, 86_410, 100.0);
        for (minute, wanted) in [(89, 100.0), (91, 250.0), (121, 250.0), (209, 250.0), (211, 100.0)] {
            let found = expected(&baseline, 86_400 + minute * 60);
            assert!(
                (found - wanted).abs() < 30.0,
                "minute {minute}: {found}, not {wanted}"
            );
        }
    }

    #[test]
    fn a_known_hour_bounds_what_the_recent_mean_is_trusted_for() {
        let mut baseline = Baseline::default();
        for day in 0..4 {
            steady(&mut baseline, day * 86_400, (day + 1) * 86_400, 100.0);
        }
        baseline.level = 1000.0;
        assert_eq!(expected(&baseline, 4 * 86_400), 200.0);
        baseline.adopt(at(4 * 86_400), 1000.0);
        assert_eq!(expected(&baseline, 4 * 86_400), 1000.0);
        assert_eq!(expected(&baseline, 5 * 86_400 + 3600), 200.0);
    }

    #[test]
    fn what_was_learned_survives_being_written_and_read() {
        let mut baseline = Baseline::default();
        steady(&mut baseline, 0, 2 * 86_400, 100.0);
        let text = serde_json::to_string(&baseline).expect("written");
        let read: Baseline = serde_json::from_str(&text).expect("read");
        assert!(read.is_warm(Duration::from_secs(86_400)));
        assert_eq!(expected(&read, 2 * 86_400), expected(&baseline, 2 * 86_400));
    }
}
