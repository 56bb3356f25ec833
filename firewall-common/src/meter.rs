//! What limits say of a packet that a rule allows.
//!
//! In turn: is it of a connection that proved its peer's address (asked only while a challenge is on), the rates of packets
//! and of bytes, the number of connections, the rate of new ones. Of each, the source's own limit comes before the totals, so
//! that one source in excess takes nothing of what belongs to all.
//!
//! **Without a challenge** excess drops. **With one**, who has not proven an address may use half of each capacity, and a SYN
//! in excess is answered with a cookie: nothing is charged or remembered for it, and the answer, which only the
//! holder of the address can give, is charged as a new connection. So a flood of forged SYNs takes nothing from those
//! whose addresses it forges. Where the kernel gives no cookie because the listener has room (`tcp_syncookies` = 1), the
//! listener takes the SYN, and while the scope is challenged the ACK that ends the handshake is charged in its stead.
//!
//! **Bans** follow a cookie that came back, and nothing else: no forged packet bans anybody.

use crate::control::Config;
use crate::flow::Set;
use crate::image::{Image, LimitedBy, Page, Pages};
use crate::limit::{self, Charge, Kind, Profile, Rate, count, flag, profile, scope, source_hash};
use crate::packet::{Packet, protocol, tcp};
use crate::verdict::Reason;

/// What is known of a packet beside itself: a plain word, as it crosses between functions of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told(pub u32);

impl Told {
    /// Nothing was asked yet.
    pub const NOTHING: Told = Told(0);
    /// A TCP segment to a service: no socket of this host has it. A container's, perhaps.
    pub const UNKNOWN: Told = Told(1);
    /// Of a connection.
    pub const CONNECTED: Told = Told(2);
    /// It ends a handshake that a listener remembers, or brings back a cookie that was not given for it here: the kernel's own, or
    /// one that fits by chance (see [`crate::cookie::asked`]).
    pub const REMEMBERED: Told = Told(3);
    /// It brings a valid cookie back.
    pub const PROVEN: Told = Told(4);
    /// Of no connection, though a listener has the port.
    pub const STRAY: Told = Told(5);
    /// A challenge cannot be given: no listener, no room in the frame.
    pub const FAILED: Told = Told(6);
    /// The frame of the SYN is an answer with a cookie now.
    pub const GIVEN: Told = Told(7);
    /// The kernel leaves the SYN to the listener, which has room.
    pub const DECLINED: Told = Told(8);

    /// What a look into the socket table found: 0 nothing, 1 a connection, 2 a handshake that a listener remembers, 3 one that a
    /// cookie ends, 4 none of those though there is a listener.
    #[inline(always)]
    pub const fn handshake(found: u64) -> Told {
        Told(Told::UNKNOWN.0 + found as u32)
    }
    /// What became of a challenge: 0 failed, 1 given, 2 declined.
    #[inline(always)]
    pub const fn challenge(outcome: u64) -> Told {
        Told(Told::FAILED.0 + outcome as u32)
    }

    #[inline(always)]
    const fn is(self, other: Told) -> bool {
        self.0 == other.0
    }
}

/// What limits say: a plain word. The reason of an excess (8 bits, 0 for none), its ending (24 bits), then what is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metered(pub u64);

impl Metered {
    pub const PASS: Metered = Metered(0);
    /// Passes and opens a connection.
    pub const OPENS: Metered = Metered(1 << 32);
    /// The state cannot be read.
    pub const UNREADABLE: Metered = Metered(Reason::NoPolicy as u64);
    /// Nothing is said before the socket table has told what it knows.
    pub const ASK: Metered = Metered(1 << 33);
    const CHALLENGE: u64 = 1 << 34;
    const BAN: u64 = 1 << 35;
    /// Charged elsewhere.
    const FREE: u64 = 1 << 36;
    /// Charged without what is reserved for those who proved their address.
    const RESERVES: u64 = 1 << 37;

    /// Excess; endings are counted from `first`.
    #[inline(always)]
    const fn excess(reason: u8, first: u32) -> Metered {
        let ending = first.wrapping_add(reason.wrapping_sub(Reason::FIRST_EXCESS) as u32);
        Metered(reason as u64 | (ending as u64 & 0xff_ffff) << 8)
    }
    #[inline(always)]
    pub const fn reason(self) -> Option<Reason> {
        Reason::from_number(self.0 as u8)
    }
    #[inline(always)]
    const fn is(self, reason: Reason) -> bool {
        self.0 as u8 == reason.number()
    }
    #[inline(always)]
    pub const fn ending(self) -> u32 {
        (self.0 >> 8) as u32 & 0xff_ffff
    }
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & Self::OPENS.0 != 0
    }
    #[inline(always)]
    pub const fn asks(self) -> bool {
        self.0 & Self::ASK.0 != 0
    }
    #[inline(always)]
    const fn reserves(self) -> bool {
        self.0 & Self::RESERVES != 0
    }
    /// Whether it is to be charged.
    #[inline(always)]
    const fn is_charged(self) -> bool {
        self.0 & (Self::ASK.0 | Self::CHALLENGE | Self::FREE | 0xff) == 0
    }
    /// A challenge is to be given; this is how the packet ends if it is.
    #[inline(always)]
    pub const fn challenges(self) -> bool {
        self.0 & Self::CHALLENGE != 0
    }
    /// The source is to be banned.
    #[inline(always)]
    pub const fn bans(self) -> bool {
        self.0 & Self::BAN != 0
    }
}

/// What limits ask of their surroundings.
pub trait Limiter {
    /// Words of a scope.
    type Scope: Set;
    /// A line of a sketch.
    type Line: Set;

    /// The node configuration in force.
    fn config(&self) -> Option<&Config>;
    /// Keys the hash of sources.
    fn seed(&self) -> u64;
    /// Monotonic clock, nanoseconds: the exact one, or that of the last tick.
    fn now_ns(&self, exact: bool) -> u64;
    /// The scope of the kernel that a scope of the image in force is bound to.
    fn bound(&self, scope: u16) -> Option<u32>;
    /// The words of a scope of the kernel.
    fn scope(&self, scope: u32) -> Option<Self::Scope>;
    /// A line of a sketch.
    fn line(&self, sketch: Sketch, line: u32) -> Option<Self::Line>;
    /// [`Charge::source`] in a line.
    #[inline(always)]
    fn charge(&self, sketch: Sketch, line: u32, charge: &Charge) -> bool {
        self.line(sketch, line).is_some_and(|line| charge.source(line))
    }
    /// [`count::of`] in a line.
    #[inline(always)]
    fn count(&self, sketch: Sketch, line: u32, hash: u64) -> u64 {
        match self.line(sketch, line) {
            Some(line) => count::of(line, hash),
            None => count::FULL,
        }
    }
}

/// The ban that limits ask for: source (masked halves), prefix length, seconds, number of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BanAsked {
    pub source: (u64, u64),
    pub len: u8,
    pub seconds: u32,
    pub service: u16,
}

impl BanAsked {
    /// What the limits `number` of an image ask for. `None`: they cannot be read.
    #[inline(always)]
    pub fn of<P: Pages>(image: &Image<P>, packet: &Packet, number: u32) -> Option<BanAsked> {
        let profile = image.profile(number)?;
        let lens = profile.u16(profile::LEN_V4);
        Some(BanAsked {
            source: profile.mask(packet.version, packet.src.high, packet.src.low),
            len: if packet.version == 4 { lens } else { lens >> 8 } as u8,
            seconds: profile.u32(profile::BAN_S),
            service: profile.u16(profile::SERVICE),
        })
    }
}

/// A packet on its way through limits, which stand in the image that `first` is the first page of.
#[derive(Clone, Copy)]
pub struct Weighed<'a, P: Page> {
    pub first: P,
    pub packet: &'a Packet,
    pub by: LimitedBy,
    /// Bytes of the packet.
    pub length: u32,
}

/// The charges of a packet: of each kind its source, then the totals.
#[derive(Clone, Copy)]
pub struct Spend<'a> {
    pub packet: &'a Packet,
    /// Of the limits.
    pub number: u32,
    /// Bytes of the packet.
    pub length: u32,
    /// What was said before: whether it opens a connection, and spends only what is not reserved for those who proved
    /// their address.
    pub said: Metered,
}

/// Charges a packet by the limits of an image: [`Metered::PASS`], or the first excess. What comes before it stays charged.
#[inline(always)]
pub fn spend<L: Limiter, P: Pages>(limiter: &L, image: &Image<P>, what: Spend) -> Metered {
    match try_spend(limiter, image, what) {
        Some(excess) => Metered(excess),
        None => Metered::UNREADABLE,
    }
}

#[inline(always)]
fn try_spend<L: Limiter, P: Pages>(limiter: &L, image: &Image<P>, what: Spend) -> Option<u64> {
    let packet = what.packet;
    let profile = image.profile(what.number)?;
    let flags = profile.flags();
    let scope = limiter.bound(profile.u16(profile::SCOPE))?;
    let (high, low) = profile.mask(packet.version, packet.src.high, packet.src.low);
    let spender = Spender {
        limiter,
        words: limiter.scope(scope)?,
        scope,
        now_ns: limiter.now_ns(flags & flag::EXACT != 0),
        hash: source_hash(high, low, limiter.seed()),
        what,
    };
    // Each by its name: of a loop the kernel's verifier is not told where it ends.
    let mut excess = 0;
    if flags & flag::of(Kind::Packets) != 0 {
        excess = spender.spend(&profile, flags, Kind::Packets)?;
    }
    if excess == 0 && flags & flag::of(Kind::Bytes) != 0 {
        excess = spender.spend(&profile, flags, Kind::Bytes)?;
    }
    if excess == 0 && flags & flag::of(Kind::New) != 0 && what.said.opens() {
        excess = spender.spend(&profile, flags, Kind::New)?;
    }
    Some(excess)
}

/// A packet that is charged.
struct Spender<'a, L: Limiter> {
    limiter: &'a L,
    /// Scope of the kernel and its words.
    scope: u32,
    words: L::Scope,
    now_ns: u64,
    /// Of its source.
    hash: u64,
    what: Spend<'a>,
}

impl<L: Limiter> Spender<'_, L> {
    /// Charges one kind: 0, or the word of an excess. `None`: the state cannot be read.
    #[inline(always)]
    fn spend<P: Page>(&self, profile: &Profile<P>, flags: u32, kind: Kind) -> Option<u64> {
        if flags & flag::SOURCE << (2 * kind as u32) != 0 {
            let rate = profile.source(kind);
            let sketch = Sketch {
                scope: self.scope,
                table: kind as u32,
            };
            let line = self.hash as u32 & self.words.word(scope::SKETCH_MASK) as u32;
            if !self.limiter.charge(sketch, line, &self.charge(&rate, kind)) {
                // Reasons of a kind stand in a row: of the source, of all.
                let of_source = Reason::FIRST_EXCESS + 2 * kind as u8;
                return Some(Metered::excess(of_source, profile.u32(profile::EXCESS)).0);
            }
        }
        if flags & flag::TOTAL << (2 * kind as u32) == 0 {
            return Some(0);
        }
        let of_all = Reason::FIRST_EXCESS + 2 * kind as u8 + 1;
        if !self.total(self.words, &profile.total(profile::RATES, kind), kind) {
            return Some(Metered::excess(of_all, profile.u32(profile::EXCESS)).0);
        }
        if profile.u16(profile::PARENT) == profile::NO_PARENT {
            return Some(0);
        }
        let words = parent(self.limiter, profile)?;
        if !self.total(words, &profile.total(profile::PARENT_RATES, kind), kind) {
            return Some(Metered::excess(of_all, profile.u32(profile::PARENT_EXCESS)).0);
        }
        Some(0)
    }

    /// Charges a total of a scope. Whether it is paid.
    #[inline(always)]
    fn total(&self, words: L::Scope, rate: &Rate, kind: Kind) -> bool {
        rate.is_unlimited() || self.charge(rate, kind).total(words, scope::TOTALS + kind as u32)
    }

    #[inline(always)]
    fn charge(&self, rate: &Rate, kind: Kind) -> Charge {
        let reserves = self.what.said.reserves();
        Charge::new(rate, kind, self.what.length, self.now_ns, self.hash, reserves)
    }
}

/// The words of the scope whose totals hold as well. `None`: they cannot be read.
#[inline(always)]
fn parent<L: Limiter, P: Page>(limiter: &L, profile: &Profile<P>) -> Option<L::Scope> {
    limiter.scope(limiter.bound(profile.u16(profile::PARENT))?)
}

/// Which table of a scope, of which scope of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sketch {
    /// Scope of the kernel.
    pub scope: u32,
    /// A [`Kind`], or [`limit::COUNTS`].
    pub table: u32,
}

/// What the steps of [`run`] ask of each other; in the kernel each is a function of its own.
pub trait Steps {
    /// A page of the image.
    type Page: Page;

    /// [`before`].
    fn before(&self, what: Weighed<Self::Page>, told: Told) -> Metered;
    /// [`spend`], after [`Steps::before`] said this.
    fn spend(&self, what: Weighed<Self::Page>, said: Metered) -> Metered;
    /// [`after`].
    fn after(&self, what: Weighed<Self::Page>, told: Told, excess: Metered) -> Metered;
    /// What the socket table knows of a TCP segment that opens nothing: [`Told::UNKNOWN`] to [`Told::STRAY`].
    fn handshake(&self, packet: &Packet) -> Told;
    /// Answers a SYN with a cookie, in its own frame, of which nothing is read after that: [`Told::FAILED`] to
    /// [`Told::DECLINED`].
    fn challenge(&self, packet: &Packet) -> Told;
    /// Bans a source as the limits of this number ask, see [`BanAsked`].
    fn ban(&self, packet: &Packet, number: u32);
    /// Leaves the value as it is. In the kernel it takes it through memory, where the BPF verifier forgets small
    /// constants, so that ways which differ only in them are walked once.
    #[inline(always)]
    fn settle<T>(&self, _value: &mut T) {}
}

/// What limits say of a packet.
#[inline(always)]
pub fn run<S: Steps>(steps: &S, what: Weighed<S::Page>) -> Metered {
    let flags = what.by.flags();
    if !what.packet.opens_tcp() && flags & !(flag::NEW | flag::EXACT) == 0 {
        return Metered::PASS;
    }
    let mut metered = attempt(steps, what, Told::NOTHING);
    if metered.asks() {
        let told = steps.handshake(what.packet);
        metered = attempt(steps, what, told);
    }
    steps.settle(&mut metered);
    if metered.challenges() {
        let told = steps.challenge(what.packet);
        if !told.is(Told::GIVEN) {
            metered = attempt(steps, what, told);
            steps.settle(&mut metered);
        }
    }
    if metered.bans() {
        steps.ban(what.packet, what.by.number());
    }
    metered
}

/// The same for a later fragment, of which there is nothing to ask.
#[inline(always)]
pub fn weigh<S: Steps>(steps: &S, what: Weighed<S::Page>) -> Metered {
    if what.by.flags() & flag::TRAFFIC == 0 {
        return Metered::PASS;
    }
    attempt(steps, what, Told::UNKNOWN)
}

#[inline(always)]
fn attempt<S: Steps>(steps: &S, what: Weighed<S::Page>, told: Told) -> Metered {
    let flags = what.by.flags();
    let mut first = if flags & (flag::CHALLENGE | flag::CONNECTIONS) != 0 {
        steps.before(what, told)
    } else if what.packet.opens_tcp() {
        Metered::OPENS
    } else {
        Metered::PASS
    };
    steps.settle(&mut first);
    if !first.is_charged() {
        return first;
    }
    let charged = match first.opens() {
        true => flag::TRAFFIC | flag::NEW,
        false => flag::TRAFFIC,
    };
    if flags & charged == 0 {
        return first;
    }
    let mut excess = steps.spend(what, first);
    steps.settle(&mut excess);
    if excess == Metered::PASS {
        return first;
    }
    if flags & flag::CHALLENGE == 0 {
        return excess;
    }
    steps.after(what, told, excess)
}

/// What comes before charges: connections, and what is known of the packet's own.
#[inline(always)]
pub fn before<L: Limiter, P: Pages>(
    limiter: &L,
    image: &Image<P>,
    packet: &Packet,
    number: u32,
    told: Told,
) -> Metered {
    match Meter::new(limiter, image, packet, number, told) {
        Some(meter) => meter.before(),
        None => Metered::UNREADABLE,
    }
}

/// What comes of an excess where challenges may be given.
#[inline(always)]
pub fn after<L: Limiter, P: Pages>(
    limiter: &L,
    image: &Image<P>,
    packet: &Packet,
    number: u32,
    told: Told,
    excess: Metered,
) -> Metered {
    match Meter::new(limiter, image, packet, number, told) {
        Some(meter) => meter.after(excess),
        None => Metered::UNREADABLE,
    }
}

/// One packet under its limits.
struct Meter<'a, L: Limiter, P: Page> {
    limiter: &'a L,
    packet: &'a Packet,
    profile: Profile<P>,
    flags: u32,
    /// Scope of the kernel and its words.
    scope: u32,
    words: L::Scope,
    now_s: u32,
    /// A challenge can be given.
    challenges: bool,
    told: Told,
}

impl<'a, L: Limiter, P: Page> Meter<'a, L, P> {
    #[inline(always)]
    fn new<I: Pages<Page = P>>(
        limiter: &'a L,
        image: &Image<I>,
        packet: &'a Packet,
        number: u32,
        told: Told,
    ) -> Option<Self> {
        let profile = image.profile(number)?;
        let flags = profile.flags();
        let scope = limiter.bound(profile.u16(profile::SCOPE))?;
        let config = limiter.config()?;
        Some(Meter {
            limiter,
            packet,
            profile,
            flags,
            scope,
            words: limiter.scope(scope)?,
            now_s: (limiter.now_ns(false) / 1_000_000_000) as u32,
            challenges: flags & flag::CHALLENGE != 0
                && config.challenge != 0
                && config.observe == 0
                && !told.is(Told::FAILED),
            told,
        })
    }

    #[inline(always)]
    fn is_tcp(&self) -> bool {
        self.packet.protocol == protocol::TCP && !self.packet.fragment.is_any()
    }

    #[inline(always)]
    fn before(&self) -> Metered {
        let tcp = self.is_tcp();
        let opens = tcp && self.packet.opens_tcp();
        if self.told.is(Told::DECLINED) {
            // The listener takes it: charged when the handshake ends.
            self.turn_on(scope::CHALLENGED);
            return Metered(Metered::FREE);
        }
        let challenged = self.challenges && self.is_on(scope::CHALLENGED);
        if challenged && opens {
            self.knock();
            return self.challenge();
        }
        if self.told.is(Told::STRAY) {
            return self.excess(Reason::NoConnection);
        }
        let asked = !self.told.is(Told::NOTHING);
        if tcp && !opens && !asked && self.challenges && (challenged || self.is_on(scope::LOOK)) {
            return Metered::ASK;
        }
        if tcp && self.flags & flag::CONNECTIONS != 0 {
            let full = self.connections();
            if full != 0 && opens {
                // Only for a ban a proof is of use here: there is no room whatever the answer.
                return match self.flags & flag::BAN {
                    0 => Metered(full),
                    _ => self.answer(Metered(full)),
                };
            }
            if full != 0 && !asked {
                return Metered::ASK;
            }
            if full != 0 && self.completes() {
                return self.convict(Metered(full));
            }
        }
        let opens = opens || (self.completes() && (challenged || self.told.is(Told::PROVEN)));
        let proven = self.told.is(Told::CONNECTED) || self.told.is(Told::PROVEN);
        let opens = if opens { Metered::OPENS.0 } else { 0 };
        let reserves = if self.challenges && !proven {
            Metered::RESERVES
        } else {
            0
        };
        Metered(opens | reserves)
    }

    /// Whether it ends a handshake: a reset of one passes, for it makes room.
    #[inline(always)]
    fn completes(&self) -> bool {
        (self.told.is(Told::REMEMBERED) || self.told.is(Told::PROVEN))
            && self.packet.tcp_flags & tcp::RST == 0
    }

    #[inline(always)]
    fn after(&self, excess: Metered) -> Metered {
        if !self.is_tcp() {
            return excess;
        }
        if self.packet.opens_tcp() {
            return self.answer(excess);
        }
        if self.told.is(Told::NOTHING) && self.challenges {
            // A flood, perhaps: from now on segments are looked up before they are charged.
            self.turn_on(scope::LOOK);
            return Metered::ASK;
        }
        self.convict(excess)
    }

    /// Whether there is no room for another connection: 0, or the word of an excess.
    #[inline(always)]
    fn connections(&self) -> u64 {
        let most = self.profile.u32(profile::CONNECTIONS_SOURCE);
        if most != u32::MAX {
            let sketch = Sketch {
                scope: self.scope,
                table: limit::COUNTS,
            };
            let hash = self.hash();
            let line = hash as u32 & self.words.word(scope::COUNT_MASK) as u32;
            let count = self.limiter.count(sketch, line, hash);
            // A quarter is for those who proved their address: others may have been made to open connections in their name.
            let most = match self.challenges && self.told.is(Told::REMEMBERED) {
                true => most - most / 4,
                false => most,
            };
            if count >= most as u64 {
                return self.excess(Reason::LimitSourceConnections).0;
            }
        }
        if self.words.word(scope::CONNECTIONS) >= or_none(self.profile.u32(profile::CONNECTIONS)) {
            return self.excess(Reason::LimitTotalConnections).0;
        }
        if self.profile.u16(profile::PARENT) != profile::NO_PARENT {
            let Some(words) = parent(self.limiter, &self.profile) else {
                return Metered::UNREADABLE.0;
            };
            if words.word(scope::CONNECTIONS) >= or_none(self.profile.u32(profile::CONNECTIONS_PARENT)) {
                let first = self.profile.u32(profile::PARENT_EXCESS);
                return Metered::excess(Reason::LimitTotalConnections.number(), first).0;
            }
        }
        0
    }

    /// A SYN in excess: a challenge where one can be given, else the excess itself.
    #[inline(always)]
    fn answer(&self, excess: Metered) -> Metered {
        if !self.challenges {
            return excess;
        }
        // More than all sources together may: from now on everybody is asked.
        if excess.is(Reason::LimitTotalNew)
            || excess.is(Reason::LimitTotalPackets)
            || excess.is(Reason::LimitTotalBytes)
        {
            self.turn_on(scope::CHALLENGED);
        }
        self.challenge()
    }

    #[inline(always)]
    fn challenge(&self) -> Metered {
        // What answers is to be recognised.
        self.turn_on(scope::LOOK);
        Metered(self.excess(Reason::Challenged).0 | Metered::CHALLENGE)
    }

    /// A handshake in excess: who proved the address is banned, if the policy says so, for what is the source's own doing.
    #[inline(always)]
    fn convict(&self, excess: Metered) -> Metered {
        let own = excess.is(Reason::LimitSourceNew) || excess.is(Reason::LimitSourceConnections);
        match own && self.told.is(Told::PROVEN) && self.flags & flag::BAN != 0 {
            true => Metered(excess.0 | Metered::BAN),
            false => excess,
        }
    }

    /// The challenge goes on while more knock than the limit bears.
    #[inline(always)]
    fn knock(&self) {
        let kind = match self.flags & flag::NEW {
            0 => Kind::Packets,
            _ => Kind::New,
        };
        let rate = match self.flags >> (2 * kind as u32) & flag::NEW {
            0 => return,
            flag::SOURCE => Rate {
                shift: 0,
                ..self.profile.source(kind)
            },
            _ => self.profile.total(profile::RATES, kind),
        };
        let knock = Charge::new(&rate, kind, 0, self.limiter.now_ns(false), 0, false);
        if !knock.total(self.words, scope::KNOCKS) {
            self.turn_on(scope::CHALLENGED);
        }
    }

    /// Whether a state of the scope is on.
    #[inline(always)]
    fn is_on(&self, word: u32) -> bool {
        self.words.word(word) as u32 > self.now_s
    }

    /// Turns a state of the scope on, for as long as the configuration says: a store a second at most.
    #[inline(always)]
    fn turn_on(&self, word: u32) {
        let now_s = self.now_s;
        let quiet_s = self.limiter.config().map_or(0, |config| config.challenge_quiet_s);
        let old = self.words.word(word);
        let since = if old as u32 > now_s {
            old >> 32
        } else {
            now_s as u64
        };
        let new = since << 32 | now_s.wrapping_add(quiet_s) as u64;
        if new != old {
            self.words.put(word, new);
        }
    }

    #[inline(always)]
    fn hash(&self) -> u64 {
        let packet = self.packet;
        let (high, low) = self.profile.mask(packet.version, packet.src.high, packet.src.low);
        source_hash(high, low, self.limiter.seed())
    }

    #[inline(always)]
    fn excess(&self, reason: Reason) -> Metered {
        Metered::excess(reason.number(), self.profile.u32(profile::EXCESS))
    }
}

#[inline(always)]
const fn or_none(most: u32) -> u64 {
    if most == u32::MAX { u64::MAX } else { most as u64 }
}
