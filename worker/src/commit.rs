//! Group commit of claims, finishes and reports: one Lua call per partition for what gathers while earlier calls are in
//! flight, then the journal entries that the call wrote.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use surety_common::{
    domain::ids::SessionId,
    fault,
    pace::Pace,
    relay::Relay,
    store::{
        ClaimItem, ClaimReply, FinishItem, FinishReply, Group, ProgressItem, ProgressReply, Store, StoreError,
    },
    telemetry::metrics::{since, worker},
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::task::TaskTracker;

use crate::meter::Meters;

/// How long a journal entry is published by us before it is left to the relay of the reaper.
const JOURNAL_PATIENCE: Duration = Duration::from_secs(30);

/// A finish and whether its journal entry is stored: only then may the carrier be acked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) reply: FinishReply,
    pub(crate) is_journaled: bool,
}

/// A claim's answer; `is_journaled` speaks of the outcome of an ended job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claimed {
    pub(crate) reply: ClaimReply,
    pub(crate) is_journaled: bool,
}

type Claim = (Arc<SessionId>, ClaimItem);
type Finish = (Arc<SessionId>, Arc<FinishItem>);
type Progress = (Arc<SessionId>, ProgressItem);

/// The groups of one partition.
#[derive(Clone)]
struct Partition {
    claims: Group<Claim, Result<Claimed, StoreError>>,
    finishes: Group<Finish, Result<Finished, StoreError>>,
    reports: Group<Progress, Result<ProgressReply, StoreError>>,
}

/// The groups of every partition. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Commits {
    partitions: Arc<[Partition]>,
}

/// What the commit functions need.
#[derive(Clone)]
struct Context {
    p: u32,
    store: Store,
    relay: Relay,
    tracker: TaskTracker,
    outbox_cap: u64,
    started: Arc<str>,
    meters: Arc<Meters>,
}

impl Commits {
    /// Starts the groups. `started` is the data of `started` events (JSON).
    pub(crate) fn start(
        store: &Store,
        relay: &Relay,
        tracker: &TaskTracker,
        outbox_cap: u64,
        started: &str,
        meters: &Arc<Meters>,
    ) -> Self {
        let partitions = (0..store.keys().partitions())
            .map(|p| {
                let c = Context {
                    p,
                    store: store.clone(),
                    relay: relay.clone(),
                    tracker: tracker.clone(),
                    outbox_cap,
                    started: started.into(),
                    meters: meters.clone(),
                };
                let (c1, c2, c3) = (c.clone(), c.clone(), c);
                Partition {
                    claims: Group::start(tracker, move |asks, replies, permit| {
                        claim(c1.clone(), asks, replies, permit)
                    }),
                    finishes: Group::start(tracker, move |asks, replies, permit| {
                        finish(c2.clone(), asks, replies, permit)
                    }),
                    reports: Group::start(tracker, move |asks, replies, permit| {
                        report(c3.clone(), asks, replies, permit)
                    }),
                }
            })
            .collect();
        Self { partitions }
    }

    pub(crate) async fn claim(
        &self,
        p: u32,
        session: Arc<SessionId>,
        item: ClaimItem,
    ) -> Result<Claimed, StoreError> {
        let asked = match self.partitions.get(p as usize) {
            Some(g) => g.claims.ask((session, item)).await,
            None => None,
        };
        asked.unwrap_or_else(closed)
    }

    pub(crate) async fn finish(
        &self,
        p: u32,
        session: Arc<SessionId>,
        item: Arc<FinishItem>,
    ) -> Result<Finished, StoreError> {
        let asked = match self.partitions.get(p as usize) {
            Some(g) => g.finishes.ask((session, item)).await,
            None => None,
        };
        asked.unwrap_or_else(closed)
    }

    pub(crate) async fn report(
        &self,
        p: u32,
        session: Arc<SessionId>,
        item: ProgressItem,
    ) -> Result<ProgressReply, StoreError> {
        let asked = match self.partitions.get(p as usize) {
            Some(g) => g.reports.ask((session, item)).await,
            None => None,
        };
        asked.unwrap_or_else(closed)
    }
}

fn closed<T>() -> Result<T, StoreError> {
    Err(StoreError::Unreachable("the worker is stopping".into()))
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

/// Whether one item of a call (an unreadable record) may be why all of it was refused.
fn is_of_one(e: &StoreError) -> bool {
    matches!(e, StoreError::Refused(_))
}

/// The requests of a refused call, one by one: nothing of it was written, and the good ones shall not wait for the bad one.
fn singles<Q, R>(
    session: Arc<SessionId>,
    items: Vec<Q>,
    replies: Vec<oneshot::Sender<R>>,
) -> impl Iterator<Item = OfSession<Q, R>> {
    items.into_iter().zip(replies).map(move |(q, r)| (session.clone(), vec![q], vec![r]))
}

fn send<R>(reply: oneshot::Sender<R>, value: R) {
    if reply.send(value).is_err() {
        worker().dropped_sends.inc();
        // Its attempt was dropped at shutdown; what was committed is found by the next owner.
        tracing::debug!("nobody waits for this commit any more");
    }
}

async fn claim(
    c: Context,
    asks: Vec<Claim>,
    replies: Vec<oneshot::Sender<Result<Claimed, StoreError>>>,
    permit: OwnedSemaphorePermit,
) {
    let mut later = Vec::new();
    let mut groups = by_session(asks, replies);
    while let Some((session, items, replies)) = groups.pop() {
        let asked = Instant::now();
        let claimed = c.store.claim(c.p, &session, c.outbox_cap, &c.started, &items).await;
        since(&c.meters.claim, asked);
        match claimed {
            Ok(answer) => {
                fault::point("claim_committed");
                let mut waiting = Vec::new();
                for (reply, result) in replies.into_iter().zip(answer.results) {
                    if matches!(&result, ClaimReply::Ended(e) if !e.is_journaled) {
                        waiting.push((reply, result));
                    } else {
                        send(reply, Ok(Claimed { reply: result, is_journaled: true }));
                    }
                }
                later.push((answer.entries, waiting));
            }
            Err(e) if is_of_one(&e) && items.len() > 1 => groups.extend(singles(session, items, replies)),
            Err(e) => replies.into_iter().for_each(|r| send(r, Err(e.clone()))),
        }
    }
    drop(permit);
    // The start waits for no journal; the ack of an outcome that was found unjournaled does.
    c.tracker.clone().spawn(async move {
        for (entries, waiting) in later {
            let is_journaled = c.relay.publish(c.p, &entries, Pace::call(JOURNAL_PATIENCE)).await.is_ok();
            for (reply, result) in waiting {
                send(reply, Ok(Claimed { reply: result, is_journaled }));
            }
        }
    });
}

async fn finish(
    c: Context,
    asks: Vec<Finish>,
    replies: Vec<oneshot::Sender<Result<Finished, StoreError>>>,
    permit: OwnedSemaphorePermit,
) {
    let mut later = Vec::new();
    let mut groups = by_session(asks, replies);
    while let Some((session, items, replies)) = groups.pop() {
        let asked = Instant::now();
        let finished = c.store.finish(c.p, &session, &items).await;
        since(&c.meters.finish, asked);
        match finished {
            Ok(answer) => {
                fault::point("finish_committed");
                later.push((answer.entries, replies.into_iter().zip(answer.results).collect::<Vec<_>>()));
            }
            Err(e) if is_of_one(&e) && items.len() > 1 => groups.extend(singles(session, items, replies)),
            Err(e) => replies.into_iter().for_each(|r| send(r, Err(e.clone()))),
        }
    }
    // Ordering: the next call may start; these replies wait until the journal has them.
    drop(permit);
    for (entries, waiting) in later {
        let sent = Instant::now();
        let is_journaled = c.relay.publish(c.p, &entries, Pace::call(JOURNAL_PATIENCE)).await.is_ok();
        since(&c.meters.journal, sent);
        fault::point("finish_journaled");
        for (tx, reply) in waiting {
            send(tx, Ok(Finished { reply, is_journaled }));
        }
    }
}

async fn report(
    c: Context,
    asks: Vec<Progress>,
    replies: Vec<oneshot::Sender<Result<ProgressReply, StoreError>>>,
    permit: OwnedSemaphorePermit,
) {
    let mut later = Vec::new();
    for (session, items, replies) in by_session(asks, replies) {
        match c.store.progress(c.p, &session, &items).await {
            Ok(answer) => {
                for (reply, result) in replies.into_iter().zip(answer.results) {
                    send(reply, Ok(result));
                }
                later.extend(answer.entries);
            }
            Err(e) => replies.into_iter().for_each(|r| send(r, Err(e.clone()))),
        }
    }
    drop(permit);
    if let Err(e) = c.relay.publish(c.p, &later, Pace::call(JOURNAL_PATIENCE)).await {
        tracing::warn!(error = %e, "reports wait in the outbox for the relay");
    }
}
