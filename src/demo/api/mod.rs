//! What all operations of the simulated API have in common: routes, requests, responses, errors,
//! credentials, and the headers that surround every response.

pub(in crate::demo) mod authentication;
pub(in crate::demo) mod common_headers;
pub(in crate::demo) mod content_filter;
pub(in crate::demo) mod error_response;
pub(in crate::demo) mod request;
pub(in crate::demo) mod response;
pub(in crate::demo) mod route;
pub(in crate::demo) mod sse;
pub(in crate::demo) mod throttling;
