//! How connections to backends are used: kept whatever was answered on them, and with as few packets as
//! a request needs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use support::upstream::Upstream;
use support::{Balancer, CHAT, HELLO, KEY, entry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A backend that answers every request on a connection alike, and keeps the connection.
struct Keeping {
    address: SocketAddr,
    /// What came at once, by connection.
    came: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Keeping {
    async fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let came = Arc::<Mutex<Vec<Vec<String>>>>::default();
        let seen = Arc::clone(&came);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let number = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(Vec::new());
                    seen.len() - 1
                };
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let mut bytes = vec![0; 256 * 1024];
                    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                        let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
                        let is_whole = text.ends_with(HELLO);
                        seen.lock().unwrap()[number].push(text);
                        if is_whole {
                            let reply = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}");
                            stream.write_all(reply.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        Self { address, came }
    }

    fn entry(&self, name: &str, tier: u8) -> String {
        entry(name, &format!("http://{}", self.address), &format!("tier: {tier}"))
    }

    fn came(&self) -> Vec<Vec<String>> {
        self.came.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_connection_is_kept_after_a_refusal_and_a_request_comes_at_once() {
    let (refusing, good) = (Keeping::start(503).await, Keeping::start(200).await);
    let backends = [refusing.entry("refusing", 1), good.entry("good", 2)].concat();
    let balancer = Balancer::start(&backends, "").await;
    for _ in 0..3 {
        let reply = balancer.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "{}"));
    }
    for backend in [refusing, good] {
        let came = backend.came();
        assert_eq!(came.len(), 1, "one connection for all requests: {came:?}");
        assert_eq!(came[0].len(), 3, "head and body come together: {came:?}");
        assert!(came[0].iter().all(|text| text.starts_with("POST ") && text.ends_with(HELLO)), "{came:?}");
    }
}

#[tokio::test]
async fn a_connection_that_has_ended_while_idle_is_not_used() {
    let good = Keeping::start(200).await;
    let closing = Upstream::start(|_| {
        // It says that it keeps the connection, and closes it.
        vec![b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\n{}".to_vec()]
    })
    .await;
    let backends = [closing.backend("closing"), good.entry("good", 2)].concat();
    let balancer = Balancer::start(&backends, "").await;
    for n in 1..=5 {
        let reply = balancer.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await;
        assert_eq!(reply.status, 200);
        assert_eq!(closing.requests().len(), n);
    }
    assert!(good.came().is_empty(), "nobody else was asked");
}
