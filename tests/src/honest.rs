//! Clients whose service is measured, in an open loop: what is late counts from when it was due, so a server that makes
//! clients wait is not asked less often. And clients that only sit there.

use crate::netns::Namespace;
use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
use nix::sys::time::TimeSpec;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Within which a request has to be answered in full, from when it was due.
pub const DEADLINE: Duration = Duration::from_secs(1);

/// How requests fared.
#[derive(Clone, Debug, Default)]
pub struct Fared {
    /// From due to answered, in order; those that failed are [`DEADLINE`].
    pub took: Vec<Duration>,
    pub answered: usize,
}

impl Fared {
    /// Answered requests in a hundred.
    pub fn success(&self) -> f64 {
        100.0 * self.answered as f64 / self.took.len().max(1) as f64
    }

    /// The duration that this share of the requests did not exceed.
    pub fn quantile(&self, share: f64) -> Duration {
        let last = self.took.len().saturating_sub(1);
        let rank = (self.took.len() as f64 * share).ceil() as usize;
        self.took
            .get(rank.saturating_sub(1).min(last))
            .copied()
            .unwrap_or(DEADLINE)
    }
}

/// A request under way.
struct Request {
    due: Instant,
    socket: TcpStream,
    asked: bool,
    answer: Vec<u8>,
}

/// Opens so many HTTP connections a second to `server` for so long, from this address; each asks for `path` once.
///
/// # Errors
/// A socket cannot be made; what the server does is no error.
pub fn requests(
    from: IpAddr,
    server: SocketAddr,
    path: &str,
    per_second: u32,
    lasting: Duration,
) -> Result<Fared> {
    let question = format!("GET {path} HTTP/1.1\r\nHost: ravelin\r\nConnection: close\r\n\r\n");
    let period = Duration::from_secs(1) / per_second;
    let total = (lasting.as_secs_f64() * f64::from(per_second)) as u32;
    let begin = Instant::now();
    let (mut next, mut open, mut fared) = (0, Vec::<Request>::new(), Fared::default());
    while next < total || !open.is_empty() {
        while next < total && begin.elapsed() >= period * next {
            let due = begin + period * next;
            next += 1;
            match connecting(from, server)? {
                Some(socket) => open.push(Request {
                    due,
                    socket: socket.into(),
                    asked: false,
                    answer: Vec::new(),
                }),
                None => fared.took.push(DEADLINE),
            }
        }
        let soonest = open.iter().map(|request| request.due + DEADLINE).min();
        let upcoming = (next < total).then(|| begin + period * next);
        let until = soonest.into_iter().chain(upcoming).min().unwrap_or(begin);
        let ready = wait(
            open.iter()
                .map(|request| (request.socket.as_fd(), !request.asked)),
            until,
        )?;
        let mut ready = ready.into_iter();
        open.retain_mut(|request| {
            let ready = ready.next().unwrap_or(false);
            let outcome = if ready {
                request.step(question.as_bytes())
            } else {
                None
            };
            let took = request.due.elapsed();
            match outcome {
                Some(true) if took < DEADLINE => {
                    fared.answered += 1;
                    fared.took.push(took);
                    false
                }
                None if took < DEADLINE => true,
                _ => {
                    fared.took.push(DEADLINE);
                    reset(&request.socket);
                    false
                }
            }
        });
    }
    fared.took.sort();
    Ok(fared)
}

impl Request {
    /// What is possible at once; whether it was answered, when it has come to an end.
    fn step(&mut self, question: &[u8]) -> Option<bool> {
        if !self.asked {
            return match self.socket.write(question) {
                Ok(length) if length == question.len() => {
                    self.asked = true;
                    None
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                _ => Some(false),
            };
        }
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => {
                    return Some(self.answer.starts_with(b"HTTP/1.1 200") && self.answer.ends_with(PAGE));
                }
                Ok(length) => self.answer.extend(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(_) => return Some(false),
            }
        }
    }
}

/// What a page has to end in.
pub const PAGE: &[u8] = b"the whole of it";

/// A socket that has begun to connect, or nothing if that was refused at once.
fn connecting(from: IpAddr, server: SocketAddr) -> Result<Option<OwnedFd>> {
    let family = if server.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(family, SockType::Stream, flags, None).context("opening a socket")?;
    // The port is chosen by connect(), for which one address has ports enough.
    set_no_port(&socket)?;
    socket::bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(from, 0)),
    )
    .context("binding a socket")?;
    match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(server)) {
        Ok(()) | Err(nix::Error::EINPROGRESS) => Ok(Some(socket)),
        Err(_) => Ok(None),
    }
}

fn set_no_port(socket: &OwnedFd) -> Result<()> {
    let yes: libc::c_int = 1;
    // SAFETY: the option is an int, of the size given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const yes).cast(),
            size_of_val(&yes) as libc::socklen_t,
        )
    };
    ensure!(
        result == 0,
        "IP_BIND_ADDRESS_NO_PORT: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// Closes without a farewell, so that nothing of it stays at either end.
fn reset(socket: &TcpStream) {
    let _ = socket::setsockopt(
        socket,
        sockopt::Linger,
        &libc::linger {
            l_onoff: 1,
            l_linger: 0,
        },
    );
}

/// Waits until one of the sockets can be read, or written where that is said, or until then; which of them can.
fn wait<'a>(
    sockets: impl Iterator<Item = (std::os::fd::BorrowedFd<'a>, bool)>,
    until: Instant,
) -> Result<Vec<bool>> {
    let mut set: Vec<PollFd> = sockets
        .map(|(socket, write)| {
            PollFd::new(
                socket,
                if write {
                    PollFlags::POLLOUT
                } else {
                    PollFlags::POLLIN
                },
            )
        })
        .collect();
    let timeout = TimeSpec::from_duration(until.saturating_duration_since(Instant::now()));
    match ppoll(&mut set, Some(timeout), None) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(error) => return Err(error).context("waiting for sockets"),
    }
    Ok(set.iter().map(|one| one.any().unwrap_or(false)).collect())
}

/// What became of a long-lived connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Echoes that came.
    pub echoes: usize,
    /// The longest that an echo took, from when it was due to be asked for; what never came counts to the end.
    pub longest_stall: Duration,
}

/// Asks for so many echoes a second on one open connection.
///
/// # Errors
/// The connection cannot be used at all.
pub fn echoes(mut stream: TcpStream, per_second: u32, lasting: Duration) -> Result<Held> {
    const WORD: usize = 8;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let period = Duration::from_secs(1) / per_second;
    let total = (lasting.as_secs_f64() * f64::from(per_second)) as u32;
    let begin = Instant::now();
    let end = begin + lasting + 2 * DEADLINE;
    let (mut next, mut unsent, mut heard) = (0, Vec::<u8>::new(), Vec::<u8>::new());
    let mut held = Held::default();
    while held.echoes < total as usize && Instant::now() < end {
        while next < total && begin.elapsed() >= period * next {
            unsent.extend(u64::from(next).to_be_bytes());
            next += 1;
        }
        let mut broken = false;
        if !unsent.is_empty() {
            match stream.write(&unsent) {
                Ok(length) => drop(unsent.drain(..length)),
                Err(error) => broken |= error.kind() != ErrorKind::WouldBlock,
            }
        }
        let upcoming = if next < total { begin + period * next } else { end };
        if wait([(stream.as_fd(), false)].into_iter(), upcoming)?[0] {
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer) {
                Ok(0) => broken = true,
                Ok(length) => heard.extend(&buffer[..length]),
                Err(error) => broken |= error.kind() != ErrorKind::WouldBlock,
            }
        }
        while heard.len() >= WORD {
            ensure!(
                heard[..WORD] == (held.echoes as u64).to_be_bytes(),
                "an echo of what was not said"
            );
            heard.drain(..WORD);
            let due = begin + period * held.echoes as u32;
            held.longest_stall = held.longest_stall.max(due.elapsed());
            held.echoes += 1;
        }
        if broken {
            break;
        }
    }
    if held.echoes < total as usize {
        held.longest_stall = held
            .longest_stall
            .max(end - (begin + period * held.echoes as u32));
    }
    Ok(held)
}

/// Opens the connection for [`echoes`].
///
/// # Errors
/// It does not open.
pub fn open(from: IpAddr, server: SocketAddr) -> Result<TcpStream> {
    let family = if server.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(from, 0)),
    )?;
    socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(server))
        .with_context(|| format!("connecting {from} to {server}"))?;
    Ok(socket.into())
}

/// A server that gives back what it gets, a thread for each connection, so that it waits for nothing but the processor.
///
/// # Errors
/// The port is taken.
pub fn serve_echoes(namespace: &Namespace, port: u16) -> Result<()> {
    for address in [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ] {
        let listener = namespace.run(|| -> Result<TcpListener> {
            let family = if address.is_ipv4() {
                AddressFamily::Inet
            } else {
                AddressFamily::Inet6
            };
            let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            if address.is_ipv6() {
                socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            }
            socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            socket::bind(
                socket.as_raw_fd(),
                &SockaddrStorage::from(SocketAddr::new(address, port)),
            )?;
            socket::listen(&socket, socket::Backlog::new(128)?)?;
            Ok(socket.into())
        })?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || echo(stream));
            }
        });
    }
    Ok(())
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// Connections that send half a header and then nothing, opened again when the server closes them, until dropped.
#[derive(Debug)]
pub struct SlowClients {
    stop: Arc<AtomicBool>,
    open: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl SlowClients {
    /// Holds as many connections as it gets, up to `most`, and opens at most `per_second`.
    pub fn start(
        namespace: &Namespace,
        from: IpAddr,
        server: SocketAddr,
        most: usize,
        per_second: u32,
    ) -> SlowClients {
        let stop = Arc::new(AtomicBool::new(false));
        let open = Arc::new(AtomicUsize::new(0));
        let thread = namespace.spawn({
            let (stop, open) = (Arc::clone(&stop), Arc::clone(&open));
            move || sit(from, server, most, per_second, &stop, &open)
        });
        SlowClients {
            stop,
            open,
            thread: Some(thread),
        }
    }

    /// Connections that are established, as their client sees it.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Closes them all.
    ///
    /// # Errors
    /// Sockets could not be made.
    pub fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread
                .join()
                .map_err(|_| anyhow::anyhow!("slow clients panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for SlowClients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn sit(
    from: IpAddr,
    server: SocketAddr,
    most: usize,
    per_second: u32,
    stop: &AtomicBool,
    count: &AtomicUsize,
) -> Result<()> {
    const HALF: &[u8] = b"GET / HTTP/1.1\r\nHost: ravelin\r\nX-Slow: ";
    const STEP: Duration = Duration::from_millis(5);
    let begin = Instant::now();
    let mut begun = 0;
    // (socket, since when, whether it was established)
    let mut open: Vec<(TcpStream, Instant, bool)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        while open.len() < most && f64::from(begun) < begin.elapsed().as_secs_f64() * f64::from(per_second) {
            begun += 1;
            if let Some(socket) = connecting(from, server)? {
                open.push((socket.into(), Instant::now(), false));
            }
        }
        open.retain_mut(|(socket, since, established)| {
            if !*established {
                match socket.write(HALF) {
                    Ok(_) => *established = true,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return since.elapsed() < DEADLINE,
                    Err(error) => {
                        return error.kind() == ErrorKind::NotConnected && since.elapsed() < DEADLINE;
                    }
                }
            }
            let stays =
                matches!(socket.read(&mut [0; 64]), Err(error) if error.kind() == ErrorKind::WouldBlock);
            if !stays {
                reset(socket);
            }
            stays
        });
        count.store(
            open.iter().filter(|(.., established)| *established).count(),
            Ordering::Relaxed,
        );
        std::thread::sleep(STEP);
    }
    for (socket, ..) in &open {
        reset(socket);
    }
    Ok(())
}
