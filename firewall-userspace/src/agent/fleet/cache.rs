//! What a node keeps of its fleet over restarts, below `fleet/` in the state directory: the envelopes in force and those
//! about to be, their lists, who was registered, and how far the store was known.
//!
//! Files are named by what they hold and written before the manifest that names them, which is replaced whole: after a
//! crash at any line the old or the new set is there. All of it is verified again when it is read.

use crate::fleet::documents::Document;
use crate::fleet::lists;
use crate::fleet::node::{Keep, Kept, KeptDocument};
use crate::fleet::statement::{Digest, Envelope};
use crate::store::shared::Point;
use crate::store::{Durable, read_json, replace, write_json};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MANIFEST: &str = "documents.json";
const MEMBERS: &str = "nodes.json";
const MEMORY: &str = "memory.json";

/// See the top of this file.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    /// Objects that are known to be there.
    written: HashSet<Digest>,
    last: Manifest,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Manifest {
    good: Vec<Digest>,
    next: Vec<Digest>,
    #[serde(default)]
    point: Option<Point>,
    /// Something of the fleet was in force once.
    #[serde(default)]
    heard: bool,
}

impl Cache {
    pub fn new(state_dir: &Path) -> Cache {
        Cache {
            root: state_dir.join("fleet"),
            written: HashSet::new(),
            last: Manifest::default(),
        }
    }

    /// Where [`crate::fleet::memory::Memory`] is kept.
    pub fn memory(&self) -> PathBuf {
        self.root.join(MEMORY)
    }

    fn object(&self, digest: &Digest) -> PathBuf {
        self.root.join("objects").join(digest.to_string())
    }

    fn get(&self, digest: &Digest) -> Option<Bytes> {
        let path = self.object(digest);
        let bytes = std::fs::read(&path)
            .inspect_err(|error| log::warn!("cannot read {}: {error}", path.display()))
            .ok()?;
        if Digest::of(&bytes) != *digest {
            log::warn!("{} is damaged: it is not what was written", path.display());
            return None;
        }
        Some(Bytes::from(bytes))
    }

    /// What was kept. A document of which something is missing or damaged is left out.
    pub fn read(&mut self) -> (Kept, Option<Point>) {
        let manifest: Manifest = read_json(&self.root.join(MANIFEST)).unwrap_or_default();
        let members: BTreeMap<String, String> = read_json(&self.root.join(MEMBERS)).unwrap_or_default();
        let documents = |digests: &[Digest]| {
            digests
                .iter()
                .filter_map(|digest| self.document(digest))
                .collect()
        };
        let kept = Kept {
            good: documents(&manifest.good),
            next: documents(&manifest.next),
            members: members
                .into_iter()
                .map(|(name, value)| (name, Bytes::from(value)))
                .collect(),
            heard: manifest.heard,
        };
        let point = manifest.point.clone();
        self.last = manifest;
        (kept, point)
    }

    fn document(&self, digest: &Digest) -> Option<KeptDocument> {
        let envelope = self.get(digest)?;
        let parsed = Envelope::parse(&envelope)
            .inspect_err(|error| log::warn!("{} is no document: {error}", self.object(digest).display()))
            .ok()?;
        let mut objects: HashMap<Digest, Bytes> = HashMap::new();
        for root in parsed.claims().lists.values() {
            loop {
                let missing = lists::missing(root, |digest| objects.get(digest))
                    .inspect_err(|error| log::warn!("a list that was kept is damaged: {error}"))
                    .ok()?;
                if missing.is_empty() {
                    break;
                }
                for digest in missing {
                    objects.insert(digest, self.get(&digest)?);
                }
            }
        }
        Some(KeptDocument { envelope, objects })
    }

    /// Keeps what is in force and what is about to be.
    ///
    /// # Errors
    /// The disk is full, or read-only: what was kept before still is.
    pub fn write(&mut self, keep: &Keep, point: Option<&Point>) -> io::Result<()> {
        let directory = self.root.join("objects");
        let names =
            |documents: &[Arc<Document>]| documents.iter().map(|document| document.stored_as).collect();
        let manifest = Manifest {
            good: names(&keep.good),
            next: names(&keep.next),
            point: point.cloned(),
            heard: keep.heard,
        };
        let documents = |manifest: &Manifest| (manifest.good.clone(), manifest.next.clone(), manifest.heard);
        if documents(&manifest) == documents(&self.last) {
            // Where the store was is nothing that a power cut has to spare.
            if manifest != self.last {
                write_json(&self.root.join(MANIFEST), &manifest, Durable::No)?;
                self.last = manifest;
            }
            return Ok(());
        }
        std::fs::create_dir_all(&directory)?;
        let mut used = HashSet::new();
        for document in keep.good.iter().chain(&keep.next) {
            let envelope = [(&document.stored_as, &document.envelope)];
            for (digest, bytes) in envelope.into_iter().chain(&document.objects) {
                used.insert(*digest);
                if !self.written.contains(digest) {
                    let path = self.object(digest);
                    let there = std::fs::read(&path).is_ok_and(|there| there == *bytes);
                    if !there {
                        replace(&path, bytes, Durable::Yes)?;
                    }
                    self.written.insert(*digest);
                }
            }
        }
        write_json(&self.root.join(MANIFEST), &manifest, Durable::Yes)?;
        self.last = manifest;
        self.written.retain(|digest| used.contains(digest));
        for entry in std::fs::read_dir(&directory)?.flatten() {
            let name = entry.file_name();
            let digest = name.to_str().and_then(Digest::from_hex);
            if !digest.is_some_and(|digest| used.contains(&digest)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Keeps who is registered. Losing it costs the time until the store is in reach.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write_members(&self, members: &[(String, Bytes)]) -> io::Result<()> {
        let members: BTreeMap<&str, &str> = members
            .iter()
            .filter_map(|(name, value)| Some((&**name, std::str::from_utf8(value).ok()?)))
            .collect();
        std::fs::create_dir_all(&self.root)?;
        write_json(&self.root.join(MEMBERS), &members, Durable::No)
    }
}
