//! Every mood of the simulated resource, and its outcome for a client while another resource works.

use crate::support;

use std::collections::HashMap;
use std::time::Duration;

use aoai_lb::demo::{BodyPosition, ErrorEventOrder, Mood, SimulatedError};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, STREAM_BODY, answering_backend, listed_backends_yaml,
    start_simulator,
};

const LONGER_THAN_TIMEOUTS: Duration = Duration::from_secs(600);

/// The outcome of a request whose first backend is in a mood.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ExpectedOutcome {
    /// The other backend answers.
    AnsweredByOther,
    /// The backend in the mood answers.
    Answered,
    /// The client sees a truncated response.
    VisiblyBroken,
    /// The response is truncated after its last event, so that SDKs have their complete answer.
    BrokenAfterLastEvent,
    /// The response ends regularly but without its last event, and is recorded as failed.
    EndedWithoutLastEvent,
}

/// Timeouts that end soon what the mood makes the balancer wait for, and nothing else on a busy machine.
fn timeouts_yaml(mood: &Mood) -> &'static str {
    match mood {
        Mood::Mute | Mood::SlowFirstByte(_) => "timeouts: { first_byte: 2s, first_byte_stream: 2s }",
        Mood::Silence { .. } => "timeouts: { idle: 2s }",
        _ => "",
    }
}

/// The mood to test after this one, and the outcomes of a plain request and of a stream in this mood.
/// The match is exhaustive, so that a new mood has to be added here.
fn next_mood_and_outcomes(mood: &Mood) -> (Option<Mood>, ExpectedOutcome, ExpectedOutcome) {
    use ExpectedOutcome::{
        Answered, AnsweredByOther, BrokenAfterLastEvent, EndedWithoutLastEvent, VisiblyBroken,
    };
    let unavailable = || Mood::Refuses(SimulatedError::Unavailable);
    let (next, plain, stream) = match mood {
        Mood::Calm => {
            (Mood::Throttled { retry_after_ms: Some(30_000), retry_after: None }, Answered, Answered)
        }
        Mood::Throttled { .. } => {
            (Mood::FlexThrottled { retry_after_ms: Some(30_000) }, AnsweredByOther, AnsweredByOther)
        }
        Mood::FlexThrottled { .. } => (Mood::HighDemand, Answered, Answered),
        Mood::HighDemand => (unavailable(), AnsweredByOther, AnsweredByOther),
        Mood::Refuses(_) => (Mood::Mute, AnsweredByOther, AnsweredByOther),
        Mood::Mute => (Mood::SlowFirstByte(LONGER_THAN_TIMEOUTS), AnsweredByOther, AnsweredByOther),
        Mood::SlowFirstByte(_) => (
            Mood::After(Duration::from_millis(50), Box::new(unavailable())),
            AnsweredByOther,
            AnsweredByOther,
        ),
        Mood::After(..) => (Mood::Drip(Duration::from_millis(5)), AnsweredByOther, AnsweredByOther),
        Mood::Drip(_) => (Mood::ReadLag(LONGER_THAN_TIMEOUTS), Answered, Answered),
        Mood::ReadLag(_) => (Mood::LateEncryptedContent, Answered, Answered),
        Mood::LateEncryptedContent => (Mood::ResetOnAccept, Answered, Answered),
        Mood::ResetOnAccept => (Mood::ResetBeforeHead, AnsweredByOther, AnsweredByOther),
        Mood::ResetBeforeHead => (Mood::CloseBeforeHead, AnsweredByOther, AnsweredByOther),
        Mood::CloseBeforeHead => {
            (Mood::ResetMidBody { after: BodyPosition::Events(3) }, AnsweredByOther, AnsweredByOther)
        }
        Mood::ResetMidBody { .. } => {
            (Mood::CloseMidStream { after: BodyPosition::Events(3) }, VisiblyBroken, VisiblyBroken)
        }
        Mood::CloseMidStream { .. } => {
            (Mood::TruncatedLength { missing_bytes: 10 }, VisiblyBroken, VisiblyBroken)
        }
        Mood::TruncatedLength { .. } => (Mood::CleanEndWithoutTerminal, VisiblyBroken, BrokenAfterLastEvent),
        Mood::CleanEndWithoutTerminal => {
            let order = ErrorEventOrder::FailedThenError;
            (
                Mood::ErrorFirst { event_order: order, retry_after: Some("4".to_owned()) },
                Answered,
                EndedWithoutLastEvent,
            )
        }
        Mood::ErrorFirst { .. } => {
            (Mood::MidStreamError { after_events: 2 }, AnsweredByOther, AnsweredByOther)
        }
        Mood::MidStreamError { .. } => (
            Mood::Silence { after_events: 3, duration: LONGER_THAN_TIMEOUTS },
            Answered,
            EndedWithoutLastEvent,
        ),
        Mood::Silence { .. } => (Mood::TinyWrites, VisiblyBroken, VisiblyBroken),
        Mood::TinyWrites => (Mood::BigCreated { padding_bytes: 300_000 }, Answered, Answered),
        Mood::BigCreated { .. } => (Mood::AsyncFilter { blocks_content: true }, Answered, Answered),
        Mood::AsyncFilter { .. } => (Mood::CountersMinusOne, Answered, Answered),
        Mood::CountersMinusOne => (Mood::ReducedLimits { limit_percent: 50 }, Answered, Answered),
        Mood::ReducedLimits { .. } => (Mood::Unsolicited101, Answered, Answered),
        Mood::Unsolicited101 => (Mood::InfoFlood(20), AnsweredByOther, AnsweredByOther),
        Mood::InfoFlood(_) => (Mood::Http10Close, Answered, Answered),
        Mood::Http10Close => (
            Mood::EarlyAnswer { error: SimulatedError::Unavailable, closes_connection: false },
            Answered,
            Answered,
        ),
        Mood::EarlyAnswer { error: refusal, closes_connection: false } => {
            (Mood::EarlyAnswer { error: *refusal, closes_connection: true }, AnsweredByOther, AnsweredByOther)
        }
        Mood::EarlyAnswer { .. } => {
            (Mood::Sequence(vec![unavailable(), Mood::Calm]), AnsweredByOther, AnsweredByOther)
        }
        Mood::Sequence(_) => {
            let moods = HashMap::from([("gpt-4o".to_owned(), unavailable())]);
            (
                Mood::PerDeployment { moods_by_deployment: moods, default_mood: Box::new(Mood::Calm) },
                AnsweredByOther,
                AnsweredByOther,
            )
        }
        Mood::PerDeployment { .. } => return (None, AnsweredByOther, AnsweredByOther),
    };
    (Some(next), plain, stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_simulated_mood_has_the_expected_outcome_for_a_client() {
    let mut mood = Some(Mood::Calm);
    let mut tasks = tokio::task::JoinSet::new();
    while let Some(current_mood) = mood {
        let (next, plain, stream) = next_mood_and_outcomes(&current_mood);
        let timeouts = timeouts_yaml(&current_mood);
        for (body, expected) in [(CHAT_BODY, plain), (STREAM_BODY, stream)] {
            let current_mood = current_mood.clone();
            tasks.spawn(async move {
                let azure = start_simulator(&["a", "b"]).await;
                azure.set_mood("a", current_mood.clone());
                let balancer = Balancer::start(&listed_backends_yaml(&azure), timeouts).await;
                let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
                let record = &balancer.wait_for_records(1).await[0];
                let outcome = match (
                    answering_backend(&response).as_str(),
                    response.is_complete,
                    record["outcome"].as_str(),
                ) {
                    ("b", true, Some("answered")) => ExpectedOutcome::AnsweredByOther,
                    ("a", true, Some("answered")) => ExpectedOutcome::Answered,
                    ("a", false, Some("failed")) => ExpectedOutcome::VisiblyBroken,
                    ("a", false, Some("answered")) => ExpectedOutcome::BrokenAfterLastEvent,
                    ("a", true, Some("failed")) => ExpectedOutcome::EndedWithoutLastEvent,
                    other => panic!("{current_mood:?}: {other:?}: {record:#}"),
                };
                assert_eq!(
                    (response.status, outcome),
                    (200, expected),
                    "{current_mood:?} {body}: {record:#}"
                );
            });
        }
        // A few at a time, since each starts a process.
        while tasks.len() >= 8 {
            tasks.join_next().await.unwrap().unwrap();
        }
        mood = next;
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

/// The backend refuses before the body has been sent; the other backend still gets the complete body.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_before_the_body_is_sent_fails_over_with_the_complete_body() {
    for closes_connection in [false, true] {
        let azure = start_simulator(&["a", "b"]).await;
        azure.set_mood("a", Mood::EarlyAnswer { error: SimulatedError::Unavailable, closes_connection });
        let balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
        let text: String = (0..400_000).map(|n| format!("{n} ")).collect();
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}]}}"#);
        let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
        assert_eq!(
            (response.status, answering_backend(&response).as_str()),
            (200, "b"),
            "{closes_connection}"
        );
        let received_body = azure.received_requests("b").pop().unwrap().body.unwrap();
        assert!(received_body == body.as_bytes(), "{} of {} bytes", received_body.len(), body.len());
    }
}
