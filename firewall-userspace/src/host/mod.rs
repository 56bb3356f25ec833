//! What there is to know of the host that ravelin runs on, read from `/proc` and `/sys`. Judges nothing.

pub mod cookies;
pub mod netstat;
pub mod published;
pub mod sockets;
pub mod sysctl;
