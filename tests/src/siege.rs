//! A server under attack: nginx and an echo server behind a filter, honest clients, and attackers that take all that the
//! processors have left.
//!
//! One link. The far end of it stands for the internet: honest clients have addresses there, attackers put their packets
//! straight into the link, and a small XDP program, the door, throws away what the server sends to addresses that nobody has. So a
//! server's answer to a forged address costs the server, and nobody else.
//!
//! Each generator has a queue of the link, served by its own processor, so it cannot send more than the server takes. Honest
//! clients have one more: without XDP a veth takes most of what they send past its queues, and to lose their packets where
//! the kernel moves the work of a queue to another processor is a weakness of this place, not of a defence.

use crate::agent::PREFIX;
use crate::bpf::{EXIT, Insn, call, empty_drop, insn, load, mov, mov_imm};
use crate::frame::hardware_address;
use crate::generator::{Attack, Generator, Vary};
use crate::honest::{self, Fared, Held, PAGE, SlowClients};
use crate::kernel::attach_xdp;
use crate::netns::{Namespace, ip};
use crate::packet::{self, ACK, FIN, Piece, RST, SYN, Wire};
use crate::program::{Daemon, fetched, run};
use crate::rotate::End;
use crate::stack::{established, wait_for_port};
use anyhow::{Context, Result, ensure};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const WEB: u16 = 80;
pub const ECHO: u16 = 7000;
/// UDP.
pub const OTHER: u16 = 5300;

/// Requests and echoes a second of the honest client.
pub const HONEST_PER_SECOND: u32 = 100;

/// Who is who, in one family.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub word: &'static str,
    pub server: &'static str,
    /// Next to the server.
    pub gateway: &'static str,
    pub link_len: u8,
    pub everything: &'static str,
    pub client: &'static str,
    /// An allowed address that clients with half a header come from.
    pub slow: &'static str,
    /// First of the allowed sources, and of those denied.
    pub allowed_from: &'static str,
    pub denied_from: &'static str,
}

pub const V4: Family = Family {
    word: "IPv4",
    server: "198.51.100.1",
    gateway: "198.51.100.2",
    link_len: 24,
    everything: "0.0.0.0/0",
    client: "10.77.0.1",
    slow: "10.66.0.1",
    allowed_from: "10.0.0.0",
    denied_from: "172.16.0.0",
};

pub const V6: Family = Family {
    word: "IPv6",
    server: "2001:db8:ff00::1",
    gateway: "2001:db8:ff00::2",
    link_len: 64,
    everything: "::/0",
    client: "2001:db8:77::77",
    slow: "2001:db8:66::66",
    allowed_from: "2001:db8::1",
    denied_from: "3fff::1",
};

/// What policies allow and deny.
pub const ALLOWED: [&str; 2] = ["10.0.0.0/8", "2001:db8::/32"];
pub const DENIED: [&str; 2] = ["172.16.0.0/12", "3fff::/20"];

/// What attackers send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assault {
    /// Nothing.
    Peace,
    /// Packets that are made and never sent: what the generators themselves take away.
    Busy,
    DeniedSyn,
    SpoofedSyn,
    /// From the honest client's own address.
    OwnSyn,
    Ack,
    Rst,
    Fin,
    /// At another service.
    Udp,
    /// First fragments of datagrams to the other service, whose rest never comes.
    Fragments,
    /// 100,000 sources, each slow.
    Trickle,
    /// Connections with half a header.
    SlowHeaders,
}

impl Assault {
    pub const ALL: [Assault; 12] = [
        Assault::Peace,
        Assault::Busy,
        Assault::DeniedSyn,
        Assault::SpoofedSyn,
        Assault::OwnSyn,
        Assault::Ack,
        Assault::Rst,
        Assault::Fin,
        Assault::Udp,
        Assault::Fragments,
        Assault::Trickle,
        Assault::SlowHeaders,
    ];

    pub fn words(self) -> &'static str {
        match self {
            Assault::Peace => "no attack",
            Assault::Busy => "no attack, processors busy",
            Assault::DeniedSyn => "SYNs from denied sources",
            Assault::SpoofedSyn => "SYNs from 16 million forged sources that are allowed",
            Assault::OwnSyn => "SYNs in the honest client's name",
            Assault::Ack => "ACKs from forged sources",
            Assault::Rst => "RSTs from forged sources",
            Assault::Fin => "FINs from forged sources",
            Assault::Udp => "datagrams at another service",
            Assault::Fragments => "first fragments at another service",
            Assault::Trickle => "SYNs from 100,000 slow sources",
            Assault::SlowHeaders => "clients with half a header",
        }
    }

    pub fn is_syn_flood(self) -> bool {
        matches!(self, Assault::DeniedSyn | Assault::SpoofedSyn | Assault::OwnSyn)
    }

    /// Whether the attackers send as fast as they can, so that their packets can be counted against others'.
    pub fn is_flood(self) -> bool {
        !matches!(
            self,
            Assault::Peace | Assault::Busy | Assault::Trickle | Assault::SlowHeaders
        )
    }

    /// A packet of it, and what varies.
    fn packet(self, family: &Family) -> Result<(Vec<u8>, Vary)> {
        const ALLOWED_SOURCES: u32 = 1 << 24;
        const DENIED_SOURCES: u32 = 1 << 20;
        let server: IpAddr = family.server.parse()?;
        let (from, sources) = match self {
            Assault::DeniedSyn => (family.denied_from, DENIED_SOURCES),
            Assault::OwnSyn => (family.client, 1),
            _ => (family.allowed_from, ALLOWED_SOURCES),
        };
        let src = SocketAddr::new(from.parse()?, 40_000);
        let vary = Vary {
            sources,
            ports: true,
            sequence: true,
            fragment: false,
        };
        let tcp = |flags| (packet::tcp(src, SocketAddr::new(server, WEB), flags, 0), vary);
        let datagram = |payload: &[u8]| packet::udp_payload(src, SocketAddr::new(server, OTHER), payload);
        Ok(match self {
            Assault::Ack => tcp(ACK),
            Assault::Rst => tcp(RST),
            Assault::Fin => tcp(FIN | ACK),
            Assault::Udp => (
                packet::ip(src.ip(), server, packet::UDP, &datagram(&[0; 18])),
                Vary {
                    sequence: false,
                    ..vary
                },
            ),
            Assault::Fragments => (
                packet::fragment(
                    src.ip(),
                    server,
                    packet::UDP,
                    Piece {
                        id: 0,
                        offset: 0,
                        more: true,
                    },
                    &datagram(&[0; 24]),
                ),
                Vary {
                    sources,
                    ports: true,
                    sequence: false,
                    fragment: true,
                },
            ),
            _ => (syn(src, SocketAddr::new(server, WEB)), vary),
        })
    }
}

/// A SYN as Linux sends it, with all its options.
pub fn syn(src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    const HEADER_WORDS: u8 = 10;
    let mut segment = [src.port(), dst.port()].map(u16::to_be_bytes).concat();
    segment.extend([0; 8]);
    segment.extend([HEADER_WORDS << 4, SYN, 0xfa, 0xf0, 0, 0, 0, 0]);
    // MSS, SACK permitted, timestamps, window scale.
    segment.extend([2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7]);
    packet::with_checksum(src.ip(), dst.ip(), segment)
}

/// What came of one attack.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub requests: Fared,
    pub held: Held,
    /// Attackers' packets a second that the server's interface took in, whatever became of them.
    pub shed: f64,
    /// What all processors spent in soft interrupts for each of those packets, in nanoseconds, by /proc/stat: there the
    /// server's side of the link runs, while generators run in system time.
    pub shed_ns: f64,
    /// Connections with half a header that the server has at the end.
    pub slow: usize,
}

/// The place.
#[derive(Debug)]
pub struct Siege {
    pub server: Namespace,
    pub outside: Namespace,
    nginx: Option<Daemon>,
    drain: Option<Drain>,
    _door: OwnedFd,
}

impl Siege {
    /// The link and both ends of it, with `net.ipv4.tcp_syncookies` of the server; nobody serves yet.
    ///
    /// # Errors
    /// Needs root and ethtool.
    pub fn new(syncookies: u8) -> Result<Siege> {
        let server = Namespace::unique(PREFIX, "server")?;
        let outside = Namespace::unique(PREFIX, "outside")?;
        let processors = std::thread::available_parallelism()?.get();
        let queues = (processors + 1).to_string();
        ip(&format!(
            "link add name eth0 netns {} numtxqueues {queues} numrxqueues {queues} type veth \
             peer name eth0 netns {} numtxqueues {queues} numrxqueues {queues}",
            server.name(),
            outside.name()
        ))?;
        for namespace in [&server, &outside] {
            for scope in ["all", "eth0"] {
                namespace.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
            }
            // The NAPI that redirected frames need.
            run(namespace, "ethtool", &["-K", "eth0", "gro", "on"])?;
            run(
                namespace,
                "ethtool",
                &["-L", "eth0", "rx", &queues, "tx", &queues],
            )?;
            namespace.ip("link set eth0 up")?;
        }
        let [near, far] = [
            hardware_address(&server, "eth0")?,
            hardware_address(&outside, "eth0")?,
        ]
        .map(|address| address.map(|byte| format!("{byte:02x}")).join(":"));
        for family in [V4, V6] {
            let Family {
                server: own,
                gateway,
                link_len,
                ..
            } = family;
            server.address("eth0", &format!("{own}/{link_len}"))?;
            outside.address("eth0", &format!("{gateway}/{link_len}"))?;
            for address in [family.client, family.slow] {
                outside.address(
                    "eth0",
                    &format!("{address}/{}", if link_len == 64 { 128 } else { 32 }),
                )?;
            }
            server.ip(&format!("route add {} via {gateway} dev eth0", family.everything))?;
            // Nobody asks who has an address while a flood goes on.
            server.ip(&format!(
                "neighbour replace {gateway} lladdr {far} dev eth0 nud permanent"
            ))?;
            outside.ip(&format!(
                "neighbour replace {own} lladdr {near} dev eth0 nud permanent"
            ))?;
        }
        let all = (1_u64 << processors) - 1;
        outside.run(|| serve_queues("eth0", &[(processors, all)]))?;
        let own: Vec<(usize, u64)> = (0..processors).map(|one| (one, 1 << one)).collect();
        server.run(|| serve_queues("eth0", &own))?;
        let door = load(&door()?)?;
        let ifindex = outside.ifindex("eth0")?;
        let door = outside.run(|| attach_xdp(door.as_fd(), ifindex))?;
        let siege = Siege {
            server,
            outside,
            nginx: None,
            drain: None,
            _door: door,
        };
        siege
            .server
            .sysctl("net/ipv4/tcp_syncookies", &syncookies.to_string())?;
        Ok(siege)
    }

    /// Opens the services of the server but nginx, which each attack finds as if it had just been started.
    ///
    /// # Errors
    /// A port is taken.
    pub fn serve(&mut self) -> Result<()> {
        self.drain = Some(Drain::open(&self.server)?);
        honest::serve_echoes(&self.server, ECHO)
    }

    /// Starts nginx anew, so that no half-open connection of an attack before is left.
    ///
    /// # Errors
    /// It does not start.
    fn refresh(&mut self) -> Result<()> {
        self.nginx = None;
        self.nginx = Some(Daemon::start(
            &self.server,
            fetched("RAVELIN_NGINX", "nginx"),
            &["-p", "{dir}", "-c", "{dir}/nginx.conf", "-e", "stderr"],
            &[("nginx.conf", NGINX), ("page", &String::from_utf8_lossy(PAGE))],
        )?);
        wait_for_port(&self.server, "tcp", WEB);
        Ok(())
    }

    /// Lets the attackers go at the server for so long, and measures how the honest client fares from the first packet on.
    ///
    /// # Errors
    /// A part of it does not work: there is no nginx, nobody [serves](Siege::serve). What the server does is no error.
    pub fn suffer(&mut self, assault: Assault, family: &Family, lasting: Duration) -> Result<Outcome> {
        self.refresh()?;
        let (client, server): (IpAddr, IpAddr) = (family.client.parse()?, family.server.parse()?);
        let web = SocketAddr::new(server, WEB);
        let stream = self
            .outside
            .run(|| honest::open(client, SocketAddr::new(server, ECHO)))?;
        let generators = match assault {
            Assault::Peace | Assault::Trickle | Assault::SlowHeaders => Vec::new(),
            _ => self.generators(assault, family)?,
        };
        let requests = self
            .outside
            .spawn(move || urgent(|| honest::requests(client, web, "/page", HONEST_PER_SECOND, lasting)));
        let echoes = self
            .outside
            .spawn(move || urgent(|| honest::echoes(stream, HONEST_PER_SECOND, lasting)));

        let attack = Attack::start(&self.outside, generators)?;
        let trickle = match assault {
            Assault::Trickle => Some(Trickle::start(self, family)?),
            _ => None,
        };
        let slow = match assault {
            Assault::SlowHeaders => Some(SlowClients::start(
                &self.outside,
                family.slow.parse()?,
                web,
                SLOW_CLIENTS,
                SLOW_PER_SECOND,
            )),
            _ => None,
        };
        let begin = (Instant::now(), self.received()?, softirq()?, attack.sent()?);
        std::thread::sleep(lasting);
        let end = (Instant::now(), self.received()?, softirq()?, attack.sent()?);
        let requests = requests
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))??;
        let held = echoes
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))??;
        let open = match &slow {
            Some(_) => established(&self.server, WEB)?,
            None => 0,
        };
        attack.stop()?;
        trickle.map(Trickle::stop).transpose()?;
        slow.map(SlowClients::stop).transpose()?;

        let seconds = (end.0 - begin.0).as_secs_f64();
        // What came in beside was the honest client's, or answers to the server's answers.
        let shed = (end.1 - begin.1).min(end.3 - begin.3);
        Ok(Outcome {
            requests,
            held,
            shed: shed as f64 / seconds,
            shed_ns: (end.2 - begin.2).as_nanos() as f64 / shed.max(1) as f64,
            slow: open,
        })
    }

    /// Of an attack, one for each processor.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn generators(&self, assault: Assault, family: &Family) -> Result<Vec<Generator>> {
        let (packet, vary) = assault.packet(family)?;
        let frame = Wire::open((&self.outside, "eth0"), (&self.server, "eth0"))?.frame(&packet);
        let nowhere = empty_drop()?;
        let end = match assault {
            Assault::Busy => End::Program(nowhere.as_fd()),
            _ => End::Redirect(self.outside.ifindex("eth0")?),
        };
        let processors = std::thread::available_parallelism()?.get() as u64;
        (0..processors)
            .map(|index| Generator::new(&frame, vary, index << 22, &end))
            .collect()
    }

    /// Packets that the server's interface took in.
    fn received(&self) -> Result<u64> {
        let table = self
            .server
            .run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
        table
            .lines()
            .find_map(|line| {
                line.trim()
                    .strip_prefix("eth0:")?
                    .split_whitespace()
                    .nth(1)?
                    .parse()
                    .ok()
            })
            .context("eth0 in net/dev")
    }
}

const SLOW_CLIENTS: usize = 900;
const SLOW_PER_SECOND: u32 = 2000;

const NGINX: &str = "
daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log stderr crit;
events { worker_connections 512; }
http {
    access_log off;
    keepalive_timeout 0;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {
        listen 80;
        listen [::]:80;
        root {dir};
    }
}
";

/// Runs work of a client at real-time priority: it stands for another machine, so it must not wait for this one's processors.
fn urgent<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter is of the type that the call reads.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    ensure!(
        result == 0,
        "real-time priority: {}",
        std::io::Error::last_os_error()
    );
    work()
}

/// Says which processors send by which queues of an interface (XPS), in the namespace of the calling thread.
fn serve_queues(interface: &str, queues: &[(usize, u64)]) -> Result<()> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    // sysfs shows the namespace of who mounts it.
    let place = tempfile::tempdir().context("making a directory for sysfs")?;
    mount(
        Some("sysfs"),
        place.path(),
        Some("sysfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context("mounting sysfs")?;
    let written = queues.iter().try_for_each(|(queue, processors)| {
        let path = place
            .path()
            .join(format!("class/net/{interface}/queues/tx-{queue}/xps_cpus"));
        std::fs::write(&path, format!("{processors:x}"))
            .with_context(|| format!("writing {}", path.display()))
    });
    umount2(place.path(), MntFlags::MNT_DETACH).context("unmounting sysfs")?;
    written
}

/// What both processors have spent in soft interrupts.
fn softirq() -> Result<Duration> {
    /// `USER_HZ`
    const TICK: Duration = Duration::from_millis(10);
    let text = std::fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let ticks: u32 = text
        .lines()
        .next()
        .and_then(|line| line.split_whitespace().nth(7)?.parse().ok())
        .context("the time in soft interrupts in /proc/stat")?;
    Ok(TICK * ticks)
}

/// Passes what is for an honest client, its neighbours and the link; drops the rest. Of SYN-ACKs it passes those that the client
/// asked for: like most clients, this one is behind something that knows its connections, and sends no RST for the others.
fn door() -> Result<Vec<Insn>> {
    const LOAD: u8 = 0x61;
    const LOAD_HALF: u8 = 0x69;
    const LOAD_BYTE: u8 = 0x71;
    const STORE: u8 = 0x63;
    const AND: u8 = 0x57;
    const ADD: u8 = 0x07;
    const IF_EQUAL: u8 = 0x15;
    const IF_NOT_EQUAL: u8 = 0x55;
    const IF_EQUAL_32: u8 = 0x16;
    const IF_GREATER_REGISTER: u8 = 0x2d;
    const JUMP: u8 = 0x05;
    const SKC_LOOKUP_TCP: i32 = 99;
    const SK_RELEASE: i32 = 86;
    const THIS_NAMESPACE: i32 = -1;
    const ICMPV6: i32 = 58;
    const TCP: i32 = 6;
    const SYN_ACK: i32 = 0x12;
    // Places to jump to.
    const PASS: i16 = i16::MAX;
    const DROP: i16 = i16::MAX - 1;
    const IPV6: i16 = i16::MAX - 2;
    const CLIENT: [i16; 2] = [i16::MAX - 3, i16::MAX - 4];
    let word = |text: &str| -> Result<i32> {
        let octets = match text.parse::<IpAddr>()? {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(v6) => [12, 13, 14, 15].map(|at| v6.octets()[at]),
        };
        Ok(i32::from_ne_bytes(octets))
    };
    // 6: context, 7: data, 8: its end.
    let mut code = vec![
        mov(6, 1),
        insn(LOAD, 7, 1, 0, 0),
        insn(LOAD, 8, 1, 4, 0),
        mov(4, 7),
        insn(ADD, 4, 0, 0, 54),
        insn(IF_GREATER_REGISTER, 4, 8, PASS, 0),
        insn(LOAD_HALF, 5, 7, 12, 0),
        insn(IF_EQUAL, 5, 0, IPV6, i32::from(0x86dd_u16.to_be())),
        insn(IF_NOT_EQUAL, 5, 0, PASS, i32::from(0x0800_u16.to_be())),
    ];
    let mut places = Vec::new();
    for (family, [client, slow, gateway], destination, protocol, addresses, ports, size) in [
        (0, [V4.client, V4.slow, V4.gateway], 30, 23, 26..34, 34, 12),
        (1, [V6.client, V6.slow, V6.gateway], 50, 20, 22..54, 54, 36),
    ] {
        if family == 1 {
            places.push((IPV6, code.len()));
            code.extend([
                insn(LOAD_BYTE, 4, 7, protocol, 0),
                insn(IF_EQUAL, 4, 0, PASS, ICMPV6),
            ]);
        }
        code.push(insn(LOAD, 4, 7, destination, 0));
        code.push(insn(IF_EQUAL_32, 4, 0, CLIENT[family], word(client)?));
        for address in [slow, gateway] {
            code.push(insn(IF_EQUAL_32, 4, 0, PASS, word(address)?));
        }
        code.push(insn(JUMP, 0, 0, DROP, 0));

        places.push((CLIENT[family], code.len()));
        code.extend([
            insn(LOAD_BYTE, 4, 7, protocol, 0),
            insn(IF_NOT_EQUAL, 4, 0, PASS, TCP),
            mov(4, 7),
            insn(ADD, 4, 0, 0, i32::from(ports) + 14),
            insn(IF_GREATER_REGISTER, 4, 8, DROP, 0),
            insn(LOAD_BYTE, 4, 7, ports + 13, 0),
            insn(AND, 4, 0, 0, SYN_ACK),
            insn(IF_NOT_EQUAL, 4, 0, PASS, SYN_ACK),
        ]);
        // `struct bpf_sock_tuple`: addresses, then ports, as they stand in the packet.
        let fields = addresses.step_by(4).chain([ports]);
        for (at, field) in (-40_i16..).step_by(4).zip(fields) {
            code.extend([insn(LOAD, 4, 7, field, 0), insn(STORE, 10, 4, at, 0)]);
        }
        code.extend([
            mov(1, 6),
            mov(2, 10),
            insn(ADD, 2, 0, 0, -40),
            mov_imm(3, size),
            mov_imm(4, THIS_NAMESPACE),
            mov_imm(5, 0),
            call(SKC_LOOKUP_TCP),
            insn(IF_EQUAL, 0, 0, DROP, 0),
            mov(1, 0),
            call(SK_RELEASE),
            insn(JUMP, 0, 0, PASS, 0),
        ]);
    }
    places.push((DROP, code.len()));
    code.extend([mov_imm(0, 1), EXIT]);
    places.push((PASS, code.len()));
    code.extend([mov_imm(0, 2), EXIT]);
    for (index, insn) in code.iter_mut().enumerate() {
        if let Some((_, place)) = places.iter().find(|(name, _)| *name == insn.offset) {
            insn.offset = (place - index - 1) as i16;
        }
    }
    Ok(code)
}

/// The other service: takes datagrams and throws them away.
#[derive(Debug)]
struct Drain {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drain {
    fn open(server: &Namespace) -> Result<Drain> {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = [V4.server, V6.server]
            .into_iter()
            .map(|address| {
                let address = SocketAddr::new(address.parse()?, OTHER);
                let socket = server.run(|| UdpSocket::bind(address))?;
                socket.set_read_timeout(Some(Duration::from_millis(100)))?;
                let stop = Arc::clone(&stop);
                Ok(std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let _ = socket.recv(&mut [0; 2048]);
                    }
                }))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Drain { stop, threads })
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Siege {
    fn drop(&mut self) {
        self.nginx = None;
        self.drain = None;
    }
}

/// SYNs at a steady rate, each source in turn.
#[derive(Debug)]
struct Trickle {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Trickle {
    const SOURCES: u32 = 100_000;
    const PER_SECOND: f64 = 20_000.0;

    fn start(siege: &Siege, family: &Family) -> Result<Trickle> {
        let wire = Wire::open((&siege.outside, "eth0"), (&siege.server, "eth0"))?;
        let (first, server): (IpAddr, IpAddr) = (family.allowed_from.parse()?, family.server.parse()?);
        let source = move |number: u32| -> IpAddr {
            let number = number % Trickle::SOURCES;
            match first {
                IpAddr::V4(v4) => (u32::from(v4) + number).to_be_bytes().into(),
                IpAddr::V6(v6) => (u128::from(v6) + (u128::from(number) << 64)).to_be_bytes().into(),
            }
        };
        let stop = Arc::new(AtomicBool::new(false));
        let thread = siege.outside.spawn({
            let stop = Arc::clone(&stop);
            move || {
                let begin = Instant::now();
                let mut sent = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    while f64::from(sent) < begin.elapsed().as_secs_f64() * Trickle::PER_SECOND {
                        let src = SocketAddr::new(source(sent), 1024 + (sent / 7 % 60_000) as u16);
                        wire.send(&syn(src, SocketAddr::new(server, WEB)))?;
                        sent += 1;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            }
        });
        Ok(Trickle { stop, thread })
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the trickle panicked"))?
    }
}

/// Rules of nftables, without state, where it is fastest.
pub fn nftables() -> String {
    stateless("", "")
}

/// [`nftables`] with buckets for each source.
pub fn nftables_per_source() -> String {
    stateless(PER_SOURCE_SETS, PER_SOURCE)
}

/// SYN cookies by nftables, for which `nf_conntrack_tcp_loose` has to be off.
pub fn nftables_synproxy() -> &'static str {
    SYNPROXY
}

fn stateless(sets: &str, limits: &str) -> String {
    format!(
        "table netdev siege {{
{sets}
chain in {{
type filter hook ingress device eth0 priority 0; policy drop;
ether type arp accept
icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert }} accept
ip saddr 172.16.0.0/12 drop
ip6 saddr 3fff::/20 drop
{limits}
ip saddr 10.0.0.0/8 tcp dport {{ {WEB}, {ECHO} }} accept
ip6 saddr 2001:db8::/32 tcp dport {{ {WEB}, {ECHO} }} accept
ip saddr 10.0.0.0/8 udp dport {OTHER} accept
ip6 saddr 2001:db8::/32 udp dport {OTHER} accept
}}
}}
"
    )
}

const PER_SOURCE_SETS: &str = "\
set new4 { type ipv4_addr; size 65535; flags dynamic,timeout; timeout 10s; }
set new6 { type ipv6_addr; size 65535; flags dynamic,timeout; timeout 10s; }
set all4 { type ipv4_addr; size 65535; flags dynamic,timeout; timeout 10s; }
set all6 { type ipv6_addr; size 65535; flags dynamic,timeout; timeout 10s; }
";

const PER_SOURCE: &str = "\
ip protocol tcp tcp flags & (fin|syn|rst|ack) == syn update @new4 { ip saddr limit rate over 200/second burst 400 packets } drop
meta l4proto tcp tcp flags & (fin|syn|rst|ack) == syn update @new6 { ip6 saddr & ffff:ffff:ffff:ffff:: limit rate over 200/second burst 400 packets } drop
update @all4 { ip saddr limit rate over 5000/second burst 5000 packets } drop
update @all6 { ip6 saddr & ffff:ffff:ffff:ffff:: limit rate over 5000/second burst 5000 packets } drop
";

const SYNPROXY: &str = "\
table inet siege {
chain before {
type filter hook prerouting priority raw; policy accept;
ip saddr 172.16.0.0/12 drop
ip6 saddr 3fff::/20 drop
tcp dport { 80, 7000 } tcp flags & (fin|syn|rst|ack) == syn notrack
}
chain in {
type filter hook input priority filter; policy drop;
meta l4proto icmpv6 accept
tcp dport { 80, 7000 } ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
ct state invalid drop
ip saddr 10.0.0.0/8 tcp dport { 80, 7000 } accept
ip6 saddr 2001:db8::/32 tcp dport { 80, 7000 } accept
ip saddr 10.0.0.0/8 udp dport 5300 accept
ip6 saddr 2001:db8::/32 udp dport 5300 accept
}
}
";
