//! The pull loop: asks for as many jobs as there are free slots.

use std::{sync::Arc, time::Duration};

use surety_common::{
    broker::{
        BrokerError,
        place::CarrierStream,
        pull::{Delivery, Pulled, Puller},
    },
    config::{Choice, Lease},
    domain::QueueName,
    store::group::GROUP_CAP,
};
use tokio::sync::Semaphore;

use crate::{
    admit::admit,
    due::{Due, Event, next_of},
    hand::Slot,
    meter::Reason,
    plan::Plan,
    session::Session,
    shared::Shared,
};

/// The queues of this worker in rank order, with their weights.
pub(crate) fn queues(w: &Shared) -> Vec<(QueueName, u32)> {
    if w.settings.worker.queues.is_empty() {
        return w.c.found.queues.iter().map(|q| (q.clone(), 1)).collect();
    }
    let read = |s: &String| {
        let (name, weight) = s.split_once(':').unwrap_or((s, "1"));
        Some((QueueName::new(name).ok()?, weight.parse().ok()?))
    };
    w.settings.worker.queues.iter().filter_map(read).collect()
}

/// Pulls until the worker drains.
pub(crate) async fn run(w: Arc<Shared>) {
    let queues = queues(&w);
    let n_slots = usize::try_from(w.settings.worker.slots.0).unwrap_or(8);
    let slots = Arc::new(Semaphore::new(n_slots));
    let weights = match w.settings.worker.order {
        Choice::Strict => None,
        Choice::Weighted => Some(queues.iter().map(|(_, weight)| *weight).collect()),
    };
    let mut plan = Plan::new(queues.len(), weights, n_slots);
    let mut sessions = w.session.subscribe();
    while !w.draining.is_cancelled() {
        let current = sessions.borrow_and_update().clone();
        let Some(session) = current else {
            tokio::select! {
                changed = sessions.changed() => if changed.is_err() { return },
                () = w.draining.cancelled() => return,
            }
            continue;
        };
        plan.reset();
        if let Err(e) = pull(&w, &session, &queues, &slots, &mut plan).await {
            tracing::warn!(error = %e, "pulling stopped, starting again");
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
                () = w.draining.cancelled() => return,
            }
        }
    }
}

/// Pulls under one session, until it is lost or the worker drains.
async fn pull(
    w: &Arc<Shared>,
    session: &Arc<Session>,
    queues: &[(QueueName, u32)],
    slots: &Arc<Semaphore>,
    plan: &mut Plan,
) -> Result<(), BrokerError> {
    let mut pullers = Vec::with_capacity(queues.len());
    for (q, _) in queues {
        let expires = pull_wait(&w.settings.lease);
        pullers.push(Puller::start(&w.c.broker, CarrierStream::Jobs, q, expires).await?);
    }
    let mut due = Due::start(w, queues).await?;
    // While the store is being rebuilt nothing is claimed, so nothing more is asked for.
    let mut is_open = w.c.store.is_open();
    // The same while it is not known what is paused.
    let mut is_known = w.pauses.is_known();
    loop {
        let outstanding: usize = pullers.iter().map(Puller::outstanding).sum();
        let may_start = *is_open.borrow_and_update() & *is_known.borrow_and_update();
        let idle = if may_start { slots.available_permits() } else { 0 };
        let spoken_for = due.ask(idle, outstanding, plan);
        let free = idle.saturating_sub(spoken_for + if queues.len() == 1 { outstanding } else { 0 });
        for ask in plan.next(free, outstanding, jitter) {
            if let Some(p) = pullers.get_mut(ask.queue) {
                p.ask(ask.n, ask.wait).await?;
            }
        }
        tokio::select! {
            (i, first) = next_of(&mut pullers) => {
                let mut pulled = Some(first);
                // What is here already is taken in one go, up to what one call claims.
                for n in 1.. {
                    match pulled {
                        Some(Pulled::Message(d)) => {
                            plan.on_message(i);
                            due.on_other();
                            if let Some((queue, _)) = queues.get(i) {
                                begin(w, session, queue, slots, d).await;
                            }
                        }
                        Some(Pulled::Ended) => plan.on_end(i),
                        Some(Pulled::Silent) => {
                            tracing::warn!("no sign of life from the consumer; asking again");
                            plan.reset();
                        }
                        Some(Pulled::Gone(why)) => return Err(BrokerError::Unreachable(why)),
                        Some(Pulled::Denied(e)) => return Err(e),
                        None => break,
                    }
                    // Ordering: nothing is taken from the puller that is not handled: it would sit there for an ack-wait.
                    if n == GROUP_CAP {
                        break;
                    }
                    pulled = pullers.get_mut(i).and_then(Puller::next_here);
                }
            },
            event = due.next() => match event {
                Event::Pulled(i, Pulled::Message(d)) => {
                    due.on_message(i);
                    if let Some((queue, _)) = queues.get(i) {
                        begin(w, session, queue, slots, d).await;
                    }
                }
                Event::Pulled(i, how) => due.on_end(i, &how),
                Event::Tick => due.on_tick(slots.available_permits()),
                Event::Reconnected => {
                    pullers.iter_mut().for_each(Puller::forget);
                    plan.reset();
                    due.reset();
                }
            },
            () = w.freed.notified() => plan.on_freed(),
            // The store is a part of `w`: its end is never seen here.
            _ = is_open.changed() => plan.on_freed(),
            _ = is_known.changed() => plan.on_freed(),
            () = session.lost() => return Ok(()),
            () = w.draining.cancelled() => return Ok(()),
        }
    }
}

/// How long a pull may wait at the server. A frozen worker keeps its connection, so the broker goes on answering its pulls:
/// they must be over when its lease is, or the job that its loss gives back goes to it once more and sits there for an ack-wait.
fn pull_wait(lease: &Lease) -> Duration {
    lease.ttl.saturating_sub(lease.margin + lease.renewal)
}

async fn begin(
    w: &Arc<Shared>,
    session: &Arc<Session>,
    queue: &QueueName,
    slots: &Arc<Semaphore>,
    d: Delivery,
) {
    w.meters.delivered(queue);
    if let Ok(permit) = slots.clone().try_acquire_owned() {
        admit(w, session, queue, Slot::new(w, permit), d);
    } else {
        w.meters.deferred(queue, Reason::NoSlot);
        // Two parked pulls were answered at once: one job more than there are slots. Not ours to keep waiting.
        if let Err(e) = w.c.broker.nak(&d.ack_subject, surplus_delay(d.delivered)).await {
            tracing::warn!(error = %e, "a surplus delivery could not be given back; its ack-wait brings it back");
        }
    }
}

/// At once, for another worker that may be idle; but a job that goes from one full worker to the next must not use up its
/// deliveries on the way.
fn surplus_delay(delivered: u64) -> Duration {
    Duration::from_millis(if delivered <= 2 { 0 } else { 10 * delivered.min(100) })
}

fn jitter() -> f64 {
    (ulid::Ulid::generate().random() & 0xffff) as f64 / f64::from(0x1_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_goes_from_one_full_worker_to_the_next_keeps_its_deliveries() {
        assert_eq!((surplus_delay(1), surplus_delay(2)), (Duration::ZERO, Duration::ZERO));
        // All but the last of a hundred deliveries, the broker's default limit, take more than half a minute.
        let total: Duration = (1..100).map(surplus_delay).sum();
        assert!(total > Duration::from_secs(30), "{total:?}");
    }
}
