//! Lists of the jobs of batches.

use async_nats::HeaderMap;
use bytes::Bytes;

use super::{Broker, BrokerError, publish::Publisher};
use crate::{
    domain::ids::BatchId,
    pace::Pace,
    wire::{batch::BatchPart, headers},
};

impl Broker {
    /// Publishes the `n`th part of a list, until it is stored.
    /// Errors: `NoStream` where nothing is provisioned for lists.
    pub async fn publish_batch_part(
        &self,
        publisher: &Publisher,
        part: &BatchPart,
        n: u64,
        patience: Pace,
    ) -> Result<(), BrokerError> {
        let body =
            serde_json::to_vec(part).map_err(|e| BrokerError::Unfit(format!("part of a batch: {e}")))?;
        let mut h = HeaderMap::new();
        h.insert(headers::MSG_ID, format!("{}/{n}", part.run).as_str());
        let subject = self.names().batch_subject(&part.batch);
        publisher.publish(&subject, &h, &Bytes::from(body), patience).await?;
        Ok(())
    }

    /// The first part at or after a sequence, with its own sequence. Parts that cannot be read are logged and passed over.
    pub async fn batch_part(
        &self,
        batch: &BatchId,
        mut from: u64,
    ) -> Result<Option<(u64, BatchPart)>, BrokerError> {
        let (stream, subject) = (self.names().batches(), self.names().batch_subject(batch.as_str()));
        while let Some(m) = self.next_message(&stream, from, &subject).await? {
            match serde_json::from_slice(&m.payload) {
                Ok(part) => return Ok(Some((m.sequence, part))),
                Err(error) => tracing::warn!(%batch, %error, "an unreadable part of a batch is passed over"),
            }
            from = m.sequence + 1;
        }
        Ok(None)
    }

    /// Sequence that the next journal entry will have.
    pub async fn journal_end(&self) -> Result<u64, BrokerError> {
        let away = |e: &dyn std::fmt::Display| BrokerError::Unreachable(format!("journal: {e}"));
        let events = self.names().events();
        let stream = self.on_stream(&events, self.js.get_stream(&events)).await?.map_err(|e| away(&e))?;
        Ok(stream.cached_info().state.last_sequence + 1)
    }
}
