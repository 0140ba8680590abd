//! Simulated identity services of Azure: the instance metadata service, the App Service identity
//! endpoint, Entra ID and Key Vault. They check requests as the real ones do, and can be told to fail.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use super::upstream::{PAUSE_100_MS, RawRequest, ScriptedUpstream, complete_response};

pub const TENANT_ID: &str = "11111111-2222-3333-4444-555555555555";
pub const CLIENT_ID: &str = "66666666-7777-8888-9999-000000000000";
pub const APP_SECRET: &str = "the-secret-of~the.app+/=";
pub const PLATFORM_HEADER_VALUE: &str = "the-header-of-the-platform";
pub const FEDERATED_TOKEN: &str = "eyJh.federated.token";

/// How a simulated service behaves.
#[derive(Clone, Debug, Default)]
pub enum ServiceBehaviour {
    #[default]
    Normal,
    /// Responds with this status and body, and with a `Retry-After` of one second.
    RespondsWith(u16, &'static str),
    /// Responds normally after this many tenths of a second.
    DelayedByTenths(usize),
    /// Responds with 200 and HTML instead of JSON.
    InvalidResponse,
}

#[derive(Default)]
struct PlatformState {
    /// Of every token endpoint.
    token_behaviour: ServiceBehaviour,
    vault_behaviour: ServiceBehaviour,
    token_lifetime_secs: u64,
    issued_tokens: usize,
    valid_tokens: HashSet<String>,
    /// For each token request: the kind of identity or proof, and the resource or scope.
    token_requests: Vec<(String, String)>,
    secrets: HashMap<String, String>,
    /// The expiry dates of secrets, in seconds since 1970.
    secret_expiry_dates: HashMap<String, u64>,
    secret_reads: usize,
    /// The JSON Web Key Set that Entra ID publishes.
    signing_keys: Value,
    signing_keys_behaviour: ServiceBehaviour,
    signing_key_reads: usize,
}

/// The running identity services, all on one address.
#[derive(Clone)]
pub struct IdentityPlatform {
    pub address: SocketAddr,
    state: Arc<Mutex<PlatformState>>,
}

impl IdentityPlatform {
    pub async fn start() -> Self {
        let state: Arc<Mutex<PlatformState>> = Arc::default();
        state.lock().unwrap().token_lifetime_secs = 3_600;
        let shared = Arc::clone(&state);
        let upstream = ScriptedUpstream::start(move |request| respond(request, &shared)).await;
        Self { address: upstream.address, state }
    }

    fn lock(&self) -> MutexGuard<'_, PlatformState> {
        self.state.lock().unwrap()
    }

    pub fn set_token_behaviour(&self, behaviour: ServiceBehaviour) {
        self.lock().token_behaviour = behaviour;
    }

    pub fn set_vault_behaviour(&self, behaviour: ServiceBehaviour) {
        self.lock().vault_behaviour = behaviour;
    }

    pub fn set_signing_keys_behaviour(&self, behaviour: ServiceBehaviour) {
        self.lock().signing_keys_behaviour = behaviour;
    }

    /// Sets the lifetime of tokens issued from now on.
    pub fn set_token_lifetime(&self, seconds: u64) {
        self.lock().token_lifetime_secs = seconds;
    }

    /// Makes all tokens issued so far invalid.
    pub fn revoke_tokens(&self) {
        self.lock().valid_tokens.clear();
    }

    pub fn set_secret(&self, name: &str, secret: &str) {
        self.lock().secrets.insert(name.to_owned(), secret.to_owned());
    }

    /// Gives a secret an expiry date, in seconds since 1970.
    pub fn set_secret_expiry_date(&self, name: &str, seconds: u64) {
        self.lock().secret_expiry_dates.insert(name.to_owned(), seconds);
    }

    pub fn publish_signing_keys(&self, keys: &[Value]) {
        self.lock().signing_keys = json!({ "keys": keys });
    }

    pub fn issued_tokens(&self) -> usize {
        self.lock().issued_tokens
    }

    pub fn secret_reads(&self) -> usize {
        self.lock().secret_reads
    }

    pub fn signing_key_reads(&self) -> usize {
        self.lock().signing_key_reads
    }

    pub fn token_requests(&self) -> Vec<(String, String)> {
        self.lock().token_requests.clone()
    }

    pub fn is_valid_token(&self, token: &str) -> bool {
        self.lock().valid_tokens.contains(token)
    }

    /// The environment variables that point a managed identity to this simulated metadata service.
    pub fn vm_environment(&self) -> Vec<(&'static str, String)> {
        vec![("AZURE_POD_IDENTITY_AUTHORITY_HOST", format!("http://{}", self.address))]
    }

    /// The URL of a secret, for `key_vault` of a credential.
    pub fn secret_url(&self, name: &str) -> String {
        format!("http://{}/secrets/{name}", self.address)
    }
}

fn respond(request: &RawRequest, state: &Mutex<PlatformState>) -> Vec<Vec<u8>> {
    let mut state = state.lock().unwrap();
    let line = request.head.lines().next().unwrap_or_default();
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let path = target.split('?').next().unwrap_or_default();
    let (behaviour, body) = match path {
        "/metadata/identity/oauth2/token" | "/msi/token" => {
            let has_header = match path {
                "/msi/token" => {
                    request_header(request, "x-identity-header").as_deref() == Some(PLATFORM_HEADER_VALUE)
                }
                _ => request_header(request, "metadata").as_deref() == Some("true"),
            };
            let behaviour = state.token_behaviour.clone();
            (
                behaviour,
                if has_header {
                    managed_identity_token(&mut state, path, &target)
                } else {
                    (400, json!({ "error": "invalid_request" }))
                },
            )
        }
        _ if path.ends_with("/oauth2/v2.0/token") => {
            let form = parse_form(&String::from_utf8_lossy(&request.body));
            (state.token_behaviour.clone(), application_token(&mut state, path, &form))
        }
        _ if path.ends_with("/discovery/v2.0/keys") => {
            state.signing_key_reads += 1;
            (state.signing_keys_behaviour.clone(), (200, state.signing_keys.clone()))
        }
        _ if path.starts_with("/secrets/") => {
            state.secret_reads += 1;
            let token = request_header(request, "authorization").unwrap_or_default();
            (
                state.vault_behaviour.clone(),
                vault_secret(&state, path, token.strip_prefix("Bearer ").unwrap_or_default()),
            )
        }
        _ => (ServiceBehaviour::Normal, (404, json!({ "error": "not_found" }))),
    };
    let mut pieces = Vec::new();
    match behaviour {
        ServiceBehaviour::RespondsWith(status, body) => {
            return complete_response(status, "Retry-After: 1", body);
        }
        ServiceBehaviour::InvalidResponse => return complete_response(200, "", "<html>"),
        ServiceBehaviour::DelayedByTenths(tenths) => pieces.extend(vec![PAUSE_100_MS.to_vec(); tenths]),
        ServiceBehaviour::Normal => {}
    }
    let (status, body) = body;
    pieces.extend(complete_response(status, "Content-Type: application/json", &body.to_string()));
    pieces
}

/// The token response of a managed identity. The two services format it differently: numbers are
/// strings, and App Service has no `expires_in`.
fn managed_identity_token(state: &mut PlatformState, path: &str, target: &str) -> (u16, Value) {
    let query = parse_form(target.split_once('?').map_or("", |(_, query)| query));
    let resource = query.get("resource").cloned().unwrap_or_default();
    if resource.ends_with("/.default") || resource.is_empty() {
        return (400, json!({ "error": "invalid_resource" }));
    }
    if query.get("client_id").is_some_and(|id| id != CLIENT_ID) {
        return (400, json!({ "error": "invalid_request", "error_description": "Identity not found" }));
    }
    let identity_kind = if query.contains_key("client_id") { "user" } else { "system" };
    state.token_requests.push((
        format!("{} {identity_kind}", if path == "/msi/token" { "app" } else { "machine" }),
        resource,
    ));
    let token = issue_token(state);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let expires_on = (now + state.token_lifetime_secs).to_string();
    match path {
        "/msi/token" => {
            (200, json!({ "access_token": token, "expires_on": expires_on, "token_type": "Bearer" }))
        }
        _ => (
            200,
            json!({ "access_token": token, "expires_in": state.token_lifetime_secs.to_string(), "expires_on": expires_on }),
        ),
    }
}

fn application_token(state: &mut PlatformState, path: &str, form: &HashMap<String, String>) -> (u16, Value) {
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    if path != format!("/{TENANT_ID}/oauth2/v2.0/token") {
        return (
            400,
            json!({ "error": "invalid_request", "error_description": "AADSTS90002: Tenant not found." }),
        );
    }
    let proof = match (field("client_secret"), field("client_assertion")) {
        (secret, "") if secret == APP_SECRET || state.secrets.values().any(|accepted| accepted == secret) => {
            "secret"
        }
        ("", FEDERATED_TOKEN) => "federated",
        ("", assertion) if is_valid_assertion(assertion) => "certificate",
        _ => {
            let description = "AADSTS7000215: Invalid client secret provided.";
            return (401, json!({ "error": "invalid_client", "error_description": description }));
        }
    };
    if field("client_id") != CLIENT_ID || field("grant_type") != "client_credentials" {
        return (
            400,
            json!({ "error": "unauthorized_client", "error_description": "AADSTS700016: Not found." }),
        );
    }
    state.token_requests.push((proof.to_owned(), field("scope").to_owned()));
    let token = issue_token(state);
    (200, json!({ "access_token": token, "expires_in": state.token_lifetime_secs, "token_type": "Bearer" }))
}

fn issue_token(state: &mut PlatformState) -> String {
    state.issued_tokens += 1;
    let token = format!("token-{}", state.issued_tokens);
    state.valid_tokens.insert(token.clone());
    token
}

fn vault_secret(state: &PlatformState, path: &str, token: &str) -> (u16, Value) {
    if !state.valid_tokens.contains(token) {
        return (
            401,
            json!({ "error": { "code": "Unauthorized", "message": "AKV10000: Request is missing a token." } }),
        );
    }
    let name = path.strip_prefix("/secrets/").unwrap_or_default();
    match state.secrets.get(name) {
        Some(secret) => {
            let mut attributes = json!({ "enabled": true });
            if let Some(seconds) = state.secret_expiry_dates.get(name) {
                attributes["exp"] = json!(seconds);
            }
            (200, json!({ "value": secret, "id": path, "attributes": attributes }))
        }
        None => (404, json!({ "error": { "code": "SecretNotFound", "message": "hunter2 was not found." } })),
    }
}

/// The certificate of the application and its private key, the same in all tests of a process.
pub fn application_certificate() -> (openssl::x509::X509, openssl::pkey::PKey<openssl::pkey::Private>) {
    static CERTIFICATE_AND_KEY: std::sync::OnceLock<(
        openssl::x509::X509,
        openssl::pkey::PKey<openssl::pkey::Private>,
    )> = std::sync::OnceLock::new();
    let pair = CERTIFICATE_AND_KEY.get_or_init(|| {
        let key = super::tls::generate_key();
        (super::tls::issue_certificate("app", (-1, 1), &key, None), key)
    });
    pair.clone()
}

/// Whether a client assertion is valid, by the checks of Entra ID.
fn is_valid_assertion(assertion: &str) -> bool {
    use openssl::hash::MessageDigest;
    use openssl::rsa::Padding;
    use openssl::sign::{RsaPssSaltlen, Verifier};

    let parts: Vec<&str> = assertion.split('.').collect();
    let [header, claims, signature] = parts[..] else { return false };
    let parse_part = |part: &str| serde_json::from_slice::<Value>(&base64url_decode(part)).unwrap();
    let (certificate, key) = application_certificate();
    let thumbprint = openssl::sha::sha256(&certificate.to_der().unwrap());
    let (head, body) = (parse_part(header), parse_part(claims));
    let mut verifier = Verifier::new(MessageDigest::sha256(), &key).unwrap();
    verifier.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
    verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).unwrap();
    let signed_text = format!("{header}.{claims}");
    let audience = body["aud"].as_str().unwrap();
    head["alg"] == "PS256"
        && head["typ"] == "JWT"
        && base64url_decode(head["x5t#S256"].as_str().unwrap()) == thumbprint
        && body["iss"] == CLIENT_ID
        && body["sub"] == CLIENT_ID
        && audience.starts_with("https://")
        && audience.ends_with(&format!("/{TENANT_ID}/oauth2/v2.0/token"))
        && body["exp"].as_u64().unwrap() - body["nbf"].as_u64().unwrap() <= 600
        && verifier.verify_oneshot(&base64url_decode(signature), signed_text.as_bytes()).unwrap()
}

/// Decodes base64url without padding.
pub fn base64url_decode(text: &str) -> Vec<u8> {
    let mut text = text.replace('-', "+").replace('_', "/");
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    openssl::base64::decode_block(&text).unwrap()
}

/// Encodes as base64url without padding.
pub fn base64url_encode(bytes: &[u8]) -> String {
    openssl::base64::encode_block(bytes).replace('+', "-").replace('/', "_").replace('=', "")
}

pub fn request_header(request: &RawRequest, name: &str) -> Option<String> {
    request.head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

fn parse_form(text: &str) -> HashMap<String, String> {
    let decode = |text: &str| {
        let mut decoded = Vec::new();
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'%' => {
                    let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                    decoded.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                }
                b'+' => decoded.push(b' '),
                other => decoded.push(other),
            }
        }
        String::from_utf8(decoded).unwrap()
    };
    text.split('&')
        .filter_map(|field| field.split_once('='))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

/// A simulated Azure OpenAI resource that accepts a changeable list of keys, and tokens.
pub struct AuthenticatedResource {
    pub upstream: ScriptedUpstream,
    pub accepted_keys: Arc<Mutex<HashSet<String>>>,
}

pub const COMPLETION_BODY: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#;
const UNAUTHORIZED_BODY: &str = r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint."}}"#;

impl AuthenticatedResource {
    /// Starts a resource that accepts these keys, and the valid tokens of the platform if there is one.
    pub async fn start(keys: &[&str], platform: Option<&IdentityPlatform>) -> Self {
        let accepted_keys =
            Arc::new(Mutex::new(keys.iter().map(|key| (*key).to_owned()).collect::<HashSet<_>>()));
        let (accepted, platform) = (Arc::clone(&accepted_keys), platform.cloned());
        let upstream = ScriptedUpstream::start(move |request| {
            let key = request_header(request, "api-key");
            let token = request_header(request, "authorization");
            let token = token.as_deref().and_then(|token| token.strip_prefix("Bearer "));
            let by_key = key.is_some_and(|key| accepted.lock().unwrap().contains(&key));
            let by_token =
                token.zip(platform.as_ref()).is_some_and(|(token, platform)| platform.is_valid_token(token));
            match by_key || by_token {
                true => complete_response(200, "Content-Type: application/json", COMPLETION_BODY),
                false => complete_response(401, "Content-Type: application/json", UNAUTHORIZED_BODY),
            }
        })
        .await;
        Self { upstream, accepted_keys }
    }

    pub fn accept_keys(&self, keys: &[&str]) {
        *self.accepted_keys.lock().unwrap() = keys.iter().map(|key| (*key).to_owned()).collect();
    }

    /// The YAML entry of `backends` for this resource.
    pub fn backend_yaml(&self, name: &str, credential: &str) -> String {
        let address = self.upstream.address;
        format!("  - name: {name}\n    endpoint: http://{address}\n    credential: {{ {credential} }}\n")
    }
}
