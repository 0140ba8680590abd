//! Observes what the backend sends in a realtime session. Nothing is held back or changed, and what is not
//! understood is no reason to disturb the session.

use std::time::Instant;

use super::frame_follower::{FrameFollower, MessagePart};
use super::session_facts::SessionFacts;
use super::turns::Turns;
use crate::azure::response::realtime_events::RealtimeEventReader;
use crate::proxy::context::RequestContext;

/// Reads the backend's events from the bytes that pass, and makes their records.
pub(in crate::proxy) struct RealtimeObserver {
    frames: FrameFollower,
    events: RealtimeEventReader,
    turns: Turns,
}

impl RealtimeObserver {
    /// An observer of what follows a backend's 101; `None` if it opened no realtime session.
    pub(in crate::proxy) fn of_request(context: &RequestContext) -> Option<Box<Self>> {
        let session = SessionFacts::of_request(context)?;
        let events = RealtimeEventReader::new(session.policy.captures_prompt);
        Some(Box::new(Self { frames: FrameFollower::default(), events, turns: Turns::new(session) }))
    }

    /// Whether the bytes so far end with a frame.
    pub(in crate::proxy) fn is_between_frames(&self) -> bool {
        self.frames.is_between_frames()
    }

    /// Takes the next bytes of the backend.
    pub(in crate::proxy) fn observe(&mut self, bytes: &[u8]) {
        let Self { frames, events, turns } = self;
        if frames.is_broken() {
            return;
        }
        frames.feed(bytes, &mut |part| match part {
            MessagePart::Bytes(bytes) => {
                turns.count_bytes(bytes.len());
                events.push(bytes, &mut |event| turns.on_event(&event, Instant::now()));
            }
            MessagePart::End => events.end(&mut |event| turns.on_event(&event, Instant::now())),
        });
    }
}
