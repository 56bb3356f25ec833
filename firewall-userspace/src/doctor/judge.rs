//! What the policy does to the packets of a socket: the one decision, over this host's addresses and connections.

use crate::agent::config::FailsafeRule;
use crate::agent::sockets;
use crate::host::sockets::{Socket, TCP};
use crate::policy::compile::{CompileError, Compiled, compile};
use crate::policy::explain::{self, packet::PacketSpec};
use crate::policy::file::Loaded;
use crate::simulate::{self, Flows, FrameBuilder, Node, Transport, address_key};
use firewall_common::control::{AddressKey, Config};
use firewall_common::decide::{Outcome, Socket as Kind};
use firewall_common::gate::{Bank, Cell};
use firewall_common::packet::tcp;
use firewall_common::verdict::{Direction, Reason, Verdict};
use std::cell::RefCell;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

/// A policy on this host, as an agent would put it in force.
pub struct Judge {
    loaded: Loaded,
    compiled: Compiled,
    config: Box<Config>,
    own: HashSet<AddressKey>,
    flows: Flows,
    failsafe: Vec<FailsafeRule>,
}

/// How a packet would end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling<'a> {
    pub reason: Reason,
    /// The service that names the port.
    pub service: Option<&'a str>,
}

impl Ruling<'_> {
    pub fn passes(&self) -> bool {
        self.reason.verdict() == Verdict::Pass
    }
}

/// A packet that comes in.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    pub protocol: u8,
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// Of a connection that is open, rather than the first of one.
    pub established: bool,
}

impl Judge {
    /// # Errors
    /// The policy does not fit into an image.
    pub fn new(
        loaded: Loaded,
        failsafe: &[FailsafeRule],
        link_control: u32,
        own: impl Iterator<Item = IpAddr>,
        table: &[Socket],
    ) -> Result<Judge, CompileError> {
        let compiled = compile(&loaded.policy)?;
        let own: HashSet<AddressKey> = own.map(address_key).collect();
        let mut config = Box::new(Config::DEFAULT);
        config.link_control = link_control;
        for address in &own {
            config.add_own_address(address.high, address.low);
        }
        for entry in failsafe.iter().flat_map(FailsafeRule::entries) {
            // The agent's configuration holds no more than fit.
            let _ = config.add_failsafe(entry);
        }
        let judge = Judge {
            loaded,
            compiled,
            config,
            own,
            flows: opened(table),
            failsafe: failsafe.to_vec(),
        };
        // As if the DHCP client of this host had just asked: then its answers come in.
        for (from, to) in [
            ("0.0.0.0:68", "255.255.255.255:67"),
            ("[fe80::1]:546", "[ff02::1:2]:547"),
        ] {
            if let (Ok(from), Ok(to)) = (from.parse::<SocketAddr>(), to.parse::<SocketAddr>()) {
                let ask = FrameBuilder::udp(from.ip(), from.port(), to.ip(), to.port());
                simulate::decide_egress(&judge.node(&judge.flows), &ask.build());
            }
        }
        Ok(judge)
    }

    /// How it ends.
    pub fn ruling(&self, incoming: &Incoming) -> Ruling<'_> {
        let frame = FrameBuilder::new(incoming.from.ip(), incoming.to.ip(), incoming.transport()).build();
        self.of(simulate::decide(&self.node(&self.flows), &frame).0)
    }

    /// How what this host sends back ends.
    pub fn answer(&self, incoming: &Incoming) -> Ruling<'_> {
        let out = incoming.turned();
        let frame = FrameBuilder::new(out.from.ip(), out.to.ip(), out.transport()).build();
        // What leaves is judged by the policy alone, and remembered: not for the packets that are judged after it.
        let flows = Flows::unknown();
        self.of(simulate::decide_egress(&self.node(&flows), &frame).0)
    }

    fn of(&self, outcome: Outcome) -> Ruling<'_> {
        let service = usize::from(outcome.service)
            .checked_sub(1)
            .and_then(|index| self.loaded.policy.services.get(index));
        Ruling {
            reason: outcome.reason,
            service: service.map(|service| service.name.as_str()),
        }
    }

    /// What would let it in.
    pub fn advice(&self, incoming: &Incoming) -> Option<String> {
        self.hint(
            Direction::Ingress,
            incoming.from.ip(),
            incoming.to.ip(),
            incoming.transport(),
        )
    }

    /// What would let the answer to it out.
    pub fn advice_out(&self, incoming: &Incoming) -> Option<String> {
        let out = incoming.turned();
        self.hint(Direction::Egress, out.to.ip(), out.from.ip(), out.transport())
    }

    fn hint(&self, direction: Direction, peer: IpAddr, own: IpAddr, transport: Transport) -> Option<String> {
        let packet = PacketSpec {
            direction,
            peer,
            own: Some(own),
            transport,
            vlan: Vec::new(),
            ttl: None,
        };
        let (policy, text) = (&self.loaded.policy, &self.loaded.text);
        let none = Flows::unknown();
        let node = self.node(match direction {
            Direction::Ingress => &self.flows,
            Direction::Egress => &none,
        });
        explain::explain(policy, text, &self.compiled, &node, &packet.to_string())
            .ok()?
            .hint
    }

    /// Somebody whom no list names, for an address of the family of `to`.
    pub fn stranger(&self, to: IpAddr) -> SocketAddr {
        let spare: [IpAddr; 2] = match to {
            IpAddr::V4(_) => [[203, 0, 113, 251].into(), [198, 51, 100, 251].into()],
            IpAddr::V6(_) => [
                [0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 251].into(),
                [0x2001, 0xdb8, 0xfffe, 0, 0, 0, 0, 251].into(),
            ],
        };
        let mine = |address: &IpAddr| self.own.contains(&address_key(*address));
        let address = spare
            .into_iter()
            .find(|address| !mine(address))
            .unwrap_or(spare[0]);
        SocketAddr::new(address, 49_152)
    }

    /// The failsafe rules that let somebody in here.
    pub fn failsafes(&self, incoming: &Incoming) -> Vec<&FailsafeRule> {
        let admits = |rule: &&FailsafeRule| {
            rule.sources().into_iter().any(|source| {
                let from = SocketAddr::new(source, incoming.from.port());
                let same_family = source.is_ipv4() == incoming.to.is_ipv4();
                same_family && self.ruling(&Incoming { from, ..*incoming }).reason == Reason::Failsafe
            })
        };
        self.failsafe.iter().filter(admits).collect()
    }

    /// What the services and egress rules of the policy are called.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let policy = &self.loaded.policy;
        let services = policy.services.iter().map(|service| service.name.as_str());
        services.chain(policy.egress.iter().map(|rule| rule.name.as_str()))
    }

    /// Whether an address is one of this host.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains(&address_key(address))
    }

    /// Whether a TCP socket was accepted rather than opened.
    pub fn is_accepted(&self, socket: &Socket) -> bool {
        let key = (
            socket.protocol,
            address_key(socket.peer.ip()),
            socket.peer.port(),
            socket.local.port(),
        );
        self.flows.sockets.get(&key) == Some(&Kind::Accepted)
    }

    fn node<'a>(&'a self, flows: &'a Flows) -> Node<'a> {
        Node {
            image: &self.compiled.image,
            config: &self.config,
            own: &self.own,
            flows,
        }
    }
}

impl Incoming {
    /// The way back.
    fn turned(&self) -> Incoming {
        Incoming {
            from: self.to,
            to: self.from,
            ..*self
        }
    }

    fn transport(&self) -> Transport {
        let (src_port, dst_port) = (self.from.port(), self.to.port());
        match self.protocol {
            TCP => Transport::Tcp {
                src_port,
                dst_port,
                flags: if self.established { tcp::ACK } else { tcp::SYN },
            },
            _ => Transport::Udp { src_port, dst_port },
        }
    }
}

/// What an agent that starts now makes of the sockets: the gate of each connected one is opened.
fn opened(table: &[Socket]) -> Flows {
    let sockets = sockets::of(table);
    let gate = table
        .iter()
        .filter(|socket| socket.is_connected())
        .map(|socket| {
            let bank = if socket.protocol == TCP {
                Bank::Tcp
            } else {
                Bank::Udp
            };
            (bank.cell(socket.local.port()), Cell::new(0))
        })
        .collect();
    Flows {
        gate: RefCell::new(gate),
        sockets,
        ..Flows::unknown()
    }
}
