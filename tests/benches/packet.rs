//! Nanoseconds per packet over an empty XDP program, by BPF_PROG_TEST_RUN over 65,536 rotating sources.
//!
//! The empty program and ravelin run in turns behind the same rotation; of each the fastest round counts, for other
//! work on the machine only ever adds.

use anyhow::Result;
use firewall_common::image::PortKey;
use ravelin::policy::model::{Action, Owner, Place, Policy, PrefixList, Rule, Service, ServiceId};
use ravelin::simulate::FrameBuilder;
use ravelin_tests::bench::Record;
use ravelin_tests::bpf::{empty_drop, empty_pass};
use ravelin_tests::kernel::{Kernel, test_run};
use ravelin_tests::rotate::{End, Rotation, SOURCES};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

fn main() -> Result<()> {
    let quick = std::env::var("RAVELIN_BENCH_QUICK").is_ok_and(|value| !value.is_empty());
    let only = std::env::var("RAVELIN_BENCH_ONLY").unwrap_or_default();
    let sizes: &[usize] = if quick {
        &[10, 1_000, 100_000]
    } else {
        &[10, 1_000, 10_000, 100_000, 1_000_000]
    };
    let rounds = if quick { 40 } else { 100 };
    for ipv6 in [false, true] {
        let table = format!(
            "ns per packet over an empty XDP program, {}",
            if ipv6 { "IPv6" } else { "IPv4" }
        );
        if !table.contains(&only) {
            continue;
        }
        for size in sizes {
            measure(&table, ipv6, *size, rounds)?;
        }
    }
    Ok(())
}

fn measure(table: &str, ipv6: bool, size: usize, rounds: usize) -> Result<()> {
    let mut random = Random(0x9e37_79b9 + size as u64);
    let prefixes: Vec<(u128, u8)> = (0..size).map(|_| random.prefix(ipv6)).collect();
    let inside: Vec<IpAddr> = (0..SOURCES)
        .map(|_| {
            let prefix = prefixes[random.below(size)];
            random.inside(prefix, ipv6)
        })
        .collect();
    let (empty_drop, empty_pass) = (empty_drop()?, empty_pass()?);
    let rotation = Rotation::new(ipv6, &End::Program(empty_drop.as_fd()))?;
    rotation.fill(&inside)?;
    let dst: IpAddr = if ipv6 {
        "2001:db8::1".parse()?
    } else {
        "192.0.2.1".parse()?
    };
    let src: IpAddr = if ipv6 {
        "2001:db8::2".parse()?
    } else {
        "192.0.2.2".parse()?
    };
    let frame = |port| FrameBuilder::tcp_syn(src, 40_000, dst, port).build();

    let mut kernel = Kernel::new()?;
    for (row, action, port, empty, limit) in [
        (
            "drop",
            Action::Deny,
            8443,
            &empty_drop,
            if size <= 1_000 {
                Some(20.0)
            } else if size == 1_000_000 && !ipv6 {
                Some(200.0)
            } else {
                None
            },
        ),
        (
            "allow",
            Action::Allow,
            8443,
            &empty_pass,
            (size <= 1_000).then_some(50.0),
        ),
        ("closed port", Action::Allow, 9, &empty_drop, Some(15.0)),
    ] {
        if row != "closed port" {
            kernel.enforce(&policy(&prefixes, ipv6, action))?;
        }
        let frame = frame(port);
        let over = over_empty(
            &rotation,
            empty.as_fd(),
            kernel.datapath.ingress_program(),
            &frame,
            rounds,
        )?;
        let mut record = Record::new(table, row, &short(size), over, "ns");
        if let Some(limit) = limit {
            record = record.at_most(limit);
        }
        record.write()?;
    }
    Ok(())
}

/// The fastest round of the program less the fastest round of the empty one.
fn over_empty(
    rotation: &Rotation,
    empty: BorrowedFd,
    program: BorrowedFd,
    frame: &[u8],
    rounds: usize,
) -> Result<f64> {
    /// Runs in a call: each source once; the mean that the kernel returns is in whole nanoseconds.
    const REPEAT: u32 = SOURCES as u32;
    let (mut base, mut full) = (u32::MAX, u32::MAX);
    for _ in 0..rounds {
        rotation.aim(empty)?;
        base = base.min(test_run(rotation.program(), frame, REPEAT)?.1);
        rotation.aim(program)?;
        full = full.min(test_run(rotation.program(), frame, REPEAT)?.1);
    }
    Ok(f64::from(full) - f64::from(base))
}

/// A service on TCP 8443 whose prefixes are allowed, or denied by the policy.
fn policy(prefixes: &[(u128, u8)], ipv6: bool, action: Action) -> Policy {
    let list = PrefixList {
        v4: if ipv6 {
            Vec::new()
        } else {
            prefixes
                .iter()
                .map(|(address, len)| (*address as u32, *len))
                .collect()
        },
        v6: if ipv6 { prefixes.to_vec() } else { Vec::new() },
    };
    let rule = |owner, action, any: bool| Rule {
        owner,
        action,
        source: if any {
            "any".to_owned()
        } else {
            "@prefixes".to_owned()
        },
        any,
        lists: if any { Vec::new() } else { vec![0] },
        place: Place::default(),
    };
    let rules = match action {
        Action::Allow => vec![rule(Owner::Service(ServiceId(0)), Action::Allow, false)],
        Action::Deny => vec![
            rule(Owner::Policy, Action::Deny, false),
            rule(Owner::Service(ServiceId(0)), Action::Allow, true),
        ],
    };
    Policy {
        services: vec![Service {
            name: "service".to_owned(),
            ports_text: vec!["tcp/8443".to_owned()],
            ports: vec![(PortKey::tcp(8443), PortKey::tcp(8443))],
            ..Service::default()
        }],
        rules,
        lists: vec![Arc::new(list)],
        ..Policy::default()
    }
}

fn short(size: usize) -> String {
    match size {
        1_000_000.. => format!("{}M", size / 1_000_000),
        1_000.. => format!("{}k", size / 1_000),
        _ => size.to_string(),
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same prefixes in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Spread over the unicast space, none of it martian; lengths as in address lists of the field.
    fn prefix(&mut self, ipv6: bool) -> (u128, u8) {
        let kind = self.below(10);
        if ipv6 {
            let len = match kind {
                0..4 => 64,
                4..7 => 48,
                7..9 => 128,
                _ => 32 + self.below(96) as u8,
            };
            let address = (u128::from(self.next()) << 64 | u128::from(self.next())) >> 3 | 1 << 125;
            return (address & !0 << (128 - u32::from(len)), len);
        }
        let len = match kind {
            0..4 => 32,
            4..8 => 24,
            _ => 16 + self.below(16) as u8,
        };
        // 16.0.0.0 to 111.255.255.255.
        let address = (16 << 24) + (self.next() % (96 << 24)) as u32;
        (u128::from(address & !0 << (32 - u32::from(len))), len)
    }

    fn inside(&mut self, (address, len): (u128, u8), ipv6: bool) -> IpAddr {
        if ipv6 {
            let host = u128::from(self.next()) << 64 | u128::from(self.next());
            return IpAddr::V6((address | if len == 128 { 0 } else { host >> len }).into());
        }
        let host = if len == 32 { 0 } else { self.next() as u32 >> len };
        IpAddr::V4((address as u32 | host).into())
    }
}
