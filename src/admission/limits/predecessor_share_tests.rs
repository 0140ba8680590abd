use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::super::keeper_link::{KeeperLink, QueuedMessage};
use super::super::limit_message::LimitAnswer;
use super::super::reservation::Settlement;
use super::super::snapshot::RateSnapshot;
use super::super::testing::{TestClient, TestLimiter, time, used};
use super::*;

const GPT: Option<&str> = Some("gpt-4o");
const LIMITS: &[(&str, u64)] = &[
    ("requests_per_minute", 60),
    ("tokens_per_minute", 1000),
    ("tokens_per_day", 100_000),
    ("cost_per_day", 100_000),
    ("in_flight", 100),
    ("deployments.gpt-4o.requests_per_minute", 60),
    ("deployments.gpt-4o.tokens_per_minute", 1000),
    ("deployments.gpt-4o.tokens_per_day", 100_000),
    ("deployments.gpt-4o.cost_per_day", 100_000),
    ("deployments.gpt-4o.in_flight", 100),
];

/// Two processes, of which the first has told the second what its requests hold.
struct Handover {
    old: TestClient,
    old_limits: TestLimiter,
    new: TestClient,
    new_limits: TestLimiter,
    share: PredecessorShare,
    link: Arc<KeeperLink>,
    queue: UnboundedReceiver<QueuedMessage>,
}

impl Handover {
    fn begin(old: TestClient, limits: &[(&str, u64)], millis: u64) -> Self {
        let new = old.successor();
        let (old_limits, new_limits) = (old.limiter(limits), new.limiter(limits));
        let (link, queue) = KeeperLink::new();
        old.accounts.offer_keeper(Arc::clone(&link));
        let text = serde_json::to_string(&old.accounts.capture(old.at(millis))).unwrap();
        let snapshots: Vec<RateSnapshot> = serde_json::from_str(&text).unwrap();
        let share = new.accounts.restore(&snapshots, new.at(millis));
        Self { old, old_limits, new, new_limits, share, link, queue }
    }

    /// Passes on what was told; questions are answered.
    fn pass_on(&mut self, millis: u64) {
        while let Ok(QueuedMessage::Send(message)) = self.queue.try_recv() {
            self.share.apply(&self.new.accounts, &message, self.new.at(millis));
            let LimitMessage::Ask { id, booking } = message else { continue };
            let (limiter, deployment) = (&self.new_limits.limiter, booking.scope.deployment());
            let reserved = limiter.reserve_amounts(
                None,
                deployment.as_ref(),
                booking.amounts,
                self.new.at(millis),
                time(millis),
            );
            let answer = match futures::FutureExt::now_or_never(reserved).unwrap() {
                Ok(reserved) => {
                    LimitAnswer::Granted { id, reserved_at: self.share.hold(reserved).reserved_at }
                }
                Err(reached) => LimitAnswer::Refused { id, reached: reached.into() },
            };
            self.link.on_answer(answer);
        }
    }

    #[track_caller]
    fn expect_same(&mut self, millis: u64) {
        self.pass_on(millis);
        assert_eq!(self.new_limits.uses(millis), self.old_limits.uses(millis), "{millis}");
    }
}

#[test]
fn a_successor_counts_what_its_predecessor_counts() {
    let old = TestClient::new();
    let limits = old.limiter(LIMITS);
    let mut very_old = limits.reserve(GPT, 100, 0).unwrap();
    let mut forgotten = limits.reserve(GPT, 7, 0).unwrap();
    limits.reserve(GPT, 50, 90_000).unwrap().settle(used(40), 91_000);
    let mut recent = limits.reserve(GPT, 100, 99_100).unwrap();
    let mut without_deployment = limits.reserve(None, 30, 99_900).unwrap();
    let mut handover = Handover::begin(old, LIMITS, 100_200);
    handover.expect_same(100_200);
    without_deployment.leave_in_flight(100_300);
    handover.expect_same(100_300);
    without_deployment.settle(Settlement::Unknown, 100_400);
    handover.expect_same(100_400);
    // Less than reserved, and more.
    recent.settle(used(20), 101_000);
    handover.expect_same(101_000);
    very_old.settle(used(350), 102_000);
    handover.expect_same(102_000);
    let mut later = handover.old_limits.reserve(GPT, 60, 103_000).unwrap();
    handover.expect_same(103_000);
    later.settle(used(10), 104_000);
    forgotten.leave_in_flight(104_000);
    for millis in [104_000, 120_000, 151_500, 161_500, 162_500, 164_500] {
        handover.expect_same(millis);
    }
    let at = handover.new.at(164_500);
    handover.share.settle_all(&handover.new.accounts, at);
    let counted: Vec<_> = handover.new_limits.uses(164_500).into_iter().map(|(_, used)| used).collect();
    // Only the budgets remember; what was reserved is not used.
    // Only the request whose usage is unknown has a cost: what was estimated.
    assert_eq!(counted, [0, 0, 450, 30, 0, 0, 0, 420, 0, 0]);
}

#[test]
fn what_a_predecessor_does_not_report_counts_as_used_when_it_ends() {
    let old = TestClient::new();
    let _running =
        [old.limiter(LIMITS).reserve(GPT, 100, 0).unwrap(), old.limiter(LIMITS).reserve(None, 5, 0).unwrap()];
    let mut handover = Handover::begin(old, LIMITS, 1_000);
    let at = handover.new.at(2_000);
    handover.share.settle_all(&handover.new.accounts, at);
    let counted: Vec<_> = handover.new_limits.uses(2_000).into_iter().map(|(_, used)| used).collect();
    assert_eq!(counted, [2, 105, 0, 0, 0, 1, 100, 0, 0, 0]);
    assert!(handover.new_limits.uses(62_000).into_iter().all(|(_, used)| used == 0));
}

#[test]
fn no_more_is_given_back_than_a_predecessor_holds() {
    let mut handover = Handover::begin(TestClient::new(), LIMITS, 0);
    let _own = handover.new_limits.reserve(None, 100, 0).unwrap();
    let booking =
        Booking { scope: Default::default(), amounts: Amounts::of_tokens(100), reserved_at: [None; 2] };
    for message in [
        LimitMessage::Ended(Default::default()),
        LimitMessage::Settled { booking, used: 0 },
        serde_json::from_str(
            r#"{"settled":{"client":null,"deployment":null,"tokens":9,"reserved_at":[0,0],"used":0}}"#,
        )
        .unwrap(),
    ] {
        handover.share.apply(&handover.new.accounts, &message, handover.new.at(0));
    }
    let counted: Vec<_> = handover.new_limits.uses(0).into_iter().map(|(_, used)| used).collect();
    assert_eq!(counted[..5], [1, 100, 100, 100, 1]);
}

#[tokio::test(start_paused = true)]
async fn both_together_stay_within_a_limit() {
    let limits = [("requests_per_minute", 5), ("tokens_per_minute", 1000)];
    let mut handover = Handover::begin(TestClient::new(), &limits, 0);
    assert!(handover.old.accounts.keeper().is_none(), "the successor is not ready");
    let _before = handover.old_limits.reserve(None, 10, 100).unwrap();
    handover.expect_same(100);
    assert!(handover.old.accounts.begin_asking());
    let keeper = Arc::clone(handover.old.accounts.keeper().unwrap());
    let limiter = handover.old_limits.clone();
    let mut running = Vec::new();
    for number in 1..=3 {
        let (in_old, ()) =
            tokio::join!(limiter.reserve_with_permission(&keeper, 10, 200), async { handover.pass_on(200) });
        let in_new = handover.new_limits.reserve(None, 10, 200);
        assert_eq!((in_old.is_ok(), in_new.is_ok()), (number <= 2, number <= 2), "{number}");
        if number == 3 {
            assert_eq!(in_old.unwrap_err(), in_new.unwrap_err());
        } else {
            running.extend([in_old.unwrap(), in_new.unwrap()]);
        }
    }
    // The old process knows its own requests only.
    assert_eq!(handover.old_limits.uses(200)[0].1, 3);
    for mut request in running {
        request.settle(used(4), 300);
    }
    handover.pass_on(300);
    assert_eq!(
        handover.new_limits.uses(300),
        [("requests_per_minute".to_owned(), 5), ("tokens_per_minute".to_owned(), 26)]
    );
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_little_is_admitted_and_without_a_connection_what_is_known_decides() {
    let limits = [("requests_per_minute", 120), ("in_flight", 4)];
    let mut handover = Handover::begin(TestClient::new(), &limits, 0);
    assert!(handover.old.accounts.begin_asking());
    let keeper = Arc::clone(handover.old.accounts.keeper().unwrap());
    let limiter = handover.old_limits.clone();
    let mut running = Vec::new();
    for _ in 0..2 {
        running.push(limiter.reserve_with_permission(&keeper, 10, 0).await.unwrap());
    }
    let refused = limiter.reserve_with_permission(&keeper, 10, 1_000).await.unwrap_err();
    assert_eq!(
        (&*refused.key.to_string(), refused.wait),
        ("requests_per_minute", Some(Duration::from_secs(60)))
    );
    // The successor counts them once it reads again. Leave that comes too late is given back; it counts as a request.
    handover.pass_on(1_000);
    handover.pass_on(1_000);
    assert_eq!(handover.new_limits.uses(1_000)[1].1, 2, "in flight");
    assert!((2..=5).contains(&handover.new_limits.uses(1_000)[0].1));
    keeper.close();
    for _ in 0..2 {
        running.push(limiter.reserve_with_permission(&keeper, 10, 1_000).await.unwrap());
    }
    let refused = limiter.reserve_with_permission(&keeper, 10, 1_000).await.unwrap_err();
    assert_eq!(refused.key.to_string(), "in_flight");
}

#[test]
fn a_handover_that_fails_is_forgotten() {
    let old = TestClient::new();
    let mut handover = Handover::begin(old, LIMITS, 0);
    handover.old.accounts.cancel_handover();
    let _running = handover.old_limits.reserve(GPT, 10, 0).unwrap();
    assert!(handover.queue.try_recv().is_err(), "nobody is told");
    assert!(!handover.old.accounts.begin_asking() && handover.old.accounts.keeper().is_none());
}
