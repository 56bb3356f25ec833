//! Tells when the policy file or one of its lists may have changed.
//!
//! Watched are the directories of the file and of every symbolic link on the way to it: editors replace files by
//! renaming, and configuration managers swap links. Only a hint: whether anything changed is for who reads. From
//! time to time it gives a hint of its own, for file systems that report nothing and directories that come back.

use crate::store::links_on_the_way;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How long it has to be quiet after a change: a long list may still be in the middle of being written.
const QUIET: Duration = Duration::from_millis(50);
/// What is never quiet is looked at all the same.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between looks without being told.
const LOOK: Duration = Duration::from_secs(10);

/// Runs until the receiver of hints is gone. `files`: what to watch, which may change at any time.
pub async fn run(mut files: watch::Receiver<Vec<PathBuf>>, hint: impl Fn() -> bool) {
    let (events, mut changed) = mpsc::unbounded_channel();
    let interesting = Arc::new(Mutex::new(BTreeSet::new()));
    let filter = interesting.clone();
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        let entries: &BTreeSet<PathBuf> = &filter.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = event.need_rescan() || event.paths.iter().any(|path| entries.contains(path));
        if ours && !matches!(event.kind, EventKind::Access(_)) {
            // The receiver is gone when the agent stops.
            let _ = events.send(());
        }
    });
    let mut watches = match watcher {
        Ok(watcher) => Some(Watches {
            watcher,
            directories: BTreeMap::new(),
        }),
        Err(error) => {
            log::warn!("cannot watch the policy file, looking at it every {LOOK:?} instead: {error}");
            None
        }
    };
    loop {
        let entries: BTreeSet<PathBuf> = files
            .borrow_and_update()
            .iter()
            .flat_map(|path| links_on_the_way(path).unwrap_or_default())
            .collect();
        if let Some(watches) = &mut watches {
            watches.set(entries.iter().filter_map(|entry| entry.parent()));
        }
        *interesting.lock().unwrap_or_else(PoisonError::into_inner) = entries;
        tokio::select! {
            Some(()) = changed.recv() => {
                let since = tokio::time::Instant::now();
                while let Ok(Some(())) = tokio::time::timeout(QUIET, changed.recv()).await {
                    if since.elapsed() > PATIENCE {
                        break;
                    }
                }
            }
            result = files.changed() => match result {
                Ok(()) => {}
                Err(_) => return,
            },
            () = tokio::time::sleep(LOOK) => {}
        }
        if !hint() {
            return;
        }
    }
}

struct Watches {
    watcher: RecommendedWatcher,
    /// With device and inode: a directory that was made anew has to be watched anew.
    directories: BTreeMap<PathBuf, (u64, u64)>,
}

impl Watches {
    fn set<'a>(&mut self, wanted: impl Iterator<Item = &'a Path>) {
        let identity = |path: &Path| std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        let wanted: BTreeMap<PathBuf, (u64, u64)> = wanted
            .filter_map(|path| Some((path.to_owned(), identity(path)?)))
            .collect();
        self.directories.retain(|path, id| {
            let keep = wanted.get(path) == Some(id);
            if !keep {
                // It may be gone already, and its watch with it.
                let _ = self.watcher.unwatch(path);
            }
            keep
        });
        for (path, id) in wanted {
            if self.directories.contains_key(&path) {
                continue;
            }
            match self.watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.directories.insert(path, id);
                }
                Err(error) => log::debug!("cannot watch {}: {error}", path.display()),
            }
        }
    }
}
