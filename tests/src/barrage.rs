//! Packets at the loaded programs from all processors at once, without a wire: BPF_PROG_TEST_RUN over [`Generator`]s, and
//! what of them passed.

use crate::frame;
use crate::generator::{Generator, Vary, pin_to};
use crate::kernel::{Kernel, test_run};
use crate::packet::{self, SYN};
use crate::rotate::End;
use anyhow::{Context, Result};
use firewall_common::verdict::{Direction, Reason};
use ravelin::datapath::EndingCounters;
use ravelin::datapath::limits::Sizes;
use ravelin::policy::compile::{Compiled, Ending};
use ravelin::policy::file::load;
use std::net::{IpAddr, SocketAddr};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A data path with a policy in force, as it stands in a file.
pub struct Range {
    pub kernel: Kernel,
    pub compiled: Compiled,
}

impl Range {
    /// # Errors
    /// Needs root; the policy does not compile.
    pub fn new(policy: &str) -> Result<Range> {
        Range::with_room_for(Sizes::default().sources, policy)
    }

    /// [`Range::new`] with sketches that tell so many sources apart.
    ///
    /// # Errors
    /// As there.
    pub fn with_room_for(sources: u32, policy: &str) -> Result<Range> {
        let mut kernel = Kernel::with_limits(Sizes {
            sources,
            ..Sizes::default()
        })?;
        let compiled = enforce(&mut kernel, policy)?;
        Ok(Range { kernel, compiled })
    }

    /// Puts another policy in force; gives what this service took in under the one before.
    ///
    /// # Errors
    /// It does not compile.
    pub fn reload(&mut self, policy: &str, service: usize) -> Result<u64> {
        let before = std::mem::replace(&mut self.compiled, enforce(&mut self.kernel, policy)?);
        let counters = self.kernel.retired.take().context("a policy was in force")?;
        Ok(sum(&before, &counters, service, is_allowed))
    }

    /// Generators of these packets in front of the ingress program, one for each processor.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn generators(&self, frame: &[u8], vary: Vary) -> Result<Vec<Generator>> {
        let end = End::Program(self.kernel.datapath.ingress_program());
        let processors = std::thread::available_parallelism()?.get() as u64;
        (0..processors)
            // Apart, so that processors do not go through the sources in step.
            .map(|index| {
                Generator::new(
                    frame,
                    vary,
                    index * u64::from(vary.sources.max(1)) / processors,
                    &end,
                )
            })
            .collect()
    }

    /// Packets that came in and ended so, at this service, under the policy in force.
    ///
    /// # Errors
    /// Counters cannot be read.
    pub fn ended(&self, service: usize, which: impl Fn(&Ending) -> bool) -> Result<u64> {
        Ok(sum(
            &self.compiled,
            &self.kernel.datapath.counters()?,
            service,
            which,
        ))
    }

    /// Packets that this service took in.
    ///
    /// # Errors
    /// Counters cannot be read.
    pub fn passed(&self, service: usize) -> Result<u64> {
        self.ended(service, is_allowed)
    }
}

fn is_allowed(ending: &Ending) -> bool {
    ending.reason == Some(Reason::Allowed)
}

fn sum(
    compiled: &Compiled,
    counters: &EndingCounters,
    service: usize,
    which: impl Fn(&Ending) -> bool,
) -> u64 {
    compiled
        .endings
        .iter()
        .zip(&counters.endings)
        .filter(|(ending, _)| ending.direction == Direction::Ingress)
        .filter(|(ending, _)| ending.service.is_some_and(|of| usize::from(of.0) == service))
        .filter(|(ending, _)| which(ending))
        .map(|(_, counter)| counter.happened.packets)
        .sum()
}

fn enforce(kernel: &mut Kernel, policy: &str) -> Result<Compiled> {
    let dir = tempfile::tempdir().context("making a directory for a policy")?;
    let path = dir.path().join("policy.toml");
    std::fs::write(&path, policy).context("writing a policy")?;
    let loaded = load(&path, 0).map_err(|error| anyhow::anyhow!("{error}"))?;
    kernel.enforce(&loaded.policy)
}

/// Fires while `work` goes on: each generator on a processor of its own. Gives what `work` gave, and from the first packet to the last.
///
/// # Errors
/// A generator or the work fails.
pub fn while_firing<T>(generators: &[Generator], work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    /// Packets between two looks at the clock.
    const CALL: u32 = 8192;
    let stop = AtomicBool::new(false);
    let processors = std::thread::available_parallelism()?.get();
    let ready = Barrier::new(generators.len() + 1);
    std::thread::scope(|scope| -> Result<(T, Duration)> {
        let threads: Vec<_> = generators
            .iter()
            .enumerate()
            .map(|(index, generator)| {
                let (stop, ready) = (&stop, &ready);
                scope.spawn(move || -> Result<(Instant, Instant)> {
                    let pinned = pin_to(index % processors);
                    ready.wait();
                    pinned?;
                    let begin = Instant::now();
                    while !stop.load(Ordering::Relaxed) {
                        test_run(generator.program(), generator.frame(), CALL)?;
                    }
                    Ok((begin, Instant::now()))
                })
            })
            .collect();
        ready.wait();
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let mut span: Option<(Instant, Instant)> = None;
        for thread in threads {
            let (begin, end) = thread
                .join()
                .map_err(|_| anyhow::anyhow!("a generator panicked"))??;
            span = Some(span.map_or((begin, end), |(first, last)| (first.min(begin), last.max(end))));
        }
        let time = span.map_or(Duration::ZERO, |(begin, end)| end - begin);
        Ok((done?, time))
    })
}

/// [`while_firing`] for so long.
///
/// # Errors
/// A generator fails.
pub fn fire(generators: &[Generator], lasting: Duration) -> Result<Duration> {
    let wait = || {
        std::thread::sleep(lasting);
        Ok(())
    };
    Ok(while_firing(generators, wait)?.1)
}

/// The frame of a packet: a SYN if `tcp`, else a datagram of 18 bytes.
///
/// # Errors
/// An address does not parse.
pub fn shot(from: &str, to: &str, port: u16, tcp: bool) -> Result<Vec<u8>> {
    let (src, dst) = (
        SocketAddr::new(from.parse()?, 40_000),
        SocketAddr::new(to.parse()?, port),
    );
    let packet = if tcp {
        packet::tcp(src, dst, SYN, 0)
    } else {
        packet::udp(src, dst, &[0; 18])
    };
    let ethertype = match dst.ip() {
        IpAddr::V4(_) => frame::IPV4,
        IpAddr::V6(_) => frame::IPV6,
    };
    Ok(frame::ethernet(
        [2, 0, 0, 0, 0, 1],
        [2, 0, 0, 0, 0, 2],
        &[],
        ethertype,
        &packet,
    ))
}
