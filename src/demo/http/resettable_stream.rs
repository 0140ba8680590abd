//! The transport below HTTP.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A transport that can be closed with a TCP reset. TLS would be a second implementation.
pub(in crate::demo) trait ResettableStream:
    AsyncRead + AsyncWrite + Unpin + Send + 'static
{
    /// Makes the next close a TCP reset (RST) instead of an orderly end (FIN).
    fn set_reset_on_close(&self);
}

impl ResettableStream for TcpStream {
    fn set_reset_on_close(&self) {
        // With SO_LINGER at zero, closing the socket sends RST and discards unsent data.
        if let Err(error) = self.set_zero_linger() {
            log::debug!("simulate: cannot arrange a TCP reset on this platform: {error}");
        }
    }
}
