//! Several balancers with one Redis: what one has learned of objects all know.

use crate::support;

use serde_json::{Value, json};
use support::redis_server::RedisServer;
use support::stateful_upstream::StatefulUpstream;
use support::{
    Balancer, CLIENT_KEY, Client, Response, answering_backend, clients_yaml, sha256_hex, wait_until_async,
};

const RESPONSES: &str = "/openai/v1/responses";
const OTHER_KEY: &str = "key-of-team-b";
const HOW: &str = "aoai_lb_affinity_requests_total";

/// Two balancers before three resources, and their server.
struct Fixture {
    resources: Vec<StatefulUpstream>,
    balancers: Vec<Balancer>,
    server: RedisServer,
}

impl Fixture {
    async fn start(extra_yaml: &str) -> Self {
        let server = RedisServer::start(&[]).await;
        let mut resources = Vec::new();
        for name in ["a", "b", "c"] {
            resources.push(StatefulUpstream::start(name).await);
        }
        let backends: String = resources.iter().map(|resource| resource.backend_yaml("")).collect();
        let other_key = sha256_hex(OTHER_KEY);
        let clients =
            clients_yaml() + &format!("  - name: team-b\n    keys: [ {{ sha256: {other_key} }} ]\n");
        let extra = server.shared_yaml("") + extra_yaml;
        let mut balancers = Vec::new();
        for _ in 0..2 {
            balancers.push(Balancer::start_with_clients(&backends, &clients, &extra).await);
        }
        for balancer in &balancers {
            balancer.wait_for_status("it is up", |status| status["shared"]["up"] == true).await;
        }
        Self { resources, balancers, server }
    }

    async fn send(&self, balancer: usize, key: &str, method: &str, target: &str, body: &Value) -> Response {
        let headers = [("api-key", key), ("content-type", "application/json")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut client = self.balancers[balancer].connect().await;
        client.request(method, target, &headers, Some(body.as_bytes())).await
    }

    async fn respond(&self, balancer: usize, more: Value) -> Response {
        let mut body = json!({"model": "gpt-4o", "input": "hi"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let response = self.send(balancer, CLIENT_KEY, "POST", RESPONSES, &body).await;
        assert_eq!(response.status, 200, "{}", response.text());
        response
    }

    /// What the server has of an id.
    async fn known(&self, id: &str) -> Option<String> {
        let value = self.server.command("", &["GET", &home_key(id)]).await;
        redis::from_redis_value(value).unwrap()
    }

    async fn wait_until_known(&self, id: &str) -> String {
        wait_until_async("it is known to all", async || self.known(id).await.is_some()).await;
        self.known(id).await.unwrap()
    }

    /// How many requests of a balancer found their resource so.
    async fn count(&self, balancer: usize, how: &str) -> f64 {
        let mut client = Client::connect(self.balancers[balancer].admin_address).await;
        let metrics = client.get("/metrics", &[("Host", "localhost")]).await.text();
        let label = format!("how=\"{how}\"");
        let lines = metrics.lines().filter(|line| line.starts_with(HOW) && line.contains(&label));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }
}

pub(crate) fn home_key(id: &str) -> String {
    format!("aoai-lb:1:home:{}", &sha256_hex(&format!("aoai-lb id\0{id}"))[..32])
}

fn id_of(response: &Response) -> String {
    response.json()["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_whose_turns_alternate_between_instances_is_not_asked_for() {
    let fixture = Fixture::start("").await;
    let first = fixture.respond(0, json!({})).await;
    let (home, mut previous) = (answering_backend(&first), id_of(&first));
    let value = fixture.wait_until_known(&previous).await;
    assert!(value.starts_with("1;") && value.contains(";127.0.0.1:"), "{value}");
    assert!(!value.contains("team-a") && !value.contains(&previous), "{value}");
    // On a busy machine the server may need longer than the 5 ms that a request waits.
    for turn in 1.. {
        let response = fixture.respond(turn % 2, json!({"previous_response_id": previous})).await;
        assert_eq!(answering_backend(&response), home, "turn {turn}");
        previous = id_of(&response);
        fixture.wait_until_known(&previous).await;
        if fixture.count(0, "learned").await >= 5.0 && fixture.count(1, "learned").await >= 5.0 {
            break;
        }
        assert!(turn < 500, "hardly any is learned");
    }
    let lifetime: i64 =
        redis::from_redis_value(fixture.server.command("", &["TTL", &home_key(&previous)]).await).unwrap();
    assert!((86_000..=86_400).contains(&lifetime), "{lifetime}");
    let deleted =
        fixture.send(1, CLIENT_KEY, "DELETE", &format!("{RESPONSES}/{previous}"), &Value::Null).await;
    assert_eq!(deleted.status, 200, "{}", deleted.text());
    wait_until_async("it is forgotten", async || fixture.known(&previous).await.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_instance_has_found_by_asking_the_others_need_not_ask_for() {
    let fixture = Fixture::start("").await;
    // On a busy machine the server may need longer than the 5 ms that a request waits. Each id is used once.
    for attempt in 1.. {
        let file = fixture.resources[2].make("file-");
        let target = format!("/openai/v1/files/{file}");
        let found = fixture.send(0, CLIENT_KEY, "GET", &target, &Value::Null).await;
        assert_eq!((found.status, answering_backend(&found).as_str()), (200, "c"));
        let value = fixture.wait_until_known(&file).await;
        assert!(value.starts_with("1;;0;;127.0.0.1:"), "{value}");
        let found = fixture.send(1, CLIENT_KEY, "GET", &target, &Value::Null).await;
        assert_eq!(found.status, 200);
        if fixture.count(1, "learned").await > 0.0 {
            break;
        }
        assert!(attempt < 100, "none is learned");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_are_enforced_on_all_instances() {
    let fixture = Fixture::start("affinity: { owner: enforce }").await;
    let id = id_of(&fixture.respond(0, json!({})).await);
    let value = fixture.wait_until_known(&id).await;
    let owner = &sha256_hex("aoai-lb client\0team-a")[..32];
    assert!(value.contains(&format!(";{owner};")), "{value}");
    let follow_up = json!({"model": "gpt-4o", "input": "x", "previous_response_id": id});
    wait_until_async("another client's id does not exist", async || {
        let refused = fixture.send(1, OTHER_KEY, "POST", RESPONSES, &follow_up).await;
        refused.status == 400 && refused.error_code() == "previous_response_not_found"
    })
    .await;
    assert_eq!(
        fixture.send(1, OTHER_KEY, "GET", &format!("{RESPONSES}/{id}"), &Value::Null).await.status,
        404
    );
    fixture.respond(1, json!({"previous_response_id": id})).await;
    // What another instance has found later does not change who made it.
    assert!(fixture.wait_until_known(&id).await.contains(&format!(";{owner};")));
    // Its maker is not known.
    let made_elsewhere = fixture.resources[1].make("resp_");
    let follow_up = json!({"model": "gpt-4o", "input": "x", "previous_response_id": made_elsewhere});
    assert_eq!(fixture.send(0, OTHER_KEY, "POST", RESPONSES, &follow_up).await.status, 200);
    assert_eq!(fixture.send(1, CLIENT_KEY, "POST", RESPONSES, &follow_up).await.status, 200);
    let lifetime: i64 =
        redis::from_redis_value(fixture.server.command("", &["TTL", &home_key(&id)]).await).unwrap();
    assert!(lifetime > 29 * 86_400, "{lifetime}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_server_or_with_odd_values_the_resources_are_asked() {
    let mut fixture = Fixture::start("").await;
    let chain = async |fixture: &Fixture| {
        let first = fixture.respond(0, json!({})).await;
        let second = fixture.respond(1, json!({"previous_response_id": id_of(&first)})).await;
        assert_eq!(answering_backend(&second), answering_backend(&first));
    };
    let is_up = async |fixture: &Fixture, up: bool| {
        for balancer in &fixture.balancers {
            balancer.wait_for_status("the server is noticed", |status| status["shared"]["up"] == up).await;
        }
    };
    for value in ["", "2;new", "1;;0;;elsewhere:443", "\u{1}"] {
        let file = fixture.resources[0].make("file-");
        fixture.server.command("", &["SET", &home_key(&file), value]).await;
        let found =
            fixture.send(1, CLIENT_KEY, "GET", &format!("/openai/v1/files/{file}"), &Value::Null).await;
        assert_eq!((found.status, answering_backend(&found).as_str()), (200, "a"), "{value}");
    }
    let file = fixture.resources[0].make("file-");
    fixture.server.command("", &["LPUSH", &home_key(&file), "x"]).await;
    let found = fixture.send(1, CLIENT_KEY, "GET", &format!("/openai/v1/files/{file}"), &Value::Null).await;
    assert_eq!(found.status, 200);
    fixture.server.send_signal("STOP");
    for _ in 0..10 {
        chain(&fixture).await;
    }
    is_up(&fixture, false).await;
    chain(&fixture).await;
    fixture.server.send_signal("CONT");
    is_up(&fixture, true).await;
    fixture.server.command("", &["FLUSHALL"]).await;
    chain(&fixture).await;
    fixture.server.kill();
    for _ in 0..10 {
        chain(&fixture).await;
    }
    is_up(&fixture, false).await;
    let mut client = Client::connect(fixture.balancers[0].admin_address).await;
    let metrics = client.get("/metrics", &[("Host", "localhost")]).await.text();
    let dropped = metrics.lines().find_map(|line| line.strip_prefix("aoai_lb_shared_homes_dropped_total "));
    assert!(dropped.unwrap().parse::<u64>().unwrap() > 0, "{dropped:?}");
    fixture.server.start_again().await;
    is_up(&fixture, true).await;
    let id = id_of(&fixture.respond(0, json!({})).await);
    fixture.wait_until_known(&id).await;
}
