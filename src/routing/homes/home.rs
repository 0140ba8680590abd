//! What is remembered of an object: its key, its resource, its maker.

use std::fmt;
use std::num::NonZeroU32;

use siphasher::sip::SipHasher24;

/// The secret that ids and names are hashed with, so that neither memory nor disk tells them and nobody can
/// choose ids that collide. SipHash-2-4 has a fixed definition: what is on disk can be read by later versions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey([u8; Self::LENGTH]);

impl HashKey {
    /// Its length in bytes.
    pub const LENGTH: usize = 16;

    /// A new key.
    pub fn random() -> Self {
        let mut bytes = [0; Self::LENGTH];
        // Fails only if the system has no random numbers at all; TLS would not work either.
        openssl::rand::rand_bytes(&mut bytes).expect("the system has random numbers");
        Self(bytes)
    }

    /// The key with these bytes.
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes, to keep or hand over.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        self.0
    }

    pub(super) fn hash(self, text: &[u8]) -> u64 {
        SipHasher24::new_with_key(&self.0).hash(text)
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("HashKey(…)")
    }
}

/// The keyed hash of an id, or of the beginning of an `encrypted_content`. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(u64);

impl ObjectKey {
    /// The key with this hash.
    pub fn from_hash(hash: u64) -> Self {
        Self(hash.max(1))
    }

    /// The hash.
    pub fn hash(self) -> u64 {
        self.0
    }
}

/// The keyed hash of the name of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceTag(u32);

impl ResourceTag {
    /// The tag with this hash.
    pub fn from_hash(hash: u32) -> Self {
        Self(hash)
    }

    /// The hash.
    pub fn hash(self) -> u32 {
        self.0
    }
}

/// The keyed hash of the name of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerTag(NonZeroU32);

impl OwnerTag {
    /// The tag with this hash; `None` for 0, which stands for no owner where tags are kept.
    pub fn from_hash(hash: u32) -> Option<Self> {
        NonZeroU32::new(hash).map(Self)
    }

    /// The hash; never 0.
    pub fn hash(self) -> u32 {
        self.0.get()
    }

    pub(super) fn from_any_hash(hash: u32) -> Self {
        Self(NonZeroU32::new(hash).unwrap_or(NonZeroU32::MIN))
    }
}

/// Where an object lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// The resource that has it.
    pub resource: ResourceTag,
    /// The client that made it; `None` if that is unknown or the client has no name.
    pub maker: Option<OwnerTag>,
    /// When it was made through this balancer, in Unix seconds; `None` if it was only found on its resource.
    pub made_at: Option<u32>,
    /// Whether it is of a kind that cannot be read for a while after `made_at`: a stored response or an item.
    pub lags: bool,
}

impl Home {
    /// What is remembered after `newer` has been learned about the same object. It lives where it was seen
    /// last; who made it and when is known only to those who saw it made.
    pub(super) fn updated_by(self, newer: Self) -> Self {
        let made = if newer.made_at.is_some() { newer } else { self };
        Self {
            resource: newer.resource,
            maker: newer.maker.or(self.maker),
            made_at: made.made_at,
            lags: made.lags,
        }
    }
}

/// An entry of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredHome {
    /// Of which object.
    pub key: ObjectKey,
    /// Where it lives.
    pub home: Home,
    /// When it was last asked for or learned, in Unix seconds.
    pub used_at: u32,
}

/// A change of the memory, for its log and for the successor. Whoever applies all changes in their order, to
/// any state in between, ends with the same memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The entry is now this.
    Stored(StoredHome),
    /// The object is gone.
    Forgotten(ObjectKey),
}
