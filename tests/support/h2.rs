//! An HTTP/2 client over TLS, and frames for tests that write their own.

use std::net::SocketAddr;
use std::pin::Pin;

use bytes::Bytes;
use h2::client::{SendRequest, handshake};
use h2::{RecvStream, SendStream};
use http::Request;
use openssl::ssl::{SslConnector, SslMethod, SslVersion};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_openssl::SslStream;

use super::tls::CertificateAuthority;
use super::{CLIENT_KEY, Response, TEST_TIMEOUT};

/// A client connection with HTTP/2.
pub struct Http2Connection {
    pub requests: SendRequest<Bytes>,
    task: tokio::task::JoinHandle<()>,
}

/// A request whose response has not been read yet.
pub struct PendingRequest {
    pub response: h2::client::ResponseFuture,
    pub body: SendStream<Bytes>,
}

/// Connects with TLS as a client of `balancer.test` that offers these ALPN protocols and supports TLS
/// versions up to `max_version`.
pub async fn connect_tls(
    address: SocketAddr,
    authority: &CertificateAuthority,
    protocols: &[u8],
    max_version: Option<SslVersion>,
) -> Result<SslStream<TcpStream>, String> {
    let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
    connector.cert_store_mut().add_cert(authority.certificate.clone()).unwrap();
    connector.set_max_proto_version(max_version).unwrap();
    if !protocols.is_empty() {
        connector.set_alpn_protos(protocols).unwrap();
    }
    let ssl = connector.build().configure().unwrap().into_ssl("balancer.test").unwrap();
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).unwrap();
    let mut stream = SslStream::new(ssl, stream).unwrap();
    Pin::new(&mut stream).connect().await.map_err(|error| error.to_string())?;
    Ok(stream)
}

impl Http2Connection {
    pub async fn connect(address: SocketAddr, authority: &CertificateAuthority) -> Self {
        let stream = connect_tls(address, authority, b"\x02h2\x08http/1.1", None).await.unwrap();
        assert_eq!(stream.ssl().selected_alpn_protocol(), Some(&b"h2"[..]));
        let (requests, connection) = handshake(stream).await.unwrap();
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self { requests, task }
    }

    /// Sends the head of a POST; the caller sends the body through [`PendingRequest::body`].
    pub async fn start_post(&self, target: &str, headers: &[(&str, &str)]) -> PendingRequest {
        let mut requests = timeout(TEST_TIMEOUT, self.requests.clone().ready()).await.unwrap().unwrap();
        let mut request = Request::post(format!("https://balancer.test{target}"));
        if !headers.iter().any(|(name, _)| *name == "api-key") {
            request = request.header("api-key", CLIENT_KEY);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (response, body) = requests.send_request(request.body(()).unwrap(), false).unwrap();
        PendingRequest { response, body }
    }

    /// Sends a POST with this body, without waiting for the response.
    pub async fn send_post(&self, target: &str, body: &[u8]) -> PendingRequest {
        let mut exchange = self.start_post(target, &[]).await;
        send_body(&mut exchange.body, body).await;
        exchange
    }

    /// Sends a POST and reads the response.
    pub async fn post(&self, target: &str, body: &[u8]) -> Response {
        self.send_post(target, body).await.read_response().await
    }

    /// Drops the connection without a GOAWAY.
    pub fn abort(self) {
        self.task.abort();
    }
}

impl PendingRequest {
    pub async fn response_head(self) -> Result<http::Response<RecvStream>, h2::Error> {
        timeout(TEST_TIMEOUT, self.response).await.unwrap()
    }

    pub async fn read_response(self) -> Response {
        let (head, mut body) = self.response_head().await.unwrap().into_parts();
        let headers = head.headers.iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        let mut response = Response {
            status: head.status.as_u16(),
            headers: headers.collect(),
            body: Vec::new(),
            is_complete: true,
        };
        while let Some(piece) = timeout(TEST_TIMEOUT, body.data()).await.unwrap() {
            match piece {
                Ok(piece) => {
                    let _ = body.flow_control().release_capacity(piece.len());
                    response.body.extend_from_slice(&piece);
                }
                Err(_) => {
                    response.is_complete = false;
                    break;
                }
            }
        }
        response
    }
}

/// Sends a body and ends the stream, as fast as flow control allows.
pub async fn send_body(stream: &mut SendStream<Bytes>, body: &[u8]) {
    let mut remaining = Bytes::copy_from_slice(body);
    while !remaining.is_empty() {
        stream.reserve_capacity(remaining.len());
        let capacity = std::future::poll_fn(|cx| stream.poll_capacity(cx));
        // No capacity any more: the other side has reset the stream and does not want the rest.
        let Some(Ok(window)) = timeout(TEST_TIMEOUT, capacity).await.unwrap() else { return };
        let piece = remaining.split_to(window.min(remaining.len()));
        if stream.send_data(piece, remaining.is_empty()).is_err() {
            return;
        }
    }
    if body.is_empty() {
        let _ = stream.send_data(Bytes::new(), true);
    }
}

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
// Types and flags of frames (RFC 9113, section 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(frame_type: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let header = [0, length[0], length[1], frame_type, flags, 0, 0, 0, stream];
    [&header, payload].concat()
}

/// Fields as literals without indexing (RFC 7541, section 6.2.2). Each text has fewer than 127 bytes.
pub fn header_block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for text in fields.iter().flat_map(|(name, value)| [["\0", name], ["", value]]) {
        block.extend(text[0].bytes());
        block.push(u8::try_from(text[1].len()).unwrap());
        block.extend(text[1].bytes());
    }
    block
}
