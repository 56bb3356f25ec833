//! What this node believes: the operators' keys that it pins, what it has seen before, and the bounds that it sets. The one
//! [`Judge`] of an agent.

use super::config::{Fleet, is_global};
use crate::fleet::documents::Document;
use crate::fleet::guards::{Guarded, Guards};
use crate::fleet::memory::{Memory, News};
use crate::fleet::node::{Judge, Rejection};
use crate::fleet::registered::{Member, Nodes};
use crate::fleet::report::{Registration, Stored};
use crate::fleet::roles::Roles;
use crate::fleet::selector::{Labels, Selector};
use crate::fleet::signature::Signature;
use crate::fleet::signers::Signers;
use crate::fleet::statement::Envelope;
use crate::fleet::{Trust, TrustError, Verified};
use crate::policy::groups::NodeGroup;
use bytes::Bytes;
use ipnetwork::IpNetwork;

/// See the top of this file.
#[derive(Debug)]
pub struct Guard {
    /// `None`: the files cannot be read. Then nothing new is believed, and what was believed before stays.
    pub trust: Option<Trust>,
    pub labels: Labels,
    pub memory: Memory,
    /// The memory is not as it is on disk.
    pub unsaved: bool,
    pub node_addresses: Vec<IpNetwork>,
    pub guards: Guards,
    /// Unix seconds, for registrations.
    pub now: u64,
}

impl From<TrustError> for Rejection {
    fn from(error: TrustError) -> Rejection {
        Rejection::new(error.word(), error.to_string())
    }
}

/// Reads the files that say who is trusted.
///
/// # Errors
/// What is wrong with them.
pub fn read_trust(fleet: &Fleet) -> Result<Trust, String> {
    let signers = Signers::read(&fleet.allowed_signers).map_err(|error| super::chain(&error))?;
    let roles = match &fleet.roles {
        Some(path) => Some(Roles::read(path).map_err(|error| super::chain(&error))?),
        None => None,
    };
    Ok(Trust { signers, roles })
}

impl Judge for Guard {
    fn verify(&self, envelope: &[u8], now: u64) -> Result<Verified, Rejection> {
        let envelope = Envelope::parse(envelope)?;
        let Some(trust) = &self.trust else {
            let text = "it is not known whom to trust: the files of [trust] cannot be read";
            return Err(Rejection::new("unknown-signer", text));
        };
        Ok(trust.verify(&envelope, self.memory.clock(now), Some(&self.labels))?)
    }

    fn verify_kept(&self, envelope: &[u8]) -> Result<Verified, Rejection> {
        let envelope = Envelope::parse(envelope)?;
        match &self.trust {
            Some(trust) => Ok(trust.verify_kept(&envelope, Some(&self.labels))?),
            // It was verified when it was taken, and only the agent writes there.
            None => Ok(Verified {
                statement: envelope.claims().clone(),
                signer: "unknown".into(),
                fingerprint: envelope.signature().fingerprint(),
                digest: envelope.digest(),
            }),
        }
    }

    fn is_here(&self, nodes: &str) -> bool {
        Selector::parse(nodes).is_ok_and(|selector| selector.matches(&self.labels))
    }

    fn remember(&mut self, verified: &Verified) -> Result<bool, Rejection> {
        let news = self.memory.judge(verified)?;
        self.unsaved |= self.memory.accept(verified);
        Ok(news == News::Same)
    }

    fn read(&self, document: &Document) -> Result<Vec<NodeGroup>, Rejection> {
        let text = &document.verified.statement.text;
        let guarded = |error: Guarded| Rejection::new("guarded", error.to_string());
        self.guards.check_size(text.len()).map_err(guarded)?;
        let loaded = document
            .load(text, &Nodes::default())
            .map_err(|error| Rejection::new("invalid", error.to_string()))?;
        self.guards.check(&loaded).map_err(guarded)?;
        Ok(loaded.node_groups)
    }

    fn member(&self, name: &str, value: &[u8]) -> Result<Member, Rejection> {
        let read = Stored::read(name, value);
        let (mut registration, stored) =
            read.map_err(|error| Rejection::new("malformed", error.to_string()))?;
        registration.addresses.retain(|address| is_global(*address));
        let proven = match (&stored.signature, &self.trust) {
            (Some(signature), Some(trust)) => {
                let signature = Signature::parse(signature.as_bytes())?;
                let signed = stored.registration.as_bytes();
                // A key that the signers do not have for this node makes it one without a signature.
                match trust.verify_node(signed, &signature, name, self.now) {
                    Ok(()) => true,
                    Err(TrustError::UnknownSigner { .. }) => false,
                    Err(error) => return Err(error.into()),
                }
            }
            _ => false,
        };
        let everywhere = |address: &&std::net::IpAddr| {
            proven
                || self
                    .node_addresses
                    .iter()
                    .any(|prefix| prefix.contains(**address))
        };
        Ok(Member {
            sure: registration
                .addresses
                .iter()
                .filter(everywhere)
                .copied()
                .collect(),
            registration: Registration { ..registration },
            proven,
            stored: Bytes::copy_from_slice(value),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::keys::{self, Keys, allowed};
    use crate::fleet::report::NAMESPACE;
    use crate::fleet::signature;
    use std::path::Path;

    fn guard(signers: &str) -> Guard {
        Guard {
            trust: Some(keys::trust(signers)),
            labels: Labels::new("db-1", [("role".to_owned(), "payments".to_owned())]).expect("labels"),
            memory: Memory::default(),
            unsaved: false,
            node_addresses: vec!["10.0.0.0/8".parse().expect("a prefix")],
            guards: Guards::default(),
            now: keys::ISSUED,
        }
    }

    fn registration(name: &str, key: Option<&Path>) -> Vec<u8> {
        let registration = Registration {
            labels: Labels::new(name, []).expect("a name"),
            addresses: ["192.0.2.1", "10.1.2.3", "127.0.0.1", "fe80::1"]
                .map(|address| address.parse().expect("an address"))
                .into(),
            version: String::new(),
            at: 1,
        };
        let registration = serde_json::to_string(&registration).expect("JSON");
        let sign = |key| signature::sign(registration.as_bytes(), key, NAMESPACE).expect("signed");
        let signature = key.map(|key| sign(key).armored().to_owned());
        let stored = Stored {
            registration: registration.clone(),
            signature,
        };
        serde_json::to_vec(&stored).expect("JSON")
    }

    fn sure(guard: &Guard, name: &str, value: &[u8]) -> Result<Vec<String>, &'static str> {
        let member = guard.member(name, value).map_err(|rejection| rejection.word)?;
        Ok(member.sure.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn an_address_is_sure_by_the_nodes_key_or_by_this_nodes_own_word() {
        let keys = Keys::new();
        let (own, other) = (keys.ed25519("own"), keys.ed25519("other"));
        let guard = guard(&allowed("node:web-1", "", &own));
        let all = ["192.0.2.1".to_owned(), "10.1.2.3".to_owned()];
        assert_eq!(
            sure(&guard, "web-1", &registration("web-1", Some(&own))),
            Ok(all.into())
        );
        // Without a key, with somebody else's, and with its own for another name.
        let ours = vec!["10.1.2.3".to_owned()];
        assert_eq!(
            sure(&guard, "web-1", &registration("web-1", None)),
            Ok(ours.clone())
        );
        assert_eq!(
            sure(&guard, "web-1", &registration("web-1", Some(&other))),
            Ok(ours.clone())
        );
        assert_eq!(
            sure(&guard, "web-2", &registration("web-2", Some(&own))),
            Ok(ours)
        );
        assert_eq!(
            sure(&guard, "web-2", &registration("web-1", Some(&own))),
            Err("malformed")
        );
        let forged = String::from_utf8(registration("web-1", Some(&own))).expect("text");
        let forged = forged.replace("192.0.2.1", "192.0.2.9");
        assert_eq!(sure(&guard, "web-1", forged.as_bytes()), Err("bad-signature"));
    }

    #[test]
    fn a_document_is_believed_within_the_bounds_of_this_node() {
        let keys = Keys::new();
        let alice = keys.ed25519("alice");
        let mut guard = guard(&allowed("alice@example.net", "", &alice));
        let seal = |version: u64, allow: &str| {
            let mut statement = keys::document("payments", version);
            statement.text = statement.text.replace("198.51.100.0/24", allow);
            Bytes::copy_from_slice(keys::sign(&statement, &alice).bytes())
        };
        let document = |envelope: &Bytes, guard: &Guard| Document {
            verified: guard.verify(envelope, keys::ISSUED + 1).expect("believed"),
            stored_as: crate::fleet::statement::Digest::of(envelope),
            envelope: envelope.clone(),
            objects: Default::default(),
            asks: Vec::new(),
        };
        let good = seal(2, "198.51.100.0/24");
        let read = document(&good, &guard);
        assert!(guard.is_here(&read.verified.statement.nodes));
        assert_eq!(guard.read(&read), Ok(Vec::new()));
        let open = guard
            .read(&document(&seal(2, "any"), &guard))
            .expect_err("open to everybody");
        assert_eq!(open.word, "guarded");

        assert_eq!(guard.remember(&read.verified), Ok(false));
        assert_eq!(guard.remember(&read.verified), Ok(true));
        let older = guard
            .verify(&seal(1, "198.51.100.0/24"), keys::ISSUED + 1)
            .expect("signed");
        assert_eq!(guard.remember(&older).expect_err("older").word, "older");
        assert!(guard.unsaved);

        // Nobody knows whom to trust: what was accepted stays, and nothing new comes.
        guard.trust = None;
        assert_eq!(
            guard.verify(&good, keys::ISSUED + 1).expect_err("unknown").word,
            "unknown-signer"
        );
        assert!(guard.verify_kept(&good).is_ok());
        let bob = keys.ed25519("bob");
        guard.trust = Some(keys::trust(&allowed("bob@example.net", "", &bob)));
        assert_eq!(
            guard.verify_kept(&good).expect_err("not trusted").word,
            "unknown-signer"
        );
    }
}
