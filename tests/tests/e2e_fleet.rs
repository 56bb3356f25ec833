//! A node of a fleet: signed documents from a store come in force on real packets, whatever else the store holds.

use anyhow::{Context, Result, ensure};
use ravelin::api::fleet::{DocumentRow, FleetStatus};
use ravelin_tests::fleet::{Fleet, OPERATOR, STRANGER, Signed, service};
use ravelin_tests::lab::{EVERYTHING, INTERFACES, NOTHING};
use ravelin_tests::{Agent, Lab, wait};

const PORT: u16 = 8080;
const FRIENDS: [&str; 2] = ["192.0.2.0/24", "2001:db8:1::/64"];
const STRANGERS: [&str; 2] = ["198.51.100.0/24", "2001:db8:2::/64"];
/// A policy file that opens nothing.
const NOTHING_OPEN: &str = "version = 1\n";

fn node(fleet: &Fleet, lab: &Lab, policy: &str) -> Result<Agent> {
    let config = fleet.config("node-1", "labels = { role = \"web\" }")?;
    lab.agent_with(policy, &[&config[0], &config[1]])
}

fn status(agent: &Agent) -> Result<FleetStatus> {
    agent.status()?.fleet.context("a node of a fleet")
}

fn row(agent: &Agent, name: &str) -> Result<DocumentRow> {
    let documents = status(agent)?.documents;
    let row = documents.into_iter().find(|row| row.name == name);
    Ok(row.unwrap_or_default())
}

/// Waits until a document is in this state, in this version.
#[track_caller]
fn wait_for(agent: &Agent, name: &str, state: &str, version: Option<u64>) {
    wait::until(&format!("{name} to be {state}"), || match row(agent, name) {
        Ok(row) if row.state == state && row.version == version => Ok(()),
        Ok(row) => Err(format!("{row:?}")),
        Err(error) => Err(format!("{error:#}")),
    });
}

/// Waits until what the store has of a document is refused for this reason.
#[track_caller]
fn wait_refused(agent: &Agent, name: &str, reason: &str) {
    wait::until(&format!("{name} to be refused as {reason}"), || {
        match row(agent, name) {
            Ok(row) if row.reason.as_deref() == Some(reason) => Ok(()),
            Ok(row) => Err(format!("{row:?}")),
            Err(error) => Err(format!("{error:#}")),
        }
    });
}

#[test]
fn a_signed_document_opens_a_port_and_a_tampered_one_does_not() -> Result<()> {
    let lab = Lab::new()?;
    let fleet = Fleet::in_directory()?;
    let agent = node(&fleet, &lab, NOTHING_OPEN)?;
    let _echo = lab.serve(PORT)?;
    assert_eq!(lab.friend_reaches(PORT), NOTHING);

    fleet.apply("web", "role=web", 1, &service("web", PORT, &FRIENDS))?;
    wait_for(&agent, "web", "in-force", Some(1));
    assert_eq!(
        (lab.friend_reaches(PORT), lab.stranger_reaches(PORT)),
        (EVERYTHING, NOTHING)
    );

    // Each of these would let the stranger in.
    let open = service("web", PORT, &[FRIENDS, STRANGERS].concat());
    let next = Signed::policy("web", "role=web", 2, &open);
    let good = String::from_utf8(next.seal(&fleet.key(OPERATOR))?)?;
    let before = Signed::policy("web", "role=web", 1, &open);
    for (reason, value) in [
        ("malformed", good.replace("198.51.100.0/24", "198.51.0.0/16")),
        (
            "bad-signature",
            good.replace("198.51.100.0/24", "198.51.101.0/24"),
        ),
        ("unsigned", String::from_utf8(next.0.to_bytes())?),
        (
            "unknown-signer",
            String::from_utf8(next.seal(&fleet.key(STRANGER))?)?,
        ),
        ("replayed", String::from_utf8(before.seal(&fleet.key(OPERATOR))?)?),
        ("malformed", "null".to_owned()),
    ] {
        fleet.put("policies/web", value.as_bytes())?;
        wait_refused(&agent, "web", reason);
        assert_eq!(
            (lab.friend_reaches(PORT), lab.stranger_reaches(PORT)),
            (EVERYTHING, NOTHING),
            "{reason}"
        );
        ensure!(
            row(&agent, "web")?.version == Some(1),
            "version 1 stays: {reason}"
        );
    }
    let audit = std::fs::read_to_string(agent.state_dir().join("audit.jsonl"))?;
    for reason in [
        "bad-signature",
        "unsigned",
        "unknown-signer",
        "replayed",
        "malformed",
    ] {
        ensure!(
            audit.contains(&format!("\"reason\":\"{reason}\"")),
            "{reason} is not in the audit log:\n{audit}"
        );
    }

    // The key vanishes, and all others with it: nothing changes.
    fleet.delete("policies/web")?;
    wait_for(&agent, "web", "withheld", Some(1));
    assert_eq!(lab.friend_reaches(PORT), EVERYTHING);

    fleet.put("policies/web", good.as_bytes())?;
    wait_for(&agent, "web", "in-force", Some(2));
    assert_eq!(
        (lab.friend_reaches(PORT), lab.stranger_reaches(PORT)),
        (EVERYTHING, EVERYTHING)
    );

    fleet.end("web", 3)?;
    wait::until_equal("the document to end", &0, || {
        status(&agent).map_or(usize::MAX, |status| status.documents.len())
    });
    assert_eq!(
        (lab.friend_reaches(PORT), lab.stranger_reaches(PORT)),
        (NOTHING, NOTHING)
    );
    Ok(())
}

#[test]
fn what_was_in_force_comes_back_from_disk_without_a_store() -> Result<()> {
    let lab = Lab::new()?;
    let fleet = Fleet::in_directory()?;
    let mut agent = node(&fleet, &lab, NOTHING_OPEN)?;
    let _echo = lab.serve(PORT)?;
    let list = FRIENDS.join("\n");
    let listed = "\n[groups]\nfriends = { file = \"list.txt\" }\n\n[[service]]\nname = \"web\"\nports = [\"tcp/8080\", \
                  \"udp/8080\"]\nallow = [\"@friends\"]\n";
    fleet.apply_list("web", 1, listed, &list)?;
    wait_for(&agent, "web", "in-force", Some(1));
    assert_eq!(lab.friend_reaches(PORT), EVERYTHING);
    let digest = agent.status()?.policy.digest;

    // As after a restart of the machine: nothing is pinned, and the store is not there.
    agent.kill()?;
    std::fs::remove_dir_all(agent.pins())?;
    std::fs::rename(fleet.root(), fleet.path().join("away"))?;
    wait::until_equal("the filter to be gone", &EVERYTHING, || {
        lab.stranger_reaches(PORT)
    });
    agent.launch(&lab.node)?;
    let status = agent.wait_ready()?;
    ensure!(status.policy.digest == digest, "another policy is in force");
    assert_eq!(
        (lab.friend_reaches(PORT), lab.stranger_reaches(PORT)),
        (EVERYTHING, NOTHING)
    );
    // The store comes back empty.
    std::fs::create_dir(fleet.root())?;
    wait_for(&agent, "web", "withheld", Some(1));
    assert_eq!(
        (lab.friend_reaches(PORT), lab.stranger_reaches(PORT)),
        (EVERYTHING, NOTHING)
    );
    Ok(())
}

#[test]
fn a_node_without_a_policy_waits_for_its_first_document() -> Result<()> {
    let lab = Lab::new()?;
    let fleet = Fleet::in_directory()?;
    let config = fleet.config("node-1", "")?;
    let mut agent = Agent::prepare(&lab.node, &INTERFACES, "", &[&config[0], &config[1]])?;
    std::fs::remove_file(agent.policy_file())?;
    agent.launch(&lab.node)?;
    wait::until("the store to be in reach", || match status(&agent) {
        Ok(status) if status.connected => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let waiting = agent.status()?;
    ensure!(
        !waiting.ready && waiting.policy.generation == 0,
        "it has no policy yet: {waiting:?}"
    );
    let _echo = lab.serve(PORT)?;
    assert_eq!(lab.stranger_reaches(PORT), EVERYTHING, "nothing is filtered yet");

    fleet.apply("web", "name=node-1", 1, &service("web", PORT, &FRIENDS))?;
    agent.wait_ready()?;
    assert_eq!(
        (lab.friend_reaches(PORT), lab.stranger_reaches(PORT)),
        (EVERYTHING, NOTHING)
    );
    agent.kill()?;
    agent.launch(&lab.node)?;
    agent.wait_ready()?;
    assert_eq!(
        (lab.friend_reaches(PORT), lab.stranger_reaches(PORT)),
        (EVERYTHING, NOTHING)
    );
    Ok(())
}

#[test]
fn documents_that_clash_are_refused_one_by_one_and_the_file_counts_as_one() -> Result<()> {
    let lab = Lab::new()?;
    let fleet = Fleet::in_directory()?;
    let file = format!("version = 1\n{}", service("local", 9000, &FRIENDS));
    let agent = node(&fleet, &lab, &file)?;
    let _echo = (lab.serve(PORT)?, lab.serve(9000)?, lab.serve(9001)?);
    fleet.apply("grabs", "*", 1, &service("grabs", 9000, &STRANGERS))?;
    fleet.apply("web", "*", 1, &service("web", PORT, &FRIENDS))?;
    wait_for(&agent, "web", "in-force", Some(1));
    wait_refused(&agent, "grabs", "conflict");
    let text = row(&agent, "grabs")?.text.unwrap_or_default();
    ensure!(
        text.contains("grabs:") && text.contains("policy.toml:"),
        "both places are named: {text}"
    );
    assert_eq!(
        (lab.friend_reaches(9000), lab.stranger_reaches(9000)),
        (EVERYTHING, NOTHING)
    );
    assert_eq!(lab.friend_reaches(PORT), EVERYTHING);

    // An edit of the file that takes what a document has is refused, and changes nothing.
    agent.write_policy(&format!("version = 1\n{}", service("local", PORT, &STRANGERS)))?;
    ensure!(agent.ok(&["reload"]).is_err(), "the port is the document's");
    assert_eq!(
        (lab.friend_reaches(PORT), lab.stranger_reaches(PORT)),
        (EVERYTHING, NOTHING)
    );
    // The file gives way.
    agent.apply(&format!("version = 1\n{}", service("local", 9001, &FRIENDS)))?;
    wait_for(&agent, "grabs", "in-force", Some(1));
    assert_eq!(
        (lab.friend_reaches(9000), lab.stranger_reaches(9000)),
        (NOTHING, EVERYTHING)
    );
    assert_eq!(lab.friend_reaches(9001), EVERYTHING);
    // A file that is broken does not hinder the fleet.
    agent.write_policy("version = 7")?;
    fleet.apply("grabs", "*", 2, &service("grabs", 9000, &FRIENDS))?;
    wait_for(&agent, "grabs", "in-force", Some(2));
    assert_eq!(
        (lab.friend_reaches(9000), lab.friend_reaches(9001)),
        (EVERYTHING, EVERYTHING)
    );
    ensure!(
        agent.status()?.policy.last_error.is_some(),
        "the file's mistake is told"
    );
    Ok(())
}

#[test]
fn who_is_not_trusted_any_more_closes_what_he_opened() -> Result<()> {
    let lab = Lab::new()?;
    let fleet = Fleet::in_directory()?;
    fleet.trust(&[OPERATOR, STRANGER])?;
    let agent = node(&fleet, &lab, NOTHING_OPEN)?;
    let _echo = lab.serve(PORT)?;
    let document = Signed::policy("web", "*", 1, &service("web", PORT, &STRANGERS));
    fleet.put("policies/web", &document.seal(&fleet.key(STRANGER))?)?;
    wait_for(&agent, "web", "in-force", Some(1));
    assert_eq!(lab.stranger_reaches(PORT), EVERYTHING);
    fleet.trust(&[OPERATOR])?;
    wait_for(&agent, "web", "rejected", None);
    assert_eq!(lab.stranger_reaches(PORT), NOTHING);
    // A file of signers that cannot be read changes nothing.
    fleet.apply("web", "*", 2, &service("web", PORT, &FRIENDS))?;
    wait_for(&agent, "web", "in-force", Some(2));
    std::fs::write(fleet.allowed_signers(), "garbage")?;
    wait::until("the mistake to be told", || match status(&agent) {
        Ok(status) if !status.degraded.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(lab.friend_reaches(PORT), EVERYTHING);
    Ok(())
}

#[test]
fn the_nodes_of_a_group_come_and_go() -> Result<()> {
    let lab = Lab::new()?;
    let fleet = Fleet::in_directory()?;
    let agent = node(&fleet, &lab, NOTHING_OPEN)?;
    let _echo = lab.serve(PORT)?;
    let group = "\n[groups]\nfrontends = { nodes = \"role=frontend\", within = [\"192.0.2.0/24\", \"198.51.100.0/25\", \
                 \"2001:db8::/32\"] }\n\n[[service]]\nname = \"web\"\nports = [\"tcp/8080\", \"udp/8080\"]\nallow = \
                 [\"@frontends\"]\n";
    fleet.apply("web", "*", 1, group)?;
    wait_for(&agent, "web", "in-force", Some(1));
    assert_eq!(lab.friend_reaches(PORT), NOTHING);

    // A real agent elsewhere registers, and is let in.
    let config = fleet.config(
        "front-1",
        "labels = { role = \"frontend\" }\naddresses = [\"192.0.2.2\", \"2001:db8:1::2\"]",
    )?;
    let flags = ["--config", &config[1], "--mode", "observe"];
    let front = Agent::start_with(&lab.friend, &["eth0"], NOTHING_OPEN, &flags)?;
    wait::until_equal("the frontend to be let in", &EVERYTHING, || {
        lab.friend_reaches(PORT)
    });
    assert_eq!(lab.stranger_reaches(PORT), NOTHING);
    ensure!(status(&front)?.registered, "it is registered");
    // Whoever owns the store says that he is a frontend, too, with an address that the document does not hold.
    let forged = "{\"registration\":\"{\\\"labels\\\":{\\\"name\\\":\\\"evil\\\",\\\"role\\\":\\\"frontend\\\"},\
                  \\\"addresses\\\":[\\\"198.51.100.200\\\",\\\"203.0.113.9\\\"]}\"}";
    fleet.put("nodes/evil", forged.as_bytes())?;
    wait::until("it to be seen", || match status(&agent) {
        Ok(status) if status.nodes >= 2 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(
        (lab.friend_reaches(PORT), lab.stranger_reaches(PORT)),
        (EVERYTHING, NOTHING)
    );
    Ok(())
}
