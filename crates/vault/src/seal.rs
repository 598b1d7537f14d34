//! XChaCha20-Poly1305 with a random nonce before the sealed octets, bound to an identity that is stored elsewhere.

use crate::error::{Error, Result};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{Key, KeyInit, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

/// Octets of a key.
pub(crate) const KEY_LENGTH: usize = 32;
const NONCE_LENGTH: usize = 24;
const TAG_LENGTH: usize = 16;

/// Seals `plain` for `identity`: nonce, sealed octets, tag.
pub(crate) fn seal(key: &[u8; KEY_LENGTH], identity: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
    let mut nonce = [0; NONCE_LENGTH];
    fill_random(&mut nonce)?;
    let mut sealed = Vec::with_capacity(NONCE_LENGTH + plain.len() + TAG_LENGTH);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(plain);
    let tag = cipher(key)
        .encrypt_inout_detached(&XNonce::from(nonce), identity, (&mut sealed[NONCE_LENGTH..]).into())
        .map_err(|_| Error::Unfit("the secret is too long to be sealed".into()))?;
    sealed.extend_from_slice(&tag);
    Ok(sealed)
}

/// What was sealed for `identity`; nothing where key, identity or a single bit differs.
pub(crate) fn open(key: &[u8; KEY_LENGTH], identity: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_LENGTH>()?;
    let (body, tag) = rest.split_last_chunk::<TAG_LENGTH>()?;
    let mut plain = Zeroizing::new(body.to_vec());
    cipher(key)
        .decrypt_inout_detached(&XNonce::from(*nonce), identity, plain.as_mut_slice().into(), &(*tag).into())
        .ok()?;
    Some(plain)
}

/// Parts as one string that no other parts give: each with its length before it.
pub(crate) fn identity(parts: &[&[u8]]) -> Vec<u8> {
    let mut whole = Vec::new();
    for part in parts {
        whole.extend_from_slice(&(part.len() as u64).to_le_bytes());
        whole.extend_from_slice(part);
    }
    whole
}

/// Octets from the kernel.
pub(crate) fn fill_random(octets: &mut [u8]) -> Result<()> {
    getrandom::fill(octets).map_err(|error| Error::System(format!("no random numbers: {error}")))
}

// The cipher overwrites its copy of the key when it is dropped (feature `zeroize`).
fn cipher(key: &[u8; KEY_LENGTH]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(<&Key>::from(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn the_cipher_is_the_one_of_the_draft() {
        // draft-irtf-cfrg-xchacha-03, appendix A.3.1.
        let key: [u8; 32] = std::array::from_fn(|at| 0x80 + at as u8);
        let plain = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
        let sealed = unhex(concat!(
            "404142434445464748494a4b4c4d4e4f5051525354555657",
            "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb",
            "731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452",
            "2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9",
            "21f9664c97637da9768812f615c68b13b52e",
            "c0875924c1c7987947deafd8780acf49",
        ));
        let identity = unhex("50515253c0c1c2c3c4c5c6c7");
        assert_eq!(open(&key, &identity, &sealed).unwrap().as_slice(), plain);
    }

    #[test]
    fn a_changed_bit_anywhere_does_not_open() {
        let key = [7; 32];
        let sealed = seal(&key, b"id", b"secret").unwrap();
        assert_eq!(open(&key, b"id", &sealed).unwrap().as_slice(), b"secret");
        for bit in 0..sealed.len() * 8 {
            let mut other = sealed.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&key, b"id", &other).is_none(), "bit {bit}");
        }
        assert!(open(&key, b"ie", &sealed).is_none());
        assert!(open(&[8; 32], b"id", &sealed).is_none());
        for length in 0..sealed.len() {
            assert!(open(&key, b"id", &sealed[..length]).is_none(), "{length} octets");
        }
    }

    #[test]
    fn no_two_seals_are_alike() {
        assert_ne!(seal(&[7; 32], b"id", b"secret").unwrap(), seal(&[7; 32], b"id", b"secret").unwrap());
    }

    #[test]
    fn parts_cannot_be_shifted_into_each_other() {
        assert_ne!(identity(&[b"ab", b"c"]), identity(&[b"a", b"bc"]));
        assert_ne!(identity(&[b"a", b""]), identity(&[b"a"]));
    }
}
