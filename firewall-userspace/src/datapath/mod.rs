//! The kernel's side of the firewall: loaded, pinned, attached, told what to do and asked what it did.
//!
//! The one place that knows of aya, `bpf()` and netlink. Nothing here decides what is filtered: the agent says
//! which policy, which configuration and which interfaces. What is attached stays so when a [`Datapath`] is
//! dropped, or its process killed: programs, links and maps are pinned, and the next one takes them over.
//!
//! * [`load`](self) -> maps and programs; [`attach`](self) -> interfaces; [`image`](self) -> the policy and its switch
//! * counters, events and the gate are read and written in place, in the kernel's memory

mod attach;
mod bans;
mod clsact;
mod connections;
mod conntrack;
mod counters;
pub mod device;
mod drift;
mod events;
mod flows;
mod gate;
mod image;
pub mod limits;
mod load;
pub mod netlink;
pub mod object;
pub mod others;
mod pages;
mod pins;
mod sys;
mod tc;
mod wire;
mod xdp;

pub use attach::{AttachError, Attachment, Features, Hook, Ingress, Part, TcMode, Way};
pub use connections::{Counting, Found, Recounter};
pub use counters::{EndingCounter, EndingCounters};
pub use drift::Drift;
pub use events::EventReader;
pub use flows::Flow;
pub use image::InForce;
pub use load::KernelLog;
pub use netlink::Interface;
pub use object::OBJECT;
pub use wire::NetlinkError;

use crate::policy::compile::Compiled;
use attach::Attacher;
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use bans::Bans;
use drift::Expected;

use firewall_common::{
    ban::{self, Ban, BanKey, Escalation},
    control::{AddressKey, CHALLENGE_QUIET_S, Config, Control, Failsafe, MAX_FAILSAFE, SLOTS, Selector},
    counter::{InterfaceCounter, Tally, interface_cell},
    flow::{SET_WORDS, SETS, State, WAYS},
    fragment,
    gate::{CELLS, Cell},
    image::{Image, NO_SERVICE, PortKey, SlicePages},
    verdict::Reason,
};
use flows::FlowTable;
use gate::Gate;
use image::{OuterMaps, Slots};
pub use limits::{Fill, LimitUse};
use limits::{Need, ScopeMaps, Scopes, Sizes};
use load::Programs;
use std::{
    collections::HashSet,
    io::{self, Read as _},
    mem::offset_of,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool, atomic::Ordering},
};
use sys::Mapping;

/// What the node is told outside of its policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Count what would drop, and pass it.
    pub observe: bool,
    /// Set of `firewall_common::control::LINK_*`.
    pub link_control: u32,
    pub failsafe: Vec<Failsafe>,
    /// Addresses of this host: what comes from one of them is not from the wire.
    pub own: Vec<IpAddr>,
    /// Seconds by `firewall_common::flow::State`.
    pub flow_timeouts: [u32; State::COUNT],
    /// Set of `firewall_common::control::CHALLENGE_*`.
    pub challenge: u32,
    /// Seconds without excess after which a challenge ends.
    pub challenge_quiet_s: u32,
    /// As `firewall_common::control::Config::ban_lens`.
    pub ban_lens: [[u8; ban::LENGTHS]; 2],
    pub escalation: Escalation,
}

impl Default for NodeConfig {
    fn default() -> Self {
        NodeConfig {
            observe: false,
            link_control: 0,
            failsafe: Vec::new(),
            own: Vec::new(),
            flow_timeouts: firewall_common::flow::TIMEOUTS,
            challenge: 0,
            challenge_quiet_s: CHALLENGE_QUIET_S,
            ban_lens: Config::DEFAULT.ban_lens,
            escalation: Escalation::DEFAULT,
        }
    }
}

/// What the data path is made with.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Features to use if the kernel has them.
    pub features: Features,
    /// Flows that the table holds at most, rounded up to a power of two. A table that exists keeps its size.
    pub flows: u32,
    /// Bans that the table holds at most. A table that exists keeps its size.
    pub bans: u32,
    pub limits: Sizes,
}

impl Options {
    /// Flows that a table may hold: 64 bytes each, of kernel memory.
    pub const FLOWS: std::ops::RangeInclusive<u32> = 512..=16_777_216;

    /// Bans that a table may hold: about 100 bytes each, of kernel memory.
    pub const BANS: std::ops::RangeInclusive<u32> = 16..=1_048_576;
    pub const DEFAULT_BANS: u32 = 65_536;

    /// Flows that fit into a table for `flows` of them.
    pub fn capacity(flows: u32) -> usize {
        let sets = Options {
            flows,
            ..Options::default()
        };
        (sets.flow_sets() * WAYS) as usize
    }

    fn flow_sets(&self) -> u32 {
        let flows = self.flows.clamp(*Self::FLOWS.start(), *Self::FLOWS.end());
        (flows / WAYS).next_power_of_two()
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            features: Features::ALL,
            flows: SETS * WAYS,
            bans: Self::DEFAULT_BANS,
            limits: Sizes::default(),
        }
    }
}

/// A call to the kernel failed, or would have.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error(
        "this needs root or the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; missing here: {missing}"
    )]
    Privileges { missing: String },
    #[error("{} is not on a BPF file system (`mount -t bpf bpf DIRECTORY` makes one)", .path.display())]
    NotBpfFs { path: PathBuf },
    #[error("{}: a BPF file system takes no names with dots; name the instance without", .path.display())]
    DotInPins { path: PathBuf },
    #[error("loading the kernel programs")]
    Object { source: Box<aya::EbpfError> },
    #[error("the kernel refuses the program `{name}`{log}")]
    Program {
        name: &'static str,
        /// The end of the verifier's log.
        log: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the kernel programs have no map {name}")]
    NoMap { name: &'static str },
    #[error(
        "{} is pinned with another shape than this version uses; stop what uses it, then `ravelin detach` \
         removes it",
        .path.display()
    )]
    MapShape { path: PathBuf },
    #[error("the map {name}")]
    Map {
        name: &'static str,
        source: Box<aya::maps::MapError>,
    },
    #[error("{what}")]
    System { what: &'static str, source: io::Error },
    #[error("{what} {}", .path.display())]
    Path {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Attach(Box<AttachError>),
    #[error("the compiled policy is not an image of this layout")]
    BadImage,
    #[error("the policy needs {cells} counters on this machine, more than an array holds")]
    TooManyCounters { cells: u64 },
    #[error("{count} failsafe entries, more than the {MAX_FAILSAFE} that fit")]
    TooManyFailsafe { count: usize },
    #[error("this host has {count} addresses, more than the {} that fit", load::MAX_OWN)]
    TooManyAddresses { count: usize },
    #[error("the table of bans is full: it holds {max}, as many as it was made for")]
    BansFull { max: usize },
    #[error(
        "the policy has {count} limits, more than the {} that fit",
        firewall_common::limit::MAX_LOCAL
    )]
    TooManyScopes { count: usize },
    #[error(
        "the limits of the policy take {need}, more than the {:.1} MB that `memory` of [limits] in agent.toml grants: \
         raise it, or lower `sources` or `connections` there",
        *.granted as f64 / 1e6
    )]
    LimitMemory { need: Need, granted: u64 },
    #[error(
        "there is no cgroup v2 mounted that shows its root (`mount -t cgroup2 none DIRECTORY` makes one)"
    )]
    NoCgroup,
    #[error("somebody reads the events already")]
    EventsTaken,
}

impl DatapathError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> DatapathError {
        move |source| DatapathError::System { what, source }
    }

    fn path(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DatapathError {
        move |source| DatapathError::Path {
            what,
            path: path.to_owned(),
            source,
        }
    }

    fn map(name: &'static str) -> impl FnOnce(aya::maps::MapError) -> DatapathError {
        move |source| DatapathError::Map {
            name,
            source: source.into(),
        }
    }
}

/// The programs of one instance on one node.
///
/// Only one at a time: the agent's lock sees to that. Calls block, at most for some tens of milliseconds (grace
/// periods) or, for a switch, as long as the image takes to copy.
pub struct Datapath {
    pins: PathBuf,
    /// Of this layout, below `pins`.
    directory: PathBuf,
    programs: Programs,
    features: Features,
    slots: Slots,
    config: Array<MapData, [u8; CONFIG_BYTES]>,
    expected: Expected,
    local: HashMap<MapData, [u64; 2], u32>,
    interfaces: PerCpuArray<MapData, [u64; size_of::<InterfaceCounter>() / 8]>,
    sampler: PerCpuArray<MapData, [u64; 3]>,
    gate: Mutex<Gate>,
    fresh: bool,
    flows: FlowTable,
    fragments: Mapping,
    bans: Bans,
    tallies: PerCpuArray<MapData, u64>,
    answers: Array<MapData, u32>,
    published: Array<MapData, u64>,
    events: OwnedFd,
    events_taken: Arc<AtomicBool>,
    kernel_log: Option<KernelLog>,
}

const CONFIG_BYTES: usize = size_of::<Config>();

impl Datapath {
    /// Loads the programs and makes or takes over the pinned maps. Mounts the BPF file system if it is missing.
    /// Attaches and replaces nothing yet.
    pub fn open(pins: &Path) -> Result<Datapath, DatapathError> {
        Datapath::open_with(pins, Options::default())
    }

    /// The same, otherwise than by default.
    pub fn open_with(pins: &Path, options: Options) -> Result<Datapath, DatapathError> {
        let allowed = options.features;
        load::check_privileges()?;
        // Only kernels before 5.11 need it, and on them creating a map says so.
        let _ = sys::lift_memlock();
        let directory = load::prepare_pins(pins)?;
        let (programs, mut maps) = load::load(&directory, allowed.frags, options.flow_sets(), options.bans)?;

        let images: MapOnly = maps.take("IMAGES")?;
        let counters: MapOnly = maps.take("COUNTERS")?;
        let control: MapOnly = maps.take("CONTROL")?;
        let gate: MapOnly = maps.take("GATE")?;
        let events: MapOnly = maps.take("EVENTS")?;
        let outer = OuterMaps {
            images: images.0.fd().as_fd(),
            counters: counters.0.fd().as_fd(),
            control: control.0.fd().as_fd(),
        };
        let scopes: MapOnly = maps.take("SCOPES")?;
        let sketches: MapOnly = maps.take("SKETCHES")?;
        let bindings: MapOnly = maps.take("BINDINGS")?;
        let scope_maps = ScopeMaps {
            scopes: scopes.0.fd().as_fd(),
            sketches: sketches.0.fd().as_fd(),
            bindings: bindings.0.fd().as_fd(),
        };
        let scopes = Scopes::open(&directory, scope_maps, options.limits)?;
        let slots = Slots::open(&directory, outer, scopes)?;
        let gate = Mapping::new(gate.0.fd().as_fd(), CELLS as usize * 8, true)
            .map_err(DatapathError::system("mapping the gate"))?;
        let flows: MapOnly = maps.take("FLOWS")?;
        let sets = sys::map_info(flows.0.fd().as_fd())
            .map_err(DatapathError::system("asking for the size of the flow table"))?
            .max_entries;
        let set_bytes = SET_WORDS as usize * 8;
        let flows = Mapping::new(flows.0.fd().as_fd(), sets as usize * set_bytes, true)
            .map_err(DatapathError::system("mapping the flow table"))?;
        let fragments: MapOnly = maps.take("FRAGMENTS")?;
        let fragments = Mapping::new(
            fragments.0.fd().as_fd(),
            fragment::SETS as usize * set_bytes,
            false,
        )
        .map_err(DatapathError::system("mapping the fragment table"))?;
        slots
            .control()
            .u32(offset_of!(Control, flow_mask))
            .store(sets - 1, Ordering::Relaxed);
        let features = Features {
            frags: programs.frags,
            tcx: allowed.tcx && tc::has_tcx(programs.egress.fd.as_fd()),
            native: allowed.native,
            sock_ops: allowed.sock_ops,
        };
        // Egress has kept the gate if it was attached to these maps.
        let fresh = slots.control().load_u64(offset_of!(Control, seed)) == 0
            || pins::attached(pins)
                .map_err(DatapathError::path("reading", pins))?
                .is_empty();
        let mut datapath = Datapath {
            pins: pins.to_owned(),
            directory,
            programs,
            features,
            slots,
            config: maps.take("CONFIG")?,
            expected: Expected::default(),
            local: maps.take("LOCAL")?,
            interfaces: maps.take("IFACES")?,
            sampler: maps.take("SAMPLER")?,
            gate: Mutex::new(Gate::new(gate, fresh)),
            fresh,
            flows: FlowTable::new(flows),
            fragments,
            bans: Bans::open(maps.take("BANS")?)?,
            tallies: maps.take("TALLIES")?,
            answers: maps.take("ANSWERS")?,
            published: maps.take("PUBLISHED")?,
            events: clone_fd(&events)?,
            events_taken: Arc::default(),
            kernel_log: maps.kernel_log(),
        };
        datapath.seed()?;
        // What cannot be told apart by it is counted by the sockets of this namespace alone.
        let cookie = sys::netns_cookie().unwrap_or(0);
        datapath
            .slots
            .control()
            .u64(offset_of!(Control, netns_cookie))
            .store(cookie, Ordering::Relaxed);
        let zero = datapath.slots.control().u64(offset_of!(Control, zero));
        zero.store(0, Ordering::Relaxed);
        datapath.expected.words = drift::words(datapath.slots.control());
        pins::remove_zombies(pins)?;
        Ok(datapath)
    }

    /// What this kernel lacks and what that means, a sentence each.
    pub fn degraded(&self) -> Vec<String> {
        let mut lacks = Vec::new();
        if !self.features.frags {
            lacks.push(
                "this kernel has no multi-buffer XDP (5.18 has it): drivers refuse native XDP for MTUs above a \
                 page, and fall back to generic"
                    .to_owned(),
            );
        }
        if !self.features.tcx {
            lacks.push(
                "this kernel has no TCX links (6.6 has them): programs at TC are filters of clsact, which `tc qdisc \
                 del` takes off until the agent puts them back"
                    .to_owned(),
            );
        }
        lacks
    }

    /// The policy that packets are judged by, read back from the kernel. `None` before the first one.
    pub fn in_force(&self) -> Result<Option<InForce>, DatapathError> {
        Ok(self.slots.in_force())
    }

    /// Puts a policy in force, atomically for packets. Returns the final counters of the one before: exact, for no
    /// packet counts in it any more.
    ///
    /// # Errors
    /// The policy before stays in force, unless the error comes after the switch: [`Self::in_force`] tells.
    pub fn switch(
        &mut self,
        compiled: &Compiled,
        generation: u64,
    ) -> Result<Option<EndingCounters>, DatapathError> {
        let closes = self.slots.default_allows() == Some(true);
        if let Some(before) = self.slots.image() {
            // Clients whose service goes are no peers that the host asked, though it may go on sending to them. Before the
            // switch, for until then nothing that leaves from these ports opens anything anyway.
            let still = served(&compiled.image);
            let gone = served(&before).into_iter().filter(|port| !still.contains(port));
            let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
            gate.shut(gone)?;
        }
        let retired = self.slots.switch(compiled, generation)?;
        let pages = SlicePages(&compiled.image);
        if closes && Image::open(&pages).is_some_and(|image| !image.default_allows()) {
            self.flows.forget_datagrams();
        }
        Ok(retired)
    }

    /// The kernel memory that the limits of a policy take.
    ///
    /// # Errors
    /// They would not be taken: it is more than is granted, or they are too many.
    pub fn check_limits(&self, compiled: &Compiled) -> Result<Need, DatapathError> {
        self.slots.scopes().check(&compiled.scopes)
    }

    /// Counters of the policy in force, summed over CPUs.
    pub fn counters(&self) -> Result<EndingCounters, DatapathError> {
        Ok(self.slots.counters().unwrap_or_default())
    }

    /// Counters of an interface, since its number was first used.
    pub fn interface_counters(&self, ifindex: u32) -> Result<InterfaceCounter, DatapathError> {
        let cells = self
            .interfaces
            .get(&interface_cell(ifindex), 0)
            .map_err(DatapathError::map("IFACES"))?;
        Ok(counters::interface(&cells))
    }

    /// Events that were not written, by reason, since the maps were made.
    pub fn suppressed(&self) -> Result<Vec<(Reason, u64)>, DatapathError> {
        const SUPPRESSED: usize = offset_of!(firewall_common::event::Sampler, suppressed) / 8;
        Reason::ALL
            .iter()
            .map(|reason| {
                let cells = self
                    .sampler
                    .get(&u32::from(reason.number()), 0)
                    .map_err(DatapathError::map("SAMPLER"))?;
                Ok((
                    *reason,
                    cells
                        .iter()
                        .fold(0, |sum: u64, cell| sum.wrapping_add(cell[SUPPRESSED])),
                ))
            })
            .collect()
    }

    /// Puts a node configuration in force, atomically for packets.
    pub fn configure(&mut self, config: &NodeConfig) -> Result<(), DatapathError> {
        let own: HashSet<[u64; 2]> = config.own.iter().map(|address| halves(*address)).collect();
        if own.len() > load::MAX_OWN {
            return Err(DatapathError::TooManyAddresses { count: own.len() });
        }
        let bytes = encode(&node_config(config, &own)?);
        let local = DatapathError::map;
        let known: HashSet<[u64; 2]> = self
            .local
            .keys()
            .collect::<Result<_, _>>()
            .map_err(local("LOCAL"))?;

        // Addresses that come are known before the configuration that asks for them, those that go are known
        // until no packet asks any more. Full of those that go, the map takes the new ones only after them.
        if known.union(&own).count() > load::MAX_OWN {
            self.forget(known.difference(&own))?;
        }
        for key in own.difference(&known) {
            self.local.insert(key, 0, 0).map_err(local("LOCAL"))?;
        }
        let selector = self.slots.selector();
        let current = self
            .config
            .get(&selector.config(), 0)
            .map_err(DatapathError::map("CONFIG"))?;
        if current != bytes {
            let idle = (selector.config() + 1) % SLOTS;
            self.config
                .set(idle, bytes, 0)
                .map_err(DatapathError::map("CONFIG"))?;
            self.slots.select(Selector::new(selector.image(), idle));
            self.slots.grace()?;
            let observed = current[offset_of!(Config, observe)..][..4] != [0; 4];
            if observed && !config.observe {
                self.flows.forget_datagrams();
            }
        }
        self.forget(known.difference(&own))?;
        self.expected.config = Some((config.clone(), bytes, own));
        Ok(())
    }

    fn forget<'a>(&mut self, keys: impl Iterator<Item = &'a [u64; 2]>) -> Result<(), DatapathError> {
        for key in keys {
            match self.local.remove(key) {
                Ok(()) | Err(aya::maps::MapError::KeyNotFound) => {}
                // Forgotten already.
                Err(aya::maps::MapError::SyscallError(error))
                    if error.io_error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(DatapathError::map("LOCAL")(error)),
            }
        }
        Ok(())
    }

    /// Whether XDP can write answers into frames: `bpf_xdp_store_bytes` came with the frames of several buffers.
    pub fn writes_answers(&self) -> bool {
        self.features.frags
    }

    /// How answers leave an interface: a number of `firewall_common::cookie::back`.
    pub fn set_answers(&mut self, ifindex: u32, back: u32) -> Result<(), DatapathError> {
        let set = self.answers.set(interface_cell(ifindex), back, 0);
        set.map_err(DatapathError::map("ANSWERS"))
    }

    /// Which TCP ports are translated to elsewhere, a bit each: see `firewall_common::cookie::published_bit`.
    pub fn set_published(&mut self, words: &[u64]) -> Result<(), DatapathError> {
        for (index, word) in (0..).zip(words) {
            let set = self.published.set(index, word, 0);
            set.map_err(DatapathError::map("PUBLISHED"))?;
        }
        Ok(())
    }

    /// Which events the kernel writes (set of `firewall_common::control::EVENTS_*`, 0 for none), and how many of
    /// each reason per CPU and second.
    pub fn listen(&mut self, events: u32, per_second: u32) -> Result<(), DatapathError> {
        let control = self.slots.control();
        control
            .u32(offset_of!(Control, events_per_second))
            .store(per_second, Ordering::Relaxed);
        control
            .u32(offset_of!(Control, events))
            .store(events, Ordering::Relaxed);
        Ok(())
    }

    /// The reader of the events; needs a tokio runtime.
    ///
    /// # Errors
    /// While another reader lives.
    pub fn events(&mut self) -> Result<EventReader, DatapathError> {
        EventReader::new(self.events.as_fd(), &self.events_taken)
    }

    /// Attaches to an interface: native XDP, or generic where the driver refuses, or TC, as `hook` says. What this or
    /// an earlier process attached there is replaced, without a moment between.
    pub fn attach(&mut self, interface: &Interface, hook: Hook) -> Result<Attachment, AttachError> {
        let way = Way::of(interface, hook)?;
        let programs = self
            .programs
            .need(&self.directory, way)
            .map_err(|source| AttachError::Load {
                interface: interface.name.clone(),
                source: source.into(),
            })?;
        let attacher = Attacher {
            pins: &self.pins,
            programs,
            features: self.features,
        };
        let attachment = attacher.attach(interface, way)?;
        // Pins of older layouts only cost memory, so they may as well go at the next time.
        if pins::all_run(&self.pins, &self.programs.ids()).unwrap_or(false) {
            let _ = load::remove_layouts(&self.pins, Some(&self.directory));
        }
        Ok(attachment)
    }

    /// What of an attachment that this process made does not do its work any more, and why, in words.
    pub fn lost(&self, ifindex: u32, attachment: &Attachment) -> Vec<(Part, String)> {
        attach::lost(&self.pins, ifindex, attachment)
    }

    /// Whether the maps are still pinned, so that the next process finds them.
    pub fn is_pinned(&self) -> bool {
        self.directory.join("CONTROL").exists()
    }

    /// The log of the kernel programs, once; `None` if they were not built to have one.
    pub fn take_kernel_log(&mut self) -> Option<KernelLog> {
        self.kernel_log.take()
    }

    /// Takes the programs off an interface, which need not exist any more.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        attach::detach(&self.pins, ifindex)?;
        Ok(())
    }

    /// What the limits of the policy in force hold, by their number in [`Compiled::scopes`].
    pub fn limit_uses(&self) -> Result<Vec<LimitUse>, DatapathError> {
        let now_ns = flows::now()?.as_nanos() as u64;
        Ok(self.slots.limit_uses(now_ns))
    }

    /// Since and until which second of the monotonic clock new connections are challenged, by the number in
    /// [`Compiled::scopes`]; `None` if they are not.
    pub fn challenges(&self) -> Result<Vec<Option<(u32, u32)>>, DatapathError> {
        let now_s = flows::now_s()?;
        let slot = self.slots.selector().image();
        let scopes = self.slots.scopes();
        let challenged = |place: &Option<u32>| scopes.challenged((*place)?, now_s);
        Ok(scopes.bound(slot).iter().map(challenged).collect())
    }

    /// Challenges the new connections of scopes, by their number in [`Compiled::scopes`], for as long as it takes until they
    /// are quiet.
    ///
    /// # Errors
    /// The clock cannot be read.
    pub fn challenge(&self, wanted: impl Fn(usize) -> bool) -> Result<(), DatapathError> {
        let now_s = flows::now_s()?;
        let until_s = now_s + Config::DEFAULT.challenge_quiet_s;
        let scopes = self.slots.scopes();
        let bound = scopes.bound(self.slots.selector().image());
        for (number, place) in bound.into_iter().enumerate() {
            if let Some(place) = place
                && wanted(number)
            {
                scopes.challenge(place, now_s, until_s);
            }
        }
        Ok(())
    }

    /// Whether the policy in force limits concurrent connections.
    pub fn limits_connections(&self) -> bool {
        self.slots.limits_connections()
    }

    /// Has connections counted as they come and go, if the policy in force limits them; else no more.
    ///
    /// # Errors
    /// The program could not be taken off.
    pub fn count_connections(&mut self) -> Result<Counting, DatapathError> {
        if !self.limits_connections() {
            connections::detach(&self.pins)?;
            return Ok(Counting::Off);
        }
        if !self.features.sock_ops {
            connections::detach(&self.pins)?;
            let why = "the agent is told to do without programs at sockets";
            return Ok(Counting::Recount(why.to_owned()));
        }
        let attached = self
            .programs
            .need_connections(&self.directory)
            .and_then(|program| connections::attach(&self.pins, program));
        Ok(match attached {
            Ok(()) if self.slots.control().load_u64(offset_of!(Control, netns_cookie)) != 0 => {
                Counting::Program
            }
            Ok(()) => Counting::Recount("this kernel does not number network namespaces (5.14 does)".into()),
            Err(error) => Counting::Recount(attach::chain(&error)),
        })
    }

    /// What holds the counted connections against the sockets that there are.
    pub fn recounter(&self) -> Result<Recounter, DatapathError> {
        Recounter::open(&self.directory)
    }

    /// The program that judges frames at XDP, for `BPF_PROG_TEST_RUN`.
    pub fn ingress_program(&self) -> BorrowedFd<'_> {
        self.programs.ingress.fd.as_fd()
    }

    /// The programs of a way, for ingress and egress; loaded if they are not yet.
    pub fn programs(&mut self, way: Way) -> Result<[BorrowedFd<'_>; 2], DatapathError> {
        let pair = self.programs.need(&self.directory, way)?;
        Ok([pair.ingress.fd.as_fd(), pair.egress.fd.as_fd()])
    }

    /// The program that judges frames that go out, for `BPF_PROG_TEST_RUN`.
    pub fn egress_program(&self) -> BorrowedFd<'_> {
        self.programs.egress.fd.as_fd()
    }

    /// Interfaces that have programs of this instance, attached by this or an earlier process.
    pub fn attached(&self) -> Result<Vec<u32>, DatapathError> {
        pins::attached(&self.pins).map_err(DatapathError::path("reading", &self.pins))
    }

    /// Opens the gate for connections that the host has, and closes it for those that are gone. To be called before
    /// attaching, and once a minute.
    pub fn seed_gate(&self) -> Result<(), DatapathError> {
        // A panic in between leaves nothing half done: cells are single words.
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.refresh(|| self.flows.read(&self.flow_timeouts()?))
    }

    /// Whether egress had kept neither gate nor flows when this was opened: nothing was attached to these maps.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Takes over from conntrack what containers behind this host, and its sockets without a peer, have under way: see
    /// [`conntrack`]. To be called the first time, with the policy in force: before attaching, and again after it for what was
    /// opened in between. `filtered` tells whether packets by an interface are judged, there or on a lower device.
    /// Returns how many flows are new to the table; none without a policy, or without conntrack.
    ///
    /// # Errors
    /// Conntrack is there and cannot be read.
    pub fn seed_flows(&self, filtered: impl Fn(u32) -> bool) -> Result<usize, DatapathError> {
        let Some(image) = self.slots.image() else {
            return Ok(0);
        };
        let known = conntrack::under_way(filtered, &image)?;
        let seed = self.slots.control().load_u64(offset_of!(Control, seed));
        let timeouts = self.flow_timeouts()?;
        let now_s = flows::now_s()?;
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let mut noted = 0;
        for one in &known {
            if self.flows.note(one, seed, &timeouts, now_s) {
                gate.open(one, now_s);
                noted += 1;
            }
        }
        Ok(noted)
    }

    /// All flows that the table holds, with those that have expired and wait to be displaced.
    pub fn flows(&self) -> Result<Vec<Flow>, DatapathError> {
        self.flows.read(&self.flow_timeouts()?)
    }

    /// Flows that are alive, and how many the table holds at most.
    pub fn flow_pressure(&self) -> Result<(usize, usize), DatapathError> {
        Ok((self.flows.live(&self.flow_timeouts()?)?, self.flows.capacity()))
    }

    /// All bans, with those that have ended and are not forgotten.
    pub fn bans(&self) -> Result<Vec<(BanKey, Ban)>, DatapathError> {
        self.bans.read()
    }

    /// Entries that the table of bans holds at most.
    pub fn bans_max(&self) -> usize {
        self.bans.max()
    }

    /// Puts a ban in force, or another in its place. Its length must be one of [`NodeConfig::ban_lens`].
    ///
    /// # Errors
    /// [`DatapathError::BansFull`], and nothing has changed.
    pub fn ban(&mut self, key: BanKey, ban: Ban) -> Result<(), DatapathError> {
        self.bans.insert(key, ban)?;
        self.bans.ask(self.slots.control(), true);
        Ok(())
    }

    /// Takes an entry out of the table of bans. False if it was not there.
    pub fn unban(&mut self, key: BanKey) -> Result<bool, DatapathError> {
        self.bans.remove(key)
    }

    /// Lets packets ask the table of bans if one is in force at this second of the kernel's clock, and not otherwise.
    pub fn settle_bans(&mut self, now_s: u32) -> Result<(), DatapathError> {
        let control = self.slots.control();
        if !self.bans.any_live(now_s)? {
            self.bans.ask(control, false);
            // An automatic ban is first an entry, then it is asked for: one that came in between is seen now.
            if !self.bans.any_live(now_s)? {
                return Ok(());
            }
        }
        self.bans.ask(control, true);
        Ok(())
    }

    /// Whether packets ask the table of bans.
    pub fn asks_bans(&self) -> bool {
        self.slots.control().load_u32(offset_of!(Control, bans)) != 0
    }

    /// The words of the flow table and of the fragment table, as they are.
    pub fn tables(&self) -> (Vec<u64>, Vec<u64>) {
        let fragments = (0..self.fragments.len() / 8).map(|index| self.fragments.load_u64(index * 8));
        (self.flows.words(), fragments.collect())
    }

    /// What happened to the tables since they were made.
    pub fn tally(&self, tally: Tally) -> Result<u64, DatapathError> {
        let cells = self
            .tallies
            .get(&(tally as u32), 0)
            .map_err(DatapathError::map("TALLIES"))?;
        Ok(cells.iter().fold(0, |sum: u64, cell| sum.wrapping_add(*cell)))
    }

    fn flow_timeouts(&self) -> Result<[u32; State::COUNT], DatapathError> {
        let current = self
            .config
            .get(&self.slots.selector().config(), 0)
            .map_err(DatapathError::map("CONFIG"))?;
        Ok(flows::timeouts(&current))
    }

    /// The open cells of the gate, by index, and the seed that keys the hashes of the tables.
    pub fn gate_cells(&self) -> (std::collections::HashMap<u32, Cell>, u64) {
        let cells = self
            .gate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .open_cells();
        (cells, self.slots.control().load_u64(offset_of!(Control, seed)))
    }

    /// Keys the hashes of flows and fragments, once in the life of the maps.
    fn seed(&self) -> Result<(), DatapathError> {
        let seed = self.slots.control().u64(offset_of!(Control, seed));
        if seed.load(Ordering::Relaxed) == 0 {
            let path = Path::new("/dev/urandom");
            let mut bytes = [0; 8];
            std::fs::File::open(path)
                .and_then(|mut random| random.read_exact(&mut bytes))
                .map_err(DatapathError::path("reading", path))?;
            seed.store(u64::from_ne_bytes(bytes).max(1), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// # Errors
/// If this process may not do what the data path needs.
pub fn check_privileges() -> Result<(), DatapathError> {
    load::check_privileges()
}

/// Whether programs at the sockets of the whole machine have a place: the root of cgroup v2.
pub fn has_cgroup() -> bool {
    connections::cgroup_root().is_ok()
}

/// Takes all of an instance out of the kernel, with or without a running agent. Says what it removed, a line each.
pub fn detach_all(pins: &Path) -> Result<Vec<String>, DatapathError> {
    load::check_privileges()?;
    if !pins.exists() {
        return Ok(Vec::new());
    }
    if !load::is_on_bpf_fs(pins)? {
        return Err(DatapathError::NotBpfFs {
            path: pins.to_owned(),
        });
    }
    let names: std::collections::HashMap<u32, String> = netlink::interfaces()
        .unwrap_or_default()
        .into_iter()
        .map(|interface| (interface.index, interface.name))
        .collect();
    let mut lines = Vec::new();
    if connections::detach(pins)? {
        lines.push("connections are counted no more".to_owned());
    }
    for ifindex in pins::attached(pins).map_err(DatapathError::path("reading", pins))? {
        let here = pins::is_here(pins, ifindex);
        if attach::detach(pins, ifindex)? {
            lines.push(match (here, names.get(&ifindex)) {
                (Some(true), Some(name)) => format!("detached from {name}"),
                (Some(false), _) => format!("detached from interface {ifindex} of another network namespace"),
                _ => format!("detached from interface {ifindex}"),
            });
        }
    }
    load::remove_layouts(pins, None)
        .and_then(|()| std::fs::remove_dir(pins))
        .map_err(DatapathError::path("removing", pins))?;
    lines.push(format!("removed {}", pins.display()));
    Ok(lines)
}

/// UDP ports that the services of an image name.
fn served(image: &[u8]) -> HashSet<u16> {
    let pages = SlicePages(image);
    let Some(image) = Image::open(&pages) else {
        return HashSet::new();
    };
    let named = |port: &u16| {
        let service = image.service(PortKey::udp(*port));
        service.is_some_and(|service| service != NO_SERVICE)
    };
    (0..=u16::MAX).filter(named).collect()
}

/// A map of which only the descriptor is used.
struct MapOnly(MapData);

impl TryFrom<aya::maps::Map> for MapOnly {
    type Error = aya::maps::MapError;

    fn try_from(map: aya::maps::Map) -> Result<MapOnly, Self::Error> {
        use aya::maps::Map;
        match map {
            Map::Array(map) | Map::ArrayOfMaps(map) | Map::RingBuf(map) => Ok(MapOnly(map)),
            _ => Err(aya::maps::MapError::InvalidMapType { map_type: 0 }),
        }
    }
}

fn clone_fd(map: &MapOnly) -> Result<OwnedFd, DatapathError> {
    map.0
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(DatapathError::system("a descriptor"))
}

/// As the maps hold addresses: big-endian halves, IPv4 in the low 32 bits.
fn halves(address: IpAddr) -> [u64; 2] {
    let word = match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    [(word >> 64) as u64, word as u64]
}

fn node_config(config: &NodeConfig, own: &HashSet<[u64; 2]>) -> Result<Config, DatapathError> {
    let mut words = Config {
        observe: config.observe.into(),
        link_control: config.link_control,
        flow_timeouts: config.flow_timeouts,
        challenge: config.challenge,
        challenge_quiet_s: config.challenge_quiet_s,
        ban_lens: config.ban_lens,
        ban_percent: config.escalation.percent,
        ban_longest_s: config.escalation.longest_s,
        ban_forget_s: config.escalation.forget_s,
        ..Config::DEFAULT
    };
    for [high, low] in own {
        words.add_own_address(*high, *low);
    }
    for entry in &config.failsafe {
        words
            .add_failsafe(*entry)
            .map_err(|_| DatapathError::TooManyFailsafe {
                count: config.failsafe.len(),
            })?;
    }
    Ok(words)
}

/// The bytes of a configuration as the programs see them.
fn encode(config: &Config) -> [u8; CONFIG_BYTES] {
    let mut bytes = [0; CONFIG_BYTES];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(offset_of!(Config, observe), &config.observe.to_ne_bytes());
    put(
        offset_of!(Config, link_control),
        &config.link_control.to_ne_bytes(),
    );
    for (index, word) in config.own_bloom.iter().enumerate() {
        put(offset_of!(Config, own_bloom) + index * 8, &word.to_ne_bytes());
    }
    put(
        offset_of!(Config, failsafe_bloom),
        &config.failsafe_bloom.to_ne_bytes(),
    );
    put(
        offset_of!(Config, failsafe_count),
        &config.failsafe_count.to_ne_bytes(),
    );
    put(offset_of!(Config, challenge), &config.challenge.to_ne_bytes());
    put(
        offset_of!(Config, challenge_quiet_s),
        &config.challenge_quiet_s.to_ne_bytes(),
    );
    for (index, seconds) in config.flow_timeouts.iter().enumerate() {
        put(
            offset_of!(Config, flow_timeouts) + index * 4,
            &seconds.to_ne_bytes(),
        );
    }
    put(offset_of!(Config, ban_lens), config.ban_lens.as_flattened());
    for (at, word) in [
        (offset_of!(Config, ban_percent), config.ban_percent),
        (offset_of!(Config, ban_longest_s), config.ban_longest_s),
        (offset_of!(Config, ban_forget_s), config.ban_forget_s),
    ] {
        put(at, &word.to_ne_bytes());
    }
    for (index, entry) in config.failsafe.iter().enumerate() {
        let at = offset_of!(Config, failsafe) + index * size_of::<Failsafe>();
        put(
            at + offset_of!(Failsafe, prefix_high),
            &entry.prefix_high.to_ne_bytes(),
        );
        put(
            at + offset_of!(Failsafe, prefix_low),
            &entry.prefix_low.to_ne_bytes(),
        );
        put(
            at + offset_of!(Failsafe, mask_high),
            &entry.mask_high.to_ne_bytes(),
        );
        put(at + offset_of!(Failsafe, mask_low), &entry.mask_low.to_ne_bytes());
        put(at + offset_of!(Failsafe, dst_port), &entry.dst_port.to_ne_bytes());
        put(
            at + offset_of!(Failsafe, protocol),
            &[entry.protocol, entry.version],
        );
    }
    bytes
}

/// The key of `LOCAL` is two words.
const _: () = assert!(size_of::<AddressKey>() == 16 && offset_of!(AddressKey, low) == 8);
const _: () = assert!(offset_of!(Failsafe, version) == offset_of!(Failsafe, protocol) + 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stand_in_halves() {
        assert_eq!(halves("192.0.2.1".parse().unwrap()), [0, 0xc000_0201]);
        assert_eq!(halves("2001:db8::7".parse().unwrap()), [0x2001_0db8_0000_0000, 7]);
    }

    #[test]
    fn a_configuration_is_encoded_in_the_order_of_its_fields() {
        let entry = Failsafe {
            prefix_high: 1,
            prefix_low: 2,
            mask_high: 3,
            mask_low: 4,
            dst_port: 0x0506,
            protocol: 6,
            version: 4,
            pad: 0,
        };
        let config = NodeConfig {
            observe: true,
            link_control: 7,
            failsafe: vec![entry; 2],
            own: vec!["192.0.2.1".parse().unwrap()],
            ..NodeConfig::default()
        };
        let own = config.own.iter().map(|address| halves(*address)).collect();
        let words = node_config(&config, &own).unwrap();
        let bytes = encode(&words);
        assert_eq!(bytes[..8], [1, 0, 0, 0, 7, 0, 0, 0]);
        let second = offset_of!(Config, failsafe) + 40;
        assert_eq!(bytes[second], 1);
        assert_eq!(bytes[second + 32..second + 36], [6, 5, 6, 4]);
        assert_eq!(
            bytes[8..8 + 512]
                .iter()
                .map(|byte| byte.count_ones())
                .sum::<u32>(),
            1
        );
    }

    #[test]
    fn too_many_failsafe_entries_are_refused() {
        let config = NodeConfig {
            failsafe: vec![Failsafe::default(); 33],
            ..NodeConfig::default()
        };
        assert!(node_config(&config, &HashSet::new()).is_err());
    }
}
