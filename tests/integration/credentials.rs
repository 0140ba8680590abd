//! Credentials for backends: tokens of every kind of identity and keys from a vault, renewed in the
//! background without failing a request.

use crate::support;

use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;
use support::identity::{
    APP_SECRET, AuthenticatedResource, CLIENT_ID, FEDERATED_TOKEN, IdentityPlatform, PLATFORM_HEADER_VALUE,
    ServiceBehaviour, TENANT_ID, application_certificate,
};
use support::{Balancer, answering_backend, wait_until, wait_until_async};

const MANAGED_IDENTITY: &str = "entra: { managed_identity: {} }";
const COGNITIVE_SERVICES: &str = "https://cognitiveservices.azure.com";

async fn chat_statuses(balancer: &Balancer, count: usize) -> Vec<u16> {
    join_all((0..count).map(|_| balancer.post_chat())).await.iter().map(|response| response.status).collect()
}

/// Writes the application's certificate, key and federated token into a directory.
fn write_application_credentials(directory: &Path) {
    let (certificate, key) = application_certificate();
    std::fs::write(directory.join("app.pem"), certificate.to_pem().unwrap()).unwrap();
    std::fs::write(directory.join("app.key"), key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    std::fs::write(directory.join("federated"), format!("{FEDERATED_TOKEN}\n")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_identity_gets_a_token() {
    let directory = tempfile::tempdir().unwrap();
    write_application_credentials(directory.path());
    let path = |name: &str| directory.path().join(name).display().to_string();
    let vm_variables = |platform: &IdentityPlatform| platform.vm_environment();
    let app_service_variables = |platform: &IdentityPlatform| {
        let address = platform.address;
        vec![
            ("IDENTITY_ENDPOINT", format!("http://{address}/msi/token")),
            ("IDENTITY_HEADER", PLATFORM_HEADER_VALUE.to_owned()),
        ]
    };
    let cluster_variables = |platform: &IdentityPlatform| {
        vec![
            ("AZURE_TENANT_ID", TENANT_ID.to_owned()),
            ("AZURE_CLIENT_ID", CLIENT_ID.to_owned()),
            ("AZURE_FEDERATED_TOKEN_FILE", path("federated")),
            ("AZURE_AUTHORITY_HOST", format!("http://{}/", platform.address)),
        ]
    };
    let no_variables = |_: &IdentityPlatform| Vec::new();
    type Environment<'a> = &'a dyn Fn(&IdentityPlatform) -> Vec<(&'static str, String)>;
    let ids = format!("tenant: {TENANT_ID}, client_id: {CLIENT_ID}");
    let files = format!("certificate: {}, private_key: {}", path("app.pem"), path("app.key"));
    let table: [(String, Environment<'_>, &str, &str); 8] = [
        ("managed_identity: {}".to_owned(), &vm_variables, "machine system", COGNITIVE_SERVICES),
        (
            format!("managed_identity: {{ client_id: {CLIENT_ID} }}"),
            &vm_variables,
            "machine user",
            COGNITIVE_SERVICES,
        ),
        (
            "managed_identity: {}, scope: https://ai.azure.com/.default".to_owned(),
            &vm_variables,
            "machine system",
            "https://ai.azure.com",
        ),
        ("managed_identity: {}".to_owned(), &app_service_variables, "app system", COGNITIVE_SERVICES),
        (
            format!("managed_identity: {{ client_id: {CLIENT_ID} }}"),
            &app_service_variables,
            "app user",
            COGNITIVE_SERVICES,
        ),
        (
            "workload_identity: {}".to_owned(),
            &cluster_variables,
            "federated",
            "https://cognitiveservices.azure.com/.default",
        ),
        (
            format!("client_secret: {{ {ids}, secret: '{APP_SECRET}' }}, authority: AUTHORITY"),
            &no_variables,
            "secret",
            "https://cognitiveservices.azure.com/.default",
        ),
        (
            format!("certificate: {{ {ids}, {files} }}, authority: AUTHORITY"),
            &no_variables,
            "certificate",
            "https://cognitiveservices.azure.com/.default",
        ),
    ];
    for (entra, environment, proof, scope) in table {
        let platform = IdentityPlatform::start().await;
        let resource = AuthenticatedResource::start(&[], Some(&platform)).await;
        let authority = format!("http://{}", platform.address);
        let entry =
            resource.backend_yaml("a", &format!("entra: {{ {} }}", entra.replace("AUTHORITY", &authority)));
        let balancer = Balancer::start_with_environment(&environment(&platform), &entry, "").await;
        let response = balancer.post_chat().await;
        assert_eq!(response.status, 200, "{entra}: {}\n{}", response.text(), balancer.log());
        assert_eq!(platform.token_requests(), [(proof.to_owned(), scope.to_owned())], "{entra}");
        let head = resource.upstream.requests()[0].head.to_ascii_lowercase();
        assert!(head.contains("authorization: bearer token-1") && !head.contains("api-key"), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_share_a_token_that_is_renewed_before_it_expires() {
    let platform = IdentityPlatform::start().await;
    platform.set_token_lifetime(2);
    let resources = [
        AuthenticatedResource::start(&[], Some(&platform)).await,
        AuthenticatedResource::start(&[], Some(&platform)).await,
    ];
    let entries =
        [resources[0].backend_yaml("a", MANAGED_IDENTITY), resources[1].backend_yaml("b", MANAGED_IDENTITY)]
            .concat();
    let balancer = Balancer::start_with_environment(&platform.vm_environment(), &entries, "").await;
    assert_eq!(platform.issued_tokens(), 1, "expected one token for both backends");
    let start = Instant::now();
    wait_until("the token has been renewed twice", || platform.issued_tokens() >= 3).await;
    assert!(start.elapsed() >= Duration::from_secs(2), "expected renewals not to come earlier than needed");
    assert_eq!(chat_statuses(&balancer, 4).await, [200; 4]);
    let requests = resources.iter().flat_map(|resource| resource.upstream.requests());
    assert!(
        requests.into_iter().all(|request| !request.head.contains("token-1\r")),
        "expected requests to use the renewed token"
    );
}

/// Starts a balancer that reaches this resource with the managed identity of its machine.
async fn start_on_vm(platform: &IdentityPlatform, resource: &AuthenticatedResource) -> Balancer {
    let entry = resource.backend_yaml("a", MANAGED_IDENTITY);
    Balancer::start_with_environment(&platform.vm_environment(), &entry, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_token_stays_in_use_while_it_cannot_be_renewed() {
    let platform = IdentityPlatform::start().await;
    platform.set_token_lifetime(2);
    let resource = AuthenticatedResource::start(&[], Some(&platform)).await;
    let balancer = start_on_vm(&platform, &resource).await;
    for behaviour in [
        ServiceBehaviour::RespondsWith(500, "oops"),
        ServiceBehaviour::RespondsWith(429, "{}"),
        ServiceBehaviour::InvalidResponse,
    ] {
        let log_length = balancer.log().len();
        platform.set_token_behaviour(behaviour.clone());
        let is_logged = || balancer.log()[log_length..].contains("the old one stays in use");
        wait_until("the log reports that the last one stays in use", is_logged).await;
        assert_eq!(chat_statuses(&balancer, 3).await, [200; 3], "{behaviour:?}");
        platform.set_token_behaviour(ServiceBehaviour::Normal);
        wait_until("the log reports that renewal works again", || {
            balancer.log()[log_length..].contains("fetched the ")
        })
        .await;
    }
    assert!(!balancer.log().contains("token-"), "{}", balancer.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_causes_one_renewal_and_fails_no_request() {
    let platform = IdentityPlatform::start().await;
    let resource = AuthenticatedResource::start(&[], Some(&platform)).await;
    let balancer = start_on_vm(&platform, &resource).await;
    assert_eq!(balancer.post_chat().await.status, 200);
    for round in 2..5 {
        // While the slow renewal runs, no request may fail.
        platform.set_token_behaviour(ServiceBehaviour::DelayedByTenths(3));
        platform.revoke_tokens();
        assert_eq!(chat_statuses(&balancer, 20).await, [200; 20], "{}", balancer.log());
        assert_eq!(
            platform.issued_tokens(),
            round,
            "expected one renewal, no matter how many requests were refused"
        );
    }
    let records = balancer.wait_for_records(61).await;
    let attempts = |record: &serde_json::Value| record["attempts"].as_array().unwrap().len();
    assert!(records.iter().any(|record| attempts(record) == 2));
    assert!(records.iter().all(|record| attempts(record) <= 2 && record["status"] == 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_always_rejected_is_renewed_only_once() {
    let platform = IdentityPlatform::start().await;
    let (rejecting, accepting) =
        (AuthenticatedResource::start(&[], None).await, AuthenticatedResource::start(&["good"], None).await);
    let entries =
        [rejecting.backend_yaml("closed", MANAGED_IDENTITY), accepting.backend_yaml("open", "api_key: good")]
            .concat();
    let balancer = Balancer::start_with_environment(&platform.vm_environment(), &entries, "").await;
    for _ in 0..6 {
        let response = balancer.post_chat().await;
        assert_eq!((response.status, answering_backend(&response).as_str()), (200, "open"));
    }
    wait_until("the token is renewed", || platform.issued_tokens() == 2).await;
    // The backend is tried again with the new token, and refuses that, too.
    wait_until_async("the backend is unavailable", async || {
        assert_eq!(answering_backend(&balancer.post_chat().await), "open");
        balancer.status().await["backends"][0]["state"] == "credential"
    })
    .await;
    let requests = rejecting.upstream.requests().len();
    for _ in 0..20 {
        assert_eq!(answering_backend(&balancer.post_chat().await), "open");
    }
    assert_eq!(
        (platform.issued_tokens(), rejecting.upstream.requests().len()),
        (2, requests),
        "{}",
        balancer.log()
    );
    let alone = Balancer::start_with_environment(
        &platform.vm_environment(),
        &rejecting.backend_yaml("closed", MANAGED_IDENTITY),
        "",
    )
    .await;
    let response = alone.post_chat().await;
    assert_eq!((response.status, response.error_code().as_str()), (503, "backend_misconfigured"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_key_from_the_file_fails_without_waiting_for_a_renewal() {
    let resource = AuthenticatedResource::start(&[], None).await;
    let balancer = Balancer::start(&resource.backend_yaml("a", "api_key: wrong"), "").await;
    let start = Instant::now();
    for _ in 0..5 {
        assert_eq!(balancer.post_chat().await.status, 503);
    }
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn rotating_a_key_in_the_vault_fails_no_request() {
    let platform = IdentityPlatform::start().await;
    platform.set_secret("west-key", "first-key");
    let resource = AuthenticatedResource::start(&["first-key"], None).await;
    let entry = resource.backend_yaml("west", &format!("key_vault: '{}'", platform.secret_url("west-key")));
    let balancer = Balancer::start_with_environment(&platform.vm_environment(), &entry, "").await;
    assert_eq!(
        platform.token_requests(),
        [("machine system".to_owned(), "https://vault.azure.net".to_owned())]
    );
    let (mut request_count, mut old_key) = (0, "first-key".to_owned());
    for round in 0..5 {
        let new_key = format!("key-{round}");
        // The usual order of a rotation: the new key goes into the vault, then the old one stops working.
        let load = async {
            let mut successful = 0;
            for _ in 0..10 {
                successful +=
                    chat_statuses(&balancer, 8).await.iter().filter(|status| **status == 200).count();
            }
            successful
        };
        let rotation = async {
            let received = resource.upstream.requests().len();
            wait_until("the load is running", || resource.upstream.requests().len() >= received + 16).await;
            platform.set_secret("west-key", &new_key);
            resource.accept_keys(&[&new_key]);
        };
        let (successful, ()) = tokio::join!(load, rotation);
        assert_eq!(successful, 80, "turn {round}:\n{}", balancer.log());
        request_count += 80;
        assert!(!balancer.log().contains(&old_key) && !balancer.log().contains(&new_key));
        old_key = new_key;
    }
    assert_eq!(platform.secret_reads(), 6, "expected one read at the start and one for each rotation");
    let records = balancer.wait_for_records(request_count).await;
    assert!(records.iter().all(|record| record["status"] == 200));
    let status = balancer.status().await;
    assert_eq!(status["backends"][0]["state"], "healthy", "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_from_the_vault_is_refreshed_at_the_configured_interval() {
    let platform = IdentityPlatform::start().await;
    platform.set_secret("west-key", "first-key");
    let resource = AuthenticatedResource::start(&["first-key", "second-key"], None).await;
    let entry = resource.backend_yaml("west", &format!("key_vault: '{}'", platform.secret_url("west-key")));
    let vault = "key_vault: { credential: { entra: { managed_identity: {} } }, refresh: 1s }";
    let balancer = Balancer::start_with_environment(&platform.vm_environment(), &entry, vault).await;
    assert_eq!(balancer.post_chat().await.status, 200);
    platform.set_secret("west-key", "second-key");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert_eq!(balancer.post_chat().await.status, 200);
        if resource.upstream.requests().pop().unwrap().head.contains("second-key") {
            break;
        }
        assert!(Instant::now() < deadline);
    }
    // While the vault fails, the last key stays in use.
    for behaviour in [
        ServiceBehaviour::RespondsWith(429, "{}"),
        ServiceBehaviour::RespondsWith(403, "{}"),
        ServiceBehaviour::InvalidResponse,
    ] {
        let log_length = balancer.log().len();
        platform.set_vault_behaviour(behaviour);
        wait_until("the log reports that the last one stays in use", || {
            balancer.log()[log_length..].contains("the old one stays in use")
        })
        .await;
        assert_eq!(balancer.post_chat().await.status, 200);
        platform.set_vault_behaviour(ServiceBehaviour::Normal);
        wait_until("the log reports that the vault works again", || {
            balancer.log()[log_length..].contains("fetched the ")
        })
        .await;
    }
    // A revoked token for the vault is renewed.
    let (reads, issued) = (platform.secret_reads(), platform.issued_tokens());
    platform.revoke_tokens();
    wait_until("the secret is read three more times", || platform.secret_reads() >= reads + 3).await;
    assert_eq!(platform.issued_tokens(), issued + 1);
    assert_eq!(balancer.post_chat().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_balancer_starts_without_a_missing_secret_and_logs_why() {
    let platform = IdentityPlatform::start().await;
    platform.set_secret("west-key", "good");
    let (west, east) = (
        AuthenticatedResource::start(&["good"], None).await,
        AuthenticatedResource::start(&["east"], None).await,
    );
    let vault = format!("key_vault: '{}'", platform.secret_url("west-key"));
    let entries = [west.backend_yaml("west", &vault), east.backend_yaml("east", "api_key: east")].concat();
    let forbidden_body =
        r#"{"error":{"code":"Forbidden","message":"hunter2","innererror":{"code":"ForbiddenByRbac"}}}"#;
    let cases = [
        (ServiceBehaviour::RespondsWith(503, "<html>"), "responded with 503"),
        (
            ServiceBehaviour::RespondsWith(403, forbidden_body),
            "responded with 403 (Forbidden, ForbiddenByRbac); does the identity have the role",
        ),
        (ServiceBehaviour::InvalidResponse, "contains no secret"),
    ];
    for (behaviour, reason) in cases {
        platform.set_vault_behaviour(behaviour);
        let balancer = Balancer::start_with_environment(&platform.vm_environment(), &entries, "").await;
        balancer.wait_for_log("backend west is unavailable until its credential is fetched: ").await;
        let log = balancer.log();
        let message = format!(
            "cannot fetch the secret {}/secrets/west-key, and no valid one is left: ",
            platform.address
        );
        assert!(
            log.contains(&message) && log.contains(reason) && !log.contains("hunter2"),
            "{reason}: {log}"
        );
        for _ in 0..4 {
            assert_eq!(answering_backend(&balancer.post_chat().await), "east");
        }
        let status = balancer.status().await;
        assert_eq!(status["backends"][0]["state"], "credential", "{status}");
        assert!(status["backends"][0]["until_ms"].is_null(), "{status}");
        assert_eq!(west.upstream.requests().len(), 0);
        let alone = Balancer::start_with_environment(
            &platform.vm_environment(),
            &west.backend_yaml("west", &vault),
            "",
        )
        .await;
        let response = alone.post_chat().await;
        assert_eq!(
            (response.status, response.error_code().as_str()),
            (503, "backend_misconfigured"),
            "{}",
            response.text()
        );
        platform.set_vault_behaviour(ServiceBehaviour::Normal);
        alone
            .wait_for_status("backend west is available", |status| {
                status["backends"][0]["state"] == "healthy"
            })
            .await;
        assert_eq!(alone.post_chat().await.status, 200);
        west.upstream.forget_requests();
    }
    // While a slow vault responds, requests wait.
    platform.set_vault_behaviour(ServiceBehaviour::DelayedByTenths(60));
    let alone =
        Balancer::start_with_environment(&platform.vm_environment(), &west.backend_yaml("west", &vault), "")
            .await;
    assert_eq!(alone.post_chat().await.status, 200, "{}", alone.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_cannot_be_fetched_at_startup_is_logged_with_the_reason() {
    let platform = IdentityPlatform::start().await;
    let resource = AuthenticatedResource::start(&[], Some(&platform)).await;
    let authority = format!("authority: 'http://{}'", platform.address);
    let client = |tenant: &str, id: &str, secret: &str| {
        format!(
            "entra: {{ client_secret: {{ tenant: {tenant}, client_id: {id}, secret: {secret} }}, {authority} }}"
        )
    };
    let unknown_identity = "entra: { managed_identity: { client_id: unknown } }".to_owned();
    for (credential, reason) in [
        (
            client("fabrikam", CLIENT_ID, APP_SECRET),
            "127.0.0.1 responded with 400 (invalid_request, AADSTS90002); check tenant",
        ),
        (
            client(TENANT_ID, "other", APP_SECRET),
            "127.0.0.1 responded with 400 (unauthorized_client, AADSTS700016)",
        ),
        (
            client(TENANT_ID, CLIENT_ID, "hunter2"),
            "127.0.0.1 responded with 401 (invalid_client, AADSTS7000215)",
        ),
        (
            unknown_identity,
            "127.0.0.1 responded with 400 (invalid_request); does this machine have that identity?",
        ),
    ] {
        let entry = resource.backend_yaml("a", &credential);
        let balancer = Balancer::start_with_environment(&platform.vm_environment(), &entry, "").await;
        balancer.wait_for_log(reason).await;
        assert_eq!(balancer.post_chat().await.status, 503);
        assert!(!balancer.log().contains("hunter2") && !balancer.log().contains(APP_SECRET));
    }
    assert_eq!(resource.upstream.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_secret_may_itself_come_from_a_vault() {
    let platform = IdentityPlatform::start().await;
    platform.set_secret("app-secret", "the first one");
    let resource = AuthenticatedResource::start(&[], Some(&platform)).await;
    let entra = |secret: &str| {
        format!(
            "entra: {{ client_secret: {{ tenant: {TENANT_ID}, client_id: {CLIENT_ID}, secret: {secret} }}, authority: 'http://{}' }}",
            platform.address
        )
    };
    platform.set_secret("app-secret", "the-first-one");
    platform.set_token_lifetime(2);
    let entry = resource
        .backend_yaml("a", &entra(&format!("{{ key_vault: '{}' }}", platform.secret_url("app-secret"))));
    let balancer = Balancer::start_with_environment(&platform.vm_environment(), &entry, "").await;
    assert_eq!(balancer.post_chat().await.status, 200, "{}", balancer.log());
    // After the secret is replaced, the next renewal is refused, reads the secret again and succeeds.
    platform.set_secret("app-secret", "the-second-one");
    let issued = platform.issued_tokens();
    wait_until("four more tokens are issued", || platform.issued_tokens() >= issued + 4).await;
    assert_eq!(balancer.post_chat().await.status, 200, "{}", balancer.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_vaults_and_token_endpoints_are_verified() {
    use support::tls::{generate_authority, generate_key, issue_certificate, start_tls_proxy};
    let platform = IdentityPlatform::start().await;
    platform.set_secret("west-key", "good");
    let (log_length, other, key) = (generate_authority(), generate_authority(), generate_key());
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, log_length.certificate.to_pem().unwrap()).unwrap();
    let resource = AuthenticatedResource::start(&["good"], Some(&platform)).await;
    for (name, days, issuer, expected) in [
        ("localhost", (-1, 1), &log_length, 200),
        ("fabrikam.test", (-1, 1), &log_length, 503),
        ("localhost", (-3, -2), &log_length, 503),
        ("localhost", (-1, 1), &other, 503),
    ] {
        let certificate = issue_certificate(name, days, &key, Some(issuer));
        let (address, _) = start_tls_proxy(platform.address, &certificate, &key).await;
        let url = format!("https://localhost:{}", address.port());
        let application = format!("tenant: {TENANT_ID}, client_id: {CLIENT_ID}, secret: '{APP_SECRET}'");
        for credential in [
            format!("key_vault: '{url}/secrets/west-key'"),
            format!("entra: {{ client_secret: {{ {application} }}, authority: '{url}' }}"),
        ] {
            let mut environment = platform.vm_environment();
            environment.push(("SSL_CERT_FILE", ca.display().to_string()));
            let entry = resource.backend_yaml("a", &credential);
            let balancer = Balancer::start_with_environment(&environment, &entry, "").await;
            let status = balancer.post_chat().await.status;
            assert_eq!(status, expected, "{name} {days:?} {credential}:\n{}", balancer.log());
        }
    }
}
