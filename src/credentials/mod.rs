//! What authenticates the balancer to other services: keys, tokens of Entra ID and secrets of Azure
//! Key Vault, kept fresh in the background and read without waiting; and the keys that the tokens of
//! clients are verified with.
//!
//! Microsoft's crates for Rust are not used: without their own TLS stack they have no transport, with
//! it they bring 80 crates, and they would replace only the few calls in `fetchers/`.

mod credential;
mod expiry;
mod fetched_secret;
mod fetchers;
pub mod jwt;
mod keyring;
mod loggable;
mod redactor;
mod refresh;
mod refreshed_secret;
mod secret_proof;
mod secret_state;
pub mod signing_keys;

pub use self::credential::BackendCredential;
pub use self::expiry::{ExpiringPart, Expiry, seconds_until};
pub use self::keyring::Keyring;
pub use self::redactor::CredentialRedactor;
pub use self::refreshed_secret::RefreshedSecret;
pub use self::secret_proof::{is_proof_of, prove_secret};
pub use self::secret_state::{SecretError, SecretState, SecretValue};
