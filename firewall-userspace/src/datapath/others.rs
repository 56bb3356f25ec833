//! The BPF programs and filters on an interface, and whose they are.

use super::{
    clsact::{self, Direction},
    load, netlink, sys,
    wire::NetlinkError,
};
use std::{collections::HashMap, fmt, os::fd::AsFd, path::Path};

/// Where a program hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    Xdp,
    TcIngress,
    TcEgress,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Point::Xdp => "XDP",
            Point::TcIngress => "TC ingress",
            Point::TcEgress => "TC egress",
        })
    }
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupant {
    pub point: Point,
    /// `the program "name" (id 7)`, `a flower filter`.
    pub what: String,
    /// It is ravelin's.
    pub ours: bool,
    /// Of which instance, if its pins tell.
    pub instance: Option<String>,
}

/// All that is to be seen on an interface, XDP first. `instances` is the directory of all instances' pins. Names of
/// programs, and whose they are, take CAP_SYS_ADMIN.
pub fn occupants(instances: &Path, ifindex: u32) -> Result<Vec<Occupant>, NetlinkError> {
    let ours = own_programs(instances, ifindex);
    let mut found = Vec::new();
    let mut add = |point, id: u32| {
        found.push(Occupant {
            point,
            what: described(id),
            ours: ours.contains_key(&id),
            instance: ours.get(&id).cloned(),
        });
    };
    let xdp = netlink::xdp_programs(ifindex)?.unwrap_or_default();
    if let Some(id) = xdp.any {
        add(Point::Xdp, id);
    }
    for (point, attach_type) in [
        (Point::TcIngress, sys::ATTACH_TCX_INGRESS),
        (Point::TcEgress, sys::ATTACH_TCX_EGRESS),
    ] {
        // Before 6.6 there are none.
        for id in sys::programs_at(ifindex, attach_type).unwrap_or_default() {
            add(point, id);
        }
    }
    for filter in clsact::all(ifindex)? {
        found.push(Occupant {
            point: match filter.direction {
                Direction::Ingress => Point::TcIngress,
                Direction::Egress => Point::TcEgress,
            },
            what: match filter.program {
                0 => format!("a {} filter", filter.kind),
                id => described(id),
            },
            // Filters have no pin: they are known by their name.
            ours: filter.ours,
            instance: None,
        });
    }
    Ok(found)
}

fn described(id: u32) -> String {
    match sys::program_by_id(id) {
        Ok(info) => format!("the program \"{}\" (id {id})", info.name),
        Err(_) => format!("the program of id {id}"),
    }
}

/// The instances whose pinned links run programs on an interface, by program.
fn own_programs(instances: &Path, ifindex: u32) -> HashMap<u32, String> {
    let mut found = HashMap::new();
    for instance in load::entries(instances).unwrap_or_default() {
        let name = instance
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        for pin in load::entries(&instance).unwrap_or_default() {
            let end = format!("-{ifindex}");
            if !pin.to_string_lossy().ends_with(&end) || pin.is_dir() {
                continue;
            }
            let info = sys::open_pin(&pin).and_then(|link| sys::link_info(link.as_fd()));
            if let Ok(info) = info
                && info.ifindex == ifindex
            {
                found.insert(info.program_id, name.clone());
            }
        }
    }
    found
}
