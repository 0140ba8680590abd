//! The reference has every key, what it says is true, and its files are up to date.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::comments::comments_by_key;
use super::documents::EXAMPLE;
use super::tree::read_tree;
use super::{configuration_page, json_schema, manual_page};
use crate::config::yaml::ValueKind;

#[test]
fn every_key_is_read_by_some_document() {
    let tree = read_tree();
    let is_unread = |key: &&super::tree::KeyNode| key.kinds.shown().next().is_none();
    let unread: Vec<&str> = tree.walk().into_iter().filter(is_unread).map(|key| key.path.as_str()).collect();
    assert!(unread.is_empty(), "no document of the reference has {unread:?}");
    assert!(tree.walk().len() > 200);
}

#[test]
fn comments_of_the_example_are_about_keys_that_exist() {
    let tree = read_tree();
    let keys = tree.walk();
    for path in comments_by_key(EXAMPLE).keys() {
        // Names of deployments and header fields are names in the reference.
        let is_name = path.rsplit_once('.').is_some_and(|(parent, _)| {
            keys.iter().any(|key| key.path == parent && key.kinds.contains(&ValueKind::NamedEntries))
        });
        assert!(is_name || keys.iter().any(|key| key.path == *path), "{path}");
    }
}

#[test]
fn every_key_of_a_block_is_described() {
    let tree = read_tree();
    let undescribed: Vec<&str> = tree
        .walk()
        .into_iter()
        .filter(|key| {
            let depth = key.path.matches('.').count();
            let is_key = key.is_named() && !key.path.ends_with(".*");
            depth == 1 && is_key && key.comment.text.is_empty() && key.comment.default.is_none()
        })
        .map(|key| key.path.as_str())
        .collect();
    assert!(undescribed.is_empty(), "conf/aoai-lb.yaml has no comment for {undescribed:?}");
}

/// With `UPDATE_REFERENCE=1` in the environment, the files are written instead.
#[test]
fn the_files_of_the_reference_are_up_to_date() {
    for (file, expected) in
        [("docs/configuration.md", configuration_page()), ("conf/aoai-lb.schema.json", json_schema())]
    {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        if std::env::var_os("UPDATE_REFERENCE").is_some() {
            fs::write(&path, &expected).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == expected,
            "{file} is out of date: UPDATE_REFERENCE=1 cargo test --lib config::reference writes it"
        );
    }
}

#[test]
fn the_schema_and_the_manual_page_have_the_same_keys() {
    let schema: Value = serde_json::from_str(&json_schema()).unwrap();
    let retry = &schema["properties"]["retry"]["properties"];
    assert_eq!(retry["attempts"]["anyOf"][0]["maximum"], 100);
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(retry["hold"]["properties"]["time"]["type"], "string");
    let manual = manual_page();
    for key in read_tree().walk().into_iter().filter(|key| key.is_named()) {
        assert!(manual.contains(&format!("\n.B {}\n", key.path.replace('-', "\\-"))), "{}", key.path);
    }
}
