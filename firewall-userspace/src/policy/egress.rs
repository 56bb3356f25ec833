//! Egress rules of a policy file: their names and ports, and what is surely a mistake in all of them together.

use super::claims;
use super::diagnostic::Findings;
use super::file::{Names, claim};
use super::model::{Action, Egress, Owner, Policy};
use super::written::{self, Written};
use firewall_common::image::PortKey;

pub(super) fn read<'a>(
    written: &'a [written::Egress],
    names: &mut Names<'a>,
    findings: &mut Findings<'_>,
) -> Vec<Egress> {
    if let Some(rule) = written.get(usize::from(u16::MAX)) {
        findings.error(
            &rule.name.span,
            "more than 65,535 egress rules",
            Some("an image numbers what they come to in 16 bits".into()),
        );
    }
    let mut rules = Vec::new();
    for rule in written {
        let place = names.take("egress rule", &rule.name, findings);
        let words = rule.ports.as_deref().unwrap_or_default();
        // Rules may share ports, so each is looked at for itself.
        let labels = [format!("egress rule \"{}\"", rule.name.text)];
        let mut claimed = Vec::new();
        claim(words, 0, &labels[0], &mut claimed, findings);
        claims::check(&mut claimed, &labels, findings);
        rules.push(Egress {
            name: rule.name.text.clone(),
            ports_text: words.iter().map(|word| word.text.clone()).collect(),
            ports: claims::merge(&claimed, 1).concat(),
            place,
        });
    }
    rules
}

/// Warns of what the defaults make of the rules.
pub(super) fn warn(policy: &Policy, written: &Written, findings: &mut Findings<'_>) {
    for rule in &written.egress {
        if rule.to.is_empty() && rule.deny.is_empty() {
            let message = format!(
                "egress rule \"{}\" opens nothing and denies nothing",
                rule.name.text
            );
            let hint = "name destinations in \"to\", or in \"deny\"";
            findings.warn(&rule.name.span, message, Some(hint.into()));
        }
    }
    let Some(default) = &written.egress_deny else {
        if let Some(entry) = written.egress.iter().find_map(|rule| rule.to.first()) {
            let message = "the default for egress is to allow: what \"to\" lists is counted, not opened";
            let hint = "write egress = \"deny\" below [defaults] to close what no rule opens";
            findings.warn(&entry.span, message, Some(hint.into()));
        }
        return;
    };
    if policy.default_allow {
        let message = "the default for ingress is to allow and for egress to deny: of what the default lets in, only TCP and \
                       pings are answered";
        let hint =
            "name the UDP ports that this host serves in a [[service]]: what leaves from there answers";
        findings.warn(default, message, Some(hint.into()));
    }
    let opens = |key: PortKey| {
        policy.rules.iter().any(|rule| {
            let Owner::Egress(id) = rule.owner else {
                return false;
            };
            rule.action == Action::Allow && holds(&policy.egress[id.0 as usize], key)
        })
    };
    if !policy
        .rules
        .iter()
        .any(|rule| rule.owner.egress().is_some() && rule.action == Action::Allow)
    {
        let message = "the default for egress is to deny, and no rule opens anything: this host only answers";
        let hint = "open what it needs with [[egress]] rules";
        findings.warn(default, message, Some(hint.into()));
    } else if !NAME_SERVICE.into_iter().any(opens) {
        let message = "no egress rule opens DNS (udp/53, tcp/53): this host will not find names";
        let hint = "add an [[egress]] rule with ports = [\"udp/53\", \"tcp/53\"] to its resolvers";
        findings.warn(default, message, Some(hint.into()));
    }
}

/// DNS, and DNS over TLS and QUIC.
const NAME_SERVICE: [PortKey; 4] = [
    PortKey::udp(53),
    PortKey::tcp(53),
    PortKey::tcp(853),
    PortKey::udp(853),
];

/// Whether a rule holds a port.
pub fn holds(rule: &Egress, key: PortKey) -> bool {
    rule.ports.is_empty()
        || rule
            .ports
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&key))
}

/// Whether `outer` holds every port of `inner`.
pub fn covers(outer: &Egress, inner: &Egress) -> bool {
    if outer.ports.is_empty() {
        return true;
    }
    let within = |(first, last): &(PortKey, PortKey)| {
        let mut next = first.0;
        for (from, to) in &outer.ports {
            if from.0 <= next && next <= to.0 {
                next = to.0 + 1;
            }
        }
        next > last.0
    };
    !inner.ports.is_empty() && inner.ports.iter().all(within)
}
