//! The keeper process: its main loop, its deadline, its reaping.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::attempt::{Attempt, Limits, Orders};
use super::boot_ms;
use super::cgroup::{Base, kill_base};
use super::output::Output;
use super::protocol::{
    AttemptSpec, Cause, ExitStatusKind, Frames, FromKeeper, StartError, StopReason, ToKeeper, frame,
};
use super::search::Searcher;
use super::spawn::spawn;
use super::tree::{Mark, Owner, Table, children, read_process};

/// How long the trees are waited for when the worker is gone: a little over the wait of each.
const END_WAIT: Duration = Duration::from_secs(12);

/// What the attempts share with the main loop.
pub(super) struct Shared {
    pub(super) pid: i32,
    live: Mutex<HashMap<u64, Live>>,
}

struct Live {
    mark: Mark,
    orders: watch::Sender<Orders>,
    /// It is being killed.
    is_ending: bool,
    /// Taken when the main process was reaped.
    exited: Option<oneshot::Sender<ExitStatusKind>>,
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, HashMap<u64, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All attempts, as owners of processes.
    pub(super) fn owners(&self) -> Vec<Owner> {
        let is_ending = |l: &Live| l.is_ending || l.exited.is_none();
        self.live().values().map(|l| Owner { mark: l.mark.clone(), is_ending: is_ending(l) }).collect()
    }

    /// The main processes that have not ended.
    pub(super) fn mains(&self) -> HashSet<i32> {
        self.live().values().filter(|l| l.exited.is_some()).map(|l| l.mark.pid).collect()
    }

    /// Nothing of the attempt may live on.
    pub(super) fn ending(&self, id: u64) {
        if let Some(live) = self.live().get_mut(&id) {
            live.is_ending = true;
        }
    }

    pub(super) fn forget(&self, id: u64) {
        self.live().remove(&id);
    }

    fn order(&self, id: u64, change: impl FnOnce(&mut Orders)) {
        if let Some(live) = self.live().get(&id) {
            live.orders.send_modify(change);
        }
    }

    fn kill_all(&self, cause: Cause) {
        for live in self.live().values() {
            live.orders.send_modify(|o| {
                o.end = Some(cause);
                o.at_once = true;
            });
        }
    }

    /// Reaps what has exited: main processes for their attempts, adopted orphans for no one. Each
    /// by its pid, so that no other child of this process is ever taken from its owner.
    fn reap(&self) {
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let mut mains = 0;
        loop {
            for live in self.live().values_mut() {
                if live.exited.is_some()
                    && let Some(status) = reap_one(live.mark.pid)
                    && let Some(exited) = live.exited.take()
                {
                    mains += 1;
                    if exited.send(status).is_err() {
                        tracing::debug!(token = live.mark.token, "an exit after the end");
                    }
                }
            }
            if !matches!(waitid(WaitId::All, peek), Ok(Some(_))) {
                return;
            }
            // Something has exited still: a main process just now, or an orphan.
            if self.reap_orphans() == 0 && mains == 0 {
                return;
            }
            mains = 0;
        }
    }

    fn reap_orphans(&self) -> usize {
        let mains = self.mains();
        let dead: Vec<i32> = match children(self.pid) {
            Some(children) => children.into_iter().filter(|pid| !mains.contains(pid)).collect(),
            // This kernel lists none.
            None => match Table::read() {
                Ok(table) => table.zombies(self.pid).filter(|pid| !mains.contains(pid)).collect(),
                Err(_) => return 0,
            },
        };
        dead.into_iter().filter(|pid| reap_one(*pid).is_some()).count()
    }
}

fn reap_one(pid: i32) -> Option<ExitStatusKind> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = waitid(WaitId::Pid(Pid::from_raw(pid)?), options).ok()??;
    Some(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatusKind::Code(code),
        (None, signal) => ExitStatusKind::Signal(signal.unwrap_or(9)),
    })
}

/// The life of the keeper process: serves the worker over stdin and stdout until stdin ends, then
/// kills every tree and returns.
///
/// Meant for the current-thread runtime of a process that does nothing else: a small process is
/// cheap to fork. Nothing else may be written to its stdout.
///
/// # Errors
///
/// stdin and stdout are no pipes, or the system refuses what a keeper needs. Once it serves, all
/// trees are dead when it returns, also with an error.
pub async fn run_keeper() -> io::Result<()> {
    let pid = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(pid))?;
    // What reaches a whole service or terminal is the worker's business, whatever its manager sends: it stops the
    // attempts in order. A caught signal, unlike an ignored one, is not inherited by handlers.
    let _caught = [
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        signal(SignalKind::hangup())?,
        signal(SignalKind::quit())?,
        signal(SignalKind::user_defined1())?,
        signal(SignalKind::user_defined2())?,
        signal(SignalKind::alarm())?,
    ];
    let mut children = signal(SignalKind::child())?;
    let input = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 4)?;
    let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 4)?;
    let mut frames = Frames::new(pipe::Receiver::from_owned_fd(input)?);
    let output = pipe::Sender::from_owned_fd(output)?;

    let Some(ToKeeper::Setup { cgroup, trust }) = frames.next().await? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no setup from the worker"));
    };
    let own_pid = pid.as_raw_nonzero().get();
    let start_time = read_process(own_pid).map_or(0, |p| p.start_time);
    let base =
        if cgroup { Base::create(std::process::id(), start_time) } else { Err("switched off".to_owned()) };
    let (out, events) = mpsc::channel(256);
    let writer = tokio::spawn(write_events(output, events));
    let cgroups = base.as_ref().map(|b| b.dir().to_owned()).map_err(Clone::clone);
    let shared = Arc::new(Shared { pid: own_pid, live: Mutex::new(HashMap::new()) });
    let mut keeper = Main {
        searcher: Searcher::start(Arc::clone(&shared))?,
        shared,
        base: base.ok(),
        trust,
        // No pipe, but read as one: the safe way to a descriptor in tokio's reactor.
        timer: pipe::Receiver::from_owned_fd_unchecked(timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?)?,
        attempts: JoinSet::new(),
        out,
    };
    keeper.arm()?;
    if keeper.out.send(FromKeeper::Hello { cgroups }).await.is_err() {
        return Err(io::ErrorKind::BrokenPipe.into());
    }

    let result = loop {
        tokio::select! {
            biased;
            _ = children.recv() => keeper.shared.reap(),
            ready = keeper.timer.readable() => {
                if let Err(error) = ready.and_then(|()| keeper.expired()) {
                    break Err(error);
                }
            }
            message = frames.next() => match message {
                Ok(Some(message)) => if let Err(error) = keeper.handle(message) {
                    break Err(error);
                },
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            },
            Some(ended) = keeper.attempts.join_next() => if let Err(error) = ended {
                // With no one attending to its tree, the worker must take over.
                break Err(io::Error::other(error));
            },
        }
    };

    // The worker is gone or talks nonsense: nothing may outlive it.
    keeper.shared.kill_all(Cause::Stopped(StopReason::Shutdown));
    let deadline = Instant::now() + END_WAIT;
    while !keeper.attempts.is_empty() {
        tokio::select! {
            _ = children.recv() => keeper.shared.reap(),
            ended = timeout_at(deadline, keeper.attempts.join_next()) => if ended.is_err() {
                tracing::error!(left = keeper.attempts.len(), "trees survive their keeper");
                break;
            },
        }
    }
    if let Some(base) = &keeper.base
        && !kill_base(base.dir())
    {
        tracing::error!("cgroups are populated at the end of their keeper");
    }
    drop(keeper);
    // A frozen worker does not read: its reports are lost then, its trees are dead.
    if timeout(Duration::from_secs(1), writer).await.is_err() {
        tracing::debug!("the worker does not read the last reports");
    }
    result
}

struct Main {
    shared: Arc<Shared>,
    searcher: Searcher,
    base: Option<Base>,
    /// `CLOCK_BOOTTIME` in ms; `u64::MAX` for none.
    trust: u64,
    timer: pipe::Receiver,
    attempts: JoinSet<()>,
    out: mpsc::Sender<FromKeeper>,
}

impl Main {
    fn handle(&mut self, message: ToKeeper) -> io::Result<()> {
        match message {
            ToKeeper::Setup { .. } => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a second setup"));
            }
            ToKeeper::Run { id, spec } => {
                let Err(error) = self.run(id, spec) else {
                    return Ok(());
                };
                // A full queue (the worker does not read) must not hold up the main loop.
                let refused = FromKeeper::Refused { id, error };
                if let Err(mpsc::error::TrySendError::Full(event)) = self.out.try_send(refused) {
                    let out = self.out.clone();
                    self.attempts.spawn(async move {
                        if out.send(event).await.is_err() {
                            tracing::debug!("no one left to report a start to");
                        }
                    });
                }
            }
            ToKeeper::Stop { id, reason } => self.shared.order(id, |o| {
                let fenced = reason == StopReason::Fenced;
                if o.end.is_none() || fenced && !o.at_once {
                    o.end = Some(Cause::Stopped(reason));
                    o.at_once |= fenced;
                }
            }),
            ToKeeper::Credit { id, lines } => {
                self.shared.order(id, |o| o.credit += u64::from(lines));
            }
            ToKeeper::AreYouThere => {
                // With a full queue something else will be heard.
                if let Err(mpsc::error::TrySendError::Closed(_)) = self.out.try_send(FromKeeper::Here) {
                    tracing::debug!("no one left to answer to");
                }
            }
            ToKeeper::Trust { until } => {
                self.trust = until;
                self.arm()?;
            }
        }
        Ok(())
    }

    fn run(&mut self, id: u64, spec: AttemptSpec) -> Result<(), StartError> {
        if boot_ms() >= self.trust {
            return Err(StartError::TrustLost);
        }
        let group = match &self.base {
            Some(base) => Some(base.attempt(id, &spec.token).map_err(|e| StartError::Cgroup(e.to_string()))?),
            None => None,
        };
        let limits = Limits { timeout: spec.timeout, grace: spec.grace };
        let output = Output::new(spec.result_cap, spec.output_limit, spec.tail_lines);
        let token = spec.token.clone();
        let (exited_sender, exited) = oneshot::channel();
        let (orders_sender, orders) = watch::channel(Orders::default());
        let started = Instant::now();
        // Under the lock, so that the child can not be reaped before it is known.
        let mut live = self.shared.live();
        let handler = match spawn(spec, group.as_ref()) {
            Ok(handler) => handler,
            Err(error) => {
                if group.is_some_and(|g| !g.remove()) {
                    tracing::warn!("the cgroup of a failed start stays");
                }
                return Err(error);
            }
        };
        let (pid, start_time) = (handler.pid, handler.start_time);
        let mark = Mark { pid, start_time, token };
        live.insert(
            id,
            Live { mark: mark.clone(), orders: orders_sender, is_ending: false, exited: Some(exited_sender) },
        );
        drop(live);
        let searcher = self.searcher.clone();
        let attempt = Attempt { id, mark, handler, group, searcher, limits, output, orders, exited, started };
        self.attempts.spawn(attempt.attend(Arc::clone(&self.shared), self.out.clone()));
        Ok(())
    }

    /// Sets the timer to the trust deadline.
    fn arm(&self) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = match i64::try_from(self.trust / 1000) {
            Ok(tv_sec) if self.trust != u64::MAX => {
                let millis = i64::try_from(self.trust % 1000).unwrap_or(0);
                // All zero would switch it off.
                Timespec { tv_sec, tv_nsec: (millis * 1_000_000).max(1) }
            }
            _ => zero,
        };
        let setting = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &setting)?;
        Ok(())
    }

    fn expired(&self) -> io::Result<()> {
        let mut count = [0u8; 8];
        match self.timer.try_read(&mut count) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        }
        if boot_ms() >= self.trust {
            tracing::error!("the trust deadline has passed: all attempts are killed");
            self.shared.kill_all(Cause::TrustLost);
            return Ok(());
        }
        // Prolonged meanwhile, or a little early.
        self.arm()
    }
}

/// Writes what the attempts report, as much as there is in one go. Goes on taking when the worker
/// is gone, so that no attempt waits for it.
async fn write_events(mut output: pipe::Sender, mut events: mpsc::Receiver<FromKeeper>) {
    let mut batch = Vec::new();
    let mut lost = false;
    while events.recv_many(&mut batch, 64).await > 0 {
        let mut bytes = Vec::new();
        for event in batch.drain(..) {
            match frame(&event) {
                Ok(frame) => bytes.extend_from_slice(&frame),
                Err(error) => tracing::error!(%error, "a report is lost"),
            }
        }
        if !lost && let Err(error) = output.write_all(&bytes).await {
            tracing::debug!(%error, "the worker does not read any more");
            lost = true;
        }
    }
}
