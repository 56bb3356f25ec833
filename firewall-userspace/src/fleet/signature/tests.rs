use super::super::keys::{Keys, allowed, public, signers};
use super::*;
use signature::Signer;
use ssh_key::PrivateKey;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::Child;

const MESSAGE: &[u8] = b"what an operator says\n";

fn keygen_verifies(keys: &Keys, message: &[u8], armored: &str, allowed: &str) -> bool {
    let (list, file) = (keys.path().join("allowed"), keys.path().join("signature"));
    std::fs::write(&list, allowed).expect("written");
    std::fs::write(&file, armored).expect("written");
    let mut child = Command::new("ssh-keygen")
        .args(["-Y", "verify", "-I", "alice@example.org", "-n", POLICY, "-f"])
        .arg(&list)
        .arg("-s")
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("ssh-keygen runs");
    child
        .stdin
        .take()
        .expect("its input")
        .write_all(message)
        .expect("written");
    child.wait().expect("it ends").success()
}

fn keygen_signs(key: &Path, options: &[&str]) -> Signature {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(options);
    sign_by(keygen, MESSAGE, key, POLICY).expect("signed")
}

/// Fields of the wire format.
fn wire(fields: &[&[u8]]) -> Vec<u8> {
    let of = |field: &&[u8]| [&(field.len() as u32).to_be_bytes()[..], field].concat();
    fields.iter().flat_map(of).collect()
}

/// What is signed of MESSAGE.
fn to_sign(namespace: &str) -> Vec<u8> {
    let hash = Sha512::digest(MESSAGE);
    [
        &b"SSHSIG"[..],
        &wire(&[namespace.as_bytes(), b"", b"sha512", &hash]),
    ]
    .concat()
}

fn blob(version: u32, key: &[u8], namespace: &str, reserved: &[u8], hash: &str, signature: &[u8]) -> Vec<u8> {
    let fields = wire(&[key, namespace.as_bytes(), reserved, hash.as_bytes(), signature]);
    [&b"SSHSIG"[..], &version.to_be_bytes(), &fields].concat()
}

fn word(signature: Result<Signature, TrustError>) -> Result<(), &'static str> {
    signature
        .and_then(|signature| signature.verify(MESSAGE, POLICY))
        .map_err(|error| error.word())
}

#[test]
fn every_kind_of_key_works_both_ways() {
    let keys = Keys::new();
    for (name, kind) in [
        ("ed25519", &["ed25519"][..]),
        ("p256", &["ecdsa", "-b", "256"]),
        ("p384", &["ecdsa", "-b", "384"]),
        ("p521", &["ecdsa", "-b", "521"]),
        ("rsa2048", &["rsa", "-b", "2048"]),
        ("rsa4096", &["rsa", "-b", "4096"]),
    ] {
        let key = keys.make(name, kind);
        for hash in ["hashalg=sha256", "hashalg=sha512"] {
            let signature = keygen_signs(&key, &["-O", hash]);
            assert_eq!(signature.verify(MESSAGE, POLICY), Ok(()), "{name} {hash}");
            let other = signature.verify(b"other bytes", POLICY).expect_err("other bytes");
            assert_eq!(other.word(), "bad-signature", "{name} {hash}");
            let other = signature.verify(MESSAGE, NODE).expect_err("another namespace");
            assert!(
                other
                    .to_string()
                    .contains("it was made for \"ravelin-policy\", not for \"ravelin-node\""),
                "{other}"
            );
        }
        let signature = sign(MESSAGE, &key, POLICY).expect("signed");
        let allowed = allowed("alice@example.org", "namespaces=\"ravelin-policy\"", &key);
        assert!(
            keygen_verifies(&keys, MESSAGE, signature.armored(), &allowed),
            "{name}"
        );
        assert!(
            !keygen_verifies(&keys, b"other bytes", signature.armored(), &allowed),
            "{name}"
        );
        assert_eq!(
            signers(&allowed).operator(&signature, None),
            Ok(vec!["alice@example.org".into()])
        );
        let listed = Command::new("ssh-keygen")
            .arg("-lf")
            .arg(&key)
            .output()
            .expect("ssh-keygen runs");
        assert!(
            String::from_utf8_lossy(&listed.stdout).contains(&signature.fingerprint()),
            "{name}"
        );
    }
}

/// A key on hardware, in software (PROTOCOL.u2f): the plain key that signs is `key`.
struct Authenticator {
    key: PrivateKey,
    kind: &'static str,
    public: Vec<u8>,
}

impl Authenticator {
    const APPLICATION: &'static [u8] = b"ssh:";

    /// Makes its plain key: ed25519, or ecdsa over P-256.
    fn new(keys: &Keys, kind: &[&str]) -> Authenticator {
        // A scalar with a leading zero byte, one in 256, is too short for the reader of private keys.
        let key = (0..).find_map(|try_again| {
            let path = keys.make(&format!("{}-{try_again}", kind[0]), kind);
            PrivateKey::from_openssh(std::fs::read_to_string(path).expect("a key")).ok()
        });
        let key = key.expect("a key");
        let (kind, fields) = match key.public_key().key_data() {
            KeyData::Ed25519(key) => ("sk-ssh-ed25519@openssh.com", vec![key.0.to_vec()]),
            KeyData::Ecdsa(key) => (
                "sk-ecdsa-sha2-nistp256@openssh.com",
                vec![b"nistp256".to_vec(), key.as_sec1_bytes().to_vec()],
            ),
            other => panic!("no hardware key is {other:?}"),
        };
        let mut all = vec![kind.as_bytes()];
        all.extend(fields.iter().map(Vec::as_slice));
        all.push(Authenticator::APPLICATION);
        Authenticator {
            kind,
            public: wire(&all),
            key,
        }
    }

    fn sign(&self, namespace: &str, flags: u8, counter: u32) -> Vec<u8> {
        let tail = [&[flags][..], &counter.to_be_bytes()].concat();
        let signed = [
            Sha256::digest(Authenticator::APPLICATION).as_slice(),
            &tail,
            Sha256::digest(to_sign(namespace)).as_slice(),
        ]
        .concat();
        let signature = self.key.try_sign(&signed).expect("signed");
        let signature = [wire(&[self.kind.as_bytes(), signature.as_bytes()]), tail].concat();
        blob(1, &self.public, namespace, b"", "sha512", &signature)
    }

    fn public(&self) -> String {
        format!("{} {}", self.kind, Base64::encode_string(&self.public))
    }
}

#[test]
fn hardware_keys_work_if_they_were_touched() {
    let keys = Keys::new();
    for kind in [&["ed25519"][..], &["ecdsa", "-b", "256"]] {
        let authenticator = Authenticator::new(&keys, kind);
        let touched = armor(&authenticator.sign(POLICY, 1, 7));
        let allowed = format!("alice@example.org {}\n", authenticator.public());
        assert!(
            keygen_verifies(&keys, MESSAGE, &touched, &allowed),
            "{kind:?}: ssh-keygen takes it"
        );
        let signature = Signature::parse(touched.as_bytes()).expect("read");
        assert_eq!(signature.verify(MESSAGE, POLICY), Ok(()), "{kind:?}");
        assert_eq!(
            signers(&allowed).operator(&signature, None),
            Ok(vec!["alice@example.org".into()])
        );
        let error = signature.verify(b"other", POLICY).expect_err("other bytes");
        assert_eq!(error.word(), "bad-signature");
        // With a PIN (flag 4) but no touch.
        let untouched = Signature::parse(armor(&authenticator.sign(POLICY, 4, 8)).as_bytes()).expect("read");
        let error = untouched.verify(MESSAGE, POLICY).expect_err("untouched");
        assert!(
            error.to_string().contains("nobody touched the hardware key"),
            "{error}"
        );
        // The flags are signed: they cannot be set afterwards.
        let mut forged = authenticator.sign(POLICY, 0, 8);
        let at = forged.len() - 5;
        forged[at] = 1;
        assert_eq!(
            word(Signature::parse(armor(&forged).as_bytes())),
            Err("bad-signature")
        );
        let mut counted = authenticator.sign(POLICY, 1, 8);
        *counted.last_mut().expect("a counter") ^= 1;
        assert_eq!(
            word(Signature::parse(armor(&counted).as_bytes())),
            Err("bad-signature")
        );
        assert_eq!(
            word(Signature::parse(
                armor(&authenticator.sign(NODE, 1, 9)).as_bytes()
            )),
            Err("bad-signature")
        );
    }
}

/// An ssh-agent that ends with its test.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(keys: &Keys) -> Agent {
        let socket = keys.path().join("agent");
        let mut child = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::piped())
            .spawn()
            .expect("ssh-agent runs");
        // It says where it listens once it does.
        let mut said = [0];
        child
            .stdout
            .as_mut()
            .expect("its words")
            .read_exact(&mut said)
            .expect("it listens");
        Agent { child, socket }
    }

    fn add(&self, key: &Path) {
        let added = Command::new("ssh-add")
            .arg("-q")
            .arg(key)
            .env("SSH_AUTH_SOCK", &self.socket)
            .status();
        assert!(added.expect("ssh-add runs").success());
    }

    /// Has a key sign by the agent's protocol, whose flags choose the hash of RSA.
    fn sign(&self, key: &[u8], flags: u32) -> Vec<u8> {
        let request = [&[13][..], &wire(&[key, &to_sign(POLICY)]), &flags.to_be_bytes()].concat();
        let mut stream = UnixStream::connect(&self.socket).expect("connected");
        stream.write_all(&wire(&[&request])).expect("asked");
        let mut length = [0; 4];
        stream.read_exact(&mut length).expect("answered");
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut answer).expect("answered");
        assert_eq!(answer[0], 14, "signed");
        answer[5..].to_vec()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn keys_that_only_an_agent_holds_sign() {
    let keys = Keys::new();
    let key = keys.ed25519("alice");
    let agent = Agent::start(&keys);
    agent.add(&key);
    std::fs::remove_file(&key).expect("removed");
    let mut keygen = Command::new("ssh-keygen");
    keygen.env("SSH_AUTH_SOCK", &agent.socket);
    let signature = sign_by(keygen, MESSAGE, &key.with_extension("pub"), POLICY).expect("signed");
    assert_eq!(signature.verify(MESSAGE, POLICY), Ok(()));
    assert!(keygen_verifies(
        &keys,
        MESSAGE,
        signature.armored(),
        &allowed("alice@example.org", "", &key)
    ));
}

#[test]
fn rsa_signs_by_sha2_only() {
    let keys = Keys::new();
    let key = keys.make("rsa", &["rsa", "-b", "2048"]);
    let agent = Agent::start(&keys);
    agent.add(&key);
    let public = PublicKey::from_openssh(&public(&key))
        .expect("a key")
        .to_bytes()
        .expect("a key");
    let by = |flags| {
        Signature::parse(
            armor(&blob(
                1,
                &public,
                POLICY,
                b"",
                "sha512",
                &agent.sign(&public, flags),
            ))
            .as_bytes(),
        )
    };
    assert_eq!(word(by(2)), Ok(()), "rsa-sha2-256");
    assert_eq!(word(by(4)), Ok(()), "rsa-sha2-512");
    // Flags of zero ask for SHA-1, which the format cannot even say.
    assert!(matches!(word(by(0)), Err("bad-signature" | "malformed")));
    // A signature by one hash is not one by the other.
    let mut renamed = agent.sign(&public, 2);
    let at = renamed
        .windows(12)
        .position(|window| window == b"rsa-sha2-256")
        .expect("its name");
    renamed[at..at + 12].copy_from_slice(b"rsa-sha2-512");
    let renamed = Signature::parse(armor(&blob(1, &public, POLICY, b"", "sha512", &renamed)).as_bytes());
    assert_eq!(word(renamed), Err("bad-signature"));
}

#[test]
fn odd_blobs_are_refused() {
    let keys = Keys::new();
    let private = PrivateKey::from_openssh(std::fs::read_to_string(keys.ed25519("alice")).expect("a key"))
        .expect("a key");
    let public = private.public_key().to_bytes().expect("a key");
    let raw = |namespace: &str| {
        let signature = private.try_sign(&to_sign(namespace)).expect("signed");
        wire(&[b"ssh-ed25519", signature.as_bytes()])
    };
    let good = raw(POLICY);
    let parsed = |blob: &[u8]| word(Signature::parse(armor(blob).as_bytes()));
    assert_eq!(parsed(&blob(1, &public, POLICY, b"", "sha512", &good)), Ok(()));
    for (what, blob, expected) in [
        (
            "version 0",
            blob(0, &public, POLICY, b"", "sha512", &good),
            "malformed",
        ),
        (
            "version 2",
            blob(2, &public, POLICY, b"", "sha512", &good),
            "malformed",
        ),
        (
            "reserved",
            blob(1, &public, POLICY, b"x", "sha512", &good),
            "malformed",
        ),
        (
            "another hash",
            blob(1, &public, POLICY, b"", "sha1", &good),
            "malformed",
        ),
        (
            "the other hash",
            blob(1, &public, POLICY, b"", "sha256", &good),
            "bad-signature",
        ),
        (
            "no namespace",
            blob(1, &public, "", b"", "sha512", &raw("")),
            "bad-signature",
        ),
        (
            "namespace with NUL",
            blob(1, &public, "ravelin-policy\0", b"", "sha512", &good),
            "malformed",
        ),
        (
            "another namespace",
            blob(1, &public, "git", b"", "sha512", &raw("git")),
            "bad-signature",
        ),
        (
            "namespace renamed",
            blob(1, &public, POLICY, b"", "sha512", &raw("git")),
            "bad-signature",
        ),
        (
            "a tail",
            [blob(1, &public, POLICY, b"", "sha512", &good), vec![0]].concat(),
            "malformed",
        ),
        (
            "a tail of the key",
            blob(1, &[&public[..], &[0]].concat(), POLICY, b"", "sha512", &good),
            "malformed",
        ),
        (
            "a tail of the signature",
            blob(1, &public, POLICY, b"", "sha512", &[&good[..], &[0]].concat()),
            "malformed",
        ),
        (
            "no signature",
            blob(1, &public, POLICY, b"", "sha512", b""),
            "malformed",
        ),
        (
            "an empty signature",
            blob(1, &public, POLICY, b"", "sha512", &wire(&[b"ssh-ed25519", b""])),
            "malformed",
        ),
        (
            "another algorithm",
            blob(
                1,
                &public,
                POLICY,
                b"",
                "sha512",
                &wire(&[b"rsa-sha2-512", &good[19..]]),
            ),
            "bad-signature",
        ),
        (
            "an unknown algorithm",
            blob(1, &public, POLICY, b"", "sha512", &wire(&[b"none", &good[19..]])),
            "malformed",
        ),
        (
            "an unknown key",
            blob(1, &wire(&[b"none", b"x"]), POLICY, b"", "sha512", &good),
            "malformed",
        ),
        (
            "not the magic",
            [
                &b"SSHSIC"[..],
                &blob(1, &public, POLICY, b"", "sha512", &good)[6..],
            ]
            .concat(),
            "malformed",
        ),
        ("nothing", Vec::new(), "malformed"),
        (
            "a huge length",
            [&b"SSHSIG\0\0\0\x01"[..], &[0xff; 4]].concat(),
            "malformed",
        ),
    ] {
        assert_eq!(parsed(&blob), Err(expected), "{what}");
    }
    // Not one bit of it may differ.
    let whole = blob(1, &public, POLICY, b"", "sha512", &good);
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(parsed(&flipped).is_err(), "bit {bit}");
    }
    for length in 0..whole.len() {
        assert_eq!(parsed(&whole[..length]), Err("malformed"), "cut to {length}");
    }
}

#[test]
fn odd_armor_is_refused() {
    let keys = Keys::new();
    let armored = sign(MESSAGE, &keys.ed25519("alice"), POLICY)
        .expect("signed")
        .armored()
        .to_owned();
    assert_eq!(word(Signature::parse(armored.as_bytes())), Ok(()));
    let body = armored.lines().nth(1).expect("a line").to_owned();
    for bad in [
        armored.trim_end().to_owned(),
        format!("\n{armored}"),
        format!("x\n{armored}"),
        armored.replace('\n', "\r\n"),
        armored.replace(&body, &format!("{body}=")),
        armored.replace(&body, &format!(" {body}")),
        armored.replace(&body, &format!("{body}\n")),
        armored.replace("SSH SIGNATURE", "PGP SIGNATURE"),
        armored.replace("-----END SSH SIGNATURE-----", ""),
        armored.replace(
            "BEGIN SSH SIGNATURE-----\n",
            "BEGIN SSH SIGNATURE-----\nHeader: x\n\n",
        ),
        format!("{BEGIN}\n{END}\n"),
        format!("{BEGIN}\n{}\n{END}\n", "A".repeat(4000)),
        format!("{BEGIN}\n{}{END}\n", "AAAA\n".repeat(5000)),
        armored.replace(&body, &body.replacen('U', "\u{a7}", 1)),
        String::new(),
    ] {
        assert_eq!(
            word(Signature::parse(bad.as_bytes())),
            Err("malformed"),
            "{bad:?}"
        );
    }
    assert_eq!(word(Signature::parse(b"\xff\xfe")), Err("malformed"));
    // Other tools wrap elsewhere.
    let joined: String = armored.lines().filter(|line| !line.starts_with('-')).collect();
    let rewrapped: String = joined
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line) + "\n")
        .collect();
    assert_eq!(
        word(Signature::parse(
            format!("{BEGIN}\n{rewrapped}{END}\n").as_bytes()
        )),
        Ok(())
    );
}

#[test]
fn what_keeps_a_key_from_signing_is_told_in_the_words_of_ssh_keygen() {
    let keys = Keys::new();
    let absent = sign(MESSAGE, &keys.path().join("absent"), POLICY).expect_err("no key");
    assert!(absent.to_string().starts_with("cannot read the key "), "{absent}");
    let locked = keys.path().join("locked");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-N", "secret", "-t", "ed25519", "-f"])
        .arg(&locked)
        .status();
    assert!(made.expect("ssh-keygen runs").success());
    let mut keygen = Command::new("ssh-keygen");
    keygen
        .env("SSH_ASKPASS", "/bin/false")
        .env("SSH_ASKPASS_REQUIRE", "force")
        .env_remove("SSH_AUTH_SOCK");
    let error = sign_by(keygen, MESSAGE, &locked, POLICY)
        .expect_err("locked")
        .to_string();
    assert!(
        error.contains("ssh-keygen did not sign with ") && error.contains("locked"),
        "{error}"
    );
    let other = keys.path().join("text");
    std::fs::write(&other, "no key\n").expect("written");
    let error = sign(MESSAGE, &other, POLICY).expect_err("no key").to_string();
    assert!(error.contains("ssh-keygen did not sign with "), "{error}");
    let missing =
        sign_by(Command::new("no-such-ssh-keygen"), MESSAGE, &locked, POLICY).expect_err("no program");
    assert_eq!(
        missing.to_string(),
        "cannot run ssh-keygen, which signs (package openssh-client)"
    );
}
