//! The loop guard, for a job that has a parent: too deep, too often, too many (`surety_common::domain::guard::loops`). What it
//! stops is buried with its line of jobs in the reason.

use std::{sync::Arc, time::Duration};

use surety_common::{
    domain::{
        ErrorCode, Job, fingerprint,
        guard::{
            GuardKind,
            loops::{LoopLimits, Over},
        },
    },
    reload::LiveSettings,
    store::Scope,
};

use super::ask;
use crate::{
    hand::{InHand, Settle},
    meter::Reason,
    settle::bury,
    shared::Shared,
};

/// The limits that a job is judged by. `None`: the loop guard is not for it.
fn limits(live: &LiveSettings, job: &Job) -> Option<LoopLimits> {
    // Asked of the job first: what has no parent costs nothing.
    job.lineage.as_ref()?;
    let now = live.now();
    now.guards_loop.is_for(job).then(|| now.guards_loop.limits())
}

/// Whether it is deeper than it may be.
pub(super) fn is_too_deep(live: &LiveSettings, job: &Job) -> bool {
    limits(live, job).is_some_and(|l| l.is_too_deep(job))
}

/// Where a job is counted, and the fingerprint of what it asks for. `None`: it is not counted.
pub(super) fn scope(live: &LiveSettings, job: &Job) -> Option<(Scope, String)> {
    // A firing of a schedule begins a line: there is nothing to compare it with.
    let limits = limits(live, job).filter(|_| job.root() != &job.id)?;
    let window_ms = u64::try_from(limits.window.as_millis()).unwrap_or(u64::MAX);
    let params = [limits.repeats, window_ms, limits.fan_out, 0];
    let work = fingerprint::of_work(&job.kind, &job.payload, job.key.as_deref());
    Some((Scope::new(GuardKind::Loop, "", job.root().as_str(), params), work))
}

/// Buries a job that is over a limit. One that has started before goes on: it was let pass then, and its outcome is its own.
pub(super) async fn stop(w: Arc<Shared>, p: u32, job: InHand, over: Over) {
    let decoded = &job.decoded;
    let settle = match w.c.store.record(&decoded.job.id).await {
        Ok(Some(r)) if r.generation == decoded.generation && r.attempt > 0 && !r.status.is_terminal() => {
            return ask(&w, p, job, false);
        }
        Ok(_) => {
            let why = w.live.now().guards_loop.limits().explain(over, &decoded.job);
            bury(&w, &job.held.queue, &job.held.d, decoded, ErrorCode::LoopGuard, &why).await
        }
        Err(e) => {
            tracing::warn!(job_id = %decoded.job.id, error = %e, "a job that the loop guard stops is given back");
            w.meters.deferred(&job.held.queue, Reason::StoreError);
            Settle::Nak(Duration::from_secs(1))
        }
    };
    job.held.settle(settle).await;
}
