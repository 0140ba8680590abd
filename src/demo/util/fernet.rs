//! Fernet tokens (<https://github.com/fernet/spec>), which is what `encrypted_content` looks like: `gAAAAA…`.
//!
//! A token is encrypted (AES-128-CBC) and authenticated (HMAC-SHA256), so that only its key can read it. It
//! does not say which key that is.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::memcmp;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use openssl::symm::{Cipher, decrypt, encrypt};

use super::clock::unix_seconds_now;
use super::ids::IdGenerator;

const VERSION: u8 = 0x80;
/// Version, time (8 bytes), initialization vector (16 bytes).
const HEADER_LENGTH: usize = 25;
const IV_OFFSET: usize = 9;
const SIGNATURE_LENGTH: usize = 32;

/// The key of one resource.
#[derive(Debug)]
pub(in crate::demo) struct FernetKey {
    signing_key: [u8; 16],
    encryption_key: [u8; 16],
}

impl FernetKey {
    pub(in crate::demo) fn new(ids: &IdGenerator) -> Self {
        Self { signing_key: ids.new_bytes(), encryption_key: ids.new_bytes() }
    }

    /// Encrypts a text.
    ///
    /// # Errors
    /// When OpenSSL has no AES or SHA-256, such as in a build without them.
    pub(in crate::demo) fn encrypt(&self, ids: &IdGenerator, text: &str) -> Result<String, ErrorStack> {
        let iv: [u8; 16] = ids.new_bytes();
        let mut token = vec![VERSION];
        token.extend_from_slice(&unix_seconds_now().to_be_bytes());
        token.extend_from_slice(&iv);
        token.extend(encrypt(Cipher::aes_128_cbc(), &self.encryption_key, Some(&iv), text.as_bytes())?);
        let signature = self.signature(&token)?;
        token.extend(signature);
        Ok(URL_SAFE.encode(token))
    }

    /// The text of a token; `None` if it was not made with this key.
    pub(in crate::demo) fn decrypt(&self, token: &str) -> Option<String> {
        let token = URL_SAFE.decode(token).ok()?;
        let (signed, signature) = token.split_at_checked(token.len().checked_sub(SIGNATURE_LENGTH)?)?;
        let (header, ciphertext) = signed.split_at_checked(HEADER_LENGTH)?;
        let expected = self.signature(signed).ok()?;
        let is_ours = expected.len() == signature.len() && memcmp::eq(&expected, signature);
        if !is_ours || header.first() != Some(&VERSION) {
            return None;
        }
        let iv = header.get(IV_OFFSET..)?;
        let text = decrypt(Cipher::aes_128_cbc(), &self.encryption_key, Some(iv), ciphertext).ok()?;
        String::from_utf8(text).ok()
    }

    fn signature(&self, bytes: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        let key = PKey::hmac(&self.signing_key)?;
        Signer::new(MessageDigest::sha256(), &key)?.sign_oneshot_to_vec(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::demo::util::ids::IdForm;

    #[test]
    fn a_published_token_is_decrypted() {
        // generate.json of the specification.
        let key = URL_SAFE.decode("cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=").unwrap();
        let key = FernetKey {
            signing_key: key[..16].try_into().unwrap(),
            encryption_key: key[16..].try_into().unwrap(),
        };
        let token = "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==";
        assert_eq!(key.decrypt(token).as_deref(), Some("hello"));
    }

    proptest! {
        #[test]
        fn only_the_key_of_a_token_decrypts_it_and_no_changed_byte_is_accepted(
            text in ".{0,80}", position in any::<prop::sample::Index>(), change in 1u8..=255
        ) {
            let ids = IdGenerator::new(IdForm::Chained);
            let (ours, theirs) = (FernetKey::new(&ids), FernetKey::new(&ids));
            let token = ours.encrypt(&ids, &text).unwrap();
            prop_assert!(token.starts_with("gAAAAAB"));
            prop_assert_eq!(ours.decrypt(&token), Some(text));
            prop_assert_eq!(theirs.decrypt(&token), None);
            let mut bytes = URL_SAFE.decode(&token).unwrap();
            let position = position.index(bytes.len());
            bytes[position] ^= change;
            prop_assert_eq!(ours.decrypt(&URL_SAFE.encode(bytes)), None);
        }

        #[test]
        fn any_text_may_be_offered_as_a_token(text in ".{0,200}") {
            prop_assert_eq!(FernetKey::new(&IdGenerator::new(IdForm::Chained)).decrypt(&text), None);
        }
    }
}
