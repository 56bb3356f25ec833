//! Which service says who reaches a published port. It is judged by the port that packets come to, before translation.
//!
//! Pure: ports and a policy in, rows out.

use crate::api::types::PublishedPort;
use crate::host::published::Published;
use crate::policy::model::Policy;
use firewall_common::image::PortKey;

/// A row for each run of ports that ends the same way.
pub fn rows<'a>(ports: impl IntoIterator<Item = &'a Published>, policy: &Policy) -> Vec<PublishedPort> {
    ports.into_iter().flat_map(|one| cover(one, policy)).collect()
}

fn cover(one: &Published, policy: &Policy) -> Vec<PublishedPort> {
    let key: fn(u16) -> PortKey = match one.protocol.as_str() {
        "tcp" => PortKey::tcp,
        "udp" => PortKey::udp,
        "sctp" => PortKey::sctp,
        _ => return Vec::new(),
    };
    let service = |port: u16| {
        let key = key(port).0;
        let covers = |range: &(PortKey, PortKey)| (range.0.0..=range.1.0).contains(&key);
        let found = policy
            .services
            .iter()
            .find(|service| service.ports.iter().any(covers));
        found.map(|service| service.name.as_str())
    };
    let mut runs: Vec<(u16, u16, Option<&str>)> = Vec::new();
    for port in one.first..=one.last {
        let name = service(port);
        match runs.last_mut() {
            Some((_, last, known)) if *known == name => *last = port,
            _ => runs.push((port, port, name)),
        }
    }
    let row = |(first, last, name): (u16, u16, Option<&str>)| PublishedPort {
        port: match first == last {
            true => format!("{}/{first}", one.protocol),
            false => format!("{}/{first}-{last}", one.protocol),
        },
        address: one.address.clone(),
        to: one.to.clone(),
        by: one.by.to_owned(),
        service: name.unwrap_or_default().to_owned(),
        ruling: match name {
            Some(name) => format!("the service {name} says who reaches it"),
            None if policy.default_allow => "open to everybody: no service names it".into(),
            None => "closed: no service names it".into(),
        },
    };
    runs.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::file;
    use std::path::Path;

    fn rulings(protocol: &str, first: u16, last: u16, defaults: &str) -> Vec<(String, String, String)> {
        let text = format!(
            "version = 1\n{defaults}\n[[service]]\nname = \"web\"\nports = [\"tcp/8080\", \"tcp/8082-8083\"]\nallow = []\n\
             [[service]]\nname = \"dns\"\nports = [\"udp/53\"]\nallow = []\n"
        );
        let policy = file::parse(&text, Path::new("policy.toml"), 0).unwrap().policy;
        let one = Published {
            protocol: protocol.into(),
            first,
            last,
            address: None,
            to: "10.0.0.2".into(),
            by: "nftables",
        };
        let told = rows([&one], &policy).into_iter();
        told.map(|row| (row.port, row.service, row.ruling)).collect()
    }

    fn owned(row: (&str, &str, &str)) -> (String, String, String) {
        (row.0.into(), row.1.into(), row.2.into())
    }

    #[test]
    fn a_port_is_its_services_or_closed() {
        let web = "the service web says who reaches it";
        let closed = "closed: no service names it";
        assert_eq!(rulings("tcp", 8080, 8080, ""), [owned(("tcp/8080", "web", web))]);
        assert_eq!(rulings("udp", 8080, 8080, ""), [owned(("udp/8080", "", closed))]);
        assert_eq!(
            rulings("udp", 53, 53, ""),
            [owned(("udp/53", "dns", "the service dns says who reaches it"))]
        );
        assert_eq!(
            rulings("tcp", 8080, 8085, ""),
            [
                ("tcp/8080", "web", web),
                ("tcp/8081", "", closed),
                ("tcp/8082-8083", "web", web),
                ("tcp/8084-8085", "", closed),
            ]
            .map(owned)
        );
        assert_eq!(
            rulings("sctp", 0, 65535, "[defaults]\ningress = \"allow\""),
            [owned((
                "sctp/0-65535",
                "",
                "open to everybody: no service names it"
            ))]
        );
        assert_eq!(rulings("dccp", 80, 80, ""), []);
    }
}
