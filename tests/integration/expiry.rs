//! The status and the metrics tell when certificates and credentials expire, as far as that is known.

use crate::support;

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use support::h2::Http2Connection;
use support::identity::{
    APP_SECRET, AuthenticatedResource, CLIENT_ID, IdentityPlatform, ServiceBehaviour, TENANT_ID,
    application_certificate,
};
use support::ingestion::{IngestionBehaviour, LogIngestionService};
use support::tls::{
    generate_authority, generate_key, issue_certificate_for_seconds, write_certificate_and_key,
};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, Client, all_backends_yaml, start_simulator, wait_until_async,
};

const DAY: i64 = 86_400;

/// The value of a sample in the metrics, if there is one.
async fn sample(balancer: &Balancer, name: &str) -> Option<i64> {
    let mut admin = Client::connect(balancer.admin_address).await;
    let text = admin.get("/metrics", &[("Host", "localhost")]).await.text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(value.parse().unwrap())
}

async fn status_table(balancer: &Balancer) -> String {
    let url = format!("http://{}", balancer.admin_address);
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    let output = command.args(["status", "--admin", &url]).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn seconds_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_of_a_listener_has_an_expiry_that_follows_its_file() {
    let (azure, authority) = (start_simulator(&["a"]).await, generate_authority());
    let balancer = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), "").await;
    let file = balancer.path("cert.pem");
    let name = format!("aoai_lb_certificate_expiry_timestamp_seconds{{certificate=\"{}\"}}", file.display());
    let status = balancer.status().await;
    let certificate = &status["certificates"][0];
    assert_eq!(certificate["certificate"], file.display().to_string());
    assert_eq!(certificate["used_by"], json!([format!("listener {}", balancer.address)]));
    let left = certificate["expires_in_seconds"].as_i64().unwrap();
    assert!((DAY - 3600..=DAY).contains(&left), "{certificate}");
    let timestamp = sample(&balancer, &name).await.unwrap();
    assert!((timestamp - seconds_now() - left).abs() < 3600, "{timestamp}");
    assert_eq!((&status["certificates"].as_array().unwrap().len(), &status["credentials"]), (&1, &json!([])));

    let table = status_table(&balancer).await;
    assert!(table.contains("EXPIRES ") && table.contains(&file.display().to_string()), "{table}");

    write_certificate_and_key(balancer.path("").as_path(), &authority, 40);
    let days_left = |status: &Value| status["certificates"][0]["expires_in_seconds"].as_i64().unwrap() / DAY;
    balancer.wait_for_status("the new certificate is known", |status| days_left(status) == 39).await;
    assert!(sample(&balancer, &name).await.unwrap() > timestamp + 38 * DAY);
    let table = status_table(&balancer).await;
    assert!(!table.contains("EXPIRES"), "more than 30 days are no worry: {table}");

    write_certificate_and_key(balancer.path("").as_path(), &authority, 20);
    balancer.wait_for_status("the next certificate is known", |status| days_left(status) == 19).await;
    let table = status_table(&balancer).await;
    assert!(table.contains("19 days") && table.contains("cert.pem of listener 127.0.0.1:"), "{table}");

    // An expired certificate is not taken into use: what is told is the one that clients get.
    write_certificate_and_key(balancer.path("").as_path(), &authority, -1);
    balancer.wait_for_log("the old certificates stay in use").await;
    assert_eq!(days_left(&balancer.status().await), 19);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_whose_end_is_known_are_listed_with_the_first_first() {
    let platform = IdentityPlatform::start().await;
    platform.set_secret("west-key", "a-key");
    platform.set_secret_expiry_date("west-key", (seconds_now() + 100 * DAY).try_into().unwrap());
    platform.set_secret("east-key", "another-key");
    platform.set_token_lifetime(2);
    let resource = AuthenticatedResource::start(&["a-key", "another-key"], Some(&platform)).await;
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = application_certificate();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("app.pem"), certificate.to_pem().unwrap()).unwrap();
    std::fs::write(path("app.key"), key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    let application = format!(
        "entra: {{ certificate: {{ tenant: {TENANT_ID}, client_id: {CLIENT_ID}, certificate: {}, private_key: {} }}, authority: 'http://{}' }}",
        path("app.pem"),
        path("app.key"),
        platform.address
    );
    let vault = |name: &str| format!("key_vault: '{}'", platform.secret_url(name));
    let entries = [
        ("west", vault("west-key")),
        ("east", vault("east-key")),
        ("file", "api_key: a-key".to_owned()),
        ("app", application),
        ("machine", "entra: { managed_identity: {} }".to_owned()),
    ];
    let entries: String =
        entries.iter().map(|(name, credential)| resource.backend_yaml(name, credential)).collect();
    let balancer = Balancer::start_with_environment(&platform.vm_environment(), &entries, "").await;
    let rows = |status: &Value| -> Vec<(String, String)> {
        let rows = status["credentials"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        rows.map(|row| (text(&row["backend"]), text(&row["part"]))).collect()
    };
    let row = |backend: &str, part: &str| (backend.to_owned(), part.to_owned());
    let known = [row("app", "client_certificate"), row("west", "key_vault_secret")];
    // On a busy machine, one may end a little before it is renewed.
    let status =
        balancer.wait_for_status("tokens that are renewed do not end", |status| rows(status) == known).await;
    for (index, days) in [(0, 1), (1, 100)] {
        let credential = &status["credentials"][index];
        let left = credential["expires_in_seconds"].as_i64().unwrap();
        assert!((days * DAY - 3600..=days * DAY).contains(&left), "{credential}");
        assert!(credential["renewal_error"].is_null(), "{credential}");
    }
    let name =
        |backend: &str| format!("aoai_lb_credential_expiry_timestamp_seconds{{backend=\"{backend}\"}}");
    let west = sample(&balancer, &name("west")).await.unwrap();
    assert!((west - seconds_now() - 100 * DAY).abs() < 3600, "{west}");
    assert_eq!(sample(&balancer, &name("machine")).await, None);
    assert_eq!(sample(&balancer, &name("file")).await, None);

    platform.set_token_behaviour(ServiceBehaviour::RespondsWith(
        400,
        r#"{"error":"invalid_client","error_description":"AADSTS7000222: the secret 'hunter2' is expired"}"#,
    ));
    let status = balancer
        .wait_for_status("tokens that cannot be renewed end", |status| {
            let found = rows(status);
            found.len() == 3
                && found.contains(&row("app", "token"))
                && found.contains(&row("machine", "token"))
                && found[2] == row("west", "key_vault_secret")
        })
        .await;
    let error = status["credentials"][0]["renewal_error"].as_str().unwrap();
    assert!(error.contains("AADSTS7000222") && !error.contains("hunter2"), "{error}");
    let machine = sample(&balancer, &name("machine")).await.unwrap();
    assert!((machine - seconds_now()).abs() < 3600, "{machine}");
    let table = status_table(&balancer).await;
    assert!(table.contains("the credential of machine cannot be renewed: "), "{table}");

    platform.set_token_behaviour(ServiceBehaviour::Normal);
    wait_until_async("the tokens are renewed", async || rows(&balancer.status().await) == known).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_is_not_healthy_once_something_has_ended_or_cannot_be_renewed() {
    let (platform, ingestion) = (IdentityPlatform::start().await, LogIngestionService::start().await);
    platform.set_secret("west-key", "a-key");
    platform.set_secret_expiry_date("west-key", (seconds_now() + 100 * DAY).try_into().unwrap());
    platform.set_token_lifetime(2);
    let resource = AuthenticatedResource::start(&["a-key"], Some(&platform)).await;
    let application = format!(
        "entra: {{ client_secret: {{ tenant: {TENANT_ID}, client_id: {CLIENT_ID}, secret: '{APP_SECRET}' }}, authority: 'http://{}' }}",
        platform.address
    );
    let vault = format!("key_vault: '{}'", platform.secret_url("west-key"));
    let backends = resource.backend_yaml("west", &vault) + &resource.backend_yaml("app", &application);
    let blocks = format!(
        "key_vault: {{ credential: {{ {application} }}, refresh: 1s }}\n\
         record: {{ jsonl: {{ path: records.jsonl }}, {} }}",
        ingestion.log_analytics_yaml()
    );
    let authority = generate_authority();
    let balancer = Balancer::start_with_tls(&authority, &backends, &blocks).await;
    let problem = async |subject: &str, text: &str| {
        balancer
            .wait_for_status(&format!("{subject}: {text}"), |status| {
                let problems = status["service"]["problems"].as_array().unwrap();
                problems.iter().any(|problem| {
                    let has =
                        |key: &str, expected: &str| problem[key].as_str().unwrap().starts_with(expected);
                    problem["state"] == "degraded" && has("subject", subject) && has("text", text)
                })
            })
            .await;
    };
    let no_problem = async || {
        let is_calm = |status: &Value| status["service"]["problems"] == json!([]);
        balancer.wait_for_status("there is no problem", is_calm).await;
    };
    no_problem().await;
    let vault_date = |seconds: i64| {
        platform.set_secret_expiry_date("west-key", (seconds_now() + seconds).try_into().unwrap());
    };
    vault_date(-60);
    problem("west", "its credential has expired: key vault secret").await;
    vault_date(DAY);
    no_problem().await;
    platform.set_token_behaviour(ServiceBehaviour::RespondsWith(400, r#"{"error":"invalid_client"}"#));
    problem("app", "its credential cannot be renewed: ").await;
    platform.set_token_behaviour(ServiceBehaviour::Normal);
    no_problem().await;
    ingestion.set_behaviour(IngestionBehaviour::RespondsWith(503, None));
    let connection = Http2Connection::connect(balancer.address, &authority).await;
    assert_eq!(connection.post(CHAT_TARGET, CHAT_BODY.as_bytes()).await.status, 200);
    problem("log_analytics", "records are not delivered: ").await;
    ingestion.set_behaviour(IngestionBehaviour::Normal);
    no_problem().await;
    // A certificate that ends while it is in use.
    let key = generate_key();
    let certificate = issue_certificate_for_seconds("balancer.test", (-60, 8), &key, Some(&authority));
    std::fs::write(balancer.path("cert.pem"), certificate.to_pem().unwrap()).unwrap();
    std::fs::write(balancer.path("key.pem"), key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    let file = balancer.path("cert.pem").display().to_string();
    problem(&file, "the certificate has expired; used by listener 127.0.0.1:").await;
}
