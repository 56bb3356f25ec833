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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::keys::{self, Keys};
    use crate::fleet::lists::encode;
    use crate::fleet::{Trust, Verified};

    /// A document with a list of its own.
    fn document(key: &Path, version: u64) -> Arc<Document> {
        let list = encode(format!("192.0.2.{version}").as_bytes(), Path::new("list.txt")).expect("a list");
        let mut statement = keys::document("payments", version);
        statement.lists = BTreeMap::from([("list.txt".to_owned(), list.root)]);
        let envelope = keys::sign(&statement, key);
        let objects = list
            .objects
            .into_iter()
            .map(|(digest, object)| (digest, Bytes::from(object)));
        Arc::new(Document {
            verified: Verified {
                digest: envelope.digest(),
                statement,
                signer: "alice".into(),
                fingerprint: String::new(),
            },
            stored_as: Digest::of(envelope.bytes()),
            envelope: Bytes::copy_from_slice(envelope.bytes()),
            objects: objects.collect(),
            asks: Vec::new(),
        })
    }

    fn versions(documents: &[KeptDocument]) -> Vec<u64> {
        let envelopes = documents
            .iter()
            .map(|document| Envelope::parse(&document.envelope));
        envelopes
            .map(|envelope| envelope.expect("an envelope").claims().version)
            .collect()
    }

    #[test]
    fn what_was_kept_is_read_and_what_is_not_used_goes() {
        let (dir, keys) = (tempfile::tempdir().expect("a directory"), Keys::new());
        let key = keys.ed25519("alice");
        let (one, two) = (document(&key, 1), document(&key, 2));
        let mut cache = Cache::new(dir.path());
        assert_eq!(cache.read().0.good.len(), 0);
        let about_to = Keep {
            good: vec![one.clone()],
            next: vec![two.clone()],
            heard: true,
            ..Keep::default()
        };
        cache.write(&about_to, None).expect("written");
        let (kept, _) = Cache::new(dir.path()).read();
        assert_eq!(
            (versions(&kept.good), versions(&kept.next), kept.heard),
            (vec![1], vec![2], true)
        );
        assert_eq!(kept.next[0].objects, two.objects);

        let point = Point {
            cluster: 7,
            ..Point::default()
        };
        let done = Keep {
            good: vec![two],
            heard: true,
            ..Keep::default()
        };
        cache.write(&done, Some(&point)).expect("written");
        let (kept, known) = Cache::new(dir.path()).read();
        assert_eq!(
            (versions(&kept.good), kept.next.len(), known),
            (vec![2], 0, Some(point))
        );
        let objects = std::fs::read_dir(dir.path().join("fleet/objects")).expect("read");
        assert_eq!(objects.count(), 1 + kept.good[0].objects.len());
    }

    #[test]
    fn a_document_that_is_damaged_is_left_out_and_written_anew() {
        let (dir, keys) = (tempfile::tempdir().expect("a directory"), Keys::new());
        let one = document(&keys.ed25519("alice"), 1);
        let keep = Keep {
            good: vec![one.clone()],
            ..Keep::default()
        };
        Cache::new(dir.path()).write(&keep, None).expect("written");
        for digest in one.objects.keys().chain([&one.stored_as]) {
            let path = dir.path().join("fleet/objects").join(digest.to_string());
            std::fs::write(&path, "garbage").expect("written");
            assert_eq!(Cache::new(dir.path()).read().0.good.len(), 0);
            Cache::new(dir.path()).write(&keep, None).expect("written");
            assert_eq!(Cache::new(dir.path()).read().0.good.len(), 1);
        }
        // What is read is verified by whoever reads it.
        let (kept, _) = Cache::new(dir.path()).read();
        let envelope = Envelope::parse(&kept.good[0].envelope).expect("an envelope");
        assert!(Trust::default().verify_kept(&envelope, None).is_err());
    }
}
