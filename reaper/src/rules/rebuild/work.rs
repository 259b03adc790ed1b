//! One rebuild, from the closed gate to the open one. Every step may be repeated: a reaper that takes over begins at the first.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use surety_common::{
    broker::journal::{Entry, JournalFrom},
    clock::iso_millis,
    domain::{JobId, ids::SessionId},
    fault,
    known::{Fold, Known, record, said},
    pace::Pace,
    store::{Gate, GateState, Read, Restored, RestoredItem, Why},
    telemetry::metrics::reaper,
    wire::event::Event,
};

use super::bound;
use crate::{
    rule::{Context, RuleError},
    rules::sleepers,
};

/// Records of one call.
const BATCH: usize = 200;
/// Messages of jobs that are read at once.
const READS: usize = 64;
/// How long a publish of a rebuild is tried.
const PATIENCE: Pace = Pace::call(Duration::from_secs(60));

type Won = BTreeMap<u32, GateState>;

/// Makes the data sets of these partitions whole and opens their gates.
pub(crate) async fn rebuild(x: &Context, me: &str, won: &Won) -> Result<(), RuleError> {
    let started = Instant::now();
    let closed: Won =
        won.iter().filter(|(_, s)| s.gate == Gate::Closed).map(|(p, s)| (*p, s.clone())).collect();
    let (recreated, lost): (Won, Won) = closed.into_iter().partition(|(_, s)| s.why == Why::OtherJobs);
    if !lost.is_empty() {
        restore_all(x, me, &lost).await?;
    }
    for (p, state) in &recreated {
        let n = discard_carriers(x, me, *p, state).await?;
        tracing::warn!(partition = p, jobs = n, "open jobs lost their messages; each is looked for");
        x.c.store.restored(*p, me, Duration::ZERO, 0).await?;
    }
    fault::point("rebuild_restored");
    if won.values().any(|s| s.why != Why::OtherJobs) {
        sleepers::look_soon(x, won, calm(x)).await?;
    }
    for (p, state) in won {
        // Whoever ran an attempt that the journal does not know was told so by then, or has lost its trust.
        let after = if state.why == Why::OtherJobs { Duration::ZERO } else { calm(x) };
        pause(x, *p, after, |s| s.restored_for).await?;
        x.c.store.open_gate(*p, me, after).await?;
        reaper().rebuilds.with_label_values(&[state.why.name()]).inc();
        tracing::warn!(
            partition = p,
            why = state.why.name(),
            incarnation = state.incarnation,
            seconds = started.elapsed().as_secs_f64(),
            "redis is whole again: jobs are claimed from now on"
        );
    }
    Ok(())
}

/// After this time no lease of the time before is trusted by anybody.
fn calm(x: &Context) -> Duration {
    x.settings.lease.ttl + x.settings.lease.margin
}

/// Waits until the store says that so much time has passed.
async fn pause(
    x: &Context,
    p: u32,
    wanted: Duration,
    passed: impl Fn(&GateState) -> Duration,
) -> Result<(), RuleError> {
    loop {
        let so_far = passed(&x.c.store.watch_gate(p).await?);
        if so_far >= wanted {
            return Ok(());
        }
        tokio::time::sleep((wanted - so_far).min(Duration::from_secs(5))).await;
    }
}

/// What was read of the journal.
#[derive(Default)]
struct Journal {
    fold: Fold,
    /// The next message to read.
    next: u64,
    /// Highest commit counter of each partition.
    commits: BTreeMap<u32, u64>,
}

async fn restore_all(x: &Context, me: &str, lost: &Won) -> Result<(), RuleError> {
    for (p, state) in lost {
        if !state.former.is_empty() {
            publish_copy(x, *p, &state.former).await?;
        }
    }
    let started = Instant::now();
    let mut read = Journal::default();
    let from = JournalFrom::Time(bound(x, lost).await?);
    read_on(x, lost, &mut read, from).await?;
    let scanned = started.elapsed();
    let n = write(x, me, lost, &mut read.fold).await?;
    tracing::info!(
        events = read.fold.events,
        unreadable = read.fold.unreadable,
        jobs = read.fold.len(),
        records = n,
        scan_seconds = scanned.as_secs_f64(),
        restore_seconds = (started.elapsed() - scanned).as_secs_f64(),
        "the journal was read; what came late is waited for"
    );
    fault::point("rebuild_scanned");
    // By then nobody journals anything any more that counts: what a data set wrote counts as long as a lease is trusted.
    for p in lost.keys() {
        pause(x, *p, calm(x), |s| s.closed_for).await?;
    }
    for (p, state) in lost {
        let commit = read.commits.get(p).copied().unwrap_or(0);
        x.c.broker.put_barrier(&x.c.publisher, *p, &state.incarnation, commit, PATIENCE).await?;
    }
    fault::point("rebuild_fenced");
    let from = JournalFrom::Sequence(read.next);
    read_on(x, lost, &mut read, from).await?;
    let late = write(x, me, lost, &mut read.fold).await?;
    let gaps = fill_gaps(x, lost, &read.fold).await?;
    for (p, state) in lost {
        let commit = read.commits.get(p).copied().unwrap_or(0);
        x.c.store.restored(*p, me, calm(x), commit).await?;
        tracing::info!(
            partition = p,
            incarnation = state.incarnation,
            late,
            gaps,
            "restored; running attempts are compared"
        );
    }
    Ok(())
}

/// An older copy: what it still has to journal is journaled, as what it is.
async fn publish_copy(x: &Context, p: u32, former: &str) -> Result<(), RuleError> {
    let mut after = String::new();
    loop {
        let entries = x.c.store.outbox_of_copy(p, former, &after, BATCH).await?;
        let Some(last) = entries.last() else { return Ok(()) };
        after.clone_from(&last.id);
        for e in &entries {
            let message_id = format!("{former}-{p}-{}", e.id);
            let entry =
                Entry { message_id, suffix: &e.suffix, body: &e.body, ended: &e.ended, commit: e.commit };
            x.c.broker.journal_now(&x.c.publisher, &entry, PATIENCE).await?;
        }
        let ids: Vec<String> = entries.into_iter().map(|e| e.id).collect();
        x.c.store.trim(p, &ids).await?;
    }
}

/// Reads the journal from a place to its present end.
async fn read_on(x: &Context, lost: &Won, read: &mut Journal, from: JournalFrom) -> Result<(), RuleError> {
    let keys = x.c.store.keys();
    let partition = |job: &str| JobId::new(job).ok().map(|id| keys.partition(&id));
    x.c.broker
        .read_journal_messages(from, |m| {
            read.next = read.next.max(m.sequence + 1);
            if let Some((p, commit)) = m.partition.zip(Some(m.commit)) {
                let known = read.commits.entry(p).or_default();
                *known = (*known).max(commit);
            }
            if m.counts {
                read.fold.message(m.body, |job| partition(job).is_some_and(|p| lost.contains_key(&p)));
            }
        })
        .await?;
    Ok(())
}

/// Writes what was met since the last time. Returns the number of records written.
async fn write(x: &Context, me: &str, lost: &Won, fold: &mut Fold) -> Result<usize, RuleError> {
    let mut jobs: Vec<(JobId, &Known)> =
        fold.take_dirty().into_iter().filter_map(|(id, k)| Some((JobId::new(id).ok()?, k))).collect();
    // Ended ones in the order of their ends, as retention wants them; what is open first.
    jobs.sort_by_key(|(_, k)| if k.is_open() { 0 } else { k.ended_ms });
    let mut written = 0;
    for (p, state) in lost {
        let here: Vec<_> = jobs.iter().filter(|(id, _)| x.c.store.keys().partition(id) == *p).collect();
        for batch in here.chunks(BATCH) {
            written += write_batch(x, me, *p, state, batch).await?;
        }
    }
    Ok(written)
}

async fn write_batch(
    x: &Context,
    me: &str,
    p: u32,
    state: &GateState,
    batch: &[&(JobId, &Known)],
) -> Result<usize, RuleError> {
    let now = x.c.store.now_ms_of(p).await?;
    let keys: Vec<String> = batch.iter().map(|(id, _)| x.c.store.keys().job(id)).collect();
    let mut there = x.c.store.records(&keys).await?;
    let mut written = 0;
    let former = take_former(batch, &mut there);
    if !former.is_empty() {
        written += x.c.store.restore(p, me, calm(x), &former).await?;
    }
    let reads: Vec<_> = batch
        .iter()
        .zip(there)
        // What an older copy has and cannot be read is set aside by another rule, which knows the journal too.
        .filter(|((_, k), there)| match there {
            Read::Record(r) => r.rev < k.rev,
            Read::Missing => true,
            Read::Unreadable => false,
        })
        .map(|((id, k), there)| {
            let before = there.record().and_then(|r| SessionId::new(&r.session).ok());
            item(x, state, id.clone(), (*k).clone(), before, now)
        })
        .collect();
    let items: Vec<RestoredItem> = stream::iter(reads).buffered(READS).try_collect().await?;
    if !items.is_empty() {
        written += x.c.store.restore(p, me, calm(x), &items).await?;
    }
    Ok(written)
}

/// What is there of a life before the one that is known now: its record may have a higher revision, and is in the way. The
/// journal says that it was deleted, and so it is.
fn take_former(batch: &[&(JobId, &Known)], there: &mut [Read]) -> Vec<RestoredItem> {
    let mut former = Vec::new();
    for ((id, k), there) in batch.iter().zip(there) {
        let Read::Record(r) = &*there else { continue };
        if r.status.is_terminal() && k.after_ms > 0 && r.ended_ms <= k.after_ms {
            let what = Restored::Deleted { rev: r.rev + 1 };
            former.push(RestoredItem { id: id.clone(), what, before: None });
            *there = Read::Missing;
        }
    }
    former
}

/// What to write of one job. `before`: who runs it by what the store has now.
async fn item(
    x: &Context,
    state: &GateState,
    id: JobId,
    k: Known,
    before: Option<SessionId>,
    now_ms: u64,
) -> Result<RestoredItem, RuleError> {
    let said = if k.is_open() { said(&x.c, &state.jobs_created, &id, &k).await? } else { None };
    let what = match record(&k, said.as_ref(), &x.settings, now_ms) {
        Some(r) => Restored::Record(Box::new(r)),
        None => Restored::Deleted { rev: k.rev },
    };
    Ok(RestoredItem { what, id, before })
}

/// Revisions that were lost although later ones were journaled get their places, so that whoever folds the journal does not
/// wait for them.
async fn fill_gaps(x: &Context, lost: &Won, fold: &Fold) -> Result<usize, RuleError> {
    let mut n = 0;
    for (job, k) in fold.all() {
        let Ok(id) = JobId::new(job) else { continue };
        let p = x.c.store.keys().partition(&id);
        let Some(state) = lost.get(&p) else { continue };
        let mut missing = k.gaps.clone();
        if k.generation == 1 && k.first > 1 && x.c.broker.carrier_message(&k.carrier).await?.is_some() {
            // Its message is still there, so all of its events were read that there are.
            missing.extend(1..k.first);
        }
        if missing.is_empty() {
            continue;
        }
        let at = iso_millis(k.at_ms).unwrap_or_default();
        let events: Vec<Event> = missing.iter().map(|rev| gap(job, k, *rev, &at)).collect();
        let body = serde_json::to_string(&events).unwrap_or_default();
        let message_id = format!("{}-{p}-gap-{job}-{}", state.incarnation, k.rev);
        let entry = Entry { message_id, suffix: &k.queue, body: &body, ended: "", commit: 0 };
        x.c.broker.journal_now(&x.c.publisher, &entry, PATIENCE).await?;
        n += missing.len();
    }
    Ok(n)
}

fn gap(job: &str, k: &Known, rev: u64, at: &str) -> Event {
    Event {
        v: 1,
        job: job.to_owned(),
        generation: k.generation,
        rev,
        kind: "missing".to_owned(),
        at: at.to_owned(),
        queue: k.queue.to_string(),
        job_type: k.job_type.to_string(),
        key: None,
        status: k.status.name().to_owned(),
        contract: k.contract.name().to_owned(),
        attempt: 0,
        epoch: 0,
        session: None,
        carrier: None,
        trace: None,
        data: serde_json::Value::Null,
    }
}

/// `JOBS` is another stream: a sequence of the old one may be another job's by now. Records of open jobs forget their carriers.
async fn discard_carriers(x: &Context, me: &str, p: u32, state: &GateState) -> Result<usize, RuleError> {
    let mut n = 0;
    let mut after = Vec::new();
    for id in x.c.store.indexed(p).await? {
        after.push(id);
    }
    for batch in after.chunks(BATCH) {
        let keys: Vec<String> = batch.iter().map(|id| x.c.store.keys().job(id)).collect();
        let records = x.c.store.records(&keys).await?;
        let items: Vec<RestoredItem> = batch
            .iter()
            .zip(records)
            .filter_map(|(id, r)| Some((id, r.record().filter(|r| !r.status.is_terminal())?)))
            .map(|(id, r)| RestoredItem {
                id: id.clone(),
                what: Restored::NoCarrier { carrier: r.carrier },
                before: None,
            })
            .collect();
        if !items.is_empty() {
            n += x.c.store.restore(p, me, calm(x), &items).await?;
        }
    }
    tracing::debug!(
        partition = p,
        jobs_created = state.jobs_created,
        "carriers of the former stream discarded"
    );
    Ok(n)
}
