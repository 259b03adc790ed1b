//! Telling requesters what workers did not: starts, nudges, and receipts that got lost on their way. On tasks of their own,
//! because a requester may be slow and the deadlines of other jobs are not.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use surety_common::{
    broker::{decode::decode, receipts::Outgoing},
    connect::Connected,
    domain::{JobId, QueueName, Requester, deadline::Due, ids::receipt_id},
    pace::{Pace, Transient},
    recover::RecoverError,
    store::{Record, Telling, ToldItem},
    tell::{
        SubjectSink, commit,
        notice::{tell_nudge, tell_start},
    },
};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::task::TaskTracker;

use crate::rule::{Context, RuleError};

/// How long a reaper that tells a requester has for it, before another one does.
pub(super) const TELL_WITHIN: Duration = Duration::from_secs(30);
/// How long publishes are tried before a later look goes on.
const PATIENCE: Pace = Pace::call(Duration::from_secs(10));
/// How far the clocks of store and journal may differ: the search for a receipt begins so much before its outcome.
const SKEW_MS: u64 = 10 * 60 * 1000;

/// A job, with its record as it was judged.
type Of = (JobId, Record);

/// What a step of the rule leaves to be done for several jobs at once.
#[derive(Default)]
pub(super) struct Todo {
    /// Nudges of jobs whose requesters want none.
    nobody: Vec<Of>,
    /// Receipts that may be lost.
    receipts: Vec<Of>,
}

impl Todo {
    /// Tells what follows from a deadline, or notes it. `r`: as it was judged; `rev`: of the job now.
    pub(super) fn add(
        &mut self,
        x: &Context,
        teller: &Teller,
        due: Due,
        (id, r): (&JobId, &Record),
        rev: u64,
    ) {
        let of = || (id.clone(), r.clone());
        let wants_notices = || Requester::from_json(&r.notify).is_ok_and(|to| to.wants_notices());
        match due {
            Due::TellStart => teller.start(x, of()),
            Due::Missed | Due::TellNudge if wants_notices() => teller.nudge(x, of(), rev, r.promise_ms),
            Due::Missed | Due::TellNudge => self.nobody.push(of()),
            Due::SendReceipt => self.receipts.push(of()),
            Due::NotYet(_)
            | Due::Expired
            | Due::Overdue
            | Due::Overstayed
            | Due::CheckCarrier
            | Due::Forgo
            | Due::Drop => {}
        }
    }
}

/// Tells, on tasks of its own.
#[derive(Default)]
pub(super) struct Teller {
    tasks: TaskTracker,
    places: OnceLock<Arc<Semaphore>>,
    /// One search of the journal at a time.
    searching: Arc<Mutex<()>>,
}

impl Teller {
    fn spawn(
        &self,
        x: &Context,
        what: &'static str,
        job: JobId,
        tell: impl Future<Output = Result<(), RecoverError>> + Send + 'static,
    ) {
        let most = usize::try_from(x.settings.notify.concurrency.0).unwrap_or(64);
        let places = self.places.get_or_init(|| Arc::new(Semaphore::new(most))).clone();
        self.tasks.spawn(async move {
            let in_time = tokio::time::timeout(TELL_WITHIN, async {
                // The semaphore is never closed.
                let _place = places.acquire_owned().await.ok();
                tell.await
            });
            match in_time.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(job_id = %job, what, %error, "telling a requester was not committed; it is told again");
                }
                Err(_) => tracing::warn!(job_id = %job, what, "telling a requester took too long; it is told again"),
            }
        });
    }

    /// The start of an attempt, whose worker's own notice did not surface.
    fn start(&self, x: &Context, (id, r): Of) {
        let (c, sink) = (x.c.clone(), sink(x));
        let default = x.settings.contract.progress;
        self.spawn(x, "started", id.clone(), async move {
            let progress = promised(&c, &r).await.unwrap_or(default);
            tell_start(&c, &sink, &id, &r, progress, "reaper").await.map(drop)
        });
    }

    /// One nudge for each promise of progress that was missed. `rev`: of the miss; `at_ms`: when it was promised.
    fn nudge(&self, x: &Context, (id, r): Of, rev: u64, at_ms: u64) {
        let (c, sink) = (x.c.clone(), sink(x));
        self.spawn(x, "nudge", id.clone(), async move {
            tell_nudge(&c, &sink, &id, &r, rev, at_ms).await.map(drop)
        });
    }

    /// Tells what a step gathered besides.
    pub(super) async fn tell(&self, x: &Context, p: u32, todo: Todo) -> Result<(), RuleError> {
        self.receipts(x, p, todo.receipts);
        nudge_nobody(&x.c, p, todo.nobody).await
    }

    /// Receipts that were not settled in their time: published again where they are lost.
    fn receipts(&self, x: &Context, p: u32, due: Vec<Of>) {
        if due.is_empty() {
            return;
        }
        let Ok(searching) = self.searching.clone().try_lock_owned() else {
            tracing::debug!("lost receipts are being looked for already");
            return;
        };
        let c = x.c.clone();
        self.tasks.spawn(async move {
            if let Err(error) = receipts(&c, p, due).await {
                tracing::warn!(%error, "looking for lost receipts stopped; it goes on later");
            }
            drop(searching);
        });
    }
}

fn sink(x: &Context) -> SubjectSink {
    SubjectSink::new(x.c.broker.clone(), x.settings.notify.timeout)
}

/// Commits the nudges of jobs whose requesters want none: nothing is left to do about them until progress comes.
async fn nudge_nobody(c: &Connected, p: u32, due: Vec<Of>) -> Result<(), RuleError> {
    if due.is_empty() {
        return Ok(());
    }
    let item = |(id, r): Of| ToldItem {
        id,
        generation: r.generation,
        what: Telling::Nudge,
        note: String::new(),
        data: r#"{"surfaced":false}"#.to_owned(),
    };
    let items: Vec<_> = due.into_iter().map(item).collect();
    let answer = c.store.told(p, &items).await?;
    c.relay.publish(p, &answer.entries, PATIENCE).await?;
    Ok(())
}

/// Within which time the job itself promises progress: its message says so, while that can be read.
async fn promised(c: &Connected, r: &Record) -> Option<Duration> {
    let queue = QueueName::new(&r.queue).ok()?;
    let raw = c.broker.carrier_message(&r.carrier).await.ok()??;
    decode(&c.broker, &queue, &raw, &c.found.jobs_created).ok()?.job.terms.progress
}

/// Receipts that may be lost: those that are neither in the outbox nor on their way are searched in the journal.
async fn receipts(c: &Connected, p: u32, due: Vec<Of>) -> Result<(), RuleError> {
    let mut lost: HashMap<String, Vec<Of>> = HashMap::new();
    for (id, r) in due {
        // Not journaled yet: the relay publishes both.
        let is_waiting =
            c.store.has_entry(p, &r.entry).await? || c.broker.waiting_receipt(&r.queue, &id).await?.is_some();
        if is_waiting {
            tracing::debug!(job_id = %id, tries = r.told, "a receipt is still on its way");
        } else {
            lost.entry(r.queue.clone()).or_default().push((id, r));
        }
    }
    for (queue, lost) in lost {
        let wanted: HashSet<(String, u32)> =
            lost.iter().map(|(id, r)| (id.to_string(), r.generation)).collect();
        let since = lost.iter().map(|(_, r)| r.ended_ms).min().unwrap_or(0).saturating_sub(SKEW_MS);
        let journal = c.broker.journaled_receipts(&queue, since, &wanted).await?;
        for (id, r) in lost {
            let key = (id.to_string(), r.generation);
            let receipt = receipt_id(&id, r.generation, "finished");
            let data = |message: &str| serde_json::json!({ "receipt": receipt, "tries": r.told, "message": message });
            if journal.delivered.contains(&key) {
                let why = "the journal says that it was delivered";
                tracing::warn!(job_id = %id, "a receipt is acked: {why}");
                commit(c, &id, r.generation, Telling::Receipt, "", &data(why), PATIENCE).await?;
            } else if let Some(found) = journal.receipts.get(&key) {
                tracing::warn!(job_id = %id, tries = r.told, "a receipt was lost and is sent again");
                let again = Outgoing {
                    job: &id,
                    generation: r.generation,
                    queue: &queue,
                    notify: &found.notify,
                    trace: &found.trace,
                    body: &found.body,
                    // The broker may remember the lost one by its id.
                    message_id: &format!("{receipt}/{}", r.promise_ms),
                };
                let sent = async { c.broker.send_receipt(&c.publisher, again).await?.stored().await };
                match sent.await {
                    Ok(_) => {}
                    Err(error) if error.is_transient() => return Err(error.into()),
                    // It is looked for again later; the others are not kept waiting by it.
                    Err(error) => {
                        tracing::error!(job_id = %id, %error, alert = "rule_failed", "a lost receipt was refused")
                    }
                }
            } else {
                let why = "it was lost, and the journal does not have it any more";
                tracing::error!(job_id = %id, alert = "receipt_failed", "delivery of a receipt is given up: {why}");
                commit(c, &id, r.generation, Telling::ReceiptGivenUp, why, &data(why), PATIENCE).await?;
            }
        }
    }
    Ok(())
}
