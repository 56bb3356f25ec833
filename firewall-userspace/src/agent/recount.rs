//! The thread that holds counted connections against the sockets that there are: see
//! [`Recounter`]. It has a thread of its own, for a machine with a million
//! sockets takes a second to list them.

use super::reload::chain;
use crate::datapath::Recounter;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Between counts when nobody else counts.
const ALONE: Duration = Duration::from_secs(1);

/// How it went so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Of the last recount, if it failed.
    pub error: Option<String>,
    /// Connections that limits count, by the last one.
    pub connections: u64,
    /// By how much counts were corrected since the agent started.
    pub mended: u64,
}

/// A running thread; it ends when this is dropped.
pub struct Recounts {
    ask: Sender<()>,
    alone: bool,
    report: Arc<Mutex<Report>>,
}

impl Recounts {
    /// Counts at once, and then every `interval`; every second if this count is the only one (`alone`).
    ///
    /// # Errors
    /// There can be no more threads.
    pub fn start(recounter: Recounter, interval: Duration, alone: bool) -> std::io::Result<Recounts> {
        let (ask, asked) = mpsc::channel();
        let report = Arc::new(Mutex::new(Report::default()));
        let written = report.clone();
        let interval = if alone { interval.min(ALONE) } else { interval };
        std::thread::Builder::new()
            .name("ravelin-recount".into())
            .spawn(move || run(recounter, &asked, interval, alone, &written))?;
        Ok(Recounts { ask, alone, report })
    }

    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Counts now and mends at once: the policy has changed.
    pub fn now(&self) {
        // The thread ends with this, not before it.
        let _ = self.ask.send(());
    }

    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn run(
    mut recounter: Recounter,
    asked: &mpsc::Receiver<()>,
    interval: Duration,
    alone: bool,
    report: &Mutex<Report>,
) {
    let mut at_once = true;
    loop {
        let found = recounter.run(at_once || alone);
        {
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            match found {
                Ok(found) => {
                    if found.mended > 0 && !at_once && !alone {
                        log::debug!("connections were miscounted by {}", found.mended);
                    }
                    report.error = None;
                    report.connections = found.connections;
                    report.mended += found.mended;
                }
                Err(error) => report.error = Some(chain(&error)),
            }
        }
        at_once = match asked.recv_timeout(interval) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => return,
        };
    }
}
