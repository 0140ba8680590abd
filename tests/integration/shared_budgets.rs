//! Budgets of clients that several balancers share by one Redis: what survives what.

use crate::limits::USED;
use crate::shared_limits::{Instances, expect_refusal, post, start_slow_with, used_at};
use crate::support;

use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use support::{Balancer, is_process_alive, poll, send_signal_to, wait_until};

/// A state directory that cannot be created.
const WITHOUT_STATE: &str = "server: { drain_delay: 0s, state_directory: missing/state }\n";
/// For how long what the requests of an instance that is gone have reserved counts on.
const LEASE_LIFETIME: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn what_the_others_have_used_is_known_after_a_restart_without_the_server() {
    let mut instances = Instances::start(2, "tokens_per_day: 1000", "").await;
    for _ in 0..6 {
        assert_eq!(post(&instances.balancers[0]).await.status, 200);
    }
    instances.wait_until_used(6 * USED).await;
    let saved = instances.balancers[1].path("state/budgets.log");
    let expected = format!("\"others_day_tokens\":{}", 6 * USED);
    wait_until("it is saved", || std::fs::read_to_string(&saved).is_ok_and(|text| text.contains(&expected)))
        .await;
    instances.server.kill();
    instances.balancers[1].send_signal("KILL");
    instances.balancers[1].start_again().await;
    let restarted = &instances.balancers[1];
    restarted.wait_for_status("Redis is away", |status| status["shared"]["up"] == false).await;
    assert_eq!(used_at(restarted).await, 6 * USED);
    let mut answered = 0;
    let refused = poll("a request is refused", async || {
        let response = post(restarted).await;
        answered += u64::from(response.status == 200);
        if response.status == 200 { Err(answered) } else { Ok(response) }
    })
    .await;
    expect_refusal(&refused, "tokens_per_day");
    assert!((1..=3).contains(&answered), "{answered}");
    // Nothing counts twice once all are known again.
    instances.server.start_again().await;
    instances.wait_until_all_are_seen().await;
    instances.wait_until_used((6 + answered) * USED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_state_directory_what_was_used_counts_on_after_upgrades_and_restarts() {
    let mut instances = Instances::start(1, "tokens_per_day: 100000", WITHOUT_STATE).await;
    for _ in 0..3 {
        assert_eq!(post(&instances.balancers[0]).await.status, 200);
    }
    instances.wait_until_used(3 * USED).await;
    let output = instances.balancers[0].run_upgrade_command().await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pid = instances.balancers[0].wait_until_single_process().await;
    instances.wait_until_used(3 * USED).await;
    assert_eq!(post(&instances.balancers[0]).await.status, 200);
    instances.wait_until_used(4 * USED).await;
    assert!(send_signal_to("TERM", pid));
    wait_until("it has stopped", || !is_process_alive(pid)).await;
    instances.balancers[0].start_again().await;
    instances.wait_until_used(4 * USED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_instance_has_reserved_is_free_after_five_seconds() {
    let mut instances = Instances::start(2, "tokens_per_day: 1000", "").await;
    let _lost = start_slow_with(&instances, 0, json!({"max_tokens": 950})).await;
    instances.expect_refusal_at(1, "tokens_per_day").await;
    assert!(send_signal_to("KILL", instances.balancers[0].pid()));
    let killed_at = Instant::now();
    poll("a request is admitted", async || match post(&instances.balancers[1]).await.status {
        200 => Ok(()),
        status => Err(status),
    })
    .await;
    let free_after = killed_at.elapsed();
    let expected = LEASE_LIFETIME - Duration::from_secs(2)..LEASE_LIFETIME + Duration::from_secs(3);
    assert!(expected.contains(&free_after), "{free_after:?}");
    instances.balancers.remove(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_used_on_a_machine_that_was_cloned_with_its_state_counts_once_and_is_not_lost() {
    const TAKES_NEW_ID: &str = "another instance has the ledger.json of this one";
    let mut instances = Instances::start(2, "tokens_per_minute: 100000, tokens_per_day: 100000", "").await;
    for _ in 0..3 {
        assert_eq!(post(&instances.balancers[0]).await.status, 200);
    }
    instances.wait_until_used(3 * USED).await;
    let saved = instances.balancers[0].path("state/budgets.log");
    let expected = format!("\"day_tokens\":{},", 3 * USED);
    wait_until("it is saved", || std::fs::read_to_string(&saved).is_ok_and(|text| text.contains(&expected)))
        .await;
    instances.balancers[1].stop().await;
    for name in ["state/ledger.json", "state/budgets.log"] {
        std::fs::copy(instances.balancers[0].path(name), instances.balancers[1].path(name)).unwrap();
    }
    instances.balancers[1].start_again().await;
    instances.wait_until_all_are_seen().await;
    for _ in 0..2 {
        for balancer in &instances.balancers {
            assert_eq!(post(balancer).await.status, 200);
        }
    }
    wait_until("one of them takes a new id", || {
        instances.balancers.iter().any(|balancer| balancer.log().contains(TAKES_NEW_ID))
    })
    .await;
    let ids = || {
        let read = |balancer: &Balancer| std::fs::read_to_string(balancer.path("state/ledger.json")).unwrap();
        instances.balancers.iter().map(read).collect::<Vec<_>>()
    };
    wait_until("it is kept", || ids()[0] != ids()[1]).await;
    assert_eq!(post(&instances.balancers[0]).await.status, 200);
    let all = 8 * USED;
    let both_count = async |instances: &Instances, what: &str, limit: usize| {
        poll(what, async || {
            let mut used = Vec::new();
            for balancer in &instances.balancers {
                let status = balancer.status().await;
                used.push(status["limits"]["clients"][0]["limits"][limit]["used"].as_u64().unwrap());
            }
            if used == [all; 2] { Ok(()) } else { Err(used) }
        })
        .await;
    };
    both_count(&instances, "the rate counts everything once", 0).await;
    both_count(&instances, "the budget counts everything once", 1).await;
    // Neither restarts nor a server that loses everything change that, and nobody takes a new id again.
    let times_taken = |instances: &Instances| {
        instances.balancers.iter().map(|balancer| balancer.log().matches(TAKES_NEW_ID).count()).sum::<usize>()
    };
    let taken = times_taken(&instances);
    for balancer in &mut instances.balancers {
        balancer.stop().await;
        balancer.start_again().await;
    }
    instances.wait_until_all_are_seen().await;
    both_count(&instances, "the budget counts everything after restarts", 1).await;
    instances.server.command("", &["FLUSHALL"]).await;
    let day = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() / 86_400;
    let key = format!("{{aoai-lb:1:team-a}}:limit:tokens_per_day:{day}");
    support::wait_until_async("both have reported again", async || {
        instances.server.command("", &["HLEN", &key]).await == redis::Value::Int(2)
    })
    .await;
    both_count(&instances, "the budget counts everything after a loss", 1).await;
    assert_eq!(times_taken(&instances), taken);
}
