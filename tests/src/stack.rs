//! What the kernel's own network stack says of itself in a namespace.

use crate::netns::Namespace;
use crate::wait;
use anyhow::{Context, Result, ensure};

/// Fragments that reached reassembly, IPv4 and IPv6 (`Ip: ReasmReqds`, `Ip6ReasmReqds`).
///
/// # Errors
/// The kernel's tables read otherwise than expected.
pub fn reassembly(namespace: &Namespace) -> Result<[u64; 2]> {
    let v4 = read(namespace, "snmp")?;
    let mut lines = v4.lines().filter_map(|line| line.strip_prefix("Ip:"));
    let (names, values) = (lines.next(), lines.next());
    let (names, values) = names.zip(values).context("no Ip: lines in net/snmp")?;
    let v4 = names
        .split_whitespace()
        .zip(values.split_whitespace())
        .find_map(|(name, value)| (name == "ReasmReqds").then_some(value))
        .context("no ReasmReqds in net/snmp")?;
    let v6 = read(namespace, "snmp6")?;
    let v6 = v6
        .lines()
        .find_map(|line| line.strip_prefix("Ip6ReasmReqds"))
        .context("no Ip6ReasmReqds in net/snmp6")?;
    Ok([v4.parse()?, v6.trim().parse()?])
}

/// A count of the stack: `Tcp`, `OutSegs`; `Udp`, `InCsumErrors`; of IPv6 `Udp6`, ....
///
/// # Errors
/// There is none of that name.
pub fn count(namespace: &Namespace, protocol: &str, name: &str) -> Result<u64> {
    let found = if protocol.ends_with('6') {
        let text = read(namespace, "snmp6")?;
        text.lines().find_map(|line| {
            line.strip_prefix(protocol)?
                .trim_start()
                .strip_prefix(name)?
                .trim()
                .parse()
                .ok()
        })
    } else {
        let text = read(namespace, "snmp")?;
        let head = format!("{protocol}:");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(&head));
        let (names, values) = lines.next().zip(lines.next()).context("a table without values")?;
        names
            .split_whitespace()
            .zip(values.split_whitespace())
            .find_map(|(one, value)| (one == name).then(|| value.parse().ok())?)
    };
    found.with_context(|| format!("no {protocol} {name} in the stack's counts"))
}

/// Waits until a socket listens on a TCP port, or is bound to a UDP port, in either family.
///
/// # Panics
/// After [`wait::PATIENCE`].
pub fn wait_for_port(namespace: &Namespace, protocol: &str, port: u16) {
    wait::until(
        &format!("{protocol}/{port} in {}", namespace.name()),
        || match has_port(namespace, protocol, port) {
            Ok(true) => Ok(()),
            Ok(false) => Err("nobody has it".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        },
    );
}

fn has_port(namespace: &Namespace, protocol: &str, port: u16) -> Result<bool> {
    /// `TCP_LISTEN`; a UDP socket that is bound has the state of a closed one.
    const LISTENING: [&str; 2] = ["0A", "07"];
    let wanted = format!(":{port:04X}");
    let mut read_any = false;
    for table in [protocol.to_owned(), format!("{protocol}6")] {
        let Ok(text) = read(namespace, &table) else {
            continue;
        };
        read_any = true;
        let mut rows = text.lines().map(|line| line.split_whitespace());
        if rows.any(|mut row| {
            row.nth(1).is_some_and(|local| local.ends_with(&wanted))
                && row.nth(1).is_some_and(|state| LISTENING.contains(&state))
        }) {
            return Ok(true);
        }
    }
    ensure!(read_any, "no table of {protocol} sockets");
    Ok(false)
}

/// Established TCP connections at a port of the namespace.
///
/// # Errors
/// The kernel's tables cannot be read.
pub fn established(namespace: &Namespace, port: u16) -> Result<usize> {
    const ESTABLISHED: &str = "01";
    let wanted = format!(":{port:04X}");
    let text = read(namespace, "tcp")? + &read(namespace, "tcp6")?;
    let rows = text.lines().map(|line| line.split_whitespace().skip(1));
    Ok(rows
        .filter_map(|mut row| Some((row.next()?, row.nth(1)?)))
        .filter(|(local, state)| local.ends_with(&wanted) && *state == ESTABLISHED)
        .count())
}

/// A file of `/proc/net` as the namespace sees it.
fn read(namespace: &Namespace, name: &str) -> Result<String> {
    // Not /proc/net: that is the namespace of the process's first thread.
    let path = format!("/proc/thread-self/net/{name}");
    namespace
        .run(|| std::fs::read_to_string(&path))
        .with_context(|| format!("reading {path} in {}", namespace.name()))
}
