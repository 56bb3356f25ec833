//! `/metrics`, `/healthz` and `/readyz` over plain HTTP, for the scraper and the supervisor of the host.
//!
//! Holds no secrets and changes nothing; by default only this host can reach it. An address that cannot be had is
//! tried again and told in the status: an agent that filters is worth more than its metrics. Only before the very
//! first policy it is a reason not to start ([`check`]).

use super::AgentCollector;
use crate::agent::handle::{Command, Handle};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TextEncoder};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;

const RETRY: Duration = Duration::from_secs(5);
/// A healthy agent answers at once; a switch of a big policy takes less than this.
const ALIVE: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Shared {
    registry: Registry,
    agent: Handle,
}

/// Whether somebody else has the address, or only root may have it. One that this host does not have may still come.
///
/// # Errors
/// Why not.
pub fn check(address: SocketAddr) -> Result<(), String> {
    match std::net::TcpListener::bind(address) {
        Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied) => {
            Err(refused(address, &error))
        }
        _ => Ok(()),
    }
}

fn refused(address: SocketAddr, error: &std::io::Error) -> String {
    let why = match error.kind() {
        ErrorKind::AddrInUse => "another process has the port; choose another with --metrics".to_owned(),
        _ => error.to_string(),
    };
    format!("metrics are not served on {address}: {why}")
}

/// Serves until the task is dropped.
pub async fn run(address: SocketAddr, agent: Handle) {
    let registry = Registry::new();
    let collectors: [Box<dyn prometheus::core::Collector>; 2] = [
        Box::new(AgentCollector(agent.clone())),
        Box::new(ProcessCollector::for_self()),
    ];
    for collector in collectors {
        if let Err(error) = registry.register(collector) {
            log::error!("some metrics are missing: {error}");
        }
    }
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .with_state(Shared {
            registry,
            agent: agent.clone(),
        });
    loop {
        let error = match TcpListener::bind(address).await {
            Ok(listener) => {
                agent.tell(Command::Note("metrics", None));
                log::info!("metrics on http://{address}/metrics");
                match axum::serve(listener, router.clone()).await {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        agent.tell(Command::Note("metrics", Some(refused(address, &error))));
        tokio::time::sleep(RETRY).await;
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let gathered = tokio::task::spawn_blocking(move || {
        TextEncoder::new()
            .encode_to_string(&shared.registry.gather())
            .map_err(|error| error.to_string())
    });
    match gathered.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
        Err(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "gathering failed in an unexpected way",
        )
            .into_response(),
    }
}

async fn health(State(shared): State<Shared>) -> Response {
    match tokio::time::timeout(ALIVE, shared.agent.ask(Command::Suppressed)).await {
        Ok(Ok(_)) => "ok\n".into_response(),
        Ok(Err(stopping)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{stopping}\n")).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the agent does not answer\n").into_response(),
    }
}

async fn ready(State(shared): State<Shared>) -> Response {
    if shared.agent.is_ready() {
        return "ready\n".into_response();
    }
    let text = "no policy is in force on every interface asked for; `ravelin status` says more\n";
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_somebody_has_is_refused_and_one_that_may_come_is_not() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = taken.local_addr().expect("bound");
        let error = check(address).expect_err("taken");
        assert!(
            error.contains(&address.to_string()) && error.contains("--metrics"),
            "{error}"
        );
        drop(taken);
        assert_eq!(check(address), Ok(()));
        assert_eq!(check("192.0.2.1:9477".parse().expect("an address")), Ok(()));
    }
}
