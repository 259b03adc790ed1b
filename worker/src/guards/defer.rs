//! What becomes of a job that a guard does not let start: its record says so, then its carrier sleeps at the broker.

use std::{sync::Arc, time::Duration};

use surety_common::{
    broker::decode::Decoded,
    clock::iso_millis,
    ending::json_string,
    pace::Pace,
    store::{ClaimReply, DeferItem, DeferReply, Scope, StoreError},
};
use tokio::sync::OwnedSemaphorePermit;

use super::{Request, leave_lines};
use crate::{
    claims::refused,
    finishes::JOURNAL_PATIENCE,
    hand::{InHand, Settle},
    meter::Reason,
    shared::Shared,
};

/// Longest sleep of a job that nobody wakes, where the settings do not want longer ones. Who was promised a moment behind that is judged
/// again before: the limit may have been raised since, or be gone. It costs a delivery each time, and most moments are nearer.
const LONGEST: Duration = Duration::from_secs(600);

/// How long a guard keeps a job waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Its moment is promised (ms of the store's clock).
    Moment(u64),
    /// Its turn comes; so many are before it.
    Turn { before: u64 },
}

/// A job that may not start now.
pub(crate) struct Deferral {
    pub(crate) job: InHand,
    pub(crate) scope: Arc<Scope>,
    pub(crate) until: Until,
    /// The store's clock when the guard was asked (ms).
    pub(crate) asked_ms: u64,
}

impl Deferral {
    /// When it may be claimed, and when its carrier comes back by itself.
    fn times(&self, fallback: Duration) -> (u64, u64) {
        match self.until {
            Until::Moment(at) => (at, back_for(at, self.asked_ms, fallback)),
            Until::Turn { .. } => {
                let waited = Duration::from_millis(self.asked_ms.saturating_sub(self.job.arrival_ms));
                (self.asked_ms, self.asked_ms + sleep_ms(fallback, waited))
            }
        }
    }
}

/// When a job comes back that was promised a moment (ms): at that, or before, to be judged by the rule of then.
fn back_for(at_ms: u64, asked_ms: u64, fallback: Duration) -> u64 {
    let longest = u64::try_from(LONGEST.max(fallback).as_millis()).unwrap_or(u64::MAX);
    at_ms.min(asked_ms.saturating_add(longest))
}

/// How long a job in line sleeps unless it is woken: half as long again as it has waited. How often it was woken meanwhile says
/// nothing. (Deliveries that are used up are no loss: a reaper puts a copy in its place.)
fn sleep_ms(first: Duration, waited: Duration) -> u64 {
    u64::try_from((waited / 2).min(LONGEST).max(first).as_millis()).unwrap_or(u64::MAX)
}

/// Notes a group of jobs of one partition as deferred and lets their carriers sleep.
pub(crate) async fn commit(w: Arc<Shared>, p: u32, group: Vec<Deferral>, permit: OwnedSemaphorePermit) {
    let items: Vec<DeferItem<'_>> = group.iter().map(|d| item(&w, d)).collect();
    let deferred = w.c.store.defer(p, &items).await;
    drop(items);
    drop(permit);
    let answer = match deferred {
        Ok(answer) => answer,
        Err(e) => {
            // Its moment is promised, its place in line is taken: it comes back, and only its record does not say so.
            let is_rebuilt = matches!(e, StoreError::Rebuilding);
            tracing::warn!(jobs = group.len(), error = %e, "deferred jobs are not noted; they are given back");
            for d in group {
                let reason = if is_rebuilt { Reason::Rebuilding } else { Reason::StoreError };
                w.meters.deferred(&d.job.held.queue, reason);
                d.job.held.settle(Settle::Nak(Duration::from_secs(1))).await;
            }
            return;
        }
    };
    for (d, reply) in group.into_iter().zip(answer.results) {
        settle(&w, p, d, reply, answer.now_ms).await;
    }
    if let Err(e) = w.c.relay.publish(p, &answer.entries, Pace::call(JOURNAL_PATIENCE)).await {
        tracing::warn!(error = %e, "deferrals are not journaled; the relay does it");
    }
}

async fn settle(w: &Arc<Shared>, p: u32, d: Deferral, reply: DeferReply, now_ms: u64) {
    let (_, back_ms) = d.times(w.live.now().guards.fallback);
    let job = d.job;
    let instead = match reply {
        DeferReply::Deferred { .. } => {
            w.meters.deferred(&job.held.queue, reason(&d.scope));
            let document = &job.decoded.job;
            let member = member(&job.decoded);
            let ack_subject = job.held.d.ack_subject.to_string();
            tracing::debug!(job_id = %document.id, guard = d.scope.label, reason = d.scope.kind.reason(), until = ?d.until, "deferred");
            job.held.settle(Settle::Nak(Duration::from_millis(back_ms.saturating_sub(now_ms).max(1)))).await;
            if matches!(d.until, Until::Turn { .. }) {
                // Ordering: whoever woke it before it slept woke nobody.
                let at = d.scope.partition(w.c.store.keys().partitions());
                w.lanes.guard(at, Request::Check { member, scope: d.scope, ack_subject });
            }
            return;
        }
        DeferReply::LiveOwner { lease_ms } => ClaimReply::LiveOwner { lease_ms },
        DeferReply::NotDue { due_in_ms } => ClaimReply::NotDue { due_in_ms },
        DeferReply::SecondCarrier { recorded } => ClaimReply::SecondCarrier { recorded },
        DeferReply::Ended(e) => ClaimReply::Ended(e),
        DeferReply::StaleGeneration => ClaimReply::StaleGeneration,
        DeferReply::Expired => ClaimReply::Expired,
        DeferReply::Overdue => ClaimReply::Overdue,
        DeferReply::Unreadable => ClaimReply::Unreadable,
    };
    if matches!(d.until, Until::Turn { .. })
        && !matches!(instead, ClaimReply::SecondCarrier { .. } | ClaimReply::Unreadable)
    {
        // It does not wait for its turn, so it stands in nobody's way. (A second carrier is in line for the first one.)
        let at = d.scope.partition(w.c.store.keys().partitions());
        leave_lines(w, at, member(&job.decoded), &[(at, d.scope)], None);
    }
    let w2 = w.clone();
    w.tracker.spawn(async move { refused(&w2, p, job, instead).await });
}

fn member(decoded: &Decoded) -> Arc<str> {
    surety_common::store::guards::member(&decoded.job.id, decoded.generation).into()
}

/// What a deferral is counted as.
fn reason(scope: &Scope) -> Reason {
    use surety_common::domain::guard::GuardKind as K;
    match scope.kind {
        K::Rate => Reason::RateLimited,
        K::Concurrency => Reason::Concurrency,
        K::Lock => Reason::LockBusy,
        K::Pause => Reason::Paused,
        K::CrashLoop => Reason::CrashLoop,
        K::Breaker => Reason::CircuitOpen,
        // It stops and never defers.
        K::Loop => Reason::StoreError,
    }
}

fn item<'a>(w: &Shared, d: &'a Deferral) -> DeferItem<'a> {
    let (delivery, decoded) = (&d.job.held.d, &d.job.decoded);
    let job = &decoded.job;
    let (due_ms, back_ms) = d.times(w.live.now().guards.fallback);
    let mut data =
        serde_json::json!({ "reason": d.scope.kind.reason(), "guard": d.scope.label, "scope": d.scope.hash });
    if let Some(o) = data.as_object_mut() {
        match d.until {
            Until::Moment(at) => o.insert("until".into(), iso_millis(at).into()),
            Until::Turn { before } => o.insert("before".into(), before.into()),
        };
    }
    let claim = crate::claims::claim_item(w, &w.live.now(), &d.job);
    DeferItem {
        id: job.id.as_str(),
        queue: job.queue.as_str(),
        job_type: job.kind.as_str(),
        key: json_string(job.key.as_deref()),
        trace: &decoded.trace,
        carrier: decoded.carrier.clone(),
        ack_subject: claim.ack_subject.into_owned(),
        adopt: &d.job.adopt,
        created_ms: delivery.stored_ms,
        finish_ms: claim.finish_ms,
        max_retries: claim.max_retries,
        generation: claim.generation,
        expires_ms: claim.expires_ms,
        notify: job.requester.to_json().into_owned(),
        summary: job.summary.as_deref().unwrap_or_default(),
        due_ms,
        back_ms,
        reason: d.scope.kind.reason(),
        data: data.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_in_line_that_nobody_wakes_comes_back_seldom_and_never_an_hour_later() {
        let (minute, day) = (60_000, 24 * 3_600_000);
        let nap = |waited| sleep_ms(Duration::from_millis(minute), Duration::from_millis(waited));
        assert_eq!([nap(0), nap(10 * minute), nap(day)], [minute, 5 * minute, 10 * minute]);
        let (mut waited, mut times) = (0, 0);
        while waited < day {
            (waited, times) = (waited + nap(waited), times + 1);
        }
        assert!((100..160).contains(&times), "{times} deliveries in a day");
    }

    #[test]
    fn a_job_with_a_moment_comes_at_that_and_is_looked_at_before_where_it_is_far() {
        let minutes = |n: u64| n * 60_000;
        let back = |at, fallback| back_for(minutes(at), minutes(5), Duration::from_millis(minutes(fallback)));
        assert_eq!([back(6, 1), back(15, 1), back(16, 1)], [minutes(6), minutes(15), minutes(15)]);
        assert_eq!([back(60, 30), back(30, 30), back(5, 1)], [minutes(35), minutes(30), minutes(5)]);
    }
}
