//! The exchange record: one JSON object per request, whatever became of it.
//!
//! Field names are a contract. Unknown is `null`, never 0 or "". Everything that can be done
//! after the client has its answer is done here and off the proxy threads: prompt text,
//! parsing of JSON replies, formatting.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use log::{Level, info, log_enabled};

use crate::admission::clients::Client;
use crate::azure::request::prompt::Parts;
use crate::azure::request::{multipart, prompt};
use crate::azure::response::answer::Answer;
use crate::azure::response::body::ReplyBody;
use crate::azure::response::usage::Usage;
use crate::azure::{Operation, Target};
use crate::names::{BackendName, Deployment};
use crate::record::estimate;
use crate::record::line::Line;
use crate::record::metrics::Metrics;
use crate::record::redact::Redaction;

/// What the lines of the access log go by, which nobody gets who does not ask for it.
const ACCESS: &str = "access";

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A backend's answer reached the client whole.
    Answered,
    /// The balancer said no.
    Refused,
    /// No answer, or one that broke off.
    Failed,
    /// The client left first.
    ClientGone,
}

impl Outcome {
    /// What records call it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::ClientGone => "client_gone",
        }
    }
}

/// One try on one backend.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The backend's name.
    pub backend: BackendName,
    /// The status of its reply.
    pub status: Option<u16>,
    /// Why there was none.
    pub error: Option<&'static str>,
    /// From the choice of the backend until its verdict, in milliseconds.
    pub ms: u64,
    /// How long it asked to wait, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

/// What is known of the request's body, kept for the prompt. It and what holds it have no `Debug`:
/// prompts reach no log.
pub struct Asked {
    /// The body as the client sent it.
    pub body: Bytes,
    /// Its content type.
    pub content_type: String,
    /// Where its prompt lies, if that is known.
    pub prompt: Option<Parts>,
}

/// What is known of the reply's body.
#[derive(Default)]
pub enum Answered {
    /// Nothing to read tokens or text from.
    #[default]
    Opaque,
    /// A reply that is no stream.
    Reply {
        /// What was kept of it.
        body: ReplyBody,
        /// Whether it called itself JSON.
        is_json: bool,
    },
    /// Sound or pictures: how much, and its SHA-256.
    Binary {
        /// Bytes of it.
        bytes: u64,
        /// Of those bytes.
        sha256: [u8; 32],
    },
    /// A stream, read as it passed.
    Stream(Box<Answer>),
}

/// How much of prompt and completion to keep.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep {
    /// Keep the prompt.
    pub prompt: bool,
    /// Keep the completion.
    pub completion: bool,
    /// Bytes of each; what is cut is marked as cut.
    pub limit: usize,
    /// Bytes of the completion that are gathered: more than the limit where patterns are taken out
    /// before it is cut.
    pub gather: usize,
    /// Tokens of streams that break off are estimated.
    pub estimates: bool,
}

/// Everything known of a request once it is over.
pub struct Exchange {
    /// When its head was complete.
    pub time: SystemTime,
    /// Ours, a UUIDv7.
    pub request_id: Arc<str>,
    /// Who asked; `None` when it was refused before that was known.
    pub client: Option<Arc<Client>>,
    /// The client's address, told by a trusted proxy or the connection.
    pub client_ip: Option<IpAddr>,
    /// The connection's address.
    pub peer_ip: Option<IpAddr>,
    /// HTTP method.
    pub method: String,
    /// Where it went; `None` when the target could not be read.
    pub target: Option<Arc<Target>>,
    /// The path as sent, escaped and cut, where `target` is `None`.
    pub raw_path: Option<String>,
    /// The api-version that went upstream, or the client's.
    pub api_version: Option<String>,
    /// The deployment asked for.
    pub deployment: Option<Deployment>,
    /// Whether that is one of the configuration's, or one that a backend has answered for.
    pub is_known_deployment: bool,
    /// What the balancer itself took.
    pub overhead: Duration,
    /// Whether a stream was asked for; `None` when the body was not read.
    pub stream: Option<bool>,
    /// The status the client saw; `None` if it saw none.
    pub status: Option<u16>,
    /// How it ended.
    pub outcome: Outcome,
    /// The code of our refusal.
    pub refusal: Option<&'static str>,
    /// Whose answer the client saw.
    pub backend: Option<BackendName>,
    /// The name of the deployment there.
    pub upstream_deployment: Option<Deployment>,
    /// `x-ms-region` of the answer.
    pub region: Option<String>,
    /// `apim-request-id` of the answer.
    pub apim_request_id: Option<String>,
    /// Every try, in order.
    pub attempts: Vec<Attempt>,
    /// From the complete head to the end.
    pub duration: Duration,
    /// From the complete head to the first byte of the answer's body.
    pub first_byte: Option<Duration>,
    /// Bytes of the request's body; `None` when it was not read to its end.
    pub request_bytes: Option<u64>,
    /// Bytes of the body the client was sent.
    pub response_bytes: u64,
    /// The request's body.
    pub asked: Option<Asked>,
    /// The prompt, where it was made beforehand, and whether it was cut.
    pub prompt: Option<(String, bool)>,
    /// The reply's body.
    pub answered: Answered,
    /// Prompt and answer were let go of, since records could not be written fast enough.
    pub lightened: bool,
}

/// About what a stream's account takes beside its text.
const STREAM_SIZE: usize = 4 * 1024;
/// A body from this size on takes a while to be made a prompt of.
const LARGE: usize = 128 * 1024;
/// How much of a prompt is looked through beyond its limit, so that what is to be taken out is found
/// whole where it crosses it.
const BEYOND: usize = 16 * 1024;

impl Exchange {
    /// About how much memory it takes until it is written.
    pub fn size(&self) -> usize {
        let asked = self.asked.as_ref().map_or(0, |asked| asked.body.len());
        let answered = match &self.answered {
            Answered::Opaque | Answered::Binary { .. } => 0,
            Answered::Reply { body, .. } => body.size(),
            Answered::Stream(answer) => STREAM_SIZE + answer.kept(),
        };
        size_of::<Self>() + asked + answered
    }

    fn operation(&self) -> Operation {
        self.target.as_ref().map_or(Operation::Other, |target| target.operation)
    }

    /// Whether its tokens can only be estimated: a stream that broke off before it told them.
    pub fn wants_estimate(&self) -> bool {
        let is_cut =
            matches!(self.outcome, Outcome::ClientGone | Outcome::Failed) && self.status == Some(200);
        let untold = |answered: &Answered| match answered {
            Answered::Stream(answer) => answer.usage.is_none() && !answer.is_estimated,
            _ => false,
        };
        is_cut && untold(&self.answered)
    }

    /// Estimates its tokens.
    fn estimate(&mut self) {
        let Answered::Stream(answer) = &mut self.answered else { return };
        let deployment = self.deployment.as_ref().map(Deployment::key);
        let model = answer.model.as_deref().or(deployment.as_deref());
        let body = self.asked.as_ref().map(|asked| &asked.body[..]);
        let said = answer.completion();
        let usage = estimate::estimate(model, body, said.as_deref());
        answer.usage = Some(usage).filter(|usage| *usage != Usage::default());
        answer.is_estimated = true;
    }

    /// Whether making a record of it takes so long that others should not wait for it.
    pub fn is_slow(&self, keep: Keep) -> bool {
        let is_large = matches!(&self.answered, Answered::Reply { body, .. } if body.size() > 8 * LARGE);
        self.wants_estimate()
            || is_large
            || (keep.prompt && self.asked.as_ref().is_some_and(|asked| asked.body.len() > LARGE))
    }

    /// Does beforehand what takes long.
    pub fn prepare(&mut self, keep: Keep, redaction: &Redaction) {
        if self.wants_estimate() {
            self.estimate();
        }
        self.prompt =
            self.asked.take().filter(|_| keep.prompt).and_then(|asked| asked.prompt(keep, redaction));
        if matches!(self.answered, Answered::Reply { .. }) {
            let operation = self.operation();
            let answer = std::mem::take(&mut self.answered).read(operation, keep);
            self.answered = Answered::Stream(Box::new(answer));
        }
    }

    /// A line for the log of whoever asks for one: no query, no prompt.
    fn access(&self, usage: Option<&Usage>) -> String {
        let none = "-";
        let word = |word: Option<String>| word.unwrap_or_else(|| none.to_owned());
        let path = self.target.as_ref().map(|target| target.path.as_str()).or(self.raw_path.as_deref());
        let backends: Vec<&str> = self.attempts.iter().map(|attempt| attempt.backend.as_str()).collect();
        format!(
            "{} {} {} {} {} {} by {} in {} ms, tokens {}/{}",
            self.request_id,
            word(self.client_ip.map(|ip| ip.to_canonical().to_string())),
            self.client.as_ref().and_then(|client| client.name.as_ref()).map_or(none, |name| name.as_str()),
            self.method.escape_debug(),
            path.unwrap_or(none),
            word(self.status.map(|status| status.to_string())),
            if backends.is_empty() { none.to_owned() } else { backends.join(",") },
            millis(self.duration),
            word(usage.and_then(|usage| usage.input).map(|count| count.to_string())),
            word(usage.and_then(|usage| usage.output).map(|count| count.to_string())),
        )
    }

    /// Lets go of prompt and answer, which is then said in the record; tokens stay.
    pub fn lighten(&mut self) {
        self.asked = None;
        self.prompt = None;
        match &mut self.answered {
            Answered::Stream(answer) => answer.forget_text(),
            // The end of a reply tells its tokens.
            Answered::Reply { body, .. } if body.size() <= LARGE => {}
            answered => *answered = Answered::Opaque,
        }
        self.lightened = true;
    }

    /// The record of this exchange.
    pub fn line(&mut self, keep: Keep, redaction: &Redaction, metrics: &Metrics) -> Line<'_> {
        let operation = self.operation();
        if self.asked.is_some() {
            self.prepare(keep, redaction);
        }
        let (prompt, prompt_cut) = self.prompt.take().unzip();
        let prompt_cut = prompt_cut.unwrap_or(false);
        let said = std::mem::take(&mut self.answered).read(operation, keep);
        let completion = said.completion().filter(|_| keep.completion && !self.lightened);
        let mut completion = completion.map(|completion| redaction.json(completion));
        if let Some(text) = completion.as_mut().filter(|_| said.is_cut() && !redaction.is_empty()) {
            // What is to be taken out may have been cut through at its end.
            text.truncate(text.floor_char_boundary(text.len().saturating_sub(BEYOND)));
        }
        let completion_cut = completion.as_mut().is_some_and(|completion| cut(completion, keep.limit));
        let said_is_cut = completion_cut || (keep.completion && said.is_cut());
        let content_cut = self.lightened || prompt_cut || said_is_cut;
        metrics.observe(self, said.usage.as_ref());
        if log_enabled!(target: ACCESS, Level::Info) {
            info!(target: ACCESS, "{}", self.access(said.usage.as_ref()));
        }
        let usage = said.usage.unwrap_or_default();
        Line {
            time: timestamp(self.time),
            request_id: &self.request_id,
            client: self.client.as_ref().and_then(|client| client.name.as_ref()).map(|name| name.as_str()),
            client_ip: self.client_ip,
            peer_ip: self.peer_ip,
            method: &self.method,
            path: self.target.as_ref().map(|target| target.path.as_str()).or(self.raw_path.as_deref()),
            operation: self.target.as_ref().map(|target| target.operation.name()),
            api: self.target.as_ref().map(|target| target.api.name()),
            api_version: self.api_version.as_deref(),
            deployment: self.deployment.as_ref().map(Deployment::as_str),
            stream: self.stream,
            status: self.status,
            outcome: self.outcome,
            refusal: self.refusal,
            backend: self.backend.as_ref().map(BackendName::as_str),
            upstream_deployment: self.upstream_deployment.as_ref().map(Deployment::as_str),
            region: self.region.as_deref(),
            model: said.model,
            attempts: &self.attempts,
            duration_ms: millis(self.duration),
            first_byte_ms: self.first_byte.map(millis),
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            usage,
            usage_source: match said.usage {
                Some(_) if said.is_estimated => "estimated",
                Some(_) => "reported",
                None => "none",
            },
            finish_reason: said.finish_reason,
            apim_request_id: self.apim_request_id.as_deref(),
            prompt,
            completion,
            content_cut,
        }
    }
}

impl Asked {
    /// The prompt as it is written down, and whether it was cut.
    fn prompt(&self, keep: Keep, redaction: &Redaction) -> Option<(String, bool)> {
        let mut text = match multipart::boundary(&self.content_type) {
            None => prompt::prompt_text(&self.body, self.prompt.as_ref())?,
            Some(boundary) => {
                let form = multipart::probe(&self.body, &boundary).ok()?;
                prompt::form_text(&self.body, &form)?
            }
        };
        if redaction.is_empty() {
            let is_cut = cut(&mut text, keep.limit);
            return Some((text, is_cut));
        }
        // No more is looked through than could be written down.
        let is_long = cut(&mut text, keep.limit.saturating_mul(2).saturating_add(2 * BEYOND));
        let mut text = redaction.json(text);
        if is_long {
            text.truncate(text.floor_char_boundary(text.len().saturating_sub(BEYOND)));
        }
        let is_cut = cut(&mut text, keep.limit) || is_long;
        Some((text, is_cut))
    }
}

impl Answered {
    fn read(self, operation: Operation, keep: Keep) -> Answer {
        let mut answer = Answer::new(operation, if keep.completion { keep.gather } else { 0 });
        match self {
            Self::Opaque => {}
            Self::Binary { bytes, sha256 } => {
                let digest: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
                answer.plain_reply(&format!("{{\"bytes\":{bytes},\"sha256\":\"{digest}\"}}"));
            }
            Self::Reply { body, is_json } => body.tell(is_json, &mut answer),
            Self::Stream(answer) => return *answer,
        }
        answer
    }
}

/// Cuts a text to so many bytes, at a character; returns whether anything went.
fn cut(text: &mut String, limit: usize) -> bool {
    if text.len() <= limit {
        return false;
    }
    text.truncate(text.floor_char_boundary(limit));
    true
}

fn timestamp(time: SystemTime) -> String {
    chrono::DateTime::<chrono::Utc>::from(time).to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
