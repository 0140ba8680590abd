//! What a request asks for, read from its body as far as it matters, and how it is put to one
//! backend.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::Method;

use super::{Admitted, Gateway};
use crate::azure::request::body;
use crate::azure::request::body::{Edit, Probe};
use crate::azure::request::multipart;
use crate::azure::request::multipart::{BadForm, FormProbe};
use crate::azure::{Naming, Operation, Target};
use crate::config::UsageMode;
use crate::names::Deployment;
use crate::refusal::{Reason, Refusal};
use crate::routing::pool::Candidate;

/// A request's body, as far as deciding needs it.
pub struct Body<'a> {
    /// The bytes; empty when there are none or they are not held.
    pub bytes: &'a Bytes,
    /// `content-type`.
    pub content_type: &'a str,
    /// Whether `content-encoding` hides the bytes.
    pub encoded: bool,
}

/// What a request asks for, body included.
pub struct Asked {
    /// The deployment it names, if it is one that names one.
    pub deployment: Option<Deployment>,
    /// Whether it asks for a stream, if its body could be read.
    pub stream: Option<bool>,
    pub(super) background: bool,
    pub(super) form: Form,
}

/// What the body turned out to be.
#[derive(Debug)]
pub(super) enum Form {
    Opaque,
    Json(Probe),
    Multipart(FormProbe),
}

/// How a request is put to one backend.
pub struct Outgoing {
    /// Path and query.
    pub path: String,
    /// Changes to the body.
    pub edits: Vec<Edit>,
    /// Whether the stream's usage is asked for on our account, and to be taken out again.
    pub asks_usage: bool,
}

impl Gateway {
    /// Reads what a request asks for.
    ///
    /// # Errors
    /// `bad_request` for a body that does not say what it has to, `unsupported_encoding`.
    pub fn read(&self, method: &Method, target: &Target, body: &Body<'_>) -> Result<Asked, Refusal> {
        let naming = target.naming(method);
        let form = understand(naming, target, body)?;
        let (stream, background, named) = match &form {
            Form::Opaque => (None, false, None),
            Form::Json(probe) => (Some(probe.stream), probe.background, Some(&probe.model)),
            Form::Multipart(form) => (Some(form.stream), false, Some(&form.model)),
        };
        let deployment = match (naming, named) {
            (Naming::Target, _) => target.deployment.clone(),
            (Naming::Body, Some(model)) => {
                let model = model.deployment().map_err(|bad| Refusal::bad_request(bad.to_string()))?;
                Some(model.ok_or_else(no_model)?.clone())
            }
            (Naming::Body, None) => return Err(no_model()),
            (Naming::Home, _) => None,
        };
        Ok(Asked { deployment, stream, background, form })
    }

    /// How an admitted request is put to a candidate of its pool.
    pub fn put(&self, admitted: &Admitted, candidate: &Candidate, ask_usage: bool) -> Outgoing {
        let backend = self.backends.get(candidate.backend).map(|backend| &backend.config);
        let own_version = backend.and_then(|backend| backend.api_version.as_deref());
        let default_version = self.requests.api_version.as_deref();
        let target = &admitted.target;
        let path = target.upstream_path(candidate.upstream.as_ref(), own_version, default_version);
        let mut edits = Vec::new();
        let mut asks_usage = false;
        let renames = target.naming(&Method::POST) == Naming::Body;
        match &admitted.form {
            Form::Opaque => {}
            Form::Json(probe) => {
                if renames {
                    edits.extend(candidate.upstream.as_ref().and_then(|upstream| probe.rename(upstream)));
                }
                let declined = || {
                    candidate
                        .deployment
                        .as_ref()
                        .is_some_and(|known| known.declines_usage.load(Ordering::Relaxed))
                };
                let wanted = || self.record.as_ref().is_some_and(|record| record.usage == UsageMode::Ask);
                let version = || target.effective_api_version(own_version, default_version);
                if ask_usage
                    && probe.stream
                    && wanted()
                    && body::may_ask_usage(target.operation, target.api, version().as_deref(), probe)
                    && !declined()
                {
                    let edit = probe.ask_usage();
                    asks_usage = edit.is_some();
                    edits.extend(edit);
                }
            }
            Form::Multipart(form) if renames => {
                edits.extend(candidate.upstream.as_ref().and_then(|upstream| form.rename(upstream)));
            }
            Form::Multipart(_) => {}
        }
        Outgoing { path, edits, asks_usage }
    }
}

fn no_model() -> Refusal {
    Refusal::bad_request("the body must have `model`: on /openai/v1 it names the deployment")
}

/// Reads the body as far as it matters: where it names the deployment, it must be readable.
fn understand(naming: Naming, target: &Target, body: &Body<'_>) -> Result<Form, Refusal> {
    let names = naming == Naming::Body;
    if naming == Naming::Home || (body.bytes.is_empty() && !names) {
        return Ok(Form::Opaque);
    }
    if body.encoded {
        if names {
            let message = "the body must not be compressed: on /openai/v1 its `model` names the deployment";
            return Err(Refusal::new(Reason::UnsupportedEncoding, message));
        }
        return Ok(Form::Opaque);
    }
    let bad = |message: String| Refusal::bad_request(message);
    if multipart::is_form(body.content_type) && takes_forms(target.operation) {
        let Some(boundary) = multipart::boundary(body.content_type) else {
            return match names {
                true => Err(bad("content-type: multipart/form-data needs a `boundary`".to_owned())),
                false => Ok(Form::Opaque),
            };
        };
        if names && !body.bytes.strip_prefix(b"--").is_some_and(|rest| rest.starts_with(boundary.as_bytes()))
        {
            // What stands before the first boundary is for nobody; another reader might disagree.
            return Err(bad("the form must begin with its boundary".to_owned()));
        }
        return match multipart::probe(body.bytes, &boundary) {
            Ok(form) => Ok(Form::Multipart(form)),
            Err(problem @ BadForm::Duplicate(_)) => Err(bad(problem.to_string())),
            Err(problem) if names => Err(bad(problem.to_string())),
            Err(_) => Ok(Form::Opaque),
        };
    }
    if !names && !takes_json(target.operation) {
        return Ok(Form::Opaque);
    }
    match body::probe(body.bytes) {
        Ok(probe) => Ok(Form::Json(probe)),
        Err(problem @ body::BadBody::Duplicate(_)) => Err(bad(problem.to_string())),
        Err(problem) if names => Err(bad(problem.to_string())),
        // On a classic path Azure says itself what is wrong with the body.
        Err(_) => Ok(Form::Opaque),
    }
}

fn takes_forms(operation: Operation) -> bool {
    matches!(operation, Operation::Audio | Operation::Images)
}

fn takes_json(operation: Operation) -> bool {
    !matches!(operation, Operation::Realtime)
}
