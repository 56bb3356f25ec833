//! The operator's policy file: read with what tells whether it changed, written only over what was read.

use super::{Durable, replace};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What tells one content of a file from another without reading it: device, inode, size, times.
pub type Stamp = Option<[i64; 7]>;

/// `None` if there is no such file. Taken before a file is read, so that a change meanwhile is seen later.
pub fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    let (device, inode, size) = (meta.dev() as i64, meta.ino() as i64, meta.size() as i64);
    Some([device, inode, size, meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()])
}

/// Tells one content of the policy and its list files from another without reading the lists again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    text: blake3::Hash,
    lists: Vec<(PathBuf, Stamp)>,
}

impl Signature {
    /// `lists`: each with the stamp it had just before it was read.
    pub fn new(text: &str, lists: Vec<(PathBuf, Stamp)>) -> Signature {
        Signature { text: blake3::hash(text.as_bytes()), lists }
    }

    /// Whether `text`, with the list files as they are now, is what this was taken of.
    pub fn still(&self, text: &str) -> bool {
        self.text == blake3::hash(text.as_bytes()) && self.lists.iter().all(|(path, was)| stamp(path) == *was)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{} was changed by someone else meanwhile; look at it, then try again", .0.display())]
    Changed(PathBuf),
    #[error("cannot write {}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Writes `new` if the file still holds `old` (`None`: is not there).
pub fn write_over(path: &Path, old: Option<&str>, new: &str) -> Result<(), WriteError> {
    let failed = |source| WriteError::Io { path: path.to_owned(), source };
    let now = match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    if now.as_deref() != old {
        return Err(WriteError::Changed(path.to_owned()));
    }
    replace(path, new.as_bytes(), Durable::Yes).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_edit_between_read_and_write_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("policy.toml");
        write_over(&path, None, "one").expect("made");
        write_over(&path, Some("one"), "two").expect("replaced");
        assert!(matches!(write_over(&path, Some("one"), "three"), Err(WriteError::Changed(_))));
        assert!(matches!(write_over(&path, None, "three"), Err(WriteError::Changed(_))));
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "two");
    }

    #[test]
    fn a_signature_sees_changes_of_text_and_lists() {
        let dir = tempfile::tempdir().expect("a directory");
        let list = dir.path().join("list.txt");
        std::fs::write(&list, "10.0.0.0/8").expect("written");
        let signature = Signature::new("text", vec![(list.clone(), stamp(&list))]);
        assert!(signature.still("text") && !signature.still("other"));
        std::fs::write(&list, "10.0.0.0/16").expect("written");
        assert!(!signature.still("text"));
        std::fs::remove_file(&list).expect("removed");
        assert!(!signature.still("text"));
    }
}
