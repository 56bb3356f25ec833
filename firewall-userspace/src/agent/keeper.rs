//! Writes last good policies to disk, away from the owner, who does not wait for it. Only the newest counts.

use crate::store::last_good::LastGood;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

pub struct Keeper {
    policies: Sender<LastGood>,
    thread: JoinHandle<()>,
}

impl Keeper {
    pub fn start(state_dir: PathBuf) -> std::io::Result<Keeper> {
        let (policies, waiting) = channel::<LastGood>();
        let keep = move || {
            while let Ok(mut policy) = waiting.recv() {
                while let Ok(newer) = waiting.try_recv() {
                    policy = newer;
                }
                if let Err(error) = policy.write(&state_dir) {
                    log::error!(
                        "cannot keep the last good policy in {}: {error}",
                        state_dir.display()
                    );
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("ravelin-keeper".into())
            .spawn(keep)?;
        Ok(Keeper { policies, thread })
    }

    pub fn keep(&self, policy: LastGood) {
        if self.policies.send(policy).is_err() {
            log::error!("the last good policy is not kept: its writer died");
        }
    }

    /// Waits until all is written.
    pub fn finish(self) {
        drop(self.policies);
        if self.thread.join().is_err() {
            log::error!("the last good policy may not have been kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_on_disk_when_it_finishes() {
        let dir = tempfile::tempdir().expect("a directory");
        let keeper = Keeper::start(dir.path().to_owned()).expect("a thread");
        let policy = |generation| LastGood {
            generation,
            path: "/etc/ravelin/policy.toml".into(),
            text: "version = 1\n".into(),
            lists: Default::default(),
        };
        for generation in 1..=5 {
            keeper.keep(policy(generation));
        }
        keeper.finish();
        assert_eq!(LastGood::read(dir.path()), Some(policy(5)));
    }
}
