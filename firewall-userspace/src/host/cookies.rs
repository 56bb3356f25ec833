//! What this host's settings make of SYN cookies.

use super::sysctl;

/// Settings of the caller's network namespace; `None`: this kernel has no such setting, or does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cookies {
    /// 0: none are given. 1: once a listener's queue is full. 2: always.
    pub syncookies: Option<i64>,
    /// 0: none. 1: with an offset for each peer. 2: as the clock says.
    pub timestamps: Option<i64>,
    /// The kernel refuses a cookie that carries what these turn off.
    pub sack: Option<i64>,
    pub window_scaling: Option<i64>,
    /// Whether conntrack takes a connection that it did not see begin.
    pub loose: Option<i64>,
    /// The window scale of new connections.
    pub scale: u8,
}

impl Cookies {
    pub fn read() -> Cookies {
        let largest = sysctl::read("net.ipv4.tcp_rmem")
            .and_then(|text| text.split_whitespace().nth(2)?.parse::<u64>().ok())
            .unwrap_or(0);
        let asked = sysctl::number("net.core.rmem_max").and_then(|max| u64::try_from(max).ok());
        Cookies {
            syncookies: sysctl::number("net.ipv4.tcp_syncookies"),
            timestamps: sysctl::number("net.ipv4.tcp_timestamps"),
            sack: sysctl::number("net.ipv4.tcp_sack"),
            window_scaling: sysctl::number("net.ipv4.tcp_window_scaling"),
            loose: sysctl::number("net.netfilter.nf_conntrack_tcp_loose"),
            scale: window_scale(largest.max(asked.unwrap_or(0))),
        }
    }

    /// Cookies are given at all.
    pub fn given(&self) -> bool {
        self.syncookies.is_some_and(|value| value > 0)
    }

    /// Whether the kernel takes a connection's options from the timestamp that its peer echoes.
    pub fn carry_options(&self) -> bool {
        self.timestamps == Some(2) && self.sack == Some(1) && self.window_scaling == Some(1)
    }
}

/// `tcp_select_initial_window` of net/ipv4/tcp_output.c, for a listener that sets no buffer size of its own.
fn window_scale(largest_window: u64) -> u8 {
    let bits = largest_window.checked_ilog2().unwrap_or(0);
    bits.saturating_sub(15).min(14) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_scale_is_the_kernels() {
        for (window, scale) in [
            (0, 0),
            (65_535, 0),
            (65_536, 1),
            (6_291_456, 7),
            (33_554_432, 10),
            (u64::MAX, 14),
        ] {
            assert_eq!(window_scale(window), scale, "{window}");
        }
        assert!(Cookies::read().scale <= 14);
    }

    #[test]
    fn options_need_all_three_settings() {
        let all = Cookies {
            syncookies: Some(1),
            timestamps: Some(2),
            sack: Some(1),
            window_scaling: Some(1),
            ..Cookies::default()
        };
        assert!(all.given() && all.carry_options());
        for one in [
            Cookies {
                timestamps: Some(1),
                ..all.clone()
            },
            Cookies {
                sack: Some(0),
                ..all.clone()
            },
            Cookies {
                window_scaling: Some(0),
                ..all.clone()
            },
        ] {
            assert!(!one.carry_options(), "{one:?}");
        }
        assert!(!Cookies::default().given());
    }
}
