//! OpenSSH's private key file (PROTOCOL.key). The library reads it but for one thing: it wants an ECDSA scalar at full length, and `ssh-keygen`
//! writes an integer without its leading zeros, which every second nistp521 key has.

use super::SshKeyError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ssh_key::{Cipher, PrivateKey};
use zeroize::Zeroizing;

const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END: &str = "-----END OPENSSH PRIVATE KEY-----";
const MAGIC: &[u8] = b"openssh-key-v1\0";
/// Padding is to this where nothing is encrypted.
const BLOCK: usize = 8;

/// Reads the key, decrypted.
pub(super) fn read(text: &str, passphrase: Option<&str>) -> Result<PrivateKey, SshKeyError> {
    let bytes = unarmoured(text).ok_or(SshKeyError::Format)?;
    let container = Container::parse(&bytes).ok_or(SshKeyError::Format)?;
    let section = if container.cipher == b"none" {
        Zeroizing::new(container.section.to_vec())
    } else {
        decrypt(&bytes, passphrase)?
    };
    let (first, second) = (section.get(..4), section.get(4..8));
    if first.is_none() || first != second {
        return Err(if container.cipher == b"none" { SshKeyError::Format } else { SshKeyError::Passphrase });
    }
    let section = at_full_length(&section).unwrap_or(section);
    let mut plain = Zeroizing::new(MAGIC.to_vec());
    for text in [&b"none"[..], b"none", b""] {
        put(&mut plain, text);
    }
    plain.extend(1u32.to_be_bytes());
    put(&mut plain, container.public);
    put(&mut plain, &section);
    let key = PrivateKey::from_bytes(&plain).map_err(|error| match error {
        ssh_key::Error::AlgorithmUnsupported { algorithm } => SshKeyError::Unsupported(algorithm.to_string()),
        _ => SshKeyError::Format,
    })?;
    Ok(key)
}

/// The file without its PEM frame.
fn unarmoured(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let (_, rest) = text.split_once(BEGIN)?;
    let (body, _) = rest.split_once(END)?;
    let body: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
    STANDARD.decode(body.as_bytes()).ok().map(Zeroizing::new)
}

fn decrypt(container: &[u8], passphrase: Option<&str>) -> Result<Zeroizing<Vec<u8>>, SshKeyError> {
    let key = PrivateKey::from_bytes(container).map_err(|_| SshKeyError::Format)?;
    let passphrase = passphrase.ok_or(SshKeyError::Encrypted)?;
    let mut section = Zeroizing::new(key.key_data().encrypted().ok_or(SshKeyError::Format)?.to_vec());
    let (secret, iv) =
        key.kdf().derive_key_and_iv(key.cipher(), passphrase).map_err(|_| SshKeyError::Passphrase)?;
    let tag = match key.cipher() {
        // The tag of an authenticated cipher follows the section.
        Cipher::Aes128Gcm | Cipher::Aes256Gcm | Cipher::ChaCha20Poly1305 => {
            let at = container.len().checked_sub(16).ok_or(SshKeyError::Format)?;
            let tag: [u8; 16] = container[at..].try_into().map_err(|_| SshKeyError::Format)?;
            Some(tag)
        }
        _ => None,
    };
    key.cipher().decrypt(&secret, &iv, &mut section, tag).map_err(|_| SshKeyError::Passphrase)?;
    Ok(section)
}

/// The parts of the file that are needed.
struct Container<'a> {
    cipher: &'a [u8],
    public: &'a [u8],
    section: &'a [u8],
}

impl<'a> Container<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let (cipher, _, _) = (take(&mut rest)?, take(&mut rest)?, take(&mut rest)?);
        let (count, mut rest) = rest.split_at_checked(4)?;
        if count != 1u32.to_be_bytes() {
            return None;
        }
        Some(Container { cipher, public: take(&mut rest)?, section: take(&mut rest)? })
    }
}

/// The section with an ECDSA scalar at full length; `None` where it is no ECDSA key.
fn at_full_length(section: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (checks, mut rest) = section.split_at_checked(8)?;
    let (algorithm, curve, public) = (take(&mut rest)?, take(&mut rest)?, take(&mut rest)?);
    let length = match algorithm {
        b"ecdsa-sha2-nistp256" => 32,
        b"ecdsa-sha2-nistp384" => 48,
        b"ecdsa-sha2-nistp521" => 66,
        _ => return None,
    };
    let scalar = take(&mut rest)?;
    let comment = take(&mut rest)?;
    let digits = &scalar[scalar.iter().position(|byte| *byte != 0)?..];
    let mut whole = Zeroizing::new(vec![0; length + 1]);
    // A leading zero of its own is what the library expects before a first byte of 0x80 and more.
    whole.get_mut((length + 1).checked_sub(digits.len())?..)?.copy_from_slice(digits);
    let mut padded = Zeroizing::new(Vec::with_capacity(section.len() + 2 * BLOCK));
    padded.extend(checks);
    for part in [algorithm, curve, public, &whole, comment] {
        put(&mut padded, part);
    }
    let missing = padded.len().next_multiple_of(BLOCK) - padded.len();
    padded.extend((1u8..).take(missing));
    Some(padded)
}

/// Takes an SSH string (RFC 4251 §5).
fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, behind) = rest.split_at_checked(4)?;
    let length = u32::from_be_bytes(length.try_into().ok()?);
    let (text, behind) = behind.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = behind;
    Some(text)
}

/// Adds one. Nothing here is longer than the file.
fn put(to: &mut Vec<u8>, text: &[u8]) {
    to.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend(text);
}
