//! Bans that the fleet orders: signed like documents, each under its prefix, in force at once and beside every policy. The
//! owner's book keeps them from then on, so a store that is empty or gone ends none.

use super::node::{Judge, Now, Refusal, Rejection};
use super::statement::{BanTerms, Digest, Kind, Subject};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Prefixes known at most: what a store holds beyond is not looked at.
const MOST: usize = 100_000;

/// Something to do about a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub key: String,
    pub prefix: String,
    /// `None`: it is not banned any more.
    pub terms: Option<BanTerms>,
    pub version: u64,
    pub signer: String,
    /// Of the envelope.
    pub digest: Digest,
    /// It was carried out before: by an earlier run of the agent.
    pub again: bool,
}

/// What the store has below `bans/`.
#[derive(Debug, Default)]
pub struct Orders {
    offers: BTreeMap<String, Offer>,
    open: Vec<Order>,
}

#[derive(Debug)]
struct Offer {
    digest: Digest,
    /// Kept while it is new, or refused for a reason that time may change.
    envelope: Option<Bytes>,
    refused: Option<&'static str>,
}

impl Orders {
    /// The store has this under `bans/` and `name`.
    pub fn put(&mut self, name: &str, envelope: Bytes) {
        let digest = Digest::of(&envelope);
        let known = self.offers.get(name);
        if known.is_some_and(|offer| offer.digest == digest) || (known.is_none() && self.offers.len() >= MOST)
        {
            return;
        }
        let offer = Offer {
            digest,
            envelope: Some(envelope),
            refused: None,
        };
        self.offers.insert(name.to_owned(), offer);
    }

    /// The store has nothing there any more. What was ordered stays.
    pub fn remove(&mut self, name: &str) {
        self.offers.remove(name);
    }

    /// Everything is looked at again when it comes again.
    pub fn forget(&mut self) {
        self.offers.clear();
    }

    /// Looks at what is new and at what time may have changed; gives what is refused for the first time.
    pub fn look(&mut self, judge: &mut dyn Judge, now: Now) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for (name, offer) in &mut self.offers {
            let Some(envelope) = offer.envelope.take() else {
                continue;
            };
            let mut told = (None, None);
            match order(name, offer.digest, &envelope, judge, now, &mut told) {
                Ok(order) => {
                    offer.refused = None;
                    self.open.extend(order);
                }
                Err(rejection) => {
                    if rejection.is_of_time() {
                        offer.envelope = Some(envelope);
                    }
                    if offer.refused.replace(rejection.word) != Some(rejection.word) {
                        refusals.push(Refusal {
                            key: format!("{}{name}", Subject::Ban.directory()),
                            digest: offer.digest,
                            version: told.0,
                            signer: told.1,
                            rejection,
                        });
                    }
                }
            }
        }
        refusals
    }

    /// What is to be done since the last call.
    pub fn take(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.open)
    }
}

/// `None`: it is for others, or over.
fn order(
    name: &str,
    digest: Digest,
    envelope: &Bytes,
    judge: &mut dyn Judge,
    now: Now,
    told: &mut (Option<u64>, Option<String>),
) -> Result<Option<Order>, Rejection> {
    let verified = judge.verify(envelope, now.wall)?;
    let statement = &verified.statement;
    *told = (Some(statement.version), Some(verified.signer.clone()));
    let key = format!("{}{name}", Subject::Ban.directory());
    if statement.key() != key {
        let text = format!("stored as {key}, signed as {}", statement.key());
        return Err(Rejection::new("malformed", text));
    }
    let again = judge.remember(&verified)?;
    if !judge.is_here(&statement.nodes) {
        return Ok(None);
    }
    let terms = match statement.kind {
        Kind::Ban => {
            let terms = BanTerms::parse(&statement.text).map_err(|text| Rejection::new("malformed", text))?;
            if terms.until.is_some_and(|until| until <= now.wall) {
                return Ok(None);
            }
            Some(terms)
        }
        Kind::Unban => None,
        Kind::Policy | Kind::Delete => return Ok(None),
    };
    Ok(Some(Order {
        key,
        prefix: statement.name.clone(),
        terms,
        version: statement.version,
        signer: verified.signer.clone(),
        digest,
        again,
    }))
}
