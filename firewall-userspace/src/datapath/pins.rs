//! The pins of links, and the notes beside them: what keeps programs attached whoever lives or dies.
//!
//! Below `<pins>`, outside of the directory of a layout: links as `xdp-<ifindex>`, `tc-<ifindex>` (ingress by TCX) and
//! `egress-<ifindex>`. Filters of the clsact qdisc have no links; directories note them: `ingress-<ifindex>`,
//! `clsact-<ifindex>` (egress), and `qdisc-<ifindex>` if the qdisc was made for them, too.

use super::{attach::AttachError, clsact, load, netlink, sys};
use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

/// Names of links before the dash.
pub const LINKS: [&str; 3] = [XDP, TC, EGRESS];
pub const XDP: &str = "xdp";
pub const TC: &str = "tc";
pub const EGRESS: &str = "egress";
/// Names of notes.
pub const INGRESS_FILTER: &str = "ingress";
pub const EGRESS_FILTER: &str = "clsact";
pub const QDISC: &str = "qdisc";
const NOTES: [&str; 3] = [INGRESS_FILTER, EGRESS_FILTER, QDISC];

pub fn path(pins: &Path, kind: &str, ifindex: u32) -> PathBuf {
    pins.join(format!("{kind}-{ifindex}"))
}

/// Interfaces that have programs of this instance by its pins.
pub fn attached(pins: &Path) -> io::Result<Vec<u32>> {
    let mut found: Vec<u32> = load::entries(pins)?
        .iter()
        .filter_map(|path| numbered(path, &LINKS).or_else(|| numbered(path, &NOTES)))
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Whether every pinned link runs one of these programs.
pub fn all_run(pins: &Path, programs: &[u32]) -> io::Result<bool> {
    for path in load::entries(pins)? {
        if numbered(&path, &LINKS).is_none() {
            continue;
        }
        let info = sys::open_pin(&path).and_then(|link| sys::link_info(link.as_fd()))?;
        if info.ifindex != 0 && !programs.contains(&info.program_id) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes the pins of links whose interface is gone.
pub fn remove_zombies(pins: &Path) -> Result<(), AttachError> {
    let paths = load::entries(pins).map_err(fail("reading", pins))?;
    for path in paths {
        if numbered(&path, &LINKS).is_some() {
            live_link(&path)?;
        } else if let Some(ifindex) = numbered(&path, &NOTES)
            && netlink::xdp_programs(ifindex)?.is_none()
        {
            unnote(&path)?;
        }
    }
    Ok(())
}

/// Whether an interface that has programs of ours is one of this network namespace, whose numbers say nothing in
/// another. `None` if the pins do not tell.
pub fn is_here(pins: &Path, ifindex: u32) -> Option<bool> {
    let link = |kind: &str| {
        let link = sys::open_pin(&path(pins, kind, ifindex)).ok()?;
        Some(sys::link_info(link.as_fd()).ok()?.program_id)
    };
    if let Some(program) = link(XDP) {
        let on_it = netlink::xdp_programs(ifindex).ok()?.unwrap_or_default();
        return Some([on_it.native, on_it.generic].contains(&Some(program)));
    }
    for (kind, attach_type) in [(TC, sys::ATTACH_TCX_INGRESS), (EGRESS, sys::ATTACH_TCX_EGRESS)] {
        if let Some(program) = link(kind) {
            // No such interface is an error here.
            let on_it = sys::programs_at(ifindex, attach_type).unwrap_or_default();
            return Some(on_it.contains(&program));
        }
    }
    let noted = |kind: &str| path(pins, kind, ifindex).exists();
    (noted(INGRESS_FILTER) || noted(EGRESS_FILTER))
        .then(|| clsact::all(ifindex).is_ok_and(|filters| filters.iter().any(|filter| filter.ours)))
}

/// The interface in the name of a pin of these kinds.
fn numbered(path: &Path, kinds: &[&str]) -> Option<u32> {
    let (kind, number) = path.file_name()?.to_str()?.split_once('-')?;
    if kinds.contains(&kind) {
        number.parse().ok()
    } else {
        None
    }
}

/// The link pinned at a path. A pin whose interface is gone is removed.
pub fn live_link(pin: &Path) -> Result<Option<(OwnedFd, sys::LinkInfo)>, AttachError> {
    let link = match sys::open_pin(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail("opening", pin)(error)),
    };
    let info = sys::link_info(link.as_fd()).map_err(fail("reading", pin))?;
    if info.ifindex == 0 {
        load::remove_pin(pin).map_err(fail("removing", pin))?;
        return Ok(None);
    }
    Ok(Some((link, info)))
}

pub fn keep(link: &OwnedFd, pin: &Path) -> Result<(), AttachError> {
    sys::pin(link.as_fd(), pin).map_err(fail("pinning", pin))
}

/// Takes a link off its interface, and its pin away. True if there was one.
pub fn remove_link(pin: &Path) -> Result<bool, AttachError> {
    let Some((link, _)) = live_link(pin)? else {
        return Ok(false);
    };
    // Explicitly, for the kernel would put off the end of a link that is only let go.
    sys::link_detach(link.as_fd()).map_err(fail("detaching", pin))?;
    load::remove_pin(pin).map_err(fail("removing", pin))?;
    Ok(true)
}

/// Why a link that was made before does not do its work any more.
pub fn lost_link(pin: &Path, program: u32, what: &str) -> Option<String> {
    let found = sys::open_pin(pin).and_then(|link| sys::link_info(link.as_fd()));
    match found {
        Ok(info) if info.ifindex == 0 => Some(format!("somebody detached its {what} link")),
        Ok(info) if info.program_id != program => Some(format!("its {what} link runs another program")),
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some(format!("somebody removed {}", pin.display()))
        }
        Err(error) => Some(format!("{} cannot be read: {error}", pin.display())),
    }
}

/// A BPF file system holds directories, but no files of one's own.
pub fn note(path: &Path) -> Result<(), AttachError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(fail("making", path)(error)),
        _ => Ok(()),
    }
}

pub fn unnote(path: &Path) -> Result<(), AttachError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail("removing", path)(error)),
        _ => Ok(()),
    }
}

fn fail(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AttachError {
    move |source| AttachError::Pin {
        what,
        path: path.to_owned(),
        source,
    }
}
