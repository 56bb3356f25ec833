//! The connection to one member of a cluster after the other, and what its errors mean.

use crate::store::settings::{Etcd as Settings, Tls};
use crate::store::shared::{ErrorKind, StoreError};
use etcd_client::{Channel, Client, ConnectOptions};
use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// For a connection, with its handshakes.
const CONNECT: Duration = Duration::from_secs(3);
/// For one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// No further try is begun after so long.
const TRYING: Duration = Duration::from_secs(8);
/// A connection with streams is asked so often whether it lives, and is dead without an answer in that time: etcd hangs up on who asks
/// more often than every five seconds.
const PING: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(5));

pub struct Connection {
    endpoints: Vec<String>,
    tls: Tls,
    current: Mutex<Current>,
    /// The number of the last connection that something was heard on.
    heard: AtomicU64,
}

struct Current {
    /// Which endpoint is talked to, or tried next.
    endpoint: usize,
    client: Option<Client>,
    /// Counts connections.
    number: u64,
}

/// What a request ended in.
pub struct Failure {
    pub error: StoreError,
    pub cause: Cause,
}

/// What somebody can do something about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The revision asked for is forgotten.
    Compacted,
    /// The answer is larger than is taken.
    TooLarge,
    Timeout,
    /// The lease is gone.
    NoLease,
    Other,
}

impl Connection {
    pub fn open(settings: &Settings) -> Result<Connection, StoreError> {
        let endpoints = settings.endpoints.clone();
        // Nodes begin with different members.
        let first = RandomState::new().hash_one(0) as usize % endpoints.len().max(1);
        let connection = Connection {
            endpoints,
            tls: settings.tls.clone(),
            current: Mutex::new(Current {
                endpoint: first,
                client: None,
                number: 0,
            }),
            heard: AtomicU64::new(0),
        };
        // So that what is named and not there is known at once.
        if let Err(cause) = tls_config(&connection.tls) {
            return Err(connection.error(ErrorKind::Lasting, "reading its certificates", cause));
        }
        Ok(connection)
    }

    pub fn name(&self) -> String {
        format!("etcd {}", self.endpoints.join(", "))
    }

    pub fn error(
        &self,
        kind: ErrorKind,
        doing: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> StoreError {
        StoreError::new(kind, self.name(), doing, cause)
    }

    /// Does something with a member that answers. The second argument tells whether it may have been done already, by a
    /// member whose answer got lost.
    pub async fn call<T, F>(
        &self,
        doing: &str,
        mut request: impl FnMut(Client, bool) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let begin = Instant::now();
        let mut tries = 0;
        loop {
            let (client, endpoint, number) = self.client(doing).await?;
            tries += 1;
            let (cause, kind, words) = match timeout(ANSWER, request(client, tries > 1)).await {
                Ok(Ok(answer)) => {
                    self.heard.store(number, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(error)) => {
                    let (cause, kind) = meaning(&error);
                    let mut words = words(&error);
                    if is_hang_up(&words) && self.heard.load(Ordering::Relaxed) != number {
                        words.push_str(&self.why_it_hangs_up());
                    }
                    (cause, kind, words)
                }
                Err(_) => (
                    Cause::Timeout,
                    ErrorKind::Transient,
                    format!("no answer in {} seconds", ANSWER.as_secs()),
                ),
            };
            if kind == ErrorKind::Transient && cause != Cause::TooLarge {
                self.give_up(number).await;
                // Once more even of one: it may be there again.
                if tries <= self.endpoints.len() && begin.elapsed() < TRYING {
                    continue;
                }
            }
            return Err(Failure {
                error: StoreError::new(kind, format!("etcd {endpoint}"), doing, words),
                cause,
            });
        }
    }

    /// The present connection, or a new one to the first member that can be reached.
    async fn client(&self, doing: &str) -> Result<(Client, String, u64), Failure> {
        let mut current = self.current.lock().await;
        let mut refusals = Vec::new();
        let mut lasting = true;
        for _ in 0..self.endpoints.len() {
            let endpoint = self.endpoints[current.endpoint % self.endpoints.len()].clone();
            if let Some(client) = &current.client {
                return Ok((client.clone(), endpoint, current.number));
            }
            match self.connect(&endpoint).await {
                Ok(client) => {
                    log::debug!("connected to etcd {endpoint}");
                    current.client = Some(client.clone());
                    current.number += 1;
                    return Ok((client, endpoint, current.number));
                }
                Err(cause) => {
                    lasting &= is_about_certificates(&cause);
                    refusals.push((endpoint, cause));
                    current.endpoint = (current.endpoint + 1) % self.endpoints.len();
                }
            }
        }
        let kind = match lasting {
            true => ErrorKind::Lasting,
            false => ErrorKind::Transient,
        };
        let error = match &refusals[..] {
            [(endpoint, cause)] => StoreError::new(kind, format!("etcd {endpoint}"), doing, cause.as_str()),
            several => {
                // In the order of the settings, so that the text does not change with where the round began.
                let mut several = several.to_vec();
                several.sort_by_key(|(endpoint, _)| self.endpoints.iter().position(|one| one == endpoint));
                let all: Vec<String> = several
                    .iter()
                    .map(|(endpoint, cause)| format!("{endpoint}: {cause}"))
                    .collect();
                StoreError::new(kind, "etcd", doing, all.join("; "))
            }
        };
        Err(Failure {
            error,
            cause: Cause::Other,
        })
    }

    async fn connect(&self, endpoint: &str) -> Result<Client, String> {
        let mut address = Endpoint::from_shared(endpoint.to_owned())
            .map_err(|error| error.to_string())?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            // etcd hangs up on who asks without a stream.
            .keep_alive_while_idle(false);
        if endpoint.starts_with("https://") {
            address = address
                .tls_config(tls_config(&self.tls)?)
                .map_err(|error| chain(&error))?;
        }
        let channel = match timeout(CONNECT, address.connect()).await {
            Ok(channel) => channel.map_err(|error| chain(&error))?,
            Err(_) => return Err(format!("no connection in {} seconds", CONNECT.as_secs())),
        };
        // A member that is cut off from the others answers from what it has, or not at all: not good enough for a watch.
        let options = ConnectOptions::new().with_require_leader(true);
        Client::from_channel(Channel::Tonic(channel), Some(options))
            .await
            .map_err(|error| words(&error))
    }

    /// A server looks at certificates after the client has taken the handshake as done, and tells by hanging up.
    fn why_it_hangs_up(&self) -> String {
        match &self.tls {
            Tls {
                identity: Some((cert, _)),
                ..
            } => {
                format!(": etcd may not take the certificate {}", cert.display())
            }
            Tls { ca: Some(_), .. } => {
                ": etcd may want a client certificate, and no `cert` is configured".to_owned()
            }
            Tls { .. } => ": etcd may speak https://".to_owned(),
        }
    }

    /// The connection of this number does not do: the next request goes to the next member.
    pub async fn give_up(&self, number: u64) {
        let mut current = self.current.lock().await;
        if current.number == number && current.client.take().is_some() {
            current.endpoint = (current.endpoint + 1) % self.endpoints.len();
        }
    }
}

fn tls_config(tls: &Tls) -> Result<ClientTlsConfig, String> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|error| format!("reading {}: {error}", path.display()))
    };
    let mut config = ClientTlsConfig::new();
    if let Some(ca) = &tls.ca {
        config = config.ca_certificate(Certificate::from_pem(read(ca)?));
    }
    if let Some((cert, key)) = &tls.identity {
        config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    Ok(config)
}

fn is_about_certificates(words: &str) -> bool {
    [
        "certificate",
        "CertificateRequired",
        "UnknownCA",
        ".pem",
        "reading /",
    ]
    .iter()
    .any(|sign| words.contains(sign))
}

fn is_hang_up(words: &str) -> bool {
    ["broken pipe", "connection reset", "closed", "eof", "fatal alert"]
        .iter()
        .any(|sign| words.to_ascii_lowercase().contains(sign))
}

/// What an error of the client means, by the codes of gRPC and the words of etcd.
pub fn meaning(error: &etcd_client::Error) -> (Cause, ErrorKind) {
    let status = match error {
        etcd_client::Error::GRpcStatus(status) => status,
        etcd_client::Error::LeaseKeepAliveError(words) if words.contains("not found") => {
            return (Cause::NoLease, ErrorKind::Lasting);
        }
        etcd_client::Error::WatchError(words) if words.contains("permission denied") => {
            return (Cause::Other, ErrorKind::Lasting);
        }
        _ => return (Cause::Other, ErrorKind::Transient),
    };
    let says = |words| status.message().contains(words);
    match status.code() {
        tonic::Code::OutOfRange if says("compacted") => (Cause::Compacted, ErrorKind::Transient),
        tonic::Code::OutOfRange if says("message length too large") => {
            (Cause::TooLarge, ErrorKind::Transient)
        }
        tonic::Code::NotFound if says("lease not found") => (Cause::NoLease, ErrorKind::Lasting),
        tonic::Code::ResourceExhausted if says("space exceeded") => (Cause::Other, ErrorKind::Lasting),
        tonic::Code::Unknown if is_about_certificates(&words(error)) => (Cause::Other, ErrorKind::Lasting),
        tonic::Code::PermissionDenied
        | tonic::Code::Unauthenticated
        | tonic::Code::InvalidArgument
        | tonic::Code::FailedPrecondition
        | tonic::Code::OutOfRange
        | tonic::Code::NotFound
        | tonic::Code::Unimplemented => (Cause::Other, ErrorKind::Lasting),
        _ => (Cause::Other, ErrorKind::Transient),
    }
}

/// What happened, without the words of the layers in between.
pub fn words(error: &etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => {
            let message = status.message().trim_start_matches("etcdserver: ");
            let mut text = match message {
                "" => format!("{:?}", status.code()),
                _ => message.to_owned(),
            };
            if let Some(cause) = status.source() {
                let below = chain(cause);
                if message == "transport error" {
                    text = below;
                } else if !text.contains(&below) {
                    text = format!("{text}: {below}");
                }
            }
            text
        }
        etcd_client::Error::TransportError(error) => chain(error),
        etcd_client::Error::LeaseKeepAliveError(words) | etcd_client::Error::WatchError(words) => {
            words.clone()
        }
        other => other.to_string(),
    }
}

/// An error and its causes. What says that there was an error, and no more, is left out.
fn chain(error: &dyn Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        let empty = matches!(
            text.as_str(),
            "transport error" | "tcp connect error" | "error trying to connect" | "connection error"
        );
        if !empty && !parts.last().is_some_and(|last| last.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    match parts.is_empty() {
        true => error.to_string(),
        false => parts.join(": "),
    }
}
