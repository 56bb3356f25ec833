//! The last policy that was applied, with everything needed to apply it again when the operator's files are gone:
//! the text, and the content of each list file.
//!
//! `last-good.json` names the list files by the digest of their content, kept under `lists/`; those are written
//! first, so the manifest never names what is not there. A list that does not change is not written again.

use super::{Durable, read_json, replace, write_json};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

/// The list files of a policy, by the path under which the policy reads them.
pub type Lists = BTreeMap<PathBuf, Vec<u8>>;

const MANIFEST: &str = "last-good.json";

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    generation: u64,
    /// The policy's own path, for messages and relative list files.
    path: PathBuf,
    text: String,
    lists: BTreeMap<PathBuf, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastGood {
    pub generation: u64,
    pub path: PathBuf,
    pub text: String,
    pub lists: Lists,
}

impl LastGood {
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        let directory = state_dir.join("lists");
        std::fs::create_dir_all(&directory)?;
        let mut lists = BTreeMap::new();
        for (path, content) in &self.lists {
            let digest = blake3::hash(content).to_hex().to_string();
            let kept = directory.join(&digest);
            if !kept.exists() {
                replace(&kept, content, Durable::Yes)?;
            }
            lists.insert(path.clone(), digest);
        }
        let used: HashSet<String> = lists.values().cloned().collect();
        let manifest = Manifest {
            generation: self.generation,
            path: self.path.clone(),
            text: self.text.clone(),
            lists,
        };
        write_json(&state_dir.join(MANIFEST), &manifest, Durable::Yes)?;
        for entry in std::fs::read_dir(&directory)?.flatten() {
            if !entry.file_name().to_str().is_some_and(|name| used.contains(name)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Whether a policy has been in force before.
    pub fn exists(state_dir: &Path) -> bool {
        state_dir.join(MANIFEST).exists()
    }

    /// `None` if there is none, or if part of it is missing.
    pub fn read(state_dir: &Path) -> Option<LastGood> {
        let manifest: Manifest = read_json(&state_dir.join(MANIFEST))?;
        let mut lists = Lists::new();
        for (path, digest) in manifest.lists {
            let kept = state_dir.join("lists").join(&digest);
            let content = std::fs::read(&kept)
                .inspect_err(|error| log::warn!("the last good policy lacks {}: {error}", kept.display()))
                .ok()?;
            if blake3::hash(&content).to_hex().as_str() != digest {
                log::warn!(
                    "the last good policy is damaged: {} is not what was written",
                    kept.display()
                );
                return None;
            }
            lists.insert(path, content);
        }
        Some(LastGood {
            generation: manifest.generation,
            path: manifest.path,
            text: manifest.text,
            lists,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(generation: u64, list: &[u8]) -> LastGood {
        LastGood {
            generation,
            path: "/etc/ravelin/policy.toml".into(),
            text: "version = 1\n".into(),
            lists: Lists::from([("/etc/ravelin/lists/blocked.txt".into(), list.to_vec())]),
        }
    }

    #[test]
    fn what_was_written_is_read_and_old_lists_go() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(LastGood::read(dir.path()), None);
        for last in [policy(1, b"192.0.2.0/24"), policy(2, b"198.51.100.0/24")] {
            last.write(dir.path()).expect("written");
            assert_eq!(LastGood::read(dir.path()), Some(last));
        }
        assert_eq!(
            std::fs::read_dir(dir.path().join("lists")).expect("read").count(),
            1
        );
    }

    #[test]
    fn a_damaged_copy_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        policy(1, b"192.0.2.0/24").write(dir.path()).expect("written");
        let list = std::fs::read_dir(dir.path().join("lists"))
            .expect("read")
            .flatten()
            .next()
            .expect("one");
        std::fs::write(list.path(), "10.0.0.0/8").expect("written");
        assert_eq!(LastGood::read(dir.path()), None);
    }
}
