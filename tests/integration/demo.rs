//! `aoai-lb demo`: what its story says is what has happened, what it prints can be used as it is printed, and a user's own
//! requests are not throttled.

use crate::support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use support::terminal::Terminal;
use support::{CHAT_BODY, Client, Response, poll, poll_within, send_signal_to, wait_until};

/// For a whole round of the story: five steps, and some waits in between on a busy machine.
const STORY_TIMEOUT: Duration = Duration::from_secs(150);

/// A running demo.
struct Demo {
    child: Child,
    listen: SocketAddr,
    admin: SocketAddr,
    /// Where its directory is.
    temporary: tempfile::TempDir,
    /// What it has printed.
    printed: Arc<Mutex<String>>,
}

impl Demo {
    async fn start() -> Self {
        let (mut demo, stdout) = Self::start_unread().await;
        demo.read(stdout);
        wait_until("the introduction is printed", || demo.printed().contains("Stop it with")).await;
        demo
    }

    /// Starts it without a reader of its output.
    async fn start_unread() -> (Self, ChildStdout) {
        let address = || SocketAddr::from(([127, 0, 0, 1], support::free_port()));
        let (listen, admin, temporary) = (address(), address(), tempfile::tempdir().unwrap());
        let mut child = Command::new(env!("CARGO_BIN_EXE_aoai-lb"))
            .args(["demo", "--listen", &listen.to_string(), "--admin", &admin.to_string(), "--step", "1s"])
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let demo = Self { child, listen, admin, temporary, printed: Arc::default() };
        poll("the demo listens", async || Client::try_connect(listen).await.map(drop)).await;
        (demo, stdout)
    }

    fn read(&mut self, stdout: ChildStdout) {
        let printed = Arc::clone(&self.printed);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                *printed.lock().unwrap() += &(line + "\n");
            }
        });
    }

    fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    /// Waits for a text, for as long as a round takes.
    async fn wait_for_text(&self, text: &str) -> String {
        poll_within(STORY_TIMEOUT, text, async || {
            let printed = self.printed();
            if printed.contains(text) { Ok(printed) } else { Err(printed) }
        })
        .await
    }

    /// The key that is printed for the user.
    fn key(&self) -> String {
        self.printed().split("API key").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
    }

    async fn post(&self, path: &str, key: &str, body: &str) -> Response {
        let headers = [("api-key", key), ("Content-Type", "application/json")];
        Client::connect(self.listen).await.post(path, &headers, body.as_bytes()).await
    }

    async fn status(&self) -> Value {
        let mut client = Client::connect(self.admin).await;
        client.get("/api/status", &[("Host", "127.0.0.1")]).await.json()
    }

    /// Sends what a printed `curl` would send.
    async fn run_curl(&self, command: &str) -> Response {
        let between = |before: &str, after: char| {
            command.split(before).nth(1).unwrap().split(after).next().unwrap().to_owned()
        };
        let address = format!("http://{}", self.listen);
        self.post(&between(&address, '"'), &between("api-key: ", '"'), &between("-d '", '\'')).await
    }

    async fn interrupt(&mut self) -> Option<i32> {
        assert!(send_signal_to("INT", self.child.id()));
        let mut status = None;
        wait_until("the demo ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap().code()
    }

    /// What it has left in the directory for temporary files.
    fn left_paths(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.temporary.path()).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a printed command of the binary in a shell, and returns what it prints.
fn run_in_shell(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of a step of the first round, without their indentation.
fn step(printed: &str, number: usize) -> Vec<&str> {
    let (_, text) = printed.split_once(&format!("] {number} of 5: ")).unwrap();
    text.split("\n\n").next().unwrap().lines().skip(1).map(|line| line.trim_start_matches("  ")).collect()
}

/// The commands of a step.
fn commands(lines: &[&str]) -> Vec<String> {
    let text = lines.join("\n");
    text.split("\n$ ").skip(1).map(str::to_owned).collect()
}

/// The number before a text in a line of counts, such as `2 answered by eastus, 4 answered by westus`.
fn count_of(line: &str, outcome: &str) -> u64 {
    let counts = line.split_once(": ").unwrap().1.trim_end_matches('.').split(", ");
    let with_outcome = counts.filter_map(|count| count.strip_suffix(outcome));
    with_outcome.map(|number| number.trim().parse::<u64>().unwrap()).sum()
}

fn backend<'a>(status: &'a Value, name: &str) -> &'a Value {
    let backends = status["backends"].as_array().unwrap();
    backends.iter().find(|backend| backend["name"] == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_the_story_is_true_and_the_story_goes_on() {
    let mut demo = Demo::start().await;
    let printed = demo.wait_for_text("The story begins again").await;
    let status = demo.status().await;

    let lines = step(&printed, 1);
    let counts =
        ["eastus", "westus", "sweden"].map(|name| count_of(lines[0], &format!(" answered by {name}")));
    assert_eq!(counts.iter().sum::<u64>(), 6, "{lines:#?}");
    for (name, count) in ["eastus", "westus", "sweden"].iter().zip(counts) {
        assert!(
            backend(&status, name)["counters"]["answered"].as_u64().unwrap() >= count,
            "{name}: {status}"
        );
    }
    let response = demo.run_curl(&commands(&lines)[0]).await;
    assert_eq!((response.status, response.header("x-aoai-lb-attempts")), (200, Some("1")));

    let lines = step(&printed, 2);
    let mut last_backend = "";
    for (line, name) in lines.iter().zip(["Ada", "Grace", "Edsger"]) {
        let turns: Vec<&str> = line.split_once(": ").unwrap().1.trim_end_matches('.').split(", ").collect();
        assert!(
            line.starts_with(name) && turns.len() == 3 && turns.iter().all(|turn| *turn == turns[0]),
            "{line}"
        );
        last_backend = turns[0];
    }
    assert!(lines[3].contains("you began with: My name is Edsger."), "{lines:#?}");
    let response = demo.run_curl(&commands(&lines)[0]).await;
    assert_eq!((response.status, response.header("x-aoai-lb-backend")), (200, Some(last_backend)));
    assert!(response.text().contains("(Turn 4; you began with: My name is Edsger.)"), "{}", response.text());

    let lines = step(&printed, 3);
    assert!(count_of(lines[0], " answered by eastus-ptu") > 0, "{lines:#?}");
    let (number, backend_name) = lines[1].split_once(" with 429. The same bytes went to ").unwrap();
    let backend_name = backend_name.split(';').next().unwrap();
    assert!(number.starts_with("eastus-ptu refused number ") && backend_name != "eastus-ptu", "{lines:#?}");
    assert!(lines[2].starts_with("The status: eastus-ptu, gpt-4.1"), "{lines:#?}");
    let throttled = backend(&status, "eastus-ptu")["counters"]["throttled"].as_u64().unwrap();
    assert!(throttled > 0, "{status}");
    let found = run_in_shell(&commands(&lines)[1]);
    let attempts: Vec<&str> =
        found.lines().skip_while(|line| !line.starts_with("attempts")).take(2).collect();
    assert!(attempts[0].contains("eastus-ptu") && attempts[0].contains("429"), "{found}");
    assert!(attempts[1].contains(backend_name) && attempts[1].contains("200"), "{found}");
    poll("the whole is spilling", async || {
        let status = demo.status().await;
        if status["service"]["state"] == "spilling" { Ok(()) } else { Err(status["service"].clone()) }
    })
    .await;

    let lines = step(&printed, 4);
    let refused = count_of(lines[0], " refused with 429 rate_limit_exceeded");
    let answered: u64 = ["eastus", "westus", "sweden"]
        .map(|name| count_of(lines[0], &format!(" answered by {name}")))
        .iter()
        .sum();
    assert_eq!((answered, refused), (5, 3), "{lines:#?}");
    assert!(lines[1].contains("requests_per_minute"), "{lines:#?}");
    let refusals = status["refusals"].as_array().unwrap();
    let of_client = refusals.iter().find(|refusals| refusals["client"] == "batch-job").unwrap();
    assert!(of_client.to_string().contains("\"429\":3"), "{of_client}");
    let others = refusals.iter().filter(|refusals| refusals["client"] != "batch-job");
    assert_eq!(others.count(), 0, "{refusals:#?}");
    let response = demo.run_curl(&commands(&lines)[0]).await;
    assert_eq!((response.status, response.error_code().as_str()), (429, "rate_limit_exceeded"));

    let lines = step(&printed, 5);
    let costs = status["costs"]["clients"].as_array().unwrap();
    for client in ["traffic", "batch-job"] {
        let line = lines.iter().find(|line| line.starts_with(&format!("{client}: "))).unwrap();
        let printed_cost: f64 = line.split(' ').nth(1).unwrap().parse().unwrap();
        let now = costs.iter().find(|costs| costs["client"] == client).unwrap();
        let cost_now: f64 = now["today"]["cost"].as_str().unwrap().parse().unwrap();
        assert!(printed_cost > 0.0 && printed_cost <= cost_now, "{line} {now}");
    }
    assert!(lines.iter().any(|line| line.contains("responses of eastus-ptu")), "{lines:#?}");
    let usage = run_in_shell(&commands(&lines)[0]);
    assert!(usage.contains("traffic") && usage.contains("batch-job"), "{usage}");
    assert!(run_in_shell(&commands(&lines)[1]).contains("eastus-ptu"));

    let again = poll_within(STORY_TIMEOUT, "the story is told again", async || {
        let printed = demo.printed();
        let again = printed.split("The story begins again").nth(1).unwrap_or_default().to_owned();
        if again.contains("] 5 of 5: ") { Ok(again) } else { Err(printed) }
    })
    .await;
    assert!(!again.contains("$ "), "{again}");
    assert_eq!(demo.interrupt().await, Some(0));
    let left = demo.left_paths();
    assert_eq!(left.len(), 1, "{left:?}");
    let removal = format!("rm -r {}\n", left[0].display());
    let printed = demo.wait_for_text(&removal).await;
    assert!(!printed.contains("not answered"), "{printed}");
    let records = std::fs::read_to_string(left[0].join("exchanges.jsonl")).unwrap();
    assert!(records.lines().count() > 30, "{records}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_demo_prints_works_and_a_users_long_conversation_is_not_throttled() {
    let mut demo = Demo::start().await;
    let printed = demo.printed();
    let response = demo.run_curl(printed.split("\ncurl ").nth(1).unwrap()).await;
    assert_eq!(response.status, 200, "{}", response.text());
    let (key, words) = (demo.key(), "word ".repeat(8_000));
    let mut previous: Option<String> = None;
    let mut backends = Vec::new();
    // As an agent does: each turn brings 40 KB, and refers to the one before. Meanwhile the story fills the provisioned
    // deployment of the same resource.
    for _ in 0..40 {
        let body = json!({"model": "gpt-4o", "input": words, "previous_response_id": previous}).to_string();
        let response = demo.post("/openai/v1/responses", &key, &body).await;
        assert_eq!(response.status, 200, "{}", response.text());
        previous = Some(response.json()["id"].as_str().unwrap().to_owned());
        backends.push(support::answering_backend(&response));
    }
    assert!(backends.iter().all(|backend| *backend == backends[0]), "{backends:?}");
    let status = demo.status().await;
    assert_eq!(status["backends"].as_array().unwrap().len(), 4, "one is the provisioned part of a resource");
    for name in ["eastus", "westus", "sweden"] {
        assert_eq!(backend(&status, name)["counters"]["throttled"], 0, "{name}: {status}");
    }
    assert_eq!(demo.interrupt().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_serves_on_if_nobody_reads_what_it_prints() {
    let (mut demo, stdout) = Demo::start_unread().await;
    drop(stdout);
    let config_file = demo.left_paths()[0].join("aoai-lb.yaml");
    wait_until("the traffic and the story go on", || {
        let records = config_file.with_file_name("exchanges.jsonl");
        std::fs::read_to_string(records).is_ok_and(|records| records.contains("rate_limit_exceeded"))
    })
    .await;
    let response = demo.post("/openai/deployments/gpt-4o/chat/completions", "unknown", CHAT_BODY).await;
    assert_eq!(response.status, 401);
    assert!(config_file.exists());
    assert_eq!(demo.interrupt().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_terminal_the_demo_ends_with_ctrl_c() {
    let temporary = tempfile::tempdir().unwrap();
    let address = || format!("127.0.0.1:{}", support::free_port());
    let (listen, admin) = (address(), address());
    let arguments = ["demo", "--listen", &listen, "--admin", &admin, "--step", "1s"];
    let variables = [("TMPDIR", temporary.path().to_str().unwrap())];
    let mut terminal = Terminal::start(&arguments, &variables, 200, 90);
    let has = |rows: &[String], text: &str| rows.iter().any(|row| row.contains(text));
    terminal.wait_for("a step is shown", |rows| has(rows, "] 1 of 5: Three resources look like one")).await;
    terminal.type_text("\u{3}");
    assert_eq!(terminal.wait_for_exit().await, Some(0));
    let rows = terminal.wait_for("its end is shown", |rows| has(rows, "The demo has ended")).await;
    assert!(!has(&rows, "ERROR") && !has(&rows, "not answered"), "{rows:#?}");
}

#[test]
fn an_address_in_use_is_reported_with_the_options_that_choose_another_one() {
    let temporary = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (listen, admin) = (taken.local_addr().unwrap().to_string(), "127.0.0.1:0");
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    command.args(["demo", "--listen", &listen, "--admin", admin]).env("TMPDIR", temporary.path());
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), b"".as_slice()), "{stderr}");
    assert!(stderr.contains(&listen) && stderr.contains("--listen and --admin"), "{stderr}");
    assert_eq!(std::fs::read_dir(Path::new(temporary.path())).unwrap().count(), 0);
}
