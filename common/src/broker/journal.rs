//! The journal: writing one entry, reading it back.

use async_nats::HeaderMap;
use bytes::Bytes;

use super::{
    Broker, BrokerError,
    barrier::{self, Barriers},
    endings::Start,
    publish::{Pending, Publisher},
    pull::Delivery,
    scan::{Place, Scan, Since},
};
use crate::{
    pace::{Pace, retry},
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

    /// Publishes an entry and waits until it is stored.
    pub async fn journal_now(
        &self,
        publisher: &Publisher,
        entry: &Entry<'_>,
        patience: Pace,
    ) -> Result<(), BrokerError> {
        let send = || async { self.journal(publisher, entry).await?.stored().await };
        retry(patience, send).await.map(drop)
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
        self.read_journal_from(queue, from_ms, |_, e| visit(e)).await.map(|passed| passed.unreadable)
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
        let mut barriers = self.read_barriers().await?;
        let mut unreadable = 0;
        for subject in subjects {
            let mut from = if from_ms == 0 { Start::Sequence(1) } else { Start::Time(from_ms) };
            loop {
                let (page, is_more) = self.messages_at(&n.events(), from, &subject, PAGE).await?;
                for m in &page {
                    if !barriers.admit(m.sequence, m.headers.as_ref()) {
                        continue;
                    }
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
        self.read_journal_from(None, 0, |place, e| visit(place.stored_ns, e))
            .await
            .map(|passed| passed.unreadable)
    }

    /// The journal of all queues from a time on (milliseconds, 0: from the start), each event with the sequence of its message.
    pub async fn read_journal_placed(
        &self,
        from_ms: u64,
        mut visit: impl FnMut(u64, event::Event) + Send,
    ) -> Result<Passed, BrokerError> {
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
    ) -> Result<Passed, BrokerError> {
        let n = self.names();
        let ns = n.namespace();
        let filters = match queue {
            Some(q) => {
                vec![format!("{ns}.events.{q}"), format!("{ns}.events.{q}.ended"), n.barrier_subject("*")]
            }
            None => vec![format!("{ns}.events.>")],
        };
        let mut barriers = if from_ms > 0 { self.barriers().await? } else { Barriers::default() };
        let mut passed = Passed::default();
        let scan = Scan { stream: n.events(), filters, since: Since::ms(from_ms), headers_only: false };
        self.scan(scan, |place, m| {
            if !barriers.admit(place.sequence, m.headers.as_ref()) {
                passed.ignored += 1;
                return;
            }
            let (good, bad) = event::read_message(&m.payload);
            good.into_iter().for_each(|e| visit(place, e));
            if !bad.is_empty() {
                passed.unreadable += 1;
                shared().decode_errors.with_label_values(&["journal"]).inc();
                tracing::warn!(subject = %m.subject, problems = bad.join("; "), "unreadable journal events were skipped");
            }
        })
        .await?;
        Ok(passed)
    }

    /// The messages of the journal that count, of all queues, from a place to the present end, as they are stored.
    pub async fn read_journal_messages(
        &self,
        from: JournalFrom,
        mut visit: impl FnMut(JournalMessage<'_>) + Send,
    ) -> Result<(), BrokerError> {
        let (since, mut barriers) = match from {
            JournalFrom::Time(0) => (Since::Start, Barriers::default()),
            JournalFrom::Time(ms) => (Since::Time(ms), self.barriers().await?),
            JournalFrom::Sequence(n) => (Since::Sequence(n), self.barriers().await?),
        };
        let filters = vec![format!("{}.events.>", self.names().namespace())];
        let scan = Scan { stream: self.names().events(), filters, since, headers_only: false };
        self.scan(scan, |place, m| {
            let header = |name| m.headers.as_ref().and_then(|h| h.get(name));
            let commit = header(headers::COMMIT);
            let partition = header(headers::MSG_ID).and_then(|id| barrier::origin(id.as_str()));
            visit(JournalMessage {
                sequence: place.sequence,
                partition: partition.map(|(_, p)| p),
                commit: commit.and_then(|c| c.as_str().parse().ok()).unwrap_or(0),
                counts: barriers.admit(place.sequence, m.headers.as_ref()),
                body: &m.payload,
            });
        })
        .await
    }

    /// The highest commit counter among the newest messages of the journal, by partition. `n`: how many are looked at.
    pub async fn newest_commits(&self, n: u64) -> Result<Vec<(u32, u64)>, BrokerError> {
        let kept = self.journal_kept().await?;
        if kept.last < kept.first {
            return Ok(Vec::new());
        }
        let from = kept.last.saturating_sub(n - 1).max(kept.first);
        let all = format!("{}.events.>", self.names().namespace());
        let (found, _) =
            self.messages(&self.names().events(), from, &all, usize::try_from(n).unwrap_or(1)).await?;
        let read = |d: &Delivery| {
            let (_, partition) = barrier::origin(d.header(headers::MSG_ID)?)?;
            Some((partition, d.header(headers::COMMIT)?.parse().ok()?))
        };
        Ok(found.iter().filter_map(read).collect())
    }
}

/// Messages that a reading passed over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// With something that could not be read.
    pub unreadable: u64,
    /// Behind the barrier that ended their data set.
    pub ignored: u64,
}

/// Where to begin to read the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalFrom {
    /// With what was stored from then on (milliseconds of the stream's clock); 0: with the oldest.
    Time(u64),
    /// With this place in the stream.
    Sequence(u64),
}

/// A message of the journal.
#[derive(Debug, Clone, Copy)]
pub struct JournalMessage<'a> {
    pub sequence: u64,
    /// Commit counter of its data set; 0 where it does not say.
    pub commit: u64,
    /// Whose data set it is; `None` where it does not say.
    pub partition: Option<u32>,
    /// `false`: it came after the end of its data set, and nobody reads its events.
    pub counts: bool,
    /// JSON array of events.
    pub body: &'a [u8],
}
