//! Programs of Debian's packages on a node under default deny, as people use them.

use anyhow::{Context, Result, ensure};
use ravelin_tests::lab::{FAMILIES, Family};
use ravelin_tests::program::{Daemon, fetched, output, run, succeeds};
use ravelin_tests::stack::wait_for_port;
use ravelin_tests::topology::{ENDS, NarrowPath};
use ravelin_tests::{Agent, Lab, Namespace};
use std::net::IpAddr;

const CLOSED: &str = "version = 1\n";

/// What a server is asked for: more than a few windows.
const PAGE: usize = 3_000_000;

const NGINX: &str = "
daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {
        listen 80;
        listen [::]:80;
        root {dir};
    }
}
";

fn nginx(namespace: &Namespace) -> Result<Daemon> {
    let page = "ravelin ".repeat(PAGE / 8);
    let daemon = Daemon::start(
        namespace,
        fetched("RAVELIN_NGINX", "nginx"),
        &["-p", "{dir}", "-c", "{dir}/nginx.conf", "-e", "stderr"],
        &[("nginx.conf", NGINX), ("page", &page)],
    )?;
    wait_for_port(namespace, "tcp", 80);
    Ok(daemon)
}

/// The bytes that curl gets of the page, or nothing.
fn curl(namespace: &Namespace, from: IpAddr) -> Result<Option<usize>> {
    let host = if from.is_ipv6() {
        format!("[{from}]")
    } else {
        from.to_string()
    };
    let url = format!("http://{host}/page");
    let arguments = [
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        "%{size_download}",
        "--connect-timeout",
        "1",
        "-m",
        "10",
        &url,
    ];
    let output = output(namespace, "curl", &arguments)?;
    match output.status.success() {
        true => Ok(Some(String::from_utf8_lossy(&output.stdout).trim().parse()?)),
        false => Ok(None),
    }
}

#[test]
fn nginx_serves_those_whom_the_policy_allows() -> Result<()> {
    let lab = Lab::new()?;
    let _nginx = nginx(&lab.node)?;
    let agent = lab.agent(
        "version = 1\n[[service]]\nname = \"web\"\nports = [\"tcp/80\"]\nallow = [\"192.0.2.2\", \"2001:db8:1::2\"]\n",
    )?;
    for Family { node, node_b, .. } in FAMILIES {
        assert_eq!(curl(&lab.friend, node)?, Some(PAGE));
        assert_eq!(curl(&lab.stranger, node_b)?, None);
    }
    let counts = agent.counts()?;
    assert!(counts.of("web", "drop", "not-allowed") >= 2, "{counts:?}");
    Ok(())
}

#[test]
fn curl_fetches_from_the_node() -> Result<()> {
    let lab = Lab::new()?;
    let _nginx = nginx(&lab.friend)?;
    let _agent = lab.agent(CLOSED)?;
    for Family { friend, .. } in FAMILIES {
        assert_eq!(curl(&lab.node, friend)?, Some(PAGE));
    }
    Ok(())
}

#[test]
fn names_resolve_by_udp_and_by_tcp() -> Result<()> {
    let lab = Lab::new()?;
    let long = "x".repeat(250);
    let records: String = (0..12)
        .map(|n| format!("txt-record=long.example,{n}{long}\n"))
        .collect();
    let _dnsmasq = Daemon::start(
        &lab.friend,
        "dnsmasq",
        &["--keep-in-foreground", "--conf-file={dir}/dnsmasq.conf"],
        &[(
            "dnsmasq.conf",
            &format!(
                "user=root\npid-file={{dir}}/pid\nno-resolv\nno-hosts\nbind-interfaces\nedns-packet-max=4096\n\
                 host-record=short.example,192.0.2.99,2001:db8::99\n{records}"
            ),
        )],
    )?;
    wait_for_port(&lab.friend, "udp", 53);
    wait_for_port(&lab.friend, "tcp", 53);
    let _agent = lab.agent(CLOSED)?;
    for Family { friend, .. } in FAMILIES {
        let server = format!("@{friend}");
        for transport in ["-u", "-t"] {
            let answer = run(&lab.node, "drill", &[transport, &server, "short.example", "AAAA"])?;
            ensure!(answer.contains("2001:db8::99"), "{transport} {server}: {answer}");
        }
        // An answer of 3 kB: in fragments by UDP, in segments by TCP.
        for transport in [&["-u", "-b", "4096"][..], &["-t"]] {
            let answer = run(
                &lab.node,
                "drill",
                &[transport, &[&server, "long.example", "TXT"]].concat(),
            )?;
            ensure!(
                answer.matches(&long).count() == 12,
                "{transport:?} {server}: {answer}"
            );
        }
    }
    Ok(())
}

/// One transfer, `-R` for the other direction: what arrived at the end of it, in bytes.
fn iperf3(client: &Namespace, server: IpAddr, extra: &[&str]) -> Result<u64> {
    let server = server.to_string();
    let arguments = [&["-c", &server, "-J", "--connect-timeout", "2000"], extra].concat();
    let text = run(client, "iperf3", &arguments)?;
    let report: serde_json::Value = serde_json::from_str(&text).context("reading iperf3's report")?;
    let received = &report["end"]["sum_received"]["bytes"];
    received
        .as_u64()
        .or_else(|| report["end"]["sum"]["bytes"].as_u64())
        .with_context(|| format!("no bytes in iperf3's report: {text}"))
}

#[test]
fn iperf3_runs_both_ways_with_offloads_on_at_xdp() -> Result<()> {
    iperf3_runs_both_ways("xdp")
}

/// Here the filter sees packets of 64 kB, as the sender's stack made them.
#[test]
fn iperf3_runs_both_ways_with_offloads_on_at_tc() -> Result<()> {
    iperf3_runs_both_ways("tc")
}

fn iperf3_runs_both_ways(hook: &str) -> Result<()> {
    const BYTES: u64 = 100_000_000;
    let lab = Lab::new()?;
    let _servers = [&lab.node, &lab.friend]
        .map(|namespace| {
            let daemon = Daemon::start(namespace, "iperf3", &["-s"], &[]);
            wait_for_port(namespace, "tcp", 5201);
            daemon
        })
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let agent = lab.agent_with(
        "version = 1\n[[service]]\nname = \"iperf3\"\nports = [\"tcp/5201\", \"udp/5201\"]\n\
         allow = [\"192.0.2.2\", \"2001:db8:1::2\"]\n",
        &["--hook", hook],
    )?;
    // What the node sends is segmented behind the filter. (Of what its peer sends, a veth has the segments made before
    // native XDP sees them: that is the kernel's way, see veth_xdp_set().)
    run(&lab.node, "ethtool", &["-K", "eth0", "gro", "on"])?;
    let features = run(&lab.node, "ethtool", &["-k", "eth0"])?;
    for feature in [
        "tcp-segmentation-offload",
        "generic-segmentation-offload",
        "generic-receive-offload",
    ] {
        ensure!(features.contains(&format!("{feature}: on")), "{features}");
    }
    let before = agent.counts()?;
    let amount = BYTES.to_string();
    for Family { node, friend, .. } in FAMILIES {
        for (client, server) in [(&lab.friend, node), (&lab.node, friend)] {
            for direction in [&[][..], &["-R"]] {
                let tcp = iperf3(client, server, &[&["-n", &amount], direction].concat())?;
                // The report of the receiver closes a little before the last bytes.
                assert!(
                    tcp >= BYTES / 10 * 9,
                    "{tcp} of {BYTES} bytes with {server}, {direction:?}"
                );
                // A receiver that waits for a processor loses datagrams at its full socket, which is no filter's doing
                // (what the filter dropped is counted below): a rate that a busy machine keeps up with, and some slack.
                let udp = iperf3(
                    client,
                    server,
                    &[&["-u", "-b", "20M", "-n", "1M"], direction].concat(),
                )?;
                assert!(udp >= 500_000, "{udp} bytes of UDP with {server}, {direction:?}");
            }
        }
    }
    let counts = agent.counts()?.since(&before);
    assert_eq!(counts.verdict("drop"), 0, "{counts:?}");
    Ok(())
}

#[test]
fn ping_is_answered_out_of_the_node_and_by_policy_into_it() -> Result<()> {
    let lab = Lab::new()?;
    let _agent = lab.agent(
        "version = 1\n[[service]]\nname = \"ping\"\nports = [\"icmp/echo\"]\nallow = [\"192.0.2.2\", \"2001:db8:1::2\"]\n",
    )?;
    let pings = |from: &Namespace, to: IpAddr, size: &str| {
        succeeds(
            from,
            "ping",
            &[
                "-n",
                "-c",
                "3",
                "-i",
                "0.01",
                "-W",
                "1",
                "-s",
                size,
                &to.to_string(),
            ],
        )
    };
    for Family {
        node,
        friend,
        node_b,
        stranger,
    } in FAMILIES
    {
        for size in ["56", "8000"] {
            assert!(pings(&lab.node, friend, size)?, "{size} bytes to {friend}");
            assert!(pings(&lab.node, stranger, size)?, "{size} bytes to {stranger}");
            assert!(pings(&lab.friend, node, size)?, "{size} bytes to {node}");
            assert!(!pings(&lab.stranger, node_b, size)?, "{size} bytes to {node_b}");
        }
    }
    Ok(())
}

#[test]
fn traceroute_sees_every_hop() -> Result<()> {
    let path = NarrowPath::new()?;
    let agent = Agent::start(&path.node, &["eth0"], CLOSED)?;
    let hops = [["192.0.2.2", "198.51.100.2"], ["2001:db8:1::2", "2001:db8:2::2"]];
    for ((_, far), [first, second]) in ENDS.into_iter().zip(hops) {
        for mode in ["--udp", "--icmp", "--tcp", "-d"] {
            // Without a mode of its own (`-d` only turns on a debugging option) each probe has a port of its own.
            let said = run(
                &path.node,
                "traceroute",
                &["-n", "-q", "2", "-w", "2", "-m", "4", mode, &far.to_string()],
            )?;
            let seen: Vec<&str> = said
                .lines()
                .skip(1)
                .filter_map(|line| line.split_whitespace().nth(1))
                .collect();
            ensure!(seen == [first, second, &far.to_string()], "{mode}: {said}");
            ensure!(!said.contains('*'), "{mode}, each probe answered: {said}");
        }
    }
    assert!(agent.counts()?.of("", "pass", "related") >= 16);
    Ok(())
}

fn ntp_server(namespace: &Namespace) -> Result<Daemon> {
    let daemon = Daemon::start(
        namespace,
        fetched("RAVELIN_CHRONYD", "chronyd"),
        &["-d", "-x", "-u", "root", "-f", "{dir}/chrony.conf"],
        &[(
            "chrony.conf",
            "local stratum 1\nallow all\ncmdport 0\nbindcmdaddress {dir}/socket\npidfile {dir}/pid\n",
        )],
    )?;
    wait_for_port(namespace, "udp", 123);
    Ok(daemon)
}

/// Whether a server tells the time, asked from port 123 or from any.
fn tells_the_time(namespace: &Namespace, server: IpAddr, from_its_port: bool) -> Result<bool> {
    let program = fetched("RAVELIN_CHRONYD", "chronyd");
    let dir = tempfile::tempdir()?;
    let place = |name: &str| dir.path().join(name).display().to_string();
    let ask = format!("server {server} iburst maxsamples 1");
    let pid = format!("pidfile {}", place("pid"));
    let socket = format!("bindcmdaddress {}", place("socket"));
    let source = if from_its_port {
        "acquisitionport 123"
    } else {
        "acquisitionport 0"
    };
    let arguments = [
        "-Q",
        "-t",
        "4",
        "-u",
        "root",
        &ask,
        "port 0",
        source,
        "cmdport 0",
        &pid,
        &socket,
    ];
    let output = output(namespace, &program.to_string_lossy(), &arguments)?;
    Ok(output.status.success())
}

#[test]
fn ntp_works_on_its_port_both_ways() -> Result<()> {
    let lab = Lab::new()?;
    let _servers = [ntp_server(&lab.friend)?, ntp_server(&lab.stranger)?];
    let agent = lab.agent(CLOSED)?;
    for Family { friend, .. } in FAMILIES {
        assert!(
            tells_the_time(&lab.node, friend, true)?,
            "from port 123 to {friend}"
        );
        assert!(
            tells_the_time(&lab.node, friend, false)?,
            "from any port to {friend}"
        );
    }
    let _server = ntp_server(&lab.node)?;
    agent.apply("version = 1\n[[service]]\nname = \"ntp\"\nports = [\"udp/123\"]\nallow = [\"192.0.2.2\", \"2001:db8:1::2\"]\n")?;
    for Family {
        node,
        node_b,
        stranger,
        ..
    } in FAMILIES
    {
        assert!(tells_the_time(&lab.friend, node, false)?, "{node} to the friend");
        assert!(
            !tells_the_time(&lab.stranger, node_b, false)?,
            "{node_b} to the stranger"
        );
        assert!(
            tells_the_time(&lab.node, stranger, false)?,
            "from any port to {stranger}"
        );
    }
    Ok(())
}
