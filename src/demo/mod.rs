//! A simulated Azure OpenAI resource: what it is made of, and how to start one.
//!
//! It speaks both dialects of Azure OpenAI over real sockets, keeps real rate limits and real state,
//! and can be put in a bad mood on purpose ([`Mood`]). The balancer's tests, `aoai-lb demo` and
//! `aoai-lb simulate` all talk to it. It imports nothing from the rest of the crate: it shares no
//! parser with the balancer, so a mistake made once cannot cancel out.
//!
//! ```text
//! server (sockets) -> connection (one request after the other) -> http1 (heads, bodies, bytes)
//!                         |-> script (which mood now) -> faults (how the answer is spoiled)
//!                         '-> azure (which operation) -> auth, limits, chat, responses, files, ...
//! ```

mod answer;
mod audio;
mod auth;
mod azure;
mod batches;
mod chat;
mod codec;
mod completions;
mod config;
mod connection;
mod delivery;
mod embeddings;
mod faults;
mod files;
mod http1;
mod images;
mod journal;
mod limits;
mod live;
mod multipart;
mod objects;
mod realtime;
mod refusal;
mod response_object;
mod responses;
mod script;
mod server;
mod sse;
mod text;
mod throttle;
mod websocket;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

pub use config::{LoadError, demo_resources, load, parse};
pub use journal::Seen;
pub use limits::Kind;
pub use refusal::Refusal;
pub use script::{ErrorOrder, Extent, Mood};
pub use server::Simulator;

/// One simulated Azure OpenAI resource: an address, its credentials, its deployments and its temper.
///
/// Without keys and without tokens nobody is asked for a credential.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Name by which [`Simulator`] is asked about it.
    pub name: String,
    /// Where it listens; port 0 picks a free one.
    pub address: SocketAddr,
    /// Region as shown in `x-ms-region` and in messages, such as `East US 2`.
    pub region: String,
    /// The `Host` a request must carry (port ignored), if that is to be checked.
    pub host: Option<String>,
    /// Accepted API keys.
    pub keys: Vec<String>,
    /// Refuses keys with `AuthenticationTypeDisabled`, as a resource with local auth switched off.
    pub key_auth_disabled: bool,
    /// Accepted Entra bearer tokens.
    pub tokens: Vec<String>,
    /// Valid Entra tokens whose principal lacks the role: 401 `PermissionDenied`.
    pub tokens_without_role: Vec<String>,
    /// What it serves.
    pub deployments: Vec<SimDeployment>,
    /// How it behaves at the start; [`Simulator::set_mood`] changes it.
    pub mood: Mood,
    /// Lets a request choose its mood with `x-simulate: throttled` or `x-simulate: "drip: 50ms"`.
    pub moods_by_header: bool,
    /// Keeps whole request bodies in [`Seen::body`].
    pub keep_bodies: bool,
    /// How fast it answers when calm.
    pub pace: Pace,
    /// Closes a kept-alive connection after this long without a request.
    pub idle_limit: Option<Duration>,
    /// How long a WebSocket may live (Azure: 60 minutes).
    pub websocket_limit: Duration,
    /// How long a background response stays `in_progress`.
    pub background_time: Duration,
}

impl Resource {
    /// A calm resource on a free loopback port, open to everybody, without deployments.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            region: "East US".to_owned(),
            host: None,
            keys: Vec::new(),
            key_auth_disabled: false,
            tokens: Vec::new(),
            tokens_without_role: Vec::new(),
            deployments: Vec::new(),
            mood: Mood::Calm,
            moods_by_header: false,
            keep_bodies: false,
            pace: Pace::default(),
            idle_limit: None,
            websocket_limit: Duration::from_secs(3600),
            background_time: Duration::from_millis(300),
        }
    }

    /// The same, accepting this key.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.keys.push(key.into());
        self
    }

    /// The same, accepting this Entra token.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.tokens.push(token.into());
        self
    }

    /// The same, serving one deployment more.
    #[must_use]
    pub fn deployment(mut self, name: impl Into<String>, model: impl Into<String>, kind: Kind) -> Self {
        self.deployments.push(SimDeployment { name: name.into(), model: model.into(), kind });
        self
    }

    /// The same, in this mood.
    #[must_use]
    pub fn mood(mut self, mood: Mood) -> Self {
        self.mood = mood;
        self
    }

    /// The same, keeping the bodies it is sent.
    #[must_use]
    pub fn keeping_bodies(mut self) -> Self {
        self.keep_bodies = true;
        self
    }
}

/// A model under a name of its own, with a rate limit of its own.
#[derive(Debug, Clone)]
pub struct SimDeployment {
    /// What clients call it.
    pub name: String,
    /// The base model behind it, such as `gpt-4o` or `text-embedding-3-small`.
    pub model: String,
    /// How its traffic is limited.
    pub kind: Kind,
}

/// How long a calm resource takes; zero by default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// From the end of the request to the first byte of the answer.
    pub first_byte: Duration,
    /// Between two events of a stream.
    pub between_events: Duration,
}
