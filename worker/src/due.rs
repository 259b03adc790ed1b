//! Jobs that came due by a schedule: a second consumer beside that of each queue, for the same slots.
//!
//! They are rare beside the others, and those shall not wait for an answer about them. So they are no part of the plan. While
//! slots are idle, each queue has one *parked* pull here, so that a due job starts at once. While they are not, there is a
//! *look* without waiting, at most every [`TICK`], at the rank of the queue. A job that comes makes its queue *hot*: look
//! after look for as many as there are slots, in turn with its other jobs, until one brings less than it asked for.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use surety_common::{
    broker::{
        BrokerError,
        place::CarrierStream,
        pull::{Pulled, Puller},
    },
    domain::QueueName,
};
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep, sleep},
};

use crate::{
    plan::{Ask, Plan},
    shared::Shared,
};

/// The server fires schedules in steps of this length too.
const TICK: Duration = Duration::from_millis(250);
/// How long a parked pull waits. Short, because it may be answered when the slots are taken again, and the job must be given
/// back then.
const PARKED: Duration = Duration::from_secs(2);
/// Ticks without a pull after a consumer was found to be gone.
const AWAY: u32 = 8;

/// What is under way for one queue.
#[derive(Debug, Default)]
struct Lane {
    parked: bool,
    /// Jobs that a look asked for and that are still to come.
    looking: usize,
    hot: bool,
    may_look: bool,
    away: u32,
}

/// What to ask for. Pure, as [`Plan`] is.
#[derive(Debug)]
struct Looks {
    lanes: Vec<Lane>,
    /// No other job came for a tick, with a slot free.
    is_quiet: bool,
    others_came: bool,
    /// Whose turn a single slot is, while a queue is hot.
    is_ours: bool,
}

impl Looks {
    fn new(n: usize) -> Self {
        let lanes = (0..n).map(|_| Lane { may_look: true, ..Lane::default() }).collect();
        Self { lanes, is_quiet: false, others_came: false, is_ours: false }
    }

    /// What to ask for now. `free`: slots; `others_wait`: a pull for other jobs waits at the server; `order`: the queues
    /// whose turn has come, the first first.
    fn next(&mut self, free: usize, others_wait: bool, order: impl Iterator<Item = usize>) -> Vec<Ask> {
        let mut asks = Vec::new();
        if free == 0 {
            return asks;
        }
        for queue in order {
            let Some(lane) = self.lanes.get_mut(queue) else { continue };
            if lane.looking > 0 {
                // Its answer comes before anything of a lower rank.
                break;
            }
            if lane.parked || lane.away > 0 {
                continue;
            }
            let look = if lane.hot {
                // Where a pull for the others waits, they get theirs anyway.
                let alone = others_wait || free > 1;
                self.is_ours = alone || !self.is_ours;
                if !self.is_ours {
                    break;
                }
                Some(if others_wait { free } else { free.div_ceil(2) })
            } else if self.is_quiet {
                None
            } else if std::mem::take(&mut lane.may_look) {
                Some(1)
            } else {
                continue;
            };
            match look {
                Some(n) => {
                    lane.looking = n;
                    asks.push(Ask { queue, n, wait: false });
                    break;
                }
                None => {
                    lane.parked = true;
                    asks.push(Ask { queue, n: 1, wait: true });
                }
            }
        }
        asks
    }

    /// Slots that a look may fill.
    fn reserved(&self) -> usize {
        self.lanes.iter().map(|l| l.looking).sum()
    }

    /// Whether time alone can change what is asked for.
    fn needs_ticks(&self) -> bool {
        self.lanes.iter().any(|l| !l.parked)
    }

    fn on_tick(&mut self, free: usize) {
        self.is_quiet = free > 0 && !self.others_came;
        self.others_came = false;
        for l in &mut self.lanes {
            l.may_look = true;
            l.away = l.away.saturating_sub(1);
        }
    }

    /// A job came that was not due by a schedule.
    fn on_other(&mut self) {
        self.others_came = true;
        self.is_quiet = false;
    }

    fn on_message(&mut self, queue: usize) {
        let Some(l) = self.lanes.get_mut(queue) else { return };
        if l.looking > 0 {
            l.looking -= 1;
        } else {
            l.parked = false;
        }
        l.hot = true;
    }

    /// A pull ended before it was filled.
    fn on_end(&mut self, queue: usize) {
        let Some(l) = self.lanes.get_mut(queue) else { return };
        if l.looking > 0 {
            (l.looking, l.hot) = (0, false);
        } else {
            l.parked = false;
        }
    }

    /// Nothing of the queue is under way; `away`: ticks to leave it alone.
    fn on_loss(&mut self, queue: usize, away: u32) {
        if let Some(l) = self.lanes.get_mut(queue) {
            *l = Lane { away, may_look: true, ..Lane::default() };
        }
    }

    fn reset(&mut self) {
        *self = Self::new(self.lanes.len());
    }
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// To the pull of a queue.
    Pulled(usize, Pulled),
    /// The connection was made anew: no pull of before is answered any more.
    Reconnected,
    Tick,
}

/// The pulls for due jobs of all queues of a worker. They stand in a task of their own, so that waiting for them costs the
/// loop that waits for the other jobs next to nothing.
pub(crate) struct Due {
    looks: Looks,
    /// Each with whether its consumer was found to be gone, which is said once.
    queues: Vec<(QueueName, bool)>,
    asks: mpsc::UnboundedSender<Ask>,
    events: mpsc::Receiver<Event>,
    tick: Pin<Box<Sleep>>,
    is_ticking: bool,
}

impl Due {
    /// Starts the task, which ends when this is dropped. Nothing is pulled yet.
    pub(crate) async fn start(w: &Arc<Shared>, queues: &[(QueueName, u32)]) -> Result<Self, BrokerError> {
        let mut pullers = Vec::with_capacity(queues.len());
        for (q, _) in queues {
            pullers.push(Puller::start(&w.c.broker, CarrierStream::Sched, q, PARKED).await?);
        }
        // As many as looks can bring at once: beyond that the task waits.
        let (send, events) = mpsc::channel(1024);
        let (asks, orders) = mpsc::unbounded_channel();
        w.tracker.spawn(pull(pullers, orders, send, w.c.broker.reconnects()));
        Ok(Self {
            looks: Looks::new(queues.len()),
            queues: queues.iter().map(|(q, _)| (q.clone(), false)).collect(),
            asks,
            events,
            tick: Box::pin(sleep(TICK)),
            is_ticking: true,
        })
    }

    /// Asks for what there is room for. `free`: slots that run nothing; `outstanding`: other jobs that are asked for.
    /// Returns how many slots are spoken for: those that a look may fill.
    pub(crate) fn ask(&mut self, free: usize, outstanding: usize, plan: &Plan) -> usize {
        let probed = plan.probing();
        let order = plan.reached();
        for ask in self.looks.next(free.saturating_sub(probed), outstanding > probed, order) {
            // The task ends after this only.
            if self.asks.send(ask).is_err() {
                tracing::debug!("the pulls for due jobs have ended");
            }
        }
        if !self.is_ticking && self.looks.needs_ticks() {
            self.tick.as_mut().reset(Instant::now() + TICK);
            self.is_ticking = true;
        }
        self.looks.reserved()
    }

    /// What happens next; waits.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Event {
        tokio::select! {
            event = self.events.recv() => match event {
                Some(e) => e,
                None => std::future::pending().await,
            },
            () = &mut self.tick, if self.is_ticking => {
                self.is_ticking = false;
                Event::Tick
            }
        }
    }

    pub(crate) fn on_tick(&mut self, free: usize) {
        self.looks.on_tick(free);
    }

    /// A job came that was not due by a schedule.
    pub(crate) fn on_other(&mut self) {
        self.looks.on_other();
    }

    pub(crate) fn on_message(&mut self, queue: usize) {
        self.is_there(queue);
        self.looks.on_message(queue);
    }

    fn is_there(&mut self, queue: usize) {
        if let Some((_, is_gone)) = self.queues.get_mut(queue) {
            *is_gone = false;
        }
    }

    /// A pull ended without a message.
    pub(crate) fn on_end(&mut self, queue: usize, how: &Pulled) {
        match how {
            Pulled::Message(_) | Pulled::Ended => {
                self.is_there(queue);
                self.looks.on_end(queue);
            }
            Pulled::Silent => self.looks.on_loss(queue, 0),
            Pulled::Gone(why) => {
                if let Some((queue, is_gone @ false)) = self.queues.get_mut(queue) {
                    tracing::warn!(%queue, why, "no consumer for due jobs; run `surety provision`, unless NATS is starting");
                    *is_gone = true;
                }
                self.looks.on_loss(queue, AWAY);
            }
            // The connection has logged it.
            Pulled::Denied(_) => self.looks.on_loss(queue, AWAY),
        }
    }

    pub(crate) fn reset(&mut self) {
        self.looks.reset();
    }
}

async fn pull(
    mut pullers: Vec<Puller>,
    mut orders: mpsc::UnboundedReceiver<Ask>,
    events: mpsc::Sender<Event>,
    mut reconnects: tokio::sync::watch::Receiver<u64>,
) {
    loop {
        let event = tokio::select! {
            order = orders.recv() => {
                let Some(Ask { queue, n, wait }) = order else { return };
                match pullers.get_mut(queue) {
                    Some(p) => match p.ask(n, wait).await {
                        Ok(()) => continue,
                        Err(e) => Event::Pulled(queue, Pulled::Gone(e.to_string())),
                    },
                    None => continue,
                }
            }
            (queue, pulled) = next_of(&mut pullers) => Event::Pulled(queue, pulled),
            Ok(()) = reconnects.changed() => {
                pullers.iter_mut().for_each(Puller::forget);
                Event::Reconnected
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// The next event of any puller; waits. Only that one was asked to its end.
pub(crate) async fn next_of(pullers: &mut [Puller]) -> (usize, Pulled) {
    if let [only] = pullers {
        return (0, only.next().await);
    }
    let mut all: FuturesUnordered<_> =
        pullers.iter_mut().enumerate().map(|(i, p)| async move { (i, p.next().await) }).collect();
    match all.next().await {
        Some(next) => next,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(queue: usize, n: usize) -> Vec<Ask> {
        vec![Ask { queue, n, wait: false }]
    }

    // Shows: J-04
    #[test]
    fn idle_slots_park_a_pull_for_each_queue_and_busy_ones_look_once_a_tick() {
        let mut d = Looks::new(2);
        assert_eq!(d.next(4, true, 0..2), look(0, 1), "the first look, at the start");
        assert_eq!(d.reserved(), 1);
        assert!(d.next(4, true, 0..2).is_empty(), "nothing of a lower rank before its answer");
        d.on_end(0);
        assert_eq!(d.next(4, true, 0..2), look(1, 1));
        d.on_end(1);
        assert!(d.next(4, true, 0..2).is_empty(), "once a tick");
        d.on_other();
        d.on_tick(4);
        assert_eq!(d.next(4, true, 0..1), look(0, 1), "not quiet: a look, and only where the rank allows");
        d.on_end(0);
        d.on_tick(4);
        let parked = [Ask { queue: 0, n: 1, wait: true }, Ask { queue: 1, n: 1, wait: true }];
        assert_eq!(d.next(4, true, 0..2), parked);
        assert_eq!((d.reserved(), d.needs_ticks()), (0, false));
        d.on_end(1);
        assert_eq!(d.next(4, true, 0..2), parked[1..], "it expired and is made again");
        assert!(d.next(0, true, 0..2).is_empty());
    }

    #[test]
    fn a_hot_queue_takes_turns_until_a_look_is_not_filled() {
        let mut d = Looks::new(1);
        assert_eq!(d.next(3, false, 0..1), look(0, 1));
        d.on_message(0);
        assert_eq!(d.next(3, false, 0..1), look(0, 2), "half of it, the others get the rest");
        d.on_message(0);
        d.on_message(0);
        assert_eq!(d.next(3, true, 0..1), look(0, 3), "all of it: the others have asked");
        d.on_end(0);
        assert!(d.next(3, true, 0..1).is_empty(), "cold again");
        d.on_tick(0);
        assert_eq!(d.next(1, false, 0..1), look(0, 1));
        d.on_message(0);
        let turns: Vec<bool> = (0..4)
            .map(|_| {
                let asks = d.next(1, false, 0..1);
                asks.iter().for_each(|_| d.on_message(0));
                !asks.is_empty()
            })
            .collect();
        assert_eq!(turns.iter().filter(|t| **t).count(), 2, "{turns:?}");
    }

    #[test]
    fn a_consumer_that_is_gone_is_left_alone_for_a_while() {
        let mut d = Looks::new(1);
        assert_eq!(d.next(1, false, 0..1), look(0, 1));
        d.on_loss(0, 2);
        d.on_tick(1);
        assert!(d.next(1, false, 0..1).is_empty() && d.needs_ticks());
        d.on_tick(1);
        assert_eq!(d.next(1, false, 0..1).len(), 1);
    }
}
