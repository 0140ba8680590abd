//! The `model` in the `session` of a realtime call: of a JSON body for a client secret, or of a form for a call over
//! WebRTC.

use super::json_body::{BodyError, parse_model_value};
use super::model_field::ModelField;
use super::multipart::{FormError, FormFacts};
use crate::azure::json;
use crate::azure::json_keys::KeySet;

/// `session.model` of a JSON body.
///
/// # Errors
/// `session` or its `model` is repeated.
pub fn session_model_of_json(body: &[u8]) -> Result<ModelField, BodyError> {
    let Ok(fields) = json::parse_fields(body, &const { KeySet::new(["session"]) }) else {
        return Ok(ModelField::Absent);
    };
    match (fields.values, fields.is_repeated) {
        (_, [true]) => Err(BodyError::DuplicateKey("session")),
        ([Some(session)], _) => {
            model_of_session(body, session.as_bytes()).ok_or(BodyError::DuplicateKey("session.model"))
        }
        ([None], _) => Ok(ModelField::Absent),
    }
}

/// The `model` in the field `session` of a form, which is JSON.
///
/// # Errors
/// `session` or its `model` is repeated.
pub fn session_model_of_form(body: &[u8], form: &FormFacts) -> Result<ModelField, FormError> {
    let text_fields = form.text_fields.iter().map(|field| (&field.name, &field.content_range));
    let file_fields = form.file_fields.iter().map(|field| (&field.name, &field.content_range));
    let mut sessions =
        text_fields.chain(file_fields).filter(|(name, _)| name.eq_ignore_ascii_case("session"));
    let Some(session) = sessions.next().and_then(|(_, range)| body.get(range.clone())) else {
        return Ok(ModelField::Absent);
    };
    if sessions.next().is_some() {
        return Err(FormError::DuplicateField("session"));
    }
    let model = model_of_session(body, session).ok_or(FormError::DuplicateField("session.model"))?;
    // In a form the name itself is replaced, without its quotes.
    Ok(match model {
        ModelField::Named { name, range } => {
            ModelField::Named { name, range: range.start + 1..range.end.saturating_sub(1) }
        }
        other => other,
    })
}

/// The `model` of a session, with its place in the body; `None` if there are more than one.
fn model_of_session(body: &[u8], session: &[u8]) -> Option<ModelField> {
    let Ok(fields) = json::parse_fields(session, &const { KeySet::new(["model"]) }) else {
        return Some(ModelField::Absent);
    };
    let ([model], [is_repeated]) = (fields.values, fields.is_repeated);
    (!is_repeated).then(|| parse_model_value(body, model))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::request::json_body::BodyFacts;
    use crate::azure::{ModelFieldError, apply_edits};
    use crate::names::DeploymentName;
    use bytes::Bytes;

    fn up() -> DeploymentName {
        DeploymentName::parse("up").unwrap()
    }

    #[test]
    fn the_model_of_a_session_is_found_and_replaced_in_json() {
        let body = r#"{"model":"other","session":{"type":"realtime","m\u006fdel" : "gpt-\u0072ealtime","audio":{"model":"x"}}}"#;
        let mut facts = BodyFacts::parse(body.as_bytes()).unwrap();
        facts.model = session_model_of_json(body.as_bytes()).unwrap();
        assert_eq!(facts.model.deployment().unwrap().unwrap().as_str(), "gpt-realtime");
        let edit = facts.rename_model_edit(&up()).unwrap();
        let edited = apply_edits(&Bytes::from_static(body.as_bytes()), &[edit]).concat();
        assert_eq!(String::from_utf8(edited).unwrap(), body.replace(r#""gpt-\u0072ealtime""#, r#""up""#));
        for body in [
            "{}",
            r#"{"model":"x"}"#,
            r#"{"session":null}"#,
            r#"{"session":"x"}"#,
            r#"{"session":{}}"#,
            "[",
            "",
        ] {
            assert_eq!(session_model_of_json(body.as_bytes()), Ok(ModelField::Absent), "{body}");
        }
        for (body, key) in [
            (r#"{"session":{"model":"a"},"Session":{"model":"b"}}"#, "session"),
            (r#"{"session":{"model":"a","MODEL":"b"}}"#, "session.model"),
        ] {
            assert_eq!(session_model_of_json(body.as_bytes()), Err(BodyError::DuplicateKey(key)), "{body}");
        }
        let number = session_model_of_json(br#"{"session":{"model":7}}"#).unwrap();
        assert_eq!(number.deployment(), Err(ModelFieldError::NotString));
    }

    #[test]
    fn the_model_of_a_session_is_found_and_replaced_in_a_form() {
        let part = |name: &str, content: &str| {
            format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{content}\r\n")
        };
        let session = part("session", r#"{"type":"realtime","model":"gpt-realtime"}"#);
        let body = part("sdp", "v=0\r\n") + &session + "--b--\r\n";
        let mut form = FormFacts::parse(body.as_bytes(), "b").unwrap();
        form.model = session_model_of_form(body.as_bytes(), &form).unwrap();
        let edit = form.rename_model_edit(&up()).unwrap();
        let edited = apply_edits(&Bytes::copy_from_slice(body.as_bytes()), &[edit]).concat();
        assert_eq!(String::from_utf8(edited).unwrap(), body.replace("gpt-realtime", "up"));

        let twice = session.clone() + &session + "--b--\r\n";
        let form = FormFacts::parse(twice.as_bytes(), "b").unwrap();
        assert_eq!(session_model_of_form(twice.as_bytes(), &form), Err(FormError::DuplicateField("session")));
        let without = part("sdp", "v=0") + "--b--\r\n";
        let form = FormFacts::parse(without.as_bytes(), "b").unwrap();
        assert_eq!(session_model_of_form(without.as_bytes(), &form), Ok(ModelField::Absent));
    }
}
