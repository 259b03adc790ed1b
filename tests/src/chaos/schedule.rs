//! Which faults come when: a pure function of the seed.

use std::{fmt, time::Duration};

/// Numbers from a seed, the same on every machine (SplitMix64, Steele et al. 2014).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.roll() % n as u64) as usize
    }

    /// A span between two, in milliseconds.
    pub fn between(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_millis(from_ms + self.roll() % (to_ms - from_ms))
    }

    /// One of these, by weight.
    pub fn pick<'a, T>(&mut self, of: &'a [(u64, T)]) -> &'a T {
        let mut left = self.roll() % of.iter().map(|(w, _)| w).sum::<u64>();
        for (weight, what) in of {
            match left.checked_sub(*weight) {
                Some(rest) => left = rest,
                None => return what,
            }
        }
        unreachable!("the weights were summed")
    }
}

/// A connection of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Wire {
    Nats,
    Redis,
    Both,
}

/// What goes wrong. Workers and reapers are named by their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9`; another one is started with the same state folder.
    KillWorker(usize),
    /// `kill -9`; another one is started on another host, as it were.
    MoveWorker(usize),
    /// `SIGTERM`; another one is started.
    StopWorker(usize),
    FreezeWorker(usize),
    KillKeeper(usize),
    FreezeKeeper(usize),
    KillReaper(usize),
    FreezeReaper(usize),
    /// Connections are closed, and new ones at once.
    Cut(usize, Wire),
    /// Nothing arrives, nobody is told.
    Hold(usize, Wire),
    KillNats,
    KillRedis,
    /// `FLUSHALL`.
    WipeRedis,
    /// Killed, and started with an empty folder.
    EmptyRedis,
    /// It refuses writes, as one does whose replicas or whose disk are missing.
    RefuseWrites,
    /// It becomes a replica of nobody: reads go on, writes are refused, as on a demoted master.
    DemoteRedis,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillWorker(w) => write!(f, "kill worker {w}"),
            Self::MoveWorker(w) => write!(f, "kill worker {w} and its host"),
            Self::StopWorker(w) => write!(f, "stop worker {w}"),
            Self::FreezeWorker(w) => write!(f, "freeze worker {w}"),
            Self::KillKeeper(w) => write!(f, "kill the keeper of worker {w}"),
            Self::FreezeKeeper(w) => write!(f, "freeze the keeper of worker {w}"),
            Self::KillReaper(r) => write!(f, "kill reaper {r}"),
            Self::FreezeReaper(r) => write!(f, "freeze reaper {r}"),
            Self::Cut(w, wire) => write!(f, "cut worker {w} from {wire:?}"),
            Self::Hold(w, wire) => write!(f, "hold worker {w} from {wire:?}"),
            Self::KillNats => f.write_str("kill NATS"),
            Self::KillRedis => f.write_str("kill Redis"),
            Self::WipeRedis => f.write_str("FLUSHALL"),
            Self::EmptyRedis => f.write_str("kill Redis and empty its folder"),
            Self::RefuseWrites => f.write_str("let Redis refuse writes"),
            Self::DemoteRedis => f.write_str("demote Redis"),
        }
    }
}

/// What a fault keeps from other faults: they would add up to something that is promised to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// The process of a worker.
    Process(usize),
    Keeper(usize),
    Link(usize),
    Reaper(usize),
    Nats,
    Redis,
}

impl Fault {
    fn targets(self) -> Vec<Target> {
        use Target::{Keeper, Link, Nats, Process, Reaper, Redis};
        match self {
            // Whoever is left kills the trees: the keeper when the worker is gone, the worker when the keeper is.
            Self::KillWorker(w) | Self::MoveWorker(w) | Self::StopWorker(w) | Self::FreezeWorker(w) => {
                vec![Process(w)]
            }
            Self::KillKeeper(w) | Self::FreezeKeeper(w) => vec![Keeper(w)],
            Self::Cut(w, _) | Self::Hold(w, _) => vec![Link(w)],
            Self::KillReaper(r) | Self::FreezeReaper(r) => vec![Reaper(r)],
            Self::KillNats => vec![Nats],
            Self::KillRedis | Self::WipeRedis | Self::EmptyRedis | Self::RefuseWrites | Self::DemoteRedis => {
                vec![Redis]
            }
        }
    }

    /// Whether this may begin while (or shortly after) the other lasts.
    fn bears(self, other: Target) -> bool {
        use Target::{Keeper, Process};
        self.targets().iter().all(|own| match (*own, other) {
            (a, b) if a == b => false,
            (Keeper(a), Process(b)) | (Process(b), Keeper(a)) => a != b,
            _ => true,
        })
    }
}

/// A fault with its times, from the beginning of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub at: Duration,
    /// When it is made good: thawed, healed, started again. The same as `at` where nothing is to be done.
    pub until: Duration,
    pub fault: Fault,
}

/// What a run is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    /// How long faults come.
    pub duration: Duration,
    pub workers: usize,
    pub reapers: usize,
    /// Redis may lose everything.
    pub may_wipe: bool,
    /// The session TTL: faults are shorter and longer than it.
    pub ttl: Duration,
}

impl Plan {
    /// Three workers, two reapers, and nothing is wiped.
    pub fn new(seed: u64, duration: Duration, ttl: Duration) -> Self {
        Self { seed, duration, workers: 3, reapers: 2, may_wipe: false, ttl }
    }

    /// The faults in the order of their beginnings. Pure: the same for the same plan.
    pub fn steps(&self) -> Vec<Step> {
        let mut dice = Dice::new(self.seed);
        let mut steps: Vec<Step> = Vec::new();
        let mut at = dice.between(500, 1500);
        while at < self.duration {
            let fault = self.fault(&mut dice);
            let until = at + self.lasts(&mut dice, fault);
            // What a fault has left is found within the TTL and some ticks.
            let rest = self.ttl + Duration::from_secs(1);
            let is_free = steps
                .iter()
                .filter(|s| s.until + rest > at)
                .flat_map(|s| s.fault.targets())
                .all(|t| fault.bears(t));
            if is_free {
                steps.push(Step { at, until, fault });
            }
            at += dice.between(150, 1500);
        }
        steps
    }

    fn fault(&self, dice: &mut Dice) -> Fault {
        let (w, r) = (dice.below(self.workers), dice.below(self.reapers));
        let wire = *dice.pick(&[(2, Wire::Redis), (2, Wire::Nats), (1, Wire::Both)]);
        let wipes = u64::from(self.may_wipe);
        *dice.pick(&[
            (4, Fault::KillWorker(w)),
            (3, Fault::MoveWorker(w)),
            (3, Fault::StopWorker(w)),
            (4, Fault::FreezeWorker(w)),
            (3, Fault::KillKeeper(w)),
            (2, Fault::FreezeKeeper(w)),
            (2, Fault::KillReaper(r)),
            (2, Fault::FreezeReaper(r)),
            (4, Fault::Cut(w, wire)),
            (4, Fault::Hold(w, wire)),
            (2, Fault::KillNats),
            (2, Fault::KillRedis),
            (1, Fault::RefuseWrites),
            (1, Fault::DemoteRedis),
            (2 * wipes, Fault::WipeRedis),
            (2 * wipes, Fault::EmptyRedis),
        ])
    }

    fn lasts(&self, dice: &mut Dice, fault: Fault) -> Duration {
        let ttl = self.ttl.as_millis() as u64;
        let is_long = dice.below(2) == 1;
        match fault {
            Fault::KillKeeper(_) | Fault::WipeRedis => Duration::ZERO,
            Fault::KillNats
            | Fault::KillRedis
            | Fault::EmptyRedis
            | Fault::RefuseWrites
            | Fault::DemoteRedis => dice.between(100, ttl + 500),
            _ if is_long => dice.between(ttl, ttl + 4000),
            _ => dice.between(100, ttl * 2 / 3),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const TTL: Duration = Duration::from_secs(3);

    fn plan(seed: u64, secs: u64) -> Plan {
        Plan::new(seed, Duration::from_secs(secs), TTL)
    }

    #[test]
    fn a_seed_gives_the_same_faults_and_another_seed_others() {
        assert_eq!(plan(7, 60).steps(), plan(7, 60).steps());
        assert_ne!(plan(7, 60).steps(), plan(8, 60).steps());
        // A longer run of the same seed begins like the shorter one.
        let (short, long) = (plan(7, 60).steps(), plan(7, 600).steps());
        assert_eq!(short[..], long[..short.len()]);
        // Written down, so that a seed of an old report still means the same.
        assert_eq!(Dice::new(1).roll(), 0x910a_2dec_8902_5cc1);
    }

    #[test]
    fn every_fault_comes_and_wipes_only_when_they_may() {
        let kind = |f: Fault| std::mem::discriminant(&f);
        let calm: BTreeSet<Fault> = plan(1, 3600).steps().iter().map(|s| s.fault).collect();
        let wipes = [Fault::WipeRedis, Fault::EmptyRedis];
        assert!(wipes.iter().all(|f| !calm.contains(f)));
        let kinds: std::collections::HashSet<_> = calm.iter().map(|f| kind(*f)).collect();
        assert_eq!(kinds.len(), 14);
        let wild = Plan { may_wipe: true, ..plan(1, 3600) };
        let wild: BTreeSet<Fault> = wild.steps().iter().map(|s| s.fault).collect();
        assert!(wipes.iter().all(|f| wild.contains(f)));
    }

    #[test]
    fn nothing_is_broken_twice_and_keeper_and_worker_never_together() {
        for seed in 0..50 {
            let steps = Plan { may_wipe: true, ..plan(seed, 300) }.steps();
            assert!(steps.len() > 60, "{} faults in five minutes", steps.len());
            for (i, a) in steps.iter().enumerate() {
                assert!(a.until >= a.at && a.until <= a.at + TTL + Duration::from_secs(4));
                for b in steps[i + 1..].iter().filter(|b| b.at < a.until + TTL) {
                    let clash = match (a.fault, b.fault) {
                        (Fault::KillWorker(x), Fault::KillKeeper(y) | Fault::FreezeKeeper(y)) => x == y,
                        (Fault::FreezeKeeper(x), Fault::FreezeWorker(y)) => x == y,
                        (a, b) => a == b,
                    };
                    assert!(!clash, "seed {seed}: {a:?} and {b:?}");
                }
            }
        }
    }
}
