//! What the broker says about deliveries that it gave up, kept in a stream so that none is lost while no reaper runs.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use futures::StreamExt;
use serde::Deserialize;

use super::{
    Broker, BrokerError,
    place::{Carrier, CarrierStream},
};

/// One advisory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advisory {
    /// The message.
    pub carrier: Carrier,
    /// Otherwise: a message that was terminated.
    pub is_max_deliveries: bool,
    /// Acks the advisory itself.
    pub ack_subject: String,
}

/// What all reapers share. `surety provision` makes it, so that a reaper need not be allowed to.
pub(super) const CONSUMER: &str = "reaper";

pub(super) fn consumer() -> pull::Config {
    pull::Config {
        durable_name: Some(CONSUMER.into()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(60),
        ..pull::Config::default()
    }
}

#[derive(Deserialize)]
struct Body {
    #[serde(rename = "type")]
    kind: String,
    stream: String,
    stream_seq: u64,
}

impl Broker {
    /// Up to `n` advisories that nobody acked yet, without waiting. All reapers share one consumer.
    pub async fn advisories(&self, n: usize) -> Result<Vec<Advisory>, BrokerError> {
        self.on_stream(&self.names().advisories(), Box::pin(self.read_advisories(n))).await?
    }

    /// The same without taking them: what no reaper acked yet is read and left as it is.
    pub async fn peek_advisories(&self, n: usize) -> Result<Vec<Advisory>, BrokerError> {
        let stream = self.names().advisories();
        let info = self.consumer_info(&stream, CONSUMER).await?;
        let from = info.map_or(0, |i| i.ack_floor.stream_sequence) + 1;
        let (messages, _) = self.messages(&stream, from, "$JS.EVENT.ADVISORY.>", n).await?;
        Ok(messages.iter().filter_map(|m| self.advisory(&m.payload, String::new()).ok()).collect())
    }

    fn advisory(&self, payload: &[u8], ack_subject: String) -> Result<Advisory, String> {
        let b: Body = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
        let of = CarrierStream::ALL.into_iter().find(|s| self.names().stream(*s) == b.stream);
        let stream = of.ok_or_else(|| format!("it is about the stream {:?}", b.stream))?;
        let carrier = Carrier { stream, sequence: b.stream_seq };
        Ok(Advisory { carrier, is_max_deliveries: b.kind.ends_with("max_deliver"), ack_subject })
    }

    async fn read_advisories(&self, n: usize) -> Result<Vec<Advisory>, BrokerError> {
        let away = |e: &dyn std::fmt::Display| BrokerError::Unreachable(format!("advisories: {e}"));
        let stream = self.js.get_stream(self.names().advisories()).await.map_err(|e| away(&e))?;
        let consumer = stream.get_or_create_consumer(CONSUMER, consumer()).await.map_err(|e| away(&e))?;
        let mut messages = consumer.fetch().max_messages(n).messages().await.map_err(|e| away(&e))?;
        let mut out = Vec::new();
        while let Some(m) = messages.next().await {
            let m = m.map_err(|e| away(&e))?;
            let ack_subject = m.reply.as_ref().map(ToString::to_string).unwrap_or_default();
            match self.advisory(&m.payload, ack_subject.clone()) {
                Ok(a) => out.push(a),
                Err(e) => {
                    tracing::warn!(error = %e, "an advisory does not decode and is dropped");
                    self.ack(&ack_subject).await?;
                }
            }
        }
        Ok(out)
    }
}
