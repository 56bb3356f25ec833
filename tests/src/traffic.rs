//! Real sockets on both sides of the wire: servers, single probes, and steady numbered traffic that is accounted for
//! to the last datagram.

use crate::netns::Namespace;
use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6,
};
use nix::sys::time::TimeVal;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a probe waits before it says that nothing came.
pub const PROBE: Duration = Duration::from_millis(600);

/// A server that answers what it gets: TCP and UDP on one address, until dropped.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Listens on the address in the namespace.
    ///
    /// # Errors
    /// The address is taken, or not there.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Echo> {
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) = namespace
            .run(|| Ok::<_, std::io::Error>((TcpListener::bind(address)?, UdpSocket::bind(address)?)))
            .with_context(|| format!("listening on {address} in {}", namespace.name()))?;
        tcp.set_nonblocking(true)?;
        udp.set_read_timeout(Some(POLL))?;
        let threads = vec![
            std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || echo_tcp(&tcp, &stop)
            }),
            std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || echo_udp(&udp, &stop)
            }),
        ];
        Ok(Echo { stop, threads })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// How often a server looks whether it is to stop.
const POLL: Duration = Duration::from_millis(20);

fn echo_tcp(listener: &TcpListener, stop: &AtomicBool) {
    let mut open: Vec<TcpStream> = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        let mut idle = true;
        while let Ok((stream, _)) = listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                open.push(stream);
            }
            idle = false;
        }
        open.retain_mut(|stream| match stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                idle = false;
                stream.set_nonblocking(false).is_ok()
                    && stream.write_all(&buffer[..length]).is_ok()
                    && stream.set_nonblocking(true).is_ok()
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
        if idle {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn echo_udp(server: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = server.recv_from(&mut buffer) {
            let _ = server.send_to(&buffer[..length], from);
        }
    }
}

/// Whether a TCP connection from the namespace opens within [`PROBE`] and echoes a word.
pub fn tcp_reaches(namespace: &Namespace, to: SocketAddr) -> bool {
    namespace.run(|| tcp_open(to).is_ok_and(|mut stream| tcp_echoes(&mut stream)))
}

/// Opens a TCP connection within [`PROBE`], from the namespace of the calling thread.
///
/// # Errors
/// It does not open in time.
pub fn tcp_open(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PROBE)?;
    stream.set_read_timeout(Some(PROBE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether an open connection to an [`Echo`] answers within [`PROBE`].
pub fn tcp_echoes(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 7];
    stream.write_all(b"ravelin").is_ok() && stream.read_exact(&mut answer).is_ok() && answer == *b"ravelin"
}

/// Both ends of a TCP connection that the client opened; reads give up after [`PROBE`].
///
/// # Errors
/// It does not open.
pub fn tcp_pair(client: &Namespace, server: &Namespace, at: SocketAddr) -> Result<(TcpStream, TcpStream)> {
    let listener = server
        .run(|| TcpListener::bind(at))
        .with_context(|| format!("listening on {at} in {}", server.name()))?;
    let near = client
        .run(|| tcp_open(at))
        .with_context(|| format!("opening a connection to {at} from {}", client.name()))?;
    let (far, _) = listener.accept().context("accepting")?;
    far.set_read_timeout(Some(PROBE))?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

/// Whether what one end of a connection says is heard at the other within [`PROBE`].
pub fn tcp_hears(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    let mut heard = [0; 7];
    from.write_all(b"ravelin").is_ok() && to.read_exact(&mut heard).is_ok() && heard == *b"ravelin"
}

/// Two UDP sockets of which the client sent the first datagram. The client's is connected if that is asked for; the
/// server's is connected to where that datagram came from, which may be an address translated on the way.
///
/// # Errors
/// The datagram does not arrive.
pub fn udp_pair(
    client: &Namespace,
    server: &Namespace,
    at: SocketAddr,
    connected: bool,
) -> Result<(UdpSocket, UdpSocket)> {
    let far = server
        .run(|| UdpSocket::bind(at))
        .with_context(|| format!("listening on {at} in {}", server.name()))?;
    far.set_read_timeout(Some(PROBE))?;
    let near = client.run(|| UdpSocket::bind(unspecified(at)))?;
    near.set_read_timeout(Some(PROBE))?;
    near.send_to(b"hello", at)?;
    if connected {
        near.connect(at)?;
    }
    let (_, from) = far
        .recv_from(&mut [0; 16])
        .with_context(|| format!("a datagram from {} to {at}", client.name()))?;
    far.connect(from)?;
    Ok((near, far))
}

/// Whether a datagram sent from a connected socket is heard at the other within [`PROBE`].
pub fn udp_hears(from: &UdpSocket, to: &UdpSocket) -> bool {
    let mut heard = [0; 16];
    // What came late, for an earlier question, is none of it.
    while to.set_nonblocking(true).is_ok() && to.recv(&mut heard).is_ok() {}
    let _ = to.set_nonblocking(false);
    from.send(b"ravelin").is_ok()
        && to
            .recv(&mut heard)
            .is_ok_and(|length| heard[..length] == *b"ravelin")
}

/// Whether a UDP datagram from the namespace is echoed within [`PROBE`].
pub fn udp_reaches(namespace: &Namespace, to: SocketAddr) -> bool {
    udp_reaches_with(namespace, to, 7)
}

/// [`udp_reaches`] with so many bytes of payload, unfragmented if the link takes them.
pub fn udp_reaches_with(namespace: &Namespace, to: SocketAddr, length: usize) -> bool {
    namespace.run(|| {
        let attempt = || -> std::io::Result<bool> {
            let socket = UdpSocket::bind(unspecified(to))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PROBE))?;
            let word: Vec<u8> = (0..length).map(|index| index as u8).collect();
            socket.send(&word)?;
            let mut answer = vec![0; length + 1];
            let received = socket.recv(&mut answer)?;
            Ok(answer[..received] == word)
        };
        attempt().unwrap_or(false)
    })
}

/// Runs probes side by side: one that fails takes [`PROBE`] to say so.
pub fn at_once<const N: usize>(probes: [&(dyn Fn() -> bool + Sync); N]) -> [bool; N] {
    std::thread::scope(|scope| {
        probes.map(|probe| scope.spawn(probe)).map(|probe| {
            probe
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// Whether a ping from the namespace is answered within [`PROBE`].
pub fn ping_reaches(namespace: &Namespace, to: IpAddr) -> bool {
    namespace.run(|| ping(to).unwrap_or(false))
}

/// The identifier in the echo requests of [`ping_reaches`].
pub fn ping_id() -> u16 {
    std::process::id() as u16
}

fn ping(to: IpAddr) -> Result<bool> {
    const WORD: &[u8; 8] = b"ravelin!";
    let identifier = ping_id();
    let (request, reply, header) = if to.is_ipv4() { (8, 0, 20) } else { (128, 129, 0) };
    let mut message = vec![request, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend([0, 1]);
    message.extend(WORD);
    if to.is_ipv4() {
        let sum = crate::frame::checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let socket = socket::socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    socket::setsockopt(&socket, socket::sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000))?;
    match to {
        IpAddr::V4(ip) => {
            let to = SockaddrIn::from(std::net::SocketAddrV4::new(ip, 0));
            socket::sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty())?;
        }
        IpAddr::V6(ip) => {
            let to = SockaddrIn6::from(std::net::SocketAddrV6::new(ip, 0, 0, 0));
            socket::sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty())?;
        }
    }
    let start = Instant::now();
    let mut buffer = [0; 2048];
    while start.elapsed() < PROBE {
        let Ok(length) = socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) else {
            continue;
        };
        let Some(answer) = buffer[..length].get(header..) else {
            continue;
        };
        if answer.first() == Some(&reply) && answer.get(4..6) == Some(&identifier.to_be_bytes()) {
            return Ok(answer.ends_with(WORD));
        }
    }
    Ok(false)
}

/// Numbered datagrams at a steady rate from a namespace, until stopped.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Stream {
    /// Sends to `to`, this many a second.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(namespace: &Namespace, to: SocketAddr, per_second: u32) -> Result<Stream> {
        let socket = namespace.run(|| -> Result<UdpSocket> {
            let socket = UdpSocket::bind(unspecified(to))?;
            socket.connect(to).with_context(|| format!("no route to {to}"))?;
            Ok(socket)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            let period = Duration::from_secs(1) / per_second;
            move || {
                let start = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let number = sent.load(Ordering::Relaxed);
                    match socket.send(&number.to_be_bytes()) {
                        Ok(_) => sent.store(number + 1, Ordering::Relaxed),
                        // An ICMP error about an earlier datagram: this one was not sent.
                        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                        Err(error) => return Err(error).context("sending"),
                    }
                    let due = period.saturating_mul(u32::try_from(number + 1).unwrap_or(u32::MAX));
                    std::thread::sleep(due.saturating_sub(start.elapsed()));
                }
                Ok(())
            }
        });
        Ok(Stream { stop, sent, thread })
    }

    /// Datagrams sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until this many more are sent.
    pub fn advance(&self, datagrams: u64) {
        let goal = self.sent() + datagrams;
        crate::wait::until(&format!("{datagrams} more datagrams to be sent"), || {
            match self.sent() {
                sent if sent >= goal => Ok(()),
                sent => Err(format!("{sent} of {goal} sent")),
            }
        });
    }

    /// Stops, and gives how many were sent.
    ///
    /// # Errors
    /// Sending failed.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

/// Receives the numbered datagrams of one [`Stream`] and notes the time between them.
#[derive(Debug)]
pub struct Sink {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    thread: JoinHandle<Received>,
}

/// What a [`Sink`] saw.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// Datagrams, each number once.
    pub count: u64,
    pub duplicates: u64,
    /// Numbers that never came, below the highest one seen, at most a hundred of them.
    pub missing: Vec<u64>,
    /// The longest time between two datagrams.
    pub longest_gap: Duration,
    /// From the first datagram to the last.
    pub span: Duration,
}

impl Sink {
    /// Listens on the address in the namespace.
    ///
    /// # Errors
    /// The address is taken, or not there.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Sink> {
        let server = namespace
            .run(|| UdpSocket::bind(address))
            .with_context(|| format!("listening on {address} in {}", namespace.name()))?;
        // So that a pause of this thread never loses a datagram: what is missing then was dropped by the firewall.
        socket::setsockopt(&server, socket::sockopt::RcvBufForce, &(16 << 20))
            .context("enlarging the buffer")?;
        server.set_read_timeout(Some(POLL))?;
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let (stop, received) = (Arc::clone(&stop), Arc::clone(&received));
            move || receive(&server, &stop, &received)
        });
        Ok(Sink {
            stop,
            received,
            thread,
        })
    }

    /// Datagrams received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Waits until `sent` have come or no more comes, then stops.
    ///
    /// # Errors
    /// The receiver panicked.
    pub fn finish(self, sent: u64) -> Result<Received> {
        let mut last = (self.received(), Instant::now());
        while self.received() < sent && last.1.elapsed() < PROBE {
            if self.received() != last.0 {
                last = (self.received(), Instant::now());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the receiver panicked"))
    }
}

fn receive(server: &UdpSocket, stop: &AtomicBool, received: &AtomicU64) -> Received {
    let mut seen: Vec<bool> = Vec::new();
    let mut outcome = Received::default();
    let mut first: Option<Instant> = None;
    let mut last: Option<Instant> = None;
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        let Ok(length) = server.recv(&mut buffer) else {
            continue;
        };
        let Some(number) = buffer[..length]
            .first_chunk::<8>()
            .map(|bytes| u64::from_be_bytes(*bytes))
        else {
            continue;
        };
        let Ok(index) = usize::try_from(number) else {
            continue;
        };
        let now = Instant::now();
        outcome.longest_gap = outcome
            .longest_gap
            .max(last.map_or(Duration::ZERO, |last| now - last));
        last = Some(now);
        outcome.span = now - *first.get_or_insert(now);
        if seen.len() <= index {
            seen.resize(index + 1, false);
        }
        if std::mem::replace(&mut seen[index], true) {
            outcome.duplicates += 1;
        } else {
            outcome.count += 1;
            received.store(outcome.count, Ordering::Relaxed);
        }
    }
    let missing = seen.iter().enumerate().filter(|(_, there)| !**there);
    outcome.missing = missing.map(|(index, _)| index as u64).take(100).collect();
    outcome
}

/// Traffic that has to pass and traffic that must not, at once, to two ports of a node.
#[derive(Debug)]
pub struct Trial {
    allowed: (Stream, Sink),
    denied: (Stream, Sink),
}

/// What came of a [`Trial`].
#[derive(Clone, Debug)]
pub struct Verdicts {
    pub allowed_sent: u64,
    pub allowed: Received,
    pub denied_sent: u64,
    pub denied: Received,
}

impl Trial {
    /// Starts to send: from `friend` to `open`, which has to arrive, and from `stranger` to `shut`, which must not.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub fn start(
        node: &Namespace,
        (friend, open): (&Namespace, SocketAddr),
        (stranger, shut): (&Namespace, SocketAddr),
        per_second: u32,
    ) -> Result<Trial> {
        let (open_sink, shut_sink) = (Sink::start(node, open)?, Sink::start(node, shut)?);
        let trial = Trial {
            allowed: (Stream::start(friend, open, per_second)?, open_sink),
            denied: (Stream::start(stranger, shut, per_second)?, shut_sink),
        };
        trial.advance(u64::from(per_second / 20).max(1));
        Ok(trial)
    }

    /// Waits until this many more datagrams are sent on both sides.
    pub fn advance(&self, datagrams: u64) {
        self.allowed.0.advance(datagrams);
        self.denied.0.advance(datagrams);
    }

    /// Stops sending and accounts for every datagram.
    ///
    /// # Errors
    /// A thread failed.
    pub fn finish(self) -> Result<Verdicts> {
        let (allowed_sent, denied_sent) = (self.allowed.0.stop()?, self.denied.0.stop()?);
        Ok(Verdicts {
            allowed: self.allowed.1.finish(allowed_sent)?,
            denied: self.denied.1.finish(denied_sent)?,
            allowed_sent,
            denied_sent,
        })
    }
}

impl Verdicts {
    /// # Errors
    /// A wrong verdict, in either direction.
    pub fn all_right(&self) -> Result<()> {
        ensure!(
            self.denied.count == 0,
            "{} of {} denied datagrams came in",
            self.denied.count,
            self.denied_sent
        );
        ensure!(
            self.allowed.count == self.allowed_sent,
            "{} of {} allowed datagrams were lost, numbers {:?}",
            self.allowed_sent - self.allowed.count,
            self.allowed_sent,
            self.allowed.missing
        );
        Ok(())
    }
}

/// The unspecified address of the same family, any port.
fn unspecified(like: SocketAddr) -> SocketAddr {
    match like {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
    }
}
