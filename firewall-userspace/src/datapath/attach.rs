//! Attaching to interfaces, and the pinned links that keep programs attached whoever lives or dies.
//!
//! A link is pinned as `<pins>/xdp-<ifindex>` or `<pins>/egress-<ifindex>`, outside of the directory of a layout:
//! an agent of another layout finds it and puts its own program into it, so there is no moment without one. Egress
//! comes before XDP, so that replies to what the host opens are known before anything is dropped.

use super::{
    DatapathError, clsact,
    load::{self, Programs},
    netlink::{self, Interface},
    sys,
    wire::{self, Connection, NetlinkError, Request},
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use std::{
    fmt, fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

/// How ingress is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the network stack, after the driver has made a socket buffer: slower, same verdicts.
    Generic,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
        })
    }
}

/// How egress is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressMode {
    /// By a TCX link.
    Tcx,
    /// By a filter of the clsact qdisc.
    Clsact,
    /// Not at all: `Attachment::detail` says why.
    None,
}

impl fmt::Display for EgressMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EgressMode::Tcx => "tcx",
            EgressMode::Clsact => "clsact",
            EgressMode::None => "none",
        })
    }
}

/// What came of attaching to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub xdp: XdpMode,
    /// Multi-buffer frames are handled.
    pub frags: bool,
    pub egress: EgressMode,
    /// Why it is not better than it is: a sentence.
    pub detail: Option<String>,
}

/// Why an interface is not filtered.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(
        "{interface} is the loopback, which is not filtered: what the host says to itself is its own business"
    )]
    Loopback { interface: String },
    #[error(
        "{interface} carries no Ethernet headers (hardware type {hardware}), and frames without them are not \
         understood; filter on the Ethernet interface below it, or leave it out of the patterns"
    )]
    NotEthernet { interface: String, hardware: u16 },
    #[error("{interface} is gone")]
    Gone { interface: String },
    #[error(
        "{interface} already has {program} attached at XDP, and an interface has room for one; if that one is not \
         wanted, `ip link set dev {interface} xdp off` (or `bpftool link detach` if a link holds it) makes room"
    )]
    Occupied {
        interface: String,
        /// `the XDP program "name" (id 7)`.
        program: String,
    },
    #[error(
        "{interface} is held by ravelin instance {instance}, and an interface has room for one; take that one off by \
         `ravelin detach --instance {instance}`, or leave {interface} out of the patterns of one of the two"
    )]
    OtherInstance { interface: String, instance: String },
    #[error(
        "{} belongs to interface {ifindex} of another network namespace; run this one under another --instance",
        .pin.display()
    )]
    OtherNamespace { pin: PathBuf, ifindex: u32 },
    #[error("{interface} refuses XDP in the driver ({native}) and in the network stack")]
    Refused {
        interface: String,
        native: String,
        source: io::Error,
    },
    #[error("replacing the program of {}, which stays as it is", .pin.display())]
    Replace { pin: PathBuf, source: io::Error },
    #[error("{what} {}", .path.display())]
    Pin {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// What may be used of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Multi-buffer XDP (5.18).
    pub frags: bool,
    /// TCX links (6.6).
    pub tcx: bool,
    /// XDP in the driver.
    pub native: bool,
}

impl Features {
    /// All that the kernel has.
    pub const ALL: Features = Features {
        frags: true,
        tcx: true,
        native: true,
    };
}

/// Whether the kernel has TCX links: tried on an interface that cannot exist.
pub(super) fn has_tcx(egress: BorrowedFd<'_>) -> bool {
    match sys::link_create(egress, i32::MAX as u32, sys::ATTACH_TCX_EGRESS, sys::TCX_FIRST) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::ENODEV),
    }
}

/// The programs and where their links are pinned.
pub(super) struct Attacher<'a> {
    pub pins: &'a Path,
    pub programs: &'a Programs,
    pub features: Features,
}

impl Attacher<'_> {
    pub fn attach(&self, interface: &Interface) -> Result<Attachment, AttachError> {
        let name = || interface.name.clone();
        if interface.loopback {
            return Err(AttachError::Loopback { interface: name() });
        }
        if !interface.ethernet {
            return Err(AttachError::NotEthernet {
                interface: name(),
                hardware: interface.hardware,
            });
        }
        let before = has_egress(self.pins, interface.index);
        let (egress, egress_detail) = match self.egress(interface) {
            Ok(mode) => (mode, None),
            // Fail closed: filter all the same.
            Err(error) => {
                let text = format!(
                    "replies to what this host opens on it are dropped: {}",
                    chain(&error)
                );
                (EgressMode::None, Some(text))
            }
        };
        let (xdp, xdp_detail) = self.xdp(interface).inspect_err(|_| {
            // Egress alone is of no use. What cannot be removed now goes with the next detach.
            if !before {
                let _ = remove_link(&egress_pin(self.pins, interface.index));
                let _ = remove_clsact(self.pins, interface.index);
            }
        })?;
        let details: Vec<String> = xdp_detail.into_iter().chain(egress_detail).collect();
        Ok(Attachment {
            xdp,
            frags: self.programs.frags,
            egress,
            detail: (!details.is_empty()).then(|| details.join("; ")),
        })
    }

    fn xdp(&self, interface: &Interface) -> Result<(XdpMode, Option<String>), AttachError> {
        let pin = xdp_pin(self.pins, interface.index);
        if let Some((link, info)) = live_link(&pin)? {
            return self.replace_xdp(interface, &pin, &link, info);
        }
        let (link, mode, detail) = self.create_xdp(interface)?;
        sys::pin(link.as_fd(), &pin).map_err(|source| AttachError::Pin {
            what: "pinning",
            path: pin,
            source,
        })?;
        Ok((mode, detail))
    }

    fn replace_xdp(
        &self,
        interface: &Interface,
        pin: &Path,
        link: &OwnedFd,
        info: sys::LinkInfo,
    ) -> Result<(XdpMode, Option<String>), AttachError> {
        let on_it = netlink::xdp_programs(interface.index)?.ok_or_else(|| AttachError::Gone {
            interface: interface.name.clone(),
        })?;
        let mode = match info.program_id {
            id if info.ifindex == interface.index && on_it.native == Some(id) => XdpMode::Native,
            id if info.ifindex == interface.index && on_it.generic == Some(id) => XdpMode::Generic,
            _ => {
                return Err(AttachError::OtherNamespace {
                    pin: pin.to_owned(),
                    ifindex: info.ifindex,
                });
            }
        };
        sys::link_update(link.as_fd(), self.programs.ingress.fd.as_fd()).map_err(|source| {
            AttachError::Replace {
                pin: pin.to_owned(),
                source,
            }
        })?;
        let detail = (mode == XdpMode::Generic).then(|| {
            "generic XDP, kept from an earlier start; `ravelin detach` and a new start try the driver again".into()
        });
        Ok((mode, detail))
    }

    fn create_xdp(&self, interface: &Interface) -> Result<(OwnedFd, XdpMode, Option<String>), AttachError> {
        let program = self.programs.ingress.fd.as_fd();
        let create = |flags| sys::link_create(program, interface.index, sys::ATTACH_XDP, flags);
        let native = if self.features.native {
            match create(sys::XDP_NATIVE) {
                Ok(link) => return Ok((link, XdpMode::Native, None)),
                Err(error) => self.judge_refusal(interface, error)?,
            }
        } else {
            "not to be used".to_owned()
        };
        match create(sys::XDP_GENERIC) {
            Ok(link) => Ok((link, XdpMode::Generic, Some(format!("generic XDP: {native}")))),
            Err(error) if is_occupied(&error) => Err(self.occupied(interface)),
            Err(source) => Err(AttachError::Refused {
                interface: interface.name.clone(),
                native,
                source,
            }),
        }
    }

    /// What a refusal of native XDP means, in words; an error if generic XDP is no way out.
    fn judge_refusal(&self, interface: &Interface, error: io::Error) -> Result<String, AttachError> {
        match error.raw_os_error() {
            _ if is_occupied(&error) => Err(self.occupied(interface)),
            // The kernel has no errno of its own for an interface that is not there.
            _ if netlink::xdp_programs(interface.index)?.is_none() => Err(AttachError::Gone {
                interface: interface.name.clone(),
            }),
            Some(libc::EOPNOTSUPP) => Ok("the driver has no native XDP".into()),
            errno => {
                let words = driver_words(interface.index, self.programs.ingress.fd.as_fd());
                let said = words.map_or(error.to_string(), |words| format!("the driver says: {words}"));
                Ok(format!(
                    "the driver refuses native XDP ({said}){}",
                    hint(errno, interface.mtu)
                ))
            }
        }
    }

    fn occupied(&self, interface: &Interface) -> AttachError {
        let id = netlink::xdp_programs(interface.index)
            .ok()
            .flatten()
            .and_then(|programs| programs.any);
        if let Some(instance) = id.and_then(|id| holder(self.pins, interface.index, id)) {
            return AttachError::OtherInstance {
                interface: interface.name.clone(),
                instance,
            };
        }
        let program = match id.map(|id| (id, sys::program_by_id(id))) {
            Some((id, Ok(info))) => format!("the XDP program \"{}\" (id {id})", info.name),
            Some((id, Err(_))) => format!("the XDP program of id {id}"),
            None => "another XDP program".into(),
        };
        AttachError::Occupied {
            interface: interface.name.clone(),
            program,
        }
    }

    fn egress(&self, interface: &Interface) -> Result<EgressMode, AttachError> {
        let program = self.programs.egress.fd.as_fd();
        let pin = egress_pin(self.pins, interface.index);
        if let Some((link, info)) = live_link(&pin)? {
            if info.ifindex != interface.index {
                return Err(AttachError::OtherNamespace {
                    pin,
                    ifindex: info.ifindex,
                });
            }
            sys::link_update(link.as_fd(), program).map_err(|source| AttachError::Replace {
                pin: pin.clone(),
                source,
            })?;
            return Ok(EgressMode::Tcx);
        }
        if !self.features.tcx {
            let made = clsact::attach(interface.index, program)?;
            for name in ["clsact", "qdisc"].iter().take(1 + usize::from(made)) {
                note(self.pins, name, interface.index)?;
            }
            return Ok(EgressMode::Clsact);
        }
        // First in the chain: a program that ends it does not hide what goes out.
        let link = sys::link_create(program, interface.index, sys::ATTACH_TCX_EGRESS, sys::TCX_FIRST)
            .map_err(|source| AttachError::Pin {
                what: "attaching by TCX for",
                path: pin.clone(),
                source,
            })?;
        sys::pin(link.as_fd(), &pin).map_err(|source| AttachError::Pin {
            what: "pinning",
            path: pin,
            source,
        })?;
        // After a kernel update; until now both were there, which does no harm.
        remove_clsact(self.pins, interface.index)?;
        Ok(EgressMode::Tcx)
    }

    /// Whether every pinned link runs a program of ours, so that nobody needs older layouts any more.
    pub fn all_replaced(&self) -> io::Result<bool> {
        let ours = [self.programs.ingress.id, self.programs.egress.id];
        for path in load::entries(self.pins)? {
            if link_ifindex(&path).is_none() {
                continue;
            }
            let info = sys::open_pin(&path).and_then(|link| sys::link_info(link.as_fd()))?;
            if info.ifindex != 0 && !ours.contains(&info.program_id) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What has become of a link that was made before; `None` if it still does its work.
pub(super) fn lost(pins: &Path, programs: &Programs, ifindex: u32, egress: EgressMode) -> Option<String> {
    let tcx = (egress == EgressMode::Tcx).then(|| ("egress", egress_pin(pins, ifindex), programs.egress.id));
    let xdp = ("XDP", xdp_pin(pins, ifindex), programs.ingress.id);
    [Some(xdp), tcx]
        .into_iter()
        .flatten()
        .find_map(|(what, pin, program)| {
            let found = sys::open_pin(&pin).and_then(|link| sys::link_info(link.as_fd()));
            match found {
                Ok(info) if info.ifindex == 0 => Some(format!("somebody detached its {what} link")),
                Ok(info) if info.program_id != program => {
                    Some(format!("its {what} link runs another program"))
                }
                Ok(_) => None,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Some(format!("somebody removed {}", pin.display()))
                }
                Err(error) => Some(format!("{} cannot be read: {error}", pin.display())),
            }
        })
}

/// Takes the programs off an interface. True if there were any.
pub(super) fn detach(pins: &Path, ifindex: u32) -> Result<bool, AttachError> {
    let mut found = remove_link(&xdp_pin(pins, ifindex))?;
    found |= remove_link(&egress_pin(pins, ifindex))?;
    found |= remove_clsact(pins, ifindex)?;
    Ok(found)
}

/// Interfaces that have programs of this instance by its pins.
pub(super) fn attached(pins: &Path) -> io::Result<Vec<u32>> {
    let mut found: Vec<u32> = load::entries(pins)?
        .iter()
        .filter_map(|path| link_ifindex(path).or_else(|| numbered(path, &["clsact", "qdisc"])))
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Removes the pins of links whose interface is gone.
pub(super) fn remove_zombies(pins: &Path) -> Result<(), AttachError> {
    let paths = load::entries(pins).map_err(|source| AttachError::Pin {
        what: "reading",
        path: pins.to_owned(),
        source,
    })?;
    for path in paths {
        if link_ifindex(&path).is_some() {
            live_link(&path)?;
        } else if let Some(ifindex) = numbered(&path, &["clsact", "qdisc"])
            && netlink::xdp_programs(ifindex)?.is_none()
        {
            unnote(&path)?;
        }
    }
    Ok(())
}

/// Whether an interface that has programs of ours is one of this network namespace, whose numbers say nothing in
/// another. `None` if the pins do not tell.
pub(super) fn is_here(pins: &Path, ifindex: u32) -> Option<bool> {
    let link = sys::open_pin(&xdp_pin(pins, ifindex)).ok()?;
    let info = sys::link_info(link.as_fd()).ok()?;
    let on_it = netlink::xdp_programs(ifindex).ok()?;
    let ours = |id: Option<u32>| id == Some(info.program_id);
    Some(on_it.is_some_and(|on_it| ours(on_it.native) || ours(on_it.generic)))
}

fn xdp_pin(pins: &Path, ifindex: u32) -> PathBuf {
    pins.join(format!("xdp-{ifindex}"))
}

fn egress_pin(pins: &Path, ifindex: u32) -> PathBuf {
    pins.join(format!("egress-{ifindex}"))
}

fn has_egress(pins: &Path, ifindex: u32) -> bool {
    egress_pin(pins, ifindex).exists() || pins.join(format!("clsact-{ifindex}")).exists()
}

/// The interface in the name of a link's pin.
fn link_ifindex(path: &Path) -> Option<u32> {
    numbered(path, &["xdp", "egress"])
}

fn numbered(path: &Path, kinds: &[&str]) -> Option<u32> {
    let (kind, number) = path.file_name()?.to_str()?.split_once('-')?;
    if kinds.contains(&kind) {
        number.parse().ok()
    } else {
        None
    }
}

/// The link pinned at a path. A pin whose interface is gone is removed.
fn live_link(pin: &Path) -> Result<Option<(OwnedFd, sys::LinkInfo)>, AttachError> {
    let fail = |what| {
        move |source| AttachError::Pin {
            what,
            path: pin.to_owned(),
            source,
        }
    };
    let link = match sys::open_pin(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail("opening")(error)),
    };
    let info = sys::link_info(link.as_fd()).map_err(fail("reading"))?;
    if info.ifindex == 0 {
        load::remove_pin(pin).map_err(fail("removing"))?;
        return Ok(None);
    }
    Ok(Some((link, info)))
}

fn remove_link(pin: &Path) -> Result<bool, AttachError> {
    let Some((link, _)) = live_link(pin)? else {
        return Ok(false);
    };
    let fail = |what| {
        move |source| AttachError::Pin {
            what,
            path: pin.to_owned(),
            source,
        }
    };
    // Explicitly, for the kernel would put off the end of a link that is only let go.
    sys::link_detach(link.as_fd()).map_err(fail("detaching"))?;
    load::remove_pin(pin).map_err(fail("removing"))?;
    Ok(true)
}

/// A BPF file system holds directories, but no files of one's own.
fn note(pins: &Path, kind: &str, ifindex: u32) -> Result<(), AttachError> {
    let path = pins.join(format!("{kind}-{ifindex}"));
    match fs::create_dir(&path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(AttachError::Pin {
            what: "making",
            path,
            source,
        }),
        _ => Ok(()),
    }
}

fn unnote(path: &Path) -> Result<(), AttachError> {
    match fs::remove_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(AttachError::Pin {
            what: "removing",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn remove_clsact(pins: &Path, ifindex: u32) -> Result<bool, AttachError> {
    let (filter, qdisc) = (
        pins.join(format!("clsact-{ifindex}")),
        pins.join(format!("qdisc-{ifindex}")),
    );
    if !filter.exists() && !qdisc.exists() {
        return Ok(false);
    }
    let found = clsact::detach(ifindex, qdisc.exists())?;
    unnote(&filter)?;
    unnote(&qdisc)?;
    Ok(found)
}

/// Another program holds the interface: in the mode asked for, or in the other one.
fn is_occupied(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

/// The instance, by the pins beside one's own, whose link runs a program on an interface.
fn holder(pins: &Path, ifindex: u32, program: u32) -> Option<String> {
    load::entries(pins.parent()?)
        .ok()?
        .into_iter()
        .filter(|other| other != pins)
        .find_map(|other| {
            let link = sys::open_pin(&xdp_pin(&other, ifindex)).ok()?;
            let info = sys::link_info(link.as_fd()).ok()?;
            let name = other.file_name()?.to_string_lossy().into_owned();
            (info.ifindex == ifindex && info.program_id == program).then_some(name)
        })
}

/// The driver's own words for refusing native XDP: `BPF_LINK_CREATE` has no room for them, an attachment by netlink
/// has.
fn driver_words(ifindex: u32, program: BorrowedFd<'_>) -> Option<String> {
    const RTM_SETLINK: u16 = 19;
    const IFLA_XDP: u16 = 43;
    const IFLA_XDP_FD: u16 = 1;
    const IFLA_XDP_FLAGS: u16 = 3;
    const UPDATE_IF_NOEXIST: u32 = 1;
    let connection = Connection::open(NETLINK_ROUTE).ok()?;
    let set = |fd: i32, flags: u32| {
        let request = Request::new(RTM_SETLINK, wire::NLM_F_ACK, &netlink::ifinfomsg(ifindex)).nested(
            IFLA_XDP,
            |xdp| {
                xdp.attribute(IFLA_XDP_FD, &fd.to_ne_bytes())
                    .attribute(IFLA_XDP_FLAGS, &flags.to_ne_bytes())
            },
        );
        connection.call("asking the driver for its reason", request, |_| {})
    };
    match set(program.as_raw_fd(), sys::XDP_NATIVE | UPDATE_IF_NOEXIST) {
        Err(error) => error.message,
        Ok(()) => {
            // The driver has changed its mind. An attachment of this kind cannot be kept: it has no link to pin.
            let _ = set(-1, sys::XDP_NATIVE);
            None
        }
    }
}

/// What a person can do about a refusal.
fn hint(errno: Option<i32>, mtu: u32) -> String {
    match errno {
        Some(libc::ERANGE | libc::EINVAL | libc::E2BIG) if mtu > 1500 => {
            format!("; its MTU is {mtu}, and many drivers need a smaller one for native XDP")
        }
        Some(libc::ENOMEM | libc::ENOSPC) => {
            "; it may want more queues or fewer channels (`ethtool -l`, `ethtool -L`)".into()
        }
        _ => String::new(),
    }
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl From<AttachError> for DatapathError {
    fn from(error: AttachError) -> DatapathError {
        DatapathError::Attach(Box::new(error))
    }
}
