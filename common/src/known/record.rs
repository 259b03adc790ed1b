//! From what the journal knows of a job to the record that it gets. What only the job's message says is read from there;
//! where that is gone, the next claim knows, or nobody has to. Pure, but for reading the message.

use std::time::Duration;

use super::fold::Known;
use crate::{
    broker::{BrokerError, decode::decode},
    config::Settings,
    connect::Connected,
    domain::{
        Contract, JobId, QueueName, RetryPolicy,
        deadline::{RECEIPT_WITHIN, millis},
    },
    store::Record,
};

/// What the message of a job says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Said {
    /// When it was stored, by the clock of the stream.
    pub created_ms: u64,
    pub max_retries: u32,
    pub finish: Option<Duration>,
    pub timeout: Option<Duration>,
    pub progress: Option<Duration>,
    pub ack: Option<Duration>,
    pub summary: String,
    /// [`crate::domain::Requester`] as JSON, or empty.
    pub notify: String,
}

/// Reads the message that carries a job. `jobs_created`: when the stream of jobs was made. `None`: it is gone, or is another
/// job's, or none.
pub async fn said(
    c: &Connected,
    jobs_created: &str,
    id: &JobId,
    k: &Known,
) -> Result<Option<Said>, BrokerError> {
    let Ok(queue) = QueueName::new(&k.queue) else { return Ok(None) };
    let Some(message) = c.broker.carrier_message(&k.carrier).await? else { return Ok(None) };
    let Ok(d) = decode(&c.broker, &queue, &message, jobs_created) else { return Ok(None) };
    if d.job.id != *id {
        return Ok(None);
    }
    Ok(Some(Said {
        created_ms: message.stored_ms,
        max_retries: d.job.retry.max_retries,
        finish: d.job.terms.finish,
        timeout: d.job.terms.timeout,
        progress: d.job.terms.progress,
        ack: d.job.terms.ack,
        summary: d.job.summary.clone().unwrap_or_default(),
        notify: d.job.requester.to_json().into_owned(),
    }))
}

/// The record of a job. `now_ms`: the store's clock. `None`: it was deleted.
pub fn record(k: &Known, said: Option<&Said>, s: &Settings, now_ms: u64) -> Option<Record> {
    if k.is_deleted {
        return None;
    }
    let is_running = k.status.is_running();
    let finish = said.and_then(|d| d.finish).unwrap_or(s.attempt.finish);
    let created_ms = said.map_or(0, |d| d.created_ms);
    // Not known: never too early.
    let since = if created_ms > 0 { created_ms } else { now_ms.max(k.due_ms) };
    let finish_by_ms = since.saturating_add(millis(finish));
    let within = |own: Option<Duration>, default: Duration| now_ms + millis(own.unwrap_or(default));
    let promise_ms = match k.contract {
        Contract::TerminalPending => now_ms + millis(RECEIPT_WITHIN),
        Contract::TerminalAcked | Contract::TerminalFailed => 0,
        _ if !is_running => now_ms.max(k.due_ms) + millis(s.reaper.carrier_check),
        Contract::Created => within(said.and_then(|d| d.ack), s.contract.ack),
        Contract::SlaMissed if k.is_nudged => 0,
        Contract::SlaMissed => now_ms,
        Contract::Acked | Contract::Progressing => within(said.and_then(|d| d.progress), s.contract.progress),
    };
    // The worker knows the limit that its configuration gives; here only the job's own is known.
    let limit = said.and_then(|d| d.timeout).map_or(finish_by_ms, |t| k.started_ms.saturating_add(millis(t)));
    let is_open = !k.status.is_terminal();
    Some(Record {
        status: k.status,
        contract: k.contract,
        generation: k.generation,
        rev: k.rev,
        epoch: k.epoch,
        attempt: k.attempt,
        charged: k.charged,
        lost: k.lost,
        max_retries: said.map_or_else(|| RetryPolicy::default().max_retries, |d| d.max_retries),
        start_failures: k.start_failures,
        due_ms: if is_open { k.due_ms } else { 0 },
        started_ms: k.started_ms,
        deadline_ms: if is_running { limit.min(finish_by_ms) } else { 0 },
        created_ms,
        finish_by_ms,
        ended_ms: if is_open { 0 } else { k.ended_ms },
        promise_ms,
        is_cancelling: is_running && k.is_cancelling,
        queue: k.queue.to_string(),
        job_type: k.job_type.to_string(),
        key: k.key.to_string(),
        trace: if is_open { k.trace.to_string() } else { String::new() },
        carrier: k.carrier.to_string(),
        session: if is_running { k.session.to_string() } else { String::new() },
        code: k.code.to_string(),
        notify: match said {
            Some(d) if is_open => d.notify.clone(),
            _ => k.notify.to_string(),
        },
        summary: said.filter(|_| is_open).map(|d| d.summary.clone()).unwrap_or_default(),
        ..Record::queued()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::read_millis, config::load_text, domain::Status, known::Fold};

    fn event(rev: u64, kind: &str, status: &str, epoch: u64, data: serde_json::Value) -> serde_json::Value {
        serde_json::json!({
            "v": 1, "job": "a", "gen": 1, "rev": rev, "kind": kind, "at": format!("2026-11-21T08:00:{rev:02}.000Z"),
            "queue": "default", "type": "t", "key": "k", "status": status,
            "contract": if status == "done" { "terminal_acked" } else { "acked" },
            "attempt": epoch, "epoch": epoch, "session": (kind == "started").then_some("s1"), "carrier": "JOBS:7",
            "data": data,
        })
    }

    fn history() -> Vec<serde_json::Value> {
        let retry = serde_json::json!({ "error_code": "oom", "retry_at": "2026-11-21T08:05:00.000Z" });
        vec![
            event(1, "started", "running", 1, serde_json::Value::Null),
            event(2, "attempt_failed", "retry_wait", 1, retry),
            event(3, "started", "running", 2, serde_json::Value::Null),
            event(4, "finished", "done", 2, serde_json::json!({ "receipt": { "outcome": "done" } })),
        ]
    }

    fn ms(at: &str) -> u64 {
        read_millis(at).unwrap()
    }

    // Shows: X-06, P7
    #[test]
    fn a_record_follows_from_its_events_at_every_step_in_any_order_and_with_copies() {
        let settings = load_text(None, &|_| None, &vec![]).unwrap();
        let now = ms("2026-11-21T09:00:00Z");
        let at = |n: usize| {
            let mut events = history()[..n].to_vec();
            events.reverse();
            events.extend(history()[..1].to_vec());
            let mut fold = Fold::default();
            fold.message(serde_json::Value::from(events).to_string().as_bytes(), |job| job == "a");
            record(fold.get("a").unwrap(), None, &settings, now).unwrap()
        };
        let r = at(1);
        assert_eq!((r.status, r.rev, r.epoch, r.session.as_str()), (Status::Running, 1, 1, "s1"));
        assert_eq!((r.deadline_ms, r.promise_ms), (r.finish_by_ms, now + 45_000));
        assert_eq!((r.started_ms, r.max_retries), (ms("2026-11-21T08:00:01Z"), 3));
        let r = at(2);
        assert_eq!((r.status, r.charged, r.code.as_str()), (Status::RetryWait, 1, "oom"));
        assert_eq!((r.due_ms, r.session.as_str()), (ms("2026-11-21T08:05:00Z"), ""));
        assert_eq!((r.promise_ms, r.deadline_ms), (now + millis(settings.reaper.carrier_check), 0));
        let r = at(3);
        assert_eq!((r.status, r.charged, r.epoch, r.attempt), (Status::Running, 1, 2, 2));
        assert_eq!((r.carrier.as_str(), r.key.as_str()), ("JOBS:7", "\"k\""));
        let r = at(4);
        assert_eq!((r.status, r.contract, r.promise_ms), (Status::Done, Contract::TerminalAcked, 0));
        assert_eq!((r.ended_ms, r.code.as_str()), (ms("2026-11-21T08:00:04Z"), ""));
    }

    #[test]
    fn how_often_a_job_was_lost_is_known_from_its_journal() {
        let settings = load_text(None, &|_| None, &vec![]).unwrap();
        let lost = serde_json::json!({ "error_code": "lost" });
        let events = vec![
            event(1, "started", "running", 1, serde_json::Value::Null),
            event(2, "lost", "retry_wait", 1, lost),
        ];
        let mut fold = Fold::default();
        fold.message(serde_json::Value::from(events).to_string().as_bytes(), |job| job == "a");
        let r = record(fold.get("a").unwrap(), None, &settings, 1).unwrap();
        assert_eq!((r.status, r.charged, r.lost, r.code.as_str()), (Status::RetryWait, 1, 1, "lost"));
    }

    #[test]
    fn the_scripts_wait_as_long_for_a_receipt() {
        let prelude = include_str!("../store/scripts/prelude.lua");
        assert!(prelude.contains(&format!("local RECEIPT_WITHIN = {}\n", millis(RECEIPT_WITHIN))));
    }
}
