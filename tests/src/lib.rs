//! What tests on the real kernel share: namespaces, a running agent, traffic, and waiting for a condition.
//!
//! Everything undoes itself when it goes out of scope, and names carry the process id, so that tests of several
//! processes never meet. What a killed test left behind is swept away by the next one.

pub mod agent;
pub mod barrage;
pub mod bench;
pub mod both;
pub mod bpf;
pub mod etcd;
pub mod fleet;
pub mod frame;
pub mod generator;
pub mod honest;
pub mod kernel;
pub mod lab;
pub mod netns;
pub mod packet;
pub mod program;
pub mod rotate;
pub mod session;
pub mod siege;
pub mod stack;
pub mod topology;
pub mod traffic;
pub mod tun;
pub mod wait;

pub use agent::Agent;
pub use lab::Lab;
pub use netns::Namespace;
