//! The traffic of the demo: probes, a flood, and the services that answer.

use super::PATIENCE;
use anyhow::{Context, Result};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered(Duration),
    Silence,
}

const QUESTION: &[u8; 8] = b"ravelin?";

/// Opens a TCP connection, sends a word and waits for it to come back; from this source address, if one is given.
pub fn tcp(to: SocketAddr, from: Option<IpAddr>) -> Outcome {
    let start = Instant::now();
    let connection = match from {
        None => Connection::open(to),
        Some(from) => Connection::open_from(to, from),
    };
    match connection.map(|mut connection| connection.ask()) {
        Ok(Outcome::Answered(_)) => Outcome::Answered(start.elapsed()),
        _ => Outcome::Silence,
    }
}

/// Sends a datagram and waits for it to come back.
pub fn udp(to: SocketAddr) -> Outcome {
    let start = Instant::now();
    let ask = || -> std::io::Result<()> {
        let socket = UdpSocket::bind(any_port(to))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(QUESTION)?;
        socket.recv(&mut [0; 64]).map(drop)
    };
    ask().map_or(Outcome::Silence, |()| Outcome::Answered(start.elapsed()))
}

/// Sends datagrams as fast as it goes; gives how many were sent and how long that took.
///
/// # Errors
/// The socket cannot be made.
pub fn flood(to: SocketAddr, datagrams: u32) -> Result<(u32, Duration)> {
    let socket = UdpSocket::bind(any_port(to)).context("opening a socket")?;
    socket.connect(to).context("routing to the node")?;
    let start = Instant::now();
    let sent = (0..datagrams).filter(|_| socket.send(QUESTION).is_ok()).count();
    Ok((u32::try_from(sent).unwrap_or(u32::MAX), start.elapsed()))
}

/// An open TCP connection to one of the demo's services.
pub struct Connection(TcpStream);

impl Connection {
    /// # Errors
    /// It does not open in time.
    pub fn open(to: SocketAddr) -> Result<Connection> {
        Connection::ready(TcpStream::connect_timeout(&to, PATIENCE)?)
    }

    /// From one of several addresses of the host.
    fn open_from(to: SocketAddr, from: IpAddr) -> Result<Connection> {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
        };
        use nix::sys::time::TimeVal;
        use std::os::fd::AsRawFd;

        let family = if to.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // connect(2) gives up after the send timeout.
        setsockopt(
            &fd,
            sockopt::SendTimeout,
            &TimeVal::new(0, PATIENCE.subsec_micros().into()),
        )?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
        Connection::ready(TcpStream::from(fd))
    }

    fn ready(stream: TcpStream) -> Result<Connection> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Connection(stream))
    }

    /// Sends a word and waits for it to come back.
    pub fn ask(&mut self) -> Outcome {
        let start = Instant::now();
        let mut answer = [0; QUESTION.len()];
        match self
            .0
            .write_all(QUESTION)
            .and_then(|()| self.0.read_exact(&mut answer))
        {
            Ok(()) => Outcome::Answered(start.elapsed()),
            Err(_) => Outcome::Silence,
        }
    }
}

/// The body of a page.
///
/// # Errors
/// Nobody answers, or not with 200.
pub fn http(server: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(server).with_context(|| format!("connecting to {server}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .with_context(|| format!("reading {path}"))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("{path}: an answer without a body"))?;
    anyhow::ensure!(
        head.contains(" 200 "),
        "{path}: {}",
        head.lines().next().unwrap_or_default()
    );
    Ok(body.to_owned())
}

/// Answers on these ports, TCP and UDP, both families, until killed.
///
/// # Errors
/// A port is taken.
pub fn serve(ports: &[u16]) -> Result<()> {
    let mut threads = Vec::new();
    for port in ports {
        let address = SocketAddr::from(([0_u16; 8], *port));
        let listener = TcpListener::bind(address).with_context(|| format!("listening on tcp {address}"))?;
        let socket = UdpSocket::bind(address).with_context(|| format!("listening on udp {address}"))?;
        threads.push(std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || echo(stream));
            }
        }));
        threads.push(std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                // A peer that is gone is nobody's problem.
                let _ = socket.send_to(&buffer[..length], from);
            }
        }));
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// Answers one connection, on the calling thread, until it ends.
pub fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 2048];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if stream.write_all(&buffer[..length]).is_ok() => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}

fn any_port(like: SocketAddr) -> SocketAddr {
    if like.is_ipv4() {
        SocketAddr::from(([0_u8; 4], 0))
    } else {
        SocketAddr::from(([0_u16; 8], 0))
    }
}
