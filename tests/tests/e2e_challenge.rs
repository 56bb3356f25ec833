//! Challenges: who exceeds what a service bears proves its address by a SYN cookie, answered from XDP.

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ravelin_tests::frame::{self, QINQ, VLAN, checksum};
use ravelin_tests::lab::{FRIEND, FRIEND6, INTERFACES, NODE, NODE6};
use ravelin_tests::packet::{self, ACK, SYN, TCP, Wire};
use ravelin_tests::program::{self, nft};
use ravelin_tests::traffic;
use ravelin_tests::tun::{Kind, Tun};
use ravelin_tests::{Agent, Lab, Namespace, wait};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

const PORT: u16 = 8080;
/// Unproven SYNs may take half of this; the rest is for the proven, and lasts a test.
const POLICY: &str = "version = 1
[[service]]
name = \"web\"
ports = [\"tcp/8080\"]
allow = [\"192.0.2.0/24\", \"2001:db8:1::/64\", \"203.0.113.0/24\", \"2001:db8:9::/64\"]
[service.limits]
new_connections = { total = \"3/h\", total_burst = 60 }
on_excess = \"challenge\"
";
/// What the kernel says of a connection's options in `TCP_INFO`: timestamps, SACK, window scale.
const ALL_OPTIONS: u8 = 7;

/// A listener with this much room in its queues.
fn listen(namespace: &Namespace, at: SocketAddr, backlog: i32) -> Result<TcpListener> {
    let listener = namespace.run(|| TcpListener::bind(at)).context("listening")?;
    // SAFETY: listen() takes no pointers; on a listener it changes the backlog.
    let result = unsafe { libc::listen(listener.as_raw_fd(), backlog) };
    ensure!(result == 0, "listening with a backlog of {backlog}");
    Ok(listener)
}

/// The next connection, which must come in time.
fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(wait::PATIENCE).context("a timeout")?;
    ensure!(poll(&mut waiting, timeout)? == 1, "no connection came");
    let (stream, _) = listener.accept().context("accepting")?;
    stream.set_read_timeout(Some(wait::PATIENCE))?;
    Ok(stream)
}

/// Options of a connection, and the window scale of its peer.
fn options(stream: &TcpStream) -> Result<(u8, u8)> {
    let mut info = [0u8; 104];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes `length` bytes at most into the array.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    ensure!(result == 0, "reading TCP_INFO");
    // `tcpi_options`, then two scales of four bits.
    Ok((info[5] & ALL_OPTIONS, info[6] & 15))
}

/// A client connects and data goes both ways; the options at both ends.
fn exchange(client: &Namespace, listener: &TcpListener, to: SocketAddr) -> Result<[(u8, u8); 2]> {
    const BYTES: usize = 1 << 20;
    let mut near = client
        .run(|| TcpStream::connect_timeout(&to, wait::PATIENCE))
        .with_context(|| format!("connecting to {to}"))?;
    near.set_read_timeout(Some(wait::PATIENCE))?;
    let mut far = accept(listener)?;
    let told = [options(&near)?, options(&far)?];
    let served = std::thread::spawn(move || -> Result<usize> {
        let mut asked = Vec::new();
        far.read_to_end(&mut asked)?;
        far.write_all(&asked)?;
        Ok(asked.len())
    });
    near.write_all(&vec![7; BYTES])?;
    near.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    near.read_to_end(&mut answer)?;
    let asked = served.join().expect("the server")?;
    ensure!(
        (asked, answer.len()) == (BYTES, BYTES),
        "{asked} and {} bytes",
        answer.len()
    );
    Ok(told)
}

/// A counter of `/proc/net/netstat`.
fn netstat(namespace: &Namespace, name: &str) -> Result<u64> {
    let text = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat"))?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let mut both = names.split(' ').zip(values.split(' '));
    let (_, value) = both.find(|(one, _)| *one == name).context("no such counter")?;
    Ok(value.parse()?)
}

/// Handshakes that the node remembers.
fn half_open(node: &Namespace) -> Result<usize> {
    let listed = program::run(node, "ss", &["-Htn", "state", "syn-recv"])?;
    Ok(listed.lines().count())
}

fn challenged(agent: &Agent) -> Result<u64> {
    Ok(agent.counts()?.of("web", "drop", "challenged"))
}

/// A SYN of the kind that Linux sends.
fn syn(src: SocketAddr, dst: SocketAddr, sequence: u32) -> Vec<u8> {
    segment(src, dst, SYN, (sequence, 0), LINUX, b"")
}

const LINUX: &[u8] = &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 1, 2, 3, 0, 0, 0, 0, 1, 3, 3, 10];

/// A TCP segment without its IP header.
fn segment(
    src: SocketAddr,
    dst: SocketAddr,
    flags: u8,
    (sequence, acknowledged): (u32, u32),
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = [src.port(), dst.port()].map(u16::to_be_bytes).concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([
        (((20 + options.len()) / 4) << 4) as u8,
        flags,
        0x40,
        0,
        0,
        0,
        0,
        0,
    ]);
    segment.extend(options);
    segment.extend(payload);
    let sum = checksum(&pseudo(src.ip(), dst.ip(), &segment));
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// A segment behind its pseudo header.
fn pseudo(src: IpAddr, dst: IpAddr, segment: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [src, dst] {
        match address {
            IpAddr::V4(v4) => bytes.extend(v4.octets()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
    }
    bytes.extend((segment.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, TCP]);
    bytes.extend(segment);
    bytes
}

/// Sources that are nobody's, of the friend's networks.
fn nobody(v6: bool, number: u16) -> SocketAddr {
    let last = 100 + number % 100;
    let ip = match v6 {
        false => IpAddr::from(Ipv4Addr::new(192, 0, 2, last as u8)),
        true => IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, last)),
    };
    SocketAddr::new(ip, 20_000 + number)
}

/// Waits until the agent knows what it has to know for that.
fn wait_ready(agent: &Agent) {
    wait::until("challenges", || match agent.log() {
        log if log.contains("challenges can be given") => Ok(()),
        log => Err(log),
    });
}

/// Floods with SYNs of nobody until one is challenged.
fn start_challenge(agent: &Agent, wire: &Wire, to: SocketAddr) -> Result<()> {
    let before = challenged(agent)?;
    let mut number = 0;
    wait::until("a challenge", || -> Result<()> {
        for _ in 0..20 {
            number += 1;
            let from = nobody(to.is_ipv6(), number);
            wire.send(&packet::ip(from.ip(), to.ip(), TCP, &syn(from, to, 7)))?;
        }
        ensure!(challenged(agent)? > before, "not yet: {}", agent.log());
        Ok(())
    });
    Ok(())
}

/// A node whose friend takes what XDP sends back, with these settings, and an agent.
fn stage(syncookies: &str, timestamps: &str, flags: &[&str], policy: &str) -> Result<(Lab, Agent)> {
    let lab = Lab::new()?;
    program::run(&lab.friend, "ethtool", &["-K", "eth0", "gro", "on"])?;
    lab.node.sysctl("net/ipv4/tcp_syncookies", syncookies)?;
    lab.node.sysctl("net/ipv4/tcp_timestamps", timestamps)?;
    let agent = lab.agent_with(policy, flags)?;
    Ok((lab, agent))
}

/// Clients that are challenged connect, in both families.
fn clients_connect(syncookies: &str, timestamps: &str, flags: &[&str], mode: &str) -> Result<()> {
    let (lab, agent) = stage(syncookies, timestamps, flags, POLICY)?;
    let status = agent.status()?;
    assert_eq!(status.interfaces[0].mode, mode, "{status:?}");
    wait_ready(&agent);
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, INTERFACES[0]))?;
    for address in [IpAddr::from(NODE), IpAddr::from(NODE6)] {
        let to = SocketAddr::new(address, PORT);
        let listener = listen(&lab.node, to, 4)?;
        let cookies = netstat(&lab.node, "SyncookiesRecv")?;
        start_challenge(&agent, &wire, to)?;
        // The kernel's own cookies, while its queue was full before the limit was reached.
        let sent = netstat(&lab.node, "SyncookiesSent")?;
        let told = exchange(&lab.friend, &listener, to)?;
        assert_eq!(netstat(&lab.node, "SyncookiesRecv")?, cookies + 1, "{to}");
        assert_eq!(
            netstat(&lab.node, "SyncookiesSent")?,
            sent,
            "the kernel did not answer"
        );
        let [(near, _), (far, _)] = told;
        let expected = if timestamps == "2" { ALL_OPTIONS } else { 0 };
        assert_eq!((near, far), (expected, expected), "{told:?}");
        if expected != 0 {
            // Each side knows the scale of the other as that one chose it.
            let plain = SocketAddr::new(address, PORT + 1);
            let listener = listen(&lab.friend, SocketAddr::new(friend(address), PORT + 1), 4)?;
            let (other, usual) = (plain, listener.local_addr()?);
            let direct = lab
                .node
                .run(|| TcpStream::connect_timeout(&usual, wait::PATIENCE));
            let direct = direct.with_context(|| format!("from {other}"))?;
            let theirs = options(&accept(&listener)?)?.1;
            assert_eq!(told.map(|(_, scale)| scale), [theirs, options(&direct)?.1]);
        }
        // Of those who do not answer nothing stays.
        let before = half_open(&lab.node)?;
        let count = challenged(&agent)?;
        for number in 0..200 {
            let from = nobody(to.is_ipv6(), 1000 + number);
            wire.send(&packet::ip(from.ip(), to.ip(), TCP, &syn(from, to, 7)))?;
        }
        wait::until("answers to all", || match challenged(&agent) {
            Ok(now) if now >= count + 200 => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let after = half_open(&lab.node)?;
        assert!(after <= before, "{after} half open, {before} before");
    }
    Ok(())
}

fn friend(node: IpAddr) -> IpAddr {
    match node {
        IpAddr::V4(_) => FRIEND.into(),
        IpAddr::V6(_) => FRIEND6.into(),
    }
}

#[test]
fn challenged_clients_connect_with_all_options_where_timestamps_carry_them() -> Result<()> {
    clients_connect("2", "2", &[], "native")
}

#[test]
fn challenged_clients_connect_without_options_where_timestamps_carry_none() -> Result<()> {
    clients_connect("2", "1", &["--without", "native"], "generic")
}

#[test]
fn a_challenge_begins_when_the_queue_is_full_where_the_kernel_waits_for_that() -> Result<()> {
    clients_connect("1", "1", &[], "native")
}

#[test]
fn the_same_in_generic_mode() -> Result<()> {
    clients_connect("1", "2", &["--without", "native"], "generic")
}

/// The node's address on a TAP device, and a peer there that is the test.
const TAP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const TAP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1);
const PEER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 2);
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// An answer, taken apart and checked.
#[derive(Debug)]
struct Answer {
    tags: Vec<u8>,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
}

/// A segment of the node to a port of the peer. `None`: it is something else.
fn answer_of(frame: &[u8], node_mac: [u8; 6], port: u16) -> Option<Answer> {
    let mut at = 12;
    let kind = loop {
        let kind = u16::from_be_bytes([frame[at], frame[at + 1]]);
        if kind != VLAN && kind != QINQ {
            break kind;
        }
        at += 4;
    };
    let tags = frame[12..at].to_vec();
    let rest = &frame[at + 2..];
    let (src, dst, segment): (IpAddr, IpAddr, &[u8]) = match kind {
        frame::IPV4 if rest[9] == TCP => {
            let length = u16::from_be_bytes([rest[2], rest[3]]) as usize;
            assert_eq!((rest[0], checksum(&rest[..20])), (0x45, 0), "{frame:02x?}");
            let address = |at: usize| Ipv4Addr::new(rest[at], rest[at + 1], rest[at + 2], rest[at + 3]);
            (address(12).into(), address(16).into(), &rest[20..length])
        }
        frame::IPV6 if rest[6] == TCP => {
            let length = u16::from_be_bytes([rest[4], rest[5]]) as usize;
            let address = |at: usize| {
                let bytes: [u8; 16] = rest[at..at + 16].try_into().expect("16 bytes");
                Ipv6Addr::from(bytes)
            };
            (address(8).into(), address(24).into(), &rest[40..40 + length])
        }
        _ => return None,
    };
    if u16::from_be_bytes([segment[2], segment[3]]) != port {
        return None;
    }
    assert_eq!((&frame[..6], &frame[6..12]), (&PEER_MAC[..], &node_mac[..]));
    let both = [(TAP.into(), PEER.into()), (TAP6.into(), PEER6.into())];
    assert!(both.contains(&(src, dst)), "{src} to {dst}");
    assert_eq!(checksum(&pseudo(src, dst, segment)), 0, "{segment:02x?}");
    let word = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().expect("4 bytes"));
    let header = (segment[12] >> 4) as usize * 4;
    Some(Answer {
        tags,
        sequence: word(4),
        acknowledged: word(8),
        flags: segment[13],
        options: segment[20..header].to_vec(),
        payload: segment[header..].to_vec(),
    })
}

/// One form of frame that a SYN comes in.
struct Form {
    what: &'static str,
    tags: &'static [(u16, u16)],
    v6: bool,
    /// IPv4 options, or IPv6 extension headers with the number of the first.
    options: &'static [u8],
    first: u8,
}

/// Hop-by-hop options of nothing but padding, and destination options with one that Linux skips.
const EXTENSIONS: &[u8] = &[
    60, 0, 1, 4, 0, 0, 0, 0, TCP, 1, 30, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

const FORMS: [Form; 7] = [
    Form {
        what: "IPv4",
        tags: &[],
        v6: false,
        options: &[],
        first: TCP,
    },
    Form {
        what: "IPv6",
        tags: &[],
        v6: true,
        options: &[],
        first: TCP,
    },
    Form {
        what: "options",
        tags: &[],
        v6: false,
        options: &[148, 4, 0, 0, 1, 1, 1, 0],
        first: TCP,
    },
    Form {
        what: "extension headers",
        tags: &[],
        v6: true,
        options: EXTENSIONS,
        first: 0,
    },
    Form {
        what: "a tag",
        tags: &[(VLAN, 0x2009)],
        v6: false,
        options: &[],
        first: TCP,
    },
    Form {
        what: "two tags",
        tags: &[(QINQ, 9), (VLAN, 10)],
        v6: true,
        options: &[],
        first: TCP,
    },
    Form {
        what: "all of it",
        tags: &[(VLAN, 9), (VLAN, 10)],
        v6: true,
        options: EXTENSIONS,
        first: 0,
    },
];

impl Form {
    fn frame(&self, node_mac: [u8; 6], segment: &[u8]) -> Vec<u8> {
        let (kind, packet) = match self.v6 {
            false => (frame::IPV4, frame::ipv4(PEER, TAP, TCP, self.options, segment)),
            true => (
                frame::IPV6,
                frame::ipv6(PEER6, TAP6, self.first, &[self.options, segment].concat()),
            ),
        };
        frame::ethernet(node_mac, PEER_MAC, self.tags, kind, &packet)
    }
}

fn every_form_is_answered(flags: &[&str]) -> Result<()> {
    let lab = Lab::new()?;
    lab.node.sysctl("net/ipv4/tcp_syncookies", "2")?;
    lab.node.sysctl("net/ipv4/tcp_timestamps", "2")?;
    let tap = Tun::new(&lab.node, "tap0", Kind::Tap)?;
    lab.node.address("tap0", &format!("{TAP}/24"))?;
    lab.node.address("tap0", &format!("{TAP6}/64"))?;
    for peer in [PEER.to_string(), PEER6.to_string()] {
        lab.node
            .ip(&format!("neigh add {peer} lladdr 02:00:00:00:00:09 dev tap0"))?;
    }
    let node_mac = frame::hardware_address(&lab.node, "tap0")?;
    let agent = Agent::start_with(&lab.node, &["tap0"], POLICY, flags)?;
    wait_ready(&agent);
    // One listener for both families, and for any address.
    let listener = listen(&lab.node, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT), 16)?;
    let ends = |form: &Form, port: u16| match form.v6 {
        false => (
            SocketAddr::new(PEER.into(), port),
            SocketAddr::new(TAP.into(), PORT),
        ),
        true => (
            SocketAddr::new(PEER6.into(), port),
            SocketAddr::new(TAP6.into(), PORT),
        ),
    };
    wait::until("a challenge", || -> Result<()> {
        for port in 40_000..40_040 {
            let (src, dst) = ends(&FORMS[0], port);
            tap.send(&FORMS[0].frame(node_mac, &syn(src, dst, 7)))?;
        }
        ensure!(challenged(&agent)? > 0, "not yet: {}", agent.log());
        Ok(())
    });

    for (port, form) in (50_000..).step_by(10).zip(&FORMS) {
        let what = form.what;
        let (src, dst) = ends(form, port);
        let asked = 0x0102_0300 + u32::from(port);
        tap.send(&form.frame(node_mac, &syn(src, dst, asked)))?;
        let mut answer = None;
        tap.receive(|frame| {
            answer = answer_of(frame, node_mac, port);
            answer.is_some()
        })
        .context(what)?;
        let answer = answer.context(what)?;
        let tags: Vec<u8> = form
            .tags
            .iter()
            .flat_map(|(tag, control)| [tag.to_be_bytes(), control.to_be_bytes()].concat())
            .collect();
        assert_eq!(
            (answer.flags, answer.acknowledged),
            (SYN | ACK, asked + 1),
            "{what}"
        );
        assert_eq!((answer.tags, answer.payload), (tags, vec![]), "{what}");
        // MSS, SACK and timestamps with the peer's own one echoed, window scale.
        let mss = if form.v6 { [5, 0xa0] } else { [5, 0xb4] };
        let options = &answer.options;
        assert_eq!(
            options[..8],
            [&[2, 4], &mss[..], &[4, 2, 8, 10]].concat(),
            "{what}"
        );
        assert_eq!(options[12..19], [0, 1, 2, 3, 1, 3, 3], "{what}");
        // The low bits of the timestamp carry the peer's window scale and SACK.
        assert_eq!(options[11] & 0x3f, 10 | 0x10, "{what}");
        if !form.tags.is_empty() {
            continue;
        }

        // A forged acknowledgement ends as what it is.
        let stamps = [&[1, 1, 8, 10, 0, 1, 2, 4][..], &options[8..12]].concat();
        let forged = segment(
            src,
            dst,
            ACK,
            (asked + 1, answer.sequence + 0x4_0001),
            &stamps,
            b"",
        );
        agent.expect(("web", "drop", "no-connection"), 1, || {
            tap.send(&form.frame(node_mac, &forged))
        })?;
        // The right one opens a connection, on which data goes both ways.
        let right = segment(
            src,
            dst,
            ACK,
            (asked + 1, answer.sequence + 1),
            &stamps,
            b"ravelin",
        );
        tap.send(&form.frame(node_mac, &right))?;
        let seen = || -> Result<String> {
            let cookies = ["SyncookiesRecv", "SyncookiesFailed"].map(|name| netstat(&lab.node, name));
            Ok(format!("{what}: {:?}, cookies {cookies:?}", agent.counts()?))
        };
        let mut stream = accept(&listener).with_context(|| format!("{:?}", seen()))?;
        assert_eq!(options_of(&stream)?, ALL_OPTIONS, "{what}");
        let mut heard = [0; 7];
        stream.read_exact(&mut heard)?;
        assert_eq!(&heard, b"ravelin", "{what}");
        stream.write_all(b"leviathan")?;
        tap.receive(|frame| {
            answer_of(frame, node_mac, port).is_some_and(|answer| answer.payload == b"leviathan")
        })
        .context(what)?;
    }
    Ok(())
}

fn options_of(stream: &TcpStream) -> Result<u8> {
    Ok(options(stream)?.0)
}

#[test]
fn a_syn_is_answered_in_every_form_of_frame() -> Result<()> {
    every_form_is_answered(&[])
}

#[test]
fn a_syn_is_answered_in_every_form_of_frame_in_generic_mode() -> Result<()> {
    every_form_is_answered(&["--without", "native"])
}

#[test]
fn a_challenge_is_told_when_it_begins_and_ends_by_itself() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("agent.toml");
    std::fs::write(&config, "[limits]\nquiet = \"3s\"\n")?;
    let (lab, agent) = stage("2", "1", &["--config", &config.to_string_lossy()], POLICY)?;
    wait_ready(&agent);
    let to = SocketAddr::new(NODE.into(), PORT);
    let _listener = listen(&lab.node, to, 128)?;
    let metric = |name: &str| agent.metric(&lab.node, name, &[("service", "web")]);
    assert_eq!(metric("ravelin_challenge_active")?, 0.0);
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, INTERFACES[0]))?;
    start_challenge(&agent, &wire, to)?;
    let told = |what: &str| {
        wait::until(what, || match agent.log() {
            log if log.contains(what) => Ok(()),
            log => Err(log),
        });
    };
    told("challenge of web started");
    told("challenge of web ended");
    assert_eq!(metric("ravelin_challenge_active")?, 0.0);
    assert!(metric("ravelin_challenges_started_total")? >= 1.0);
    Ok(())
}

/// What cannot be challenged drops, and the status and `ravelin doctor` say why.
fn excess_drops(stage: (Lab, Agent), words: &[&str]) -> Result<()> {
    let (lab, agent) = stage;
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, INTERFACES[0]))?;
    let to = SocketAddr::new(NODE.into(), PORT);
    let _listener = listen(&lab.node, to, 128)?;
    wait::until("the status to say why", || -> Result<()> {
        let status = agent.status()?;
        let told = |word: &&str| status.degraded.iter().any(|sentence| sentence.contains(word));
        ensure!(words.iter().all(told), "{:?}", status.degraded);
        Ok(())
    });
    let doctor = lab.node.run(|| agent.cli(&["doctor"]))?;
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    for word in words {
        assert!(doctor.contains(word), "{word}: {doctor}");
    }
    let excess = || Ok(agent.counts()?.of("web", "drop", "limit-total-new"));
    wait::until("excess", || -> Result<()> {
        for number in 0..20 {
            let from = nobody(false, number);
            wire.send(&packet::ip(from.ip(), to.ip(), TCP, &syn(from, to, 7)))?;
        }
        let excess: Result<u64> = excess();
        ensure!(excess? > 0, "none yet");
        Ok(())
    });
    assert!(!traffic::tcp_reaches(&lab.friend, to));
    assert_eq!(challenged(&agent)?, 0);
    Ok(())
}

#[test]
fn at_tc_what_exceeds_a_limit_drops_and_it_is_said() -> Result<()> {
    excess_drops(
        stage("2", "1", &["--hook", "tc"], POLICY)?,
        &["eth0 is filtered at TC"],
    )
}

#[test]
fn without_cookies_what_exceeds_a_limit_drops_and_it_is_said() -> Result<()> {
    excess_drops(stage("0", "1", &[], POLICY)?, &["net.ipv4.tcp_syncookies is 0"])
}

#[test]
fn without_multi_buffer_xdp_what_exceeds_a_limit_drops_and_it_is_said() -> Result<()> {
    let stage = stage("2", "1", &["--without", "frags"], POLICY)?;
    let (lab, agent) = stage;
    let told = agent.status()?.degraded;
    assert!(
        told.iter().any(|sentence| sentence.contains("kernel 5.18")),
        "{told:?}"
    );
    let to = SocketAddr::new(NODE.into(), PORT);
    let _listener = listen(&lab.node, to, 128)?;
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, INTERFACES[0]))?;
    agent.expect(("web", "drop", "limit-total-new"), 10, || {
        for number in 0..70 {
            let from = nobody(false, number);
            wire.send(&packet::ip(from.ip(), to.ip(), TCP, &syn(from, to, 7)))?;
        }
        Ok(())
    })
}

#[test]
fn a_veth_whose_other_end_takes_nothing_gives_no_challenges() -> Result<()> {
    let lab = Lab::new()?;
    lab.node.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let agent = lab.agent(POLICY)?;
    excess_drops((lab, agent), &["eth0 is a veth whose other end takes no frames"])
}

#[test]
fn a_published_port_is_not_challenged_though_something_listens_on_it() -> Result<()> {
    let (lab, agent) = stage("2", "1", &[], "version = 1\n")?;
    let to = SocketAddr::new(NODE.into(), PORT);
    // As container engines do: a proxy listens where packets are translated past it.
    let _proxy = listen(
        &lab.node,
        SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT),
        128,
    )?;
    let server = listen(&lab.node, SocketAddr::new(NODE.into(), 9090), 128)?;
    nft(
        &lab.node,
        "table ip nat_in { chain pre { type nat hook prerouting priority -100;\n\
         tcp dport 8080 redirect to :9090\n}\n}\n",
    )?;
    let other = POLICY
        .replace("version = 1\n", "")
        .replace("web", "plain")
        .replace("8080", "8081");
    agent.apply(&format!("{POLICY}{other}"))?;
    wait_ready(&agent);
    let mut near = lab.friend.run(|| traffic::tcp_open(to))?;
    let mut far = accept(&server)?;
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, INTERFACES[0]))?;
    let flood = |to: SocketAddr, count| -> Result<()> {
        for number in 0..count {
            let from = nobody(false, number);
            wire.send(&packet::ip(from.ip(), to.ip(), TCP, &syn(from, to, 7)))?;
        }
        Ok(())
    };
    // Challenges are given by now, where they can be.
    let plain = SocketAddr::new(NODE.into(), 8081);
    let _listener = listen(&lab.node, plain, 128)?;
    wait::until("a challenge", || -> Result<()> {
        flood(plain, 20)?;
        let counts = agent.counts()?;
        ensure!(counts.of("plain", "drop", "challenged") > 0, "{counts:?}");
        Ok(())
    });
    agent.expect(("web", "drop", "limit-total-new"), 10, || flood(to, 69))?;
    assert_eq!(challenged(&agent)?, 0);
    // What goes on goes on.
    assert!(traffic::tcp_hears(&mut near, &mut far) && traffic::tcp_hears(&mut far, &mut near));
    Ok(())
}

#[test]
fn a_queue_that_overflows_below_every_limit_starts_a_challenge() -> Result<()> {
    let policy = POLICY.replace("total = \"3/h\", total_burst = 60", "total = \"100000/s\"");
    let (lab, agent) = stage("1", "1", &[], &policy)?;
    wait_ready(&agent);
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, INTERFACES[0]))?;
    let to = SocketAddr::new(NODE.into(), PORT);
    let listener = listen(&lab.node, to, 4)?;
    start_challenge(&agent, &wire, to)?;
    assert_eq!(agent.counts()?.of("web", "drop", "limit-total-new"), 0);
    wait::until("the log to tell", || match agent.log() {
        log if log.contains("challenge of web started") => Ok(()),
        log => Err(log),
    });
    exchange(&lab.friend, &listener, to)?;
    Ok(())
}

/// Once a forged SYN is answered, the socket of a peer that waits out the end of an earlier connection sends what the cookie
/// fits, for a cookie says nothing of the SYN.
#[test]
fn a_forged_syn_that_meets_the_end_of_a_connection_proves_nothing() -> Result<()> {
    const WAITING: usize = 4;
    let limits = "per_source = \"3/h\", burst = 8";
    let policy = POLICY.replace("total = \"3/h\", total_burst = 60", limits);
    let (lab, agent) = stage("2", "1", &[], &policy.replace("\"challenge\"", "\"ban 1m\""))?;
    wait_ready(&agent);
    let wire = Wire::open((&lab.friend, "eth0"), (&lab.node, INTERFACES[0]))?;
    let to = SocketAddr::new(NODE.into(), PORT);
    let listener = listen(&lab.node, to, 64)?;
    // They take up what the unproven may, and their clients close first.
    let mut waiting = Vec::new();
    for _ in 0..WAITING {
        let mut client = lab
            .friend
            .run(|| TcpStream::connect_timeout(&to, wait::PATIENCE))?;
        let mut server = accept(&listener)?;
        waiting.push(client.local_addr()?);
        client.shutdown(Shutdown::Write)?;
        ensure!(server.read(&mut [0])? == 0, "the client closes first");
        drop(server);
        ensure!(client.read(&mut [0])? == 0, "then the server");
    }
    let mut number = 0;
    for from in waiting {
        let before = netstat(&lab.node, "SyncookiesRecv")?;
        wait::until("an answer that fits", || -> Result<()> {
            number += 1_000_003;
            wire.send(&packet::ip(from.ip(), to.ip(), TCP, &syn(from, to, number)))?;
            let now = netstat(&lab.node, "SyncookiesRecv")?;
            ensure!(now > before, "none for {from}: {:?}", agent.counts()?);
            Ok(())
        });
    }
    let mut client = lab
        .friend
        .run(|| TcpStream::connect_timeout(&to, wait::PATIENCE))?;
    client.set_read_timeout(Some(wait::PATIENCE))?;
    client.write_all(b"x")?;
    // Behind those that came of forged SYNs.
    let mut server = loop {
        let server = accept(&listener)?;
        if server.peer_addr()? == client.local_addr()? {
            break server;
        }
    };
    server.set_read_timeout(Some(wait::PATIENCE))?;
    server.read_exact(&mut [0])?;
    let bans = agent.cli(&["bans", "-o", "json"])?;
    let bans = String::from_utf8_lossy(&bans.stdout).into_owned();
    assert!(bans.contains("\"bans\": []"), "{bans}");
    Ok(())
}
