//! RSA signatures by ring, whose arithmetic takes the same time whatever the key is. OpenSSH's file lacks two numbers that it needs.

use super::SshKeyError;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPair, KeyPairComponents, PublicKeyComponents};
use ring::signature::{RSA_PKCS1_SHA256, RSA_PKCS1_SHA512};
use ssh_key::private::RsaKeypair;
use ssh_key::{Algorithm, HashAlg, Mpint, Signature};
use zeroize::Zeroizing;

/// RSASSA-PKCS1-v1_5 (RFC 8332).
pub(super) fn sign(pair: &RsaKeypair, hash: HashAlg, data: &[u8]) -> Result<Signature, SshKeyError> {
    let key = key_pair(pair)?;
    let padding = match hash {
        HashAlg::Sha256 => &RSA_PKCS1_SHA256,
        _ => &RSA_PKCS1_SHA512,
    };
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(padding, &SystemRandom::new(), data, &mut signature)
        .map_err(|_| SshKeyError::Rsa("it does not sign".to_owned()))?;
    Signature::new(Algorithm::Rsa { hash: Some(hash) }, signature)
        .map_err(|error| SshKeyError::Sign(error.to_string()))
}

fn key_pair(pair: &RsaKeypair) -> Result<KeyPair, SshKeyError> {
    let positive = |number: &'_ Mpint| {
        let bytes = number.as_positive_bytes().filter(|bytes| !bytes.is_empty());
        bytes.map(|bytes| Zeroizing::new(bytes.to_vec())).ok_or(SshKeyError::Format)
    };
    let (d, p, q) = (positive(&pair.private.d)?, positive(&pair.private.p)?, positive(&pair.private.q)?);
    let (dp, dq) = (remainder(&d, &one_less(&p)), remainder(&d, &one_less(&q)));
    let inverse = positive(&pair.private.iqmp)?;
    let components = KeyPairComponents {
        public_key: PublicKeyComponents { n: positive(&pair.public.n)?, e: positive(&pair.public.e)? },
        d,
        p,
        q,
        dP: dp,
        dQ: dq,
        qInv: inverse,
    };
    let slices = KeyPairComponents {
        public_key: PublicKeyComponents {
            n: components.public_key.n.as_slice(),
            e: components.public_key.e.as_slice(),
        },
        d: components.d.as_slice(),
        p: components.p.as_slice(),
        q: components.q.as_slice(),
        dP: components.dP.as_slice(),
        dQ: components.dQ.as_slice(),
        qInv: components.qInv.as_slice(),
    };
    KeyPair::from_components(&slices).map_err(|rejected| SshKeyError::Rsa(rejected.to_string()))
}

/// A prime less one: primes are odd, and an even number is refused later.
fn one_less(prime: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut less = Zeroizing::new(prime.to_vec());
    if let Some(last) = less.last_mut() {
        *last &= !1;
    }
    less
}

/// `number` modulo `modulus`, both big endian, the same steps whatever their bits are.
fn remainder(number: &[u8], modulus: &[u8]) -> Zeroizing<Vec<u8>> {
    let modulus = limbs(modulus);
    let mut rest = Zeroizing::new(vec![0u64; modulus.len()]);
    let mut less = Zeroizing::new(vec![0u64; modulus.len()]);
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |shift| u64::from(byte >> shift & 1))) {
        let mut carry = bit;
        for limb in rest.iter_mut() {
            (*limb, carry) = (*limb << 1 | carry, *limb >> 63);
        }
        let mut borrow = false;
        for ((less, limb), part) in less.iter_mut().zip(rest.iter()).zip(modulus.iter()) {
            let (once, first) = limb.overflowing_sub(*part);
            let (twice, second) = once.overflowing_sub(u64::from(borrow));
            (*less, borrow) = (twice, first | second);
        }
        // All ones where the modulus fits in once more.
        let fits = (carry | u64::from(!borrow)).wrapping_neg();
        for (limb, less) in rest.iter_mut().zip(less.iter()) {
            *limb = (less & fits) | (*limb & !fits);
        }
    }
    let bytes: Zeroizing<Vec<u8>> =
        Zeroizing::new(rest.iter().rev().flat_map(|limb| limb.to_be_bytes()).collect());
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Zeroizing::new(bytes[zeros..].to_vec())
}

/// Little endian.
fn limbs(number: &[u8]) -> Zeroizing<Vec<u64>> {
    let limb = |bytes: &[u8]| bytes.iter().fold(0u64, |limb, byte| limb << 8 | u64::from(*byte));
    Zeroizing::new(number.rchunks(8).map(limb).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trimmed(number: u128) -> Vec<u8> {
        number.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect()
    }

    proptest! {
        #[test]
        fn a_remainder_is_the_one_of_the_processor(number in any::<u128>(), modulus in 1..=u128::MAX) {
            prop_assert_eq!(&*remainder(&number.to_be_bytes(), &modulus.to_be_bytes()), &trimmed(number % modulus));
        }

        #[test]
        fn a_small_modulus_has_its_remainder_as_well(number in any::<u128>(), modulus in 1..=u64::MAX) {
            let expected = trimmed(number % u128::from(modulus));
            prop_assert_eq!(&*remainder(&number.to_be_bytes(), &modulus.to_be_bytes()), &expected);
        }
    }
}
