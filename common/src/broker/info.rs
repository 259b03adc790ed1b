//! What the server says of a stream or a consumer.

use async_nats::jetstream::{
    consumer::{SequenceInfo, pull},
    stream,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Broker, BrokerError, answered_ms};

/// A stream as it is now.
#[derive(Debug, Deserialize)]
pub(crate) struct StreamInfo {
    pub(crate) config: stream::Config,
    pub(crate) state: StreamState,
    #[serde(default)]
    pub(crate) cluster: Option<stream::ClusterInfo>,
    #[serde(skip)]
    pub(crate) answered_ms: Option<u64>,
}

/// What a stream holds.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct StreamState {
    pub(crate) messages: u64,
    #[serde(default)]
    pub(crate) first_seq: u64,
    #[serde(default)]
    pub(crate) last_seq: u64,
}

/// A consumer as it is now.
#[derive(Debug, Deserialize)]
pub(crate) struct ConsumerInfo {
    pub(crate) config: pull::Config,
    pub(crate) delivered: SequenceInfo,
    /// Up to here everything that the consumer was to deliver is settled.
    pub(crate) ack_floor: SequenceInfo,
    /// Not delivered yet.
    pub(crate) num_pending: u64,
    /// Delivered, or given back with a delay.
    pub(crate) num_ack_pending: u64,
    pub(crate) num_redelivered: u64,
    /// Pulls that wait for messages.
    pub(crate) num_waiting: u64,
    #[serde(default)]
    pub(crate) paused: bool,
    /// Nanoseconds.
    #[serde(default)]
    pub(crate) pause_remaining: Option<u64>,
    #[serde(skip)]
    pub(crate) answered_ms: Option<u64>,
}

/// Error codes of the server: no such stream, no such consumer.
const NO_STREAM: u64 = 10059;
const NO_CONSUMER: u64 = 10014;

impl Broker {
    /// A stream, or `None` when there is none of this name.
    pub(crate) async fn stream_info(&self, stream: &str) -> Result<Option<StreamInfo>, BrokerError> {
        let Some(answer) = self.info(format!("STREAM.INFO.{stream}")).await? else { return Ok(None) };
        let answered = answered_ms(&answer);
        let mut info: StreamInfo = read(stream, answer)?;
        info.answered_ms = answered;
        Ok(Some(info))
    }

    /// A consumer, or `None` when the stream has none of this name or is not there.
    pub(crate) async fn consumer_info(
        &self,
        stream: &str,
        consumer: &str,
    ) -> Result<Option<ConsumerInfo>, BrokerError> {
        let Some(answer) = self.info(format!("CONSUMER.INFO.{stream}.{consumer}")).await? else {
            return Ok(None);
        };
        let answered = answered_ms(&answer);
        let mut info: ConsumerInfo = read(consumer, answer)?;
        info.answered_ms = answered;
        Ok(Some(info))
    }

    async fn info(&self, subject: String) -> Result<Option<Value>, BrokerError> {
        match self.api(subject, json!({})).await {
            Ok(answer) => Ok(Some(answer)),
            Err(BrokerError::Refused { code: NO_STREAM | NO_CONSUMER, .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The server's clock in milliseconds, as it says with what it tells about `JOBS`.
    pub async fn now_ms(&self) -> Result<u64, BrokerError> {
        let info = self.stream_info(&self.names().jobs()).await?;
        info.and_then(|i| i.answered_ms)
            .ok_or_else(|| BrokerError::Unfit("stream JOBS is missing: run `surety provision`".into()))
    }
}

fn read<T: for<'a> Deserialize<'a>>(what: &str, answer: Value) -> Result<T, BrokerError> {
    serde_json::from_value(answer)
        .map_err(|e| BrokerError::Unfit(format!("what the server says of {what} does not decode: {e}")))
}
