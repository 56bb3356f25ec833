//! `[store]`, `[trust]`, `[fleet]` and `[guard]` of agent.toml: which fleet a node belongs to, whom it believes, what it says of
//! itself, and what it takes from nobody.

use crate::cli::duration;
use crate::fleet::guards::Guards;
use crate::fleet::selector::Labels;
use crate::store::settings::Settings;
use ipnetwork::IpNetwork;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// As the agent uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    pub store: Settings,
    pub allowed_signers: PathBuf,
    /// `None`: every allowed signer may say everything.
    pub roles: Option<PathBuf>,
    /// With the name of the node.
    pub labels: Labels,
    /// `None`: the host's own.
    pub addresses: Option<Vec<IpAddr>>,
    /// What the registration is signed with.
    pub key: Option<PathBuf>,
    /// Addresses that count for any node that says that it has them.
    pub node_addresses: Vec<IpNetwork>,
    /// How long a node counts whose lease is lost.
    pub grace: Duration,
    pub guards: Guards,
}

/// `[trust]` as written.
#[derive(Debug, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table: [trust], and allowed_signers = \"FILE\" below it"
)]
pub struct TrustSection {
    allowed_signers: PathBuf,
    roles: Option<PathBuf>,
}

/// `[fleet]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table: [fleet], and labels = { role = \"web\" } below it"
)]
pub struct FleetSection {
    name: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    addresses: Option<Vec<IpAddr>>,
    key: Option<PathBuf>,
    #[serde(default)]
    node_addresses: Vec<IpNetwork>,
    grace: Option<Grace>,
}

const GRACE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Grace(Duration);

impl TryFrom<String> for Grace {
    type Error = String;
    fn try_from(text: String) -> Result<Grace, String> {
        let time = duration::parse(&text)?;
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(86_400));
        match (least..=most).contains(&time) {
            true => Ok(Grace(time)),
            false => Err(format!("a grace time of {text}: 1s to 24h")),
        }
    }
}

/// What is missing or wrong between the sections.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error(
        "[store] without [trust]: nothing that a store holds is taken unless it is signed; write allowed_signers = \"FILE\" \
         below [trust]"
    )]
    NoTrust,
    #[error("[{0}] without [store]: a node belongs to a fleet by its store")]
    NoStore(&'static str),
    #[error("[fleet]: the host name {0:?} cannot name a node; write name = \"NAME\"")]
    HostName(String),
    #[error("[fleet]: {0}")]
    Labels(String),
    #[error(
        "[fleet]: the address {0} is no node's own: it is not a single host's, or means this host to anybody"
    )]
    Address(IpAddr),
}

impl Fleet {
    /// The sections as one; `None` without a store.
    ///
    /// # Errors
    /// One that needs another, labels that are none.
    pub fn of(
        store: Option<Settings>,
        trust: Option<TrustSection>,
        fleet: Option<FleetSection>,
        guard: Option<Guards>,
    ) -> Result<Option<Fleet>, FleetError> {
        let Some(store) = store else {
            let given = [
                ("trust", trust.is_some()),
                ("fleet", fleet.is_some()),
                ("guard", guard.is_some()),
            ];
            return match given.iter().find(|(_, given)| *given) {
                Some((section, _)) => Err(FleetError::NoStore(section)),
                None => Ok(None),
            };
        };
        let trust = trust.ok_or(FleetError::NoTrust)?;
        let fleet = fleet.unwrap_or_default();
        let named = fleet.name.is_some();
        let name = fleet.name.unwrap_or_else(|| {
            let host = nix::sys::utsname::uname();
            host.map(|host| host.nodename().to_string_lossy().into_owned())
                .unwrap_or_default()
        });
        let labels = match Labels::new(&name, fleet.labels) {
            Ok(labels) => labels,
            Err(_) if !named && Labels::new(&name, []).is_err() => return Err(FleetError::HostName(name)),
            Err(error) => return Err(FleetError::Labels(error.to_string())),
        };
        let addresses = fleet.addresses.unwrap_or_default();
        if let Some(address) = addresses.iter().find(|address| !is_global(**address)) {
            return Err(FleetError::Address(*address));
        }
        Ok(Some(Fleet {
            store,
            allowed_signers: trust.allowed_signers,
            roles: trust.roles,
            labels,
            addresses: (!addresses.is_empty()).then_some(addresses),
            key: fleet.key,
            node_addresses: fleet.node_addresses,
            grace: fleet.grace.map_or(GRACE, |grace| grace.0),
            guards: guard.unwrap_or_default(),
        }))
    }

    /// Paths that have to be absolute, by their keys.
    pub fn paths(&self) -> Vec<(&'static str, PathBuf)> {
        let own = [
            ("allowed_signers", Some(&self.allowed_signers)),
            ("roles", self.roles.as_ref()),
            ("key", self.key.as_ref()),
        ];
        let of_store: Vec<(&'static str, &PathBuf)> = match &self.store {
            Settings::Directory(path) => vec![("directory", path)],
            Settings::Etcd(etcd) => {
                let identity = etcd.tls.identity.iter();
                let identity = identity.flat_map(|(cert, key)| [("cert", cert), ("key", key)]);
                etcd.tls.ca.iter().map(|ca| ("ca", ca)).chain(identity).collect()
            }
        };
        own.into_iter()
            .filter_map(|(key, path)| Some((key, path?)))
            .chain(of_store)
            .map(|(key, path)| (key, path.clone()))
            .collect()
    }
}

/// An address by which others may know a host.
pub fn is_global(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local)
}
