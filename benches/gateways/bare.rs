//! The baseline: a minimal proxy on Pingora's own `HttpProxy`, with round robin over two backends.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use openssl::x509::X509;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::listeners::tls::TlsSettings;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use pingora_load_balancing::LoadBalancer;
use pingora_load_balancing::selection::RoundRobin;

/// The argument that makes the benchmark run as this proxy.
pub const BARE_COMMAND: &str = "bare-pingora";

struct BareProxy {
    backends: LoadBalancer<RoundRobin>,
    /// The authority to trust; without it, the upstream is plain HTTP.
    ca: Option<Arc<Box<[X509]>>>,
    http2: bool,
}

#[derive(Default)]
struct AttemptCount(usize);

#[async_trait]
impl ProxyHttp for BareProxy {
    type CTX = AttemptCount;

    fn new_ctx(&self) -> AttemptCount {
        AttemptCount::default()
    }

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        attempts: &mut AttemptCount,
    ) -> Result<Box<HttpPeer>> {
        attempts.0 += 1;
        let backend = self.backends.select(b"", 8).ok_or_else(|| Error::new(ErrorType::InternalError))?;
        let mut peer = Box::new(HttpPeer::new(backend.addr, self.ca.is_some(), super::HOST.to_owned()));
        peer.options.ca.clone_from(&self.ca);
        if self.http2 {
            peer.options.set_http_version(2, 1);
            peer.options.max_h2_streams = 100;
        }
        Ok(peer)
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        _tries: &mut AttemptCount,
    ) -> Result<()> {
        request.insert_header("host", super::HOST)?;
        request.insert_header("api-key", super::BACKEND_KEY)
    }

    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        attempts: &mut AttemptCount,
    ) -> Result<()> {
        if attempts.0 < 3 && (response.status == 429 || response.status.is_server_error()) {
            let mut error = Error::new(ErrorType::HTTPStatus(response.status.as_u16()));
            error.set_retry(true);
            return Err(error);
        }
        Ok(())
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        _tries: &mut AttemptCount,
        client_reused: bool,
    ) -> Box<Error> {
        if !matches!(error.etype(), ErrorType::HTTPStatus(_)) {
            error.set_retry(client_reused && !session.retry_buffer_truncated());
        }
        error
    }
}

/// Runs the proxy until it is killed.
///
/// # Panics
/// If the arguments are not those of [`command_arguments`].
pub fn run(arguments: &[String]) -> ! {
    let [listen, first, second, ca, http2, certificate, key] = arguments else {
        panic!("invalid arguments: {arguments:?}")
    };
    let server_conf = ServerConf { threads: 1, upstream_keepalive_pool_size: 1024, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, server_conf);
    server.bootstrap();
    let ca = (!ca.is_empty()).then(|| {
        let pem = fs::read(ca).expect("the authority must be readable");
        Arc::new(X509::stack_from_pem(&pem).expect("the authority must be PEM").into_boxed_slice())
    });
    let backends = LoadBalancer::try_from_iter([first, second]).expect("the upstreams must be addresses");
    let proxy = BareProxy { backends, ca, http2: http2 == "true" };
    let mut service = http_proxy_service(&server.configuration, proxy);
    if certificate.is_empty() {
        service.add_tcp(listen);
    } else {
        let settings = TlsSettings::intermediate(certificate, key).expect("the certificate must be readable");
        service.add_tls_with_settings(listen, None, settings);
    }
    server.add_service(service);
    server.run_forever()
}

/// The command-line arguments for [`run`].
pub fn command_arguments(
    listen: SocketAddr,
    upstreams: [SocketAddr; 2],
    ca: Option<&str>,
    http2: bool,
    certificate_and_key: Option<(&str, &str)>,
) -> Vec<String> {
    let (certificate, key) = certificate_and_key.unwrap_or_default();
    let [first, second] = upstreams.map(|address| address.to_string());
    let ca = ca.unwrap_or_default();
    let options = [ca, if http2 { "true" } else { "false" }, certificate, key].map(str::to_owned);
    [BARE_COMMAND.to_owned(), listen.to_string(), first, second].into_iter().chain(options).collect()
}
