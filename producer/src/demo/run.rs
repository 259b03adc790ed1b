//! The story: servers, two workers, the jobs, the kill, the wait, the proof.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use surety_common::{
    broker::BrokerError,
    config::ConfigError,
    connect::ConnectError,
    domain::{JobId, QueueName},
    history::{History, Violation},
    store::StoreError,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    bed::{Bed, Killed},
    handlers::Kind,
    judge::{Sent, judge},
    report::{Figures, Report},
    tree::{Tree, truth},
};
use crate::{
    client::{Client, ClientError, JobBuilder},
    dev::{processes::ProcessError, servers::ServerError},
};

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The folder whose files the jobs are about; none: the first usual one that has enough.
    pub tree: Option<PathBuf>,
    /// How many files; at least 50, or nothing would be at work when the worker is killed.
    pub files: usize,
    /// Where the data goes and stays; none: a temporary folder that is removed.
    pub keep: Option<PathBuf>,
}

/// Who watches the run.
pub trait Watch: Send + Sync {
    /// Something happened.
    fn say(&self, line: &str);
    /// So many jobs of so many have ended.
    fn ended(&self, ended: usize, of: usize);
}

/// Why the demo did not get to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The journal cannot even be folded.
    #[error(transparent)]
    Journal(#[from] Violation),
    /// A folder that was given, or all of the usual ones, will not do.
    #[error("{0}")]
    Tree(String),
    #[error("cannot {what}: {cause}")]
    Io { what: String, cause: std::io::Error },
    #[error("{0}")]
    Stuck(String),
    /// By Ctrl-C or TERM; everything was ended.
    #[error("stopped before the end; everything that was started has ended")]
    Stopped,
}

pub(super) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> DemoError {
    let what = what.into();
    move |cause| DemoError::Io { what, cause }
}

/// The worker is killed when this many of a hundred jobs have ended.
const KILL_AT: usize = 40;
/// Longest that no job may end: far above the ack-wait, after which everything comes back.
const NO_PROGRESS: Duration = Duration::from_secs(60);
/// The pause between two looks.
const POLL: Duration = Duration::from_millis(50);

/// Runs the demo on servers and processes of its own, all of which have ended when it returns.
///
/// The report says whether everything is proved. Errors: it did not get that far.
///
/// # Cancel safety
/// Dropping the future kills servers and processes; only a Ctrl-C or TERM that this function sees itself also waits for them.
pub async fn run(plan: &Plan, watch: &dyn Watch) -> Result<Report, DemoError> {
    let started = Instant::now();
    let mut interrupts = Interrupts::listen()?;
    let (root, n) = (plan.tree.clone(), plan.files);
    let prepare = async {
        // First what costs nothing and may be wrong.
        let tree = blocking(move || Tree::find(root, n)).await?;
        Ok::<_, DemoError>((tree, Bed::make(plan.keep.clone()).await?))
    };
    let (tree, mut bed) = tokio::select! {
        prepared = Box::pin(prepare) => prepared?,
        () = interrupts.next() => return Err(DemoError::Stopped),
    };
    let outcome = tokio::select! {
        outcome = Box::pin(story(&mut bed, &tree, watch)) => outcome,
        () = interrupts.next() => Err(DemoError::Stopped),
    };
    let ended = Box::pin(bed.end(outcome.is_err())).await;
    // J-07: what went wrong first is what is reported; a failed clean-up is logged beside it.
    let mut report = match (outcome, &ended) {
        (Ok(report), _) => report,
        (Err(e), Ok(left)) if left.is_empty() => return Err(e),
        (Err(e), cleanup) => {
            tracing::error!(?cleanup, "not everything that was started has ended");
            return Err(e);
        }
    };
    let left = ended?;
    if !left.is_empty() {
        report.left_behind += left.len();
        report.figures.problems.push(format!("processes outlived the demo: {left:?}"));
    }
    report.total_seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

struct Interrupts(Signal, Signal);

impl Interrupts {
    fn listen() -> Result<Self, DemoError> {
        let listen = |kind| signal(kind).map_err(io("listen for signals"));
        Ok(Self(listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?))
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

async fn story(bed: &mut Bed, tree: &Tree, watch: &dyn Watch) -> Result<Report, DemoError> {
    let n = tree.files.len();
    watch.say(&format!("{n} files of {}", tree.root.display()));
    watch.say(&format!("servers, a reaper and two workers; their data is in {}", bed.folder().display()));
    bed.start_reaper()?;
    bed.start_worker(1)?;
    bed.start_worker(2)?;
    bed.until_sessions(2).await?;
    let ids = enqueue(bed, tree).await?;
    watch.say(&format!("{n} jobs are enqueued"));
    let (killed, killed_after) = follow(bed, n, watch).await?;
    watch.say("every job has ended; computing every digest again and reading the journal");
    let figures = prove(bed, tree.clone(), ids).await?;
    Ok(report(tree, figures, &killed, killed_after))
}

/// Runs what blocks beside the runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DemoError> + Send + 'static,
) -> Result<T, DemoError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| DemoError::Stuck(format!("a task ended early: {e}")))?
}

async fn enqueue(bed: &Bed, tree: &Tree) -> Result<Vec<(JobId, Kind)>, DemoError> {
    let client = Client::on(bed.c.broker.clone(), &bed.settings).await?;
    let queue = QueueName::new("default").map_err(|e| DemoError::Stuck(e.to_string()))?;
    let n = tree.files.len();
    let mut pending = Vec::with_capacity(n);
    for (i, path) in tree.files.iter().enumerate() {
        let kind = Kind::of(i, n);
        let job = JobBuilder::new(kind.name())
            .payload(&serde_json::json!({ "path": path }))
            .map_err(ClientError::from)?
            // A machine under load may lose more sessions than the one that is killed.
            .max_retries(20);
        pending.push((client.send(&queue, job).await?, kind));
    }
    let mut ids = Vec::with_capacity(n);
    for (p, kind) in pending {
        ids.push((p.stored().await?.id, kind));
    }
    Ok(ids)
}

/// Watches the jobs to their end, and kills one worker on the way. Returns what was killed, and after how many jobs.
async fn follow(bed: &mut Bed, n: usize, watch: &dyn Watch) -> Result<(Killed, usize), DemoError> {
    let jobs = bed.c.broker.names().jobs();
    let mut killed: Option<(Killed, usize)> = None;
    let (mut most, mut last_change) = (0, Instant::now());
    loop {
        bed.still_runs()?;
        let left = usize::try_from(bed.c.broker.stream_messages(&jobs).await?).unwrap_or(n);
        let ended = n.saturating_sub(left);
        watch.ended(ended, n);
        if ended > most {
            (most, last_change) = (ended, Instant::now());
        }
        if killed.is_none()
            && ended * 100 >= n * KILL_AT
            && let Some(worker) = bed.busiest()?
        {
            let k = bed.kill9(worker).await?;
            watch.say(&format!(
                "kill -9 {} ({}) after {ended} jobs, with {} handlers running",
                k.pid, k.name, k.handlers
            ));
            watch.say(&match k.left.len() {
                0 => format!(
                    "{:.0} ms later nothing of it is left; the other one goes on",
                    k.took.as_secs_f64() * 1e3
                ),
                left => format!("{left} of its processes are left"),
            });
            killed = Some((k, ended));
        }
        // The journal is complete when the outbox is empty.
        if left == 0 && bed.c.store.outbox_len(0).await? == 0 {
            return killed.ok_or_else(|| {
                DemoError::Stuck(
                    "every job had ended before a worker could be killed: use more --files".into(),
                )
            });
        }
        if last_change.elapsed() > NO_PROGRESS {
            return Err(DemoError::Stuck(format!(
                "no job ended for {NO_PROGRESS:?}; {left} of {n} are left"
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Reads everything back and compares it with a computation of our own.
async fn prove(bed: &Bed, tree: Tree, ids: Vec<(JobId, Kind)>) -> Result<Figures, DemoError> {
    let truths = blocking(move || {
        let one = |p: &PathBuf| truth(p).map_err(io(format!("read {}", p.display())));
        tree.files.iter().map(one).collect::<Result<Vec<_>, _>>()
    })
    .await?;
    let mut unsettled = Vec::new();
    let mut sent = Vec::with_capacity(ids.len());
    for ((id, kind), truth) in ids.into_iter().zip(truths) {
        let record = bed.c.store.record(&id).await?;
        if !record.as_ref().is_some_and(|r| r.status.is_terminal()) {
            unsettled.push(id.to_string());
        }
        let stored_ms = record.map_or(0, |r| r.created_ms);
        sent.push(Sent { id: id.to_string(), kind, stored_ms, truth });
    }
    let mut events = Vec::new();
    let unreadable = bed.c.broker.read_journal(None, 0, |e| events.push(e)).await?;
    let history = History::fold(events)?;
    let mut figures = judge(&sent, &history);
    if unreadable > 0 {
        figures.problems.push(format!("{unreadable} messages of the journal cannot be read"));
    }
    if !unsettled.is_empty() {
        figures.problems.push(format!("the store has no outcome of {} jobs", unsettled.len()));
    }
    Ok(figures)
}

fn report(tree: &Tree, mut figures: Figures, killed: &Killed, killed_after: usize) -> Report {
    if !killed.left.is_empty() {
        figures.problems.push(format!("processes outlived their killed worker: {:?}", killed.left));
    }
    if figures.lost_attempts == 0 {
        figures.problems.push("no attempt was lost with the killed worker: nothing is proved by it".into());
    }
    Report {
        tree: tree.root.display().to_string(),
        figures,
        killed: killed.name.clone(),
        killed_after,
        handlers_at_kill: killed.handlers,
        gone_ms: killed.took.as_secs_f64() * 1e3,
        left_behind: killed.left.len(),
        total_seconds: 0.0,
    }
}
