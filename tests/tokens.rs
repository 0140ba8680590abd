//! Clients with tokens of Entra ID in place of keys: who is let in, as whom, and who is not.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;
use serde_json::{Value, json};
use support::client::Reply;
use support::identity::{Platform, TENANT, Temper, encoded};
use support::tls::key;
use support::{Balancer, CHAT, HELLO, KEY, azure, backends, sha256};

const AUDIENCE: &str = "api://aoai-lb";
const APP_A: &str = "aaaaaaaa-0000-0000-0000-000000000000";
const APP_B: &str = "bbbbbbbb-0000-0000-0000-000000000000";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A key as Entra ID publishes it.
fn published(id: &str, key: &PKey<Private>) -> Value {
    let rsa = key.rsa().unwrap();
    json!({ "kty": "RSA", "use": "sig", "kid": id, "x5t": id, "n": encoded(&rsa.n().to_vec()), "e": encoded(&rsa.e().to_vec()) })
}

#[expect(clippy::needless_pass_by_value, reason = "it is written in the call")]
fn claims(more: Value) -> Value {
    let now = now();
    let mut claims = json!({
        "aud": AUDIENCE, "iss": format!("https://login.microsoftonline.com/{TENANT}/v2.0"),
        "iat": now, "nbf": now - 5, "exp": now + 3_600, "tid": TENANT, "sub": "s", "ver": "2.0",
    });
    for (name, value) in more.as_object().unwrap() {
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
        };
    }
    claims
}

fn signed(header: &Value, claims: &Value, key: &PKey<Private>) -> String {
    let message =
        format!("{}.{}", encoded(header.to_string().as_bytes()), encoded(claims.to_string().as_bytes()));
    let mut signer = Signer::new(MessageDigest::sha256(), key).unwrap();
    let signature = signer.sign_oneshot_to_vec(message.as_bytes()).unwrap();
    format!("{message}.{}", encoded(&signature))
}

fn token(id: &str, key: &PKey<Private>, more: Value) -> String {
    signed(&json!({ "typ": "JWT", "alg": "RS256", "kid": id }), &claims(more), key)
}

fn blocks(platform: &Platform) -> String {
    let address = platform.address;
    let issuers =
        format!("'https://login.microsoftonline.com/{TENANT}/v2.0', 'https://sts.windows.net/{TENANT}/'");
    let hash = sha256(KEY);
    format!(
        "entra: {{ tenant: {TENANT}, audiences: ['{AUDIENCE}', other], issuers: [{issuers}], authority: 'http://{address}' }}\n\
         clients:\n\
         \x20 - {{ name: team-a, keys: [ {{ sha256: {hash} }} ], entra: {{ app_ids: [{APP_A}], roles: [Chat.A] }} }}\n\
         \x20 - {{ name: team-b, entra: {{ app_ids: [{APP_B}], roles: [Chat.B, Chat.C] }}, deployments: [gpt-4o] }}\n"
    )
}

struct World {
    platform: Platform,
    key: PKey<Private>,
    balancer: Balancer,
    _azure: aoai_lb::demo::Simulator,
}

async fn world() -> World {
    let (platform, azure, key) = (Platform::start().await, azure(&["a"]).await, key());
    platform.publish(&[
        json!({ "kty": "EC", "kid": "ec", "crv": "P-256", "x": "AA", "y": "AA" }),
        published("k1", &key),
    ]);
    let balancer = Balancer::with_clients(&backends(&azure), &blocks(&platform), "").await;
    World { platform, key, balancer, _azure: azure }
}

impl World {
    async fn ask(&self, token: &str) -> Reply {
        self.balancer.post(CHAT, &[("authorization", &format!("Bearer {token}"))], HELLO.as_bytes()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_admit_their_client() {
    let world = world().await;
    let v1 = json!({ "iss": format!("https://sts.windows.net/{TENANT}/"), "appid": APP_B, "ver": "1.0" });
    let cases = [
        (json!({ "azp": APP_A }), "team-a"),
        (v1, "team-b"),
        (json!({ "azp": "another", "roles": ["Chat.B"] }), "team-b"),
        (json!({ "roles": ["Chat.B", "Chat.C", "unknown"] }), "team-b"),
        // The application says more than its roles.
        (json!({ "azp": APP_A, "roles": ["Chat.B"] }), "team-a"),
        (json!({ "azp": APP_A, "aud": ["x", "other"] }), "team-a"),
        // Clocks may differ a little.
        (json!({ "azp": APP_A, "exp": now() - 30 }), "team-a"),
        (json!({ "azp": APP_A, "nbf": now() + 30 }), "team-a"),
    ];
    let count = cases.len();
    let mut expected = Vec::new();
    for (more, client) in cases {
        let token = token("k1", &world.key, more.clone());
        let replies = [world.ask(&token).await, world.ask(&token).await];
        assert!(replies.iter().all(|reply| reply.status == 200), "{more}: {}", replies[0].text());
        expected.extend([client, client]);
    }
    let records = world.balancer.records_of(2 * count).await;
    let clients: Vec<&str> = records.iter().map(|record| record["client"].as_str().unwrap()).collect();
    assert_eq!(clients, expected);
    assert_eq!(world.platform.key_reads(), 1, "once for all");
    assert!(!std::fs::read_to_string(world.balancer.path("records.jsonl")).unwrap().contains("eyJ"));
    // Rules for a client hold, however it proves who it is.
    let by_role = token("k1", &world.key, json!({ "roles": ["Chat.B"] }));
    let other = CHAT.replace("gpt-4o", "other");
    let bearer = format!("Bearer {by_role}");
    let reply = world.balancer.post(&other, &[("authorization", &bearer)], HELLO.as_bytes()).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "deployment_not_allowed"));
    // And a key of one with a token of another is two clients.
    let both = [("authorization", bearer.as_str()), ("api-key", KEY)];
    let reply = world.balancer.post(CHAT, &both, HELLO.as_bytes()).await;
    assert_eq!(reply.status, 401, "{}", reply.text());
    let expired = format!("Bearer {}", token("k1", &world.key, json!({ "azp": APP_B, "exp": 1 })));
    let reply =
        world.balancer.post(CHAT, &[("authorization", &expired), ("api-key", KEY)], HELLO.as_bytes()).await;
    assert_eq!(reply.status, 200, "one that is valid admits");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_good_token_is_refused_and_says_why() {
    let world = world().await;
    let stranger = key();
    let with = |more: Value| token("k1", &world.key, more);
    let with_header = |header: Value| signed(&header, &claims(json!({ "azp": APP_A })), &world.key);
    let good = with(json!({ "azp": APP_A }));
    let parts: Vec<&str> = good.split('.').collect();
    let forged = encoded(claims(json!({ "azp": APP_B })).to_string().as_bytes());
    // The public key as the secret of an HMAC: a verifier that follows the header would agree.
    let public = world.key.public_key_to_pem().unwrap();
    let hmac = PKey::hmac(&public).unwrap();
    let modulus = PKey::hmac(&world.key.rsa().unwrap().n().to_vec()).unwrap();
    let claims_a = claims(json!({ "azp": APP_A }));
    let hs256 = json!({ "typ": "JWT", "alg": "HS256", "kid": "k1" });
    let unsigned = format!("{}.{}.", encoded(br#"{"alg":"none","kid":"k1"}"#), parts[1]);
    let cases = [
        (signed(&hs256, &claims_a, &hmac), "not signed with RS256"),
        (signed(&hs256, &claims_a, &modulus), "not signed with RS256"),
        (unsigned, "no JSON web token that is understood"),
        (format!("{}.{}.", parts[0], parts[1]), "the signature"),
        (format!("{}.{forged}.{}", parts[0], parts[2]), "the signature"),
        (token("k1", &stranger, json!({ "azp": APP_A })), "the signature"),
        (token("ec", &world.key, json!({ "azp": APP_A })), "not one of Entra ID's"),
        (token("unknown", &world.key, json!({ "azp": APP_A })), "not one of Entra ID's"),
        (with_header(json!({ "typ": "JWT", "alg": "RS256" })), "does not name its key"),
        (
            with_header(json!({ "alg": "RS256", "kid": "k1", "crit": ["b64"], "b64": false })),
            "critical header",
        ),
        (with_header(json!({ "alg": "PS256", "kid": "k1" })), "not signed with RS256"),
        (with(json!({ "azp": APP_A, "aud": "api://another" })), "another audience"),
        (with(json!({ "azp": APP_A, "aud": null })), "has not the claims"),
        (
            with(json!({ "azp": APP_A, "iss": "https://login.microsoftonline.com/other/v2.0" })),
            "another issuer",
        ),
        (with(json!({ "azp": APP_A, "iss": null })), "has not the claims"),
        (with(json!({ "azp": APP_A, "exp": now() - 61 })), "has expired"),
        (with(json!({ "azp": APP_A, "exp": null })), "has not the claims"),
        (with(json!({ "azp": APP_A, "exp": "soon" })), "has not the claims"),
        (with(json!({ "azp": APP_A, "nbf": now() + 120 })), "not valid yet"),
        (with(json!({ "azp": "another" })), "belong to no client"),
        (with(json!({ "azp": APP_A.to_uppercase() })), "belong to no client"),
        (with(json!({ "roles": ["Chat.A", "Chat.B"] })), "belong to different clients"),
        (format!("{good}x"), "no JSON web token that is understood"),
        (format!("eyJ{}", "A".repeat(100)), "invalid key"),
        (format!("{}.{}", good, parts[2]), "invalid key"),
        (good.to_lowercase(), "invalid key"),
    ];
    for (token, why) in cases {
        let reply = world.ask(&token).await;
        assert_eq!((reply.status, reply.code().as_str()), (401, "invalid_api_key"), "{why}: {token}");
        assert!(reply.text().contains(why), "{why}: {}", reply.text());
    }
    assert!(world.platform.key_reads() <= 2, "made-up keys do not make us ask and ask");
    assert_eq!(world.ask(&good).await.status, 200, "and then the good one");
    assert!(!world.balancer.log().contains("eyJ"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_fetched_when_they_are_needed_and_kept_when_they_cannot_be() {
    let world = world().await;
    let good = token("k1", &world.key, json!({ "azp": APP_A }));
    assert_eq!(world.ask(&good).await.status, 200);
    // Entra ID signs with a new key: whoever comes first makes us ask, all others wait with it.
    let new = key();
    world.platform.publish(&[published("k1", &world.key), published("k2", &new)]);
    world.platform.keys_are(Temper::Slow(3));
    let by_new = token("k2", &new, json!({ "azp": APP_A }));
    let refreshed = async {
        loop {
            if join_all((0..10).map(|_| world.ask(&by_new))).await.iter().all(|reply| reply.status == 200) {
                return;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), refreshed).await.unwrap();
    assert_eq!(world.platform.key_reads(), 2);
    // The service is away: what is known stays known, and what is not is refused, not an error.
    world.platform.keys_are(Temper::Says(500, "oops"));
    for _ in 0..3 {
        assert_eq!(world.ask(&good).await.status, 200);
        assert_eq!(world.ask(&token("k3", &new, json!({ "azp": APP_A }))).await.status, 401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_nobody_with_a_token_is_let_in_until_they_come() {
    let (platform, azure, key) = (Platform::start().await, azure(&["a"]).await, key());
    platform.publish(&[published("k1", &key)]);
    let good = token("k1", &key, json!({ "azp": APP_A }));
    let bearer = format!("Bearer {good}");
    for temper in [Temper::Says(404, "{}"), Temper::Garbage] {
        platform.keys_are(temper);
        let balancer = Balancer::with_clients(&backends(&azure), &blocks(&platform), "").await;
        let reply = balancer.post(CHAT, &[("authorization", &bearer)], HELLO.as_bytes()).await;
        assert_eq!(reply.status, 401, "{}", reply.text());
        balancer.until_said("the signing keys of Entra ID cannot be fetched").await;
        assert_eq!(balancer.chat().await.status, 200, "keys are let in");
    }
    // One that takes its time is waited for.
    platform.keys_are(Temper::Slow(10));
    let balancer = Balancer::with_clients(&backends(&azure), &blocks(&platform), "").await;
    let reply = balancer.post(CHAT, &[("authorization", &bearer)], HELLO.as_bytes()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}
