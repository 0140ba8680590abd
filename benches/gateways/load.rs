//! The clients of the benchmark: as many requests as possible, a fixed rate of requests, streams that are
//! read, and streams that are held open.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem;
use openssl::ssl::SslConnector;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant as Moment, sleep, sleep_until};
use tokio_openssl::SslStream;

use super::http::content_length;
use super::upstream::SENT_TIME_FIELD;

/// The address under load, and the requests to send.
#[derive(Clone)]
pub struct LoadTarget {
    pub address: SocketAddr,
    pub tls: Option<Arc<SslConnector>>,
    /// Sent one after another, from the start again at the end.
    pub requests: Arc<[Bytes]>,
}

impl LoadTarget {
    fn request(&self, request_index: usize) -> &[u8] {
        self.requests.get(request_index % self.requests.len()).map_or(&[], |request| request)
    }
}

/// A chat request with this key and a body of about this many bytes.
pub fn chat_request(key: &str, body: usize, streams: bool) -> Bytes {
    let stream = if streams { r#""stream":true,"# } else { "" };
    let prompt = "tell me more. ".repeat(body / 14);
    let body = format!(
        r#"{{{stream}"model":"gpt-4o","max_tokens":100,"messages":[{{"role":"system","content":"You are a helpful assistant."}},{{"role":"user","content":"{prompt}"}}]}}"#
    );
    let length = body.len();
    format!(
        "POST /openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21 HTTP/1.1\r\nhost: balancer.test\r\n\
         accept: application/json\r\nuser-agent: AzureOpenAI/Python 3.54.0\r\nx-stainless-lang: python\r\n\
         x-stainless-runtime: CPython\r\ncontent-type: application/json\r\napi-key: {key}\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into()
}

/// The results of requests.
#[derive(Default)]
pub struct RequestStats {
    pub responses: u64,
    pub failures: u64,
    /// From the request to the end of the response, sorted.
    pub latencies: Vec<Duration>,
}

/// The results of streams. The times are those from the write of the upstream to the read of the client,
/// sorted.
#[derive(Default)]
pub struct StreamStats {
    pub events: u64,
    pub failures: u64,
    pub first: Vec<Duration>,
    pub later: Vec<Duration>,
}

trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for S {}

struct LoadClient {
    stream: Box<dyn ByteStream>,
    buffer: BytesMut,
}

impl LoadClient {
    async fn connect(target: &LoadTarget) -> io::Result<Self> {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn ByteStream> = match &target.tls {
            None => Box::new(stream),
            Some(connector) => {
                let ssl = connector.configure()?.into_ssl(super::HOST)?;
                let mut stream = SslStream::new(ssl, stream)?;
                Pin::new(&mut stream).connect().await.map_err(io::Error::other)?;
                Box::new(stream)
            }
        };
        Ok(Self { stream, buffer: BytesMut::with_capacity(16 * 1024) })
    }

    /// Sends a request and reads the head of the response.
    async fn send_request(&mut self, request: &[u8]) -> io::Result<ResponseHead> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        loop {
            if let Some(at) = memmem::find(&self.buffer, b"\r\n\r\n") {
                let head = self.buffer.split_to(at + 4);
                return Ok(ResponseHead {
                    is_200: head.starts_with(b"HTTP/1.1 200"),
                    length: content_length(&head),
                });
            }
            self.read_more().await?;
        }
    }

    /// Reads the body of a response and discards it.
    async fn discard_body(&mut self, length: Option<usize>) -> io::Result<()> {
        match length {
            Some(length) => {
                while self.buffer.len() < length {
                    self.read_more().await?;
                }
                self.buffer.advance(length);
            }
            None => {
                while !self.buffer.ends_with(b"0\r\n\r\n") {
                    self.read_more().await?;
                }
                self.buffer.clear();
            }
        }
        Ok(())
    }

    async fn read_more(&mut self) -> io::Result<()> {
        self.buffer.reserve(16 * 1024);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn exchange_request(&mut self, request: &[u8]) -> io::Result<bool> {
        let head = self.send_request(request).await?;
        self.discard_body(head.length).await?;
        Ok(head.is_200)
    }
}

struct ResponseHead {
    is_200: bool,
    length: Option<usize>,
}

/// Sends requests one after another on each of the connections, as fast as possible.
pub async fn run_saturated(target: &LoadTarget, connections: usize, length: Duration) -> RequestStats {
    let deadline = Instant::now() + length;
    let mut tasks = JoinSet::new();
    for index in 0..connections {
        let target = target.clone();
        tasks.spawn(async move {
            let mut stats = RequestStats::default();
            let mut client = None;
            let mut request_index = index * target.requests.len() / connections;
            while Instant::now() < deadline {
                stats.count_result(send_one(&mut client, &target, request_index).await);
                request_index += 1;
            }
            stats
        });
    }
    merge_results(tasks).await
}

/// Sends a fixed number of requests per second, however long the responses take.
pub async fn run_at_rate(
    target: &LoadTarget,
    connections: u32,
    per_second: u32,
    length: Duration,
) -> RequestStats {
    let start = Moment::now() + Duration::from_millis(50);
    let mut tasks = JoinSet::new();
    for index in 0..connections {
        let target = target.clone();
        tasks.spawn(async move {
            let mut stats = RequestStats::default();
            let mut client = None;
            for request_index in 0.. {
                let scheduled_at =
                    start + Duration::from_secs(1) * (request_index * connections + index) / per_second;
                if scheduled_at >= start + length {
                    break;
                }
                // If the connection is still busy when its next request is due, the waiting time counts. If
                // it is idle, the time starts after the sleep, since timers of tokio have a resolution of one
                // millisecond.
                let mut measured_from = scheduled_at;
                if Moment::now() < scheduled_at {
                    sleep_until(scheduled_at).await;
                    measured_from = Moment::now();
                }
                stats.count_result(send_one(&mut client, &target, request_index as usize).await);
                stats.latencies.push(measured_from.elapsed());
            }
            stats
        });
    }
    merge_results(tasks).await
}

async fn send_one(client: &mut Option<LoadClient>, target: &LoadTarget, request_index: usize) -> bool {
    let mut current = match client.take() {
        Some(client) => client,
        None => match LoadClient::connect(target).await {
            Ok(client) => client,
            Err(_) => return false,
        },
    };
    match current.exchange_request(target.request(request_index)).await {
        Ok(is_200) => {
            *client = Some(current);
            is_200
        }
        Err(_) => false,
    }
}

async fn merge_results(mut tasks: JoinSet<RequestStats>) -> RequestStats {
    let mut all = RequestStats::default();
    while let Some(Ok(mut stats)) = tasks.join_next().await {
        all.responses += stats.responses;
        all.failures += stats.failures;
        all.latencies.append(&mut stats.latencies);
    }
    all.latencies.sort_unstable();
    all
}

impl RequestStats {
    fn count_result(&mut self, is_200: bool) {
        if is_200 {
            self.responses += 1;
        } else {
            self.failures += 1;
        }
    }
}

/// Reads this many concurrent streams to their ends, again and again.
pub async fn run_streams(target: &LoadTarget, count: u32, length: Duration, epoch: Instant) -> StreamStats {
    let deadline = Instant::now() + length;
    let mut tasks = JoinSet::new();
    for index in 0..count {
        let target = target.clone();
        tasks.spawn(async move {
            // Not all in step.
            sleep(Duration::from_secs(1) * index / count).await;
            let mut stats = StreamStats::default();
            while Instant::now() < deadline {
                if read_stream(&target, epoch, &mut stats, None).await.is_err() {
                    stats.failures += 1;
                }
            }
            stats
        });
    }
    let mut all = StreamStats::default();
    while let Some(Ok(mut stats)) = tasks.join_next().await {
        all.events += stats.events;
        all.failures += stats.failures;
        all.first.append(&mut stats.first);
        all.later.append(&mut stats.later);
    }
    all.first.sort_unstable();
    all.later.sort_unstable();
    all
}

async fn read_stream(
    target: &LoadTarget,
    epoch: Instant,
    stats: &mut StreamStats,
    count: Option<&AtomicU64>,
) -> io::Result<()> {
    let mut client = LoadClient::connect(target).await?;
    if !client.send_request(target.request(0)).await?.is_200 {
        return Err(io::Error::other("refused"));
    }
    let mut is_first = true;
    loop {
        let now = epoch.elapsed();
        let mut read = 0;
        while let Some(at) =
            memmem::find(&client.buffer[read..], SENT_TIME_FIELD).map(|at| read + at + SENT_TIME_FIELD.len())
        {
            let Some(digits) = client.buffer.get(at..at + 16) else { break };
            let sent: u64 = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            let delay = now.saturating_sub(Duration::from_nanos(sent));
            if std::mem::take(&mut is_first) { &mut stats.first } else { &mut stats.later }.push(delay);
            stats.events += 1;
            if let Some(count) = count {
                count.fetch_add(1, Ordering::Relaxed);
            }
            read = at + 16;
        }
        if client.buffer.ends_with(b"0\r\n\r\n") {
            return Ok(());
        }
        // The remaining bytes may be the beginning of a time.
        client.buffer.advance(read.max(client.buffer.len().saturating_sub(64)));
        client.read_more().await?;
    }
}

/// Opens this many streams and reads their first events. They stay open until the result is dropped.
pub async fn open_held_streams(target: &LoadTarget, count: usize) -> io::Result<Vec<impl Sized + use<>>> {
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let mut client = LoadClient::connect(target).await?;
        if !client.send_request(target.request(0)).await?.is_200 {
            return Err(io::Error::other("refused"));
        }
        while memmem::find(&client.buffer, SENT_TIME_FIELD).is_none() {
            client.read_more().await?;
        }
        streams.push(client);
    }
    Ok(streams)
}

/// Opens this many endless streams. Once all of them run, returns the number of events within `length`, and
/// the increase of `measure_cpu` in that time.
pub async fn measure_steady_streams(
    target: &LoadTarget,
    count: u32,
    length: Duration,
    epoch: Instant,
    measure_cpu: impl Fn() -> Duration,
) -> (u64, Duration) {
    let events = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let (target, events) = (target.clone(), Arc::clone(&events));
        tasks.spawn(async move {
            let mut stats = StreamStats::default();
            let event_counter = Some(&*events);
            let _ = read_stream(&target, epoch, &mut stats, event_counter).await;
        });
        // Not all in step.
        sleep(Duration::from_millis(u64::from(1000 / count.max(1)).clamp(0, 10))).await;
    }
    sleep(Duration::from_secs(2)).await;
    let (before, used) = (events.load(Ordering::Relaxed), measure_cpu());
    sleep(length).await;
    (events.load(Ordering::Relaxed) - before, measure_cpu() - used)
}
