//! Requests about objects of resources: one of each kind that metrics and alerts tell apart.

use std::time::Duration;

use serde_json::json;

use super::stateful_upstream::StatefulUpstream;
use super::{Balancer, CLIENT_KEY, Response};

/// A balancer before two resources, and the resources.
pub struct AffinityTraffic {
    pub balancer: Balancer,
    pub resources: [StatefulUpstream; 2],
}

impl AffinityTraffic {
    /// Starts them, and sends requests: one whose resource is known and late, one for which the resources are asked,
    /// and one that only an unavailable resource could answer.
    pub async fn start() -> Self {
        let resources = [StatefulUpstream::start("a").await, StatefulUpstream::start("b").await];
        let backends: String = resources.iter().map(|resource| resource.backend_yaml("")).collect();
        let extra = "affinity: { read_lag: 20s }\nretry: { outage: 0s }";
        let traffic = Self { balancer: Balancer::start(&backends, extra).await, resources };
        for resource in &traffic.resources {
            resource.behave(|behaviour| behaviour.read_lag = Duration::from_millis(300));
        }
        let body = json!({"model": "gpt-4o", "input": "hi"}).to_string();
        let headers = [("api-key", CLIENT_KEY), ("content-type", "application/json")];
        let made = traffic.balancer.post("/openai/v1/responses", &headers, body.as_bytes()).await;
        let id = made.json()["id"].as_str().unwrap().to_owned();
        assert_eq!(traffic.get(&format!("/openai/v1/responses/{id}")).await.status, 200);
        let file = traffic.resources[1].make("file-");
        assert_eq!(traffic.get(&format!("/openai/v1/files/{file}")).await.status, 200);
        traffic.resources[1].behave(|behaviour| behaviour.fails = true);
        let unavailable = traffic.get("/openai/v1/files/file-unknown").await;
        assert_eq!((unavailable.status, unavailable.error_code().as_str()), (503, "home_unavailable"));
        traffic
    }

    async fn get(&self, target: &str) -> Response {
        let mut client = self.balancer.connect().await;
        client.request("GET", target, &[("api-key", CLIENT_KEY)], Some(b"")).await
    }
}
