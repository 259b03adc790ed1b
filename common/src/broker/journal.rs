//! The journal: writing one entry, reading it back.

use async_nats::{
    HeaderMap,
    jetstream::consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull},
};
use bytes::Bytes;
use futures::StreamExt;

use super::{
    Broker, BrokerError,
    publish::{Pending, Publisher},
};
use crate::wire::{event, headers};

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

/// Longest list of ended ids in a header: longer ones are left out (readers then read the body).
const ENDED_CAP: usize = 16 * 1024;

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

    /// The whole journal, each event with the time its message was stored (nanoseconds of the stream's clock).
    pub async fn read_journal_stored(
        &self,
        visit: impl FnMut(i128, event::Event) + Send,
    ) -> Result<u64, BrokerError> {
        self.read_journal_from(None, 0, visit).await
    }

    async fn read_journal_from(
        &self,
        queue: Option<&str>,
        from_ms: u64,
        mut visit: impl FnMut(i128, event::Event) + Send,
    ) -> Result<u64, BrokerError> {
        let away = |e: &dyn std::fmt::Display| BrokerError::Unreachable(format!("journal: {e}"));
        let n = self.names();
        let stream = self.js.get_stream(n.events()).await.map_err(|e| away(&e))?;
        let ns = n.namespace();
        let filter_subjects = match queue {
            Some(q) => vec![format!("{ns}.events.{q}"), format!("{ns}.events.{q}.ended")],
            None => vec![format!("{ns}.events.>")],
        };
        let start = i64::try_from(from_ms).ok().filter(|ms| *ms > 0);
        let deliver_policy = match start.and_then(async_nats_time) {
            Some(start_time) => DeliverPolicy::ByStartTime { start_time },
            None => DeliverPolicy::All,
        };
        let consumer = stream
            .create_consumer(pull::Config {
                deliver_policy,
                filter_subjects,
                ack_policy: AckPolicy::None,
                replay_policy: ReplayPolicy::Instant,
                memory_storage: true,
                inactive_threshold: std::time::Duration::from_secs(30),
                ..pull::Config::default()
            })
            .await
            .map_err(|e| away(&e))?;
        let mut left = consumer.cached_info().num_pending;
        let mut unreadable = 0;
        if left == 0 {
            return Ok(0);
        }
        let mut messages =
            consumer.stream().max_messages_per_batch(500).messages().await.map_err(|e| away(&e))?;
        while left > 0 {
            let m = tokio::time::timeout(self.call_timeout() * 2, messages.next())
                .await
                .map_err(|_| away(&"no message in time"))?
                .ok_or_else(|| away(&"the consumer was deleted"))?
                .map_err(|e| away(&e))?;
            let info = m.info().map_err(|e| away(&e))?;
            left = info.pending;
            let stored_ns = info.published.unix_timestamp_nanos();
            let (good, bad) = event::read_message(&m.payload);
            good.into_iter().for_each(|e| visit(stored_ns, e));
            if !bad.is_empty() {
                unreadable += 1;
                tracing::warn!(subject = %m.subject, problems = bad.join("; "), "unreadable journal events were skipped");
            }
        }
        Ok(unreadable)
    }
}

fn async_nats_time(ms: i64) -> Option<time::OffsetDateTime> {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()
}
