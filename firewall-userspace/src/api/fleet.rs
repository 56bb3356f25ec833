//! What `GET /v1/status` says of the fleet that a node belongs to.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FleetStatus {
    /// Of this node.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// `etcd https://10.0.0.1:2379`, or a directory.
    pub store: String,
    pub connected: bool,
    /// Unix seconds: since when it is connected or not.
    pub since: u64,
    /// Unix seconds of the last word of the store; 0 for none since the agent started.
    pub last_contact: u64,
    /// Why it is not connected.
    pub error: Option<String>,
    /// Of the store; 0 if it has none.
    pub revision: i64,
    /// This node is registered.
    pub registered: bool,
    /// Nodes that groups may hold.
    pub nodes: usize,
    /// By name.
    pub documents: Vec<DocumentRow>,
    /// By reason: how many values were refused since the agent started.
    #[serde(default)]
    pub refused: BTreeMap<String, u64>,
    /// What does not work, a sentence each.
    #[serde(default)]
    pub degraded: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DocumentRow {
    pub name: String,
    /// `in-force`, `coming`, `incomplete`, `rejected` or `withheld`.
    pub state: String,
    /// In force; `None` if no version is.
    pub version: Option<u64>,
    pub signer: Option<String>,
    /// Hex BLAKE3 of what was signed.
    pub digest: Option<String>,
    /// Unix seconds from which on it is not accepted any more; where it is in force it stays.
    pub expires: Option<u64>,
    /// What the store has, if that is another one.
    pub offered: Option<u64>,
    /// Why that is not in force: a word that never changes, and the whole of it.
    pub reason: Option<String>,
    pub text: Option<String>,
}
