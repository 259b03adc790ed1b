//! A job that waits long for its next attempt. A message that is given back with a delay keeps its place among those that its
//! consumer holds; with enough of them a fresh job is not delivered. So a message whose delay is long is given up: a schedule
//! stores a copy of it, which comes due when the delay is over.
//!
//! Ordering: the copy is stored before the message is acked. A crash between them leaves both, and whichever of them comes second
//! is told that another message carries the job. The record names the old message until the copy is claimed with, so whoever
//! misses that message looks for its copy ([`Broker::carrier_of`]).

use std::time::Duration;

use jiff::Timestamp;

use super::{
    Broker, BrokerError,
    hand_on::Moved,
    publish::Publisher,
    pull::Delivery,
    schedule::{self, NOT_EMPTY, schedule_headers},
};
use crate::{
    domain::{JobId, QueueName, schedule::When},
    pace::Pace,
    wire::headers,
};

/// Delays above this one are given to a schedule. Below it a place is kept for so long at most.
pub const LONGEST_NAK: Duration = Duration::from_secs(10);

/// Whether a message is a copy that waits, or waited, for the next attempt of its job in the place of `carrier`.
fn stands_for(m: &Delivery, carrier: &str) -> bool {
    m.header(headers::CARRIER) == Some(carrier)
}

/// Whether a message of `SCHED` is a copy of a message, and no schedule that somebody made.
pub fn is_postponed(m: &Delivery) -> bool {
    m.header(headers::CARRIER).is_some() && schedule::due_at(m).is_some()
}

impl Broker {
    /// Stores a copy of a message that comes due at `at` (the clock of NATS). `false`: the job has a schedule of its producer,
    /// which is not replaced; the message has to wait where it is.
    /// Errors: those of [`Publisher::publish`]; `Refused` where this user may not schedule.
    pub async fn postpone(
        &self,
        publisher: &Publisher,
        raw: &Delivery,
        moved: &Moved<'_>,
        at: Timestamp,
        patience: Pace,
    ) -> Result<bool, BrokerError> {
        let (queue, job) = (moved.queue.as_str(), moved.job.as_str());
        let message_id = format!("{job}/{}/later/{}", moved.generation, moved.epoch);
        let mut h = moved.headers(raw);
        let target = self.names().due_subject(queue, job);
        for (name, values) in schedule_headers(&When::At(at), &target, &message_id, true).iter() {
            values.iter().for_each(|v| h.insert(name.clone(), v.clone()));
        }
        let subject = self.names().sched_subject(queue, job);
        match publisher.publish(&subject, &h, &raw.payload, patience).await {
            Ok(stored) if !stored.is_duplicate => Ok(true),
            // Only a copy that is there counts as stored.
            Ok(_) | Err(BrokerError::Refused { code: NOT_EMPTY, .. }) => {
                let there = self.postponed(moved.queue, moved.job, &raw.carrier().to_string()).await?;
                Ok(there.is_some())
            }
            Err(e) => Err(e),
        }
    }

    /// The copy that waits for the next attempt of a job in the place of `carrier`, or has come due; `None`: there is none.
    pub async fn postponed(
        &self,
        queue: &QueueName,
        id: &JobId,
        carrier: &str,
    ) -> Result<Option<Delivery>, BrokerError> {
        let (names, stream) = (self.names(), self.names().sched());
        // Ordering: the schedule before what it makes, so that one that fires between the looks is not missed.
        for subject in
            [names.sched_subject(queue.as_str(), id.as_str()), names.due_subject(queue.as_str(), id.as_str())]
        {
            let found = self.last_message(&stream, &subject).await?.filter(|m| stands_for(m, carrier));
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The message that carries a job: the recorded one, or the copy that waits in its place.
    pub async fn carrier_of(
        &self,
        queue: &str,
        id: &JobId,
        carrier: &str,
    ) -> Result<Option<Delivery>, BrokerError> {
        if let Some(m) = self.carrier_message(carrier).await? {
            return Ok(Some(m));
        }
        match QueueName::new(queue) {
            Ok(queue) => self.postponed(&queue, id, carrier).await,
            Err(_) => Ok(None),
        }
    }

    /// When the oldest copy that waits was stored (ms of the stream's clock); `None`: none waits.
    pub async fn oldest_postponed_ms(&self) -> Result<Option<u64>, BrokerError> {
        let (stream, subject) = (self.names().sched(), self.names().sched_subject("*", "*"));
        let mut from = 1;
        loop {
            let (page, more) = self.messages(&stream, from, &subject, 256).await?;
            if let Some(m) = page.iter().find(|m| is_postponed(m)) {
                return Ok(Some(m.stored_ms));
            }
            match page.last() {
                Some(last) if more => from = last.sequence + 1,
                _ => return Ok(None),
            }
        }
    }
}
