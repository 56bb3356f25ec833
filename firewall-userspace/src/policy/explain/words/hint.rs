//! What to do about a drop.

use super::{Account, show_port};
use crate::policy::diagnostic::Text;
use crate::policy::model::{Place, Service};
use crate::policy::prefix;
use crate::simulate::Transport;
use firewall_common::decide::Step;
use firewall_common::image::PortKey;
use firewall_common::verdict::Reason;
use ipnetwork::IpNetwork;
use std::path::Path;
use toml::de::DeTable;

impl<'a> Account<'a> {
    /// A sentence with the command or the place that would let the packet in; none where nothing should.
    pub(super) fn hint(&self) -> Option<String> {
        let src = self.spec.src;
        match self.outcome.reason {
            Reason::NotAllowed => Some(format!(
                "to let it in: ravelin allow {} {src}",
                self.service()?.name
            )),
            Reason::ServiceDenied => {
                let (service, rule) = (self.service()?, self.rule()?);
                Some(format!(
                    "deny beats allow: to let it in, take {} out of the deny list of {} ({})",
                    rule.source, service.name, rule.place
                ))
            }
            Reason::Denied => {
                let rule = self.rule()?;
                Some(match rule.source.parse::<IpNetwork>() {
                    Ok(_) => format!("to let it in: ravelin undeny {}", rule.source),
                    Err(_) => {
                        let matched = self.covering(rule).map_or(src.to_string(), prefix::show);
                        let place = self
                            .group_place(&rule.source)
                            .unwrap_or_else(|| rule.place.clone());
                        format!("to let it in, take {matched} out of {} ({place})", rule.source)
                    }
                })
            }
            Reason::Closed | Reason::IcmpError => {
                let key = self.steps.iter().find_map(|each| match each {
                    Step::Port { key, .. } => Some(*key),
                    _ => None,
                })?;
                Some(match self.sibling(key) {
                    Some((service, other)) => format!(
                        "{} has {}, not {}: to open it, add it to the ports of {} ({})",
                        service.name,
                        show_port(other),
                        show_port(key),
                        service.name,
                        service.place
                    ),
                    None => format!(
                        "to open it: ravelin service add NAME {} --allow {src}",
                        show_port(key)
                    ),
                })
            }
            Reason::NoPolicy => Some("no policy is in force: ravelin status tells why".to_owned()),
            _ => None,
        }
    }

    /// Where the file defines the group that a rule names.
    fn group_place(&self, source: &str) -> Option<Place> {
        let root = DeTable::parse(self.text).ok()?;
        let groups = root.get_ref().get("groups")?.get_ref().as_table()?;
        let start = groups.get(source.strip_prefix('@')?)?.span().start;
        let path = &self.policy.rules.first()?.place.path;
        Some(Text::new(Path::new(path), self.text).place(start))
    }

    /// The same port of another transport, and the service that has it: the likeliest mistake.
    fn sibling(&self, key: PortKey) -> Option<(&'a Service, PortKey)> {
        let port = key.0 as u16;
        let others = [PortKey::tcp(port), PortKey::udp(port), PortKey::sctp(port)];
        if !matches!(
            self.spec.transport,
            Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Sctp { .. }
        ) {
            return None;
        }
        others
            .into_iter()
            .filter(|other| *other != key)
            .find_map(|other| {
                let owns = |service: &&Service| {
                    service
                        .ports
                        .iter()
                        .any(|(first, last)| *first <= other && other <= *last)
                };
                self.policy
                    .services
                    .iter()
                    .find(owns)
                    .map(|service| (service, other))
            })
    }
}
