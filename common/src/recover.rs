//! Taking the attempts of a dead session back: commit *lost*, journal it, give the carriers back. Used by the reaper's rule
//! for expired sessions and by a worker that finds its own former incarnation at its start.

use std::time::Duration;

use crate::{
    broker::{BrokerError, dead::Obituary, place::Carrier},
    connect::Connected,
    domain::{ErrorCode, JobId, Status, TypeName, ids::SessionId},
    pace::Pace,
    store::{LostItem, LostReply, Record, StoreError, ops::Settled},
    telemetry::metrics::{attempt_lost, job_ended},
    watch::{self, CrashLoop},
    wire::receipt::Draft,
};

/// Why a repair did not finish. What was committed stays committed; the next pass goes on.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// What one pass over a session did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Attempts committed as lost.
    pub lost: usize,
    /// Of these, jobs whose budget was spent.
    pub failed: usize,
    /// The session turned out to be alive: nothing was done.
    pub is_alive: bool,
    /// More is left: call again.
    pub is_partial: bool,
}

/// How long publishes and copies of a repair are tried before the next pass takes over.
const PATIENCE: Duration = Duration::from_secs(10);

/// Commits up to `batch` attempts of an expired session as lost, in one partition, and settles their carriers. The error of one
/// carrier is reported when the others are settled.
pub async fn lost_session(
    c: &Connected,
    p: u32,
    session: &SessionId,
    batch: usize,
    crash_loop: &CrashLoop,
) -> Result<Recovered, RecoverError> {
    let owned = c.store.running(p, session).await?;
    let is_partial = owned.len() > batch;
    let mut items = Vec::with_capacity(owned.len().min(batch));
    let mut jobs = Vec::with_capacity(owned.len().min(batch));
    for (id, epoch) in owned.into_iter().take(batch) {
        let record = match c.store.record(&id).await {
            // The call below says so too, and goes on without it.
            Err(StoreError::Unreadable { .. }) => None,
            other => other?,
        };
        let code = record.as_ref().and_then(|r| r.state().lost_code(c.store.lost_limit()));
        let (code, why) = why_lost(code, c.store.lost_limit());
        items.push(item(&id, epoch, record.as_ref(), session, code, &why));
        let (queue, kind) = record.map(|r| (r.queue, r.job_type)).unwrap_or_default();
        jobs.push(Taken { id, epoch, queue, kind, code, why });
    }
    let answer = match c.store.lost(p, session, &items).await {
        Err(StoreError::SessionLost) => return Ok(Recovered { is_alive: true, ..Recovered::default() }),
        other => other?,
    };
    crate::fault::point("lost_committed");
    let is_lost = |r: &LostReply| matches!(r, LostReply::Applied(_));
    let lost = jobs.iter().zip(&answer.results).filter(|(_, r)| is_lost(r));
    // One death, whatever it took along.
    let name = format!("@{session}");
    watch::lost(c, crash_loop, &lost.map(|(t, _)| t.kind.as_str()).collect(), "-", &name).await;
    // Ordering: the verdicts are journaled before any carrier is touched.
    c.relay.publish(p, &answer.entries, Pace::call(PATIENCE)).await?;
    let mut done = Recovered { is_partial, ..Recovered::default() };
    let mut unsettled = None;
    for (Taken { id, epoch, queue, kind, code, why }, reply) in jobs.iter().zip(answer.results) {
        let s = match reply {
            LostReply::Applied(s) => s,
            LostReply::NotApplied => continue,
            // It stays with its session until it is set aside; the next pass finds what is in its place.
            LostReply::Unreadable => {
                done.is_partial = true;
                continue;
            }
        };
        done.lost += 1;
        attempt_lost(queue, kind);
        tracing::warn!(job_id = %id, epoch, %session, status = s.status.name(), "attempt lost");
        if s.status == Status::Cancelled {
            tracing::info!(job_id = %id, "the job was to be cancelled, and its attempt is lost: it is cancelled");
        } else if s.status != Status::RetryWait {
            done.failed += 1;
            tracing::error!(job_id = %id, alert = "attempts_exhausted", error_code = code.name(), "the job failed: its last attempt was lost");
        }
        let code = if s.status == Status::Cancelled { ErrorCode::Cancelled } else { *code };
        let left = Left { job: id, queue, kind, code, why };
        if let Err(error) = settle_carrier(c, &left, &Settled { epoch: *epoch, ..s }, Duration::ZERO).await {
            // It is committed and comes here no more: its message comes back by itself.
            tracing::warn!(job_id = %id, epoch, %error, "the message of a lost attempt could not be settled");
            unsettled = Some(error);
        }
    }
    unsettled.map_or(Ok(done), Err)
}

/// An attempt of the session, and how its job ends if it does.
struct Taken {
    id: JobId,
    epoch: u64,
    queue: String,
    kind: String,
    code: ErrorCode,
    why: String,
}

/// How a job ends whose last attempt was lost, and why, for people. `code`: what [`crate::domain::JobState::lost_code`] says.
pub fn why_lost(code: Option<ErrorCode>, limit: u32) -> (ErrorCode, String) {
    match code {
        Some(ErrorCode::Lost) => {
            let why = format!(
                "{limit} attempts were lost (guards.lost_limit): their workers died, froze or lost their leases, and this job may be why"
            );
            (ErrorCode::Lost, why)
        }
        _ => (ErrorCode::AttemptsExhausted, LOST.to_owned()),
    }
}

/// A job whose state was changed by somebody who does not run it.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    pub job: &'a JobId,
    pub queue: &'a str,
    /// Its type.
    pub kind: &'a str,
    /// Why it ended, if it did.
    pub code: ErrorCode,
    /// The same, for people.
    pub why: &'a str,
}

/// Settles the carrier of a job after its verdict is committed and journaled: given back after `delay` where the job is tried
/// again; else kept as a dead letter, and removed. A repeat does no harm. Gives what carried a job that has ended, where it was there.
pub async fn settle_carrier(
    c: &Connected,
    left: &Left<'_>,
    s: &Settled,
    delay: Duration,
) -> Result<Option<Carrier>, RecoverError> {
    if !s.status.is_terminal() {
        c.broker.nak_recorded(left.queue, &s.carrier, &s.ack_subject, delay).await?;
        return Ok(None);
    }
    let ack = c.broker.recorded_ack(left.queue, &s.carrier, &s.ack_subject);
    let code = left.code;
    job_ended(left.queue, left.kind, s.status, code.name());
    let Some(raw) = c.broker.carrier_of(left.queue, left.job, &s.carrier).await? else { return Ok(None) };
    let obituary = Obituary {
        job: left.job,
        queue: left.queue,
        generation: s.generation,
        epoch: s.epoch,
        reason: code.name(),
        message: left.why,
        carrier: &s.carrier,
    };
    c.broker.bury(&c.publisher, &raw, &obituary, Pace::call(PATIENCE)).await?;
    crate::fault::point("buried");
    // An ack and not a deletion, which a worker may not do. Where the broker does not take it, because it forgot the delivery or
    // never made one, the message comes once more and is told that the job has ended.
    if let Some(ack) = ack {
        c.broker.ack(&ack).await?;
    }
    Ok(Some(raw.carrier()))
}

const LOST: &str = "the worker of the last attempt died, froze or lost its lease";

fn item(
    id: &JobId,
    epoch: u64,
    record: Option<&Record>,
    session: &SessionId,
    code: ErrorCode,
    why: &str,
) -> LostItem {
    let data = serde_json::json!({ "error_code": ErrorCode::Lost, "session": session.as_str() }).to_string();
    let data = data.strip_suffix('}').unwrap_or("{").to_owned();
    let generation = record.map_or(1, |r| r.generation);
    // A record without a usable type cannot be running; the script will then answer "not applied".
    let job_type = record.and_then(|r| TypeName::new(&r.job_type).ok());
    let receipt = job_type
        .map(|t| {
            let started = record.and_then(|r| crate::clock::iso(r.started_ms));
            let mut d = Draft::new(id, generation, &t, Status::Failed.name());
            d.error_code = Some(code);
            d.message = Some(why);
            d.started_at = started.as_deref();
            d.open_json()
        })
        .unwrap_or_else(|| "{".into());
    LostItem { id: id.to_string(), epoch, receipt, data }
}
