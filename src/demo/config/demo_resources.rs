//! The resources of `aoai-lb demo`.

use std::time::Duration;

use crate::demo::resource::definition::{ResponseTiming, SimulatedResource};
use crate::demo::resource::rate_limiter::DeploymentKind;
use crate::demo::util::ids::{IdForm, IdGenerator};

/// What a user's own requests are for.
const CHAT_MODEL: &str = "gpt-4o";
/// More than the agents of one user need, whose conversations stay on one resource and are counted whole in each turn.
const CHAT_TOKENS_PER_MINUTE: u64 = 100_000_000;
/// What the demo fills the provisioned deployment of.
const PROVISIONED_MODEL: &str = "gpt-4.1";
const EMBEDDING_MODEL: &str = "text-embedding-3-small";

/// The resources of `aoai-lb demo`, on free ports, each with an API key that is generated for this run. The first has
/// a small provisioned deployment of a model of its own. All three serve that model as well, for when it is full.
pub fn demo_resources() -> Vec<SimulatedResource> {
    let ids = IdGenerator::new(IdForm::Chained);
    let standard =
        |tokens_per_minute| DeploymentKind::Standard { tokens_per_minute, requests_per_minute: None };
    let resource = |name: &str, region: &str, first_byte_millis, event_interval_millis| SimulatedResource {
        region: region.to_owned(),
        allows_mood_header: true,
        timing: ResponseTiming {
            first_byte_delay: Duration::from_millis(first_byte_millis),
            event_interval: Duration::from_millis(event_interval_millis),
        },
        ..SimulatedResource::new(name).with_api_key(ids.new_hex_id("", 32))
    };
    let provisioned = DeploymentKind::Provisioned { tokens_per_minute: 3_000, output_weight: 4 };
    let with_chat =
        |resource: SimulatedResource| {
            resource
                .with_deployment(CHAT_MODEL, CHAT_MODEL, standard(CHAT_TOKENS_PER_MINUTE))
                .with_deployment(PROVISIONED_MODEL, PROVISIONED_MODEL, standard(120_000))
        };
    vec![
        with_chat(resource("eastus", "East US", 80, 15)).with_deployment(
            format!("{PROVISIONED_MODEL}-ptu"),
            PROVISIONED_MODEL,
            provisioned,
        ),
        with_chat(resource("westus", "West US", 180, 25)).with_deployment(
            EMBEDDING_MODEL,
            EMBEDDING_MODEL,
            standard(1_000_000),
        ),
        with_chat(resource("sweden", "Sweden Central", 260, 35)).with_deployment(
            EMBEDDING_MODEL,
            EMBEDDING_MODEL,
            standard(1_000_000),
        ),
    ]
}
