//! Rate limits: the generic cell rate algorithm (ITU-T I.371), with promised moments. `scripts/guards/rate.lua` does the same on
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
    /// The longest interval and tolerance that the store counts with (microseconds).
    pub const LONGEST_US: u64 = (1 << 46) - 1;

    /// `limit` starts per `per`, of which `burst` may come at once; all at least 1.
    pub fn new(limit: u64, per: Duration, burst: u64) -> Self {
        let per_us = u64::try_from(per.as_micros()).unwrap_or(u64::MAX);
        let interval_us = (per_us / limit.max(1)).max(1);
        Self { interval_us, tolerance_us: interval_us.saturating_mul(burst.max(1) - 1) }
    }

    /// The theoretical arrival time after a start at `now_us`, given the one before it; `None` where that does not conform.
    pub fn start(self, tat_us: u64, now_us: u64) -> Option<u64> {
        let ahead_us = tat_us.max(now_us);
        (ahead_us - now_us <= self.tolerance_us).then_some(ahead_us + self.interval_us)
    }

    /// The moment that is promised to who came last and does not conform, and the theoretical arrival time after it; `book_us`: that
    /// after all that started, or was promised to start, before it. Where no burst makes up for it, who starts a moment late delays
    /// the next: those moments are a twentieth further apart, 20 ms at most.
    pub fn promise(self, book_us: u64) -> (u64, u64) {
        let gap_us =
            if self.tolerance_us < self.interval_us { (self.interval_us / 20).min(20_000) } else { 0 };
        (book_us.saturating_sub(self.tolerance_us), book_us + self.interval_us + gap_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_starts_at_once_and_what_follows_is_spaced() {
        let rate = Rate::new(10, Duration::from_secs(1), 3);
        let now = 5_000_000;
        let mut tat = 0;
        for _ in 0..3 {
            tat = rate.start(tat, now).unwrap();
        }
        assert_eq!(rate.start(tat, now), None);
        let (first, book) = rate.promise(tat);
        let (second, _) = rate.promise(book);
        assert_eq!([first - now, second - now], [100_000, 200_000]);
        assert_eq!(rate.start(tat, first - 1), None);
        assert!(rate.start(tat, first).is_some());
        let after_a_pause = now + 10_000_000;
        assert_eq!(rate.start(tat, after_a_pause), Some(after_a_pause + 100_000), "the burst is there again");
    }

    #[test]
    fn without_a_burst_there_is_room_for_a_little_delay() {
        let rate = Rate::new(10, Duration::from_secs(1), 1);
        let (first, book) = rate.promise(1_000_000);
        let (second, _) = rate.promise(book);
        assert_eq!(second - first, 105_000);
    }
}
