//! The `service_tier` that a request asks for, and that which serves it.

use serde_json::Value;

use crate::demo::api::error_response::invalid_parameter;
use crate::demo::api::response::ErrorResponse;

/// The tier that serves a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) enum ServiceTier {
    Default,
    Flex,
    Priority,
}

impl ServiceTier {
    /// The tier for a body. Without `service_tier`, and with `auto`, it is the default one.
    ///
    /// # Errors
    /// 400 for an unknown tier.
    pub(in crate::demo) fn from_body(body: &Value) -> Result<Self, ErrorResponse> {
        match body.get("service_tier") {
            None | Some(Value::Null) => Ok(Self::Default),
            Some(tier) => match tier.as_str() {
                Some("auto" | "default") => Ok(Self::Default),
                Some("flex") => Ok(Self::Flex),
                Some("priority") => Ok(Self::Priority),
                _ => Err(invalid_parameter(
                    "service_tier",
                    &format!(
                        "Invalid value: {tier}. Supported values are: 'auto', 'default', 'flex', and 'priority'."
                    ),
                )),
            },
        }
    }

    /// The name in responses.
    pub(in crate::demo) fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Flex => "flex",
            Self::Priority => "priority",
        }
    }
}
