//! Gets the status from the process that is serving.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::admin::status::StatusReport;
use crate::cli::admin_client::{AdminArguments, AdminClient, AdminError};

/// The pause before the next request if a process responded that has been replaced.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// How long a response may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the status cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum StatusError {
    /// There is no status.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The response is not a status, or that of another version.
    #[error("the response of the admin API is not a status that this version understands: {0}")]
    NotAStatus(#[from] serde_json::Error),
    /// `--all` without other instances.
    #[error(
        "this instance is alone: its configuration has no `shared`, so that it knows of no others. `aoai-lb status` shows it"
    )]
    NotShared,
    /// The terminal or standard output cannot be used.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Gets the status.
pub(super) struct StatusClient(AdminClient);

impl StatusClient {
    /// A client for the admin API that these arguments mean.
    ///
    /// # Errors
    /// [`AdminError`].
    pub(super) fn new(arguments: &AdminArguments) -> Result<Self, AdminError> {
        Ok(Self(AdminClient::new(arguments, REQUEST_TIMEOUT)?))
    }

    /// The status as it was sent, and what it says. For a few seconds after an upgrade the predecessor of the
    /// serving process may respond as well.
    ///
    /// # Errors
    /// [`StatusError`].
    pub(super) async fn get(&self) -> Result<(Bytes, StatusReport), StatusError> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        loop {
            let body = self.0.get("/api/status").await?.body;
            let status: StatusReport = serde_json::from_slice(&body)?;
            if !status.process.replaced || Instant::now() >= deadline {
                return Ok((body, status));
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }
}
