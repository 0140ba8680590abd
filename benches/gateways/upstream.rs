//! An upstream with little overhead: it responds with prepared bytes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use openssl::ssl::{Ssl, SslAcceptor};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant as Moment, sleep, sleep_until};
use tokio_openssl::SslStream;

/// The response to every request.
#[derive(Clone, Copy)]
pub enum UpstreamBehaviour {
    /// A completion of 1 KB.
    Json,
    /// Events that contain the time at which they were sent.
    Stream(EventPace),
    /// A 429 with a `retry-after` of one second.
    Refusal,
}

/// When the events of a stream are sent.
#[derive(Clone, Copy)]
pub struct EventPace {
    pub first_event_delay: Duration,
    pub event_interval: Duration,
    pub event_count: u32,
    /// Whether the stream ends; otherwise it stays open and silent.
    pub ends: bool,
}

/// The protocol of the upstream.
#[derive(Clone)]
pub enum Transport {
    Plain,
    Tls(Arc<SslAcceptor>),
    Http2(Arc<SslAcceptor>),
}

/// A running upstream; it ends with the runtime.
pub struct BenchUpstream {
    pub address: SocketAddr,
    /// The number of requests since the counter was reset.
    pub request_count: Arc<AtomicU64>,
}

/// Precedes the time in an event, which has sixteen digits.
pub const SENT_TIME_FIELD: &[u8] = br#""sent_ns":""#;
const SENT_TIME_DIGITS: usize = 16;

impl BenchUpstream {
    /// Starts an upstream; times in events are counted from `epoch`.
    pub async fn start(
        behaviour: UpstreamBehaviour,
        transport: Transport,
        epoch: Instant,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let request_count = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&request_count);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (count, transport) = (Arc::clone(&count), transport.clone());
                let _ = stream.set_nodelay(true);
                // Errors are ignored: the benchmark closes connections at any time.
                tokio::spawn(
                    async move { serve_connection(stream, behaviour, &transport, epoch, &count).await },
                );
            }
        });
        Ok(Self { address, request_count })
    }
}

async fn serve_connection(
    stream: TcpStream,
    behaviour: UpstreamBehaviour,
    transport: &Transport,
    epoch: Instant,
    request_count: &AtomicU64,
) -> io::Result<()> {
    let acceptor = match transport {
        Transport::Plain => return serve_http1(stream, behaviour, epoch, request_count).await,
        Transport::Tls(acceptor) | Transport::Http2(acceptor) => acceptor,
    };
    let mut stream = SslStream::new(Ssl::new(acceptor.context())?, stream)?;
    Pin::new(&mut stream).accept().await.map_err(io::Error::other)?;
    if stream.ssl().selected_alpn_protocol() == Some(b"h2") {
        return serve_http2(stream, request_count).await.map_err(io::Error::other);
    }
    serve_http1(stream, behaviour, epoch, request_count).await
}

async fn serve_http1<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    behaviour: UpstreamBehaviour,
    epoch: Instant,
    request_count: &AtomicU64,
) -> io::Result<()> {
    let completion = completion_response();
    let mut buffer = BytesMut::with_capacity(64 * 1024);
    while let Some(wants_usage) = read_request(&mut stream, &mut buffer).await? {
        request_count.fetch_add(1, Ordering::Relaxed);
        match behaviour {
            UpstreamBehaviour::Json => stream.write_all(&completion).await?,
            UpstreamBehaviour::Refusal => stream.write_all(REFUSAL_RESPONSE).await?,
            UpstreamBehaviour::Stream(pace) => send_events(&mut stream, pace, epoch, wants_usage).await?,
        }
        stream.flush().await?;
    }
    Ok(())
}

/// Reads a request with its body; returns whether it requests usage, or `None` at the end.
async fn read_request<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut BytesMut,
) -> io::Result<Option<bool>> {
    let head = loop {
        if let Some(at) = memmem::find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let mut remaining = super::http::content_length(&buffer[..head]).unwrap_or(0);
    let _ = buffer.split_to(head);
    let mut wants_usage = false;
    loop {
        let taken = buffer.split_to(remaining.min(buffer.len()));
        // Only short bodies request streams, so long ones are not searched.
        wants_usage |= taken.len() < 4096 && memmem::find(&taken, b"include_usage").is_some();
        remaining -= taken.len();
        drop(taken);
        if remaining == 0 {
            return Ok(Some(wants_usage));
        }
        buffer.reserve(64 * 1024);
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn send_events<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    pace: EventPace,
    epoch: Instant,
    wants_usage: bool,
) -> io::Result<()> {
    sleep(pace.first_event_delay).await;
    let mut event = stream_event();
    let at =
        memmem::find(&event, SENT_TIME_FIELD).expect("the event contains a time") + SENT_TIME_FIELD.len();
    stream.write_all(STREAM_HEAD).await?;
    let start = Moment::now();
    for number in 0..pace.event_count {
        sleep_until(start + pace.event_interval * number).await;
        let now = epoch.elapsed().as_nanos();
        event[at..at + SENT_TIME_DIGITS].copy_from_slice(format!("{now:0SENT_TIME_DIGITS$}").as_bytes());
        stream.write_all(&event).await?;
        stream.flush().await?;
    }
    if !pace.ends {
        // Stay open until the other side closes the connection.
        while stream.read_u8().await.is_ok() {}
        return Ok(());
    }
    if wants_usage {
        stream.write_all(&http_chunk(USAGE_EVENT)).await?;
    }
    stream.write_all(&http_chunk(b"data: [DONE]\n\n")).await?;
    stream.write_all(b"0\r\n\r\n").await
}

async fn serve_http2(stream: SslStream<TcpStream>, request_count: &AtomicU64) -> Result<(), h2::Error> {
    let mut connection =
        h2::server::Builder::new().initial_window_size(4 << 20).handshake::<_, Bytes>(stream).await?;
    let (head, body) = completion_parts();
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        request_count.fetch_add(1, Ordering::Relaxed);
        let (head, body) = (head.clone(), body.clone());
        tokio::spawn(async move {
            let mut incoming = request.into_body();
            while let Some(data) = incoming.data().await {
                let data = data?;
                incoming.flow_control().release_capacity(data.len())?;
            }
            let mut response = http::Response::builder();
            for (name, value) in &head {
                response = response.header(*name, value);
            }
            let response = response.body(()).expect("the headers are valid");
            respond.send_response(response, false)?.send_data(body, true)
        });
    }
    Ok(())
}

/// The headers of Azure OpenAI that affect the size of a response.
const RESPONSE_HEADERS: [(&str, &str); 9] = [
    ("content-type", "application/json"),
    ("apim-request-id", "0f1a9f8c-2f3b-4c59-a0d0-2a0b7a7f6f11"),
    ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
    ("x-content-type-options", "nosniff"),
    ("x-ms-region", "East US"),
    ("x-ratelimit-limit-requests", "100000000"),
    ("x-ratelimit-remaining-requests", "99999999"),
    ("x-ratelimit-limit-tokens", "1000000000"),
    ("x-ratelimit-remaining-tokens", "999999999"),
];

const REFUSAL_RESPONSE: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
    content-length: 93\r\n\r\n{\"error\":{\"code\":\"429\",\"message\":\"Requests have exceeded the call rate limit of this tier.  \"}}";

const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
    apim-request-id: 0f1a9f8c-2f3b-4c59-a0d0-2a0b7a7f6f11\r\nx-ms-region: East US\r\n\
    x-ratelimit-remaining-requests: 99999999\r\nx-ratelimit-remaining-tokens: 999999999\r\n\
    transfer-encoding: chunked\r\n\r\n";

const USAGE_EVENT: &[u8] = br#"data: {"choices":[],"created":1764000000,"id":"chatcmpl-CfEoAaX2fJbQ7mN0xk2zGk3rV1cHa","model":"gpt-4o-2024-11-20","object":"chat.completion.chunk","usage":{"completion_tokens":50,"prompt_tokens":20,"total_tokens":70}}

"#;

fn completion_parts() -> (Vec<(&'static str, String)>, Bytes) {
    let mut body = String::from(
        r#"{"choices":[{"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}},"finish_reason":"stop","index":0,"message":{"content":""#,
    );
    while body.len() < 740 {
        body.push_str("and so on ");
    }
    body.push_str(r#"","role":"assistant"}}],"created":1764000000,"id":"chatcmpl-CfEoAaX2fJbQ7mN0xk2zGk3rV1cHa","model":"gpt-4o-2024-11-20","object":"chat.completion","system_fingerprint":"fp_b54fe76834","usage":{"completion_tokens":60,"prompt_tokens":200,"total_tokens":260}}"#);
    let mut headers: Vec<_> =
        RESPONSE_HEADERS.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    headers.push(("content-length", body.len().to_string()));
    (headers, body.into())
}

fn completion_response() -> Vec<u8> {
    let (headers, body) = completion_parts();
    let mut bytes = b"HTTP/1.1 200 OK\r\n".to_vec();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body);
    bytes
}

fn stream_event() -> Vec<u8> {
    http_chunk(
        br#"data: {"choices":[{"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}},"delta":{"content":" word"},"finish_reason":null,"index":0,"logprobs":null}],"created":1764000000,"id":"chatcmpl-CfEoAaX2fJbQ7mN0xk2zGk3rV1cHa","model":"gpt-4o-2024-11-20","object":"chat.completion.chunk","sent_ns":"0000000000000000"}

"#,
    )
}

fn http_chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}
