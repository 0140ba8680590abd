//! Idle HTTP/1.1 connections to backends.
//!
//! The engine's pool has a task for each idle connection, spawned and ended with every request. Here
//! idle connections are not polled: one that has ended is found when it is taken, or by a sweep.

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

/// Parts of the pool, each with a lock of its own.
const SHARD_COUNT: usize = 16;
/// How often connections that have ended are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Where a connection leads: what tells two peers apart, and the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ConnectionKey {
    pub(in crate::proxy) peer: u64,
    pub(in crate::proxy) address: SocketAddr,
}

/// Idle connections.
pub(super) struct ConnectionPool(Arc<PoolState>);

struct PoolState {
    shards: [Mutex<Shard>; SHARD_COUNT],
    count: AtomicUsize,
    /// Most connections that are kept.
    max_connections: usize,
    /// A task that removes ended connections is running.
    has_sweeper: AtomicBool,
}

type Shard = HashMap<ConnectionKey, Vec<IdleConnection>>;

struct IdleConnection {
    stream: Stream,
    until: Instant,
}

impl ConnectionPool {
    /// An empty pool that keeps at most `max_connections`.
    pub(in crate::proxy) fn new(max_connections: usize) -> Self {
        Self(Arc::new(PoolState {
            shards: Default::default(),
            count: AtomicUsize::new(0),
            max_connections,
            has_sweeper: AtomicBool::new(false),
        }))
    }

    /// The connection that was inserted last and is still open.
    pub(super) fn take_idle(&self, key: ConnectionKey) -> Option<Stream> {
        let now = Instant::now();
        loop {
            let mut idle = self.0.shard(key).get_mut(&key)?.pop()?;
            self.0.count.fetch_sub(1, Ordering::Relaxed);
            if idle.until > now && is_open(&mut idle.stream) {
                return Some(idle.stream);
            }
        }
    }

    /// Keeps a connection for this time.
    pub(super) fn insert_idle(&self, key: ConnectionKey, mut stream: Stream, time: Duration) {
        // Polling it also replaces the waker of the task that used it.
        if !is_open(&mut stream) || self.0.count.load(Ordering::Relaxed) >= self.0.max_connections {
            return;
        }
        self.0.count.fetch_add(1, Ordering::Relaxed);
        let until = Instant::now() + time;
        self.0.shard(key).entry(key).or_default().push(IdleConnection { stream, until });
        if !self.0.has_sweeper.swap(true, Ordering::AcqRel) {
            tokio::spawn(sweep(Arc::clone(&self.0)));
        }
    }
}

impl PoolState {
    fn shard(&self, key: ConnectionKey) -> MutexGuard<'_, Shard> {
        let n = usize::try_from(key.peer % SHARD_COUNT as u64).unwrap_or(0);
        lock(self.shards.get(n).unwrap_or(&self.shards[0]))
    }

    /// Removes connections that have ended or expired; returns whether any is left.
    fn sweep(&self) -> bool {
        let now = Instant::now();
        for shard in &self.shards {
            lock(shard).retain(|_, idle| {
                let before = idle.len();
                idle.retain_mut(|idle| idle.until > now && is_open(&mut idle.stream));
                self.count.fetch_sub(before - idle.len(), Ordering::Relaxed);
                !idle.is_empty()
            });
        }
        self.count.load(Ordering::Relaxed) > 0
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks after a pool for as long as there is something in it.
async fn sweep(shared: Arc<PoolState>) {
    loop {
        sleep(SWEEP_INTERVAL).await;
        if !shared.sweep() {
            shared.has_sweeper.store(false, Ordering::Release);
            // One that was put in since then has found a task that was there.
            if shared.count.load(Ordering::Acquire) == 0 || shared.has_sweeper.swap(true, Ordering::AcqRel) {
                return;
            }
        }
    }
}

/// Whether nothing has come from the other side, not even its end.
fn is_open(stream: &mut Stream) -> bool {
    let mut byte = [0];
    let mut read = ReadBuf::new(&mut byte);
    let mut nobody = Context::from_waker(Waker::noop());
    matches!(Pin::new(stream).poll_read(&mut nobody, &mut read), Poll::Pending)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn key(peer: u64) -> ConnectionKey {
        ConnectionKey { peer, address: SocketAddr::from(([127, 0, 0, 1], 1)) }
    }

    fn put(pool: &ConnectionPool, peer: u64, time: Duration) -> DuplexStream {
        let (near, far) = duplex(16);
        pool.insert_idle(key(peer), Box::new(near), time);
        far
    }

    #[tokio::test]
    async fn the_last_good_one_is_taken() {
        let pool = ConnectionPool::new(4);
        assert!(pool.take_idle(key(1)).is_none());
        let mut first = put(&pool, 1, LONG);
        drop(put(&pool, 1, LONG));
        let mut says_something = put(&pool, 1, LONG);
        says_something.write_all(b"x").await.unwrap();
        let _is_old = put(&pool, 1, Duration::ZERO);
        assert!(pool.take_idle(key(17)).is_none(), "another peer in the same part");
        let mut taken = pool.take_idle(key(1)).unwrap();
        first.write_all(b"x").await.unwrap();
        assert!(!is_open(&mut taken), "it is the first");
        assert!(pool.take_idle(key(1)).is_none());
        assert_eq!(pool.0.count.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn it_has_an_end() {
        let pool = ConnectionPool::new(2);
        let far: Vec<_> = (0..3).map(|_| put(&pool, 1, LONG)).collect();
        assert!(
            pool.take_idle(key(1)).is_some()
                && pool.take_idle(key(1)).is_some()
                && pool.take_idle(key(1)).is_none()
        );
        drop(far);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_swept_while_there_is_something_in_it() {
        let pool = ConnectionPool::new(9);
        let far = [put(&pool, 1, LONG), put(&pool, 2, LONG)];
        let _is_old = put(&pool, 3, Duration::ZERO);
        sleep(2 * SWEEP_INTERVAL).await;
        assert_eq!(pool.0.count.load(Ordering::Relaxed), 2, "nobody took the old one");
        drop(far);
        sleep(2 * SWEEP_INTERVAL).await;
        assert_eq!(pool.0.count.load(Ordering::Relaxed), 0);
        assert!(!pool.0.has_sweeper.load(Ordering::Relaxed), "there is nothing to do");
        let _far = put(&pool, 1, LONG);
        assert!(pool.0.has_sweeper.load(Ordering::Relaxed));
    }
}
