//! What is known of one job at one moment, from wherever it was read. Times are milliseconds of the store's clock.

use std::collections::BTreeSet;

use crate::{
    broker::queues::LaneState,
    domain::{JobId, pause::Pause},
    guard_view::GuardView,
    locks::LockView,
    store::{Record, SessionInfo},
    view::JobView,
    wire::event::Event,
};

/// The session that a record names as its owner.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnerFacts {
    /// `None`: what it said of itself is gone, or does not decode.
    pub info: Option<SessionInfo>,
    /// When its lease ends unless renewed; `None`: the store does not know the session any more.
    pub expires_ms: Option<u64>,
}

/// The consumer that should hand the job to a worker, and the workers.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueFacts {
    pub lane: LaneState,
    /// Live workers that pull from the queue; `None`: that could not be found out.
    pub workers: Option<u64>,
    /// Their slots, and how many of them are taken. A worker that did not say its slots counts as none.
    pub slots: u64,
    pub busy: u64,
    /// Types that those workers have handlers for; `None`: one of them did not say, or there is none.
    pub types: Option<BTreeSet<String>>,
}

/// The message that carries the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarrierFacts {
    /// `STREAM:sequence`.
    pub name: String,
    /// `None` where it is gone.
    pub message: Option<MessageFacts>,
}

/// A message as the broker has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageFacts {
    pub subject: String,
    pub stored_ms: u64,
    /// It was given to a worker at least once; `None`: that cannot be told.
    pub is_delivered: Option<bool>,
    /// Messages of its queue that will be delivered before it; `None` where it was delivered.
    pub ahead: Option<u64>,
}

/// The guard that deferred the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardFacts {
    /// `rate_limited`, `concurrency`, …: why it was deferred.
    pub reason: String,
    /// Rule and value.
    pub label: String,
    /// The scope as it is now; `None` where nothing is kept for it any more.
    pub now: Option<GuardView>,
    /// How many are before it in line; `None` where it is not in line.
    pub before: Option<u64>,
}

/// A lock that the job names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockFacts {
    pub name: String,
    /// `None` where nobody holds it and nobody waits.
    pub now: Option<LockView>,
    /// How many are before the job in its line; `None` where it is not in that line.
    pub before: Option<u64>,
}

/// Everything that was found out.
#[derive(Debug, Clone)]
pub struct Facts {
    pub id: JobId,
    pub now_ms: u64,
    pub view: JobView,
    /// `None`: the store has none.
    pub record: Option<Record>,
    /// The pauses that hold it: that of its queue, its type, its key.
    pub pauses: Vec<Pause>,
    /// Why the store takes no claims now, if it does not.
    pub store_closed: Option<String>,
    /// Why the store could not be read, if it could not: then nothing that it keeps is known.
    pub store_unread: Option<String>,
    pub owner: Option<OwnerFacts>,
    /// `None` where it was not asked for: nothing of it could hold the job.
    pub queue: Option<QueueFacts>,
    pub carrier: Option<CarrierFacts>,
    /// `None` where no guard deferred it.
    pub guard: Option<GuardFacts>,
    /// The locks that its document names, in its order; none where its message is gone.
    pub locks: Vec<LockFacts>,
    /// The last entry of the job still waits in the outbox.
    pub is_unjournaled: bool,
    /// Its events, in the order of their revisions; the last ones, where there are many.
    pub events: Vec<Event>,
    /// More events came before.
    pub is_cut: bool,
    /// How long an attempt may go on past its time limit before it is taken from its worker.
    pub overstay_ms: u64,
    /// What could not be found out, and why.
    pub unknown: Vec<String>,
}

impl Facts {
    /// A job of which nothing else is known yet.
    pub(super) fn of(id: JobId, now_ms: u64, view: JobView) -> Self {
        Self {
            id,
            now_ms,
            view,
            record: None,
            pauses: Vec::new(),
            store_closed: None,
            store_unread: None,
            owner: None,
            queue: None,
            carrier: None,
            guard: None,
            locks: Vec::new(),
            is_unjournaled: false,
            events: Vec::new(),
            is_cut: false,
            overstay_ms: 0,
            unknown: Vec::new(),
        }
    }
}
