//! The loaded programs and the host build of the same decision, side by side.
//!
//! Each frame is judged by both, and verdict, reason and the whole counter block are compared; the tables that frames
//! write are compared when a test asks for it.
#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

use crate::kernel::{Counted, Kernel, monotonic_ns, monotonic_s};
use firewall_common::control::Config;
use firewall_common::decide::{Outcome, Step};
use firewall_common::verdict::{Reason, Verdict};
use ravelin::policy::compile::Compiled;
use ravelin::policy::file::parse;
use ravelin::policy::model::Policy;
use ravelin::simulate::{Flows, FrameBuilder, Limits, Memory, Node, Transport, decide, decide_egress};
use std::cell::RefCell;
use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

pub const POLICY: &str = r#"
version = 1
deny = ["203.0.113.66", "2001:db8:bad::/48"]

[groups]
web = ["198.51.100.0/24", "2001:db8:1::/48"]

[[service]]
name = "api"
ports = ["tcp/8443", "udp/8443", "sctp/8443", "tcp/30000-30010"]
allow = ["@web", "203.0.113.0/24"]
deny = ["198.51.100.128/25", "2001:db8:1:ff::/64"]

[[service]]
name = "open"
ports = ["tcp/80", "icmp/echo", "proto/47"]
allow = ["any"]

[[service]]
name = "shut"
ports = ["tcp/81"]
"#;

pub fn policy(text: &str) -> Policy {
    match parse(text, Path::new("policy.toml"), 0) {
        Ok(loaded) => loaded.policy,
        Err(error) => panic!("{error}"),
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The kernel and the host side by side.
pub struct Both {
    pub kernel: Kernel,
    pub compiled: Compiled,
    pub flows: Flows,
    pub config: Config,
    pub own: HashSet<firewall_common::control::AddressKey>,
}

impl Both {
    /// # Panics
    /// Without root, or if the policy does not compile.
    pub fn new(policy: &Policy) -> Both {
        let mut kernel = Kernel::new().unwrap();
        let compiled = kernel.enforce(policy).unwrap();
        let config = Config {
            link_control: 0,
            ..Config::DEFAULT
        };
        let (flows, fragments) = kernel.datapath.tables();
        let flows = Flows {
            seed: kernel.seed().unwrap(),
            // That of the loopback device, where test runs take place.
            ifindex: 1,
            generation: 1,
            flows: Memory::from_words(flows),
            fragments: Memory::from_words(fragments),
            limits: Limits::new(compiled.scopes.len() as u32, 1024),
            ..Flows::default()
        };
        Both {
            kernel,
            compiled,
            flows,
            config,
            own: HashSet::new(),
        }
    }

    /// Judges a frame that comes in on both sides, compares everything, and returns the reason.
    pub fn judge(&mut self, frame: &[u8]) -> Reason {
        self.run(frame, decide, Kernel::judge)
    }

    /// The same for a frame that goes out.
    pub fn judge_egress(&mut self, frame: &[u8]) -> Reason {
        self.run(frame, decide_egress, Kernel::judge_egress)
    }

    fn run(
        &mut self,
        frame: &[u8],
        on_host: impl Fn(&Node, &[u8]) -> (Outcome, Vec<Step>),
        in_kernel: impl Fn(&Kernel, &[u8]) -> anyhow::Result<(Verdict, Counted)>,
    ) -> Reason {
        let before_s = monotonic_s();
        let (verdict, counted) = in_kernel(&self.kernel, frame).unwrap();
        self.flows.now_s = monotonic_s();
        self.flows.limits.now_ns = monotonic_ns();
        let node = Node {
            image: &self.compiled.image,
            config: &self.config,
            own: &self.own,
            flows: &self.flows,
        };
        let (outcome, steps) = on_host(&node, frame);
        if before_s != self.flows.now_s {
            // The second turned meanwhile, and which of both the kernel wrote nobody knows.
            self.take_over_tables();
        }
        let expected = vec![(outcome.ending, false, 1, frame.len() as u64)];
        assert_eq!(
            counted,
            expected,
            "counters after {outcome:?}, by {steps:?}, of {}",
            hex(frame)
        );
        assert_eq!(verdict, outcome.reason.verdict(), "{outcome:?} of {}", hex(frame));
        assert_eq!(
            self.compiled.endings[outcome.ending as usize].reason,
            Some(outcome.reason)
        );
        outcome.reason
    }

    /// Makes the host's tables those of the kernel, after something else than a frame has changed them.
    pub fn take_over_tables(&mut self) {
        self.flows.generation = self.kernel.generation();
        let (flows, fragments) = self.kernel.datapath.tables();
        self.flows.flows = Memory::from_words(flows);
        self.flows.fragments = Memory::from_words(fragments);
        let (gate, _) = self.kernel.datapath.gate_cells();
        self.flows.gate = RefCell::new(gate);
    }

    /// Flows, fragments and gate are the same on both sides, to the bit.
    pub fn assert_same_tables(&self) {
        let (flows, fragments) = self.kernel.datapath.tables();
        assert_eq!(self.flows.flows.words(), flows);
        assert_eq!(self.flows.fragments.words(), fragments);
        let (gate, _) = self.kernel.datapath.gate_cells();
        assert_eq!(*self.flows.gate.borrow(), gate);
    }
}

pub fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub const DST4: &str = "192.0.2.1";
pub const DST6: &str = "2001:db8::1";

pub fn dst(src: &str) -> IpAddr {
    ip(if ip(src).is_ipv4() { DST4 } else { DST6 })
}

pub fn syn(src: &str, port: u16) -> FrameBuilder {
    FrameBuilder::tcp_syn(ip(src), 40_000, dst(src), port)
}

pub fn udp(src: &str, src_port: u16, port: u16) -> FrameBuilder {
    FrameBuilder::udp(ip(src), src_port, dst(src), port)
}

pub fn with(src: &str, transport: Transport) -> FrameBuilder {
    FrameBuilder::new(ip(src), dst(src), transport)
}

pub fn icmp(src: &str, icmp_type: u8, hop_limit: u8) -> FrameBuilder {
    let mut frame = with(
        src,
        Transport::Icmp {
            icmp_type,
            code: 0,
            id: 7,
        },
    )
    .payload(&[0; 20]);
    frame.hop_limit = hop_limit;
    frame
}
