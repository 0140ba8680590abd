//! An OTLP receiver over HTTP. It decodes what it gets with the messages that OpenTelemetry publishes, which know
//! nothing of those that the balancer sends with.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as ProtoValue;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::wait_until;

/// How the collector behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CollectorBehaviour {
    #[default]
    Accepts,
    /// Responds with this status, and with this `Retry-After`.
    RespondsWith(u16, Option<&'static str>),
    /// Accepts all but so many spans of each request.
    Rejects(i64),
    /// Reads requests and never responds.
    NeverResponds,
}

/// A span as it was received.
#[derive(Clone, Debug)]
pub struct ReceivedSpan {
    /// In hexadecimal digits, as in a `traceparent`.
    pub trace_id: String,
    pub span_id: String,
    /// Empty without a parent.
    pub parent_id: String,
    pub name: String,
    /// Whether its kind is server; else it is client.
    pub is_server: bool,
    pub start_nanos: u64,
    pub end_nanos: u64,
    pub is_error: bool,
    pub attributes: Value,
}

#[derive(Default)]
struct CollectorState {
    behaviour: CollectorBehaviour,
    /// Of each request: its head, when it came, and its number of spans.
    requests: Vec<(String, Instant, usize)>,
    spans: Vec<ReceivedSpan>,
    resource: Value,
    schema_urls: Vec<String>,
}

/// The running collector.
#[derive(Clone)]
pub struct Collector {
    pub address: SocketAddr,
    state: Arc<Mutex<CollectorState>>,
}

impl Collector {
    pub async fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let collector = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        let server = collector.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move {
                    while let Some((head, body)) = read_request(&mut stream).await {
                        let Some(response) = server.respond(head, &body) else {
                            return std::future::pending().await;
                        };
                        if stream.write_all(&response).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        collector
    }

    /// The `traces` block for this collector; `more` are further keys.
    pub fn traces_yaml(&self, more: &str) -> String {
        format!("traces: {{ endpoint: 'http://{}', {more} }}", self.address)
    }

    pub fn set_behaviour(&self, behaviour: CollectorBehaviour) {
        self.state.lock().unwrap().behaviour = behaviour;
    }

    pub fn spans(&self) -> Vec<ReceivedSpan> {
        self.state.lock().unwrap().spans.clone()
    }

    /// The heads of all requests.
    pub fn heads(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.iter().map(|(head, ..)| head.clone()).collect()
    }

    /// When requests came.
    pub fn request_times(&self) -> Vec<Instant> {
        self.state.lock().unwrap().requests.iter().map(|(_, at, _)| *at).collect()
    }

    /// The attributes of the resource that spans are of.
    pub fn resource(&self) -> Value {
        self.state.lock().unwrap().resource.clone()
    }

    pub fn schema_urls(&self) -> Vec<String> {
        self.state.lock().unwrap().schema_urls.clone()
    }

    /// The span of the request with this id and those of its attempts, once they are here.
    pub async fn trace_of_request(&self, request_id: &str) -> (ReceivedSpan, Vec<ReceivedSpan>) {
        let is_of_request = |span: &&ReceivedSpan| span.attributes["aoai_lb.request_id"] == request_id;
        wait_until("the span of the request arrives", || self.spans().iter().any(|s| is_of_request(&s)))
            .await;
        let spans = self.spans();
        let server = spans.iter().find(is_of_request).unwrap().clone();
        let children = spans.into_iter().filter(|span| span.parent_id == server.span_id && !span.is_server);
        let children = children.collect();
        (server, children)
    }

    fn respond(&self, head: String, body: &[u8]) -> Option<Vec<u8>> {
        let mut state = self.state.lock().unwrap();
        let request = decode(&head, body);
        let spans: Vec<_> = request
            .resource_spans
            .iter()
            .flat_map(|of_resource| &of_resource.scope_spans)
            .flat_map(|of_scope| &of_scope.spans)
            .map(received)
            .collect();
        state.requests.push((head, Instant::now(), spans.len()));
        let respond = |status: u16, more: &str, body: &[u8]| {
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/x-protobuf\r\n{more}Content-Length: {}\r\n\r\n",
                body.len()
            );
            Some([head.as_bytes(), body].concat())
        };
        let mut answer = ExportTraceServiceResponse::default();
        match state.behaviour {
            CollectorBehaviour::Accepts => {}
            CollectorBehaviour::Rejects(rejected_spans) => {
                let error_message = "planted".to_owned();
                answer.partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message });
            }
            CollectorBehaviour::RespondsWith(status, retry_after) => {
                let more =
                    retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
                return respond(status, &more, b"planted");
            }
            CollectorBehaviour::NeverResponds => return None,
        }
        for of_resource in &request.resource_spans {
            state.resource = attributes(&of_resource.resource.as_ref().unwrap().attributes);
            state.schema_urls.extend(of_resource.scope_spans.iter().map(|scope| scope.schema_url.clone()));
        }
        state.spans.extend(spans);
        respond(200, "", &answer.encode_to_vec())
    }
}

/// The value of a header field in the head of a request.
pub fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn decode(head: &str, body: &[u8]) -> ExportTraceServiceRequest {
    let lower = head.to_ascii_lowercase();
    assert!(
        head.starts_with("POST ") && lower.contains("\ncontent-type: application/x-protobuf\r"),
        "{head}"
    );
    assert!(lower.contains("\ncontent-encoding: gzip\r"), "{head}");
    let mut message = Vec::new();
    flate2::read::GzDecoder::new(body).read_to_end(&mut message).unwrap();
    ExportTraceServiceRequest::decode(&*message).unwrap()
}

fn received(span: &Span) -> ReceivedSpan {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(span.trace_id.len() == 16 && span.span_id.len() == 8, "{span:?}");
    assert!(span.trace_id.iter().any(|byte| *byte != 0) && span.span_id.iter().any(|byte| *byte != 0));
    ReceivedSpan {
        trace_id: hex(&span.trace_id),
        span_id: hex(&span.span_id),
        parent_id: hex(&span.parent_span_id),
        name: span.name.clone(),
        is_server: match span.kind() {
            SpanKind::Server => true,
            SpanKind::Client => false,
            other => panic!("{other:?}"),
        },
        start_nanos: span.start_time_unix_nano,
        end_nanos: span.end_time_unix_nano,
        is_error: span.status.as_ref().is_some_and(|status| status.code == 2),
        attributes: attributes(&span.attributes),
    }
}

fn attributes(list: &[KeyValue]) -> Value {
    let mut map = Map::new();
    for attribute in list {
        let before = map.insert(attribute.key.clone(), value(attribute.value.as_ref().unwrap()));
        assert!(before.is_none(), "{} is there twice", attribute.key);
    }
    Value::Object(map)
}

fn value(any: &AnyValue) -> Value {
    match any.value.as_ref().unwrap() {
        ProtoValue::StringValue(text) => json!(text),
        ProtoValue::BoolValue(value) => json!(value),
        ProtoValue::IntValue(number) => json!(number),
        ProtoValue::DoubleValue(number) => json!(number),
        ProtoValue::ArrayValue(array) => array.values.iter().map(value).collect(),
        other => panic!("{other:?}"),
    }
}

async fn read_request(stream: &mut tokio::net::TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        if let Some(end) = super::client::find_bytes(&bytes, b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end + 2].to_vec()).unwrap();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
            });
            let whole = end + 4 + length.unwrap_or(0);
            if bytes.len() >= whole {
                return Some((head, bytes[end + 4..whole].to_vec()));
            }
        }
        match stream.read(&mut chunk).await {
            Ok(read) if read > 0 => bytes.extend_from_slice(&chunk[..read]),
            _ => return None,
        }
    }
}
