//! Ports that this host publishes for others under the policy.

use super::{Area, Finding, Severity};
use crate::api::types::PublishedPort;

/// About all of them; `problems` tells what could not be asked.
pub fn findings(rows: &[PublishedPort], problems: &[String]) -> Vec<Finding> {
    let unknown = problems
        .iter()
        .map(|problem| Finding::new(Severity::Info, Area::Published, "nat", problem));
    rows.iter().map(finding).chain(unknown).collect()
}

fn finding(row: &PublishedPort) -> Finding {
    let at = row
        .address
        .as_deref()
        .map(|at| format!(" at {at}"))
        .unwrap_or_default();
    let to = match row.to.as_str() {
        "" => String::new(),
        to => format!(" to {to}"),
    };
    let text = format!("{} publishes {}{at}{to}; {}", row.by, row.port, row.ruling);
    if !row.service.is_empty() {
        return Finding::new(Severity::Ok, Area::Published, &row.port, text);
    }
    let add = format!("ravelin service add NAME {} --allow PREFIX", row.port);
    Finding::new(Severity::Warn, Area::Published, &row.port, text)
        .fix(format!("{add}; without --allow if nobody is meant to reach it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_port_is_a_services_or_a_warning_with_its_fix() {
        let row = |service: &str, address: Option<&str>, to: &str| PublishedPort {
            port: "tcp/8080".into(),
            address: address.map(str::to_owned),
            to: to.into(),
            by: "nftables".into(),
            service: service.into(),
            ruling: "RULING".into(),
        };
        let rows = [row("web", None, "10.88.0.2:80"), row("", Some("192.0.2.1"), "")];
        let found = findings(&rows, &["nft: it failed".into()]);
        let told: Vec<(Severity, &str, Option<&str>)> = found
            .iter()
            .map(|one| (one.severity, one.text.as_str(), one.fix.as_deref()))
            .collect();
        assert_eq!(
            told,
            [
                (
                    Severity::Ok,
                    "nftables publishes tcp/8080 to 10.88.0.2:80; RULING",
                    None
                ),
                (
                    Severity::Warn,
                    "nftables publishes tcp/8080 at 192.0.2.1; RULING",
                    Some(
                        "ravelin service add NAME tcp/8080 --allow PREFIX; without --allow if nobody is meant to reach it"
                    )
                ),
                (Severity::Info, "nft: it failed", None),
            ]
        );
    }
}
