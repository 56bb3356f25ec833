//! The table of bans from the agent's side: what `firewall_common::ban` lays out, in the map `BANS`.

use super::{DatapathError, sys, sys::Mapping};
use aya::maps::{HashMap, IterableMap, MapData, MapError};
use firewall_common::{
    ban::{Ban, BanKey},
    control::Control,
};
use std::{
    io,
    mem::offset_of,
    os::fd::AsFd,
    sync::atomic::{Ordering, fence},
};

pub(super) struct Bans {
    map: HashMap<MapData, [u64; 3], [u64; 3]>,
    max: usize,
}

impl Bans {
    pub fn open(map: HashMap<MapData, [u64; 3], [u64; 3]>) -> Result<Bans, DatapathError> {
        let info = sys::map_info(map.map().fd().as_fd())
            .map_err(DatapathError::system("asking for the size of the table of bans"))?;
        Ok(Bans {
            map,
            max: info.max_entries as usize,
        })
    }

    pub fn max(&self) -> usize {
        self.max
    }

    pub fn read(&self) -> Result<Vec<(BanKey, Ban)>, DatapathError> {
        let elements = sys::hash_elements(self.map.map().fd().as_fd())
            .map_err(DatapathError::system("reading the table of bans"))?;
        let decode = |(key, ban)| (BanKey::from_words(key), Ban::from_words(ban));
        Ok(elements.into_iter().map(decode).collect())
    }

    pub fn any_live(&self, now_s: u32) -> Result<bool, DatapathError> {
        Ok(self.read()?.iter().any(|(_, ban)| ban.is_live(now_s)))
    }

    pub fn insert(&mut self, key: BanKey, ban: Ban) -> Result<(), DatapathError> {
        self.map
            .insert(key.to_words(), ban.to_words(), 0)
            .map_err(|error| match error {
                // The kernel's word for a full table.
                MapError::SyscallError(error)
                    if error.io_error.kind() == io::ErrorKind::ArgumentListTooLong =>
                {
                    DatapathError::BansFull { max: self.max }
                }
                other => DatapathError::map("BANS")(other),
            })
    }

    /// False if there is none.
    pub fn remove(&mut self, key: BanKey) -> Result<bool, DatapathError> {
        match self.map.remove(&key.to_words()) {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
                Ok(false)
            }
            Err(error) => Err(DatapathError::map("BANS")(error)),
        }
    }

    /// Whether packets look into the table at all.
    pub fn ask(&self, control: &Mapping, ask: bool) {
        control
            .u32(offset_of!(Control, bans))
            .store(ask.into(), Ordering::Relaxed);
        // Before the table is looked at again.
        fence(Ordering::SeqCst);
    }
}
