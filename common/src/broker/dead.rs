//! Dead letters: the raw message of a job that ended badly, kept so that a person can look at it and replay it.

use async_nats::HeaderMap;

use super::{
    Broker, BrokerError,
    publish::{Publisher, Stored},
    pull::Delivery,
};
use crate::{
    domain::{ErrorCode, JobId},
    pace::Pace,
    telemetry::{labels, metrics::shared},
    wire::headers::{self, clean},
};

/// Why and whose a dead letter is.
#[derive(Debug, Clone)]
pub struct Obituary<'a> {
    pub job: &'a JobId,
    pub queue: &'a str,
    pub generation: u32,
    pub epoch: u64,
    /// Error code, or `cancelled`.
    pub reason: &'a str,
    pub message: &'a str,
    pub carrier: &'a str,
}

/// The headers of a republished message: what may be copied as it is.
pub fn copied_headers(from: Option<&HeaderMap>) -> HeaderMap {
    let mut out = HeaderMap::new();
    for (name, values) in from.into_iter().flat_map(HeaderMap::iter) {
        let text: &str = name.as_ref();
        if headers::may_copy(text) {
            for v in values {
                out.append(text, v.as_str());
            }
        }
    }
    out
}

impl Broker {
    /// Copies a carrier to the dead letters, under an id of its own, so that a repeat is dropped. Waits until it is stored.
    pub async fn bury(
        &self,
        publisher: &Publisher,
        raw: &Delivery,
        o: &Obituary<'_>,
        patience: Pace,
    ) -> Result<Stored, BrokerError> {
        let mut h = copied_headers(raw.headers.as_ref());
        for (name, values) in raw.headers.iter().flat_map(HeaderMap::iter) {
            let text: &str = name.as_ref();
            let is_ours_to_keep =
                ["Nats-Msg-Id", headers::FIRST_AT].iter().any(|k| text.eq_ignore_ascii_case(k));
            if is_ours_to_keep && let Some(v) = values.first() {
                h.insert(format!("{}{text}", headers::ORIGINAL).as_str(), v.as_str());
            }
        }
        h.insert(headers::MSG_ID, format!("{}/{}/dlq/{}", o.job, o.generation, o.epoch).as_str());
        h.insert(headers::JOB, o.job.as_str());
        h.insert(headers::GENERATION, o.generation.to_string().as_str());
        h.insert(headers::EPOCH, o.epoch.to_string().as_str());
        h.insert(headers::REASON, o.reason);
        h.insert(headers::MESSAGE, clean(o.message).as_str());
        h.insert(headers::SUBJECT, clean(&raw.subject).as_str());
        h.insert(headers::CARRIER, o.carrier);
        if raw.header(headers::FIRST_AT).is_none()
            && let Ok(t) = jiff::Timestamp::from_millisecond(i64::try_from(raw.stored_ms).unwrap_or(0))
        {
            h.insert(headers::FIRST_AT, t.to_string().as_str());
        }
        let subject = self.names().dlq_subject(o.queue, o.job);
        let stored = publisher.publish(&subject, &h, &raw.payload, patience).await?;
        // A repeat of one that is there already is none.
        if !stored.is_duplicate {
            let reason = if ErrorCode::from_name(o.reason).is_some() { o.reason } else { labels::OTHER };
            shared().dead_letters.with_label_values(&[labels::QUEUES.of(o.queue), reason]).inc();
        }
        Ok(stored)
    }
}
