//! Everything that can happen to a fleet's store and to an agent of it, with traffic running: not one wrong verdict, and
//! when it is over the fleet's next word arrives.

use anyhow::{Context, Result, ensure};
use ravelin::api::fleet::{DocumentRow, FleetStatus};
use ravelin_tests::etcd::{Cluster, Place, ROOT};
use ravelin_tests::fleet::{Fleet, OPERATOR, Signed, service};
use ravelin_tests::lab::{EVERYTHING, NODE, NODE_B, NOTHING};
use ravelin_tests::program::nft;
use ravelin_tests::traffic::Trial;
use ravelin_tests::{Agent, Lab, wait};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

const PORT: u16 = 8080;
/// Datagrams a second, each way.
const RATE: u32 = 500;
/// An agent that waits between attempts, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A document that lets in the friend, and moves every number of the image from version to version.
fn web(version: u64) -> String {
    let mut text = service("web", PORT, &["192.0.2.0/24", "2001:db8:1::/64"]);
    for more in 0..version % 5 {
        text.push_str(&service(
            &format!("more-{more}"),
            9000 + more as u16,
            &["10.0.0.0/16"],
        ));
    }
    text
}

/// A lab whose node has a fleet of three etcd members on its own loopback.
struct Stage {
    lab: Lab,
    cluster: Cluster,
    fleet: Fleet,
    agent: Agent,
    version: u64,
}

impl Stage {
    fn new() -> Result<Stage> {
        let lab = Lab::new()?;
        let members: Vec<IpAddr> = (1..=3)
            .map(|last| Ipv4Addr::new(127, 0, 0, last).into())
            .collect();
        let cluster = Cluster::start(Place::inside("ravelin-test-etcd", &lab.node.path(), &members))?;
        let fleet = Fleet::in_etcd(&cluster, &lab.node)?;
        fleet.apply("web", "*", 1, &web(1))?;
        let config = fleet.config("node-1", "labels = { role = \"web\" }")?;
        let agent = lab.agent_with("version = 1\n", &[&config[0], &config[1]])?;
        let stage = Stage {
            lab,
            cluster,
            fleet,
            agent,
            version: 1,
        };
        stage.wait_in_force("the first document");
        Ok(stage)
    }

    fn trial(&self) -> Result<Trial> {
        let open = SocketAddr::new(NODE.into(), PORT);
        let shut = SocketAddr::new(NODE_B.into(), PORT);
        let lab = &self.lab;
        Trial::start(&lab.node, (&lab.friend, open), (&lab.stranger, shut), RATE)
    }

    #[track_caller]
    fn wait_in_force(&self, what: &str) {
        let version = Some(self.version);
        wait_until(what, || {
            let row = row(&self.agent, "web")?;
            ensure!(row.state == "in-force" && row.version == version, "{row:?}");
            Ok(())
        });
    }

    /// The fleet's next word arrives.
    #[track_caller]
    fn next(&mut self, after: &str) -> Result<()> {
        self.version += 1;
        let sent = Instant::now();
        self.fleet
            .apply("web", "*", self.version, &web(self.version))
            .with_context(|| format!("after {after}"))?;
        self.wait_in_force(&format!("version {} after {after}", self.version));
        println!(
            "after {after}: version {} in force in {:?}",
            self.version,
            sent.elapsed()
        );
        Ok(())
    }

    #[track_caller]
    fn wait_lost(&self, what: &str) {
        wait_until(what, || {
            let status = status(&self.agent)?;
            ensure!(!status.connected && status.error.is_some(), "{status:?}");
            Ok(())
        });
    }
}

/// [`wait::until`] for what takes an agent's patience.
#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> Result<()>) {
    let start = Instant::now();
    while let Err(last) = condition() {
        assert!(
            start.elapsed() < PATIENCE,
            "waited {PATIENCE:?} for {what}; last: {last:#}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn status(agent: &Agent) -> Result<FleetStatus> {
    agent.status()?.fleet.context("a node of a fleet")
}

fn row(agent: &Agent, name: &str) -> Result<DocumentRow> {
    let documents = status(agent)?.documents;
    let row = documents.into_iter().find(|row| row.name == name);
    Ok(row.unwrap_or_default())
}

#[test]
fn an_etcd_that_is_killed_stopped_cut_off_or_compacted_changes_nothing() -> Result<()> {
    let mut stage = Stage::new()?;
    let trial = stage.trial()?;

    stage.cluster.kill(0)?;
    stage.next("one member was killed")?;
    stage.cluster.kill(1)?;
    stage.wait_lost("quorum to be missed");
    trial.advance(200);
    stage.cluster.start_all()?;
    stage.next("quorum came back")?;

    stage.cluster.kill_all()?;
    stage.wait_lost("etcd to be missed");
    trial.advance(200);
    stage.cluster.start_all()?;
    stage.next("etcd was killed and came back")?;

    for member in stage.cluster.members() {
        stage.cluster.stop(member)?;
    }
    stage.wait_lost("a stopped etcd to be missed");
    trial.advance(200);
    for member in stage.cluster.members() {
        stage.cluster.go_on(member)?;
    }
    stage.cluster.wait_healthy()?;
    stage.next("etcd was stopped and went on")?;

    // Half-open: what is sent vanishes, and nobody says so.
    nft(
        &stage.lab.node,
        "table ip hole { chain out { type filter hook output priority 0;\ntcp dport 2379 drop\n}\n}\n",
    )?;
    stage.wait_lost("a black hole to be noticed");
    trial.advance(200);
    // A compaction while nobody watches: what changed meanwhile cannot be told one by one any more.
    nft(&stage.lab.node, "delete table ip hole\n")?;
    stage.cluster.compact()?;
    stage.next("etcd was cut off and compacted")?;

    trial.finish()?.all_right()?;
    Ok(())
}

#[test]
fn an_etcd_that_is_wiped_or_restored_takes_nothing_away() -> Result<()> {
    let mut stage = Stage::new()?;
    let trial = stage.trial()?;
    let backup = stage.cluster.backup("old.db")?;
    stage.next("a backup")?;
    stage.next("another one")?;

    stage.cluster.restore(&backup)?;
    wait_until("the older version to be refused", || {
        let row = row(&stage.agent, "web")?;
        ensure!(
            row.reason.as_deref() == Some("older") && row.version == Some(3),
            "{row:?}"
        );
        Ok(())
    });
    trial.advance(200);
    stage.next("an older state was restored")?;

    stage.cluster.wipe()?;
    wait_until("the document to be missed", || {
        let row = row(&stage.agent, "web")?;
        ensure!(row.state == "withheld" && row.version == Some(4), "{row:?}");
        Ok(())
    });
    trial.advance(200);
    // Over a restart, too.
    stage.agent.kill()?;
    stage.agent.launch(&stage.lab.node)?;
    stage.agent.wait_ready()?;
    trial.advance(200);
    assert_eq!(row(&stage.agent, "web")?.version, Some(4));
    wait_until("the node to be registered in the new store", || {
        ensure!(stage.fleet.get("nodes/node-1")?.is_some(), "it is not");
        Ok(())
    });
    // Whoever owns the store puts back what was signed long ago.
    let first = Signed::policy("web", "*", 1, &service("web", PORT, &["198.51.100.0/24"]));
    stage
        .fleet
        .put("policies/web", &first.seal(&stage.fleet.key(OPERATOR))?)?;
    wait_until("it to be refused", || {
        let row = row(&stage.agent, "web")?;
        ensure!(
            row.reason.as_deref() == Some("older") && row.version == Some(4),
            "{row:?}"
        );
        Ok(())
    });
    trial.advance(200);
    stage.next("etcd was wiped")?;
    trial.finish()?.all_right()?;
    Ok(())
}

#[test]
fn an_agent_killed_at_any_moment_of_an_apply_makes_no_wrong_verdict() -> Result<()> {
    let mut stage = Stage::new()?;
    let trial = stage.trial()?;
    for round in 0..12_u64 {
        stage.version += 1;
        stage
            .fleet
            .apply("web", "*", stage.version, &web(stage.version))?;
        // From before it hears of it until after it is in force.
        trial.advance(round * 20);
        stage.agent.kill()?;
        trial.advance(50);
        if round % 3 == 2 {
            // The store is away meanwhile: what was in force goes on.
            for member in stage.cluster.members() {
                stage.cluster.stop(member)?;
            }
            stage.agent.launch(&stage.lab.node)?;
            stage.agent.wait_ready()?;
            for member in stage.cluster.members() {
                stage.cluster.go_on(member)?;
            }
        } else {
            stage.agent.launch(&stage.lab.node)?;
            stage.agent.wait_ready()?;
        }
        stage.wait_in_force(&format!("round {round}"));
    }
    trial.finish()?.all_right()?;
    Ok(())
}

/// A file system of its own at a directory, for as long as it lives.
struct Mount<'a>(&'a Path);

impl Mount<'_> {
    fn new<'a>(at: &'a Path, options: &str) -> Result<Mount<'a>> {
        let directory = at.display().to_string();
        run(
            "mount",
            &["-t", "tmpfs", "-o", options, "ravelin-test", &directory],
        )?;
        Ok(Mount(at))
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &self.0.display().to_string()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = std::process::Command::new(program).args(arguments).status()?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}

#[test]
fn a_disk_that_is_full_or_read_only_hinders_no_change() -> Result<()> {
    let lab = Lab::new()?;
    let fleet = Fleet::in_directory()?;
    let config = fleet.config("node-1", "")?;
    let mut agent = Agent::prepare(
        &lab.node,
        &ravelin_tests::lab::INTERFACES,
        "version = 1\n",
        &[&config[0], &config[1]],
    )?;
    let state = agent.state_dir();
    std::fs::create_dir_all(&state)?;
    let _disk = Mount::new(&state, "size=4m")?;
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    let _echo = lab.serve(PORT)?;
    let in_force = |version: u64| {
        wait_until(&format!("version {version}"), || {
            let row = row(&agent, "web")?;
            ensure!(row.version == Some(version), "{row:?}");
            Ok(())
        });
    };
    fleet.apply(
        "web",
        "*",
        1,
        &service("web", PORT, &["192.0.2.0/24", "2001:db8:1::/64"]),
    )?;
    in_force(1);

    // Full to the last byte.
    let filler = state.join("filler");
    ensure!(
        std::fs::write(&filler, vec![1_u8; 8 << 20]).is_err(),
        "the disk is not full"
    );
    fleet.apply(
        "web",
        "*",
        2,
        &service("web", PORT, &["198.51.100.0/24", "2001:db8:2::/64"]),
    )?;
    in_force(2);
    assert_eq!(
        (lab.friend_reaches(PORT), lab.stranger_reaches(PORT)),
        (NOTHING, EVERYTHING)
    );
    wait_until("the full disk to be told", || {
        let degraded = status(&agent)?.degraded;
        ensure!(!degraded.is_empty(), "nothing is told");
        Ok(())
    });
    std::fs::remove_file(&filler)?;
    // What is open for writing keeps a disk from becoming read-only: another one stands in.
    let read_only = Mount::new(&state, "ro")?;
    fleet.apply(
        "web",
        "*",
        3,
        &service("web", PORT, &["192.0.2.0/24", "2001:db8:1::/64"]),
    )?;
    in_force(3);
    assert_eq!(
        (lab.friend_reaches(PORT), lab.stranger_reaches(PORT)),
        (EVERYTHING, NOTHING)
    );
    drop(read_only);
    fleet.apply(
        "web",
        "*",
        4,
        &service("web", PORT, &["198.51.100.0/24", "2001:db8:2::/64"]),
    )?;
    in_force(4);
    wait_until("it to be over", || {
        let degraded = status(&agent)?.degraded;
        ensure!(degraded.is_empty(), "{degraded:?}");
        Ok(())
    });
    agent.kill()?;
    Ok(())
}

/// Resident kilobytes, and open files.
fn footprint(agent: &Agent) -> Result<(u64, usize)> {
    let pid = agent.pid().context("it runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .context("its memory")?;
    Ok((resident, std::fs::read_dir(format!("/proc/{pid}/fd"))?.count()))
}

#[test]
fn thousands_of_changes_leave_memory_and_descriptors_as_they_were() -> Result<()> {
    // As many as a hundred a second make in a minute.
    const CHANGES: u64 = 6000;
    const AT_ONCE: u64 = 50;
    let mut stage = Stage::new()?;
    let trial = stage.trial()?;
    let mut first = None;
    let begin = Instant::now();
    for round in 0..CHANGES / AT_ONCE {
        let documents: Vec<Signed> = (1..=AT_ONCE)
            .map(|more| stage.version + more)
            .map(|version| Signed::policy("web", "*", version, &web(version)))
            .collect();
        let sealed = Signed::seal_all(&documents, &stage.fleet.key(OPERATOR))?;
        let values: Vec<(String, Vec<u8>)> = sealed
            .into_iter()
            .map(|envelope| ("policies/web".to_owned(), envelope))
            .collect();
        stage.fleet.put_all(&values)?;
        stage.version += AT_ONCE;
        if round == 9 {
            stage.wait_in_force("the first 500 changes");
            first = Some(footprint(&stage.agent)?);
        }
    }
    stage.wait_in_force("the last change");
    let (memory, files) = first.context("there were that many")?;
    let (memory_now, files_now) = footprint(&stage.agent)?;
    println!(
        "{CHANGES} changes in {:?}: {memory} KiB and {files} files became {memory_now} KiB and {files_now} files",
        begin.elapsed()
    );
    ensure!(files_now <= files + 4, "{files} open files became {files_now}");
    ensure!(
        memory_now < memory + memory / 4 + 8192,
        "{memory} KiB became {memory_now} KiB"
    );
    trial.finish()?.all_right()?;
    let objects = std::fs::read_dir(stage.agent.state_dir().join("fleet/objects"))?.count();
    ensure!(objects <= 2, "{objects} envelopes are kept of one document");
    Ok(())
}

#[test]
fn bans_of_the_fleet_hold_and_end_by_signed_words_only() -> Result<()> {
    let stage = Stage::new()?;
    let _echo = stage.lab.serve(PORT)?;
    let friend = "192.0.2.2";
    let key = format!("bans/{friend}");
    let fleet = &stage.fleet;
    assert!(stage.lab.friend_reaches(PORT)[0]);
    fleet.put(&key, &Signed::ban(friend, 1).seal(&fleet.key(OPERATOR))?)?;
    wait::until_equal("the friend to be banned", &false, || {
        stage.lab.friend_reaches(PORT)[0]
    });
    fleet.delete(&key)?;
    fleet.put(
        &key,
        &Signed::unban(friend, 2).seal(&fleet.key(ravelin_tests::fleet::STRANGER))?,
    )?;
    wait_until("the forged word to be refused", || {
        let refused = status(&stage.agent)?.refused;
        ensure!(refused.contains_key("unknown-signer"), "{refused:?}");
        Ok(())
    });
    assert!(!stage.lab.friend_reaches(PORT)[0]);
    fleet.put(&key, &Signed::unban(friend, 2).seal(&fleet.key(OPERATOR))?)?;
    wait::until_equal("the friend to be let in", &true, || {
        stage.lab.friend_reaches(PORT)[0]
    });
    // The user of nobody in particular cannot write a policy: see the roles of etcd.
    ensure!(
        stage
            .cluster
            .ctl(ROOT, &["get", "--prefix", "/ravelin/policies/", "--keys-only"])?
            .contains("web")
    );
    Ok(())
}
