//! Parses a request target (path and query) and builds the target to send upstream. Rejects every
//! spelling that two servers could read differently, so that no request can bypass an allow list.
//! Whether a path is allowed is decided elsewhere.

use std::borrow::Cow;
use std::ops::Range;

use http::Method;

use super::operation::{Operation, PathMatcher, SegmentKind};
use super::percent::{decode_hex_pair, is_unreserved, push_percent_encoded};
use super::query::{QueryKeyKind, QueryString, percent_decode};
use super::reference_kind::ReferenceKind;
use super::target_error::TargetError;
use crate::names::DeploymentName;

/// The two styles of Azure OpenAI's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApiStyle {
    /// `/openai/…?api-version=…`, with the deployment in the path.
    Classic,
    /// `/openai/v1/…`, with the deployment in the body's `model`.
    V1,
}

impl ApiStyle {
    /// The name used in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::V1 => "v1",
        }
    }
}

/// Where a request names its deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeploymentSource {
    /// In the target: [`RequestTarget::deployment`] is set.
    Target,
    /// In the body's `model`: a JSON key or a form field.
    Body,
    /// In the body, if at all: its `model`, or that of its `session`. Without one the service decides.
    OptionalBody,
    /// Nowhere. Such a request is not balanced over a deployment's backends.
    Unspecified,
}

/// A path of v1 that tells models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelsPath<'a> {
    /// `/openai/v1/models`.
    List,
    /// `/openai/v1/models/{name}`, with the name as it is in the normalised path.
    Model(&'a str),
}

/// A parsed request target.
#[derive(Clone, Debug)]
pub struct RequestTarget {
    /// The API style. Paths outside `/openai` count as classic.
    pub api_style: ApiStyle,
    /// The operation that the path belongs to.
    pub operation: Operation,
    /// The normalised path without the query, with `/openai/v1` in place of `/v1`. Rules are matched
    /// against it, and it is recorded and forwarded.
    pub path: String,
    /// The deployment in a classic path, or in the query of a WebSocket upgrade.
    pub deployment: Option<DeploymentName>,
    /// The query string without credentials.
    pub query: QueryString,
    /// Whether the path contains the id of an object, such as a file or a response.
    pub has_object_id: bool,
    /// The kind of the ids that `after` and `before` of the query name, if the path is that of a list.
    pub(in crate::azure) cursor_kind: Option<ReferenceKind>,
    /// Where the ids of objects are in `path`.
    references_in_path: Vec<(ReferenceKind, Range<usize>)>,
    /// Where the deployment is in `path`; `None` if it came from the query.
    deployment_range_in_path: Option<Range<usize>>,
    /// Whether the path begins with `/openai`.
    is_under_openai: bool,
}

/// Parses a request target in origin form or absolute form (RFC 9112, section 3.2). `is_websocket` means
/// that the request asks for an upgrade to WebSocket. Its deployment is in the query: `deployment` in the
/// preview of Azure's realtime API, `model` on v1. So is that of a call over WebRTC.
///
/// # Errors
/// Every [`TargetError`] is answered with 400.
pub fn parse_target(raw_target: &[u8], is_websocket: bool) -> Result<RequestTarget, TargetError> {
    let text = check_characters(raw_target)?;
    let text = to_origin_form(text)?;
    let (raw_path, raw_query) = text.split_once('?').unwrap_or((text, ""));
    let mut target = parse_path(raw_path)?;
    target.query = QueryString::parse(raw_query)?;
    let may_name_deployment_in_query = match target.operation {
        // A call over WebRTC is made by a POST of its SDP.
        Operation::Realtime => is_websocket || target.path.ends_with("/realtime/calls"),
        Operation::Responses => is_websocket,
        _ => false,
    };
    if may_name_deployment_in_query && target.deployment.is_none() {
        target.deployment = deployment_from_query(&target.query)?;
    }
    Ok(target)
}

impl RequestTarget {
    /// Where a request with this method names its deployment.
    pub fn deployment_source(&self, method: &Method) -> DeploymentSource {
        use Operation::{Audio, Chat, Completions, Embeddings, Images, Responses};
        let names_deployment_in_body = match self.operation {
            Responses => true,
            Chat | Completions | Embeddings | Images | Audio => self.api_style == ApiStyle::V1,
            _ => false,
        };
        let creates = !self.has_object_id && method == Method::POST;
        match () {
            () if self.deployment.is_some() => DeploymentSource::Target,
            () if names_deployment_in_body && creates => DeploymentSource::Body,
            () if self.may_name_deployment_in_body() && creates => DeploymentSource::OptionalBody,
            () => DeploymentSource::Unspecified,
        }
    }

    /// Whether a WebSocket to this target speaks the Responses API, whose messages name the models.
    pub fn is_responses_socket(&self) -> bool {
        self.operation == Operation::Responses && self.api_style == ApiStyle::V1 && !self.has_object_id
    }

    /// Whether the body names the deployment in the `model` of its `session`.
    pub fn has_session_in_body(&self) -> bool {
        self.operation == Operation::Realtime
            && ["/realtime/client_secrets", "/realtime/calls"].iter().any(|end| self.path.ends_with(end))
    }

    fn may_name_deployment_in_body(&self) -> bool {
        let is_at = |ends: &[&str]| ends.iter().any(|end| self.path.ends_with(end));
        match self.operation {
            Operation::Realtime => {
                self.has_session_in_body() || is_at(&["/realtime/sessions", "/realtimeapi/sessions"])
            }
            Operation::Videos => is_at(&["/videos", "/video/generations/jobs"]),
            _ => false,
        }
    }

    /// Whether its path names an object.
    pub fn path_names_object(&self) -> bool {
        !self.references_in_path.is_empty()
    }

    /// Whether its path or its query names an object.
    pub fn has_references(&self) -> bool {
        self.path_names_object()
            || (self.cursor_kind.is_some() && self.query.cursors().any(|id| !id.is_empty()))
    }

    /// The kinds and the percent-decoded ids of the objects that the path names, in their order.
    pub fn path_references(&self) -> impl Iterator<Item = (ReferenceKind, Cow<'_, str>)> {
        self.references_in_path
            .iter()
            .filter_map(|(kind, range)| Some((*kind, percent_decode(self.path.get(range.clone())?).ok()?)))
    }

    /// What the target asks for, if it is the list of models on v1 or one model in it.
    pub fn v1_models_path(&self) -> Option<ModelsPath<'_>> {
        if self.operation != Operation::Models || self.api_style != ApiStyle::V1 {
            return None;
        }
        match self.path.strip_prefix("/openai/v1/models")? {
            "" => Some(ModelsPath::List),
            rest => rest.strip_prefix('/').filter(|name| !name.contains('/')).map(ModelsPath::Model),
        }
    }

    /// Whether a POST ends what an earlier request has begun, and begins nothing.
    pub fn is_cancellation(&self) -> bool {
        self.path.ends_with("/cancel")
    }

    /// Whether the body is an uploaded file or a part of one, which may be streamed without buffering.
    pub fn is_file_upload(&self, method: &Method) -> bool {
        method == Method::POST
            && match self.operation {
                Operation::Files => !self.has_object_id,
                Operation::Uploads => self.path.ends_with("/parts"),
                _ => false,
            }
    }

    /// The client's `api-version`, if it is present and not empty.
    pub fn client_api_version(&self) -> Option<Cow<'_, str>> {
        self.query.value(QueryKeyKind::ApiVersion).filter(|version| !version.is_empty())
    }

    /// The `api-version` to send upstream. On a classic path: the backend's, else the client's, else
    /// the default. On v1: the client's if it is `v1` or `preview`, else none, because v1 does not
    /// accept a dated version.
    pub fn upstream_api_version<'a>(
        &'a self,
        backend: Option<&'a str>,
        default: Option<&'a str>,
    ) -> Option<Cow<'a, str>> {
        match self.api_style {
            ApiStyle::V1 => self.client_api_version().filter(|version| is_v1_api_version(version)),
            ApiStyle::Classic if !self.is_under_openai => self.client_api_version(),
            ApiStyle::Classic => backend
                .map(Cow::Borrowed)
                .or_else(|| self.client_api_version())
                .or_else(|| default.map(Cow::Borrowed)),
        }
    }

    /// The path and query to send upstream: with the upstream deployment's name (`None` keeps the
    /// client's), the `api-version` of [`RequestTarget::upstream_api_version`], and no credentials.
    pub fn upstream_target(
        &self,
        upstream_deployment: Option<&DeploymentName>,
        backend_api_version: Option<&str>,
        default_api_version: Option<&str>,
    ) -> String {
        let new_name = upstream_deployment.map(DeploymentName::as_str);
        let mut out = String::with_capacity(self.path.len() + self.query.encoded_len() + 96);
        match (
            self.deployment_range_in_path.as_ref().and_then(|range| self.path_around_deployment(range)),
            new_name,
        ) {
            (Some((before, after)), Some(name)) => out.extend([before, name, after]),
            _ => out.push_str(&self.path),
        }
        let is_deployment_in_query = self.deployment.is_some() && self.deployment_range_in_path.is_none();
        let version = self.upstream_api_version(backend_api_version, default_api_version);
        let mut has_version = false;
        for (key, pair) in self.query.forwarded_pairs() {
            match key {
                QueryKeyKind::ApiVersion if version.is_none() => {}
                QueryKeyKind::ApiVersion if self.client_api_version() == version => {
                    has_version = true;
                    push_query_pair(&mut out, &[pair]);
                }
                QueryKeyKind::ApiVersion => {
                    has_version = true;
                    push_api_version(&mut out, version.as_deref());
                }
                QueryKeyKind::Deployment | QueryKeyKind::Model if is_deployment_in_query => {
                    let key = pair.split('=').next().unwrap_or_default();
                    let name = new_name.or(self.deployment.as_ref().map(DeploymentName::as_str));
                    push_query_pair(&mut out, &[key, "=", name.unwrap_or_default()]);
                }
                _ => push_query_pair(&mut out, &[pair]),
            }
        }
        if !has_version {
            push_api_version(&mut out, version.as_deref());
        }
        out
    }

    /// The path before and after the deployment.
    fn path_around_deployment(&self, range: &Range<usize>) -> Option<(&str, &str)> {
        Some((self.path.get(..range.start)?, self.path.get(range.end..)?))
    }
}

fn push_query_pair(out: &mut String, parts: &[&str]) {
    out.push(if out.contains('?') { '&' } else { '?' });
    out.extend(parts.iter().copied());
}

fn push_api_version(out: &mut String, version: Option<&str>) {
    let Some(version) = version else { return };
    push_query_pair(out, &["api-version="]);
    for byte in version.bytes() {
        if is_unreserved(byte) {
            out.push(char::from(byte));
        } else {
            push_percent_encoded(out, byte);
        }
    }
}

/// The values of `api-version` on v1, where it is optional (Azure's OpenAPI document of v1).
fn is_v1_api_version(version: &str) -> bool {
    version.eq_ignore_ascii_case("v1") || version.eq_ignore_ascii_case("preview")
}

fn deployment_from_query(query: &QueryString) -> Result<Option<DeploymentName>, TargetError> {
    let deployment_under = |key| match query.value(key) {
        Some(name) => DeploymentName::parse(&name).map(Some).map_err(|_| TargetError::InvalidDeploymentName),
        None => Ok(None),
    };
    match (deployment_under(QueryKeyKind::Deployment)?, deployment_under(QueryKeyKind::Model)?) {
        (Some(one), Some(other)) if one != other => Err(TargetError::ConflictingDeployments),
        (one, other) => Ok(one.or(other)),
    }
}

/// Rejects characters that must be percent-encoded. What passes is printable ASCII.
fn check_characters(raw: &[u8]) -> Result<&str, TargetError> {
    let is_forbidden =
        |b: &u8| !b.is_ascii_graphic() || matches!(b, b'#' | b'\\' | b'<' | b'>' | b'"' | b'`');
    if raw.iter().any(is_forbidden) {
        return Err(TargetError::ForbiddenCharacter);
    }
    std::str::from_utf8(raw).map_err(|_| TargetError::ForbiddenCharacter)
}

fn to_origin_form(text: &str) -> Result<&str, TargetError> {
    if text.starts_with('/') {
        return Ok(text);
    }
    let (scheme, rest) = text.split_once("://").ok_or(TargetError::NotAPath)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(TargetError::NotAPath);
    }
    let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
    Ok(rest.get(authority_end..).unwrap_or_default())
}

/// Normalises a path and classifies its segments. Empty segments are dropped: `//` counts as `/`. A path
/// that begins with `/v1` counts as one under `/openai/v1`.
fn parse_path(raw: &str) -> Result<RequestTarget, TargetError> {
    let mut target = RequestTarget {
        api_style: ApiStyle::Classic,
        operation: Operation::Other,
        path: String::with_capacity(raw.len().max(1)),
        deployment: None,
        query: QueryString::default(),
        has_object_id: false,
        cursor_kind: None,
        references_in_path: Vec::new(),
        deployment_range_in_path: None,
        is_under_openai: false,
    };
    let (mut matcher, mut position) = (PathMatcher::new(), PathPosition::Start);
    for segment in raw.split('/').filter(|segment| !segment.is_empty()) {
        target.path.push('/');
        let start = target.path.len();
        push_normalised_segment(&mut target.path, segment)?;
        let normalised = target.path.get(start..).unwrap_or_default();
        // Servers disagree about whether they resolve dot segments before they match a path.
        if matches!(normalised, "." | "..") {
            return Err(TargetError::DotSegment);
        }
        let is_word = |word: &str| normalised.eq_ignore_ascii_case(word);
        let keyword = match position {
            // The OpenAI SDKs' own paths, for clients whose base URL ends with the host.
            PathPosition::Start if is_word("v1") => {
                (target.is_under_openai, target.api_style) = (true, ApiStyle::V1);
                position = PathPosition::InOperation;
                Some("openai/v1")
            }
            PathPosition::Start => {
                target.is_under_openai = is_word("openai");
                position = if target.is_under_openai {
                    PathPosition::AfterOpenai
                } else {
                    PathPosition::OutsideOpenai
                };
                target.is_under_openai.then_some("openai")
            }
            PathPosition::AfterOpenai if is_word("v1") => {
                (target.api_style, position) = (ApiStyle::V1, PathPosition::InOperation);
                Some("v1")
            }
            PathPosition::AfterOpenai if is_word("deployments") => {
                position = PathPosition::AfterDeployments;
                Some("deployments")
            }
            PathPosition::AfterDeployments => {
                let name =
                    DeploymentName::parse(normalised).map_err(|_| TargetError::InvalidDeploymentName)?;
                target.deployment = Some(name);
                target.deployment_range_in_path = Some(start..target.path.len());
                position = PathPosition::InOperation;
                None
            }
            PathPosition::AfterOpenai | PathPosition::InOperation => {
                position = PathPosition::InOperation;
                match matcher.classify_next_segment(normalised) {
                    SegmentKind::Keyword(keyword) => Some(keyword),
                    SegmentKind::Id(kind) => {
                        target.has_object_id = true;
                        target.references_in_path.extend(kind.map(|kind| (kind, start..target.path.len())));
                        None
                    }
                    SegmentKind::Unknown => None,
                }
            }
            PathPosition::OutsideOpenai => None,
        };
        if let Some(keyword) = keyword {
            target.path.truncate(start);
            target.path.push_str(keyword);
        }
    }
    if target.path.is_empty() {
        target.path.push('/');
    }
    target.operation = matcher.operation();
    target.cursor_kind = matcher.next_id_kind();
    Ok(target)
}

/// What the next segment of the path can be.
enum PathPosition {
    Start,
    AfterOpenai,
    AfterDeployments,
    InOperation,
    OutsideOpenai,
}

/// Appends a segment with unreserved characters decoded and all other percent-encodings in upper
/// case (RFC 3986, section 6.2.2).
fn push_normalised_segment(out: &mut String, segment: &str) -> Result<(), TargetError> {
    if memchr::memchr(b'%', segment.as_bytes()).is_none() {
        out.push_str(segment);
        return Ok(());
    }
    let mut rest = segment.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            out.push(char::from(byte));
            continue;
        }
        let (decoded, after) = decode_hex_pair(rest)?;
        rest = after;
        match decoded {
            // A server that decodes before it splits the path sees another path; `%25` would become
            // a percent sign that a second decoding reads once more.
            b'/' | b'\\' | b'.' | b'%' => return Err(TargetError::AmbiguousEncoding),
            byte if byte.is_ascii_control() || !byte.is_ascii() => {
                return Err(TargetError::AmbiguousEncoding);
            }
            byte if is_unreserved(byte) => out.push(char::from(byte)),
            byte => push_percent_encoded(out, byte),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
