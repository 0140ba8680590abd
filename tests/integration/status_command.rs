//! `aoai-lb status`: as text, as one line with an exit code, and on the whole screen of a terminal.

use crate::support;

use std::process::Stdio;
use std::time::Duration;

use aoai_lb::demo::{Mood, SimulatedError};
use serde_json::{Value, json};
use support::terminal::Terminal;
use support::upstream::{RawRequest, ScriptedUpstream, complete_response};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, Client, answering_backend, free_port, listed_backends_yaml,
    simulated_backend_yaml, start_simulator,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

fn status_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    command.arg("status").args(arguments).kill_on_drop(true);
    command
}

/// Runs the command, and returns its exit code and what it printed.
pub(crate) async fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = status_command(arguments).output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

pub(crate) fn admin_url(balancer: &Balancer) -> String {
    format!("http://{}", balancer.admin_address)
}

async fn wait_for_service(balancer: &Balancer, state: &str) {
    let what = format!("the whole is {state}");
    balancer.wait_for_status(&what, |status| status["service"]["state"] == state).await;
}

fn position(lines: &[impl AsRef<str>], beginning: &str) -> Option<usize> {
    lines.iter().position(|line| line.as_ref().starts_with(beginning))
}

/// A circuit that is open for the whole test.
const LONG_OPEN_CIRCUIT: &str = "breaker: { open: 5m, maximum: 5m }";

/// Requests fail at once when all backends do.
const NO_OUTAGE_WAIT: &str = "retry: { outage: 0s }";

#[tokio::test]
async fn a_calm_status_has_the_backends_and_nothing_to_worry_about() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    assert_eq!(balancer.post_chat().await.status, 200);
    wait_for_service(&balancer, "healthy").await;
    let file = balancer.path("aoai-lb.yaml").display().to_string();
    let (code, text, stderr) = run(&["-c", &file]).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with("healthy since 20") && lines[1].contains(", ready; in flight 0, finished 1"),
        "{text}"
    );
    let table = position(&lines, "BACKEND ").unwrap();
    let names: Vec<&str> =
        lines[table + 1..].iter().map_while(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["a", "b"], "{text}");
    for absent in ["POOL", "REFUSED", "EXPIRES", "reload", "CLIENT", "\u{1b}", "…"] {
        assert!(!text.contains(absent), "{absent:?} is in:\n{text}");
    }
    // While every client is refused for its key, the backends are healthy, and the status says both.
    for _ in 0..12 {
        let refused = balancer.post(CHAT_TARGET, &[("api-key", "unknown")], CHAT_BODY.as_bytes()).await;
        assert_eq!(refused.status, 401);
    }
    let is_counted = |status: &Value| status["refusals"][0]["last_minute"]["refused"]["401"] == 12;
    balancer.wait_for_status("the refusals are counted", is_counted).await;
    let (_, text, _) = run(&["-c", &file]).await;
    let expected =
        "  12 of 13 requests of the last minute were refused for their key, deployment or path (401: 12, ";
    assert!(
        text.starts_with("healthy since ") && text.lines().any(|line| line.starts_with(expected)),
        "{text}"
    );
    let (_, text, _) = run(&["-c", &file, "--verbose"]).await;
    let lines: Vec<&str> = text.lines().collect();
    let quotas = position(&lines, "BACKEND  DEPLOYMENT ").unwrap();
    assert!(lines[quotas + 1].starts_with("a        gpt-4o      healthy "), "{text}");
    let clients = position(&lines, "CLIENT ").unwrap();
    assert!(lines[clients + 1].starts_with("team-a "), "{text}");
}

#[tokio::test]
async fn how_far_a_client_uses_its_limits_is_told_everywhere_and_ends_with_a_reload() {
    let azure = start_simulator(&["a"]).await;
    let limits = "limits: { default: { requests_per_minute: 5, deployments: { gpt-4o: { in_flight: 7 } } } }";
    let balancer = Balancer::start(&listed_backends_yaml(&azure), limits).await;
    assert!(balancer.log().contains("limits: 1 of 1 clients have limits; enforced"), "{}", balancer.log());
    let used = |used: u64| {
        let rate = json!({ "limit": "requests_per_minute", "value": 5, "used": used, "remaining": 5 - used });
        let own = json!({ "limit": "deployments.gpt-4o.in_flight", "value": 7, "used": 0, "remaining": 7 });
        let client = json!({ "client": "team-a", "class": "standard", "limits": [rate, own] });
        json!({ "mode": "enforce", "budgets_not_saved": null, "currency": null, "clients": [client] })
    };
    assert_eq!(balancer.status().await["limits"], used(0));
    for _ in 0..4 {
        assert_eq!(balancer.post_chat().await.status, 200);
    }
    balancer.wait_for_status("the limits are used", |status| status["limits"] == used(4)).await;
    let metrics = || async {
        let mut admin = Client::connect(balancer.admin_address).await;
        admin.get("/metrics", &[("Host", "localhost")]).await.text()
    };
    let text = metrics().await;
    for sample in [
        r#"aoai_lb_limit_remaining{client="team-a",limit="requests_per_minute"} 1"#,
        r#"aoai_lb_limit_remaining{client="team-a",limit="deployments.gpt-4o.in_flight"} 7"#,
    ] {
        assert!(text.lines().any(|line| line == sample), "{sample} is not in:\n{text}");
    }
    for (arguments, expected) in [
        (&[][..], &["team-a requests_per_minute standard 4 5 1 80%"][..]),
        (
            &["--verbose"],
            &[
                "team-a requests_per_minute standard 4 5 1 80%",
                "team-a deployments.gpt-4o.in_flight standard 0 7 7 0%",
            ],
        ),
    ] {
        let (_, text, _) = run(&[&["--admin", &admin_url(&balancer)], arguments].concat()).await;
        let lines: Vec<&str> = text.lines().collect();
        let table = position(&lines, "LIMITED CLIENT ").unwrap();
        let rows = lines[table + 1..].iter().take_while(|line| !line.is_empty());
        let rows: Vec<String> =
            rows.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(rows, expected, "{text}");
    }
    balancer.replace_in_config(limits, "");
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    assert_eq!(balancer.status().await["limits"], Value::Null);
    assert!(!metrics().await.contains("aoai_lb_limit_remaining{"));
}

#[tokio::test]
async fn a_status_in_trouble_says_what_is_wrong_and_why_the_worst_first() {
    let azure = start_simulator(&["a", "b", "c"]).await;
    let backends = simulated_backend_yaml(&azure, "a", "deployments: { gpt-4o: gpt-4o }")
        + &simulated_backend_yaml(&azure, "b", "deployments: { gpt-4o: gpt-4o }\ntier: 2")
        + &simulated_backend_yaml(&azure, "c", "deployments: { gpt-4o: gpt-4o }");
    let balancer = Balancer::start(&backends, LONG_OPEN_CIRCUIT).await;
    assert_eq!(balancer.post_admin("/api/backends/c/drain").await.status, 200);
    azure.set_mood("a", Mood::Refuses(SimulatedError::ServerError));
    for _ in 0..8 {
        assert_eq!(answering_backend(&balancer.post_chat().await), "b");
    }
    let refused = balancer.post(CHAT_TARGET, &[("api-key", "unknown")], CHAT_BODY.as_bytes()).await;
    assert_eq!(refused.status, 401);
    balancer.replace_in_config("tier: 2", "tier: 0");
    assert_ne!(balancer.post_admin("/api/reload").await.status, 200);
    balancer
        .wait_for_status("the reload and the backend are problems", |status| {
            let problems = status["service"]["problems"].as_array().unwrap();
            status["service"]["state"] == "degraded" && problems.len() == 3
        })
        .await;
    let (code, text, _) = run(&["--admin", &admin_url(&balancer)]).await;
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("degraded since 20"), "{text}");
    assert!(lines[1].starts_with("  degraded  a: "), "{text}");
    assert!(lines[2].starts_with("  degraded  calls without a deployment: no backend"), "{text}");
    assert!(lines[3].starts_with("  degraded  configuration: the last reload failed: "), "{text}");
    let table = position(&lines, "BACKEND ").unwrap();
    assert!(lines[table].ends_with("  REASON"), "{text}");
    for (row, name, state, reason) in [
        (1, "a", "breaker_open", "failed too often; last: 500"),
        (2, "c", "drained", "drained by the operator"),
        (3, "b", "healthy", ""),
    ] {
        let words: Vec<&str> = lines[table + row].split_whitespace().collect();
        assert_eq!(words[..2], [name, state], "{text}");
        assert!(lines[table + row].contains(reason), "{text}");
    }
    let pools = position(&lines, "POOL ").unwrap();
    for (row, expected) in [
        (1, "(calls without a deployment) 0 of 1 no backend is available"),
        (2, "gpt-4o 1 of 3 tier 1 is not available, tier 2 serves"),
    ] {
        let words: Vec<&str> = lines[pools + row].split_whitespace().collect();
        assert_eq!(words.join(" "), expected, "{text}");
    }
    let refused = position(&lines, "REFUSED CLIENT ").unwrap();
    assert!(lines[refused + 1].starts_with("(unknown) "), "{text}");
    assert!(position(&lines, "RECORDS TO ").is_some(), "{text}");
    let reload = position(&lines, "the last reload failed; ").unwrap();
    assert!(lines[reload + 1].contains("backends[1] (b).tier: "), "{text}");
}

/// A provisioned deployment that has answered once and is full.
async fn start_full_deployment() -> ScriptedUpstream {
    let is_first = std::sync::atomic::AtomicBool::new(true);
    ScriptedUpstream::start(move |_: &RawRequest| {
        if is_first.swap(false, std::sync::atomic::Ordering::Relaxed) {
            return complete_response(200, "azure-openai-deployment-utilization: 99%", r#"{"choices":[]}"#);
        }
        let headers = "azure-openai-deployment-utilization: 100%\nretry-after-ms: 20000";
        complete_response(429, headers, r#"{"error":{"code":"429","message":"full"}}"#)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn check_exits_with_0_while_the_whole_is_healthy_or_spilling() {
    let (ptu, azure) = (start_full_deployment().await, start_simulator(&["paid"]).await);
    let backends = ptu.backend_yaml("ptu") + &simulated_backend_yaml(&azure, "paid", "tier: 2");
    let balancer = Balancer::start(&backends, "").await;
    wait_for_service(&balancer, "healthy").await;
    let url = admin_url(&balancer);
    let (code, text, stderr) = run(&["--check", "--admin", &url]).await;
    assert!(code == Some(0) && text.starts_with("healthy since 20") && text.lines().count() == 1, "{text}");
    assert_eq!(stderr, "");
    for expected in ["ptu", "paid", "paid"] {
        assert_eq!(answering_backend(&balancer.post_chat().await), expected);
    }
    wait_for_service(&balancer, "spilling").await;
    let (code, text, _) = run(&["--check", "--admin", &url]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("spilling since 20"), "{text}");
    assert!(text.ends_with("): ptu: its provisioned capacity is full, and others serve\n"), "{text}");
    let (_, text, _) = run(&["--admin", &url]).await;
    assert!(text.contains(" tier 1 is full, tier 2 serves\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_exits_with_3_while_the_whole_is_degraded_or_failing() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), NO_OUTAGE_WAIT).await;
    wait_for_service(&balancer, "healthy").await;
    azure.set_mood("a", Mood::ResetBeforeHead);
    for _ in 0..8 {
        assert_eq!(balancer.post_chat().await.status, 200);
    }
    wait_for_service(&balancer, "degraded").await;
    let url = admin_url(&balancer);
    let (code, text, stderr) = run(&["--check", "--admin", &url]).await;
    assert_eq!((code, text.lines().count(), stderr.as_str()), (Some(3), 1, ""), "{text}");
    assert!(text.starts_with("degraded since 20") && text.contains("): a: "), "{text}");
    azure.set_mood("b", Mood::ResetBeforeHead);
    for _ in 0..8 {
        assert_eq!(balancer.post_chat().await.status, 502);
    }
    wait_for_service(&balancer, "failing").await;
    let (code, text, _) = run(&["--check", "--admin", &url]).await;
    assert_eq!((code, text.lines().count()), (Some(3), 1), "{text}");
    assert!(text.starts_with("failing since 20") && text.contains("): requests: "), "{text}");
    assert!(text.trim_end().ends_with(" more problems)"), "{text}");
}

#[tokio::test]
async fn check_exits_with_1_if_the_state_is_unknown_and_with_2_for_wrong_usage() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let (code, text, stderr) = run(&["--check", "--admin", &url]).await;
    assert_eq!((code, text.as_str()), (Some(1), ""));
    assert!(
        stderr.starts_with(&format!("cannot reach the admin API at {url}: connection refused")),
        "{stderr}"
    );
    let other = ScriptedUpstream::start(|_: &RawRequest| complete_response(200, "", r#"{"ok":true}"#)).await;
    let (code, _, stderr) = run(&["--check", "--admin", &format!("http://{}", other.address)]).await;
    assert!(code == Some(1) && stderr.contains("is not a status that this version understands"), "{stderr}");
    for arguments in
        [["--check", "--watch"], ["--check", "--json"], ["--check", "--verbose"], ["--check", "x"]]
    {
        assert_eq!(run(&arguments).await.0, Some(2), "{arguments:?}");
    }
}

/// A balancer with so many backends, of which the one named `bad` fails.
async fn start_with_many_backends(count: usize) -> Balancer {
    let azure = start_simulator(&["good", "bad"]).await;
    azure.set_mood("bad", Mood::Refuses(SimulatedError::ServerError));
    let good: String = (0..count)
        .map(|number| {
            simulated_backend_yaml(&azure, "good", "deployments: { gpt-4o: gpt-4o }")
                .replace("name: good", &format!("name: good-{number:02}"))
        })
        .collect();
    let bad = simulated_backend_yaml(&azure, "bad", "deployments: { gpt-4o: gpt-4o }\nweight: 1000");
    let balancer = Balancer::start(&(good + &bad), LONG_OPEN_CIRCUIT).await;
    for _ in 0..6 {
        assert_eq!(balancer.post_chat().await.status, 200);
    }
    let is_open = |status: &serde_json::Value| {
        let backends = status["backends"].as_array().unwrap();
        backends.iter().any(|backend| backend["state"] == "breaker_open")
    };
    balancer.wait_for_status("the circuit of the bad one is open", is_open).await;
    balancer
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_tables_fit_its_width_and_have_colors_unless_they_are_unwanted() {
    let balancer = start_with_many_backends(3).await;
    let url = admin_url(&balancer);
    for (columns, variables, is_colored) in
        [(60, [].as_slice(), true), (250, &[("NO_COLOR", "1")], false), (100, &[("TERM", "dumb")], false)]
    {
        let mut terminal = Terminal::start(&["status", "--admin", &url], variables, columns, 60);
        assert_eq!(terminal.wait_for_exit().await, Some(0));
        let rows = terminal.wait_for("it is all there", |rows| position(rows, "RECORDS TO").is_some()).await;
        let table = position(&rows, "BACKEND").unwrap();
        // A row of the table is a row of the terminal, also for the backend with a long reason.
        assert!(rows[table].ends_with("  REASON"), "{rows:#?}");
        assert!(rows[table + 1].starts_with("bad ") && rows[table + 1].contains("breaker_open"), "{rows:#?}");
        assert_eq!(rows[table + 1].ends_with('…'), columns < 250, "{rows:#?}");
        assert!(rows[table + 2].starts_with("good-00 ") && rows[table + 5].is_empty(), "{rows:#?}");
        assert_eq!((terminal.is_colored(), terminal.is_full_screen()), (is_colored, false), "{rows:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_fits_its_screen_sorts_filters_and_gives_the_screen_back() {
    let balancer = start_with_many_backends(40).await;
    let url = admin_url(&balancer);
    let mut terminal = Terminal::start(&["status", "--watch", "--admin", &url], &[], 90, 24);
    let rows = terminal.wait_for("the status is shown", |rows| position(rows, "BACKEND").is_some()).await;
    assert!(terminal.is_full_screen() && terminal.is_colored());
    let table = position(&rows, "BACKEND").unwrap();
    assert!(rows[table + 1].starts_with("bad ") && rows[table + 1].ends_with('…'), "{rows:#?}");
    let more = position(&rows, "… ").unwrap();
    assert_eq!(rows[more], format!("… {} more", 41 - (more - table - 1)), "{rows:#?}");
    assert!(position(&rows, "RECORDS TO").is_some(), "{rows:#?}");
    assert_eq!(rows[23], "? help   sort: worst first   41 backends, 1 not healthy");

    terminal.resize(160, 80);
    let rows = terminal.wait_for("all rows are shown", |rows| rows[79].starts_with("? help")).await;
    let table = position(&rows, "BACKEND").unwrap();
    assert!(rows[table + 41].starts_with("good-39 ") && position(&rows, "…").is_none(), "{rows:#?}");
    assert!(rows[table].contains("429/MIN"), "{rows:#?}");
    terminal.resize(50, 12);
    let rows = terminal
        .wait_for("it fits again", |rows| rows[11].starts_with("? help") && position(rows, "… ").is_some())
        .await;
    assert!(rows[position(&rows, "BACKEND").unwrap() + 1].starts_with("bad "), "{rows:#?}");

    terminal.resize(90, 24);
    terminal.wait_for("it is as before", |rows| rows[23].starts_with("? help")).await;
    terminal.type_text("s");
    terminal.wait_for("it is sorted by name", |rows| rows[23].contains("sort: name")).await;
    terminal.type_text("ss");
    terminal.wait_for("the 429s are first", |rows| rows[23].contains("sort: 429s")).await;
    terminal.type_text("/OD-1");
    let rows = terminal.wait_for("the filter is typed", |rows| rows[23].starts_with("filter: OD-1_")).await;
    let table = position(&rows, "BACKEND").unwrap();
    assert!(rows[table + 1].starts_with("good-10 ") && rows[table + 10].starts_with("good-19 "), "{rows:#?}");
    assert_eq!(rows[table + 11], "", "{rows:#?}");
    terminal.type_text("\r");
    terminal.wait_for("the filter is kept", |rows| rows[23].contains("filter: OD-1")).await;
    terminal.type_text("f\u{15}500");
    let only_bad = |rows: &[String]| position(rows, "bad ").is_some() && position(rows, "good").is_none();
    terminal.wait_for("the reason is searched too", only_bad).await;
    // Esc gives up the new filter, and does not quit.
    terminal.type_text("\u{1b}");
    terminal.wait_for("the filter before is back", |rows| position(rows, "good-19 ").is_some()).await;
    terminal.type_text("?");
    terminal.wait_for("the keys are told", |rows| rows[23].starts_with("q quit ")).await;
    terminal.type_text("p");
    terminal.wait_for("it is paused", |rows| rows[0].ends_with("paused")).await;

    terminal.type_text("q");
    assert_eq!(terminal.wait_for_exit().await, Some(0));
    terminal.wait_until_restored().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_gives_the_screen_back_however_it_ends() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    let url = admin_url(&balancer);
    let start = async || {
        let terminal = Terminal::start(&["status", "--watch", "--admin", &url], &[("NO_COLOR", "1")], 80, 24);
        terminal.wait_for("the status is shown", |rows| position(rows, "BACKEND").is_some()).await;
        assert!(!terminal.is_colored());
        terminal
    };
    for (key, signal, code) in [
        ("\u{1b}", "", 0),
        ("\u{3}", "", 0),
        ("", "INT", 130),
        ("", "TERM", 143),
        ("", "QUIT", 131),
        ("", "HUP", 129),
    ] {
        let mut terminal = start().await;
        if signal.is_empty() {
            terminal.type_text(key);
        } else {
            terminal.send_signal(signal);
        }
        assert_eq!(terminal.wait_for_exit().await, Some(code), "{key:?} {signal}");
        terminal.wait_until_restored().await;
    }
    // Whoever closes the window leaves no process behind.
    assert_eq!(start().await.close().await, Some(129));
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_says_that_the_process_cannot_be_asked_and_goes_on_when_it_can() {
    let azure = start_simulator(&["a"]).await;
    let mut balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    let url = admin_url(&balancer);
    let mut terminal = Terminal::start(&["status", "--watch", "--admin", &url], &[], 100, 24);
    let shows_status =
        |rows: &[String]| rows[0].starts_with("healthy since ") && position(rows, "a  ").is_some();
    terminal.wait_for("the status is shown", shows_status).await;
    assert_eq!(balancer.stop().await, 0);
    let rows = terminal.wait_for("it cannot be reached", |rows| rows[0].starts_with("cannot reach ")).await;
    assert!(
        rows[0].starts_with(&format!("cannot reach the admin API at {url}: connection refused")),
        "{rows:#?}"
    );
    let is_old =
        |rows: &[String]| rows[1].starts_with("trying again; this is ") && rows[1].ends_with("s old");
    terminal.wait_for("what is shown is old", is_old).await;
    assert!(position(&terminal.rows(), "a  ").is_some(), "what was known stays: {:#?}", terminal.rows());
    balancer.start_again().await;
    terminal.wait_for("the status is shown again", shows_status).await;
    terminal.type_text("q");
    assert_eq!(terminal.wait_for_exit().await, Some(0));
    // It also waits for a process that has not started yet.
    assert_eq!(balancer.stop().await, 0);
    let terminal = Terminal::start(&["status", "--watch", "--admin", &url], &[], 100, 24);
    terminal.wait_for("it cannot be reached", |rows| rows[0].starts_with("cannot reach ")).await;
    balancer.start_again().await;
    terminal.wait_for("the status is shown", shows_status).await;
}

#[tokio::test]
async fn watch_prints_one_status_after_the_other_into_a_pipe() {
    let azure = start_simulator(&["a"]).await;
    let mut balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    let url = admin_url(&balancer);
    let mut child = status_command(&["--watch", "--admin", &url]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next_headline = async |beginning: &str| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let line = tokio::time::timeout_at(deadline, lines.next_line()).await.unwrap().unwrap().unwrap();
            assert!(!line.contains('\u{1b}'), "{line:?}");
            if line.starts_with(beginning) {
                return;
            }
        }
    };
    next_headline("healthy since ").await;
    next_headline("healthy since ").await;
    assert_eq!(balancer.stop().await, 0);
    next_headline("cannot reach the admin API ").await;
    next_headline("cannot reach the admin API ").await;
}
