//! Temporary entries of the policy: when each one ends.
//!
//! The file says when by the wall clock. The agent turns that into a deadline of the boot clock when it first sees
//! the entry, and keeps it on disk with the boot id: from then on, jumps of the wall clock do not matter while the
//! machine is up, whatever restarts the agent makes. After a reboot the file's word counts again.

use super::clock::Clock;
use crate::api::types::Temporary;
use crate::policy::file::TemporaryEntry;
use crate::store::{Durable, read_json, write_json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

const FILE: &str = "temporary.json";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deadlines {
    boot_id: String,
    entries: BTreeMap<String, Deadline>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Deadline {
    /// For people.
    entry: String,
    /// Milliseconds of the boot clock.
    at_ms: u64,
}

impl Deadlines {
    pub fn new(boot_id: &str) -> Deadlines {
        Deadlines {
            boot_id: boot_id.to_owned(),
            entries: BTreeMap::new(),
        }
    }

    /// Those of an earlier run of the agent, if the machine was not restarted since.
    pub fn read(state_dir: &Path, boot_id: &str) -> Deadlines {
        read_json(&state_dir.join(FILE))
            .filter(|deadlines: &Deadlines| deadlines.boot_id == boot_id)
            .unwrap_or_else(|| Deadlines::new(boot_id))
    }

    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        write_json(&state_dir.join(FILE), self, Durable::Yes)
    }

    /// Takes note of the entries that the policy holds now, forgets the others, and gives those that have ended.
    pub fn update(&mut self, entries: &[TemporaryEntry], clock: &dyn Clock) -> Vec<TemporaryEntry> {
        let (wall, boot) = (clock.wall(), clock.boot());
        let mut kept = BTreeMap::new();
        let mut ended = Vec::new();
        for entry in entries {
            let key = key(entry);
            let deadline = self.entries.remove(&key).unwrap_or_else(|| {
                let left = Duration::from_secs(entry.until).saturating_sub(wall);
                Deadline {
                    entry: entry.entry.clone(),
                    at_ms: millis(boot.saturating_add(left)),
                }
            });
            if deadline.at_ms <= millis(boot) {
                ended.push(entry.clone());
            }
            kept.insert(key, deadline);
        }
        self.entries = kept;
        ended
    }

    /// Whether an entry that the policy held has ended since.
    pub fn any_ended(&self, clock: &dyn Clock) -> bool {
        let now = millis(clock.boot());
        self.entries.values().any(|deadline| deadline.at_ms <= now)
    }

    /// How long until the next of those that have not ended.
    pub fn next(&self, clock: &dyn Clock) -> Option<Duration> {
        let now = millis(clock.boot());
        let next = self
            .entries
            .values()
            .map(|deadline| deadline.at_ms)
            .filter(|at| *at > now)
            .min()?;
        Some(Duration::from_millis(next - now))
    }

    pub fn status(&self, clock: &dyn Clock) -> Vec<Temporary> {
        let now = millis(clock.boot());
        let mut rows: Vec<Temporary> = self
            .entries
            .values()
            .filter(|deadline| deadline.at_ms > now)
            .map(|deadline| Temporary {
                entry: deadline.entry.clone(),
                seconds_left: (deadline.at_ms - now).div_ceil(1000),
            })
            .collect();
        rows.sort_by(|a, b| (a.seconds_left, &a.entry).cmp(&(b.seconds_left, &b.entry)));
        rows
    }
}

/// An entry whose time is changed in the file is another entry.
fn key(entry: &TemporaryEntry) -> String {
    let edit = serde_json::to_string(&entry.edit).unwrap_or_default();
    format!("{} {edit}", entry.until)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Edit;
    use std::sync::Mutex;

    struct Hands(Mutex<(u64, u64)>);

    impl Hands {
        fn set(&self, wall: u64, boot: u64) {
            *self.0.lock().expect("one thread") = (wall, boot);
        }
    }

    impl Clock for Hands {
        fn wall(&self) -> Duration {
            Duration::from_secs(self.0.lock().expect("one thread").0)
        }
        fn boot(&self) -> Duration {
            Duration::from_secs(self.0.lock().expect("one thread").1)
        }
    }

    fn deny(source: &str, until: u64) -> TemporaryEntry {
        TemporaryEntry {
            entry: format!("deny {source}"),
            edit: Edit::Undeny {
                source: source.into(),
            },
            until,
        }
    }

    #[test]
    fn jumps_of_the_wall_clock_neither_end_nor_prolong_an_entry() {
        let clock = Hands(Mutex::new((1000, 50)));
        let entries = [deny("192.0.2.0/24", 1060)];
        let mut deadlines = Deadlines::new("a");
        assert_eq!(deadlines.update(&entries, &clock).len(), 0);
        assert_eq!(deadlines.next(&clock), Some(Duration::from_secs(60)));
        clock.set(999_999, 109);
        assert_eq!(deadlines.update(&entries, &clock).len(), 0);
        assert_eq!(
            deadlines.status(&clock)[0],
            Temporary {
                entry: "deny 192.0.2.0/24".into(),
                seconds_left: 1
            }
        );
        clock.set(5, 110);
        assert_eq!(deadlines.update(&entries, &clock).len(), 1);
        assert_eq!(
            (deadlines.next(&clock), deadlines.status(&clock).len()),
            (None, 0)
        );
        // Still in the file, because it could not be written: still ended.
        assert_eq!(deadlines.update(&entries, &clock).len(), 1);
    }

    #[test]
    fn deadlines_outlive_the_agent_but_not_the_boot() {
        let dir = tempfile::tempdir().expect("a directory");
        let clock = Hands(Mutex::new((1000, 50)));
        let entries = [deny("192.0.2.0/24", 1060)];
        let mut deadlines = Deadlines::new("boot-1");
        deadlines.update(&entries, &clock);
        deadlines.write(dir.path()).expect("written");

        clock.set(2000, 60);
        let mut same = Deadlines::read(dir.path(), "boot-1");
        assert_eq!(same.update(&entries, &clock).len(), 0);
        let mut other = Deadlines::read(dir.path(), "boot-2");
        assert_eq!(other.update(&entries, &clock).len(), 1);
    }

    #[test]
    fn a_changed_time_is_a_new_entry_and_a_removed_one_is_forgotten() {
        let clock = Hands(Mutex::new((1000, 50)));
        let mut deadlines = Deadlines::new("a");
        deadlines.update(&[deny("192.0.2.0/24", 1060), deny("198.51.100.1", 1010)], &clock);
        deadlines.update(&[deny("192.0.2.0/24", 1120)], &clock);
        assert_eq!(deadlines.next(&clock), Some(Duration::from_secs(120)));
        assert_eq!(deadlines.status(&clock).len(), 1);
    }
}
