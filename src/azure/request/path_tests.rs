//! Tables of targets and what they are read as.

use super::*;
use crate::azure::QueryCredential;
use proptest::prelude::*;

fn read(target: &str) -> Result<Target, BadTarget> {
    parse(target.as_bytes(), false)
}

fn deployment(name: &str) -> Deployment {
    Deployment::parse(name).unwrap()
}

#[test]
fn paths_are_normalised() {
    let rows = [
        ("/", "/"),
        ("http://host", "/"),
        ("https://host/openai//models/?x=1", "/openai/models"),
        ("/OpenAI/Deployments/GPT-4o/Chat/COMPLETIONS", "/openai/deployments/GPT-4o/chat/completions"),
        ("/openai/deployments/gpt%2D4o/embeddings", "/openai/deployments/gpt-4o/embeddings"),
        ("/openai/%76%31/chat/completions", "/openai/v1/chat/completions"),
        ("//openai///v1//Responses//Resp_A/Input_Items/", "/openai/v1/responses/Resp_A/input_items"),
        ("/openai/v1/files/File-1%3a%3Ax/CONTENT", "/openai/v1/files/File-1%3A%3Ax/content"),
        ("/Other/OPENAI", "/Other/OPENAI"),
        ("/openai/Unknown/Thing", "/openai/Unknown/Thing"),
        ("/openai/v1/models/...", "/openai/v1/models/..."),
    ];
    for (target, path) in rows {
        assert_eq!(read(target).unwrap().path, path, "{target}");
    }
}

#[test]
fn ambiguous_targets_are_refused() {
    let rows = [
        ("", BadTarget::Form),
        ("*", BadTarget::Form),
        ("openai/models", BadTarget::Form),
        ("ftp://host/openai", BadTarget::Form),
        ("/openai/a b", BadTarget::Character),
        ("/openai\\models", BadTarget::Character),
        ("/openai/\0", BadTarget::Character),
        ("/openai/ä", BadTarget::Character),
        ("/openai/models#x", BadTarget::Character),
        ("/openai/models?x=\u{7f}", BadTarget::Character),
        ("/openai/%", BadTarget::Escape),
        ("/openai/%2", BadTarget::Escape),
        ("/openai/%+1", BadTarget::Escape),
        ("/openai?x=%zz", BadTarget::Escape),
        ("/openai%2Fmodels", BadTarget::Encoded),
        ("/openai%2fmodels", BadTarget::Encoded),
        ("/openai/%5cmodels", BadTarget::Encoded),
        ("/openai/%2e%2e/x", BadTarget::Encoded),
        ("/openai/gpt-4%2e1", BadTarget::Encoded),
        ("/openai/%252e", BadTarget::Encoded),
        ("/openai/%00", BadTarget::Encoded),
        ("/openai/%0a", BadTarget::Encoded),
        ("/openai/%c0%af", BadTarget::Encoded),
        ("/openai?x=%00", BadTarget::Encoded),
        ("/openai/../models", BadTarget::DotSegment),
        ("/./openai", BadTarget::DotSegment),
        ("/openai/deployments/a%20b/chat/completions", BadTarget::DeploymentName),
        ("/openai?api-version=1&api-version=1", BadTarget::DuplicateKey("api-version")),
        ("/openai?api-version=1&API%2Dversion=2", BadTarget::DuplicateKey("api-version")),
        ("/openai?model&model=2", BadTarget::DuplicateKey("model")),
        ("/openai?deployment=1&Deployment=1", BadTarget::DuplicateKey("deployment")),
    ];
    for (target, expected) in rows {
        assert_eq!(read(target).unwrap_err(), expected, "{target}");
    }
    let long = format!("/openai/deployments/{}/embeddings", "x".repeat(65));
    assert_eq!(read(&long).unwrap_err(), BadTarget::DeploymentName);
}

#[test]
fn calls_are_named() {
    use Naming::{Body, Home};
    let rows = [
        (
            "POST",
            "/openai/deployments/d/chat/completions",
            Api::Classic,
            Operation::Chat,
            Naming::Target,
            false,
        ),
        (
            "POST",
            "/openai/deployments/d/extensions/chat/completions",
            Api::Classic,
            Operation::Chat,
            Naming::Target,
            false,
        ),
        ("POST", "/openai/deployments/d/audio/speech", Api::Classic, Operation::Audio, Naming::Target, false),
        ("POST", "/openai/deployments/d/what", Api::Classic, Operation::Other, Naming::Target, false),
        ("GET", "/openai/deployments", Api::Classic, Operation::Other, Home, false),
        ("POST", "/openai/responses", Api::Classic, Operation::Responses, Body, false),
        ("POST", "/openai/v1/responses/compact", Api::V1, Operation::Responses, Body, false),
        ("POST", "/openai/v1/responses/resp_1/cancel", Api::V1, Operation::Responses, Home, true),
        ("GET", "/openai/v1/responses/resp_1", Api::V1, Operation::Responses, Home, true),
        ("POST", "/openai/v1/chat/completions", Api::V1, Operation::Chat, Body, false),
        ("GET", "/openai/v1/chat/completions", Api::V1, Operation::Chat, Home, false),
        ("POST", "/openai/v1/chat/completions/chatcmpl-1", Api::V1, Operation::Chat, Home, true),
        ("POST", "/openai/chat/completions", Api::Classic, Operation::Chat, Home, false),
        ("POST", "/openai/v1/images/edits", Api::V1, Operation::Images, Body, false),
        ("POST", "/openai/v1/files", Api::V1, Operation::Files, Home, false),
        ("DELETE", "/openai/files/file-1", Api::Classic, Operation::Files, Home, true),
        ("GET", "/openai/v1/models/gpt-4o", Api::V1, Operation::Models, Home, true),
        ("GET", "/openai/realtime?deployment=d", Api::Classic, Operation::Realtime, Home, false),
        ("GET", "/elsewhere", Api::Classic, Operation::Other, Home, false),
    ];
    for (method, target, api, operation, naming, item) in rows {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let read = read(target).unwrap();
        let found = (read.api, read.operation, read.naming(&method), read.item);
        assert_eq!(found, (api, operation, naming, item), "{target}");
    }
    let upload = |target| read(target).unwrap().is_upload(&Method::POST);
    assert!(upload("/openai/v1/files") && upload("/openai/uploads/u/parts"));
    assert!(!upload("/openai/v1/files/f/content") && !upload("/openai/uploads"));
}

#[test]
fn credentials_leave_the_query() {
    let target = read("/openai/models?a=1&API-key=k%2B1&&b&subscription%2Dkey=two&api-key=").unwrap();
    let keys: Vec<_> = target.query.credentials().iter().map(QueryCredential::expose).collect();
    assert_eq!(keys, ["k+1", "two"]);
    assert_eq!(target.upstream_path(None, None, None), "/openai/models?a=1&b");
    let shown = format!("{target:?}");
    assert!(!shown.contains("k+1") && !shown.contains("k%2B1") && !shown.contains("two"), "{shown}");
}

#[test]
fn versions_and_names_are_rewritten() {
    let chat = "/openai/deployments/gpt-4o/chat/completions";
    let up = Some(deployment("ptu"));
    let rows = [
        (
            format!("{chat}?api-version=2024-06-01&x=%41"),
            None,
            None,
            None,
            format!("{chat}?api-version=2024-06-01&x=%41"),
        ),
        (format!("{chat}?x=1"), None, None, Some("2024-10-21"), format!("{chat}?x=1&api-version=2024-10-21")),
        (
            format!("{chat}?x=1"),
            None,
            Some("2025-01-01"),
            Some("2024-10-21"),
            format!("{chat}?x=1&api-version=2025-01-01"),
        ),
        (
            format!("{chat}?API-Version=1&x=2"),
            None,
            Some("2025-01-01"),
            None,
            format!("{chat}?api-version=2025-01-01&x=2"),
        ),
        (format!("{chat}?api-version="), None, None, None, chat.to_owned()),
        (chat.to_owned(), up.clone(), None, None, "/openai/deployments/ptu/chat/completions".to_owned()),
        (
            "/openai/v1/models?api-version=preview".into(),
            up.clone(),
            Some("2025-01-01"),
            Some("2024-10-21"),
            "/openai/v1/models?api-version=preview".into(),
        ),
        (
            "/openai/v1/models?api-version=2024-10-21&a=b".into(),
            None,
            None,
            Some("2024-10-21"),
            "/openai/v1/models?a=b".into(),
        ),
        (
            "/openai/files?deployment=x&model=y".into(),
            up,
            None,
            Some("2024-10-21"),
            "/openai/files?deployment=x&model=y&api-version=2024-10-21".into(),
        ),
        ("/elsewhere".into(), None, Some("2025-01-01"), Some("2024-10-21"), "/elsewhere".into()),
    ];
    for (target, name, backend, default, expected) in rows {
        let read = read(&target).unwrap();
        assert_eq!(read.upstream_path(name.as_ref(), backend, default), expected, "{target}");
    }
    let read = read("/openai/models?api-version=v%31").unwrap();
    assert_eq!(read.effective_api_version(None, None).as_deref(), Some("v1"));
}

#[test]
fn upgrades_are_named_by_their_query() {
    let upgrade = |target: &str| parse(target.as_bytes(), true);
    let rows = [
        (
            "/openai/realtime?api-version=2025-04-01-preview&deployment=rt",
            "/openai/realtime?api-version=2025-04-01-preview&deployment=up",
        ),
        ("/openai/v1/realtime?model=r%74", "/openai/v1/realtime?model=up"),
        ("/openai/v1/responses?x=1&model=rt", "/openai/v1/responses?x=1&model=up"),
        ("/openai/v1/realtime?model=rt&deployment=RT", "/openai/v1/realtime?model=up&deployment=up"),
    ];
    for (target, expected) in rows {
        let read = upgrade(target).unwrap();
        assert_eq!(read.deployment, Some(deployment("rt")), "{target}");
        assert_eq!(read.upstream_path(Some(&deployment("up")), None, None), expected);
    }
    assert_eq!(upgrade("/openai/realtime").unwrap().deployment, None);
    assert_eq!(upgrade("/openai/models?model=a%20b").unwrap().deployment, None);
    assert_eq!(upgrade("/openai/realtime?model=a%20b").unwrap_err(), BadTarget::DeploymentName);
    assert_eq!(upgrade("/openai/realtime?model=").unwrap_err(), BadTarget::DeploymentName);
    assert_eq!(upgrade("/openai/realtime?model=a&deployment=b").unwrap_err(), BadTarget::TwoDeployments);
}

proptest! {
    #[test]
    fn nothing_panics(target in proptest::collection::vec(any::<u8>(), 0..100), upgrade: bool) {
        let _ = parse(&target, upgrade);
    }

    #[test]
    fn a_normal_path_is_its_own_normal_form(
        target in "/(openai|OpenAI|v1|deployments|chat|completions|responses|%41|%3a|a-b|/){0,8}(\\?[a-z=&%0-9]{0,20})?",
        upgrade: bool,
    ) {
        if let Ok(first) = parse(target.as_bytes(), upgrade) {
            let sent = first.upstream_path(None, None, None);
            let again = parse(sent.as_bytes(), upgrade).unwrap();
            prop_assert_eq!(&again.path, &first.path);
            prop_assert_eq!(&again.deployment, &first.deployment);
            prop_assert_eq!(again.upstream_path(None, None, None), sent);
        }
    }

    #[test]
    fn encoding_a_plain_letter_changes_nothing(at in 1_usize..40) {
        let plain = "/openai/deployments/gpt-4o/chat/completions";
        let byte = plain.as_bytes()[at];
        prop_assume!(byte != b'/');
        let escaped = format!("{}%{byte:02x}{}", &plain[..at], &plain[at + 1..]);
        prop_assert_eq!(read(&escaped).unwrap().path, plain);
    }
}
