//! The definition of a simulated resource: what stays the same while it runs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::rate_limiter::DeploymentKind;
use crate::demo::moods::mood::Mood;
use crate::demo::util::ids::IdForm;

/// One simulated Azure OpenAI resource: its address, credentials, deployments and mood.
///
/// Without keys and tokens, no credential is required.
#[derive(Debug, Clone)]
pub struct SimulatedResource {
    /// The name by which [`Simulator`](crate::demo::Simulator) knows it.
    pub name: String,
    /// Where it listens; with port 0, the system chooses a free port.
    pub listen_address: SocketAddr,
    /// The region, as in `x-ms-region` and in messages, such as `East US 2`.
    pub region: String,
    /// The `Host` that requests must carry, if that is checked. The port is ignored.
    pub required_host: Option<String>,
    /// Accepted API keys.
    pub api_keys: Vec<String>,
    /// Refuses valid keys with `AuthenticationTypeDisabled`, like a resource with local authentication
    /// disabled.
    pub is_key_auth_disabled: bool,
    /// Accepted Entra ID bearer tokens.
    pub entra_tokens: Vec<String>,
    /// Entra ID tokens that are valid, but whose principal lacks the role: 401 `PermissionDenied`.
    pub entra_tokens_without_role: Vec<String>,
    /// The deployments that it serves.
    pub deployments: Vec<SimulatedDeployment>,
    /// The mood at the start; [`Simulator::set_mood`](crate::demo::Simulator::set_mood) changes it.
    pub initial_mood: Mood,
    /// Lets a request choose its mood by the header `x-simulate: throttled` or `x-simulate: "drip: 50ms"`.
    pub allows_mood_header: bool,
    /// Keeps whole request bodies in [`LoggedRequest::body`](crate::demo::LoggedRequest::body).
    pub records_request_bodies: bool,
    /// How fast it responds when no mood changes that.
    pub timing: ResponseTiming,
    /// Closes a kept-alive connection after this time without a request.
    pub idle_timeout: Option<Duration>,
    /// How long a WebSocket may stay open (60 minutes on Azure).
    pub max_websocket_lifetime: Duration,
    /// Runs the turns of different lanes (`stream_id`) of a Responses WebSocket at the same time, and accepts
    /// `response.steer`, as OpenAI does. Otherwise both are refused.
    pub accepts_stream_ids: bool,
    /// How long a background response and a batch take.
    pub background_response_duration: Duration,
    /// How long a streamed response and its items are not found after the stream has ended (5 to 33 s were
    /// measured on Azure). [`Simulator::set_read_lag`](crate::demo::Simulator::set_read_lag) changes it.
    pub read_lag: Duration,
    /// What the ids of its objects look like.
    pub id_form: IdForm,
}

impl SimulatedResource {
    /// A calm resource on a free loopback port, without credentials and without deployments.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            listen_address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            region: "East US".to_owned(),
            required_host: None,
            api_keys: Vec::new(),
            is_key_auth_disabled: false,
            entra_tokens: Vec::new(),
            entra_tokens_without_role: Vec::new(),
            deployments: Vec::new(),
            initial_mood: Mood::Calm,
            allows_mood_header: false,
            records_request_bodies: false,
            timing: ResponseTiming::default(),
            idle_timeout: None,
            max_websocket_lifetime: Duration::from_secs(3600),
            accepts_stream_ids: false,
            background_response_duration: Duration::from_millis(300),
            read_lag: Duration::ZERO,
            id_form: IdForm::default(),
        }
    }

    /// Adds an accepted API key.
    #[must_use]
    pub fn with_api_key(mut self, key: impl Into<String>) -> Self {
        self.api_keys.push(key.into());
        self
    }

    /// Adds an accepted Entra ID token.
    #[must_use]
    pub fn with_entra_token(mut self, token: impl Into<String>) -> Self {
        self.entra_tokens.push(token.into());
        self
    }

    /// Adds a deployment.
    #[must_use]
    pub fn with_deployment(
        mut self,
        name: impl Into<String>,
        model: impl Into<String>,
        kind: DeploymentKind,
    ) -> Self {
        self.deployments.push(SimulatedDeployment { name: name.into(), model: model.into(), kind });
        self
    }

    /// Sets the mood at the start.
    #[must_use]
    pub fn with_mood(mut self, mood: Mood) -> Self {
        self.initial_mood = mood;
        self
    }

    /// Keeps the bodies of the requests that it receives.
    #[must_use]
    pub fn with_recorded_request_bodies(mut self) -> Self {
        self.records_request_bodies = true;
        self
    }
}

/// A model under a name and a rate limit of its own.
#[derive(Debug, Clone)]
pub struct SimulatedDeployment {
    /// The name that clients use.
    pub name: String,
    /// The base model behind it, such as `gpt-4o` or `text-embedding-3-small`.
    pub model: String,
    /// How its traffic is limited.
    pub kind: DeploymentKind,
}

impl SimulatedDeployment {
    /// Whether writing to the prompt cache is billed and reported. That began with GPT-5.6; provisioned capacity
    /// does not.
    pub(in crate::demo) fn bills_cache_writes(&self) -> bool {
        let version = self.model.strip_prefix("gpt-").and_then(|name| name.split('-').next());
        let mut numbers = version.unwrap_or_default().split('.').map(str::parse::<u32>);
        let (Some(Ok(major)), minor) = (numbers.next(), numbers.next().unwrap_or(Ok(0))) else {
            return false;
        };
        minor.is_ok_and(|minor| (major, minor) >= (5, 6))
            && !matches!(self.kind, DeploymentKind::Provisioned { .. })
    }
}

/// The delays of a resource that responds normally; zero by default.
#[derive(Debug, Clone, Copy, Default)]
pub struct ResponseTiming {
    /// From the end of the request to the first byte of the response.
    pub first_byte_delay: Duration,
    /// Before each event of a stream.
    pub event_interval: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_writes_are_billed_from_gpt_5_6_on() {
        let provisioned = DeploymentKind::Provisioned { tokens_per_minute: 1, output_weight: 1 };
        for (model, kind, expected) in [
            ("gpt-5.6-sol", DeploymentKind::Unlimited, true),
            ("gpt-5.6", DeploymentKind::Unlimited, true),
            ("gpt-5.10-mini", DeploymentKind::Unlimited, true),
            ("gpt-6-sol", DeploymentKind::Unlimited, true),
            ("gpt-5.6-sol", provisioned, false),
            ("gpt-5.5", DeploymentKind::Unlimited, false),
            ("gpt-5", DeploymentKind::Unlimited, false),
            ("gpt-4o", DeploymentKind::Unlimited, false),
            ("gpt-realtime", DeploymentKind::Unlimited, false),
            ("o3", DeploymentKind::Unlimited, false),
        ] {
            let deployment = SimulatedDeployment { name: "d".to_owned(), model: model.to_owned(), kind };
            assert_eq!(deployment.bills_cache_writes(), expected, "{model} {kind:?}");
        }
    }
}
