//! The sink that sends records to a Log Analytics table with the Logs Ingestion API of Azure Monitor.
//!
//! Rows are uploaded in batches within the limits of the API. While the service is unavailable, records stay
//! in the spool. A row that the service rejects permanently is found by halving the batch, and is written to
//! the dead letter file.

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
use log::{error, warn};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use self::rows::{MAX_UPLOAD_BYTES, gzip_json_array, record_to_row, split_into_uploads};
use crate::azure::response::hints;
use crate::config;
use crate::credentials::{RefreshedSecret, SecretValue};
use crate::outbound::{OutboundClient, OutboundError, OutboundRequest, OutboundResponse};
use crate::record::delivery;
use crate::record::metrics::Metrics;
use crate::record::sinks::backoff::Backoff;
use crate::record::sinks::incident::DeliveryIncident;
use crate::record::spool::{RecordBatch, SpoolRead, SpoolReader};
use crate::routing::episodes::duration_in_words;
use crate::system_error::describe;

/// How long rows are collected before an upload that is not full.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// How long to wait for records before looking again whether the spool is closed.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The time limit of [`deliver_empty_batch`].
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// The time limit of one upload.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a row with status 400 is tried again while no row was ever accepted: the data collection rule
/// may be wrong rather than the row.
const BAD_REQUEST_RETRIES_BEFORE_FIRST_DELIVERY: u32 = 5;
/// How long delivery goes on after the process began to shut down.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// New dead letters are logged at most this often.
const DEAD_LETTER_WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// The dead letter file grows to about this size; further rejected records are lost.
const MAX_DEAD_LETTER_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// Tells the sink's thread that the process ends.
#[derive(Debug)]
pub struct LogAnalyticsControl {
    shutdown_sender: watch::Sender<bool>,
}

impl LogAnalyticsControl {
    /// Begins the shutdown: records that cannot be delivered soon stay in the spool.
    pub fn begin_shutdown(&self) {
        self.shutdown_sender.send_replace(true);
    }
}

/// Starts the thread of the sink. Its HTTP calls are made on `runtime`.
///
/// # Errors
/// If the thread cannot be started.
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
        request_target: request_target(config),
        config: config.clone(),
        access_token,
        client: OutboundClient::new(UPLOAD_TIMEOUT),
        dead_letter_path,
        shutdown_receiver: shutdown,
        metrics: Arc::clone(metrics),
        incident: None,
        shutdown_deadline: None,
        has_delivered_any_row: false,
        dead_letter_warned_at: None,
    };
    let run = move || runtime.block_on(async { sink.run(&reader).await });
    let thread = std::thread::Builder::new().name("log_analytics".into()).spawn(run)?;
    Ok((Arc::new(LogAnalyticsControl { shutdown_sender }), thread))
}

struct LogAnalyticsSink {
    request_target: String,
    config: config::LogAnalyticsConfig,
    access_token: RefreshedSecret,
    client: OutboundClient,
    dead_letter_path: PathBuf,
    /// Whether the process shuts down.
    shutdown_receiver: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
    /// Since when and why delivery fails. Each reason is logged once.
    incident: Option<DeliveryIncident>,
    /// When delivery stops; set when the shutdown is first noticed.
    shutdown_deadline: Option<Instant>,
    /// Whether the service ever accepted a row: then rule and stream are configured correctly.
    has_delivered_any_row: bool,
    /// When a dead letter was last logged.
    dead_letter_warned_at: Option<Instant>,
}

/// The outcome of an upload.
enum UploadOutcome {
    Delivered,
    /// Status 413: the upload is too large.
    TooLarge,
    /// Status 400: some row is invalid, or the rule does not fit the rows.
    BadRequest(String),
    /// A temporary failure: the `retry-after` of the service, and the reason.
    RetryLater(Option<Duration>, String),
    /// Status 401: the token was rejected.
    Unauthorized {
        secret_id: u64,
    },
    /// The process ended before the response came.
    ShutdownTimedOut,
}

/// Delivery stopped because the process ends.
struct DeliveryAborted;

impl LogAnalyticsSink {
    async fn run(&mut self, reader: &SpoolReader) {
        loop {
            // This call blocks. That is allowed here: the task is the only one on this thread.
            match reader.wait_for_batch(MAX_UPLOAD_BYTES, POLL_INTERVAL) {
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

    /// Delivers all rows of a batch, or writes those that are rejected permanently to the dead letter file.
    async fn deliver_batch(&mut self, batch: &RecordBatch) -> Result<(), DeliveryAborted> {
        let rows: Vec<Bytes> = batch.records().map(record_to_row).collect();
        // A stack of uploads, the next one last. An upload that is rejected is replaced by its halves.
        let mut pending = Vec::new();
        for upload in split_into_uploads(&rows).into_iter().rev() {
            pending.push(upload);
        }
        let (mut backoff, mut has_renewed_token, mut remaining_deferrals) =
            (Backoff::default(), false, rows.len());
        while let Some(rows) = pending.pop() {
            let count = rows.len() as u64;
            match self.upload_or_abort(rows).await {
                UploadOutcome::Delivered => {
                    if let Some(incident) = self.incident.take() {
                        self.metrics.deliveries.on_working(delivery::LOG_ANALYTICS);
                        let lasted = duration_in_words(incident.lasted(Instant::now()));
                        warn!("records are delivered to Log Analytics again, after {lasted}");
                    }
                    self.metrics.count_records(delivery::LOG_ANALYTICS, "delivered", count);
                    self.has_delivered_any_row = true;
                    if !pending.is_empty() && self.must_stop_delivery() {
                        return Err(DeliveryAborted);
                    }
                    (backoff, has_renewed_token) = (Backoff::default(), false);
                }
                UploadOutcome::TooLarge | UploadOutcome::BadRequest(_) if rows.len() > 1 => {
                    let (first, second) = rows.split_at(rows.len() / 2);
                    pending.push(second);
                    pending.push(first);
                }
                UploadOutcome::TooLarge => self.write_dead_letters(rows, "413: the record is too large"),
                // As long as no row was ever accepted, the rule may be wrong rather than this row: the other
                // rows are tried first.
                UploadOutcome::BadRequest(_)
                    if !self.has_delivered_any_row && !pending.is_empty() && remaining_deferrals > 0 =>
                {
                    remaining_deferrals -= 1;
                    pending.insert(0, rows);
                }
                UploadOutcome::BadRequest(reason)
                    if !self.has_delivered_any_row
                        && backoff.failures() < BAD_REQUEST_RETRIES_BEFORE_FIRST_DELIVERY =>
                {
                    pending.push(rows);
                    self.wait_before_retry(&mut backoff, None, reason, count).await?;
                }
                UploadOutcome::BadRequest(reason) => self.write_dead_letters(rows, &reason),
                UploadOutcome::ShutdownTimedOut => return Err(DeliveryAborted),
                UploadOutcome::Unauthorized { secret_id } if !has_renewed_token => {
                    has_renewed_token = true;
                    self.access_token.on_value_rejected(secret_id);
                    pending.push(rows);
                }
                UploadOutcome::Unauthorized { secret_id } => {
                    // A new token was rejected too. Another one is fetched only after the delay.
                    pending.push(rows);
                    self.wait_before_retry(
                        &mut backoff,
                        None,
                        "401: the token of its identity is rejected".to_owned(),
                        count,
                    )
                    .await?;
                    self.access_token.on_value_rejected(secret_id);
                }
                UploadOutcome::RetryLater(hint, reason) => {
                    pending.push(rows);
                    self.wait_before_retry(&mut backoff, hint, reason, count).await?;
                }
            }
        }
        Ok(())
    }

    /// Waits before the next attempt, and logs a new reason once.
    async fn wait_before_retry(
        &mut self,
        backoff: &mut Backoff,
        hint: Option<Duration>,
        reason: String,
        count: u64,
    ) -> Result<(), DeliveryAborted> {
        self.metrics.count_records(delivery::LOG_ANALYTICS, "retried", count);
        self.metrics.deliveries.on_failed(delivery::LOG_ANALYTICS, &reason, SystemTime::now());
        if self.incident.get_or_insert_with(|| DeliveryIncident::new(Instant::now())).is_news(&reason) {
            error!("records stay in the spool: Log Analytics does not accept them: {reason}");
        }
        let delay = backoff.next_delay(hint);
        if self.must_stop_delivery() {
            return Err(DeliveryAborted);
        }
        self.sleep_unless_shutdown(delay).await;
        if self.must_stop_delivery() { Err(DeliveryAborted) } else { Ok(()) }
    }

    /// Sleeps, but not longer than until the shutdown begins.
    async fn sleep_unless_shutdown(&self, duration: Duration) {
        let mut shutdown = self.shutdown_receiver.clone();
        let _ = timeout(duration, shutdown.wait_for(|has_begun| *has_begun)).await;
    }

    /// Whether delivery is to stop now because the process ends.
    fn must_stop_delivery(&mut self) -> bool {
        *self.shutdown_receiver.borrow() && {
            let deadline = *self.shutdown_deadline.get_or_insert_with(|| Instant::now() + SHUTDOWN_TIMEOUT);
            // After a failure there is no time for another attempt: the next process delivers the records.
            self.incident.is_some() || Instant::now() >= deadline
        }
    }

    /// Uploads rows. During a shutdown the response is not waited for longer than [`SHUTDOWN_TIMEOUT`].
    async fn upload_or_abort(&mut self, rows: &[Bytes]) -> UploadOutcome {
        let mut shutdown = self.shutdown_receiver.clone();
        let shutdown_timeout = async {
            let _ = shutdown.wait_for(|has_begun| *has_begun).await;
            tokio::time::sleep(SHUTDOWN_TIMEOUT).await;
        };
        tokio::select! {
            outcome = self.upload(rows) => outcome,
            () = shutdown_timeout => UploadOutcome::ShutdownTimedOut,
        }
    }

    /// Uploads rows in one call.
    async fn upload(&mut self, rows: &[Bytes]) -> UploadOutcome {
        // After a 401 a new token is being fetched: without this wait the rejected one would be sent again.
        self.access_token.wait_for_pending_fetch().await;
        let token = match self.access_token.wait_for_value().await {
            Ok(token) => token,
            Err(problem) => return UploadOutcome::RetryLater(None, problem.to_string()),
        };
        let body = match gzip_json_array(rows) {
            Ok(body) => body,
            Err(problem) => return UploadOutcome::RetryLater(None, problem.to_string()),
        };
        match send_rows(&self.client, &self.config, &self.request_target, &token, body).await {
            Ok(response) if response.status == 401 => UploadOutcome::Unauthorized { secret_id: token.id },
            Ok(response) => classify_response(&response),
            Err(problem) => UploadOutcome::RetryLater(None, problem.to_string()),
        }
    }

    /// Writes rows that are rejected permanently to the dead letter file, so that they do not block the
    /// others.
    fn write_dead_letters(&mut self, rows: &[Bytes], reason: &str) {
        let path = &self.dead_letter_path;
        if self
            .dead_letter_warned_at
            .is_none_or(|warned_at| warned_at.elapsed() >= DEAD_LETTER_WARNING_INTERVAL)
        {
            self.dead_letter_warned_at = Some(Instant::now());
            warn!(
                "Log Analytics rejects a record permanently ({reason}): such records are written to {}",
                path.display()
            );
        }
        let count = rows.len() as u64;
        if fs::metadata(path).is_ok_and(|metadata| metadata.len() > MAX_DEAD_LETTER_FILE_BYTES) {
            self.metrics.count_records(delivery::LOG_ANALYTICS, "lost", count);
            return;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
        let written = file
            .and_then(|mut file| rows.iter().try_for_each(|row| file.write_all(&[row, &b"\n"[..]].concat())));
        match written {
            Ok(()) => self.metrics.count_records(delivery::LOG_ANALYTICS, "dead", count),
            Err(problem) => {
                self.metrics.count_records(delivery::LOG_ANALYTICS, "lost", count);
                error!(
                    "cannot write to {}: {}. Records that Log Analytics rejects are lost",
                    path.display(),
                    describe(&problem)
                );
            }
        }
    }
}

fn request_target(config: &config::LogAnalyticsConfig) -> String {
    let (rule, stream) = (&config.rule_immutable_id, &config.stream_name);
    format!("/dataCollectionRules/{rule}/streams/{stream}?api-version=2023-01-01")
}

/// Sends a compressed JSON array of rows.
async fn send_rows(
    client: &OutboundClient,
    config: &config::LogAnalyticsConfig,
    request_target: &str,
    token: &SecretValue,
    body: Bytes,
) -> Result<OutboundResponse, OutboundError> {
    let authorization = format!("Bearer {}", token.secret.expose_secret());
    let client_request_id = uuid::Uuid::from_u128(fastrand::u128(..)).to_string();
    let request = OutboundRequest {
        method: Method::POST,
        path_and_query: request_target,
        headers: &[
            ("authorization", &authorization),
            ("content-type", "application/json"),
            ("content-encoding", "gzip"),
            ("x-ms-client-request-id", &client_request_id),
        ],
        body,
    };
    client.send(&config.endpoint, request).await
}

/// Delivers no rows, which shows whether the service, the identity, the rule and the stream are as they should be.
///
/// # Errors
/// What is wrong.
pub async fn deliver_empty_batch(
    config: &config::LogAnalyticsConfig,
    token: &SecretValue,
) -> Result<u16, String> {
    let client = OutboundClient::new(CHECK_TIMEOUT);
    let body = gzip_json_array(&[]).map_err(|error| describe(&error))?;
    let sent = send_rows(&client, config, &request_target(config), token, body).await;
    let response = sent.map_err(|problem| problem.to_string())?;
    match classify_response(&response) {
        _ if response.status == 401 => Err("401: the token of its identity is rejected".to_owned()),
        UploadOutcome::Delivered => Ok(response.status),
        UploadOutcome::BadRequest(reason) => {
            Err(format!("{reason}: the data collection rule has no such stream, or another schema"))
        }
        UploadOutcome::RetryLater(_, reason) => Err(reason),
        UploadOutcome::TooLarge | UploadOutcome::Unauthorized { .. } | UploadOutcome::ShutdownTimedOut => {
            Err(format!("the service answers {}", response.status))
        }
    }
}

/// What a response of the API means.
fn classify_response(response: &OutboundResponse) -> UploadOutcome {
    // Only the error code: the message may quote a row, and with it a prompt.
    let status_and_code = || {
        let body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let code = body.pointer("/error/code").and_then(Value::as_str).unwrap_or_default();
        let code: String = code.chars().filter(char::is_ascii_graphic).take(64).collect();
        format!("{} {code}", response.status).trim_end().to_owned()
    };
    match response.status {
        200..300 => UploadOutcome::Delivered,
        413 => UploadOutcome::TooLarge,
        400 => UploadOutcome::BadRequest(status_and_code()),
        403 => UploadOutcome::RetryLater(
            None,
            "403: its identity needs the role Monitoring Metrics Publisher on the data collection rule; \
             a new role assignment takes up to 30 minutes"
                .to_owned(),
        ),
        404 => UploadOutcome::RetryLater(
            None,
            "404: the endpoint has no such data collection rule or stream".to_owned(),
        ),
        429 | 503 => {
            let hint = hints::cooldown_hint(&response.headers, SystemTime::now());
            UploadOutcome::RetryLater(hint, response.status.to_string())
        }
        status => UploadOutcome::RetryLater(None, status.to_string()),
    }
}
