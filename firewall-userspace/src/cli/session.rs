//! The ssh session that a command is typed in.

use ipnetwork::IpNetwork;
use std::net::SocketAddr;

/// Its peer: by the environment, or where sudo has cleared that, by the environment of those who called it.
pub fn peer() -> Option<SocketAddr> {
    if let Some(peer) = std::env::var("SSH_CONNECTION").ok().as_deref().and_then(parse) {
        return Some(peer);
    }
    if let Some(peer) = std::env::var("SSH_CLIENT").ok().as_deref().and_then(parse) {
        return Some(peer);
    }
    // As deep as shells in shells go; a loop there is none.
    const DEPTH: usize = 16;
    let mut process = std::os::unix::process::parent_id();
    for _ in 0..DEPTH {
        if process <= 1 {
            return None;
        }
        let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        if let Some(peer) = of_environment(&environment) {
            return Some(peer);
        }
        process = parent(&std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?)?;
    }
    None
}

/// The address of the session, if a network holds it.
pub fn peer_in(network: IpNetwork) -> Option<SocketAddr> {
    peer().filter(|peer| network.contains(peer.ip().to_canonical()))
}

/// `203.0.113.9 40000 ...`, as sshd writes both variables.
fn parse(text: &str) -> Option<SocketAddr> {
    let mut words = text.split(' ');
    let (address, port) = (words.next()?, words.next()?);
    // A link-local one has a zone.
    let address = address.split('%').next()?;
    Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
}

fn of_environment(bytes: &[u8]) -> Option<SocketAddr> {
    let text = String::from_utf8_lossy(bytes);
    text.split('\0').find_map(|variable| {
        let (name, value) = variable.split_once('=')?;
        matches!(name, "SSH_CONNECTION" | "SSH_CLIENT")
            .then(|| parse(value))
            .flatten()
    })
}

/// The fourth field of `/proc/PID/stat`; the second is a name in parentheses, which may hold anything.
fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_is_found_in_either_variable() {
        let peer = Some("203.0.113.9:40000".parse().unwrap());
        assert_eq!(parse("203.0.113.9 40000 192.0.2.1 22"), peer);
        assert_eq!(parse("203.0.113.9 40000 22"), peer);
        assert_eq!(
            of_environment(b"HOME=/root\0SSH_CLIENT=203.0.113.9 40000 22\0"),
            peer
        );
        assert_eq!(
            of_environment(b"HOME=/root\0XSSH_CLIENT=203.0.113.9 40000 22\0"),
            None
        );
        assert!(parse("fe80::7%eth0 40000 fe80::1%eth0 22").is_some());
        assert_eq!(parse("console"), None);
    }

    #[test]
    fn a_parent_is_found_behind_any_name() {
        assert_eq!(parent("42 (a) b (c) S 7 42 1"), Some(7));
    }
}
