//! What is booked against budgets for a background response, and how the first response that shows its end corrects it.

use crate::limits_upgrade::connect_to_new_process;
use crate::support;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use support::redis_server::RedisServer;
use support::upstream::{RawRequest, ScriptedUpstream, complete_response};
use support::{
    Balancer, CLIENT_KEY, Client, Response, poll, send_signal_to, sha256_hex, wait_until, wait_until_async,
};

const RESPONSES: &str = "/openai/v1/responses";
const OTHER_KEY: &str = "key-of-other";
/// A token costs a thousandth. The response does not name the deployment.
const PRICES: &str = "prices: { currency: USD, rows: [ { deployment: m, input: 1000, output: 1000 } ] }\n";
/// Day and month, tokens and cost, in total and for the deployment; and a rate.
const LIMITS: &str =
    "tokens_per_minute: 100000, tokens_per_day: 100000, tokens_per_month: 200000, cost_per_day: 1000,
      cost_per_month: 2000, deployments: { m: { tokens_per_day: 50000, cost_per_month: 900 } }";

/// A resource that keeps background responses, and balancers in front of it.
struct Fixture {
    ends: Arc<Mutex<HashMap<String, Value>>>,
    balancers: Vec<Balancer>,
}

impl Fixture {
    async fn start(balancers: usize, limits: &str, yaml: &str) -> Self {
        let ends: Arc<Mutex<HashMap<String, Value>>> = Arc::default();
        let known = Arc::clone(&ends);
        let upstream = ScriptedUpstream::start(move |request| answer(request, &known.lock().unwrap())).await;
        let (key, other) = (sha256_hex(CLIENT_KEY), sha256_hex(OTHER_KEY));
        let clients = format!(
            "clients:\n  - name: team-a\n    keys: [ {{ sha256: {key} }} ]\n    limits: {{ {limits} }}\n  \
             - {{ name: other, keys: [ {{ sha256: {other} }} ] }}\n"
        );
        let mut fixture = Self { ends, balancers: Vec::new() };
        let (backend, yaml) = (upstream.backend_yaml("a"), format!("{PRICES}{yaml}"));
        for _ in 0..balancers {
            fixture.balancers.push(Balancer::start_with_clients(&backend, &clients, &yaml).await);
        }
        fixture
    }

    /// Several balancers that share one Redis.
    async fn start_shared(balancers: usize, limits: &str) -> (Self, RedisServer) {
        let server = RedisServer::start(&[]).await;
        let fixture = Self::start(balancers, limits, &server.shared_yaml("")).await;
        fixture.wait_until_all_are_seen().await;
        (fixture, server)
    }

    async fn wait_until_all_are_seen(&self) {
        for balancer in &self.balancers {
            balancer
                .wait_for_status("all instances are seen", |status| {
                    status["shared"]["up"] == true
                        && status["shared"]["instances"].as_array().unwrap().len() == self.balancers.len()
                })
                .await;
        }
    }

    fn first(&self) -> &Balancer {
        &self.balancers[0]
    }

    /// The response ends with these tokens.
    fn end(&self, name: &str, status: &str, input: u64, output: u64) {
        let end = json!({
            "status": status,
            "usage": {"input_tokens": input, "output_tokens": output, "total_tokens": input + output},
        });
        self.ends.lock().unwrap().insert(name.to_owned(), end);
    }

    /// What is used of the client's limits, as each balancer knows it at last.
    async fn wait_until_used(&self, expected: &[f64]) {
        poll("what is used is known", async || {
            let mut found = Vec::new();
            for balancer in &self.balancers {
                found.push(used(balancer).await);
            }
            let is_expected = |used: &Vec<f64>| {
                used.len() == expected.len()
                    && used.iter().zip(expected).all(|(used, expected)| (used - expected).abs() < 1e-6)
            };
            if found.iter().all(is_expected) { Ok(()) } else { Err(format!("{found:?}, not {expected:?}")) }
        })
        .await;
    }
}

/// Creates a response in the background, or returns one, with its end if it has ended.
fn answer(request: &RawRequest, ends: &HashMap<String, Value>) -> Vec<Vec<u8>> {
    let target = request.head.split(' ').nth(1).unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let name = match path.split("/resp_").nth(1) {
        Some(rest) => rest.trim_end_matches("/cancel").to_owned(),
        None => body["user"].as_str().unwrap_or("none").to_owned(),
    };
    let mut response = json!({"id": format!("resp_{name}"), "object": "response", "model": "model-of-m", "output": [],
                              "status": "in_progress", "usage": null});
    if let Some(end) = ends.get(&name) {
        response.as_object_mut().unwrap().extend(end.as_object().unwrap().clone());
    }
    if query.contains("stream=true") {
        let event = json!({"type": "response.completed", "response": response});
        let stream = format!("event: response.completed\ndata: {event}\n\n");
        return complete_response(200, "Content-Type: text/event-stream", &stream);
    }
    complete_response(200, "Content-Type: application/json", &response.to_string())
}

/// What is used of each limit of the first client, in the order of the status.
async fn used(balancer: &Balancer) -> Vec<f64> {
    let status = balancer.status().await;
    let limits = status["limits"]["clients"][0]["limits"].as_array().unwrap().clone();
    limits.iter().map(|limit| limit["used"].as_f64().unwrap()).collect()
}

async fn post(client: &mut Client, target: &str, body: &Value) -> Response {
    client.post(target, &[("api-key", CLIENT_KEY)], body.to_string().as_bytes()).await
}

fn background(name: &str) -> Value {
    json!({"model": "m", "input": "x", "background": true, "max_output_tokens": 400, "user": name})
}

async fn create(balancer: &Balancer, name: &str) {
    let response = post(&mut balancer.connect().await, RESPONSES, &background(name)).await;
    assert_eq!(response.status, 200, "{}", response.text());
}

async fn get_with(client: &mut Client, name: &str, key: &str) -> Response {
    let response = client.get(&format!("{RESPONSES}/resp_{name}"), &[("api-key", key)]).await;
    assert_eq!(response.status, 200, "{}", response.text());
    response
}

async fn get(balancer: &Balancer, name: &str) {
    get_with(&mut balancer.connect().await, name, CLIENT_KEY).await;
}

/// Reads a response, and returns the tokens and the cost of the record: an array, or `null` if it has none of them.
async fn read(balancer: &Balancer, name: &str) -> Value {
    let response = get_with(&mut balancer.connect().await, name, CLIENT_KEY).await;
    counted_in_record(balancer, &response).await
}

async fn counted_in_record(balancer: &Balancer, response: &Response) -> Value {
    let id = response.header("x-aoai-lb-request-id").unwrap();
    let record = poll("the read is recorded", async || {
        let mut records = balancer.records().into_iter();
        records.find(|record| record["request_id"] == id).ok_or("no record")
    })
    .await;
    match (&record["total_tokens"], &record["cost"]) {
        (Value::Null, Value::Null) => Value::Null,
        (tokens, cost) => json!([tokens, cost]),
    }
}

/// All limits of [`LIMITS`], if the rate counts `rate` tokens and the budgets `tokens`.
fn all_limits(rate: u64, tokens: u64) -> [f64; 7] {
    let (rate, tokens) = (rate as f64, tokens as f64);
    let cost = tokens / 1000.0;
    [rate, tokens, tokens, cost, cost, tokens, cost]
}

/// What a background response is estimated at, once so many requests have their records.
async fn estimate(balancer: &Balancer, records: usize) -> u64 {
    let record = balancer.wait_for_records(records).await.remove(0);
    let reserved = record["reserved_tokens"].as_u64().unwrap();
    assert!((400..500).contains(&reserved), "{record}");
    reserved
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_response_that_shows_the_end_corrects_budgets_once_and_no_rate() {
    let fixture = Fixture::start(1, LIMITS, "").await;
    let balancer = fixture.first();
    create(balancer, "1").await;
    let estimate = estimate(balancer, 1).await;
    let (mut rate, mut tokens) = (estimate, estimate);
    fixture.wait_until_used(&all_limits(rate, tokens)).await;
    get(balancer, "1").await;
    fixture.wait_until_used(&all_limits(rate, tokens)).await;

    // Less than estimated, and more; by a poll, by a cancellation, by a stream, and by another client.
    let [poll, cancel, resume, other] = ["1", "2", "3", "4"];
    for (name, input, output) in [(poll, 100, 50), (cancel, 30, 3), (resume, 900, 800), (other, 9, 1)] {
        if name != poll {
            create(balancer, name).await;
            rate += estimate;
            tokens += estimate;
            fixture.wait_until_used(&all_limits(rate, tokens)).await;
        }
        fixture.end(name, if name == cancel { "cancelled" } else { "completed" }, input, output);
        let mut client = balancer.connect().await;
        let target = format!("{RESPONSES}/resp_{name}");
        let key = [("api-key", CLIENT_KEY)];
        let response = match name {
            _ if name == cancel => post(&mut client, &format!("{target}/cancel"), &json!({})).await,
            _ if name == resume => client.get(&format!("{target}?stream=true&starting_after=1"), &key).await,
            _ if name == other => get_with(&mut client, name, OTHER_KEY).await,
            _ => get_with(&mut client, name, CLIENT_KEY).await,
        };
        assert_eq!(response.status, 200, "{}", response.text());
        tokens = tokens - estimate + input + output;
        fixture.wait_until_used(&all_limits(rate, tokens)).await;
    }
    let before = balancer.records().len();
    for name in [poll, cancel, resume, other] {
        get(balancer, name).await;
    }
    balancer.wait_for_records(before + 4).await;
    fixture.wait_until_used(&all_limits(rate, tokens)).await;
    // A reload changes nothing.
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    fixture.wait_until_used(&all_limits(rate, tokens)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_budget_is_used_up_by_an_estimate_reads_the_end_and_goes_on() {
    let fixture = Fixture::start(1, "tokens_per_day: 700", "").await;
    let balancer = fixture.first();
    create(balancer, "1").await;
    let refused = post(&mut balancer.connect().await, RESPONSES, &background("2")).await;
    assert_eq!((refused.status, &*refused.error_code()), (429, "insufficient_quota"), "{}", refused.text());
    fixture.end("1", "completed", 20, 5);
    get(balancer, "1").await;
    fixture.wait_until_used(&[25.0]).await;
    create(balancer, "2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn corrections_and_what_has_not_ended_outlive_a_kill() {
    let mut fixture = Fixture::start(1, "tokens_per_day: 100000", "").await;
    for name in ["1", "2"] {
        create(fixture.first(), name).await;
    }
    let estimate = estimate(fixture.first(), 2).await;
    fixture.end("1", "completed", 20, 5);
    get(fixture.first(), "1").await;
    let saved = fixture.first().path("state/budgets.log");
    let wait_until_saved = async |used: u64| {
        let refund = format!("\"day_refunds\":{{\"tokens\":{}}}", 2 * estimate - used);
        wait_until("it is saved", || {
            std::fs::read_to_string(&saved).is_ok_and(|text| text.contains(&refund))
        })
        .await;
    };
    wait_until_saved(estimate + 25).await;
    fixture.first().send_signal("KILL");
    fixture.balancers[0].start_again().await;
    fixture.wait_until_used(&[(estimate + 25) as f64]).await;
    fixture.end("2", "completed", 30, 5);
    assert_eq!(read(fixture.first(), "1").await, Value::Null);
    assert_eq!(read(fixture.first(), "2").await, json!([35, 0.035]));
    fixture.wait_until_used(&[60.0]).await;
    wait_until_saved(60).await;
    fixture.first().send_signal("KILL");
    fixture.balancers[0].start_again().await;
    assert_eq!(read(fixture.first(), "2").await, Value::Null);
    fixture.wait_until_used(&[60.0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_hands_bookings_over_and_each_is_corrected_once() {
    let mut fixture = Fixture::start(1, "tokens_per_day: 100000, cost_per_day: 1000", "").await;
    for name in ["1", "2", "3"] {
        create(fixture.first(), name).await;
    }
    let estimate = estimate(fixture.first(), 3).await;
    let used = |tokens: u64| [tokens as f64, tokens as f64 / 1000.0];
    fixture.wait_until_used(&used(3 * estimate)).await;
    // Connections to the old process, each for one more response of it.
    let mut old = Vec::new();
    for _ in 0..3 {
        let mut client = fixture.first().connect().await;
        assert!(client.get_is_ok("/healthz").await);
        old.push(client);
    }
    fixture.end("1", "completed", 20, 5);
    let output = fixture.first().run_upgrade_command().await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut new = connect_to_new_process(fixture.first()).await;
    get_with(&mut new, "1", CLIENT_KEY).await;
    fixture.wait_until_used(&used(2 * estimate + 25)).await;
    // The end is seen by the old process, first and once more.
    fixture.end("2", "completed", 900, 300);
    for name in ["2", "1"] {
        let mut client = old.pop().unwrap();
        let response = get_with(&mut client, name, CLIENT_KEY).await;
        assert_eq!(response.header("connection"), Some("close"));
        let counted = if name == "2" { json!([1200, 1.2]) } else { Value::Null };
        assert_eq!(counted_in_record(fixture.first(), &response).await, counted, "{name}");
    }
    fixture.wait_until_used(&used(estimate + 1225)).await;
    // One is made by the old process and ends for the new one.
    let made = post(&mut old.pop().unwrap(), RESPONSES, &background("4")).await;
    assert_eq!(made.status, 200, "{}", made.text());
    fixture.wait_until_used(&used(2 * estimate + 1225)).await;
    fixture.balancers[0].wait_until_single_process().await;
    fixture.end("3", "completed", 1, 0);
    fixture.end("4", "completed", 3, 0);
    for name in ["1", "2", "3", "4", "3"] {
        get(fixture.first(), name).await;
    }
    fixture.wait_until_used(&used(1229)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_instance_corrects_what_another_one_has_booked() {
    let (mut fixture, server) = Fixture::start_shared(2, LIMITS).await;
    create(&fixture.balancers[0], "1").await;
    let estimate = estimate(&fixture.balancers[0], 1).await;
    fixture.wait_until_used(&all_limits(estimate, estimate)).await;
    fixture.end("1", "completed", 20, 5);
    assert_eq!(read(&fixture.balancers[1], "1").await, json!([25, 0.025]));
    fixture.wait_until_used(&all_limits(estimate, 25)).await;
    create(&fixture.balancers[1], "2").await;
    fixture.end("2", "completed", 900, 300);
    assert_eq!(read(&fixture.balancers[0], "2").await, json!([1200, 1.2]));
    fixture.wait_until_used(&all_limits(2 * estimate, 1225)).await;
    for balancer in &fixture.balancers {
        for name in ["1", "2"] {
            assert_eq!(read(balancer, name).await, Value::Null);
        }
    }
    fixture.wait_until_used(&all_limits(2 * estimate, 1225)).await;

    // Neither kills nor a server that loses everything change that.
    let saved = [0, 1].map(|index| fixture.balancers[index].path("state/budgets.log"));
    wait_until("the refund is saved where it was made and elsewhere", || {
        let texts = saved.each_ref().map(|path| std::fs::read_to_string(path).unwrap_or_default());
        texts[1].contains("\"day_refunds\"") && texts[0].contains("\"others_day_refunds\"")
    })
    .await;
    let budgets = all_limits(0, 1225);
    for index in [0, 1] {
        assert!(send_signal_to("KILL", fixture.balancers[index].pid()));
        fixture.balancers[index].start_again().await;
    }
    server.command("", &["FLUSHALL"]).await;
    fixture.wait_until_all_are_seen().await;
    poll("the budgets are the same", async || {
        let mut found = Vec::new();
        for balancer in &fixture.balancers {
            found.push(used(balancer).await);
        }
        let is_same = |used: &Vec<f64>| {
            used[1..].iter().zip(&budgets[1..]).all(|(used, expected)| (used - expected).abs() < 1e-6)
        };
        if found.iter().all(is_same) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_while_the_server_is_away_is_corrected_when_it_is_back() {
    let (mut fixture, server) = Fixture::start_shared(2, "tokens_per_day: 100000").await;
    create(&fixture.balancers[0], "1").await;
    let estimate = estimate(&fixture.balancers[0], 1).await;
    fixture.wait_until_used(&[estimate as f64]).await;
    // The server keeps its data.
    server.send_signal("STOP");
    for balancer in &fixture.balancers {
        balancer.wait_for_status("it is noticed", |status| status["shared"]["up"] == false).await;
    }
    fixture.end("1", "completed", 20, 5);
    // Only the instance that has made it knows it then.
    assert_eq!(read(&fixture.balancers[1], "1").await, Value::Null);
    assert_eq!(read(&fixture.balancers[0], "1").await, json!([25, 0.025]));
    assert_eq!(read(&fixture.balancers[0], "1").await, Value::Null);
    create(&fixture.balancers[1], "2").await;
    fixture.end("2", "completed", 7, 0);
    server.send_signal("CONT");
    fixture.wait_until_all_are_seen().await;
    fixture.wait_until_used(&[(25 + estimate) as f64]).await;
    assert_eq!(read(&fixture.balancers[0], "2").await, json!([7, 0.007]));
    fixture.wait_until_used(&[32.0]).await;
    // An upgrade of one instance counts nothing twice.
    create(&fixture.balancers[0], "3").await;
    let output = fixture.balancers[0].run_upgrade_command().await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fixture.balancers[0].wait_until_single_process().await;
    fixture.end("3", "completed", 8, 0);
    for index in [0, 1, 0] {
        for name in ["1", "2", "3"] {
            get(&fixture.balancers[index], name).await;
        }
    }
    fixture.wait_until_used(&[40.0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_counts_once_whatever_the_server_knows_of_it() {
    let (fixture, server) = Fixture::start_shared(2, "tokens_per_day: 100000").await;
    let [maker, other] = [&fixture.balancers[0], &fixture.balancers[1]];
    for name in ["1", "2", "3"] {
        create(maker, name).await;
    }
    let estimate = estimate(maker, 3).await;
    let remembered = async |count: i64| {
        poll("the server has so many objects", async || {
            let script = "return #redis.call('KEYS', '*booking:*')";
            let found = server.command("", &["EVAL", script, "0"]).await;
            if found == redis::Value::Int(count) { Ok(()) } else { Err(found) }
        })
        .await;
    };
    remembered(3).await;
    // It was counted elsewhere before the server went away.
    fixture.end("1", "completed", 20, 5);
    assert_eq!(read(other, "1").await, json!([25, 0.025]));
    fixture.wait_until_used(&[(2 * estimate + 25) as f64]).await;
    let log = maker.path("state/objects.log");
    wait_until("its maker knows", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("forgotten"))
    })
    .await;
    server.send_signal("STOP");
    for balancer in &fixture.balancers {
        balancer.wait_for_status("it is noticed", |status| status["shared"]["up"] == false).await;
    }
    assert_eq!(read(maker, "1").await, Value::Null);
    // Its end was seen where nothing is known of it: the next read counts.
    fixture.end("2", "completed", 30, 5);
    assert_eq!(read(other, "2").await, Value::Null);
    server.send_signal("CONT");
    fixture.wait_until_all_are_seen().await;
    assert_eq!(read(other, "2").await, json!([35, 0.035]));
    assert_eq!(read(maker, "2").await, Value::Null);
    fixture.wait_until_used(&[(estimate + 60) as f64]).await;
    // The server has lost it.
    let script = "for _, key in ipairs(redis.call('KEYS', '*booking:*')) do redis.call('DEL', key) end";
    server.command("", &["EVAL", script, "0"]).await;
    remembered(0).await;
    fixture.end("3", "completed", 40, 5);
    assert_eq!(read(other, "3").await, Value::Null);
    assert_eq!(read(maker, "3").await, json!([45, 0.045]));
    assert_eq!(read(maker, "3").await, Value::Null);
    fixture.wait_until_used(&[105.0]).await;
}

/// After two days the server has forgotten the object, and who has counted its end.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_another_instance_has_counted_long_ago_counts_nowhere_again() {
    let (mut fixture, server) = Fixture::start_shared(2, "tokens_per_day: 100000").await;
    create(fixture.first(), "1").await;
    let log = fixture.first().path("state/objects.log");
    wait_until("it is remembered", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("made_at"))
    })
    .await;
    fixture.first().send_signal("KILL");
    fixture.end("1", "completed", 20, 5);
    assert_eq!(read(&fixture.balancers[1], "1").await, json!([25, 0.025]));
    server.command("", &["FLUSHALL"]).await;
    let text = std::fs::read_to_string(&log).unwrap();
    let (before, made_at) = text.split_once("\"made_at\":").unwrap();
    let (made_at, after) = made_at.split_at(made_at.find([',', '}']).unwrap());
    let long_ago = made_at.parse::<u64>().unwrap() - 3 * 86_400;
    std::fs::write(&log, format!("{before}\"made_at\":{long_ago}{after}")).unwrap();
    fixture.balancers[0].start_again().await;
    assert_eq!(read(fixture.first(), "1").await, Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_granted_too_late_is_given_back_and_counts_at_the_next_read() {
    let (fixture, server) = Fixture::start_shared(2, "tokens_per_day: 100000").await;
    let [maker, other] = [&fixture.balancers[0], &fixture.balancers[1]];
    let (mut tokens, mut was_late) = (0, false);
    for number in 1..=20 {
        let name = &number.to_string();
        create(maker, name).await;
        let remembered = format!("return #redis.call('KEYS', '*booking:*') >= {number}");
        wait_until_async("the server has it", async || {
            server.command("", &["EVAL", &remembered, "0"]).await == redis::Value::Int(1)
        })
        .await;
        fixture.end(name, "completed", 20, 5);
        tokens += 25;
        // Longer than a record waits for the answer, and not as long as a server that is away.
        server.command("", &["CLIENT", "PAUSE", "700", "ALL"]).await;
        if read(other, name).await == Value::Null {
            let counted = poll("a read after the pause counts", async || match read(other, name).await {
                Value::Null => Err("no tokens"),
                counted => Ok(counted),
            })
            .await;
            assert_eq!(counted, json!([25, 0.025]));
            assert_eq!(read(maker, name).await, Value::Null);
            was_late = true;
            break;
        }
        // On a busy machine the pause may be over before the read.
    }
    assert!(was_late, "no claim was granted too late");
    fixture.wait_until_used(&[f64::from(tokens)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_saved_is_saved_as_soon_as_it_can_be() {
    let mut fixture = Fixture::start(1, "tokens_per_day: 100000", "").await;
    let file = fixture.first().path("state/objects.log");
    let obstacle = fixture.first().path("state/objects.log.new");
    let saved_objects = || std::fs::read_to_string(&file).unwrap_or_default().lines().skip(1).count();
    create(fixture.first(), "1").await;
    wait_until("the first one is saved", || saved_objects() == 1).await;
    assert_eq!(fixture.balancers[0].stop().await, 0);
    // As a full disk would: the file cannot be replaced.
    std::fs::create_dir(&obstacle).unwrap();
    fixture.balancers[0].start_again().await;
    let is_logged = |text: &str| fixture.first().log().contains(text);
    wait_until("that is logged", || is_logged("cannot write objects.log")).await;
    create(fixture.first(), "2").await;
    assert_eq!(saved_objects(), 1);
    std::fs::remove_dir(&obstacle).unwrap();
    wait_until("it is saved", || saved_objects() == 2).await;
    wait_until("that is logged", || is_logged("objects.log is saved again")).await;
    fixture.first().send_signal("KILL");
    fixture.balancers[0].start_again().await;
    for name in ["1", "2"] {
        fixture.end(name, "completed", 20, 5);
        assert_eq!(read(fixture.first(), name).await, json!([25, 0.025]));
    }
    fixture.wait_until_used(&[50.0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_budget_refuses_what_may_use_tokens_and_nothing_else_with_and_without_a_server() {
    for is_shared in [false, true] {
        let limits = "tokens_per_day: 600, tokens_per_minute: 1500";
        let (fixture, _server) = if is_shared {
            let (fixture, server) = Fixture::start_shared(1, limits).await;
            (fixture, Some(server))
        } else {
            (Fixture::start(1, limits, "").await, None)
        };
        let balancer = fixture.first();
        create(balancer, "1").await;
        fixture.end("1", "completed", 700, 900);
        get(balancer, "1").await;
        poll("the budget is used up", async || match used(balancer).await {
            used if used.contains(&1600.0) => Ok(()),
            used => Err(used),
        })
        .await;
        let client = || balancer.connect();
        let form = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--b--\r\n";
        let image = json!({"model": "m", "prompt": "x"}).to_string();
        for (target, content_type, body) in [
            (RESPONSES, "application/json", background("2").to_string()),
            ("/openai/v1/images/generations", "application/json", image),
            ("/openai/v1/audio/transcriptions", "multipart/form-data; boundary=b", form.to_owned()),
        ] {
            // What an instance has leased before is used up first.
            let headers = [("api-key", CLIENT_KEY), ("Content-Type", content_type)];
            poll("it is refused", async || {
                let response = client().await.post(target, &headers, body.as_bytes()).await;
                match (response.status, &*response.error_code()) {
                    (429, "insufficient_quota") => Ok(()),
                    _ => Err(format!("{is_shared} {target}: {}", response.text())),
                }
            })
            .await;
        }
        get(balancer, "1").await;
        let cancelled = post(&mut client().await, &format!("{RESPONSES}/resp_1/cancel"), &json!({})).await;
        assert_eq!(cancelled.status, 200, "{is_shared}: {}", cancelled.text());
        let deleted = client()
            .await
            .request("DELETE", &format!("{RESPONSES}/resp_1"), &[("api-key", CLIENT_KEY)], None)
            .await;
        assert_eq!(deleted.status, 200, "{is_shared}: {}", deleted.text());
    }
}
