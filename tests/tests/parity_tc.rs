//! The programs at TC judge and count a frame as the one at XDP does, which `parity.rs` compares with the host's build;
//! the one for devices without Ethernet headers judges what stands behind the Ethernet header in the same way.
#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

use firewall_common::verdict::{Reason, Verdict};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use ravelin::datapath::Way;
use ravelin::policy::compile::Compiled;
use ravelin::policy::file::parse;
use ravelin::policy::model::Policy;
use ravelin::simulate::{FrameBuilder, Transport};
use ravelin_tests::kernel::{Counted, Kernel};
use std::net::IpAddr;
use std::path::Path;

const POLICY: &str = r#"
version = 1
deny = ["203.0.113.66"]

[[service]]
name = "api"
ports = ["tcp/8443", "udp/8443", "sctp/8443", "icmp/echo", "proto/47"]
allow = ["198.51.100.0/24", "2001:db8:1::/48"]
deny = ["198.51.100.128/25"]
"#;

const PADDED: &[u8] = &[0, 1, 4, 0, 0, 0, 0];

fn policy() -> Policy {
    match parse(POLICY, Path::new("policy.toml"), 0) {
        Ok(loaded) => loaded.policy,
        Err(error) => panic!("{error}"),
    }
}

/// The same policy in three kernels, so that none sees what another remembers.
struct Three {
    xdp: Kernel,
    tc: Kernel,
    raw: Kernel,
    compiled: Compiled,
}

impl Three {
    fn new() -> Three {
        let policy = policy();
        let mut kernels = [(); 3].map(|()| Kernel::new().unwrap());
        let mut compiled = None;
        for kernel in &mut kernels {
            compiled = Some(kernel.enforce(&policy).unwrap());
        }
        let [xdp, tc, raw] = kernels;
        Three {
            xdp,
            tc,
            raw,
            compiled: compiled.unwrap(),
        }
    }

    /// Judges a frame everywhere, compares, and gives the reason.
    fn judge(&mut self, frame: &[u8]) -> Reason {
        let xdp = self.xdp.judge(frame).unwrap();
        let tc = self.tc.judge_at_tc(Way::Tc, frame).unwrap();
        assert_eq!(tc, xdp, "TC, of {}", hex(frame));

        let raw = self.raw.judge_at_tc(Way::Raw, frame).unwrap();
        let is_ip = matches!(frame[12..14], [0x08, 0x00] | [0x86, 0xdd]);
        let expected = if is_ip {
            (xdp.0, without_ethernet(&xdp.1, frame.len()))
        } else {
            let ending = u32::from(Reason::EtherType.number());
            (
                Verdict::Drop,
                without_ethernet(&vec![(ending, false, 1, 0)], frame.len()),
            )
        };
        assert_eq!(raw, expected, "without Ethernet headers, of {}", hex(frame));

        let [(ending, ..)] = xdp.1[..] else {
            panic!("one counter for one frame, not {:?}", xdp.1)
        };
        self.compiled.endings[ending as usize].reason.unwrap()
    }
}

/// The counters as they are when a frame of this length is counted from its network header on.
fn without_ethernet(counted: &Counted, len: usize) -> Counted {
    // Below eight bytes of network header it is not found, and the whole frame counts.
    let bytes = if len < 14 + 8 { len } else { len - 14 } as u64;
    counted
        .iter()
        .map(|(ending, would_drop, packets, _)| (*ending, *would_drop, *packets, bytes))
        .collect()
}

fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn dst(src: &str) -> IpAddr {
    ip(if ip(src).is_ipv4() {
        "192.0.2.1"
    } else {
        "2001:db8::1"
    })
}

fn syn(src: &str, port: u16) -> FrameBuilder {
    FrameBuilder::tcp_syn(ip(src), 40_000, dst(src), port)
}

fn udp(src: &str, port: u16) -> FrameBuilder {
    FrameBuilder::udp(ip(src), 40_000, dst(src), port)
}

fn with(src: &str, transport: Transport) -> FrameBuilder {
    FrameBuilder::new(ip(src), dst(src), transport)
}

#[test]
fn each_kind_of_frame_ends_alike_at_every_hook() {
    let mut three = Three::new();
    let echo = |src, icmp_type| {
        with(
            src,
            Transport::Icmp {
                icmp_type,
                code: 0,
                id: 1,
            },
        )
    };
    let fragment = |bits| FrameBuilder {
        fragment: bits,
        ..udp("198.51.100.7", 8443)
    };
    let options = |options: &[u8]| FrameBuilder {
        options: options.to_vec(),
        ..syn("198.51.100.7", 8443)
    };
    let arp = [&[2; 12][..], &[8, 6], &[0; 28]].concat();
    let bpdu = [
        &[1, 0x80, 0xc2, 0, 0, 0][..],
        &[2; 6],
        &[0, 38, 0x42, 0x42],
        &[0; 40],
    ]
    .concat();
    let chain = (0..8).fold(udp("2001:db8:1::7", 8443), |frame, _| frame.extension(60, PADDED));
    for (frame, reason) in [
        (syn("198.51.100.7", 8443).build(), Reason::Allowed),
        (syn("198.51.100.7", 8444).build(), Reason::Closed),
        (syn("198.51.100.200", 8443).build(), Reason::ServiceDenied),
        (syn("203.0.113.66", 8443).build(), Reason::Denied),
        (syn("203.0.113.7", 8443).build(), Reason::NotAllowed),
        (syn("2001:db8:1::7", 8443).build(), Reason::Allowed),
        (
            udp("2001:db8:2::7", 8443).payload(&[0; 1200]).build(),
            Reason::NotAllowed,
        ),
        (echo("198.51.100.7", 8).build(), Reason::Allowed),
        (echo("2001:db8:1::7", 128).build(), Reason::Allowed),
        (
            with("198.51.100.7", Transport::Raw(47)).payload(&[0; 8]).build(),
            Reason::Allowed,
        ),
        (options(&[7, 3, 0, 0]).build(), Reason::Allowed),
        (fragment(0x2001).build(), Reason::Fragment),
        // A first one of 16 bytes, what follows it, and what does not.
        (fragment(0x2000).payload(&[0; 8]).build(), Reason::Allowed),
        (fragment(0x2002).payload(&[0; 8]).build(), Reason::Allowed),
        (fragment(0x0001).build(), Reason::FragmentOverlap),
        (syn("127.0.0.1", 8443).build(), Reason::Martian),
        (chain.build(), Reason::Allowed),
        (chain.extension(60, PADDED).build(), Reason::ExtensionDepth),
        (syn("198.51.100.7", 8443).vlan(0x8100, 7).build(), Reason::Allowed),
        (
            syn("203.0.113.7", 8443).vlan(0x88a8, 7).vlan(0x8100, 9).build(),
            Reason::NotAllowed,
        ),
        (
            syn("198.51.100.7", 8443)
                .vlan(0x8100, 7)
                .vlan(0x8100, 8)
                .vlan(0x8100, 9)
                .build(),
            Reason::VlanDepth,
        ),
        (arp, Reason::Arp),
        (bpdu, Reason::Llc),
        (
            [&[2; 12][..], &[0x88, 0xb5], &[0; 46]].concat(),
            Reason::EtherType,
        ),
    ] {
        assert_eq!(three.judge(&frame), reason, "{}", hex(&frame));
    }
}

#[test]
fn a_frame_cut_short_anywhere_ends_alike_at_every_hook() {
    let mut three = Three::new();
    let whole = [
        syn("198.51.100.7", 8443).payload(b"payload").build(),
        udp("2001:db8:1::7", 8443)
            .vlan(0x88a8, 1)
            .vlan(0x8100, 2)
            .extension(0, PADDED)
            .extension(60, PADDED)
            .build(),
    ];
    for frame in whole {
        assert_eq!(three.judge(&frame), Reason::Allowed, "{}", hex(&frame));
        // The kernel runs no socket buffer with less than a whole IPv4 header, nor any without a byte of payload.
        let shortest = if frame[12..14] == [8, 0] { 34 } else { 15 };
        for len in shortest..frame.len() {
            assert_eq!(
                three.judge(&frame[..len]).verdict(),
                Verdict::Drop,
                "cut at {len} of {}",
                hex(&frame)
            );
        }
    }
}

#[test]
fn frames_of_any_bytes_end_alike_at_every_hook() {
    let three = std::cell::RefCell::new(Three::new());
    let seeds: Vec<Vec<u8>> = vec![
        syn("198.51.100.7", 8443).build(),
        syn("2001:db8:1::7", 8443)
            .extension(0, PADDED)
            .extension(44, &[0, 0, 1, 0, 0, 0, 1])
            .extension(60, PADDED)
            .build(),
        udp("2001:db8:1::7", 546).vlan(0x8100, 1).build(),
    ];
    let strategy = prop_oneof![
        prop::collection::vec(any::<u8>(), 15..200),
        // Nearly valid frames reach deeper than noise.
        (
            prop::sample::select(seeds),
            prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)
        )
            .prop_map(|(mut frame, edits)| {
                for (index, byte) in edits {
                    let at = index.index(frame.len());
                    frame[at] = byte;
                }
                frame
            }),
    ];
    let mut runner = TestRunner::new(Cases {
        cases: 10_000,
        failure_persistence: None,
        ..Cases::default()
    });
    runner
        .run(&strategy, |frame| {
            three.borrow_mut().judge(&frame);
            Ok(())
        })
        .unwrap();
}
