//! What the binary is made of: one TLS stack, permissive licences, no crate twice without a
//! reason. `deny.toml` says the same for those who have cargo-deny.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Other TLS stacks, and what they are built on.
const FORBIDDEN: [&str; 10] = [
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

/// Licences that ask for no more than their text.
const LICENCES: [&str; 12] = [
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

/// Crates that are there in several versions, and who is to blame.
const TWICE: [(&str, &str); 9] = [
    ("getrandom", "rand 0.8 of Pingora, ahash, and proptest and tempfile of the tests"),
    ("hashbrown", "indexmap 1 of pingora-cache, dashmap of Pingora, and today's"),
    ("indexmap", "pingora-cache still uses 1"),
    ("lock_api", "parking_lot twice"),
    ("parking_lot", "pingora-lru is ahead of the rest of Pingora"),
    ("parking_lot_core", "parking_lot twice"),
    ("rand", "0.8 of Pingora, and proptest of the tests"),
    ("rand_core", "rand twice"),
    ("syn", "build time only: derivative of Pingora, openssl-macros, and today's"),
];

fn packages() -> Vec<Value> {
    let platform = "x86_64-unknown-linux-gnu";
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let used: BTreeSet<&str> = nodes.iter().map(|node| node["id"].as_str().unwrap()).collect();
    let packages = metadata["packages"].as_array().unwrap();
    packages.iter().filter(|package| used.contains(package["id"].as_str().unwrap())).cloned().collect()
}

fn name(package: &Value) -> &str {
    package["name"].as_str().unwrap()
}

#[test]
fn there_is_one_tls_stack() {
    let packages = packages();
    let found: Vec<&str> = packages.iter().map(name).filter(|name| FORBIDDEN.contains(name)).collect();
    assert!(found.is_empty(), "{found:?}");
    assert_eq!(packages.iter().filter(|package| name(package) == "openssl").count(), 1);
}

/// Whether an SPDX expression can be met with permissive licences alone.
fn is_permissive(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let expression = expression.trim();
    let groups = |text: &str| text.replace(['(', ')'], "");
    // In the tree, parentheses only ever stand around a choice that is one side of an AND.
    expression
        .split(" AND ")
        .all(|side| groups(side).split(" OR ").any(|licence| LICENCES.contains(&licence.trim())))
}

#[test]
fn licences_are_permissive() {
    let packages = packages();
    let bad: Vec<String> = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(is_permissive))
        .map(|package| format!("{}: {}", name(package), package["license"]))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(
        !is_permissive("GPL-3.0") && !is_permissive("MIT AND GPL-2.0") && is_permissive("GPL-2.0 OR MIT")
    );
}

#[test]
fn no_crate_is_there_twice_without_a_reason() {
    let packages = packages();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &packages {
        versions.entry(name(package)).or_default().insert(package["version"].as_str().unwrap());
    }
    let twice: Vec<&str> =
        versions.iter().filter(|(_, versions)| versions.len() > 1).map(|(name, _)| *name).collect();
    let explained: Vec<&str> = TWICE.iter().map(|(name, _)| *name).collect();
    assert_eq!(twice, explained, "each needs its reason, and no reason may outlive its crate");
}

#[test]
fn the_engine_is_pinned() {
    for package in packages().iter().filter(|package| name(package).starts_with("pingora")) {
        assert_eq!(package["version"], "0.9.1", "{}", name(package));
    }
}
