//! The crash-loop guard that every type has without a rule, and how it costs nothing while no type crashes: only abnormal ends
//! are reported to it. At half of what opens it the type is *watched*: each partition is told so, a claim of such a job is
//! answered "ask first", and from then on what ends well is known, too.

use std::collections::BTreeSet;

use crate::{
    config::Settings,
    connect::Connected,
    domain::guard::{Gate, GuardKind, gate::Trip},
    store::{GuardAct, GuardItem, GuardOutcome, Scope, WatchItem, Watched},
    wake::wake,
};

/// The guard, as the settings have it.
#[derive(Debug, Clone)]
pub struct CrashLoop {
    gate: Gate,
    except: BTreeSet<String>,
    hold_ms: u64,
}

impl CrashLoop {
    /// By these settings.
    pub fn new(settings: &Settings) -> Self {
        let s = &settings.guards;
        let hold_ms = u64::try_from(settings.lease.ttl.as_millis()).unwrap_or(u64::MAX);
        let trip = Trip::Crashes { threshold: s.crash_threshold.0, is_shared: true };
        let mut gate = Gate::new(trip, s.crash_window, s.crash_open, s.crash_longest, 1);
        gate.offer_s = u64::try_from(s.offer.as_millis().div_ceil(1000)).unwrap_or(u64::MAX);
        Self { gate, except: s.crash_except.iter().cloned().collect(), hold_ms }
    }

    /// The scope of a type; `None` where it is left alone.
    pub fn scope(&self, job_type: &str) -> Option<Scope> {
        let is_off = self.except.contains("*") || self.except.contains(job_type) || job_type.is_empty();
        (!is_off).then(|| Scope::new(GuardKind::CrashLoop, "", job_type, self.gate.params()))
    }
}

/// What was lost without its worker saying so. `member`: what the guard may have let start, which is over; "-": nothing that is known.
/// `name`: it is counted once under this name, for each type.
pub async fn lost(c: &Connected, guard: &CrashLoop, types: &BTreeSet<&str>, member: &str, name: &str) {
    let hold_ms = guard.hold_ms;
    for scope in types.iter().filter_map(|t| guard.scope(t)) {
        let act = GuardAct::Report { mark: name.into(), outcome: GuardOutcome::Crashed };
        let p = scope.partition(c.store.keys().partitions());
        let scopes = [scope];
        let item = GuardItem { act, member: member.into(), scopes: vec![0].into() };
        match c.store.guard(p, None, hold_ms, &scopes, &[item]).await {
            Ok(answer) => {
                tell(c, &scopes, &answer.watched, answer.now_ms).await;
                wake(c, p, hold_ms, &scopes, answer.woken).await;
            }
            Err(e) => {
                tracing::warn!(error = %e, "an attempt that was lost is not counted by the crash-loop guard")
            }
        }
    }
}

/// Tells every partition which types are watched, or not any more. What is not told here is told by a reaper.
pub async fn tell(c: &Connected, scopes: &[Scope], watched: &[Watched], said_ms: u64) {
    let item = |w: &Watched| {
        let scope = scopes.get(w.scope)?;
        let state = if w.until_ms == 0 { "calm" } else { "watched" };
        tracing::info!(job_type = scope.label, state, "crash-loop guard");
        Some(WatchItem { job_type: scope.label.clone(), until_ms: w.until_ms, said_ms })
    };
    let items: Vec<WatchItem> = watched.iter().filter_map(item).collect();
    if items.is_empty() {
        return;
    }
    for p in 0..c.store.keys().partitions() {
        if let Err(e) = c.store.watch(p, &items).await {
            tracing::warn!(partition = p, error = %e, "not told which types are watched; a reaper does it");
        }
    }
}
