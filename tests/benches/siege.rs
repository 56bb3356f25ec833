//! The flood scene: how an honest client of nginx fares while attackers take all that both processors have left, behind
//! nothing, nftables, and ravelin.
//!
//! The client opens 100 connections a second in an open loop, each with a request that has to be answered within a second of
//! its time, and asks for 100 echoes a second on a connection that stands. Generators run on every processor, in turn with the server, so
//! what a filter costs less, more packets show for it. Each defence has a stage of its own; an attack goes at all of them, one after
//! the other, so that other work on the machine meets them alike.

use anyhow::{Context, Result};
use ravelin_tests::bench::{Record, quick, wanted};
use ravelin_tests::program::nft;
use ravelin_tests::siege::{self, Assault, Family, Outcome, Siege, V4, V6};
use ravelin_tests::{Agent, lab};
use std::time::Duration;

/// Rules in force on a stage.
enum Filter {
    None,
    Nft(String),
    Ravelin,
}

/// What stands between.
struct Defence {
    row: &'static str,
    syncookies: u8,
    filter: Filter,
}

/// By which ravelin is judged.
const NFTABLES: &str = "nftables";
const SYNPROXY: &str = "nftables, synproxy";

fn defences() -> Vec<Defence> {
    let defence = |row, syncookies, filter| Defence {
        row,
        syncookies,
        filter,
    };
    vec![
        defence("no firewall, tcp_syncookies 0", 0, Filter::None),
        defence("no firewall, tcp_syncookies 1", 1, Filter::None),
        defence(NFTABLES, 1, Filter::Nft(siege::nftables())),
        defence(
            "nftables, limit per source",
            1,
            Filter::Nft(siege::nftables_per_source()),
        ),
        defence(SYNPROXY, 1, Filter::Nft(siege::nftables_synproxy().to_owned())),
        defence("ravelin, tcp_syncookies 1", 1, Filter::Ravelin),
        defence("ravelin, tcp_syncookies 2", 2, Filter::Ravelin),
    ]
}

const POLICY: &str = r#"version = 1
deny = ["172.16.0.0/12", "3fff::/20"]

[[service]]
name = "web"
ports = ["tcp/80", "tcp/7000"]
allow = ["10.0.0.0/8", "2001:db8::/32"]

[service.limits]
new_connections = { per_source = "200/s", burst = 400, total = "5000/s" }
packets = { per_source = "5000/s", total = "100000/s" }
connections = { per_source = 200 }
on_excess = "challenge"

[[service]]
name = "other"
ports = ["udp/5300"]
allow = ["10.0.0.0/8", "2001:db8::/32"]

[service.limits]
packets = { per_source = "1000/s", total = "20000/s" }
"#;

fn main() -> Result<()> {
    let wanted: Vec<(String, Family, Assault)> = [V4, V6]
        .into_iter()
        .flat_map(|family| Assault::ALL.map(|assault| (table(&family, assault), family, assault)))
        .filter(|(table, ..)| wanted(table))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    lab::prepare()?;
    let mut stages = Vec::new();
    for defence in defences() {
        let mut stage = Siege::new(defence.syncookies)?;
        stage.serve()?;
        let agent = match &defence.filter {
            Filter::None => None,
            Filter::Nft(rules) => {
                // Rules about connections make it there.
                nft(&stage.server, rules)?;
                let _ = stage.server.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0");
                None
            }
            Filter::Ravelin => Some(
                Agent::start_with(&stage.server, &["eth0"], POLICY, &["--hook", "xdp"])
                    .context("starting ravelin on its stage")?,
            ),
        };
        stages.push((agent, stage, defence));
    }
    let lasting = if quick() {
        Duration::from_millis(500)
    } else {
        Duration::from_millis(2500)
    };
    for (table, family, assault) in wanted {
        let (mut nftables, mut synproxy) = (0.0, 0.0);
        for (agent, stage, defence) in &mut stages {
            let is_ours = agent.is_some();
            if quick() && family.word == V6.word && !is_ours && ![NFTABLES, SYNPROXY].contains(&defence.row) {
                continue;
            }
            let outcome = stage
                .suffer(assault, &family, lasting)
                .with_context(|| format!("{}, {table}", defence.row))?;
            match defence.row {
                NFTABLES => nftables = outcome.shed,
                SYNPROXY => synproxy = outcome.shed,
                _ => {}
            }
            let floor = if assault.is_syn_flood() {
                f64::max(nftables, 3.0 * synproxy)
            } else {
                nftables
            };
            report(&table, defence.row, assault, &outcome, is_ours.then_some(floor))?;
        }
    }
    Ok(())
}

fn table(family: &Family, assault: Assault) -> String {
    format!("flood scene, {}: {}", family.word, assault.words())
}

/// `floor`: packets a second that have to be shed; where this is ravelin.
fn report(table: &str, row: &str, assault: Assault, outcome: &Outcome, floor: Option<f64>) -> Result<()> {
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    let record = |column, value, unit| Record::new(table, row, column, value, unit);
    let judged = |record: Record, judge: fn(Record, f64) -> Record, goal: f64| match floor {
        Some(_) => judge(record, goal),
        None => record,
    };
    let requests = &outcome.requests;
    judged(
        record("answered", requests.success(), "%"),
        Record::at_least,
        100.0,
    )
    .write()?;
    record("p50", milliseconds(requests.quantile(0.5)), "ms").write()?;
    judged(
        record("p99", milliseconds(requests.quantile(0.99)), "ms"),
        Record::at_most,
        10.0,
    )
    .write()?;
    record("longest stall", milliseconds(outcome.held.longest_stall), "ms").write()?;
    if assault.is_flood() {
        let shed = record("shed", outcome.shed / 1e3, "kpps");
        judged(shed, Record::at_least, floor.unwrap_or_default() / 1e3).write()?;
        record("softirq time for each", outcome.shed_ns, "ns").write()?;
    }
    if assault == Assault::SlowHeaders {
        record("slow clients in", outcome.slow as f64, "").write()?;
    }
    Ok(())
}
