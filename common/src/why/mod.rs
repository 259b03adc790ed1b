//! Why a job is where it is: what holds it now, when that should clear, and everything a person asks next.
//!
//! [`gather`] reads (Redis, the broker, a bounded part of the journal), [`explain`] judges [`Facts`] and does nothing else;
//! both `surety why` and the control service answer with a [`Why`]. [`without_store`] is for while Redis is away.

mod explain;
mod facts;
mod gate;
mod gather;
mod locks;
#[cfg(test)]
mod tests;
mod unread;

use serde::Serialize;

pub use explain::explain;
pub use facts::{CarrierFacts, Facts, GuardFacts, LockFacts, MessageFacts, OwnerFacts, QueueFacts};
pub use gather::{gather, why};
pub use unread::without_store;

use crate::{view::JobView, wire::event::Event};

/// The answer.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Why {
    pub job: JobView,
    /// What holds the job now.
    pub gate: Gate,
    /// What would hold it next, or is wrong besides.
    pub also: Vec<Gate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promise: Option<Promise>,
    /// What happens by itself, and when; the earliest first.
    pub deadlines: Vec<Deadline>,
    /// Attempts of this generation, as the journal tells them.
    pub attempts: Vec<AttemptTold>,
    /// Names of the locks that it holds, or waits for.
    pub locks: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier: Option<CarrierSeen>,
    /// Its last events, in the order of `rev`.
    pub events: Vec<Event>,
    /// What could not be found out, and why.
    pub unknown: Vec<String>,
    /// The store's clock when this was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<String>,
}

/// What holds a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Gate {
    pub code: GateCode,
    /// What, in one sentence.
    pub what: String,
    /// What clears it, or what to do.
    pub then: String,
    /// When it clears by itself at the latest, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// Names of what can hold a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GateCode {
    /// Nothing holds it: it has its outcome, and whoever was to be told was told.
    Ended,
    /// Its outcome is decided in the store, and not in the journal yet.
    NotJournaled,
    /// It has its outcome, and its receipt is under way.
    ReceiptPending,
    /// It has its outcome, and the delivery of its receipt was given up.
    ReceiptFailed,
    /// An attempt runs.
    Running,
    /// An attempt runs and was asked to stop.
    CancelPending,
    /// The attempt went on past its time limit.
    Overstayed,
    /// The worker of the attempt does not renew its session any more.
    OwnerLost,
    /// The handler waits for an answer.
    WaitingInput,
    /// A guard or a lock does not let it start now.
    Guarded,
    /// Its retry, or another try of its start, is not due.
    NotDue,
    /// It is due, and its message comes back when the broker delivers it again.
    Redelivery,
    /// Its time has not come.
    Scheduled,
    /// It waits in its queue behind others.
    Queued,
    /// No live worker pulls from its queue.
    NoWorker,
    /// No live worker of its queue has a handler for its type.
    NoHandler,
    /// Every slot of the workers of its queue is taken.
    NoFreeSlot,
    /// Somebody paused its queue, its type or its key.
    Paused,
    /// The consumer of its queue is paused at the broker, and nobody said why.
    ConsumerPaused,
    /// The consumer of its queue is missing.
    ConsumerMissing,
    /// As many messages are held as may be: nothing more is delivered.
    ConsumerFull,
    /// The message that should carry it is gone.
    CarrierMissing,
    /// The store is being rebuilt: nothing is claimed.
    StoreClosed,
    /// Its record is gone; the journal has its last word, which is no outcome.
    RecordGone,
    /// The store could not be read: only its message and the journal are known.
    StoreUnread,
}

impl GateCode {
    /// Every code.
    pub const ALL: [Self; 25] = [
        Self::Ended,
        Self::NotJournaled,
        Self::ReceiptPending,
        Self::ReceiptFailed,
        Self::Running,
        Self::CancelPending,
        Self::Overstayed,
        Self::OwnerLost,
        Self::WaitingInput,
        Self::Guarded,
        Self::NotDue,
        Self::Redelivery,
        Self::Scheduled,
        Self::Queued,
        Self::NoWorker,
        Self::NoHandler,
        Self::NoFreeSlot,
        Self::Paused,
        Self::ConsumerPaused,
        Self::ConsumerMissing,
        Self::ConsumerFull,
        Self::CarrierMissing,
        Self::StoreClosed,
        Self::RecordGone,
        Self::StoreUnread,
    ];

    /// The name in JSON and documents.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// Who runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Owner {
    pub session: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Release of the worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Age of its last renewal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewed_ms: Option<u64>,
    /// When its lease ends unless renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_until: Option<String>,
    /// Its lease is over, or the store does not know it.
    pub is_expired: bool,
}

/// What was promised to whoever asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Promise {
    pub contract: &'static str,
    /// Subject that is told; left out where there is nobody to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requester: Option<String>,
    /// Whether it is told of start and silence, too.
    pub notices: bool,
    /// What is promised next.
    pub next: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Tries so far of what is being told.
    pub tries: u32,
    /// Why the last try did not surface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// `none` (nobody is told, or there is no outcome yet), `pending`, `delivered` or `failed`.
    pub receipt: &'static str,
    /// Public description.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}

/// Something that happens by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Deadline {
    pub at: String,
    /// What it is.
    pub what: String,
    /// How long until then; negative: so long ago.
    pub in_ms: i64,
}

/// One attempt, as the journal tells it.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema)]
pub struct AttemptTold {
    pub attempt: u32,
    pub epoch: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// `running`, or the event that ended it.
    pub end: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The last lines it wrote, where they are kept: those of the last failed attempt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stdout_tail: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stderr_tail: Vec<String>,
}

/// The message that carries it, as the broker has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct CarrierSeen {
    pub stream: String,
    pub sequence: u64,
    pub is_there: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_at: Option<String>,
    /// It was given to a worker at least once. How often, the broker does not say of a single message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_delivered: Option<bool>,
    /// Messages of its queue that are delivered before it, while it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u64>,
}
