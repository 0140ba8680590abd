//! Records as rows of a Log Analytics table, by Azure Monitor's Logs Ingestion API.
//!
//! Rows go in batches within the limits of one call. What the service cannot take now waits in the
//! spool; what it will never take is found by halving the batch, and set aside beside the spool.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::Method;
use log::{error, info, warn};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::azure::response::hints;
use crate::config;
use crate::credentials::Kept;
use crate::outbound::{Answer, Call, Outbound};
use crate::record::metrics::Metrics;
use crate::record::spool::{Batch, Read, Reader};

/// Most bytes of a call, uncompressed: 1 MB by the API's limits, less the brackets and some care.
const CALL_MAX: usize = 1_000_000 - 16 * 1024;
/// Azure cuts a field at 64 KB, and says nothing of it; so much of prompt and answer is sent.
const FIELD_MAX: usize = 64_000;
/// How long rows are gathered before a call that is not full.
const GATHER: Duration = Duration::from_secs(1);
/// How often the wish to end is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// The most that a call may take.
const CALL: Duration = Duration::from_secs(60);
/// The first pause after a failure; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// The longest that the service is left alone for because it asked.
const LONGEST_HINT: Duration = Duration::from_secs(3_600);
/// So often a row is tried that may be refused because of the rule.
const DOUBT: u32 = 5;
/// How long the end may take to deliver what can be delivered.
const HURRY: Duration = Duration::from_secs(3);
/// Most bytes of rows that are set aside.
const DEAD_MAX: u64 = 64 * 1024 * 1024;

/// What others may tell the sink.
#[derive(Debug)]
pub struct Control {
    hurry: watch::Sender<bool>,
}

impl Control {
    /// The end has come: what cannot be delivered soon stays in the spool.
    pub fn hurry(&self) {
        self.hurry.send_replace(true);
    }
}

/// Starts the sink's thread; `token` is what it shows, `runtime` where its calls are made.
///
/// # Errors
/// When the system has no more threads.
pub fn start(
    config: &config::LogAnalytics,
    token: Kept,
    dead_letters: PathBuf,
    reader: Reader,
    metrics: &Arc<Metrics>,
    runtime: Handle,
) -> io::Result<(Arc<Control>, JoinHandle<()>)> {
    let (hurry, hurried) = watch::channel(false);
    let mut sink = Sink {
        target: format!(
            "/dataCollectionRules/{}/streams/{}?api-version=2023-01-01",
            config.rule, config.stream
        ),
        config: config.clone(),
        token,
        outbound: Outbound::new(CALL),
        dead_letters,
        hurried,
        metrics: Arc::clone(metrics),
        trouble: None,
        ends: None,
        has_delivered: false,
        said: None,
    };
    let run = move || runtime.block_on(async { sink.run(&reader).await });
    let thread = std::thread::Builder::new().name("log_analytics".into()).spawn(run)?;
    Ok((Arc::new(Control { hurry }), thread))
}

struct Sink {
    target: String,
    config: config::LogAnalytics,
    token: Kept,
    outbound: Outbound,
    dead_letters: PathBuf,
    /// The end has come.
    hurried: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
    /// What is wrong just now, said once.
    trouble: Option<String>,
    /// When the end does not wait any longer.
    ends: Option<Instant>,
    /// A row was taken, so that rule and stream are right.
    has_delivered: bool,
    /// When the log last said that a row is refused for good.
    said: Option<Instant>,
}

/// What became of rows that were sent.
enum Sent {
    Delivered,
    /// Too much for one call.
    TooLarge,
    /// Some row among them is no row.
    Malformed(String),
    /// Not now; perhaps in so long.
    Later(Option<Duration>, String),
    /// The token was not taken.
    Unauthorized {
        token: u64,
    },
    /// The end did not wait for the answer.
    Ended,
}

/// The end came first.
struct Ended;

impl Sink {
    async fn run(&mut self, reader: &Reader) {
        loop {
            // The thread is this task's own: it may wait.
            match reader.next(CALL_MAX, LOOK) {
                Read::Batch(batch) => {
                    if self.deliver(&batch).await.is_err() {
                        return;
                    }
                    reader.delivered(&batch);
                    if reader.behind() < CALL_MAX as u64 {
                        self.pause(GATHER).await;
                    }
                }
                Read::Nothing => {}
                Read::Closed => return,
            }
        }
    }

    async fn deliver(&mut self, batch: &Batch) -> Result<(), Ended> {
        let rows: Vec<Bytes> = batch.records().map(row).collect();
        // Halves of what could not be taken whole, the first of them last.
        let mut waiting = Vec::new();
        for call in calls(&rows).into_iter().rev() {
            waiting.push(call);
        }
        let (mut failures, mut renewed, mut deferred) = (0, false, rows.len());
        while let Some(rows) = waiting.pop() {
            let count = rows.len() as u64;
            match self.send_in_time(rows).await {
                Sent::Delivered => {
                    if self.trouble.take().is_some() {
                        info!("records are delivered to Log Analytics again");
                    }
                    self.metrics.count("log_analytics", "delivered", count);
                    self.has_delivered = true;
                    if !waiting.is_empty() && self.is_over() {
                        return Err(Ended);
                    }
                    (failures, renewed) = (0, false);
                }
                Sent::TooLarge | Sent::Malformed(_) if rows.len() > 1 => {
                    let (first, second) = rows.split_at(rows.len() / 2);
                    waiting.push(second);
                    waiting.push(first);
                }
                Sent::TooLarge => self.set_aside(rows, "it is too large"),
                // Where no row was ever taken, it may be the rule that does not fit: the others
                // first.
                Sent::Malformed(_) if !self.has_delivered && !waiting.is_empty() && deferred > 0 => {
                    deferred -= 1;
                    waiting.insert(0, rows);
                }
                Sent::Malformed(why) if !self.has_delivered && failures < DOUBT => {
                    waiting.push(rows);
                    self.later(&mut failures, None, why, count).await?;
                }
                Sent::Malformed(why) => self.set_aside(rows, &why),
                Sent::Ended => return Err(Ended),
                Sent::Unauthorized { token } if !renewed => {
                    renewed = true;
                    self.token.refuse(token);
                    waiting.push(rows);
                }
                Sent::Unauthorized { token } => {
                    waiting.push(rows);
                    self.later(&mut failures, None, "its token is refused".to_owned(), count).await?;
                    self.token.refuse(token);
                }
                Sent::Later(hint, why) => {
                    waiting.push(rows);
                    self.later(&mut failures, hint, why, count).await?;
                }
            }
        }
        Ok(())
    }

    /// Waits before the next try; the log says once what is wrong.
    async fn later(
        &mut self,
        failures: &mut u32,
        hint: Option<Duration>,
        why: String,
        count: u64,
    ) -> Result<(), Ended> {
        self.metrics.count("log_analytics", "retried", count);
        if self.trouble.as_ref() != Some(&why) {
            error!("records stay in the spool, Log Analytics does not take them: {why}");
            self.trouble = Some(why);
        }
        let backoff = (FIRST_PAUSE * 2_u32.saturating_pow(*failures)).min(LAST_PAUSE);
        *failures = (*failures + 1).min(16);
        let length =
            hint.map_or_else(|| backoff.mul_f64(0.5 + fastrand::f64() / 2.0), |hint| hint.min(LONGEST_HINT));
        if self.is_over() {
            return Err(Ended);
        }
        self.pause(length).await;
        if self.is_over() { Err(Ended) } else { Ok(()) }
    }

    /// Waits, unless the end comes.
    async fn pause(&self, length: Duration) {
        let mut hurried = self.hurried.clone();
        let _ = timeout(length, hurried.wait_for(|hurried| *hurried)).await;
    }

    /// Whether the end waits no longer.
    fn is_over(&mut self) -> bool {
        *self.hurried.borrow() && {
            let ends = *self.ends.get_or_insert_with(|| Instant::now() + HURRY);
            // A failure now is a failure for good: the next process goes on.
            self.trouble.is_some() || Instant::now() >= ends
        }
    }

    /// Sends rows, unless the end comes and does not wait for the answer.
    async fn send_in_time(&mut self, rows: &[Bytes]) -> Sent {
        let mut hurried = self.hurried.clone();
        let over = async {
            let _ = hurried.wait_for(|hurried| *hurried).await;
            tokio::time::sleep(HURRY).await;
        };
        tokio::select! {
            sent = self.send(rows) => sent,
            () = over => Sent::Ended,
        }
    }

    async fn send(&mut self, rows: &[Bytes]) -> Sent {
        self.token.settled().await;
        let token = match self.token.value().await {
            Ok(token) => token,
            Err(problem) => return Sent::Later(None, problem.to_string()),
        };
        let body = match packed(rows) {
            Ok(body) => body,
            Err(problem) => return Sent::Later(None, problem.to_string()),
        };
        let authorization = format!("Bearer {}", token.secret.expose());
        let id = uuid::Uuid::from_u128(fastrand::u128(..)).to_string();
        let call = Call {
            method: Method::POST,
            target: &self.target,
            headers: &[
                ("authorization", &authorization),
                ("content-type", "application/json"),
                ("content-encoding", "gzip"),
                ("x-ms-client-request-id", &id),
            ],
            body,
        };
        match self.outbound.call(&self.config.endpoint, call).await {
            Ok(answer) if answer.status == 401 => Sent::Unauthorized { token: token.number },
            Ok(answer) => verdict(&answer),
            Err(problem) => Sent::Later(None, problem.to_string()),
        }
    }

    /// A row that is never taken does not hold up the others.
    fn set_aside(&mut self, rows: &[Bytes], why: &str) {
        let path = &self.dead_letters;
        if self.said.is_none_or(|said| said.elapsed() >= LAST_PAUSE) {
            self.said = Some(Instant::now());
            warn!("Log Analytics refuses a record for good ({why}); such records are in {}", path.display());
        }
        let count = rows.len() as u64;
        if fs::metadata(path).is_ok_and(|there| there.len() > DEAD_MAX) {
            self.metrics.count("log_analytics", "lost", count);
            return;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
        let written = file
            .and_then(|mut file| rows.iter().try_for_each(|row| file.write_all(&[row, &b"\n"[..]].concat())));
        match written {
            Ok(()) => self.metrics.count("log_analytics", "dead", count),
            Err(problem) => {
                self.metrics.count("log_analytics", "lost", count);
                error!("{} cannot be written: {problem}", path.display());
            }
        }
    }
}

/// What an answer of the API means.
fn verdict(answer: &Answer) -> Sent {
    // Its code alone: what it quotes may be somebody's prompt.
    let said = || {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let code = body.pointer("/error/code").and_then(Value::as_str).unwrap_or_default();
        let code: String = code.chars().filter(char::is_ascii_graphic).take(64).collect();
        format!("{} {code}", answer.status)
    };
    match answer.status {
        200..300 => Sent::Delivered,
        413 => Sent::TooLarge,
        400 => Sent::Malformed(said()),
        403 => Sent::Later(
            None,
            "403: its identity needs the role Monitoring Metrics Publisher on the rule".to_owned(),
        ),
        404 => Sent::Later(None, "404: there is no such rule or stream at this endpoint".to_owned()),
        429 | 503 => {
            let hint = hints::cooldown_hint(&answer.headers, SystemTime::now());
            Sent::Later(hint.map(|hint| hint.max(LOOK)), answer.status.to_string())
        }
        status => Sent::Later(None, status.to_string()),
    }
}

/// Rows of one call each.
fn calls(rows: &[Bytes]) -> Vec<&[Bytes]> {
    let mut calls = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (n, row) in rows.iter().enumerate() {
        if size + row.len() + 1 > CALL_MAX && n > start {
            calls.extend(rows.get(start..n));
            (start, size) = (n, 0);
        }
        size += row.len() + 1;
    }
    calls.extend(rows.get(start..).filter(|rest| !rest.is_empty()));
    calls
}

/// A record as a row: as it is, unless it is too long for a call.
fn row(record: &[u8]) -> Bytes {
    if record.len() < FIELD_MAX {
        return Bytes::copy_from_slice(record);
    }
    // Escapes make a text longer than it is.
    let most = if record.len() < CALL_MAX / 2 { FIELD_MAX } else { FIELD_MAX / 2 };
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(record) else {
        return Bytes::copy_from_slice(record);
    };
    for name in ["prompt", "completion"] {
        if let Some(Value::String(text)) = fields.get_mut(name)
            && text.len() > most
        {
            text.truncate(text.floor_char_boundary(most));
            fields.insert("content_cut".to_owned(), Value::Bool(true));
        }
    }
    Bytes::from(Value::Object(fields).to_string())
}

/// A JSON array of rows, compressed.
fn packed(rows: &[Bytes]) -> io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    for (n, row) in rows.iter().enumerate() {
        encoder.write_all(if n == 0 { b"[" } else { b"," })?;
        encoder.write_all(row)?;
    }
    encoder.write_all(b"]")?;
    Ok(Bytes::from(encoder.finish()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_within_the_limit_and_hold_all() {
        let sizes = [10, CALL_MAX - 100, 50, 200, CALL_MAX / 2, CALL_MAX / 2, 1];
        let rows: Vec<Bytes> = sizes.iter().map(|size| Bytes::from(vec![b'x'; *size])).collect();
        let calls = calls(&rows);
        assert_eq!(calls.concat(), rows);
        assert!(calls.iter().all(|call| call.iter().map(Bytes::len).sum::<usize>() <= CALL_MAX));
        assert_eq!(calls.len(), 3);
    }

    #[test]
    fn a_long_record_is_cut_and_says_so() {
        let record = serde_json::json!({"request_id": "x", "prompt": "é".repeat(400_000), "completion": "short", "content_cut": false});
        let row: Value = serde_json::from_slice(&row(record.to_string().as_bytes())).unwrap();
        assert!(row["prompt"].as_str().unwrap().len() <= FIELD_MAX);
        assert_eq!((&row["completion"], &row["content_cut"]), (&"short".into(), &true.into()));
        assert_eq!(super::row(b"short"), "short");
    }
}
