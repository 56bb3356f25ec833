//! The data path on the running kernel: loading, switching, attaching, taking over, the gate and the events.
//!
//! Each test has two network namespaces of its own, a node and a peer with a veth pair between them, and pins of its
//! own. They need root.
#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

use firewall_common::{
    LAYOUT_VERSION,
    control::{EVENTS_DROP, LINK_LLDP},
    gate::{Bank, CELLS, Cell},
    image::PAGE_SIZE,
    verdict::Reason,
};
use nix::time::{ClockId, clock_gettime};
use ravelin::{
    datapath::{
        AttachError, Attachment, Datapath, EndingCounters, Features, Hook, Ingress, NodeConfig, Options,
        Part, TcMode, detach_all,
        netlink::{self, Change, Interface, Watch},
    },
    policy::{
        compile::{Compiled, compile},
        model::{Action, Owner, Place, Policy, PrefixList, Rule},
    },
};
use ravelin_tests::{
    netns::{self, Namespace},
    wait,
};
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// A node and a peer, joined by `up0` (in the node) and `up1`.
struct Lab {
    node: Namespace,
    peer: Namespace,
    pins: PathBuf,
}

impl Lab {
    fn new() -> Lab {
        let (node, peer) = (
            Namespace::unique("dp", "node").unwrap(),
            Namespace::unique("dp", "peer").unwrap(),
        );
        let pins = Path::new("/sys/fs/bpf/ravelin").join(node.name());
        let lab = Lab { node, peer, pins };
        lab.link();
        lab
    }

    /// Makes the veth pair.
    fn link(&self) {
        netns::link((&self.node, "up0"), (&self.peer, "up1"), 1500).unwrap();
        self.node.address("up0", &format!("{NODE}/24")).unwrap();
        self.peer.address("up1", &format!("{PEER}/24")).unwrap();
    }

    fn interface(&self, name: &str) -> Interface {
        self.node
            .run(netlink::interfaces)
            .unwrap()
            .into_iter()
            .find(|interface| interface.name == name)
            .unwrap_or_else(|| panic!("no {name}"))
    }

    fn open(&self) -> Datapath {
        self.open_with(Features::ALL)
    }

    fn open_with(&self, features: Features) -> Datapath {
        self.node
            .run(|| {
                let options = Options {
                    features,
                    ..Options::default()
                };
                Datapath::open_with(&self.pins, options)
            })
            .unwrap()
    }

    fn attach(&self, datapath: &mut Datapath) -> Attachment {
        let interface = self.interface("up0");
        self.node.run(|| datapath.attach(&interface, Hook::Auto)).unwrap()
    }

    /// Sends datagrams to a closed port of the node.
    fn send(&self, count: usize) {
        self.peer.run(|| {
            let socket = UdpSocket::bind((PEER, 0)).unwrap();
            for _ in 0..count {
                // A refusal by ICMP of an earlier one is no failure to send this one.
                let _ = socket.send_to(b"knock", (NODE, 4000));
            }
        });
    }

    fn layout(&self) -> PathBuf {
        self.pins.join(format!("v{LAYOUT_VERSION}"))
    }

    fn tc(&self, arguments: &str) -> String {
        let output = self
            .node
            .run(|| Command::new("tc").args(arguments.split_whitespace()).output())
            .unwrap();
        assert!(
            output.status.success(),
            "tc {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.node.run(|| detach_all(&self.pins));
    }
}

fn until(what: &str, so: impl FnMut() -> bool) {
    wait::until_equal(what, &true, so);
}

/// A policy without services that allows or denies everything. Its image grows with the prefixes in it, which no
/// packet here comes from.
fn policy(allow: bool, prefixes: u32) -> Compiled {
    let v4 = (0..prefixes)
        .map(|index| (0x0a00_0000 | index << 6, 26))
        .collect();
    let rule = Rule {
        owner: Owner::Policy,
        action: Action::Deny,
        source: "many".into(),
        any: false,
        lists: vec![0],
        place: Place::default(),
    };
    compile(&Policy {
        default_allow: allow,
        rules: vec![rule],
        lists: vec![Arc::new(PrefixList { v4, v6: Vec::new() })],
        ..Policy::default()
    })
    .unwrap()
}

fn packets(counters: &EndingCounters, reason: Reason) -> u64 {
    counters
        .endings
        .get(reason.number() as usize)
        .map_or(0, |ending| ending.happened.packets)
}

/// Packets and bytes of all endings.
fn total(counters: &EndingCounters) -> (u64, u64) {
    counters.endings.iter().fold((0, 0), |(packets, bytes), ending| {
        let sum = |a: u64, b: u64| a + b;
        (
            packets + sum(ending.happened.packets, ending.would_drop.packets),
            bytes + sum(ending.happened.bytes, ending.would_drop.bytes),
        )
    })
}

fn seen(datapath: &Datapath, ifindex: u32) -> (u64, u64) {
    let counter = datapath.interface_counters(ifindex).unwrap();
    let sides = [
        counter.passed,
        counter.dropped,
        counter.egress_passed,
        counter.egress_dropped,
    ];
    (
        sides.iter().map(|side| side.packets).sum(),
        sides.iter().map(|side| side.bytes).sum(),
    )
}

#[test]
fn enforces_a_policy_and_reads_it_back() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    assert_eq!(datapath.in_force().unwrap(), None);
    assert_eq!(datapath.degraded(), Vec::<String>::new());
    let deny = policy(false, 3);
    assert_eq!(datapath.switch(&deny, 7).unwrap(), None);
    let in_force = datapath.in_force().unwrap().unwrap();
    assert_eq!((in_force.generation, in_force.digest), (7, deny.digest));

    let attachment = lab.attach(&mut datapath);
    assert_eq!(attachment.ingress, Ingress::Native);
    assert_eq!(attachment.egress, Some(TcMode::Tcx));
    assert_eq!((attachment.frags, attachment.detail), (true, None));
    lab.send(25);
    until("25 datagrams drop", || {
        packets(&datapath.counters().unwrap(), Reason::Closed) == 25
    });

    let retired = datapath.switch(&policy(true, 1), 8).unwrap().unwrap();
    assert_eq!((retired.generation, packets(&retired, Reason::Closed)), (7, 25));
    lab.send(5);
    until("5 datagrams pass", || {
        packets(&datapath.counters().unwrap(), Reason::DefaultAllow) == 5
    });
    assert_eq!(packets(&datapath.counters().unwrap(), Reason::Closed), 0);
}

#[test]
fn a_switch_under_traffic_is_atomic_and_loses_no_count() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    datapath.switch(&policy(false, 1), 1).unwrap();
    lab.attach(&mut datapath);
    let ifindex = lab.interface("up0").index;
    let stop = AtomicBool::new(false);
    let (mut counted, mut bytes) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                lab.send(100);
            }
        });
        for generation in 2..60 {
            let before = seen(&datapath, ifindex).0;
            until("packets come", || seen(&datapath, ifindex).0 > before + 50);
            let allow = generation % 2 == 0;
            let retired = datapath
                .switch(&policy(allow, 1 + generation as u32 % 5 * 20_000), generation)
                .unwrap()
                .unwrap();
            assert_eq!(retired.generation, generation - 1);
            let (wrong, right) = if allow {
                (Reason::DefaultAllow, Reason::Closed)
            } else {
                (Reason::Closed, Reason::DefaultAllow)
            };
            assert_eq!(packets(&retired, wrong), 0, "generation {}", generation - 1);
            assert_eq!(packets(&retired, Reason::NoPolicy), 0);
            assert!(packets(&retired, right) > 0);
            let (more, more_bytes) = total(&retired);
            counted += more;
            bytes += more_bytes;
        }
        stop.store(true, Ordering::Relaxed);
    });
    // What the peer has sent is on its way no longer than the counters take to agree.
    until("both counts agree", || {
        let now = total(&datapath.counters().unwrap());
        (counted + now.0, bytes + now.1) == seen(&datapath, ifindex)
    });
}

#[test]
fn a_restart_under_traffic_keeps_filtering_and_replaces_the_programs_in_place() {
    let lab = Lab::new();
    let deny = policy(false, 2);
    let mut first = lab.open();
    first.switch(&deny, 3).unwrap();
    lab.attach(&mut first);
    let ifindex = lab.interface("up0").index;
    let links = ["xdp", "egress"].map(|kind| lab.pins.join(format!("{kind}-{ifindex}")));
    let ids = || links.clone().map(|pin| link_ids(&pin));
    let before = ids();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                lab.send(100);
            }
        });
        until("packets come", || {
            packets(&first.counters().unwrap(), Reason::Closed) > 100
        });
        drop(first);
        for _ in 0..5 {
            let mut next = lab.open();
            let in_force = next.in_force().unwrap().unwrap();
            assert_eq!((in_force.generation, in_force.digest), (3, deny.digest));
            let count = packets(&next.counters().unwrap(), Reason::Closed);
            assert!(count > 100);
            until("it kept filtering", || {
                packets(&next.counters().unwrap(), Reason::Closed) > count + 100
            });
            let attachment = lab.attach(&mut next);
            assert_eq!(
                (attachment.ingress, attachment.egress),
                (Ingress::Native, Some(TcMode::Tcx))
            );
            let counters = next.counters().unwrap();
            assert_eq!(
                packets(&counters, Reason::NoPolicy) + packets(&counters, Reason::DefaultAllow),
                0
            );
        }
        stop.store(true, Ordering::Relaxed);
    });
    for (old, new) in before.into_iter().zip(ids()) {
        assert_eq!(old.0, new.0, "the link is another one");
        assert_ne!(old.1, new.1, "the program is the same one");
    }
}

/// Ids of a pinned link and of its program.
fn link_ids(pin: &Path) -> (u32, u32) {
    let link = aya::programs::links::PinnedLink::from_pin(pin).unwrap();
    let info = aya::programs::links::FdLink::from(link).info().unwrap();
    (info.id(), info.program_id())
}

#[test]
fn leftovers_of_a_crash_are_cleaned_and_the_policy_stays() {
    let lab = Lab::new();
    let deny = policy(false, 2);
    let mut datapath = lab.open();
    datapath.switch(&deny, 1).unwrap();
    drop(datapath);
    let layout = lab.layout();
    let (used, idle) = if layout.join("image-0").exists() {
        (0, 1)
    } else {
        (1, 0)
    };
    // As if an agent had died between filling a slot and selecting it.
    for (kind, outer) in [("image", "IMAGES"), ("counters", "COUNTERS")] {
        let map = aya::maps::MapData::from_pin(layout.join(format!("{kind}-{used}"))).unwrap();
        map.pin(layout.join(format!("{kind}-{idle}"))).unwrap();
        let outer = aya::maps::MapData::from_pin(layout.join(outer)).unwrap();
        let outer = aya::maps::Map::from_map_data(outer).unwrap();
        let mut outer = aya::maps::ArrayOfMaps::<_, aya::maps::MapData>::try_from(outer).unwrap();
        outer.set(idle, &map, 0).unwrap();
    }
    let mut datapath = lab.open();
    assert!(!layout.join(format!("image-{idle}")).exists());
    assert!(!layout.join(format!("counters-{idle}")).exists());
    assert_eq!(datapath.in_force().unwrap().unwrap().digest, deny.digest);
    let allow = policy(true, 1);
    assert!(datapath.switch(&allow, 2).unwrap().is_some());
    assert_eq!(datapath.in_force().unwrap().unwrap().digest, allow.digest);
}

#[test]
fn a_lost_pin_of_the_image_means_no_policy_is_known() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    datapath.switch(&policy(false, 1), 1).unwrap();
    drop(datapath);
    let layout = lab.layout();
    for slot in 0..2 {
        let _ = std::fs::remove_file(layout.join(format!("image-{slot}")));
    }
    let mut datapath = lab.open();
    assert_eq!(datapath.in_force().unwrap(), None);
    let deny = policy(false, 1);
    assert_eq!(datapath.switch(&deny, 2).unwrap(), None);
    assert_eq!(datapath.in_force().unwrap().unwrap().digest, deny.digest);
}

#[test]
fn an_image_that_is_none_is_refused_and_changes_nothing() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    let deny = policy(false, 1);
    datapath.switch(&deny, 1).unwrap();
    let mut broken = [policy(true, 1), policy(true, 1), policy(true, 1)];
    broken[0].image[0] ^= 1;
    broken[1].image.truncate(PAGE_SIZE / 2);
    broken[2].endings.truncate(8);
    for compiled in &broken {
        datapath.switch(compiled, 2).unwrap_err();
        assert_eq!(datapath.in_force().unwrap().unwrap().digest, deny.digest);
    }
}

#[test]
fn who_else_holds_the_interface_is_named() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    lab.attach(&mut datapath);
    let interface = lab.interface("up0");
    let refused = |others: &Path| {
        lab.node.run(|| {
            let mut other = Datapath::open(others).unwrap();
            let error = other.attach(&interface, Hook::Auto).unwrap_err();
            assert_eq!(
                other.attached().unwrap(),
                Vec::<u32>::new(),
                "nothing is left behind"
            );
            detach_all(others).unwrap();
            error
        })
    };
    let error = refused(&PathBuf::from(format!("{}-other", lab.pins.display())));
    assert!(matches!(error, AttachError::OtherInstance { .. }), "{error}");
    let way_out = format!("`ravelin detach --instance {}`", lab.node.name());
    assert!(error.to_string().contains(&way_out), "{error}");

    // Somebody whose pins are not beside ours.
    let error = refused(&Path::new("/sys/fs/bpf").join(format!("{}-other", lab.node.name())));
    assert!(matches!(error, AttachError::Occupied { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("the XDP program \"ingress\" (id "), "{text}");
    assert!(text.contains("ip link set dev up0 xdp off"), "{text}");
}

#[test]
fn a_driver_without_native_xdp_gets_generic_and_says_so() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    lab.node.ip("link add br0 type bridge").unwrap();
    let bridge = lab.interface("br0");
    assert!(bridge.ethernet && !bridge.physical);
    let attachment = lab.node.run(|| datapath.attach(&bridge, Hook::Auto)).unwrap();
    assert_eq!(
        (attachment.ingress, attachment.egress),
        (Ingress::Generic, Some(TcMode::Tcx))
    );
    assert_eq!(
        attachment.detail.unwrap(),
        "generic XDP: the driver has no native XDP"
    );
    let attachment = lab.node.run(|| lab_attach_again(&lab, &bridge));
    assert_eq!(attachment.ingress, Ingress::Generic);
    assert!(attachment.detail.unwrap().contains("kept from an earlier start"));
}

fn lab_attach_again(lab: &Lab, interface: &Interface) -> Attachment {
    Datapath::open(&lab.pins)
        .unwrap()
        .attach(interface, Hook::Auto)
        .unwrap()
}

#[test]
fn a_driver_that_refuses_for_the_mtu_gives_its_reason() {
    let lab = Lab::new();
    let mut datapath = lab.open_with(Features {
        frags: false,
        ..Features::ALL
    });
    assert_eq!(datapath.degraded().len(), 1);
    lab.node.ip("link set up0 mtu 9000").unwrap();
    lab.peer.ip("link set up1 mtu 9000").unwrap();
    let attachment = lab.attach(&mut datapath);
    assert_eq!((attachment.ingress, attachment.frags), (Ingress::Generic, false));
    let detail = attachment.detail.unwrap();
    assert!(
        detail.contains("the driver says: ") && detail.contains("MTU is 9000"),
        "{detail}"
    );
}

#[test]
fn interfaces_that_cannot_be_filtered_are_refused_in_a_sentence() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    let loopback = lab.interface("lo");
    let error = lab
        .node
        .run(|| datapath.attach(&loopback, Hook::Auto))
        .unwrap_err();
    assert!(matches!(error, AttachError::Loopback { .. }));
    lab.node.ip("tuntap add dev tun0 mode tun").unwrap();
    let tunnel = lab.interface("tun0");
    let error = lab.node.run(|| datapath.attach(&tunnel, Hook::Xdp)).unwrap_err();
    assert!(error.to_string().contains("`--hook tun0=tc`"), "{error}");
    let mut gone = lab.interface("up0");
    gone.index = 4_000_000;
    let error = lab.node.run(|| datapath.attach(&gone, Hook::Auto)).unwrap_err();
    assert!(matches!(error, AttachError::Gone { .. }), "{error}");
}

#[test]
fn pins_of_interfaces_that_are_gone_are_removed() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    lab.attach(&mut datapath);
    let old = lab.interface("up0").index;
    assert_eq!(datapath.attached().unwrap(), [old]);
    drop(datapath);
    lab.node.ip("link del up0").unwrap();
    let mut datapath = lab.open();
    assert_eq!(datapath.attached().unwrap(), Vec::<u32>::new());
    lab.link();
    lab.attach(&mut datapath);
    let new = lab.interface("up0").index;
    assert_eq!(datapath.attached().unwrap(), [new]);
}

#[test]
fn detaching_one_interface_and_everything() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    datapath.switch(&policy(false, 1), 1).unwrap();
    lab.attach(&mut datapath);
    let ifindex = lab.interface("up0").index;
    lab.node.run(|| datapath.detach(ifindex)).unwrap();
    assert_eq!(datapath.attached().unwrap(), Vec::<u32>::new());
    // At once, not when the kernel gets round to it.
    let answer = lab.peer.run(|| {
        let socket = UdpSocket::bind((PEER, 0)).unwrap();
        socket.connect((NODE, 4000)).unwrap();
        socket.send(b"knock").unwrap();
        socket.recv(&mut [0; 8]).unwrap_err().kind()
    });
    assert_eq!(answer, std::io::ErrorKind::ConnectionRefused);

    lab.attach(&mut datapath);
    drop(datapath);
    let lines = lab.node.run(|| detach_all(&lab.pins)).unwrap();
    assert_eq!(lines[0], "detached from up0");
    assert!(!lab.pins.exists());
    // In another namespace the number may be somebody else's.
    for hook in [Hook::Xdp, Hook::Tc] {
        for (there, named) in [
            (&lab.node, "detached from up0".to_owned()),
            (
                &lab.peer,
                format!("detached from interface {ifindex} of another network namespace"),
            ),
        ] {
            let mut datapath = lab.open();
            datapath.switch(&policy(false, 1), 1).unwrap();
            let interface = lab.interface("up0");
            lab.node.run(|| datapath.attach(&interface, hook)).unwrap();
            drop(datapath);
            let lines = there.run(|| detach_all(&lab.pins)).unwrap();
            assert_eq!(lines[0], named, "{hook:?}");
        }
    }
    assert_eq!(
        lab.node.run(|| detach_all(&lab.pins)).unwrap(),
        Vec::<String>::new()
    );
}

#[test]
fn without_tcx_egress_is_one_clsact_filter_beside_those_of_others() {
    let lab = Lab::new();
    lab.tc("qdisc add dev up0 clsact");
    lab.tc("filter add dev up0 egress pref 9 protocol ip u32 match u32 0 0 flowid 1:1");
    let features = Features {
        tcx: false,
        ..Features::ALL
    };
    let filters = || lab.tc("filter show dev up0 egress");
    for _ in 0..3 {
        let mut datapath = lab.open_with(features);
        assert!(datapath.degraded()[0].contains("TCX"));
        assert_eq!(lab.attach(&mut datapath).egress, Some(TcMode::Clsact));
        drop(datapath);
        let text = filters();
        assert_eq!(text.matches("ravelin_egress").count(), 1, "{text}");
    }
    lab.node.run(|| detach_all(&lab.pins)).unwrap();
    let text = filters();
    assert!(!text.contains("ravelin_egress") && text.contains("u32"), "{text}");
    lab.tc("qdisc del dev up0 clsact");

    // A qdisc of one's own goes with the filter.
    let mut datapath = lab.open_with(features);
    lab.attach(&mut datapath);
    assert!(lab.tc("qdisc show dev up0").contains("clsact"));
    lab.node
        .run(|| datapath.detach(lab.interface("up0").index))
        .unwrap();
    assert!(!lab.tc("qdisc show dev up0").contains("clsact"));
}

#[test]
fn a_link_that_somebody_took_off_is_noticed_and_made_again() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    let attachment = lab.attach(&mut datapath);
    let index = lab.interface("up0").index;
    assert!(datapath.is_pinned());
    assert_eq!(datapath.lost(index, &attachment), []);
    for (link, part) in [("xdp", Part::Xdp), ("egress", Part::Egress)] {
        let pin = lab.pins.join(format!("{link}-{index}"));
        if !pin.exists() {
            // Below 6.6 egress has no link.
            continue;
        }
        std::fs::remove_file(&pin).unwrap();
        let lost = datapath.lost(index, &attachment);
        let text = format!("somebody removed {}", pin.display());
        assert_eq!(lost, [(part, text)]);
        // The kernel frees a link without pins a moment later.
        wait::until_equal(
            "the interface to be filtered again",
            &Some(attachment.clone()),
            || {
                let interface = lab.interface("up0");
                lab.node.run(|| datapath.attach(&interface, Hook::Auto)).ok()
            },
        );
        assert_eq!(datapath.lost(index, &attachment), []);
    }
    lab.node.run(|| detach_all(&lab.pins)).unwrap();
    assert!(!datapath.is_pinned());
}

#[test]
fn older_layouts_are_removed_once_every_link_is_replaced() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    let old = lab.pins.join("v0");
    std::fs::create_dir(&old).unwrap();
    let map = aya::maps::MapData::from_pin(lab.layout().join("LOCAL")).unwrap();
    map.pin(old.join("LOCAL")).unwrap();
    lab.attach(&mut datapath);
    assert!(!old.exists());
    assert!(lab.layout().exists());
}

#[test]
fn replies_to_connections_older_than_the_programs_come_through() {
    let lab = Lab::new();
    let listener = lab.peer.run(|| TcpListener::bind((PEER, 7000)).unwrap());
    let mut client = lab.node.run(|| TcpStream::connect((PEER, 7000)).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    let there = lab.peer.run(|| UdpSocket::bind((PEER, 7001)).unwrap());
    let here = lab.node.run(|| UdpSocket::bind((NODE, 0)).unwrap());
    here.connect((PEER, 7001)).unwrap();
    let mut datapath = lab.open();
    datapath.switch(&policy(false, 1), 1).unwrap();
    lab.node.run(|| datapath.seed_gate()).unwrap();
    lab.attach(&mut datapath);

    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    here.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut buffer = [0; 5];
    server.write_all(b"hello").unwrap();
    client.read_exact(&mut buffer).unwrap();
    there.send_to(b"hello", here.local_addr().unwrap()).unwrap();
    assert_eq!(here.recv(&mut buffer).unwrap(), 5);
    let counters = datapath.counters().unwrap();
    assert!(packets(&counters, Reason::Reply) >= 2);
    // What the peer sends to another port is not a reply.
    lab.send(3);
    until("3 datagrams drop", || {
        packets(&datapath.counters().unwrap(), Reason::Closed) == 3
    });
    // New connections from here are let in by egress alone.
    let second = lab
        .node
        .run(|| TcpStream::connect_timeout(&(PEER, 7000).into(), Duration::from_secs(20)));
    second.unwrap();
}

#[test]
fn the_gate_closes_for_sockets_that_are_gone_but_not_for_young_cells() {
    let lab = Lab::new();
    let datapath = lab.open();
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap().tv_sec() as u32;
    if now < 400 {
        eprintln!("skipped: the machine has been up for {now} s only, cells cannot be 400 s old");
        return;
    }
    let pin = lab.layout().join("GATE");
    let map = aya::maps::Map::from_map_data(aya::maps::MapData::from_pin(pin).unwrap()).unwrap();
    let mut cells = aya::maps::Array::<_, u64>::try_from(map).unwrap();
    let socket = lab.node.run(|| UdpSocket::bind((NODE, 0)).unwrap());
    let bound = socket.local_addr().unwrap().port();
    let old = Cell::new(now - 300).0;
    let young = Cell::new(now - 60).0;
    let cases = [
        (Bank::Tcp.cell(1111), old, 0),
        (Bank::Tcp.cell(2222), young, young),
        (Bank::Udp.cell(bound), old, old),
        (Bank::Udp.cell(3), old, 0),
        (Bank::Tcp.cell(4444), 0, 0),
    ];
    for (index, word, _) in cases {
        cells.set(index, word, 0).unwrap();
    }
    lab.node.run(|| datapath.seed_gate()).unwrap();
    for (index, word, _) in cases {
        assert_eq!(cells.get(&index, 0).unwrap(), word, "one sweep closes nothing");
    }
    lab.node.run(|| datapath.seed_gate()).unwrap();
    for (index, _, after) in cases {
        assert_eq!(cells.get(&index, 0).unwrap(), after, "cell {index}");
    }
    assert_eq!(cells.iter().count(), CELLS as usize);
}

#[test]
fn observe_mode_and_failsafe_take_effect_with_the_configuration() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    lab.attach(&mut datapath);
    let config = NodeConfig {
        observe: true,
        link_control: LINK_LLDP,
        ..NodeConfig::default()
    };
    datapath.configure(&config).unwrap();
    datapath.switch(&policy(false, 1), 1).unwrap();
    let closed = |datapath: &Datapath| {
        let ending = datapath.counters().unwrap().endings[Reason::Closed.number() as usize];
        (ending.happened.packets, ending.would_drop.packets)
    };
    lab.send(4);
    until("4 would drop", || closed(&datapath) == (0, 4));

    let own = vec![PEER.into(), "2001:db8::1".parse().unwrap()];
    datapath
        .configure(&NodeConfig {
            observe: false,
            own,
            ..config.clone()
        })
        .unwrap();
    lab.send(3);
    until("3 pretend to be from here", || {
        packets(&datapath.counters().unwrap(), Reason::Martian) == 3
    });
    datapath
        .configure(&NodeConfig {
            observe: false,
            ..config.clone()
        })
        .unwrap();
    lab.send(2);
    until("2 drop", || closed(&datapath) == (2, 4));

    let too_many = (0..5000_u32).map(|low| Ipv4Addr::from(low).into()).collect();
    datapath
        .configure(&NodeConfig {
            own: too_many,
            ..config
        })
        .unwrap_err();
}

#[test]
fn events_arrive_also_when_the_ring_was_full_before() {
    let lab = Lab::new();
    let mut datapath = lab.open();
    datapath.switch(&policy(false, 1), 5).unwrap();
    lab.attach(&mut datapath);
    datapath.listen(EVENTS_DROP, u32::MAX).unwrap();
    // More than the ring holds.
    lab.send(20_000);
    until("the ring is full", || {
        let suppressed = datapath.suppressed().unwrap();
        suppressed
            .iter()
            .any(|(reason, count)| *reason == Reason::Closed && *count > 0)
    });
    datapath.listen(0, 0).unwrap();
    let ifindex = lab.interface("up0").index;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut events = datapath.events().unwrap();
        assert!(datapath.events().is_err(), "two readers");
        let mut read = 0;
        while let Some(event) = events.take() {
            assert_eq!((event.reason, event.generation), (Reason::Closed.number(), 5));
            assert_eq!((event.src_low as u32, event.dst_port), (u32::from(PEER), 4000));
            assert_eq!((event.ifindex, event.version, event.protocol), (ifindex, 4, 17));
            read += 1;
        }
        assert!(read > 5000, "{read}");
        datapath.listen(EVENTS_DROP, u32::MAX).unwrap();
        lab.send(1);
        let event = tokio::time::timeout(Duration::from_secs(20), events.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(event.reason, Reason::Closed.number());
        drop(events);
        datapath.events().unwrap();
    });
}

#[test]
fn changes_of_interfaces_and_addresses_are_followed() {
    let lab = Lab::new();
    lab.node.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut watch = Watch::new().unwrap();
            let index = netlink::interfaces()
                .unwrap()
                .iter()
                .find(|found| found.name == "up0")
                .unwrap()
                .index;
            lab.node.ip("link set up0 down").unwrap();
            lab.node.ip("link set up0 name eth9").unwrap();
            lab.node.ip("addr add 198.51.100.1/32 dev eth9").unwrap();
            lab.node.ip("addr del 198.51.100.1/32 dev eth9").unwrap();
            lab.node.ip("link del eth9").unwrap();
            let mut changes = Vec::new();
            loop {
                let change = tokio::time::timeout(Duration::from_secs(20), watch.next())
                    .await
                    .unwrap()
                    .unwrap();
                let last = matches!(&change, Change::Gone { .. });
                changes.push(change);
                if last {
                    break;
                }
            }
            let address = "198.51.100.1".parse().unwrap();
            assert!(
                changes
                    .iter()
                    .any(|change| matches!(change, Change::Link(link) if link.name == "eth9" && !link.up))
            );
            assert!(changes.contains(&Change::AddressAdded { index, address }));
            assert!(changes.contains(&Change::AddressRemoved { index, address }));
            assert_eq!(
                changes.last(),
                Some(&Change::Gone {
                    index,
                    name: "eth9".into()
                })
            );
        });
    });
}
