//! A policy: as written ([`mod@file`]), as meant ([`model`]), as compiled ([`compile`]). All pure.

pub mod claims;
pub mod compile;
pub mod cover;
pub mod diagnostic;
pub mod diff;
pub mod edit;
pub mod egress;
pub mod ephemeral;
pub mod explain;
pub mod file;
pub mod groups;
pub mod icmp;
pub mod limits;
pub mod lists;
pub mod merge;
pub mod model;
pub mod ports;
pub mod prefix;
pub mod rules;
pub mod schema;
pub mod set;
pub mod source;
mod trie;
pub mod until;
pub mod written;
