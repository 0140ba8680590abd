//! The resources of `aoai-lb demo`.

use std::time::Duration;

use crate::demo::resource::definition::{ResponseTiming, SimulatedResource};
use crate::demo::resource::rate_limiter::DeploymentKind;
use crate::demo::util::ids::{IdForm, IdGenerator};

const CHAT_MODEL: &str = "gpt-4o";
const EMBEDDING_MODEL: &str = "text-embedding-3-small";

/// The resources of `aoai-lb demo`, on free ports, each with an API key that is generated for this run. The first
/// has a small provisioned deployment besides a standard one, so that its conversations go on when that is busy.
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
    let provisioned = DeploymentKind::Provisioned { tokens_per_minute: 2_000, output_weight: 4 };
    vec![
        resource("eastus", "East US", 80, 15)
            .with_deployment("gpt-4o-ptu", CHAT_MODEL, provisioned)
            .with_deployment(CHAT_MODEL, CHAT_MODEL, standard(30_000)),
        resource("westus", "West US", 180, 25)
            .with_deployment(CHAT_MODEL, CHAT_MODEL, standard(30_000))
            .with_deployment(EMBEDDING_MODEL, EMBEDDING_MODEL, standard(120_000)),
        resource("sweden", "Sweden Central", 260, 35)
            .with_deployment(CHAT_MODEL, CHAT_MODEL, standard(60_000))
            .with_deployment(EMBEDDING_MODEL, EMBEDDING_MODEL, standard(120_000)),
    ]
}
