//! Looking into JSON without building it: the raw text of a few keys of an object, the
//! elements of an array, one string. Everything else is skipped over, in linear time and
//! without recursion, so depth and size are bounded only by what the caller hands in.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::json_check::{Scan, plain};

/// What an object says under the keys asked for.
pub(super) struct Fields<'a, const N: usize> {
    /// The raw text of each value, without surrounding blanks; of several, the last.
    pub(super) values: [Option<&'a str>; N],
    /// Which of the keys occur more than once.
    pub(super) repeated: [bool; N],
    /// Whether the object has no key at all.
    pub(super) empty: bool,
}

/// Reads the given keys of the object that `json` is. Keys are compared after unescaping and
/// without case: there are servers that read `Model` as `model`, and what one of two readers
/// takes for a model must not get past the other.
///
/// # Errors
/// The parser's: of category `Data` when `json` is something else than an object.
pub(super) fn probe<'a, const N: usize>(
    json: &'a [u8],
    keys: &[&str; N],
) -> serde_json::Result<Fields<'a, N>> {
    probe_and_find(json, keys, &[]).map(|(fields, [])| fields)
}

/// The same, and where the values of further keys lie, which are not looked at. They are not found in
/// an object that is unusual.
///
/// # Errors
/// As [`probe`].
pub(super) fn probe_and_find<'a, const N: usize, const M: usize>(
    json: &'a [u8],
    keys: &[&str; N],
    further: &[&str; M],
) -> serde_json::Result<(Fields<'a, N>, [Option<Range<usize>>; M])> {
    let mut fields = Fields::none();
    let mut places = [const { None }; M];
    let mut is_text = true;
    let find =
        |keys: &[&str], key: &[u8]| keys.iter().position(|known| known.as_bytes().eq_ignore_ascii_case(key));
    let accepted = Scan::pairs(json, |key, value| {
        fields.empty = false;
        if let Some(place) = find(keys, key) {
            match std::str::from_utf8(value) {
                Ok(value) => fields.note(place, value),
                Err(_) => is_text = false,
            }
        } else if let Some(place) = find(further, key).and_then(|place| places.get_mut(place)) {
            *place = Some(range_of(json, value));
        }
    });
    if accepted.is_some() && is_text {
        return Ok((fields, places));
    }
    // What is unusual, and what is wrong, is for a parser to say.
    let mut parser = serde_json::Deserializer::from_slice(json);
    let fields = parser.deserialize_map(Object(keys))?;
    parser.end()?;
    Ok((fields, [const { None }; M]))
}

/// Where in `whole` a part of it lies.
pub(super) fn range_of(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
    start..start + part.len()
}

impl<'a, const N: usize> Fields<'a, N> {
    fn none() -> Self {
        Self { values: [None; N], repeated: [false; N], empty: true }
    }

    /// Takes note of a value of the key of this place.
    fn note(&mut self, place: usize, found: &'a str) {
        if let (Some(value), Some(repeated)) = (self.values.get_mut(place), self.repeated.get_mut(place)) {
            *repeated = value.is_some();
            *value = Some(found);
        }
    }
}

/// The raw values of the given keys, spelled exactly so, of the object that `json` begins with.
/// Believes that it is JSON: made for what Azure sends, event after event, where checking
/// everything would cost more than forwarding it. In broken JSON it finds some of it or nothing.
pub(super) fn fields<'a, const N: usize>(json: &'a str, keys: &[&str; N]) -> [Option<&'a str>; N] {
    let mut values = [None; N];
    Cursor::new(json).object(|key, cursor| {
        let slot = keys.iter().position(|wanted| *wanted == key);
        if let Some(value) = slot.and_then(|n| values.get_mut(n)) {
            *value = cursor.value();
        }
    });
    values
}

/// Hands the raw text of each element of the array that `json` begins with to `each`, as
/// trustfully as [`fields`]; nothing happens when it is no array.
pub(super) fn each_item<'a>(json: &'a str, mut each: impl FnMut(&'a str)) {
    Cursor::new(json).array(|cursor| {
        if let Some(item) = cursor.value() {
            each(item);
        }
    });
}

/// Walks through JSON that it believes to be some, once: what is not looked at is passed over.
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Hands the key of each pair of an object to `each`, which may walk on over its value. Says
    /// whether there was an object, to its closing brace.
    pub(super) fn object(&mut self, mut each: impl FnMut(&'a str, &mut Self)) -> bool {
        self.elements(b'{', b'}', |cursor| {
            let start = cursor.at + 1;
            if cursor.byte() != Some(b'"') {
                return false;
            }
            let Some(end) = string_end(cursor.text.as_bytes(), cursor.at) else { return false };
            cursor.at = end;
            cursor.skip(|b| b == b':' || b.is_ascii_whitespace());
            let value = cursor.at;
            let Some(key) = cursor.text.get(start..end - 1) else { return false };
            each(key, cursor);
            cursor.at > value || cursor.value().is_some()
        })
    }

    /// Stops at each element of an array, where `each` may walk on over it. Says whether there was an
    /// array, to its closing bracket.
    pub(super) fn array(&mut self, mut each: impl FnMut(&mut Self)) -> bool {
        self.elements(b'[', b']', |cursor| {
            let start = cursor.at;
            each(cursor);
            cursor.at > start || cursor.value().is_some()
        })
    }

    fn elements(&mut self, open: u8, close: u8, mut each: impl FnMut(&mut Self) -> bool) -> bool {
        self.skip(|b| b.is_ascii_whitespace());
        if self.byte() != Some(open) {
            return false;
        }
        self.at += 1;
        loop {
            self.skip(|b| b == b',' || b.is_ascii_whitespace());
            if self.byte() == Some(close) {
                self.at += 1;
                return true;
            }
            if !each(self) {
                return false;
            }
        }
    }

    /// The raw text of a value, which is walked over.
    pub(super) fn value(&mut self) -> Option<&'a str> {
        let (bytes, start) = (self.text.as_bytes(), self.at);
        match self.byte()? {
            b'"' => self.at = string_end(bytes, start)?,
            b'{' | b'[' => self.at = container_end(bytes, start)?,
            _ => self.skip(|b| !matches!(b, b',' | b'}' | b']' | b':') && !b.is_ascii_whitespace()),
        }
        self.text.get(start..self.at).filter(|value| !value.is_empty())
    }

    /// Whether nothing but blanks follows.
    pub(super) fn is_at_end(&mut self) -> bool {
        self.skip(|b| b.is_ascii_whitespace());
        self.at == self.text.len()
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip(&mut self, is_skipped: impl Fn(u8) -> bool) {
        while self.byte().is_some_and(&is_skipped) {
            self.at += 1;
        }
    }
}

/// Where the string that begins at `start` ends, quote included.
pub(super) fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        at += plain(bytes.get(at..)?);
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn container_end(bytes: &[u8], start: usize) -> Option<usize> {
    let (mut at, mut depth) = (start, 0_usize);
    loop {
        let is_of_structure = |byte: &u8| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']');
        at += bytes.get(at..)?.iter().position(is_of_structure)?;
        match bytes.get(at)? {
            b'"' => {
                at = string_end(bytes, at)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            _ => depth -= 1,
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

/// The text of a JSON string; `None` for any other value.
pub(super) fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str::<String>(raw).ok().map(Cow::Owned)
}

/// A JSON string, or a JSON number as it is written; `None` for any other value.
pub(super) fn word(raw: &str) -> Option<Cow<'_, str>> {
    match raw.as_bytes().first()? {
        b'"' => string(raw),
        b'-' | b'0'..=b'9' => Some(Cow::Borrowed(raw)),
        _ => None,
    }
}

/// A JSON string that says something: not empty.
pub(super) fn text(raw: Option<&str>) -> Option<Cow<'_, str>> {
    string(raw?).filter(|text| !text.is_empty())
}

/// Appends `text` to `out` as a JSON string.
pub(super) fn push_string(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        let mut chars = special.chars();
        match chars.next() {
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            Some(c @ ('"' | '\\')) => out.extend(['\\', c]),
            Some(c) => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            None => {}
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
    out.push('"');
}

struct Object<'k, const N: usize>(&'k [&'k str; N]);

impl<'de, const N: usize> Visitor<'de> for Object<'_, N> {
    type Value = Fields<'de, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields::none();
        while let Some(place) = map.next_key_seed(Key(self.0))? {
            fields.empty = false;
            match place {
                Some(place) => fields.note(place, map.next_value::<&'de RawValue>()?.get()),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(fields)
    }
}

struct Key<'k>(&'k [&'k str]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|wanted| wanted.eq_ignore_ascii_case(key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_found_escaped_repeated_and_among_others() {
        let fields = probe(br#" {"a":[1,{"b":2}],"\u0062" : "x", "B":null} "#, &["b", "c"]).unwrap();
        assert_eq!(fields.values, [Some("null"), None]);
        assert_eq!((fields.repeated, fields.empty), ([true, false], false));
        assert!(probe(b"{}", &["a"]).unwrap().empty);
        assert!(probe(b"[]", &["a"]).is_err());
        assert!(probe(b"{} x", &["a"]).is_err());
    }

    #[test]
    fn depth_does_not_matter() {
        let deep = format!(r#"{{"a":{}{},"b":1}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(fields(&deep, &["b"]), [Some("1")]);
    }

    #[test]
    fn broken_json_gives_what_it_can() {
        assert_eq!(
            fields(r#" { "a" : [1,"}\"]",{}] , "b" : 1.5 } x"#, &["a", "b"]),
            [Some(r#"[1,"}\"]",{}]"#), Some("1.5")]
        );
        assert_eq!(fields(r#"{"a":1,"b":{"#, &["a", "b"]), [Some("1"), None]);
        assert_eq!(fields(r#"[{"a":1}]"#, &["a"]), [None]);
        let mut items = Vec::new();
        each_item(r#"[1, "a,]" ,[],{"x":[]},nul"#, |item| items.push(item));
        assert_eq!(items, ["1", r#""a,]""#, "[]", r#"{"x":[]}"#, "nul"]);
        let mut values = Vec::new();
        let broken = r#"[{"a":1}, 7, [{"a":2}], { } ,{"a":{"a":3}, "b":0 }, {"a":"#;
        let is_whole = Cursor::new(broken).array(|element| {
            let mut value = None;
            if element.object(|key, cursor| value = cursor.value().filter(|_| key == "a").or(value))
                || value.is_some()
            {
                values.push(value);
            }
        });
        assert!(!is_whole);
        assert_eq!(values, [Some("1"), None, Some(r#"{"a":3}"#)]);
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<i64>().prop_map(Into::into),
            "[\"\\\\\\[\\]{}:,a-b\u{e9}\n]{0,6}".prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                proptest::collection::vec(("[a-c]", inner), 0..4)
                    .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn good_json_is_read_as_a_parser_reads_it(value in any_json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let read = |raw: &str| serde_json::from_str::<serde_json::Value>(raw).unwrap();
            if let Some(object) = value.as_object() {
                let found = fields(&text, &["a", "b", "c"]).map(|raw| raw.map(read));
                prop_assert_eq!(found, ["a", "b", "c"].map(|key| object.get(key).cloned()));
            }
            let mut items = Vec::new();
            each_item(&text, |item| items.push(read(item)));
            let array = value.as_array().cloned().unwrap_or_default();
            prop_assert_eq!(&items, &array);
            let mut found = Vec::new();
            let mut cursor = Cursor::new(&text);
            let is_array = cursor.array(|element| {
                let mut b = None;
                if element.object(|key, cursor| if key == "b" { b = cursor.value() }) {
                    found.push(b.map(read));
                }
            });
            prop_assert_eq!((is_array, !is_array || cursor.is_at_end()), (value.is_array(), true));
            let objects = array.iter().filter_map(serde_json::Value::as_object);
            prop_assert_eq!(found, objects.map(|object| object.get("b").cloned()).collect::<Vec<_>>());
        }

        #[test]
        fn strings_survive_being_written_and_read(text in "\\PC*|[\\x00-\\x7f]*") {
            let mut json = String::new();
            push_string(&mut json, &text);
            prop_assert_eq!(string(&json).unwrap(), text);
        }

        #[test]
        fn nothing_panics(json in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = probe(&json, &["model"]);
            let lossy = String::from_utf8_lossy(&json);
            let _ = (string(&lossy), word(&lossy));
            each_item(&lossy, |_| {});
            let _ = fields(&lossy, &["a"]);
        }
    }
}
