//! Which queue to ask for how many jobs. Pure: the pullers and their waiting are in `intake`.
//!
//! With one queue, a waiting pull for all free slots. With several, a *probe*: the queue whose turn it is is asked for as
//! much as there are slots, without waiting; when it has less, the next queue is asked for the rest. When all are empty, each
//! gets a *parked* pull for one job, so that a new job starts at once; what arrives beyond the slots is given back. While one
//! is parked its queue is empty, and it is not probed: a job does not say which of two pulls it answers.

/// One request to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ask {
    /// Position of the queue.
    pub(crate) queue: usize,
    pub(crate) n: usize,
    pub(crate) wait: bool,
}

/// The state of asking.
#[derive(Debug)]
pub(crate) struct Plan {
    /// `None`: strict order of rank.
    weights: Option<Vec<u32>>,
    order: Vec<usize>,
    at: usize,
    /// The queue that is being probed, and how many of its answers are still to come.
    probe: Option<(usize, usize)>,
    parked: Vec<bool>,
    slots: usize,
}

impl Plan {
    /// A plan over `n` queues in rank order; `weights` has one for each where order is weighted.
    pub(crate) fn new(n: usize, weights: Option<Vec<u32>>, slots: usize) -> Self {
        Self { weights, order: (0..n).collect(), at: 0, probe: None, parked: vec![false; n], slots }
    }

    /// What to ask for now. `free`: slots that nothing is asked for yet; `outstanding`: what is asked for and not here yet.
    /// `random`: gives a number uniform in 0..1.
    pub(crate) fn next(&mut self, free: usize, outstanding: usize, random: impl FnOnce() -> f64) -> Vec<Ask> {
        if free == 0 || self.order.is_empty() {
            return Vec::new();
        }
        if self.order.len() == 1 {
            // Not for every single slot: one request for a quarter of them costs as much as one for one.
            let worth_it = outstanding == 0 || free >= (self.slots / 4).max(1);
            return if worth_it { vec![Ask { queue: 0, n: free, wait: true }] } else { Vec::new() };
        }
        if self.probe.is_some() {
            return Vec::new();
        }
        if self.at == 0 {
            self.turn(random());
        }
        while let Some(&queue) = self.order.get(self.at) {
            if self.parked.get(queue) == Some(&true) {
                self.at += 1;
                continue;
            }
            self.probe = Some((queue, free));
            return vec![Ask { queue, n: free, wait: false }];
        }
        let mut asks = Vec::new();
        for (queue, parked) in self.parked.iter_mut().enumerate() {
            if !*parked {
                *parked = true;
                asks.push(Ask { queue, n: 1, wait: true });
            }
        }
        asks
    }

    /// How many jobs the probe still asks for.
    pub(crate) fn probing(&self) -> usize {
        self.probe.map_or(0, |(_, left)| left)
    }

    /// The queues whose turn has come: all before them had nothing more.
    pub(crate) fn reached(&self) -> impl Iterator<Item = usize> {
        self.order.iter().copied().take(self.at + 1)
    }

    /// A message came from a queue.
    pub(crate) fn on_message(&mut self, queue: usize) {
        match &mut self.probe {
            Some((q, left)) if *q == queue => {
                *left -= 1;
                if *left == 0 {
                    self.probe = None;
                    self.at = 0;
                }
            }
            _ => {
                if let Some(p) = self.parked.get_mut(queue) {
                    *p = false;
                }
                self.at = 0;
            }
        }
    }

    /// A pull of a queue ended before it was filled.
    pub(crate) fn on_end(&mut self, queue: usize) {
        match self.probe {
            Some((q, _)) if q == queue => {
                self.probe = None;
                self.at += 1;
            }
            _ => {
                if let Some(p) = self.parked.get_mut(queue) {
                    *p = false;
                }
                self.at = 0;
            }
        }
    }

    /// A slot came free: start again with the queue whose turn it is.
    pub(crate) fn on_freed(&mut self) {
        if self.probe.is_none() {
            self.at = 0;
        }
    }

    /// Nothing is under way any more (the server was silent, or a new session began).
    pub(crate) fn reset(&mut self) {
        self.probe = None;
        self.at = 0;
        self.parked.fill(false);
    }

    /// Puts the queues into the order of this turn.
    fn turn(&mut self, random: f64) {
        self.order.sort_unstable();
        let Some(weights) = &self.weights else { return };
        let total: u32 = weights.iter().sum();
        let mut mark = random * f64::from(total);
        let first = weights
            .iter()
            .position(|w| {
                mark -= f64::from(*w);
                mark < 0.0
            })
            .unwrap_or(0);
        if let Some(at) = self.order.iter().position(|q| *q == first) {
            let q = self.order.remove(at);
            self.order.insert(0, q);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows: J-01
    #[test]
    fn strict_order_asks_the_next_queue_only_for_what_the_first_did_not_fill() {
        let mut p = Plan::new(3, None, 4);
        assert_eq!(p.next(4, 0, || 0.0), [Ask { queue: 0, n: 4, wait: false }]);
        assert!(p.next(4, 4, || 0.0).is_empty(), "one probe at a time");
        p.on_message(0);
        p.on_end(0);
        assert_eq!(p.next(3, 0, || 0.0), [Ask { queue: 1, n: 3, wait: false }]);
        p.on_end(1);
        assert_eq!(p.next(3, 0, || 0.0)[0].queue, 2);
        p.on_end(2);
        assert_eq!(p.next(3, 0, || 0.0).len(), 3, "all empty: one parked pull each");
        assert!(p.next(3, 3, || 0.0).is_empty());
        p.on_message(2);
        assert_eq!(p.next(2, 2, || 0.0)[0], Ask { queue: 2, n: 2, wait: false }, "the others are empty");
        p.on_message(0);
        p.on_message(2);
        p.on_message(2);
        assert_eq!(p.next(1, 1, || 0.0)[0], Ask { queue: 0, n: 1, wait: false }, "rank order again");
    }

    // Shows: J-01
    #[test]
    fn a_queue_with_a_parked_pull_is_not_probed_and_gets_another_when_that_was_answered() {
        let mut p = Plan::new(2, None, 4);
        for queue in 0..2 {
            assert_eq!(p.next(4, 0, || 0.0), [Ask { queue, n: 4, wait: false }]);
            p.on_end(queue);
        }
        assert_eq!(p.next(4, 0, || 0.0).len(), 2, "both are parked");
        // A slot comes free while both wait at the server.
        p.on_freed();
        assert!(p.next(4, 2, || 0.0).is_empty());
        // The pull of the second is answered: it alone is asked for more, and parked again when it has none.
        p.on_message(1);
        assert_eq!(p.next(3, 1, || 0.0), [Ask { queue: 1, n: 3, wait: false }]);
        p.on_end(1);
        assert_eq!(p.next(3, 1, || 0.0), [Ask { queue: 1, n: 1, wait: true }]);
    }

    #[test]
    fn weights_share_the_first_turn() {
        let mut p = Plan::new(2, Some(vec![3, 1]), 1);
        let mut firsts = [0, 0];
        for i in 0..100 {
            let ask = p.next(1, 0, || f64::from(i) / 100.0)[0];
            firsts[ask.queue] += 1;
            p.on_message(ask.queue);
        }
        assert_eq!(firsts, [75, 25]);
    }

    #[test]
    fn one_queue_is_asked_for_all_free_slots_but_not_for_each() {
        let mut p = Plan::new(1, None, 100);
        assert_eq!(p.next(100, 0, || 0.0), [Ask { queue: 0, n: 100, wait: true }]);
        assert!(p.next(10, 90, || 0.0).is_empty());
        assert_eq!(p.next(30, 70, || 0.0)[0].n, 30);
        assert_eq!(p.next(1, 0, || 0.0)[0].n, 1);
    }
}
