//! What the network stack counts, from `/proc/self/net/netstat`: that of the caller's network namespace.

/// SYNs that met a listener whose queue of half-open connections was full: answered with a cookie, or dropped
/// (`TCPReqQFullDoCookies` and `TCPReqQFullDrop`, see net/ipv4/tcp_input.c). `None`: the kernel does not tell.
pub fn queue_overflows() -> Option<u64> {
    of(&std::fs::read_to_string("/proc/self/net/netstat").ok()?)
}

/// The file has lines in pairs: names, then values.
fn of(text: &str) -> Option<u64> {
    const GROUP: &str = "TcpExt:";
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(GROUP));
    let (names, values) = (lines.next()?, lines.next()?);
    let named = names.split_whitespace().zip(values.split_whitespace());
    let wanted = named.filter(|(name, _)| matches!(*name, "TCPReqQFullDoCookies" | "TCPReqQFullDrop"));
    let counts: Vec<u64> = wanted.filter_map(|(_, value)| value.parse().ok()).collect();
    (!counts.is_empty()).then(|| counts.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_counts_are_added() {
        let text = "TcpExt: SyncookiesSent TCPReqQFullDoCookies TCPReqQFullDrop TCPRetransFail\nTcpExt: 1 20 300 4000\n\
                    IpExt: InNoRoutes\nIpExt: 5\n";
        assert_eq!(of(text), Some(320));
        assert_eq!(of("TcpExt: SyncookiesSent\nTcpExt: 1\n"), None);
        assert_eq!(of(""), None);
        assert!(queue_overflows().is_some(), "this kernel tells");
    }
}
