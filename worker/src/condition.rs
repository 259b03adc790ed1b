//! What a worker says of itself while it lives: why it is not ready, and which jobs it passed on because it has no handler for
//! them. It stands with its session, where `surety workers`, `queues`, `why` and `doctor` read it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use surety_common::{
    broker::place::Carrier,
    domain::{QueueName, TypeName},
    store::{PassedOn, StoreError},
    telemetry::health::Subject,
};
use tokio_util::sync::CancellationToken;

use crate::{ready::Ready, session, shared::Shared};

/// Messages that are remembered as passed on; beyond it they are not counted.
const REMEMBERED: usize = 10_000;
/// Types that are named; a stranger may invent any number of them.
const NAMED: usize = 50;
/// What is said is looked at this often at most, and at least.
const EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// What was passed on lately, and which types were told in the log.
#[derive(Debug, Default)]
pub(crate) struct Passed(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    messages: HashMap<Carrier, (QueueName, TypeName, Instant)>,
    told: HashSet<TypeName>,
}

impl Passed {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a message that was passed on; says whether its type is news.
    pub(crate) fn note(&self, carrier: Carrier, queue: &QueueName, kind: &TypeName) -> bool {
        let mut s = self.state();
        if s.messages.len() < REMEMBERED || s.messages.contains_key(&carrier) {
            s.messages.insert(carrier, (queue.clone(), kind.clone(), Instant::now()));
        }
        s.told.len() < NAMED && s.told.insert(kind.clone())
    }

    /// How many jobs of each queue and type were passed on within a span: each comes once in it, to some worker.
    fn within(&self, span: Duration) -> PassedOn {
        let mut s = self.state();
        s.messages.retain(|_, (_, _, at)| at.elapsed() < span);
        let mut out: PassedOn = BTreeMap::new();
        let mut named = 0;
        for (queue, kind, _) in s.messages.values() {
            let of = out.entry(queue.to_string()).or_default();
            match of.get_mut(kind.as_str()) {
                Some(n) => *n += 1,
                None if named < NAMED => {
                    named += 1;
                    of.insert(kind.to_string(), 1);
                }
                None => {}
            }
        }
        // Whoever worries about the jobs of a type may be told of it again.
        if s.messages.is_empty() {
            s.told.clear();
        }
        out
    }
}

/// What changes about a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) not_ready: Vec<String>,
    pub(crate) passed_on: PassedOn,
}

impl Condition {
    async fn of(w: &Arc<Shared>) -> Self {
        let parts = Ready { w: Arc::downgrade(w) }.parts().await;
        let not_ready =
            parts.into_iter().filter_map(|(part, state)| Some(format!("{part}: {}", state.err()?)));
        // A message that is passed on comes again after the delay, which a busy server makes a little longer.
        let span = w.settings.worker.hand_on_delay + Duration::from_secs(1);
        Self { not_ready: not_ready.collect(), passed_on: w.passed.within(span) }
    }
}

/// Keeps what the session says up to date, until the worker ends.
pub(crate) async fn keep(w: Arc<Shared>, until: CancellationToken) {
    let every = (w.settings.lease.renewal * 3).clamp(EVERY.0, EVERY.1);
    // The session that has what is known now.
    let mut told = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = until.cancelled() => return,
        }
        let now = Condition::of(&w).await;
        if w.set_condition(now) {
            told = None;
        }
        let Some(session) = w.session.borrow().clone().filter(|s| !s.is_lost()) else { continue };
        if told.as_ref() == Some(&session.id) {
            continue;
        }
        match say(&w, &session).await {
            Ok(()) => told = Some(session.id.clone()),
            Err(error) => tracing::debug!(%error, "what this worker says of itself is not stored"),
        }
    }
}

async fn say(w: &Shared, session: &session::Session) -> Result<(), StoreError> {
    let info = session::info(w)?;
    for p in 0..w.c.store.keys().partitions() {
        w.c.store.describe_session(p, &session.id, &info).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_counts_once_and_a_type_is_news_once() {
        let passed = Passed::default();
        let queue = QueueName::new("q").unwrap();
        let kind = |n: &str| TypeName::new(n).unwrap();
        assert!(passed.note(Carrier::jobs(1), &queue, &kind("resise")));
        assert!(!passed.note(Carrier::jobs(1), &queue, &kind("resise")));
        assert!(!passed.note(Carrier::jobs(2), &queue, &kind("resise")));
        let counts = passed.within(Duration::from_secs(60));
        assert_eq!(counts["q"]["resise"], 2);
        assert!(passed.within(Duration::ZERO).is_empty());
        for n in 0..200 {
            passed.note(Carrier::jobs(n), &queue, &kind(&format!("t{n}")));
        }
        assert_eq!(passed.within(Duration::from_secs(60))["q"].len(), NAMED);
    }
}
