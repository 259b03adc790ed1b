//! What the whole fleet has to do, measured when somebody asks: it does not depend on how many workers there are, or on
//! whether any of them can be scraped.

use std::{collections::BTreeMap, time::Duration};

use surety_common::{
    broker::BrokerError,
    connect::Connected,
    domain::QueueName,
    store::{Depths, StoreError},
    telemetry::{
        health::{Asked, Parts, Subject, lost_client, servers},
        labels::QUEUES,
        metrics::{DELAYED_WARNING, reaper},
    },
};

use crate::rules;

/// Longest that one look may take: a scrape waits for it.
const LOOK_WITHIN: Duration = Duration::from_secs(4);

/// The fleet, seen through both servers.
pub(crate) struct Fleet {
    c: Connected,
}

/// Why the fleet could not be seen.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// One queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Queue {
    waiting: u64,
    /// What the broker counts as delivered and not settled: running, and given back for later.
    held: u64,
    running: u64,
    slots: u64,
    oldest_ms: u64,
}

/// Everything that one look sees.
#[derive(Debug, Default)]
struct Seen {
    queues: BTreeMap<String, Queue>,
    sessions: u64,
    depths: Depths,
    /// Name, messages and bytes.
    streams: Vec<(&'static str, u64, u64)>,
}

impl Fleet {
    /// The metrics that do not depend on a look are there from now on.
    pub(crate) fn new(c: Connected) -> Self {
        let m = reaper();
        m.delayed_warning.set(DELAYED_WARNING);
        for result in ["ok", "failed"] {
            m.observations.with_label_values(&[result]);
        }
        for kind in rules::DEADLINES {
            m.deadlines.with_label_values(&[kind]);
        }
        Self { c }
    }

    async fn look(&self) -> Result<Seen, LookError> {
        let mut seen = Seen { depths: self.c.store.depths().await?, ..Seen::default() };
        let fleet = self.c.store.fleet().await?;
        // Read now and not at the start: a queue may have been declared since.
        let declared: Vec<QueueName> = self.c.broker.found().await?.queues;
        for q in &declared {
            let queue = seen.queues.entry(q.to_string()).or_default();
            for lane in self.c.broker.queue_state(q).await? {
                queue.waiting += lane.waiting;
                queue.held += lane.held;
                queue.oldest_ms = queue.oldest_ms.max(lane.oldest_waiting_ms.unwrap_or(0));
            }
        }
        for session in fleet.alive() {
            seen.sessions += 1;
            let info = session.info.clone().unwrap_or_default();
            for q in info.queues.iter().flatten() {
                seen.queues.entry(q.clone()).or_default().slots += info.slots.unwrap_or(0);
            }
        }
        for record in fleet.sessions.iter().flat_map(|s| &s.held).filter_map(|h| h.record.as_ref()) {
            seen.queues.entry(record.queue.clone()).or_default().running += 1;
        }
        seen.streams = self.c.broker.stream_sizes().await?;
        Ok(seen)
    }
}

/// A number as a gauge has it.
fn gauge(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Forgets the last look: what is not seen now is not shown.
fn forget() {
    let m = reaper();
    let by_queue = [&m.waiting, &m.queue_running, &m.runnable, &m.delayed, &m.slots];
    let whole = [&m.sessions, &m.open_jobs, &m.outbox_entries, &m.stream_messages, &m.stream_bytes];
    by_queue.iter().chain(&whole).for_each(|g| g.reset());
    [&m.oldest, &m.outbox_oldest].iter().for_each(|g| g.reset());
}

fn show(seen: &Seen) {
    let m = reaper();
    for (name, q) in &seen.queues {
        let label = [QUEUES.of(name)];
        // Added and not set: queues beyond the bound of labels share one.
        let add = |g: &prometheus::IntGaugeVec, n: u64| g.with_label_values(&label).add(gauge(n));
        add(&m.waiting, q.waiting);
        add(&m.queue_running, q.running);
        add(&m.runnable, q.waiting + q.running);
        add(&m.delayed, q.held.saturating_sub(q.running));
        add(&m.slots, q.slots);
        let oldest = m.oldest.with_label_values(&label);
        oldest.set(oldest.get().max(q.oldest_ms as f64 / 1000.0));
    }
    let whole = |g: &prometheus::IntGaugeVec, n: u64| g.with_label_values::<&str>(&[]).set(gauge(n));
    whole(&m.sessions, seen.sessions);
    whole(&m.open_jobs, seen.depths.open_jobs);
    whole(&m.outbox_entries, seen.depths.outbox);
    m.outbox_oldest.with_label_values::<&str>(&[]).set(seen.depths.oldest_ms as f64 / 1000.0);
    for (stream, messages, bytes) in &seen.streams {
        m.stream_messages.with_label_values(&[stream]).set(gauge(*messages));
        m.stream_bytes.with_label_values(&[stream]).set(gauge(*bytes));
    }
}

impl Subject for Fleet {
    fn is_lost(&self) -> Option<String> {
        lost_client(&self.c)
    }

    fn parts(&self) -> Asked<'_, Parts> {
        Box::pin(servers(&self.c))
    }

    fn refresh(&self) -> Asked<'_, ()> {
        Box::pin(async {
            // Before the look, which may be given up.
            forget();
            let result = match tokio::time::timeout(LOOK_WITHIN, self.look()).await {
                Ok(Ok(seen)) => {
                    show(&seen);
                    "ok"
                }
                Ok(Err(e)) => {
                    tracing::debug!(error = %e, "the fleet cannot be seen");
                    "failed"
                }
                Err(_) => "failed",
            };
            reaper().observations.with_label_values(&[result]).inc();
        })
    }
}

#[cfg(test)]
mod tests {
    use prometheus::core::Collector;

    use super::*;

    #[test]
    fn a_look_shows_what_could_run_now_and_forgets_what_is_gone() {
        let m = reaper();
        let mut seen = Seen { sessions: 2, streams: vec![("dlq", 3, 900)], ..Seen::default() };
        let busy = Queue { waiting: 5, held: 9, running: 2, slots: 8, oldest_ms: 1500 };
        seen.queues.insert("busy".into(), busy);
        show(&seen);
        let of = |g: &prometheus::IntGaugeVec| g.with_label_values(&["busy"]).get();
        assert_eq!([of(&m.runnable), of(&m.delayed), of(&m.slots)], [7, 7, 8]);
        assert_eq!(m.oldest.with_label_values(&["busy"]).get(), 1.5);
        assert_eq!(m.sessions.with_label_values::<&str>(&[]).get(), 2);
        forget();
        assert!(m.runnable.collect().iter().all(|f| f.get_metric().is_empty()));
        assert!(m.outbox_oldest.collect().iter().all(|f| f.get_metric().is_empty()));
    }
}
