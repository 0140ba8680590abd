//! Reads the fields of an error in any of Azure's shapes, and looks up what they are known to mean
//! (`known_errors.rs`).

use std::borrow::Cow;

use super::known_errors::{KNOWN_ERRORS, Meaning, Words};
use crate::azure::json;
use crate::azure::json_keys::KeySet;
use crate::azure::json_text::text_from_bytes;

/// The fields of an error that verdicts and records use.
#[derive(Debug, Default)]
pub(in crate::azure) struct ErrorBody<'a> {
    pub(in crate::azure) code: Option<Cow<'a, str>>,
    pub(in crate::azure) error_type: Option<Cow<'a, str>>,
    message: Option<Cow<'a, str>>,
    inner_code: Option<Cow<'a, str>>,
    /// Whether the body is JSON in one of Azure's shapes.
    is_known_shape: bool,
}

/// The code, or type, and the message of an error response or event, for people.
pub fn error_code_and_message(body: &[u8]) -> (Option<String>, Option<String>) {
    ErrorBody::parse(body).into_code_and_message()
}

impl<'a> ErrorBody<'a> {
    /// Reads any of Azure's shapes: an `error` object, an `error` object in `response`, an `error` string,
    /// or code and message at the top level. A body that is not JSON is taken as the message.
    pub(in crate::azure) fn parse(body: &'a [u8]) -> Self {
        let Ok(fields) = json::parse_fields(
            body,
            &const { KeySet::new(["error", "response", "code", "statusCode", "message", "type"]) },
        ) else {
            // Bytes that are not UTF-8, in a message for example, hide no code.
            if let Cow::Owned(text) = text_from_bytes(body) {
                return ErrorBody::parse(text.as_bytes()).into_owned();
            }
            // The first lines of an HTML error page are enough.
            let page = body.get(..4096).unwrap_or(body);
            let message = Some(text_from_bytes(page)).filter(|text| !text.is_empty());
            return Self { message, ..Self::default() };
        };
        let [error, response, code, status, message, error_type] = fields.values;
        let nested = response.and_then(|raw| json::find_fields(raw, &["error"])[0]);
        match error.filter(|raw| *raw != "null").or(nested) {
            Some(object) if object.starts_with('{') => Self::from_error_object(object),
            Some(other) => {
                Self { message: json::decode_string(other), is_known_shape: true, ..Self::default() }
            }
            None => Self {
                code: code
                    .and_then(json::decode_string_or_number)
                    .or_else(|| status.and_then(json::decode_string_or_number)),
                // At the top level of an event, `type` is the name of the event and not of the error.
                error_type: error_type
                    .and_then(json::decode_string)
                    .filter(|error_type| error_type.ends_with("_error")),
                message: json::decode_non_empty_string(message),
                inner_code: None,
                is_known_shape: true,
            },
        }
    }

    fn into_owned(self) -> ErrorBody<'static> {
        let into_owned = |field: Option<Cow<'a, str>>| field.map(|text| Cow::Owned(text.into_owned()));
        ErrorBody {
            code: into_owned(self.code),
            error_type: into_owned(self.error_type),
            message: into_owned(self.message),
            inner_code: into_owned(self.inner_code),
            is_known_shape: self.is_known_shape,
        }
    }

    fn from_error_object(object: &'a str) -> Self {
        let [code, error_type, message, innererror, inner_error] =
            json::find_fields(object, &["code", "type", "message", "innererror", "inner_error"]);
        let inner_code = innererror.or(inner_error).and_then(|raw| json::find_fields(raw, &["code"])[0]);
        Self {
            code: code.and_then(json::decode_string_or_number).filter(|code| !code.is_empty()),
            error_type: json::decode_non_empty_string(error_type),
            message: json::decode_non_empty_string(message),
            inner_code: json::decode_non_empty_string(inner_code),
            is_known_shape: true,
        }
    }

    /// Its code, or type, and its message, for people. Text in another shape than Azure's is no message: it may be
    /// an echo of the request, with header fields and prompt.
    fn into_code_and_message(self) -> (Option<String>, Option<String>) {
        let code = self.code.or(self.inner_code).or(self.error_type);
        let message = self.message.filter(|_| self.is_known_shape);
        (code.map(Cow::into_owned), message.map(Cow::into_owned))
    }

    /// Whether it says nothing at all.
    pub(super) fn is_empty(&self) -> bool {
        self.code.is_none() && self.error_type.is_none() && self.message.is_none()
    }

    /// Whether one of the known errors with this meaning is like it.
    pub(super) fn means(&self, meaning: Meaning) -> bool {
        let message = self.message.as_ref().map(|message| message.to_ascii_lowercase());
        let rows = KNOWN_ERRORS.iter().filter(|(known, _)| *known == meaning);
        rows.into_iter().any(|(_, words)| self.has_words(*words, message.as_deref()))
    }

    fn has_words(&self, words: Words, message_in_lower_case: Option<&str>) -> bool {
        let message_contains = |phrases: &[&str]| {
            self.is_known_shape
                && message_in_lower_case
                    .is_some_and(|message| phrases.iter().all(|phrase| message.contains(phrase)))
        };
        let message_starts = |start: &str, rest: &str| {
            let after = message_in_lower_case.and_then(|message| message.strip_prefix(start));
            self.is_known_shape && after.is_some_and(|after| after.contains(rest))
        };
        match words {
            Words::Code(code) => self.has_code(code),
            Words::CodeOrType(word) => self.has_code(word) || self.has_type(word),
            Words::Type(word) => self.has_type(word),
            Words::TypeEnd(end) => self.error_type.as_deref().is_some_and(|kind| kind.ends_with(end)),
            Words::Message(phrases) => self.has_no_specific_code() && message_contains(phrases),
            Words::MessageWithAnyCode(phrases) => message_contains(phrases),
            Words::MessageStart(start) => self.has_no_specific_code() && message_starts(start, ""),
            Words::MessageStartAndRest(start, rest) => {
                self.has_no_specific_code() && message_starts(start, rest)
            }
        }
    }

    fn has_code(&self, code: &str) -> bool {
        let is_this = |own: &Cow<'_, str>| own.eq_ignore_ascii_case(code);
        self.code.as_ref().is_some_and(is_this) || self.inner_code.as_ref().is_some_and(is_this)
    }

    fn has_type(&self, error_type: &str) -> bool {
        self.error_type.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(error_type))
    }

    /// Whether the code is missing or so general that only the message says what is wrong.
    fn has_no_specific_code(&self) -> bool {
        const GENERAL_CODES: &[&str] =
            &["400", "403", "404", "BadRequest", "Forbidden", "NotFound", "invalid_request_error"];
        self.code.is_none() || GENERAL_CODES.iter().any(|code| self.has_code(code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_in_azures_shapes_are_shown_to_people() {
        let table = [
            (r#"{"error":{"code":"429","message":"slow down"}}"#, (Some("429"), Some("slow down"))),
            (r#"{"error":{"type":"server_error","message":"oops"}}"#, (Some("server_error"), Some("oops"))),
            ("POST /openai HTTP/1.1\r\nx-own: secret\r\n\r\n{}", (None, None)),
            ("", (None, None)),
        ];
        for (body, (code, message)) in table {
            let expected = (code.map(str::to_owned), message.map(str::to_owned));
            assert_eq!(error_code_and_message(body.as_bytes()), expected, "{body}");
        }
    }
}
