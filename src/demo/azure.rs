//! Which operation a request is, in either dialect, and what surrounds every answer.
//!
//! Order of the checks: path, `Host`, number of headers, credential, mood, `api-version`, operation.

use std::time::{Instant, SystemTime};

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{Answer, Body, Protocol, Reply};
use super::codec::percent_decoded;
use super::faults::spoiled;
use super::http1::Head;
use super::limits::{Ask, Charge, Counters, Regime, Ruling};
use super::live::Live;
use super::multipart::Form;
use super::refusal::{Refusal, bad_parameter, coded, invalid};
use super::script::Mood;
use super::{
    SimDeployment, audio, auth, batches, chat, completions, embeddings, files, images, objects, responses,
    throttle,
};

/// Azure documents at most ten custom headers, and 431 above.
const MOST_CUSTOM_HEADERS: usize = 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `/openai/...?api-version=2024-10-21`
    Classic { version: String },
    /// `/openai/v1/...`
    V1,
}

/// A path taken apart.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) dialect: Dialect,
    /// The deployment in the path, or in the query of a WebSocket.
    pub(super) deployment: Option<String>,
    in_path: bool,
    /// What follows `/openai`, `/openai/v1` or the deployment, decoded.
    pub(super) segments: Vec<String>,
}

impl Route {
    /// `None` for a path that is not under `/openai`.
    pub(super) fn of(head: &Head) -> Option<Self> {
        let path = head.path().strip_prefix("/openai/")?;
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut segments: Vec<String> = path.split('/').map(|part| percent_decoded(part, false)).collect();
        let is_v1 = segments.first().is_some_and(|first| first == "v1");
        let dialect = if is_v1 {
            segments.remove(0);
            Dialect::V1
        } else {
            Dialect::Classic { version: head.query("api-version").unwrap_or_default() }
        };
        let in_path =
            !is_v1 && segments.len() > 2 && segments.first().is_some_and(|first| first == "deployments");
        let mut deployment = in_path.then(|| segments.drain(..2).nth(1)).flatten();
        if segments.first().is_some_and(|first| first == "realtime") {
            deployment = head.query(if is_v1 { "model" } else { "deployment" });
        }
        Some(Self { dialect, deployment, in_path, segments })
    }

    /// The deployment a request is for, looking into its body when the path does not say.
    pub(super) fn deployment_in(&self, head: &Head, body: &Bytes) -> Option<String> {
        self.deployment.clone().or_else(|| {
            if let Some(form) = Form::of(head, body) {
                return form.text("model");
            }
            let value: Value = serde_json::from_slice(body).ok()?;
            value.get("model")?.as_str().map(str::to_owned)
        })
    }
}

/// One request with everything needed to answer it.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) live: &'a Live,
    pub(super) head: &'a Head,
    pub(super) body: &'a Bytes,
    pub(super) route: &'a Route,
    pub(super) regime: Regime,
    pub(super) now: Instant,
}

/// Answers a request; the mood decides here whether it is refused and how limits apply.
pub(super) fn answer(live: &Live, head: &Head, body: &Bytes, mood: &Mood, now: Instant) -> Answer {
    let Some(route) = Route::of(head) else {
        return dressed(live, head, Refusal::ResourceNotFound.answer());
    };
    let regime = match mood {
        Mood::CountersMinusOne => Regime::Unknown,
        Mood::ReducedLimits { percent } => Regime::Percent(*percent),
        _ => Regime::AsConfigured,
    };
    let call = Call { live, head, body, route: &route, regime, now };
    let answer = admitted(&call, mood).and_then(|()| operate(&call)).unwrap_or_else(|refusal| *refusal);
    dressed(live, head, spoiled(&call, mood, answer))
}

fn admitted(call: &Call, mood: &Mood) -> Result<(), Box<Answer>> {
    if let Some(required) = &call.live.resource.host {
        let host = call.head.value("host").unwrap_or_default();
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        if !name.eq_ignore_ascii_case(required) && !host.eq_ignore_ascii_case(required) {
            return Err(Refusal::ResourceNotFound.into());
        }
    }
    if custom_headers(call.head) > MOST_CUSTOM_HEADERS {
        return Err(Box::new(Answer::whole(431, "text/plain", "Request Header Fields Too Large")));
    }
    auth::check(call.live, call.head, call.route)?;
    match mood {
        Mood::Throttled { retry_after_ms, retry_after } => {
            Err(Box::new(throttle::in_bad_mood(call, *retry_after_ms, retry_after.as_deref())))
        }
        Mood::HighDemand => Err(Box::new(throttle::high_demand())),
        Mood::Refuses(refusal) | Mood::EarlyAnswer { refusal, .. } => Err((*refusal).into()),
        _ => check_version(call),
    }
}

fn check_version(call: &Call) -> Result<(), Box<Answer>> {
    match &call.route.dialect {
        Dialect::Classic { version } if is_dated(version) => Ok(()),
        Dialect::Classic { .. } => Err(Refusal::ResourceNotFound.into()),
        Dialect::V1 => match call.head.query("api-version").as_deref() {
            None | Some("v1" | "preview") => Ok(()),
            Some(_) => Err(Box::new(coded(400, "BadRequest", "API version not supported"))),
        },
    }
}

fn operate(call: &Call) -> Reply {
    let segments: Vec<&str> = call.route.segments.iter().map(String::as_str).collect();
    let per_deployment = matches!(
        segments.as_slice(),
        ["chat", "completions"]
            | ["completions" | "embeddings"]
            | ["audio", "transcriptions" | "translations" | "speech"]
            | ["images", "generations" | "edits"]
    );
    // Classic paths name a deployment for these operations and for no others.
    if call.route.dialect != Dialect::V1 && per_deployment != call.route.in_path {
        return Err(Refusal::ResourceNotFound.into());
    }
    match (call.head.method.as_str(), segments.as_slice()) {
        ("POST", ["chat", "completions"]) => chat::create(call),
        ("POST", ["completions"]) => completions::create(call),
        ("POST", ["embeddings"]) => embeddings::create(call),
        ("POST", ["audio", "transcriptions"]) => audio::transcribe(call),
        ("POST", ["audio", "translations"]) => audio::translate(call),
        ("POST", ["audio", "speech"]) => audio::speak(call),
        ("POST", ["images", "generations"]) => images::generate(call),
        ("POST", ["images", "edits"]) => images::edit(call),
        ("GET", ["models"]) => Ok(models(call)),
        ("GET", ["models", id]) => model(call, id),
        ("GET", ["realtime"]) => realtime(call),
        ("GET", ["responses"]) if call.route.dialect == Dialect::V1 && call.head.wants_websocket() => {
            Ok(Answer::socket(Protocol::Responses))
        }
        (method, ["responses", rest @ ..]) => responses::operate(call, method, rest),
        (method, ["files", rest @ ..]) => files::operate(call, method, rest),
        (method, ["uploads", rest @ ..]) => files::operate_uploads(call, method, rest),
        (method, ["batches", rest @ ..]) => batches::operate(call, method, rest),
        (method, path) => objects::operate(call, method, path),
    }
}

impl<'a> Call<'a> {
    /// The body as a JSON object.
    pub(super) fn json(&self) -> Result<Value, Box<Answer>> {
        let parsed: Option<Value> = serde_json::from_slice(self.body).ok();
        parsed.filter(Value::is_object).ok_or_else(|| {
            let message = "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your \
                           HTTP library correctly. The API expects a JSON payload, but what was sent was not valid JSON.)";
            Box::new(invalid(400, message, None, None))
        })
    }

    /// The body as a multipart form.
    pub(super) fn form(&self) -> Result<Form<'a>, Box<Answer>> {
        Form::of(self.head, self.body).ok_or_else(|| {
            let message = "The request body must be multipart/form-data with a boundary, and complete.";
            Box::new(invalid(400, message, None, None))
        })
    }

    /// The deployment the request is for; the path wins over the body.
    pub(super) fn deployment(&self, model: Option<&str>) -> Result<&'a SimDeployment, Box<Answer>> {
        let Some(name) = self.route.deployment.as_deref().or(model) else {
            return Err(bad_parameter("model", "Missing required parameter: 'model'."));
        };
        self.live.deployment(name).ok_or_else(|| Refusal::DeploymentNotFound.into())
    }

    /// Passes the rate limits of a deployment.
    pub(super) fn admit(&self, own: &'a SimDeployment, ask: Ask) -> Result<Pass<'a>, Box<Answer>> {
        match self.live.admit(own, ask, self.regime, self.now) {
            Ruling::Admitted { estimated, counters } => {
                Ok(Pass { live: self.live, own, estimated, counters })
            }
            Ruling::Refused { cause, wait, counters } => {
                Err(Box::new(throttle::refused(self, own, cause, wait, &counters)))
            }
        }
    }
}

/// A request that passed the limits of its deployment.
pub(super) struct Pass<'a> {
    live: &'a Live,
    own: &'a SimDeployment,
    estimated: u64,
    counters: Counters,
}

impl Pass<'_> {
    /// Adds to an answer what a deployment says, and what the request really cost.
    pub(super) fn onto(&self, answer: Answer, input: u64, output: u64) -> Answer {
        let actual = self.live.weight(&self.own.name, input, output);
        throttle::counted(answer, &self.counters)
            .with("x-ms-deployment-name", self.own.name.clone())
            .with("x-ms-rai-invoked", "true")
            .with("azureml-model-session", format!("d{:03}-20261101120000", self.own.name.len()))
            .charged(Charge { deployment: self.own.name.clone(), estimated: self.estimated, actual })
    }
}

/// The dated name a model has in answers.
pub(super) fn snapshot(model: &str) -> String {
    let date = match model {
        "gpt-4o" => "2024-11-20",
        "gpt-4o-mini" => "2024-07-18",
        "gpt-4.1" | "gpt-4.1-mini" | "gpt-4.1-nano" => "2025-04-14",
        "gpt-5" | "gpt-5-mini" | "gpt-5-nano" => "2025-08-07",
        _ => return model.to_owned(),
    };
    format!("{model}-{date}")
}

/// Verdicts of a content filter that found nothing.
pub(super) fn harmless(is_prompt: bool) -> Value {
    let safe = json!({"filtered": false, "severity": "safe"});
    let mut verdicts = json!({"hate": safe, "self_harm": safe, "sexual": safe, "violence": safe});
    if let Some(map) = verdicts.as_object_mut().filter(|_| is_prompt) {
        map.insert("jailbreak".to_owned(), json!({"detected": false, "filtered": false}));
    }
    verdicts
}

/// Headers beyond what HTTP itself, browsers and the SDKs send. Azure does not say what it counts; the
/// `x-stainless-*` family of the SDKs evidently is not.
fn custom_headers(head: &Head) -> usize {
    const USUAL: [&str; 27] = [
        "host",
        "connection",
        "keep-alive",
        "content-type",
        "content-length",
        "content-encoding",
        "transfer-encoding",
        "accept",
        "accept-encoding",
        "accept-language",
        "accept-charset",
        "authorization",
        "api-key",
        "ocp-apim-subscription-key",
        "user-agent",
        "expect",
        "te",
        "trailer",
        "upgrade",
        "cache-control",
        "pragma",
        "origin",
        "referer",
        "cookie",
        "date",
        "range",
        "x-ms-client-request-id",
    ];
    const FAMILIES: [&str; 4] = ["x-stainless-", "openai-", "sec-", "if-"];
    let is_usual =
        |name: &str| USUAL.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family));
    head.headers.iter().filter(|(name, _)| !is_usual(&name.to_ascii_lowercase())).count()
}

/// `2024-10-21`, `2025-04-01-preview`: a date on which there was an API.
fn is_dated(version: &str) -> bool {
    let date = version.strip_suffix("-preview").unwrap_or(version);
    let numbers: Vec<Option<u32>> = date.split('-').map(|part| part.parse().ok()).collect();
    date.len() == 10 && matches!(numbers.as_slice(), [Some(2022..=2026), Some(1..=12), Some(1..=31)])
}

fn models(call: &Call) -> Answer {
    let mut names: Vec<&str> = call.live.resource.deployments.iter().map(|own| own.model.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let data: Vec<Value> = names.into_iter().map(described).collect();
    Answer::json(200, &json!({"object": "list", "data": data}))
}

fn model(call: &Call, id: &str) -> Reply {
    let known =
        call.live.resource.deployments.iter().any(|own| own.model == id || snapshot(&own.model) == id);
    if known { Ok(Answer::json(200, &described(id))) } else { Err(Refusal::ResourceNotFound.into()) }
}

fn described(model: &str) -> Value {
    json!({
        "id": snapshot(model), "object": "model", "status": "succeeded", "lifecycle_status": "generally-available",
        "created_at": 1_732_060_800, "updated_at": 1_732_060_800, "owned_by": "azure",
        "capabilities": {
            "fine_tune": false, "inference": true, "completion": false,
            "chat_completion": !model.contains("embedding"), "embeddings": model.contains("embedding"),
        },
        "deprecation": {"inference": 1_893_456_000},
    })
}

fn realtime(call: &Call) -> Reply {
    let own = call.deployment(None)?;
    if !call.head.wants_websocket() {
        return Err(Box::new(coded(400, "BadRequest", "This endpoint expects a WebSocket upgrade.")));
    }
    Ok(Answer::socket(Protocol::Realtime(own.name.clone())))
}

/// Adds what every answer of the service carries.
pub(super) fn dressed(live: &Live, head: &Head, answer: Answer) -> Answer {
    if matches!(answer.body, Body::Socket(_)) {
        return answer;
    }
    let request_id = live.ids.uuid();
    let client_id = head.value("x-ms-client-request-id").map_or_else(|| request_id.clone(), str::to_owned);
    let streaming = matches!(answer.body, Body::Stream(..));
    let answer = answer
        .with("apim-request-id", request_id)
        .with("x-ms-client-request-id", client_id)
        .with("x-request-id", live.ids.uuid())
        .with("x-ms-region", live.resource.region.clone())
        .with("x-content-type-options", "nosniff")
        .with("strict-transport-security", "max-age=31536000; includeSubDomains; preload")
        .with("date", httpdate::fmt_http_date(SystemTime::now()));
    if streaming {
        answer.with("x-accel-buffering", "no").with("azureai-fe-is-streaming", "true")
    } else {
        answer
    }
}
