//! The agent's end of the local socket: HTTP/1.1 and JSON over a Unix socket.
//!
//! Who can open the socket may read. Changing things takes user id 0 or the agent's own, as the kernel tells who
//! connected ([`Peer`]): file modes alone would let a group member do both. Records are those of [`super::types`];
//! every answer that is not a success is an [`ApiError`].

use super::types::{
    ApiError, ApplyRequest, BanRequest, Detached, Edit, ExplainRequest, Explanation, FlowQuery, ModeRequest,
    UnbanRequest,
};
use crate::agent::handle::{Command, ExplainBasis, Handle, Outcome, Stopping};
use crate::agent::reload::{Refusal, chain};
use crate::agent::{self, published, sockets};
use crate::host;
use crate::monitor::Hub;
use crate::output;
use crate::policy::{compile::compile, explain};
use crate::simulate;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{DefaultBodyLimit, FromRequestParts, Query, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use firewall_common::verdict::Reason;
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fs::Permissions;
use std::future::Future;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::net::unix::UCred;

/// A policy of a million prefixes written out fits.
const MAX_BODY: usize = 32 << 20;
/// Longest wait of `status`.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// Who is at the other end of a connection. `None` if the kernel did not tell.
#[derive(Clone, Copy, Debug)]
pub struct Peer(Option<UCred>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Peer {
        Peer(stream.io().peer_cred().ok())
    }
}

#[derive(Clone)]
struct Shared {
    agent: Handle,
    hub: Arc<Hub>,
}

/// Serves until `stop` is done, then lets answers under way finish for a moment.
pub async fn serve(
    listener: UnixListener,
    agent: Handle,
    hub: Arc<Hub>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let service = router(Shared { agent, hub }).into_make_service_with_connect_info::<Peer>();
    let server = axum::serve(listener, service).with_graceful_shutdown(stop);
    if let Err(error) = server.await {
        log::error!("the socket is not served any more: {error}");
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/rules", get(rules))
        .route("/v1/counters", get(counters))
        .route("/v1/flows", get(flows))
        .route("/v1/limits", get(limits))
        .route("/v1/anomalies", get(anomalies))
        .route("/v1/policy", get(policy))
        .route("/v1/monitor", get(monitor))
        .route("/v1/explain", post(explain))
        .route("/v1/reload", post(reload))
        .route("/v1/apply", post(apply))
        .route("/v1/edit", post(edit))
        .route("/v1/bans", get(bans))
        .route("/v1/ban", post(ban))
        .route("/v1/unban", post(unban))
        .route("/v1/mode", post(mode))
        .route("/v1/detach", post(detach))
        .fallback(async || {
            Failure::new(
                StatusCode::NOT_FOUND,
                "no such path; the agent may be of another version",
            )
        })
        .method_not_allowed_fallback(async || {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "not that method on this path")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

#[derive(Debug, Default, Deserialize)]
struct Wait {
    wait_ms: Option<u64>,
    generation: Option<u64>,
    #[serde(default)]
    published: bool,
}

async fn status(
    State(shared): State<Shared>,
    Parameters(wait): Parameters<Wait>,
) -> Result<Response, Failure> {
    if let Some(wait_ms) = wait.wait_ms {
        let limit = Duration::from_millis(wait_ms).min(MAX_WAIT);
        shared.agent.ready(wait.generation.unwrap_or(0), limit).await;
    }
    if !wait.published {
        return Ok(Json(shared.agent.ask(Command::Status).await?).into_response());
    }
    // Programs of others take their time, and the agent has none for them.
    let found = host::published::gather().await;
    let mut status = shared.agent.ask(Command::Status).await?;
    if let Some(policy) = shared.agent.ask(Command::Policy).await? {
        status.published = published::rows(&found.ports, &policy);
    }
    status.degraded.extend(found.problems);
    Ok(Json(status).into_response())
}

async fn services(State(shared): State<Shared>) -> Result<Response, Failure> {
    Ok(Json(shared.agent.ask(Command::Services).await?).into_response())
}

async fn rules(State(shared): State<Shared>) -> Result<Response, Failure> {
    Ok(Json(shared.agent.ask(Command::Rules).await?).into_response())
}

async fn counters(State(shared): State<Shared>) -> Result<Response, Failure> {
    Ok(Json(shared.agent.ask(Command::Counters).await?).into_response())
}

async fn flows(
    State(shared): State<Shared>,
    Parameters(query): Parameters<FlowQuery>,
) -> Result<Response, Failure> {
    let peer = query
        .peer
        .as_deref()
        .map(|peer| {
            peer.parse::<IpNetwork>().map_err(|_| {
                let text = format!("{peer:?} is not an address or prefix");
                Failure::new(StatusCode::BAD_REQUEST, text)
            })
        })
        .transpose()?;
    let basis = shared.agent.ask(Command::Flows).await?;
    let listed = tokio::task::spawn_blocking(move || {
        agent::flows::list(&basis, &host::sockets::table(), &query, peer)
            .map_err(|error| Failure::from(Refusal::Failed(chain(&error))))
    });
    match listed.await {
        Ok(list) => Ok(Json(list?).into_response()),
        Err(_) => Err(Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "listing the flows failed in an unexpected way",
        )),
    }
}

async fn limits(State(shared): State<Shared>) -> Result<Response, Failure> {
    Ok(Json(shared.agent.ask(Command::Limits).await?).into_response())
}

async fn anomalies(State(shared): State<Shared>) -> Result<Response, Failure> {
    Ok(Json(shared.agent.ask(Command::Anomalies).await?).into_response())
}

/// The text of the policy in force, as it is.
async fn policy(State(shared): State<Shared>) -> Result<Response, Failure> {
    match shared.agent.ask(Command::PolicyText).await? {
        Some(text) => Ok(([(header::CONTENT_TYPE, "application/toml")], text).into_response()),
        None => Err(Failure::new(
            StatusCode::NOT_FOUND,
            "the policy in force was put there by an earlier agent; its text is not known",
        )),
    }
}

async fn reload(_: Writer, State(shared): State<Shared>) -> Result<Response, Failure> {
    let command = |reply| Command::Reload {
        why: "asked for",
        force: true,
        reply: Some(reply),
    };
    applied(shared.agent.ask(command).await?)
}

async fn apply(
    _: Writer,
    State(shared): State<Shared>,
    JsonBody(request): JsonBody<ApplyRequest>,
) -> Result<Response, Failure> {
    applied(shared.agent.ask(|reply| Command::Apply(request, reply)).await?)
}

async fn edit(
    _: Writer,
    State(shared): State<Shared>,
    JsonBody(change): JsonBody<Edit>,
) -> Result<Response, Failure> {
    applied(shared.agent.ask(|reply| Command::Edit(change, reply)).await?)
}

async fn bans(State(shared): State<Shared>) -> Result<Response, Failure> {
    Ok(Json(shared.agent.ask(Command::Bans).await?).into_response())
}

async fn ban(
    _: Writer,
    State(shared): State<Shared>,
    JsonBody(request): JsonBody<BanRequest>,
) -> Result<Response, Failure> {
    Ok(Json(shared.agent.ask(|reply| Command::Ban(request, reply)).await??).into_response())
}

async fn unban(
    _: Writer,
    State(shared): State<Shared>,
    JsonBody(request): JsonBody<UnbanRequest>,
) -> Result<Response, Failure> {
    Ok(Json(shared.agent.ask(|reply| Command::Unban(request, reply)).await??).into_response())
}

async fn mode(
    _: Writer,
    State(shared): State<Shared>,
    JsonBody(request): JsonBody<ModeRequest>,
) -> Result<Response, Failure> {
    let mode = request
        .mode
        .parse()
        .map_err(|error: String| Failure::new(StatusCode::BAD_REQUEST, error))?;
    shared.agent.ask(|reply| Command::Mode(mode, reply)).await??;
    Ok(Json(shared.agent.ask(Command::Status).await?).into_response())
}

/// Answers what was removed, a sentence each; the agent stops after it.
async fn detach(_: Writer, State(shared): State<Shared>) -> Result<Response, Failure> {
    let removed = shared.agent.ask(Command::Detach).await??;
    Ok(Json(Detached { removed }).into_response())
}

fn applied(outcome: Outcome) -> Result<Response, Failure> {
    Ok(Json(outcome?).into_response())
}

async fn explain(
    State(shared): State<Shared>,
    JsonBody(request): JsonBody<ExplainRequest>,
) -> Result<Response, Failure> {
    let basis = shared.agent.ask(Command::Explain).await?.ok_or_else(|| {
        Failure::new(
            StatusCode::CONFLICT,
            "the policy in force was put there by an earlier agent; its text is not known",
        )
    })?;
    // A big policy has to be compiled again for it.
    let explained = tokio::task::spawn_blocking(move || explained(&basis, &request.packet)).await;
    explained.map_err(|_| {
        Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "explaining failed in an unexpected way",
        )
    })?
}

fn explained(basis: &ExplainBasis, packet: &str) -> Result<Response, Failure> {
    let again;
    let compiled = match &basis.compiled {
        Some(compiled) => compiled,
        None => {
            again = Arc::new(compile(&basis.policy).map_err(|error| Refusal::Failed(chain(&error)))?);
            &again
        }
    };
    let flows = simulate::Flows {
        sockets: sockets::connected(),
        ..basis.flows.clone()
    };
    let node = simulate::Node {
        image: &compiled.image,
        config: &basis.control,
        own: &basis.own,
        flows: &flows,
    };
    let mut explanation = explain::explain(&basis.policy, &basis.text, compiled, &node, packet)
        .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, chain(&error)))?;
    explanation.generation = basis.generation;
    let place = explanation.place.as_ref();
    let document = place.and_then(|place| basis.documents.as_ref()?.part(&place.path));
    if let (Some(place), Some(document)) = (place, document) {
        let line = usize::try_from(place.line).unwrap_or(0).saturating_sub(1);
        let text = &document.verified.statement.text;
        explanation.line = text.lines().nth(line).map(str::to_owned);
    }
    if explanation.reason == Reason::Banned.word() {
        name_ban(&mut explanation, basis, packet);
    }
    Ok(Json(explanation).into_response())
}

/// Says which ban it is.
fn name_ban(explanation: &mut Explanation, basis: &ExplainBasis, packet: &str) {
    let Ok(spec) = explain::packet::parse(packet) else {
        return;
    };
    let source = agent::bans::key(spec.ends().0.into());
    let Some((_, ban)) = basis.bans.iter().find(|(key, _)| key.overlaps(&source)) else {
        return;
    };
    if let Some(step) = explanation.steps.iter_mut().find(|step| step.step == "ban") {
        step.finding = output::ban_sentence(ban);
    }
    explanation.hint = Some(format!("to let it in: ravelin unban {}", ban.prefix));
}

#[derive(Debug, Default, Deserialize)]
struct Monitor {
    #[serde(default)]
    passes: bool,
}

/// JSON objects, one a line, until the reader goes or the agent stops.
async fn monitor(State(shared): State<Shared>, Parameters(query): Parameters<Monitor>) -> Response {
    let listener = shared.hub.listen(query.passes);
    let lines = futures_util::stream::unfold(listener, async |mut listener| {
        let record = listener.next().await?;
        let line = serde_json::to_vec(&record).map(|mut line| {
            line.push(b'\n');
            Bytes::from(line)
        });
        Some((line, listener))
    });
    (
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(lines),
    )
        .into_response()
}

/// Proof that who asks may change things.
struct Writer;

impl<S: Send + Sync> FromRequestParts<S> for Writer {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Writer, Failure> {
        let peer = ConnectInfo::<Peer>::from_request_parts(parts, state)
            .await
            .map_or(Peer(None), |info| info.0);
        may_change(peer.0.map(|peer| peer.uid()), nix::unistd::geteuid().as_raw())
    }
}

fn may_change(peer: Option<u32>, agent: u32) -> Result<Writer, Failure> {
    match peer {
        Some(uid) if uid == 0 || uid == agent => Ok(Writer),
        Some(uid) => Err(Failure::new(
            StatusCode::FORBIDDEN,
            format!("user id {uid} may look but not change things; do it as root (sudo)"),
        )),
        None => Err(Failure::new(
            StatusCode::FORBIDDEN,
            "the kernel does not tell who is asking",
        )),
    }
}

/// A JSON body, whatever its content type; mistakes are told with their place.
struct JsonBody<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> axum::extract::FromRequest<S> for JsonBody<T> {
    type Rejection = Failure;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| Failure::new(rejection.status(), rejection.body_text()))?;
        serde_json::from_slice(&bytes).map(JsonBody).map_err(|error| {
            Failure::new(
                StatusCode::BAD_REQUEST,
                format!("the request is not understood: {error}"),
            )
        })
    }
}

struct Parameters<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        Query::from_request_parts(parts, state)
            .await
            .map(|Query(query)| Parameters(query))
            .map_err(|rejection| Failure::new(rejection.status(), rejection.body_text()))
    }
}

/// An answer that is not a success.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    error: String,
}

impl Failure {
    fn new(status: StatusCode, error: impl Into<String>) -> Failure {
        Failure {
            status,
            error: error.into(),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let status = match &refusal {
            Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::Missing(_) => StatusCode::NOT_FOUND,
            Refusal::Conflict(_) => StatusCode::CONFLICT,
            Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failure::new(status, refusal.to_string())
    }
}

impl From<Stopping> for Failure {
    fn from(stopping: Stopping) -> Failure {
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, stopping.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(ApiError { error: self.error })).into_response()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("somebody already listens on {}; give this agent another --socket", .0.display())]
    InUse(PathBuf),
    #[error("there is no group {0:?} for the socket")]
    NoGroup(String),
    #[error("cannot make the socket {}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The socket file, removed when this is dropped, if it is still this one.
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            // It is of no use to anyone now, but does no harm either.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Makes the socket: 0660, in a directory of 0750, which is made if missing. What an agent that was killed left
/// behind is replaced. Never open to more than that, not for a moment: it gets its name when it has its mode.
pub fn bind(path: &Path, group: Option<&str>) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |source: io::Error| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    let directory = path
        .parent()
        .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let gid = match group {
        None => None,
        Some(name) => {
            let group = nix::unistd::Group::from_name(name).map_err(|errno| failed(errno.into()))?;
            Some(
                group
                    .ok_or_else(|| SocketError::NoGroup(name.to_owned()))?
                    .gid
                    .as_raw(),
            )
        }
    };
    if !directory.exists() {
        std::fs::create_dir_all(directory).map_err(failed)?;
        std::fs::set_permissions(directory, Permissions::from_mode(0o750)).map_err(failed)?;
        std::os::unix::fs::chown(directory, None, gid).map_err(failed)?;
    } else if gid.is_some() && directory == Path::new("/run/ravelin") {
        // The group has to get through; other directories are their owner's business.
        std::os::unix::fs::chown(directory, None, gid).map_err(failed)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(SocketError::InUse(path.to_owned())),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) => {}
        Err(error) => return Err(failed(error)),
    }
    let nameless = path.with_extension(format!("{}.tmp", std::process::id()));
    let result = (|| {
        let _ = std::fs::remove_file(&nameless);
        let listener = std::os::unix::net::UnixListener::bind(&nameless)?;
        std::fs::set_permissions(&nameless, Permissions::from_mode(0o660))?;
        std::os::unix::fs::chown(&nameless, None, gid)?;
        let inode = std::fs::symlink_metadata(&nameless)?.ino();
        std::fs::rename(&nameless, path)?;
        listener.set_nonblocking(true)?;
        Ok((
            UnixListener::from_std(listener)?,
            SocketFile {
                path: path.to_owned(),
                inode,
            },
        ))
    })();
    if result.is_err() {
        let _ = std::fs::remove_file(&nameless);
    }
    result.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_agents_own_user_may_change_things_others_not() {
        assert!(may_change(Some(0), 990).is_ok() && may_change(Some(990), 990).is_ok());
        for peer in [Some(1000), None] {
            let refused = may_change(peer, 990).err().expect("refused");
            assert_eq!(refused.status, StatusCode::FORBIDDEN);
        }
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("run/agent.sock");
        let mode = |path: &Path| std::fs::metadata(path).expect("there").mode() & 0o777;
        let (listener, file) = bind(&path, None).expect("made");
        assert_eq!(
            (mode(&path), mode(path.parent().expect("a parent"))),
            (0o660, 0o750)
        );
        assert!(matches!(bind(&path, None), Err(SocketError::InUse(_))));

        // Killed: the file stays.
        drop(listener);
        std::mem::forget(file);
        let (listener, file) = bind(&path, None).expect("made again");
        drop((listener, file));
        assert!(!path.exists());
        assert!(matches!(
            bind(&path, Some("no-such-group-here")),
            Err(SocketError::NoGroup(_))
        ));
    }
}
