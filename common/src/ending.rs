//! Ending a job that nobody runs: burial by a worker or the reaper, cancel by an operator. The order is the same for all:
//! commit, journal, dead letter; only then may the carrier be removed.

use std::time::Duration;

use crate::{
    broker::{dead::Obituary, pull::Delivery},
    connect::Connected,
    domain::{ErrorCode, JobId, Requester, Status, TypeName, text},
    fault,
    pace::Pace,
    recover::RecoverError,
    store::{SettleItem, SettleReply, StoreError},
    telemetry::metrics::job_ended,
    wire::receipt::Draft,
};

/// How long each step is tried. What is left is done by the next delivery, or by the reaper.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who ends the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Cancel,
    Burial,
    /// Nobody: its finish deadline passed.
    Deadline,
}

/// A job to end. `generation`, `key` and `trace` matter only where the store has not seen the job.
#[derive(Debug, Clone)]
pub struct Ending<'a> {
    pub by: By,
    pub id: &'a JobId,
    pub kind: &'a TypeName,
    pub queue: &'a str,
    /// A JSON string literal, or empty.
    pub key: String,
    pub trace: &'a str,
    pub generation: u32,
    /// `STREAM:sequence`, or empty.
    pub carrier: &'a str,
    pub code: ErrorCode,
    pub why: &'a str,
    /// Who is to be told; matters only where the store has not seen the job.
    pub requester: &'a Requester,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It has its outcome by this call: committed, journaled, kept as a dead letter. The carrier may go.
    Ended { ack_subject: String, carrier: String },
    /// It had one before; journaled, and kept as a dead letter unless it is done. The carrier may go.
    Before(Status),
    /// An attempt runs, or another message than the one to bury carries the job: nothing was changed.
    Running(Status),
}

/// A JSON string literal, or empty.
pub fn json_string(s: Option<&str>) -> String {
    s.and_then(|s| serde_json::to_string(s).ok()).unwrap_or_default()
}

/// Ends a job. `raw` is its message, where there is one; it is kept as a dead letter.
/// Errors leave what was committed; calling again goes on from there.
pub async fn end_job(c: &Connected, raw: Option<&Delivery>, e: &Ending<'_>) -> Result<Outcome, RecoverError> {
    let p = c.store.keys().partition(e.id);
    let why = text::cut(e.why, 1024);
    let (verdict, status) = match e.by {
        By::Cancel => (1, Status::Cancelled),
        By::Burial => (2, Status::Failed),
        By::Deadline => (3, Status::TimedOut),
    };
    let mut receipt = Draft::new(e.id, e.generation, e.kind, status.name());
    receipt.error_code = Some(e.code);
    receipt.message = Some(&why);
    receipt.trace = (!e.trace.is_empty()).then_some(e.trace);
    let item = SettleItem {
        id: e.id.to_string(),
        verdict,
        code: e.code.name(),
        receipt: receipt.open_json(),
        reason: serde_json::json!({ "error_code": e.code, "message": why }).to_string(),
        queue: e.queue.to_owned(),
        job_type: e.kind.to_string(),
        key: e.key.clone(),
        trace: e.trace.to_owned(),
        carrier: e.carrier.to_owned(),
        ack_subject: raw.map(|r| r.ack_subject.to_string()).unwrap_or_default(),
        created_ms: raw.map_or(0, |r| r.stored_ms),
        generation: e.generation,
        notify: e.requester.to_json().into_owned(),
    };
    let answer = c.store.settle(p, &[item]).await?;
    fault::point("settle_committed");
    c.relay.publish(p, &answer.entries, Pace::call(PATIENCE)).await?;
    fault::point("settle_journaled");
    let (generation, epoch, code, outcome) = match answer.results.into_iter().next() {
        Some(SettleReply::Applied(s)) => {
            job_ended(e.queue, e.kind.as_str(), status, e.code.name());
            let outcome = Outcome::Ended { ack_subject: s.ack_subject, carrier: s.carrier };
            (s.generation, s.epoch, e.code.name().to_owned(), outcome)
        }
        Some(SettleReply::Ended(b)) if b.status == Status::Done => return Ok(Outcome::Before(b.status)),
        Some(SettleReply::Ended(b)) => (b.generation, b.epoch, b.code, Outcome::Before(b.status)),
        Some(SettleReply::Running { status }) => return Ok(Outcome::Running(status)),
        Some(SettleReply::Unreadable) => {
            return Err(StoreError::unreadable(e.id.as_str()).into());
        }
        None => return Err(StoreError::Decode("settle gave no result".into()).into()),
    };
    if let Some(raw) = raw {
        let obituary = Obituary {
            job: e.id,
            queue: e.queue,
            generation,
            epoch,
            reason: &code,
            message: &why,
            carrier: e.carrier,
        };
        c.broker.bury(&c.publisher, raw, &obituary, Pace::call(PATIENCE)).await?;
        fault::point("buried");
    }
    Ok(outcome)
}
