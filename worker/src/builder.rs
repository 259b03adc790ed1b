//! Building, starting and stopping a worker.

use std::{collections::HashMap, future::Future, path::PathBuf, sync::Arc, time::Duration};

use serde_json::Value;
use surety_common::{
    config::Settings,
    connect::{ConnectError, Connected, connect},
    doctor::Role,
    domain::{TypeName, ids::SessionId},
    fitness,
    recover::{RecoverError, Recovered, lost_session},
    reload::LiveSettings,
    store::StoreError,
    telemetry::{ListenError, Server},
    tell::SubjectSink,
    tend,
    watch::CrashLoop,
};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    announce::Announcer,
    condition::{self, Passed},
    dispatch,
    guards::Guards,
    handler::{HandlerError, JobContext, RustHandler, command::CommandHandler},
    intake,
    keeper::{Keeper, KeeperError, KeeperOptions, kill_left_over},
    lanes::{self, Lanes},
    meter::Meters,
    pauses::Pauses,
    postpone::BrokerClock,
    ready::Ready,
    reports::ReportGroups,
    session::{self, OpenError, Session},
    shared::{AnyHandler, Shared},
    state::{LocalState, SessionFolder},
    told::Told,
};

/// A keeper on a busy machine may take this long to answer, whatever the lease is.
const SHORTEST_SILENCE: Duration = Duration::from_secs(2);

/// Why a worker did not start. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("recovering what an earlier incarnation left: {0}")]
    Recover(#[from] RecoverError),
    #[error("{0}")]
    Settings(String),
    #[error("the keeper process did not start: {0}")]
    Keeper(#[from] KeeperError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("the state folder {path}: {source}", path = path.display())]
    State { path: PathBuf, source: std::io::Error },
}

/// A worker: see [`Worker::builder`].
#[derive(Debug)]
pub struct Worker;

impl Worker {
    /// Starts with these settings and no handler. Command handlers of the settings are added at the start.
    pub fn builder(settings: Settings) -> WorkerBuilder {
        WorkerBuilder { settings, handlers: HashMap::new(), keeper: None, problem: None }
    }
}

/// Collects handlers.
pub struct WorkerBuilder {
    settings: Settings,
    handlers: HashMap<TypeName, AnyHandler>,
    keeper: Option<KeeperOptions>,
    problem: Option<String>,
}

impl WorkerBuilder {
    /// Adds a Rust handler for a type. It gets a [`JobContext`] and returns the result (JSON, `null` for none) or a
    /// [`HandlerError`]; a panic is a failed attempt. A wrong type name is reported by [`WorkerBuilder::start`].
    #[must_use]
    pub fn handler<F, Fut>(mut self, job_type: &str, run: F) -> Self
    where
        F: Fn(JobContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Value, HandlerError>> + Send + 'static,
    {
        match TypeName::new(job_type) {
            Ok(t) => {
                self.handlers.insert(t, AnyHandler::Rust(RustHandler::new(run)));
            }
            Err(e) => self.problem = Some(e.to_string()),
        }
        self
    }

    /// The program to start as keeper; needed for command handlers. `surety-worker` passes itself.
    #[must_use]
    pub fn keeper(mut self, program: PathBuf, args: Vec<String>) -> Self {
        // Found out, and its trees killed, before the lease of a worker that fails at the same time can end.
        let silence = (self.settings.lease.margin / 2).max(SHORTEST_SILENCE);
        let cgroup = self.settings.worker.cgroups;
        self.keeper = Some(KeeperOptions { program, args, cgroup, silence });
        self
    }

    /// Listens for who asks after its health, connects, checks, recovers what an earlier incarnation left, opens a session and
    /// starts to pull, in this order.
    pub async fn start(self) -> Result<Running, StartError> {
        if let Some(p) = self.problem {
            return Err(StartError::Settings(p));
        }
        let settings = self.settings;
        let server = Server::start(settings.telemetry.listen, "surety-worker").await?;
        let c = Box::pin(connect(&settings, "surety-worker", Role::Worker)).await?;
        let live = LiveSettings::new(settings.clone());
        let mut handlers = self.handlers;
        let (keeper, state) = if settings.handlers.is_empty() {
            (None, None)
        } else {
            let options = self.keeper.ok_or_else(|| {
                StartError::Settings("command handlers need a keeper: call WorkerBuilder::keeper".into())
            })?;
            let path = PathBuf::from(&settings.worker.state_dir);
            let failed = |source| StartError::State { path: path.clone(), source };
            let state = LocalState::new(&path).map_err(failed)?;
            recover(&c, &state, &settings).await?;
            (Some(Keeper::start(options).await?), Some(state))
        };
        let connection = Arc::new(settings.connection.clone());
        let draining = CancellationToken::new();
        let told = Told::new(draining.clone());
        if let (Some(keeper), Some(state)) = (&keeper, &state) {
            for (name, config) in &settings.handlers {
                let kind = TypeName::new(name).map_err(|e| StartError::Settings(e.to_string()))?;
                let handler = CommandHandler {
                    kind: kind.clone(),
                    first: Arc::new(config.clone()),
                    live: live.clone(),
                    keeper: keeper.clone(),
                    state: state.clone(),
                    connection: connection.clone(),
                    told: told.clone(),
                };
                handlers.insert(kind, AnyHandler::Command(handler));
            }
        }
        // Before the first pull: the first job is judged by what is stored.
        let pauses = Pauses::start(&c.broker, &settings).await.map_err(ConnectError::Broker)?;
        let tracker = TaskTracker::new();
        let meters = Arc::new(Meters::new(&c.found.queues, handlers.keys(), settings.worker.slots.0));
        let reports = ReportGroups::start(&c.store, &c.relay, &tracker);
        let n_slots = usize::try_from(settings.worker.slots.0).unwrap_or(8).max(1);
        let (lanes, ends) = Lanes::new(c.store.keys().partitions(), n_slots);
        let guards = Guards::new(live.clone());
        let at_once = usize::try_from(settings.notify.concurrency.0).unwrap_or(64);
        let announcer = Announcer::new(SubjectSink::new(c.broker.clone(), settings.notify.timeout), at_once);
        let w = Arc::new(Shared {
            c,
            settings,
            live,
            handlers,
            keeper,
            state,
            reports,
            lanes,
            guards,
            meters,
            announcer,
            broker_clock: BrokerClock::default(),
            passed: Passed::default(),
            condition: Default::default(),
            pauses,
            session: watch::Sender::new(None),
            running: Default::default(),
            held: Default::default(),
            freed: Notify::new(),
            draining,
            told,
            abort: CancellationToken::new(),
            tracker: TaskTracker::new(),
        });
        let (first, folder) = Box::pin(first_session(&w)).await?;
        w.session.send_replace(Some(first.clone()));
        let background = CancellationToken::new();
        let services = TaskTracker::new();
        services.spawn(session::keep(w.clone(), first, folder, background.clone()));
        services.spawn(w.clone().extend_loop(background.clone()));
        services.spawn(w.pauses.clone().follow(w.clone(), background.clone()));
        services.spawn(condition::keep(w.clone(), background.clone()));
        services.spawn(fitness::watch(w.c.clone(), w.live.clone(), background.clone()));
        services.close();
        let served = CancellationToken::new();
        lanes::serve(&w, ends, &tracker, &served);
        w.tracker.spawn(intake::run(w.clone()));
        if w.settings.notify.dispatch {
            w.tracker.spawn(dispatch::run(w.clone()));
        }
        server.health().started(Ready { w: Arc::downgrade(&w) });
        let types: Vec<_> = w.handlers.keys().map(TypeName::as_str).collect();
        tracing::info!(?types, slots = w.settings.worker.slots.0, "worker ready");
        Ok(Running { w, services, calls: tracker, served, background, server })
    }
}

/// Kills what earlier incarnations of this worker left running, and tells the store, before the first claim (J-06).
async fn recover(c: &Connected, state: &LocalState, settings: &Settings) -> Result<(), StartError> {
    let path = || PathBuf::from(&settings.worker.state_dir);
    let failed = |source| StartError::State { path: path(), source };
    let crash_loop = CrashLoop::new(settings);
    for left in state.left_over().map_err(failed)? {
        for a in &left.attempts {
            let killed = kill_left_over(a.pid_now(), a.start_time, &a.token).map_err(failed)?;
            tracing::warn!(job_id = a.job, epoch = a.epoch, killed, "left over from a dead worker");
        }
        for p in 0..c.store.keys().partitions() {
            while take_back(c, p, &left.session, &crash_loop).await?.is_none_or(|r| r.is_partial) {}
            free(c, p, settings, &left.session).await;
        }
        tracing::info!(session = %left.session, attempts = left.attempts.len(), "earlier session reconciled");
        left.clear().map_err(failed)?;
    }
    Ok(())
}

/// Frees what the guards gave to attempts of a dead session. What fails is tended by a reaper, at its own time.
async fn free(c: &Connected, p: u32, settings: &Settings, session: &SessionId) {
    let hold_ms = u64::try_from(settings.lease.ttl.as_millis()).unwrap_or(u64::MAX);
    let dead = std::slice::from_ref(session);
    if let Err(e) = tend::sweep(c, p, hold_ms, dead, SWEEP_LIMIT).await {
        tracing::warn!(%session, error = %e, "what the guards gave to the earlier session ends by itself");
    }
}

/// How long the scopes of a partition are walked before a worker starts; what is not found by then ends by its time.
const SWEEP_LIMIT: Duration = Duration::from_secs(2);

/// Takes attempts of a dead session back. `None`: the store is being rebuilt; after a pause the caller asks again, because only
/// what is restored can be taken back.
async fn take_back(
    c: &Connected,
    p: u32,
    session: &SessionId,
    crash_loop: &CrashLoop,
) -> Result<Option<Recovered>, StartError> {
    let expired = c.store.expire_session(p, session).await.map(drop).map_err(RecoverError::from);
    let taken = match expired {
        Ok(()) => lost_session(c, p, session, 100, crash_loop).await.map(Some),
        Err(e) => Err(e),
    };
    match taken {
        Err(RecoverError::Store(StoreError::Rebuilding)) => {
            tokio::time::sleep(WHILE_REBUILDING).await;
            Ok(None)
        }
        other => Ok(other?),
    }
}

/// How often a worker that starts asks whether the store is rebuilt.
const WHILE_REBUILDING: Duration = Duration::from_millis(500);

/// Opens the first session.
async fn first_session(w: &Arc<Shared>) -> Result<(Arc<Session>, Option<SessionFolder>), StartError> {
    loop {
        return match session::open(w).await {
            // This call found out that the data set is another one by now.
            Err(OpenError::Store(StoreError::Rebuilding)) => {
                tokio::time::sleep(WHILE_REBUILDING).await;
                continue;
            }
            Err(OpenError::Store(e)) => Err(StartError::Store(e)),
            Err(OpenError::State(source)) => {
                let path = PathBuf::from(&w.settings.worker.state_dir);
                Err(StartError::State { path, source })
            }
            Ok(opened) => Ok(opened),
        };
    }
}

/// A worker that runs.
pub struct Running {
    w: Arc<Shared>,
    services: TaskTracker,
    /// Lanes and the calls that they make.
    calls: TaskTracker,
    served: CancellationToken,
    background: CancellationToken,
    server: Server,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("attempts", &self.w.n_running()).finish()
    }
}

impl Running {
    /// Number of attempts that run now.
    pub fn n_running(&self) -> usize {
        self.w.n_running()
    }

    /// Its settings in force: what is offered to them holds for whatever begins afterwards.
    pub fn live(&self) -> &LiveSettings {
        &self.w.live
    }

    /// Resolves when the worker's NATS client has ended by itself. The worker cannot go on: stop it, and end the process.
    pub async fn client_ended(&self) {
        self.w.c.broker.ended().await;
    }

    /// Notes that this process was told to stop, and pulls no more: to be called as soon as it is known, and followed by
    /// [`Running::stop`]. A command that ends by a signal from outside is given back from now on.
    pub fn told_to_stop(&self) {
        self.w.draining.cancel();
    }

    /// Notes a SIGHUP of this process: a command that a SIGHUP ends in the same moment is given back, as the whole service got it.
    pub fn hung_up(&self) {
        self.w.told.hang_up();
    }

    /// Resolves when [`Running::stop`] was called (from another handle or task) or the worker ended by itself.
    pub async fn stopped(&self) {
        self.w.draining.cancelled().await;
    }

    /// Stops: no more pulls; running attempts may end within `worker.drain`; then they are stopped and handed back without
    /// a charge; then the session is closed. `hurry` resolving (a second signal) ends the drain at once.
    pub async fn stop(self, hurry: impl Future<Output = ()>) {
        let Self { w, services, calls, served, background, server } = self;
        w.draining.cancel();
        w.tracker.close();
        let now = w.live.now();
        tracing::info!(attempts = w.n_running(), drain = ?now.worker.drain, "draining");
        tokio::select! {
            () = w.tracker.wait() => {}
            () = tokio::time::sleep(now.worker.drain) => tracing::warn!(attempts = w.n_running(), "drain time is over"),
            () = hurry => tracing::warn!(attempts = w.n_running(), "told to hurry"),
        }
        w.abort.cancel();
        // Bounded: the keeper needs at most the grace to kill, then the finishes go out.
        let bound = now.attempt.kill_grace + w.settings.connection.retry_limit + Duration::from_secs(10);
        if tokio::time::timeout(bound, w.tracker.wait()).await.is_err() {
            tracing::error!(
                attempts = w.n_running(),
                "attempts did not end; their session is left to expire"
            );
        }
        if let Some(k) = &w.keeper {
            k.shutdown().await;
        }
        if let Err(e) = w.c.broker.flush().await {
            tracing::warn!(error = %e, "last acks may not have been sent");
        }
        background.cancel();
        services.wait().await;
        server.stop().await;
        drop(w);
        served.cancel();
        calls.close();
        if tokio::time::timeout(Duration::from_secs(5), calls.wait()).await.is_err() {
            tracing::warn!("journal entries are left to the relay");
        }
        tracing::info!("stopped");
    }
}
