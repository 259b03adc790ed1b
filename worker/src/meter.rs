//! What a worker counts. The series of its queues and types are resolved once, at the start: a job costs a few additions.

use std::{collections::HashMap, sync::Arc};

use prometheus::{Histogram, IntCounter, IntGauge};
use surety_common::{
    domain::{QueueName, Status, TypeName},
    telemetry::{
        labels::{OTHER, QUEUES, TYPES},
        metrics::{NO_ERROR, shared, worker},
    },
};

macro_rules! names {
    ($(#[doc = $doc:literal])+ $enum:ident $(listed if $when:meta)? { $($variant:ident = $name:literal,)+ }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $enum { $($variant),+ }

        impl $enum {
            $(#[$when])?
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// As label and in the log.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

names! {
    /// Why a delivery did not lead to an attempt now.
    Reason {
        LiveOwner = "live_owner",
        NotDue = "not_due",
        RunningHere = "running_here",
        OtherCarrier = "other_carrier",
        NoHandler = "no_handler",
        NewerVersion = "newer_version",
        NoSlot = "no_slot",
        SessionLost = "session_lost",
        Rebuilding = "rebuilding",
        Paused = "paused",
        PausesUnknown = "pauses_unknown",
        StoreUnfit = "store_unfit",
        Unreadable = "unreadable",
        StoreError = "store_error",
        RateLimited = "rate_limited",
        Concurrency = "concurrency",
        LockBusy = "lock_busy",
        CrashLoop = "crash_loop",
        CircuitOpen = "circuit_open",
    }
}

names! {
    /// How an attempt ended.
    Outcome listed if cfg(test) {
        Done = "done",
        Retry = "retry",
        Failed = "failed",
        TimedOut = "timed_out",
        Cancelled = "cancelled",
        StartFailed = "start_failed",
        Released = "released",
        Fenced = "fenced",
        Unsaved = "unsaved",
    }
}

/// Series of one queue.
#[derive(Debug)]
struct OfQueue {
    deliveries: IntCounter,
    /// In the order of [`Reason::ALL`].
    deferrals: Vec<IntCounter>,
}

/// Series of one type in one queue.
#[derive(Debug)]
pub(crate) struct OfType {
    pub(crate) queue: String,
    pub(crate) kind: String,
    pub(crate) started: IntCounter,
    /// Attempts that ended well, and their jobs: the common case.
    pub(crate) done: IntCounter,
    pub(crate) jobs_done: IntCounter,
    pub(crate) running: IntGauge,
    pub(crate) wait: Histogram,
    pub(crate) handler: Histogram,
}

impl OfType {
    fn new(queue: &str, kind: &str) -> Self {
        let (m, both) = (worker(), [queue, kind]);
        Self {
            queue: queue.to_owned(),
            kind: kind.to_owned(),
            started: m.attempts_started.with_label_values(&both),
            done: m.attempts.with_label_values(&[queue, kind, Outcome::Done.name(), NO_ERROR]),
            jobs_done: shared().jobs_ended.with_label_values(&[queue, kind, Status::Done.name(), NO_ERROR]),
            running: m.running.with_label_values(&[queue]),
            wait: m.wait.with_label_values(&[queue]),
            handler: m.handler.with_label_values(&[kind]),
        }
    }
}

/// Every series that is counted at every job.
#[derive(Debug)]
pub(crate) struct Meters {
    queues: Vec<(QueueName, OfQueue)>,
    types: HashMap<TypeName, Vec<(QueueName, Arc<OfType>)>>,
    /// For what was not declared at the start.
    other: Arc<OfType>,
    /// Steps of the write order.
    pub(crate) claim: Histogram,
    pub(crate) finish: Histogram,
    pub(crate) journal: Histogram,
    pub(crate) ack: Histogram,
}

impl Meters {
    /// Resolves the series of these queues and types, all of them at zero from now on.
    pub(crate) fn new<'a>(
        queues: &[QueueName],
        types: impl Iterator<Item = &'a TypeName>,
        slots: u64,
    ) -> Self {
        let m = worker();
        m.slots.set(i64::try_from(slots).unwrap_or(i64::MAX));
        for result in ["ok", "failed"] {
            m.renewals.with_label_values(&[result]);
        }
        let stage = |name| m.stage.with_label_values(&[name]);
        let of_queue = |q: &QueueName| {
            let label = QUEUES.of(q.as_str());
            OfQueue {
                deliveries: m.deliveries.with_label_values(&[label]),
                deferrals: Reason::ALL
                    .iter()
                    .map(|r| m.deferrals.with_label_values(&[label, r.name()]))
                    .collect(),
            }
        };
        let of_type = |q: &QueueName, kind| (q.clone(), Arc::new(OfType::new(QUEUES.of(q.as_str()), kind)));
        Self {
            queues: queues.iter().map(|q| (q.clone(), of_queue(q))).collect(),
            types: types
                .map(|t| (t.clone(), queues.iter().map(|q| of_type(q, TYPES.of(t.as_str()))).collect()))
                .collect(),
            other: Arc::new(OfType::new(OTHER, OTHER)),
            claim: stage("claim"),
            finish: stage("finish"),
            journal: stage("journal"),
            ack: stage("ack"),
        }
    }

    /// Series of a type in a queue.
    pub(crate) fn of(&self, queue: &QueueName, kind: &TypeName) -> &Arc<OfType> {
        let found = self.types.get(kind).and_then(|all| all.iter().find(|(q, _)| q == queue));
        found.map_or(&self.other, |(_, m)| m)
    }

    fn of_queue(&self, queue: &QueueName) -> Option<&OfQueue> {
        self.queues.iter().find(|(q, _)| q == queue).map(|(_, m)| m)
    }

    /// Counts a pulled message.
    pub(crate) fn delivered(&self, queue: &QueueName) {
        if let Some(q) = self.of_queue(queue) {
            q.deliveries.inc();
        }
    }

    /// Counts a delivery that is given back without an attempt.
    pub(crate) fn deferred(&self, queue: &QueueName, reason: Reason) {
        if let Some(counter) = self.of_queue(queue).and_then(|q| q.deferrals.get(reason as usize)) {
            counter.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_and_outcome_is_documented_and_has_a_place_of_its_own() {
        let doc = include_str!("../../docs/metrics.md");
        for (n, r) in Reason::ALL.iter().enumerate() {
            assert_eq!(*r as usize, n);
            assert!(doc.contains(&format!("`{}`", r.name())), "{r:?}");
        }
        for o in Outcome::ALL {
            assert!(doc.contains(&format!("`{}`", o.name())), "{o:?}");
        }
    }

    #[test]
    fn what_was_not_there_at_the_start_is_counted_as_other() {
        let (q, t): (QueueName, TypeName) = ("default".parse().unwrap(), "meter-test".parse().unwrap());
        let m = Meters::new(std::slice::from_ref(&q), std::iter::once(&t), 3);
        assert_eq!(m.of(&q, &t).kind, "meter-test");
        assert_eq!(m.of(&"new".parse().unwrap(), &t).queue, OTHER);
        m.deferred(&q, Reason::NoSlot);
        let n = worker().deferrals.with_label_values(&["default", "no_slot"]);
        assert_eq!(n.get(), 1);
    }
}
