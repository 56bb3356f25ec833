//! The owner's way with bans: by command, restored at the start, followed and swept while it runs. The kernel's table is what
//! is in force; [`super::bans`] is the book about it.

use super::bannable;
use super::bans::{self, Book, Now};
use super::clock;
use super::owner::Owner;
use super::reload::{Refusal, chain};
use crate::api::types::{BanList, BanRequest, Banned, UnbanRequest, Unbanned};
use crate::datapath::{Datapath, DatapathError};
use crate::policy::prefix;
use crate::store::Durable;
use firewall_common::ban::{Ban, BanKey, FOREVER, LENGTHS, NO_LENGTH, OPERATOR};
use firewall_common::image::{Image, SlicePages};
use firewall_common::limit::{flag, profile};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Between looks at the table; of a big one, which takes some milliseconds to read.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_BIG: Duration = Duration::from_secs(5);
const BIG: usize = 4096;
/// Between writes of what automatic bans have changed.
const SAVE: Duration = Duration::from_secs(60);
/// Lines of the log about bans in a look.
const LINES: usize = 10;
/// Shorter prefixes, of IPv4 and IPv6, are more likely a slip than meant.
const WIDE: [u8; 2] = [8, 16];

/// What the owner keeps for it.
pub(super) struct Bans {
    pub(super) book: Book,
    boot_id: String,
    /// The book is that of the agent before, and the policy is known: there is something to follow.
    ready: bool,
    next_look: Instant,
    next_save: Instant,
    /// Version and length of the prefixes that services of the policy in force ban.
    pub(super) of_policy: BTreeSet<(u8, u8)>,
    /// As the configuration in force has them.
    lens: [[u8; LENGTHS]; 2],
}

impl Bans {
    pub(super) fn new(boot_id: &str) -> Bans {
        let now = Instant::now();
        Bans {
            book: Book::new(boot_id),
            boot_id: boot_id.to_owned(),
            ready: false,
            next_look: now,
            next_save: now + SAVE,
            of_policy: BTreeSet::new(),
            lens: [[NO_LENGTH; LENGTHS]; 2],
        }
    }

    /// For the configuration.
    pub(super) fn lens(&self) -> [[u8; LENGTHS]; 2] {
        self.lens
    }
}

impl Owner {
    pub(super) fn ban_clock(&self) -> Now {
        Now {
            wall: self.clock.wall().as_secs(),
            boot: self.clock.boot().as_secs(),
            kernel: clock::monotonic().as_secs() as u32,
        }
    }

    /// Brings back what the table has lost, and takes out what may not be banned any more. At the start, before the
    /// configuration is put in force; followed by [`Owner::follow_bans_from_now_on`] when the policy is.
    pub(super) fn restore_bans(&mut self) -> Result<(), DatapathError> {
        let now = self.ban_clock();
        self.bans.book = Book::read(&self.config.state_dir, &self.bans.boot_id, now);
        let Some(datapath) = self.datapath.as_mut() else {
            return Ok(());
        };
        let slept = self.bans.book.slept(now);
        let mut table = datapath.bans()?;
        for (key, ban) in &mut table {
            if slept > 0 {
                *ban = bans::earlier(*ban, slept);
                datapath.ban(*key, *ban)?;
            }
        }
        let mut lost = 0;
        for (key, ban) in self.bans.book.missing(&table) {
            match datapath.ban(key, ban) {
                Ok(()) => table.push((key, ban)),
                Err(DatapathError::BansFull { .. }) => lost += 1,
                Err(error) => return Err(error),
            }
        }
        if lost > 0 {
            log::warn!("{lost} bans of before are not in force: the table of bans is full");
        }
        let mut spared = Vec::new();
        for (key, _) in &table {
            if let Some(entry) = self.config.failsafe_of(key) {
                log::warn!(
                    "{} is not banned any more: the failsafe \"{entry}\" names it",
                    bans::show(key)
                );
                datapath.unban(*key)?;
                self.bans.book.unbanned(key);
                spared.push(*key);
            }
        }
        table.retain(|(key, _)| !spared.contains(key));
        self.note_bans_max();
        self.set_lens(&table, now);
        Ok(())
    }

    pub(super) fn follow_bans_from_now_on(&mut self) {
        self.bans.ready = true;
        self.look_at_bans();
    }

    /// When [`Owner::tend_bans`] has something to do.
    pub(super) fn next_tending(&self) -> Instant {
        self.bans.next_look
    }

    pub(super) fn tend_bans(&mut self, at: Instant) {
        if at >= self.bans.next_look {
            let idle = self.bans.book.is_empty() && !self.datapath.as_ref().is_some_and(Datapath::asks_bans);
            let entries = match idle {
                true => 0,
                false => self.look_at_bans(),
            };
            self.bans.next_look = at + if entries > BIG { LOOK_BIG } else { LOOK };
        }
        if at >= self.bans.next_save && self.bans.book.has_changed() {
            self.save_bans(Durable::No);
            self.bans.next_save = at + SAVE;
        }
    }

    /// Follows the table, takes out what is forgotten, and keeps the kernel looking for what is there. Returns how many entries
    /// there are. Also to be called before the policy changes, for the kernel names services by their numbers.
    pub(super) fn look_at_bans(&mut self) -> usize {
        match self.follow_bans() {
            Ok(entries) => {
                self.note("bans-table", None);
                entries
            }
            Err(error) => {
                let text = format!("the table of bans cannot be followed: {}", chain(&error));
                self.note("bans-table", Some(text));
                0
            }
        }
    }

    fn follow_bans(&mut self) -> Result<usize, DatapathError> {
        let now = self.ban_clock();
        let (Some(datapath), true) = (self.datapath.as_mut(), self.bans.ready) else {
            return Ok(0);
        };
        let mut table = datapath.bans()?;
        let slept = self.bans.book.slept(now);
        if slept > 0 {
            for (key, ban) in &mut table {
                *ban = bans::earlier(*ban, slept);
                datapath.ban(*key, *ban)?;
            }
        }
        let services = self.desired.as_ref().map(|desired| desired.policy.clone());
        let name = |number: u16| {
            let index = usize::from(number).checked_sub(1)?;
            Some(services.as_ref()?.services.get(index)?.name.clone())
        };
        let name = |number| name(number).unwrap_or_else(|| "unknown".to_owned());
        let looked = self
            .bans
            .book
            .look(&table, name, now, self.config.bans.escalation.forget_s);
        for key in &looked.forgotten {
            datapath.unban(*key)?;
        }
        datapath.settle_bans(now.kernel)?;
        tell(&looked.begun, "bans begun");
        tell(&looked.ended, "bans over");
        self.set_lens(&table, now);
        Ok(table.len())
    }

    /// Has the kernel look for all lengths that are needed, those of bans in force first.
    fn set_lens(&mut self, table: &[(BanKey, Ban)], now: Now) {
        let live = table.iter().filter(|(_, ban)| ban.is_live(now.kernel));
        let mut used: BTreeSet<(u8, u8)> = live.map(|(key, _)| (key.version, key.len)).collect();
        let mut lost = Vec::new();
        for (version, len) in self.bans.of_policy.clone() {
            let taken = used.iter().filter(|(of, _)| *of == version).count();
            if taken < LENGTHS {
                used.insert((version, len));
            } else if !used.contains(&(version, len)) {
                lost.push(format!("/{len} of IPv{version}"));
            }
        }
        let text = (!lost.is_empty()).then(|| {
            format!(
                "services cannot ban sources of {}: bans of {LENGTHS} other prefix lengths are in force, and no more are looked \
                 for; `ravelin bans` lists them",
                lost.join(", ")
            )
        });
        self.note("bans", text);
        let lens = [4, 6].map(|version| {
            let mut lens = [NO_LENGTH; LENGTHS];
            let used = used.iter().filter(|(of, _)| *of == version);
            for (place, (_, len)) in lens.iter_mut().zip(used) {
                *place = *len;
            }
            lens
        });
        if lens != self.bans.lens {
            self.bans.lens = lens;
            self.configure = true;
        }
    }

    pub(super) fn save_bans(&mut self, durable: Durable) -> bool {
        let now = self.ban_clock();
        let saved = self.bans.book.write(&self.config.state_dir, now, durable);
        if let Err(error) = &saved {
            log::warn!("cannot keep the bans for after a restart of the machine: {error}");
        }
        saved.is_ok()
    }

    pub(super) fn ban_list(&mut self) -> BanList {
        self.look_at_bans();
        let max = self.datapath.as_ref().map_or(0, Datapath::bans_max);
        self.bans.book.list(max, self.ban_clock())
    }

    pub(super) fn ban(&mut self, request: &BanRequest) -> Result<Banned, Refusal> {
        let network = prefix::parse(&request.prefix)
            .map_err(|error| Refusal::Invalid(error.to_string()))?
            .network;
        let key = bans::key(network);
        if let Some(why) = bannable::pointless(network) {
            return Err(Refusal::Invalid(format!("{} is {why}", bans::show(&key))));
        }
        self.may_be_banned(&key, request.force)?;
        if bannable::is_link_local(network) && !request.force {
            return Err(Refusal::Conflict(format!(
                "{} is link-local: it may be the gateway, or a neighbour on any link; --force bans it all the same",
                bans::show(&key)
            )));
        }
        self.look_at_bans();
        let now = self.ban_clock();
        self.has_room(&key, now)?;
        let before = self.bans.book.row(&key, now);
        if let Some(before) = before.as_ref().filter(|_| !request.force)
            && bans::is_sooner(request.for_seconds, before.seconds_left)
        {
            return Err(Refusal::Conflict(format!(
                "this would end a ban sooner, which takes --force: {}",
                crate::output::ban_sentence(before)
            )));
        }
        // A second word on the same network adds to the first.
        let why = match (request.why.as_str(), &before) {
            ("", Some(before)) => before.why.clone(),
            (why, _) => why.to_owned(),
        };
        let seconds = request.for_seconds.map(bans::second);
        let (strikes, last) = self.bans.book.strikes(&key).unzip();
        let strikes = strikes.unwrap_or_default();
        let ban = Ban {
            until_s: seconds.map_or(FOREVER, |seconds| {
                bans::second(u64::from(now.kernel) + u64::from(seconds))
            }),
            since_s: now.kernel,
            origin: OPERATOR,
            strikes,
            seconds: last.or(seconds).unwrap_or(u32::MAX),
            ..Ban::default()
        };
        let failed = |error: DatapathError| match error {
            DatapathError::BansFull { max } => Refusal::Conflict(format!(
                "the table of bans is full: it holds {max}; `ravelin unban` makes room, and `max` of [bans] in agent.toml \
                 makes it bigger"
            )),
            error => Refusal::Failed(format!("the kernel did not take the ban: {}", chain(&error))),
        };
        let Some(datapath) = self.datapath.as_mut() else {
            return Err(Refusal::Failed("everything is detached".into()));
        };
        datapath.ban(key, ban).map_err(failed)?;
        self.bans.book.banned(key, ban, &why, now);
        self.look_at_bans();
        // Its length may be a new one, which the kernel is to look for before this is answered.
        self.configure_now().map_err(failed)?;
        let for_how_long = match request.for_seconds {
            None => "for ever".to_owned(),
            Some(seconds) => format!("for {}", crate::output::duration(Duration::from_secs(seconds))),
        };
        log::info!(
            "banned {} {for_how_long}, by command: {}",
            bans::show(&key),
            shown(&why)
        );
        Ok(Banned {
            kept: self.save_bans(Durable::Yes),
            ban: self.bans.book.row(&key, now).unwrap_or_default(),
            before,
        })
    }

    /// Whether a network may be banned by command at all.
    fn may_be_banned(&self, key: &BanKey, force: bool) -> Result<(), Refusal> {
        let shown = bans::show(key);
        if let Some(entry) = self.config.failsafe_of(key) {
            return Err(Refusal::Conflict(format!(
                "{shown} is not banned: the failsafe \"{entry}\" names sources of it, and those are never banned; ban what is \
                 beside them, or take the entry out of agent.toml"
            )));
        }
        for own in self.links.own_addresses() {
            let own_key = bans::key(own.into());
            if own_key == *key {
                return Err(Refusal::Conflict(format!(
                    "{own} is an address of this host; what comes in from it is dropped as martian anyway"
                )));
            }
            if key.overlaps(&own_key) && !force {
                return Err(Refusal::Conflict(format!(
                    "{shown} holds {own}, an address of this host: its neighbours and gateway would be cut off; ban single \
                     addresses, or add --force"
                )));
            }
        }
        let widest = WIDE[usize::from(key.version == 6)];
        if key.len < widest && !force {
            return Err(Refusal::Conflict(format!(
                "{shown} is a large part of the internet: prefixes shorter than /{widest} are banned with --force only"
            )));
        }
        Ok(())
    }

    /// Whether its length is one that the kernel looks for, or can be.
    fn has_room(&self, key: &BanKey, now: Now) -> Result<(), Refusal> {
        let mut used: BTreeSet<u8> = self
            .bans
            .book
            .live(now)
            .filter(|(of, _)| of.version == key.version)
            .map(|(key, _)| key.len)
            .collect();
        let of_policy = self.bans.of_policy.iter();
        used.extend(
            of_policy
                .filter(|(version, _)| *version == key.version)
                .map(|(_, len)| len),
        );
        if used.contains(&key.len) || used.len() < LENGTHS {
            return Ok(());
        }
        let lengths: Vec<String> = used.iter().map(|len| format!("/{len}")).collect();
        Err(Refusal::Conflict(format!(
            "bans of {LENGTHS} prefix lengths are in force for IPv{}, and the kernel looks for no more: {}; ban by one of \
             these, or unban what uses one of them up",
            key.version,
            lengths.join(", ")
        )))
    }

    pub(super) fn unban(&mut self, request: &UnbanRequest) -> Result<Unbanned, Refusal> {
        self.look_at_bans();
        let now = self.ban_clock();
        let keys = match &request.prefix {
            None => self.bans.book.all(),
            Some(text) => {
                let network = prefix::parse(text)
                    .map_err(|error| Refusal::Invalid(error.to_string()))?
                    .network;
                let key = bans::key(network);
                if self.bans.book.row(&key, now).is_none() {
                    return Err(Refusal::Missing(self.not_banned(&key, now)));
                }
                vec![key]
            }
        };
        let Some(datapath) = self.datapath.as_mut() else {
            return Err(Refusal::Failed("everything is detached".into()));
        };
        let forgotten = keys.len();
        let mut unbanned = Vec::new();
        for key in keys {
            if let Err(error) = datapath.unban(key) {
                let text = format!(
                    "the kernel did not give up the ban of {}: {}",
                    bans::show(&key),
                    chain(&error)
                );
                return Err(Refusal::Failed(text));
            }
            unbanned.extend(self.bans.book.row(&key, now));
            self.bans.book.unbanned(&key);
        }
        match &unbanned[..] {
            [] if forgotten == 0 => return Ok(Unbanned { unbanned }),
            [] => log::info!("{forgotten} bans that were over are forgotten, by command"),
            [one] => log::info!("the ban of {} is over, by command", one.prefix),
            many => log::info!("{} bans are over, by command", many.len()),
        }
        self.look_at_bans();
        self.save_bans(Durable::Yes);
        Ok(Unbanned { unbanned })
    }

    /// With the bans that it may have been meant for.
    fn not_banned(&self, key: &BanKey, now: Now) -> String {
        const NAMED: usize = 3;
        let shown = bans::show(key);
        let live: Vec<&BanKey> = self.bans.book.live(now).map(|(key, _)| key).collect();
        if let Some(around) = live.iter().find(|ban| ban.len < key.len && ban.overlaps(key)) {
            let around = bans::show(around);
            return format!(
                "{shown} itself is not banned, but {around} around it is: `ravelin unban {around}`"
            );
        }
        let within: Vec<String> = live
            .iter()
            .filter(|ban| ban.len > key.len && ban.overlaps(key))
            .map(|ban| bans::show(ban))
            .collect();
        match within.len() {
            0 => format!("{shown} is not banned; `ravelin bans` lists what is"),
            1 => format!("{shown} itself is not banned, but {} within it is", within[0]),
            count if count <= NAMED => format!(
                "{shown} itself is not banned, but {} within it are",
                within.join(", ")
            ),
            count => format!(
                "{shown} itself is not banned, but {} and {} more within it are",
                within[..NAMED].join(", "),
                count - NAMED
            ),
        }
    }

    /// A table keeps its size as long as its pins live.
    fn note_bans_max(&mut self) {
        let Some(max) = self.datapath.as_ref().map(Datapath::bans_max) else {
            return;
        };
        let asked = self.config.bans.max;
        let text = format!(
            "the table of bans keeps its size of {max}, though {asked} are configured; `ravelin detach` and a new start make it \
             anew: the host stands open in between"
        );
        self.note("bans-max", (max != asked as usize).then_some(text));
    }
}

/// Version and length of the prefixes that the services of an image ban.
pub(super) fn banned_by(image: &[u8]) -> BTreeSet<(u8, u8)> {
    let pages = SlicePages(image);
    let Some(image) = Image::open(&pages) else {
        return BTreeSet::new();
    };
    let profiles = (1..).map_while(|number| image.profile(number));
    let banning = profiles.filter(|profile| profile.flags() & flag::BAN != 0);
    banning
        .flat_map(|profile| {
            let [v4, v6] = profile.u16(profile::LEN_V4).to_le_bytes();
            [(4, v4), (6, v6)]
        })
        .collect()
}

fn tell(lines: &[String], of_what: &str) {
    for line in lines.iter().take(LINES) {
        log::info!("{line}");
    }
    if lines.len() > LINES {
        log::info!("and {} more {of_what}", lines.len() - LINES);
    }
}

/// A reason in the log.
fn shown(why: &str) -> String {
    match why {
        "" => "no reason given".to_owned(),
        why => format!("{why:?}"),
    }
}
