//! Backends with `enabled: false`: they take part in nothing, are shown as such, and come back with a reload.

use crate::support;

use std::process::Command;
use std::time::Duration;

use aoai_lb::demo::Mood;
use serde_json::json;
use support::{
    Balancer, CHAT_BODY, CLIENT_KEY, Client, LISTED_DEPLOYMENTS, answering_backend, simulated_backend_yaml,
    start_simulator, wait_until,
};

/// Runs a command with the file of a balancer. Returns its exit code and output.
async fn run_command(balancer: &Balancer, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    command.arg(arguments[0]).arg("-c").arg(balancer.path("aoai-lb.yaml")).args(&arguments[1..]);
    // There it finds the running process, which holds the addresses.
    command.env("RUNTIME_DIRECTORY", balancer.path("run"));
    let output = command.output().await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

async fn metrics(balancer: &Balancer) -> String {
    Client::connect(balancer.admin_address).await.get("/metrics", &[("Host", "localhost")]).await.text()
}

#[tokio::test]
async fn a_disabled_backend_gets_nothing_and_needs_no_secret() {
    let azure = start_simulator(&["a", "b", "c"]).await;
    let probed = format!("{LISTED_DEPLOYMENTS}\nprobe: {{ interval: 1s }}");
    let entries = simulated_backend_yaml(&azure, "a", &probed)
        + &simulated_backend_yaml(
            &azure,
            "b",
            &format!("{probed}\nenabled: false\nprovisioned: {{ units: 100 }}"),
        )
        .replace("b-key", "\"${SECRET_THAT_IS_GONE}\"")
        + &simulated_backend_yaml(&azure, "c", &probed);
    let balancer = Balancer::start(&entries, "balance: round_robin").await;
    for expected in ["a", "c", "a", "c"] {
        assert_eq!(answering_backend(&balancer.post_chat().await), expected);
    }
    // The others are probed, and more than once.
    let (before_a, before_c) = (azure.request_count("a"), azure.request_count("c"));
    wait_until("a and c are probed", || {
        azure.request_count("a") > before_a && azure.request_count("c") > before_c
    })
    .await;
    assert_eq!((azure.request_count("b"), azure.accepted_connection_count("b")), (0, 0));

    let states = balancer.backend_states().await;
    let names_and_states: Vec<_> =
        states.iter().map(|(name, state)| (name.as_str(), state.as_str())).collect();
    assert_eq!(
        names_and_states,
        [("a", "healthy"), ("b", "disabled"), ("c", "healthy")],
        "in the order of the file"
    );
    let status = balancer.status().await;
    let b = &status["backends"][1];
    assert_eq!(
        (&b["reason"], &b["tier"], &b["attempts"], &b["deployments"]),
        (&json!("enabled: false in the configuration"), &json!(1), &json!(0), &json!([]))
    );
    let members = status["pools"][0]["tiers"][0]["members"].as_array().unwrap();
    assert_eq!(
        members.iter().map(|member| member["backend"].as_str().unwrap()).collect::<Vec<_>>(),
        ["a", "c"]
    );
    let metrics = metrics(&balancer).await;
    assert!(
        metrics.contains(r#"aoai_lb_backend_state{backend="b",deployment="",state="disabled"} 1"#),
        "{metrics}"
    );
    assert_eq!(metrics.matches(r#"backend_state{backend="b""#).count(), 1);
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    command.args(["status", "--admin", &format!("http://{}", balancer.admin_address)]);
    let table = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(table.lines().any(|line| line.starts_with("b ") && line.contains(" disabled ")), "{table}");

    let target = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21";
    let (code, text) = run_command(&balancer, &["explain", "POST", target]).await;
    assert!(code == Some(0) && text.contains("b: disabled (enabled: false)"), "{text}");
    assert!(text.contains("2.        c:") && !text.contains("3. "), "{text}");
    let (code, text) = run_command(&balancer, &["explain", "POST", "/openai/v1/files"]).await;
    assert!(code == Some(0) && !text.contains("b: disabled"), "it serves no part of this: {text}");
    let (code, text) = run_command(&balancer, &["check", "--live"]).await;
    assert!(code == Some(0) && text.contains("----  b: disabled, not checked"), "{text}");
    assert_eq!(azure.accepted_connection_count("b"), 0);
}

#[tokio::test]
async fn a_reload_disables_a_backend_without_a_failed_request_and_enables_it_again() {
    let azure = start_simulator(&["a", "b"]).await;
    azure.set_mood("b", Mood::SlowFirstByte(Duration::from_millis(800)));
    let entries = simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS)
        + &simulated_backend_yaml(&azure, "b", &format!("{LISTED_DEPLOYMENTS}\nenabled: true"));
    let balancer = Balancer::start(&entries, "balance: round_robin").await;
    assert_eq!(answering_backend(&balancer.post_chat().await), "a");
    let mut waiting_client = balancer.connect().await;
    waiting_client.send_chat(CHAT_BODY).await;
    wait_until("the request reaches b", || azure.request_count("b") == 1).await;
    balancer.replace_in_config("enabled: true", "enabled: false");
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    let status = balancer.status().await;
    assert_eq!(
        (&status["backends"][1]["state"], &status["backends"][1]["in_flight"]),
        (&json!("disabled"), &json!(1))
    );
    for _ in 0..4 {
        assert_eq!(answering_backend(&balancer.post_chat().await), "a");
    }
    // It can be drained meanwhile, so that it does not come back at once.
    assert_eq!(balancer.post_admin("/api/backends/b/drain").await.json()["in_flight"], 1);
    assert_eq!(answering_backend(&waiting_client.read_response().await), "b");
    balancer.replace_in_config("enabled: false", "enabled: true");
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    assert_eq!(balancer.status().await["backends"][1]["state"], "drained");
    balancer.post_admin("/api/backends/b/undrain").await;
    azure.set_mood("b", Mood::Calm);
    let answering =
        [answering_backend(&balancer.post_chat().await), answering_backend(&balancer.post_chat().await)];
    assert!(answering.contains(&"b".to_owned()), "{answering:?}");
}

#[tokio::test]
async fn calls_without_a_deployment_are_refused_while_the_default_backend_is_disabled() {
    let azure = start_simulator(&["a", "b"]).await;
    let entries = simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS)
        + &simulated_backend_yaml(&azure, "b", &format!("{LISTED_DEPLOYMENTS}\nenabled: false"));
    let balancer = Balancer::start(&entries, "requests: { home: b }").await;
    assert_eq!(answering_backend(&balancer.post_chat().await), "a");
    for (method, target, code) in [
        ("GET", "/openai/v1/files", "no_backend"),
        ("POST", "/openai/v1/batches", "no_backend"),
        // The other resource does not have it; the disabled one may.
        ("GET", "/openai/v1/responses/resp_1", "home_unavailable"),
    ] {
        let body = (method == "POST").then_some(b"{}".as_slice());
        let mut client = balancer.connect().await;
        let response = client.request(method, target, &[("api-key", CLIENT_KEY)], body).await;
        assert_eq!((response.status, response.error_code().as_str()), (503, code), "{target}");
        assert!(
            response.text().contains("is disabled in the balancer's configuration"),
            "{}",
            response.text()
        );
    }
    let records = balancer.wait_for_records(4).await;
    assert!(
        records[1..3]
            .iter()
            .all(|record| record["refusal"] == "no_backend" && record["attempts"] == json!([]))
    );
    let (code, text) = run_command(&balancer, &["check"]).await;
    assert!(
        code == Some(0) && text.contains("warning: requests.home: is disabled (enabled: false)"),
        "{text}"
    );
    let (_, text) = run_command(&balancer, &["explain", "GET", "/openai/v1/files"]).await;
    assert!(text.contains("503 no_backend: the default backend (requests.home) is disabled"), "{text}");
}

#[tokio::test]
async fn check_refuses_a_file_without_an_enabled_backend_and_warns_of_deployments_without_one() {
    let azure = start_simulator(&["a", "b"]).await;
    let entries = simulated_backend_yaml(&azure, "a", "deployments: { gpt-4o: gpt-4o }")
        + &simulated_backend_yaml(&azure, "b", "deployments: { other: other }\nenabled: false");
    let balancer = Balancer::start(&entries, "").await;
    let (code, text) = run_command(&balancer, &["check"]).await;
    assert!(
        code == Some(0)
            && text.contains("warning: backends: deployment other is served by disabled backends only"),
        "{text}"
    );
    let target = "/openai/deployments/other/chat/completions?api-version=2024-10-21";
    let response = balancer.post(target, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
    assert_eq!((response.status, response.error_code().as_str()), (404, "DeploymentNotFound"));
    balancer.replace_in_config("name: a\n", "name: a\n    enabled: false\n");
    let (code, text) = run_command(&balancer, &["check"]).await;
    assert!(
        code == Some(1)
            && text.contains("backends: are all disabled (enabled: false); at least one must be enabled"),
        "{text}"
    );
    assert_eq!(balancer.post_admin("/api/reload").await.status, 400);
    assert_eq!(balancer.post_chat().await.status, 200, "the previous configuration stays active");
}
