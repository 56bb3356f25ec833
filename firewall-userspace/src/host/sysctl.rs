//! Settings of the kernel, from `/proc/sys`: those of networking are of the caller's network namespace.

use crate::policy::ephemeral::LocalPorts;

/// The value of `net.ipv4.ip_forward` and the like; `None` if this kernel has no such setting, or does not tell.
pub fn read(name: &str) -> Option<String> {
    // `.` separates, and a dot in the name of an interface is written as a slash.
    let path: String = name
        .chars()
        .map(|each| match each {
            '.' => '/',
            '/' => '.',
            each => each,
        })
        .collect();
    let text = std::fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    Some(text.trim().to_owned())
}

/// [`read`] as a number.
pub fn number(name: &str) -> Option<i64> {
    read(name)?.parse().ok()
}

/// Where the kernel takes ports from for sockets that name none.
pub fn local_ports() -> LocalPorts {
    let range = read("net.ipv4.ip_local_port_range").unwrap_or_default();
    let reserved = read("net.ipv4.ip_local_reserved_ports").unwrap_or_default();
    LocalPorts::parse(&range, &reserved).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_none() {
        assert!(number("net.ipv4.ip_forward").is_some_and(|value| (0..=1).contains(&value)));
        assert_eq!(read("net.ipv4.no_such_setting"), None);
        assert!(number("net.ipv4.conf.lo.rp_filter").is_some());
    }
}
