//! The agent and the command line of ravelin. The binary `ravelin` is a thin shell around this library.
//!
//! A rule's way: [`cli`] -> [`api`] -> [`agent`] -> [`store`], then [`policy`] (file -> model -> compile) and
//! [`datapath`] (image upload, one switch); the packet meets it in `firewall_common::image`.

pub mod agent;
pub mod api;
pub mod cli;
pub mod datapath;
pub mod detect;
pub mod doctor;
pub mod fleet;
pub mod host;
pub mod metrics;
pub mod monitor;
pub mod output;
pub mod policy;
pub mod simulate;
pub mod store;
