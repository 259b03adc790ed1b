//! A job as somebody asked for it: checked, typed, without a trace of its wire form.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{
    ids::{JobId, QueueName, TypeName},
    lineage::Lineage,
    requester::Requester,
    retry::RetryPolicy,
};

/// Largest payload in bytes. Larger data belongs in an object store, with a reference in the payload.
pub const PAYLOAD_CAP: usize = 512 * 1024;
/// Largest result in bytes.
pub const RESULT_CAP: usize = 256 * 1024;
/// Largest event in bytes; what is cut is said in the event. `finished` is the exception: it embeds the receipt.
pub const EVENT_CAP: usize = 4 * 1024;
/// Largest `key` in bytes.
pub const KEY_CAP: usize = 256;
/// Largest `summary` in bytes.
pub const SUMMARY_CAP: usize = 512;
/// Most entries of `meta`, and the most bytes of one name or value.
pub const META_ENTRIES: usize = 16;
/// See [`META_ENTRIES`].
pub const META_CAP: usize = 256;
/// Most locks of a job, and the most bytes of the name of one.
pub const LOCKS: usize = 16;
/// See [`LOCKS`].
pub const LOCK_CAP: usize = 256;

/// The times of a contract. `None` takes the default of the worker's configuration; 0 on the wire means the same.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Terms {
    /// Acknowledged by: after being seen.
    pub ack: Option<Duration>,
    /// Progress at least every.
    pub progress: Option<Duration>,
    /// Ended by: after being enqueued, over all attempts.
    pub finish: Option<Duration>,
    /// Time limit of one attempt.
    pub timeout: Option<Duration>,
}

/// One requested piece of work.
#[derive(Debug, Clone)]
pub struct Job {
    pub id: JobId,
    pub queue: QueueName,
    pub kind: TypeName,
    /// JSON, at most [`PAYLOAD_CAP`] bytes; `null` when the document has none.
    pub payload: Box<RawValue>,
    /// What guards and filters group by; at most [`KEY_CAP`] bytes of UTF-8.
    pub key: Option<String>,
    /// Public one-line description.
    pub summary: Option<String>,
    pub meta: BTreeMap<String, String>,
    /// Names of what no other attempt may hold while it runs.
    pub locks: BTreeSet<String>,
    /// The line it comes from; `None`: no handler enqueued it.
    pub lineage: Option<Lineage>,
    pub retry: RetryPolicy,
    pub terms: Terms,
    /// Who is told how it goes.
    pub requester: Requester,
    /// Failed (`expired`) when not started by then.
    pub expires_at: Option<Timestamp>,
}

impl Job {
    /// The first job of the line that this one comes from: itself where it has no parent.
    pub fn root(&self) -> &JobId {
        self.lineage.as_ref().map_or(&self.id, Lineage::root)
    }

    /// Steps from the root; 0 where it has no parent.
    pub fn depth(&self) -> u32 {
        self.lineage.as_ref().map_or(0, Lineage::depth)
    }

    /// The lineage of every job that the handler of this one enqueues.
    pub fn children(&self) -> Lineage {
        Lineage::of_children(&self.id, self.lineage.as_ref())
    }
}
