//! `shared`: several balancers with one Redis, and what they do while it is away.

use crate::support;

use std::cell::Cell;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::identity::IdentityPlatform;
use support::redis_server::{NOTICE_TIME, RedisServer};
use support::tls::{CertificateAuthority, generate_authority, generate_key, issue_certificate};
use support::{
    Balancer, Client, all_backends_yaml, clients_yaml, free_port, start_simulator, wait_until,
    wait_until_async,
};

/// The log line that tells the problem.
const PROBLEM: &str = "cannot use Redis at";
/// Far less than a request would wait for a server that does not answer, far more than it takes.
const AT_ONCE: Duration = Duration::from_millis(900);

/// Starts a balancer with this block.
pub(crate) async fn start_balancer(shared: &str) -> Balancer {
    let azure = start_simulator(&["a"]).await;
    // The simulated resource lives as long as the test.
    let azure = Box::leak(Box::new(azure));
    Balancer::start(&all_backends_yaml(azure), shared).await
}

pub(crate) async fn shared_status(balancer: &Balancer) -> Value {
    balancer.status().await["shared"].clone()
}

pub(crate) async fn wait_for_shared(balancer: &Balancer, what: &str, condition: impl Fn(&Value) -> bool) {
    balancer.wait_for_status(what, |status| condition(&status["shared"])).await;
}

pub(crate) fn instance_count(shared: &Value) -> usize {
    shared["instances"].as_array().unwrap().len()
}

pub(crate) async fn metrics(balancer: &Balancer) -> String {
    let response =
        Client::connect(balancer.admin_address).await.get("/metrics", &[("Host", "localhost")]).await;
    String::from_utf8(response.body).unwrap()
}

/// Sends requests one after the other while something happens; all are answered, and none waits.
pub(crate) async fn requests_go_on_while(balancer: &Balancer, happens: impl Future<Output = ()>) {
    let is_over = Cell::new(false);
    let happens = async {
        happens.await;
        is_over.set(true);
    };
    let requests = async {
        let mut count = 0;
        while !is_over.get() || count < 10 {
            let started = Instant::now();
            let response = balancer.post_chat().await;
            assert_eq!(response.status, 200);
            assert!(started.elapsed() < AT_ONCE, "request {count} took {:?}", started.elapsed());
            count += 1;
        }
    };
    tokio::join!(happens, requests);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_see_each_other_and_one_that_stops_takes_itself_out() {
    let server = RedisServer::start(&[]).await;
    let first = start_balancer(&server.shared_yaml("")).await;
    let mut second = start_balancer(&server.shared_yaml("")).await;
    for balancer in [&first, &second] {
        wait_for_shared(balancer, "both are seen", |shared| instance_count(shared) == 2).await;
        let shared = shared_status(balancer).await;
        assert_eq!(
            (&shared["up"], &shared["problem"], &shared["last_seen_count"]),
            (&true.into(), &Value::Null, &2.into())
        );
        let instances = shared["instances"].as_array().unwrap();
        let name_end = format!("/{}", balancer.pid());
        assert!(instances[0]["name"].as_str().unwrap().ends_with(&name_end), "{shared}");
        assert_eq!((&instances[0]["is_self"], &instances[1]["is_self"]), (&true.into(), &false.into()));
        assert!(
            instances.iter().all(|instance| instance["version"] == env!("CARGO_PKG_VERSION")),
            "{shared}"
        );
        assert!(metrics(balancer).await.contains("\naoai_lb_shared_up 1\n"));
        balancer.wait_for_log("shared.redis: connected to 127.0.0.1:").await;
    }
    for _ in 0..20 {
        assert_eq!(first.post_chat().await.status, 200);
    }
    wait_for_shared(&second, "the other one's requests are seen", |shared| {
        shared["instances"][1]["requests_per_second"].as_f64().unwrap() > 0.0
    })
    .await;
    let expected = "{\"version\":1,\"last_seen\":2}\n";
    wait_until("the number is saved", || {
        std::fs::read_to_string(first.path("state/instances.json")).is_ok_and(|text| text == expected)
    })
    .await;
    assert_eq!(second.stop().await, 0);
    // Nobody has to wait for five seconds until it has not been seen.
    let entries = server.command("", &["HLEN", "aoai-lb:1:instances"]).await;
    assert_eq!(entries, redis::Value::Int(1));
    wait_for_shared(&first, "only one is left", |shared| {
        instance_count(shared) == 1 && shared["last_seen_count"] == 1
    })
    .await;
    let text = String::from_utf8(
        tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"))
            .args(["status", "-c"])
            .arg(first.path("aoai-lb.yaml"))
            .output()
            .await
            .unwrap()
            .stdout,
    )
    .unwrap();
    assert!(
        text.contains(&format!("/{} (this one)", first.pid())) && text.contains("shared: connected since"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_killed_is_gone_after_five_seconds() {
    let server = RedisServer::start(&[]).await;
    let first = start_balancer(&server.shared_yaml(", prefix: x")).await;
    let second = start_balancer(&server.shared_yaml(", prefix: x")).await;
    let other = start_balancer(&server.shared_yaml(", prefix: y")).await;
    wait_for_shared(&first, "both are seen", |shared| instance_count(shared) == 2).await;
    wait_for_shared(&other, "those of another prefix are others", |shared| instance_count(shared) == 1).await;
    second.send_signal("KILL");
    let killed = Instant::now();
    wait_for_shared(&first, "only one is left", |shared| instance_count(shared) == 1).await;
    let elapsed = killed.elapsed();
    assert!((Duration::from_secs(4)..NOTICE_TIME).contains(&elapsed), "{elapsed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_instances_outlives_a_restart_and_a_server_that_is_away() {
    let mut server = RedisServer::start(&[]).await;
    let mut first = start_balancer(&server.shared_yaml("")).await;
    let second = start_balancer(&server.shared_yaml("")).await;
    let saved = || std::fs::read_to_string(first.path("state/instances.json")).unwrap_or_default();
    wait_until("the number is saved", || saved().contains("\"last_seen\":2")).await;
    server.kill();
    for balancer in [&first, &second] {
        wait_for_shared(balancer, "it is down", |shared| shared["up"] == false).await;
        assert_eq!(shared_status(balancer).await["last_seen_count"], 2);
    }
    first.send_signal("KILL");
    first.start_again().await;
    let shared = shared_status(&first).await;
    assert_eq!((&shared["last_seen_count"], instance_count(&shared)), (&2.into(), 0), "{shared}");
    // An empty server knows only those that have registered already; the number does not fall for that.
    server.start_again().await;
    wait_for_shared(&first, "both are seen", |shared| {
        assert_eq!(shared["last_seen_count"], 2, "{shared}");
        instance_count(shared) == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_once_and_requests_go_on() {
    let server = RedisServer::start(&["--requirepass", "right-password"]).await;
    let balancer = start_balancer(&server.shared_yaml(", password: wrong-password")).await;
    balancer.wait_for_log(PROBLEM).await;
    requests_go_on_while(&balancer, async {
        wait_until_async("it has tried again", async || {
            let count = server.info_line("right-password", "errorstat_WRONGPASS:count=").await;
            count.is_some_and(|count| count.trim().parse::<u64>().unwrap() >= 3)
        })
        .await;
    })
    .await;
    let shared = shared_status(&balancer).await;
    let problem = shared["problem"].as_str().unwrap();
    assert!(
        problem.contains("it does not accept the user name or the password (or token) of shared.redis"),
        "{problem}"
    );
    assert!(metrics(&balancer).await.contains("\naoai_lb_shared_up 0\n"));
    let log = balancer.log();
    assert_eq!(log.matches(PROBLEM).count(), 1, "{log}");
    assert!(!log.contains("wrong-password") && !shared.to_string().contains("wrong-password"));
    server.command("right-password", &["CONFIG", "SET", "requirepass", "wrong-password"]).await;
    wait_for_shared(&balancer, "it is up", |shared| shared["up"] == true && instance_count(shared) == 1)
        .await;
    balancer.wait_for_log(" again, after ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_requests_go_on_until_there_is_one() {
    let port = free_port();
    let balancer =
        start_balancer(&format!("shared: {{ redis: {{ url: 'redis://127.0.0.1:{port}' }} }}")).await;
    balancer.wait_for_log(PROBLEM).await;
    requests_go_on_while(&balancer, async {
        let expected = format!("{PROBLEM} 127.0.0.1:{port}: connection refused (nothing listens there)");
        wait_for_shared(&balancer, "the problem is told", |shared| shared["problem"] == expected.as_str())
            .await;
    })
    .await;
    let shared = shared_status(&balancer).await;
    assert_eq!((&shared["up"], &shared["last_seen_count"]), (&false.into(), &1.into()), "{shared}");
    let _server = RedisServer::start_on(port, &[]).await;
    wait_for_shared(&balancer, "it is up", |shared| shared["up"] == true && instance_count(shared) == 1)
        .await;
    balancer.wait_for_log(&format!("shared.redis: connected to 127.0.0.1:{port} again, after ")).await;
    assert_eq!(balancer.log().matches(PROBLEM).count(), 1, "{}", balancer.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_stopped_or_killed_is_told_once_each_time_and_requests_go_on() {
    let mut server = RedisServer::start(&[]).await;
    let balancer = start_balancer(&server.shared_yaml("")).await;
    wait_for_shared(&balancer, "it is up", |shared| instance_count(shared) == 1).await;
    let is_down = async |text: &str| {
        wait_for_shared(&balancer, "it is down", |shared| {
            shared["up"] == false && shared["problem"].as_str().is_some_and(|problem| problem.contains(text))
        })
        .await;
    };
    let is_up = async |times: usize| {
        wait_for_shared(&balancer, "it is up", |shared| shared["up"] == true).await;
        wait_until("that is told", || balancer.log().matches(" again, after ").count() == times).await;
        assert_eq!(balancer.log().matches(PROBLEM).count(), times, "{}", balancer.log());
    };
    requests_go_on_while(&balancer, async {
        server.send_signal("STOP");
        is_down("it accepts connections but does not answer").await;
    })
    .await;
    // The last instances stay in sight.
    assert_eq!(instance_count(&shared_status(&balancer).await), 1);
    requests_go_on_while(&balancer, async {
        server.send_signal("CONT");
        is_up(1).await;
        server.kill();
        is_down("connection refused").await;
        server.start_again().await;
        is_up(2).await;
        wait_for_shared(&balancer, "it has registered again", |shared| instance_count(shared) == 1).await;
    })
    .await;
}

/// Starts a server with a certificate for `localhost`.
async fn start_tls_server(authority: &CertificateAuthority, directory: &std::path::Path) -> RedisServer {
    let key = generate_key();
    let certificate = issue_certificate("localhost", (-1, 1), &key, Some(authority));
    let write = |name: &str, bytes: Vec<u8>| {
        let path = directory.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let certificate = write("cert.pem", certificate.to_pem().unwrap());
    let key = write("key.pem", key.private_key_to_pem_pkcs8().unwrap());
    let ca = write("ca.pem", authority.certificate.to_pem().unwrap());
    let files = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    RedisServer::start(&[&files[..], &["--tls-auth-clients", "no"]].concat()).await
}

/// Output of `check --live`.
pub(crate) async fn live_check(shared: &str) -> String {
    let azure = start_simulator(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("aoai-lb.yaml");
    let text = format!(
        "listeners: [ {{ address: '127.0.0.1:{}' }} ]\nbackends:\n{}{}{shared}\n",
        free_port(),
        all_backends_yaml(&azure),
        clients_yaml()
    );
    std::fs::write(&file, text).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    let output = command.args(["check", "--live", "-c"]).arg(&file).output().await.unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_a_private_authority_is_verified() {
    let (authority, directory) = (generate_authority(), tempfile::tempdir().unwrap());
    let server = start_tls_server(&authority, directory.path()).await;
    let block = |url: &str, ca: &str| format!("shared: {{ redis: {{ url: '{url}:{}'{ca} }} }}", server.port);
    let ca = format!(", ca: '{}'", directory.path().join("ca.pem").display());
    let balancer = start_balancer(&block("rediss://localhost", &ca)).await;
    wait_for_shared(&balancer, "it is up", |shared| shared["up"] == true && instance_count(shared) == 1)
        .await;
    for (url, ca, expected) in [
        ("rediss://localhost", ca.as_str(), "good  shared.redis  connection: Redis "),
        ("rediss://localhost", "", "; shared.redis.ca names the authority of a private one"),
        (
            "rediss://127.0.0.1",
            &ca,
            "or is for another name; it has to come from an authority in shared.redis.ca",
        ),
        (
            "redis://localhost",
            "",
            "it closed the connection during the greeting; does it expect TLS (rediss://)?",
        ),
    ] {
        let text = live_check(&block(url, ca)).await;
        assert!(text.contains(expected), "{url}{ca}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_live_says_what_the_server_answers() {
    let rules = ["on", ">hush", "~aoai-lb:1:*", "&aoai-lb:1:*", "+@all"];
    let good = [&["--user", "lb"], &rules[..]].concat();
    let weak = [&["--user", "weak"], &rules[..], &["-@scripting"]].concat();
    let server = RedisServer::start(&[good, weak].concat()).await;
    let login =
        |name: &str, password: &str| server.shared_yaml(&format!(", username: {name}, password: {password}"));
    let text = live_check(&login("lb", "hush")).await;
    assert!(text.contains(" answers; authenticated as lb\n"), "{text}");
    assert!(text.contains("good  shared.redis  instances: scripts run; no instance is running\n"), "{text}");
    let balancer = start_balancer(&login("lb", "hush")).await;
    wait_for_shared(&balancer, "it is up", |shared| instance_count(shared) == 1).await;
    let text = live_check(&login("lb", "hush")).await;
    let expected = format!("/{}\n", balancer.pid());
    assert!(text.contains("scripts run; 1 instance: ") && text.contains(&expected), "{text}");
    let text = live_check(&login("weak", "hush")).await;
    assert!(
        text.contains("BAD   shared.redis  connection: the user of shared.redis may not run what is needed"),
        "{text}"
    );
    let text = live_check(&login("lb", "other-password")).await;
    assert!(
        text.contains("BAD   shared.redis  connection: it does not accept the user name or the password"),
        "{text}"
    );
    assert!(!text.contains("other-password"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_says_that_another_server_needs_an_upgrade_after_which_one_instance_is_left() {
    let (server, other) = (RedisServer::start(&[]).await, RedisServer::start(&[]).await);
    let mut balancer = start_balancer(&server.shared_yaml("")).await;
    wait_for_shared(&balancer, "it is up", |shared| instance_count(shared) == 1).await;
    balancer.replace_in_config(&server.url(), &other.url());
    balancer.send_signal("HUP");
    balancer
        .wait_for_log("configuration: shared: the change takes effect with an upgrade (aoai-lb upgrade)")
        .await;
    assert_eq!(shared_status(&balancer).await["up"], true);
    let upgraded = balancer.run_upgrade_command().await;
    assert!(upgraded.status.success(), "{upgraded:?}\n{}", balancer.log());
    let pid = balancer.wait_until_single_process().await;
    wait_for_shared(&balancer, "the new process is the only instance", |shared| {
        let name = shared["instances"][0]["name"].as_str().unwrap_or_default();
        instance_count(shared) == 1 && name.ends_with(&format!("/{pid}"))
    })
    .await;
    assert_eq!(server.command("", &["HLEN", "aoai-lb:1:instances"]).await, redis::Value::Int(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_of_a_key_vault_is_told_on_the_open_connection() {
    let platform = IdentityPlatform::start().await;
    platform.set_secret("redis", "first-password");
    let server = RedisServer::start(&["--requirepass", "first-password"]).await;
    let shared =
        server.shared_yaml(&format!(", password: {{ key_vault: '{}' }}", platform.secret_url("redis")));
    let vault = "key_vault: { credential: { entra: { managed_identity: {} } }, refresh: 1s }\n";
    let azure = start_simulator(&["a"]).await;
    let backends = all_backends_yaml(&azure);
    let environment = platform.vm_environment();
    let balancer = Balancer::start_with_environment(&environment, &backends, &(shared + vault)).await;
    wait_for_shared(&balancer, "it is up", |shared| instance_count(shared) == 1).await;
    let authentications = "cmdstat_auth:calls=";
    let calls = async |password| {
        let info = server.info_line(password, authentications).await.unwrap_or_default();
        info.split(',').next().unwrap_or_default().parse::<u64>().unwrap_or(0)
    };
    assert_eq!(calls("first-password").await, 0);
    server.command("first-password", &["CONFIG", "SET", "requirepass", "second-password"]).await;
    platform.set_secret("redis", "second-password");
    wait_until_async("the new password is told", async || calls("second-password").await == 1).await;
    let shared = shared_status(&balancer).await;
    assert_eq!(
        (&shared["up"], balancer.log().matches(PROBLEM).count()),
        (&true.into(), 0),
        "{}",
        balancer.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_an_identity_takes_the_place_of_a_password() {
    let platform = IdentityPlatform::start().await;
    let server = RedisServer::start(&["--user", "object-id", "on", "nopass", "~*", "&*", "+@all"]).await;
    let credential = "username: object-id, credential: { entra: { managed_identity: {} } }";
    let shared = server.shared_yaml(&format!(", {credential}"));
    let azure = start_simulator(&["a"]).await;
    let backends = all_backends_yaml(&azure);
    let balancer = Balancer::start_with_environment(&platform.vm_environment(), &backends, &shared).await;
    wait_for_shared(&balancer, "it is up", |shared| instance_count(shared) == 1).await;
    let users = server.command("", &["CLIENT", "LIST"]).await;
    assert!(format!("{users:?}").contains("user=object-id"), "{users:?}");
    let requests = platform.token_requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert!(requests[0].1.starts_with("https://redis.azure.com"), "{requests:?}");
}
