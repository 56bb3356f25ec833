//! The instruments, without a firewall: what they say must hold before what they say of a firewall counts.

use anyhow::Result;
use ravelin_tests::frame::{self, Sender};
use ravelin_tests::generator::Attack;
use ravelin_tests::lab::{EVERYTHING, NODE, NODE_B, NODE6, NOTHING, STRANGER};
use ravelin_tests::siege::{Assault, OTHER, Siege, V4, V6, WEB};
use ravelin_tests::stack::count;
use ravelin_tests::traffic::{Trial, ping_reaches, udp_reaches_with};
use ravelin_tests::{Lab, Namespace, wait};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

#[test]
fn an_open_node_is_reached_by_everybody() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    assert_eq!(lab.friend_reaches(8080), EVERYTHING);
    assert_eq!(lab.stranger_reaches(8080), EVERYTHING);
    assert!(ping_reaches(&lab.friend, NODE.into()));
    assert!(ping_reaches(&lab.friend, NODE6.into()));
    Ok(())
}

#[test]
fn a_silent_node_is_reached_by_nobody() -> Result<()> {
    let lab = Lab::new()?;
    assert_eq!(lab.friend_reaches(8080), NOTHING);
    assert!(!ping_reaches(&lab.friend, "192.0.2.77".parse()?));
    Ok(())
}

#[test]
fn every_datagram_of_a_trial_is_accounted_for() -> Result<()> {
    let lab = Lab::new()?;
    let (open, shut) = (
        SocketAddr::new(NODE.into(), 8080),
        SocketAddr::new(NODE_B.into(), 8080),
    );
    let trial = Trial::start(&lab.node, (&lab.friend, open), (&lab.stranger, shut), 2000)?;
    trial.advance(1000);
    let verdicts = trial.finish()?;
    assert!(
        verdicts.allowed_sent >= 1000 && verdicts.denied_sent >= 1000,
        "{verdicts:?}"
    );
    assert_eq!(verdicts.allowed.count, verdicts.allowed_sent);
    // Nobody filters: each of those that must not arrive does, and the verdict says so.
    assert_eq!(verdicts.denied.count, verdicts.denied_sent);
    assert!(verdicts.all_right().is_err());
    Ok(())
}

#[test]
fn jumbo_datagrams_cross_a_jumbo_link_whole() -> Result<()> {
    let lab = Lab::with_mtu(9000)?;
    let _echo = lab.serve(8080)?;
    assert!(udp_reaches_with(
        &lab.friend,
        SocketAddr::new(NODE.into(), 8080),
        8900
    ));
    Ok(())
}

#[test]
fn a_frame_from_the_builder_is_taken_by_the_kernel() -> Result<()> {
    let lab = Lab::new()?;
    let socket = lab.node.run(|| UdpSocket::bind((NODE_B, 9)))?;
    socket.set_read_timeout(Some(wait::PATIENCE))?;
    let to = frame::hardware_address(&lab.node, "eth1")?;
    let from = frame::hardware_address(&lab.stranger, "eth0")?;
    let packet = frame::udp4((STRANGER, 7), (NODE_B, 9), &[1, 1, 1, 0], b"with options");
    Sender::open(&lab.stranger, "eth0")?.send(&frame::ethernet(to, from, &[], frame::IPV4, &packet))?;
    let mut buffer = [0; 64];
    let (length, source) = socket.recv_from(&mut buffer)?;
    assert_eq!(
        (&buffer[..length], source),
        (&b"with options"[..], SocketAddr::new(STRANGER.into(), 7))
    );
    Ok(())
}

#[test]
fn namespaces_of_the_dead_are_swept_and_those_of_the_living_stay() -> Result<()> {
    let mut child = std::process::Command::new("true").spawn()?;
    child.wait()?;
    let mut dead = Namespace::create(&format!("ravelin-sweep-{}-0-dead", child.id()))?;
    dead.keep();
    let living = Namespace::unique("ravelin-sweep", "living")?;
    Namespace::sweep("ravelin-sweep");
    assert!(!dead.path().exists());
    assert!(living.path().exists());
    Ok(())
}

/// Neither a checksum nor a length of theirs is wrong, and no two are alike.
#[test]
fn generated_packets_are_taken_by_the_stack() -> Result<()> {
    let siege = Siege::new(1)?;
    for family in [V4, V6] {
        let server: IpAddr = family.server.parse()?;
        let udp = siege
            .server
            .run(|| UdpSocket::bind(SocketAddr::new(server, OTHER)))?;
        udp.set_read_timeout(Some(wait::PATIENCE))?;
        let attack = Attack::start(&siege.outside, siege.generators(Assault::Udp, &family)?)?;
        let mut seen = HashSet::new();
        while seen.len() < 1000 {
            let (_, from) = udp.recv_from(&mut [0; 64])?;
            assert!(seen.insert(from), "{from} twice");
        }
        attack.stop()?;

        let _tcp = siege
            .server
            .run(|| TcpListener::bind(SocketAddr::new(server, WEB)))?;
        let answers = || count(&siege.server, "Tcp", "OutSegs").unwrap_or(0);
        let before = answers();
        let attack = Attack::start(&siege.outside, siege.generators(Assault::SpoofedSyn, &family)?)?;
        wait::until("a thousand SYNs to be answered", || match answers() - before {
            answered if answered >= 1000 => Ok(()),
            answered => Err(format!("{answered} answers")),
        });
        attack.stop()?;
    }
    for protocol in ["Udp", "Udp6", "Tcp"] {
        assert_eq!(count(&siege.server, protocol, "InCsumErrors")?, 0, "{protocol}");
    }
    Ok(())
}
