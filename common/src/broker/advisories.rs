//! What the broker says about deliveries that it gave up, kept in a stream so that none is lost while no reaper runs.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use futures::StreamExt;
use serde::Deserialize;

use super::{Broker, BrokerError};

/// One advisory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advisory {
    /// Sequence in `JOBS`.
    pub sequence: u64,
    /// Otherwise: a message that was terminated.
    pub is_max_deliveries: bool,
    /// Acks the advisory itself.
    pub ack_subject: String,
}

#[derive(Deserialize)]
struct Body {
    #[serde(rename = "type")]
    kind: String,
    stream_seq: u64,
}

impl Broker {
    /// Up to `n` advisories that nobody acked yet, without waiting. All reapers share one consumer.
    pub async fn advisories(&self, n: usize) -> Result<Vec<Advisory>, BrokerError> {
        let away = |e: &dyn std::fmt::Display| BrokerError::Unreachable(format!("advisories: {e}"));
        let stream = self.js.get_stream(self.names().advisories()).await.map_err(|e| away(&e))?;
        let consumer = stream
            .get_or_create_consumer(
                "reaper",
                pull::Config {
                    durable_name: Some("reaper".into()),
                    ack_policy: AckPolicy::Explicit,
                    ack_wait: Duration::from_secs(60),
                    ..pull::Config::default()
                },
            )
            .await
            .map_err(|e| away(&e))?;
        let mut messages = consumer.fetch().max_messages(n).messages().await.map_err(|e| away(&e))?;
        let mut out = Vec::new();
        while let Some(m) = messages.next().await {
            let m = m.map_err(|e| away(&e))?;
            let ack_subject = m.reply.as_ref().map(ToString::to_string).unwrap_or_default();
            match serde_json::from_slice::<Body>(&m.payload) {
                Ok(b) => out.push(Advisory {
                    sequence: b.stream_seq,
                    is_max_deliveries: b.kind.ends_with("max_deliver"),
                    ack_subject,
                }),
                Err(e) => {
                    tracing::warn!(error = %e, "an advisory does not decode and is dropped");
                    self.ack(&ack_subject).await?;
                }
            }
        }
        Ok(out)
    }
}
