//! A node of a cluster, and the connection to it while there is one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;

use crate::shared::node_address::NodeAddress;
use crate::shared::problem::Problem;

/// A node, as its task (`keeper.rs`) leaves it for those who send commands.
pub(super) struct Node {
    pub(super) address: NodeAddress,
    connection: ArcSwapOption<MultiplexedConnection>,
    /// Why there is no connection.
    problem: Mutex<Option<Arc<Problem>>>,
    is_tried: AtomicBool,
}

impl Node {
    /// A node to which there was no attempt to connect yet.
    pub(super) fn new(address: NodeAddress) -> Arc<Self> {
        Arc::new(Self {
            address,
            connection: ArcSwapOption::empty(),
            problem: Mutex::default(),
            is_tried: AtomicBool::new(false),
        })
    }

    /// `None` while there is no connection.
    pub(super) fn connection(&self) -> Option<MultiplexedConnection> {
        self.connection.load().as_deref().cloned()
    }

    pub(super) fn is_up(&self) -> bool {
        self.connection.load().is_some()
    }

    /// Whether the first attempt to connect has ended.
    pub(super) fn is_tried(&self) -> bool {
        self.is_tried.load(Ordering::Acquire)
    }

    /// Why there is no connection; `None` also before the first attempt has ended.
    pub(super) fn problem(&self) -> Option<Arc<Problem>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_up(&self, connection: MultiplexedConnection) {
        self.set(Some(connection), None);
    }

    pub(super) fn set_down(&self, problem: Problem) {
        self.set(None, Some(problem));
    }

    fn set(&self, connection: Option<MultiplexedConnection>, problem: Option<Problem>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem.map(Arc::new);
        self.connection.store(connection.map(Arc::new));
        self.is_tried.store(true, Ordering::Release);
    }
}
