//! Receipts on their way to requesters: published once their outcome is journaled, held by a work queue until a dispatcher
//! has settled them.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;

use super::{
    Broker, BrokerError,
    publish::{Pending, Publisher},
    pull::{Delivery, Puller},
};
use crate::{
    domain::{JobId, Requester, ids::receipt_id},
    wire::headers,
};

/// What all dispatchers share. `surety provision` makes it.
pub(crate) const CONSUMER: &str = "dispatcher";

/// A receipt to publish.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    pub job: &'a JobId,
    pub generation: u32,
    pub queue: &'a str,
    /// Who is to be told ([`Requester`] as JSON).
    pub notify: &'a str,
    /// `traceparent`, or empty.
    pub trace: &'a str,
    /// The receipt, byte for byte.
    pub body: &'a str,
    /// Empty: the receipt's id, by which a repeat is dropped. Else what tells this copy from one that the broker still
    /// remembers although it is gone.
    pub message_id: &'a str,
}

/// A receipt that a dispatcher pulled.
#[derive(Debug, Clone)]
pub struct Incoming {
    pub job: JobId,
    pub generation: u32,
    pub queue: String,
    pub requester: Requester,
    /// `traceparent`, or empty.
    pub trace: String,
    /// The receipt, byte for byte.
    pub body: Bytes,
    /// The broker's delivery count.
    pub delivered: u64,
    /// Where acks for it go.
    pub ack_subject: String,
}

impl Incoming {
    /// The receipt's id: the idempotency key of every delivery.
    pub fn id(&self) -> String {
        receipt_id(&self.job, self.generation, "finished")
    }
}

impl Broker {
    /// Sends a receipt to the dispatchers; the result tells when it is stored.
    pub async fn send_receipt(&self, publisher: &Publisher, r: Outgoing<'_>) -> Result<Pending, BrokerError> {
        let mut h = HeaderMap::new();
        if r.message_id.is_empty() {
            h.insert(headers::MSG_ID, receipt_id(r.job, r.generation, "finished").as_str());
        } else {
            h.insert(headers::MSG_ID, r.message_id);
        }
        h.insert(headers::JOB, r.job.as_str());
        h.insert(headers::GENERATION, r.generation.to_string().as_str());
        h.insert(headers::NOTIFY, r.notify);
        if !r.trace.is_empty() {
            h.insert(headers::TRACEPARENT, r.trace);
        }
        let subject = self.names().receipt_subject(r.queue, r.job);
        publisher.send(subject, h, Bytes::copy_from_slice(r.body.as_bytes())).await
    }

    /// The newest receipt of a job that still waits to be settled, if any.
    pub async fn waiting_receipt(&self, queue: &str, job: &JobId) -> Result<Option<Delivery>, BrokerError> {
        self.last_message(&self.names().receipts(), &self.names().receipt_subject(queue, job)).await
    }

    /// Pulls receipts, for one dispatcher. `expires`: how long a pull waits at the server.
    pub async fn receipts(&self, expires: Duration) -> Result<Puller, BrokerError> {
        Puller::of(self, &self.names().receipts(), CONSUMER, expires).await
    }

    /// Reads a pulled receipt. The error is one line: what is missing or wrong.
    pub fn read_receipt(&self, d: &Delivery) -> Result<Incoming, String> {
        let header = |name: &str| d.header(name).ok_or_else(|| format!("it has no header {name}"));
        let queue = self.names().parse_receipt_subject(&d.subject);
        Ok(Incoming {
            job: JobId::new(header(headers::JOB)?).map_err(|e| e.to_string())?,
            generation: header(headers::GENERATION)?.parse().map_err(|e| format!("generation: {e}"))?,
            queue: queue.ok_or("its subject names no queue")?.to_owned(),
            requester: Requester::from_json(header(headers::NOTIFY)?)?,
            trace: d.header(headers::TRACEPARENT).unwrap_or_default().to_owned(),
            body: d.payload.clone(),
            delivered: d.delivered,
            ack_subject: d.ack_subject.to_string(),
        })
    }
}
