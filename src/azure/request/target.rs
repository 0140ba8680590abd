//! The request target: which dialect, which operation, which deployment, and what to send
//! upstream. Refuses every spelling that two servers could read differently, so that nothing
//! gets round an allow list; whether a path is allowed is decided elsewhere.

use std::borrow::Cow;
use std::ops::Range;

use http::Method;

use super::operation::{Operation, PathMatcher, SegmentKind};
use super::percent::{decode_hex_pair, is_unreserved, push_percent_encoded};
use super::query::{QueryKey, QueryString};
use super::target_error::TargetError;
use crate::names::DeploymentName;

/// The two ways of addressing Azure OpenAI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApiStyle {
    /// `/openai/…?api-version=…`, the deployment in the path.
    Classic,
    /// `/openai/v1/…`, the deployment in the body's `model`.
    V1,
}

impl ApiStyle {
    /// The word used in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::V1 => "v1",
        }
    }
}

/// Where a call's deployment is to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeploymentSource {
    /// In the target: [`RequestTarget::deployment`] is there.
    Target,
    /// In the body: the JSON key or the form field `model`.
    Body,
    /// Nowhere: the call goes to the home backend.
    Unspecified,
}

/// A request target, understood.
#[derive(Clone, Debug)]
pub struct RequestTarget {
    /// The dialect; paths outside `/openai` count as classic.
    pub api: ApiStyle,
    /// The operation.
    pub operation: Operation,
    /// The normalised path without query: the one matched, recorded and forwarded.
    pub path: String,
    /// The deployment of the classic path, or of the query of a WebSocket upgrade.
    pub deployment: Option<DeploymentName>,
    /// The query, without credentials.
    pub query: QueryString,
    /// Whether the path addresses one object by its id.
    pub has_object_id: bool,
    /// The deployment's segment within `path`.
    deployment_range: Option<Range<usize>>,
    /// Whether the path begins with `/openai`.
    is_under_openai: bool,
}

/// Reads a request target, in origin form or absolute form. `upgrade` says that the request
/// asks for a WebSocket, whose deployment is in the query.
///
/// # Errors
/// [`TargetError`], each of them a 400.
pub fn parse_target(raw_target: &[u8], upgrade: bool) -> Result<RequestTarget, TargetError> {
    let text = check_characters(raw_target)?;
    let text = to_origin_form(text)?;
    let (raw_path, raw_query) = text.split_once('?').unwrap_or((text, ""));
    let mut target = parse_path(raw_path)?;
    target.query = QueryString::parse(raw_query)?;
    let may_name_deployment_in_query = matches!(target.operation, Operation::Realtime | Operation::Responses);
    if upgrade && may_name_deployment_in_query && target.deployment.is_none() {
        target.deployment = deployment_from_query(&target.query)?;
    }
    Ok(target)
}

impl RequestTarget {
    /// Where this call's deployment is to be found, and so whether it is balanced.
    pub fn deployment_source(&self, method: &Method) -> DeploymentSource {
        use Operation::{Audio, Chat, Completions, Embeddings, Images, Responses};
        let names_deployment_in_body = match self.operation {
            Responses => true,
            Chat | Completions | Embeddings | Images | Audio => self.api == ApiStyle::V1,
            _ => false,
        };
        match () {
            () if self.deployment.is_some() => DeploymentSource::Target,
            () if names_deployment_in_body && !self.has_object_id && method == Method::POST => {
                DeploymentSource::Body
            }
            () => DeploymentSource::Unspecified,
        }
    }

    /// Whether the body may be passed through without being held: a file or a part of one.
    pub fn is_upload(&self, method: &Method) -> bool {
        method == Method::POST
            && match self.operation {
                Operation::Files => !self.has_object_id,
                Operation::Uploads => self.path.ends_with("/parts"),
                _ => false,
            }
    }

    /// The client's `api-version`, if it gave one.
    pub fn client_api_version(&self) -> Option<Cow<'_, str>> {
        self.query.value(QueryKey::ApiVersion).filter(|version| !version.is_empty())
    }

    /// The `api-version` that goes upstream: on a classic path the backend's, else the
    /// client's, else the default; on v1 the client's, if it is `v1` or `preview`.
    pub fn upstream_api_version<'a>(
        &'a self,
        backend: Option<&'a str>,
        default: Option<&'a str>,
    ) -> Option<Cow<'a, str>> {
        match self.api {
            ApiStyle::V1 => self.client_api_version().filter(|version| is_v1_api_version(version)),
            ApiStyle::Classic if !self.is_under_openai => self.client_api_version(),
            ApiStyle::Classic => backend
                .map(Cow::Borrowed)
                .or_else(|| self.client_api_version())
                .or_else(|| default.map(Cow::Borrowed)),
        }
    }

    /// Path and query as they go upstream: the deployment renamed (`None` keeps the client's
    /// spelling), `api-version` as [`RequestTarget::upstream_api_version`] says, no credential.
    pub fn upstream_target(
        &self,
        upstream_deployment: Option<&DeploymentName>,
        backend_api_version: Option<&str>,
        default_api_version: Option<&str>,
    ) -> String {
        let new_name = upstream_deployment.map(DeploymentName::as_str);
        let mut out = String::with_capacity(self.path.len() + self.query.encoded_len() + 96);
        match (self.deployment_range.as_ref().and_then(|range| self.path_around_deployment(range)), new_name)
        {
            (Some((before, after)), Some(name)) => out.extend([before, name, after]),
            _ => out.push_str(&self.path),
        }
        let is_deployment_in_query = self.deployment.is_some() && self.deployment_range.is_none();
        let version = self.upstream_api_version(backend_api_version, default_api_version);
        let mut has_version = false;
        for (key, pair) in self.query.pairs() {
            match key {
                QueryKey::ApiVersion if version.is_none() => {}
                QueryKey::ApiVersion if self.client_api_version() == version => {
                    has_version = true;
                    push_query_pair(&mut out, &[pair]);
                }
                QueryKey::ApiVersion => {
                    has_version = true;
                    push_api_version(&mut out, version.as_deref());
                }
                QueryKey::Deployment | QueryKey::Model if is_deployment_in_query => {
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

/// On v1 `api-version` is optional, and these are its values.
fn is_v1_api_version(version: &str) -> bool {
    version.eq_ignore_ascii_case("v1") || version.eq_ignore_ascii_case("preview")
}

fn deployment_from_query(query: &QueryString) -> Result<Option<DeploymentName>, TargetError> {
    let deployment_under = |key| match query.value(key) {
        Some(name) => DeploymentName::parse(&name).map(Some).map_err(|_| TargetError::InvalidDeploymentName),
        None => Ok(None),
    };
    match (deployment_under(QueryKey::Deployment)?, deployment_under(QueryKey::Model)?) {
        (Some(one), Some(other)) if one != other => Err(TargetError::ConflictingDeployments),
        (one, other) => Ok(one.or(other)),
    }
}

/// Refuses what no target may contain raw. What is left is ASCII text.
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

/// Normalises a path and follows its segments.
fn parse_path(raw: &str) -> Result<RequestTarget, TargetError> {
    let mut target = RequestTarget {
        api: ApiStyle::Classic,
        operation: Operation::Other,
        path: String::with_capacity(raw.len().max(1)),
        deployment: None,
        query: QueryString::default(),
        has_object_id: false,
        deployment_range: None,
        is_under_openai: false,
    };
    let (mut matcher, mut position) = (PathMatcher::new(), PathPosition::Start);
    for segment in raw.split('/').filter(|segment| !segment.is_empty()) {
        target.path.push('/');
        let start = target.path.len();
        push_normalised_segment(&mut target.path, segment)?;
        let normalised = target.path.get(start..).unwrap_or_default();
        if matches!(normalised, "." | "..") {
            return Err(TargetError::DotSegment);
        }
        let is_word = |word: &str| normalised.eq_ignore_ascii_case(word);
        let keyword = match position {
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
                (target.api, position) = (ApiStyle::V1, PathPosition::InOperation);
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
                target.deployment_range = Some(start..target.path.len());
                position = PathPosition::InOperation;
                None
            }
            PathPosition::AfterOpenai | PathPosition::InOperation => {
                position = PathPosition::InOperation;
                match matcher.classify_segment(normalised) {
                    SegmentKind::Keyword(keyword) => Some(keyword),
                    SegmentKind::Id => {
                        target.has_object_id = true;
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
    Ok(target)
}

/// Where in the path the next segment stands.
enum PathPosition {
    Start,
    AfterOpenai,
    AfterDeployments,
    InOperation,
    OutsideOpenai,
}

/// Appends a segment with its unreserved characters decoded and its other escapes in upper
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
