//! `surety queues`: how full the queues are, and who serves them.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use surety_common::{
    broker::{Broker, pauses::is_endless, queues::LaneState},
    domain::{QueueName, Status},
    store::{Fleet, OpenJobs, Store, Unhandled, unhandled},
};

use super::{Context, failure::Failure, pause::Shown, workers::span};
use crate::render::{Row, printable};

/// Records up to which backoff and deferral are told apart without being asked.
const COUNTED: u64 = 20_000;

/// Show how full each queue is, and who serves it
///
/// WAITING: no worker was given them yet; OLDEST: age of the first of them. RUNNING: attempts that run now; LONGEST: for how
/// long. BACKOFF: they failed and wait for their retry. DEFERRED: they could not start and wait for another try, with the age of the oldest. NO HANDLER: passed on from worker to worker, because none that lives has a handler for their type. WORKERS:
/// those that are alive and pull from the queue. CONSUMER: `ok`, `paused` (how much longer, by whom, why), `full` (as many are held as may be, so nothing is
/// delivered) or `missing`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety queues --json")]
pub(super) struct QueuesArgs {
    /// Tell backoff from deferral also where more than 20,000 jobs are open, which reads each of them
    #[arg(long)]
    exact: bool,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct QueueRow {
    queue: String,
    waiting: u64,
    /// Age of the oldest waiting one.
    oldest_waiting_ms: Option<u64>,
    /// Given to a worker or given back with a delay: running, in backoff, deferred.
    held: u64,
    running: Option<u64>,
    longest_running_ms: Option<u64>,
    backoff: Option<u64>,
    deferred: Option<u64>,
    /// Age of the oldest of these: what a guard holds back is delivered, and does not count as waiting.
    oldest_deferred_ms: Option<u64>,
    /// Live workers that pull from it.
    workers: Option<u64>,
    /// Jobs that workers pass on because none has a handler for them, by type.
    without_handler: Option<BTreeMap<String, u64>>,
    #[serde(skip)]
    unhandled: Vec<Unhandled>,
    consumers: Vec<Consumer>,
    /// The pause of the queue, if it has one.
    paused: Option<Shown>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Consumer {
    stream: String,
    name: String,
    state: &'static str,
    waiting: u64,
    held: u64,
    max_held: u64,
    redelivered: u64,
    /// Pulls of workers that wait for a job.
    pulls: u64,
    /// How much longer it is paused.
    paused_ms: Option<u64>,
}

impl Consumer {
    fn of(lane: LaneState) -> Self {
        let state = match &lane {
            l if l.is_missing => "missing",
            l if l.paused_ms.is_some() => "paused",
            l if l.is_full() => "full",
            _ => "ok",
        };
        Self {
            stream: lane.stream,
            name: lane.consumer,
            state,
            waiting: lane.waiting,
            held: lane.held,
            max_held: lane.max_held,
            redelivered: lane.redelivered,
            pulls: lane.pulls,
            paused_ms: lane.paused_ms,
        }
    }
}

/// What Redis knows.
struct Known {
    fleet: Fleet,
    /// `None`: too many to read without being asked.
    open: Option<OpenJobs>,
}

impl Known {
    async fn read(store: &Store, exact: bool) -> Result<Self, Failure> {
        let open =
            if exact || store.n_open().await? <= COUNTED { Some(store.open_jobs().await?) } else { None };
        Ok(Self { fleet: store.fleet().await?, open })
    }

    /// Start times of what runs of a queue.
    fn running<'a>(&'a self, queue: &'a str) -> impl Iterator<Item = u64> + 'a {
        let held = self.fleet.sessions.iter().flat_map(|s| &s.held);
        held.filter_map(|h| h.record.as_ref()).filter(move |r| r.queue == queue).map(|r| r.started_ms)
    }
}

impl QueueRow {
    fn new(queue: &QueueName, lanes: Vec<LaneState>, known: Option<&Known>, paused: Option<Shown>) -> Self {
        let name = queue.as_str();
        let count = |status| known.and_then(|k| k.open.as_ref()).map(|o| o.count(name, status));
        let oldest_run = known.and_then(|k| k.running(name).min());
        let serve = |k: &Known| {
            k.fleet.alive().filter(|s| s.info.as_ref().is_some_and(|i| i.serves(name) == Some(true))).count()
        };
        let unhandled = known.map(|k| unhandled(k.fleet.alive().filter_map(|s| s.info.as_ref()), name));
        Self {
            queue: queue.to_string(),
            waiting: lanes.iter().map(|l| l.waiting).sum(),
            oldest_waiting_ms: lanes.iter().filter_map(|l| l.oldest_waiting_ms).max(),
            held: lanes.iter().map(|l| l.held).sum(),
            running: known.map(|k| k.running(name).count() as u64),
            longest_running_ms: known.zip(oldest_run).map(|(k, t)| k.fleet.now_ms.saturating_sub(t)),
            backoff: count(Status::RetryWait),
            deferred: count(Status::Deferred),
            oldest_deferred_ms: known.and_then(|k| {
                let oldest = k.open.as_ref()?.oldest_ms(name, Status::Deferred)?;
                Some(k.fleet.now_ms.saturating_sub(oldest))
            }),
            workers: known.map(|k| serve(k) as u64),
            without_handler: unhandled
                .as_ref()
                .map(|all| all.iter().map(|u| (u.kind.clone(), u.jobs)).collect()),
            unhandled: unhandled.unwrap_or_default(),
            consumers: lanes.into_iter().map(Consumer::of).collect(),
            paused,
        }
    }

    /// Backoff and deferred together, where they were not counted apart.
    fn delayed(&self) -> Option<u64> {
        let is_apart = self.backoff.is_some();
        if is_apart { None } else { self.running.map(|r| self.held.saturating_sub(r)) }
    }
}

impl Row for QueueRow {
    const HEADS: &'static [&'static str] = &[
        "QUEUE",
        "WAITING",
        "OLDEST",
        "RUNNING",
        "LONGEST",
        "BACKOFF",
        "DEFERRED",
        "NO HANDLER",
        "WORKERS",
        "CONSUMER",
    ];
    fn cells(&self) -> Vec<String> {
        let number = |n: Option<u64>| n.map_or_else(|| "?".into(), |n| n.to_string());
        let age = |ms: Option<u64>| ms.map_or_else(|| "-".into(), span);
        let (backoff, deferred) = match self.delayed() {
            Some(both) => (format!("{both}*"), "*".into()),
            None => {
                let oldest =
                    self.oldest_deferred_ms.map_or_else(String::new, |ms| format!(" ({})", span(ms)));
                (number(self.backoff), number(self.deferred) + &oldest)
            }
        };
        let states = self.consumers.iter().map(|c| match c.paused_ms {
            Some(ms) if !is_endless(ms) => format!("paused {}", span(ms)),
            _ => c.state.to_owned(),
        });
        let mut states: Vec<String> = states.collect();
        states.dedup();
        let mut consumer = states.join(", ");
        if let Some(p) = &self.paused {
            consumer = format!("{consumer} {}", printable(&p.whose()));
        }
        vec![
            self.queue.clone(),
            self.waiting.to_string(),
            age(self.oldest_waiting_ms),
            number(self.running),
            age(self.longest_running_ms),
            backoff,
            deferred,
            number(self.without_handler.as_ref().map(|all| all.values().sum())),
            number(self.workers),
            consumer,
        ]
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Answer<'a> {
    queues: &'a [QueueRow],
}

pub(super) async fn run(cx: &Context, args: QueuesArgs) -> Result<(), Failure> {
    // What waits is worth knowing while Redis is away, too: its part of the answer is left open then.
    match cx.look().await {
        Ok(c) => {
            let known = Known::read(&c.store, args.exact).await?;
            show(cx, &c.broker, Some(&known)).await
        }
        Err(failure) => {
            show(cx, cx.client().await?.broker(), None).await?;
            Err(failure)
        }
    }
}

async fn show(cx: &Context, broker: &Broker, known: Option<&Known>) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let kept = broker.pauses().await?;
    for q in broker.found().await?.queues {
        let pause = kept.pauses.of_queue(q.as_str(), kept.now_ms).map(|p| Shown::of(p, kept.now_ms));
        rows.push(QueueRow::new(&q, broker.queue_state(&q).await?, known, pause));
    }
    cx.screen.table(&Answer { queues: &rows }, &rows)?;
    for (r, u) in rows.iter().flat_map(|r| r.unhandled.iter().map(move |u| (r, u))) {
        cx.screen.note(&format!("queue {}: {u}", r.queue));
    }
    let of_queues = rows.iter().filter(|r| r.paused.is_some()).count();
    let others = kept.pauses.list(kept.now_ms).len().saturating_sub(of_queues);
    if others > 0 {
        cx.screen.note(&format!("{others} types or keys are paused, too: `surety pause --list`"));
    }
    if rows.iter().any(|r| r.delayed().is_some()) {
        cx.screen.note("* backoff and deferred together; --exact tells them apart");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_counted_apart_is_shown_together_and_what_is_not_known_as_such() {
        let lane = LaneState {
            stream: "JOBS".into(),
            consumer: "default".into(),
            is_missing: false,
            waiting: 1,
            held: 100_000,
            redelivered: 0,
            pulls: 0,
            max_held: 100_000,
            paused_ms: None,
            oldest_waiting_ms: Some(61_000),
        };
        let queue = QueueName::new("default").unwrap();
        let known = Known { fleet: Fleet::default(), open: None };
        let row = QueueRow::new(&queue, vec![lane.clone()], Some(&known), None);
        assert_eq!(row.cells(), ["default", "1", "1m 1s", "0", "-", "100000*", "*", "0", "0", "full"]);
        let known = Known { open: Some(OpenJobs::default()), ..known };
        let row = QueueRow::new(&queue, vec![lane.clone()], Some(&known), None);
        assert_eq!(row.cells()[5..7], ["0", "0"]);
        let row = QueueRow::new(&queue, vec![lane], None, None);
        assert_eq!(row.cells()[3..9], ["?", "-", "?", "?", "?", "?"]);
    }
}
