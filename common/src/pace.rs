//! Pacing of our own retries against Redis and NATS: exponential, with jitter. The one place that uses `backoff`.

use std::{future::Future, time::Duration};

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff};

/// How long, how often. `limit` `None` means for ever.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// First delay.
    pub first: Duration,
    /// Longest delay.
    pub most: Duration,
    /// Total time after which the last error is given up with.
    pub limit: Option<Duration>,
}

impl Pace {
    /// For one call that somebody waits for: 20 ms doubling to 1 s, for `limit` in all.
    pub const fn call(limit: Duration) -> Self {
        Self { first: Duration::from_millis(20), most: Duration::from_secs(1), limit: Some(limit) }
    }

    /// For background work that must get through: 50 ms doubling to 2 s, for ever.
    pub fn forever() -> Self {
        Self { first: Duration::from_millis(50), most: Duration::from_secs(2), limit: None }
    }

    /// The delays, with ±30 % jitter.
    pub fn delays(&self) -> Delays {
        Delays(
            ExponentialBackoffBuilder::new()
                .with_initial_interval(self.first)
                .with_max_interval(self.most)
                .with_multiplier(2.0)
                .with_randomization_factor(0.3)
                .with_max_elapsed_time(self.limit)
                .build(),
        )
    }
}

/// The delays of one series of tries.
#[derive(Debug)]
pub struct Delays(ExponentialBackoff);

impl Delays {
    /// The next delay, or `None` when the time is used up.
    pub fn next_delay(&mut self) -> Option<Duration> {
        self.0.next_backoff()
    }
}

/// Whether an error may go away by itself (network, leader election, restart) or will not (bad request).
pub trait Transient {
    /// `true`: try again.
    fn is_transient(&self) -> bool;
}

/// Runs `op` until it succeeds, fails for good, or the pace's time is used up.
///
/// # Cancel safety
/// Dropping the future drops the try in flight; `op` must be safe to repeat anyway.
pub async fn retry<T, E, F>(pace: Pace, mut op: impl FnMut() -> F) -> Result<T, E>
where
    E: Transient + std::fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let mut delays = pace.delays();
    loop {
        match op().await {
            Ok(v) => return Ok(v),
            Err(e) if e.is_transient() => match delays.next_delay() {
                Some(d) => {
                    tracing::debug!(error = %e, delay_ms = d.as_millis() as u64, "call failed, trying again");
                    tokio::time::sleep(d).await;
                }
                None => return Err(e),
            },
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed")]
    struct Failed {
        transient: bool,
    }

    impl Transient for Failed {
        fn is_transient(&self) -> bool {
            self.transient
        }
    }

    // Shows: X-08
    #[tokio::test(start_paused = true)]
    async fn transient_errors_are_retried_with_growing_delays_and_others_are_not() {
        let tries = AtomicU32::new(0);
        let started = tokio::time::Instant::now();
        let out: Result<(), _> = retry(Pace::call(Duration::from_secs(60)), || {
            let n = tries.fetch_add(1, Ordering::Relaxed);
            async move { if n < 5 { Err(Failed { transient: true }) } else { Ok(()) } }
        })
        .await;
        out.unwrap();
        // 20 + 40 + 80 + 160 + 320 ms, each ±30 %.
        let ms = started.elapsed().as_millis();
        assert!((434..=812).contains(&ms), "{ms}");

        tries.store(0, Ordering::Relaxed);
        let out: Result<(), _> = retry(Pace::call(Duration::from_secs(60)), || {
            tries.fetch_add(1, Ordering::Relaxed);
            async { Err(Failed { transient: false }) }
        })
        .await;
        out.unwrap_err();
        assert_eq!(tries.load(Ordering::Relaxed), 1);
    }
}
