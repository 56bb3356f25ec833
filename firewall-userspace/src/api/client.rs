//! The command line's side of the local socket: HTTP/1.1 with JSON bodies over a Unix socket.
//!
//! A connection per request: the agent is local, and commands ask once. What an answer means is the caller's
//! business; that it is an answer, and in words why not, is decided here.

use crate::api::types::ApiError;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// Longer than the agent takes to compile and apply the largest policy.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest line of a stream; a record is some hundred bytes.
const MAX_LINE: usize = 1 << 20;

/// Where to find the agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

/// Why there is no answer, or which answer it is that says no.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no agent listens at {}: start it with `ravelin agent` or `systemctl start ravelin`{}", socket.display(), also(others))]
    NoAgent { socket: PathBuf, others: Vec<PathBuf> },
    #[error("permission denied on {}: {}", socket.display(), who_may(group))]
    Permission { socket: PathBuf, group: Option<String> },
    #[error("connecting to the agent at {}", socket.display())]
    Connect { socket: PathBuf, source: std::io::Error },
    #[error("the agent went away before it answered; its log says why")]
    Lost { source: hyper::Error },
    #[error("the agent did not answer within {} s; it is stopped or stuck, its log says more", patience.as_secs())]
    Silent { patience: Duration },
    #[error("{message}")]
    Refused { status: u16, message: String },
    #[error("the agent's answer to {path} is not understood; are agent and command of the same version?")]
    Answer { path: String, source: serde_json::Error },
    #[error("the agent sent a line of more than {MAX_LINE} bytes")]
    LongLine,
    #[error("the request cannot be written")]
    Request {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn also(others: &[PathBuf]) -> String {
    if others.is_empty() {
        return String::new();
    }
    let names: Vec<String> = others
        .iter()
        .map(|path| format!("--socket {}", path.display()))
        .collect();
    format!(" (others are here: {})", names.join(", "))
}

fn who_may(group: &Option<String>) -> String {
    match group {
        Some(group) if group == "root" => "run this as root".to_owned(),
        Some(group) => format!(
            "run this as root, or join its group, which may read: `usermod -aG {group} $USER`, then log in again"
        ),
        None => "run this as root".to_owned(),
    }
}

impl Client {
    pub fn new(socket: &Path) -> Client {
        Client {
            socket: socket.to_owned(),
            patience: PATIENCE,
        }
    }

    /// Waits this much longer for the answer, for requests that themselves wait.
    pub fn patient(mut self, more: Duration) -> Client {
        self.patience = PATIENCE.saturating_add(more);
        self
    }

    /// # Errors
    /// No agent, no permission, no answer, or an answer that is not 2xx.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// An answer that is not JSON but a text.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn text(&self, path: &str) -> Result<String, ClientError> {
        let body = self.body(Method::GET, path, Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// # Errors
    /// As [`Client::get`].
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Request { source: error.into() })?;
        self.ask(Method::POST, path, body.into()).await
    }

    /// Opens a stream of lines that lasts until either side ends it.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn stream(&self, path: &str) -> Result<Lines, ClientError> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        Ok(Lines {
            body: response.into_body(),
            buffer: BytesMut::new(),
        })
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let body = self.body(method, path, body).await?;
        serde_json::from_slice(&body).map_err(|source| ClientError::Answer {
            path: path.to_owned(),
            source,
        })
    }

    async fn body(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let answer = async {
            let response = self.send(method, path, body).await?;
            let body = response.into_body().collect().await;
            Ok(body.map_err(|source| ClientError::Lost { source })?.to_bytes())
        };
        match tokio::time::timeout(self.patience, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Silent {
                patience: self.patience,
            }),
        }
    }

    /// Sends one request; an answer that is not 2xx becomes [`ClientError::Refused`].
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| self.no_connection(source))?;
        let lost = |source| ClientError::Lost { source };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        // Its error is also that of the request below.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "ravelin")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Request { source: error.into() })?;
        let response = sender.send_request(request).await.map_err(lost)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await.map_err(lost)?.to_bytes();
        Err(refused(status, path, &body))
    }

    fn no_connection(&self, source: std::io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NoAgent {
                others: other_sockets(&socket),
                socket,
            },
            ErrorKind::PermissionDenied => ClientError::Permission {
                group: group_of(&socket),
                socket,
            },
            _ => ClientError::Connect { socket, source },
        }
    }
}

fn refused(status: StatusCode, path: &str, body: &[u8]) -> ClientError {
    let message = match serde_json::from_slice::<ApiError>(body) {
        Ok(answer) => answer.error,
        Err(_) if status == StatusCode::NOT_FOUND => {
            format!("the agent does not know {path}; are agent and command of the same version?")
        }
        Err(_) => format!(
            "the agent answered {status} to {path}: {}",
            String::from_utf8_lossy(body).trim()
        ),
    };
    ClientError::Refused {
        status: status.as_u16(),
        message,
    }
}

/// Sockets beside the one that nobody listens at.
fn other_sockets(socket: &Path) -> Vec<PathBuf> {
    let Some(entries) = socket.parent().and_then(|folder| std::fs::read_dir(folder).ok()) else {
        return Vec::new();
    };
    let mut others: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path != socket && path.extension().is_some_and(|extension| extension == "sock"))
        .collect();
    others.sort();
    others
}

/// The group that may open the socket; of its directory when that one cannot be entered.
fn group_of(socket: &Path) -> Option<String> {
    let metadata = std::fs::metadata(socket).or_else(|error| match socket.parent() {
        Some(folder) => std::fs::metadata(folder),
        None => Err(error),
    });
    let group = nix::unistd::Gid::from_raw(metadata.ok()?.gid());
    nix::unistd::Group::from_gid(group)
        .ok()
        .flatten()
        .map(|group| group.name)
}

/// A stream of lines.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// The next line without its end; `None` when the agent has ended the stream. Safe to cancel.
    ///
    /// # Errors
    /// The agent went away in the middle.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(end).freeze();
                self.buffer.advance(1);
                if line.is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(ClientError::LongLine);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(source)) => return Err(ClientError::Lost { source }),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{ModeRequest, Status};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    /// Serves one connection: reads a request's head, then writes `answer` and closes.
    async fn serve(folder: &Path, answer: &'static str) -> (PathBuf, tokio::task::JoinHandle<String>) {
        let socket = folder.join("test.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        (socket, server)
    }

    #[tokio::test]
    async fn a_record_that_is_not_whole_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let body = "HTTP/1.1 200 OK\r\ncontent-length: 25\r\n\r\n{\"uptime_seconds\": 7    }";
        let (socket, server) = serve(folder.path(), body).await;
        // Records are whole: a missing field is an error that says so.
        let error = Client::new(&socket)
            .get::<Status>("/v1/status")
            .await
            .unwrap_err();
        assert!(matches!(error, ClientError::Answer { .. }), "{error:?}");
        assert!(server.await.unwrap().starts_with("GET /v1/status HTTP/1.1\r\n"));
    }

    #[tokio::test]
    async fn an_error_of_the_agent_is_passed_on_in_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let answer =
            "HTTP/1.1 403 Forbidden\r\ncontent-length: 32\r\n\r\n{\"error\": \"only root may do so\"} ";
        let (socket, server) = serve(folder.path(), answer).await;
        let request = ModeRequest {
            mode: "observe".into(),
        };
        let error = Client::new(&socket)
            .post::<_, ()>("/v1/mode", &request)
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "only root may do so");
        assert!(server.await.unwrap().contains("{\"mode\":\"observe\"}"));
    }

    #[tokio::test]
    async fn streams_come_line_by_line_whatever_the_chunks() {
        let folder = tempfile::tempdir().unwrap();
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                      3\r\n{\"a\r\n4\r\n\":1}\r\n4\r\n\n\n{}\r\n1\r\n\n\r\n0\r\n\r\n";
        let (socket, _server) = serve(folder.path(), answer).await;
        let mut lines = Client::new(&socket).stream("/v1/monitor").await.unwrap();
        assert_eq!(lines.next().await.unwrap().unwrap(), "{\"a\":1}");
        assert_eq!(lines.next().await.unwrap().unwrap(), "{}");
        assert!(lines.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn no_agent_says_how_to_start_one_and_names_its_neighbours() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("edge.sock"), "").unwrap();
        let socket = folder.path().join("default.sock");
        let error = Client::new(&socket)
            .get::<Status>("/v1/status")
            .await
            .unwrap_err();
        let edge = folder.path().join("edge.sock");
        assert_eq!(
            error.to_string(),
            format!(
                "no agent listens at {}: start it with `ravelin agent` or `systemctl start ravelin` (others are here: --socket {})",
                socket.display(),
                edge.display()
            )
        );
    }

    #[tokio::test]
    async fn an_agent_that_dies_is_told_from_one_that_refuses() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, _server) = serve(folder.path(), "").await;
        let error = Client::new(&socket)
            .get::<Status>("/v1/status")
            .await
            .unwrap_err();
        assert!(matches!(error, ClientError::Lost { .. }), "{error:?}");
    }
}
