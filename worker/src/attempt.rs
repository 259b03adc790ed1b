//! One attempt: from the grant to the verdict. Begin here: `intake` pulls, `claims` asks for the grant, `finishes` writes the
//! verdict and settles the carrier last.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::FutureExt;
use surety_common::{domain::ErrorCode, fault, store::ops::Grant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    announce,
    claims::SHORTEST_NAK,
    finishes::{self, Concluded},
    guards,
    hand::{InHand, Settle},
    handler::{Attempt, Ended, JobContext, Stop, control::Reports, rate::Rate},
    shared::{AnyHandler, Shared},
    track::Track,
    verdict::finish_item,
};

/// Begins an attempt that was granted. `is_inline`: its first steps are made here; a handler that is done with them, as short
/// ones are, needs no task of its own.
pub(crate) fn begin(w: &Arc<Shared>, p: u32, mut job: InHand, grant: Grant, is_inline: bool) {
    if job.pass.as_ref().is_some_and(|pass| !pass.borrowed.is_empty() || pass.is_late()) {
        let w2 = w.clone();
        w.tracker.spawn(async move { secure(&w2, p, job, grant).await });
        return;
    }
    let Some(stop) = w.enter(&job.decoded.job.id, grant.epoch, p, job.held.d.carrier()) else {
        let w2 = w.clone();
        w.tracker.spawn(async move {
            tracing::warn!(job_id = %job.decoded.job.id, "granted while the former attempt is still being stopped; given back");
            hand_back(&w2, p, job, &grant).await;
        });
        return;
    };
    if job.held.session.is_lost() {
        stop.fence.cancel();
    }
    if let Some(pass) = job.pass.as_mut() {
        guards::keep(w, pass, &stop.lock);
    }
    fault::point("claimed");
    // Boxed, so that what is spawned is moved as a pointer.
    let mut attempt = Box::pin(run(w.clone(), p, job, grant, stop));
    if !is_inline || (&mut attempt).now_or_never().is_none() {
        w.tracker.spawn(attempt);
    }
}

/// Makes sure of what the guards gave before anything runs, or gives the attempt back. Another delivery of the job may have asked
/// them, so that it is to be taken over; or the claim took so long that it may have ended.
async fn secure(w: &Arc<Shared>, p: u32, mut job: InHand, grant: Grant) {
    let session = job.held.session.id.clone();
    let Some(pass) = job.pass.as_mut() else { return begin(w, p, job, grant, false) };
    let mut secured = guards::adopt(w, &session, pass).await;
    if matches!(secured, Ok(true)) && pass.is_late() {
        secured = guards::refresh(w, &session, pass).await;
    }
    let why = match secured {
        Ok(true) if !pass.is_late() => return begin(w, p, job, grant, false),
        Ok(true) => "the store is too slow to tell".to_owned(),
        Ok(false) => "somebody else has it".to_owned(),
        Err(e) => e.to_string(),
    };
    tracing::warn!(job_id = %job.decoded.job.id, why, "what the guards gave is not to be had; given back");
    hand_back(w, p, job, &grant).await;
}

/// The store granted what runs here: the former attempt was lost and is being killed. Not before it is dead.
async fn hand_back(w: &Arc<Shared>, p: u32, job: InHand, grant: &Grant) {
    let track = Track::start(&w.meters, &job.held.d, &job.decoded, grant, &job.held.session.id, &job.handler);
    let mut c = conclude(w, job, grant, &Ended::Stopped, track);
    let settle = match finishes::alone(w, p, &mut c, None).await {
        Settle::Nak(_) => Settle::Nak(SHORTEST_NAK),
        other => other,
    };
    c.job.held.settle(settle).await;
}

async fn run(w: Arc<Shared>, p: u32, mut job: InHand, grant: Grant, stop: Stop) {
    let mut track =
        Track::start(&w.meters, &job.held.d, &job.decoded, &grant, &job.held.session.id, &job.handler);
    announce::started(&w, &job, &grant);
    let mut ended = execute(&w, p, &job, &grant, stop).instrument(track.span()).await;
    if let (Ended::Failed { code, class, .. }, true) = (&mut ended, grant.limit_ms > 0)
        && *code == ErrorCode::Timeout
    {
        // Its time limit was what was left until the finish deadline of the job.
        (*code, *class) = (ErrorCode::FinishDeadline, ErrorCode::FinishDeadline.class());
    }
    track.handler_ended(&ended);
    guards::ended(&w, &mut job, grant.epoch, &ended);
    let id = &job.decoded.job.id;
    w.finishing(id);
    if matches!(ended, Ended::Fenced) {
        tracing::warn!(job_id = %id, epoch = grant.epoch, "attempt ended without a word: its lease is gone");
        w.leave(id);
        job.held.settle(Settle::Leave).await;
        return;
    }
    let done = conclude(&w, job, &grant, &ended, track);
    w.lanes.finish(p, done);
}

async fn execute(w: &Arc<Shared>, p: u32, job: &InHand, grant: &Grant, stop: Stop) -> Ended {
    let (document, trace) = (&job.decoded.job, &job.decoded.trace);
    let session = job.held.session.id.clone();
    let attempt = Attempt {
        context: JobContext {
            job: document.clone(),
            attempt: grant.attempt,
            epoch: grant.epoch,
            locks: Arc::new(job.pass.as_ref().map(|pass| pass.locks()).unwrap_or_default()),
            stop: CancellationToken::new(),
            reports: Reports {
                groups: w.reports.clone(),
                partition: p,
                session: session.clone(),
                id: document.id.clone(),
                epoch: grant.epoch,
                progress: document.terms.progress,
                live: w.live.clone(),
                fence: stop.fence.clone(),
            },
            rate: Arc::new(Mutex::new(Rate::new(Instant::now()))),
        },
        timeout: match grant.limit_ms {
            0 => job.timeout,
            left => Duration::from_millis(left),
        },
        session,
        stop,
        trace: (!trace.is_empty()).then(|| trace.clone()),
    };
    match &job.handler {
        AnyHandler::Rust(h) => h.run(attempt).await,
        AnyHandler::Command(h) => Box::pin(h.run(attempt)).await,
    }
}

fn conclude(w: &Shared, job: InHand, grant: &Grant, ended: &Ended, track: Track) -> Concluded {
    let start_retry = w.live.now().attempt.start_retry;
    let item = finish_item(&job.decoded.job, grant, ended, start_retry, &job.decoded.trace);
    Concluded { job, item, track }
}
