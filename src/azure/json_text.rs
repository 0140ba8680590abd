//! The text in JSON strings. Everything that reads text decodes it here, and leniently, because a text must
//! not be lost, nor escape redaction, for one broken character: half of a surrogate pair becomes U+FFFD, so
//! do bytes that are not UTF-8, and an escape that JSON does not have stays as it is written.

use std::borrow::Cow;

use memchr::{memchr, memmem};

/// The bytes of a text or of JSON. What is not UTF-8 becomes U+FFFD.
pub fn text_from_bytes(bytes: &[u8]) -> Cow<'_, str> {
    // Checking first is faster than `from_utf8_lossy` alone.
    simdutf8::basic::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// Decodes the content of a JSON string, which is what its quotes enclose. It may be cut anywhere.
pub fn decode_content(content: &str) -> Cow<'_, str> {
    if memchr(b'\\', content.as_bytes()).is_none() {
        return Cow::Borrowed(content);
    }
    let mut text = String::with_capacity(content.len());
    for piece in Pieces(content) {
        match piece.text {
            PieceText::Plain(plain) => text.push_str(plain),
            PieceText::Char(character) => text.push(character),
            PieceText::SurrogateHalf(_) => text.push(char::REPLACEMENT_CHARACTER),
        }
    }
    Cow::Owned(text)
}

/// JSON in which every half of a surrogate pair is replaced by `\ufffd`, so that strict parsers read it.
pub fn replace_surrogate_halves(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let is_surrogate = |escape: usize| matches!(bytes.get(escape + 2), Some(b'd' | b'D'));
    if !memmem::find_iter(bytes, b"\\u").any(is_surrogate) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len());
    let mut position = 0;
    // Outside of its strings, JSON has no backslash.
    for piece in Pieces(json) {
        let end = position + piece.source_bytes;
        out.push_str(match piece.text {
            PieceText::SurrogateHalf(_) => "\\ufffd",
            _ => json.get(position..end).unwrap_or_default(),
        });
        position = end;
    }
    Cow::Owned(out)
}

/// The lengths of the pieces of a string's content before and after decoding, in order. They tell where a
/// place in the content is in the decoded text, and the other way round. Lengths are equal only for text
/// without escapes.
pub fn piece_lengths(content: &str) -> impl Iterator<Item = (usize, usize)> {
    Pieces(content).map(|piece| (piece.source_bytes, piece.text.decoded_bytes()))
}

/// The length of a string's content once it is decoded.
pub fn decoded_length(content: &str) -> usize {
    if memchr(b'\\', content.as_bytes()).is_none() {
        return content.len();
    }
    Pieces(content).map(|piece| piece.text.decoded_bytes()).sum()
}

/// Decodes strings that together are one text, such as the deltas of a stream. A character beyond the BMP can
/// be split: the first half of its surrogate pair ends one string, and the second one begins the next.
#[derive(Debug, Default)]
pub struct ContentJoiner {
    /// The first half of a pair at the end of the last string.
    first_half: Option<u16>,
}

impl ContentJoiner {
    /// Whether the text so far ends with half of a pair.
    pub fn has_pending_half(&self) -> bool {
        self.first_half.is_some()
    }

    /// Decodes the content of the next string.
    pub fn decode_next<'a>(&mut self, content: &'a str) -> Cow<'a, str> {
        if self.first_half.is_none() && memchr(b'\\', content.as_bytes()).is_none() {
            return Cow::Borrowed(content);
        }
        let mut text = String::with_capacity(content.len() + char::REPLACEMENT_CHARACTER.len_utf8());
        for piece in Pieces(content) {
            let first_half = self.first_half.take();
            if let (Some(first), PieceText::SurrogateHalf(second)) = (first_half, &piece.text)
                && let Some(character) = join_surrogates(first, *second)
            {
                text.push(character);
                continue;
            }
            if first_half.is_some() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            match piece.text {
                PieceText::Plain(plain) => text.push_str(plain),
                PieceText::Char(character) => text.push(character),
                PieceText::SurrogateHalf(half) if is_first_half(half) => self.first_half = Some(half),
                PieceText::SurrogateHalf(_) => text.push(char::REPLACEMENT_CHARACTER),
            }
        }
        Cow::Owned(text)
    }
}

/// A piece of the content of a JSON string.
struct Piece<'a> {
    /// Its length in the content.
    source_bytes: usize,
    text: PieceText<'a>,
}

enum PieceText<'a> {
    Plain(&'a str),
    /// From an escape, or from the two of a surrogate pair.
    Char(char),
    /// Half of a surrogate pair, without its other half.
    SurrogateHalf(u16),
}

impl PieceText<'_> {
    fn decoded_bytes(&self) -> usize {
        match self {
            Self::Plain(plain) => plain.len(),
            Self::Char(character) => character.len_utf8(),
            Self::SurrogateHalf(_) => char::REPLACEMENT_CHARACTER.len_utf8(),
        }
    }
}

/// Splits what remains of a content into pieces.
struct Pieces<'a>(&'a str);

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = match memchr(b'\\', self.0.as_bytes()) {
            Some(0) => read_escape(self.0),
            end => Piece::plain(self.0, end.unwrap_or(self.0.len())),
        };
        self.0 = self.0.get(piece.source_bytes..)?;
        (piece.source_bytes > 0).then_some(piece)
    }
}

impl<'a> Piece<'a> {
    fn plain(content: &'a str, source_bytes: usize) -> Self {
        Self { source_bytes, text: PieceText::Plain(content.get(..source_bytes).unwrap_or_default()) }
    }
}

/// The escape at the start of `content` (RFC 8259, section 7). If it is none, the backslash stands for itself.
fn read_escape(content: &str) -> Piece<'_> {
    let simple = |character| Piece { source_bytes: 2, text: PieceText::Char(character) };
    match content.as_bytes().get(1) {
        Some(byte @ (b'"' | b'\\' | b'/')) => simple(char::from(*byte)),
        Some(b'b') => simple('\u{8}'),
        Some(b'f') => simple('\u{c}'),
        Some(b'n') => simple('\n'),
        Some(b'r') => simple('\r'),
        Some(b't') => simple('\t'),
        Some(b'u') => match read_unicode_escape(content.as_bytes()) {
            Some(unit) => match char::from_u32(unit.into()) {
                Some(character) => Piece { source_bytes: 6, text: PieceText::Char(character) },
                None => content
                    .as_bytes()
                    .get(6..)
                    .and_then(read_unicode_escape)
                    .and_then(|second| join_surrogates(unit, second))
                    .map_or(Piece { source_bytes: 6, text: PieceText::SurrogateHalf(unit) }, |character| {
                        Piece { source_bytes: 12, text: PieceText::Char(character) }
                    }),
            },
            None => Piece::plain(content, 1),
        },
        _ => Piece::plain(content, 1),
    }
}

/// The code unit of the `\u` escape with four digits at the start of `bytes`.
fn read_unicode_escape(bytes: &[u8]) -> Option<u16> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0_u16, |unit, digit| {
        Some(unit << 4 | u16::try_from(char::from(*digit).to_digit(16)?).ok()?)
    })
}

fn is_first_half(unit: u16) -> bool {
    (0xd800..0xdc00).contains(&unit)
}

/// The character of a surrogate pair.
fn join_surrogates(first: u16, second: u16) -> Option<char> {
    char::decode_utf16([first, second]).next()?.ok().filter(|_| is_first_half(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn broken_characters_and_escapes_cost_no_other_text() {
        for (content, text) in [
            ("", ""),
            ("plain é", "plain é"),
            (r#"\"\\\/\b\f\n\r\t\u0041\u00fc"#, "\"\\/\u{8}\u{c}\n\r\tAü"),
            (r"\ud83d\ude00\uD83D\uDE00", "😀😀"),
            (r"a\ud83d", "a\u{fffd}"),
            (r"\ude00b", "\u{fffd}b"),
            (r"\ude00\ud83d", "\u{fffd}\u{fffd}"),
            (r"\ud83d\ud83d\ude00", "\u{fffd}😀"),
            (r"\ud83d\n\ude00", "\u{fffd}\n\u{fffd}"),
            (r"\ud83d\u0041", "\u{fffd}A"),
            // No escapes of JSON, and escapes that are cut.
            (r"\d+\xé", r"\d+\xé"),
            (r"\u00g1", r"\u00g1"),
            (r"\u+0f1", r"\u+0f1"),
            (r"cut \u00f", r"cut \u00f"),
            (r"cut \", r"cut \"),
            (r"\ud83d\ude0", "\u{fffd}\\ude0"),
            (r"\ué", r"\ué"),
        ] {
            assert_eq!(decode_content(content), text, "{content}");
        }
        assert_eq!(text_from_bytes(b"a\xffb\"\xf0\x9f\"c"), "a\u{fffd}b\"\u{fffd}\"c");
    }

    #[test]
    fn halves_of_a_character_are_joined_across_strings() {
        for (contents, texts, has_pending_half) in [
            (&[r"a\ud83d", r"\ude00b"][..], &["a", "😀b"][..], false),
            (&[r"a\ud83d", "", r"\ude00"], &["a", "", "😀"], false),
            (&[r"a\ud83d", "b"], &["a", "\u{fffd}b"], false),
            (&[r"\ud83d", r"\ud83d\ude00"], &["", "\u{fffd}😀"], false),
            (&[r"\ud83d", r"\ud83d", r"\ude00"], &["", "\u{fffd}", "😀"], false),
            (&["a", r"\ude00b"], &["a", "\u{fffd}b"], false),
            (&["a", r"b\ud83d"], &["a", "b"], true),
        ] {
            let mut joiner = ContentJoiner::default();
            let decoded: Vec<_> = contents.iter().map(|content| joiner.decode_next(content)).collect();
            assert_eq!(decoded, texts, "{contents:?}");
            assert_eq!(joiner.has_pending_half(), has_pending_half, "{contents:?}");
        }
    }

    #[test]
    fn only_halves_of_a_pair_are_replaced_in_json() {
        for (json, expected) in [
            (r#"["\ud83d\ude00","\n"]"#, r#"["\ud83d\ude00","\n"]"#),
            (r#"["a\ud83d","\uDE00b"]"#, r#"["a\ufffd","\ufffdb"]"#),
            (r#"["\\ud83d"]"#, r#"["\\ud83d"]"#),
        ] {
            assert_eq!(replace_surrogate_halves(json), expected);
        }
    }

    proptest! {
        #[test]
        fn what_serde_json_decodes_is_decoded_alike(content in r#"(\\["\\/bfnrt]|\\u(00[0-9a-f]{2}|d83d|DE00|d800)|[a-zé😀]){0,8}"#) {
            let decoded = decode_content(&content);
            match serde_json::from_str::<String>(&format!("\"{content}\"")) {
                Ok(text) => prop_assert_eq!(decoded, text),
                Err(_) => prop_assert!(decoded.contains(char::REPLACEMENT_CHARACTER)),
            }
        }

        #[test]
        fn a_text_may_be_split_between_any_two_escapes(pieces in proptest::collection::vec(r#"\\n|\\u00e9|\\ud83d|\\ude00|[a-z]|"#, 0..12)) {
            let mut joiner = ContentJoiner::default();
            let mut text: String = pieces.iter().map(|content| joiner.decode_next(content).into_owned()).collect();
            text.extend(joiner.has_pending_half().then_some(char::REPLACEMENT_CHARACTER));
            let whole = pieces.concat();
            prop_assert_eq!(text, decode_content(&whole));
        }

        #[test]
        fn any_content_is_decoded_and_its_pieces_cover_it(content in r#"(\\|\\u|[0-9a-fdD]|\\ud83d|\\ude00|é|"|x){0,20}"#) {
            let decoded = decode_content(&content);
            let (source_bytes, decoded_bytes) = piece_lengths(&content).fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
            prop_assert_eq!((source_bytes, decoded_bytes), (content.len(), decoded.len()));
            let json = format!("\"{content}\"");
            if serde_json::from_str::<&serde_json::value::RawValue>(&json).is_ok() {
                let replaced = replace_surrogate_halves(&json);
                prop_assert_eq!(serde_json::from_str::<String>(&replaced).unwrap(), decoded);
            }
        }
    }
}
