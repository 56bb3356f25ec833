//! The programs and their maps: loaded from the object, or taken over from the pins of the agent before.
//!
//! Maps live under `<pins>/v<LAYOUT_VERSION>/` by their names, so that an agent only ever reads maps of its own
//! layout. Nothing is attached or replaced here.

use super::{DatapathError, OBJECT, attach::Way, sys};
use aya::{
    Ebpf, EbpfLoader,
    maps::Map,
    programs::{ProgramError, SchedClassifier, SockOps, Xdp},
};
use firewall_common::{
    LAYOUT_VERSION,
    ban::{Ban, BanKey},
    control::{AddressKey, Config, Control, SLOTS},
    cookie,
    counter::{INTERFACE_CELLS, InterfaceCounter, Tally},
    event::Sampler,
    flow::SET_WORDS,
    fragment, gate, limit,
    verdict::Reason,
};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

/// Where BPF file systems are mounted by convention.
const BPF_FS: &str = "/sys/fs/bpf";

/// Bytes of the ring buffer.
const EVENTS_BYTES: u32 = 1 << 20;
/// Own addresses that `LOCAL` holds.
pub(super) const MAX_OWN: usize = 4096;

/// A pinned map: its name, and the type, key size, value size and length that it must have; 0 for any
/// power of two, [`ANY`] for any.
struct Shape(&'static str, u32, u32, u32, u32);

const ANY: u32 = u32::MAX;

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PER_CPU_ARRAY: u32 = 6;
const ARRAY_OF_MAPS: u32 = 12;
const RING_BUFFER: u32 = 27;

const MAPS: &[Shape] = &[
    Shape("IMAGES", ARRAY_OF_MAPS, 4, 4, SLOTS),
    Shape("COUNTERS", ARRAY_OF_MAPS, 4, 4, SLOTS),
    Shape("CONTROL", ARRAY, 4, size_of::<Control>() as u32, 1),
    Shape("CONFIG", ARRAY, 4, size_of::<Config>() as u32, SLOTS),
    Shape(
        "IFACES",
        PER_CPU_ARRAY,
        4,
        size_of::<InterfaceCounter>() as u32,
        INTERFACE_CELLS,
    ),
    Shape("GATE", ARRAY, 4, 8, gate::CELLS),
    // The length of FLOWS is whatever it was made with.
    Shape("FLOWS", ARRAY, 4, SET_WORDS * 8, 0),
    Shape("FRAGMENTS", ARRAY, 4, SET_WORDS * 8, fragment::SETS),
    Shape("SCOPES", ARRAY, 4, limit::scope::WORDS * 8, limit::MAX_SCOPES),
    Shape("SKETCHES", ARRAY_OF_MAPS, 4, 4, limit::MAX_SCOPES * limit::TABLES),
    Shape("BINDINGS", ARRAY, 4, 4, SLOTS * limit::MAX_LOCAL),
    Shape("TALLIES", PER_CPU_ARRAY, 4, 8, Tally::COUNT),
    Shape("LOCAL", HASH, size_of::<AddressKey>() as u32, 4, MAX_OWN as u32),
    Shape(
        "BANS",
        HASH,
        size_of::<BanKey>() as u32,
        size_of::<Ban>() as u32,
        ANY,
    ),
    Shape("EVENTS", RING_BUFFER, 0, 0, EVENTS_BYTES),
    Shape(
        "SAMPLER",
        PER_CPU_ARRAY,
        4,
        size_of::<Sampler>() as u32,
        Reason::COUNT as u32,
    ),
    Shape("ANSWERS", ARRAY, 4, 4, INTERFACE_CELLS),
    Shape("ASKED", ARRAY, 4, 8, cookie::ASKED),
    Shape("PUBLISHED", ARRAY, 4, 8, cookie::PUBLISHED_WORDS),
];

/// A loaded program.
pub(super) struct Loaded {
    pub fd: OwnedFd,
    pub id: u32,
}

/// The loaded programs; the object behind them is gone.
pub(super) struct Programs {
    pub ingress: Loaded,
    /// `ingress` takes multi-buffer frames.
    pub frags: bool,
    pub egress: Loaded,
    /// `ingress_tc`; like the next ones loaded when the first interface needs it, for the verifier takes its time.
    tc: Option<Loaded>,
    /// `ingress_raw` and `egress_raw`.
    raw: Option<[Loaded; 2]>,
    /// `connections`, loaded when the first policy limits them.
    connections: Option<Loaded>,
}

/// What serves an interface.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    pub ingress: &'a Loaded,
    pub egress: &'a Loaded,
}

impl Programs {
    /// Those of a way, loaded if they are not yet.
    pub fn need(&mut self, directory: &Path, way: Way) -> Result<Pair<'_>, DatapathError> {
        let egress = &self.egress;
        Ok(match way {
            Way::Xdp => Pair {
                ingress: &self.ingress,
                egress,
            },
            Way::Tc => {
                let ingress = match &mut self.tc {
                    Some(loaded) => loaded,
                    empty => {
                        let mut object = reopen(directory)?;
                        empty.insert(load_tc(&mut object, "ingress_tc")?)
                    }
                };
                Pair { ingress, egress }
            }
            Way::Raw => {
                let [ingress, egress] = match &mut self.raw {
                    Some(loaded) => loaded,
                    empty => {
                        let mut object = reopen(directory)?;
                        let ingress = load_tc(&mut object, "ingress_raw")?;
                        empty.insert([ingress, load_tc(&mut object, "egress_raw")?])
                    }
                };
                Pair { ingress, egress }
            }
        })
    }

    /// The program that counts connections.
    pub fn need_connections(&mut self, directory: &Path) -> Result<&Loaded, DatapathError> {
        Ok(match &mut self.connections {
            Some(loaded) => loaded,
            empty => {
                let mut object = reopen(directory)?;
                empty.insert(load_sock_ops(&mut object, "connections")?)
            }
        })
    }

    pub fn ids(&self) -> Vec<u32> {
        let more = self.tc.iter().chain(self.raw.iter().flatten());
        [&self.ingress, &self.egress]
            .into_iter()
            .chain(more)
            .map(|program| program.id)
            .collect()
    }
}

/// Loads the programs over the maps pinned in `directory`, which are made where they are missing.
pub(super) fn load(
    directory: &Path,
    frags: bool,
    flow_sets: u32,
    bans: u32,
) -> Result<(Programs, Maps), DatapathError> {
    let mut loader = EbpfLoader::new();
    loader.map_max_entries("FLOWS", flow_sets);
    loader.map_max_entries("BANS", bans);
    for Shape(name, ..) in MAPS {
        loader.map_pin_path(name, directory.join(name));
    }
    let mut object = loader.load(OBJECT).map_err(|source| DatapathError::Object {
        source: source.into(),
    })?;
    for shape in MAPS {
        check_shape(directory, shape)?;
    }
    let with_frags = frags.then(|| load_xdp(&mut object, "ingress"));
    let (ingress, frags) = match with_frags {
        Some(Ok(program)) => (program, true),
        without => match (load_xdp(&mut object, "ingress_nofrags"), without) {
            (Ok(program), _) => (program, false),
            // If neither loads, it is not for the frags, and the first says why.
            (Err(_), Some(Err(error))) | (Err(error), _) => return Err(refused("ingress", error)),
        },
    };
    let egress = load_tc(&mut object, "egress")?;
    Ok((
        Programs {
            ingress,
            frags,
            egress,
            tc: None,
            raw: None,
            connections: None,
        },
        Maps(object),
    ))
}

/// The object over the same maps, which must still be pinned: fresh ones would be of no use to anybody.
fn reopen(directory: &Path) -> Result<Ebpf, DatapathError> {
    let mut loader = EbpfLoader::new();
    for shape in MAPS {
        check_shape(directory, shape)?;
        loader.map_pin_path(shape.0, directory.join(shape.0));
    }
    loader.load(OBJECT).map_err(|source| DatapathError::Object {
        source: source.into(),
    })
}

fn load_xdp(object: &mut Ebpf, name: &str) -> Result<Loaded, ProgramError> {
    let program: &mut Xdp = object
        .program_mut(name)
        .ok_or(ProgramError::NotLoaded)?
        .try_into()?;
    // The expected attach type is `BPF_XDP`, from the section's name: kernels compare it when a link changes its
    // program, so it must not change between releases. For the classifier aya gives none, which is as constant.
    program.load()?;
    loaded(program.fd()?.as_fd().try_clone_to_owned()?)
}

fn load_tc(object: &mut Ebpf, name: &'static str) -> Result<Loaded, DatapathError> {
    let mut load = || {
        let program: &mut SchedClassifier = object
            .program_mut(name)
            .ok_or(ProgramError::NotLoaded)?
            .try_into()?;
        program.load()?;
        loaded(program.fd()?.as_fd().try_clone_to_owned()?)
    };
    load().map_err(|error| refused(name, error))
}

fn load_sock_ops(object: &mut Ebpf, name: &'static str) -> Result<Loaded, DatapathError> {
    let mut load = || {
        let program: &mut SockOps = object
            .program_mut(name)
            .ok_or(ProgramError::NotLoaded)?
            .try_into()?;
        program.load()?;
        loaded(program.fd()?.as_fd().try_clone_to_owned()?)
    };
    load().map_err(|error| refused(name, error))
}

/// The end of the verifier's log is where it says what it minds; the rest can be a megabyte.
fn refused(name: &'static str, error: ProgramError) -> DatapathError {
    const LINES: usize = 12;
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            let end = lines[lines.len().saturating_sub(LINES)..].join("\n  ");
            DatapathError::Program {
                name,
                log: format!("; its log ends:\n  {end}"),
                source: io_error.into(),
            }
        }
        other => DatapathError::Program {
            name,
            log: String::new(),
            source: other.into(),
        },
    }
}

fn loaded(fd: OwnedFd) -> Result<Loaded, ProgramError> {
    let id = sys::program_info(fd.as_fd())?.id;
    Ok(Loaded { fd, id })
}

/// The maps of the object, to be taken by name.
pub(super) struct Maps(Ebpf);

impl Maps {
    /// `None` unless the programs were built to log.
    pub fn kernel_log(&mut self) -> Option<KernelLog> {
        match aya_log::EbpfLogger::init(&mut self.0) {
            Ok(logger) => Some(KernelLog(logger)),
            Err(aya_log::Error::MapNotFound) => None,
            Err(error) => {
                log::warn!("cannot read the log of the kernel programs: {error}");
                None
            }
        }
    }

    pub fn take<T>(&mut self, name: &'static str) -> Result<T, DatapathError>
    where
        T: TryFrom<Map, Error = aya::maps::MapError>,
    {
        let map = self.0.take_map(name).ok_or(DatapathError::NoMap { name })?;
        map.try_into().map_err(DatapathError::map(name))
    }
}

/// A pin of other shape cannot be of this layout; a program over it would read past its values.
fn check_shape(directory: &Path, shape: &Shape) -> Result<(), DatapathError> {
    let &Shape(name, map_type, key_size, value_size, max_entries) = shape;
    let path = directory.join(name);
    let info = sys::open_pin(&path)
        .and_then(|map| sys::map_info(map.as_fd()))
        .map_err(DatapathError::path("opening the pin", &path))?;
    let found = (info.map_type, info.key_size, info.value_size);
    let fits = match max_entries {
        0 => info.max_entries.is_power_of_two(),
        ANY => true,
        _ => info.max_entries == max_entries,
    };
    if fits && found == (map_type, key_size, value_size) {
        Ok(())
    } else {
        Err(DatapathError::MapShape { path })
    }
}

/// Makes `<pins>/v<LAYOUT_VERSION>` on a BPF file system and returns it.
pub(super) fn prepare_pins(pins: &Path) -> Result<PathBuf, DatapathError> {
    mount_bpf_fs(pins)?;
    // The kernel keeps names with dots for itself and answers "not permitted".
    if pins.to_string_lossy().contains('.') {
        return Err(DatapathError::DotInPins {
            path: pins.to_owned(),
        });
    }
    let directory = pins.join(format!("v{LAYOUT_VERSION}"));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(DatapathError::path("making the directory", &directory))?;
    Ok(directory)
}

fn mount_bpf_fs(pins: &Path) -> Result<(), DatapathError> {
    if is_on_bpf_fs(pins)? {
        return Ok(());
    }
    if !pins.starts_with(BPF_FS) {
        return Err(DatapathError::NotBpfFs {
            path: pins.to_owned(),
        });
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), BPF_FS, Some("bpf"), flags, Some("mode=0700"))
        .map_err(io::Error::from)
        .map_err(DatapathError::path(
            "mounting the BPF file system at",
            Path::new(BPF_FS),
        ))
}

/// Of the nearest ancestor that exists.
pub(super) fn is_on_bpf_fs(path: &Path) -> Result<bool, DatapathError> {
    let existing = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    statfs(existing)
        .map(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
        .map_err(io::Error::from)
        .map_err(DatapathError::path("asking for the file system of", existing))
}

/// Removes a pin; one that is not there is removed already.
pub(super) fn remove_pin(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the directories of layouts, that of `keep` aside. Programs that run hold their maps without the pins.
pub(super) fn remove_layouts(pins: &Path, keep: Option<&Path>) -> io::Result<()> {
    for entry in entries(pins)? {
        let is_layout = entry
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix('v')?.parse::<u32>().ok())
            .is_some();
        if !is_layout || keep == Some(entry.as_path()) {
            continue;
        }
        for pin in entries(&entry)? {
            remove_pin(&pin)?;
        }
        fs::remove_dir(&entry)?;
    }
    Ok(())
}

/// What a directory holds; nothing if there is none.
pub(super) fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Says in a sentence what the process may not do, before some call fails for it.
pub(super) fn check_privileges() -> Result<(), DatapathError> {
    const SYS_ADMIN: u64 = 1 << 21;
    const NEEDED: [(u64, &str); 3] = [
        (1 << 12, "CAP_NET_ADMIN"),
        (1 << 38, "CAP_PERFMON"),
        (1 << 39, "CAP_BPF"),
    ];
    let path = Path::new("/proc/thread-self/status");
    let status = fs::read_to_string(path).map_err(DatapathError::path("reading", path))?;
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    let missing: Vec<&str> = NEEDED
        .iter()
        // CAP_SYS_ADMIN stands for the two that were split from it, but not for the network's.
        .filter(|(bit, _)| effective & bit == 0 && (*bit == 1 << 12 || effective & SYS_ADMIN == 0))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(DatapathError::Privileges {
            missing: missing.join(", "),
        })
    }
}

/// What the kernel programs say by aya-log.
pub struct KernelLog(aya_log::EbpfLogger<&'static dyn log::Log>);

impl KernelLog {
    /// Passes everything on to the log of this process. Needs a tokio runtime.
    ///
    /// # Errors
    /// If the ring of the log cannot be waited for.
    pub async fn run(mut self) -> io::Result<()> {
        let ready = sys::readable(self.0.as_fd().try_clone_to_owned()?)?;
        loop {
            // A ring that was full before anybody waited for it never wakes.
            self.0.flush();
            ready.readable().await?.clear_ready();
        }
    }
}
