//! The loop: each rule on its own task, a step at every tick, at once again while more is left.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use surety_common::{
    broker::Broker,
    config::Settings,
    connect::{ConnectError, connect},
    doctor::Role,
    fitness,
    pace::Transient,
    reload::{LiveSettings, Timer},
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
    live: LiveSettings,
    broker: Broker,
}

impl Reaper {
    /// Listens for who asks after its health, connects, checks and starts every rule.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let server = Server::start(settings.telemetry.listen, "surety-reaper").await?;
        let c = connect(&settings, "surety-reaper", Role::Reaper).await?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let live = LiveSettings::new(settings);
        for rule in rules::all() {
            let meter = Meter::of(rule.name());
            let settings = live.now();
            let context = Context { c: c.clone(), batch: full_batch(&settings), settings };
            tasks.spawn(run(rule.into(), context, meter, live.clone(), stop.clone()));
        }
        let control = Control { c: c.clone(), live: live.clone() };
        tasks.spawn(serve(control, stop.clone()));
        tasks.spawn(fitness::watch(c.clone(), live.clone(), stop.clone()));
        tasks.close();
        let broker = c.broker.clone();
        server.health().started(Fleet::new(c));
        tracing::info!(tick = ?live.now().reaper.tick, "reaper ready");
        Ok(Self { stop, tasks, server, live, broker })
    }

    /// Its settings in force: what is offered to them holds from the next step of each rule on.
    pub fn live(&self) -> &LiveSettings {
        &self.live
    }

    /// Resolves when the reaper's NATS client has ended by itself. The reaper cannot go on: stop it, and end the process.
    pub async fn client_ended(&self) {
        self.broker.ended().await;
    }

    /// Stops every rule after its step in hand.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
        self.server.stop().await;
        tracing::info!("stopped");
    }
}

/// Items of one step while none times out.
fn full_batch(settings: &Settings) -> usize {
    usize::try_from(settings.reaper.batch.0).unwrap_or(100)
}

async fn run(
    rule: Arc<dyn Rule>,
    mut context: Context,
    meter: Meter,
    live: LiveSettings,
    stop: CancellationToken,
) {
    let mut timer = Timer::new(&live, rule.name(), |s| s.reaper.tick);
    loop {
        // One snapshot for the whole step.
        context.settings = live.now();
        let full = full_batch(&context.settings);
        context.batch = context.batch.min(full);
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
                done.goes_on()
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
        tokio::select! {
            () = stop.cancelled() => return,
            () = timer.pause(), if !again => {}
            () = tokio::task::yield_now(), if again => {}
        }
    }
}
