//! Clients that authenticate with tokens of Entra ID instead of keys.

use crate::support;

use std::time::{SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;
use serde_json::{Value, json};
use support::client::Response;
use support::identity::{IdentityPlatform, ServiceBehaviour, TENANT_ID, base64url_encode};
use support::tls::generate_key;
use support::{Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, all_backends_yaml, sha256_hex, start_simulator};

const AUDIENCE: &str = "api://aoai-lb";
const APP_A: &str = "aaaaaaaa-0000-0000-0000-000000000000";
const APP_B: &str = "bbbbbbbb-0000-0000-0000-000000000000";

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A signing key as a JSON Web Key, as Entra ID publishes it.
fn published_key(id: &str, key: &PKey<Private>) -> Value {
    let rsa = key.rsa().unwrap();
    json!({ "kty": "RSA", "use": "sig", "kid": id, "x5t": id, "n": base64url_encode(&rsa.n().to_vec()), "e": base64url_encode(&rsa.e().to_vec()) })
}

#[expect(clippy::needless_pass_by_value, reason = "it is written in the call")]
fn claims_with(extra_claims: Value) -> Value {
    let now = unix_now();
    let mut claims = json!({
        "aud": AUDIENCE, "iss": format!("https://login.microsoftonline.com/{TENANT_ID}/v2.0"),
        "iat": now, "nbf": now - 5, "exp": now + 3_600, "tid": TENANT_ID, "sub": "s", "ver": "2.0",
    });
    for (name, value) in extra_claims.as_object().unwrap() {
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
        };
    }
    claims
}

fn sign(header: &Value, claims: &Value, key: &PKey<Private>) -> String {
    let message = format!(
        "{}.{}",
        base64url_encode(header.to_string().as_bytes()),
        base64url_encode(claims.to_string().as_bytes())
    );
    let mut signer = Signer::new(MessageDigest::sha256(), key).unwrap();
    let signature = signer.sign_oneshot_to_vec(message.as_bytes()).unwrap();
    format!("{message}.{}", base64url_encode(&signature))
}

fn sign_token(id: &str, key: &PKey<Private>, extra_claims: Value) -> String {
    sign(&json!({ "typ": "JWT", "alg": "RS256", "kid": id }), &claims_with(extra_claims), key)
}

fn entra_and_clients_yaml(platform: &IdentityPlatform) -> String {
    let address = platform.address;
    let issuers = format!(
        "'https://login.microsoftonline.com/{TENANT_ID}/v2.0', 'https://sts.windows.net/{TENANT_ID}/'"
    );
    let hash = sha256_hex(CLIENT_KEY);
    format!(
        "entra: {{ tenant: {TENANT_ID}, audiences: ['{AUDIENCE}', other], issuers: [{issuers}], authority: 'http://{address}' }}\n\
         clients:\n\
         \x20 - {{ name: team-a, keys: [ {{ sha256: {hash} }} ], entra: {{ app_ids: [{APP_A}], roles: [Chat.A] }} }}\n\
         \x20 - {{ name: team-b, entra: {{ app_ids: [{APP_B}], roles: [Chat.B, Chat.C] }}, deployments: [gpt-4o] }}\n"
    )
}

struct TokenFixture {
    platform: IdentityPlatform,
    key: PKey<Private>,
    balancer: Balancer,
    _azure: aoai_lb::demo::Simulator,
}

async fn start_fixture() -> TokenFixture {
    let (platform, azure, key) =
        (IdentityPlatform::start().await, start_simulator(&["a"]).await, generate_key());
    platform.publish_signing_keys(&[
        json!({ "kty": "EC", "kid": "ec", "crv": "P-256", "x": "AA", "y": "AA" }),
        published_key("k1", &key),
    ]);
    let balancer =
        Balancer::start_with_clients(&all_backends_yaml(&azure), &entra_and_clients_yaml(&platform), "")
            .await;
    TokenFixture { platform, key, balancer, _azure: azure }
}

impl TokenFixture {
    async fn post_chat_with_token(&self, token: &str) -> Response {
        self.balancer
            .post(CHAT_TARGET, &[("authorization", &format!("Bearer {token}"))], CHAT_BODY.as_bytes())
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_valid_token_authenticates_its_client() {
    let fixture = start_fixture().await;
    let v1 = json!({ "iss": format!("https://sts.windows.net/{TENANT_ID}/"), "appid": APP_B, "ver": "1.0" });
    let cases = [
        (json!({ "azp": APP_A }), "team-a"),
        (v1, "team-b"),
        (json!({ "azp": "another", "roles": ["Chat.B"] }), "team-b"),
        (json!({ "roles": ["Chat.B", "Chat.C", "unknown"] }), "team-b"),
        // The application id takes precedence over roles.
        (json!({ "azp": APP_A, "roles": ["Chat.B"] }), "team-a"),
        (json!({ "azp": APP_A, "aud": ["x", "other"] }), "team-a"),
        // Clocks may differ by up to a minute.
        (json!({ "azp": APP_A, "exp": unix_now() - 30 }), "team-a"),
        (json!({ "azp": APP_A, "nbf": unix_now() + 30 }), "team-a"),
    ];
    let count = cases.len();
    let mut expected = Vec::new();
    for (extra_claims, client) in cases {
        let token = sign_token("k1", &fixture.key, extra_claims.clone());
        let responses =
            [fixture.post_chat_with_token(&token).await, fixture.post_chat_with_token(&token).await];
        assert!(
            responses.iter().all(|response| response.status == 200),
            "{extra_claims}: {}",
            responses[0].text()
        );
        expected.extend([client, client]);
    }
    let records = fixture.balancer.wait_for_records(2 * count).await;
    let clients: Vec<&str> = records.iter().map(|record| record["client"].as_str().unwrap()).collect();
    assert_eq!(clients, expected);
    assert_eq!(
        fixture.platform.signing_key_reads(),
        1,
        "expected one fetch of the signing keys for all requests"
    );
    assert!(!std::fs::read_to_string(fixture.balancer.path("records.jsonl")).unwrap().contains("eyJ"));
    // The rules of a client apply with a token as with a key.
    let role_token = sign_token("k1", &fixture.key, json!({ "roles": ["Chat.B"] }));
    let other = CHAT_TARGET.replace("gpt-4o", "other");
    let bearer = format!("Bearer {role_token}");
    let response = fixture.balancer.post(&other, &[("authorization", &bearer)], CHAT_BODY.as_bytes()).await;
    assert_eq!((response.status, response.error_code().as_str()), (403, "deployment_not_allowed"));
    // A key of one client with a token of another is refused.
    let key_and_token = [("authorization", bearer.as_str()), ("api-key", CLIENT_KEY)];
    let response = fixture.balancer.post(CHAT_TARGET, &key_and_token, CHAT_BODY.as_bytes()).await;
    assert_eq!(response.status, 401, "{}", response.text());
    let expired_bearer =
        format!("Bearer {}", sign_token("k1", &fixture.key, json!({ "azp": APP_B, "exp": 1 })));
    let response = fixture
        .balancer
        .post(
            CHAT_TARGET,
            &[("authorization", &expired_bearer), ("api-key", CLIENT_KEY)],
            CHAT_BODY.as_bytes(),
        )
        .await;
    assert_eq!(response.status, 200, "expected the valid key to be accepted beside an expired token");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_token_is_rejected_with_a_reason() {
    let fixture = start_fixture().await;
    let unknown_key = generate_key();
    let with = |extra_claims: Value| sign_token("k1", &fixture.key, extra_claims);
    let with_header = |header: Value| sign(&header, &claims_with(json!({ "azp": APP_A })), &fixture.key);
    let valid_token = with(json!({ "azp": APP_A }));
    let parts: Vec<&str> = valid_token.split('.').collect();
    let forged = base64url_encode(claims_with(json!({ "azp": APP_B })).to_string().as_bytes());
    // Signed with the public key as an HMAC secret: a verifier that trusts the `alg` of the header would
    // accept this.
    let public = fixture.key.public_key_to_pem().unwrap();
    let hmac = PKey::hmac(&public).unwrap();
    let modulus = PKey::hmac(&fixture.key.rsa().unwrap().n().to_vec()).unwrap();
    let claims_a = claims_with(json!({ "azp": APP_A }));
    let hs256 = json!({ "typ": "JWT", "alg": "HS256", "kid": "k1" });
    let unsigned = format!("{}.{}.", base64url_encode(br#"{"alg":"none","kid":"k1"}"#), parts[1]);
    let cases = [
        (sign(&hs256, &claims_a, &hmac), "not signed with RS256"),
        (sign(&hs256, &claims_a, &modulus), "not signed with RS256"),
        (unsigned, "not a JSON Web Token of a supported form"),
        (format!("{}.{}.", parts[0], parts[1]), "the signature"),
        (format!("{}.{forged}.{}", parts[0], parts[2]), "the signature"),
        (sign_token("k1", &unknown_key, json!({ "azp": APP_A })), "the signature"),
        (sign_token("ec", &fixture.key, json!({ "azp": APP_A })), "not one of Entra ID's"),
        (sign_token("unknown", &fixture.key, json!({ "azp": APP_A })), "not one of Entra ID's"),
        (with_header(json!({ "typ": "JWT", "alg": "RS256" })), "does not name its signing key"),
        (
            with_header(json!({ "alg": "RS256", "kid": "k1", "crit": ["b64"], "b64": false })),
            "critical header",
        ),
        (with_header(json!({ "alg": "PS256", "kid": "k1" })), "not signed with RS256"),
        (with(json!({ "azp": APP_A, "aud": "api://another" })), "another audience"),
        (with(json!({ "azp": APP_A, "aud": null })), "missing or malformed"),
        (
            with(json!({ "azp": APP_A, "iss": "https://login.microsoftonline.com/other/v2.0" })),
            "another issuer",
        ),
        (with(json!({ "azp": APP_A, "iss": null })), "missing or malformed"),
        (with(json!({ "azp": APP_A, "exp": unix_now() - 61 })), "has expired"),
        (with(json!({ "azp": APP_A, "exp": null })), "missing or malformed"),
        (with(json!({ "azp": APP_A, "exp": "soon" })), "missing or malformed"),
        (with(json!({ "azp": APP_A, "nbf": unix_now() + 120 })), "not valid yet"),
        (with(json!({ "azp": "another" })), "belong to no client"),
        (with(json!({ "azp": APP_A.to_uppercase() })), "belong to no client"),
        (with(json!({ "roles": ["Chat.A", "Chat.B"] })), "belong to different clients"),
        (format!("{valid_token}x"), "not a JSON Web Token of a supported form"),
        (format!("eyJ{}", "A".repeat(100)), "invalid key"),
        (format!("{}.{}", valid_token, parts[2]), "invalid key"),
        (valid_token.to_lowercase(), "invalid key"),
    ];
    for (token, reason) in cases {
        let response = fixture.post_chat_with_token(&token).await;
        assert_eq!(
            (response.status, response.error_code().as_str()),
            (401, "invalid_api_key"),
            "{reason}: {token}"
        );
        assert!(response.text().contains(reason), "{reason}: {}", response.text());
    }
    assert!(
        fixture.platform.signing_key_reads() <= 2,
        "expected at most one further fetch of the signing keys for unknown key ids"
    );
    assert_eq!(
        fixture.post_chat_with_token(&valid_token).await.status,
        200,
        "expected the valid token to be accepted afterwards"
    );
    assert!(!fixture.balancer.log().contains("eyJ"));
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_keys_are_fetched_on_demand_and_kept_when_a_fetch_fails() {
    let fixture = start_fixture().await;
    let valid_token = sign_token("k1", &fixture.key, json!({ "azp": APP_A }));
    assert_eq!(fixture.post_chat_with_token(&valid_token).await.status, 200);
    // Entra ID signs with a new key: the first request triggers one fetch, and all others wait for it.
    let new_key = generate_key();
    fixture
        .platform
        .publish_signing_keys(&[published_key("k1", &fixture.key), published_key("k2", &new_key)]);
    fixture.platform.set_signing_keys_behaviour(ServiceBehaviour::DelayedByTenths(3));
    let token_of_new_key = sign_token("k2", &new_key, json!({ "azp": APP_A }));
    let retry_until_accepted = async {
        loop {
            if join_all((0..10).map(|_| fixture.post_chat_with_token(&token_of_new_key)))
                .await
                .iter()
                .all(|response| response.status == 200)
            {
                return;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), retry_until_accepted).await.unwrap();
    assert_eq!(fixture.platform.signing_key_reads(), 2);
    // While Entra ID fails, known keys stay valid, and tokens with unknown keys are refused with 401.
    fixture.platform.set_signing_keys_behaviour(ServiceBehaviour::RespondsWith(500, "oops"));
    for _ in 0..3 {
        assert_eq!(fixture.post_chat_with_token(&valid_token).await.status, 200);
        assert_eq!(
            fixture.post_chat_with_token(&sign_token("k3", &new_key, json!({ "azp": APP_A }))).await.status,
            401
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_rejected_until_signing_keys_have_been_fetched() {
    let (platform, azure, key) =
        (IdentityPlatform::start().await, start_simulator(&["a"]).await, generate_key());
    platform.publish_signing_keys(&[published_key("k1", &key)]);
    let valid_token = sign_token("k1", &key, json!({ "azp": APP_A }));
    let bearer = format!("Bearer {valid_token}");
    for behaviour in [ServiceBehaviour::RespondsWith(404, "{}"), ServiceBehaviour::InvalidResponse] {
        platform.set_signing_keys_behaviour(behaviour);
        let balancer =
            Balancer::start_with_clients(&all_backends_yaml(&azure), &entra_and_clients_yaml(&platform), "")
                .await;
        let response = balancer.post(CHAT_TARGET, &[("authorization", &bearer)], CHAT_BODY.as_bytes()).await;
        assert_eq!(response.status, 401, "{}", response.text());
        balancer.wait_for_log("cannot fetch the signing keys of Entra ID").await;
        assert_eq!(balancer.post_chat().await.status, 200, "expected client keys to be accepted meanwhile");
    }
    // A slow service is waited for.
    platform.set_signing_keys_behaviour(ServiceBehaviour::DelayedByTenths(10));
    let balancer =
        Balancer::start_with_clients(&all_backends_yaml(&azure), &entra_and_clients_yaml(&platform), "")
            .await;
    let response = balancer.post(CHAT_TARGET, &[("authorization", &bearer)], CHAT_BODY.as_bytes()).await;
    assert_eq!(response.status, 200, "{}", response.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_another_type_and_contradicting_ones_are_refused() {
    let fixture = start_fixture().await;
    let issuer = format!("https://login.microsoftonline.com/{TENANT_ID}/v2.0");
    for claims in [
        json!({ "azp": APP_A, "iss": [issuer] }),
        json!({ "azp": APP_A, "iss": [issuer, "https://other.example"] }),
        json!({ "azp": APP_A, "aud": [AUDIENCE, 1] }),
        json!({ "azp": APP_A, "exp": (unix_now() + 60).to_string() }),
        json!({ "azp": APP_A, "nbf": [unix_now() - 60] }),
        json!({ "azp": [APP_A] }),
        json!({ "roles": "Chat.A" }),
        json!({ "azp": APP_A, "appid": APP_B }),
    ] {
        let token = sign_token("k1", &fixture.key, claims.clone());
        let response = fixture.post_chat_with_token(&token).await;
        assert_eq!((response.status, response.error_code().as_str()), (401, "invalid_api_key"), "{claims}");
    }
    for claims in [json!({ "azp": APP_A, "aud": ["x", AUDIENCE] }), json!({ "azp": APP_A, "appid": APP_A })] {
        let token = sign_token("k1", &fixture.key, claims.clone());
        assert_eq!(fixture.post_chat_with_token(&token).await.status, 200, "{claims}");
    }
    for header in [
        json!({ "typ": "JWT", "alg": "RS256", "kid": "k1", "crit": [] }),
        json!({ "typ": "JWT", "alg": "RS256", "kid": "k1", "crit": ["b64"], "b64": false }),
        json!({ "typ": "JWT", "alg": ["RS256"], "kid": "k1" }),
        json!({ "typ": "JWT", "alg": "rs256", "kid": "k1" }),
        json!({ "typ": "JWT", "alg": "RS256", "kid": ["k1"] }),
    ] {
        let token = sign(&header, &claims_with(json!({ "azp": APP_A })), &fixture.key);
        assert_eq!(fixture.post_chat_with_token(&token).await.status, 401, "{header}");
    }
}
