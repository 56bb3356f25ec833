//! Whether a challenge can be given to who exceeds a limit, by what the kernel, its settings and the interfaces can do.
//!
//! [`lacks`] and [`settings`] are pure; `ravelin doctor` asks the same. The owner looks from time to time, for settings
//! change and nobody tells. Until it is known which ports are translated to elsewhere none is given: no listener
//! here may answer for those.

use super::links::State;
use super::owner::Owner;
use super::reload::chain;
use crate::datapath::{Datapath, Ingress, device};
use crate::host::cookies::Cookies;
use crate::host::published::{self, Found, Published};
use crate::policy::limits::OnExcess;
use crate::policy::model::Policy;
use firewall_common::control::{CHALLENGE_ALWAYS, CHALLENGE_GIVE, CHALLENGE_OPTIONS, CHALLENGE_SCALE_SHIFT};
use firewall_common::cookie::{PUBLISHED_WORDS, back, published_bit};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Between looks at the settings and the interfaces.
const LOOK: Duration = Duration::from_secs(5);
/// While a list is under way.
const SOON: Duration = Duration::from_millis(100);
/// Between lists of translated ports, which take programs of others.
const LIST: Duration = Duration::from_secs(60);

/// How answers leave an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    Sent,
    /// By the other end of a veth, which takes what is redirected.
    Redirected,
    /// It is filtered at TC.
    NotAtTc,
    /// A veth whose other end takes nothing from XDP, or does not say.
    NotTaken,
}

impl Back {
    /// `sends`: what [`device::XdpFeatures::sends`] says, if anything.
    pub fn of(ingress: Ingress, kind: Option<&str>, sends: Option<bool>) -> Back {
        match (ingress, kind) {
            (Ingress::Tc(_), _) => Back::NotAtTc,
            (Ingress::Native, Some("veth")) if sends == Some(true) => Back::Redirected,
            (Ingress::Native, Some("veth")) => Back::NotTaken,
            (Ingress::Native | Ingress::Generic, _) => Back::Sent,
        }
    }

    /// For the map `ANSWERS`.
    pub const fn number(self) -> u32 {
        match self {
            Back::Sent => back::TX,
            Back::Redirected => back::REDIRECT,
            Back::NotAtTc | Back::NotTaken => back::NONE,
        }
    }
}

/// Something that a challenge needs and that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// `net.ipv4.tcp_syncookies`, `eth1`.
    pub subject: String,
    pub text: String,
    pub fix: String,
}

/// The services of a policy that ask for a challenge.
pub fn asking(policy: &Policy) -> Vec<&str> {
    services(policy, |on_excess| *on_excess != OnExcess::Drop)
}

/// The services of a policy that ban who proves an address and exceeds a limit.
pub fn banning(policy: &Policy) -> Vec<&str> {
    services(policy, |on_excess| matches!(on_excess, OnExcess::Ban(_)))
}

/// The services with limits, of their own or of a group, that do such a thing on excess.
fn services(policy: &Policy, does: impl Fn(&OnExcess) -> bool) -> Vec<&str> {
    let limited = policy.services.iter().filter(|service| {
        let groups = service.groups.iter().map(|group| &group.limits);
        let mut limits = groups.chain([&service.limits]);
        limits.any(|limits| !limits.is_empty() && does(&limits.on_excess))
    });
    limited.map(|service| service.name.as_str()).collect()
}

/// Why hardly anybody will be banned, if that is so: a ban takes a proof, a proof a cookie, and with `tcp_syncookies` = 1 the
/// kernel gives none while the listener has room.
pub fn unproven(banning: &[&str], cookies: &Cookies) -> Option<String> {
    let first = banning.first().filter(|_| cookies.syncookies == Some(1))?;
    let who = match banning.len() {
        1 => format!("the service {first} bans"),
        more => format!("{first} and {} more services ban", more - 1),
    };
    Some(format!(
        "{who} only who proves the address by a SYN cookie, and with net.ipv4.tcp_syncookies = 1 the kernel gives cookies only \
         while a listener's queue is full: others are limited, not banned; sysctl -w net.ipv4.tcp_syncookies=2"
    ))
}

/// What is missing. `writes`: the kernel lets XDP write answers; `interfaces`: by name.
pub fn lacks(writes: bool, cookies: &Cookies, interfaces: &[(String, Back)]) -> Vec<Lack> {
    let lack = |subject: &str, text: String, fix: String| Lack {
        subject: subject.to_owned(),
        text,
        fix,
    };
    let mut found = Vec::new();
    if !writes {
        found.push(lack(
            "version",
            "XDP cannot write answers here: kernel 5.18 can, with multi-buffer XDP".into(),
            "boot kernel 5.18 or later, and take frags out of `without` in agent.toml".into(),
        ));
    }
    const SYNCOOKIES: &str = "net.ipv4.tcp_syncookies";
    match cookies.syncookies {
        Some(0) => found.push(lack(
            SYNCOOKIES,
            format!("{SYNCOOKIES} is 0, so the kernel makes no cookies"),
            format!("sysctl -w {SYNCOOKIES}=2, and keep it in /etc/sysctl.d"),
        )),
        None => found.push(lack(
            SYNCOOKIES,
            "this kernel is built without SYN cookies".into(),
            "boot one with CONFIG_SYN_COOKIES".into(),
        )),
        Some(_) => {}
    }
    for (name, back) in interfaces {
        match back {
            Back::Sent | Back::Redirected => {}
            Back::NotAtTc => found.push(lack(
                name,
                format!("{name} is filtered at TC, where nothing can be answered"),
                format!("filter {name} at XDP: hook = \"auto\" in agent.toml, where XDP is free"),
            )),
            Back::NotTaken => found.push(lack(
                name,
                format!("{name} is a veth whose other end takes no frames from XDP"),
                "ethtool -K NAME gro on at the other end, or without = [\"native\"] in agent.toml".into(),
            )),
        }
    }
    found
}

/// [`firewall_common::control::Config::challenge`].
pub fn settings(writes: bool, cookies: &Cookies) -> u32 {
    if !writes || !cookies.given() {
        return 0;
    }
    let always = cookies.syncookies == Some(2);
    CHALLENGE_GIVE
        | if always { CHALLENGE_ALWAYS } else { 0 }
        | if cookies.carry_options() {
            CHALLENGE_OPTIONS
        } else {
            0
        }
        | u32::from(cookies.scale) << CHALLENGE_SCALE_SHIFT
}

/// What these settings come to.
fn told(settings: u32) -> String {
    if settings & CHALLENGE_GIVE == 0 {
        return "no challenges are given from now on".into();
    }
    format!(
        "challenges can be given: {}, {}",
        if settings & CHALLENGE_ALWAYS == 0 {
            "once the queue of a listener is full"
        } else {
            "as soon as a limit is exceeded"
        },
        if settings & CHALLENGE_OPTIONS == 0 {
            "with the MSS only"
        } else {
            "with window scale, SACK and timestamps"
        }
    )
}

/// The map `PUBLISHED`: the TCP ports among these.
fn words(ports: &BTreeSet<Published>) -> Vec<u64> {
    let mut words = vec![0; PUBLISHED_WORDS as usize];
    let tcp = ports.iter().filter(|one| one.protocol == "tcp");
    for port in tcp.flat_map(|one| one.first..=one.last) {
        let (word, bit) = published_bit(port);
        words[word as usize] |= bit;
    }
    words
}

/// What the owner remembers between looks.
pub struct Challenge {
    next_look: Instant,
    next_list: Instant,
    /// A list under way.
    list: Option<oneshot::Receiver<Found>>,
    /// Translated ports are known.
    listed: bool,
    published: Vec<u64>,
    /// For the configuration.
    pub(super) settings: u32,
}

impl Default for Challenge {
    fn default() -> Self {
        Challenge {
            next_look: Instant::now(),
            next_list: Instant::now(),
            list: None,
            listed: false,
            published: Vec::new(),
            settings: 0,
        }
    }
}

impl Challenge {
    /// Something changed that matters.
    pub fn look_soon(&mut self) {
        self.next_look = Instant::now();
    }

    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.next_look
    }
}

impl Owner {
    pub(super) fn look_at_challenge(&mut self, now: Instant) {
        self.challenge.next_look = now + LOOK;
        // Of a policy that an earlier agent put in force nothing is known: it may ask.
        let asking: Option<Vec<String>> = self.desired.as_ref().map(|desired| {
            let names = asking(&desired.policy).into_iter();
            names.map(str::to_owned).collect()
        });
        let asked = asking.as_ref().is_none_or(|names| !names.is_empty());
        let Some(writes) = self.datapath.as_ref().map(Datapath::writes_answers) else {
            return;
        };
        let cookies = Cookies::read();
        let mut settings = 0;
        let mut lacking = Vec::new();
        if asked {
            self.list_published(now);
            let interfaces = self.answers();
            lacking = lacks(writes, &cookies, &interfaces);
            if self.challenge.listed {
                settings = self::settings(writes, &cookies);
            }
        }
        if self.challenge.settings != settings {
            log::info!("{}", told(settings));
            self.challenge.settings = settings;
            self.configure = true;
        }
        let banning = self.desired.as_ref().map(|desired| banning(&desired.policy));
        let text = banning.and_then(|names| unproven(&names, &cookies));
        self.note("proof", text);
        let names = asking.filter(|_| !lacking.is_empty());
        self.note("challenge", names.and_then(|names| words_of(&names, &lacking)));
    }

    /// Finds out how answers leave each interface, and tells the programs.
    fn answers(&mut self) -> Vec<(String, Back)> {
        let attached = self.links.states().filter_map(|(interface, state)| match state {
            State::Attached(attachment) => Some((interface, attachment.ingress)),
            State::Refused { .. } => None,
        });
        let mut found = Vec::new();
        let mut numbers = Vec::new();
        for (interface, ingress) in attached {
            let kind = interface.kind.as_deref();
            let sends = (kind == Some("veth"))
                .then(|| device::device(interface.index).xdp)
                .flatten()
                .map(|xdp| xdp.sends);
            let back = Back::of(ingress, kind, sends);
            numbers.push((interface.index, back.number()));
            found.push((interface.name.clone(), back));
        }
        if let Some(datapath) = &mut self.datapath {
            for (index, number) in numbers {
                if let Err(error) = datapath.set_answers(index, number) {
                    log::warn!("no challenges on interface {index}: {}", chain(&error));
                }
            }
        }
        found
    }

    /// Takes a list of translated ports that is ready, or asks for a new one.
    fn list_published(&mut self, now: Instant) {
        let challenge = &mut self.challenge;
        let Some(list) = &mut challenge.list else {
            if now >= challenge.next_list {
                challenge.next_list = now + LIST;
                challenge.next_look = now + SOON;
                let (done, list) = oneshot::channel();
                challenge.list = Some(list);
                tokio::spawn(async move {
                    // Who waits for it may have ended.
                    let _ = done.send(published::gather().await);
                });
            }
            return;
        };
        let found = match list.try_recv() {
            Ok(found) => found,
            Err(oneshot::error::TryRecvError::Empty) => {
                challenge.next_look = now + SOON;
                return;
            }
            Err(oneshot::error::TryRecvError::Closed) => {
                challenge.list = None;
                return;
            }
        };
        challenge.list = None;
        let mut words = words(&found.ports);
        if !found.problems.is_empty() {
            // What was known before stays known.
            for (word, before) in words.iter_mut().zip(&challenge.published) {
                *word |= before;
            }
        }
        if let Some(datapath) = &mut self.datapath {
            match datapath.set_published(&words) {
                Ok(()) => challenge.listed |= found.problems.is_empty(),
                Err(error) => log::warn!("no challenges: {}", chain(&error)),
            }
        }
        challenge.published = words;
        let problem = (!challenge.listed)
            .then(|| found.problems.first())
            .flatten()
            .map(|problem| {
                format!("no challenge is given while it is not known which ports are translated: {problem}")
            });
        self.note("translated", problem);
    }
}

/// What becomes of the excess then.
pub const INSTEAD: &str = ", and excess is dropped instead where none can be given";

/// A sentence for the status.
fn words_of(names: &[String], lacks: &[Lack]) -> Option<String> {
    let first = names.first()?;
    let who = match names.len() {
        1 => format!("the service {first} asks for a challenge"),
        more => format!("{first} and {} more services ask for a challenge", more - 1),
    };
    let what: Vec<String> = lacks
        .iter()
        .map(|lack| format!("{}; {}", lack.text, lack.fix))
        .collect();
    Some(format!("{who}{INSTEAD}: {}", what.join(". Also, ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::TcMode;
    use crate::policy::file;
    use std::path::Path;

    fn cookies(syncookies: i64, timestamps: i64) -> Cookies {
        Cookies {
            syncookies: Some(syncookies),
            timestamps: Some(timestamps),
            sack: Some(1),
            window_scaling: Some(1),
            loose: None,
            scale: 7,
        }
    }

    #[test]
    fn settings_say_what_the_programs_may_do() {
        assert_eq!(settings(true, &cookies(0, 2)), 0);
        assert_eq!(settings(false, &cookies(2, 2)), 0);
        assert_eq!(
            settings(true, &cookies(1, 1)),
            CHALLENGE_GIVE | 7 << CHALLENGE_SCALE_SHIFT
        );
        assert_eq!(
            settings(true, &cookies(2, 2)),
            CHALLENGE_GIVE | CHALLENGE_ALWAYS | CHALLENGE_OPTIONS | 7 << CHALLENGE_SCALE_SHIFT
        );
    }

    #[test]
    fn answers_leave_where_something_takes_them() {
        use Back::{NotAtTc, NotTaken, Redirected, Sent};
        for (ingress, kind, sends, back) in [
            (Ingress::Native, None, None, Sent),
            (Ingress::Native, None, Some(false), Sent),
            (Ingress::Native, Some("veth"), Some(true), Redirected),
            (Ingress::Native, Some("veth"), Some(false), NotTaken),
            (Ingress::Native, Some("veth"), None, NotTaken),
            (Ingress::Generic, Some("veth"), Some(false), Sent),
            (Ingress::Tc(TcMode::Tcx), None, Some(true), NotAtTc),
        ] {
            assert_eq!(
                Back::of(ingress, kind, sends),
                back,
                "{ingress} {kind:?} {sends:?}"
            );
        }
    }

    #[test]
    fn that_hardly_anybody_is_banned_is_told_where_cookies_are_rare() {
        let text = unproven(&["web", "api"], &cookies(1, 1)).expect("a sentence");
        assert!(text.starts_with("web and 1 more services ban only"), "{text}");
        assert!(text.contains("sysctl -w net.ipv4.tcp_syncookies=2"), "{text}");
        assert_eq!(unproven(&["web"], &cookies(2, 1)), None);
        assert_eq!(unproven(&[], &cookies(1, 1)), None);
    }

    #[test]
    fn what_is_missing_is_told_with_its_fix() {
        let interfaces = [
            ("eth0".to_owned(), Back::Sent),
            ("eth1".to_owned(), Back::NotAtTc),
            ("eth2".to_owned(), Back::NotTaken),
        ];
        assert_eq!(lacks(true, &cookies(1, 1), &interfaces[..1]), []);
        let all = lacks(false, &cookies(0, 1), &interfaces);
        let subjects: Vec<&str> = all.iter().map(|lack| lack.subject.as_str()).collect();
        assert_eq!(subjects, ["version", "net.ipv4.tcp_syncookies", "eth1", "eth2"]);
        let text = words_of(&["web".into()], &all).expect("a sentence");
        for part in [
            "service web",
            "5.18",
            "sysctl -w net.ipv4.tcp_syncookies=2",
            "eth1 is filtered at TC",
            "gro on",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(words_of(&[], &all), None);
    }

    #[test]
    fn ports_that_are_translated_are_noted() {
        let port = |protocol: &str, first, last| Published {
            protocol: protocol.into(),
            first,
            last,
            address: None,
            to: String::new(),
            by: "nftables",
        };
        let words = words(
            &[
                port("tcp", 63, 65),
                port("udp", 80, 80),
                port("tcp", 65535, 65535),
            ]
            .into(),
        );
        assert_eq!((words[0], words[1], words[1023]), (1 << 63, 3, 1 << 63));
        assert_eq!(words.iter().map(|word| word.count_ones()).sum::<u32>(), 4);
    }

    #[test]
    fn a_service_asks_by_its_limits_or_by_those_of_a_group() {
        let policy = |text: &str| {
            let text = format!("version = 1\n{text}");
            file::parse(&text, Path::new("policy.toml"), 0).unwrap().policy
        };
        let web = "[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\nallow = [\"any\"]\n";
        let limits = "[service.limits]\nnew_connections = { total = \"5/s\" }\n";
        assert_eq!(asking(&policy(web)), Vec::<&str>::new());
        assert_eq!(asking(&policy(&format!("{web}{limits}"))), Vec::<&str>::new());
        for action in ["challenge", "ban 10m"] {
            let asks = format!("{web}{limits}on_excess = \"{action}\"\n");
            assert_eq!(asking(&policy(&asks)), ["web"], "{action}");
        }
        let group = "[[service.limit]]\nfor = \"192.0.2.0/24\"\nnew_connections = { total = \"5/s\" }\n\
                     on_excess = \"challenge\"\n";
        assert_eq!(asking(&policy(&format!("{web}{group}"))), ["web"]);
    }
}
