//! What the broker alone can do: the floor that `surety bench` measures itself against. No promise of Surety is kept here.

use std::time::{Duration, Instant};

use async_nats::{
    HeaderMap,
    jetstream::{
        consumer::{AckPolicy, pull},
        stream::{Config, DiscardPolicy, RetentionPolicy, StorageType},
    },
};
use bytes::Bytes;
use futures::StreamExt;

use super::{Broker, BrokerError};
use crate::wire::headers;

/// A plain work queue of the same shape as `JOBS`: same subject scheme, same message ids, file storage.
pub struct Floor<'a> {
    broker: &'a Broker,
    name: String,
}

fn away(e: &dyn std::fmt::Display) -> BrokerError {
    BrokerError::Unreachable(e.to_string())
}

impl<'a> Floor<'a> {
    /// Makes the stream and its consumer.
    pub async fn make(broker: &'a Broker, name: &str) -> Result<Self, BrokerError> {
        let stream = broker
            .js
            .create_stream(Config {
                name: name.to_owned(),
                subjects: vec![format!("{name}.jobs.q"), format!("{name}.jobs.q.>")],
                retention: RetentionPolicy::WorkQueue,
                discard: DiscardPolicy::New,
                storage: StorageType::File,
                allow_direct: true,
                duplicate_window: Duration::from_secs(600),
                ..Config::default()
            })
            .await
            .map_err(|e| away(&e))?;
        stream
            .create_consumer(pull::Config {
                durable_name: Some("q".into()),
                ack_policy: AckPolicy::Explicit,
                ack_wait: Duration::from_secs(60),
                max_ack_pending: 1_000_000,
                ..pull::Config::default()
            })
            .await
            .map_err(|e| away(&e))?;
        Ok(Self { broker, name: name.to_owned() })
    }

    /// Publishes `n` messages of 256 bytes with counted acks, all on one inbox: the fastest plain way there is.
    pub async fn publish(&self, n: usize, in_flight: usize) -> Result<Duration, BrokerError> {
        let client = &self.broker.client;
        let inbox = client.new_inbox();
        let mut acks = client.subscribe(inbox.clone()).await.map_err(|e| away(&e))?;
        let payload = Bytes::from(vec![b'x'; 256]);
        let started = Instant::now();
        let mut waiting = 0;
        for i in 0..n {
            let id = ulid::Ulid::generate().to_string();
            let mut h = HeaderMap::new();
            h.insert(headers::MSG_ID, id.as_str());
            client
                .publish_with_reply_and_headers(
                    format!("{}.jobs.q.{id}", self.name),
                    inbox.clone(),
                    h,
                    payload.clone(),
                )
                .await
                .map_err(|e| away(&e))?;
            waiting += 1;
            let target = if i + 1 == n { 0 } else { in_flight };
            while waiting > target {
                let ack = tokio::time::timeout(Duration::from_secs(30), acks.next())
                    .await
                    .map_err(|_| away(&"no acknowledgement in time"))?
                    .ok_or_else(|| away(&"the connection was closed"))?;
                if ack.payload.windows(7).any(|w| w == b"\"error\"") {
                    return Err(away(&String::from_utf8_lossy(&ack.payload)));
                }
                waiting -= 1;
            }
        }
        Ok(started.elapsed())
    }

    /// Pulls `n` messages in batches of 500, several under way, acks each, and waits until the stream is empty.
    pub async fn pull_and_ack(&self, n: usize) -> Result<Duration, BrokerError> {
        let client = &self.broker.client;
        let inbox = client.new_inbox();
        let mut messages = client.subscribe(inbox.clone()).await.map_err(|e| away(&e))?;
        let request = format!("$JS.API.CONSUMER.MSG.NEXT.{}.q", self.name);
        let ask = || {
            client.publish_with_reply(
                request.clone(),
                inbox.clone(),
                Bytes::from_static(br#"{"batch":500,"expires":30000000000}"#),
            )
        };
        let started = Instant::now();
        for _ in 0..4 {
            ask().await.map_err(|e| away(&e))?;
        }
        let mut got = 0;
        while got < n {
            let m = tokio::time::timeout(Duration::from_secs(30), messages.next())
                .await
                .map_err(|_| away(&"no message in time"))?
                .ok_or_else(|| away(&"the connection was closed"))?;
            let Some(reply) = m.reply else { continue };
            client.publish(reply, Bytes::from_static(b"+ACK")).await.map_err(|e| away(&e))?;
            got += 1;
            if got % 500 == 0 {
                ask().await.map_err(|e| away(&e))?;
            }
        }
        while self.broker.stream_messages(&self.name).await? > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(started.elapsed())
    }

    /// Removes the stream.
    pub async fn remove(self) -> Result<(), BrokerError> {
        self.broker.js.delete_stream(&self.name).await.map(drop).map_err(|e| away(&e))
    }
}

impl Broker {
    /// Number of messages in a stream.
    pub async fn stream_messages(&self, name: &str) -> Result<u64, BrokerError> {
        let stream = self.js.get_stream(name).await.map_err(|e| away(&e))?;
        Ok(stream.cached_info().state.messages)
    }
}
