//! Against `ssh-keygen`, the one who writes such files and reads such signatures.

use super::*;
use std::path::Path;
use std::process::Command;

/// Whether `ssh-keygen` is there.
fn possible() -> bool {
    terok_need::starts("ssh", "ssh-keygen", &["-?"])
}

fn keygen(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("ssh-keygen").args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A new file of `ssh-keygen`.
fn made(folder: &Path, kind: &str, bits: &str, passphrase: &str) -> (String, String) {
    for file in ["key", "key.pub"] {
        let _ = std::fs::remove_file(folder.join(file));
    }
    let mut arguments = vec!["-q", "-t", kind, "-N", passphrase, "-C", "me@here", "-f", "key"];
    if !bits.is_empty() {
        arguments.extend(["-b", bits]);
    }
    keygen(folder, &arguments);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    (read("key"), read("key.pub").trim().to_owned())
}

/// Puts a signature into the frame of SSHSIG and has `ssh-keygen` look at it.
fn verifies(folder: &Path, key: &SshKey, flags: u32) -> bool {
    use base64::Engine as _;
    let put = |to: &mut Vec<u8>, text: &[u8]| {
        to.extend((text.len() as u32).to_be_bytes());
        to.extend(text);
    };
    let message = b"to be signed";
    std::fs::write(folder.join("message"), message).unwrap();
    let mut signed = b"SSHSIG".to_vec();
    let digest = ring::digest::digest(&ring::digest::SHA512, message);
    for part in [&b"git"[..], b"", b"sha512", digest.as_ref()] {
        put(&mut signed, part);
    }
    let mut sig = b"SSHSIG".to_vec();
    sig.extend(1u32.to_be_bytes());
    for part in [&key.blob()[..], b"git", b"", b"sha512", &key.sign(&signed, flags).unwrap()] {
        put(&mut sig, part);
    }
    let armour = base64::engine::general_purpose::STANDARD.encode(sig);
    let armour = format!("-----BEGIN SSH SIGNATURE-----\n{armour}\n-----END SSH SIGNATURE-----\n");
    std::fs::write(folder.join("sig"), armour).unwrap();
    std::fs::write(folder.join("signers"), format!("me {}\n", key.public())).unwrap();
    let mut check = Command::new("ssh-keygen");
    check.args(["-Y", "verify", "-f", "signers", "-I", "me", "-n", "git", "-s", "sig"]).current_dir(folder);
    check.stdin(std::fs::File::open(folder.join("message")).unwrap());
    check.output().unwrap().status.success()
}

#[test]
fn keys_of_ssh_keygen_are_read_and_their_signatures_verify() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (kind, bits) in [
        ("ed25519", ""),
        ("ecdsa", "256"),
        ("ecdsa", "384"),
        ("ecdsa", "521"),
        ("rsa", "2048"),
        ("rsa", "3072"),
    ] {
        let (private, public) = made(folder.path(), kind, bits, "");
        let key = SshKey::import(&private, None).unwrap();
        assert_eq!(key.public(), public, "{kind} {bits}");
        assert!(keygen(folder.path(), &["-l", "-f", "key"]).contains(&key.fingerprint()));
        let again = SshKey::from_pem(&key.to_pem().unwrap()).unwrap();
        assert_eq!(again.public(), public);
        for flags in [RSA_SHA2_256, RSA_SHA2_512] {
            assert!(verifies(folder.path(), &again, flags), "{kind} {bits} {flags}");
            let signature = key.sign(b"data", flags).unwrap();
            assert!(verify(&key.blob(), &signature, b"data"), "{kind} {bits} {flags}");
            assert!(!verify(&key.blob(), &signature, b"date"), "{kind} {bits} {flags}");
            assert!(
                !verify(&key.blob(), &[&signature[..], b"\0"].concat(), b"data"),
                "{kind} {bits} {flags}"
            );
            let other = SshKey::generate(Kind::default(), "").unwrap();
            assert!(!verify(&other.blob(), &signature, b"data"), "{kind} {bits} {flags}");
        }
    }
}

#[test]
fn a_scalar_with_leading_zeros_is_read() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // Every second one has such; that none of sixteen has is one case in 65536.
    for turn in 0..16 {
        let passphrase = if turn % 4 == 0 { "open sesame" } else { "" };
        let (private, public) = made(folder.path(), "ecdsa", "521", passphrase);
        let key = SshKey::import(&private, Some(passphrase)).unwrap();
        assert_eq!(key.public(), public);
        assert!(verifies(folder.path(), &key, 0));
    }
}

#[test]
fn an_encrypted_key_wants_its_passphrase() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for cipher in ["aes256-ctr", "aes256-cbc", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"] {
        let (_, public) = made(folder.path(), "ed25519", "", "");
        keygen(folder.path(), &["-q", "-p", "-Z", cipher, "-P", "", "-N", "open sesame", "-f", "key"]);
        let private = std::fs::read_to_string(folder.path().join("key")).unwrap();
        assert_eq!(SshKey::import(&private, None).unwrap_err(), SshKeyError::Encrypted, "{cipher}");
        assert_eq!(
            SshKey::import(&private, Some("sesame")).unwrap_err(),
            SshKeyError::Passphrase,
            "{cipher}"
        );
        assert_eq!(SshKey::import(&private, Some("open sesame")).unwrap().public(), public, "{cipher}");
    }
}

#[test]
fn other_formats_and_kinds_are_refused_with_a_remedy() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (_, public) = made(folder.path(), "ed25519", "", "");
    assert_eq!(SshKey::import(&public, None).unwrap_err(), SshKeyError::Format);
    keygen(folder.path(), &["-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "", "-f", "pem"]);
    let pem = std::fs::read_to_string(folder.path().join("pem")).unwrap();
    let error = SshKey::import(&pem, None).unwrap_err().to_string();
    assert!(error.contains("ssh-keygen -p -f FILE"), "{error}");
    let (weak, _) = made(folder.path(), "rsa", "1024", "");
    assert!(matches!(SshKey::import(&weak, None).unwrap_err(), SshKeyError::Rsa(_)));
}

#[test]
fn sha_1_is_never_used() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (private, _) = made(folder.path(), "rsa", "2048", "");
    let key = SshKey::import(&private, None).unwrap();
    assert_eq!(key.sign(b"data", 0).unwrap_err(), SshKeyError::Sha1);
    assert!(key.sign(b"data", RSA_SHA2_512).unwrap().starts_with(b"\0\0\0\x0crsa-sha2-512"));
    assert!(key.sign(b"data", RSA_SHA2_512 | RSA_SHA2_256).unwrap().starts_with(b"\0\0\0\x0crsa-sha2-256"));
}

#[test]
fn a_new_key_signs_and_says_nothing_of_itself() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for kind in [Kind::Ed25519, Kind::EcdsaP256, Kind::EcdsaP384, Kind::EcdsaP521] {
        let key = SshKey::generate(kind, "terok work").unwrap();
        assert!(key.public().ends_with(" terok work"));
        assert_eq!(read_public(&key.public()).unwrap(), (key.blob(), "terok work".to_owned()));
        assert_eq!(fingerprint(&key.public()).unwrap(), key.fingerprint());
        assert!(verifies(folder.path(), &key, 0), "{kind:?}");
        assert_eq!(format!("{key:?}"), format!("SshKey({})", key.fingerprint()));
    }
}

#[test]
fn a_damaged_file_is_refused_and_nothing_panics() {
    let key = SshKey::generate(Kind::EcdsaP521, "").unwrap();
    let pem = key.to_pem().unwrap();
    for length in 0..pem.len() {
        assert!(SshKey::import(&pem[..length], None).is_err() || length + 2 > pem.len(), "{length}");
    }
}
