//! The operator's policy file: read with what tells whether it changed, written only over what was read.

use super::{Durable, replace};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What tells one content of a file from another without reading it: device, inode, size, times.
pub type Stamp = Option<[i64; 7]>;

/// `None` if there is no such file. Taken before a file is read, so that a change meanwhile is seen later.
pub fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    let (device, inode, size) = (meta.dev() as i64, meta.ino() as i64, meta.size() as i64);
    Some([
        device,
        inode,
        size,
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    ])
}

/// What was there when the policy was last looked at, whether it was any good or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `None`: no file.
    pub text: Option<blake3::Hash>,
    /// The list files it asked for, each with its stamp just before it was read.
    pub lists: BTreeMap<PathBuf, Stamp>,
}

impl Seen {
    pub fn text(text: Option<&str>) -> Seen {
        Seen {
            text: text.map(|text| blake3::hash(text.as_bytes())),
            lists: BTreeMap::new(),
        }
    }

    /// Whether the policy with this text, and its list files as they are now, would look the same.
    pub fn still(&self, text: Option<&str>) -> bool {
        self.text == Seen::text(text).text && self.lists.iter().all(|(path, was)| stamp(path) == *was)
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
    let failed = |source| WriteError::Io {
        path: path.to_owned(),
        source,
    };
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
        assert!(matches!(
            write_over(&path, Some("one"), "three"),
            Err(WriteError::Changed(_))
        ));
        assert!(matches!(
            write_over(&path, None, "three"),
            Err(WriteError::Changed(_))
        ));
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "two");
    }

    #[test]
    fn changes_of_text_and_lists_are_seen() {
        let dir = tempfile::tempdir().expect("a directory");
        let list = dir.path().join("list.txt");
        std::fs::write(&list, "10.0.0.0/8").expect("written");
        let mut seen = Seen::text(Some("text"));
        seen.lists.insert(list.clone(), stamp(&list));
        assert!(seen.still(Some("text")) && !seen.still(Some("other")) && !seen.still(None));
        std::fs::write(&list, "10.0.0.0/16").expect("written");
        assert!(!seen.still(Some("text")));
        std::fs::remove_file(&list).expect("removed");
        assert!(!seen.still(Some("text")));
    }
}
