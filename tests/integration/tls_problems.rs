//! What a TLS port does with plain HTTP, and what becomes of a certificate that is not valid now.

use crate::support;

use std::path::Path;
use std::process::Command;

use support::h2::Http2Connection;
use support::tls::{CertificateAuthority, generate_authority, generate_key, issue_certificate};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, all_backends_yaml, clients_yaml, free_port,
    start_simulator,
};

/// The value of a metric without labels.
async fn metric(balancer: &Balancer, name: &str) -> u64 {
    let metrics =
        Client::connect(balancer.admin_address).await.get("/metrics", &[("Host", "localhost")]).await;
    let text = metrics.text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[tokio::test]
async fn plain_http_on_a_tls_port_is_answered_with_400() {
    let azure = start_simulator(&["a"]).await;
    let authority = generate_authority();
    let balancer = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), "").await;
    let before = metric(&balancer, "aoai_lb_malformed_total").await;
    let headers = [("api-key", CLIENT_KEY)];
    for target in [CHAT_TARGET, "/readyz"] {
        let mut client = balancer.connect().await;
        let response = client.post(target, &headers, CHAT_BODY.as_bytes()).await;
        assert_eq!((response.status, response.error_code().as_str()), (400, "bad_request"));
        let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("use https://"), "{message}");
        assert!(response.header("x-request-id").is_some());
        assert_eq!(response.header("connection"), Some("close"));
        assert!(client.read_response_head().await.is_none(), "the connection is closed");
    }
    assert_eq!(metric(&balancer, "aoai_lb_malformed_total").await, before + 2);
    assert_eq!(azure.request_count("a"), 0);
    // What is neither TLS nor HTTP gets no answer, and TLS works as before.
    let mut client = balancer.connect().await;
    client.send(&[0; 32]).await;
    assert!(client.read_response_head().await.is_none());
    assert_eq!(https_status(&balancer, &authority).await, 200);
}

/// Status of a chat request over TLS.
async fn https_status(balancer: &Balancer, authority: &CertificateAuthority) -> u16 {
    let connection = Http2Connection::connect(balancer.address, authority).await;
    connection.post(CHAT_TARGET, CHAT_BODY.as_bytes()).await.status
}

/// Writes a certificate for `balancer.test` that is valid on these days, and its key.
fn write_pair(directory: &Path, authority: &CertificateAuthority, days: (i64, i64)) {
    let key = generate_key();
    let certificate = issue_certificate("balancer.test", days, &key, Some(authority));
    std::fs::write(directory.join("key.pem"), key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    std::fs::write(directory.join("cert.pem"), certificate.to_pem().unwrap()).unwrap();
}

#[test]
fn a_certificate_that_is_not_valid_now_is_an_error_and_one_that_ends_soon_a_warning() {
    let (directory, authority) = (tempfile::tempdir().unwrap(), generate_authority());
    let file = directory.path().join("aoai-lb.yaml");
    let tls = "tls: { certificate: cert.pem, private_key: key.pem }";
    let text = format!(
        "listeners:\n  - address: 127.0.0.1:{}\n    {tls}\nadmin: {{ address: 127.0.0.1:{}, token: t, {tls} }}\n\
         backends: [ {{ name: a, endpoint: http://127.0.0.1:1, credential: {{ api_key: k }} }} ]\n{}",
        free_port(),
        free_port(),
        clients_yaml()
    );
    std::fs::write(&file, text).unwrap();
    let run = |command: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_aoai-lb")).args([command, "-c"]).arg(&file).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (days, problem) in [
        ((-30, -12), "error: {key}.certificate: expired 12 days ago, on 20"),
        ((3, 30), "error: {key}.certificate: is not valid before 20"),
    ] {
        write_pair(directory.path(), &authority, days);
        for command in ["check", "run"] {
            let (code, output) = run(command);
            assert_eq!(code, Some(1), "{command}: {output}");
            for key in ["listeners[0].tls", "admin.tls"] {
                assert!(output.contains(&problem.replace("{key}", key)), "{command}: {output}");
            }
            assert!(output.ends_with("2 errors\n"), "{command}: {output}");
        }
    }
    write_pair(directory.path(), &authority, (-30, 9));
    let (code, output) = run("check");
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("warning: listeners[0].tls.certificate: expires in "), "{output}");
    write_pair(directory.path(), &authority, (-30, 20));
    assert_eq!(run("check"), (Some(0), String::new()));
}

#[tokio::test]
async fn a_new_certificate_that_is_not_valid_now_is_not_put_into_use() {
    let azure = start_simulator(&["a"]).await;
    let authority = generate_authority();
    let balancer = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), "").await;
    write_pair(&balancer.path(""), &authority, (-30, -12));
    balancer
        .wait_for_log("the old certificates stay in use: tls.certificate: expired 12 days ago, on 20")
        .await;
    let response = balancer.post_admin("/api/reload").await;
    assert_eq!(response.status, 400, "{}", response.text());
    assert!(
        response.text().contains("listeners[0].tls.certificate: expired 12 days ago"),
        "{}",
        response.text()
    );
    assert_eq!(https_status(&balancer, &authority).await, 200);
    write_pair(&balancer.path(""), &authority, (-1, 30));
    balancer.wait_for_log("new certificates are in use").await;
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    assert_eq!(https_status(&balancer, &authority).await, 200);
}
