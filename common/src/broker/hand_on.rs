//! A message that its consumer does not deliver any more: a copy takes its place.
//!
//! Ordering: the copy is stored first, under a message id of its own, so that a repeat stores no second one. It names the
//! message whose place it takes, so that a worker that gets it before the record names it may claim with it. Then the record
//! names it; only then the old message goes.

use super::{Broker, BrokerError, dead::copied_headers, place::Carrier, publish::Publisher, pull::Delivery};
use crate::{
    domain::{JobId, QueueName},
    pace::Pace,
    wire::headers,
};

/// Whose message is copied.
#[derive(Debug, Clone, Copy)]
pub struct Moved<'a> {
    pub job: &'a JobId,
    pub queue: &'a QueueName,
    pub generation: u32,
    /// Of the last attempt: a job is handed on once for each.
    pub epoch: u64,
}

impl Moved<'_> {
    fn message_id(&self) -> String {
        format!("{}/{}/moved/{}", self.job, self.generation, self.epoch)
    }

    /// Whether a message is such a copy already: no attempt began since it was made.
    pub fn is_made(&self, m: &Delivery) -> bool {
        m.header(headers::MSG_ID) == Some(self.message_id().as_str())
    }
}

impl Broker {
    /// Stores a copy of a carrier in `JOBS`. `None`: a copy was stored before, within the window of message ids, and is gone.
    /// Errors: `NoStream` where the queue is not declared.
    pub async fn copy_carrier(
        &self,
        publisher: &Publisher,
        raw: &Delivery,
        moved: &Moved<'_>,
        patience: Pace,
    ) -> Result<Option<Carrier>, BrokerError> {
        let mut h = copied_headers(raw.headers.as_ref());
        h.insert(headers::MSG_ID, moved.message_id().as_str());
        h.insert(headers::JOB, moved.job.as_str());
        h.insert(headers::GENERATION, moved.generation.to_string().as_str());
        h.insert(headers::EPOCH, moved.epoch.to_string().as_str());
        h.insert(headers::CARRIER, raw.carrier().to_string().as_str());
        let stored_at = || {
            let ms = i64::try_from(raw.stored_ms).ok()?;
            Some(jiff::Timestamp::from_millisecond(ms).ok()?.to_string())
        };
        if let Some(t) = raw.header(headers::FIRST_AT).map(headers::clean).or_else(stored_at) {
            h.insert(headers::FIRST_AT, t.as_str());
        }
        let subject = self.names().job_subject(moved.queue, moved.job);
        let stored = publisher.publish(&subject, &h, &raw.payload, patience).await?;
        let copy = Carrier::jobs(stored.sequence);
        if stored.is_duplicate {
            // Only a copy that is there counts as stored.
            let there = self.carrier_message(&copy.to_string()).await?;
            return Ok(there.filter(|m| moved.is_made(m)).map(|_| copy));
        }
        Ok(Some(copy))
    }
}
