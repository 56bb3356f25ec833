//! Everything that touches the kernel's BPF: loading, pins, attaching, the policy image, counters and events.
pub mod netlink;
mod sys;
mod wire;
