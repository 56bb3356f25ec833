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
