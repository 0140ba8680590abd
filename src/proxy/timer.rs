//! One timer for all the deadlines of a connection.

use std::future::pending;
use std::pin::Pin;
use std::time::Instant;

use tokio::time::{Sleep, sleep_until};

/// A timer that is only reset when it would fire too late or has fired. Deadlines move on with every
/// request and every event of a stream and are seldom reached, and a reset takes the lock of the runtime.
#[derive(Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Waits until this moment; for ever if there is none.
    pub(super) async fn until(&mut self, due: Option<Instant>) {
        let Some(due) = due else { return pending().await };
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(due.into())));
        loop {
            if sleep.deadline() > due.into() || sleep.is_elapsed() {
                sleep.as_mut().reset(due.into());
            }
            sleep.as_mut().await;
            if due <= Instant::now() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_timer_is_neither_early_nor_late_whatever_it_was_set_to_before() {
        let begun = Instant::now();
        let at = |millis| Some(begun + Duration::from_millis(millis));
        let mut timer = Timer::default();
        assert!(timer.until(None).now_or_never().is_none());
        for before in [60_000, 5, 70_000] {
            assert!(timer.until(at(before)).now_or_never().is_none());
        }
        timer.until(at(20)).await;
        assert!(
            begun.elapsed() >= Duration::from_millis(20),
            "a deadline earlier than the last one is not missed"
        );
        assert!(timer.until(at(60_000)).now_or_never().is_none());
        timer.until(at(20)).await;
        timer.until(at(40)).await;
        assert!(begun.elapsed() >= Duration::from_millis(40));
    }
}
