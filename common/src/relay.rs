//! From the outbox to the journal: publishes what the scripts wrote and tells the store what is stored.
//!
//! Worker, reaper and CLI all use this one; a copy that two of them publish has one message id, so the stream keeps one. An
//! entry is confirmed when its journal message is stored and the receipts of its outcomes are: whoever repeats it publishes
//! both again.
//!
//! An entry counts only if it is stored before its data set is given up (`docs/redis-loss.md`). A data set that answered at
//! some moment is not given up within the trust that a lease is given, so what is stored by then counts; later, the store is
//! asked once more.

use std::time::Duration;

use crate::{
    broker::{
        Broker, BrokerError,
        journal::Entry,
        publish::{Pending, Publisher},
        receipts::Outgoing,
    },
    clock::boot_ms,
    fault,
    pace::{Pace, Transient},
    store::{OutboxEntry, OutboxReceipt, Store},
    telemetry::metrics::shared,
};

/// Publishes outbox entries. Cheap to clone.
#[derive(Clone)]
pub struct Relay {
    store: Store,
    broker: Broker,
    publisher: Publisher,
    /// How long after a data set has answered what it wrote counts, whatever becomes of it.
    trust_ms: u64,
}

/// What an entry is published as.
#[derive(Clone, Copy)]
enum Part<'a> {
    /// Its events, with the partition that it is of.
    Journal(u32, &'a OutboxEntry),
    Receipt(&'a OutboxEntry, &'a OutboxReceipt),
}

impl Part<'_> {
    fn entry(&self) -> &str {
        match self {
            Self::Journal(_, e) | Self::Receipt(e, _) => &e.id,
        }
    }
}

impl Relay {
    /// A relay between these two. `trust`: `lease.ttl` without `lease.margin`.
    pub fn new(store: Store, broker: Broker, publisher: Publisher, trust: Duration) -> Self {
        let trust_ms = u64::try_from(trust.as_millis()).unwrap_or(0);
        Self { store, broker, publisher, trust_ms }
    }

    async fn send(&self, part: Part<'_>) -> Result<Pending, BrokerError> {
        match part {
            Part::Journal(p, e) => self.send_journal(p, e).await,
            Part::Receipt(e, r) => self.send_receipt(e, r).await,
        }
    }

    async fn send_journal(&self, p: u32, e: &OutboxEntry) -> Result<Pending, BrokerError> {
        let message_id = format!("{}-{p}-{}", e.origin.incarnation, e.id);
        let entry = Entry { message_id, suffix: &e.suffix, body: &e.body, ended: &e.ended, commit: e.commit };
        self.broker.journal(&self.publisher, &entry).await
    }

    /// Publishes entries of a partition and waits until each is stored; stored ones are trimmed with the store's next call.
    /// The error is that of the last entry that failed for good or for longer than `patience`; the others went on. `Outlived`:
    /// their data set was lost meanwhile, or cannot be asked; nobody may act as if they were journaled.
    pub async fn publish(&self, p: u32, entries: &[OutboxEntry], patience: Pace) -> Result<(), BrokerError> {
        // All are sent before the first is awaited: one round trip for the lot.
        let mut sent = Vec::with_capacity(entries.len());
        for e in entries {
            sent.push(match &e.problem {
                None => self.send(Part::Journal(p, e)).await,
                Some(why) => Err(BrokerError::Unfit(format!("outbox entry {} does not decode: {why}", e.id))),
            });
        }
        let mut failed = None;
        let mut stored = Vec::with_capacity(entries.len());
        for (e, pending) in entries.iter().zip(sent) {
            match self.settle(Part::Journal(p, e), pending, patience).await {
                Ok(()) => stored.push(e.id.clone()),
                Err(error) => {
                    tracing::error!(entry = e.id, %error, "journal entry not published; it stays in the outbox");
                    failed = Some(error);
                }
            }
        }
        // Ordering: nobody is told of an outcome that does not count.
        if !self.counts(p, entries).await {
            stored.clear();
            failed = Some(BrokerError::Outlived);
        }
        // Nearly all entries have none, and pay nothing for those that do.
        if entries.iter().any(|e| !e.receipts.is_empty())
            && let Err(error) = Box::pin(self.publish_receipts(entries, &mut stored, patience)).await
        {
            failed = Some(error);
        }
        let count = |result, n| shared().journal_entries.with_label_values(&[result]).inc_by(n);
        count("stored", stored.len() as u64);
        if failed.is_some() {
            count("failed", (entries.len() - stored.len()) as u64);
        }
        self.store.confirm(p, stored);
        failed.map_or(Ok(()), Err)
    }

    /// Publishes the receipts of the entries that are journaled; an entry whose receipt is not stored is not confirmed.
    // Ordering: a receipt may reach its requester the moment it is stored, so the journal has its outcome before.
    async fn publish_receipts(
        &self,
        entries: &[OutboxEntry],
        journaled: &mut Vec<String>,
        patience: Pace,
    ) -> Result<(), BrokerError> {
        fault::point("receipts_due");
        let mut sent = Vec::new();
        for e in entries.iter().filter(|e| !e.receipts.is_empty() && journaled.contains(&e.id)) {
            for r in &e.receipts {
                sent.push((e, r, self.send(Part::Receipt(e, r)).await));
            }
        }
        let mut failed = Ok(());
        for (e, r, pending) in sent {
            if let Err(error) = self.settle(Part::Receipt(e, r), pending, patience).await {
                tracing::error!(entry = e.id, job_id = %r.job, %error, "receipt not published; its entry stays in the outbox");
                journaled.retain(|id| *id != e.id);
                failed = Err(error);
            }
        }
        fault::point("receipts_stored");
        failed
    }

    async fn send_receipt(&self, e: &OutboxEntry, r: &OutboxReceipt) -> Result<Pending, BrokerError> {
        let receipt = Outgoing {
            job: &r.job,
            generation: r.generation,
            queue: e.suffix.strip_suffix(".ended").unwrap_or(&e.suffix),
            notify: &r.notify,
            trace: &r.trace,
            body: &r.body,
            message_id: "",
        };
        self.broker.send_receipt(&self.publisher, receipt).await
    }

    /// Whether the data set of an entry answered so lately that nobody can have given it up since.
    fn is_trusted(&self, e: &OutboxEntry) -> bool {
        boot_ms() <= e.origin.asked_ms + self.trust_ms
    }

    /// Whether what was stored by now counts.
    async fn counts(&self, p: u32, entries: &[OutboxEntry]) -> bool {
        let mut late = entries.iter().filter(|e| !self.is_trusted(e)).map(|e| &e.origin.incarnation);
        let Some(incarnation) = late.next() else { return true };
        if late.any(|i| i != incarnation) {
            return false;
        }
        match self.store.is_still(p, incarnation).await {
            Ok(is_still) => is_still,
            Err(error) => {
                tracing::warn!(%error, "the store cannot be asked whether journal entries still count");
                false
            }
        }
    }

    /// Waits until a part is stored; what may go away by itself is sent again while the patience lasts.
    async fn settle(
        &self,
        part: Part<'_>,
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
            tracing::debug!(entry = part.entry(), %error, "publish failed, trying again");
            tokio::time::sleep(delay).await;
            // Nobody reads what comes after the end of its data set.
            if let Part::Journal(p, e) = part
                && !self.is_trusted(e)
                && self.store.data_set(p) != e.origin.incarnation
            {
                return Err(BrokerError::Outlived);
            }
            pending = self.send(part).await;
        }
    }
}
