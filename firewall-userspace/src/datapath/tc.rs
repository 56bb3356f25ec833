//! Programs at TC, in either direction: a pinned TCX link, or a filter of the clsact qdisc on kernels before 6.6.
//!
//! First in the chain: a program that ends it does not hide from ours what comes in or goes out. Nobody else's
//! programs are touched.

use super::{
    attach::{AttachError, TcMode},
    clsact::{self, Direction},
    load::Loaded,
    pins, sys,
};
use std::{
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

impl Direction {
    const fn attach_type(self) -> u32 {
        match self {
            Direction::Ingress => sys::ATTACH_TCX_INGRESS,
            Direction::Egress => sys::ATTACH_TCX_EGRESS,
        }
    }

    fn link(self, pins: &Path, ifindex: u32) -> PathBuf {
        let kind = match self {
            Direction::Ingress => pins::TC,
            Direction::Egress => pins::EGRESS,
        };
        pins::path(pins, kind, ifindex)
    }

    fn note(self, pins: &Path, ifindex: u32) -> PathBuf {
        let kind = match self {
            Direction::Ingress => pins::INGRESS_FILTER,
            Direction::Egress => pins::EGRESS_FILTER,
        };
        pins::path(pins, kind, ifindex)
    }

    const fn other(self) -> Direction {
        match self {
            Direction::Ingress => Direction::Egress,
            Direction::Egress => Direction::Ingress,
        }
    }
}

/// Whether the kernel has TCX links: tried on an interface that cannot exist.
pub fn has_tcx(egress: BorrowedFd<'_>) -> bool {
    match sys::link_create(egress, i32::MAX as u32, sys::ATTACH_TCX_EGRESS, sys::TCX_FIRST) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::ENODEV),
    }
}

/// Whether a program of this instance is there, by the pins.
pub fn is_noted(pins: &Path, ifindex: u32, direction: Direction) -> bool {
    direction.link(pins, ifindex).exists() || direction.note(pins, ifindex).exists()
}

/// Attaches the program, or puts it in the place of the one before, without a moment between.
pub fn attach(
    pins: &Path,
    ifindex: u32,
    direction: Direction,
    program: &Loaded,
    tcx: bool,
) -> Result<TcMode, AttachError> {
    let program = program.fd.as_fd();
    let pin = direction.link(pins, ifindex);
    if let Some((link, info)) = pins::live_link(&pin)? {
        if info.ifindex != ifindex {
            return Err(AttachError::OtherNamespace {
                pin,
                ifindex: info.ifindex,
            });
        }
        sys::link_update(link.as_fd(), program).map_err(|source| AttachError::Replace { pin, source })?;
        return Ok(TcMode::Tcx);
    }
    if !tcx {
        if clsact::attach(ifindex, direction, program)? {
            pins::note(&pins::path(pins, pins::QDISC, ifindex))?;
        }
        pins::note(&direction.note(pins, ifindex))?;
        return Ok(TcMode::Clsact);
    }
    let link =
        sys::link_create(program, ifindex, direction.attach_type(), sys::TCX_FIRST).map_err(|source| {
            AttachError::Pin {
                what: "attaching by TCX for",
                path: pin.clone(),
                source,
            }
        })?;
    pins::keep(&link, &pin)?;
    // After a kernel update; until now both were there, which does no harm.
    remove_filter(pins, ifindex, direction)?;
    Ok(TcMode::Tcx)
}

/// True if there was one.
pub fn detach(pins: &Path, ifindex: u32, direction: Direction) -> Result<bool, AttachError> {
    let mut found = pins::remove_link(&direction.link(pins, ifindex))?;
    found |= remove_filter(pins, ifindex, direction)?;
    Ok(found)
}

/// Why what was attached before does not do its work any more.
pub fn lost(pins: &Path, ifindex: u32, direction: Direction, mode: TcMode, program: u32) -> Option<String> {
    let what = match direction {
        Direction::Ingress => "TC ingress",
        Direction::Egress => "egress",
    };
    match mode {
        TcMode::Tcx => pins::lost_link(&direction.link(pins, ifindex), program, what),
        TcMode::Clsact => match clsact::program(ifindex, direction) {
            Ok(Some(found)) if found == program => None,
            Ok(Some(_)) => Some(format!("its {what} filter runs another program")),
            Ok(None) => Some(format!(
                "somebody removed its {what} filter, or the clsact qdisc with it"
            )),
            Err(error) => Some(format!("its {what} filter cannot be seen: {error}")),
        },
    }
}

fn remove_filter(pins: &Path, ifindex: u32, direction: Direction) -> Result<bool, AttachError> {
    let note = direction.note(pins, ifindex);
    let qdisc = pins::path(pins, pins::QDISC, ifindex);
    // The qdisc serves both directions.
    let last = !direction.other().note(pins, ifindex).exists();
    if !(note.exists() || (last && qdisc.exists())) {
        return Ok(false);
    }
    let found = clsact::detach(ifindex, direction, last && qdisc.exists())?;
    pins::unnote(&note)?;
    if last {
        pins::unnote(&qdisc)?;
    }
    Ok(found)
}
