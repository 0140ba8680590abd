//! The request target: which dialect, which operation, which deployment, and what to send
//! upstream. Refuses every spelling that two servers could read differently, so that nothing
//! gets round an allow list; whether a path is allowed is decided elsewhere.

use std::borrow::Cow;
use std::ops::Range;

use http::Method;

use super::operation::{Operation, Reader, Segment};
use super::query::{Key, Query};
use crate::names::Deployment;

/// The two ways of addressing Azure OpenAI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    /// `/openai/…?api-version=…`, the deployment in the path.
    Classic,
    /// `/openai/v1/…`, the deployment in the body's `model`.
    V1,
}

impl Api {
    /// The word used in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::V1 => "v1",
        }
    }
}

/// Why a request target is refused with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// Neither `/path` nor `http://host/path`.
    #[error("the request target must be a path")]
    Form,
    /// A raw character that does not belong there.
    #[error(
        "the request target has a control character, a backslash, `#`, a blank, or a character that must be percent-encoded"
    )]
    Character,
    /// `%` without two hex digits.
    #[error("the request target has a percent sign without two hex digits")]
    Escape,
    /// An escape that could mean another path to another server.
    #[error("the path has an encoded slash, backslash, dot, percent sign, control or non-ASCII character")]
    Encoded,
    /// `.` or `..` as a segment.
    #[error("the path has a `.` or `..` segment")]
    DotSegment,
    /// The deployment is none.
    #[error("{}", crate::names::BadDeploymentName)]
    DeploymentName,
    /// A query key that may occur once occurs again.
    #[error("the query has more than one `{0}`")]
    DuplicateKey(&'static str),
    /// An upgrade names two deployments.
    #[error("the query's `deployment` and `model` differ")]
    TwoDeployments,
}

/// Where a call's deployment is to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// In the target: [`Target::deployment`] is there.
    Target,
    /// In the body: the JSON key or the form field `model`.
    Body,
    /// Nowhere: the call goes to the home backend.
    Home,
}

/// A request target, understood.
#[derive(Clone, Debug)]
pub struct Target {
    /// The dialect; paths outside `/openai` count as classic.
    pub api: Api,
    /// The operation.
    pub operation: Operation,
    /// The normalised path without query: the one matched, recorded and forwarded.
    pub path: String,
    /// The deployment of the classic path, or of the query of a WebSocket upgrade.
    pub deployment: Option<Deployment>,
    /// The query, without credentials.
    pub query: Query,
    /// Whether the path addresses one object by its id.
    pub item: bool,
    /// The deployment's segment within `path`.
    deployment_at: Option<Range<usize>>,
    /// Whether the path begins with `/openai`.
    openai: bool,
}

/// Reads a request target, in origin form or absolute form. `upgrade` says that the request
/// asks for a WebSocket, whose deployment is in the query.
///
/// # Errors
/// [`BadTarget`], each of them a 400.
pub fn parse(raw_target: &[u8], upgrade: bool) -> Result<Target, BadTarget> {
    let text = characters(raw_target)?;
    let text = origin_form(text)?;
    let (raw_path, raw_query) = text.split_once('?').unwrap_or((text, ""));
    let mut target = read_path(raw_path)?;
    target.query = Query::parse(raw_query)?;
    let by_query = matches!(target.operation, Operation::Realtime | Operation::Responses);
    if upgrade && by_query && target.deployment.is_none() {
        target.deployment = queried_deployment(&target.query)?;
    }
    Ok(target)
}

impl Target {
    /// Where this call's deployment is to be found, and so whether it is balanced.
    pub fn naming(&self, method: &Method) -> Naming {
        use Operation::{Audio, Chat, Completions, Embeddings, Images, Responses};
        let by_body = match self.operation {
            Responses => true,
            Chat | Completions | Embeddings | Images | Audio => self.api == Api::V1,
            _ => false,
        };
        match () {
            () if self.deployment.is_some() => Naming::Target,
            () if by_body && !self.item && method == Method::POST => Naming::Body,
            () => Naming::Home,
        }
    }

    /// Whether the body may be passed through without being held: a file or a part of one.
    pub fn is_upload(&self, method: &Method) -> bool {
        method == Method::POST
            && match self.operation {
                Operation::Files => !self.item,
                Operation::Uploads => self.path.ends_with("/parts"),
                _ => false,
            }
    }

    /// The client's `api-version`, if it gave one.
    pub fn api_version(&self) -> Option<Cow<'_, str>> {
        self.query.value(Key::ApiVersion).filter(|version| !version.is_empty())
    }

    /// The `api-version` that goes upstream: on a classic path the backend's, else the
    /// client's, else the default; on v1 the client's, if it is `v1` or `preview`.
    pub fn effective_api_version<'a>(
        &'a self,
        backend: Option<&'a str>,
        default: Option<&'a str>,
    ) -> Option<Cow<'a, str>> {
        match self.api {
            Api::V1 => self.api_version().filter(|version| is_v1_version(version)),
            Api::Classic if !self.openai => self.api_version(),
            Api::Classic => backend
                .map(Cow::Borrowed)
                .or_else(|| self.api_version())
                .or_else(|| default.map(Cow::Borrowed)),
        }
    }

    /// Path and query as they go upstream: the deployment renamed (`None` keeps the client's
    /// spelling), `api-version` as [`Target::effective_api_version`] says, no credential.
    pub fn upstream_path(
        &self,
        upstream_deployment: Option<&Deployment>,
        backend_api_version: Option<&str>,
        default_api_version: Option<&str>,
    ) -> String {
        let renamed = upstream_deployment.map(Deployment::as_str);
        let mut out = String::with_capacity(self.path.len() + self.query.len() + 96);
        match (self.deployment_at.as_ref().and_then(|at| self.around(at)), renamed) {
            (Some((before, after)), Some(name)) => out.extend([before, name, after]),
            _ => out.push_str(&self.path),
        }
        let in_query = self.deployment.is_some() && self.deployment_at.is_none();
        let version = self.effective_api_version(backend_api_version, default_api_version);
        let mut sent_version = false;
        for (key, pair) in self.query.pairs() {
            match key {
                Key::ApiVersion if version.is_none() => {}
                Key::ApiVersion if self.api_version() == version => {
                    sent_version = true;
                    push_pair(&mut out, &[pair]);
                }
                Key::ApiVersion => {
                    sent_version = true;
                    push_version(&mut out, version.as_deref());
                }
                Key::Deployment | Key::Model if in_query => {
                    let key = pair.split('=').next().unwrap_or_default();
                    let name = renamed.or(self.deployment.as_ref().map(Deployment::as_str));
                    push_pair(&mut out, &[key, "=", name.unwrap_or_default()]);
                }
                _ => push_pair(&mut out, &[pair]),
            }
        }
        if !sent_version {
            push_version(&mut out, version.as_deref());
        }
        out
    }

    fn around(&self, at: &Range<usize>) -> Option<(&str, &str)> {
        Some((self.path.get(..at.start)?, self.path.get(at.end..)?))
    }
}

fn push_pair(out: &mut String, parts: &[&str]) {
    out.push(if out.contains('?') { '&' } else { '?' });
    out.extend(parts.iter().copied());
}

fn push_version(out: &mut String, version: Option<&str>) {
    let Some(version) = version else { return };
    push_pair(out, &["api-version="]);
    for byte in version.bytes() {
        if is_unreserved(byte) {
            out.push(char::from(byte));
        } else {
            push_escape(out, byte);
        }
    }
}

/// On v1 `api-version` is optional, and these are its values.
fn is_v1_version(version: &str) -> bool {
    version.eq_ignore_ascii_case("v1") || version.eq_ignore_ascii_case("preview")
}

fn queried_deployment(query: &Query) -> Result<Option<Deployment>, BadTarget> {
    let named = |key| match query.value(key) {
        Some(name) => Deployment::parse(&name).map(Some).map_err(|_| BadTarget::DeploymentName),
        None => Ok(None),
    };
    match (named(Key::Deployment)?, named(Key::Model)?) {
        (Some(one), Some(other)) if one != other => Err(BadTarget::TwoDeployments),
        (one, other) => Ok(one.or(other)),
    }
}

/// Refuses what no target may contain raw. What is left is ASCII text.
fn characters(raw: &[u8]) -> Result<&str, BadTarget> {
    let refused = |b: &u8| !b.is_ascii_graphic() || matches!(b, b'#' | b'\\' | b'<' | b'>' | b'"' | b'`');
    if raw.iter().any(refused) {
        return Err(BadTarget::Character);
    }
    std::str::from_utf8(raw).map_err(|_| BadTarget::Character)
}

fn origin_form(text: &str) -> Result<&str, BadTarget> {
    if text.starts_with('/') {
        return Ok(text);
    }
    let (scheme, rest) = text.split_once("://").ok_or(BadTarget::Form)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(BadTarget::Form);
    }
    let authority = rest.find(['/', '?']).unwrap_or(rest.len());
    Ok(rest.get(authority..).unwrap_or_default())
}

/// Normalises a path and follows its segments.
fn read_path(raw: &str) -> Result<Target, BadTarget> {
    let mut target = Target {
        api: Api::Classic,
        operation: Operation::Other,
        path: String::with_capacity(raw.len().max(1)),
        deployment: None,
        query: Query::default(),
        item: false,
        deployment_at: None,
        openai: false,
    };
    let (mut words, mut place) = (Reader::new(), Place::Root);
    for segment in raw.split('/').filter(|segment| !segment.is_empty()) {
        target.path.push('/');
        let start = target.path.len();
        push_segment(&mut target.path, segment)?;
        let written = target.path.get(start..).unwrap_or_default();
        if matches!(written, "." | "..") {
            return Err(BadTarget::DotSegment);
        }
        let is = |word: &str| written.eq_ignore_ascii_case(word);
        let word = match place {
            Place::Root => {
                target.openai = is("openai");
                place = if target.openai { Place::Openai } else { Place::Outside };
                target.openai.then_some("openai")
            }
            Place::Openai if is("v1") => {
                (target.api, place) = (Api::V1, Place::Words);
                Some("v1")
            }
            Place::Openai if is("deployments") => {
                place = Place::Deployment;
                Some("deployments")
            }
            Place::Deployment => {
                let name = Deployment::parse(written).map_err(|_| BadTarget::DeploymentName)?;
                target.deployment = Some(name);
                target.deployment_at = Some(start..target.path.len());
                place = Place::Words;
                None
            }
            Place::Openai | Place::Words => {
                place = Place::Words;
                match words.next(written) {
                    Segment::Word(word) => Some(word),
                    Segment::Id => {
                        target.item = true;
                        None
                    }
                    Segment::Unknown => None,
                }
            }
            Place::Outside => None,
        };
        if let Some(word) = word {
            target.path.truncate(start);
            target.path.push_str(word);
        }
    }
    if target.path.is_empty() {
        target.path.push('/');
    }
    target.operation = words.operation();
    Ok(target)
}

/// Where in the path the next segment stands.
enum Place {
    Root,
    Openai,
    Deployment,
    Words,
    Outside,
}

/// Appends a segment with its unreserved characters decoded and its other escapes in upper
/// case (RFC 3986, section 6.2.2).
fn push_segment(out: &mut String, segment: &str) -> Result<(), BadTarget> {
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
        let (decoded, after) = escape(rest)?;
        rest = after;
        match decoded {
            b'/' | b'\\' | b'.' | b'%' => return Err(BadTarget::Encoded),
            byte if byte.is_ascii_control() || !byte.is_ascii() => return Err(BadTarget::Encoded),
            byte if is_unreserved(byte) => out.push(char::from(byte)),
            byte => push_escape(out, byte),
        }
    }
    Ok(())
}

/// Reads the two hex digits after a percent sign.
pub(in crate::azure) fn escape(after_percent: &[u8]) -> Result<(u8, &[u8]), BadTarget> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    match after_percent {
        [high, low, rest @ ..] => match (digit(*high), digit(*low)) {
            (Some(high), Some(low)) => Ok((high << 4 | low, rest)),
            _ => Err(BadTarget::Escape),
        },
        _ => Err(BadTarget::Escape),
    }
}

fn push_escape(out: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    for nibble in [byte >> 4, byte & 15] {
        out.push(char::from(HEX[usize::from(nibble)]));
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
