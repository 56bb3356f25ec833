//! What a node says below two keys of the store, for its fleet and for people: who it is (`nodes/NAME`, under its lease) and
//! how it does (`status/NAME`, which stays when it is gone). Neither is trusted further than its signature reaches.

use super::selector::Labels;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The namespace of the signature of a registration.
pub const NAMESPACE: &str = "ravelin-node";

/// Values of nodes are small: longer ones are not read.
pub const MAX_BYTES: usize = 64 << 10;
/// Addresses of one node that count.
pub const MAX_ADDRESSES: usize = 64;

pub fn node_key(name: &str) -> String {
    format!("nodes/{name}")
}

pub fn status_key(name: &str) -> String {
    format!("status/{name}")
}

/// The principal that a node signs as.
pub fn principal(name: &str) -> String {
    format!("node:{name}")
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Its name among them.
    pub labels: Labels,
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Of the agent.
    #[serde(default)]
    pub version: String,
    /// Unix seconds of its writing: a signed one never gives way to one from before.
    #[serde(default)]
    pub at: u64,
}

impl Registration {
    pub fn name(&self) -> &str {
        self.labels.node()
    }
}

/// A registration as it is stored: the text that was signed, and the signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// A [`Registration`] in JSON.
    pub registration: String,
    /// Armored, over the bytes of the text, in [`NAMESPACE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// Why the value of a node cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{0} bytes, more than {MAX_BYTES}")]
    TooLarge(usize),
    #[error("not what an agent writes: {0}")]
    Json(#[from] serde_json::Error),
    #[error("stored for {key}, written for {name}")]
    Misplaced { key: String, name: String },
    #[error("{0} addresses, more than {MAX_ADDRESSES}")]
    Addresses(usize),
}

impl Stored {
    /// Reads the value of `nodes/NAME`. Whether the signature holds is for who has the trusted signers.
    ///
    /// # Errors
    /// It is none, or that of another node.
    pub fn read(name: &str, value: &[u8]) -> Result<(Registration, Stored), ReadError> {
        if value.len() > MAX_BYTES {
            return Err(ReadError::TooLarge(value.len()));
        }
        let stored: Stored = serde_json::from_slice(value)?;
        let registration: Registration = serde_json::from_str(&stored.registration)?;
        if registration.name() != name {
            return Err(ReadError::Misplaced {
                key: name.to_owned(),
                name: registration.name().to_owned(),
            });
        }
        if registration.addresses.len() > MAX_ADDRESSES {
            return Err(ReadError::Addresses(registration.addresses.len()));
        }
        Ok((registration, stored))
    }
}

/// How a node does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub name: String,
    /// Of the agent.
    pub agent: String,
    /// `enforce` or `observe`.
    pub mode: String,
    /// A policy is in force on every interface asked for.
    pub ready: bool,
    pub generation: u64,
    /// Hex BLAKE3 of the image in force.
    pub digest: String,
    /// In force, by name.
    #[serde(default)]
    pub documents: BTreeMap<String, Version>,
    /// What the store has that is not in force here.
    #[serde(default)]
    pub rejected: BTreeMap<String, Rejected>,
    /// In force, though the store has no such key any more.
    #[serde(default)]
    pub withheld: Vec<String>,
    /// Why the last change of policy was not taken, in full.
    #[serde(default)]
    pub last_error: Option<String>,
    /// What does not work, a sentence each.
    #[serde(default)]
    pub degraded: Vec<String>,
    /// Unix seconds: since when it is as it says.
    pub since: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub version: u64,
    /// Hex BLAKE3 of what was signed.
    pub digest: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// `bad-signature`, `older`, `conflict`, ...
    pub word: String,
    pub text: String,
    /// If it is known which.
    #[serde(default)]
    pub version: Option<u64>,
}

impl Report {
    /// Whether it says something else than before, apart from since when.
    pub fn is_news(&self, before: &Report) -> bool {
        // A number in a sentence may change all the time.
        let without_digits = |text: &String| text.replace(|c: char| c.is_ascii_digit(), "");
        let timeless = |report: &Report| Report {
            since: 0,
            degraded: report.degraded.iter().map(without_digits).collect(),
            ..report.clone()
        };
        timeless(self) != timeless(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(name: &str) -> Vec<u8> {
        let registration = Registration {
            labels: Labels::new(name, [("role".to_owned(), "web".to_owned())]).expect("labels"),
            addresses: vec![[192, 0, 2, 1].into()],
            version: "0.1.0".into(),
            at: 1,
        };
        let stored = Stored {
            registration: serde_json::to_string(&registration).expect("JSON"),
            signature: None,
        };
        serde_json::to_vec(&stored).expect("JSON")
    }

    #[test]
    fn a_registration_is_read_under_its_own_key_only() {
        let (registration, _) = Stored::read("web-1", &stored("web-1")).expect("read");
        assert_eq!(
            (registration.name(), registration.labels.get("role")),
            ("web-1", Some("web"))
        );
        let error = Stored::read("web-2", &stored("web-1")).expect_err("another node's");
        assert_eq!(error.to_string(), "stored for web-2, written for web-1");
    }

    #[test]
    fn what_no_agent_writes_is_no_registration() {
        for bytes in [
            &b""[..],
            b"null",
            b"{}",
            b"[]",
            b"\xff\xfe",
            br#"{"registration": ""#,
            br#"{"registration": "null"}"#,
            br#"{"registration": "{\"labels\":{}}"}"#,
            br#"{"registration": "{\"labels\":{\"name\":\"../x\"}}"}"#,
            &[b' '; MAX_BYTES + 1],
        ] {
            assert!(Stored::read("web-1", bytes).is_err(), "{:?}", bytes.get(..20));
        }
    }

    #[test]
    fn time_alone_is_no_news() {
        let report = Report::default();
        let later = Report {
            since: 5,
            ..Report::default()
        };
        assert!(!later.is_news(&report));
        let filling = |percent: u8| Report {
            degraded: vec![format!("the table is {percent}% full")],
            ..Report::default()
        };
        assert!(!filling(60).is_news(&filling(61)) && filling(60).is_news(&report));
        let other = Report {
            generation: 1,
            ..report.clone()
        };
        assert!(other.is_news(&report));
    }
}
