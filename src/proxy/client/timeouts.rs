//! Fixed timeouts of client connections. Those that an operator can configure are under `timeouts` in the
//! configuration.

use std::time::Duration;

/// How long a connection may be idle between two requests.
pub const CLIENT_IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long idle connections stay open after the listeners have closed, because a client may have sent its
/// next request before it notices the shutdown.
pub const SHUTDOWN_LINGER: Duration = Duration::from_millis(250);
/// The same if another process has taken over, where no request may fail: long enough for clients far away.
pub const HANDOVER_LINGER: Duration = Duration::from_secs(4);
/// How long the rest of an upload is read and dropped after its response has been sent. If the connection
/// were closed earlier, the kernel would reset it, and the client might lose the response.
pub(super) const UPLOAD_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// A response that the client has not taken for this long counts as held memory.
pub(super) const UNREAD_GRACE: Duration = Duration::from_secs(1);
/// How long a client has to read a refusal of a malformed request before its connection is closed.
pub(super) const REFUSE_AND_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a client has to take the last bytes of a response, or the few of a health check, before its connection
/// is closed.
pub(in crate::proxy) const LAST_BYTES_TIMEOUT: Duration = Duration::from_secs(15);
