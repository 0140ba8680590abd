use super::*;
use proptest::prelude::*;

fn is_listed_by_default(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..=599)
}

#[test]
fn bytes_that_are_not_utf8_hide_no_code() {
    for message in [&b"introuvable: d\xe9ploiement"[..], b"\xff", b"\\ud83d"] {
        let body = [b"{\"error\":{\"code\":\"DeploymentNotFound\",\"message\":\"", message, b"\"}}"].concat();
        assert_eq!(judge_response(404, &body, &is_listed_by_default), Verdict::DeploymentNotFound);
    }
}

#[test]
fn responses_are_judged_by_status_and_error_body() {
    use Verdict::{
        BackendFailure, ClientError, CredentialRejected, DeploymentNotFound, NotOnThisResource,
        PermissionDenied, PromptTooLong, Success, Throttled, TooLargeForBackend, UnsupportedByBackend,
    };
    let rows: &[(u16, &str, Verdict)] = &[
        (200, "", Success),
        (304, "", Success),
        (429, r#"{"error":{"code":"429","message":"…"}}"#, Throttled),
        (408, r#"{"error":{"code":"Timeout","message":"The operation was timeout."}}"#, BackendFailure),
        (500, "<html>", BackendFailure),
        (503, "", BackendFailure),
        (
            401,
            r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint."}}"#,
            CredentialRejected,
        ),
        (
            401,
            r#"{"statusCode":401,"message":"Unauthorized. Access token is missing, invalid, audience is incorrect"}"#,
            CredentialRejected,
        ),
        (401, "", CredentialRejected),
        (
            401,
            r#"{"error":{"code":"PermissionDenied","message":"The principal lacks the required data action"}}"#,
            PermissionDenied,
        ),
        (403, r#"{"error":{"code":"PermissionDenied"}}"#, PermissionDenied),
        (
            403,
            r#"{"error":{"code":"AuthenticationTypeDisabled","message":"Key based authentication is disabled for this resource."}}"#,
            CredentialRejected,
        ),
        (
            403,
            r#"{"error":{"code":"403","message":"Access denied due to Virtual Network/Firewall rules."}}"#,
            CredentialRejected,
        ),
        (
            403,
            r#"{"error":{"code":403,"message":"Your resource has been temporarily blocked"}}"#,
            CredentialRejected,
        ),
        (403, "<html>Denied: virtual network</html>", ClientError),
        (403, r#"{"error":{"code":null,"message":"'<script>' is denied, firewall"}}"#, ClientError),
        (403, r#"{"error":{"code":"unsupported_region","message":"…"}}"#, ClientError),
        (
            404,
            r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#,
            DeploymentNotFound,
        ),
        (
            404,
            r#"{"error":{"code":null,"type":"invalid_request_error","message":"The API deployment for this resource does not exist."}}"#,
            UnsupportedByBackend,
        ),
        (
            400,
            r#"{"error":{"type":"invalid_request_error","code":null,"message":"Could not find an existing deployment for x"}}"#,
            UnsupportedByBackend,
        ),
        (404, r#"{"code":"DeploymentNotFound","message":"x"}"#, DeploymentNotFound),
        (404, r#"{"error":{"code":"404","message":"Resource not found"}}"#, ClientError),
        (
            404,
            r#"{"error":{"message":"File file-1 not found","type":"invalid_request_error","code":null}}"#,
            NotOnThisResource,
        ),
        (404, "deployment does not exist", ClientError),
        (
            404,
            r#"{"error":{"code":"previous_response_not_found","message":"deployment does not exist"}}"#,
            NotOnThisResource,
        ),
        (
            400,
            r#"{"error":{"code":"BadRequest","message":"API version not supported"}}"#,
            UnsupportedByBackend,
        ),
        (
            400,
            r#"{"error":{"code":"BadRequest","message":"api-version query parameter is not allowed when using /v1 path"}}"#,
            ClientError,
        ),
        (
            400,
            r#"{"error":{"code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
            ClientError,
        ),
        (
            400,
            r#"{"error":{"code":"context_length_exceeded","type":"invalid_request_error"}}"#,
            PromptTooLong,
        ),
        (400, r#"{"error":{"code":"unknown_model","message":"Unknown model: x"}}"#, DeploymentNotFound),
        (400, r#"{"error":{"message":"The model `x` does not exist"}}"#, UnsupportedByBackend),
        (
            400,
            r#"{"error":{"code":"400","message":"x is not enabled in this region"}}"#,
            UnsupportedByBackend,
        ),
        (
            404,
            r#"{"error":{"code":null,"message":"The traffic is not from an approved private endpoint."}}"#,
            UnsupportedByBackend,
        ),
        (
            403,
            r#"{"error":{"code":"403","message":"The traffic is not from an approved private endpoint."}}"#,
            CredentialRejected,
        ),
        // Quoted beside a specific code, it is nobody's statement about this backend.
        (400, r#"{"error":{"code":"bad_tool","message":"the model x does not exist"}}"#, ClientError),
        (400, r#"{"error":{"type":"user_error","code":"x"}}"#, ClientError),
        (400, r#"{"error":{"type":"image_generation_user_error","code":"moderation_blocked"}}"#, ClientError),
        (403, r#"{"error":{"type":"forbidden","code":"forbidden"}}"#, ClientError),
        (
            429,
            r#"{"error":{"code":"too_many_requests","message":"Your request exceeds the maximum usage size allowed during peak load."}}"#,
            TooLargeForBackend,
        ),
        (
            429,
            r#"{"error":{"code":"rate_limit_exceeded","message":"Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 45000."}}"#,
            TooLargeForBackend,
        ),
        (
            429,
            r#"{"error":{"code":"429","message":"Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-06-01 have exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after 86400 seconds."}}"#,
            TooLargeForBackend,
        ),
        (
            429,
            r#"{"error":{"code":"429","message":"have exceeded call rate limit of your current pricing tier. Please retry after 8 seconds."}}"#,
            Throttled,
        ),
        (
            429,
            r#"{"error":{"code":"RateLimitReached","message":"Rate limit of 50 per 86400s exceeded for UserByModelByDay. Please wait 5000 seconds before retrying."}}"#,
            Throttled,
        ),
        (
            429,
            r#"{"error":{"code":"no_capacity","message":"The system is currently experiencing high demand"}}"#,
            Throttled,
        ),
        (400, r#"{"error":"plain words"}"#, ClientError),
        (400, "", ClientError),
        (409, r#"{"error":{"code":"conflict"}}"#, ClientError),
        (413, "", ClientError),
        (424, r#"{"error":{"code":"424"}}"#, ClientError),
        (431, "", ClientError),
    ];
    for (status, body, expected) in rows {
        assert_eq!(
            judge_response(*status, body.as_bytes(), &is_listed_by_default),
            *expected,
            "{status} {body}"
        );
    }
}

#[test]
fn the_configured_statuses_decide_about_the_rest() {
    let all = |status: u16| status >= 400;
    let filter = br#"{"error":{"code":null,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#;
    assert_eq!(judge_response(400, b"{}", &all), Verdict::RetryElsewhere);
    assert_eq!(judge_response(400, filter, &all), Verdict::ClientError);
    for refused in [
        r#"{"error":{"code":"moderation_blocked"}}"#,
        r#"{"error":{"type":"user_error"}}"#,
        r#"{"error":{"type":"image_generation_user_error"}}"#,
    ] {
        assert_eq!(judge_response(400, refused.as_bytes(), &all), Verdict::ClientError, "{refused}");
    }
    let too_long = br#"{"error":{"code":"context_length_exceeded"}}"#;
    assert_eq!(judge_response(400, too_long, &all), Verdict::RetryElsewhere);
    assert_eq!(judge_response(403, br#"{"error":{"code":"x"}}"#, &all), Verdict::RetryElsewhere);
    assert_eq!(judge_response(424, b"", &all), Verdict::RetryElsewhere);
    let none = |_: u16| false;
    assert_eq!(judge_response(429, b"", &none), Verdict::ClientError);
    assert_eq!(judge_response(503, b"", &none), Verdict::ClientError);
    assert_eq!(judge_response(401, b"", &none), Verdict::CredentialRejected);
    assert_eq!(
        judge_response(404, br#"{"error":{"code":"DeploymentNotFound"}}"#, &none),
        Verdict::DeploymentNotFound
    );
}

#[test]
fn error_events_are_judged_by_their_code() {
    use Verdict::{
        BackendFailure, ClientError, CredentialRejected, PromptTooLong, Throttled, TooLargeForBackend,
        UnsupportedByBackend,
    };
    let rows = [
        (
            r#"{"type":"error","error":{"type":"too_many_requests","code":"rate_limit_exceeded","message":"…"}}"#,
            Throttled,
        ),
        (
            r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"too_many_requests"}}}"#,
            Throttled,
        ),
        (r#"{"type":"response.failed","response":{"status":"failed","error":null}}"#, Throttled),
        (r#"{"type":"error","code":"rate_limit_exceeded","message":"…"}"#, Throttled),
        (
            r#"{"error":{"type":"invalid_request_error","code":null,"message":"Could not find an existing deployment"}}"#,
            UnsupportedByBackend,
        ),
        (r#"{"error":{"type":"invalid_request_error","code":"x"}}"#, ClientError),
        (r#"{"error":{"code":"content_filter"}}"#, ClientError),
        (r#"{"type":"error","error":{"type":"user_error","code":"invalid_payload"}}"#, ClientError),
        (r#"{"type":"error","error":{"type":"user_error","code":null}}"#, ClientError),
        (r#"{"type":"error","error":{"type":"forbidden","code":"forbidden"}}"#, ClientError),
        (r#"{"type":"error","error":{"type":"a_new_word","code":"another"}}"#, ClientError),
        (r#"{"type":"error","error":{"message":"words that nobody knows"}}"#, ClientError),
        (r#"{"type":"error","error":{"code":"moderation_blocked"}}"#, ClientError),
        (r#"{"type":"error","error":{"code":"context_length_exceeded"}}"#, PromptTooLong),
        (r#"{"error":{"code":"401","message":"Unauthorized"}}"#, CredentialRejected),
        (r#"{"error":{"type":"too_many_requests","code":"no_capacity","message":"high demand"}}"#, Throttled),
        (
            r#"{"error":{"type":"too_many_requests","message":"Your request exceeds the maximum usage size"}}"#,
            TooLargeForBackend,
        ),
        (r#"{"error":{"code":500,"message":"x"}}"#, BackendFailure),
        (r#"{"error":{"message":"The server had an error while processing your request."}}"#, BackendFailure),
        (r#"{"type":"response.failed","response":{"error":{"code":"server_error"}}}"#, BackendFailure),
        (
            r#"{"error":{"type":"server_error","code":null,"message":"The server had an error"}}"#,
            BackendFailure,
        ),
    ];
    for (data, expected) in rows {
        assert_eq!(judge_error_event(data.as_bytes()), expected, "{data}");
    }
}

#[test]
fn a_complaint_about_stream_options_is_recognised() {
    assert!(mentions_stream_options(
        br#"{"error":{"message":"Unrecognized request argument supplied: stream_options"}}"#
    ));
    assert!(!mentions_stream_options(b""));
}

proptest! {
    #[test]
    fn arbitrary_bodies_never_panic(status: u16, body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (judge_response(status, &body, &is_listed_by_default), judge_error_event(&body), needs_body_to_judge(status));
    }
}

#[test]
fn what_a_resource_does_not_have_is_told_from_other_errors() {
    let messages = [
        "Item with id 'rs_0ed5' not found.",
        "Item with id 'msg_1' not found",
        "Previous response with id 'resp_1' not found.",
        "Response with id 'resp_1' not found.",
        "The encrypted content gAAA...Rg== could not be verified.",
        "The encrypted content for item cmp_34 could not be verified. Reason: Encrypted content could not be decrypted or parsed.",
        "File file-1 not found",
        "Files [file-IEh] were not found",
        "No such File object: file-1",
        "Vector store with id 'vs_1' not found.",
        "Container with id 'cntr_1' not found.",
        "Conversation with id 'conv_1' not found.",
        "Batch batch_1 not found",
        "No batch found with id 'batch_1'.",
        "No such Upload object: upload_1",
    ];
    for message in messages {
        for code in ["null", r#""invalid_request_error""#, r#""404""#] {
            let body = format!(
                r#"{{"error":{{"message":"{message}","type":"invalid_request_error","code":{code}}}}}"#
            );
            for status in [400, 404] {
                let verdict = judge_response(status, body.as_bytes(), &|_| false);
                assert_eq!(verdict, Verdict::NotOnThisResource, "{status} {body}");
            }
            for status in [401, 403, 409, 422] {
                let verdict = judge_response(status, body.as_bytes(), &|_| false);
                assert_eq!(verdict, Verdict::ClientError, "{status} {body}");
            }
            let event = format!(r#"{{"type":"response.failed","response":{body}}}"#);
            assert_eq!(judge_error_event(event.as_bytes()), Verdict::NotOnThisResource, "{event}");
            assert_eq!(judge_error_event(body.as_bytes()), Verdict::NotOnThisResource, "{body}");
        }
    }
    let others = [
        // Stored nowhere: the client asked for that.
        r#"{"error":{"message":"Item with id 'rs_1' not found. Items are not persisted when `store` is set to false. Try again with `store` set to true.","code":null}}"#,
        r#"{"error":{"message":"Item with id 'rs_1' not found. Items are not persisted when `store` is set to false.","code":"previous_response_not_found"}}"#,
        // Quoted, or beside a code that says something else.
        r#"{"error":{"message":"Invalid value: 'Item with id rs_1 not found'","code":null}}"#,
        r#"{"error":{"message":"File file-1 not found","code":"invalid_value"}}"#,
        r#"{"error":{"message":"Item 'rs_1' of type 'reasoning' was provided without its required following item.","code":null}}"#,
        r#"{"error":{"message":"No tool output found for function call call_1.","code":null}}"#,
        r#"{"error":{"code":"404","message":"Resource not found"}}"#,
        "File file-1 not found",
    ];
    for body in others {
        for status in [400, 404] {
            assert_eq!(
                judge_response(status, body.as_bytes(), &|_| false),
                Verdict::ClientError,
                "{status} {body}"
            );
        }
    }
}
