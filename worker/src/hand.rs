//! A job in hand: pulled, decoded, in a slot. Whoever has it settles its carrier, or leaves it to the ack-wait.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use surety_common::{
    broker::{decode::Decoded, pull::Delivery},
    domain::QueueName,
    fault,
    telemetry::metrics::since,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{
    guards::Pass,
    session::Session,
    shared::{AnyHandler, Shared},
};

/// What happens to the carrier at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settle {
    /// Remove it.
    Ack,
    /// Give it back for later (zero: now).
    Nak(Duration),
    /// Leave it: the ack-wait brings it back. For everything that we are not entitled or not able to settle.
    Leave,
}

/// One of the worker's slots, taken. Dropped, it is free, and the intake is told.
pub(crate) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    w: Arc<Shared>,
    /// The drain waits for it.
    _token: TaskTrackerToken,
}

impl Slot {
    pub(crate) fn new(w: &Arc<Shared>, permit: OwnedSemaphorePermit) -> Self {
        Self { permit: Some(permit), w: w.clone(), _token: w.tracker.token() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.w.freed.notify_one();
    }
}

/// A delivery that is held (extended) until it is settled.
pub(crate) struct Held {
    pub(crate) d: Delivery,
    pub(crate) queue: QueueName,
    pub(crate) session: Arc<Session>,
    pub(crate) slot: Slot,
}

impl Held {
    /// Settles the carrier and frees the slot.
    pub(crate) async fn settle(self, settle: Settle) {
        let w = &self.slot.w;
        // Ordering: stop extending first; a `+WPI` after a nak would replace its delay.
        let ack_subject = w.release(self.d.carrier()).unwrap_or_else(|| self.d.ack_subject.clone());
        let sent = Instant::now();
        let result = match settle {
            Settle::Ack => w.c.broker.ack(&ack_subject).await,
            Settle::Nak(delay) => w.c.broker.nak(&ack_subject, delay).await,
            Settle::Leave => Ok(()),
        };
        since(&w.meters.ack, sent);
        if let Err(e) = result {
            tracing::warn!(carrier = %self.d.carrier(), error = %e, "carrier not settled; the broker will redeliver it");
        }
        fault::point("settled");
    }
}

/// A job in hand, to be claimed or running. It is large and goes from lane to lane: as a pointer.
pub(crate) type InHand = Box<Carried>;

/// What is in hand with a job.
pub(crate) struct Carried {
    pub(crate) held: Held,
    pub(crate) decoded: Decoded,
    /// Its place in every line ([`arrival_ms`](surety_common::broker::hand_on::arrival_ms)).
    pub(crate) arrival_ms: u64,
    pub(crate) handler: AnyHandler,
    /// Time limit of the attempt. Asked once: the store is told the one that is kept, whatever the settings become meanwhile.
    pub(crate) timeout: Duration,
    /// A recorded carrier that was seen to be gone, so that this one may take its place; else empty.
    pub(crate) adopt: String,
    /// What the guards gave to it, where any is for it.
    pub(crate) pass: Option<Box<Pass>>,
}
