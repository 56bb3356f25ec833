//! What is to be done with the policy, one job after the other: read, compile or edit, away from the owner, who takes
//! what comes of it to the kernel.

use super::handle::{Outcome, Reply};
use super::reload::{Basis, Candidate, Refusal, Written};
use crate::api::types::{ApplyRequest, Edit};
use crate::fleet::documents::Documents;
use crate::store::policy_file::Seen;
use std::sync::Arc;
use tokio::sync::oneshot;

pub(super) struct Job {
    pub(super) work: Work,
    pub(super) reply: Option<Reply<Outcome>>,
}

#[derive(Clone)]
pub(super) enum Work {
    /// `ending`: a temporary entry ends, which it must even if the file has become bad.
    Reload {
        why: &'static str,
        force: bool,
        ending: bool,
    },
    Edit(Edit),
    Apply(ApplyRequest),
    /// What the fleet says from now on.
    Fleet(Arc<Documents>),
}

/// What came of a job, before the kernel is asked.
pub(super) struct Done {
    pub(super) result: Result<Ready, Refusal>,
    /// What was looked at; `None` if the job does not tell.
    pub(super) seen: Option<Seen>,
}

pub(super) enum Ready {
    Same,
    Policy(Box<Candidate>, Option<Written>),
    /// Of the last good copy, with what is wrong with the file.
    Instead(Box<Candidate>, Refusal),
    WouldBe(Box<Candidate>),
}

/// Waits for the running job; forever if there is none.
pub(super) async fn job(
    running: &mut Option<(Job, oneshot::Receiver<Done>)>,
) -> Result<Done, oneshot::error::RecvError> {
    match running {
        Some((_, done)) => done.await,
        None => std::future::pending().await,
    }
}

/// Does a job; takes as long as the policy is big.
pub(super) fn perform(basis: &Basis, work: Work) -> Done {
    let mut seen = Seen::default();
    let boxed = |(candidate, written)| Ready::Policy(Box::new(candidate), written);
    match work {
        Work::Reload { force, ending, .. } => {
            let result = match basis.reload(force, &mut seen) {
                Ok(Some(candidate)) => Ok(boxed((candidate, None))),
                Ok(None) => Ok(Ready::Same),
                Err(refusal) if ending => instead(basis, refusal),
                Err(refusal) => Err(refusal),
            };
            Done {
                result,
                seen: Some(seen),
            }
        }
        Work::Fleet(documents) => {
            let basis = Basis {
                documents: Some(documents),
                ..basis.clone()
            };
            let result = basis.fleet(&mut seen).map(|(candidate, refusal)| match refusal {
                None => boxed((candidate, None)),
                Some(refusal) => Ready::Instead(Box::new(candidate), refusal),
            });
            Done {
                seen: result.is_ok().then_some(seen),
                result,
            }
        }
        // What was refused did not change the file, so it tells nothing about it.
        Work::Edit(change) => {
            let result = basis.edit(&change, &mut seen).map(boxed);
            Done {
                seen: result.is_ok().then_some(seen),
                result,
            }
        }
        Work::Apply(request) if request.dry_run => {
            let result = basis
                .try_apply(&request.text, &request.path)
                .map(|candidate| Ready::WouldBe(Box::new(candidate)));
            Done { result, seen: None }
        }
        Work::Apply(request) => {
            let result = basis.apply(&request.text, &request.path, &mut seen).map(boxed);
            Done {
                seen: result.is_ok().then_some(seen),
                result,
            }
        }
    }
}

/// The last good policy, because the file is not.
pub(super) fn instead(basis: &Basis, refusal: Refusal) -> Result<Ready, Refusal> {
    match basis.last_good() {
        Ok(Some(candidate)) => Ok(Ready::Instead(Box::new(candidate), refusal)),
        Ok(None) => Err(refusal),
        Err(error) => {
            log::warn!("the last good policy cannot be used: {error}");
            Err(refusal)
        }
    }
}

impl Work {
    /// For the log.
    pub(super) fn why(&self) -> &'static str {
        match self {
            Work::Reload { why, .. } => why,
            Work::Edit(_) => "edit",
            Work::Apply(_) => "apply",
            Work::Fleet(_) => "the fleet",
        }
    }
}
