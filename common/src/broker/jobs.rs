//! What a producer publishes: the headers of a job message, and those of the carrier of a replay.

use async_nats::HeaderMap;
use jiff::Timestamp;

use super::{dead::copied_headers, pull::Delivery, schedule::schedule_headers, topology::Names};
use crate::{
    domain::{JobId, QueueName, schedule::When},
    wire::headers,
};

/// Where a job is published first, and with which headers; as a schedule where it is due later. The message id is the job
/// id, so a repeat within the stream's window is dropped; one of a job that is scheduled is refused
/// ([`NOT_EMPTY`](super::schedule::NOT_EMPTY)). `traceparent` must be a checked W3C trace context (no line breaks).
pub fn first_message(
    names: &Names,
    queue: &QueueName,
    id: &JobId,
    due_at: Option<Timestamp>,
    traceparent: Option<&str>,
) -> (String, HeaderMap) {
    let (subject, mut h) = match due_at {
        None => {
            let mut h = HeaderMap::new();
            h.insert(headers::MSG_ID, id.as_str());
            (names.job_subject(queue, id), h)
        }
        Some(at) => {
            let target = names.due_subject(queue.as_str(), id.as_str());
            let h = schedule_headers(&When::At(at), &target, id.as_str(), true);
            (names.sched_subject(queue.as_str(), id.as_str()), h)
        }
    };
    if let Some(t) = traceparent {
        h.insert(headers::TRACEPARENT, t);
    }
    (subject, h)
}

/// Headers of the carrier that gives a dead letter another generation. The message id is of its own, so a repeat of this
/// very replay is dropped and the first publish of the job does not stand in its way.
pub fn replay_headers(letter: &Delivery, id: &JobId, generation: u32, epoch: u64) -> HeaderMap {
    let mut h = copied_headers(letter.headers.as_ref());
    h.insert(headers::MSG_ID, format!("{id}/{generation}/replay/{epoch}").as_str());
    h.insert(headers::JOB, id.as_str());
    h.insert(headers::GENERATION, generation.to_string().as_str());
    let original = format!("{}{}", headers::ORIGINAL, headers::FIRST_AT);
    if let Some(t) = letter.header(&original).or_else(|| letter.header(headers::FIRST_AT)) {
        h.insert(headers::FIRST_AT, headers::clean(t).as_str());
    }
    h
}
