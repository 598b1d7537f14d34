//! SSH private keys: made, taken over from `ssh-keygen`'s files, and signed with. What may be signed is not decided here.

mod container;
mod rsa;
mod verify;

pub use verify::verify;

use signature::Signer as _;
use ssh_key::private::KeypairData;
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, LineEnding, PrivateKey, Signature};
use zeroize::Zeroizing;

/// Flag of SSH_AGENTC_SIGN_REQUEST: RSA with SHA-256.
pub const RSA_SHA2_256: u32 = 2;
/// Likewise, RSA with SHA-512.
pub const RSA_SHA2_512: u32 = 4;
/// The longest file that is looked at.
const LONGEST: usize = 64 << 10;

/// A private key.
pub struct SshKey(PrivateKey);

/// What a new key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Ed25519.
    #[default]
    Ed25519,
    /// ECDSA on nistp256.
    EcdsaP256,
    /// ECDSA on nistp384.
    EcdsaP384,
    /// ECDSA on nistp521.
    EcdsaP521,
}

/// What is wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SshKeyError {
    /// PKCS#1, PKCS#8, PuTTY, a public key, or no key at all.
    #[error(
        "this is no private key in OpenSSH's own format; `ssh-keygen -p -f FILE` rewrites a private key of another format in it"
    )]
    Format,
    /// It is encrypted and there was no passphrase.
    #[error("the key is encrypted: its passphrase is needed")]
    Encrypted,
    /// The passphrase does not open it.
    #[error("the passphrase does not open the key")]
    Passphrase,
    /// DSA, a hardware key, or something newer than this program.
    #[error("{0} keys cannot be used: ed25519, ecdsa and rsa can")]
    Unsupported(String),
    /// An RSA key that is too weak or too long, or whose parts do not fit.
    #[error("the RSA key cannot be used ({0}): 2048, 3072 and 4096 bits can")]
    Rsa(String),
    /// An RSA signature with SHA-1 was asked for.
    #[error(
        "signatures with SHA-1 (ssh-rsa) are not made: the client must ask for rsa-sha2-256 or rsa-sha2-512"
    )]
    Sha1,
    /// The library refused.
    #[error("the key cannot sign: {0}")]
    Sign(String),
}

impl SshKey {
    /// Makes a new one.
    pub fn generate(kind: Kind, comment: &str) -> Result<Self, SshKeyError> {
        let curve = |curve| Algorithm::Ecdsa { curve };
        let algorithm = match kind {
            Kind::Ed25519 => Algorithm::Ed25519,
            Kind::EcdsaP256 => curve(EcdsaCurve::NistP256),
            Kind::EcdsaP384 => curve(EcdsaCurve::NistP384),
            Kind::EcdsaP521 => curve(EcdsaCurve::NistP521),
        };
        let failed = |error: ssh_key::Error| SshKeyError::Sign(error.to_string());
        let mut key = PrivateKey::random(&mut OsRng, algorithm).map_err(failed)?;
        key.set_comment(comment);
        Ok(SshKey(key))
    }

    /// Reads a file of `ssh-keygen`, with its passphrase where it is encrypted. A key that is returned can sign.
    pub fn import(text: &str, passphrase: Option<&str>) -> Result<Self, SshKeyError> {
        if text.len() > LONGEST {
            return Err(SshKeyError::Format);
        }
        let key = SshKey(container::read(text, passphrase)?);
        let flags = if matches!(key.0.key_data(), KeypairData::Rsa(_)) { RSA_SHA2_256 } else { 0 };
        key.sign(b"", flags)?;
        Ok(key)
    }

    /// Reads what [`SshKey::to_pem`] wrote.
    pub fn from_pem(pem: &str) -> Result<Self, SshKeyError> {
        container::read(pem, None).map(SshKey)
    }

    /// OpenSSH's own form, not encrypted: for the sealed store alone.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, SshKeyError> {
        self.0.to_openssh(LineEnding::LF).map_err(|error| SshKeyError::Sign(error.to_string()))
    }

    /// The public key on one line: `ssh-ed25519 AAAA… comment`.
    pub fn public(&self) -> String {
        // Only a comment with a NUL cannot be written, and none is made or read.
        self.0.public_key().to_openssh().unwrap_or_default()
    }

    /// Changes the comment.
    pub fn set_comment(&mut self, comment: &str) {
        self.0.set_comment(comment);
    }

    /// The public key in SSH wire form (RFC 4253 §6.6).
    pub fn blob(&self) -> Vec<u8> {
        self.0.public_key().to_bytes().unwrap_or_default()
    }

    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Signs `data`; SSH wire form of the signature (RFC 4253 §6.6, RFC 8332). `flags` are those of the agent protocol.
    pub fn sign(&self, data: &[u8], flags: u32) -> Result<Vec<u8>, SshKeyError> {
        let failed = |error: &dyn std::fmt::Display| SshKeyError::Sign(error.to_string());
        let signature: Signature = match self.0.key_data() {
            KeypairData::Ed25519(_) | KeypairData::Ecdsa(_) => {
                self.0.try_sign(data).map_err(|error| failed(&error))?
            }
            KeypairData::Rsa(pair) => {
                // ssh-agent prefers the shorter one where both are asked for.
                let hash = match (flags & RSA_SHA2_256, flags & RSA_SHA2_512) {
                    (0, 0) => return Err(SshKeyError::Sha1),
                    (0, _) => HashAlg::Sha512,
                    _ => HashAlg::Sha256,
                };
                rsa::sign(pair, hash, data)?
            }
            _ => return Err(SshKeyError::Unsupported(self.0.algorithm().to_string())),
        };
        Vec::try_from(signature).map_err(|error| failed(&error))
    }
}

/// Never the private part.
impl std::fmt::Debug for SshKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SshKey({})", self.fingerprint())
    }
}

/// Reads a public key on one line and returns its wire form and its comment.
pub fn read_public(line: &str) -> Option<(Vec<u8>, String)> {
    let key = ssh_key::PublicKey::from_openssh(line).ok()?;
    Some((key.to_bytes().ok()?, key.comment().to_owned()))
}

/// `SHA256:…` of a public key on one line.
pub fn fingerprint(line: &str) -> Option<String> {
    Some(ssh_key::PublicKey::from_openssh(line).ok()?.fingerprint(HashAlg::Sha256).to_string())
}

/// Likewise, of one in wire form.
pub fn fingerprint_of(blob: &[u8]) -> Option<String> {
    Some(ssh_key::PublicKey::from_bytes(blob).ok()?.fingerprint(HashAlg::Sha256).to_string())
}

#[cfg(test)]
mod tests;
