//! One agent per instance: locks on the state directory and on the pins, held until the process ends.
//!
//! Two, because either can be shared by mistake: agents of one state directory would overwrite each other's files,
//! agents of one pin directory each other's policy. Taken before anything is touched.

use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Held while it lives.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another agent{} already runs on {}; stop it first, or give this one an --instance of its own", pid_text(*pid), path.display())]
    Held { path: PathBuf, pid: Option<u32> },
    #[error("cannot lock {}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

/// How long a holder may take to die: a killed agent keeps its locks until the kernel has taken it apart.
const DYING: Duration = Duration::from_millis(750);

/// Locks `<state_dir>/lock`, made if missing, and writes the process id into it.
pub fn state_dir(state_dir: &Path) -> Result<Lock, LockError> {
    let path = state_dir.join("lock");
    let failed = |source| LockError::Io {
        path: path.clone(),
        source,
    };
    std::fs::create_dir_all(state_dir).map_err(failed)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed)?;
    let mut lock = take(file, &path)?;
    lock.set_len(0)
        .and_then(|()| writeln!(*lock, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(Lock(lock))
}

/// Locks a directory of the BPF file system.
pub fn pins(pins: &Path) -> Result<Lock, LockError> {
    let failed = |source| LockError::Io {
        path: pins.to_owned(),
        source,
    };
    std::fs::create_dir_all(pins).map_err(failed)?;
    take(File::open(pins).map_err(failed)?, pins).map(Lock)
}

fn take(mut file: File, path: &Path) -> Result<Flock<File>, LockError> {
    let begun = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::Error::EWOULDBLOCK)) if begun.elapsed() < DYING => file = back,
            Err((mut file, nix::Error::EWOULDBLOCK)) => {
                return Err(LockError::Held {
                    path: path.to_owned(),
                    pid: holder(&mut file),
                });
            }
            Err((_, errno)) => {
                return Err(LockError::Io {
                    path: path.to_owned(),
                    source: errno.into(),
                });
            }
        }
        std::thread::sleep(Duration::from_millis(25));
    }
}

/// Who holds the lock: what the kernel says, else what the holder wrote.
fn holder(file: &mut File) -> Option<u32> {
    let inode = file.metadata().ok()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let by_kernel = locks.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 4711 08:01:393 0 EOF
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = words[..] else {
            return None;
        };
        (file.rsplit(':').next() == Some(inode.as_str())).then(|| pid.parse().ok())?
    });
    by_kernel.or_else(|| {
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it_and_the_next_one_gets_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = state_dir(dir.path()).expect("free");
        match state_dir(dir.path()) {
            Err(error @ LockError::Held { pid: Some(pid), .. }) => {
                assert_eq!(pid, std::process::id());
                assert!(error.to_string().contains(&format!("(pid {pid})")), "{error}");
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        state_dir(dir.path()).expect("free again");
        let pinned = pins(dir.path()).expect("a directory can be locked");
        assert!(matches!(pins(dir.path()), Err(LockError::Held { .. })));
        drop(pinned);
    }
}
