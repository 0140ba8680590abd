//! The queues of two balancers that share one Redis.

use crate::queue::{REST_MS, answer, chat, three_clients_yaml, throttled, user_of};
use crate::support;

use std::sync::{Arc, Mutex};

use support::redis_server::RedisServer;
use support::upstream::ScriptedUpstream;
use support::{Balancer, CHAT_TARGET, CLIENT_KEY, Client, LISTED_DEPLOYMENTS, Response, wait_until};
use tokio::task::JoinHandle;

/// Two balancers with a queue and one resource.
struct Fixture {
    _server: RedisServer,
    upstream: ScriptedUpstream,
    balancers: Vec<Balancer>,
    /// The resource refuses the others. Requests are known by their `user`, which begins so.
    accepted: Arc<Mutex<&'static str>>,
    answered: Arc<Mutex<Vec<String>>>,
}

impl Fixture {
    async fn start() -> Self {
        let server = RedisServer::start(&[]).await;
        let (accepted, answered) = (Arc::new(Mutex::new("nobody")), Arc::default());
        let (gate, log) = (Arc::clone(&accepted), Arc::clone(&answered));
        let upstream = ScriptedUpstream::start(move |request| {
            let user = user_of(request);
            if !user.starts_with(*gate.lock().unwrap()) {
                return throttled(REST_MS);
            }
            let log: &Mutex<Vec<String>> = &log;
            log.lock().unwrap().push(user);
            answer()
        })
        .await;
        let backend = support::backend_yaml("a", &format!("http://{}", upstream.address), LISTED_DEPLOYMENTS);
        let yaml = server.shared_yaml("") + "queue: { wait: 60s }\nretry: { wait: 0s, attempts: 0 }";
        let mut balancers = Vec::new();
        for _ in 0..2 {
            balancers.push(Balancer::start_with_clients(&backend, &three_clients_yaml(), &yaml).await);
        }
        for balancer in &balancers {
            balancer
                .wait_for_status("both instances are seen", |status| {
                    status["shared"]["instances"].as_array().is_some_and(|list| list.len() == 2)
                })
                .await;
        }
        Self { _server: server, upstream, balancers, accepted, answered }
    }

    fn accept(&self, user: &'static str) {
        *self.accepted.lock().unwrap() = user;
    }

    /// Sends a request that waits in the queue of a balancer, which has so many then.
    async fn queue(
        &self,
        balancer: usize,
        key: &'static str,
        user: &str,
        waiting: usize,
    ) -> JoinHandle<Response> {
        let (address, body) = (self.balancers[balancer].address, chat(user, 3000));
        let request = tokio::spawn(async move {
            Client::connect(address).await.post(CHAT_TARGET, &[("api-key", key)], body.as_bytes()).await
        });
        self.balancers[balancer]
            .wait_for_status("the request waits", |status| status["in_flight"] == waiting)
            .await;
        request
    }

    /// Waits until the last three attempts of the second balancer are of this user.
    async fn wait_until_first(&self, user: &str) {
        self.upstream.forget_requests();
        wait_until("it is first in the line", || {
            let mut users: Vec<_> = self.upstream.requests().iter().map(user_of).collect();
            users.retain(|user| user.starts_with("second"));
            users.len() >= 3 && users.iter().rev().take(3).all(|last| last == user)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_served_by_one_instance_waits_behind_others_at_another() {
    let fixture = Fixture::start().await;
    let mut requests = vec![fixture.queue(1, CLIENT_KEY, "second a", 1).await];
    requests.push(fixture.queue(1, "key-b", "second b", 2).await);
    fixture.wait_until_first("second a").await;
    for number in 1..=3 {
        requests.push(fixture.queue(0, CLIENT_KEY, "first a", number).await);
    }
    fixture.accept("first");
    // Until the second balancer knows of it, the client that came first goes first.
    fixture.wait_until_first("second b").await;
    fixture.accept("second b");
    wait_until("it is answered", || fixture.answered.lock().unwrap().iter().any(|user| user == "second b"))
        .await;
    fixture.accept("");
    for request in requests {
        assert_eq!(request.await.unwrap().status, 200);
    }
    let answered = fixture.answered.lock().unwrap();
    let place = |user: &str| answered.iter().position(|answered| answered == user).unwrap();
    assert!(place("second b") < place("second a"), "{answered:?}");
    assert_eq!(answered.len(), 5, "{answered:?}");
}
