//! Programs as filters of the clsact qdisc, for kernels before 6.6, which have no TCX links.
//!
//! A filter outlives its maker. It is known again by a priority and handle of its own and by its name; what others
//! have put there is left alone.

use super::{
    netlink,
    wire::{
        self, Connection, Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NetlinkError, Request,
    },
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use std::os::fd::{AsRawFd, BorrowedFd};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

const TCMSG: usize = 20;
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// `0x7261` is "ra". Early among filters, so that one that ends the chain does not hide packets.
const PRIORITY: u32 = 0x7261;
const HANDLE: u32 = 0x7261_7665;

/// How the names of all our filters begin.
const OURS: &str = "ravelin_";

/// Which of the two lists of filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    const fn parent(self) -> u32 {
        match self {
            Direction::Ingress => INGRESS,
            Direction::Egress => EGRESS,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }

    /// Of our filter.
    const fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ravelin_ingress",
            Direction::Egress => "ravelin_egress",
        }
    }
}

/// What stands at the place of our filter.
enum Place {
    Free,
    /// With the id of its program.
    Ours(u32),
    Foreign,
}

/// Attaches the program, or puts it in the place of the one before. Returns whether the qdisc was made for it.
pub fn attach(ifindex: u32, direction: Direction, program: BorrowedFd<'_>) -> Result<bool, NetlinkError> {
    let connection = Connection::open(NETLINK_ROUTE)?;
    let made = add_qdisc(&connection, ifindex)?;
    let flags = match place(&connection, ifindex, direction)? {
        Place::Free => NLM_F_CREATE | NLM_F_EXCL,
        // A filter is replaced in one step: each packet meets the old program or the new one.
        Place::Ours(_) => 0,
        Place::Foreign => {
            return Err(NetlinkError {
                what: format!(
                    "attaching the {0} filter: priority {PRIORITY} handle {HANDLE:#x} is taken by another \
                     filter (`tc filter show dev ... {0}`)",
                    direction.word()
                ),
                message: None,
                source: std::io::ErrorKind::AlreadyExists.into(),
            });
        }
    };
    let request = Request::new(
        RTM_NEWTFILTER,
        NLM_F_ACK | flags,
        &tcmsg(ifindex, HANDLE, direction.parent(), info()),
    )
    .attribute(TCA_KIND, b"bpf\0")
    .nested(TCA_OPTIONS, |options| {
        options
            .attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes())
            .attribute(TCA_BPF_NAME, format!("{}\0", direction.name()).as_bytes())
            .attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes())
    });
    connection.call("attaching a filter", request, |_| {})?;
    Ok(made)
}

/// Removes our filter, and the qdisc if it was made for it and nobody else has filters there. True if there was one.
pub fn detach(ifindex: u32, direction: Direction, qdisc_too: bool) -> Result<bool, NetlinkError> {
    let connection = Connection::open(NETLINK_ROUTE)?;
    if netlink::xdp_programs(ifindex)?.is_none() {
        return Ok(false);
    }
    let found = matches!(place(&connection, ifindex, direction)?, Place::Ours(_));
    if found {
        let request = Request::new(
            RTM_DELTFILTER,
            NLM_F_ACK,
            &tcmsg(ifindex, HANDLE, direction.parent(), info()),
        );
        connection.call("removing a filter", request, |_| {})?;
    }
    let empty = || {
        Ok::<bool, NetlinkError>(
            filters(&connection, ifindex, EGRESS)?.is_empty()
                && filters(&connection, ifindex, INGRESS)?.is_empty(),
        )
    };
    if qdisc_too && empty()? {
        let request = Request::new(RTM_DELQDISC, NLM_F_ACK, &tcmsg(ifindex, CLSACT_HANDLE, CLSACT, 0));
        match connection.call("removing the clsact qdisc", request, |_| {}) {
            Err(error) if !matches!(error.errno(), Some(libc::ENOENT | libc::EINVAL)) => return Err(error),
            _ => {}
        }
    }
    Ok(found)
}

/// The id of the program that our filter runs, if it is there.
pub fn program(ifindex: u32, direction: Direction) -> Result<Option<u32>, NetlinkError> {
    let connection = Connection::open(NETLINK_ROUTE)?;
    Ok(match place(&connection, ifindex, direction)? {
        Place::Ours(program) => Some(program),
        Place::Free | Place::Foreign => None,
    })
}

fn add_qdisc(connection: &Connection, ifindex: u32) -> Result<bool, NetlinkError> {
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let request = Request::new(RTM_NEWQDISC, flags, &tcmsg(ifindex, CLSACT_HANDLE, CLSACT, 0))
        .attribute(TCA_KIND, b"clsact\0");
    match connection.call("adding the clsact qdisc", request, |_| {}) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

fn place(connection: &Connection, ifindex: u32, direction: Direction) -> Result<Place, NetlinkError> {
    let at = filters(connection, ifindex, direction.parent())?
        .into_iter()
        .find(|filter| filter.priority == PRIORITY && filter.handle == HANDLE);
    Ok(match at {
        None => Place::Free,
        Some(filter) if filter.name == direction.name() => Place::Ours(filter.program),
        Some(_) => Place::Foreign,
    })
}

struct Filter {
    priority: u32,
    handle: u32,
    /// `bpf`, `flower`, `u32`, ...
    kind: String,
    /// Of a BPF filter.
    name: String,
    program: u32,
}

/// A filter of an interface, for people.
pub struct Listed {
    pub direction: Direction,
    pub kind: String,
    /// 0: no BPF program.
    pub program: u32,
    pub ours: bool,
}

/// All filters of the clsact qdisc of an interface, ingress first.
pub fn all(ifindex: u32) -> Result<Vec<Listed>, NetlinkError> {
    let connection = Connection::open(NETLINK_ROUTE)?;
    let mut listed = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        for filter in filters(&connection, ifindex, direction.parent())? {
            listed.push(Listed {
                direction,
                ours: filter.priority == PRIORITY && filter.handle == HANDLE && filter.name.starts_with(OURS),
                kind: filter.kind,
                program: filter.program,
            });
        }
    }
    Ok(listed)
}

fn filters(connection: &Connection, ifindex: u32, parent: u32) -> Result<Vec<Filter>, NetlinkError> {
    let request = || Request::new(RTM_GETTFILTER, NLM_F_DUMP, &tcmsg(ifindex, 0, parent, 0));
    let found = connection.dump("listing the filters of an interface", request, |message| {
        filter(message)
    })?;
    // A priority itself is listed too, without a handle.
    Ok(found.into_iter().filter(|filter| filter.handle != 0).collect())
}

fn filter(message: Message<'_>) -> Option<Filter> {
    let handle = wire::u32_at(message.body, 8)?;
    let priority = wire::u32_at(message.body, 16)? >> 16;
    let mut found = Filter {
        priority,
        handle,
        kind: message
            .attributes(TCMSG)
            .find(|(kind, _)| *kind == TCA_KIND)
            .map_or(String::new(), |(_, kind)| wire::text(kind)),
        name: String::new(),
        program: 0,
    };
    let options = message.attributes(TCMSG).find(|(kind, _)| *kind == TCA_OPTIONS);
    for (kind, value) in options
        .into_iter()
        .flat_map(|(_, options)| wire::attributes(options))
    {
        match kind {
            TCA_BPF_NAME => found.name = wire::text(value),
            TCA_BPF_ID => found.program = wire::u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(found)
}

/// `struct tcmsg`.
fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut bytes = [0; TCMSG];
    for (at, word) in [(4, ifindex), (8, handle), (12, parent), (16, info)] {
        bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Priority and protocol (every one) of our filter.
fn info() -> u32 {
    PRIORITY << 16 | u32::from((libc::ETH_P_ALL as u16).to_be())
}
