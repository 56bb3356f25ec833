//! What limits cost: nanoseconds over the same policy without them, by BPF_PROG_TEST_RUN over 16 million sources, none of
//! which comes twice before all others came; and what a challenge costs, over an empty program.
//!
//! The programs run in turns behind generators that are alike; of each the fastest round counts, for other work on the
//! machine only ever adds.

use anyhow::{Context, Result, ensure};
use firewall_common::control::{CHALLENGE_ALWAYS, CHALLENGE_GIVE};
use firewall_common::cookie::back;
use firewall_common::limit::scope;
use firewall_common::verdict::Reason;
use ravelin::datapath::NodeConfig;
use ravelin_tests::agent::PREFIX;
use ravelin_tests::barrage::{Range, shot};
use ravelin_tests::bench::{Record, quick, wanted};
use ravelin_tests::bpf::{empty_drop, empty_pass};
use ravelin_tests::generator::{Generator, Vary};
use ravelin_tests::honest::open;
use ravelin_tests::kernel::{monotonic_s, test_run};
use ravelin_tests::lab;
use ravelin_tests::netns::Namespace;
use ravelin_tests::packet::{self, ACK};
use ravelin_tests::rotate::End;
use ravelin_tests::siege;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};

const LIMITS: &str = "ns per packet that limits add, 16 million sources";
const CHALLENGE: &str = "ns per packet over an empty XDP program, challenged";

const SOURCES: u32 = 1 << 24;

/// (column, first source, destination)
const FAMILIES: [(&str, &str, &str); 2] = [
    ("IPv4", "10.0.0.0", "192.0.2.1"),
    ("IPv6", "2001:db8::1", "2001:db8:ff00::1"),
];

/// (row, whether the packets open connections, limits, goal)
const ROWS: [(&str, bool, &str, Option<f64>); 6] = [
    (
        "packets per source",
        false,
        "packets = { per_source = \"1000/s\" }",
        Some(40.0),
    ),
    (
        "packets per source, in excess",
        false,
        "packets = { per_source = \"1/h\", burst = 1 }",
        None,
    ),
    (
        "new connections per source",
        true,
        "new_connections = { per_source = \"50/s\", burst = 100 }",
        Some(40.0),
    ),
    (
        "packets in total",
        false,
        "packets = { total = \"100M/s\" }",
        None,
    ),
    (
        "packets in total, in excess",
        false,
        "packets = { total = \"1000/s\" }",
        None,
    ),
    (
        "packets, bytes and new connections, per source and in total",
        true,
        "packets = { per_source = \"1000/s\", total = \"100M/s\" }\n\
         bytes = { per_source = \"1MB/s\", total = \"100GB/s\" }\n\
         new_connections = { per_source = \"50/s\", total = \"100M/s\" }",
        None,
    ),
];

fn policy(limits: &str) -> String {
    format!(
        "version = 1\n[[service]]\nname = \"web\"\nports = [\"tcp/80\", \"udp/80\"]\n\
         allow = [\"10.0.0.0/8\", \"2001:db8::/32\"]\n[service.limits]\n{limits}\n"
    )
}

fn main() -> Result<()> {
    if wanted(LIMITS) {
        limits()?;
    }
    if wanted(CHALLENGE) {
        lab::prepare()?;
        for family in FAMILIES {
            challenge(family)?;
        }
    }
    Ok(())
}

fn limits() -> Result<()> {
    let bare = Range::new(&policy("").replace("[service.limits]", ""))?;
    for (row, opens, limits, goal) in ROWS {
        let limited = Range::new(&policy(limits))?;
        for (column, from, to) in FAMILIES {
            let vary = Vary {
                sources: SOURCES,
                ports: true,
                sequence: opens,
                fragment: false,
            };
            let frame = shot(from, to, 80, opens)?;
            let [base, full] = fastest(
                [&bare, &limited].map(|range| range.kernel.datapath.ingress_program()),
                &frame,
                vary,
            )?;
            let record = Record::new(LIMITS, row, column, full - base, "ns");
            match goal {
                Some(goal) => record.at_most(goal),
                None => record,
            }
            .write()?;
        }
    }
    Ok(())
}

/// Of each program the fastest round, in turns.
fn fastest<const N: usize>(programs: [BorrowedFd; N], frame: &[u8], vary: Vary) -> Result<[f64; N]> {
    const REPEAT: u32 = 1 << 16;
    let generators = programs
        .iter()
        .map(|program| Generator::new(frame, vary, 0, &End::Program(*program)))
        .collect::<Result<Vec<_>>>()?;
    let mut fastest = [f64::INFINITY; N];
    // Once through all sources and more.
    for _ in 0..if quick() { 64 } else { 320 } {
        for (fastest, generator) in fastest.iter_mut().zip(&generators) {
            let (_, ns) = test_run(generator.program(), generator.frame(), REPEAT)?;
            *fastest = fastest.min(f64::from(ns));
        }
    }
    Ok(fastest)
}

/// By which frames come in that BPF_PROG_TEST_RUN makes.
const LOOPBACK: u32 = 1;

/// While a scope is challenged: SYNs that are answered, segments of a connection that stands, and of none.
fn challenge((column, from, to): (&str, &str, &str)) -> Result<()> {
    let namespace = Namespace::unique(PREFIX, "host")?;
    let (client, len) = if to.contains(':') {
        ("2001:db8::7", 128)
    } else {
        ("10.0.0.7", 32)
    };
    for address in [to, client] {
        namespace.address("lo", &format!("{address}/{len}"))?;
    }
    namespace.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let mut range = Range::new(&policy(
        "new_connections = { total = \"10/s\" }\non_excess = \"challenge\"",
    ))?;
    range.kernel.datapath.configure(&NodeConfig {
        challenge: CHALLENGE_GIVE | CHALLENGE_ALWAYS,
        own: vec![to.parse()?],
        ..NodeConfig::default()
    })?;
    range.kernel.datapath.set_answers(LOOPBACK, back::TX)?;
    // As if it had begun just now and did not end while this runs.
    let now = monotonic_s();
    range
        .kernel
        .set_scope_word(0, scope::CHALLENGED, u64::from(now) << 32 | u64::from(now + 600))?;
    namespace.run(|| -> Result<()> {
        let at = SocketAddr::new(to.parse()?, 80);
        let listener = TcpListener::bind(at).context("listening")?;
        let client: IpAddr = client.parse()?;
        let near = open(client, at)?;
        let _far = listener.accept().context("accepting")?;
        let ethernet = shot(from, to, 80, true)?[..14].to_vec();
        let syn = [
            ethernet.clone(),
            siege::syn(SocketAddr::new(from.parse()?, 40_000), at),
        ]
        .concat();
        let segment = |source: SocketAddr| {
            let mut frame = ethernet.clone();
            frame.extend(packet::tcp(source, at, ACK, 1));
            frame
        };
        let own = segment(near.local_addr()?);
        let one = Vary::default();
        let many = Vary {
            sources: SOURCES,
            ports: true,
            sequence: true,
            fragment: false,
        };
        let (drop, pass) = (empty_drop()?, empty_pass()?);
        for (row, frame, vary, empty, reason) in [
            (
                "SYN, answered with a cookie",
                &syn,
                many,
                &drop,
                Reason::Challenged,
            ),
            ("segment of a connection", &own, one, &pass, Reason::Allowed),
            (
                "segment of no connection",
                &segment(SocketAddr::new(from.parse()?, 1)),
                many,
                &drop,
                Reason::NoConnection,
            ),
        ] {
            let before = range.ended(0, |ending| ending.reason == Some(reason))?;
            let [base, full] = fastest(
                [empty.as_fd(), range.kernel.datapath.ingress_program()],
                frame,
                vary,
            )?;
            let ended = range.ended(0, |ending| ending.reason == Some(reason))? - before;
            ensure!(ended >= 1 << 16, "{row}: {ended} packets ended as {reason:?}");
            Record::new(CHALLENGE, row, column, full - base, "ns").write()?;
        }
        Ok(())
    })
}
