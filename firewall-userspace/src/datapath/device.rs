//! What the driver of an interface says it can do, by generic netlink: XDP (`netdev`, kernel 6.3) and its channels
//! (`ethtool`, 5.6). The agent tries instead, and asks only
//! whether answers can leave.

use super::wire::{self, Connection, NetlinkError, Request};
use rtnetlink::sys::protocols::NETLINK_GENERIC;

/// `GENL_ID_CTRL` and the numbers of `linux/genetlink.h`.
const CONTROLLER: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// `struct genlmsghdr`: command, version, two reserved bytes.
const HEADER: usize = 4;

/// Of `linux/netdev.h`.
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const XDP_BASIC: u64 = 1;
const XDP_NDO_XMIT: u64 = 4;
const XDP_RX_SG: u64 = 32;

/// Of `linux/ethtool_netlink.h`.
const ETHTOOL_MSG_CHANNELS_GET: u8 = 17;
const ETHTOOL_A_CHANNELS_HEADER: u16 = 1;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_CHANNELS_RX_MAX: u16 = 2;
const ETHTOOL_A_CHANNELS_COMBINED_MAX: u16 = 5;
const ETHTOOL_A_CHANNELS_RX_COUNT: u16 = 6;
const ETHTOOL_A_CHANNELS_COMBINED_COUNT: u16 = 9;

/// What can be known without attaching anything; `None` where the kernel or the driver does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    pub xdp: Option<XdpFeatures>,
    pub channels: Option<Channels>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures {
    /// XDP in the driver.
    pub native: bool,
    /// Native XDP takes frames of several buffers: an MTU above a page.
    pub multi_buffer: bool,
    /// Frames may be redirected to it.
    pub sends: bool,
}

/// Channels that receive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    pub now: u32,
    pub max: u32,
}

/// Asks the kernel about an interface.
pub fn device(ifindex: u32) -> Device {
    Device {
        xdp: xdp(ifindex).ok().flatten(),
        channels: channels(ifindex).ok().flatten(),
    }
}

fn xdp(ifindex: u32) -> Result<Option<XdpFeatures>, NetlinkError> {
    let (connection, Some(family)) = family("netdev")? else {
        return Ok(None);
    };
    let request = Request::new(family, wire::NLM_F_ACK, &[NETDEV_CMD_DEV_GET, 1, 0, 0])
        .attribute(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
    let mut features = None;
    connection.call(
        "asking for the XDP features of an interface",
        request,
        |message| {
            features = message
                .attributes(HEADER)
                .find(|(kind, _)| *kind == NETDEV_A_DEV_XDP_FEATURES)
                .and_then(|(_, value)| Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?)));
        },
    )?;
    Ok(features.map(|bits| XdpFeatures {
        native: bits & XDP_BASIC != 0,
        multi_buffer: bits & XDP_RX_SG != 0,
        sends: bits & XDP_NDO_XMIT != 0,
    }))
}

fn channels(ifindex: u32) -> Result<Option<Channels>, NetlinkError> {
    let (connection, Some(family)) = family("ethtool")? else {
        return Ok(None);
    };
    let request = Request::new(family, wire::NLM_F_ACK, &[ETHTOOL_MSG_CHANNELS_GET, 1, 0, 0])
        .nested(ETHTOOL_A_CHANNELS_HEADER, |header| {
            header.attribute(ETHTOOL_A_HEADER_DEV_INDEX, &ifindex.to_ne_bytes())
        });
    let mut counts = [0; 10];
    connection.call("asking for the channels of an interface", request, |message| {
        for (kind, value) in message.attributes(HEADER) {
            if let (Some(count), Some(value)) = (counts.get_mut(usize::from(kind)), wire::u32_at(value, 0))
                && kind != ETHTOOL_A_CHANNELS_HEADER
            {
                *count = value;
            }
        }
    })?;
    let sum = |one: u16, other: u16| counts[usize::from(one)] + counts[usize::from(other)];
    let found = Channels {
        now: sum(ETHTOOL_A_CHANNELS_RX_COUNT, ETHTOOL_A_CHANNELS_COMBINED_COUNT),
        max: sum(ETHTOOL_A_CHANNELS_RX_MAX, ETHTOOL_A_CHANNELS_COMBINED_MAX),
    };
    Ok((found.now > 0).then_some(found))
}

/// The number of a family; `None` if this kernel has no such family.
fn family(name: &str) -> Result<(Connection, Option<u16>), NetlinkError> {
    let connection = Connection::open(NETLINK_GENERIC)?;
    let request = Request::new(CONTROLLER, wire::NLM_F_ACK, &[CTRL_CMD_GETFAMILY, 1, 0, 0])
        .attribute(CTRL_ATTR_FAMILY_NAME, format!("{name}\0").as_bytes());
    let mut found = None;
    let result = connection.call("asking for a netlink family", request, |message| {
        found = message
            .attributes(HEADER)
            .find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)
            .and_then(|(_, value)| wire::u16_at(value, 0));
    });
    match result {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok((connection, None)),
        Err(error) => Err(error),
        Ok(()) => Ok((connection, found)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_exist_has_no_features() {
        assert_eq!(device(0x7fff_fff0), Device::default());
        assert_eq!(
            family("no-such-family").map(|(_, id)| id).expect("an answer"),
            None
        );
        assert!(
            family("nlctrl")
                .map(|(_, id)| id)
                .expect("an answer")
                .is_some_and(|id| id == CONTROLLER)
        );
    }
}
