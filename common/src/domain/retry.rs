//! When a failed attempt is tried again.

use std::time::Duration;

/// The schedule of a job: how many retries, how long before each.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Retries after the first attempt; 3 means four charged attempts. 0 to 1000.
    pub max_retries: u32,
    /// Delay before retry 1, 2, …; the last one repeats. Never empty.
    pub backoff: Vec<Duration>,
    /// Spread of each delay, 0 to 1: 0.1 means ±10 %.
    pub jitter: f64,
}

impl Default for RetryPolicy {
    /// Three retries after 1, 5 and 30 minutes, without jitter.
    fn default() -> Self {
        Self {
            max_retries: 3,
            backoff: [60, 300, 1800].into_iter().map(Duration::from_secs).collect(),
            jitter: 0.0,
        }
    }
}

impl RetryPolicy {
    /// The delay before the retry that follows the `charged`-th charged attempt (from 1), or `None` when the budget is
    /// spent. `random` is uniform in 0..1.
    pub fn delay_after(&self, charged: u32, random: f64) -> Option<Duration> {
        if charged > self.max_retries {
            return None;
        }
        let i = (charged.max(1) as usize - 1).min(self.backoff.len().saturating_sub(1));
        let base = self.backoff.get(i).copied().unwrap_or(Duration::from_secs(60));
        let factor = 1.0 + self.jitter.clamp(0.0, 1.0) * (2.0 * random.clamp(0.0, 1.0) - 1.0);
        Some(base.mul_f64(factor))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Shows: A-02
    #[test]
    fn default_retries_come_after_1_5_30_30_30_minutes() {
        let p = RetryPolicy { max_retries: 5, ..RetryPolicy::default() };
        let mins: Vec<_> = (1..=5).map(|n| p.delay_after(n, 0.7).unwrap().as_secs() / 60).collect();
        assert_eq!(mins, [1, 5, 30, 30, 30]);
    }

    // Shows: A-03
    #[test]
    fn three_retries_are_four_attempts() {
        let p = RetryPolicy::default();
        assert!(p.delay_after(3, 0.0).is_some());
        assert_eq!(p.delay_after(4, 0.0), None);
        assert_eq!(RetryPolicy { max_retries: 0, ..p }.delay_after(1, 0.0), None);
    }

    proptest! {
        #[test]
        fn jitter_stays_inside_its_band(j in 0.0f64..1.0, r in 0.0f64..1.0, n in 1u32..4) {
            let p = RetryPolicy { jitter: j, ..RetryPolicy::default() };
            let base = RetryPolicy::default().delay_after(n, 0.5).unwrap().as_secs_f64();
            let got = p.delay_after(n, r).unwrap().as_secs_f64();
            prop_assert!(got >= base * (1.0 - j) - 1e-6 && got <= base * (1.0 + j) + 1e-6);
        }
    }
}
