//! Backends that break the rules of HTTP/2: they have failed, whatever the fault is.

use crate::support;

use std::net::SocketAddr;

use futures::stream::{self, StreamExt};
use support::h2::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PUSH_PROMISE,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, header_block,
};
use support::tls::{
    CertificateAuthority, generate_authority, generate_key, issue_certificate, start_tls_proxy_with_protocols,
};
use support::upstream::{ScriptedUpstream, complete_response};
use support::{Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, STREAM_BODY, answering_backend, backend_yaml};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Each has a process of its own.
const CONCURRENT_CHECKS: usize = 4;

/// What a backend sends.
#[derive(Clone, Debug, Default)]
struct Fault {
    what: &'static str,
    /// At once, in place of its settings.
    greeting: Option<Vec<u8>>,
    /// After the first request.
    response: Vec<u8>,
}

/// A fault of the response's frames.
fn response(what: &'static str, frames: &[Vec<u8>]) -> Fault {
    Fault { what, greeting: None, response: frames.concat() }
}

/// A fault of the fields in a response's head.
fn head(what: &'static str, fields: &[(&str, &str)]) -> Fault {
    response(
        what,
        &[frame(HEADERS, END_HEADERS, 1, &header_block(fields)), frame(DATA, END_STREAM, 1, b"{}")],
    )
}

fn greeting(what: &'static str, bytes: &[u8]) -> Fault {
    Fault { what, greeting: Some(bytes.to_vec()), response: Vec::new() }
}

fn faults() -> Vec<Fault> {
    let block = header_block(&[(":status", "200"), ("x", "1")]);
    let (begun, rest) = block.split_at(8);
    vec![
        greeting("HTTP/1.1 in place of HTTP/2", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
        greeting("bytes that are no frames", &[0xff; 64]),
        greeting("SETTINGS of 5 bytes", &frame(SETTINGS, 0, 0, &[0; 5])),
        greeting("SETTINGS on a stream", &frame(SETTINGS, 0, 1, &[])),
        greeting(
            "SETTINGS with a window beyond the limit",
            &frame(SETTINGS, 0, 0, &[0, 4, 255, 255, 255, 255]),
        ),
        greeting("SETTINGS with frames that are too small", &frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])),
        head("no status", &[("content-type", "application/json")]),
        head("a status that is no number", &[(":status", "two")]),
        head("a status of two digits", &[(":status", "20")]),
        head("a status below 100", &[(":status", "099")]),
        head("two statuses", &[(":status", "200"), (":status", "200")]),
        head("a status after another field", &[("x", "1"), (":status", "200")]),
        head("a name with capital letters", &[(":status", "200"), ("X-A", "1")]),
        head("an empty name", &[(":status", "200"), ("", "1")]),
        head("a name with a space", &[(":status", "200"), ("x a", "1")]),
        head("a value with a NUL", &[(":status", "200"), ("x", "a\0b")]),
        head("a value with a line end", &[(":status", "200"), ("x", "a\r\nb: c")]),
        head("a field of HTTP/1.1 connections", &[(":status", "200"), ("connection", "close")]),
        head("a transfer coding", &[(":status", "200"), ("transfer-encoding", "chunked")]),
        head("a negative length", &[(":status", "200"), ("content-length", "-2")]),
        head("two lengths", &[(":status", "200"), ("content-length", "2"), ("content-length", "3")]),
        response(
            "a length without a body",
            &[frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &header_block(&[(":status", "200"), ("content-length", "2")]),
            )],
        ),
        response("an index beyond the table", &[frame(HEADERS, END_HEADERS, 1, &[0xff, 0xff, 0x7f])]),
        response("a literal that breaks off", &[frame(HEADERS, END_HEADERS, 1, &block[..5])]),
        response(
            "an end that is informational",
            &[frame(HEADERS, END_HEADERS | END_STREAM, 1, &header_block(&[(":status", "103")]))],
        ),
        response("a body before the head", &[frame(DATA, END_STREAM, 1, b"{}")]),
        response("a body on no stream", &[frame(DATA, END_STREAM, 0, b"{}")]),
        response("a head on a stream that nobody opened", &[frame(HEADERS, END_HEADERS, 99, &block)]),
        response("a head on a stream of the server", &[frame(HEADERS, END_HEADERS, 2, &block)]),
        response(
            "a push that nobody wants",
            &[frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &block].concat())],
        ),
        response("a continuation of nothing", &[frame(CONTINUATION, END_HEADERS, 1, rest)]),
        response(
            "another frame in a head",
            &[
                frame(HEADERS, 0, 1, begun),
                frame(DATA, END_STREAM, 1, b"{}"),
                frame(CONTINUATION, 4, 1, rest),
            ],
        ),
        response(
            "a frame that is too large",
            &[vec![0xff, 0xff, 0xff, HEADERS, END_HEADERS, 0, 0, 0, 1], vec![0; 64]],
        ),
        response("a window that grows by nothing", &[frame(WINDOW_UPDATE, 0, 0, &[0; 4])]),
        response(
            "a window that grows beyond its limit",
            &[
                frame(WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255]),
                frame(WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255]),
            ],
        ),
        response("an acknowledgement with settings", &[frame(SETTINGS, ACK, 0, &[0; 6])]),
        response("a PING of 7 bytes", &[frame(PING, 0, 0, &[0; 7])]),
        response("padding beyond the frame", &[frame(HEADERS, END_HEADERS | 8, 1, &[200, 0x88])]),
        response("a reset", &[frame(RST_STREAM, 0, 1, &[0, 0, 0, 2])]),
        response("a reset of no stream", &[frame(RST_STREAM, 0, 0, &[0, 0, 0, 2])]),
        response(
            "the end of the connection with an error",
            &[frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 1])],
        ),
        response("a GOAWAY of 4 bytes", &[frame(GOAWAY, 0, 0, &[0; 4])]),
    ]
}

/// Starts a backend with this fault; returns its address. Its connections stay open, so that a fault is seen at
/// once and not when the connection ends. Connections with HTTP/1.1 are closed.
async fn start_backend(fault: Fault, authority: &CertificateAuthority) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain_address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, fault.clone()));
        }
    });
    let key = generate_key();
    let certificate = issue_certificate("balancer.test", (-1, 1), &key, Some(authority));
    start_tls_proxy_with_protocols(plain_address, &certificate, &key, b"\x02h2\x08http/1.1").await.0
}

async fn serve(mut stream: TcpStream, fault: Fault) -> Option<()> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await.ok()?;
    if preface != PREFACE {
        return None;
    }
    stream.write_all(&fault.greeting.unwrap_or_else(|| frame(SETTINGS, 0, 0, &[]))).await.ok()?;
    read_request(&mut stream).await?;
    stream.write_all(&fault.response).await.ok()?;
    // Until the balancer closes it, or sends another request, which is on another stream.
    read_request(&mut stream).await
}

/// Reads frames until a request has ended.
async fn read_request(stream: &mut TcpStream) -> Option<()> {
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await.ok()?;
        let [a, b, c, frame_type, flags, ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await.ok()?;
        if matches!(frame_type, HEADERS | DATA) && flags & END_STREAM != 0 {
            return Some(());
        }
    }
}

/// Sends requests to a backend with this fault, beside one that works and for a deployment that it has alone.
/// Returns what was wrong.
async fn check_fault(fault: Fault, authority: &CertificateAuthority, working: &str) -> Vec<String> {
    let what = fault.what;
    let address = start_backend(fault, authority).await;
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, authority.certificate.to_pem().unwrap()).unwrap();
    let extra_yaml = format!(
        "http2: true\nweight: 100\ndeployments: {{ gpt-4o: gpt-4o, alone: alone }}\ntls: {{ ca: {}, server_name: balancer.test }}",
        ca.display()
    );
    let faulty = backend_yaml("faulty", &format!("https://{address}"), &extra_yaml);
    let balancer = Balancer::start(&(faulty + working), "retry: { outage: 0s }").await;
    let mut problems = Vec::new();
    for body in [CHAT_BODY, STREAM_BODY] {
        let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
        if (response.status, answering_backend(&response).as_str()) != (200, "working") {
            problems.push(format!("{what}: {response:?}"));
        }
    }
    let alone = CHAT_TARGET.replace("gpt-4o", "alone");
    let response = balancer.post(&alone, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
    if (response.status, response.error_code().as_str()) != (502, "upstream_failed") {
        problems.push(format!("{what}: alone {response:?}"));
    }
    for record in balancer.wait_for_records(3).await {
        let attempt = &record["attempts"][0];
        let is_failure = ["reset", "protocol"].contains(&attempt["error"].as_str().unwrap_or_default());
        if attempt["backend"] != "faulty" || !is_failure || balancer.log().contains("panicked") {
            problems.push(format!("{what}: {attempt}, {}", balancer.log()));
        }
    }
    problems
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_breaks_the_rules_of_http_2_has_failed() {
    let upstream = ScriptedUpstream::start(|_| complete_response(200, "", "{}")).await;
    let endpoint = format!("http://{}", upstream.address);
    let working = backend_yaml("working", &endpoint, "deployments: { gpt-4o: gpt-4o }");
    let authority = generate_authority();
    let checks = faults().into_iter().map(|fault| check_fault(fault, &authority, &working));
    let problems: Vec<_> = stream::iter(checks).buffer_unordered(CONCURRENT_CHECKS).concat().await;
    assert!(problems.is_empty(), "{problems:#?}");
}
