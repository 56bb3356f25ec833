use super::text::{self, Scope, TextError};
use super::*;
use crate::policy::file::{Loaded, parse};
use crate::policy::model::Policy;
use proptest::prelude::*;
use std::path::Path;

fn load(text: &str) -> Loaded {
    parse(text, Path::new("policy.toml"), 0).unwrap_or_else(|error| panic!("{error}"))
}

fn errors(text: &str) -> String {
    parse(text, Path::new("policy.toml"), 0).unwrap_err().to_string()
}

fn warnings(text: &str) -> String {
    let warnings: Vec<String> = load(text).warnings.iter().map(ToString::to_string).collect();
    warnings.join("\n\n")
}

/// A policy of one service, which everybody may use.
fn policy(defaults: &str, ports: &str, limits: &str) -> Policy {
    let text = format!(
        "version = 1\n[defaults.limits]\n{defaults}\n[groups]\npartners = [\"192.0.2.0/24\"]\n\
         [[service]]\nname = \"api\"\nports = [\"{ports}\"]\nallow = [\"any\", \"@partners\"]\n{limits}\n"
    );
    load(&text).policy
}

/// The scopes of the service in words.
fn told(defaults: &str, ports: &str, limits: &str) -> Vec<String> {
    let policy = policy(defaults, ports, limits);
    let service = &policy.services[0];
    let tell = |name: String, limits: &Limits| {
        let kinds = Kind::ALL.into_iter().filter_map(|kind| limits.phrase(kind));
        let kinds: Vec<String> = kinds.collect();
        format!("{name}: {}; {}", kinds.join("; "), limits.on_excess)
    };
    let groups = service.groups.iter();
    let groups = groups.map(|group| tell(service.scope_name(Some(group)), &group.limits));
    let rest = (!service.limits.is_empty()).then(|| tell(service.scope_name(None), &service.limits));
    groups.chain(rest).collect()
}

#[test]
fn rates_are_read_in_every_form() {
    let cases = [
        (Kind::Packets, "50/s", 50, Per::Second),
        (Kind::Packets, "20k/s", 20_000, Per::Second),
        (Kind::Packets, "1.5M/min", 1_500_000, Per::Minute),
        (Kind::Packets, "1G/s", 1_000_000_000, Per::Second),
        (Kind::NewConnections, "1/h", 1, Per::Hour),
        (Kind::Bytes, "1000B/s", 1000, Per::Second),
        (Kind::Bytes, "2.5kB/s", 2500, Per::Second),
        (Kind::Bytes, "100MB/s", 100_000_000, Per::Second),
        (Kind::Bytes, "1GB/min", 1_000_000_000, Per::Minute),
        (Kind::Bytes, "64KiB/s", 65_536, Per::Second),
        (Kind::Bytes, "1.5MiB/s", 1_572_864, Per::Second),
        (Kind::Bytes, "1GiB/h", 1 << 30, Per::Hour),
        (Kind::Bytes, "8kbit/s", 1000, Per::Second),
        (Kind::Bytes, "100Mbit/s", 12_500_000, Per::Second),
        (Kind::Bytes, "1Gbit/s", 125_000_000, Per::Second),
    ];
    for (kind, text, amount, per) in cases {
        assert_eq!(text::rate(text, kind, Scope::Total), Ok((amount, per)), "{text}");
    }
}

#[test]
fn what_is_no_rate_is_told_with_what_would_be() {
    // Text, the part that is pointed at, message, hint.
    let counts = [
        (
            "",
            "",
            "\"\" is not a rate: it has no time (/s, /min or /h)",
            Some("write \"50/s\", \"20k/s\" or \"600/min\""),
        ),
        (
            "50",
            "50",
            "\"50\" is not a rate: it has no time (/s, /min or /h)",
            Some("write \"50/s\""),
        ),
        (
            "unlimted",
            "unlimted",
            "\"unlimted\" is not a rate: it has no time (/s, /min or /h)",
            Some("did you mean \"unlimited\"?"),
        ),
        (
            "50/",
            "50/",
            "unknown time \"\" (s, min or h)",
            Some("write \"50/s\""),
        ),
        (
            "50/m",
            "m",
            "unknown time \"m\" (s, min or h)",
            Some("write \"50/min\""),
        ),
        (
            "50/seconds",
            "seconds",
            "unknown time \"seconds\" (s, min or h)",
            Some("write \"50/s\""),
        ),
        (
            "50/day",
            "day",
            "unknown time \"day\" (s, min or h)",
            Some("the shortest time is /s, the longest /h"),
        ),
        (
            "50/ms",
            "ms",
            "unknown time \"ms\" (s, min or h)",
            Some("the shortest time is /s, the longest /h"),
        ),
        (
            "20kpps",
            "20kpps",
            "\"20kpps\" is not a rate: it has no time (/s, /min or /h)",
            Some("write \"20k/s\""),
        ),
        (
            "none",
            "none",
            "\"none\" is not a rate: it has no time (/s, /min or /h)",
            Some("write \"unlimited\", or \"50/s\", \"20k/s\" or \"600/min\""),
        ),
        (
            "50 / s",
            "50 / s",
            "\"50 / s\" has a space in it",
            Some("write \"50/s\""),
        ),
        (
            "fast/s",
            "fast",
            "\"fast\" does not begin with a number (a number such as 50, 20k or 1.5M)",
            None,
        ),
        (
            "-5/s",
            "-5",
            "\"-5\" is negative (a number such as 50, 20k or 1.5M)",
            None,
        ),
        (
            "1,000/s",
            "1,000/s",
            "\"1,000/s\" has a comma in it",
            Some("write \"1000/s\""),
        ),
        (
            "1,5k/s",
            "1,5k/s",
            "\"1,5k/s\" has a comma in it",
            Some("write \"1.5k/s\""),
        ),
        (
            "5K/s",
            "K",
            "unknown unit \"K\" (k, M or G)",
            Some("write \"5k\""),
        ),
        (
            "5m/s",
            "m",
            "unknown unit \"m\" (k, M or G)",
            Some("write \"5M\" for millions"),
        ),
        (
            "5MB/s",
            "MB",
            "unknown unit \"MB\" (k, M or G)",
            Some("bytes are limited under \"bytes\""),
        ),
        (
            "0.5/s",
            "0.5",
            "\"0.5\" is not a whole number",
            Some("for less than one a second write /min or /h"),
        ),
        (
            "1.2345/s",
            "1.2345",
            "\"1.2345\" has not one to three digits behind one point (a number such as 50, 20k or 1.5M)",
            None,
        ),
        (
            "1./s",
            "1.",
            "\"1.\" has not one to three digits behind one point (a number such as 50, 20k or 1.5M)",
            None,
        ),
        (
            "0/s",
            "0/s",
            "a rate of 0 (1/h to 1,000,000,000/s)",
            Some("to let nobody in, take sources out of \"allow\""),
        ),
        (
            "2G/s",
            "2G/s",
            "\"2G/s\" is out of range (1/h to 1,000,000,000/s)",
            None,
        ),
        (
            "99999999999999999999999/s",
            "99999999999999999999999/s",
            "\"99999999999999999999999/s\" is out of range (1/h to 1,000,000,000/s)",
            None,
        ),
    ];
    let bytes = [
        (
            "100/s",
            "100",
            "\"100\" has no unit (B, kB, MB, GB, KiB, MiB, GiB, kbit, Mbit or Gbit)",
            Some("write for example \"100kB/s\""),
        ),
        (
            "20000",
            "20000",
            "\"20000\" is not a rate: it has no time (/s, /min or /h)",
            Some("write for example \"20000B/s\""),
        ),
        (
            "100Mbps",
            "100Mbps",
            "\"100Mbps\" is not a rate: it has no time (/s, /min or /h)",
            Some("write \"100Mbit/s\" for bits, \"100MB/s\" for bytes"),
        ),
        (
            "100Mbps/s",
            "Mbps",
            "unknown unit \"Mbps\" (B, kB, MB, GB, KiB, MiB, GiB, kbit, Mbit or Gbit)",
            Some("write \"100Mbit/s\" for bits, \"100MB/s\" for bytes"),
        ),
        (
            "100MBps",
            "100MBps",
            "\"100MBps\" is not a rate: it has no time (/s, /min or /h)",
            Some("write \"100MB/s\" for bytes, \"100Mbit/s\" for bits"),
        ),
        (
            "1,536 KiB/s",
            "1,536 KiB/s",
            "\"1,536 KiB/s\" has a space in it",
            Some("write \"1536KiB/s\""),
        ),
        (
            "5M/s",
            "M",
            "unknown unit \"M\" (B, kB, MB, GB, KiB, MiB, GiB, kbit, Mbit or Gbit)",
            Some("write \"5MB\" for bytes, \"5Mbit\" for bits"),
        ),
        (
            "5mb/s",
            "mb",
            "unknown unit \"mb\" (B, kB, MB, GB, KiB, MiB, GiB, kbit, Mbit or Gbit)",
            Some("write \"5MB\" for bytes, \"5Mbit\" for bits"),
        ),
        (
            "5MBit/s",
            "MBit",
            "unknown unit \"MBit\" (B, kB, MB, GB, KiB, MiB, GiB, kbit, Mbit or Gbit)",
            Some("did you mean \"Mbit\"?"),
        ),
        (
            "999B/s",
            "999B/s",
            "\"999B/s\" is out of range (1 kB/s to 100 GB/s)",
            None,
        ),
        (
            "1kB/min",
            "1kB/min",
            "\"1kB/min\" is out of range (1 kB/s to 100 GB/s)",
            None,
        ),
        (
            "101GB/s",
            "101GB/s",
            "\"101GB/s\" is out of range (1 kB/s to 100 GB/s)",
            None,
        ),
    ];
    let cases = counts.into_iter().map(|case| (Kind::Packets, case));
    for (kind, (text, part, message, hint)) in cases.chain(bytes.map(|case| (Kind::Bytes, case))) {
        let error = text::rate(text, kind, Scope::Total).unwrap_err();
        assert_eq!(
            (error.message.as_str(), error.hint.as_deref(), &text[error.at]),
            (message, hint, part),
            "{text}"
        );
    }
    let error = text::rate("20M/s", Kind::NewConnections, Scope::Source).unwrap_err();
    assert_eq!(error.message, "\"20M/s\" is out of range (1/h to 10,000,000/s)");
}

#[test]
fn bursts_sizes_and_bans_have_their_bounds() {
    assert_eq!(text::burst("20k", Kind::Packets, Scope::Source), Ok(20_000));
    assert_eq!(text::burst("64KiB", Kind::Bytes, Scope::Source), Ok(65_536));
    let message = |error: Result<u64, TextError>| error.unwrap_err().message;
    assert_eq!(
        message(text::burst("10kB", Kind::Bytes, Scope::Source)),
        "10kB is out of range (64 KiB to 1 TB): a single frame may be as long as 64 KiB"
    );
    assert_eq!(
        message(text::burst_of(100, Kind::Bytes, Scope::Source)),
        "\"100\" has no unit (B, kB, MB, GB, KiB, MiB, GiB, kbit, Mbit or Gbit)"
    );
    for (burst, hint) in [(100, "100kB"), (1, "1MB"), (200_000, "200000B"), (0, "100kB")] {
        let error = text::burst_of(burst, Kind::Bytes, Scope::Total).unwrap_err();
        assert_eq!(error.hint, Some(format!("write for example \"{hint}\"")));
    }
    assert_eq!(
        message(text::burst_of(0, Kind::Packets, Scope::Source)),
        "0 is out of range (1 to 10,000,000)"
    );
    assert_eq!(
        message(text::burst("5/s", Kind::Packets, Scope::Source)),
        "\"5/s\" is a rate: a burst comes at once, without a time"
    );
    assert_eq!(
        message(text::connections_of(2_000_000_000)),
        "2000000000 is out of range (1 to 1,000,000,000)"
    );
    assert_eq!(
        text::connections("none").unwrap_err().hint.as_deref(),
        Some("write \"unlimited\", or a number")
    );
    assert_eq!(text::on_excess("ban 1h30m"), Ok(OnExcess::Ban(5400)));
    assert_eq!(
        text::on_excess("ban 1w").unwrap_err().hint.as_deref(),
        Some("write \"ban 7d\"")
    );
    assert_eq!(OnExcess::Ban(5400).to_string(), "ban 1h30m");
    let bad = [
        ("ban 366d", "a ban of 366d is out of range (1s to 365d)"),
        ("ban 10", "\"10\" has no unit: write 10s, 10m, 10h or 10d"),
        (
            "ban ",
            "a duration is missing: write for example 90s, 10m, 1h30m or 7d",
        ),
        (
            "reject",
            "unknown on_excess \"reject\" (\"drop\", \"challenge\" or \"ban 10m\")",
        ),
    ];
    for (text, expected) in bad {
        assert_eq!(text::on_excess(text).unwrap_err().message, expected, "{text}");
    }
}

#[test]
fn amounts_are_shown_exactly() {
    let cases = [
        (Kind::Packets, 20_000, "20,000"),
        (Kind::Bytes, 500, "500 B"),
        (Kind::Bytes, 65_536, "64 KiB"),
        (Kind::Bytes, 12_500_000, "12.5 MB"),
        (Kind::Bytes, 1_572_864, "1,536 KiB"),
        (Kind::Bytes, 100_000_000_000, "100 GB"),
        (Kind::Bytes, 1_000_001, "1,000,001 B"),
        (Kind::Bytes, 1 << 40, "1,024 GiB"),
        (Kind::Bytes, (1 << 30) + 1, "1,073,741,825 B"),
    ];
    for (kind, value, text) in cases {
        assert_eq!(amount(kind, value), text);
    }
}

#[test]
fn a_service_beats_the_defaults_key_by_key() {
    let defaults = "packets = { per_source = \"10/s\", burst = 30, total = \"1k/s\" }\nconnections.total = 9\non_excess = \"challenge\"";
    let all = "api: packets 10/s a source (burst 30), 1,000/s in all (burst 1,000); connections 9 in all; challenge";
    assert_eq!(told(defaults, "tcp/1", ""), [all]);
    // A rate brings its burst along; a burst by itself changes that of the rate that is there.
    assert_eq!(
        told(
            defaults,
            "tcp/1",
            "[service.limits]\npackets.per_source = \"20/s\"\non_excess = \"drop\""
        ),
        ["api: packets 20/s a source (burst 20), 1,000/s in all (burst 1,000); connections 9 in all; drop"]
    );
    assert_eq!(
        told(
            defaults,
            "tcp/1",
            "[service.limits]\npackets.burst = 5\nconnections.per_source = 2"
        ),
        [
            "api: packets 10/s a source (burst 5), 1,000/s in all (burst 1,000); connections 2 a source, 9 in all; challenge"
        ]
    );
    // What is unlimited takes the default away.
    assert_eq!(
        told(
            defaults,
            "tcp/1",
            "[service.limits]\npackets.per_source = \"unlimited\"\nconnections = \"unlimited\""
        ),
        ["api: packets 1,000/s in all (burst 1,000); challenge"]
    );
    assert_eq!(
        told(
            defaults,
            "tcp/1",
            "[service.limits]\npackets = \"unlimited\"\nconnections.total = \"unlimited\""
        )
        .len(),
        0
    );
    // Without TCP there are no connections, and nobody can be challenged.
    assert_eq!(
        told(defaults, "udp/1", ""),
        ["api: packets 10/s a source (burst 30), 1,000/s in all (burst 1,000); drop"]
    );
    assert_eq!(told("connections.total = 9", "udp/1", "").len(), 0);
}

#[test]
fn a_group_beats_its_service_but_has_totals_of_its_own() {
    let limits = "[service.limits]\npackets = { per_source = \"10/s\", total = \"1k/s\" }\nconnections = { per_source = 3, total = 9 }\n\
                  source = { v4 = 24 }\non_excess = \"ban 1m\"\n[[service.limit]]\nfor = \"@partners\"\n";
    let of = |keys: &str| {
        let mut told = told("", "tcp/1", &format!("{limits}{keys}"));
        assert_eq!(told.len(), 2);
        told.remove(0)
    };
    assert_eq!(
        of("packets.per_source = \"500/s\""),
        "api/@partners: packets 500/s a source (burst 500); connections 3 a source; ban 1m"
    );
    assert_eq!(
        of(
            "packets = { per_source = \"unlimited\", total = \"2/s\" }\nconnections = { per_source = \"unlimited\", total = 4 }\non_excess = \"drop\""
        ),
        "api/@partners: packets 2/s in all (burst 2); connections 4 in all; drop"
    );
    assert_eq!(
        of("packets.burst = 77"),
        "api/@partners: packets 10/s a source (burst 77); connections 3 a source; ban 1m"
    );
    let policy = policy("", "tcp/1", limits);
    let service = &policy.services[0];
    assert_eq!(service.groups[0].limits.source, SourceLengths { v4: 24, v6: 64 });
    assert_eq!(service.limits.place.as_ref().unwrap().line, 10);
    assert_eq!(service.groups[0].place.line, 15);
    assert_eq!(service.groups[0].sources, ["@partners"]);
    // The lists of rules come first, and a group that both name is one.
    assert_eq!(service.groups[0].lists, policy.rules[1].lists);
}

#[test]
fn what_no_rate_has_stays_out() {
    let errors = |limits: &str| {
        errors(&format!(
            "version = 1\n[[service]]\nname = \"api\"\nports = [\"tcp/1\"]\n[service.limits]\n{limits}\n"
        ))
    };
    assert_eq!(
        errors("packets.burst = 5"),
        "policy.toml:6:17: \"burst\" without \"per_source\": there is no rate that it belongs to\n    \
         6 | packets.burst = 5\n      |                 ^\n  hint: write per_source = \"50/s\" beside it"
    );
    assert_eq!(
        errors("packets = { per_source = \"unlimited\", burst = 5 }"),
        "policy.toml:6:47: \"burst\" without \"per_source\": there is no rate that it belongs to\n    \
         6 | packets = { per_source = \"unlimited\", burst = 5 }\n      |                                               ^\n  \
         hint: write per_source = \"50/s\" beside it"
    );
}

#[test]
fn limits_that_share_an_address_are_refused() {
    let text = |first: &str, second: &str| {
        format!(
            "version = 1\n[groups]\npartners = [\"192.0.2.0/24\", \"2001:db8::/32\"]\nlab = [\"192.0.2.128/25\"]\nempty = []\n\
             [[service]]\nname = \"api\"\nports = [\"tcp/1\"]\nallow = [\"any\"]\n\
             [[service.limit]]\nfor = {first}\npackets.total = \"1/s\"\n\
             [[service.limit]]\nfor = {second}\npackets.total = \"1/s\"\n"
        )
    };
    let hint = "  hint: an address has one limit of a service: take it out of one of the two";
    assert_eq!(
        errors(&text("\"@partners\"", "[\"203.0.113.1\", \"@lab\"]")),
        format!(
            "policy.toml:14:8: service \"api\": the limits for @partners (line 10) and for 203.0.113.1 and @lab both hold 192.0.2.128/25\n   \
             14 | for = [\"203.0.113.1\", \"@lab\"]\n      |        ^^^^^^^^^^^^^\n{hint}"
        )
    );
    assert!(errors(&text("\"@partners\"", "\"2001:db8:1::/48\"")).contains("both hold 2001:db8:1::/48\n"),);
    assert_eq!(
        errors(&text("\"@empty\"", "\"@empty\"")),
        format!(
            "policy.toml:14:7: service \"api\" has a limit for \"@empty\" already (line 11)\n   \
             14 | for = \"@empty\"\n      |       ^^^^^^^^\n{hint}"
        )
    );
    // Of two services they may.
    load(&text("\"@partners\"", "\"198.51.100.1\"").replace(
        "[[service.limit]]\nfor = \"198",
        "[[service]]\nname = \"b\"\nports = [\"tcp/2\"]\n[[service.limit]]\nfor = \"198",
    ));
}

#[test]
fn every_mistake_of_limits_is_found_in_one_pass() {
    let text = r#"version = 1
[defaults.limits]
packets = { per_source = "20k/s", burst = 10 }
on_excess = "bann 10m"
[groups]
partners = ["192.0.2.0/24"]
lab = ["192.0.2.128/25", "198.51.100.0/24"]
[[service]]
name = "a"
ports = ["tcp/1"]
allow = ["any"]
[service.limits]
new_connections = { per_source = "50", burts = 100, total = "5000/sec" }
packets = { per_source = 20000, total = "0/s", total_burst = "1k/s" }
bytes = { total = "100mb/s", burst = 10 }
connections = { per_source = "200/s", total = 0, burst = 1 }
source = { v4 = 33, v6 = "64" }
on_excess = "ban 10x"
packtes = 1
[[service.limit]]
for = "@partners"
source = { v4 = 24 }
packets.per_source = "unlimitd"
[[service.limit]]
for = ["@lab", "203.0.113.9/24", "any"]
bytes = "100MB/s"
[[service.limit]]
packets = {}
[[service]]
name = "b"
ports = ["udp/1"]
limits = [1]
limit = 3
[[service]]
name = "c"
ports = ["udp/2"]
on_excess = "drop"
[service.limits]
packets = { per_source = "1.5/s", total = "1 k/s", burst = "1d" }
bytes = { per_source = "100/s", burst = "1kB", total = "20000GB/s", total_burst = "9TB" }
new_connections = { per_source = "1/h", burst = 30, total_burst = 3, total = -3 }
connections = { per_source = 2.5, total = "unlimited" }
on_excess = "ban"
[[egress]]
name = "x"
to = ["any"]
limits = {}
"#;
    let expected = r#"policy.toml:4:13: unknown on_excess "bann 10m" ("drop", "challenge" or "ban 10m")
    4 | on_excess = "bann 10m"
      |             ^^^^^^^^^^
  hint: did you mean "ban"?

policy.toml:13:34: "50" is not a rate: it has no time (/s, /min or /h)
   13 | new_connections = { per_source = "50", burts = 100, total = "5000/sec" }
      |                                  ^^^^
  hint: write "50/s"

policy.toml:13:40: unknown key "burts" in new_connections (per_source, burst, total, total_burst)
   13 | new_connections = { per_source = "50", burts = 100, total = "5000/sec" }
      |                                        ^^^^^
  hint: did you mean "burst"?

policy.toml:13:67: unknown time "sec" (s, min or h)
   13 | new_connections = { per_source = "50", burts = 100, total = "5000/sec" }
      |                                                                   ^^^
  hint: write "5000/s"

policy.toml:14:26: 20000 is not a rate: it has no time (/s, /min or /h)
   14 | packets = { per_source = 20000, total = "0/s", total_burst = "1k/s" }
      |                          ^^^^^
  hint: write "20000/s"

policy.toml:14:41: a rate of 0 (1/h to 1,000,000,000/s)
   14 | packets = { per_source = 20000, total = "0/s", total_burst = "1k/s" }
      |                                         ^^^^^
  hint: to let nobody in, take sources out of "allow"

policy.toml:15:23: unknown unit "mb" (B, kB, MB, GB, KiB, MiB, GiB, kbit, Mbit or Gbit)
   15 | bytes = { total = "100mb/s", burst = 10 }
      |                       ^^
  hint: write "100MB" for bytes, "100Mbit" for bits

policy.toml:15:38: "burst" without "per_source": there is no rate that it belongs to
   15 | bytes = { total = "100mb/s", burst = 10 }
      |                                      ^^
  hint: write per_source = "10MB/s" beside it

policy.toml:16:30: "200/s" is a rate: "connections" counts those that are open at the same time
   16 | connections = { per_source = "200/s", total = 0, burst = 1 }
      |                              ^^^^^^^
  hint: write 200; rates are for "new_connections"

policy.toml:16:47: 0 is out of range (1 to 1,000,000,000)
   16 | connections = { per_source = "200/s", total = 0, burst = 1 }
      |                                               ^

policy.toml:16:50: unknown key "burst" in connections (per_source, total)
   16 | connections = { per_source = "200/s", total = 0, burst = 1 }
      |                                                  ^^^^^
  hint: connections at the same time have no burst

policy.toml:17:17: a source of 33 bits is out of range (8 to 32)
   17 | source = { v4 = 33, v6 = "64" }
      |                 ^^

policy.toml:17:26: "v6" is a string, not a number of bits (16 to 128)
   17 | source = { v4 = 33, v6 = "64" }
      |                          ^^^^
  hint: write v6 = 64

policy.toml:18:18: unknown unit "x" (d, h, m or s)
   18 | on_excess = "ban 10x"
      |                  ^^^

policy.toml:19:1: unknown key "packtes" in [service.limits] (new_connections, packets, bytes, connections, source, on_excess)
   19 | packtes = 1
      | ^^^^^^^
  hint: did you mean "packets"?

policy.toml:22:1: unknown key "source" in a [[service.limit]] (for, new_connections, packets, bytes, connections, on_excess)
   22 | source = { v4 = 24 }
      | ^^^^^^
  hint: what counts as one source stands in [service.limits], for all of the service

policy.toml:23:22: "unlimitd" is not a rate: it has no time (/s, /min or /h)
   23 | packets.per_source = "unlimitd"
      |                      ^^^^^^^^^^
  hint: did you mean "unlimited"?

policy.toml:25:34: a [[service.limit]] cannot be for "any"
   25 | for = ["@lab", "203.0.113.9/24", "any"]
      |                                  ^^^^^
  hint: limits for everybody stand in [service.limits]

policy.toml:26:9: "bytes" is a string, not a table
   26 | bytes = "100MB/s"
      |         ^^^^^^^^^
  hint: write bytes = { per_source = "100MB/s" }, or total = "100MB/s"

policy.toml:27:1: this limit does not say for whom
   27 | [[service.limit]]
      | ^^^^^^^^^^^^^^^^^
  hint: write for = "@group"; limits for everybody stand in [service.limits]

policy.toml:28:11: "packets" says nothing
   28 | packets = {}
      |           ^^
  hint: write packets = { per_source = "20k/s", total = "500k/s" }

policy.toml:32:10: "limits" is a list, not a table
   32 | limits = [1]
      |          ^^^
  hint: there is one [service.limits]; limits for some sources begin with [[service.limit]]

policy.toml:33:9: "limit" is a number, not a list of tables
   33 | limit = 3
      |         ^
  hint: limits for some sources begin with [[service.limit]], for everybody with [service.limits]

policy.toml:37:1: unknown key "on_excess" in a service (name, ports, allow, deny, limits, limit)
   37 | on_excess = "drop"
      | ^^^^^^^^^
  hint: limits stand in a table of their own: [service.limits]

policy.toml:39:27: "1.5" is not a whole number
   39 | packets = { per_source = "1.5/s", total = "1 k/s", burst = "1d" }
      |                           ^^^
  hint: for less than one a second write /min or /h

policy.toml:39:43: "1 k/s" has a space in it
   39 | packets = { per_source = "1.5/s", total = "1 k/s", burst = "1d" }
      |                                           ^^^^^^^
  hint: write "1k/s"

policy.toml:40:25: "100" has no unit (B, kB, MB, GB, KiB, MiB, GiB, kbit, Mbit or Gbit)
   40 | bytes = { per_source = "100/s", burst = "1kB", total = "20000GB/s", total_burst = "9TB" }
      |                         ^^^
  hint: write for example "100kB/s"

policy.toml:40:56: "20000GB/s" is out of range (1 kB/s to 100 GB/s)
   40 | bytes = { per_source = "100/s", burst = "1kB", total = "20000GB/s", total_burst = "9TB" }
      |                                                        ^^^^^^^^^^^

policy.toml:41:49: a burst of 30 takes this rate longer than a day
   41 | new_connections = { per_source = "1/h", burst = 30, total_burst = 3, total = -3 }
      |                                                 ^^
  hint: write a smaller burst

policy.toml:41:67: "total_burst" without "total": there is no rate that it belongs to
   41 | new_connections = { per_source = "1/h", burst = 30, total_burst = 3, total = -3 }
      |                                                                   ^
  hint: write total = "50/s" beside it

policy.toml:41:78: "total" is negative, not a rate
   41 | new_connections = { per_source = "1/h", burst = 30, total_burst = 3, total = -3 }
      |                                                                              ^^
  hint: write total = "50/s"

policy.toml:42:30: "per_source" is a fraction, not a number
   42 | connections = { per_source = 2.5, total = "unlimited" }
      |                              ^^^
  hint: write per_source = 200

policy.toml:43:13: "ban" does not say for how long
   43 | on_excess = "ban"
      |             ^^^^^
  hint: write "ban 10m"

policy.toml:47:1: unknown key "limits" in an egress rule (name, to, ports, deny)
   47 | limits = {}
      | ^^^^^^
  hint: limits are for [[service]]"#;
    assert_eq!(errors(text), expected);
}

#[test]
fn what_is_no_table_becomes_one() {
    let hint = |line: &str| {
        let errors = errors(&format!("version = 1\n[defaults.limits]\n{line}\n"));
        errors.split_once("hint: ").expect("a hint").1.to_owned()
    };
    for (line, expected) in [
        (
            "new_connections = 50",
            "write new_connections = { per_source = \"50/s\" }, or total = \"50/s\"",
        ),
        (
            "bytes = 100",
            "write bytes = { per_source = \"100kB/s\" }, or total = \"100kB/s\"",
        ),
        (
            "packets = \"600/min\"",
            "write packets = { per_source = \"600/min\" }, or total = \"600/min\"",
        ),
        (
            "packets = \"fast\"",
            "write packets = { per_source = \"20k/s\", total = \"500k/s\" }",
        ),
        (
            "connections = 10",
            "write connections = { per_source = 10 }, or total = 10",
        ),
        (
            "connections = \"none\"",
            "write connections = \"unlimited\", or connections = { per_source = 200, total = 20000 }",
        ),
        (
            "packets.per_source = 99999999999999999999999",
            "write per_source = \"50/s\"",
        ),
    ] {
        assert_eq!(hint(line), expected, "{line}");
    }
}

#[test]
fn an_excess_of_the_defaults_that_reaches_nobody_is_a_warning() {
    let warned = |defaults: &str, service: &str| {
        warnings(&format!(
            "version = 1\n[defaults.limits]\n{defaults}\n[[service]]\nname = \"a\"\nports = [\"tcp/1\"]\nallow = [\"any\"]\n{service}\n"
        ))
    };
    let bans_nobody = "policy.toml:3:13: \"ban 10m\" bans nobody: no connections of a source are limited\n    \
                       3 | on_excess = \"ban 10m\"\n      |             ^^^^^^^^^\n  \
                       hint: add per_source to \"new_connections\" or \"connections\"";
    let ban = "on_excess = \"ban 10m\"";
    let totals = format!("{ban}\npackets.total = \"1k/s\"");
    assert_eq!(warned(&totals, ""), bans_nobody);
    // What a service does instead leaves the ban idle.
    let own = "[service.limits]\nconnections.per_source = 9\non_excess = \"drop\"";
    assert_eq!(warned(&totals, own), bans_nobody);
    assert_eq!(
        warned(&totals, "[service.limits]\nconnections.per_source = 9"),
        ""
    );
    assert_eq!(
        warned(
            &totals,
            "[[service.limit]]\nfor = \"192.0.2.1\"\nconnections.per_source = 9"
        ),
        ""
    );
    assert_eq!(warned(&format!("{ban}\nconnections.per_source = 9"), ""), "");
    assert!(warned(ban, "").contains("\"on_excess\" without a limit: nothing can exceed it"));
}

#[test]
fn what_limits_nothing_or_nobody_is_a_warning() {
    let text = r#"version = 1
[defaults.limits]
new_connections = { per_source = "50/s", burst = 100 }
packets.total = "1M/s"
on_excess = "ban 10m"
[[service]]
name = "a"
ports = ["udp/1"]
allow = ["192.0.2.0/24"]
[service.limits]
new_connections = { per_source = "50/s" }
on_excess = "challenge"
[[service.limit]]
for = ["203.0.113.0/24", "203.0.113.0/24"]
packets = { total = "2M/s", per_source = "3M/s" }
[[service.limit]]
for = "192.0.2.5"
[[service]]
name = "b"
ports = ["tcp/2"]
allow = ["any"]
[service.limits]
new_connections = { total = "100/min", burst = 3 }
connections = { per_source = 20, total = 10 }
[[service]]
name = "c"
ports = ["tcp/3"]
allow = ["any"]
[service.limits]
new_connections = "unlimited"
packets = "unlimited"
on_excess = "ban 1h30m"
"#;
    let expected = r#"policy.toml:11:34: "new_connections" counts TCP connections, and the service has no TCP port: nothing is limited
   11 | new_connections = { per_source = "50/s" }
      |                                  ^^^^^^
  hint: limit "packets" or "bytes"

policy.toml:12:13: "challenge" is for TCP, and the service has no TCP port: what exceeds the limit drops
   12 | on_excess = "challenge"
      |             ^^^^^^^^^^^

policy.toml:14:8: the limit for 203.0.113.0/24 meets nobody: service "a" does not allow them
   14 | for = ["203.0.113.0/24", "203.0.113.0/24"]
      |        ^^^^^^^^^^^^^^^^

policy.toml:14:26: "203.0.113.0/24" stands in this list already (line 14)
   14 | for = ["203.0.113.0/24", "203.0.113.0/24"]
      |                          ^^^^^^^^^^^^^^^^

policy.toml:15:21: "total" of "packets" is above that of the service, which holds as well
   15 | packets = { total = "2M/s", per_source = "3M/s" }
      |                     ^^^^^^

policy.toml:15:42: "per_source" of "packets" is above "total": one source can use up all of it
   15 | packets = { total = "2M/s", per_source = "3M/s" }
      |                                          ^^^^^^

policy.toml:16:1: this limit changes nothing for whom it names, but tells them apart from the others
   16 | [[service.limit]]
      | ^^^^^^^^^^^^^^^^^
  hint: write for example packets = { per_source = "100k/s" } below "for"

policy.toml:23:29: "per_source" of "new_connections" is above "total": one source can use up all of it
   23 | new_connections = { total = "100/min", burst = 3 }
      |                             ^^^^^^^^^

policy.toml:24:30: "per_source" of "connections" is above "total": one source can use up all of it
   24 | connections = { per_source = 20, total = 10 }
      |                              ^^

policy.toml:32:13: "on_excess" without a limit: nothing can exceed it
   32 | on_excess = "ban 1h30m"
      |             ^^^^^^^^^^^"#;
    assert_eq!(warnings(text), expected);
}

proptest! {
    #[test]
    fn no_value_panics(text in "[0-9]{0,25}[.]?[0-9]{0,4}[a-zA-Zµ ]{0,5}(/[a-z]{0,4})?") {
        for kind in Kind::ALL {
            let rate = text::rate(&text, kind, Scope::Source).err();
            let burst = text::burst(&text, kind, Scope::Total).err();
            for error in [rate, burst, text::connections(&text).err(), text::on_excess(&format!("ban {text}")).err()].into_iter().flatten() {
                prop_assert!(!error.message.is_empty());
            }
        }
    }

    #[test]
    fn a_rate_in_other_words_is_the_same(amount in 1u64..10_000, per in 0usize..3) {
        let time = ["s", "min", "h"][per];
        let read = |text: &str, kind| text::rate(text, kind, Scope::Source);
        prop_assert_eq!(
            read(&format!("{amount}k/{time}"), Kind::Packets),
            read(&format!("{}/{time}", amount * 1000), Kind::Packets)
        );
        prop_assert_eq!(
            read(&format!("{amount}Mbit/{time}"), Kind::Bytes).ok(),
            read(&format!("{}kB/{time}", amount * 125), Kind::Bytes).ok()
        );
    }
}
