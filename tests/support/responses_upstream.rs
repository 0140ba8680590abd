//! A resource that speaks the Responses API over WebSockets and HTTP, and does in a turn what a test tells it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::upstream::{RawRequest, complete_response, read_request};
use super::websocket::{CLOSE, Incoming, PING, TEXT, WebSocket};
use super::{Balancer, backend_yaml};

/// What an upstream does next in a turn.
#[derive(Clone, Debug)]
pub enum Step {
    /// `response.created`, with a new id.
    Created,
    /// An event with output.
    Delta,
    /// `response.completed`, with usage.
    Completed,
    /// This event.
    Event(Value),
    /// Waits for [`ResponsesUpstream::release`].
    Hold,
    Ping,
    /// A close frame with this code, and the end of the connection.
    Close(u16),
    Reset,
    /// Events of 64 KiB without an end.
    Flood,
}

/// A turn as it should be.
pub const TURN: [Step; 3] = [Step::Created, Step::Delta, Step::Completed];
/// A turn that goes on until it is released.
pub const HELD_TURN: [Step; 4] = [Step::Created, Step::Delta, Step::Hold, Step::Completed];

/// The message that begins a turn, with these further or other fields.
pub fn create(fields: &Value) -> Value {
    let mut create = json!({"type": "response.create", "model": "gpt-4o", "input": "hello"});
    create.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    create
}

/// An error event of a resource.
pub fn error_step(status: u16, code: &str, fields: &Value) -> Step {
    let error = json!({"type": "x", "code": code, "message": "in the resource's words", "param": null});
    let mut event = json!({"type": "error", "status": status, "error": error});
    event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    Step::Event(event)
}

/// The event of a resource that is throttled for this time.
pub fn throttled_step(wait_ms: u64) -> Step {
    error_step(429, "too_many_requests", &json!({"headers": {"retry-after-ms": wait_ms.to_string()}}))
}

/// A message that an upstream has received.
#[derive(Clone, Debug)]
pub struct ReceivedMessage {
    /// The number of its socket.
    pub socket: usize,
    /// The head of its socket's handshake.
    pub handshake: String,
    pub text: String,
}

impl ReceivedMessage {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }
}

type Script = dyn Fn(&Value) -> Vec<Step> + Send + Sync;

struct State {
    name: String,
    /// What happens in a turn that begins with this message.
    script: Mutex<Arc<Script>>,
    /// Status and headers that a handshake is answered with.
    handshake_refusal: Mutex<Option<(u16, &'static str)>>,
    refuses_lanes: Mutex<bool>,
    /// The ids of stored responses.
    stored: Mutex<BTreeSet<String>>,
    messages: Mutex<Vec<ReceivedMessage>>,
    close_codes: Mutex<Vec<Option<u16>>>,
    made_responses: AtomicUsize,
    opened_sockets: AtomicUsize,
    open_sockets: AtomicUsize,
    flood_bytes: AtomicUsize,
    pongs: AtomicUsize,
    releases: Semaphore,
}

/// A running resource.
pub struct ResponsesUpstream {
    address: SocketAddr,
    state: Arc<State>,
}

impl ResponsesUpstream {
    pub async fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            name: name.to_owned(),
            script: Mutex::new(Arc::new(|_: &Value| TURN.to_vec())),
            handshake_refusal: Mutex::default(),
            refuses_lanes: Mutex::default(),
            stored: Mutex::default(),
            messages: Mutex::default(),
            close_codes: Mutex::default(),
            made_responses: AtomicUsize::default(),
            opened_sockets: AtomicUsize::default(),
            open_sockets: AtomicUsize::default(),
            flood_bytes: AtomicUsize::default(),
            pongs: AtomicUsize::default(),
            releases: Semaphore::new(0),
        });
        let connection_state = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                tokio::spawn(serve_connection(stream, Arc::clone(&connection_state)));
            }
        });
        Self { address, state }
    }

    /// Starts upstreams with these names, and a balancer whose one tier they are.
    pub async fn start_behind_balancer<const N: usize>(
        names: [&str; N],
        extra_yaml: &str,
    ) -> ([Self; N], Balancer) {
        let mut upstreams = Vec::new();
        for name in names {
            upstreams.push(Self::start(name).await);
        }
        let backends: String = upstreams.iter().map(|upstream| upstream.backend_yaml("")).collect();
        let balancer = Balancer::start(&backends, extra_yaml).await;
        let Ok(upstreams) = upstreams.try_into() else { unreachable!("there are as many as names") };
        (upstreams, balancer)
    }

    /// The YAML entry of `backends`; `extra_yaml` are further lines of it.
    pub fn backend_yaml(&self, extra_yaml: &str) -> String {
        backend_yaml(&self.state.name, &format!("http://{}", self.address), extra_yaml)
    }

    /// Sets what happens in turns that begin from now on.
    pub fn script(&self, script: impl Fn(&Value) -> Vec<Step> + Send + Sync + 'static) {
        *self.state.script.lock().unwrap() = Arc::new(script);
    }

    /// Has these steps happen in turns that begin from now on.
    pub fn answer(&self, steps: impl Into<Vec<Step>>) {
        let steps = steps.into();
        self.script(move |_| steps.clone());
    }

    /// Lets one [`Step::Hold`] go on.
    pub fn release(&self) {
        self.state.releases.add_permits(1);
    }

    /// Answers handshakes with this status and these headers, one per line, or accepts them.
    pub fn refuse_handshakes(&self, refusal: Option<(u16, &'static str)>) {
        *self.state.handshake_refusal.lock().unwrap() = refusal;
    }

    /// Knows no `stream_id` from now on.
    pub fn refuse_lanes(&self) {
        *self.state.refuses_lanes.lock().unwrap() = true;
    }

    /// A stored response that was not made through the balancer.
    pub fn make_stored_response(&self) -> String {
        let id = self.state.next_id();
        self.state.stored.lock().unwrap().insert(id.clone());
        id
    }

    /// The messages of all sockets, in the order of their arrival.
    pub fn messages(&self) -> Vec<ReceivedMessage> {
        self.state.messages.lock().unwrap().clone()
    }

    /// How many messages have arrived.
    pub fn message_count(&self) -> usize {
        self.state.messages.lock().unwrap().len()
    }

    pub fn last_message(&self) -> ReceivedMessage {
        self.messages().pop().unwrap()
    }

    /// How many sockets are open.
    pub fn open_sockets(&self) -> usize {
        self.state.open_sockets.load(Ordering::SeqCst)
    }

    /// How many sockets have been opened.
    pub fn opened_sockets(&self) -> usize {
        self.state.opened_sockets.load(Ordering::SeqCst)
    }

    /// The codes of the close frames that the balancer has sent.
    pub fn close_codes(&self) -> Vec<Option<u16>> {
        self.state.close_codes.lock().unwrap().clone()
    }

    /// How many bytes the connections have taken of floods.
    pub fn flood_bytes(&self) -> usize {
        self.state.flood_bytes.load(Ordering::SeqCst)
    }

    pub fn pongs(&self) -> usize {
        self.state.pongs.load(Ordering::SeqCst)
    }
}

impl State {
    fn next_id(&self) -> String {
        format!("resp_{}{:04}", self.name, self.made_responses.fetch_add(1, Ordering::SeqCst))
    }
}

async fn serve_connection(mut stream: TcpStream, state: Arc<State>) {
    let Some(request) = read_request(&mut stream).await else { return };
    let key = request.head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("sec-websocket-key").then_some(value)
    });
    let refusal = *state.handshake_refusal.lock().unwrap();
    let response = match (key, refusal) {
        (Some(key), None) => handshake_response(key),
        (Some(_), Some((status, headers))) => {
            complete_response(status, headers, r#"{"error":{"code":"refused","message":"no"}}"#).concat()
        }
        (None, _) => http_response(&request, &state),
    };
    let is_opened = response.starts_with(b"HTTP/1.1 101");
    if stream.write_all(&response).await.is_err() || !is_opened {
        return;
    }
    state.open_sockets.fetch_add(1, Ordering::SeqCst);
    let number = state.opened_sockets.fetch_add(1, Ordering::SeqCst);
    let mut socket = UpstreamSocket {
        socket: Some(WebSocket::of_server(stream)),
        state: Arc::clone(&state),
        handshake: request.head,
        number,
        unstored: BTreeSet::new(),
    };
    socket.run().await;
    state.open_sockets.fetch_sub(1, Ordering::SeqCst);
}

fn handshake_response(key: &str) -> Vec<u8> {
    let digest = openssl::sha::sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes());
    let accept = base64::engine::general_purpose::STANDARD.encode(digest);
    let head = "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nx-ms-region: Test Region\r\n";
    format!("{head}Sec-WebSocket-Accept: {accept}\r\n\r\n").into_bytes()
}

fn http_response(request: &RawRequest, state: &State) -> Vec<u8> {
    let is_post = request.head.starts_with("POST ") && request.body != b"{}";
    let (status, body) = if is_post {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let previous = body["previous_response_id"].as_str();
        if previous.is_some_and(|id| !state.stored.lock().unwrap().contains(id)) {
            (400, json!({"error": {"code": "previous_response_not_found", "message": "not found"}}))
        } else {
            let id = state.next_id();
            state.stored.lock().unwrap().insert(id.clone());
            (200, json!({"id": id, "object": "response", "status": "completed", "model": "m", "store": true}))
        }
    } else {
        (200, json!({"data": []}))
    };
    complete_response(status, "Content-Type: application/json", &body.to_string()).concat()
}

/// A socket of the balancer.
struct UpstreamSocket {
    /// `None` once it has ended.
    socket: Option<WebSocket>,
    state: Arc<State>,
    handshake: String,
    number: usize,
    unstored: BTreeSet<String>,
}

impl UpstreamSocket {
    async fn run(&mut self) {
        while let Some(message) = self.next_message().await {
            if message["type"] != "response.create" {
                continue;
            }
            let lane = message.get("stream_id").cloned();
            let steps = self.steps_of(&message);
            let mut id = String::new();
            for step in steps {
                self.take_step(step, &message, lane.as_ref(), &mut id).await;
            }
        }
    }

    fn steps_of(&self, create: &Value) -> Vec<Step> {
        if create.get("stream_id").is_some() && *self.state.refuses_lanes.lock().unwrap() {
            return vec![error_step(400, "unknown_parameter", &json!({"param": "stream_id"}))];
        }
        if let Some(previous) = create["previous_response_id"].as_str()
            && !self.unstored.contains(previous)
            && !self.state.stored.lock().unwrap().contains(previous)
        {
            return vec![error_step(400, "previous_response_not_found", &json!({}))];
        }
        let script = Arc::clone(&self.state.script.lock().unwrap());
        script(create)
    }

    /// Reads the next message, and notes it; `None` if the socket has ended.
    async fn next_message(&mut self) -> Option<Value> {
        loop {
            match self.socket.as_mut()?.next().await {
                Incoming::Text(text) => {
                    let message = serde_json::from_str(&text).unwrap();
                    let (socket, handshake) = (self.number, self.handshake.clone());
                    let received = ReceivedMessage { socket, handshake, text };
                    self.state.messages.lock().unwrap().push(received);
                    return Some(message);
                }
                Incoming::Pong(_) => _ = self.state.pongs.fetch_add(1, Ordering::SeqCst),
                Incoming::Ping(_) => {}
                Incoming::Close(close) => {
                    self.state.close_codes.lock().unwrap().push(close.map(|(code, _)| code));
                }
                Incoming::End => self.socket = None,
            }
        }
    }

    async fn take_step(&mut self, step: Step, create: &Value, lane: Option<&Value>, id: &mut String) {
        let mut event = match step {
            Step::Created => {
                *id = self.state.next_id();
                if create["store"] == false {
                    self.unstored.insert(id.clone());
                } else {
                    self.state.stored.lock().unwrap().insert(id.clone());
                }
                json!({"type": "response.created", "response": {"id": id, "status": "in_progress"}})
            }
            Step::Delta => {
                json!({"type": "response.output_text.delta", "delta": "hi", "from": self.state.name})
            }
            Step::Completed => json!({"type": "response.completed", "response": {
                "id": id, "status": "completed", "model": create["model"], "store": create["store"] != false,
                "service_tier": "priority",
                "usage": {"input_tokens": 11, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 6},
                    "output_tokens": 7, "total_tokens": 18}}}),
            Step::Event(event) => event,
            Step::Hold => return self.hold().await,
            Step::Ping => return self.send(PING, b"are you there").await,
            Step::Close(code) => {
                self.send(CLOSE, &code.to_be_bytes()).await;
                self.socket = None;
                return;
            }
            Step::Reset => {
                if let Some(socket) = self.socket.take() {
                    socket.reset();
                }
                return;
            }
            Step::Flood => return self.flood().await,
        };
        if let Some(lane) = lane {
            event["stream_id"] = lane.clone();
        }
        self.send(TEXT, event.to_string().as_bytes()).await;
    }

    async fn send(&mut self, first_byte: u8, payload: &[u8]) {
        if let Some(socket) = &mut self.socket {
            socket.try_send_frame(first_byte, payload).await;
        }
    }

    /// Waits until it is released or its socket has ended, and notes the messages that arrive meanwhile.
    async fn hold(&mut self) {
        let state = Arc::clone(&self.state);
        loop {
            tokio::select! {
                permit = state.releases.acquire() => return permit.unwrap().forget(),
                message = self.next_message() => if message.is_none() { return },
            }
        }
    }

    async fn flood(&mut self) {
        let event = json!({"type": "response.output_text.delta", "delta": "x".repeat(64 * 1024)}).to_string();
        while let Some(socket) = &mut self.socket {
            if !socket.try_send_frame(TEXT, event.as_bytes()).await {
                self.socket = None;
            }
            self.state.flood_bytes.fetch_add(event.len(), Ordering::SeqCst);
        }
    }
}
