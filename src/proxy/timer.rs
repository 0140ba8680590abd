//! One timer that serves all deadlines of a connection, one after the other.

use std::future::pending;
use std::pin::Pin;
use std::time::Instant;

use tokio::time::{Sleep, sleep_until};

/// A timer that is kept across deadlines and only reset if it would fire too late or has fired. If it
/// fires before the current deadline, it is set again then.
///
/// Deadlines change with every request and every event of a stream and are seldom reached. Creating or
/// dropping a tokio timer, or moving it to an earlier time, takes a lock that all connections share.
#[derive(Default)]
pub(crate) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Waits until this moment; forever if it is `None`.
    pub(crate) async fn wait_until(&mut self, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return pending().await };
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline.into())));
        loop {
            if sleep.deadline() > deadline.into() || sleep.is_elapsed() {
                sleep.as_mut().reset(deadline.into());
            }
            sleep.as_mut().await;
            if deadline <= Instant::now() {
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
    async fn a_timer_fires_at_its_deadline_whatever_the_deadlines_before_were() {
        let started = Instant::now();
        let at = |millis| Some(started + Duration::from_millis(millis));
        let mut timer = Timer::default();
        assert!(timer.wait_until(None).now_or_never().is_none());
        for earlier_deadline in [60_000, 5, 70_000] {
            assert!(timer.wait_until(at(earlier_deadline)).now_or_never().is_none());
        }
        timer.wait_until(at(20)).await;
        assert!(started.elapsed() >= Duration::from_millis(20), "it did not fire at the deadline of 5 ms");
        assert!(timer.wait_until(at(60_000)).now_or_never().is_none());
        timer.wait_until(at(20)).await;
        timer.wait_until(at(40)).await;
        assert!(started.elapsed() >= Duration::from_millis(40));
    }
}
