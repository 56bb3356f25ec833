//! Where the policy comes from and where it is kept: the file of the operator, the agent's own copies, and what a fleet
//! shares ([`shared`]).
//!
//! Everything is replaced whole: a reader, and a machine that loses power, sees the old content or the new one.

pub mod directory;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod follow;
pub mod last_good;
pub mod memory;
pub mod policy_file;
pub mod settings;
pub mod shared;
pub mod state;

pub use settings::{Settings, open};

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Whether a write is there after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    Yes,
    /// Only processes that die are survived.
    No,
}

/// Replaces or makes the file `path`. Symbolic links are followed; owner and mode of an existing file are kept, a
/// new one is for its owner only.
pub fn replace(path: &Path, content: &[u8], durable: Durable) -> io::Result<()> {
    let target = follow(path)?;
    let directory = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = target
        .file_name()
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_string_lossy()
        .into_owned();
    let mut file = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .tempfile_in(directory)?;
    if let Ok(old) = std::fs::metadata(&target) {
        // Not allowed without root when the owner differs: then the new file would not be the operator's any more.
        if (old.uid(), old.gid()) != owner(file.as_file())? {
            std::os::unix::fs::fchown(file.as_file(), Some(old.uid()), Some(old.gid()))?;
        }
        file.as_file()
            .set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
    }
    file.write_all(content)?;
    if durable == Durable::Yes {
        file.as_file().sync_all()?;
    }
    file.persist(&target).map_err(|error| error.error)?;
    if durable == Durable::Yes {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

fn owner(file: &File) -> io::Result<(u32, u32)> {
    let metadata = file.metadata()?;
    Ok((metadata.uid(), metadata.gid()))
}

/// The file that `path` names in the end, which need not exist.
fn follow(path: &Path) -> io::Result<PathBuf> {
    Ok(links_on_the_way(path)?.pop().unwrap_or_else(|| path.to_owned()))
}

/// Every directory entry that decides which file `path` is: the symbolic links on the way, then the file itself
/// (which need not exist).
pub fn links_on_the_way(path: &Path) -> io::Result<Vec<PathBuf>> {
    // As many as the kernel follows.
    const MOST: usize = 40;
    let mut entries = Vec::new();
    let mut path = path.to_owned();
    'again: for _ in 0..MOST {
        let mut walked = PathBuf::new();
        let mut components = path.components();
        while let Some(component) = components.next() {
            walked.push(component);
            if let Ok(target) = std::fs::read_link(&walked) {
                entries.push(walked.clone());
                walked.pop();
                // An absolute target replaces what was walked.
                walked.push(target);
                // An empty rest would end the path in a slash, which stands for a directory.
                if !components.as_path().as_os_str().is_empty() {
                    walked.push(components.as_path());
                }
                path = walked;
                continue 'again;
            }
        }
        entries.push(path);
        return Ok(entries);
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// Reads a JSON file of the agent's own. A file that is missing or was cut short is as good as none.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            log::warn!("cannot read {}, going on without it: {error}", path.display());
            return None;
        }
    };
    serde_json::from_slice(&bytes)
        .inspect_err(|error| log::warn!("cannot use {}, going on without it: {error}", path.display()))
        .ok()
}

pub(crate) fn write_json<T: serde::Serialize>(path: &Path, value: &T, durable: Durable) -> io::Result<()> {
    replace(path, &serde_json::to_vec(value)?, durable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_keeps_its_mode_and_the_link_that_leads_to_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let (real, link) = (dir.path().join("real.toml"), dir.path().join("link.toml"));
        std::fs::write(&real, "old").expect("written");
        std::fs::set_permissions(&real, Permissions::from_mode(0o640)).expect("mode set");
        std::os::unix::fs::symlink("real.toml", &link).expect("linked");
        replace(&link, b"new", Durable::Yes).expect("replaced");
        assert_eq!(std::fs::read_to_string(&real).expect("read"), "new");
        assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(std::fs::metadata(&real).expect("there").mode() & 0o7777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path()).expect("read").count(), 2);
    }

    #[test]
    fn all_links_on_the_way_to_a_file_are_known() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().canonicalize().expect("a path");
        std::fs::create_dir(root.join("v1")).expect("made");
        std::os::unix::fs::symlink("v1", root.join("data")).expect("linked");
        std::os::unix::fs::symlink("data/policy.toml", root.join("policy.toml")).expect("linked");
        let entries = links_on_the_way(&root.join("policy.toml")).expect("no loop");
        assert_eq!(
            entries,
            [
                root.join("policy.toml"),
                root.join("data"),
                root.join("v1/policy.toml")
            ]
        );
        std::os::unix::fs::symlink("loop", root.join("loop")).expect("linked");
        assert!(links_on_the_way(&root.join("loop")).is_err());
    }
}
