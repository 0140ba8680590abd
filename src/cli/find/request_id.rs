//! The id of a request that is looked for: what of it is searched for in the bytes of records, and which records have it.

use std::borrow::Cow;

use json_escape_simd::escape_into;
use memchr::memmem::Finder;
use serde::Deserialize;

use crate::record::client_headers::printable_text;

/// The fields of a record that are ids, and its time.
#[derive(Deserialize)]
pub(super) struct IdFields<'a> {
    #[serde(borrow)]
    pub(super) time: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) request_id: Cow<'a, str>,
    #[serde(borrow, default)]
    client_request_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    trace_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    apim_request_id: Option<Cow<'a, str>>,
    /// What came over a WebSocket has the id of its record.
    #[serde(borrow, default)]
    socket_id: Option<Cow<'a, str>>,
}

/// An id that somebody has of a request: ours, the client's, Azure's, or that of its trace or WebSocket.
pub(super) struct RequestId {
    /// The forms in which records may have it: as it was given, in lower and upper case, and as the balancer records
    /// what is not printable.
    forms: Vec<String>,
    /// Find these forms as JSON strings.
    finders: Vec<Finder<'static>>,
}

impl RequestId {
    /// The id, as it was given.
    pub(super) fn new(id: &str) -> Self {
        let mut forms = vec![
            id.to_owned(),
            id.to_ascii_lowercase(),
            id.to_ascii_uppercase(),
            printable_text(id.as_bytes()).into_string(),
        ];
        let mut seen = std::collections::HashSet::new();
        forms.retain(|form| seen.insert(form.clone()));
        let finders = forms.iter().map(|form| {
            let mut json = Vec::new();
            escape_into(form, &mut json);
            Finder::new(&json).into_owned()
        });
        Self { finders: finders.collect(), forms }
    }

    /// As it was given.
    pub(super) fn as_str(&self) -> &str {
        self.forms.first().map_or("", String::as_str)
    }

    /// What finds it in the bytes of records. A text within a prompt is not found: its quotes are escaped.
    pub(super) fn finders(&self) -> &[Finder<'static>] {
        &self.finders
    }

    /// The name of the first field that has it; `None` if no id of the record is this one.
    pub(super) fn field_of(&self, fields: &IdFields<'_>) -> Option<&'static str> {
        let ids = [
            ("request_id", Some(&fields.request_id)),
            ("client_request_id", fields.client_request_id.as_ref()),
            ("apim_request_id", fields.apim_request_id.as_ref()),
            ("trace_id", fields.trace_id.as_ref()),
            ("socket_id", fields.socket_id.as_ref()),
        ];
        ids.into_iter()
            .find(|(_, id)| id.is_some_and(|id| self.forms.iter().any(|form| form == id)))
            .map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field_of(id: &str, record: &str) -> Option<&'static str> {
        let id = RequestId::new(id);
        let is_found = id.finders().iter().any(|finder| finder.find(record.as_bytes()).is_some());
        let field = id.field_of(&serde_json::from_str(record).unwrap());
        assert!(is_found || field.is_none(), "{record} is not even looked at");
        field
    }

    #[test]
    fn an_id_is_found_in_each_of_the_fields_and_in_no_other() {
        for (name, expected) in [
            ("client_request_id", Some("client_request_id")),
            ("apim_request_id", Some("apim_request_id")),
            ("trace_id", Some("trace_id")),
            ("socket_id", Some("socket_id")),
            ("user_agent", None),
            ("prompt", None),
        ] {
            let record = format!(r#"{{"time":"t","request_id":"019a","{name}":"the-id"}}"#);
            assert_eq!(field_of("the-id", &record), expected, "{name}");
            assert_eq!(field_of("the-i", &record), None);
            assert_eq!(field_of("019A", &record), Some("request_id"));
        }
    }

    #[test]
    fn an_id_is_found_as_the_balancer_records_it() {
        for (given, recorded) in [
            ("a\"b\\c", "a\"b\\c"),
            ("0D1E-f", "0d1e-f"),
            ("0d1e-F", "0D1E-F"),
            ("café\t1", r"caf\xc3\xa9\t1"),
            (&"x".repeat(300), &"x".repeat(256)),
            ("\u{1b}[31m", r"\x1b[31m"),
        ] {
            let record = serde_json::json!({ "time": "t", "request_id": "1", "client_request_id": recorded });
            assert_eq!(field_of(given, &record.to_string()), Some("client_request_id"), "{given}");
        }
    }
}
