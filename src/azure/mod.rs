//! The Azure OpenAI protocol, as pure functions. `request` parses targets and bodies, `response`
//! classifies responses and reads headers, event streams and token usage. Nothing here knows a
//! backend, a client, a socket or a clock.

mod binary_data;
mod json;
mod json_keys;
mod json_scan;
mod json_strings;
pub mod json_text;
mod json_validator;
pub mod request;
pub mod response;
pub mod token_encoding;
pub mod usage_missing;

pub use self::request::edit::{BodyEdit, apply_edits};
pub use self::request::model_field::{ModelField, ModelFieldError};
pub use self::request::operation::{Operation, is_non_idempotent_create};
pub use self::request::prompt_parts::PromptPartRanges;
pub use self::request::query::{QueryCredential, QueryString, hide_secrets_in_target};
pub use self::request::reference_kind::{ENCRYPTED_CONTENT_ID_CHARS, ReferenceKind};
pub use self::request::target::{ApiStyle, DeploymentSource, ModelsPath, RequestTarget, parse_target};
pub use self::request::target_cache::parse_target_cached;
pub use self::request::target_error::TargetError;
pub use self::response::first_event::{FirstEventKind, classify_first_event};
