//! Makes the records of finished exchanges and writes them.
//!
//! They go to the file of the JSON lines sink at once. What that file does not take, and what another sink has to
//! deliver, goes to the spool. All records that are passed together are in one write.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use log::error;

use super::record_context::RecordContext;
use super::write_ahead_log::{LogPlace, take_orphans};
use crate::record::delivery;
use crate::record::exchange::{CapturePolicy, FinishedExchange};
use crate::record::line::RecordLine;
use crate::record::sinks::jsonl::LineFile;
use crate::record::spool::{FrameBuffer, Spool};
use crate::record::traces::{AnswerFacts, Tracer};
use crate::system_error::describe;

/// Where records go.
pub(in crate::record) struct RecordAppender {
    /// `None` if no records are kept.
    spool: Option<Spool>,
    jsonl: Option<DirectFile>,
    has_other_sinks: bool,
    /// `None` without a `traces` block.
    tracer: Option<Tracer>,
    frames: FrameBuffer,
    /// Whether records of a killed process could not be written to the spool. It is logged once.
    cannot_recover: bool,
}

/// The file of the JSON lines sink.
struct DirectFile {
    file: Arc<Mutex<LineFile>>,
    /// Whether the file took the last records. If not, the next ones follow them into the spool until the sink has
    /// delivered all that is there.
    is_up_to_date: bool,
}

impl RecordAppender {
    /// Records go to `jsonl`, if that is configured, and to the spool if that fails or there are other sinks. Without a
    /// spool, exchanges are only counted.
    pub(in crate::record) fn new(
        spool: Option<Spool>,
        jsonl: Option<Arc<Mutex<LineFile>>>,
        has_other_sinks: bool,
        tracer: Option<Tracer>,
    ) -> Self {
        let jsonl = jsonl.map(|file| DirectFile { file, is_up_to_date: true });
        Self { spool, jsonl, has_other_sinks, tracer, frames: FrameBuffer::default(), cannot_recover: false }
    }

    /// Whether traces are made of the exchanges that are passed.
    pub(super) fn makes_traces(&self) -> bool {
        self.tracer.is_some()
    }

    /// Makes the record of an exchange, which also counts it, and adds it to the next write. Passes the exchange on
    /// if its trace is exported.
    pub(super) fn push(
        &mut self,
        context: &RecordContext,
        exchange: FinishedExchange,
        policy: CapturePolicy,
    ) {
        context.catch_panic(|| self.push_record(context, exchange, policy));
    }

    fn push_record(
        &mut self,
        context: &RecordContext,
        mut exchange: FinishedExchange,
        policy: CapturePolicy,
    ) {
        let is_traced = self.tracer.as_mut().is_some_and(|tracer| {
            tracer.identify(&mut exchange);
            tracer.includes(&exchange)
        });
        let answer = context.make_record(&mut exchange, policy, |record| {
            if self.spool.is_some() {
                self.frames.push_record(|buffer| record.write_json(buffer));
            }
            let RecordLine { model, service_tier, finish_reason, usage, usage_source, .. } = record;
            AnswerFacts { model, service_tier, finish_reason, usage, usage_source }
        });
        if is_traced && let Some(tracer) = &self.tracer {
            tracer.enqueue(exchange, answer);
        }
    }

    /// The records of the next write, for more to be added to them.
    pub(super) fn next_frames(&mut self) -> &mut FrameBuffer {
        &mut self.frames
    }

    /// Writes the records that were added since the last call. Those that cannot be written are lost and counted.
    pub(super) fn write(&mut self, context: &RecordContext) {
        if self.frames.is_empty() {
            return;
        }
        let delivered_to = self.deliver_at_once(context);
        let Some(spool) = &mut self.spool else { return };
        let record_count = self.frames.record_count();
        let lost = if delivered_to.is_none() || self.has_other_sinks {
            spool.append(&mut self.frames, delivered_to, Instant::now())
        } else {
            0
        };
        context.metrics.count_records(delivery::SPOOL, "dropped", lost);
        context.metrics.count_records(delivery::SPOOL, "written", record_count - lost);
        self.frames.clear();
    }

    /// Appends the records to the file of the JSON lines sink, unless older ones wait in the spool or somebody else
    /// has locked the file. Returns the sink's name if they are in the file.
    fn deliver_at_once(&mut self, context: &RecordContext) -> Option<&'static str> {
        let jsonl = self.jsonl.as_mut()?;
        if !jsonl.is_up_to_date && !self.spool.as_ref()?.is_delivered_to(delivery::JSONL) {
            return None;
        }
        jsonl.is_up_to_date = false;
        // The sink's thread locks it when it writes what was in the spool: nothing is to wait for that.
        let mut file = jsonl.file.try_lock().ok()?;
        let locked = file.lock(Duration::ZERO);
        match locked.and_then(|locked| locked.append(self.frames.records())) {
            Ok(()) => {
                jsonl.is_up_to_date = true;
                context.metrics.count_records(delivery::JSONL, "delivered", self.frames.record_count());
                Some(delivery::JSONL)
            }
            Err(problem) => {
                if problem.kind() != std::io::ErrorKind::WouldBlock {
                    file.on_write_failed(&problem);
                }
                None
            }
        }
    }

    /// To be called every second or so: looks after the spool.
    pub(super) fn maintain(&mut self, context: &RecordContext) {
        if let Some(spool) = &mut self.spool {
            spool.maintain(Instant::now());
        }
        self.report_spool_failure(context);
    }

    /// To be called every now and then: looks for segments of processes that have ended, and for their write-ahead logs.
    pub(super) fn adopt_orphans(&mut self, log_place: Option<&LogPlace>) {
        let Some(spool) = &mut self.spool else { return };
        spool.adopt_orphans();
        for orphan in log_place.into_iter().flat_map(take_orphans) {
            let mut frames = FrameBuffer::default();
            orphan.records().for_each(|record| frames.push_record(|buffer| buffer.extend_from_slice(record)));
            match spool.append_recovered(&mut frames) {
                Ok(()) => {
                    self.cannot_recover = false;
                    orphan.delete();
                }
                Err(problem) if !std::mem::replace(&mut self.cannot_recover, true) => error!(
                    "cannot write to the spool what a killed process left in memory: {}. This is tried again every few \
                     seconds",
                    describe(&problem)
                ),
                Err(_) => {}
            }
        }
    }

    /// Whether the spool cannot be written to at the moment.
    pub(super) fn is_failing(&self) -> bool {
        self.spool.as_ref().is_some_and(Spool::is_failing)
    }

    /// Reports whether records can be written.
    pub(super) fn report_spool_failure(&self, context: &RecordContext) {
        let Some(spool) = &self.spool else { return };
        let deliveries = &context.metrics.deliveries;
        match spool.failure() {
            Some(problem) => deliveries.on_failed(delivery::SPOOL, problem, SystemTime::now()),
            None => deliveries.on_working(delivery::SPOOL),
        }
    }

    /// Updates the metrics of the spool.
    pub(super) fn publish_spool_metrics(&self, context: &RecordContext) {
        let Some(spool) = &self.spool else { return };
        self.report_spool_failure(context);
        context.metrics.set_spool_bytes(spool.undelivered_bytes());
        for (sink, lost) in spool.take_lost_record_counts() {
            context.metrics.count_records(sink, "lost", lost);
        }
    }

    /// Ends the spool, which its readers then read to its end, and the traces.
    pub(super) fn close(&mut self) {
        if let Some(spool) = self.spool.take() {
            spool.close();
        }
        self.tracer = None;
    }
}
