//! Following the journal as it grows.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull};
use futures::StreamExt;
use tokio::time::Instant;

use super::{Broker, BrokerError};
use crate::wire::{event, headers};

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// With everything that is kept.
    Start,
    /// With what is stored after this call.
    Now,
}

/// Reads the outcomes of one queue. A lost connection or consumer costs a pause: it goes on after the last message read.
pub struct Follow {
    broker: Broker,
    subject: String,
    /// First stream sequence not read yet.
    next: u64,
    messages: Option<pull::Stream>,
}

/// The pause before a lost consumer is made again.
const PAUSE: Duration = Duration::from_millis(250);

impl Broker {
    /// Follows the outcomes (`finished` events) of a queue.
    pub async fn follow_ended(&self, queue: &str, from: From) -> Result<Follow, BrokerError> {
        let stream = self.js.get_stream(self.names().events()).await.map_err(|e| away(&e))?;
        let next = match from {
            From::Start => 1,
            From::Now => stream.cached_info().state.last_sequence + 1,
        };
        let subject = self.names().event_subject(&format!("{queue}.ended"));
        Ok(Follow { broker: self.clone(), subject, next, messages: None })
    }
}

impl Follow {
    /// The next `finished` event of this job, or `None` at `deadline`. Transient failures are waited out.
    ///
    /// # Cancel safety
    /// A message that was received and not yet looked at is lost to this reader when the future is dropped.
    pub async fn ended(&mut self, job: &str, deadline: Instant) -> Result<Option<event::Event>, BrokerError> {
        loop {
            let step = tokio::time::timeout_at(deadline, self.message()).await;
            let message = match step {
                Err(_) => return Ok(None),
                Ok(Ok(m)) => m,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "following the journal failed, trying again");
                    self.messages = None;
                    if Instant::now() + PAUSE >= deadline {
                        return Ok(None);
                    }
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            if let Some(list) = message.headers.as_ref().and_then(|h| h.get(headers::ENDED))
                && !list.as_str().split(',').any(|id| id == job)
            {
                continue;
            }
            let (events, _) = event::read_message(&message.payload);
            if let Some(e) = events.into_iter().find(|e| e.job == job && e.kind == "finished") {
                return Ok(Some(e));
            }
        }
    }

    async fn message(&mut self) -> Result<async_nats::jetstream::Message, BrokerError> {
        let mut messages = match self.messages.take() {
            Some(m) => m,
            None => self.open().await?,
        };
        let m = messages.next().await.ok_or_else(|| away(&"the consumer was deleted"))?;
        let m = m.map_err(|e| away(&e))?;
        self.next = m.info().map_err(|e| away(&e))?.stream_sequence + 1;
        self.messages = Some(messages);
        Ok(m)
    }

    async fn open(&self) -> Result<pull::Stream, BrokerError> {
        let stream = self.broker.js.get_stream(self.broker.names().events()).await.map_err(|e| away(&e))?;
        let consumer = stream
            .create_consumer(pull::Config {
                deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next },
                filter_subjects: vec![self.subject.clone()],
                ack_policy: AckPolicy::None,
                replay_policy: ReplayPolicy::Instant,
                memory_storage: true,
                inactive_threshold: Duration::from_secs(30),
                ..pull::Config::default()
            })
            .await
            .map_err(|e| away(&e))?;
        consumer
            .stream()
            .max_messages_per_batch(200)
            .heartbeat(Duration::from_secs(2))
            .expires(Duration::from_secs(20))
            .messages()
            .await
            .map_err(|e| away(&e))
    }
}

fn away(e: &dyn std::fmt::Display) -> BrokerError {
    BrokerError::Unreachable(format!("journal: {e}"))
}
