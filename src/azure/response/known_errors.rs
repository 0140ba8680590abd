//! The error codes, types and messages whose meaning is known. A word that is not here says nothing about
//! the backend: its response is relayed.
//!
//! To add one, add a row with its source. Sources: "reference" is Azure's REST reference
//! (<https://learn.microsoft.com/azure/ai-foundry/openai/reference>), "Responses guide" and "throughput
//! guide" are <https://learn.microsoft.com/azure/ai-foundry/openai/how-to/responses> and
//! <https://learn.microsoft.com/azure/ai-foundry/openai/how-to/provisioned-throughput-onboarding>, "OpenAI" is
//! <https://platform.openai.com/docs/guides/error-codes>, "traffic" is recorded or reported traffic.

/// What an error says, whatever its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The content was refused, or the request is at fault in a way that no other backend changes. To try
    /// several backends until the content filter of one lets a prompt pass would be filter shopping.
    RequestRefused,
    /// The resource does not have what the request refers to. Another one may have it.
    NotOnThisResource,
    /// The prompt is longer than the context window of this deployment.
    PromptTooLong,
    /// The rate limit, or the capacity, is exhausted.
    RateLimited,
    /// This request alone is larger than what the backend accepts now. Smaller requests are served.
    RequestTooLargeNow,
    /// The backend does not have the deployment.
    DeploymentMissing,
    /// The backend does not serve this model, or not to this balancer.
    NotServedHere,
    /// The backend does not support the api-version.
    ApiVersionUnsupported,
    /// The credential is good but may not do this.
    PermissionMissing,
    /// The credential is not accepted.
    CredentialRejected,
    /// No request of this balancer is accepted: key authentication is disabled, or a network rule applies.
    AccessBlocked,
    /// The backend failed.
    BackendFailed,
}

/// Which part of an error is compared, without case.
#[derive(Clone, Copy, Debug)]
pub(super) enum Words {
    /// `code`, or the code of the inner error.
    Code(&'static str),
    /// `code`, the code of the inner error, or `type`.
    CodeOrType(&'static str),
    /// `type`.
    Type(&'static str),
    /// The end of `type`.
    TypeEnd(&'static str),
    /// All of these occur in the message. Counts only in one of Azure's shapes and beside no specific
    /// code: anybody may be quoted in a message.
    Message(&'static [&'static str]),
    /// As [`Self::Message`], beside any code. For phrases that no other error of the same status has.
    MessageWithAnyCode(&'static [&'static str]),
    /// The message begins like this, beside no specific code.
    MessageStart(&'static str),
    /// The message begins with the first and goes on with the second, beside no specific code.
    MessageStartAndRest(&'static str, &'static str),
}

use Meaning::*;
use Words::*;

/// Every known error. Phrases of messages are in lower case.
pub(super) const KNOWN_ERRORS: &[(Meaning, Words)] = &[
    (RequestRefused, Code("content_filter")),               // reference
    (RequestRefused, Type("content_filter")),               // traffic
    (RequestRefused, Code("ResponsibleAIPolicyViolation")), // reference, inner error
    (RequestRefused, Code("content_policy_violation")),     // reference, images
    (RequestRefused, Code("moderation_blocked")),           // OpenAI, images
    (RequestRefused, Code("invalid_prompt")),               // OpenAI, reasoning models
    (RequestRefused, Type("user_error")),                   // Responses guide, error events
    (RequestRefused, TypeEnd("_user_error")),               // traffic: image_generation_user_error
    // Of one that is not stored anywhere.
    (RequestRefused, MessageWithAnyCode(&["items are not persisted"])), // traffic
    (NotOnThisResource, Code("previous_response_not_found")),           // traffic
    (NotOnThisResource, Code("invalid_encrypted_content")),             // traffic
    (NotOnThisResource, Message(&["encrypted content", "could not be verified"])), // traffic
    (NotOnThisResource, Message(&["encrypted content", "could not be decrypted"])), // traffic
    (NotOnThisResource, MessageStartAndRest("item with id", "not found")), // traffic
    (NotOnThisResource, MessageStartAndRest("previous response", "not found")), // traffic
    (NotOnThisResource, MessageStartAndRest("file", "not found")), // traffic: one, or "Files [file-1] were"
    (NotOnThisResource, MessageStart("no such file object")),      // OpenAI
    // Assumed: not recorded, but worded like the others.
    (NotOnThisResource, MessageStartAndRest("response", "not found")),
    (NotOnThisResource, MessageStartAndRest("conversation", "not found")),
    (NotOnThisResource, MessageStartAndRest("container", "not found")),
    (NotOnThisResource, MessageStartAndRest("vector store", "not found")),
    (NotOnThisResource, MessageStartAndRest("batch", "not found")),
    (NotOnThisResource, MessageStartAndRest("upload", "not found")),
    (NotOnThisResource, MessageStartAndRest("no ", "found with id")),
    (NotOnThisResource, MessageStartAndRest("no such", "object")),
    (PromptTooLong, Code("context_length_exceeded")), // OpenAI
    (RateLimited, CodeOrType("429")),                 // reference
    (RateLimited, CodeOrType("rate_limit_exceeded")), // OpenAI
    (RateLimited, CodeOrType("rate_limit_error")),    // traffic
    (RateLimited, CodeOrType("too_many_requests")),   // Responses guide, error events
    (RateLimited, CodeOrType("RateLimitReached")),    // traffic
    (RateLimited, CodeOrType("NoCapacity")),          // traffic
    (RateLimited, CodeOrType("no_capacity")),         // traffic
    (RequestTooLargeNow, MessageWithAnyCode(&["exceeds the maximum usage size"])), // traffic
    (RequestTooLargeNow, MessageWithAnyCode(&["request too large"])), // OpenAI, tokens per minute
    (RequestTooLargeNow, MessageWithAnyCode(&["request is too large"])), // traffic
    (RequestTooLargeNow, MessageWithAnyCode(&["no capacity", "request size"])), // traffic
    (RequestTooLargeNow, MessageWithAnyCode(&["retry after 86400 seconds"])), // traffic: above the whole limit
    (DeploymentMissing, Code("DeploymentNotFound")),                          // reference
    (DeploymentMissing, Code("DeploymentModelNotFound")),                     // traffic
    (DeploymentMissing, Code("model_not_found")),                             // OpenAI
    (DeploymentMissing, Code("unknown_model")), // traffic, Foundry on /openai/v1
    (NotServedHere, Message(&["could not find an existing deployment"])), // traffic
    (NotServedHere, Message(&["deployment", "does not exist"])), // traffic
    (NotServedHere, Message(&["the model", "does not exist"])), // OpenAI
    (NotServedHere, Message(&["no such deployment"])), // traffic
    (NotServedHere, Message(&["unknown deployment"])), // traffic
    (NotServedHere, Message(&["unknown model"])), // traffic
    (NotServedHere, Message(&["is not enabled in this region"])), // traffic
    (NotServedHere, Message(&["is not available in this region"])), // traffic
    (NotServedHere, Message(&["not from an approved private endpoint"])), // traffic
    (ApiVersionUnsupported, Code("UnsupportedApiVersion")), // reference of Azure Resource Manager
    (ApiVersionUnsupported, Code("InvalidApiVersion")), // traffic
    (ApiVersionUnsupported, Code("InvalidApiVersionParameter")), // reference of Azure Resource Manager
    (ApiVersionUnsupported, Message(&["api version", "not supported"])), // traffic
    (ApiVersionUnsupported, Message(&["api-version", "not supported"])), // traffic
    (ApiVersionUnsupported, Message(&["unsupported", "api version"])), // traffic
    (ApiVersionUnsupported, Message(&["unsupported", "api-version"])), // traffic
    (PermissionMissing, Code("PermissionDenied")), // reference
    (CredentialRejected, Code("401")),          // reference
    (CredentialRejected, Code("invalid_api_key")), // OpenAI
    (AccessBlocked, Code("AuthenticationTypeDisabled")), // traffic
    (AccessBlocked, Code("AccessDenied")),      // traffic
    (AccessBlocked, Code("TrafficDenied")),     // traffic
    (AccessBlocked, Code("PublicNetworkAccessDisabled")), // traffic
    (AccessBlocked, Code("SubscriptionDisabled")), // traffic
    (AccessBlocked, MessageStart("access denied due to virtual network")), // traffic
    (AccessBlocked, MessageStart("a virtual network is configured")), // traffic
    (AccessBlocked, MessageStart("public access is disabled")), // traffic
    (AccessBlocked, MessageStart("your resource has been temporarily blocked")), // traffic
    (AccessBlocked, Message(&["not from an approved private endpoint"])), // traffic
    (BackendFailed, CodeOrType("server_error")), // OpenAI; Responses guide, error events
    (BackendFailed, CodeOrType("internal_error")), // traffic
    (BackendFailed, CodeOrType("internal_server_error")), // traffic
    (BackendFailed, CodeOrType("InternalServerError")), // reference
    (BackendFailed, CodeOrType("service_unavailable")), // traffic
    (BackendFailed, CodeOrType("ServiceUnavailable")), // reference
    (BackendFailed, CodeOrType("service_unavailable_error")), // traffic
    (BackendFailed, CodeOrType("server_overloaded")), // traffic
    (BackendFailed, CodeOrType("overloaded")),  // traffic
    (BackendFailed, CodeOrType("overloaded_error")), // traffic
    (BackendFailed, CodeOrType("engine_overloaded")), // OpenAI
    (BackendFailed, CodeOrType("bad_gateway")), // traffic
    (BackendFailed, CodeOrType("gateway_timeout")), // traffic
    (BackendFailed, CodeOrType("timeout")),     // reference, status 408
    (BackendFailed, CodeOrType("408")),         // reference
    (BackendFailed, CodeOrType("500")),         // reference
    (BackendFailed, CodeOrType("502")),         // reference
    (BackendFailed, CodeOrType("503")),         // reference
    (BackendFailed, CodeOrType("504")),         // reference
    (BackendFailed, Message(&["the server had an error"])), // OpenAI
    (BackendFailed, Message(&["internal server error"])), // traffic
    (BackendFailed, Message(&["temporarily unable to process"])), // traffic
];
