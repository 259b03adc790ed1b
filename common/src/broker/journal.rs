//! The journal: writing one entry, reading it back.

use async_nats::HeaderMap;
use bytes::Bytes;

use super::{
    Broker, BrokerError,
    endings::Start,
    publish::{Pending, Publisher},
    scan::{Place, Scan},
};
use crate::{
    telemetry::metrics::shared,
    wire::{event, headers},
};

/// A journal entry ready to publish. The same id, subject and bytes whoever publishes it, so a second copy is dropped.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// Unique over all entries of all data sets.
    pub message_id: String,
    /// `<queue>` or `<queue>.ended`.
    pub suffix: &'a str,
    pub body: &'a str,
    /// Ids of the jobs that end in it, separated by commas; may be empty.
    pub ended: &'a str,
    pub commit: u64,
}

/// How much of the journal is kept: its first and last message. Nothing: `last` is below `first`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub first: u64,
    pub last: u64,
}

impl Kept {
    /// Whether the oldest messages are gone.
    pub fn is_cut(self) -> bool {
        self.first > 1
    }
}

/// Longest list of ended ids in a header: longer ones are left out (readers then read the body).
const ENDED_CAP: usize = 16 * 1024;
/// Messages of one direct read.
const PAGE: usize = 500;

impl Broker {
    /// Sends an entry; the result tells when it is stored.
    pub async fn journal(&self, publisher: &Publisher, entry: &Entry<'_>) -> Result<Pending, BrokerError> {
        let mut h = HeaderMap::new();
        h.insert(headers::MSG_ID, entry.message_id.as_str());
        h.insert(headers::COMMIT, entry.commit.to_string().as_str());
        if !entry.ended.is_empty() && entry.ended.len() <= ENDED_CAP {
            h.insert(headers::ENDED, entry.ended);
        }
        let subject = self.names().event_subject(entry.suffix);
        publisher.send(subject, h, Bytes::copy_from_slice(entry.body.as_bytes())).await
    }

    /// Reads the journal from a time (milliseconds, 0: from the start) to its present end, in the order of the stream.
    /// `queue` limits it to one queue. `visit` gets each event that decodes; what does not is logged and counted.
    /// Returns the number of messages that held something unreadable.
    pub async fn read_journal(
        &self,
        queue: Option<&str>,
        from_ms: u64,
        mut visit: impl FnMut(event::Event) + Send,
    ) -> Result<u64, BrokerError> {
        self.read_journal_from(queue, from_ms, |_, e| visit(e)).await
    }

    /// The same by direct reads, in pages: for whoever has no right to make consumers. With a queue named, events with outcomes
    /// come after all others.
    pub async fn look_through_journal(
        &self,
        queue: Option<&str>,
        from_ms: u64,
        mut visit: impl FnMut(event::Event) + Send,
    ) -> Result<u64, BrokerError> {
        let n = self.names();
        let subjects = match queue {
            Some(q) => vec![n.event_subject(q), n.event_subject(&format!("{q}.ended"))],
            None => vec![n.event_subject(">")],
        };
        let mut unreadable = 0;
        for subject in subjects {
            let mut from = if from_ms == 0 { Start::Sequence(1) } else { Start::Time(from_ms) };
            loop {
                let (page, is_more) = self.messages_at(&n.events(), from, &subject, PAGE).await?;
                for m in &page {
                    let (good, bad) = event::read_message(&m.payload);
                    good.into_iter().for_each(&mut visit);
                    unreadable += u64::from(!bad.is_empty());
                }
                match page.last() {
                    Some(last) if is_more => from = Start::Sequence(last.sequence + 1),
                    _ => break,
                }
            }
        }
        Ok(unreadable)
    }

    /// The whole journal, each event with the time its message was stored (nanoseconds of the stream's clock).
    pub async fn read_journal_stored(
        &self,
        mut visit: impl FnMut(i128, event::Event) + Send,
    ) -> Result<u64, BrokerError> {
        self.read_journal_from(None, 0, |place, e| visit(place.stored_ns, e)).await
    }

    /// The journal of all queues from a time on (milliseconds, 0: from the start), each event with the sequence of its message.
    pub async fn read_journal_placed(
        &self,
        from_ms: u64,
        mut visit: impl FnMut(u64, event::Event) + Send,
    ) -> Result<u64, BrokerError> {
        self.read_journal_from(None, from_ms, |place, e| visit(place.sequence, e)).await
    }

    /// What the journal holds now.
    pub async fn journal_kept(&self) -> Result<Kept, BrokerError> {
        let info = self.stream_info(&self.names().events()).await?;
        let state = info.map(|i| i.state);
        state
            .map(|s| Kept { first: s.first_seq, last: s.last_seq })
            .ok_or_else(|| BrokerError::Unfit("stream EVENTS is missing: run `surety provision`".into()))
    }

    async fn read_journal_from(
        &self,
        queue: Option<&str>,
        from_ms: u64,
        mut visit: impl FnMut(Place, event::Event) + Send,
    ) -> Result<u64, BrokerError> {
        let n = self.names();
        let ns = n.namespace();
        let filters = match queue {
            Some(q) => vec![format!("{ns}.events.{q}"), format!("{ns}.events.{q}.ended")],
            None => vec![format!("{ns}.events.>")],
        };
        let mut unreadable = 0;
        self.scan(Scan { stream: n.events(), filters, from_ms, headers_only: false }, |place, m| {
            let (good, bad) = event::read_message(&m.payload);
            good.into_iter().for_each(|e| visit(place, e));
            if !bad.is_empty() {
                unreadable += 1;
                shared().decode_errors.with_label_values(&["journal"]).inc();
                tracing::warn!(subject = %m.subject, problems = bad.join("; "), "unreadable journal events were skipped");
            }
        })
        .await?;
        Ok(unreadable)
    }
}
