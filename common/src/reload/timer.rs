//! Timers whose period is a setting.
//!
//! Each is part of the task that waits for it: it ends with that task, at shutdown with all others, and a change of the settings
//! makes no second one.

use std::{pin::Pin, time::Duration};

use prometheus::IntGauge;
use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep_until},
};

use super::LiveSettings;
use crate::{config::Settings, telemetry::metrics::shared};

/// Counts one timer of a purpose while it lives, as `surety_timers`.
#[derive(Debug)]
pub struct Counted(IntGauge);

impl Counted {
    /// One more from now on.
    pub fn new(purpose: &str) -> Self {
        let gauge = shared().timers.with_label_values(&[purpose]);
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What is armed.
struct Armed {
    sleep: Pin<Box<Sleep>>,
    period: Duration,
    _counted: Counted,
}

impl Armed {
    fn new(purpose: &str, since: Instant, period: Duration) -> Self {
        let sleep = Box::pin(sleep_until(far(since, period)));
        Self { sleep, period, _counted: Counted::new(purpose) }
    }
}

/// `Instant` cannot hold every duration; a month is as good as for ever here.
fn far(since: Instant, period: Duration) -> Instant {
    since + period.min(Duration::from_secs(30 * 24 * 3600))
}

/// A pause between two looks of one task, as long as the settings in force say.
pub struct Timer {
    purpose: &'static str,
    period: fn(&Settings) -> Duration,
    live: LiveSettings,
    changed: watch::Receiver<u64>,
    /// `None` only for the moment between two.
    armed: Option<Armed>,
}

impl Timer {
    /// One timer for this purpose, counted until it is dropped.
    pub fn new(live: &LiveSettings, purpose: &'static str, period: fn(&Settings) -> Duration) -> Self {
        let (changed, now) = (live.subscribe(), live.now());
        let armed = Some(Armed::new(purpose, Instant::now(), period(&now)));
        Self { purpose, period, live: live.clone(), changed, armed }
    }

    /// Resolves one period after the call. A period that changes meanwhile counts from the same moment. May be dropped: the next
    /// call begins a new pause.
    pub async fn pause(&mut self) {
        let since = Instant::now();
        if let Some(armed) = &mut self.armed {
            armed.sleep.as_mut().reset(far(since, armed.period));
        }
        self.replace(since);
        loop {
            let Some(armed) = &mut self.armed else { return };
            tokio::select! {
                () = armed.sleep.as_mut() => return,
                // It cannot close: `live` is the other end.
                _ = self.changed.changed() => self.replace(since),
            }
        }
    }

    /// Arms anew if the period is another one by now.
    fn replace(&mut self, since: Instant) {
        self.changed.mark_unchanged();
        let period = (self.period)(&self.live.now());
        if self.armed.as_ref().is_none_or(|a| a.period != period) {
            // Ordering: the old one is gone before the new one is there.
            self.armed = None;
            self.armed = Some(Armed::new(self.purpose, since, period));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_text;

    fn settings(tick: &str) -> Settings {
        let text = format!("[reaper]\ntick = \"{tick}\"");
        load_text(Some((&text, "surety.toml")), &|_| None, &vec![]).unwrap()
    }

    fn n_of(purpose: &str) -> i64 {
        shared().timers.with_label_values(&[purpose]).get()
    }

    // Shows: G-04
    #[tokio::test(start_paused = true)]
    async fn fifty_changes_leave_one_timer_and_its_end_leaves_none() {
        let live = LiveSettings::new(settings("1h"));
        let mut timer = Timer::new(&live, "fifty", |s| s.reaper.tick);
        let began = Instant::now();
        let (woken, mut wakes) = tokio::sync::mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                timer.pause().await;
                woken.send(Instant::now()).unwrap();
            }
        });
        for n in 0..50 {
            tokio::task::yield_now().await;
            assert_eq!(n_of("fifty"), 1);
            live.offer(&settings(if n % 2 == 0 { "2h" } else { "3h" })).unwrap();
        }
        tokio::task::yield_now().await;
        live.offer(&settings("10s")).unwrap();
        // From where the pause began, and no old one fires in between.
        for n in 1..=3 {
            assert_eq!(wakes.recv().await.unwrap() - began, Duration::from_secs(10 * n));
            assert_eq!(n_of("fifty"), 1);
        }
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(n_of("fifty"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_between_two_pauses_holds_for_the_next_one() {
        let live = LiveSettings::new(settings("5s"));
        let mut timer = Timer::new(&live, "between", |s| s.reaper.tick);
        timer.pause().await;
        live.offer(&settings("7s")).unwrap();
        let began = Instant::now();
        timer.pause().await;
        assert_eq!(began.elapsed(), Duration::from_secs(7));
    }
}
