//! The worker's side: handles on the keeper and on running attempts.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_bytes::ByteBuf;
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::protocol::{
    AttemptSpec, Cause, Exit, ExitStatusKind, KeeperError, LINE_WINDOW, StartError, StopReason, ToKeeper,
    frame,
};
use super::supervisor;

/// Starts waiting to be sent, beyond which [`Keeper::run`] waits.
const RUN_QUEUE: usize = 64;
/// How long a start may take, the replacement of a keeper included.
const START_WAIT: Duration = Duration::from_secs(20);
/// How long a shutdown may take: the keeper's own wait and some.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(20);
/// Lines are acknowledged in groups, well before the window closes.
const CREDIT_GROUP: u32 = LINE_WINDOW / 4;

/// How to start the keeper process.
#[derive(Clone, Debug)]
pub struct KeeperOptions {
    /// The binary that calls [`super::run_keeper`] when started with `args`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Use a cgroup v2 per attempt where the host permits.
    pub cgroup: bool,
    /// A keeper that says nothing for so long, though it was asked, is frozen or hangs: it is killed with its attempts, and
    /// replaced.
    pub silence: Duration,
}

impl Default for KeeperOptions {
    /// The running binary itself, also when its file was replaced meanwhile, with the argument
    /// `keeper` and cgroups.
    fn default() -> Self {
        Self {
            program: PathBuf::from("/proc/self/exe"),
            args: vec!["keeper".to_owned()],
            cgroup: true,
            silence: Duration::from_secs(5),
        }
    }
}

/// Handle on the keeper. When the last clone and the last [`RunningAttempt`] are dropped, the
/// keeper process ends.
#[derive(Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
    runs: mpsc::Sender<Queued>,
    done: watch::Receiver<bool>,
}

/// What the handles and the supervisor share.
pub(super) struct Shared {
    pub(super) pid: AtomicU32,
    /// It said something since this was last looked at.
    pub(super) heard: AtomicBool,
    next_id: AtomicU64,
    board: Mutex<Board>,
    /// Rung when something is on the board.
    pub(super) bell: Notify,
}

/// What is to be told to the keeper besides starts. Only the latest state counts, so it needs no
/// queue and is bounded by the number of attempts.
pub(super) struct Board {
    pub(super) trust: u64,
    pub(super) trust_changed: bool,
    /// It is to be asked whether it is there.
    pub(super) ask: bool,
    pub(super) stops: HashMap<u64, StopReason>,
    pub(super) credits: HashMap<u64, u32>,
    pub(super) attempts: HashMap<u64, Entry>,
    pub(super) closing: bool,
}

/// An attempt whose end is not known yet.
pub(super) struct Entry {
    pub(super) token: String,
    /// The keeper was told, so it may have processes.
    pub(super) sent: bool,
    pub(super) process: Option<(u32, u64)>,
    pub(super) begun: Instant,
    pub(super) started: Option<oneshot::Sender<Result<(u32, u64), StartError>>>,
    pub(super) lines: mpsc::Sender<Vec<u8>>,
    pub(super) last_lines: Arc<Mutex<VecDeque<ByteBuf>>>,
    pub(super) ended: oneshot::Sender<Exit>,
}

/// A start on its way to the keeper, as the frame to be written.
pub(super) struct Queued {
    pub(super) id: u64,
    pub(super) frame: Vec<u8>,
}

impl Shared {
    pub(super) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, id: u64, reason: StopReason) {
        let mut board = self.board();
        if !board.attempts.contains_key(&id) {
            return;
        }
        let present = board.stops.entry(id).or_insert(reason);
        if reason == StopReason::Fenced {
            *present = reason;
        }
        drop(board);
        self.bell.notify_one();
    }
}

impl Keeper {
    /// Starts the keeper process and makes the calling process a subreaper, so that what a dying
    /// keeper leaves comes to it and can be killed.
    ///
    /// # Errors
    ///
    /// The process can not be started, or does not answer within ten seconds.
    pub async fn start(options: KeeperOptions) -> Result<Self, KeeperError> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|e| KeeperError::Subreaper(e.into()))?;
        let link = supervisor::connect(&options, u64::MAX).await?;
        let shared = Arc::new(Shared {
            pid: AtomicU32::new(link.pid()),
            heard: AtomicBool::new(true),
            next_id: AtomicU64::new(1),
            board: Mutex::new(Board {
                trust: u64::MAX,
                trust_changed: false,
                ask: false,
                stops: HashMap::new(),
                credits: HashMap::new(),
                attempts: HashMap::new(),
                closing: false,
            }),
            bell: Notify::new(),
        });
        let (runs, queue) = mpsc::channel(RUN_QUEUE);
        let (finished, done) = watch::channel(false);
        tokio::spawn(supervisor::supervise(Arc::clone(&shared), options, link, queue, finished));
        Ok(Self { shared, runs, done })
    }

    /// Starts an attempt; returns when its process runs. Dropping the future or the attempt kills
    /// what was started.
    ///
    /// # Errors
    ///
    /// The handler could not be started, or the keeper was lost before it was known to run; then
    /// nothing of it is left.
    pub async fn run(&self, spec: AttemptSpec) -> Result<RunningAttempt, StartError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let token = spec.token.clone();
        let frame = frame(&ToKeeper::Run { id, spec }).map_err(|e| StartError::Invalid(e.to_string()))?;
        let (started, answer) = oneshot::channel();
        let (ended, exit) = oneshot::channel();
        let (sender, lines) = mpsc::channel(usize::try_from(LINE_WINDOW).unwrap_or(1));
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let entry = Entry {
            token,
            sent: false,
            process: None,
            begun: Instant::now(),
            started: Some(started),
            lines: sender,
            last_lines: Arc::clone(&last),
            ended,
        };
        {
            let mut board = self.shared.board();
            if board.closing {
                return Err(StartError::KeeperLost("it was shut down".to_owned()));
            }
            board.attempts.insert(id, entry);
        }
        let guard = Guard { shared: Arc::clone(&self.shared), id };
        let start = async {
            if self.runs.send(Queued { id, frame }).await.is_err() {
                return Err(StartError::KeeperLost("it was shut down".to_owned()));
            }
            answer.await.unwrap_or_else(|_| Err(StartError::KeeperLost("no answer".to_owned())))
        };
        let (pid, start_time) = timeout(START_WAIT, start).await.unwrap_or_else(|_| {
            Err(StartError::KeeperLost(format!("no answer for {} s", START_WAIT.as_secs())))
        })?;
        Ok(RunningAttempt {
            pid,
            start_time,
            lines: AsyncMutex::new(Lines { live: lines, last, taken: 0 }),
            exit: AsyncMutex::new(End::Awaited(exit)),
            guard,
            _keeper: self.clone(),
        })
    }

    /// Sets the trust deadline: in ms of [`super::boot_ms`], `u64::MAX` for none (as at first).
    /// When it passes, the keeper kills everything without grace and starts nothing until it is
    /// prolonged. The latest value wins; never blocks.
    pub fn trust(&self, until_boot_ms: u64) {
        let mut board = self.shared.board();
        board.trust = until_boot_ms;
        board.trust_changed = true;
        drop(board);
        self.shared.bell.notify_one();
    }

    /// The process id of the present keeper; of the last one while it is being replaced.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shared.pid.load(Ordering::Relaxed)
    }

    /// Ends the keeper and with it, by KILL and reported as [`StopReason::Shutdown`], every attempt
    /// that still runs. Returns when all is dead, after twenty seconds at most.
    pub async fn shutdown(&self) {
        self.shared.board().closing = true;
        self.shared.bell.notify_one();
        let mut done = self.done.clone();
        if timeout(SHUTDOWN_WAIT, done.wait_for(|d| *d)).await.is_err() {
            tracing::error!("the keeper's trees are not proved dead");
        }
    }
}

/// Kills the attempt when dropped; harmless when it has ended.
struct Guard {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut board = self.shared.board();
        if board.attempts.get(&self.id).is_some_and(|e| !e.sent) {
            board.attempts.remove(&self.id);
            return;
        }
        drop(board);
        self.shared.stop(self.id, StopReason::Fenced);
    }
}

/// A started attempt. Dropping it kills its tree.
///
/// A handler that writes control lines nobody takes by [`RunningAttempt::next_line`] is stopped by
/// its full pipe after a while, as with any pipe.
pub struct RunningAttempt {
    /// Process id of the main process; also its group and session.
    pub pid: u32,
    /// Its start time: `/proc/<pid>/stat` field 22, clock ticks since boot.
    pub start_time: u64,
    lines: AsyncMutex<Lines>,
    exit: AsyncMutex<End>,
    guard: Guard,
    /// Keeps the keeper alive.
    _keeper: Keeper,
}

struct Lines {
    live: mpsc::Receiver<Vec<u8>>,
    /// Came with the end, follow the live ones.
    last: Arc<Mutex<VecDeque<ByteBuf>>>,
    /// Taken, but not acknowledged.
    taken: u32,
}

enum End {
    Awaited(oneshot::Receiver<Exit>),
    Known(Box<Exit>),
}

impl RunningAttempt {
    /// The next line of the control pipe without its newline, undecoded, cut at 64 KiB, invalid
    /// UTF-8 replaced. `None` when the attempt has ended and all lines are taken: to see all of
    /// them, go on after [`RunningAttempt::wait`] has returned. Cancel safe.
    pub async fn next_line(&self) -> Option<String> {
        let mut lines = self.lines.lock().await;
        if let Some(line) = lines.live.recv().await {
            lines.taken += 1;
            if lines.taken >= CREDIT_GROUP {
                let taken = std::mem::take(&mut lines.taken);
                let mut board = self.guard.shared.board();
                if board.attempts.contains_key(&self.guard.id) {
                    *board.credits.entry(self.guard.id).or_default() += taken;
                }
                drop(board);
                self.guard.shared.bell.notify_one();
            }
            return Some(text(line));
        }
        let line = lines.last.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        line.map(|l| text(l.into_vec()))
    }

    /// Waits for the end. Cancel safe; may be raced with [`RunningAttempt::next_line`] and called
    /// again.
    pub async fn wait(&self) -> Exit {
        let mut end = self.exit.lock().await;
        let exit = match &mut *end {
            End::Known(exit) => return (**exit).clone(),
            // The supervisor reports every end; without a runtime left nothing is known.
            End::Awaited(exit) => exit.await.unwrap_or_else(|_| lost_exit(Duration::ZERO, 0)),
        };
        *end = End::Known(Box::new(exit.clone()));
        exit
    }

    /// A handle to stop the attempt from elsewhere.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper { shared: Arc::clone(&self.guard.shared), id: self.guard.id }
    }
}

fn text(line: Vec<u8>) -> String {
    String::from_utf8(line).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// The end of an attempt whose keeper died: its output died with it.
pub(super) fn lost_exit(wall: Duration, killed: u32) -> Exit {
    Exit {
        status: ExitStatusKind::Signal(9),
        cause: Cause::KeeperLost,
        stdout: Vec::new(),
        stdout_total: 0,
        stderr_total: 0,
        output_truncated: false,
        stdout_tail: Vec::new(),
        stderr_tail: Vec::new(),
        oom: false,
        wall,
        strays_killed: killed,
        strays_left: 0,
    }
}

/// Stops an attempt from anywhere.
#[derive(Clone)]
pub struct Stopper {
    shared: Arc<Shared>,
    id: u64,
}

impl Stopper {
    /// TERM to the group, KILL of the tree after the grace; with [`StopReason::Fenced`] KILL at
    /// once, also when a stop is under way. Of other reasons the first counts. Never blocks and
    /// does nothing after the end.
    pub fn stop(&self, reason: StopReason) {
        self.shared.stop(self.id, reason);
    }
}
