//! What somebody else takes off is put back within a second, with an alarm: a log line, a metric, words in the status.
//! What came in meanwhile is counted.

use anyhow::{Context, Result, ensure};
use ravelin_tests::kernel::detach_link;
use ravelin_tests::lab::{EVERYTHING, INTERFACES, NODE_B, NOTHING};
use ravelin_tests::traffic::{Received, Sink, Stream};
use ravelin_tests::{Agent, Lab, wait};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

const POLICY: &str = "version = 1\n[[service]]\nname = \"web\"\nports = [\"udp/8080\", \"tcp/8080\"]\nallow = [\"192.0.2.2\", \"2001:db8:1::2\"]\n";

const PER_SECOND: u32 = 2000;

/// A denied stream to eth1 while somebody interferes.
struct Siege {
    lab: Lab,
    agent: Agent,
    stream: Stream,
    sink: Sink,
}

impl Siege {
    fn new(flags: &[&str]) -> Result<Siege> {
        let lab = Lab::new()?;
        let agent = Agent::start_with(&lab.node, &INTERFACES, POLICY, flags)?;
        let to = SocketAddr::from((NODE_B, 8082));
        let sink = Sink::start(&lab.node, to)?;
        let stream = Stream::start(&lab.stranger, to, PER_SECOND)?;
        stream.advance(100);
        ensure!(sink.received() == 0, "the stream is not denied");
        Ok(Siege {
            lab,
            agent,
            stream,
            sink,
        })
    }

    /// The pin of a link of eth1.
    fn pin(&self, kind: &str) -> Result<std::path::PathBuf> {
        let index = self.lab.node.ifindex("eth1")?;
        Ok(self.agent.pins().join(format!("{kind}-{index}")))
    }

    fn tc(&self, arguments: &str) -> Result<()> {
        let output = self
            .lab
            .node
            .run(|| Command::new("tc").args(arguments.split_whitespace()).output())
            .context("starting tc (package iproute2)")?;
        ensure!(
            output.status.success(),
            "tc {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn repairs(&self, part: &str) -> Result<f64> {
        let labels = [("interface", "eth1"), ("part", part)];
        self.agent
            .metric(&self.lab.node, "ravelin_repairs_total", &labels)
    }

    /// Takes something off, waits until the parts are put back, and gives what came in.
    fn repairs_after(self, parts: &[&str], take_off: impl FnOnce(&Siege) -> Result<()>) -> Result<Received> {
        let start = Instant::now();
        take_off(&self)?;
        for part in parts {
            wait::until(&format!("{part} to be put back"), || match self.repairs(part) {
                Ok(1.0) => Ok(()),
                Ok(count) => Err(format!("{count} repairs")),
                Err(error) => Err(format!("{error:#}")),
            });
        }
        let took = start.elapsed();
        let leaked = self.sink.received();
        self.stream.advance(200);
        ensure!(self.sink.received() == leaked, "still open after the repair");

        let status = self.agent.status()?;
        let eth1 = status
            .interfaces
            .iter()
            .find(|each| each.name == "eth1")
            .context("no eth1 in the status")?;
        ensure!(eth1.repairs == parts.len() as u64, "{eth1:?}");
        let last = eth1.last_repair.as_deref().unwrap_or_default();
        ensure!(last.contains("somebody"), "{last}");
        let log = self.agent.log();
        for part in parts {
            ensure!(log.contains(&format!("was open at {part}")), "{log}");
        }
        ensure!(
            self.agent
                .ok(&["status"])?
                .contains("Taken off by somebody else and put back"),
            "the status is silent"
        );

        let sent = self.stream.stop()?;
        let leaked = self.sink.finish(sent)?;
        println!(
            "{parts:?} put back after {took:?}; {} of {sent} denied datagrams came in, within {:?}",
            leaked.count, leaked.span
        );
        ensure!(took < Duration::from_secs(1), "the repair took {took:?}");
        ensure!(leaked.span < Duration::from_secs(1), "open for {:?}", leaked.span);
        let _echo = self.lab.serve(8080)?;
        assert_eq!(self.lab.friend_reaches(8080), EVERYTHING);
        assert_eq!(self.lab.stranger_reaches(8080), NOTHING);
        Ok(leaked)
    }

    /// Interferes and sees to it that nothing comes of it.
    fn withstands(self, take_off: impl FnOnce(&Siege) -> Result<()>) -> Result<()> {
        take_off(&self)?;
        self.stream.advance(u64::from(PER_SECOND));
        for part in ["xdp", "tc", "egress"] {
            assert_eq!(self.repairs(part)?, 0.0, "{part}");
        }
        let sent = self.stream.stop()?;
        assert_eq!(self.sink.finish(sent)?.count, 0);
        Ok(())
    }
}

#[test]
fn an_xdp_link_that_somebody_detached_is_put_back() -> Result<()> {
    let leaked = Siege::new(&[])?.repairs_after(&["xdp"], |siege| detach_link(&siege.pin("xdp")?))?;
    assert!(leaked.count > 0, "the link was not off at all");
    Ok(())
}

#[test]
fn an_xdp_link_whose_pin_somebody_removed_is_put_back() -> Result<()> {
    Siege::new(&[])?.repairs_after(&["xdp"], |siege| Ok(std::fs::remove_file(siege.pin("xdp")?)?))?;
    Ok(())
}

#[test]
fn an_egress_link_that_somebody_detached_is_put_back() -> Result<()> {
    let siege = Siege::new(&[])?;
    if !siege.pin("egress")?.exists() {
        println!("SKIPPED: this kernel has no TCX links (6.6, kernel commit e420bed02507)");
        return Ok(());
    }
    let leaked = siege.repairs_after(&["egress"], |siege| detach_link(&siege.pin("egress")?))?;
    assert_eq!(leaked.count, 0);
    Ok(())
}

#[test]
fn a_tcx_ingress_link_that_somebody_detached_is_put_back() -> Result<()> {
    let siege = Siege::new(&["--hook", "tc"])?;
    if !siege.pin("tc")?.exists() {
        println!("SKIPPED: this kernel has no TCX links (6.6, kernel commit e420bed02507)");
        return Ok(());
    }
    let leaked = siege.repairs_after(&["tc"], |siege| detach_link(&siege.pin("tc")?))?;
    assert!(leaked.count > 0, "the link was not off at all");
    Ok(())
}

#[test]
fn a_clsact_qdisc_that_somebody_deleted_is_put_back_with_both_filters() -> Result<()> {
    let leaked = Siege::new(&["--hook", "tc", "--without", "tcx"])?
        .repairs_after(&["tc", "egress"], |siege| siege.tc("qdisc del dev eth1 clsact"))?;
    assert!(leaked.count > 0, "the filter was not off at all");
    Ok(())
}

#[test]
fn a_filter_that_somebody_deleted_is_put_back() -> Result<()> {
    let leaked = Siege::new(&["--hook", "tc", "--without", "tcx"])?
        .repairs_after(&["tc"], |siege| siege.tc("filter del dev eth1 ingress"))?;
    assert!(leaked.count > 0, "the filter was not off at all");
    Ok(())
}

/// A program on a link gives way neither to `ip link set xdp off` nor to another qdisc.
#[test]
fn links_withstand_what_is_not_about_links() -> Result<()> {
    Siege::new(&[])?.withstands(|siege| {
        let off = siege.lab.node.ip("link set dev eth1 xdp off");
        println!("ip link set dev eth1 xdp off: {off:?}");
        siege.tc("qdisc add dev eth1 clsact")?;
        siege.tc("qdisc del dev eth1 clsact")
    })
}
