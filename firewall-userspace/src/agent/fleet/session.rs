//! What a node writes into the store: its registration, under a lease that lives as long as the agent, and its report, which
//! stays. Both are tried again with patience when the store is out of reach; nothing waits for them.

use super::chain;
use super::config::{Fleet, is_global};
use crate::agent::clock::Clock;
use crate::datapath::netlink;
use crate::fleet::report::{MAX_ADDRESSES, NAMESPACE, Registration, Report, Stored, node_key, status_key};
use crate::fleet::signature;
use crate::store::follow::{Timing, Waits};
use crate::store::shared::{Expect, PutError, Session, Store, StoreError};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::block_in_place;

/// How long a node is registered that was not heard of.
const LEASE: Duration = Duration::from_secs(20);
/// Between looks at the own addresses.
const LOOK: Duration = Duration::from_secs(5);
/// What is looked at anew is put at most so often.
const PAUSE: Duration = Duration::from_millis(200);

/// See the top of this file.
#[derive(Clone)]
pub struct Own {
    pub fleet: Fleet,
    pub store: Arc<dyn Store>,
    /// The registration is not there any more.
    pub again: Arc<Notify>,
    pub registered: Arc<RwLock<bool>>,
    pub clock: Arc<dyn Clock>,
}

impl Own {
    /// Keeps this node registered.
    pub async fn register(self) {
        let mut waits = Waits::new(Timing::default());
        let mut told = String::new();
        loop {
            let error = match self.store.session(LEASE).await {
                Ok(session) => self.hold(&session, &mut waits, &mut told).await,
                Err(error) => error.full(),
            };
            self.set_registered(false);
            if error != told {
                log::warn!("this node is not registered: {error}");
                told = error;
            }
            tokio::time::sleep(waits.longer()).await;
        }
    }

    fn set_registered(&self, registered: bool) {
        *self.registered.write().unwrap_or_else(PoisonError::into_inner) = registered;
    }

    /// Until something fails.
    async fn hold(&self, session: &Session, waits: &mut Waits, told: &mut String) -> String {
        let mut known: Option<BTreeSet<IpAddr>> = None;
        loop {
            let addresses = block_in_place(|| self.addresses());
            let addresses = match addresses {
                Ok(addresses) => addresses,
                Err(error) => return format!("its addresses are not known: {error}"),
            };
            if known.as_ref() != Some(&addresses) {
                let value = match block_in_place(|| self.registration(&addresses)) {
                    Ok(value) => value,
                    Err(error) => return error,
                };
                if let Err(error) = session.put(&node_key(self.fleet.labels.node()), value).await {
                    return error.full();
                }
                if !told.is_empty() || known.is_none() {
                    log::info!("registered as {}", self.fleet.labels.node());
                }
                told.clear();
                waits.reset();
                self.set_registered(true);
                known = Some(addresses);
            }
            tokio::select! {
                error = session.lost() => return error.full(),
                () = self.again.notified() => {
                    known = None;
                    tokio::time::sleep(PAUSE).await;
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn addresses(&self) -> Result<BTreeSet<IpAddr>, String> {
        if let Some(addresses) = &self.fleet.addresses {
            return Ok(addresses.iter().copied().collect());
        }
        let interfaces = netlink::interfaces().map_err(|error| chain(&error))?;
        let own = interfaces.into_iter().flat_map(|interface| interface.addresses);
        Ok(own
            .filter(|address| is_global(*address))
            .take(MAX_ADDRESSES)
            .collect())
    }

    fn registration(&self, addresses: &BTreeSet<IpAddr>) -> Result<Bytes, String> {
        let registration = Registration {
            labels: self.fleet.labels.clone(),
            addresses: addresses.iter().copied().collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at: self.clock.wall().as_secs(),
        };
        let registration = serde_json::to_string(&registration).map_err(|error| error.to_string())?;
        let signature = match &self.fleet.key {
            Some(key) => {
                let signed = signature::sign(registration.as_bytes(), key, NAMESPACE)
                    .map_err(|error| format!("its registration cannot be signed: {}", chain(&error)))?;
                Some(signed.armored().to_owned())
            }
            None => None,
        };
        let stored = Stored {
            registration,
            signature,
        };
        serde_json::to_vec(&stored)
            .map(Bytes::from)
            .map_err(|error| error.to_string())
    }

    /// Puts the report whenever it changes.
    pub async fn report(self, mut reports: watch::Receiver<Report>) {
        let key = status_key(self.fleet.labels.node());
        let mut waits = Waits::new(Timing::default());
        while reports.changed().await.is_ok() {
            loop {
                let report = reports.borrow_and_update().clone();
                match self.put(&key, &report).await {
                    Ok(()) => break,
                    Err(error) => log::debug!("telling how this node does: {}", error.full()),
                }
                tokio::time::sleep(waits.longer()).await;
            }
            waits.reset();
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn put(&self, key: &str, report: &Report) -> Result<(), StoreError> {
        let Ok(value) = serde_json::to_vec(report) else {
            return Ok(());
        };
        match self.store.put(key, Bytes::from(value), Expect::Any).await {
            Ok(_) | Err(PutError::Changed(_)) => Ok(()),
            Err(PutError::Store(error)) => Err(error),
        }
    }
}
