//! The environment file: which one is read, what wins, and what a reload and an upgrade make of a changed one.

use crate::support;

use std::fs;
use std::path::Path;
use std::process::Command;

use aoai_lb::demo::Simulator;
use support::{Balancer, free_port, simulated_backend_yaml, start_simulator};

/// Exit code and output of a command with these arguments, in this directory.
fn run_in(directory: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    let output =
        command.args(arguments).current_dir(directory).envs(variables.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text.into_owned())
}

/// A configuration whose weight comes from a variable: a problem shows which value was read.
fn config_with_weight_from(variable: &str) -> String {
    format!(
        "listeners: [ {{ address: 127.0.0.1:1 }} ]\nclients: open\nbackends:\n  - name: east\n    \
         endpoint: https://east.example\n    credential: {{ api_key: k }}\n    weight: ${{{variable}}}\n"
    )
}

#[test]
fn every_command_that_reads_the_configuration_reads_the_environment_file() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("aoai-lb.yaml", &config_with_weight_from("WEIGHT"));
    let commands: [&[&str]; 3] = [&["check"], &["explain", "GET", "/openai/v1/models"], &["upgrade"]];
    for command in commands {
        let run = |more: &[&str], variables: &[(&str, &str)]| {
            run_in(directory.path(), &[command, &["-c", "aoai-lb.yaml"], more].concat(), variables)
        };
        // `upgrade` only needs the socket, and there is no process to upgrade.
        let is_good = |(code, text): (Option<i32>, String)| {
            if command[0] == "upgrade" {
                text.contains("cannot reach a running process")
            } else {
                code == Some(0)
            }
        };
        if command[0] != "upgrade" {
            let _ = fs::remove_file(directory.path().join("environment"));
            let (code, text) = run(&[], &[]);
            assert!(code == Some(1) && text.contains("${WEIGHT} is not set"), "{command:?}: {text}");
            write("environment", "# the weight\nWEIGHT='0'\n");
            let (code, text) = run(&[], &[]);
            assert!(code == Some(1) && text.contains("weight: must be"), "{command:?}: {text}");
        }
        write("environment", "WEIGHT=2\n");
        assert!(is_good(run(&[], &[])), "{command:?}");
        write("other", "WEIGHT=\"3\"\n");
        assert!(is_good(run(&["--environment", "other"], &[])), "{command:?}");
        let (code, text) = run(&["--environment", "none"], &[]);
        assert_eq!(code, Some(1), "{command:?}: {text}");
        let expected = "none: error: cannot read the environment file: No such file or directory\n";
        assert!(text.ends_with(expected), "{command:?}: {text}");
    }
    // A variable of the process wins.
    let check = ["check", "-c", "aoai-lb.yaml"];
    let (code, text) = run_in(directory.path(), &check, &[("WEIGHT", "none")]);
    assert!(code == Some(1) && text.contains("weight: must be"), "{text}");
    write("environment", "WEIGHT=none\n");
    assert_eq!(run_in(directory.path(), &check, &[("WEIGHT", "1")]).0, Some(0));
    // A line that is passed over is told, without its text.
    write("environment", "WEIGHT=1\nEASTUS_KEY: hunter2\n");
    let (code, text) = run_in(directory.path(), &check, &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("environment:2: warning: has no `=`") && text.contains("\n1 warning\n"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn the_configuration_of_the_installed_service_is_the_default() {
    let directory = tempfile::tempdir().unwrap();
    for command in ["run", "check", "explain", "upgrade"] {
        let (code, text) = run_in(directory.path(), &[command, "--help"], &[]);
        assert_eq!(code, Some(0), "{text}");
        for part in ["[default: /etc/aoai-lb/aoai-lb.yaml]", "--environment <FILE>"] {
            assert!(text.contains(part), "{command}: {text}");
        }
    }
}

/// The keys with which requests have arrived at the resource `a` since the last call.
fn keys_sent(azure: &Simulator) -> Vec<String> {
    let requests = azure.received_requests("a");
    let headers = requests.iter().flat_map(|request| request.headers.clone());
    let keys = headers.filter(|(name, _)| name == "api-key");
    keys.map(|(_, value)| String::from_utf8(value.to_vec()).unwrap()).collect()
}

#[tokio::test]
async fn new_values_take_effect_with_an_upgrade_and_a_reload_says_so() {
    let azure = start_simulator(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("environment");
    fs::write(&file, "INHERITED_KEY=inherited-1\nFILE_KEY=file-1\n").unwrap();
    let backend = |variable: &str| {
        let yaml = simulated_backend_yaml(&azure, "a", "");
        yaml.replace("api_key: a-key", &format!("api_key: '${{{variable}}}'"))
            .replace("name: a", &format!("name: {variable}"))
    };
    let (address, admin) = (([127, 0, 0, 1], free_port()).into(), ([127, 0, 0, 1], free_port()).into());
    let text = format!(
        "listeners:\n  - address: {address}\nserver: {{ drain_delay: 0s }}\nadmin: {{ address: {admin} }}\n\
         clients: open\nbackends:\n{}{}",
        backend("INHERITED_KEY"),
        backend("FILE_KEY")
    );
    // With `EnvironmentFile=` in its unit, systemd sets the variables of the file for the process.
    let inherited = [("INHERITED_KEY", "inherited-1".to_owned())];
    let mut balancer =
        Balancer::start_from_file_with_environment(directory, address, admin, &text, &inherited).await;
    let is_sent = |key: &str| keys_sent(&azure).iter().any(|sent| sent == key);
    balancer.post_chat().await;
    assert!(is_sent("inherited-1") && is_sent("file-1"), "{:?}", keys_sent(&azure));

    let response = balancer.post_admin("/api/reload").await;
    assert!(!response.text().contains("has changed since the start"), "{}", response.text());
    fs::write(&file, "INHERITED_KEY=inherited-2\nFILE_KEY=file-2\n").unwrap();
    let response = balancer.post_admin("/api/reload").await;
    assert_eq!(response.status, 200, "{}", response.text());
    balancer
        .wait_for_log(
            "environment: warning: has changed since the start; its new values take effect with an upgrade",
        )
        .await;
    balancer.post_chat().await;
    assert!(!is_sent("inherited-2") && !is_sent("file-2"));

    let output = balancer.run_upgrade_command().await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    balancer.wait_until_single_process().await;
    balancer.post_chat().await;
    assert!(is_sent("inherited-2") && is_sent("file-2"), "{:?}", keys_sent(&azure));
}
