//! Types for single values: each can only be made from valid input.

mod allow_rule;
mod authorities;
mod certified_key;
mod deployment_map;
mod endpoint;
mod percentage;
mod secret;
mod status_set;
mod validity;

pub use allow_rule::{AllowRule, PathPattern};
pub use authorities::load_certificate_authorities;
pub use certified_key::{CertifiedKey, CertifiedKeyError, CertifiedKeyFiles, certificate_expires_at};
pub use deployment_map::DeploymentMap;
pub use endpoint::Endpoint;
pub(crate) use endpoint::{parse_host, parse_host_name};
pub use percentage::Percentage;
pub use secret::Secret;
pub use status_set::StatusSet;
pub(crate) use status_set::parse_status_range;
