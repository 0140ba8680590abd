//! Fast hashes. Neither of them is cryptographic.

/// The finishing step of SplitMix64: spreads neighbouring numbers over the whole range of `u64`.
pub(in crate::demo) fn splitmix64(seed: u64) -> u64 {
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// FNV-1a, continued from `seed`.
///
/// The hash is the same in every run, so that what is generated from it can be reproduced.
pub(in crate::demo) fn fnv1a_hash(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
