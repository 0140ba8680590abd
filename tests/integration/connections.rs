//! Connections to backends: reuse after any response, and head and body in one write.

use crate::support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use support::upstream::ScriptedUpstream;
use support::{Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, backend_yaml};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A backend that sends the same response to every request and keeps the connection open.
struct KeepAliveUpstream {
    address: SocketAddr,
    /// For each connection, the text of each read.
    reads_by_connection: Arc<Mutex<Vec<Vec<String>>>>,
}

impl KeepAliveUpstream {
    async fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let reads_by_connection = Arc::<Mutex<Vec<Vec<String>>>>::default();
        let reads = Arc::clone(&reads_by_connection);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let connection = {
                    let mut reads = reads.lock().unwrap();
                    reads.push(Vec::new());
                    reads.len() - 1
                };
                let reads = Arc::clone(&reads);
                tokio::spawn(async move {
                    let mut bytes = vec![0; 256 * 1024];
                    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                        let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
                        let is_whole = text.ends_with(CHAT_BODY);
                        reads.lock().unwrap()[connection].push(text);
                        if is_whole {
                            let response = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}");
                            stream.write_all(response.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        Self { address, reads_by_connection }
    }

    fn backend_yaml(&self, name: &str, tier: u8) -> String {
        backend_yaml(name, &format!("http://{}", self.address), &format!("tier: {tier}"))
    }

    fn reads_by_connection(&self) -> Vec<Vec<String>> {
        self.reads_by_connection.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_connection_is_reused_after_a_503_and_each_request_arrives_in_one_read() {
    let (failing, working) = (KeepAliveUpstream::start(503).await, KeepAliveUpstream::start(200).await);
    let backends = [failing.backend_yaml("refusing", 1), working.backend_yaml("good", 2)].concat();
    let balancer = Balancer::start(&backends, "").await;
    for _ in 0..3 {
        let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
        assert_eq!((response.status, response.text().as_str()), (200, "{}"));
        // The client has its response before the connection is in the pool again.
        balancer.wait_for_status("nothing is in flight", |status| status["in_flight"] == 0).await;
    }
    for backend in [failing, working] {
        let reads_by_connection = backend.reads_by_connection();
        assert_eq!(
            reads_by_connection.len(),
            1,
            "expected one connection for all requests: {reads_by_connection:?}"
        );
        assert_eq!(
            reads_by_connection[0].len(),
            3,
            "expected head and body in one read: {reads_by_connection:?}"
        );
        assert!(
            reads_by_connection[0].iter().all(|text| text.starts_with("POST ") && text.ends_with(CHAT_BODY)),
            "{reads_by_connection:?}"
        );
    }
}

#[tokio::test]
async fn an_idle_connection_that_the_backend_closed_is_not_reused() {
    let working = KeepAliveUpstream::start(200).await;
    let closing = ScriptedUpstream::start(|_| {
        // The response does not announce the end of the connection, but the upstream closes it.
        vec![b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\n{}".to_vec()]
    })
    .await;
    let backends = [closing.backend_yaml("closing"), working.backend_yaml("good", 2)].concat();
    let balancer = Balancer::start(&backends, "").await;
    for request_count in 1..=5 {
        let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
        assert_eq!(response.status, 200);
        assert_eq!(closing.requests().len(), request_count);
    }
    assert!(working.reads_by_connection().is_empty(), "expected no request at the other backend");
}
