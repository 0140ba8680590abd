//! The commands of the binary: check, run, keys, usage, and signals while it runs.

use crate::support;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use aoai_lb::demo::Mood;
use support::{Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, all_backends_yaml, start_simulator};

fn run_aoai_lb(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    // The examples in conf/ read these variables.
    for name in ["EASTUS_KEY", "WESTUS_KEY", "SWEDEN_KEY", "BACKEND_1_KEY", "BACKEND_2_KEY"] {
        command.env(name, "an-azure-key");
    }
    for (number, name) in ["TEAM_A_SHA256", "TEAM_B_SHA256", "SUBSCRIPTION_1_SHA256", "SUBSCRIPTION_2_SHA256"]
        .iter()
        .enumerate()
    {
        command.env(name, support::sha256_hex(&number.to_string()));
    }
    let logs = tempfile::tempdir().unwrap();
    command.env("LOGS_DIRECTORY", logs.path());
    command.args(arguments).output().unwrap()
}

fn to_text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_example_configuration_passes_check() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(root.join("conf")).unwrap().map(|entry| entry.unwrap().path());
    let mut checked_files = 0;
    for file in files.filter(|file| file.extension().is_some_and(|extension| extension == "yaml")) {
        if file.ends_with("simulate.yaml") {
            assert!(aoai_lb::demo::load_resources(&file).is_ok());
            continue;
        }
        // It is named by a configuration.
        if file.ends_with("prices.yaml") {
            continue;
        }
        let output = run_aoai_lb(&["check", "-c", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}: {}", file.display(), to_text(&output.stderr));
        checked_files += 1;
    }
    assert!(checked_files >= 3);
}

#[test]
fn check_reports_all_problems_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bad.yaml");
    std::fs::write(
        &file,
        "listeners:\n  - adress: 127.0.0.1:1\nbackends:\n  - name: a\n    endpoint: https://x/y\n    weight: 0\n    credential: { api_key: \"${NOT_SET_ANYWHERE}\" }\ntimeouts: { connect: 5 }\n",
    )
    .unwrap();
    let output = run_aoai_lb(&["check", "-c", file.to_str().unwrap()]);
    let stderr = to_text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    for expected in [
        "listeners[0].adress",
        "address",
        "backends[0] (a).endpoint",
        "backends[0] (a).weight",
        "NOT_SET_ANYWHERE",
        "timeouts.connect",
        "clients",
    ] {
        assert!(stderr.contains(expected), "expected {expected:?} in:\n{stderr}");
    }
    assert!(stderr.lines().count() >= 6, "{stderr}");
    // `run` refuses such a file, too.
    assert_eq!(run_aoai_lb(&["run", "-c", file.to_str().unwrap()]).status.code(), Some(1));
}

#[test]
fn exit_codes_are_0_for_success_1_for_failure_and_2_for_usage_errors() {
    assert_eq!(run_aoai_lb(&["--help"]).status.code(), Some(0));
    let version = run_aoai_lb(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(to_text(&version.stdout).contains("\nOpenSSL 3."), "{}", to_text(&version.stdout));
    assert_eq!(run_aoai_lb(&[]).status.code(), Some(2));
    assert_eq!(run_aoai_lb(&["serve"]).status.code(), Some(2));
    assert_eq!(run_aoai_lb(&["simulate"]).status.code(), Some(2));
    let output = run_aoai_lb(&["check", "-c", "/does/not/exist.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(to_text(&output.stderr).contains("/does/not/exist.yaml"));
}

#[tokio::test]
async fn a_generated_key_authenticates_its_client() {
    let output = run_aoai_lb(&["keys", "new", "team-x"]);
    assert_eq!(output.status.code(), Some(0));
    let output_text = to_text(&output.stdout);
    let key = output_text.lines().map(str::trim).find(|line| line.len() == 64).unwrap().to_owned();
    let yaml = output_text.split("`clients:`\n\n").nth(1).unwrap();
    let azure = start_simulator(&["a"]).await;
    let balancer =
        Balancer::start_with_clients(&all_backends_yaml(&azure), &format!("clients:\n{yaml}"), "").await;
    assert_eq!(balancer.post(CHAT_TARGET, &[("api-key", &key)], CHAT_BODY.as_bytes()).await.status, 200);
    assert_eq!(balancer.post_chat().await.status, 401);
    assert_eq!(balancer.wait_for_records(2).await[0]["client"], "team-x");
    assert_eq!(run_aoai_lb(&["keys", "new", "team x"]).status.code(), Some(1));
    assert_ne!(to_text(&run_aoai_lb(&["keys", "new", "team-x"]).stdout), output_text);
}

#[tokio::test]
async fn a_listener_address_in_use_is_reported_without_a_panic() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    let output = run_aoai_lb(&["run", "-c", balancer.path("aoai-lb.yaml").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = to_text(&output.stderr);
    assert!(stderr.contains("listeners[0].address") && !stderr.contains("panicked"), "{stderr}");
}

#[tokio::test]
async fn sigterm_fails_readiness_then_finishes_requests_and_writes_all_records() {
    let azure = start_simulator(&["a"]).await;
    let mut balancer = Balancer::start(&all_backends_yaml(&azure), "server: { drain_delay: 700ms }").await;
    for _ in 0..50 {
        assert_eq!(balancer.post_chat().await.status, 200);
    }
    azure.set_mood("a", Mood::SlowFirstByte(std::time::Duration::from_millis(1500)));
    let mut running_client = balancer.connect().await;
    running_client.send_chat(CHAT_BODY).await;
    support::wait_until("the request reaches the backend", || azure.request_count("a") == 51).await;
    balancer.send_signal("TERM");
    let get_status = async |target| balancer.connect().await.get(target, &[]).await;
    while get_status("/readyz").await.status != 503 {}
    let health = get_status("/healthz").await;
    assert_eq!(
        (health.status, health.header("connection")),
        (200, Some("close")),
        "expected the health check to be answered while draining"
    );
    let start = Instant::now();
    let response = running_client.read_response().await;
    assert_eq!((response.status, response.is_complete), (200, true));
    assert_eq!(balancer.wait_for_exit().await, 0);
    assert!(
        start.elapsed() < std::time::Duration::from_secs(10),
        "expected the shutdown to end before the grace period"
    );
    assert_eq!(balancer.records().len(), 51);
}

#[tokio::test]
async fn sigint_cuts_a_slow_shutdown_short() {
    let azure = start_simulator(&["a"]).await;
    let mut balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    azure.set_mood("a", Mood::Mute);
    let mut running_client = balancer.connect().await;
    running_client.send_chat(CHAT_BODY).await;
    support::wait_until("the request reaches the backend", || azure.request_count("a") == 1).await;
    balancer.send_signal("TERM");
    support::wait_until("the balancer stops listening", || {
        std::net::TcpStream::connect(balancer.address).is_err()
    })
    .await;
    balancer.send_signal("INT");
    assert_eq!(balancer.wait_for_exit().await, 0);
}

#[tokio::test]
async fn the_access_log_is_written_only_when_enabled() {
    let azure = start_simulator(&["a"]).await;
    let target = format!("{CHAT_TARGET}&api-key={CLIENT_KEY}");
    let variables = [("RUST_LOG", "warn,aoai_lb=info,access=info".to_owned())];
    let balancer = Balancer::start_with_environment(&variables, &all_backends_yaml(&azure), "").await;
    let response = balancer.post(&target, &[], CHAT_BODY.as_bytes()).await;
    let id = response.header("x-aoai-lb-request-id").unwrap();
    let line = "127.0.0.1 team-a POST /openai/deployments/gpt-4o/chat/completions 200 by a in ";
    balancer.wait_for_log(&format!("{id} {line}")).await;
    assert!(!balancer.log().contains(CLIENT_KEY));
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    balancer.post(&target, &[], CHAT_BODY.as_bytes()).await;
    balancer.wait_for_records(1).await;
    assert!(!balancer.log().contains("POST"), "{}", balancer.log());
}

#[test]
fn usage_counts_a_record_however_long_its_prompt_is_and_passes_over_garbage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("exchanges.jsonl");
    let mut text = br#"{"time":"2026-11-23T08:00:00Z","request_id":"","prompt":""#.to_vec();
    text.extend(b"\\u00e4 and \\\" so on ".repeat(1 << 20));
    text.extend(
        b"\",\"client\":\"team-a\",\"deployment\":\"gpt-4o\",\"backend\":\"east\",\"total_tokens\":7}\n",
    );
    text.extend([b"[".repeat(32 << 20), vec![0xff; 1000], b"\n\xff\xfe\n{}\n".to_vec()].concat());
    std::fs::write(&path, text).unwrap();
    let output = run_aoai_lb(&["usage", "--format", "csv", path.to_str().unwrap()]);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(stdout.ends_with("2026-11-23,team-a,gpt-4o,east,1,0,0,0,0,7\n"), "{stdout}");
    for expected in
        ["skipped lines that are not records: 2", "skipped lines that are longer than a record: 1"]
    {
        assert!(output.status.success() && stderr.contains(expected), "{stderr}");
    }
}

#[test]
fn usage_sums_up_record_files_and_reports_invalid_lines() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("exchanges.jsonl");
    let line = r#"{"time":"2026-11-23T08:00:00Z","request_id":"01a20776-cbd3-7efe-9689-f3f27b33c881","client":"team-a","deployment":"gpt-4o","backend":"east","input_tokens":3,"output_tokens":4,"total_tokens":7}"#;
    std::fs::write(&path, format!("{line}\nstrange\n")).unwrap();
    let output = run_aoai_lb(&["usage", "--format", "csv", path.to_str().unwrap()]);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(stdout.ends_with("2026-11-23,team-a,gpt-4o,east,1,3,4,0,0,7\n"), "{stdout}");
    assert!(output.status.success() && stderr.contains("skipped lines that are not records: 1"), "{stderr}");
    let missing = run_aoai_lb(&["usage", "/no/such/file"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such/file: No such file"));
}

#[test]
fn usage_groups_the_records_of_a_time_by_the_keys_that_are_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("exchanges.jsonl");
    let now = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now());
    let hours_ago = |hours| (now - chrono::TimeDelta::hours(hours)).to_rfc3339();
    let mut text = String::new();
    for (n, (hours, client, class, tokens)) in [
        (1, r#""team-a""#, r#""batch""#, 10),
        (25, r#""team-a""#, r#""interactive""#, 20),
        (7 * 24 - 1, r#""team-b""#, r#""batch""#, 40),
        (7 * 24 + 1, r#""team-b""#, r#""interactive""#, 80),
        (2, "null", "null", 0),
    ]
    .into_iter()
    .enumerate()
    {
        text += &format!(
            "{{\"time\":\"{}\",\"request_id\":\"01a20776-cbd3-7efe-9689-f3f27b33c88{n}\",\"client\":{client},\
             \"class\":{class},\"deployment\":\"gpt-4o\",\"total_tokens\":{tokens}}}\n",
            hours_ago(hours)
        );
    }
    std::fs::write(&path, text).unwrap();
    let usage = |options: &[&str]| {
        run_aoai_lb(&[&["usage", "--format", "csv", path.to_str().unwrap()], options].concat())
    };
    let header = |keys: &str| format!("{keys},requests,input,output,cached,reasoning,total\n");
    let (a, b) = (hours_ago(26), hours_ago(2));
    for (options, keys, rows) in [
        (
            ["--by", "client,class", "--since", "7d"].as_slice(),
            "client,class",
            "team-b,batch,1,0,0,0,0,40\nteam-a,interactive,1,0,0,0,0,20\nteam-a,batch,1,0,0,0,0,10\n,,1,0,0,0,0,0\n",
        ),
        (&["--by=class"], "class", "interactive,2,0,0,0,0,100\nbatch,2,0,0,0,0,50\n,1,0,0,0,0,0\n"),
        (&["--by", "client", "--since", "90m"], "client", "team-a,1,0,0,0,0,10\n"),
        (&["--by", "client", "--until", "3d"], "client", "team-b,2,0,0,0,0,120\n"),
        (&["--by", "client", "--since", &a, "--until", &b], "client", "team-a,1,0,0,0,0,20\n"),
        (&["--since", "9999-01-01"], "day,client,deployment,backend", ""),
    ] {
        let output = usage(options);
        assert!(output.status.success(), "{}", to_text(&output.stderr));
        assert_eq!(to_text(&output.stdout), header(keys) + rows, "{options:?}");
    }
    let names = "[possible values: day, client, deployment, backend, class, tier, spilled]";
    for (options, exit_code, problem) in [
        (["--by", "client,model"].as_slice(), 2, "invalid value 'model' for '--by <KEYS>'"),
        (&["--by", "model"], 2, names),
        (&["--by", "class,client,class"], 2, "'class' is given twice for '--by <KEYS>'"),
        (&["--by", "class", "--by", "client"], 2, "'--by <KEYS>' cannot be used multiple times"),
        (&["--since", "7"], 2, "invalid value '7' for '--since <TIME>': expected a duration back from now"),
        (&["--until", "yesterday"], 2, "invalid value 'yesterday' for '--until <TIME>': expected"),
        (&["--since", "1d", "--until", "2d"], 1, "must be before --until ("),
    ] {
        let output = usage(options);
        let stderr = to_text(&output.stderr);
        assert!(output.status.code() == Some(exit_code) && stderr.contains(problem), "{stderr}");
        assert!(output.stdout.is_empty(), "{options:?}");
    }
    let completions = to_text(&run_aoai_lb(&["completions", "bash"]).stdout);
    assert!(completions.contains(r#"compgen -W "day client deployment backend class tier spilled""#));
    let page = to_text(&run_aoai_lb(&["man"]).stdout);
    let options = ["<KEYS>", "\\-\\-since\\fR \\fI<TIME>", "\\-\\-until\\fR \\fI<TIME>"];
    assert!(options.iter().all(|option| page.contains(option)), "{page}");
}

#[test]
fn usage_without_files_sums_up_those_of_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let config = directory.path().join("aoai-lb.yaml");
    let usage = || run_aoai_lb(&["usage", "--format", "csv", "-c", config.to_str().unwrap()]);
    let text = "listeners: [ { address: 127.0.0.1:1 } ]\nclients: open\nbackends: [ { name: a, endpoint: \
                'https://a.example', credential: { api_key: '${NOT_SET}' } } ]\n";
    write("aoai-lb.yaml", text);
    let output = usage();
    assert_eq!(output.status.code(), Some(1));
    assert!(to_text(&output.stderr).contains("has no record.jsonl"), "{}", to_text(&output.stderr));
    write("aoai-lb.yaml", &format!("{text}record: {{ jsonl: {{ path: exchanges.jsonl }} }}\n"));
    let output = usage();
    assert!(to_text(&output.stderr).contains("there are no records in "), "{}", to_text(&output.stderr));
    for (day, id, name) in [
        (21, "1", "exchanges-20261122T080000.123Z.jsonl"),
        (22, "2", "exchanges.jsonl"),
        (23, "3", "exchanges-of-somebody-else.jsonl"),
    ] {
        let id = format!("01a20776-cbd3-7efe-9689-f3f27b33c88{id}");
        let record = format!(r#"{{"time":"2026-11-{day}T08:00:00Z","request_id":"{id}","client":"team-a"}}"#);
        write(name, &(record + "\n"));
    }
    let output = usage();
    let days = ["2026-11-21,team-a", "2026-11-22,team-a"];
    let stdout = to_text(&output.stdout);
    assert!(output.status.success() && days.iter().all(|day| stdout.contains(day)), "{stdout}");
    assert!(!stdout.contains("2026-11-23"), "{stdout}");
}
