//! What limits remember, on a whole node: concurrent connections as they come, go and vanish; state over reloads and
//! restarts; policies that are refused for their size.

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use firewall_common::LAYOUT_VERSION;
use firewall_common::limit::{COUNTS, scope};
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, setsockopt,
    sockopt::{KeepAlive, SendTimeout},
};
use nix::sys::time::TimeVal;
use ravelin::api::types::LimitState;
use ravelin_tests::lab::{FRIEND, NODE, NODE_B, NODE6};
use ravelin_tests::traffic::{PROBE, tcp_open};
use ravelin_tests::{Agent, Lab, Namespace, wait};
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use tempfile::TempDir;

const PORT: u16 = 8080;
/// Another address of the friend.
const FRIEND_TOO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);

/// Who may reach the port, and what it bears.
fn policy(limits: &str) -> String {
    format!(
        "version = 1\n[[service]]\nname = \"web\"\nports = [\"tcp/{PORT}\", \"udp/{PORT}\"]\nallow = [\"any\"]\n{limits}"
    )
}

fn connections(limits: &str) -> String {
    policy(&format!("[service.limits]\nconnections = {{ {limits} }}\n"))
}

/// A node with an agent whose agent.toml says this of limits.
struct Stage {
    agent: Agent,
    _config: TempDir,
    lab: Lab,
}

impl Stage {
    fn new(limits: &str, policy: &str) -> Result<Stage> {
        Stage::with(limits, policy, &[])
    }

    fn with(limits: &str, policy: &str, flags: &[&str]) -> Result<Stage> {
        let lab = Lab::new()?;
        lab.friend.address("eth0", &format!("{FRIEND_TOO}/24"))?;
        let config = TempDir::new()?;
        let path = config.path().join("agent.toml");
        std::fs::write(&path, format!("[limits]\n{limits}\n"))?;
        let path = path.to_str().context("a path of this test")?;
        let agent = lab.agent_with(policy, &[&["--config", path], flags].concat())?;
        Ok(Stage {
            agent,
            _config: config,
            lab,
        })
    }

    /// Accepts on both families by one socket, and closes what its peer has closed.
    fn serve(&self) -> Result<()> {
        let listener = self
            .lab
            .node
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // Who vanishes is found out by asking.
                let _ = setsockopt(&stream, KeepAlive, &true);
                std::thread::spawn(move || drain(stream));
            }
        });
        Ok(())
    }

    fn states(&self) -> Result<Vec<LimitState>> {
        self.agent.json(&["limits"])
    }

    /// Connections of the first limit.
    fn counted(&self) -> Option<u64> {
        let states = self.states().ok()?;
        states.first()?.values.iter().find_map(|value| value.connections)
    }

    #[track_caller]
    fn wait_counted(&self, connections: u64) {
        wait::until_equal("the connections that are counted", &Some(connections), || {
            self.counted()
        });
    }

    /// The words of the only scope, whoever runs.
    fn words(&self) -> Result<(u32, [u64; scope::WORDS as usize])> {
        let scopes: Array<MapData, [u64; scope::WORDS as usize]> = self.array("SCOPES")?;
        for place in 0..8 {
            let words = scopes.get(&place, 0)?;
            if words[scope::NAME as usize] != 0 {
                return Ok((place, words));
            }
        }
        anyhow::bail!("there is no scope")
    }

    fn array<T: aya::Pod>(&self, name: &str) -> Result<Array<MapData, T>> {
        let path = self.agent.pins().join(format!("v{LAYOUT_VERSION}/{name}"));
        Ok(Map::Array(MapData::from_pin(path)?).try_into()?)
    }

    fn friend_opens(&self) -> Result<TcpStream> {
        self.lab.friend.run(|| tcp_open((NODE, PORT).into()))
    }

    fn stranger_opens(&self) -> Result<TcpStream> {
        self.lab.stranger.run(|| tcp_open((NODE_B, PORT).into()))
    }

    /// A connection is refused as this.
    #[track_caller]
    fn refused(&self, reason: &str, open: impl FnOnce() -> Result<TcpStream>) -> Result<()> {
        let before = self.agent.counts()?;
        ensure!(open().is_err(), "it opened, though {reason} was expected");
        let after = self.agent.counts()?.since(&before);
        ensure!(after.of("web", "drop", reason) >= 1, "{reason}: {after:?}");
        Ok(())
    }
}

/// Until the other end closes, or is taken for gone.
fn drain(mut stream: TcpStream) {
    let mut bytes = [0; 256];
    while stream.read(&mut bytes).is_ok_and(|read| read > 0) {}
}

/// Opens a connection from an address of the namespace.
fn opens_from(namespace: &Namespace, source: Ipv4Addr, to: SocketAddrV4) -> Result<TcpStream> {
    namespace.run(|| {
        let socket = socket::socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::empty(),
            SockProtocol::Tcp,
        )?;
        let wait = TimeVal::new(0, PROBE.as_micros() as i64);
        setsockopt(&socket, SendTimeout, &wait)?;
        socket::bind(
            socket.as_raw_fd(),
            &SockaddrIn::from(SocketAddrV4::new(source, 0)),
        )?;
        socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
        Ok(TcpStream::from(socket))
    })
}

/// Nothing but the program counts: the next recount is an hour away.
const NO_RECOUNT: &str = "recount = \"1h\"";

#[test]
fn connections_are_capped_by_source_and_in_all() -> Result<()> {
    let stage = Stage::new(NO_RECOUNT, &connections("per_source = 3, total = 5"))?;
    stage.serve()?;
    let mut open = Vec::new();
    for count in 1..=3 {
        open.push(stage.friend_opens()?);
        stage.wait_counted(count);
    }
    stage.refused("limit-source-connections", || stage.friend_opens())?;
    // By IPv6 it is another source; IPv4 came through a socket of both families.
    for count in 4..=5 {
        open.push(stage.lab.friend.run(|| tcp_open((NODE6, PORT).into()))?);
        stage.wait_counted(count);
    }
    stage.refused("limit-total-connections", || stage.stranger_opens())?;
    let page = |name: &str, labels: &[(&str, &str)]| stage.agent.metric(&stage.lab.node, name, labels);
    assert_eq!(
        page("ravelin_connections", &[("service", "web"), ("limit", "web")])?,
        5.0
    );
    assert_eq!(page("ravelin_limit", &[("kind", "connections_total")])?, 5.0);
    assert_eq!(page("ravelin_limit", &[("kind", "connections_per_source")])?, 3.0);
    assert_eq!(page("ravelin_limit_sources", &[("kind", "connections")])?, 2.0);
    assert_eq!(page("ravelin_connections_mended_total", &[])?, 0.0);
    assert_eq!(page("ravelin_challenge_active", &[("limit", "web")])?, 0.0);

    drop(open.remove(0));
    stage.wait_counted(4);
    let again = stage.friend_opens()?;
    stage.wait_counted(5);
    drop((open, again));
    stage.wait_counted(0);
    assert_eq!(page("ravelin_limit_sources", &[("kind", "connections")])?, 0.0);
    assert_eq!(page("ravelin_connections_mended_total", &[])?, 0.0);
    let status = stage.agent.status()?;
    assert_eq!(
        (status.limits.counting.as_str(), status.degraded.len()),
        ("program", 0)
    );
    Ok(())
}

#[test]
fn connections_on_other_ports_and_from_here_do_not_count() -> Result<()> {
    let stage = Stage::new("recount = \"1s\"", &connections("total = 5"))?;
    stage.serve()?;
    let here = stage.lab.node.run(|| {
        let loopback = tcp_open((Ipv4Addr::LOCALHOST, PORT).into())?;
        Ok::<_, anyhow::Error>((loopback, tcp_open((NODE, PORT).into())?))
    })?;
    // The node's own connection, from the port of its service.
    let far = stage.lab.friend.run(|| TcpListener::bind((FRIEND, 9000)))?;
    let friend = stage.friend_opens()?;
    let out = stage.lab.node.run(|| tcp_open((FRIEND, 9000).into()))?;
    stage.wait_counted(1);
    let mended = || {
        stage
            .agent
            .metric(&stage.lab.node, "ravelin_connections_mended_total", &[])
    };
    // The recount agrees: another connection is counted once more, and nothing was mended.
    let more = stage.friend_opens()?;
    stage.wait_counted(2);
    wait::until_equal("a recount that has seen it", &Some(2), || {
        stage.agent.status().ok().map(|status| status.limits.connections)
    });
    assert_eq!(mended()?, 0.0);
    drop((here, far, friend, out, more));
    stage.wait_counted(0);
    Ok(())
}

#[test]
fn who_vanishes_is_counted_until_its_socket_ends_and_no_longer() -> Result<()> {
    let stage = Stage::new(NO_RECOUNT, &connections("per_source = 2"))?;
    let sysctl = |name: &str, value| stage.lab.node.sysctl(&format!("net/ipv4/{name}"), value);
    sysctl("tcp_keepalive_time", "1")?;
    sysctl("tcp_keepalive_intvl", "1")?;
    sysctl("tcp_keepalive_probes", "2")?;
    stage.serve()?;
    let open = (stage.friend_opens()?, stage.friend_opens()?);
    stage.wait_counted(2);
    // Nothing of the friend is heard any more: no FIN, no RST.
    stage.lab.friend.ip("link set eth0 down")?;
    stage.wait_counted(0);
    stage.lab.friend.ip("link set eth0 up")?;
    drop(open);
    let again = stage.friend_opens()?;
    stage.wait_counted(1);
    drop(again);
    Ok(())
}

#[test]
fn connections_close_while_no_agent_runs() -> Result<()> {
    let mut stage = Stage::new(NO_RECOUNT, &connections("per_source = 3, total = 3"))?;
    stage.serve()?;
    let mut open = vec![
        stage.friend_opens()?,
        stage.friend_opens()?,
        stage.friend_opens()?,
    ];
    stage.wait_counted(3);
    stage.agent.kill()?;
    open.truncate(1);
    wait::until_equal("the kernel to count them out", &Some(1), || {
        Some(stage.words().ok()?.1[scope::CONNECTIONS as usize])
    });
    open.push(stage.friend_opens()?);
    open.push(stage.friend_opens()?);
    let late = stage.friend_opens();
    ensure!(late.is_err(), "the kernel holds the limit without an agent");
    stage.agent.launch(&stage.lab.node)?;
    stage.agent.wait_ready()?;
    stage.wait_counted(3);
    stage.refused("limit-source-connections", || stage.friend_opens())?;
    drop(open);
    stage.wait_counted(0);
    let mended = stage
        .agent
        .metric(&stage.lab.node, "ravelin_connections_mended_total", &[])?;
    assert_eq!(mended, 0.0, "nothing had to be mended");
    Ok(())
}

#[test]
fn connections_from_before_the_limit_are_counted_and_leave() -> Result<()> {
    let stage = Stage::new("recount = \"1s\"", &policy(""))?;
    stage.serve()?;
    let mut open = vec![stage.friend_opens()?, stage.friend_opens()?];
    assert_eq!(stage.states()?, []);
    stage.agent.apply(&connections("per_source = 2"))?;
    stage.wait_counted(2);
    stage.refused("limit-source-connections", || stage.friend_opens())?;
    // The program never saw it come, so only the sockets tell that it went.
    open.truncate(1);
    stage.wait_counted(1);
    open.push(stage.friend_opens()?);
    stage.wait_counted(2);
    // Without limits nobody counts.
    stage.agent.apply(&policy(""))?;
    ensure!(
        !stage.agent.pins().join("connections").exists(),
        "the program is attached without need"
    );
    assert_eq!(stage.agent.status()?.limits.counting, "off");
    Ok(())
}

#[test]
fn a_reload_that_changes_what_a_source_is_moves_the_connections() -> Result<()> {
    let by = |len: u8| {
        let source = format!("source = {{ v4 = {len} }}\n");
        connections("per_source = 3") + &source
    };
    let stage = Stage::new(NO_RECOUNT, &by(32))?;
    stage.serve()?;
    let from = |source| opens_from(&stage.lab.friend, source, SocketAddrV4::new(NODE, PORT));
    let open = [from(FRIEND)?, from(FRIEND)?, from(FRIEND_TOO)?, from(FRIEND_TOO)?];
    stage.wait_counted(4);
    stage.agent.apply(&by(24))?;
    wait::until_equal("one source", &Some(1), || sources(&stage));
    assert_eq!(stage.counted(), Some(4));
    stage.refused("limit-source-connections", || from(FRIEND_TOO))?;
    stage.agent.apply(&by(32))?;
    wait::until_equal("two sources", &Some(2), || sources(&stage));
    let more = from(FRIEND_TOO)?;
    stage.wait_counted(5);
    stage.refused("limit-source-connections", || from(FRIEND_TOO))?;
    drop((open, more));
    stage.wait_counted(0);
    assert_eq!(sources(&stage), Some(0));
    Ok(())
}

fn sources(stage: &Stage) -> Option<u64> {
    let states = stage.states().ok()?;
    states
        .first()?
        .values
        .iter()
        .find(|value| value.connections.is_some())?
        .sources
}

#[test]
fn a_full_table_refuses_until_it_is_counted_anew() -> Result<()> {
    let config = format!("{NO_RECOUNT}\nconnections = 1024");
    let stage = Stage::new(&config, &connections("per_source = 3"))?;
    stage.serve()?;
    let (place, _) = stage.words()?;
    let mut table: Array<MapData, [u64; 8]> = stage.array(&format!("sketch-{place}-{COUNTS}"))?;
    for line in 0..128 {
        // Tags that no source has: bit 0 of a tag is set in all of them.
        let words = [1, 2, 3, 4, 5, 6, 7, 8].map(|way: u64| (way * 2) << 44 | 1);
        table.set(line, words, 0)?;
    }
    stage.refused("limit-source-connections", || stage.friend_opens())?;
    // The same policy again, with a comment.
    stage
        .agent
        .apply(&(connections("per_source = 3") + "# the same\n"))?;
    wait::until_equal("an empty table", &Some(0), || sources(&stage));
    let open = stage.friend_opens()?;
    stage.wait_counted(1);
    drop(open);
    Ok(())
}

#[test]
fn without_the_program_sockets_are_counted_each_second() -> Result<()> {
    let stage = Stage::with("", &connections("per_source = 2"), &["--without", "sockops"])?;
    stage.serve()?;
    let mut open = vec![stage.friend_opens()?, stage.friend_opens()?];
    stage.wait_counted(2);
    stage.refused("limit-source-connections", || stage.friend_opens())?;
    open.truncate(1);
    stage.wait_counted(1);
    let status = stage.agent.status()?;
    assert_eq!(status.limits.counting, "recount");
    ensure!(
        status
            .degraded
            .iter()
            .any(|text| text.starts_with("connections are counted each second only")),
        "{:?}",
        status.degraded
    );
    Ok(())
}

/// Three datagrams, and then none for hours.
const FEW: &str = "[service.limits]\npackets = { per_source = \"1/h\", burst = 3 }\n";

#[test]
fn neither_a_reload_nor_a_restart_forgives() -> Result<()> {
    let mut stage = Stage::new("", &policy(FEW))?;
    let server = stage.lab.node.run(|| UdpSocket::bind((NODE, PORT)))?;
    let client = stage.lab.friend.run(|| UdpSocket::bind((FRIEND, 0)))?;
    let to = SocketAddr::from((NODE, PORT));
    let sends = |stage: &Stage, reason: (&str, &str)| {
        stage.agent.expect(("web", reason.0, reason.1), 1, || {
            client.send_to(b"ravelin", to)?;
            Ok(())
        })
    };
    for _ in 0..3 {
        sends(&stage, ("pass", "allowed"))?;
    }
    let excess = ("drop", "limit-source-packets");
    sends(&stage, excess)?;

    let other = policy(FEW).replace("any", "192.0.2.0/24")
        + "[[service]]\nname = \"more\"\nports = [\"tcp/1\"]\nallow = [\"any\"]\n[service.limits]\npackets = { total = \"1/s\" }\n";
    stage.agent.apply(&other)?;
    assert_eq!(stage.states()?.len(), 2);
    sends(&stage, excess)?;
    stage.agent.terminate()?;
    stage.agent.launch(&stage.lab.node)?;
    stage.agent.wait_ready()?;
    sends(&stage, excess)?;
    stage.agent.kill()?;
    stage.agent.write_policy(&policy(FEW))?;
    stage.agent.launch(&stage.lab.node)?;
    stage.agent.wait_ready()?;
    sends(&stage, excess)?;
    // Another name is another limit.
    stage.agent.apply(&policy(FEW).replace("\"web\"", "\"other\""))?;
    stage.agent.expect(("other", "pass", "allowed"), 1, || {
        client.send_to(b"ravelin", to)?;
        Ok(())
    })?;
    drop(server);
    Ok(())
}

#[test]
fn a_policy_that_would_remember_too_much_is_refused() -> Result<()> {
    let few = policy(FEW);
    let stage = Stage::new("sources = 65536\nmemory = \"600kB\"", &few)?;
    let before = stage.agent.status()?;
    assert_eq!(
        (before.limits.memory, before.limits.memory_max),
        (524_288, 600_000)
    );
    let (place, words) = stage.words()?;
    let many = few.replace("burst = 3 }", "burst = 3 }\nbytes = { per_source = \"1MB/s\" }");
    stage.agent.write_policy(&many)?;
    let output = stage.agent.cli(&["reload"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        !output.status.success() && said.contains("1.0 MB of kernel memory (2 tables of 1 limit)"),
        "{said}"
    );
    ensure!(said.contains("raise it, or lower `sources`"), "{said}");
    let dry = stage.agent.cli(&[
        "apply",
        "--dry-run",
        "-f",
        stage.agent.policy_file().to_str().context("a path")?,
    ])?;
    ensure!(!dry.status.success(), "a dry run takes it");
    let after = stage.agent.status()?;
    assert_eq!(after.policy.generation, before.policy.generation);
    assert_eq!(stage.words()?, (place, words));
    assert_eq!(stage.states()?[0].values.len(), 1);
    Ok(())
}

#[test]
fn detaching_takes_the_program_off() -> Result<()> {
    let mut stage = Stage::new("", &connections("total = 5"))?;
    stage.agent.terminate()?;
    ensure!(stage.agent.pins().join("connections").exists(), "it counts on");
    let instance = stage.agent.instance().to_owned();
    let said = stage.agent.ok(&["detach", "--yes", "--instance", &instance])?;
    ensure!(said.contains("connections are counted no more"), "{said}");
    ensure!(!stage.agent.pins().exists(), "pins stay");
    Ok(())
}
