//! `surety cancel`: end a job that nobody runs.

use clap::Args;
use serde::Serialize;
use surety_common::{
    broker::{BrokerError, dead::Obituary, pull::Delivery},
    connect::Connected,
    domain::{ErrorCode, JobId, QueueName, Requester, Status, TypeName},
    pace::Pace,
    store::{SettleItem, SettleReply, StoreError, ops::Settled},
    wire::{headers, job::parse, receipt::Draft},
};

use super::{
    Context,
    failure::Failure,
    lookup::{self, Seen},
    status::generation,
};

/// Cancel a job that is not running
///
/// Says what happened, not what was asked: exit code 0 only if the job is cancelled now. The message of a cancelled job
/// goes to the dead letters, so it can be replayed. An id that nobody has seen is refused, unless --queue says where it
/// will appear: then its message is dropped when it comes.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety cancel 01JD0000000000000000000000 --reason 'wrong file'")]
pub(super) struct CancelArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    id: JobId,
    /// Stored with the outcome [default: cancelled by request]
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Queue of a job that was not enqueued yet
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
}

impl CancelArgs {
    /// Of a job that is known.
    pub(super) fn of(id: JobId) -> Self {
        Self { id, reason: None, queue: None }
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Answer<'a> {
    id: &'a str,
    is_cancelled: bool,
    status: &'static str,
    reason: &'a str,
    /// The job's message was copied to the dead letters.
    is_buried: bool,
}

/// The reason as it is stored: trimmed, one line, never empty.
fn stored_reason(given: Option<&str>) -> String {
    match headers::clean(given.unwrap_or_default()) {
        r if r.is_empty() => "cancelled by request".to_owned(),
        r => r,
    }
}

/// What the call needs to know of the job, from whatever knows it.
struct Target {
    queue: String,
    job_type: TypeName,
    key: String,
    trace: String,
    notify: String,
    carrier: String,
    created_ms: u64,
    generation: u32,
}

impl Target {
    fn of_carrier(queue: &QueueName, m: &Delivery) -> Self {
        let body: Option<serde_json::Value> = serde_json::from_slice(&m.payload).ok();
        let field = |name: &str| body.as_ref()?.get(name)?.as_str().map(str::to_owned);
        Self {
            queue: queue.to_string(),
            job_type: field("type").and_then(|t| TypeName::new(&t).ok()).unwrap_or_else(TypeName::unknown),
            // Records and events hold the key as a JSON string literal.
            key: field("key").map(|k| serde_json::Value::from(k).to_string()).unwrap_or_default(),
            trace: m.header(headers::TRACEPARENT).filter(|t| is_plain(t)).unwrap_or_default().to_owned(),
            notify: requester(&m.payload),
            carrier: m.carrier().to_string(),
            created_ms: m.stored_ms,
            generation: generation(m),
        }
    }

    fn tombstone(queue: &QueueName, now_ms: u64) -> Self {
        Self {
            queue: queue.to_string(),
            job_type: TypeName::unknown(),
            key: String::new(),
            trace: String::new(),
            notify: String::new(),
            carrier: String::new(),
            created_ms: now_ms,
            generation: 1,
        }
    }
}

/// Who is to be told, as far as the document says it in a form that can be read.
fn requester(document: &[u8]) -> String {
    let read = parse(document).ok().and_then(|d| d.notify);
    let requester = read.and_then(|n| Requester::new(&n.subject, n.notices.unwrap_or(true)).ok());
    requester.unwrap_or_default().to_json().into_owned()
}

/// Whether a text can stand in an event as it is.
fn is_plain(t: &str) -> bool {
    t.len() <= 128 && t.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

pub(super) async fn run(cx: &Context, args: CancelArgs) -> Result<(), Failure> {
    let CancelArgs { id, reason, queue } = args;
    let reason = stored_reason(reason.as_deref());
    let c = cx.connect().await?;
    let patience = Pace::call(cx.settings.connection.retry_limit);
    let target = match lookup::find(&c, &id).await? {
        Some(Seen::Record(r)) => Target {
            // A type that is no name cannot be in a record; the receipt then says so.
            job_type: TypeName::new(&r.job_type).unwrap_or_else(|_| TypeName::unknown()),
            queue: r.queue,
            key: r.key,
            trace: r.trace,
            notify: r.notify,
            carrier: r.carrier,
            created_ms: r.created_ms,
            generation: r.generation,
        },
        Some(Seen::Waiting(queue, m)) => Target::of_carrier(&queue, &m),
        Some(Seen::Journal(e)) => {
            let text = format!("{id}: not cancelled, already {} (its record is gone)", e.status);
            return Err(Failure::no(text));
        }
        None => match &queue {
            Some(queue) if c.found.queues.contains(queue) => {
                Target::tombstone(queue, c.store.now_ms().await?)
            }
            Some(queue) => return Err(Failure::input(format!("queue {queue} is not declared"))),
            None => {
                return Err(Failure::no(format!(
                    "unknown job {id}: not cancelled; if it is still to come, name its queue with --queue"
                )));
            }
        },
    };
    let mut draft = Draft::new(&id, target.generation, &target.job_type, Status::Cancelled.name());
    draft.error_code = Some(ErrorCode::Cancelled);
    draft.message = Some(&reason);
    draft.trace = Some(target.trace.as_str()).filter(|t| !t.is_empty());
    let item = SettleItem {
        id: id.to_string(),
        verdict: 1,
        code: ErrorCode::Cancelled.name(),
        receipt: draft.open_json(),
        reason: serde_json::json!({ "reason": reason }).to_string(),
        queue: target.queue,
        job_type: target.job_type.to_string(),
        key: target.key,
        trace: target.trace,
        carrier: target.carrier,
        ack_subject: String::new(),
        created_ms: target.created_ms,
        generation: target.generation,
        notify: target.notify,
    };
    let p = c.store.keys().partition(&id);
    let answer = c.store.settle(p, &[item]).await?;
    // Ordering: committed, then journaled, then the copy in the dead letters, then the ack.
    c.relay.publish(p, &answer.entries, patience).await.map_err(|e| {
        Failure::unreachable(format!(
            "{id} is decided, but the journal cannot be reached ({e}); the reaper goes on"
        ))
    })?;
    match answer.results.into_iter().next() {
        Some(SettleReply::Applied(s)) => {
            let is_buried = bury(&c, &id, &s, &reason, patience).await.map_err(|e| {
                Failure::unreachable(format!(
                    "{id} is cancelled, but its message could not be removed ({e}); a worker will"
                ))
            })?;
            let status = s.status.name();
            let answer = Answer { id: id.as_str(), is_cancelled: true, status, reason: &reason, is_buried };
            cx.screen.show(&answer, || format!("{id}: cancelled ({reason})"))
        }
        Some(SettleReply::Running { status }) => Err(Failure::no(format!(
            "{id}: not cancelled, it is {}; this release cannot cancel running jobs (its time limit ends it)",
            status.name()
        ))),
        Some(SettleReply::Ended(e)) => {
            Err(Failure::no(format!("{id}: not cancelled, already {}", e.status.name())))
        }
        Some(SettleReply::Unreadable) => Err(StoreError::unreadable(id.as_str()).into()),
        None => Err(Failure::bug("redis answered for no job")),
    }
}

/// Copies the carrier to the dead letters and removes it. `false`: there was none.
async fn bury(
    c: &Connected,
    id: &JobId,
    s: &Settled,
    reason: &str,
    patience: Pace,
) -> Result<bool, BrokerError> {
    let Some(raw) = c.broker.carrier_message(&s.carrier).await? else { return Ok(false) };
    let queue = c.broker.names().queue_of(&raw.subject).unwrap_or("unknown");
    let obituary = Obituary {
        job: id,
        queue,
        generation: s.generation,
        epoch: s.epoch,
        reason: ErrorCode::Cancelled.name(),
        message: reason,
        carrier: &s.carrier,
    };
    c.broker.bury(&c.publisher, &raw, &obituary, patience).await?;
    if !s.ack_subject.is_empty() {
        // Frees the place among the unacknowledged at once; the deletion makes sure.
        c.broker.ack(&s.ack_subject).await?;
    }
    c.broker.delete_carrier(raw.carrier()).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows: T-14
    #[test]
    fn the_reason_is_trimmed_and_never_empty() {
        assert_eq!(stored_reason(Some(" x ")), "x");
        assert_eq!(stored_reason(Some("  ")), "cancelled by request");
        assert_eq!(stored_reason(None), "cancelled by request");
    }
}
