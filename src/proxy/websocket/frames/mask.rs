//! The mask of a client's frames (RFC 6455, section 5.3).

/// Masks a whole payload, or unmasks it.
pub(super) fn apply_mask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_meets_its_byte_of_the_mask() {
        let mask = [0x6d, 0xb6, 0x00, 0x80];
        for length in 0..40 {
            let payload: Vec<u8> = (0..length).collect();
            let expected: Vec<u8> =
                payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
            let mut masked = payload.clone();
            apply_mask(&mut masked, mask);
            assert_eq!(masked, expected);
        }
    }
}
