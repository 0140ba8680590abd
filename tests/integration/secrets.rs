//! Secrets: none appears in any output, the admin API is protected, and memory is not readable.

use crate::support;

use std::io::BufRead;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use support::client::{Client, Response};
use support::identity::{
    APP_SECRET, AuthenticatedResource, CLIENT_ID, IdentityPlatform, PLATFORM_HEADER_VALUE, ServiceBehaviour,
    TENANT_ID,
};
use support::tls::{generate_authority, generate_key, issue_certificate};
use support::upstream::{ScriptedUpstream, complete_response};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, STREAM_BODY, clients_yaml, free_port, sha256_hex,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const KEY_IN_FILE: &str = "planted-key-in-the-file";
const KEY_IN_VAULT: &str = "planted-key-in-the-vault";
const ROTATED_KEY: &str = "planted-key-after-rotation";
const ADMIN_TOKEN: &str = "planted-token-of-the-admin-api";
const SET_HEADER_VALUE: &str = "planted-value-of-a-header";
const UNKNOWN_KEY: &str = "planted-unknown-key";
const COOKIE_VALUE: &str = "planted-cookie";

fn read_all_files(directory: &Path, files: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        // Not the configuration, which contains secrets, and not the binary.
        if path.is_dir() {
            read_all_files(&path, files);
        } else if path.is_file() && !path.to_string_lossy().ends_with(".yaml") && !path.ends_with("aoai-lb") {
            files.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
}

async fn get_admin(balancer: &Balancer, target: &str, token: Option<&str>) -> Response {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let mut headers = vec![("Host", "localhost")];
    headers.extend(bearer.as_deref().map(|bearer| ("Authorization", bearer)));
    Client::connect(balancer.admin_address).await.get(target, &headers).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_appears_in_any_output() {
    let platform = IdentityPlatform::start().await;
    platform.set_secret("west-key", KEY_IN_VAULT);
    let (with_vault_key, with_file_key) = (
        AuthenticatedResource::start(&[KEY_IN_VAULT], None).await,
        AuthenticatedResource::start(&[KEY_IN_FILE], None).await,
    );
    let with_entra_token = AuthenticatedResource::start(&[], Some(&platform)).await;
    // An upstream that echoes the request, as a debugging page does.
    let echoing =
        ScriptedUpstream::start(|request| complete_response(401, "Content-Type: text/plain", &request.head))
            .await;
    let application = format!("tenant: {TENANT_ID}, client_id: {CLIENT_ID}, secret: '{APP_SECRET}'");
    let entries = [
        with_vault_key.backend_yaml("west", &format!("key_vault: '{}'", platform.secret_url("west-key"))),
        with_file_key.backend_yaml("own", &format!("api_key: {KEY_IN_FILE}")),
        with_entra_token.backend_yaml(
            "app",
            &format!(
                "entra: {{ client_secret: {{ {application} }}, authority: 'http://{}' }}",
                platform.address
            ),
        ),
        with_entra_token.backend_yaml("platform", "entra: { managed_identity: {} }"),
        echoing.backend_yaml("quoting").replace("quoting-key", KEY_IN_FILE),
    ]
    .concat();
    let [address, admin_address] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
    let text = format!(
        "listeners: [ {{ address: '{address}' }} ]\nadmin: {{ address: '{admin_address}', token: '{ADMIN_TOKEN}' }}\n\
         server: {{ drain_delay: 0s }}\nrequests: {{ set_headers: {{ x-own: '${{PLANTED}}' }} }}\n\
         record: {{ jsonl: {{ path: records.jsonl }}, spool: {{ path: spool }} }}\nbackends:\n{entries}{}",
        clients_yaml()
    );
    let variables = [
        ("IDENTITY_ENDPOINT", format!("http://{}/msi/token", platform.address)),
        ("IDENTITY_HEADER", PLATFORM_HEADER_VALUE.to_owned()),
        ("PLANTED", SET_HEADER_VALUE.to_owned()),
        // The most verbose log of the balancer and of Pingora.
        ("RUST_LOG", "trace".to_owned()),
    ];
    let directory = tempfile::tempdir().unwrap();
    let balancer =
        Balancer::start_from_file_with_environment(directory, address, admin_address, &text, &variables)
            .await;
    let mut outputs: Vec<(String, Vec<u8>)> = Vec::new();
    let bearer = format!("Bearer {CLIENT_KEY}");
    let unknown_bearer = format!("Bearer {UNKNOWN_KEY}");
    let key_in_query = format!("{CHAT_TARGET}&api-key={CLIENT_KEY}");
    let unknown_key_in_query = format!("{CHAT_TARGET}&subscription-key={UNKNOWN_KEY}");
    for round in 0..3 {
        for (target, headers) in [
            (CHAT_TARGET, vec![("api-key", CLIENT_KEY), ("cookie", COOKIE_VALUE)]),
            (CHAT_TARGET, vec![("authorization", bearer.as_str())]),
            (key_in_query.as_str(), vec![]),
            (CHAT_TARGET, vec![("api-key", UNKNOWN_KEY)]),
            (CHAT_TARGET, vec![("authorization", unknown_bearer.as_str())]),
            (unknown_key_in_query.as_str(), vec![]),
            ("/nowhere?api-key=planted-unknown-key", vec![("api-key", CLIENT_KEY)]),
            ("/openai/../x?api-key=planted-unknown-key", vec![("api-key", CLIENT_KEY)]),
        ] {
            for body in [CHAT_BODY, STREAM_BODY, "{\"broken\""] {
                let response = balancer.post(target, &headers, body.as_bytes()).await;
                outputs.push((
                    format!("response to {target}"),
                    format!("{:?} {}", response.headers, response.text()).into_bytes(),
                ));
            }
        }
        match round {
            // Tokens and keys are first refused and renewed, then cannot be renewed.
            0 => {
                platform.set_secret("west-key", ROTATED_KEY);
                with_vault_key.accept_keys(&[ROTATED_KEY]);
                platform.revoke_tokens();
            }
            1 => {
                platform.set_token_behaviour(ServiceBehaviour::RespondsWith(
                    401,
                    "{\"error\":\"invalid_client\"}",
                ));
                platform.set_vault_behaviour(ServiceBehaviour::InvalidResponse);
                with_vault_key.accept_keys(&[]);
                with_file_key.accept_keys(&[]);
                platform.revoke_tokens();
            }
            _ => {}
        }
    }
    for target in ["/api/status", "/metrics", "/healthz", "/readyz", "/nowhere"] {
        for token in [Some(ADMIN_TOKEN), Some(UNKNOWN_KEY), None] {
            let response = get_admin(&balancer, target, token).await;
            outputs.push((
                format!("admin {target}"),
                format!("{:?} {}", response.headers, response.text()).into_bytes(),
            ));
        }
    }
    balancer.wait_for_records(72).await;
    let mut command_line = std::fs::read(format!("/proc/{}/cmdline", balancer.pid())).unwrap();
    command_line.extend(std::fs::read(format!("/proc/{}/comm", balancer.pid())).unwrap());
    outputs.push(("the process list".to_owned(), command_line));
    let check = Command::new(env!("CARGO_BIN_EXE_aoai-lb"))
        .args(["check", "-c"])
        .arg(balancer.path("aoai-lb.yaml"))
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    outputs.push(("check".to_owned(), [check.stdout, check.stderr].concat()));
    outputs.push(("the log".to_owned(), balancer.log().into_bytes()));
    read_all_files(&balancer.path(""), &mut outputs);
    assert!(outputs.iter().any(|(name, _)| name.ends_with("records.jsonl")) && balancer.log().len() > 500);
    let key_hash = sha256_hex(CLIENT_KEY);
    let secrets = [
        KEY_IN_FILE,
        KEY_IN_VAULT,
        ROTATED_KEY,
        ADMIN_TOKEN,
        SET_HEADER_VALUE,
        UNKNOWN_KEY,
        COOKIE_VALUE,
        APP_SECRET,
        PLATFORM_HEADER_VALUE,
        CLIENT_KEY,
        "token-1",
        "token-2",
        &key_hash,
    ];
    for (name, bytes) in &outputs {
        for secret in secrets {
            if let Some(at) = bytes.windows(secret.len()).position(|window| window == secret.as_bytes()) {
                let context = &bytes[at.saturating_sub(300)..(at + 100).min(bytes.len())];
                panic!("{name} contains the secret {secret}: …{}…", String::from_utf8_lossy(context));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_requires_its_token() {
    let azure = support::start_simulator(&["a"]).await;
    let [address, admin_address] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
    let config_yaml = |token: &str| {
        format!(
            "listeners: [ {{ address: '{address}' }} ]\nadmin: {{ address: '{admin_address}', token: {token} }}\n\
             server: {{ drain_delay: 0s }}\nbackends:\n{}{}",
            support::all_backends_yaml(&azure),
            clients_yaml()
        )
    };
    let platform = IdentityPlatform::start().await;
    platform.set_secret("admin", ADMIN_TOKEN);
    let vault = format!("{{ key_vault: '{}' }}", platform.secret_url("admin"));
    for token in [ADMIN_TOKEN, &vault] {
        let directory = tempfile::tempdir().unwrap();
        let variables = platform.vm_environment();
        let balancer = Balancer::start_from_file_with_environment(
            directory,
            address,
            admin_address,
            &config_yaml(token),
            &variables,
        )
        .await;
        for target in ["/api/status", "/metrics", "/api/events", "/nowhere"] {
            let longer_token = format!("{ADMIN_TOKEN}x");
            for wrong_token in
                [None, Some(""), Some("x"), Some(&ADMIN_TOKEN[1..]), Some(longer_token.as_str())]
            {
                let response = get_admin(&balancer, target, wrong_token).await;
                assert_eq!(
                    (response.status, response.error_code().as_str()),
                    (401, "invalid_api_key"),
                    "{target} {wrong_token:?}"
                );
                assert_eq!(response.header("www-authenticate"), Some("Bearer"));
            }
        }
        for (target, status) in [("/api/status", 200), ("/metrics", 200), ("/nowhere", 404)] {
            assert_eq!(get_admin(&balancer, target, Some(ADMIN_TOKEN)).await.status, status);
        }
        // The page contains no data and asks for the token itself.
        for target in ["/", "/healthz", "/readyz"] {
            assert_eq!(get_admin(&balancer, target, None).await.status, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_api_beyond_loopback_uses_tls_and_checks_the_host_header() {
    let azure = support::start_simulator(&["a"]).await;
    let (authority, private_key) = (generate_authority(), generate_key());
    let directory = tempfile::tempdir().unwrap();
    let certificate = issue_certificate("admin.test", (-1, 1), &private_key, Some(&authority));
    std::fs::write(directory.path().join("a.pem"), certificate.to_pem().unwrap()).unwrap();
    std::fs::write(directory.path().join("a.key"), private_key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    let (address, port) = (SocketAddr::from(([127, 0, 0, 1], free_port())), free_port());
    let text = format!(
        "listeners: [ {{ address: '{address}' }} ]\n\
         admin: {{ address: '0.0.0.0:{port}', token: {ADMIN_TOKEN}, tls: {{ certificate: a.pem, private_key: a.key }} }}\n\
         server: {{ drain_delay: 0s }}\nbackends:\n{}{}",
        support::all_backends_yaml(&azure),
        clients_yaml()
    );
    let admin_address = SocketAddr::from(([127, 0, 0, 1], port));
    let balancer = Balancer::start_from_file(directory, address, admin_address, &text).await;
    let get_status_code = async |host: &str, extra_headers: &str| {
        let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
        connector.cert_store_mut().add_cert(authority.certificate.clone()).unwrap();
        connector.set_verify(SslVerifyMode::PEER);
        let ssl = connector.build().configure().unwrap().into_ssl("admin.test").unwrap();
        let stream = tokio::net::TcpStream::connect(admin_address).await.unwrap();
        let mut stream = tokio_openssl::SslStream::new(ssl, stream).unwrap();
        std::pin::Pin::new(&mut stream).connect().await.unwrap();
        let request = format!(
            "GET /api/status HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n{extra_headers}Connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response).await;
        String::from_utf8_lossy(&response).split(' ').nth(1).unwrap().to_owned()
    };
    for (host, extra_headers, status) in [
        ("admin.test:9901", "", "200"),
        ("ADMIN.test", "", "200"),
        ("127.0.0.1", "", "200"),
        ("[::1]:1", "", "200"),
        ("10.1.2.3:9901", "", "200"),
        ("evil.test", "", "403"),
        ("admin.test.evil.test", "", "403"),
        ("admin.test", "Origin: https://evil.test\r\n", "403"),
        ("admin.test", "Sec-Fetch-Site: cross-site\r\n", "403"),
    ] {
        assert_eq!(get_status_code(host, extra_headers).await, status, "{host} {extra_headers}");
    }
    let mut plain_client = Client::connect(admin_address).await;
    plain_client.send(b"GET /api/status HTTP/1.1\r\nHost: admin.test\r\n\r\n").await;
    let response = plain_client.read_response().await;
    assert_eq!((response.status, response.error_code().as_str()), (400, "bad_request"));
    assert!(plain_client.is_closed().await, "expected plain HTTP to be refused");
    drop(balancer);
}

#[test]
fn process_memory_is_not_readable_by_others() {
    // Root may read all memory, so the process runs as another user then.
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let binary = directory.path().join("aoai-lb");
    // By another process: what other tests start at this moment would inherit the open file, and a file that is open
    // for writing cannot be executed.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_aoai-lb")).arg(&binary).status().unwrap();
    assert!(copied.success());
    let resources = directory.path().join("simulate.yaml");
    let text = "resources: [ { name: a, address: '127.0.0.1:0', keys: [k], deployments: [ { name: d, model: gpt-4o } ] } ]";
    std::fs::write(&resources, text).unwrap();
    let mut command = Command::new(&binary);
    command.args(["simulate", "-c"]).arg(&resources).stdout(std::process::Stdio::piped());
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.uid(65_534);
    }
    let mut child = command.spawn().unwrap();
    let outputs = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let is_running =
        outputs.map_while(Result::ok).any(|line| line.starts_with("The simulated resources are running"));
    assert!(is_running, "the process ended: {:?}", child.wait());
    // The files in /proc of a process that is not dumpable belong to root (proc(5)).
    let owner = std::fs::metadata(format!("/proc/{}/environ", child.id())).unwrap().uid();
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(owner, 0, "expected the memory to be readable by root only");
}
