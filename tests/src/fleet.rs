//! A fleet for tests: operators with keys, a store that is a directory, and the configuration of nodes that belong to it.

use crate::etcd::{Cluster, ROOT};
use crate::netns::{Namespace, run_in};
use anyhow::{Context, Result, ensure};
use ravelin::fleet::lists;
use ravelin::fleet::signature;
use ravelin::fleet::statement::{Digest, Envelope, Kind, Statement};
use ravelin::store::settings::{self, Settings};
use ravelin::store::shared::{Expect, Store};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// The operator whom all nodes trust.
pub const OPERATOR: &str = "alice@example.net";
/// Who has a key that nobody trusts.
pub const STRANGER: &str = "mallory@example.net";

/// See the top of this file.
pub struct Fleet {
    dir: TempDir,
    /// `[store]` of agent.toml.
    section: String,
    settings: Settings,
    /// Where the store is reached from, if that is not everywhere.
    namespace: Option<PathBuf>,
}

impl Fleet {
    /// A fleet whose store is a directory.
    ///
    /// # Errors
    /// Needs ssh-keygen.
    pub fn in_directory() -> Result<Fleet> {
        let dir = TempDir::with_prefix("ravelin-fleet-").context("making a directory")?;
        let root = dir.path().join("store");
        std::fs::create_dir(&root).context("making the store")?;
        let section = format!("[store]\ndirectory = {root:?}\n");
        Fleet::with(dir, section, None)
    }

    /// A fleet whose store is an etcd that is reached from this namespace, by its user `root`.
    ///
    /// # Errors
    /// Needs ssh-keygen and openssl.
    pub fn in_etcd(cluster: &Cluster, namespace: &Namespace) -> Result<Fleet> {
        let dir = TempDir::with_prefix("ravelin-fleet-").context("making a directory")?;
        Fleet::with(dir, cluster.settings(ROOT)?, Some(namespace.path()))
    }

    fn with(dir: TempDir, section: String, namespace: Option<PathBuf>) -> Result<Fleet> {
        #[derive(serde::Deserialize)]
        struct File {
            store: Settings,
        }
        let file: File = toml::from_str(&section).context("reading [store]")?;
        let fleet = Fleet {
            dir,
            section,
            settings: file.store,
            namespace,
        };
        for name in [OPERATOR, STRANGER] {
            fleet.make_key(name)?;
        }
        fleet.trust(&[OPERATOR])?;
        Ok(fleet)
    }

    /// Does something with the store, from where it is reached, with a connection of its own.
    fn ask<T: Send>(&self, work: impl AsyncFnOnce(Arc<dyn Store>) -> Result<T> + Send) -> Result<T> {
        let work = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("making a runtime")?;
            runtime.block_on(async { work(settings::open(&self.settings)?).await })
        };
        match &self.namespace {
            Some(namespace) => run_in(namespace, work),
            None => work(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where a directory has its keys.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// What nodes and operators open.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn key(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn allowed_signers(&self) -> PathBuf {
        self.dir.path().join("allowed_signers")
    }

    /// Makes a key of this name.
    ///
    /// # Errors
    /// Needs ssh-keygen.
    pub fn make_key(&self, name: &str) -> Result<()> {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
            .arg(self.key(name))
            .status()
            .context("running ssh-keygen")?;
        ensure!(made.success(), "ssh-keygen fails: {made}");
        Ok(())
    }

    /// From now on these keys are trusted, and no others.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn trust(&self, names: &[&str]) -> Result<()> {
        let mut text = String::new();
        for name in names {
            let public = self.key(name).with_extension(match name.rsplit_once('.') {
                Some((_, extension)) => format!("{extension}.pub"),
                None => "pub".to_owned(),
            });
            let key =
                std::fs::read_to_string(&public).with_context(|| format!("reading {}", public.display()))?;
            text.push_str(&format!("{name} {key}"));
        }
        let new = self.dir.path().join("allowed_signers.new");
        std::fs::write(&new, text).context("writing the signers")?;
        std::fs::rename(&new, self.allowed_signers()).context("replacing the signers")
    }

    /// Writes an agent.toml for a node; `more` stands below `[fleet]`. Gives the flags that name it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn config(&self, node: &str, more: &str) -> Result<[String; 2]> {
        let path = self.dir.path().join(format!("{node}.toml"));
        let text = format!(
            "{}\n[trust]\nallowed_signers = \"{}\"\n\n[fleet]\nname = \"{node}\"\n{more}\n",
            self.section,
            self.allowed_signers().display()
        );
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(["--config".to_owned(), path.display().to_string()])
    }

    /// Puts a value, whatever was there.
    ///
    /// # Errors
    /// The store is out of reach.
    pub fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        self.put_all(&[(key.to_owned(), value.to_vec())])
    }

    /// Puts values one after the other, whatever was there.
    ///
    /// # Errors
    /// The store is out of reach.
    pub fn put_all(&self, values: &[(String, Vec<u8>)]) -> Result<()> {
        self.ask(async |store| {
            for (key, value) in values {
                let put = store.put(key, value.clone().into(), Expect::Any).await;
                put.with_context(|| format!("putting {key}"))?;
            }
            Ok(())
        })
    }

    /// Deletes a key that nobody signed away.
    ///
    /// # Errors
    /// The store is out of reach.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.ask(async |store| {
            let deleted = store.delete(key, Expect::Any).await;
            deleted.with_context(|| format!("deleting {key}"))?;
            Ok(())
        })
    }

    /// # Errors
    /// The store is out of reach.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.ask(async |store| {
            let found = store.get(&[key.to_owned()]).await?;
            Ok(found
                .into_iter()
                .flatten()
                .next()
                .map(|entry| entry.value.to_vec()))
        })
    }

    /// Signs and puts a document with these services for the nodes of a selector.
    ///
    /// # Errors
    /// It cannot be signed or put.
    pub fn apply(&self, name: &str, nodes: &str, version: u64, services: &str) -> Result<()> {
        let document = Signed::policy(name, nodes, version, services);
        self.put(&format!("policies/{name}"), &document.seal(&self.key(OPERATOR))?)
    }

    /// The same, for every node, with a list that it reads as `list.txt`.
    ///
    /// # Errors
    /// It cannot be signed or put.
    pub fn apply_list(&self, name: &str, version: u64, services: &str, list: &str) -> Result<()> {
        let encoded = lists::encode(list.as_bytes(), Path::new("list.txt"))
            .map_err(|found| anyhow::anyhow!("the list: {found:?}"))?;
        for (digest, object) in &encoded.objects {
            self.put(&format!("lists/{digest}"), object)?;
        }
        let mut document = Signed::policy(name, "*", version, services);
        document.0.lists = BTreeMap::from([("list.txt".to_owned(), encoded.root)]);
        self.put(&format!("policies/{name}"), &document.seal(&self.key(OPERATOR))?)
    }

    /// Signs that a document is no more.
    ///
    /// # Errors
    /// It cannot be signed or put.
    pub fn end(&self, name: &str, version: u64) -> Result<()> {
        let mut document = Signed::policy(name, "*", version, "");
        (document.0.kind, document.0.text) = (Kind::Delete, String::new());
        self.put(&format!("policies/{name}"), &document.seal(&self.key(OPERATOR))?)
    }
}

/// A statement on its way to be signed.
pub struct Signed(pub Statement);

impl Signed {
    pub fn policy(name: &str, nodes: &str, version: u64, services: &str) -> Signed {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Signed(Statement {
            kind: Kind::Policy,
            name: name.to_owned(),
            nodes: nodes.to_owned(),
            version,
            issued: now.as_secs(),
            expires: None,
            lists: BTreeMap::new(),
            text: format!("version = 1\n[policy]\nname = \"{name}\"\nnodes = \"{nodes}\"\n{services}"),
        })
    }

    /// Bans a prefix for good, everywhere.
    pub fn ban(prefix: &str, version: u64) -> Signed {
        let mut ban = Signed::policy("ban", "*", version, "");
        (ban.0.kind, ban.0.name) = (Kind::Ban, prefix.to_owned());
        ban.0.text = "until: never\nwhy: scans\n".to_owned();
        ban
    }

    /// Takes it back.
    pub fn unban(prefix: &str, version: u64) -> Signed {
        let mut unban = Signed::ban(prefix, version);
        (unban.0.kind, unban.0.text) = (Kind::Unban, String::new());
        unban
    }

    /// The envelope, signed with a key.
    ///
    /// # Errors
    /// ssh-keygen fails.
    pub fn seal(&self, key: &Path) -> Result<Vec<u8>> {
        self.0.check()?;
        let bytes = self.0.to_bytes();
        let signature = signature::sign(&bytes, key, signature::POLICY)?;
        Ok(Envelope::seal(&bytes, signature.armored())?.bytes().to_vec())
    }

    /// The envelopes of many, by one run of ssh-keygen.
    ///
    /// # Errors
    /// ssh-keygen fails.
    pub fn seal_all(all: &[Signed], key: &Path) -> Result<Vec<Vec<u8>>> {
        let dir = TempDir::new().context("making a directory")?;
        let files: Vec<PathBuf> = (0..all.len())
            .map(|number| dir.path().join(number.to_string()))
            .collect();
        for (signed, file) in all.iter().zip(&files) {
            signed.0.check()?;
            std::fs::write(file, signed.0.to_bytes()).context("writing what is to be signed")?;
        }
        let output = Command::new("ssh-keygen")
            .args(["-q", "-Y", "sign", "-n", signature::POLICY, "-f"])
            .arg(key)
            .args(&files)
            .output()
            .context("running ssh-keygen")?;
        ensure!(
            output.status.success(),
            "ssh-keygen: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let sealed = all.iter().zip(&files).map(|(signed, file)| {
            let armored =
                std::fs::read_to_string(file.with_extension("sig")).context("reading a signature")?;
            Ok(Envelope::seal(&signed.0.to_bytes(), &armored)?.bytes().to_vec())
        });
        sealed.collect()
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.0.to_bytes())
    }
}

/// A service of a document: a port open to these sources.
pub fn service(name: &str, port: u16, allow: &[&str]) -> String {
    let allow: Vec<String> = allow.iter().map(|source| format!("{source:?}")).collect();
    format!(
        "\n[[service]]\nname = \"{name}\"\nports = [\"tcp/{port}\", \"udp/{port}\"]\nallow = [{}]\n",
        allow.join(", ")
    )
}
