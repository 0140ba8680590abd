//! Several instances, each with accounts of its own, and a server that grants leases as `report.lua` does.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tokio::sync::mpsc::UnboundedReceiver;

use super::super::account::ClientAccounts;
use super::super::amounts::Amounts;
use super::super::budget_sums::UnitSums;
use super::super::limit_key::{LimitKind, LimitReached};
use super::super::limiter::ClientLimiter;
use super::super::reservation::{Reservation, Settlement};
use super::super::testing::{MemoryBudget, limits, time};
use super::super::token_estimate::UsedTokens;
use super::*;
use crate::admission::limits::{Budget, FinalUse};
use crate::config::{LimitMode, LimitsConfig};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An instance whose seconds begin this much later than the server's.
struct TestInstance {
    accounts: ClientAccounts,
    limiter: ClientLimiter,
    desk: Arc<LeaseDesk>,
    requests: UnboundedReceiver<ReportRequest>,
    start: Instant,
}

/// What the server knows of each instance, limit by limit.
#[derive(Default)]
struct TestServer {
    entries: BTreeMap<(String, usize), Entry>,
}

#[derive(Clone, Default)]
struct Entry {
    /// Of a budget.
    sums: UnitSums,
    by_second: Vec<(u64, u64)>,
    held: u64,
    free: u64,
}

impl Entry {
    /// With what was refunded.
    fn total(&self, second: u64) -> u64 {
        let in_minute = self.by_second.iter().filter(|(at, _)| at + 60 >= second);
        self.sums.booked + self.held + self.free + in_minute.map(|(_, amount)| amount).sum::<u64>()
    }
}

impl TestServer {
    fn answer(&mut self, instance: usize, limit: &LimitReport, second: u64) -> LeaseGrant {
        let key = limit.key.to_string();
        let of_others: Vec<_> =
            self.entries.iter().filter(|((of, id), _)| *of == key && *id != instance).collect();
        let others = of_others.iter().map(|(_, entry)| entry.total(second)).sum::<u64>();
        let others_by_instance = match &limit.used {
            UsedAmounts::InWindow { .. } => {
                of_others.iter().map(|((_, id), entry)| (id.to_string(), entry.sums)).collect()
            }
            UsedAmounts::BySecond(_) | UsedAmounts::Nothing => Vec::new(),
        };
        let mut own = Entry { held: limit.held, free: limit.free(), ..Entry::default() };
        match &limit.used {
            UsedAmounts::BySecond(amounts) => own.by_second.clone_from(amounts),
            UsedAmounts::InWindow { sums, .. } => own.sums = *sums,
            UsedAmounts::Nothing => {}
        }
        let refunded =
            of_others.iter().map(|(_, entry)| entry.sums.refunded).sum::<u64>() + own.sums.refunded;
        let room = limit.limit.saturating_sub((others + own.total(second)).saturating_sub(refunded));
        let needed = limit.short().min(room);
        let granted = needed + limit.extra().min((room - needed) / 4);
        own.free += granted;
        let grant = LeaseGrant {
            granted,
            room: room - granted,
            others,
            own: own.sums,
            others_by_instance,
            ..LeaseGrant::default()
        };
        self.entries.insert((key, instance), own);
        grant
    }
}

impl TestInstance {
    fn new(start: Instant, keys: &[(&str, u64)], mode: LimitMode) -> Self {
        Self::with_budget(start, keys, mode, &Arc::default())
    }

    /// An instance whose budget outlives it.
    fn with_budget(
        start: Instant,
        keys: &[(&str, u64)],
        mode: LimitMode,
        budget: &Arc<MemoryBudget>,
    ) -> Self {
        let accounts = ClientAccounts::new(start);
        let (desk, requests) = LeaseDesk::new();
        accounts.share(Arc::clone(&desk));
        desk.set_up(0);
        let config = LimitsConfig { mode, default: None, cached_weight_permille: 1000 };
        let open_budget = |_: Option<&_>| Arc::clone(budget) as Arc<dyn Budget>;
        let limiter =
            ClientLimiter::new(Arc::new(limits(keys)), &config, accounts.find_or_create(None), &open_budget);
        Self { accounts, limiter, desk, requests, start }
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn report(&self, id: usize, server: &mut TestServer, millis: u64) {
        let account = self.accounts.find(None).unwrap();
        let (now, time) = (self.at(millis), time(millis));
        while let Some(report) = account.begin_report(&self.desk, ReportKind::Changes, now, time) {
            let answer = |limit: &LimitReport| server.answer(id, limit, millis / 1000);
            let grants = report.limits().iter().map(answer).collect();
            if !report.finish(grants, now, time) {
                break;
            }
        }
    }

    /// Reserves tokens; reports as soon as that is asked for.
    async fn reserve(
        &mut self,
        id: usize,
        server: &mut TestServer,
        tokens: u64,
        millis: u64,
    ) -> Result<Reservation, LimitReached> {
        let (now, time) = (self.at(millis), time(millis));
        // A token costs as many millionths as it is tokens, so that both units can be limited alike.
        let amounts = Amounts { tokens, cost_millionths: tokens };
        let account = self.accounts.find(None).unwrap();
        let report_when_asked = async {
            loop {
                let request = self.requests.recv().await.unwrap();
                if matches!(request, ReportRequest::Urgent(_)) {
                    let report = account.begin_report(&self.desk, ReportKind::Changes, now, time).unwrap();
                    let answer = |limit: &LimitReport| server.answer(id, limit, millis / 1000);
                    let grants = report.limits().iter().map(answer).collect();
                    report.finish(grants, now, time);
                }
            }
        };
        tokio::select! {
            reserved = self.limiter.reserve_amounts_with_lease(&self.desk, None, amounts, now, time) => reserved,
            () = report_when_asked => unreachable!(),
        }
    }

    fn used(&self, kind: LimitKind, millis: u64) -> u64 {
        let uses = self.limiter.uses(self.at(millis), time(millis));
        uses.iter().find(|limit| limit.key.kind == kind).unwrap().used
    }

    /// What this instance alone counts.
    fn own(&self, kind: LimitKind, millis: u64) -> u64 {
        let account = self.accounts.find(None).unwrap();
        let now = account.time_of(self.at(millis));
        account.lock().total.counted(kind, now, time(millis))
    }
}

const LIMITS: [(&str, u64); 5] = [
    ("requests_per_minute", 30),
    ("tokens_per_minute", 1000),
    ("tokens_per_day", 3000),
    ("cost_per_day", 2500),
    ("in_flight", 5),
];

fn used(tokens: u64) -> Settlement {
    Settlement::Used(UsedTokens { input: tokens, cached: 0, output: 0 })
}

#[tokio::test(start_paused = true)]
async fn a_request_takes_its_lease_and_what_is_leased_in_advance_serves_the_next() {
    let (start, mut server) = (Instant::now(), TestServer::default());
    let keys = [("requests_per_minute", 600), ("tokens_per_minute", 60_000)];
    let mut instance = TestInstance::new(start, &keys, LimitMode::Enforce);
    let began_at = tokio::time::Instant::now();
    let first = instance.reserve(0, &mut server, 100, 0).await.unwrap();
    let second = instance.limiter.reserve_amounts_with_lease(
        &instance.desk,
        None,
        Amounts::of_tokens(100),
        instance.at(0),
        time(0),
    );
    let second = second.await.unwrap();
    assert_eq!(began_at.elapsed(), Duration::ZERO, "nobody waits");
    assert_eq!(instance.desk.limited_alone(), 0);
    drop((first, second));
    // Without requests, the lease is given back.
    instance.report(0, &mut server, 1_000);
    instance.report(0, &mut server, 2_000);
    assert!(server.entries.values().all(|entry| entry.free == 0));
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_a_request_is_compared_with_a_part_of_the_limit() {
    let keys = [("requests_per_minute", 30), ("in_flight", 100)];
    let instance = TestInstance::new(Instant::now(), &keys, LimitMode::Enforce);
    instance.desk.set_instances(3);
    let reserve = || {
        instance.limiter.reserve_amounts_with_lease(
            &instance.desk,
            None,
            Amounts::of_tokens(1),
            instance.at(0),
            time(0),
        )
    };
    let began_at = tokio::time::Instant::now();
    let first = reserve().await.unwrap();
    assert_eq!(began_at.elapsed(), Duration::from_millis(5), "it waits for an answer");
    instance.desk.set_down();
    let mut reserved = vec![first];
    for _ in 1..10 {
        reserved.push(reserve().await.unwrap());
    }
    assert_eq!(began_at.elapsed(), Duration::from_millis(5), "nobody waits for a server that is away");
    let refused = reserve().await.unwrap_err();
    assert_eq!((refused.key.kind, refused.limit), (LimitKind::RequestsPerMinute, 30));
    assert_eq!(instance.desk.limited_alone(), 11);
}

#[tokio::test(start_paused = true)]
async fn what_is_only_observed_needs_no_lease_and_knows_the_use_of_others() {
    let (start, mut server) = (Instant::now(), TestServer::default());
    let keys = [("tokens_per_minute", 100)];
    let mut instances = [(); 2].map(|()| TestInstance::new(start, &keys, LimitMode::Observe));
    let mut first = instances[0].reserve(0, &mut server, 90, 0).await.unwrap();
    first.settle(used(90), instances[0].at(0), time(0));
    instances[0].report(0, &mut server, 0);
    let unknowing = instances[1].reserve(1, &mut server, 20, 0).await.unwrap();
    assert!(unknowing.exceeded().is_none(), "the other one is not known yet");
    instances[1].report(1, &mut server, 0);
    let knowing = instances[1].reserve(1, &mut server, 1, 0).await.unwrap();
    assert_eq!(knowing.exceeded().unwrap().key.kind, LimitKind::TokensPerMinute);
    assert_eq!(instances[1].used(LimitKind::TokensPerMinute, 0), 90 + 20 + 1);
}

#[tokio::test(start_paused = true)]
async fn a_report_that_fails_is_made_again_and_the_request_goes_on_alone() {
    let mut instance = TestInstance::new(Instant::now(), &[("requests_per_minute", 30)], LimitMode::Enforce);
    let account = instance.accounts.find(None).unwrap();
    let fail_when_asked = async {
        while !matches!(instance.requests.recv().await, Some(ReportRequest::Urgent(_))) {}
        drop(account.begin_report(&instance.desk, ReportKind::Changes, instance.start, time(0)));
        std::future::pending::<()>().await;
    };
    let began_at = tokio::time::Instant::now();
    tokio::select! {
        reserved = instance.limiter.reserve_amounts_with_lease(&instance.desk, None, Amounts::of_tokens(1), instance.start, time(0)) => {
            drop(reserved.unwrap());
        }
        () = fail_when_asked => {}
    }
    assert_eq!((began_at.elapsed(), instance.desk.limited_alone()), (Duration::ZERO, 1));
    assert_eq!(instance.requests.recv().await, Some(ReportRequest::Changed(None)));
    assert!(account.has_to_report(Duration::from_secs(1), instance.start) && !account.is_at_rest());
}

#[tokio::test(start_paused = true)]
async fn what_others_have_used_of_a_budget_in_any_unit_outlives_a_restart_and_an_id_can_be_given_up() {
    let keys = [("tokens_per_day", 3000), ("cost_per_day", 2500), ("cost_per_month", 9000)];
    let kinds = [LimitKind::TokensPerDay, LimitKind::CostPerDay, LimitKind::CostPerMonth];
    let (start, mut server, budget) = (Instant::now(), TestServer::default(), Arc::default());
    let new =
        |budget: &Arc<MemoryBudget>| TestInstance::with_budget(start, &keys, LimitMode::Enforce, budget);
    let mut instances = [new(&Arc::default()), new(&budget)];
    for (id, tokens, cost) in [(0, 400, 250), (1, 10, 5)] {
        let instance = &mut instances[id];
        let mut reservation = instance.reserve(id, &mut server, tokens, 0).await.unwrap();
        reservation.set_cost(cost);
        reservation.settle(used(tokens), instance.at(0), time(0));
        // In the end, nothing is leased in advance.
        for millis in [0, 1_000, 2_000] {
            instance.report(id, &mut server, millis);
        }
    }
    let all = |instance: &TestInstance| kinds.map(|kind| instance.used(kind, 0));
    let own = |instance: &TestInstance| kinds.map(|kind| instance.own(kind, 0));
    assert_eq!((all(&instances[1]), own(&instances[1])), ([410, 255, 255], [10, 5, 5]));
    // The server is away when it starts again.
    let restarted = new(&budget);
    restarted.desk.set_down();
    assert_eq!((all(&restarted), own(&restarted)), ([410, 255, 255], [10, 5, 5]));
    // Another instance has its old id, and with it what was reported.
    instances[1].accounts.find(None).unwrap().give_up_id("old", time(0));
    assert_eq!((all(&instances[1]), own(&instances[1])), ([410, 255, 255], [0; 3]));
}

#[tokio::test(start_paused = true)]
async fn one_instance_takes_back_what_another_one_has_booked() {
    let (start, mut server) = (Instant::now(), TestServer::default());
    let keys = [("tokens_per_day", 1000), ("cost_per_day", 1000)];
    let mut instances = [(); 2].map(|()| TestInstance::new(start, &keys, LimitMode::Enforce));
    let mut background = instances[0].reserve(0, &mut server, 900, 0).await.unwrap();
    background.settle(Settlement::Unknown, instances[0].at(0), time(0));
    for millis in [0, 1_000, 2_000] {
        instances[0].report(0, &mut server, millis);
    }
    assert!(instances[1].reserve(1, &mut server, 500, 2_000).await.is_err());
    let end = FinalUse { tokens: UsedTokens { input: 100, cached: 0, output: 0 }, cost_millionths: Some(50) };
    instances[1].accounts.correct(&background.booked().unwrap(), end);
    for millis in [3_000, 4_000] {
        for (id, instance) in instances.iter().enumerate().rev() {
            instance.report(id, &mut server, millis);
        }
    }
    for instance in &instances {
        let used = [LimitKind::TokensPerDay, LimitKind::CostPerDay].map(|kind| instance.used(kind, 4_000));
        assert_eq!(used, [100, 50]);
    }
    let _reserved = instances[0].reserve(0, &mut server, 850, 4_000).await.unwrap();
    assert!(instances[1].reserve(1, &mut server, 200, 4_000).await.is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Admit { instance: usize, tokens: u64 },
    End { index: usize, used_percent: u64 },
    Report { instance: usize },
    Wait { millis: u64 },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize, 1..300_u64).prop_map(|(instance, tokens)| Step::Admit { instance, tokens }),
        3 => (any::<usize>(), 0..=100_u64).prop_map(|(index, used_percent)| Step::End { index, used_percent }),
        2 => (0..3_usize).prop_map(|instance| Step::Report { instance }),
        2 => (1..20_000_u64).prop_map(|millis| Step::Wait { millis }),
    ]
}

proptest! {
    #[test]
    fn all_instances_together_stay_within_each_limit(steps in proptest::collection::vec(any_step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (start, mut server, mut millis) = (Instant::now(), TestServer::default(), 0);
            let mut instances = [(); 3].map(|()| TestInstance::new(start, &LIMITS, LimitMode::Enforce));
            let mut running: Vec<(usize, Reservation)> = Vec::new();
            let mut admitted = 0;
            for step in steps {
                match step {
                    Step::Admit { instance, tokens } => {
                        let reserved = instances[instance].reserve(instance, &mut server, tokens, millis).await;
                        if let Ok(reservation) = reserved {
                            running.push((instance, reservation));
                            admitted += 1;
                        }
                    }
                    Step::End { index, used_percent } if !running.is_empty() => {
                        let (instance, mut reservation) = running.swap_remove(index % running.len());
                        let tokens = reservation.tokens() * used_percent / 100;
                        reservation.set_cost(tokens);
                        reservation.settle(used(tokens), instances[instance].at(millis), time(millis));
                    }
                    Step::End { .. } => {}
                    Step::Report { instance } => instances[instance].report(instance, &mut server, millis),
                    // Leases end after four seconds, unless they are reported.
                    Step::Wait { millis: waited } => {
                        millis += waited;
                        for (id, instance) in instances.iter().enumerate() {
                            instance.report(id, &mut server, millis);
                        }
                    }
                }
                for (key, limit) in LIMITS {
                    let kind = LimitKind::ALL.into_iter().find(|kind| kind.key() == key).unwrap();
                    let sum = instances.iter().map(|instance| instance.own(kind, millis)).sum::<u64>();
                    prop_assert!(sum <= limit, "{key}: {sum}");
                }
            }
            let alone = instances.iter().map(|instance| instance.desk.limited_alone()).sum::<u64>();
            prop_assert_eq!(alone, 0, "the server always answers");
            prop_assert!(admitted > 0 || running.is_empty());
            Ok(())
        })?;
    }
}
