//! Jobs that a guard does not let start now: their records say so, and until when.

use serde::Serialize;

use super::{
    ops::Ended,
    script::{Answer, Store, StoreError, pack},
    unreadable::Prepared,
};

/// A job whose start was refused for now.
#[derive(Debug, Clone, Serialize)]
pub struct DeferItem<'a> {
    pub id: &'a str,
    pub queue: &'a str,
    pub job_type: &'a str,
    /// A JSON string literal, or empty.
    pub key: String,
    pub trace: &'a str,
    /// `STREAM:sequence`.
    pub carrier: String,
    pub ack_subject: String,
    /// A recorded carrier that was seen to be gone, so that this one may take its place; else empty.
    pub adopt: &'a str,
    /// When the carrier was stored (the stream's clock).
    pub created_ms: u64,
    pub finish_ms: u64,
    pub max_retries: u32,
    pub generation: u32,
    /// 0: never.
    pub expires_ms: u64,
    /// Who is to be told ([`crate::domain::Requester`] as JSON), or empty.
    pub notify: String,
    pub summary: &'a str,
    /// It may be claimed from then on.
    pub due_ms: u64,
    /// Its message comes back by itself then.
    pub back_ms: u64,
    /// [`crate::domain::guard::GuardKind::reason`].
    pub reason: &'static str,
    /// JSON object of the event.
    pub data: String,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeferReply {
    Deferred {
        rev: u64,
    },
    /// An attempt runs, whose lease ends in `lease_ms`: nothing was written.
    LiveOwner {
        lease_ms: u64,
    },
    /// It waits for something of its own (a backoff): nothing was written.
    NotDue {
        due_in_ms: u64,
    },
    /// The job is carried by another message: `STREAM:sequence`.
    SecondCarrier {
        recorded: String,
    },
    Ended(Ended),
    /// The carrier belongs to a generation that was replayed since.
    StaleGeneration,
    /// `expires_at` passed before the first start.
    Expired,
    /// The finish deadline passed.
    Overdue,
    /// Its record cannot be read: nothing was done with it.
    Unreadable,
}

impl Store {
    /// Notes jobs of one partition as deferred. Same errors as [`Store::claim`], without `SessionLost` and `OutboxFull`.
    pub async fn defer(
        &self,
        p: u32,
        items: &[DeferItem<'_>],
    ) -> Result<Answer<Vec<DeferReply>>, StoreError> {
        let prepare = |items: &[&DeferItem<'_>]| {
            let keys = self.job_keys(items.iter().map(|i| i.id), p);
            Ok(Prepared { keys, frame: self.frame(p, None), items: pack(items)? })
        };
        self.skipping(&self.inner.scripts.defer, p, None, items, |i| i.id, prepare).await
    }
}
