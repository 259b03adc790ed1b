//! Group commit of claims and finishes: what gathers in a lane while earlier calls are in flight goes out as one Lua call.
//! A lane is bounded by the slots: everything in it is in one.

use std::sync::Arc;

use surety_common::{
    store::{
        StoreError,
        group::{GROUP_CAP, Order, gather},
    },
    telemetry::metrics::worker,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    claims,
    finishes::{self, Concluded},
    guards::{self, Deferral, Request},
    hand::InHand,
    session::Session,
    shared::Shared,
};

/// The senders of each partition.
pub(crate) struct Lanes {
    claims: Vec<mpsc::Sender<InHand>>,
    finishes: Vec<mpsc::Sender<Concluded>>,
    guards: Vec<mpsc::Sender<Request>>,
    defers: Vec<mpsc::Sender<Deferral>>,
}

/// The other ends.
pub(crate) struct Ends {
    claims: Vec<mpsc::Receiver<InHand>>,
    finishes: Vec<mpsc::Receiver<Concluded>>,
    guards: Vec<mpsc::Receiver<Request>>,
    defers: Vec<mpsc::Receiver<Deferral>>,
}

impl Lanes {
    /// Lanes for this many partitions, each with room for every slot.
    pub(crate) fn new(partitions: u32, slots: usize) -> (Self, Ends) {
        let (claims, claim_ends) = (0..partitions).map(|_| mpsc::channel(slots)).unzip();
        let (finishes, finish_ends) = (0..partitions).map(|_| mpsc::channel(slots)).unzip();
        // A slot has one ask, and what its jobs of before gave back.
        let (guards, guard_ends) = (0..partitions).map(|_| mpsc::channel(4 * slots + 64)).unzip();
        let (defers, defer_ends) = (0..partitions).map(|_| mpsc::channel(slots)).unzip();
        let ends = Ends { claims: claim_ends, finishes: finish_ends, guards: guard_ends, defers: defer_ends };
        (Self { claims, finishes, guards, defers }, ends)
    }

    /// To be claimed.
    pub(crate) fn claim(&self, p: u32, job: InHand) {
        put(&self.claims, p, job);
    }

    /// To be asked of the guards, or given back to them.
    pub(crate) fn guard(&self, p: u32, request: Request) {
        put(&self.guards, p, request);
    }

    /// To be noted as deferred.
    pub(crate) fn defer(&self, p: u32, deferral: Deferral) {
        put(&self.defers, p, deferral);
    }

    /// To be finished.
    pub(crate) fn finish(&self, p: u32, done: Concluded) {
        put(&self.finishes, p, done);
    }
}

fn put<T>(lanes: &[mpsc::Sender<T>], p: u32, what: T) {
    let sent = lanes.get(p as usize).map(|lane| lane.try_send(what));
    if !matches!(sent, Some(Ok(()))) {
        // A lane has room for every slot, and ends after the last of them: this is a bug, and costs a redelivery.
        worker().dropped_sends.inc();
        tracing::error!(partition = p, "a lane did not take a job; its ack-wait brings it back");
    }
}

/// Serves the lanes until `end`. Calls run on `calls`.
pub(crate) fn serve(w: &Arc<Shared>, ends: Ends, calls: &TaskTracker, end: &CancellationToken) {
    let Ends { claims: to_claim, finishes: to_finish, guards: to_guard, defers } = ends;
    let groups = (GROUP_CAP, Order::Any);
    lane(w, to_claim, groups, calls, end, claims::claim);
    lane(w, to_finish, groups, calls, end, finishes::finish);
    // Each job asks and gives back, and both are little work. Who arrived first asks first (J-02).
    lane(w, to_guard, (2 * GROUP_CAP, Order::Kept), calls, end, guards::serve);
    lane(w, defers, groups, calls, end, guards::commit);
}

/// One lane for each partition.
fn lane<T, F, Fut>(
    w: &Arc<Shared>,
    ends: Vec<mpsc::Receiver<T>>,
    (most, order): (usize, Order),
    calls: &TaskTracker,
    end: &CancellationToken,
    commit: F,
) where
    T: Send + 'static,
    F: Fn(Arc<Shared>, u32, Vec<T>, OwnedSemaphorePermit) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    for (p, queue) in (0u32..).zip(ends) {
        let (w, tasks, end) = (w.clone(), calls.clone(), end.clone());
        calls.spawn(async move {
            let serve =
                gather(queue, most, order, &tasks, |group, permit| commit(w.clone(), p, group, permit));
            tokio::select! {
                () = serve => {}
                () = end.cancelled() => {}
            }
        });
    }
}

/// Splits by session: a call speaks for one. (More than one only while a lost session is replaced.)
pub(crate) fn by_session<T>(all: Vec<T>, session: impl Fn(&T) -> &Arc<Session>) -> Vec<Vec<T>> {
    let mut out: Vec<Vec<T>> = Vec::with_capacity(1);
    for one in all {
        let same = |g: &&mut Vec<T>| g.first().is_some_and(|f| Arc::ptr_eq(session(f), session(&one)));
        match out.iter_mut().find(same) {
            Some(g) => g.push(one),
            None => out.push(vec![one]),
        }
    }
    out
}

/// Whether one item of a call (an unreadable record) may be why all of it was refused. Nothing was written, so each may be
/// tried alone, and the good ones do not wait for the bad one.
pub(crate) fn is_of_one(e: &StoreError, n: usize) -> bool {
    n > 1 && matches!(e, StoreError::Refused(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows: O-09
    #[test]
    fn what_a_lane_does_not_take_is_counted() {
        let (full, _end) = mpsc::channel(1);
        let (gone, end) = mpsc::channel(1);
        drop(end);
        let lanes = [full, gone];
        let before = worker().dropped_sends.get();
        put(&lanes, 0, "taken");
        assert_eq!(worker().dropped_sends.get(), before);
        for p in [0, 1, 2] {
            put(&lanes, p, "full, gone, none");
        }
        assert_eq!(worker().dropped_sends.get(), before + 3);
    }
}
