//! Cancelling a job, for whoever is asked to: one way for `surety cancel` and the control service.
//!
//! What nobody runs gets its outcome here. Of what runs the owner is asked, in the store, to stop it; a message tells its
//! worker to look at once; and the outcome is waited for, because what is reported is what happened (never what was asked).

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::{
    broker::{BrokerError, dead::Obituary, pull::Delivery},
    connect::Connected,
    domain::{ErrorCode, JobId, QueueName, Requester, Status, TypeName, ids::SessionId},
    lookup::{LookupError, Seen, find, generation, journal_part},
    pace::{Pace, Transient},
    store::{OutboxEntry, Record, SettleItem, SettleReply, StopItem, StopReply, StoreError, ops::Settled},
    telemetry::metrics::job_ended,
    wire::{
        event::{Event, read_message},
        headers,
        job::parse,
        receipt::Draft,
    },
};

/// How long publishes are tried. What is left then is done by the reaper or a worker.
const PATIENCE: Pace = Pace::call(Duration::from_secs(10));
/// Between two looks whether the attempt has ended: at first, and at most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// How often a job may turn from waiting to running and back under our eyes.
const TURNS: usize = 100;

/// What somebody wants.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    pub id: &'a JobId,
    /// As it was given.
    pub reason: Option<&'a str>,
    /// Where a job that was not enqueued yet will appear.
    pub queue: Option<&'a QueueName>,
    /// How long the end of a running attempt is waited for.
    pub wait: Duration,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Happened {
    /// The job is cancelled, by this request or one that went on when this came.
    Cancelled,
    /// The job had its outcome before it could be stopped; nothing was changed.
    AlreadyEnded,
    /// The attempt was asked to stop, durably, and has not ended yet.
    Stopping,
    /// No such job; nothing was changed.
    Unknown,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Report {
    pub id: String,
    /// What happened.
    pub result: Happened,
    /// The job is cancelled, and was not before the request came.
    pub is_cancelled: bool,
    /// Where the job is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<&'static str>,
    /// Why it is cancelled, as it is stored: that of whoever was first. Left out where it could not be read back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// This request copied the job's message to the dead letters. Of a job that ran, its worker does.
    pub is_buried: bool,
    /// The same in one line, for people.
    pub text: String,
}

/// Why it is not known what became of the wish.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CancelError {
    #[error("queue {0} is not declared")]
    NotDeclared(QueueName),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("{id} is decided, but the journal cannot be reached ({source}); the reaper goes on")]
    NotJournaled { id: JobId, source: BrokerError },
    #[error("{id} is cancelled, but its message could not be removed ({source}); a worker will")]
    NotRemoved { id: JobId, source: BrokerError },
    #[error("{0} turned from waiting to running and back all the time, and was not cancelled: try again")]
    Restless(JobId),
}

impl From<StoreError> for CancelError {
    fn from(e: StoreError) -> Self {
        Self::Lookup(e.into())
    }
}

impl Transient for CancelError {
    fn is_transient(&self) -> bool {
        match self {
            Self::NotDeclared(_) => false,
            Self::Lookup(e) => e.is_transient(),
            Self::NotJournaled { .. } | Self::NotRemoved { .. } | Self::Restless(_) => true,
        }
    }
}

/// The reason as it is stored: trimmed, one line, never empty.
pub fn stored_reason(given: Option<&str>) -> String {
    match headers::clean(given.unwrap_or_default()) {
        r if r.is_empty() => "cancelled by request".to_owned(),
        r => r,
    }
}

/// An attempt whose owner was asked to stop it.
struct Asked {
    generation: u32,
    epoch: u64,
    /// Why, as it is stored.
    reason: Option<String>,
}

/// Cancels a job, and reports what became of it. Calling again after an error goes on from where it ended.
pub async fn cancel(c: &Connected, wish: &Wish<'_>) -> Result<Report, CancelError> {
    let id = wish.id;
    let given = stored_reason(wish.reason);
    let until = Instant::now() + wish.wait;
    let mut asked: Option<Asked> = None;
    let mut pause = LOOKS.0;
    let mut turns = 0;
    loop {
        let seen = find(c, id).await?;
        let target = match (&seen, wish.queue) {
            (Some(Seen::Record(r)), _) => {
                if let Some(a) = &asked
                    && a.generation != r.generation
                {
                    // It ended and was replayed since: the new generation is nobody's to cancel here.
                    return replayed(c, id, a, &seen).await;
                }
                if r.status.is_running() {
                    if asked.as_ref().is_none_or(|a| a.epoch != r.epoch) {
                        let Some(a) = ask(c, id, r, &given).await? else {
                            turns += 1;
                            if turns > TURNS {
                                return Err(CancelError::Restless(id.clone()));
                            }
                            continue;
                        };
                        asked = Some(a);
                    }
                    let now = Instant::now();
                    if now >= until {
                        return Ok(stopping(id, r, asked, wish.wait));
                    }
                    tokio::time::sleep_until(until.min(now + pause)).await;
                    pause = (pause * 2).min(LOOKS.1);
                    continue;
                }
                Target::of_record(r)
            }
            (Some(Seen::Waiting(queue, m)), _) => Target::of_carrier(queue, m),
            (Some(Seen::Journal(e)), _) => return Ok(Report::ended(id, &e.status, true)),
            (None, Some(queue)) if c.found.queues.contains(queue) => {
                Target::tombstone(queue, c.store.now_ms_of(c.store.keys().partition(id)).await?)
            }
            (None, Some(queue)) => return Err(CancelError::NotDeclared(queue.clone())),
            (None, None) => return Ok(Report::unknown(id)),
        };
        let at = target.queue.clone();
        match settle(c, id, target, &given).await? {
            SettleReply::Applied(s) => {
                job_ended_by_us(&seen);
                let is_buried = bury(c, id, &at, &s, &given)
                    .await
                    .map_err(|source| CancelError::NotRemoved { id: id.clone(), source })?;
                return Ok(Report::cancelled(id, Some(given), is_buried));
            }
            SettleReply::Ended(e) if e.status == Status::Cancelled => {
                // An earlier call may have failed between the outcome and the dead letter: this one goes on there.
                if let (None, true, Some(Seen::Record(r))) = (&asked, e.is_journaled, &seen) {
                    let s = Settled {
                        status: r.status,
                        ack_subject: r.ack_subject.clone(),
                        carrier: r.carrier.clone(),
                        generation: r.generation,
                        rev: r.rev,
                        epoch: r.epoch,
                    };
                    bury(c, id, &at, &s, &given)
                        .await
                        .map_err(|source| CancelError::NotRemoved { id: id.clone(), source })?;
                }
                return Ok(match asked {
                    Some(a) if a.generation == e.generation => Report::cancelled(id, a.reason, false),
                    _ => Report::ended(id, e.status.name(), false),
                });
            }
            SettleReply::Ended(e) => return Ok(Report::ended(id, e.status.name(), false)),
            SettleReply::Unreadable => return Err(StoreError::unreadable(id.as_str()).into()),
            // It was claimed, or replayed, between the look and the call.
            SettleReply::Running { .. } => {
                turns += 1;
                if turns > TURNS {
                    return Err(CancelError::Restless(id.clone()));
                }
            }
        }
    }
}

/// Asks the owner of an attempt to stop it, and tells its worker to look. `None`: it does not run there any more.
async fn ask(c: &Connected, id: &JobId, r: &Record, reason: &str) -> Result<Option<Asked>, CancelError> {
    let p = c.store.keys().partition(id);
    let session = SessionId::new(&r.session).map_err(|e| StoreError::Decode(e.to_string()))?;
    let data = serde_json::json!({ "reason": reason }).to_string();
    let item = StopItem { id: id.to_string(), epoch: r.epoch, data };
    let answer = c.store.ask_to_stop(p, &session, &[item]).await?;
    match answer.results.first() {
        Some(StopReply::Asked { .. }) => {}
        Some(StopReply::NotRunning { .. } | StopReply::NoRecord) => return Ok(None),
        Some(StopReply::Unreadable) => return Err(StoreError::unreadable(id.as_str()).into()),
        None => return Err(StoreError::Decode("stop gave no result".into()).into()),
    }
    // The hint comes first: it saves the worker up to a renewal, and the store has the wish whatever becomes of both.
    if let Err(error) = c.broker.hint_stop(&session, id, r.epoch).await {
        tracing::warn!(job_id = %id, %error, "its worker was not told to look: it will at its next renewal");
    }
    if let Err(error) = c.relay.publish(p, &answer.entries, PATIENCE).await {
        tracing::warn!(job_id = %id, %error, "the request is stored; the reaper will journal it");
    }
    let in_hand = reason_in(&answer.entries, id, r.generation);
    let reason = match in_hand {
        Some(reason) => Some(reason),
        // Somebody asked before, and the journal has it.
        None => journaled_reason(c, id, r).await,
    };
    Ok(Some(Asked { generation: r.generation, epoch: r.epoch, reason }))
}

/// Why the job is to be cancelled, from an event that says so.
fn reason_of(e: &Event, id: &JobId, generation: u32) -> Option<String> {
    let is_it = e.job == id.as_str() && e.generation == generation && e.kind == "cancel_requested";
    e.data.get("reason").filter(|_| is_it)?.as_str().map(str::to_owned)
}

fn reason_in(entries: &[OutboxEntry], id: &JobId, generation: u32) -> Option<String> {
    entries
        .iter()
        .flat_map(|entry| read_message(entry.body.as_bytes()).0)
        .find_map(|e| reason_of(&e, id, generation))
}

async fn journaled_reason(c: &Connected, id: &JobId, r: &Record) -> Option<String> {
    let (queue, from_ms) = journal_part(&Seen::Record(Box::new(r.clone())));
    let mut reason = None;
    let read = c.broker.look_through_journal(queue.as_deref(), from_ms, |e| {
        reason = reason_of(&e, id, r.generation).or_else(|| reason.take());
    });
    match read.await {
        Ok(_) => reason,
        Err(error) => {
            tracing::warn!(job_id = %id, %error, "why it was to be cancelled before could not be read");
            None
        }
    }
}

/// What became of a generation that was replayed before its end was seen here.
async fn replayed(c: &Connected, id: &JobId, a: &Asked, seen: &Option<Seen>) -> Result<Report, CancelError> {
    let (queue, from_ms) = seen.as_ref().map(journal_part).unwrap_or_default();
    let mut status = None;
    let read = c.broker.look_through_journal(queue.as_deref(), from_ms, |e| {
        if e.job == id.as_str() && e.generation == a.generation && e.kind == "finished" {
            status = Some(e.status);
        }
    });
    read.await.map_err(LookupError::from)?;
    Ok(match status.as_deref() {
        Some("cancelled") => Report::cancelled(id, a.reason.clone(), false),
        Some(other) => Report::ended(id, other, false),
        None => Report::ended(id, "replayed", false),
    })
}

fn job_ended_by_us(seen: &Option<Seen>) {
    let (queue, kind) = match seen {
        Some(Seen::Record(r)) => (r.queue.as_str(), r.job_type.as_str()),
        Some(Seen::Waiting(q, _)) => (q.as_str(), ""),
        Some(Seen::Journal(_)) | None => return,
    };
    job_ended(queue, kind, Status::Cancelled, ErrorCode::Cancelled.name());
}

fn stopping(id: &JobId, r: &Record, asked: Option<Asked>, wait: Duration) -> Report {
    let after = crate::clock::format_span(wait);
    let text = format!(
        "{id}: asked to stop, and still {} after {after}; it ends as cancelled when its processes are dead",
        r.status.name()
    );
    Report {
        id: id.to_string(),
        result: Happened::Stopping,
        is_cancelled: false,
        status: Some(r.status.name()),
        reason: asked.and_then(|a| a.reason),
        is_buried: false,
        text,
    }
}

impl Report {
    fn cancelled(id: &JobId, reason: Option<String>, is_buried: bool) -> Self {
        let text = match &reason {
            Some(reason) => format!("{id}: cancelled ({reason})"),
            None => format!("{id}: cancelled"),
        };
        Self {
            id: id.to_string(),
            result: Happened::Cancelled,
            is_cancelled: true,
            status: Some(Status::Cancelled.name()),
            reason,
            is_buried,
            text,
        }
    }

    fn ended(id: &JobId, status: &str, is_forgotten: bool) -> Self {
        let gone = if is_forgotten { " (its record is gone)" } else { "" };
        Self {
            id: id.to_string(),
            result: Happened::AlreadyEnded,
            is_cancelled: false,
            status: Status::ALL.iter().map(|s| s.name()).find(|n| *n == status),
            reason: None,
            is_buried: false,
            text: format!("{id}: not cancelled, already {status}{gone}"),
        }
    }

    fn unknown(id: &JobId) -> Self {
        let text = format!("unknown job {id}: not cancelled; if it is still to come, name its queue");
        Self {
            id: id.to_string(),
            result: Happened::Unknown,
            is_cancelled: false,
            status: None,
            reason: None,
            is_buried: false,
            text,
        }
    }
}

/// What the store needs to know of a job that it may not have seen.
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
    fn of_record(r: &Record) -> Self {
        Self {
            // A type that is no name cannot be in a record; the receipt then says so.
            job_type: TypeName::new(&r.job_type).unwrap_or_else(|_| TypeName::unknown()),
            queue: r.queue.clone(),
            key: r.key.clone(),
            trace: r.trace.clone(),
            notify: r.notify.clone(),
            carrier: r.carrier.clone(),
            created_ms: r.created_ms,
            generation: r.generation,
        }
    }

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

/// Gives a job that nobody runs its outcome, and journals it; that of one which has an outcome is journaled too.
async fn settle(c: &Connected, id: &JobId, target: Target, reason: &str) -> Result<SettleReply, CancelError> {
    let mut draft = Draft::new(id, target.generation, &target.job_type, Status::Cancelled.name());
    draft.error_code = Some(ErrorCode::Cancelled);
    draft.message = Some(reason);
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
    let p = c.store.keys().partition(id);
    let answer = c.store.settle(p, &[item]).await?;
    // Ordering: committed, then journaled, then the copy in the dead letters, then the ack.
    c.relay
        .publish(p, &answer.entries, PATIENCE)
        .await
        .map_err(|source| CancelError::NotJournaled { id: id.clone(), source })?;
    answer.results.into_iter().next().ok_or_else(|| StoreError::Decode("settle gave no result".into()).into())
}

/// Copies the carrier to the dead letters and removes it. `false`: there was none.
async fn bury(
    c: &Connected,
    id: &JobId,
    queue: &str,
    s: &Settled,
    reason: &str,
) -> Result<bool, BrokerError> {
    let Some(raw) = c.broker.carrier_of(queue, id, &s.carrier).await? else { return Ok(false) };
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
    c.broker.bury(&c.publisher, &raw, &obituary, PATIENCE).await?;
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

    // Shows: T-10, I-03
    #[test]
    fn a_report_claims_a_cancel_only_where_there_was_one() {
        let id = JobId::new("a").unwrap();
        let r = Report::cancelled(&id, Some("why".into()), true);
        assert_eq!(
            (r.is_cancelled, r.status, r.text.as_str()),
            (true, Some("cancelled"), "a: cancelled (why)")
        );
        for status in ["done", "failed", "timed_out", "cancelled"] {
            let r = Report::ended(&id, status, false);
            assert_eq!((r.is_cancelled, r.status), (false, Some(status)));
            assert_eq!(r.text, format!("a: not cancelled, already {status}"));
        }
        assert_eq!(Report::cancelled(&id, None, false).text, "a: cancelled");
    }
}
