//! Shows another instance which secret is meant, without revealing anything of it.
//!
//! The proof is an HMAC with the secret as its key. Only an instance that has the same secret can check it. Secrets of
//! Azure are random and long; one that is so short that it could be guessed from the proof gets none.

use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;

use crate::config::Secret;

/// Azure's shortest keys have 32 characters.
const MIN_SECRET_BYTES: usize = 32;
/// A new one makes each proof different, so that nobody sees whether two are of the same secret.
const NONCE_BYTES: usize = 16;

/// A proof that this instance has the secret; `None` for a secret that is too short. `context` is what the proof is
/// for: it cannot be used for anything else.
pub fn prove_secret(secret: &Secret, context: &str) -> Option<String> {
    let mut nonce = [0; NONCE_BYTES];
    openssl::rand::rand_bytes(&mut nonce).ok()?;
    Some(format!("{}:{}", to_hex(&nonce), to_hex(&hmac(secret, &nonce, context)?)))
}

/// Whether a proof is of this secret, for this context.
pub fn is_proof_of(secret: &Secret, context: &str, proof: &str) -> bool {
    let Some((nonce, code)) = proof.split_once(':') else { return false };
    let (Some(nonce), Some(code)) = (from_hex(nonce), from_hex(code)) else { return false };
    nonce.len() == NONCE_BYTES
        && hmac(secret, &nonce, context)
            .is_some_and(|expected| expected.len() == code.len() && openssl::memcmp::eq(&expected, &code))
}

fn hmac(secret: &Secret, nonce: &[u8], context: &str) -> Option<Vec<u8>> {
    let secret = secret.expose_secret().as_bytes();
    if secret.len() < MIN_SECRET_BYTES {
        return None;
    }
    let key = PKey::hmac(secret).ok()?;
    let mut signer = Signer::new(MessageDigest::sha256(), &key).ok()?;
    signer.update(nonce).ok()?;
    signer.update(context.as_bytes()).ok()?;
    signer.sign_to_vec().ok()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    bytes.collect::<Option<Vec<u8>>>().filter(|_| rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn only_the_same_secret_proves_itself_in_the_same_context() {
        let secret = Secret::new(LONG);
        let (proof, other) = (prove_secret(&secret, "a").unwrap(), prove_secret(&secret, "a").unwrap());
        assert_ne!(proof, other, "two proofs have nothing in common");
        assert!(is_proof_of(&secret, "a", &proof) && is_proof_of(&secret, "a", &other));
        assert!(!is_proof_of(&secret, "b", &proof));
        assert!(!is_proof_of(&Secret::new(&format!("{LONG}0")), "a", &proof));
        assert!(!proof.contains(LONG));
    }

    #[test]
    fn a_short_secret_and_a_broken_proof_prove_nothing() {
        let short = Secret::new(&LONG[1..]);
        assert_eq!(prove_secret(&short, "a"), None);
        let secret = Secret::new(LONG);
        let proof = prove_secret(&secret, "a").unwrap();
        assert!(!is_proof_of(&short, "a", &proof));
        for broken in ["", ":", "00:00", "x", &proof[1..], &proof[..proof.len() - 2], &format!("{proof}00")] {
            assert!(!is_proof_of(&secret, "a", broken), "{broken}");
        }
    }
}
