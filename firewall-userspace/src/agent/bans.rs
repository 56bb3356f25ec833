//! What the agent knows of bans beside the kernel's table: who asked for them and why, and since when by the clock on the wall.
//!
//! The table decides and ends bans by itself; this is a book that follows it. It is kept on disk, so that bans
//! survive what the table does not: a restart of the machine, and `ravelin detach`. As with temporary entries of the
//! policy, an end is a time of the boot clock while the machine is up, and one of the wall clock after a restart. The
//! kernel's own clock stands still while the machine sleeps; [`Book::slept`] tells for how long it did.

use crate::api::types::{BanList, BanRow};
use crate::policy::prefix;
use crate::store::{Durable, read_json, write_json};
use firewall_common::ban::{Ban, BanKey, FOREVER, OPERATOR};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

const FILE: &str = "bans.json";
/// Automatic bans that are kept on disk, those that last longest.
const KEPT: usize = 16_384;

/// What the clocks say, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Since the Unix epoch.
    pub wall: u64,
    /// Since boot, sleep included.
    pub boot: u64,
    /// The kernel's, without sleep.
    pub kernel: u32,
}

impl Now {
    fn asleep(&self) -> u64 {
        self.boot.saturating_sub(u64::from(self.kernel))
    }

    /// Of a second of the kernel's clock.
    fn wall_of(&self, kernel_s: u32) -> u64 {
        (self.wall + u64::from(kernel_s)).saturating_sub(u64::from(self.kernel))
    }
}

pub struct Book {
    boot_id: String,
    entries: BTreeMap<BanKey, Entry>,
    /// Bans ever begun, by service; those by command under no name.
    begun: BTreeMap<String, u64>,
    /// How long the machine has slept, as of the last look.
    asleep: u64,
    /// The table has not been looked at yet: what is new in it may be older than this book.
    fresh: bool,
    /// Something that is kept has changed since the last write.
    changed: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    ban: Ban,
    /// Empty: the operator.
    service: String,
    why: String,
    /// Unix seconds.
    since: u64,
    ended: bool,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    asleep: u64,
    begun: BTreeMap<String, u64>,
    bans: Vec<KeptBan>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptBan {
    prefix: IpNetwork,
    service: String,
    why: String,
    /// Unix seconds, and the kernel's.
    since: u64,
    since_s: u32,
    /// Unix seconds, and seconds of the boot clock; none: for ever.
    until: Option<(u64, u64)>,
    seconds: u32,
    strikes: u32,
}

/// What a look at the table found.
#[derive(Debug, Default, PartialEq)]
pub struct Looked {
    /// A line each.
    pub begun: Vec<String>,
    pub ended: Vec<String>,
    /// To be taken out of the table.
    pub forgotten: Vec<BanKey>,
}

impl Book {
    pub fn new(boot_id: &str) -> Book {
        Book {
            boot_id: boot_id.to_owned(),
            entries: BTreeMap::new(),
            begun: BTreeMap::new(),
            asleep: 0,
            fresh: false,
            changed: false,
        }
    }

    /// What an agent before has kept; bans that have ended since are left out.
    pub fn read(state_dir: &Path, boot_id: &str, now: Now) -> Book {
        let mut book = Book {
            asleep: now.asleep(),
            fresh: true,
            ..Book::new(boot_id)
        };
        let Some(kept) = read_json::<Kept>(&state_dir.join(FILE)) else {
            return book;
        };
        let same_boot = kept.boot_id == boot_id;
        if same_boot {
            book.asleep = kept.asleep;
        }
        book.begun = kept.begun;
        for one in kept.bans {
            let (left, until_s) = match (one.until, same_boot) {
                (None, _) => (u64::MAX, FOREVER),
                (Some((_, boot)), true) => (
                    boot.saturating_sub(now.boot),
                    second(boot.saturating_sub(kept.asleep)),
                ),
                (Some((wall, _)), false) => {
                    let left = wall.saturating_sub(now.wall);
                    (left, second(u64::from(now.kernel).saturating_add(left)))
                }
            };
            if left == 0 {
                continue;
            }
            let ban = Ban {
                until_s,
                since_s: if same_boot { one.since_s } else { now.kernel },
                strikes: one.strikes,
                // The number of the service is another policy's.
                origin: if one.service.is_empty() { OPERATOR } else { 0 },
                seconds: one.seconds,
                ..Ban::default()
            };
            let entry = Entry {
                ban,
                service: one.service,
                why: one.why,
                since: one.since,
                ended: false,
            };
            book.entries.insert(key(one.prefix), entry);
        }
        book
    }

    /// What is to be kept over restarts: bans by command, and the automatic ones that last longest.
    pub fn write(&mut self, state_dir: &Path, now: Now, durable: Durable) -> io::Result<()> {
        let (by_hand, mut automatic): (Vec<_>, Vec<_>) = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.ban.is_live(now.kernel))
            .partition(|(_, entry)| entry.ban.origin == OPERATOR);
        automatic.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.ban.until_s));
        automatic.truncate(KEPT);
        let kept = |(key, entry): (&BanKey, &Entry)| {
            let left = u64::from(entry.ban.until_s.saturating_sub(now.kernel));
            Some(KeptBan {
                prefix: network(key)?,
                service: entry.service.clone(),
                why: entry.why.clone(),
                since: entry.since,
                since_s: entry.ban.since_s,
                until: (entry.ban.until_s != FOREVER).then_some((now.wall + left, now.boot + left)),
                seconds: entry.ban.seconds,
                strikes: entry.ban.strikes,
            })
        };
        let file = Kept {
            boot_id: self.boot_id.clone(),
            asleep: self.asleep,
            begun: self.begun.clone(),
            bans: by_hand.into_iter().chain(automatic).filter_map(kept).collect(),
        };
        write_json(&state_dir.join(FILE), &file, durable)?;
        self.changed = false;
        Ok(())
    }

    /// All networks, also those whose bans are over and remembered.
    pub fn all(&self) -> Vec<BanKey> {
        self.entries.keys().copied().collect()
    }

    pub fn has_changed(&self) -> bool {
        self.changed
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the table has and this book has not, and the reverse, made one at the start: the entries that the table lacks.
    pub fn missing(&self, table: &[(BanKey, Ban)]) -> Vec<(BanKey, Ban)> {
        let there: HashSet<&BanKey> = table.iter().map(|(key, _)| key).collect();
        self.entries
            .iter()
            .filter(|(key, _)| !there.contains(key))
            .map(|(key, entry)| (*key, entry.ban))
            .collect()
    }

    /// Seconds that the machine has slept since the last time this was asked: by so much the kernel's clock is behind, and
    /// [`earlier`] brings a ban up to it, as it has been done here.
    pub fn slept(&mut self, now: Now) -> u32 {
        // Both clocks are cut to seconds, so a difference of one may be none.
        let slept = now.asleep().saturating_sub(self.asleep);
        if slept < 2 {
            return 0;
        }
        self.asleep = now.asleep();
        self.changed = true;
        let slept = u32::try_from(slept).unwrap_or(u32::MAX);
        for entry in self.entries.values_mut() {
            entry.ban = earlier(entry.ban, slept);
        }
        slept
    }

    /// Follows the table. `service` gives the name of a service by its number in the image.
    pub fn look(
        &mut self,
        table: &[(BanKey, Ban)],
        service: impl Fn(u16) -> String,
        now: Now,
        forget_s: u32,
    ) -> Looked {
        let mut looked = Looked::default();
        let fresh = std::mem::take(&mut self.fresh);
        let mut entries = std::mem::take(&mut self.entries);
        for (key, ban) in table {
            let known = entries.remove(key);
            let same = known
                .as_ref()
                .is_some_and(|known| (known.ban.since_s, known.ban.strikes) == (ban.since_s, ban.strikes));
            let mut entry = match known {
                Some(known) if same => Entry { ban: *ban, ..known },
                known => {
                    let entry = Entry {
                        service: match ban.origin {
                            OPERATOR => String::new(),
                            number => service(number),
                        },
                        ban: *ban,
                        why: String::new(),
                        since: now.wall_of(ban.since_s),
                        // Told by the agent before.
                        ended: fresh && !ban.is_live(now.kernel),
                    };
                    // All strikes since the last look, of which there may have been several.
                    let before = known.map_or(0, |known| known.ban.strikes);
                    let more = match ban.strikes > before {
                        _ if fresh => 1,
                        true => ban.strikes - before,
                        false => ban.strikes.max(1),
                    };
                    if !entry.ended {
                        *self.begun.entry(entry.service.clone()).or_default() += u64::from(more);
                        looked.begun.push(begins(key, &entry));
                        self.changed = true;
                    }
                    entry
                }
            };
            if !ban.is_live(now.kernel) && !entry.ended {
                looked.ended.push(ends(key, &entry));
                entry.ended = true;
                self.changed = true;
            }
            if ban.is_forgotten(now.kernel, forget_s) {
                looked.forgotten.push(*key);
            } else {
                self.entries.insert(*key, entry);
            }
        }
        // Somebody else took them out of the table.
        self.changed |= !entries.is_empty();
        let gone = entries.iter().filter(|(_, entry)| !entry.ended);
        looked.ended.extend(gone.map(|(key, entry)| ends(key, entry)));
        looked
    }

    /// Notes a ban by command.
    pub fn banned(&mut self, key: BanKey, ban: Ban, why: &str, now: Now) {
        let entry = Entry {
            ban,
            service: String::new(),
            why: why.to_owned(),
            since: now.wall,
            ended: false,
        };
        *self.begun.entry(String::new()).or_default() += 1;
        self.entries.insert(key, entry);
        self.changed = true;
    }

    pub fn unbanned(&mut self, key: &BanKey) {
        self.changed |= self.entries.remove(key).is_some();
    }

    /// Automatic bans of a network in a row, and how many seconds the last one was for, if there are any.
    pub fn strikes(&self, key: &BanKey) -> Option<(u32, u32)> {
        let ban = self.entries.get(key)?.ban;
        (ban.strikes > 0).then_some((ban.strikes, ban.seconds))
    }

    /// The bans in force.
    pub fn live(&self, now: Now) -> impl Iterator<Item = (&BanKey, &Ban)> {
        self.entries
            .iter()
            .filter(move |(_, entry)| entry.ban.is_live(now.kernel))
            .map(|(key, entry)| (key, &entry.ban))
    }

    /// [`Book::live`] as people read them.
    pub fn rows(&self, now: Now) -> Vec<(BanKey, BanRow)> {
        let live = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.ban.is_live(now.kernel));
        live.map(|(key, entry)| (*key, row(key, entry, now))).collect()
    }

    /// Of a network, if it is banned.
    pub fn row(&self, key: &BanKey, now: Now) -> Option<BanRow> {
        let entry = self.entries.get(key)?;
        entry.ban.is_live(now.kernel).then(|| row(key, entry, now))
    }

    /// Those in force, the ones that end first before the others.
    pub fn list(&self, max: usize, now: Now) -> BanList {
        let mut bans: Vec<(&BanKey, &Entry)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.ban.is_live(now.kernel))
            .collect();
        bans.sort_by_key(|(key, entry)| (entry.ban.until_s, **key));
        BanList {
            max: max as u64,
            remembered: (self.entries.len() - bans.len()) as u64,
            bans: bans
                .into_iter()
                .map(|(key, entry)| row(key, entry, now))
                .collect(),
        }
    }

    /// Those in force by command and automatic, and the ones ever begun by service.
    pub fn counts(&self, now: Now) -> (u64, u64, BTreeMap<String, u64>) {
        let (mut by_hand, mut automatic) = (0, 0);
        for (_, ban) in self.live(now) {
            *match ban.origin {
                OPERATOR => &mut by_hand,
                _ => &mut automatic,
            } += 1;
        }
        (by_hand, automatic, self.begun.clone())
    }
}

fn row(key: &BanKey, entry: &Entry, now: Now) -> BanRow {
    let left =
        (entry.ban.until_s != FOREVER).then(|| u64::from(entry.ban.until_s.saturating_sub(now.kernel)));
    BanRow {
        prefix: show(key),
        since: entry.since,
        until: left.map(|left| now.wall + left),
        seconds_left: left,
        origin: match entry.ban.origin {
            OPERATOR => "operator",
            _ => "automatic",
        }
        .to_owned(),
        service: entry.service.clone(),
        strikes: entry.ban.strikes,
        why: entry.why.clone(),
    }
}

fn begins(key: &BanKey, entry: &Entry) -> String {
    let by = match (entry.ban.origin, entry.ban.strikes) {
        (OPERATOR, _) => "by command".to_owned(),
        (_, 0 | 1) => format!("by service {}", entry.service),
        (_, strikes) => format!("by service {}, strike {strikes}", entry.service),
    };
    match entry.ban.until_s {
        FOREVER => format!("banned {} for ever, {by}", show(key)),
        _ => {
            let seconds = entry.ban.until_s.saturating_sub(entry.ban.since_s);
            let time = crate::output::duration(std::time::Duration::from_secs(seconds.into()));
            format!("banned {} for {time}, {by}", show(key))
        }
    }
}

fn ends(key: &BanKey, entry: &Entry) -> String {
    match entry.service.as_str() {
        "" => format!("the ban of {} is over", show(key)),
        service => format!("the ban of {} by service {service} is over", show(key)),
    }
}

/// A second of the kernel's clock that is not the word for ever.
pub fn second(seconds: u64) -> u32 {
    u32::try_from(seconds).unwrap_or(u32::MAX).min(FOREVER - 1)
}

/// Whether a ban ends before another one, by the seconds that each has left; none: for ever.
pub fn is_sooner(this: Option<u64>, other: Option<u64>) -> bool {
    this.unwrap_or(u64::MAX) < other.unwrap_or(u64::MAX)
}

/// A ban after the machine has slept for so long.
pub fn earlier(ban: Ban, slept: u32) -> Ban {
    Ban {
        until_s: match ban.until_s {
            FOREVER => FOREVER,
            until_s => until_s.saturating_sub(slept),
        },
        since_s: ban.since_s.saturating_sub(slept),
        ..ban
    }
}

/// As the kernel knows it.
pub fn key(network: IpNetwork) -> BanKey {
    match network {
        IpNetwork::V4(v4) => BanKey::new(4, 0, u32::from(v4.network()).into(), v4.prefix()),
        IpNetwork::V6(v6) => {
            let bits = u128::from(v6.network());
            BanKey::new(6, (bits >> 64) as u64, bits as u64, v6.prefix())
        }
    }
}

/// `None` if it cannot be one.
pub fn network(key: &BanKey) -> Option<IpNetwork> {
    let address: IpAddr = match key.version {
        4 => Ipv4Addr::from(key.low as u32).into(),
        _ => Ipv6Addr::from(u128::from(key.high) << 64 | u128::from(key.low)).into(),
    };
    IpNetwork::new(address, key.len).ok()
}

pub fn show(key: &BanKey) -> String {
    network(key).map_or_else(|| format!("a network of /{}", key.len), prefix::show)
}

#[cfg(test)]
mod tests {
    use super::*;
    use firewall_common::ban::{Escalation, next};

    const NOW: Now = Now {
        wall: 1_000_000,
        boot: 5_100,
        kernel: 5_000,
    };

    fn later(seconds: u32) -> Now {
        Now {
            wall: NOW.wall + u64::from(seconds),
            boot: NOW.boot + u64::from(seconds),
            kernel: NOW.kernel + seconds,
        }
    }

    fn host(text: &str) -> BanKey {
        key(text.parse().unwrap())
    }

    fn by_hand(seconds: u32) -> Ban {
        Ban {
            until_s: NOW.kernel + seconds,
            since_s: NOW.kernel,
            origin: OPERATOR,
            seconds,
            ..Ban::default()
        }
    }

    fn names(number: u16) -> String {
        format!("service-{number}")
    }

    #[test]
    fn the_book_follows_the_table() {
        let mut book = Book::new("a");
        let (one, other) = (host("192.0.2.7"), host("2001:db8::/64"));
        let escalation = Escalation::DEFAULT;
        let first = next(None, NOW.kernel, 600, 3, escalation);
        book.banned(other, by_hand(60), "scans", NOW);
        let looked = book.look(&[(one, first), (other, by_hand(60))], names, NOW, 1000);
        assert_eq!(looked.begun, ["banned 192.0.2.7 for 10m, by service service-3"]);
        assert_eq!((looked.ended.len(), looked.forgotten.len()), (0, 0));
        let list = book.list(16, NOW);
        assert_eq!(
            list.bans
                .iter()
                .map(|row| row.prefix.as_str())
                .collect::<Vec<_>>(),
            ["2001:db8::/64", "192.0.2.7"]
        );
        assert_eq!(
            (list.bans[0].why.as_str(), list.bans[0].seconds_left),
            ("scans", Some(60))
        );
        assert_eq!(book.counts(NOW).0, 1);

        // Nothing new: nothing to tell.
        assert_eq!(
            book.look(&[(one, first), (other, by_hand(60))], names, later(1), 1000),
            Looked::default()
        );
        // One ends and is forgotten at once, the other ends and is remembered, then repeats.
        let looked = book.look(&[(one, first), (other, by_hand(60))], names, later(600), 1000);
        assert_eq!(
            looked.ended,
            [
                "the ban of 192.0.2.7 by service service-3 is over",
                "the ban of 2001:db8::/64 is over"
            ]
        );
        assert_eq!(looked.forgotten, [other]);
        let list = book.list(16, later(600));
        assert_eq!((list.bans.len(), list.remembered), (0, 1));
        let second = next(Some(&first), NOW.kernel + 700, 600, 3, escalation);
        let looked = book.look(&[(one, second)], names, later(701), 1000);
        assert_eq!(
            looked.begun,
            ["banned 192.0.2.7 for 20m, by service service-3, strike 2"]
        );
        // Two more went by unseen.
        let third = next(Some(&second), second.until_s, 1, 3, escalation);
        let fourth = next(Some(&third), third.until_s, 1, 3, escalation);
        book.look(&[(one, fourth)], names, later(9000), 1000);
        assert_eq!(book.counts(NOW).2["service-3"], 4);
        // Taken out by another hand.
        assert_eq!(book.look(&[], names, later(9001), 1000).ended.len(), 1);
        assert!(book.is_empty());
    }

    #[test]
    fn bans_outlive_the_agent_and_the_machine_and_the_clocks_that_jump() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::new("boot-1");
        book.asleep = NOW.asleep();
        let (short, long, ever) = (host("192.0.2.1"), host("192.0.2.2"), host("2001:db8::/32"));
        book.banned(short, by_hand(60), "short", NOW);
        book.banned(long, by_hand(600), "long", NOW);
        let forever = Ban {
            until_s: FOREVER,
            ..by_hand(0)
        };
        book.banned(ever, forever, "ever", NOW);
        let automatic = host("198.51.100.9");
        let ban = next(None, NOW.kernel, 3600, 2, Escalation::DEFAULT);
        let table = [
            (short, by_hand(60)),
            (long, by_hand(600)),
            (ever, forever),
            (automatic, ban),
        ];
        book.look(&table, names, NOW, 10);
        assert!(book.has_changed());
        book.write(dir.path(), NOW, Durable::No).unwrap();
        assert!(!book.has_changed());

        // The same boot: the wall clock does not matter.
        let now = Now {
            wall: 5,
            ..later(100)
        };
        let mut same = Book::read(dir.path(), "boot-1", now);
        assert_eq!(same.slept(now), 0);
        let missing = same.missing(&table[..3]);
        assert_eq!(missing.len(), 1);
        assert_eq!(
            (missing[0].0, missing[0].1.until_s),
            (automatic, NOW.kernel + 3600)
        );
        let rows = same.list(16, now).bans;
        assert_eq!(rows.len(), 3, "{rows:?}");
        assert_eq!((rows[0].seconds_left, rows[0].why.as_str()), (Some(500), "long"));
        assert_eq!((rows[2].seconds_left, rows[2].until), (None, None));
        assert_eq!(
            (rows[1].service.as_str(), rows[1].origin.as_str()),
            ("service-2", "automatic")
        );

        // What the table remembers of before was told then.
        let over = next(None, NOW.kernel - 900, 600, 2, Escalation::DEFAULT);
        let table = [(host("198.51.100.10"), over)];
        let begun = same.counts(now).2;
        let looked = same.look(&table, names, now, 5000);
        assert_eq!((looked.begun.len(), same.counts(now).2), (0, begun));
        assert_eq!(same.list(16, now).remembered, 1);

        // Another boot: the boot clock does not matter.
        let now = Now {
            wall: NOW.wall + 300,
            boot: 20,
            kernel: 20,
        };
        let other = Book::read(dir.path(), "boot-2", now);
        let left: Vec<u32> = other.missing(&[]).iter().map(|(_, ban)| ban.until_s).collect();
        assert_eq!(left, [320, 3320, FOREVER]);
        assert_eq!(
            Book::read(
                dir.path(),
                "boot-2",
                Now {
                    wall: u64::MAX / 2,
                    ..now
                }
            )
            .missing(&[])
            .len(),
            1
        );
    }

    #[test]
    fn a_ban_by_command_keeps_the_strikes_before_it() {
        let mut book = Book::new("a");
        let key = host("192.0.2.7");
        let first = next(None, NOW.kernel, 600, 3, Escalation::DEFAULT);
        book.look(&[(key, first)], names, NOW, 1000);
        assert_eq!(book.strikes(&key), Some((1, 600)));
        let by_command = Ban {
            strikes: 1,
            seconds: 600,
            ..by_hand(900)
        };
        book.banned(key, by_command, "", NOW);
        let looked = book.look(&[(key, by_command)], names, later(900), 1000);
        assert_eq!(looked.ended, ["the ban of 192.0.2.7 is over"]);
        assert_eq!(looked.forgotten, []);
        assert_eq!(book.strikes(&key), Some((1, 600)));
        let second = next(Some(&by_command), NOW.kernel + 950, 600, 3, Escalation::DEFAULT);
        let looked = book.look(&[(key, second)], names, later(950), 1000);
        assert_eq!(
            looked.begun,
            ["banned 192.0.2.7 for 20m, by service service-3, strike 2"]
        );
        assert_eq!(book.counts(later(950)).2["service-3"], 2);
        book.unbanned(&key);
        assert_eq!(book.strikes(&key), None);
    }

    #[test]
    fn for_ever_is_later_than_any_end() {
        for (this, other, expected) in [
            (Some(5), Some(600), true),
            (Some(600), Some(600), false),
            (Some(601), Some(600), false),
            (Some(3600), None, true),
            (None, Some(600), false),
            (None, None, false),
        ] {
            assert_eq!(is_sooner(this, other), expected, "{this:?} {other:?}");
        }
    }

    #[test]
    fn sleep_is_seen_once() {
        let mut book = Book::new("a");
        book.asleep = NOW.asleep();
        book.banned(host("192.0.2.1"), by_hand(600), "", NOW);
        assert_eq!(book.slept(NOW), 0);
        let woken = Now {
            boot: NOW.boot + 500,
            ..NOW
        };
        assert_eq!((book.slept(woken), book.slept(woken)), (500, 0));
        assert_eq!(book.list(1, woken).bans[0].seconds_left, Some(100));

        // Also when the agent was not there to see it.
        let dir = tempfile::tempdir().unwrap();
        book.write(dir.path(), woken, Durable::No).unwrap();
        let again = Now {
            boot: woken.boot + 60,
            ..woken
        };
        let mut book = Book::read(dir.path(), "a", again);
        assert_eq!(
            (book.slept(again), book.list(1, again).bans[0].seconds_left),
            (60, Some(40))
        );
    }

    #[test]
    fn what_is_kept_is_bounded_but_for_what_the_operator_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::new("a");
        book.asleep = NOW.asleep();
        let mut table = vec![(host("192.0.2.1"), by_hand(60))];
        book.banned(table[0].0, table[0].1, "", NOW);
        for number in 0..KEPT as u32 + 10 {
            let key = BanKey::new(4, 0, u64::from(0x0a00_0000 + number), 32);
            table.push((key, next(None, NOW.kernel, 100 + number, 1, Escalation::DEFAULT)));
        }
        book.look(&table, names, NOW, 10);
        book.write(dir.path(), NOW, Durable::No).unwrap();
        let kept = Book::read(dir.path(), "a", NOW).list(1, NOW);
        assert_eq!(kept.bans.len(), KEPT + 1);
        // The shortest went.
        assert_eq!(
            (kept.bans[0].seconds_left, kept.bans[1].seconds_left),
            (Some(60), Some(110))
        );
    }
}
