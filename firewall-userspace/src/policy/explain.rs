//! What would happen to a packet.
pub mod packet;
