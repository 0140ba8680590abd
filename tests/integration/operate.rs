//! The commands `drain`, `undrain` and `reload`, and how they find the admin API of the running process.

use crate::support;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use aoai_lb::demo::Mood;
use support::tls::{generate_authority, write_certificate_and_key};
use support::{
    Balancer, CHAT_BODY, LISTED_DEPLOYMENTS, answering_backend, clients_yaml, free_port,
    listed_backends_yaml, simulated_backend_yaml, start_simulator, wait_until,
};

/// The exit code and the outputs of a command.
#[derive(Debug)]
struct CommandResult {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

async fn run(arguments: &[&str], variables: &[(&str, &str)]) -> CommandResult {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    let output = command.args(arguments).envs(variables.iter().copied()).output().await.unwrap();
    CommandResult {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs a command with the configuration file of a balancer, which tells where its admin API is.
async fn run_with_file(balancer: &Balancer, arguments: &[&str]) -> CommandResult {
    let file = balancer.path("aoai-lb.yaml").display().to_string();
    run(&[arguments, &["-c", &file]].concat(), &[]).await
}

async fn states(balancer: &Balancer) -> Vec<String> {
    balancer.backend_states().await.into_iter().map(|(_, state)| state).collect()
}

#[tokio::test]
async fn drain_tells_how_many_requests_are_in_flight_and_undrain_ends_it() {
    let azure = start_simulator(&["west-1", "east"]).await;
    azure.set_mood("west-1", Mood::SlowFirstByte(Duration::from_millis(1500)));
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "balance: round_robin").await;
    let mut waiting_client = balancer.connect().await;
    waiting_client.send_chat(CHAT_BODY).await;
    let mut other_client = balancer.connect().await;
    other_client.send_chat(CHAT_BODY).await;
    wait_until("one of them reaches west-1", || azure.request_count("west-1") == 1).await;
    let result = run_with_file(&balancer, &["drain", "west-1"]).await;
    assert_eq!(
        (result.code, result.stdout.lines().next(), result.stderr.as_str()),
        (Some(0), Some("west-1 is drained; 1 request is still in flight there"), "")
    );
    for _ in 0..4 {
        assert_eq!(answering_backend(&balancer.post_chat().await), "east");
    }
    let answered = [waiting_client.read_response().await, other_client.read_response().await];
    assert!(answered.iter().any(|response| answering_backend(response) == "west-1"));
    let result = run_with_file(&balancer, &["drain", "west-1"]).await;
    assert_eq!(
        (result.code, result.stdout.lines().next()),
        (Some(0), Some("west-1 was drained already; no request is in flight there"))
    );
    let result = run_with_file(&balancer, &["drain", "east"]).await;
    assert!(
        result.stderr.starts_with("warning: left without a backend: deployment 'gpt-4o', "),
        "{result:?}"
    );
    for (expected, state) in
        [("east is no longer drained\n", "healthy"), ("east was not drained\n", "healthy")]
    {
        let result = run_with_file(&balancer, &["undrain", "east"]).await;
        assert_eq!((result.code, result.stdout.as_str(), result.stderr.as_str()), (Some(0), expected, ""));
        assert_eq!(states(&balancer).await[0], state);
    }
}

#[tokio::test]
async fn an_unknown_name_is_answered_with_the_names_and_the_closest() {
    let azure = start_simulator(&["west-1", "east"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    for (name, expected) in [
        ("wset-1", "no backend has this name; did you mean west-1? The backends are east, west-1\n"),
        ("West-1", "no backend has this name; did you mean west-1? The backends are east, west-1\n"),
        ("somewhere", "no backend has this name; the backends are east, west-1\n"),
        ("../reload", "no backend has this name; the backends are east, west-1\n"),
        ("a b/ä?x=1", "no backend has this name; the backends are east, west-1\n"),
        ("", "no backend has this name; the backends are east, west-1\n"),
    ] {
        for verb in ["drain", "undrain"] {
            let result = run_with_file(&balancer, &[verb, name]).await;
            assert_eq!(
                (result.code, result.stderr.as_str()),
                (Some(1), expected),
                "{verb} {name:?}: {result:?}"
            );
            assert_eq!(result.stdout, "");
        }
    }
    assert_eq!(states(&balancer).await, ["healthy", "healthy"]);
    for arguments in
        [["drain"].as_slice(), &["undrain", "a", "b"], &["reload", "west-1"], &["drain", "a", "--force"]]
    {
        assert_eq!(run_with_file(&balancer, arguments).await.code, Some(2), "{arguments:?}");
    }
}

#[tokio::test]
async fn reload_prints_what_changed_and_what_needs_an_upgrade() {
    let azure = start_simulator(&["a", "b"]).await;
    let b = simulated_backend_yaml(&azure, "b", LISTED_DEPLOYMENTS);
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "retry: { attempts: 3 }").await;
    let result = run_with_file(&balancer, &["reload"]).await;
    assert_eq!(
        (result.code, result.stdout.as_str(), result.stderr.as_str()),
        (Some(0), "nothing changed\nconfiguration 2 is active\n", "")
    );
    balancer
        .replace_in_config(&b, &b.replace("gpt-4o: gpt-4o", "gpt-4o: other").replace("name: b", "name: c"));
    balancer.replace_in_config("attempts: 3", "attempts: 4");
    balancer.replace_in_config("drain_delay: 0s", "drain_delay: 1s");
    balancer.replace_in_config(
        "deployments: { gpt-4o: gpt-4o, other: other }",
        "enabled: true\n    deployments: { gpt-4o: gpt-4o }",
    );
    let result = run_with_file(&balancer, &["reload"]).await;
    let expected = "backends: added c, removed b, changed a (deployments)\n\
                    settings: retry.attempts and server.drain_delay\n\
                    takes effect with an upgrade (aoai-lb upgrade): server.drain_delay\n\
                    configuration 3 is active\n";
    assert_eq!((result.code, result.stdout.as_str(), result.stderr.as_str()), (Some(0), expected, ""));
    // What is allowed but probably a mistake.
    balancer.replace_in_config("enabled: true", "enabled: false");
    balancer.replace_in_config("name: c", "name: c\n    tier: 2");
    let result = run_with_file(&balancer, &["reload"]).await;
    assert!(
        result.code == Some(0) && result.stdout.starts_with("backends: changed a (enabled) and c (tier)\n"),
        "{result:?}"
    );
}

#[tokio::test]
async fn reload_prints_the_problems_of_a_file_that_is_refused_and_fails() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    balancer.replace_in_config("credential:", "weight: 0\n    credental:");
    let result = run_with_file(&balancer, &["reload"]).await;
    assert_eq!((result.code, result.stdout.as_str()), (Some(1), ""), "{result:?}");
    for part in [
        "reload failed, the previous configuration stays active: ",
        "aoai-lb.yaml:10: error: backends[0] (a).credental: unknown key; did you mean `credential`?\n",
        "aoai-lb.yaml:9: error: backends[0] (a).weight: must be a whole number from 1 to 1000\n",
    ] {
        assert!(result.stderr.contains(part), "expected {part:?} in: {}", result.stderr);
    }
    assert_eq!(balancer.post_chat().await.status, 200);
    // The admin API is found although the rest of the file is invalid; not if the file is no YAML.
    assert_eq!(run_with_file(&balancer, &["drain", "a"]).await.code, Some(0));
    balancer.write_config("admin: [");
    let result = run_with_file(&balancer, &["undrain", "a"]).await;
    assert!(result.code == Some(1) && result.stderr.contains("not valid YAML"), "{result:?}");
    let url = format!("http://{}", balancer.admin_address);
    assert_eq!(run(&["undrain", "a", "--admin", &url], &[]).await.code, Some(0));
}

#[tokio::test]
async fn commands_reach_the_successor_while_an_upgrade_goes_on() {
    let azure = start_simulator(&["a", "b"]).await;
    let mut balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    let (upgrade, commands) = tokio::join!(balancer.run_upgrade_command(), async {
        let mut results = Vec::new();
        for round in 0..30 {
            let verb = if round % 2 == 0 { "drain" } else { "undrain" };
            results.push(run_with_file(&balancer, &[verb, "b"]).await);
        }
        results
    });
    assert!(upgrade.status.success());
    for (round, result) in commands.iter().enumerate() {
        let expected = if round % 2 == 0 { "b is drained; " } else { "b is no longer drained\n" };
        assert!(result.code == Some(0) && result.stdout.starts_with(expected), "{round}: {result:?}");
    }
    balancer.wait_until_single_process().await;
    assert_eq!(states(&balancer).await, ["healthy", "healthy"]);
}

/// Starts a balancer with this `admin` block, in which `@` stands for an address.
async fn start_with_admin(directory: tempfile::TempDir, backends: &str, admin_block: &str) -> Balancer {
    let [address, admin] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
    // In quotes, so that the harness does not ask there.
    let admin_block = admin_block.replace('@', &format!("'{admin}'"));
    let text = format!(
        "listeners: [ {{ address: '{address}' }} ]\nadmin: {admin_block}\nserver: {{ drain_delay: 0s }}\nbackends:\n{backends}{}",
        clients_yaml()
    );
    Balancer::start_from_file(directory, address, admin, &text).await
}

fn write_token_file(directory: &Path, token: &str) -> String {
    let path = directory.join("token");
    std::fs::write(&path, format!("{token}\n")).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn the_admin_api_is_found_on_a_unix_socket() {
    let azure = start_simulator(&["a", "b"]).await;
    // A relative path of the file starts at its directory.
    let balancer = start_with_admin(
        tempfile::tempdir().unwrap(),
        &listed_backends_yaml(&azure),
        "{ address: 'unix:admin.sock' }",
    )
    .await;
    assert_eq!(
        run_with_file(&balancer, &["drain", "b"]).await.stdout.lines().next(),
        Some("b is drained; no request is in flight there")
    );
    let url = format!("unix:{}", balancer.path("admin.sock").display());
    assert_eq!(run(&["undrain", "b", "--admin", &url], &[]).await.stdout, "b is no longer drained\n");
    let result = run_with_file(&balancer, &["status", "--json"]).await;
    assert!(result.code == Some(0) && result.stdout.contains("\"backends\":"), "{result:?}");
}

#[tokio::test]
async fn token_and_tls_are_taken_from_the_file_and_can_be_given() {
    let azure = start_simulator(&["a", "b"]).await;
    let (directory, authority) = (tempfile::tempdir().unwrap(), generate_authority());
    write_certificate_and_key(directory.path(), &authority, 90);
    std::fs::write(directory.path().join("ca.pem"), authority.certificate.to_pem().unwrap()).unwrap();
    let admin = "{ address: @, token: \"${ADMIN_TOKEN:-token-of-the-file}\", tls: { certificate: cert.pem, private_key: key.pem } }";
    let balancer = start_with_admin(directory, &listed_backends_yaml(&azure), admin).await;
    let ca = balancer.path("ca.pem").display().to_string();
    let file = balancer.path("aoai-lb.yaml").display().to_string();
    let trusted = [("SSL_CERT_FILE", ca.as_str())];
    // Its certificate is for a name that does not resolve, and verified for it.
    let result = run(&["drain", "b", "-c", &file], &trusted).await;
    assert_eq!((result.code, result.stderr.as_str()), (Some(0), ""), "{result:?}");
    let result = run(&["status", "-c", &file], &trusted).await;
    assert!(result.code == Some(0) && result.stdout.contains("drained"), "{result:?}");
    let result = run(&["undrain", "b", "-c", &file], &[]).await;
    assert!(
        result.code == Some(1) && result.stderr.contains("https://balancer.test:"),
        "not trusted: {result:?}"
    );
    // Another token in the environment of the command, and the right one in a file.
    let wrong = [trusted[0], ("ADMIN_TOKEN", "another-token")];
    let result = run(&["undrain", "b", "-c", &file], &wrong).await;
    assert!(
        result.code == Some(1)
            && result.stderr.contains("requires another token: name a file that has it with --token-file"),
        "{result:?}"
    );
    assert!(!format!("{result:?}").contains("another-token"), "{result:?}");
    let token_file = write_token_file(&balancer.path(""), "token-of-the-file");
    let result = run(&["undrain", "b", "-c", &file, "--token-file", &token_file], &wrong).await;
    assert_eq!((result.code, result.stdout.as_str()), (Some(0), "b is no longer drained\n"), "{result:?}");
}

#[tokio::test]
async fn what_keeps_a_command_from_the_admin_api_is_said() {
    let azure = start_simulator(&["a"]).await;
    let mut balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    let file = balancer.path("aoai-lb.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let admin_line = format!("admin: {{ address: {} }}\n", balancer.admin_address);
    let unreachable = format!(
        "cannot reach the admin API at http://{}: connection refused (nothing listens there). Is aoai-lb running",
        balancer.admin_address
    );
    assert_eq!(balancer.stop().await, 0);
    let no_variable = admin_line.replace(" }", ", token: \"${NOT_SET_HERE}\" }");
    let in_vault =
        admin_line.replace(" }", ", token: { key_vault: 'https://x.vault.azure.net/secrets/t' } }");
    for (config, expected) in [
        (text.clone(), unreachable.as_str()),
        (text.replace(&admin_line, ""), "has no block `admin`, so its process cannot be asked"),
        (
            text.replace(&admin_line, "admin: { adress: x }\n"),
            "admin.adress: unknown key; did you mean `address`?",
        ),
        (text.replace(&admin_line, &no_variable), "admin.token: ${NOT_SET_HERE} is not set"),
        (text.replace(&admin_line, &in_vault), "admin.token is in a key vault: write it into a file"),
    ] {
        std::fs::write(&file, &config).unwrap();
        for command in [["drain", "a"].as_slice(), &["reload"], &["status"]] {
            let result = run_with_file(&balancer, command).await;
            assert!(
                result.code == Some(1) && result.stderr.contains(expected),
                "{command:?}: {result:?}\n{config}"
            );
        }
    }
    // With the token given, the one in the file need not be readable.
    let token_file = write_token_file(&balancer.path(""), "t");
    for token in [&no_variable, &in_vault] {
        std::fs::write(&file, text.replace(&admin_line, token)).unwrap();
        let result = run_with_file(&balancer, &["reload", "--token-file", &token_file]).await;
        assert!(result.stderr.contains(&unreachable), "{result:?}");
    }
    let result = run(&["reload", "-c", "/does/not/exist.yaml"], &[]).await;
    assert!(
        result.code == Some(1) && result.stderr.contains("/does/not/exist.yaml: error: cannot read the file"),
        "{result:?}"
    );
    let result = run(&["drain", "a", "--admin", "localhost"], &[]).await;
    assert!(result.code == Some(1) && result.stderr.starts_with("--admin: must begin with"), "{result:?}");
    let result = run(&["drain", "a", "--token-file", "/does/not/exist"], &[]).await;
    assert!(
        result.code == Some(1) && result.stderr.starts_with("--token-file: /does/not/exist: No such file"),
        "{result:?}"
    );
}
