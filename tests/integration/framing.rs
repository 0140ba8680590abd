//! Malformed framing on either side: a request body or a response whose end two parsers could see in
//! different places is never taken for a whole one.

use crate::support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use support::client::find_bytes;
use support::upstream::ScriptedUpstream;
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, STREAM_BODY, answering_backend, backend_yaml,
    wait_until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const WHOLE_RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
const CHUNKED_HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const CHUNKED_FIELDS: &[(&str, &str)] = &[("api-key", CLIENT_KEY), ("Transfer-Encoding", "chunked")];
const NO_BREAKER: &str = "breaker: { failures: 10000 }";
const STREAMED_UPLOADS: &str = "requests: { max_body: 1KiB, body_memory: 1MiB, max_streamed_body: 64MiB }";

/// A request body in chunked encoding that is malformed after a first chunk, or at once.
fn malformed_chunked_bodies() -> Vec<String> {
    let first = format!("{:x}\r\n{CHAT_BODY}\r\n", CHAT_BODY.len());
    let wrong = [
        "\r\n\r\n",
        ";ext\r\n\r\n",
        " \r\n\r\n",
        "-0\r\n\r\n",
        "+0\r\n\r\n",
        "0x0\r\n\r\n",
        "0 \r\n\r\n",
        "0\n\n",
        "0\r\n\n",
        "0\r\nX: a\0\r\n\r\n",
        "0\r\n folded: 1\r\n\r\n",
        "0;a\nb\r\n\r\n",
        "2\r\n{}}0\r\n\r\n",
        "ffffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    ];
    wrong.iter().flat_map(|wrong| [(*wrong).to_owned(), format!("{first}{wrong}")]).collect()
}

/// A backend that reads and answers nothing. Returns its address and everything that it has received.
async fn start_recording_bytes() -> (SocketAddr, Arc<Mutex<Vec<u8>>>, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (received, ended) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<Mutex<usize>>::default());
    let (bytes, ends) = (Arc::clone(&received), Arc::clone(&ended));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (bytes, ends) = (Arc::clone(&bytes), Arc::clone(&ends));
            tokio::spawn(async move {
                let mut piece = vec![0; 64 * 1024];
                while let Ok(count @ 1..) = stream.read(&mut piece).await {
                    bytes.lock().unwrap().extend_from_slice(&piece[..count]);
                }
                *ends.lock().unwrap() += 1;
            });
        }
    });
    (address, received, ended)
}

#[tokio::test]
async fn a_malformed_chunked_body_is_refused_and_reaches_no_backend() {
    let upstream = ScriptedUpstream::start(|_| vec![WHOLE_RESPONSE.to_vec()]).await;
    let balancer = Balancer::start(&upstream.backend_yaml("a"), "").await;
    let head = Client::request_head("POST", CHAT_TARGET, CHUNKED_FIELDS);
    let bodies = malformed_chunked_bodies();
    for body in &bodies {
        // Together with the head, and after it.
        for pieces in [vec![format!("{head}{body}")], vec![head.clone(), body.clone()]] {
            let mut client = balancer.connect().await;
            for piece in pieces {
                client.try_send(piece.as_bytes()).await;
                tokio::task::yield_now().await;
            }
            let response = client.read_response().await;
            assert_eq!((response.status, response.error_code().as_str()), (400, "bad_request"), "{body:?}");
            assert!(response.header("x-request-id").is_some());
            assert!(client.is_closed().await, "{body:?}");
        }
    }
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
    let records = balancer.wait_for_records(2 * bodies.len()).await;
    assert!(records.iter().all(|record| record["status"] == 400 && record["outcome"] == "refused"));
}

#[tokio::test]
async fn a_well_formed_chunked_body_is_whole_in_any_pieces_and_the_connection_stays_usable() {
    let upstream = ScriptedUpstream::start(|_| vec![WHOLE_RESPONSE.to_vec()]).await;
    let balancer = Balancer::start(&upstream.backend_yaml("a"), "").await;
    let mut client = balancer.connect().await;
    let (first, second) = CHAT_BODY.split_at(9);
    let (first_size, second_size) = (first.len(), second.len());
    let body = format!(
        "{first_size:X};a=\"b c\"\r\n{first}\r\n00{second_size:x}\r\n{second}\r\n000\r\nX-Sum: 1\r\n\r\n"
    );
    let request = Client::request_head("POST", CHAT_TARGET, CHUNKED_FIELDS) + &body;
    for size in [1, 7, request.len()] {
        for piece in request.as_bytes().chunks(size) {
            client.send(piece).await;
        }
        assert_eq!(client.read_response().await.status, 200);
    }
    let requests = upstream.requests();
    assert!(requests.len() == 3 && requests.iter().all(|request| request.body == CHAT_BODY.as_bytes()));
}

#[tokio::test]
async fn an_upload_that_turns_out_malformed_is_broken_off_at_the_backend() {
    let (address, received, ended) = start_recording_bytes().await;
    let backends = backend_yaml("a", &format!("http://{address}"), "");
    let balancer = Balancer::start(&backends, STREAMED_UPLOADS).await;
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
    for (uploads, wrong) in ["\r\n\r\n", ";ext\r\n\r\n", "0\n\n"].into_iter().enumerate() {
        received.lock().unwrap().clear();
        let mut client = balancer.connect().await;
        client.send(Client::request_head("POST", "/openai/v1/files", CHUNKED_FIELDS).as_bytes()).await;
        client.send(chunk.as_bytes()).await;
        wait_until("the backend has the first chunk", || {
            received.lock().unwrap().iter().filter(|byte| **byte == b'x').count() >= 0x1000
        })
        .await;
        client.send(wrong.as_bytes()).await;
        let response = client.read_response().await;
        assert_eq!((response.status, response.error_code().as_str()), (400, "bad_request"), "{wrong:?}");
        assert!(client.is_closed().await);
        wait_until("the backend's connection is closed", || *ended.lock().unwrap() == uploads + 1).await;
        let received = received.lock().unwrap().clone();
        assert!(find_bytes(&received, b"\r\n0\r\n").is_none(), "the upload was ended as if it were whole");
    }
}

#[tokio::test]
async fn a_backend_with_a_malformed_head_has_failed() {
    let fields = [
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: -1",
        "Content-Length: +2",
        "Content-Length: 2, 3",
        "Content-Length: two",
        "Content-Length: 99999999999999999999",
        "Content-Length: 2\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "X: a\0b",
        "X: a\r\n folded: b",
        "X : a",
    ];
    let mut responses: Vec<String> =
        fields.iter().map(|field| format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n{{}}")).collect();
    responses.extend([
        "<html>hello</html>".to_owned(),
        "HTTP/1.1 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 999 X\r\n\r\n".to_owned(),
        "HTTP/1.1 099 X\r\n\r\n".to_owned(),
        "HTTP/2 200\r\n\r\n".to_owned(),
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\n{}\r\n{{}}", "X: 1\r\n".repeat(300)),
        format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n{{}}", "x".repeat(2_000_000)),
    ]);
    let working = ScriptedUpstream::start(|_| vec![WHOLE_RESPONSE.to_vec()]).await;
    // It keeps the connection open: what is malformed is seen at once, and not when the connection ends.
    let (address, next_response) = start_responding_once().await;
    let malformed = backend_yaml("malformed", &format!("http://{address}"), "");
    let alone = Balancer::start(&malformed, &format!("retry: {{ attempts: 0 }}\n{NO_BREAKER}")).await;
    for (number, response) in responses.into_iter().enumerate() {
        let shown = response.get(..60).unwrap_or(&response).to_owned();
        *next_response.lock().unwrap() = response.into_bytes();
        let malformed = backend_yaml("malformed", &format!("http://{address}"), "weight: 100");
        let balancer = Balancer::start(&(malformed + &working.backend_yaml("working")), "").await;
        for _ in 0..2 {
            let response = balancer.post_chat().await;
            assert_eq!(
                (response.status, answering_backend(&response).as_str()),
                (200, "working"),
                "{shown:?}"
            );
        }
        for body in [CHAT_BODY, STREAM_BODY] {
            let response = alone.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
            assert_eq!(
                (response.status, response.error_code().as_str(), response.is_complete),
                (502, "upstream_failed", true),
                "{shown:?}"
            );
        }
        for record in &alone.wait_for_records(2 * (number + 1)).await[2 * number..] {
            assert_eq!(record["attempts"][0]["error"], "protocol", "{shown:?}: {record}");
        }
        assert!(!balancer.log().contains("panicked"), "{}", balancer.log());
    }
    assert!(!alone.log().contains("panicked"), "{}", alone.log());
}

/// A backend that answers each connection with the bytes that it is given, and keeps it open.
async fn start_responding_once() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let next_response = Arc::<Mutex<Vec<u8>>>::default();
    let response = Arc::clone(&next_response);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let response = Arc::clone(&response);
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while find_bytes(&bytes, b"\r\n\r\n").is_none() {
                    if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let response = response.lock().unwrap().clone();
                // The balancer may close the connection in the middle of it.
                let _ = stream.write_all(&response).await;
                while stream.read_buf(&mut bytes).await.unwrap_or(0) > 0 {}
            });
        }
    });
    (address, next_response)
}

#[tokio::test]
async fn a_response_with_malformed_chunks_does_not_look_whole() {
    let (address, next_response) = start_responding_once().await;
    let backends = backend_yaml("a", &format!("http://{address}"), "");
    let balancer = Balancer::start(&backends, &format!("retry: {{ attempts: 0 }}\n{NO_BREAKER}")).await;
    let mut count = 0;
    for wrong in [
        "\r\n\r\n",
        ";ext\r\n\r\n",
        " \r\n\r\n",
        "-0\r\n\r\n",
        "0x0\r\n\r\n",
        "0\n\n",
        "0\r\n\n",
        "0;\n\r\n\r\n",
    ] {
        let json = format!("{CHUNKED_HEAD}2\r\n{{}}\r\n{wrong}");
        let event = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n";
        let fields = "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked";
        let stream = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{:x}\r\n{event}\r\n{wrong}", event.len());
        let error = json.replace("200 OK", "404 Not Found");
        for (response, body) in [(json, CHAT_BODY), (stream, STREAM_BODY), (error, CHAT_BODY)] {
            *next_response.lock().unwrap() = response.clone().into_bytes();
            let received = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
            assert!(!received.is_complete || received.status == 502, "{response:?}: {received:?}");
            count += 1;
            let record = balancer.wait_for_records(count).await.remove(count - 1);
            assert_eq!(record["outcome"], "failed", "{response:?}: {record}");
        }
    }
}

#[tokio::test]
async fn equal_lengths_of_a_backend_become_one_for_the_client() {
    for fields in ["Content-Length: 2\r\nContent-Length: 2", "Content-Length: 2, 2"] {
        let response = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{{}}");
        let upstream = ScriptedUpstream::start(move |_| vec![response.clone().into_bytes()]).await;
        let balancer = Balancer::start(&upstream.backend_yaml("a"), "").await;
        let response = balancer.post_chat().await;
        let lengths = response.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let lengths: Vec<&str> = lengths.map(|(_, value)| value.as_str()).collect();
        assert_eq!((response.status, response.text().as_str(), lengths), (200, "{}", vec!["2"]));
    }
}
