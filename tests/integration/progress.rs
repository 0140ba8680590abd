//! The line on a terminal that says how far a command has come, and that nothing of it is in a pipe.

use crate::support;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::terminal::Terminal;
use support::{backend_yaml, clients_yaml, free_port};

const RECORD: &str =
    "{\"time\":\"2026-11-23T08:00:00Z\",\"request_id\":\"1\",\"client\":\"team-a\",\"total_tokens\":7}\n";

/// A named pipe: a command that reads it waits until it is written to.
fn make_fifo(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

/// Opens a named pipe for writing once it is read.
async fn open_for_writing(path: &Path) -> File {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || File::options().write(true).open(path).unwrap()).await.unwrap()
}

fn start(arguments: &[&str]) -> Terminal {
    Terminal::start(arguments, &[], 80, 12)
}

fn is_on(rows: &[String], text: &str) -> bool {
    rows.iter().any(|row| row.contains(text))
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_records_for_long_shows_a_line_that_is_gone_in_the_end() {
    let directory = tempfile::tempdir().unwrap();
    for command in [&["usage"][..], &["find", "1"]] {
        let [piped, dumb, seen] = ["piped", "dumb", "seen"]
            .map(|name| make_fifo(directory.path(), &format!("{}-{name}", command[0])));
        let mut in_pipe = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
        in_pipe.args(command).arg(&piped).stdout(Stdio::piped()).stderr(Stdio::piped());
        let in_pipe = in_pipe.spawn().unwrap();
        let arguments = |file: &'static str| [command, &[file]].concat();
        let leak = |path: &Path| -> &'static str { path.to_str().unwrap().to_owned().leak() };
        let mut in_dumb_terminal = Terminal::start(&arguments(leak(&dumb)), &[("TERM", "dumb")], 80, 12);
        let mut others = [open_for_writing(&piped).await, open_for_writing(&dumb).await];
        // After the other two, which have had as much time when this shows its progress.
        let mut terminal = start(&arguments(leak(&seen)));
        let mut writer = open_for_writing(&seen).await;
        terminal.wait_for("the progress is shown", |rows| rows[0].starts_with("reading records: ")).await;
        writer.write_all(RECORD.as_bytes()).unwrap();
        let counted = format!("reading records: {} B, ", RECORD.len());
        terminal.wait_for("what is read is counted", |rows| rows[0].starts_with(&counted)).await;
        assert!(!is_on(&in_dumb_terminal.rows(), "reading"), "{:#?}", in_dumb_terminal.rows());
        for other in &mut others {
            other.write_all(RECORD.as_bytes()).unwrap();
        }
        drop((writer, others));
        assert_eq!(terminal.wait_for_exit().await, Some(0));
        let rows = terminal.wait_for("the result is there", |rows| is_on(rows, "team-a")).await;
        assert!(!is_on(&rows, "reading records"), "{rows:#?}");
        assert_eq!(in_dumb_terminal.wait_for_exit().await, Some(0));
        let output = in_pipe.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
        assert!(output.status.success() && String::from_utf8(output.stdout).unwrap().contains("team-a"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_check_says_what_it_waits_for() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("aoai-lb.yaml");
    // It accepts connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let backends = backend_yaml("silent", &format!("http://{}", silent.local_addr().unwrap()), "");
    let text = format!(
        "listeners: [ {{ address: '127.0.0.1:{}' }} ]\nbackends:\n{backends}{}",
        free_port(),
        clients_yaml()
    );
    std::fs::write(&file, text).unwrap();
    let mut terminal = start(&["check", "--live", "-c", file.to_str().unwrap()]);
    terminal.wait_for("the progress is shown", |rows| is_on(rows, "checking backends: ")).await;
    // The connection that waits is refused now, as those after it.
    drop(silent);
    assert_eq!(terminal.wait_for_exit().await, Some(1));
    let rows = terminal.wait_for("the result is there", |rows| is_on(rows, "some checks failed")).await;
    assert!(is_on(&rows, "BAD   silent") && !is_on(&rows, "checking backends"), "{rows:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_says_that_it_waits_below_the_steps_that_are_done() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("aoai-lb.yaml");
    let socket = directory.path().join("upgrade.sock");
    std::fs::write(&file, format!("server: {{ upgrade_socket: {} }}\n", socket.display())).unwrap();
    let listener = UnixListener::bind(directory.path().join("upgrade.sock.control")).unwrap();
    let mut terminal = start(&["upgrade", "-c", file.to_str().unwrap()]);
    let accept = move || {
        let mut stream = listener.accept().unwrap().0;
        BufReader::new(&mut stream).read_line(&mut String::new()).unwrap();
        stream
    };
    let mut stream = tokio::task::spawn_blocking(accept).await.unwrap();
    let waits = "waiting for the running process: ";
    terminal.wait_for("the progress is shown", |rows| rows[0].starts_with(waits)).await;
    stream.write_all(b"{\"progress\":{\"what\":\"half of it is done\"}}\n").unwrap();
    terminal
        .wait_for("the step is above the progress", |rows| {
            rows[0] == "half of it is done" && rows[1].starts_with(waits)
        })
        .await;
    stream.write_all(b"{\"done\":{\"pid\":17}}\n").unwrap();
    assert_eq!(terminal.wait_for_exit().await, Some(0));
    let rows =
        terminal.wait_for("the result is there", |rows| rows[1].starts_with("process 17 is serving")).await;
    assert!(!is_on(&rows, "waiting"), "{rows:#?}");
}
