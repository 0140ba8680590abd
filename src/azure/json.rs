//! Reads single values out of JSON without building a document: the raw text of some keys of an object,
//! the items of an array, a string. Everything else is skipped in linear time and without recursion, so
//! that deep nesting cannot overflow the stack.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::json_keys::KeySet;
use super::json_scan::{end_of_container, end_of_string};
use super::json_text::decode_content;
use super::json_validator::{JsonValidator, KeyPath, ObjectVisitor, WantedDepths};

/// The values that an object has under the requested keys.
pub(super) struct ObjectFields<'a, const N: usize> {
    /// The raw text of each value, without surrounding whitespace. Of a repeated key, the last value.
    pub(super) values: [Option<&'a str>; N],
    /// Which keys are repeated.
    pub(super) is_repeated: [bool; N],
    /// Whether the object has no keys.
    pub(super) is_empty_object: bool,
}

/// Parses an object and returns the values of the given keys. Keys are compared unescaped and without
/// case: some servers read `Model` as `model`, and a request must not be able to name one deployment to
/// this balancer and another one to the backend.
///
/// # Errors
/// Invalid JSON. The category is `Data` if `json` is valid but not an object.
pub(super) fn parse_fields<'a, const N: usize>(
    json: &'a [u8],
    keys: &KeySet<N>,
) -> serde_json::Result<ObjectFields<'a, N>> {
    parse_and_locate_fields(json, keys, &const { KeySet::new([]) }, &mut NoKeys).map(|(fields, [])| fields)
}

/// Is told the keys of a body while its fields are read.
pub(super) trait KeyVisitor: Default {
    /// A top-level key that is not one of the fields', decoded, and where its value begins. Returns at which depths
    /// inside of it keys are wanted.
    fn on_key(&mut self, key: &[u8], value_offset: usize) -> WantedDepths;

    /// Whether a key inside of the value of the last key is wanted. It may have escapes.
    fn wants_inner_key(&self, key: &[u8]) -> bool;

    /// A key at a wanted depth. It is wanted, or it is written with escapes.
    fn on_inner_key(&mut self, path: &KeyPath<'_>);
}

/// Wants no keys.
#[derive(Default)]
struct NoKeys;

impl KeyVisitor for NoKeys {
    fn on_key(&mut self, _: &[u8], _: usize) -> WantedDepths {
        WantedDepths::NONE
    }

    fn wants_inner_key(&self, _: &[u8]) -> bool {
        false
    }

    fn on_inner_key(&mut self, _: &KeyPath<'_>) {}
}

/// Like [`parse_fields`], and also returns where the values of `located_keys` are and tells `visitor` the keys.
///
/// # Errors
/// As [`parse_fields`].
pub(super) fn parse_and_locate_fields<'a, const N: usize, const M: usize>(
    json: &'a [u8],
    keys: &KeySet<N>,
    located_keys: &KeySet<M>,
    visitor: &mut impl KeyVisitor,
) -> serde_json::Result<(ObjectFields<'a, N>, [Option<Range<usize>>; M])> {
    let mut collector = FieldCollector::new(json, keys, located_keys, visitor);
    let valid = JsonValidator::validate(json, &mut collector);
    if valid.is_some() && collector.is_utf8 {
        return Ok((collector.fields, collector.ranges));
    }
    // The validator rejects some valid JSON as well. serde_json decides, and its error names the
    // position.
    let mut parser = serde_json::Deserializer::from_slice(json);
    let fields = parser.deserialize_map(FieldsVisitor(keys))?;
    parser.end()?;
    *visitor = Default::default();
    let mut collector = FieldCollector::new(json, keys, located_keys, visitor);
    // It cannot fail, since serde_json has accepted the object.
    let _ = JsonValidator::visit_known_valid(json, &mut collector);
    Ok((fields, collector.ranges))
}

/// Collects what [`parse_and_locate_fields`] returns.
struct FieldCollector<'a, 'k, V, const N: usize, const M: usize> {
    json: &'a [u8],
    keys: &'k KeySet<N>,
    located_keys: &'k KeySet<M>,
    visitor: &'k mut V,
    fields: ObjectFields<'a, N>,
    ranges: [Option<Range<usize>>; M],
    /// Whether the values of all `keys` are UTF-8.
    is_utf8: bool,
    /// The key whose value passes, if it is wanted.
    current: Option<CurrentKey>,
}

/// A wanted key by its index.
#[derive(Clone, Copy)]
enum CurrentKey {
    Field(usize),
    Located(usize),
}

impl<'a, 'k, V, const N: usize, const M: usize> FieldCollector<'a, 'k, V, N, M> {
    fn new(json: &'a [u8], keys: &'k KeySet<N>, located_keys: &'k KeySet<M>, visitor: &'k mut V) -> Self {
        let (fields, ranges) = (ObjectFields::new(), [const { None }; M]);
        Self { json, keys, located_keys, visitor, fields, ranges, is_utf8: true, current: None }
    }
}

impl<'a, V: KeyVisitor, const N: usize, const M: usize> ObjectVisitor<'a>
    for FieldCollector<'a, '_, V, N, M>
{
    fn on_key(&mut self, key: &[u8], value_offset: usize) -> WantedDepths {
        self.fields.is_empty_object = false;
        if let Some(index) = self.keys.index_of(key) {
            self.current = Some(CurrentKey::Field(index));
            return WantedDepths::NONE;
        }
        self.current = self.located_keys.index_of(key).map(CurrentKey::Located);
        self.visitor.on_key(key, value_offset)
    }

    #[inline]
    fn wants_inner_key(&self, key: &[u8]) -> bool {
        self.visitor.wants_inner_key(key)
    }

    fn on_inner_key(&mut self, path: &KeyPath<'_>) {
        self.visitor.on_inner_key(path);
    }

    fn on_value(&mut self, value: &'a [u8]) {
        match self.current {
            None => {}
            Some(CurrentKey::Field(index)) => match simdutf8::basic::from_utf8(value) {
                Ok(value) => self.fields.record_found_value(index, value),
                Err(_) => self.is_utf8 = false,
            },
            Some(CurrentKey::Located(index)) => {
                if let Some(range) = self.ranges.get_mut(index) {
                    *range = Some(subslice_range(self.json, value));
                }
            }
        }
    }
}

/// Where `part`, which must be a slice of `whole`, is in `whole`.
pub(super) fn subslice_range(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
    start..start + part.len()
}

impl<'a, const N: usize> ObjectFields<'a, N> {
    fn new() -> Self {
        Self { values: [None; N], is_repeated: [false; N], is_empty_object: true }
    }

    /// Records a value of the key with this index.
    fn record_found_value(&mut self, index: usize, raw: &'a str) {
        if let (Some(value), Some(repeated)) = (self.values.get_mut(index), self.is_repeated.get_mut(index)) {
            *repeated = value.is_some();
            *value = Some(raw);
        }
    }
}

/// The raw values of the given keys, which are compared exactly, of the object at the start of `json`.
/// The JSON is not validated. This is for responses and events of Azure, where validation would cost
/// more than forwarding. In broken JSON it finds the values before the error, or fewer.
pub(super) fn find_fields<'a, const N: usize>(json: &'a str, keys: &[&str; N]) -> [Option<&'a str>; N] {
    let mut values = [None; N];
    JsonCursor::new(json).walk_object(|key, cursor| {
        let index = keys.iter().position(|name| *name == key);
        if let Some(value) = index.and_then(|n| values.get_mut(n)) {
            *value = cursor.next_value();
        }
    });
    values
}

/// Calls `on_item` with the raw text of each item of the array at the start of `json`. Does nothing if
/// it is not an array. Like [`find_fields`], it does not validate.
pub(super) fn for_each_array_item<'a>(json: &'a str, mut on_item: impl FnMut(&'a str)) {
    JsonCursor::new(json).walk_array(|cursor| {
        if let Some(item) = cursor.next_value() {
            on_item(item);
        }
    });
}

/// Walks once through JSON that is not validated. Values that the caller does not read are skipped.
pub(super) struct JsonCursor<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> JsonCursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, position: 0 }
    }

    /// Calls `on_pair` with the raw key of each pair of an object. `on_pair` may read the value with the
    /// cursor. Returns whether there was an object with a closing brace.
    pub(super) fn walk_object(&mut self, mut on_pair: impl FnMut(&'a str, &mut Self)) -> bool {
        self.walk_elements(b'{', b'}', |cursor| {
            let key_start = cursor.position + 1;
            if cursor.peek_byte() != Some(b'"') {
                return false;
            }
            let Some(key_end) = end_of_string(cursor.text.as_bytes(), cursor.position) else { return false };
            cursor.position = key_end;
            cursor.skip_while(|b| b == b':' || b.is_ascii_whitespace());
            let value_start = cursor.position;
            let Some(key) = cursor.text.get(key_start..key_end - 1) else { return false };
            on_pair(key, cursor);
            cursor.position > value_start || cursor.next_value().is_some()
        })
    }

    /// Calls `on_item` at each item of an array. `on_item` may read the item with the cursor. Returns
    /// whether there was an array with a closing bracket.
    pub(super) fn walk_array(&mut self, mut on_item: impl FnMut(&mut Self)) -> bool {
        self.walk_elements(b'[', b']', |cursor| {
            let start = cursor.position;
            on_item(cursor);
            cursor.position > start || cursor.next_value().is_some()
        })
    }

    fn walk_elements(&mut self, open: u8, close: u8, mut on_element: impl FnMut(&mut Self) -> bool) -> bool {
        self.skip_while(|b| b.is_ascii_whitespace());
        if self.peek_byte() != Some(open) {
            return false;
        }
        self.position += 1;
        loop {
            self.skip_while(|b| b == b',' || b.is_ascii_whitespace());
            if self.peek_byte() == Some(close) {
                self.position += 1;
                return true;
            }
            if !on_element(self) {
                return false;
            }
        }
    }

    /// Reads a value and returns its raw text.
    pub(super) fn next_value(&mut self) -> Option<&'a str> {
        let (bytes, start) = (self.text.as_bytes(), self.position);
        match self.peek_byte()? {
            b'"' => self.position = end_of_string(bytes, start)?,
            b'{' | b'[' => self.position = end_of_container(bytes, start)?,
            _ => self.skip_while(|b| !matches!(b, b',' | b'}' | b']' | b':') && !b.is_ascii_whitespace()),
        }
        self.text.get(start..self.position).filter(|value| !value.is_empty())
    }

    /// Whether only whitespace follows.
    pub(super) fn has_only_whitespace_left(&mut self) -> bool {
        self.skip_while(|b| b.is_ascii_whitespace());
        self.position == self.text.len()
    }

    fn peek_byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.position).copied()
    }

    fn skip_while(&mut self, is_skipped: impl Fn(u8) -> bool) {
        while self.peek_byte().is_some_and(&is_skipped) {
            self.position += 1;
        }
    }
}

/// Decodes a JSON string, leniently. `None` for any other value.
pub(super) fn decode_string(raw: &str) -> Option<Cow<'_, str>> {
    string_content(raw).map(decode_content)
}

/// What the quotes of a JSON string enclose, still escaped. `None` for any other value.
pub(super) fn string_content(raw: &str) -> Option<&str> {
    raw.strip_prefix('"')?.strip_suffix('"')
}

/// Decodes a JSON string, or returns a JSON number as it is written. `None` for any other value.
pub(super) fn decode_string_or_number(raw: &str) -> Option<Cow<'_, str>> {
    match raw.as_bytes().first()? {
        b'"' => decode_string(raw),
        b'-' | b'0'..=b'9' => Some(Cow::Borrowed(raw)),
        _ => None,
    }
}

/// Decodes a JSON string. `None` if it is empty or if `raw` is another value.
pub(super) fn decode_non_empty_string(raw: Option<&str>) -> Option<Cow<'_, str>> {
    non_empty_string_content(raw).map(decode_content)
}

/// What the quotes of a JSON string enclose, still escaped. `None` if that is nothing or if `raw` is another
/// value.
pub(super) fn non_empty_string_content(raw: Option<&str>) -> Option<&str> {
    string_content(raw?).filter(|content| !content.is_empty())
}

/// Appends `text` to `out` as a JSON string.
pub(super) fn push_json_string(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some(position) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
        let (plain, from_special) = rest.split_at(position);
        out.push_str(plain);
        let mut chars = from_special.chars();
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

struct FieldsVisitor<'k, const N: usize>(&'k KeySet<N>);

impl<'de, const N: usize> Visitor<'de> for FieldsVisitor<'_, N> {
    type Value = ObjectFields<'de, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = ObjectFields::new();
        while let Some(index) = map.next_key_seed(KeyIndexSeed(self.0))? {
            fields.is_empty_object = false;
            match index {
                Some(index) => fields.record_found_value(index, map.next_value::<&'de RawValue>()?.get()),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(fields)
    }
}

struct KeyIndexSeed<'k, const N: usize>(&'k KeySet<N>);

impl<'de, const N: usize> DeserializeSeed<'de> for KeyIndexSeed<'_, N> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl<const N: usize> Visitor<'_> for KeyIndexSeed<'_, N> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.index_of(key.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_compared_unescaped_and_without_case() {
        let fields =
            parse_fields(br#" {"a":[1,{"b":2}],"\u0062" : "x", "B":null} "#, &KeySet::new(["b", "c"]))
                .unwrap();
        assert_eq!(fields.values, [Some("null"), None]);
        assert_eq!((fields.is_repeated, fields.is_empty_object), ([true, false], false));
        assert!(parse_fields(b"{}", &KeySet::new(["a"])).unwrap().is_empty_object);
        assert!(parse_fields(b"[]", &KeySet::new(["a"])).is_err());
        assert!(parse_fields(b"{} x", &KeySet::new(["a"])).is_err());
    }

    #[test]
    fn deep_nesting_is_skipped_without_recursion() {
        let deep = format!(r#"{{"a":{}{},"b":1}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(find_fields(&deep, &["b"]), [Some("1")]);
    }

    #[test]
    fn what_comes_before_the_error_is_found_in_broken_json() {
        assert_eq!(
            find_fields(r#" { "a" : [1,"}\"]",{}] , "b" : 1.5 } x"#, &["a", "b"]),
            [Some(r#"[1,"}\"]",{}]"#), Some("1.5")]
        );
        assert_eq!(find_fields(r#"{"a":1,"b":{"#, &["a", "b"]), [Some("1"), None]);
        assert_eq!(find_fields(r#"[{"a":1}]"#, &["a"]), [None]);
        let mut items = Vec::new();
        for_each_array_item(r#"[1, "a,]" ,[],{"x":[]},nul"#, |item| items.push(item));
        assert_eq!(items, ["1", r#""a,]""#, "[]", r#"{"x":[]}"#, "nul"]);
        let mut values = Vec::new();
        let broken = r#"[{"a":1}, 7, [{"a":2}], { } ,{"a":{"a":3}, "b":0 }, {"a":"#;
        let is_whole = JsonCursor::new(broken).walk_array(|element| {
            let mut value = None;
            if element.walk_object(|key, cursor| value = cursor.next_value().filter(|_| key == "a").or(value))
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
        fn valid_json_is_read_as_serde_json_reads_it(value in any_json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let read = |raw: &str| serde_json::from_str::<serde_json::Value>(raw).unwrap();
            if let Some(object) = value.as_object() {
                let found_values = find_fields(&text, &["a", "b", "c"]).map(|raw| raw.map(read));
                prop_assert_eq!(found_values, ["a", "b", "c"].map(|key| object.get(key).cloned()));
            }
            let mut items = Vec::new();
            for_each_array_item(&text, |item| items.push(read(item)));
            let array = value.as_array().cloned().unwrap_or_default();
            prop_assert_eq!(&items, &array);
            let mut found_values = Vec::new();
            let mut cursor = JsonCursor::new(&text);
            let is_array = cursor.walk_array(|element| {
                let mut b = None;
                if element.walk_object(|key, cursor| if key == "b" { b = cursor.next_value() }) {
                    found_values.push(b.map(read));
                }
            });
            prop_assert_eq!((is_array, !is_array || cursor.has_only_whitespace_left()), (value.is_array(), true));
            let objects = array.iter().filter_map(serde_json::Value::as_object);
            prop_assert_eq!(found_values, objects.map(|object| object.get("b").cloned()).collect::<Vec<_>>());
        }

        #[test]
        fn strings_survive_encoding_and_decoding(text in "\\PC*|[\\x00-\\x7f]*") {
            let mut json = String::new();
            push_json_string(&mut json, &text);
            prop_assert_eq!(decode_string(&json).unwrap(), text);
        }

        #[test]
        fn arbitrary_bytes_never_panic(json in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_fields(&json, &KeySet::new(["model"]));
            let lossy = String::from_utf8_lossy(&json);
            let _ = (decode_string(&lossy), decode_string_or_number(&lossy));
            for_each_array_item(&lossy, |_| {});
            let _ = find_fields(&lossy, &["a"]);
        }
    }
}
