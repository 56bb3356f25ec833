//! Attaching to interfaces: which programs, where, and what has become of them.
//!
//! Ethernet devices take ingress at XDP or, where XDP is another's, at TC; devices without Ethernet headers at TC.
//! The links are pinned ([`super::pins`]): an agent of another layout finds them and puts its own programs into them,
//! so there is no moment without one. Egress comes before ingress, so that replies to what the host opens are known
//! before anything is dropped, and a new hook before the old one goes.

use super::{
    DatapathError,
    clsact::Direction,
    load::Pair,
    netlink::{Headers, Interface},
    pins, tc,
    wire::NetlinkError,
    xdp::Xdp,
};
use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// Where ingress is to be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hook {
    /// At XDP, and at TC where frames have no Ethernet headers.
    #[default]
    Auto,
    /// At XDP or not at all.
    Xdp,
    /// At TC.
    Tc,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hook::Auto => "auto",
            Hook::Xdp => "xdp",
            Hook::Tc => "tc",
        })
    }
}

/// Which programs serve an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `ingress` and `egress`.
    Xdp,
    /// `ingress_tc` and `egress`.
    Tc,
    /// `ingress_raw` and `egress_raw`.
    Raw,
}

impl Way {
    pub(super) fn of(interface: &Interface, hook: Hook) -> Result<Way, AttachError> {
        let name = || interface.name.clone();
        if interface.loopback {
            return Err(AttachError::Loopback { interface: name() });
        }
        match (interface.headers(), hook) {
            (Headers::Ethernet, Hook::Auto | Hook::Xdp) => Ok(Way::Xdp),
            (Headers::Ethernet, Hook::Tc) => Ok(Way::Tc),
            (Headers::None, Hook::Auto | Hook::Tc) => Ok(Way::Raw),
            (Headers::None, Hook::Xdp) => Err(AttachError::NotEthernet { interface: name() }),
            (Headers::Unknown, _) => Err(AttachError::NotUnderstood {
                interface: name(),
                hardware: interface.hardware,
            }),
        }
    }
}

/// How ingress is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// XDP in the driver.
    Native,
    /// XDP in the network stack, after the driver has made a socket buffer: slower, same verdicts.
    Generic,
    Tc(TcMode),
}

impl Ingress {
    /// `xdp` or `tc`.
    pub const fn hook(self) -> &'static str {
        match self {
            Ingress::Native | Ingress::Generic => "xdp",
            Ingress::Tc(_) => "tc",
        }
    }
}

impl fmt::Display for Ingress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ingress::Native => f.write_str("native"),
            Ingress::Generic => f.write_str("generic"),
            Ingress::Tc(mode) => mode.fmt(f),
        }
    }
}

/// How a program is attached at TC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcMode {
    /// By a TCX link.
    Tcx,
    /// By a filter of the clsact qdisc.
    Clsact,
}

impl fmt::Display for TcMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TcMode::Tcx => "tcx",
            TcMode::Clsact => "clsact",
        })
    }
}

/// What came of attaching to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub ingress: Ingress,
    /// Multi-buffer frames are handled.
    pub frags: bool,
    /// `None`: `detail` says why.
    pub egress: Option<TcMode>,
    /// Why it is not better than it is: a sentence.
    pub detail: Option<String>,
    /// Ids of the programs for ingress and egress.
    pub programs: [u32; 2],
}

/// What of an attachment can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Xdp,
    Tc,
    Egress,
}

impl Part {
    pub const fn word(self) -> &'static str {
        match self {
            Part::Xdp => "xdp",
            Part::Tc => "tc",
            Part::Egress => "egress",
        }
    }
}

/// Why an interface is not filtered.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(
        "{interface} is the loopback, which is not filtered: what the host says to itself is its own business"
    )]
    Loopback { interface: String },
    #[error(
        "{interface} carries no Ethernet headers, which XDP needs; hook = \"auto\" or \"tc\" in agent.toml (or \
         `--hook {interface}=tc`) filters it at TC"
    )]
    NotEthernet { interface: String },
    #[error(
        "{interface} carries neither Ethernet nor bare IP (hardware type {hardware}), and its frames are not \
         understood; filter on the Ethernet interface below it, or leave it out of the patterns"
    )]
    NotUnderstood { interface: String, hardware: u16 },
    #[error("{interface} is gone")]
    Gone { interface: String },
    #[error(
        "{interface} already has {program} attached at XDP, and an interface has room for one; hook = \"tc\" in \
         agent.toml (or `--hook {interface}=tc`) filters behind it; if that one is not wanted, `ip link set dev \
         {interface} xdp off` (or `bpftool link detach` if a link holds it) makes room"
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
    #[error(
        "{interface} refuses XDP in the driver ({native}) and in the network stack; hook = \"tc\" in agent.toml (or \
         `--hook {interface}=tc`) does without"
    )]
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
    #[error("loading the programs for {interface}")]
    Load {
        interface: String,
        source: Box<DatapathError>,
    },
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// What may be used of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Multi-buffer XDP (5.18).
    pub frags: bool,
    /// TCX links (6.6).
    pub tcx: bool,
    /// XDP in the driver.
    pub native: bool,
    /// Programs at the sockets of cgroup v2, which count connections.
    pub sock_ops: bool,
}

impl Features {
    /// All that the kernel has.
    pub const ALL: Features = Features {
        sock_ops: true,
        frags: true,
        tcx: true,
        native: true,
    };
}

/// The programs and where their links are pinned.
pub(super) struct Attacher<'a> {
    pub pins: &'a Path,
    pub programs: Pair<'a>,
    pub features: Features,
}

impl Attacher<'_> {
    pub fn attach(&self, interface: &Interface, way: Way) -> Result<Attachment, AttachError> {
        let index = interface.index;
        let Pair { ingress, egress } = self.programs;
        let before = tc::is_noted(self.pins, index, Direction::Egress);
        let tcx = self.features.tcx;
        let (egress_mode, egress_detail) = match tc::attach(self.pins, index, Direction::Egress, egress, tcx)
        {
            Ok(mode) => (Some(mode), None),
            // Fail closed: filter all the same.
            Err(error) => {
                let text = format!(
                    "replies to what this host opens on it are dropped: {}",
                    chain(&error)
                );
                (None, Some(text))
            }
        };
        let attached = match way {
            Way::Xdp => self.xdp().attach(interface),
            Way::Tc | Way::Raw => tc::attach(self.pins, index, Direction::Ingress, ingress, tcx)
                .map(|mode| (Ingress::Tc(mode), None)),
        };
        let (mode, detail) = attached.inspect_err(|_| {
            // Egress alone is of no use. What cannot be removed now goes with the next detach.
            if !before {
                let _ = tc::detach(self.pins, index, Direction::Egress);
            }
        })?;
        // The hook of an earlier start, if it was the other one; until now both judged.
        match way {
            Way::Xdp => tc::detach(self.pins, index, Direction::Ingress)?,
            Way::Tc | Way::Raw => pins::remove_link(&pins::path(self.pins, pins::XDP, index))?,
        };
        let details: Vec<String> = detail.into_iter().chain(egress_detail).collect();
        Ok(Attachment {
            ingress: mode,
            // A socket buffer is whole, however many buffers the driver made it of.
            frags: way != Way::Xdp || self.features.frags,
            egress: egress_mode,
            detail: (!details.is_empty()).then(|| details.join("; ")),
            programs: [ingress.id, egress.id],
        })
    }

    fn xdp(&self) -> Xdp<'_> {
        Xdp {
            pins: self.pins,
            program: self.programs.ingress,
            features: self.features,
        }
    }
}

/// What of an attachment does not do its work any more, and why, in words.
pub(super) fn lost(pins: &Path, ifindex: u32, attachment: &Attachment) -> Vec<(Part, String)> {
    let [ingress, egress] = attachment.programs;
    let first = match attachment.ingress {
        Ingress::Native | Ingress::Generic => {
            let pin = pins::path(pins, pins::XDP, ifindex);
            pins::lost_link(&pin, ingress, "XDP").map(|text| (Part::Xdp, text))
        }
        Ingress::Tc(mode) => {
            tc::lost(pins, ifindex, Direction::Ingress, mode, ingress).map(|text| (Part::Tc, text))
        }
    };
    let second = attachment.egress.and_then(|mode| {
        tc::lost(pins, ifindex, Direction::Egress, mode, egress).map(|text| (Part::Egress, text))
    });
    first.into_iter().chain(second).collect()
}

/// Takes the programs off an interface. True if there were any.
pub(super) fn detach(pins: &Path, ifindex: u32) -> Result<bool, AttachError> {
    let mut found = pins::remove_link(&pins::path(pins, pins::XDP, ifindex))?;
    found |= tc::detach(pins, ifindex, Direction::Ingress)?;
    found |= tc::detach(pins, ifindex, Direction::Egress)?;
    Ok(found)
}

/// An error and its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
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
