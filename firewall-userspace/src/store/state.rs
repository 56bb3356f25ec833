//! What the agent remembers over restarts besides the policy: generation numbers, the names and totals of counters,
//! and the mode if it was changed by command.
//!
//! Written in two steps around a switch: `next` before, so that counters of a generation whose agent died right
//! after the switch still have names; `current` after it.

use super::{Durable, read_json, write_json};
use crate::agent::config::Mode;
use crate::agent::counters::{EndingName, Ledger, RuleKey, ServiceKey, Totals};
use crate::api::types::Count;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

const FILE: &str = "state.json";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Counters of the kernel start at zero with the machine.
    boot_id: String,
    current: Option<Generation>,
    next: Option<Generation>,
    /// A mode set by command, and the configured one it was set against: a change of the configuration ends it.
    mode: Option<(Mode, Mode)>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Generation {
    generation: u64,
    names: Vec<EndingName>,
    services: Vec<(ServiceKey, Count)>,
    rules: Vec<(RuleKey, Count)>,
    #[serde(default)]
    opened: Vec<(RuleKey, u64)>,
}

impl Generation {
    fn of(ledger: &Ledger) -> Generation {
        Generation {
            generation: ledger.generation(),
            names: ledger.names().to_vec(),
            services: ledger.base().services.clone().into_iter().collect(),
            rules: ledger.base().rules.clone().into_iter().collect(),
            opened: ledger.base().opened.clone().into_iter().collect(),
        }
    }

    fn ledger(self) -> Ledger {
        let base = Totals {
            services: self.services.into_iter().collect(),
            rules: self.rules.into_iter().collect(),
            opened: self.opened.into_iter().collect(),
        };
        Ledger::new(self.generation, self.names, base)
    }
}

impl State {
    pub fn read(state_dir: &Path, boot_id: &str) -> State {
        let state: State = read_json(&state_dir.join(FILE)).unwrap_or_default();
        State {
            boot_id: boot_id.to_owned(),
            ..state.of_boot(boot_id)
        }
    }

    /// After a restart of the machine only the numbers and the mode count.
    fn of_boot(mut self, boot_id: &str) -> State {
        if self.boot_id != boot_id {
            for generation in [&mut self.current, &mut self.next].into_iter().flatten() {
                *generation = Generation {
                    generation: generation.generation,
                    ..Generation::default()
                };
            }
        }
        self
    }

    /// Losing it costs the history of counters, no more: it is not worth waiting for the disk in the middle of a
    /// change of policy.
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        write_json(&state_dir.join(FILE), self, Durable::No)
    }

    /// The highest generation number that was ever given out.
    pub fn newest(&self) -> u64 {
        [&self.current, &self.next]
            .into_iter()
            .flatten()
            .map(|one| one.generation)
            .max()
            .unwrap_or(0)
    }

    /// The ledger of the generation that the kernel has in force.
    pub fn ledger(&self, in_force: u64) -> Option<Ledger> {
        let found = [&self.current, &self.next]
            .into_iter()
            .flatten()
            .find(|one| one.generation == in_force)?;
        (!found.names.is_empty()).then(|| found.clone().ledger())
    }

    /// About to switch to a generation with these names.
    pub fn prepare(&mut self, generation: u64, names: &[EndingName]) {
        self.next = Some(Generation {
            generation,
            names: names.to_vec(),
            ..Generation::default()
        });
    }

    pub fn commit(&mut self, ledger: &Ledger) {
        self.current = Some(Generation::of(ledger));
        self.next = None;
    }

    /// The mode to be in, given the configured one.
    pub fn mode(&self, configured: Mode) -> Mode {
        match self.mode {
            Some((mode, against)) if against == configured => mode,
            _ => configured,
        }
    }

    pub fn set_mode(&mut self, mode: Mode, configured: Mode) {
        self.mode = (mode != configured).then_some((mode, configured));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::{EndingCounter, EndingCounters};
    use firewall_common::counter::Counter;

    fn names() -> Vec<EndingName> {
        vec![EndingName {
            service: String::new(),
            direction: crate::agent::counters::ingress(),
            reason: Some("closed".into()),
            rule: None,
            opens: false,
        }]
    }

    fn counted(generation: u64, packets: u64) -> EndingCounters {
        let counter = EndingCounter {
            happened: Counter { packets, bytes: 0 },
            ..EndingCounter::default()
        };
        EndingCounters {
            generation,
            endings: vec![counter],
        }
    }

    fn sum(totals: Totals) -> u64 {
        totals.services.values().map(|count| count.packets).sum()
    }

    #[test]
    fn totals_outlive_the_agent_wherever_it_dies() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut state = State::read(dir.path(), "boot-1");
        let ledger = Ledger::new(1, names(), Totals::default());
        state.commit(&ledger);
        let ledger = ledger.turn(Some(&counted(1, 10)), 2, names());
        state.prepare(2, ledger.names());
        state.write(dir.path()).expect("written");

        // Died between the switch and the fold: generation 1 is lost, nothing is counted twice.
        let died = State::read(dir.path(), "boot-1");
        assert_eq!(died.newest(), 2);
        let resumed = died.ledger(2).expect("has names");
        assert_eq!(sum(resumed.totals(Some(&counted(2, 3)), false)), 3);

        // Died after the fold.
        state.commit(&ledger);
        state.write(dir.path()).expect("written");
        let resumed = State::read(dir.path(), "boot-1").ledger(2).expect("has names");
        assert_eq!(sum(resumed.totals(Some(&counted(2, 3)), false)), 13);

        // The machine restarted: numbers go on, counts do not.
        let rebooted = State::read(dir.path(), "boot-2");
        assert_eq!((rebooted.newest(), rebooted.ledger(2).is_none()), (2, true));
    }

    #[test]
    fn a_mode_set_by_command_lasts_until_the_configuration_changes() {
        let mut state = State::default();
        state.set_mode(Mode::Observe, Mode::Enforce);
        assert_eq!(state.mode(Mode::Enforce), Mode::Observe);
        assert_eq!(state.mode(Mode::Observe), Mode::Observe);
        state.set_mode(Mode::Enforce, Mode::Enforce);
        assert_eq!(state.mode(Mode::Enforce), Mode::Enforce);
        state.set_mode(Mode::Enforce, Mode::Observe);
        assert_eq!(state.mode(Mode::Enforce), Mode::Enforce);
    }
}
