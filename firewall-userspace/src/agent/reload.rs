//! From the policy's files to something the kernel can take: read, parse, compile, compare. Also the edits of the
//! file, which are checked the same way before a byte is written.
//!
//! All of this may take a second with a million prefixes and touches the disk: it runs on threads where that hurts
//! nobody, on copies of what it needs. What comes of it is taken or refused whole by the owner.

use super::clock::Clock;
use super::counters::{EndingName, names};
use super::temporary::Deadlines;
use crate::api::types::{DiffLine, Edit};
use crate::fleet::documents::{Document, Documents};
use crate::host::sysctl;
use crate::policy::compile::{Compiled, compile};
use crate::policy::diagnostic::Diagnostic;
use crate::policy::file::{Loaded, TemporaryEntry};
use crate::policy::merge::{Part, PartName, merge};
use crate::policy::model::Policy;
use crate::policy::{diff, edit, ephemeral, file, groups};
use crate::store::last_good::{LastGood, Lists};
use crate::store::policy_file::{Seen, WriteError, stamp, write_over};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the policy in force came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    File,
    LastGood,
}

impl Origin {
    pub fn word(self) -> &'static str {
        match self {
            Origin::File => "file",
            Origin::LastGood => "last-good",
        }
    }
}

/// What a job starts from.
#[derive(Clone)]
pub struct Basis {
    pub path: PathBuf,
    pub state_dir: PathBuf,
    pub clock: Arc<dyn Clock>,
    pub deadlines: Deadlines,
    /// The policy in force, to compare with.
    pub policy: Option<Arc<Policy>>,
    /// Whether anybody wants to know what changes: with big policies it takes longer than all the rest.
    pub compare: bool,
    /// What was there the last time.
    pub seen: Option<Seen>,
    /// What the fleet says, beside which the policy file stands; `None` without a fleet.
    pub documents: Option<Arc<Documents>>,
}

/// A policy that compiled, ready to be put in force.
#[derive(Debug)]
pub struct Candidate {
    pub origin: Origin,
    pub policy: Policy,
    pub compiled: Compiled,
    pub names: Vec<EndingName>,
    pub warnings: Vec<String>,
    /// The same for who applied a text from elsewhere: with the places in that.
    pub told: Vec<String>,
    /// Against the policy in force, if it was asked for.
    pub diff: Vec<DiffLine>,
    /// Everything needed to keep it as the last good one; the generation is not known yet. Of the policy file: a fleet's
    /// documents are kept by themselves.
    pub source: LastGood,
    /// There is a policy file. Only a node of a fleet does without.
    pub local: bool,
    pub deadlines: Deadlines,
    /// Temporary entries of the policy file that have ended and are left out.
    pub ended: Vec<TemporaryEntry>,
}

/// What is read of a node's own policy.
struct Local<'a> {
    text: &'a str,
    /// What errors call the text, if it is not the policy file's.
    name: Option<&'a str>,
    /// The content of list files, if they are not to be read from where the policy says.
    kept: Lists,
    origin: Origin,
}

impl<'a> Local<'a> {
    fn file(text: &'a str, name: Option<&'a str>) -> Local<'a> {
        Local {
            text,
            name,
            kept: Lists::new(),
            origin: Origin::File,
        }
    }
}

/// Why a policy or an edit was not taken. The text says all of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The policy or the request has a mistake.
    #[error("{0}")]
    Invalid(String),
    /// The policy file is not there.
    #[error("{0}")]
    Missing(String),
    /// Somebody else changed something meanwhile.
    #[error("{0}")]
    Conflict(String),
    /// The machine did not let the agent do it.
    #[error("{0}")]
    Failed(String),
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors repeat their cause.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// What a change of the file was, to be undone if the kernel refuses the policy.
#[derive(Debug)]
pub struct Written {
    path: PathBuf,
    old: Option<String>,
    new: String,
}

impl Written {
    /// Puts the old content back, unless somebody wrote the file again.
    pub fn undo(self) {
        let result = match &self.old {
            Some(old) => write_over(&self.path, Some(&self.new), old),
            None => std::fs::remove_file(&self.path).map_err(|source| WriteError::Io {
                path: self.path.clone(),
                source,
            }),
        };
        if let Err(error) = result {
            log::error!("could not undo the change of the policy file: {}", chain(&error));
        }
    }
}

impl Basis {
    /// Reads the policy file and makes of it what can be put in force; `seen` tells what was looked at, also if it
    /// is refused. Temporary entries that have ended are taken out of the file on the way; if that fails, they are
    /// left out all the same.
    ///
    /// `None`: all is as it was the last time, and `force` is not asked for.
    pub fn reload(&self, force: bool, seen: &mut Seen) -> Result<Option<Candidate>, Refusal> {
        let text = match self.read() {
            Ok(text) => Some(text),
            Err(Refusal::Missing(_)) => None,
            Err(error) => return Err(error),
        };
        if !force && self.seen.as_ref().is_some_and(|seen| seen.still(text.as_deref())) {
            seen.clone_from(self.seen.as_ref().unwrap_or(&Seen::default()));
            return Ok(None);
        }
        *seen = Seen::text(text.as_deref());
        let Some(text) = text else {
            return self.without_file(seen).map(Some);
        };
        let mut candidate = self.prepare(Some(Local::file(&text, None)), seen)?;
        if candidate.source.text != text {
            match write_over(&self.path, Some(&text), &candidate.source.text) {
                Ok(()) => seen.text = Seen::text(Some(&candidate.source.text)).text,
                Err(error) => {
                    let warning = format!(
                        "entries that have ended stay in the file, without effect: {}",
                        chain(&error)
                    );
                    candidate.told.push(warning.clone());
                    candidate.warnings.push(warning);
                }
            }
        }
        Ok(Some(candidate))
    }

    /// What the fleet says alone: for a node that never had a policy file. One that is gone is missed, for it may have been
    /// moved by mistake.
    fn without_file(&self, seen: &mut Seen) -> Result<Candidate, Refusal> {
        let path = self.path.display();
        let missing = |text: String| Err(Refusal::Missing(text));
        match &self.documents {
            None => missing(format!("there is no policy file {path}")),
            Some(_) if LastGood::exists(&self.state_dir) => missing(format!(
                "there is no policy file {path} any more; what it said stays in force: an empty one (`version = 1`) ends it"
            )),
            Some(documents) if documents.parts.is_empty() && !documents.heard => missing(format!(
                "there is no policy file {path}, and the fleet has no document for this node yet"
            )),
            Some(_) => self.prepare(None, seen),
        }
    }

    /// What is to be in force when the fleet says something new. A policy file that is bad does not hinder it: its last good
    /// copy stands in, and the refusal tells what is wrong with the file.
    ///
    /// # Errors
    /// The documents cannot hold together, or not with the policy file.
    pub fn fleet(&self, seen: &mut Seen) -> Result<(Candidate, Option<Refusal>), Refusal> {
        let refusal = match self.reload(true, seen) {
            Ok(Some(candidate)) => return Ok((candidate, None)),
            // That is not what it does when it is forced.
            Ok(None) => Refusal::Failed("the policy was not read".into()),
            Err(refusal) => refusal,
        };
        let alone = Basis {
            documents: None,
            ..self.clone()
        };
        match alone
            .read()
            .and_then(|text| alone.prepare(Some(Local::file(&text, None)), &mut Seen::default()))
        {
            // The file is good by itself.
            Ok(_) => Err(refusal),
            Err(of_file) => {
                let candidate = match self.last_good()? {
                    Some(candidate) => candidate,
                    None => self.without_file(&mut Seen::default())?,
                };
                Ok((candidate, Some(of_file)))
            }
        }
    }

    /// The agent's own copy of the last policy that was in force.
    pub fn last_good(&self) -> Result<Option<Candidate>, Refusal> {
        let Some(kept) = LastGood::read(&self.state_dir) else {
            return Ok(None);
        };
        let basis = Basis {
            path: kept.path.clone(),
            ..self.clone()
        };
        basis
            .prepare(
                Some(Local {
                    text: &kept.text,
                    name: None,
                    kept: kept.lists,
                    origin: Origin::LastGood,
                }),
                &mut Seen::default(),
            )
            .map(Some)
    }

    /// Changes one thing in the policy file, if the result is a policy.
    pub fn edit(&self, change: &Edit, seen: &mut Seen) -> Result<(Candidate, Option<Written>), Refusal> {
        self.rewrite("the policy as it would be", seen, |text| {
            let text = text.ok_or_else(|| {
                let path = self.path.display();
                Refusal::Missing(format!(
                    "there is no policy file {path} to edit; write it again with `ravelin apply -f FILE`"
                ))
            })?;
            edit::edit(text, change, self.clock.wall().as_secs())
                .map_err(|error| Refusal::Invalid(chain(&error)))
        })
        .map_err(|refusal| match (refusal, self.mistake()) {
            (Refusal::Invalid(_), Some(mistake)) => Refusal::Invalid(mistake),
            (refusal, _) => refusal,
        })
        .map(|(mut candidate, written)| {
            // It stands in the file by now.
            candidate.told.clone_from(&candidate.warnings);
            (candidate, written)
        })
    }

    /// What is wrong with the policy file as it stands.
    fn mistake(&self) -> Option<String> {
        let text = self.read().ok()?;
        let parsed = file::parse(&text, &self.path, 0);
        parsed.err().map(|error| {
            let path = self.path.display();
            format!(
                "{error}\n\nthe policy file {path} has to be put right before it can be changed by command"
            )
        })
    }

    /// Replaces the policy file by `text`, if that is a policy. `name` is where the text came from, for messages.
    pub fn apply(
        &self,
        text: &str,
        name: &str,
        seen: &mut Seen,
    ) -> Result<(Candidate, Option<Written>), Refusal> {
        self.rewrite(name, seen, |_| Ok(text.to_owned()))
    }

    /// What [`Basis::apply`] would do.
    pub fn try_apply(&self, text: &str, name: &str) -> Result<Candidate, Refusal> {
        self.prepare(Some(Local::file(text, Some(name))), &mut Seen::default())
    }

    fn rewrite(
        &self,
        name: &str,
        seen: &mut Seen,
        new: impl Fn(Option<&str>) -> Result<String, Refusal>,
    ) -> Result<(Candidate, Option<Written>), Refusal> {
        // Somebody who edits by hand is not that quick.
        const TRIES: usize = 3;
        for _ in 0..TRIES {
            let old = match self.read() {
                Ok(text) => Some(text),
                Err(Refusal::Missing(_)) => None,
                Err(error) => return Err(error),
            };
            let text = new(old.as_deref())?;
            *seen = Seen::default();
            let candidate = self.prepare(Some(Local::file(&text, Some(name))), seen)?;
            let new = candidate.source.text.clone();
            seen.text = Seen::text(Some(&new)).text;
            if old.as_deref() == Some(new.as_str()) {
                return Ok((candidate, None));
            }
            match write_over(&self.path, old.as_deref(), &new) {
                Ok(()) => {
                    return Ok((
                        candidate,
                        Some(Written {
                            path: self.path.clone(),
                            old,
                            new,
                        }),
                    ));
                }
                Err(WriteError::Changed(_)) => continue,
                Err(error) => return Err(Refusal::Failed(chain(&error))),
            }
        }
        Err(Refusal::Conflict(chain(&WriteError::Changed(self.path.clone()))))
    }

    fn read(&self) -> Result<String, Refusal> {
        let path = self.path.display();
        let bytes = groups::read(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Refusal::Missing(format!("there is no policy file {path}")),
            _ => Refusal::Failed(format!("cannot read the policy file {path}: {error}")),
        })?;
        String::from_utf8(bytes).map_err(|_| Refusal::Invalid(format!("the policy file {path} is not UTF-8")))
    }

    /// Parses, merges with what the fleet says, and compiles. The list files asked for are noted in `seen`.
    fn prepare(&self, local: Option<Local<'_>>, seen: &mut Seen) -> Result<Candidate, Refusal> {
        let origin = local.as_ref().map_or(Origin::File, |local| local.origin);
        let called = local.as_ref().and_then(|local| local.name);
        let called = called.map_or_else(|| self.path.display().to_string(), str::to_owned);
        let (text, mut lists) = local.map_or((None, Lists::new()), |local| (Some(local.text), local.kept));
        // What the deadlines say counts, so all entries are wanted, whatever the wall clock says now.
        let mut parse = |text: &str| -> Result<Loaded, Refusal> {
            let mut read = |path: &Path| match lists.get(path) {
                Some(content) => Ok(content.clone()),
                None if origin == Origin::LastGood => Err(io::ErrorKind::NotFound.into()),
                None => {
                    seen.lists.insert(path.to_owned(), stamp(path));
                    let content = groups::read(path)?;
                    lists.insert(path.to_owned(), content.clone());
                    Ok(content)
                }
            };
            file::parse_with(text, &self.path, 0, &mut read).map_err(|mut error| {
                self.call(&mut error.errors, &called);
                Refusal::Invalid(error.to_string())
            })
        };
        let mut own = text.map(&mut parse).transpose()?;
        let mut parts = self.parts()?;
        let mut deadlines = self.deadlines.clone();
        let held = own.iter().chain(parts.iter().map(|part| &part.1));
        let temporary: Vec<TemporaryEntry> = held.flat_map(|loaded| loaded.temporary.clone()).collect();
        let over = deadlines.update(&temporary, &*self.clock);
        let mut ended = Vec::new();
        if let Some(loaded) = &mut own {
            ended = self.ended(loaded, &over);
            if !ended.is_empty() {
                *loaded = parse(&self.without(&loaded.text, &ended)?)?;
            }
        }
        for (document, loaded) in &mut parts {
            let ended = self.ended(loaded, &over);
            if !ended.is_empty() {
                let text = self.without(&loaded.text, &ended)?;
                *loaded = self.load(document, &text)?;
            }
        }
        let (policy, loaded) = merged(own, &parts)?;
        let compiled =
            compile(&policy).map_err(|error| Refusal::Invalid(format!("{called}: {}", chain(&error))))?;
        let diff = match (&self.policy, self.compare) {
            (_, false) => Vec::new(),
            (Some(old), true) => diff::diff(old, &policy),
            (None, true) => diff::diff(&Policy::default(), &policy),
        };
        let ports = sysctl::local_ports();
        let (mut warnings, mut told) = (Vec::new(), Vec::new());
        if let Some(loaded) = &loaded {
            let mut findings = loaded.warnings.clone();
            findings.extend(ephemeral::warnings(loaded, &self.path, &ports));
            warnings.extend(findings.iter().map(ToString::to_string));
            self.call(&mut findings, &called);
            told.extend(findings.iter().map(ToString::to_string));
        }
        for (document, loaded) in &parts {
            let more = ephemeral::warnings(loaded, Path::new(document.name()), &ports);
            let of_documents: Vec<String> = loaded
                .warnings
                .iter()
                .chain(&more)
                .map(ToString::to_string)
                .collect();
            warnings.extend(of_documents.iter().cloned());
            told.extend(of_documents);
        }
        // A list that the policy no longer names is not kept.
        lists.retain(|path, _| loaded.as_ref().is_some_and(|loaded| loaded.files.contains(path)));
        Ok(Candidate {
            origin,
            names: names(&policy, &compiled),
            warnings,
            told,
            diff,
            local: loaded.is_some(),
            source: LastGood {
                generation: 0,
                path: self.path.clone(),
                text: loaded.map(|loaded| loaded.text).unwrap_or_default(),
                lists,
            },
            policy,
            compiled,
            deadlines,
            ended,
        })
    }

    /// The documents of the fleet, read.
    fn parts(&self) -> Result<Vec<(Arc<Document>, Loaded)>, Refusal> {
        let documents = self.documents.iter().flat_map(|documents| &documents.parts);
        let load = |document: &Arc<Document>| {
            let loaded = self.load(document, &document.verified.statement.text)?;
            Ok((document.clone(), loaded))
        };
        documents.map(load).collect()
    }

    fn load(&self, document: &Document, text: &str) -> Result<Loaded, Refusal> {
        let nodes = self.documents.as_ref().map(|documents| documents.nodes.clone());
        let loaded = document.load(text, &nodes.unwrap_or_default());
        loaded.map_err(|error| Refusal::Invalid(error.to_string()))
    }

    /// The entries of a policy that are over.
    fn ended(&self, loaded: &Loaded, over: &[TemporaryEntry]) -> Vec<TemporaryEntry> {
        let is_over = |entry: &&TemporaryEntry| {
            over.iter()
                .any(|one| one.edit == entry.edit && one.until == entry.until)
        };
        loaded.temporary.iter().filter(is_over).cloned().collect()
    }

    /// A policy's text without these entries.
    fn without(&self, text: &str, ended: &[TemporaryEntry]) -> Result<String, Refusal> {
        let mut without = text.to_owned();
        for entry in ended {
            without = edit::edit(&without, &entry.edit, self.clock.wall().as_secs()).map_err(|error| {
                Refusal::Invalid(format!("taking out {}: {}", entry.entry, chain(&error)))
            })?;
        }
        Ok(without)
    }

    /// Gives findings about a text the name that its author knows.
    fn call(&self, findings: &mut [Diagnostic], name: &str) {
        let own = self.path.display().to_string();
        for finding in findings {
            if finding.place.path == own {
                finding.place.path = name.to_owned();
            }
            // Some name a second place.
            finding.message = finding.message.replace(&format!("({own}:"), &format!("({name}:"));
        }
    }
}

/// One policy of the node's own and the fleet's. Alone, its own is taken as it is.
fn merged(
    own: Option<Loaded>,
    parts: &[(Arc<Document>, Loaded)],
) -> Result<(Policy, Option<Loaded>), Refusal> {
    if let (Some(loaded), []) = (&own, parts) {
        return Ok((loaded.policy.clone(), own));
    }
    let local = own.iter().map(|loaded| Part {
        name: PartName::Local,
        loaded,
    });
    let documents = parts.iter().map(|(document, loaded)| Part {
        name: PartName::Document(document.name().to_owned()),
        loaded,
    });
    let policy = merge(local.chain(documents).collect())
        .map_err(|conflict| Refusal::Conflict(conflict.to_string()))?;
    Ok((policy, own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::Duration;

    struct Hand(Mutex<u64>);

    impl Clock for Hand {
        fn wall(&self) -> Duration {
            Duration::from_secs(1_790_000_000 + *self.0.lock().expect("one thread"))
        }
        fn boot(&self) -> Duration {
            Duration::from_secs(*self.0.lock().expect("one thread"))
        }
    }

    struct Place {
        dir: tempfile::TempDir,
        clock: Arc<Hand>,
        basis: Basis,
    }

    const POLICY: &str = "version = 1\n\n[groups]\nbad = { file = \"bad.txt\" }\n\n[[service]]\nname = \"api\"\n\
                          ports = [\"tcp/443\"]\nallow = [\"192.0.2.0/24\"] # us\ndeny = [\"@bad\"]\n";

    fn place() -> Place {
        let dir = tempfile::tempdir().expect("a directory");
        let clock = Arc::new(Hand(Mutex::new(100)));
        let basis = Basis {
            path: dir.path().join("policy.toml"),
            state_dir: dir.path().join("state"),
            clock: clock.clone(),
            deadlines: Deadlines::new("boot"),
            policy: None,
            compare: true,
            seen: None,
            documents: None,
        };
        std::fs::write(&basis.path, POLICY).expect("written");
        std::fs::write(dir.path().join("bad.txt"), "192.0.2.66\n").expect("written");
        Place { dir, clock, basis }
    }

    impl Place {
        fn text(&self) -> String {
            std::fs::read_to_string(&self.basis.path).expect("read")
        }

        fn reload(&mut self) -> Result<Option<Candidate>, Refusal> {
            let mut seen = Seen::default();
            let result = self.basis.reload(false, &mut seen);
            self.basis.seen = Some(seen);
            if let Ok(Some(candidate)) = &result {
                self.basis.deadlines = candidate.deadlines.clone();
            }
            result
        }
    }

    #[test]
    fn what_did_not_change_is_not_read_twice_and_a_changed_list_is() {
        let mut place = place();
        assert!(place.reload().expect("valid").is_some());
        assert!(place.reload().expect("valid").is_none());
        std::fs::write(place.dir.path().join("bad.txt"), "192.0.2.66\n192.0.2.67\n").expect("written");
        assert_eq!(
            place
                .reload()
                .expect("valid")
                .expect("changed")
                .compiled
                .stats
                .prefixes_v4,
            3
        );
        // A list that is missing is looked for again, though the text is the same.
        std::fs::remove_file(place.dir.path().join("bad.txt")).expect("removed");
        assert!(matches!(place.reload(), Err(Refusal::Invalid(_))));
        assert!(place.reload().expect("as bad as before").is_none());
        std::fs::write(place.dir.path().join("bad.txt"), "").expect("written");
        assert!(place.reload().expect("valid").is_some());
    }

    #[test]
    fn the_last_good_policy_needs_none_of_the_operators_files() {
        let mut place = place();
        let first = place.reload().expect("valid").expect("new");
        first.source.write(&place.basis.state_dir).expect("kept");
        for file in ["policy.toml", "bad.txt"] {
            std::fs::remove_file(place.dir.path().join(file)).expect("removed");
        }
        assert!(matches!(place.reload(), Err(Refusal::Missing(_))));
        let kept = place.basis.last_good().expect("readable").expect("there");
        assert_eq!(
            (kept.compiled.digest, kept.origin),
            (first.compiled.digest, Origin::LastGood)
        );
    }

    #[test]
    fn an_edit_is_checked_before_a_byte_is_written() {
        let place = place();
        let allow = |source: &str| Edit::Allow {
            service: "api".into(),
            source: source.into(),
            for_seconds: None,
        };
        let mut seen = Seen::default();
        let bad_port = Edit::ServiceAdd {
            name: "web".into(),
            ports: vec!["tcp/443".into()],
            allow: Vec::new(),
            deny: Vec::new(),
        };
        for (refused, begins) in [
            (place.basis.edit(&allow("@nobody"), &mut seen), ""),
            (
                place.basis.edit(&bad_port, &mut seen),
                "the policy as it would be:14:",
            ),
            (
                place.basis.apply("version = 2", "other.toml", &mut seen),
                "other.toml:1:",
            ),
        ] {
            let Err(Refusal::Invalid(text)) = refused else {
                panic!("not refused: {begins}")
            };
            assert!(text.starts_with(begins), "{text}");
        }
        assert_eq!(place.text(), POLICY);

        let (_, written) = place
            .basis
            .edit(&allow("198.51.100.7"), &mut seen)
            .expect("taken");
        assert!(place.text().contains("\"198.51.100.7\"") && place.text().contains("# us"));
        assert!(seen.still(Some(&place.text())));
        written.expect("changed").undo();
        assert_eq!(place.text(), POLICY);

        assert!(matches!(
            place.basis.apply("version = 2", "other.toml", &mut seen),
            Err(Refusal::Invalid(_))
        ));
        assert_eq!(place.text(), POLICY);
        std::fs::remove_file(&place.basis.path).expect("removed");
        assert!(matches!(
            place.basis.edit(&allow("198.51.100.7"), &mut seen),
            Err(Refusal::Missing(_))
        ));
        let doubtful = POLICY.replace("192.0.2.0/24", "192.0.2.7/24");
        let (candidate, _) = place
            .basis
            .apply(&doubtful, "other.toml", &mut seen)
            .expect("taken");
        let own = format!("{}:9:", place.basis.path.display());
        assert!(
            candidate.told[0].starts_with("other.toml:9:"),
            "{:?}",
            candidate.told
        );
        assert!(
            candidate.warnings[0].starts_with(&own),
            "{:?}",
            candidate.warnings
        );
        std::fs::remove_file(&place.basis.path).expect("removed");
        let (_, written) = place.basis.apply(POLICY, "other.toml", &mut seen).expect("taken");
        assert_eq!(place.text(), POLICY);
        written.expect("made").undo();
        assert!(!place.basis.path.exists());
    }

    #[test]
    fn an_edit_of_a_file_that_is_wrong_already_tells_its_own_mistake() {
        let place = place();
        let path = place.basis.path.display().to_string();
        let allow = Edit::Allow {
            service: "api".into(),
            source: "198.51.100.7".into(),
            for_seconds: None,
        };
        let wrong = POLICY.replace("\"tcp/443\"", "\"tcp/0\"");
        let torn = POLICY.replace("name = \"api\"", "name = \"api");
        for (text, line) in [(wrong, 8), (torn, 7)] {
            std::fs::write(&place.basis.path, &text).expect("written");
            let Err(Refusal::Invalid(told)) = place.basis.edit(&allow, &mut Seen::default()) else {
                panic!("not refused: {text}")
            };
            assert!(told.starts_with(&format!("{path}:{line}:")), "{told}");
            assert!(told.ends_with("before it can be changed by command"), "{told}");
            assert_eq!(place.text(), text);
        }
        // An edit that takes the mistake out is taken.
        let extra = format!("{POLICY}[[service]]\nname = \"web\"\nports = [\"tcp/443\"]\n");
        std::fs::write(&place.basis.path, extra).expect("written");
        let remove = Edit::ServiceRemove { name: "web".into() };
        place.basis.edit(&remove, &mut Seen::default()).expect("taken");
    }

    #[test]
    fn a_temporary_entry_ends_by_the_boot_clock_and_leaves_the_file() {
        let mut place = place();
        let change = Edit::Allow {
            service: "api".into(),
            source: "198.51.100.7".into(),
            for_seconds: Some(60),
        };
        let (candidate, _) = place.basis.edit(&change, &mut Seen::default()).expect("taken");
        assert_eq!(
            candidate.deadlines.next(&*place.clock),
            Some(Duration::from_secs(60))
        );
        let with = candidate.compiled.digest;
        place.basis.deadlines = candidate.deadlines;

        *place.clock.0.lock().expect("one thread") += 59;
        assert_eq!(
            place
                .reload()
                .expect("valid")
                .expect("first look")
                .compiled
                .digest,
            with
        );
        *place.clock.0.lock().expect("one thread") += 1;
        place.basis.seen = None;
        let after = place.reload().expect("valid").expect("forced");
        assert_eq!((after.ended.len(), after.compiled.digest == with), (1, false));
        assert_eq!(place.text(), POLICY);
    }
}
