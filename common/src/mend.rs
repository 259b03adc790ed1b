//! Records that cannot be read: what the journal knows of their jobs is put in their place.
//!
//! A job whose record is damaged must not run again blindly: another attempt may live, or it may have its outcome. The journal
//! has every transition of it, beside what still waits in the outbox; its message has the rest. So the record is made anew from
//! both, the bytes that could not be read are kept for a person, and everything goes on from there.

use std::{collections::HashMap, time::Duration};

use crate::{
    broker::{BrokerError, decode::decode},
    connect::Connected,
    domain::{Contract, Job, JobId, QueueName, Status, retry::RetryPolicy},
    ending::json_string,
    recover::RecoverError,
    store::Record,
    wire::event::{Event, read_message},
};

/// Times that a record could not be read before it is set aside: by then it was no accident of one reader.
pub const TRIES: u64 = 3;

/// Entries of one look at the outbox.
const PAGE: usize = 200;

/// What holds where the message of a job does not say otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    pub finish: Duration,
    pub progress: Duration,
    /// How long a job may wait, once it is due, before somebody looks why.
    pub look: Duration,
}

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
pub async fn mend(c: &Connected, p: u32, defaults: &Defaults) -> Result<Mended, RecoverError> {
    let mut bad: HashMap<JobId, (Vec<u8>, Vec<Event>)> = HashMap::new();
    for (id, times) in c.store.noted_unreadable(p).await? {
        if times < TRIES {
            continue;
        }
        match c.store.raw_if_unreadable(p, &id).await? {
            Some(raw) => drop(bad.insert(id, (raw, Vec::new()))),
            // Repaired or removed by somebody.
            None => c.store.forget_unreadable(p, id.as_str()).await?,
        }
    }
    let mut done = Mended::default();
    if bad.is_empty() {
        return Ok(done);
    }
    // Ordering: the bytes first. Every transition writes the record, so while they stand there no event is added.
    gather(c, p, &mut bad).await?;
    let now_ms = c.store.now_ms_of(p).await?;
    for (id, (raw, events)) in bad {
        let job = document(c, &events).await?;
        let record = fold(events, job.as_ref(), defaults, now_ms);
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

/// Every event of these jobs: those in the journal, and those that still wait in the outbox.
async fn gather(
    c: &Connected,
    p: u32,
    bad: &mut HashMap<JobId, (Vec<u8>, Vec<Event>)>,
) -> Result<(), RecoverError> {
    let mut take = |e: Event| {
        if let Some((_, events)) = JobId::new(&e.job).ok().and_then(|id| bad.get_mut(&id)) {
            events.push(e);
        }
    };
    // Ordering: the outbox before the journal. An entry leaves the one only after it is in the other.
    let mut after = String::new();
    loop {
        let page = c.store.outbox(p, &after, u64::MAX >> 1, PAGE).await?;
        let Some(last) = page.last().map(|e| e.id.clone()) else { break };
        for entry in page.iter().filter(|e| e.problem.is_none()) {
            read_message(entry.body.as_bytes()).0.into_iter().for_each(&mut take);
        }
        after = last;
    }
    c.broker.read_journal(None, 0, take).await?;
    Ok(())
}

/// The job as its message has it, while that is there and holds one.
async fn document(c: &Connected, events: &[Event]) -> Result<Option<Stored>, BrokerError> {
    let Some(last) = events.iter().max_by_key(|e| e.rev) else { return Ok(None) };
    let (Some(carrier), Ok(queue)) = (&last.carrier, QueueName::new(&last.queue)) else { return Ok(None) };
    let Some(raw) = c.broker.carrier_message(carrier).await? else { return Ok(None) };
    let read = decode(&c.broker, &queue, &raw, &c.found.jobs_created).ok();
    Ok(read.map(|d| Stored { created_ms: raw.stored_ms, job: (*d.job).clone() }))
}

/// A job, and when its message was stored.
#[derive(Debug, Clone)]
pub struct Stored {
    pub created_ms: u64,
    pub job: Job,
}

/// The record that follows from a job's events, in any order and with copies; `None` without any that can be read.
pub fn fold(
    mut events: Vec<Event>,
    stored: Option<&Stored>,
    defaults: &Defaults,
    now_ms: u64,
) -> Option<Record> {
    events.sort_by_key(|e| e.rev);
    events.dedup_by_key(|e| e.rev);
    let last = events.last()?;
    let status = Status::ALL.into_iter().find(|s| s.name() == last.status)?;
    let contract = Contract::ALL.into_iter().find(|s| s.name() == last.contract)?;
    let is_running = matches!(status, Status::Running | Status::WaitingInput);
    let now_gen: Vec<&Event> = events.iter().filter(|e| e.generation == last.generation).collect();
    let of = |kinds: &[&str]| now_gen.iter().filter(|e| kinds.contains(&e.kind.as_str())).count();
    let newest = |kind: &str| now_gen.iter().rev().find(|e| e.kind == kind);
    let text = |e: &Event, field: &str| e.data.get(field).and_then(|v| v.as_str()).map(str::to_owned);
    let due_ms = match status {
        Status::RetryWait | Status::Deferred => {
            let said = text(last, "retry_at").or_else(|| text(last, "until"));
            said.map_or_else(|| ms(&last.at), |at| ms(&at))
        }
        _ => 0,
    };
    let started = newest("started");
    let span = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX >> 16);
    let job = stored.map(|s| &s.job);
    let created_ms = stored.map_or_else(|| now_gen.first().map_or(now_ms, |e| ms(&e.at)), |s| s.created_ms);
    let finish_by_ms = created_ms + span(job.and_then(|j| j.terms.finish).unwrap_or(defaults.finish));
    let progress = span(job.and_then(|j| j.terms.progress).unwrap_or(defaults.progress));
    let finished = newest("finished");
    let notify = finished
        .map(|e| e.data.get("notify").map(ToString::to_string).unwrap_or_default())
        .or_else(|| job.map(|j| j.requester.to_json().into_owned()))
        .unwrap_or_default();
    let promise_ms = match (status.is_terminal(), contract) {
        (true, Contract::TerminalPending) => now_ms,
        (true, _) => 0,
        (false, _) if is_running => now_ms + progress,
        (false, _) => due_ms.max(now_ms) + span(defaults.look),
    };
    let code = match finished {
        Some(e) => e.data.pointer("/receipt/error_code").and_then(|c| c.as_str()).map(str::to_owned),
        None => text(last, "error_code"),
    };
    let asked = newest("cancel_requested").map_or(0, |e| e.rev);
    Some(Record {
        status,
        contract,
        generation: last.generation,
        rev: last.rev,
        // It never falls: a live attempt has the highest.
        epoch: events.iter().map(|e| e.epoch).max().unwrap_or(last.epoch),
        attempt: last.attempt,
        charged: u32::try_from(of(&["attempt_failed", "lost"])).unwrap_or(u32::MAX),
        max_retries: job.map_or_else(RetryPolicy::default, |j| j.retry.clone()).max_retries,
        start_failures: start_failures(&now_gen),
        due_ms,
        started_ms: started.map_or(0, |e| ms(&e.at)),
        // The time limit of an attempt is in no event; its keeper has it. Nobody else ends it before the finish deadline.
        deadline_ms: if is_running { finish_by_ms } else { 0 },
        created_ms,
        finish_by_ms,
        ended_ms: finished.map_or(0, |e| ms(&e.at)),
        promise_ms,
        told: 0,
        is_cancelling: is_running && asked > started.map_or(0, |e| e.rev),
        queue: last.queue.clone(),
        job_type: last.job_type.clone(),
        key: json_string(last.key.as_deref()),
        trace: last.trace.clone().filter(|_| !status.is_terminal()).unwrap_or_default(),
        carrier: last.carrier.clone().unwrap_or_default(),
        ack_subject: String::new(),
        session: last.session.clone().filter(|_| is_running).unwrap_or_default(),
        code: code.unwrap_or_default(),
        entry: String::new(),
        notify,
        summary: job.filter(|_| !status.is_terminal()).and_then(|j| j.summary.clone()).unwrap_or_default(),
        print: String::new(),
        tell_error: String::new(),
    })
}

/// Failed starts in a row at the end of a history.
fn start_failures(events: &[&Event]) -> u32 {
    let attempts = events.iter().rev().filter(|e| e.kind != "started");
    u32::try_from(attempts.take_while(|e| e.kind == "deferred").count()).unwrap_or(u32::MAX)
}

/// Milliseconds of an event's time; 0 for what is no time.
fn ms(at: &str) -> u64 {
    at.parse::<jiff::Timestamp>().ok().and_then(|t| u64::try_from(t.as_millisecond()).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Defaults = Defaults {
        finish: Duration::from_secs(86_400),
        progress: Duration::from_secs(45),
        look: Duration::from_secs(60),
    };

    fn event(rev: u64, kind: &str, status: &str, epoch: u64, data: serde_json::Value) -> Event {
        let at = format!("2026-11-21T08:00:{rev:02}.000Z");
        let session = (kind == "started").then(|| "s1".to_owned());
        Event {
            v: 1,
            job: "a".into(),
            generation: 1,
            rev,
            kind: kind.into(),
            at,
            queue: "default".into(),
            job_type: "t".into(),
            key: Some("k".into()),
            status: status.into(),
            contract: if status == "done" { "terminal_acked" } else { "acked" }.into(),
            attempt: u32::try_from(epoch).unwrap(),
            epoch,
            session,
            carrier: Some("JOBS:7".into()),
            trace: None,
            data,
        }
    }

    fn history() -> Vec<Event> {
        let retry = serde_json::json!({ "error_code": "oom", "retry_at": "2026-11-21T08:05:00.000Z" });
        vec![
            event(1, "started", "running", 1, serde_json::Value::Null),
            event(2, "attempt_failed", "retry_wait", 1, retry),
            event(3, "started", "running", 2, serde_json::Value::Null),
            event(4, "finished", "done", 2, serde_json::json!({ "receipt": { "outcome": "done" } })),
        ]
    }

    // Shows: X-06, P7
    #[test]
    fn a_record_follows_from_its_events_at_every_step_in_any_order_and_with_copies() {
        let now = ms("2026-11-21T09:00:00Z");
        let at = |n: usize| {
            let mut events = history()[..n].to_vec();
            events.reverse();
            events.extend(history()[..1].to_vec());
            fold(events, None, &DEFAULTS, now).unwrap()
        };
        let r = at(1);
        assert_eq!((r.status, r.rev, r.epoch, r.session.as_str()), (Status::Running, 1, 1, "s1"));
        assert_eq!((r.deadline_ms, r.promise_ms), (r.finish_by_ms, now + 45_000));
        let r = at(2);
        assert_eq!((r.status, r.charged, r.code.as_str()), (Status::RetryWait, 1, "oom"));
        assert_eq!((r.due_ms, r.session.as_str()), (ms("2026-11-21T08:05:00Z"), ""));
        assert_eq!((r.promise_ms, r.deadline_ms), (now + 60_000, 0));
        let r = at(3);
        assert_eq!((r.status, r.charged, r.epoch, r.attempt), (Status::Running, 1, 2, 2));
        assert_eq!((r.carrier.as_str(), r.key.as_str()), ("JOBS:7", "\"k\""));
        let r = at(4);
        assert_eq!((r.status, r.contract, r.promise_ms), (Status::Done, Contract::TerminalAcked, 0));
        assert_eq!((r.ended_ms, r.code.as_str()), (ms("2026-11-21T08:00:04Z"), ""));
        assert_eq!(fold(Vec::new(), None, &DEFAULTS, now), None);
    }

    #[test]
    fn what_a_status_does_not_know_is_not_made_up() {
        let strange = vec![event(1, "started", "levitating", 1, serde_json::Value::Null)];
        assert_eq!(fold(strange, None, &DEFAULTS, 1), None);
    }
}
