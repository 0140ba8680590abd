//! The balancer's own types of Pingora errors, which tell the next phase why an attempt or a request
//! ended, and what is behind Pingora's own errors.

use std::error::Error as StdError;
use std::io;

use pingora::{Error, ErrorType};

use crate::system_error::is_local_shortage;

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

/// The error of the system if a connection was not made because this process or machine lacks something.
pub(super) fn local_shortage(connect_error: &Error) -> Option<&io::Error> {
    find_io_error(connect_error, is_local_shortage)
}

/// The first error of the system among the causes of an error for which `condition` holds.
pub(super) fn find_io_error(error: &Error, condition: impl Fn(&io::Error) -> bool) -> Option<&io::Error> {
    let mut cause: Option<&(dyn StdError + 'static)> = error.cause.as_deref().map(|cause| cause as _);
    while let Some(current) = cause {
        if let Some(found) = current.downcast_ref().filter(|found| condition(found)) {
            return Some(found);
        }
        cause = match current.downcast_ref::<Box<Error>>() {
            Some(error) => error.cause.as_deref().map(|cause| cause as _),
            None => current.source(),
        };
    }
    None
}
