//! Reading what a stream holds now, from a place to its present end.

use std::time::Duration;

use async_nats::jetstream::{
    Message,
    consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull},
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

impl Broker {
    /// Visits every message that is there now, in order. What is stored meanwhile is not visited.
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
        let consumer = stream
            .create_consumer(pull::Config {
                headers_only: scan.headers_only,
                ..reader(scan.since.policy(), scan.filters.clone())
            })
            .await
            .map_err(|e| away(&e))?;
        let mut left = consumer.cached_info().num_pending;
        if left == 0 {
            return Ok(());
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
            let place =
                Place { sequence: info.stream_sequence, stored_ns: info.published.unix_timestamp_nanos() };
            visit(place, &m);
        }
        Ok(())
    }
}
