//! What runs: workers, reapers, the outbox, clocks.

use super::{
    Finding,
    checks::{OUTBOX, REAPER, REDIS_DATA_SET, UNSERVED_QUEUE, WORKER_VERSIONS},
    facts::{DataSet, Facts, FleetFacts, LayoutFacts},
    servers,
};

/// A journal entry older than this was left by its writer and by every reaper.
const LATE_ENTRY_MS: u64 = 30_000;

pub(super) fn judge(facts: &Facts, f: &FleetFacts, out: &mut Vec<Finding>) {
    let layout = facts.nats.as_ref().ok().and_then(|n| n.layout.as_ref());
    data_sets(layout, f, out);
    outbox(facts, f, out);
    sessions(facts, f, out);
    if let Some(layout) = layout {
        unserved(layout, f, out);
    }
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
                "{missing} of {} partitions are empty, although the journal has {journaled} messages: what ran and what \
                 ended is forgotten there",
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
