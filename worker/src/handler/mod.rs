//! What performs a job: a Rust function or a command.

pub(crate) mod command;
pub(crate) mod control;
pub(crate) mod rate;
mod rust;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use serde_json::value::RawValue;
use surety_common::domain::{ErrorCode, FailureClass, Job, JobId, Lineage};
use tokio_util::sync::CancellationToken;

pub(crate) use rust::RustHandler;

/// Locks by name, each with its fencing token.
pub(crate) type Locks = BTreeMap<String, u64>;

/// What a Rust handler is given.
#[derive(Debug, Clone)]
pub struct JobContext {
    pub(crate) job: Arc<Job>,
    /// Number of this attempt, from 1.
    pub attempt: u32,
    /// Fencing token of this attempt: grows with every attempt of the job.
    pub epoch: u64,
    pub(crate) locks: Arc<Locks>,
    pub(crate) stop: CancellationToken,
    pub(crate) reports: control::Reports,
    pub(crate) rate: Arc<Mutex<rate::Rate>>,
}

impl JobContext {
    /// The job's id.
    pub fn id(&self) -> &JobId {
        &self.job.id
    }

    /// The job as it was asked for.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// The lineage of every job that this handler enqueues: set it at the client (`with_lineage`) or at each job
    /// (`JobBuilder::lineage`), so that a loop of jobs is seen.
    pub fn children(&self) -> Lineage {
        self.job.children()
    }

    /// The payload as JSON text.
    pub fn payload(&self) -> &RawValue {
        &self.job.payload
    }

    /// The payload, read. The error is a failure that is not retried: the same bytes will not read better.
    pub fn payload_json(&self) -> Result<serde_json::Value, HandlerError> {
        serde_json::from_str(self.job.payload.get())
            .map_err(|e| HandlerError::give_up(format!("payload: {e}")))
    }

    /// The locks that this attempt holds, each with its fencing token: a number that grows with every holder of the lock, so
    /// that whatever is protected by it can refuse what comes from an earlier one.
    pub fn locks(&self) -> &BTreeMap<String, u64> {
        &self.locks
    }

    /// Resolves when the attempt should stop: time limit, cancel, shutdown, lost lease, lost lock. The future of the handler is dropped soon
    /// after; in-process code cannot be killed, only asked.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Reports progress (0 to 1) with a message: journaled, and it re-arms the progress deadline. Waits until it
    /// is, and until it may: 200 reports at once, then 20 a second; `false` when the attempt no longer owns the job.
    pub async fn progress(&self, fraction: f64, message: &str) -> bool {
        // In-process code is not folded: it waits until it may go on.
        loop {
            let wait = self.rate.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
            match wait {
                Ok(()) => break,
                Err(wait) => tokio::time::sleep(wait).await,
            }
        }
        self.reports.send(&control::Line::progress(fraction, message)).await
    }
}

/// Why a handler failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HandlerError {
    /// For people; stored with the attempt.
    pub message: String,
    /// Whether another attempt may succeed.
    pub class: FailureClass,
}

impl HandlerError {
    /// A failure that is tried again while budget is left.
    pub fn retry(message: impl Into<String>) -> Self {
        Self { message: message.into(), class: FailureClass::Retryable }
    }

    /// A failure for good.
    pub fn give_up(message: impl Into<String>) -> Self {
        Self { message: message.into(), class: FailureClass::Final }
    }
}

/// How a handler ended, before the retry budget is looked at.
#[derive(Debug, Clone)]
pub(crate) enum Ended {
    Done {
        result: Option<Box<RawValue>>,
        usage: Option<Box<RawValue>>,
    },
    Failed {
        code: ErrorCode,
        class: FailureClass,
        message: String,
        detail: Detail,
    },
    /// The handler never ran.
    NotStarted {
        message: String,
    },
    /// The attempt was stopped at shutdown: to be handed back.
    Stopped,
    /// A signal that we did not send ended it with others of this service: to be handed back.
    Signalled,
    /// The attempt was stopped because its job is to be cancelled.
    Cancelled,
    /// The lease is gone: nothing may be written.
    Fenced,
}

/// What is kept with a failed attempt.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(crate) struct Detail {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) iteration: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) stdout_tail: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) stderr_tail: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) output_truncated: bool,
}

/// Why an attempt is stopped before its end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    /// Shutdown after the drain: stop and hand back.
    pub(crate) abort: CancellationToken,
    /// The lease is lost, or the attempt is fenced: die without a word.
    pub(crate) fence: CancellationToken,
    /// The job is to be cancelled: stop, then say so.
    pub(crate) cancel: CancellationToken,
    /// A lock is lost: die at once, then say so.
    pub(crate) lock: LostLock,
}

/// Says which lock of an attempt was lost, once one was.
#[derive(Debug, Clone, Default)]
pub(crate) struct LostLock {
    is_lost: CancellationToken,
    name: Arc<OnceLock<String>>,
}

impl LostLock {
    /// The attempt does not hold this lock any more. Of several the first counts.
    pub(crate) fn lose(&self, name: &str) {
        self.name.get_or_init(|| name.to_owned());
        self.is_lost.cancel();
    }

    /// Resolves when a lock is lost.
    pub(crate) async fn lost(&self) {
        self.is_lost.cancelled().await;
    }

    /// How the attempt ends by it, if one was lost.
    pub(crate) fn failure(&self) -> Option<(ErrorCode, FailureClass, String)> {
        let name = self.name.get()?;
        let message = format!("the lock {name:?} was lost: another may hold it");
        Some((ErrorCode::LockLost, ErrorCode::LockLost.class(), message))
    }
}

/// One attempt, as handlers see it.
pub(crate) struct Attempt {
    pub(crate) context: JobContext,
    pub(crate) timeout: Duration,
    pub(crate) session: Arc<surety_common::domain::ids::SessionId>,
    pub(crate) stop: Stop,
    pub(crate) trace: Option<String>,
}
