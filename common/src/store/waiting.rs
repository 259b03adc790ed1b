//! Making jobs known that wait at the broker and that no worker has seen: from then on their deadlines are watched.

use serde::Serialize;

use super::{
    ops::Ended,
    script::{Answer, Store, StoreError, pack},
    unreadable::Prepared,
};

/// A job as its message says it.
#[derive(Debug, Clone, Serialize)]
pub struct WaitingItem {
    pub id: String,
    pub queue: String,
    pub job_type: String,
    /// A JSON string literal, or empty.
    pub key: String,
    pub trace: String,
    /// `STREAM:sequence`.
    pub carrier: String,
    /// When the message was stored (the stream's clock).
    pub created_ms: u64,
    pub finish_ms: u64,
    pub max_retries: u32,
    pub generation: u32,
    /// 0: never.
    pub expires_ms: u64,
    /// Who is to be told ([`crate::domain::Requester`] as JSON), or empty.
    pub notify: String,
    pub summary: String,
}

/// What the store knows of it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitingReply {
    /// It was not known; now its record says `queued`.
    Registered { generation: u32 },
    /// It was: open, and carried by `carrier`.
    Known { carrier: String },
    /// It has its outcome; the message is left over.
    Ended(Ended),
    /// The message belongs to a generation that was replayed since.
    StaleGeneration,
    /// Its record cannot be read: nothing was done with it.
    Unreadable,
}

impl Store {
    /// Registers waiting jobs of one partition. Repeating it changes nothing.
    pub async fn register(
        &self,
        p: u32,
        items: &[WaitingItem],
    ) -> Result<Answer<Vec<WaitingReply>>, StoreError> {
        let prepare = |items: &[&WaitingItem]| {
            let keys = self.job_keys(items.iter().map(|i| i.id.as_str()), p);
            Ok(Prepared { keys, frame: self.frame(p, None), items: pack(items)? })
        };
        self.skipping(&self.inner.scripts.register, p, None, items, |i| &i.id, prepare).await
    }
}
