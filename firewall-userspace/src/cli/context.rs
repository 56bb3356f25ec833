//! The context file of operators: which fleet, by which key it is changed, and whose signatures count.
//!
//! ```toml
//! [store]
//! endpoints = ["https://10.0.0.1:2379"]
//! ca = "ca.pem"
//! cert = "alice.pem"
//! key = "alice.key"
//!
//! [sign]
//! key = "~/.ssh/id_ed25519"
//!
//! [trust]
//! allowed_signers = "allowed_signers"
//! roles = "roles.toml"
//! ```
//!
//! Relative paths are meant from the directory of the file; `~/` is the home of who runs the command.

use crate::agent::config::mistake;
use crate::fleet::Trust;
use crate::fleet::roles::Roles;
use crate::fleet::signers::Signers;
use crate::store::{self, Settings};
use anyhow::{Context as _, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};

const SYSTEM: &str = "/etc/ravelin/context.toml";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    store: Settings,
    #[serde(default)]
    sign: Sign,
    trust: Option<TrustFiles>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sign {
    key: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustFiles {
    allowed_signers: PathBuf,
    roles: Option<PathBuf>,
}

/// What the file says, with the files that it names.
pub struct ContextFile {
    pub path: PathBuf,
    pub store: Settings,
    pub key: Option<PathBuf>,
    /// `None`: what is stored is shown as it is, believed or not.
    pub trust: Option<Trust>,
}

impl ContextFile {
    /// Reads the file that was named, or the first one that is there of those of the user and of the system.
    ///
    /// # Errors
    /// No file, or a mistake in it or in one that it names.
    pub fn find(named: Option<&Path>) -> anyhow::Result<ContextFile> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => {
                let usual = usual();
                let there = usual.iter().find(|path| path.exists());
                there.cloned().with_context(|| missing(&usual))?
            }
        };
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading the context file {}", path.display()))?;
        ContextFile::parse(&text, &path)
    }

    fn parse(text: &str, path: &Path) -> anyhow::Result<ContextFile> {
        let file: File = match toml::from_str(text) {
            Ok(file) => file,
            Err(error) => bail!("{}", mistake(text, path, &error)),
        };
        let base = std::path::absolute(path)?;
        let base = base.parent().unwrap_or(Path::new("/")).to_owned();
        let trust = match file.trust {
            None => None,
            Some(files) => Some(Trust {
                signers: Signers::read(&there(&base, &files.allowed_signers))?,
                roles: files
                    .roles
                    .map(|roles| Roles::read(&there(&base, &roles)))
                    .transpose()?,
            }),
        };
        Ok(ContextFile {
            path: path.to_owned(),
            store: file.store.relative_to(&base),
            key: file.sign.key.map(|key| there(&base, &key)),
            trust,
        })
    }

    /// The key to sign with.
    ///
    /// # Errors
    /// The file names none.
    pub fn key(&self) -> anyhow::Result<&Path> {
        self.key.as_deref().with_context(|| {
            format!(
                "{} names no key to sign with, and nodes take nothing unsigned: write\n\n  [sign]\n  key = \
                 \"~/.ssh/id_ed25519\"\n\nor the .pub of a key that your ssh-agent holds",
                self.path.display()
            )
        })
    }

    /// # Errors
    /// Files that `[store]` names and cannot be used.
    pub fn open(&self) -> anyhow::Result<std::sync::Arc<dyn store::shared::Store>> {
        Ok(store::open(&self.store)?)
    }
}

/// Where the file is looked for, the first one first.
fn usual() -> Vec<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(home()?.join(".config")));
    let of_user = config.map(|config| config.join("ravelin/context.toml"));
    of_user.into_iter().chain([PathBuf::from(SYSTEM)]).collect()
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute())
}

fn missing(usual: &[PathBuf]) -> String {
    let places: Vec<String> = usual.iter().map(|path| path.display().to_string()).collect();
    format!(
        "no context file, which says where the fleet is (--context FILE, RAVELIN_CONTEXT, {}); for example\n\n  [store]\n  \
         endpoints = [\"https://10.0.0.1:2379\"]\n  ca = \"ca.pem\"\n  cert = \"me.pem\"\n  key = \"me.key\"\n\n  [sign]\n  \
         key = \"~/.ssh/id_ed25519\"\n\n  [trust]\n  allowed_signers = \"allowed_signers\"\n",
        places.join(", ")
    )
}

fn there(base: &Path, path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), home()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => base.join(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let parsed = ContextFile::parse(text, Path::new("/etc/ravelin/context.toml"));
        parsed.err().map(|error| format!("{error:#}")).expect("refused")
    }

    #[test]
    fn paths_are_meant_from_the_directory_of_the_file() {
        let file = ContextFile::parse(
            "[store]\ndirectory = \"fleet\"\n[sign]\nkey = \"id_ed25519\"\n",
            Path::new("/etc/ravelin/context.toml"),
        )
        .expect("a context");
        assert_eq!(file.store, Settings::Directory("/etc/ravelin/fleet".into()));
        assert_eq!(file.key().expect("a key"), Path::new("/etc/ravelin/id_ed25519"));
        assert!(file.trust.is_none());
        let keyless = ContextFile::parse(
            "[store]\ndirectory = \"fleet\"\n",
            Path::new("/etc/ravelin/context.toml"),
        );
        let error = keyless.expect("a context").key().expect_err("no key").to_string();
        assert!(error.contains("names no key to sign with"), "{error}");
    }

    #[test]
    fn mistakes_carry_their_place() {
        for (text, words) in [
            ("", "missing field `store`"),
            ("[store]\n", "context.toml:1:1: neither endpoints of an etcd"),
            ("[stores]\n", "unknown key \"stores\""),
            (
                "[store]\ndirectory = \"x\"\n[sign]\nkeys = \"x\"\n",
                "context.toml:4:1: unknown key \"keys\"",
            ),
            (
                "[store]\ndirectory = \"x\"\n[trust]\nroles = \"x\"\n",
                "missing field `allowed_signers`",
            ),
            (
                "[store]\ndirectory = \"x\"\n[trust]\nallowed_signers = \"no-such-file\"\n",
                "cannot read /etc/ravelin/no-such-file",
            ),
        ] {
            let error = refused(text);
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }
}
