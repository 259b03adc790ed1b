//! Finishing attempts, in groups: the store, then the journal, then the carriers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use surety_common::{
    broker::{BrokerError, dead::Obituary},
    domain::{ErrorCode, Status, ids::SessionId},
    fault,
    pace::Pace,
    store::{FinishItem, FinishReply, StoreError, Verdict},
    telemetry::metrics::since,
};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    hand::{InHand, Settle},
    lanes::{by_session, is_of_one},
    postpone::later,
    settle::dead_letter,
    shared::Shared,
    track::Track,
    verdict::{gave_up, gives_up},
};

/// How long a journal entry is published by us before it is left to the relay of the reaper.
pub(crate) const JOURNAL_PATIENCE: Duration = Duration::from_secs(30);

/// How long a finish is tried before its error is reported.
const FINISH_PACE: Pace = Pace {
    first: Duration::from_millis(100),
    most: Duration::from_secs(2),
    limit: Some(Duration::from_secs(8)),
};

/// What a job is told when its outcome could not be written for the whole budget of tries.
const WRITE_FAILED: &str = "Status update failed after retries";

/// An attempt that has ended, with what the store is to be told.
pub(crate) struct Concluded {
    pub(crate) job: InHand,
    pub(crate) item: FinishItem,
    pub(crate) track: Track,
}

/// Finishes a group of attempts of one partition and settles their carriers.
pub(crate) async fn finish(w: Arc<Shared>, p: u32, done: Vec<Concluded>, permit: OwnedSemaphorePermit) {
    let mut later = Vec::with_capacity(1);
    let mut groups = by_session(done, |c| &c.job.held.session);
    while let Some(mut done) = groups.pop() {
        let Some(session) = done.first().map(|c| c.job.held.session.clone()) else { continue };
        if session.is_lost() {
            for c in done {
                over(&w, c, Settle::Leave).await;
            }
            continue;
        }
        let items: Vec<&FinishItem> = done.iter().map(|c| &c.item).collect();
        let asked = Instant::now();
        let finished = w.c.store.finish(p, &session.id, &items).await;
        since(&w.meters.finish, asked);
        drop(items);
        match finished {
            Ok(answer) => {
                fault::point("finish_committed");
                // Its slots are free as soon as its outcome is committed: the next one need not wait for the journal.
                done.iter_mut().for_each(|c| drop(c.job.pass.take()));
                later.push((answer.entries, done, answer.results));
            }
            Err(e) if is_of_one(&e, done.len()) => groups.extend(done.into_iter().map(|c| vec![c])),
            Err(e) => {
                for c in done {
                    again(&w, p, c, Some(e.clone()));
                }
            }
        }
    }
    // Ordering: the next call may start; these carriers wait until the journal has the outcomes.
    drop(permit);
    for (entries, done, replies) in later {
        let sent = Instant::now();
        let published = w.c.relay.publish(p, &entries, Pace::call(JOURNAL_PATIENCE)).await;
        since(&w.meters.journal, sent);
        if matches!(published, Err(BrokerError::Outlived)) {
            // Their data set was lost with what they committed: nothing of it was decided. The next one is told the same.
            for c in done {
                again(&w, p, c, Some(StoreError::Rebuilding));
            }
            continue;
        }
        fault::point("finish_journaled");
        settle(&w, p, done, replies, published.is_ok()).await;
    }
}

/// Settles the carriers of a group. What is simply done is acked here; the rest gets tasks.
async fn settle(
    w: &Arc<Shared>,
    p: u32,
    done: Vec<Concluded>,
    replies: Vec<FinishReply>,
    is_journaled: bool,
) {
    let is_plain =
        |r: &FinishReply| is_journaled && matches!(r, FinishReply::Applied { status: Status::Done, .. });
    let plain = || done.iter().zip(&replies).filter(|(_, r)| is_plain(r)).map(|(c, _)| c);
    w.leave_all(plain().map(|c| &c.item.id));
    for (mut c, reply) in done.into_iter().zip(replies) {
        if !matches!(reply, FinishReply::BudgetSpent | FinishReply::Unreadable) {
            c.track.finished(c.item.verdict, &reply);
        }
        if is_plain(&reply) {
            c.job.held.settle(Settle::Ack).await;
        } else if reply == FinishReply::Unreadable {
            // It waits until a reaper has put another record in its place.
            let why = StoreError::unreadable(c.item.id.as_str());
            again(w, p, c, Some(why));
        } else if reply == FinishReply::BudgetSpent {
            tracing::error!(job_id = %c.item.id, "retry refused: the budget is spent");
            let item = gave_up(&c.item, &c.job.decoded, "the retry budget is spent");
            again(w, p, Concluded { item, ..c }, None);
        } else {
            let w2 = w.clone();
            w.tracker.spawn(async move {
                let settle = verdict_of(&w2, &c, &reply, is_journaled).await;
                over(&w2, c, settle).await;
            });
        }
    }
}

/// The end of an attempt that this worker had in its running set.
async fn over(w: &Shared, c: Concluded, settle: Settle) {
    w.leave(&c.item.id);
    c.job.held.settle(settle).await;
}

/// Tries a finish alone until it is committed, refused, or the lease is gone. `why`: the error of the try before.
fn again(w: &Arc<Shared>, p: u32, mut c: Concluded, why: Option<StoreError>) {
    let w2 = w.clone();
    w.tracker.spawn(async move {
        let settle = alone(&w2, p, &mut c, why).await;
        over(&w2, c, settle).await;
    });
}

/// Finishes one attempt, and says what becomes of its carrier.
pub(crate) async fn alone(w: &Shared, p: u32, c: &mut Concluded, mut why: Option<StoreError>) -> Settle {
    let session = c.job.held.session.clone();
    let mut delays = FINISH_PACE.delays();
    let mut is_given_up = false;
    loop {
        if session.is_lost() {
            return Settle::Leave;
        }
        if let Some(e) = why.take() {
            tracing::warn!(job_id = %c.item.id, error = %e, "finish failed, trying again");
            // A rebuild takes longer than any other failure, and ends.
            let waits = matches!(e, StoreError::Rebuilding).then_some(w.settings.lease.renewal);
            let delay = waits.or_else(|| delays.next_delay()).unwrap_or_else(|| {
                if !is_given_up && gives_up(c.item.verdict, &e) {
                    is_given_up = true;
                    tracing::error!(job_id = %c.item.id, error = %e, alert = "status_write_failed", "{WRITE_FAILED}");
                    c.item = gave_up(&c.item, &c.job.decoded, WRITE_FAILED);
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
        match finish_one(w, p, &session.id, &c.item).await {
            Ok((FinishReply::BudgetSpent, _)) => {
                tracing::error!(job_id = %c.item.id, "retry refused: the budget is spent");
                c.item = gave_up(&c.item, &c.job.decoded, "the retry budget is spent");
            }
            Ok((FinishReply::Unreadable, _)) => {
                why = Some(StoreError::unreadable(c.item.id.as_str()));
            }
            Ok((reply, is_journaled)) => {
                c.track.finished(c.item.verdict, &reply);
                return verdict_of(w, c, &reply, is_journaled).await;
            }
            Err(e) => why = Some(e),
        }
    }
}

/// Commits one finish. `true`: its journal entry is stored, so the carrier may be acked.
/// Errors: `Rebuilding` also where it was committed to a data set that was lost before the journal had it.
pub(crate) async fn finish_one(
    w: &Shared,
    p: u32,
    session: &SessionId,
    item: &FinishItem,
) -> Result<(FinishReply, bool), StoreError> {
    let answer = w.c.store.finish(p, session, &[item]).await?;
    fault::point("finish_committed");
    let published = w.c.relay.publish(p, &answer.entries, Pace::call(JOURNAL_PATIENCE)).await;
    if matches!(published, Err(BrokerError::Outlived)) {
        return Err(StoreError::Rebuilding);
    }
    fault::point("finish_journaled");
    let reply = answer.results.into_iter().next();
    Ok((reply.ok_or_else(|| StoreError::Decode("the reply has no result".into()))?, published.is_ok()))
}

/// What becomes of the carrier after a finish.
async fn verdict_of(w: &Shared, c: &Concluded, reply: &FinishReply, is_journaled: bool) -> Settle {
    let (item, decoded) = (&c.item, &c.job.decoded);
    let status = match reply {
        FinishReply::Applied { status, .. } => *status,
        FinishReply::Fenced { status, epoch } => {
            tracing::warn!(
                job_id = %item.id, epoch = item.epoch, owner = epoch, status = status.name(),
                "late result refused: the attempt does not own the job any more"
            );
            return Settle::Leave;
        }
        // Its outcome was decided and deleted since: nothing is left to be said.
        FinishReply::NoRecord => {
            tracing::info!(job_id = %item.id, epoch = item.epoch, "late result of a job whose record is gone");
            return Settle::Leave;
        }
        FinishReply::BudgetSpent | FinishReply::Unreadable => {
            tracing::error!(job_id = %item.id, ?reply, "finish refused");
            return Settle::Leave;
        }
    };
    match (status, item.verdict) {
        (Status::Queued, _) => Settle::Nak(Duration::ZERO),
        (Status::RetryWait, Verdict::Retry { delay, .. })
        | (Status::Deferred, Verdict::StartFailed { delay }) => {
            later(w, &c.job.held.d, decoded, item.epoch, delay).await
        }
        // Ordering: nobody acks before the outcome is journaled; the reaper's relay and a redelivery finish it.
        _ if !is_journaled => Settle::Leave,
        (_, verdict) if status != Status::Done => {
            let code = match verdict {
                Verdict::Fail(code) => {
                    tracing::error!(job_id = %item.id, error_code = code.name(), alert = "job_failed", "job failed");
                    code
                }
                _ => ErrorCode::Cancelled,
            };
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
            dead_letter(w, &c.job.held.d, &letter).await
        }
        _ => Settle::Ack,
    }
}
