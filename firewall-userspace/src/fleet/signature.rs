//! Signatures of SSH keys over bytes: the format SSHSIG (OpenSSH's PROTOCOL.sshsig), as `ssh-keygen -Y sign` writes it.
//!
//! Reading and verifying happen in this process; signing is left to `ssh-keygen`, so keys in an agent, keys with a
//! passphrase and hardware keys work as they do everywhere else. Accepted are Ed25519, ECDSA over the NIST curves, RSA
//! with SHA-2, and both kinds of hardware keys (PROTOCOL.u2f), which must have been touched. Which key may sign what is
//! for [`super::signers`] to say.

use super::TrustError;
use base64ct::{Base64, Encoding};
use signature::Verifier;
use ssh_key::public::KeyData;
use ssh_key::sha2::{Digest, Sha256, Sha512};
use ssh_key::{HashAlg, PublicKey};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const END: &str = "-----END SSH SIGNATURE-----";
/// Of statements.
pub const POLICY: &str = "ravelin-policy";
/// Of registrations of nodes.
pub const NODE: &str = "ravelin-node";
/// Bytes of an armored signature at most; that of RSA with 4096 bits has 1,600.
const MAX_ARMORED: usize = 16 << 10;
/// Characters of a line of the armor at most.
const MAX_LINE: usize = 76;
/// Somebody touched the hardware key (U2F raw message formats, section 4.3).
const USER_PRESENT: u8 = 1;

/// A signature as it was read, over bytes that it does not hold.
#[derive(Clone, Debug)]
pub struct Signature {
    armored: String,
    key: KeyData,
    namespace: String,
    hash: Hash,
    algorithm: String,
    raw: ssh_key::Signature,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha512,
}

impl Hash {
    fn word(self) -> &'static str {
        match self {
            Hash::Sha256 => "sha256",
            Hash::Sha512 => "sha512",
        }
    }

    fn of(self, message: &[u8]) -> Vec<u8> {
        match self {
            Hash::Sha256 => Sha256::digest(message).to_vec(),
            Hash::Sha512 => Sha512::digest(message).to_vec(),
        }
    }
}

impl Signature {
    /// Reads one armored signature that fills `bytes`.
    ///
    /// # Errors
    /// `malformed`.
    pub fn parse(bytes: &[u8]) -> Result<Signature, TrustError> {
        read(bytes).map_err(|why| TrustError::Malformed(format!("the signature: {why}")))
    }

    /// As it was read.
    pub fn armored(&self) -> &str {
        &self.armored
    }

    /// The key that is said to have made it.
    pub fn key(&self) -> &KeyData {
        &self.key
    }

    /// `SHA256:...`, as `ssh-keygen -l` writes it.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.key)
    }

    /// Whether its key signed `message` in `namespace`.
    ///
    /// # Errors
    /// `bad-signature`.
    pub fn verify(&self, message: &[u8], namespace: &str) -> Result<(), TrustError> {
        let bad = |why: String| Err(TrustError::BadSignature(why));
        if self.namespace != namespace {
            return bad(format!(
                "it was made for {:?}, not for {namespace:?}",
                self.namespace
            ));
        }
        let expected = signature_algorithms(&self.key);
        if !expected.contains(&self.algorithm.as_str()) {
            return bad(match expected {
                [] => format!("keys of type {} are not accepted", self.key.algorithm()),
                _ => format!(
                    "a key of type {} does not sign by {} here ({})",
                    self.key.algorithm(),
                    self.algorithm,
                    expected.join(", ")
                ),
            });
        }
        if matches!(self.key, KeyData::SkEd25519(_) | KeyData::SkEcdsaSha2NistP256(_)) {
            // Flags and a counter of four bytes end the signatures of hardware keys.
            let bytes = self.raw.as_bytes();
            let flags = bytes.len().checked_sub(5).map_or(0, |at| bytes[at]);
            if flags & USER_PRESENT == 0 {
                return bad("nobody touched the hardware key".into());
            }
        }
        let mut signed = b"SSHSIG".to_vec();
        for field in [
            namespace.as_bytes(),
            b"",
            self.hash.word().as_bytes(),
            &self.hash.of(message),
        ] {
            // Of a few bytes each.
            signed.extend((field.len() as u32).to_be_bytes());
            signed.extend(field);
        }
        match self.key.verify(&signed, &self.raw) {
            Ok(()) => Ok(()),
            Err(_) => bad("it is over other bytes, or of another key".into()),
        }
    }
}

/// By which algorithms keys of this type sign; empty for types that are not accepted.
pub(super) fn signature_algorithms(key: &KeyData) -> &'static [&'static str] {
    use ssh_key::EcdsaCurve;
    match key {
        KeyData::Ed25519(_) => &["ssh-ed25519"],
        KeyData::Ecdsa(key) => match key.curve() {
            EcdsaCurve::NistP256 => &["ecdsa-sha2-nistp256"],
            EcdsaCurve::NistP384 => &["ecdsa-sha2-nistp384"],
            EcdsaCurve::NistP521 => &["ecdsa-sha2-nistp521"],
        },
        KeyData::Rsa(_) => &["rsa-sha2-256", "rsa-sha2-512"],
        KeyData::SkEd25519(_) => &["sk-ssh-ed25519@openssh.com"],
        KeyData::SkEcdsaSha2NistP256(_) => &["sk-ecdsa-sha2-nistp256@openssh.com"],
        _ => &[],
    }
}

pub(super) fn fingerprint(key: &KeyData) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

fn read(bytes: &[u8]) -> Result<Signature, String> {
    if bytes.len() > MAX_ARMORED {
        return Err(format!("{} bytes, more than {MAX_ARMORED}", bytes.len()));
    }
    let armored = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
    let blob = unarmor(armored)?;
    let mut fields = Fields(&blob);
    if fields.take(6)? != b"SSHSIG" {
        return Err("it does not begin with SSHSIG".into());
    }
    let version = fields.u32()?;
    if version != 1 {
        return Err(format!("version {version} of the format is not known (1)"));
    }
    let written = fields.string()?;
    let key = PublicKey::from_bytes(written).map_err(|error| format!("its key cannot be read: {error}"))?;
    // The reader of keys forgives lengths that do not add up.
    if key.to_bytes().ok().as_deref() != Some(written) {
        return Err("its key is not written the one way that keys are".into());
    }
    let namespace = fields.text("namespace")?;
    let reserved = fields.string()?;
    if !reserved.is_empty() {
        return Err("its reserved field is not empty".into());
    }
    let hash = match fields.text("hash")?.as_str() {
        "sha256" => Hash::Sha256,
        "sha512" => Hash::Sha512,
        other => return Err(format!("hash {other:?} is not known (sha256, sha512)")),
    };
    let signature = fields.string()?;
    fields.end()?;
    let mut parts = Fields(signature);
    let algorithm = parts.text("algorithm")?;
    parts.string()?;
    if algorithm.starts_with("sk-") {
        parts.take(5)?;
    }
    parts.end()?;
    let raw =
        ssh_key::Signature::try_from(signature).map_err(|error| format!("it cannot be read: {error}"))?;
    Ok(Signature {
        armored: armored.to_owned(),
        key: key.key_data().clone(),
        namespace,
        hash,
        algorithm,
        raw,
    })
}

/// The bytes between the lines of the armor, which end in line feeds and fill the text.
fn unarmor(text: &str) -> Result<Vec<u8>, String> {
    let body = text.strip_prefix(BEGIN).and_then(|rest| rest.strip_prefix('\n'));
    let body = body.ok_or_else(|| format!("it does not begin with the line {BEGIN}"))?;
    let body = body.strip_suffix('\n').and_then(|rest| rest.strip_suffix(END));
    let body = body.ok_or_else(|| format!("it does not end with the line {END}"))?;
    let mut joined = String::with_capacity(body.len());
    for line in body.strip_suffix('\n').unwrap_or(body).split('\n') {
        if line.is_empty() || line.len() > MAX_LINE {
            return Err(format!(
                "a line of it has {} characters (1 to {MAX_LINE})",
                line.len()
            ));
        }
        joined += line;
    }
    Base64::decode_vec(&joined).map_err(|_| "it is not base64 throughout".to_owned())
}

/// Armors `blob` as ssh-keygen does.
pub fn armor(blob: &[u8]) -> String {
    let mut out = format!("{BEGIN}\n");
    for chunk in Base64::encode_string(blob).as_bytes().chunks(70) {
        // Base64 is ASCII.
        out += std::str::from_utf8(chunk).unwrap_or_default();
        out.push('\n');
    }
    out + END + "\n"
}

/// Fields of SSH's wire format: lengths of four bytes, big-endian.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (front, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| format!("{length} bytes are expected where {} are left", self.0.len()))?;
        self.0 = rest;
        Ok(front)
    }

    fn u32(&mut self) -> Result<u32, String> {
        let (number, rest) = self.0.split_first_chunk().ok_or("it ends amid a number")?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*number))
    }

    fn string(&mut self) -> Result<&'a [u8], String> {
        let length = self.u32()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn text(&mut self, what: &str) -> Result<String, String> {
        let bytes = self.string()?;
        match std::str::from_utf8(bytes) {
            Ok(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(text.to_owned()),
            _ => Err(format!("its {what} is not plain text")),
        }
    }

    fn end(&self) -> Result<(), String> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(format!("{left} bytes are left over")),
        }
    }
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("cannot run ssh-keygen, which signs (package openssh-client)")]
    Run(#[source] std::io::Error),
    #[error("cannot read the key {}", key.display())]
    Key { key: PathBuf, source: std::io::Error },
    #[error("ssh-keygen did not sign with {}{}", key.display(), said(words))]
    Refused {
        key: PathBuf,
        /// Empty if they went to the terminal.
        words: String,
    },
    #[error("what ssh-keygen made with {} does not verify", key.display())]
    Useless { key: PathBuf, source: TrustError },
}

fn said(words: &str) -> String {
    match words.trim() {
        "" => String::new(),
        words => format!(": {}", words.replace("\r\n", "\n").replace('\n', "; ")),
    }
}

/// Signs `message` with the key in the file `key`: a private key, or the public key of one that an ssh-agent holds.
/// A passphrase, or the touch of a hardware key, is asked for at the terminal.
///
/// # Errors
/// ssh-keygen's own words, where they are not on the terminal already.
pub fn sign(message: &[u8], key: &Path, namespace: &str) -> Result<Signature, SignError> {
    std::fs::metadata(key).map_err(|source| SignError::Key {
        key: key.to_owned(),
        source,
    })?;
    sign_by(Command::new("ssh-keygen"), message, key, namespace)
}

fn sign_by(mut keygen: Command, message: &[u8], key: &Path, namespace: &str) -> Result<Signature, SignError> {
    // ssh-keygen asks for a touch only where standard error is a terminal.
    let terminal = std::io::stderr().is_terminal();
    let mut child = keygen
        .args(["-q", "-Y", "sign", "-n", namespace, "-f"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(if terminal {
            Stdio::inherit()
        } else {
            Stdio::piped()
        })
        .spawn()
        .map_err(SignError::Run)?;
    let mut stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        // It may refuse the key and go before it reads anything: its words say more than a broken pipe.
        scope.spawn(move || stdin.take().map(|mut stdin| stdin.write_all(message)));
        child.wait_with_output()
    });
    let output = output.map_err(SignError::Run)?;
    let useless = |source| SignError::Useless {
        key: key.to_owned(),
        source,
    };
    if !output.status.success() || output.stdout.is_empty() {
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(SignError::Refused {
            key: key.to_owned(),
            words,
        });
    }
    let signature = Signature::parse(&output.stdout).map_err(useless)?;
    signature.verify(message, namespace).map_err(useless)?;
    Ok(signature)
}

#[cfg(test)]
mod tests;
