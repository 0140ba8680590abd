//! The balancer's own types of Pingora errors, which tell the next phase why an attempt or a request
//! ended.

use pingora::ErrorType;

/// No further attempt is made; `attempt/exhaustion.rs` says why.
pub(super) const ATTEMPTS_EXHAUSTED: ErrorType = ErrorType::Custom("AttemptsExhausted");
/// The backend's credential has not been fetched yet.
pub(super) const NO_CREDENTIAL: ErrorType = ErrorType::Custom("NoCredential");
/// The client disconnected while its request waited.
pub(super) const CLIENT_GONE: ErrorType = ErrorType::Custom("ClientGone");
/// The client does not get this response; another attempt follows.
pub(super) const RETRY_ELSEWHERE: ErrorType = ErrorType::Custom("RetryElsewhere");
/// The turn needs this backend for what its socket keeps, and refers to something of another resource.
pub(super) const NOT_ON_PINNED_RESOURCE: ErrorType = ErrorType::Custom("NotOnPinnedResource");
/// The backend sent no response head in time.
pub(super) const FIRST_BYTE_TIMEOUT: ErrorType = ErrorType::Custom("FirstByteTimeout");
/// The backend sent the beginning of a response and then nothing for too long.
pub(super) const RESPONSE_IDLE_TIMEOUT: ErrorType = ErrorType::Custom("IdleTimeout");
/// The backend does not answer any more; the request waits elsewhere.
pub(super) const BACKEND_STALLED: ErrorType = ErrorType::Custom("BackendStalled");
/// The backend answered 101 to a request that asked for no upgrade.
pub(super) const UNSOLICITED_UPGRADE: ErrorType = ErrorType::Custom("UnsolicitedUpgrade");
