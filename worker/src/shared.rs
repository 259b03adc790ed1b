//! What the parts of one worker share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use surety_common::{
    broker::{place::Carrier, pull::Subject},
    config::Settings,
    connect::Connected,
    domain::{JobId, TypeName},
    reload::{Counted, LiveSettings},
};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    announce::Announcer,
    claims::short,
    condition::{Condition, Passed},
    guards::Guards,
    handler::{RustHandler, Stop, command::CommandHandler},
    keeper::Keeper,
    lanes::Lanes,
    meter::Meters,
    pauses::Pauses,
    postpone::BrokerClock,
    reports::ReportGroups,
    session::Session,
    state::LocalState,
    told::Told,
};

/// A handler of either kind.
#[derive(Clone)]
pub(crate) enum AnyHandler {
    Rust(RustHandler),
    Command(CommandHandler),
}

/// An attempt that this worker runs now.
pub(crate) struct Live {
    pub(crate) epoch: u64,
    pub(crate) partition: u32,
    pub(crate) carrier: Carrier,
    /// Its handler has ended and its finish is under way: what the store says of it may be older or newer than that.
    pub(crate) is_finishing: bool,
    pub(crate) stop: Stop,
}

/// Shared by all tasks of a worker.
pub(crate) struct Shared {
    pub(crate) c: Connected,
    /// Those of the start: what waits for a restart is asked of them.
    pub(crate) settings: Settings,
    /// Those in force: what is live is asked of them, when something begins.
    pub(crate) live: LiveSettings,
    pub(crate) handlers: HashMap<TypeName, AnyHandler>,
    pub(crate) keeper: Option<Keeper>,
    pub(crate) state: Option<LocalState>,
    pub(crate) reports: ReportGroups,
    pub(crate) lanes: Lanes,
    pub(crate) guards: Guards,
    pub(crate) meters: Arc<Meters>,
    pub(crate) announcer: Announcer,
    pub(crate) broker_clock: BrokerClock,
    pub(crate) passed: Passed,
    /// What the worker says of itself beyond what never changes.
    pub(crate) condition: Mutex<Condition>,
    pub(crate) pauses: Arc<Pauses>,
    /// The session that new claims use; `None` while there is none.
    pub(crate) session: watch::Sender<Option<Arc<Session>>>,
    /// The local running set: what is between claim and the end of its finish.
    pub(crate) running: Mutex<HashMap<JobId, Live>>,
    /// Deliveries in hand: extended until they are settled.
    pub(crate) held: Mutex<HashMap<Carrier, Subject>>,
    /// A slot came free.
    pub(crate) freed: Notify,
    /// Stop pulling.
    pub(crate) draining: CancellationToken,
    /// The signals that this process got.
    pub(crate) told: Told,
    /// Stop running attempts and hand them back.
    pub(crate) abort: CancellationToken,
    pub(crate) tracker: TaskTracker,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of a handler is caught at the attempt; the maps stay consistent between statements.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Takes a job into the running set. `None`: an attempt of it runs here already.
    pub(crate) fn enter(&self, id: &JobId, epoch: u64, partition: u32, carrier: Carrier) -> Option<Stop> {
        let mut running = lock(&self.running);
        if running.contains_key(id) {
            return None;
        }
        let stop = Stop { abort: self.abort.clone(), ..Stop::default() };
        running
            .insert(id.clone(), Live { epoch, partition, carrier, is_finishing: false, stop: stop.clone() });
        Some(stop)
    }

    pub(crate) fn condition(&self) -> Condition {
        lock(&self.condition).clone()
    }

    /// Notes what the worker is like now; says whether that is news.
    pub(crate) fn set_condition(&self, now: Condition) -> bool {
        let mut known = lock(&self.condition);
        let is_news = *known != now;
        *known = now;
        is_news
    }

    /// Whether an attempt of the job runs here.
    pub(crate) fn is_running(&self, id: &JobId) -> bool {
        lock(&self.running).contains_key(id)
    }

    /// Notes that the handler of an attempt has ended.
    pub(crate) fn finishing(&self, id: &JobId) {
        if let Some(l) = lock(&self.running).get_mut(id) {
            l.is_finishing = true;
        }
    }

    /// Takes a job out of the running set.
    pub(crate) fn leave(&self, id: &JobId) {
        lock(&self.running).remove(id);
    }

    /// Takes several jobs out of the running set.
    pub(crate) fn leave_all<'a>(&self, ids: impl Iterator<Item = &'a JobId>) {
        let mut running = lock(&self.running);
        ids.for_each(|id| drop(running.remove(id)));
    }

    /// What runs in a partition, as `<id>:<epoch>`; without what is being finished.
    pub(crate) fn running_in(&self, p: u32) -> Vec<String> {
        lock(&self.running)
            .iter()
            .filter(|(_, l)| l.partition == p && !l.is_finishing)
            .map(|(id, l)| format!("{id}:{}", l.epoch))
            .collect()
    }

    /// Ends an attempt without a word, if its handler runs under this epoch; says whether it does and was not told before.
    pub(crate) fn fence(&self, id: &JobId, epoch: u64) -> bool {
        let running = lock(&self.running);
        let live = running.get(id).filter(|l| l.epoch == epoch && !l.is_finishing);
        live.is_some_and(|l| self.fence_one(l))
    }

    /// The carrier of a fenced attempt is others' business: a handler that does not end must not keep it from them.
    fn fence_one(&self, live: &Live) -> bool {
        let is_news = !live.stop.fence.is_cancelled();
        if is_news {
            live.stop.fence.cancel();
            lock(&self.held).remove(&live.carrier);
        }
        is_news
    }

    /// Stops an attempt because its job is to be cancelled, if it runs under this epoch; says whether it does.
    pub(crate) fn cancel(&self, id: &JobId, epoch: u64) -> bool {
        let running = lock(&self.running);
        let live = running.get(id).filter(|l| l.epoch == epoch && !l.is_finishing);
        if let Some(l) = live {
            l.stop.cancel.cancel();
        }
        live.is_some()
    }

    /// Ends every attempt without a word. Returns their number.
    pub(crate) fn fence_all(&self) -> usize {
        let running = lock(&self.running);
        for live in running.values() {
            self.fence_one(live);
        }
        running.len()
    }

    /// Number of attempts that run.
    pub(crate) fn n_running(&self) -> usize {
        lock(&self.running).len()
    }

    /// Extends a delivery from now on. `false`: a delivery of the same message is in hand already; it is extended under the
    /// new one's name from now on, and the task that has it settles it.
    pub(crate) fn hold(&self, carrier: Carrier, ack_subject: &Subject) -> bool {
        lock(&self.held).insert(carrier, ack_subject.clone()).is_none()
    }

    /// Stops extending a delivery, before it is acked or given back; gives its newest ack subject.
    pub(crate) fn release(&self, carrier: Carrier) -> Option<Subject> {
        lock(&self.held).remove(&carrier)
    }

    /// Tells the broker, every `lease.extend`, that what is in hand is being worked on.
    pub(crate) async fn extend_loop(self: Arc<Self>, until: CancellationToken) {
        let _timer = Counted::new("extend");
        let mut tick = tokio::time::interval(self.settings.lease.extend);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = until.cancelled() => return,
            }
            let in_hand: Vec<(Carrier, Subject)> =
                lock(&self.held).iter().map(|(c, s)| (*c, s.clone())).collect();
            for (carrier, subject) in in_hand {
                // Checked again: it may have been settled while the others were extended.
                if lock(&self.held).contains_key(&carrier)
                    && let Err(e) = self.c.broker.extend(&subject).await
                {
                    tracing::warn!(error = %e, "could not extend a delivery; the broker may redeliver it");
                }
            }
        }
    }

    /// What a guard gave is held for so long (ms) unless it is renewed: as long as the session.
    pub(crate) fn hold_ms(&self) -> u64 {
        u64::try_from(self.settings.lease.ttl.as_millis()).unwrap_or(u64::MAX)
    }

    /// Within this many milliseconds a running job promises progress.
    pub(crate) fn progress_ms(&self, job: &surety_common::domain::Job) -> u32 {
        short(job.terms.progress.unwrap_or_else(|| self.live.now().contract.progress))
    }

    /// Time limit of an attempt of this job.
    pub(crate) fn timeout(&self, job: &surety_common::domain::Job) -> Duration {
        let by_handler = match self.handlers.get(&job.kind) {
            Some(AnyHandler::Command(h)) => h.timeout(),
            _ => None,
        };
        job.terms.timeout.or(by_handler).unwrap_or_else(|| self.live.now().attempt.timeout)
    }
}
