//! What a node makes of what the store says: which documents it takes, which it refuses and why, which it misses, what
//! it has to fetch, and which nodes count. Pure: what is believed is for a [`Judge`], time is an argument, and what
//! comes of it is a [`Documents`] for the owner of the data path, who has the last word.
//!
//! What always holds:
//! - A document in force stays until a newer one of its name, signed, says otherwise. That its key is gone, that the
//!   store is empty, older, full of garbage or out of reach, changes nothing.
//! - What is refused is refused for itself: the others are taken, and of the same name the last good one stays.
//! - If the owner refuses a set, what was new in it is tried one by one, by name; who is refused alone is at fault.

use super::Verified;
use super::documents::{Document, Documents};
use super::orders::{Order, Orders};
use super::registered::{Member, Registered};
use super::statement::{Digest, Kind, Statement, Subject};
use crate::policy::groups::NodeGroup;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Names known at most: what a store holds beyond is not looked at.
const MOST_NAMES: usize = 4096;
/// Before what the machine could not do is tried again.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// The clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Unix seconds.
    pub wall: u64,
    pub boot: Duration,
}

/// Why a document is not taken: a stable word, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Rejection {
    pub word: &'static str,
    pub text: String,
}

impl Rejection {
    pub fn new(word: &'static str, text: impl Into<String>) -> Rejection {
        Rejection {
            word,
            text: text.into(),
        }
    }

    /// May be over when the clock goes on or is put right.
    pub(super) fn is_of_time(&self) -> bool {
        matches!(self.word, "expired" | "not-yet")
    }
}

/// Who decides what is believed and what is sound.
pub trait Judge {
    /// Verifies an envelope that comes from outside: signature, signer, role, times. Nothing is remembered.
    fn verify(&self, envelope: &[u8], now: u64) -> Result<Verified, Rejection>;
    /// Verifies again what was accepted before: whether its signer may still say so, whatever the time.
    fn verify_kept(&self, envelope: &[u8]) -> Result<Verified, Rejection>;
    /// Whether a selector means this node.
    fn is_here(&self, nodes: &str) -> bool;
    /// Refuses what is older than something seen before, or another one of the same version; takes note of it otherwise. True if it
    /// was known already.
    fn remember(&mut self, verified: &Verified) -> Result<bool, Rejection>;
    /// Whether the text is a policy within the bounds that this node sets, with lists made of its objects. Gives the
    /// nodes that its groups ask for.
    fn read(&self, document: &Document) -> Result<Vec<NodeGroup>, Rejection>;
    /// A registration, if it is one at all.
    fn member(&self, name: &str, value: &[u8]) -> Result<Member, Rejection>;
}

/// Whose fault it is that the owner did not take a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Two of the documents claim the same, or one and the local policy.
    Conflict,
    /// What they say together is no policy that the kernel takes.
    Invalid,
    /// The kernel, the disk: to be tried again.
    Machine,
}

/// Something that was not taken, for the audit log. Each is told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub key: String,
    pub digest: Digest,
    pub version: Option<u64>,
    pub signer: Option<String>,
    pub rejection: Rejection,
}

/// What there is to tell of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub name: String,
    /// In force here.
    pub good: Option<Arc<Document>>,
    pub state: State,
    /// Of what the store offers instead, if that is known.
    pub offered: Option<u64>,
}

/// How the store and this node agree on a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// What the store has is in force.
    InForce,
    /// On its way: accepted, not yet in force.
    Coming,
    /// Lists are being fetched.
    Incomplete(usize),
    /// What the store has is refused; what is in force stays.
    Rejected(Rejection),
    /// The store has nothing of that name any more, and nobody signed that.
    Withheld,
}

impl State {
    pub fn word(&self) -> &'static str {
        match self {
            State::InForce => "in-force",
            State::Coming => "coming",
            State::Incomplete(_) => "incomplete",
            State::Rejected(_) => "rejected",
            State::Withheld => "withheld",
        }
    }
}

/// All of one name.
#[derive(Debug, Default)]
struct Slot {
    /// What the owner has in force.
    good: Option<Arc<Document>>,
    /// What is to be in force: a newer one.
    next: Option<Arc<Document>>,
    /// What is in force is to end: somebody signed that it is gone, or that it means other nodes.
    ending: bool,
    offer: Option<Offer>,
    /// The owner refused `next` when so many sets had been taken.
    blocked: Option<u64>,
}

impl Slot {
    fn wanted(&self) -> Option<&Arc<Document>> {
        match &self.next {
            Some(next) if self.blocked.is_none() => Some(next),
            _ if self.ending => None,
            _ => self.good.as_ref(),
        }
    }

    fn is_empty(&self) -> bool {
        self.good.is_none() && self.next.is_none() && self.offer.is_none()
    }
}

/// What the store has under a name.
#[derive(Debug)]
struct Offer {
    digest: Digest,
    version: Option<u64>,
    signer: Option<String>,
    verdict: Verdict,
}

#[derive(Debug)]
enum Verdict {
    New(Bytes),
    /// It is `good`, `next`, or a deletion that was carried out.
    Taken,
    /// Means other nodes.
    Elsewhere,
    /// The document without its lists, and what it lacks.
    Lacks(Box<Document>, BTreeSet<Digest>),
    /// The envelope is kept if time may change it.
    Rejected(Rejection, Option<Bytes>),
}

/// What a node reads of what it kept: verified again before it counts.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// In force at the end, then what was about to be.
    pub good: Vec<KeptDocument>,
    pub next: Vec<KeptDocument>,
    /// Name and value as it was stored.
    pub members: Vec<(String, Bytes)>,
    /// There was something once.
    pub heard: bool,
}

#[derive(Clone, Debug)]
pub struct KeptDocument {
    pub envelope: Bytes,
    pub objects: HashMap<Digest, Bytes>,
}

/// What a node keeps over restarts.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    pub good: Vec<Arc<Document>>,
    pub next: Vec<Arc<Document>>,
    pub members: Vec<(String, Bytes)>,
    pub heard: bool,
}

/// What a store holds.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Keys without the prefix of the store.
    pub entries: Vec<(String, Bytes)>,
    /// All registrations are among them.
    pub with_nodes: bool,
}

/// See the top of this file.
#[derive(Debug, Default)]
pub struct Node {
    grace: Duration,
    slots: BTreeMap<String, Slot>,
    registered: Registered,
    /// What the owner has in force.
    applied: Arc<Documents>,
    /// Sets that the owner took.
    taken: u64,
    /// The set that the owner looks at now.
    offered: Option<Arc<Documents>>,
    /// What was new in a set that was refused, to be tried one by one.
    trial: VecDeque<String>,
    orders: Orders,
    /// Boot clock: not before then, for the machine could not.
    resting: Option<(Duration, usize)>,
    refusals: Vec<Refusal>,
    /// Something of the fleet was in force once.
    heard: bool,
    /// The store was read once.
    joined: bool,
}

impl Node {
    pub fn new(grace: Duration) -> Node {
        Node {
            grace,
            ..Node::default()
        }
    }

    /// What an earlier run kept, verified again as of when it was accepted. What does not hold any more, because a
    /// signer is not trusted any more, is left out and told.
    pub fn restore(&mut self, kept: Kept, judge: &dyn Judge) {
        for (documents, good) in [(kept.good, true), (kept.next, false)] {
            for KeptDocument { envelope, objects } in documents {
                let verified = match judge.verify_kept(&envelope) {
                    Ok(verified) => verified,
                    Err(rejection) => {
                        self.tell_kept(&envelope, None, rejection);
                        continue;
                    }
                };
                // The labels of this node may be others now.
                if !judge.is_here(&verified.statement.nodes) {
                    continue;
                }
                let mut document = Document {
                    stored_as: Digest::of(&envelope),
                    verified,
                    envelope,
                    objects,
                    asks: Vec::new(),
                };
                match judge.read(&document) {
                    Ok(asks) => document.asks = asks,
                    Err(rejection) => {
                        self.tell_kept(&document.envelope, Some(&document.verified), rejection);
                        continue;
                    }
                }
                let slot = self.slots.entry(document.name().to_owned()).or_default();
                if good {
                    slot.good = Some(Arc::new(document));
                } else {
                    slot.next = Some(Arc::new(document));
                }
            }
        }
        let members: Vec<Member> = kept
            .members
            .iter()
            .filter_map(|(name, value)| judge.member(name, value).ok())
            .collect();
        self.registered.restore(members);
        self.heard = kept.heard;
    }

    fn tell_kept(&mut self, envelope: &Bytes, verified: Option<&Verified>, rejection: Rejection) {
        let statement = verified.map(|verified| &verified.statement);
        self.refusals.push(Refusal {
            key: statement.map_or_else(|| "what was kept".to_owned(), Statement::key),
            digest: Digest::of(envelope),
            version: statement.map(|statement| statement.version),
            signer: verified.map(|verified| verified.signer.clone()),
            rejection,
        });
    }

    /// What was kept: as it was about to be, and as it was in force, if that is another set.
    pub fn kept(&self) -> Vec<Arc<Documents>> {
        let set = |with_next: bool| {
            let part = |slot: &Slot| match &slot.next {
                Some(next) if with_next => Some(next.clone()),
                _ => slot.good.clone(),
            };
            Arc::new(Documents {
                parts: self.slots.values().filter_map(part).collect(),
                nodes: self.registered.nodes(),
                heard: self.heard,
            })
        };
        let mut sets = vec![set(true), set(false)];
        sets.dedup();
        sets
    }

    /// This set is in force, without having been planned: at the start. `None`: it is not known what is.
    pub fn begin(&mut self, set: Option<Arc<Documents>>) {
        match set {
            Some(_) => {
                self.offered = set;
                self.taken();
            }
            None => {
                for slot in self.slots.values_mut() {
                    let good = slot.good.take();
                    slot.next = slot.next.take().or(good);
                }
            }
        }
    }

    /// All that the store holds at a revision below the prefixes it was asked for.
    pub fn snapshot(&mut self, all: Listing, judge: &dyn Judge, now: Now) {
        if all.entries.is_empty() {
            self.registered.other_store();
        }
        self.joined = true;
        let (mut members, mut present) = (Vec::new(), BTreeSet::new());
        for (key, value) in all.entries {
            if let Some(name) = key.strip_prefix("policies/") {
                present.insert(name.to_owned());
                self.offer(name, value);
            } else if let Some(name) = key.strip_prefix("nodes/") {
                members.extend(self.member(name, &value, judge));
            } else if let Some(name) = key.strip_prefix("bans/") {
                self.orders.put(name, value);
            }
        }
        for (name, slot) in &mut self.slots {
            if !present.contains(name) {
                slot.offer = None;
            }
        }
        if all.with_nodes {
            self.registered.replace(members, now.boot);
        }
        self.sweep();
    }

    /// What was put, or is gone (`None`).
    pub fn change(&mut self, key: &str, value: Option<Bytes>, judge: &dyn Judge, now: Now) {
        if let Some(name) = key.strip_prefix("policies/") {
            match value {
                Some(value) => self.offer(name, value),
                None => {
                    if let Some(slot) = self.slots.get_mut(name) {
                        slot.offer = None;
                    }
                    self.sweep();
                }
            }
        } else if let Some(name) = key.strip_prefix("nodes/") {
            match value {
                Some(value) => {
                    if let Some(member) = self.member(name, &value, judge) {
                        self.registered.put(member);
                    }
                }
                None => self.registered.gone(name, now.boot),
            }
        } else if let Some(name) = key.strip_prefix("bans/") {
            match value {
                Some(value) => self.orders.put(name, value),
                None => self.orders.remove(name),
            }
        }
    }

    /// The store is another one than before, or was taken back to an earlier time.
    pub fn replaced(&mut self) {
        self.registered.other_store();
    }

    /// The store is out of reach.
    pub fn lost(&mut self) {
        self.registered.pause();
    }

    fn offer(&mut self, name: &str, value: Bytes) {
        if !is_name(name) || self.slots.len() >= MOST_NAMES && !self.slots.contains_key(name) {
            return;
        }
        let digest = Digest::of(&value);
        let slot = self.slots.entry(name.to_owned()).or_default();
        if slot.offer.as_ref().is_some_and(|offer| offer.digest == digest) {
            return;
        }
        slot.offer = Some(Offer {
            digest,
            version: None,
            signer: None,
            verdict: Verdict::New(value),
        });
    }

    fn member(&mut self, name: &str, value: &[u8], judge: &dyn Judge) -> Option<Member> {
        let judged = judge.member(name, value);
        judged
            .inspect_err(|rejection| {
                self.refusals.push(Refusal {
                    key: format!("nodes/{name}"),
                    digest: Digest::of(value),
                    version: None,
                    signer: None,
                    rejection: rejection.clone(),
                });
            })
            .ok()
    }

    fn sweep(&mut self) {
        self.slots.retain(|_, slot| !slot.is_empty());
    }

    /// Who is trusted, or for what, has changed: what is in force is verified again, and what was refused is looked at again when
    /// the store is read anew.
    pub fn trust_changed(&mut self, judge: &dyn Judge) {
        let mut dropped = Vec::new();
        for slot in self.slots.values_mut() {
            for document in [&mut slot.good, &mut slot.next] {
                let Some(held) = document else { continue };
                match judge.verify_kept(&held.envelope) {
                    Ok(verified) if judge.is_here(&verified.statement.nodes) => {}
                    Ok(_) => *document = None,
                    Err(rejection) => dropped.extend(document.take().map(|held| (held, rejection))),
                }
            }
            slot.offer = None;
        }
        self.orders.forget();
        for (document, rejection) in dropped {
            self.tell_kept(&document.envelope, Some(&document.verified), rejection);
        }
    }

    /// Something that was asked for by [`Node::wanted`]. What is not what its name says is ignored.
    pub fn object(&mut self, name: Digest, bytes: &Bytes) {
        if Digest::of(bytes) != name {
            return;
        }
        for slot in self.slots.values_mut() {
            if let Some(Offer {
                verdict: Verdict::Lacks(document, lacks),
                ..
            }) = &mut slot.offer
                && lacks.remove(&name)
            {
                document.objects.insert(name, bytes.clone());
            }
        }
    }

    /// Objects to fetch.
    pub fn wanted(&self) -> Vec<Digest> {
        let mut wanted: Vec<Digest> = Vec::new();
        for slot in self.slots.values() {
            if let Some(Offer {
                verdict: Verdict::Lacks(_, lacks),
                ..
            }) = &slot.offer
            {
                wanted.extend(lacks);
            }
        }
        wanted.sort();
        wanted.dedup();
        wanted
    }

    /// Whether any document asks for nodes, so that their registrations are worth watching.
    pub fn asks_for_nodes(&self) -> bool {
        let asks =
            |document: &Option<Arc<Document>>| document.as_ref().is_some_and(|one| !one.asks.is_empty());
        self.slots
            .values()
            .any(|slot| asks(&slot.good) || asks(&slot.next))
    }

    /// Looks at what is new and at what is due.
    pub fn look(&mut self, judge: &mut dyn Judge, now: Now) {
        self.registered.age(now.boot, self.grace);
        let refusals = self.orders.look(judge, now);
        self.refusals.extend(refusals);
        for (name, slot) in &mut self.slots {
            let Some(offer) = &mut slot.offer else { continue };
            let before = match &offer.verdict {
                Verdict::New(_) => None,
                Verdict::Rejected(rejection, Some(_)) => Some(rejection.word),
                Verdict::Lacks(_, lacks) if lacks.is_empty() => None,
                _ => continue,
            };
            let verdict = std::mem::replace(&mut offer.verdict, Verdict::Taken);
            let outcome = match verdict {
                Verdict::New(bytes) | Verdict::Rejected(_, Some(bytes)) => {
                    let at = [slot.good.as_ref(), slot.next.as_ref()];
                    if let Some(held) = at.iter().flatten().find(|held| held.stored_as == offer.digest) {
                        offer.version = Some(held.version());
                        offer.signer = Some(held.verified.signer.clone());
                        Ok(Look::Held)
                    } else {
                        judged(name, offer, &bytes, judge, now).map_err(|rejection| (rejection, bytes))
                    }
                }
                Verdict::Lacks(document, _) => Ok(Look::Document(document)),
                Verdict::Taken | Verdict::Elsewhere | Verdict::Rejected(_, None) => Ok(Look::Held),
            };
            let outcome = outcome.and_then(|look| match look {
                Look::Document(mut document) => {
                    // Most of a list is the same from version to version.
                    for held in [&slot.good, &slot.next].into_iter().flatten() {
                        for (name, bytes) in &held.objects {
                            document.objects.entry(*name).or_insert_with(|| bytes.clone());
                        }
                    }
                    let envelope = document.envelope.clone();
                    match document.missing() {
                        Ok(lacks) if !lacks.is_empty() => Ok(Look::Lacks(document, lacks)),
                        Ok(_) => match judge.read(&document) {
                            Ok(asks) => {
                                document.asks = asks;
                                document.tidy();
                                Ok(Look::Whole(document))
                            }
                            Err(rejection) => Err((rejection, envelope)),
                        },
                        Err(error) => Err((Rejection::new("damaged", error.to_string()), envelope)),
                    }
                }
                look => Ok(look),
            });
            match outcome {
                // What was to follow the one in force is not taken back by offering that again.
                Ok(Look::Held | Look::Document(_)) => {}
                Ok(Look::Elsewhere) => {
                    offer.verdict = Verdict::Elsewhere;
                    slot.next = None;
                    slot.ending = slot.good.is_some();
                }
                Ok(Look::Deleted) => {
                    slot.next = None;
                    slot.ending = slot.good.is_some();
                }
                Ok(Look::Whole(document)) => {
                    slot.next = Some(Arc::new(*document));
                    slot.ending = false;
                    slot.blocked = None;
                }
                Ok(Look::Lacks(document, lacks)) => {
                    offer.verdict = Verdict::Lacks(document, lacks.into_iter().collect());
                }
                Err((rejection, envelope)) => {
                    if before.is_none_or(|before| before != rejection.word) {
                        self.refusals.push(Refusal {
                            key: format!("policies/{name}"),
                            digest: offer.digest,
                            version: offer.version,
                            signer: offer.signer.clone(),
                            rejection: rejection.clone(),
                        });
                    }
                    let keep = rejection.is_of_time().then_some(envelope);
                    offer.verdict = Verdict::Rejected(rejection, keep);
                }
            }
        }
    }

    /// What the owner should have in force now, if that is something else than it has. Until it answers, nothing more.
    pub fn plan(&mut self, now: Now) -> Option<Arc<Documents>> {
        if self.offered.is_some() || self.resting.is_some_and(|(until, _)| now.boot < until) {
            return None;
        }
        for slot in self.slots.values_mut() {
            // Others have changed since: it may fit now.
            if slot.blocked.is_some_and(|taken| taken != self.taken) {
                slot.blocked = None;
            }
        }
        let mut set = self.target();
        while let Some(name) = self.trial.front() {
            let tried = self.with(name);
            if !tried.same(&self.applied) {
                set = tried;
                break;
            }
            self.trial.pop_front();
        }
        if set.same(&self.applied) {
            return None;
        }
        let set = Arc::new(set);
        self.offered = Some(set.clone());
        Some(set)
    }

    fn target(&self) -> Documents {
        Documents {
            parts: self
                .slots
                .values()
                .filter_map(|slot| slot.wanted().cloned())
                .collect(),
            nodes: self.registered.nodes(),
            heard: self.heard,
        }
    }

    /// What is in force, with one name as it is wanted.
    fn with(&self, name: &str) -> Documents {
        let mut parts: BTreeMap<&str, &Arc<Document>> = self
            .applied
            .parts
            .iter()
            .map(|part| (part.name(), part))
            .collect();
        match self.slots.get(name).and_then(Slot::wanted) {
            Some(document) => drop(parts.insert(name, document)),
            None => drop(parts.remove(name)),
        }
        Documents {
            parts: parts.into_values().cloned().collect(),
            nodes: self.registered.nodes(),
            heard: self.heard,
        }
    }

    /// The owner has put the planned set in force.
    pub fn taken(&mut self) {
        let Some(set) = self.offered.take() else { return };
        self.resting = None;
        self.taken += 1;
        self.heard |= !set.parts.is_empty();
        for (name, slot) in &mut self.slots {
            slot.good = set.part(name).cloned();
            let digest = slot.good.as_ref().map(|good| good.stored_as);
            if slot.next.as_ref().map(|next| next.stored_as) == digest {
                slot.next = None;
                slot.blocked = None;
            }
            if let Some(offer) = &mut slot.offer
                && Some(offer.digest) == digest
            {
                offer.verdict = Verdict::Taken;
            }
            slot.ending &= slot.good.is_some();
        }
        self.applied = set;
        self.trial.pop_front();
        self.sweep();
    }

    /// The owner has not taken the planned set, and what was in force is.
    pub fn refused(&mut self, fault: Fault, text: &str, now: Now) {
        let Some(set) = self.offered.take() else { return };
        let rest = |tries: usize| AGAIN[0].saturating_mul(1 << tries.min(10)).min(AGAIN[1]);
        let tries = self.resting.map_or(0, |(_, tries)| tries + 1);
        let news = set.differing(&self.applied);
        let word = match fault {
            Fault::Conflict => "conflict",
            Fault::Invalid | Fault::Machine => "invalid",
        };
        match (fault, &news[..]) {
            (Fault::Conflict | Fault::Invalid, [name])
                if self.slots.get(name).is_some_and(|slot| slot.next.is_some()) =>
            {
                self.trial.retain(|trial| trial != name);
                self.block(name, word, text);
            }
            (Fault::Conflict | Fault::Invalid, [_, _, ..]) => self.trial = news.into(),
            // Something ended, or only the nodes were new, or the machine could not: nobody is at fault.
            _ => {
                self.resting = Some((now.boot + rest(tries), tries));
            }
        }
    }

    fn block(&mut self, name: &str, word: &'static str, text: &str) {
        let Some(slot) = self.slots.get_mut(name) else {
            return;
        };
        slot.blocked = Some(self.taken);
        let Some(next) = &slot.next else { return };
        let rejection = Rejection::new(word, text);
        if let Some(offer) = &mut slot.offer
            && offer.digest == next.stored_as
        {
            let told = matches!(&offer.verdict, Verdict::Rejected(before, _) if *before == rejection);
            offer.verdict = Verdict::Rejected(rejection.clone(), None);
            if told {
                return;
            }
        }
        self.refusals.push(Refusal {
            key: format!("policies/{name}"),
            digest: next.stored_as,
            version: Some(next.version()),
            signer: Some(next.verified.signer.clone()),
            rejection,
        });
    }

    /// Something else that the owner merges has changed, so what it refused may fit now.
    pub fn others_changed(&mut self) {
        for slot in self.slots.values_mut() {
            slot.blocked = None;
        }
    }

    /// Boot clock: when something is due.
    pub fn due(&self) -> Option<Duration> {
        let resting = self.resting.map(|(until, _)| until);
        [self.registered.next(self.grace), resting]
            .into_iter()
            .flatten()
            .min()
    }

    /// What was refused since the last call.
    pub fn refusals(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.refusals)
    }

    /// What is in force, as far as it is of the fleet.
    pub fn applied(&self) -> &Arc<Documents> {
        &self.applied
    }

    /// What to keep over a restart: before a planned set is given to the owner, and after.
    pub fn keep(&self) -> Keep {
        Keep {
            heard: self.heard,
            good: self.applied.parts.clone(),
            next: self
                .slots
                .values()
                .filter(|slot| slot.blocked.is_none())
                .filter_map(|slot| slot.next.clone())
                .collect(),
            members: self
                .registered
                .nodes()
                .0
                .iter()
                .map(|(name, member)| (name.clone(), member.stored.clone()))
                .collect(),
        }
    }

    /// By name.
    pub fn rows(&self) -> Vec<Row> {
        let rows = self.slots.iter().filter_map(|(name, slot)| {
            let offer = slot.offer.as_ref();
            let state = match offer.map(|offer| &offer.verdict) {
                Some(Verdict::Rejected(rejection, _)) => State::Rejected(rejection.clone()),
                Some(Verdict::Lacks(_, lacks)) => State::Incomplete(lacks.len()),
                _ if slot.next.is_some() || slot.ending => State::Coming,
                Some(Verdict::New(_)) => State::Coming,
                Some(Verdict::Elsewhere) => return None,
                Some(Verdict::Taken) if slot.good.is_none() => return None,
                Some(Verdict::Taken) => State::InForce,
                None if self.joined => State::Withheld,
                None => State::InForce,
            };
            Some(Row {
                name: name.clone(),
                good: slot.good.clone(),
                state,
                offered: offer.and_then(|offer| offer.version),
            })
        });
        rows.collect()
    }

    /// Bans to be carried out since the last call.
    pub fn orders(&mut self) -> Vec<Order> {
        self.orders.take()
    }

    /// Whether the owner looks at a set now.
    pub fn is_waiting(&self) -> bool {
        self.offered.is_some()
    }

    pub fn registered(&self) -> &Registered {
        &self.registered
    }
}

/// What a document and its key may be called.
fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

enum Look {
    /// It is known already.
    Held,
    Elsewhere,
    Deleted,
    Document(Box<Document>),
    Whole(Box<Document>),
    Lacks(Box<Document>, Vec<Digest>),
}

/// Who says what, and whether it may.
fn judged(
    name: &str,
    offer: &mut Offer,
    envelope: &Bytes,
    judge: &mut dyn Judge,
    now: Now,
) -> Result<Look, Rejection> {
    let verified = judge.verify(envelope, now.wall)?;
    let statement = &verified.statement;
    (offer.version, offer.signer) = (Some(statement.version), Some(verified.signer.clone()));
    let key = Subject::Policy.key(name);
    if statement.key() != key {
        let text = format!("stored as {key}, signed as {}", statement.key());
        return Err(Rejection::new("malformed", text));
    }
    judge.remember(&verified)?;
    if statement.kind == Kind::Delete {
        return Ok(Look::Deleted);
    }
    if !judge.is_here(&statement.nodes) {
        return Ok(Look::Elsewhere);
    }
    Ok(Look::Document(Box::new(Document {
        verified,
        envelope: envelope.clone(),
        stored_as: offer.digest,
        objects: HashMap::new(),
        asks: Vec::new(),
    })))
}

#[cfg(test)]
mod tests;
