//! Images, audio and files inside a JSON body: data URLs and other long base64, which have few tokens for their length.

use memchr::memchr;
use memchr::memmem::Finder;

/// What a piece of embedded data counts as, in bytes of text: some thousand tokens, as a large image has.
const COUNTED_BYTES: u64 = 4096;
/// Shorter strings are text.
pub const MIN_DATA_BYTES: usize = 8 * 1024;

/// The length of a body with every long base64 string in it counted as a few thousand bytes.
pub fn bytes_without_embedded_data(body: &[u8]) -> u64 {
    let mut total = body.len() as u64;
    let marker = Finder::new("base64,");
    let mut rest = body;
    while let Some(start) = marker.find(rest) {
        rest = rest.get(start..).unwrap_or_default();
        let length = memchr(b'"', rest).unwrap_or(rest.len());
        if length >= MIN_DATA_BYTES {
            total = total.saturating_sub((length as u64).saturating_sub(COUNTED_BYTES));
        }
        rest = rest.get(length.max(1)..).unwrap_or_default();
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_urls_count_for_less_than_their_length() {
        let image = "A".repeat(1 << 20);
        let plain = r#"{"input":"base64, is a marker"}"#.to_owned();
        let one = format!(r#"{{"url":"data:image/png;base64,{image}"}}"#);
        let two = format!(r#"["data:image/png;base64,{image}","data:audio/wav;base64,{image}"]"#);
        let unfinished = format!(r#"{{"url":"data:image/png;base64,{image}"#);
        for (body, expected) in [
            (String::new(), 0..=0),
            (plain.clone(), plain.len() as u64..=plain.len() as u64),
            (one, 4096..=4200),
            (two, 8192..=8400),
            (unfinished, 4096..=4200),
        ] {
            let counted = bytes_without_embedded_data(body.as_bytes());
            assert!(expected.contains(&counted), "{counted}");
        }
    }
}
