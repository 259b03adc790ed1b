//! Group commit: requests that gather while earlier calls are in flight go out as one call. No timer delays a lone one.

use std::{future::Future, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::task::TaskTracker;

/// Most requests of one call: past ~100 a bigger script gains nothing and blocks Redis longer.
pub const GROUP_CAP: usize = 200;
/// Calls in flight: one executes while the next is on the wire.
const IN_FLIGHT: usize = 3;
/// Requests that wait in the queue before `ask` waits itself.
const QUEUE_CAP: usize = 4 * GROUP_CAP;

/// Whether calls that are in flight together may overtake each other on their way to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Any,
    /// Each is sent before the next one begins.
    Kept,
}

/// Hands what comes from `queue` to `commit` in groups of at most `most`, each on a task of `tasks`; ends when the queue does.
/// `commit` drops its permit as soon as the next call may start.
pub async fn gather<T, F, Fut>(
    mut queue: mpsc::Receiver<T>,
    most: usize,
    order: Order,
    tasks: &TaskTracker,
    commit: F,
) where
    F: Fn(Vec<T>, OwnedSemaphorePermit) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(IN_FLIGHT));
    // The permit comes first: while all calls are in flight, requests gather.
    while let Ok(permit) = permits.clone().acquire_owned().await {
        let mut group = Vec::with_capacity(most.min(queue.len().max(4)));
        if queue.recv_many(&mut group, most).await == 0 {
            return;
        }
        let call = commit(group, permit);
        match order {
            Order::Any => drop(tasks.spawn(call)),
            Order::Kept => {
                let mut call = Box::pin(call);
                // Ordering: a call hands its request to the connection, which keeps their order, before it waits for anything.
                if futures::poll!(&mut call).is_pending() {
                    tasks.spawn(call);
                }
            }
        }
    }
}

/// Hands requests to a function in groups and gives each its own reply. Cheap to clone.
pub struct Group<Q, R> {
    queue: mpsc::Sender<(Q, oneshot::Sender<R>)>,
}

impl<Q, R> Clone for Group<Q, R> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<Q: Send + 'static, R: Send + 'static> Group<Q, R> {
    /// Starts the loop on `tracker`; it ends when the last handle is dropped. `commit` gets the requests with the senders of
    /// their replies, as [`gather`] says.
    pub fn start<F, Fut>(tracker: &TaskTracker, commit: F) -> Self
    where
        F: Fn(Vec<Q>, Vec<oneshot::Sender<R>>, OwnedSemaphorePermit) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (queue, requests) = mpsc::channel::<(Q, oneshot::Sender<R>)>(QUEUE_CAP);
        let calls = tracker.clone();
        tracker.spawn(async move {
            let split = move |group: Vec<(Q, oneshot::Sender<R>)>, permit| {
                let (asks, replies) = group.into_iter().unzip();
                commit(asks, replies, permit)
            };
            gather(requests, GROUP_CAP, Order::Any, &calls, split).await;
        });
        Self { queue }
    }

    /// Asks and waits for the reply. `None`: the loop ended or the call was dropped.
    pub async fn ask(&self, request: Q) -> Option<R> {
        let (tx, rx) = oneshot::channel();
        self.queue.send((request, tx)).await.ok()?;
        rx.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    // Shows: J-02
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn calls_whose_order_is_kept_are_sent_in_it() {
        let (tasks, sent) = (TaskTracker::new(), Arc::new(Mutex::new(Vec::new())));
        let (tx, rx) = mpsc::channel(10_000);
        (0..10_000).for_each(|n| tx.try_send(n).unwrap());
        drop(tx);
        gather(rx, 2, Order::Kept, &tasks, |group, permit| {
            let sent = sent.clone();
            async move {
                sent.lock().unwrap().extend(group);
                tokio::task::yield_now().await;
                drop(permit);
            }
        })
        .await;
        tasks.close();
        tasks.wait().await;
        assert_eq!(*sent.lock().unwrap(), (0..10_000).collect::<Vec<u32>>());
    }

    #[tokio::test]
    async fn requests_gather_while_calls_are_in_flight_and_each_gets_its_own_reply() {
        let tracker = TaskTracker::new();
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::new(Semaphore::new(0));
        let (seen, wait) = (sizes.clone(), gate.clone());
        let group: Group<u32, u32> = Group::start(&tracker, move |asks, replies, permit| {
            seen.lock().unwrap().push(asks.len());
            let wait = wait.clone();
            async move {
                wait.acquire().await.unwrap().forget();
                for (a, r) in asks.into_iter().zip(replies) {
                    r.send(a * 2).unwrap();
                }
                drop(permit);
            }
        });
        let all: Vec<_> = (0..100)
            .map(|n| {
                let g = group.clone();
                tokio::spawn(async move { g.ask(n).await })
            })
            .collect();
        gate.add_permits(1000);
        for (n, t) in all.into_iter().enumerate() {
            assert_eq!(t.await.unwrap(), Some(n as u32 * 2));
        }
        let sizes = sizes.lock().unwrap();
        assert_eq!(sizes.iter().sum::<usize>(), 100);
        assert!(sizes.len() < 100, "nothing was grouped: {sizes:?}");
    }
}
