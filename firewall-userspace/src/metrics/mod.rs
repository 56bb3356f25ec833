//! What Prometheus sees. A custom collector asks the agent at each scrape, and the agent reads the BPF maps then:
//! there are no counters in between that could lag or drift.
//!
//! Labels are names of the policy, reasons and interfaces: bounded, and never an address.

mod fleet;
pub mod server;

use crate::agent::handle::{Command, Handle, Scrape};
use crate::api::types::Count;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// Reads the state of the agent.
pub trait Source: Send + Sync {
    /// `None`: the agent is stopping.
    fn scrape(&self) -> Option<Scrape>;
}

impl Source for Handle {
    fn scrape(&self) -> Option<Scrape> {
        self.ask_blocking(Command::Scrape).ok()
    }
}

/// The collector of everything about packets and policy.
pub struct AgentCollector<S>(pub S);

impl<S: Source> Collector for AgentCollector<S> {
    fn desc(&self) -> Vec<&Desc> {
        // An unchecked collector: what it gives depends on the policy.
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0
            .scrape()
            .map(|scrape| families(&scrape))
            .unwrap_or_default()
    }
}

fn families(scrape: &Scrape) -> Vec<MetricFamily> {
    let mut out = Vec::new();
    let mut packets = Family::counter(
        "ravelin_packets_total",
        "Packets by direction, service or egress rule, verdict and reason.",
    );
    let mut bytes = Family::counter(
        "ravelin_bytes_total",
        "Bytes of frames by direction, service or egress rule, verdict and reason.",
    );
    for (key, count) in &scrape.totals.services {
        let labels = [
            ("direction", &*key.direction),
            ("service", &*key.service),
            ("verdict", &*key.verdict),
            ("reason", &*key.reason),
        ];
        both(&mut packets, &mut bytes, &labels, *count);
    }
    out.extend([packets, bytes]);

    let mut packets = Family::counter(
        "ravelin_rule_packets_total",
        "Packets that a rule decided, or would have.",
    );
    let mut bytes = Family::counter(
        "ravelin_rule_bytes_total",
        "Bytes of frames that a rule decided, or would have.",
    );
    for (key, count) in scrape.totals.rules.iter().filter(|(key, _)| key.is_label()) {
        let labels = [
            ("direction", &*key.direction),
            ("service", &*key.service),
            ("action", &*key.action),
            ("source", &*key.source),
        ];
        both(&mut packets, &mut bytes, &labels, *count);
    }
    out.extend([packets, bytes]);

    let mut opened = Family::counter(
        "ravelin_connections_opened_total",
        "TCP connections that a rule of a service let in: SYNs that passed, or cookies that came back.",
    );
    for (key, count) in scrape.totals.opened.iter().filter(|(key, _)| key.is_label()) {
        let labels = [("service", &*key.service), ("source", &*key.source)];
        opened.add(&labels, *count as f64);
    }
    out.push(opened);

    let mut packets = Family::counter(
        "ravelin_interface_packets_total",
        "Packets by interface, direction and verdict.",
    );
    let mut bytes = Family::counter(
        "ravelin_interface_bytes_total",
        "Bytes of frames by interface, direction and verdict.",
    );
    let mut info = Family::gauge(
        "ravelin_interface_info",
        "How an interface is filtered, always 1.",
    );
    for interface in &scrape.interfaces {
        let name = ("interface", &*interface.name);
        for (direction, verdict, count) in [
            ("ingress", "pass", interface.passed),
            ("ingress", "drop", interface.dropped),
            ("egress", "pass", interface.egress_passed),
            ("egress", "drop", interface.egress_dropped),
        ] {
            let labels = [name, ("direction", direction), ("verdict", verdict)];
            both(&mut packets, &mut bytes, &labels, count);
        }
        info.add(
            &[
                name,
                ("hook", &interface.hook),
                ("mode", &interface.mode),
                ("egress", &interface.egress),
            ],
            1.0,
        );
    }
    out.extend([packets, bytes, info]);

    let mut repairs = Family::counter(
        "ravelin_repairs_total",
        "Programs put back on an interface after somebody took them off.",
    );
    for (interface, part, count) in &scrape.repairs {
        let labels = [("interface", &**interface), ("part", part.word())];
        repairs.add(&labels, *count as f64);
    }
    out.push(repairs);

    let mut drift = Family::counter(
        "ravelin_drift_total",
        "What somebody else changed in the maps of the kernel, and was put back.",
    );
    for (what, count) in &scrape.drift {
        drift.add(&[("what", what.word())], *count as f64);
    }
    out.push(drift);

    let mut suppressed = Family::counter(
        "ravelin_events_suppressed_total",
        "Events not reported because there were too many.",
    );
    for (reason, count) in &scrape.suppressed {
        suppressed.add(&[("reason", reason.word())], *count as f64);
    }
    out.push(suppressed);

    out.extend(limits(scrape));
    for (name, help, value) in [
        (
            "ravelin_flows_created_total",
            "Flows that this host, or what is behind it, opened.",
            scrape.flows.created,
        ),
        (
            "ravelin_flows_displaced_total",
            "Live flows that gave their place in the table to newer ones.",
            scrape.flows.displaced,
        ),
        (
            "ravelin_flows_lost_total",
            "Flows that could not be noted, because two CPUs met at one place.",
            scrape.flows.lost,
        ),
    ] {
        let mut family = Family::counter(name, help);
        family.add(&[], value as f64);
        out.push(family);
    }

    let mut begun = Family::counter(
        "ravelin_bans_total",
        "Bans begun, by the service whose limit was exceeded; those by command have no service.",
    );
    for (service, count) in &scrape.bans.begun {
        let origin = if service.is_empty() {
            "operator"
        } else {
            "automatic"
        };
        begun.add(&[("origin", origin), ("service", service)], *count as f64);
    }
    out.push(begun);
    let mut lost = Family::counter(
        "ravelin_bans_lost_total",
        "Sources that were to be banned and were not, because the table of bans was full.",
    );
    lost.add(&[], scrape.bans.lost as f64);
    out.push(lost);
    let mut bans = Family::gauge("ravelin_bans", "Bans in force, by who asked for them.");
    bans.add(&[("origin", "operator")], scrape.bans.by_operator as f64);
    bans.add(&[("origin", "automatic")], scrape.bans.automatic as f64);
    out.push(bans);
    let mut anomalies = Family::gauge(
        "ravelin_anomaly",
        "1 while a service has far more of something than usual, else 0.",
    );
    for (service, kind, anomalous) in &scrape.anomalies {
        let labels = [("service", &**service), ("kind", kind.word())];
        anomalies.add(&labels, f64::from(u8::from(*anomalous)));
    }
    out.push(anomalies);

    let mut gauge = |name: &str, help: &str, labels: &[(&str, &str)], value: f64| {
        let mut family = Family::gauge(name, help);
        family.add(labels, value);
        out.push(family);
    };
    let flag = |value: bool| f64::from(u8::from(value));
    gauge(
        "ravelin_policy_generation",
        "Generation of the policy in force; 0 for none.",
        &[],
        scrape.generation as f64,
    );
    gauge(
        "ravelin_policy_info",
        "Digest of the policy image in force, always 1.",
        &[("digest", &scrape.digest)],
        1.0,
    );
    gauge(
        "ravelin_policy_last_reload_successful",
        "Whether the last attempt to load the policy succeeded.",
        &[],
        flag(scrape.reload_ok),
    );
    gauge(
        "ravelin_policy_last_reload_timestamp_seconds",
        "When the policy was last loaded or failed to.",
        &[],
        scrape.reload_at,
    );
    gauge(
        "ravelin_policy_last_reload_success_timestamp_seconds",
        "When the policy was last loaded with success.",
        &[],
        scrape.reload_success_at,
    );
    gauge(
        "ravelin_policy_image_bytes",
        "Size of the compiled policy.",
        &[],
        scrape.stats.image_bytes as f64,
    );
    gauge(
        "ravelin_policy_classes",
        "Classes of addresses that the policy treats alike.",
        &[],
        scrape.stats.classes as f64,
    );
    gauge(
        "ravelin_policy_services",
        "Services of the policy.",
        &[],
        scrape.stats.services as f64,
    );
    gauge(
        "ravelin_policy_egress_rules",
        "Egress rules of the policy.",
        &[],
        scrape.stats.egress as f64,
    );
    gauge(
        "ravelin_policy_rules",
        "Entries of all lists of the policy.",
        &[],
        scrape.stats.rules as f64,
    );
    gauge(
        "ravelin_policy_limits",
        "Limits of the policy: of services, and of groups of their sources.",
        &[],
        scrape.stats.limits as f64,
    );
    gauge(
        "ravelin_flows",
        "Live flows in the flow table.",
        &[],
        scrape.flows.live as f64,
    );
    gauge(
        "ravelin_flows_max",
        "Flows that fit into the flow table.",
        &[],
        scrape.flows.max as f64,
    );
    gauge(
        "ravelin_bans_max",
        "Entries that the table of bans holds at most: bans in force, and those that are remembered.",
        &[],
        scrape.bans.max as f64,
    );
    gauge(
        "ravelin_enforcing",
        "1 if drops are carried out, 0 if only counted.",
        &[],
        flag(scrape.enforcing),
    );
    let layout = firewall_common::LAYOUT_VERSION.to_string();
    let build = [("version", env!("CARGO_PKG_VERSION")), ("layout", &*layout)];
    gauge(
        "ravelin_build_info",
        "The agent that runs, always 1.",
        &build,
        1.0,
    );
    let mut prefixes = Family::gauge("ravelin_policy_prefixes", "Distinct prefixes of the policy.");
    prefixes.add(&[("family", "ipv4")], scrape.stats.prefixes_v4 as f64);
    prefixes.add(&[("family", "ipv6")], scrape.stats.prefixes_v6 as f64);
    out.push(prefixes);
    out.extend(scrape.fleet.iter().flat_map(fleet::families));
    out.into_iter()
        .filter(|family| !family.metrics.is_empty())
        .map(Family::finish)
        .collect()
}

/// Limits and what they hold. A limit is a service, or a group of its sources.
fn limits(scrape: &Scrape) -> Vec<Family> {
    let mut challenged = Family::gauge(
        "ravelin_challenge_active",
        "1 while new connections have to prove their address.",
    );
    let mut started = Family::counter(
        "ravelin_challenges_started_total",
        "Challenges that began since the agent started.",
    );
    let mut connections = Family::gauge(
        "ravelin_connections",
        "Established connections that a limit counts.",
    );
    let mut configured = Family::gauge("ravelin_limit", "What the policy allows; of rates a second.");
    let mut spent = Family::gauge(
        "ravelin_limit_total_spent_ratio",
        "How much of the burst of a total is spent.",
    );
    let mut sources = Family::gauge(
        "ravelin_limit_sources",
        "Sources that a limit remembers, estimated.",
    );
    let mut room = Family::gauge("ravelin_limit_sources_max", "Sources that a limit has room for.");
    for state in &scrape.limits {
        let labels = [("service", &*state.service), ("limit", &*state.scope)];
        challenged.add(&labels, f64::from(u8::from(state.challenged_seconds.is_some())));
        started.add(&labels, state.challenges_started as f64);
        for value in &state.values {
            if let Some(count) = value.connections {
                connections.add(&labels, count as f64);
            }
            let what = value.limit.what.as_str();
            let (of_source, of_all) = (format!("{what}_per_source"), format!("{what}_total"));
            let add = |family: &mut Family, kind: &str, number: Option<f64>| {
                if let Some(number) = number {
                    family.add(&[labels[0], labels[1], ("kind", kind)], number);
                }
            };
            add(&mut configured, &of_source, value.per_source_value);
            add(&mut configured, &of_all, value.total_value);
            for (family, kind, number) in [
                (&mut spent, what, value.total_spent),
                (&mut sources, what, value.sources.map(|count| count as f64)),
                (&mut room, what, value.room.map(|count| count as f64)),
            ] {
                add(family, kind, number);
            }
        }
    }
    let mut mended = Family::counter(
        "ravelin_connections_mended_total",
        "By how much counts of connections were corrected since the agent started.",
    );
    mended.add(&[], scrape.connections_mended as f64);
    vec![
        challenged,
        started,
        connections,
        configured,
        spent,
        sources,
        room,
        mended,
    ]
}

fn both(packets: &mut Family, bytes: &mut Family, labels: &[(&str, &str)], count: Count) {
    packets.add(labels, count.packets as f64);
    bytes.add(labels, count.bytes as f64);
}

/// A metric with its series.
struct Family {
    name: String,
    help: String,
    kind: MetricType,
    metrics: Vec<Metric>,
}

impl Family {
    fn counter(name: &str, help: &str) -> Family {
        Family {
            name: name.into(),
            help: help.into(),
            kind: MetricType::COUNTER,
            metrics: Vec::new(),
        }
    }

    fn gauge(name: &str, help: &str) -> Family {
        Family {
            kind: MetricType::GAUGE,
            ..Family::counter(name, help)
        }
    }

    fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        let pair = |(name, value): &(&str, &str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).into());
            pair.set_value((*value).into());
            pair
        };
        let mut metric = Metric::default();
        metric.set_label(labels.iter().map(pair).collect());
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.push(metric);
    }

    fn finish(self) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.name);
        family.set_help(self.help);
        family.set_field_type(self.kind);
        family.set_metric(self.metrics);
        family
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::counters::{EndingName, RuleKey, Totals, ingress};
    use crate::agent::handle::{BanScrape, InterfaceScrape};
    use crate::api::fleet::{DocumentRow, FleetStatus};
    use crate::api::types::{LimitState, LimitUsed, LimitValue};
    use crate::datapath::{Drift, Part};
    use crate::detect::Kind;
    use firewall_common::verdict::Reason;
    use prometheus::{Registry, TextEncoder};
    use std::io::Write as _;
    use std::process::{Command as Process, Stdio};

    struct Fixed;

    impl Source for Fixed {
        fn scrape(&self) -> Option<Scrape> {
            let name = |reason: Reason, rule| EndingName {
                service: "api".into(),
                direction: ingress(),
                reason: Some(reason.word().into()),
                rule,
                opens: reason == Reason::Allowed,
            };
            let rule = RuleKey {
                service: "api".into(),
                direction: ingress(),
                action: "allow".into(),
                source: "@web".into(),
            };
            let names = [name(Reason::Allowed, Some(rule)), name(Reason::NotAllowed, None)];
            Some(Scrape {
                totals: Totals::zero(&names, true),
                interfaces: vec![InterfaceScrape {
                    name: "eth0".into(),
                    hook: "xdp".into(),
                    mode: "native".into(),
                    egress: "tcx".into(),
                    passed: Count {
                        packets: 7,
                        bytes: 700,
                    },
                    egress_dropped: Count {
                        packets: 3,
                        bytes: 300,
                    },
                    ..InterfaceScrape::default()
                }],
                repairs: vec![("eth0".into(), Part::Egress, 2)],
                drift: vec![(Drift::Selector, 1), (Drift::Config, 0)],
                anomalies: vec![
                    ("api".into(), Kind::Drops, true),
                    ("api".into(), Kind::Bytes, false),
                ],
                generation: 3,
                digest: "abc".into(),
                limits: vec![LimitState {
                    scope: "api/@web".into(),
                    service: "api".into(),
                    challenged_seconds: Some(3),
                    challenges_started: 2,
                    values: vec![
                        LimitUsed {
                            limit: LimitValue {
                                what: "packets".into(),
                                ..LimitValue::default()
                            },
                            per_source_value: Some(0.5),
                            total_value: Some(1000.0),
                            total_spent: Some(0.25),
                            sources: Some(7),
                            room: Some(1024),
                            ..LimitUsed::default()
                        },
                        LimitUsed {
                            limit: LimitValue {
                                what: "connections".into(),
                                ..LimitValue::default()
                            },
                            total_value: Some(20_000.0),
                            connections: Some(42),
                            ..LimitUsed::default()
                        },
                    ],
                }],
                bans: BanScrape {
                    begun: [("api".to_owned(), 4)].into(),
                    ..BanScrape::default()
                },
                suppressed: Reason::ALL.iter().map(|reason| (*reason, 0)).collect(),
                fleet: Some(FleetStatus {
                    connected: true,
                    documents: vec![DocumentRow {
                        name: "web".into(),
                        state: "in-force".into(),
                        version: Some(7),
                        ..DocumentRow::default()
                    }],
                    refused: [("older".to_owned(), 2)].into(),
                    ..FleetStatus::default()
                }),
                ..Scrape::default()
            })
        }
    }

    fn text() -> String {
        let registry = Registry::new();
        registry
            .register(Box::new(AgentCollector(Fixed)))
            .expect("registered");
        TextEncoder::new()
            .encode_to_string(&registry.gather())
            .expect("encoded")
    }

    #[test]
    fn series_are_there_from_the_start() {
        let text = text();
        for line in [
            "ravelin_packets_total{direction=\"ingress\",service=\"api\",verdict=\"pass\",reason=\"allowed\"} 0",
            "ravelin_packets_total{direction=\"ingress\",service=\"api\",verdict=\"drop\",reason=\"not-allowed\"} 0",
            "ravelin_packets_total{direction=\"ingress\",service=\"api\",verdict=\"would-drop\",reason=\"not-allowed\"} 0",
            "ravelin_rule_bytes_total{direction=\"ingress\",service=\"api\",action=\"allow\",source=\"@web\"} 0",
            "ravelin_connections_opened_total{service=\"api\",source=\"@web\"} 0",
            "ravelin_interface_packets_total{interface=\"eth0\",direction=\"ingress\",verdict=\"pass\"} 7",
            "ravelin_interface_bytes_total{interface=\"eth0\",direction=\"egress\",verdict=\"drop\"} 300",
            "ravelin_interface_info{interface=\"eth0\",hook=\"xdp\",mode=\"native\",egress=\"tcx\"} 1",
            "ravelin_repairs_total{interface=\"eth0\",part=\"egress\"} 2",
            "ravelin_drift_total{what=\"selector\"} 1",
            "ravelin_drift_total{what=\"config\"} 0",
            "ravelin_anomaly{service=\"api\",kind=\"drops\"} 1",
            "ravelin_anomaly{service=\"api\",kind=\"bytes\"} 0",
            "ravelin_policy_generation 3",
            "ravelin_policy_info{digest=\"abc\"} 1",
            "ravelin_policy_last_reload_successful 0",
            "ravelin_policy_prefixes{family=\"ipv6\"} 0",
            "ravelin_events_suppressed_total{reason=\"closed\"} 0",
            "ravelin_bans{origin=\"automatic\"} 0",
            "ravelin_bans_total{origin=\"automatic\",service=\"api\"} 4",
            "ravelin_bans_lost_total 0",
            "ravelin_enforcing 0",
            "ravelin_challenge_active{service=\"api\",limit=\"api/@web\"} 1",
            "ravelin_challenges_started_total{service=\"api\",limit=\"api/@web\"} 2",
            "ravelin_connections{service=\"api\",limit=\"api/@web\"} 42",
            "ravelin_limit{service=\"api\",limit=\"api/@web\",kind=\"packets_per_source\"} 0.5",
            "ravelin_limit{service=\"api\",limit=\"api/@web\",kind=\"packets_total\"} 1000",
            "ravelin_limit{service=\"api\",limit=\"api/@web\",kind=\"connections_total\"} 20000",
            "ravelin_limit_total_spent_ratio{service=\"api\",limit=\"api/@web\",kind=\"packets\"} 0.25",
            "ravelin_limit_sources{service=\"api\",limit=\"api/@web\",kind=\"packets\"} 7",
            "ravelin_limit_sources_max{service=\"api\",limit=\"api/@web\",kind=\"packets\"} 1024",
            "ravelin_connections_mended_total 0",
            "ravelin_fleet_connected 1",
            "ravelin_fleet_documents{state=\"in-force\"} 1",
            "ravelin_fleet_documents{state=\"withheld\"} 0",
            "ravelin_fleet_document_version{document=\"web\"} 7",
            "ravelin_fleet_refused_total{reason=\"older\"} 2",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn promtool_finds_nothing_to_say() {
        let child = Process::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                eprintln!("skipped: promtool (Debian package prometheus) is not there: {error}");
                return;
            }
        };
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(text().as_bytes())
            .expect("written");
        let output = child.wait_with_output().expect("ended");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
