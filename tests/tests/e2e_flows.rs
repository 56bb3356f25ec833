//! `ravelin flows` and the pressure of the flow table, against what sockets really do.

use anyhow::Result;
use ravelin::api::types::{FlowList, FlowRow};
use ravelin_tests::Lab;
use ravelin_tests::lab::{FRIEND, NODE, STRANGER};
use ravelin_tests::traffic::{self, Echo};
use ravelin_tests::wait;
use std::net::{SocketAddr, UdpSocket};

const POLICY: &str = "version = 1\n[[service]]\nname = \"echo\"\nports = [\"tcp/8080\"]\nallow = [\"192.0.2.0/24\"]\n\
                      [[egress]]\nname = \"out\"\nports = [\"tcp/9000\"]\nto = [\"198.51.100.0/24\"]\n";
/// The smallest table.
const MAX: u64 = 512;

fn shown(row: &FlowRow) -> (&str, &str, &str, &str) {
    (&row.direction, &row.remote, &row.state, &row.service)
}

#[test]
fn it_lists_what_is_open_and_warns_before_the_table_is_full() -> Result<()> {
    let lab = Lab::new()?;
    let _node = lab.serve(8080)?;
    let abroad = SocketAddr::new(STRANGER.into(), 9000);
    let _stranger = Echo::start(&lab.stranger, abroad)?;
    let agent = lab.agent_with(POLICY, &["--flows-max", &MAX.to_string()])?;
    let list: FlowList = agent.json(&["flows"])?;
    assert_eq!((list.live, list.max, list.matched), (0, MAX, 0), "{list:?}");

    let mut inbound = lab
        .friend
        .run(|| traffic::tcp_open(SocketAddr::new(NODE.into(), 8080)))?;
    let mut outbound = lab.node.run(|| traffic::tcp_open(abroad))?;
    assert!(traffic::tcp_echoes(&mut inbound) && traffic::tcp_echoes(&mut outbound));
    // The command runs in another namespace: only the agent sees these sockets.
    let list: FlowList = agent.json(&["flows"])?;
    let rows: Vec<_> = list.flows.iter().map(shown).collect();
    let (stranger, friend) = (STRANGER.to_string(), FRIEND.to_string());
    assert_eq!(
        rows,
        [
            ("egress", stranger.as_str(), "established", "out"),
            ("ingress", friend.as_str(), "established", "echo"),
        ]
    );
    assert_eq!(list.flows[0].interface, "eth1");
    assert_eq!((list.live, list.matched), (1, 2));
    for (filter, remote) in [
        (["--service", "echo"], &friend),
        (["--peer", "198.51.100.0/24"], &stranger),
        (["--younger-than", "1h"], &stranger),
    ] {
        let list: FlowList = agent.json(&["flows", filter[0], filter[1]])?;
        let remotes: Vec<_> = list.flows.iter().map(|row| &row.remote).collect();
        assert_eq!(remotes, [remote], "{filter:?}");
    }
    let list: FlowList = agent.json(&["flows", "--state", "closing"])?;
    assert_eq!((list.matched, list.live), (0, 1));
    assert!(agent.ok(&["flows"])?.contains("1 of 512 flows"));
    let refused = agent.cli(&["flows", "--state", "open"])?;
    assert_eq!(refused.status.code(), Some(2));

    // Datagrams to many ports: a flow each, until more than half of the table is taken.
    assert!(agent.status()?.degraded.is_empty());
    lab.node.run(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for port in 10_000..10_400 {
            // A port that nobody listens on answers an error to the next one: no reason to stop.
            let _ = socket.send_to(b"knock", (STRANGER, port));
        }
        Ok(())
    })?;
    let (status, _) = wait::until("the status to warn", || {
        let status = agent.status().map_err(|error| format!("{error:#}"))?;
        match status
            .degraded
            .iter()
            .any(|text| text.contains("the flow table holds"))
        {
            true => Ok(status),
            false => Err(format!("{:?}", status.flows)),
        }
    });
    assert!(
        status.flows.live > MAX / 2 && status.flows.max == MAX,
        "{status:?}"
    );
    let metric = |name: &str| agent.metric(&lab.node, name, &[]);
    assert!(metric("ravelin_flows")? > MAX as f64 / 2.0);
    assert_eq!(metric("ravelin_flows_max")?, MAX as f64);
    let created = metric("ravelin_flows_created_total")?;
    assert!(created >= 401.0, "{created}");
    assert!(traffic::tcp_echoes(&mut outbound) && traffic::tcp_echoes(&mut inbound));
    Ok(())
}

#[test]
fn a_table_keeps_its_size_until_it_is_detached() -> Result<()> {
    let lab = Lab::new()?;
    let mut agent = lab.agent_with(POLICY, &["--flows-max", "512"])?;
    agent.terminate()?;
    agent.set_flag("--flows-max", "2000");
    agent.launch(&lab.node)?;
    let status = agent.wait_ready()?;
    assert_eq!(status.flows.max, 512);
    assert!(
        status
            .degraded
            .iter()
            .any(|text| text.contains("keeps its size of 512 flows, though 2000 are configured")),
        "{:?}",
        status.degraded
    );
    lab.node.run(|| agent.cli(&["detach", "--yes"]))?;
    wait::until("the agent to end", || {
        agent
            .status()
            .map_or_else(|_| Ok(()), |_| Err("it answers".to_owned()))
    });
    agent.kill()?;
    agent.launch(&lab.node)?;
    let status = agent.wait_ready()?;
    assert_eq!(status.flows.max, 2048);
    assert!(status.degraded.is_empty(), "{:?}", status.degraded);
    Ok(())
}
