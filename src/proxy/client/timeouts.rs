//! How long client connections are waited for. What an operator configures is in `timeouts`.

use std::time::Duration;

/// How long a connection may be silent between two requests.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a connection is kept after the listeners have closed: a client may have sent its
/// next request before it learned of that.
pub const STOP_LINGER: Duration = Duration::from_millis(250);
/// The same where another process has taken over: long enough for clients far away.
pub const HANDOVER_LINGER: Duration = Duration::from_secs(4);
/// How long the rest of an upload is read after the response. A connection that is reset while the
/// client sends takes the response away before the client has read it.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take to read a refusal before its connection is closed.
pub(super) const REFUSAL_READ_TIMEOUT: Duration = Duration::from_secs(1);
