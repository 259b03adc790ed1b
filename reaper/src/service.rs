//! The loop: each rule on its own task, a step at every tick, at once again while more is left.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use surety_common::{
    config::Settings,
    connect::{ConnectError, connect},
    doctor::Role,
    pace::Transient,
    telemetry::{ListenError, Server},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    control::{Control, serve},
    fleet::Fleet,
    meter::Meter,
    rule::{Context, Rule},
    rules,
};

/// Why the reaper did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Listen(#[from] ListenError),
}

impl StartError {
    /// Whether the cause is an unreachable server (exit code 69) and not a wrong setup (78).
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect(e) if e.is_unreachable())
    }
}

/// Longest that one step may take before it counts as timed out and its batch is halved. One that may take longer is not
/// waited for at a stop.
pub(crate) const STEP_LIMIT: Duration = Duration::from_secs(30);

/// A reaper that runs.
#[derive(Debug)]
pub struct Reaper {
    stop: CancellationToken,
    tasks: TaskTracker,
    server: Server,
}

impl Reaper {
    /// Listens for who asks after its health, connects, checks and starts every rule.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let server = Server::start(settings.telemetry.listen, "surety-reaper").await?;
        let c = connect(&settings, "surety-reaper", Role::Reaper).await?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        for rule in rules::all() {
            let meter = Meter::of(rule.name());
            let context = Context {
                c: c.clone(),
                batch: usize::try_from(settings.reaper.batch.0).unwrap_or(100),
                settings: settings.clone(),
            };
            tasks.spawn(run(rule.into(), context, meter, stop.clone()));
        }
        let control = Control { c: c.clone(), settings: settings.clone() };
        tasks.spawn(serve(control, stop.clone()));
        tasks.close();
        server.health().started(Fleet::new(c));
        tracing::info!(tick = ?settings.reaper.tick, "reaper ready");
        Ok(Self { stop, tasks, server })
    }

    /// Stops every rule after its step in hand.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
        self.server.stop().await;
        tracing::info!("stopped");
    }
}

async fn run(rule: Arc<dyn Rule>, mut context: Context, meter: Meter, stop: CancellationToken) {
    let full = context.batch;
    let tick = context.settings.reaper.tick;
    loop {
        let started = Instant::now();
        let step = tokio::time::timeout(rule.limit(), rule.step(&context));
        let step = tokio::select! {
            step = step => step,
            () = stop.cancelled(), if rule.limit() > STEP_LIMIT => return,
        };
        meter.step(started, &step);
        let again = match step {
            Ok(Ok(done)) => {
                if done.acted > 0 {
                    tracing::info!(rule = rule.name(), acted = done.acted, "rule acted");
                }
                // Back to full size slowly, after it was halved.
                context.batch = (context.batch * 2).min(full);
                done.is_partial && done.acted > 0
            }
            Ok(Err(e)) => {
                if e.is_transient() {
                    tracing::warn!(rule = rule.name(), error = %e, "rule waits for the servers");
                } else {
                    tracing::error!(rule = rule.name(), error = %e, alert = "rule_failed", "rule failed");
                }
                false
            }
            Err(_) => {
                context.batch = (context.batch / 2).max(1);
                tracing::warn!(
                    rule = rule.name(),
                    batch = context.batch,
                    "step timed out; the next one is smaller"
                );
                false
            }
        };
        let pause = if again { Duration::ZERO } else { tick };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
