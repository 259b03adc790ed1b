//! Records that cannot be read: what the journal knows of their jobs is put in their place.
//!
//! A job whose record is damaged must not run again blindly: another attempt may live, or it may have its outcome. The journal
//! has every transition of it, beside what still waits in the outbox; its message has the rest. So the record is made anew from
//! both, the bytes that could not be read are kept for a person, and everything goes on from there.

use std::collections::HashMap;

use crate::{
    broker::journal::JournalFrom,
    config::Settings,
    connect::Connected,
    domain::JobId,
    known::{Fold, record, said},
    recover::RecoverError,
    store::Record,
};

/// Times that a record could not be read before it is set aside: by then it was no accident of one reader.
pub const TRIES: u64 = 3;

/// Entries of one look at the outbox.
const PAGE: usize = 200;

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mended {
    /// Records made anew from the journal.
    pub restored: usize,
    /// Records that were only moved: the journal knows nothing of their jobs.
    pub dropped: usize,
}

/// Sets aside the records of a partition that could not be read [`TRIES`] times. A repeat after a crash goes on where it was.
/// Errors leave what was done; nothing is moved before what takes its place is known.
pub async fn mend(c: &Connected, p: u32, settings: &Settings) -> Result<Mended, RecoverError> {
    let mut bad: HashMap<JobId, Vec<u8>> = HashMap::new();
    for (id, times) in c.store.noted_unreadable(p).await? {
        match c.store.raw_if_unreadable(p, &id).await? {
            Some(raw) if times >= TRIES => drop(bad.insert(id, raw)),
            Some(_) => {}
            // Repaired or removed by somebody.
            None => c.store.forget_unreadable(p, id.as_str()).await?,
        }
    }
    let mut done = Mended::default();
    if bad.is_empty() {
        return Ok(done);
    }
    // Ordering: the bytes first. Every transition writes the record, so while they stand there no event is added.
    let fold = gather(c, p, &bad).await?;
    let now_ms = c.store.now_ms_of(p).await?;
    for (id, raw) in bad {
        let record = in_its_place(c, &id, &fold, settings, now_ms).await?;
        if !c.store.set_aside(p, &id, &raw, record.as_ref()).await? {
            continue;
        }
        crate::fault::point("record_set_aside");
        let status = record.as_ref().map_or("unknown", |r| r.status.name());
        tracing::error!(
            job_id = %id, status, rev = record.as_ref().map_or(0, |r| r.rev), alert = "record_set_aside",
            "a record that does not decode was set aside; what the journal knows of the job is in its place"
        );
        match record {
            Some(_) => done.restored += 1,
            None => done.dropped += 1,
        }
    }
    Ok(done)
}

/// What journal and outbox know of these jobs.
async fn gather(c: &Connected, p: u32, bad: &HashMap<JobId, Vec<u8>>) -> Result<Fold, RecoverError> {
    let is_bad = |job: &str| JobId::new(job).is_ok_and(|id| bad.contains_key(&id));
    // Ordering: the outbox before the journal. An entry leaves the one only after it is in the other.
    let mut waiting = Vec::new();
    let mut after = String::new();
    loop {
        let page = c.store.outbox(p, &after, u64::MAX >> 1, PAGE).await?;
        let Some(last) = page.last().map(|e| e.id.clone()) else { break };
        let fit = page.into_iter().filter(|e| e.problem.is_none());
        waiting.extend(fit.map(|e| e.body).filter(|body| bad.keys().any(|id| body.contains(id.as_str()))));
        after = last;
    }
    let mut fold = Fold::default();
    let from_start = JournalFrom::Time(0);
    c.broker
        .read_journal_messages(from_start, |m| {
            if m.counts {
                fold.message(m.body, is_bad)
            }
        })
        .await?;
    waiting.iter().for_each(|body| fold.message(body.as_bytes(), is_bad));
    Ok(fold)
}

/// The record that takes the place of one that cannot be read. `None`: the job is not known, or was deleted.
async fn in_its_place(
    c: &Connected,
    id: &JobId,
    fold: &Fold,
    settings: &Settings,
    now_ms: u64,
) -> Result<Option<Record>, RecoverError> {
    let Some(known) = fold.get(id.as_str()) else { return Ok(None) };
    let said = if known.is_open() { said(c, &c.found.jobs_created, id, known).await? } else { None };
    Ok(record(known, said.as_ref(), settings, now_ms))
}
