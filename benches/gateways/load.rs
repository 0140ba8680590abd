//! Clients: as many requests as will go, so many per second, streams that are read, streams
//! that are held.

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
use super::upstream::SENT;

/// Where to, how, and what is sent.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub tls: Option<Arc<SslConnector>>,
    /// One after the other.
    pub requests: Arc<[Bytes]>,
}

impl Target {
    fn request(&self, turn: usize) -> &[u8] {
        self.requests.get(turn % self.requests.len()).map_or(&[], |request| request)
    }
}

/// A chat request with this key and a body of about so many bytes.
pub fn request(key: &str, body: usize, streams: bool) -> Bytes {
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

/// What happened.
#[derive(Default)]
pub struct Seen {
    pub answers: u64,
    pub failures: u64,
    /// From the request to the end of the answer, sorted.
    pub latencies: Vec<Duration>,
}

/// The same of streams; the times are those from the upstream's write to our read, sorted.
#[derive(Default)]
pub struct Events {
    pub events: u64,
    pub failures: u64,
    pub first: Vec<Duration>,
    pub later: Vec<Duration>,
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire for S {}

struct Client {
    wire: Box<dyn Wire>,
    buffer: BytesMut,
}

impl Client {
    async fn connect(target: &Target) -> io::Result<Self> {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let wire: Box<dyn Wire> = match &target.tls {
            None => Box::new(stream),
            Some(connector) => {
                let ssl = connector.configure()?.into_ssl(super::HOST)?;
                let mut stream = SslStream::new(ssl, stream)?;
                Pin::new(&mut stream).connect().await.map_err(io::Error::other)?;
                Box::new(stream)
            }
        };
        Ok(Self { wire, buffer: BytesMut::with_capacity(16 * 1024) })
    }

    /// Sends a request and reads the head of its answer.
    async fn ask(&mut self, request: &[u8]) -> io::Result<Head> {
        self.wire.write_all(request).await?;
        self.wire.flush().await?;
        loop {
            if let Some(at) = memmem::find(&self.buffer, b"\r\n\r\n") {
                let head = self.buffer.split_to(at + 4);
                return Ok(Head { is_ok: head.starts_with(b"HTTP/1.1 200"), length: content_length(&head) });
            }
            self.more().await?;
        }
    }

    /// Reads the rest of an answer.
    async fn finish(&mut self, length: Option<usize>) -> io::Result<()> {
        match length {
            Some(length) => {
                while self.buffer.len() < length {
                    self.more().await?;
                }
                self.buffer.advance(length);
            }
            None => {
                while !self.buffer.ends_with(b"0\r\n\r\n") {
                    self.more().await?;
                }
                self.buffer.clear();
            }
        }
        Ok(())
    }

    async fn more(&mut self) -> io::Result<()> {
        self.buffer.reserve(16 * 1024);
        match self.wire.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn exchange(&mut self, request: &[u8]) -> io::Result<bool> {
        let head = self.ask(request).await?;
        self.finish(head.length).await?;
        Ok(head.is_ok)
    }
}

struct Head {
    is_ok: bool,
    length: Option<usize>,
}

/// As many requests as so many connections can have answered one after the other.
pub async fn saturate(target: &Target, connections: usize, length: Duration) -> Seen {
    let end = Instant::now() + length;
    let mut tasks = JoinSet::new();
    for number in 0..connections {
        let target = target.clone();
        tasks.spawn(async move {
            let mut seen = Seen::default();
            let mut client = None;
            let mut turn = number * target.requests.len() / connections;
            while Instant::now() < end {
                seen.count(once(&mut client, &target, turn).await);
                turn += 1;
            }
            seen
        });
    }
    gather(tasks).await
}

/// So many requests per second, whatever the answers take.
pub async fn pace(target: &Target, connections: u32, per_second: u32, length: Duration) -> Seen {
    let begun = Moment::now() + Duration::from_millis(50);
    let mut tasks = JoinSet::new();
    for number in 0..connections {
        let target = target.clone();
        tasks.spawn(async move {
            let mut seen = Seen::default();
            let mut client = None;
            for turn in 0.. {
                let due = begun + Duration::from_secs(1) * (turn * connections + number) / per_second;
                if due >= begun + length {
                    break;
                }
                // A connection that is still busy when its next request is due makes that wait. The
                // clock of the runtime has milliseconds: what it is late by is nobody's fault.
                let mut from = due;
                if Moment::now() < due {
                    sleep_until(due).await;
                    from = Moment::now();
                }
                seen.count(once(&mut client, &target, turn as usize).await);
                seen.latencies.push(from.elapsed());
            }
            seen
        });
    }
    gather(tasks).await
}

async fn once(client: &mut Option<Client>, target: &Target, turn: usize) -> bool {
    let mut current = match client.take() {
        Some(client) => client,
        None => match Client::connect(target).await {
            Ok(client) => client,
            Err(_) => return false,
        },
    };
    match current.exchange(target.request(turn)).await {
        Ok(is_ok) => {
            *client = Some(current);
            is_ok
        }
        Err(_) => false,
    }
}

async fn gather(mut tasks: JoinSet<Seen>) -> Seen {
    let mut all = Seen::default();
    while let Some(Ok(mut seen)) = tasks.join_next().await {
        all.answers += seen.answers;
        all.failures += seen.failures;
        all.latencies.append(&mut seen.latencies);
    }
    all.latencies.sort_unstable();
    all
}

impl Seen {
    fn count(&mut self, is_ok: bool) {
        if is_ok {
            self.answers += 1;
        } else {
            self.failures += 1;
        }
    }
}

/// So many streams at once, read to their ends and asked for anew.
pub async fn streams(target: &Target, count: u32, length: Duration, epoch: Instant) -> Events {
    let end = Instant::now() + length;
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let target = target.clone();
        tasks.spawn(async move {
            // Not all in step.
            sleep(Duration::from_secs(1) * number / count).await;
            let mut seen = Events::default();
            while Instant::now() < end {
                if stream(&target, epoch, &mut seen, None).await.is_err() {
                    seen.failures += 1;
                }
            }
            seen
        });
    }
    let mut all = Events::default();
    while let Some(Ok(mut seen)) = tasks.join_next().await {
        all.events += seen.events;
        all.failures += seen.failures;
        all.first.append(&mut seen.first);
        all.later.append(&mut seen.later);
    }
    all.first.sort_unstable();
    all.later.sort_unstable();
    all
}

async fn stream(
    target: &Target,
    epoch: Instant,
    seen: &mut Events,
    count: Option<&AtomicU64>,
) -> io::Result<()> {
    let mut client = Client::connect(target).await?;
    if !client.ask(target.request(0)).await?.is_ok {
        return Err(io::Error::other("refused"));
    }
    let mut is_first = true;
    loop {
        let now = epoch.elapsed();
        let mut read = 0;
        while let Some(at) = memmem::find(&client.buffer[read..], SENT).map(|at| read + at + SENT.len()) {
            let Some(digits) = client.buffer.get(at..at + 16) else { break };
            let sent: u64 = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            let late = now.saturating_sub(Duration::from_nanos(sent));
            if std::mem::take(&mut is_first) { &mut seen.first } else { &mut seen.later }.push(late);
            seen.events += 1;
            if let Some(count) = count {
                count.fetch_add(1, Ordering::Relaxed);
            }
            read = at + 16;
        }
        if client.buffer.ends_with(b"0\r\n\r\n") {
            return Ok(());
        }
        // What is left may be the beginning of a time.
        client.buffer.advance(read.max(client.buffer.len().saturating_sub(64)));
        client.more().await?;
    }
}

/// So many streams whose first event has come and that are open until this is dropped.
pub async fn hold(target: &Target, count: usize) -> io::Result<Vec<impl Sized + use<>>> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut client = Client::connect(target).await?;
        if !client.ask(target.request(0)).await?.is_ok {
            return Err(io::Error::other("refused"));
        }
        while memmem::find(&client.buffer, SENT).is_none() {
            client.more().await?;
        }
        held.push(client);
    }
    Ok(held)
}

/// So many streams without an end; once all of them run, how many events come within this time,
/// and by how much `meter` moves meanwhile.
pub async fn steady_streams(
    target: &Target,
    count: u32,
    length: Duration,
    epoch: Instant,
    meter: impl Fn() -> Duration,
) -> (u64, Duration) {
    let events = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let (target, events) = (target.clone(), Arc::clone(&events));
        tasks.spawn(async move {
            let mut seen = Events::default();
            let counted = Some(&*events);
            let _ = stream(&target, epoch, &mut seen, counted).await;
        });
        // Not all in step.
        sleep(Duration::from_millis(u64::from(1000 / count.max(1)).clamp(0, 10))).await;
    }
    sleep(Duration::from_secs(2)).await;
    let (before, used) = (events.load(Ordering::Relaxed), meter());
    sleep(length).await;
    (events.load(Ordering::Relaxed) - before, meter() - used)
}
