//! The part of HTTP/1.1 that both the clients and the upstream of the benchmark need.

/// The `content-length` of a request or response head.
pub fn content_length(head: &[u8]) -> Option<usize> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked("content-length:".len())?;
        name.eq_ignore_ascii_case(b"content-length:")
            .then(|| std::str::from_utf8(value).ok()?.trim().parse().ok())
            .flatten()
    })
}
