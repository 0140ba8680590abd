//! Records as rows of a Log Analytics table, by Azure Monitor's Logs Ingestion API.
//!
//! Rows go in batches within the limits of one call. What the service cannot take now waits in the
//! spool; what it will never take is found by halving the batch, and set aside beside the spool.

mod rows;

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::Method;
use log::{error, info, warn};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use self::rows::{MAX_UPLOAD_BYTES, gzip_json_array, record_to_row, split_into_uploads};
use crate::azure::response::hints;
use crate::config;
use crate::credentials::RefreshedSecret;
use crate::outbound::{OutboundClient, OutboundRequest, OutboundResponse};
use crate::record::metrics::Metrics;
use crate::record::spool::{RecordBatch, SpoolRead, SpoolReader};

/// How long rows are gathered before a call that is not full.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// How often the wish to end is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The most that a call may take.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// The first pause after a failure; it doubles up to the last.
const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// The longest that the service is left alone for because it asked.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3_600);
/// So often a row is tried that may be refused because of the rule.
const MAX_BAD_REQUEST_RETRIES: u32 = 5;
/// How long the end may take to deliver what can be delivered.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the log mentions new dead letters at most.
const DEAD_LETTER_WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// Most bytes of rows that are set aside.
const MAX_DEAD_LETTER_BYTES: u64 = 64 * 1024 * 1024;

/// What others may tell the sink.
#[derive(Debug)]
pub struct LogAnalyticsControl {
    shutdown: watch::Sender<bool>,
}

impl LogAnalyticsControl {
    /// The end has come: what cannot be delivered soon stays in the spool.
    pub fn begin_shutdown(&self) {
        self.shutdown.send_replace(true);
    }
}

/// Starts the sink's thread; `token` is what it shows, `runtime` where its calls are made.
///
/// # Errors
/// When the system has no more threads.
pub fn start_sink(
    config: &config::LogAnalyticsConfig,
    access_token: RefreshedSecret,
    dead_letter_path: PathBuf,
    reader: SpoolReader,
    metrics: &Arc<Metrics>,
    runtime: Handle,
) -> io::Result<(Arc<LogAnalyticsControl>, JoinHandle<()>)> {
    let (shutdown_sender, shutdown) = watch::channel(false);
    let mut sink = LogAnalyticsSink {
        request_target: format!(
            "/dataCollectionRules/{}/streams/{}?api-version=2023-01-01",
            config.rule_immutable_id, config.stream_name
        ),
        config: config.clone(),
        access_token,
        client: OutboundClient::new(UPLOAD_TIMEOUT),
        dead_letter_path,
        shutdown,
        metrics: Arc::clone(metrics),
        current_failure: None,
        shutdown_deadline: None,
        has_delivered_any_row: false,
        dead_letter_warned_at: None,
    };
    let run = move || runtime.block_on(async { sink.run(&reader).await });
    let thread = std::thread::Builder::new().name("log_analytics".into()).spawn(run)?;
    Ok((Arc::new(LogAnalyticsControl { shutdown: shutdown_sender }), thread))
}

struct LogAnalyticsSink {
    request_target: String,
    config: config::LogAnalyticsConfig,
    access_token: RefreshedSecret,
    client: OutboundClient,
    dead_letter_path: PathBuf,
    /// The end has come.
    shutdown: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
    /// What is wrong just now, said once.
    current_failure: Option<String>,
    /// When the end does not wait any longer.
    shutdown_deadline: Option<Instant>,
    /// A row was taken, so that rule and stream are right.
    has_delivered_any_row: bool,
    /// When the log last said that a row is refused for good.
    dead_letter_warned_at: Option<Instant>,
}

/// What became of rows that were sent.
enum UploadOutcome {
    Delivered,
    /// Too much for one call.
    TooLarge,
    /// Some row among them is no row.
    BadRequest(String),
    /// Not now; perhaps in so long.
    RetryLater(Option<Duration>, String),
    /// The token was not taken.
    Unauthorized {
        secret_id: u64,
    },
    /// The end did not wait for the answer.
    ShutdownTimedOut,
}

/// The end came first.
struct DeliveryAborted;

impl LogAnalyticsSink {
    async fn run(&mut self, reader: &SpoolReader) {
        loop {
            // The thread is this task's own: it may wait.
            match reader.next_batch(MAX_UPLOAD_BYTES, POLL_INTERVAL) {
                SpoolRead::Batch(batch) => {
                    if self.deliver_batch(&batch).await.is_err() {
                        return;
                    }
                    reader.mark_delivered(&batch);
                    if reader.undelivered_bytes() < MAX_UPLOAD_BYTES as u64 {
                        self.sleep_unless_shutdown(BATCH_DELAY).await;
                    }
                }
                SpoolRead::TimedOut => {}
                SpoolRead::Closed => return,
            }
        }
    }

    async fn deliver_batch(&mut self, batch: &RecordBatch) -> Result<(), DeliveryAborted> {
        let rows: Vec<Bytes> = batch.records().map(record_to_row).collect();
        // Halves of what could not be taken whole, the first of them last.
        let mut pending = Vec::new();
        for upload in split_into_uploads(&rows).into_iter().rev() {
            pending.push(upload);
        }
        let (mut failures, mut has_renewed_token, mut remaining_deferrals) = (0, false, rows.len());
        while let Some(rows) = pending.pop() {
            let count = rows.len() as u64;
            match self.upload_or_abort(rows).await {
                UploadOutcome::Delivered => {
                    if self.current_failure.take().is_some() {
                        info!("records are delivered to Log Analytics again");
                    }
                    self.metrics.count_records("log_analytics", "delivered", count);
                    self.has_delivered_any_row = true;
                    if !pending.is_empty() && self.is_shutdown_due() {
                        return Err(DeliveryAborted);
                    }
                    (failures, has_renewed_token) = (0, false);
                }
                UploadOutcome::TooLarge | UploadOutcome::BadRequest(_) if rows.len() > 1 => {
                    let (first, second) = rows.split_at(rows.len() / 2);
                    pending.push(second);
                    pending.push(first);
                }
                UploadOutcome::TooLarge => self.write_dead_letters(rows, "it is too large"),
                // Where no row was ever taken, it may be the rule that does not fit: the others
                // first.
                UploadOutcome::BadRequest(_)
                    if !self.has_delivered_any_row && !pending.is_empty() && remaining_deferrals > 0 =>
                {
                    remaining_deferrals -= 1;
                    pending.insert(0, rows);
                }
                UploadOutcome::BadRequest(reason)
                    if !self.has_delivered_any_row && failures < MAX_BAD_REQUEST_RETRIES =>
                {
                    pending.push(rows);
                    self.wait_before_retry(&mut failures, None, reason, count).await?;
                }
                UploadOutcome::BadRequest(reason) => self.write_dead_letters(rows, &reason),
                UploadOutcome::ShutdownTimedOut => return Err(DeliveryAborted),
                UploadOutcome::Unauthorized { secret_id } if !has_renewed_token => {
                    has_renewed_token = true;
                    self.access_token.on_rejected(secret_id);
                    pending.push(rows);
                }
                UploadOutcome::Unauthorized { secret_id } => {
                    pending.push(rows);
                    self.wait_before_retry(&mut failures, None, "its token is refused".to_owned(), count)
                        .await?;
                    self.access_token.on_rejected(secret_id);
                }
                UploadOutcome::RetryLater(hint, reason) => {
                    pending.push(rows);
                    self.wait_before_retry(&mut failures, hint, reason, count).await?;
                }
            }
        }
        Ok(())
    }

    /// Waits before the next try; the log says once what is wrong.
    async fn wait_before_retry(
        &mut self,
        failures: &mut u32,
        hint: Option<Duration>,
        reason: String,
        count: u64,
    ) -> Result<(), DeliveryAborted> {
        self.metrics.count_records("log_analytics", "retried", count);
        if self.current_failure.as_ref() != Some(&reason) {
            error!("records stay in the spool, Log Analytics does not take them: {reason}");
            self.current_failure = Some(reason);
        }
        let backoff = (INITIAL_BACKOFF * 2_u32.saturating_pow(*failures)).min(MAX_BACKOFF);
        *failures = (*failures + 1).min(16);
        let delay = hint
            .map_or_else(|| backoff.mul_f64(0.5 + fastrand::f64() / 2.0), |hint| hint.min(MAX_RETRY_AFTER));
        if self.is_shutdown_due() {
            return Err(DeliveryAborted);
        }
        self.sleep_unless_shutdown(delay).await;
        if self.is_shutdown_due() { Err(DeliveryAborted) } else { Ok(()) }
    }

    /// Waits, unless the end comes.
    async fn sleep_unless_shutdown(&self, duration: Duration) {
        let mut shutdown = self.shutdown.clone();
        let _ = timeout(duration, shutdown.wait_for(|has_begun| *has_begun)).await;
    }

    /// Whether the end waits no longer.
    fn is_shutdown_due(&mut self) -> bool {
        *self.shutdown.borrow() && {
            let deadline = *self.shutdown_deadline.get_or_insert_with(|| Instant::now() + SHUTDOWN_TIMEOUT);
            // A failure now is a failure for good: the next process goes on.
            self.current_failure.is_some() || Instant::now() >= deadline
        }
    }

    /// Sends rows, unless the end comes and does not wait for the answer.
    async fn upload_or_abort(&mut self, rows: &[Bytes]) -> UploadOutcome {
        let mut shutdown = self.shutdown.clone();
        let shutdown_timeout = async {
            let _ = shutdown.wait_for(|has_begun| *has_begun).await;
            tokio::time::sleep(SHUTDOWN_TIMEOUT).await;
        };
        tokio::select! {
            outcome = self.upload(rows) => outcome,
            () = shutdown_timeout => UploadOutcome::ShutdownTimedOut,
        }
    }

    async fn upload(&mut self, rows: &[Bytes]) -> UploadOutcome {
        self.access_token.wait_for_pending_fetch().await;
        let token = match self.access_token.wait_for_value().await {
            Ok(token) => token,
            Err(problem) => return UploadOutcome::RetryLater(None, problem.to_string()),
        };
        let body = match gzip_json_array(rows) {
            Ok(body) => body,
            Err(problem) => return UploadOutcome::RetryLater(None, problem.to_string()),
        };
        let authorization = format!("Bearer {}", token.secret.expose_secret());
        let client_request_id = uuid::Uuid::from_u128(fastrand::u128(..)).to_string();
        let request = OutboundRequest {
            method: Method::POST,
            path_and_query: &self.request_target,
            headers: &[
                ("authorization", &authorization),
                ("content-type", "application/json"),
                ("content-encoding", "gzip"),
                ("x-ms-client-request-id", &client_request_id),
            ],
            body,
        };
        match self.client.send(&self.config.endpoint, request).await {
            Ok(response) if response.status == 401 => UploadOutcome::Unauthorized { secret_id: token.id },
            Ok(response) => upload_outcome(&response),
            Err(problem) => UploadOutcome::RetryLater(None, problem.to_string()),
        }
    }

    /// A row that is never taken does not hold up the others.
    fn write_dead_letters(&mut self, rows: &[Bytes], reason: &str) {
        let path = &self.dead_letter_path;
        if self
            .dead_letter_warned_at
            .is_none_or(|warned_at| warned_at.elapsed() >= DEAD_LETTER_WARNING_INTERVAL)
        {
            self.dead_letter_warned_at = Some(Instant::now());
            warn!(
                "Log Analytics refuses a record for good ({reason}); such records are in {}",
                path.display()
            );
        }
        let count = rows.len() as u64;
        if fs::metadata(path).is_ok_and(|metadata| metadata.len() > MAX_DEAD_LETTER_BYTES) {
            self.metrics.count_records("log_analytics", "lost", count);
            return;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
        let written = file
            .and_then(|mut file| rows.iter().try_for_each(|row| file.write_all(&[row, &b"\n"[..]].concat())));
        match written {
            Ok(()) => self.metrics.count_records("log_analytics", "dead", count),
            Err(problem) => {
                self.metrics.count_records("log_analytics", "lost", count);
                error!("{} cannot be written: {problem}", path.display());
            }
        }
    }
}

/// What an answer of the API means.
fn upload_outcome(response: &OutboundResponse) -> UploadOutcome {
    // Its code alone: what it quotes may be somebody's prompt.
    let status_and_code = || {
        let body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let code = body.pointer("/error/code").and_then(Value::as_str).unwrap_or_default();
        let code: String = code.chars().filter(char::is_ascii_graphic).take(64).collect();
        format!("{} {code}", response.status)
    };
    match response.status {
        200..300 => UploadOutcome::Delivered,
        413 => UploadOutcome::TooLarge,
        400 => UploadOutcome::BadRequest(status_and_code()),
        403 => UploadOutcome::RetryLater(
            None,
            "403: its identity needs the role Monitoring Metrics Publisher on the rule".to_owned(),
        ),
        404 => UploadOutcome::RetryLater(
            None,
            "404: there is no such rule or stream at this endpoint".to_owned(),
        ),
        429 | 503 => {
            let hint = hints::cooldown_hint(&response.headers, SystemTime::now());
            UploadOutcome::RetryLater(hint.map(|hint| hint.max(POLL_INTERVAL)), response.status.to_string())
        }
        status => UploadOutcome::RetryLater(None, status.to_string()),
    }
}
