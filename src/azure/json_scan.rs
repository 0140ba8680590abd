//! Finds the ends of strings, objects and arrays in JSON that is not validated, many bytes at a time.

/// The offset after the closing quote of the string that begins at `start`.
pub(super) fn end_of_string(bytes: &[u8], start: usize) -> Option<usize> {
    let mut position = start + 1;
    loop {
        position += unescaped_prefix_len(bytes.get(position..)?);
        match bytes.get(position)? {
            b'"' => return Some(position + 1),
            b'\\' => position += 2,
            _ => position += 1,
        }
    }
}

/// The offset after the closing bracket of the object or array that begins at `start`.
pub(super) fn end_of_container(bytes: &[u8], start: usize) -> Option<usize> {
    let (mut position, mut depth) = (start, 0_usize);
    loop {
        let is_structural = |byte: &u8| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']');
        position += bytes.get(position..)?.iter().position(is_structural)?;
        match bytes.get(position)? {
            b'"' => {
                position = end_of_string(bytes, position)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            _ => depth -= 1,
        }
        position += 1;
        if depth == 0 {
            return Some(position);
        }
    }
}

/// The number of bytes before the first quote, backslash or control character; the length if there is
/// none.
#[inline]
pub(super) fn unescaped_prefix_len(bytes: &[u8]) -> usize {
    const SHORT_BYTES: usize = 32;
    const BLOCK_BYTES: usize = 128;
    // Most strings are short. Searching eight bytes at a time gives the exact position.
    let (first, rest) = bytes.split_at_checked(SHORT_BYTES).unwrap_or((bytes, &[]));
    let length = unescaped_prefix_len_by_words(first);
    if length < first.len() {
        return length;
    }
    // For long strings, the compiler vectorises this test of a whole block. It does not give the
    // position, so the last block is searched again below.
    let (blocks, _) = rest.as_chunks::<BLOCK_BYTES>();
    let is_plain = |block: &&[u8; BLOCK_BYTES]| {
        let has = |byte: u8| u8::from(byte == b'"') | u8::from(byte == b'\\') | u8::from(byte < b' ');
        block.iter().fold(0, |found, byte| found | has(*byte)) == 0
    };
    let plain_bytes = first.len() + BLOCK_BYTES * blocks.iter().take_while(is_plain).count();
    plain_bytes + bytes.get(plain_bytes..).map_or(0, unescaped_prefix_len_by_words)
}

/// Like [`unescaped_prefix_len`], eight bytes at a time.
fn unescaped_prefix_len_by_words(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH_BITS: u64 = ONES << 7;
    let ends_prefix = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..b' ');
    let (words, rest) = bytes.as_chunks::<8>();
    for (n, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // The classic test for a zero byte in a word. A borrow can only set a wrong bit above the first
        // match, and only the lowest set bit is used.
        let zero_bytes = |word: u64| word.wrapping_sub(ONES) & !word;
        let quote = zero_bytes(word ^ (ONES * u64::from(b'"')));
        let backslash = zero_bytes(word ^ (ONES * u64::from(b'\\')));
        let control = word.wrapping_sub(ONES * u64::from(b' ')) & !word;
        let matches = (quote | backslash | control) & HIGH_BITS;
        if matches != 0 {
            return 8 * n + matches.trailing_zeros() as usize / 8;
        }
    }
    8 * words.len() + rest.iter().position(ends_prefix).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_special_byte_is_found_at_any_position() {
        for length in (0..70).chain(150..180).chain([300]) {
            let mut bytes = vec![b'a'; length];
            assert_eq!(unescaped_prefix_len(&bytes), length);
            for at in 0..length {
                for byte in [b'"', b'\\', 0x1f] {
                    bytes[at] = byte;
                    assert_eq!(unescaped_prefix_len(&bytes), at);
                }
                bytes[at] = 0xe9;
            }
        }
    }
}
