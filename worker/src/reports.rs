//! Group commit of what running attempts report: one Lua call per partition for what gathers while earlier calls are in
//! flight, then the journal entries that the call wrote.

use std::sync::Arc;

use surety_common::{
    domain::ids::SessionId,
    pace::Pace,
    relay::Relay,
    store::{Group, ProgressItem, ProgressReply, Store, StoreError},
    telemetry::metrics::worker,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::task::TaskTracker;

use crate::finishes::JOURNAL_PATIENCE;

type Progress = (Arc<SessionId>, ProgressItem);

/// The groups of every partition. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ReportGroups {
    partitions: Arc<[Group<Progress, Result<ProgressReply, StoreError>>]>,
}

impl ReportGroups {
    /// Starts the groups.
    pub(crate) fn start(store: &Store, relay: &Relay, tracker: &TaskTracker) -> Self {
        let partitions = (0..store.keys().partitions()).map(|p| {
            let (store, relay) = (store.clone(), relay.clone());
            Group::start(tracker, move |asks, replies, permit| {
                report(p, store.clone(), relay.clone(), asks, replies, permit)
            })
        });
        Self { partitions: partitions.collect() }
    }

    /// Journals a report and waits for the store's answer.
    pub(crate) async fn report(
        &self,
        p: u32,
        session: Arc<SessionId>,
        item: ProgressItem,
    ) -> Result<ProgressReply, StoreError> {
        let asked = match self.partitions.get(p as usize) {
            Some(g) => g.ask((session, item)).await,
            None => None,
        };
        asked.unwrap_or_else(|| Err(StoreError::Unreachable("the worker is stopping".into())))
    }
}

/// The requests of one session, with their replies.
type OfSession<Q, R> = (Arc<SessionId>, Vec<Q>, Vec<oneshot::Sender<R>>);

/// Splits requests by session: a call speaks for one. (More than one only while a lost session is replaced.)
fn by_session<Q, R>(
    asks: Vec<(Arc<SessionId>, Q)>,
    replies: Vec<oneshot::Sender<R>>,
) -> Vec<OfSession<Q, R>> {
    let mut out: Vec<OfSession<Q, R>> = Vec::with_capacity(1);
    for ((session, ask), reply) in asks.into_iter().zip(replies) {
        match out.iter_mut().find(|(s, ..)| *s == session) {
            Some((_, q, r)) => {
                q.push(ask);
                r.push(reply);
            }
            None => out.push((session, vec![ask], vec![reply])),
        }
    }
    out
}

fn send<R>(reply: oneshot::Sender<R>, job: &str, value: R) {
    if reply.send(value).is_err() {
        worker().dropped_sends.inc();
        // Its handler was stopped meanwhile; what was committed stays, and what the store says of it is told to nobody.
        tracing::info!(job_id = job, "nobody waits for the answer to a report any more");
    }
}

async fn report(
    p: u32,
    store: Store,
    relay: Relay,
    asks: Vec<Progress>,
    replies: Vec<oneshot::Sender<Result<ProgressReply, StoreError>>>,
    permit: OwnedSemaphorePermit,
) {
    let mut later = Vec::new();
    for (session, items, replies) in by_session(asks, replies) {
        match store.progress(p, &session, &items).await {
            Ok(answer) => {
                for ((item, reply), result) in items.iter().zip(replies).zip(answer.results) {
                    send(reply, &item.id, Ok(result));
                }
                later.extend(answer.entries);
            }
            Err(e) => items.iter().zip(replies).for_each(|(i, r)| send(r, &i.id, Err(e.clone()))),
        }
    }
    drop(permit);
    if let Err(e) = relay.publish(p, &later, Pace::call(JOURNAL_PATIENCE)).await {
        tracing::warn!(error = %e, "reports wait in the outbox for the relay");
    }
}
