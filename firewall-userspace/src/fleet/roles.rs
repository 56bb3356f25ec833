//! What a signer may say: `roles.toml`, a local file of each node beside its allowed signers.
//!
//! ```toml
//! [[role]]
//! signers = ["alice@*", "bob@example.org"]   # principals of allowed_signers
//! policies = ["payments*"]                   # documents by name
//! services = ["payments-*"]                  # what these may name: services and egress rules
//! groups = ["*"]
//! nodes = "role=payments"                    # holds only on nodes that match
//! ban = false
//! max_days = 90                              # what is signed expires, at the latest after so many days
//! ```
//!
//! A statement needs one role that permits all of it; roles do not add up within a statement. What a role leaves out is
//! not granted, but for `services`, `groups` and `nodes`, which bound it where they are given. A role with `services`
//! leaves the policy's own `deny` and `defaults` alone, for these reach the services of others. Without the file every
//! allowed signer may say everything.

use super::pattern;
use super::selector::{Labels, Selector};
use super::statement::{Kind, Statement};
use crate::agent::config::mistake;
use crate::policy::diagnostic::Diagnostic;
use serde::Deserialize;
use std::path::Path;
use toml::Spanned;

const DAY: u64 = 86_400;
/// Bytes of the file at most.
const MAX_FILE: u64 = 1 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    roles: Vec<Role>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    role: Vec<Spanned<Role>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Role {
    signers: Vec<String>,
    #[serde(default)]
    policies: Vec<String>,
    services: Option<Vec<String>>,
    groups: Option<Vec<String>>,
    nodes: Option<Selector>,
    #[serde(default)]
    ban: bool,
    max_days: Option<u32>,
}

/// Why a file of roles was refused.
#[derive(Debug, thiserror::Error)]
pub enum RolesError {
    #[error("cannot read {}", path.display())]
    Read {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    #[error("{0}")]
    Mistake(Box<Diagnostic>),
}

impl Roles {
    /// # Errors
    /// What keeps the file from being read or used.
    pub fn read(path: &Path) -> Result<Roles, RolesError> {
        let text = super::read_small(path, MAX_FILE).map_err(|source| RolesError::Read {
            path: path.to_owned(),
            source,
        })?;
        Roles::parse(&text, path)
    }

    /// # Errors
    /// The first mistake, with its place.
    pub fn parse(text: &str, path: &Path) -> Result<Roles, RolesError> {
        let wrong = |found: Diagnostic| RolesError::Mistake(Box::new(found));
        let file: File = toml::from_str(text).map_err(|error| wrong(mistake(text, path, &error)))?;
        if file.role.is_empty() {
            let found = Diagnostic::whole_file(path, "no [[role]], so nobody could sign anything");
            return Err(wrong(found.hint(
                "leave the file away: then every allowed signer may say everything",
            )));
        }
        for role in &file.role {
            let at = |message: &str, hint: &str| {
                let text = crate::policy::diagnostic::Text::new(path, text);
                Err(wrong(text.diagnostic(role.span(), message).hint(hint)))
            };
            let of = role.get_ref();
            if of.signers.is_empty() {
                return at(
                    "a role without signers",
                    "write signers = [\"alice@example.org\"], principals of the allowed signers",
                );
            }
            if of.policies.is_empty() && !of.ban {
                return at(
                    "a role that permits nothing",
                    "write policies = [\"payments*\"], or \"*\" for every document, or ban = true",
                );
            }
            if of.max_days == Some(0) {
                return at(
                    "max_days = 0 permits nothing",
                    "write how many days a statement may hold, such as 90",
                );
            }
        }
        Ok(Roles {
            roles: file.role.into_iter().map(Spanned::into_inner).collect(),
        })
    }

    /// Whether one role lets the signer with these names say this, on the node with these labels, or on any.
    ///
    /// # Errors
    /// Why none does: of the role that comes nearest, if there is one for the signer.
    pub fn permit(
        &self,
        names: &[String],
        statement: &Statement,
        touched: Option<&Touched>,
        labels: Option<&Labels>,
    ) -> Result<(), String> {
        let mut nearest: Option<(u8, String)> = None;
        for role in self.roles.iter().filter(|role| role.is_for(names)) {
            match role.permit(statement, touched, labels) {
                Ok(()) => return Ok(()),
                Err(refused) => {
                    if nearest.as_ref().is_none_or(|(step, _)| refused.0 > *step) {
                        nearest = Some(refused);
                    }
                }
            }
        }
        Err(nearest.map_or_else(|| "no role is for this signer".into(), |(_, why)| why))
    }
}

impl Role {
    fn is_for(&self, names: &[String]) -> bool {
        names.iter().any(|name| any_fits(&self.signers, name))
    }

    /// The refusal says at which step it came about.
    fn permit(
        &self,
        statement: &Statement,
        touched: Option<&Touched>,
        labels: Option<&Labels>,
    ) -> Result<(), (u8, String)> {
        let name = &statement.name;
        match statement.kind {
            Kind::Ban | Kind::Unban if !self.ban => {
                return Err((0, "no role of this signer has ban = true".into()));
            }
            Kind::Policy | Kind::Delete if !any_fits(&self.policies, name) => {
                return Err((0, format!("no role of this signer names the document \"{name}\"")));
            }
            _ => {}
        }
        if let (Some(nodes), Some(labels)) = (&self.nodes, labels)
            && !nodes.matches(labels)
        {
            return Err((1, format!("its role is for nodes with {nodes} only")));
        }
        // A deletion adds nothing that could last too long.
        if let (Some(days), Kind::Policy | Kind::Ban) = (self.max_days, statement.kind) {
            let most = u64::from(days) * DAY;
            if statement
                .expires
                .is_none_or(|expires| expires - statement.issued > most)
            {
                return Err((2, format!("its role lets it sign for at most {days} days")));
            }
        }
        let Some(touched) = touched else { return Ok(()) };
        if let Some(services) = &self.services {
            for (what, name) in touched
                .services
                .iter()
                .map(|name| ("service", name))
                .chain(touched.egress.iter().map(|name| ("egress rule", name)))
            {
                if !any_fits(services, name) {
                    return Err((3, format!("no role of this signer names the {what} \"{name}\"")));
                }
            }
            if let Some(key) = touched.wide.first() {
                return Err((
                    3,
                    format!(
                        "\"{key}\" reaches the services of others, and its role is for some services only"
                    ),
                ));
            }
        }
        if let Some(groups) = &self.groups
            && let Some(group) = touched.groups.iter().find(|group| !any_fits(groups, group))
        {
            return Err((3, format!("no role of this signer names the group \"{group}\"")));
        }
        Ok(())
    }
}

fn any_fits(patterns: &[String], name: &str) -> bool {
    pattern::list_fits(patterns.iter().map(String::as_str), name)
}

/// What a document names, as far as roles ask: read from its TOML, whatever else it may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub services: Vec<String>,
    pub egress: Vec<String>,
    pub groups: Vec<String>,
    /// Keys that are of the whole policy.
    pub wide: Vec<String>,
}

impl Touched {
    /// Of a statement of kind `policy`, whose name and nodes must be those that its text says.
    ///
    /// # Errors
    /// What is wrong.
    pub fn by(statement: &Statement) -> Result<Touched, String> {
        let table: toml::Table = statement
            .text
            .parse()
            .map_err(|error: toml::de::Error| format!("its text is not TOML: {}", error.message()))?;
        let header = table
            .get("policy")
            .and_then(toml::Value::as_table)
            .ok_or("its text has no [policy], which says its name and its nodes")?;
        let word = |key: &str| header.get(key).and_then(toml::Value::as_str);
        if word("name") != Some(&statement.name) {
            return Err(format!(
                "it is signed as \"{}\", and its text has another name",
                statement.name
            ));
        }
        let nodes = word("nodes").map(Selector::parse);
        if !matches!((nodes, Selector::parse(&statement.nodes)), (Some(Ok(text)), Ok(signed)) if text == signed)
        {
            return Err(format!(
                "it is signed for the nodes {}, and its text says others",
                statement.nodes
            ));
        }
        let mut touched = Touched::default();
        for (key, value) in &table {
            match key.as_str() {
                "version" | "policy" => {}
                "service" => touched.services = named(value),
                "egress" => touched.egress = named(value),
                "groups" => {
                    let groups = value.as_table().into_iter().flat_map(toml::Table::keys);
                    touched.groups = groups.cloned().collect();
                }
                other => touched.wide.push(other.to_owned()),
            }
        }
        Ok(touched)
    }
}

/// The names of the tables of a list; one without a name counts as "".
fn named(value: &toml::Value) -> Vec<String> {
    let tables = value.as_array().into_iter().flatten();
    let names = tables.map(|table| {
        table
            .get("name")
            .and_then(toml::Value::as_str)
            .unwrap_or_default()
    });
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
