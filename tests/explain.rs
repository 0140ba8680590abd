//! What an operator can ask before anything is served: what would happen to a request, and whether
//! the backends are there.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::process::{Command, Output};

use aoai_lb::demo::Mood;
use support::tls::{authority, certificate, key, terminate};
use support::{KEY, backend, clients, entry, free_port, sha256};

fn aoai_lb(arguments: &[&str], file: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("aoai-lb.yaml");
    std::fs::write(&path, file).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    command.arg(arguments[0]).arg("-c").arg(&path).args(&arguments[1..]);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
    (status.code(), text)
}

const FILE: &str = "
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
fn a_request_is_explained_by_the_rules_that_route_it() {
    let team = format!(
        "clients:\n  - name: team-a\n    keys: [ {{ sha256: {} }} ]\n    deployments: [gpt-4o]\n\
         \x20 - name: all\n    keys: [ {{ sha256: {} }} ]\n",
        sha256(KEY),
        sha256("other")
    );
    let file = format!("{FILE}{team}");
    let classic = "/openai/deployments/GPT-4o/chat/completions?api-version=2024-10-21";
    let (code, text) = aoai_lb(&["explain", "post", classic, "--client", "team-a"], &file);
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "client      team-a",
        "(classic, chat)",
        "1.        ptu: tier 1, weight 1",
        "POST ptu.openai.azure.com/openai/deployments/gpt-4o-ptu/chat/completions?api-version=2024-10-21",
        "2.        west: tier 2, weight 2",
        "POST west.openai.azure.com/openai/deployments/gpt-4o/chat/completions?api-version=2024-06-01",
        "x-tenant: contoso",
        "api-key: (the backend's own)",
        "authorization: (the backend's own)",
        "408       it took too long: relayed",
        "429       too many requests: the next backend",
        "400       the content filter's verdict: relayed",
        "404       the deployment is missing: the next backend; the deployment rests there",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(!text.contains("hush-1"), "{text}");
    let (_, text) = aoai_lb(&["explain", "POST", "/openai/v1/responses", "--model", "gpt-4o"], &file);
    assert!(
        text.contains("in the body: \"gpt-4o-ptu\"") && text.contains("as one that may use everything"),
        "{text}"
    );
    let (_, text) = aoai_lb(&["explain", "GET", "/openai/v1/responses/resp_1"], &file);
    assert!(text.contains("goes to requests.home") && text.contains("on 404 then each of: ptu"), "{text}");
    let (_, text) = aoai_lb(&["explain", "POST", "/openai/v1/files"], &file);
    assert!(text.contains("not repeated once a byte was sent"), "{text}");
    let refused: [(&[&str], &str); 7] = [
        (&["POST", "/openai/v1/responses"], "400 bad_request: the body must have `model`"),
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
    for (arguments, expected) in refused {
        let (code, text) = aoai_lb(&[&["explain"], arguments].concat(), &file);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains(&format!("answer      {expected}")), "{expected}\n{text}");
        assert!(text.contains("no backend is asked"), "{text}");
    }
    let (code, text) = aoai_lb(&["explain", "GET", "/", "--client", "nobody"], &file);
    assert!(code == Some(1) && text.contains("there is no client nobody; there are team-a, all"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_live_finds_what_is_wrong_with_each_backend() {
    let azure = support::azure(&["well", "stranger", "ill"]).await;
    azure.set_mood("ill", Mood::Refuses(aoai_lb::demo::Refusal::Unavailable));
    let own_key = key();
    let own = certificate("other.test", (-1, 1), &own_key, Some(&authority()));
    let (secure, _) = terminate(azure.address("well"), &own, &own_key).await;
    let port = free_port();
    let mapped = "deployments: { chat: gpt-4o, lost: no-such-deployment }";
    let well = backend(&azure, "well", mapped);
    let stranger = backend(&azure, "stranger", "").replace("stranger-key", "wrong");
    let backends = [
        well.clone(),
        stranger,
        backend(&azure, "ill", ""),
        entry("nowhere", "http://nowhere.invalid:80", ""),
        entry("closed", &format!("http://127.0.0.1:{port}"), ""),
        entry("unknown", &format!("https://127.0.0.1:{}", secure.port()), ""),
    ];
    let rest = clients();
    let file =
        |backends: &str| format!("listeners: [ {{ address: 127.0.0.1:1 }} ]\nbackends:\n{backends}{rest}");
    let (code, text) = aoai_lb(&["check", "--live"], &file(&backends.concat()));
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "good  well  name: 127.0.0.1 is 127.0.0.1",
        "good  well  credential: taken (200)",
        "good  well  deployment chat (gpt-4o): there",
        "BAD   well  deployment lost (no-such-deployment): the resource does not have it (404 DeploymentNotFound)",
        "BAD   stranger  credential: it is refused (401)",
        "BAD   ill  credential: it answers 503",
        "BAD   nowhere  name: nowhere.invalid does not resolve",
        "BAD   closed  connection: cannot connect to 127.0.0.1:",
        "BAD   unknown  connection: the certificate for 127.0.0.1 is not believed, by the system's authorities: ",
        "not all of it is good",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let (code, text) = aoai_lb(&["check", "--live"], &file(&well.replace(", lost: no-such-deployment", "")));
    assert!(code == Some(0) && text.contains("aoai-lb.yaml: good"), "{text}");
    assert!(azure.requests("well").iter().all(|seen| seen.body_len <= 2), "nothing that is billed");
}
