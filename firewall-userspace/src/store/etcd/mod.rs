//! A fleet's store in etcd.
//!
//! One member is talked to at a time, by one connection; when it does not answer, or answers that it cannot, the next one. What a
//! request did whose answer got lost is found out by asking again. A watch ends with its connection: `follow` resumes it.
//!
//! All keys stand below the prefix of the settings. Keys there that cannot be a [`Store`]'s are not seen.

mod connection;
mod session;
mod watch;

use super::settings::Etcd as Settings;
use super::shared::{
    Entry, ErrorKind, Expect, Holds, Point, PutError, Revision, Session, Snapshot, Store, StoreError, Watch,
    is_key, refuse,
};
use bytes::Bytes;
use connection::{Cause, Connection, Failure};
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;

/// Keys in one answer to begin with; fewer where they are too much for one.
const PAGE: i64 = 512;
/// Keys in one request for many: etcd takes 128 operations in a transaction, and all values have to fit into one answer.
const BATCH: usize = 32;
/// One answer holds no more.
const MAX_ANSWER: usize = 64 << 20;
/// Nor do all answers of a snapshot: whoever owns an etcd must not get at the memory of all nodes.
const MAX_SNAPSHOT: usize = 256 << 20;
/// A snapshot that is compacted away while it is read begins anew, so often.
const SNAPSHOT_TRIES: usize = 5;

#[derive(Clone)]
pub struct EtcdStore {
    connection: Arc<Connection>,
    prefix: Arc<str>,
}

impl EtcdStore {
    /// Connects later, with the first request.
    ///
    /// # Errors
    /// Certificates that cannot be read.
    pub fn open(settings: &Settings) -> Result<EtcdStore, StoreError> {
        Ok(EtcdStore {
            connection: Arc::new(Connection::open(settings)?),
            prefix: settings.prefix.as_str().into(),
        })
    }

    fn full(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.prefix).into_bytes()
    }

    fn entry(&self, kv: KeyValue) -> Option<Entry> {
        let revision = Revision(kv.mod_revision());
        let (key, value) = kv.into_key_value();
        let key = self.short(&key)?;
        Some(Entry {
            key,
            value: value.into(),
            revision,
        })
    }

    /// Without the prefix; none for what is not a key.
    fn short(&self, key: &[u8]) -> Option<String> {
        let key = std::str::from_utf8(key).ok()?.strip_prefix(&*self.prefix)?;
        is_key(key).then(|| key.to_owned())
    }

    /// Everything below these, at the revision of the first answer.
    async fn read_all(&self, under: &[&str]) -> Result<Snapshot, StoreError> {
        for _ in 0..SNAPSHOT_TRIES {
            if let Some(snapshot) = self.try_read_all(under).await? {
                return Ok(snapshot);
            }
        }
        Err(self.connection.error(
            ErrorKind::Transient,
            format!("reading {}", under.join(" and ")),
            "compacted away again and again while it was read",
        ))
    }

    async fn try_read_all(&self, under: &[&str]) -> Result<Option<Snapshot>, StoreError> {
        let mut snapshot = Snapshot::default();
        let mut bytes = 0;
        for prefix in under {
            let doing = format!("reading {prefix}");
            let mut from = self.full(prefix);
            let end = after_all(&from);
            let mut page = PAGE;
            loop {
                let options = GetOptions::new()
                    .with_range(end.clone())
                    .with_revision(snapshot.revision.0)
                    .with_limit(page);
                let answer = self
                    .connection
                    .call(&doing, |client, _| {
                        let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER);
                        let (from, options) = (from.clone(), options.clone());
                        async move { kv.get(from, Some(options)).await }
                    })
                    .await;
                let mut answer = match answer {
                    Ok(answer) => answer,
                    Err(Failure {
                        cause: Cause::Compacted,
                        ..
                    }) => return Ok(None),
                    Err(Failure {
                        cause: Cause::TooLarge | Cause::Timeout,
                        ..
                    }) if page > 1 => {
                        page = (page / 8).max(1);
                        continue;
                    }
                    Err(failure) => return Err(failure.error),
                };
                if let Some(header) = answer.header() {
                    if snapshot.revision == Revision(0) {
                        snapshot.revision = Revision(header.revision());
                        snapshot.cluster = header.cluster_id();
                    } else if snapshot.cluster != header.cluster_id() {
                        // Another etcd answers than the one that began.
                        return Ok(None);
                    }
                }
                let more = answer.more();
                let kvs = answer.take_kvs();
                if let Some(last) = kvs.last() {
                    from = last.key().to_vec();
                    from.push(0);
                }
                for kv in kvs {
                    bytes += kv.key().len() + kv.value().len();
                    snapshot.entries.extend(self.entry(kv));
                }
                if bytes > MAX_SNAPSHOT {
                    return Err(self.connection.error(
                        ErrorKind::Lasting,
                        doing,
                        format!("more than {} MiB", MAX_SNAPSHOT >> 20),
                    ));
                }
                if !more {
                    break;
                }
            }
        }
        snapshot.entries.sort_by(|one, other| one.key.cmp(&other.key));
        snapshot.entries.dedup_by(|one, other| one.key == other.key);
        Ok(Some(snapshot))
    }

    async fn read(&self, keys: &[String]) -> Result<Vec<Option<Entry>>, StoreError> {
        let mut entries = Vec::with_capacity(keys.len());
        for batch in keys.chunks(BATCH) {
            let operations: Vec<TxnOp> = batch.iter().map(|key| TxnOp::get(self.full(key), None)).collect();
            let doing = match batch {
                [key] => format!("reading {key}"),
                _ => format!("reading {} keys", batch.len()),
            };
            let answer = self
                .connection
                .call(&doing, |client, _| {
                    let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER);
                    let txn = Txn::new().and_then(operations.clone());
                    async move { kv.txn(txn).await }
                })
                .await
                .map_err(|failure| failure.error)?;
            for response in answer.op_responses() {
                if let TxnOpResponse::Get(mut found) = response {
                    entries.push(found.take_kvs().pop().and_then(|kv| self.entry(kv)));
                }
            }
        }
        if entries.len() != keys.len() {
            return Err(self.connection.error(
                ErrorKind::Transient,
                format!("reading {} keys", keys.len()),
                format!("{} answers", entries.len()),
            ));
        }
        Ok(entries)
    }

    async fn holds_point(&self, point: &Point) -> Result<Holds, StoreError> {
        const DOING: &str = "asking for its history";
        let key = match &point.witness {
            Some(witness) => self.full(&witness.key),
            // Which is no key, but one that everybody may read.
            None => self.full("policies/"),
        };
        let now = self
            .connection
            .call(DOING, |client, _| {
                let (key, only_header) = (key.clone(), GetOptions::new().with_count_only());
                async move { client.kv_client().get(key, Some(only_header)).await }
            })
            .await
            .map_err(|failure| failure.error)?;
        let (cluster, revision) = now
            .header()
            .map_or((0, 0), |header| (header.cluster_id(), header.revision()));
        if cluster != point.cluster {
            return Ok(Holds::No(format!(
                "it is cluster {cluster:x} and was {:x}",
                point.cluster
            )));
        }
        if revision < point.revision.0 {
            return Ok(Holds::No(format!(
                "it is at revision {revision} and was at {}",
                point.revision
            )));
        }
        let Some(witness) = &point.witness else {
            return Ok(Holds::Yes);
        };
        let answer = self
            .connection
            .call(DOING, |client, _| {
                let then = GetOptions::new().with_revision(witness.revision.0);
                let key = key.clone();
                async move { client.kv_client().get(key, Some(then)).await }
            })
            .await;
        match answer {
            Ok(mut then) => {
                let entry = then.take_kvs().pop().and_then(|kv| self.entry(kv));
                Ok(match entry.is_some_and(|entry| witness.is(&entry)) {
                    true => Holds::Yes,
                    false => Holds::No(format!(
                        "it does not hold {} of revision {}",
                        witness.key, witness.revision
                    )),
                })
            }
            Err(Failure {
                cause: Cause::Compacted,
                ..
            }) => Ok(Holds::Yes),
            Err(failure) => Err(failure.error),
        }
    }

    async fn write(&self, key: &str, value: Bytes, expect: Expect) -> Result<Revision, PutError> {
        refuse(&self.connection.name(), key, &value)?;
        let full = self.full(key);
        let doing = format!("putting {key}");
        let compare = match expect {
            Expect::Any => {
                let answer = self
                    .connection
                    .call(&doing, |client, _| {
                        let (full, value) = (full.clone(), value.to_vec());
                        async move { client.kv_client().put(full, value, None).await }
                    })
                    .await
                    .map_err(|failure| failure.error)?;
                return Ok(Revision(answer.header().map_or(0, |header| header.revision())));
            }
            Expect::Absent => 0,
            Expect::At(revision) => revision.0,
        };
        // Whether an earlier try may have been carried out.
        let mut again = false;
        let answer = self
            .connection
            .call(&doing, |client, earlier| {
                again |= earlier;
                let put = TxnOp::put(full.clone(), value.to_vec(), None);
                let txn = unless(&full, compare, put);
                async move { client.kv_client().txn(txn).await }
            })
            .await
            .map_err(|failure| failure.error)?;
        if answer.succeeded() {
            return Ok(Revision(answer.header().map_or(0, |header| header.revision())));
        }
        match self.found(&answer) {
            Some(now) if again && now.value == value => Ok(now.revision),
            now => Err(PutError::Changed(now)),
        }
    }

    async fn remove(&self, key: &str, expect: Expect) -> Result<Revision, PutError> {
        refuse(&self.connection.name(), key, &[])?;
        let full = self.full(key);
        let doing = format!("deleting {key}");
        let compare = match expect {
            Expect::Any => {
                let answer = self
                    .connection
                    .call(&doing, |client, _| {
                        let full = full.clone();
                        async move { client.kv_client().delete(full, None).await }
                    })
                    .await
                    .map_err(|failure| failure.error)?;
                return Ok(Revision(answer.header().map_or(0, |header| header.revision())));
            }
            Expect::Absent => 0,
            Expect::At(revision) => revision.0,
        };
        let mut again = false;
        let answer = self
            .connection
            .call(&doing, |client, earlier| {
                again |= earlier;
                let txn = unless(&full, compare, TxnOp::delete(full.clone(), None));
                async move { client.kv_client().txn(txn).await }
            })
            .await
            .map_err(|failure| failure.error)?;
        let now = match answer.succeeded() {
            true => None,
            false => self.found(&answer),
        };
        if answer.succeeded() || (again && now.is_none()) {
            return Ok(Revision(answer.header().map_or(0, |header| header.revision())));
        }
        Err(PutError::Changed(now))
    }

    /// What a transaction found instead of what was expected.
    fn found(&self, answer: &etcd_client::TxnResponse) -> Option<Entry> {
        answer
            .op_responses()
            .into_iter()
            .find_map(|response| match response {
                TxnOpResponse::Get(mut found) => found.take_kvs().pop(),
                _ => None,
            })
            .and_then(|kv| self.entry(kv))
    }
}

/// The operation, if the key is at this revision (0: absent); else what it is.
fn unless(key: &[u8], revision: i64, operation: TxnOp) -> Txn {
    Txn::new()
        .when([Compare::mod_revision(key, CompareOp::Equal, revision)])
        .and_then([operation])
        .or_else([TxnOp::get(key, None)])
}

/// The end of the range of all keys that begin so.
fn after_all(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // All keys from there on.
    vec![0]
}

impl Store for EtcdStore {
    fn name(&self) -> String {
        self.connection.name()
    }

    fn snapshot<'a>(&'a self, under: &'a [&'a str]) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.read_all(under).boxed()
    }

    fn get<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Vec<Option<Entry>>, StoreError>> {
        self.read(keys).boxed()
    }

    fn holds<'a>(&'a self, point: &'a Point) -> BoxFuture<'a, Result<Holds, StoreError>> {
        self.holds_point(point).boxed()
    }

    fn watch<'a>(&'a self, from: &'a [(&'a str, Revision)]) -> BoxFuture<'a, Result<Watch, StoreError>> {
        watch::open(self, from).boxed()
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expect: Expect,
    ) -> BoxFuture<'a, Result<Revision, PutError>> {
        self.write(key, value, expect).boxed()
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Revision, PutError>> {
        self.remove(key, expect).boxed()
    }

    fn session(&self, ttl: Duration) -> BoxFuture<'_, Result<Session, StoreError>> {
        session::open(self, ttl).boxed()
    }
}

/// A put under a lease.
fn leased(lease: i64) -> Option<PutOptions> {
    Some(PutOptions::new().with_lease(lease))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_after_its_last_key() {
        assert_eq!(after_all(b"/ravelin/policies/"), b"/ravelin/policies0");
        assert_eq!(after_all(b"a\xff"), b"b");
        assert_eq!(after_all(b"\xff"), b"\0");
    }
}
