//! The Realtime API.

use super::websocket_client::*;
use super::*;
use crate::demo::util::encoding::base64_encode;

const TARGET: &str = "/openai/v1/realtime?model=gpt-4o";

async fn open_session(simulator: &Simulator) -> SocketClient {
    let mut client = SocketClient::open(simulator, TARGET, "api-key: k\r\n").await.0;
    assert_eq!(client.event().await["type"], "session.created");
    client
}

#[tokio::test]
async fn a_realtime_websocket_is_closed_after_its_maximum_lifetime() {
    let lifetime = Duration::from_millis(400);
    let simulator =
        start_simulator(SimulatedResource { max_websocket_lifetime: lifetime, ..east_resource() }).await;
    let unknown = upgrade_request("/openai/v1/realtime?model=none", "api-key: k\r\n");
    assert_eq!(send_once(&simulator, unknown).await.status, 404);
    let wrong_key = upgrade_request("/openai/v1/realtime?model=gpt-4o&api-key=no", "");
    assert_eq!(send_once(&simulator, wrong_key).await.status, 401);
    let mut client = SocketClient::open(&simulator, "/openai/v1/realtime?model=gpt-4o&api-key=k", "").await.0;
    assert_eq!(client.event().await["type"], "session.created");
    client
        .send(&json!({"type": "conversation.item.create", "item": {"content": [{"type": "input_text", "text": "hi"}]}}))
        .await;
    client.send(&json!({"type": "response.create"})).await;
    let done = client.event_of_type("response.done").await;
    assert_eq!(done["response"]["usage"]["input_tokens"], 2);
    let expired = client.event_of_type("error").await;
    assert_eq!(expired["error"]["code"], "websocket_connection_limit_reached");
    assert_eq!(client.receive().await, Received::Close(1001));
}

#[tokio::test]
async fn a_realtime_session_counts_audio_and_what_is_cached() {
    let simulator = start_simulator(east_resource()).await;
    let mut client = open_session(&simulator).await;
    client
        .send(&json!({"type": "session.update", "session": {
            "output_modalities": ["audio"],
            "audio": {"input": {"transcription": {"model": "whisper-1"}}},
        }}))
        .await;
    let second_of_audio = base64_encode(&[0; 48_000]);
    for _ in 0..2 {
        client.send(&json!({"type": "input_audio_buffer.append", "audio": second_of_audio})).await;
    }
    client.send(&json!({"type": "input_audio_buffer.commit"})).await;
    let transcribed = client.event_of_type("conversation.item.input_audio_transcription.completed").await;
    assert_eq!(transcribed["usage"], json!({"type": "duration", "seconds": 2}));
    assert_eq!(transcribed["transcript"], "audio of 2000 ms");

    client.send(&json!({"type": "response.create"})).await;
    let audio = client.event_of_type("response.output_audio.delta").await;
    assert_eq!(audio["delta"].as_str().unwrap().len(), 9_600 / 3 * 4, "a word is spoken for 200 ms");
    let first = client.event_of_type("response.done").await["response"]["usage"].clone();
    let heard = &first["input_token_details"];
    assert_eq!((heard["audio_tokens"].as_u64(), heard["cached_tokens"].as_u64()), (Some(20), Some(0)));
    let spoken = &first["output_token_details"];
    assert!(spoken["audio_tokens"].as_u64() > spoken["text_tokens"].as_u64(), "{first}");

    client.send(&json!({"type": "response.create", "response": {"output_modalities": ["text"]}})).await;
    let second = client.event_of_type("response.done").await["response"]["usage"].clone();
    let details = &second["input_token_details"];
    assert_eq!(details["cached_tokens_details"], json!({"text_tokens": 0, "audio_tokens": 20}));
    assert_eq!(second["input_tokens"].as_u64(), first["total_tokens"].as_u64(), "what was said is input now");
    assert_eq!(second["output_token_details"]["audio_tokens"], 0);
}

#[tokio::test]
async fn a_transcription_counts_tokens_if_its_model_does() {
    let simulator = start_simulator(east_resource()).await;
    let mut client = open_session(&simulator).await;
    let session = json!({"input_audio_transcription": {"model": "gpt-4o-transcribe"}});
    client.send(&json!({"type": "session.update", "session": session})).await;
    client.send(&json!({"type": "input_audio_buffer.commit"})).await;
    let refused = client.event_of_type("error").await;
    assert_eq!(refused["error"]["code"], "input_audio_buffer_commit_empty");
    let audio = base64_encode(&[0; 24_000]);
    client.send(&json!({"type": "input_audio_buffer.append", "audio": audio})).await;
    client.send(&json!({"type": "input_audio_buffer.commit"})).await;
    let usage =
        client.event_of_type("conversation.item.input_audio_transcription.completed").await["usage"].clone();
    assert_eq!((usage["type"].as_str(), usage["input_tokens"].as_u64()), (Some("tokens"), Some(5)));
    let tokens = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(tokens("total_tokens"), tokens("input_tokens") + tokens("output_tokens"));
}

#[tokio::test]
async fn a_realtime_response_can_be_cancelled_and_pings_are_answered_meanwhile() {
    let timing = ResponseTiming { event_interval: Duration::from_secs(1), ..ResponseTiming::default() };
    let simulator = start_simulator(SimulatedResource { timing, ..east_resource() }).await;
    let mut client = open_session(&simulator).await;
    client.send(&json!({"type": "response.create"})).await;
    client.send_bytes(&client_frame(PING, b"now")).await;
    assert_eq!(client.receive().await, Received::Pong(b"now".to_vec()));
    client.send(&json!({"type": "response.create"})).await;
    client.send(&json!({"type": "response.cancel"})).await;
    let second = client.event_of_type("error").await;
    assert_eq!(second["error"]["code"], "conversation_already_has_active_response");
    let done = client.event_of_type("response.done").await;
    assert_eq!(done["response"]["status"], "cancelled");
}

#[tokio::test]
async fn the_subprotocol_of_the_api_is_selected() {
    let simulator = start_simulator(east_resource()).await;
    let cases = [
        (TARGET, "realtime, openai-insecure-api-key.k", Some("realtime")),
        (TARGET, "openai-insecure-api-key.k", None),
        ("/openai/v1/responses", "x, openai-beta.responses.v1", Some("openai-beta.responses.v1")),
        ("/openai/v1/responses", "realtime", None),
    ];
    for (target, offered, selected) in cases {
        let lines = format!("api-key: k\r\nSec-WebSocket-Protocol: {offered}\r\n");
        let (_client, response) = SocketClient::open(&simulator, target, &lines).await;
        assert_eq!(response.header("sec-websocket-protocol"), selected, "{offered}");
    }
}
