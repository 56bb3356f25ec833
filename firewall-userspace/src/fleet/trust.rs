//! Whether a node believes a statement: its signature, whose it is, what that signer may say, and when.
//!
//! All of it is decided from local files ([`Signers`], [`Roles`]) and the statement, nothing from where it came: whoever
//! owns the store can withhold what was signed, and cannot say anything. Older and forked versions are for
//! [`super::memory`].

use super::roles::{Roles, Touched};
use super::selector::{Labels, Selector};
use super::signature;
use super::signers::Signers;
use super::statement::{Digest, Envelope, Kind, MAX_ENVELOPE, Statement, StatementError, time};

/// How far ahead of this node's clock that of an operator may be.
pub const CLOCKS_DIFFER: u64 = 300;

/// Why a statement is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error("{bytes} bytes, more than {MAX_ENVELOPE}")]
    TooLarge { bytes: usize },
    #[error("{0}")]
    Malformed(String),
    #[error("it is not signed")]
    Unsigned,
    #[error("the signature does not hold: {0}")]
    BadSignature(String),
    #[error("the key {fingerprint} {why}")]
    UnknownSigner { fingerprint: String, why: String },
    #[error("{signer} may not do this: {why}")]
    NotPermitted { signer: String, why: String },
    #[error("it expired at {}", time(Some(*.0)))]
    Expired(u64),
    #[error("it was issued at {}, which is still to come: the clock here says {}", time(Some(*issued)), time(Some(*now)))]
    NotYet { issued: u64, now: u64 },
    #[error("it is version {version}, and version {seen} was seen before")]
    Older { version: u64, seen: u64 },
    #[error("another text was signed as version {version} before")]
    Replayed { version: u64 },
}

impl TrustError {
    /// One word that never changes: of metrics, status and audit log.
    pub fn word(&self) -> &'static str {
        match self {
            TrustError::TooLarge { .. } => "too-large",
            TrustError::Malformed(_) => "malformed",
            TrustError::Unsigned => "unsigned",
            TrustError::BadSignature(_) => "bad-signature",
            TrustError::UnknownSigner { .. } => "unknown-signer",
            TrustError::NotPermitted { .. } => "not-permitted",
            TrustError::Expired(_) => "expired",
            TrustError::NotYet { .. } => "not-yet",
            TrustError::Older { .. } => "older",
            TrustError::Replayed { .. } => "replayed",
        }
    }
}

impl From<StatementError> for TrustError {
    fn from(error: StatementError) -> TrustError {
        TrustError::Malformed(error.to_string())
    }
}

/// Whom a node, or an operator's command line, believes.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    pub signers: Signers,
    /// `None`: every allowed signer may say everything.
    pub roles: Option<Roles>,
}

/// A statement that is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub statement: Statement,
    /// The first of the signer's principals.
    pub signer: String,
    /// `SHA256:...`
    pub fingerprint: String,
    /// Of the bytes that were signed.
    pub digest: Digest,
}

impl Trust {
    /// Believes a statement that comes from outside, or says why not. `now` is in unix seconds, of a clock that
    /// [`super::memory::Memory::clock`] has corrected; `labels` are those of this node, `None` where there is no node:
    /// then roles hold whatever their nodes.
    ///
    /// # Errors
    /// Every word but `older`, `replayed`, `too-large` and `unsigned`.
    pub fn verify(
        &self,
        envelope: &Envelope,
        now: u64,
        labels: Option<&Labels>,
    ) -> Result<Verified, TrustError> {
        let verified = self.check(envelope, Some(now), labels)?;
        let statement = &verified.statement;
        if statement.issued > now.saturating_add(CLOCKS_DIFFER) {
            return Err(TrustError::NotYet {
                issued: statement.issued,
                now,
            });
        }
        match statement.expires {
            Some(expires) if expires <= now => Err(TrustError::Expired(expires)),
            _ => Ok(verified),
        }
    }

    /// Believes again what was accepted before and kept: the same, but for all times, so what is in force outlives its
    /// expiry and that of its key. A key that was taken out of the list, or a role, does end it.
    ///
    /// # Errors
    /// `malformed`, `bad-signature`, `unknown-signer`, `not-permitted`.
    pub fn verify_kept(&self, envelope: &Envelope, labels: Option<&Labels>) -> Result<Verified, TrustError> {
        self.check(envelope, None, labels)
    }

    /// Whether `signature` over a registration is that of the key of the node `name`.
    ///
    /// # Errors
    /// `bad-signature`, `unknown-signer`.
    pub fn verify_node(
        &self,
        registration: &[u8],
        signature: &signature::Signature,
        name: &str,
        now: u64,
    ) -> Result<(), TrustError> {
        self.signers.node(signature, name, Some(now))?;
        signature.verify(registration, signature::NODE)
    }

    fn check(
        &self,
        envelope: &Envelope,
        now: Option<u64>,
        labels: Option<&Labels>,
    ) -> Result<Verified, TrustError> {
        // Whose it is comes first: that is cheap, and a stranger's text is not even parsed.
        let names = self.signers.operator(envelope.signature(), now)?;
        envelope
            .signature()
            .verify(envelope.statement_bytes(), signature::POLICY)?;
        let statement = envelope.claims();
        Selector::parse(&statement.nodes)
            .map_err(|error| TrustError::Malformed(format!("its nodes: {error}")))?;
        let touched = match statement.kind {
            Kind::Policy => Some(Touched::by(statement).map_err(TrustError::Malformed)?),
            _ => None,
        };
        let signer = names[0].clone();
        if let Some(roles) = &self.roles {
            roles
                .permit(&names, statement, touched.as_ref(), labels)
                .map_err(|why| TrustError::NotPermitted {
                    signer: signer.clone(),
                    why,
                })?;
        }
        Ok(Verified {
            statement: statement.clone(),
            signer,
            fingerprint: envelope.signature().fingerprint(),
            digest: envelope.digest(),
        })
    }
}

#[cfg(test)]
mod tests;
