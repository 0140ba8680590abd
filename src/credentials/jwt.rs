//! Signs and verifies JSON Web Tokens: the `jsonwebtoken` crate knows their form, OpenSSL does the
//! cryptography.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, Result};
use jsonwebtoken::signature;
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey, Header, TokenData, Validation};
use openssl::bn::BigNum;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private, Public};
use openssl::rsa::{Padding, Rsa};
use openssl::sign::{RsaPssSaltlen, Signer, Verifier};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Entra ID signs with keys of 2048 bits; shorter ones are not trusted.
const MIN_VERIFICATION_KEY_BITS: u32 = 2_048;

/// Signs with PS256, which our assertions use, and verifies RS256, which Entra ID uses; nothing else.
static CRYPTO_PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| match algorithm {
        Algorithm::PS256 => {
            let key = Rsa::private_key_from_der(key.as_bytes())
                .and_then(PKey::from_rsa)
                .map_err(invalid_key_error)?;
            Ok(Box::new(Ps256Signer(key)))
        }
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    },
    verifier_factory: |algorithm, key| match (algorithm, key.kind()) {
        (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
            Ok(Box::new(Rs256Verifier(rsa_public_key(n, e).map_err(invalid_key_error)?)))
        }
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    },
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes OpenSSL the provider of the `jsonwebtoken` crate, which keeps it in a global variable. It fails
/// if one is installed already, and that one is always this one.
fn install_crypto_provider() {
    let _ = CRYPTO_PROVIDER.install_default();
}

/// Signs an assertion with an RSA key.
///
/// # Errors
/// If the key is not an RSA key.
pub(super) fn sign_token<C: Serialize>(header: &Header, claims: &C, key: &PKey<Private>) -> Result<String> {
    install_crypto_provider();
    let der = key.rsa().and_then(|rsa| rsa.private_key_to_der()).map_err(invalid_key_error)?;
    jsonwebtoken::encode(header, claims, &EncodingKey::from_rsa_der(&der))
}

/// The claims of a token, once its signature has been checked and `validation` passes.
///
/// # Errors
/// What is wrong with the token.
pub fn verify_token<C: DeserializeOwned>(
    token: &[u8],
    key: &DecodingKey,
    validation: &Validation,
) -> Result<TokenData<C>> {
    install_crypto_provider();
    jsonwebtoken::decode(token, key, validation)
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` passes it by value")]
fn invalid_key_error(error: ErrorStack) -> Error {
    ErrorKind::InvalidRsaKey(error.to_string()).into()
}

fn rsa_public_key(n: &[u8], e: &[u8]) -> std::result::Result<PKey<Public>, ErrorStack> {
    PKey::from_rsa(Rsa::from_public_components(BigNum::from_slice(n)?, BigNum::from_slice(e)?)?)
}

/// RSASSA-PSS with SHA-256.
struct Ps256Signer(PKey<Private>);

impl signature::Signer<Vec<u8>> for Ps256Signer {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, signature::Error> {
        let sign = || {
            let mut signer = Signer::new(MessageDigest::sha256(), &self.0)?;
            signer.set_rsa_padding(Padding::PKCS1_PSS)?;
            signer.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
            signer.sign_oneshot_to_vec(message)
        };
        sign().map_err(|error: ErrorStack| signature::Error::from_source(error))
    }
}

impl JwtSigner for Ps256Signer {
    fn algorithm(&self) -> Algorithm {
        Algorithm::PS256
    }
}

/// RSASSA-PKCS1-v1_5 with SHA-256.
struct Rs256Verifier(PKey<Public>);

impl signature::Verifier<Vec<u8>> for Rs256Verifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), signature::Error> {
        let verify = || Verifier::new(MessageDigest::sha256(), &self.0)?.verify_oneshot(signature, message);
        match verify() {
            Ok(true) if self.0.bits() >= MIN_VERIFICATION_KEY_BITS => Ok(()),
            _ => Err(signature::Error::new()),
        }
    }
}

impl JwtVerifier for Rs256Verifier {
    fn algorithm(&self) -> Algorithm {
        Algorithm::RS256
    }
}
