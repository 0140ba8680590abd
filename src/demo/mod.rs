//! A simulated Azure OpenAI resource.
//!
//! It speaks both dialects of Azure OpenAI over real sockets, with real rate limits and real state, and can
//! be told to misbehave ([`Mood`]). The tests of the load balancer, `aoai-lb demo` and `aoai-lb simulate` use
//! it. It imports nothing from the rest of the crate: it shares no parser with the load balancer, so that one
//! mistake cannot cancel out another.
//!
//! Each folder imports only those below it:
//!
//! ```text
//! server/      listens; per request: mood, body, response
//! websocket/   the sessions of WebSockets: their turns and their events
//! operations/  chat, responses, embeddings, files, ...   faults/  what a mood does to a response
//! api/         what all operations share: routes, credentials, errors, headers, SSE
//! config/      the file of `aoai-lb simulate`
//! resource/    definition and state: rate limits, stores, request log
//! moods/       the moods and errors as data
//! http/        HTTP/1.1, multipart and WebSocket over a byte stream
//! util/        ids, hashes, encodings
//! ```

mod api;
mod config;
mod faults;
mod http;
mod moods;
mod operations;
mod resource;
mod server;
mod util;
mod websocket;

#[cfg(test)]
mod tests;

pub use config::demo_resources::demo_resources;
pub use config::error::SimulatorConfigError;
pub use config::resource_file::{load_resources, parse_resources};
pub use moods::mood::{BodyPosition, ErrorEventOrder, Mood};
pub use moods::simulated_error::SimulatedError;
pub use resource::definition::{ResponseTiming, SimulatedDeployment, SimulatedResource};
pub use resource::prompt_cache::{CachedPrompt, PromptCache};
pub use resource::rate_limiter::DeploymentKind;
pub use resource::request_log::LoggedRequest;
pub use server::simulator::Simulator;
pub use util::ids::IdForm;
