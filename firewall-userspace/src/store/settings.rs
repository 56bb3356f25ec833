//! Which store a fleet has: `[store]` of agent.toml, and of the context file of operators.

use super::directory::Directory;
use super::shared::{Store, StoreError};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Below which keys a fleet has its own, when nothing else is said.
pub const DEFAULT_PREFIX: &str = "/ravelin/";

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub enum Settings {
    Etcd(Etcd),
    /// Files below this directory, for what brings them there by itself: configuration management, git, NFS.
    Directory(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd {
    /// `https://host:port`, at least one.
    pub endpoints: Vec<String>,
    pub tls: Tls,
    /// Ends in a slash.
    pub prefix: String,
}

/// PEM files. They are read at each connect: certificates are renewed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Who signed the certificates of the members.
    pub ca: Option<PathBuf>,
    /// The certificate to show, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    endpoints: Vec<String>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    prefix: Option<String>,
    directory: Option<PathBuf>,
}

impl TryFrom<Written> for Settings {
    type Error = String;

    fn try_from(written: Written) -> Result<Settings, String> {
        let Written {
            endpoints,
            ca,
            cert,
            key,
            prefix,
            directory,
        } = written;
        if let Some(directory) = directory {
            let of_etcd = [
                ("endpoints", !endpoints.is_empty()),
                ("ca", ca.is_some()),
                ("cert", cert.is_some()),
                ("key", key.is_some()),
                ("prefix", prefix.is_some()),
            ];
            return match of_etcd.iter().find(|(_, there)| *there) {
                Some((name, _)) => Err(format!(
                    "`directory` and `{name}`: a store is a directory or an etcd"
                )),
                None => Ok(Settings::Directory(directory)),
            };
        }
        if endpoints.is_empty() {
            return Err(
                "neither endpoints of an etcd, such as [\"https://10.0.0.1:2379\"], nor a directory"
                    .to_owned(),
            );
        }
        let endpoints: Vec<String> = endpoints
            .iter()
            .map(|text| endpoint(text))
            .collect::<Result<_, _>>()?;
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return Err("`cert` without `key`: the certificate's private key".to_owned()),
            (None, Some(_)) => return Err("`key` without `cert`: the certificate to show".to_owned()),
        };
        let encrypted = endpoints.iter().all(|endpoint| endpoint.starts_with("https://"));
        if !encrypted && (ca.is_some() || identity.is_some()) {
            return Err("certificates, and an endpoint of http://: they are for https://".to_owned());
        }
        if encrypted && ca.is_none() {
            return Err(
                "`ca` is missing: the certificate of who signed those of the members (for the system's: \
                 /etc/ssl/certs/ca-certificates.crt)"
                    .to_owned(),
            );
        }
        Ok(Settings::Etcd(Etcd {
            endpoints,
            tls: Tls { ca, identity },
            prefix: whole(&prefix.unwrap_or_else(|| DEFAULT_PREFIX.to_owned()))?,
        }))
    }
}

/// `https://host:port`, without a path.
fn endpoint(text: &str) -> Result<String, String> {
    let refused = || {
        format!(
            "endpoint {text:?}: not of the form https://HOST:PORT (http:// without encryption, PORT 2379 by default)"
        )
    };
    let (scheme, rest) = text.split_once("://").ok_or_else(refused)?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if !matches!(scheme, "https" | "http") || authority.is_empty() {
        return Err(refused());
    }
    let clean = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']' | '_' | '%');
    if !authority.chars().all(clean) {
        return Err(refused());
    }
    let after_address = authority.rsplit_once(']').map_or(authority, |(_, after)| after);
    Ok(match after_address.split_once(':') {
        Some((_, port)) => {
            port.parse::<u16>().map_err(|_| refused())?;
            format!("{scheme}://{authority}")
        }
        None => format!("{scheme}://{authority}:2379"),
    })
}

fn whole(prefix: &str) -> Result<String, String> {
    if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "prefix {prefix:?}: not visible ASCII, such as {DEFAULT_PREFIX:?}"
        ));
    }
    Ok(match prefix.ends_with('/') {
        true => prefix.to_owned(),
        false => format!("{prefix}/"),
    })
}

impl Settings {
    /// Whether others than this machine's administrators may write there: then documents need signatures to be trusted.
    pub fn is_etcd(&self) -> bool {
        matches!(self, Settings::Etcd(_))
    }

    /// Relative paths are meant from the directory of the file that says them.
    pub fn relative_to(mut self, base: &Path) -> Settings {
        let from_there = |path: &mut PathBuf| *path = base.join(&*path);
        match &mut self {
            Settings::Directory(path) => from_there(path),
            Settings::Etcd(etcd) => {
                if let Some(ca) = &mut etcd.tls.ca {
                    from_there(ca);
                }
                if let Some((cert, key)) = &mut etcd.tls.identity {
                    from_there(cert);
                    from_there(key);
                }
            }
        }
        self
    }
}

/// A handle to a store. It connects when it is asked for something, and again whenever it must: that a store is out of reach is
/// no error here.
///
/// # Errors
/// Files that are named and cannot be used.
pub fn open(settings: &Settings) -> Result<Arc<dyn Store>, StoreError> {
    match settings {
        Settings::Directory(path) => Ok(Arc::new(Directory::open(path)?)),
        #[cfg(feature = "etcd")]
        Settings::Etcd(etcd) => Ok(Arc::new(super::etcd::EtcdStore::open(etcd)?)),
        #[cfg(not(feature = "etcd"))]
        Settings::Etcd(etcd) => Err(StoreError::new(
            super::shared::ErrorKind::Lasting,
            format!("etcd {}", etcd.endpoints.join(", ")),
            "opening it",
            "this ravelin was built without etcd (the cargo feature `etcd`)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn an_etcd_with_all_its_keys() {
        let settings = read(
            "endpoints = ['https://10.0.0.1:2379/', 'https://etcd-2.example.net', 'https://[2001:db8::1]']\n\
             ca = 'ca.pem'\ncert = '/etc/x.pem'\nkey = 'x.key'\nprefix = '/fleet-1'",
        )
        .expect("read");
        let Settings::Etcd(etcd) = settings.relative_to(Path::new("/etc/ravelin")) else {
            panic!("a directory");
        };
        assert_eq!(
            etcd.endpoints,
            [
                "https://10.0.0.1:2379",
                "https://etcd-2.example.net:2379",
                "https://[2001:db8::1]:2379"
            ]
        );
        assert_eq!(etcd.prefix, "/fleet-1/");
        assert_eq!(etcd.tls.ca, Some(PathBuf::from("/etc/ravelin/ca.pem")));
        assert_eq!(
            etcd.tls.identity,
            Some((PathBuf::from("/etc/x.pem"), PathBuf::from("/etc/ravelin/x.key")))
        );
    }

    #[test]
    fn a_directory_stands_alone() {
        assert_eq!(
            read("directory = '/srv/ravelin'"),
            Ok(Settings::Directory(PathBuf::from("/srv/ravelin")))
        );
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        for (text, expected) in [
            ("", "neither endpoints of an etcd"),
            ("endpoints = []", "neither endpoints of an etcd"),
            ("directory = '/x'\nca = 'y'", "`directory` and `ca`"),
            ("endpoints = ['10.0.0.1:2379']", "not of the form https://"),
            ("endpoints = ['https://']", "not of the form https://"),
            ("endpoints = ['https://a:http']", "not of the form https://"),
            ("endpoints = ['https://a/b']", "not of the form https://"),
            ("endpoints = ['https://user@a']", "not of the form https://"),
            ("endpoints = ['https://a']", "`ca` is missing"),
            ("endpoints = ['https://a']\ncert = 'x'", "`cert` without `key`"),
            ("endpoints = ['https://a']\nkey = 'x'", "`key` without `cert`"),
            ("endpoints = ['http://a']\nca = 'x'", "they are for https://"),
            ("endpoints = ['https://a']\nca = 'x'\nprefix = ''", "prefix \"\""),
            ("endpoint = ['https://a']", "unknown field `endpoint`"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
