//! Tables of request targets and what they are parsed to.

use super::*;
use crate::azure::QueryCredential;
use proptest::prelude::*;

fn parsed(target: &str) -> Result<RequestTarget, TargetError> {
    parse_target(target.as_bytes(), false)
}

fn deployment(name: &str) -> DeploymentName {
    DeploymentName::parse(name).unwrap()
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
        ("/v1/chat/completions", "/openai/v1/chat/completions"),
        ("https://host//V1//Models/GPT-4o/?x=1", "/openai/v1/models/GPT-4o"),
        ("/%76%31/responses/Resp_A/CANCEL", "/openai/v1/responses/Resp_A/cancel"),
        ("/v1", "/openai/v1"),
        ("/v1/v1", "/openai/v1/v1"),
        ("/v1beta/models", "/v1beta/models"),
        ("/Other/V1/Models", "/Other/V1/Models"),
        ("/Other/OPENAI", "/Other/OPENAI"),
        ("/openai/Unknown/Thing", "/openai/Unknown/Thing"),
        ("/openai/v1/models/...", "/openai/v1/models/..."),
    ];
    for (target, path) in rows {
        assert_eq!(parsed(target).unwrap().path, path, "{target}");
    }
}

#[test]
fn ambiguous_targets_are_rejected() {
    let rows = [
        ("", TargetError::NotAPath),
        ("*", TargetError::NotAPath),
        ("openai/models", TargetError::NotAPath),
        ("ftp://host/openai", TargetError::NotAPath),
        ("/openai/a b", TargetError::ForbiddenCharacter),
        ("/openai\\models", TargetError::ForbiddenCharacter),
        ("/openai/\0", TargetError::ForbiddenCharacter),
        ("/openai/ä", TargetError::ForbiddenCharacter),
        ("/openai/models#x", TargetError::ForbiddenCharacter),
        ("/openai/models?x=\u{7f}", TargetError::ForbiddenCharacter),
        ("/openai/%", TargetError::InvalidPercentEncoding),
        ("/openai/%2", TargetError::InvalidPercentEncoding),
        ("/openai/%+1", TargetError::InvalidPercentEncoding),
        ("/openai?x=%zz", TargetError::InvalidPercentEncoding),
        ("/v1/../openai/models", TargetError::DotSegment),
        ("/v1%2Fmodels", TargetError::AmbiguousEncoding),
        ("/openai%2Fmodels", TargetError::AmbiguousEncoding),
        ("/openai%2fmodels", TargetError::AmbiguousEncoding),
        ("/openai/%5cmodels", TargetError::AmbiguousEncoding),
        ("/openai/%2e%2e/x", TargetError::AmbiguousEncoding),
        ("/openai/gpt-4%2e1", TargetError::AmbiguousEncoding),
        ("/openai/%252e", TargetError::AmbiguousEncoding),
        ("/openai/%00", TargetError::AmbiguousEncoding),
        ("/openai/%0a", TargetError::AmbiguousEncoding),
        ("/openai/%c0%af", TargetError::AmbiguousEncoding),
        ("/openai?x=%00", TargetError::AmbiguousEncoding),
        ("/openai/../models", TargetError::DotSegment),
        ("/./openai", TargetError::DotSegment),
        ("/openai/deployments/a%20b/chat/completions", TargetError::InvalidDeploymentName),
        ("/openai?api-version=1&api-version=1", TargetError::DuplicateQueryKey("api-version")),
        ("/openai?api-version=1&API%2Dversion=2", TargetError::DuplicateQueryKey("api-version")),
        ("/openai?model&model=2", TargetError::DuplicateQueryKey("model")),
        ("/openai?deployment=1&Deployment=1", TargetError::DuplicateQueryKey("deployment")),
    ];
    for (target, expected) in rows {
        assert_eq!(parsed(target).unwrap_err(), expected, "{target}");
    }
    let long = format!("/openai/deployments/{}/embeddings", "x".repeat(65));
    assert_eq!(parsed(&long).unwrap_err(), TargetError::InvalidDeploymentName);
}

#[test]
fn method_and_path_determine_operation_and_deployment_source() {
    use DeploymentSource::{Body, OptionalBody, Unspecified};
    let rows = [
        (
            "POST",
            "/openai/deployments/d/chat/completions",
            ApiStyle::Classic,
            Operation::Chat,
            DeploymentSource::Target,
            false,
        ),
        (
            "POST",
            "/openai/deployments/d/extensions/chat/completions",
            ApiStyle::Classic,
            Operation::Chat,
            DeploymentSource::Target,
            false,
        ),
        (
            "POST",
            "/openai/deployments/d/audio/speech",
            ApiStyle::Classic,
            Operation::Audio,
            DeploymentSource::Target,
            false,
        ),
        (
            "POST",
            "/openai/deployments/d/what",
            ApiStyle::Classic,
            Operation::Other,
            DeploymentSource::Target,
            false,
        ),
        ("GET", "/openai/deployments", ApiStyle::Classic, Operation::Other, Unspecified, false),
        ("POST", "/openai/responses", ApiStyle::Classic, Operation::Responses, Body, false),
        ("POST", "/openai/v1/responses/compact", ApiStyle::V1, Operation::Responses, Body, false),
        ("POST", "/openai/v1/responses/resp_1/cancel", ApiStyle::V1, Operation::Responses, Unspecified, true),
        ("GET", "/openai/v1/responses/resp_1", ApiStyle::V1, Operation::Responses, Unspecified, true),
        ("POST", "/openai/v1/chat/completions", ApiStyle::V1, Operation::Chat, Body, false),
        ("GET", "/openai/v1/chat/completions", ApiStyle::V1, Operation::Chat, Unspecified, false),
        ("POST", "/openai/v1/chat/completions/chatcmpl-1", ApiStyle::V1, Operation::Chat, Unspecified, true),
        ("POST", "/openai/chat/completions", ApiStyle::Classic, Operation::Chat, Unspecified, false),
        ("POST", "/openai/v1/images/edits", ApiStyle::V1, Operation::Images, Body, false),
        ("POST", "/openai/v1/files", ApiStyle::V1, Operation::Files, Unspecified, false),
        ("DELETE", "/openai/files/file-1", ApiStyle::Classic, Operation::Files, Unspecified, true),
        ("GET", "/openai/v1/models/gpt-4o", ApiStyle::V1, Operation::Models, Unspecified, true),
        (
            "POST",
            "/openai/v1/realtime/client_secrets",
            ApiStyle::V1,
            Operation::Realtime,
            OptionalBody,
            false,
        ),
        ("POST", "/openai/v1/realtime/calls", ApiStyle::V1, Operation::Realtime, OptionalBody, false),
        (
            "POST",
            "/openai/v1/realtime/calls?model=d",
            ApiStyle::V1,
            Operation::Realtime,
            DeploymentSource::Target,
            false,
        ),
        (
            "POST",
            "/openai/v1/realtime/calls/rtc_1?model=d",
            ApiStyle::V1,
            Operation::Realtime,
            Unspecified,
            true,
        ),
        ("POST", "/openai/realtimeapi/sessions", ApiStyle::Classic, Operation::Realtime, OptionalBody, false),
        ("POST", "/openai/v1/videos", ApiStyle::V1, Operation::Videos, OptionalBody, false),
        ("POST", "/openai/v1/videos?model=d", ApiStyle::V1, Operation::Videos, OptionalBody, false),
        ("GET", "/openai/v1/videos", ApiStyle::V1, Operation::Videos, Unspecified, false),
        ("POST", "/openai/v1/videos/video_1/remix", ApiStyle::V1, Operation::Videos, Unspecified, true),
        ("GET", "/openai/realtime?deployment=d", ApiStyle::Classic, Operation::Realtime, Unspecified, false),
        ("POST", "/v1/chat/completions", ApiStyle::V1, Operation::Chat, Body, false),
        ("POST", "/V1/files", ApiStyle::V1, Operation::Files, Unspecified, false),
        ("GET", "/v1/responses/resp_1", ApiStyle::V1, Operation::Responses, Unspecified, true),
        ("GET", "/elsewhere", ApiStyle::Classic, Operation::Other, Unspecified, false),
    ];
    for (method, target, api, operation, naming, item) in rows {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request_target = parsed(target).unwrap();
        let actual = (
            request_target.api_style,
            request_target.operation,
            request_target.deployment_source(&method),
            request_target.has_object_id,
        );
        assert_eq!(actual, (api, operation, naming, item), "{target}");
    }
    let upload = |target| parsed(target).unwrap().is_file_upload(&Method::POST);
    assert!(upload("/openai/v1/files") && upload("/openai/uploads/u/parts"));
    assert!(!upload("/openai/v1/files/f/content") && !upload("/openai/uploads"));
}

#[test]
fn credentials_are_removed_from_the_query() {
    let target = parsed("/openai/models?a=1&API-key=k%2B1&&b&subscription%2Dkey=two&api-key=").unwrap();
    let keys: Vec<_> = target.query.credentials().iter().map(QueryCredential::expose).collect();
    assert_eq!(keys, ["k+1", "two"]);
    assert_eq!(target.upstream_target(None, None, None), "/openai/models?a=1&b");
    let shown = format!("{target:?}");
    assert!(!shown.contains("k+1") && !shown.contains("k%2B1") && !shown.contains("two"), "{shown}");
}

#[test]
fn secrets_are_removed_from_the_query_and_parameters_of_azure_stay() {
    for secret in [
        "key=SECRET",
        "KEY=SECRET",
        "k%65y=SECRET",
        "key[]=SECRET",
        "code=SECRET",
        "Code=SECRET",
        "sig=SECRET",
        "signature=SECRET",
        "apikey=SECRET",
        "api_key=SECRET",
        "x-api-key=SECRET",
        "X_API_KEY=SECRET",
        "subscription_key=SECRET",
        "ocp-apim-subscription-key=SECRET",
        "token=SECRET",
        "access_token=SECRET",
        "Authorization=SECRET",
        "client_secret=SECRET",
        "password=SECRET",
    ] {
        let target = parsed(&format!("/openai/models?a=1&{secret}&b=2")).unwrap();
        assert_eq!(target.upstream_target(None, None, None), "/openai/models?a=1&b=2", "{secret}");
        assert!(target.query.credentials().is_empty() && target.query.has_secret(), "{secret}");
        assert!(!format!("{target:?}").contains("SECRET"), "{secret}");
    }
    let parameters = "model=m&intent=transcription&after=a&before=b&limit=3&order=asc&\
                      include[]=x&include%5B%5D=y&stream=true&starting_after=7&purpose=batch&max_tokens=1&\
                      prompt_cache_key=k&keyword=w&codec=c&encoding=e&timestamp_granularities[]=word";
    let target = parsed(&format!("/openai/v1/responses/r?{parameters}")).unwrap();
    assert_eq!(target.upstream_target(None, None, None), format!("/openai/v1/responses/r?{parameters}"));
    assert!(!target.query.has_secret());
}

#[test]
fn api_version_and_deployment_are_rewritten_for_the_backend() {
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
            "/v1/files?api-version=2024-10-21&a=b".into(),
            up.clone(),
            Some("2025-01-01"),
            None,
            "/openai/v1/files?a=b".into(),
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
        let request_target = parsed(&target).unwrap();
        assert_eq!(request_target.upstream_target(name.as_ref(), backend, default), expected, "{target}");
    }
    let request_target = parsed("/openai/models?api-version=v%31").unwrap();
    assert_eq!(request_target.upstream_api_version(None, None).as_deref(), Some("v1"));
}

#[test]
fn only_the_list_of_models_and_a_single_model_of_v1_are_models_paths() {
    for (path, expected) in [
        ("/v1/models", Some(ModelsPath::List)),
        ("/openai/v1/Models/", Some(ModelsPath::List)),
        ("/openai/v1/models/GPT-4o", Some(ModelsPath::Model("GPT-4o"))),
        ("/openai/v1/models/a%20b", Some(ModelsPath::Model("a%20b"))),
        ("/openai/v1/models/a/b", None),
        ("/openai/models", None),
        ("/openai/v1/model", None),
        ("/openai/v1/files", None),
        ("/openai/v1/responses/models", None),
    ] {
        assert_eq!(parsed(path).unwrap().v1_models_path(), expected, "{path}");
    }
}

#[test]
fn websocket_upgrades_take_their_deployment_from_the_query() {
    let upgrade = |target: &str| parse_target(target.as_bytes(), true);
    let rows = [
        (
            "/openai/realtime?api-version=2025-04-01-preview&deployment=rt",
            "/openai/realtime?api-version=2025-04-01-preview&deployment=up",
        ),
        ("/openai/v1/realtime?model=r%74", "/openai/v1/realtime?model=up"),
        ("/V1/realtime?model=rt", "/openai/v1/realtime?model=up"),
        ("/openai/v1/responses?x=1&model=rt", "/openai/v1/responses?x=1&model=up"),
        ("/openai/v1/realtime?model=rt&deployment=RT", "/openai/v1/realtime?model=up&deployment=up"),
    ];
    for (target, expected) in rows {
        let request_target = upgrade(target).unwrap();
        assert_eq!(request_target.deployment, Some(deployment("rt")), "{target}");
        assert_eq!(request_target.upstream_target(Some(&deployment("up")), None, None), expected);
    }
    assert_eq!(upgrade("/openai/realtime").unwrap().deployment, None);
    assert_eq!(upgrade("/openai/models?model=a%20b").unwrap().deployment, None);
    assert_eq!(upgrade("/openai/realtime?model=a%20b").unwrap_err(), TargetError::InvalidDeploymentName);
    assert_eq!(upgrade("/openai/realtime?model=").unwrap_err(), TargetError::InvalidDeploymentName);
    assert_eq!(
        upgrade("/openai/realtime?model=a&deployment=b").unwrap_err(),
        TargetError::ConflictingDeployments
    );
}

proptest! {
    #[test]
    fn arbitrary_targets_never_panic(target in proptest::collection::vec(any::<u8>(), 0..100), upgrade: bool) {
        let _ = parse_target(&target, upgrade);
    }

    #[test]
    fn normalising_twice_changes_nothing(
        target in "/(openai|OpenAI|v1|deployments|chat|completions|responses|%41|%3a|a-b|/){0,8}(\\?[a-z=&%0-9]{0,20})?",
        upgrade: bool,
    ) {
        if let Ok(first) = parse_target(target.as_bytes(), upgrade) {
            let sent = first.upstream_target(None, None, None);
            let again = parse_target(sent.as_bytes(), upgrade).unwrap();
            prop_assert_eq!(&again.path, &first.path);
            prop_assert_eq!(&again.deployment, &first.deployment);
            prop_assert_eq!(again.upstream_target(None, None, None), sent);
        }
    }

    #[test]
    fn percent_encoding_an_unreserved_character_changes_nothing(at in 1_usize..40) {
        let plain = "/openai/deployments/gpt-4o/chat/completions";
        let byte = plain.as_bytes()[at];
        prop_assume!(byte != b'/');
        let escaped = format!("{}%{byte:02x}{}", &plain[..at], &plain[at + 1..]);
        prop_assert_eq!(parsed(&escaped).unwrap().path, plain);
    }
}
