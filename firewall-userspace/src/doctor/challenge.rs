//! Whether the challenges that the policy asks for can be given, and what they would do better with.

use super::{Area, Finding, Severity};
use crate::agent::challenge::{Back, Lack, lacks};
use crate::host::cookies::Cookies;

/// What is looked at.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Services of the policy that ask for a challenge.
    pub asking: Vec<String>,
    /// The kernel lets XDP write answers.
    pub writes: bool,
    pub cookies: Cookies,
    /// How answers would leave, by name.
    pub interfaces: Vec<(String, Back)>,
}

pub fn findings(facts: &Facts) -> Vec<Finding> {
    let Facts { cookies, .. } = facts;
    let services = match facts.asking.as_slice() {
        [] => return Vec::new(),
        [one] => format!("the service {one} asks"),
        [one, more @ ..] => format!("{one} and {} more services ask", more.len()),
    };
    let mut found: Vec<Finding> = lacks(facts.writes, cookies, &facts.interfaces)
        .into_iter()
        .map(|lack| missing(&services, lack))
        .collect();
    let setting = |severity, name: &str, text: String| Finding::new(severity, Area::Kernel, name, text);
    if cookies.loose == Some(0) {
        const LOOSE: &str = "net.netfilter.nf_conntrack_tcp_loose";
        let text = format!(
            "{LOOSE} = 0: {services} for a challenge, and conntrack, which never sees its SYN, calls the connection \
             invalid; where rules drop that, no challenged client comes in"
        );
        found.push(setting(Severity::Warn, LOOSE, text).fix(format!("sysctl -w {LOOSE}=1")));
    }
    let good = found.is_empty();
    if cookies.syncookies == Some(1) {
        const NAME: &str = "net.ipv4.tcp_syncookies";
        let text = format!(
            "{NAME} = 1: {services} for a challenge, and the kernel makes cookies only once the listener's queue is full"
        );
        let fix = format!("sysctl -w {NAME}=2, and a challenge begins with the first excess");
        found.push(setting(Severity::Info, NAME, text).fix(fix));
    }
    if cookies.given() && !cookies.carry_options() {
        const NAME: &str = "net.ipv4.tcp_timestamps";
        let text = match cookies.timestamps {
            Some(2) => "net.ipv4.tcp_sack and net.ipv4.tcp_window_scaling are not both 1".to_owned(),
            value => format!("{NAME} = {}", value.unwrap_or(0)),
        };
        let text = format!(
            "{text}: connections that begin with a challenge have an MSS, but neither window scale, SACK nor timestamps"
        );
        let fix = format!("sysctl -w {NAME}=2 carries them, and makes the host's uptime known to its peers");
        found.push(setting(Severity::Info, NAME, text).fix(fix));
    }
    if good {
        let text = format!("{services} for a challenge, and it can be given");
        found.push(Finding::new(Severity::Ok, Area::Policy, "challenge", text));
    }
    found
}

fn missing(services: &str, lack: Lack) -> Finding {
    let area = match lack.subject.as_str() {
        "version" => Area::Kernel,
        subject if subject.starts_with("net.") => Area::Kernel,
        _ => Area::Interface,
    };
    let text = format!(
        "{services} for a challenge, and excess is dropped instead: {}",
        lack.text
    );
    Finding::new(Severity::Warn, area, lack.subject, text).fix(lack.fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(syncookies: i64, timestamps: i64) -> Facts {
        Facts {
            asking: vec!["web".into()],
            writes: true,
            cookies: Cookies {
                syncookies: Some(syncookies),
                timestamps: Some(timestamps),
                sack: Some(1),
                window_scaling: Some(1),
                loose: None,
                scale: 7,
            },
            interfaces: vec![("eth0".into(), Back::Sent)],
        }
    }

    fn told(facts: &Facts) -> Vec<(Severity, String)> {
        let found = findings(facts).into_iter();
        found.map(|one| (one.severity, one.subject)).collect()
    }

    #[test]
    fn who_does_not_ask_is_told_nothing() {
        let nobody = Facts {
            asking: Vec::new(),
            ..facts(0, 0)
        };
        assert_eq!(told(&nobody), []);
    }

    #[test]
    fn settings_and_interfaces_that_prevent_it_are_warnings() {
        use Severity::{Info, Ok, Warn};
        let one = |severity, subject: &str| (severity, subject.to_owned());
        let (cookies, stamps) = ("net.ipv4.tcp_syncookies", "net.ipv4.tcp_timestamps");
        assert_eq!(told(&facts(2, 2)), [one(Ok, "challenge")]);
        assert_eq!(
            told(&facts(1, 1)),
            [one(Info, cookies), one(Info, stamps), one(Ok, "challenge")]
        );
        assert_eq!(told(&facts(0, 1)), [one(Warn, cookies)]);
        let mut bad = facts(2, 2);
        bad.writes = false;
        bad.cookies.loose = Some(0);
        bad.interfaces.push(("eth1".into(), Back::NotAtTc));
        assert_eq!(
            told(&bad),
            [
                one(Warn, "version"),
                one(Warn, "eth1"),
                one(Warn, "net.netfilter.nf_conntrack_tcp_loose"),
            ]
        );
        assert!(findings(&bad).iter().all(|one| one.fix.is_some()));
    }
}
