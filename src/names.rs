//! Names and small numbers that all modules share: clients, backends, deployments, weights, tiers.
//!
//! The only rules here are those that no value can break: the form of a deployment name, how names
//! compare, and the range of a weight or tier.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

/// Longest deployment name, in bytes. This is Azure's limit.
pub const MAX_DEPLOYMENT_NAME_BYTES: usize = 64;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps a name that the caller has checked.
            pub fn new(name: &str) -> Self {
                Self(name.into())
            }

            /// The name as written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

name_type!(
    /// The name of a backend: one entry of the configuration with endpoint, credential, tier and weight.
    BackendName
);
name_type!(
    /// The name of an Azure resource, which owns what was made on it: its host and port, or what the configuration
    /// calls it.
    ResourceName
);
name_type!(
    /// The name of a client in the configuration.
    ClientName
);

name_type!(
    /// The subject of a client certificate, written as `openssl x509 -noout -subject -nameopt
    /// RFC2253,-esc_msb,utf8` prints it: the most specific attribute first.
    CertificateSubject
);

/// Whose share of something is used, so that no other has to do without.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    /// A client of the configuration.
    Client(ClientName),
    /// An address, if clients have no names.
    Address(Option<IpAddr>),
}

impl Caller {
    /// The client of this name, or else the address.
    pub fn of(client: Option<&ClientName>, address: Option<IpAddr>) -> Self {
        client.cloned().map_or(Self::Address(address), Self::Client)
    }
}

/// The name of a deployment in the spelling of a client or operator. Names that differ only in ASCII
/// case are equal, as they are for Azure.
#[derive(Clone, Debug)]
pub struct DeploymentName(Arc<str>);

/// A text is not a valid deployment name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a deployment name has 1 to {MAX_DEPLOYMENT_NAME_BYTES} of the characters A-Z a-z 0-9 . _ -")]
pub struct DeploymentNameError;

impl DeploymentName {
    /// Checks and wraps a name of 1 to 64 characters of `[A-Za-z0-9._-]`.
    ///
    /// # Errors
    /// [`DeploymentNameError`] for anything else, and for `.` and `..`, which are path segments.
    pub fn parse(name: &str) -> Result<Self, DeploymentNameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty()
            || name.len() > MAX_DEPLOYMENT_NAME_BYTES
            || !name.bytes().all(allowed)
            || matches!(name, "." | "..")
        {
            return Err(DeploymentNameError);
        }
        Ok(Self(name.into()))
    }

    /// The name in its original spelling.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in ASCII lower case, which is the same for equal names.
    pub fn to_lowercase(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl PartialEq for DeploymentName {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for DeploymentName {}

impl PartialOrd for DeploymentName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for DeploymentName {
    fn cmp(&self, other: &Self) -> Ordering {
        let lowercase = |byte: u8| byte.to_ascii_lowercase();
        self.0.bytes().map(lowercase).cmp(other.0.bytes().map(lowercase))
    }
}

impl std::hash::Hash for DeploymentName {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // In one call: a hasher takes as long for one byte as for eight.
        let mut lower = [0; MAX_DEPLOYMENT_NAME_BYTES];
        for (lower, byte) in lower.iter_mut().zip(self.0.bytes()) {
            *lower = byte.to_ascii_lowercase();
        }
        state.write(lower.get(..self.0.len()).unwrap_or(&lower));
    }
}

impl fmt::Display for DeploymentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key of a prompt: requests with the same key can use the same prompt cache, and go to the same backend. It is a
/// hash, which says nothing of the prompt; shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheKey(u64);

impl CacheKey {
    /// The key with this hash.
    pub const fn from_hash(hash: u64) -> Self {
        Self(hash)
    }

    /// Its hash.
    pub const fn hash(self) -> u64 {
        self.0
    }
}

/// By what a request is routed to one of the backends of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutedKey {
    /// The key of its prompt.
    pub key: CacheKey,
    /// How the key is spread; `None` unless it is asked very often.
    pub spread: Option<KeySpread>,
}

impl From<CacheKey> for RoutedKey {
    fn from(key: CacheKey) -> Self {
        Self { key, spread: None }
    }
}

/// How a key that is asked very often is spread, for one of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySpread {
    /// The backends that the key is spread over: the first so many in its order.
    pub backends: u32,
    /// What the request shares with its own conversation only. It is the key itself if that is made from the prompt.
    pub conversation: CacheKey,
    /// Of those backends, the ones that its conversation is spread over: one, unless it is asked very often itself.
    pub conversation_backends: u32,
    /// The number of the request among those of its conversation.
    pub number: u32,
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A backend's share of the traffic of its tier, relative to the other backends there; 1 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(NonZeroU16);

impl Weight {
    /// The largest weight. It limits the number of slots in the round-robin wheel.
    pub const MAX: u16 = 1000;
    /// The default weight of a backend.
    pub const ONE: Self = Self(NonZeroU16::MIN);

    /// A weight of 1 to [`Weight::MAX`]; `None` for other numbers.
    pub fn new(weight: u16) -> Option<Self> {
        NonZeroU16::new(weight).filter(|w| w.get() <= Self::MAX).map(Self)
    }

    /// The weight as a number.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

/// A group of backends of a deployment. Tier 1 is used first; higher ones take over when it is
/// unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tier(NonZeroU16);

impl Tier {
    /// The default tier of a backend.
    pub const FIRST: Self = Self(NonZeroU16::MIN);

    /// The tier that takes over from this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// A tier of 1 or above; `None` for 0.
    pub fn new(tier: u16) -> Option<Self> {
        NonZeroU16::new(tier).map(Self)
    }

    /// The tier as a number.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deployment_names_are_checked_and_compare_without_case() {
        for good in ["gpt-4o", "GPT_4.1", "a", &"x".repeat(64)] {
            assert!(DeploymentName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a/b", "ä", "a%2f", &"x".repeat(65)] {
            assert_eq!(DeploymentName::parse(bad), Err(DeploymentNameError), "{bad}");
        }
        assert_eq!(DeploymentName::parse("GPT-4o"), DeploymentName::parse("gpt-4O"));
    }

    #[test]
    fn deployment_names_are_sorted_without_case() {
        let name = |name: &str| DeploymentName::parse(name).unwrap();
        for (one, other, expected) in [
            ("GPT-4o", "gpt-4O", Ordering::Equal),
            ("a", "B", Ordering::Less),
            ("B", "a", Ordering::Greater),
            ("a", "Ab", Ordering::Less),
        ] {
            assert_eq!(name(one).cmp(&name(other)), expected, "{one} {other}");
        }
    }

    #[test]
    fn weights_and_tiers_start_at_one() {
        assert_eq!((Weight::new(0), Weight::new(1001), Tier::new(0)), (None, None, None));
        assert_eq!(Weight::new(1), Some(Weight::ONE));
    }
}
