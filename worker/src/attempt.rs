//! One delivery, from the broker's hand back to it: decode, claim, run, finish, settle the carrier last.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use surety_common::{
    broker::{
        dead::Obituary,
        decode::{Decoded, decode},
        pull::Delivery,
    },
    clock::iso,
    domain::{ErrorCode, FailureClass, Job, QueueName, Status, text},
    ending::json_string,
    fault,
    pace::{Pace, Transient},
    store::{ClaimItem, ClaimReply, FinishItem, FinishReply, StoreError, Verdict, ops::Grant},
    telemetry::metrics::since,
    wire::receipt::Draft,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    commit::Finished,
    handler::{
        Attempt, Detail, Ended, JobContext, Stop,
        command::{FINISH_PACE, may_retry, start_delay},
        control::Reports,
    },
    meter::Reason,
    session::Session,
    settle::{bury_undecoded, dead_letter},
    shared::{AnyHandler, Shared},
    track::Track,
};

/// A repeated delivery of a job that runs is offered again after this long at least.
const SHORTEST_NAK: Duration = Duration::from_millis(100);

/// What happens to the carrier at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settle {
    /// Remove it.
    Ack,
    /// Give it back for later (zero: now).
    Nak(Duration),
    /// Leave it: the ack-wait brings it back. For everything that we are not entitled or not able to settle.
    Leave,
}

/// Handles one delivery to its end. Rare paths are boxed, so that the state of a job on the common one stays small: thousands
/// of them are in flight, and what does not fit the caches costs more than all the rest.
pub(crate) async fn handle(w: Arc<Shared>, session: Arc<Session>, queue: QueueName, d: Delivery) {
    fault::point("pulled");
    let carrier = d.carrier();
    if !w.hold(carrier, &d.ack_subject) {
        // Giving it back would end the extension and burn one delivery after the other while the job runs.
        tracing::info!(%carrier, delivered = d.delivered, "offered again while it is in hand");
        return;
    }
    let settle = process(&w, &session, &queue, &d).await;
    // Ordering: stop extending first; a `+WPI` after a nak would replace its delay.
    let ack_subject = w.release(carrier).unwrap_or(d.ack_subject);
    let sent = Instant::now();
    let result = match settle {
        Settle::Ack => w.c.broker.ack(&ack_subject).await,
        Settle::Nak(delay) => w.c.broker.nak(&ack_subject, delay).await,
        Settle::Leave => Ok(()),
    };
    since(&w.meters.ack, sent);
    if let Err(e) = result {
        tracing::warn!(%carrier, error = %e, "carrier not settled; the broker will redeliver it");
    }
    fault::point("settled");
}

async fn process(w: &Arc<Shared>, session: &Arc<Session>, queue: &QueueName, d: &Delivery) -> Settle {
    let decoded = match decode(&w.c.broker, queue, d, &w.c.found.jobs_created) {
        Ok(j) => j,
        Err(u) => {
            if u.refused.code == ErrorCode::UnknownVersion && !is_last_hand_on(w, d) {
                tracing::info!(job_id = %u.id, reason = %u.refused, "not for this release; handed on");
                w.meters.deferred(queue, Reason::NewerVersion);
                return Settle::Nak(w.settings.worker.hand_on_delay);
            }
            return Box::pin(bury_undecoded(w, queue, d, &u)).await;
        }
    };
    let Some(handler) = w.handlers.get(&decoded.job.kind).cloned() else {
        if !is_last_hand_on(w, d) {
            tracing::info!(job_id = %decoded.job.id, "type" = %decoded.job.kind, "no handler for this type here; handed on");
            w.meters.deferred(queue, Reason::NoHandler);
            return Settle::Nak(w.settings.worker.hand_on_delay);
        }
        let why = format!("no worker has a handler for the type {:?}", decoded.job.kind.as_str());
        return Box::pin(crate::settle::bury(w, queue, d, &decoded, ErrorCode::UnknownType, &why)).await;
    };
    // The local half of "never twice at once" (J-05); the store has the other half.
    if w.is_running(&decoded.job.id) {
        w.meters.deferred(queue, Reason::RunningHere);
        return Settle::Nak(w.settings.lease.ttl);
    }
    claim_and_run(w, session, queue, d, decoded, handler).await
}

fn is_last_hand_on(w: &Shared, d: &Delivery) -> bool {
    d.delivered >= w.settings.worker.hand_on_limit.0
}

async fn claim_and_run(
    w: &Arc<Shared>,
    session: &Arc<Session>,
    queue: &QueueName,
    d: &Delivery,
    decoded: Decoded,
    handler: AnyHandler,
) -> Settle {
    let p = w.c.store.keys().partition(&decoded.job.id);
    let mut adopt = String::new();
    loop {
        let item = claim_item(w, d, &decoded, adopt.clone());
        let claimed = match w.commits.claim(p, session.id.clone(), item).await {
            Ok(c) => c,
            Err(StoreError::SessionLost) => {
                session.lose("the store says that it expired");
                w.meters.deferred(queue, Reason::SessionLost);
                return Settle::Nak(Duration::ZERO);
            }
            Err(e) => {
                tracing::warn!(job_id = %decoded.job.id, error = %e, "claim failed; the job is given back");
                w.meters.deferred(queue, Reason::StoreError);
                return Settle::Nak(Duration::from_secs(1));
            }
        };
        return match claimed.reply {
            ClaimReply::Granted(grant) => Box::pin(run(w, session, p, d, decoded, handler, grant)).await,
            ClaimReply::LiveOwner { lease_ms } => {
                w.meters.deferred(queue, Reason::LiveOwner);
                Settle::Nak(Duration::from_millis(lease_ms).max(SHORTEST_NAK).min(w.c.found.ack_wait))
            }
            ClaimReply::NotDue { due_in_ms } => {
                w.meters.deferred(queue, Reason::NotDue);
                Settle::Nak(Duration::from_millis(due_in_ms.max(1)))
            }
            ClaimReply::SecondCarrier { recorded } => {
                match Box::pin(w.c.broker.carrier_message(&recorded)).await {
                    Ok(Some(_)) => {
                        tracing::info!(job_id = %decoded.job.id, recorded, "second carrier of an open job acked away");
                        Settle::Ack
                    }
                    Ok(None) if adopt.is_empty() => {
                        tracing::warn!(job_id = %decoded.job.id, recorded, "the recorded carrier is gone; this one takes its place");
                        adopt = recorded;
                        continue;
                    }
                    Ok(None) | Err(_) => {
                        w.meters.deferred(queue, Reason::OtherCarrier);
                        Settle::Nak(Duration::from_secs(1))
                    }
                }
            }
            ClaimReply::Ended(e) => {
                // The journal comes before the ack; and what failed is in the dead letters before it is removed.
                if !claimed.is_journaled {
                    return Settle::Leave;
                }
                if e.status == Status::Done {
                    return Settle::Ack;
                }
                let letter = Obituary {
                    job: &decoded.job.id,
                    queue: queue.as_str(),
                    generation: e.generation,
                    epoch: e.epoch,
                    reason: &e.code,
                    message: "see the journal",
                    carrier: &decoded.carrier,
                };
                Box::pin(dead_letter(w, d, &letter)).await
            }
            ClaimReply::StaleGeneration => Settle::Ack,
            ClaimReply::Expired => {
                let why = "it was not started by its `expires_at`";
                Box::pin(crate::settle::bury(w, queue, d, &decoded, ErrorCode::Expired, why)).await
            }
        };
    }
}

fn claim_item(w: &Shared, d: &Delivery, decoded: &Decoded, adopt: String) -> ClaimItem {
    let job = &decoded.job;
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX / 4);
    ClaimItem {
        id: job.id.to_string(),
        queue: job.queue.to_string(),
        job_type: job.kind.to_string(),
        key: json_string(job.key.as_deref()),
        trace: decoded.trace.clone(),
        carrier: decoded.carrier.clone(),
        ack_subject: w.c.broker.ack_to_record(job.queue.as_str(), &d.ack_subject),
        created_ms: d.stored_ms,
        finish_ms: ms(job.terms.finish.unwrap_or(w.settings.attempt.finish)),
        max_retries: job.retry.max_retries,
        timeout_ms: ms(w.timeout(job)),
        generation: decoded.generation,
        adopt,
        expires_ms: job.expires_at.and_then(|t| u64::try_from(t.as_millisecond()).ok()).unwrap_or(0),
    }
}

async fn run(
    w: &Arc<Shared>,
    session: &Arc<Session>,
    p: u32,
    d: &Delivery,
    decoded: Decoded,
    handler: AnyHandler,
    grant: Grant,
) -> Settle {
    let id = decoded.job.id.clone();
    let Some(stop) = w.enter(&id, grant.epoch, p) else {
        // The store granted what runs here: the former attempt was lost and is being killed. Not before it is dead.
        tracing::warn!(job_id = %id, "granted while the former attempt is still being stopped; given back");
        let item = finish_item(&decoded.job, &grant, Ended::Stopped, w, &decoded.trace);
        let mut track = Track::start(&w.meters, d, &decoded, &grant, &session.id, &handler);
        finish(w, session, p, d, item, &decoded, &mut track).await;
        return Settle::Nak(SHORTEST_NAK);
    };
    if session.is_lost() {
        stop.fence.cancel();
    }
    fault::point("claimed");
    let job = decoded.job.clone();
    let mut track = Track::start(&w.meters, d, &decoded, &grant, &session.id, &handler);
    let running = execute(w, session, p, &job, &decoded.trace, &grant, handler, stop);
    let ended = running.instrument(track.span()).await;
    track.handler_ended(&ended);
    w.finishing(&id);
    let settle = match ended {
        Ended::Fenced => {
            tracing::warn!(job_id = %id, epoch = grant.epoch, "attempt ended without a word: its lease is gone");
            Settle::Leave
        }
        ended => {
            let item = finish_item(&job, &grant, ended, w, &decoded.trace);
            finish(w, session, p, d, item, &decoded, &mut track).await
        }
    };
    w.leave(&id);
    settle
}

#[expect(clippy::too_many_arguments, reason = "the parts of one attempt, passed once")]
async fn execute(
    w: &Arc<Shared>,
    session: &Arc<Session>,
    p: u32,
    job: &Arc<Job>,
    trace: &str,
    grant: &Grant,
    handler: AnyHandler,
    stop: Stop,
) -> Ended {
    let attempt = Attempt {
        context: JobContext {
            job: job.clone(),
            attempt: grant.attempt,
            epoch: grant.epoch,
            stop: CancellationToken::new(),
            reports: Reports {
                commits: w.commits.clone(),
                partition: p,
                session: session.id.clone(),
                id: job.id.clone(),
                epoch: grant.epoch,
                fence: stop.fence.clone(),
            },
        },
        timeout: w.timeout(job),
        session: (*session.id).clone(),
        stop,
        trace: (!trace.is_empty()).then(|| trace.to_owned()),
    };
    match handler {
        AnyHandler::Rust(h) => h.run(attempt).await,
        AnyHandler::Command(h) => Box::pin(h.run(attempt)).await,
    }
}

/// The finish of an attempt: verdict with the retry budget looked at, receipt, data and detail.
fn finish_item(job: &Job, grant: &Grant, ended: Ended, w: &Shared, trace: &str) -> FinishItem {
    let started = iso(grant.started_ms);
    let receipt = |status: Status, code: Option<ErrorCode>, message: Option<&str>, ended: Option<&Ended>| {
        let mut r = Draft::new(&job.id, grant.generation, &job.kind, status.name());
        r.error_code = code;
        r.message = message;
        r.started_at = started.as_deref();
        r.trace = (!trace.is_empty()).then_some(trace);
        if let Some(Ended::Done { result, usage }) = ended {
            r.result = result.as_deref();
            r.usage = usage.as_deref();
        }
        r.open_json()
    };
    let item = |verdict, receipt, data: String, detail| FinishItem {
        id: job.id.clone(),
        epoch: grant.epoch,
        verdict,
        receipt,
        data: data.strip_suffix('}').unwrap_or("{").to_owned(),
        detail,
    };
    match &ended {
        Ended::Done { .. } => {
            item(Verdict::Done, receipt(Status::Done, None, None, Some(&ended)), "{}".into(), String::new())
        }
        Ended::Stopped | Ended::Fenced => {
            item(Verdict::Release, "{".into(), r#"{"reason":"shutdown"}"#.into(), String::new())
        }
        Ended::NotStarted { message } => {
            let delay = start_delay(w.settings.attempt.start_retry, grant.start_failures);
            let data = failure_data(ErrorCode::StartFailed, message, &Detail::default());
            let detail = failure_detail(grant, ErrorCode::StartFailed, message, &Detail::default());
            item(Verdict::StartFailed { delay }, "{".into(), data, detail)
        }
        Ended::Failed { code, class, message, detail } => {
            let random = f64::from(rand_u16()) / f64::from(u16::MAX);
            let delay =
                if may_retry(*class) { job.retry.delay_after(grant.charged + 1, random) } else { None };
            let stored = failure_detail(grant, *code, message, detail);
            if let Some(delay) = delay {
                let data = failure_data(*code, message, detail);
                return item(Verdict::Retry { code: *code, delay }, "{".into(), data, stored);
            }
            let (last, text_) = final_error(*code, *class, grant, message);
            let status = if last == ErrorCode::Timeout { Status::TimedOut } else { Status::Failed };
            item(Verdict::Fail(last), receipt(status, Some(last), Some(&text_), None), "{}".into(), stored)
        }
    }
}

/// The job's own error once no attempt follows: the attempt's where it is final or the only one, else that all failed.
fn final_error(code: ErrorCode, class: FailureClass, grant: &Grant, message: &str) -> (ErrorCode, String) {
    let message = text::cut(message, 2048);
    let is_exhausted = class == FailureClass::Retryable && grant.charged > 0 && code != ErrorCode::Timeout;
    if is_exhausted {
        let n = grant.charged + 1;
        return (
            ErrorCode::AttemptsExhausted,
            format!("all {n} attempts failed, the last with {}: {message}", code.name()),
        );
    }
    (code, message.into_owned())
}

fn failure_data(code: ErrorCode, message: &str, detail: &Detail) -> String {
    // Without the tails, which may be large: they are kept beside the record.
    let small = Detail { stdout_tail: vec![], stderr_tail: vec![], ..detail.clone() };
    let mut v = serde_json::to_value(small).unwrap_or_default();
    if let Some(o) = v.as_object_mut() {
        o.insert("error_code".into(), code.name().into());
        o.insert("message".into(), text::cut(message, 2048).into());
    }
    v.to_string()
}

fn failure_detail(grant: &Grant, code: ErrorCode, message: &str, detail: &Detail) -> String {
    let mut v = serde_json::to_value(detail).unwrap_or_default();
    if let Some(o) = v.as_object_mut() {
        o.insert("attempt".into(), grant.attempt.into());
        o.insert("epoch".into(), grant.epoch.into());
        o.insert("error_code".into(), code.name().into());
        o.insert("message".into(), text::cut(message, 4096).into());
    }
    v.to_string()
}

/// A random number for jitter; not for secrets.
fn rand_u16() -> u16 {
    (ulid::Ulid::generate().random() & 0xffff) as u16
}

/// What a job is told when its outcome could not be written for the whole budget of tries (A-05).
const WRITE_FAILED: &str = "Status update failed after retries";

/// Commits a finish and says what becomes of the carrier. Tries until it is committed, refused, or the lease is gone.
async fn finish(
    w: &Arc<Shared>,
    session: &Arc<Session>,
    p: u32,
    d: &Delivery,
    item: FinishItem,
    decoded: &Decoded,
    track: &mut Track,
) -> Settle {
    let mut item = Arc::new(item);
    let mut delays = FINISH_PACE.delays();
    let mut is_given_up = false;
    let finished = loop {
        if session.is_lost() {
            return Settle::Leave;
        }
        match w.commits.finish(p, session.id.clone(), item.clone()).await {
            Ok(f) if f.reply == FinishReply::BudgetSpent => {
                tracing::error!(job_id = %item.id, "retry refused: the budget is spent");
                item = gave_up(&item, decoded, "the retry budget is spent");
            }
            Ok(f) => break f,
            Err(e) => {
                tracing::warn!(job_id = %item.id, error = %e, "finish failed, trying again");
                let delay = delays.next_delay().unwrap_or_else(|| {
                    if !is_given_up && gives_up(item.verdict, &e) {
                        is_given_up = true;
                        tracing::error!(job_id = %item.id, error = %e, alert = "status_write_failed", "{WRITE_FAILED}");
                        item = gave_up(&item, decoded, WRITE_FAILED);
                    }
                    let limit = if is_given_up { None } else { FINISH_PACE.limit };
                    delays = Pace { limit, ..FINISH_PACE }.delays();
                    Duration::from_secs(1)
                });
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = session.lost() => return Settle::Leave,
                }
            }
        }
    };
    track.finished(item.verdict, &finished.reply);
    after_finish(w, d, &item, decoded, finished).await
}

/// Whether a finish that could not be written for its whole budget of tries becomes a failure: only an outcome that the store
/// refuses. While the store is away the lease decides; a result in hand must not turn into a failure, nor a release at
/// shutdown, nor a retry.
fn gives_up(verdict: Verdict, error: &StoreError) -> bool {
    matches!(verdict, Verdict::Done | Verdict::Fail(_)) && !error.is_transient()
}

fn gave_up(item: &FinishItem, decoded: &Decoded, why: &str) -> Arc<FinishItem> {
    let generation = decoded.generation;
    let mut r = Draft::new(&decoded.job.id, generation, &decoded.job.kind, Status::Failed.name());
    r.error_code = Some(ErrorCode::Internal);
    r.message = Some(why);
    Arc::new(FinishItem {
        verdict: Verdict::Fail(ErrorCode::Internal),
        receipt: r.open_json(),
        ..item.clone()
    })
}

async fn after_finish(
    w: &Arc<Shared>,
    d: &Delivery,
    item: &FinishItem,
    decoded: &Decoded,
    f: Finished,
) -> Settle {
    let status = match f.reply {
        FinishReply::Applied { status, .. } => status,
        FinishReply::Fenced { status, epoch } => {
            tracing::warn!(
                job_id = %item.id, epoch = item.epoch, owner = epoch, status = status.name(),
                "late result refused: the attempt does not own the job any more"
            );
            return Settle::Leave;
        }
        FinishReply::NoRecord | FinishReply::BudgetSpent => {
            tracing::error!(job_id = %item.id, reply = ?f.reply, "finish refused");
            return Settle::Leave;
        }
    };
    match (status, item.verdict) {
        (Status::Queued, _) => Settle::Nak(Duration::ZERO),
        (Status::RetryWait, Verdict::Retry { delay, .. })
        | (Status::Deferred, Verdict::StartFailed { delay }) => Settle::Nak(delay),
        // Ordering: nobody acks before the outcome is journaled; the reaper's relay and a redelivery finish it.
        _ if !f.is_journaled => Settle::Leave,
        (Status::Done, _) => Settle::Ack,
        (_, Verdict::Fail(code)) => {
            tracing::error!(job_id = %item.id, error_code = code.name(), alert = "job_failed", "job failed");
            let message = serde_json::from_str::<serde_json::Value>(&format!("{}}}", item.receipt))
                .ok()
                .and_then(|v| v.get("message").and_then(|m| m.as_str()).map(str::to_owned))
                .unwrap_or_default();
            let letter = Obituary {
                job: &item.id,
                queue: decoded.job.queue.as_str(),
                generation: decoded.generation,
                epoch: item.epoch,
                reason: code.name(),
                message: &message,
                carrier: &decoded.carrier,
            };
            Box::pin(dead_letter(w, d, &letter)).await
        }
        _ => Settle::Ack,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(charged: u32) -> Grant {
        Grant { epoch: 9, attempt: 4, charged, generation: 1, started_ms: 1, rev: 1, start_failures: 0 }
    }

    // Shows: A-05
    #[test]
    fn the_last_failure_of_a_budget_has_its_own_error() {
        let (code, text_) =
            final_error(ErrorCode::ExitCode, FailureClass::Retryable, &grant(3), "exit code 3");
        assert_eq!(code, ErrorCode::AttemptsExhausted);
        assert_eq!(text_, "all 4 attempts failed, the last with exit_code: exit code 3");
        assert_eq!(
            final_error(ErrorCode::ExitCode, FailureClass::Final, &grant(3), "x").0,
            ErrorCode::ExitCode
        );
        assert_eq!(
            final_error(ErrorCode::Timeout, FailureClass::Retryable, &grant(3), "x").0,
            ErrorCode::Timeout
        );
        assert_eq!(
            final_error(ErrorCode::Signal, FailureClass::Retryable, &grant(0), "x").0,
            ErrorCode::Signal
        );
    }

    // Shows: A-05
    #[test]
    fn only_an_outcome_that_the_store_refuses_is_given_up() {
        let (away, refused) = (StoreError::Unreachable("".into()), StoreError::Refused("".into()));
        assert!(gives_up(Verdict::Done, &refused) && gives_up(Verdict::Fail(ErrorCode::Oom), &refused));
        assert!(!gives_up(Verdict::Done, &away));
        let again = Verdict::Retry { code: ErrorCode::Oom, delay: Duration::ZERO };
        for v in
            [Verdict::Release, again, Verdict::StartFailed { delay: Duration::ZERO }, Verdict::CancelObeyed]
        {
            assert!(!gives_up(v, &refused), "{v:?}");
        }
    }

    #[test]
    fn failure_data_leaves_the_tails_out_and_the_detail_keeps_them() {
        let d = Detail { stderr_tail: vec!["boom".into()], iteration: Some(7), ..Detail::default() };
        let data = failure_data(ErrorCode::ExitCode, "m", &d);
        assert!(!data.contains("boom") && data.contains("\"iteration\":7"), "{data}");
        assert!(failure_detail(&grant(0), ErrorCode::ExitCode, "m", &d).contains("boom"));
    }
}
