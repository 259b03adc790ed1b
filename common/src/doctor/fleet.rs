//! What runs: workers, reapers, the outbox, clocks.

use super::{
    Finding,
    checks::{
        CLOCKS, OUTBOX, REAPER, REDIS_DATA_SET, REDIS_KEY_TYPE, UNKNOWN_TYPE, UNSERVED_QUEUE, WORKER_READY,
        WORKER_VERSIONS,
    },
    facts::{DataSet, Facts, FleetFacts, LayoutFacts, NatsFacts},
    servers,
};
use std::time::Duration;

use crate::{clock::format_span, store::unhandled};

/// A journal entry older than this was left by its writer and by every reaper.
const LATE_ENTRY_MS: u64 = 30_000;
/// A clock that is behind by less was corrected and not set.
const SET_BACK_MS: u64 = 2_000;

pub(super) fn judge(facts: &Facts, f: &FleetFacts, out: &mut Vec<Finding>) {
    let layout = facts.nats.as_ref().ok().and_then(|n| n.layout.as_ref());
    data_sets(layout, f, out);
    if f.set_back_ms > SET_BACK_MS {
        out.push(CLOCKS.warn(
            "redis",
            format!(
                "its clock is {} behind what it was: it was set back. Until it has caught up, retries, deadlines and the end of dead \
                 workers come later by as much; nothing comes earlier",
                format_span(Duration::from_secs(f.set_back_ms / 1000))
            ),
            "run a time service (chrony, systemd-timesyncd) that slews instead of stepping",
        ));
    }
    for what in &f.mistyped {
        out.push(REDIS_KEY_TYPE.must_fix("redis", what.clone(), "rename that key, and look who wrote it"));
    }
    outbox(facts, f, out);
    sessions(facts, f, out);
    if let Some(layout) = layout {
        unserved(layout, f, out);
        unknown_types(layout, f, out);
    }
    not_ready(f, out);
    if let Some(d) = &f.state_disk {
        servers::disk(d, out);
    }
    let nats = facts.nats.as_ref().ok().and_then(|n| n.clock);
    let redis = facts.redis.as_ref().and_then(|r| r.as_ref().ok());
    // Of several the one that is furthest from this host's.
    let clocks = redis.into_iter().flat_map(|r| &r.servers).filter_map(|s| s.clock);
    servers::clocks(nats, clocks.max_by_key(|c| c.ms.abs()), out);
}

fn data_sets(layout: Option<&LayoutFacts>, f: &FleetFacts, out: &mut Vec<Finding>) {
    let n = |kind: DataSet| f.data_sets.iter().filter(|d| **d == kind).count();
    let journaled = layout.map_or(0, |l| l.journaled);
    let lost = "bring its data back from the append-only file or a copy; what follows otherwise is in docs/guarantees.md, \
                \"Redis loses its data\"";
    if n(DataSet::OfAnotherBroker) > 0 {
        out.push(REDIS_DATA_SET.must_fix(
            "redis",
            "its records belong to another JOBS stream: processes refuse to start",
            "check both addresses and the namespace; if NATS was made anew, use an empty Redis",
        ));
    }
    let missing = n(DataSet::Missing);
    if missing > 0 && (missing < f.data_sets.len() || journaled > 0) {
        out.push(REDIS_DATA_SET.must_fix(
            "redis",
            format!(
                "{missing} of {} partitions are empty, although the journal has {journaled} messages: nothing starts there \
                 until a reaper has rebuilt them",
                f.data_sets.len()
            ),
            lost,
        ));
    }
}

fn outbox(facts: &Facts, f: &FleetFacts, out: &mut Vec<Finding>) {
    let cap = facts.settings.worker.outbox_cap.0;
    let fix = "run `surety-reaper`, which publishes them, and look for `journal_entry_refused` in its log";
    for (p, (entries, oldest_ms)) in f.outbox.iter().enumerate() {
        let place = format!("outbox of partition {p}");
        if *entries > 0 && *entries >= cap {
            let what = format!("{entries} journal entries wait, as many as may: nothing is claimed any more");
            out.push(OUTBOX.must_fix(&place, what, fix));
        } else if *oldest_ms > LATE_ENTRY_MS || entries.saturating_mul(2) > cap {
            let what = format!("{entries} journal entries wait, the oldest for {} s", oldest_ms / 1000);
            out.push(OUTBOX.warn(&place, what, fix));
        }
    }
}

fn sessions(facts: &Facts, f: &FleetFacts, out: &mut Vec<Finding>) {
    // A reaper acts within a tick; a busy one within some.
    let tick = u64::try_from(facts.settings.reaper.tick.as_millis()).unwrap_or(u64::MAX);
    let late = f.fleet.now_ms.saturating_sub(tick.saturating_mul(5).max(10_000));
    let left: Vec<_> = f.fleet.sessions.iter().filter(|s| s.expires_ms < late).collect();
    if !left.is_empty() {
        let attempts: usize = left.iter().map(|s| s.held.len()).sum();
        out.push(REAPER.warn(
            "reaper",
            format!(
                "{} dead workers were not taken back; {attempts} of their attempts hang: no reaper runs, or it cannot act",
                left.len()
            ),
            "run `surety-reaper` (one is enough), or look into its log",
        ));
    }
    // Where nothing runs and nothing waits there is nothing to look after yet.
    if facts.nats.as_ref().is_ok_and(|n| n.reaper_answers == Ok(false)) && left.is_empty() {
        let held = |n: &NatsFacts| {
            n.layout.as_ref().map_or(0, |l| l.lanes.iter().map(|l| l.state.waiting + l.state.held).sum())
        };
        let is_needed = f.fleet.alive().next().is_some() || facts.nats.as_ref().map_or(0, held) > 0;
        let what = "none answers: jobs of dead workers hang, deadlines pass unnoticed, and nobody answers requests about jobs";
        let fix = "run `surety-reaper` (one is enough, two are better)";
        out.push(if is_needed { REAPER.warn("reaper", what, fix) } else { REAPER.note("reaper", what, fix) });
    }
    let here = env!("CARGO_PKG_VERSION");
    let mut others: Vec<&str> =
        f.fleet.alive().filter_map(|s| s.info.as_ref()?.version.as_deref()).filter(|v| *v != here).collect();
    others.sort_unstable();
    others.dedup();
    if !others.is_empty() {
        let what = format!("some are of release {}, this command is of {here}", others.join(", "));
        out.push(WORKER_VERSIONS.note("workers", what, "fine during an upgrade; finish it"));
    }
}

fn unserved(layout: &LayoutFacts, f: &FleetFacts, out: &mut Vec<Finding>) {
    for q in &layout.queues {
        let waiting: u64 = layout.lanes.iter().filter(|l| l.queue == *q).map(|l| l.state.waiting).sum();
        // A session that does not say what it serves may serve anything.
        let serves = |s: &crate::store::FleetSession| {
            s.info.as_ref().is_none_or(|i| i.serves(q.as_str()) != Some(false))
        };
        if waiting > 0 && !f.fleet.alive().any(serves) {
            out.push(UNSERVED_QUEUE.warn(
                &format!("queue {q}"),
                format!("{waiting} jobs wait and no live worker pulls from it"),
                "start `surety-worker`, or add the queue to `worker.queues` of one that runs",
            ));
        }
    }
}

/// What live workers say that they lack.
fn not_ready(f: &FleetFacts, out: &mut Vec<Finding>) {
    for s in f.fleet.alive() {
        let Some(info) = &s.info else { continue };
        let why = info.not_ready.as_deref().unwrap_or_default();
        if why.is_empty() {
            continue;
        }
        let host = info.host.as_deref().unwrap_or("?");
        let pid = info.pid.map_or_else(|| "?".to_owned(), |p| p.to_string());
        out.push(WORKER_READY.warn(
            &format!("worker {} (process {pid} on {host})", s.id),
            format!("it says that it is not ready: {}", why.join("; ")),
            "what it says; its `/readyz` and its log say more",
        ));
    }
}

/// Jobs that go from worker to worker, because none knows their type.
fn unknown_types(layout: &LayoutFacts, f: &FleetFacts, out: &mut Vec<Finding>) {
    let infos = f.fleet.alive().filter_map(|s| s.info.as_ref());
    for q in &layout.queues {
        for u in unhandled(infos.clone(), q.as_str()) {
            out.push(UNKNOWN_TYPE.warn(
                &format!("queue {q}"),
                u.to_string(),
                "correct the type, or start a worker with that handler, before `worker.hand_on_limit` deliveries are used up",
            ));
        }
    }
}
