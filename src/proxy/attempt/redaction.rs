//! Removes the credential that an attempt was sent with from its error response.

use http::StatusCode;
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;

use crate::credentials::CredentialRedactor;

/// Whether a response of this status may quote the credential that it refuses.
pub(super) fn may_quote_credential(status: StatusCode) -> bool {
    status.as_u16() >= 300
}

/// Removes the credential from the header fields of a response.
///
/// # Errors
/// If a header field cannot be set.
pub(super) fn redact_header(redactor: &CredentialRedactor, header: &mut ResponseHeader) -> Result<()> {
    let mut replaced = Vec::new();
    for (name, value) in &header.headers {
        if let Some(redacted) = redactor.redact_if_found(value.as_bytes()) {
            replaced.push((name.clone(), redacted));
        }
    }
    for (name, value) in replaced {
        // Of several fields with this name only this one is kept.
        header.insert_header(name, value)?;
    }
    Ok(())
}

/// Removes the credential from the next part of a relayed response. What the redactor has held back goes
/// before the end of the response, or its failure.
pub(super) fn redact_task(redactor: &mut CredentialRedactor, task: HttpTask, output: &mut Vec<HttpTask>) {
    match task {
        HttpTask::Body(data, is_end) => {
            let data = redactor.redact_part(&data.unwrap_or_default(), is_end);
            let data = (!data.is_empty()).then_some(data);
            if is_end || data.is_some() {
                output.push(HttpTask::Body(data, is_end));
            }
        }
        // A message is whole.
        HttpTask::UpgradedBody(Some(message), is_end) => {
            let redacted = redactor.redact_if_found(&message);
            output.push(HttpTask::UpgradedBody(Some(redacted.map_or(message, Into::into)), is_end));
        }
        task => {
            let data = redactor.redact_part(b"", true);
            if !data.is_empty() {
                output.push(HttpTask::Body(Some(data), false));
            }
            output.push(task);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::config::Secret;

    const KEY: &str = "0123456789abcdef";

    fn redactor() -> CredentialRedactor {
        CredentialRedactor::new(&Secret::new(KEY)).unwrap()
    }

    #[test]
    fn header_fields_lose_the_credential() {
        let mut header = ResponseHeader::build(401, None).unwrap();
        header.insert_header("www-authenticate", format!("Bearer token=\"{KEY}\"")).unwrap();
        header.insert_header("x-other", "other").unwrap();
        redact_header(&redactor(), &mut header).unwrap();
        assert_eq!(header.headers.get("www-authenticate").unwrap(), "Bearer token=\"[redacted]******\"");
        assert_eq!(header.headers.get("x-other").unwrap(), "other");
    }

    #[test]
    fn messages_lose_the_credential() {
        let message =
            |text: &'static str| HttpTask::UpgradedBody(Some(Bytes::from_static(text.as_bytes())), false);
        let (mut redactor, mut output) = (redactor(), Vec::new());
        for task in [message(r#"{"message":"key 0123456789abcdef"}"#), message("0123")] {
            redact_task(&mut redactor, task, &mut output);
        }
        let texts = output.iter().filter_map(|task| match task {
            HttpTask::UpgradedBody(Some(text), _) => Some(&text[..]),
            _ => None,
        });
        assert_eq!(texts.collect::<Vec<_>>(), [&br#"{"message":"key [redacted]******"}"#[..], b"0123"]);
    }

    #[test]
    fn what_was_held_back_comes_before_the_end() {
        let body =
            |text: &'static str, is_end| HttpTask::Body(Some(Bytes::from_static(text.as_bytes())), is_end);
        for end in [HttpTask::Body(None, true), HttpTask::Done, HttpTask::Trailer(None)] {
            let (mut redactor, mut output) = (redactor(), Vec::new());
            for task in [body("key 01234567", false), body("89abcdef, 0123", false), end] {
                redact_task(&mut redactor, task, &mut output);
            }
            let bodies = output.iter().filter_map(|task| match task {
                HttpTask::Body(data, _) => data.as_deref(),
                _ => None,
            });
            assert_eq!(bodies.collect::<Vec<_>>().concat(), b"key [redacted]******, 0123");
            assert!(output.last().is_some_and(HttpTask::is_end));
        }
    }
}
