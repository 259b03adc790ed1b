//! Reads the configuration again: on SIGHUP, and when its file changes.

use std::{io::IsTerminal, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use super::{Adopted, Counted, LiveSettings, Source};
use crate::{
    clock::wall_now,
    config::{ConfigError, Settings},
    telemetry::{self, metrics::shared},
};

/// How often the file is looked at. A change is read at the second look that sees it: within twice as long.
const LOOK: Duration = Duration::from_secs(1);

/// SIGHUP, which ends a process that does not ask for it: created before anything takes long.
pub struct Reloader {
    source: Source,
    hangup: Signal,
    is_at_terminal: bool,
}

/// A reloader that runs.
pub struct Reloading {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Reloader {
    /// From now on SIGHUP does not end this process. The error is the system's.
    pub fn new(source: Source) -> std::io::Result<Self> {
        let hangup = signal(SignalKind::hangup())?;
        Ok(Self { source, hangup, is_at_terminal: std::io::stderr().is_terminal() })
    }

    /// Follows changes until it is stopped, and offers them to `live`, which begins with what this source gave at the start.
    /// `gone`: cancelled when the terminal of this process is closed, which it is told by the same signal.
    pub fn start(self, live: LiveSettings, gone: CancellationToken) -> Reloading {
        let stop = CancellationToken::new();
        let m = shared();
        m.config_ok.set(1);
        m.config_loaded.set(wall_now().as_second());
        for result in ["applied", "unchanged", "refused"] {
            m.config_reloads.with_label_values(&[result]);
        }
        let task = tokio::spawn(self.run(live, gone, stop.clone()));
        Reloading { stop, task }
    }

    async fn run(mut self, live: LiveSettings, gone: CancellationToken, stop: CancellationToken) {
        let _timer = Counted::new("config");
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_asked = tokio::select! {
                () = stop.cancelled() => return,
                _ = look.tick() => false,
                _ = self.hangup.recv() => true,
            };
            if is_asked && self.is_at_terminal && !std::io::stderr().is_terminal() {
                tracing::info!("the terminal is closed");
                gone.cancel();
                continue;
            }
            // A file system may be slow; the jobs of this process do not wait for it.
            let mut source = self.source;
            let read = tokio::task::spawn_blocking(move || {
                let read = (source.is_changed() || is_asked).then(|| source.load());
                (source, read)
            });
            let read = match read.await {
                Ok((source, read)) => {
                    self.source = source;
                    read
                }
                // It panicked, or the runtime ends.
                Err(e) => return tracing::error!(error = %e, "the configuration is not read again any more"),
            };
            if let Some(read) = read {
                tell(&self.source.file(), read.and_then(|new| take(&live, &new)));
            }
        }
    }
}

impl Reloading {
    /// Ends it, after what it has in hand.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(e) = self.task.await {
            tracing::error!(error = %e, "the task that reads the configuration ended badly");
        }
    }
}

/// Puts new settings in force, with what is the process's own: its log.
fn take(live: &LiveSettings, new: &Settings) -> Result<Adopted, ConfigError> {
    let filter = telemetry::read_filter(&new.telemetry.log_level)
        .map_err(|e| ConfigError { problems: vec![format!("telemetry.log_level: {e}")] })?;
    let before = live.now();
    let adopted = live.offer(new)?;
    if !before.guard_rules.is_empty() && live.now().guard_rules.is_empty() {
        let removed: Vec<&str> = before.guard_rules.iter().map(|r| r.name.as_str()).collect();
        tracing::warn!(
            removed = removed.join(", "),
            "every rule of a guard was removed: nothing is limited any more; who stands in their lines asks again within guards.fallback, or after `surety guards reset`"
        );
    }
    if adopted.live.iter().any(|c| c.name == "telemetry.log_level") {
        telemetry::set_filter(filter);
    }
    Ok(adopted)
}

/// Logs and counts what came of it.
fn tell(file: &str, taken: Result<Adopted, ConfigError>) {
    let m = shared();
    let count = |result| m.config_reloads.with_label_values(&[result]).inc();
    m.config_ok.set(taken.is_ok().into());
    let Adopted { live, restart } = match taken {
        Ok(adopted) => adopted,
        Err(e) => {
            count("refused");
            tracing::error!(
                file, error = %e, alert = "config_refused",
                "a changed configuration is refused; the one in force stays"
            );
            return;
        }
    };
    m.config_loaded.set(wall_now().as_second());
    m.config_pending.set(i64::try_from(restart.len()).unwrap_or(i64::MAX));
    let list = |changes: &[crate::config::Change]| {
        changes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    if live.is_empty() {
        count("unchanged");
        tracing::info!(file, "the configuration was read again: nothing that is live changed");
    } else {
        count("applied");
        tracing::info!(file, changed = list(&live), "the configuration was read again and is in force");
    }
    if !restart.is_empty() {
        tracing::warn!(file, waiting = list(&restart), "changed settings wait for a restart of this process");
    }
}
