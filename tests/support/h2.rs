//! A client of HTTP/2 over TLS.

use std::net::SocketAddr;
use std::pin::Pin;

use bytes::Bytes;
use h2::client::{SendRequest, handshake};
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use openssl::ssl::{SslConnector, SslMethod, SslVersion};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_openssl::SslStream;

use super::tls::Authority;
use super::{KEY, PATIENCE, Reply};

/// A connection of HTTP/2.
pub struct Connection {
    pub requests: SendRequest<Bytes>,
    task: tokio::task::JoinHandle<()>,
}

/// One request under way.
pub struct Exchange {
    pub response: h2::client::ResponseFuture,
    pub body: SendStream<Bytes>,
}

/// A TLS connection to `balancer.test` that offers these protocols, with at most this version.
pub async fn dial(
    address: SocketAddr,
    authority: &Authority,
    protocols: &[u8],
    most: Option<SslVersion>,
) -> Result<SslStream<TcpStream>, String> {
    let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
    connector.cert_store_mut().add_cert(authority.certificate.clone()).unwrap();
    connector.set_max_proto_version(most).unwrap();
    if !protocols.is_empty() {
        connector.set_alpn_protos(protocols).unwrap();
    }
    let ssl = connector.build().configure().unwrap().into_ssl("balancer.test").unwrap();
    let stream = TcpStream::connect(address).await.map_err(|problem| problem.to_string())?;
    stream.set_nodelay(true).unwrap();
    let mut stream = SslStream::new(ssl, stream).unwrap();
    Pin::new(&mut stream).connect().await.map_err(|problem| problem.to_string())?;
    Ok(stream)
}

impl Connection {
    pub async fn open(address: SocketAddr, authority: &Authority) -> Self {
        let stream = dial(address, authority, b"\x02h2\x08http/1.1", None).await.unwrap();
        assert_eq!(stream.ssl().selected_alpn_protocol(), Some(&b"h2"[..]));
        let (requests, connection) = handshake(stream).await.unwrap();
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self { requests, task }
    }

    /// Begins a POST; its body follows in [`Exchange::body`].
    pub async fn begin(&self, target: &str, headers: &[(&str, &str)]) -> Exchange {
        let mut requests = timeout(PATIENCE, self.requests.clone().ready()).await.unwrap().unwrap();
        let mut request = Request::post(format!("https://balancer.test{target}"));
        if !headers.iter().any(|(name, _)| *name == "api-key") {
            request = request.header("api-key", KEY);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (response, body) = requests.send_request(request.body(()).unwrap(), false).unwrap();
        Exchange { response, body }
    }

    /// Begins a POST with this body.
    pub async fn ask(&self, target: &str, body: &[u8]) -> Exchange {
        let mut exchange = self.begin(target, &[]).await;
        send(&mut exchange.body, body).await;
        exchange
    }

    /// A whole POST.
    pub async fn post(&self, target: &str, body: &[u8]) -> Reply {
        self.ask(target, body).await.reply().await
    }

    /// Ends the connection without a word.
    pub fn abort(self) {
        self.task.abort();
    }
}

impl Exchange {
    pub async fn head(self) -> Result<Response<RecvStream>, h2::Error> {
        timeout(PATIENCE, self.response).await.unwrap()
    }

    pub async fn reply(self) -> Reply {
        let (head, mut body) = self.head().await.unwrap().into_parts();
        let headers = head.headers.iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        let mut reply =
            Reply { status: head.status.as_u16(), headers: headers.collect(), body: Vec::new(), whole: true };
        while let Some(piece) = timeout(PATIENCE, body.data()).await.unwrap() {
            match piece {
                Ok(piece) => {
                    let _ = body.flow_control().release_capacity(piece.len());
                    reply.body.extend_from_slice(&piece);
                }
                Err(_) => {
                    reply.whole = false;
                    break;
                }
            }
        }
        reply
    }
}

/// Sends a body as fast as its window allows.
pub async fn send(stream: &mut SendStream<Bytes>, body: &[u8]) {
    let mut rest = Bytes::copy_from_slice(body);
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len());
        let capacity = std::future::poll_fn(|cx| stream.poll_capacity(cx));
        // Answered, or reset: the other side does not want the rest.
        let Some(Ok(room)) = timeout(PATIENCE, capacity).await.unwrap() else { return };
        let piece = rest.split_to(room.min(rest.len()));
        if stream.send_data(piece, rest.is_empty()).is_err() {
            return;
        }
    }
    if body.is_empty() {
        let _ = stream.send_data(Bytes::new(), true);
    }
}
