//! From what the journal knows of a job to the record that it gets. What only the job's message says is read from there;
//! where that is gone, the next claim knows, or nobody has to. Pure, but for reading the message.

use std::time::Duration;

use surety_common::{
    broker::{BrokerError, decode::decode},
    config::Settings,
    connect::Connected,
    domain::{Contract, JobId, QueueName},
    store::{Record, Restored},
};

use super::fold::Known;

/// What the message of a job says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Said {
    pub(crate) created_ms: u64,
    pub(crate) max_retries: u32,
    pub(crate) finish: Option<Duration>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) progress: Option<Duration>,
    pub(crate) ack: Option<Duration>,
    pub(crate) summary: String,
    /// [`surety_common::domain::Requester`] as JSON, or empty.
    pub(crate) notify: String,
}

/// Reads the message that carries a job. `None`: it is gone, or is another job's.
pub(crate) async fn said(
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

/// Until the receipt of an outcome is looked for, as the scripts have it.
const RECEIPT_WITHIN: u64 = 60_000;

/// What to write of a job. `now_ms`: the store's clock.
pub(crate) fn restored(k: &Known, said: Option<&Said>, s: &Settings, now_ms: u64) -> Restored {
    if k.is_deleted {
        return Restored::Deleted { rev: k.rev };
    }
    let is_running = k.status.is_running();
    let finish = said.and_then(|d| d.finish).unwrap_or(s.attempt.finish);
    let created_ms = said.map_or(0, |d| d.created_ms);
    // Not known: never too early.
    let since = if created_ms > 0 { created_ms } else { now_ms.max(k.due_ms) };
    let finish_by_ms = since.saturating_add(millis(finish));
    let within = |own: Option<Duration>, default: Duration| now_ms + millis(own.unwrap_or(default));
    let promise_ms = match k.contract {
        Contract::TerminalPending => now_ms + RECEIPT_WITHIN,
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
    Restored::Record(Box::new(Record {
        status: k.status,
        contract: k.contract,
        generation: k.generation,
        rev: k.rev,
        epoch: k.epoch,
        attempt: k.attempt,
        charged: k.charged,
        max_retries: said.map_or(3, |d| d.max_retries),
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
    }))
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX / 4)
}
