//! A flood of denied packets over veth, and the time from a policy file to its being enforced, both against nftables.
//!
//! The generator is a program of its own (live frames redirected into one end of a veth pair, 65,536 sources in
//! rotation); it and the receiver share a core, so the time of a run is that of both. The filters take turns. Shares are of
//! an empty XDP_DROP at the other end.

use anyhow::{Context, Result, ensure};
use ravelin::datapath::{Datapath, Hook, NodeConfig, detach_all, netlink};
use ravelin::policy::compile::compile;
use ravelin::policy::file::load;
use ravelin::simulate::FrameBuilder;
use ravelin_tests::bench::Record;
use ravelin_tests::bpf::empty_drop;
use ravelin_tests::kernel::flood;
use ravelin_tests::netns::{Namespace, link};
use ravelin_tests::rotate::{End, Rotation, SOURCES};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const FLOOD: &str = "veth drop flood, share of an empty XDP_DROP";
const LOAD: &str = "seconds from file to enforced";

fn main() -> Result<()> {
    let quick = std::env::var("RAVELIN_BENCH_QUICK").is_ok_and(|value| !value.is_empty());
    let only = std::env::var("RAVELIN_BENCH_ONLY").unwrap_or_default();
    if !FLOOD.contains(&only) && !LOAD.contains(&only) {
        return Ok(());
    }
    let sizes: &[usize] = if quick {
        &[10, 1_000, 100_000]
    } else {
        &[10, 1_000, 100_000, 1_000_000]
    };
    for size in sizes {
        measure(*size)?;
    }
    Ok(())
}

fn measure(size: usize) -> Result<()> {
    let column = match size {
        1_000_000.. => format!("{}M", size / 1_000_000),
        1_000.. => format!("{}k", size / 1_000),
        _ => size.to_string(),
    };
    let scratch = tempfile::tempdir()?;
    // Distinct /32s spread by an odd multiplier over 16.0.0.0/4 and 32.0.0.0/4.
    let prefixes: Vec<u32> = (0..size as u32)
        .map(|n| 0x1000_0000 + (n.wrapping_mul(0x9e37_79b1) & 0x1fff_ffff))
        .collect();
    let list: String = prefixes.iter().fold(String::new(), |mut text, address| {
        let _ = writeln!(text, "{}", Ipv4Addr::from(*address));
        text
    });
    std::fs::write(scratch.path().join("blocked.txt"), list)?;
    let policy = scratch.path().join("policy.toml");
    std::fs::write(
        &policy,
        "version = 1\ndeny = [\"@blocked\"]\n[groups]\nblocked = { file = \"blocked.txt\" }\n\
         [[service]]\nname = \"web\"\nports = [\"udp/80\"]\nallow = [\"any\"]\n",
    )?;
    let sources: Vec<IpAddr> = (0..SOURCES)
        .map(|n| IpAddr::V4(prefixes[n * 7919 % size].into()))
        .collect();

    let sender = Namespace::unique("rb", "tx")?;
    let receiver = Namespace::unique("rb", "rx")?;
    link((&sender, "tx0"), (&receiver, "rx0"), 1500)?;
    for (namespace, interface) in [(&sender, "tx0"), (&receiver, "rx0")] {
        Command::new("nsenter")
            .arg(format!("--net={}", namespace.path().display()))
            .args(["ethtool", "-K", interface, "gro", "on"])
            .status()
            .context("ethtool, which turns on the NAPI that redirected frames need")?;
    }
    let ifindex = sender.ifindex("tx0")?;
    let mac = receiver.ip("-br link show rx0")?;
    let mac = mac
        .split_whitespace()
        .nth(2)
        .context("the address of rx0")?
        .to_owned();

    let run = |label: &str| -> Result<f64> {
        let mut best = 0_f64;
        for _ in 0..3 {
            best = best.max(rate(&sender, &receiver, ifindex, &sources, &mac, label)?);
        }
        Ok(best)
    };

    // Empty.
    let empty = empty_drop()?;
    let base = {
        let index = receiver.ifindex("rx0")?;
        let _link = receiver.run(|| ravelin_tests::kernel::attach_xdp(empty.as_fd(), index))?;
        run("empty")?
    };
    Record::new(
        "veth drop flood, packets per second",
        "empty XDP_DROP",
        &column,
        base,
        "pps",
    )
    .write()?;

    // Ravelin, loaded from the file.
    let pins = Path::new("/sys/fs/bpf/ravelin").join(format!("bench-{}", std::process::id()));
    let ours = receiver.run(|| -> Result<f64> {
        let mut datapath = Datapath::open(&pins)?;
        let before = Instant::now();
        let loaded = load(&policy, 0).map_err(|error| anyhow::anyhow!("{error}"))?;
        let compiled = compile(&loaded.policy)?;
        datapath.switch(&compiled, 1)?;
        let took = before.elapsed().as_secs_f64();
        let mut record = Record::new(LOAD, "ravelin", &column, took, "s");
        if size == 1_000_000 {
            record = record.at_most(2.0);
        }
        record.write()?;
        Record::new(
            "memory of the image",
            "image",
            &column,
            compiled.image.len() as f64 / 1e6,
            "MB",
        )
        .write()?;
        drop((loaded, compiled));
        datapath.configure(&NodeConfig::default())?;
        let interface = netlink::interfaces()?
            .into_iter()
            .find(|interface| interface.name == "rx0")
            .context("rx0")?;
        datapath.attach(&interface, Hook::Auto)?;
        let rate = run("ravelin");
        detach_all(&pins)?;
        rate
    })?;
    Record::new(FLOOD, "ravelin", &column, ours / base, "x").write()?;

    // nftables.
    let elements = prefixes
        .iter()
        .map(|address| Ipv4Addr::from(*address).to_string())
        .collect::<Vec<_>>()
        .join(",");
    let mut netdev = 0.0;
    for (row, family, hook) in [
        (
            "nft netdev ingress",
            "netdev",
            "type filter hook ingress device rx0 priority 0;",
        ),
        ("nft inet input", "inet", "type filter hook input priority 0;"),
    ] {
        let file = scratch.path().join("rules.nft");
        std::fs::write(
            &file,
            format!(
                "table {family} bench {{ set blocked {{ type ipv4_addr; flags interval; elements = {{ {elements} }}\n}}\n\
                 chain input {{ {hook}\nip saddr @blocked drop\n}}\n}}\n"
            ),
        )?;
        let before = Instant::now();
        let status = Command::new("nsenter")
            .arg(format!("--net={}", receiver.path().display()))
            .args(["nft", "-f"])
            .arg(&file)
            .status()
            .context("nft")?;
        ensure!(status.success(), "nft -f failed");
        if family == "netdev" {
            Record::new(LOAD, "nft -f", &column, before.elapsed().as_secs_f64(), "s").write()?;
        }
        let theirs = run(row)?;
        Record::new(FLOOD, row, &column, theirs / base, "x").write()?;
        if family == "netdev" {
            netdev = theirs;
        }
        Command::new("nsenter")
            .arg(format!("--net={}", receiver.path().display()))
            .args(["nft", "flush", "ruleset"])
            .status()?;
    }
    Record::new(
        "veth drop flood, ravelin over nft netdev ingress",
        "ravelin",
        &column,
        ours / netdev,
        "x",
    )
    .at_least(2.5)
    .write()
}

/// Packets per second that the receiver took.
fn rate(
    sender: &Namespace,
    receiver: &Namespace,
    ifindex: u32,
    sources: &[IpAddr],
    mac: &str,
    label: &str,
) -> Result<f64> {
    let mut frame =
        FrameBuilder::udp("192.0.2.2".parse()?, 40_000, "192.0.2.1".parse()?, 80).payload(&[0; 18]);
    for (byte, text) in frame.dst_mac.iter_mut().zip(mac.split(':')) {
        *byte = u8::from_str_radix(text, 16).context("the address of rx0")?;
    }
    let frame = frame.build();
    let before = received(receiver)?;
    let seconds = sender.run(|| -> Result<f64> {
        let rotation = Rotation::new(false, &End::Redirect(ifindex))?;
        rotation.fill(sources)?;
        // The set-up of a call costs some 25 ms: an empty call is subtracted.
        let started = Instant::now();
        flood(rotation.program(), &frame, 64)?;
        let idle = started.elapsed();
        let started = Instant::now();
        flood(rotation.program(), &frame, FRAMES)?;
        Ok(started.elapsed().saturating_sub(idle).as_secs_f64())
    })?;
    let taken = received(receiver)? - before;
    ensure!(
        taken > u64::from(FRAMES) / 2,
        "{label}: of {FRAMES} frames {taken} arrived"
    );
    Ok(taken as f64 / seconds)
}

const FRAMES: u32 = 1_000_000;

fn received(receiver: &Namespace) -> Result<u64> {
    let text = receiver.ip("-j -s link show rx0")?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let rx = &links[0]["stats64"]["rx"];
    rx["packets"].as_u64().context("the packets that rx0 received")
}
