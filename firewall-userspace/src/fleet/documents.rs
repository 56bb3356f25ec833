//! What the fleet says to this node, verified and whole: the documents that hold here and the nodes that their groups
//! may mean. A value: who has one needs no store to put it in force.

use super::Verified;
use super::lists::{self, ListError};
use super::registered::Nodes;
use super::selector::Selector;
use super::statement::Digest;
use crate::policy::diagnostic::PolicyError;
use crate::policy::file::{self, Loaded};
use crate::policy::groups::{NodeGroup, Resolve};
use bytes::Bytes;
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

/// One policy of the fleet, as it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub verified: Verified,
    /// As it stood in the store.
    pub envelope: Bytes,
    /// Of the envelope.
    pub stored_as: Digest,
    /// What its lists are made of.
    pub objects: HashMap<Digest, Bytes>,
    /// The nodes that its groups ask for.
    pub asks: Vec<NodeGroup>,
}

impl Document {
    pub fn name(&self) -> &str {
        &self.verified.statement.name
    }

    pub fn version(&self) -> u64 {
        self.verified.statement.version
    }

    /// Of what was signed.
    pub fn digest(&self) -> Digest {
        self.verified.digest
    }

    /// Objects of its lists that are not here, as far as those that are can tell.
    ///
    /// # Errors
    /// One that is damaged.
    pub fn missing(&self) -> Result<Vec<Digest>, ListError> {
        let mut missing = Vec::new();
        for root in self.verified.statement.lists.values() {
            missing.extend(lists::missing(root, |digest| self.objects.get(digest))?);
        }
        missing.sort();
        missing.dedup();
        Ok(missing)
    }

    /// Lets go of objects that none of its lists is made of.
    pub fn tidy(&mut self) {
        let mut used = HashSet::new();
        for root in self.verified.statement.lists.values() {
            match lists::objects(root, |digest| self.objects.get(digest)) {
                Ok(objects) => used.extend(objects),
                // Something is missing: all that is there may be of use.
                Err(_) => return,
            }
        }
        self.objects.retain(|digest, _| used.contains(digest));
    }

    /// Reads `text`, which is its own or what is left of it without entries that have ended: here they are read like the
    /// others.
    ///
    /// # Errors
    /// All findings, with the name of the document for a path.
    pub fn load(&self, text: &str, nodes: &Nodes) -> Result<Loaded, PolicyError> {
        let mut parts = Parts {
            document: self,
            nodes,
        };
        file::parse_with(text, Path::new(self.name()), 0, &mut parts)
    }
}

/// What the groups of a document are made of.
struct Parts<'a> {
    document: &'a Document,
    nodes: &'a Nodes,
}

impl Resolve for Parts<'_> {
    fn file(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let lists = &self.document.verified.statement.lists;
        let root = path.to_str().and_then(|name| lists.get(name));
        let root = root
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it was not signed with the document"))?;
        lists::decode(root, |digest| self.document.objects.get(digest)).map_err(io::Error::other)
    }

    fn nodes(&mut self, nodes: &Selector, within: Option<&[IpNetwork]>) -> Option<Vec<IpAddr>> {
        Some(self.nodes.addresses(nodes, within))
    }
}

/// All that holds on this node. The order of the parts is that of their names, so that the same set is the same policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Documents {
    pub parts: Vec<Arc<Document>>,
    pub nodes: Arc<Nodes>,
    /// The fleet has said something once, so that an empty set is its word, too.
    pub heard: bool,
}

impl Documents {
    pub fn part(&self, name: &str) -> Option<&Arc<Document>> {
        let found = self.parts.binary_search_by(|part| part.name().cmp(name));
        found.ok().map(|at| &self.parts[at])
    }

    /// Whether both mean the same policy. Nodes count only where a group asks for them.
    pub fn same(&self, other: &Documents) -> bool {
        let digests =
            |set: &Documents| -> Vec<Digest> { set.parts.iter().map(|part| part.digest()).collect() };
        let addresses =
            |set: &Documents, group: &NodeGroup| set.nodes.addresses(&group.nodes, group.within.as_deref());
        let mut asked = self.parts.iter().flat_map(|part| &part.asks);
        digests(self) == digests(other)
            && (Arc::ptr_eq(&self.nodes, &other.nodes)
                || asked.all(|group| addresses(self, group) == addresses(other, group)))
    }

    /// Names of the documents that are not the same in both.
    pub fn differing(&self, other: &Documents) -> Vec<String> {
        let digests = |set: &Documents| -> BTreeMap<String, Digest> {
            let parts = set.parts.iter();
            parts
                .map(|part| (part.name().to_owned(), part.digest()))
                .collect()
        };
        let (ours, theirs) = (digests(self), digests(other));
        let mut names: Vec<String> = ours.keys().chain(theirs.keys()).cloned().collect();
        names.sort();
        names.dedup();
        names.retain(|name| ours.get(name) != theirs.get(name));
        names
    }
}
