//! What a container behind the host opens, and what is published for it: nftables translates, ravelin judges the wire.

use anyhow::{Context, Result};
use ravelin_tests::lab::{self, EVERYTHING, INTERFACES, NODE, NODE_B, NODE6, NODE6_B, NOTHING};
use ravelin_tests::program::nft;
use ravelin_tests::topology::{BEHIND, CONTAINER, CONTAINER6, Containers};
use ravelin_tests::traffic::{self, Echo, ping_reaches, tcp_reaches, udp_reaches};
use ravelin_tests::{Agent, Namespace};
use std::net::{IpAddr, SocketAddr};

/// Nothing is open.
const CLOSED: &str = "version = 1\n";

/// Default deny on the uplinks; the friend may reach the published port.
const PUBLISHED: &str = r#"
version = 1

[[service]]
name  = "published"
ports = ["tcp/8080", "udp/8080"]
allow = ["192.0.2.2", "2001:db8:1::2"]
"#;

fn agent(stage: &Containers, policy: &str) -> Result<Agent> {
    Agent::start(&stage.lab.node, &INTERFACES, policy)
}

fn serve(namespace: &Namespace, addresses: [IpAddr; 2], port: u16) -> Result<Vec<Echo>> {
    addresses
        .into_iter()
        .map(|address| Echo::start(namespace, SocketAddr::new(address, port)))
        .collect()
}

/// What it reaches of both addresses: TCP, UDP and ping, IPv4 first.
fn reaches_out(from: &Namespace, port: u16, [v4, v6]: [IpAddr; 2]) -> [bool; 6] {
    let (to4, to6) = (SocketAddr::new(v4, port), SocketAddr::new(v6, port));
    traffic::at_once([
        &|| tcp_reaches(from, to4),
        &|| udp_reaches(from, to4),
        &|| ping_reaches(from, v4),
        &|| tcp_reaches(from, to6),
        &|| udp_reaches(from, to6),
        &|| ping_reaches(from, v6),
    ])
}

#[test]
fn a_masqueraded_container_reaches_out_through_default_deny() -> Result<()> {
    reaches_out_through(&Containers::masqueraded()?)
}

#[test]
fn a_routed_container_reaches_out_through_default_deny() -> Result<()> {
    reaches_out_through(&Containers::routed()?)
}

fn reaches_out_through(stage: &Containers) -> Result<()> {
    let friend = BEHIND.map(|(_, _, friend, _)| friend);
    let _echo = serve(&stage.lab.friend, friend, 7000)?;
    // The stage itself works, without a filter.
    assert_eq!(reaches_out(&stage.container, 7000, friend), [true; 6]);
    let agent = agent(stage, CLOSED)?;
    let before = agent.counts()?;
    assert_eq!(reaches_out(&stage.container, 7000, friend), [true; 6]);
    let counts = agent.counts()?.since(&before);
    assert_eq!(counts.verdict("drop"), 0, "{counts:?}");
    // At least: SYN-ACK, data and the end of TCP, a datagram, an echo reply, in each family.
    assert!(counts.of("", "pass", "reply") >= 8, "{counts:?}");
    Ok(())
}

#[test]
fn nobody_reaches_a_container_that_did_not_ask() -> Result<()> {
    let stage = Containers::routed()?;
    let container = BEHIND.map(|(container, ..)| container);
    let _echo = serve(&stage.container, container, 7001)?;
    assert_eq!(
        reaches_out(&stage.lab.friend, 7001, container),
        [true; 6],
        "the stage itself"
    );
    let agent = agent(&stage, CLOSED)?;
    let before = agent.counts()?;
    assert_eq!(reaches_out(&stage.lab.friend, 7001, container), [false; 6]);
    let counts = agent.counts()?.since(&before);
    assert!(counts.of("", "drop", "closed") >= 6, "{counts:?}");
    assert_eq!(counts.of("", "pass", "reply"), 0, "{counts:?}");
    Ok(())
}

#[test]
fn a_service_that_names_the_containers_port_opens_it_when_routed() -> Result<()> {
    let stage = Containers::routed()?;
    let container = [CONTAINER.into(), CONTAINER6.into()];
    let _echo = serve(&stage.container, container, 8080)?;
    let agent = agent(&stage, PUBLISHED)?;
    let [v4, v6] = container;
    assert_eq!(lab::reaches(&stage.lab.friend, v4, v6, 8080), EVERYTHING);
    assert_eq!(lab::reaches(&stage.lab.stranger, v4, v6, 8080), NOTHING);
    assert!(agent.counts()?.of("published", "drop", "not-allowed") >= 4);
    Ok(())
}

/// What of the published port friend and stranger reach: TCP and UDP, IPv4 and IPv6.
fn published(stage: &Containers) -> [[bool; 4]; 2] {
    [
        lab::reaches(&stage.lab.friend, NODE.into(), NODE6.into(), 8080),
        lab::reaches(&stage.lab.stranger, NODE_B.into(), NODE6_B.into(), 8080),
    ]
}

/// The hole that is known from ufw with Docker: a filter on what comes in to the host never sees a published port.
#[test]
fn a_published_port_obeys_the_policy_though_the_hosts_input_filter_never_sees_it() -> Result<()> {
    let stage = Containers::masqueraded()?;
    stage.publish(8080, 80)?;
    let _echo = serve(&stage.container, [CONTAINER.into(), CONTAINER6.into()], 80)?;
    nft(
        &stage.lab.node,
        "table inet ufw { chain input { type filter hook input priority 0; policy drop;\n\
         ct state established,related accept\nicmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n}\n}\n",
    )?;
    assert_eq!(published(&stage), [[true; 4]; 2], "the hole that is to be closed");
    let agent = agent(&stage, PUBLISHED)?;
    assert_eq!(published(&stage), [[true; 4], [false; 4]]);
    let counts = agent.counts()?;
    assert!(counts.of("published", "drop", "not-allowed") >= 4, "{counts:?}");

    // A policy that names no service for it closes it to all, and the container's own port is not the published one.
    agent.apply(CLOSED)?;
    assert_eq!(published(&stage), [[false; 4]; 2]);
    agent.apply(&PUBLISHED.replace("8080", "80"))?;
    assert_eq!(published(&stage), [[false; 4]; 2]);
    agent.apply(PUBLISHED)?;
    assert_eq!(published(&stage), [[true; 4], [false; 4]]);
    Ok(())
}

#[test]
fn revoking_cuts_a_connection_to_a_published_port() -> Result<()> {
    let stage = Containers::masqueraded()?;
    stage.publish(8080, 80)?;
    let _echo = serve(&stage.container, [CONTAINER.into(), CONTAINER6.into()], 80)?;
    let agent = agent(&stage, PUBLISHED)?;
    let mut streams = [NODE.into(), NODE6.into()]
        .into_iter()
        .map(|address: IpAddr| {
            stage
                .lab
                .friend
                .run(|| traffic::tcp_open(SocketAddr::new(address, 8080)))
        })
        .collect::<Result<Vec<_>>>()?;
    assert!(streams.iter_mut().all(traffic::tcp_echoes));
    agent.apply(CLOSED)?;
    assert!(!streams.iter_mut().any(traffic::tcp_echoes));
    Ok(())
}

#[test]
fn connections_of_containers_survive_the_first_start() -> Result<()> {
    for stage in [Containers::masqueraded()?, Containers::routed()?] {
        // Without a translation the kernel tracks connections only if somebody asks it to.
        nft(
            &stage.lab.node,
            "table inet track { chain forward { type filter hook forward priority 0; ct state invalid drop\n}\n}\n",
        )?;
        let mut pairs = Vec::new();
        for (_, _, friend, _) in BEHIND {
            let at = SocketAddr::new(friend, 7000);
            pairs.push((
                traffic::tcp_pair(&stage.container, &stage.lab.friend, at)
                    .context("a connection of the container")?,
                traffic::udp_pair(&stage.container, &stage.lab.friend, at, true)?,
            ));
        }
        for ((near, far), (here, there)) in &mut pairs {
            assert!(
                traffic::tcp_hears(near, far) && traffic::tcp_hears(far, near),
                "the stage itself"
            );
            // An exchange both ways, so that connection tracking knows both directions.
            assert!(traffic::udp_hears(there, here) && traffic::udp_hears(here, there));
        }
        let _agent = agent(&stage, CLOSED)?;
        for ((near, far), (here, there)) in &mut pairs {
            // The far end speaks first: the container has sent nothing since the agent is there.
            assert!(traffic::tcp_hears(far, near), "TCP from {:?}", far.local_addr());
            assert!(
                traffic::udp_hears(there, here),
                "UDP from {:?}",
                there.local_addr()
            );
            assert!(traffic::tcp_hears(near, far) && traffic::tcp_hears(far, near));
        }
    }
    Ok(())
}
