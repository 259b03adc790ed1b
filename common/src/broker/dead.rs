//! Dead letters: the raw message of a job that ended badly, kept so that a person can look at it and replay it.

use async_nats::HeaderMap;
use bytes::Bytes;

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
    /// Copies a carrier to the dead letters, under an id of its own, so that a repeat is dropped. Waits until it is stored. What
    /// the server does not take in one message is cut, and the letter says so: a job that is refused must not come back for ever.
    pub async fn bury(
        &self,
        publisher: &Publisher,
        raw: &Delivery,
        o: &Obituary<'_>,
        patience: Pace,
    ) -> Result<Stored, BrokerError> {
        let mut h = HeaderMap::new();
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
        let (h, body) = fit(h, copied_headers(raw.headers.as_ref()), &raw.payload, self.max_payload());
        if body.len() < raw.payload.len() {
            tracing::warn!(job_id = %o.job, bytes = raw.payload.len(), kept = body.len(), "a dead letter was cut: it is too large");
        }
        let stored = publisher.publish(&subject, &h, &body, patience).await?;
        // A repeat of one that is there already is none.
        if !stored.is_duplicate {
            let reason = if ErrorCode::from_name(o.reason).is_some() { o.reason } else { labels::OTHER };
            shared().dead_letters.with_label_values(&[labels::QUEUES.of(o.queue), reason]).inc();
        }
        Ok(stored)
    }
}

/// What goes out of a letter within `most` bytes: our headers, the copied ones where there is room, and as much of the body.
fn fit(ours: HeaderMap, copied: HeaderMap, body: &Bytes, most: usize) -> (HeaderMap, Bytes) {
    // The line before the headers, the one after them, and what clients count besides.
    let room = |h: &HeaderMap| most.saturating_sub(size(h) + 64);
    let mut all = copied;
    let mut least = ours;
    for (name, values) in least.iter() {
        values.iter().for_each(|v| all.append(name.clone(), v.clone()));
    }
    if body.len() <= room(&all) {
        return (all, body.clone());
    }
    least.insert(headers::CUT, body.len().to_string().as_str());
    let kept = body.slice(..body.len().min(room(&least)));
    (least, kept)
}

/// Bytes of headers on the wire.
fn size(h: &HeaderMap) -> usize {
    let line = |name: &str, value: &str| name.len() + value.len() + ": \r\n".len();
    h.iter().flat_map(|(name, values)| values.iter().map(move |v| line(name.as_ref(), v.as_str()))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows: P8
    #[test]
    fn a_letter_is_never_larger_than_the_server_takes() {
        let (mut ours, mut copied) = (HeaderMap::new(), HeaderMap::new());
        ours.insert(headers::JOB, "a");
        copied.insert("X-Mine", "x".repeat(1000).as_str());
        let body = Bytes::from(vec![b'x'; 5000]);
        let (h, kept) = fit(ours.clone(), copied.clone(), &body, 10_000);
        assert_eq!((kept.len(), h.get("X-Mine").is_some(), h.get(headers::CUT)), (5000, true, None));
        for most in [6000, 5000, 1000, 64, 0] {
            let (h, kept) = fit(ours.clone(), copied.clone(), &body, most);
            assert!(kept.is_empty() || size(&h) + 64 + kept.len() <= most, "{most}");
            assert_eq!(h.get(headers::CUT).map(|v| v.as_str()), Some("5000"), "{most}");
            assert!(h.get(headers::JOB).is_some() && h.get("X-Mine").is_none());
        }
    }
}
