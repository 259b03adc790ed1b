//! Claiming what is in hand, in groups, and what follows from each answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use surety_common::{
    broker::dead::Obituary,
    config::Settings,
    domain::{ErrorCode, Status, deadline::millis},
    ending::json_string,
    fault,
    pace::Pace,
    store::{ClaimItem, ClaimReply, OutboxEntry, StoreError, ops::Ended},
    telemetry::metrics::since,
    wire::headers,
};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    attempt,
    finishes::JOURNAL_PATIENCE,
    guards,
    hand::{InHand, Settle},
    lanes::{by_session, is_of_one},
    meter::Reason,
    postpone::later,
    settle::{bury, dead_letter},
    shared::Shared,
};

/// A repeated delivery of a job that runs is offered again after this long at least.
pub(crate) const SHORTEST_NAK: Duration = Duration::from_millis(100);
/// A job whose record cannot be read is offered again after this long.
const UNREADABLE_NAK: Duration = Duration::from_secs(1);
/// For so long the attempts of a group are begun where their grants came in; those after it get tasks of their own at once.
const INLINE: Duration = Duration::from_micros(500);

/// Jobs that have their outcome in entries that are not journaled yet.
type Unjournaled = Vec<(InHand, Ended)>;

/// Claims a group of jobs of one partition and begins the attempts that were granted.
pub(crate) async fn claim(w: Arc<Shared>, p: u32, jobs: Vec<InHand>, permit: OwnedSemaphorePermit) {
    let mut later: Vec<(Vec<OutboxEntry>, Unjournaled)> = Vec::with_capacity(1);
    let now = w.live.now();
    let mut groups = by_session(jobs, |j| &j.held.session);
    while let Some(jobs) = groups.pop() {
        let Some(session) = jobs.first().map(|j| j.held.session.clone()) else { continue };
        let items: Vec<_> = jobs.iter().map(|j| claim_item(&w, &now, j)).collect();
        let asked = Instant::now();
        let claimed = w.c.store.claim(p, &session.id, now.worker.outbox_cap.0, &items).await;
        since(&w.meters.claim, asked);
        drop(items);
        match claimed {
            Ok(answer) => {
                fault::point("claim_committed");
                later.push((answer.entries, begin(&w, p, jobs, answer.results)));
            }
            Err(e) if is_of_one(&e, jobs.len()) => groups.extend(jobs.into_iter().map(|j| vec![j])),
            Err(StoreError::SessionLost) => {
                session.lose("the store says that it expired");
                for j in jobs {
                    w.meters.deferred(&j.held.queue, Reason::SessionLost);
                    j.held.settle(Settle::Nak(Duration::ZERO)).await;
                }
            }
            Err(StoreError::Rebuilding) => {
                tracing::debug!(jobs = jobs.len(), "the store is being rebuilt; the jobs are given back");
                for j in jobs {
                    w.meters.deferred(&j.held.queue, Reason::Rebuilding);
                    j.held.settle(Settle::Nak(w.settings.lease.margin)).await;
                }
            }
            Err(e) => {
                tracing::warn!(jobs = jobs.len(), error = %e, "claim failed; the jobs are given back");
                for j in jobs {
                    w.meters.deferred(&j.held.queue, Reason::StoreError);
                    j.held.settle(Settle::Nak(Duration::from_secs(1))).await;
                }
            }
        }
    }
    drop(permit);
    // A start waits for no journal; the ack of an outcome that was found unjournaled does.
    for (entries, waiting) in later {
        let is_journaled = w.c.relay.publish(p, &entries, Pace::call(JOURNAL_PATIENCE)).await.is_ok();
        for (job, ended) in waiting {
            let w2 = w.clone();
            w.tracker.spawn(async move { has_ended(&w2, job, ended, is_journaled).await });
        }
    }
}

pub(crate) fn claim_item<'a>(w: &Shared, now: &Settings, j: &'a InHand) -> ClaimItem<'a> {
    let (d, decoded) = (&j.held.d, &j.decoded);
    let job = &decoded.job;
    ClaimItem {
        id: job.id.as_str().into(),
        queue: job.queue.as_str().into(),
        job_type: job.kind.as_str().into(),
        key: json_string(job.key.as_deref()).into(),
        trace: decoded.trace.as_str().into(),
        carrier: decoded.carrier.as_str().into(),
        ack_subject: w.c.broker.ack_to_record(job.queue.as_str(), &d.ack_subject).into(),
        created_ms: d.stored_ms,
        finish_ms: millis(job.terms.finish.unwrap_or(now.attempt.finish)),
        max_retries: job.retry.max_retries,
        timeout_ms: millis(j.timeout),
        generation: decoded.generation,
        adopt: j.adopt.as_str().into(),
        ack_ms: short(job.terms.ack.unwrap_or(now.contract.ack)),
        progress_ms: short(job.terms.progress.unwrap_or(now.contract.progress)),
        requester: &job.requester,
        summary: job.summary.as_deref().unwrap_or_default().into(),
        has_asked: j.pass.as_ref().is_some_and(|p| p.has_asked),
        expires_ms: job.expires_at.and_then(|t| u64::try_from(t.as_millisecond()).ok()).unwrap_or(0),
    }
}

/// Milliseconds of a promise; seven weeks are as good as for ever.
pub(crate) fn short(d: Duration) -> u32 {
    u32::try_from(d.as_millis()).unwrap_or(u32::MAX)
}

/// Begins what was granted; gives everything else its task, but for what must wait for the journal, which is given back.
fn begin(w: &Arc<Shared>, p: u32, jobs: Vec<InHand>, replies: Vec<ClaimReply>) -> Unjournaled {
    let mut unjournaled = Vec::new();
    let began = Instant::now();
    for (job, reply) in jobs.into_iter().zip(replies) {
        match reply {
            ClaimReply::Granted(grant) => attempt::begin(w, p, job, grant, began.elapsed() < INLINE),
            ClaimReply::Ended(e) if !e.is_journaled => unjournaled.push((job, e)),
            reply => {
                let w2 = w.clone();
                w.tracker.spawn(async move { refused(&w2, p, job, reply).await });
            }
        }
    }
    unjournaled
}

/// What becomes of a job whose claim was not granted.
pub(crate) async fn refused(w: &Arc<Shared>, p: u32, mut job: InHand, reply: ClaimReply) {
    let id = job.decoded.job.id.clone();
    let settle = match reply {
        ClaimReply::LiveOwner { lease_ms } => {
            w.meters.deferred(&job.held.queue, Reason::LiveOwner);
            Settle::Nak(Duration::from_millis(lease_ms).max(SHORTEST_NAK).min(w.c.found.ack_wait))
        }
        ClaimReply::NotDue { due_in_ms } => {
            w.meters.deferred(&job.held.queue, Reason::NotDue);
            later(w, &job.held.d, &job.decoded, 0, Duration::from_millis(due_in_ms.max(1))).await
        }
        ClaimReply::SecondCarrier { recorded }
            if job.adopt != recorded && takes_place_of(&job, &recorded) =>
        {
            job.adopt = recorded;
            return guards::start(w, p, job);
        }
        ClaimReply::SecondCarrier { recorded } => match w.c.broker.carrier_message(&recorded).await {
            Ok(Some(_)) => {
                tracing::info!(job_id = %id, recorded, "second carrier of an open job acked away");
                Settle::Ack
            }
            Ok(None) if job.adopt.is_empty() => {
                tracing::warn!(job_id = %id, recorded, "the recorded carrier is gone; this one takes its place");
                job.adopt = recorded;
                return guards::start(w, p, job);
            }
            Ok(None) | Err(_) => {
                w.meters.deferred(&job.held.queue, Reason::OtherCarrier);
                Settle::Nak(Duration::from_secs(1))
            }
        },
        ClaimReply::Ended(e) => return has_ended(w, job, e, true).await,
        ClaimReply::Expired => {
            let why = "it was not started by its `expires_at`";
            bury(w, &job.held.queue, &job.held.d, &job.decoded, ErrorCode::Expired, why).await
        }
        ClaimReply::Overdue => {
            let why = "it was not ended by its finish deadline";
            bury(w, &job.held.queue, &job.held.d, &job.decoded, ErrorCode::FinishDeadline, why).await
        }
        ClaimReply::StaleGeneration => Settle::Ack,
        ClaimReply::AskFirst { for_ms } => {
            return guards::ask_first(w, p, job, Duration::from_millis(for_ms));
        }
        // It may run, or have ended: nobody starts it before a reaper has set the record aside.
        ClaimReply::Unreadable => {
            w.meters.deferred(&job.held.queue, Reason::Unreadable);
            Settle::Nak(UNREADABLE_NAK)
        }
        // Granted jobs do not come here.
        ClaimReply::Granted(_) => Settle::Leave,
    };
    job.held.settle(settle).await;
}

/// Whether a message is a copy that the reaper made, because the recorded carrier is delivered to nobody any more.
fn takes_place_of(job: &InHand, recorded: &str) -> bool {
    job.held.d.header(headers::CARRIER) == Some(recorded)
}

/// A delivery of a job that has its outcome. The journal comes before the ack; and what failed is in the dead letters before
/// it is removed.
async fn has_ended(w: &Shared, job: InHand, e: Ended, is_journaled: bool) {
    let settle = match (is_journaled, e.status) {
        (false, _) => Settle::Leave,
        (true, Status::Done) => Settle::Ack,
        (true, _) => {
            let letter = Obituary {
                job: &job.decoded.job.id,
                queue: job.held.queue.as_str(),
                generation: e.generation,
                epoch: e.epoch,
                reason: &e.code,
                message: "see the journal",
                carrier: &job.decoded.carrier,
            };
            dead_letter(w, &job.held.d, &letter).await
        }
    };
    job.held.settle(settle).await;
}
