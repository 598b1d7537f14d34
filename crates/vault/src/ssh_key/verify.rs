//! Whether a signature is the key's: what a server proves of its session, which the signer looks at before it signs a login there.

use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents};
use signature::Verifier as _;
use ssh_key::public::{KeyData, RsaPublicKey};
use ssh_key::{Algorithm, HashAlg, PublicKey, Signature};

/// Whether `signature` (wire form) over `data` is by `key` (wire form). Certificates, SHA-1 and RSA below 2048 bits verify nothing.
pub fn verify(key: &[u8], signature: &[u8], data: &[u8]) -> bool {
    let (Ok(key), Ok(read)) = (PublicKey::from_bytes(key), Signature::try_from(signature)) else {
        return false;
    };
    // What stands behind it is not looked at when it is read.
    if Vec::try_from(read.clone()).ok().as_deref() != Some(signature) {
        return false;
    }
    match key.key_data() {
        KeyData::Ed25519(_) | KeyData::Ecdsa(_) => key.key_data().verify(data, &read).is_ok(),
        KeyData::Rsa(key) => by_rsa(key, data, &read),
        _ => false,
    }
}

fn by_rsa(key: &RsaPublicKey, data: &[u8], signature: &Signature) -> bool {
    let parameters = match signature.algorithm() {
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) } => &RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) } => &RSA_PKCS1_2048_8192_SHA512,
        _ => return false,
    };
    let (Some(n), Some(e)) = (key.n.as_positive_bytes(), key.e.as_positive_bytes()) else { return false };
    RsaPublicKeyComponents { n, e }.verify(parameters, data, signature.as_bytes()).is_ok()
}
