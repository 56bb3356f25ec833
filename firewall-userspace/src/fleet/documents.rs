//! What the fleet says to this node, verified and whole: the documents that hold here and the nodes that their groups
//! may mean. A value: who has one needs no store to put it in force.

use super::registered::Nodes;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// One policy of the fleet, as it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub name: String,
    pub version: u64,
    /// Of the envelope: names it in status and cache.
    pub digest: blake3::Hash,
    pub signer: String,
    /// The selector, as written.
    pub nodes: String,
    /// Unix seconds.
    pub issued: u64,
    /// Unix seconds; from then on it is not accepted any more. Where it is in force it stays.
    pub expires: Option<u64>,
    pub text: String,
    /// The manifest of each list file that the text reads, by the name it has there.
    pub lists: BTreeMap<String, blake3::Hash>,
    /// Manifests and chunks of the lists.
    pub objects: HashMap<blake3::Hash, Bytes>,
    /// As it stood in the store.
    pub envelope: Bytes,
    /// When it was verified first, unix seconds: what it is verified by again.
    pub accepted_at: u64,
    /// Whether its groups ask for nodes.
    pub asks_for_nodes: bool,
}

/// All that holds on this node. The order of the parts is that of their names, so that the same set is the same policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Documents {
    pub parts: Vec<Arc<Document>>,
    pub nodes: Arc<Nodes>,
}

impl Documents {
    pub fn part(&self, name: &str) -> Option<&Arc<Document>> {
        self.parts
            .binary_search_by(|part| (*part.name).cmp(name))
            .ok()
            .map(|at| &self.parts[at])
    }

    /// Whether both mean the same policy. Nodes count only if a group asks for them.
    pub fn same(&self, other: &Documents) -> bool {
        let names =
            |set: &Documents| -> Vec<blake3::Hash> { set.parts.iter().map(|part| part.digest).collect() };
        let asked = self.parts.iter().any(|part| part.asks_for_nodes);
        names(self) == names(other) && (!asked || self.nodes == other.nodes)
    }

    /// Names of the documents that are not the same in both.
    pub fn differing(&self, other: &Documents) -> Vec<String> {
        let mut names: Vec<String> = self
            .parts
            .iter()
            .chain(&other.parts)
            .map(|part| part.name.clone())
            .collect();
        names.sort();
        names.dedup();
        names.retain(|name| {
            self.part(name).map(|part| part.digest) != other.part(name).map(|part| part.digest)
        });
        names
    }
}
