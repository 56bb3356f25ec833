//! Limits: the loaded programs and the host build of the same steps agree on every frame, and both with a count by hand.
//!
//! Rates are slow (by the hour), so what passes is the burst, whenever the frames are judged.

use anyhow::Result;
use firewall_common::packet::tcp;
use firewall_common::verdict::Reason;
use ravelin::simulate::{FrameBuilder, Transport};
use ravelin_tests::both::{Both, policy, syn, udp, with};

fn segment(src: &str, flags: u8) -> FrameBuilder {
    with(
        src,
        Transport::Tcp {
            src_port: 40_000,
            dst_port: 8443,
            flags,
        },
    )
}

/// How often a frame passes, and why the last one did not.
fn passes(both: &mut Both, frame: &[u8], times: u32) -> (u32, Reason) {
    let mut last = Reason::Allowed;
    let mut passed = 0;
    for _ in 0..times {
        match both.judge(frame) {
            Reason::Allowed => passed += 1,
            other => last = other,
        }
    }
    (passed, last)
}

const SERVICE: &str = "version = 1\n\
    [groups]\npartners = [\"203.0.113.0/24\", \"2001:db8:9::/48\"]\n\
    [[service]]\nname = \"api\"\nports = [\"tcp/8443\", \"udp/8443\"]\nallow = [\"any\"]\n";

#[test]
fn each_limit_passes_its_burst_and_then_says_why() -> Result<()> {
    use Reason::*;
    let many = &[0; 1000];
    let cases: &[(&str, FrameBuilder, u32, Reason)] = &[
        (
            "new_connections = { per_source = \"5/h\", burst = 5 }",
            syn("198.51.100.7", 8443),
            5,
            LimitSourceNew,
        ),
        (
            "new_connections = { total = \"9/h\", total_burst = 7 }",
            syn("198.51.100.7", 8443),
            7,
            LimitTotalNew,
        ),
        (
            "packets = { per_source = \"6/h\", burst = 6 }",
            segment("2001:db8:1::7", tcp::ACK),
            6,
            LimitSourcePackets,
        ),
        (
            "packets = { total = \"6/h\", total_burst = 3 }",
            udp("198.51.100.7", 4000, 8443),
            3,
            LimitTotalPackets,
        ),
        // 1,042 bytes each.
        (
            "bytes = { per_source = \"1kB/s\", burst = \"70kB\" }",
            udp("198.51.100.7", 4000, 8443).payload(many),
            67,
            LimitSourceBytes,
        ),
        (
            "bytes = { total = \"1kB/s\", total_burst = \"69.5kB\" }",
            udp("2001:db8:1::7", 4000, 8443).payload(many),
            65,
            LimitTotalBytes,
        ),
    ];
    for (limit, frame, passing, reason) in cases {
        let mut both = Both::new(&policy(&format!("{SERVICE}[service.limits]\n{limit}\n")));
        let (passed, last) = passes(&mut both, &frame.build(), passing + 4);
        assert_eq!((passed, last), (*passing, *reason), "{limit}");
        // Tags, options and a hop-by-hop header are no way round it.
        let tagged = frame.clone().vlan(0x8100, 5).build();
        assert_eq!(both.judge(&tagged), *reason, "{limit}, tagged");
        if matches!(reason, LimitSourceNew | LimitSourcePackets | LimitSourceBytes) {
            let other = match frame.src.is_ipv4() {
                true => "192.0.2.77",
                false => "2001:db8:2::1",
            };
            let mut other_source = frame.clone();
            other_source.src = other.parse()?;
            assert_eq!(
                both.judge(&other_source.build()),
                Allowed,
                "{limit}, another source"
            );
        }
    }
    Ok(())
}

#[test]
fn a_source_is_what_the_policy_says() {
    let limits = "[service.limits]\nnew_connections = { per_source = \"4/h\", burst = 4 }\nsource = { v4 = 24, v6 = 56 }\n";
    let mut both = Both::new(&policy(&format!("{SERVICE}{limits}")));
    let near: Vec<String> = (1..=4).map(|host| format!("198.51.100.{host}")).collect();
    for source in &near {
        assert_eq!(both.judge(&syn(source, 8443).build()), Reason::Allowed);
    }
    assert_eq!(
        both.judge(&syn("198.51.100.200", 8443).build()),
        Reason::LimitSourceNew
    );
    assert_eq!(both.judge(&syn("198.51.101.1", 8443).build()), Reason::Allowed);
    for subnet in 0..4 {
        let source = format!("2001:db8:1:{subnet:x}::5");
        assert_eq!(both.judge(&syn(&source, 8443).build()), Reason::Allowed);
    }
    assert_eq!(
        both.judge(&syn("2001:db8:1:ff::5", 8443).build()),
        Reason::LimitSourceNew
    );
    assert_eq!(
        both.judge(&syn("2001:db8:1:100::5", 8443).build()),
        Reason::Allowed
    );
}

#[test]
fn a_group_has_limits_of_its_own_and_the_totals_of_its_service() {
    let limits = "[service.limits]\nnew_connections = { per_source = \"2/h\", burst = 2, total = \"10/h\", total_burst = 10 }\n\
        [[service.limit]]\nfor = \"@partners\"\nnew_connections = { per_source = \"6/h\", burst = 6 }\n";
    let mut both = Both::new(&policy(&format!("{SERVICE}{limits}")));
    let stranger = syn("198.51.100.7", 8443).build();
    let partner = syn("203.0.113.9", 8443).build();
    assert_eq!(passes(&mut both, &stranger, 4), (2, Reason::LimitSourceNew));
    assert_eq!(passes(&mut both, &partner, 9), (6, Reason::LimitSourceNew));
    // Eight of ten are gone.
    let other = syn("2001:db8:9::1", 8443).build();
    assert_eq!(passes(&mut both, &other, 4), (2, Reason::LimitTotalNew));
}

#[test]
fn later_fragments_weigh_too() {
    let limits = "[service.limits]\nbytes = { per_source = \"1kB/s\", burst = \"66kB\" }\n";
    let mut both = Both::new(&policy(&format!("{SERVICE}{limits}")));
    let mut first = udp("198.51.100.7", 4000, 8443).payload(&[0; 1400]);
    first.fragment = 0x2000;
    assert_eq!(both.judge(&first.build()), Reason::Allowed);
    let mut reasons = Vec::new();
    for part in 1..46_u16 {
        let mut later = with("198.51.100.7", Transport::Raw(17)).payload(&[0; 1408]);
        later.fragment = 0x2000 | (part * 176);
        reasons.push(both.judge(&later.build()));
    }
    let passed = reasons
        .iter()
        .take_while(|reason| **reason == Reason::Allowed)
        .count();
    // 1,442 bytes each.
    assert_eq!(passed, 44, "{reasons:?}");
    assert_eq!(reasons[44], Reason::LimitSourceBytes);
}

/// SplitMix64 (Steele et al., 2014).
struct Dice(u64);

impl Dice {
    /// Below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % sides
    }
}

/// Random limits, random frames: verdict, reason and counters are the same on both sides.
#[test]
fn kernel_and_host_agree_under_random_limits() {
    let mut dice = Dice(4);
    let sources = [
        "198.51.100.7",
        "198.51.100.8",
        "203.0.113.1",
        "203.0.113.2",
        "2001:db8:1::7",
        "2001:db8:9::1",
        "2001:db8:9:1::1",
    ];
    let mut excess = 0;
    for _ in 0..8 {
        let mut text = SERVICE.to_owned();
        let limits = |text: &mut String, dice: &mut Dice| {
            for key in ["new_connections", "packets"] {
                let mut parts = Vec::new();
                for (name, burst) in [("per_source", "burst"), ("total", "total_burst")] {
                    if dice.roll(10) < 4 {
                        let amount = 1 + dice.roll(59);
                        parts.push(format!("{name} = \"{amount}/h\", {burst} = {amount}"));
                    }
                }
                if !parts.is_empty() {
                    text.push_str(&format!("{key} = {{ {} }}\n", parts.join(", ")));
                }
            }
        };
        text.push_str("[service.limits]\n");
        limits(&mut text, &mut dice);
        text.push_str("[[service.limit]]\nfor = \"@partners\"\n");
        limits(&mut text, &mut dice);
        let mut both = Both::new(&policy(&text));
        for _ in 0..200 {
            let source = sources[dice.roll(7) as usize];
            let frame = match dice.roll(4) {
                0 => syn(source, 8443),
                1 => segment(source, tcp::ACK),
                2 => udp(source, 4000, 8443),
                _ => segment(source, tcp::ACK).vlan(0x88a8, 9).vlan(0x8100, 7),
            };
            let length = dice.roll(1400) as usize;
            let reason = both.judge(&frame.payload(&vec![0; length]).build());
            excess += u32::from(reason != Reason::Allowed);
        }
    }
    assert!(excess > 200, "only {excess} of 1,600 frames met a limit");
}
