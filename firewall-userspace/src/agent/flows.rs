//! `ravelin flows`: what the flow table holds and the connections that services accepted, each with the service or egress
//! rule that lets its packets pass.
//!
//! Runs away from the owner, on a copy of the table. Which rule it is, is asked of the one decision, by a packet of the
//! flow.

use super::counters::{EndingName, names};
use super::handle::FlowBasis;
use super::sockets;
use crate::api::types::{FlowList, FlowQuery, FlowRow};
use crate::datapath::Flow;
use crate::host::sockets::{Socket as HostSocket, TCP};
use crate::monitor::record::protocol_word;
use crate::policy::compile::{CompileError, Compiled, compile};
use crate::simulate::{self, Flows, FrameBuilder, Node, Transport, address_key};
use firewall_common::decide::Socket;
use firewall_common::flow::State;
use firewall_common::packet::{Address, protocol, tcp};
use firewall_common::verdict::Direction;
use ipnetwork::IpNetwork;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// One flow before it is told.
struct Candidate {
    direction: Direction,
    protocol: u8,
    local: SocketAddr,
    remote: SocketAddr,
    state: State,
    ifindex: u32,
    /// Age, idle time, and time to live; sockets do not tell.
    seconds: Option<[u32; 3]>,
}

/// The flows that a query asks for, those that spoke last first.
///
/// # Errors
/// The policy in force does not compile any more.
pub fn list(
    basis: &FlowBasis,
    table: &[HostSocket],
    query: &FlowQuery,
    peer: Option<IpNetwork>,
) -> Result<FlowList, CompileError> {
    let live: Vec<&Flow> = basis.flows.iter().filter(|flow| flow.is_live()).collect();
    let mut candidates: Vec<Candidate> = live.iter().map(|flow| of_flow(flow)).collect();
    let known: HashSet<_> = candidates.iter().map(Candidate::key).collect();
    candidates.extend(of_sockets(basis, table).filter(|candidate| !known.contains(&candidate.key())));
    candidates.retain(|candidate| candidate.answers(query, peer));
    candidates.sort_by_key(|candidate| {
        let [age, idle, _] = candidate.seconds.unwrap_or([u32::MAX; 3]);
        (idle, age, candidate.key())
    });
    let judge = Judge::new(basis)?;
    let limit = usize::try_from(query.limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let mut rows = Vec::new();
    let mut matched = 0;
    for candidate in &candidates {
        // Without a service to look for, those that are not shown need not be judged.
        if query.service.is_none() && rows.len() >= limit {
            matched += 1;
            continue;
        }
        let name = judge.as_ref().and_then(|judge| judge.name(candidate));
        let service = name.as_ref().map_or("", |name| name.service.as_str());
        if query.service.as_deref().is_some_and(|wanted| wanted != service) {
            continue;
        }
        matched += 1;
        if rows.len() < limit {
            rows.push(candidate.row(basis, name));
        }
    }
    Ok(FlowList {
        live: live.len() as u64,
        max: basis.max,
        displaced: basis.displaced,
        matched,
        flows: rows,
    })
}

fn of_flow(flow: &Flow) -> Candidate {
    let key = flow.key;
    let end = |address, port| SocketAddr::new(address_of(key.version(), address), port);
    Candidate {
        direction: Direction::Egress,
        protocol: key.protocol(),
        local: end(key.local, key.local_port()),
        remote: end(key.remote, key.remote_port()),
        state: flow.state,
        ifindex: flow.ifindex,
        seconds: Some([flow.age_s, flow.idle_s, flow.left_s]),
    }
}

/// Connections that are open, with peers elsewhere: those that were accepted, and those older than the table.
fn of_sockets<'a>(basis: &FlowBasis, table: &'a [HostSocket]) -> impl Iterator<Item = Candidate> + 'a {
    let kinds = sockets::of(table);
    let own = basis.own.clone();
    table.iter().filter_map(move |socket| {
        let (local, remote) = (socket.local, socket.peer);
        let here = remote.ip().is_loopback() || own.contains(&address_key(remote.ip()));
        if !socket.is_open() || here || local.is_ipv4() != remote.is_ipv4() {
            return None;
        }
        let key = (
            socket.protocol,
            address_key(remote.ip()),
            remote.port(),
            local.port(),
        );
        Some(Candidate {
            direction: match kinds.get(&key) {
                Some(Socket::Accepted) => Direction::Ingress,
                _ => Direction::Egress,
            },
            protocol: socket.protocol,
            local,
            remote,
            state: match (socket.protocol, socket.is_half_closed()) {
                (TCP, false) => State::Established,
                (TCP, true) => State::FinIn,
                _ => State::Conversation,
            },
            ifindex: 0,
            seconds: None,
        })
    })
}

fn address_of(version: u8, address: Address) -> IpAddr {
    match version {
        4 => IpAddr::V4(Ipv4Addr::from(address.low as u32)),
        _ => IpAddr::V6(Ipv6Addr::from(
            u128::from(address.high) << 64 | u128::from(address.low),
        )),
    }
}

impl Candidate {
    fn key(&self) -> (u8, SocketAddr, SocketAddr) {
        (self.protocol, self.local, self.remote)
    }

    /// All of a query but the service.
    fn answers(&self, query: &FlowQuery, peer: Option<IpNetwork>) -> bool {
        let age = self.seconds.map(|[age, _, _]| u64::from(age));
        let word =
            |wanted: &Option<String>, word: &str| wanted.as_deref().is_none_or(|wanted| wanted == word);
        word(&query.direction, self.direction.word())
            && word(&query.state, self.state.word())
            && peer.is_none_or(|peer| peer.contains(self.remote.ip()))
            && query
                .older_than
                .is_none_or(|least| age.is_some_and(|age| age >= least))
            && query
                .younger_than
                .is_none_or(|most| age.is_some_and(|age| age <= most))
    }

    fn has_ports(&self) -> bool {
        matches!(self.protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
    }

    fn is_echo(&self) -> bool {
        self.state == State::Echo
    }

    fn row(&self, basis: &FlowBasis, name: Option<EndingName>) -> FlowRow {
        let port = |address: SocketAddr| self.has_ports().then(|| address.port());
        let version = if self.remote.is_ipv4() { 4 } else { 6 };
        let seconds = |index: usize| self.seconds.map(|all| u64::from(all[index]));
        FlowRow {
            direction: self.direction.word().into(),
            protocol: protocol_word(version, self.protocol),
            local: self.local.ip().to_string(),
            local_port: port(self.local),
            remote: self.remote.ip().to_string(),
            remote_port: port(self.remote),
            echo_id: self.is_echo().then(|| self.local.port()),
            state: self.state.word().into(),
            interface: basis.interfaces.get(&self.ifindex).cloned().unwrap_or_default(),
            rule: name
                .as_ref()
                .and_then(|name| name.rule.as_ref())
                .map(|rule| format!("{} {}", rule.action, rule.source))
                .unwrap_or_default(),
            service: name.map(|name| name.service).unwrap_or_default(),
            age_seconds: seconds(0),
            idle_seconds: seconds(1),
            expires_seconds: seconds(2),
        }
    }
}

/// Asks the decision whose a packet is.
struct Judge<'a> {
    basis: &'a FlowBasis,
    compiled: Arc<Compiled>,
    names: Vec<EndingName>,
    /// Of its own: what is asked leaves no trace in what is told.
    flows: Flows,
}

impl<'a> Judge<'a> {
    /// `None`: the policy in force is not known.
    fn new(basis: &'a FlowBasis) -> Result<Option<Judge<'a>>, CompileError> {
        let Some((policy, compiled)) = &basis.policy else {
            return Ok(None);
        };
        let compiled = match compiled {
            Some(compiled) => compiled.clone(),
            None => Arc::new(compile(policy)?),
        };
        Ok(Some(Judge {
            names: names(policy, &compiled),
            basis,
            compiled,
            flows: Flows::unknown(),
        }))
    }

    fn name(&self, candidate: &Candidate) -> Option<EndingName> {
        let node = Node {
            image: &self.compiled.image,
            config: &self.basis.control,
            own: &self.basis.own,
            flows: &self.flows,
        };
        let outgoing = candidate.direction == Direction::Egress;
        let (from, to) = match outgoing {
            true => (candidate.local, candidate.remote),
            false => (candidate.remote, candidate.local),
        };
        let (src_port, dst_port) = (from.port(), to.port());
        let transport = match candidate.protocol {
            protocol::TCP => Transport::Tcp {
                src_port,
                dst_port,
                flags: tcp::ACK,
            },
            protocol::UDP => Transport::Udp { src_port, dst_port },
            protocol::SCTP => Transport::Sctp { src_port, dst_port },
            _ if candidate.is_echo() => Transport::Icmp {
                icmp_type: if from.is_ipv4() { 8 } else { 128 },
                code: 0,
                id: candidate.local.port(),
            },
            other => Transport::Raw(other),
        };
        let frame = FrameBuilder::new(from.ip(), to.ip(), transport).build();
        let (outcome, _) = match outgoing {
            true => simulate::decide_egress(&node, &frame),
            false => simulate::decide(&node, &frame),
        };
        self.names.get(outcome.ending as usize).cloned()
    }
}

#[cfg(test)]
mod tests;
