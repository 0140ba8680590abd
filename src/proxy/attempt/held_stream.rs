//! The beginning of a stream, which is held until its first content. Azure may refuse a streamed request
//! with an error event after the status 200. On a WebSocket each event is a message (`HttpTask::UpgradedBody`). As long as the client has got nothing of the stream, another
//! backend can be tried.

use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;

use crate::azure::response::sse::{EventScanner, SseEvent};
use crate::azure::{FirstEventKind, Operation, classify_first_event};
use crate::proxy::client::body_memory::MemoryReservation;

/// The head and first events of a stream.
pub(in crate::proxy) struct HeldStream {
    pub(super) header: Box<ResponseHeader>,
    /// The parts of the body that have arrived.
    pub(super) tasks: Vec<HttpTask>,
    /// Bytes in `tasks`.
    body_size: u64,
    /// The stream goes to the client once it exceeds this many bytes.
    max_body_size: u64,
    scanner: EventScanner,
    /// The memory of `tasks`.
    memory_reservation: MemoryReservation,
}

/// What the events of a held stream show so far.
pub(super) enum HeldStreamState {
    /// No content yet, and no error.
    Undecided,
    /// The stream has to go to the client now: it has content, has ended, or is too large to hold.
    MustRelease,
    /// The data of an error event before any content.
    ErrorBeforeContent(Vec<u8>),
}

impl HeldStream {
    /// Begins to hold a stream, up to `max_body_size` bytes of its body.
    pub(super) fn new(
        header: Box<ResponseHeader>,
        max_body_size: u64,
        memory_reservation: MemoryReservation,
    ) -> Self {
        let scanner = EventScanner::new(usize::try_from(max_body_size).unwrap_or(usize::MAX));
        Self { header, tasks: Vec::new(), body_size: 0, max_body_size, scanner, memory_reservation }
    }

    /// Adds a part of the response.
    ///
    /// # Errors
    /// The backend's error. Since the client has got nothing, the attempt then ends as if there had been
    /// no response.
    pub(super) fn push(&mut self, task: HttpTask, operation: Operation) -> pingora::Result<HeldStreamState> {
        let mut error_event = None;
        let mut is_ready = task.is_end();
        match &task {
            HttpTask::Body(Some(data), _) | HttpTask::UpgradedBody(Some(data), _) => {
                let mut has_content = false;
                // An error after content, even in the same read, does not count: the client gets both.
                let mut on_event = |event: SseEvent<'_>| match classify_first_event(operation, &event) {
                    FirstEventKind::Content => has_content |= error_event.is_none(),
                    FirstEventKind::Error if !has_content && error_event.is_none() => {
                        error_event = Some(event.data.to_vec());
                    }
                    FirstEventKind::Error | FirstEventKind::Preamble => {}
                };
                if matches!(task, HttpTask::UpgradedBody(..)) {
                    on_event(SseEvent::from_message(data));
                } else {
                    self.scanner.feed(data, &mut on_event);
                }
                self.body_size += data.len() as u64;
                is_ready |= has_content
                    || self.body_size > self.max_body_size
                    || self.memory_reservation.grow_to(self.body_size).is_err();
            }
            HttpTask::Failed(_) => {
                let HttpTask::Failed(error) = task else { return Ok(HeldStreamState::Undecided) };
                return Err(error);
            }
            _ => {}
        }
        self.tasks.push(task);
        Ok(match error_event {
            Some(event) => HeldStreamState::ErrorBeforeContent(event),
            None if is_ready => HeldStreamState::MustRelease,
            None => HeldStreamState::Undecided,
        })
    }
}
