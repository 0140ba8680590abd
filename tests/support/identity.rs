//! Simulated services around a machine in Azure: its metadata service, the platform of App Service,
//! Entra ID and a vault. They insist on what the real ones insist on, and misbehave when told to.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use super::upstream::{PAUSE, Request, Upstream, reply};

pub const TENANT: &str = "11111111-2222-3333-4444-555555555555";
pub const CLIENT: &str = "66666666-7777-8888-9999-000000000000";
pub const APP_SECRET: &str = "the-secret-of~the.app+/=";
pub const HEADER: &str = "the-header-of-the-platform";
pub const FEDERATED: &str = "eyJh.federated.token";

/// How a service behaves.
#[derive(Clone, Debug, Default)]
pub enum Temper {
    #[default]
    Good,
    /// This status with this body, and a `Retry-After` of one second.
    Says(u16, &'static str),
    /// It answers well after so many tenths of a second.
    Slow(usize),
    /// What it answers is nothing that it should.
    Garbage,
}

#[derive(Default)]
struct State {
    /// Of whoever gives tokens.
    tokens_temper: Temper,
    vault_temper: Temper,
    /// Seconds.
    life: u64,
    issued: usize,
    valid: HashSet<String>,
    /// What was asked for: kind of proof, and resource or scope.
    asked: Vec<(String, String)>,
    secrets: HashMap<String, String>,
    reads: usize,
    /// The keys that Entra ID signs with, as it publishes them.
    keys: Value,
    keys_temper: Temper,
    key_reads: usize,
}

#[derive(Clone)]
pub struct Platform {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Platform {
    pub async fn start() -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        state.lock().unwrap().life = 3_600;
        let shared = Arc::clone(&state);
        let upstream = Upstream::start(move |request| answer(request, &shared)).await;
        Self { address: upstream.address, state }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn tokens_are(&self, temper: Temper) {
        self.lock().tokens_temper = temper;
    }

    pub fn vault_is(&self, temper: Temper) {
        self.lock().vault_temper = temper;
    }

    pub fn keys_are(&self, temper: Temper) {
        self.lock().keys_temper = temper;
    }

    /// Tokens issued from now on live so long.
    pub fn tokens_live(&self, seconds: u64) {
        self.lock().life = seconds;
    }

    /// Tokens issued so far are no good any more.
    pub fn revoke(&self) {
        self.lock().valid.clear();
    }

    pub fn put(&self, name: &str, secret: &str) {
        self.lock().secrets.insert(name.to_owned(), secret.to_owned());
    }

    pub fn publish(&self, keys: &[Value]) {
        self.lock().keys = json!({ "keys": keys });
    }

    pub fn issued(&self) -> usize {
        self.lock().issued
    }

    pub fn reads(&self) -> usize {
        self.lock().reads
    }

    pub fn key_reads(&self) -> usize {
        self.lock().key_reads
    }

    pub fn asked(&self) -> Vec<(String, String)> {
        self.lock().asked.clone()
    }

    pub fn is_valid(&self, token: &str) -> bool {
        self.lock().valid.contains(token)
    }

    /// The environment of a virtual machine.
    pub fn machine(&self) -> Vec<(&'static str, String)> {
        vec![("AZURE_POD_IDENTITY_AUTHORITY_HOST", format!("http://{}", self.address))]
    }

    /// The `key_vault` of a credential.
    pub fn secret(&self, name: &str) -> String {
        format!("http://{}/secrets/{name}", self.address)
    }
}

fn answer(request: &Request, state: &Mutex<State>) -> Vec<Vec<u8>> {
    let mut state = state.lock().unwrap();
    let line = request.head.lines().next().unwrap_or_default();
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let path = target.split('?').next().unwrap_or_default();
    let (temper, body) = match path {
        "/metadata/identity/oauth2/token" | "/msi/token" => {
            let shown = match path {
                "/msi/token" => header(request, "x-identity-header").as_deref() == Some(HEADER),
                _ => header(request, "metadata").as_deref() == Some("true"),
            };
            let temper = state.tokens_temper.clone();
            (
                temper,
                if shown {
                    managed(&mut state, path, &target)
                } else {
                    (400, json!({ "error": "invalid_request" }))
                },
            )
        }
        _ if path.ends_with("/oauth2/v2.0/token") => {
            let form = form(&String::from_utf8_lossy(&request.body));
            (state.tokens_temper.clone(), application(&mut state, path, &form))
        }
        _ if path.ends_with("/discovery/v2.0/keys") => {
            state.key_reads += 1;
            (state.keys_temper.clone(), (200, state.keys.clone()))
        }
        _ if path.starts_with("/secrets/") => {
            state.reads += 1;
            let token = header(request, "authorization").unwrap_or_default();
            (
                state.vault_temper.clone(),
                vault(&state, path, token.strip_prefix("Bearer ").unwrap_or_default()),
            )
        }
        _ => (Temper::Good, (404, json!({ "error": "not_found" }))),
    };
    let mut pieces = Vec::new();
    match temper {
        Temper::Says(status, body) => return reply(status, "Retry-After: 1", body),
        Temper::Garbage => return reply(200, "", "<html>"),
        Temper::Slow(tenths) => pieces.extend(vec![PAUSE.to_vec(); tenths]),
        Temper::Good => {}
    }
    let (status, body) = body;
    pieces.extend(reply(status, "Content-Type: application/json", &body.to_string()));
    pieces
}

/// What is granted, as each of them writes it.
fn managed(state: &mut State, path: &str, target: &str) -> (u16, Value) {
    let query = form(target.split_once('?').map_or("", |(_, query)| query));
    let resource = query.get("resource").cloned().unwrap_or_default();
    if resource.ends_with("/.default") || resource.is_empty() {
        return (400, json!({ "error": "invalid_resource" }));
    }
    if query.get("client_id").is_some_and(|id| id != CLIENT) {
        return (400, json!({ "error": "invalid_request", "error_description": "Identity not found" }));
    }
    let which = if query.contains_key("client_id") { "user" } else { "system" };
    state.asked.push((format!("{} {which}", if path == "/msi/token" { "app" } else { "machine" }), resource));
    let token = issue(state);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let on = (now + state.life).to_string();
    match path {
        "/msi/token" => (200, json!({ "access_token": token, "expires_on": on, "token_type": "Bearer" })),
        _ => (200, json!({ "access_token": token, "expires_in": state.life.to_string(), "expires_on": on })),
    }
}

fn application(state: &mut State, path: &str, form: &HashMap<String, String>) -> (u16, Value) {
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    if path != format!("/{TENANT}/oauth2/v2.0/token") {
        return (
            400,
            json!({ "error": "invalid_request", "error_description": "AADSTS90002: Tenant not found." }),
        );
    }
    let proof = match (field("client_secret"), field("client_assertion")) {
        (secret, "") if secret == APP_SECRET || state.secrets.values().any(|known| known == secret) => {
            "secret"
        }
        ("", FEDERATED) => "federated",
        ("", assertion) if is_signed(assertion) => "certificate",
        _ => {
            let description = "AADSTS7000215: Invalid client secret provided.";
            return (401, json!({ "error": "invalid_client", "error_description": description }));
        }
    };
    if field("client_id") != CLIENT || field("grant_type") != "client_credentials" {
        return (
            400,
            json!({ "error": "unauthorized_client", "error_description": "AADSTS700016: Not found." }),
        );
    }
    state.asked.push((proof.to_owned(), field("scope").to_owned()));
    let token = issue(state);
    (200, json!({ "access_token": token, "expires_in": state.life, "token_type": "Bearer" }))
}

fn issue(state: &mut State) -> String {
    state.issued += 1;
    let token = format!("token-{}", state.issued);
    state.valid.insert(token.clone());
    token
}

fn vault(state: &State, path: &str, token: &str) -> (u16, Value) {
    if !state.valid.contains(token) {
        return (
            401,
            json!({ "error": { "code": "Unauthorized", "message": "AKV10000: Request is missing a token." } }),
        );
    }
    match path.strip_prefix("/secrets/").and_then(|name| state.secrets.get(name)) {
        Some(secret) => (200, json!({ "value": secret, "id": path, "attributes": { "enabled": true } })),
        None => (404, json!({ "error": { "code": "SecretNotFound", "message": "hunter2 was not found." } })),
    }
}

/// The certificate of an application that has one, and its key.
pub fn certificate() -> (openssl::x509::X509, openssl::pkey::PKey<openssl::pkey::Private>) {
    static PAIR: std::sync::OnceLock<(openssl::x509::X509, openssl::pkey::PKey<openssl::pkey::Private>)> =
        std::sync::OnceLock::new();
    let pair = PAIR.get_or_init(|| {
        let key = super::tls::key();
        (super::tls::certificate("app", (-1, 1), &key, None), key)
    });
    pair.clone()
}

/// Whether an assertion is one of the application, as Entra ID checks it.
fn is_signed(assertion: &str) -> bool {
    use openssl::hash::MessageDigest;
    use openssl::rsa::Padding;
    use openssl::sign::{RsaPssSaltlen, Verifier};

    let parts: Vec<&str> = assertion.split('.').collect();
    let [header, claims, signature] = parts[..] else { return false };
    let read = |part: &str| serde_json::from_slice::<Value>(&decoded(part)).unwrap();
    let (certificate, key) = certificate();
    let thumbprint = openssl::sha::sha256(&certificate.to_der().unwrap());
    let (head, body) = (read(header), read(claims));
    let mut verifier = Verifier::new(MessageDigest::sha256(), &key).unwrap();
    verifier.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
    verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).unwrap();
    let signed = format!("{header}.{claims}");
    let audience = body["aud"].as_str().unwrap();
    head["alg"] == "PS256"
        && head["typ"] == "JWT"
        && decoded(head["x5t#S256"].as_str().unwrap()) == thumbprint
        && body["iss"] == CLIENT
        && body["sub"] == CLIENT
        && audience.starts_with("https://")
        && audience.ends_with(&format!("/{TENANT}/oauth2/v2.0/token"))
        && body["exp"].as_u64().unwrap() - body["nbf"].as_u64().unwrap() <= 600
        && verifier.verify_oneshot(&decoded(signature), signed.as_bytes()).unwrap()
}

/// base64url without padding.
pub fn decoded(text: &str) -> Vec<u8> {
    let mut text = text.replace('-', "+").replace('_', "/");
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    openssl::base64::decode_block(&text).unwrap()
}

/// base64url without padding.
pub fn encoded(bytes: &[u8]) -> String {
    openssl::base64::encode_block(bytes).replace('+', "-").replace('/', "_").replace('=', "")
}

pub fn header(request: &Request, name: &str) -> Option<String> {
    request.head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

fn form(text: &str) -> HashMap<String, String> {
    let decode = |text: &str| {
        let mut out = Vec::new();
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'%' => {
                    let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                    out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                }
                b'+' => out.push(b' '),
                other => out.push(other),
            }
        }
        String::from_utf8(out).unwrap()
    };
    text.split('&').filter_map(|field| field.split_once('=')).map(|(k, v)| (decode(k), decode(v))).collect()
}

/// A resource that admits whoever shows one of the keys or tokens it is told of.
pub struct Resource {
    pub upstream: Upstream,
    pub admits: Arc<Mutex<HashSet<String>>>,
}

pub const ANSWER: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#;
const REFUSAL: &str = r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint."}}"#;

impl Resource {
    /// One that admits these keys, or tokens of the platform that are valid.
    pub async fn start(keys: &[&str], platform: Option<&Platform>) -> Self {
        let admits = Arc::new(Mutex::new(keys.iter().map(|key| (*key).to_owned()).collect::<HashSet<_>>()));
        let (known, platform) = (Arc::clone(&admits), platform.cloned());
        let upstream = Upstream::start(move |request| {
            let key = header(request, "api-key");
            let token = header(request, "authorization");
            let token = token.as_deref().and_then(|token| token.strip_prefix("Bearer "));
            let by_key = key.is_some_and(|key| known.lock().unwrap().contains(&key));
            let by_token =
                token.zip(platform.as_ref()).is_some_and(|(token, platform)| platform.is_valid(token));
            match by_key || by_token {
                true => reply(200, "Content-Type: application/json", ANSWER),
                false => reply(401, "Content-Type: application/json", REFUSAL),
            }
        })
        .await;
        Self { upstream, admits }
    }

    pub fn admit(&self, keys: &[&str]) {
        *self.admits.lock().unwrap() = keys.iter().map(|key| (*key).to_owned()).collect();
    }

    /// The entry of a configuration for it.
    pub fn entry(&self, name: &str, credential: &str) -> String {
        let address = self.upstream.address;
        format!("  - name: {name}\n    endpoint: http://{address}\n    credential: {{ {credential} }}\n")
    }
}
