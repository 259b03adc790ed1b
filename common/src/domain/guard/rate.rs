//! Rate limits: the generic cell rate algorithm (ITU-T I.371), with booked slots. `scripts/guards/rate.lua` does the same on
//! Redis's clock.

use std::time::Duration;

/// So many starts per time, and so many of them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Between two starts at the steady rate (microseconds).
    pub interval_us: u64,
    /// How far the theoretical arrival time may run ahead of the clock (microseconds): `burst - 1` intervals.
    pub tolerance_us: u64,
}

impl Rate {
    /// `limit` starts per `per`, of which `burst` may come at once; all at least 1.
    pub fn new(limit: u64, per: Duration, burst: u64) -> Self {
        let per_us = u64::try_from(per.as_micros()).unwrap_or(u64::MAX);
        let interval_us = (per_us / limit.max(1)).max(1);
        Self { interval_us, tolerance_us: interval_us.saturating_mul(burst.max(1) - 1) }
    }

    /// The first moment at which a start conforms, not before `now_us`, given the theoretical arrival time `tat_us`; and the
    /// theoretical arrival time after that start was counted.
    pub fn slot(self, tat_us: u64, now_us: u64) -> (u64, u64) {
        let ahead = tat_us.max(now_us);
        let slot = ahead.saturating_sub(self.tolerance_us).max(now_us);
        (slot, ahead + self.interval_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_starts_at_once_and_what_follows_is_spaced() {
        let rate = Rate::new(10, Duration::from_secs(1), 3);
        let (mut tat, now, mut slots) = (0, 5_000_000, vec![]);
        for _ in 0..5 {
            let (slot, next) = rate.slot(tat, now);
            slots.push(slot - now);
            tat = next;
        }
        assert_eq!(slots, [0, 0, 0, 100_000, 200_000]);
        let (slot, _) = rate.slot(tat, now + 10_000_000);
        assert_eq!(slot, now + 10_000_000, "after a pause the burst is there again");
    }
}
