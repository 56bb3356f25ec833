//! Leases of etcd that keep themselves alive.

use super::connection::{Cause, Failure};
use super::{EtcdStore, leased};
use crate::store::shared::{Lease, Lost, Revision, Session, StoreError, refuse};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub async fn open(store: &EtcdStore, ttl: Duration) -> Result<Session, StoreError> {
    let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
    let granted = store
        .connection
        .call("opening a session", |client, _| async move {
            client.lease_client().grant(seconds, None).await
        })
        .await
        .map_err(|failure| failure.error)?;
    // etcd lets no lease be shorter than its elections.
    let ttl = Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or(1).max(1));
    let lost = Lost::default();
    let beating = tokio::spawn(beat(store.clone(), granted.id(), ttl, lost.clone()));
    Ok(Session::new(EtcdLease {
        store: store.clone(),
        id: granted.id(),
        lost,
        beating,
        ended: false,
    }))
}

/// Keeps the lease alive until it is gone, or must be.
async fn beat(store: EtcdStore, id: i64, ttl: Duration, lost: Lost) {
    let mut alive = Instant::now();
    loop {
        tokio::time::sleep(ttl / 3).await;
        let asked = Instant::now();
        let answer = store
            .connection
            .call("keeping a lease", |client, _| async move {
                client.lease_client().keep_alive(id).await.map(drop)
            })
            .await;
        match answer {
            Ok(()) => alive = asked,
            Err(Failure { error, cause }) if cause == Cause::NoLease || alive.elapsed() >= ttl => {
                lost.tell(error);
                return;
            }
            Err(Failure { error, .. }) => log::debug!("{}", error.full()),
        }
    }
}

struct EtcdLease {
    store: EtcdStore,
    id: i64,
    lost: Lost,
    beating: JoinHandle<()>,
    ended: bool,
}

impl EtcdLease {
    fn revoke(&mut self) -> impl Future<Output = ()> + Send + use<> {
        self.ended = true;
        self.beating.abort();
        let (store, id) = (self.store.clone(), self.id);
        async move {
            let revoked = store
                .connection
                .call("ending a session", |client, _| async move {
                    client.lease_client().revoke(id).await.map(drop)
                })
                .await;
            // It ends by itself, only later.
            if let Err(Failure { error, cause }) = revoked
                && cause != Cause::NoLease
            {
                log::debug!("{}", error.full());
            }
        }
    }
}

impl Lease for EtcdLease {
    fn put<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Revision, StoreError>> {
        async move {
            self.lost.check()?;
            refuse(&self.store.connection.name(), key, &value)?;
            let full = self.store.full(key);
            let put = self
                .store
                .connection
                .call(&format!("putting {key}"), |client, _| {
                    let (full, value, lease) = (full.clone(), value.to_vec(), leased(self.id));
                    async move { client.kv_client().put(full, value, lease).await }
                })
                .await;
            match put {
                Ok(answer) => Ok(Revision(answer.header().map_or(0, |header| header.revision()))),
                Err(Failure { error, cause }) => {
                    if cause == Cause::NoLease {
                        self.lost.tell(error.clone());
                    }
                    Err(error)
                }
            }
        }
        .boxed()
    }

    fn lost(&self) -> BoxFuture<'_, StoreError> {
        self.lost.wait().boxed()
    }

    fn end(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        self.revoke().boxed()
    }
}

impl Drop for EtcdLease {
    fn drop(&mut self) {
        if !self.ended
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            drop(runtime.spawn(self.revoke()));
        }
    }
}
