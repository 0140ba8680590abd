//! Work that takes a processor for so long that other requests would notice.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

/// Work over fewer bytes takes less than a millisecond or two.
const MIN_LONG_WORK_BYTES: usize = 512 * 1024;

/// Does work over so many bytes. If it may take long, the other tasks of this thread go on elsewhere meanwhile.
pub(super) fn work_over<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    // A runtime of a single thread has nowhere else.
    let has_threads =
        || Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if bytes >= MIN_LONG_WORK_BYTES && has_threads() { block_in_place(work) } else { work() }
}
