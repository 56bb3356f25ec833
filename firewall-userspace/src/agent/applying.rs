//! The owner's way with policies: it starts [`super::jobs`] one after the other, and does what is to be done with what
//! comes of them. The kernel has the last word: only what it took is remembered, kept and told.

use super::banning::banned_by;
use super::counters::{Ledger, Totals};
use super::handle::Outcome;
use super::jobs::{Ready, Work, perform};
use super::owner::{Desired, LastReload, Owner};
use super::reload::{Basis, Candidate, Origin, Refusal, chain};
use super::views::hex;
use crate::api::types::Applied;
use crate::datapath::InForce;
use crate::datapath::limits::Need;
use crate::fleet::documents::Documents;
use crate::store::last_good::LastGood;
use crate::store::policy_file::Seen;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Images up to this size are kept for `explain`; others are compiled again when it is asked for.
const KEEP_IMAGE: usize = 16 << 20;
/// Before the end of a temporary entry that failed is tried again.
const AGAIN: Duration = Duration::from_secs(10);

impl Owner {
    pub(super) fn basis(&self, compare: bool) -> Basis {
        Basis {
            path: self.config.policy.clone(),
            state_dir: self.config.state_dir.clone(),
            clock: self.clock.clone(),
            deadlines: self.deadlines.clone(),
            policy: self.desired.as_ref().map(|desired| desired.policy.clone()),
            compare,
            seen: self.seen.clone(),
            documents: self.documents.clone(),
        }
    }

    pub(super) fn start_job(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some(job) = self.jobs.pop_front() else { return };
        let (basis, work) = (self.basis(job.reply.is_some()), job.work.clone());
        let (done, result) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            // The owner takes what comes of it, unless it has stopped.
            let _ = done.send(perform(&basis, work));
        });
        self.running = Some((job, result));
    }

    /// Takes what came of a job to the kernel.
    pub(super) fn finish(
        &mut self,
        work: Work,
        result: Result<Ready, Refusal>,
        seen: Option<Seen>,
    ) -> Outcome {
        if let Some(seen) = seen {
            self.out.files.send_if_modified(|files| {
                let mut now: Vec<PathBuf> = vec![self.config.policy.clone()];
                now.extend(seen.lists.keys().cloned());
                let changed = *files != now;
                *files = now;
                changed
            });
            self.seen = Some(seen);
        }
        let reload = matches!(work, Work::Reload { .. });
        let of_fleet = match &work {
            Work::Fleet(documents) => Some(documents.clone()),
            Work::Reload { .. } | Work::Edit(_) | Work::Apply(_) => None,
        };
        let outcome = match result {
            Ok(Ready::Same) => return Ok(self.unchanged()),
            Ok(Ready::WouldBe(candidate)) => {
                self.check_limits(&candidate)?;
                return Ok(Applied {
                    warnings: candidate.told,
                    diff: candidate.diff,
                    digest: hex(&candidate.compiled.digest),
                    generation: self.in_force.as_ref().map_or(0, |in_force| in_force.generation),
                    changed: false,
                });
            }
            Ok(Ready::Policy(candidate, written)) => {
                let outcome = self.put_in_force(*candidate, work.why());
                if let (Err(_), Some(written)) = (&outcome, written) {
                    written.undo();
                    // Whatever stands there now is not what was looked at.
                    self.seen = None;
                }
                outcome
            }
            Ok(Ready::Instead(candidate, refusal)) => match self.put_in_force(*candidate, work.why()) {
                Ok(applied) => {
                    log::warn!(
                        "the last good policy is in force instead (generation {})",
                        applied.generation
                    );
                    self.failed(&refusal);
                    self.take_documents(of_fleet);
                    return Ok(applied);
                }
                Err(of_kernel) if of_fleet.is_some() => Err(of_kernel),
                Err(_) => Err(refusal),
            },
            Err(refusal) => Err(refusal),
        };
        match &outcome {
            // The fleet tells its own story.
            Err(_) if of_fleet.is_some() => self.seen = None,
            Ok(_) => {
                let now = self.clock.wall();
                self.reload = LastReload {
                    error: None,
                    at: now,
                    success_at: now,
                    from_file: true,
                };
                self.take_documents(of_fleet);
            }
            Err(refusal) if reload => {
                self.failed(refusal);
                if matches!(work, Work::Reload { ending: true, .. }) {
                    self.next_end = Some(self.clock.boot() + AGAIN);
                }
            }
            // What was refused before the file was touched concerns only who asked.
            Err(refusal) => log::warn!("refused: {refusal}"),
        }
        outcome
    }

    fn take_documents(&mut self, documents: Option<Arc<Documents>>) {
        if documents.is_some() {
            self.documents = documents;
        }
    }

    fn failed(&mut self, refusal: &Refusal) {
        let text = refusal.to_string();
        log::error!("the policy is not taken: {text}");
        self.reload.at = self.clock.wall();
        self.reload.error = Some(text);
        self.reload.from_file = false;
    }

    /// Refuses a policy whose limits take more memory than the agent may use for them.
    fn check_limits(&self, candidate: &Candidate) -> Result<Need, Refusal> {
        let need = self
            .datapath
            .as_ref()
            .map(|datapath| datapath.check_limits(&candidate.compiled));
        need.unwrap_or_else(|| Ok(Need::default()))
            .map_err(|error| Refusal::Invalid(error.to_string()))
    }

    fn unchanged(&self) -> Applied {
        Applied {
            generation: self.in_force.as_ref().map_or(0, |in_force| in_force.generation),
            digest: self
                .in_force
                .as_ref()
                .map(|in_force| hex(&in_force.digest))
                .unwrap_or_default(),
            changed: false,
            warnings: self
                .desired
                .as_ref()
                .map(|desired| desired.warnings.clone())
                .unwrap_or_default(),
            diff: Vec::new(),
        }
    }

    fn put_in_force(&mut self, candidate: Candidate, why: &str) -> Outcome {
        let begun = Instant::now();
        let same_image = self
            .in_force
            .as_ref()
            .is_some_and(|in_force| in_force.digest == candidate.compiled.digest);
        // Without names, those of the same image are as good as any.
        let same_names = self
            .ledger
            .as_ref()
            .is_none_or(|ledger| ledger.names() == candidate.names);
        let changed = !(same_image && same_names) || self.drift.switch_again;
        let generation = match (&self.in_force, changed) {
            (Some(in_force), false) => in_force.generation,
            (in_force, _) => {
                in_force
                    .as_ref()
                    .map_or(0, |one| one.generation)
                    .max(self.state.newest())
                    + 1
            }
        };
        let need = match changed {
            true => self.check_limits(&candidate)?,
            false => Need::default(),
        };
        let mut directory = self.out.directory.write().unwrap_or_else(PoisonError::into_inner);
        directory.add_generation(generation, &candidate.names);
        drop(directory);
        if changed {
            self.look_at_bans();
            self.state.prepare(generation, &candidate.names);
            self.save_state();
            let Some(datapath) = self.datapath.as_mut() else {
                return Err(Refusal::Failed("everything is detached".into()));
            };
            let retired = match datapath.switch(&candidate.compiled, generation) {
                Ok(retired) => retired,
                // Failed when the deed was done: only the counters of the one before are lost.
                Err(error)
                    if datapath
                        .in_force()
                        .is_ok_and(|now| now.is_some_and(|now| now.generation == generation)) =>
                {
                    log::warn!("the switch to generation {generation}: {}", chain(&error));
                    None
                }
                Err(error) => {
                    let text = format!("the kernel did not take the policy: {}", chain(&error));
                    return Err(Refusal::Failed(text));
                }
            };
            let base = self.ledger.take().unwrap_or_default();
            self.ledger = Some(base.turn(retired.as_ref(), generation, candidate.names));
            self.drift.switch_again = false;
            let first = self.in_force.replace(InForce {
                generation,
                digest: candidate.compiled.digest,
            });
            if first.is_none() && self.started_without {
                self.started_without = false;
                self.attach_waiting();
            }
        } else if self.ledger.is_none() {
            self.ledger = Some(Ledger::new(generation, candidate.names, Totals::default()));
        }
        if let Some(ledger) = &self.ledger {
            self.state.commit(ledger);
            self.save_state();
        }

        self.challenge.look_soon();
        for entry in &candidate.ended {
            log::info!("ended: {}", entry.entry);
        }
        if self.deadlines != candidate.deadlines {
            self.deadlines = candidate.deadlines;
            if let Err(error) = self.deadlines.write(&self.config.state_dir) {
                log::warn!("cannot keep the deadlines of temporary entries: {error}");
            }
        }
        self.next_end = self
            .deadlines
            .next(&*self.clock)
            .map(|left| self.clock.boot() + left);
        if candidate.origin == Origin::File && candidate.local {
            self.keeper.keep(LastGood {
                generation,
                ..candidate.source.clone()
            });
        }
        let digest = hex(&candidate.compiled.digest);
        let known = self
            .desired
            .as_ref()
            .map(|desired| desired.warnings.as_slice())
            .unwrap_or_default();
        for warning in candidate
            .warnings
            .iter()
            .filter(|warning| !known.contains(warning))
        {
            log::warn!("{warning}");
        }
        let stats = candidate.compiled.stats;
        self.bans.of_policy = banned_by(&candidate.compiled.image);
        self.desired = Some(Desired {
            policy: Arc::new(candidate.policy),
            text: candidate.source.text.into(),
            local: candidate.local,
            stats,
            scopes: candidate.compiled.scopes.clone().into(),
            compiled: (candidate.compiled.image.len() <= KEEP_IMAGE).then(|| Arc::new(candidate.compiled)),
            warnings: candidate.warnings,
            applied_at: self.clock.wall().as_secs(),
        });
        self.count_connections();
        self.look_at_bans();
        if changed {
            log::info!(
                "generation {generation} is in force ({why}): {} services, {} rules, {} prefixes, {} classes, image {} \
                 KiB, digest {}, switched in {:.1} ms",
                stats.services,
                stats.rules,
                stats.prefixes_v4 + stats.prefixes_v6,
                stats.classes,
                stats.image_bytes / 1024,
                &digest[..16],
                begun.elapsed().as_secs_f64() * 1e3,
            );
            if need.tables > 0 {
                log::info!("its limits take {need}");
            }
        } else {
            log::info!("generation {generation} stays in force ({why}): the policy means the same");
        }
        Ok(Applied {
            generation,
            digest,
            changed,
            warnings: candidate.told,
            diff: candidate.diff,
        })
    }
}
