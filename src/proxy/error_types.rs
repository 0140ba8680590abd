//! The balancer's own types of Pingora errors, by which the phases tell each other why an attempt
//! or a request ended.

use pingora::ErrorType;

/// No backend is left to try; the retry state knows why.
pub(super) const ATTEMPTS_EXHAUSTED: ErrorType = ErrorType::Custom("NoFurtherAttempt");
/// The backend's credential has not been fetched yet.
pub(super) const NO_CREDENTIAL: ErrorType = ErrorType::Custom("NoSecret");
/// The client disconnected while its request waited.
pub(super) const CLIENT_GONE: ErrorType = ErrorType::Custom("ClientGone");
/// The response was held back and another backend is tried instead.
pub(super) const RETRY_ELSEWHERE: ErrorType = ErrorType::Custom("RetryableReply");
/// The backend sent no response head in time.
pub(super) const FIRST_BYTE_TIMEOUT: ErrorType = ErrorType::Custom("FirstByteTimeout");
/// The backend fell silent in the middle of its response.
pub(super) const IDLE_TIMEOUT: ErrorType = ErrorType::Custom("IdleTimeout");
/// The backend answered 101 to a request that asked for no upgrade.
pub(super) const UNSOLICITED_UPGRADE: ErrorType = ErrorType::Custom("UnsolicitedUpgrade");
