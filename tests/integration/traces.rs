//! Traces, as an OTLP receiver gets them that decodes the published protobuf.

use crate::support;

use std::time::Duration;

use aoai_lb::demo::{Mood, SimulatedError};
use serde_json::{Value, json};
use support::collector::{Collector, ReceivedSpan, field};
use support::responses_upstream::{ResponsesUpstream, create};
use support::upstream::{ScriptedUpstream, complete_response};
use support::websocket::{RESPONSES_TARGET, UPGRADE_HEADERS, WebSocket};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Response, STREAM_BODY, all_backends_yaml, backend_yaml,
    free_port, simulated_backend_yaml, start_simulator, wait_until,
};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE_ID}-{PARENT_ID}-{flags}")
}

fn request_id(response: &Response) -> String {
    response.header("x-aoai-lb-request-id").unwrap().to_owned()
}

async fn post_chat_with(balancer: &Balancer, headers: &[(&str, &str)], body: &str) -> Response {
    let headers = [&[("api-key", CLIENT_KEY)][..], headers].concat();
    balancer.post(CHAT_TARGET, &headers, body.as_bytes()).await
}

fn tells_usage(span: &ReceivedSpan) -> bool {
    span.attributes.as_object().unwrap().keys().any(|key| key.starts_with("gen_ai.usage."))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_continues_the_trace_of_its_client() {
    let (azure, collector) = (start_simulator(&["a"]).await, Collector::start().await);
    let balancer = Balancer::start(&all_backends_yaml(&azure), &collector.traces_yaml("sample: 0%")).await;
    let response = post_chat_with(&balancer, &[("traceparent", &traceparent("01"))], CHAT_BODY).await;
    assert_eq!(response.status, 200);
    let (server, attempts) = collector.trace_of_request(&request_id(&response)).await;
    let [attempt] = &attempts[..] else { panic!("{attempts:?}") };
    assert_eq!((server.trace_id.as_str(), server.parent_id.as_str()), (TRACE_ID, PARENT_ID));
    assert_eq!(attempt.trace_id, TRACE_ID);
    assert_eq!(server.name, "POST /openai/deployments/{deployment}/chat/completions");
    assert_eq!(attempt.name, "chat gpt-4o");
    assert!(!server.is_error && !attempt.is_error);
    assert!(
        server.start_nanos <= attempt.start_nanos && attempt.end_nanos <= server.end_nanos,
        "{server:?} {attempt:?}"
    );
    assert!(attempt.start_nanos < attempt.end_nanos || attempt.attributes["aoai_lb.response_head_ms"] == 0);
    let record = balancer.wait_for_records(1).await.pop().unwrap();
    assert_eq!(record["trace_id"], TRACE_ID);
    let path = "/openai/deployments/gpt-4o/chat/completions";
    let expected = json!({
        "http.request.method": "POST", "http.route": "/openai/deployments/{deployment}/chat/completions",
        "url.path": path, "http.response.status_code": 200, "client.address": "127.0.0.1",
        "network.peer.address": "127.0.0.1", "aoai_lb.request_id": request_id(&response),
        "aoai_lb.client": "team-a", "aoai_lb.class": "standard", "aoai_lb.outcome": "answered",
    });
    assert_eq!(server.attributes, expected);
    let mut told = attempt.attributes.as_object().unwrap().clone();
    assert!(told.remove("aoai_lb.response_head_ms").unwrap().is_u64());
    let expected = json!({
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "azure.ai.openai",
        "gen_ai.request.model": "gpt-4o", "openai.api.type": "chat_completions",
        "server.address": "127.0.0.1", "server.port": azure.address("a").port(),
        "http.response.status_code": 200, "aoai_lb.backend": "a", "aoai_lb.tier": 1, "aoai_lb.attempt": 1,
        "aoai_lb.outcome": "answered", "aoai_lb.verdict": "success",
        "aoai_lb.upstream_deployment": "gpt-4o", "aoai_lb.region": record["region"],
        "aoai_lb.apim_request_id": record["apim_request_id"], "aoai_lb.usage_source": "reported",
        "gen_ai.response.model": record["model"], "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": record["input_tokens"],
        "gen_ai.usage.output_tokens": record["output_tokens"],
        "gen_ai.usage.cache_read.input_tokens": record["cached_tokens"],
        "gen_ai.usage.cache_write.input_tokens": record["cache_write_tokens"],
        "openai.response.service_tier": record["service_tier"],
        "gen_ai.usage.reasoning.output_tokens": record["reasoning_tokens"],
        "gen_ai.usage.audio.input_tokens": record["input_audio_tokens"],
        "gen_ai.usage.audio.output_tokens": record["output_audio_tokens"],
    });
    let mut expected = expected.as_object().unwrap().clone();
    expected.retain(|_, value| !value.is_null());
    assert!(expected.contains_key("gen_ai.usage.input_tokens"), "{record}");
    assert_eq!(told, expected);
    let resource = collector.resource();
    assert_eq!(
        (&resource["service.name"], &resource["process.pid"]),
        (&json!("aoai-lb"), &json!(balancer.pid()))
    );
    assert!(collector.schema_urls().iter().all(|url| url == "https://opentelemetry.io/schemas/1.44.0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_and_then_the_share_decide_what_is_exported() {
    let azure = start_simulator(&["a"]).await;
    for (sample, expected) in [("0%", vec!["01"]), ("100%", vec!["01", "none", "invalid"])] {
        let collector = Collector::start().await;
        let balancer =
            Balancer::start(&all_backends_yaml(&azure), &collector.traces_yaml(&format!("sample: {sample}")))
                .await;
        let mut sent = Vec::new();
        for kind in ["00", "01", "none", "invalid"] {
            let header = match kind {
                "none" => None,
                "invalid" => Some(format!("{}x", traceparent("01"))),
                flags => Some(traceparent(flags)),
            };
            let headers: Vec<_> = header.iter().map(|value| ("traceparent", value.as_str())).collect();
            sent.push((kind, request_id(&post_chat_with(&balancer, &headers, CHAT_BODY).await)));
        }
        let span_ids = || {
            let spans = collector.spans();
            let ids = spans.iter().filter_map(|span| span.attributes["aoai_lb.request_id"].as_str());
            ids.map(str::to_owned).collect::<Vec<_>>()
        };
        wait_until("the expected ones are exported", || span_ids().len() >= expected.len()).await;
        // The same thread handles requests in their order, so none of them is still to come.
        let marker =
            request_id(&post_chat_with(&balancer, &[("traceparent", &traceparent("01"))], CHAT_BODY).await);
        collector.trace_of_request(&marker).await;
        let exported: Vec<_> =
            sent.iter().filter(|(_, id)| span_ids().contains(id)).map(|(kind, _)| *kind).collect();
        assert_eq!(exported, expected, "{sample}");
        // Each record has the id of its trace, whether it is exported or not.
        let records = balancer.wait_for_records(5).await;
        for (kind, id) in &sent {
            let record = records.iter().find(|record| record["request_id"] == *id.as_str()).unwrap();
            let expected = match *kind {
                "none" | "invalid" => id.replace('-', ""),
                _ => TRACE_ID.to_owned(),
            };
            assert_eq!(record["trace_id"], expected, "{kind}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_traces_only_a_client_gives_a_record_its_trace() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    post_chat_with(&balancer, &[], CHAT_BODY).await;
    post_chat_with(&balancer, &[("traceparent", &traceparent("00"))], CHAT_BODY).await;
    let records = balancer.wait_for_records(2).await;
    let ids: Vec<_> = records.iter().map(|record| &record["trace_id"]).collect();
    assert_eq!(ids, [&Value::Null, &json!(TRACE_ID)]);
    assert_eq!(balancer.status().await["traces"], Value::Null);
    assert!(azure.received_requests("a").iter().all(|request| {
        !request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("traceparent"))
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_request_has_a_span_for_each_attempt() {
    let (azure, collector) = (start_simulator(&["b"]).await, Collector::start().await);
    // Reads the request for a while, and then refuses it.
    let slow = ScriptedUpstream::start(|_| {
        let pause = support::upstream::PAUSE_100_MS.to_vec();
        [vec![pause], complete_response(429, "Retry-After: 7", "{}")].concat()
    })
    .await;
    let closed = backend_yaml("closed", &format!("http://127.0.0.1:{}", free_port()), "tier: 1");
    let throttled = backend_yaml("throttled", &format!("http://{}", slow.address), "tier: 2");
    let backends = closed + &throttled + &simulated_backend_yaml(&azure, "b", "tier: 3");
    // Without a record block there is no difference.
    let balancer = Balancer::start(&backends, &collector.traces_yaml("sample: 100%")).await;
    let response = post_chat_with(&balancer, &[], STREAM_BODY).await;
    assert_eq!(response.status, 200);
    let (server, attempts) = collector.trace_of_request(&request_id(&response)).await;
    assert_eq!(server.trace_id, request_id(&response).replace('-', ""));
    assert_eq!(server.parent_id, "");
    let facts: Vec<_> = attempts
        .iter()
        .map(|span| {
            let of = |key: &str| span.attributes[key].clone();
            (
                of("aoai_lb.backend"),
                of("error.type"),
                of("aoai_lb.verdict"),
                of("aoai_lb.tier"),
                span.is_error,
            )
        })
        .collect();
    let none = Value::Null;
    let expected = [
        (json!("closed"), json!("connect_refused"), none.clone(), json!(1), true),
        (json!("throttled"), json!("429"), json!("throttled"), json!(2), true),
        (json!("b"), none.clone(), json!("success"), json!(3), false),
    ];
    assert_eq!(facts, expected);
    assert_eq!(attempts[1].attributes["aoai_lb.retry_after_ms"], 7_000);
    let resends: Vec<_> = attempts.iter().map(|span| &span.attributes["http.request.resend_count"]).collect();
    assert_eq!(resends, [&none, &json!(1), &json!(2)]);
    // One after the other, within the request; the second one took its time.
    assert!(server.start_nanos <= attempts[0].start_nanos);
    for pair in attempts.windows(2) {
        assert!(
            pair[0].start_nanos <= pair[0].end_nanos && pair[0].end_nanos <= pair[1].start_nanos,
            "{pair:?}"
        );
    }
    assert!(attempts[2].end_nanos <= server.end_nanos);
    let took = Duration::from_nanos(attempts[1].end_nanos - attempts[1].start_nanos);
    assert!(took >= Duration::from_millis(95), "{took:?}");
    // The stream's tokens and its first chunk are those of the last one.
    assert_eq!(attempts.iter().map(tells_usage).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(attempts[2].attributes["gen_ai.request.stream"], true);
    let first_chunk = attempts[2].attributes["gen_ai.response.time_to_first_chunk"].as_f64().unwrap();
    assert!(first_chunk > 0.0 && first_chunk < took.as_secs_f64() + 60.0, "{first_chunk}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_requests_are_exported_and_refused_ones_are_not() {
    let (azure, collector) = (start_simulator(&["a"]).await, Collector::start().await);
    let extra = collector.traces_yaml("sample: 0%") + "\nretry: { attempts: 0 }";
    let balancer = Balancer::start(&all_backends_yaml(&azure), &extra).await;
    let refused = balancer.post(CHAT_TARGET, &[("api-key", "wrong")], CHAT_BODY.as_bytes()).await;
    assert_eq!(refused.status, 401);
    let served = post_chat_with(&balancer, &[], CHAT_BODY).await;
    azure.set_mood("a", Mood::Refuses(SimulatedError::Unavailable));
    let failed = post_chat_with(&balancer, &[], CHAT_BODY).await;
    assert!(failed.status >= 500);
    let sampled = post_chat_with(&balancer, &[("traceparent", &traceparent("00"))], CHAT_BODY).await;
    let (server, attempts) = collector.trace_of_request(&request_id(&failed)).await;
    assert!(server.is_error && attempts[0].is_error && attempts.len() == 1);
    assert_eq!(server.attributes["http.response.status_code"], failed.status);
    assert!(server.attributes["error.type"].is_string());
    let ids = [refused, served, sampled].map(|response| request_id(&response));
    let spans = collector.spans();
    assert!(
        spans.iter().all(|span| !ids.iter().any(|id| span.attributes["aoai_lb.request_id"] == id.as_str()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_tells_no_tokens_even_if_its_record_does() {
    // The response of the background is seen to have ended by the GET, whose record has its tokens.
    let upstream = ScriptedUpstream::start(|request| {
        let is_background = String::from_utf8_lossy(&request.body).contains("background");
        let state = if is_background {
            r#""status":"queued","usage":null"#
        } else {
            r#""status":"completed","usage":{"input_tokens":100,"output_tokens":50,"total_tokens":150}"#
        };
        let body = format!(r#"{{"id":"resp_1","object":"response","model":"m","output":[],{state}}}"#);
        complete_response(200, "Content-Type: application/json", &body)
    })
    .await;
    let collector = Collector::start().await;
    let balancer = Balancer::start(&upstream.backend_yaml("a"), &collector.traces_yaml("sample: 100%")).await;
    let key = [("api-key", CLIENT_KEY)];
    let post = async |body: &str| balancer.post("/v1/responses", &key, body.as_bytes()).await;
    let made = post(r#"{"model":"m","input":"x"}"#).await;
    let begun = post(r#"{"model":"m","input":"x","background":true}"#).await;
    let fetched = balancer.connect().await.get("/v1/responses/resp_1", &key).await;
    let records = balancer.wait_for_records(3).await;
    for (response, server_name, attempt_name, record_tokens, tells) in [
        (made, "POST /openai/v1/responses", "chat m", json!(100), true),
        (begun, "POST /openai/v1/responses", "chat m", Value::Null, false),
        (fetched, "GET /openai/v1/responses/{id}", "fetch_response", json!(100), false),
    ] {
        let id = request_id(&response);
        let record = records.iter().find(|record| record["request_id"] == id.as_str()).unwrap();
        assert_eq!(record["input_tokens"], record_tokens, "{record}");
        let (server, attempts) = collector.trace_of_request(&id).await;
        assert_eq!((server.name.as_str(), attempts[0].name.as_str()), (server_name, attempt_name));
        assert_eq!(tells_usage(&attempts[0]), tells, "{attempts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_told_the_span_of_its_attempt_if_that_is_configured() {
    let upstream =
        ScriptedUpstream::start(|_| complete_response(200, "Content-Type: application/json", "{}")).await;
    let parent = traceparent("01");
    let state = "vendor=a:b,other=c";
    for (forward, sample) in [(false, "100%"), (true, "100%"), (true, "0%")] {
        upstream.forget_requests();
        let collector = Collector::start().await;
        let extra = collector.traces_yaml(&format!("sample: {sample}, forward: {forward}"));
        let balancer = Balancer::start(&upstream.backend_yaml("a"), &extra).await;
        let continued =
            post_chat_with(&balancer, &[("traceparent", &parent), ("tracestate", state)], CHAT_BODY).await;
        let begun =
            post_chat_with(&balancer, &[("traceparent", "00-x"), ("tracestate", state)], CHAT_BODY).await;
        let heads: Vec<String> = upstream.requests().into_iter().map(|request| request.head).collect();
        if !forward {
            assert!(
                heads.iter().all(|head| {
                    field(head, "traceparent").is_none() && field(head, "tracestate").is_none()
                })
            );
            continue;
        }
        let (_, attempts) = collector.trace_of_request(&request_id(&continued)).await;
        assert_eq!(
            field(&heads[0], "traceparent"),
            Some(&*format!("00-{TRACE_ID}-{}-01", attempts[0].span_id))
        );
        assert_eq!(field(&heads[0], "tracestate"), Some(state));
        // Of a trace that begins here there is no state.
        let told = field(&heads[1], "traceparent").unwrap();
        let flags = if sample == "100%" { "01" } else { "00" };
        assert_eq!(
            (&told[..36], &told[52..]),
            (&*format!("00-{}-", request_id(&begun).replace('-', "")), &*format!("-{flags}"))
        );
        assert_eq!(field(&heads[1], "tracestate"), None);
        if sample == "100%" {
            let (_, attempts) = collector.trace_of_request(&request_id(&begun)).await;
            assert_eq!(told[36..52], attempts[0].span_id);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_of_a_socket_is_a_request_like_others() {
    let (upstream, collector) = (ResponsesUpstream::start("a").await, Collector::start().await);
    let backends = upstream.backend_yaml("deployments: { chat: chat-on-a }");
    let balancer = Balancer::start(&backends, &collector.traces_yaml("sample: 0%, forward: true")).await;
    let parent = traceparent("01");
    let headers = [&UPGRADE_HEADERS[..], &[("traceparent", &parent)]].concat();
    let mut socket = WebSocket::open_with(balancer.address, RESPONSES_TARGET, &headers).await.ok().unwrap();
    for _ in 0..2 {
        socket.complete_turn(&create(&json!({"model": "chat"}))).await;
    }
    let turns = || {
        collector
            .spans()
            .into_iter()
            .filter(|s| s.name == "WEBSOCKET /openai/v1/responses")
            .collect::<Vec<_>>()
    };
    wait_until("the turns are exported", || turns().len() == 2).await;
    let spans = collector.spans();
    for turn in turns() {
        assert_eq!((turn.trace_id.as_str(), turn.parent_id.as_str()), (TRACE_ID, PARENT_ID));
        assert_eq!(turn.attributes["network.protocol.name"], "websocket");
        assert_eq!(turn.attributes["http.request.method"], Value::Null);
        let attempts: Vec<_> = spans.iter().filter(|span| span.parent_id == turn.span_id).collect();
        assert_eq!(attempts.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["chat chat"]);
        assert_eq!(attempts[0].attributes["aoai_lb.upstream_deployment"], "chat-on-a");
    }
    // The backend's socket was opened by the attempt of the first turn.
    let told = upstream.last_message().handshake;
    let opener = field(&told, "traceparent").unwrap()[36..52].to_owned();
    let attempts: Vec<_> =
        spans.iter().filter(|span| span.name == "chat chat").map(|span| &span.span_id).collect();
    assert!(attempts.contains(&&opener), "{told}\n{attempts:?}");
}
