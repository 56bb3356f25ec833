//! Netlink messages, and one request at a time over a blocking socket.
//!
//! Only the attributes that are asked for are decoded: what a newer kernel adds must never hide an interface, as
//! it would when whole messages are decoded.

use rtnetlink::{
    packet_core::{NLA_TYPE_MASK, NlasIterator},
    sys::{Socket, SocketAddr},
};
use std::io;

pub const NLM_F_REQUEST: u16 = 1;
pub const NLM_F_ACK: u16 = 4;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_CREATE: u16 = 0x400;

const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
const NLMSGERR_ATTR_MSG: u16 = 1;
const HEADER: usize = 16;

/// A request was refused, or could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{what}{}", .message.as_deref().map(|text| format!(" (the kernel says: {text})")).unwrap_or_default())]
pub struct NetlinkError {
    pub what: String,
    /// The kernel's own words, where it has any.
    pub message: Option<String>,
    pub source: io::Error,
}

impl NetlinkError {
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// A message to the kernel.
pub struct Request(Vec<u8>);

impl Request {
    /// `fixed` is the header of the family: `ifinfomsg`, `tcmsg` and the like.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Request {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        // Sequence 1 and the kernel's choice of a port: a socket has one request under way at a time.
        bytes.extend(1_u32.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(fixed);
        Request(bytes)
    }

    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Request {
        self.0.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub fn nested(mut self, kind: u16, inside: impl FnOnce(Request) -> Request) -> Request {
        let start = self.0.len();
        self = inside(self.attribute(kind | NLA_F_NESTED, &[]));
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

/// A message from the kernel.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    pub kind: u16,
    flags: u16,
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes after the family's header of `fixed` bytes.
    pub fn attributes(self, fixed: usize) -> impl Iterator<Item = (u16, &'a [u8])> {
        attributes(self.body.get(fixed..).unwrap_or_default())
    }
}

/// The messages of one datagram; one with a bad length ends them.
pub fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = u32_at(rest, 0)? as usize;
        let (kind, flags) = (u16_at(rest, 4)?, u16_at(rest, 6)?);
        let body = rest.get(HEADER..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, body })
    })
}

/// The attributes in `bytes`; one with a bad length ends them.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|attribute| {
        let (kind, len) = (attribute.kind() & NLA_TYPE_MASK, attribute.length() as usize);
        (kind, attribute.into_inner().get(4..len).unwrap_or_default())
    })
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

/// A zero-terminated string.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A blocking socket of the network namespace of the thread that opened it.
pub struct Connection(Socket);

impl Connection {
    pub fn open(protocol: isize) -> Result<Connection, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Both exist since 4.12; they only make refusals readable.
            let _ = socket.set_cap_ack(true);
            let _ = socket.set_ext_ack(true);
            Ok(Connection(socket))
        };
        open().map_err(|source| NetlinkError {
            what: "opening a netlink socket".into(),
            message: None,
            source,
        })
    }

    /// Sends a request and hands every message of the answer to `each`. `what` says what was being done.
    pub fn call(
        &self,
        what: &str,
        request: Request,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        let fail = |source, message| NetlinkError {
            what: what.to_owned(),
            message,
            source,
        };
        self.0
            .send(&request.finish(), 0)
            .map_err(|error| fail(error, None))?;
        let mut interrupted = false;
        loop {
            let (datagram, _) = self.0.recv_from_full().map_err(|error| fail(error, None))?;
            for message in messages(&datagram) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE if interrupted => {
                        return Err(fail(io::ErrorKind::Interrupted.into(), None));
                    }
                    // A dump that failed midway ends by its error.
                    NLMSG_DONE if u32_at(message.body, 0).is_none_or(|error| error as i32 >= 0) => {
                        return Ok(());
                    }
                    NLMSG_ERROR if u32_at(message.body, 0) == Some(0) => return Ok(()),
                    NLMSG_DONE | NLMSG_ERROR => return Err(fail(error_of(message), message_of(message))),
                    _ => each(message),
                }
            }
        }
    }

    /// A dump; made again when the kernel says that a change has cut it.
    pub fn dump<T>(
        &self,
        what: &str,
        request: impl Fn() -> Request,
        mut each: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..10 {
            let mut found = Vec::new();
            match self.call(what, request(), |message| found.extend(each(message))) {
                Ok(()) => return Ok(found),
                Err(error) if error.source.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Err(NetlinkError {
            what: format!("{what}: it changed ten times while being read"),
            message: None,
            source: io::ErrorKind::Interrupted.into(),
        })
    }
}

fn error_of(message: Message<'_>) -> io::Error {
    match u32_at(message.body, 0) {
        Some(negative) => io::Error::from_raw_os_error((negative as i32).wrapping_neg()),
        None => io::ErrorKind::UnexpectedEof.into(),
    }
}

fn message_of(message: Message<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    // After the error come the header of the request and, unless capped, its body.
    let request = if message.flags & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        u32_at(message.body, 4)? as usize
    };
    let tail = message.body.get(4 + request.next_multiple_of(4)..)?;
    attributes(tail)
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, value)| text(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back_as_a_message() {
        let bytes = Request::new(16, NLM_F_ACK, &[1, 2, 3, 4])
            .attribute(3, b"eth0\0")
            .nested(5, |request| request.attribute(1, &7_u32.to_ne_bytes()))
            .finish();
        let message = messages(&bytes).next().unwrap();
        assert_eq!((message.kind, message.flags), (16, NLM_F_REQUEST | NLM_F_ACK));
        let found: Vec<_> = message.attributes(4).collect();
        assert_eq!(text(found[0].1), "eth0");
        assert_eq!((found[0].0, found[1].0), (3, 5));
        assert_eq!(attributes(found[1].1).next(), Some((1, &7_u32.to_ne_bytes()[..])));
        assert_eq!(messages(&bytes).count(), 1);
    }

    #[test]
    fn no_bytes_of_any_kind_are_read_past_their_end() {
        let bytes = Request::new(16, 0, &[0; 16]).attribute(3, b"eth0\0").finish();
        for len in 0..bytes.len() {
            for message in messages(&bytes[..len]) {
                let _ = message.attributes(16).count();
            }
        }
        for fill in [0, 1, 0xff] {
            let bytes = [fill; 64];
            assert!(messages(&bytes).count() <= 64);
            assert!(attributes(&bytes).count() <= 64);
        }
    }
}
