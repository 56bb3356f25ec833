//! The ports that this host publishes for others by translating their destination: DNAT and redirects of nftables and
//! iptables, as `nft` and `iptables-save` list them.
//!
//! A packet to such a port is judged before it is translated, by the port that it came to. Read are rules that name a
//! protocol and a port, by a value, a range, a set or a map, wherever chains lead to them; what only packets of this host
//! itself pass (hook output) is left out. Absent on purpose: rules that translate an address whatever the port, verdict
//! maps, programs (IPVS, eBPF). A program that is not installed is no error; asking never loads a module nor makes a table.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::process::Command;

/// How long one program may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Where these programs are, whatever the caller's PATH.
const PATH: &str = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin";

/// Ports that are published together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Both inclusive.
    pub first: u16,
    pub last: u16,
    /// The address that packets come to, if the rule names one.
    pub address: Option<String>,
    /// Where they go then: `10.88.0.2:80`, `port 8118`; empty if that is not told.
    pub to: String,
    /// `nftables` or `iptables`.
    pub by: &'static str,
}

/// What was found, and what could not be asked, a sentence each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub ports: BTreeSet<Published>,
    pub problems: Vec<String>,
}

/// Asks for all of them.
pub async fn gather() -> Found {
    let (nft, legacy4, legacy6) = tokio::join!(
        run(&["nft"], &["-j", "list", "ruleset"]),
        legacy(
            "/proc/net/ip_tables_names",
            ["iptables-legacy-save", "iptables-save"]
        ),
        legacy(
            "/proc/net/ip6_tables_names",
            ["ip6tables-legacy-save", "ip6tables-save"]
        ),
    );
    let mut found = Found::default();
    let ruleset = found
        .take("nft", nft)
        .and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let rules = ruleset.as_ref().map(nftables).unwrap_or_default();
    for (family, programs) in [
        ("ip", ["iptables-nft-save", "iptables-save"]),
        ("ip6", ["ip6tables-nft-save", "ip6tables-save"]),
    ] {
        // Rules that iptables wrote: nft shows the port, and not where it leads.
        let Some(veiled) = rules.veiled.get(family) else {
            continue;
        };
        let saved = run(&programs, &["-t", "nat"]).await;
        let told = found
            .take(programs[1], saved)
            .map(|text| iptables(&String::from_utf8_lossy(&text)))
            .unwrap_or_default();
        found
            .ports
            .extend(if told.is_empty() { veiled.clone() } else { told });
    }
    found.ports.extend(rules.plain);
    for legacy in [legacy4, legacy6].into_iter().flatten() {
        if let Some(text) = found.take("iptables-save", legacy) {
            found.ports.extend(iptables(&String::from_utf8_lossy(&text)));
        }
    }
    found
}

/// `None`: nobody uses the table of this family.
async fn legacy(names: &str, programs: [&str; 2]) -> Option<io::Result<Output>> {
    let names = tokio::fs::read_to_string(names).await.ok()?;
    // To ask for a table that is not there would make it.
    if !names.lines().any(|name| name == "nat") {
        return None;
    }
    Some(run(&programs, &["-t", "nat"]).await)
}

/// Runs the first of these programs that is installed.
async fn run(programs: &[&str], arguments: &[&str]) -> io::Result<Output> {
    let mut result = Err(io::ErrorKind::NotFound.into());
    for program in programs {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        result = match tokio::time::timeout(PATIENCE, command.output()).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            break;
        }
    }
    result
}

impl Found {
    /// What a program printed, if there is one and it worked.
    fn take(&mut self, program: &str, result: io::Result<Output>) -> Option<Vec<u8>> {
        let why = match result {
            Ok(output) if output.status.success() => return Some(output.stdout),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                said.lines().next().unwrap_or("it failed").to_owned()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                format!("no answer within {} s", PATIENCE.as_secs())
            }
            Err(error) => error.to_string(),
        };
        self.problems
            .push(format!("published ports may be missing: {program}: {why}"));
        None
    }
}

/// What a ruleset of nftables publishes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    plain: BTreeSet<Published>,
    /// By the family of the table: rules whose target nft does not read.
    veiled: BTreeMap<String, BTreeSet<Published>>,
}

/// Of `nft -j list ruleset`.
fn nftables(ruleset: &Value) -> Rules {
    let objects: Vec<&Value> = ruleset["nftables"].as_array().into_iter().flatten().collect();
    let place = |object: &Value, name: &str| {
        [&object["family"], &object["table"], &object[name]]
            .map(|word| word.as_str().unwrap_or("").to_owned())
    };
    let mut sets: BTreeMap<[String; 3], &Value> = BTreeMap::new();
    let mut own: BTreeSet<[String; 3]> = BTreeSet::new();
    for object in &objects {
        for kind in ["set", "map"] {
            if let Some(set) = object.get(kind) {
                sets.insert(place(set, "name"), &set["elem"]);
            }
        }
        if let Some(chain) = object.get("chain")
            && chain["hook"] == "output"
        {
            own.insert(place(chain, "name"));
        }
    }
    let mut rules = Rules::default();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let [family, table, chain] = place(rule, "chain");
        if own.contains(&[family.clone(), table.clone(), chain]) {
            continue;
        }
        let named = |value: &Value| -> Value {
            match value.as_str().and_then(|name| name.strip_prefix('@')) {
                Some(name) => {
                    let key = [family.clone(), table.clone(), name.to_owned()];
                    sets.get(&key).map_or(Value::Null, |elements| (*elements).clone())
                }
                None => value.clone(),
            }
        };
        let (found, veiled) = published(rule, &named);
        if veiled {
            rules.veiled.entry(family.clone()).or_default().extend(found);
        } else {
            rules.plain.extend(found);
        }
    }
    rules
}

/// What one rule publishes, and whether iptables wrote its target. `named` puts a set in the place of its name.
fn published(rule: &Value, named: &impl Fn(&Value) -> Value) -> (Vec<Published>, bool) {
    let (mut protocols, mut ports) = (Vec::new(), Vec::new());
    let mut address = None;
    for expression in rule["expr"].as_array().into_iter().flatten() {
        if let Some(condition) = expression.get("match") {
            if condition["op"] != "==" {
                continue;
            }
            let (left, right) = (&condition["left"], named(&condition["right"]));
            if let Some((protocol, field)) = payload(left) {
                match field {
                    "dport" => {
                        protocols.extend((protocol != "th").then(|| protocol.to_owned()));
                        ports = ranges(&right);
                    }
                    "daddr" => address = Some(target(&right, &Value::Null)),
                    "protocol" | "nexthdr" => protocols = words(&right),
                    _ => {}
                }
            } else if left["meta"]["key"] == "l4proto" {
                protocols = words(&right);
            }
            continue;
        }
        let xt = &expression["xt"];
        let veiled = xt["type"] == "target" && ["DNAT", "REDIRECT"].iter().any(|name| xt["name"] == **name);
        let statement = expression.get("dnat").or_else(|| expression.get("redirect"));
        if !veiled && statement.is_none() {
            continue;
        }
        let statement = statement.unwrap_or(&Value::Null);
        let make = |protocol: &str, (first, last), to: String| Published {
            protocol: protocol.to_owned(),
            first,
            last,
            address: address.clone(),
            to,
            by: if veiled { "iptables" } else { "nftables" },
        };
        let map = &statement["addr"]["map"];
        let found = match payload(&map["key"]) {
            Some((protocol, "dport")) => {
                let data = named(&map["data"]);
                let elements = data.get("set").unwrap_or(&data).clone();
                let pairs = elements.as_array().cloned().unwrap_or_default();
                let rows = pairs.iter().flat_map(|pair| {
                    let to = target(&pair[1], &statement["port"]);
                    ranges(&pair[0]).into_iter().map(move |range| (range, to.clone()))
                });
                rows.map(|(range, to)| make(protocol, range, to)).collect()
            }
            _ => {
                let to = target(&statement["addr"], &statement["port"]);
                let each = protocols
                    .iter()
                    .flat_map(|protocol| ports.iter().map(move |range| (protocol, *range)));
                each.map(|(protocol, range)| make(protocol, range, to.clone()))
                    .collect()
            }
        };
        return (found, veiled);
    }
    (Vec::new(), false)
}

/// Protocol and field of a header.
fn payload(value: &Value) -> Option<(&str, &str)> {
    Some((
        value["payload"]["protocol"].as_str()?,
        value["payload"]["field"].as_str()?,
    ))
}

/// A protocol, or those of a set.
fn words(value: &Value) -> Vec<String> {
    let list = value.get("set").unwrap_or(value);
    let each = list.as_array().map_or(std::slice::from_ref(list), Vec::as_slice);
    let known = |word: &Value| match word.as_u64() {
        Some(6) => Some("tcp".to_owned()),
        Some(17) => Some("udp".to_owned()),
        Some(132) => Some("sctp".to_owned()),
        _ => word.as_str().map(str::to_owned),
    };
    let with_ports = |word: &String| ["tcp", "udp", "sctp"].contains(&word.as_str());
    each.iter().filter_map(known).filter(with_ports).collect()
}

/// Ports of a value, a range, a set, or the elements of one.
fn ranges(value: &Value) -> Vec<(u16, u16)> {
    let port = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    if let Some(list) = value.get("set").unwrap_or(value).as_array() {
        return list.iter().flat_map(ranges).collect();
    }
    if let Some(element) = value.get("elem") {
        return ranges(&element["val"]);
    }
    let range = match value.get("range") {
        Some(range) => port(&range[0]).zip(port(&range[1])),
        None => port(value).map(|port| (port, port)),
    };
    range.into_iter().collect()
}

/// Where packets go, from an address, a prefix, or an address and a port in one.
fn target(address: &Value, port: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Object(_) if value.get("range").is_some() => {
            let end = |at: usize| match &value["range"][at] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            format!("{}-{}", end(0), end(1))
        }
        Value::Object(_) if value.get("prefix").is_some() => {
            let prefix = &value["prefix"];
            format!("{}/{}", prefix["addr"].as_str().unwrap_or(""), prefix["len"])
        }
        _ => String::new(),
    };
    let (address, port) = match address.get("concat") {
        Some(both) => (text(&both[0]), text(&both[1])),
        None => (text(address), text(port)),
    };
    match (address.is_empty(), port.is_empty()) {
        (_, true) => address,
        (true, false) => format!("port {port}"),
        (false, false) if address.contains(':') => format!("[{address}]:{port}"),
        (false, false) => format!("{address}:{port}"),
    }
}

/// Of `iptables-save -t nat`, either family, either variant.
fn iptables(text: &str) -> BTreeSet<Published> {
    text.lines()
        .filter_map(|line| line.strip_prefix("-A "))
        .filter(|rule| !rule.starts_with("OUTPUT "))
        .flat_map(iptables_rule)
        .collect()
}

fn iptables_rule(rule: &str) -> Vec<Published> {
    let (mut protocol, mut ports, mut address, mut to) = (None, Vec::new(), None, None);
    let mut negated = false;
    let mut words = rule.split_whitespace();
    while let Some(word) = words.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        if std::mem::take(&mut negated) {
            // Not on such an interface, not from such an address: leaves the port published.
            continue;
        }
        match word {
            "-p" => protocol = words.next(),
            "-d" => {
                address = words
                    .next()
                    .map(|to| to.trim_end_matches("/32").trim_end_matches("/128"))
            }
            "--dport" | "--dports" | "--ports" => {
                ports = words
                    .next()
                    .into_iter()
                    .flat_map(|list| list.split(','))
                    .collect();
            }
            "--to-destination" => to = words.next().map(str::to_owned),
            "--to-ports" => to = words.next().map(|port| format!("port {port}")),
            "REDIRECT" => to = to.or(Some(String::new())),
            _ => {}
        }
    }
    let (Some(protocol), Some(to)) = (protocol, to) else {
        return Vec::new();
    };
    let range = |text: &str| {
        let (first, last) = text.split_once(':').unwrap_or((text, text));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    let each = ports.into_iter().filter_map(range);
    each.map(|(first, last)| Published {
        protocol: protocol.to_owned(),
        first,
        last,
        address: address.map(str::to_owned),
        to: to.clone(),
        by: "iptables",
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each as a line: `tcp/80 at ADDRESS -> TO by PROGRAM`.
    fn lines<'a>(ports: impl IntoIterator<Item = &'a Published>) -> Vec<String> {
        let line = |one: &Published| {
            let at = one.address.as_deref().unwrap_or("*");
            let Published {
                protocol,
                first,
                last,
                to,
                by,
                ..
            } = one;
            format!("{protocol}/{first}-{last} at {at} -> {to} by {by}")
        };
        ports.into_iter().map(line).collect()
    }

    #[test]
    fn a_ruleset_of_nftables_gives_every_port_that_it_names() {
        let ruleset = serde_json::from_str(include_str!("published/nft.json")).unwrap();
        let rules = nftables(&ruleset);
        assert_eq!(rules.veiled, BTreeMap::new());
        assert_eq!(
            lines(&rules.plain),
            [
                "tcp/53-53 at * -> 10.88.0.4 by nftables",
                "tcp/80-80 at * -> 10.88.0.2 by nftables",
                "tcp/443-443 at 192.0.2.1 -> 10.88.0.2 by nftables",
                "tcp/3128-3128 at * -> port 8118 by nftables",
                "tcp/6000-6010 at * -> 10.88.0.2 by nftables",
                "tcp/7000-7000 at * -> 10.88.0.7:70 by nftables",
                "tcp/8000-8010 at * -> 10.88.0.2 by nftables",
                "tcp/8080-8080 at * -> 10.88.0.2:80 by nftables",
                "tcp/8080-8080 at * -> [fd00:88::2]:80 by nftables",
                "tcp/8443-8444 at 192.0.2.1 -> 10.88.0.2 by nftables",
                "tcp/9000-9000 at * -> 10.88.0.2:90 by nftables",
                "udp/53-53 at * -> 10.88.0.4 by nftables",
                "udp/8081-8081 at * -> 10.88.0.2:81 by nftables",
            ]
        );
    }

    #[test]
    fn of_rules_that_iptables_wrote_nft_gives_the_port_and_iptables_the_rest() {
        let ruleset = serde_json::from_str(include_str!("published/nft-of-iptables.json")).unwrap();
        let rules = nftables(&ruleset);
        assert_eq!(rules.plain, BTreeSet::new());
        assert_eq!(
            lines(&rules.veiled["ip"]),
            [
                "tcp/3128-3128 at * ->  by iptables",
                "tcp/8080-8080 at * ->  by iptables",
                "udp/5000-5010 at 192.0.2.1 ->  by iptables",
            ]
        );
        assert_eq!(
            lines(&rules.veiled["ip6"]),
            ["tcp/8080-8080 at * ->  by iptables"]
        );
        assert_eq!(
            lines(&iptables(include_str!("published/iptables-save.txt"))),
            [
                "tcp/443-443 at * -> 172.17.0.4 by iptables",
                "tcp/3128-3128 at * -> port 8118 by iptables",
                "tcp/8080-8080 at * -> 172.17.0.2:80 by iptables",
                "tcp/8443-8444 at * -> 172.17.0.4 by iptables",
                "udp/5000-5010 at 192.0.2.1 -> 172.17.0.3 by iptables",
            ]
        );
        assert_eq!(
            lines(&iptables(include_str!("published/ip6tables-save.txt"))),
            ["tcp/8080-8080 at * -> [fd00::2]:80 by iptables"]
        );
    }

    #[test]
    fn what_makes_no_sense_publishes_nothing() {
        for text in [
            "{}",
            "[]",
            "{\"nftables\": 7}",
            "{\"nftables\": [{\"rule\": {\"expr\": [{\"dnat\": null}, {\"match\": []}]}}, 3]}",
        ] {
            let rules = nftables(&serde_json::from_str(text).unwrap());
            assert_eq!(rules, Rules::default(), "{text}");
        }
        for text in [
            "-A",
            "-A X -p tcp --dport",
            "-A X -p tcp --dport 99999 -j DNAT --to-destination a",
            "-A X !",
        ] {
            assert_eq!(iptables(text), BTreeSet::new(), "{text}");
        }
        // Only what the host sends itself goes this way.
        let own = "-A OUTPUT -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1";
        assert_eq!(iptables(own), BTreeSet::new());
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_no_problem_and_one_that_fails_is() {
        let mut found = Found::default();
        let missing = run(&["no-such-program"], &[]).await;
        assert_eq!((found.take("x", missing), found.problems.len()), (None, 0));
        let first_there = run(&["no-such-program", "true"], &[]).await;
        assert_eq!(found.take("true", first_there), Some(Vec::new()));
        let failing = run(&["false"], &[]).await;
        assert_eq!(found.take("false", failing), None);
        assert_eq!(
            found.problems,
            ["published ports may be missing: false: it failed"]
        );
    }
}
