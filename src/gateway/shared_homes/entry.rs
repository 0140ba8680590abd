//! What all instances know of an object: the form of keys and values on the server.
//!
//! Keys are hashes that are the same on all instances, and from which no id can be told: ids are long and random. A
//! value is `1;MADE_AT;LAGS;OWNER;RESOURCE`: the version, when it was made in Unix seconds (empty: not known), `1` if it
//! is of a kind that cannot be read at once, the hash of the client that made it (empty: not known), and the name of its
//! resource, which may contain anything.

use std::time::Duration;

use openssl::sha::Sha256;

/// The version of a value.
const VERSION: &str = "1";
/// So much of a hash is used: 128 bits.
const HASH_BYTES: usize = 16;
/// A longer name of a resource is not read.
const MAX_RESOURCE_BYTES: usize = 512;

/// The hash of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SharedKey([u8; HASH_BYTES]);

/// The hash of the name of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SharedOwner([u8; HASH_BYTES]);

/// What is known of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedHome {
    /// The name of the resource that has it.
    pub resource: String,
    /// The client that made it; `None` if that is unknown or the client has no name.
    pub owner: Option<SharedOwner>,
    /// When it was made through a balancer, in Unix seconds.
    pub made_at: Option<u32>,
    /// Whether it cannot be read for a while after `made_at`.
    pub lags: bool,
}

/// What is to be written.
#[derive(Debug)]
pub(super) enum SharedChange {
    /// The object lives here, as was learned now; for so long.
    Learned { key: SharedKey, home: SharedHome, lifetime: Duration },
    /// It is gone.
    Forgotten(SharedKey),
}

impl SharedKey {
    /// The key of an id.
    pub fn of(id: &[u8]) -> Self {
        Self(hash("id", id))
    }

    /// The end of the key on the server.
    pub(super) fn to_text(self) -> String {
        format!("home:{}", to_hex(&self.0))
    }
}

impl SharedOwner {
    /// The hash of this name.
    pub fn of(client: &str) -> Self {
        Self(hash("client", client.as_bytes()))
    }

    /// A number that stands for this client where it is not in the configuration.
    pub fn to_u32(self) -> u32 {
        self.0.iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte))
    }
}

impl SharedHome {
    pub(super) fn to_text(&self) -> String {
        let made_at = self.made_at.map(|made_at| made_at.to_string()).unwrap_or_default();
        let owner = self.owner.map(|owner| to_hex(&owner.0)).unwrap_or_default();
        format!("{VERSION};{made_at};{};{owner};{}", u8::from(self.lags), self.resource)
    }

    /// `None` if it is not understood: another version may have written it.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(bytes).ok()?.splitn(5, ';');
        if parts.next()? != VERSION {
            return None;
        }
        let made_at = match parts.next()? {
            "" => None,
            made_at => Some(made_at.parse().ok()?),
        };
        let lags = match parts.next()? {
            "0" => false,
            "1" => true,
            _ => return None,
        };
        let owner = match parts.next()? {
            "" => None,
            owner => Some(SharedOwner(from_hex(owner)?)),
        };
        let resource = parts.next().filter(|name| !name.is_empty() && name.len() <= MAX_RESOURCE_BYTES)?;
        Some(Self { resource: resource.to_owned(), owner, made_at, lags })
    }
}

/// The purpose is hashed as well: the hash of a client is never that of an id.
fn hash(purpose: &str, text: &[u8]) -> [u8; HASH_BYTES] {
    let mut hasher = Sha256::new();
    hasher.update(b"aoai-lb ");
    hasher.update(purpose.as_bytes());
    hasher.update(b"\0");
    hasher.update(text);
    let digest = hasher.finish();
    std::array::from_fn(|index| digest.get(index).copied().unwrap_or_default())
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; HASH_BYTES]> {
    let is_hex = text.len() == 2 * HASH_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten()?;
    Some(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_read_as_it_was_written() {
        for home in [
            SharedHome { resource: "a;b:443".to_owned(), owner: None, made_at: None, lags: false },
            SharedHome {
                resource: "east".to_owned(),
                owner: Some(SharedOwner::of("team-a")),
                made_at: Some(1_795_420_800),
                lags: true,
            },
        ] {
            assert_eq!(SharedHome::parse(home.to_text().as_bytes()), Some(home));
        }
    }

    #[test]
    fn what_is_not_understood_is_unknown() {
        for text in [
            "",
            "1",
            "2;;0;;east",
            "1;x;0;;east",
            "1;-1;0;;east",
            "1;99999999999;0;;east",
            "1;;2;;east",
            "1;;0;abc;east",
            "1;;0;+123456789abcdef0123456789abcdef;east",
            "1;;0;;",
            "1;;0",
        ] {
            assert_eq!(SharedHome::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(SharedHome::parse(b"1;;0;;\xff"), None);
        assert_eq!(SharedHome::parse(format!("1;;0;;{}", "x".repeat(513)).as_bytes()), None);
    }

    #[test]
    fn keys_and_owners_are_the_same_on_all_instances_of_all_versions() {
        assert_eq!(SharedKey::of(b"resp_1").to_text(), "home:684df4952f63f8efc149e9cb3fd5f193");
        assert_ne!(SharedKey::of(b"team-a").0, SharedOwner::of("team-a").0);
        let owner = SharedHome {
            resource: "east".to_owned(),
            owner: Some(SharedOwner::of("team-a")),
            made_at: None,
            lags: false,
        };
        assert_eq!(owner.to_text(), "1;;0;74ad22789ae1355a78b17a0bee5957ce;east");
    }
}
