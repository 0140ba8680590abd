//! The running binary in front of simulated Azure resources: one module for each topic.
//!
//! They are one binary, so that tests of different topics wait at the same time. `cargo test --test integration
//! affinity::` runs one topic.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and print for the reader of a failure"
)]

#[path = "../support/mod.rs"]
mod support;

mod admin;
mod admission;
mod affinity;
mod affinity_status;
mod audit;
mod backend_selection;
mod backpressure;
mod budget_books;
mod cli;
mod client_tokens;
mod config_files;
mod connections;
mod cost_limits;
mod credential_leaks;
mod credentials;
mod demo;
mod disabled_backends;
mod documentation;
mod drains;
mod environment;
mod expiry;
mod explain;
mod failover;
mod find;
mod framing;
mod hardening;
mod headroom;
mod held_streams;
mod homes;
mod http1_semantics;
mod http2;
mod http2_framing;
mod import_apim;
mod journal;
mod limits;
mod limits_upgrade;
mod live_check;
mod log_analytics;
mod metrics;
mod models;
mod money;
mod monitoring;
mod moods;
mod open_files;
mod operate;
mod package;
mod progress;
mod prompt_cache;
mod queue;
mod queue_view;
mod realtime;
mod recent_trouble;
mod record;
mod record_fields;
mod record_file;
mod record_tokens;
mod rejections;
mod reload;
mod request_bodies;
mod responses_socket_ends;
mod responses_socket_lanes;
mod responses_sockets;
mod retry;
mod rewriting;
mod routing;
mod secrets;
mod service_tiers;
mod shared;
mod shared_budgets;
mod shared_cluster;
mod shared_fairness;
mod shared_homes;
mod shared_limits;
mod shared_link;
mod shared_load;
mod shared_rests;
mod shed;
mod slow_clients;
mod states;
mod status_all;
mod status_command;
mod stored_budgets;
mod stored_tokens;
mod storms;
mod streaming;
mod text;
mod timeouts;
mod tls;
mod tls_problems;
mod traces;
mod traces_delivery;
mod tunnels;
mod upgrade;
mod verdicts;
mod write_ahead_log;
