//! Recorded traffic of two weeks and more, and what is told of it. The figures are those of `docs/detection.md`.
//!
//! Series are made by generators with a fixed seed: noise, daily and weekly cycles, jobs, deploys, growth, and what goes
//! wrong with samples. Attacks are laid over them.

use super::series::{Change, Series};
use super::settings::{Sensitivity, Settings};
use super::{Kind, Moment};
use std::f64::consts::TAU;
use std::time::Duration;

const STEP: f64 = 10.0;
const HOUR: f64 = 3600.0;
const DAY: f64 = 24.0 * HOUR;
/// A Monday, 00:00 UTC.
const MONDAY: f64 = 1_795_996_800.0;
const SEEDS: std::ops::Range<u64> = 1..4;

/// SplitMix64: numbers that are the same on every machine.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// About normal, mean 0, deviation 1: the sum of three numbers from -1 to 1.
    fn normal(&mut self) -> f64 {
        (self.unit() + self.unit() + self.unit()) * 2.0 - 3.0
    }
}

/// What a service sees: a rate at each second since the Monday, before noise.
type Shape = fn(f64) -> f64;

/// Ten times as much at noon as at night.
fn daily(second: f64) -> f64 {
    let phase = (second / DAY).fract();
    let day = 0.5 - 0.5 * (phase * TAU).cos();
    100.0 + 900.0 * day
}

/// An office: from 20 to 1000 within an hour and a half in the morning, a fifth at the weekend.
fn office(second: f64) -> f64 {
    let (hour, day) = ((second / HOUR) % 24.0, (second / DAY) as u64 % 7);
    let rise = |from: f64, to: f64| ((hour - from) / (to - from)).clamp(0.0, 1.0);
    let open = rise(7.5, 9.0) - rise(17.0, 19.0);
    let most = if day >= 5 { 200.0 } else { 1000.0 };
    20.0 + most * open
}

/// One counter with its clock, judged with each sensitivity.
#[derive(Clone)]
struct Scene {
    random: Random,
    judges: [Judge; 3],
    kind: Kind,
    /// Since the Monday.
    second: f64,
    total: f64,
    /// Of a sample, in parts of its rate.
    noise: f64,
}

#[derive(Clone)]
struct Judge {
    settings: Settings,
    series: Series,
    told: Vec<Told>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Told {
    second: f64,
    begins: bool,
}

impl Scene {
    fn new(seed: u64) -> Scene {
        Scene {
            random: Random(seed),
            judges: [Sensitivity::Low, Sensitivity::Normal, Sensitivity::High].map(|sensitivity| Judge {
                settings: Settings {
                    sensitivity,
                    ..Settings::default()
                },
                series: Series::default(),
                told: Vec::new(),
            }),
            kind: Kind::NewConnections,
            second: 0.0,
            total: 0.0,
            noise: 0.15,
        }
    }

    /// So much more time at this rate, with noise.
    fn run(&mut self, seconds: f64, rate: impl Fn(f64) -> f64) {
        let end = self.second + seconds;
        while self.second < end {
            self.pass(STEP, &rate);
            self.sample();
        }
    }

    /// Counts without a sample.
    fn pass(&mut self, seconds: f64, rate: impl Fn(f64) -> f64) {
        let mean = rate(self.second).max(0.0) * seconds;
        let spread = (mean + (mean * self.noise).powi(2)).sqrt();
        self.total += (mean + spread * self.random.normal()).max(0.0).round();
        self.second += seconds;
    }

    fn sample(&mut self) {
        let now = Moment {
            uptime: Duration::from_secs_f64(self.second),
            unix: Duration::from_secs_f64(MONDAY + self.second),
        };
        for judge in &mut self.judges {
            let floor = judge.settings.floors.of(self.kind);
            let change = judge.series.feed(now, self.total as u64, &judge.settings, floor);
            judge.told.extend(change.map(|change| Told {
                second: self.second,
                begins: matches!(change, Change::Begins(_)),
            }));
        }
    }

    /// How often something was told, by sensitivity.
    fn begun(&self) -> [usize; 3] {
        self.judges
            .each_ref()
            .map(|judge| judge.told.iter().filter(|told| told.begins).count())
    }
}

/// How often something was told in so many days, over all seeds, by sensitivity.
fn alarms(days: f64, play: impl Fn(&mut Scene)) -> [usize; 3] {
    let mut sum = [0; 3];
    for seed in SEEDS {
        let mut scene = Scene::new(seed);
        play(&mut scene);
        assert!(scene.second >= days * DAY - STEP, "{} s", scene.second);
        for (sum, begun) in sum.iter_mut().zip(scene.begun()) {
            *sum += begun;
        }
    }
    sum
}

const LATE: f64 = f64::INFINITY;
const NONE: [usize; 3] = [0; 3];

#[test]
fn daily_change_with_noise_is_quiet_from_the_first_day() {
    assert_eq!(alarms(14.0, |scene| scene.run(14.0 * DAY, daily)), NONE);
    let noisy = |scene: &mut Scene| {
        scene.noise = 0.4;
        scene.run(14.0 * DAY, daily);
    };
    assert_eq!(alarms(14.0, noisy), NONE);
    // A service with a few connections a minute.
    assert_eq!(
        alarms(14.0, |scene| scene
            .run(14.0 * DAY, |second| daily(second) / 5000.0)),
        NONE
    );
}

#[test]
fn weekends_and_mondays_are_quiet() {
    let told = alarms(28.0, |scene| scene.run(28.0 * DAY, office));
    // The very first morning, with the highest sensitivity.
    assert!(matches!(told, [0, 0, 0..=3]), "{told:?}");
}

#[test]
fn what_operators_do_is_quiet() {
    // A release that makes twice as much of everything, and is taken back.
    let deploy = |second: f64| {
        if (9.4 * DAY..9.6 * DAY).contains(&second) {
            2.0
        } else {
            1.0
        }
    };
    assert_eq!(
        alarms(14.0, |scene| scene
            .run(14.0 * DAY, |second| daily(second) * deploy(second))),
        NONE
    );
    // The service restarts each hour of a day: half a minute without, then all who were connected come back.
    let restart = |second: f64| match (second / DAY, second % HOUR) {
        (10.0..11.0, 0.0..30.0) => 0.0,
        (10.0..11.0, 30.0..50.0) => 5.0,
        _ => 1.0,
    };
    let told = alarms(14.0, |scene| {
        scene.run(14.0 * DAY, |second| daily(second) * restart(second))
    });
    // Of 72 such storms; twice the usual is told with the highest sensitivity.
    assert!(matches!(told, [0, 0, 0..=6]), "{told:?}");
    // A tenth more each day, four times as much in two weeks.
    let growth = |second: f64| 1.1_f64.powf(second / DAY);
    assert_eq!(
        alarms(14.0, |scene| scene
            .run(14.0 * DAY, |second| daily(second) * growth(second))),
        NONE
    );
    // Clocks go forward in the middle of it.
    let summer = |second: f64| office(if second > 9.0 * DAY { second + HOUR } else { second });
    let told = alarms(14.0, |scene| scene.run(14.0 * DAY, summer));
    assert!(matches!(told, [0, 0, 0..=6]), "{told:?}");
}

#[test]
fn what_goes_wrong_with_samples_is_quiet() {
    // One in ten is missing, and an hour now and then.
    let missing = |scene: &mut Scene| {
        while scene.second < 14.0 * DAY {
            scene.pass(STEP, daily);
            let hour = (scene.second / HOUR) as u64;
            if hour % 17 != 3 && scene.random.unit() > 0.1 {
                scene.sample();
            }
        }
    };
    assert_eq!(alarms(14.0, missing), NONE);
    // The machine restarts twice a day: the counters begin at zero, the agent remembers what it has written.
    let restarts = |scene: &mut Scene| {
        while scene.second < 14.0 * DAY {
            scene.run(DAY / 2.0, daily);
            scene.pass(120.0, daily);
            scene.total = 0.0;
            for judge in &mut scene.judges {
                judge.series = Series::new(judge.series.baseline().clone());
            }
        }
    };
    assert_eq!(alarms(14.0, restarts), NONE);
}

/// Days of normal life before an attack.
const LIFE: f64 = 8.0;

/// A rate, from what is normal and the seconds since the attack began.
type Attack<'a> = &'a dyn Fn(f64, f64) -> f64;

/// Attacks over normal life, for each seed at another time of the day: how many seconds until each is told, at most,
/// by sensitivity; nothing if it is not within `patience` for one of the seeds.
fn told_within<const N: usize>(
    normal: Shape,
    kind: Kind,
    patience: f64,
    attacks: [Attack; N],
) -> [[Option<f64>; 3]; N] {
    let mut worst = [[Some(0.0_f64); 3]; N];
    for seed in SEEDS {
        let mut life = Scene::new(seed);
        life.kind = kind;
        life.run(LIFE * DAY + (seed * 7 % 24) as f64 * HOUR, normal);
        assert_eq!(life.begun()[..2], [0, 0], "{seed}");
        // Attacks do not wait for samples.
        let early = life.random.unit() * STEP;
        life.pass(STEP - early, normal);
        let start = life.second;
        for (worst, attack) in worst.iter_mut().zip(attacks) {
            let mut scene = life.clone();
            let rate = |second: f64| attack(normal(second), second - start);
            scene.pass(early, rate);
            scene.sample();
            scene.run(patience, rate);
            for (worst, judge) in worst.iter_mut().zip(&scene.judges) {
                let told = judge.told.iter().find(|told| told.begins && told.second >= start);
                *worst = worst.and_then(|worst| Some(worst.max(told?.second - start)));
            }
        }
    }
    worst
}

/// Seconds, at most; [`LATE`] where nothing is promised, nothing where nothing is to be told.
fn within(told: [Option<f64>; 3], limits: [Option<f64>; 3]) -> bool {
    told.iter().zip(limits).all(|(told, limit)| match (told, limit) {
        (_, Some(LATE)) => true,
        (Some(told), Some(limit)) => *told <= limit,
        (None, None) => true,
        _ => false,
    })
}

#[test]
fn steps_are_told_the_sooner_the_higher_they_are() {
    let times = |factor: f64| move |normal: f64, _: f64| normal * factor;
    let all = |normal: Shape, factors: [f64; 4]| {
        let steps = factors.map(times);
        let [a, b, c, d] = steps.each_ref().map(|step| step as Attack);
        told_within(normal, Kind::NewConnections, 1800.0, [a, b, c, d])
    };
    let limits = [
        [Some(40.0), Some(30.0), Some(30.0)],
        [Some(LATE), Some(40.0), Some(30.0)],
        [None, Some(60.0), Some(40.0)],
        [None; 3],
    ];
    let told = all(daily, [20.0, 10.0, 7.0, 2.0]);
    assert!(
        told.iter()
            .zip(limits)
            .all(|(told, limits)| within(*told, limits)),
        "{told:?}"
    );
    let limits = [
        [Some(300.0), Some(30.0), Some(30.0)],
        [None, Some(300.0), Some(40.0)],
        [None, None, Some(300.0)],
        [None; 3],
    ];
    let told = all(|_| 300.0, [8.0, 4.0, 2.8, 1.7]);
    assert!(
        told.iter()
            .zip(limits)
            .all(|(told, limits)| within(*told, limits)),
        "{told:?}"
    );
}

#[test]
fn ramps_and_pulses_are_told_on_the_way() {
    let ramp = |normal: f64, age: f64| normal * (1.0 + 19.0 * (age / 600.0).min(1.0));
    let pulses = |normal: f64, age: f64| if age % 40.0 < 10.0 { normal * 30.0 } else { normal };
    let [ramp, pulses] = told_within(daily, Kind::NewConnections, 1800.0, [&ramp, &pulses]);
    assert!(within(ramp, [Some(400.0), Some(240.0), Some(150.0)]), "{ramp:?}");
    assert!(within(pulses, [Some(240.0); 3]), "{pulses:?}");
    // Twice as much each hour.
    let slow = |normal: f64, age: f64| normal * 2.0_f64.powf(age / HOUR);
    let [slow] = told_within(daily, Kind::NewConnections, 6.0 * HOUR, [&slow]);
    assert!(
        within(slow, [Some(5.0 * HOUR), Some(4.0 * HOUR), Some(3.0 * HOUR)]),
        "{slow:?}"
    );
}

#[test]
fn floods_of_what_is_dropped_are_told_at_once_and_small_ones_are_not() {
    let few: Shape = |second| daily(second) / 200.0;
    let [flood, stream, trickle] = told_within(
        few,
        Kind::Drops,
        1800.0,
        [
            &|normal, _| normal + 50_000.0,
            &|normal, _| normal + 500.0,
            &|normal, _| normal + 90.0,
        ],
    );
    assert!(
        within(flood, [Some(30.0); 3]) && within(stream, [Some(30.0); 3]),
        "{flood:?} {stream:?}"
    );
    assert_eq!(trickle, [None; 3]);
}

#[test]
fn an_attack_of_hours_is_one_and_ends_soon_after_it() {
    for seed in SEEDS {
        let mut scene = Scene::new(seed);
        scene.run(LIFE * DAY, daily);
        let start = scene.second;
        scene.run(5.0 * HOUR, |second| daily(second) * 20.0);
        let end = scene.second;
        scene.run(2.0 * DAY, daily);
        for judge in &scene.judges {
            let told: Vec<Told> = judge
                .told
                .iter()
                .copied()
                .filter(|told| told.second > start)
                .collect();
            let [begins, ends] = told[..] else {
                panic!("{told:?}")
            };
            assert!(begins.begins && begins.second <= start + 30.0, "{told:?}");
            assert!(
                !ends.begins && ends.second > end && ends.second <= end + 80.0,
                "{told:?}"
            );
        }
    }
}

#[test]
fn what_comes_every_night_is_told_a_few_times_and_then_expected() {
    let backup = |second: f64| {
        let (hour, minute) = ((second / HOUR) % 24.0, second / 60.0 % 60.0);
        let runs = (2.0..3.0).contains(&hour) && (5.0..35.0).contains(&minute);
        daily(second) * if runs { 10.0 } else { 1.0 }
    };
    for seed in SEEDS {
        let mut scene = Scene::new(seed);
        scene.run(14.0 * DAY, backup);
        assert!(matches!(scene.begun(), [..=2, ..=4, ..=5]), "{:?}", scene.begun());
        let late = scene.judges[1].told.iter().filter(|told| told.second > 6.0 * DAY);
        assert_eq!(late.count(), 0);
    }
}
