//! Where accounts hand in that they have something to report, for the task that passes reports on to the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use tokio::sync::mpsc;

use crate::names::ClientName;

/// A client that has something to report; `None` stands for all that need not authenticate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportRequest {
    /// At once: a request waits, or a lease is half used up.
    Urgent(Option<ClientName>),
    /// With the next round.
    Changed(Option<ClientName>),
}

/// The desk, and what all accounts know of the server.
#[derive(Debug)]
pub struct LeaseDesk {
    queue: mpsc::UnboundedSender<ReportRequest>,
    is_up: AtomicBool,
    /// This process makes no more reports.
    is_closed: AtomicBool,
    /// Another process makes them.
    is_replaced: AtomicBool,
    instances: AtomicU64,
    /// The server's seconds since 1970, less the seconds that windows count in.
    second_offset: AtomicI64,
    limited_alone: AtomicU64,
}

impl LeaseDesk {
    /// A desk, and the queue of what is handed in.
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<ReportRequest>) {
        let (queue, receiver) = mpsc::unbounded_channel();
        let desk = Self {
            queue,
            is_up: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            is_replaced: AtomicBool::new(false),
            instances: AtomicU64::new(1),
            second_offset: AtomicI64::new(0),
            limited_alone: AtomicU64::new(0),
        };
        (Arc::new(desk), receiver)
    }

    /// The server answers; its seconds since 1970 are this much ahead of those that windows count in.
    pub fn set_up(&self, second_offset: i64) {
        self.second_offset.store(second_offset, Ordering::Relaxed);
        self.is_up.store(true, Ordering::Release);
    }

    /// The server does not answer.
    pub fn set_down(&self) {
        self.is_up.store(false, Ordering::Release);
    }

    /// Another process makes the reports from now on.
    pub fn replace(&self) {
        self.is_replaced.store(true, Ordering::Release);
        self.close();
    }

    /// This process stops.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    /// Whether another process makes the reports.
    pub fn is_replaced(&self) -> bool {
        self.is_replaced.load(Ordering::Acquire)
    }

    /// Whether leases can be had.
    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Acquire) && !self.is_closed()
    }

    /// Whether this process makes no more reports.
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// How many instances share the limits, as far as is known.
    pub fn set_instances(&self, instances: usize) {
        self.instances.store(instances.max(1) as u64, Ordering::Relaxed);
    }

    /// How many requests were compared with this instance's part of a limit, because the server did not answer.
    pub fn limited_alone(&self) -> u64 {
        self.limited_alone.load(Ordering::Relaxed)
    }

    pub(super) fn count_limited_alone(&self) {
        self.limited_alone.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn instances(&self) -> u64 {
        self.instances.load(Ordering::Relaxed)
    }

    pub(super) fn second_offset(&self) -> i64 {
        self.second_offset.load(Ordering::Relaxed)
    }

    pub(in super::super) fn hand_in(&self, request: ReportRequest) {
        // The receiver lives as long as the process.
        let _ = self.queue.send(request);
    }
}
