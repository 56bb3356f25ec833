//! What is far more than usual is told, with who sends it, and that it is over.

use anyhow::{Context, Result, ensure};
use ravelin::api::types::{AnomalyList, AnomalyRow, MonitorRecord};
use ravelin_tests::agent::binary;
use ravelin_tests::lab::{FRIEND6, NODE_B, NODE6, STRANGER};
use ravelin_tests::traffic::{self, Sink, Stream};
use ravelin_tests::{Agent, Lab, wait};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const POLICY: &str = "version = 1\n[[service]]\nname = \"web\"\nports = [\"udp/8080\", \"tcp/8080\"]\nallow = [\"2001:db8:1::/64\"]\n\
                      [[service]]\nname = \"idle\"\nports = [\"tcp/9\"]\nallow = [\"2001:db8:1::/64\"]\n";

/// A sample each 100 ms, judged after two seconds.
const SETTINGS: &str = "[detect]\ninterval = \"100ms\"\nwarm_up = \"2s\"\nends_after = \"3s\"\n\
                        [detect.floors]\ndrops = 200\nnew_connections = 20\nbytes = 100000\n";

/// An agent with these lines in its agent.toml.
fn agent(lab: &Lab, settings: &str) -> Result<(Agent, tempfile::NamedTempFile)> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), settings)?;
    let path = file
        .path()
        .to_str()
        .context("a path of this test's own")?
        .to_owned();
    Ok((lab.agent_with(POLICY, &["--config", &path])?, file))
}

fn list(agent: &Agent) -> Result<AnomalyList, String> {
    agent.json(&["anomalies"]).map_err(|error| format!("{error:#}"))
}

fn find<'a>(list: &'a AnomalyList, service: &str, kind: &str) -> Option<&'a AnomalyRow> {
    list.anomalies
        .iter()
        .find(|row| row.service == service && row.kind == kind)
}

/// Waits until nothing is learned any more.
fn wait_warm(agent: &Agent) {
    wait::until("all series to be judged", || match list(agent)? {
        AnomalyList {
            enabled: true,
            watched: 7,
            learning: 0,
            ..
        } => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// Waits until this is told, with this source as the first.
fn wait_told(agent: &Agent, service: &str, kind: &str, source: &str) -> AnomalyRow {
    let what = format!("{kind} of {service} to be told, from {source}");
    let (row, _) = wait::until(&what, || {
        let list = list(agent)?;
        match find(&list, service, kind) {
            Some(row) if row.sources.first().is_some_and(|first| first.source == source) => Ok(row.clone()),
            _ => Err(format!("{list:?}")),
        }
    });
    row
}

fn wait_over(agent: &Agent) {
    wait::until("all to be over", || {
        let list = list(agent)?;
        match list.anomalies.is_empty() {
            true => Ok(()),
            false => Err(format!("{list:?}")),
        }
    });
}

/// `ravelin monitor -o json`, read as it comes.
struct Monitor {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Monitor {
    fn start(agent: &Agent) -> Result<Monitor> {
        let mut child = Command::new(binary()?)
            .args(["monitor", "-o", "json", "--socket"])
            .arg(agent.socket())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("piped")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                sink.lock().expect("no panic holds it").push(line);
            }
        });
        Ok(Monitor { child, lines })
    }

    /// What was told of one kind so far: `begins`, `ends`.
    fn told(&self, service: &str, kind: &str) -> Vec<String> {
        let lines = self.lines.lock().expect("no panic holds it");
        let records = lines.iter().map(|line| {
            serde_json::from_str::<MonitorRecord>(line).unwrap_or_else(|error| panic!("{line}: {error}"))
        });
        records
            .filter_map(|record| match record {
                MonitorRecord::Anomaly(record)
                    if (&*record.row.service, &*record.row.kind) == (service, kind) =>
                {
                    Some(record.anomaly)
                }
                _ => None,
            })
            .collect()
    }

    fn wait_told(&self, service: &str, kind: &str, expected: &[&str]) {
        let what = format!("{expected:?} of {kind} in the stream");
        wait::until(&what, || match self.told(service, kind) {
            told if told == expected => Ok(()),
            told => Err(format!("{told:?}")),
        });
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_burst_of_drops_is_told_with_its_source_until_it_is_over() -> Result<()> {
    let lab = Lab::new()?;
    let (agent, _file) = agent(&lab, SETTINGS)?;
    wait_warm(&agent);
    let flag = |service: &str| {
        let labels = [("service", service), ("kind", "drops")];
        agent.metric(&lab.node, "ravelin_anomaly", &labels)
    };
    assert_eq!(flag("web")?, 0.0);
    assert!(agent.status()?.anomalies.is_empty());
    assert_eq!(agent.ok(&["anomalies"])?, "nothing is far from usual\n");
    let monitor = Monitor::start(&agent)?;

    let burst = Stream::start(&lab.stranger, SocketAddr::new(NODE_B.into(), 8080), 5000)?;
    let row = wait_told(&agent, "web", "drops", &STRANGER.to_string());
    assert!(row.rate > row.limit && row.limit >= 200.0, "{row:?}");
    assert!(row.sources[0].share > 0.9, "{row:?}");
    assert_eq!((flag("web")?, flag("idle")?), (1.0, 0.0));
    let status = agent.status()?;
    let found = status.anomalies.iter().map(|row| (&*row.service, &*row.kind));
    assert_eq!(found.collect::<Vec<_>>(), [("web", "drops")]);
    let (text, table) = (agent.ok(&["status"])?, agent.ok(&["anomalies"])?);
    for text in [text, table] {
        assert!(
            text.contains("ANOMALY") && text.contains(&STRANGER.to_string()),
            "{text}"
        );
    }
    monitor.wait_told("web", "drops", &["begins"]);

    burst.stop()?;
    wait_over(&agent);
    assert_eq!(flag("web")?, 0.0);
    monitor.wait_told("web", "drops", &["begins", "ends"]);
    let log = agent.log();
    let told = |word: &str| log.lines().filter(|line| line.contains(word)).count();
    assert_eq!(
        (
            told("anomaly begins: drops of service web"),
            told("anomaly ends: drops of service web")
        ),
        (1, 1),
        "{log}"
    );
    let (_, page) = agent.http(&lab.node, "/metrics")?;
    assert!(!page.contains(&STRANGER.to_string()), "{page}");
    Ok(())
}

#[test]
fn a_burst_of_traffic_is_told_by_prefix_and_what_is_off_tells_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let (mut agent, file) = agent(&lab, SETTINGS)?;
    wait_warm(&agent);
    let to = SocketAddr::new(NODE6.into(), 8080);
    let sink = Sink::start(&lab.node, to)?;
    let burst = Stream::start(&lab.friend, to, 5000)?;
    let row = wait_told(&agent, "web", "bytes", "2001:db8:1::/64");
    ensure!(
        FRIEND6.segments()[..4] == NODE6.segments()[..4],
        "the friend is in that prefix"
    );
    assert!(row.peak >= row.rate && row.rate > 100_000.0, "{row:?}");
    let sent = burst.stop()?;
    assert!(sink.finish(sent)?.count > 0);
    wait_over(&agent);

    agent.terminate()?;
    std::fs::write(file.path(), "[detect]\nenabled = false\n")?;
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    assert_eq!(agent.json::<AnomalyList>(&["anomalies"])?, AnomalyList::default());
    assert!(agent.ok(&["anomalies"])?.contains("detection is off"));
    let (_, page) = agent.http(&lab.node, "/metrics")?;
    assert!(!page.contains("ravelin_anomaly"), "{page}");
    Ok(())
}

#[test]
fn a_burst_of_new_connections_is_told_with_its_source() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.serve(8080)?;
    let (agent, _file) = agent(&lab, SETTINGS)?;
    wait_warm(&agent);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let opener = scope.spawn(|| {
            let to = SocketAddr::new(NODE6.into(), 8080);
            lab.friend.run(|| {
                let mut opened = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    opened += u64::from(traffic::tcp_open(to).is_ok());
                }
                opened
            })
        });
        let row = wait_told(&agent, "web", "new_connections", "2001:db8:1::/64");
        assert!(row.rate > row.limit, "{row:?}");
        stop.store(true, Ordering::Relaxed);
        assert!(opener.join().expect("no panic") > 20);
    });
    wait_over(&agent);
    Ok(())
}
