//! What is paused, as this worker knows it: read before the first pull, looked at with every renewal, and at once where
//! somebody says that it changed.
//!
//! No job starts on a view that may be old. It is believed for as long as a lease (`lease.ttl` − `lease.margin`) from the start
//! of the last look that succeeded, and not at all between a reconnect to NATS and the next look. What comes meanwhile is given
//! back, and nothing more is asked for. Two windows remain: until the hint about a new pause has come (the time of one message;
//! where it is lost, until the next renewal), and between a reconnect and the moment that the client tells of it (the view is that
//! of before then, and no older than a lease; what was asked for before the reconnect is gone at the server).

use std::{
    collections::BTreeSet,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use surety_common::{
    broker::{
        Broker, BrokerError,
        pauses::{Known, News},
    },
    clock::boot_ms,
    config::Settings,
    domain::{
        Job,
        pause::{Pause, Slot},
    },
    pace::{Pace, retry},
    wake::open,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::shared::Shared;

/// The pause before a look that failed is repeated.
const AGAIN: Duration = Duration::from_millis(250);

/// Whether a job may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No pause holds it.
    Free,
    /// This one does.
    Paused(Pause),
    /// It is not known whether one does.
    Unknown,
}

/// The view. Cheap to ask: where nothing is paused, two atomic reads and the clock.
pub(crate) struct Pauses {
    broker: Broker,
    reconnects: watch::Receiver<u64>,
    /// Until then (boot-time milliseconds) the view is believed, and nothing is paused in it; 0: look closer.
    free_until_ms: AtomicU64,
    /// The connection that the view was read on.
    read_on: AtomicU64,
    view: RwLock<View>,
    /// Whether the view is believed.
    is_known: watch::Sender<bool>,
    trust: Duration,
    tick: Duration,
}

#[derive(Debug, Default)]
struct View {
    known: Option<Known>,
    /// Boot-time milliseconds.
    believed_until_ms: u64,
    /// The broker's clock minus boot time.
    offset_ms: u64,
}

impl View {
    fn judge(&self, job: &Job, now_ms: u64) -> Verdict {
        let Some(known) = self.known.as_ref().filter(|_| now_ms < self.believed_until_ms) else {
            return Verdict::Unknown;
        };
        match known.pauses.holding(job, now_ms.saturating_add(self.offset_ms)) {
            Some(p) => Verdict::Paused(p.clone()),
            None => Verdict::Free,
        }
    }
}

impl Pauses {
    /// Reads what is paused.
    /// Errors: it cannot be read; a worker does not start without it.
    pub(crate) async fn start(broker: &Broker, settings: &Settings) -> Result<Arc<Self>, BrokerError> {
        let mut reconnects = broker.reconnects();
        reconnects.mark_unchanged();
        let pauses = Arc::new(Self {
            broker: broker.clone(),
            reconnects,
            free_until_ms: AtomicU64::new(0),
            read_on: AtomicU64::new(0),
            view: RwLock::default(),
            is_known: watch::Sender::new(false),
            trust: settings.lease.ttl.saturating_sub(settings.lease.margin),
            tick: settings.lease.renewal,
        });
        retry(Pace::call(settings.connection.retry_limit), || pauses.look()).await?;
        Ok(pauses)
    }

    /// Whether a job may start now.
    pub(crate) fn judge(&self, job: &Job) -> Verdict {
        let now_ms = boot_ms();
        if !self.is_of_this_connection() {
            return Verdict::Unknown;
        }
        if now_ms < self.free_until_ms.load(Ordering::Acquire) {
            return Verdict::Free;
        }
        self.view.read().unwrap_or_else(PoisonError::into_inner).judge(job, now_ms)
    }

    /// Whether anything could be judged; changes with the view.
    pub(crate) fn is_known(&self) -> watch::Receiver<bool> {
        self.is_known.subscribe()
    }

    fn is_of_this_connection(&self) -> bool {
        self.read_on.load(Ordering::Acquire) == *self.reconnects.borrow()
    }

    /// Follows the pauses until `until` is cancelled, and wakes whom one held that is over.
    pub(crate) async fn follow(self: Arc<Self>, w: Arc<Shared>, until: CancellationToken) {
        let mut notices = self.broker.pause_notices().await;
        let mut reconnects = self.reconnects.clone();
        reconnects.mark_unchanged();
        // What changed before the subscription stood is seen now.
        let mut wait = Duration::ZERO;
        let (mut held, _) = self.held();
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = notices.came() => {}
                changed = reconnects.changed() => if changed.is_err() { return },
                () = until.cancelled() => return,
            }
            wait = match self.look().await {
                Ok(()) => {
                    let (now_held, next_end) = self.held();
                    let over = held.difference(&now_held).cloned().collect();
                    held = now_held;
                    wake(&w, over);
                    next_end.map_or(self.tick, |end| end.min(self.tick))
                }
                Err(error) => {
                    tracing::warn!(%error, "what is paused cannot be looked at; soon nothing starts");
                    self.doubt();
                    AGAIN
                }
            };
        }
    }

    /// The places of what is paused, and how long until the next of it ends by itself.
    fn held(&self) -> (BTreeSet<Slot>, Option<Duration>) {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = &view.known else { return Default::default() };
        let now_ms = boot_ms().saturating_add(view.offset_ms);
        let left = known.pauses.next_end(now_ms).map(|end| Duration::from_millis(end.saturating_sub(now_ms)));
        (known.pauses.places(now_ms), left)
    }

    /// Where the view is not believed any more, says so to those who wait for it.
    fn doubt(&self) {
        let until = self.view.read().unwrap_or_else(PoisonError::into_inner).believed_until_ms;
        let is_known = self.is_of_this_connection() && boot_ms() < until;
        self.is_known.send_if_modified(|k| std::mem::replace(k, is_known) != is_known);
    }

    /// Looks whether the view is still right, and reads it anew where it is not.
    async fn look(&self) -> Result<(), BrokerError> {
        // Ordering: both before the first request, so that the view is never believed to be newer than it is.
        let (asked_ms, connection) = (boot_ms(), *self.reconnects.borrow());
        let version = self
            .view
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .known
            .as_ref()
            .map(|k| k.version.clone());
        let news = match version {
            Some(version) => self.broker.pauses_since(&version).await?,
            None => News::Changed(self.broker.pauses().await?),
        };
        let trust_ms = u64::try_from(self.trust.as_millis()).unwrap_or(u64::MAX);
        let believed_until_ms = asked_ms.saturating_add(trust_ms);
        let is_empty = {
            let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            let now_ms = match news {
                News::Same { now_ms } => now_ms,
                News::Changed(known) => {
                    tell(&known);
                    let now_ms = known.now_ms;
                    view.known = Some(known);
                    now_ms
                }
            };
            // The answer was made after it was asked for: a pause ends by this clock a little late, never early.
            view.offset_ms = now_ms.saturating_sub(boot_ms());
            view.believed_until_ms = believed_until_ms;
            let is_empty = view.known.as_ref().is_some_and(|k| k.pauses.is_empty());
            self.free_until_ms.store(if is_empty { believed_until_ms } else { 0 }, Ordering::Release);
            is_empty
        };
        self.read_on.store(connection, Ordering::Release);
        tracing::trace!(is_empty, "looked at what is paused");
        self.doubt();
        Ok(())
    }
}

/// Wakes whom these pauses held. From now on this worker puts nobody into their lines, so none that it put there is forgotten;
/// what others with an older view put there after this, they wake themselves.
fn wake(w: &Arc<Shared>, over: Vec<Slot>) {
    for slot in over {
        let c = w.c.clone();
        w.tracker.spawn(async move {
            match open(&c, &slot).await {
                Ok(n) => tracing::info!(%slot, jobs = n, "a pause is over"),
                Err(error) => tracing::warn!(%slot, %error, "a pause is over; a reaper wakes whom it held"),
            }
        });
    }
}

fn tell(known: &Known) {
    let held: Vec<_> = known.pauses.list(known.now_ms).iter().map(|p| p.target.to_string()).collect();
    if !held.is_empty() {
        tracing::info!(paused = held.join(", "), "what is paused is not started");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use surety_common::{
        broker::pauses::Version,
        domain::pause::{Pauses as Set, Target},
        wire,
    };

    fn job() -> Job {
        let document = wire::job::parse(br#"{"type":"t","key":"k"}"#).unwrap();
        wire::job::check(document, "a".parse().unwrap(), "default".parse().unwrap()).unwrap()
    }

    fn view(until_ms: Option<u64>) -> View {
        let mut pauses = Set::default();
        let target = Target::key("k").unwrap();
        let slot = target.slot();
        pauses.put(slot, Pause { target, reason: None, by: "ann".into(), at_ms: 1, until_ms });
        let known = Known { pauses, version: Version::default(), now_ms: 0 };
        View { known: Some(known), believed_until_ms: 1000, offset_ms: 5_000_000 }
    }

    // Shows: S-04
    #[test]
    fn an_old_view_is_not_believed_whatever_it_says() {
        assert_eq!(View::default().judge(&job(), 0), Verdict::Unknown);
        let empty = Known { pauses: Set::default(), version: Version::default(), now_ms: 0 };
        let empty = View { known: Some(empty), ..view(None) };
        assert_eq!((empty.judge(&job(), 999), empty.judge(&job(), 1000)), (Verdict::Free, Verdict::Unknown));
        assert!(matches!(view(None).judge(&job(), 999), Verdict::Paused(_)));
        assert_eq!(view(None).judge(&job(), 1000), Verdict::Unknown);
    }

    #[test]
    fn a_pause_ends_by_the_clock_of_the_broker() {
        let view = view(Some(5_000_500));
        assert!(matches!(view.judge(&job(), 499), Verdict::Paused(_)));
        assert_eq!(view.judge(&job(), 500), Verdict::Free);
    }
}
