//! The models that a client may use, in the shape of OpenAI's API.

use bytes::Bytes;
use pingora::http::ResponseHeader;
use serde::Serialize;

use crate::gateway::ModelsAnswer;
use crate::names::DeploymentName;

/// The value of `owned_by`.
const OWNER: &str = "aoai-lb";

/// <https://platform.openai.com/docs/api-reference/models/object>.
#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    /// Seconds since 1970; 0, since it is not known.
    created: u64,
    owned_by: &'static str,
}

/// <https://platform.openai.com/docs/api-reference/models/list>.
#[derive(Serialize)]
struct ModelPage<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

/// Head and body of the answer.
///
/// # Errors
/// If a header field cannot be set.
pub(in crate::proxy) fn models_response(
    answer: &ModelsAnswer,
    request_id: &str,
) -> pingora::Result<(ResponseHeader, Bytes)> {
    let body = models_body(answer);
    let mut header = ResponseHeader::build(200, Some(6))?;
    header.insert_header("content-type", "application/json")?;
    header.insert_header("content-length", body.len())?;
    header.insert_header("x-request-id", request_id)?;
    Ok((header, body))
}

fn models_body(answer: &ModelsAnswer) -> Bytes {
    let body = match answer {
        ModelsAnswer::List(names) => {
            serde_json::to_vec(&ModelPage { object: "list", data: names.iter().map(model).collect() })
        }
        ModelsAnswer::Model(name) => serde_json::to_vec(&model(name)),
    };
    // Names and constants can always be written as JSON.
    Bytes::from(body.unwrap_or_default())
}

fn model(name: &DeploymentName) -> Model<'_> {
    Model { id: name.as_str(), object: "model", created: 0, owned_by: OWNER }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_shape_of_openais_api() {
        let name = |name: &str| DeploymentName::parse(name).unwrap();
        for (answer, expected) in [
            (ModelsAnswer::List(Vec::new()), r#"{"object":"list","data":[]}"#),
            (
                ModelsAnswer::List(vec![name("gpt-4o")]),
                r#"{"object":"list","data":[{"id":"gpt-4o","object":"model","created":0,"owned_by":"aoai-lb"}]}"#,
            ),
            (
                ModelsAnswer::Model(name("GPT-4o")),
                r#"{"id":"GPT-4o","object":"model","created":0,"owned_by":"aoai-lb"}"#,
            ),
        ] {
            assert_eq!(models_body(&answer), expected);
        }
    }
}
