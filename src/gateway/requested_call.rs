//! Reads what a request asks for from its target and body.

use bytes::Bytes;
use http::Method;

use crate::azure::request::json_body::{BodyError, BodyFacts};
use crate::azure::request::multipart;
use crate::azure::request::multipart::{FormError, FormFacts};
use crate::azure::request::session_model::{session_model_of_form, session_model_of_json};
use crate::azure::{DeploymentSource, Operation, RequestTarget};
use crate::names::DeploymentName;
use crate::refusal::{Refusal, RefusalReason};

/// The body of a request.
pub struct BodyView<'a> {
    /// The bytes; empty if there are none or they are streamed.
    pub bytes: &'a Bytes,
    /// `content-type`.
    pub content_type: &'a str,
    /// Whether `content-encoding` compresses the bytes.
    pub is_compressed: bool,
}

/// What a request asks for, according to its target and body.
pub struct RequestedCall {
    /// The deployment that it names, if any.
    pub deployment: Option<DeploymentName>,
    /// Whether it asks for a stream, if its body could be read.
    pub wants_stream: Option<bool>,
    /// Whether a response is to be made in the background.
    pub(super) wants_background_response: bool,
    pub(super) parsed_body: ParsedBody,
}

impl RequestedCall {
    /// Reads what a request asks for.
    ///
    /// # Errors
    /// `bad_request` if the body has to name the deployment and does not, `unsupported_encoding`.
    pub(super) fn parse(
        method: &Method,
        target: &RequestTarget,
        body: &BodyView<'_>,
    ) -> Result<Self, Refusal> {
        let source = target.deployment_source(method);
        let parsed_body = parse_body(source, target, body)?;
        let (wants_stream, wants_background_response, model) = match &parsed_body {
            ParsedBody::Opaque => (None, false, None),
            ParsedBody::Json(facts) => (Some(facts.wants_stream), facts.is_background, Some(&facts.model)),
            ParsedBody::Multipart(form) => (Some(form.wants_stream), false, Some(&form.model)),
        };
        let deployment = match (source, model) {
            (DeploymentSource::Target, Some(model)) if target.has_session_in_body() => {
                let in_target = target.deployment.clone();
                let in_body = model.deployment().map_err(|error| Refusal::bad_request(error.to_string()))?;
                if in_body.is_some_and(|in_body| Some(in_body) != in_target.as_ref()) {
                    return Err(Refusal::bad_request(
                        "`model` in the query and in `session` must be the same",
                    ));
                }
                in_target
            }
            (DeploymentSource::Target, _) => target.deployment.clone(),
            // Without one, Azure decides: a follow-up or a prompt template may know the model.
            (DeploymentSource::Body | DeploymentSource::OptionalBody, Some(model)) => {
                model.deployment().map_err(|error| Refusal::bad_request(error.to_string()))?.cloned()
            }
            (DeploymentSource::Body, None) => return Err(missing_model_refusal()),
            (DeploymentSource::OptionalBody, None) | (DeploymentSource::Unspecified, _) => None,
        };
        Ok(Self { deployment, wants_stream, wants_background_response, parsed_body })
    }
}

impl RequestedCall {
    /// What has been read from its body, if that is JSON.
    pub fn json_facts(&self) -> Option<&BodyFacts> {
        match &self.parsed_body {
            ParsedBody::Json(facts) => Some(facts),
            ParsedBody::Multipart(_) | ParsedBody::Opaque => None,
        }
    }
}

/// What a body is, and what has been read from it.
#[derive(Debug)]
pub(super) enum ParsedBody {
    /// Unread or unreadable.
    Opaque,
    Json(BodyFacts),
    Multipart(FormFacts),
}

fn missing_model_refusal() -> Refusal {
    Refusal::bad_request("the body must have `model`: on /openai/v1 it names the deployment")
}

/// Reads the body as far as it is needed. It may be unreadable unless it has to name the deployment.
fn parse_body(
    source: DeploymentSource,
    target: &RequestTarget,
    body: &BodyView<'_>,
) -> Result<ParsedBody, Refusal> {
    let names_deployment = source == DeploymentSource::Body;
    let may_name_deployment = names_deployment || source == DeploymentSource::OptionalBody;
    if body.bytes.is_empty() && !names_deployment {
        return Ok(ParsedBody::Opaque);
    }
    if body.is_compressed {
        if may_name_deployment {
            let message = "the body must not be compressed: its `model` names the deployment";
            return Err(Refusal::new(RefusalReason::UnsupportedEncoding, message));
        }
        return Ok(ParsedBody::Opaque);
    }
    if multipart::is_multipart_form(body.content_type) && accepts_multipart(target) {
        let Some(boundary) = multipart::boundary_parameter(body.content_type) else {
            return match names_deployment {
                true => Err(Refusal::bad_request("content-type: multipart/form-data needs a `boundary`")),
                false => Ok(ParsedBody::Opaque),
            };
        };
        if may_name_deployment
            && !body.bytes.strip_prefix(b"--").is_some_and(|line| line.starts_with(boundary.as_bytes()))
        {
            // Text before the first boundary is to be ignored (RFC 2046, 5.1.1). Azure's parser might read
            // another `model` from it than ours.
            return Err(Refusal::bad_request("the form must begin with its boundary"));
        }
        let form = FormFacts::parse(body.bytes, &boundary).and_then(|mut form| {
            if target.has_session_in_body() {
                form.model = session_model_of_form(body.bytes, &form)?;
            }
            Ok(form)
        });
        return match form {
            Ok(form) => Ok(ParsedBody::Multipart(form)),
            // Refused on every path: which of the two Azure reads is not known.
            Err(error @ (FormError::DuplicateField(_) | FormError::AmbiguousName)) => {
                Err(Refusal::bad_request(error.to_string()))
            }
            Err(error) if names_deployment => Err(Refusal::bad_request(error.to_string())),
            Err(_) => Ok(ParsedBody::Opaque),
        };
    }
    if !may_name_deployment && !may_have_json_body(target.operation) {
        return Ok(ParsedBody::Opaque);
    }
    let facts = BodyFacts::parse(body.bytes).and_then(|mut facts| {
        if target.has_session_in_body() {
            facts.model = session_model_of_json(body.bytes)?;
        }
        Ok(facts)
    });
    match facts {
        Ok(facts) => Ok(ParsedBody::Json(facts)),
        // As above. And references that are not looked at could be those of another client.
        Err(error @ (BodyError::DuplicateKey(_) | BodyError::TooManyReferences)) => {
            Err(Refusal::bad_request(error.to_string()))
        }
        Err(error) if names_deployment => Err(Refusal::bad_request(error.to_string())),
        // The path names the deployment: Azure itself explains what is wrong with the body.
        Err(_) => Ok(ParsedBody::Opaque),
    }
}

fn accepts_multipart(target: &RequestTarget) -> bool {
    matches!(target.operation, Operation::Audio | Operation::Images | Operation::Videos)
        || target.has_session_in_body()
}

fn may_have_json_body(operation: Operation) -> bool {
    !matches!(operation, Operation::Realtime)
}
