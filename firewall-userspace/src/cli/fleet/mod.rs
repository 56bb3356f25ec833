//! Commands on a whole fleet: the same words as for one host, with `--fleet`, and those that only a fleet has.
//!
//! Nothing here asks an agent. A command reads the store, checks what it reads as nodes do (a document that they would
//! not believe is shown as such and is no base for a change), signs by ssh-keygen and puts the result if nobody else did
//! meanwhile.

pub(super) mod bans;
pub(super) mod change;
pub(super) mod delete;
pub(super) mod lists;
pub(super) mod nodes;
pub(super) mod policies;
pub(super) mod show;

use super::context::ContextFile;
use super::{Context, message, unix_seconds};
use crate::fleet::report::{Registration, Report, Stored as StoredNode};
use crate::fleet::selector::Selector;
use crate::fleet::signature;
use crate::fleet::statement::{Digest, Envelope, Kind, Statement, Subject};
use crate::fleet::{TrustError, Verified};
use crate::output::{self, Published, Signed};
use crate::policy::source;
use crate::store::shared::{Entry, Expect, PutError, Snapshot, Store, StoreError};
use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the commands on a fleet read.
const ALL: [&str; 3] = ["policies/", "nodes/", "status/"];
/// A version that a node reports is taken for true up to here: reports are not signed.
const MOST_REPORTED: u64 = 1 << 40;
/// How long a store may be out of reach before that is an error.
const PATIENCE: Duration = Duration::from_secs(5);
const BETWEEN_TRIES: Duration = Duration::from_millis(200);
/// Tries to put one value.
const MOST_PUTS: u32 = 5;
/// Objects that are asked for at once: gRPC takes 4 MiB in an answer.
const AT_ONCE: usize = 32;

/// `--policy` of the commands that edit.
#[derive(Debug, clap::Args)]
pub(super) struct OnDocument {
    /// With --fleet: the policy to change [default: the one that has the service or egress rule]
    #[arg(long, global = true, value_name = "NAME", value_parser = document)]
    pub policy: Option<String>,
}

/// Checks the form of a document's name.
pub(super) fn document(text: &str) -> Result<String, String> {
    match source::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("\"{text}\" cannot name a policy; {}", source::NAME_HINT)),
    }
}

/// Checks a selector of nodes.
pub(super) fn selector(text: &str) -> Result<Selector, String> {
    Selector::parse(text).map_err(|error| format!("{}; {}", error.message, error.hint))
}

/// A fleet at hand.
pub(super) struct Fleet {
    file: ContextFile,
    store: Arc<dyn Store>,
    now: u64,
}

/// A statement as it is stored, and what to think of it.
struct Stored {
    entry: Entry,
    envelope: Option<Envelope>,
    /// As nodes see it, but for its expiry.
    believed: Result<Verified, TrustError>,
}

/// What a fleet has and says.
#[derive(Default)]
struct View {
    policies: BTreeMap<String, Stored>,
    nodes: BTreeMap<String, Registration>,
    reports: BTreeMap<String, Report>,
}

/// What is to be signed, but for its version.
struct Draft {
    kind: Kind,
    name: String,
    nodes: String,
    expires: Option<u64>,
    lists: BTreeMap<String, Digest>,
    text: String,
}

impl Context {
    /// The fleet that the context file names.
    fn fleet(&self) -> anyhow::Result<Fleet> {
        let file = ContextFile::find(self.context_file.as_deref())?;
        if file.trust.is_none() {
            message(
                "warning",
                &format!(
                    "{} has no [trust], so whose signatures these are was not checked",
                    file.path.display()
                ),
            );
        }
        Ok(Fleet {
            store: file.open()?,
            file,
            now: unix_seconds(),
        })
    }
}

impl Stored {
    fn statement(&self) -> Option<&Statement> {
        self.believed.as_ref().ok().map(|verified| &verified.statement)
    }

    /// Of what was signed, in hex, as nodes report it; empty if it is not believed.
    fn digest(&self) -> String {
        self.believed
            .as_ref()
            .map(|verified| verified.digest.to_string())
            .unwrap_or_default()
    }

    /// The document that it is, if it is believed and was not deleted.
    fn policy(&self) -> Option<&Verified> {
        let verified = self.believed.as_ref().ok()?;
        (verified.statement.kind == Kind::Policy).then_some(verified)
    }

    fn is_expired(&self, now: u64) -> bool {
        let expires = self.statement().and_then(|statement| statement.expires);
        expires.is_some_and(|at| at <= now)
    }
}

impl Fleet {
    /// Judges what is stored below a key.
    fn judge(&self, subject: Subject, entry: Entry) -> Stored {
        let envelope = Envelope::parse(&entry.value);
        let believed = envelope.as_ref().map_err(Clone::clone).and_then(|envelope| {
            let claims = envelope.claims();
            if claims.kind.subject() != subject || claims.key() != entry.key {
                return Err(TrustError::Malformed(format!(
                    "it is stored as {}, and was signed as {}",
                    entry.key,
                    claims.key()
                )));
            }
            match &self.file.trust {
                Some(trust) => trust.verify_kept(envelope, None),
                None => Ok(Verified {
                    statement: claims.clone(),
                    signer: String::new(),
                    fingerprint: envelope.signature().fingerprint(),
                    digest: envelope.digest(),
                }),
            }
        });
        Stored {
            entry,
            envelope: envelope.ok(),
            believed,
        }
    }

    /// What there is to say of it, believed or not.
    fn signed(&self, subject: Subject, stored: &Stored) -> Signed {
        let name = stored
            .entry
            .key
            .strip_prefix(subject.directory())
            .unwrap_or_default();
        let mut signed = Signed {
            name: name.to_owned(),
            ..Signed::default()
        };
        if let Some(envelope) = &stored.envelope {
            let claims = envelope.claims();
            if subject == Subject::Ban {
                signed.name.clone_from(&claims.name);
            }
            signed.nodes.clone_from(&claims.nodes);
            signed.version = claims.version;
            signed.issued = claims.issued;
            signed.expires = claims.expires;
            signed.fingerprint = envelope.signature().fingerprint();
            signed.digest = envelope.digest().to_string();
        }
        match &stored.believed {
            Ok(verified) => {
                signed.signer.clone_from(&verified.signer);
                // A node that sees it for the first time also looks at the clock.
                let fresh = self.file.trust.as_ref().zip(stored.envelope.as_ref());
                match fresh.map(|(trust, envelope)| trust.verify(envelope, self.now, None)) {
                    None if stored.is_expired(self.now) => signed.state = "expired".to_owned(),
                    None => signed.state = "unchecked".to_owned(),
                    Some(Ok(_)) => signed.state = "ok".to_owned(),
                    Some(Err(error)) => {
                        signed.state = error.word().to_owned();
                        signed.problem = format!("{error}; nodes that have it keep it");
                    }
                }
            }
            Err(error) => {
                signed.state = error.word().to_owned();
                signed.problem = error.to_string();
            }
        }
        signed
    }

    async fn view(&self) -> anyhow::Result<View> {
        let snapshot = self.snapshot(&ALL).await?;
        Ok(self.view_of(snapshot.entries))
    }

    async fn snapshot(&self, under: &[&str]) -> Result<Snapshot, StoreError> {
        patiently(|| self.store.snapshot(under)).await
    }

    async fn get(&self, keys: &[String]) -> Result<Vec<Option<Entry>>, StoreError> {
        patiently(|| self.store.get(keys)).await
    }

    /// Puts a value; where it is not known whether that was done, looks.
    async fn put(&self, key: &str, value: &Bytes, expect: Expect) -> Result<(), PutError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let lost = match self.store.put(key, value.clone(), expect).await {
                Ok(_) => return Ok(()),
                Err(PutError::Store(error)) if error.transient() && tries < MOST_PUTS => error,
                Err(error) => return Err(error),
            };
            // Said out loud by whoever looks in vain.
            let now = self
                .get(&[key.to_owned()])
                .await
                .map_err(|_| lost)?
                .pop()
                .flatten();
            if now.as_ref().is_some_and(|now| now.value == *value) {
                return Ok(());
            }
            if !expect.holds(now.as_ref()) {
                return Err(PutError::Changed(now));
            }
        }
    }

    /// What entries below [`ALL`] say.
    fn view_of(&self, entries: impl IntoIterator<Item = Entry>) -> View {
        let mut view = View::default();
        for entry in entries {
            match entry.key.split_once('/') {
                Some(("policies", name)) => {
                    let name = name.to_owned();
                    view.policies.insert(name, self.judge(Subject::Policy, entry));
                }
                Some(("nodes", name)) => {
                    // What no agent writes is no node.
                    if let Ok((registration, _)) = StoredNode::read(name, &entry.value) {
                        view.nodes.insert(name.to_owned(), registration);
                    }
                }
                Some(("status", name)) => {
                    if let Ok(report) = serde_json::from_slice(&entry.value) {
                        view.reports.insert(name.to_owned(), report);
                    }
                }
                _ => {}
            }
        }
        view
    }

    /// Objects by their digests, those that the store has.
    async fn objects(&self, digests: &[Digest]) -> Result<HashMap<Digest, Bytes>, StoreError> {
        let mut found = HashMap::new();
        for some in digests.chunks(AT_ONCE) {
            let keys: Vec<String> = some.iter().map(object_key).collect();
            let entries = self.get(&keys).await?;
            found.extend(
                some.iter()
                    .zip(entries)
                    .filter_map(|(digest, entry)| Some((*digest, entry?.value))),
            );
        }
        Ok(found)
    }

    /// Signs a draft as the version after `base`, and stores it if that is still there. What nodes would refuse is not
    /// stored.
    async fn publish(&self, draft: Draft, base: Option<&Stored>, version: u64) -> anyhow::Result<Published> {
        let statement = Statement {
            kind: draft.kind,
            name: draft.name,
            nodes: draft.nodes,
            version,
            issued: self.now,
            expires: draft.expires,
            lists: draft.lists,
            text: draft.text,
        };
        statement.check()?;
        let bytes = statement.to_bytes();
        let signature = signature::sign(&bytes, self.file.key()?, signature::POLICY)?;
        let envelope = Envelope::seal(&bytes, signature.armored())?;
        let signer = match &self.file.trust {
            None => String::new(),
            Some(trust) => {
                let verified = trust.verify(&envelope, self.now, None);
                let verified = verified.context("no node would take this, so it was not stored")?;
                verified.signer
            }
        };
        let key = statement.key();
        let expect = Expect::unchanged(base.map(|base| &base.entry));
        match self.put(&key, &envelope.bytes().to_vec().into(), expect).await {
            Ok(()) => Ok(Published {
                name: statement.name,
                nodes: statement.nodes,
                version,
                digest: envelope.digest().to_string(),
                expires: statement.expires,
                signer,
                changed: true,
                ..Published::default()
            }),
            Err(PutError::Changed(now)) => {
                let now = now.map(|entry| self.judge(statement.kind.subject(), entry));
                bail!("{}", self.overtaken(&key, base, now.as_ref()))
            }
            Err(PutError::Store(error)) => Err(error.into()),
        }
    }

    /// What to tell the one who came second.
    fn overtaken(&self, key: &str, base: Option<&Stored>, now: Option<&Stored>) -> String {
        let mut text =
            format!("{key} was changed by somebody else meanwhile, and nothing of yours was stored");
        let Some(now) = now else {
            return text + ": the key was deleted";
        };
        match &now.believed {
            Err(error) => text += &format!(": what is there now is not believed ({}: {error})", error.word()),
            Ok(verified) => {
                let statement = &verified.statement;
                text += &format!(
                    ": it is version {} ({}) by {}, issued {}",
                    statement.version,
                    statement.kind.word(),
                    or_somebody(verified),
                    output::utc(statement.issued)
                );
                let before = base
                    .and_then(Stored::statement)
                    .map(|statement| statement.text.as_str());
                let changed = text_diff(before.unwrap_or_default(), &statement.text);
                if !changed.is_empty() {
                    text += &format!("\n{changed}");
                }
            }
        }
        text + "\nlook at it, then try again"
    }
}

impl View {
    /// The version that follows all that are known of a document: in the store, and in force on nodes. A store that was
    /// wiped, or restored from before, has forgotten what nodes have not.
    fn next_version(&self, name: &str) -> u64 {
        let stored = self
            .policies
            .get(name)
            .and_then(Stored::statement)
            .map_or(0, |statement| statement.version);
        let reports = self.reports.values().filter_map(|report| {
            let version = report.documents.get(name)?.version;
            (version <= MOST_REPORTED).then_some(version)
        });
        let reported = reports.max().unwrap_or(0);
        if reported > stored && stored > 0 {
            message(
                "warning",
                &format!(
                    "nodes have version {reported} of \"{name}\" in force, and the store holds version {stored} only: was it \
                     restored from a backup?"
                ),
            );
        }
        stored.max(reported).saturating_add(1)
    }

    /// Registered nodes that a selector names.
    fn meant(&self, nodes: &Selector) -> Vec<String> {
        let meant = self.nodes.iter().filter(|(_, node)| nodes.matches(&node.labels));
        meant.map(|(name, _)| name.clone()).collect()
    }

    /// The document of this name that a change can begin with.
    fn document(&self, name: &str) -> anyhow::Result<(&Stored, &Verified)> {
        let Some(stored) = self.policies.get(name) else {
            bail!("{}", self.no_document(name));
        };
        match &stored.believed {
            Ok(verified) if verified.statement.kind == Kind::Delete => {
                bail!("\"{name}\" was deleted by {}", or_somebody(verified))
            }
            Ok(verified) => Ok((stored, verified)),
            Err(error) => bail!(
                "what the store has as \"{name}\" is not believed ({}: {error}); `ravelin apply -f FILE --fleet` replaces it",
                error.word()
            ),
        }
    }

    fn no_document(&self, name: &str) -> String {
        let there: Vec<&str> = self
            .policies
            .iter()
            .filter(|(_, stored)| stored.policy().is_some())
            .map(|(name, _)| name.as_str())
            .collect();
        match there.is_empty() {
            true => format!("there is no policy \"{name}\", nor any other"),
            false => format!("there is no policy \"{name}\" ({})", there.join(", ")),
        }
    }
}

fn or_somebody(verified: &Verified) -> &str {
    match verified.signer.as_str() {
        "" => "somebody",
        signer => signer,
    }
}

/// Reads again while a store is out of reach: members elect another leader within a second or two.
async fn patiently<'a, T>(
    mut read: impl FnMut() -> BoxFuture<'a, Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let started = Instant::now();
    loop {
        match read().await {
            Err(error) if error.transient() && started.elapsed() < PATIENCE => {
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
            other => return other,
        }
    }
}

fn object_key(digest: &Digest) -> String {
    format!("lists/{digest}")
}

/// Lines that one text has and the other has not, as `diff` marks them: enough to see what somebody did.
fn text_diff(before: &str, after: &str) -> String {
    let (before, after): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let head = before
        .iter()
        .zip(&after)
        .take_while(|(one, other)| one == other)
        .count();
    let tails = before[head..].iter().rev().zip(after[head..].iter().rev());
    let tail = tails.take_while(|(one, other)| one == other).count();
    let gone = before[head..before.len() - tail]
        .iter()
        .map(|line| format!("- {line}\n"));
    let new = after[head..after.len() - tail]
        .iter()
        .map(|line| format!("+ {line}\n"));
    gone.chain(new).collect::<String>().trim_end().to_owned()
}

/// Of a file, for places in messages; `-` is standard input.
fn read_text(file: &Path) -> anyhow::Result<(String, std::path::PathBuf)> {
    if file.as_os_str() == "-" {
        let text =
            std::io::read_to_string(std::io::stdin()).context("reading the policy from standard input")?;
        return Ok((text, "standard input".into()));
    }
    let text =
        std::fs::read_to_string(file).with_context(|| format!("reading the policy {}", file.display()))?;
    Ok((text, file.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_the_lines_between() {
        assert_eq!(text_diff("a\nb\nc\n", "a\nx\ny\nc\n"), "- b\n+ x\n+ y");
        assert_eq!(text_diff("", "a\n"), "+ a");
        assert_eq!(text_diff("a\n", "a\n"), "");
        assert_eq!(text_diff("a\na\n", "a\n"), "- a");
    }
}
