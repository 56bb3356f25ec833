use super::super::keys::{ISSUED, Keys, allowed, document, sign, trust};
use super::*;
use crate::fleet::signature::Signature;

#[test]
fn what_ssh_keygen_signs_is_believed() {
    let keys = Keys::new();
    let key = keys.ed25519("alice");
    let trust = trust(&allowed(
        "alice@example.org",
        "namespaces=\"ravelin-policy\"",
        &key,
    ));
    let envelope = sign(&document("payments", 1), &key);
    let again = Envelope::parse(envelope.bytes()).expect("stored bytes");
    let verified = trust.verify(&again, ISSUED, None).expect("believed");
    assert_eq!(verified.statement, document("payments", 1));
    assert_eq!(verified.signer, "alice@example.org");
    assert_eq!(verified.fingerprint, Signature::fingerprint(envelope.signature()));
}
