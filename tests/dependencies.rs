//! The dependency tree: OpenSSL is the only TLS stack, all licences are permissive, and every crate
//! with several versions has a reason. `deny.toml` has the same rules for cargo-deny.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and print for the reader of a failure"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Crates of other TLS stacks and of their cryptography.
const OTHER_TLS_CRATES: [&str; 10] = [
    "rustls",
    "ring",
    "aws-lc-rs",
    "aws-lc-sys",
    "boring",
    "boring-sys",
    "native-tls",
    "s2n-tls",
    "schannel",
    "security-framework",
];

/// Licences that require no more than including their text.
const PERMISSIVE_LICENCES: [&str; 12] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates with several versions in the tree, and the crates that require them.
const DUPLICATE_CRATES: [(&str, &str); 10] = [
    ("getrandom", "rand 0.8 of Pingora, ahash, and proptest and tempfile of the tests"),
    ("hashbrown", "indexmap 1 of pingora-cache, dashmap of Pingora, and today's"),
    ("indexmap", "pingora-cache still uses 1"),
    ("lock_api", "parking_lot twice"),
    ("parking_lot", "pingora-lru is ahead of the rest of Pingora"),
    ("parking_lot_core", "parking_lot twice"),
    ("rand", "0.8 of Pingora, tungstenite, and proptest and opentelemetry_sdk of the tests"),
    ("rand_chacha", "rand several times"),
    ("rand_core", "rand several times"),
    ("syn", "build time only: derivative of Pingora, openssl-macros, and today's"),
];

fn resolved_packages() -> Vec<Value> {
    let platform = "x86_64-unknown-linux-gnu";
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let used_ids: BTreeSet<&str> = nodes.iter().map(|node| node["id"].as_str().unwrap()).collect();
    let packages = metadata["packages"].as_array().unwrap();
    packages.iter().filter(|package| used_ids.contains(package["id"].as_str().unwrap())).cloned().collect()
}

fn package_name(package: &Value) -> &str {
    package["name"].as_str().unwrap()
}

#[test]
fn openssl_is_the_only_tls_stack() {
    let packages = resolved_packages();
    let forbidden: Vec<&str> =
        packages.iter().map(package_name).filter(|name| OTHER_TLS_CRATES.contains(name)).collect();
    assert!(forbidden.is_empty(), "{forbidden:?}");
    assert_eq!(packages.iter().filter(|package| package_name(package) == "openssl").count(), 1);
}

/// Whether permissive licences alone satisfy an SPDX expression.
fn is_permissive(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let expression = expression.trim();
    let without_parentheses = |text: &str| text.replace(['(', ')'], "");
    // Enough for the expressions in the tree: parentheses are only used around an OR inside an AND.
    expression.split(" AND ").all(|side| {
        without_parentheses(side).split(" OR ").any(|licence| PERMISSIVE_LICENCES.contains(&licence.trim()))
    })
}

#[test]
fn all_licences_are_permissive() {
    let packages = resolved_packages();
    let rejected: Vec<String> = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(is_permissive))
        .map(|package| format!("{}: {}", package_name(package), package["license"]))
        .collect();
    assert!(rejected.is_empty(), "{rejected:#?}");
    assert!(
        !is_permissive("GPL-3.0") && !is_permissive("MIT AND GPL-2.0") && is_permissive("GPL-2.0 OR MIT")
    );
}

#[test]
fn every_crate_with_several_versions_has_a_reason() {
    let packages = resolved_packages();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &packages {
        versions.entry(package_name(package)).or_default().insert(package["version"].as_str().unwrap());
    }
    let duplicates: Vec<&str> =
        versions.iter().filter(|(_, versions)| versions.len() > 1).map(|(name, _)| *name).collect();
    let explained: Vec<&str> = DUPLICATE_CRATES.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        duplicates, explained,
        "expected exactly the crates with several versions that are listed with a reason"
    );
}

#[test]
fn all_pingora_crates_have_the_pinned_version() {
    for package in resolved_packages().iter().filter(|package| package_name(package).starts_with("pingora")) {
        assert_eq!(package["version"], "0.9.1", "{}", package_name(package));
    }
}
