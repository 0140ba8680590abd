//! Every mood of the simulated resource, and what a client sees of it when another is well.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::collections::HashMap;
use std::time::Duration;

use aoai_lb::demo::{ErrorOrder, Extent, Mood, Refusal};
use support::{Balancer, CHAT, HELLO, KEY, STREAM, answerer, azure, listed};

const LONG: Duration = Duration::from_secs(20);

/// What becomes of a request whose first backend is in a mood.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// The other backend answers it.
    Elsewhere,
    /// The backend answers it.
    Answered,
    /// It is seen to break off.
    Broken,
    /// It says that it is over and then breaks off: SDKs have their answer.
    Said,
    /// It ends as it did upstream, and is recorded as failed.
    Failed,
}

/// The mood after this one, and what becomes of a plain request and of a stream in this one. A new
/// mood has to find its place here.
fn tour(mood: &Mood) -> (Option<Mood>, Fate, Fate) {
    use Fate::{Answered, Broken, Elsewhere, Failed, Said};
    let down = || Mood::Refuses(Refusal::Unavailable);
    let (next, plain, stream) = match mood {
        Mood::Calm => {
            (Mood::Throttled { retry_after_ms: Some(30_000), retry_after: None }, Answered, Answered)
        }
        Mood::Throttled { .. } => (Mood::HighDemand, Elsewhere, Elsewhere),
        Mood::HighDemand => (down(), Elsewhere, Elsewhere),
        Mood::Refuses(_) => (Mood::Mute, Elsewhere, Elsewhere),
        Mood::Mute => (Mood::SlowFirstByte(LONG), Elsewhere, Elsewhere),
        Mood::SlowFirstByte(_) => {
            (Mood::After(Duration::from_millis(50), Box::new(down())), Elsewhere, Elsewhere)
        }
        Mood::After(..) => (Mood::Drip(Duration::from_millis(5)), Elsewhere, Elsewhere),
        Mood::Drip(_) => (Mood::ResetOnAccept, Answered, Answered),
        Mood::ResetOnAccept => (Mood::ResetBeforeHead, Elsewhere, Elsewhere),
        Mood::ResetBeforeHead => (Mood::CloseBeforeHead, Elsewhere, Elsewhere),
        Mood::CloseBeforeHead => (Mood::ResetMidBody { after: Extent::Events(3) }, Elsewhere, Elsewhere),
        Mood::ResetMidBody { .. } => (Mood::CloseMidStream { after: Extent::Events(3) }, Broken, Broken),
        Mood::CloseMidStream { .. } => (Mood::TruncatedLength { missing: 10 }, Broken, Broken),
        Mood::TruncatedLength { .. } => (Mood::CleanEndWithoutTerminal, Broken, Said),
        Mood::CleanEndWithoutTerminal => {
            let order = ErrorOrder::FailedThenError;
            (Mood::ErrorFirst { order, retry_after: Some("4".to_owned()) }, Answered, Failed)
        }
        Mood::ErrorFirst { .. } => (Mood::MidStreamError { after: 2 }, Elsewhere, Elsewhere),
        Mood::MidStreamError { .. } => (Mood::Silence { after: 3, lasting: LONG }, Answered, Failed),
        Mood::Silence { .. } => (Mood::TinyWrites, Broken, Broken),
        Mood::TinyWrites => (Mood::BigCreated { bytes: 300_000 }, Answered, Answered),
        Mood::BigCreated { .. } => (Mood::AsyncFilter { blocks: true }, Answered, Answered),
        Mood::AsyncFilter { .. } => (Mood::CountersMinusOne, Answered, Answered),
        Mood::CountersMinusOne => (Mood::ReducedLimits { percent: 50 }, Answered, Answered),
        Mood::ReducedLimits { .. } => (Mood::Unsolicited101, Answered, Answered),
        Mood::Unsolicited101 => (Mood::InfoFlood(20), Elsewhere, Elsewhere),
        Mood::InfoFlood(_) => (Mood::Http10Close, Answered, Answered),
        Mood::Http10Close => {
            (Mood::EarlyAnswer { refusal: Refusal::Unavailable, close: false }, Answered, Answered)
        }
        Mood::EarlyAnswer { refusal, close: false } => {
            (Mood::EarlyAnswer { refusal: *refusal, close: true }, Elsewhere, Elsewhere)
        }
        Mood::EarlyAnswer { .. } => (Mood::Sequence(vec![down(), Mood::Calm]), Elsewhere, Elsewhere),
        Mood::Sequence(_) => {
            let moods = HashMap::from([("gpt-4o".to_owned(), down())]);
            (Mood::PerDeployment { moods, otherwise: Box::new(Mood::Calm) }, Elsewhere, Elsewhere)
        }
        Mood::PerDeployment { .. } => return (None, Elsewhere, Elsewhere),
    };
    (Some(next), plain, stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mood_and_what_a_client_sees_of_it() {
    let timeouts = "timeouts: { first_byte: 400ms, first_byte_stream: 400ms, idle: 400ms }";
    let mut mood = Some(Mood::Calm);
    let mut tasks = tokio::task::JoinSet::new();
    while let Some(now) = mood {
        let (next, plain, stream) = tour(&now);
        for (body, expected) in [(HELLO, plain), (STREAM, stream)] {
            let now = now.clone();
            tasks.spawn(async move {
                let azure = azure(&["a", "b"]).await;
                azure.set_mood("a", now.clone());
                let balancer = Balancer::start(&listed(&azure), timeouts).await;
                let reply = balancer.post(CHAT, &[("api-key", KEY)], body.as_bytes()).await;
                let record = &balancer.records_of(1).await[0];
                let seen = match (answerer(&reply).as_str(), reply.whole, record["outcome"].as_str()) {
                    ("b", true, Some("answered")) => Fate::Elsewhere,
                    ("a", true, Some("answered")) => Fate::Answered,
                    ("a", false, Some("failed")) => Fate::Broken,
                    ("a", false, Some("answered")) => Fate::Said,
                    ("a", true, Some("failed")) => Fate::Failed,
                    other => panic!("{now:?}: {other:?}: {record:#}"),
                };
                assert_eq!((reply.status, seen), (200, expected), "{now:?} {body}: {record:#}");
            });
        }
        // A few at a time: each is a process.
        while tasks.len() >= 8 {
            tasks.join_next().await.unwrap().unwrap();
        }
        mood = next;
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

/// A refusal that comes before the body has been sent: it is sent whole to the other backend.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_refusal_costs_no_byte_of_the_body() {
    for close in [false, true] {
        let azure = azure(&["a", "b"]).await;
        azure.set_mood("a", Mood::EarlyAnswer { refusal: Refusal::Unavailable, close });
        let balancer = Balancer::start(&listed(&azure), "").await;
        let text: String = (0..400_000).map(|n| format!("{n} ")).collect();
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}]}}"#);
        let reply = balancer.post(CHAT, &[("api-key", KEY)], body.as_bytes()).await;
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"), "{close}");
        let sent = azure.requests("b").pop().unwrap().body.unwrap();
        assert!(sent == body.as_bytes(), "{} of {} bytes", sent.len(), body.len());
    }
}
