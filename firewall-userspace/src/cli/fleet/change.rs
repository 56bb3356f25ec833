//! `ravelin apply --fleet`, and the commands that edit a document: check, compare, sign, store.

use super::super::{Answer, Context, message, print};
use super::{Draft, Fleet, OnDocument, Stored, View, object_key};
use crate::api::types::Edit;
use crate::fleet::Verified;
use crate::fleet::lists::{self, Encoded, ListError};
use crate::fleet::report::Registration;
use crate::fleet::roles::Touched;
use crate::fleet::selector::Selector;
use crate::fleet::statement::{Digest, Kind, check_list_name};
use crate::output::{self, Published};
use crate::policy::compile::compile;
use crate::policy::diff::diff;
use crate::policy::edit::edit;
use crate::policy::file::{self, Loaded};
use crate::policy::groups::{self, Resolve};
use crate::policy::merge::{Part, PartName, conflicts};
use crate::policy::model::{Place, Policy};
use crate::store::shared::{Expect, PutError};
use anyhow::{Context as _, bail};
use bytes::Bytes;
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::path::Path;

/// A document that was read, and is not stored yet.
struct New {
    loaded: Loaded,
    text: String,
    lists: BTreeMap<String, Digest>,
    /// Objects of its lists that the store may lack.
    objects: BTreeMap<Digest, Vec<u8>>,
}

/// What is asked beside the text.
pub struct Wishes {
    /// Seconds; `None`: as long as the version before.
    pub lasts: Option<u64>,
    pub dry_run: bool,
}

/// `ravelin apply -f FILE --fleet`.
pub fn apply(file: &Path, wishes: &Wishes, context: &Context) -> anyhow::Result<Answer> {
    let (mut text, path) = super::read_text(file)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let fleet = context.fleet()?;
    let record = context.wait(async {
        let view = fleet.view().await?;
        let mut local = Local {
            folder: path.parent().unwrap_or(Path::new("")),
            lists: BTreeMap::new(),
            nodes: &view.nodes,
        };
        let loaded = file::parse_with(&text, &path, fleet.now, &mut local)?;
        let lists = local.lists;
        let new = New {
            loaded,
            text,
            lists: lists
                .iter()
                .map(|(name, list)| (name.clone(), list.root))
                .collect(),
            objects: lists.into_values().flat_map(|list| list.objects).collect(),
        };
        fleet.change(&view, new, wishes).await
    })?;
    context.show(&record, |record| {
        output::published(record, &stored(record), wishes.dry_run, &context.style)
    })?;
    Ok(Answer::Yes)
}

/// One change to a document of the fleet.
pub fn edit_document(change: &Edit, on: &OnDocument, context: &Context) -> anyhow::Result<Answer> {
    let fleet = context.fleet()?;
    let record = context.wait(async {
        let view = fleet.view().await?;
        let name = match &on.policy {
            Some(name) => name.clone(),
            None => view.document_with(change)?,
        };
        let (_, verified) = view.document(&name)?;
        let statement = &verified.statement;
        let text = edit(&statement.text, change, fleet.now)?;
        let objects = fleet.list_objects(statement.lists.values()).await?;
        let mut stored = Remote {
            lists: &statement.lists,
            objects: &objects,
            nodes: &view.nodes,
        };
        let new = New {
            loaded: file::parse_with(&text, Path::new(&name), fleet.now, &mut stored)?,
            text,
            lists: statement.lists.clone(),
            objects: BTreeMap::new(),
        };
        let wishes = Wishes {
            lasts: None,
            dry_run: false,
        };
        fleet.change(&view, new, &wishes).await
    })?;
    context.show(&record, |record| {
        let text = output::published(record, &stored(record), false, &context.style);
        match change {
            Edit::Allow {
                for_seconds: Some(seconds),
                ..
            }
            | Edit::Deny {
                for_seconds: Some(seconds),
                ..
            } => text + &output::ends(fleet.now.saturating_add(*seconds), fleet.now),
            _ => text,
        }
    })?;
    Ok(Answer::Yes)
}

fn stored(record: &Published) -> String {
    format!("version {} of {} is stored", record.version, record.name)
}

impl Fleet {
    async fn change(&self, view: &View, new: New, wishes: &Wishes) -> anyhow::Result<Published> {
        let header = new.loaded.header.clone().context(
            "this policy has no [policy], which makes it a document of a fleet; write\n\n  [policy]\n  name = \"payments\"\n  \
             nodes = \"role=payments\"",
        )?;
        compile(&new.loaded.policy)?;
        // That no node of a group is registered yet is nothing to warn of.
        let of_nodes = |place: &Place| new.loaded.node_groups.iter().any(|group| group.place == *place);
        for warning in new
            .loaded
            .warnings
            .iter()
            .filter(|warning| !of_nodes(&warning.place))
        {
            message("warning", &warning.to_string());
        }
        self.conflicts(view, &header.name, &new.loaded)?;
        let base = view.policies.get(&header.name);
        if let Some(Err(error)) = base.map(|base| &base.believed) {
            let text = format!(
                "what the store has as \"{}\" is not believed ({}: {error}), and gives way",
                header.name,
                error.word()
            );
            message("warning", &text);
        }
        let before = base.and_then(Stored::policy);
        let old = match before {
            Some(before) => self.load(view, before).await?,
            None => Policy::default(),
        };
        let lasts = wishes.lasts.or_else(|| {
            let statement = &before?.statement;
            Some(statement.expires? - statement.issued)
        });
        let draft = Draft {
            kind: Kind::Policy,
            name: header.name,
            nodes: header.nodes.to_string(),
            expires: lasts.map(|lasts| self.now.saturating_add(lasts)),
            lists: new.lists,
            text: new.text,
        };
        let version = view.next_version(&draft.name);
        let mut record = Published {
            name: draft.name.clone(),
            nodes: draft.nodes.clone(),
            version,
            expires: draft.expires,
            ..Published::default()
        };
        let meant = view.meant(&header.nodes);
        let lines = diff(&old, &new.loaded.policy);
        // A document that expires is signed anew: that is how it lives on.
        // So is one that nodes know a later version of.
        let latest = |before: &Verified| before.statement.version.saturating_add(1) == version;
        let same =
            before.is_some_and(|before| draft.says(before) && latest(before)) && draft.expires.is_none();
        if !wishes.dry_run && !same {
            // Before anything is stored.
            self.file.key()?;
        }
        let list_bytes = match wishes.dry_run {
            true => 0,
            // Also where nothing else changes: what the store lost of them comes back.
            false => self.put_objects(&new.objects).await?,
        };
        if !wishes.dry_run && same {
            record.version = before.map_or(0, |before| before.statement.version);
            record.digest = before.map(|before| before.digest.to_string()).unwrap_or_default();
        } else if !wishes.dry_run {
            record = self.publish(draft, base, version).await?;
        }
        record.list_bytes = list_bytes;
        record.diff = lines;
        record.meant = meant;
        Ok(record)
    }

    /// # Errors
    /// All documents with which the new one cannot hold on a node.
    fn conflicts(&self, view: &View, name: &str, loaded: &Loaded) -> anyhow::Result<()> {
        let mut others = Vec::new();
        for other in view.policies.values().filter_map(Stored::policy) {
            let other = &other.statement;
            if other.name == name {
                continue;
            }
            let path = format!("policy {}", other.name);
            // Names and ports are compared, so what lists hold does not matter.
            let mut empty = |_: &Path| Ok(Vec::new());
            match file::parse_with(&other.text, Path::new(&path), self.now, &mut empty) {
                Ok(other_loaded) => others.push((other.name.clone(), other_loaded)),
                Err(_) => message(
                    "warning",
                    &format!(
                        "the policy \"{}\" of the store cannot be read, and was not compared",
                        other.name
                    ),
                ),
            }
        }
        let others: Vec<Part<'_>> = others
            .iter()
            .map(|(name, loaded)| Part {
                name: PartName::Document(name.clone()),
                loaded,
            })
            .collect();
        let document = Part {
            name: PartName::Document(name.to_owned()),
            loaded,
        };
        let found = conflicts(&document, &others);
        if found.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        bail!(
            "a node that both are meant for could hold one of them only:\n  {}\nnothing was changed",
            lines.join("\n  ")
        )
    }

    /// A document of the store as a policy, lists and all.
    pub(super) async fn load(&self, view: &View, verified: &Verified) -> anyhow::Result<Policy> {
        let statement = &verified.statement;
        let objects = match self.list_objects(statement.lists.values()).await {
            Ok(objects) => objects,
            // Of a store out of reach nobody can say what it lacks.
            Err(error) if error.downcast_ref::<ListError>().is_none() => return Err(error),
            Err(error) => {
                message("warning", &format!("{error:#}, so all of this looks new"));
                return Ok(Policy::default());
            }
        };
        let mut remote = Remote {
            lists: &statement.lists,
            objects: &objects,
            nodes: &view.nodes,
        };
        match file::parse_with(&statement.text, Path::new(&statement.name), self.now, &mut remote) {
            Ok(loaded) => Ok(loaded.policy),
            Err(error) => {
                let text = format!(
                    "version {} of the store cannot be read, so all of this looks new:\n{error}",
                    statement.version
                );
                message("warning", &text);
                Ok(Policy::default())
            }
        }
    }

    /// All objects of lists, level by level.
    pub(super) async fn list_objects(
        &self,
        roots: impl Iterator<Item = &Digest> + Clone,
    ) -> anyhow::Result<HashMap<Digest, Bytes>> {
        let mut objects: HashMap<Digest, Bytes> = HashMap::new();
        loop {
            let mut missing = Vec::new();
            for root in roots.clone() {
                missing.extend(lists::missing(root, |digest| objects.get(digest))?);
            }
            missing.sort();
            missing.dedup();
            let Some(first) = missing.first() else {
                return Ok(objects);
            };
            let found = self.objects(&missing).await?;
            if found.len() < missing.len() {
                let lost = missing
                    .iter()
                    .find(|digest| !found.contains_key(digest))
                    .unwrap_or(first);
                return Err(ListError::Missing(*lost)).context("the store lacks part of a list");
            }
            objects.extend(found);
        }
    }

    /// Stores objects that are not there; returns their bytes.
    async fn put_objects(&self, objects: &BTreeMap<Digest, Vec<u8>>) -> anyhow::Result<u64> {
        let digests: Vec<Digest> = objects.keys().copied().collect();
        let there = self.objects(&digests).await?;
        let mut bytes = 0;
        for (digest, object) in objects {
            // What is there under the name is replaced if it is something else: nobody could use it.
            if there.get(digest).is_some_and(|there| there == object) {
                continue;
            }
            let key = object_key(digest);
            match self.put(&key, &object.clone().into(), Expect::Any).await {
                Ok(()) => bytes += object.len() as u64,
                Err(PutError::Store(error)) => return Err(error.into()),
                // Whatever is there is expected.
                Err(PutError::Changed(_)) => {}
            }
        }
        Ok(bytes)
    }
}

impl Draft {
    /// Whether it says what was said before.
    fn says(&self, before: &Verified) -> bool {
        let before = &before.statement;
        self.kind == before.kind
            && self.text == before.text
            && self.nodes == before.nodes
            && self.lists == before.lists
            && before.expires.is_none()
    }
}

impl View {
    /// The one document that has what a change is about.
    fn document_with(&self, change: &Edit) -> anyhow::Result<String> {
        let wanted = match change {
            Edit::Allow { service, .. }
            | Edit::Revoke { service, .. }
            | Edit::ServiceUndeny { service, .. } => service,
            Edit::ServiceSet { name, .. }
            | Edit::ServiceRemove { name }
            | Edit::EgressSet { name, .. }
            | Edit::EgressRemove { name } => name,
            Edit::Deny { .. } | Edit::Undeny { .. } | Edit::ServiceAdd { .. } | Edit::EgressAdd { .. } => {
                bail!("say which policy of the fleet: --policy NAME (`ravelin policies` lists them)")
            }
        };
        let documents = self.policies.values().filter_map(Stored::policy);
        let having: Vec<&str> = documents
            .filter(|verified| {
                let touched = Touched::by(&verified.statement).unwrap_or_default();
                touched.services.contains(wanted) || touched.egress.contains(wanted)
            })
            .map(|verified| verified.statement.name.as_str())
            .collect();
        match having[..] {
            [one] => Ok(one.to_owned()),
            [] => bail!(
                "no policy of the fleet has a service or an egress rule \"{wanted}\" (`ravelin policies`)"
            ),
            _ => bail!(
                "\"{wanted}\" is in several policies: --policy {}",
                having.join(" or --policy ")
            ),
        }
    }
}

/// Lists beside a document that is a file here.
struct Local<'a> {
    folder: &'a Path,
    lists: BTreeMap<String, Encoded>,
    nodes: &'a BTreeMap<String, Registration>,
}

impl Resolve for Local<'_> {
    fn file(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        // As the text writes it, odd or not: that is what is signed.
        let (full, folder) = (path.to_string_lossy(), self.folder.to_string_lossy());
        let name = match folder.as_ref() {
            "" => &full,
            folder => full
                .strip_prefix(folder)
                .map_or(full.as_ref(), |rest| rest.strip_prefix('/').unwrap_or(rest)),
        };
        check_list_name(name).map_err(io::Error::other)?;
        let bytes = groups::read(path)?;
        // What is wrong with it is told by who asks.
        if let Ok(encoded) = lists::encode(&bytes, path) {
            self.lists.insert(name.to_owned(), encoded);
        }
        Ok(bytes)
    }

    fn nodes(&mut self, nodes: &Selector, within: Option<&[IpNetwork]>) -> Option<Vec<IpAddr>> {
        Some(addresses(self.nodes, nodes, within))
    }
}

/// Lists that the store has.
struct Remote<'a> {
    lists: &'a BTreeMap<String, Digest>,
    objects: &'a HashMap<Digest, Bytes>,
    nodes: &'a BTreeMap<String, Registration>,
}

impl Resolve for Remote<'_> {
    fn file(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let root = path.to_str().and_then(|name| self.lists.get(name));
        let root = root.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "it was not signed with the policy; `ravelin apply -f FILE --fleet` takes it from here",
            )
        })?;
        lists::decode(root, |digest| self.objects.get(digest)).map_err(io::Error::other)
    }

    fn nodes(&mut self, nodes: &Selector, within: Option<&[IpNetwork]>) -> Option<Vec<IpAddr>> {
        Some(addresses(self.nodes, nodes, within))
    }
}

/// What nodes say of themselves: for what a change looks like only.
fn addresses(
    all: &BTreeMap<String, Registration>,
    nodes: &Selector,
    within: Option<&[IpNetwork]>,
) -> Vec<IpAddr> {
    let meant = all.values().filter(|node| nodes.matches(&node.labels));
    let addresses = meant.flat_map(|node| node.addresses.iter().copied());
    addresses
        .filter(|address| within.is_none_or(|within| within.iter().any(|prefix| prefix.contains(*address))))
        .collect()
}

/// Prints a text to be read by people or programs, whatever the format.
pub(super) fn raw(text: &[u8]) -> anyhow::Result<()> {
    print(std::str::from_utf8(text)?)
}
