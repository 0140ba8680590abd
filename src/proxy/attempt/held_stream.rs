//! The beginning of a stream that is held back until its first content: Azure refuses streams inside
//! a 200, and as long as the client has seen nothing another backend can take the request.

use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;

use crate::azure::response::sse::EventScanner;
use crate::azure::{FirstEventKind, Operation, classify_first_event};
use crate::proxy::client::body_memory::MemoryReservation;

/// The head and first events of a stream.
pub(in crate::proxy) struct HeldStream {
    pub(in crate::proxy) header: Box<ResponseHeader>,
    pub(in crate::proxy) tasks: Vec<HttpTask>,
    /// Bytes of the events.
    size: u64,
    /// Most bytes that are held.
    max_size: u64,
    scanner: EventScanner,
    reservation: MemoryReservation,
}

/// What the first events of a stream turned out to be.
pub(super) enum HeldStreamState {
    /// Nothing with content yet: it stays held.
    Undecided,
    /// It has content, is complete, or is too large to hold: it goes to the client.
    Ready,
    /// This event, before any content, is an error.
    Refused(Vec<u8>),
}

impl HeldStream {
    /// Holds at most `max_size` bytes.
    pub(super) fn new(header: Box<ResponseHeader>, max_size: u64, reservation: MemoryReservation) -> Self {
        let scanner = EventScanner::new(usize::try_from(max_size).unwrap_or(usize::MAX));
        Self { header, tasks: Vec::new(), size: 0, max_size, scanner, reservation }
    }

    /// Holds one more part of the response.
    ///
    /// # Errors
    /// What upstream failed with. The client has been shown nothing: it is as if there had been no
    /// response.
    pub(super) fn push(&mut self, task: HttpTask, operation: Operation) -> pingora::Result<HeldStreamState> {
        let mut error_event = None;
        let mut is_ready = task.is_end();
        match &task {
            HttpTask::Body(Some(data), _) => {
                let mut has_content = false;
                self.scanner.feed(data, &mut |event| match classify_first_event(operation, &event) {
                    FirstEventKind::Content => has_content |= error_event.is_none(),
                    FirstEventKind::Error if !has_content && error_event.is_none() => {
                        error_event = Some(event.data.to_vec());
                    }
                    FirstEventKind::Error | FirstEventKind::Preamble => {}
                });
                self.size += data.len() as u64;
                is_ready |=
                    has_content || self.size > self.max_size || self.reservation.grow_to(self.size).is_err();
            }
            HttpTask::Failed(_) => {
                let HttpTask::Failed(error) = task else { return Ok(HeldStreamState::Undecided) };
                return Err(error);
            }
            _ => {}
        }
        self.tasks.push(task);
        Ok(match error_event {
            Some(event) => HeldStreamState::Refused(event),
            None if is_ready => HeldStreamState::Ready,
            None => HeldStreamState::Undecided,
        })
    }
}
