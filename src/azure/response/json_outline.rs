//! Reduces a JSON object that is too long to be kept, while its bytes pass, to what the record needs of it:
//! its model, service tier, status, error and token counts, wherever they are in it, and how many images or other items it
//! lists. The outline is JSON in turn, so that it is read like a whole body or event.

use memchr::memchr2;

/// The keys whose values are kept, at the top level and in [`OUTLINED_KEYS`]. No text of the response is
/// among them.
const KEPT_KEYS: [&[u8]; 15] = [
    b"type",
    b"object",
    b"model",
    b"service_tier",
    b"status",
    b"usage",
    b"incomplete_details",
    b"choices",
    b"error",
    b"response",
    b"code",
    b"statusCode",
    b"message",
    b"innererror",
    b"inner_error",
];
/// The keys whose values are outlined likewise if they are objects: Responses and realtime events have the
/// response in one, which can contain an error.
const OUTLINED_KEYS: [&[u8]; 2] = [b"response", b"error"];
/// The key, at the top level only, of a list of which an empty object is kept for each object or array in it. Generated
/// images are in such a list.
const LIST_KEY: &[u8] = b"data";
/// How deep outlined objects are nested: an error in a response in an event.
const MAX_OUTLINED_DEPTH: usize = 3;
/// Longest key that is compared.
const MAX_KEY_BYTES: usize = 32;
/// Longest value that is kept. Of a longer string the beginning is kept, of a longer object or array nothing.
const MAX_VALUE_BYTES: usize = 4 * 1024;
/// Longest outline. Later values are not kept.
const MAX_OUTLINE_BYTES: usize = 32 * 1024;

/// An outline of the part of an object that has passed. Like [`find_fields`](crate::azure::json::find_fields)
/// it does not validate, and in broken JSON it has what came before the error.
#[derive(Debug, Default)]
pub(super) struct JsonOutline {
    output: Vec<u8>,
    state: State,
    /// The number of outlined objects that are open.
    open_objects: usize,
    /// The current key, without its quotes and with its escapes, up to [`MAX_KEY_BYTES`].
    key: Vec<u8>,
    value: CurrentValue,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    BeforeObject,
    BeforeKey,
    InKey {
        is_escaped: bool,
    },
    BeforeColon,
    BeforeValue,
    InValue,
    /// The object is complete, and only whitespace follows.
    Complete,
    Broken,
}

/// The value that is passing.
#[derive(Debug, Default)]
struct CurrentValue {
    /// If it is kept: where its key and where itself begins in the output.
    kept_from: Option<(usize, usize)>,
    /// Whether it is the list of [`LIST_KEY`].
    is_list: bool,
    /// The number of its arrays and objects that are open.
    depth: usize,
    is_in_string: bool,
    is_escaped: bool,
}

impl JsonOutline {
    /// Takes the next bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            let is_whitespace = byte.is_ascii_whitespace();
            bytes = match self.state {
                State::InValue => self.feed_value(bytes),
                State::InKey { is_escaped: false } if byte != b'"' => {
                    let plain = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
                    let taken = plain.max(1);
                    let (part, rest) = bytes.split_at_checked(taken).unwrap_or((bytes, &[]));
                    self.push_to_key(part);
                    self.state = State::InKey { is_escaped: plain == 0 };
                    rest
                }
                _ => {
                    self.state = match (self.state, byte) {
                        (State::Broken, _) => return,
                        (State::InKey { is_escaped: true }, _) => {
                            self.push_to_key(&[byte]);
                            State::InKey { is_escaped: false }
                        }
                        (State::InKey { .. }, _) => State::BeforeColon,
                        (state, _) if is_whitespace => state,
                        (State::BeforeObject, b'{') => self.open_object(),
                        (State::BeforeKey, b',') => State::BeforeKey,
                        (State::BeforeKey, b'"') => {
                            self.key.clear();
                            State::InKey { is_escaped: false }
                        }
                        (State::BeforeKey, b'}') => self.close_object(),
                        (State::BeforeColon, b':') => State::BeforeValue,
                        (State::BeforeValue, b'{') if self.is_key_outlined() => {
                            self.push_key();
                            self.open_object()
                        }
                        (State::BeforeValue, _) => {
                            self.begin_value(byte);
                            // The value begins with this byte.
                            continue;
                        }
                        _ => State::Broken,
                    };
                    rest
                }
            };
        }
    }

    /// Whether the object is complete, and nothing follows.
    pub(super) fn is_complete(&self) -> bool {
        self.state == State::Complete
    }

    /// The outline of what has passed; empty if that is not an object.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let length = match (self.state, self.value.kept_from) {
            (State::InValue, Some((key_start, _))) => key_start,
            _ => self.output.len(),
        };
        let mut json = self.output.get(..length).unwrap_or_default().to_vec();
        json.extend(std::iter::repeat_n(b'}', self.open_objects));
        json
    }

    /// The number of bytes that are kept.
    pub(super) fn kept_byte_count(&self) -> usize {
        self.output.len()
    }

    fn push_to_key(&mut self, bytes: &[u8]) {
        let room = MAX_KEY_BYTES - self.key.len();
        self.key.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }

    fn is_key_outlined(&self) -> bool {
        self.open_objects < MAX_OUTLINED_DEPTH && OUTLINED_KEYS.contains(&&self.key[..]) && self.has_room()
    }

    fn has_room(&self) -> bool {
        self.output.len() + MAX_KEY_BYTES + MAX_VALUE_BYTES <= MAX_OUTLINE_BYTES
    }

    fn open_object(&mut self) -> State {
        self.output.push(b'{');
        self.open_objects += 1;
        State::BeforeKey
    }

    fn close_object(&mut self) -> State {
        self.output.push(b'}');
        self.open_objects -= 1;
        if self.open_objects == 0 { State::Complete } else { State::BeforeKey }
    }

    fn push_key(&mut self) {
        if self.output.last() != Some(&b'{') {
            self.output.push(b',');
        }
        self.output.push(b'"');
        self.output.extend_from_slice(&self.key);
        self.output.extend_from_slice(b"\":");
    }

    fn begin_value(&mut self, first_byte: u8) {
        let is_list = self.key == LIST_KEY && self.open_objects == 1 && first_byte == b'[';
        self.state = State::InValue;
        self.value = CurrentValue { is_list, ..CurrentValue::default() };
        if (is_list || KEPT_KEYS.contains(&&self.key[..])) && self.has_room() {
            let key_start = self.output.len();
            self.push_key();
            self.value.kept_from = Some((key_start, self.output.len()));
        }
    }

    /// Takes bytes of the value up to its end or the next byte that matters, and returns the rest.
    fn feed_value<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let value = &mut self.value;
        // What is kept of a list in place of the bytes that are taken.
        let mut list_part: &[u8] = b"";
        let (taken, has_ended) = if std::mem::take(&mut value.is_escaped) {
            (1, false)
        } else if value.is_in_string {
            match memchr2(b'"', b'\\', bytes) {
                None => (bytes.len(), false),
                Some(position) => {
                    value.is_escaped = bytes.get(position) == Some(&b'\\');
                    value.is_in_string = value.is_escaped;
                    (position + 1, !value.is_in_string && value.depth == 0)
                }
            }
        } else {
            let is_in_container = value.depth > 0;
            let matters = |byte: &u8| {
                matches!(byte, b'"' | b'{' | b'[' | b'}' | b']')
                    || (!is_in_container && (*byte == b',' || byte.is_ascii_whitespace()))
            };
            match bytes.iter().position(matters) {
                None => (bytes.len(), false),
                Some(position) => match bytes.get(position) {
                    Some(b'"') => {
                        value.is_in_string = true;
                        (position + 1, false)
                    }
                    Some(b'{' | b'[') => {
                        value.depth += 1;
                        list_part = match (value.depth, self.output.last()) {
                            (1, _) => b"[",
                            (2, Some(b'[')) => b"{}",
                            (2, _) => b",{}",
                            _ => b"",
                        };
                        (position + 1, false)
                    }
                    Some(b'}' | b']') if is_in_container => {
                        value.depth -= 1;
                        list_part = if value.depth == 0 { b"]" } else { b"" };
                        (position + 1, value.depth == 0)
                    }
                    // What ends a number or literal is not part of it.
                    _ => (position, true),
                },
            }
        };
        let (part, rest) = bytes.split_at_checked(taken).unwrap_or((bytes, &[]));
        self.keep(if self.value.is_list { list_part } else { part });
        if has_ended {
            self.state = State::BeforeKey;
        }
        rest
    }

    /// Appends a part of a value that is kept.
    fn keep(&mut self, part: &[u8]) {
        let Some((key_start, value_start)) = self.value.kept_from else { return };
        let room = MAX_VALUE_BYTES - (self.output.len() - value_start);
        if part.len() <= room {
            return self.output.extend_from_slice(part);
        }
        self.value.kept_from = None;
        if self.output.get(value_start) != Some(&b'"') {
            return self.output.truncate(key_start);
        }
        self.output.extend_from_slice(part.get(..room).unwrap_or(part));
        let backslashes = self.output.iter().rev().take_while(|byte| **byte == b'\\').count();
        // The closing quote must not be escaped.
        self.output.truncate(self.output.len() - backslashes % 2);
        self.output.push(b'"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn outline_of(json: &str, step: usize) -> (String, bool) {
        let mut outline = JsonOutline::default();
        json.as_bytes().chunks(step).for_each(|chunk| outline.feed(chunk));
        assert!(outline.kept_byte_count() <= MAX_OUTLINE_BYTES);
        (String::from_utf8_lossy(&outline.to_json()).into_owned(), outline.is_complete())
    }

    #[test]
    fn only_what_the_record_needs_is_kept_from_its_own_place() {
        let huge = "A\\\"\\\\{[".repeat(1_000);
        let huge_list = format!("[{}[]]", "0.1,".repeat(5_000));
        let rows = [
            (
                format!(
                    r#"{{"type":"image_generation.completed","b64_json":"{huge}","usage":{{"input_tokens":50}}}}"#
                ),
                r#"{"type":"image_generation.completed","usage":{"input_tokens":50}}"#.to_owned(),
                true,
            ),
            (
                format!(
                    r#" {{ "data" : [{{"model":"x","usage":{{}},"e":{huge_list}}}] , "model" : "ada" , "usage" : null }} "#
                ),
                r#"{"data":[{}],"model":"ada","usage":null}"#.to_owned(),
                true,
            ),
            (
                format!(
                    r#"{{"response":{{"output":{huge_list},"usage":{{"a":[1,{{}}]}},"error":{{"code":"c","x":1}},"tools":[{{"usage":1}}]}},"n":1.5e3,"status":"s"}}"#
                ),
                r#"{"response":{"usage":{"a":[1,{}]},"error":{"code":"c"}},"status":"s"}"#.to_owned(),
                true,
            ),
            // The items of a list at the top level are counted.
            (
                format!(
                    r#"{{"data":[ {{"b64_json":"{huge}"}} , 1, "[{{", [[]], {{"a":[{{}}]}}],"usage":{{"a":1}}}}"#
                ),
                r#"{"data":[{},{},{}],"usage":{"a":1}}"#.to_owned(),
                true,
            ),
            (
                r#"{"data":[],"response":{"data":[{}]},"x":{"data":[{}]}}"#.to_owned(),
                r#"{"data":[],"response":{}}"#.to_owned(),
                true,
            ),
            (r#"{"data":{"a":[1]},"model":"m"}"#.to_owned(), r#"{"model":"m"}"#.to_owned(), true),
            (r#"{"model":"m","data":[{"a":1},{"#.to_owned(), r#"{"model":"m"}"#.to_owned(), false),
            (
                format!(r#"{{"data":[{}{{}}],"model":"m"}}"#, "{},".repeat(5_000)),
                r#"{"model":"m"}"#.to_owned(),
                true,
            ),
            // Text that looks like JSON, in strings.
            (
                r#"{"output":"\"usage\":{\"a\":1}","model":"m\"}{"}"#.to_owned(),
                r#"{"model":"m\"}{"}"#.to_owned(),
                true,
            ),
            (
                r#"{"error":null,"response":null,"choices":[ ]}"#.to_owned(),
                r#"{"error":null,"response":null,"choices":[ ]}"#.to_owned(),
                true,
            ),
            ("{}".to_owned(), "{}".to_owned(), true),
            // Too long, cut, broken or not an object.
            (
                format!(r#"{{"usage":{huge_list},"message":"{}","model":"m"}}"#, "x".repeat(5_000)),
                format!(r#"{{"message":"{}","model":"m"}}"#, "x".repeat(4_095)),
                true,
            ),
            (
                format!(r#"{{"message":"{}"#, "\\\\".repeat(5_000)),
                format!(r#"{{"message":"{}"}}"#, "\\\\".repeat(2_047)),
                false,
            ),
            (
                r#"{"response":{"usage":{"a":1},"model":"m"#.to_owned(),
                r#"{"response":{"usage":{"a":1}}}"#.to_owned(),
                false,
            ),
            (r#"{"model":"m","usage"="#.to_owned(), r#"{"model":"m"}"#.to_owned(), false),
            (r#"{"model":"m"} x"#.to_owned(), r#"{"model":"m"}"#.to_owned(), false),
            (r#"{"\u006dodel":"m","mod\"el":"n"}"#.to_owned(), "{}".to_owned(), true),
            (r#"[{"model":"m"}]"#.to_owned(), String::new(), false),
            (String::new(), String::new(), false),
        ];
        for (json, expected, is_complete) in rows {
            for step in [1, 7, 100_000] {
                assert_eq!(outline_of(&json, step), (expected.clone(), is_complete), "{json:.100}");
            }
        }
    }

    #[test]
    fn the_outline_of_hostile_json_is_bounded() {
        let repeated =
            format!("{{{}\"x\":1}}", r#""response":{"error":{"message":"xxxxxxxxx"}},"#.repeat(10_000));
        assert!(outline_of(&repeated, 1_000).1);
        let nested = r#"{"response":"#.repeat(10_000);
        assert!(!outline_of(&nested, 1_000).1);
        let long_key = format!("{{\"{}\":1}}", "model".repeat(10_000));
        assert_eq!(outline_of(&long_key, 1_000), ("{}".to_owned(), true));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<i32>().prop_map(Value::from),
            r#"["\\\[\]{}:,ab\né]{0,6}"#.prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec(("usage|model|service_tier|response|error|data|type", inner), 0..5)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    fn expected_outline(object: &serde_json::Map<String, Value>, depth: usize) -> Value {
        let is_list = |key: &str, value: &Value| key.as_bytes() == LIST_KEY && depth == 1 && value.is_array();
        let outlined =
            object.iter().filter(|(key, value)| KEPT_KEYS.contains(&key.as_bytes()) || is_list(key, value));
        Value::Object(
            outlined
                .map(|(key, value)| match value {
                    Value::Array(items) if is_list(key, value) => {
                        let items = items.iter().filter(|item| item.is_object() || item.is_array());
                        (key.clone(), items.map(|_| json!({})).collect())
                    }
                    Value::Object(inner)
                        if OUTLINED_KEYS.contains(&key.as_bytes()) && depth < MAX_OUTLINED_DEPTH =>
                    {
                        (key.clone(), expected_outline(inner, depth + 1))
                    }
                    value => (key.clone(), value.clone()),
                })
                .collect(),
        )
    }

    proptest! {
        #[test]
        fn an_outline_has_the_values_of_the_object(value in any_json(), pretty: bool, step in 1_usize..20) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let (outline, is_complete) = outline_of(&text, step);
            prop_assert_eq!(is_complete, value.is_object());
            if let Some(object) = value.as_object() {
                prop_assert_eq!(serde_json::from_str::<Value>(&outline).unwrap(), expected_outline(object, 1));
            }
        }

        #[test]
        fn chunk_boundaries_change_nothing(json in r#"(\{|\}|\[|\]|"|"usage"|"response"|"model"|:|,| |\\|1|x|é){0,30}"#, step in 1_usize..10) {
            prop_assert_eq!(outline_of(&json, step), outline_of(&json, 1_000));
        }
    }
}
