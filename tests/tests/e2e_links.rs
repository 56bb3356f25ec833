//! Interfaces that come, go, change their name, or belong to somebody else.

use anyhow::{Context, Result};
use ravelin::api::types::InterfaceStatus;
use ravelin_tests::frame::{self, Sender};
use ravelin_tests::lab::{EVERYTHING, FRIEND, NODE, NODE_B, NOTHING, STRANGER};
use ravelin_tests::traffic::Sink;
use ravelin_tests::{Agent, Lab, Namespace, netns, wait};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const POLICY: &str = "version = 1\n[[service]]\nname = \"web\"\nports = [\"udp/8080\", \"tcp/8080\"]\nallow = [\"192.0.2.2\", \"2001:db8:1::2\"]\n";

/// Waits until the agent says that the interface of this name and number is filtered; gives how long that took.
fn wait_attached(agent: &Agent, namespace: &Namespace, name: &str) -> Result<Duration> {
    let ifindex = namespace.ifindex(name)?;
    Ok(
        wait::until(&format!("{name} to be attached"), || match agent.status() {
            Ok(status) => {
                let attached = |each: &&InterfaceStatus| {
                    each.name == name && each.ifindex == ifindex && each.hook != "none"
                };
                status
                    .interfaces
                    .iter()
                    .find(attached)
                    .map(drop)
                    .ok_or_else(|| format!("{:?}", status.interfaces))
            }
            Err(error) => Err(format!("{error:#}")),
        })
        .1,
    )
}

#[test]
fn each_interface_is_counted_apart() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let agent = lab.agent(POLICY)?;
    assert_eq!(
        (lab.friend_reaches(8080), lab.stranger_reaches(8080)),
        (EVERYTHING, NOTHING)
    );
    let status = agent.status()?;
    let of = |name: &str| {
        status
            .interfaces
            .iter()
            .find(|each| each.name == name)
            .context("an interface is missing")
    };
    let (friend, stranger) = (of("eth0")?, of("eth1")?);
    assert!(friend.passed.packets >= 6, "{friend:?}");
    assert!(stranger.dropped.packets >= 4, "{stranger:?}");
    assert_eq!(
        (friend.hook.as_str(), friend.mode.as_str()),
        ("xdp", "native"),
        "{friend:?}"
    );
    Ok(())
}

#[test]
fn an_interface_made_again_is_filtered_again() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let agent = lab.agent(POLICY)?;
    for _ in 0..3 {
        lab.node.ip("link delete eth0")?;
        lab.link_friend(1500)?;
        let took = wait_attached(&agent, &lab.node, "eth0")?;
        println!("made again, filtered after at most {took:?} (the status was asked again and again)");
        assert_eq!(lab.friend_reaches(8080), EVERYTHING);
    }
    let _other = lab.serve(8082)?;
    assert_eq!(lab.friend_reaches(8082), NOTHING);
    Ok(())
}

/// How long a new interface is open: an outsider sends from the moment that it is there.
#[test]
fn the_grace_of_a_new_interface_is_short() -> Result<()> {
    const PERIOD: Duration = Duration::from_micros(50);
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    let lab = Lab::new()?;
    // The node has the address whatever its interfaces do.
    lab.node.ip(&format!("address add {NODE_B}/32 dev lo"))?;
    let agent = lab.agent(POLICY)?;
    let mut worst = Duration::ZERO;
    for round in 0..10 {
        lab.node.ip("link delete eth1")?;
        let sink = Sink::start(&lab.node, SocketAddr::from(([0, 0, 0, 0], 8082)))?;
        let stop = AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(|| lab.stranger.run(|| send_until(&stop, PERIOD, MAC)));
            let attached = netns::link_at_once(
                (&lab.node, "eth1"),
                "02:00:00:00:00:01",
                (&lab.stranger, "eth0"),
                "02:00:00:00:00:02",
            )
            .and_then(|()| wait_attached(&agent, &lab.node, "eth1"));
            stop.store(true, Ordering::Relaxed);
            let sent = sender
                .join()
                .map_err(|_| anyhow::anyhow!("the sender panicked"))?;
            attached.map(|_| sent)
        })?;
        let leaked = sink.finish(sent)?;
        println!(
            "round {round}: {} of {sent} came in, within {:?}",
            leaked.count, leaked.span
        );
        worst = worst.max(leaked.span);
    }
    println!("longest grace: {worst:?}");
    assert!(
        worst < Duration::from_millis(500),
        "a new interface was open for {worst:?}"
    );
    Ok(())
}

/// Sends numbered datagrams out of `eth0` from the moment that it is there; gives how many.
fn send_until(stop: &AtomicBool, period: Duration, to: [u8; 6]) -> u64 {
    let mut sender = None;
    let mut sent = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        sender = sender.or_else(|| Sender::open_here("eth0").ok());
        let packet = frame::udp4((STRANGER, 7), (NODE_B, 8082), &[], &sent.to_be_bytes());
        let frame = frame::ethernet(to, [2, 0, 0, 0, 0, 2], &[], frame::IPV4, &packet);
        // Until the interface is up it refuses.
        sent += u64::from(sender.as_ref().is_some_and(|sender| sender.send(&frame).is_ok()));
        std::thread::sleep(period);
    }
    sent
}

#[test]
fn a_renamed_interface_stays_filtered_if_the_pattern_still_matches() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let agent = Agent::start(&lab.node, &["eth*", "uplink*"], POLICY)?;
    lab.node.ip("link set eth1 down")?;
    lab.node.ip("link set eth1 name uplink0")?;
    lab.node.ip("link set uplink0 up")?;
    wait_attached(&agent, &lab.node, "uplink0")?;
    assert_eq!(lab.stranger_reaches(8080), NOTHING);
    assert_eq!(lab.friend_reaches(8080), EVERYTHING);
    Ok(())
}

#[test]
fn a_renamed_interface_stays_filtered_under_a_name_nobody_asked_for() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let agent = Agent::start(&lab.node, &["eth0", "eth1"], POLICY)?;
    lab.node.ip("link set eth1 down")?;
    lab.node.ip("link set eth1 name wan0")?;
    lab.node.ip("link set wan0 up")?;
    wait_attached(&agent, &lab.node, "wan0")?;
    assert_eq!(lab.stranger_reaches(8080), NOTHING);
    assert_eq!(lab.friend_reaches(8080), EVERYTHING);
    Ok(())
}

#[test]
fn a_pattern_finds_interfaces_that_come_later() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let agent = Agent::start(&lab.node, &["eth*"], POLICY)?;
    netns::link((&lab.node, "eth7"), (&lab.stranger, "eth7"), 1500)?;
    lab.node.address("eth7", "203.0.113.1/24")?;
    lab.stranger.address("eth7", "203.0.113.2/24")?;
    wait_attached(&agent, &lab.node, "eth7")?;
    let to = SocketAddr::from(([203, 0, 113, 1], 8080));
    let _echo = ravelin_tests::traffic::Echo::start(&lab.node, to)?;
    assert!(!ravelin_tests::traffic::tcp_reaches(&lab.stranger, to));
    assert!(!ravelin_tests::traffic::udp_reaches(&lab.stranger, to));
    Ok(())
}

#[test]
fn an_interface_that_is_not_there_is_named_and_the_rest_is_filtered() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let mut agent = Agent::prepare(&lab.node, &["eth0", "eth1", "wan9"], POLICY, &[])?;
    agent.launch(&lab.node)?;
    wait_attached(&agent, &lab.node, "eth1")?;
    wait::until("wan9 to be named as missing", || match agent.status() {
        Ok(status) if status.unmatched == ["wan9"] && !status.ready => Ok(()),
        Ok(status) => Err(format!("{:?}", status.unmatched)),
        Err(error) => Err(format!("{error:#}")),
    });
    assert_eq!(lab.stranger_reaches(8080), NOTHING);
    Ok(())
}

#[test]
fn another_ones_xdp_program_is_left_alone_and_named() -> Result<()> {
    let lab = Lab::new()?;
    // The other one is ravelin itself, under another instance name: an XDP program that this agent did not load.
    let other = Agent::start(&lab.node, &["eth0"], POLICY)?;
    let mut agent = Agent::prepare(&lab.node, &["eth0"], POLICY, &["--metrics", "127.0.0.1:9478"])?;
    agent.launch(&lab.node)?;
    let (detail, _) = wait::until("the agent to say who holds eth0", || {
        let status = agent.status().map_err(|error| format!("{error:#}"))?;
        let interface = status
            .interfaces
            .into_iter()
            .find(|each| each.name == "eth0")
            .ok_or("no eth0 in the status")?;
        interface
            .detail
            .filter(|_| interface.hook == "none")
            .ok_or_else(|| "no detail yet".to_owned())
    });
    println!("{detail}");
    assert!(detail.contains("eth0") || detail.contains("program"), "{detail}");
    assert!(other.status()?.ready);
    Ok(())
}

#[test]
fn the_address_of_the_wrong_interface_is_no_way_in() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let _agent = lab.agent(POLICY)?;
    // The stranger takes the friend's address for its source: the policy names addresses, so this is what it admits,
    // but the answer goes to the friend's link and no connection opens.
    lab.stranger.ip(&format!("address add {FRIEND}/32 dev lo"))?;
    lab.stranger
        .ip(&format!("route add {NODE}/32 via {NODE_B} src {FRIEND}"))?;
    assert!(!ravelin_tests::traffic::tcp_reaches(
        &lab.stranger,
        SocketAddr::new(NODE.into(), 8080)
    ));
    Ok(())
}
