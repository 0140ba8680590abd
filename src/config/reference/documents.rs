//! The documents that together have every key, in each form that its value can have.

/// The example configuration, whose comments describe the keys.
pub(super) const EXAMPLE: &str = include_str!("../../../conf/aoai-lb.yaml");

/// What the example has only in comments, and other forms of values. They are read for their keys: they need not be
/// valid as a whole.
const FURTHER: [&str; 8] = [
    r#"
listeners:
  - address: 127.0.0.1:1
    http2: true
    tls:
      certificate: a.pem
      private_key: a.key
      minimum_version: "1.2"
      ciphers: ECDHE+AESGCM
      ciphersuites: TLS_AES_256_GCM_SHA384
      additional_certificates: [ { certificate: b.pem, private_key: b.key } ]
      client_ca: ca.pem
backends:
  - name: a
    endpoint: https://a
    resource: r
    provisioned: true
    credential: { entra: { workload_identity: { tenant: t, client_id: c, token_file: f, }, authority: https://a } }
    tls: { ca: a.pem, certificate: a.pem, private_key: a.key }
clients: open
entra:
  tenant: 00000000-0000-0000-0000-000000000000
  audiences: [api://a]
  issuers: [https://a/v2.0]
  authority: https://a
  leeway: 60s
limits:
  default: { requests_per_minute: 1, tokens_per_minute: 1, tokens_per_day: 1, tokens_per_month: 1, cost_per_day: 1, cost_per_month: 1, in_flight: 1, deployments: { d: { requests_per_minute: 1, tokens_per_minute: 1, tokens_per_day: 1, tokens_per_month: 1, cost_per_day: 1, cost_per_month: 1, in_flight: 1 } } }
shed: { batch: 80%, standard: 95%, interactive: 99% }
pools: { d: { balance: prompt_cache } }
traces: { endpoint: http://127.0.0.1:1, sample: 5%, headers: { a: b }, forward: true, tls: { ca: a.pem } }
prices:
  currency: USD
  rows:
    - { deployment: d, backend: a, service_tier: flex, from: 2026-01-01, input: 1, cached: 1, cache_write: 1, output: 1, audio_input: 1, audio_cached: 1, audio_output: 1 }
    - { model: m, per_image: 1, per_minute: 1 }
queue: { wait: 5s, requests: 1, body_memory: 1MiB }
requests: { set_headers: { X-A: b }, remove_headers: [X-C], home: a }
record:
  redact: ["a"]
  log_analytics:
    endpoint: https://a
    rule: dcr-0
    stream: Custom-A
    credential: { entra: { managed_identity: { client_id: c }, scope: https://a/.default } }
shared: { redis: { url: "redis://a", username: u, password: p, ca: a.pem, prefix: p } }
admin:
  address: 127.0.0.1:2
  token: t
  tls: { certificate: a.pem, private_key: a.key, minimum_version: "1.2", ciphers: c, ciphersuites: c, additional_certificates: [ { certificate: b.pem, private_key: b.key } ], client_ca: ca.pem }
"#,
    r#"
listeners: [ { address: 127.0.0.1:1, trusted_proxies: [10.0.0.0/8] } ]
backends:
  - { name: a, endpoint: https://a, credential: { entra: { client_secret: { tenant: t, client_id: c, secret: { key_vault: https://a/secrets/b } } } } }
  - { name: b, endpoint: https://b, credential: { entra: { client_secret: { tenant: t, client_id: c, secret: s } } } }
  - { name: c, endpoint: https://c, credential: { entra: { certificate: { tenant: t, client_id: c, certificate: a.pem, private_key: a.key } } } }
  - { name: d, endpoint: https://d, credential: { entra: { managed_identity: { object_id: c } } } }
clients:
  - { name: c, entra: { app_ids: [a], roles: [r] }, certificates: ["CN=a"] }
  - { name: d, keys: [ { sha256: a } ], limits: { deployments: { d: { requests_per_minute: 1, tokens_per_minute: 1, tokens_per_day: 1, tokens_per_month: 1, cost_per_day: 1, cost_per_month: 1, in_flight: 1 } } } }
key_vault: { credential: { entra: { client_secret: { tenant: t, client_id: c, secret: s } } } }
prices: { file: prices.yaml }
shared: { redis: { url: "redis://a", password: { key_vault: https://a/secrets/b } } }
admin: { address: 127.0.0.1:2, token: { key_vault: https://a/secrets/b } }
"#,
    r#"
backends:
  - { name: a, endpoint: https://a, credential: { entra: { managed_identity: { resource_id: c } } } }
key_vault: { credential: { entra: { certificate: { tenant: t, client_id: c, certificate: a.pem, private_key: a.key }, scope: https://a/.default, authority: https://a } } }
record: { log_analytics: { credential: { entra: { client_secret: { tenant: t, client_id: c, secret: s } } } } }
shared: { redis: { url: "redis://a", credential: { entra: { managed_identity: { client_id: c } } } } }
"#,
    r"
key_vault: { credential: { entra: { workload_identity: { tenant: t, client_id: c, token_file: f } } } }
record: { log_analytics: { credential: { entra: { certificate: { tenant: t, client_id: c, certificate: a.pem, private_key: a.key }, authority: https://a } } } }
shared: { redis: { url: 'redis://a', credential: { entra: { client_secret: { tenant: t, client_id: c, secret: s }, authority: https://a, scope: https://a/.default } } } }
",
    r"
record: { log_analytics: { credential: { entra: { workload_identity: { tenant: t, client_id: c, token_file: f } } } } }
shared: { redis: { url: 'redis://a', credential: { entra: { certificate: { tenant: t, client_id: c, certificate: a.pem, private_key: a.key } } } } }
",
    r"
backends: [ { name: a, endpoint: https://a, credential: { entra: { managed_identity: { client_id: c } } } } ]
key_vault: { credential: { entra: { managed_identity: { client_id: c } } } }
shared: { redis: { url: 'redis://a', credential: { entra: { workload_identity: { tenant: t, client_id: c, token_file: f } } } } }
",
    r"
key_vault: { credential: { entra: { managed_identity: { object_id: c } } } }
record: { log_analytics: { credential: { entra: { managed_identity: { object_id: c } } } } }
shared: { redis: { url: 'redis://a', credential: { entra: { managed_identity: { object_id: c } } } } }
",
    r"
key_vault: { credential: { entra: { managed_identity: { resource_id: c } } } }
record: { log_analytics: { credential: { entra: { managed_identity: { resource_id: c } } } } }
shared: { redis: { url: 'redis://a', credential: { entra: { managed_identity: { resource_id: c } } } } }
",
];

/// All documents.
pub(super) fn documents() -> impl Iterator<Item = &'static str> {
    [EXAMPLE].into_iter().chain(FURTHER)
}
