//! Reading what a stream holds now, from a place to its present end.

use std::time::Duration;

use async_nats::jetstream::{
    Message,
    consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull},
    stream::Stream,
};
use futures::StreamExt;

use super::{Broker, BrokerError};

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    Start,
    /// Milliseconds of the stream's clock.
    Time(u64),
    Sequence(u64),
}

impl Since {
    /// A time, of which 0 is the start.
    pub(crate) fn ms(ms: u64) -> Self {
        if ms == 0 { Self::Start } else { Self::Time(ms) }
    }

    fn policy(self) -> DeliverPolicy {
        match self {
            Self::Sequence(n) if n > 1 => DeliverPolicy::ByStartSequence { start_sequence: n },
            Self::Time(ms) => {
                match time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000) {
                    Ok(start_time) => DeliverPolicy::ByStartTime { start_time },
                    Err(_) => DeliverPolicy::All,
                }
            }
            Self::Start | Self::Sequence(_) => DeliverPolicy::All,
        }
    }
}

/// What to read of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Scan {
    pub(crate) stream: String,
    /// Subjects, with wildcards.
    pub(crate) filters: Vec<String>,
    pub(crate) since: Since,
    /// Leave the bodies out; `Nats-Msg-Size` has their size.
    pub(crate) headers_only: bool,
}

/// Place of a message in its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) sequence: u64,
    /// Nanoseconds of the stream's clock.
    pub(crate) stored_ns: i128,
}

/// A consumer that only reads, and is gone soon after nobody does.
pub(super) fn reader(deliver_policy: DeliverPolicy, filter_subjects: Vec<String>) -> pull::Config {
    pull::Config {
        deliver_policy,
        filter_subjects,
        ack_policy: AckPolicy::None,
        replay_policy: ReplayPolicy::Instant,
        memory_storage: true,
        inactive_threshold: Duration::from_secs(30),
        ..pull::Config::default()
    }
}

/// How often a reader is made anew without one more message before the scan is given up.
const READERS: u32 = 5;
/// The pause before one is made anew.
const PAUSE: Duration = Duration::from_millis(250);

/// What became of one reader.
enum Read {
    /// Everything that was there when the scan began has been visited.
    All,
    /// The reader fell silent or was deleted, for this reason, while the server still owed it messages.
    Stalled(String),
}

impl Broker {
    /// Visits every message that is there now, in order, once. Ends when it has caught up with the stream.
    ///
    /// A reader that falls silent or is deleted costs nothing but time: another one goes on after the last message.
    /// Silence has causes that are no fault: messages that retention deletes under the scan stay in the count that
    /// the last message brought, and a pull request can get lost with a server that changes its leader.
    pub(crate) async fn scan(
        &self,
        scan: Scan,
        visit: impl FnMut(Place, &Message) + Send,
    ) -> Result<(), BrokerError> {
        self.on_stream(&scan.stream, Box::pin(self.read(&scan, visit))).await?
    }

    async fn read(
        &self,
        scan: &Scan,
        mut visit: impl FnMut(Place, &Message) + Send,
    ) -> Result<(), BrokerError> {
        let away = |e: &dyn std::fmt::Display| BrokerError::Unreachable(format!("{}: {e}", scan.stream));
        let stream = self.js.get_stream(&scan.stream).await.map_err(|e| away(&e))?;
        let mut since = scan.since;
        let mut silent = 0;
        loop {
            let mut last = None;
            let mut noting = |place: Place, m: &Message| {
                last = Some(place.sequence);
                visit(place, m);
            };
            let read = self.read_on(&stream, scan, since, &mut noting).await;
            let why = match read {
                Ok(Read::All) => return Ok(()),
                Ok(Read::Stalled(why)) => why,
                Err(e) => e.to_string(),
            };
            match last {
                Some(n) => (since, silent) = (Since::Sequence(n + 1), 0),
                None => silent += 1,
            }
            if silent == READERS {
                return Err(away(&why));
            }
            tracing::debug!(stream = scan.stream, why, "reading goes on with another consumer");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reads with one consumer.
    async fn read_on(
        &self,
        stream: &Stream,
        scan: &Scan,
        since: Since,
        visit: &mut (impl FnMut(Place, &Message) + Send),
    ) -> Result<Read, async_nats::Error> {
        let consumer = stream
            .create_consumer(pull::Config {
                headers_only: scan.headers_only,
                ..reader(since.policy(), scan.filters.clone())
            })
            .await?;
        let mut left = consumer.cached_info().num_pending;
        if left == 0 {
            return Ok(Read::All);
        }
        let mut messages = consumer.stream().max_messages_per_batch(500).messages().await?;
        while left > 0 {
            let m = match tokio::time::timeout(self.call_timeout(), messages.next()).await {
                Err(_) => return Ok(Read::Stalled("no message in time".into())),
                Ok(None) => return Ok(Read::Stalled("the consumer was deleted".into())),
                Ok(Some(Err(e))) => return Ok(Read::Stalled(e.to_string())),
                Ok(Some(Ok(m))) => m,
            };
            let info = m.info()?;
            left = info.pending;
            let place =
                Place { sequence: info.stream_sequence, stored_ns: info.published.unix_timestamp_nanos() };
            visit(place, &m);
        }
        Ok(Read::All)
    }
}
