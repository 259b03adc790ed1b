//! Finding a job: its record, else the message that nobody has pulled yet, else the journal.

use crate::{
    broker::{BrokerError, pull::Delivery},
    connect::Connected,
    domain::{JobId, QueueName},
    pace::Transient,
    store::{Record, StoreError},
    wire::{event::Event, headers},
};

/// A record's creation time is the stream's clock, the journal's another server's: this much they may differ.
const SKEW_MS: u64 = 60_000;

/// Why a job could not be looked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LookupError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// Its journal says something that this release does not know.
    #[error("{id} is in status {status:?}, which this release does not know: upgrade")]
    NewerRelease { id: JobId, status: String },
}

impl Transient for LookupError {
    fn is_transient(&self) -> bool {
        match self {
            Self::NewerRelease { .. } => false,
            Self::Store(e) => e.is_transient(),
            Self::Broker(e) => e.is_transient(),
        }
    }
}

/// What is known of a job, from the best source that knows it.
#[derive(Debug, Clone)]
pub enum Seen {
    /// Redis has its record.
    Record(Box<Record>),
    /// It waits in a queue, or is scheduled; no worker has pulled it.
    Waiting(QueueName, Box<Delivery>),
    /// Its record is gone; this is the last event of it.
    Journal(Box<Event>),
}

/// Looks a job up; `None` when no source knows it.
pub async fn find(c: &Connected, id: &JobId) -> Result<Option<Seen>, LookupError> {
    if let Some(r) = c.store.record(id).await? {
        return Ok(Some(Seen::Record(Box::new(r))));
    }
    if let Some((queue, m)) = c.broker.find_carrier(&c.found.queues, id).await? {
        return Ok(Some(Seen::Waiting(queue, Box::new(m))));
    }
    // It may have been pulled between the two looks.
    if let Some(r) = c.store.record(id).await? {
        return Ok(Some(Seen::Record(Box::new(r))));
    }
    Ok(c.searches.last_event(&c.broker, id).await?.map(|e| Seen::Journal(Box::new(e))))
}

/// Which part of the journal can hold events of a job: its queue (`None`: any) and the time it begins at (ms, 0: the start).
///
/// Not limited for a job that was replayed: that may have moved it to another queue, and has made the record's creation time
/// that of its last generation.
pub fn journal_part(seen: &Seen) -> (Option<String>, u64) {
    match seen {
        Seen::Record(r) if r.generation == 1 => (Some(r.queue.clone()), r.created_ms.saturating_sub(SKEW_MS)),
        Seen::Record(_) | Seen::Journal(_) | Seen::Waiting(..) => (None, 0),
    }
}

/// Generation of a carrier: 1 unless a replay published it.
pub fn generation(m: &Delivery) -> u32 {
    headers::read_generation(m.header(headers::GENERATION)).unwrap_or(1)
}
