//! From the outbox to the journal: publishes what the scripts wrote and tells the store what is stored.
//!
//! Worker, reaper and CLI all use this one; a copy that two of them publish has one message id, so the stream keeps one.

use crate::{
    broker::{
        Broker, BrokerError,
        journal::Entry,
        publish::{Pending, Publisher},
    },
    pace::{Pace, Transient},
    store::{OutboxEntry, Store},
    telemetry::metrics::shared,
};

/// Publishes outbox entries. Cheap to clone.
#[derive(Clone)]
pub struct Relay {
    store: Store,
    broker: Broker,
    publisher: Publisher,
}

impl Relay {
    /// A relay between these two.
    pub fn new(store: Store, broker: Broker, publisher: Publisher) -> Self {
        Self { store, broker, publisher }
    }

    async fn send(&self, p: u32, e: &OutboxEntry) -> Result<Pending, BrokerError> {
        let message_id = format!("{}-{p}-{}", self.store.incarnation(p), e.id);
        let entry = Entry { message_id, suffix: &e.suffix, body: &e.body, ended: &e.ended, commit: e.commit };
        self.broker.journal(&self.publisher, &entry).await
    }

    /// Publishes entries of a partition and waits until each is stored; stored ones are trimmed with the store's next call.
    /// The error is that of the first entry that failed for good or for longer than `patience`; the others went on.
    pub async fn publish(&self, p: u32, entries: &[OutboxEntry], patience: Pace) -> Result<(), BrokerError> {
        // All are sent before the first is awaited: one round trip for the lot.
        let mut sent = Vec::with_capacity(entries.len());
        for e in entries {
            sent.push(match &e.problem {
                None => self.send(p, e).await,
                Some(why) => Err(BrokerError::Unfit(format!("outbox entry {} does not decode: {why}", e.id))),
            });
        }
        let mut failed = None;
        let mut stored = Vec::with_capacity(entries.len());
        for (e, pending) in entries.iter().zip(sent) {
            match self.settle(p, e, pending, patience).await {
                Ok(()) => stored.push(e.id.clone()),
                Err(error) => {
                    tracing::error!(entry = e.id, %error, "journal entry not published; it stays in the outbox");
                    failed = Some(error);
                }
            }
        }
        let count = |result, n| shared().journal_entries.with_label_values(&[result]).inc_by(n);
        count("stored", stored.len() as u64);
        if failed.is_some() {
            count("failed", (entries.len() - stored.len()) as u64);
        }
        self.store.confirm(p, stored);
        failed.map_or(Ok(()), Err)
    }

    async fn settle(
        &self,
        p: u32,
        e: &OutboxEntry,
        first: Result<Pending, BrokerError>,
        patience: Pace,
    ) -> Result<(), BrokerError> {
        let mut delays = patience.delays();
        let mut pending = first;
        loop {
            let result = match pending {
                Ok(w) => w.stored().await.map(drop),
                Err(e) => Err(e),
            };
            let error = match result {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // A missing stream may be an election; it is as final as any refusal once patience is out.
            if !error.is_transient() && !matches!(error, BrokerError::NoStream { .. }) {
                return Err(error);
            }
            let Some(delay) = delays.next_delay() else { return Err(error) };
            tracing::debug!(entry = e.id, %error, "journal publish failed, trying again");
            tokio::time::sleep(delay).await;
            pending = self.send(p, e).await;
        }
    }
}
