//! One counter over time: from its samples to whether it is anomalous.
//!
//! Each sample above the limit ([`super::baseline`]) adds to a *pressure*, the more the further it is above, and each
//! one below takes a quarter of the pressure away; at 1 an anomaly begins. So two samples in a row of thrice the
//! limit are enough, three of twice, seven of 1.2 times, and pulses in one sample of four; a single sample never is. It ends
//! when the rate was below 0.7 of the limit for `ends_after`, or when it has lasted so long that it is the new normal.

use super::Moment;
use super::baseline::{Baseline, Bounds};
use super::settings::Settings;
use std::time::Duration;

/// Of a sample in the pressure.
const WEIGHT: f64 = 0.25;
/// How many times the limit a sample counts for at most.
const MOST: f64 = 3.0;
/// Pressure below it is none.
const NONE: f64 = 0.05;
/// Of the limit: usual again is what is below.
const USUAL: f64 = 0.7;
/// Samples further apart say nothing: a suspended machine, an agent that was stopped.
const GAP: Duration = Duration::from_secs(120);
/// As many intervals, if those are longer.
const GAP_INTERVALS: u32 = 4;
/// Of the mean that an anomaly has: seconds.
const DURING: f64 = 1800.0;

#[derive(Clone, Debug, Default)]
pub struct Series {
    baseline: Baseline,
    /// When the last sample was taken, and the counter then.
    last: Option<(Duration, u64)>,
    pressure: f64,
    anomaly: Option<Anomaly>,
    rate: f64,
    bounds: Bounds,
}

/// An anomaly that goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Anomaly {
    pub began: Moment,
    /// The highest rate of it.
    pub peak: f64,
    /// Uptime at the last sample that was not usual.
    last_unusual: Duration,
    /// Its mean, over the last half hour.
    mean: f64,
}

/// What a sample has changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    Begins(Anomaly),
    Ends(Anomaly, End),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The rate is usual again.
    Usual,
    /// It has lasted so long that it is usual now.
    NewNormal,
}

impl Series {
    pub fn new(baseline: Baseline) -> Series {
        Series {
            baseline,
            ..Series::default()
        }
    }

    pub fn baseline(&self) -> &Baseline {
        &self.baseline
    }

    /// Of the last sample.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// What the last sample was held against.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    pub fn anomaly(&self) -> Option<Anomaly> {
        self.anomaly
    }

    /// Whether it is worth knowing who sends.
    pub fn is_suspect(&self) -> bool {
        self.anomaly.is_some() || self.pressure > 0.0
    }

    /// Takes the counter at a moment. One that went back, or that was not read for long, only starts anew.
    pub fn feed(&mut self, now: Moment, total: u64, settings: &Settings, floor: f64) -> Option<Change> {
        let (then, before) = self.last.replace((now.uptime, total))?;
        let span = now.uptime.saturating_sub(then);
        let counted = total.checked_sub(before)?;
        if span.is_zero() || span > GAP.max(settings.interval * GAP_INTERVALS) {
            return None;
        }
        self.rate = counted as f64 / span.as_secs_f64();
        self.bounds = self.baseline.bounds(now, settings.sensitivity, floor);
        let warm = self.baseline.is_warm(settings.warm_up);
        let change = if warm {
            self.judge(now, span, settings)
        } else {
            None
        };
        let bounds = warm.then_some(self.bounds);
        self.baseline
            .learn(now, self.rate, span, bounds, self.is_suspect());
        change
    }

    fn judge(&mut self, now: Moment, span: Duration, settings: &Settings) -> Option<Change> {
        let (rate, limit) = (self.rate, self.bounds.limit);
        let over = if rate > limit {
            (rate / limit).min(MOST)
        } else {
            0.0
        };
        self.pressure += (over - self.pressure) * WEIGHT;
        if self.pressure < NONE {
            self.pressure = 0.0;
        }
        let Some(anomaly) = &mut self.anomaly else {
            if self.pressure < 1.0 {
                return None;
            }
            let anomaly = Anomaly {
                began: now,
                peak: rate,
                last_unusual: now.uptime,
                mean: rate,
            };
            self.anomaly = Some(anomaly);
            return Some(Change::Begins(anomaly));
        };
        anomaly.peak = anomaly.peak.max(rate);
        anomaly.mean += (rate - anomaly.mean) * (span.as_secs_f64() / DURING).min(1.0);
        if rate > limit * USUAL {
            anomaly.last_unusual = now.uptime;
        }
        let ended = *anomaly;
        let end = if now.uptime.saturating_sub(ended.last_unusual) >= settings.ends_after {
            End::Usual
        } else if now.uptime.saturating_sub(ended.began.uptime) >= settings.normal_after {
            self.baseline.adopt(now, ended.mean);
            End::NewNormal
        } else {
            return None;
        };
        self.anomaly = None;
        self.pressure = 0.0;
        Some(Change::Ends(ended, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::Kind;

    const FLOOR: f64 = 20.0;

    /// A series, its clock and its counter.
    struct Scene {
        series: Series,
        settings: Settings,
        second: u64,
        total: u64,
    }

    impl Scene {
        /// At 100 a second for four days, so that the limit is 300.
        fn warm() -> Scene {
            let mut scene = Scene {
                series: Series::default(),
                settings: Settings::default(),
                second: 0,
                total: 0,
            };
            assert_eq!(scene.run(360 * 96, |_| 100.0), []);
            assert_eq!(scene.series.bounds().limit, 300.0);
            scene
        }

        /// Samples of 10 s; gives the changes with the number of the sample, from 1.
        fn run(&mut self, samples: u64, rate: impl Fn(u64) -> f64) -> Vec<(u64, &'static str)> {
            let mut changes = Vec::new();
            for sample in 1..=samples {
                self.second += 10;
                self.total += (rate(sample) * 10.0) as u64;
                let change = self.feed();
                changes.extend(change.map(|word| (sample, word)));
            }
            changes
        }

        fn feed(&mut self) -> Option<&'static str> {
            let time = Duration::from_secs(self.second);
            let now = Moment {
                uptime: time,
                unix: time,
            };
            self.series
                .feed(now, self.total, &self.settings, FLOOR)
                .map(|change| match change {
                    Change::Begins(_) => "begins",
                    Change::Ends(_, End::Usual) => "ends",
                    Change::Ends(_, End::NewNormal) => "new normal",
                })
        }
    }

    #[test]
    fn it_begins_the_sooner_the_further_it_is_off_and_ends_after_a_minute_of_quiet() {
        for (rate, sample) in [(900.0, 2), (1e6, 2), (600.0, 3), (360.0, 7)] {
            let mut scene = Scene::warm();
            assert_eq!(scene.run(30, |_| rate), [(sample, "begins")], "{rate}");
            assert_eq!(scene.run(30, |_| 100.0), [(6, "ends")], "{rate}");
            assert!(!scene.series.is_suspect());
        }
        let mut scene = Scene::warm();
        assert_eq!(scene.run(60, |_| 290.0), []);
    }

    #[test]
    fn a_single_sample_is_never_enough_but_pulses_are() {
        let mut scene = Scene::warm();
        assert_eq!(scene.run(30, |sample| if sample == 3 { 1e9 } else { 100.0 }), []);
        let mut scene = Scene::warm();
        let pulses = |sample: u64| if sample.is_multiple_of(4) { 5000.0 } else { 0.0 };
        let changes = scene.run(60, pulses);
        assert!(matches!(changes[..], [(..=24, "begins")]), "{changes:?}");
    }

    #[test]
    fn a_counter_that_goes_back_and_a_long_gap_say_nothing() {
        let mut scene = Scene::warm();
        scene.total = 0;
        assert_eq!(scene.run(10, |_| 100.0), []);
        scene.second += 3600;
        scene.total += 1_000_000_000;
        assert_eq!(scene.feed(), None);
        assert_eq!(scene.run(10, |_| 100.0), []);
        assert_eq!(scene.series.bounds().limit, 300.0);
    }

    #[test]
    fn what_lasts_for_hours_is_the_new_normal_and_no_sooner() {
        let mut scene = Scene::warm();
        let changes = scene.run(360 * 8, |_| 2000.0);
        assert_eq!(changes, [(2, "begins"), (360 * 6 + 2, "new normal")]);
        assert!((scene.series.bounds().expected - 2000.0).abs() < 1.0);
        // And back.
        assert_eq!(scene.run(360 * 3, |_| 100.0), []);
        assert!(scene.series.bounds().expected < 1200.0);
    }

    #[test]
    fn nothing_is_judged_before_it_is_warm_or_below_the_floor() {
        let mut scene = Scene {
            series: Series::default(),
            settings: Settings::default(),
            second: 0,
            total: 0,
        };
        assert_eq!(scene.run(100, |sample| if sample > 50 { 1e6 } else { 1.0 }), []);
        let mut scene = Scene {
            series: Series::default(),
            ..scene
        };
        assert_eq!(scene.run(360, |_| 0.0), []);
        assert_eq!(scene.run(60, |_| 19.0), []);
        assert!(matches!(scene.run(60, |_| 50.0)[..], [(_, "begins")]));
        assert_eq!(Settings::default().floors.of(Kind::NewConnections), FLOOR);
    }
}
