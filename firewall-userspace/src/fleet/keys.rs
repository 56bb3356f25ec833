//! Keys for tests, made by the real ssh-keygen.

use super::Trust;
use super::signature::{self, Signature};
use super::signers::Signers;
use super::statement::{Envelope, Kind, Statement};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory of keys.
pub struct Keys(tempfile::TempDir);

impl Keys {
    pub fn new() -> Keys {
        Keys(tempfile::tempdir().expect("a directory"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes a key of `kind` (`-t` of ssh-keygen, and perhaps `-b`).
    pub fn make(&self, name: &str, kind: &[&str]) -> PathBuf {
        let path = self.path().join(name);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-N", "", "-C", name, "-t"])
            .args(kind)
            .arg("-f")
            .arg(&path)
            .status()
            .expect("ssh-keygen runs");
        assert!(made.success());
        path
    }

    pub fn ed25519(&self, name: &str) -> PathBuf {
        self.make(name, &["ed25519"])
    }
}

/// The line of a public key.
pub fn public(key: &Path) -> String {
    let text = std::fs::read_to_string(key.with_extension("pub")).expect("a public key");
    text.trim().to_owned()
}

/// A line of allowed signers.
pub fn allowed(principal: &str, options: &str, key: &Path) -> String {
    format!("{principal} {options} {}\n", public(key))
}

pub fn signers(text: &str) -> Signers {
    Signers::parse(text, Path::new("allowed_signers")).expect("signers")
}

/// Everybody in `text` may say everything.
pub fn trust(text: &str) -> Trust {
    Trust {
        signers: signers(text),
        roles: None,
    }
}

/// When statements of tests are issued.
pub const ISSUED: u64 = 1_795_305_600;

/// A document that opens one port.
pub fn document(name: &str, version: u64) -> Statement {
    Statement {
        kind: Kind::Policy,
        name: name.to_owned(),
        nodes: "role=payments".to_owned(),
        version,
        issued: ISSUED,
        expires: Some(ISSUED + 90 * 86_400),
        lists: BTreeMap::new(),
        text: format!(
            "version = 1\n[policy]\nname = \"{name}\"\nnodes = \"role=payments\"\n\n[[service]]\nname = \"{name}-api\"\n\
             ports = [\"tcp/8443\"]\nallow = [\"198.51.100.0/24\"]\n"
        ),
    }
}

pub fn sign(statement: &Statement, key: &Path) -> Envelope {
    statement.check().expect("a statement");
    let bytes = statement.to_bytes();
    let signature: Signature = signature::sign(&bytes, key, signature::POLICY).expect("signed");
    Envelope::seal(&bytes, signature.armored()).expect("an envelope")
}
