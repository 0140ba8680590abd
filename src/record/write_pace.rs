//! Whether the disk that records are written to is quick.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A write that takes longer is slow: it takes some microseconds while the kernel has room in its page cache.
const MAX_QUICK_WRITE: Duration = Duration::from_millis(1);
/// How long the disk is called slow after a slow write.
const SLOW_PERIOD: Duration = Duration::from_secs(1);

/// The types of file systems that are on another machine or in another process (`statfs(2)`): NFS, SMB, SMB2, CIFS, FUSE,
/// Ceph, 9P, AFS.
const REMOTE_FILE_SYSTEMS: [u64; 8] =
    [0x6969, 0x517b, 0xfe53_4d42, 0xff53_4d42, 0x6573_5546, 0x00c3_6400, 0x0102_1997, 0x5346_414f];

/// How quick the last writes were.
#[derive(Debug)]
pub(super) struct WritePace {
    started: Instant,
    /// A disk that may hang for as long as another machine is away.
    is_remote: bool,
    /// The end of the time in which the disk is called slow, in milliseconds after `started`.
    slow_until_ms: AtomicU64,
}

impl WritePace {
    /// The pace of writes to a file or directory in one of these directories.
    pub(super) fn of<'p>(mut directories: impl Iterator<Item = &'p Path>) -> Self {
        let is_remote = directories.any(|directory| {
            let file_system = rustix::fs::statfs(directory);
            file_system.is_ok_and(|found| REMOTE_FILE_SYSTEMS.contains(&u64::from(found.f_type as u32)))
        });
        Self { started: Instant::now(), is_remote, slow_until_ms: AtomicU64::new(0) }
    }

    /// Whether the disk is that of this machine, and no write was slow lately.
    pub(super) fn is_quick(&self) -> bool {
        self.is_quick_at(Instant::now())
    }

    fn is_quick_at(&self, now: Instant) -> bool {
        !self.is_remote && self.millis(now) >= self.slow_until_ms.load(Ordering::Relaxed)
    }

    /// Notes a write that began then and ends now.
    pub(super) fn note_write(&self, began: Instant) {
        self.note_write_until(began, Instant::now());
    }

    fn note_write_until(&self, began: Instant, ended: Instant) {
        if ended.saturating_duration_since(began) > MAX_QUICK_WRITE {
            self.slow_until_ms.fetch_max(self.millis(ended + SLOW_PERIOD), Ordering::Relaxed);
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_write_makes_the_disk_slow_for_a_while() {
        let pace = WritePace::of([Path::new("/")].into_iter());
        let at = |millis| pace.started + Duration::from_millis(millis);
        pace.note_write_until(at(0), at(1));
        assert!(pace.is_quick_at(at(1)));
        pace.note_write_until(at(10), at(12));
        assert!(!pace.is_quick_at(at(12)) && !pace.is_quick_at(at(1_011)) && pace.is_quick_at(at(1_012)));
        // An earlier end does not shorten the time.
        pace.note_write_until(at(500), at(2_000));
        pace.note_write_until(at(600), at(700));
        assert!(!pace.is_quick_at(at(2_999)) && pace.is_quick_at(at(3_000)));
    }
}
