//! From a delivery to a job in hand: decode it, find its handler. What cannot run here is handed on, or buried in the end.

use std::{sync::Arc, time::Duration};

use surety_common::{
    broker::{
        decode::{Decoded, Undecoded, decode},
        hand_on::arrival_ms,
        pull::Delivery,
    },
    domain::{ErrorCode, QueueName, Status, TypeName, text::nearest},
    fault,
};

use crate::{
    guards,
    hand::{Carried, Held, Settle, Slot},
    meter::Reason,
    pauses::Verdict,
    session::Session,
    settle::{bury, bury_undecoded},
    shared::Shared,
};

/// A job of which it is not known whether it is paused is offered again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Takes a delivery into a slot and on its way to its claim.
pub(crate) fn admit(w: &Arc<Shared>, session: &Arc<Session>, queue: &QueueName, slot: Slot, d: Delivery) {
    fault::point("pulled");
    if !w.hold(d.carrier(), &d.ack_subject) {
        // Giving it back would end the extension and burn one delivery after the other while the job runs.
        tracing::info!(carrier = %d.carrier(), delivered = d.delivered, "offered again while it is in hand");
        return;
    }
    let decoded = decode(&w.c.broker, queue, &d, &w.c.found.jobs_created);
    let held = Held { d, queue: queue.clone(), session: session.clone(), slot };
    let decoded = match decoded {
        Ok(decoded) => decoded,
        Err(u) => return apart(w, move |w| async move { undecoded(&w, held, &u).await }),
    };
    let Some(handler) = w.handlers.get(&decoded.job.kind).cloned() else {
        return apart(w, move |w| async move { unknown(&w, held, &decoded).await });
    };
    // The local half of "never twice at once" (J-05); the store has the other half.
    if w.is_running(&decoded.job.id) {
        w.meters.deferred(queue, Reason::RunningHere);
        let ttl = w.settings.lease.ttl;
        return apart(w, move |_| async move { held.settle(Settle::Nak(ttl)).await });
    }
    // It was asked for before Redis was found to be configured unsafely.
    if w.c.store.is_unfit() {
        w.meters.deferred(queue, Reason::StoreUnfit);
        return apart(w, move |_| async move { held.settle(Settle::Nak(LOOK_AGAIN)).await });
    }
    let verdict = w.pauses.judge(&decoded.job);
    if verdict == Verdict::Unknown {
        w.meters.deferred(queue, Reason::PausesUnknown);
        return apart(w, move |_| async move { held.settle(Settle::Nak(LOOK_AGAIN)).await });
    }
    let p = w.c.store.keys().partition(&decoded.job.id);
    let timeout = w.timeout(&decoded.job);
    let arrival_ms = arrival_ms(&held.d);
    let job =
        Box::new(Carried { held, decoded, arrival_ms, handler, timeout, adopt: String::new(), pass: None });
    match verdict {
        Verdict::Paused(pause) => guards::hold(w, job, &pause),
        Verdict::Free | Verdict::Unknown => guards::start(w, p, job),
    }
}

/// Rare ways have tasks of their own.
fn apart<F: Future<Output = ()> + Send + 'static>(w: &Arc<Shared>, way: impl FnOnce(Arc<Shared>) -> F) {
    w.tracker.spawn(way(w.clone()));
}

async fn undecoded(w: &Shared, held: Held, u: &Undecoded) {
    let settle = if u.refused.code == ErrorCode::UnknownVersion && !is_last_hand_on(w, &held.d) {
        tracing::info!(job_id = %u.id, reason = %u.refused, "not for this release; handed on");
        w.meters.deferred(&held.queue, Reason::NewerVersion);
        Settle::Nak(w.settings.worker.hand_on_delay)
    } else {
        bury_undecoded(w, &held.queue, &held.d, u).await
    };
    held.settle(settle).await;
}

async fn unknown(w: &Shared, held: Held, decoded: &Decoded) {
    let kind = &decoded.job.kind;
    let settle = if is_last_hand_on(w, &held.d) && !is_known_elsewhere(w, decoded).await {
        let why = format!("no worker has a handler for the type {:?}", kind.as_str());
        bury(w, &held.queue, &held.d, decoded, ErrorCode::UnknownType, &why).await
    } else {
        if w.passed.note(held.d.carrier(), &held.queue, kind) {
            let nearest = nearest(kind.as_str(), w.handlers.keys().map(TypeName::as_str));
            let hint = nearest.map(|n| format!("; did it mean {n:?}?")).unwrap_or_default();
            tracing::warn!(
                job_id = %decoded.job.id, queue = %held.queue, "type" = %kind, alert = "unknown_type",
                "no handler for this type here; its jobs are handed on, and given up in the end{hint}"
            );
        } else {
            tracing::debug!(job_id = %decoded.job.id, "type" = %kind, "no handler for this type here; handed on");
        }
        w.meters.deferred(&held.queue, Reason::NoHandler);
        Settle::Nak(w.settings.worker.hand_on_delay)
    };
    held.settle(settle).await;
}

/// Whether another worker knows what to do with a job: it tried it, or asked its guards. Where nobody can say now, perhaps.
async fn is_known_elsewhere(w: &Shared, decoded: &Decoded) -> bool {
    match w.c.store.record(&decoded.job.id).await {
        Ok(Some(r)) => {
            let is_open = r.generation == decoded.generation && !r.status.is_terminal();
            is_open && (r.attempt > 0 || r.status == Status::Deferred)
        }
        Ok(None) => false,
        Err(error) => {
            tracing::warn!(job_id = %decoded.job.id, %error, "not known whether another worker knows its type");
            true
        }
    }
}

fn is_last_hand_on(w: &Shared, d: &Delivery) -> bool {
    d.delivered >= w.settings.worker.hand_on_limit.0
}
