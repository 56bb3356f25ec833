//! The local socket between the command line and the agent: HTTP + JSON.

pub mod client;
pub mod server;
pub mod types;
