//! aoai-lb: a load balancer that makes many Azure OpenAI resources look like one.
//!
//! The modules follow the journey of a request; `docs/architecture.md` describes them.

pub mod admin;
pub mod admission;
pub mod azure;
pub mod cli;
pub mod config;
pub mod credentials;
pub mod demo;
pub mod files;
pub mod gateway;
pub mod import_apim;
pub mod money;
pub mod names;
pub mod outbound;
pub mod proxy;
pub mod record;
pub mod refusal;
pub mod routing;
pub mod server;
pub mod shared;
pub mod state;
pub mod system_error;
pub mod yaml;
