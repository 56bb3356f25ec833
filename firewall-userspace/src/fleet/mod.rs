//! Many nodes: which nodes a policy is meant for.

pub mod selector;
