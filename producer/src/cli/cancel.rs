//! `surety cancel`: end a job, whether it waits or runs.

use std::time::Duration;

use clap::Args;
use surety_common::{
    cancel::{self, CancelError, Happened, Wish},
    clock::parse_span,
    domain::{JobId, QueueName},
};

use super::{Context, failure::Failure};

/// Cancel a job
///
/// Says what happened, not what was asked: exit code 0 only if the job is cancelled now, and was not before. What waits is
/// cancelled at once, and its message goes to the dead letters, so it can be replayed. What runs is asked to stop (TERM, after
/// the handler's grace KILL, for all its processes) and waited for; if it gets its result first, it is not cancelled. An attempt
/// that is still stopping after --wait is told with exit code 75: the request stays, whatever becomes of the worker. An id that
/// nobody has seen is refused, unless --queue says where it will appear: then its message is dropped when it comes.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety cancel 01JD0000000000000000000000 --reason 'wrong file'")]
pub(super) struct CancelArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    id: JobId,
    /// Stored with the outcome, or with the request of an attempt to stop [default: cancelled by request]
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Queue of a job that was not enqueued yet
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// How long the end of a running attempt is waited for; 0s: not at all
    #[arg(long, value_name = "DURATION", value_parser = parse_span, default_value = "30s")]
    wait: Duration,
}

impl CancelArgs {
    /// Of a job that is known.
    pub(super) fn of(id: JobId) -> Self {
        Self { id, reason: None, queue: None, wait: Duration::from_secs(30) }
    }
}

impl From<CancelError> for Failure {
    fn from(e: CancelError) -> Self {
        match e {
            CancelError::Lookup(e) => e.into(),
            CancelError::NotDeclared(_) => Self::input(e.to_string()),
            CancelError::NotJournaled { .. } | CancelError::NotRemoved { .. } => {
                Self::unreachable(e.to_string())
            }
            CancelError::Restless(_) => Self::no(e.to_string()),
        }
    }
}

pub(super) async fn run(cx: &Context, args: CancelArgs) -> Result<(), Failure> {
    let CancelArgs { id, reason, queue, wait } = args;
    let c = cx.connect().await?;
    let wish = Wish { id: &id, reason: reason.as_deref(), queue: queue.as_ref(), wait };
    let report = Box::pin(cancel::cancel(&c, &wish)).await?;
    if report.is_cancelled {
        return cx.screen.show(&report, || report.text.clone());
    }
    if cx.screen.is_json {
        cx.screen.show(&report, String::new)?;
    }
    Err(match report.result {
        Happened::Stopping => Failure::pending(report.text),
        Happened::Unknown => Failure::no(format!("{} with --queue", report.text)),
        Happened::Cancelled | Happened::AlreadyEnded => Failure::no(report.text),
    })
}
