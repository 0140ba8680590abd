//! What a simulated resource remembers of the requests it was sent, for tests to look at.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;

use super::http1::Head;
use super::live::hold;

/// Requests kept; older ones are forgotten, so that `demo` can run for days.
const KEPT: usize = 10_000;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `POST`.
    pub method: String,
    /// Path and query as received, still encoded.
    pub target: String,
    /// Headers in the order and the case received.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Bytes of the body that came, without chunk framing.
    pub body_len: u64,
    /// The body, with [`super::Resource::keep_bodies`].
    pub body: Option<Bytes>,
    /// When the head had been read.
    pub at: Instant,
    /// The whole body arrived.
    pub complete: bool,
    /// Status of the answer, once its head was sent.
    pub status: Option<u16>,
    /// The whole answer was sent as it was meant to be.
    pub answered: bool,
    /// The caller went away before the answer was complete.
    pub cancelled: bool,
    /// Number of the connection it came on, counted from 1.
    pub connection: u64,
}

impl Seen {
    /// The first header of this name that is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }
}

#[derive(Debug, Default)]
pub(super) struct Journal {
    hits: AtomicUsize,
    entries: Mutex<VecDeque<(usize, Seen)>>,
}

impl Journal {
    /// Enters a request; the number is for [`Journal::amend`].
    pub(super) fn open(&self, head: &Head, connection: u64, now: Instant) -> usize {
        let number = self.hits.fetch_add(1, Ordering::SeqCst);
        let seen = Seen {
            method: head.method.clone(),
            target: head.target.clone(),
            headers: head.headers.clone(),
            body_len: 0,
            body: None,
            at: now,
            complete: false,
            status: None,
            answered: false,
            cancelled: false,
            connection,
        };
        let mut entries = hold(&self.entries);
        if entries.len() == KEPT {
            entries.pop_front();
        }
        entries.push_back((number, seen));
        number
    }

    pub(super) fn amend(&self, number: usize, change: impl FnOnce(&mut Seen)) {
        // Recent requests are the ones that change.
        if let Some((_, seen)) = hold(&self.entries).iter_mut().rev().find(|(own, _)| *own == number) {
            change(seen);
        }
    }

    pub(super) fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    pub(super) fn entries(&self) -> Vec<Seen> {
        hold(&self.entries).iter().map(|(_, seen)| seen.clone()).collect()
    }
}
