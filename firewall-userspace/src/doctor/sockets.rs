//! The sockets of this host under the policy: listeners that nobody would reach, connections that would be cut, and
//! those that go on.

use super::judge::{Incoming, Judge, Ruling};
use super::{Area, Finding, Severity};
use crate::host::sockets::{Process, Socket, TCP};
use crate::policy::ephemeral::LocalPorts;
use firewall_common::verdict::Reason;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

/// What is looked at.
pub struct Facts<'a> {
    pub table: &'a [Socket],
    pub holders: &'a HashMap<u64, Process>,
    pub local_ports: LocalPorts,
    /// Addresses on interfaces that are not to be filtered.
    pub unfiltered: &'a [IpAddr],
    /// The peer of the session that this is typed in.
    pub session: Option<SocketAddr>,
}

pub fn findings(judge: &Judge, facts: &Facts<'_>) -> Vec<Finding> {
    let mut names = Names::of(judge);
    let mut found = listeners(judge, facts, &mut names);
    found.extend(connections(judge, facts, &mut names));
    found
}

/// Names for what fixes add, each given once.
struct Names {
    taken: HashSet<String>,
    /// The service that a fix adds for a port.
    services: HashMap<String, String>,
}

impl Names {
    fn of(judge: &Judge) -> Names {
        Names {
            taken: judge.names().map(str::to_owned).collect(),
            services: HashMap::new(),
        }
    }

    /// A name after a process, or else after a port such as `tcp/80`.
    fn free(&mut self, process: Option<&Process>, port: &str) -> String {
        let wanted = process
            .and_then(|process| service_name(&process.name))
            .unwrap_or_else(|| port.replace('/', "-"));
        let numbered = (2..).map(|number| format!("{wanted}-{number}"));
        let name = std::iter::once(wanted.clone())
            .chain(numbered)
            .find(|name| !self.taken.contains(name))
            .unwrap_or(wanted);
        self.taken.insert(name.clone());
        name
    }
}

fn word(protocol: u8) -> &'static str {
    if protocol == TCP { "tcp" } else { "udp" }
}

impl Facts<'_> {
    fn holder(&self, socket: &Socket) -> Option<&Process> {
        self.holders.get(&socket.inode)
    }

    /// Whether what comes from other hosts to this socket is filtered at all.
    fn is_reached(&self, socket: &Socket) -> bool {
        let local = socket.local.ip();
        !local.is_loopback() && !local.is_multicast() && !self.unfiltered.contains(&local)
    }
}

fn called(process: Option<&Process>) -> String {
    match process {
        Some(Process { name, pid }) => format!("{name} (pid {pid})"),
        None => "something".to_owned(),
    }
}

fn list(addresses: &BTreeSet<SocketAddr>) -> String {
    let shown: Vec<String> = addresses.iter().take(3).map(ToString::to_string).collect();
    match addresses.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn listeners(judge: &Judge, facts: &Facts<'_>, names: &mut Names) -> Vec<Finding> {
    let mut groups: BTreeMap<(u8, u16, Option<&Process>), BTreeSet<SocketAddr>> = BTreeMap::new();
    for socket in facts.table {
        if socket.is_listening() && facts.is_reached(socket) {
            let key = (socket.protocol, socket.local.port(), facts.holder(socket));
            groups.entry(key).or_default().insert(socket.local);
        }
    }
    let mut found = Vec::new();
    // The findings that one service for all ports of a process would mend; ports of nobody known stand alone.
    let mut unnamed: BTreeMap<(Option<&Process>, usize), Vec<usize>> = BTreeMap::new();
    for ((protocol, port, process), addresses) in groups {
        let Some(to) = addresses.first() else { continue };
        let first = first_packet(judge, protocol, *to);
        let ruling = judge.ruling(&first);
        // A client that waits for the answers to what it asked.
        let asks = protocol != TCP && facts.local_ports.contains(port);
        if asks && ruling.service.is_none() {
            continue;
        }
        let (finding, covered) = listener(judge, &first, &ruling, process, &addresses);
        if !covered {
            let alone = if process.is_some() { 0 } else { found.len() };
            unnamed.entry((process, alone)).or_default().push(found.len());
        }
        found.push(finding);
    }
    for ((process, _), members) in unnamed {
        name_service(&mut found, &members, process, names);
    }
    found
}

/// One fix for all the ports of a process: with the worst of the findings; the others refer to it.
fn name_service(found: &mut [Finding], members: &[usize], process: Option<&Process>, names: &mut Names) {
    let ports: Vec<String> = members.iter().map(|&at| found[at].subject.clone()).collect();
    let worst = members
        .iter()
        .copied()
        .min_by_key(|&at| (found[at].severity, &found[at].subject));
    let Some(worst) = worst else { return };
    let name = names.free(process, &ports[0]);
    let unless = match found[worst].severity {
        Severity::Info => "",
        _ => "; without --allow if nobody is meant to",
    };
    let same = format!("the service {name}, as for {}", found[worst].subject);
    for &at in members {
        names.services.insert(found[at].subject.clone(), name.clone());
        found[at].fix = Some(match at == worst {
            true => format!(
                "ravelin service add {name} {} --allow PREFIX{unless}",
                ports.join(" ")
            ),
            false => same.clone(),
        });
    }
}

/// What a stranger would send; at the ports of DHCP clients, what their servers do.
fn first_packet(judge: &Judge, protocol: u8, to: SocketAddr) -> Incoming {
    let mut from = judge.stranger(to.ip());
    let server = match (protocol, to.port()) {
        (TCP, _) => None,
        (_, 68) => Some(SocketAddr::new(from.ip(), 67)),
        (_, 546) => Some(SocketAddr::new([0xfe80, 0, 0, 0, 0, 0, 0, 1].into(), 547)),
        _ => None,
    };
    if let Some(server) = server.filter(|server| server.is_ipv4() == to.is_ipv4()) {
        from = server;
    }
    Incoming {
        protocol,
        from,
        to: SocketAddr::new(some_address(to.ip(), from.ip()), to.port()),
        established: false,
    }
}

/// The address, or for that of every interface one that stands for them.
fn some_address(bound: IpAddr, from: IpAddr) -> IpAddr {
    match bound {
        bound if !bound.is_unspecified() => bound,
        IpAddr::V4(_) => [192, 0, 2, 1].into(),
        IpAddr::V6(_) if matches!(from, IpAddr::V6(from) if from.is_unicast_link_local()) => {
            [0xfe80, 0, 0, 0, 0, 0, 0, 2].into()
        }
        IpAddr::V6(_) => [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
    }
}

/// Also whether it is well as it is, rather than in want of a service.
fn listener(
    judge: &Judge,
    first: &Incoming,
    ruling: &Ruling<'_>,
    process: Option<&Process>,
    addresses: &BTreeSet<SocketAddr>,
) -> (Finding, bool) {
    let port = format!("{}/{}", word(first.protocol), first.to.port());
    let who = called(process);
    let at = list(addresses);
    let finding = |severity, text: String| Finding::new(severity, Area::Listener, &port, text);
    if let Some(service) = ruling.service {
        let text = format!("{who} listens on {at}; the service {service} says who reaches it");
        return (finding(Severity::Ok, text), true);
    }
    match ruling.reason {
        Reason::DefaultAllow => {
            let text = format!(
                "{who} listens on {at}; no service names {port}, so by the default everybody reaches it"
            );
            (finding(Severity::Info, text), false)
        }
        _ if ruling.passes() => {
            let text = format!(
                "{who} listens on {at}; what it waits for passes ({})",
                ruling.reason.word()
            );
            (finding(Severity::Ok, text), true)
        }
        _ => {
            let failsafes: Vec<String> = judge.failsafes(first).iter().map(ToString::to_string).collect();
            if !failsafes.is_empty() {
                let text = format!(
                    "{who} listens on {at}; no service names {port}, but the failsafe does: {}",
                    failsafes.join(", ")
                );
                return (finding(Severity::Ok, text), true);
            }
            let text = format!("{who} listens on {at}, and no service names {port}: nobody would reach it");
            if first.protocol == TCP {
                (finding(Severity::Fail, text), false)
            } else {
                let text = format!("{text} (answers to what it asks itself would pass)");
                (finding(Severity::Warn, text), false)
            }
        }
    }
}

/// A process name as a service may be called.
fn service_name(process: &str) -> Option<String> {
    let name: String = process
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let name = name.trim_matches('-');
    name.starts_with(|c: char| c.is_ascii_lowercase())
        .then(|| name.to_owned())
}

/// Whether it is the way out that is closed.
fn leaves(why: &str) -> bool {
    [Reason::EgressClosed, Reason::EgressDenied]
        .map(Reason::word)
        .contains(&why)
}

/// Connections that end the same way: whether they were accepted, the protocol, the port of the service, whose, why.
type Group<'a> = (bool, u8, u16, Option<&'a Process>, &'static str);

fn connections(judge: &Judge, facts: &Facts<'_>, names: &mut Names) -> Vec<Finding> {
    let mut cut: BTreeMap<Group<'_>, BTreeMap<SocketAddr, Incoming>> = BTreeMap::new();
    let (mut accepted, mut opened) = (0_usize, 0_usize);
    for socket in facts.table {
        let (peer, local) = (socket.peer, socket.local);
        let foreign =
            !peer.ip().is_loopback() && !judge.is_own(peer.ip()) && peer.is_ipv4() == local.is_ipv4();
        if !socket.is_open() || !foreign || !facts.is_reached(socket) {
            continue;
        }
        let incoming = Incoming {
            protocol: socket.protocol,
            from: peer,
            to: local,
            established: true,
        };
        let mut ruling = judge.ruling(&incoming);
        let inbound = judge.is_accepted(socket);
        if ruling.passes() && !inbound {
            ruling = judge.answer(&incoming);
        }
        if ruling.passes() {
            *(if inbound { &mut accepted } else { &mut opened }) += 1;
            continue;
        }
        let port = if inbound { local.port() } else { peer.port() };
        let key = (
            inbound,
            socket.protocol,
            port,
            facts.holder(socket),
            ruling.reason.word(),
        );
        cut.entry(key).or_default().insert(peer, incoming);
    }
    let mut found: Vec<Finding> = cut
        .iter()
        .map(|(group, peers)| lost(judge, facts.session, group, peers, names))
        .collect();
    for (count, what, text) in [
        (
            accepted,
            "accepted connection",
            "from peers that the policy admits would go on",
        ),
        (opened, "connection", "that this host opened would go on"),
    ] {
        if count > 0 {
            let ending = if count == 1 { "" } else { "s" };
            let text = format!("{count} {what}{ending} {text}");
            found.push(Finding::new(Severity::Ok, Area::Connection, "established", text));
        }
    }
    found
}

/// Peers whom a fix names at most.
const MAX_ADVICE: usize = 8;

/// What mends it for each peer, in one sentence: the same command for all of them, if it takes a list.
fn together(told: &[(IpAddr, String)]) -> String {
    let mut joined: Vec<(String, String)> = Vec::new();
    for (peer, advice) in told {
        let peer = peer.to_string();
        let (start, end) = match advice.strip_suffix(&peer) {
            Some(start) => (start, peer.as_str()),
            None => (advice.as_str(), ""),
        };
        let lists = start.ends_with("--allow ") || start.ends_with("--to ");
        match joined.iter_mut().find(|(known, _)| known == start) {
            Some(_) if end.is_empty() => {}
            Some((_, ends)) if lists => *ends += &format!(",{end}"),
            Some((known, ends)) => {
                let command = known
                    .split_once(": ")
                    .map_or(known.as_str(), |(_, command)| command);
                *ends += &format!(" && {command}{end}");
            }
            None => joined.push((start.to_owned(), end.to_owned())),
        }
    }
    let sentences: Vec<String> = joined.into_iter().map(|(start, end)| start + &end).collect();
    sentences.join("; ")
}

fn lost(
    judge: &Judge,
    session: Option<SocketAddr>,
    (inbound, protocol, port, process, why): &Group<'_>,
    peers: &BTreeMap<SocketAddr, Incoming>,
    names: &mut Names,
) -> Finding {
    let port = format!("{}/{port}", word(*protocol));
    let count = match peers.len() {
        1 => "a connection".to_owned(),
        count => format!("{count} connections"),
    };
    let mine = match session {
        Some(session) if peers.contains_key(&session) => ", this session among them",
        _ => "",
    };
    let (who, at) = (called(*process), list(&peers.keys().copied().collect()));
    let text = match inbound {
        true => format!("{count} to {who} on {port}, from {at}{mine}, would be cut ({why})"),
        false => format!("{count} of {who} to {at}, opened by this host, would be cut ({why})"),
    };
    let advice = |incoming: &Incoming| match leaves(why) {
        true => judge.advice_out(incoming),
        false => judge.advice(incoming),
    };
    let by_address: BTreeMap<IpAddr, &Incoming> = peers
        .iter()
        .map(|(peer, incoming)| (peer.ip(), incoming))
        .collect();
    let told: Vec<(IpAddr, String)> = by_address
        .iter()
        .take(MAX_ADVICE)
        .filter_map(|(peer, incoming)| Some((*peer, advice(incoming)?)))
        .collect();
    let mut fix = match told.is_empty() {
        true => "ravelin explain tells each step of the decision".to_owned(),
        false => together(&told),
    };
    let added = names.services.get(&port).filter(|_| *inbound);
    if let (Some(name), Some((_, list))) = (added, fix.split_once("service add NAME ")) {
        let list = list.strip_prefix(&port).unwrap_or(list);
        fix = format!("the service {name}, as for the listener on {port}, with{list}");
    } else if fix.contains(" add NAME ") {
        let name = names.free(*process, &port);
        fix = fix.replace(" add NAME ", &format!(" add {name} "));
    }
    let more = by_address.len().saturating_sub(MAX_ADVICE);
    if more > 0 {
        fix += &format!(" (and so for {more} more addresses)");
    }
    Finding::new(Severity::Fail, Area::Connection, port, text).fix(fix)
}

#[cfg(test)]
mod tests;
