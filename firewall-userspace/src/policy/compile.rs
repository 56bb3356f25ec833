//! The model compiled to an image. (skeleton: the interface)

use super::model::{Policy, RuleId, ServiceId};
use firewall_common::verdict::Reason;

/// A compiled policy. The same policy gives the same bytes.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Whole pages, see [`firewall_common::image`].
    pub image: Vec<u8>,
    /// BLAKE3 of `image`.
    pub digest: [u8; 32],
    /// What each ending means; the index is the number in counters and events.
    pub endings: Vec<Ending>,
    pub stats: Stats,
}

/// One way a packet can end under this policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// `None`: a number that is never used.
    pub reason: Option<Reason>,
    pub service: Option<ServiceId>,
    pub rule: Option<RuleId>,
}

/// What `check` and the metrics say of a compiled policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stats {
    pub services: usize,
    pub rules: usize,
    /// Distinct prefixes.
    pub prefixes_v4: usize,
    pub prefixes_v6: usize,
    pub classes: usize,
    pub image_bytes: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("the policy needs {needed} {what}, more than the {limit} that an image holds")]
    TooLarge { what: &'static str, needed: u64, limit: u64 },
}

pub fn compile(_policy: &Policy) -> Result<Compiled, CompileError> {
    unimplemented!("written by the core")
}
