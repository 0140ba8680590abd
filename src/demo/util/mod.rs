//! Small helpers that know nothing of Azure: the clock, locks, identifiers, hashes, encodings, JSON.

pub(in crate::demo) mod clock;
pub(in crate::demo) mod encoding;
pub(in crate::demo) mod fernet;
pub(in crate::demo) mod hash;
pub(in crate::demo) mod ids;
pub(in crate::demo) mod json;
pub(in crate::demo) mod locking;
