//! How exactly limits hold when all processors work against them: counts over a time that is measured, never a time that is
//! asserted. Each case lasts three seconds or so, which holds all that ten would show: what passes is a rate times a time that is
//! known to a millisecond, and a burst. What is offered is at least twice the limit on half a processor.

use anyhow::{Result, ensure};
use firewall_common::verdict::Reason;
use ravelin_tests::barrage::{Range, fire, shot, while_firing};
use ravelin_tests::generator::Vary;
use ravelin_tests::kernel::test_run;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const LASTING: Duration = Duration::from_secs(3);

/// One at a time: each wants all processors.
static ALONE: Mutex<()> = Mutex::new(());

/// Two services, of which the first has these limits.
fn policy(limits: &str) -> String {
    format!(
        "version = 1\n\
         [[service]]\nname = \"web\"\nports = [\"tcp/80\", \"udp/80\"]\nallow = [\"10.0.0.0/8\", \"2001:db8::/32\", \"192.168.0.0/16\"]\n\
         [service.limits]\n{limits}\n\
         [[service]]\nname = \"dns\"\nports = [\"udp/53\"]\nallow = [\"10.0.0.0/8\"]\n\
         [service.limits]\npackets = {{ per_source = \"2000/s\", burst = 200, total = \"150000/s\", total_burst = 5000 }}\n"
    )
}

const WEB: usize = 0;
const DNS: usize = 1;

/// (first source, destination)
const V4: (&str, &str) = ("10.0.0.0", "192.0.2.1");
const V6: (&str, &str) = ("2001:db8::1", "2001:db8:ff00::1");

fn ports_and(sources: u32) -> Vary {
    Vary {
        sources,
        ports: true,
        ..Vary::default()
    }
}

/// Says whether `passed` lies within a share of what is right.
fn within(share: f64, what: &str, passed: u64, right: f64) -> Result<()> {
    let off = passed as f64 / right - 1.0;
    println!(
        "{what}: {passed} passed, {right:.0} are right: {:+.2} %",
        off * 100.0
    );
    ensure!(
        off.abs() <= share,
        "{what}: {passed} passed, {right:.0} are right: {:+.2} %",
        off * 100.0
    );
    Ok(())
}

/// What all sources together get, at more than twice their limit.
fn sources(count: u32, per_second: u32, burst: u32, tcp: bool, (from, to): (&str, &str)) -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let what = if tcp { "new_connections" } else { "packets" };
    let range = Range::new(&policy(&format!(
        "{what} = {{ per_source = \"{per_second}/s\", burst = {burst} }}"
    )))?;
    let generators = range.generators(&shot(from, to, 80, tcp)?, ports_and(count))?;
    let time = fire(&generators, LASTING)?.as_secs_f64();
    let made: u64 = generators.iter().map(|one| one.sent()).sum::<Result<u64>>()?;
    let right = f64::from(count) * (f64::from(burst) + f64::from(per_second) * time);
    ensure!(
        made as f64 >= 2.0 * right,
        "only {made} were offered, {right:.0} are right"
    );
    let kind = if tcp {
        Reason::LimitSourceNew
    } else {
        Reason::LimitSourcePackets
    };
    let passed = range.passed(WEB)?;
    let dropped = range.ended(WEB, |reason| reason == kind)?;
    ensure!(
        passed + dropped == made,
        "{made} made, {passed} passed and {dropped} dropped"
    );
    within(0.02, &format!("{count} sources, {what}"), passed, right)
}

#[test]
fn one_source_gets_its_rate() -> Result<()> {
    sources(1, 50_000, 5_000, false, V4)?;
    sources(1, 20_000, 100, true, V6)
}

#[test]
fn a_hundred_sources_get_their_rates() -> Result<()> {
    sources(100, 1_000, 100, true, V4)?;
    sources(100, 1_000, 1_000, false, V6)
}

#[test]
fn ten_thousand_sources_get_their_rates() -> Result<()> {
    sources(10_000, 10, 20, false, V4)?;
    sources(10_000, 10, 20, true, V6)
}

/// A word for all processors: not one packet too many, and hardly one too few.
#[test]
fn totals_are_exact_under_all_processors() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for (limit, tcp, right) in [
        (
            "packets = { total = \"200000/s\", total_burst = 10000 }",
            false,
            [200_000.0, 10_000.0],
        ),
        (
            "new_connections = { total = \"100000/s\", total_burst = 1000 }",
            true,
            [100_000.0, 1_000.0],
        ),
        // IPv4 packets of 46 bytes.
        (
            "bytes = { total = \"4600000B/s\", total_burst = \"460kB\" }",
            false,
            [100_000.0, 10_000.0],
        ),
    ] {
        let range = Range::new(&policy(limit))?;
        let generators = range.generators(&shot(V4.0, V4.1, 80, tcp)?, ports_and(1 << 24))?;
        let time = fire(&generators, LASTING)?.as_secs_f64();
        let [rate, burst] = right;
        within(0.01, limit, range.passed(WEB)?, burst + rate * time)?;
    }
    Ok(())
}

/// The sketch holds 100,000 sources that are all in excess, and loses hardly one of those that are not.
#[test]
fn sources_below_their_limit_hardly_notice_those_above() -> Result<()> {
    const HONEST: u32 = 20_000;
    const ROUNDS: u32 = 5;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let range = Range::new(&policy("new_connections = { per_source = \"2/s\", burst = 4 }"))?;
    let attackers = range.generators(&shot(V4.0, V4.1, 80, true)?, ports_and(100_000))?;
    // Told apart by their rule.
    let honest = range.generators(&shot("192.168.0.0", V4.1, 80, true)?, ports_and(HONEST))?;
    let honest_passed = || -> Result<u64> {
        let counters = range.kernel.datapath.counters()?;
        let rules: Vec<_> = range
            .compiled
            .endings
            .iter()
            .filter_map(|ending| ending.rule)
            .collect();
        let last = rules.iter().filter(|rule| {
            range.compiled.endings.iter().any(|ending| {
                ending.rule == Some(**rule) && ending.service.is_some_and(|of| usize::from(of.0) == WEB)
            })
        });
        let honest_rule = last.max().copied();
        Ok(range
            .compiled
            .endings
            .iter()
            .zip(&counters.endings)
            .filter(|(ending, _)| ending.rule == honest_rule)
            .map(|(_, counter)| counter.happened.packets)
            .sum())
    };
    let begin = Instant::now();
    let (_, time) = while_firing(&attackers, || {
        for round in 0..ROUNDS {
            // Each once a second: half of what it may.
            let due = Duration::from_secs(1) * round + Duration::from_millis(300);
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
            test_run(honest[0].program(), honest[0].frame(), HONEST)?;
        }
        Ok(())
    })?;
    let made: u64 = attackers.iter().map(|one| one.sent()).sum::<Result<u64>>()?;
    ensure!(
        made as f64 > 2.0 * 100_000.0 * (4.0 + 2.0 * time.as_secs_f64()),
        "the attackers made only {made}: they are not in excess"
    );
    let (offered, passed) = (u64::from(HONEST * ROUNDS), honest_passed()?);
    println!("{} of {offered} honest connections lost", offered - passed);
    ensure!(
        (offered - passed) * 1000 < offered,
        "{passed} of {offered} honest connections passed"
    );
    Ok(())
}

#[test]
fn a_flood_on_one_service_changes_nothing_at_another() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let range = Range::new(&policy(
        "packets = { per_source = \"10/s\", burst = 10, total = \"50000/s\", total_burst = 1000 }",
    ))?;
    // One processor at each: 100 sources far above their limit there, millions here.
    let mut flood = range.generators(&shot(V4.0, V4.1, 80, false)?, ports_and(1 << 24))?;
    let mut other = range.generators(&shot(V4.0, V4.1, 53, false)?, ports_and(50))?;
    let pair = [flood.remove(0), other.remove(0)];
    let time = fire(&pair, LASTING)?.as_secs_f64();
    within(
        0.02,
        "dns beside a flood",
        range.passed(DNS)?,
        50.0 * (200.0 + 2_000.0 * time),
    )?;
    within(
        0.02,
        "the flood itself",
        range.passed(WEB)?,
        1_000.0 + 50_000.0 * time,
    )
}

/// New rules, other names beside, the same limits: what was used up stays used up.
#[test]
fn a_reload_gives_no_new_burst() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = policy("packets = { per_source = \"500/s\", burst = 5000, total = \"1000000/s\" }");
    let after = before.replace(
        "[[service]]\nname = \"dns\"",
        "[[service]]\nname = \"new\"\nports = [\"udp/9\"]\nallow = [\"any\"]\n[[service]]\nname = \"dns\"",
    );
    ensure!(after != before, "the policy changes");
    let mut range = Range::new(&before)?;
    let generators = range.generators(&shot(V4.0, V4.1, 80, false)?, ports_and(100))?;
    let begin = Instant::now();
    let ((first, second), time) = while_firing(&generators, || {
        std::thread::sleep(Duration::from_secs(1));
        let first = range.passed(WEB)?;
        // What passes between this look and the switch is in neither sum: a few milliseconds.
        range.reload(&after)?;
        std::thread::sleep(Duration::from_secs(2));
        Ok((first, range.passed(WEB)?))
    })?;
    ensure!(begin.elapsed() >= time, "the clock");
    let all = range.passed(WEB)?;
    println!("{first} before the reload, {second} after it");
    // 500,000 of bursts, once.
    let right = 100.0 * (5_000.0 + 500.0 * time.as_secs_f64());
    within(0.02, "with a reload", first + all, right)
}
