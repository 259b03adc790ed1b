//! Settling carriers. JetStream does not fence: any holder of an ack subject, however old, can ack. So nobody acks before
//! the fenced commit in Redis is journaled.

use std::time::Duration;

use async_nats::subject::ToSubject;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::json;

use super::{
    Broker, BrokerError, decode,
    endings::Start,
    leader::Fresh,
    place::{Carrier, CarrierStream},
    position::Position,
    pull::{Delivery, Subject},
    schedule,
};
use crate::{
    clock::read_millis,
    domain::{JobId, QueueName},
};

impl Broker {
    async fn settle(&self, ack_subject: &impl ToSubject, body: Bytes) -> Result<(), BrokerError> {
        self.client
            .publish(ack_subject.to_subject(), body)
            .await
            .map_err(|e| BrokerError::Unreachable(e.to_string()))
    }

    /// What a record keeps of an ack subject: nothing, where it is the server's common form, which [`Broker::recorded_ack`]
    /// can make again; each byte of a record costs time in Redis. The counters in it do not matter to the server.
    pub fn ack_to_record<'a>(&self, queue: &str, ack_subject: &'a str) -> &'a str {
        let rest = ack_subject.strip_prefix("$JS.ACK.").and_then(|rest| {
            let (stream, rest) = rest.split_once('.')?;
            let is_ours = CarrierStream::ALL.into_iter().any(|of| self.names().is_stream(of, stream));
            rest.strip_prefix(queue)?.strip_prefix('.').filter(|_| is_ours)
        });
        let is_common = rest.is_some_and(|counters| counters.split('.').count() == 5);
        if is_common { "" } else { ack_subject }
    }

    /// The ack subject of a recorded carrier; `None` where none can be told.
    pub fn recorded_ack(&self, queue: &str, carrier: &str, recorded: &str) -> Option<String> {
        if !recorded.is_empty() {
            return Some(recorded.to_owned());
        }
        let Carrier { stream, sequence } = Carrier::parse(carrier)?;
        Some(format!("$JS.ACK.{}.{queue}.1.{sequence}.1.0.0", self.names().stream(stream)))
    }

    /// Gives the message of a recorded delivery back, as [`Broker::nak`] does. For an ack the counters in its subject do not
    /// matter; a nak is dropped in silence unless it names a delivery that is not settled (seen in the server's code).
    pub async fn nak_recorded(
        &self,
        queue: &str,
        carrier: &str,
        recorded: &str,
        delay: Duration,
    ) -> Result<(), BrokerError> {
        if !recorded.is_empty() {
            return self.nak(&recorded.to_owned(), delay).await;
        }
        let Some(Carrier { stream, sequence }) = Carrier::parse(carrier) else { return Ok(()) };
        let stream = self.names().stream(stream);
        let Some(info) = self.consumer_info(&stream, queue).await? else { return Ok(()) };
        self.nak(&held_ack(&stream, queue, sequence, info.delivered.consumer_sequence), delay).await
    }

    /// Gives a message that a lane holds back, at once: many of them by one look at the lane. One that was delivered only
    /// after that look may stay where it is.
    pub async fn nak_held(&self, at: &Position, sequence: u64) -> Result<(), BrokerError> {
        let ack = held_ack(&at.lane.stream, &at.lane.consumer, sequence, at.delivered_as);
        self.nak(&ack, Duration::ZERO).await
    }

    /// Removes the message. Sent without waiting; a lost ack costs one redelivery, which is told that the job has ended.
    pub async fn ack(&self, ack_subject: &impl ToSubject) -> Result<(), BrokerError> {
        self.settle(ack_subject, Bytes::from_static(b"+ACK")).await
    }

    /// Removes the message and waits until the server has done so.
    pub async fn ack_now(&self, ack_subject: &str) -> Result<(), BrokerError> {
        self.request(ack_subject.to_owned(), Bytes::from_static(b"+ACK")).await.map(drop)
    }

    /// Gives the message back: delivered again after `delay`, or at once. The caller has stopped extending it.
    pub async fn nak(&self, ack_subject: &impl ToSubject, delay: Duration) -> Result<(), BrokerError> {
        let body = if delay.is_zero() {
            Bytes::from_static(b"-NAK")
        } else {
            Bytes::from(format!("-NAK {{\"delay\":{}}}", delay.as_nanos()))
        };
        self.settle(ack_subject, body).await
    }

    /// Restarts the ack-wait of a message that is being worked on. Never after a nak: it would replace the delay.
    pub async fn extend(&self, ack_subject: &impl ToSubject) -> Result<(), BrokerError> {
        self.settle(ack_subject, Bytes::from_static(b"+WPI")).await
    }

    /// The message of a carrier's name (`JOBS:17`), or `None` when it is gone.
    pub async fn carrier_message(&self, carrier: &str) -> Result<Option<Delivery>, BrokerError> {
        let Some(Carrier { stream, sequence }) = Carrier::parse(carrier) else { return Ok(None) };
        self.message(&self.names().stream(stream), sequence).await
    }

    /// Deletes a carrier. Gone already is fine.
    pub async fn delete_carrier(&self, carrier: Carrier) -> Result<(), BrokerError> {
        self.delete(&self.names().stream(carrier.stream), carrier.sequence).await
    }

    /// A message of a stream by its sequence, or `None` when it is gone.
    pub async fn message(&self, stream: &str, sequence: u64) -> Result<Option<Delivery>, BrokerError> {
        self.direct(stream, json!({ "seq": sequence })).await
    }

    /// The newest message on a subject, or `None`.
    pub async fn last_message(&self, stream: &str, subject: &str) -> Result<Option<Delivery>, BrokerError> {
        self.direct(stream, json!({ "last_by_subj": subject })).await
    }

    /// The first message at or after `sequence` whose subject matches, or `None`.
    pub async fn next_message(
        &self,
        stream: &str,
        sequence: u64,
        subject: &str,
    ) -> Result<Option<Delivery>, BrokerError> {
        self.direct(stream, json!({ "seq": sequence, "next_by_subj": subject })).await
    }

    async fn direct(&self, stream: &str, body: serde_json::Value) -> Result<Option<Delivery>, BrokerError> {
        let fresh = Fresh::of(self, stream, body);
        let (subject, body) =
            (format!("$JS.API.DIRECT.GET.{stream}"), Bytes::from(fresh.wanted().to_string()));
        loop {
            let found = read_direct(self.request(subject.clone(), body.clone()).await?)?;
            if fresh.is_enough(found.as_ref().map(|m| m.sequence)).await? {
                return Ok(found);
            }
        }
    }

    /// Up to `n` messages at or after `sequence` whose subject matches, and whether more follow. One request.
    pub async fn messages(
        &self,
        stream: &str,
        sequence: u64,
        subject: &str,
        n: usize,
    ) -> Result<(Vec<Delivery>, bool), BrokerError> {
        self.messages_at(stream, Start::Sequence(sequence), subject, n).await
    }

    /// The same from a sequence or a time on.
    pub(crate) async fn messages_at(
        &self,
        stream: &str,
        from: Start,
        subject: &str,
        n: usize,
    ) -> Result<(Vec<Delivery>, bool), BrokerError> {
        self.page(stream, from, subject, n).await.map(|(m, left)| (m, left > 0))
    }

    /// Messages, and how many follow them.
    async fn page(
        &self,
        stream: &str,
        from: Start,
        subject: &str,
        n: usize,
    ) -> Result<(Vec<Delivery>, u64), BrokerError> {
        let fresh = match from {
            Start::Sequence(n) => Some(Fresh::of(self, stream, json!({ "seq": n, "next_by_subj": subject }))),
            // What is read from a time on is not asked for by its absence.
            Start::Time(_) => None,
        };
        loop {
            let (page, left) = self.on_stream(stream, self.read_messages(stream, from, subject, n)).await??;
            match &fresh {
                Some(fresh) if !fresh.is_enough(page.first().map(|m| m.sequence)).await? => {}
                _ => return Ok((page, left)),
            }
        }
    }

    /// Number of messages of a stream whose subject matches.
    pub async fn count(&self, stream: &str, subject: &str) -> Result<u64, BrokerError> {
        self.count_from(stream, 1, subject).await
    }

    /// Number of those at or after a sequence. One request.
    pub async fn count_from(&self, stream: &str, sequence: u64, subject: &str) -> Result<u64, BrokerError> {
        let (first, left) = self.page(stream, Start::Sequence(sequence), subject, 1).await?;
        Ok(first.len() as u64 + left)
    }

    /// The messages, and how many follow the last of them.
    async fn read_messages(
        &self,
        stream: &str,
        from: Start,
        subject: &str,
        n: usize,
    ) -> Result<(Vec<Delivery>, u64), BrokerError> {
        let away = |e: &dyn std::fmt::Display| BrokerError::Unreachable(format!("{stream}: {e}"));
        let inbox = self.client.new_inbox();
        let mut replies = self.client.subscribe(inbox.clone()).await.map_err(|e| away(&e))?;
        let body = match from {
            Start::Sequence(seq) => json!({ "seq": seq, "next_by_subj": subject, "batch": n }),
            Start::Time(ms) => {
                let at = crate::clock::iso_millis(ms.max(1));
                json!({ "start_time": at, "next_by_subj": subject, "batch": n })
            }
        };
        let request = format!("$JS.API.DIRECT.GET.{stream}");
        self.client
            .publish_with_reply(request, inbox, body.to_string().into())
            .await
            .map_err(|e| away(&e))?;
        let (mut out, mut left) = (Vec::new(), 0);
        loop {
            let m = tokio::time::timeout(self.call_timeout(), replies.next())
                .await
                .map_err(|_| away(&"no answer in time"))?
                .ok_or_else(|| away(&"the connection was closed"))?;
            match m.status.map(|s| s.as_u16()) {
                // The end of what was asked for.
                Some(204) => return Ok((out, left)),
                Some(503) => return Err(away(&"it does not answer direct reads")),
                _ => {}
            }
            let pending = m.headers.as_ref().and_then(|h| h.get_last("Nats-Num-Pending"));
            left = pending.and_then(|v| v.as_str().parse().ok()).unwrap_or(0);
            match read_direct(m)? {
                Some(d) => out.push(d),
                None => return Ok((out, 0)),
            }
        }
    }

    /// Deletes a message by its sequence. Gone already is fine.
    pub async fn delete(&self, stream: &str, sequence: u64) -> Result<(), BrokerError> {
        let subject = format!("STREAM.MSG.DELETE.{stream}");
        match self.api(subject, json!({ "seq": sequence, "no_erase": true })).await {
            Ok(_) | Err(BrokerError::Refused { code: 10057 | 10043, .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The carrier of a job that nobody pulled yet, in any of these queues: waiting, come due, or still a schedule.
    pub async fn find_carrier(
        &self,
        queues: &[QueueName],
        id: &JobId,
    ) -> Result<Option<(QueueName, Delivery)>, BrokerError> {
        for q in queues {
            let subject = self.names().job_subject(q, id);
            if let Some(m) = self.last_message(&self.names().jobs(), &subject).await? {
                return Ok(Some((q.clone(), m)));
            }
        }
        let found = self.find_due(id).await?;
        let queue = |m: &Delivery| self.names().queue_of(&m.subject).and_then(|q| QueueName::new(q).ok());
        Ok(found.and_then(|m| Some((queue(&m)?, m))))
    }

    /// The message in `SCHED` that is or will be this job.
    async fn find_due(&self, id: &JobId) -> Result<Option<Delivery>, BrokerError> {
        let (names, stream) = (self.names(), self.names().sched());
        // Ordering: the schedule before what it makes, so that one that fires between the looks is not missed.
        if let Some(m) = self.last_message(&stream, &names.sched_subject("*", id.as_str())).await?
            && schedule::due_at(&m).is_some()
        {
            return Ok(Some(m));
        }
        if let Some(m) = self.last_message(&stream, &names.due_subject("*", id.as_str())).await?
            && decode::is_job(self, &m, id)
        {
            return Ok(Some(m));
        }
        // A job of a schedule that fires again has its sequence in its id.
        let sequence = id.as_str().rsplit_once('-').and_then(|(_, n)| n.parse().ok());
        let Some(sequence) = sequence.filter(|n| *n > 0) else { return Ok(None) };
        let found = self.message(&stream, sequence).await?;
        Ok(found.filter(|m| names.parse_due_subject(&m.subject).is_some() && decode::is_job(self, m, id)))
    }
}

/// An ack subject of a message that a consumer holds. `newest`: its newest delivery, which is above the floor as long as any
/// is held.
fn held_ack(stream: &str, consumer: &str, sequence: u64, newest: u64) -> String {
    format!("$JS.ACK.{stream}.{consumer}.1.{sequence}.{newest}.0.0")
}

/// A message from the answer to a direct get; `None` where there is none.
fn read_direct(m: async_nats::Message) -> Result<Option<Delivery>, BrokerError> {
    if m.status.is_some_and(|s| s.as_u16() == 404) {
        return Ok(None);
    }
    // The last of each: the server adds its own behind what the publisher sent, which may have the same names.
    let header = |n: &str| m.headers.as_ref().and_then(|h| h.get_last(n)).map(|v| v.as_str().to_owned());
    let sequence = header("Nats-Sequence").and_then(|s| s.parse().ok());
    let (Some(subject), Some(sequence)) = (header("Nats-Subject"), sequence) else {
        return Err(BrokerError::Unreachable(format!("direct get: {}", m.description.unwrap_or_default())));
    };
    let stored_ms = header("Nats-Time-Stamp").and_then(|t| read_millis(&t)).unwrap_or(0);
    Ok(Some(Delivery {
        subject: subject.into(),
        payload: m.payload,
        headers: m.headers,
        ack_subject: Subject::from_static(""),
        sequence,
        delivered: 0,
        stored_ms,
    }))
}
