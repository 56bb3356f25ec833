//! Many nodes: what operators sign, whom a node believes, which nodes something is meant for, and what a node makes of it.

pub mod documents;
pub mod guards;
pub mod lists;
pub mod memory;
pub mod node;
pub mod orders;
mod pattern;
pub mod registered;
pub mod report;
pub mod roles;
pub mod selector;
pub mod signature;
pub mod signers;
pub mod statement;
mod trust;

pub use trust::{CLOCKS_DIFFER, Trust, TrustError, Verified};

use std::io::{self, Read};
use std::path::Path;

/// Reads a text file that is not larger than it should be.
fn read_small(path: &Path, most: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?
        .take(most + 1)
        .read_to_string(&mut text)?;
    match read as u64 > most {
        true => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {most} bytes"),
        )),
        false => Ok(text),
    }
}

#[cfg(test)]
pub(crate) mod keys;
