//! Looking through the whole journal for a job that nothing else knows. The journal has no index by job, so one search reads all
//! of it; whoever asks about unknown ids costs that much. So one search runs at a time in a process, for everybody who waits for
//! one, and it rests as long as it took: the ids of strangers never take more than half of one reader's time.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{Broker, BrokerError};
use crate::{domain::JobId, wire::event::Event};

/// A search rests this long at most.
const LONGEST_REST: Duration = Duration::from_secs(30);

type Answer = Result<Option<Box<Event>>, BrokerError>;

/// The searches of one process.
#[derive(Debug, Clone, Default)]
pub struct JournalSearch {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Who waits for the next search.
    waiting: Mutex<HashMap<JobId, Vec<oneshot::Sender<Answer>>>>,
    /// Whose turn it is to search; until when the searches rest.
    turn: tokio::sync::Mutex<Option<Instant>>,
}

impl JournalSearch {
    fn waiting(&self) -> MutexGuard<'_, HashMap<JobId, Vec<oneshot::Sender<Answer>>>> {
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest event of a job in the whole journal; `None`: it has none.
    ///
    /// # Cancel safety
    /// A search that is dropped is begun again by the next who waits for it.
    pub async fn last_event(&self, broker: &Broker, id: &JobId) -> Result<Option<Event>, BrokerError> {
        self.ask(id, |wanted| search(broker, wanted)).await.map(|e| e.map(|e| *e))
    }

    async fn ask<F>(&self, id: &JobId, search: impl Fn(HashSet<String>) -> F) -> Answer
    where
        F: Future<Output = Result<HashMap<String, Event>, BrokerError>>,
    {
        loop {
            let (tell, mut told) = oneshot::channel();
            self.waiting().entry(id.clone()).or_default().push(tell);
            tokio::select! {
                // An answer that is there counts before the turn that came with it.
                biased;
                answer = &mut told => match answer {
                    Ok(answer) => return answer,
                    // Who searched for us went away.
                    Err(_) => continue,
                },
                mut rests = self.inner.turn.lock() => {
                    match told.try_recv() {
                        Ok(answer) => return answer,
                        Err(oneshot::error::TryRecvError::Closed) => continue,
                        Err(oneshot::error::TryRecvError::Empty) => {}
                    }
                    if let Some(until) = *rests {
                        tokio::time::sleep_until(until).await;
                    }
                    // So that one that is dropped has a rest behind it, too.
                    *rests = Some(Instant::now() + LONGEST_REST);
                    let asking = std::mem::take(&mut *self.waiting());
                    let began = Instant::now();
                    let found = search(asking.keys().map(ToString::to_string).collect()).await;
                    *rests = Some(Instant::now() + began.elapsed().min(LONGEST_REST));
                    for (id, tell) in asking {
                        let answer = found.as_ref().map(|all| all.get(id.as_str()).cloned().map(Box::new));
                        for t in tell {
                            // Who does not wait any more needs no answer.
                            t.send(answer.clone().map_err(Clone::clone)).ok();
                        }
                    }
                }
            }
            if let Ok(answer) = told.await {
                return answer;
            }
        }
    }
}

/// The newest event of each of these jobs.
async fn search(broker: &Broker, wanted: HashSet<String>) -> Result<HashMap<String, Event>, BrokerError> {
    let mut last: HashMap<String, Event> = HashMap::new();
    broker
        .look_through_journal(None, 0, |e| {
            if wanted.contains(&e.job)
                && last.get(&e.job).is_none_or(|l| (l.generation, l.rev) <= (e.generation, e.rev))
            {
                last.insert(e.job.clone(), e);
            }
        })
        .await?;
    Ok(last)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn everybody_who_waits_shares_one_search_and_the_next_one_rests() {
        let all = JournalSearch::default();
        let (searches, at_once) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let search = |wanted: HashSet<String>| {
            let (searches, at_once) = (&searches, &at_once);
            async move {
                searches.fetch_add(1, Ordering::Relaxed);
                assert_eq!(at_once.fetch_add(1, Ordering::Relaxed), 0, "one at a time");
                tokio::time::sleep(Duration::from_secs(5)).await;
                at_once.fetch_sub(1, Ordering::Relaxed);
                assert!(!wanted.is_empty());
                Ok(HashMap::new())
            }
        };
        let began = Instant::now();
        let ids: Vec<JobId> = (0..64).map(|n| JobId::new(&format!("x{n}")).unwrap()).collect();
        let asked = ids.iter().map(|id| all.ask(id, &search));
        for answer in futures::future::join_all(asked).await {
            assert!(answer.unwrap().is_none());
        }
        let n = searches.load(Ordering::Relaxed);
        assert!((1..=2).contains(&n), "{n} searches for 64 who ask together");
        let took = began.elapsed();
        all.ask(&ids[0], &search).await.unwrap();
        assert!(began.elapsed() - took >= Duration::from_secs(10), "it rests as long as it took");
    }

    #[tokio::test(start_paused = true)]
    async fn a_search_that_was_dropped_is_done_by_the_next() {
        let all = JournalSearch::default();
        let id = JobId::new("a").unwrap();
        let never = |_| std::future::pending();
        let quick = |_| std::future::ready(Ok(HashMap::new()));
        let first = tokio::time::timeout(Duration::from_secs(1), all.ask(&id, never));
        let second = async {
            tokio::task::yield_now().await;
            all.ask(&id, quick).await
        };
        let (first, second) = tokio::join!(first, second);
        assert!(first.is_err());
        assert!(second.unwrap().is_none());
    }
}
