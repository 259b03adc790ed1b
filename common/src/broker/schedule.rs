//! Schedules in `SCHED`: what one says, finding, listing, making and removing them. The server fires them.

use async_nats::HeaderMap;
use bytes::Bytes;
use jiff::Timestamp;

use super::{
    Broker, BrokerError,
    postpone::is_postponed,
    publish::{Publisher, Stored},
    pull::Delivery,
    topology::Names,
};
use crate::{
    domain::{QueueName, ids::ScheduleName, schedule::When},
    pace::Pace,
    wire::headers,
};

/// The server's code for a publish that found something on a subject that should have been empty.
pub const NOT_EMPTY: u64 = 10071;

/// One schedule, as it is stored.
#[derive(Debug, Clone)]
pub struct Schedule {
    pub queue: String,
    /// The job's id where it fires once.
    pub name: String,
    /// When it fires, as its header says it.
    pub pattern: String,
    pub zone: Option<String>,
    /// The same, read. The error says why this release cannot.
    pub when: Result<When, String>,
    /// Sequence in `SCHED`.
    pub sequence: u64,
    /// When it was stored, milliseconds of the stream's clock.
    pub stored_ms: u64,
    /// The job document.
    pub body: Bytes,
    /// Nobody made it: it carries a job that waits for its next attempt ([`super::postpone`]).
    pub is_retry: bool,
}

impl Schedule {
    /// Reads a message. `None`: it is no schedule.
    pub fn read(names: &Names, m: &Delivery) -> Option<Self> {
        let (queue, name) = names.parse_sched_subject(&m.subject)?;
        let pattern = m.header(headers::SCHEDULE)?;
        let zone = m.header(headers::SCHEDULE_ZONE);
        Some(Self {
            queue: queue.to_owned(),
            name: name.to_owned(),
            pattern: pattern.to_owned(),
            zone: zone.map(str::to_owned),
            when: When::read(pattern, zone).map_err(|e| e.to_string()),
            sequence: m.sequence,
            stored_ms: m.stored_ms,
            body: m.payload.clone(),
            is_retry: is_postponed(m),
        })
    }

    /// Whether it makes more than one job. One that cannot be read counts as such.
    pub fn is_recurring(&self) -> bool {
        self.when.as_ref().map_or(true, When::is_recurring)
    }

    /// The next firings after a time, at most `n`.
    pub fn next(&self, after: Timestamp, n: usize) -> Vec<Timestamp> {
        let stored = i64::try_from(self.stored_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        match (&self.when, stored) {
            (Ok(when), Some(stored)) => when.next(stored, after, n),
            _ => Vec::new(),
        }
    }
}

/// When the job of a message that fires once is due. `None`: it is another message.
pub fn due_at(m: &Delivery) -> Option<Timestamp> {
    m.header(headers::SCHEDULE)?.strip_prefix("@at ")?.parse().ok()
}

/// Headers of a schedule. `message_id`: a repeat within the stream's window is dropped. `is_new`: refused
/// ([`NOT_EMPTY`]) where its subject has one already; else it replaces that.
pub(super) fn schedule_headers(when: &When, target: &str, message_id: &str, is_new: bool) -> HeaderMap {
    let mut h = HeaderMap::new();
    h.insert(headers::MSG_ID, message_id);
    h.insert(headers::SCHEDULE, when.pattern().as_str());
    h.insert(headers::SCHEDULE_TARGET, target);
    if let Some(z) = when.zone() {
        h.insert(headers::SCHEDULE_ZONE, z);
    }
    if is_new {
        h.insert(headers::EXPECTED_LAST, "0");
    }
    h
}

impl Broker {
    /// Stores a recurring schedule. `message_id` names this very change.
    /// Errors: `Refused` with [`NOT_EMPTY`] when `is_new` and there is one of this name in the queue; `NoStream` for a queue
    /// that is not declared.
    pub async fn put_schedule(
        &self,
        publisher: &Publisher,
        (queue, name): (&QueueName, &ScheduleName),
        when: &When,
        body: &Bytes,
        (message_id, is_new): (&str, bool),
        patience: Pace,
    ) -> Result<Stored, BrokerError> {
        let names = self.names();
        let target = names.due_subject(queue.as_str(), name.as_str());
        let headers = schedule_headers(when, &target, message_id, is_new);
        publisher.publish(&names.sched_subject(queue.as_str(), name.as_str()), &headers, body, patience).await
    }

    /// What stands under this name, one for each queue that has something: a schedule, or a job that waits for its next attempt.
    pub async fn find_schedules(
        &self,
        queues: &[QueueName],
        name: &str,
    ) -> Result<Vec<Schedule>, BrokerError> {
        let mut out = Vec::new();
        for q in queues {
            let subject = self.names().sched_subject(q.as_str(), name);
            let found = self.last_message(&self.names().sched(), &subject).await?;
            out.extend(found.and_then(|m| Schedule::read(self.names(), &m)));
        }
        Ok(out)
    }

    /// Schedules that somebody made from a sequence on, in the order in which they were stored, some hundreds at a time, and the sequence to go
    /// on from (`None`: that was the last).
    pub async fn schedules(
        &self,
        queue: Option<&QueueName>,
        from: u64,
    ) -> Result<(Vec<Schedule>, Option<u64>), BrokerError> {
        let subject = self.names().sched_subject(queue.map_or("*", QueueName::as_str), "*");
        let (page, more) = self.messages(&self.names().sched(), from, &subject, 256).await?;
        let next = page.last().filter(|_| more).map(|m| m.sequence + 1);
        let read = page.iter().filter_map(|m| Schedule::read(self.names(), m));
        Ok((read.filter(|s| !s.is_retry).collect(), next))
    }

    /// Removes a schedule. `false`: there is none; one that fires once may just have fired.
    pub async fn remove_schedule(&self, queue: &str, name: &str) -> Result<bool, BrokerError> {
        let subject = format!("STREAM.PURGE.{}", self.names().sched());
        let filter = self.names().sched_subject(queue, name);
        let answer = self.api(subject, serde_json::json!({ "filter": filter })).await?;
        Ok(answer.get("purged").and_then(serde_json::Value::as_u64).unwrap_or(0) > 0)
    }
}
