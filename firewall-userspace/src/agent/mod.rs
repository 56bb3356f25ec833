//! The agent: sources -> desired -> compiled -> applied -> reported.
//!
//! [`owner`] is the loop and the only one who changes anything (policies in `applying`, interfaces in `attaching`);
//! [`reload`] makes a policy ready for it in `jobs`, [`links`] says which interfaces are to be filtered, [`views`] what
//! there is to see. Everybody else ([`crate::api::server`],
//! [`crate::metrics`], [`watch`], signals) talks to it through a [`handle::Handle`]. This file puts them together
//! and takes them apart.
//!
//! Stopping leaves the data path in force, unless told otherwise; dying does always.

mod applying;
mod attaching;
mod bannable;
pub mod banned;
mod banning;
pub mod bans;
pub mod challenge;
pub mod clock;
pub mod config;
pub mod counters;
mod coverage;
pub mod drift;
pub mod fleet;
pub mod flows;
pub mod handle;
mod jobs;
pub mod keeper;
mod limiting;
pub mod limits;
pub mod links;
pub mod lock;
pub mod log;
pub mod owner;
pub mod published;
mod recount;
pub mod reload;
pub mod sockets;
pub mod temporary;
pub mod timeouts;
pub mod views;
pub mod watch;

use crate::api::server;
use crate::datapath::{Datapath, Options};
use crate::detect;
use crate::fleet::documents::Documents;
use crate::metrics;
use crate::monitor::{self, Hub, record::Directory};
use crate::store::last_good::LastGood;
use ::log::{info, warn};
use anyhow::{Context as _, anyhow};
use clock::SystemClock;
use config::Config;
use handle::{Command, Handle, Readiness};
use owner::{Outlets, Owner};
use sd_notify::NotifyState;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// Answers under way when the agent stops.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Runs the agent until it is told to stop.
///
/// # Errors
/// If it cannot start: then nothing was changed, and what was in force still is.
pub async fn run(config: Config) -> anyhow::Result<()> {
    log::init(config.log_format, &config.log_level);
    info!(
        "ravelin {} starts, instance {}",
        env!("CARGO_PKG_VERSION"),
        config.instance
    );
    for warning in config.warnings() {
        warn!("{warning}");
    }
    let _state_lock = lock::state_dir(&config.state_dir)?;
    let began = LastGood::exists(&config.state_dir) || config.pins.exists();
    if let (Some(address), false) = (config.metrics, began) {
        metrics::server::check(address).map_err(|error| anyhow!(error))?;
    }
    // Before the kernel is touched, so that a bad socket changes nothing. Who connects waits until it is served.
    let (listener, socket_file) = server::bind(&config.socket, config.socket_group.as_deref())?;

    // Signals count from here on, so that a stop during the start is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;

    let (commands, inbox) = mpsc::unbounded_channel();
    let (readiness_out, readiness) = tokio::sync::watch::channel(Readiness::default());
    let (files_out, files) = tokio::sync::watch::channel(vec![config.policy.clone()]);
    let agent = Handle::new(commands, readiness);
    let directory = Arc::new(RwLock::new(Directory::default()));
    let teller = agent.clone();
    let hub = Hub::new(move |wanted| {
        teller.tell(Command::Listen(wanted));
    });
    let board = detect::watch::board(&config.detect);
    let fleet_board = fleet::Board::default();
    let of_fleet = config
        .fleet
        .as_ref()
        .map(|fleet| fleet::Start::new(fleet, &config.state_dir, Arc::new(SystemClock)));
    let sets = of_fleet.as_ref().map(fleet::Start::sets).unwrap_or_default();
    let outlets = Outlets {
        readiness: readiness_out,
        files: files_out,
        directory,
        hub: hub.clone(),
        board: board.clone(),
        fleet: fleet_board.clone(),
    };

    let (started, start) = oneshot::channel();
    let (stopped, mut stop) = oneshot::channel();
    let owner_config = config.clone();
    let owner_agent = agent.clone();
    // Detached on purpose: its end is told by the channel, also if it panics.
    std::thread::Builder::new()
        .name("ravelin-owner".into())
        .spawn(move || {
            let result = own(owner_config, sets, outlets, inbox, started, owner_agent);
            // Who waits for it is the function that this thread was made by.
            let _ = stopped.send(result);
        })?;
    let Ok(documents) = start.await else {
        return Err(match stop.await {
            Ok(Err(error)) => error,
            _ => anyhow!("the agent could not start, in an unexpected way"),
        });
    };

    let (close, closing) = oneshot::channel::<()>();
    let serving = tokio::spawn(server::serve(listener, agent.clone(), hub.clone(), async move {
        let _ = closing.await;
    }));
    let mut tasks = tokio::task::JoinSet::new();
    if let Some(address) = config.metrics {
        tasks.spawn(metrics::server::run(address, agent.clone()));
    }
    if config.log_drops {
        tasks.spawn(monitor::pump::log_drops(hub.clone()));
    }
    if config.detect.enabled {
        let (state_dir, hub) = (config.state_dir.clone(), hub.clone());
        tasks.spawn(detect::watch::run(
            config.detect,
            state_dir,
            agent.clone(),
            hub,
            board,
        ));
    }
    if let Some(start) = of_fleet {
        tasks.spawn(fleet::run(start, documents, agent.clone(), fleet_board));
    }
    let hinted = agent.clone();
    tasks.spawn(watch::run(files, move || {
        hinted.tell(Command::Reload {
            why: "the file changed",
            force: false,
            reply: None,
        })
    }));
    info!("ready: the socket is {}", config.socket.display());
    notify(&[NotifyState::Ready]);

    let result = loop {
        tokio::select! {
            result = &mut stop => break result,
            _ = terminate.recv() => drop(agent.tell(Command::Stop("SIGTERM"))),
            _ = interrupt.recv() => drop(agent.tell(Command::Stop("SIGINT"))),
            _ = hangup.recv() => drop(agent.tell(Command::Reload { why: "SIGHUP", force: true, reply: None })),
        }
    };
    notify(&[NotifyState::Stopping]);
    drop(socket_file);
    hub.close();
    tasks.abort_all();
    let _ = close.send(());
    let _ = tokio::time::timeout(LAST_ANSWERS, serving).await;
    result.unwrap_or_else(|_| {
        Err(anyhow!(
            "the agent failed in an unexpected way; what was in force stays in force"
        ))
    })
}

/// The whole life of the owner, on its own thread.
fn own(
    config: Config,
    sets: Vec<Arc<Documents>>,
    outlets: Outlets,
    inbox: mpsc::UnboundedReceiver<Command>,
    started: oneshot::Sender<Option<Arc<Documents>>>,
    agent: Handle,
) -> anyhow::Result<()> {
    let (directory, hub) = (outlets.directory.clone(), outlets.hub.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        // Pins that are there may be somebody's: not even looked at without the lock. If not, they are made first.
        let early = config
            .pins
            .exists()
            .then(|| lock::pins(&config.pins))
            .transpose()?;
        let pins = config.pins.clone();
        let with_kernel_log = config.kernel_log;
        let options = Options {
            features: config.features,
            flows: config.flows_max,
            limits: config.limits.sizes,
            bans: config.bans.max,
        };
        let mut owner = Owner::new(config, Arc::new(SystemClock), &clock::boot_id(), outlets)?;
        // Without pins nothing is in force, so a mistake in the policy ends it here, before anything was changed.
        owner.read_policy(early.is_none(), sets)?;
        let mut datapath = Datapath::open_with(&pins, options).context("cannot set up the data path")?;
        let _pins_lock = early.map_or_else(|| lock::pins(&pins), Ok)?;
        let kernel_log = with_kernel_log.then(|| datapath.take_kernel_log());
        if let Some(None) = kernel_log {
            warn!("the kernel programs were built without a log; build with the feature `kernel-log`");
        }
        let events = datapath.events().context("cannot read events")?;
        let watch = owner.start(datapath).await?;
        let pump = tokio::spawn(monitor::pump::run(events, directory, hub, agent));
        if let Some(kernel_log) = kernel_log.flatten() {
            tokio::spawn(async move {
                if let Err(error) = kernel_log.run().await {
                    warn!("the log of the kernel programs ends: {error}");
                }
            });
        }
        // Nobody waits for it any more only if the agent is ending anyway.
        let _ = started.send(owner.documents());
        let why = owner.run(inbox, watch).await;
        pump.abort();
        owner.stop(why)
    })
}

fn notify(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("cannot tell the service manager: {error}");
    }
}
