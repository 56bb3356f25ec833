//! Watches: one stream, with one watch of etcd for each prefix.
//!
//! The watches of a stream are not in step with each other: when one has told of revision 110, another may still have to tell of
//! 105. So each has its own position ([`Event::Changes`]). Progress that etcd tells on request is a sign of life and
//! no position: before 3.4.25 and 3.5.8 it could run ahead of events (etcd-io/etcd#15220).

use super::connection::{Failure, meaning, words};
use super::{EtcdStore, MAX_ANSWER, after_all};
use crate::store::shared::{Change, ErrorKind, Event, Revision, StoreError, Watch, Watching};
use etcd_client::{Client, EventType, WatchOptions, WatchResponse, WatchStream};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior};

/// How often a sign of life is asked for.
const ASK: Duration = Duration::from_secs(5);

pub async fn open(store: &EtcdStore, from: &[(&str, Revision)]) -> Result<Watch, StoreError> {
    let doing = "watching";
    let prefixes: Vec<String> = from.iter().map(|(prefix, _)| (*prefix).to_owned()).collect();
    let requests: Vec<(Vec<u8>, WatchOptions)> = from
        .iter()
        .map(|&(prefix, after)| {
            let key = store.full(prefix);
            let options = WatchOptions::new()
                .with_range(after_all(&key))
                .with_start_revision(after.0 + 1);
            (key, options)
        })
        .collect();
    let opened = store
        .connection
        .call(doing, |client, _| begin(client, requests.clone()))
        .await;
    let (stream, created, early) = opened.map_err(|Failure { error, .. }| error)?;
    let mut ask = tokio::time::interval(ASK);
    ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = EtcdWatch {
        store: store.clone(),
        stream,
        created,
        prefixes,
        ask,
        ready: VecDeque::new(),
    };
    for response in &early {
        watch.take(response);
    }
    Ok(Watch::new(watch))
}

/// Opens the stream. Returns the numbers that etcd gave to the watches, and what it told before all of them stood.
async fn begin(
    client: Client,
    requests: Vec<(Vec<u8>, WatchOptions)>,
) -> Result<(WatchStream, Vec<i64>, Vec<WatchResponse>), etcd_client::Error> {
    let wanted = requests.len();
    let mut requests = requests.into_iter();
    let Some((key, options)) = requests.next() else {
        return Err(etcd_client::Error::InvalidArgs("nothing to watch".to_owned()));
    };
    let mut stream = client
        .watch_client()
        .max_decoding_message_size(MAX_ANSWER)
        .watch(key, Some(options))
        .await?;
    for (key, options) in requests {
        stream.watch(key, Some(options)).await?;
    }
    let mut early = Vec::new();
    let mut created = Vec::new();
    while created.len() < wanted {
        let Some(response) = stream.message().await? else {
            return Err(etcd_client::Error::WatchError("the stream ended".to_owned()));
        };
        if response.canceled() && response.compact_revision() == 0 {
            return Err(cancelled(&response));
        }
        match response.created() {
            true => created.push(response.watch_id()),
            false => early.push(response),
        }
    }
    Ok((stream, created, early))
}

struct EtcdWatch {
    store: EtcdStore,
    stream: WatchStream,
    /// The number that etcd gave to the watch of each prefix.
    created: Vec<i64>,
    prefixes: Vec<String>,
    ask: Interval,
    ready: VecDeque<Result<Event, StoreError>>,
}

impl EtcdWatch {
    fn take(&mut self, response: &WatchResponse) {
        if response.canceled() {
            self.ready.push_back(match response.compact_revision() {
                0 => {
                    let error = cancelled(response);
                    Err(self.error(&error))
                }
                revision => Ok(Event::Relist(format!("compacted up to revision {revision}"))),
            });
            return;
        }
        let under = self.created.iter().position(|id| *id == response.watch_id());
        let (Some(under), [.., last]) = (under, response.events()) else {
            self.ready.push_back(Ok(Event::Alive));
            return;
        };
        let revision = Revision(last.kv().map_or(0, |kv| kv.mod_revision()));
        let changes = response.events().iter().filter_map(|event| {
            let kv = event.kv()?;
            match event.event_type() {
                EventType::Put => self.store.entry(kv.clone()).map(Change::Put),
                EventType::Delete => Some(Change::Delete {
                    key: self.store.short(kv.key())?,
                    revision: Revision(kv.mod_revision()),
                }),
            }
        });
        let changes = changes.collect();
        self.ready.push_back(Ok(Event::Changes {
            under,
            revision,
            changes,
        }));
    }

    fn error(&self, error: &etcd_client::Error) -> StoreError {
        let (_, kind) = meaning(error);
        self.store.connection.error(
            kind,
            format!("watching {}", self.prefixes.join(" and ")),
            words(error),
        )
    }
}

/// A watch that the server ended.
fn cancelled(response: &WatchResponse) -> etcd_client::Error {
    etcd_client::Error::WatchError(match response.cancel_reason() {
        "" => "etcd ended the watch".to_owned(),
        reason => reason.trim_start_matches("etcdserver: ").to_owned(),
    })
}

impl Watching for EtcdWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Event, StoreError>> {
        async move {
            loop {
                if let Some(event) = self.ready.pop_front() {
                    return event;
                }
                tokio::select! {
                    message = self.stream.message() => match message {
                        Ok(Some(response)) => self.take(&response),
                        Ok(None) => return Err(self.store.connection.error(
                            ErrorKind::Transient,
                            format!("watching {}", self.prefixes.join(" and ")),
                            "the stream ended",
                        )),
                        Err(error) => return Err(self.error(&error)),
                    },
                    _ = self.ask.tick() => {
                        if let Err(error) = self.stream.request_progress().await {
                            return Err(self.error(&error));
                        }
                    }
                }
            }
        }
        .boxed()
    }
}
