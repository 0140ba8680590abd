//! The messages that a client sends over a Responses socket: `response.create` begins a turn, every other one is
//! about a turn.
//!
//! A lane (`stream_id`) is one of several conversations on one socket. Azure's documentation does not have lanes yet,
//! so the field can be taken out of a message and put into an event.

use bytes::Bytes;

use crate::azure::json;
use crate::azure::json::JsonCursor;
use crate::azure::json_keys::KeySet;

/// The name of the field that names a lane.
const LANE_FIELD: &str = "stream_id";

/// The fields of a message that decide how it is handled.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SocketMessage {
    /// Whether it is a `response.create`.
    pub is_create: bool,
    /// Its lane; `None` for the only one of a client that has no lanes.
    pub lane: Option<String>,
    /// The response that it is about, of a message that begins no turn.
    pub response_id: Option<String>,
    /// The response that a new one continues.
    pub previous_response_id: Option<String>,
    /// Whether the new response is only kept by the socket (`"store": false`).
    pub is_unstored: bool,
    /// Whether it says which model is meant: by its name, or by an object that may know it.
    pub tells_model: bool,
}

impl SocketMessage {
    /// Reads a message.
    ///
    /// # Errors
    /// It is not a JSON object with a `type`, or a field that decides where it goes is repeated.
    pub fn parse(message: &[u8]) -> Result<Self, SocketMessageError> {
        const KEYS: KeySet<8> = KeySet::new([
            "type",
            LANE_FIELD,
            "response_id",
            "previous_response_id",
            "store",
            "model",
            "conversation",
            "prompt",
        ]);
        let fields = json::parse_fields(message, &KEYS).map_err(|_| SocketMessageError::NotObject)?;
        let [is_type_repeated, is_lane_repeated, is_response_repeated, is_previous_repeated, ..] =
            fields.is_repeated;
        if is_type_repeated || is_lane_repeated || is_response_repeated || is_previous_repeated {
            return Err(SocketMessageError::RepeatedField);
        }
        let [message_type, lane, response_id, previous_response_id, store, model, conversation, prompt] =
            fields.values;
        let text = |raw: Option<&str>| json::decode_non_empty_string(raw).map(std::borrow::Cow::into_owned);
        let message_type = text(message_type).ok_or(SocketMessageError::NoType)?;
        let is_given = |raw: Option<&str>| raw.is_some_and(|raw| raw != "null");
        Ok(Self {
            is_create: message_type == "response.create",
            lane: text(lane),
            response_id: text(response_id),
            previous_response_id: text(previous_response_id),
            is_unstored: store == Some("false"),
            tells_model: [model, previous_response_id, conversation, prompt].into_iter().any(is_given),
        })
    }
}

/// A message that cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketMessageError {
    /// It is not a JSON object.
    #[error("a message must be a JSON object")]
    NotObject,
    /// It has no `type`.
    #[error("a message must have a `type`, such as \"response.create\"")]
    NoType,
    /// Two parsers could read it differently.
    #[error("`type`, `stream_id`, `response_id` and `previous_response_id` must not be repeated")]
    RepeatedField,
}

/// Whether an error complains about the lane of a message.
pub fn mentions_lane(error: &[u8]) -> bool {
    memchr::memmem::find(error, LANE_FIELD.as_bytes()).is_some()
}

/// The message without its lane; as it is if it has none.
pub fn without_lane(message: &Bytes) -> Bytes {
    let Ok(text) = simdutf8::basic::from_utf8(message) else { return message.clone() };
    let (mut kept, mut has_lane) = (String::with_capacity(text.len()), false);
    let is_object = JsonCursor::new(text).walk_object(|key, cursor| {
        let value = cursor.next_value().unwrap_or_default();
        let quoted = format!("\"{key}\"");
        if json::decode_string(&quoted).is_some_and(|key| key.eq_ignore_ascii_case(LANE_FIELD)) {
            has_lane = true;
        } else {
            kept.push(if kept.is_empty() { '{' } else { ',' });
            // As it was written, with its escapes.
            kept.extend(["\"", key, "\":", value]);
        }
    });
    if !is_object || !has_lane {
        return message.clone();
    }
    kept.push_str(if kept.is_empty() { "{}" } else { "}" });
    Bytes::from(kept)
}

/// The event with a lane; as it is if it is no object or has one.
pub fn with_lane(event: &Bytes, lane: &str) -> Bytes {
    let Ok(fields) = json::parse_fields(event, &const { KeySet::new([LANE_FIELD]) }) else {
        return event.clone();
    };
    let Some(brace) = event.iter().position(|byte| *byte == b'{').filter(|_| fields.values == [None]) else {
        return event.clone();
    };
    let mut field = format!("\"{LANE_FIELD}\":");
    json::push_json_string(&mut field, lane);
    if !fields.is_empty_object {
        field.push(',');
    }
    let (start, rest) = event.split_at(brace + 1);
    Bytes::from([start, field.as_bytes(), rest].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn messages_say_what_they_are_about() {
        let parse = |text: &str| SocketMessage::parse(text.as_bytes());
        let create = r#"{"type":"response.create","model":"m","store":false,"previous_response_id":"resp_1","stream_id":"a","input":[]}"#;
        let expected = SocketMessage {
            is_create: true,
            lane: Some("a".to_owned()),
            response_id: None,
            previous_response_id: Some("resp_1".to_owned()),
            is_unstored: true,
            tells_model: true,
        };
        assert_eq!(parse(create), Ok(expected));
        let cancel = parse(r#"{"type":"response.cancel","response_id":"resp_1"}"#).unwrap();
        assert!(!cancel.is_create && cancel.response_id.as_deref() == Some("resp_1"));
        for (text, tells_model) in [
            (r#"{"type":"response.create","prompt":{"id":"pmpt_1"}}"#, true),
            (r#"{"type":"response.create","conversation":"conv_1"}"#, true),
            (r#"{"type":"response.create","input":"hi","model":null}"#, false),
        ] {
            assert_eq!(parse(text).unwrap().tells_model, tells_model, "{text}");
        }
        for (text, error) in [
            ("", SocketMessageError::NotObject),
            ("[]", SocketMessageError::NotObject),
            ("{", SocketMessageError::NotObject),
            ("{}", SocketMessageError::NoType),
            (r#"{"type":7}"#, SocketMessageError::NoType),
            (r#"{"type":"a","Type":"b"}"#, SocketMessageError::RepeatedField),
            (r#"{"type":"a","stream_id":"b","stream_id":"c"}"#, SocketMessageError::RepeatedField),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_lane_is_taken_out_and_put_back() {
        for (message, without) in [
            (
                r#"{"type":"a","stream_id":"x","input":[{"stream_id":"y"}]}"#,
                r#"{"type":"a","input":[{"stream_id":"y"}]}"#,
            ),
            (r#"{ "str\u0065am_id" : "x" , "n": 1.50 }"#, r#"{"n":1.50}"#),
            (r#"{"stream_id":"x"}"#, "{}"),
            ("no JSON", "no JSON"),
        ] {
            assert_eq!(without_lane(&bytes(message)), without, "{message}");
        }
        for (event, with) in [
            (r#"{"type":"a"}"#, r#"{"stream_id":"x\"","type":"a"}"#),
            (" { }", r#" {"stream_id":"x\"" }"#),
            (r#"{"stream_id":"y"}"#, r#"{"stream_id":"y"}"#),
            ("[]", "[]"),
        ] {
            assert_eq!(with_lane(&bytes(event), "x\""), with, "{event}");
        }
    }

    proptest! {
        #[test]
        fn what_is_put_in_can_be_taken_out(lane in ".*", key in "k_[a-z]{1,5}", value in ".*") {
            let event = bytes(&serde_json::json!({"type": "t", (key): value}).to_string());
            let with = with_lane(&event, &lane);
            prop_assert_eq!(SocketMessage::parse(&with).unwrap().lane, Some(lane).filter(|lane| !lane.is_empty()));
            prop_assert_eq!(without_lane(&with), event);
        }

        #[test]
        fn no_bytes_are_too_odd(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = SocketMessage::parse(&message);
            let message = Bytes::from(message);
            let _ = (without_lane(&message), with_lane(&message, "a"));
        }
    }
}
