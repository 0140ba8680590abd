//! The commands `explain` and `check --live`: how a request would be routed, and what is wrong with each
//! backend.

use crate::support;

use std::process::{Command, Output};

use aoai_lb::demo::Mood;
use aoai_lb::routing::homes::{HashKey, Homes};
use aoai_lb::state::homes_log::{HomeEntry, HomeRecord, encode, header};
use support::tls::{generate_authority, generate_key, issue_certificate, start_tls_proxy};
use support::{CLIENT_KEY, backend_yaml, clients_yaml, free_port, sha256_hex, simulated_backend_yaml};

fn run_with_config(arguments: &[&str], file: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("aoai-lb.yaml");
    std::fs::write(&path, file).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    command.arg(arguments[0]).arg("-c").arg(&path).args(&arguments[1..]);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
    (status.code(), text)
}

const CONFIG_YAML: &str = "
listeners: [ { address: 127.0.0.1:8080 } ]
backends:
  - name: ptu
    endpoint: https://ptu.openai.azure.com
    tier: 1
    credential: { api_key: hush-1 }
    deployments: { gpt-4o: gpt-4o-ptu }
  - name: west
    endpoint: https://west.openai.azure.com
    tier: 2
    weight: 2
    credential: { entra: { managed_identity: {} } }
    api_version: 2024-06-01
    deployments: { gpt-4o: gpt-4o }
requests: { home: west, set_headers: { x-tenant: contoso } }
retry: { statuses: [429, 500-599] }
";

#[test]
fn explain_shows_how_a_request_would_be_routed() {
    let clients_block = format!(
        "clients:\n  - name: team-a\n    keys: [ {{ sha256: {} }} ]\n    deployments: [gpt-4o]\n\
         \x20 - name: all\n    keys: [ {{ sha256: {} }} ]\n",
        sha256_hex(CLIENT_KEY),
        sha256_hex("other")
    );
    let file = format!("{CONFIG_YAML}{clients_block}");
    let classic = "/openai/deployments/GPT-4o/chat/completions?api-version=2024-10-21";
    let (code, text) =
        run_with_config(&["explain", "post", classic, "--client", "team-a", "--verbose"], &file);
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "client      team-a",
        "(classic, chat)",
        "1.        ptu: tier 1, weight 1",
        "POST ptu.openai.azure.com/openai/deployments/gpt-4o-ptu/chat/completions?api-version=2024-10-21",
        "2.        west: tier 2, weight 2",
        "POST west.openai.azure.com/openai/deployments/gpt-4o/chat/completions?api-version=2024-06-01",
        "x-tenant: (from requests.set_headers)",
        "api-key: (the backend's own)",
        "authorization: (the backend's own)",
        "408       timeout: relayed",
        "429       too many requests: the next backend",
        "400       content filter: relayed",
        "404       deployment not found: the next backend; if the balancer's own request confirms it, the deployment is unavailable there",
    ] {
        assert!(text.contains(part), "expected {part:?} in:\n{text}");
    }
    assert!(!text.contains("hush-1") && !text.contains("contoso"), "{text}");
    let (_, text) = run_with_config(&["explain", "post", classic, "--client", "team-a"], &file);
    assert!(text.contains("1.        ptu") && !text.contains("content filter"), "{text}");
    let (_, text) = run_with_config(&["explain", "POST", "/openai/v1/responses", "--model", "gpt-4o"], &file);
    assert!(
        text.contains("in the body: \"gpt-4o-ptu\"") && text.contains("assumed to have access to everything"),
        "{text}"
    );
    let (_, text) = run_with_config(&["explain", "GET", "/openai/v1/responses/resp_1"], &file);
    assert!(
        text.contains("affinity    the resources are asked in the order below until one has it")
            && text.contains("  1.        west\n")
            && text.contains("  2.        ptu\n"),
        "{text}"
    );
    let (_, text) = run_with_config(&["explain", "POST", "/openai/v1/files"], &file);
    assert!(text.contains("not retried once a byte was sent"), "{text}");
    for (path, client, expected) in [
        ("/v1/models", "team-a", "response    200: the deployments that the client may use: gpt-4o\n"),
        ("/v1/models/GPT-4O", "all", "response    200: the deployments that the client may use: gpt-4o\n"),
        ("/v1/models/gpt-5", "all", "response    404 DeploymentNotFound: "),
    ] {
        let (code, text) = run_with_config(&["explain", "GET", path, "--client", client], &file);
        assert!(code == Some(0) && text.contains(expected), "{text}");
        assert!(
            text.contains("path        /openai/v1/models")
                && text.contains("no request is sent to a backend")
        );
    }
    let (_, text) = run_with_config(&["explain", "POST", "/openai/v1/responses"], &file);
    assert!(
        text.contains("affinity    none: the call goes to the default backend (requests.home)")
            && text.contains("1.        west")
            && !text.contains("2.        "),
        "{text}"
    );
    let refusals: [(&[&str], &str); 6] = [
        (
            &["POST", "/openai/v1/responses", "--model", "gpt-5", "--client", "team-a"],
            "403 deployment_not_allowed",
        ),
        (&["POST", "/openai/v1/responses", "--model", "gpt-5"], "404 DeploymentNotFound"),
        (
            &["GET", "/openai/files?api-version=2024-10-21", "--client", "team-a"],
            "403 deployment_not_allowed",
        ),
        (&["GET", "/admin"], "404 path_not_allowed"),
        (&["OPTIONS", "/openai/v1/responses"], "405 method_not_allowed"),
        (&["GET", "/openai/../x"], "400 bad_request"),
    ];
    for (arguments, expected) in refusals {
        let (code, text) = run_with_config(&[&["explain"], arguments].concat(), &file);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains(&format!("response    {expected}")), "{expected}\n{text}");
        assert!(text.contains("no request is sent to a backend"), "{text}");
    }
    let (code, text) = run_with_config(&["explain", "GET", "/", "--client", "nobody"], &file);
    assert!(
        code == Some(1) && text.contains("there is no client nobody; the clients are team-a, all"),
        "{text}"
    );
}

#[test]
fn explain_shows_where_the_turns_of_a_websocket_and_a_realtime_session_go() {
    let file = format!("{CONFIG_YAML}clients: open\n");
    let explain = |arguments: &[&str]| run_with_config(&[&["explain", "get"], arguments].concat(), &file);
    let routed = "websocket   answered by the balancer (101); each of its turns is routed like POST /openai/v1/responses";
    let (code, text) = explain(&["/v1/responses", "--model", "gpt-4o", "--refers-to", "resp_1"]);
    assert_eq!(code, Some(0), "{text}");
    for part in [
        routed,
        "deployment  gpt-4o",
        "resp_1 (previous response)",
        "1.        ptu: tier 1, weight 1",
        "GET ptu.openai.azure.com/openai/v1/responses\n",
        "in the message: \"gpt-4o-ptu\"",
        "2.        west: tier 2, weight 2",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let (code, text) = explain(&["/v1/responses"]);
    assert_eq!(code, Some(0), "{text}");
    for part in [routed, "--model NAME shows where it goes", "no request is sent to a backend"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    // A stored response is read by an ordinary GET.
    let (_, text) = explain(&["/v1/responses/{id}", "--refers-to", "resp_1"]);
    assert!(!text.contains("websocket"), "{text}");
    let (code, text) = explain(&["/openai/v1/realtime?model=gpt-4o"]);
    assert_eq!(code, Some(0), "{text}");
    for part in ["deployment  gpt-4o\n", "GET ptu.openai.azure.com/openai/v1/realtime?model=gpt-4o-ptu\n"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn explain_says_where_a_request_about_an_object_would_go() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("aoai-lb.yaml");
    let file = format!("{CONFIG_YAML}clients: open\nserver: {{ state_directory: state }}\n");
    std::fs::write(&path, file).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
        let output = command.arg("explain").arg("-c").arg(&path).args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    };
    let log = directory.path().join("state/homes.log");
    let no_log = format!("not remembered in {}, which does not exist", log.display());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as u32;
    let id_of_age = |age: u32| format!("resp_0992cccae6a7c96700{:08x}b6b0", now - age);
    let post = ["POST", "/openai/v1/responses", "--model", "gpt-4o", "--refers-to"];
    for (arguments, id, expected) in [
        (
            &post[..],
            "resp_1",
            "its id does not tell when it was made: if all say no, they are asked again after 2s (",
        ),
        (
            &post,
            &id_of_age(5),
            "by its id it was made 5s ago: if all say no, they are asked again after 2s and then after 8s (",
        ),
        (
            &post,
            &id_of_age(300),
            "by its id it was made 5m 0s ago: if all say no, the client gets the first answer",
        ),
        (
            &post,
            "file-1",
            "such an object can be read as soon as it is made: if all say no, the client gets the first answer",
        ),
        (&["GET", "/openai/v1/files/{id}", "--refers-to"], "file-1", "GET /openai/v1/files/file-1\n"),
        (&["GET", "/openai/v1/files/file-1", "--refers-to"], "file-1", "refers to   file-1 (file): "),
    ] {
        let (code, text) = run(&[arguments, &[id]].concat());
        // The age is that of the moment of the command.
        let text = text.replace("made 6s ago", "made 5s ago").replace("made 5m 1s ago", "made 5m 0s ago");
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains(&no_log) && text.contains(expected), "expected {expected:?} in:\n{text}");
        assert_eq!(text.matches("refers to ").count(), 1, "{text}");
        assert!(text.contains("  1.  ") && text.contains("  2.  "), "{text}");
    }
    for (arguments, expected) in [
        (
            ["GET", "/openai/v1/files", "--refers-to", "file-1"],
            "--refers-to: GET has no body: write {id} where",
        ),
        (
            ["POST", "/openai/v1/responses", "--refers-to", "batch_1"],
            "--refers-to: an object like batch_1 is named by the path",
        ),
    ] {
        let (code, text) = run(&arguments);
        assert!(code == Some(1) && text.contains(expected), "{text}");
    }

    // What a process has written there, with two objects of different resources.
    std::fs::create_dir(directory.path().join("state")).unwrap();
    let homes = Homes::with_hash_key(1 << 20, HashKey::from_bytes([7; 16]));
    let mut bytes = header([7; 16]).to_vec();
    for (id, resource, made_at) in [
        ("resp_west", "west.openai.azure.com:443", now - 10),
        ("file-ptu", "ptu.openai.azure.com:443", 0),
        ("file-gone", "gone.openai.azure.com:443", 0),
    ] {
        encode(
            HomeRecord::Stored(HomeEntry {
                key: homes.key_of(id.as_bytes()).hash(),
                resource: homes.resource_tag(resource).hash(),
                maker: 0,
                made_at,
                used_at: now,
                lags: made_at != 0,
            }),
            &mut bytes,
        );
    }
    std::fs::write(&log, bytes).unwrap();
    let (_, text) = run(&[&post[..], &["resp_west"]].concat());
    for part in [
        "refers to   resp_west (previous response): on the resource west.openai.azure.com:443 (backends: west), made 1",
        &format!("s ago, as {} tells", log.display()),
        "affinity    only backends of west.openai.azure.com:443 get the request",
        "if the resource does not have it yet, it is asked again for ",
        "  1.        west: tier 2",
    ] {
        assert!(text.contains(part), "expected {part:?} in:\n{text}");
    }
    assert!(!text.contains("  2.  "), "{text}");
    let (_, text) = run(&["GET", "/openai/v1/files/{id}", "--refers-to", "file-ptu"]);
    assert!(
        text.contains("(backends: ptu), as ") && text.contains("  1.        ptu") && !text.contains("  2.  "),
        "{text}"
    );
    let (_, text) = run(&["GET", "/openai/v1/files/{id}", "--refers-to", "file-gone"]);
    assert!(
        text.contains("on a resource that is not in this configuration") && text.contains("  2.  "),
        "{text}"
    );
    std::fs::write(&log, "not a log").unwrap();
    let (code, text) = run(&[&post[..], &["resp_west"]].concat());
    let unreadable = "homes.log, which cannot be read: it does not begin as a log of homes does";
    assert!(code == Some(0) && text.contains(unreadable) && text.contains("  2.  "), "{text}");
}

#[test]
fn explain_needs_no_secret_and_shows_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("aoai-lb.yaml");
    let text = "
listeners: [ { address: 127.0.0.1:8080, tls: { certificate: none.pem, private_key: none.key, client_ca: none.pem } } ]
backends:
  - name: ptu
    endpoint: https://ptu.openai.azure.com
    credential: { api_key: '${NOT_SET_PTU}' }
    tls: { ca: none.pem }
  - name: west
    endpoint: https://west.openai.azure.com
    credential: { entra: { client_secret: { tenant: t, client_id: c, secret: '${file:none}' } } }
requests: { set_headers: { x-tenant: '${NOT_SET_TENANT}' } }
admin: { address: 127.0.0.1:1, token: '${NOT_SET_TOKEN}' }
clients:
  - { name: team-a, keys: [ { sha256: '${NOT_SET_A}' }, { sha256: '${NOT_SET_B}' } ] }
  - { name: team-b, keys: [ { sha256: '${NOT_SET_B}' } ] }
";
    std::fs::write(&path, text).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
        let output = command.arg(arguments[0]).arg("-c").arg(&path).args(&arguments[1..]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text.into_owned())
    };
    assert_eq!(run(&["check"]).0, Some(1));
    let target =
        "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21&api-key=hunter2&code=hunter2";
    let (code, output) = run(&["explain", "POST", target, "--client", "team-b"]);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("1.        ptu") && output.contains("2.        west"), "{output}");
    assert!(!output.contains("hunter2") && !output.contains("secret-not-read"), "{output}");
    // What is not a secret has to be there.
    std::fs::write(&path, text.replace("https://west", "https://${NOT_SET_HOST}")).unwrap();
    let (code, output) = run(&["explain", "POST", target]);
    assert!(code == Some(1) && output.contains("${NOT_SET_HOST} is not set"), "{output}");
    assert_eq!(output.lines().count(), 2, "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_live_reports_the_problem_of_each_backend() {
    let azure = support::start_simulator(&["healthy", "wrong-key", "failing"]).await;
    azure.set_mood("failing", Mood::Refuses(aoai_lb::demo::SimulatedError::Unavailable));
    let own_key = generate_key();
    let own_certificate = issue_certificate("other.test", (-1, 1), &own_key, Some(&generate_authority()));
    let (tls_address, _) = start_tls_proxy(azure.address("healthy"), &own_certificate, &own_key).await;
    let port = free_port();
    let mapped_deployments = "deployments: { chat: gpt-4o, lost: no-such-deployment }";
    let healthy = simulated_backend_yaml(&azure, "healthy", mapped_deployments);
    let unauthorized = simulated_backend_yaml(&azure, "wrong-key", "").replace("wrong-key-key", "wrong");
    let backends = [
        healthy.clone(),
        unauthorized,
        simulated_backend_yaml(&azure, "failing", ""),
        backend_yaml("nowhere", "http://nowhere.invalid:80", ""),
        backend_yaml("closed", &format!("http://127.0.0.1:{port}"), ""),
        backend_yaml("unknown", &format!("https://127.0.0.1:{}", tls_address.port()), ""),
    ];
    let clients_block = clients_yaml();
    let config_yaml = |backends: &str| {
        format!("listeners: [ {{ address: 127.0.0.1:1 }} ]\nbackends:\n{backends}{clients_block}")
    };
    let (code, text) = run_with_config(&["check", "--live"], &config_yaml(&backends.concat()));
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "good  healthy  name: 127.0.0.1 resolves to 127.0.0.1",
        "good  healthy  credential: accepted (200)",
        "good  healthy  deployment chat (gpt-4o): exists",
        "BAD   healthy  deployment lost (no-such-deployment): the resource does not have it (404 DeploymentNotFound)",
        "BAD   wrong-key  credential: refused (401)",
        "BAD   failing  credential: the backend answers 503",
        "BAD   nowhere  name: nowhere.invalid does not resolve",
        "BAD   closed  connection: cannot connect to 127.0.0.1:",
        "BAD   unknown  connection: the certificate for 127.0.0.1 is not trusted by the system's certificate authorities: ",
        "some checks failed",
    ] {
        assert!(text.contains(part), "expected {part:?} in:\n{text}");
    }
    let (code, text) = run_with_config(
        &["check", "--live"],
        &config_yaml(&healthy.replace(", lost: no-such-deployment", "")),
    );
    assert!(code == Some(0) && text.contains("aoai-lb.yaml: good"), "{text}");
    assert!(
        azure.received_requests("healthy").iter().all(|request| request.body_len <= 2),
        "expected no request that is billed"
    );
}

#[test]
fn explain_shows_the_order_of_the_backends_for_the_key_of_a_prompt() {
    let backend = |name: &str, tier: u16| {
        backend_yaml(
            name,
            &format!("https://{name}.openai.azure.com"),
            &format!("tier: {tier}\ndeployments: {{ gpt-4o: gpt-4o, o3: o3 }}"),
        )
    };
    let backends: String = ["a", "b", "c"].map(|name| backend(name, 1)).concat() + &backend("last", 2);
    let listeners = "listeners: [ { address: 127.0.0.1:8080 } ]\nclients: open\n";
    let file = format!("{listeners}pools: {{ gpt-4o: {{ balance: prompt_cache }} }}\nbackends:\n{backends}");
    let explain = |model: &str, more: &[&str]| {
        let arguments = [&["explain", "POST", "/openai/v1/responses", "--model", model], more].concat();
        let (code, text) = run_with_config(&arguments, &file);
        assert_eq!(code, Some(0), "{text}");
        text
    };
    let mut firsts = std::collections::HashSet::new();
    for key in ["one", "two", "three", "four", "five", "six"] {
        let text = explain("gpt-4o", &["--cache-key", key]);
        let (_, order) = text.split_once(" has the order ").unwrap_or_else(|| panic!("no order in:\n{text}"));
        let order: Vec<&str> = order.lines().next().unwrap().split(", ").collect();
        assert_eq!((order.len(), order[3]), (4, "last"), "{text}");
        let place = |name: &&str| text.find(&format!("{name}: tier")).unwrap();
        assert!(order.is_sorted_by_key(place), "the attempts have the same order:\n{text}");
        firsts.insert(order[0].to_owned());
    }
    assert!(firsts.len() > 1, "each key has an order of its own");
    let text = explain("gpt-4o", &[]);
    for part in [
        "(balance: prompt_cache)",
        "prompt_cache_key in the body, else the header x-session-id",
        "that of \"example\" is ",
    ] {
        assert!(text.contains(part), "expected {part:?} in:\n{text}");
    }
    let text = explain("o3", &["--cache-key", "one"]);
    assert!(text.contains("--cache-key has no effect") && text.contains("(balance: headroom)"), "{text}");
}
