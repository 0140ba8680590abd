//! The pool of idle HTTP/1.1 connections to backends.
//!
//! Pingora's own pool spawns a task for each idle connection, which ends when the connection is used again.
//! Here idle connections are not polled. One that the backend has closed is noticed when it is taken, or by
//! a periodic sweep.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use pingora::protocols::Stream;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::sleep;

/// Number of parts of the pool, each with its own lock.
const SHARD_COUNT: usize = 16;
/// How often closed and expired connections are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Identifies connections that can replace each other: the peer's `group_key` and the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ConnectionKey {
    pub(super) peer_key: u64,
    pub(super) address: SocketAddr,
}

/// A pool of idle connections.
pub(super) struct ConnectionPool(Arc<PoolState>);

struct PoolState {
    shards: [Mutex<Shard>; SHARD_COUNT],
    connection_count: AtomicUsize,
    /// A connection beyond this number is closed instead of pooled.
    max_connections: usize,
    /// The task that removes closed and expired connections is running.
    has_sweeper: AtomicBool,
}

/// The connections with each key; the last one is used first.
type Shard = HashMap<ConnectionKey, Vec<IdleConnection>>;

struct IdleConnection {
    stream: Stream,
    expires_at: Instant,
}

impl ConnectionPool {
    /// An empty pool for at most `max_connections`.
    pub(super) fn new(max_connections: usize) -> Self {
        Self(Arc::new(PoolState {
            shards: Default::default(),
            connection_count: AtomicUsize::new(0),
            max_connections,
            has_sweeper: AtomicBool::new(false),
        }))
    }

    /// Takes the connection that was inserted last and is still open.
    pub(super) fn take_idle(&self, key: ConnectionKey) -> Option<Stream> {
        let now = Instant::now();
        loop {
            let mut idle = self.0.shard(key).get_mut(&key)?.pop()?;
            self.0.connection_count.fetch_sub(1, Ordering::Relaxed);
            if idle.expires_at > now && is_open_and_silent(&mut idle.stream) {
                return Some(idle.stream);
            }
        }
    }

    /// Adds a connection for `max_idle_time`; closes it if the pool is full.
    pub(super) fn insert_idle(&self, key: ConnectionKey, mut stream: Stream, max_idle_time: Duration) {
        // This also replaces the waker of the task that used the connection, so that the connection no longer
        // wakes it.
        if !is_open_and_silent(&mut stream)
            || self.0.connection_count.load(Ordering::Relaxed) >= self.0.max_connections
        {
            return;
        }
        self.0.connection_count.fetch_add(1, Ordering::Relaxed);
        let expires_at = Instant::now() + max_idle_time;
        self.0.shard(key).entry(key).or_default().push(IdleConnection { stream, expires_at });
        if !self.0.has_sweeper.swap(true, Ordering::AcqRel) {
            tokio::spawn(sweep_periodically(Arc::clone(&self.0)));
        }
    }
}

impl PoolState {
    fn shard(&self, key: ConnectionKey) -> MutexGuard<'_, Shard> {
        let index = usize::try_from(key.peer_key % SHARD_COUNT as u64).unwrap_or(0);
        lock(self.shards.get(index).unwrap_or(&self.shards[0]))
    }

    /// Removes closed and expired connections; returns whether any connection is left.
    fn remove_ended(&self) -> bool {
        let now = Instant::now();
        for shard in &self.shards {
            lock(shard).retain(|_, idle| {
                let before = idle.len();
                idle.retain_mut(|idle| idle.expires_at > now && is_open_and_silent(&mut idle.stream));
                self.connection_count.fetch_sub(before - idle.len(), Ordering::Relaxed);
                !idle.is_empty()
            });
        }
        self.connection_count.load(Ordering::Relaxed) > 0
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes closed and expired connections every [`SWEEP_INTERVAL`] until the pool is empty.
async fn sweep_periodically(pool: Arc<PoolState>) {
    loop {
        sleep(SWEEP_INTERVAL).await;
        if !pool.remove_ended() {
            pool.has_sweeper.store(false, Ordering::Release);
            // Counted again after the store: a connection that was inserted before it has started no sweeper,
            // because this one was still running. One inserted after it may have started another.
            let is_empty = pool.connection_count.load(Ordering::Acquire) == 0;
            if is_empty || pool.has_sweeper.swap(true, Ordering::AcqRel) {
                return;
            }
        }
    }
}

/// Whether an idle connection can be used: nothing has arrived on it, neither its end nor bytes that belong
/// to no response.
fn is_open_and_silent(stream: &mut Stream) -> bool {
    let mut byte = [0];
    let mut read = ReadBuf::new(&mut byte);
    let mut no_waker = Context::from_waker(Waker::noop());
    matches!(Pin::new(stream).poll_read(&mut no_waker, &mut read), Poll::Pending)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const ONE_HOUR: Duration = Duration::from_secs(3600);

    fn key(peer_key: u64) -> ConnectionKey {
        ConnectionKey { peer_key, address: SocketAddr::from(([127, 0, 0, 1], 1)) }
    }

    /// Adds a connection to the pool; returns the backend's end of it.
    fn insert_connection(pool: &ConnectionPool, peer_key: u64, max_idle_time: Duration) -> DuplexStream {
        let (pooled_end, backend_end) = duplex(16);
        pool.insert_idle(key(peer_key), Box::new(pooled_end), max_idle_time);
        backend_end
    }

    #[tokio::test]
    async fn the_last_usable_connection_is_taken() {
        let pool = ConnectionPool::new(4);
        assert!(pool.take_idle(key(1)).is_none());
        let mut usable = insert_connection(&pool, 1, ONE_HOUR);
        drop(insert_connection(&pool, 1, ONE_HOUR));
        let mut with_unexpected_bytes = insert_connection(&pool, 1, ONE_HOUR);
        with_unexpected_bytes.write_all(b"x").await.unwrap();
        let _expired = insert_connection(&pool, 1, Duration::ZERO);
        assert!(pool.take_idle(key(1 + SHARD_COUNT as u64)).is_none(), "another peer in the same shard");
        let mut taken = pool.take_idle(key(1)).unwrap();
        usable.write_all(b"x").await.unwrap();
        assert!(!is_open_and_silent(&mut taken), "the bytes arrive, so this is the usable one");
        assert!(pool.take_idle(key(1)).is_none());
        assert_eq!(pool.0.connection_count.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn the_number_of_connections_is_limited() {
        let pool = ConnectionPool::new(2);
        let backend_ends: Vec<_> = (0..3).map(|_| insert_connection(&pool, 1, ONE_HOUR)).collect();
        assert!(
            pool.take_idle(key(1)).is_some()
                && pool.take_idle(key(1)).is_some()
                && pool.take_idle(key(1)).is_none()
        );
        drop(backend_ends);
    }

    #[tokio::test(start_paused = true)]
    async fn closed_and_expired_connections_are_removed_until_the_pool_is_empty() {
        let pool = ConnectionPool::new(9);
        let backend_ends = [insert_connection(&pool, 1, ONE_HOUR), insert_connection(&pool, 2, ONE_HOUR)];
        let _expired = insert_connection(&pool, 3, Duration::ZERO);
        sleep(2 * SWEEP_INTERVAL).await;
        assert_eq!(pool.0.connection_count.load(Ordering::Relaxed), 2, "the expired one is removed");
        drop(backend_ends);
        sleep(2 * SWEEP_INTERVAL).await;
        assert_eq!(pool.0.connection_count.load(Ordering::Relaxed), 0, "the closed ones are removed");
        assert!(!pool.0.has_sweeper.load(Ordering::Relaxed));
        let _backend_end = insert_connection(&pool, 1, ONE_HOUR);
        assert!(pool.0.has_sweeper.load(Ordering::Relaxed));
    }
}
