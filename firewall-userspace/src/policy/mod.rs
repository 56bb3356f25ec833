//! A policy: as written ([`file`]), as meant ([`model`]), as compiled ([`compile`]). All pure.

pub mod compile;
pub mod model;
mod trie;
