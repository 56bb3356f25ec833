//! What a bulk transfer loses to the filter: iperf3 over veth with GSO, without a filter, with an XDP program that does
//! nothing, with ravelin, and with nftables and its connection tracking, on the same wire and in turns.
//!
//! Other work on the machine moves all figures of a round; so each is set against the unfiltered one of the same
//! round, and the median of the rounds counts.

use anyhow::{Context, Result};
use ravelin_tests::agent::PREFIX;
use ravelin_tests::bench::{Record, quick, wanted};
use ravelin_tests::bpf::empty_pass;
use ravelin_tests::kernel::attach_xdp;
use ravelin_tests::netns::{Namespace, link};
use ravelin_tests::program::{Daemon, nft, run};
use ravelin_tests::stack::wait_for_port;
use ravelin_tests::{Agent, lab};
use std::os::fd::AsFd;

const TABLE: &str = "iperf3 over veth with GSO, share of no filter";
const RATE: &str = "iperf3 over veth with GSO, no filter";

const NODE: &str = "192.0.2.1";
const POLICY: &str =
    "version = 1\n[[service]]\nname = \"iperf3\"\nports = [\"tcp/5201\"]\nallow = [\"192.0.2.2\"]\n";
/// The same policy: what is established, and the service's port from the peer.
const RULES: &str = "table inet filter {\nchain input {\ntype filter hook input priority 0; policy drop;\n\
                     ct state established,related accept\nip saddr 192.0.2.2 tcp dport 5201 accept\n}\n}\n";

/// (row, how)
const FILTERS: [(&str, Filter); 4] = [
    ("an empty XDP program", Filter::EmptyXdp),
    ("ravelin, hook = xdp", Filter::Ravelin("xdp")),
    ("ravelin, hook = tc", Filter::Ravelin("tc")),
    ("nftables with conntrack", Filter::Nftables),
];

/// (column, iperf3's option)
const DIRECTIONS: [(&str, Option<&str>); 2] = [("in", None), ("out", Some("-R"))];

#[derive(Clone, Copy)]
enum Filter {
    EmptyXdp,
    Ravelin(&'static str),
    Nftables,
}

fn main() -> Result<()> {
    if !wanted(TABLE) && !wanted(RATE) {
        return Ok(());
    }
    lab::prepare()?;
    let node = Namespace::unique(PREFIX, "node")?;
    let peer = Namespace::unique(PREFIX, "peer")?;
    link((&node, "eth0"), (&peer, "eth0"), 1500)?;
    node.address("eth0", &format!("{NODE}/24"))?;
    peer.address("eth0", "192.0.2.2/24")?;
    let _server = Daemon::start(&node, "iperf3", &["-s"], &[])?;
    wait_for_port(&node, "tcp", 5201);

    let (rounds, seconds) = if quick() { (3, "1") } else { (9, "2") };
    let mut base = vec![Vec::new(); DIRECTIONS.len()];
    let mut shares = vec![vec![Vec::new(); DIRECTIONS.len()]; FILTERS.len()];
    for _ in 0..rounds {
        let unfiltered = measure(&peer, seconds)?;
        for (all, rate) in base.iter_mut().zip(&unfiltered) {
            all.push(*rate);
        }
        for (shares, (_, filter)) in shares.iter_mut().zip(FILTERS) {
            let rates = match filter {
                Filter::EmptyXdp => {
                    let (program, ifindex) = (empty_pass()?, node.ifindex("eth0")?);
                    let _link = node.run(|| attach_xdp(program.as_fd(), ifindex))?;
                    measure(&peer, seconds)?
                }
                Filter::Ravelin(hook) => {
                    let _agent = Agent::start_with(&node, &["eth0"], POLICY, &["--hook", hook])?;
                    measure(&peer, seconds)?
                }
                Filter::Nftables => {
                    nft(&node, RULES)?;
                    let rates = measure(&peer, seconds);
                    run(&node, "nft", &["flush", "ruleset"])?;
                    rates?
                }
            };
            for ((all, rate), of) in shares.iter_mut().zip(rates).zip(&unfiltered) {
                all.push(rate / of);
            }
        }
    }
    for (index, (column, _)) in DIRECTIONS.iter().enumerate() {
        Record::new(
            RATE,
            "no filter",
            column,
            median(&mut base[index]) / 1e9,
            "Gbit/s",
        )
        .write()?;
        for (shares, (row, filter)) in shares.iter_mut().zip(FILTERS) {
            let mut record = Record::new(TABLE, row, column, median(&mut shares[index]), "x");
            if matches!(filter, Filter::Ravelin(_)) {
                record = record.at_least(0.97);
            }
            if matches!(filter, Filter::Ravelin("xdp")) && *column == "in" {
                record = record
                    .note("for native XDP a veth takes segmentation offload from its peer (veth_xdp_set)");
            }
            record.write()?;
        }
    }
    Ok(())
}

/// Bits a second in each direction.
fn measure(peer: &Namespace, seconds: &str) -> Result<Vec<f64>> {
    DIRECTIONS
        .iter()
        .map(|(_, option)| {
            let mut arguments = vec!["-c", NODE, "-t", seconds, "-J"];
            arguments.extend(option);
            let text = run(peer, "iperf3", &arguments)?;
            let report: serde_json::Value = serde_json::from_str(&text).context("reading iperf3's report")?;
            report["end"]["sum_received"]["bits_per_second"]
                .as_f64()
                .with_context(|| format!("no rate in iperf3's report: {text}"))
        })
        .collect()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
