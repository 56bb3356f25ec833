//! Ingress at XDP: a pinned link, native where the driver takes it and generic where not.
//!
//! An interface has room for one XDP program; whose it is is said when it is not ours.

use super::{
    attach::{AttachError, Features, Ingress},
    load::{self, Loaded},
    netlink::{self, Interface},
    pins, sys,
    wire::{self, Connection, Request},
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

/// The program and where its links are pinned.
pub struct Xdp<'a> {
    pub pins: &'a Path,
    pub program: &'a Loaded,
    pub features: Features,
}

impl Xdp<'_> {
    /// Attaches, or replaces the program of the link that is there. Gives also why it is not better than it is.
    pub fn attach(&self, interface: &Interface) -> Result<(Ingress, Option<String>), AttachError> {
        let pin = pins::path(self.pins, pins::XDP, interface.index);
        if let Some((link, info)) = pins::live_link(&pin)? {
            return self.replace(interface, &pin, &link, info);
        }
        let (link, mode, detail) = self.create(interface)?;
        pins::keep(&link, &pin)?;
        Ok((mode, detail))
    }

    fn replace(
        &self,
        interface: &Interface,
        pin: &Path,
        link: &OwnedFd,
        info: sys::LinkInfo,
    ) -> Result<(Ingress, Option<String>), AttachError> {
        let on_it = netlink::xdp_programs(interface.index)?.ok_or_else(|| AttachError::Gone {
            interface: interface.name.clone(),
        })?;
        let mode = match info.program_id {
            id if info.ifindex == interface.index && on_it.native == Some(id) => Ingress::Native,
            id if info.ifindex == interface.index && on_it.generic == Some(id) => Ingress::Generic,
            _ => {
                return Err(AttachError::OtherNamespace {
                    pin: pin.to_owned(),
                    ifindex: info.ifindex,
                });
            }
        };
        sys::link_update(link.as_fd(), self.program.fd.as_fd()).map_err(|source| AttachError::Replace {
            pin: pin.to_owned(),
            source,
        })?;
        let detail = (mode == Ingress::Generic).then(|| {
            "generic XDP, kept from an earlier start; `ravelin detach` and a new start try the driver again".into()
        });
        Ok((mode, detail))
    }

    fn create(&self, interface: &Interface) -> Result<(OwnedFd, Ingress, Option<String>), AttachError> {
        let program = self.program.fd.as_fd();
        let create = |flags| sys::link_create(program, interface.index, sys::ATTACH_XDP, flags);
        let native = if self.features.native {
            match create(sys::XDP_NATIVE) {
                Ok(link) => return Ok((link, Ingress::Native, None)),
                Err(error) => self.judge_refusal(interface, error)?,
            }
        } else {
            "not to be used".to_owned()
        };
        match create(sys::XDP_GENERIC) {
            Ok(link) => Ok((link, Ingress::Generic, Some(format!("generic XDP: {native}")))),
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
                let words = driver_words(interface.index, self.program.fd.as_fd());
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
            let link = sys::open_pin(&pins::path(&other, pins::XDP, ifindex)).ok()?;
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
