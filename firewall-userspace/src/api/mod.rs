//! The local socket between the command line and the agent: HTTP + JSON.

pub mod client;
pub mod fleet;
pub mod server;
pub mod types;
