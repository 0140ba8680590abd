//! Whatever the product says, it says none of the secrets that it was given or that went through it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::io::BufRead;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use support::client::{Client, Reply};
use support::identity::{APP_SECRET, CLIENT, HEADER, Platform, Resource, TENANT, Temper};
use support::tls::{authority, certificate, key};
use support::upstream::{Upstream, reply};
use support::{Balancer, CHAT, HELLO, KEY, STREAM, clients, free_port, sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const WRITTEN: &str = "planted-key-in-the-file";
const VAULTED: &str = "planted-key-in-the-vault";
const ROTATED: &str = "planted-key-after-rotation";
const ADMIN: &str = "planted-token-of-the-admin-api";
const SET: &str = "planted-value-of-a-header";
const STRANGER: &str = "planted-key-of-a-stranger";
const COOKIE: &str = "planted-cookie";

fn read_all(directory: &Path, into: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        // What the operator wrote is not what the product says.
        if path.is_dir() {
            read_all(&path, into);
        } else if path.is_file() && !path.to_string_lossy().ends_with(".yaml") && !path.ends_with("aoai-lb") {
            into.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
}

async fn admin(balancer: &Balancer, target: &str, token: Option<&str>) -> Reply {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let mut headers = vec![("Host", "localhost")];
    headers.extend(bearer.as_deref().map(|bearer| ("Authorization", bearer)));
    Client::connect(balancer.admin).await.get(target, &headers).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_said_has_a_secret_in_it() {
    let platform = Platform::start().await;
    platform.put("west-key", VAULTED);
    let (west, own) = (Resource::start(&[VAULTED], None).await, Resource::start(&[WRITTEN], None).await);
    let entra = Resource::start(&[], Some(&platform)).await;
    // One that quotes what it is shown, as a debugging page would.
    let quoting = Upstream::start(|request| reply(401, "Content-Type: text/plain", &request.head)).await;
    let application = format!("tenant: {TENANT}, client_id: {CLIENT}, secret: '{APP_SECRET}'");
    let entries = [
        west.entry("west", &format!("key_vault: '{}'", platform.secret("west-key"))),
        own.entry("own", &format!("api_key: {WRITTEN}")),
        entra.entry(
            "app",
            &format!(
                "entra: {{ client_secret: {{ {application} }}, authority: 'http://{}' }}",
                platform.address
            ),
        ),
        entra.entry("platform", "entra: { managed_identity: {} }"),
        quoting.backend("quoting").replace("quoting-key", WRITTEN),
    ]
    .concat();
    let [address, admin_address] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
    let text = format!(
        "listeners: [ {{ address: '{address}' }} ]\nadmin: {{ address: '{admin_address}', token: '{ADMIN}' }}\n\
         server: {{ drain_delay: 0s }}\nrequests: {{ set_headers: {{ x-own: '${{PLANTED}}' }} }}\n\
         record: {{ jsonl: {{ path: records.jsonl }}, spool: {{ path: spool }} }}\nbackends:\n{entries}{}",
        clients()
    );
    let variables = [
        ("IDENTITY_ENDPOINT", format!("http://{}/msi/token", platform.address)),
        ("IDENTITY_HEADER", HEADER.to_owned()),
        ("PLANTED", SET.to_owned()),
        // Everything that our own code and the engine can be made to say.
        ("RUST_LOG", "trace".to_owned()),
    ];
    let directory = tempfile::tempdir().unwrap();
    let balancer = Balancer::with_environment(directory, address, admin_address, &text, &variables).await;
    let mut said: Vec<(String, Vec<u8>)> = Vec::new();
    let bearer = format!("Bearer {KEY}");
    let stranger = format!("Bearer {STRANGER}");
    let in_query = format!("{CHAT}&api-key={KEY}");
    let strangers = format!("{CHAT}&subscription-key={STRANGER}");
    for round in 0..3 {
        for (target, headers) in [
            (CHAT, vec![("api-key", KEY), ("cookie", COOKIE)]),
            (CHAT, vec![("authorization", bearer.as_str())]),
            (in_query.as_str(), vec![]),
            (CHAT, vec![("api-key", STRANGER)]),
            (CHAT, vec![("authorization", stranger.as_str())]),
            (strangers.as_str(), vec![]),
            ("/nowhere?api-key=planted-key-of-a-stranger", vec![("api-key", KEY)]),
            ("/openai/../x?api-key=planted-key-of-a-stranger", vec![("api-key", KEY)]),
        ] {
            for body in [HELLO, STREAM, "{\"broken\""] {
                let reply = balancer.post(target, &headers, body.as_bytes()).await;
                said.push((
                    format!("reply to {target}"),
                    format!("{:?} {}", reply.headers, reply.text()).into_bytes(),
                ));
            }
        }
        match round {
            // Tokens and keys are refused, renewed, and cannot be renewed.
            0 => {
                platform.put("west-key", ROTATED);
                west.admit(&[ROTATED]);
                platform.revoke();
            }
            1 => {
                platform.tokens_are(Temper::Says(401, "{\"error\":\"invalid_client\"}"));
                platform.vault_is(Temper::Garbage);
                west.admit(&[]);
                own.admit(&[]);
                platform.revoke();
            }
            _ => {}
        }
    }
    for target in ["/api/status", "/metrics", "/healthz", "/readyz", "/nowhere"] {
        for token in [Some(ADMIN), Some(STRANGER), None] {
            let reply = admin(&balancer, target, token).await;
            said.push((
                format!("admin {target}"),
                format!("{:?} {}", reply.headers, reply.text()).into_bytes(),
            ));
        }
    }
    balancer.records_of(72).await;
    let mut command_line = std::fs::read(format!("/proc/{}/cmdline", balancer.pid())).unwrap();
    command_line.extend(std::fs::read(format!("/proc/{}/comm", balancer.pid())).unwrap());
    said.push(("the process list".to_owned(), command_line));
    let check = Command::new(env!("CARGO_BIN_EXE_aoai-lb"))
        .args(["check", "-c"])
        .arg(balancer.path("aoai-lb.yaml"))
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    said.push(("check".to_owned(), [check.stdout, check.stderr].concat()));
    said.push(("the log".to_owned(), balancer.log().into_bytes()));
    read_all(&balancer.path(""), &mut said);
    assert!(said.iter().any(|(name, _)| name.ends_with("records.jsonl")) && balancer.log().len() > 500);
    let key_hash = sha256(KEY);
    let secrets = [
        WRITTEN, VAULTED, ROTATED, ADMIN, SET, STRANGER, COOKIE, APP_SECRET, HEADER, KEY, "token-1",
        "token-2", &key_hash,
    ];
    for (name, bytes) in &said {
        for secret in secrets {
            if let Some(at) = bytes.windows(secret.len()).position(|window| window == secret.as_bytes()) {
                let around = &bytes[at.saturating_sub(300)..(at + 100).min(bytes.len())];
                panic!("{name} has {secret}: …{}…", String::from_utf8_lossy(around));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_wants_its_token() {
    let azure = support::azure(&["a"]).await;
    let [address, admin_address] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
    let file = |token: &str| {
        format!(
            "listeners: [ {{ address: '{address}' }} ]\nadmin: {{ address: '{admin_address}', token: {token} }}\n\
             server: {{ drain_delay: 0s }}\nbackends:\n{}{}",
            support::backends(&azure),
            clients()
        )
    };
    let platform = Platform::start().await;
    platform.put("admin", ADMIN);
    let vault = format!("{{ key_vault: '{}' }}", platform.secret("admin"));
    for token in [ADMIN, &vault] {
        let directory = tempfile::tempdir().unwrap();
        let variables = platform.machine();
        let balancer =
            Balancer::with_environment(directory, address, admin_address, &file(token), &variables).await;
        for target in ["/api/status", "/metrics", "/api/events", "/nowhere"] {
            let longer = format!("{ADMIN}x");
            for wrong in [None, Some(""), Some("x"), Some(&ADMIN[1..]), Some(longer.as_str())] {
                let reply = admin(&balancer, target, wrong).await;
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (401, "invalid_api_key"),
                    "{target} {wrong:?}"
                );
                assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
            }
        }
        for (target, status) in [("/api/status", 200), ("/metrics", 200), ("/nowhere", 404)] {
            assert_eq!(admin(&balancer, target, Some(ADMIN)).await.status, status);
        }
        // The page has nothing in it, and asks for the token by itself.
        for target in ["/", "/healthz", "/readyz"] {
            assert_eq!(admin(&balancer, target, None).await.status, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_the_admin_api_speaks_tls_and_knows_its_names() {
    let azure = support::azure(&["a"]).await;
    let (good, own_key) = (authority(), key());
    let directory = tempfile::tempdir().unwrap();
    let certificate = certificate("admin.test", (-1, 1), &own_key, Some(&good));
    std::fs::write(directory.path().join("a.pem"), certificate.to_pem().unwrap()).unwrap();
    std::fs::write(directory.path().join("a.key"), own_key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    let (address, port) = (SocketAddr::from(([127, 0, 0, 1], free_port())), free_port());
    let text = format!(
        "listeners: [ {{ address: '{address}' }} ]\n\
         admin: {{ address: '0.0.0.0:{port}', token: {ADMIN}, tls: {{ certificate: a.pem, private_key: a.key }} }}\n\
         server: {{ drain_delay: 0s }}\nbackends:\n{}{}",
        support::backends(&azure),
        clients()
    );
    let admin_address = SocketAddr::from(([127, 0, 0, 1], port));
    let balancer = Balancer::from_file(directory, address, admin_address, &text).await;
    let ask = async |host: &str, more: &str| {
        let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
        connector.cert_store_mut().add_cert(good.certificate.clone()).unwrap();
        connector.set_verify(SslVerifyMode::PEER);
        let ssl = connector.build().configure().unwrap().into_ssl("admin.test").unwrap();
        let stream = tokio::net::TcpStream::connect(admin_address).await.unwrap();
        let mut stream = tokio_openssl::SslStream::new(ssl, stream).unwrap();
        std::pin::Pin::new(&mut stream).connect().await.unwrap();
        let request = format!(
            "GET /api/status HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {ADMIN}\r\n{more}Connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply).await;
        String::from_utf8_lossy(&reply).split(' ').nth(1).unwrap().to_owned()
    };
    for (host, more, status) in [
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
        assert_eq!(ask(host, more).await, status, "{host} {more}");
    }
    let mut plain = Client::connect(admin_address).await;
    plain.send(b"GET /api/status HTTP/1.1\r\nHost: admin.test\r\n\r\n").await;
    assert!(plain.is_closed().await, "no TLS, no answer");
    drop(balancer);
}

#[test]
fn memory_is_neither_dumped_nor_shown() {
    // As root one sees everything: the process is somebody else's then.
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let binary = directory.path().join("aoai-lb");
    std::fs::copy(env!("CARGO_BIN_EXE_aoai-lb"), &binary).unwrap();
    let resources = directory.path().join("simulate.yaml");
    let text = "resources: [ { name: a, address: '127.0.0.1:0', keys: [k], deployments: [ { name: d, model: gpt-4o } ] } ]";
    std::fs::write(&resources, text).unwrap();
    let mut command = Command::new(&binary);
    command.args(["simulate", "-c"]).arg(&resources).stdout(std::process::Stdio::piped());
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.uid(65_534);
    }
    let mut child = command.spawn().unwrap();
    let said = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let runs = said.map_while(Result::ok).any(|line| line.starts_with("Simulated resources are running"));
    assert!(runs, "it ended: {:?}", child.wait());
    // The kernel gives what belongs to such a process to root (proc(5)).
    let owner = std::fs::metadata(format!("/proc/{}/environ", child.id())).unwrap().uid();
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(owner, 0, "others may read its memory");
}
