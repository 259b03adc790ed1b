//! Gates: crash-loop suppression and circuit breaker. An open gate lets nobody start, a half-open one a few probes, a closed
//! one everybody. `scripts/guards/gates.lua` decides the same on Redis's clock, and has the line of who waits.

use std::time::Duration;

/// Everybody who was told that a type is watched has started one, if it can, within this time (ms). What a worker began before
/// that did not ask, and has to end first; on a loaded machine that takes more than a second.
const MOMENT_MS: u64 = 3000;
/// Slots that a window is counted in.
const SLOTS: usize = 10;
/// Largest number that a parameter of a guard may be: what six bytes hold, and what Lua writes out in full.
const MOST: u64 = (1 << 46) - 1;
/// What opens a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trip {
    /// So many abnormal ends and none that is not. `is_shared`: it is kept for a type by itself, without a rule.
    Crashes { threshold: u64, is_shared: bool },
    /// At least this share of failures, per mille, among at least so many ends.
    Failures { per_mille: u64, sample: u64 },
}

/// A crash-loop guard or a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    pub trip: Trip,
    pub window_ms: u64,
    /// How long it is open the first time; each time in a row that it is opened again, twice as long.
    pub first_ms: u64,
    pub longest_ms: u64,
    /// Probes at once, while it is half-open.
    pub probes: u64,
    /// How long a probe is kept for the job that waited longest (s).
    pub offer_s: u64,
}

/// Whom a gate lets start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Everybody.
    Closed,
    /// Nobody.
    Open,
    /// As many as there are probes.
    HalfOpen,
}

impl Phase {
    /// At `now_ms`, of a gate that is open until `until_ms` for the `level`th time in a row.
    pub fn at(until_ms: u64, level: u32, now_ms: u64) -> Self {
        match (now_ms < until_ms, level) {
            (true, _) => Self::Open,
            (false, 0) => Self::Closed,
            (false, _) => Self::HalfOpen,
        }
    }
}

/// What ended in the window: well and badly, in each slot, the newest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Ends {
    slot: u64,
    counts: [(u64, u64); SLOTS],
}

/// State of one scope. The default is one that nothing is known of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GateState {
    /// Open until then (ms).
    pub until_ms: u64,
    /// How often in a row it was opened.
    pub level: u32,
    /// How often it was ever opened: by that probes of different times are told apart.
    pub round: u32,
    ends: Ends,
}

impl GateState {
    /// Whom it lets start at `now_ms`.
    pub fn phase(&self, now_ms: u64) -> Phase {
        Phase::at(self.until_ms, self.level, now_ms)
    }
}

impl Gate {
    /// A gate by these times. How long its offers stand is set by who asks.
    pub fn new(trip: Trip, window: Duration, first: Duration, longest: Duration, probes: u64) -> Self {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(MOST);
        Self { trip, window_ms: ms(window), first_ms: ms(first), longest_ms: ms(longest), probes, offer_s: 1 }
    }

    /// What the script is given.
    pub fn params(&self) -> [u64; 4] {
        let (sample, per_mille, is_shared) = match self.trip {
            Trip::Crashes { threshold, is_shared } => (threshold, 0, u64::from(is_shared)),
            Trip::Failures { per_mille, sample } => (sample, per_mille, 0),
        };
        // 17, 10, 7, 1 and 11 bits.
        let d = sample.clamp(1, (1 << 17) - 1);
        let d = (d << 10) | per_mille.min(1000);
        let d = (d << 7) | self.probes.clamp(1, 127);
        let d = (d << 1) | is_shared;
        let d = (d << 11) | self.offer_s.clamp(1, 2047);
        [self.window_ms.clamp(1, MOST), self.first_ms.clamp(1, MOST), self.longest_ms.min(MOST), d]
    }

    /// The gate of these parameters.
    pub fn from_params([window_ms, first_ms, longest_ms, d]: [u64; 4]) -> Self {
        let (offer_s, d) = (d & 2047, d >> 11);
        let (is_shared, d) = (d & 1 == 1, d >> 1);
        let (probes, d) = (d & 127, d >> 7);
        let (per_mille, sample) = (d & 1023, d >> 10);
        let trip = match per_mille {
            0 => Trip::Crashes { threshold: sample, is_shared },
            _ => Trip::Failures { per_mille, sample },
        };
        Self { trip, window_ms, first_ms, longest_ms, probes, offer_s }
    }

    /// The window slot of a moment.
    fn slot(&self, now_ms: u64) -> u64 {
        now_ms / self.slot_ms()
    }

    fn slot_ms(&self) -> u64 {
        (self.window_ms / SLOTS as u64).max(1)
    }

    /// Well and badly, in the slots of the window that ends now.
    fn counts(&self, state: &GateState, now_ms: u64) -> [(u64, u64); SLOTS] {
        let mut out = [(0, 0); SLOTS];
        let gone = self.slot(now_ms).checked_sub(state.ends.slot).and_then(|n| usize::try_from(n).ok());
        if let Some(kept) = gone.and_then(|n| state.ends.counts.get(n..)) {
            out.iter_mut().zip(kept).for_each(|(to, from)| *to = *from);
        }
        out
    }

    /// How many ended well and badly in the window that ends now.
    pub fn ends(&self, state: &GateState, now_ms: u64) -> (u64, u64) {
        self.counts(state, now_ms).iter().fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1))
    }

    fn trips(&self, (well, badly): (u64, u64)) -> bool {
        match self.trip {
            Trip::Crashes { threshold, .. } => badly >= threshold,
            Trip::Failures { per_mille, sample } => {
                well + badly >= sample && badly * 1000 >= per_mille * (well + badly)
            }
        }
    }

    /// Whether what ends well is to be known, too: from half of what opens it.
    pub fn is_watched(&self, state: &GateState, now_ms: u64) -> bool {
        let (_, badly) = self.ends(state, now_ms);
        let sample = match self.trip {
            Trip::Crashes { threshold, .. } => threshold,
            Trip::Failures { sample, .. } => sample,
        };
        state.level > 0 || (badly > 0 && badly >= sample.div_ceil(2))
    }

    /// For how long it is opened the `n`th time in a row (from 1).
    pub fn hold_off(&self, n: u32) -> Duration {
        let doublings = n.saturating_sub(1).min(40);
        let ms = u128::from(self.first_ms) << doublings;
        Duration::from_millis(u64::try_from(ms).unwrap_or(MOST).min(self.longest_ms.max(self.first_ms)))
    }

    fn opened(&self, state: &GateState, now_ms: u64) -> GateState {
        let (level, round) = (state.level + 1, state.round + 1);
        let open_ms = u64::try_from(self.hold_off(level).as_millis()).unwrap_or(MOST);
        GateState { until_ms: now_ms + open_ms, level, round, ends: Ends::default() }
    }

    /// Whether crashes, if they are enough, open it. `is_of_several`: they were of more than one session. One alone is believed where
    /// no other one is alive (`is_alone`), or all others were told so long ago that the type is watched, and none of them runs one
    /// now.
    pub fn is_believed(
        &self,
        is_of_several: bool,
        is_alone: bool,
        watched_ms: Option<u64>,
        do_others_run: bool,
    ) -> bool {
        let had_their_moment = watched_ms.is_some_and(|ms| ms >= MOMENT_MS.min(self.slot_ms()));
        let is_shared = matches!(self.trip, Trip::Crashes { is_shared: true, .. });
        !is_shared || is_of_several || is_alone || (had_their_moment && !do_others_run)
    }

    /// The state after something has ended. A probe decides; what began before the gate was opened says nothing any more.
    /// `may_open`: [`Gate::is_believed`].
    pub fn ended(
        &self,
        state: &GateState,
        is_bad: bool,
        is_probe: bool,
        may_open: bool,
        now_ms: u64,
    ) -> GateState {
        let calm = GateState { round: state.round, ..GateState::default() };
        match state.phase(now_ms) {
            Phase::HalfOpen if is_probe && is_bad => self.opened(state, now_ms),
            Phase::HalfOpen if is_probe => calm,
            Phase::Open | Phase::HalfOpen => *state,
            Phase::Closed if !is_bad && matches!(self.trip, Trip::Crashes { .. }) => calm,
            Phase::Closed => {
                let mut counts = self.counts(state, now_ms);
                if let Some((well, badly)) = counts.last_mut() {
                    *(if is_bad { badly } else { well }) += 1;
                }
                let after = GateState { ends: Ends { slot: self.slot(now_ms), counts }, ..*state };
                if may_open && self.trips(self.ends(&after, now_ms)) {
                    self.opened(&after, now_ms)
                } else {
                    after
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Gate {
        let trip = Trip::Failures { per_mille: 500, sample: 4 };
        Gate { trip, window_ms: 1000, first_ms: 100, longest_ms: 350, probes: 1, offer_s: 5 }
    }

    fn crash_loop() -> Gate {
        Gate { trip: Trip::Crashes { threshold: 3, is_shared: true }, ..breaker() }
    }

    fn after(gate: &Gate, ends: &[(u64, bool)]) -> GateState {
        ends.iter().fold(GateState::default(), |s, (at, is_bad)| gate.ended(&s, *is_bad, false, true, *at))
    }

    #[test]
    fn a_breaker_opens_at_its_rate_and_not_before_its_sample() {
        let b = breaker();
        assert_eq!(after(&b, &[(1, true), (2, true), (3, true)]).level, 0, "three are no sample of four");
        assert_eq!(after(&b, &[(1, true), (2, true), (3, true), (4, true)]).until_ms, 104);
        let half = [(1, false), (2, true), (3, false), (4, true)];
        assert_eq!(after(&b, &half).phase(5), Phase::Open, "half of them is the rate");
        let fewer = [(1, true), (2, false), (3, false), (4, false), (5, true)];
        assert_eq!(after(&b, &fewer).phase(6), Phase::Closed);
        let old = [(1, true), (2, true), (3, true), (1100, true), (1101, true), (1102, true)];
        assert_eq!(after(&b, &old).level, 0, "what is older than the window does not count");
    }

    #[test]
    fn a_probe_closes_it_or_opens_it_again_for_twice_as_long_up_to_the_longest() {
        let b = breaker();
        let mut s = after(&b, &[(1, true), (1, true), (1, true), (1, true)]);
        for open_ms in [200, 350, 350] {
            let now = s.until_ms;
            assert_eq!((s.phase(now - 1), s.phase(now)), (Phase::Open, Phase::HalfOpen));
            assert_eq!(b.ended(&s, false, false, true, now), s, "what began before says nothing");
            s = b.ended(&s, true, true, true, now);
            assert_eq!(s.until_ms, now + open_ms);
        }
        let s = b.ended(&s, false, true, true, s.until_ms);
        assert_eq!((s.phase(0), s.level, s.round), (Phase::Closed, 0, 4));
        assert_eq!(b.hold_off(1), Duration::from_millis(100), "and begins anew");
    }

    #[test]
    fn a_crash_loop_is_crashes_with_nothing_else_among_them() {
        let c = crash_loop();
        assert_eq!(after(&c, &[(1, true), (2, true), (3, true)]).phase(4), Phase::Open);
        assert_eq!(after(&c, &[(1, true), (2, true), (3, false), (4, true), (5, true)]).level, 0);
        assert!(!c.is_watched(&after(&c, &[(1, true)]), 2));
        assert!(c.is_watched(&after(&c, &[(1, true), (1, true)]), 2));
        assert!(!c.is_watched(&after(&c, &[(1, true), (1, true)]), 2000), "it is over with the window");
    }

    #[test]
    fn one_worker_alone_is_believed_when_the_others_were_told_and_have_nothing_to_say() {
        let c = crash_loop();
        let three = after(&c, &[(1, true), (2, true)]);
        assert_eq!(c.ended(&three, true, false, false, 3).level, 0, "enough of them, and not believed");
        assert!(c.is_believed(true, false, None, true), "it is not one worker");
        // Of one worker, while others are alive.
        let of_one = |gate: &Gate, watched_ms, do_others_run| {
            gate.is_believed(false, false, watched_ms, do_others_run)
        };
        assert!(!of_one(&c, None, false) && !of_one(&c, Some(99), false));
        assert!(of_one(&c, Some(100), false) && !of_one(&c, Some(100), true));
        let long = Gate { window_ms: 300_000, ..c };
        assert!(!of_one(&long, Some(2999), false) && of_one(&long, Some(3000), false));
        assert!(c.is_believed(false, true, None, true), "there is nobody else to be told");
        let rule = Gate { trip: Trip::Crashes { threshold: 3, is_shared: false }, ..c };
        assert!(of_one(&rule, None, true), "whoever has a rule is asked at each start");
    }

    #[test]
    fn parameters_have_room_for_each_number_and_no_more_than_a_script_can_read() {
        let all = Gate {
            trip: Trip::Failures { per_mille: 1000, sample: u64::MAX },
            window_ms: u64::MAX,
            first_ms: 0,
            longest_ms: u64::MAX,
            probes: u64::MAX,
            offer_s: u64::MAX,
        };
        let [a, b, c, d] = all.params();
        assert_eq!((a, b, c), (MOST, 1, MOST));
        assert!(d <= MOST && d >> 29 == (1 << 17) - 1, "{d}");
        assert_eq!(Gate::from_params(breaker().params()), breaker());
        assert_eq!(Gate::from_params(crash_loop().params()), crash_loop());
        assert_eq!(breaker().params(), [1000, 100, 350, (((((4 << 10) | 500) << 7) | 1) << 12) | 5]);
    }
}
