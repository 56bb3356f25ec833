//! Bans in the loaded programs: what they cut and what not, as the host build says, and the bound of their table.
#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

use firewall_common::ban::{Ban, BanKey, FOREVER, LENGTHS, NO_LENGTH, OPERATOR};
use firewall_common::control::Failsafe;
use firewall_common::packet::{protocol, tcp};
use firewall_common::verdict::Reason;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use ravelin::datapath::{Datapath, DatapathError, NodeConfig, Options, Way, detach_all};
use ravelin::simulate::{FrameBuilder, Transport, address_key};
use ravelin_tests::both::{Both, POLICY, icmp, ip, policy, syn, udp, with};
use ravelin_tests::kernel::monotonic_s;
use std::path::Path;

fn key(prefix: &str) -> BanKey {
    let (address, len) = prefix.split_once('/').unwrap();
    let address = ip(address);
    let halves = address_key(address);
    let version = if address.is_ipv4() { 4 } else { 6 };
    BanKey::new(version, halves.high, halves.low, len.parse().unwrap())
}

fn until(until_s: u32) -> Ban {
    Ban {
        until_s,
        origin: OPERATOR,
        ..Ban::default()
    }
}

/// Both sides with lengths to look for, and a failsafe for ssh of one host.
fn both(v4: &[u8], v6: &[u8]) -> Both {
    let mut both = Both::new(&policy(POLICY));
    for (lens, used) in both.config.ban_lens.iter_mut().zip([v4, v6]) {
        *lens = [NO_LENGTH; LENGTHS];
        lens[..used.len()].copy_from_slice(used);
    }
    let admin = address_key(ip("198.51.100.77"));
    let failsafe = Failsafe {
        prefix_high: admin.high,
        prefix_low: admin.low,
        mask_high: u64::MAX,
        mask_low: u64::MAX,
        dst_port: 22,
        protocol: protocol::TCP,
        version: 4,
        pad: 0,
    };
    both.config.add_failsafe(failsafe).unwrap();
    let config = NodeConfig {
        ban_lens: both.config.ban_lens,
        failsafe: vec![failsafe],
        ..NodeConfig::default()
    };
    both.kernel.datapath.configure(&config).unwrap();
    both
}

fn ban(both: &mut Both, prefix: &str, value: Ban) {
    both.kernel.datapath.ban(key(prefix), value).unwrap();
    both.flows.bans.insert(key(prefix), value);
}

fn unban(both: &mut Both, prefix: &str) {
    assert!(both.kernel.datapath.unban(key(prefix)).unwrap());
    assert!(!both.kernel.datapath.unban(key(prefix)).unwrap());
    both.kernel.datapath.settle_bans(monotonic_s()).unwrap();
    both.flows.bans.remove(&key(prefix));
}

#[test]
fn a_ban_cuts_all_that_comes_in_but_essentials_and_the_failsafe() {
    let mut both = both(&[24, 32], &[48, 64]);
    assert_eq!(both.judge(&syn("198.51.100.7", 8443).build()), Reason::Allowed);
    ban(&mut both, "198.51.100.0/24", until(FOREVER));
    ban(&mut both, "203.0.113.9/32", until(FOREVER));
    ban(&mut both, "2001:db8:1::/48", until(FOREVER));
    ban(&mut both, "fe80::/64", until(FOREVER));

    assert_eq!(both.judge(&syn("198.51.100.7", 8443).build()), Reason::Banned);
    assert_eq!(
        both.judge(&syn("198.51.100.7", 8443).vlan(0x8100, 7).build()),
        Reason::Banned
    );
    // Whatever the port: a ban is for the host.
    assert_eq!(both.judge(&syn("198.51.100.7", 9).build()), Reason::Banned);
    assert_eq!(both.judge(&udp("198.51.100.7", 1, 8443).build()), Reason::Banned);
    assert_eq!(both.judge(&icmp("198.51.100.7", 8, 64).build()), Reason::Banned);
    assert_eq!(both.judge(&syn("198.51.101.7", 80).build()), Reason::Allowed);
    assert_eq!(both.judge(&syn("203.0.113.9", 8443).build()), Reason::Banned);
    assert_eq!(both.judge(&syn("203.0.113.8", 8443).build()), Reason::Allowed);
    assert_eq!(both.judge(&syn("2001:db8:1:7::7", 8443).build()), Reason::Banned);
    assert_eq!(both.judge(&syn("2001:db8:2::7", 80).build()), Reason::Allowed);

    assert_eq!(both.judge(&syn("198.51.100.77", 22).build()), Reason::Failsafe);
    assert_eq!(both.judge(&syn("198.51.100.77", 80).build()), Reason::Banned);
    assert_eq!(
        both.judge(&icmp("fe80::7", 135, 255).build()),
        Reason::NeighbourDiscovery
    );
    assert_eq!(both.judge(&icmp("fe80::7", 128, 64).build()), Reason::Banned);

    unban(&mut both, "198.51.100.0/24");
    assert_eq!(both.judge(&syn("198.51.100.7", 8443).build()), Reason::Allowed);
    assert_eq!(both.judge(&syn("203.0.113.9", 8443).build()), Reason::Banned);
    both.assert_same_tables();
}

#[test]
fn a_ban_cuts_connections_replies_and_fragments_under_way() {
    let mut both = both(&[32], &[]);
    let mut first = udp("198.51.100.7", 1, 8443).payload(&[0; 24]);
    first.fragment = 0x2000;
    let mut later = with("198.51.100.7", Transport::Raw(protocol::UDP)).payload(&[0; 32]);
    later.fragment = 4;
    let established = with(
        "198.51.100.7",
        Transport::Tcp {
            src_port: 40_000,
            dst_port: 8443,
            flags: tcp::ACK,
        },
    );
    let asks = FrameBuilder::udp(ip("192.0.2.1"), 5000, ip("198.51.100.7"), 53);
    let answers = udp("198.51.100.7", 53, 5000);
    assert_eq!(both.judge_egress(&asks.build()), Reason::DefaultAllow);
    assert_eq!(both.judge(&answers.build()), Reason::Reply);
    assert_eq!(both.judge(&first.build()), Reason::Allowed);

    ban(&mut both, "198.51.100.7/32", until(FOREVER));
    assert_eq!(both.judge(&later.build()), Reason::Banned);
    assert_eq!(both.judge(&established.build()), Reason::Banned);
    assert_eq!(both.judge(&answers.build()), Reason::Banned);
    // What leaves does.
    assert_eq!(both.judge_egress(&asks.build()), Reason::DefaultAllow);
    unban(&mut both, "198.51.100.7/32");
    assert_eq!(both.judge(&answers.build()), Reason::Reply);
    both.assert_same_tables();
}

#[test]
fn a_ban_ends_by_itself_in_its_second() {
    let mut both = both(&[32], &[]);
    let frame = syn("198.51.100.7", 8443).build();
    ban(&mut both, "198.51.100.7/32", until(monotonic_s()));
    assert_eq!(both.judge(&frame), Reason::Allowed);
    let end = monotonic_s() + 2;
    ban(&mut both, "198.51.100.7/32", until(end));
    loop {
        let before_s = monotonic_s();
        let reason = match both.kernel.judge(&frame).unwrap().1[0].0 {
            ending if ending == u32::from(Reason::Banned.number()) => Reason::Banned,
            _ => Reason::Allowed,
        };
        let after_s = monotonic_s();
        if reason == Reason::Allowed {
            assert!(after_s >= end, "over at {after_s}, before {end}");
            break;
        }
        assert!(before_s < end, "in force at {before_s}, until {end}");
    }
}

#[test]
fn programs_at_tc_know_bans() {
    let mut both = both(&[32], &[]);
    ban(&mut both, "198.51.100.7/32", until(FOREVER));
    for way in [Way::Tc, Way::Raw] {
        for (source, ending) in [("198.51.100.7", Some(Reason::Banned)), ("198.51.100.8", None)] {
            let (_, counted) = both.kernel.judge_at_tc(way, &syn(source, 8443).build()).unwrap();
            let banned = counted[0].0 == u32::from(Reason::Banned.number());
            assert_eq!(banned, ending.is_some(), "{source} {way:?}");
        }
    }
}

#[test]
fn any_bans_are_as_the_host_says() {
    let now_s = monotonic_s();
    let prefix = (
        0_u8..=3,
        0_u8..=255,
        prop::sample::select(vec![8_u8, 20, 24, 25, 30, 31, 32, 9]),
    );
    let bans = prop::collection::vec((prefix, prop::bool::ANY), 0..20);
    let sources = prop::collection::vec((0_u8..=3, 0_u8..=255), 8);
    let mut runner = TestRunner::new(Cases::with_cases(40));
    let mut both = both(&[8, 9, 20, 24, 25, 30, 31, 32], &[]);
    let cell = std::cell::RefCell::new(&mut both);
    runner
        .run(&(bans, sources), |(bans, sources)| {
            let mut both = cell.borrow_mut();
            for ((third, fourth, len), live) in bans {
                // Far from now on either side, so that the second that both read does not matter.
                let end = if live { now_s + 10_000 } else { now_s / 2 };
                ban(&mut both, &format!("198.51.{third}.{fourth}/{len}"), until(end));
            }
            for (third, fourth) in sources {
                both.judge(&syn(&format!("198.51.{third}.{fourth}"), 80).build());
            }
            for (key, _) in both.kernel.datapath.bans().unwrap() {
                assert!(both.flows.bans.contains_key(&key));
                both.kernel.datapath.unban(key).unwrap();
            }
            both.flows.bans.clear();
            both.kernel.datapath.settle_bans(monotonic_s()).unwrap();
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_full_table_takes_no_ban_and_loses_none() {
    struct Pins(std::path::PathBuf);
    impl Drop for Pins {
        fn drop(&mut self) {
            let _ = detach_all(&self.0);
        }
    }
    let pins = Pins(Path::new("/sys/fs/bpf/ravelin").join(format!("bans-{}", std::process::id())));
    let options = Options {
        bans: 100,
        flows: 512,
        ..Options::default()
    };
    let mut datapath = Datapath::open_with(&pins.0, options).unwrap();
    assert_eq!((datapath.bans_max(), datapath.bans().unwrap()), (100, vec![]));
    let host = |number: u32| BanKey::new(4, 0, u64::from(0xc633_6400 + number), 32);
    for number in 0..100 {
        datapath.ban(host(number), until(number)).unwrap();
    }
    let error = datapath.ban(host(100), until(1)).unwrap_err();
    assert!(matches!(error, DatapathError::BansFull { max: 100 }), "{error}");
    // What is there can change all the same.
    datapath.ban(host(7), until(FOREVER)).unwrap();
    let mut found = datapath.bans().unwrap();
    found.sort_by_key(|(key, _)| *key);
    let expected: Vec<(BanKey, Ban)> = (0..100)
        .map(|number| (host(number), until(if number == 7 { FOREVER } else { number })))
        .collect();
    assert_eq!(found, expected);
    // The next process finds them, and the table of the size it has.
    drop(datapath);
    let mut datapath = Datapath::open_with(&pins.0, Options { bans: 500, ..options }).unwrap();
    assert_eq!((datapath.bans_max(), datapath.bans().unwrap().len()), (100, 100));
    assert!(datapath.unban(host(7)).unwrap());
    datapath.ban(host(100), until(1)).unwrap();
}
