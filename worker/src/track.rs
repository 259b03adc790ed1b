//! One attempt as operators see it: its span, its line at the end, and what is counted of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use surety_common::{
    broker::{decode::Decoded, pull::Delivery},
    domain::{ErrorCode, Job, Status, ids::SessionId, text},
    store::{FinishReply, Verdict, ops::Grant},
    telemetry::metrics::{NO_ERROR, job_ended, worker},
};
use tracing::Span;

use crate::{
    handler::Ended,
    meter::{Meters, OfType, Outcome},
    shared::AnyHandler,
};

/// Longest error in a line.
const ERROR_CAP: usize = 2048;

/// An attempt under way. When it is dropped the attempt has ended: it is counted then, and its line is written.
pub(crate) struct Track {
    meter: Arc<OfType>,
    job: Arc<Job>,
    session: Arc<SessionId>,
    attempt: u32,
    epoch: u64,
    trace: Option<Box<str>>,
    is_command: bool,
    span: Span,
    started: Instant,
    handler: Option<Duration>,
    /// The attempt's own error.
    failure: Option<Box<(ErrorCode, String)>>,
    outcome: Outcome,
}

impl Track {
    /// A granted attempt. The span is made only where its level is on: at `info` for commands and `debug` for Rust handlers,
    /// of which tens of thousands may run in a second.
    pub(crate) fn start(
        meters: &Meters,
        d: &Delivery,
        decoded: &Decoded,
        grant: &Grant,
        session: &Arc<SessionId>,
        handler: &AnyHandler,
    ) -> Self {
        let job = &decoded.job;
        let meter = meters.of(&job.queue, &job.kind).clone();
        meter.started.inc();
        meter.running.inc();
        if grant.attempt == 1 {
            // Two servers' clocks: a difference between them is not a wait.
            meter.wait.observe(grant.started_ms.saturating_sub(d.stored_ms) as f64 / 1000.0);
        }
        let is_command = matches!(handler, AnyHandler::Command(_));
        let trace = trace_id(&decoded.trace);
        macro_rules! span {
            ($make:ident) => {
                tracing::$make!(
                    "attempt", job_id = %job.id, attempt = grant.attempt, epoch = grant.epoch, queue = %job.queue,
                    "type" = %job.kind, session = %session, trace, outcome = tracing::field::Empty,
                    error_code = tracing::field::Empty,
                )
            };
        }
        let span = if is_command { span!(info_span) } else { span!(debug_span) };
        Self {
            meter,
            job: job.clone(),
            session: session.clone(),
            attempt: grant.attempt,
            epoch: grant.epoch,
            trace: trace.map(Into::into),
            is_command,
            span,
            started: Instant::now(),
            handler: None,
            failure: None,
            outcome: Outcome::Unsaved,
        }
    }

    /// What its handler runs in.
    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Its handler has ended.
    pub(crate) fn handler_ended(&mut self, ended: &Ended) {
        let took = self.started.elapsed();
        self.meter.handler.observe(took.as_secs_f64());
        self.handler = Some(took);
        match ended {
            Ended::Failed { code, message, .. } => self.failed(*code, message),
            Ended::NotStarted { message } => self.failed(ErrorCode::StartFailed, message),
            Ended::Fenced => self.outcome = Outcome::Fenced,
            Ended::Done { .. } | Ended::Stopped | Ended::Signalled | Ended::Cancelled => {}
        }
    }

    fn failed(&mut self, code: ErrorCode, message: &str) {
        self.failure = Some(Box::new((code, text::cut(message, ERROR_CAP).into_owned())));
    }

    /// The store has answered to its finish.
    pub(crate) fn finished(&mut self, verdict: Verdict, reply: &FinishReply) {
        let status = match reply {
            FinishReply::Applied { status, .. } => *status,
            FinishReply::Fenced { .. } => {
                self.outcome = Outcome::Fenced;
                return;
            }
            FinishReply::NoRecord | FinishReply::BudgetSpent | FinishReply::Unreadable => return,
        };
        self.outcome = match status {
            Status::Done => Outcome::Done,
            Status::Failed => Outcome::Failed,
            Status::TimedOut => Outcome::TimedOut,
            Status::Cancelled => Outcome::Cancelled,
            Status::RetryWait => Outcome::Retry,
            Status::Deferred => Outcome::StartFailed,
            Status::Queued | Status::Scheduled | Status::Running | Status::WaitingInput => Outcome::Released,
        };
        match (status, verdict) {
            (Status::Done, _) => self.meter.jobs_done.inc(),
            (_, Verdict::Fail(code)) => {
                if self.failure.is_none() {
                    // The attempt did well, and its result could not be written.
                    self.failed(code, "the outcome could not be written");
                }
                job_ended(&self.meter.queue, &self.meter.kind, status, code.name());
            }
            _ if status.is_terminal() => job_ended(&self.meter.queue, &self.meter.kind, status, ""),
            _ => {}
        }
    }
}

impl Drop for Track {
    fn drop(&mut self) {
        self.meter.running.dec();
        if self.outcome == Outcome::Done {
            self.meter.done.inc();
        }
        let (code, error) = match self.failure.as_deref() {
            Some((code, message)) => (code.name(), Some(message.as_str())),
            None => (NO_ERROR, None),
        };
        if self.outcome != Outcome::Done {
            let labels = [self.meter.queue.as_str(), &self.meter.kind, self.outcome.name(), code];
            worker().attempts.with_label_values(&labels).inc();
        }
        self.span.record("outcome", self.outcome.name()).record("error_code", code);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    parent: None, job_id = %self.job.id, attempt = self.attempt, epoch = self.epoch,
                    queue = %self.job.queue, "type" = %self.job.kind, session = %self.session,
                    outcome = self.outcome.name(), error_code = code, error,
                    handler_ms = self.handler.map(|d| d.as_secs_f64() * 1000.0), trace = self.trace.as_deref(),
                    "attempt ended"
                )
            };
        }
        match self.outcome {
            Outcome::Done if !self.is_command => line!(debug),
            Outcome::Done | Outcome::Released | Outcome::Cancelled => line!(info),
            _ => line!(warn),
        }
    }
}

/// The trace id of a `traceparent`.
fn trace_id(traceparent: &str) -> Option<&str> {
    traceparent.split('-').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_id_is_the_second_part_of_a_traceparent() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_id(&format!("00-{id}-00f067aa0ba902b7-01")), Some(id));
        assert_eq!(trace_id(""), None);
    }
}
