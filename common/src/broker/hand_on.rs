//! A message that its consumer does not deliver any more: a copy takes its place.
//!
//! Ordering: the copy is stored first, under a message id of its own, so that a repeat stores no second one. It names the
//! message whose place it takes, so that a worker that gets it before the record names it may claim with it. Then the record
//! names it; only then the old message goes.

use async_nats::HeaderMap;

use super::{Broker, BrokerError, dead::copied_headers, place::Carrier, publish::Publisher, pull::Delivery};
use crate::{
    clock::read_millis,
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
    /// Of the `nth` copy.
    fn message_id(&self, nth: u32) -> String {
        let first = format!("{}/{}/moved/{}", self.job, self.generation, self.epoch);
        if nth > 1 { format!("{first}/{nth}") } else { first }
    }

    /// Headers of a copy, without its message id: what the message says, and whose place the copy takes.
    pub(super) fn headers(&self, raw: &Delivery) -> HeaderMap {
        let mut h = copied_headers(raw.headers.as_ref());
        h.insert(headers::JOB, self.job.as_str());
        h.insert(headers::GENERATION, self.generation.to_string().as_str());
        h.insert(headers::EPOCH, self.epoch.to_string().as_str());
        h.insert(headers::CARRIER, raw.carrier().to_string().as_str());
        let stored_at = || {
            let ms = i64::try_from(raw.stored_ms).ok()?;
            Some(jiff::Timestamp::from_millisecond(ms).ok()?.to_string())
        };
        if let Some(t) = raw.header(headers::FIRST_AT).map(headers::clean).or_else(stored_at) {
            h.insert(headers::FIRST_AT, t.as_str());
        }
        h
    }

    /// The how manieth copy a message is, since the last attempt began; 0: none.
    pub fn nth(&self, m: &Delivery) -> u32 {
        let rest = m.header(headers::MSG_ID).and_then(|id| id.strip_prefix(self.message_id(1).as_str()));
        match rest {
            None => 0,
            Some("") => 1,
            Some(rest) => rest.strip_prefix('/').and_then(|n| n.parse().ok()).unwrap_or(0),
        }
    }
}

/// When the job of a message was stored (ms of the stream's clock): of a copy, when the first one that it takes the place of was.
pub fn arrival_ms(m: &Delivery) -> u64 {
    let is_copy = m.header(headers::CARRIER).is_some();
    let first = is_copy.then(|| m.header(headers::FIRST_AT)).flatten().and_then(read_millis);
    first.map_or(m.stored_ms, |first| first.min(m.stored_ms))
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
        let nth = moved.nth(raw).saturating_add(1);
        let mut h = moved.headers(raw);
        h.insert(headers::MSG_ID, moved.message_id(nth).as_str());
        let subject = self.names().job_subject(moved.queue, moved.job);
        let stored = publisher.publish(&subject, &h, &raw.payload, patience).await?;
        let copy = Carrier::jobs(stored.sequence);
        if stored.is_duplicate {
            // Only a copy that is there counts as stored.
            let there = self.carrier_message(&copy.to_string()).await?;
            return Ok(there.filter(|m| moved.nth(m) == nth).map(|_| copy));
        }
        Ok(Some(copy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(of: &[(&str, &str)]) -> Delivery {
        let mut h = async_nats::HeaderMap::new();
        for (name, value) in of {
            h.insert(*name, *value);
        }
        Delivery {
            subject: "surety.jobs.default.a".into(),
            payload: Default::default(),
            headers: Some(h),
            ack_subject: "".into(),
            sequence: 1,
            delivered: 1,
            stored_ms: 1_700_000_000_000,
        }
    }

    #[test]
    fn copies_are_numbered_from_the_last_attempt_on() {
        let (job, queue) = (JobId::new("a").unwrap(), QueueName::new("default").unwrap());
        let moved = Moved { job: &job, queue: &queue, generation: 1, epoch: 12 };
        let nth = |id: &str| moved.nth(&message(&[(headers::MSG_ID, id)]));
        assert_eq!([nth("a"), nth("a/1/moved/1"), nth("a/1/moved/120"), nth("a/2/moved/12")], [0; 4]);
        for n in [1, 2, 30] {
            let id = moved.message_id(n);
            assert_eq!(nth(&id), n);
        }
    }

    #[test]
    fn a_copy_arrived_when_its_job_did_and_nothing_else_says_when_it_arrived() {
        let (copy, early) = ((headers::CARRIER, "JOBS:1"), (headers::FIRST_AT, "2020-01-01T00:00:00Z"));
        let late = (headers::FIRST_AT, "2030-01-01T00:00:00Z");
        assert_eq!(arrival_ms(&message(&[copy, early])), 1_577_836_800_000);
        assert_eq!(arrival_ms(&message(&[early])), 1_700_000_000_000, "a replay is new");
        assert_eq!(arrival_ms(&message(&[copy, late])), 1_700_000_000_000);
    }
}
