//! Configuration files and the files that they name, as an operator or a deployment may get them wrong.

use crate::support;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use support::{Balancer, TEST_TIMEOUT, simulated_backend_yaml, start_simulator};

/// Everything that one of the commands prints, and its exit code. It is killed if it does not end.
fn run_command(command: &str, file: &Path, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_aoai-lb"))
        .args([command, "-c"])
        .arg(file)
        .args(if command == "explain" { &["GET", "/openai/v1/files"][..] } else { &[] })
        .envs(environment.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (id, deadline) = (child.id(), Instant::now() + TEST_TIMEOUT);
    let (sender, ended) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if ended.recv_timeout(deadline - Instant::now()).is_err() {
            support::send_signal_to("KILL", id);
        }
    });
    let mut output = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut output).unwrap();
    std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut output).unwrap();
    let status = child.wait().unwrap();
    sender.send(()).unwrap();
    watchdog.join().unwrap();
    (status.code(), output)
}

/// A configuration with this credential of its backend.
fn config_with_credential(credential: &str) -> String {
    format!(
        "listeners: [ {{ address: 127.0.0.1:1 }} ]\nclients: open\nbackends:\n  - name: east\n    \
         endpoint: https://east.example\n    credential: {{ api_key: {credential} }}\n"
    )
}

fn make_fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[test]
fn a_file_that_is_built_to_take_time_or_memory_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("aoai-lb.yaml");
    let bomb = (1..12).fold("a0: &a0 [x, x]\n".to_owned(), |text, level| {
        let items = vec![format!("*a{}", level - 1); 10].join(", ");
        format!("{text}a{level}: &a{level} [{items}]\n")
    });
    let too_deep = "nested deeper than 64 levels";
    for (text, expected) in [
        ("[".repeat(100_000), too_deep),
        ("{a: ".repeat(100_000), too_deep),
        ("{a:".repeat(200_000), "not valid YAML"),
        ("- ".repeat(200_000), too_deep),
        ("? ".repeat(200_000), too_deep),
        (bomb, "more than 1000000 keys and values"),
        (format!("a: {}", "x".repeat(17 << 20)), "it is larger than 16MiB"),
        (format!("a: [{}]", "0,".repeat(3 << 20)), "more than 1000000 keys and values"),
    ] {
        fs::write(&file, &text).unwrap();
        let (code, output) = run_command("check", &file, &[]);
        assert_eq!(code, Some(1), "{}: {output}", &text[..20]);
        assert!(output.contains(expected), "{}: {output}", &text[..20]);
        assert!(output.len() < 4096, "{}: {} bytes", &text[..20], output.len());
    }
}

#[test]
fn many_problems_are_counted_rather_than_listed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("aoai-lb.yaml");
    let mut text = config_with_credential("k");
    for number in 0..100_000 {
        writeln!(text, "key{number}: 1").unwrap();
    }
    fs::write(&file, text).unwrap();
    let (code, output) = run_command("check", &file, &[]);
    assert_eq!((code, output.lines().count()), (Some(1), 102), "{output}");
    let end = "aoai-lb.yaml: error: and 99900 more errors\n100000 errors\n";
    assert!(output.contains("key0: unknown key") && output.ends_with(end), "{output}");
}

#[test]
fn each_problem_has_its_file_and_line_and_the_name_of_the_entry() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("aoai-lb.yaml");
    let text = "# comment
listeners:
  - address: 0.0.0.0:80
backends:
  - name: east
    endpoint: https://east.example
    credential: { api_key: k }
  - endpoint: https://west.example
    credential: { api_key: k }
    deployments:
      gpt-4.1: x
      Gpt-4.1: y
    weight: 0
    name: west
clients:
  - name: team-a
    keys: [ { sha256: hunter2 } ]
  - { name: team-b,
      keys: [] }
retry:
  wait: 1
  wait: 2
";
    fs::write(&file, text).unwrap();
    let (code, output) = run_command("check", &file, &[]);
    assert_eq!(code, Some(1), "{output}");
    let beginnings = [
        "3: warning: listeners[0].address: is not a loopback address",
        "12: error: backends[1] (west).deployments[\"Gpt-4.1\"]: ",
        "13: error: backends[1] (west).weight: must be ",
        "17: error: clients[0] (team-a).keys[0].sha256: ",
        "19: error: clients[1] (team-b).keys: ",
        "21: error: retry.wait: has no unit",
        "22: error: retry.wait: is written a second time",
    ];
    let prefix = format!("{}:", file.display());
    let lines: Vec<&str> = output.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
    assert_eq!(lines.len(), beginnings.len(), "{output}");
    for (line, beginning) in lines.iter().zip(beginnings) {
        assert!(line.starts_with(beginning), "{beginning}\n{output}");
    }
    assert!(output.ends_with("\n6 errors, 1 warning\n"), "{output}");
    assert!(!output.contains("hunter2"), "{output}");
    // Where the parser stops there is only one.
    fs::write(&file, "a: 1\nb: [\nc: 2\n").unwrap();
    let (_, output) = run_command("check", &file, &[]);
    assert!(output.starts_with(&format!("{prefix}3: error: not valid YAML: ")), "{output}");
    assert!(output.ends_with("\n1 error\n"), "{output}");
    // Warnings alone leave it good.
    let public = config_with_credential("k").replace("127.0.0.1:1", "192.0.2.1:1");
    fs::write(&file, public).unwrap();
    let (code, output) = run_command("check", &file, &[]);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("\n2 warnings\n") && output.ends_with("aoai-lb.yaml: good\n"), "{output}");
}

#[test]
fn a_key_counts_as_it_was_written_whatever_yaml_makes_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("aoai-lb.yaml");
    for key in [
        "12345678901234567890123456789012",
        "0123456789012345678901234567890123456789",
        "00000000",
        "0x1F00000000",
        "1e500000",
        "1_000_000",
        "1234567.8901",
        "true",
        "2024-10-21",
        ".inf",
    ] {
        for written in [key.to_owned(), format!("'{key}'"), format!("\"{key}\"")] {
            fs::write(&file, config_with_credential(&written)).unwrap();
            let (code, output) = run_command("check", &file, &[]);
            assert_eq!(code, Some(0), "{written}: {output}");
        }
        // Where it cannot be right, the problem does not show it.
        let misplaced =
            config_with_credential("k").replace("127.0.0.1:1", key) + &format!("retry: {{ wait: {key} }}\n");
        fs::write(&file, misplaced).unwrap();
        let (code, output) = run_command("check", &file, &[]);
        assert_eq!(code, Some(1), "{key}: {output}");
        let shown = output.replace(directory.path().to_str().unwrap(), "");
        let documented = "2024-10-21";
        assert!(key == "true" || key == documented || !shown.contains(key), "{key}: {output}");
    }
}

#[tokio::test]
async fn a_key_of_digits_is_sent_as_it_was_written() {
    let azure = start_simulator(&["a"]).await;
    let key = "00345678901234567890123456789012";
    let backend = simulated_backend_yaml(&azure, "a", "").replace("a-key", key);
    let balancer = Balancer::start(&backend, "").await;
    balancer.post_chat().await;
    let requests = azure.received_requests("a");
    let headers = requests.iter().flat_map(|request| &request.headers);
    let sent: Vec<&[u8]> =
        headers.filter(|(name, _)| name == "api-key").map(|(_, value)| value.as_slice()).collect();
    assert!(!sent.is_empty() && sent.iter().all(|sent| *sent == key.as_bytes()), "{sent:?}");
}

#[test]
fn only_regular_files_are_read_and_no_command_waits_for_another_kind() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    make_fifo(&path("fifo"));
    fs::write(path("large"), vec![b'x'; 17 << 20]).unwrap();
    fs::write(path("key"), "a-key\n").unwrap();
    symlink(path("key"), path("link")).unwrap();
    let irregular = ["fifo", ".", "/dev/zero", "large"];
    for name in irregular {
        for command in ["check", "run", "explain", "simulate"] {
            let (code, output) = run_command(command, &path(name), &[]);
            assert_eq!(code, Some(1), "{command} {name}: {output}");
        }
    }
    let file = path("aoai-lb.yaml");
    let base = config_with_credential("k");
    let tls = |certificate: &str, key: &str, extra: &str| {
        base.replace(
            "address: 127.0.0.1:1",
            &format!(
                "address: 127.0.0.1:1, tls: {{ certificate: {certificate}, private_key: {key}{extra} }}"
            ),
        )
    };
    for name in irregular {
        let quoted = format!("'${{file:{name}}}'");
        for (text, key_path) in [
            (config_with_credential(&quoted), "backends[0] (east).credential.api_key"),
            (tls(name, "key", ""), "listeners[0].tls.certificate"),
            (tls("key", "key", &format!(", client_ca: {name}")), "listeners[0].tls.client_ca"),
            (
                base.replace("    credential", &format!("    tls: {{ ca: {name} }}\n    credential")),
                "backends[0] (east).tls.ca",
            ),
        ] {
            fs::write(&file, text).unwrap();
            let (code, output) = run_command("check", &file, &[]);
            assert_eq!(code, Some(1), "{key_path} {name}: {output}");
            let reasons = ["not a regular file", "it is larger than"];
            let is_expected =
                |line: &str| line.contains(key_path) && reasons.iter().any(|reason| line.contains(reason));
            assert!(output.lines().any(is_expected), "{key_path} {name}: {output}");
        }
    }
    fs::write(&file, config_with_credential("'${file:link}'")).unwrap();
    assert_eq!(run_command("check", &file, &[]).0, Some(0));
}

#[test]
fn an_inline_private_key_is_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("aoai-lb.yaml");
    for tls in [
        "{ certificate: hunter2, private_key: hunter2 }",
        "{ certificate: '${SECRET}', private_key: '${SECRET}', client_ca: '${SECRET}' }",
        "{ certificate: \"-----BEGIN CERTIFICATE-----\\nhunter2\", private_key: \"-----BEGIN PRIVATE KEY-----\\nhunter2\" }",
        "{ private_key: { hunter2: 1 }, certificate: [hunter2] }",
    ] {
        let text =
            config_with_credential("k").replace("127.0.0.1:1 }", &format!("127.0.0.1:1, tls: {tls} }}"));
        fs::write(&file, text).unwrap();
        let (code, output) = run_command("check", &file, &[("SECRET", "hunter2")]);
        assert_eq!(code, Some(1), "{output}");
        assert!(!output.contains("hunter2"), "{output}");
    }
}

#[tokio::test]
async fn a_reload_with_a_fifo_fails_and_keeps_serving() {
    let azure = start_simulator(&["a"]).await;
    let backend = simulated_backend_yaml(&azure, "a", "");
    let balancer = Balancer::start(&backend, "").await;
    make_fifo(&balancer.path("fifo"));
    let text = fs::read_to_string(balancer.path("aoai-lb.yaml")).unwrap();
    balancer.write_config(&text.replace("api_key: a-key", "api_key: '${file:fifo}'"));
    balancer.send_signal("HUP");
    balancer
        .wait_for_status("the reload has failed", |status| {
            let error = &status["configuration"]["problem"];
            error.as_str().is_some_and(|error| error.contains("not a regular file"))
        })
        .await;
    // The same text as that of `check`.
    let problem =
        "aoai-lb.yaml:9: error: backends[0] (a).credential.api_key: cannot read ${file:fifo}: it is a FIFO";
    balancer.wait_for_log(problem).await;
    assert_eq!(balancer.post_chat().await.status, 200);
    balancer.write_config(&text);
    balancer.send_signal("HUP");
    balancer
        .wait_for_status("the next reload works", |status| {
            status["configuration"]["problem"].is_null() && status["configuration"]["version"] == 2
        })
        .await;
}
