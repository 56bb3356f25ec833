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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        store: Option<Settings>,
        trust: Option<TrustSection>,
        fleet: Option<FleetSection>,
        guard: Option<Guards>,
    }

    fn read(text: &str) -> Result<Option<Fleet>, String> {
        let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        Fleet::of(file.store, file.trust, file.fleet, file.guard).map_err(|error| error.to_string())
    }

    const STORE: &str =
        "[store]\ndirectory = \"/srv/fleet\"\n[trust]\nallowed_signers = \"/etc/ravelin/allowed_signers\"\n";

    #[test]
    fn a_node_without_a_store_belongs_to_no_fleet() {
        assert_eq!(read(""), Ok(None));
        for section in ["[trust]\nallowed_signers = \"/x\"", "[fleet]", "[guard]"] {
            let error = read(section).expect_err(section);
            assert!(error.contains("without [store]"), "{error}");
        }
        let error = read("[store]\ndirectory = \"/srv/fleet\"").expect_err("whom to trust is not said");
        assert!(error.starts_with("[store] without [trust]"), "{error}");
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let fleet = read(STORE).expect("read").expect("a fleet");
        let host = nix::sys::utsname::uname().expect("a name");
        assert_eq!(Some(fleet.labels.node()), host.nodename().to_str());
        assert_eq!((fleet.grace, fleet.addresses, fleet.key), (GRACE, None, None));
        let more = "[fleet]\nname = \"web-1\"\nlabels = { role = \"web\" }\naddresses = [\"192.0.2.1\"]\ngrace = \"5m\"\n\
                    node_addresses = [\"10.0.0.0/8\"]\n";
        let fleet = read(&format!("{STORE}{more}")).expect("read").expect("a fleet");
        assert_eq!(
            (fleet.labels.node(), fleet.labels.get("role")),
            ("web-1", Some("web"))
        );
        assert_eq!(fleet.grace, Duration::from_secs(300));
        assert_eq!(fleet.paths().len(), 2);
    }

    #[test]
    fn mistakes_are_told_with_what_is_accepted() {
        for (more, part) in [
            ("name = \"../x\"", "../x"),
            ("labels = { name = \"other\" }\nname = \"web-1\"", "other"),
            ("addresses = [\"127.0.0.1\"]", "127.0.0.1"),
            ("addresses = [\"fe80::1\"]", "fe80::1"),
            ("grace = \"25h\"", "1s to 24h"),
            ("colour = \"red\"", "colour"),
        ] {
            let error = read(&format!("{STORE}[fleet]\n{more}\n")).expect_err(more);
            assert!(error.contains(part), "{more}: {error}");
        }
    }
}
