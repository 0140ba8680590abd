//! What happens when a deadline of the current attempt has passed.

use std::time::Instant;

use pingora::protocols::http::HttpTask;
use pingora::{Error, ErrorType, Result};

use super::deadline::DeadlineAction;
use super::response_handler::ResponseHandler;
use super::silence::Silence;
use super::upstream_error::UpstreamError;
use crate::proxy::context::RequestContext;
use crate::proxy::error_types::{BACKEND_STALLED, FIRST_BYTE_TIMEOUT, RESPONSE_IDLE_TIMEOUT};

impl RequestContext {
    /// Acts on a deadline of the current attempt; returns what is to be written to the client now.
    ///
    /// # Errors
    /// If the attempt ends with it, or the client's upload is refused.
    pub(in crate::proxy) fn on_deadline_passed(
        &mut self,
        action: DeadlineAction,
        silence: &mut Silence,
    ) -> Result<Vec<HttpTask>> {
        let now = Instant::now();
        match action {
            DeadlineAction::GiveUp(UpstreamError::FirstByteTimeout) => {
                Error::e_explain(FIRST_BYTE_TIMEOUT, "no response in time")
            }
            DeadlineAction::GiveUp(_) => Error::e_explain(
                RESPONSE_IDLE_TIMEOUT,
                "the next part of the response did not arrive, or of the request was not taken, in time",
            ),
            DeadlineAction::RefuseUpload => Err(Error::new(ErrorType::HTTPStatus(408)).into_down()),
            DeadlineAction::EndHold => ResponseHandler::new(self, now).end_hold(),
            DeadlineAction::CheckSilence => {
                let is_stalled = silence.check(now, |sent_at| self.watch_current_attempt(sent_at));
                if is_stalled && self.try_leave_stalled_backend(now) {
                    return Error::e_explain(BACKEND_STALLED, "the backend does not answer any more");
                }
                Ok(Vec::new())
            }
        }
    }
}
