//! How many sockets to backends may be kept without a turn, for all clients together.

use std::sync::Arc;

use crate::names::Caller;
use crate::proxy::client::fair_share::FairShare;

/// Limits the idle upstream sockets of all clients. Each takes a file descriptor, and a client may have thousands of
/// sockets.
pub(in crate::proxy) struct IdleSocketLimit {
    share: FairShare,
    capacity: u64,
}

/// Permits to keep one socket until it is dropped.
pub(super) struct IdlePermit {
    limit: Arc<IdleSocketLimit>,
    holder: Caller,
}

impl IdleSocketLimit {
    /// A limit for this many sockets.
    pub(in crate::proxy) fn new(capacity: usize) -> Self {
        Self { share: FairShare::default(), capacity: capacity as u64 }
    }

    /// Permits one more socket of this client; `None` if it, or all together, have too many.
    pub(super) fn try_acquire(limit: &Arc<Self>, holder: &Caller) -> Option<IdlePermit> {
        limit
            .share
            .try_take(holder, 0, 1, limit.capacity)
            .then(|| IdlePermit { limit: Arc::clone(limit), holder: holder.clone() })
    }
}

impl Drop for IdlePermit {
    fn drop(&mut self) {
        self.limit.share.give_back(&self.holder, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::ClientName;

    #[test]
    fn one_client_leaves_sockets_to_others_and_a_dropped_permit_is_free_again() {
        let limit = Arc::new(IdleSocketLimit::new(12));
        let client = |name: &str| Caller::Client(ClientName::new(name));
        let take_all = |name: &str| {
            std::iter::from_fn(|| IdleSocketLimit::try_acquire(&limit, &client(name))).collect::<Vec<_>>()
        };
        let first = take_all("a");
        assert_eq!(first.len(), 8);
        assert!(!take_all("b").is_empty());
        drop(first);
        assert_eq!(take_all("c").len(), 8);
    }
}
